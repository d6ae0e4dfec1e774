//! Keys and values that have a schema: 0, the schema's id in four bytes, then what the type makes of the value.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{
    avro::Coder,
    json_schema::Validator,
    protobuf::Messages,
    schema::{Kind, Parsed, Referenced},
    state::{State, Stored},
};
use crate::codec::compact;

/// A schema as values are written and read with it.
#[derive(Debug)]
pub(crate) struct ValueSchema {
    pub(crate) kind: Kind,
    pub(crate) id: i32,
    pub(super) guid: Uuid,
    /// That subjects may be named by.
    pub(super) name: Option<String>,
    data: Data,
    /// What it may need in memory.
    weight: u64,
}

#[derive(Debug)]
enum Data {
    Avro(Coder),
    /// Made with the first value that is written: values are read without it.
    Json {
        text: String,
        references: Vec<Referenced>,
        validator: OnceLock<Result<Validator, String>>,
    },
    Protobuf(Messages),
}

/// The first byte of a value that has a schema.
const MAGIC: u8 = 0;
const HEAD_BYTES: usize = 5;

/// The id of the schema that a value was written with; `None` where it was written without.
pub(crate) fn schema_id(bytes: &[u8]) -> Option<i32> {
    match bytes {
        [MAGIC, a, b, c, d, ..] => Some(i32::from_be_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

impl ValueSchema {
    pub(super) fn read(state: &State, stored: &Stored) -> Result<Self, String> {
        let parsed = state.parse(stored)?;
        let references = state.resolve(&stored.subject, &stored.references).map_err(|error| error.message)?;
        let texts = stored.schema.len() + references.iter().map(|one| one.text.len()).sum::<usize>();
        let kind = parsed.kind();
        let name = name_of(&parsed);
        let data = match parsed {
            Parsed::Avro(schema) => Data::Avro(Coder::new(&schema)),
            Parsed::Json(_) => Data::Json { text: stored.schema.clone(), references, validator: OnceLock::new() },
            Parsed::Protobuf(schema) => Data::Protobuf(Messages::new(&schema)),
        };
        Ok(Self { kind, id: stored.id, guid: stored.guid, name, data, weight: WEIGHT + WEIGHT_PER_BYTE * texts as u64 })
    }

    /// From JSON, in the form of the type; the error says where in the value.
    pub(crate) fn encode(&self, json: &str) -> Result<Bytes, String> {
        let mut out = Vec::with_capacity(HEAD_BYTES + json.len());
        out.push(MAGIC);
        out.extend_from_slice(&self.id.to_be_bytes());
        match &self.data {
            Data::Avro(coder) => coder.encode(json, &mut out)?,
            Data::Protobuf(messages) => messages.encode(json, &mut out)?,
            Data::Json { text, references, validator } => {
                let validator = validator.get_or_init(|| Validator::new(text, references)).as_ref();
                validator.map_err(|reason| format!("the schema cannot be applied: {reason}"))?.check(json)?;
                out.extend_from_slice(&compact(json));
            }
        }
        Ok(out.into())
    }

    /// Appends the JSON form, of at most `bytes_max`; on an error `out` is left as it was.
    pub(crate) fn decode(&self, bytes: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), String> {
        let before = out.len();
        let value = bytes.get(HEAD_BYTES..).unwrap_or_default();
        let done = match &self.data {
            Data::Avro(coder) => coder.decode(value, out, bytes_max),
            Data::Protobuf(messages) => messages.decode(value, out, bytes_max),
            Data::Json { .. } => match serde_json::from_slice::<&serde_json::value::RawValue>(value) {
                Ok(raw) => {
                    out.extend_from_slice(&compact(raw.get()));
                    Ok(())
                }
                Err(error) => Err(format!("it is not JSON ({error})")),
            },
        };
        if done.is_err() {
            out.truncate(before);
        }
        done
    }
}

/// What Confluent's strategies name a subject by.
pub(super) fn name_of(schema: &Parsed) -> Option<String> {
    match schema {
        Parsed::Avro(schema) => schema.name().map(str::to_owned),
        Parsed::Json(schema) => schema.name().map(str::to_owned),
        Parsed::Protobuf(schema) => schema.name(),
    }
}

/// What a schema that is made for values needs, as a guess: so much, and so much more for each byte of its text.
const WEIGHT: u64 = 4 * 1024;
const WEIGHT_PER_BYTE: u64 = 16;

/// Schemas that were used last, bounded by their weight.
#[derive(Default)]
pub(super) struct Kept {
    weight_max: u64,
    inner: Mutex<Inner>,
}

/// By context and id.
type Key = (String, i32);

#[derive(Default)]
struct Inner {
    schemas: HashMap<Key, (Arc<ValueSchema>, u64)>,
    /// By when each was used.
    used: BTreeMap<u64, Key>,
    clock: u64,
    weight: u64,
}

impl Kept {
    pub(super) fn new(weight_max: u64) -> Self {
        Self { weight_max, inner: Mutex::default() }
    }

    pub(super) fn get(&self, context: &str, id: i32) -> Option<Arc<ValueSchema>> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let key = (context.to_owned(), id);
        let (schema, used) = inner.schemas.get_mut(&key)?;
        inner.clock += 1;
        inner.used.remove(used);
        *used = inner.clock;
        inner.used.insert(inner.clock, key);
        Some(Arc::clone(schema))
    }

    pub(super) fn put(&self, context: &str, schema: &Arc<ValueSchema>) {
        if schema.weight > self.weight_max {
            return;
        }
        let mut inner = self.inner.lock();
        let key = (context.to_owned(), schema.id);
        inner.clock += 1;
        let now = inner.clock;
        if let Some((old, used)) = inner.schemas.insert(key.clone(), (Arc::clone(schema), now)) {
            inner.used.remove(&used);
            inner.weight -= old.weight;
        }
        inner.used.insert(now, key);
        inner.weight += schema.weight;
        while inner.weight > self.weight_max {
            let Some((_, oldest)) = inner.used.pop_first() else { break };
            if let Some((gone, _)) = inner.schemas.remove(&oldest) {
                inner.weight -= gone.weight;
            }
        }
        metrics::gauge!("millrace_bridge_value_schemas_bytes").set(inner.weight as f64);
    }

    /// The registry's topic was made anew: its ids say something else.
    pub(super) fn clear(&self) {
        *self.inner.lock() = Inner::default();
        metrics::gauge!("millrace_bridge_value_schemas_bytes").set(0.0);
    }
}

#[cfg(test)]
pub(super) use tests::put;

#[cfg(test)]
mod tests;
