//! Runs a declared graph batch by batch.
//!
//! A checkpoint holds where batches began, which ranges the windows still need, and what streams with state keep; never
//! code, and never the records of windows: after a restart those ranges are read again.
//!
//! A time that was missed (the process was away) is made up for: all of them when a stream has state, for it changes with
//! each; else as long as windows hold something from before it, so that no window that was due is left out.

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{Instrument, info_span};

use super::context::StreamingContextState;
use super::graph::{AnyNode, Graph, Output, Progress};
use super::input::Input;
use super::state::{read, write};
use super::time::Time;
use crate::batch::{BatchContext, BatchDefinition, BatchOutcome, PartitionInput, Program, SourceSpec, clock::interval_ms};
use crate::job::ListenerBus;
use crate::source::Mirror;

pub(super) struct DStreamProgram {
    progress: Arc<Progress>,
    nodes: Vec<Arc<dyn AnyNode>>,
    /// Those with state that an output needs, parents before children.
    with_state: Vec<Arc<dyn AnyNode>>,
    inputs: Vec<Arc<dyn Input>>,
    outputs: Arc<[Arc<Output>]>,
    plan: String,
    interval_ms: i64,
    zero_ms: Option<i64>,
    last_ms: Option<i64>,
    /// Batches that windows still need, oldest first.
    history: Vec<Arc<BatchDefinition>>,
    listeners: Arc<ListenerBus>,
    /// For `commit_async`, by source.
    mirrors: Vec<Option<Mirror>>,
    /// Outputs of the batch that succeeded in an earlier attempt: they are not run again.
    done: Option<(u64, usize)>,
}

/// What a checkpoint holds.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    zero_ms: i64,
    last_ms: i64,
    batches: Vec<Arc<BatchDefinition>>,
    /// By the stream's name and time.
    states: BTreeMap<String, BTreeMap<i64, Bytes>>,
}

impl DStreamProgram {
    pub(super) fn new(graph: &Mutex<Graph>, interval: Duration) -> Self {
        let mut graph = graph.lock();
        graph.state = StreamingContextState::Active;
        let used = graph.used();
        for output in &graph.outputs {
            output.node.remember(output.node.slide_ms());
        }
        if graph.remember_ms > 0 {
            used.iter().for_each(|node| node.remember(graph.remember_ms));
            // Everything else is computed from them again.
            graph.inputs.iter().for_each(|input| input.node().keep_values());
        }
        Self {
            progress: graph.progress.clone(),
            nodes: graph.nodes.clone(),
            with_state: used.into_iter().filter(|node| node.state_name().is_some()).collect(),
            inputs: graph.inputs.clone(),
            outputs: graph.outputs.clone().into(),
            plan: graph.plan(),
            interval_ms: interval_ms(interval),
            zero_ms: None,
            last_ms: None,
            history: Vec::new(),
            listeners: graph.listeners.clone(),
            mirrors: Vec::new(),
            done: None,
        }
    }

    /// Does anything have to outlive the process?
    pub(super) fn has_state(&self) -> bool {
        !self.with_state.is_empty()
    }

    /// An output that must not be written again by a program that is started again.
    pub(super) fn exactly_once(&self) -> Option<&Output> {
        self.outputs.iter().map(AsRef::as_ref).find(|output| output.exactly_once)
    }

    /// How long the sources' batches are needed.
    fn remembered_ms(&self) -> i64 {
        self.inputs.iter().map(|input| input.node().remembered_ms()).max().unwrap_or(0)
    }

    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>) {
        let mut by_source: Vec<Vec<PartitionInput>> = self.inputs.iter().map(|_| Vec::new()).collect();
        for input in input {
            if let Some(source) = by_source.get_mut(input.source) {
                source.push(input);
            }
        }
        for (source, (input, partitions)) in self.inputs.iter().zip(by_source).enumerate() {
            input.offer(time_ms, partitions, self.mirrors.get(source).cloned().flatten());
        }
    }

    /// The times to run: those that were missed and still matter, then the batch's.
    fn times(&self, time_ms: i64) -> impl Iterator<Item = i64> + Send + use<> {
        let (last_ms, interval_ms) = (self.last_ms.unwrap_or(time_ms), self.interval_ms);
        let missed_until = if self.has_state() { time_ms } else { time_ms.min(last_ms + self.remembered_ms()) };
        let missed = (1..).map(move |n| last_ms + n * interval_ms).take_while(move |missed| *missed < missed_until);
        missed.chain([time_ms])
    }

    /// Runs the outputs at one time. `n` counts them over all times of the batch.
    async fn outputs_at(&mut self, time_ms: i64, batch: &BatchContext, n: &mut usize, outcome: &mut BatchOutcome) -> anyhow::Result<()> {
        let done = self.done.filter(|(id, _)| *id == batch.definition.id).map_or(0, |(_, done)| done);
        let since_zero = time_ms - self.progress.zero.get().copied().unwrap_or(0);
        let due = |output: &&Arc<Output>| since_zero % output.node.slide_ms() == 0;
        let first = *n;
        for (id, output) in (first..).zip(self.outputs.iter().filter(due)) {
            batch.output(id, &output.name, &output.description);
        }
        for (id, output) in (first..).zip(self.outputs.clone().iter().filter(due)) {
            *n = id + 1;
            if id < done {
                continue;
            }
            batch.output_started(id);
            let span = info_span!(parent: &batch.span, "output", output = output.name);
            let result = run(output, time_ms).instrument(span).await.map_err(|error| error.context(format!("output {}", output.name)));
            batch.output_ended(id, result.as_ref().copied());
            outcome.rows_out += result?;
            self.done = Some((batch.definition.id, *n));
        }
        Ok(())
    }
}

/// Runs an output at its time; gives the rows that it computed.
async fn run(output: &Output, time_ms: i64) -> anyhow::Result<u64> {
    let Some(job) = caught(async { (output.at)(Time(time_ms)) }).await? else { return Ok(0) };
    caught(job.work).await?;
    Ok((job.rows)())
}

/// A program's own functions may panic: that fails the batch, not the engine.
async fn caught<R>(work: impl Future<Output = anyhow::Result<R>>) -> anyhow::Result<R> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(anyhow::anyhow!("panicked: {}", message.unwrap_or("without a message")))
    })
}

#[async_trait]
impl Program for DStreamProgram {
    fn sources(&self) -> Vec<SourceSpec> {
        self.inputs.iter().map(|input| input.spec().clone()).collect()
    }

    fn plan(&self) -> String {
        self.plan.clone()
    }

    /// Sources, windows, and streams with state by their names: a program may change in every other way and still resume.
    fn fingerprint(&self) -> serde_json::Value {
        // Beside a stream's state there may be copies for its windows, which are named after it.
        let names = self.with_state.iter().filter_map(|node| node.state_name()).filter(|name| !name.contains('/'));
        let operators: serde_json::Map<_, _> = names.map(|name| (name, serde_json::json!({}))).collect();
        serde_json::json!({
            "kind": "dstream",
            "batch_interval_ms": self.interval_ms,
            "sources": self.inputs.iter().map(|input| &input.spec().topics).collect::<Vec<_>>(),
            "operators": operators,
            "windows": self.nodes.iter().filter_map(|node| node.window()).collect::<Vec<_>>(),
        })
    }

    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome> {
        let time_ms = batch.definition.time_ms;
        let zero_ms = *self.zero_ms.get_or_insert(time_ms - self.interval_ms);
        // Set once per process; a restored value is the same.
        let zero_ms = *self.progress.zero.get_or_init(|| zero_ms);
        debug_assert_eq!((time_ms - zero_ms) % self.interval_ms, 0);
        *self.progress.batch.lock() = Some(batch.clone());
        self.offer(time_ms, input);
        let mut outcome = BatchOutcome::default();
        let mut n = 0;
        for time_ms in self.times(time_ms) {
            self.progress.newest.store(time_ms, Relaxed);
            self.outputs_at(time_ms, batch, &mut n, &mut outcome).await?;
            for node in &self.with_state {
                let next_ms = time_ms + self.interval_ms;
                let settled = caught(async { node.settle(time_ms, next_ms).await });
                settled.await.map_err(|error| error.context(format!("state `{}`", node.state_name().unwrap_or_default())))?;
            }
            self.nodes.iter().for_each(|node| node.forget_before(time_ms));
        }
        outcome.rows_in = self.inputs.iter().map(|input| input.take_read()).sum();
        self.last_ms = Some(time_ms);
        self.history.push(batch.definition.clone());
        let oldest = time_ms - self.remembered_ms();
        self.history.retain(|definition| definition.time_ms > oldest);
        Ok(outcome)
    }

    fn snapshot(&mut self) -> anyhow::Result<Bytes> {
        let (Some(zero_ms), Some(last_ms)) = (self.zero_ms, self.last_ms) else { return Ok(Bytes::new()) };
        let mut states = BTreeMap::new();
        for node in &self.with_state {
            states.insert(node.state_name().unwrap_or_default(), node.save(last_ms + self.interval_ms)?);
        }
        let mut bytes = Vec::new();
        write(&Snapshot { zero_ms, last_ms, batches: self.history.clone(), states }, &mut bytes)?;
        Ok(bytes.into())
    }

    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()> {
        let snapshot =
            read::<Snapshot>(&snapshot).map_err(|error| error.context("the program's part of the checkpoint cannot be read"))?.pop();
        self.nodes.iter().for_each(|node| node.forget_all());
        let Some(snapshot) = snapshot else {
            self.history.clear();
            self.last_ms = None;
            // Keeps `zero`, when this process has one: streams of one process share it.
            return Ok(());
        };
        // State that no stream has any more is dropped: `fingerprint` names it, so the job has said that it may be.
        for node in &self.with_state {
            if let Some(saved) = snapshot.states.get(&node.state_name().unwrap_or_default()) {
                node.load(saved)?;
            }
        }
        self.zero_ms = Some(*self.progress.zero.get_or_init(|| snapshot.zero_ms));
        self.last_ms = Some(snapshot.last_ms);
        self.history = snapshot.batches;
        Ok(())
    }

    fn listeners(&self) -> Arc<ListenerBus> {
        self.listeners.clone()
    }

    fn attach(&mut self, mirrors: &[Option<Mirror>]) {
        self.mirrors = mirrors.to_vec();
    }

    fn wants(&self) -> Vec<Arc<BatchDefinition>> {
        // What only the batch itself needed is not read again.
        let oldest = self.last_ms.map_or(i64::MAX, |last_ms| last_ms + self.interval_ms - self.remembered_ms());
        self.history.iter().filter(|definition| definition.time_ms > oldest).cloned().collect()
    }

    async fn rebuild(&mut self, definition: Arc<BatchDefinition>, input: Vec<PartitionInput>) -> anyhow::Result<()> {
        // Read when a window asks for it.
        self.offer(definition.time_ms, input);
        Ok(())
    }
}
