//! `updateStateByKey`: a state per key that is updated in every batch, whether the key has new values or not.
//!
//! Each form calls its function for every key that has a state or new values, in every batch, also in those that fell
//! into a time when the program was away. A key whose state is `None` afterwards is forgotten. The stream's batches are
//! all states there are. Needs a checkpoint.

use std::{sync::Arc, vec};

use futures::FutureExt;

use super::DStream;
use super::graph::{AnyNode, Recipe};
use super::rdd::{Computed, Data, Key, Rdd, on_all_cores};
use super::shuffle;
use super::state::{Durable, StateValue};
use super::time::Time;

/// A key, its values of the batch (none in most batches), and its state, if it has one.
pub type StateUpdate<K, V, S> = (K, Vec<V>, Option<S>);

/// From a partition's keys to those that have a state.
type Update<K, V, S> = Arc<dyn Fn(Time, Vec<StateUpdate<K, V, S>>) -> Vec<(K, S)> + Send + Sync>;

impl<K: Key + StateValue, V: Data> DStream<(K, V)> {
    /// `f` gets the key's new values and its state, and gives its new state.
    pub fn update_state_by_key<S: StateValue>(
        &self,
        f: impl Fn(Vec<V>, Option<S>) -> Option<S> + Send + Sync + 'static,
    ) -> DStream<(K, S)> {
        self.update_state_by_key_with_time(move |_, _, values, state| f(values, state), None)
    }

    /// As [`Self::update_state_by_key`]; the keys of `initial` have these states before the first batch. Of several pairs of
    /// one key the first counts.
    pub fn update_state_by_key_with_initial_state<S: StateValue>(
        &self,
        f: impl Fn(Vec<V>, Option<S>) -> Option<S> + Send + Sync + 'static,
        initial: Rdd<(K, S)>,
    ) -> DStream<(K, S)> {
        self.update_state_by_key_with_time(move |_, _, values, state| f(values, state), Some(initial))
    }

    /// As [`Self::update_state_by_key`], with the batch's time and the key.
    pub fn update_state_by_key_with_time<S: StateValue>(
        &self,
        f: impl Fn(Time, K, Vec<V>, Option<S>) -> Option<S> + Send + Sync + 'static,
        initial: Option<Rdd<(K, S)>>,
    ) -> DStream<(K, S)> {
        let update = move |time, updates: Vec<StateUpdate<K, V, S>>| {
            let each = |(key, values, state): StateUpdate<K, V, S>| Some((key.clone(), f(time, key, values, state)?));
            updates.into_iter().filter_map(each).collect()
        };
        self.update_state(Arc::new(update), initial, shuffle::partitions())
    }

    /// The form over whole partitions: `f` gets every key of a partition and gives the states that there are from now on,
    /// which may be of other keys, as long as these are in the same partition (another one would not find them).
    pub fn update_state_by_key_with_partitions<S: StateValue, I: IntoIterator<Item = (K, S)>>(
        &self,
        f: impl Fn(Time, vec::IntoIter<StateUpdate<K, V, S>>) -> I + Send + Sync + 'static,
        initial: Option<Rdd<(K, S)>>,
        num_partitions: usize,
    ) -> DStream<(K, S)> {
        let update = move |time, updates: Vec<StateUpdate<K, V, S>>| f(time, updates.into_iter()).into_iter().collect();
        self.keyed("updateStateByKey", num_partitions).update_state(Arc::new(update), initial, num_partitions.max(1))
    }

    fn update_state<S: StateValue>(&self, update: Update<K, V, S>, initial: Option<Rdd<(K, S)>>, partitions: usize) -> DStream<(K, S)> {
        let op = "updateStateByKey";
        let uid = self.graph.lock().uid(op);
        let parent = self.node.clone();
        let initial = initial.unwrap_or_else(Rdd::empty).cache();
        let recipe = Recipe::new(op, self.node.slide_ms(), vec![parent.clone()], move |time_ms, before| {
            let before = before.unwrap_or_else(|| initial.reduce_by_key_with_partitions(|first, _| first, partitions));
            let values = parent.at(time_ms)?.unwrap_or_else(Rdd::empty);
            Ok(Some(updated(before, values, partitions, update.clone(), Time(time_ms))))
        });
        self.add(recipe.durable(Durable::pairs(uid, partitions)))
    }
}

/// `before` is of `partitions` partitions by key.
fn updated<K: Key, V: Data, S: Data>(
    before: Rdd<(K, S)>,
    values: Rdd<(K, V)>,
    partitions: usize,
    update: Update<K, V, S>,
    time: Time,
) -> Rdd<(K, S)> {
    let compute = async move {
        let work = shuffle::scatter(&values, partitions).await?.into_iter().enumerate().map(|(partition, values)| {
            let (before, update) = (before.data.clone(), update.clone());
            async move {
                let mut groups: shuffle::Table<K, Vec<V>> = shuffle::table();
                values.into_iter().for_each(|(key, value)| groups.entry(key).or_default().push(value));
                let mut updates = Vec::new();
                before
                    .for_each(partition, &mut |(key, state)| {
                        let values = groups.remove(&key).unwrap_or_default();
                        updates.push((key, values, Some(state)));
                    })
                    .await?;
                updates.extend(groups.into_iter().map(|(key, values)| (key, values, None)));
                Ok(update(time, updates))
            }
            .boxed()
        });
        on_all_cores(work.collect()).await
    };
    Rdd::over(Computed::new(partitions, compute.boxed()))
}
