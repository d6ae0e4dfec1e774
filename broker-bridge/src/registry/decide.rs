//! What a request that changes something writes and answers, decided from the state alone.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    error::{RegistryError, Result},
    level::{self, Earlier, Level},
    record::{Record, Reference},
    schema::{Kind, Parsed},
    state::{Filter, LEVEL, Mode, NUMBER_MAX, State, Stored, guid},
    subject,
};
use crate::auth::Carrier;

/// What is written, and the answer once it is.
#[derive(Clone, Debug)]
pub(super) struct Decision<T> {
    pub(super) records: Vec<Record>,
    pub(super) answer: T,
}

impl<T> Decision<T> {
    fn nothing(answer: T) -> Self {
        Self { records: Vec::new(), answer }
    }
}

/// A schema as a request brings it.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Submitted {
    pub(super) schema: Option<String>,
    pub(super) schema_type: Option<String>,
    pub(super) references: Option<Vec<Reference>>,
    pub(super) metadata: Option<Value>,
    pub(super) rule_set: Option<Value>,
    pub(super) id: Option<i32>,
    pub(super) version: Option<i32>,
    /// What is not known here.
    #[serde(flatten)]
    pub(super) others: Map<String, Value>,
    /// Who brings it, and has to be allowed to read what it refers to.
    #[serde(skip)]
    pub(super) caller: Carrier,
}

/// One that could be read.
struct Read {
    parsed: Parsed,
    text: String,
    references: Vec<Reference>,
}

impl Submitted {
    fn read(&self, state: &State, subject: &str, normalize: bool) -> Result<Read> {
        let name = self.schema_type.as_deref().filter(|name| !name.is_empty()).unwrap_or("AVRO");
        let kind = Kind::of(name)
            .ok_or_else(|| RegistryError::invalid_schema(format!("schema type {name} is unknown; it is one of AVRO, JSON, PROTOBUF")))?;
        let text = self.schema.as_deref().unwrap_or_default();
        if text.trim().is_empty() {
            return Err(RegistryError::invalid_schema("the request has no schema; send {\"schema\": \"…\"}"));
        }
        let mut references = self.references.clone().unwrap_or_default();
        let resolved = state.resolve_for(&self.caller, subject, &references)?;
        // "The newest" is the one that it is now: what it means must not change behind a check that was made.
        for reference in references.iter_mut().filter(|reference| reference.version == -1) {
            let newest = state.version(&subject::beside(subject, &reference.subject), -1, Filter::Live);
            reference.version = newest.map_or(-1, |stored| stored.version);
        }
        let wrong = |reason: String| RegistryError::invalid_schema(format!("this is no {name} schema: {reason}"));
        let parsed = Parsed::parse(kind, text, &resolved, true).map_err(wrong)?;
        let text = if normalize {
            references.sort_by(|one, two| (&one.subject, one.version).cmp(&(&two.subject, two.version)));
            references.dedup();
            parsed.normalized()
        } else {
            parsed.canonical()
        };
        Ok(Read { parsed, text, references })
    }
}

fn normalizes(state: &State, subject: &str, asked: bool) -> bool {
    asked || state.config_in_scope(Some(subject)).get("normalize") == Some(&Value::Bool(true))
}

fn level_of(config: &Map<String, Value>) -> Level {
    config.get(LEVEL).and_then(Value::as_str).and_then(Level::of).unwrap_or(Level::Backward)
}

/// The version of the subject that has this schema, if any.
fn find<'a>(state: &'a State, subject: &str, read: &Read, submitted: &Submitted, filter: Filter) -> Option<&'a Stored> {
    let guid = guid(&read.text, &read.references, submitted.metadata.as_ref(), submitted.rule_set.as_ref());
    let reworded = |stored: &Stored| match read.parsed.kind() {
        Kind::Avro => read.references.is_empty() && !stored.references.is_empty(),
        Kind::Protobuf => read.references == stored.references,
        Kind::Json => false,
    };
    let same = |stored: &&Stored| {
        filter.takes(stored.deleted)
            && (stored.guid == guid
                // In other words: with what it refers to written out, or as a descriptor.
                || (reworded(stored) && state.parse(stored).is_ok_and(|parsed| read.parsed.same(&parsed))))
    };
    state.versions(subject).rev().find(same)
}

/// `POST /subjects/{subject}`.
pub(super) fn look_up<'a>(state: &'a State, subject: &str, submitted: &Submitted, normalize: bool, filter: Filter) -> Result<&'a Stored> {
    // A subject that is not there is told before a schema that cannot be read.
    let known = state.has(subject, filter);
    let read = submitted.read(state, subject, normalizes(state, subject, normalize))?;
    match find(state, subject, &read, submitted, filter) {
        Some(stored) => Ok(stored),
        None if !known => Err(RegistryError::no_subject(subject)),
        None => Err(RegistryError::no_schema(None)),
    }
}

/// How a schema is registered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registering {
    pub(super) normalize: bool,
    /// Without looking at compatibility.
    pub(super) force: bool,
}

/// `POST /subjects/{subject}/versions`.
pub(super) fn register(state: &State, subject: &str, submitted: &Submitted, how: Registering) -> Result<Decision<Stored>> {
    if !subject::is_valid(subject, false) {
        return Err(RegistryError::invalid_subject(subject));
    }
    let context = subject::split(subject).0;
    let mode = state.mode_in_scope(Some(subject));
    let importing = mode == Mode::Import;
    let read = submitted.read(state, subject, !importing && normalizes(state, subject, how.normalize))?;
    let (id, version) = (submitted.id.filter(|id| *id >= 0), submitted.version.filter(|version| *version > 0));
    // What is there already is found whatever the mode is.
    if let Some(stored) = find(state, subject, &read, submitted, Filter::Live)
        && id.is_none_or(|id| id == stored.id)
        && version.is_none_or(|version| version == stored.version)
    {
        return Ok(Decision::nothing(stored.clone()));
    }
    let not_now = |how: &str| Err(RegistryError::not_permitted(format!("the mode of subject '{subject}' is {}: {how}", mode.name())));
    match mode {
        Mode::ReadOnly | Mode::ReadOnlyOverride => return not_now("nothing is registered"),
        Mode::ReadWrite if id.is_some() => return not_now("a schema that brings its id is registered in IMPORT"),
        Mode::Import if id.is_none() => return not_now("a schema has to bring its id"),
        _ => {}
    }
    for (what, number) in [("id", id), ("version", version)] {
        if number.is_some_and(|number| !(1..=NUMBER_MAX).contains(&number)) {
            let message = format!("{what} {} is given; it is a number from 1 to {NUMBER_MAX}", number.unwrap_or_default());
            return Err(RegistryError::new(422, message));
        }
    }
    if !importing && !how.force {
        let config = state.config_in_scope(Some(subject));
        let messages = compare(state, &config, &read.parsed, submitted, state.versions(subject).rev().filter(|stored| !stored.deleted));
        if !messages.is_empty() {
            return Err(RegistryError::new(
                40901,
                format!("the schema does not go with an earlier one of subject '{subject}': [{}]", messages.join(", ")),
            ));
        }
    }
    let next = state.versions(subject).next_back().map_or(Some(1), |last| last.version.checked_add(1));
    let no_version = || RegistryError::not_permitted(format!("subject '{subject}' has version {}, and none follows it", i32::MAX));
    let version = match version {
        Some(version) if Some(version) != next && !importing => {
            let next = next.ok_or_else(no_version)?;
            return Err(RegistryError::invalid_schema(format!("version {version} is given, and version {next} comes next")));
        }
        Some(version) => version,
        None => next.filter(|next| *next <= NUMBER_MAX).ok_or_else(no_version)?,
    };
    let guid = guid(&read.text, &read.references, submitted.metadata.as_ref(), submitted.rule_set.as_ref());
    let id = match id.or_else(|| state.id_of(context, guid)) {
        Some(id) => {
            if state.by_id(context, id).is_some_and(|other| other.guid != guid) {
                return Err(RegistryError::not_permitted(format!("id {id} belongs to another schema")));
            }
            id
        }
        None => state
            .last_id(context)
            .checked_add(1)
            .filter(|id| *id <= NUMBER_MAX)
            .ok_or_else(|| RegistryError::store(format!("context {context} has no free schema id left")))?,
    };
    let stored = Stored {
        subject: subject.to_owned(),
        version,
        id,
        guid,
        kind: read.parsed.kind().name().to_owned(),
        references: read.references,
        metadata: submitted.metadata.clone(),
        rule_set: submitted.rule_set.clone(),
        schema: read.text,
        deleted: false,
        timestamp_ms: 0,
    };
    let mut records = Vec::new();
    if context != subject::DEFAULT && !state.knows_context(context) {
        records.push(Record::Context { context: context.to_owned(), gone: false });
    }
    // A deleted version that comes back goes for good, unless something refers to it.
    for old in state.versions(subject).filter(|old| old.deleted && old.id == id && old.version < version) {
        if state.referring(subject, old.version, Filter::WithDeleted).next().is_none() {
            records.push(Record::Schema { subject: subject.to_owned(), version: old.version, value: None });
        }
    }
    records.push(schema_record(&stored));
    Ok(Decision { records, answer: stored })
}

fn schema_record(stored: &Stored) -> Record {
    Record::Schema { subject: stored.subject.clone(), version: stored.version, value: Some(Box::new(stored.value())) }
}

fn compare<'a>(
    state: &State,
    config: &Map<String, Value>,
    schema: &Parsed,
    submitted: &Submitted,
    newest_first: impl Iterator<Item = &'a Stored>,
) -> Vec<String> {
    // Where a group is set, versions with another value of that property do not count.
    let group = config.get("compatibilityGroup").and_then(Value::as_str);
    let value_of = |metadata: Option<&Value>| metadata?.get("properties")?.get(group?).cloned();
    let own = value_of(submitted.metadata.as_ref());
    let earlier = newest_first.filter(|stored| group.is_none() || value_of(stored.metadata.as_ref()) == own).map(|stored| Earlier {
        version: stored.version,
        text: stored.schema.clone(),
        parsed: state.parse(stored),
    });
    level::violations(level_of(config), schema, earlier)
}

/// `POST /compatibility/subjects/{subject}/versions[/{version}]`: with one version, or as registering would.
pub(super) fn check(state: &State, subject: &str, version: Option<i32>, submitted: &Submitted, normalize: bool) -> Result<Vec<String>> {
    let config = state.config_in_scope(Some(subject));
    let read = submitted.read(state, subject, normalizes(state, subject, normalize))?;
    match version {
        None => Ok(compare(state, &config, &read.parsed, submitted, state.versions(subject).rev().filter(|stored| !stored.deleted))),
        Some(version) => match state.version(subject, version, Filter::Live) {
            None if version == -1 => Ok(Vec::new()),
            None => Err(RegistryError::no_version(version)),
            Some(stored) => Ok(compare(state, &config, &read.parsed, submitted, std::iter::once(stored))),
        },
    }
}

fn writable(state: &State, scope: Option<&str>) -> Result<()> {
    if matches!(state.mode_in_scope(scope), Mode::ReadOnly | Mode::ReadOnlyOverride) {
        let what = scope.map_or_else(|| "the registry".to_owned(), |scope| format!("'{scope}'"));
        return Err(RegistryError::not_permitted(format!("{what} is read-only by its mode")));
    }
    Ok(())
}

fn unreferenced(state: &State, subject: &str, version: i32, filter: Filter, but_by: Option<&str>) -> Result<()> {
    let by = state.referring(subject, version, filter).find(|stored| Some(stored.subject.as_str()) != but_by);
    by.map_or(Ok(()), |by| {
        Err(RegistryError::new(
            42206,
            format!(
                "version {} of subject '{}' refers to version {version} of subject '{subject}', which cannot go before it",
                by.version, by.subject
            ),
        ))
    })
}

/// With the last version of a subject goes what was set for it.
fn forget_settings(state: &State, subject: &str, records: &mut Vec<Record>) {
    if state.mode(Some(subject)).is_some() {
        records.push(Record::Mode { subject: Some(subject.to_owned()), mode: None });
    }
    if state.config(Some(subject)).is_some() {
        records.push(Record::Config { subject: Some(subject.to_owned()), value: None });
    }
}

/// `DELETE /subjects/{subject}/versions/{version}`: softly, or for good what is softly deleted.
pub(super) fn delete_version(state: &State, subject: &str, version: i32, permanent: bool) -> Result<Decision<i32>> {
    let filter = if permanent { Filter::WithDeleted } else { Filter::Live };
    let Some(stored) = state.version(subject, version, filter) else {
        return Err(if state.version(subject, version, Filter::WithDeleted).is_some() {
            RegistryError::new(
                40406,
                format!("version {version} of subject '{subject}' is softly deleted already; ?permanent=true deletes it for good"),
            )
        } else if state.has(subject, Filter::WithDeleted) {
            RegistryError::no_version(version)
        } else {
            RegistryError::no_subject(subject)
        });
    };
    writable(state, Some(subject))?;
    let version = stored.version;
    unreferenced(state, subject, version, filter, None)?;
    let mut records = Vec::new();
    if permanent {
        if !stored.deleted {
            return Err(RegistryError::new(
                40407,
                format!("version {version} of subject '{subject}' has to be deleted softly before it is deleted for good"),
            ));
        }
        records.push(Record::Schema { subject: subject.to_owned(), version, value: None });
        if state.versions(subject).count() == 1 {
            forget_settings(state, subject, &mut records);
        }
    } else {
        records.push(schema_record(&Stored { deleted: true, ..stored.clone() }));
    }
    Ok(Decision { records, answer: version })
}

/// `DELETE /subjects/{subject}`.
pub(super) fn delete_subject(state: &State, subject: &str, permanent: bool) -> Result<Decision<Vec<i32>>> {
    if !state.has(subject, Filter::WithDeleted) {
        return Err(RegistryError::no_subject(subject));
    }
    if !permanent && !state.has(subject, Filter::Live) {
        let message = format!("subject '{subject}' is softly deleted already; ?permanent=true deletes it for good");
        return Err(RegistryError::new(40404, message));
    }
    writable(state, Some(subject))?;
    let filter = if permanent { Filter::WithDeleted } else { Filter::Live };
    let mut versions = Vec::new();
    for stored in state.versions(subject).filter(|stored| filter.takes(stored.deleted)) {
        unreferenced(state, subject, stored.version, filter, Some(subject))?;
        if permanent && !stored.deleted {
            let message = format!("subject '{subject}' has to be deleted softly before it is deleted for good");
            return Err(RegistryError::new(40405, message));
        }
        versions.push(stored.version);
    }
    let mut records = Vec::new();
    if permanent {
        // The newest first: one may refer to an older one.
        records.extend(versions.iter().rev().map(|version| Record::Schema { subject: subject.to_owned(), version: *version, value: None }));
        forget_settings(state, subject, &mut records);
    } else {
        records.push(Record::DeleteSubject { subject: subject.to_owned(), version: versions.last().copied().unwrap_or(0) });
    }
    Ok(Decision { records, answer: versions })
}

/// `PUT /config[/{subject}]`: gives what is set then.
pub(super) fn set_config(state: &State, scope: Option<&str>, request: &Map<String, Value>) -> Result<Decision<Map<String, Value>>> {
    let mut config = state.config(scope).cloned().unwrap_or_default();
    for (key, value) in request {
        let key = if key == "compatibility" { LEVEL } else { key.as_str() };
        match (key, value) {
            (_, Value::Null) => drop(config.remove(key)),
            (LEVEL, Value::String(name)) => {
                let level = Level::of(name).ok_or_else(invalid_level)?;
                config.insert(key.to_owned(), level.name().into());
            }
            (LEVEL, _) => return Err(invalid_level()),
            ("normalize", Value::Bool(_)) | ("compatibilityGroup", Value::String(_)) => drop(config.insert(key.to_owned(), value.clone())),
            _ => {
                return Err(RegistryError::new(
                    422,
                    format!(
                        "{key} = {value} cannot be set here; what can be set: compatibility, normalize (true or false), compatibilityGroup (a text)"
                    ),
                ));
            }
        }
    }
    writable(state, scope)?;
    Ok(Decision { records: vec![Record::Config { subject: scope.map(str::to_owned), value: Some(config.clone()) }], answer: config })
}

fn invalid_level() -> RegistryError {
    RegistryError::new(
        42203,
        "a compatibility level is one of NONE, BACKWARD, BACKWARD_TRANSITIVE, FORWARD, FORWARD_TRANSITIVE, FULL, FULL_TRANSITIVE",
    )
}

/// `DELETE /config[/{subject}]`: gives what was set.
pub(super) fn delete_config(state: &State, scope: Option<&str>) -> Result<Decision<Map<String, Value>>> {
    let old = match (state.config(scope), scope) {
        (Some(old), _) => old.clone(),
        (None, None) => return Ok(Decision::nothing(state.config_in_scope(None))),
        (None, Some(subject)) => return Err(RegistryError::no_subject(subject)),
    };
    writable(state, scope)?;
    Ok(Decision { records: vec![Record::Config { subject: scope.map(str::to_owned), value: None }], answer: old })
}

/// `PUT /mode[/{subject}]`.
pub(super) fn set_mode(state: &State, scope: Option<&str>, name: &str, force: bool) -> Result<Decision<Mode>> {
    let mode =
        Mode::of(name).ok_or_else(|| RegistryError::new(42204, "a mode is one of READWRITE, READONLY, READONLY_OVERRIDE, IMPORT"))?;
    if mode == Mode::ReadOnlyOverride && scope.is_some() {
        return Err(RegistryError::new(42204, "READONLY_OVERRIDE holds for all subjects: set it with PUT /mode"));
    }
    let mut records = Vec::new();
    if mode == Mode::Import && !force && state.mode_in_scope(scope) != Mode::Import {
        if state.matching(scope).any(|stored| !stored.deleted) {
            return Err(RegistryError::not_permitted("there are schemas already; ?force=true imports beside them"));
        }
        for stored in state.matching(scope) {
            unreferenced(state, &stored.subject, stored.version, Filter::WithDeleted, None)?;
            records.push(Record::Schema { subject: stored.subject.clone(), version: stored.version, value: None });
        }
        records.push(Record::ClearSubject { subject: scope.map(str::to_owned) });
    }
    records.push(Record::Mode { subject: scope.map(str::to_owned), mode: Some(mode.name().to_owned()) });
    Ok(Decision { records, answer: mode })
}

/// `DELETE /mode[/{subject}]`: gives what was set. `recursive`: with a context go the modes of its subjects.
pub(super) fn delete_mode(state: &State, scope: Option<&str>, recursive: bool) -> Result<Decision<Mode>> {
    let old = match (state.mode(scope), scope) {
        (Some(old), _) => Some(old),
        (None, None) => Some(Mode::ReadWrite),
        (None, Some(_)) => None,
    };
    let (context, name) = scope.map_or((subject::DEFAULT, ""), subject::split);
    let below = if recursive && name.is_empty() { state.modes_below(context) } else { Vec::new() };
    if old.is_none() && below.is_empty() {
        return Err(RegistryError::no_subject(scope.unwrap_or_default()));
    }
    let own = state.mode(scope).map(|_| Record::Mode { subject: scope.map(str::to_owned), mode: None });
    let below = below.into_iter().map(|subject| Record::Mode { subject: Some(subject), mode: None });
    Ok(Decision { records: own.into_iter().chain(below).collect(), answer: old.unwrap_or(Mode::ReadWrite) })
}

/// `DELETE /contexts/{context}`.
pub(super) fn delete_context(state: &State, context: &str) -> Result<Decision<()>> {
    if state.matching(Some(&subject::join(context, ""))).next().is_some() {
        return Err(RegistryError::new(42211, format!("context '{context}' has subjects; delete them for good first")));
    }
    let record = state.knows_context(context).then(|| Record::Context { context: context.to_owned(), gone: true });
    Ok(Decision { records: record.into_iter().collect(), answer: () })
}

#[cfg(test)]
mod tests;
