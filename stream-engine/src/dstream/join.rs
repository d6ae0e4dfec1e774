//! Joins of two streams: values of the same key in the same batch, or window, meet. They do not wait for each other over
//! batches. With a table of the program's own, use [`DStream::transform`] and [`Rdd::join`](super::Rdd::join).

use super::DStream;
use super::rdd::{CoGroup, Data, FullOuter, Key};
use super::shuffle;

impl<K: Key, V: Data> DStream<(K, V)> {
    /// For each key of either batch: the values here and the values there.
    pub fn cogroup<W: Data>(&self, other: &DStream<(K, W)>) -> DStream<(K, CoGroup<V, W>)> {
        self.cogroup_with_partitions(other, shuffle::partitions())
    }

    pub fn cogroup_with_partitions<W: Data>(&self, other: &DStream<(K, W)>, num_partitions: usize) -> DStream<(K, CoGroup<V, W>)> {
        let op = "cogroup";
        self.keyed(op, num_partitions).with(other, op, move |left, right, _| left.cogroup_with_partitions(&right, num_partitions))
    }

    /// One pair for each two values of the same key.
    pub fn join<W: Data>(&self, other: &DStream<(K, W)>) -> DStream<(K, (V, W))> {
        self.with(other, "join", |left, right, _| left.join(&right))
    }

    /// As [`Self::join`]; values without one on the other side come with `None`.
    pub fn left_outer_join<W: Data>(&self, other: &DStream<(K, W)>) -> DStream<(K, (V, Option<W>))> {
        self.with(other, "leftOuterJoin", |left, right, _| left.left_outer_join(&right))
    }

    /// As [`Self::join`]; values of `other` without one here come with `None`.
    pub fn right_outer_join<W: Data>(&self, other: &DStream<(K, W)>) -> DStream<(K, (Option<V>, W))> {
        self.with(other, "rightOuterJoin", |left, right, _| left.right_outer_join(&right))
    }

    /// As [`Self::join`]; values without one on the other side come with `None`, on both sides.
    pub fn full_outer_join<W: Data>(&self, other: &DStream<(K, W)>) -> DStream<(K, FullOuter<V, W>)> {
        self.with(other, "fullOuterJoin", |left, right, _| left.full_outer_join(&right))
    }
}
