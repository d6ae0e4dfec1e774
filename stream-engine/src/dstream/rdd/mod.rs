//! One batch of a stream: partitions of values, computed when an action asks for them.
//!
//! Narrow operations (`map`, `filter`, `flat_map`) are fused: a record goes through all of them without being stored.
//! Actions run the partitions in parallel. What is used twice is kept ([`Rdd::cache`]); the records of a batch are read
//! from Kafka once.

mod actions;
mod kinds;
mod order;
mod pair;

use std::{collections::VecDeque, hash::Hash, num::NonZero, sync::Arc, thread::available_parallelism, vec};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::OnceCell,
    task::{JoinHandle, spawn_blocking},
};

use self::kinds::{Cached, Coalesced, Narrow, Union, Values, Whole};
pub(super) use self::kinds::{Computed, Partitions, Within};
pub use self::pair::{CoGroup, FullOuter};
use super::shuffle;
use crate::batch::OffsetRange;
use crate::source::Mirror;

/// What can be in a stream.
pub trait Data: Clone + Send + Sync + 'static {}
impl<T: Clone + Send + Sync + 'static> Data for T {}

/// What can be a key.
pub trait Key: Data + Hash + Eq {}
impl<K: Data + Hash + Eq> Key for K {}

/// What a function from batch to batch may give: an [`Rdd`], or an error, which fails the batch.
pub trait IntoRdd {
    type Item: Data;
    fn into_rdd(self) -> anyhow::Result<Rdd<Self::Item>>;
}

impl<T: Data> IntoRdd for Rdd<T> {
    type Item = T;
    fn into_rdd(self) -> anyhow::Result<Self> {
        Ok(self)
    }
}

impl<T: Data> IntoRdd for anyhow::Result<Rdd<T>> {
    type Item = T;
    fn into_rdd(self) -> Self {
        self
    }
}

/// The offsets that an [`Rdd`] was read from.
pub(super) struct Origin {
    pub(super) ranges: Vec<OffsetRange>,
    pub(super) mirror: Option<Mirror>,
}

/// Partitions of values of one batch. Cheap to clone.
pub struct Rdd<T> {
    pub(super) data: Arc<dyn Partitions<T>>,
    pub(super) origin: Option<Arc<Origin>>,
}

impl<T> Clone for Rdd<T> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), origin: self.origin.clone() }
    }
}

impl<T: Data> Rdd<T> {
    pub(super) fn over(data: impl Partitions<T> + 'static) -> Self {
        Self { data: Arc::new(data), origin: None }
    }

    /// No partitions.
    pub fn empty() -> Self {
        Self::from_partitions(Vec::new())
    }

    pub fn from_partitions(partitions: Vec<Vec<T>>) -> Self {
        Self::over(Values(partitions.into_iter().map(Arc::new).collect()))
    }

    /// Values of the program's own, for example to join a stream with; in as many partitions as keyed operations have.
    pub fn parallelize(values: impl IntoIterator<Item = T>) -> Self {
        let mut values: Vec<T> = values.into_iter().collect();
        let size = values.len().div_ceil(shuffle::partitions()).max(1);
        let mut partitions = Vec::new();
        while !values.is_empty() {
            let rest = values.split_off(size.min(values.len()));
            partitions.push(std::mem::replace(&mut values, rest));
        }
        Self::from_partitions(partitions)
    }

    pub fn num_partitions(&self) -> usize {
        self.data.count()
    }

    /// The offset ranges behind this batch, one per partition (Spark's `HasOffsetRanges`). Empty after a window, union
    /// or shuffle.
    pub fn offset_ranges(&self) -> &[OffsetRange] {
        self.origin.as_ref().map_or(&[], |origin| &origin.ranges)
    }

    /// Commits this batch's offsets to the consumer group, where `offsets.store` says (default: in Kafka), without waiting (Spark's
    /// `commitAsync`); a batch that ends well commits them anyhow. Without a group in Kafka, or without offset ranges, there is nothing to do.
    pub fn commit_async(&self) {
        if let Some(origin) = &self.origin
            && let Some(mirror) = &origin.mirror
        {
            mirror.commit(origin.ranges.iter().map(|range| (range.topic_partition(), range.until)));
        }
    }

    fn narrow<U: Data>(&self, f: impl Fn(T, &mut (dyn FnMut(U) + Send)) + Send + Sync + 'static) -> Rdd<U> {
        Rdd { data: Arc::new(Narrow { parent: self.data.clone(), f }), origin: self.origin.clone() }
    }

    pub fn map<U: Data>(&self, f: impl Fn(T) -> U + Send + Sync + 'static) -> Rdd<U> {
        self.narrow(move |value, each| each(f(value)))
    }

    pub fn filter(&self, keep: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.narrow(move |value, each| {
            if keep(&value) {
                each(value);
            }
        })
    }

    pub fn flat_map<U: Data, I: IntoIterator<Item = U>>(&self, f: impl Fn(T) -> I + Send + Sync + 'static) -> Rdd<U> {
        self.narrow(move |value, each| f(value).into_iter().for_each(each))
    }

    /// Gives every partition as a whole, also an empty one.
    pub fn map_partitions<U: Data, I: IntoIterator<Item = U>>(&self, f: impl Fn(vec::IntoIter<T>) -> I + Send + Sync + 'static) -> Rdd<U> {
        self.map_partitions_with_index(move |_, values| f(values))
    }

    /// As [`Self::map_partitions`], with the partition's number.
    pub fn map_partitions_with_index<U: Data, I: IntoIterator<Item = U>>(
        &self,
        f: impl Fn(usize, vec::IntoIter<T>) -> I + Send + Sync + 'static,
    ) -> Rdd<U> {
        Rdd { data: Arc::new(Whole { parent: self.data.clone(), f }), origin: self.origin.clone() }
    }

    /// One list per partition.
    pub fn glom(&self) -> Rdd<Vec<T>> {
        self.map_partitions(|values| [values.collect::<Vec<T>>()])
    }

    /// The partitions of both, one after the other.
    pub fn union(&self, other: &Self) -> Self {
        Self::union_all(vec![self.clone(), other.clone()])
    }

    pub(super) fn union_all(rdds: Vec<Self>) -> Self {
        Self::over(Union(rdds.into_iter().map(|rdd| rdd.data).collect()))
    }

    /// Each value once.
    pub fn distinct(&self) -> Self
    where
        T: Key,
    {
        self.map(|value| (value, ())).reduce_by_key(|(), ()| ()).keys()
    }

    /// Fewer partitions, without moving values between the threads: neighbours become one. Does nothing where there are
    /// no more than `num_partitions`. At least 1.
    pub fn coalesce(&self, num_partitions: usize) -> Self {
        assert!(num_partitions > 0, "coalesce: the number of partitions (0) must be positive");
        if num_partitions >= self.num_partitions() {
            return self.clone();
        }
        Self::over(Coalesced { parent: self.data.clone(), partitions: num_partitions })
    }

    /// Partitions of about the same size. At least 1.
    pub fn repartition(&self, num_partitions: usize) -> Self {
        assert!(num_partitions > 0, "repartition: the number of partitions (0) must be positive");
        shuffle::deal(self, num_partitions)
    }

    /// Values stay in memory after they are first computed.
    pub fn cache(&self) -> Self {
        if self.data.kept() {
            return self.clone();
        }
        let cells = (0..self.data.count()).map(|_| OnceCell::new()).collect();
        Self { data: Arc::new(Cached { parent: self.data.clone(), cells }), origin: self.origin.clone() }
    }

    /// The same as [`Self::cache`]: values are kept in memory, whatever level Spark would be told.
    pub fn persist(&self) -> Self {
        self.cache()
    }
}

pub(super) fn cores() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}

/// Results in the order of the work. After an error the work that has begun still ends, unseen.
pub(super) async fn on_all_cores<R: Send + 'static>(work: Vec<BoxFuture<'static, anyhow::Result<R>>>) -> anyhow::Result<Vec<R>> {
    let handle = Handle::current();
    let mut results = Vec::with_capacity(work.len());
    let mut running: VecDeque<JoinHandle<anyhow::Result<R>>> = VecDeque::new();
    let mut work = work.into_iter();
    loop {
        while running.len() < cores()
            && let Some(next) = work.next()
        {
            let handle = handle.clone();
            running.push_back(spawn_blocking(move || handle.block_on(next)));
        }
        let Some(first) = running.pop_front() else { return Ok(results) };
        results.push(first.await.unwrap_or_else(|panic| Err(anyhow::anyhow!("a partition's work ended early: {panic}")))?);
    }
}
