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
//! An offset is the next one to read, as in Kafka. Every store passes `conformance`.

use std::collections::BTreeMap;

use async_trait::async_trait;
use proto::{ErrorKind, ServiceError};

use crate::kafka::TopicPartition;

#[cfg(test)]
pub(crate) mod conformance;
mod sled;

pub use self::sled::SledOffsets;

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
    /// Only one process may own an embedded store.
    #[error("the offset store {path} is in use by {owner}; stop that process, or give this one another path")]
    InUse { path: String, owner: String },
    /// The store could not read or write; nothing is known to be changed.
    #[error("offset store {path}: {message}")]
    Storage { path: String, message: String },
}

impl From<OffsetError> for ServiceError {
    fn from(error: OffsetError) -> Self {
        let kind = match &error {
            OffsetError::Fenced { .. } | OffsetError::Regressed { .. } => ErrorKind::Conflict,
            OffsetError::Invalid(_) => ErrorKind::Invalid,
            OffsetError::InUse { .. } => ErrorKind::Unavailable,
            OffsetError::Storage { .. } => ErrorKind::Internal,
        };
        ServiceError::new(kind, error.to_string())
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
