//! Which schema keys or values are written or read with: looked up as Confluent's REST proxy does, with its codes and words.

use std::sync::Arc;

use super::{
    Registry,
    decide::{self, Registering, Submitted},
    error::RegistryError,
    schema::{Kind, Parsed},
    state::{Filter, State, Stored},
    subject,
    values::{ValueSchema, name_of},
};
use crate::{
    auth::{self, Kind as Thing, Verb},
    error::{BridgeError, Code, Result},
};

/// How a subject is named where the caller does not name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// `<topic>-key`, `<topic>-value`.
    #[default]
    Topic,
    /// As the schema's record.
    Record,
    /// `<topic>-<record>`.
    TopicRecord,
}

impl Strategy {
    pub(crate) const ALL: [(Strategy, &'static str); 3] =
        [(Strategy::Topic, "TOPIC_NAME"), (Strategy::Record, "RECORD_NAME"), (Strategy::TopicRecord, "TOPIC_RECORD_NAME")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(strategy, _)| *strategy == self).map_or("", |(_, name)| name)
    }
}

/// What a request says about a schema.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) topic: &'a str,
    pub(crate) is_key: bool,
    /// What the schema must be written in, where that is said.
    pub(crate) kind: Option<Kind>,
    pub(crate) subject: Option<&'a str>,
    pub(crate) strategy: Strategy,
    pub(crate) by: By<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum By<'a> {
    Id(i32),
    Version(i32),
    /// Registered where it is not yet.
    Text(&'a str),
    Latest,
}

/// A schema to write with, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    pub(crate) schema: Arc<ValueSchema>,
    pub(crate) subject: String,
    pub(crate) version: i32,
}

impl Registry {
    /// The schema that a request means.
    pub(crate) async fn choose(&self, wanted: &Wanted<'_>) -> Result<Chosen> {
        let chosen = match wanted.by {
            By::Text(text) => self.by_text(wanted, text).await?,
            By::Id(id) => self.by_id(wanted, id).await?,
            By::Version(version) => {
                let subject = wanted.subject_without_schema()?;
                let found = self.newest(wanted, &subject, version).await?;
                found.ok_or_else(|| {
                    BridgeError::new(
                        Code::BadRequest,
                        format!("Bad Request: Schema does not exist for subject: {subject}, version: {version}"),
                    )
                })?
            }
            By::Latest => {
                let subject = wanted.subject_without_schema()?;
                let found = self.newest(wanted, &subject, -1).await?;
                let what = || format!("Error when fetching latest schema version. subject = {subject}");
                found.ok_or_else(|| refused(&what(), &RegistryError::no_subject(&subject)))?
            }
        };
        match wanted.kind {
            Some(kind) if kind != chosen.schema.kind => Err(unserialisable(&format!(
                "schema {} is {}, and {} is asked for",
                chosen.schema.id,
                chosen.schema.kind.name(),
                kind.name()
            ))),
            _ => Ok(chosen),
        }
    }

    /// The schema that a value was written with, or why values cannot be read with it. An error passes.
    pub(crate) async fn for_reading(&self, id: i32) -> Result<Result<Arc<ValueSchema>, String>> {
        if let Some(schema) = self.0.kept.get(subject::DEFAULT, id) {
            return Ok(Ok(schema));
        }
        let look = |state: &State| Ok(state.by_id(subject::DEFAULT, id).map(|stored| self.made(state, stored)));
        let mut found = self.0.read(look).await.map_err(passing)?;
        if found.is_none() {
            // It may have been registered a moment ago, elsewhere.
            found = self.0.read_now(look).await.map_err(passing)?;
        }
        Ok(found.unwrap_or_else(|| Err(format!("schema {id} is not in the registry"))))
    }

    async fn by_id(&self, wanted: &Wanted<'_>, id: i32) -> Result<Chosen> {
        let context = wanted.subject.map_or(subject::DEFAULT, |subject| subject::split(subject).0);
        let what = || format!("Error when fetching schema by id. schemaId = {id}");
        let look = |state: &State| {
            let Some(stored) = state.by_id(context, id) else { return Ok(None) };
            let schema = match self.made(state, stored) {
                Ok(schema) => schema,
                Err(reason) => return Ok(Some(Err(unserialisable(&format!("{}: {reason}", what()))))),
            };
            let subject = match wanted.subject(schema.name.as_deref()) {
                Ok(subject) => subject,
                Err(error) => return Ok(Some(Err(error))),
            };
            let version = state.versions(&subject).rev().find(|stored| !stored.deleted && stored.id == id).map(|stored| stored.version);
            let known = state.has(&subject, Filter::Live);
            Ok(Some(Ok((schema, subject, version, known))))
        };
        let mut found = self.0.read(look).await.map_err(passing)?;
        if !matches!(found, Some(Ok((_, _, Some(_), _)) | Err(_))) {
            // The same: only what is not there now is refused.
            found = self.0.read_now(look).await.map_err(passing)?;
        }
        let found = found.ok_or_else(|| refused(&what(), &RegistryError::no_schema(Some(&id.to_string()))))?;
        let (schema, subject, version, known) = found?;
        auth::check(Verb::Read, Thing::Subject, &subject::normal(&subject))?;
        let version = version.ok_or_else(|| {
            let what = format!("Error when fetching schema version. subject = {subject}, schema id = {id}");
            let why = if known { RegistryError::no_schema(None) } else { RegistryError::no_subject(&subject) };
            refused(&what, &why)
        })?;
        Ok(Chosen { schema, subject, version })
    }

    /// A version of a subject (-1: the newest), if it is there.
    async fn newest(&self, wanted: &Wanted<'_>, subject: &str, version: i32) -> Result<Option<Chosen>> {
        auth::check(Verb::Read, Thing::Subject, &subject::normal(subject))?;
        let look = |state: &State| {
            let Some(stored) = state.version(subject, version, Filter::Live) else { return Ok(None) };
            let made = self.made(state, stored).map(|schema| Chosen { schema, subject: subject.to_owned(), version: stored.version });
            Ok(Some(made))
        };
        let mut found = self.0.read(look).await.map_err(passing)?;
        if found.is_none() {
            found = self.0.read_now(look).await.map_err(passing)?;
        }
        let unreadable =
            |reason: String| unserialisable(&format!("the schema of subject {subject} for {} cannot be read: {reason}", wanted.part()));
        found.transpose().map_err(unreadable)
    }

    async fn by_text(&self, wanted: &Wanted<'_>, text: &str) -> Result<Chosen> {
        let kind = wanted.kind.ok_or_else(|| BridgeError::new(Code::BadRequest, "Bad Request: 'schema' needs a 'type'"))?;
        let submitted = Submitted { schema: Some(text.to_owned()), schema_type: Some(kind.name().to_owned()), ..Submitted::default() };
        // Only names by the record need the schema read before.
        let name = match (wanted.subject, wanted.strategy) {
            (Some(_), _) | (None, Strategy::Topic) => None,
            _ => name_of(&Parsed::parse(kind, text, &[], true).map_err(|reason| unreadable(kind, &reason))?),
        };
        let subject = wanted.subject(name.as_deref())?;
        let normal = subject::normal(&subject);
        auth::check(Verb::Read, Thing::Subject, &normal)?;
        let (registry, of, sought) = (self.clone(), subject.clone(), submitted.clone());
        let look = move |state: &State| match decide::look_up(state, &of, &sought, false, Filter::Live) {
            Ok(stored) => Ok(Ok(Some(registry.written(state, stored)))),
            Err(error) if error.code == INVALID_SCHEMA => Ok(Err(unreadable(kind, &error.message))),
            Err(error) if error.code / 100 == NOT_FOUND => Ok(Ok(None)),
            Err(error) => Err(error),
        };
        if let Some(found) = self.0.read_aside(look).await.map_err(passing)?? {
            return found;
        }
        auth::check(Verb::Write, Thing::Subject, &normal)?;
        let registered = {
            let (subject, submitted) = (subject.clone(), submitted.clone());
            self.0.write(move |state| decide::register(state, &subject, &submitted, Registering::default())).await
        };
        let stored = registered.map_err(|error| {
            let what = format!("Error when registering schema. format = {}, subject = {subject}", kind.name());
            if error.code == INVALID_SCHEMA { unreadable(kind, &error.message) } else { refused(&what, &error) }
        })?;
        self.0.read(|state| Ok(self.written(state, &stored))).await.map_err(passing)?
    }

    fn written(&self, state: &State, stored: &Stored) -> Result<Chosen> {
        let schema =
            self.made(state, stored).map_err(|reason| unserialisable(&format!("schema {} cannot be read: {reason}", stored.id)))?;
        Ok(Chosen { schema, subject: stored.subject.clone(), version: stored.version })
    }

    /// The schema made for values, or why that cannot be.
    fn made(&self, state: &State, stored: &Stored) -> Result<Arc<ValueSchema>, String> {
        let context = subject::split(&stored.subject).0;
        if let Some(kept) = self.0.kept.get(context, stored.id).filter(|kept| kept.guid == stored.guid) {
            return Ok(kept);
        }
        metrics::counter!("millrace_bridge_value_schemas_read_total").increment(1);
        let schema = Arc::new(ValueSchema::read(state, stored)?);
        self.0.kept.put(context, &schema);
        Ok(schema)
    }
}

const INVALID_SCHEMA: u32 = 42201;
/// What the codes begin with.
const NOT_FOUND: u32 = 404;

impl Wanted<'_> {
    fn part(&self) -> &'static str {
        if self.is_key { "keys" } else { "values" }
    }

    fn by_topic(&self) -> String {
        format!("{}-{}", self.topic, if self.is_key { "key" } else { "value" })
    }

    /// The subject, of a schema with this name.
    fn subject(&self, name: Option<&str>) -> Result<String> {
        let named = || {
            name.ok_or_else(|| {
                unserialisable(&format!(
                    "strategy {} names the subject by the schema of the {}, which has no name: it must be a record",
                    self.strategy.name(),
                    self.part()
                ))
            })
        };
        Ok(match (self.subject, self.strategy) {
            (Some(subject), _) => subject::normal(subject),
            (None, Strategy::Topic) => self.by_topic(),
            (None, Strategy::Record) => named()?.to_owned(),
            (None, Strategy::TopicRecord) => format!("{}-{}", self.topic, named()?),
        })
    }

    fn subject_without_schema(&self) -> Result<String> {
        match (self.subject, self.strategy) {
            (Some(subject), _) => Ok(subject::normal(subject)),
            (None, Strategy::Topic) => Ok(self.by_topic()),
            (None, strategy) => Err(BridgeError::new(
                Code::BadRequest,
                format!("Bad Request: Cannot use schema_subject_strategy={} without schema_id or schema.", strategy.name()),
            )),
        }
    }
}

/// The registry is away, or too slow: the same may go well later.
fn passing(error: RegistryError) -> BridgeError {
    if error.status().is_server_error() {
        return BridgeError::new(Code::KafkaRetriable, format!("the schema registry does not answer: {}", error.message));
    }
    unserialisable(&error.message)
}

/// What the registry refuses, in the words of Confluent's client.
fn refused(what: &str, why: &RegistryError) -> BridgeError {
    if why.status().is_server_error() {
        return passing(why.clone());
    }
    unserialisable(&format!("{what}\n{}; error code: {}", why.message, why.code))
}

fn unserialisable(message: &str) -> BridgeError {
    BridgeError::new(Code::Serialization, format!("Error serializing message. {message}"))
}

fn unreadable(kind: Kind, reason: &str) -> BridgeError {
    BridgeError::new(Code::InvalidSchema, format!("Invalid schema: Error when parsing raw schema. format = {}: {reason}", kind.name()))
}
