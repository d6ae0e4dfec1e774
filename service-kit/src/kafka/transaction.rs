//! The transactional writer, on librdkafka (the older transaction protocol, TV1).
//!
//! That protocol cannot tell a late commit from a lost one, so after an unknown outcome the writer refuses everything:
//! only a new writer with the same transactional id, which fences this one, gives certainty.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;
use tokio::time::{timeout, timeout_at};
use tracing::debug;

use super::access::Need;
use super::context::{Watch, blocking, reach};
use super::lookup::{list, topics_of};
use super::producer::{Handle, UnderWay};
use super::properties::Role;
use super::{KafkaConfig, KafkaError, MemberIdentity, OutRecord, TopicPartition, TransactionalWriter, Written};

/// A writer whose transactions carry `transactional_id`; any earlier writer with the id is fenced, and what it left
/// open aborted, when this returns.
pub async fn transactional_writer(config: &KafkaConfig, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
    reach(config, "starting transactions").await?;
    let handle = Handle::with(config, Role::Transactional, |client| {
        client.set("transactional.id", transactional_id);
    })?;
    let writer = Writer {
        handle: Arc::new(handle),
        id: transactional_id.into(),
        timeout: config.api_timeout(),
        state: State::Idle,
        under_way: VecDeque::new(),
        aborted: None,
        topics: BTreeSet::new(),
        groups: HashMap::new(),
    };
    writer.init().await?;
    Ok(Box::new(writer))
}

struct Writer {
    handle: Arc<Handle>,
    id: Arc<str>,
    /// Bound of each step.
    timeout: Duration,
    state: State,
    /// Queued and not known to be acknowledged.
    under_way: VecDeque<UnderWay>,
    /// Why the transaction was aborted before the caller asked for it.
    aborted: Option<KafkaError>,
    /// Written to in this transaction.
    topics: BTreeSet<Arc<str>>,
    /// librdkafka gives the form of a group's name that the protocol needs only through a consumer.
    groups: HashMap<String, Arc<ConsumerGroupMetadata>>,
}

/// Calls that `queue` leaves unsettled: the broker has work while the next one is made.
const UNDER_WAY_MAX: usize = 1;
/// After a record's error the others are waited for so long before it is asked whether the transaction has failed.
const STUCK: Duration = Duration::from_millis(100);

enum State {
    Idle,
    Open,
    /// Something in the transaction failed; only `abort` remains.
    Failed(KafkaError),
    /// Drop the writer.
    Poisoned(KafkaError),
}

impl Writer {
    async fn init(&self) -> Result<(), KafkaError> {
        let handle = Arc::clone(&self.handle);
        let (id, bound) = (Arc::clone(&self.id), self.timeout);
        let need = Need { transactional_id: Some(self.id.to_string()), ..Need::default() };
        blocking(move || {
            let deadline = Instant::now() + bound;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let Err(error) = handle.producer.init_transactions(left.max(Duration::from_millis(1))) else {
                    handle.watch.on_success();
                    return Ok(());
                };
                let RdError::Transaction(native) = &error else {
                    return Err(handle.watch.explain(&error, "starting transactions"));
                };
                if !native.is_retriable() || left.is_zero() {
                    let what = format!("starting transactions of \"{id}\" within {bound:?}");
                    return Err(match handle.watch.explain_for(&error, &what, &need) {
                        KafkaError::Timeout(what) if !handle.watch.outage.reason().is_empty() => {
                            KafkaError::Unreachable(handle.watch.unreachable(&what))
                        }
                        other => other,
                    });
                }
                debug!(%error, id = &*id, "starting transactions again");
            }
        })
        .await
    }

    /// One blocking step on the native producer.
    async fn step<F>(&self, what: &'static str, need: Need, step: F) -> Result<(), StepError>
    where
        F: FnOnce(&Handle) -> Result<(), RdError> + Send + 'static,
    {
        let handle = Arc::clone(&self.handle);
        let id = Arc::clone(&self.id);
        let need = Need { transactional_id: Some(self.id.to_string()), ..need };
        let done = blocking(move || Ok(step(&handle).map_err(|error| StepError::new(&handle.watch, &error, what, &id, &need)))).await;
        done.unwrap_or_else(|error| Err(StepError { error, abort: false, retriable: false }))
    }

    fn expect_open(&self) -> Result<(), KafkaError> {
        match &self.state {
            State::Open => Ok(()),
            State::Idle => Err(KafkaError::Conflict("no transaction is open: begin one".into())),
            State::Failed(error) => Err(KafkaError::Conflict(format!("the transaction failed, abort it: {error}"))),
            State::Poisoned(error) => Err(error.clone()),
        }
    }

    /// Keeps what an error means for later calls, and gives it to the caller.
    fn fail(&mut self, error: KafkaError) -> KafkaError {
        self.state = if error.poisons() { State::Poisoned(error.clone()) } else { State::Failed(error.clone()) };
        error
    }

    /// What the transaction has to be allowed.
    fn written(&self) -> Need {
        let topics: Vec<&str> = self.topics.iter().map(|topic| &**topic).collect();
        Need { transactional_id: Some(self.id.to_string()), ..Need::topic("WRITE", &topics.join(", ")) }
    }

    fn remember(&mut self, records: &[OutRecord]) {
        for run in records.chunk_by(|a, b| a.topic == b.topic) {
            if !self.topics.contains(&run[0].topic) {
                self.topics.insert(Arc::clone(&run[0].topic));
            }
        }
    }

    /// A record's error may only be the echo of a writer that was fenced.
    fn fatal(&self) -> Option<KafkaError> {
        let (code, reason) = self.handle.producer.client().fatal_error()?;
        let what = format!("transactions of \"{}\" ({reason})", self.id);
        Some(match self.handle.watch.explain_code(code, &what, &self.written()) {
            fenced @ KafkaError::Fenced(_) => fenced,
            other => KafkaError::Fatal(other.to_string()),
        })
    }

    /// Waits until at most `left` of what was queued is unsettled.
    async fn settle(&mut self, left: usize) -> Result<(), KafkaError> {
        let mut left = left;
        let mut worst: Option<KafkaError> = None;
        while self.under_way.len() > left {
            // Taken out only when it is settled: a call that is dropped half way leaves it to the next one.
            let Some(first) = self.under_way.front_mut() else { break };
            let Ok(mut results) = timeout(STUCK, first.settled()).await else {
                self.abort_what_failed().await?;
                continue;
            };
            if results.iter().any(Result::is_err) {
                self.handle.confirm_unknown(first.records(), &mut results).await;
            }
            self.under_way.pop_front();
            // One record's error makes librdkafka give up the others: what cannot be mended by trying again is the cause.
            for error in results.into_iter().filter_map(Result::err) {
                if worst.as_ref().is_none_or(|worst| worst.retryable() && !error.retryable()) {
                    worst = Some(error);
                    left = 0;
                }
            }
        }
        match worst.or_else(|| self.aborted.clone()) {
            None => Ok(()),
            Some(error) => {
                let error = match self.fatal() {
                    Some(fatal) => fatal,
                    None if error.retryable() => self.cause().await.unwrap_or(error),
                    None => error,
                };
                Err(self.fail(error))
            }
        }
    }

    /// Where a record's error has failed the transaction, aborts it. librdkafka gives up what waits when it meets the error; what
    /// comes back from the broker after that, to be sent again, it keeps until the transaction is aborted or
    /// `delivery.timeout.ms` is over (seen with a record above `max.message.bytes`, and a request sent behind it).
    async fn abort_what_failed(&mut self) -> Result<(), KafkaError> {
        if self.aborted.is_none()
            && self.handle.has_failed()
            && let Some(cause) = self.cause().await
        {
            self.roll_back().await?;
            self.aborted = Some(cause);
        }
        Ok(())
    }

    /// Everything queued is settled when this returns.
    async fn roll_back(&mut self) -> Result<(), KafkaError> {
        let bound = self.timeout;
        match self.step("aborting a transaction", self.written(), move |handle| handle.producer.abort_transaction(bound)).await {
            Ok(()) => Ok(()),
            Err(failed) => {
                let error = match self.fatal() {
                    Some(fatal) => fatal,
                    None if failed.error.poisons() => failed.error,
                    None => KafkaError::OutcomeUnknown(format!("it is not known whether it was aborted: {}", failed.error)),
                };
                Err(self.fail(error))
            }
        }
    }

    /// Why the transaction failed, where its records were only purged for it. A transaction that is under way cannot be begun: librdkafka
    /// says what is wrong with it instead.
    async fn cause(&self) -> Option<KafkaError> {
        if self.aborted.is_some() {
            return self.aborted.clone();
        }
        let handle = Arc::clone(&self.handle);
        let what = format!("writing in a transaction of \"{}\"", self.id);
        let mut need = self.written();
        let asked = blocking(move || {
            let Err(RdError::Transaction(native)) = handle.producer.begin_transaction() else { return Ok(None) };
            if !native.txn_requires_abort() {
                return Ok(None);
            }
            if let Some(topic) = handle.watch.take_denied_topic() {
                need.topic = Some(("WRITE", topic));
            }
            Ok(Some(handle.watch.explain_for(&RdError::Transaction(native), &what, &need)))
        });
        asked.await.ok().flatten()
    }

    async fn add_offsets(
        &mut self,
        group: &str,
        metadata: Arc<ConsumerGroupMetadata>,
        offsets: Vec<(TopicPartition, i64, String)>,
    ) -> Result<(), KafkaError> {
        let list = list(offsets.iter().map(|(partition, offset, _)| (partition, Offset::Offset(*offset))))?;
        for (partition, _, metadata) in &offsets {
            if let Some(mut element) = list.find_partition(&partition.topic, partition.partition)
                && !metadata.is_empty()
            {
                element.set_metadata(metadata);
            }
        }
        let need = Need::topic("READ", &topics_of(offsets.iter().map(|(partition, _, _)| partition))).and_group("READ", group);
        let bound = self.timeout;
        let what = "adding offsets to a transaction";
        let sent = self.step(what, need, move |handle| handle.producer.send_offsets_to_transaction(&list, &metadata, bound)).await;
        match sent {
            Ok(()) => Ok(()),
            Err(failed) => {
                let error = self.fatal().unwrap_or(failed.error);
                Err(self.fail(error))
            }
        }
    }

    fn group(&mut self, group: &str) -> Result<Arc<ConsumerGroupMetadata>, KafkaError> {
        if let Some(known) = self.groups.get(group) {
            return Ok(Arc::clone(known));
        }
        // No servers: it never connects.
        let consumer: BaseConsumer = ClientConfig::new()
            .set("group.id", group)
            .create()
            .map_err(|error| KafkaError::from_rd(&error, &format!("naming group \"{group}\"")))?;
        let metadata = consumer.group_metadata().ok_or_else(|| KafkaError::Invalid(format!("\"{group}\" cannot be a group's name")))?;
        let metadata = Arc::new(metadata);
        self.groups.insert(group.to_owned(), Arc::clone(&metadata));
        Ok(metadata)
    }
}

/// A failed step and what librdkafka says about going on.
struct StepError {
    error: KafkaError,
    /// The transaction is not committed and must be aborted.
    abort: bool,
    /// The step itself may be tried again: its outcome is open.
    retriable: bool,
}

impl StepError {
    fn new(watch: &Watch, error: &RdError, what: &str, id: &str, need: &Need) -> Self {
        let (abort, retriable) = match error {
            RdError::Transaction(native) => (native.txn_requires_abort(), native.is_retriable()),
            RdError::Flush(Code::OperationTimedOut) => (false, true),
            _ => (false, false),
        };
        Self { error: watch.explain_for(error, &format!("{what} of \"{id}\""), need), abort, retriable }
    }
}

#[async_trait]
impl TransactionalWriter for Writer {
    async fn begin(&mut self) -> Result<(), KafkaError> {
        match &self.state {
            State::Idle => {}
            State::Open => return Err(KafkaError::Conflict("a transaction is open: commit or abort it first".into())),
            State::Failed(_) | State::Poisoned(_) => return self.expect_open(),
        }
        match self.step("beginning a transaction", Need::default(), |handle| handle.producer.begin_transaction()).await {
            Ok(()) => {
                self.topics.clear();
                self.aborted = None;
                self.handle.forget_failures();
                self.state = State::Open;
                Ok(())
            }
            Err(failed) if failed.error.poisons() => Err(self.fail(failed.error)),
            Err(failed) => Err(self.fatal().map_or(failed.error, |fatal| self.fail(fatal))),
        }
    }

    async fn queue(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        self.expect_open()?;
        self.remember(&records);
        let handle = Arc::clone(&self.handle);
        let mut queuing = std::pin::pin!(handle.queue_all(records));
        // It waits for the room of those that are under way.
        let queued = loop {
            match timeout(STUCK, &mut queuing).await {
                Ok(queued) => break queued,
                Err(_) => self.abort_what_failed().await?,
            }
        };
        self.under_way.push_back(queued);
        self.settle(UNDER_WAY_MAX).await
    }

    async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        self.queue(records).await?;
        self.settle(0).await
    }

    async fn write(&mut self, batches: Vec<Vec<OutRecord>>, patience: Duration) -> Vec<Option<Vec<Result<Written, KafkaError>>>> {
        if let Err(error) = self.expect_open() {
            return batches.iter().map(|batch| Some(vec![Err(error.clone()); batch.len()])).collect();
        }
        let until = tokio::time::Instant::now() + patience;
        let mut queued = Vec::with_capacity(batches.len());
        for batch in batches {
            self.remember(&batch);
            queued.push(timeout_at(until, self.handle.queue_all(batch)).await.ok());
        }
        let mut settled = Vec::with_capacity(queued.len());
        let mut failed = None;
        for one in &mut queued {
            let mut results = None;
            if let Some(under_way) = one {
                while results.is_none() && tokio::time::Instant::now() < until {
                    let soon = tokio::time::Instant::now() + STUCK;
                    results = timeout_at(until.min(soon), under_way.settled()).await.ok();
                    if results.is_none() && self.abort_what_failed().await.is_err() {
                        break;
                    }
                }
            }
            let results = match (results, one) {
                (Some(mut results), Some(under_way)) if results.iter().any(Result::is_err) => {
                    self.handle.confirm_unknown(under_way.records(), &mut results).await;
                    Some(results)
                }
                (results, _) => results,
            };
            match &results {
                Some(results) => failed = failed.or_else(|| results.iter().find_map(|result| result.as_ref().err().cloned())),
                None => failed = Some(KafkaError::Timeout(format!("records of \"{}\" were not acknowledged within {patience:?}", self.id))),
            }
            settled.push(results);
        }
        if let Some(error) = failed.filter(|_| !matches!(self.state, State::Poisoned(_))) {
            let error = match self.fatal() {
                Some(fatal) => fatal,
                None if error.retryable() => self.cause().await.unwrap_or(error),
                None => error,
            };
            if let KafkaError::Auth(_) = error {
                // The records were only purged for it.
                for result in settled.iter_mut().flatten().flatten().filter(|result| result.as_ref().is_err_and(KafkaError::retryable)) {
                    *result = Err(error.clone());
                }
            }
            self.fail(error);
        }
        settled
    }

    async fn offsets(&mut self, group: &str, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        self.expect_open()?;
        if offsets.is_empty() {
            return Ok(());
        }
        let metadata = self.group(group)?;
        self.add_offsets(group, metadata, offsets).await
    }

    async fn offsets_of(&mut self, member: &MemberIdentity, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        self.expect_open()?;
        if offsets.is_empty() {
            return Ok(());
        }
        let Some(metadata) = member.native::<ConsumerGroupMetadata>() else {
            return Err(self.fail(KafkaError::Invalid(format!("the member of group \"{}\" is of another client", member.group()))));
        };
        self.add_offsets(member.group(), metadata, offsets).await
    }

    async fn commit(&mut self) -> Result<(), KafkaError> {
        self.expect_open()?;
        self.settle(0).await?;
        let bound = self.timeout;
        match self.step("committing a transaction", self.written(), move |handle| handle.producer.commit_transaction(bound)).await {
            Ok(()) => {
                self.handle.watch.on_success();
                self.state = State::Idle;
                Ok(())
            }
            Err(failed) => {
                let error = match self.fatal() {
                    Some(fatal) => fatal,
                    None if failed.error.poisons() => failed.error,
                    None if failed.abort && !failed.retriable => failed.error,
                    None => KafkaError::OutcomeUnknown(format!("it is not known whether it was committed: {}", failed.error)),
                };
                Err(self.fail(error))
            }
        }
    }

    async fn abort(&mut self) -> Result<(), KafkaError> {
        match &self.state {
            State::Open | State::Failed(_) => {}
            State::Idle => return Err(KafkaError::Conflict("no transaction is open".into())),
            State::Poisoned(error) => return Err(error.clone()),
        }
        if self.aborted.is_none() {
            self.roll_back().await?;
        }
        self.under_way.clear();
        self.state = State::Idle;
        Ok(())
    }
}

impl Drop for Writer {
    /// What is open would stop `read_committed` readers until `transaction.timeout.ms`.
    fn drop(&mut self) {
        if !matches!(self.state, State::Open | State::Failed(_)) {
            return;
        }
        let handle = Arc::clone(&self.handle);
        let abort = move || {
            if let Err(error) = handle.producer.abort_transaction(DROP_TIMEOUT) {
                debug!(%error, "an open transaction was dropped; it ends at transaction.timeout.ms");
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(abort));
        }
    }
}

const DROP_TIMEOUT: Duration = Duration::from_secs(2);
