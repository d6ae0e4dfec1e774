//! Requests under a key (`Idempotency-Key`, `batch_id`): written once, whichever replica they come to and whoever dies over them.
//!
//! | promise | how |
//! |---|---|
//! | once | the records and a result record are one Kafka transaction: both are there, or neither |
//! | one answer | what is answered is that result, by every replica, within `produce.dedup_age` |
//! | whole or not at all | a request of which one record cannot be written is not written, and its key is free again |
//! | over restarts | the results are a topic (`produce.dedup_topic`), read before the first key is served |
//! | bounded | keyed requests at a time, records and age of the results, transactions: two ids a replica |
//!
//! Only readers at `read_committed` see it so: others see also what an attempt wrote that was aborted, and what follows it.
//!
//! # Who writes
//!
//! Replicas agree by the order of a second topic, the claims. Both topics have the same partitions; a key belongs to one of them.
//! A request whose key is free (`table`) does this:
//!
//! 1. It appends a claim with `seen`, the offset up to which its replica had read the claims when it found the key free.
//! 2. It reads the claims up to its own. The claim *stands* when no other claim of the key lies in `[seen, own)`. The first of several at
//!    the same time stands; who finds that its claim does not, waits for the other one's result.
//! 3. Under a claim that stands, it writes the records, learns their offsets, writes the result, and commits (`lane`).
//!
//! A key that another claim holds becomes free when
//!
//! - its result is read and older than the window, or
//! - its maker has said that it will not commit under it (a release), or
//! - its lease (`produce.dedup_lease`, by the reader's own clock) is over. Then the reader notes how far it has read the claims, takes all
//!   transactional ids of the holder's replica, which aborts or completes what these have open and fences whoever had them, and reads the results up
//!   to the end that the partition has after that. If the result is not there, it never will be.
//!
//! # Why it is once
//!
//! Say two transactions of one key commit within the window, under claims *a* and *b*, *a* first in the log. *b* stands, so *a* lies below the `seen`
//! of *b*: its maker had read *a* when it found the key free. It did not read the result of *a*, or it would have answered with it. *a* was not released,
//! as it was committed. So *a*'s writer was fenced, after *a* was read. A claim is bound to the incarnation of the writer that there was before the claim
//! was made (`Job::epoch`), and *a* was made before it was read: so the one that was fenced is the one that committed *a*, and it did so before.
//! Then the result was there when the results were read to their end, which is a contradiction. Clocks decide only how long one waits.
//!
//! What a replica forgets for want of room (`produce.dedup_records_max`) it forgets with the result: such a key is new, as one that is too old.

mod broker;
mod lane;
mod log;
mod record;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::try_join_all;
use parking_lot::Mutex;
use service_kit::{
    Latch,
    kafka::{KafkaError, OutRecord},
};
use tokio::{
    select,
    sync::{OnceCell, Semaphore, oneshot, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::broker::{Broker, KafkaBroker};
pub(super) use self::record::fingerprint;
use self::{
    lane::{Job, Lane, Verdict},
    log::Log,
    record::{Claim, Outcome, RUN_BYTES_MAX},
    table::{Holder, Look},
};
use super::{REASON_WAIT_MAX, Receipt, RecordOutcome};
use crate::{
    config,
    error::{BridgeError, Code, Result},
    gate::{Gate, Work},
    topics::Topics,
};

/// One writer for what is acknowledged in time, one for topics where something was not: they do not hold the others up.
const LANES: [Patience; 2] = [Patience { records: 3, claim: 3 }, Patience { records: 2, claim: 4 }];
/// How long a topic is left to the second writer.
const SLOW_FOR: Duration = Duration::from_secs(10);
/// Topics remembered as slow.
const SLOW_MAX: usize = 1_000;
/// How often everything is read and what is old is forgotten.
const TAIL: Duration = Duration::from_secs(1);
/// Of the wait after a claim that did not stand, where nobody else's does: not in step with the others.
const PAUSE_MAX_MS: u128 = 50;
/// The largest result record.
const RESULT_BYTES_MAX: usize = 1_000_000;

/// Shares of the lease: for the acknowledgement of records, and how old a claim may be before it is written under.
struct Patience {
    records: u32,
    claim: u32,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Keyed(Arc<Inner>);

struct Inner {
    broker: Arc<dyn Broker>,
    topics: Topics,
    gate: Arc<Gate>,
    config: config::Produce,
    tasks: TaskTracker,
    /// What the transactional ids begin with.
    replica: Arc<str>,
    /// Made with the first key: who uses none pays for nothing.
    opened: OnceCell<Opened>,
    /// `produce.keyed_requests_max`.
    room: Semaphore,
    /// Keys that requests of this process are about; one at a time each.
    turns: Mutex<HashMap<Bytes, watch::Sender<()>>>,
    /// Topics whose records were not acknowledged in time, and until when they are remembered.
    slow: Mutex<HashMap<Arc<str>, Instant>>,
}

struct Opened {
    log: Arc<Log>,
    lanes: Vec<Lane>,
}

impl Keyed {
    pub(crate) fn new(
        broker: Arc<dyn Broker>,
        replica: &str,
        topics: Topics,
        gate: Arc<Gate>,
        config: config::Produce,
        tasks: TaskTracker,
    ) -> Self {
        let room = Semaphore::new(config.keyed_requests_max.min(Semaphore::MAX_PERMITS));
        let (opened, turns, slow) = (OnceCell::new(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { broker, topics, gate, config, tasks, replica: replica.into(), opened, room, turns, slow }))
    }

    /// Reads what earlier processes and other replicas wrote, before the latch is released; and what they write, until the shutdown.
    /// Where nobody has sent keys yet, or nobody may, there is nothing to wait for.
    pub(crate) async fn watch(self, shutdown: CancellationToken, latch: Latch) {
        let inner = &self.0;
        let loaded = async {
            loop {
                let opened = match log::exists(&inner.config, inner.broker.as_ref()).await {
                    Ok(true) => inner.open().await.map(drop),
                    Ok(false) => return,
                    Err(error) => Err(error.into()),
                };
                match opened {
                    Ok(()) => return,
                    Err(error) if error.retryable() => tracing::debug!(%error, "reading the results of keyed requests again"),
                    Err(error) => return tracing::warn!(%error, "requests with a key are refused"),
                }
                sleep(TAIL).await;
            }
        };
        select! {
            () = shutdown.cancelled() => return,
            () = loaded => latch.release(),
        }
        loop {
            select! {
                () = shutdown.cancelled() => return,
                () = sleep(TAIL) => {}
            }
            if let Some(opened) = inner.opened.get()
                && let Err(error) = opened.log.tail().await
            {
                tracing::debug!(%error, "reading on the topics of keyed requests");
            }
        }
    }

    /// Writes the records, unless they were written under this key before. An error means that this request has written nothing and
    /// will not, with one exception: at `Code::Timeout` it is not known, and its repetition finds out.
    pub(super) async fn send(&self, key: &str, fingerprint: &str, records: Vec<OutRecord>) -> Result<Receipt> {
        let inner = &self.0;
        let deadline = Instant::now() + inner.config.timeout;
        let Ok(_permit) = inner.room.try_acquire() else {
            return Err(BridgeError::new(
                Code::TooMany,
                format!(
                    "{} requests with a key are under way (produce.keyed_requests_max); nothing was written, try again",
                    inner.config.keyed_requests_max
                ),
            ));
        };
        if records.len().saturating_mul(RUN_BYTES_MAX) > RESULT_BYTES_MAX {
            return Err(BridgeError::new(
                Code::TooLarge,
                format!(
                    "{} records are too many for one key, which may have {}; send smaller batches",
                    records.len(),
                    RESULT_BYTES_MAX / RUN_BYTES_MAX
                ),
            ));
        }
        let opened = inner.opened_by(deadline).await?;
        let key = Bytes::copy_from_slice(key.as_bytes());
        let partition = record::partition_of(&key, inner.config.dedup_partitions);
        let _turn = inner.turn(&key, deadline).await?;
        let _counted = Counted::new("millrace_bridge_keyed_requests");
        Request { inner, opened, key, partition, fingerprint: fingerprint.into(), records, deadline }.run().await
    }
}

impl Inner {
    async fn open(&self) -> Result<&Opened> {
        let open = async {
            let log = Arc::new(Log::open(&self.config, &self.broker).await?);
            // Before the ids are taken: what this place claimed below is over.
            let below = log.claims_end().await?;
            let lane = |(number, patience): (usize, &Patience)| {
                let id = log::transactional_id(&self.replica, number as u32);
                let lease = self.config.dedup_lease;
                let (records, claim) = (lease / patience.records, lease / patience.claim);
                let (broker, log) = (Arc::clone(&self.broker), Arc::clone(&log));
                Lane::start(id, broker, log, self.config.keyed_requests_max, records, claim)
            };
            let lanes = try_join_all(LANES.iter().enumerate().map(lane)).await?;
            log.table(|table| table.set_fenced(&self.replica, &below));
            log.load().await?;
            Ok::<_, BridgeError>(Opened { log, lanes })
        };
        self.opened.get_or_try_init(|| open).await.map_err(|error| {
            let (results, claims) = (&self.config.dedup_topic, log::claims_topic(&self.config));
            let message = format!(
                "requests with a key are not possible now, nothing was written: {error} (they need topics {results:?} and {claims:?}, and transactional \
                 ids that begin with {:?})",
                self.replica
            );
            // It is not a record that was late.
            BridgeError::new(if error.code == Code::Timeout { Code::KafkaRetriable } else { error.code }, message)
        })
    }

    async fn opened_by(self: &Arc<Self>, deadline: Instant) -> Result<&Opened> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        self.gate.broker()?;
        // In a task: who waits no longer must not make the others begin anew.
        let inner = Arc::clone(self);
        let opening = self.tasks.spawn(async move { inner.open().await.map(drop) });
        if let Ok(opened) = timeout_at(deadline, opening).await {
            opened.unwrap_or_else(|error| Err(BridgeError::new(Code::Internal, error.to_string())))?;
        }
        self.opened.get().ok_or_else(|| {
            BridgeError::new(
                Code::Unavailable,
                "the results of earlier requests are being read, and requests with a key wait for that; nothing was written, try again",
            )
        })
    }

    /// Waits for other requests of this process under the same key.
    async fn turn(&self, key: &Bytes, deadline: Instant) -> Result<Turn<'_>> {
        loop {
            let mut ended = match self.turns.lock().entry(key.clone()) {
                std::collections::hash_map::Entry::Occupied(other) => other.get().subscribe(),
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(watch::Sender::new(()));
                    return Ok(Turn { inner: self, key: key.clone() });
                }
            };
            // It ends with an error: the sender is dropped.
            if timeout_at(deadline, ended.changed()).await.is_err() {
                return Err(pending());
            }
        }
    }

    fn is_slow(&self, records: &[OutRecord]) -> bool {
        let mut slow = self.slow.lock();
        if slow.is_empty() {
            return false;
        }
        let now = Instant::now();
        slow.retain(|_, until| *until > now);
        records.iter().any(|record| slow.contains_key(&record.topic))
    }

    fn set_slow(&self, records: &[OutRecord], is_slow: bool) {
        let mut slow = self.slow.lock();
        if !is_slow && slow.is_empty() {
            return;
        }
        for record in records {
            if !is_slow {
                slow.remove(&record.topic);
            } else if slow.len() < SLOW_MAX {
                slow.insert(Arc::clone(&record.topic), Instant::now() + SLOW_FOR);
            }
        }
    }
}

/// The only request of this process about a key.
struct Turn<'a> {
    inner: &'a Inner,
    key: Bytes,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.inner.turns.lock().remove(&self.key);
    }
}

struct Request<'a> {
    inner: &'a Inner,
    opened: &'a Opened,
    key: Bytes,
    partition: i32,
    fingerprint: Arc<str>,
    records: Vec<OutRecord>,
    deadline: Instant,
}

/// What came of one claim.
enum Attempt {
    Answer(Receipt),
    /// To be looked at again.
    Again,
    /// Another claim came before.
    Lost,
}

impl Request<'_> {
    async fn run(&self) -> Result<Receipt> {
        let log = &self.opened.log;
        // From before the first look: whether a claim stands depends on every other one since.
        let _pin = Pin::new(log, &self.key, Instant::now());
        let mut is_lost = false;
        loop {
            match log.look(&self.key, self.partition) {
                Look::Done(outcome) => return self.answer(&outcome, true),
                Look::Held(holder) => {
                    if Instant::now() >= self.deadline {
                        return Err(pending());
                    }
                    self.wait(&holder).await?;
                    is_lost = false;
                }
                Look::Free { .. } if Instant::now() >= self.deadline => return Err(self.late().await),
                Look::Free { .. } if std::mem::take(&mut is_lost) => {
                    let pause = uuid::Uuid::new_v4().as_u128() % PAUSE_MAX_MS;
                    sleep(Duration::from_millis(u64::try_from(pause).unwrap_or_default())).await;
                }
                Look::Free { seen } => match self.attempt(seen).await? {
                    Attempt::Answer(receipt) => return Ok(receipt),
                    Attempt::Again => {}
                    Attempt::Lost => is_lost = true,
                },
            }
        }
    }

    fn answer(&self, outcome: &Outcome, replayed: bool) -> Result<Receipt> {
        if outcome.fingerprint != *self.fingerprint {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!(
                    "this batch id, or Idempotency-Key, was used for other records within the last {}s; give every batch its own id",
                    self.inner.config.dedup_age.as_secs()
                ),
            ));
        }
        Ok(Receipt { results: Arc::new(outcome.results()), replayed })
    }

    /// Looks what became of another one's claim, and ends it where that takes too long.
    async fn wait(&self, holder: &Holder) -> Result<()> {
        let log = &self.opened.log;
        let is_theirs = || matches!(log.look(&self.key, self.partition), Look::Held(now) if now.offset == holder.offset);
        let _counted = Counted::new("millrace_bridge_keyed_waiting");
        log.catch_up(self.partition).await?;
        if !is_theirs() {
            return Ok(());
        }
        if !log.is_fenced(self.partition, holder) {
            if !log.lease_left(holder).is_zero() {
                log.pause(holder).await;
                return Ok(());
            }
            log.fence(self.partition, holder).await?;
        }
        self.read_results(holder.offset).await
    }

    /// Of a claim under which nothing is committed any more: the key is done or free then.
    async fn read_results(&self, claim: i64) -> Result<()> {
        let log = &self.opened.log;
        log.read_results_to_the_end(self.partition, self.deadline).await?;
        log.table(|table| table.bury(&self.key, claim));
        Ok(())
    }

    async fn attempt(&self, seen: i64) -> Result<Attempt> {
        let (inner, log) = (self.inner, &self.opened.log);
        let _pass = inner.gate.enter(Work::Produce, self.records.len() as u64)?;
        log.room()?;
        if let Some(refused) = self.refused().await {
            return Ok(Attempt::Answer(refused));
        }
        let is_slow = inner.is_slow(&self.records);
        let Some(lane) = self.opened.lanes.get(usize::from(is_slow)) else { return Ok(Attempt::Again) };
        let (epoch, claimed_at) = (lane.epoch(), Instant::now());
        let lanes = LANES.len() as u32;
        let claim = Claim { replica: inner.replica.to_string(), lanes, seen };
        let claim = log.claim(&self.key, self.partition, claim).await.map_err(not_written)?;
        if let Err(error) = log.read_back(self.partition, claim + 1).await {
            self.release(claim);
            return Err(not_written_because(error));
        }
        if !log.table(|table| table.stood(&self.key, claim)) {
            metrics::counter!("millrace_bridge_keyed_claims_lost_total").increment(1);
            return Ok(Attempt::Lost);
        }
        let (verdict, told) = oneshot::channel();
        let (key, fingerprint, records) = (self.key.clone(), Arc::clone(&self.fingerprint), self.records.clone());
        let job = Job { key, partition: self.partition, claim, epoch, claimed_at, fingerprint, records, verdict };
        if let Err(error) = lane.push(job) {
            self.release(claim);
            return Err(not_written(error));
        }
        let Ok(verdict) = told.await else {
            // The lane is gone, with the process: somebody else ends the claim.
            return Err(pending());
        };
        match verdict {
            Verdict::Written(outcome) => {
                log.table(|table| table.finished(&self.key, Arc::clone(&outcome), Instant::now()));
                inner.set_slow(&self.records, false);
                self.answer(&outcome, false).map(Attempt::Answer)
            }
            Verdict::Void { was_slow } => {
                if was_slow {
                    inner.set_slow(&self.records, true);
                    inner.gate.suspect();
                }
                self.release(claim);
                Ok(Attempt::Again)
            }
            Verdict::Ended => {
                self.read_results(claim).await?;
                match log.look(&self.key, self.partition) {
                    Look::Done(outcome) => self.answer(&outcome, false).map(Attempt::Answer),
                    _ => {
                        self.release(claim);
                        Ok(Attempt::Again)
                    }
                }
            }
            Verdict::Failed(results) => {
                self.release(claim);
                let results = results.into_iter().map(|result| result.map_err(BridgeError::from));
                Ok(Attempt::Answer(whole(results.collect())))
            }
            Verdict::Impossible(error) => {
                inner.gate.suspect();
                self.release(claim);
                Err(not_written(error))
            }
            Verdict::Unknown(error) => {
                inner.gate.suspect();
                Err(BridgeError { message: format!("{error}; {}", pending().message), ..pending() })
            }
        }
    }

    /// What can be known before anything is written.
    async fn refused(&self) -> Option<Receipt> {
        let mut results = Vec::with_capacity(self.records.len());
        for record in &self.records {
            results.push(self.inner.topics.check(&record.topic, record.partition).await);
        }
        if results.iter().all(Result::is_ok) {
            return None;
        }
        let unwritten = service_kit::kafka::Written { partition: -1, offset: -1 };
        Some(whole(results.into_iter().map(|checked| checked.map(|()| unwritten)).collect()))
    }

    /// Nothing is written under this claim: the key is free at once, here and, as soon as they read it, elsewhere.
    fn release(&self, claim: i64) {
        self.opened.log.table(|table| table.bury(&self.key, claim));
        let (log, key, partition) = (Arc::clone(&self.opened.log), self.key.clone(), self.partition);
        drop(self.inner.tasks.spawn(async move { log.release(&key, partition, claim).await }));
    }

    async fn late(&self) -> BridgeError {
        let topic = self.records.first().map(|record| Arc::clone(&record.topic)).unwrap_or_default();
        let why = match timeout(REASON_WAIT_MAX, self.inner.topics.short_of_replicas(&topic)).await {
            Ok(Ok(Some(why))) => format!(": {why}"),
            _ => String::new(),
        };
        let bound = self.inner.config.timeout;
        BridgeError::new(
            Code::KafkaRetriable,
            format!("not acknowledged within {bound:?} (produce.timeout){why}; nothing was written, repeat the request under the same key"),
        )
    }
}

/// A request is written whole or not at all: the records that could have been are told why they were not.
fn whole(results: Vec<RecordOutcome>) -> Receipt {
    let cause = |final_only: bool| {
        let errors = results.iter().enumerate().filter_map(|(index, result)| result.as_ref().err().map(|error| (index, error)));
        errors.into_iter().find(|(_, error)| !final_only || !error.retryable()).map(|(index, error)| (index, error.clone()))
    };
    let Some((index, cause)) = cause(true).or_else(|| cause(false)) else { return Receipt { results: Arc::new(results), replayed: false } };
    let company = BridgeError::new(
        cause.code,
        format!("not written, as record {index} of the same request is not, and what has a key is written whole or not at all: {cause}"),
    );
    let told = |result: RecordOutcome| match result {
        Err(error) if !error.retryable() || cause.retryable() => Err(error),
        _ => Err(company.clone()),
    };
    Receipt { results: Arc::new(results.into_iter().map(told).collect()), replayed: false }
}

fn not_written(error: KafkaError) -> BridgeError {
    // Whoever has fenced the writer has not touched the request; there is a new writer for the next one.
    let fenced = matches!(error, KafkaError::Fenced(_));
    let error = BridgeError::from(error);
    not_written_because(if fenced { BridgeError { code: Code::KafkaRetriable, ..error } } else { error })
}

fn not_written_because(error: BridgeError) -> BridgeError {
    // A topic of its own may be unknown to a broker that has just started.
    let code = if matches!(error.code, Code::Timeout | Code::TopicNotFound) { Code::KafkaRetriable } else { error.code };
    BridgeError::new(code, format!("{error}; nothing was written, repeat the request under the same key"))
}

/// Somebody may be writing it.
fn pending() -> BridgeError {
    BridgeError::new(Code::Timeout, super::PENDING)
}

/// Keeps the entry of a key while a request is about it.
struct Pin<'a> {
    log: &'a Log,
    key: &'a Bytes,
}

impl<'a> Pin<'a> {
    fn new(log: &'a Log, key: &'a Bytes, now: Instant) -> Self {
        log.table(|table| table.pin(key, now));
        Self { log, key }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.log.table(|table| table.unpin(self.key));
    }
}

/// One more of what a gauge counts, until dropped.
struct Counted(&'static str);

impl Counted {
    fn new(gauge: &'static str) -> Self {
        metrics::gauge!(gauge).increment(1);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!(self.0).decrement(1);
    }
}
