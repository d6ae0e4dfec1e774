//! The graph behind the streams: which node computes what, for how long it must be remembered, and what is wrong with it.
//!
//! A node computes its [`Rdd`] of a time once and remembers it as long as windows above it need it. Times are valid when
//! they are a multiple of the node's slide after `zero`, which is one interval before the first batch.
//!
//! Nodes with state ([`Durable`]) are computed at each of their times, whoever asks; what they had outlives the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;

use super::context::StreamingContextState;
use super::input::Input;
use super::rdd::{Data, Rdd};
use super::state::{Durable, Uid};
use super::time::Time;
use crate::batch::{BatchContext, SourceKind};
use crate::checkpoint::CheckpointConfig;
use crate::job::{JobSettings, ListenerBus};

/// Where a running program stands; shared by its nodes.
#[derive(Default)]
pub(super) struct Progress {
    /// One interval before the first batch.
    pub(super) zero: OnceLock<i64>,
    /// The time that runs, or ran last.
    pub(super) newest: AtomicI64,
    /// The batch that runs, or ran last.
    pub(super) batch: Mutex<Option<BatchContext>>,
}

/// A node, whatever it carries.
pub(super) trait AnyNode: Send + Sync {
    fn id(&self) -> usize;
    fn slide_ms(&self) -> i64;
    fn parents(&self) -> &[Arc<dyn AnyNode>];
    /// Somebody uses the values.
    fn consumed(&self);
    /// Windows read the same values several times.
    fn keep_values(&self);
    /// Keep what is computed at least this long.
    fn remember(&self, ms: i64);
    /// How long it is kept, measured from the node's newest time.
    fn remembered_ms(&self) -> i64;
    /// Forgets what nobody needs any more after the batch at `time_ms`.
    fn forget_before(&self, time_ms: i64);
    fn forget_all(&self);
    fn describe(&self) -> String;
    /// Windows over this stream, as they are in a checkpoint's fingerprint.
    fn window(&self) -> Option<String>;
    /// The name of its state, when it has some.
    fn state_name(&self) -> Option<String>;
    /// Names the state. False when there is none, or when it has another name.
    fn name_state(&self, name: &str) -> bool;
    /// Computes the state at `time_ms` where the next time, `next_ms`, or a window needs it.
    fn settle(&self, time_ms: i64, next_ms: i64) -> BoxFuture<'static, anyhow::Result<()>>;
    /// What must not be lost when `next_ms` is the next time.
    fn save(&self, next_ms: i64) -> anyhow::Result<BTreeMap<i64, Bytes>>;
    fn load(&self, saved: &BTreeMap<i64, Bytes>) -> anyhow::Result<()>;
}

/// Gets the time and, where there is one, what the node had at its time before.
type Compute<T> = Box<dyn Fn(i64, Option<Rdd<T>>) -> anyhow::Result<Option<Rdd<T>>> + Send + Sync>;

pub(super) struct Node<T> {
    id: usize,
    recipe: Recipe<T>,
    remember_ms: AtomicI64,
    consumers: AtomicUsize,
    cached: AtomicBool,
    progress: Arc<Progress>,
    generated: Mutex<BTreeMap<i64, Option<Rdd<T>>>>,
}

/// What a node is made of.
pub(super) struct Recipe<T> {
    op: String,
    slide_ms: i64,
    /// How much further back the parents are needed than this node.
    window_ms: i64,
    parents: Vec<Arc<dyn AnyNode>>,
    compute: Compute<T>,
    durable: Option<Durable<T>>,
}

impl<T> Recipe<T> {
    pub(super) fn new(
        op: impl Into<String>,
        slide_ms: i64,
        parents: Vec<Arc<dyn AnyNode>>,
        compute: impl Fn(i64, Option<Rdd<T>>) -> anyhow::Result<Option<Rdd<T>>> + Send + Sync + 'static,
    ) -> Self {
        Self { op: op.into(), slide_ms, window_ms: 0, parents, compute: Box::new(compute), durable: None }
    }

    pub(super) fn window(self, window_ms: i64) -> Self {
        Self { window_ms, ..self }
    }

    pub(super) fn durable(self, durable: Durable<T>) -> Self {
        Self { durable: Some(durable), ..self }
    }
}

impl<T: Data> Node<T> {
    /// The values at a time; `None` where the stream has none (not a multiple of its slide).
    pub(super) fn at(&self, time_ms: i64) -> anyhow::Result<Option<Rdd<T>>> {
        let Some(zero_ms) = self.progress.zero.get() else { return Ok(None) };
        if time_ms <= *zero_ms || (time_ms - zero_ms) % self.recipe.slide_ms != 0 {
            return Ok(None);
        }
        let before = {
            let generated = self.generated.lock();
            if let Some(rdd) = generated.get(&time_ms) {
                return Ok(rdd.clone());
            }
            generated.get(&(time_ms - self.recipe.slide_ms)).cloned().flatten()
        };
        let rdd = (self.recipe.compute)(time_ms, before)?.map(|rdd| self.kept(rdd));
        Ok(self.generated.lock().entry(time_ms).or_insert(rdd).clone())
    }

    /// The values at every time of the node in `(after_ms, until_ms]`.
    pub(super) fn slice(&self, after_ms: i64, until_ms: i64) -> anyhow::Result<Vec<Rdd<T>>> {
        let Some(zero_ms) = self.progress.zero.get() else { return Ok(Vec::new()) };
        let first = after_ms.max(*zero_ms);
        let steps = (first - zero_ms).div_euclid(self.recipe.slide_ms) + 1;
        let mut time_ms = zero_ms + steps * self.recipe.slide_ms;
        let mut found = Vec::new();
        while time_ms <= until_ms {
            found.extend(self.at(time_ms)?);
            time_ms += self.recipe.slide_ms;
        }
        Ok(found)
    }

    /// Sources: the values of a time are given, not computed.
    pub(super) fn put(&self, time_ms: i64, rdd: Rdd<T>) {
        let rdd = self.kept(rdd);
        self.generated.lock().insert(time_ms, Some(rdd));
    }

    fn kept(&self, rdd: Rdd<T>) -> Rdd<T> {
        if self.cached.load(Relaxed) || self.consumers.load(Relaxed) > 1 { rdd.cache() } else { rdd }
    }

    pub(super) fn op(&self) -> &str {
        &self.recipe.op
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl<T: Data> AnyNode for Node<T> {
    fn id(&self) -> usize {
        self.id
    }

    fn slide_ms(&self) -> i64 {
        self.recipe.slide_ms
    }

    fn parents(&self) -> &[Arc<dyn AnyNode>] {
        &self.recipe.parents
    }

    fn consumed(&self) {
        self.consumers.fetch_add(1, Relaxed);
    }

    fn keep_values(&self) {
        self.cached.store(true, Relaxed);
    }

    fn remember(&self, ms: i64) {
        if self.remember_ms.fetch_max(ms, Relaxed) >= ms {
            return;
        }
        // What has state is not computed again: what it had is kept itself.
        let own = if self.recipe.durable.is_some() { self.recipe.slide_ms } else { self.remember_ms.load(Relaxed) };
        self.recipe.parents.iter().for_each(|parent| parent.remember(own + self.recipe.window_ms));
    }

    fn remembered_ms(&self) -> i64 {
        self.remember_ms.load(Relaxed)
    }

    fn forget_before(&self, time_ms: i64) {
        let oldest = time_ms - self.remember_ms.load(Relaxed);
        self.generated.lock().retain(|time, _| *time > oldest);
    }

    fn forget_all(&self) {
        self.generated.lock().clear();
    }

    fn describe(&self) -> String {
        let slide = humantime::format_duration(std::time::Duration::from_millis(self.recipe.slide_ms.unsigned_abs()));
        let state = self.state_name().map(|name| format!(", state `{name}`")).unwrap_or_default();
        format!("[{}] {} every {slide}{state}", self.id, self.recipe.op)
    }

    fn window(&self) -> Option<String> {
        (self.recipe.window_ms > 0).then(|| self.recipe.op.clone())
    }

    fn state_name(&self) -> Option<String> {
        self.recipe.durable.as_ref().map(Durable::name)
    }

    fn name_state(&self, name: &str) -> bool {
        self.recipe.durable.as_ref().is_some_and(|durable| durable.uid.give(name))
    }

    fn settle(&self, time_ms: i64, next_ms: i64) -> BoxFuture<'static, anyhow::Result<()>> {
        let needed = |durable: &Durable<T>| durable.chained || time_ms > next_ms - self.remembered_ms();
        let rdd = if self.recipe.durable.as_ref().is_some_and(needed) { self.at(time_ms) } else { Ok(None) };
        async move {
            match rdd? {
                Some(rdd) => rdd.data.evaluate().await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn save(&self, next_ms: i64) -> anyhow::Result<BTreeMap<i64, Bytes>> {
        let Some(durable) = &self.recipe.durable else { return Ok(BTreeMap::new()) };
        let generated: BTreeMap<i64, Rdd<T>> =
            self.generated.lock().iter().filter_map(|(time_ms, rdd)| Some((*time_ms, rdd.clone()?))).collect();
        let newest = generated.keys().next_back().copied();
        let oldest = next_ms - self.remembered_ms();
        let needed = |time_ms: &i64| *time_ms > oldest || (durable.chained && Some(*time_ms) == newest);
        durable.save(&generated.into_iter().filter(|(time_ms, _)| needed(time_ms)).collect())
    }

    fn load(&self, saved: &BTreeMap<i64, Bytes>) -> anyhow::Result<()> {
        if let Some(durable) = &self.recipe.durable {
            let times = durable.load(saved)?;
            self.generated.lock().extend(times.into_iter().map(|(time_ms, rdd)| (time_ms, Some(rdd))));
        }
        Ok(())
    }
}

/// An output operation: what to run at a time, or nothing.
pub(super) struct Output {
    pub(super) name: String,
    /// `print at src/main.rs:20`
    pub(super) description: String,
    pub(super) node: Arc<dyn AnyNode>,
    /// A batch that comes again leaves it as it is, also after a crash.
    pub(super) exactly_once: bool,
    pub(super) at: Box<dyn Fn(Time) -> anyhow::Result<Option<Job>> + Send + Sync>,
}

/// One output operation at one time.
pub(super) struct Job {
    pub(super) work: BoxFuture<'static, anyhow::Result<()>>,
    /// Rows that the output computed.
    pub(super) rows: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Everything that was declared.
#[derive(Default)]
pub(super) struct Graph {
    pub(super) progress: Arc<Progress>,
    pub(super) nodes: Vec<Arc<dyn AnyNode>>,
    pub(super) inputs: Vec<Arc<dyn Input>>,
    pub(super) outputs: Vec<Arc<Output>>,
    /// Found while declaring; reported by `start`.
    pub(super) errors: Vec<String>,
    pub(super) state: StreamingContextState,
    /// Every stream is remembered at least this long.
    pub(super) remember_ms: i64,
    /// Outputs that are not are refused.
    pub(super) exactly_once: bool,
    /// By operation, how many streams with state there are.
    with_state: BTreeMap<String, usize>,
    pub(super) listeners: Arc<ListenerBus>,
    /// How stores on the network are reached.
    pub(super) stores: Arc<CheckpointConfig>,
}

impl Graph {
    pub(super) fn node<T: Data>(&mut self, recipe: Recipe<T>) -> Arc<Node<T>> {
        self.expect_open(&recipe.op);
        recipe.parents.iter().for_each(|parent| parent.consumed());
        let node = Arc::new(Node {
            id: self.nodes.len(),
            recipe,
            remember_ms: AtomicI64::new(0),
            consumers: AtomicUsize::new(0),
            cached: AtomicBool::new(false),
            progress: self.progress.clone(),
            generated: Mutex::default(),
        });
        self.nodes.push(node.clone());
        node
    }

    /// Panics, as Spark throws, when the program runs or ran: what is added then would never run.
    pub(super) fn expect_open(&self, op: &str) {
        let when = match self.state {
            StreamingContextState::Initialized => return,
            StreamingContextState::Active => "starting",
            StreamingContextState::Stopped => "stopping",
        };
        panic!("{op}: Adding new inputs, transformations, and output operations after {when} a context is not supported");
    }

    /// Names the state of the next stream of this kind.
    pub(super) fn uid(&mut self, op: &str) -> Arc<Uid> {
        let n = self.with_state.entry(op.into()).or_default();
        let uid = Uid::new(format!("{op}-{n}"));
        *n += 1;
        Arc::new(uid)
    }

    /// Two streams cannot share their state's name.
    pub(super) fn check_names(&mut self) {
        let mut names = BTreeSet::new();
        let states = self.nodes.iter().filter_map(|node| node.state_name()).filter(|name| !name.contains('/'));
        let twice: Vec<String> = states.filter(|name| !names.insert(name.clone())).collect();
        twice.into_iter().for_each(|name| self.error(format!("uid({name}): two streams have this name")));
    }

    pub(super) fn error(&mut self, message: String) {
        if !self.errors.contains(&message) {
            self.errors.push(message);
        }
    }

    /// What keeps an output from being exactly-once that is to be so.
    pub(super) fn check_guarantees(&mut self, settings: &JobSettings) {
        let mut errors = Vec::new();
        for output in &self.outputs {
            let cannot = |why: String| format!("output {} cannot be exactly-once: {why}", output.description);
            if self.exactly_once && !output.exactly_once {
                let why =
                    "its function would run again for a batch that comes again; write by hbase_bulk_put, or leave require_exactly_once out";
                errors.push(cannot(why.into()));
            }
            if self.exactly_once || output.exactly_once {
                let needed = needed(vec![output.node.clone()]);
                for input in self.inputs.iter().filter(|input| needed.contains(&input.node().id())) {
                    let SourceKind::Local(log) = &input.spec().kind else { continue };
                    errors.extend(log.loses(settings).map(|why| cannot(format!("{}: {why}", input.spec().name))));
                }
            }
        }
        errors.into_iter().for_each(|error| self.error(error));
    }

    /// Nodes that an output needs, parents before children.
    pub(super) fn used(&self) -> Vec<Arc<dyn AnyNode>> {
        let ids = needed(self.outputs.iter().map(|output| output.node.clone()).collect());
        self.nodes.iter().filter(|node| ids.contains(&node.id())).cloned().collect()
    }

    pub(super) fn plan(&self) -> String {
        let nodes = self.nodes.iter().map(|node| node.describe());
        let outputs = self.outputs.iter().map(|output| format!("output {} ← {}", output.name, output.node.describe()));
        nodes.chain(outputs).collect::<Vec<_>>().join("\n")
    }
}

/// Ids of these nodes and of all that they are computed from.
fn needed(mut open: Vec<Arc<dyn AnyNode>>) -> BTreeSet<usize> {
    let mut ids = BTreeSet::new();
    while let Some(node) = open.pop() {
        if ids.insert(node.id()) {
            open.extend(node.parents().iter().cloned());
        }
    }
    ids
}
