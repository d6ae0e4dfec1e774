//! Records in: checked, written, and answered one by one. Knows neither HTTP nor gRPC.
//!
//! Promise: an `Ok` result was acknowledged by Kafka as `acks` demands (all, unless configured otherwise). An error says whether the record
//! may be sent again; with a batch id (`Idempotency-Key`) that is always safe: `keyed`.
//! A caller waits for `produce.timeout`. A record without an id that is not acknowledged by then may still be written, until the producer gives it
//! up (`delivery.timeout.ms`).
//! Limits: records in a batch (`produce.batch_records_max`), bytes in flight (`produce.in_flight_bytes_max`), time (`produce.timeout`).

mod keyed;

use std::{sync::Arc, time::Duration};

use service_kit::{
    kafka::{KafkaError, OutRecord, Producer, Written},
    telemetry,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{
    auth, config,
    error::{BridgeError, Code, Result},
    gate::{Gate, Work},
    topics::Topics,
    trace,
};

#[cfg(test)]
pub(crate) use self::keyed::Broker;
use self::keyed::fingerprint;
pub(crate) use self::keyed::{KafkaBroker, Keyed};

/// One record's result.
pub(crate) type RecordOutcome = Result<Written>;

/// What became of a batch: one result per record, in order.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) results: Arc<Vec<RecordOutcome>>,
    /// Nothing was written now: the results are those of an earlier request with the same batch id.
    pub(crate) replayed: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Produce {
    inner: Arc<Inner>,
}

struct Inner {
    producer: Arc<dyn Producer>,
    topics: Topics,
    gate: Arc<Gate>,
    keyed: Keyed,
    config: config::Produce,
    tasks: TaskTracker,
    /// `produce.in_flight_bytes_max`, in KiB.
    room: Arc<Semaphore>,
    /// `produce.streams_max`.
    streams: Arc<Semaphore>,
}

impl Produce {
    pub(crate) fn new(
        producer: Arc<dyn Producer>,
        keyed: Keyed,
        topics: Topics,
        gate: Arc<Gate>,
        config: config::Produce,
        tasks: TaskTracker,
    ) -> Self {
        let room = Arc::new(Semaphore::new(config.room_kib() as usize));
        let streams = Arc::new(Semaphore::new(config.streams_max.min(Semaphore::MAX_PERMITS)));
        Self { inner: Arc::new(Inner { producer, keyed, topics, gate, config, tasks, room, streams }) }
    }

    /// Counts a stream of records in, until what is given is dropped.
    pub(crate) fn open_stream(&self) -> Result<OpenStream> {
        drop(self.inner.gate.enter(Work::Produce, 0)?);
        match Arc::clone(&self.inner.streams).try_acquire_owned() {
            Ok(permit) => {
                metrics::gauge!("millrace_bridge_produce_streams").increment(1);
                Ok(OpenStream { _permit: permit })
            }
            Err(_) => Err(BridgeError::new(
                Code::Unavailable,
                format!(
                    "{} streams of records are open already (produce.streams_max); try again, or send batches",
                    self.inner.config.streams_max
                ),
            )),
        }
    }

    /// Resolves when the bridge begins to shut down.
    pub(crate) fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        self.inner.gate.draining()
    }

    /// Writes a batch. An error means that nothing was written; otherwise every record has its own result.
    /// `traceparent` is what the caller sent, for a bridge that does not trace.
    pub(crate) async fn send(&self, batch_id: Option<&str>, mut records: Vec<OutRecord>, traceparent: Option<&str>) -> Result<Receipt> {
        auth::check_records(&records)?;
        check_batch_id(batch_id)?;
        let batch_id = batch_id.map(auth::own_id);
        let span = if telemetry::tracing_on() {
            let topic = records.first().map_or("", |record| &*record.topic);
            tracing::info_span!(
                "produce",
                otel.kind = "producer",
                messaging.system = "kafka",
                messaging.destination.name = topic,
                records = records.len()
            )
        } else {
            tracing::Span::none()
        };
        if let Some(traceparent) = trace::outgoing(&span, traceparent) {
            trace::inject(&mut records, &traceparent);
        }
        self.send_once(batch_id.as_deref(), records).instrument(span).await
    }

    /// Writes a batch whose results nobody waits for; failures are counted and logged.
    pub(crate) fn send_unattended(&self, batch_id: Option<&str>, records: Vec<OutRecord>, traceparent: Option<&str>) -> Result<()> {
        // What can be known now, the caller still learns.
        drop(self.inner.gate.enter(Work::Produce, 0)?);
        auth::check_records(&records)?;
        check_batch_id(batch_id)?;
        let (produce, batch_id, traceparent) = (self.clone(), batch_id.map(str::to_owned), traceparent.map(str::to_owned));
        let written = async move {
            let failed = match produce.send(batch_id.as_deref(), records, traceparent.as_deref()).await {
                Ok(receipt) => receipt.results.iter().find_map(|result| result.as_ref().err().cloned()),
                Err(error) => Some(error),
            };
            if let Some(error) = failed {
                tracing::warn!(%error, "records of an unattended request were not written");
            }
        };
        self.inner.tasks.spawn(auth::carrier().run(written.in_current_span()));
        Ok(())
    }

    async fn send_once(&self, batch_id: Option<&str>, records: Vec<OutRecord>) -> Result<Receipt> {
        let inner = &self.inner;
        if records.len() > inner.config.batch_records_max {
            return Err(BridgeError::new(
                Code::TooLarge,
                format!(
                    "a batch of {} records is larger than {} (produce.batch_records_max); send smaller batches",
                    records.len(),
                    inner.config.batch_records_max
                ),
            ));
        }
        let Some(batch_id) = batch_id.filter(|id| !id.is_empty()) else {
            return Ok(Receipt { results: Arc::new(inner.write(records).await?), replayed: false });
        };
        // The batch and its id are written together, by the bridge's own login.
        if let Some(own) = auth::connection()? {
            own.check_write(records.iter().map(|record| &*record.topic)).await?;
        }
        let (count, topic) = (records.len(), records.first().map(|record| Arc::clone(&record.topic)));
        // A task of its own: when the caller hangs up or has waited long enough, its repetition must find the results.
        let (writer, batch_id) = (Arc::clone(inner), batch_id.to_owned());
        let written = inner.tasks.spawn(async move { writer.write_once(&batch_id, records).await }.in_current_span());
        match timeout(inner.config.timeout + KEYED_MARGIN, written).await {
            Ok(Ok(Err(error))) if error.code == Code::Timeout => {
                Ok(Receipt { results: Arc::new(vec![Err(error); count]), replayed: false })
            }
            Ok(Ok(written)) => written,
            Ok(Err(error)) => Err(BridgeError::new(Code::Internal, format!("writing the batch failed: {error}"))),
            Err(_) => {
                let late = inner.late(topic.as_deref(), PENDING).await;
                Ok(Receipt { results: Arc::new(vec![Err(late); count]), replayed: false })
            }
        }
    }
}

/// Longest batch id in bytes.
const BATCH_ID_BYTES_MAX: usize = 256;

fn check_batch_id(batch_id: Option<&str>) -> Result<()> {
    match batch_id.map(str::len).filter(|length| *length > BATCH_ID_BYTES_MAX) {
        None => Ok(()),
        Some(length) => Err(BridgeError::new(
            Code::Unprocessable,
            format!("a batch id of {length} bytes is longer than {BATCH_ID_BYTES_MAX}; a UUID does"),
        )),
    }
}

/// What a caller may do about a record whose outcome is not known yet: with a batch id, without one, and when it never will be.
const PENDING: &str = "it may still be written; repeat the request under the same key or batch id: it is not written twice, and the outcome is the answer once it is known";
const UNKNOWN: &str = "it may still be written, so a repetition may write it twice; an Idempotency-Key or batch_id prevents that";
const NEVER_KNOWN: &str =
    "it will not be known whether it was written: look into the topic, and send it under another key or batch id if it is not there";
/// How long the reason of a late write is looked for.
const REASON_WAIT_MAX: Duration = Duration::from_millis(500);
/// A write that takes longer is suspicious.
const SLOW_WRITE: Duration = Duration::from_secs(1);
/// By the end of `produce.timeout` a request with an id mostly knows what to say, but for a moment.
const KEYED_MARGIN: Duration = Duration::from_millis(250);

impl Inner {
    /// Writes a batch under its id, unless that was done before.
    async fn write_once(&self, batch_id: &str, records: Vec<OutRecord>) -> Result<Receipt> {
        let _room = self.room(&records).await?;
        let started = Instant::now();
        let receipt = self.keyed.send(batch_id, &fingerprint(&records), records).await?;
        if receipt.replayed {
            metrics::counter!("millrace_bridge_dedup_replayed_total").increment(1);
            return Ok(receipt);
        }
        self.count(&receipt.results);
        metrics::histogram!("millrace_bridge_keyed_seconds").record(started.elapsed());
        Ok(receipt)
    }

    fn count(&self, results: &[RecordOutcome]) {
        let refused = results.iter().filter(|result| result.is_err()).count();
        if results.iter().any(|result| result.as_ref().is_err_and(BridgeError::retryable)) {
            self.gate.suspect();
        }
        metrics::counter!("millrace_bridge_produce_records_total", "result" => "written").increment((results.len() - refused) as u64);
        metrics::counter!("millrace_bridge_produce_records_total", "result" => "refused").increment(refused as u64);
    }

    /// Answers after `produce.timeout`, whatever is known then.
    async fn write(&self, records: Vec<OutRecord>) -> Result<Vec<RecordOutcome>> {
        let _pass = self.gate.enter(Work::Produce, records.len() as u64)?;
        metrics::gauge!("millrace_bridge_produce_in_flight_records").set(self.gate.in_flight() as f64);
        let _room = self.room(&records).await?;
        let started = Instant::now();

        // A record for a topic that is not there would wait for its metadata until the deadline.
        let mut results: Vec<Option<RecordOutcome>> = Vec::with_capacity(records.len());
        let mut sound = Vec::with_capacity(records.len());
        for record in records {
            match self.topics.check(&record.topic, record.partition).await {
                Ok(()) => {
                    results.push(None);
                    sound.push(record);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let (count, topic) = (sound.len(), sound.first().map(|record| Arc::clone(&record.topic)));
        let own = auth::connection()?;
        let producer = match &own {
            Some(own) => own.producer().await?,
            None => &self.producer,
        };
        let writing = self.watched(producer.send(sound));
        let mut written = match timeout(self.config.timeout, writing).await {
            Ok(written) => {
                let given_up = written.iter().any(|result| matches!(result, Err(KafkaError::Timeout(_))));
                let late = if given_up { Some(self.given_up(topic.as_deref()).await) } else { None };
                let outcome = |result: std::result::Result<Written, KafkaError>| match (result, &late) {
                    (Err(KafkaError::Timeout(_)), Some(late)) => Err(late.clone()),
                    (result, _) => result.map_err(BridgeError::from),
                };
                written.into_iter().map(outcome).collect()
            }
            Err(_) => vec![Err(self.late(topic.as_deref(), UNKNOWN).await); count],
        }
        .into_iter();
        let lost = || Err(BridgeError::new(Code::OutcomeUnknown, format!("the producer gave no result; {NEVER_KNOWN}")));
        let results: Vec<RecordOutcome> =
            results.into_iter().map(|refused| refused.or_else(|| written.next()).unwrap_or_else(lost)).collect();

        self.count(&results);
        metrics::histogram!("millrace_bridge_produce_seconds").record(started.elapsed());
        Ok(results)
    }

    /// Room for a batch among what is in flight; nothing was written when there is none.
    async fn room(&self, records: &[OutRecord]) -> Result<Room> {
        let bytes: usize = records.iter().map(size).sum();
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.config.room_kib());
        match timeout(self.config.timeout, Arc::clone(&self.room).acquire_many_owned(kib)).await {
            Ok(Ok(permit)) => Ok(Room::new(permit, kib)),
            _ => Err(BridgeError::new(
                Code::Unavailable,
                format!(
                    "{} bytes wait for Kafka already (produce.in_flight_bytes_max); nothing was written, try again",
                    self.config.in_flight_bytes_max
                ),
            )),
        }
    }

    /// A write that takes long may mean that Kafka is away: have it looked at while this one still waits.
    async fn watched<T>(&self, writing: impl Future<Output = T>) -> T {
        let mut writing = std::pin::pin!(writing);
        match timeout(SLOW_WRITE, &mut writing).await {
            Ok(written) => written,
            Err(_) => {
                self.gate.suspect();
                writing.await
            }
        }
    }

    /// Not acknowledged in time, with the reason where it can be found, and what to do.
    async fn late(&self, topic: Option<&str>, remedy: &str) -> BridgeError {
        let why = self.why_late(topic).await;
        BridgeError::new(Code::Timeout, format!("not acknowledged within {:?} (produce.timeout){why}; {remedy}", self.config.timeout))
    }

    /// The producer has given the record up.
    async fn given_up(&self, topic: Option<&str>) -> BridgeError {
        let why = self.why_late(topic).await;
        BridgeError::new(Code::OutcomeUnknown, format!("not acknowledged within delivery.timeout.ms{why}; {NEVER_KNOWN}"))
    }

    /// The producer tries on while too few replicas are in sync, and does not say that it does.
    async fn why_late(&self, topic: Option<&str>) -> String {
        let Some(topic) = topic else { return String::new() };
        match timeout(REASON_WAIT_MAX, self.topics.short_of_replicas(topic)).await {
            Ok(Ok(Some(why))) => format!(": {why}"),
            _ => String::new(),
        }
    }
}

/// A stream of records that is open.
pub(crate) struct OpenStream {
    _permit: OwnedSemaphorePermit,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!("millrace_bridge_produce_streams").decrement(1);
    }
}

/// A batch's part of `produce.in_flight_bytes_max`.
struct Room {
    _permit: OwnedSemaphorePermit,
    kib: u32,
}

impl Room {
    fn new(permit: OwnedSemaphorePermit, kib: u32) -> Self {
        metrics::gauge!("millrace_bridge_produce_in_flight_bytes").increment(f64::from(kib) * 1024.0);
        Self { _permit: permit, kib }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        metrics::gauge!("millrace_bridge_produce_in_flight_bytes").decrement(f64::from(self.kib) * 1024.0);
    }
}

fn size(record: &OutRecord) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    length(&record.key) + length(&record.value) + headers
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::testing::{self, FakeKafka};

    fn record(topic: &str, partition: Option<i32>, value: &str) -> OutRecord {
        OutRecord { topic: topic.into(), partition, key: None, value: Some(value.to_owned().into()), headers: vec![], timestamp_ms: None }
    }

    fn codes(receipt: &Receipt) -> Vec<Option<Code>> {
        receipt.results.iter().map(|result| result.as_ref().err().map(|error| error.code)).collect()
    }

    #[tokio::test]
    async fn every_record_has_its_own_result_in_order() {
        let kafka = FakeKafka::with_topic("t", 2);
        let produce = testing::produce(&kafka);
        kafka.fail_next_produce("b", KafkaError::TooLarge { bytes: 2, max: 1 });
        let records = vec![
            record("t", None, "a"),
            record("none", None, "x"),
            record("t", Some(2), "x"),
            record("t", Some(1), "b"),
            record("t", Some(1), "c"),
        ];
        let receipt = produce.send(None, records, None).await.unwrap();
        assert_eq!(codes(&receipt), [None, Some(Code::TopicNotFound), Some(Code::PartitionNotFound), Some(Code::TooLarge), None]);
        assert_eq!(kafka.values("t"), ["a", "c"]);
    }

    #[tokio::test]
    async fn a_repeated_batch_is_not_written_twice_and_one_that_was_not_written_is_tried_again_as_a_whole() {
        let kafka = FakeKafka::with_topic("t", 1);
        let produce = testing::produce(&kafka);
        let batch = || vec![record("t", None, "a"), record("t", None, "b"), record("t", None, "c")];
        kafka.fail_next_produce("b", KafkaError::Retryable("leader moves".into()));
        let first = produce.send(Some("1"), batch(), None).await.unwrap();
        assert_eq!(codes(&first), [Some(Code::KafkaRetriable); 3]);
        assert!(first.results[0].as_ref().unwrap_err().message.contains("record 1"), "{first:?}");
        let second = produce.send(Some("1"), batch(), None).await.unwrap();
        assert_eq!((codes(&second), second.replayed), (vec![None; 3], false));
        let third = produce.send(Some("1"), batch(), None).await.unwrap();
        assert!(third.replayed);
        assert_eq!(third.results, second.results);
        assert_eq!(kafka.committed_values("t"), ["a", "b", "c"]);
        produce.send(None, batch(), None).await.unwrap();
        assert_eq!(kafka.committed_values("t").len(), 6, "without an id nothing is recognised");
    }

    #[tokio::test]
    async fn too_many_records_are_refused_before_anything_is_written() {
        let kafka = FakeKafka::with_topic("t", 1);
        let produce = testing::produce(&kafka);
        let records = (0..=config::Produce::default().batch_records_max).map(|_| record("t", None, "x")).collect();
        assert_eq!(produce.send(None, records, None).await.unwrap_err().code, Code::TooLarge);
        assert_eq!(produce.send(Some(&"x".repeat(300)), vec![], None).await.unwrap_err().code, Code::Unprocessable);
        assert!(kafka.values("t").is_empty());
    }

    #[tokio::test]
    async fn a_producer_that_never_answers_is_given_up_at_the_deadline() {
        let kafka = FakeKafka::with_topic("t", 1);
        let config = config::Produce { timeout: Duration::from_millis(10), ..config::Produce::default() };
        let produce = testing::produce_with(&kafka, config);
        kafka.hang();
        let receipt = produce.send(None, vec![record("t", None, "a")], None).await.unwrap();
        assert_eq!(codes(&receipt), [Some(Code::Timeout)]);
        assert!(receipt.results[0].as_ref().unwrap_err().retryable());
    }

    fn impatient(kafka: &FakeKafka, in_flight_bytes_max: u64) -> Produce {
        let config = config::Produce { timeout: Duration::from_millis(50), in_flight_bytes_max, ..config::Produce::default() };
        testing::produce_with(kafka, config)
    }

    /// Repeats a batch until it is written.
    async fn persist(produce: &Produce, key: &str, batch: impl Fn() -> Vec<OutRecord>) -> Receipt {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match produce.send(Some(key), batch(), None).await {
                Ok(receipt) if receipt.results.iter().all(Result::is_ok) => return receipt,
                failed => assert!(Instant::now() < deadline, "{failed:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_batch_whose_outcome_is_open_is_awaited_by_its_repetition_and_not_written_again() {
        let kafka = FakeKafka::with_topic("t", 1);
        let produce = impatient(&kafka, 1 << 20);
        kafka.hang();
        let batch = || vec![record("t", None, "once")];
        for attempt in 0..2 {
            let receipt = produce.send(Some("k"), batch(), None).await.unwrap();
            let error = receipt.results[0].as_ref().unwrap_err();
            assert_eq!(error.code, Code::Timeout, "{attempt}");
            assert!(error.message.contains("may still be written") && error.message.contains("same key"), "{error}");
        }
        kafka.resume();
        persist(&produce, "k", batch).await;
        assert!(produce.send(Some("k"), batch(), None).await.unwrap().replayed);
        assert_eq!(kafka.committed_values("t"), ["once"]);
    }

    #[tokio::test]
    async fn bytes_in_flight_are_bounded_and_what_finds_no_room_is_not_written() {
        let kafka = FakeKafka::with_topic("t", 1);
        let produce = impatient(&kafka, 4096);
        kafka.hang();
        produce.send(Some("k"), vec![record("t", None, &"x".repeat(4000))], None).await.unwrap();
        let error = produce.send(None, vec![record("t", None, "y")], None).await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable);
        assert!(error.message.contains("in_flight_bytes_max"), "{error}");
        kafka.resume();
        persist(&produce, "k", || vec![record("t", None, &"x".repeat(4000))]).await;
        assert!(produce.send(None, vec![record("t", None, "y")], None).await.unwrap().results[0].is_ok());
    }

    #[tokio::test]
    async fn a_late_write_names_the_replicas_that_are_missing() {
        let kafka = FakeKafka::with_topic("t", 1);
        kafka.set_topic_config("min.insync.replicas", "2");
        let produce = impatient(&kafka, 1 << 20);
        kafka.hang();
        let receipt = produce.send(None, vec![record("t", None, "a")], None).await.unwrap();
        let message = &receipt.results[0].as_ref().unwrap_err().message;
        assert!(message.contains("t-0 has 1 replica in sync") && message.contains("min.insync.replicas is 2"), "{message}");
    }
}
