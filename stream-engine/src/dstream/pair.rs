//! Streams of pairs: keyed operations within a batch. Keys without values in a batch are not in its result.

use std::sync::Arc;

use super::DStream;
use super::rdd::{Data, Key};
use super::shuffle;

impl<K: Key, V: Data> DStream<(K, V)> {
    pub fn map_values<W: Data>(&self, f: impl Fn(V) -> W + Send + Sync + 'static) -> DStream<(K, W)> {
        let f = Arc::new(f);
        self.derive("mapValues", move |rdd, _| {
            let f = f.clone();
            rdd.map_values(move |value| f(value))
        })
    }

    /// One pair for each of the values that `f` gives.
    pub fn flat_map_values<W: Data, I: IntoIterator<Item = W>>(&self, f: impl Fn(V) -> I + Send + Sync + 'static) -> DStream<(K, W)> {
        let f = Arc::new(f);
        self.derive("flatMapValues", move |rdd, _| {
            let f = f.clone();
            rdd.flat_map_values(move |value| f(value))
        })
    }

    /// One pair per key and batch.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> Self {
        self.reduce_by_key_with_partitions(f, shuffle::partitions())
    }

    pub fn reduce_by_key_with_partitions(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static, num_partitions: usize) -> Self {
        let f = Arc::new(f);
        self.keyed("reduceByKey", num_partitions).derive("reduceByKey", move |rdd, _| {
            let f = f.clone();
            rdd.reduce_by_key_with_partitions(move |a, b| f(a, b), num_partitions)
        })
    }

    /// All values of a key in a batch.
    pub fn group_by_key(&self) -> DStream<(K, Vec<V>)> {
        self.group_by_key_with_partitions(shuffle::partitions())
    }

    pub fn group_by_key_with_partitions(&self, num_partitions: usize) -> DStream<(K, Vec<V>)> {
        self.keyed("groupByKey", num_partitions).derive("groupByKey", move |rdd, _| rdd.group_by_key_with_partitions(num_partitions))
    }

    /// One combination per key and batch: `create` from the first value, `merge_value` with each further one of a
    /// partition, `merge_combiners` with those of the other partitions.
    pub fn combine_by_key<C: Data>(
        &self,
        create: impl Fn(V) -> C + Send + Sync + 'static,
        merge_value: impl Fn(C, V) -> C + Send + Sync + 'static,
        merge_combiners: impl Fn(C, C) -> C + Send + Sync + 'static,
    ) -> DStream<(K, C)> {
        self.combine_by_key_with_partitions(create, merge_value, merge_combiners, shuffle::partitions())
    }

    pub fn combine_by_key_with_partitions<C: Data>(
        &self,
        create: impl Fn(V) -> C + Send + Sync + 'static,
        merge_value: impl Fn(C, V) -> C + Send + Sync + 'static,
        merge_combiners: impl Fn(C, C) -> C + Send + Sync + 'static,
        num_partitions: usize,
    ) -> DStream<(K, C)> {
        let functions = Arc::new((create, merge_value, merge_combiners));
        self.keyed("combineByKey", num_partitions).derive("combineByKey", move |rdd, _| {
            let [f, g, h] = [functions.clone(), functions.clone(), functions.clone()];
            rdd.combine_by_key_with_partitions(move |v| f.0(v), move |c, v| g.1(c, v), move |a, b| h.2(a, b), num_partitions)
        })
    }

    /// Says it at the start, not in the first batch, when the number of partitions is impossible.
    pub(super) fn keyed(&self, op: &str, num_partitions: usize) -> &Self {
        if num_partitions == 0 {
            self.graph.lock().error(format!("{op}: the number of partitions (0) must be positive"));
        }
        self
    }
}
