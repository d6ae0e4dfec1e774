//! The registry's topic: read into memory, written in transactions.
//!
//! Reading. No replica follows the topic all the time: a request that finds the state older than `registry.freshness` asks for the end of
//! the topic and reads up to it first. So what another replica has answered is seen within that time, and a registry that nobody
//! uses costs nothing. While Kafka is away, requests are answered from what is known.
//!
//! Writing. There is no leader. Who writes holds the registry's transactional id: taking it fences whoever had it before and ends the
//! transaction that it left open. Under the id: read to the end, decide, write. Somebody who takes the id in between fences this
//! writer before its transaction is committed, and it begins again. So every decision was made on everything that is written before it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use parking_lot::{Mutex, RwLock};
use service_kit::kafka::{self, Isolation, KafkaConfig, KafkaError, OutRecord, OwnTopic, RangeReader, TopicPartition, TransactionalWriter};
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    decide::Decision,
    error::{RegistryError, Result},
    record::Record,
    state::State,
    values::Kept,
};
use crate::{config, connect::Connection, gate::Gate};

pub(super) struct Topic {
    pub(super) config: config::Registry,
    pub(super) kafka: KafkaConfig,
    pub(super) connection: Connection,
    pub(super) gate: Arc<Gate>,
    pub(super) tasks: TaskTracker,
    /// Who works long with it takes it along, and what is read meanwhile goes into a copy.
    pub(super) state: RwLock<Arc<State>>,
    /// Of those who do.
    pub(super) aside: Arc<Semaphore>,
    pub(super) reading: AsyncMutex<Reading>,
    /// When the end of the topic was last asked for, of those that were reached.
    pub(super) fresh_at: Mutex<Option<Instant>>,
    pub(super) writing: AsyncMutex<Writing>,
    pub(super) kept: Kept,
}

#[derive(Default)]
pub(super) struct Reading {
    reader: Option<Arc<dyn RangeReader>>,
    /// Offset to go on at.
    next: i64,
    /// There is such a topic.
    is_there: bool,
}

#[derive(Default)]
pub(super) struct Writing {
    writer: Option<Box<dyn TransactionalWriter>>,
    /// The topic is there and as it should be.
    checked: bool,
}

/// Longest wait for Kafka before a read is answered from what is known.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// Of the wait before the transactional id is taken again; the others get their turn meanwhile.
const PAUSE_MAX_MS: u128 = 80;
/// Between two looks whether a transaction that was committed can be read.
const VISIBLE_INTERVAL: Duration = Duration::from_millis(2);

impl Topic {
    fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.config.topic.as_str(), 0)
    }

    /// Answers from a state that is at most `registry.freshness` old, or from what is known while Kafka does not answer.
    pub(super) async fn read<T>(&self, answer: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        let now = Instant::now();
        let known = *self.fresh_at.lock();
        if known.is_none_or(|at| now.duration_since(at) > self.config.freshness) {
            let synced = match self.gate.broker() {
                Ok(()) => match timeout(if known.is_some() { STALE_AFTER } else { self.config.timeout }, self.sync(now)).await {
                    Ok(synced) => synced.map(drop).map_err(RegistryError::from),
                    Err(_) => Err(RegistryError::timeout(format!("topic {} was not read in time; try again", self.config.topic))),
                },
                Err(away) => Err(away.into()),
            };
            if let Err(error) = synced {
                if known.is_none() || error.code == TOO_MUCH {
                    return Err(error);
                }
                metrics::counter!("millrace_bridge_registry_stale_reads_total").increment(1);
                tracing::debug!(%error, "the registry answers from what it knows");
            }
        }
        answer(&self.state.read())
    }

    /// The same for what may take long: neither other requests nor the reading of the topic wait for it.
    pub(super) async fn read_aside<T: Send + 'static>(&self, answer: impl FnOnce(&State) -> Result<T> + Send + 'static) -> Result<T> {
        let Ok(Ok(turn)) = timeout(self.config.timeout, Arc::clone(&self.aside).acquire_owned()).await else {
            return Err(RegistryError::timeout("too many other schemas are being read and compared; try again"));
        };
        self.read(|_| Ok(())).await?;
        let state = Arc::clone(&self.state.read());
        let done = spawn_blocking(move || {
            // Also when nobody waits for it any more.
            let _turn = turn;
            answer(&state)
        });
        done.await.map_err(|error| RegistryError::store(format!("the work broke off: {error}")))?
    }

    /// Answers from what is written now.
    pub(super) async fn read_now<T>(&self, answer: impl FnOnce(&State) -> Result<T>) -> Result<T> {
        self.gate.broker()?;
        match timeout(self.config.timeout, self.sync(Instant::now())).await {
            Ok(synced) => synced?,
            Err(_) => return Err(RegistryError::timeout(format!("topic {} was not read in time; try again", self.config.topic))),
        };
        answer(&self.state.read())
    }

    /// Reads up to an end of the topic that was asked for after `since`; gives the offset behind it.
    async fn sync(&self, since: Instant) -> Result<i64, Failure> {
        let mut reading = self.reading.lock().await;
        if self.fresh_at.lock().is_some_and(|at| at >= since) {
            // Somebody else has just done it.
            return Ok(reading.next);
        }
        let asked_at = Instant::now();
        match self.read_on(&mut reading).await {
            Ok(()) => {
                *self.fresh_at.lock() = Some(asked_at);
                Ok(reading.next)
            }
            Err(error) => {
                self.gate.suspect();
                Err(error)
            }
        }
    }

    async fn read_on(&self, reading: &mut Reading) -> Result<(), Failure> {
        let reader = match &reading.reader {
            Some(reader) => Arc::clone(reader),
            None => Arc::clone(reading.reader.insert(kafka::range_reader(&self.kafka, Isolation::ReadCommitted).await?)),
        };
        let partition = self.partition();
        let bounds = match reader.bounds(std::slice::from_ref(&partition)).await {
            Ok(bounds) => bounds.get(&partition).copied(),
            Err(KafkaError::UnknownTopic(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(bounds) = bounds else {
            // A broker that has just started may not know its topics yet: what is known stands. Who writes makes the topic anew where it is gone.
            if reading.is_there {
                return Err(KafkaError::Retryable(format!("the broker does not know topic {} for now", self.config.topic)).into());
            }
            self.observe();
            return Ok(());
        };
        reading.is_there = true;
        if bounds.latest < reading.next {
            tracing::warn!(topic = self.config.topic, "the registry's topic was made anew; reading it from its beginning");
            self.forget(reading);
        }
        let from = reading.next.max(bounds.earliest);
        if from >= bounds.latest {
            reading.next = reading.next.max(bounds.latest);
            return Ok(self.within_bound()?);
        }
        let mut chunks = reader.read(partition, from, bounds.latest);
        while let Some(chunk) = chunks.next().await {
            let mut guard = self.state.write();
            let state = Arc::make_mut(&mut guard);
            for record in chunk? {
                let Some(key) = &record.key else { continue };
                let applied = Record::parse(key, record.value.as_deref()).and_then(|said| state.apply(said, record.timestamp_ms));
                if let Err(reason) = applied {
                    metrics::counter!("millrace_bridge_registry_passed_over_records_total").increment(1);
                    tracing::warn!(
                        topic = self.config.topic,
                        offset = record.offset,
                        reason,
                        "a record of the registry's topic is passed over"
                    );
                }
                reading.next = record.offset + 1;
            }
            drop(guard);
            self.within_bound()?;
        }
        reading.next = bounds.latest;
        self.observe();
        Ok(())
    }

    fn forget(&self, reading: &mut Reading) {
        *self.state.write() = Arc::default();
        self.kept.clear();
        reading.next = 0;
    }

    fn within_bound(&self) -> Result<()> {
        let bytes = self.state.read().bytes;
        if bytes as u64 > self.config.bytes_max {
            return Err(RegistryError::new(
                TOO_MUCH,
                format!("the schemas need {bytes} bytes, more than registry.bytes_max = {}; raise it", self.config.bytes_max),
            ));
        }
        Ok(())
    }

    fn observe(&self) {
        let state = self.state.read();
        metrics::gauge!("millrace_bridge_registry_schemas").set(state.len() as f64);
        metrics::gauge!("millrace_bridge_registry_bytes").set(state.bytes as f64);
    }

    /// Decides on everything that is written, writes, and answers when this replica has read it.
    pub(super) async fn write<T, D>(self: &Arc<Self>, decide: D) -> Result<T>
    where
        T: Send + 'static,
        D: Fn(&State) -> Result<Decision<T>> + Send + Sync + 'static,
    {
        self.gate.broker()?;
        let (topic, decide) = (Arc::clone(self), Arc::new(decide));
        // A caller that goes away leaves no transaction open.
        let written = self.tasks.spawn(async move { topic.write_to_the_end(decide).await });
        written.await.map_err(|error| RegistryError::store(format!("the write broke off: {error}")))?
    }

    async fn write_to_the_end<T, D>(&self, decide: Arc<D>) -> Result<T>
    where
        T: Send + 'static,
        D: Fn(&State) -> Result<Decision<T>> + Send + Sync + 'static,
    {
        let started = Instant::now();
        let deadline = started + self.config.timeout;
        let Ok(mut writing) = timeout(self.config.timeout, self.writing.lock()).await else {
            return Err(RegistryError::timeout("other writes to the registry take too long; try again"));
        };
        let mut unknown: Option<Decision<T>> = None;
        loop {
            let error = match self.attempt(&mut writing, &decide, &mut unknown, deadline).await {
                Ok(answer) => {
                    metrics::histogram!("millrace_bridge_registry_write_seconds").record(started.elapsed().as_secs_f64());
                    return Ok(answer);
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Kafka(error)) => error,
            };
            // Whatever it was: a new writer under the same id ends what this one left. And the topic may be gone.
            writing.writer = None;
            writing.checked &= !matches!(error, KafkaError::UnknownTopic(_) | KafkaError::Retryable(_));
            let again = match &error {
                KafkaError::Fenced(_) => {
                    metrics::counter!("millrace_bridge_registry_fenced_total").increment(1);
                    true
                }
                KafkaError::OutcomeUnknown(_) | KafkaError::Fatal(_) | KafkaError::Conflict(_) | KafkaError::UnknownTopic(_) => true,
                other => other.retryable(),
            };
            if !again || Instant::now() >= deadline {
                return Err(match error {
                    KafkaError::Fenced(_) => RegistryError::timeout(format!(
                        "other replicas wrote to the registry all the time ({:?}); try again, or raise registry.timeout",
                        self.config.timeout
                    )),
                    other => other.into(),
                });
            }
            tracing::debug!(%error, "writing to the registry again");
            // Not in step with the others.
            let pause = uuid::Uuid::new_v4().as_u128() % PAUSE_MAX_MS;
            tokio::time::sleep(Duration::from_millis(u64::try_from(pause).unwrap_or_default())).await;
        }
    }

    async fn attempt<T, D>(
        &self,
        writing: &mut Writing,
        decide: &Arc<D>,
        unknown: &mut Option<Decision<T>>,
        deadline: Instant,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        D: Fn(&State) -> Result<Decision<T>> + Send + Sync + 'static,
    {
        if !writing.checked {
            self.ensure().await?;
            self.reading.lock().await.is_there = true;
            writing.checked = true;
        }
        let writer = match &mut writing.writer {
            Some(writer) => writer,
            none => none.insert(kafka::transactional_writer(&self.kafka, &self.config.transactional_id).await?),
        };
        let end = self.sync(Instant::now()).await?;
        // An earlier attempt of this request may have been committed after all.
        if let Some(earlier) = unknown.take_if(|earlier| self.state.read().holds(&earlier.records)) {
            return Ok(earlier.answer);
        }
        let (state, decide) = (Arc::clone(&self.state.read()), Arc::clone(decide));
        let decided = spawn_blocking(move || decide(&state)).await;
        let decision = decided.map_err(|error| RegistryError::store(format!("the decision broke off: {error}")))??;
        if decision.records.is_empty() {
            return Ok(decision.answer);
        }
        let out = |record: &Record| OutRecord {
            topic: self.config.topic.as_str().into(),
            partition: Some(0),
            key: Some(record.key().to_bytes()),
            value: record.value(),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let records: Vec<OutRecord> = decision.records.iter().map(out).collect();
        let bytes = self.state.read().bytes as u64
            + records.iter().filter_map(|one| one.value.as_ref()).map(|value| value.len() as u64).sum::<u64>();
        if bytes > self.config.bytes_max && records.iter().any(|one| one.value.is_some()) {
            let message =
                format!("the registry is full: registry.bytes_max = {}; raise it, or delete schemas for good", self.config.bytes_max);
            return Err(Failure::Final(RegistryError::store(message)));
        }
        let count = records.len() as i64;
        writer.begin().await?;
        if let Err(error) = writer.send(records).await {
            return Err(error.into());
        }
        if let Err(error) = writer.commit().await {
            // A repeated commit may have been told that it is fenced, or anything, after the first one was taken.
            *unknown = Some(decision);
            return Err(error.into());
        }
        // Behind the records stands at least the mark of their commit.
        while self.sync(Instant::now()).await? < end + count + 1 {
            if Instant::now() >= deadline {
                let message = "it is written, and cannot be read here yet; repeat the request to see it".to_owned();
                return Err(Failure::Final(RegistryError::timeout(message)));
            }
            tokio::time::sleep(VISIBLE_INTERVAL).await;
        }
        Ok(decision.answer)
    }

    /// Creates the topic where it is missing; refuses one that would lose schemas.
    async fn ensure(&self) -> Result<(), Failure> {
        let topic = OwnTopic {
            name: &self.config.topic,
            setting: "registry.topic",
            partitions: 1,
            replication: match self.config.replication_factor {
                0 => -1,
                factor => i32::from(factor),
            },
            config: &[("cleanup.policy", "compact")],
            policy: Some("compact"),
        };
        let made = kafka::own_topic(self.connection.admin().await?.as_ref(), &topic, self.config.timeout).await;
        made.map_err(|error| match error {
            KafkaError::Invalid(message) => Failure::Final(RegistryError::store(message)),
            error => error.into(),
        })
    }
}

/// Of a state that does not fit; never answered from.
const TOO_MUCH: u32 = 500;

enum Failure {
    Final(RegistryError),
    /// Maybe to be tried again with a new writer.
    Kafka(KafkaError),
}

impl From<Failure> for RegistryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Final(error) => error,
            Failure::Kafka(error) => error.into(),
        }
    }
}

impl From<KafkaError> for Failure {
    fn from(error: KafkaError) -> Self {
        Failure::Kafka(error)
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Failure::Final(error)
    }
}
