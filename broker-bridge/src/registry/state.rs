//! Everything that the registry's topic says, in memory: what requests are answered from.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use md5::{Digest as _, Md5};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{
    error::{RegistryError, Result},
    level::Level,
    record::{Record, Reference, SchemaValue},
    schema::{Kind, Parsed, Referenced},
    subject,
};
use crate::auth::{Carrier, Kind as Thing, Verb};

/// One version of one subject.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) subject: String,
    pub(super) version: i32,
    pub(super) id: i32,
    /// Of schema, references, metadata and rules: the same in every registry.
    pub(super) guid: Uuid,
    /// As the record says it; `AVRO` where it says none.
    pub(super) kind: String,
    pub(super) references: Vec<Reference>,
    pub(super) metadata: Option<Value>,
    pub(super) rule_set: Option<Value>,
    pub(super) schema: String,
    pub(super) deleted: bool,
    /// When its record was written; milliseconds since 1970.
    pub(super) timestamp_ms: i64,
}

impl Stored {
    fn of(value: SchemaValue, timestamp_ms: i64) -> Self {
        let known = value.md5.as_ref().and_then(|text| STANDARD.decode(text).ok()).and_then(|bytes| Uuid::from_slice(&bytes).ok());
        let guid = known.unwrap_or_else(|| guid(&value.schema, &value.references, value.metadata.as_ref(), value.rule_set.as_ref()));
        Self {
            subject: value.subject,
            version: value.version,
            id: value.id,
            guid,
            kind: value.schema_type.unwrap_or_else(|| Kind::Avro.name().to_owned()),
            references: value.references,
            metadata: value.metadata,
            rule_set: value.rule_set,
            schema: value.schema,
            deleted: value.deleted,
            timestamp_ms,
        }
    }

    pub(super) fn value(&self) -> SchemaValue {
        SchemaValue {
            subject: self.subject.clone(),
            version: self.version,
            id: self.id,
            md5: None,
            schema_type: Some(self.kind.clone()),
            references: self.references.clone(),
            metadata: self.metadata.clone(),
            rule_set: self.rule_set.clone(),
            schema: self.schema.clone(),
            deleted: self.deleted,
        }
    }

    fn context(&self) -> &str {
        subject::split(&self.subject).0
    }

    fn bytes(&self) -> usize {
        // The maps' own weight is guessed.
        self.schema.len() + self.subject.len() * 3 + 400
    }
}

/// The hash by which equal schemas are known as such.
pub(super) fn guid(schema: &str, references: &[Reference], metadata: Option<&Value>, rule_set: Option<&Value>) -> Uuid {
    let mut hash = Md5::new();
    hash.update(schema);
    for reference in references {
        hash.update(&reference.name);
        hash.update(&reference.subject);
        hash.update(reference.version.to_be_bytes());
    }
    if let Some(metadata) = metadata {
        hash.update([1]);
        let texts =
            |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>();
        let members = |key: &str| metadata.get(key).and_then(Value::as_object).into_iter().flatten();
        for (key, tags) in members("tags") {
            hash.update(key);
            texts(tags).iter().for_each(|tag| hash.update(tag));
        }
        for (key, value) in members("properties") {
            hash.update(key);
            hash.update(value.as_str().unwrap_or_default());
        }
        metadata.get("sensitive").map(texts).unwrap_or_default().iter().for_each(|name| hash.update(name));
    }
    if let Some(rule_set) = rule_set {
        hash.update([1]);
        hash.update(rule_set.to_string());
    }
    Uuid::from_bytes(hash.finalize().into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    ReadWrite,
    ReadOnly,
    /// Read only for every subject, whatever is set for it.
    ReadOnlyOverride,
    Import,
}

impl Mode {
    const ALL: [(Mode, &'static str); 4] = [
        (Mode::ReadWrite, "READWRITE"),
        (Mode::ReadOnly, "READONLY"),
        (Mode::ReadOnlyOverride, "READONLY_OVERRIDE"),
        (Mode::Import, "IMPORT"),
    ];

    /// In any case.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(mode, _)| *mode)
    }

    pub(super) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// Which versions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    Live,
    WithDeleted,
    OnlyDeleted,
}

impl Filter {
    pub(super) fn takes(self, deleted: bool) -> bool {
        match self {
            Filter::Live => !deleted,
            Filter::WithDeleted => true,
            Filter::OnlyDeleted => deleted,
        }
    }
}

pub(super) type Versions = BTreeMap<i32, Stored>;

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) subjects: BTreeMap<String, Versions>,
    /// Who has an id, by context and id.
    ids: BTreeMap<(String, i32), BTreeSet<(String, i32)>>,
    /// Ids by context and guid.
    guids: HashMap<(String, Uuid), i32>,
    last_ids: HashMap<String, i32>,
    configs: BTreeMap<Option<String>, Map<String, Value>>,
    modes: BTreeMap<Option<String>, Mode>,
    contexts: BTreeSet<String>,
    pub(super) bytes: usize,
}

impl State {
    /// Takes a record in; the reason where it says what cannot be.
    pub(super) fn apply(&mut self, record: Record, timestamp_ms: i64) -> Result<(), String> {
        match record {
            Record::Schema { subject, version, value: None } => self.remove(&subject, version),
            Record::Schema { value: Some(value), .. } => return self.put(Stored::of(*value, timestamp_ms)),
            Record::Config { subject, value: Some(value) } => drop(self.configs.insert(subject, value)),
            Record::Config { subject, value: None } => drop(self.configs.remove(&subject)),
            Record::Mode { subject, mode: None } => drop(self.modes.remove(&subject)),
            Record::Mode { subject, mode: Some(mode) } => match Mode::of(&mode) {
                Some(mode) => drop(self.modes.insert(subject, mode)),
                None => return Err(format!("mode {mode:?} is not known here")),
            },
            Record::DeleteSubject { subject, version } => {
                for (_, stored) in self.subjects.get_mut(&subject).into_iter().flat_map(|versions| versions.range_mut(..=version)) {
                    stored.deleted = true;
                }
            }
            Record::ClearSubject { subject } => {
                let gone: Vec<(String, i32)> =
                    self.matching(subject.as_deref()).filter(|one| one.deleted).map(|one| (one.subject.clone(), one.version)).collect();
                gone.iter().for_each(|(subject, version)| self.remove(subject, *version));
            }
            Record::Context { context, gone: true } => drop(self.contexts.remove(&context)),
            Record::Context { context, gone: false } => drop(self.contexts.insert(context)),
            Record::Nothing => {}
        }
        Ok(())
    }

    fn put(&mut self, stored: Stored) -> Result<(), String> {
        let context = stored.context().to_owned();
        let key = (context.clone(), stored.id);
        if let Some(other) = self.by_id(&context, stored.id)
            && other.schema != stored.schema
        {
            return Err(format!("id {} of {} version {} belongs to another schema", stored.id, stored.subject, stored.version));
        }
        self.remove(&stored.subject.clone(), stored.version);
        self.guids.insert((context.clone(), stored.guid), stored.id);
        // Behind the last number that there is comes none.
        if stored.id <= NUMBER_MAX {
            let last = self.last_ids.entry(context).or_default();
            *last = stored.id.max(*last);
        }
        self.bytes += stored.bytes();
        self.ids.entry(key).or_default().insert((stored.subject.clone(), stored.version));
        self.subjects.entry(stored.subject.clone()).or_default().insert(stored.version, stored);
        Ok(())
    }

    fn remove(&mut self, subject: &str, version: i32) {
        let Some(versions) = self.subjects.get_mut(subject) else { return };
        let Some(stored) = versions.remove(&version) else { return };
        if versions.is_empty() {
            self.subjects.remove(subject);
        }
        self.bytes -= stored.bytes();
        let key = (stored.context().to_owned(), stored.id);
        if let Some(having) = self.ids.get_mut(&key) {
            having.remove(&(subject.to_owned(), version));
            if having.is_empty() {
                self.ids.remove(&key);
                self.guids.retain(|(context, _), id| *context != key.0 || *id != key.1);
            }
        }
    }

    /// Whether these records were the last ones about what they are about.
    pub(super) fn holds(&self, records: &[Record]) -> bool {
        records.iter().all(|record| match record {
            Record::Schema { subject, version, value } => {
                let stored = self.version(subject, *version, Filter::WithDeleted);
                stored.map(Stored::value).as_ref() == value.as_deref()
            }
            Record::Config { subject, value } => self.configs.get(subject) == value.as_ref(),
            Record::Mode { subject, mode } => self.modes.get(subject).map(|mode| mode.name()) == mode.as_deref(),
            Record::DeleteSubject { subject, version } => self.versions(subject).all(|stored| stored.version > *version || stored.deleted),
            Record::ClearSubject { subject } => self.matching(subject.as_deref()).all(|stored| !stored.deleted),
            Record::Context { context, gone } => self.contexts.contains(context) != *gone,
            Record::Nothing => true,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.subjects.values().map(BTreeMap::len).sum()
    }

    pub(super) fn versions(&self, subject: &str) -> impl DoubleEndedIterator<Item = &Stored> {
        self.subjects.get(subject).into_iter().flat_map(BTreeMap::values)
    }

    /// -1 is the newest.
    pub(super) fn version(&self, subject: &str, version: i32, filter: Filter) -> Option<&Stored> {
        if version == -1 {
            return self.versions(subject).rev().find(|stored| filter.takes(stored.deleted));
        }
        self.subjects.get(subject)?.get(&version).filter(|stored| filter.takes(stored.deleted))
    }

    /// All versions of a subject, of a context, or of everything.
    pub(super) fn matching<'a>(&'a self, scope: Option<&'a str>) -> impl Iterator<Item = &'a Stored> {
        let (context, name) = scope.map_or((subject::DEFAULT, ""), subject::split);
        let takes = move |subject: &str| match name {
            "" if scope.is_none() => true,
            "" => subject::split(subject).0 == context,
            _ => Some(subject) == scope,
        };
        self.subjects.iter().filter(move |(subject, _)| takes(subject)).flat_map(|(_, versions)| versions.values())
    }

    pub(super) fn has(&self, subject: &str, filter: Filter) -> bool {
        self.versions(subject).any(|stored| filter.takes(stored.deleted))
    }

    /// Any version that has the id: they have all the same schema. One that is not deleted is preferred.
    pub(super) fn by_id(&self, context: &str, id: i32) -> Option<&Stored> {
        let having = || self.having(context, id);
        having().find(|stored| !stored.deleted).or_else(|| having().next())
    }

    /// All versions that have the id.
    pub(super) fn having(&self, context: &str, id: i32) -> impl Iterator<Item = &Stored> {
        let having = self.ids.get(&(context.to_owned(), id));
        having.into_iter().flatten().filter_map(|(subject, version)| self.subjects.get(subject)?.get(version))
    }

    pub(super) fn id_of(&self, context: &str, guid: Uuid) -> Option<i32> {
        self.guids.get(&(context.to_owned(), guid)).copied()
    }

    /// Context and id of every schema with this guid.
    pub(super) fn ids_of(&self, guid: Uuid) -> Vec<(&str, i32)> {
        let mut all: Vec<(&str, i32)> =
            self.guids.iter().filter(|((_, known), _)| *known == guid).map(|((context, _), id)| (context.as_str(), *id)).collect();
        all.sort_unstable();
        all
    }

    pub(super) fn last_id(&self, context: &str) -> i32 {
        self.last_ids.get(context).copied().unwrap_or(0)
    }

    /// With the default one, ascending.
    pub(super) fn contexts(&self) -> BTreeSet<&str> {
        let of_subjects = self.subjects.keys().map(|subject| subject::split(subject).0);
        self.contexts.iter().map(String::as_str).chain(of_subjects).chain([subject::DEFAULT]).collect()
    }

    pub(super) fn knows_context(&self, context: &str) -> bool {
        self.contexts.contains(context)
    }

    /// What is set for exactly this.
    pub(super) fn config(&self, scope: Option<&str>) -> Option<&Map<String, Value>> {
        self.configs.get(&scope.map(str::to_owned))
    }

    /// What holds for a subject; the level is always there.
    pub(super) fn config_in_scope(&self, scope: Option<&str>) -> Map<String, Value> {
        let mut config = Map::new();
        for key in subject::scopes(scope).iter().rev() {
            config.extend(self.configs.get(key).into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        }
        config.entry(LEVEL).or_insert_with(|| Level::Backward.name().into());
        config
    }

    pub(super) fn mode(&self, scope: Option<&str>) -> Option<Mode> {
        self.modes.get(&scope.map(str::to_owned)).copied()
    }

    pub(super) fn modes_below(&self, context: &str) -> Vec<String> {
        self.modes.keys().flatten().filter(|one| subject::split(one).0 == context && !subject::split(one).1.is_empty()).cloned().collect()
    }

    pub(super) fn mode_in_scope(&self, scope: Option<&str>) -> Mode {
        if self.mode(None) == Some(Mode::ReadOnlyOverride) {
            return Mode::ReadOnlyOverride;
        }
        subject::scopes(scope).iter().find_map(|key| self.modes.get(key)).copied().unwrap_or(Mode::ReadWrite)
    }

    /// Versions that refer to this one.
    pub(super) fn referring(&self, subject: &str, version: i32, filter: Filter) -> impl Iterator<Item = &Stored> {
        let refers = move |stored: &&Stored| {
            filter.takes(stored.deleted)
                && stored.references.iter().any(|reference| {
                    subject::beside(&stored.subject, &reference.subject) == subject
                        && (reference.version == version
                            || (reference.version == -1
                                && self.version(subject, -1, Filter::Live).is_some_and(|newest| newest.version == version)))
                })
        };
        self.subjects.values().flat_map(BTreeMap::values).filter(refers)
    }

    /// The schemas that one of `parent` refers to, each behind those that it refers to itself.
    pub(super) fn resolve(&self, parent: &str, references: &[Reference]) -> Result<Vec<Referenced>> {
        self.resolve_for(&Carrier::default(), parent, references)
    }

    /// The same for a caller, who has to be allowed to read each of them.
    pub(super) fn resolve_for(&self, caller: &Carrier, parent: &str, references: &[Reference]) -> Result<Vec<Referenced>> {
        let mut found: Vec<Referenced> = Vec::new();
        self.collect(caller, parent, references, &mut found, 0)?;
        Ok(found)
    }

    fn collect(&self, caller: &Carrier, parent: &str, references: &[Reference], found: &mut Vec<Referenced>, depth: usize) -> Result<()> {
        if depth == REFERENCES_DEEP_MAX {
            return Err(RegistryError::invalid_schema(format!("references are nested deeper than {REFERENCES_DEEP_MAX} levels")));
        }
        for reference in references {
            let subject = subject::beside(parent, &reference.subject);
            caller.check(Verb::Read, Thing::Subject, &subject)?;
            if found.iter().any(|known| known.name == reference.name) {
                continue;
            }
            let stored =
                self.version(&subject, reference.version, if reference.version == -1 { Filter::Live } else { Filter::WithDeleted });
            let stored = stored.ok_or_else(|| {
                RegistryError::invalid_schema(format!(
                    "version {} of subject '{subject}', which is referred to, is not there; register it first",
                    reference.version
                ))
            })?;
            self.collect(caller, &stored.subject, &stored.references, found, depth + 1)?;
            if !found.iter().any(|known| known.name == reference.name) {
                found.push(Referenced { name: reference.name.clone(), text: stored.schema.clone() });
            }
            if found.len() > REFERENCES_MAX {
                return Err(RegistryError::invalid_schema(format!("more than {REFERENCES_MAX} references, those of references included")));
            }
        }
        Ok(())
    }

    /// A stored schema, read again.
    pub(super) fn parse(&self, stored: &Stored) -> Result<Parsed, String> {
        let kind = Kind::of(&stored.kind).ok_or_else(|| format!("schema type {} is not known here", stored.kind))?;
        let references = self.resolve(&stored.subject, &stored.references).map_err(|error| error.message)?;
        Parsed::parse(kind, &stored.schema, &references, false)
    }
}

pub(super) const LEVEL: &str = "compatibilityLevel";

/// Of ids and of versions: another one always follows.
pub(super) const NUMBER_MAX: i32 = i32::MAX - 1;

/// Bounds of what one request can have read.
const REFERENCES_DEEP_MAX: usize = 32;
const REFERENCES_MAX: usize = 1_000;
