//! Transactions of the Kafka in memory, and its slowness: every call can be held until a test lets it take effect, also when its caller
//! is gone by then, as a request that is on the wire.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::Ordering,
};

use tokio::sync::oneshot;

use super::*;

type Effect = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Transactional {
    /// How often each id was taken.
    epochs: Mutex<HashMap<String, u64>>,
    /// Offsets in open transactions, and in aborted ones.
    open: Mutex<BTreeMap<(String, usize), BTreeMap<i64, String>>>,
    aborted: Mutex<BTreeSet<(String, usize, i64)>>,
    /// Commits whose answer is lost: true where they take effect.
    lost_commits: Mutex<Vec<bool>>,
    refusal: Mutex<Option<KafkaError>>,
    /// Topics whose records are not acknowledged.
    slow: Mutex<BTreeSet<String>>,
    /// What is on the wire, where the test decides when it arrives.
    wire: Mutex<Option<Vec<Effect>>>,
}

impl FakeKafka {
    /// From now on every call waits for `deliver`.
    pub(crate) fn hold_calls(&self) {
        *self.0.transactional.wire.lock() = Some(Vec::new());
    }

    /// How many calls wait.
    pub(crate) fn held_calls(&self) -> usize {
        self.0.transactional.wire.lock().as_ref().map_or(0, Vec::len)
    }

    /// Lets one call take effect.
    pub(crate) fn deliver(&self, number: usize) {
        let effect = self.0.transactional.wire.lock().as_mut().unwrap().remove(number);
        effect();
    }

    /// The answer of the next commit is lost, and it takes effect or does not.
    pub(crate) fn lose_next_commit(&self, takes_effect: bool) {
        self.0.transactional.lost_commits.lock().push(takes_effect);
    }

    /// Every transactional id is refused.
    pub(crate) fn refuse_transactions(&self, error: KafkaError) {
        *self.0.transactional.refusal.lock() = Some(error);
    }

    /// Whether records of the topic are acknowledged, in transactions.
    pub(crate) fn set_slow(&self, topic: &str, is_slow: bool) {
        let mut slow = self.0.transactional.slow.lock();
        if is_slow {
            slow.insert(topic.to_owned())
        } else {
            slow.remove(topic)
        };
    }

    /// Values as readers at `read_committed` see them, by partition and offset.
    pub(crate) fn committed_values(&self, topic: &str) -> Vec<String> {
        let partitions = self.0.topics.lock()[topic].len();
        let of = |partition: usize| {
            let partition = TopicPartition::new(topic, partition as i32);
            self.committed_log(&partition, 0, i64::MAX)
        };
        let records = (0..partitions).flat_map(of);
        records.map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()).collect()
    }

    pub(super) async fn call<T: Send + 'static>(&self, effect: impl FnOnce(&FakeKafka) -> T + Send + 'static) -> T {
        let (done, arrived) = oneshot::channel();
        let kafka = self.clone();
        let at_once = {
            let mut wire = self.0.transactional.wire.lock();
            match &mut *wire {
                Some(wire) => {
                    wire.push(Box::new(move || drop(done.send(effect(&kafka)))));
                    None
                }
                None => Some(effect),
            }
        };
        match at_once {
            Some(effect) => effect(self),
            None => arrived.await.unwrap(),
        }
    }

    fn committed_end(&self, partition: &TopicPartition) -> i64 {
        let open = self.0.transactional.open.lock();
        let key = (partition.topic.to_string(), partition.partition as usize);
        let first = open.get(&key).and_then(|offsets| offsets.keys().next().copied());
        first.unwrap_or_else(|| self.log(partition).len() as i64)
    }

    fn committed_log(&self, partition: &TopicPartition, from: i64, until: i64) -> Vec<Record> {
        let end = self.committed_end(partition).min(until);
        let aborted = self.0.transactional.aborted.lock();
        let is_aborted = |record: &Record| aborted.contains(&(partition.topic.to_string(), partition.partition as usize, record.offset));
        let seen = |record: &Record| (from..end).contains(&record.offset) && !is_marker(record) && !is_aborted(record);
        self.log(partition).into_iter().filter(seen).collect()
    }

    /// Ends what an id left open.
    fn end_transaction(&self, id: &str, commit: bool) {
        let transactional = &self.0.transactional;
        let mut open = transactional.open.lock();
        for ((topic, partition), offsets) in open.iter_mut() {
            let own: Vec<i64> = offsets.iter().filter(|(_, owner)| *owner == id).map(|(offset, _)| *offset).collect();
            if own.is_empty() {
                continue;
            }
            for offset in own {
                offsets.remove(&offset);
                if !commit {
                    transactional.aborted.lock().insert((topic.clone(), *partition, offset));
                }
            }
            let mut topics = self.0.topics.lock();
            let log = &mut topics.get_mut(topic).unwrap()[*partition];
            let offset = log.len() as i64;
            log.push(Record { offset, timestamp_ms: 0, key: Some(MARKER), value: None, headers: vec![] });
        }
        open.retain(|_, offsets| !offsets.is_empty());
        drop(open);
        self.0.changed.notify_waiters();
    }
}

/// Takes the id.
pub(super) async fn writer(kafka: &FakeKafka, id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
    if let Some(error) = kafka.0.transactional.refusal.lock().clone() {
        return Err(error);
    }
    let name = id.to_owned();
    let epoch = kafka
        .call(move |kafka| {
            kafka.end_transaction(&name, false);
            let mut epochs = kafka.0.transactional.epochs.lock();
            let epoch = epochs.entry(name).or_default();
            *epoch += 1;
            *epoch
        })
        .await;
    Ok(Box::new(FakeWriter { kafka: kafka.clone(), id: id.to_owned(), epoch, failed: false }))
}

/// What it leaves open stays open until somebody takes its id, as when its process was killed.
struct FakeWriter {
    kafka: FakeKafka,
    id: String,
    epoch: u64,
    failed: bool,
}

fn check(kafka: &FakeKafka, id: &str, epoch: u64) -> Result<(), KafkaError> {
    match kafka.0.transactional.epochs.lock().get(id) {
        Some(current) if *current == epoch => Ok(()),
        _ => Err(KafkaError::Fenced(format!("\"{id}\" was taken by another writer"))),
    }
}

#[async_trait]
impl TransactionalWriter for FakeWriter {
    async fn begin(&mut self) -> Result<(), KafkaError> {
        self.failed = false;
        Ok(())
    }

    async fn queue(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        self.send(records).await
    }

    async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        let written = self.write(vec![records], Duration::from_secs(60)).await.pop().flatten().unwrap();
        written.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
    }

    async fn write(&mut self, batches: Vec<Vec<OutRecord>>, patience: Duration) -> Vec<Option<Vec<Result<Written, KafkaError>>>> {
        let is_slow = |batch: &Vec<OutRecord>| {
            let slow = self.kafka.0.transactional.slow.lock();
            self.kafka.0.hang.load(Ordering::Relaxed) || batch.iter().any(|record| slow.contains(&*record.topic))
        };
        let late: Vec<bool> = batches.iter().map(is_slow).collect();
        if late.contains(&true) {
            tokio::time::sleep(patience).await;
            self.failed = true;
        }
        let (id, epoch) = (self.id.clone(), self.epoch);
        let append = move |kafka: &FakeKafka, record: OutRecord| {
            check(kafka, &id, epoch)?;
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned();
            if let Some(error) = kafka.0.failures.lock().remove(&value) {
                return Err(error);
            }
            let partition = record.partition.unwrap_or(0);
            let mut open = kafka.0.transactional.open.lock();
            let mut topics = kafka.0.topics.lock();
            let log = &mut topics.get_mut(&*record.topic).unwrap()[partition as usize];
            let offset = log.len() as i64;
            let headers = record.headers.into_iter().map(|(key, value)| (key, Some(value))).collect();
            let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
            log.push(Record { offset, timestamp_ms, key: record.key, value: record.value, headers });
            open.entry((record.topic.to_string(), partition as usize)).or_default().insert(offset, id.clone());
            Ok(Written { partition, offset })
        };
        let all = move |kafka: &FakeKafka| -> Vec<_> {
            let batch = |(batch, late): (Vec<OutRecord>, bool)| {
                (!late).then(|| batch.into_iter().map(|record| append(kafka, record)).collect::<Vec<_>>())
            };
            batches.into_iter().zip(late).map(batch).collect()
        };
        let settled: Vec<Option<Vec<Result<Written, KafkaError>>>> = self.kafka.call(all).await;
        self.failed |= settled.iter().flatten().flatten().any(Result::is_err);
        settled
    }

    async fn offsets(&mut self, group: &str, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        Admin::commit(&self.kafka, group, &offsets).await
    }

    async fn commit(&mut self) -> Result<(), KafkaError> {
        if self.failed {
            return Err(KafkaError::Conflict("the transaction failed, abort it".into()));
        }
        let (id, epoch) = (self.id.clone(), self.epoch);
        let lost = self.kafka.0.transactional.lost_commits.lock().pop();
        let commit = move |kafka: &FakeKafka| {
            check(kafka, &id, epoch)?;
            if lost != Some(false) {
                kafka.end_transaction(&id, true);
            }
            match lost {
                Some(_) => Err(KafkaError::OutcomeUnknown("no answer".into())),
                None => Ok(()),
            }
        };
        self.kafka.call(commit).await
    }

    async fn abort(&mut self) -> Result<(), KafkaError> {
        let (id, epoch) = (self.id.clone(), self.epoch);
        let abort = move |kafka: &FakeKafka| {
            check(kafka, &id, epoch)?;
            kafka.end_transaction(&id, false);
            Ok(())
        };
        self.kafka.call(abort).await
    }
}

/// A reader at `read_committed`.
pub(super) struct Committed(pub(super) FakeKafka);

#[async_trait]
impl RangeReader for Committed {
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError> {
        self.0.partitions(topic).await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        let partitions = partitions.to_vec();
        let bounds = move |kafka: &FakeKafka| {
            let bounds = |partition: &TopicPartition| Bounds { earliest: 0, latest: kafka.committed_end(partition) };
            partitions.iter().map(|partition| (partition.clone(), bounds(partition))).collect()
        };
        Ok(self.0.call(bounds).await)
    }

    async fn offsets_at(&self, partitions: &[TopicPartition], timestamp_ms: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        self.0.offsets_at(partitions, timestamp_ms).await
    }

    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let kafka = self.0.clone();
        let read = async move { Ok(kafka.call(move |kafka| kafka.committed_log(&partition, from, until)).await) };
        stream::once(read).boxed()
    }
}

#[async_trait]
impl Broker for FakeKafka {
    async fn admin(&self) -> Result<Arc<dyn Admin>, KafkaError> {
        Ok(Arc::new(self.clone()))
    }

    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError> {
        Clients::reader(self, isolation).await
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, KafkaError> {
        Ok(Arc::new(self.clone()))
    }

    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        writer(self, transactional_id).await
    }
}
