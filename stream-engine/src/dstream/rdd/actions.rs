//! Actions: what computes values and gives them to the program. Partitions run at the same time.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use futures::{FutureExt, future::BoxFuture};

use super::{Data, Key, Partitions, Rdd, on_all_cores};

/// Fewest values that [`Rdd::take_ordered`] collects before it drops the ones that cannot be among the first.
const ORDERED_MIN: usize = 1024;

impl<T: Data> Rdd<T> {
    /// All values, partition after partition.
    pub async fn collect(&self) -> anyhow::Result<Vec<T>> {
        Ok(self.collect_partitions().await?.into_iter().flatten().collect())
    }

    /// All values by partition.
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

    /// `None` when there are no values.
    pub async fn first(&self) -> anyhow::Result<Option<T>> {
        Ok(self.take(1).await?.pop())
    }

    pub async fn is_empty(&self) -> anyhow::Result<bool> {
        Ok(self.first().await?.is_none())
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

    /// How often each value is there.
    pub async fn count_by_value(&self) -> anyhow::Result<HashMap<T, u64>>
    where
        T: Key,
    {
        self.map(|value| (value, ())).count_by_key().await
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

    /// As [`Self::aggregate`] with one function for both. As in Spark, `zero` takes part once per partition and once more
    /// for the result, so it must be neutral.
    pub async fn fold(&self, zero: T, f: impl Fn(T, T) -> T + Clone + Send + Sync + 'static) -> anyhow::Result<T> {
        self.aggregate(zero, f.clone(), f).await
    }

    /// Each partition's values go into `zero` by `seq`; what the partitions give goes into `zero` by `comb`, in order.
    pub async fn aggregate<U: Data>(
        &self,
        zero: U,
        seq: impl Fn(U, T) -> U + Send + Sync + 'static,
        comb: impl Fn(U, U) -> U + Send + Sync + 'static,
    ) -> anyhow::Result<U> {
        let seq = Arc::new(seq);
        let start = zero.clone();
        let partials = self.run(move |partition, data| {
            let (seq, start) = (seq.clone(), start.clone());
            async move {
                // `None` only while a value is being added.
                let mut sum = Some(start);
                data.for_each(partition, &mut |value| sum = sum.take().map(|so_far| seq(so_far, value))).await?;
                Ok(sum)
            }
            .boxed()
        });
        Ok(partials.await?.into_iter().flatten().fold(zero, comb))
    }

    /// The largest value; `None` when there are none.
    pub async fn max(&self) -> anyhow::Result<Option<T>>
    where
        T: Ord,
    {
        self.reduce(T::max).await
    }

    /// The smallest value; `None` when there are none.
    pub async fn min(&self) -> anyhow::Result<Option<T>>
    where
        T: Ord,
    {
        self.reduce(T::min).await
    }

    /// The `n` largest values, the largest first.
    pub async fn top(&self, n: usize) -> anyhow::Result<Vec<T>>
    where
        T: Ord,
    {
        self.first_by(n, |a, b| b.cmp(a)).await
    }

    /// The `n` smallest values, the smallest first.
    pub async fn take_ordered(&self, n: usize) -> anyhow::Result<Vec<T>>
    where
        T: Ord,
    {
        self.first_by(n, T::cmp).await
    }

    async fn first_by(&self, n: usize, order: fn(&T, &T) -> Ordering) -> anyhow::Result<Vec<T>> {
        let keep = move |values: &mut Vec<T>| {
            values.sort_by(order);
            values.truncate(n);
        };
        let partials = self.run(move |partition, data| {
            async move {
                let mut values = Vec::new();
                data.for_each(partition, &mut |value| {
                    values.push(value);
                    if values.len() >= n.saturating_mul(2).max(ORDERED_MIN) {
                        keep(&mut values);
                    }
                })
                .await?;
                keep(&mut values);
                Ok(values)
            }
            .boxed()
        });
        let mut values: Vec<T> = partials.await?.into_iter().flatten().collect();
        keep(&mut values);
        Ok(values)
    }

    /// Runs for every value.
    pub async fn foreach(&self, f: impl Fn(T) + Send + Sync + 'static) -> anyhow::Result<()> {
        let f = Arc::new(f);
        self.run(move |partition, data| {
            let f = f.clone();
            async move { data.for_each(partition, &mut |value| f(value)).await }.boxed()
        })
        .await?;
        Ok(())
    }

    /// Gives every partition as a whole, for example to write it over one connection.
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
    /// How many values each key has.
    pub async fn count_by_key(&self) -> anyhow::Result<HashMap<K, u64>> {
        Ok(self.map(|(key, _)| (key, 1)).reduce_by_key(|a, b| a + b).collect().await?.into_iter().collect())
    }

    /// The values of one key.
    pub async fn lookup(&self, key: &K) -> anyhow::Result<Vec<V>> {
        let key = key.clone();
        self.filter(move |(other, _)| *other == key).values().collect().await
    }
}
