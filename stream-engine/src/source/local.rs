//! A log of this process's own: what makes a source of anything that is not Kafka.
//!
//! The cutter asks how far it reaches, a batch reads a range of it, a restart goes on at the checkpoint's offsets: as with a
//! topic of one partition. So ranges, durable batch definitions, runs that are made again and windows that are read again are
//! the same for every source.
//!
//! A range that the log does not hold any more is no failure of the job, as it would be in Kafka: the log gives what is
//! left of it, says how much is gone, and the batch runs with that.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use service_kit::kafka::{Bounds, KafkaError, RangeReader, Record, TopicPartition};
use tokio_util::task::TaskTracker;

use super::receiver::ReceiverStatus;
use crate::batch::clock::Clock;
use crate::job::{JobSettings, Monitor};

/// Where a log lives.
#[derive(Clone)]
pub struct Place {
    pub job: Arc<str>,
    /// The source's name.
    pub source: Arc<str>,
    /// And its index: the page's stream id.
    pub stream: usize,
    /// For what must outlive the process; `None` where the checkpoint is no folder.
    pub folder: Option<PathBuf>,
    /// The checkpoint, as it was given.
    pub checkpoint: String,
    pub settings: JobSettings,
    pub clock: Arc<dyn Clock>,
    pub tasks: TaskTracker,
    /// Where receivers say how they are.
    pub monitor: Arc<Monitor>,
}

/// Where a job stands when it starts.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Where the job once began to read.
    pub start: i64,
    /// The first offset that no batch covers; what is before it is only read when a batch runs again.
    pub next: i64,
    pub started_at_ms: i64,
    /// Time of the newest batch.
    pub last_ms: Option<i64>,
}

/// What is not read again, each an offset that is still needed.
#[derive(Clone, Copy, Debug)]
pub struct Released {
    /// For the next batch.
    pub processed: i64,
    /// When a batch of this process runs again: what windows look back to. At most `processed`.
    pub wanted: i64,
    /// When a damaged checkpoint falls back to an older commit. At most `wanted`.
    pub replayed: i64,
}

#[async_trait]
pub trait LocalLog: Send + Sync + 'static {
    /// Once, first: finds what earlier processes left. Takes in nothing yet.
    async fn open(&self, place: Place) -> anyhow::Result<()>;

    /// Once, before anything is read: offsets go on at `next`, and records may be taken in from now on.
    fn begin(&self, resume: &Resume);

    /// `latest` is asked for at each cut.
    async fn bounds(&self) -> Result<Bounds, KafkaError>;

    /// As [`RangeReader::read`], but that what is gone is left out.
    fn read(&self, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>>;

    /// Offsets that a batch covers at most, where it is not the job's `batch.records.max`.
    fn batch_max(&self) -> Option<u64> {
        None
    }

    /// Has [`Self::limit`] a meaning?
    fn takes_limit(&self) -> bool {
        false
    }

    /// Backpressure: records per second to take in.
    fn limit(&self, _records_per_second: Option<u64>) {}

    /// After each commit.
    fn release(&self, _released: Released) {}

    /// Why a job on this log cannot be exactly-once: what a crash loses, and what to do about it.
    fn loses(&self, _settings: &JobSettings) -> Option<&'static str> {
        None
    }

    /// How its receiver is; `None`: it has none.
    fn receiver(&self) -> Option<ReceiverStatus> {
        None
    }

    /// Takes nothing in any more; what was taken in is there to be read. More than once does nothing.
    async fn stop(&self) {}
}

/// A log as a topic of one partition.
pub(super) struct LocalReader(pub(super) Arc<dyn LocalLog>);

#[async_trait]
impl RangeReader for LocalReader {
    async fn partitions(&self, _: &str) -> Result<Vec<i32>, KafkaError> {
        Ok(vec![0])
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        let bounds = self.0.bounds().await?;
        Ok(partitions.iter().map(|partition| (partition.clone(), bounds)).collect())
    }

    async fn offsets_at(&self, _: &[TopicPartition], _: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        Err(KafkaError::Unsupported("this source has no offsets by time".into()))
    }

    fn read(&self, _: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        self.0.read(from, until)
    }
}
