//! Windows: everything of the last while, every so often.
//!
//! A window and its slide are multiples of the stream's own slide. It fires when the time since the start is a multiple of
//! the slide; the first windows of a program are not full. Where the slide is `None` it is the stream's own, as in Spark's
//! forms with one duration.
//!
//! Windows without inverse are put together from their batches, which are read again after a restart. A window with inverse
//! goes on from the window before, which is state: it is in the checkpoint.

use std::{sync::Arc, time::Duration};

use super::DStream;
use super::graph::{AnyNode, Recipe};
use super::rdd::{Data, Key, Rdd};
use super::shuffle::{self, Keep, Reduce};
use super::state::{Durable, StateValue};
use crate::batch::clock::interval_ms;

impl<T: Data> DStream<T> {
    /// Both multiples of this stream's slide? Says it as Spark does. Gives both in milliseconds.
    fn check_window(&self, window: Duration, slide: impl Into<Option<Duration>>) -> (i64, i64) {
        let slide = slide.into().unwrap_or(self.slide_duration());
        let parent_slide_ms = self.node.slide_ms();
        for (what, duration) in [("window", window), ("slide", slide)] {
            let ms = interval_ms(duration);
            if duration.is_zero() || ms % parent_slide_ms != 0 {
                self.graph.lock().error(format!(
                    "The {what} duration of windowed DStream ({} ms) must be a multiple of the slide duration of parent DStream (parent slide duration: {parent_slide_ms} ms)",
                    duration.as_millis()
                ));
            }
        }
        (interval_ms(window), interval_ms(slide))
    }

    /// Every `slide`, everything of the last `window`.
    pub fn window(&self, window: Duration, slide: impl Into<Option<Duration>>) -> Self {
        let (window_ms, slide_ms) = self.check_window(window, slide);
        self.node.keep_values();
        let parent = self.node.clone();
        let recipe = Recipe::new(windowed("window", window_ms, slide_ms, ""), slide_ms, vec![parent.clone()], move |time_ms, _| {
            Ok(Some(Rdd::union_all(parent.slice(time_ms - window_ms, time_ms)?)))
        });
        self.add(recipe.window(window_ms))
    }

    /// `reduce` over a window: within the batches first, then over them. Nothing for an empty window.
    pub fn reduce_by_window(
        &self,
        f: impl Fn(T, T) -> T + Clone + Send + Sync + 'static,
        window: Duration,
        slide: impl Into<Option<Duration>>,
    ) -> Self {
        self.reduce(f.clone()).window(window, slide).reduce(f)
    }

    /// `reduce` over a window that adds what comes and takes away what leaves; `inverse(f(a, b), b) == a`. Nothing before the
    /// first value; from then on always something, also for an empty window.
    pub fn reduce_by_window_with_inverse(
        &self,
        f: impl Fn(T, T) -> T + Send + Sync + 'static,
        inverse: impl Fn(T, T) -> T + Send + Sync + 'static,
        window: Duration,
        slide: impl Into<Option<Duration>>,
    ) -> Self
    where
        T: StateValue,
    {
        self.map(|value| ((), value)).reduce_by_key_and_window_with_inverse(f, inverse, window, slide, None).map(|((), value)| value)
    }

    /// How many values the window holds. Nothing before the first value, 0 when all have left.
    pub fn count_by_window(&self, window: Duration, slide: impl Into<Option<Duration>>) -> DStream<u64> {
        self.map(|_| 1_u64).reduce_by_window_with_inverse(|a, b| a + b, |a, b| a - b, window, slide)
    }

    /// Each value of the window with how often it is there.
    pub fn count_by_value_and_window(&self, window: Duration, slide: impl Into<Option<Duration>>) -> DStream<(T, u64)>
    where
        T: Key + StateValue,
    {
        let there: Keep<T, u64> = Arc::new(|(_, count)| *count > 0);
        self.map(|value| (value, 1)).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, window, slide, Some(there))
    }
}

impl<K: Key, V: Data> DStream<(K, V)> {
    /// All values of a key in the window, batch after batch.
    pub fn group_by_key_and_window(&self, window: Duration, slide: impl Into<Option<Duration>>) -> DStream<(K, Vec<V>)> {
        let append = |mut group: Vec<V>, mut more: Vec<V>| {
            group.append(&mut more);
            group
        };
        self.group_by_key().window(window, slide).reduce_by_key(append)
    }

    /// One pair per key and window: within the batches first, then over them.
    pub fn reduce_by_key_and_window(
        &self,
        f: impl Fn(V, V) -> V + Clone + Send + Sync + 'static,
        window: Duration,
        slide: impl Into<Option<Duration>>,
    ) -> Self {
        self.reduce_by_key(f.clone()).window(window, slide).reduce_by_key(f)
    }

    /// One pair per key and window, from the window before: what came is added by `f`, what left is taken away by
    /// `inverse` (`inverse(f(a, b), b) == a`). Keys whose values have all left stay, with what `inverse` makes of them,
    /// until `keep` refuses them. Needs a checkpoint.
    pub fn reduce_by_key_and_window_with_inverse(
        &self,
        f: impl Fn(V, V) -> V + Send + Sync + 'static,
        inverse: impl Fn(V, V) -> V + Send + Sync + 'static,
        window: Duration,
        slide: impl Into<Option<Duration>>,
        keep: Option<Keep<K, V>>,
    ) -> Self
    where
        K: StateValue,
        V: StateValue,
    {
        let op = "reduceByKeyAndWindow";
        let (window_ms, slide_ms) = self.check_window(window, slide);
        let f: Reduce<V> = Arc::new(f);
        let inverse: Reduce<V> = Arc::new(inverse);
        let g = f.clone();
        let reduced = self.reduce_by_key(move |a, b| g(a, b));
        reduced.node.keep_values();
        let parent = reduced.node.clone();
        let partitions = shuffle::partitions();
        let uid = self.graph.lock().uid(op);
        let op = windowed(op, window_ms, slide_ms, ", inverse");
        let recipe = Recipe::new(op, slide_ms, vec![reduced.node], move |time_ms, before| {
            let over = |after_ms: i64, until_ms: i64| {
                let f = f.clone();
                let batches = Rdd::union_all(parent.slice(after_ms, until_ms)?);
                anyhow::Ok(batches.reduce_by_key_with_partitions(move |a, b| f(a, b), partitions))
            };
            let (from_ms, before_ms) = (time_ms - window_ms, time_ms - slide_ms);
            let windows = match before {
                // A slide may be longer than its window: what is in neither concerns neither.
                Some(before) => [before, over(from_ms - slide_ms, from_ms.min(before_ms))?, over(before_ms.max(from_ms), time_ms)?],
                None => [Rdd::empty(), Rdd::empty(), over(from_ms, time_ms)?],
            };
            Ok(Some(shuffle::slide(partitions, windows, f.clone(), inverse.clone(), keep.clone())))
        });
        // What leaves the window was in the window before.
        self.add(recipe.window(window_ms + slide_ms).durable(Durable::pairs(uid, partitions)))
    }
}

/// As it is in plans and fingerprints.
fn windowed(op: &str, window_ms: i64, slide_ms: i64, more: &str) -> String {
    let duration = |ms: i64| humantime::format_duration(Duration::from_millis(ms.unsigned_abs()));
    format!("{op}({}, {}{more})", duration(window_ms), duration(slide_ms))
}
