//! `mapWithState`: a state per key that is touched only when the key has a new value, or timed out.
//!
//! ```no_run
//! # use stream_engine::dstream::{DStream, State, StateSpec};
//! # fn count(words: DStream<(String, u64)>) {
//! let count = |word: String, one: Option<u64>, state: &mut State<u64>| {
//!     let sum = one.unwrap_or(0) + state.get_option().copied().unwrap_or(0);
//!     state.update(sum);
//!     (word, sum)
//! };
//! words.map_with_state(StateSpec::function(count)).print();
//! # }
//! ```

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::FutureExt;

use super::DStream;
use super::graph::{AnyNode, Recipe};
use super::rdd::{Computed, Data, Key, Rdd, Within, on_all_cores};
use super::shuffle::{self, Table};
use super::state::{Durable, StateValue, read, write};
use super::time::Time;
use crate::batch::clock::interval_ms;

/// Spark's `DEFAULT_CHECKPOINT_DURATION_MULTIPLIER`: slides between two looks for keys that timed out.
const CHECKPOINT_SLIDES: i64 = 10;

/// A key's state while its function runs. What Spark refuses panics, which fails the batch.
pub struct State<S> {
    value: Option<S>,
    updated: bool,
    removed: bool,
    timing_out: bool,
}

impl<S> State<S> {
    fn new(value: Option<S>, timing_out: bool) -> Self {
        Self { value, updated: false, removed: false, timing_out }
    }

    /// The key has a state.
    pub fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// Panics when there is none; see [`Self::exists`] and [`Self::get_option`].
    pub fn get(&self) -> &S {
        self.value.as_ref().expect("State is not set")
    }

    pub fn get_option(&self) -> Option<&S> {
        self.value.as_ref()
    }

    /// Sets the state. Panics after [`Self::remove`] and for a key that timed out.
    pub fn update(&mut self, state: S) {
        assert!(!self.removed, "Cannot update the state after it has been removed");
        assert!(!self.timing_out, "Cannot update the state that is timing out");
        self.value = Some(state);
        self.updated = true;
    }

    /// Forgets the key. Panics when that was done already, and for a key that timed out, which is forgotten by itself.
    pub fn remove(&mut self) {
        assert!(!self.timing_out, "Cannot remove the state that is timing out");
        assert!(!self.removed, "Cannot remove the state that has already been removed");
        self.value = None;
        self.updated = false;
        self.removed = true;
    }

    /// The key has had no value for longer than the timeout: the function runs without one, for the last time.
    pub fn is_timing_out(&self) -> bool {
        self.timing_out
    }
}

type Function<K, V, S, E> = Arc<dyn Fn(Time, K, Option<V>, &mut State<S>) -> Option<E> + Send + Sync>;

/// What `map_with_state` does with a key's value and state.
pub struct StateSpec<K, V, S, E> {
    function: Function<K, V, S, E>,
    initial: Option<Rdd<(K, S)>>,
    num_partitions: Option<usize>,
    timeout: Option<Duration>,
}

impl<K: Key, V: Data, S: Data, E: Data> StateSpec<K, V, S, E> {
    /// `f` runs for each value of a batch, and without a value for a key that timed out. What it gives is the stream's value.
    pub fn function(f: impl Fn(K, Option<V>, &mut State<S>) -> E + Send + Sync + 'static) -> Self {
        Self::function_with_time(move |_, key, value, state| Some(f(key, value, state)))
    }

    /// As [`Self::function`], with the batch's time; where `f` gives `None` the stream has no value.
    pub fn function_with_time(f: impl Fn(Time, K, Option<V>, &mut State<S>) -> Option<E> + Send + Sync + 'static) -> Self {
        Self { function: Arc::new(f), initial: None, num_partitions: None, timeout: None }
    }

    /// States before the first batch; they count as updated by it. Of several pairs of one key the last counts.
    pub fn initial_state(self, initial: Rdd<(K, S)>) -> Self {
        Self { initial: Some(initial), ..self }
    }

    /// Partitions of the stream and its states; default one per core, at least two.
    pub fn num_partitions(self, num_partitions: usize) -> Self {
        Self { num_partitions: Some(num_partitions), ..self }
    }

    /// A key that had no value for longer than this is forgotten, after its function ran for it once more. As in Spark such
    /// keys are looked for every tenth batch only ([`MapWithStateDStream::checkpoint`] changes that), so that a key may stay
    /// longer than its timeout. Default: never.
    pub fn timeout(self, idle: Duration) -> Self {
        Self { timeout: Some(idle), ..self }
    }
}

/// What a key has.
#[derive(Clone)]
struct Tracked<S> {
    state: S,
    /// Time of the batch in which the state was last set, or, with a timeout, seen.
    updated_ms: i64,
}

/// A partition after a batch.
struct Partition<K, S, E> {
    states: Arc<Table<K, Tracked<S>>>,
    /// What the function gave in this batch.
    mapped: Arc<Vec<E>>,
}

impl<K, S, E> Clone for Partition<K, S, E> {
    fn clone(&self) -> Self {
        Self { states: self.states.clone(), mapped: self.mapped.clone() }
    }
}

impl<K: Key, S: Data, E: Data> Partition<K, S, E> {
    /// Before a batch, with these states.
    fn of(states: impl IntoIterator<Item = (K, Tracked<S>)>) -> Self {
        let mut table = shuffle::table();
        table.extend(states);
        Self { states: Arc::new(table), mapped: Arc::default() }
    }
}

/// What the functions of `map_with_state` gave, as a stream; and their states.
pub struct MapWithStateDStream<K, S, E> {
    mapped: DStream<E>,
    snapshots: DStream<(K, S)>,
    checkpoint_ms: Arc<AtomicI64>,
}

impl<K, S, E> Clone for MapWithStateDStream<K, S, E> {
    fn clone(&self) -> Self {
        Self { mapped: self.mapped.clone(), snapshots: self.snapshots.clone(), checkpoint_ms: self.checkpoint_ms.clone() }
    }
}

impl<K, S, E> Deref for MapWithStateDStream<K, S, E> {
    type Target = DStream<E>;

    fn deref(&self) -> &DStream<E> {
        &self.mapped
    }
}

impl<K: Data, S: Data, E: Data> MapWithStateDStream<K, S, E> {
    /// All keys with their states, after each batch.
    pub fn state_snapshots(&self) -> DStream<(K, S)> {
        self.snapshots.clone()
    }

    /// How often keys that timed out are looked for: at times that are a multiple of this after the start. A multiple of the
    /// stream's slide; default ten slides.
    pub fn checkpoint(&self, interval: Duration) -> Self {
        self.mapped.check_checkpoint(interval);
        self.checkpoint_ms.store(interval_ms(interval), Relaxed);
        self.clone()
    }

    /// See [`DStream::uid`].
    pub fn uid(&self, name: &str) -> Self {
        self.mapped.uid(name);
        self.clone()
    }
}

impl<K: Key + StateValue, V: Data> DStream<(K, V)> {
    /// Runs the specification's function for each pair of a batch, with its key's state, and for keys that timed out. Needs a
    /// checkpoint.
    pub fn map_with_state<S: StateValue, E: StateValue>(&self, spec: StateSpec<K, V, S, E>) -> MapWithStateDStream<K, S, E> {
        let op = "mapWithState";
        let slide_ms = self.node.slide_ms();
        let partitions = spec.num_partitions.unwrap_or(shuffle::partitions());
        let uid = self.keyed(op, partitions).graph.lock().uid(op);
        let partitions = partitions.max(1);
        let checkpoint_ms = Arc::new(AtomicI64::new(slide_ms * CHECKPOINT_SLIDES));
        let states = {
            let parent = self.node.clone();
            let initial = spec.initial.unwrap_or_else(Rdd::empty).cache();
            let (function, timeout_ms) = (spec.function, spec.timeout.map(interval_ms));
            let (checkpoint_ms, progress) = (checkpoint_ms.clone(), self.graph.lock().progress.clone());
            let recipe = Recipe::new("mapWithState.states", slide_ms, vec![parent.clone()], move |time_ms, before| {
                let since_zero_ms = time_ms - progress.zero.get().copied().unwrap_or(time_ms);
                let look = since_zero_ms % checkpoint_ms.load(Relaxed) == 0;
                let step = Step {
                    time_ms,
                    function: function.clone(),
                    timeout_ms,
                    idle_before_ms: timeout_ms.filter(|_| look).map(|timeout_ms| time_ms - timeout_ms),
                };
                let values = parent.at(time_ms)?.unwrap_or_else(Rdd::empty);
                Ok(Some(stepped(before, initial.clone(), values, partitions, step)))
            });
            let encode = |partition: &Partition<K, S, E>, bytes: &mut Vec<u8>| {
                partition.states.iter().try_for_each(|(key, tracked)| write(&(key, &tracked.state, tracked.updated_ms), bytes))
            };
            let decode = move |bytes: &[u8]| {
                let states = read(bytes)?.into_iter().map(|(key, state, updated_ms)| (key, Tracked { state, updated_ms })).collect();
                let placed = shuffle::place(states, partitions).into_iter();
                Ok(Rdd::from_partitions(placed.map(|states| vec![Partition::of(states)]).collect()))
            };
            self.add(recipe.durable(Durable::new(uid.clone(), encode, decode))).node
        };
        let mapped = {
            let parent = states.clone();
            let recipe = Recipe::new(op, slide_ms, vec![parent.clone()], move |time_ms, _| {
                let Some(states) = parent.at(time_ms)? else { return Ok(None) };
                // Lets go of the states: a window remembers this stream's batches longer.
                let compute = async move { Ok(states.collect().await?.into_iter().map(|partition| partition.mapped).collect()) };
                Ok(Some(Rdd::over(Computed::shared(partitions, compute.boxed()))))
            });
            let decode = |bytes: &[u8]| Ok(Rdd::from_partitions(vec![read(bytes)?]));
            self.add(recipe.durable(Durable::new(uid.clone(), write, decode).beside("/mapped")))
        };
        let snapshots = {
            let recipe = Recipe::new("stateSnapshots", slide_ms, vec![states.clone()], move |time_ms, _| {
                let within = |rdd: Rdd<Partition<K, S, E>>| Within {
                    parent: rdd.data,
                    open: |partition: &Partition<K, S, E>, each| {
                        partition.states.iter().for_each(|(key, tracked)| each(&(key.clone(), tracked.state.clone())));
                    },
                    len: |partition| partition.states.len(),
                };
                Ok(states.at(time_ms)?.map(|rdd| Rdd::over(within(rdd))))
            });
            self.add(recipe.durable(Durable::pairs(uid, partitions).beside("/snapshots")))
        };
        MapWithStateDStream { mapped, snapshots, checkpoint_ms }
    }
}

/// What a batch does to its partitions.
struct Step<K, V, S, E> {
    time_ms: i64,
    function: Function<K, V, S, E>,
    timeout_ms: Option<i64>,
    /// Keys that were not updated since then are timing out in this batch.
    idle_before_ms: Option<i64>,
}

fn stepped<K: Key, V: Data, S: Data, E: Data>(
    before: Option<Rdd<Partition<K, S, E>>>,
    initial: Rdd<(K, S)>,
    values: Rdd<(K, V)>,
    partitions: usize,
    step: Step<K, V, S, E>,
) -> Rdd<Partition<K, S, E>> {
    let compute = async move {
        let before: Vec<Partition<K, S, E>> = match before {
            Some(before) => before.collect().await?,
            None => {
                let tracked = |(key, state)| (key, Tracked { state, updated_ms: step.time_ms });
                let initial = shuffle::scatter(&initial, partitions).await?;
                initial.into_iter().map(|states| Partition::of(states.into_iter().map(tracked))).collect()
            }
        };
        let step = Arc::new(step);
        let work = before.into_iter().zip(shuffle::scatter(&values, partitions).await?).map(|(before, values)| {
            let step = step.clone();
            async move { Ok(vec![step.partition(&before, values)]) }.boxed()
        });
        on_all_cores(work.collect()).await
    };
    Rdd::over(Computed::new(partitions, compute.boxed()))
}

impl<K: Key, V: Data, S: Data, E: Data> Step<K, V, S, E> {
    fn partition(&self, before: &Partition<K, S, E>, values: Vec<(K, V)>) -> Partition<K, S, E> {
        if values.is_empty() && self.idle_before_ms.is_none() {
            return Partition { states: before.states.clone(), mapped: Arc::default() };
        }
        let mut states = Table::clone(&before.states);
        let mut mapped = Vec::new();
        for (key, value) in values {
            let (value_before, updated_ms) = states.remove(&key).map_or((None, 0), |tracked| (Some(tracked.state), tracked.updated_ms));
            let mut state = State::new(value_before, false);
            mapped.extend((self.function)(Time(self.time_ms), key.clone(), Some(value), &mut state));
            // With a timeout it is enough to be seen.
            let touched = state.updated || self.timeout_ms.is_some();
            if let Some(state) = state.value {
                states.insert(key, Tracked { state, updated_ms: if touched { self.time_ms } else { updated_ms } });
            }
        }
        if let Some(idle_before_ms) = self.idle_before_ms {
            for (key, tracked) in states.extract_if(|_, tracked| tracked.updated_ms < idle_before_ms) {
                let mut state = State::new(Some(tracked.state), true);
                mapped.extend((self.function)(Time(self.time_ms), key, None, &mut state));
            }
        }
        Partition { states: Arc::new(states), mapped: Arc::new(mapped) }
    }
}
