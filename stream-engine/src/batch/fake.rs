//! Kafka in memory, and a program that counts what happens to each record: for tests of the runner without a network.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use service_kit::kafka::{Bounds, Isolation, KafkaConfig, KafkaError, RangeReader, Record, TopicPartition};

use super::{BatchContext, BatchDefinition, BatchOutcome, Bounded, PartitionInput, Program, SourceKind, SourceSpec, Startup};
use crate::job::ListenerBus;
use crate::source::{Cluster, OpenStores, StoreAddress};
use service_kit::offsets::{OffsetError, OffsetStore};

#[derive(Default)]
struct Log {
    earliest: i64,
    /// `records[n]` has offset `n`; what is below `earliest` is gone.
    records: Vec<Record>,
}

/// A cluster of topics in memory. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct FakeKafka(Arc<Shared>);

#[derive(Default)]
struct Shared {
    logs: Mutex<BTreeMap<TopicPartition, Log>>,
    committed: Mutex<BTreeMap<(String, TopicPartition), i64>>,
    away: AtomicBool,
    refused: AtomicUsize,
    stores: OpenStores,
    /// How often each topic was deleted.
    generations: Mutex<BTreeMap<String, u8>>,
}

impl FakeKafka {
    pub(crate) fn with_topic(topic: &str, partitions: i32) -> Self {
        let kafka = Self::default();
        kafka.add_partitions(topic, 0..partitions);
        kafka
    }

    pub(crate) fn add_partitions(&self, topic: &str, partitions: std::ops::Range<i32>) {
        let mut logs = self.0.logs.lock();
        for partition in partitions {
            logs.entry(TopicPartition::new(topic, partition)).or_default();
        }
    }

    /// Appends a record whose value is `text`.
    pub(crate) fn send(&self, topic: &str, partition: i32, text: &str) {
        let mut logs = self.0.logs.lock();
        let log = logs.entry(TopicPartition::new(topic, partition)).or_default();
        let offset = log.records.len() as i64;
        let value = Some(Bytes::from(text.to_string()));
        log.records.push(Record { offset, timestamp_ms: offset * 10, key: None, value, headers: vec![] });
    }

    /// As retention does.
    pub(crate) fn remove_before(&self, topic: &str, partition: i32, offset: i64) {
        if let Some(log) = self.0.logs.lock().get_mut(&TopicPartition::new(topic, partition)) {
            log.earliest = offset;
        }
    }

    /// The topic is gone, until partitions are added again: to another topic of the same name.
    pub(crate) fn delete_topic(&self, topic: &str) {
        self.0.logs.lock().retain(|partition, _| &*partition.topic != topic);
        *self.0.generations.lock().entry(topic.into()).or_default() += 1;
    }

    /// Every call fails with a retryable error until it is back.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.away.store(away, Relaxed);
    }

    /// Calls that were refused while away.
    pub(crate) fn refused(&self) -> usize {
        self.0.refused.load(Relaxed)
    }

    pub(crate) fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        self.0.committed.lock().get(&(group.to_string(), TopicPartition::new(topic, partition))).copied()
    }

    pub(crate) fn set_committed(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        self.0.committed.lock().insert((group.to_string(), TopicPartition::new(topic, partition)), offset);
    }

    /// Every record there ever was.
    pub(crate) fn all(&self, topic: &str) -> BTreeMap<String, u64> {
        let logs = self.0.logs.lock();
        let all = logs.iter().filter(|(partition, _)| &*partition.topic == topic);
        all.flat_map(|(partition, log)| log.records.iter().map(move |record| (id(partition, record.offset), 1))).collect()
    }

    fn answer(&self) -> Result<(), KafkaError> {
        if self.0.away.load(Relaxed) {
            self.0.refused.fetch_add(1, Relaxed);
            return Err(KafkaError::Unreachable("fake:9092".into()));
        }
        Ok(())
    }
}

fn id(partition: &TopicPartition, offset: i64) -> String {
    format!("{partition}@{offset}")
}

#[async_trait]
impl RangeReader for FakeKafka {
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError> {
        self.answer()?;
        let logs = self.0.logs.lock();
        let found: Vec<i32> = logs.keys().filter(|partition| &*partition.topic == topic).map(|partition| partition.partition).collect();
        if found.is_empty() { Err(KafkaError::UnknownTopic(topic.into())) } else { Ok(found) }
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        self.answer()?;
        let logs = self.0.logs.lock();
        let bounds = |log: &Log| Bounds { earliest: log.earliest, latest: log.records.len() as i64 };
        Ok(partitions.iter().filter_map(|p| logs.get(p).map(|log| (p.clone(), bounds(log)))).collect())
    }

    async fn offsets_at(&self, partitions: &[TopicPartition], timestamp_ms: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        self.answer()?;
        let logs = self.0.logs.lock();
        let at = |log: &Log| {
            log.records.iter().find(|record| record.timestamp_ms >= timestamp_ms).map_or(log.records.len() as i64, |r| r.offset)
        };
        Ok(partitions.iter().filter_map(|p| logs.get(p).map(|log| (p.clone(), at(log)))).collect())
    }

    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let kafka = self.clone();
        // Two chunks, so that a batch is more than one.
        let middle = from + (until - from) / 2;
        stream::iter([(from, middle), (middle, until)])
            .filter(|(from, until)| std::future::ready(from < until))
            .map(move |(from, until)| {
                kafka.answer()?;
                let logs = kafka.0.logs.lock();
                let log = logs.get(&partition).ok_or_else(|| KafkaError::UnknownTopic(partition.topic.to_string()))?;
                Ok(log.records[from as usize..until as usize].to_vec())
            })
            .boxed()
    }
}

#[async_trait]
impl Cluster for FakeKafka {
    async fn reader(&self, _: &SourceSpec) -> Result<Arc<dyn RangeReader>, KafkaError> {
        self.answer()?;
        Ok(Arc::new(self.clone()))
    }

    async fn committed(
        &self,
        _: &SourceSpec,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        let committed = self.0.committed.lock();
        Ok(partitions.iter().filter_map(|p| committed.get(&(group.to_string(), p.clone())).map(|at| (p.clone(), *at))).collect())
    }

    async fn commit(&self, _: &SourceSpec, group: &str, offsets: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        self.answer()?;
        self.0.committed.lock().extend(offsets.iter().map(|(partition, offset)| ((group.to_string(), partition.clone()), *offset)));
        Ok(())
    }

    async fn topic_id(&self, _: &SourceSpec, topic: &str) -> Result<Option<[u8; 16]>, KafkaError> {
        self.answer()?;
        let there = self.0.logs.lock().keys().any(|partition| &*partition.topic == topic);
        let generation = self.0.generations.lock().get(topic).copied().unwrap_or_default();
        Ok(there.then_some([generation; 16]))
    }

    async fn offsets(&self, address: &StoreAddress) -> Result<Arc<dyn OffsetStore>, OffsetError> {
        self.0.stores.get(address).await
    }
}

pub(crate) fn spec(startup: Startup, bounded: Option<Bounded>) -> SourceSpec {
    SourceSpec {
        name: "logs".into(),
        kind: SourceKind::Kafka(KafkaConfig::new("fake:9092")),
        topics: vec!["t".into()],
        startup,
        bounded,
        isolation: Isolation::ReadUncommitted,
        group: None,
    }
}

/// An outside store with a fence: it outlives programs, and drops what it holds already.
#[derive(Clone, Default)]
pub(crate) struct FencedSink(Arc<Mutex<SinkState>>);

#[derive(Default)]
pub(crate) struct SinkState {
    /// How often each record has had its effect.
    pub(crate) effects: BTreeMap<String, u64>,
    fences: BTreeMap<String, u64>,
    pub(crate) batches: Vec<Arc<BatchDefinition>>,
    /// Running totals as the program kept them, by batch.
    pub(crate) totals: BTreeMap<u64, u64>,
    pub(crate) lasts: Vec<u64>,
}

impl FencedSink {
    pub(crate) fn state(&self) -> parking_lot::MutexGuard<'_, SinkState> {
        self.0.lock()
    }
}

/// Writes every record's id to the sink; its state is how many there were.
pub(crate) struct CountingProgram {
    pub(crate) spec: SourceSpec,
    pub(crate) sink: FencedSink,
    pub(crate) total: u64,
    pub(crate) fingerprint: serde_json::Value,
    /// Batch ids that fail, once for each time they are in the list.
    pub(crate) failures: Arc<Mutex<Vec<u64>>>,
    /// Fail after the sink has taken the batch, not before.
    pub(crate) fail_after_effect: bool,
    pub(crate) listeners: Arc<ListenerBus>,
    seen: BTreeSet<u64>,
}

impl CountingProgram {
    pub(crate) fn new(spec: SourceSpec, sink: &FencedSink) -> Self {
        Self {
            spec,
            sink: sink.clone(),
            total: 0,
            fingerprint: serde_json::json!({ "program": "count" }),
            failures: Arc::default(),
            fail_after_effect: false,
            listeners: Arc::default(),
            seen: BTreeSet::new(),
        }
    }

    fn fails(&self, id: u64) -> bool {
        let mut failures = self.failures.lock();
        failures.iter().position(|failing| *failing == id).map(|at| failures.remove(at)).is_some()
    }
}

#[async_trait]
impl Program for CountingProgram {
    fn sources(&self) -> Vec<SourceSpec> {
        vec![self.spec.clone()]
    }

    fn plan(&self) -> String {
        "count".into()
    }

    fn fingerprint(&self) -> serde_json::Value {
        self.fingerprint.clone()
    }

    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome> {
        let id_of_batch = batch.definition.id;
        // A batch that ran before in this process is announced as a replay.
        assert!(self.seen.insert(id_of_batch) || batch.replay);
        let mut rows = Vec::new();
        for mut input in input {
            let partition = input.range.topic_partition();
            while let Some(chunk) = input.records.next().await {
                rows.extend(chunk?.iter().map(|record| id(&partition, record.offset)));
            }
        }
        if !self.fail_after_effect && self.fails(id_of_batch) {
            anyhow::bail!("told to fail before batch {id_of_batch}");
        }
        self.total += rows.len() as u64;
        batch.output(0, "sink", "a test's sink");
        batch.output_started(0);
        {
            let mut sink = self.sink.state();
            let fence = batch.checkpoint_id.to_string();
            if sink.fences.get(&fence).is_none_or(|newest| *newest < id_of_batch) {
                sink.fences.insert(fence, id_of_batch);
                for row in &rows {
                    *sink.effects.entry(row.clone()).or_default() += 1;
                }
                sink.batches.push(batch.definition.clone());
            }
            sink.totals.insert(id_of_batch, self.total);
            if batch.last {
                sink.lasts.push(id_of_batch);
            }
        }
        if self.fail_after_effect && self.fails(id_of_batch) {
            anyhow::bail!("told to fail after batch {id_of_batch}");
        }
        let rows = rows.len() as u64;
        batch.output_ended(0, Ok(rows));
        Ok(BatchOutcome { rows_in: rows, rows_out: rows, ..BatchOutcome::default() })
    }

    fn listeners(&self) -> Arc<ListenerBus> {
        self.listeners.clone()
    }

    fn snapshot(&mut self) -> anyhow::Result<Bytes> {
        Ok(Bytes::copy_from_slice(&self.total.to_be_bytes()))
    }

    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()> {
        self.total = if snapshot.is_empty() { 0 } else { u64::from_be_bytes(snapshot.as_ref().try_into()?) };
        Ok(())
    }
}
