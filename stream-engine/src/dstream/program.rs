//! Runs a declared graph batch by batch.
//!
//! What is stored in a checkpoint is where batches began and which ranges the windows still hold, never code or values:
//! after a restart those ranges are read again. A time that was missed (the process was away) is made up for as long as
//! windows hold something from before it, so that no window that was due is left out.

use std::{sync::Arc, time::Duration, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::{Instrument, info_span};

use super::graph::{Graph, Time};
use crate::batch::{BatchContext, BatchDefinition, BatchOutcome, OutputReport, PartitionInput, Program, SourceSpec, clock::interval_ms};
use crate::source::Mirror;

pub(super) struct DStreamProgram {
    graph: Arc<Mutex<Graph>>,
    interval_ms: i64,
    zero_ms: Option<i64>,
    last_ms: Option<i64>,
    /// Batches that windows still need, oldest first.
    history: Vec<Arc<BatchDefinition>>,
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
}

impl DStreamProgram {
    pub(super) fn new(graph: Arc<Mutex<Graph>>, interval: Duration) -> Self {
        {
            let mut graph = graph.lock();
            graph.started = true;
            for output in &graph.outputs {
                output.node.remember(output.node.slide_ms());
            }
        }
        Self {
            graph,
            interval_ms: interval_ms(interval),
            zero_ms: None,
            last_ms: None,
            history: Vec::new(),
            mirrors: Vec::new(),
            done: None,
        }
    }

    /// How long the sources' batches are needed.
    fn remembered_ms(&self) -> i64 {
        let graph = self.graph.lock();
        graph.inputs.iter().map(|input| input.node().remembered_ms()).max().unwrap_or(0)
    }

    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>) {
        let graph = self.graph.lock();
        let mut by_source: Vec<Vec<PartitionInput>> = graph.inputs.iter().map(|_| Vec::new()).collect();
        for input in input {
            if let Some(source) = by_source.get_mut(input.source) {
                source.push(input);
            }
        }
        for (source, (input, partitions)) in graph.inputs.iter().zip(by_source).enumerate() {
            input.offer(time_ms, partitions, self.mirrors.get(source).cloned().flatten());
        }
    }

    /// The times to run: those that were missed and still matter, then the batch's.
    fn times(&self, time_ms: i64) -> Vec<i64> {
        let Some(last_ms) = self.last_ms else { return vec![time_ms] };
        let missed_until = time_ms.min(last_ms + self.remembered_ms());
        let missed = (1..).map(|n| last_ms + n * self.interval_ms).take_while(|missed| *missed < missed_until.min(time_ms));
        missed.chain([time_ms]).collect()
    }
}

#[async_trait]
impl Program for DStreamProgram {
    fn sources(&self) -> Vec<SourceSpec> {
        self.graph.lock().inputs.iter().map(|input| input.spec().clone()).collect()
    }

    fn plan(&self) -> String {
        self.graph.lock().plan()
    }

    /// Sources and windows: a program may change in every other way and still resume.
    fn fingerprint(&self) -> serde_json::Value {
        let graph = self.graph.lock();
        serde_json::json!({
            "kind": "dstream",
            "batch_interval_ms": self.interval_ms,
            "sources": graph.inputs.iter().map(|input| &input.spec().topics).collect::<Vec<_>>(),
            "windows": graph.nodes.iter().filter_map(|node| node.window()).collect::<Vec<_>>(),
        })
    }

    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome> {
        let time_ms = batch.definition.time_ms;
        let zero_ms = *self.zero_ms.get_or_insert(time_ms - self.interval_ms);
        // Set once per process; a restored value is the same.
        let zero_ms = *self.graph.lock().zero.get_or_init(|| zero_ms);
        debug_assert_eq!((time_ms - zero_ms) % self.interval_ms, 0);
        self.offer(time_ms, input);
        let mut outcome = BatchOutcome::default();
        let done = self.done.filter(|(id, _)| *id == batch.definition.id).map_or(0, |(_, done)| done);
        let mut n = 0;
        for time_ms in self.times(time_ms) {
            let outputs = self.graph.lock().outputs.len();
            for output in 0..outputs {
                let (name, job) = {
                    let graph = self.graph.lock();
                    let Some(output) = graph.outputs.get(output) else { continue };
                    (output.name.clone(), (output.at)(Time(time_ms)))
                };
                let Some(job) = job else { continue };
                n += 1;
                if n <= done {
                    continue;
                }
                let started = Instant::now();
                let span = info_span!(parent: &batch.span, "output", output = name);
                job.work.instrument(span).await.map_err(|error| error.context(format!("output {name}")))?;
                self.done = Some((batch.definition.id, n));
                let rows = (job.rows)();
                outcome.rows_out += rows;
                outcome.outputs.push(OutputReport {
                    name,
                    duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    rows,
                    error: None,
                });
            }
            let settle: Vec<_> = self.graph.lock().nodes.iter().map(|node| node.settle(time_ms)).collect();
            for node in settle {
                node.await?;
            }
        }
        {
            let graph = self.graph.lock();
            graph.nodes.iter().for_each(|node| node.forget_before(time_ms));
            outcome.rows_in = graph.inputs.iter().map(|input| input.take_read()).sum();
        }
        self.last_ms = Some(time_ms);
        self.history.push(batch.definition.clone());
        let oldest = time_ms - self.remembered_ms();
        self.history.retain(|definition| definition.time_ms > oldest);
        Ok(outcome)
    }

    fn snapshot(&mut self) -> anyhow::Result<Bytes> {
        let (Some(zero_ms), Some(last_ms)) = (self.zero_ms, self.last_ms) else { return Ok(Bytes::new()) };
        Ok(serde_json::to_vec(&Snapshot { zero_ms, last_ms, batches: self.history.clone() })?.into())
    }

    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()> {
        let graph = self.graph.lock();
        graph.nodes.iter().for_each(|node| node.forget_all());
        if snapshot.is_empty() {
            self.history.clear();
            self.last_ms = None;
            // Keeps `zero`, when this process has one: streams of one process share it.
            return Ok(());
        }
        let snapshot: Snapshot = serde_json::from_slice(&snapshot)?;
        let zero_ms = *graph.zero.get_or_init(|| snapshot.zero_ms);
        self.zero_ms = Some(zero_ms);
        self.last_ms = Some(snapshot.last_ms);
        self.history = snapshot.batches;
        Ok(())
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
