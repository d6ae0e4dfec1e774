//! Keyed operations: values of a key come together from all partitions.
//!
//! Every partition combines its own values first, so that one row per key and partition moves. The result is computed
//! once, kept, and lets go of what it was computed from: windows that build on their predecessor do not grow a chain.

use std::sync::Arc;

use ahash::RandomState;
use futures::FutureExt;
use hashbrown::HashMap;

use super::rdd::{CoGroup, Computed, Data, Key, Rdd, cores, on_all_cores};

/// Two values into one.
pub(super) type Reduce<V> = Arc<dyn Fn(V, V) -> V + Send + Sync>;
/// Which pairs stay in a window.
pub type Keep<K, V> = Arc<dyn Fn(&(K, V)) -> bool + Send + Sync>;
/// Values by key.
pub(super) type Table<K, V> = HashMap<K, V, RandomState>;

pub(super) fn table<K, V>() -> Table<K, V> {
    Table::with_hasher(hasher())
}

/// Fixed seeds: a key is in the same partition in every batch.
fn hasher() -> RandomState {
    RandomState::with_seeds(0x6d69_6c6c, 0x7261_6365, 0x7374_7265, 0x616d)
}

/// Output partitions of a keyed operation.
pub(super) fn partitions() -> usize {
    cores().max(2)
}

fn partition_of<K: Key>(hasher: &RandomState, key: &K, partitions: usize) -> usize {
    // The high bits: the tables use the low ones.
    ((hasher.hash_one(key) >> 32) as usize) % partitions
}

/// `None` only while a value is being combined.
fn upsert<K: Key, V, C>(table: &mut Table<K, Option<C>>, key: K, value: V, create: impl Fn(V) -> C, merge: impl Fn(C, V) -> C) {
    let slot = table.entry(key).or_insert(None);
    *slot = Some(match slot.take() {
        Some(so_far) => merge(so_far, value),
        None => create(value),
    });
}

fn rows<K, V>(table: Table<K, Option<V>>) -> Vec<(K, V)> {
    table.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))).collect()
}

/// One combined value per key.
pub(super) fn combine<K: Key, V: Data, C: Data>(
    rdd: &Rdd<(K, V)>,
    partitions: usize,
    create: impl Fn(V) -> C + Send + Sync + 'static,
    merge_value: impl Fn(C, V) -> C + Send + Sync + 'static,
    merge_combiners: impl Fn(C, C) -> C + Send + Sync + 'static,
) -> Rdd<(K, C)> {
    assert!(partitions > 0, "the number of partitions (0) must be positive");
    let parent = rdd.data.clone();
    let (map_side, reduce_side) = (Arc::new((create, merge_value)), Arc::new(merge_combiners));
    let compute = async move {
        let work = (0..parent.count()).map(|partition| {
            let (parent, map_side) = (parent.clone(), map_side.clone());
            async move {
                let (create, merge) = map_side.as_ref();
                let hasher = hasher();
                let mut tables: Vec<Table<K, Option<C>>> = (0..partitions).map(|_| table()).collect();
                parent
                    .for_each(partition, &mut |(key, value)| {
                        let at = partition_of(&hasher, &key, partitions);
                        upsert(&mut tables[at], key, value, create, merge);
                    })
                    .await?;
                Ok(tables)
            }
            .boxed()
        });
        let work = transposed(on_all_cores(work.collect()).await?, partitions).into_iter().map(|tables| {
            let merge = reduce_side.clone();
            async move {
                let mut tables = tables.into_iter();
                let mut all = tables.next().unwrap_or_else(table);
                for (key, value) in tables.flat_map(rows) {
                    upsert(&mut all, key, value, |value| value, merge.as_ref());
                }
                Ok(rows(all))
            }
            .boxed()
        });
        on_all_cores(work.collect()).await
    };
    Rdd::over(Computed::new(partitions, compute.boxed()))
}

/// For each key of either side: the values there.
pub(super) fn cogroup<K: Key, V: Data, W: Data>(left: &Rdd<(K, V)>, right: &Rdd<(K, W)>, partitions: usize) -> Rdd<(K, CoGroup<V, W>)> {
    let (left, right) = (left.clone(), right.clone());
    let compute = async move {
        let (left, right) = (scatter(&left, partitions).await?, scatter(&right, partitions).await?);
        let work = left.into_iter().zip(right).map(|(left, right)| {
            async move {
                let mut groups: Table<K, CoGroup<V, W>> = table();
                left.into_iter().for_each(|(key, value)| groups.entry(key).or_default().0.push(value));
                right.into_iter().for_each(|(key, value)| groups.entry(key).or_default().1.push(value));
                Ok(groups.into_iter().collect())
            }
            .boxed()
        });
        on_all_cores(work.collect()).await
    };
    assert!(partitions > 0, "the number of partitions (0) must be positive");
    Rdd::over(Computed::new(partitions, compute.boxed()))
}

/// All pairs, by the partition that their key belongs to; within it in the order of the partitions that they come from.
pub(super) async fn scatter<K: Key, V: Data>(rdd: &Rdd<(K, V)>, partitions: usize) -> anyhow::Result<Vec<Vec<(K, V)>>> {
    let work = (0..rdd.data.count()).map(|partition| {
        let parent = rdd.data.clone();
        async move {
            let hasher = hasher();
            let mut scattered: Vec<Vec<(K, V)>> = (0..partitions).map(|_| Vec::new()).collect();
            parent.for_each(partition, &mut |pair| scattered[partition_of(&hasher, &pair.0, partitions)].push(pair)).await?;
            Ok(scattered)
        }
        .boxed()
    });
    let scattered = on_all_cores(work.collect()).await?;
    Ok(transposed(scattered, partitions).into_iter().map(|parts| parts.into_iter().flatten().collect()).collect())
}

/// As [`scatter`], of pairs that are at hand.
pub(super) fn place<K: Key, V>(pairs: Vec<(K, V)>, partitions: usize) -> Vec<Vec<(K, V)>> {
    let hasher = hasher();
    let mut placed: Vec<Vec<(K, V)>> = (0..partitions).map(|_| Vec::new()).collect();
    pairs.into_iter().for_each(|pair| placed[partition_of(&hasher, &pair.0, partitions)].push(pair));
    placed
}

/// Partitions of about the same size: each partition's values are dealt out in turn.
pub(super) fn deal<T: Data>(rdd: &Rdd<T>, partitions: usize) -> Rdd<T> {
    let rdd = rdd.clone();
    let compute = async move {
        let mut dealt: Vec<Vec<T>> = (0..partitions).map(|_| Vec::new()).collect();
        // Each begins where the one before ended: many small partitions would all fill the first ones.
        let mut next = 0;
        for value in rdd.collect().await? {
            dealt[next].push(value);
            next = (next + 1) % partitions;
        }
        Ok(dealt)
    };
    Rdd::over(Computed::new(partitions, compute.boxed()))
}

/// What each gave for each output, by output.
fn transposed<P>(given: Vec<Vec<P>>, outputs: usize) -> Vec<Vec<P>> {
    let mut by_output: Vec<Vec<P>> = (0..outputs).map(|_| Vec::new()).collect();
    for parts in given {
        by_output.iter_mut().zip(parts).for_each(|(output, part)| output.push(part));
    }
    by_output
}

/// `previous`, without what left the window, with what came into it (Spark's `reduceByKeyAndWindow` with inverse). All
/// three are of `partitions` partitions by key, or empty.
///
/// Keys that `keep` refuses are dropped. A key that was dropped while values of it were still in the window has no
/// previous value to take them from; it stays dropped until new values come.
pub(super) fn slide<K: Key, V: Data>(
    partitions: usize,
    [previous, left, came]: [Rdd<(K, V)>; 3],
    reduce: Reduce<V>,
    inverse: Reduce<V>,
    keep: Option<Keep<K, V>>,
) -> Rdd<(K, V)> {
    let compute = async move {
        let work = (0..partitions).map(|partition| {
            let (previous, left, came) = (previous.data.clone(), left.data.clone(), came.data.clone());
            let (reduce, inverse, keep) = (reduce.clone(), inverse.clone(), keep.clone());
            async move {
                let mut window: Table<K, Option<V>> = table();
                previous.for_each(partition, &mut |(key, value)| drop(window.insert(key, Some(value)))).await?;
                left.for_each(partition, &mut |(key, value)| {
                    if let Some(slot) = window.get_mut(&key) {
                        *slot = slot.take().map(|so_far| inverse(so_far, value));
                    }
                })
                .await?;
                came.for_each(partition, &mut |(key, value)| upsert(&mut window, key, value, |value| value, reduce.as_ref())).await?;
                let mut rows = rows(window);
                if let Some(keep) = keep {
                    rows.retain(|row| keep(row));
                }
                Ok(rows)
            }
            .boxed()
        });
        on_all_cores(work.collect()).await
    };
    Rdd::over(Computed::new(partitions, compute.boxed()))
}
