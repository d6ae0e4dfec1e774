//! Kafka access: the only code that knows a client crate.
//!
//! Six roles, each a trait: [`RangeReader`] (partitions read directly, without a group), [`Producer`],
//! [`TransactionalWriter`], [`Member`] (of a consumer group) and [`Admin`]. Settings are given once, in the Java
//! client's property names ([`KafkaConfig`]), and translated for the client that fills the role:
//!
//! | role | client | why |
//! |---|---|---|
//! | range reader, `read_uncommitted` | rskafka, a partition at a time handed over to librdkafka | the fastest path; it stops at control batches |
//! | range reader, `read_committed` | librdkafka | filters aborted records |
//! | producer, transactional writer, member, admin | librdkafka | idempotence, transactions, groups |
//!
//! A [`MemberOnHold`] shares out work by partitions and reads none; a [`Tail`] follows one partition.
//! [`Manage`] asks and changes what librdkafka's binding has no call for: access control lists, single settings, reassignments.
//!
//! A broker that goes away is logged once, and once more when it is back ([`outage`]); never per record.
//! Errors are one type, [`KafkaError`], that says what the caller may do.

mod access;
mod admin;
mod certificate;
mod config;
mod context;
mod dial;
mod direct;
mod error;
mod group_log;
mod jaas;
mod lookup;
mod manage;
mod member;
mod outage;
mod own_topic;
mod produce_batch;
mod producer;
mod properties;
mod range;
mod refusal;
mod rescue;
mod scram;
mod tail;
mod tls;
mod topic_config;
mod transaction;
mod wire;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::watch;

pub use admin::admin;
pub use config::{KafkaConfig, properties as deserialize_properties, servers as deserialize_servers};
pub use direct::range_reader;
pub use error::KafkaError;
pub use group_log::{GROUP_LOG, GroupCommit, GroupRecord, group_record};
pub use lookup::{StableOffsets, stable_offsets};
pub use manage::{
    Acl, AclFilter, AclOperation, AclPattern, AclPermission, AclResource, ConfigChange, ConfigDetail, ConfigOf, Manage, Reassignment,
    Synonym,
};
pub use member::{Joining, bounded_member, group_reader, member, member_on_hold};
pub use own_topic::{OwnTopic, own_topic};
pub use producer::{PIECE_RECORDS, producer};
pub use properties::UNKNOWN;
pub use tail::{Tail, TailEvent};
pub use tls::check_tls;
pub use transaction::transactional_writer;

/// One partition of one topic. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    pub topic: Arc<str>,
    pub partition: i32,
}

impl TopicPartition {
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A record as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    /// Milliseconds since 1970 in UTC; -1 where the record has none.
    pub timestamp_ms: i64,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the first record kept.
    pub earliest: i64,
    /// One past the last offset: the high watermark, or the last stable offset for `read_committed`.
    pub latest: i64,
}

/// Which records of transactions a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// All, also those of open and aborted transactions.
    ReadUncommitted,
    /// Those of committed transactions, up to the first open one.
    ReadCommitted,
}

/// Reads ranges of partitions directly, without a group.
#[async_trait]
pub trait RangeReader: Send + Sync {
    /// Partition ids in ascending order. An unknown topic is [`KafkaError::UnknownTopic`].
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError>;

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError>;

    /// Offset of the first record at or after the time; the end of the partition where there is none.
    async fn offsets_at(&self, partitions: &[TopicPartition], timestamp_ms: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError>;

    /// All records with `from <= offset < until`, in order, in chunks of about `max.partition.fetch.bytes` at most.
    ///
    /// `until` must not be above the partition's `latest`. The stream ends when `until` is reached, also where the
    /// last offsets are control records or compacted away; after an error it ends too. A range that was partly
    /// deleted, or lies beyond the end, gives [`KafkaError::OffsetOutOfRange`]; no progress for
    /// `default.api.timeout.ms` gives [`KafkaError::Unreachable`]. It begins when the stream is first polled; dropping
    /// the stream stops it. One stream per partition at a time.
    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>>;
}

/// A record to write.
#[derive(Clone, Debug)]
pub struct OutRecord {
    pub topic: Arc<str>,
    /// `None`: by the key's hash as Java does it (murmur2); without a key a partition is kept for a while, so that batches are large.
    pub partition: Option<i32>,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Bytes)>,
    /// `None`: now.
    pub timestamp_ms: Option<i64>,
}

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub partition: i32,
    /// -1 where the broker does not say it (`acks=0`).
    pub offset: i64,
}

/// Writes records; idempotent with `acks=all` unless the configuration says otherwise.
#[async_trait]
pub trait Producer: Send + Sync {
    /// One result per record, in order. Resolves when every record is acknowledged or has failed for good
    /// (`delivery.timeout.ms`). A full local queue waits, it never drops. Cancelling the call does not recall
    /// records that are queued already.
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<Written, KafkaError>>;

    /// Waits until nothing is queued or in flight.
    async fn flush(&self, timeout: Duration) -> Result<(), KafkaError>;

    /// Why nothing is acknowledged now: no broker answers, or they refuse the login.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Writes in transactions: begin → queue/send/offsets → commit|abort.
///
/// After [`KafkaError::OutcomeUnknown`], [`KafkaError::Fenced`] or [`KafkaError::Fatal`] the writer is poisoned and
/// answers every call with that error: drop it and make a new one (that fences the old one and aborts what it left
/// open). Any other error inside a transaction: `abort`, then begin again. Dropping a writer with an open transaction
/// aborts it as far as that is possible at once.
#[async_trait]
pub trait TransactionalWriter: Send {
    async fn begin(&mut self) -> Result<(), KafkaError>;
    /// Resolves when the records are on their way; what becomes of them is told by a later call, at the latest by `commit`.
    async fn queue(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError>;
    /// Resolves when all records are acknowledged, earlier ones included.
    async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError>;
    /// Batches of several callers at once, each with what became of its records, in order; `None`: not all of it was acknowledged
    /// within `patience`. Anything but `Ok` leaves only `abort`, and a record's error may be the echo of another one's.
    async fn write(&mut self, batches: Vec<Vec<OutRecord>>, patience: Duration) -> Vec<Option<Vec<Result<Written, KafkaError>>>>;
    /// Offsets of `group` with metadata, inside the transaction, fenced by the transactional id only.
    async fn offsets(&mut self, group: &str, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError>;
    /// As [`Self::offsets`], fenced by the member's place in its group too (KIP-447). [`KafkaError::Conflict`]: the group has gone on without
    /// this generation; `abort`, and go on with the member's identity of then, if it has one.
    async fn offsets_of(&mut self, member: &MemberIdentity, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        let _ = offsets;
        Err(KafkaError::Unsupported(format!("this writer does not know the members of group \"{}\"", member.group())))
    }
    async fn commit(&mut self) -> Result<(), KafkaError>;
    async fn abort(&mut self) -> Result<(), KafkaError>;
}

/// Who a member of a group is at one moment: its id, its generation, its instance. Goes with offsets into a transaction.
#[derive(Clone)]
pub struct MemberIdentity {
    group: Arc<str>,
    native: Arc<dyn Any + Send + Sync>,
}

impl MemberIdentity {
    /// `native`: what the client that fills the role needs of it.
    pub fn new(group: &str, native: impl Any + Send + Sync) -> Self {
        Self { group: group.into(), native: Arc::new(native) }
    }

    pub fn group(&self) -> &str {
        &self.group
    }

    /// `None`: it is another client's.
    pub fn native<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.native).downcast().ok()
    }
}

/// What a member has been given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Another number with each change; 0 before the first.
    pub tenure: u64,
    /// Ascending.
    pub partitions: Vec<TopicPartition>,
    /// The member is none any more, for good: another one has its id, or it may not be one.
    pub over: Option<KafkaError>,
}

/// A member of a consumer group that reads nothing: it is given partitions, and whoever has one does what it stands for.
///
/// It stays in the group by itself. While the group finds a new order the assignment is the old one: who goes on meanwhile is refused
/// where it matters ([`TransactionalWriter::offsets_of`], a transactional id), so there is no reason to stop for every member that comes or goes.
#[async_trait]
pub trait MemberOnHold: Send + Sync {
    fn assignment(&self) -> watch::Receiver<Assignment>;
    /// Of now: the generation changes without a word.
    async fn identity(&self) -> Result<MemberIdentity, KafkaError>;
    /// Asks the group's coordinator whether the partition is this member's; false too while the group finds a new order.
    async fn holds(&self, partition: &TopicPartition) -> Result<bool, KafkaError>;
    /// Leaves the group, a static member too.
    async fn close(&self);
    /// As [`Member::release`].
    async fn release(&self);
}

/// A member of a consumer group (classic protocol, `range` assignor unless the configuration says otherwise). With `group.instance.id` it is a
/// static one: who joins under the same id takes its place at once, and its calls fail with [`KafkaError::Fenced`] from then on.
#[async_trait]
pub trait Member: Send + Sync {
    /// At most `max` records; waits up to `wait` for the first. Must be called at least every `max.poll.interval.ms`.
    async fn poll(&self, max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError>;
    /// Commits next offsets to read, each with this metadata (empty: none), and waits for the answer.
    async fn commit(&self, offsets: Vec<(TopicPartition, i64)>, metadata: &str) -> Result<(), KafkaError>;
    async fn assignment(&self) -> Vec<TopicPartition>;
    /// Next offsets to read, where they are known: behind the last record that `poll` gave, and behind control records that followed it.
    async fn positions(&self) -> BTreeMap<TopicPartition, i64>;
    async fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), KafkaError>;
    /// Reads nothing more of the partition, or goes on. It stays so when the partition goes and comes back.
    async fn set_paused(&self, partition: &TopicPartition, paused: bool) -> Result<(), KafkaError>;
    /// Leaves the group. Later calls fail.
    async fn close(&self);
    /// Ends without a word. A static member's (`group.instance.id`) place and partitions are kept for whoever joins under the same id, until its
    /// session times out; any other member leaves.
    async fn release(&self) {
        self.close().await;
    }
}

/// A [`Member`] that is read for as long as the process lives: bounded in bytes, held while what it gave is not taken, and with
/// the word whose partitions are its own still.
///
/// Rebalances happen within [`Self::read`] and [`Member::poll`] alone, and dropping their calls loses records.
#[async_trait]
pub trait GroupReader: Member {
    /// As [`Member::poll`], and about `bytes_max` bytes at most (one record more).
    async fn read(&self, max: usize, bytes_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError>;
    /// While held nothing is fetched or given, also of partitions that come meanwhile; `read` must be called still, to stay in the group.
    async fn hold(&self, held: bool) -> Result<(), KafkaError>;
    /// Another number each time the partition is given to this member; `None` while it is not this member's. Offsets read in an
    /// earlier tenure must not be committed: another member may have gone on from there.
    fn tenure(&self, partition: &TopicPartition) -> Option<u64>;
    /// Why nothing can be read now: no broker answers.
    fn trouble(&self) -> Option<String>;
    /// Names of all topics, ascending.
    async fn topics(&self) -> Result<Vec<String>, KafkaError>;
    /// Reads these topics from now on and no other.
    async fn subscribe(&self, topics: &[String]) -> Result<(), KafkaError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerView {
    pub id: i32,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// `None` before Kafka 0.10.1.
    pub id: Option<String>,
    /// `None` while none is elected.
    pub controller: Option<i32>,
    pub brokers: Vec<BrokerView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    pub id: i32,
    /// `None` while the partition has no leader.
    pub leader: Option<i32>,
    pub replicas: Vec<i32>,
    pub isr: Vec<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    pub name: String,
    /// Ascending by id.
    pub partitions: Vec<PartitionView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    pub name: String,
    /// `None` where the broker keeps it to itself (sensitive).
    pub value: Option<String>,
    pub is_default: bool,
    pub is_sensitive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMemberView {
    pub id: String,
    pub client_id: String,
    pub host: String,
    /// Empty for members of groups that are not consumers.
    pub assignment: Vec<TopicPartition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    pub id: String,
    /// `Stable`, `Empty`, `PreparingRebalance`, …
    pub state: String,
    /// The assignor (`range`), empty while there are no members.
    pub protocol: String,
    /// `consumer`, `connect`, …
    pub protocol_type: String,
    pub members: Vec<GroupMemberView>,
}

/// Looks at and changes the cluster.
#[async_trait]
pub trait Admin: Send + Sync {
    async fn cluster(&self) -> Result<ClusterView, KafkaError>;
    /// All topics, ascending by name.
    async fn topics(&self) -> Result<Vec<TopicView>, KafkaError>;
    async fn topic(&self, name: &str) -> Result<TopicView, KafkaError>;
    /// The id that tells a topic from an earlier one of the same name; `None` where the brokers do not tell it (before Kafka 3.1).
    async fn topic_id(&self, name: &str) -> Result<Option<[u8; 16]>, KafkaError>;
    async fn topic_config(&self, name: &str) -> Result<Vec<ConfigEntry>, KafkaError>;
    /// Of many topics, by name; those that do not exist or may not be looked at are absent.
    async fn topic_configs(&self, names: &[String]) -> Result<BTreeMap<String, Vec<ConfigEntry>>, KafkaError>;
    /// `partitions` and `replication` of -1 take the broker's defaults. Returns when the topic can be used.
    async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication: i32,
        config: &BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), KafkaError>;
    async fn delete_topic(&self, name: &str) -> Result<(), KafkaError>;
    async fn groups(&self) -> Result<Vec<GroupView>, KafkaError>;
    /// Committed offsets with metadata; partitions without one are absent. `None`: all partitions of the group.
    async fn committed(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, (i64, String)>, KafkaError>;
    /// Commits offsets for a group that has no members; refused with [`KafkaError::Conflict`] while it has some.
    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64, String)]) -> Result<(), KafkaError>;
    /// High watermarks, whatever `isolation.level` says.
    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError>;
    /// Removes what lies below each offset; -1: everything. The topics must not be compacted only.
    async fn delete_records(&self, before: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        let _ = before;
        Err(KafkaError::Unsupported("records cannot be removed here".into()))
    }
    /// Bytes of log on each broker's disks, replicas included.
    async fn log_bytes(&self) -> Result<BTreeMap<i32, i64>, KafkaError>;
}
