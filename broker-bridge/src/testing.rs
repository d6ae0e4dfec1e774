//! A Kafka in memory behind the client traits, for unit tests: one broker, what is needed of it, and faults on request.

mod transactional;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use parking_lot::Mutex;
use service_kit::{
    kafka::{
        Admin, Bounds, BrokerView, ClusterView, ConfigEntry, GROUP_LOG, GroupMemberView, GroupView, Isolation, KafkaConfig, KafkaError,
        Member, OutRecord, PartitionView, Producer, RangeReader, Record, TopicPartition, TopicView, TransactionalWriter, Written,
    },
    offsets::{GroupOffsets, OffsetCommit, OffsetError, OffsetStore, StoredOffset},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    codec::CODECS,
    config,
    connect::Connection,
    gate::Gate,
    lag::{Lag, Watch, now_ms},
    produce::{Broker, Keyed, Produce},
    registry::Registry,
    session::{Clients, Deps, Directory, Sessions, Settings},
    topics::Topics,
    transaction::{Transactions, Writers},
};

/// Cheap to clone; clones are the same cluster.
#[derive(Clone, Default)]
pub(crate) struct FakeKafka(Arc<Cluster>);

#[derive(Default)]
struct Cluster {
    topics: Mutex<BTreeMap<String, Vec<Vec<Record>>>>,
    failures: Mutex<HashMap<String, KafkaError>>,
    hang: AtomicBool,
    /// Calls that have met with no answer.
    hung: AtomicUsize,
    /// How many topics were made; the last one's number is its id.
    made: AtomicUsize,
    ids: Mutex<BTreeMap<String, usize>>,
    /// Said of every topic.
    config: Mutex<BTreeMap<String, String>>,
    lookups: AtomicUsize,
    groups: Mutex<BTreeMap<String, Group>>,
    /// What Kafka notes of commits, as it does.
    group_log: Mutex<Vec<Record>>,
    /// Partitions that members of groups do not have now: others have them.
    away: Mutex<BTreeSet<TopicPartition>>,
    /// Something was written, or moved.
    changed: Notify,
    polls: AtomicUsize,
    /// How often somebody asked for a group's committed offsets.
    questions: AtomicUsize,
    /// The next poll of a member is told that it is fenced.
    fenced: AtomicBool,
    /// A broker answers, and nobody can join a group.
    without_coordinator: AtomicBool,
    transactional: transactional::Transactional,
}

#[derive(Default)]
struct Group {
    committed: BTreeMap<TopicPartition, i64>,
    /// Of the last commits; empty where there is none.
    metadata: BTreeMap<TopicPartition, String>,
    members: Vec<GroupMemberView>,
}

impl FakeKafka {
    pub(crate) fn with_topic(name: &str, partitions: usize) -> Self {
        let kafka = Self::default();
        kafka.add_topic(name, partitions);
        kafka
    }

    pub(crate) fn add_topic(&self, name: &str, partitions: usize) {
        let mut topics = self.0.topics.lock();
        if !topics.contains_key(name) {
            let id = self.0.made.fetch_add(1, Ordering::Relaxed);
            self.0.ids.lock().insert(name.to_owned(), id);
        }
        topics.entry(name.to_owned()).or_default().resize_with(partitions, Vec::new);
    }

    pub(crate) fn remove_topic(&self, name: &str) {
        self.0.topics.lock().remove(name);
    }

    pub(crate) fn set_topic_config(&self, key: &str, value: &str) {
        self.0.config.lock().insert(key.to_owned(), value.to_owned());
    }

    /// Writes records whose values are their offsets.
    pub(crate) fn append(&self, topic: &str, partition: usize, count: usize) {
        let mut topics = self.0.topics.lock();
        let log = &mut topics.get_mut(topic).unwrap()[partition];
        for _ in 0..count {
            let offset = log.len() as i64;
            log.push(Record { offset, timestamp_ms: 1_000 + offset, key: None, value: Some(offset.to_string().into()), headers: vec![] });
        }
        drop(topics);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn append_value(&self, topic: &str, value: &[u8]) {
        let mut topics = self.0.topics.lock();
        let log = &mut topics.get_mut(topic).unwrap()[0];
        let offset = log.len() as i64;
        log.push(Record { offset, timestamp_ms: 0, key: None, value: Some(Bytes::copy_from_slice(value)), headers: vec![] });
        drop(topics);
        self.0.changed.notify_waiters();
    }

    /// Ends a transaction: an offset that no reader gets a record for.
    pub(crate) fn append_marker(&self, topic: &str) {
        let mut topics = self.0.topics.lock();
        let log = &mut topics.get_mut(topic).unwrap()[0];
        let offset = log.len() as i64;
        log.push(Record { offset, timestamp_ms: 0, key: Some(MARKER), value: None, headers: vec![] });
        drop(topics);
        self.0.changed.notify_waiters();
    }

    /// Values of a topic, by partition and offset.
    pub(crate) fn values(&self, topic: &str) -> Vec<String> {
        let topics = self.0.topics.lock();
        let records = topics.get(topic).into_iter().flatten().flatten();
        records
            .filter(|record| !is_marker(record))
            .map(|record| String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap())
            .collect()
    }

    pub(crate) fn records(&self, topic: &str) -> Vec<Record> {
        self.0.topics.lock()[topic].iter().flatten().filter(|record| !is_marker(record)).cloned().collect()
    }

    /// The next record with this value is refused.
    pub(crate) fn fail_next_produce(&self, value: &str, error: KafkaError) {
        self.0.failures.lock().insert(value.to_owned(), error);
    }

    /// Neither records nor questions for log sizes are answered.
    pub(crate) fn hang(&self) {
        self.0.hang.store(true, Ordering::Relaxed);
    }

    /// What hung goes on.
    pub(crate) fn resume(&self) {
        self.0.hang.store(false, Ordering::Relaxed);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn hung(&self) -> usize {
        self.0.hung.load(Ordering::Relaxed)
    }

    /// How often a topic was asked for.
    pub(crate) fn lookups(&self) -> usize {
        self.0.lookups.load(Ordering::Relaxed)
    }

    /// The next poll fails as if another static member had come.
    pub(crate) fn fence(&self) {
        self.0.fenced.store(true, Ordering::Relaxed);
    }

    pub(crate) fn set_without_coordinator(&self, without: bool) {
        self.0.without_coordinator.store(without, Ordering::Relaxed);
    }

    /// How often somebody asked for a group's committed offsets.
    pub(crate) fn questions(&self) -> usize {
        self.0.questions.load(Ordering::Relaxed)
    }

    /// How often members polled.
    pub(crate) fn polls(&self) -> usize {
        self.0.polls.load(Ordering::Relaxed)
    }

    pub(crate) fn committed(&self, group: &str) -> BTreeMap<TopicPartition, i64> {
        self.0.groups.lock().get(group).map(|group| group.committed.clone()).unwrap_or_default()
    }

    pub(crate) fn set_committed(&self, group: &str, offsets: &[(TopicPartition, i64)]) {
        self.0.groups.lock().entry(group.to_owned()).or_default().committed.extend(offsets.iter().cloned());
        self.note_metadata(group, offsets, "");
        let now = now_ms();
        offsets.iter().for_each(|(partition, offset)| self.note_commit(group, partition, Some(*offset), now));
    }

    fn note_metadata(&self, group: &str, offsets: &[(TopicPartition, i64)], metadata: &str) {
        let mut groups = self.0.groups.lock();
        let noted = &mut groups.entry(group.to_owned()).or_default().metadata;
        noted.extend(offsets.iter().map(|(partition, _)| (partition.clone(), metadata.to_owned())));
    }

    /// Writes a commit of some time, or `None` for its end, into the log of groups alone.
    pub(crate) fn note_commit(&self, group: &str, partition: &TopicPartition, offset: Option<i64>, timestamp_ms: i64) {
        let string = |text: &str| [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat();
        let key = [&1i16.to_be_bytes()[..], &string(group), &string(&partition.topic), &partition.partition.to_be_bytes()].concat();
        let value = offset.map(|offset| {
            [&3i16.to_be_bytes()[..], &offset.to_be_bytes(), &(-1i32).to_be_bytes(), &string(""), &timestamp_ms.to_be_bytes()].concat()
        });
        let mut log = self.0.group_log.lock();
        let offset = log.len() as i64;
        log.push(Record { offset, timestamp_ms, key: Some(key.into()), value: value.map(Bytes::from), headers: vec![] });
    }

    /// A rebalance gives the partition to somebody else, or back.
    pub(crate) fn set_away(&self, partition: &TopicPartition, away: bool) {
        let mut all = self.0.away.lock();
        if away {
            all.insert(partition.clone())
        } else {
            all.remove(partition)
        };
    }

    pub(crate) fn is_away(&self, partition: &TopicPartition) -> bool {
        self.0.away.lock().contains(partition)
    }

    pub(crate) fn forget_committed(&self, group: &str) {
        self.0.groups.lock().remove(group);
    }

    pub(crate) fn set_members(&self, group: &str, members: Vec<GroupMemberView>) {
        self.0.groups.lock().entry(group.to_owned()).or_default().members = members;
    }

    /// Topics with their records, and groups with their offsets, as text.
    pub(crate) fn everything(&self) -> String {
        let groups = self.0.groups.lock().iter().map(|(name, group)| format!("{name}: {:?}", group.committed)).collect::<Vec<_>>();
        format!("{:?} {groups:?}", self.0.topics.lock())
    }

    pub(crate) fn connection(&self) -> Connection {
        Connection::made(Arc::new(self.clone()))
    }

    async fn answering(&self) {
        loop {
            let changed = self.0.changed.notified();
            if !self.0.hang.load(Ordering::Relaxed) {
                return;
            }
            self.0.hung.fetch_add(1, Ordering::Relaxed);
            changed.await;
        }
    }

    fn log(&self, partition: &TopicPartition) -> Vec<Record> {
        if *partition.topic == *GROUP_LOG {
            return self.0.group_log.lock().clone();
        }
        self.0.topics.lock().get(&*partition.topic).and_then(|logs| logs.get(partition.partition as usize)).cloned().unwrap_or_default()
    }
}

pub(crate) fn gate() -> Arc<Gate> {
    Arc::new(Gate::new(CancellationToken::new()))
}

pub(crate) fn topics(kafka: &FakeKafka) -> Topics {
    topics_with(kafka, &MemoryOffsets::default())
}

pub(crate) fn topics_with(kafka: &FakeKafka, store: &MemoryOffsets) -> Topics {
    Topics::new(kafka.connection(), gate(), Arc::new(store.clone()), config::Topics::default())
}

pub(crate) fn produce(kafka: &FakeKafka) -> Produce {
    produce_with(kafka, config::Produce::default())
}

pub(crate) fn produce_with(kafka: &FakeKafka, config: config::Produce) -> Produce {
    let (keyed, tasks) = (keyed(kafka, "test", &config), TaskTracker::new());
    Produce::new(Arc::new(kafka.clone()), keyed, topics(kafka), gate(), config, tasks)
}

/// One replica's.
pub(crate) fn keyed(kafka: &FakeKafka, replica: &str, config: &config::Produce) -> Keyed {
    Keyed::new(Arc::new(kafka.clone()), replica, topics(kafka), gate(), config.clone(), TaskTracker::new())
}

pub(crate) fn transactions(kafka: &FakeKafka) -> Transactions {
    Transactions::new(Arc::new(kafka.clone()), topics(kafka), gate(), "test".into(), config::Transactions::default())
}

pub(crate) fn registry(kafka: &FakeKafka) -> Registry {
    Registry::new(config::Registry::default(), KafkaConfig::new("nowhere:1"), kafka.connection(), gate(), TaskTracker::new())
}

#[async_trait]
impl Writers for FakeKafka {
    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        transactional::writer(self, transactional_id).await
    }
}

pub(crate) fn lag(kafka: &FakeKafka, store: MemoryOffsets) -> Lag {
    let store: Arc<dyn OffsetStore> = Arc::new(store);
    let watch = Watch::new(kafka.connection(), Arc::new(kafka.clone()), Arc::clone(&store), "_offsets", config::Monitor::default());
    Lag::new(kafka.connection(), store, gate(), watch)
}

/// Of a session that begins with the first record and commits when it is told.
pub(crate) fn settings() -> Settings {
    Settings {
        codec: &CODECS[0],
        auto_commit: false,
        auto_offset_reset: "earliest".to_owned(),
        isolation: Isolation::ReadUncommitted,
        fetch_min_bytes: 1,
        request_timeout: Duration::from_secs(1),
        acknowledged: None,
    }
}

pub(crate) fn sessions(kafka: &FakeKafka, store: &MemoryOffsets, config: config::Consume) -> Sessions {
    sessions_in(None, kafka, store, config)
}

pub(crate) fn sessions_in(directory: Option<Directory>, kafka: &FakeKafka, store: &MemoryOffsets, config: config::Consume) -> Sessions {
    Sessions::new(Deps {
        clients: Arc::new(kafka.clone()),
        kafka: kafka.connection(),
        store: Arc::new(store.clone()),
        topics: topics_with(kafka, store),
        produce: produce(kafka),
        gate: gate(),
        config,
        tasks: TaskTracker::new(),
        shutdown: CancellationToken::new(),
        held_bytes: 0.into(),
        freed: Notify::new(),
        sessions: 0.into(),
        directory,
        window_records: 0.into(),
    })
}

#[async_trait]
impl Producer for FakeKafka {
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<Written, KafkaError>> {
        self.answering().await;
        let append = move |kafka: &FakeKafka| {
            let mut topics = kafka.0.topics.lock();
            let results = records.into_iter().map(|record| {
                let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
                if let Some(error) = kafka.0.failures.lock().remove(&value) {
                    return Err(error);
                }
                let partition = record.partition.unwrap_or(0);
                let log = &mut topics.get_mut(&*record.topic).unwrap()[partition as usize];
                let offset = log.len() as i64;
                let headers = record.headers.into_iter().map(|(key, value)| (key, Some(value))).collect();
                let now = if record.topic.starts_with('_') { now_ms() } else { 0 };
                log.push(Record {
                    offset,
                    timestamp_ms: record.timestamp_ms.unwrap_or(now),
                    key: record.key,
                    value: record.value,
                    headers,
                });
                Ok(Written { partition, offset })
            });
            let results = results.collect();
            drop(topics);
            kafka.0.changed.notify_waiters();
            results
        };
        self.call(append).await
    }

    async fn flush(&self, _timeout: Duration) -> Result<(), KafkaError> {
        Ok(())
    }
}

#[async_trait]
impl Admin for FakeKafka {
    async fn cluster(&self) -> Result<ClusterView, KafkaError> {
        Ok(ClusterView {
            id: Some("fake".into()),
            controller: Some(1),
            brokers: vec![BrokerView { id: 1, host: "localhost".into(), port: 9092 }],
        })
    }

    async fn topics(&self) -> Result<Vec<TopicView>, KafkaError> {
        let topics = self.0.topics.lock();
        let view = |(name, logs): (&String, &Vec<Vec<Record>>)| TopicView {
            name: name.clone(),
            partitions: (0..logs.len())
                .map(|id| PartitionView { id: id as i32, leader: Some(1), replicas: vec![1], isr: vec![1] })
                .collect(),
        };
        let groups = (GROUP_LOG.to_owned(), vec![Vec::new()]);
        let has_groups = !self.0.group_log.lock().is_empty();
        Ok(topics.iter().map(view).chain(has_groups.then(|| view((&groups.0, &groups.1)))).collect())
    }

    async fn topic(&self, name: &str) -> Result<TopicView, KafkaError> {
        self.0.lookups.fetch_add(1, Ordering::Relaxed);
        Admin::topics(self).await?.into_iter().find(|topic| topic.name == name).ok_or_else(|| KafkaError::UnknownTopic(name.into()))
    }

    async fn topic_config(&self, _name: &str) -> Result<Vec<ConfigEntry>, KafkaError> {
        let entry =
            |name: &str, value: &str| ConfigEntry { name: name.into(), value: Some(value.into()), is_default: true, is_sensitive: false };
        let set = self.0.config.lock();
        Ok(std::iter::once(entry("retention.ms", "604800000")).chain(set.iter().map(|(name, value)| entry(name, value))).collect())
    }

    async fn topic_configs(&self, names: &[String]) -> Result<BTreeMap<String, Vec<ConfigEntry>>, KafkaError> {
        let mut found = BTreeMap::new();
        for name in names {
            found.insert(name.clone(), self.topic_config(name).await?);
        }
        Ok(found)
    }

    async fn topic_id(&self, name: &str) -> Result<Option<[u8; 16]>, KafkaError> {
        Ok(self.0.ids.lock().get(name).map(|id| (*id as u128).to_be_bytes()))
    }

    async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        _: i32,
        _: &BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), KafkaError> {
        if self.0.topics.lock().contains_key(name) {
            return Err(KafkaError::AlreadyExists(name.into()));
        }
        if !validate_only {
            self.add_topic(name, partitions as usize);
        }
        Ok(())
    }

    async fn delete_topic(&self, name: &str) -> Result<(), KafkaError> {
        self.0.topics.lock().remove(name).map(drop).ok_or_else(|| KafkaError::UnknownTopic(name.into()))
    }

    async fn groups(&self) -> Result<Vec<GroupView>, KafkaError> {
        let groups = self.0.groups.lock();
        let view = |(id, group): (&String, &Group)| GroupView {
            id: id.clone(),
            state: if group.members.is_empty() { "Empty" } else { "Stable" }.into(),
            protocol: "range".into(),
            protocol_type: "consumer".into(),
            members: group.members.clone(),
        };
        Ok(groups.iter().map(view).collect())
    }

    async fn committed(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, (i64, String)>, KafkaError> {
        self.0.questions.fetch_add(1, Ordering::Relaxed);
        let mut committed = FakeKafka::committed(self, group);
        if let Some(partitions) = partitions {
            committed.retain(|partition, _| partitions.contains(partition));
        }
        let noted = self.0.groups.lock().get(group).map(|group| group.metadata.clone()).unwrap_or_default();
        let with = |(partition, offset)| {
            let metadata = noted.get(&partition).cloned().unwrap_or_default();
            (partition, (offset, metadata))
        };
        Ok(committed.into_iter().map(with).collect())
    }

    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64, String)]) -> Result<(), KafkaError> {
        let offsets: Vec<_> = offsets.iter().map(|(partition, offset, _)| (partition.clone(), *offset)).collect();
        self.set_committed(group, &offsets);
        Ok(())
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        let partitions = partitions.to_vec();
        let bounds = move |kafka: &FakeKafka| {
            let bounds = |partition: &TopicPartition| Bounds { earliest: 0, latest: kafka.log(partition).len() as i64 };
            partitions.iter().map(|partition| (partition.clone(), bounds(partition))).collect()
        };
        Ok(self.call(bounds).await)
    }

    async fn log_bytes(&self) -> Result<BTreeMap<i32, i64>, KafkaError> {
        self.answering().await;
        Ok(BTreeMap::from([(1, 1_000)]))
    }
}

#[async_trait]
impl RangeReader for FakeKafka {
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError> {
        Ok(Admin::topic(self, topic).await?.partitions.iter().map(|partition| partition.id).collect())
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        Admin::bounds(self, partitions).await
    }

    async fn offsets_at(&self, partitions: &[TopicPartition], timestamp_ms: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        let asked = partitions.to_vec();
        let at = move |kafka: &FakeKafka| -> BTreeMap<TopicPartition, i64> {
            let young = |record: &Record| record.timestamp_ms >= timestamp_ms;
            let first = |of: &TopicPartition| Some((of.clone(), kafka.log(of).into_iter().find(young)?.offset));
            asked.iter().filter_map(first).collect()
        };
        let mut found = self.call(at).await;
        // The end is another question.
        let ends = Admin::bounds(self, partitions).await?;
        for (partition, bounds) in ends {
            found.entry(partition).or_insert(bounds.latest);
        }
        Ok(found)
    }

    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let seen = |record: &Record| (from..until).contains(&record.offset) && !is_marker(record);
        let records: Vec<Record> = self.log(&partition).into_iter().filter(seen).collect();
        stream::iter(records.chunks(2).map(|chunk| Ok(chunk.to_vec())).collect::<Vec<_>>()).boxed()
    }
}

#[async_trait]
impl Clients for FakeKafka {
    async fn member(
        &self,
        group: &str,
        topics: &[String],
        settings: &Settings,
        _instance: Option<&str>,
    ) -> Result<Arc<dyn Member>, KafkaError> {
        if self.0.without_coordinator.load(Ordering::Relaxed) {
            return Err(KafkaError::Timeout("no coordinator".into()));
        }
        let member = FakeMember {
            kafka: self.clone(),
            group: group.to_owned(),
            topics: topics.iter().cloned().collect(),
            earliest: settings.auto_offset_reset == "earliest",
            positions: Mutex::default(),
            paused: Mutex::default(),
        };
        Ok(Arc::new(member))
    }

    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError> {
        Ok(match isolation {
            Isolation::ReadUncommitted => Arc::new(self.clone()),
            Isolation::ReadCommitted => Arc::new(transactional::Committed(self.clone())),
        })
    }
}

/// The only member of its group, as far as `FakeKafka::set_away` leaves it: gets all partitions with its first poll, or when they come back.
struct FakeMember {
    kafka: FakeKafka,
    group: String,
    topics: BTreeSet<String>,
    earliest: bool,
    positions: Mutex<BTreeMap<TopicPartition, i64>>,
    paused: Mutex<BTreeSet<TopicPartition>>,
}

const MARKER: Bytes = Bytes::from_static(b"\0marker");

fn is_marker(record: &Record) -> bool {
    record.key.as_ref() == Some(&MARKER)
}

impl FakeMember {
    fn join(&self) {
        let mut positions = self.positions.lock();
        positions.retain(|partition, _| !self.kafka.is_away(partition));
        let committed = self.kafka.committed(&self.group);
        for topic in &self.topics {
            let partitions = self.kafka.0.topics.lock().get(topic).map_or(0, Vec::len);
            for partition in 0..partitions {
                let partition = TopicPartition::new(topic.as_str(), partition as i32);
                if self.kafka.is_away(&partition) || positions.contains_key(&partition) {
                    continue;
                }
                let start = if self.earliest { 0 } else { self.kafka.log(&partition).len() as i64 };
                positions.insert(partition.clone(), committed.get(&partition).copied().unwrap_or(start));
            }
        }
    }

    fn take(&self, max: usize) -> Vec<(TopicPartition, Record)> {
        let mut found = Vec::new();
        for (partition, position) in self.positions.lock().iter_mut() {
            if self.paused.lock().contains(partition) {
                continue;
            }
            let end = self.kafka.log(partition).len() as i64;
            if *position > end {
                *position = if self.earliest { 0 } else { end };
            }
            for record in self.kafka.log(partition).into_iter().skip(*position as usize) {
                if found.len() == max {
                    return found;
                }
                *position = record.offset + 1;
                if is_marker(&record) {
                    continue;
                }
                found.push((partition.clone(), record));
            }
        }
        found
    }
}

#[async_trait]
impl Member for FakeMember {
    async fn poll(&self, max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        self.join();
        self.kafka.0.polls.fetch_add(1, Ordering::Relaxed);
        if self.kafka.0.fenced.swap(false, Ordering::Relaxed) {
            return Err(KafkaError::Fenced("by nobody".into()));
        }
        let until = Instant::now() + wait;
        loop {
            let changed = self.kafka.0.changed.notified();
            let found = self.take(max);
            if !found.is_empty() || tokio::time::timeout_at(until, changed).await.is_err() {
                return Ok(found);
            }
        }
    }

    async fn commit(&self, offsets: Vec<(TopicPartition, i64)>, metadata: &str) -> Result<(), KafkaError> {
        self.kafka.set_committed(&self.group, &offsets);
        self.kafka.note_metadata(&self.group, &offsets, metadata);
        Ok(())
    }

    async fn assignment(&self) -> Vec<TopicPartition> {
        // What was seen to be away has no position when it comes back.
        let mut positions = self.positions.lock();
        positions.retain(|partition, _| !self.kafka.is_away(partition));
        positions.keys().cloned().collect()
    }

    async fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.positions.lock().clone()
    }

    async fn set_paused(&self, partition: &TopicPartition, paused: bool) -> Result<(), KafkaError> {
        let mut all = self.paused.lock();
        if paused {
            all.insert(partition.clone())
        } else {
            all.remove(partition)
        };
        Ok(())
    }

    async fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), KafkaError> {
        match self.positions.lock().get_mut(partition) {
            Some(position) => *position = offset,
            None => return Err(KafkaError::Conflict("not assigned".into())),
        }
        Ok(())
    }

    async fn close(&self) {
        self.positions.lock().clear();
    }
}

/// The contract of offset stores, in memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryOffsets(Arc<Mutex<BTreeMap<String, GroupOffsets>>>, Arc<Mutex<HashMap<String, [u8; 16]>>>, Arc<AtomicBool>);

impl MemoryOffsets {
    /// Commits are not answered, until they are again.
    pub(crate) fn set_away(&self, away: bool) {
        self.2.store(away, Ordering::Relaxed);
    }
}

#[async_trait]
impl OffsetStore for MemoryOffsets {
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        let mut found = self.0.lock().get(group).cloned().unwrap_or_default();
        if let Some(partitions) = partitions {
            found.offsets.retain(|partition, _| partitions.contains(partition));
        }
        Ok(found)
    }

    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        if self.2.load(Ordering::Relaxed) {
            return Err(OffsetError::Away { path: "memory".into(), message: "as the test wants it".into() });
        }
        let mut groups = self.0.lock();
        let found = groups.entry(group.to_owned()).or_default();
        if found.epoch != epoch {
            return Err(OffsetError::Fenced { group: group.into(), given: epoch, current: found.epoch });
        }
        for OffsetCommit { partition, offset, .. } in offsets {
            if let Some(stored) = found.offsets.get(partition)
                && stored.offset > *offset
            {
                let (topic, partition) = (partition.topic.to_string(), partition.partition);
                return Err(OffsetError::Regressed { group: group.into(), topic, partition, stored: stored.offset, given: *offset });
            }
        }
        put(found, offsets);
        Ok(())
    }

    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        let mut groups = self.0.lock();
        let found = groups.entry(group.to_owned()).or_default();
        found.epoch += 1;
        put(found, offsets);
        Ok(found.epoch)
    }

    async fn groups(&self) -> Result<Vec<String>, OffsetError> {
        Ok(self.0.lock().iter().filter(|(_, found)| !found.offsets.is_empty()).map(|(group, _)| group.clone()).collect())
    }

    async fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        let mut groups = self.0.lock();
        let found = groups.entry(group.to_owned()).or_default();
        found.epoch += 1;
        Ok(!std::mem::take(&mut found.offsets).is_empty())
    }

    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        let known = self.1.lock().insert(topic.to_owned(), id);
        match known {
            Some(known) if known != id => self.forget_topic(topic).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError> {
        let mut forgotten = Vec::new();
        for (group, found) in self.0.lock().iter_mut() {
            let before = found.offsets.len();
            found.offsets.retain(|partition, _| *partition.topic != *topic);
            if found.offsets.len() < before {
                found.epoch += 1;
                forgotten.push(group.clone());
            }
        }
        Ok(forgotten)
    }
}

fn put(found: &mut GroupOffsets, offsets: &[OffsetCommit]) {
    for OffsetCommit { partition, offset, metadata } in offsets {
        found.offsets.insert(partition.clone(), StoredOffset { offset: *offset, metadata: metadata.clone() });
    }
}
