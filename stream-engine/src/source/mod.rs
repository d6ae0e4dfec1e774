//! Sources: what a job reads. Every source is a set of logs with offsets: the partitions of Kafka topics, or a log that this
//! process keeps itself ([`LocalLog`]). A partition is a unit of work.
//!
//! | file | the log |
//! |---|---|
//! | `kafka` | topics, read directly |
//! | `receiver` | what a receiver stored: a socket's lines, an HTTP port's, a consumer group's records, a program's own |
//! | `files` | which files of a directory were new, in the order in which they were found |
//! | `rate` | so many rows a second |
//! | `offsets`, `mirror` | where the consumer group of Kafka sources has its offsets, beside the checkpoint |
//! | `log` | what receivers and file streams keep their records in: memory, or a write-ahead log |

pub mod files;
pub mod kafka;
mod local;
mod log;
mod mirror;
pub(crate) mod offsets;
pub mod rate;
pub mod receiver;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use service_kit::kafka::{Admin, KafkaConfig, KafkaError, RangeReader, TopicPartition};
use service_kit::offsets::{OffsetError, OffsetStore};
use tokio::sync::Mutex;

pub use kafka::{DataLoss, Share, Source};
pub use local::{LocalLog, Place, Released, Resume};
pub use mirror::Mirror;
pub use offsets::{OffsetPlace, OffsetSettings, OpenStores, StoreAddress};

use crate::batch::{SourceKind, SourceSpec};

/// What sources need of a Kafka cluster. Tests bring partitions in memory.
#[async_trait]
pub trait Cluster: Send + Sync + 'static {
    async fn reader(&self, spec: &SourceSpec) -> Result<Arc<dyn RangeReader>, KafkaError>;
    /// The group's offsets; partitions without one are absent.
    async fn committed(
        &self,
        spec: &SourceSpec,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, KafkaError>;
    async fn commit(&self, spec: &SourceSpec, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError>;
    /// What tells a topic from an earlier one of the same name; `None` where the brokers do not tell it.
    async fn topic_id(&self, spec: &SourceSpec, topic: &str) -> Result<Option<[u8; 16]>, KafkaError>;
    /// A store of groups' offsets. A cluster that is asked for an embedded one more than once keeps it.
    async fn offsets(&self, address: &StoreAddress) -> Result<Arc<dyn OffsetStore>, OffsetError> {
        address.open().await
    }
}

/// Nobody asks a cluster for a source that is none of its.
fn config(spec: &SourceSpec) -> Result<&KafkaConfig, KafkaError> {
    match &spec.kind {
        SourceKind::Kafka(config) => Ok(config),
        SourceKind::Local(_) => Err(KafkaError::Unsupported(format!("source `{}` is not in Kafka", spec.name))),
    }
}

/// The real thing.
#[derive(Default)]
pub struct KafkaCluster {
    /// One client per cluster for what concerns groups and topics, by `bootstrap.servers`.
    admins: Mutex<BTreeMap<String, Arc<dyn Admin>>>,
    stores: OpenStores,
}

impl KafkaCluster {
    async fn admin(&self, spec: &SourceSpec) -> Result<Arc<dyn Admin>, KafkaError> {
        let config = config(spec)?;
        let servers = config.get("bootstrap.servers").unwrap_or_default().to_string();
        let mut admins = self.admins.lock().await;
        if let Some(admin) = admins.get(&servers) {
            return Ok(admin.clone());
        }
        let admin = service_kit::kafka::admin(config).await?;
        admins.insert(servers, admin.clone());
        Ok(admin)
    }
}

#[async_trait]
impl Cluster for KafkaCluster {
    async fn reader(&self, spec: &SourceSpec) -> Result<Arc<dyn RangeReader>, KafkaError> {
        service_kit::kafka::range_reader(config(spec)?, spec.isolation).await
    }

    async fn committed(
        &self,
        spec: &SourceSpec,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        let committed = self.admin(spec).await?.committed(group, Some(partitions)).await?;
        Ok(committed.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect())
    }

    async fn commit(&self, spec: &SourceSpec, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let offsets: Vec<_> = offsets.iter().map(|(partition, offset)| (partition.clone(), *offset, String::new())).collect();
        self.admin(spec).await?.commit(group, &offsets).await
    }

    async fn topic_id(&self, spec: &SourceSpec, topic: &str) -> Result<Option<[u8; 16]>, KafkaError> {
        self.admin(spec).await?.topic_id(topic).await
    }

    async fn offsets(&self, address: &StoreAddress) -> Result<Arc<dyn OffsetStore>, OffsetError> {
        self.stores.get(address).await
    }
}
