//! Ranges read by librdkafka: the reader of `read_committed`, and of partitions handed over by [`super::direct`].
//!
//! Partitions are assigned by hand, each with a queue of its own, and stay assigned: librdkafka goes on fetching behind
//! the end of a range, so the next range finds its records already here. What was taken from the queue beyond `until`
//! is kept for the next range. A range that begins elsewhere seeks.
//!
//! A range may end in offsets that hold no record for us. Control records move librdkafka's position when they are
//! passed, which is looked at whenever the queue is empty. Other offsets without a record at the very end show as end of
//! partition; since that event may be older than the range, it counts only after a seek within the range, which is done
//! once when nothing came for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::access::Need;
use super::context::{Elsewhere, Watch, client_config};
use super::lookup::{Lookup, serve};
use super::properties::Role;
use super::{Isolation, KafkaConfig, KafkaError, Record, TopicPartition};

type Chunk = Result<Vec<Record>, KafkaError>;

/// Chunks that may wait for the reader of the stream.
const CHUNKS_AHEAD: usize = 1;
/// Longest wait for the queue before the position is looked at.
const POLL: Duration = Duration::from_millis(2);
/// So long nothing came: seek, to be told where the partition ends. Well above `fetch.max.wait.ms`.
const SILENCE: Duration = Duration::from_millis(300);
/// Fetched ahead of one partition's reader, KiB.
const QUEUED_KIB: &str = "2048";

pub(super) struct Ranges {
    inner: Arc<Inner>,
}

struct Inner {
    consumer: Elsewhere<Arc<BaseConsumer<Watch>>>,
    partitions: Mutex<HashMap<TopicPartition, Arc<Mutex<Assigned>>>>,
    lookup: Arc<Lookup>,
    watch: Watch,
    chunk_bytes: usize,
    timeout: Duration,
    stop: Arc<AtomicBool>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One partition's queue and where it stands.
struct Assigned {
    queue: Option<PartitionQueue<Watch>>,
    /// Offset the queue continues at; `None` after an error: seek.
    next: Option<i64>,
    /// Taken from the queue, beyond the end of the range before.
    kept: Option<Record>,
}

impl Ranges {
    pub(super) fn new(config: &KafkaConfig, isolation: Isolation, lookup: Arc<Lookup>) -> Result<Self, KafkaError> {
        let mut client = client_config(config, Role::Reader)?;
        client
            // Assigning by hand needs a group's name; nothing is ever committed to it.
            .set("group.id", "millrace-reader")
            .set("isolation.level", isolation.name())
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", QUEUED_KIB);
        if config.get("fetch.max.wait.ms").is_none() {
            client.set("fetch.wait.max.ms", "100");
        }
        let watch = Watch::new(config);
        let consumer = BaseConsumer::from_config_and_context(&client, watch.clone())
            .map_err(|error| watch.explain(&error, "making a Kafka reader"))?;
        let consumer = Arc::new(consumer);
        let stop = Arc::new(AtomicBool::new(false));
        serve(&consumer, &stop)?;
        let inner = Inner {
            consumer: Elsewhere::new(consumer),
            partitions: Mutex::default(),
            lookup,
            watch,
            chunk_bytes: usize::try_from(config.fetch_bytes_max()).unwrap_or(1 << 20),
            timeout: config.api_timeout(),
            stop,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins when first polled.
    pub(super) fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Chunk> {
        let inner = Arc::clone(&self.inner);
        let start = async move {
            let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
            let runtime = Runtime::current();
            drop(tokio::task::spawn_blocking(move || {
                if let Err(error) = inner.read(&runtime, &partition, from, until, &chunks) {
                    // Nobody reads on: the error has no reader either.
                    drop(chunks.blocking_send(Err(error)));
                }
            }));
            ReceiverStream::new(receiver)
        };
        stream::once(start).flatten().boxed()
    }
}

impl Inner {
    fn read(
        &self,
        runtime: &Runtime,
        partition: &TopicPartition,
        from: i64,
        until: i64,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<(), KafkaError> {
        if from >= until {
            return Ok(());
        }
        let assigned = Arc::clone(
            self.partitions
                .lock()
                .entry(partition.clone())
                .or_insert_with(|| Arc::new(Mutex::new(Assigned { queue: None, next: None, kept: None }))),
        );
        let Some(mut assigned) = assigned.try_lock_for(self.timeout) else {
            return Err(KafkaError::Conflict(format!("{partition} is being read already; drop that stream first")));
        };
        if chunks.is_closed() {
            return Ok(());
        }
        self.position(&mut assigned, partition, from)?;
        let mut range = Range { inner: self, partition, until, next: from, fresh: false };
        let result = range.run(runtime, &mut assigned, chunks);
        if result.is_err() {
            self.release(&mut assigned, partition);
        }
        result
    }

    /// Makes the queue continue at `from`.
    fn position(&self, assigned: &mut Assigned, partition: &TopicPartition, from: i64) -> Result<(), KafkaError> {
        if assigned.queue.is_none() {
            // Before the assignment: a queue split later would race with it.
            let queue = self.consumer.split_partition_queue(&partition.topic, partition.partition);
            let invalid = || KafkaError::Invalid(format!("{partition} cannot be read"));
            assigned.queue = Some(queue.ok_or_else(invalid)?);
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(from))
                .and_then(|()| self.consumer.incremental_assign(&list))
                .map_err(|error| self.watch.explain(&error, &format!("assigning {partition}")))?;
            assigned.next = Some(from);
            return Ok(());
        }
        if assigned.kept.as_ref().is_some_and(|record| record.offset < from) {
            assigned.kept = None;
        }
        if assigned.next != Some(from) {
            assigned.kept = None;
            self.seek(partition, from)?;
            assigned.next = Some(from);
        }
        Ok(())
    }

    fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), KafkaError> {
        let deadline = Instant::now() + self.timeout;
        let what = || format!("seeking {partition} to {offset}");
        loop {
            let mut list = TopicPartitionList::new();
            let sought = list
                .add_partition_offset(&partition.topic, partition.partition, Offset::Offset(offset))
                .and_then(|()| self.consumer.seek_partitions(list, self.timeout))
                .and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
            let Err(error) = sought else { return Ok(()) };
            // A partition assigned a moment ago cannot be moved before its first fetch is set up.
            let early = matches!(error.rdkafka_error_code(), Some(Code::State | Code::PreviousInProgress));
            if !early || Instant::now() >= deadline {
                return Err(self.watch.explain(&error, &what()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// librdkafka stops fetching a partition after some errors, and only a new assignment starts it again.
    fn release(&self, assigned: &mut Assigned, partition: &TopicPartition) {
        assigned.next = None;
        assigned.kept = None;
        if assigned.queue.take().is_none() {
            return;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition(&partition.topic, partition.partition);
        if let Err(error) = self.consumer.incremental_unassign(&list) {
            debug!(%partition, %error, "cannot give the partition back");
        }
    }

    /// Offset after the last one passed, control records included.
    fn passed(&self, partition: &TopicPartition) -> Option<i64> {
        let positions = self.consumer.position().ok()?;
        match positions.find_partition(&partition.topic, partition.partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    }

    fn out_of_range(&self, runtime: &Runtime, partition: &TopicPartition, offset: i64) -> KafkaError {
        match runtime.block_on(self.lookup.bounds(std::slice::from_ref(partition))) {
            Ok(bounds) => match bounds.get(partition) {
                Some(bounds) => KafkaError::OffsetOutOfRange {
                    partition: Box::new(partition.clone()),
                    offset,
                    earliest: bounds.earliest,
                    latest: bounds.latest,
                },
                None => KafkaError::Retryable(format!("{partition} has no offset {offset}")),
            },
            Err(error) => error,
        }
    }
}

/// One range being read.
struct Range<'a> {
    inner: &'a Inner,
    partition: &'a TopicPartition,
    until: i64,
    /// Offset that is expected next.
    next: i64,
    /// An end of partition seen from now on is younger than the range.
    fresh: bool,
}

impl Range<'_> {
    fn run(&mut self, runtime: &Runtime, assigned: &mut Assigned, chunks: &mpsc::Sender<Chunk>) -> Result<(), KafkaError> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let mut progress = Instant::now();
        if let Some(record) = assigned.kept.take() {
            if record.offset >= self.until {
                assigned.kept = Some(record);
                assigned.next = Some(self.until);
                return Ok(());
            }
            self.next = record.offset + 1;
            bytes += size(&record);
            chunk.push(record);
        }
        while self.next < self.until {
            if chunks.is_closed() {
                assigned.next = Some(self.next);
                // What the chunk holds would be missing from a later range.
                if !chunk.is_empty() {
                    assigned.next = None;
                }
                return Ok(());
            }
            let Some(queue) = &assigned.queue else { break };
            let polled = match queue.poll(Duration::ZERO) {
                // Nothing here: hand over what there is before waiting.
                None if !chunk.is_empty() => {
                    bytes = 0;
                    if self.hand_over(&mut chunk, chunks).is_err() {
                        assigned.next = None;
                        return Ok(());
                    }
                    continue;
                }
                None => queue.poll(POLL),
                some => some,
            };
            match polled {
                Some(Ok(message)) => {
                    progress = Instant::now();
                    let record = record(&message);
                    drop(message);
                    if record.offset < self.next {
                        continue;
                    }
                    if record.offset >= self.until {
                        self.next = self.until;
                        assigned.kept = Some(record);
                        break;
                    }
                    self.next = record.offset + 1;
                    bytes += size(&record);
                    chunk.push(record);
                    if bytes >= self.inner.chunk_bytes {
                        bytes = 0;
                        if self.hand_over(&mut chunk, chunks).is_err() {
                            assigned.next = None;
                            return Ok(());
                        }
                        // The stream's reader may have taken its time.
                        progress = Instant::now();
                    }
                }
                Some(Err(RdError::PartitionEOF(_))) => {
                    if self.passed_until() || (self.fresh && self.holds_until(runtime)?) {
                        self.next = self.until;
                    }
                }
                Some(Err(error)) => self.judge(runtime, &error)?,
                None => {
                    if self.passed_until() {
                        self.next = self.until;
                    } else if progress.elapsed() >= self.inner.timeout {
                        return Err(self.stalled());
                    } else if !self.fresh && progress.elapsed() >= SILENCE {
                        self.inner.seek(self.partition, self.next)?;
                        self.fresh = true;
                    }
                }
            }
        }
        if !chunk.is_empty() && self.hand_over(&mut chunk, chunks).is_err() {
            assigned.next = None;
            return Ok(());
        }
        assigned.next = Some(self.until);
        Ok(())
    }

    fn hand_over(&self, chunk: &mut Vec<Record>, chunks: &mpsc::Sender<Chunk>) -> Result<(), ()> {
        let records = std::mem::take(chunk);
        let bytes: usize = records.iter().map(size).sum();
        metrics::counter!("millrace_kafka_fetch_records_total", "client" => "librdkafka").increment(records.len() as u64);
        metrics::counter!("millrace_kafka_fetch_bytes_total", "client" => "librdkafka").increment(bytes as u64);
        self.inner.watch.on_success();
        chunks.blocking_send(Ok(records)).map_err(|_| ())
    }

    fn passed_until(&self) -> bool {
        self.inner.passed(self.partition).is_some_and(|offset| offset >= self.until)
    }

    /// The partition ends here; an error unless it reaches the range's end.
    fn holds_until(&self, runtime: &Runtime) -> Result<bool, KafkaError> {
        let bounds = runtime.block_on(self.inner.lookup.bounds(std::slice::from_ref(self.partition)))?;
        match bounds.get(self.partition) {
            Some(bounds) if bounds.latest >= self.until => Ok(true),
            _ => Err(self.inner.out_of_range(runtime, self.partition, self.until)),
        }
    }

    /// Whether an error ends the range.
    fn judge(&self, runtime: &Runtime, error: &RdError) -> Result<(), KafkaError> {
        match error.rdkafka_error_code() {
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Err(self.inner.out_of_range(runtime, self.partition, self.next)),
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                Err(KafkaError::UnknownTopic(self.partition.topic.to_string()))
            }
            // Told to the context; librdkafka goes on by itself, and `stalled` bounds the wait.
            Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut) => Ok(()),
            _ => {
                let need = Need::topic("READ", &self.partition.topic);
                Err(self.inner.watch.explain_for(error, &format!("reading {}", self.partition), &need))
            }
        }
    }

    fn stalled(&self) -> KafkaError {
        let what = format!("reading {} at offset {}: nothing came for {:?}", self.partition, self.next, self.inner.timeout);
        self.inner.watch.explain_ours(KafkaError::Unreachable(what))
    }
}

pub(super) fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let copy = |header: rdkafka::message::Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(Bytes::copy_from_slice));
        headers.iter().map(copy).collect()
    });
    Record {
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers,
    }
}

pub(super) fn size(record: &Record) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len)).sum();
    record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers
}
