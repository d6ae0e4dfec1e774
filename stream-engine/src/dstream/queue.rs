//! Streams without an outside: batches that the program queues, and rows by the clock.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use futures::{StreamExt as _, stream, stream::BoxStream};
use parking_lot::Mutex;
use service_kit::kafka::{Bounds, KafkaError, Record};

use super::graph::{AnyNode, Node};
use super::input::Input;
use super::rdd::{Data, Rdd};
use super::{DStream, StreamingContext};
use crate::batch::{PartitionInput, SourceSpec, Startup};
use crate::job::JobSettings;
use crate::source::{LocalLog, Mirror, Place, Released, Resume, rate::RateLog};

/// Batches that wait for a stream ([`StreamingContext::queue_stream`]). Cheap to clone; may be filled while the program runs.
pub struct RddQueue<T>(Arc<Mutex<Queued<T>>>);

struct Queued<T> {
    /// By offset: the n-th that was pushed.
    rdds: BTreeMap<i64, Rdd<T>>,
    next: i64,
}

impl<T> Clone for RddQueue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for RddQueue<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Queued { rdds: BTreeMap::new(), next: 0 })))
    }
}

impl<T: Data> RddQueue<T> {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&self, rdd: Rdd<T>) {
        let mut queued = self.0.lock();
        let offset = queued.next;
        queued.next += 1;
        queued.rdds.insert(offset, rdd);
    }
}

impl<T: Data> FromIterator<Rdd<T>> for RddQueue<T> {
    fn from_iter<I: IntoIterator<Item = Rdd<T>>>(rdds: I) -> Self {
        let queue = Self::new();
        rdds.into_iter().for_each(|rdd| queue.push(rdd));
        queue
    }
}

/// The queue as a log: a record stands for a batch, and has no value.
struct QueueLog<T> {
    queue: RddQueue<T>,
    one_at_a_time: bool,
}

#[async_trait]
impl<T: Data> LocalLog for QueueLog<T> {
    fn loses(&self, _settings: &JobSettings) -> Option<&'static str> {
        Some("the queue ends with the process; read a source that outlives it")
    }

    async fn open(&self, _: Place) -> anyhow::Result<()> {
        Ok(())
    }

    fn begin(&self, resume: &Resume) {
        // What an earlier process had is gone; what was pushed before the start comes behind it.
        let mut queued = self.queue.0.lock();
        let queued = &mut *queued;
        queued.next += resume.next;
        queued.rdds = std::mem::take(&mut queued.rdds).into_iter().map(|(offset, rdd)| (offset + resume.next, rdd)).collect();
    }

    async fn bounds(&self) -> Result<Bounds, KafkaError> {
        let queued = self.queue.0.lock();
        Ok(Bounds { earliest: queued.rdds.keys().next().copied().unwrap_or(queued.next), latest: queued.next })
    }

    fn read(&self, _: i64, _: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        stream::empty().boxed()
    }

    fn batch_max(&self) -> Option<u64> {
        self.one_at_a_time.then_some(1)
    }

    fn release(&self, released: Released) {
        self.queue.0.lock().rdds.retain(|offset, _| *offset >= released.wanted);
    }
}

struct QueueInput<T> {
    spec: SourceSpec,
    node: Arc<Node<T>>,
    queue: RddQueue<T>,
    default: Rdd<T>,
    read: AtomicU64,
}

impl<T: Data> Input for QueueInput<T> {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn node(&self) -> Arc<dyn AnyNode> {
        self.node.clone()
    }

    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>, _: Option<Mirror>) {
        let queued = self.queue.0.lock();
        let ranges = input.iter().map(|input| input.range.from..input.range.until);
        let mut rdds: Vec<Rdd<T>> = ranges.flat_map(|range| queued.rdds.range(range)).map(|(_, rdd)| rdd.clone()).collect();
        self.read.fetch_add(rdds.len() as u64, Relaxed);
        let rdd = match rdds.pop() {
            None => self.default.clone(),
            Some(only) if rdds.is_empty() => only,
            Some(last) => {
                rdds.push(last);
                Rdd::union_all(rdds)
            }
        };
        self.node.put(time_ms, rdd);
    }

    fn take_read(&self) -> u64 {
        self.read.swap(0, Relaxed)
    }
}

impl StreamingContext {
    /// Batches from a queue, for trying a program out: one at each time, or everything that waits. `default_rdd` is the batch of a
    /// time without one; without it that is empty. What waits in a queue is lost with the process, and so is what a window
    /// would read of it again.
    pub fn queue_stream<T: Data>(&self, queue: &RddQueue<T>, one_at_a_time: bool, default_rdd: Option<Rdd<T>>) -> DStream<T> {
        self.input_stream("queue", "queue".into(), |name, node| {
            let log = QueueLog { queue: queue.clone(), one_at_a_time };
            let spec = SourceSpec::local(name, "", Arc::new(log), Startup::Earliest);
            let default = default_rdd.unwrap_or_else(Rdd::empty);
            Ok(Arc::new(QueueInput { spec, node, queue: queue.clone(), default, read: AtomicU64::new(0) }))
        })
    }

    /// `(milliseconds since the epoch, n)`: the n-th row since the job first started, and when it was due. The same rows
    /// whenever a batch is run again; rows that were due while the job was away come when it is back.
    pub fn rate_stream(&self, rows_per_second: u32) -> DStream<(i64, u64)> {
        let spec = |name| {
            if rows_per_second == 0 {
                return Err("rateStream: rows_per_second (0) must be positive".into());
            }
            // Its offsets mean other times at another rate.
            let what = format!("@{rows_per_second}");
            Ok(SourceSpec::local(name, &what, Arc::new(RateLog::new(rows_per_second)), Startup::Earliest))
        };
        self.record_stream("rate", format!("rate({rows_per_second})"), spec, |_, record| {
            Ok((record.timestamp_ms, record.offset.unsigned_abs()))
        })
    }
}
