//! The graph behind the streams: which node computes what, for how long it must be remembered, and what is wrong with it.
//!
//! A node computes its [`Rdd`] of a time once and remembers it as long as windows above it need it. Times are valid when
//! they are a multiple of the node's slide after `zero`, which is one interval before the first batch.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
};

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::kafka::KafkaInput;
use super::rdd::{Data, Rdd};

/// The time of a batch. Prints as Spark's does: `1500000000000 ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub(super) i64);

impl Time {
    /// Since the epoch.
    pub fn milliseconds(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// A node, whatever it carries.
pub(super) trait AnyNode: Send + Sync {
    fn slide_ms(&self) -> i64;
    /// Keep what is computed at least this long.
    fn remember(&self, ms: i64);
    /// Longest time that this node's parents are asked back for, measured from its own newest time.
    fn remembered_ms(&self) -> i64;
    /// Forgets what nobody needs any more after the batch at `time_ms`.
    fn forget_before(&self, time_ms: i64);
    fn forget_all(&self);
    fn describe(&self) -> String;
    /// Windows over this stream, as they are in a checkpoint's fingerprint.
    fn window(&self) -> Option<String>;
    /// Computes what was asked of the node at `time_ms`, where the next time builds on it.
    fn settle(&self, time_ms: i64) -> BoxFuture<'static, anyhow::Result<()>>;
}

type Compute<T> = Box<dyn Fn(i64, &BTreeMap<i64, Option<Rdd<T>>>) -> Option<Rdd<T>> + Send + Sync>;

pub(super) struct Node<T> {
    id: usize,
    op: String,
    slide_ms: i64,
    /// How much further back the parents are needed than this node.
    window_ms: i64,
    /// The next time builds on this one.
    chained: bool,
    parents: Vec<Arc<dyn AnyNode>>,
    remember_ms: AtomicI64,
    consumers: AtomicUsize,
    cached: AtomicBool,
    zero: Arc<OnceLock<i64>>,
    generated: Mutex<BTreeMap<i64, Option<Rdd<T>>>>,
    compute: Compute<T>,
}

/// What a node is made of.
pub(super) struct Recipe<T> {
    pub(super) op: String,
    pub(super) slide_ms: i64,
    pub(super) window_ms: i64,
    pub(super) chained: bool,
    pub(super) parents: Vec<Arc<dyn AnyNode>>,
    pub(super) compute: Compute<T>,
}

impl<T: Data> Node<T> {
    /// The values at a time; `None` where the stream has none (not a multiple of its slide).
    pub(super) fn at(&self, time_ms: i64) -> Option<Rdd<T>> {
        let zero_ms = *self.zero.get()?;
        if time_ms <= zero_ms || (time_ms - zero_ms) % self.slide_ms != 0 {
            return None;
        }
        let mut generated = self.generated.lock();
        if let Some(rdd) = generated.get(&time_ms) {
            return rdd.clone();
        }
        let mut rdd = (self.compute)(time_ms, &generated);
        if self.cached.load(Relaxed) || self.consumers.load(Relaxed) > 1 {
            rdd = rdd.map(|rdd| rdd.cache());
        }
        generated.insert(time_ms, rdd.clone());
        rdd
    }

    /// The values at every time of the node in `(after_ms, until_ms]`.
    pub(super) fn slice(&self, after_ms: i64, until_ms: i64) -> Vec<Rdd<T>> {
        let Some(zero_ms) = self.zero.get() else { return Vec::new() };
        let first = after_ms.max(*zero_ms);
        let steps = (first - zero_ms).div_euclid(self.slide_ms) + 1;
        let mut time_ms = zero_ms + steps * self.slide_ms;
        let mut found = Vec::new();
        while time_ms <= until_ms {
            found.extend(self.at(time_ms));
            time_ms += self.slide_ms;
        }
        found
    }

    /// Sources: the values of a time are given, not computed.
    pub(super) fn put(&self, time_ms: i64, rdd: Rdd<T>) {
        let shared = self.cached.load(Relaxed) || self.consumers.load(Relaxed) > 1;
        let rdd = if shared { rdd.cache() } else { rdd };
        self.generated.lock().insert(time_ms, Some(rdd));
    }

    /// Windows read the same values several times.
    pub(super) fn keep_values(&self) {
        self.cached.store(true, Relaxed);
    }

    pub(super) fn consumed(&self) {
        self.consumers.fetch_add(1, Relaxed);
    }
}

impl<T: Data> AnyNode for Node<T> {
    fn slide_ms(&self) -> i64 {
        self.slide_ms
    }

    fn remember(&self, ms: i64) {
        if self.remember_ms.fetch_max(ms, Relaxed) < ms {
            let own = self.remember_ms.load(Relaxed);
            self.parents.iter().for_each(|parent| parent.remember(own + self.window_ms));
        }
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
        let slide = humantime::format_duration(std::time::Duration::from_millis(self.slide_ms.unsigned_abs()));
        format!("[{}] {} every {slide}", self.id, self.op)
    }

    fn window(&self) -> Option<String> {
        (self.window_ms > 0).then(|| self.op.clone())
    }

    fn settle(&self, time_ms: i64) -> BoxFuture<'static, anyhow::Result<()>> {
        let rdd = if self.chained { self.generated.lock().get(&time_ms).cloned().flatten() } else { None };
        Box::pin(async move {
            match rdd {
                // Any value will do: the first computes them all.
                Some(rdd) => rdd.take(1).await.map(drop),
                None => Ok(()),
            }
        })
    }
}

/// An output operation: what to run at a time, or nothing.
pub(super) struct Output {
    pub(super) name: String,
    pub(super) node: Arc<dyn AnyNode>,
    pub(super) at: Box<dyn Fn(Time) -> Option<Job> + Send + Sync>,
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
    pub(super) zero: Arc<OnceLock<i64>>,
    pub(super) nodes: Vec<Arc<dyn AnyNode>>,
    pub(super) inputs: Vec<Arc<dyn KafkaInput>>,
    pub(super) outputs: Vec<Output>,
    /// Found while declaring; reported by `start`.
    pub(super) errors: Vec<String>,
    pub(super) started: bool,
}

impl Graph {
    pub(super) fn node<T: Data>(&mut self, recipe: Recipe<T>) -> Arc<Node<T>> {
        if self.started {
            self.errors.push(format!(
                "{}: adding new inputs, transformations, and output operations after starting a context is not supported",
                recipe.op
            ));
        }
        let node = Arc::new(Node {
            id: self.nodes.len(),
            op: recipe.op,
            slide_ms: recipe.slide_ms,
            window_ms: recipe.window_ms,
            chained: recipe.chained,
            parents: recipe.parents,
            remember_ms: AtomicI64::new(0),
            consumers: AtomicUsize::new(0),
            cached: AtomicBool::new(false),
            zero: self.zero.clone(),
            generated: Mutex::default(),
            compute: recipe.compute,
        });
        self.nodes.push(node.clone());
        node
    }

    pub(super) fn error(&mut self, message: String) {
        if !self.errors.contains(&message) {
            self.errors.push(message);
        }
    }

    pub(super) fn plan(&self) -> String {
        let nodes = self.nodes.iter().map(|node| node.describe());
        let outputs = self.outputs.iter().map(|output| format!("output {} ← {}", output.name, output.node.describe()));
        nodes.chain(outputs).collect::<Vec<_>>().join("\n")
    }
}
