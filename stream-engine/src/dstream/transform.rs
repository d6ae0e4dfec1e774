//! From batch to batch: any function of one stream, of two, of many.
//!
//! A function gives an [`Rdd`], or an error (`anyhow::Result<Rdd<_>>`), which fails the batch, as null does in Spark. It
//! runs once per batch, when the batch is put together; what it declares on its argument runs with the batch.

use std::sync::Arc;

use super::graph::{AnyNode, Graph, Recipe};
use super::rdd::{Data, IntoRdd, Rdd};
use super::time::Time;
use super::{DStream, StreamingContext};
use crate::batch::clock::interval_ms;

impl<T: Data> DStream<T> {
    /// Any function from batch to batch.
    pub fn transform<R: IntoRdd>(&self, f: impl Fn(Rdd<T>, Time) -> R + Send + Sync + 'static) -> DStream<R::Item> {
        // The function may use its argument more than once.
        self.derive("transform", move |rdd, time| f(rdd.cache(), time))
    }

    /// Any function of this stream's batch and the other's of the same time. They must slide alike.
    pub fn transform_with<U: Data, R: IntoRdd>(
        &self,
        other: &DStream<U>,
        f: impl Fn(Rdd<T>, Rdd<U>, Time) -> R + Send + Sync + 'static,
    ) -> DStream<R::Item> {
        self.with(other, "transformWith", move |left, right, time| f(left.cache(), right.cache(), time))
    }

    /// The values of both streams. They must slide alike.
    pub fn union(&self, other: &Self) -> Self {
        self.with(other, "union", |left, right, _| left.union(&right))
    }

    pub(super) fn with<U: Data, R: IntoRdd>(
        &self,
        other: &DStream<U>,
        op: &'static str,
        f: impl Fn(Rdd<T>, Rdd<U>, Time) -> R + Send + Sync + 'static,
    ) -> DStream<R::Item> {
        let same = Arc::ptr_eq(&self.graph, &other.graph);
        alike(&mut self.graph.lock(), op, same, [self.node.slide_ms(), other.node.slide_ms()]);
        let (left, right) = (self.node.clone(), other.node.clone());
        self.add(Recipe::new(op, self.node.slide_ms(), vec![left.clone(), right.clone()], move |time_ms, _| {
            let (left, right) = (left.at(time_ms)?, right.at(time_ms)?);
            let rdd = f(left.unwrap_or_else(Rdd::empty), right.unwrap_or_else(Rdd::empty), Time(time_ms)).into_rdd();
            rdd.map(Some).map_err(|error| error.context(op))
        }))
    }
}

impl StreamingContext {
    /// The values of all streams. They must slide alike; none is an error.
    pub fn union<T: Data>(&self, streams: &[DStream<T>]) -> DStream<T> {
        self.of_all("union", streams, |rdds, _| Rdd::union_all(rdds))
    }

    /// Any function of the batches of the same time, in the order of the streams. They must slide alike; none is an error.
    pub fn transform<T: Data, R: IntoRdd>(
        &self,
        streams: &[DStream<T>],
        f: impl Fn(Vec<Rdd<T>>, Time) -> R + Send + Sync + 'static,
    ) -> DStream<R::Item> {
        self.of_all("transform", streams, move |rdds, time| f(rdds.iter().map(Rdd::cache).collect(), time))
    }

    fn of_all<T: Data, R: IntoRdd>(
        &self,
        op: &'static str,
        streams: &[DStream<T>],
        f: impl Fn(Vec<Rdd<T>>, Time) -> R + Send + Sync + 'static,
    ) -> DStream<R::Item> {
        let mut graph = self.graph.lock();
        if streams.is_empty() {
            graph.error(format!("{op}: List of DStreams to {op} is empty"));
        }
        let same = streams.iter().all(|stream| Arc::ptr_eq(&stream.graph, &self.graph));
        alike(&mut graph, op, same, streams.iter().map(|stream| stream.node.slide_ms()));
        let slide_ms = streams.first().map_or(interval_ms(self.batch_duration()), |stream| stream.node.slide_ms());
        let nodes: Vec<_> = streams.iter().map(|stream| stream.node.clone()).collect();
        let parents = nodes.iter().map(|node| node.clone() as Arc<dyn AnyNode>).collect();
        let node = graph.node(Recipe::new(op, slide_ms, parents, move |time_ms, _| {
            let rdds = nodes.iter().map(|node| Ok(node.at(time_ms)?.unwrap_or_else(Rdd::empty))).collect::<anyhow::Result<_>>()?;
            f(rdds, Time(time_ms)).into_rdd().map(Some).map_err(|error| error.context(op))
        }));
        drop(graph);
        DStream { node, graph: self.graph.clone() }
    }
}

/// Spark's conditions for streams that go together.
fn alike(graph: &mut Graph, op: &str, same_context: bool, slides_ms: impl IntoIterator<Item = i64>) {
    if !same_context {
        graph.error(format!("{op}: Some of the DStreams have different contexts"));
    }
    let mut slides_ms = slides_ms.into_iter();
    let first = slides_ms.next();
    if slides_ms.any(|slide_ms| Some(slide_ms) != first) {
        graph.error(format!("{op}: Some of the DStreams have different slide durations"));
    }
}
