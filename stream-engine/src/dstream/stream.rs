//! `DStream`: a value per record, a batch per interval, and what can be done with them one by one.
//!
//! Semantics are Spark Streaming's: operations without a window see one batch, windows and slides are multiples of their
//! parent's slide, output operations run in the order in which they were declared, and what no output needs never runs.
//!
//! Every method that makes a stream or an output panics once the context was started, as Spark throws: what is declared
//! then would never run.

use std::{fmt::Debug, io::Write as _, panic::Location, sync::Arc, time::Duration, vec};

use parking_lot::Mutex;

use super::graph::{AnyNode, Graph, Job, Node, Output, Recipe};
use super::rdd::{Data, IntoRdd, Key, Rdd};
use super::shuffle;
use super::time::Time;
use crate::batch::clock::interval_ms;

/// A stream of values, in batches. Cheap to clone.
pub struct DStream<T> {
    pub(super) node: Arc<Node<T>>,
    pub(super) graph: Arc<Mutex<Graph>>,
}

impl<T> Clone for DStream<T> {
    fn clone(&self) -> Self {
        Self { node: self.node.clone(), graph: self.graph.clone() }
    }
}

impl<T: Data> DStream<T> {
    /// Time between two batches of this stream.
    pub fn slide_duration(&self) -> Duration {
        Duration::from_millis(self.node.slide_ms().unsigned_abs())
    }

    /// A stream with one batch for each of this one's.
    pub(super) fn derive<R: IntoRdd>(&self, op: &'static str, f: impl Fn(Rdd<T>, Time) -> R + Send + Sync + 'static) -> DStream<R::Item> {
        let parent = self.node.clone();
        self.add(Recipe::new(op, self.node.slide_ms(), vec![self.node.clone()], move |time_ms, _| {
            let Some(rdd) = parent.at(time_ms)? else { return Ok(None) };
            f(rdd, Time(time_ms)).into_rdd().map(Some).map_err(|error| error.context(op))
        }))
    }

    pub(super) fn add<U: Data>(&self, recipe: Recipe<U>) -> DStream<U> {
        DStream { node: self.graph.lock().node(recipe), graph: self.graph.clone() }
    }

    // === Within a batch ===

    pub fn map<U: Data>(&self, f: impl Fn(T) -> U + Send + Sync + 'static) -> DStream<U> {
        let f = Arc::new(f);
        self.derive("map", move |rdd, _| {
            let f = f.clone();
            rdd.map(move |value| f(value))
        })
    }

    pub fn flat_map<U: Data, I: IntoIterator<Item = U>>(&self, f: impl Fn(T) -> I + Send + Sync + 'static) -> DStream<U> {
        let f = Arc::new(f);
        self.derive("flatMap", move |rdd, _| {
            let f = f.clone();
            rdd.flat_map(move |value| f(value))
        })
    }

    pub fn filter(&self, keep: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        let keep = Arc::new(keep);
        self.derive("filter", move |rdd, _| {
            let keep = keep.clone();
            rdd.filter(move |value| keep(value))
        })
    }

    /// Gives every partition of a batch as a whole, also an empty one.
    pub fn map_partitions<U: Data, I: IntoIterator<Item = U>>(
        &self,
        f: impl Fn(vec::IntoIter<T>) -> I + Send + Sync + 'static,
    ) -> DStream<U> {
        let f = Arc::new(f);
        self.derive("mapPartitions", move |rdd, _| {
            let f = f.clone();
            rdd.map_partitions(move |values| f(values))
        })
    }

    /// One list per partition.
    pub fn glom(&self) -> DStream<Vec<T>> {
        self.derive("glom", |rdd, _| rdd.glom())
    }

    /// Batches in so many partitions of about the same size. At least 1.
    pub fn repartition(&self, num_partitions: usize) -> Self {
        if num_partitions == 0 {
            self.graph.lock().error("repartition: the number of partitions (0) must be positive".into());
        }
        self.derive("repartition", move |rdd, _| rdd.repartition(num_partitions))
    }

    /// One value per batch: how many there were; 0 for an empty batch.
    pub fn count(&self) -> DStream<u64> {
        let ones = self.derive("count", |rdd, _| rdd.map(|_| ((), 1_u64)).union(&Rdd::from_partitions(vec![vec![((), 0)]])));
        ones.reduce_by_key(|a, b| a + b).map(|((), count)| count)
    }

    /// One value per batch; none for an empty batch.
    pub fn reduce(&self, f: impl Fn(T, T) -> T + Send + Sync + 'static) -> Self {
        self.map(|value| ((), value)).reduce_by_key(f).map(|((), value)| value)
    }

    /// Each value of a batch with how often it is there.
    pub fn count_by_value(&self) -> DStream<(T, u64)>
    where
        T: Key,
    {
        self.count_by_value_with_partitions(shuffle::partitions())
    }

    pub fn count_by_value_with_partitions(&self, num_partitions: usize) -> DStream<(T, u64)>
    where
        T: Key,
    {
        self.map(|value| (value, 1)).reduce_by_key_with_partitions(|a, b| a + b, num_partitions)
    }

    // === How long values are there ===

    /// Values stay in memory as long as their batch is remembered, for streams whose batches are computed from more than once.
    /// Streams that two others use, and those under windows, are kept without being told.
    pub fn cache(&self) -> Self {
        self.graph.lock().expect_open("cache");
        self.node.keep_values();
        self.clone()
    }

    /// The same as [`Self::cache`], whatever level Spark would be told.
    pub fn persist(&self) -> Self {
        self.cache()
    }

    /// Batches stay at least this long, so that [`Self::slice`] has them.
    pub fn remember(&self, duration: Duration) -> Self {
        self.graph.lock().expect_open("remember");
        self.node.keep_values();
        self.node.remember(interval_ms(duration));
        self.clone()
    }

    /// Names the stream's state in checkpoints, so that a changed program finds it again. Without a name the n-th stream of
    /// its kind goes on with the state of the n-th (`updateStateByKey-0`). For streams made by `update_state_by_key`,
    /// `map_with_state` and `reduce_by_key_and_window_with_inverse`.
    pub fn uid(&self, name: &str) -> Self {
        let mut graph = self.graph.lock();
        graph.expect_open("uid");
        if name.is_empty() || name.contains('/') {
            graph.error(format!("uid({name}): a name is not empty and has no `/`"));
        } else if !self.node.name_state(name) {
            let known = self.node.state_name().map_or("it keeps no state".into(), |known| format!("it is `{known}` already"));
            graph.error(format!("uid({name}): {}: {known}", self.node.op()));
        }
        drop(graph);
        self.clone()
    }

    /// How often Spark would write this stream's data away; a multiple of its slide. State is part of every batch's commit
    /// here, so this is checked and has no effect, but for [`super::MapWithStateDStream::checkpoint`].
    pub fn checkpoint(&self, interval: Duration) -> Self {
        self.check_checkpoint(interval);
        self.clone()
    }

    pub(super) fn check_checkpoint(&self, interval: Duration) {
        let (ms, slide_ms) = (interval_ms(interval), self.node.slide_ms());
        let mut graph = self.graph.lock();
        graph.expect_open("checkpoint");
        if interval.is_zero() || ms % slide_ms != 0 {
            graph.error(format!(
                "The checkpoint interval for {} has been set to {} ms which not a multiple of its slide time ({slide_ms} ms). Please set it to a multiple of {slide_ms} ms.",
                self.node.op(),
                interval.as_millis()
            ));
        }
    }

    /// The batches from `from` to `until`, both included, that have come; times between two batches count as the batch
    /// before. For use while the program runs. The error says that the context was not started, or that a batch is not
    /// remembered any more.
    pub fn slice(&self, from: Time, until: Time) -> anyhow::Result<Vec<Rdd<T>>> {
        let progress = self.node.progress();
        let Some(zero_ms) = progress.zero.get() else {
            anyhow::bail!("slice: {} has not been initialized; it has batches when the context was started", self.node.op());
        };
        let newest_ms = progress.newest.load(std::sync::atomic::Ordering::Relaxed);
        let floor = |time: Time| zero_ms + (time.0 - zero_ms).div_euclid(self.node.slide_ms()) * self.node.slide_ms();
        let (from_ms, until_ms) = (floor(from).max(zero_ms + self.node.slide_ms()), floor(until).min(newest_ms));
        let forgotten_ms = newest_ms - self.node.remembered_ms();
        anyhow::ensure!(
            from_ms > forgotten_ms || from_ms > until_ms,
            "slice: {} does not remember its batch of {}; call remember on it with a longer duration",
            self.node.op(),
            Time(from_ms)
        );
        self.node.slice(from_ms - 1, until_ms)
    }

    // === Outputs ===

    /// Runs for every batch of this stream; an error runs the batch again.
    #[track_caller]
    pub fn foreach_rdd<F, Fut>(&self, f: F)
    where
        F: Fn(Rdd<T>, Time) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.output("foreachRDD", f);
    }

    /// Prints the first ten values of every batch to standard output.
    #[track_caller]
    pub fn print(&self)
    where
        T: Debug,
    {
        self.print_first(10);
    }

    #[track_caller]
    pub fn print_first(&self, n: usize)
    where
        T: Debug,
    {
        self.output("print", move |rdd, time| async move {
            let mut first = rdd.take(n + 1).await?;
            let more = first.len() > n;
            first.truncate(n);
            let line = "-------------------------------------------";
            let mut text = format!("{line}\nTime: {time}\n{line}\n");
            for value in first {
                text.push_str(&format!("{value:?}\n"));
            }
            text.push_str(if more { "...\n\n" } else { "\n" });
            // Standard output is what this operation is for. A closed pipe must not stop the job.
            if let Err(error) = std::io::stdout().lock().write_all(text.as_bytes()) {
                tracing::debug!(%error, "cannot print");
            }
            Ok(())
        });
    }

    #[track_caller]
    pub(super) fn output<F, Fut>(&self, op: &str, f: F)
    where
        F: Fn(Rdd<T>, Time) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let node = self.node.clone();
        let at = move |time: Time| {
            let Some(rdd) = node.at(time.0)? else { return Ok(None) };
            // The function may use its argument more than once.
            let rdd = rdd.cache();
            let data = rdd.data.clone();
            Ok(Some(Job { work: Box::pin(f(rdd, time)), rows: Box::new(move || data.rows_kept()) }))
        };
        let mut graph = self.graph.lock();
        graph.expect_open(op);
        self.node.consumed();
        let name = format!("{op}-{}", graph.outputs.len());
        let place = Location::caller();
        let description = format!("{op} at {}:{}", place.file(), place.line());
        graph.outputs.push(Arc::new(Output { name, description, node: self.node.clone(), exactly_once: false, at: Box::new(at) }));
    }
}
