//! One batch's rows on their way: fetched → decoded → through the queries' plans.
//!
//! ```text
//! fetch (run's own task) ─▶ chunks ─▶ decode, some chunks at once ─▶ batches per query ─▶ the query's plan ─▶ rows ─▶ sink
//! ```
//! Each partition has its own chain, and each query its own plan execution per partition; a chunk is decoded once for all
//! queries. Decoding and plans run on threads of their own ([`compute`]), so that they hold up no network. All queues are
//! bounded ([`super::queue`]): a slow query stops the fetch.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use arrow::array::{AsArray, RecordBatch};
use arrow::compute;
use arrow::datatypes::TimestampMillisecondType;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::{StreamExt, stream};
use service_kit::kafka::{KafkaError, OutRecord, Record};
use tokio::runtime::{Builder, Handle, Runtime};

use super::feed;
use super::malformed::Reports;
use super::queue::{Receiver, Sender};
use super::source::{Reader, Rows};
use crate::batch::OffsetRange;

pub(crate) type Chunk = Result<Vec<Record>, KafkaError>;
/// An error here only ends the stream; what happened is said by the task that met it.
pub(crate) type Batch = datafusion::common::Result<RecordBatch>;

/// Threads for decoding and plans, one per core, shared by all jobs of the process.
pub(crate) fn compute() -> anyhow::Result<Handle> {
    static RUNTIME: LazyLock<std::io::Result<Runtime>> =
        LazyLock::new(|| Builder::new_multi_thread().thread_name("millrace-compute").enable_all().build());
    match &*RUNTIME {
        Ok(runtime) => Ok(runtime.handle().clone()),
        Err(error) => anyhow::bail!("cannot start compute threads: {error}"),
    }
}

/// What was decoded of one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decoded {
    pub(crate) records: u64,
    pub(crate) malformed: u64,
    pub(crate) max_event_ms: Option<i64>,
}

/// Decodes a partition's chunks in order, `at_once` of them side by side, and hands each to all queries.
pub(crate) async fn decode(
    reader: Arc<Reader>,
    range: OffsetRange,
    chunks: Receiver<Chunk>,
    queries: Vec<Sender<Batch>>,
    reports: Reports,
    at_once: usize,
) -> anyhow::Result<Decoded> {
    let result = decode_all(reader, &range, chunks, &queries, &reports, at_once).await;
    if result.is_err() {
        for query in &queries {
            // A query that ended before needs no word.
            let _ended = query.send(Err(feed::external("its input ended early"))).await;
        }
    }
    result.with_context(|| format!("reading {}", range.topic_partition()))
}

async fn decode_all(
    reader: Arc<Reader>,
    range: &OffsetRange,
    chunks: Receiver<Chunk>,
    queries: &[Sender<Batch>],
    reports: &Reports,
    at_once: usize,
) -> anyhow::Result<Decoded> {
    let mut total = Decoded::default();
    let read = |chunk: Chunk| {
        let (reader, range) = (reader.clone(), range.clone());
        async move {
            let records = chunk?;
            let rows = tokio::spawn(async move { reader.read(&range, &records).map(|rows| (rows, records)) });
            rows.await?
        }
    };
    let mut decoded = Box::pin(chunks.stream().map(read).buffered(at_once));
    while let Some(next) = decoded.next().await {
        let (Rows { batch, max_event_ms, malformed }, records) = next?;
        total.records += records.len() as u64;
        total.malformed += malformed.len() as u64;
        total.max_event_ms = total.max_event_ms.max(max_event_ms);
        if !malformed.is_empty() {
            reports.report(range, &records, &malformed).await?;
        }
        if batch.num_rows() > 0 {
            for query in queries {
                let _ended = query.send(Ok(batch.clone())).await;
            }
        }
    }
    Ok(total)
}

/// How a query takes its rows from those that were decoded.
#[derive(Clone)]
pub(crate) struct Intake {
    /// Of the reader's columns, those of the plan's leaf.
    pub(crate) positions: Vec<usize>,
    /// Drop rows whose event time (position in the reader's columns) is before this.
    pub(crate) late_before: Option<(usize, i64)>,
    pub(crate) late: Arc<AtomicU64>,
}

impl Intake {
    fn take(&self, batch: RecordBatch) -> Batch {
        let batch = match self.late_before {
            None => batch,
            Some((position, bound)) => self.without_late(batch, position, bound)?,
        };
        Ok(batch.project(&self.positions)?)
    }

    fn without_late(&self, batch: RecordBatch, position: usize, bound: i64) -> Batch {
        let times = batch.column(position).as_primitive::<TimestampMillisecondType>();
        if compute::min(times).is_none_or(|least| least >= bound) {
            return Ok(batch);
        }
        let in_time = arrow::array::BooleanArray::from_unary(times, |time| time >= bound);
        let kept = compute::filter_record_batch(&batch, &in_time)?;
        self.late.fetch_add((batch.num_rows() - kept.num_rows()) as u64, Ordering::Relaxed);
        Ok(kept)
    }
}

/// Runs a query's plan over one partition's rows.
pub(crate) fn execute(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    intake: Intake,
    rows: Receiver<Batch>,
) -> anyhow::Result<datafusion::execution::SendableRecordBatchStream> {
    let taken = rows.stream().map(move |batch| intake.take(batch?));
    // An empty batch would cost a pass through the plan.
    let taken = taken.filter(|batch| std::future::ready(!matches!(batch, Ok(batch) if batch.num_rows() == 0)));
    Ok(feed::execute(plan, context, taken)?)
}

/// Partial states of one partition.
pub(crate) async fn partial(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    intake: Intake,
    rows: Receiver<Batch>,
) -> anyhow::Result<Vec<RecordBatch>> {
    let mut states = execute(&plan, &context, intake, rows)?;
    let mut collected = Vec::new();
    while let Some(state) = states.next().await {
        collected.push(state?);
    }
    Ok(collected)
}

/// Passes one partition's rows through a plan to the sink.
pub(crate) async fn pass(
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    intake: Intake,
    rows: Receiver<Batch>,
    sink: Sender<anyhow::Result<RecordBatch>>,
) -> anyhow::Result<()> {
    let mut results = execute(&plan, &context, intake, rows)?;
    while let Some(result) = results.next().await {
        let failed = result.is_err();
        let sent = match result {
            Ok(batch) if batch.num_rows() == 0 => Ok(()),
            Ok(batch) => sink.send(Ok(batch)).await,
            Err(error) => {
                let text = error.to_string();
                let sent = sink.send(Err(anyhow::anyhow!("the query ended early"))).await;
                let _ended = sent;
                anyhow::bail!("{text}")
            }
        };
        // The sink has ended with an error of its own, which counts.
        if failed || sent.is_err() {
            break;
        }
    }
    Ok(())
}

/// All of a sink's rows, when they are known already.
pub(crate) fn ready(rows: Vec<RecordBatch>) -> crate::sink::RowStream {
    stream::iter(rows.into_iter().map(Ok)).boxed()
}

/// Records on their way to a dead-letter topic.
pub(crate) type DeadLetters = Sender<Vec<OutRecord>>;
