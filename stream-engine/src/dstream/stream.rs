//! `DStream`: a value per record, a batch per interval, and what can be done with them.
//!
//! Semantics are Spark Streaming's: operations without a window see one batch, windows and slides are multiples of their
//! parent's slide, output operations run in the order in which they were declared, and what no output needs never runs.

use std::{fmt::Debug, io::Write as _, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::graph::{AnyNode, Graph, Job, Node, Output, Recipe, Time};
use super::rdd::{Data, Key, Rdd};
use super::shuffle::{self, Keep, Reduce};
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

    // === Within a batch ===

    /// A stream with one batch for each of this one's.
    fn derive<U: Data>(&self, op: &str, f: impl Fn(Rdd<T>, Time) -> Rdd<U> + Send + Sync + 'static) -> DStream<U> {
        self.node.consumed();
        let parent = self.node.clone();
        self.add(Recipe {
            op: op.into(),
            slide_ms: self.node.slide_ms(),
            window_ms: 0,
            chained: false,
            parents: vec![self.node.clone()],
            compute: Box::new(move |time_ms, _| parent.at(time_ms).map(|rdd| f(rdd, Time(time_ms)))),
        })
    }

    fn add<U: Data>(&self, recipe: Recipe<U>) -> DStream<U> {
        DStream { node: self.graph.lock().node(recipe), graph: self.graph.clone() }
    }

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

    /// Any function from batch to batch.
    pub fn transform<U: Data>(&self, f: impl Fn(Rdd<T>, Time) -> Rdd<U> + Send + Sync + 'static) -> DStream<U> {
        // The function may use its argument more than once.
        self.derive("transform", move |rdd, time| f(rdd.cache(), time))
    }

    /// The values of both streams. They must slide alike.
    pub fn union(&self, other: &Self) -> Self {
        if self.node.slide_ms() != other.node.slide_ms() {
            self.graph.lock().error("union: all the DStreams must have the same slide time".into());
        }
        self.node.consumed();
        other.node.consumed();
        let (left, right) = (self.node.clone(), other.node.clone());
        self.add(Recipe {
            op: "union".into(),
            slide_ms: self.node.slide_ms(),
            window_ms: 0,
            chained: false,
            parents: vec![self.node.clone(), other.node.clone()],
            compute: Box::new(move |time_ms, _| Some(Rdd::union_all(left.at(time_ms).into_iter().chain(right.at(time_ms)).collect()))),
        })
    }

    /// One value per batch: how many there were; 0 for an empty batch.
    pub fn count(&self) -> DStream<u64> {
        let ones = self.derive("count", |rdd, _| Rdd::union_all(vec![rdd.map(|_| ((), 1_u64)), Rdd::from_partitions(vec![vec![((), 0)]])]));
        ones.reduce_by_key(|a, b| a + b).map(|((), count)| count)
    }

    /// One value per batch; none for an empty batch.
    pub fn reduce(&self, f: impl Fn(T, T) -> T + Send + Sync + 'static) -> Self {
        self.map(|value| ((), value)).reduce_by_key(f).map(|((), value)| value)
    }

    pub fn count_by_value(&self) -> DStream<(T, u64)>
    where
        T: Key,
    {
        self.map(|value| (value, 1)).reduce_by_key(|a, b| a + b)
    }

    // === Windows ===

    /// Both multiples of `parent`'s slide? Says it as Spark does.
    fn check_window(&self, window: Duration, slide: Duration, parent_slide_ms: i64) {
        let mut errors = Vec::new();
        for (what, duration) in [("window", window), ("slide", slide)] {
            let ms = interval_ms(duration);
            if duration.is_zero() || ms % parent_slide_ms != 0 {
                errors.push(format!(
                    "The {what} duration of windowed DStream ({} ms) must be a multiple of the slide duration of parent DStream (parent slide duration: {parent_slide_ms} ms)",
                    duration.as_millis()
                ));
            }
        }
        let mut graph = self.graph.lock();
        errors.into_iter().for_each(|error| graph.error(error));
    }

    /// Every `slide`, everything of the last `window`.
    pub fn window(&self, window: Duration, slide: Duration) -> Self {
        self.check_window(window, slide, self.node.slide_ms());
        self.node.consumed();
        self.node.keep_values();
        let (parent, window_ms) = (self.node.clone(), interval_ms(window));
        self.add(Recipe {
            op: format!("window({}, {})", humantime::format_duration(window), humantime::format_duration(slide)),
            slide_ms: interval_ms(slide),
            window_ms,
            chained: false,
            parents: vec![self.node.clone()],
            compute: Box::new(move |time_ms, _| Some(Rdd::union_all(parent.slice(time_ms - window_ms, time_ms)))),
        })
    }

    /// `reduce` over a window: within the batches first, then over them.
    pub fn reduce_by_window(&self, f: impl Fn(T, T) -> T + Clone + Send + Sync + 'static, window: Duration, slide: Duration) -> Self {
        self.reduce(f.clone()).window(window, slide).reduce(f)
    }

    /// `reduce` over a window that adds what comes and takes away what leaves; `inverse(f(a, b), b) == a`.
    pub fn reduce_by_window_with_inverse(
        &self,
        f: impl Fn(T, T) -> T + Send + Sync + 'static,
        inverse: impl Fn(T, T) -> T + Send + Sync + 'static,
        window: Duration,
        slide: Duration,
    ) -> Self {
        self.map(|value| ((), value)).reduce_by_key_and_window_with_inverse(f, inverse, window, slide, None).map(|((), value)| value)
    }

    /// How many values the window holds. Nothing before the first value, 0 when all have left.
    pub fn count_by_window(&self, window: Duration, slide: Duration) -> DStream<u64> {
        self.map(|_| 1_u64).reduce_by_window_with_inverse(|a, b| a + b, |a, b| a - b, window, slide)
    }

    // === Outputs ===

    /// Runs for every batch of this stream; an error runs the batch again.
    pub fn foreach_rdd<F, Fut>(&self, f: F)
    where
        F: Fn(Rdd<T>, Time) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.output("foreachRDD", f);
    }

    /// Prints the first ten values of every batch to standard output.
    pub fn print(&self)
    where
        T: Debug,
    {
        self.print_first(10);
    }

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

    fn output<F, Fut>(&self, op: &str, f: F)
    where
        F: Fn(Rdd<T>, Time) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.node.consumed();
        let node = self.node.clone();
        let at = move |time: Time| {
            // The function may use its argument more than once.
            let rdd = node.at(time.0)?.cache();
            let data = rdd.data.clone();
            Some(Job { work: Box::pin(f(rdd, time)), rows: Box::new(move || data.rows_kept()) })
        };
        let mut graph = self.graph.lock();
        let name = format!("{op}-{}", graph.outputs.len());
        if graph.started {
            graph.error(format!("{name}: adding new output operations after starting a context is not supported"));
        }
        graph.outputs.push(Output { name, node: self.node.clone(), at: Box::new(at) });
    }
}

/// Streams of pairs.
impl<K: Key, V: Data> DStream<(K, V)> {
    pub fn map_values<W: Data>(&self, f: impl Fn(V) -> W + Send + Sync + 'static) -> DStream<(K, W)> {
        self.map(move |(key, value)| (key, f(value)))
    }

    /// One pair per key and batch.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> Self {
        let f = Arc::new(f);
        self.derive("reduceByKey", move |rdd, _| {
            let f = f.clone();
            rdd.reduce_by_key(move |a, b| f(a, b))
        })
    }

    pub fn group_by_key(&self) -> DStream<(K, Vec<V>)> {
        self.derive("groupByKey", |rdd, _| rdd.group_by_key())
    }

    /// One pair per key and window: within the batches first, then over them.
    pub fn reduce_by_key_and_window(
        &self,
        f: impl Fn(V, V) -> V + Clone + Send + Sync + 'static,
        window: Duration,
        slide: Duration,
    ) -> Self {
        self.reduce_by_key(f.clone()).window(window, slide).reduce_by_key(f)
    }

    /// One pair per key and window, from the window before: what came is added by `f`, what left is taken away by
    /// `inverse` (`inverse(f(a, b), b) == a`). Keys whose values have all left stay, with what `inverse` makes of them,
    /// until `keep` refuses them. After a restart the first window is computed from its batches, so keys without values
    /// in it are gone.
    pub fn reduce_by_key_and_window_with_inverse(
        &self,
        f: impl Fn(V, V) -> V + Send + Sync + 'static,
        inverse: impl Fn(V, V) -> V + Send + Sync + 'static,
        window: Duration,
        slide: Duration,
        keep: Option<Keep<K, V>>,
    ) -> Self {
        let parent_slide_ms = self.node.slide_ms();
        self.check_window(window, slide, parent_slide_ms);
        let f: Reduce<V> = Arc::new(f);
        let inverse: Reduce<V> = Arc::new(inverse);
        let g = f.clone();
        let reduced = self.reduce_by_key(move |a, b| g(a, b));
        reduced.node.consumed();
        reduced.node.keep_values();
        let (window_ms, slide_ms) = (interval_ms(window), interval_ms(slide));
        let parent = reduced.node.clone();
        let node = self.add(Recipe {
            op: format!("reduceByKeyAndWindow({}, {}, inverse)", humantime::format_duration(window), humantime::format_duration(slide)),
            slide_ms,
            // What leaves the window was in the window before.
            window_ms: window_ms + slide_ms,
            chained: true,
            parents: vec![reduced.node],
            compute: Box::new(move |time_ms, generated| {
                let over = |after_ms, until_ms| {
                    let f = f.clone();
                    Rdd::union_all(parent.slice(after_ms, until_ms)).reduce_by_key(move |a, b| f(a, b))
                };
                let (from_ms, before_ms) = (time_ms - window_ms, time_ms - slide_ms);
                match generated.get(&before_ms).cloned().flatten() {
                    // Where a slide jumps over its window nothing of the window before remains.
                    Some(previous) if slide_ms < window_ms => {
                        let (left, came) = (over(from_ms - slide_ms, from_ms), over(before_ms, time_ms));
                        Some(shuffle::slide(previous, left, came, f.clone(), inverse.clone(), keep.clone()))
                    }
                    _ => {
                        let all = over(from_ms, time_ms);
                        Some(match keep.clone() {
                            Some(keep) => shuffle::slide(Rdd::empty(), Rdd::empty(), all, f.clone(), inverse.clone(), Some(keep)),
                            None => all,
                        })
                    }
                }
            }),
        });
        // The window before is asked for at the next one.
        node.node.remember(slide_ms + parent_slide_ms);
        node
    }
}
