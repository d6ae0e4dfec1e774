//! Where consumer groups keep their offsets: one contract, several stores.
//!
//! The contract is a monotone compare-and-set, fenced by an epoch per group:
//!
//! - `commit` names the epoch the caller read. Another epoch is refused (`Fenced`): somebody has reset the group meanwhile.
//! - Within an epoch an offset never goes back (`Regressed`); the same offset again is accepted, so a retry is harmless.
//! - `reset` sets offsets to any value and bumps the epoch, which fences every commit still on its way.
//! - `delete` removes the offsets and bumps the epoch too, so that a late commit cannot bring the group back.
//! - A topic that was deleted and created anew has another id. `know_topic` notices it and removes the offsets of the old one.
//! - A commit or reset is taken as a whole or not at all, and is durable when it answers.
//!
//! An offset is the next one to read, as in Kafka. Every store passes one suite on its real server (`tests/offsets/conformance.rs`), with
//! writers in several processes, and with writers that are killed (`tests/offsets/kill.rs`).
//!
//! | store | for | a commit is | what it cannot promise |
//! |---|---|---|---|
//! | [`SledOffsets`] | one process | a batch under a lock, flushed to disk | a second process is refused |
//! | [`redis`] | several | one Lua script | what Redis loses when it crashes or fails over: without `appendonly yes` and `appendfsync always` that is the last second or all (told once in the log). A Redis Cluster |
//! | [`zookeeper`] | several | one `multi` that checks the versions of the group's node and of every offset's | more than 1 MiB in one commit. Old consumers and tools read and write the same offsets and know no epoch: what they write counts as stored. TLS and logins |
//! | [`hbase`] | several | one `checkAndPut` of the group's row | order, when somebody writes the table past this code. Removed offsets leave cells without bytes. The table is created without replication to other clusters |
//! | [`kafka`] | several | one transaction of a producer that every other process fences | offsets of partitions that do not exist. Kafka drops a group's offsets and epoch `offsets.retention.minutes` (7 days) after its last commit, and those of a topic with the topic, without raising epochs. Ordinary consumers of the group are not fenced. A removed offset stays as 2^63-1 with the metadata `millrace:removed`, where ordinary consumers go by their `auto.offset.reset` |
//!
//! With the stores outside, `know_topic` and `forget_topic` go from group to group (Redis: one step): one that is cut off is to be repeated, and
//! may then remove what was committed to the new topic meanwhile. A call that ends with [`OffsetError::Away`] may or may not have been carried out;
//! repeating it is safe.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use proto::{ErrorKind, ServiceError};
use tracing::{info, warn};

use crate::kafka::TopicPartition;

mod checked;
mod hbase;
mod kafka;
mod redis;
mod sled;
mod zookeeper;

pub use self::{
    hbase::hbase,
    kafka::{REMOVED_OFFSET, kafka},
    redis::redis,
    sled::SledOffsets,
    zookeeper::zookeeper,
};

/// Longest metadata kept with an offset, in bytes: Kafka's own default (`offset.metadata.max.bytes`).
pub const METADATA_BYTES_MAX: usize = 4096;

/// Longest group or topic name, in bytes: Kafka's own limit for topics.
pub const NAME_BYTES_MAX: usize = 249;

/// Offsets of consumer groups. Cheap to share; every method may be called from many tasks at once.
#[async_trait]
pub trait OffsetStore: Send + Sync + 'static {
    /// The group's epoch and its offsets, of `partitions` or (`None`) of all. An unknown group has epoch 0 and no offsets.
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError>;

    /// Moves offsets forward under the epoch that `get` or `reset` gave.
    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError>;

    /// Sets offsets, forward or back, and gives the group's new epoch. Partitions that are not named keep their offset.
    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError>;

    /// Groups with at least one offset, sorted.
    async fn groups(&self) -> Result<Vec<String>, OffsetError>;

    /// Removes the group's offsets; false when it had none.
    async fn delete(&self, group: &str) -> Result<bool, OffsetError>;

    /// Notes the id that Kafka gave a topic. Another one than was noted before means a new topic of the old name: as `forget_topic`.
    /// Gives the groups that lost offsets.
    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError>;

    /// Removes a topic's offsets in every group and bumps the epochs of those groups, which it gives.
    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError>;

    /// Whether these are Kafka's own offsets of the group: a copy for its tools would be written over them.
    fn is_kafka(&self) -> bool {
        false
    }
}

/// One partition's offset to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    pub partition: TopicPartition,
    /// The next offset to read.
    pub offset: i64,
    pub metadata: String,
}

/// One partition's offset as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredOffset {
    /// The next offset to read.
    pub offset: i64,
    pub metadata: String,
}

/// What a store knows about a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupOffsets {
    pub epoch: u64,
    pub offsets: BTreeMap<TopicPartition, StoredOffset>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum OffsetError {
    /// The caller reads the group again and decides.
    #[error(
        "group {group:?} is at epoch {current}, the commit was made under epoch {given}: the group was reset meanwhile; read its offsets again"
    )]
    Fenced { group: String, given: u64, current: u64 },
    #[error("{topic}-{partition} of group {group:?} is at offset {stored}; {given} would go back: reset the group to rewind it")]
    Regressed { group: String, topic: String, partition: i32, stored: i64, given: i64 },
    /// The request itself is wrong.
    #[error("{0}")]
    Invalid(String),
    /// Whoever asked may not do this to the group.
    #[error("{0}")]
    Denied(String),
    /// Only one process may own an embedded store.
    #[error("the offset store {path} is in use by {owner}; stop that process, or give this one another path")]
    InUse { path: String, owner: String },
    /// The store does not answer; whether the change was made is not known. It may be repeated.
    #[error("the offset store {path} is away: {message}")]
    Away { path: String, message: String },
    /// The store could not read or write; nothing is known to be changed.
    #[error("offset store {path}: {message}")]
    Storage { path: String, message: String },
}

impl From<OffsetError> for ServiceError {
    fn from(error: OffsetError) -> Self {
        let kind = match &error {
            OffsetError::Fenced { .. } | OffsetError::Regressed { .. } => ErrorKind::Conflict,
            OffsetError::Invalid(_) => ErrorKind::Invalid,
            OffsetError::Denied(_) => ErrorKind::Forbidden,
            OffsetError::InUse { .. } | OffsetError::Away { .. } => ErrorKind::Unavailable,
            OffsetError::Storage { .. } => ErrorKind::Internal,
        };
        ServiceError::new(kind, error.to_string())
    }
}

impl GroupOffsets {
    /// Whether a commit may be made.
    fn admit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        if epoch != self.epoch {
            return Err(OffsetError::Fenced { group: group.to_owned(), given: epoch, current: self.epoch });
        }
        for commit in offsets {
            match self.offsets.get(&commit.partition) {
                Some(stored) if commit.offset < stored.offset => return Err(regressed(group, commit, stored.offset)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn regressed(group: &str, commit: &OffsetCommit, stored: i64) -> OffsetError {
    OffsetError::Regressed {
        group: group.to_owned(),
        topic: commit.partition.topic.to_string(),
        partition: commit.partition.partition,
        stored,
        given: commit.offset,
    }
}

/// Calls to a store outside of this process: each is bounded and counted, and its server's absence is logged once.
struct Calls {
    store: &'static str,
    /// As it may be shown.
    address: String,
    bound: Duration,
    away: AtomicBool,
}

impl Calls {
    fn new(store: &'static str, address: String, bound: Duration) -> Self {
        Self { store, address, bound, away: AtomicBool::new(false) }
    }

    async fn run<T>(&self, work: impl Future<Output = Result<T, OffsetError>> + Send) -> Result<T, OffsetError> {
        let begun = Instant::now();
        let done = match tokio::time::timeout(self.bound, work).await {
            Ok(done) => done,
            Err(_) => Err(self.away(format!("no answer within {} ms", self.bound.as_millis()))),
        };
        let outcome = match &done {
            Ok(_) => "ok",
            Err(OffsetError::Away { .. }) => "away",
            Err(OffsetError::Storage { .. } | OffsetError::InUse { .. }) => "failed",
            Err(OffsetError::Fenced { .. } | OffsetError::Regressed { .. } | OffsetError::Invalid(_) | OffsetError::Denied(_)) => "refused",
        };
        metrics::counter!("millrace_offset_store_calls_total", "store" => self.store, "outcome" => outcome).increment(1);
        metrics::histogram!("millrace_offset_store_call_seconds", "store" => self.store).record(begun.elapsed().as_secs_f64());
        match &done {
            Err(error @ OffsetError::Away { .. }) => {
                if !self.away.swap(true, Ordering::Relaxed) {
                    warn!(store = self.store, %error, "offset store is away");
                }
            }
            _ => {
                if self.away.swap(false, Ordering::Relaxed) {
                    info!(store = self.store, address = self.address, "offset store is back");
                }
            }
        }
        done
    }

    fn away(&self, message: impl ToString) -> OffsetError {
        OffsetError::Away { path: self.address.clone(), message: message.to_string() }
    }

    fn storage(&self, message: impl ToString) -> OffsetError {
        OffsetError::Storage { path: self.address.clone(), message: message.to_string() }
    }

    fn damaged(&self, what: &str) -> OffsetError {
        self.storage(format!("{what} is not what this store writes; correct or remove it there"))
    }
}

/// Refuses what no store may hold; every store calls it before it writes.
fn validate(group: &str, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
    let invalid = |message: String| Err(OffsetError::Invalid(message));
    if group.is_empty() || group.len() > NAME_BYTES_MAX {
        return invalid(format!("a group's name has 1 to {NAME_BYTES_MAX} bytes, not {}", group.len()));
    }
    for commit in offsets {
        let TopicPartition { topic, partition } = &commit.partition;
        if topic.is_empty() || topic.len() > NAME_BYTES_MAX {
            return invalid(format!("a topic's name has 1 to {NAME_BYTES_MAX} bytes, not {}", topic.len()));
        }
        if *partition < 0 {
            return invalid(format!("{topic}: partition {partition} is negative"));
        }
        if commit.offset < 0 {
            return invalid(format!("{topic}-{partition}: offset {} is negative", commit.offset));
        }
        if commit.metadata.len() > METADATA_BYTES_MAX {
            return invalid(format!(
                "{topic}-{partition}: metadata of {} bytes is longer than {METADATA_BYTES_MAX}",
                commit.metadata.len()
            ));
        }
    }
    Ok(())
}
