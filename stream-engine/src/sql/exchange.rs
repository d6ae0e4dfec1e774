//! What the slots of a shared job (`job.slots`) say to each other, where queries group rows.
//!
//! ```text
//! slot s reads its partitions ─▶ partial states by key and pane ─▶ topic of the job, partition k = slot of the key ─▶ slot k: windows ─▶ sinks
//! ```
//! A slot is cut in two halves, [`Part::Rows`] and [`Part::Windows`], which run as jobs by themselves, each with its own checkpoint, and meet in the topic. What a batch of the
//! first half gives goes there in one transaction, partly merged: one row for each key and pane, however many rows came. The second half reads it with
//! `read_committed`; its state is that of its keys alone.
//!
//! Event time: with its rows a slot tells every other what it has seen of each input partition. So every slot keeps the clocks of all partitions, and
//! comes to the watermark that one process would have come to. A slot that has said nothing for a while is not silent but away, and holds the watermark back.
//! What is late is told by the pane: `late` counts partial states, not rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use arrow::array::{AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::TimestampMillisecondType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use datafusion::execution::TaskContext;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use service_kit::kafka::{Isolation, KafkaConfig, OutRecord, Record};

use super::plan::WindowPlan;
use super::watermark::Seen;
use super::window;
use crate::batch::{BatchContext, PartitionInput, SourceKind, SourceSpec, Startup};
use crate::commit::slots::{Shape, Slot};
use crate::sink::kafka::Transactions;

/// How the topic's records are written and its keys placed. Another number is another topic.
const VERSION: u32 = 1;
/// A slot without rows says so this often; milliseconds.
const TELL_INTERVAL_MS: i64 = 500;
/// After so many times without a word a slot is away.
const WORDS_MISSED_MAX: i64 = 6;
/// Of one record, about: brokers take 1 MiB.
const RECORD_BYTES: usize = 512 << 10;

/// The topic between the slots of one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exchange {
    pub(crate) topic: Arc<str>,
    pub(crate) shape: Shape,
}

impl Exchange {
    /// `id`: the job's own, so that a job that begins anew does not read what was written for the one before.
    pub(crate) fn new(job: &str, id: &str, shape: Shape) -> Self {
        Self { topic: format!("millrace-{job}-exchange-{VERSION}-{id}").into(), shape }
    }
}

/// Which half of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Reads the sources; runs the queries without state to their sinks, and those with windows up to the topic.
    Rows(Exchange),
    /// Reads the topic and runs the windows.
    Windows(Exchange),
}

/// In front of a record's rows: four bytes with the length of this JSON (little endian), this, Arrow IPC.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Said {
    /// Partial states of this output.
    Rows { output: String },
    /// What a slot has seen of its partitions since it last said so, by source; no rows.
    Seen { slot: u32, seen: Vec<Vec<Seen>> },
}

/// An output whose query groups rows.
pub(crate) struct Grouped {
    pub(crate) name: String,
    pub(crate) plan: Arc<WindowPlan>,
    /// Panes that begin before this are late: their windows are emitted.
    pub(crate) late_before: Option<i64>,
}

/// The way into the topic.
pub(crate) struct Writer {
    exchange: Exchange,
    kafka: KafkaConfig,
    transactions: Transactions,
    /// When it last told what it has seen, and which partitions were read to their end.
    told: Option<(i64, Vec<Vec<bool>>)>,
}

impl Writer {
    pub(crate) fn new(exchange: Exchange, kafka: KafkaConfig) -> Self {
        let transactions = Transactions::new(exchange.topic.to_string(), "exchange".into());
        Self { exchange, kafka, transactions, told: None }
    }

    /// Writes what a batch gave, `partials` by output and `seen` by source, in one transaction.
    pub(crate) async fn write(
        &mut self,
        batch: &BatchContext,
        outputs: &[Option<Grouped>],
        context: &TaskContext,
        partials: Vec<Vec<RecordBatch>>,
        seen: Vec<Vec<Seen>>,
    ) -> anyhow::Result<()> {
        let records = self.records(batch, outputs, context, partials, seen).await?;
        let records = if records.is_empty() { stream::empty().boxed() } else { stream::once(async { Ok(records) }).boxed() };
        self.transactions.write(&self.kafka, &self.exchange.topic, batch, records).await?;
        Ok(())
    }

    pub(super) async fn records(
        &mut self,
        batch: &BatchContext,
        outputs: &[Option<Grouped>],
        context: &TaskContext,
        partials: Vec<Vec<RecordBatch>>,
        seen: Vec<Vec<Seen>>,
    ) -> anyhow::Result<Vec<OutRecord>> {
        let mut records = Vec::new();
        for (output, partials) in outputs.iter().zip(partials) {
            let Some(Grouped { name, plan, .. }) = output else { continue };
            let merged = if partials.len() > 1 { window::run(&plan.reduce, context, partials).await? } else { partials };
            let head = framed(&Said::Rows { output: name.clone() })?;
            for rows in merged.iter().filter(|rows| rows.num_rows() > 0) {
                for (slot, rows) in cut(&self.exchange.shape, plan, name, rows)? {
                    let pieces = rows.get_array_memory_size().div_ceil(RECORD_BYTES);
                    let piece = rows.num_rows().div_ceil(pieces.max(1));
                    for from in (0..rows.num_rows()).step_by(piece) {
                        let rows = rows.slice(from, piece.min(rows.num_rows() - from));
                        let mut ipc = StreamWriter::try_new(head.clone(), &rows.schema())?;
                        ipc.write(&rows)?;
                        ipc.finish()?;
                        records.push(self.record(slot, ipc.into_inner()?));
                    }
                }
            }
        }
        let caught_up: Vec<Vec<bool>> = seen.iter().map(|seen| seen.iter().map(|seen| seen.caught_up).collect()).collect();
        let time_ms = batch.definition.time_ms;
        let news = seen.iter().flatten().any(|seen| seen.max_event_ms.is_some())
            || self.told.as_ref().is_none_or(|(at, was)| *was != caught_up || time_ms - at >= TELL_INTERVAL_MS);
        if news {
            let slot = batch.slot.context("only slots exchange rows")?;
            let value = framed(&Said::Seen { slot: slot.0, seen })?;
            // After the rows: whoever hears of an event time has its row already.
            records.extend((0..self.exchange.shape.slots).map(|slot| self.record(Slot(slot), value.clone())));
            self.told = Some((time_ms, caught_up));
        }
        Ok(records)
    }

    fn record(&self, slot: Slot, value: Vec<u8>) -> OutRecord {
        OutRecord {
            topic: self.exchange.topic.clone(),
            // At most `SLOTS_MAX`.
            partition: Some(slot.0.cast_signed()),
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }
}

fn framed(head: &Said) -> anyhow::Result<Vec<u8>> {
    let head = serde_json::to_vec(head)?;
    let mut value = u32::try_from(head.len())?.to_le_bytes().to_vec();
    value.extend(head);
    Ok(value)
}

/// Partial states by the slot of their key. All panes of a key are in one slot; all keys are where the query looks at several rows of a window at once.
fn cut(shape: &Shape, plan: &WindowPlan, output: &str, rows: &RecordBatch) -> anyhow::Result<Vec<(Slot, RecordBatch)>> {
    let slot_of = |key: &[u8]| shape.slot_of_key_group(shape.key_group(key));
    if plan.one_by_one || plan.keys.is_empty() {
        return Ok(vec![(slot_of(output.as_bytes()), rows.clone())]);
    }
    // Column 0 is the pane.
    let keys = &rows.columns()[1..=plan.keys.len()];
    let converter = RowConverter::new(keys.iter().map(|key| SortField::new(key.data_type().clone())).collect())?;
    let keys = converter.convert_columns(keys)?;
    let mut slots: BTreeMap<Slot, Vec<u32>> = BTreeMap::new();
    for (row, key) in (0..).zip(keys.iter()) {
        slots.entry(slot_of(key.as_ref())).or_default().push(row);
    }
    slots.into_iter().map(|(slot, of_slot)| Ok((slot, take_record_batch(rows, &UInt32Array::from(of_slot))?))).collect()
}

/// What a slot has heard of the others; goes into the snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// By slot.
    slots: BTreeMap<u32, Word>,
}

/// The newest from one slot.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Word {
    /// Time of the batch that read it.
    at_ms: i64,
    /// By source: the slot's partitions, and whether each was read to its end.
    partitions: Vec<BTreeMap<String, bool>>,
}

/// What a batch read from the topic.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) states: u64,
    pub(crate) late: u64,
    /// By output.
    pub(crate) partials: Vec<Vec<RecordBatch>>,
    /// By source, of all partitions of the job.
    pub(crate) seen: Vec<Vec<Seen>>,
}

impl Exchange {
    pub(crate) fn source(&self, kafka: &KafkaConfig) -> SourceSpec {
        SourceSpec {
            name: "exchange".into(),
            kind: SourceKind::Kafka(kafka.clone()),
            topics: vec![self.topic.to_string()],
            // The first batch of the job is in it.
            startup: Startup::Earliest,
            bounded: None,
            isolation: Isolation::ReadCommitted,
            group: None,
        }
    }

    /// Reads a batch; `sources`: how many the job has, `interval_ms` is the batch interval.
    pub(crate) async fn take(
        &self,
        batch: &BatchContext,
        input: Vec<PartitionInput>,
        outputs: &[Option<Grouped>],
        sources: usize,
        interval_ms: i64,
        heard: &mut Heard,
    ) -> anyhow::Result<Taken> {
        let mut taken = Taken { partials: vec![Vec::new(); outputs.len()], ..Taken::default() };
        let mut newest: Vec<BTreeMap<String, i64>> = vec![BTreeMap::new(); sources];
        let read_to_its_end = input.iter().all(|input| input.caught_up);
        for PartitionInput { range, mut records, .. } in input {
            while let Some(chunk) = records.next().await {
                for record in chunk? {
                    let offset = record.offset;
                    self.take_one(batch, record, outputs, heard, &mut newest, &mut taken)
                        .with_context(|| format!("topic `{}`, partition {}, offset {offset}", self.topic, range.partition))?;
                }
            }
        }
        let patience_ms = WORDS_MISSED_MAX * TELL_INTERVAL_MS.max(interval_ms);
        for (source, newest) in newest.iter_mut().enumerate() {
            let mut seen = Vec::new();
            for slot in 0..self.shape.slots {
                let Some(word) = heard.slots.get(&slot) else {
                    // Nobody knows what its partitions hold.
                    seen.push(Seen { partition: format!("slot {slot}"), caught_up: false, max_event_ms: None });
                    continue;
                };
                let is_there = read_to_its_end && batch.definition.time_ms - word.at_ms <= patience_ms;
                for (partition, caught_up) in word.partitions.get(source).into_iter().flatten() {
                    seen.push(Seen {
                        caught_up: *caught_up && is_there,
                        max_event_ms: newest.remove(partition),
                        partition: partition.clone(),
                    });
                }
            }
            taken.seen.push(seen);
        }
        Ok(taken)
    }

    fn take_one(
        &self,
        batch: &BatchContext,
        record: Record,
        outputs: &[Option<Grouped>],
        heard: &mut Heard,
        newest: &mut [BTreeMap<String, i64>],
        taken: &mut Taken,
    ) -> anyhow::Result<()> {
        let value = record.value.context("a record without value")?;
        let (head, ipc) = parts(&value)?;
        match head {
            Said::Seen { slot, seen } => {
                ensure!(slot < self.shape.slots, "slot {slot} of {}", self.shape.slots);
                for (newest, seen) in newest.iter_mut().zip(&seen) {
                    for Seen { partition, max_event_ms, .. } in seen {
                        if let Some(event_ms) = max_event_ms {
                            let newest = newest.entry(partition.clone()).or_insert(*event_ms);
                            *newest = (*newest).max(*event_ms);
                        }
                    }
                }
                let of_source = |seen: Vec<Seen>| seen.into_iter().map(|seen| (seen.partition, seen.caught_up)).collect();
                let partitions = seen.into_iter().map(of_source).collect();
                heard.slots.insert(slot, Word { at_ms: batch.definition.time_ms, partitions });
            }
            Said::Rows { output } => {
                // A query that is not in the program any more: the checkpoint's fingerprint has been asked about it.
                let mut known = outputs.iter().enumerate().filter_map(|(index, known)| Some((index, known.as_ref()?)));
                let Some((index, Grouped { plan, late_before, .. })) = known.find(|(_, known)| known.name == output) else { return Ok(()) };
                let schema = plan.partial.schema();
                for rows in StreamReader::try_new(&ipc[..], None)? {
                    let rows = rows?;
                    let same = rows.schema().fields().iter().map(|f| f.data_type()).eq(schema.fields().iter().map(|f| f.data_type()));
                    ensure!(
                        same,
                        "rows for `{output}` have other columns than its query now: start under another name, or with another checkpoint"
                    );
                    let rows = RecordBatch::try_new(schema.clone(), rows.columns().to_vec())?;
                    taken.states += rows.num_rows() as u64;
                    let in_time = late_before.map_or_else(|| Ok(rows.clone()), |bound| in_time(&rows, bound))?;
                    taken.late += (rows.num_rows() - in_time.num_rows()) as u64;
                    taken.partials[index].push(in_time);
                }
            }
        }
        Ok(())
    }
}

fn parts(value: &Bytes) -> anyhow::Result<(Said, Bytes)> {
    let (length, rest) = value.split_at_checked(4).context("the record is cut off")?;
    let length = u32::from_le_bytes(length.try_into()?) as usize;
    let (head, ipc) = rest.split_at_checked(length).context("the record is cut off")?;
    Ok((serde_json::from_slice(head).context("the record's head")?, value.slice_ref(ipc)))
}

fn in_time(rows: &RecordBatch, bound: i64) -> anyhow::Result<RecordBatch> {
    let panes = rows.column(0).as_primitive::<TimestampMillisecondType>();
    Ok(filter_record_batch(rows, &BooleanArray::from_unary(panes, |pane| pane >= bound))?)
}
