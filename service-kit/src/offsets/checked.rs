//! A store that writes a group if it is still as it was read becomes an offset store: read, check, write, and again when somebody else was
//! faster. Writers of one process take turns, so that only those of other processes collide.

use std::{
    collections::{BTreeMap, hash_map::RandomState},
    hash::BuildHasher as _,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{Mutex, MutexGuard};

use super::{Calls, GroupOffsets, OffsetCommit, OffsetError, OffsetStore, StoredOffset, validate};
use crate::kafka::TopicPartition;

/// Groups whose names fall together wait for one another.
const TURNS: usize = 256;
/// Longest pause before a write that came too late is tried again; the call's bound ends it.
const PAUSE_MAX: Duration = Duration::from_millis(64);
/// Offsets that are removed in one step.
const REMOVED_MAX: usize = 2_000;

/// Whether a write follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Look,
    Write,
}

/// What a write makes of a group.
pub(super) struct Change {
    pub(super) epoch: u64,
    pub(super) set: BTreeMap<TopicPartition, StoredOffset>,
    /// All of them are held.
    pub(super) removed: Vec<TopicPartition>,
}

#[async_trait]
pub(super) trait Groups: Send + Sync + 'static {
    const IS_KAFKA: bool = false;

    /// Tells a group's state from every later one.
    type Version: Send + Sync;

    fn calls(&self) -> &Calls;

    /// The group at one moment.
    async fn read(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
        purpose: Purpose,
    ) -> Result<(GroupOffsets, Self::Version), OffsetError>;

    /// As a whole; false where the group is no longer as it was read.
    async fn write(&self, group: &str, held: &GroupOffsets, version: Self::Version, change: &Change) -> Result<bool, OffsetError>;

    /// Groups that may have offsets.
    async fn list(&self) -> Result<Vec<String>, OffsetError>;

    async fn topic_id(&self, topic: &str) -> Result<Option<[u8; 16]>, OffsetError>;

    async fn note_topic(&self, topic: &str, id: [u8; 16]) -> Result<(), OffsetError>;
}

pub(super) struct Checked<G> {
    groups: G,
    turns: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl<G: Groups> Checked<G> {
    pub(super) fn new(groups: G) -> Self {
        Self { groups, turns: (0..TURNS).map(|_| Mutex::new(())).collect(), hasher: RandomState::new() }
    }

    async fn turn(&self, group: &str) -> MutexGuard<'_, ()> {
        let index = self.hasher.hash_one(group) % TURNS as u64;
        self.turns[index as usize].lock().await
    }

    /// Reads, lets `decide` say what is to change, and writes it.
    async fn change<T>(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
        decide: impl Fn(&GroupOffsets) -> Result<(Option<Change>, T), OffsetError> + Send + Sync,
    ) -> Result<T, OffsetError>
    where
        T: Send,
    {
        let work = async {
            let _turn = self.turn(group).await;
            let mut pause = Duration::from_millis(1);
            loop {
                let (held, version) = self.groups.read(group, partitions, Purpose::Write).await?;
                let (change, answer) = decide(&held)?;
                let Some(change) = change else { return Ok(answer) };
                if self.groups.write(group, &held, version, &change).await? {
                    return Ok(answer);
                }
                metrics::counter!("millrace_offset_store_collisions_total", "store" => self.groups.calls().store).increment(1);
                // Two that collide must not go on in step.
                tokio::time::sleep(pause.mul_f64(RandomState::new().hash_one(0) as f64 / u64::MAX as f64)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        };
        self.groups.calls().run(work).await
    }

    /// Removes offsets, at most `REMOVED_MAX` at a time; false when there were none.
    async fn remove(&self, group: &str, of: impl Fn(&TopicPartition) -> bool + Send + Sync) -> Result<bool, OffsetError> {
        // Most groups have nothing of it: a look costs less than the way to a write.
        let mut removed = false;
        let held = self.groups.calls().run(self.groups.read(group, None, Purpose::Look)).await?.0;
        if !held.offsets.keys().any(&of) {
            return Ok(false);
        }
        loop {
            let some = self.change(group, None, |held| {
                let removed: Vec<_> = held.offsets.keys().filter(|partition| of(partition)).take(REMOVED_MAX).cloned().collect();
                let some = !removed.is_empty();
                // A commit may be on its way: the epoch refuses it.
                Ok((some.then(|| Change { epoch: held.epoch + 1, set: BTreeMap::new(), removed }), some))
            });
            match some.await? {
                true => removed = true,
                false => return Ok(removed),
            }
        }
    }
}

fn set(offsets: &[OffsetCommit]) -> BTreeMap<TopicPartition, StoredOffset> {
    let stored = |commit: &OffsetCommit| StoredOffset { offset: commit.offset, metadata: commit.metadata.clone() };
    offsets.iter().map(|commit| (commit.partition.clone(), stored(commit))).collect()
}

#[async_trait]
impl<G: Groups> OffsetStore for Checked<G> {
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        if validate(group, &[]).is_err() {
            return Ok(GroupOffsets::default());
        }
        self.groups.calls().run(async { Ok(self.groups.read(group, partitions, Purpose::Look).await?.0) }).await
    }

    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        validate(group, offsets)?;
        let set = set(offsets);
        let partitions: Vec<TopicPartition> = set.keys().cloned().collect();
        let decide = |held: &GroupOffsets| {
            held.admit(group, epoch, offsets)?;
            Ok(((!set.is_empty()).then(|| Change { epoch, set: set.clone(), removed: Vec::new() }), ()))
        };
        self.change(group, Some(&partitions), decide).await
    }

    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        validate(group, offsets)?;
        let set = set(offsets);
        let partitions: Vec<TopicPartition> = set.keys().cloned().collect();
        let decide = |held: &GroupOffsets| {
            let epoch = held.epoch + 1;
            Ok((Some(Change { epoch, set: set.clone(), removed: Vec::new() }), epoch))
        };
        self.change(group, Some(&partitions), decide).await
    }

    async fn groups(&self) -> Result<Vec<String>, OffsetError> {
        let mut groups = self.groups.calls().run(self.groups.list()).await?;
        groups.sort_unstable();
        Ok(groups)
    }

    async fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        if validate(group, &[]).is_err() {
            return Ok(false);
        }
        self.remove(group, |_| true).await
    }

    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        let known = self.groups.calls().run(self.groups.topic_id(topic)).await?;
        if known == Some(id) {
            return Ok(Vec::new());
        }
        // Noted last: what is cut off before is done again.
        let lost = if known.is_some() { self.forget_topic(topic).await? } else { Vec::new() };
        self.groups.calls().run(self.groups.note_topic(topic, id)).await?;
        Ok(lost)
    }

    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError> {
        let mut lost = Vec::new();
        for group in self.groups().await? {
            if self.remove(&group, |partition| &*partition.topic == topic).await? {
                lost.push(group);
            }
        }
        Ok(lost)
    }

    fn is_kafka(&self) -> bool {
        G::IS_KAFKA
    }
}

/// Hexadecimal digits, as the stores keep a topic's id.
pub(super) fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

pub(super) fn unhex(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 32)?;
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// `TOPIC:PARTITION`: a topic may hold a colon, a number does not.
pub(super) fn name(partition: &TopicPartition) -> String {
    format!("{}:{}", partition.topic, partition.partition)
}

pub(super) fn named(name: &str) -> Option<TopicPartition> {
    let (topic, partition) = name.rsplit_once(':')?;
    Some(TopicPartition::new(topic, partition.parse().ok()?))
}

/// `OFFSET METADATA`.
pub(super) fn value(stored: &StoredOffset) -> String {
    format!("{} {}", stored.offset, stored.metadata)
}

pub(super) fn valued(value: &str) -> Option<StoredOffset> {
    let (offset, metadata) = value.split_once(' ')?;
    Some(StoredOffset { offset: offset.parse().ok()?, metadata: metadata.to_owned() })
}
