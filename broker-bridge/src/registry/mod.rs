//! The schema registry: Confluent's API on the bridge's own listener, over the same topic in the same form.
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
//! | `error` | codes and words of refusals |

mod avro;
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
#[cfg(test)]
mod vectors;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use service_kit::kafka::KafkaConfig;
use tokio_util::task::TaskTracker;

pub(crate) use self::http::routes;
use self::topic::Topic;
use crate::{config, connect::Connection, gate::Gate};

/// What the registry's answers are.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Topic>);

impl Registry {
    /// Connects when it is first used.
    pub(crate) fn new(config: config::Registry, kafka: KafkaConfig, connection: Connection, gate: Arc<Gate>, tasks: TaskTracker) -> Self {
        Self(Arc::new(Topic {
            config,
            kafka,
            connection,
            gate,
            tasks,
            state: RwLock::default(),
            reading: Default::default(),
            fresh_at: Mutex::new(None),
            writing: Default::default(),
        }))
    }
}
