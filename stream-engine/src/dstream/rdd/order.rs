//! Order and chance: sorting, numbering, sampling.

use std::{iter, sync::Arc};

use futures::FutureExt;

use super::{Computed, Data, Key, Rdd, on_all_cores};

impl<T: Data> Rdd<T> {
    /// Every value of a partition comes before those of the next one; values with the same key keep their order. As many
    /// partitions as before.
    pub fn sort_by<O: Ord + Send + 'static>(&self, key: impl Fn(&T) -> O + Send + Sync + 'static, ascending: bool) -> Self {
        let (parent, key) = (self.data.clone(), Arc::new(key));
        let partitions = parent.count().max(1);
        let compute = async move {
            let sort = move |values: &mut Vec<(O, T)>| {
                values.sort_by(|(a, _), (b, _)| if ascending { a.cmp(b) } else { b.cmp(a) });
            };
            let work = (0..parent.count()).map(|partition| {
                let (parent, key) = (parent.clone(), key.clone());
                async move {
                    let mut values = Vec::new();
                    parent.for_each(partition, &mut |value| values.push((key(&value), value))).await?;
                    sort(&mut values);
                    Ok(values)
                }
                .boxed()
            });
            let sorted = on_all_cores(work.collect()).await?;
            let merge = async move {
                // The sort finds the sorted runs and merges them.
                let mut values: Vec<(O, T)> = sorted.into_iter().flatten().collect();
                sort(&mut values);
                let size = values.len().div_ceil(partitions).max(1);
                let mut values = values.into_iter().map(|(_, value)| value);
                Ok((0..partitions).map(|_| values.by_ref().take(size).collect()).collect())
            };
            Ok(on_all_cores(vec![merge.boxed()]).await?.pop().unwrap_or_default())
        };
        Self::over(Computed::new(partitions, compute.boxed()))
    }

    /// Each value with its position in the whole, from 0.
    pub fn zip_with_index(&self) -> Rdd<(T, u64)> {
        let rdd = self.clone();
        let compute = async move {
            let mut index = 0;
            let mut numbered = Vec::new();
            for values in rdd.collect_partitions().await? {
                let first = index;
                index += values.len() as u64;
                numbered.push(values.into_iter().zip(first..).collect());
            }
            Ok(numbered)
        };
        Rdd::over(Computed::new(self.num_partitions(), compute.boxed()))
    }

    /// A part of the values, by chance: about `fraction` of them (0 to 1), or with replacement each as often as a Poisson
    /// process of mean `fraction` says. The same `seed` over the same partitions gives the same sample, also when the
    /// batch is run again.
    pub fn sample(&self, with_replacement: bool, fraction: f64, seed: u64) -> Self {
        let fits = fraction >= 0.0 && fraction.is_finite() && (with_replacement || fraction <= 1.0);
        assert!(fits, "sample: the fraction ({fraction}) must be from 0 to 1, or at least 0 with replacement");
        self.map_partitions_with_index(move |partition, values| {
            let mut chance = Chance(seed ^ (partition as u64).wrapping_mul(STEP));
            values.flat_map(move |value| {
                let times = if with_replacement { chance.poisson(fraction) } else { usize::from(chance.next() < fraction) };
                iter::repeat_n(value, times)
            })
        })
    }
}

impl<K: Key + Ord, V: Data> Rdd<(K, V)> {
    /// As [`Rdd::sort_by`] by the key.
    pub fn sort_by_key(&self, ascending: bool) -> Self {
        self.sort_by(|(key, _)| key.clone(), ascending)
    }
}

/// The golden ratio of 2^64, by which SplitMix64 steps.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: as good as a sample needs, and the same everywhere.
struct Chance(u64);

impl Chance {
    /// From 0 to 1, without 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// How many of the gaps between events fit into one unit of time.
    fn poisson(&mut self, mean: f64) -> usize {
        let mut events = 0;
        let mut time = 0.0;
        loop {
            time -= (1.0 - self.next()).ln() / mean;
            // With a mean of 0 the gap is endless, or not a number.
            if time > 1.0 || time.is_nan() {
                return events;
            }
            events += 1;
        }
    }
}
