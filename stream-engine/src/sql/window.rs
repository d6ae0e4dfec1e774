//! The state of a windowed aggregation: partial states per pane, merged across batches.
//!
//! Promise: the result of a window depends on its rows alone, not on how batches cut them, in which order partitions
//! delivered them, or whether the state went through a snapshot in between.
//! Size: at most twice the distinct keys of the open panes (states are merged when as many were added as there were).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, TimestampMillisecondArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, TimestampMillisecondType};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::{TryStreamExt, stream};

use super::feed;
use super::lineage::{Shape, WindowPart};
use super::plan::{OutputColumn, WindowPlan};

/// State rows of a pane that are worth merging.
const MERGE_ROWS_MIN: usize = 4096;
/// Batches of a pane above which they are merged however few rows they hold.
const MERGE_BATCHES_MAX: usize = 32;

/// Cheap to clone: batches are shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct WindowState {
    panes: BTreeMap<i64, Pane>,
    /// Windows that end here or before are emitted; their rows are late.
    closed_until: Option<i64>,
}

#[derive(Clone, Debug, Default)]
struct Pane {
    batches: Vec<RecordBatch>,
    rows: usize,
    /// Rows after the last merge.
    merged: usize,
}

impl WindowState {
    /// Rows before this event time are late; `None` while no window is closed.
    pub(crate) fn late_before(&self, shape: Shape) -> Option<i64> {
        let closed = self.closed_until?;
        // The first pane that still belongs to an open window is the one of the first window that ends after `closed`.
        let first_open =
            super::functions::pane_start(closed.saturating_sub(shape.size), shape.slide, shape.offset).saturating_add(shape.slide);
        Some(first_open)
    }

    pub(crate) fn rows(&self) -> usize {
        self.panes.values().map(|pane| pane.rows).sum()
    }

    /// Buffers that several batches share count for each of them.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.panes.values().flat_map(|pane| &pane.batches).map(RecordBatch::get_array_memory_size).sum()
    }

    pub(crate) fn closed_until(&self) -> Option<i64> {
        self.closed_until
    }

    /// Adds partial states (column 0: start of the pane) and gives the panes they touched.
    pub(crate) fn add(&mut self, partial: &RecordBatch) -> anyhow::Result<BTreeSet<i64>> {
        let mut touched = BTreeSet::new();
        for (start, batch) in by_pane(partial)? {
            let pane = self.panes.entry(start).or_default();
            pane.rows += batch.num_rows();
            pane.batches.push(batch);
            touched.insert(start);
        }
        Ok(touched)
    }

    /// Merges the states of panes that have grown.
    pub(crate) async fn merge(&mut self, plan: &WindowPlan, context: &TaskContext) -> anyhow::Result<()> {
        for pane in self.panes.values_mut() {
            let grown = pane.rows >= MERGE_ROWS_MIN.max(2 * pane.merged);
            if pane.batches.len() > 1 && (grown || pane.batches.len() > MERGE_BATCHES_MAX) {
                let merged = run(&plan.reduce, context, std::mem::take(&mut pane.batches)).await?;
                pane.rows = merged.iter().map(RecordBatch::num_rows).sum();
                pane.merged = pane.rows;
                pane.batches = merged;
            }
        }
        Ok(())
    }

    /// Ends of open windows that hold rows and are complete at the watermark; all with `None`.
    pub(crate) fn due(&self, shape: Shape, watermark_ms: Option<i64>) -> BTreeSet<i64> {
        // A watermark says that no row at or before it will come, so a window is complete one millisecond before its end.
        let until = watermark_ms.map_or(i64::MAX, |watermark| watermark.saturating_add(1));
        self.panes.keys().flat_map(|pane| ends(*pane, shape)).filter(|end| *end <= until && self.is_open(*end)).collect()
    }

    /// Ends of open windows that some of these panes belong to.
    pub(crate) fn touched(&self, shape: Shape, panes: &BTreeSet<i64>) -> BTreeSet<i64> {
        panes.iter().flat_map(|pane| ends(*pane, shape)).filter(|end| self.is_open(*end)).collect()
    }

    fn is_open(&self, end: i64) -> bool {
        self.closed_until.is_none_or(|closed| end > closed)
    }

    /// Closes windows up to this end (exclusive times after it stay open) and drops panes that no open window needs.
    pub(crate) fn close(&mut self, until: i64, shape: Shape) {
        let until = self.closed_until.map_or(until, |closed| closed.max(until));
        self.closed_until = Some(until);
        self.panes.retain(|start, _| start + shape.size > until);
    }

    /// Rows of the windows with these ends, as the sink gets them.
    pub(crate) async fn results(&self, plan: &WindowPlan, context: &TaskContext, ends: &BTreeSet<i64>) -> anyhow::Result<Vec<RecordBatch>> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let mut results = Vec::new();
        if plan.one_by_one {
            for end in ends {
                let finished = run(&plan.finish, context, self.states(plan.shape, [*end])?).await?;
                results.extend(above(plan, context, finished).await?);
            }
        } else {
            let finished = run(&plan.finish, context, self.states(plan.shape, ends.iter().copied())?).await?;
            results = above(plan, context, finished).await?;
        }
        Ok(results)
    }

    /// States of the windows, with the start of the window in the place of the pane's.
    fn states(&self, shape: Shape, ends: impl IntoIterator<Item = i64>) -> anyhow::Result<Vec<RecordBatch>> {
        let mut states = Vec::new();
        for end in ends {
            let start = end - shape.size;
            for (pane, state) in self.panes.range(start..end) {
                for batch in &state.batches {
                    states.push(if *pane == start { batch.clone() } else { with_start(batch, start)? });
                }
            }
        }
        Ok(states)
    }

    /// All panes in one Arrow IPC stream, merged first.
    pub(crate) fn to_ipc(&self, plan: &WindowPlan) -> anyhow::Result<Vec<u8>> {
        let mut writer = StreamWriter::try_new(Vec::new(), &plan.partial.schema())?;
        for pane in self.panes.values() {
            if !pane.batches.is_empty() {
                writer.write(&concat_batches(&plan.partial.schema(), &pane.batches)?)?;
            }
        }
        writer.finish()?;
        Ok(writer.into_inner()?)
    }

    pub(crate) fn from_ipc(plan: &WindowPlan, ipc: &[u8], closed_until: Option<i64>) -> anyhow::Result<Self> {
        let mut state = Self { panes: BTreeMap::new(), closed_until };
        let schema = plan.partial.schema();
        for batch in StreamReader::try_new(ipc, None)? {
            let batch = batch?;
            let same = batch.schema().fields().iter().map(|f| f.data_type()).eq(schema.fields().iter().map(|f| f.data_type()));
            anyhow::ensure!(same, "the snapshot's state has other columns than this query's");
            state.add(&RecordBatch::try_new(schema.clone(), batch.columns().to_vec())?)?;
        }
        for pane in state.panes.values_mut() {
            pane.merged = pane.rows;
        }
        Ok(state)
    }
}

/// Ends of the windows that a pane belongs to.
fn ends(pane: i64, shape: Shape) -> impl Iterator<Item = i64> {
    (1..=shape.size / shape.slide).map(move |slides| pane + slides * shape.slide)
}

/// Runs a plan over batches and collects what it gives.
pub(super) async fn run(
    plan: &Arc<dyn ExecutionPlan>,
    context: &TaskContext,
    batches: Vec<RecordBatch>,
) -> anyhow::Result<Vec<RecordBatch>> {
    let rows = stream::iter(batches.into_iter().map(Ok));
    Ok(feed::execute(plan, context, rows)?.try_collect().await?)
}

async fn above(plan: &WindowPlan, context: &TaskContext, finished: Vec<RecordBatch>) -> anyhow::Result<Vec<RecordBatch>> {
    let leaf = feed::leaf(&plan.above).context("a plan without a feed")?;
    let schema = leaf.schema();
    let mut rows = Vec::with_capacity(finished.len());
    for batch in finished {
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (column, field) in leaf.columns().iter().zip(schema.fields()) {
            columns.push(match plan.output[*column] {
                OutputColumn::Finish(index) => batch.column(index).clone(),
                OutputColumn::Window(part) => window_column(&batch, part, plan.shape, field.data_type()),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        rows.push(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?);
    }
    run(&plan.above, context, rows).await
}

fn window_column(batch: &RecordBatch, part: WindowPart, shape: Shape, data_type: &DataType) -> ArrayRef {
    let add = match part {
        WindowPart::Start => 0,
        WindowPart::End => shape.size,
        WindowPart::Time => shape.size - 1,
    };
    let starts = batch.column(0).as_primitive::<TimestampMillisecondType>();
    let times: TimestampMillisecondArray = starts.unary(|start| start + add);
    match data_type {
        DataType::Timestamp(_, zone) => Arc::new(times.with_timezone_opt(zone.clone())),
        _ => Arc::new(times),
    }
}

fn with_start(batch: &RecordBatch, start: i64) -> anyhow::Result<RecordBatch> {
    let mut columns = batch.columns().to_vec();
    columns[0] = Arc::new(TimestampMillisecondArray::from_value(start, batch.num_rows()));
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

/// Cuts a batch by its pane; rows of a pane stay in order.
fn by_pane(batch: &RecordBatch) -> anyhow::Result<Vec<(i64, RecordBatch)>> {
    if batch.num_rows() == 0 {
        return Ok(Vec::new());
    }
    let starts = batch.column(0).as_primitive::<TimestampMillisecondType>();
    let first = starts.value(0);
    if starts.values().iter().all(|start| *start == first) {
        return Ok(vec![(first, batch.clone())]);
    }
    let mut order: Vec<u32> = (0..starts.len() as u32).collect();
    order.sort_by_key(|row| starts.value(*row as usize));
    let sorted = take_record_batch(batch, &UInt32Array::from(order))?;
    let starts = sorted.column(0).as_primitive::<TimestampMillisecondType>();
    let mut panes = Vec::new();
    let mut from = 0;
    for row in 1..=starts.len() {
        if row == starts.len() || starts.value(row) != starts.value(from) {
            panes.push((starts.value(from), sorted.slice(from, row - from)));
            from = row;
        }
    }
    Ok(panes)
}
