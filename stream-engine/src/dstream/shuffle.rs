//! Keyed operations: values of a key come together from all partitions.
//!
//! Every partition combines its own values first, so that one row per key and partition moves. The result is computed
//! once, kept, and lets go of what it was computed from: windows that build on their predecessor do not grow a chain.

use std::sync::Arc;

use ahash::RandomState;
use futures::{FutureExt, future::BoxFuture};
use hashbrown::HashMap;
use tokio::sync::Mutex;

use super::rdd::{Data, Key, Partitions, Rdd, cores, on_all_cores};

/// Two values into one.
pub(super) type Reduce<V> = Arc<dyn Fn(V, V) -> V + Send + Sync>;
/// Which pairs stay in a window.
pub type Keep<K, V> = Arc<dyn Fn(&(K, V)) -> bool + Send + Sync>;
/// Values in the order in which they come, `None` only while one is being combined.
type Table<K, C> = HashMap<K, Option<C>, RandomState>;

/// Fixed seeds: a key is in the same partition in every batch and every run.
fn hasher() -> RandomState {
    RandomState::with_seeds(0x6d69_6c6c, 0x7261_6365, 0x7374_7265, 0x616d)
}

/// Output partitions of a keyed operation.
pub(super) fn partitions() -> usize {
    cores().max(2)
}

fn partition_of<K: Key>(hasher: &RandomState, key: &K, partitions: usize) -> usize {
    // The high bits: the tables below use the low ones.
    ((hasher.hash_one(key) >> 32) as usize) % partitions
}

fn insert<K: Key, C>(table: &mut Table<K, C>, key: K, value: C, merge: &impl Fn(C, C) -> C) {
    let slot = table.entry(key).or_insert(None);
    *slot = Some(match slot.take() {
        Some(so_far) => merge(so_far, value),
        None => value,
    });
}

/// One combined value per key.
pub(super) fn combine<K: Key, V: Data, C: Data>(
    rdd: &Rdd<(K, V)>,
    create: impl Fn(V) -> C + Send + Sync + 'static,
    merge: impl Fn(C, C) -> C + Send + Sync + 'static,
) -> Rdd<(K, C)> {
    let (parent, create, merge) = (rdd.data.clone(), Arc::new(create), Arc::new(merge));
    let compute = async move {
        let partitions = partitions();
        let map_side = (0..parent.count()).map(|partition| {
            let (parent, create, merge) = (parent.clone(), create.clone(), merge.clone());
            async move {
                let hasher = hasher();
                let mut tables: Vec<Table<K, C>> = (0..partitions).map(|_| Table::with_hasher(hasher.clone())).collect();
                parent
                    .for_each(partition, &mut |(key, value)| {
                        let at = partition_of(&hasher, &key, partitions);
                        insert(&mut tables[at], key, create(value), merge.as_ref());
                    })
                    .await?;
                Ok(tables)
            }
            .boxed()
        });
        let mut by_output: Vec<Vec<Table<K, C>>> = (0..partitions).map(|_| Vec::new()).collect();
        for tables in on_all_cores(map_side.collect()).await? {
            for (output, table) in by_output.iter_mut().zip(tables) {
                output.push(table);
            }
        }
        let reduce_side = by_output.into_iter().map(|tables| {
            let merge = merge.clone();
            async move {
                let mut tables = tables.into_iter();
                let mut all = tables.next().unwrap_or_else(|| Table::with_hasher(hasher()));
                for table in tables {
                    for (key, value) in table {
                        if let Some(value) = value {
                            insert(&mut all, key, value, merge.as_ref());
                        }
                    }
                }
                Ok(rows(all))
            }
            .boxed()
        });
        on_all_cores(reduce_side.collect()).await
    };
    Rdd::over(Computed::new(partitions(), compute.boxed()))
}

/// `previous`, without what left the window, with what came into it (Spark's `reduceByKeyAndWindow` with inverse).
///
/// Keys that `keep` refuses are dropped. A key that was dropped while values of it were still in the window has no
/// previous value to take them from; it stays dropped until new values come.
pub(super) fn slide<K: Key, V: Data>(
    previous: Rdd<(K, V)>,
    left: Rdd<(K, V)>,
    came: Rdd<(K, V)>,
    reduce: Reduce<V>,
    inverse: Reduce<V>,
    keep: Option<Keep<K, V>>,
) -> Rdd<(K, V)> {
    let compute = async move {
        // All three are hashed by the same rule, so partition n of one meets partition n of the others.
        let work = (0..partitions()).map(|partition| {
            let (previous, left, came) = (previous.data.clone(), left.data.clone(), came.data.clone());
            let (reduce, inverse, keep) = (reduce.clone(), inverse.clone(), keep.clone());
            async move {
                let mut table: Table<K, V> = Table::with_hasher(hasher());
                previous.for_each(partition, &mut |(key, value)| drop(table.insert(key, Some(value)))).await?;
                left.for_each(partition, &mut |(key, value)| {
                    if let Some(slot) = table.get_mut(&key) {
                        *slot = slot.take().map(|so_far| inverse(so_far, value));
                    }
                })
                .await?;
                came.for_each(partition, &mut |(key, value)| insert(&mut table, key, value, &|a, b| reduce(a, b))).await?;
                let mut rows = rows(table);
                if let Some(keep) = keep {
                    rows.retain(|row| keep(row));
                }
                Ok(rows)
            }
            .boxed()
        });
        on_all_cores(work.collect()).await
    };
    Rdd::over(Computed::new(partitions(), compute.boxed()))
}

fn rows<K, V>(table: Table<K, V>) -> Vec<(K, V)> {
    table.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect()
}

/// Partitions that are computed all at once, when the first is asked for.
struct Computed<T> {
    partitions: usize,
    state: Mutex<State<T>>,
}

enum State<T> {
    Waiting(BoxFuture<'static, anyhow::Result<Vec<Vec<T>>>>),
    Done(Arc<Vec<Vec<T>>>),
    /// Cannot be computed again: the records were read once. The batch is run again as a whole.
    Failed,
}

impl<T: Data> Computed<T> {
    fn new(partitions: usize, compute: BoxFuture<'static, anyhow::Result<Vec<Vec<T>>>>) -> Self {
        Self { partitions, state: Mutex::new(State::Waiting(compute)) }
    }

    async fn values(&self) -> anyhow::Result<Arc<Vec<Vec<T>>>> {
        let mut state = self.state.lock().await;
        match std::mem::replace(&mut *state, State::Failed) {
            State::Waiting(compute) => {
                let values = Arc::new(compute.await?);
                *state = State::Done(values.clone());
                Ok(values)
            }
            State::Done(values) => {
                *state = State::Done(values.clone());
                Ok(values)
            }
            State::Failed => anyhow::bail!("an earlier evaluation of the same values failed"),
        }
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
        match self.state.try_lock().as_deref() {
            Ok(State::Done(values)) => values.iter().map(|rows| rows.len() as u64).sum(),
            _ => 0,
        }
    }
}
