//! Where streams begin: a source's ranges as batches of values.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use parking_lot::Mutex;
use service_kit::kafka::Record;

use super::graph::{AnyNode, Node, Recipe};
use super::rdd::{Data, Origin, Partitions, Rdd};
use super::{DStream, StreamingContext};
use crate::batch::{OffsetRange, PartitionInput, SourceSpec, clock::interval_ms};
use crate::source::Mirror;

/// The untyped side of a stream that a source begins.
pub(super) trait Input: Send + Sync {
    fn spec(&self) -> &SourceSpec;
    fn node(&self) -> Arc<dyn AnyNode>;
    /// The batch of a time.
    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>, mirror: Option<Mirror>);
    /// Records read since the last call.
    fn take_read(&self) -> u64;
}

impl StreamingContext {
    /// A stream with a value for each record of a source. `spec` gets the source's name, `<kind>-<n>`.
    pub(super) fn record_stream<T: Data>(
        &self,
        kind: &str,
        op: String,
        spec: impl FnOnce(String) -> Result<SourceSpec, String>,
        decode: impl Fn(&OffsetRange, Record) -> anyhow::Result<T> + Send + Sync + 'static,
    ) -> DStream<T> {
        let decode = Arc::new(decode);
        self.input_stream(kind, op, |name, node| {
            let input = RecordInput { spec: spec(name)?, node, read: Arc::default(), decode };
            Ok(Arc::new(input))
        })
    }

    /// A stream that begins with an input. An error is reported by the start.
    pub(super) fn input_stream<T: Data>(
        &self,
        kind: &str,
        op: String,
        input: impl FnOnce(String, Arc<Node<T>>) -> Result<Arc<dyn Input>, String>,
    ) -> DStream<T> {
        let mut graph = self.graph.lock();
        // A time without a batch of ours has no records.
        let node = graph.node(Recipe::new(op, interval_ms(self.batch_duration()), vec![], |_, _| Ok(Some(Rdd::empty()))));
        match input(format!("{kind}-{}", graph.inputs.len()), node.clone()) {
            Ok(input) => graph.inputs.push(input),
            Err(error) => graph.error(error),
        }
        drop(graph);
        DStream { node, graph: self.graph.clone() }
    }
}

struct RecordInput<T, F> {
    spec: SourceSpec,
    node: Arc<Node<T>>,
    read: Arc<AtomicU64>,
    decode: Arc<F>,
}

impl<T: Data, F: Fn(&OffsetRange, Record) -> anyhow::Result<T> + Send + Sync + 'static> Input for RecordInput<T, F> {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn node(&self) -> Arc<dyn AnyNode> {
        self.node.clone()
    }

    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>, mirror: Option<Mirror>) {
        let ranges = input.iter().map(|input| input.range.clone()).collect();
        let partitions = input.into_iter().map(|input| Mutex::new(Some(input))).collect();
        let data = Records { partitions, read: self.read.clone(), decode: self.decode.clone() };
        self.node.put(time_ms, Rdd { data: Arc::new(data), origin: Some(Arc::new(Origin { ranges, mirror })) });
    }

    fn take_read(&self) -> u64 {
        self.read.swap(0, Relaxed)
    }
}

/// Ranges of partitions, read when they are asked for, once.
struct Records<F> {
    partitions: Vec<Mutex<Option<PartitionInput>>>,
    read: Arc<AtomicU64>,
    decode: Arc<F>,
}

impl<T: Data, F: Fn(&OffsetRange, Record) -> anyhow::Result<T> + Send + Sync> Partitions<T> for Records<F> {
    fn count(&self) -> usize {
        self.partitions.len()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let Some(cell) = self.partitions.get(partition) else { return Ok(()) };
            let Some(PartitionInput { range, mut records, .. }) = cell.lock().take() else {
                anyhow::bail!("the records of this batch were read already; cache() what is used more than once");
            };
            while let Some(chunk) = records.next().await {
                let chunk = chunk?;
                self.read.fetch_add(chunk.len() as u64, Relaxed);
                for record in chunk {
                    each((self.decode)(&range, record)?);
                }
            }
            Ok(())
        }
        .boxed()
    }
}
