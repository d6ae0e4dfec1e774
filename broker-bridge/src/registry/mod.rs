//! The schema registry: Confluent's API, on a listener of its own and beside the bridge's other paths, over the same topic in the same form.
//!
//! | module | question it answers |
//! |---|---|
//! | `http` | paths, queries and answers; translates, then calls the parts below |
//! | `topic` | how the topic is read and written, and how two replicas write without losing anything |
//! | `record` | the records of the topic |
//! | `state` | what the topic says, in memory |
//! | `decide` | what a request that changes something writes and answers |
//! | `level` | which versions a new one is compared with |
//! | `schema` | a schema of any type; `avro`, `json_schema`, `protobuf` know one each, `text` is JSON in its order |
//! | `subject` | contexts in the names of subjects |
//! | `choose` | which schema records are written or read with |
//! | `values` | their keys and values as bytes, and which schemas are kept for them |
//! | `view` | what people are shown of subjects and versions |
//! | `error` | codes and words of refusals |

mod avro;
mod choose;
mod decide;
mod error;
mod http;
mod json_schema;
mod level;
mod protobuf;
mod record;
mod schema;
mod state;
pub(crate) mod subject;
mod text;
mod topic;
mod values;
#[cfg(test)]
mod vectors;
mod view;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use service_kit::kafka::KafkaConfig;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub(crate) use self::{
    choose::{By, Chosen, Strategy, Wanted},
    http::routes,
    schema::Kind,
    values::{ValueSchema, schema_id},
    view::{SubjectView, Version, VersionView},
};
use self::{topic::Topic, values::Kept};
use crate::{config, connect::Connection, gate::Gate};

/// Schemas that are read and compared at once; more wait, at most for `registry.timeout`.
const ASIDE_MAX: usize = 4;
/// What the registry's answers are.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Topic>);

impl Registry {
    /// Connects when it is first used.
    pub(crate) fn new(config: config::Registry, kafka: KafkaConfig, connection: Connection, gate: Arc<Gate>, tasks: TaskTracker) -> Self {
        Self(Arc::new(Topic {
            kept: Kept::new(config.value_schemas_bytes_max),
            config,
            kafka,
            connection,
            gate,
            tasks,
            state: RwLock::default(),
            aside: Arc::new(Semaphore::new(ASIDE_MAX)),
            reading: Default::default(),
            fresh_at: Mutex::new(None),
            writing: Default::default(),
        }))
    }
}

#[cfg(test)]
impl Registry {
    /// Knows these alone, as (subject, version, id, type, schema), and does not ask Kafka.
    pub(crate) fn hold(&self, schemas: &[(&str, i32, i32, &str, &str)]) {
        let mut guard = self.0.state.write();
        let state = Arc::make_mut(&mut guard);
        for (subject, version, id, kind, schema) in schemas {
            values::put(state, subject, *version, *id, kind, schema, &[]);
        }
        drop(guard);
        self.is_known();
    }

    /// What else is known, as in a record of the topic.
    pub(crate) fn know(&self, records: &[(&str, &str)]) {
        for (key, value) in records {
            let record = record::Record::parse(key.as_bytes(), Some(value.as_bytes())).unwrap();
            Arc::make_mut(&mut self.0.state.write()).apply(record, 1_700_000_000_000).unwrap();
        }
        self.is_known();
    }

    fn is_known(&self) {
        // Long ago enough is never.
        *self.0.fresh_at.lock() = Some(std::time::Instant::now() + std::time::Duration::from_secs(86_400));
    }
}
