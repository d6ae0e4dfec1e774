//! One pass over all groups: where partitions end, what groups committed since the last pass, who is in them. What it sees is in the [`Table`].
//!
//! Commits are read from Kafka's own log of them (`__consumer_offsets`), which is what Burrow does. Asking for offsets instead would not do: the
//! answer has neither the time of a commit nor says that the same offset was committed again, and that alone tells a group that stalls from one
//! that stopped. It is also the cheaper way: a pass reads what was written since the last one, however many groups there are, over any kind of
//! connection. The first pass reads the log from `monitor.expire_group` ago. Offsets of aborted transactions are not seen.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::{RwLock, RwLockReadGuard};
use service_kit::{
    kafka::{GROUP_LOG, GroupRecord, Isolation, KafkaError, RangeReader, TopicPartition, TopicView, group_record},
    offsets::{OffsetStore, REMOVED_OFFSET},
};
use tokio::{sync::Mutex, time::Instant};

use super::table::Table;
use crate::{config, connect::Connection, error::Result, session::Clients};

/// Partitions of the log that are read at a time.
const READ_AT_ONCE: usize = 4;
/// Groups whose stored offsets are asked for at a time.
const STORED_AT_ONCE: usize = 16;
/// Records read in a pass to know their time, and at a time: of groups that were behind when the bridge began.
const AGES_MAX: usize = 256;
const AGES_AT_ONCE: usize = 8;
/// Offsets in which a record is looked for: some hold none.
const AGE_RANGE: i64 = 1_000;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Watch {
    inner: Arc<Inner>,
}

struct Inner {
    kafka: Connection,
    clients: Arc<dyn Clients>,
    store: Arc<dyn OffsetStore>,
    /// Of the offset store in Kafka, whichever store this bridge has.
    bookkeeping: String,
    config: config::Monitor,
    table: RwLock<Table>,
    log: Mutex<Log>,
}

/// How far the log of groups is read.
#[derive(Default)]
struct Log {
    reader: Option<Arc<dyn RangeReader>>,
    /// Next offset by partition.
    positions: BTreeMap<i32, i64>,
    /// When the last complete pass began.
    begun: Option<Instant>,
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Watch {
    /// `bookkeeping`: `offsets.kafka_topic`.
    pub(crate) fn new(
        kafka: Connection,
        clients: Arc<dyn Clients>,
        store: Arc<dyn OffsetStore>,
        bookkeeping: &str,
        config: config::Monitor,
    ) -> Self {
        let bookkeeping = bookkeeping.to_owned();
        let table = RwLock::new(Table::new(config.clone()));
        Self { inner: Arc::new(Inner { kafka, clients, store, bookkeeping, config, table, log: Mutex::default() }) }
    }

    /// Whether this is what the offset store in Kafka notes for itself, and nobody's place in a log: a group's epoch, or a removed offset.
    pub(super) fn is_bookkeeping(&self, partition: &TopicPartition, offset: i64) -> bool {
        *partition.topic == *self.inner.bookkeeping || offset == REMOVED_OFFSET
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.inner.table.read()
    }

    pub(crate) fn forget(&self, group: &str) {
        self.inner.table.write().forget(group);
    }

    pub(crate) fn forget_topic(&self, group: &str, topic: &str) {
        self.inner.table.write().forget_topic(group, topic);
    }

    /// Looks at everything once. Whoever asks while a pass runs waits for the next one, which serves all of them.
    pub(crate) async fn pass(&self) -> Result<()> {
        let asked = Instant::now();
        let mut log = self.inner.log.lock().await;
        if log.begun.is_some_and(|begun| begun >= asked) {
            return Ok(());
        }
        let begun = Instant::now();
        self.run(&mut log).await?;
        log.begun = Some(begun);
        let (groups, rings, left_out) = self.table().sizes();
        metrics::histogram!("millrace_bridge_watch_pass_seconds").record(begun.elapsed().as_secs_f64());
        metrics::gauge!("millrace_bridge_watch_groups").set(groups as f64);
        metrics::gauge!("millrace_bridge_watch_group_partitions").set(rings as f64);
        metrics::gauge!("millrace_bridge_watch_groups_left_out").set(left_out as f64);
        Ok(())
    }

    async fn run(&self, log: &mut Log) -> Result<()> {
        let admin = self.inner.kafka.admin().await?;
        let topics = admin.topics().await?;
        // One without a leader would fail the question for all.
        let led = |topic: &TopicView| -> Vec<TopicPartition> {
            let name: Arc<str> = topic.name.as_str().into();
            let led = topic.partitions.iter().filter(|partition| partition.leader.is_some());
            led.map(|partition| TopicPartition::new(Arc::clone(&name), partition.id)).collect()
        };
        let all: Vec<TopicPartition> = topics.iter().filter(|topic| topic.name != GROUP_LOG).flat_map(led).collect();
        let bounds = admin.bounds(&all).await?;
        self.inner.table.write().look(now_ms(), &topics, &bounds);

        let parts = topics.iter().find(|topic| topic.name == GROUP_LOG).map(led).unwrap_or_default();
        let seen_ms = now_ms();
        self.read_log(log, &parts).await?;

        let views = admin.groups().await?;
        // Kafka's own have just been read from the log of groups.
        let kept = if self.inner.store.is_kafka() { Vec::new() } else { self.inner.store.groups().await? };
        let stored = stream::iter(kept)
            .map(async |group| {
                let offsets = self.inner.store.get(&group, None).await?.offsets;
                Ok::<_, crate::error::BridgeError>((group, offsets))
            })
            .buffer_unordered(STORED_AT_ONCE)
            .try_collect()
            .await?;
        self.inner.table.write().settle(seen_ms, now_ms(), views, stored);
        self.learn_ages().await;
        Ok(())
    }

    /// Takes everything that was written into the log of groups since the last time.
    async fn read_log(&self, log: &mut Log, parts: &[TopicPartition]) -> Result<()> {
        if parts.is_empty() {
            return Ok(());
        }
        let reader = match &log.reader {
            Some(reader) => Arc::clone(reader),
            None => Arc::clone(log.reader.insert(self.inner.clients.reader(Isolation::ReadCommitted).await?)),
        };
        let new: Vec<TopicPartition> = parts.iter().filter(|part| !log.positions.contains_key(&part.partition)).cloned().collect();
        if !new.is_empty() {
            let since = now_ms() - i64::try_from(self.inner.config.expire_group.as_millis()).unwrap_or(i64::MAX);
            let starts = reader.offsets_at(&new, since).await?;
            log.positions.extend(starts.into_iter().map(|(part, offset)| (part.partition, offset)));
        }
        let bounds = reader.bounds(parts).await?;
        let ranges = bounds.into_iter().filter_map(|(part, bounds)| {
            let position = log.positions.get(&part.partition).copied().unwrap_or(bounds.earliest);
            // A log made anew begins again.
            let from = if position > bounds.latest { bounds.earliest } else { position.max(bounds.earliest) };
            (from < bounds.latest).then_some((part, from, bounds.latest))
        });
        let read = stream::iter(ranges.collect::<Vec<_>>()).map(async |(part, from, until)| {
            let partition = part.partition;
            let mut next = from;
            let mut chunks = reader.read(part, from, until);
            while let Some(chunk) = chunks.next().await {
                match chunk {
                    Ok(records) => {
                        next = records.last().map_or(next, |record| record.offset + 1);
                        let commits: Vec<_> = records.iter().filter_map(group_record).map(|record| self.plain(record)).collect();
                        metrics::counter!("millrace_bridge_watch_commits_total").increment(commits.len() as u64);
                        let now = now_ms();
                        let mut table = self.inner.table.write();
                        commits.into_iter().for_each(|commit| table.take(commit, now));
                    }
                    Err(error) => return (partition, next, Err(error)),
                }
            }
            (partition, until, Ok(()))
        });
        let ended: Vec<(i32, i64, std::result::Result<(), KafkaError>)> = read.buffer_unordered(READ_AT_ONCE).collect().await;
        let mut result = Ok(());
        for (partition, next, read) in ended {
            log.positions.insert(partition, next);
            result = result.and(read);
        }
        Ok(result?)
    }

    fn plain(&self, record: GroupRecord) -> GroupRecord {
        match record {
            GroupRecord::Offset { group, partition, commit: Some(commit) } if self.is_bookkeeping(&partition, commit.offset) => {
                GroupRecord::Offset { group, partition, commit: None }
            }
            other => other,
        }
    }

    /// Reads the oldest unread record where only its own timestamp says how old it is. What fails is tried again with the next pass.
    async fn learn_ages(&self) {
        let wanted = self.table().unknown_ages(AGES_MAX);
        if wanted.is_empty() {
            return;
        }
        // Made for this only: a reader goes on fetching the partitions that it has read.
        let reader = match self.inner.clients.reader(Isolation::ReadUncommitted).await {
            Ok(reader) => reader,
            Err(error) => return tracing::debug!(%error, "the age of unread records is not known"),
        };
        let ages = stream::iter(wanted).map(async |(partition, (offset, end))| {
            let mut chunks = reader.read(partition.clone(), offset, end.min(offset + AGE_RANGE));
            match chunks.next().await {
                Some(Ok(records)) => {
                    records.first().filter(|record| record.timestamp_ms >= 0).map(|record| (partition, (offset, record.timestamp_ms)))
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, %partition, offset, "the age of the oldest unread record is not known");
                    None
                }
                None => None,
            }
        });
        let found: Vec<Option<_>> = ages.buffer_unordered(AGES_AT_ONCE).collect().await;
        self.inner.table.write().know_ages(&found.into_iter().flatten().collect());
    }
}
