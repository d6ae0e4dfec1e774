//! SQL jobs against hand-made batches and a sink in memory: no network.

mod exchange;
mod messages;
mod partitions;
mod queries;
mod reference;
mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use service_kit::kafka::Record;

use super::job::{Compiled, compile};
use super::program::SqlProgram;
use super::{CompileOptions, SqlError};
use crate::batch::{BatchContext, BatchDefinition, BatchOutcome, OffsetRange, PartitionInput, Program, clock::ManualClock};
use crate::commit::{PlannedBatch, slots::Slot};
use crate::job::Monitor;
use crate::sink::{Guarantee, RowStream, Sink};

/// A source `t` with event time, and what is needed of `WITH`.
const KAFKA: &str = "'connector' = 'kafka', 'topic' = 'in', 'properties.bootstrap.servers' = 'nowhere:9092', \
                     'scan.startup.mode' = 'earliest-offset', 'format' = 'json'";

fn options() -> CompileOptions {
    let environment = |name: &str| (name == "SERVERS").then(|| "nowhere:9092".to_owned());
    CompileOptions { defaults: BTreeMap::new(), environment: Box::new(environment) }
}

fn try_compile(text: &str) -> Result<Compiled, SqlError> {
    compile(text, &options())
}

/// Rows that an INSERT wrote: batch id and values as text.
type Written = Arc<Mutex<Vec<(u64, Vec<String>)>>>;

struct MemorySink(Written, Guarantee);

#[async_trait]
impl Sink for MemorySink {
    fn guarantee(&self) -> Guarantee {
        self.1
    }

    async fn write(&mut self, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
        let mut count = 0;
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            count += rows.num_rows() as u64;
            self.0.lock().extend(texts(&rows).into_iter().map(|row| (batch.definition.id, row)));
        }
        Ok(count)
    }
}

fn texts(rows: &RecordBatch) -> Vec<Vec<String>> {
    let format = FormatOptions::new().with_null("NULL");
    let columns: Vec<_> = rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &format).unwrap()).collect();
    (0..rows.num_rows()).map(|row| columns.iter().map(|column| column.value(row).to_string()).collect()).collect()
}

/// A job whose sinks are in memory.
struct Job {
    program: SqlProgram,
    written: Vec<Written>,
    offsets: BTreeMap<i32, i64>,
    next_id: u64,
    /// The next batches come again.
    replay: bool,
    monitor: Arc<Monitor>,
}

/// Lines of one partition in one batch.
#[derive(Clone, Debug, Default)]
struct Lines {
    partition: i32,
    lines: Vec<String>,
    behind: bool,
}

fn lines(partition: i32, lines: &[&str]) -> Lines {
    Lines { partition, lines: lines.iter().map(|line| (*line).to_owned()).collect(), behind: false }
}

impl Job {
    fn new(text: &str) -> Self {
        let mut program = match try_compile(text) {
            Ok(compiled) => compiled.program,
            Err(error) => panic!("{error}\n{text}"),
        };
        let mut written = Vec::new();
        for output in &mut program.outputs {
            let rows = Written::default();
            output.sink = Box::new(MemorySink(rows.clone(), output.sink.guarantee()));
            written.push(rows);
        }
        let monitor = Arc::new(Monitor::new("test", 1000, 100, "", Arc::new(ManualClock::at(0))));
        Self { program, written, offsets: BTreeMap::new(), next_id: 0, replay: false, monitor }
    }

    /// Runs a batch; every partition that takes part is named, also without lines.
    fn batch(&mut self, input: Vec<Lines>, last: bool) -> BatchOutcome {
        self.try_batch(input, last).unwrap()
    }

    fn try_batch(&mut self, input: Vec<Lines>, last: bool) -> anyhow::Result<BatchOutcome> {
        let (context, partitions) = self.input(input, self.next_id as i64 * 1000, last, None);
        runtime().block_on(self.program.run(&context, partitions))
    }

    /// What the next batch gets.
    fn input(&mut self, input: Vec<Lines>, time_ms: i64, last: bool, slot: Option<Slot>) -> (BatchContext, Vec<PartitionInput>) {
        let mut ranges = Vec::new();
        let mut partitions = Vec::new();
        for Lines { partition, lines, behind } in input {
            let from = *self.offsets.entry(partition).or_default();
            let until = from + lines.len() as i64;
            self.offsets.insert(partition, until);
            let range = OffsetRange { topic: "in".into(), partition, from, until };
            ranges.push(range.clone());
            let records: Vec<Record> = (from..).zip(lines).map(|(offset, line)| record(offset, &line)).collect();
            // Small chunks, so that a batch has several.
            let chunks: Vec<_> = records.chunks(3).map(|chunk| Ok(chunk.to_vec())).collect();
            partitions.push(PartitionInput { source: 0, range, caught_up: !behind, records: futures::stream::iter(chunks).boxed() });
        }
        (self.context(ranges, time_ms, last, slot), partitions)
    }

    fn context(&mut self, ranges: Vec<OffsetRange>, time_ms: i64, last: bool, slot: Option<Slot>) -> BatchContext {
        let definition = BatchDefinition { id: self.next_id, time_ms, ranges: vec![ranges] };
        self.next_id += 1;
        let planned = PlannedBatch { definition, caught_up: Vec::new(), end: None, topics: Vec::new(), sources: Vec::new() };
        self.monitor.submitted(&planned, None);
        BatchContext {
            job: "test".into(),
            checkpoint_id: "c".into(),
            definition: Arc::new(planned.definition),
            newest: self.next_id,
            replay: self.replay,
            last,
            slot,
            span: tracing::Span::none(),
            monitor: Some(self.monitor.clone()),
        }
    }

    /// As after a crash: a new program from the same text, with the state of the old one.
    fn restart(&mut self, text: &str) {
        let snapshot = self.program.snapshot().unwrap();
        let mut new = Self::new(text);
        for (output, written) in new.program.outputs.iter_mut().zip(&self.written) {
            output.sink = Box::new(MemorySink(written.clone(), output.sink.guarantee()));
        }
        new.program.restore(snapshot).unwrap();
        self.program = new.program;
    }

    /// Rows of the only INSERT, in their order.
    fn rows(&self) -> Vec<String> {
        self.rows_of(0)
    }

    fn rows_of(&self, output: usize) -> Vec<String> {
        self.written[output].lock().iter().map(|(_, row)| row.join(" | ")).collect()
    }

    fn sorted(&self) -> Vec<String> {
        let mut rows = self.rows();
        rows.sort();
        rows
    }
}

fn record(offset: i64, line: &str) -> Record {
    Record { offset, timestamp_ms: 1000 + offset, key: Some("k".into()), value: Some(line.to_owned().into()), headers: Vec::new() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
