//! One batch of a stream: partitions of values, computed when an action asks for them.
//!
//! Narrow operations (`map`, `filter`, `flat_map`) are fused: a record goes through all of them without being stored.
//! Actions run the partitions in parallel. What is used twice is kept ([`Rdd::cache`]); the records of a batch are read
//! from Kafka once.

use std::{collections::VecDeque, hash::Hash, num::NonZero, sync::Arc, thread::available_parallelism};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::OnceCell,
    task::{JoinHandle, spawn_blocking},
};

use super::shuffle;
use crate::batch::OffsetRange;
use crate::source::Mirror;

/// What can be in a stream.
pub trait Data: Clone + Send + Sync + 'static {}
impl<T: Clone + Send + Sync + 'static> Data for T {}

/// What can be a key.
pub trait Key: Data + Hash + Eq {}
impl<K: Data + Hash + Eq> Key for K {}

/// Partitions of values. Evaluated at most once unless it is cached or holds its values.
pub(super) trait Partitions<T>: Send + Sync {
    fn count(&self) -> usize;
    /// Gives every value of a partition, in order.
    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>>;
    /// Can be evaluated any number of times at no cost.
    fn kept(&self) -> bool {
        false
    }
    /// Values that are in memory.
    fn rows_kept(&self) -> u64 {
        0
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

    pub fn num_partitions(&self) -> usize {
        self.data.count()
    }

    /// The offset ranges behind this batch, one per partition (Spark's `HasOffsetRanges`). Empty after a window, union
    /// or shuffle.
    pub fn offset_ranges(&self) -> &[OffsetRange] {
        self.origin.as_ref().map_or(&[], |origin| &origin.ranges)
    }

    /// Commits this batch's offsets to the consumer group, without waiting (Spark's `commitAsync`). Without a group, or
    /// without offset ranges, there is nothing to do.
    pub fn commit_async(&self) {
        if let Some(origin) = &self.origin
            && let Some(mirror) = &origin.mirror
        {
            mirror.commit(origin.ranges.iter().map(|range| (range.topic_partition(), range.until)));
        }
    }

    // === Transformations ===

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

    /// The partitions of both, one after the other.
    pub fn union(&self, other: &Self) -> Self {
        Self::union_all(vec![self.clone(), other.clone()])
    }

    pub(super) fn union_all(rdds: Vec<Self>) -> Self {
        Self::over(Union(rdds.into_iter().map(|rdd| rdd.data).collect()))
    }

    /// Values stay in memory after they are first computed.
    pub fn cache(&self) -> Self {
        if self.data.kept() {
            return self.clone();
        }
        let cells = (0..self.data.count()).map(|_| OnceCell::new()).collect();
        Self { data: Arc::new(Cached { parent: self.data.clone(), cells }), origin: self.origin.clone() }
    }

    // === Actions ===

    /// All values, partition after partition.
    pub async fn collect(&self) -> anyhow::Result<Vec<T>> {
        Ok(self.collect_partitions().await?.into_iter().flatten().collect())
    }

    /// All values by partition (Spark's `glom`).
    pub async fn collect_partitions(&self) -> anyhow::Result<Vec<Vec<T>>> {
        self.run(|partition, data| {
            async move {
                let mut values = Vec::new();
                data.for_each(partition, &mut |value| values.push(value)).await?;
                Ok(values)
            }
            .boxed()
        })
        .await
    }

    /// The first `n` values. Computes partitions one after the other until it has them.
    pub async fn take(&self, n: usize) -> anyhow::Result<Vec<T>> {
        let mut values = Vec::new();
        for partition in 0..self.data.count() {
            if values.len() >= n {
                break;
            }
            let take = |value| {
                if values.len() < n {
                    values.push(value);
                }
            };
            self.data.for_each(partition, &mut { take }).await?;
        }
        Ok(values)
    }

    pub async fn count(&self) -> anyhow::Result<u64> {
        let counts = self.run(|partition, data| {
            async move {
                let mut count = 0_u64;
                data.for_each(partition, &mut |_| count += 1).await?;
                Ok(count)
            }
            .boxed()
        });
        Ok(counts.await?.into_iter().sum())
    }

    pub async fn is_empty(&self) -> anyhow::Result<bool> {
        Ok(self.take(1).await?.is_empty())
    }

    /// `None` when there are no values.
    pub async fn reduce(&self, f: impl Fn(T, T) -> T + Send + Sync + 'static) -> anyhow::Result<Option<T>> {
        let f = Arc::new(f);
        let g = f.clone();
        let partials = self.run(move |partition, data| {
            let f = g.clone();
            async move {
                let mut sum: Option<T> = None;
                data.for_each(partition, &mut |value| {
                    sum = Some(match sum.take() {
                        Some(so_far) => f(so_far, value),
                        None => value,
                    });
                })
                .await?;
                Ok(sum)
            }
            .boxed()
        });
        Ok(partials.await?.into_iter().flatten().reduce(|a, b| f(a, b)))
    }

    /// Runs for every value; partitions at the same time.
    pub async fn foreach(&self, f: impl Fn(T) + Send + Sync + 'static) -> anyhow::Result<()> {
        let f = Arc::new(f);
        self.run(move |partition, data| {
            let f = f.clone();
            async move { data.for_each(partition, &mut |value| f(value)).await }.boxed()
        })
        .await?;
        Ok(())
    }

    /// Gives every partition as a whole, for example to write it over one connection; partitions at the same time.
    pub async fn foreach_partition<F, Fut>(&self, f: F) -> anyhow::Result<()>
    where
        F: Fn(Vec<T>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let f = Arc::new(f);
        self.run(move |partition, data| {
            let f = f.clone();
            async move {
                let mut values = Vec::new();
                data.for_each(partition, &mut |value| values.push(value)).await?;
                f(values).await
            }
            .boxed()
        })
        .await?;
        Ok(())
    }

    /// Runs every partition, as many at a time as there are cores, off the threads that serve sockets.
    async fn run<R: Send + 'static>(
        &self,
        f: impl Fn(usize, Arc<dyn Partitions<T>>) -> BoxFuture<'static, anyhow::Result<R>>,
    ) -> anyhow::Result<Vec<R>> {
        on_all_cores((0..self.data.count()).map(|partition| f(partition, self.data.clone())).collect()).await
    }
}

impl<K: Key, V: Data> Rdd<(K, V)> {
    /// One value per key. Combined within the partitions first.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> Self {
        shuffle::combine(self, |value| value, f)
    }

    pub fn group_by_key(&self) -> Rdd<(K, Vec<V>)> {
        shuffle::combine(
            self,
            |value| vec![value],
            |mut group, mut more| {
                group.append(&mut more);
                group
            },
        )
    }

    pub fn map_values<W: Data>(&self, f: impl Fn(V) -> W + Send + Sync + 'static) -> Rdd<(K, W)> {
        self.map(move |(key, value)| (key, f(value)))
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

// === Kinds of partitions ===

struct Values<T>(Vec<Arc<Vec<T>>>);

impl<T: Data> Partitions<T> for Values<T> {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            if let Some(values) = self.0.get(partition) {
                values.iter().cloned().for_each(each);
            }
            Ok(())
        }
        .boxed()
    }

    fn kept(&self) -> bool {
        true
    }

    fn rows_kept(&self) -> u64 {
        self.0.iter().map(|values| values.len() as u64).sum()
    }
}

struct Narrow<T, F> {
    parent: Arc<dyn Partitions<T>>,
    f: F,
}

impl<T: Data, U: Data, F: Fn(T, &mut (dyn FnMut(U) + Send)) + Send + Sync> Partitions<U> for Narrow<T, F> {
    fn count(&self) -> usize {
        self.parent.count()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(U) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move { self.parent.for_each(partition, &mut |value| (self.f)(value, each)).await }.boxed()
    }
}

struct Union<T>(Vec<Arc<dyn Partitions<T>>>);

impl<T: Data> Partitions<T> for Union<T> {
    fn count(&self) -> usize {
        self.0.iter().map(|part| part.count()).sum()
    }

    fn for_each<'a>(&'a self, mut partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        for part in &self.0 {
            match partition.checked_sub(part.count()) {
                Some(rest) => partition = rest,
                None => return part.for_each(partition, each),
            }
        }
        async { Ok(()) }.boxed()
    }

    fn kept(&self) -> bool {
        self.0.iter().all(|part| part.kept())
    }

    fn rows_kept(&self) -> u64 {
        self.0.iter().map(|part| part.rows_kept()).sum()
    }
}

struct Cached<T> {
    parent: Arc<dyn Partitions<T>>,
    cells: Vec<OnceCell<Vec<T>>>,
}

impl<T: Data> Partitions<T> for Cached<T> {
    fn count(&self) -> usize {
        self.cells.len()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let Some(cell) = self.cells.get(partition) else { return Ok(()) };
            let compute = async || {
                let mut values = Vec::new();
                self.parent.for_each(partition, &mut |value| values.push(value)).await?;
                anyhow::Ok(values)
            };
            cell.get_or_try_init(compute).await?.iter().cloned().for_each(each);
            Ok(())
        }
        .boxed()
    }

    fn kept(&self) -> bool {
        true
    }

    fn rows_kept(&self) -> u64 {
        self.cells.iter().filter_map(|cell| cell.get()).map(|values| values.len() as u64).sum()
    }
}
