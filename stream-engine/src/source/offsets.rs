//! Where the consumer group of a job has its offsets, beside the job's checkpoint: one line, `SET 'offsets.store' = '…'`.
//!
//! | `offsets.store` | where the next offsets to read stand after each batch | who sees them |
//! |---|---|---|
//! | `checkpoint` | nowhere but in the checkpoint (and in the transaction of an exactly-once Kafka sink) | nobody; a first start at `group-offsets` looks into Kafka |
//! | `kafka` | `__consumer_offsets` of the source's cluster, as an ordinary consumer writes them; of tables with `properties.group.id` | Kafka's tools, lag monitors, consumers of the group |
//! | `zookeeper://host:port,host:port/chroot` | `/consumers/GROUP/offsets/TOPIC/PARTITION` | Kafka's consumers before 0.9 and their tools, Burrow, the bridge |
//! | `redis://[user:password@]host:port/database` | hash `millrace:offsets:group:GROUP`, field `TOPIC:PARTITION` | the bridge |
//! | `hbase://[user:password@]host:port/table` | by HBase's REST gateway: row `gGROUP`, cell `o:p:TOPIC:PARTITION`; the table is `millrace_offsets` where none is named | the bridge |
//! | `sled:/folder` | an embedded store, for the jobs of one process | |
//!
//! What each one promises:
//!
//! - With its checkpoint a job goes on from there, whatever a store says: every record counts once, and is written once where the sink does that.
//!   So `offsets.store` of a job that has a checkpoint can be changed at any time; nothing is lost or repeated.
//! - With a store alone, that is with a fresh checkpoint and `scan.startup.mode` = `group-offsets` (DStreams: a `group.id`), a job begins at the
//!   store's offsets, and by `properties.auto.offset.reset` where there are none. That is at least once: the store is written after a batch and never
//!   waited for, so what came after its last write is read again; after a clean stop that is nothing. Windows and other state are in the checkpoint
//!   only and begin empty.
//! - `offsets.store.previous` names the store that a job comes from. Where both stores have an offset, the higher one counts, so the line may stay.
//!
//! A source without a group is under the job's name in every store but Kafka's. Topics of different Kafka clusters that have the same name need
//! different groups there, or different chroots, databases, tables, folders. A store that is away is said once and counted
//! (`millrace_engine_offset_commits_total`), and gets the newest offsets when it is back; only a start that needs its offsets waits for it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Weak},
    time::Duration,
};

use service_kit::kafka::TopicPartition;
use service_kit::offsets::{self, OffsetError, OffsetStore, SledOffsets};
use tokio::sync::Mutex;

use super::Cluster;
use crate::batch::SourceSpec;
use crate::sql::without_passwords;

/// How long a call to a store takes at most.
pub(super) const BOUND: Duration = Duration::from_secs(5);
const TABLE: &str = "millrace_offsets";

/// What `offsets.store` should have been.
pub(crate) const EXPECTED: &str = "`checkpoint`, `kafka`, `zookeeper://host:port,host:port/chroot`, `redis://host:port/database`, \
                                   `hbase://host:port/table` or `sled:/folder`";

/// `offsets.store` and `offsets.store.previous`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetSettings {
    pub store: OffsetPlace,
    /// The store that the job comes from.
    pub previous: Option<OffsetPlace>,
}

/// Where a group's offsets are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OffsetPlace {
    /// Only in the job's checkpoint.
    Checkpoint,
    /// With the group in Kafka, as every consumer's.
    #[default]
    Kafka,
    Store(StoreAddress),
}

/// A store with the contract of [`service_kit::offsets`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum StoreAddress {
    Zookeeper(String),
    Redis(String),
    /// URL of the REST gateway.
    Hbase {
        url: String,
        table: String,
    },
    /// Absolute.
    Sled(PathBuf),
}

impl FromStr for OffsetPlace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "checkpoint" => Ok(Self::Checkpoint),
            "kafka" => Ok(Self::Kafka),
            text => StoreAddress::parse(text).map(Self::Store).ok_or(EXPECTED),
        }
    }
}

impl StoreAddress {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(':')?;
        let servers = rest.strip_prefix("//");
        let address = match (scheme, servers) {
            ("sled", servers) => {
                let folder = servers.unwrap_or(rest);
                Self::Sled(std::path::absolute(folder).ok().filter(|_| !folder.is_empty())?)
            }
            ("zookeeper", Some(servers)) => Self::Zookeeper(servers.to_owned()),
            ("redis" | "rediss", Some(_)) => Self::Redis(text.to_owned()),
            ("hbase", Some(gateway)) => {
                let (gateway, table) = gateway.split_once('/').unwrap_or((gateway, ""));
                Self::Hbase { url: format!("http://{gateway}"), table: if table.is_empty() { TABLE } else { table }.to_owned() }
            }
            _ => return None,
        };
        // What the store itself says to its address; it connects later.
        address.outside().is_none_or(|made| made.is_ok()).then_some(address)
    }

    /// A store outside of the process, not yet connected.
    fn outside(&self) -> Option<Result<Arc<dyn OffsetStore>, OffsetError>> {
        fn shared(store: impl OffsetStore) -> Arc<dyn OffsetStore> {
            Arc::new(store)
        }
        match self {
            Self::Zookeeper(servers) => Some(offsets::zookeeper(servers, BOUND).map(shared)),
            Self::Redis(url) => Some(offsets::redis(url, BOUND).map(shared)),
            Self::Hbase { url, table } => Some(offsets::hbase(url, table, BOUND).map(shared)),
            Self::Sled(_) => None,
        }
    }

    pub(super) async fn open(&self) -> Result<Arc<dyn OffsetStore>, OffsetError> {
        let folder = match (self.outside(), self) {
            (Some(made), _) => return made,
            (None, Self::Sled(folder)) => folder.clone(),
            (None, _) => return Err(OffsetError::Invalid(format!("{self:?} cannot be opened"))),
        };
        let path = folder.display().to_string();
        let opened = tokio::task::spawn_blocking(move || SledOffsets::open(&folder)).await;
        let failed = |error| OffsetError::Storage { path, message: format!("its thread failed: {error}") };
        Ok(Arc::new(opened.map_err(failed)??))
    }
}

/// Without passwords.
impl fmt::Debug for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zookeeper(servers) => write!(f, "zookeeper://{servers}"),
            Self::Redis(url) => f.write_str(&without_passwords(url)),
            Self::Hbase { url, table } => write!(f, "hbase: {}/{table}", without_passwords(url)),
            Self::Sled(folder) => write!(f, "sled:{}", folder.display()),
        }
    }
}

/// The stores that are in use, each once for all jobs of the process: an embedded one lets nobody else in.
#[derive(Default)]
pub struct OpenStores(Mutex<HashMap<StoreAddress, Weak<dyn OffsetStore>>>);

impl OpenStores {
    pub async fn get(&self, address: &StoreAddress) -> Result<Arc<dyn OffsetStore>, OffsetError> {
        let mut open = self.0.lock().await;
        if let Some(store) = open.get(address).and_then(Weak::upgrade) {
            return Ok(store);
        }
        let store = address.open().await?;
        open.insert(address.clone(), Arc::downgrade(&store));
        Ok(store)
    }
}

/// Takes note of what the source's topics are: offsets of an earlier topic of the same name are removed.
pub(super) async fn know_topics(store: &dyn OffsetStore, cluster: &dyn Cluster, spec: &SourceSpec) -> anyhow::Result<()> {
    for topic in &spec.topics {
        if let Some(id) = cluster.topic_id(spec, topic).await? {
            let lost = store.know_topic(topic, id).await?;
            if !lost.is_empty() {
                tracing::warn!(
                    topic,
                    groups = lost.join(", "),
                    "the topic was created anew: offsets of the old one are removed from the store"
                );
            }
        }
    }
    Ok(())
}

/// The offsets of a group; partitions without one are absent.
pub(super) async fn stored(
    place: &OffsetPlace,
    cluster: &dyn Cluster,
    spec: &SourceSpec,
    group: &str,
    partitions: &[TopicPartition],
) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
    let OffsetPlace::Store(address) = place else {
        return Ok(cluster.committed(spec, group, partitions).await?);
    };
    let store = cluster.offsets(address).await?;
    know_topics(&*store, cluster, spec).await?;
    let held = store.get(group, Some(partitions)).await?;
    Ok(held.offsets.into_iter().map(|(partition, stored)| (partition, stored.offset)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_one_line() {
        let place = |text: &str| text.parse::<OffsetPlace>().map(|place| format!("{place:?}"));
        for (text, shown) in [
            ("checkpoint", "Checkpoint"),
            ("kafka", "Kafka"),
            ("zookeeper://a:2181,b:2181/kafka", "Store(zookeeper://a:2181,b:2181/kafka)"),
            ("redis://me:secret@h:6379/2", "Store(redis://me:***@h:6379/2)"),
            ("hbase://h:8080", "Store(hbase: http://h:8080/millrace_offsets)"),
            ("hbase://me:secret@h:8080/t", "Store(hbase: http://me:***@h:8080/t)"),
            ("sled:/var/lib/offsets", "Store(sled:/var/lib/offsets)"),
            ("sled:///var/lib/offsets", "Store(sled:/var/lib/offsets)"),
        ] {
            assert_eq!(place(text).as_deref(), Ok(shown), "{text}");
        }
        for wrong in ["", "kafak", "redis", "redis://", "zookeeper:a:2181", "zookeeper://a:port", "hbase://", "sled:", "etcd://h:1"] {
            assert_eq!(place(wrong), Err(EXPECTED), "{wrong}");
        }
    }
}
