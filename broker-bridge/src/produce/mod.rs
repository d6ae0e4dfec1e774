//! Records in: checked, written, and answered one by one. Knows neither HTTP nor gRPC.
//!
//! Promise: an `Ok` result was acknowledged by Kafka as `acks` demands (all, unless configured otherwise). An error says whether the record
//! may be sent again; with a batch id that is safe within the window of `dedup`.
//! Limits: records in a batch (`produce.batch_records_max`), time to acknowledgement (`produce.timeout`).

mod dedup;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use service_kit::{
    kafka::{OutRecord, Producer, Written},
    telemetry,
};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::{
    config,
    error::{BridgeError, Code, Result},
    gate::{Gate, Work},
    produce::dedup::{Claim, Dedup, may_pass},
    topics::Topics,
    trace,
};

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
    dedup: Arc<Dedup>,
    config: config::Produce,
    tasks: TaskTracker,
}

impl Produce {
    pub(crate) fn new(producer: Arc<dyn Producer>, topics: Topics, gate: Arc<Gate>, config: config::Produce, tasks: TaskTracker) -> Self {
        let dedup = Dedup::new(config.dedup_records_max, config.dedup_age);
        Self { inner: Arc::new(Inner { producer, topics, gate, dedup, config, tasks }) }
    }

    /// Writes a batch. An error means that nothing was written; otherwise every record has its own result.
    /// `traceparent` is what the caller sent, for a bridge that does not trace.
    pub(crate) async fn send(&self, batch_id: Option<&str>, mut records: Vec<OutRecord>, traceparent: Option<&str>) -> Result<Receipt> {
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
        self.send_once(batch_id, records).instrument(span).await
    }

    /// Writes a batch whose results nobody waits for; failures are counted and logged.
    pub(crate) fn send_unattended(&self, records: Vec<OutRecord>, traceparent: Option<&str>) -> Result<()> {
        // What can be known now, the caller still learns.
        drop(self.inner.gate.enter(Work::Produce, 0)?);
        let (produce, traceparent) = (self.clone(), traceparent.map(str::to_owned));
        let written = async move {
            let failed = match produce.send(None, records, traceparent.as_deref()).await {
                Ok(receipt) => receipt.results.iter().find_map(|result| result.as_ref().err().cloned()),
                Err(error) => Some(error),
            };
            if let Some(error) = failed {
                tracing::warn!(%error, "records of an unattended request were not written");
            }
        };
        self.inner.tasks.spawn(written.in_current_span());
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
        if batch_id.len() > BATCH_ID_BYTES_MAX {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!("a batch id of {} bytes is longer than {BATCH_ID_BYTES_MAX}; a UUID does", batch_id.len()),
            ));
        }
        match inner.dedup.claim(batch_id, fingerprint(&records)).await? {
            Claim::Replay(results) => {
                metrics::counter!("millrace_bridge_dedup_replayed_total").increment(1);
                Ok(Receipt { results, replayed: true })
            }
            Claim::Write { ticket, earlier } => {
                // A task of its own: when the caller hangs up, the results must still be there for its repetition.
                let inner = Arc::clone(inner);
                let written = async move {
                    match inner.write_missing(records, earlier.as_deref()).await {
                        Ok(results) => {
                            let results = Arc::new(results);
                            ticket.finish(Arc::clone(&results));
                            Ok(Receipt { results, replayed: false })
                        }
                        Err(error) => {
                            // What an earlier attempt wrote must not be forgotten because this one was not let in.
                            if let Some(earlier) = earlier {
                                ticket.finish(earlier);
                            }
                            Err(error)
                        }
                    }
                };
                let task = self.inner.tasks.spawn(written.in_current_span());
                task.await.unwrap_or_else(|error| Err(BridgeError::new(Code::Internal, format!("writing the batch failed: {error}"))))
            }
        }
    }
}

/// Longest batch id in bytes.
const BATCH_ID_BYTES_MAX: usize = 256;
/// A write that takes longer is suspicious.
const SLOW_WRITE: std::time::Duration = std::time::Duration::from_secs(1);

impl Inner {
    /// Writes those records whose earlier result may pass, and puts the results together.
    async fn write_missing(&self, records: Vec<OutRecord>, earlier: Option<&Vec<RecordOutcome>>) -> Result<Vec<RecordOutcome>> {
        let Some(earlier) = earlier else { return self.write(records).await };
        let missing = records.into_iter().zip(earlier).filter(|(_, result)| may_pass(result)).map(|(record, _)| record).collect();
        let mut again = self.write(missing).await?.into_iter();
        let merge = |result: &RecordOutcome| if may_pass(result) { again.next() } else { Some(result.clone()) };
        Ok(earlier.iter().filter_map(merge).collect())
    }

    async fn write(&self, records: Vec<OutRecord>) -> Result<Vec<RecordOutcome>> {
        let _pass = self.gate.enter(Work::Produce, records.len() as u64)?;
        metrics::gauge!("millrace_bridge_produce_in_flight_records").set(self.gate.in_flight() as f64);
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
        let count = sound.len();
        // The producer gives up by itself after `produce.timeout` (its delivery.timeout.ms); the margin is for its answer.
        let deadline = self.config.timeout + std::time::Duration::from_secs(1);
        let mut written = match timeout(deadline, self.watched(self.producer.send(sound))).await {
            Ok(written) => written.into_iter().map(|result| result.map_err(BridgeError::from)).collect(),
            Err(_) => vec![Err(self.late()); count],
        }
        .into_iter();
        let results: Vec<RecordOutcome> =
            results.into_iter().map(|refused| refused.or_else(|| written.next()).unwrap_or_else(|| Err(self.late()))).collect();

        let refused = results.iter().filter(|result| result.is_err()).count();
        if results.iter().any(may_pass) {
            self.gate.suspect();
        }
        metrics::counter!("millrace_bridge_produce_records_total", "result" => "written").increment((results.len() - refused) as u64);
        metrics::counter!("millrace_bridge_produce_records_total", "result" => "refused").increment(refused as u64);
        metrics::histogram!("millrace_bridge_produce_seconds").record(started.elapsed());
        Ok(results)
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

    fn late(&self) -> BridgeError {
        BridgeError::new(
            Code::Timeout,
            format!(
                "not acknowledged within {:?} (produce.timeout); it is not known whether the record was written, so a repetition may write it twice",
                self.config.timeout
            ),
        )
    }
}

/// Tells a repeated batch from another one under the same id. The trace may differ, so headers do not count.
fn fingerprint(records: &[OutRecord]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for record in records {
        (&record.topic, record.partition, &record.key, &record.value, record.timestamp_ms).hash(&mut hasher);
    }
    records.len().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use service_kit::kafka::KafkaError;

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
    async fn a_repeated_batch_is_not_written_twice_and_only_what_may_pass_is_tried_again() {
        let kafka = FakeKafka::with_topic("t", 1);
        let produce = testing::produce(&kafka);
        let batch = || vec![record("t", None, "a"), record("t", None, "b"), record("t", None, "c")];
        kafka.fail_next_produce("b", KafkaError::Retryable("leader moves".into()));
        let first = produce.send(Some("1"), batch(), None).await.unwrap();
        assert_eq!(codes(&first), [None, Some(Code::KafkaRetriable), None]);
        let second = produce.send(Some("1"), batch(), None).await.unwrap();
        assert_eq!(codes(&second), [None, None, None]);
        assert!(!second.replayed);
        assert_eq!(second.results[0], first.results[0]);
        let third = produce.send(Some("1"), batch(), None).await.unwrap();
        assert!(third.replayed);
        assert_eq!(third.results, second.results);
        assert_eq!(kafka.values("t"), ["a", "c", "b"]);
        produce.send(None, batch(), None).await.unwrap();
        assert_eq!(kafka.values("t").len(), 6, "without an id nothing is recognised");
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
        let config = config::Produce { timeout: std::time::Duration::from_millis(10), ..config::Produce::default() };
        let produce = Produce::new(Arc::new(kafka.clone()), testing::topics(&kafka), testing::gate(), config, TaskTracker::new());
        kafka.hang_produce();
        let receipt = produce.send(None, vec![record("t", None, "a")], None).await.unwrap();
        assert_eq!(codes(&receipt), [Some(Code::Timeout)]);
        assert!(receipt.results[0].as_ref().unwrap_err().retryable());
    }
}
