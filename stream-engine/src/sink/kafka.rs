//! Kafka sink: one record per row.
//!
//! `exactly-once` is one transaction per batch. The batch's id stands in the metadata of the offsets that the same
//! transaction commits for the group `<sink.transactional-id-prefix>` (`-2`, … for further INSERTs into the table, then `/0`, `/1`, … for the slots of a shared job), so
//! records and mark appear together. A new writer reads the mark and skips the batches that are written already; a mark of a batch that this
//! process knows nothing of, or of one of its number that covered other records, is another process's, or a checkpoint was put back: then nothing is written ([`Fenced`]).
//! A batch without rows writes nothing. A transaction is open while its batch is read and written, so a batch must fit into
//! `properties.transaction.timeout.ms` (60 s): bound it by `spark.streaming.kafka.maxRatePerPartition`.
//!
//! The client library speaks the older transaction protocol (before KIP-890), in which a request that was held up may end a
//! later transaction; a warning says so at the start.
//!
//! `at-least-once` sends and waits until every record is acknowledged; so does `at-most-once`, to which no batch comes twice.

use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use service_kit::kafka::{self, KafkaConfig, KafkaError, OutRecord, Producer, TopicPartition, TransactionalWriter};
use service_kit::telemetry;
use tracing::{info, warn};

use super::{Fenced, Guarantee, RowStream, Sink, SinkKind, SinkTable};
use crate::batch::BatchContext;
use crate::fault::Point;
use crate::format::{JsonEncoder, TimestampStyle};
use crate::sql::SqlError;
use crate::sql::kafka::KafkaTable;
use crate::sql::options::Options;

pub(super) const KIND: SinkKind = SinkKind { name: "kafka", upsert: false, options: KafkaTable::known_options, build };

fn build(options: &mut Options, table: &SinkTable) -> Result<Box<dyn Sink>, SqlError> {
    let kafka = KafkaTable::read(options, &table.fields)?;
    let [topic] = kafka.topics.as_slice() else {
        return Err(options.error(
            "topic",
            "a table that is written has one topic",
            "name one topic, and write to others by further tables",
        ));
    };
    if !table.primary_key.is_empty() {
        return Err(options.error(
            "connector",
            "connector `kafka` appends; it cannot hold to a PRIMARY KEY",
            "remove the PRIMARY KEY (`upsert-kafka` is not built yet)",
        ));
    }
    for (key, choice) in [("format", Some(&kafka.value)), ("key.format", kafka.key.as_ref())] {
        if choice.is_some_and(|choice| choice.name == "regex") {
            return Err(options.error(key, "format `regex` only reads", "write `json` or `raw`"));
        }
    }
    let columns = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        table.schema.fields().iter().enumerate().filter(|(_, field)| wanted(field.name())).map(|(index, _)| index).collect()
    };
    let is_key = |name: &str| kafka.key_fields.iter().any(|key| key == name);
    let timestamps = if kafka.iso_timestamps { TimestampStyle::Iso } else { TimestampStyle::Sql };
    let encoder = Encoder {
        topic: topic.as_str().into(),
        json: JsonEncoder { timestamps, without_nulls: kafka.without_nulls },
        value: columns(&|name| kafka.value_has_key || !is_key(name)),
        value_raw: kafka.value.name == "raw",
        key: columns(&is_key),
        key_raw: kafka.key.as_ref().is_some_and(|choice| choice.name == "raw"),
    };
    let delivery = match &kafka.transactional_prefix {
        None => Delivery::AtLeastOnce(None),
        Some(prefix) => {
            let id = if table.ordinal == 0 { prefix.clone() } else { format!("{prefix}-{}", table.ordinal + 1) };
            let output = table.output.clone();
            Delivery::ExactlyOnce(Transactions::new(id, output))
        }
    };
    Ok(Box::new(KafkaSink { kafka, encoder: Arc::new(encoder), delivery }))
}

struct KafkaSink {
    kafka: KafkaTable,
    encoder: Arc<Encoder>,
    delivery: Delivery,
}

enum Delivery {
    AtLeastOnce(Option<Arc<dyn Producer>>),
    ExactlyOnce(Transactions),
}

/// Records in transactions, one for each batch, with the batch's mark.
pub(crate) struct Transactions {
    /// Transactional id, and the group of the marks; a slot's ends in `/SLOT`.
    id: String,
    prefix: String,
    output: String,
    /// The first writer was made.
    started: bool,
    writer: Option<Box<dyn TransactionalWriter>>,
    /// A call was dropped inside a transaction; the writer must not be used again.
    open: bool,
    /// The last batch that is written, of this checkpoint.
    written: Option<Written>,
}

#[async_trait]
impl Sink for KafkaSink {
    fn guarantee(&self) -> Guarantee {
        self.kafka.guarantee
    }

    async fn write(&mut self, batch: &BatchContext, rows: RowStream) -> anyhow::Result<u64> {
        match &mut self.delivery {
            Delivery::AtLeastOnce(producer) => {
                let producer = match producer {
                    Some(producer) => producer.clone(),
                    None => producer.insert(kafka::producer(&self.kafka.config).await?).clone(),
                };
                send_all(&*producer, &self.encoder, rows, batch).await
            }
            Delivery::ExactlyOnce(transactions) => {
                let encoder = &self.encoder;
                let records = rows.then(move |rows| async move { encoder.clone().records(rows?, batch).await });
                transactions.write(&self.kafka.config, &encoder.topic, batch, records.boxed()).await
            }
        }
    }
}

async fn send_all(producer: &dyn Producer, encoder: &Arc<Encoder>, mut rows: RowStream, batch: &BatchContext) -> anyhow::Result<u64> {
    let mut count = 0;
    while let Some(next) = rows.next().await {
        let records = encoder.clone().records(next?, batch).await?;
        count += records.len() as u64;
        for result in producer.send(records).await {
            result.with_context(|| format!("writing to topic `{}`", encoder.topic))?;
        }
    }
    Ok(count)
}

/// Records of one batch, in the order in which they are written.
type Records<'a> = BoxStream<'a, anyhow::Result<Vec<OutRecord>>>;

impl Transactions {
    pub(crate) fn new(prefix: String, output: String) -> Self {
        Self { id: prefix.clone(), prefix, output, started: false, writer: None, open: false, written: None }
    }

    /// Gives the number of records, also of a batch that was written before.
    pub(crate) async fn write(
        &mut self,
        config: &KafkaConfig,
        topic: &Arc<str>,
        batch: &BatchContext,
        mut records: Records<'_>,
    ) -> anyhow::Result<u64> {
        if self.open || self.writer.is_none() {
            self.renew(config, batch).await?;
        }
        // A checkpoint that was put back gives new ranges the ids of batches that are written: skipped, their rows would be lost.
        let (id, digest) = (batch.definition.id, batch.definition.digest());
        if let Some(Written { batch: ahead, .. }) =
            self.written.filter(|written| written.batch > batch.newest || written.is_another(id, digest))
        {
            return Err(Fenced { output: self.output.clone(), batch: id, ahead }.into());
        }
        let mut count = 0;
        if self.written.is_some_and(|written| written.batch >= id) {
            while let Some(next) = records.next().await {
                count += next?.len() as u64;
            }
            info!(batch = batch.definition.id, output = %self.id, "batch is in Kafka already, skipped");
            return Ok(count);
        }
        let result = self.transaction(topic, batch, &mut records, &mut count).await;
        let outcome_is_clear = match &result {
            Ok(()) => true,
            Err(error) => self.abort(error).await,
        };
        if !outcome_is_clear {
            self.writer = None;
        }
        self.open = false;
        result?;
        self.written = Some(Written { batch: id, digest: Some(digest) });
        Ok(count)
    }

    async fn transaction(
        &mut self,
        topic: &Arc<str>,
        batch: &BatchContext,
        records: &mut Records<'_>,
        count: &mut u64,
    ) -> anyhow::Result<()> {
        let writer = self.writer.as_mut().context("made above")?;
        while let Some(next) = records.next().await {
            let records = next?;
            if records.is_empty() {
                continue;
            }
            if *count == 0 {
                self.open = true;
                writer.begin().await?;
                Point::KafkaTransactionBegun.reach();
            }
            *count += records.len() as u64;
            writer.send(records).await.with_context(|| format!("writing to topic `{topic}`"))?;
            Point::KafkaPartSent.reach();
        }
        if *count > 0 {
            if !Point::KafkaMarksWrite.hits()? {
                writer.offsets(&self.id, marks(batch, topic)).await?;
            }
            Point::KafkaMarksWritten.reach();
            writer.commit().await?;
            Point::KafkaCommitted.reach();
        }
        Ok(())
    }

    /// Whether the writer can go on.
    async fn abort(&mut self, error: &anyhow::Error) -> bool {
        let poisoned = matches!(
            error.downcast_ref::<KafkaError>(),
            Some(KafkaError::OutcomeUnknown(_) | KafkaError::Fenced(_) | KafkaError::Fatal(_))
        );
        match (&mut self.writer, poisoned) {
            (Some(writer), false) if self.open => writer.abort().await.is_ok(),
            (_, poisoned) => !poisoned,
        }
    }

    /// A new writer fences the old one and settles its transaction; only then is the mark final.
    async fn renew(&mut self, config: &KafkaConfig, batch: &BatchContext) -> anyhow::Result<()> {
        self.writer = None;
        self.id = batch.slot.map_or_else(|| self.prefix.clone(), |slot| format!("{}/{slot}", self.prefix));
        self.writer = Some(kafka::transactional_writer(config, &self.id).await?);
        let unread = Point::KafkaMarksRead.hits()?;
        let marks = if unread { Default::default() } else { kafka::admin(config).await?.committed(&self.id, None).await? };
        self.written =
            marks.values().filter_map(|(_, metadata)| Written::parse(metadata, &batch.checkpoint_id)).max_by_key(|written| written.batch);
        self.open = false;
        if !std::mem::replace(&mut self.started, true) {
            warn!(
                output = %self.id,
                "exactly-once uses Kafka's older transaction protocol (the client library does not speak transactions v2): \
                 a request that the network held up may end a later transaction"
            );
        }
        Ok(())
    }
}

/// Offsets of the batch's input with the batch in their metadata. A batch that read nothing marks the sink's topic.
fn marks(batch: &BatchContext, topic: &Arc<str>) -> Vec<(TopicPartition, i64, String)> {
    let (id, digest) = (batch.definition.id, batch.definition.digest());
    let metadata = format!("millrace checkpoint={} batch={id} of={digest:08x}", batch.checkpoint_id);
    let mut marks: Vec<_> = batch.definition.all_ranges().map(|range| (range.topic_partition(), range.until, metadata.clone())).collect();
    if marks.is_empty() {
        marks.push((TopicPartition::new(topic.clone(), 0), 0, metadata));
    }
    marks
}

/// The batch in a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    batch: u64,
    /// Of what it covered; marks of the first versions are without.
    digest: Option<u32>,
}

impl Written {
    /// `None` for another checkpoint's.
    fn parse(metadata: &str, checkpoint_id: &str) -> Option<Self> {
        let mut parts = metadata.strip_prefix("millrace checkpoint=")?.split(' ');
        let is_ours = parts.next()? == checkpoint_id;
        let batch = parts.next()?.strip_prefix("batch=")?.parse().ok()?;
        let digest = parts.next().and_then(|part| u32::from_str_radix(part.strip_prefix("of=")?, 16).ok());
        is_ours.then_some(Self { batch, digest })
    }

    /// It has the number, and covered something else.
    fn is_another(self, batch: u64, digest: u32) -> bool {
        self.batch == batch && self.digest.is_some_and(|of| of != digest)
    }
}

/// Rows → records.
struct Encoder {
    topic: Arc<str>,
    json: JsonEncoder,
    value: Vec<usize>,
    value_raw: bool,
    key: Vec<usize>,
    key_raw: bool,
}

impl Encoder {
    /// Encodes beside the runtime: a batch takes milliseconds.
    async fn records(self: Arc<Self>, rows: RecordBatch, batch: &BatchContext) -> anyhow::Result<Vec<OutRecord>> {
        let headers: Vec<(String, Bytes)> =
            telemetry::traceparent(&batch.span).map(|parent| ("traceparent".to_owned(), Bytes::from(parent))).into_iter().collect();
        tokio::task::spawn_blocking(move || self.encode(&rows, &headers)).await?
    }

    fn encode(&self, rows: &RecordBatch, headers: &[(String, Bytes)]) -> anyhow::Result<Vec<OutRecord>> {
        let values = self.texts(rows, &self.value, self.value_raw)?;
        let mut keys = match self.key.as_slice() {
            [] => Vec::new(),
            key => self.texts(rows, key, self.key_raw)?,
        }
        .into_iter();
        let records = values.into_iter().map(|value| OutRecord {
            topic: self.topic.clone(),
            partition: None,
            key: keys.next().flatten(),
            value,
            headers: headers.to_vec(),
            timestamp_ms: None,
        });
        Ok(records.collect())
    }

    fn texts(&self, rows: &RecordBatch, columns: &[usize], raw: bool) -> anyhow::Result<Vec<Option<Bytes>>> {
        let part = rows.project(columns)?;
        if !raw {
            return Ok(self.json.encode(&part)?.into_iter().map(Some).collect());
        }
        let column = part.columns().first().context("format `raw` writes one column")?;
        let bytes = match column.data_type() {
            DataType::Binary => column.clone(),
            _ => arrow::compute::cast(column, &DataType::Binary)?,
        };
        let bytes = bytes.as_binary::<i32>();
        Ok(bytes.iter().map(|value| value.map(Bytes::copy_from_slice)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_only_for_its_own_checkpoint() {
        let mark = "millrace checkpoint=7f batch=12 of=0000ab01";
        assert_eq!(Written::parse(mark, "7f"), Some(Written { batch: 12, digest: Some(0xab01) }));
        assert_eq!(Written::parse("millrace checkpoint=7f batch=12", "7f"), Some(Written { batch: 12, digest: None }));
        assert_eq!(Written::parse(mark, "7e"), None);
        assert_eq!(Written::parse("someone else's metadata", "7f"), None);
        assert_eq!(Written::parse("", ""), None);
    }

    #[test]
    fn a_batch_of_the_same_number_that_covered_something_else_is_another() {
        let written = Written { batch: 12, digest: Some(1) };
        assert!(written.is_another(12, 2));
        assert!(!written.is_another(12, 1) && !written.is_another(13, 2));
        assert!(!Written { digest: None, ..written }.is_another(12, 2), "nobody can tell");
    }
}
