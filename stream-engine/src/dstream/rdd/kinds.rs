//! Kinds of partitions behind an [`Rdd`](super::Rdd).

use std::{ops::Range, sync::Arc, vec};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::Data;

/// Partitions of values. Evaluated at most once unless it is cached or holds its values.
pub(in crate::dstream) trait Partitions<T>: Send + Sync {
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
    /// Computes what is kept.
    fn evaluate(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        async { Ok(()) }.boxed()
    }
    /// Shows every value that is in memory, partition after partition; false when some are not.
    fn visit(&self, _each: &mut dyn FnMut(&T)) -> bool {
        false
    }
}

pub(super) struct Values<T>(pub(super) Vec<Arc<Vec<T>>>);

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

    fn visit(&self, each: &mut dyn FnMut(&T)) -> bool {
        self.0.iter().flat_map(|values| values.iter()).for_each(each);
        true
    }
}

/// Value by value, without storing any.
pub(super) struct Narrow<T, F> {
    pub(super) parent: Arc<dyn Partitions<T>>,
    pub(super) f: F,
}

impl<T: Data, U: Data, F: Fn(T, &mut (dyn FnMut(U) + Send)) + Send + Sync> Partitions<U> for Narrow<T, F> {
    fn count(&self) -> usize {
        self.parent.count()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(U) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move { self.parent.for_each(partition, &mut |value| (self.f)(value, each)).await }.boxed()
    }
}

/// Partition by partition.
pub(super) struct Whole<T, F> {
    pub(super) parent: Arc<dyn Partitions<T>>,
    pub(super) f: F,
}

impl<T: Data, U: Data, I: IntoIterator<Item = U>, F: Fn(usize, vec::IntoIter<T>) -> I + Send + Sync> Partitions<U> for Whole<T, F> {
    fn count(&self) -> usize {
        self.parent.count()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(U) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let mut values = Vec::new();
            self.parent.for_each(partition, &mut |value| values.push(value)).await?;
            (self.f)(partition, values.into_iter()).into_iter().for_each(each);
            Ok(())
        }
        .boxed()
    }
}

/// One after the other.
pub(super) struct Union<T>(pub(super) Vec<Arc<dyn Partitions<T>>>);

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

/// Neighbours as one.
pub(super) struct Coalesced<T> {
    pub(super) parent: Arc<dyn Partitions<T>>,
    pub(super) partitions: usize,
}

impl<T> Coalesced<T> {
    fn group(&self, partition: usize) -> Range<usize> {
        let bound = |n: usize| n * self.parent.count() / self.partitions;
        bound(partition)..bound(partition + 1)
    }
}

impl<T: Data> Partitions<T> for Coalesced<T> {
    fn count(&self) -> usize {
        self.partitions
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            for part in self.group(partition) {
                self.parent.for_each(part, &mut *each).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn kept(&self) -> bool {
        self.parent.kept()
    }

    fn rows_kept(&self) -> u64 {
        self.parent.rows_kept()
    }
}

/// Each partition kept after it was first computed.
pub(super) struct Cached<T> {
    pub(super) parent: Arc<dyn Partitions<T>>,
    pub(super) cells: Vec<OnceCell<Vec<T>>>,
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

type Compute<P> = BoxFuture<'static, anyhow::Result<Vec<P>>>;

/// Partitions that are computed all at once, when the first is asked for, and let go of what they were computed from.
pub(in crate::dstream) struct Computed<T> {
    partitions: usize,
    values: OnceCell<Vec<Arc<Vec<T>>>>,
    /// Gone after the first evaluation. One that failed cannot be repeated, for records are read once: the batch is run
    /// again as a whole.
    compute: Mutex<Option<Compute<Arc<Vec<T>>>>>,
    /// Why that one failed. Several partitions ask at once, and whoever is told first tells the batch.
    failed: Mutex<Option<Failed>>,
}

/// What everybody is told who asks for the values. Its source is the cause, which decides what is done about it: a broker that was away was so for all.
#[derive(Clone, Debug)]
struct Failed(Arc<anyhow::Error>);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let cause: &(dyn std::error::Error + Send + Sync) = (*self.0).as_ref();
        Some(cause)
    }
}

impl<T: Data> Computed<T> {
    pub(in crate::dstream) fn new(partitions: usize, compute: Compute<Vec<T>>) -> Self {
        Self::shared(partitions, async { Ok(compute.await?.into_iter().map(Arc::new).collect()) }.boxed())
    }

    /// Of partitions that somebody else holds too.
    pub(in crate::dstream) fn shared(partitions: usize, compute: Compute<Arc<Vec<T>>>) -> Self {
        Self { partitions, values: OnceCell::new(), compute: Mutex::new(Some(compute)), failed: Mutex::default() }
    }

    async fn values(&self) -> anyhow::Result<&Vec<Arc<Vec<T>>>> {
        let compute = async || {
            let compute = self.compute.lock().take();
            match compute {
                Some(compute) => compute.await.map_err(|error| self.failed.lock().insert(Failed(Arc::new(error))).clone().into()),
                None => Err(match &*self.failed.lock() {
                    Some(failed) => failed.clone().into(),
                    None => anyhow::anyhow!("an earlier evaluation of the same values was given up"),
                }),
            }
        };
        self.values.get_or_try_init(compute).await
    }
}

impl<T: Data> Partitions<T> for Computed<T> {
    fn count(&self) -> usize {
        self.partitions
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            if let Some(rows) = self.values().await?.get(partition) {
                rows.iter().cloned().for_each(each);
            }
            Ok(())
        }
        .boxed()
    }

    fn kept(&self) -> bool {
        true
    }

    fn rows_kept(&self) -> u64 {
        self.values.get().map_or(0, |values| values.iter().map(|rows| rows.len() as u64).sum())
    }

    fn evaluate(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        async { self.values().await.map(drop) }.boxed()
    }

    fn visit(&self, each: &mut dyn FnMut(&T)) -> bool {
        self.values.get().is_some_and(|values| {
            values.iter().flat_map(|rows| rows.iter()).for_each(each);
            true
        })
    }
}

/// Shows what lies within a value.
type Open<P, T> = fn(&P, &mut dyn FnMut(&T));

/// Values that lie within kept ones.
pub(in crate::dstream) struct Within<P, T> {
    pub(in crate::dstream) parent: Arc<dyn Partitions<P>>,
    pub(in crate::dstream) open: Open<P, T>,
    pub(in crate::dstream) len: fn(&P) -> usize,
}

impl<P: Data, T: Data> Partitions<T> for Within<P, T> {
    fn count(&self) -> usize {
        self.parent.count()
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move { self.parent.for_each(partition, &mut |outer| (self.open)(&outer, &mut |value| each(value.clone()))).await }.boxed()
    }

    fn kept(&self) -> bool {
        self.parent.kept()
    }

    fn rows_kept(&self) -> u64 {
        let mut rows = 0;
        self.parent.visit(&mut |outer| rows += (self.len)(outer) as u64);
        rows
    }

    fn evaluate(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        self.parent.evaluate()
    }

    fn visit(&self, each: &mut dyn FnMut(&T)) -> bool {
        self.parent.visit(&mut |outer| (self.open)(outer, each))
    }
}
