//! A batch: what it covers, and what runs in it.
//!
//! A batch is `[from, until)` per partition, cut at a multiple of the batch interval since the epoch. Its
//! definition is durable before anything outside may see its effects, so a batch that is run again covers
//! exactly the same records; outputs are fenced by `(job, checkpoint id, batch id)` and therefore happen once.

pub mod clock;
mod cutter;
#[cfg(test)]
pub(crate) mod fake;
pub mod input;
pub mod range;
pub mod rate;
pub mod runner;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use crate::commit::slots::Slot;
use crate::job::{ListenerBus, Monitor, said};
use crate::source::{LocalLog, Mirror};
use async_trait::async_trait;
use bytes::Bytes;
use clock::{Clock, SystemClock};
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use service_kit::kafka::{Isolation, KafkaConfig, KafkaError, Record, TopicPartition};

/// Records `from <= offset < until` of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OffsetRange {
    pub topic: Arc<str>,
    pub partition: i32,
    /// Inclusive.
    pub from: i64,
    /// Exclusive.
    pub until: i64,
}

impl OffsetRange {
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.clone(), partition: self.partition }
    }

    /// How many offsets the range spans; with compaction or transactions fewer records are in it.
    pub fn count(&self) -> u64 {
        u64::try_from(self.until - self.from).unwrap_or(0)
    }
}

/// What a batch covers. Stored before the batch runs and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchDefinition {
    /// 0, 1, 2, … without gaps since the fresh start of the job.
    pub id: u64,
    /// The multiple of the batch interval at which the batch was cut, milliseconds since the epoch.
    pub time_ms: i64,
    /// By source index, as in [`Program::sources`]; within a source ordered by topic and partition. Partitions
    /// without news are present with `from == until`.
    pub ranges: Vec<Vec<OffsetRange>>,
}

impl BatchDefinition {
    pub fn all_ranges(&self) -> impl Iterator<Item = &OffsetRange> {
        self.ranges.iter().flatten()
    }

    /// Offsets spanned by all ranges.
    pub fn count(&self) -> u64 {
        self.all_ranges().map(OffsetRange::count).sum()
    }

    /// Of what the batch covers: two batches of one number that cover something else are of two histories, as after a checkpoint was put back.
    pub fn digest(&self) -> u32 {
        let ranges = self.ranges.iter().enumerate().flat_map(|(source, ranges)| ranges.iter().map(move |range| (source, range)));
        ranges.fold(crc32c::crc32c(&self.time_ms.to_be_bytes()), |digest, (source, range)| {
            let text = format!("{source} {} {} {} {}\n", range.topic, range.partition, range.from, range.until);
            crc32c::crc32c_append(digest, text.as_bytes())
        })
    }
}

/// What a program is told about the batch it runs.
#[derive(Clone)]
pub struct BatchContext {
    pub job: Arc<str>,
    /// Unique per fresh start of the job, kept over restarts; fences are kept per `(job, checkpoint_id)`.
    pub checkpoint_id: Arc<str>,
    pub definition: Arc<BatchDefinition>,
    /// Id of the newest batch that this process knows of: above this one's while older batches are run again. A fence
    /// beyond it was raised by another process.
    pub newest: u64,
    /// The batch may have run (in part) before: its outputs may hold it already.
    pub replay: bool,
    /// Sources ended, or the job drains: emit everything after this batch.
    pub last: bool,
    /// Of a job that several workers share: which part of it this is. Batches of each slot are counted by themselves, and what fences them must
    /// not be another slot's. A slot's `checkpoint_id` is its own.
    pub slot: Option<Slot>,
    /// `engine.batch`; children `process` and `output` belong below it.
    pub span: tracing::Span,
    /// Where outputs say what they do and what they are waiting for; `None` in tests.
    pub monitor: Option<Arc<Monitor>>,
}

impl BatchContext {
    /// The job's.
    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.monitor.as_ref().map_or_else(|| Arc::new(SystemClock) as Arc<dyn Clock>, |monitor| monitor.clock().clone())
    }

    /// Says which output the batch will run as its `id`-th, counted from 0.
    pub(crate) fn output(&self, id: usize, name: &str, description: &str) {
        if let Some(monitor) = &self.monitor {
            monitor.output(self.definition.id, id, name, description);
        }
    }

    pub(crate) fn output_started(&self, id: usize) {
        if let Some(monitor) = &self.monitor {
            monitor.output_started(self.definition.id, id);
        }
    }

    /// With the rows that it wrote, or why it failed.
    pub(crate) fn output_ended(&self, id: usize, result: Result<u64, &anyhow::Error>) {
        if let Some(monitor) = &self.monitor {
            monitor.output_ended(self.definition.id, id, result.map_err(said));
        }
    }

    /// Output `who` waits for an outside party, until it says [`Self::not_waiting`].
    pub(crate) fn waiting(&self, who: &str, what: String) {
        if let Some(monitor) = &self.monitor {
            monitor.waiting(who, what);
        }
    }

    pub(crate) fn not_waiting(&self, who: &str) {
        if let Some(monitor) = &self.monitor {
            monitor.not_waiting(who);
        }
    }
}

/// The records of one partition in one batch.
pub struct PartitionInput {
    /// Index into [`Program::sources`].
    pub source: usize,
    pub range: OffsetRange,
    /// `until` was the end of the partition when the batch was cut.
    pub caught_up: bool,
    /// In offset order, in chunks; the stream ends at `range.until`.
    pub records: BoxStream<'static, Result<Vec<Record>, KafkaError>>,
}

/// Where a source begins when no checkpoint says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Startup {
    Earliest,
    Latest,
    /// The offsets of [`SourceSpec::group`] in Kafka, or where `offsets.store` says; partitions without one follow `auto.offset.reset` of the Kafka
    /// settings (`earliest`, `latest`, `none` = error; default `latest`, as in Kafka).
    GroupOffsets,
    /// The first record at or after this time, milliseconds since the epoch.
    Timestamp(i64),
    /// Exactly these offsets; partitions that are not named begin at the earliest.
    Specific(BTreeMap<TopicPartition, i64>),
}

/// Where a bounded source ends; fixed once, when the job first starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounded {
    /// The end of every partition at the start of the job.
    Latest,
    /// The first record at or after this time, milliseconds since the epoch.
    Timestamp(i64),
}

/// Where the partitions of a source are.
#[derive(Clone)]
pub enum SourceKind {
    Kafka(KafkaConfig),
    /// A log of this process's own, whose only partition is 0.
    Local(Arc<dyn LocalLog>),
}

/// One source of a job.
#[derive(Clone)]
pub struct SourceSpec {
    /// Unique within the job: the table's name, or `kafka-0`. Identifies the source in checkpoints.
    pub name: String,
    pub kind: SourceKind,
    pub topics: Vec<String>,
    pub startup: Startup,
    /// `None`: the source never ends.
    pub bounded: Option<Bounded>,
    pub isolation: Isolation,
    /// The consumer group under which offsets are written after each batch, to Kafka or where `offsets.store` says, so that
    /// other tools show the job's lag. The checkpoint wins where the two differ.
    pub group: Option<String>,
}

impl SourceSpec {
    /// A log of this process's own. Its topic is `name`, and `what` beside it where its offsets would mean something else without.
    pub fn local(name: String, what: &str, log: Arc<dyn LocalLog>, startup: Startup) -> Self {
        Self {
            topics: vec![format!("{name}{what}")],
            name,
            kind: SourceKind::Local(log),
            startup,
            bounded: None,
            isolation: Isolation::ReadUncommitted,
            group: None,
        }
    }

    /// A property of the Kafka client; `None` for a local log.
    pub fn kafka(&self, key: &str) -> Option<&str> {
        match &self.kind {
            SourceKind::Kafka(config) => config.get(key),
            SourceKind::Local(_) => None,
        }
    }
}

/// What a batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BatchOutcome {
    pub rows_in: u64,
    pub rows_out: u64,
    /// Rows that could not be decoded, in this batch.
    pub malformed: u64,
    /// Rows behind the watermark, in this batch.
    pub late: u64,
    /// Milliseconds since the epoch; `None` before the first row with event time.
    pub watermark_ms: Option<i64>,
    /// What operators keep for later batches, where they know how much it is.
    pub state: Vec<StateReport>,
}

/// What one operator keeps for later batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateReport {
    pub operator: String,
    pub rows: u64,
    /// In memory.
    pub bytes: u64,
}

/// How the slots of a shared job get on with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Each processes its records without the others'.
    Apart,
    /// They pass rows to each other.
    Exchanged,
}

/// What runs in every batch: a planned SQL job, or a DStream program.
#[async_trait]
pub trait Program: Send {
    /// Asked once, before the first batch. The order gives the source indices.
    fn sources(&self) -> Vec<SourceSpec>;

    /// How slots of the job get on with each other (`job.slots`). The error says what cannot be shared, and what would be right.
    fn shareable(&self) -> Result<Sharing, String> {
        Err("`job.slots` is for SQL jobs; a DStream program runs in one process".into())
    }

    /// For people: on the page and in `job show`.
    fn plan(&self) -> String;

    /// Identity of operators and schemas, stored in the checkpoint. On restore a different one is refused with the
    /// paths (`/operators/2/schema`) at which the two differ, so give it one field per thing a user may change.
    fn fingerprint(&self) -> serde_json::Value;

    /// Runs one batch and writes its outputs, fenced by `(job, checkpoint_id, batch id)`. After an error the batch is
    /// run again with the same definition and `replay = true`, after [`Program::restore`] of the state before it.
    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome>;

    /// The state after the last run; goes into the checkpoint.
    fn snapshot(&mut self) -> anyhow::Result<Bytes>;

    /// Back to a state of [`Program::snapshot`]; empty bytes mean the state before the first batch.
    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()>;

    /// Who is told of what the job does.
    fn listeners(&self) -> Arc<ListenerBus> {
        Arc::default()
    }

    /// By source index, how to commit offsets to the source's group on the program's own account.
    fn attach(&mut self, mirrors: &[Option<Mirror>]) {
        let _ = mirrors;
    }

    /// Earlier batches whose input the program needs again after [`Program::restore`], oldest first. Programs
    /// whose state is in their snapshot have none.
    fn wants(&self) -> Vec<Arc<BatchDefinition>> {
        Vec::new()
    }

    /// Gives the input of one batch that [`Program::wants`] named, in that order. Must have no outside effect.
    async fn rebuild(&mut self, definition: Arc<BatchDefinition>, input: Vec<PartitionInput>) -> anyhow::Result<()> {
        let _ = (definition, input);
        Ok(())
    }
}
