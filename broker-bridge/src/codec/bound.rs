//! Formats whose keys and values have schemas: those of a request are chosen, those of an answer looked up, before the first value is touched.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::value::RawValue;
use service_kit::kafka::Record;

use super::{Codec, Form};
use crate::{
    auth::{self, Verb},
    error::{BridgeError, Code, Result},
    registry::{By, Chosen, Kind, Registry, Strategy, ValueSchema, Wanted, schema_id},
    topics::Topics,
};

/// What a request of v2 says about its schemas. Formats without schemas take no notice of it.
#[derive(Debug, Default)]
pub(crate) struct Schemas {
    pub(crate) key_schema: Option<String>,
    pub(crate) key_schema_id: Option<i32>,
    pub(crate) value_schema: Option<String>,
    pub(crate) value_schema_id: Option<i32>,
}

/// Writes the keys and values of one topic.
pub(crate) struct Writer {
    pub(crate) codec: &'static Codec,
    key: Option<Chosen>,
    value: Option<Chosen>,
}

impl Writer {
    pub(crate) async fn new(codec: &'static Codec, registry: &Registry, topic: &str, schemas: &Schemas) -> Result<Self> {
        let Form::Schema(kind) = codec.form else { return Ok(Self { codec, key: None, value: None }) };
        let choose = async |part: &str, is_key: bool, text: &Option<String>, id: Option<i32>| {
            let by = match (text, id) {
                (None, None) => return Ok(None),
                (Some(text), None) => By::Text(text),
                (None, Some(id)) => By::Id(id),
                (Some(_), Some(_)) => {
                    return Err(BridgeError::new(
                        Code::BadRequest,
                        format!("Unsupported argument: give either {part}_schema or {part}_schema_id"),
                    ));
                }
            };
            let wanted = Wanted { topic, is_key, kind: Some(kind), subject: None, strategy: Strategy::Topic, by };
            registry.choose(&wanted).await.map(Some)
        };
        Ok(Self {
            codec,
            key: choose("key", true, &schemas.key_schema, schemas.key_schema_id).await?,
            value: choose("value", false, &schemas.value_schema, schemas.value_schema_id).await?,
        })
    }

    pub(crate) fn key_schema_id(&self) -> Option<i32> {
        self.key.as_ref().map(|chosen| chosen.schema.id)
    }

    pub(crate) fn value_schema_id(&self) -> Option<i32> {
        self.value.as_ref().map(|chosen| chosen.schema.id)
    }

    /// Of the record with this index.
    pub(crate) fn key(&self, raw: &RawValue, index: usize) -> Result<Bytes> {
        self.bytes(raw, index, self.key.as_ref(), Code::KeySchemaMissing, "key")
    }

    pub(crate) fn value(&self, raw: &RawValue, index: usize) -> Result<Bytes> {
        self.bytes(raw, index, self.value.as_ref(), Code::ValueSchemaMissing, "value")
    }

    fn bytes(&self, raw: &RawValue, index: usize, chosen: Option<&Chosen>, missing: Code, part: &str) -> Result<Bytes> {
        if let Form::Plain { parse, .. } = self.codec.form {
            return parse(raw).map_err(|message| BridgeError::new(Code::InvalidPayload, format!("records[{index}].{part} {message}")));
        }
        let Some(Chosen { schema, .. }) = chosen else {
            return Err(BridgeError::new(
                missing,
                format!("Request includes {part}s but does not include {part} schema; send {part}_schema or {part}_schema_id"),
            ));
        };
        schema.encode(raw.get()).map_err(|reason| {
            let place = format!("records[{index}].{part}");
            BridgeError::new(
                Code::Conversion,
                format!("Conversion of JSON to Object failed: {place} does not fit schema {}: {reason}", schema.id),
            )
        })
    }
}

/// The writers of a request whose records name their topics. What it says of schemas holds for each topic, under the subjects that are named by it.
pub(crate) struct Writers {
    codec: &'static Codec,
    schemas: Schemas,
    by_topic: HashMap<String, (Arc<str>, Writer)>,
}

impl Writers {
    pub(crate) fn new(codec: &'static Codec, schemas: Schemas) -> Self {
        Self { codec, schemas, by_topic: HashMap::new() }
    }

    pub(crate) async fn of(&mut self, topics: &Topics, registry: &Registry, topic: &str) -> Result<&(Arc<str>, Writer)> {
        match self.by_topic.entry(topic.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                if matches!(self.codec.form, Form::Schema(_)) {
                    // No schema is registered for a topic that is not there, or that the caller may not write to.
                    auth::check(Verb::Write, auth::Kind::Topic, topic)?;
                    topics.check(topic, None).await?;
                }
                let writer = Writer::new(self.codec, registry, topic, &self.schemas).await?;
                Ok(new.insert((topic.into(), writer)))
            }
        }
    }
}

/// Different schemas in one answer; a record with one more begins the next answer.
const SCHEMAS_MAX: usize = 1_000;

/// Shows keys and values in one format.
pub(crate) struct Reader {
    pub(crate) codec: &'static Codec,
    registry: Registry,
    /// The longest that one key or value may be in JSON, of those that can be longer than they lie in Kafka.
    bytes_max: usize,
    /// Looked up: schemas, and why there is none.
    known: HashMap<i32, std::result::Result<Arc<ValueSchema>, String>>,
}

/// Why a key or value cannot be shown.
pub(crate) struct Unreadable {
    pub(crate) code: Code,
    /// As `is not JSON`.
    pub(crate) reason: String,
}

impl Reader {
    pub(crate) fn new(codec: &'static Codec, registry: Registry, bytes_max: usize) -> Self {
        Self { codec, registry, bytes_max, known: HashMap::new() }
    }

    fn ids(record: &Record) -> impl Iterator<Item = i32> + '_ {
        [&record.key, &record.value].into_iter().flatten().filter_map(|bytes| schema_id(bytes))
    }

    /// Ids of schemas that are to be looked up for these records.
    pub(crate) fn wants<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Vec<i32> {
        let mut wanted = Vec::new();
        if matches!(self.codec.form, Form::Schema(_)) {
            for id in records.flat_map(Self::ids) {
                if !self.known.contains_key(&id) && !wanted.contains(&id) {
                    wanted.push(id);
                }
                if wanted.len() == SCHEMAS_MAX {
                    break;
                }
            }
        }
        wanted
    }

    /// An error passes; what is not there is known afterwards too.
    pub(crate) async fn look_up(&mut self, ids: Vec<i32>) -> Result<()> {
        for id in ids {
            let found = self.registry.for_reading(id).await?;
            self.known.insert(id, found);
        }
        Ok(())
    }

    /// Whether everything that the record needs is looked up.
    pub(crate) fn knows(&self, record: &Record) -> bool {
        matches!(self.codec.form, Form::Plain { .. }) || Self::ids(record).all(|id| self.known.contains_key(&id))
    }

    /// Appends the JSON form; on an error `out` is left as it was.
    pub(crate) fn write(&self, bytes: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Unreadable> {
        match self.codec.form {
            Form::Plain { write, .. } => write(bytes, out).map_err(|reason| Unreadable { code: Code::NotAcceptable, reason }),
            Form::Schema(kind) => self.with_schema(kind, bytes, out).map_err(|reason| Unreadable { code: Code::Deserialization, reason }),
        }
    }

    fn with_schema(&self, kind: Kind, bytes: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), String> {
        let id = schema_id(bytes).ok_or("does not begin with a zero and the id of a schema")?;
        let schema = match self.known.get(&id) {
            Some(Ok(schema)) => schema,
            Some(Err(reason)) => return Err(format!("cannot be read: {reason}")),
            None => return Err(format!("was written with schema {id}, which is not looked up")),
        };
        if schema.kind != kind {
            return Err(format!("was written with schema {id}, which is {}", schema.kind.name()));
        }
        schema.decode(bytes, out, self.bytes_max).map_err(|reason| format!("does not fit schema {id}: {reason}"))
    }
}
