//! A planned SQL job as the batch core runs it.
//!
//! One batch: read and decode every partition once, run each query's plan over it, move the watermark, emit the windows
//! that are complete, write the sinks. The state changes only when all of it succeeded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use arrow::array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use service_kit::kafka::{self, Producer};
use tokio::task::JoinSet;
use tracing::{Instrument, info_span, warn};

use super::exchange::{Exchange, Grouped, Heard, Part, Taken, Writer};
use super::malformed::{Reports, Sampler};
use super::pipeline::{self, Decoded, Intake};
use super::plan::WindowPlan;
use super::queue::{Receiver, queue};
use super::source::Reader;
use super::watermark::{Clocks, Pace, Seen};
use super::window::WindowState;
use crate::batch::{BatchContext, BatchOutcome, PartitionInput, Program, Sharing, SourceSpec, StateReport};
use crate::sink::{Guarantee, RowStream, Sink};

const SNAPSHOT_VERSION: u32 = 1;

pub(crate) struct SqlProgram {
    pub(crate) sources: Vec<Source>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) context: Arc<TaskContext>,
    /// `table.exec.source.idle-timeout`
    pub(crate) idle_after: Duration,
    /// `batch.interval`
    pub(crate) interval_ms: i64,
    /// `millrace.pipeline.queue.max`
    pub(crate) queue_items_max: usize,
    pub(crate) plan: String,
    pub(crate) state: State,
    pub(crate) half: Half,
}

/// How much of the job a program runs.
pub(crate) enum Half {
    /// All of it.
    Both,
    /// The first half of a slot.
    Rows(Box<Writer>),
    /// The second.
    Windows(Exchange),
}

/// A table that queries read.
pub(crate) struct Source {
    pub(crate) reader: Arc<Reader>,
    pub(crate) sampler: Arc<Sampler>,
    pub(crate) dead_letters: Option<Arc<dyn Producer>>,
}

/// An INSERT.
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) table: String,
    pub(crate) source: usize,
    /// Of the reader's columns, those that the plan's leaf takes.
    pub(crate) positions: Vec<usize>,
    pub(crate) query: Query,
    pub(crate) sink: Box<dyn Sink>,
}

pub(crate) enum Query {
    Stateless(Arc<dyn ExecutionPlan>),
    Window(Arc<WindowPlan>, Emit),
}

/// `millrace.emit`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emit {
    /// Each window once, when it is complete.
    OnWatermark,
    /// Also the totals so far of the open windows that the batch touched.
    EveryBatch,
}

/// Cheap to clone; goes into the snapshot.
#[derive(Clone, Default)]
pub(crate) struct State {
    /// By source.
    clocks: Vec<Clocks>,
    /// By output; `None` for queries without state.
    windows: Vec<Option<WindowState>>,
    heard: Heard,
}

impl State {
    pub(crate) fn fresh(sources: &[Source], outputs: &[Output]) -> Self {
        let window = |output: &Output| matches!(output.query, Query::Window(..)).then(WindowState::default);
        Self { clocks: vec![Clocks::default(); sources.len()], windows: outputs.iter().map(window).collect(), heard: Heard::default() }
    }
}

/// In front of a snapshot: the length of this JSON (four bytes, little endian), this, then each output's Arrow IPC.
#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    version: u32,
    sources: Vec<(String, Clocks)>,
    outputs: Vec<SnapshotOutput>,
    #[serde(default)]
    heard: Heard,
}

#[derive(Serialize, Deserialize)]
struct SnapshotOutput {
    name: String,
    closed_until: Option<i64>,
    bytes: usize,
}

#[async_trait]
impl Program for SqlProgram {
    fn sources(&self) -> Vec<SourceSpec> {
        match &self.half {
            Half::Both | Half::Rows(_) => self.sources.iter().map(|source| source.reader.table().spec()).collect(),
            Half::Windows(exchange) => {
                let kafka = self.sources.first().map(|source| &source.reader.table().kafka.config);
                kafka.map(|kafka| exchange.source(kafka)).into_iter().collect()
            }
        }
    }

    fn shareable(&self) -> Result<Sharing, String> {
        if !self.outputs.iter().any(|output| matches!(output.query, Query::Window(..))) {
            return Ok(Sharing::Apart);
        }
        let bounded = self.sources.iter().map(|source| source.reader.table()).find(|table| table.kafka.bounded.is_some());
        bounded.map_or(Ok(Sharing::Exchanged), |table| {
            let name = &table.name;
            Err(format!("table `{name}` has an end (`scan.bounded.mode`), and slots that exchange rows do not know when all have reached it: leave `job.slots` out"))
        })
    }

    fn plan(&self) -> String {
        self.plan.clone()
    }

    fn fingerprint(&self) -> serde_json::Value {
        let sources: serde_json::Map<_, _> = self
            .sources
            .iter()
            .map(|source| (source.reader.table().name.clone(), serde_json::json!({ "topics": source.reader.table().kafka.topics })))
            .collect();
        let sources = match &self.half {
            Half::Both | Half::Rows(_) => sources,
            Half::Windows(exchange) => [("exchange".to_owned(), serde_json::json!({ "topics": [&*exchange.topic] }))].into_iter().collect(),
        };
        // Queries without state may come and go.
        let operators: serde_json::Map<_, _> = self
            .outputs
            .iter()
            .filter_map(|output| match &output.query {
                Query::Window(plan, _) if !matches!(self.half, Half::Rows(_)) => Some((output.name.clone(), self.operator(output, plan))),
                _ => None,
            })
            .collect();
        serde_json::json!({ "sql": SNAPSHOT_VERSION, "sources": sources, "operators": operators })
    }

    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome> {
        let mut state = self.state.clone();
        let outcome = self.run_batch(batch, input, &mut state).await?;
        self.state = state;
        Ok(outcome)
    }

    fn snapshot(&mut self) -> anyhow::Result<Bytes> {
        let heard = self.state.heard.clone();
        let mut head = SnapshotHead { version: SNAPSHOT_VERSION, sources: Vec::new(), outputs: Vec::new(), heard };
        for (source, clocks) in self.sources.iter().zip(&self.state.clocks) {
            head.sources.push((source.reader.table().name.clone(), clocks.clone()));
        }
        let mut body = Vec::new();
        for (output, window) in self.outputs.iter().zip(&self.state.windows) {
            if let (Query::Window(plan, _), Some(window)) = (&output.query, window) {
                let ipc = window.to_ipc(plan)?;
                head.outputs.push(SnapshotOutput { name: output.name.clone(), closed_until: window.closed_until(), bytes: ipc.len() });
                metrics::gauge!("millrace_engine_window_state_bytes", "output" => output.name.clone()).set(ipc.len() as f64);
                body.extend(ipc);
            }
        }
        let head = serde_json::to_vec(&head)?;
        let mut snapshot = u32::try_from(head.len())?.to_le_bytes().to_vec();
        snapshot.extend(head);
        snapshot.extend(body);
        Ok(snapshot.into())
    }

    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()> {
        let mut state = State::fresh(&self.sources, &self.outputs);
        if snapshot.is_empty() {
            self.state = state;
            return Ok(());
        }
        let (length, rest) = snapshot.split_at_checked(4).context("the snapshot is cut off")?;
        let length = u32::from_le_bytes(length.try_into()?) as usize;
        let (head, mut body) = rest.split_at_checked(length).context("the snapshot is cut off")?;
        let head: SnapshotHead = serde_json::from_slice(head).context("the snapshot's head")?;
        ensure!(head.version == SNAPSHOT_VERSION, "the snapshot has version {}, this engine reads {SNAPSHOT_VERSION}", head.version);
        state.heard = head.heard;
        for (name, clocks) in head.sources {
            if let Some(index) = self.sources.iter().position(|source| source.reader.table().name == name) {
                state.clocks[index] = clocks;
            }
        }
        for saved in head.outputs {
            let (ipc, rest) = body.split_at_checked(saved.bytes).context("the snapshot is cut off")?;
            body = rest;
            let index = self.outputs.iter().position(|output| output.name == saved.name);
            if let Some((index, Query::Window(plan, _))) = index.map(|index| (index, &self.outputs[index].query)) {
                state.windows[index] = Some(WindowState::from_ipc(plan, ipc, saved.closed_until)?);
            }
        }
        self.state = state;
        Ok(())
    }
}

/// What the tasks of a batch give back.
enum Done {
    /// Of this input.
    Decoded(usize, Decoded),
    /// Of this output and input.
    Partial(usize, usize, Vec<RecordBatch>),
    Passed,
}

impl SqlProgram {
    fn operator(&self, output: &Output, plan: &WindowPlan) -> serde_json::Value {
        let types = plan.partial.schema();
        let types: Vec<_> = types.fields().iter().map(|field| field.data_type().to_string()).collect();
        serde_json::json!({
            "source": self.sources[output.source].reader.table().name,
            "window": { "size_ms": plan.shape.size, "slide_ms": plan.shape.slide, "offset_ms": plan.shape.offset },
            "keys": plan.keys,
            "aggregates": plan.aggregates,
            "state": types,
        })
    }

    /// Makes it one half of a slot. A job that reads nothing from Kafka has no topic for it, and is none.
    pub(crate) fn become_part(&mut self, part: Part) {
        let Some(kafka) = self.sources.first().map(|source| source.reader.table().kafka.config.clone()) else { return };
        self.half = match part {
            Part::Rows(exchange) => Half::Rows(Box::new(Writer::new(exchange, kafka))),
            Part::Windows(exchange) => Half::Windows(exchange),
        };
    }

    async fn run_batch(&mut self, batch: &BatchContext, input: Vec<PartitionInput>, state: &mut State) -> anyhow::Result<BatchOutcome> {
        for (index, output) in self.outputs.iter().enumerate() {
            let what = match (&self.half, &output.query) {
                (Half::Both, _) | (Half::Rows(_), Query::Stateless(_)) | (Half::Windows(_), Query::Window(..)) => "INSERT INTO",
                (Half::Rows(_), Query::Window(..)) => "EXCHANGE for",
                (Half::Windows(_), Query::Stateless(_)) => continue,
            };
            batch.output(index, &output.name, &format!("{what} {}", output.table));
        }
        let process = info_span!(parent: &batch.span, "process");
        let read = match &self.half {
            Half::Windows(exchange) => {
                let (exchange, sources, grouped) = (exchange.clone(), self.sources.len(), self.grouped(state));
                let taken = exchange.take(batch, input, &grouped, sources, self.interval_ms, &mut state.heard);
                let Taken { states, late, partials, seen } = taken.instrument(process.clone()).await?;
                Read { outcome: BatchOutcome { rows_in: states, late, ..BatchOutcome::default() }, seen, partials, reports: Vec::new() }
            }
            Half::Both | Half::Rows(_) => self.read(batch, input, state).instrument(process.clone()).await?,
        };
        let grouped = self.grouped(state);
        if let Half::Rows(writer) = &mut self.half {
            return pass_on(writer, &grouped, &self.context, batch, read).await;
        }
        let mut outcome = read.outcome;
        for (index, source) in self.sources.iter().enumerate() {
            if let Some(watermark) = source.reader.table().watermark {
                let clocks = &mut state.clocks[index];
                let pace = Pace {
                    delay_ms: watermark.delay_ms,
                    idle_after: self.idle_after,
                    interval_ms: self.interval_ms,
                    bounded: source.reader.table().kafka.bounded.is_some(),
                };
                clocks.advance(batch.definition.time_ms, &read.seen[index], pace);
                outcome.watermark_ms = match (outcome.watermark_ms, clocks.watermark_ms) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            }
        }
        let emitted = self.emit(batch, read.partials, state).instrument(process).await?;
        let mut reports = read.reports;
        reports.extend(self.write_windows(batch, emitted).await);
        outcome.rows_out += rows(reports)?;
        for (output, window) in self.outputs.iter().zip(&state.windows) {
            if let Some(window) = window {
                let (rows, bytes) = (window.rows() as u64, window.memory_bytes() as u64);
                outcome.state.push(StateReport { operator: output.name.clone(), rows, bytes });
            }
        }
        Ok(outcome)
    }

    /// By output, those whose queries group rows.
    pub(super) fn grouped(&self, state: &State) -> Vec<Option<Grouped>> {
        let grouped = |(output, window): (&Output, &Option<WindowState>)| match (&output.query, window) {
            (Query::Window(plan, _), Some(window)) => {
                Some(Grouped { name: output.name.clone(), plan: plan.clone(), late_before: window.late_before(plan.shape) })
            }
            _ => None,
        };
        self.outputs.iter().zip(&state.windows).map(grouped).collect()
    }

    /// Reads, decodes and runs the plans; writes the outputs without windows on the way.
    pub(super) async fn read(&mut self, batch: &BatchContext, input: Vec<PartitionInput>, state: &State) -> anyhow::Result<Read> {
        for source in &mut self.sources {
            let kafka = &source.reader.table().kafka;
            if kafka.dead_letters.is_some() && source.dead_letters.is_none() {
                source.dead_letters = Some(kafka::producer(&kafka.config).await?);
            }
        }
        let compute = pipeline::compute()?;
        let mut tasks: JoinSet<anyhow::Result<Done>> = JoinSet::new();
        let mut pumps = Vec::new();
        let mut letters = Vec::new();
        let mut letter_senders = Vec::new();
        for source in &self.sources {
            let table = source.reader.table();
            letter_senders.push(match (&table.kafka.dead_letters, &source.dead_letters) {
                (Some(topic), Some(producer)) => {
                    let (sender, receiver) = queue("dead-letters", self.queue_items_max);
                    letters.push(send_letters(producer.clone(), receiver, table.name.clone()));
                    Some((topic.clone(), sender))
                }
                _ => None,
            });
        }
        let mut sink_senders = Vec::new();
        let mut sinks = Vec::new();
        let mut intakes = Vec::new();
        let mut plans = Vec::new();
        for (index, output) in self.outputs.iter_mut().enumerate() {
            let reader = &self.sources[output.source].reader;
            let (plan, late_before) = match &output.query {
                Query::Stateless(plan) => (plan.clone(), None),
                Query::Window(plan, _) => {
                    let bound = state.windows[index].as_ref().and_then(|window| window.late_before(plan.shape));
                    (plan.partial.clone(), reader.position(plan.time_column).zip(bound))
                }
            };
            plans.push((output.source, plan));
            intakes.push(Intake { positions: output.positions.clone(), late_before, late: Arc::new(AtomicU64::new(0)) });
            sink_senders.push(match &output.query {
                Query::Stateless(_) => {
                    let (sender, receiver) = queue("write", self.queue_items_max);
                    let rows = receiver.stream().boxed();
                    sinks.push(write(index, &output.name, &mut *output.sink, batch, rows).boxed());
                    Some(sender)
                }
                Query::Window(..) => None,
            });
        }
        let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); self.sources.len()];
        let mut of_input = Vec::new();
        for (number, PartitionInput { source, range, caught_up, mut records }) in input.into_iter().enumerate() {
            of_input.push((source, seen[source].len()));
            seen[source].push(Seen { partition: range.topic_partition().to_string(), caught_up, max_event_ms: None });
            if range.from >= range.until {
                continue;
            }
            let (chunk_sender, chunks) = queue("decode", self.queue_items_max);
            pumps.push(async move {
                while let Some(chunk) = records.next().await {
                    // Decoding ended with an error of its own, which counts.
                    if chunk_sender.send(chunk).await.is_err() {
                        break;
                    }
                }
            });
            let mut queries = Vec::new();
            for (output, (_, plan)) in plans.iter().enumerate().filter(|(_, (of, _))| *of == source) {
                let (sender, rows) = queue("query", self.queue_items_max);
                queries.push(sender);
                let (plan, context, intake) = (plan.clone(), self.context.clone(), intakes[output].clone());
                match sink_senders[output].clone() {
                    Some(sink) => {
                        tasks.spawn_on(pipeline::pass(plan, context, intake, rows, sink).map(|done| done.map(|()| Done::Passed)), &compute)
                    }
                    None => {
                        let partial = pipeline::partial(plan, context, intake, rows);
                        tasks.spawn_on(partial.map(move |done| done.map(|states| Done::Partial(output, number, states))), &compute)
                    }
                };
            }
            let reports = Reports {
                table: self.sources[source].reader.table().name.as_str().into(),
                sampler: self.sources[source].sampler.clone(),
                clock: batch.clock(),
                dead_letters: letter_senders[source].clone(),
            };
            let decode = pipeline::decode(self.sources[source].reader.clone(), range, chunks, queries, reports, self.queue_items_max);
            tasks.spawn_on(decode.map(move |done| done.map(|decoded| Done::Decoded(number, decoded))), &compute);
        }
        drop(sink_senders);
        drop(letter_senders);
        let (_, done, reports, letters) = tokio::join!(join_all(pumps), finish(tasks), join_all(sinks), join_all(letters));
        // A dead-letter topic that fails stops the decoding, so its error comes first.
        letters.into_iter().collect::<anyhow::Result<()>>()?;

        let mut outcome = BatchOutcome::default();
        let mut partials: Vec<Vec<(usize, Vec<RecordBatch>)>> = vec![Vec::new(); plans.len()];
        for done in done? {
            match done {
                Done::Decoded(number, decoded) => {
                    let (source, position) = of_input[number];
                    seen[source][position].max_event_ms = decoded.max_event_ms;
                    outcome.rows_in += decoded.records;
                    outcome.malformed += decoded.malformed;
                }
                Done::Partial(output, number, states) => partials[output].push((number, states)),
                Done::Passed => {}
            }
        }
        // By partition, not by who was first: so a batch that runs again builds the same state.
        partials.iter_mut().for_each(|of_output| of_output.sort_by_key(|(number, _)| *number));
        let partials = partials.into_iter().map(|of_output| of_output.into_iter().flat_map(|(_, states)| states).collect()).collect();
        outcome.late = self.late(&intakes);
        Ok(Read { outcome, seen, partials, reports })
    }

    /// A row that is late for several queries counts once: the most of any query per source.
    fn late(&self, intakes: &[Intake]) -> u64 {
        let mut most = vec![0_u64; self.sources.len()];
        for (output, intake) in self.outputs.iter().zip(intakes) {
            let late = intake.late.load(Ordering::Relaxed);
            most[output.source] = most[output.source].max(late);
        }
        most.iter().sum()
    }

    /// Moves every window state on; gives the rows to write per output.
    async fn emit(
        &mut self,
        batch: &BatchContext,
        partials: Vec<Vec<RecordBatch>>,
        state: &mut State,
    ) -> anyhow::Result<Vec<Option<Vec<RecordBatch>>>> {
        let compute = pipeline::compute()?;
        let mut running = Vec::new();
        for ((index, output), partial) in self.outputs.iter().enumerate().zip(partials) {
            let (Query::Window(plan, emit), Some(window)) = (&output.query, state.windows[index].take()) else { continue };
            let due = if batch.last { Due::All } else { Due::At(state.clocks[output.source].watermark_ms) };
            let (plan, context, emit) = (plan.clone(), self.context.clone(), *emit);
            let task = compute.spawn(async move { advance(&plan, &context, window, partial, due, emit).await });
            running.push((index, task));
        }
        let mut emitted = vec![None; self.outputs.len()];
        for (index, task) in running {
            let (window, rows) = task.await?.with_context(|| format!("query of `{}`", self.outputs[index].name))?;
            let name = self.outputs[index].name.clone();
            metrics::gauge!("millrace_engine_window_state_rows", "output" => name).set(window.rows() as f64);
            state.windows[index] = Some(window);
            emitted[index] = Some(rows);
        }
        Ok(emitted)
    }

    async fn write_windows(&mut self, batch: &BatchContext, emitted: Vec<Option<Vec<RecordBatch>>>) -> Vec<Report> {
        let writes = self.outputs.iter_mut().enumerate().zip(emitted).filter_map(|((index, output), rows)| {
            rows.map(|rows| write(index, &output.name, &mut *output.sink, batch, pipeline::ready(rows)))
        });
        join_all(writes).await
    }
}

/// What reading a batch gave.
pub(super) struct Read {
    outcome: BatchOutcome,
    /// By source, in the order of the input.
    pub(super) seen: Vec<Vec<Seen>>,
    /// By output.
    pub(super) partials: Vec<Vec<RecordBatch>>,
    reports: Vec<Report>,
}

/// Index of the output, and the rows that it wrote.
type Report = (usize, anyhow::Result<u64>);

/// The rows of all of them; the error is that of the first output that has one.
fn rows(mut reports: Vec<Report>) -> anyhow::Result<u64> {
    reports.sort_by_key(|(index, _)| *index);
    reports.into_iter().map(|(_, rows)| rows).sum()
}

/// What the first half of a slot does with what it read.
async fn pass_on(
    writer: &mut Writer,
    outputs: &[Option<Grouped>],
    context: &TaskContext,
    batch: &BatchContext,
    read: Read,
) -> anyhow::Result<BatchOutcome> {
    let Read { mut outcome, seen, partials, reports } = read;
    outcome.rows_out += rows(reports)?;
    let windows = || outputs.iter().enumerate().filter(|(_, output)| output.is_some());
    windows().for_each(|(index, _)| batch.output_started(index));
    let states: Vec<u64> = partials.iter().map(|states| states.iter().map(|states| states.num_rows() as u64).sum()).collect();
    let written = writer.write(batch, outputs, context, partials, seen).await.context("passing rows to the other slots");
    windows().for_each(|(index, _)| batch.output_ended(index, written.as_ref().map(|()| states[index])));
    written.map(|()| outcome)
}

#[derive(Clone, Copy)]
enum Due {
    All,
    At(Option<i64>),
}

/// Adds a batch's partial states to a window state and computes what it emits.
async fn advance(
    plan: &WindowPlan,
    context: &TaskContext,
    mut window: WindowState,
    partials: Vec<RecordBatch>,
    due: Due,
    emit: Emit,
) -> anyhow::Result<(WindowState, Vec<RecordBatch>)> {
    let mut touched = std::collections::BTreeSet::new();
    for partial in &partials {
        touched.extend(window.add(partial)?);
    }
    window.merge(plan, context).await?;
    let mut ends = match due {
        Due::At(None) => Default::default(),
        Due::At(watermark) => window.due(plan.shape, watermark),
        Due::All => window.due(plan.shape, None),
    };
    let closed = match due {
        Due::At(watermark) => watermark.map(|watermark| watermark.saturating_add(1)),
        Due::All => ends.last().copied(),
    };
    if emit == Emit::EveryBatch {
        ends.extend(window.touched(plan.shape, &touched));
    }
    let rows = window.results(plan, context, &ends).await?;
    if let Some(closed) = closed {
        window.close(closed, plan.shape);
    }
    Ok((window, rows))
}

async fn write(index: usize, name: &str, sink: &mut dyn Sink, batch: &BatchContext, rows: RowStream) -> Report {
    let span = info_span!(parent: &batch.span, "output", output = name);
    batch.output_started(index);
    let written = async {
        if batch.replay && sink.guarantee() == Guarantee::AtMostOnce {
            left_out(name, batch, rows).await
        } else {
            sink.write(batch, rows).await
        }
    };
    let result = written.instrument(span).await.map_err(|error| error.context(format!("output `{name}`")));
    batch.output_ended(index, result.as_ref().copied());
    (index, result)
}

/// The rows of a batch that comes again, for an output that may write none of them twice. Gives 0.
async fn left_out(name: &str, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
    let mut count = 0;
    // Somebody waits until they are taken.
    while let Some(next) = rows.next().await {
        count += next?.num_rows() as u64;
    }
    warn!(output = name, batch = batch.definition.id, rows = count, "the batch comes again and is not written once more (at-most-once)");
    Ok(0)
}

/// Waits for all tasks; the error is that of the task that failed first.
async fn finish(mut tasks: JoinSet<anyhow::Result<Done>>) -> anyhow::Result<Vec<Done>> {
    let mut results = Vec::new();
    let mut failure: Option<anyhow::Error> = None;
    while let Some(task) = tasks.join_next().await {
        match task.map_err(anyhow::Error::from).and_then(|result| result) {
            Ok(done) => results.push(done),
            Err(error) => failure = Some(failure.unwrap_or(error)),
        }
    }
    match failure {
        None => Ok(results),
        Some(error) => Err(error),
    }
}

async fn send_letters(producer: Arc<dyn Producer>, mut letters: Receiver<Vec<kafka::OutRecord>>, table: String) -> anyhow::Result<()> {
    while let Some(records) = letters.recv().await {
        let count = records.len() as u64;
        for result in producer.send(records).await {
            result.with_context(|| format!("dead letters of table `{table}`"))?;
        }
        metrics::counter!("millrace_engine_dead_letters_total", "table" => table.clone()).increment(count);
    }
    Ok(())
}
