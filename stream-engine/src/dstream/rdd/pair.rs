//! Pairs: what can be done by key.
//!
//! The result of a keyed operation has one partition per core, at least two, unless the number is given.

use std::sync::Arc;

use super::super::shuffle;
use super::{Data, Key, Rdd};

/// A key's values on both sides.
pub type CoGroup<V, W> = (Vec<V>, Vec<W>);

/// Two values of a key, or one that meets none.
pub type FullOuter<V, W> = (Option<V>, Option<W>);

impl<K: Key, V: Data> Rdd<(K, V)> {
    pub fn keys(&self) -> Rdd<K> {
        self.map(|(key, _)| key)
    }

    pub fn values(&self) -> Rdd<V> {
        self.map(|(_, value)| value)
    }

    pub fn map_values<W: Data>(&self, f: impl Fn(V) -> W + Send + Sync + 'static) -> Rdd<(K, W)> {
        self.map(move |(key, value)| (key, f(value)))
    }

    /// One pair for each of the values that `f` gives.
    pub fn flat_map_values<W: Data, I: IntoIterator<Item = W>>(&self, f: impl Fn(V) -> I + Send + Sync + 'static) -> Rdd<(K, W)> {
        self.narrow(move |(key, value), each| f(value).into_iter().for_each(|value| each((key.clone(), value))))
    }

    /// One value per key. Combined within the partitions first.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> Self {
        self.reduce_by_key_with_partitions(f, shuffle::partitions())
    }

    pub fn reduce_by_key_with_partitions(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static, num_partitions: usize) -> Self {
        let f = Arc::new(f);
        let g = f.clone();
        shuffle::combine(self, num_partitions, |value| value, move |a, b| f(a, b), move |a, b| g(a, b))
    }

    /// All values of a key, in the order of the partitions.
    pub fn group_by_key(&self) -> Rdd<(K, Vec<V>)> {
        self.group_by_key_with_partitions(shuffle::partitions())
    }

    pub fn group_by_key_with_partitions(&self, num_partitions: usize) -> Rdd<(K, Vec<V>)> {
        let push = |mut group: Vec<V>, value| {
            group.push(value);
            group
        };
        let append = |mut group: Vec<V>, mut more: Vec<V>| {
            group.append(&mut more);
            group
        };
        shuffle::combine(self, num_partitions, |value| vec![value], push, append)
    }

    /// One combination per key: `create` from the first value, `merge_value` with each further one of a partition,
    /// `merge_combiners` with those of the other partitions.
    pub fn combine_by_key<C: Data>(
        &self,
        create: impl Fn(V) -> C + Send + Sync + 'static,
        merge_value: impl Fn(C, V) -> C + Send + Sync + 'static,
        merge_combiners: impl Fn(C, C) -> C + Send + Sync + 'static,
    ) -> Rdd<(K, C)> {
        self.combine_by_key_with_partitions(create, merge_value, merge_combiners, shuffle::partitions())
    }

    pub fn combine_by_key_with_partitions<C: Data>(
        &self,
        create: impl Fn(V) -> C + Send + Sync + 'static,
        merge_value: impl Fn(C, V) -> C + Send + Sync + 'static,
        merge_combiners: impl Fn(C, C) -> C + Send + Sync + 'static,
        num_partitions: usize,
    ) -> Rdd<(K, C)> {
        shuffle::combine(self, num_partitions, create, merge_value, merge_combiners)
    }

    /// For each key of either: the values here and the values there.
    pub fn cogroup<W: Data>(&self, other: &Rdd<(K, W)>) -> Rdd<(K, CoGroup<V, W>)> {
        self.cogroup_with_partitions(other, shuffle::partitions())
    }

    pub fn cogroup_with_partitions<W: Data>(&self, other: &Rdd<(K, W)>, num_partitions: usize) -> Rdd<(K, CoGroup<V, W>)> {
        shuffle::cogroup(self, other, num_partitions)
    }

    /// One pair for each two values of the same key.
    pub fn join<W: Data>(&self, other: &Rdd<(K, W)>) -> Rdd<(K, (V, W))> {
        self.cogroup(other).flat_map_values(|(left, right)| cross(left, right))
    }

    /// As [`Self::join`]; values without one on the other side come with `None`.
    pub fn left_outer_join<W: Data>(&self, other: &Rdd<(K, W)>) -> Rdd<(K, (V, Option<W>))> {
        self.cogroup(other).flat_map_values(|(left, right)| cross(left, or_none(right)))
    }

    /// As [`Self::join`]; values of `other` without one here come with `None`.
    pub fn right_outer_join<W: Data>(&self, other: &Rdd<(K, W)>) -> Rdd<(K, (Option<V>, W))> {
        self.cogroup(other).flat_map_values(|(left, right)| cross(or_none(left), right))
    }

    /// As [`Self::join`]; values without one on the other side come with `None`, on both sides.
    pub fn full_outer_join<W: Data>(&self, other: &Rdd<(K, W)>) -> Rdd<(K, FullOuter<V, W>)> {
        self.cogroup(other).flat_map_values(|(left, right)| cross(or_none(left), or_none(right)))
    }
}

/// Each of one with each of the other.
fn cross<V: Clone, W: Clone>(left: Vec<V>, right: Vec<W>) -> impl Iterator<Item = (V, W)> {
    left.into_iter().flat_map(move |value| right.clone().into_iter().map(move |other| (value.clone(), other)))
}

fn or_none<V>(values: Vec<V>) -> Vec<Option<V>> {
    if values.is_empty() { vec![None] } else { values.into_iter().map(Some).collect() }
}
