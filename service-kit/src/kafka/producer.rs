//! The producer: librdkafka, with one result per record and bounded memory.
//!
//! A call's records go out in pieces of at most [`PIECE_RECORDS`]. A piece takes its bytes from the producer's budget
//! (`buffer.memory`, 32 MiB, librdkafka's own cost per record included), waiting while there is none, and gives them
//! back when its last record is settled; so a full queue waits and memory is bounded. Each record carries the piece's
//! number and its index in it; the delivery callback writes the result there: one allocation per piece.
//!
//! A broker refuses a whole request when it is larger than the topic's `max.message.bytes`. Its records are sent again
//! one by one then, so that only the record fails that is too large by itself; they come after records sent meanwhile.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::warn;

use super::access::Need;
use super::context::{Elsewhere, Watch, blocking, client_config};
use super::produce_batch::{self, Topics};
use super::properties::Role;
use super::{KafkaConfig, KafkaError, OutRecord, Producer, Written};

/// Records of one piece: a call that gives more could be overtaken by another between two pieces.
pub const PIECE_RECORDS: usize = 2048;
/// What librdkafka keeps per queued record beside its bytes.
const RECORD_OVERHEAD: usize = 256;
/// Default of `buffer.memory`, as in Java.
const BUFFER_MEMORY: usize = 32 << 20;

/// A producer of `config`. Does not wait for a broker: records sent while it is away wait for it, each up to
/// `delivery.timeout.ms` (2 min).
pub async fn producer(config: &KafkaConfig) -> Result<Arc<dyn Producer>, KafkaError> {
    let handle = Arc::new(Handle::new(config, Role::Producer, false)?);
    Ok(Arc::new(Direct {
        config: config.clone(),
        handle: RwLock::new(handle),
        alone: OnceLock::new(),
        split_reported: AtomicBool::new(false),
    }))
}

struct Direct {
    config: KafkaConfig,
    handle: RwLock<Arc<Handle>>,
    /// Sends every record in a request of its own; made when first needed.
    alone: OnceLock<Arc<Handle>>,
    split_reported: AtomicBool,
}

#[async_trait]
impl Producer for Direct {
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<Written, KafkaError>> {
        let handle = self.live();
        let (records, mut results) = handle.send(records).await;
        if results.iter().any(Result::is_err) {
            self.send_alone(&handle, &records, &mut results).await;
            let appeared = handle.confirm_unknown(&records, &mut results).await;
            if !appeared.is_empty() {
                let again: Vec<OutRecord> = appeared.iter().map(|&index| records[index].clone()).collect();
                let (again, mut answers) = handle.send(again).await;
                handle.confirm_unknown(&again, &mut answers).await;
                for (index, answer) in appeared.into_iter().zip(answers) {
                    results[index] = answer;
                }
            }
            self.replace_if_fatal(&handle, &records, &mut results);
        }
        let errors = results.iter().filter(|result| result.is_err()).count();
        if errors > 0 {
            metrics::counter!("millrace_kafka_produce_errors_total").increment(errors as u64);
        }
        results
    }

    async fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let handle = Arc::clone(&self.handle.read());
        handle.flush(timeout).await
    }

    fn trouble(&self) -> Option<String> {
        let watch = self.handle.read().watch.clone();
        watch.refused().or_else(|| watch.outage.is_away().then(|| watch.unreachable("writing")))
    }
}

impl Direct {
    /// Sends again what was refused only because of the company it was in.
    async fn send_alone(&self, handle: &Handle, records: &[OutRecord], results: &mut [Result<Written, KafkaError>]) {
        let fits = |record: &OutRecord| size(record) <= handle.bytes_max;
        let refused = |result: &Result<Written, KafkaError>| matches!(result, Err(KafkaError::TooLarge { .. }));
        let indices: Vec<usize> = (0..records.len()).filter(|&index| refused(&results[index]) && fits(&records[index])).collect();
        if indices.is_empty() {
            return;
        }
        if !self.split_reported.swap(true, Ordering::Relaxed) {
            warn!(
                topic = %records[indices[0]].topic,
                "a request was larger than the topic's max.message.bytes; its records are sent one by one, which is \
                 slow: set batch.size below it"
            );
        }
        let alone = match self.alone.get() {
            Some(alone) => alone,
            None => match Handle::new(&self.config, Role::Producer, true) {
                Ok(alone) => self.alone.get_or_init(|| Arc::new(alone)),
                Err(_) => return,
            },
        };
        let again: Vec<OutRecord> = indices.iter().map(|&index| records[index].clone()).collect();
        for (index, result) in indices.into_iter().zip(alone.send(again).await.1) {
            results[index] = result;
        }
    }

    /// One that may have been given up while nothing was sent is replaced first: what it was refused may be granted by now.
    fn live(&self) -> Arc<Handle> {
        let handle = Arc::clone(&self.handle.read());
        if handle.producer.client().fatal_error().is_none() {
            return handle;
        }
        self.replace(&handle);
        Arc::clone(&self.handle.read())
    }

    /// True where this call did it.
    fn replace(&self, handle: &Arc<Handle>) -> bool {
        let mut current = self.handle.write();
        if Arc::ptr_eq(&current, handle)
            && let Ok(new) = Handle::new(&self.config, Role::Producer, false)
        {
            *current = Arc::new(new);
            return true;
        }
        false
    }

    /// librdkafka gives up a producer for good after some errors; the next call gets a new one.
    fn replace_if_fatal(&self, handle: &Arc<Handle>, records: &[OutRecord], results: &mut [Result<Written, KafkaError>]) {
        let Some((code, reason)) = handle.producer.client().fatal_error() else { return };
        // Told by the caller, who tries again.
        let denied = matches!(code, Code::ClusterAuthorizationFailed | Code::TopicAuthorizationFailed);
        if self.replace(handle) && !denied {
            warn!(%code, reason, "the producer can no longer be used; a new one takes over");
        }
        for (record, result) in records.iter().zip(results) {
            // What was queued is purged.
            if !matches!(result, Err(KafkaError::Fatal(_) | KafkaError::Fenced(_) | KafkaError::Retryable(_))) {
                continue;
            }
            *result = Err(if denied {
                let (what, need) = (writing(&record.topic), Need::topic("WRITE", &record.topic));
                handle.watch.explain_code(code, &what, &need)
            } else {
                KafkaError::Retryable(format!("the producer was replaced: {reason}"))
            });
        }
    }
}

fn size(record: &OutRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, |key| key.len()) + record.value.as_ref().map_or(0, |value| value.len()) + headers
}

pub(super) type Client = Elsewhere<Polled>;

/// A producer whose deliveries are taken by a thread of its own. The crate's `ThreadedProducer` does the same and spins through
/// the last millisecond of each wait of 100 ms, which is one percent of a core for nothing.
pub(super) struct Polled {
    producer: Arc<BaseProducer<Deliveries>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long the thread waits for a delivery; an end of the producer waits as long.
/// The crate waits whole milliseconds and spins through the rest: a rest of a few µs is over by then, one of almost 1 ms is 0.2 % of a core.
const POLL_WAIT: Duration = Duration::from_micros(500_050);

impl Polled {
    fn new(config: &rdkafka::ClientConfig, deliveries: Deliveries) -> Result<Self, RdError> {
        let producer = Arc::new(BaseProducer::from_config_and_context(config, deliveries)?);
        let ended = Arc::new(AtomicBool::new(false));
        let thread = {
            let (producer, ended) = (Arc::clone(&producer), Arc::clone(&ended));
            std::thread::Builder::new().name("producer polling".to_owned()).spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    producer.poll(POLL_WAIT);
                    producer.context().0.watch.help(producer.client());
                }
            })
        };
        let thread = thread.map_err(|error| RdError::ClientCreation(format!("no thread for a producer: {error}")))?;
        Ok(Self { producer, ended, thread: Some(thread) })
    }
}

impl std::ops::Deref for Polled {
    type Target = BaseProducer<Deliveries>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been told already.
            drop(thread.join());
        }
    }
}

/// A librdkafka producer with its budget. Shared by the plain and the transactional writer.
pub(super) struct Handle {
    topics: Topics,
    pub(super) producer: Arc<Client>,
    pub(super) watch: Watch,
    /// In KiB.
    budget: Arc<Semaphore>,
    budget_kib: u32,
    /// `max.request.size`.
    bytes_max: usize,
    deliveries: Arc<Pieces>,
}

impl Handle {
    pub(super) fn new(config: &KafkaConfig, role: Role, alone: bool) -> Result<Self, KafkaError> {
        Self::with(config, role, |client| {
            if alone {
                client.set("batch.num.messages", "1");
            }
        })
    }

    pub(super) fn with(config: &KafkaConfig, role: Role, change: impl FnOnce(&mut rdkafka::ClientConfig)) -> Result<Self, KafkaError> {
        let mut client = client_config(config, role)?;
        change(&mut client);
        let bytes_max = client.get("message.max.bytes").and_then(|value| value.parse().ok()).unwrap_or(1 << 20);
        let watch = Watch::new(config);
        let deliveries = Arc::new(Pieces {
            open: Mutex::default(),
            latest: Mutex::default(),
            watch: watch.clone(),
            bytes_max,
            failed: AtomicBool::default(),
        });
        let producer =
            Polled::new(&client, Deliveries(Arc::clone(&deliveries))).map_err(|error| watch.explain(&error, "making a Kafka producer"))?;
        let producer = Arc::new(Elsewhere::new(producer));
        let bytes = config.get("buffer.memory").and_then(|value| value.parse().ok()).unwrap_or(BUFFER_MEMORY);
        let budget_kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Ok(Self {
            topics: Topics::of(Arc::clone(&producer)),
            producer,
            watch,
            budget: Arc::new(Semaphore::new(budget_kib as usize)),
            budget_kib,
            bytes_max,
            deliveries,
        })
    }

    /// Queues all records and waits for all results; gives the records back with them.
    pub(super) async fn send(&self, records: Vec<OutRecord>) -> (Vec<OutRecord>, Vec<Result<Written, KafkaError>>) {
        let mut under_way = self.queue_all(records).await;
        let results = under_way.settled().await;
        (under_way.records, results)
    }

    /// Queues all records, waiting for budget where there is none.
    pub(super) async fn queue_all(&self, records: Vec<OutRecord>) -> UnderWay {
        let mut pieces = VecDeque::with_capacity(records.len().div_ceil(PIECE_RECORDS));
        let mut rest = &records[..];
        while !rest.is_empty() {
            let (count, kib) = self.piece(rest);
            let (piece, after) = rest.split_at(count);
            rest = after;
            let Ok(permit) = Arc::clone(&self.budget).acquire_many_owned(kib).await else {
                // The semaphore is never closed.
                break;
            };
            pieces.push_back(self.queue(piece, Queued::new(permit, kib)));
            if !rest.is_empty() {
                // Queuing is work; others on this thread get their turn.
                tokio::task::yield_now().await;
            }
        }
        UnderWay { pieces, records, results: Vec::new() }
    }

    /// How many of the records make the next piece, and its cost in KiB: at most a quarter of the budget, at least one record.
    fn piece(&self, records: &[OutRecord]) -> (usize, u32) {
        let limit = self.budget_kib as usize * 1024 / 4;
        let mut bytes = 0;
        let mut count = 0;
        for record in records.iter().take(PIECE_RECORDS) {
            let cost = size(record) + RECORD_OVERHEAD;
            if count > 0 && bytes + cost > limit {
                break;
            }
            bytes += cost;
            count += 1;
        }
        (count, u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.budget_kib))
    }

    fn queue(&self, records: &[OutRecord], queued: Queued) -> oneshot::Receiver<Vec<Result<Written, KafkaError>>> {
        let (done, receiver) = oneshot::channel();
        let number = self.deliveries.open(records.len(), done, queued);
        let refuse = |index: usize, error: &RdError| {
            let record = &records[index];
            let error = self.deliveries.error(error, &record.topic, record.partition, size(record));
            self.deliveries.settle(number, index, Err(error));
        };
        let mut first = 0;
        let together = |a: &OutRecord, b: &OutRecord| produce_batch::fits(a) && produce_batch::fits(b) && a.topic == b.topic;
        for run in records.chunk_by(together) {
            let opaque = |index: usize| opaque(number, first + index);
            let batch = if produce_batch::fits(&run[0]) { self.topics.queue(run, opaque) } else { None };
            match batch {
                Some(refused) => refused.iter().for_each(|(index, error)| refuse(first + index, error)),
                None => {
                    for (index, record) in run.iter().enumerate() {
                        if let Err(error) = self.queue_one(record, opaque(index)) {
                            refuse(first + index, &error);
                        }
                    }
                }
            }
            first += run.len();
        }
        let bytes: usize = records.iter().map(size).sum();
        metrics::counter!("millrace_kafka_produce_records_total").increment(records.len() as u64);
        metrics::counter!("millrace_kafka_produce_bytes_total").increment(bytes as u64);
        receiver
    }

    fn queue_one(&self, record: &OutRecord, opaque: usize) -> Result<(), RdError> {
        let base = BaseRecord::<[u8], [u8], usize> {
            topic: &record.topic,
            partition: record.partition,
            payload: record.value.as_deref(),
            key: record.key.as_deref(),
            timestamp: record.timestamp_ms,
            headers: headers(record),
            delivery_opaque: opaque,
        };
        self.producer.send(base).map_err(|(error, _)| error)
    }

    /// Was a record not written, since [`Self::forget_failures`]?
    pub(super) fn has_failed(&self) -> bool {
        self.deliveries.failed.load(Ordering::Relaxed)
    }

    pub(super) fn forget_failures(&self) {
        self.deliveries.failed.store(false, Ordering::Relaxed);
    }

    pub(super) async fn flush(self: Arc<Self>, timeout: Duration) -> Result<(), KafkaError> {
        blocking(move || self.producer.flush(timeout).map_err(|error| self.watch.explain(&error, "flushing the producer"))).await
    }

    /// librdkafka remembers for minutes that a topic is unknown, and a broker that has just come back may know none for a
    /// moment (2.8 and its like). Asks the broker: what is there by now is to be tried again. Gives the records of topics that are.
    pub(super) async fn confirm_unknown(
        self: &Arc<Self>,
        records: &[OutRecord],
        results: &mut [Result<Written, KafkaError>],
    ) -> Vec<usize> {
        let mut appeared = Vec::new();
        // The partition may be one that librdkafka had chosen.
        let is_unknown = |record: &OutRecord, error: &KafkaError| match error {
            KafkaError::UnknownTopic(_) => true,
            KafkaError::Invalid(reason) => reason.starts_with(&no_partition_of(&record.topic)),
            _ => false,
        };
        let unknown: BTreeSet<Arc<str>> = records
            .iter()
            .zip(&*results)
            .filter(|(record, result)| result.as_ref().is_err_and(|error| is_unknown(record, error)))
            .map(|(record, _)| Arc::clone(&record.topic))
            .collect();
        // It remembers as long that a topic may not be used: what it is told here counts for the next try.
        let refused = |result: &Result<Written, KafkaError>| matches!(result, Err(KafkaError::Auth(_)));
        let denied: BTreeSet<Arc<str>> =
            records.iter().zip(&*results).filter(|(_, result)| refused(result)).map(|(record, _)| Arc::clone(&record.topic)).collect();
        for topic in denied {
            let handle = Arc::clone(self);
            // The next try tells what has come of it.
            drop(blocking(move || Ok(handle.look_up(&topic))).await);
        }
        for topic in unknown {
            let handle = Arc::clone(self);
            let name = Arc::clone(&topic);
            let known = blocking(move || Ok(handle.look_up(&name))).await.unwrap_or(Known::Unclear);
            let of_topic = records.iter().zip(&mut *results).enumerate().filter(|(_, (record, _))| record.topic == topic);
            for (index, (record, result)) in of_topic {
                if !result.as_ref().is_err_and(|error| is_unknown(record, error)) {
                    continue;
                }
                match known {
                    Known::Partitions(count) if record.partition.is_some_and(|partition| partition >= count) => {}
                    Known::Partitions(_) => {
                        appeared.push(index);
                        *result = Err(KafkaError::Retryable(format!("topic \"{topic}\" has appeared just now")));
                    }
                    Known::Absent => *result = Err(KafkaError::UnknownTopic(topic.to_string())),
                    Known::Unclear => {
                        *result = Err(KafkaError::Retryable(format!("no broker can tell yet whether there is a topic \"{topic}\"")));
                    }
                }
            }
        }
        appeared
    }

    fn look_up(&self, topic: &str) -> Known {
        let client = self.producer.client();
        let Ok(metadata) = client.fetch_metadata(Some(topic), CONFIRM_TIMEOUT) else { return Known::Unclear };
        let there = metadata.topics().iter().find(|known| known.name() == topic && known.error().is_none());
        if let Some(there) = there {
            return Known::Partitions(i32::try_from(there.partitions().len()).unwrap_or(i32::MAX));
        }
        // A broker that has just started knows nothing at all.
        match client.fetch_metadata(None, CONFIRM_TIMEOUT) {
            Ok(metadata) if !metadata.topics().is_empty() => Known::Absent,
            _ => Known::Unclear,
        }
    }
}

/// What the brokers say of a topic.
#[derive(Clone, Copy)]
enum Known {
    Partitions(i32),
    Absent,
    Unclear,
}

fn writing(topic: &str) -> String {
    format!("writing to \"{topic}\"")
}

fn no_partition(topic: &str, partition: Option<i32>) -> KafkaError {
    let what = no_partition_of(topic);
    KafkaError::Invalid(partition.map_or_else(|| format!("{what}s"), |partition| format!("{what} {partition}")))
}

fn no_partition_of(topic: &str) -> String {
    format!("topic \"{topic}\" has no partition")
}

/// Records that were queued together.
pub(super) struct UnderWay {
    pieces: VecDeque<oneshot::Receiver<Vec<Result<Written, KafkaError>>>>,
    records: Vec<OutRecord>,
    results: Vec<Result<Written, KafkaError>>,
}

impl UnderWay {
    pub(super) fn records(&self) -> &[OutRecord] {
        &self.records
    }

    /// One result per record, given once. A call that is dropped loses none.
    pub(super) async fn settled(&mut self) -> Vec<Result<Written, KafkaError>> {
        while let Some(piece) = self.pieces.front_mut() {
            let settled = piece.await.unwrap_or_default();
            self.pieces.pop_front();
            if self.results.is_empty() {
                self.results = settled;
            } else {
                self.results.extend(settled);
            }
        }
        let lost = || Err(KafkaError::Fatal("the producer was closed before the record was settled".into()));
        let mut results = std::mem::take(&mut self.results);
        results.resize_with(self.records.len(), lost);
        results
    }
}

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

fn headers(record: &OutRecord) -> Option<OwnedHeaders> {
    if record.headers.is_empty() {
        return None;
    }
    let none = OwnedHeaders::new_with_capacity(record.headers.len());
    let add = |headers: OwnedHeaders, (name, value): &(String, bytes::Bytes)| headers.insert(Header { key: name, value: Some(&value[..]) });
    Some(record.headers.iter().fold(none, add))
}

/// A piece's part of the budget; given back when dropped.
struct Queued {
    _permit: OwnedSemaphorePermit,
    kib: u32,
}

impl Queued {
    fn new(permit: OwnedSemaphorePermit, kib: u32) -> Self {
        metrics::gauge!("millrace_kafka_produce_queue_bytes").increment(f64::from(kib) * 1024.0);
        Self { _permit: permit, kib }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        metrics::gauge!("millrace_kafka_produce_queue_bytes").decrement(f64::from(self.kib) * 1024.0);
    }
}

/// Piece and index in it, as librdkafka carries them.
fn opaque(number: u32, index: usize) -> usize {
    (number as usize) << 32 | index
}

const _: () = assert!(usize::BITS == 64, "a record's piece and index travel in one pointer-sized word");

/// Records on their way, by piece.
struct Pieces {
    open: Mutex<OpenPieces>,
    /// The piece of the latest delivery: the next one is most likely of the same.
    latest: Mutex<Option<(u32, Arc<Piece>)>>,
    watch: Watch,
    bytes_max: usize,
    failed: AtomicBool,
}

#[derive(Default)]
struct OpenPieces {
    last: u32,
    pieces: HashMap<u32, Arc<Piece>>,
}

type Piece = Mutex<PieceState>;

struct PieceState {
    results: Vec<Result<Written, KafkaError>>,
    unsettled: usize,
    done: Option<oneshot::Sender<Vec<Result<Written, KafkaError>>>>,
    queued: Option<Queued>,
}

impl Pieces {
    fn open(&self, count: usize, done: oneshot::Sender<Vec<Result<Written, KafkaError>>>, queued: Queued) -> u32 {
        let unwritten = Written { partition: -1, offset: -1 };
        let mut results = Vec::with_capacity(count);
        results.resize_with(count, || Ok(unwritten));
        let piece = Arc::new(Mutex::new(PieceState { results, unsettled: count, done: Some(done), queued: Some(queued) }));
        let mut open = self.open.lock();
        // Numbers come round after four thousand million pieces; one still open is passed over.
        loop {
            open.last = open.last.wrapping_add(1);
            let number = open.last;
            if let std::collections::hash_map::Entry::Vacant(entry) = open.pieces.entry(number) {
                entry.insert(piece);
                return number;
            }
        }
    }

    fn settle(&self, number: u32, index: usize, result: Result<Written, KafkaError>) {
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        let piece = {
            let mut latest = self.latest.lock();
            match &*latest {
                Some((cached, piece)) if *cached == number => Arc::clone(piece),
                _ => {
                    let Some(piece) = self.open.lock().pieces.get(&number).cloned() else { return };
                    *latest = Some((number, Arc::clone(&piece)));
                    piece
                }
            }
        };
        let mut state = piece.lock();
        state.results[index] = result;
        state.unsettled -= 1;
        if state.unsettled > 0 {
            return;
        }
        let results = std::mem::take(&mut state.results);
        state.queued = None;
        let done = state.done.take();
        drop(state);
        if results.iter().any(Result::is_ok) {
            self.watch.on_success();
        }
        self.open.lock().pieces.remove(&number);
        *self.latest.lock() = None;
        if let Some(done) = done {
            // The caller may have stopped waiting; the records are written all the same.
            drop(done.send(results));
        }
    }

    fn error(&self, error: &RdError, topic: &str, partition: Option<i32>, bytes: usize) -> KafkaError {
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => KafkaError::UnknownTopic(topic.into()),
            Some(Code::UnknownPartition) => no_partition(topic, partition),
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge) => {
                KafkaError::TooLarge { bytes, max: self.bytes_max }
            }
            Some(Code::MessageTimedOut) => self
                .watch
                .explain_ours(KafkaError::Timeout(format!("a record for \"{topic}\" was not acknowledged within delivery.timeout.ms"))),
            _ => self.watch.explain_for(error, &writing(topic), &Need::topic("WRITE", topic)),
        }
    }
}

/// librdkafka's callbacks.
pub(super) struct Deliveries(Arc<Pieces>);

impl ClientContext for Deliveries {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.watch.on_producer_log(facility, message);
    }

    fn error(&self, error: RdError, reason: &str) {
        self.0.watch.on_error(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, opaque: usize) {
        let result = match delivered {
            Ok(message) => Ok(Written { partition: message.partition(), offset: message.offset().max(-1) }),
            Err((error, message)) => {
                let bytes = message.payload_len() + message.key_len();
                Err(self.0.error(error, message.topic(), Some(message.partition()), bytes))
            }
        };
        self.0.settle((opaque >> 32) as u32, opaque & 0xffff_ffff, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(bytes: usize) -> OutRecord {
        OutRecord {
            topic: "t".into(),
            partition: None,
            key: None,
            value: Some(vec![0; bytes].into()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    fn handle(buffer_memory: &str) -> Handle {
        let mut config = KafkaConfig::new("127.0.0.1:1");
        config.set("buffer.memory", buffer_memory);
        Handle::new(&config, Role::Producer, false).unwrap()
    }

    #[test]
    fn pieces_respect_the_budget_and_make_progress() {
        let handle = handle("1048576");
        assert_eq!(handle.piece(&vec![record(160); 5000]).0, 262_144 / (160 + RECORD_OVERHEAD));
        let (count, kib) = handle.piece(&vec![record(4 << 20); 2]);
        assert_eq!((count, kib), (1, 1024), "a record larger than the budget takes all of it");
    }

    #[tokio::test]
    async fn an_oversize_record_fails_by_itself_and_gives_its_budget_back() {
        let handle = handle("4194304");
        let (_, results) = handle.send(vec![record(2 << 20)]).await;
        assert_eq!(results, vec![Err(KafkaError::TooLarge { bytes: 2 << 20, max: 1 << 20 })]);
        assert_eq!(handle.budget.available_permits(), 4096);
        assert!(handle.deliveries.open.lock().pieces.is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_waits() {
        let handle = Arc::new(handle("1048576"));
        let first = Arc::clone(&handle);
        // No broker: nothing is ever acknowledged within the test.
        let filling = tokio::spawn(async move { first.send(vec![record(1000); 2000]).await });
        let full = async {
            while handle.budget.available_permits() >= 256 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), full).await.unwrap();
        assert!(!filling.is_finished());
        assert!(handle.producer.in_flight_count() < 2000, "the rest waits for budget");
        filling.abort();
    }
}
