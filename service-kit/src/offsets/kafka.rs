//! Offsets in Kafka itself, in `__consumer_offsets`, for several processes: every tool of Kafka sees them.
//!
//! Promise: a write is one transaction of a producer whose transactional id is the group's. Who takes the id fences the process that had it
//! before; then it reads, checks, and commits. A commit that succeeds shows that nobody else has written since the read. Reads wait for
//! transactions that are under way; one that a killed process left open is ended by taking its id.
//!
//! | where | what |
//! |---|---|
//! | the group's offsets | as Kafka's own, with their metadata; removed: offset 2^63-1, metadata `millrace:removed` |
//! | the group's offset of `TOPIC-0`, TOPIC being the store's own topic | the epoch; its metadata is `listed` while the group has offsets |
//! | records of TOPIC, key `g` GROUP | in the same transaction: a value where the group has offsets, none where it has no more |
//! | records of TOPIC, key `t` TOPIC-NAME | the topic's id, 32 hexadecimal digits |
//!
//! TOPIC has one partition and `cleanup.policy=compact`; it is created with the first call. It is small, and read to its end once. Each group takes
//! two clients; those of the 32 groups that were used last are kept, and another group waits until they are made. A commit takes some 10 ms while one
//! process writes a group; processes that write the same group take it from each other, a second or so each time.
//! What this store cannot promise is in the table of [`super`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::{
    sync::{Mutex, OnceCell},
    time::timeout,
};

use super::{
    Calls, GroupOffsets, OffsetError, OffsetStore, StoredOffset,
    checked::{Change, Checked, Groups, Purpose, hex, unhex},
};
use crate::kafka::{
    self, Admin, Isolation, KafkaConfig, KafkaError, OutRecord, OwnTopic, Producer, RangeReader, StableOffsets, TopicPartition,
    TransactionalWriter,
};

/// What Kafka shows where the store in Kafka has removed an offset. No log gets so far: an ordinary consumer that finds it goes by its
/// `auto.offset.reset`.
pub const REMOVED_OFFSET: i64 = i64::MAX;
const REMOVED: &str = "millrace:removed";
const LISTED: &str = "listed";
/// Groups whose clients are kept.
const GROUPS_MAX: usize = 32;
/// After this a broker ends a transaction by itself.
const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// A transaction that takes longer than this was left open by a process that is gone.
const SETTLED_MAX: Duration = Duration::from_secs(1);
/// How often the end of the store's topic is looked at while a transaction is settled.
const SETTLE_INTERVAL: Duration = Duration::from_millis(5);

/// The store in the cluster of `config`, with `topic` as its own. It connects with the first call. `bound` limits each call. A wrong topic is
/// [`OffsetError::Invalid`].
pub fn kafka(config: &KafkaConfig, topic: &str, bound: Duration) -> Result<impl OffsetStore + use<>, OffsetError> {
    if topic.is_empty() || topic.len() > super::NAME_BYTES_MAX || !topic.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Err(OffsetError::Invalid(format!("`{topic}` cannot be a topic's name; take letters, digits, `.`, `_` and `-`")));
    }
    let mut config = config.clone();
    // A call takes several steps, of which one may be slow: the client library looks for a coordinator in steps of half a second.
    let step = bound / 2;
    config.set("default.api.timeout.ms", step.as_millis().max(100).to_string());
    config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
    // Soon after a commit its offsets cannot be read yet, which the broker says and the client waits for.
    config.set("retry.backoff.ms", "5");
    config.set("retry.backoff.max.ms", "50");
    let calls = Calls::new("kafka", format!("kafka://{}/{topic}", config.get("bootstrap.servers").unwrap_or_default()), bound);
    Ok(Checked::new(Kafka {
        calls,
        epoch: TopicPartition::new(topic, 0),
        config,
        step,
        admin: OnceCell::new(),
        reader: OnceCell::new(),
        producer: OnceCell::new(),
        groups: parking_lot::Mutex::default(),
        log: Mutex::default(),
    }))
}

struct Kafka {
    calls: Calls,
    config: KafkaConfig,
    step: Duration,
    /// The store's topic; a group's offset of it is the group's epoch.
    epoch: TopicPartition,
    /// Made when the topic is there.
    admin: OnceCell<Arc<dyn Admin>>,
    reader: OnceCell<Arc<dyn RangeReader>>,
    producer: OnceCell<Arc<dyn Producer>>,
    /// With the time of last use.
    groups: parking_lot::Mutex<HashMap<String, (Instant, Arc<Group>)>>,
    log: Mutex<Log>,
}

struct Group {
    reader: StableOffsets,
    writer: Mutex<Writer>,
}

#[derive(Default)]
struct Writer {
    /// Another number for each time that the transactional id was taken.
    taken: u64,
    client: Option<Box<dyn TransactionalWriter>>,
}

/// What the records of the store's topic say, up to `next`.
#[derive(Default)]
struct Log {
    next: i64,
    groups: BTreeSet<String>,
    topics: HashMap<String, [u8; 16]>,
}

#[derive(Default)]
struct Version {
    taken: u64,
    listed: bool,
}

impl Kafka {
    fn error(&self, error: KafkaError) -> OffsetError {
        match error {
            KafkaError::Unreachable(_)
            | KafkaError::Timeout(_)
            | KafkaError::Retryable(_)
            | KafkaError::OutcomeUnknown(_)
            | KafkaError::Fenced(_)
            | KafkaError::Fatal(_)
            // Its own, which a broker that has just started may not know yet.
            | KafkaError::UnknownTopic(_) => self.calls.away(error),
            KafkaError::Invalid(_) => OffsetError::Invalid(error.to_string()),
            error => self.calls.storage(error),
        }
    }

    async fn admin(&self) -> Result<&Arc<dyn Admin>, OffsetError> {
        let make = async || {
            let admin = kafka::admin(&self.config).await?;
            let topic = OwnTopic {
                name: &self.epoch.topic,
                setting: "offsets.kafka_topic",
                partitions: 1,
                replication: -1,
                config: &[("cleanup.policy", "compact")],
                policy: None,
            };
            kafka::own_topic(admin.as_ref(), &topic, self.step).await?;
            Ok(admin)
        };
        self.admin.get_or_try_init(make).await.map_err(|error| self.error(error))
    }

    async fn group(&self, group: &str) -> Result<Arc<Group>, OffsetError> {
        if let Some((used, kept)) = self.groups.lock().get_mut(group) {
            *used = Instant::now();
            return Ok(Arc::clone(kept));
        }
        self.admin().await?;
        let reader = kafka::stable_offsets(&self.config, group).await.map_err(|error| self.error(error))?;
        let mut groups = self.groups.lock();
        // Another call may have been faster; two writers of one process would only fence each other.
        if !groups.contains_key(group) && groups.len() >= GROUPS_MAX {
            let oldest = groups.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone());
            oldest.map(|oldest| groups.remove(&oldest));
        }
        let made = || (Instant::now(), Arc::new(Group { reader, writer: Mutex::default() }));
        Ok(Arc::clone(&groups.entry(group.to_owned()).or_insert_with(made).1))
    }

    /// Fences whoever could write the group, and ends what was left open; gives the writer's number.
    async fn take(&self, name: &str, writer: &mut Writer) -> Result<u64, OffsetError> {
        writer.client = None;
        let client = kafka::transactional_writer(&self.config, &format!("millrace-offsets-{name}")).await;
        writer.client = Some(client.map_err(|error| self.error(error))?);
        writer.taken += 1;
        Ok(writer.taken)
    }

    /// Follows the store's topic to its end.
    async fn follow(&self) -> Result<tokio::sync::MutexGuard<'_, Log>, OffsetError> {
        let failed = |error| self.error(error);
        let admin = self.admin().await?;
        let reader = self.reader.get_or_try_init(|| kafka::range_reader(&self.config, Isolation::ReadCommitted)).await.map_err(failed)?;
        let mut log = self.log.lock().await;
        let partition = std::slice::from_ref(&self.epoch);
        let end = admin.bounds(partition).await.map_err(failed)?.get(&self.epoch).map_or(0, |bounds| bounds.latest);
        let begun = Instant::now();
        // A transaction is answered before its records can be read. One that stays open was not answered.
        let stable = loop {
            let bounds = reader.bounds(partition).await.map_err(failed)?.get(&self.epoch).copied();
            let Some(bounds) = bounds else { return Ok(log) };
            if bounds.latest >= end || begun.elapsed() > self.step {
                break bounds;
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
        };
        if stable.latest < log.next {
            // Another topic of the old name.
            *log = Log::default();
        }
        let from = log.next.max(stable.earliest);
        let mut chunks = reader.read(self.epoch.clone(), from, stable.latest);
        while let Some(records) = chunks.try_next().await.map_err(failed)? {
            for record in records {
                log.next = record.offset + 1;
                let Some((kind, name)) = record.key.as_deref().and_then(|key| key.split_first()) else { continue };
                let Ok(name) = std::str::from_utf8(name) else { continue };
                match (kind, record.value.as_deref()) {
                    (b'g', Some(_)) => drop(log.groups.insert(name.to_owned())),
                    (b'g', None) => drop(log.groups.remove(name)),
                    (b't', Some(id)) => {
                        let id = unhex(id).ok_or_else(|| self.calls.damaged(&format!("the id of topic {name}")))?;
                        log.topics.insert(name.to_owned(), id);
                    }
                    _ => {}
                }
            }
        }
        log.next = stable.latest;
        Ok(log)
    }

    fn record(&self, kind: char, name: &str, value: Option<String>) -> OutRecord {
        OutRecord {
            topic: Arc::clone(&self.epoch.topic),
            partition: Some(self.epoch.partition),
            key: Some(Bytes::from(format!("{kind}{name}"))),
            value: value.map(Bytes::from),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }
}

/// `listing`: what becomes of the group's record.
async fn transact(
    writer: &mut dyn TransactionalWriter,
    group: &str,
    offsets: Vec<(TopicPartition, i64, String)>,
    listing: Option<OutRecord>,
) -> Result<(), KafkaError> {
    writer.begin().await?;
    if let Some(record) = listing {
        writer.send(vec![record]).await?;
    }
    writer.offsets(group, offsets).await?;
    writer.commit().await
}

#[async_trait]
impl Groups for Kafka {
    const IS_KAFKA: bool = true;
    type Version = Version;

    fn calls(&self) -> &Calls {
        &self.calls
    }

    async fn read(
        &self,
        name: &str,
        partitions: Option<&[TopicPartition]>,
        purpose: Purpose,
    ) -> Result<(GroupOffsets, Version), OffsetError> {
        let group = self.group(name).await?;
        let mut taken = 0;
        if purpose == Purpose::Write {
            let mut writer = group.writer.lock().await;
            taken = if writer.client.is_some() { writer.taken } else { self.take(name, &mut writer).await? };
        }
        let wanted = partitions.map(|partitions| {
            let mut wanted = partitions.to_vec();
            wanted.push(self.epoch.clone());
            wanted
        });
        let found = match timeout(SETTLED_MAX, group.reader.read(wanted.as_deref())).await {
            Ok(Err(KafkaError::Timeout(_))) | Err(_) if purpose == Purpose::Look => {
                self.take(name, &mut *group.writer.lock().await).await?;
                group.reader.read(wanted.as_deref()).await
            }
            Ok(found) => found,
            Err(_) => group.reader.read(wanted.as_deref()).await,
        };
        let mut held = GroupOffsets::default();
        let mut version = Version { taken, listed: false };
        for (partition, (offset, metadata)) in found.map_err(|error| self.error(error))? {
            if partition == self.epoch {
                held.epoch = u64::try_from(offset).map_err(|_| self.calls.damaged(&format!("the epoch of group {name}")))?;
                version.listed = metadata == LISTED;
            } else if (offset, metadata.as_str()) != (REMOVED_OFFSET, REMOVED) {
                held.offsets.insert(partition, StoredOffset { offset, metadata });
            }
        }
        Ok((held, version))
    }

    async fn write(&self, name: &str, held: &GroupOffsets, version: Version, change: &Change) -> Result<bool, OffsetError> {
        let group = self.group(name).await?;
        let emptied = !change.removed.is_empty() && change.removed.len() == held.offsets.len();
        let listed = !emptied && (version.listed || !change.set.is_empty());
        let listing = (listed != version.listed).then(|| self.record('g', name, listed.then(String::new)));
        let epoch = i64::try_from(change.epoch).map_err(|_| self.calls.damaged(&format!("the epoch of group {name}")))?;
        // With every commit, so that it is kept as long as they.
        let mut offsets = vec![(self.epoch.clone(), epoch, if listed { LISTED } else { "" }.to_owned())];
        offsets.extend(change.set.iter().map(|(partition, stored)| (partition.clone(), stored.offset, stored.metadata.clone())));
        offsets.extend(change.removed.iter().map(|partition| (partition.clone(), REMOVED_OFFSET, REMOVED.to_owned())));
        let mut writer = group.writer.lock().await;
        // It was taken again since the read: another process may have written in between.
        if writer.taken != version.taken {
            return Ok(false);
        }
        // Put back when it did its work: of one that failed or was left half way, the next one ends what is open.
        let Some(mut client) = writer.client.take() else { return Ok(false) };
        match transact(&mut *client, name, offsets, listing).await {
            Ok(()) => {
                writer.client = Some(client);
                Ok(true)
            }
            Err(KafkaError::Fenced(_)) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn list(&self) -> Result<Vec<String>, OffsetError> {
        Ok(self.follow().await?.groups.iter().cloned().collect())
    }

    async fn topic_id(&self, topic: &str) -> Result<Option<[u8; 16]>, OffsetError> {
        Ok(self.follow().await?.topics.get(topic).copied())
    }

    async fn note_topic(&self, topic: &str, id: [u8; 16]) -> Result<(), OffsetError> {
        let record = self.record('t', topic, Some(hex(id)));
        self.admin().await?;
        let producer = self.producer.get_or_try_init(|| kafka::producer(&self.config)).await.map_err(|error| self.error(error))?;
        let written = producer.send(vec![record]).await;
        written.into_iter().try_for_each(|written| written.map(drop)).map_err(|error| self.error(error))
    }
}
