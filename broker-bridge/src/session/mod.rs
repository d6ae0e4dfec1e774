//! Records out: one consumer of a group, for a client that may vanish at any moment. Knows neither HTTP nor gRPC.
//!
//! How it works, chosen for being the simplest that loses nothing:
//!
//! - Membership and assignment are Kafka's own (classic group), or the client names its partitions. Offsets are kept in the offset store,
//!   keyed by group: a session starts a partition at the store's offset or Kafka's committed one, whichever is further, else where
//!   `auto.offset.reset` says. So a restarted bridge resumes a group where it was.
//! - A record is delivered when its answer was handed to the transport; it is acknowledged when its offset is in the store. Without
//!   auto-commit that is what `commit` does. With it, the next fetch (or deleting the instance, or leaving the subscription) acknowledges
//!   what was delivered before. A session that expires or is cut off acknowledges nothing: its records are delivered again.
//! - A caller that hangs up while it waits has got nothing: the records go back and are in the next answer.
//! - Acknowledged offsets are mirrored to Kafka, for its tools and for ordinary members of the group; a failed mirror is counted, and the next one
//!   makes up for it. They are known by their metadata, so that an old one is not taken for somebody else's. Where an ordinary member has committed further than the store knows, a partition that comes begins there, and the store follows.
//! - Behind the last record there may be marks of transactions, which nobody is given: an acknowledgement of everything before them passes them,
//!   so that a group that has read everything has no lag.
//! - A topic that was deleted is the answer's error where its other topics have nothing, until it is there again.
//! - A record that cannot be shown in the session's format blocks its partition until a seek; the others go on, and its error comes when they have
//!   nothing.
//! - All this is the REST proxies' way. A session with `delivery = acknowledged` repeats a batch until it is acknowledged: `acknowledged.rs`.
//! - An offset below the stored one is refused, unless the client sought back before: then the group is reset, and a new epoch
//!   fences whatever is still on its way. A session that meets a new epoch reads the offsets again and goes where the reset put them.
//! - An offset holds for the topic it was committed for: one of a topic that was deleted and created anew, or beyond the partition's end, is given
//!   up, and `auto.offset.reset` decides. An offset that somebody sets back in Kafka itself is not followed; the log says so.
//!
//! - A session that every replica knows outlives its process: another one takes it over (`sharing`), as the topic of all of them says (`directory`).
//!
//! Bounds: records held ready (`consume.response_bytes_max` and one poll; over all sessions `consume.held_bytes_max`), waiting time, number of
//! sessions, idle time.
//! Locks: `polling` orders fetches and is held while Kafka is waited for; `state` over what
//! the store and Kafka are asked, and never over a wait for records: commits and seeks do not wait for those.

mod acknowledged;
mod batches;
mod directory;
mod log;
mod marks;
mod pattern;
mod position;
mod registry;
mod sharing;
mod source;
mod state;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use service_kit::{
    kafka::{Bounds, Isolation, KafkaError, Member, Record, TopicPartition},
    offsets::{GroupOffsets, OffsetCommit, OffsetError, OffsetStore, StoredOffset},
};
use tokio::{
    select,
    sync::{Mutex, Notify, oneshot},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use acknowledged::{Acknowledged, Reject, Settlement};
#[cfg(test)]
pub(crate) use directory::tests::{Shared, directory_with};
pub(crate) use directory::{Directory, Me};
pub(crate) use position::Position;
pub(crate) use registry::Sessions;
pub(crate) use sharing::{Place, answers_at};
pub(crate) use source::{Clients, KafkaClients};
pub(crate) use state::size;
use state::{Progress, Source, State};

use crate::{
    auth,
    codec::Codec,
    config,
    connect::Connection,
    error::{BridgeError, Code, Result},
    gate::{Gate, Work},
    produce::Produce,
    topics::Topics,
};

/// Records in one poll of the client.
const POLL_RECORDS_MAX: usize = 500;
/// The longest single wait for Kafka: a hang-up or the end of the process is noticed in between.
const POLL_WAIT_MAX: Duration = Duration::from_millis(500);
/// Not sooner does a fenced member join again: who really has its place would be fenced in turn.
const JOIN_AGAIN_INTERVAL: Duration = Duration::from_secs(2);
/// How often a session looks whether others hold less, if nobody tells it.
const HELD_INTERVAL: Duration = Duration::from_millis(50);
/// Metadata of what is mirrored to Kafka: an ordinary member's commit has another.
const MIRRORED: &str = "millrace";
/// How long an acknowledgement waits for its mirror in Kafka.
const MIRROR_WAIT_MAX: Duration = Duration::from_secs(2);

/// How a session was asked to be.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) codec: &'static Codec,
    pub(crate) auto_commit: bool,
    /// `earliest`, `latest` or `none`.
    pub(crate) auto_offset_reset: String,
    pub(crate) isolation: Isolation,
    /// A fetch waits for this many bytes, or its time.
    pub(crate) fetch_min_bytes: usize,
    pub(crate) request_timeout: Duration,
    /// `None`: each fetch goes on, and a commit acknowledges.
    pub(crate) acknowledged: Option<Acknowledged>,
}

/// What every session needs.
pub(crate) struct Deps {
    pub(crate) clients: Arc<dyn Clients>,
    pub(crate) kafka: Connection,
    pub(crate) store: Arc<dyn OffsetStore>,
    pub(crate) topics: Topics,
    /// For dead letters.
    pub(crate) produce: Produce,
    pub(crate) gate: Arc<Gate>,
    pub(crate) config: config::Consume,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
    /// Bytes that all sessions hold ready, and of answers on their way.
    pub(crate) held_bytes: AtomicU64,
    /// Told when it has become less.
    pub(crate) freed: Notify,
    /// Sessions that there are.
    pub(crate) sessions: AtomicU64,
    /// `None`: no other replica knows of sessions here.
    pub(crate) directory: Option<Directory>,
    /// Records in the windows of all sessions.
    pub(crate) window_records: AtomicU64,
}

impl Deps {
    fn hold(&self, change: u64) {
        let total = self.held_bytes.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        metrics::gauge!("millrace_bridge_session_held_bytes").set(total as f64);
        if change.cast_signed() < 0 {
            self.freed.notify_waiters();
        }
    }
}

/// An answer that counts among what is held until the transport has let it go.
struct OnItsWay {
    body: Vec<u8>,
    _counted: Counted,
}

impl AsRef<[u8]> for OnItsWay {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// Bytes on their way to a session's client, counted among what is held until this is dropped.
pub(crate) struct Counted {
    bytes: u64,
    sending: Arc<AtomicU64>,
    used: Arc<parking_lot::Mutex<Instant>>,
    deps: Arc<Deps>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sending.fetch_sub(self.bytes, Ordering::Relaxed);
        // Who takes something is there.
        *self.used.lock() = Instant::now();
        self.deps.hold(self.bytes.wrapping_neg());
    }
}

/// Where a seek goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SeekTo {
    Offset(i64),
    /// The first record there is.
    Beginning,
    /// Behind the last record.
    End,
}

/// Bounds of one fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) records_max: usize,
    /// Of the records as they lie in Kafka; what the encoder writes has its own bound.
    pub(crate) bytes_max: usize,
    pub(crate) bytes_min: usize,
    pub(crate) wait: Duration,
}

/// Builds an answer, record by record.
pub(crate) trait Encode: Send + 'static {
    /// False when the record does not fit any more; it is the first of the next answer then. The first record always fits.
    /// An error blocks the record's partition until a seek; it is the fetch's error where no other partition has records.
    fn add(&mut self, partition: &TopicPartition, record: &Record) -> Result<bool>;

    /// An answer with records lacks those of this partition.
    fn blocked(&mut self, _partition: &TopicPartition) {}

    /// Ids of schemas without which these records cannot be added.
    fn wants<'a>(&self, _records: impl Iterator<Item = &'a Record>) -> Vec<i32> {
        Vec::new()
    }

    /// Makes them known before anything is added. An error is the fetch's; the records stay for the next one.
    fn look_up(&mut self, _schemas: Vec<i32>) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}

/// Builds a batch of a session with `delivery = acknowledged`.
pub(crate) trait EncodeBatch: Encode {
    /// As `add`, for a record that is delivered for the `attempt`th time.
    fn add_attempt(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool>;

    /// What follows is an answer that was given before: this request's bounds are not its own.
    fn unbounded(&mut self);

    /// Forgets what was added.
    fn clear(&mut self);
}

/// One consumer of a group.
pub(crate) struct Session {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) settings: Settings,
    /// Who created it; nobody else may use it.
    owner: Option<Arc<str>>,
    /// The owner's, where callers log in to Kafka themselves.
    connection: Option<Connection>,
    /// What it was last asked to read: its owner must be allowed to, each time.
    reads: parking_lot::Mutex<Vec<String>>,
    deps: Arc<Deps>,
    polling: Mutex<()>,
    state: Mutex<State>,
    used: Arc<parking_lot::Mutex<Instant>>,
    /// When its member was fenced by nobody and came back.
    joined_again: parking_lot::Mutex<Option<Instant>>,
    /// It was fenced, and has no new member yet.
    is_out: AtomicBool,
    /// This session's part of `Deps::held_bytes`: what it holds ready, and what is on its way.
    held: AtomicU64,
    sending: Arc<AtomicU64>,
    /// Cancelled when it has ended.
    ended: CancellationToken,
    /// `None`: it is this process's alone.
    sharing: Option<sharing::Sharing>,
    /// This session's part of `Deps::window_records`.
    windowed: AtomicU64,
}

impl Session {
    fn new(group: String, name: String, settings: Settings, deps: Arc<Deps>, sharing: Option<sharing::Sharing>) -> Self {
        deps.sessions.fetch_add(1, Ordering::Relaxed);
        Self {
            group,
            name,
            settings,
            owner: auth::owner(),
            connection: auth::connection().ok().flatten(),
            reads: parking_lot::Mutex::default(),
            deps,
            polling: Mutex::default(),
            state: Mutex::default(),
            used: Arc::new(parking_lot::Mutex::new(Instant::now())),
            joined_again: parking_lot::Mutex::default(),
            is_out: AtomicBool::new(false),
            held: AtomicU64::new(0),
            sending: Arc::default(),
            ended: CancellationToken::new(),
            sharing,
            windowed: AtomicU64::new(0),
        }
    }

    fn kafka(&self) -> &Connection {
        self.connection.as_ref().unwrap_or(&self.deps.kafka)
    }

    /// Joins the group for these topics, in place of an earlier subscription. One topic that begins with `^` is a pattern.
    pub(crate) async fn subscribe(&self, mut topics: Vec<String>) -> Result<()> {
        let mut named = BTreeSet::new();
        topics.retain(|topic| named.insert(topic.clone()));
        auth::check_subscription(&self.group, topics.iter().map(String::as_str))?;
        pattern::check(&topics)?;
        for topic in topics.iter().filter(|topic| !topic.starts_with('^')) {
            self.deps.topics.check(topic, None).await?;
        }
        let mut state = self.open().await?;
        if matches!(&state.source, Some(source) if source.subscription.is_none()) {
            return Err(
                self.illegal("has partitions assigned by name; assigning and subscribing exclude one another, create another instance")
            );
        }
        if matches!(&state.source, Some(source) if source.subscription.as_ref() == Some(&topics)) {
            return Ok(());
        }
        self.leave(&mut state).await?;
        let member = self.deps.clients.member(&self.group, &topics, &self.settings, self.instance_id().as_deref()).await?;
        *self.reads.lock() = topics.clone();
        state.source = Some(Source { member, subscription: Some(topics) });
        Ok(())
    }

    /// The subscribed topics; empty without a subscription.
    pub(crate) async fn subscription(&self) -> Result<Vec<String>> {
        let state = self.open().await?;
        let Some(Source { subscription: Some(topics), member }) = &state.source else { return Ok(Vec::new()) };
        if !topics.iter().any(|topic| topic.starts_with('^')) {
            return Ok(topics.clone());
        }
        let found: BTreeSet<String> = member.assignment().await.iter().map(|partition| partition.topic.to_string()).collect();
        Ok(found.into_iter().collect())
    }

    /// Leaves subscription or assignment.
    pub(crate) async fn unsubscribe(&self) -> Result<()> {
        let mut state = self.open().await?;
        self.leave(&mut state).await
    }

    /// Reads these partitions, without group membership, in place of earlier ones.
    pub(crate) async fn assign(&self, partitions: Vec<TopicPartition>) -> Result<()> {
        let topics: BTreeSet<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
        auth::check_subscription(&self.group, topics.iter().copied())?;
        for partition in &partitions {
            self.deps.topics.check(&partition.topic, Some(partition.partition)).await?;
        }
        let mut state = self.open().await?;
        if matches!(&state.source, Some(source) if source.subscription.is_some()) {
            return Err(self.illegal("is subscribed; subscribing and assigning exclude one another, delete the subscription first"));
        }
        self.leave(&mut state).await?;
        if !partitions.is_empty() {
            state.source = Some(self.direct(&partitions).await?);
            self.follow_assignment(&mut state).await?;
        }
        Ok(())
    }

    /// Reads partitions by name, as whose the session is known from now on.
    async fn direct(&self, partitions: &[TopicPartition]) -> Result<Source> {
        let reader = self.deps.clients.reader(self.settings.isolation).await?;
        let admin = Arc::clone(self.kafka().admin().await?);
        let member = Arc::new(source::Direct::new(&self.group, &self.settings, reader, admin, partitions));
        let topics: BTreeSet<&str> = partitions.iter().map(|partition| &*partition.topic).collect();
        *self.reads.lock() = topics.into_iter().map(str::to_owned).collect();
        Ok(Source { member, subscription: None })
    }

    pub(crate) async fn assignment(&self) -> Result<Vec<TopicPartition>> {
        let state = self.open().await?;
        match &state.source {
            None => Ok(Vec::new()),
            Some(source) => Ok(source.member.assignment().await),
        }
    }

    /// The next fetch reads from these offsets.
    pub(crate) async fn seek(&self, positions: &[(TopicPartition, i64)]) -> Result<()> {
        let mut state = self.open().await?;
        self.follow_assignment(&mut state).await?;
        for (partition, offset) in positions {
            if *offset < 0 {
                return Err(BridgeError::new(
                    Code::Unprocessable,
                    format!("{partition}: offset {offset} is negative; use positions/beginning or positions/end"),
                ));
            }
            if !state.partitions.contains_key(partition) {
                return Err(self.not_assigned(partition));
            }
        }
        for (partition, offset) in positions {
            self.seek_one(&mut state, partition, *offset).await?;
            if let Some(progress) = state.partitions.get_mut(partition) {
                progress.rewound = progress.committed.is_some_and(|committed| *offset < committed);
            }
        }
        if self.settings.acknowledged.is_some() {
            return self.keep_sought(state, positions).await;
        }
        Ok(())
    }

    /// Seeks to the first (or behind the last) record of each partition.
    pub(crate) async fn seek_to_end(&self, partitions: &[TopicPartition], beginning: bool) -> Result<()> {
        let to = if beginning { SeekTo::Beginning } else { SeekTo::End };
        self.seek_to(&partitions.iter().map(|partition| (partition.clone(), to)).collect::<Vec<_>>()).await
    }

    /// Seeks to an offset or an end of each partition.
    pub(crate) async fn seek_to(&self, places: &[(TopicPartition, SeekTo)]) -> Result<()> {
        auth::check_subscription(&self.group, places.iter().map(|(partition, _)| &*partition.topic))?;
        let ends = places.iter().filter(|(_, to)| !matches!(to, SeekTo::Offset(_))).map(|(partition, _)| partition.clone());
        let ends: Vec<TopicPartition> = ends.collect();
        for partition in &ends {
            self.deps.topics.check(&partition.topic, Some(partition.partition)).await?;
        }
        let bounds = if ends.is_empty() { BTreeMap::new() } else { self.deps.topics.bounds(&ends).await? };
        let positions = places.iter().filter_map(|(partition, to)| {
            let offset = match to {
                SeekTo::Offset(offset) => *offset,
                SeekTo::Beginning => bounds.get(partition)?.earliest,
                SeekTo::End => bounds.get(partition)?.latest,
            };
            Some((partition.clone(), offset))
        });
        self.seek(&positions.collect::<Vec<_>>()).await
    }

    /// Records, as many as fit, into `encode`. Waits for the first ones. With auto-commit, acknowledges the answer before.
    pub(crate) async fn fetch<E: Encode>(self: &Arc<Self>, limits: Limits, mut encode: E) -> Result<E> {
        let reads = self.reads.lock().clone();
        auth::check_subscription(&self.group, reads.iter().map(String::as_str))?;
        let (answer, answered) = oneshot::channel();
        let session = Arc::clone(self);
        // A task of its own: a caller that hangs up must not take polled records with it.
        let work = async move {
            // Another request may be waiting for records: this one waits no longer than it may, and gets none.
            let asked = Instant::now();
            let polling = match session.deps.gate.enter(Work::Consume, 1) {
                Err(error) => return drop(answer.send(Err(error))),
                Ok(_pass) => timeout(limits.wait, session.polling.lock()).await,
            };
            let Ok(_polling) = polling else { return drop(answer.send(Ok(encode))) };
            if answer.is_closed() {
                return;
            }
            let (mut state, delivered) = loop {
                let limits = Limits { wait: limits.wait.saturating_sub(asked.elapsed()), ..limits };
                let mut filled = session.fill(&limits, &answer).await;
                if filled.is_ok() {
                    let (schemas, nothing) = {
                        let state = session.state.lock().await;
                        (encode.wants(state.ready.iter().map(|(_, record)| record)), state.ready.is_empty())
                    };
                    let over = session.deps.shutdown.is_cancelled();
                    filled = if nothing && over {
                        Ok(())
                    } else if nothing {
                        session.check_topics().await
                    } else {
                        encode.look_up(schemas).await
                    };
                }
                let mut state = session.state.lock().await;
                let blocked = state.blocked().len();
                let delivered = filled.and_then(|()| state.deliver(&limits, &mut encode));
                session.pause_blocked(&mut state).await;
                // What was held belonged to a partition that is blocked now: the others may have records.
                let others = delivered.is_err() && state.blocked().len() > blocked && !state.all_blocked();
                if !others || limits.wait.is_zero() {
                    break (state, delivered);
                }
            };
            let mut gave = false;
            match delivered {
                Err(error) => drop(answer.send(Err(error))),
                Ok(delivered) => {
                    let count = delivered.records.len() as u64;
                    gave = count > 0;
                    if answer.send(Ok(encode)).is_err() {
                        state.take_back(delivered);
                    } else {
                        metrics::counter!("millrace_bridge_consume_records_total").increment(count);
                        state = session.pass_marks(state).await;
                    }
                }
            }
            session.measure(&state);
            session.has_fetched(gave);
        };
        self.deps.tasks.spawn(auth::carrier().run(work));
        answered.await.unwrap_or_else(|_| Err(BridgeError::new(Code::Internal, "the session's task ended without an answer")))
    }

    /// Cancelled when the bridge ends.
    pub(crate) fn shutdown(&self) -> CancellationToken {
        self.deps.shutdown.clone()
    }

    /// Cancelled when the session has ended, as one does that nobody uses.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Counts a stream that ends because its session did: nobody has used it for long.
    pub(crate) fn cut_off(&self) -> BridgeError {
        let idle = self.deps.config.session_idle;
        metrics::counter!("millrace_bridge_streams_cut_total").increment(1);
        tracing::info!(group = self.group, instance = self.name, ?idle, "a stream's client took and said nothing and is cut off");
        BridgeError::new(
            Code::Timeout,
            format!(
                "the client took and said nothing for {idle:?} (consume.session_idle) and is cut off; connect again, the group goes on at its committed offsets"
            ),
        )
    }

    /// Counts bytes as held (`consume.held_bytes_max`) until they are sent.
    pub(crate) fn count(&self, bytes: usize) -> Counted {
        let bytes = bytes as u64;
        self.sending.fetch_add(bytes, Ordering::Relaxed);
        self.deps.hold(bytes);
        Counted { bytes, sending: Arc::clone(&self.sending), used: Arc::clone(&self.used), deps: Arc::clone(&self.deps) }
    }

    /// An answer's body, counted as held until it is sent.
    pub(crate) fn on_its_way(&self, body: Vec<u8>) -> bytes::Bytes {
        let counted = self.count(body.len());
        bytes::Bytes::from_owner(OnItsWay { body, _counted: counted })
    }

    /// Whether it reads no more from Kafka: all sessions hold what they may, or what is left is kept for those that hold less than their share of
    /// one half of it. So clients that do not take what they have keep nobody else waiting.
    fn holds_enough(&self, max: u64) -> bool {
        let sessions = self.deps.sessions.load(Ordering::Relaxed).max(1);
        let share = max / 2 / sessions;
        let own = self.held.load(Ordering::Relaxed) + self.sending.load(Ordering::Relaxed);
        own >= share && self.deps.held_bytes.load(Ordering::Relaxed) >= max - (sessions - 1) * share
    }

    /// Acknowledges: everything delivered (`None`), or these offsets (next to read).
    pub(crate) async fn commit(&self, offsets: Option<Vec<OffsetCommit>>) -> Result<()> {
        auth::check_subscription(&self.group, offsets.iter().flatten().map(|commit| &*commit.partition.topic))?;
        if self.settings.acknowledged.is_some() {
            return self.settle_below(offsets).await;
        }
        let mut state = self.open().await?;
        let explicit = offsets.is_some();
        let offsets = match offsets {
            None => state.delivered(),
            Some(offsets) => {
                if let Some(Source { subscription: Some(_), .. }) = state.source {
                    self.follow_assignment(&mut state).await?;
                    if let Some(foreign) = offsets.iter().find(|commit| !state.partitions.contains_key(&commit.partition)) {
                        return Err(self.not_assigned(&foreign.partition));
                    }
                } else {
                    for commit in &offsets {
                        self.deps.topics.check(&commit.partition.topic, Some(commit.partition.partition)).await?;
                    }
                }
                if state.source.is_none() {
                    for topic in offsets.iter().map(|commit| &commit.partition.topic).collect::<BTreeSet<_>>() {
                        self.deps.topics.recognise(topic).await?;
                    }
                    // Not yet reading: the group's epoch of now is the one the client means.
                    state.epoch = self.deps.store.get(&self.group, Some(&[])).await?.epoch;
                }
                self.check_ends(&state, &offsets).await?;
                offsets
            }
        };
        self.acknowledge(state, offsets, explicit).await
    }

    /// An error where an offset lies behind its partition's end: what is written next would never be delivered. What was delivered is not asked for.
    async fn check_ends(&self, state: &State, offsets: &[OffsetCommit]) -> Result<()> {
        let was_delivered = |commit: &&OffsetCommit| {
            let delivered = state.partitions.get(&commit.partition).and_then(|progress| progress.delivered);
            delivered.is_some_and(|delivered| commit.offset <= delivered)
        };
        let far: Vec<&OffsetCommit> = offsets.iter().filter(|commit| !was_delivered(commit)).collect();
        if far.is_empty() {
            return Ok(());
        }
        let asked: Vec<TopicPartition> = far.iter().map(|commit| commit.partition.clone()).collect();
        let bounds = self.deps.topics.bounds(&asked).await?;
        for OffsetCommit { partition, offset, .. } in far {
            if let Some(end) = bounds.get(partition).map(|bounds| bounds.latest).filter(|end| offset > end) {
                return Err(BridgeError::new(
                    Code::Unprocessable,
                    format!("{partition} ends at {end}, and the next offset to read cannot be {offset}; commit up to its end"),
                ));
            }
        }
        Ok(())
    }

    /// The group's offsets: the store's, else Kafka's.
    pub(crate) async fn committed(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, StoredOffset>> {
        auth::check_subscription(&self.group, partitions.iter().map(|partition| &*partition.topic))?;
        let mut found = self.deps.store.get(&self.group, Some(partitions)).await?.offsets;
        let missing: Vec<TopicPartition> = partitions.iter().filter(|partition| !found.contains_key(*partition)).cloned().collect();
        if !missing.is_empty() {
            self.deps.gate.broker()?;
            let committed = self.kafka().admin().await?.committed(&self.group, Some(&missing)).await?;
            found.extend(committed.into_iter().map(|(partition, (offset, metadata))| (partition, StoredOffset { offset, metadata })));
        }
        Ok(found)
    }

    /// Leaves the group for good. `acknowledge`: the client says goodbye itself, so what auto-commit delivered it has got.
    async fn close(&self, acknowledge: bool) {
        let state = self.state.lock().await;
        let state = if acknowledge && self.settings.auto_commit && !state.closed {
            let delivered = state.delivered();
            if let Err(error) = self.acknowledge(state, delivered, false).await {
                tracing::warn!(%error, group = self.group, instance = self.name, "last offsets not kept, records will be delivered again");
            }
            self.state.lock().await
        } else {
            state
        };
        let mut state = state;
        state.closed = true;
        self.ended.cancel();
        if let Some(source) = state.source.take() {
            source.member.close().await;
        }
        state.clear();
        self.measure(&state);
    }

    /// It is in use.
    pub(crate) fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    /// A fetch is over. Who waited until now, maybe because others held all there was room for, is not idle; but who got nothing more while what it
    /// got before is still on its way keeps itself waiting.
    fn has_fetched(&self, something: bool) {
        if something || !self.is_sending() {
            self.touch();
        }
    }

    /// Its client has not taken all that it was given.
    fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Relaxed) > 0
    }

    /// Not used for `idle`, and no fetch is under way, or one for a client that does not take what it has.
    fn is_idle(&self, idle: Duration) -> bool {
        self.used.lock().elapsed() >= idle && (self.is_sending() || self.polling.try_lock().is_ok())
    }

    async fn open(&self) -> Result<tokio::sync::MutexGuard<'_, State>> {
        let state = self.state.lock().await;
        if state.closed { Err(instance_not_found(&self.group, &self.name)) } else { Ok(state) }
    }

    async fn leave(&self, state: &mut State) -> Result<()> {
        if self.settings.auto_commit {
            let delivered = state.delivered();
            self.store(state, delivered, false).await?;
        }
        if let Some(source) = state.source.take() {
            source.member.close().await;
        }
        self.is_out.store(false, Ordering::Release);
        state.clear();
        Ok(())
    }

    /// Polls until there is enough, the time is over, or nobody waits any more.
    async fn fill<T>(&self, limits: &Limits, answer: &oneshot::Sender<T>) -> Result<()> {
        let _pass = self.deps.gate.enter(Work::Consume, 1)?;
        let until = Instant::now() + limits.wait;
        if self.settings.auto_commit {
            let state = self.open().await?;
            let delivered = state.delivered();
            self.acknowledge(state, delivered, false).await?;
        }
        loop {
            let (member, seeks, has_enough, is_full, all_blocked) = {
                let mut state = self.open().await?;
                self.follow_assignment(&mut state).await?;
                let Some(source) = &state.source else {
                    return Err(self.illegal("is not subscribed and has no partitions; subscribe or assign first"));
                };
                let has_enough = !state.ready.is_empty() && state.ready_bytes >= limits.bytes_min;
                let is_full = state.ready_bytes >= limits.bytes_max || state.ready.len() >= limits.records_max;
                (Arc::clone(&source.member), state.seeks, has_enough, is_full, state.all_blocked())
            };
            if is_full {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            let freed = self.deps.freed.notified();
            if self.holds_enough(self.deps.config.held_bytes_max) {
                // So much is held that nothing more is read; what is here goes out, and makes room.
                let has_some = !self.open().await?.ready.is_empty();
                if has_some || left.is_zero() || answer.is_closed() || self.deps.shutdown.is_cancelled() {
                    return Ok(());
                }
                drop(timeout(left.min(HELD_INTERVAL), freed).await);
                continue;
            }
            let wait = if has_enough || all_blocked { Duration::ZERO } else { left.min(POLL_WAIT_MAX) };
            let polled = self.poll(&member, wait).await?;
            let nothing_came = polled.is_empty();
            if self.deps.shutdown.is_cancelled() {
                // The session may have been handed on already: the answer is what is here.
                return Ok(());
            }
            let mut state = self.open().await?;
            let same_source = state.source.as_ref().is_some_and(|source| Arc::ptr_eq(&source.member, &member));
            if same_source {
                self.follow_assignment(&mut state).await?;
                for partition in state.behind(&polled, seeks) {
                    self.judge(&mut state, &partition).await?;
                }
                for partition in state.absorb(polled, seeks) {
                    // The client may have read on from before the seek.
                    let floor = state.partitions.get(&partition).map(|progress| progress.floor);
                    if let Some(floor) = floor {
                        self.seek_one(&mut state, &partition, floor).await?;
                    }
                }
                self.measure(&state);
            }
            if same_source && nothing_came {
                drop(self.pass_marks(state).await);
            }
            let over = left.is_zero() || all_blocked || (nothing_came && has_enough);
            if over || answer.is_closed() || self.deps.shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// An error where a topic that it was asked to read is gone; for when there is nothing else to say. Kafka's client reads the others, and says
    /// nothing.
    async fn check_topics(&self) -> Result<()> {
        let reads = self.reads.lock().clone();
        for topic in reads.iter().filter(|topic| !topic.starts_with('^')) {
            if let Err(BridgeError { code: code @ Code::TopicNotFound, .. }) = self.deps.topics.check(topic, None).await {
                return Err(BridgeError::new(
                    code,
                    format!(
                        "topic {topic:?} does not exist any more; instance {:?} of group {:?} reads its other topics and goes on with this one when it is created again, or subscribe to others",
                        self.name, self.group
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Polls. A static member may be fenced although no other bridge has the session: the coordinator that goes on for a killed one may know an earlier
    /// member of that name. Then it joins again, in the place of that one.
    async fn poll(&self, member: &Arc<dyn Member>, wait: Duration) -> Result<Vec<(TopicPartition, Record)>> {
        let polled = match self.is_out.load(Ordering::Acquire) {
            true => Err(KafkaError::Fenced("the instance was fenced and has not joined its group again".to_owned())),
            false => select! {
                () = self.deps.shutdown.cancelled() => return Ok(Vec::new()),
                polled = member.poll(POLL_RECORDS_MAX, wait) => polled,
            },
        };
        let reason = match polled {
            Err(KafkaError::Fenced(reason)) => reason,
            polled => return Ok(polled?),
        };
        if !self.is_ours().await? {
            return Err(KafkaError::Fenced(reason).into());
        }
        if self.joined_again.lock().is_some_and(|at| at.elapsed() < JOIN_AGAIN_INTERVAL) {
            return Err(BridgeError::new(
                Code::KafkaRetriable,
                format!("{reason}; the instance has joined its group again a moment ago and does so once more soon, try again"),
            ));
        }
        *self.joined_again.lock() = Some(Instant::now());
        let mut state = self.open().await?;
        if let Some(Source { member: fenced, subscription: Some(topics) }) = &state.source
            && Arc::ptr_eq(fenced, member)
        {
            tracing::warn!(group = self.group, instance = self.name, reason, "the group's coordinator knows another member; joining again");
            // Where it cannot join now, the next fetch tries again.
            self.is_out.store(true, Ordering::Release);
            member.release().await;
            let member = self.deps.clients.member(&self.group, topics, &self.settings, self.instance_id().as_deref()).await?;
            state.source = Some(Source { member, subscription: Some(topics.clone()) });
            self.is_out.store(false, Ordering::Release);
        }
        Ok(Vec::new())
    }

    /// Drops what belongs to partitions that went, and puts new ones at their stored offset.
    async fn follow_assignment(&self, state: &mut State) -> Result<()> {
        let Some(source) = &state.source else { return Ok(()) };
        let member = Arc::clone(&source.member);
        let assigned: BTreeSet<TopicPartition> = member.assignment().await.into_iter().collect();
        if assigned.iter().eq(state.partitions.keys()) {
            return Ok(());
        }
        let gone: Vec<TopicPartition> = state.partitions.keys().filter(|partition| !assigned.contains(*partition)).cloned().collect();
        for partition in gone {
            if let Some(progress) = state.partitions.remove(&partition)
                && self.settings.acknowledged.is_some()
            {
                state.parked.insert(partition.clone(), progress.window);
            }
            state.drop_ready(&partition);
        }
        let rebalanced = !assigned.is_empty();
        let new: Vec<TopicPartition> = assigned.into_iter().filter(|partition| !state.partitions.contains_key(partition)).collect();
        if new.is_empty() {
            if rebalanced {
                state.parked.clear();
            }
            return Ok(());
        }
        for topic in new.iter().map(|partition| &partition.topic).collect::<BTreeSet<_>>() {
            self.deps.topics.recognise(topic).await?;
        }
        if let Some(acknowledged) = &self.settings.acknowledged {
            self.check_dead_letters(acknowledged, &new)?;
            self.fence(state).await?;
        }
        let stored = self.stored(&new).await?;
        if state.partitions.is_empty() {
            state.epoch = stored.epoch;
        }
        let known: Vec<TopicPartition> = stored.offsets.keys().cloned().collect();
        let bounds = if known.is_empty() { BTreeMap::new() } else { self.deps.topics.bounds(&known).await? };
        for partition in new {
            let start = match (stored.offsets.get(&partition), bounds.get(&partition)) {
                (Some(stored), Some(bounds)) if stored.offset > bounds.latest => {
                    Some(self.give_up(state, &partition, stored.offset, *bounds).await?)
                }
                (stored, _) => stored.map(|stored| stored.offset),
            };
            if state.paused.remove(&partition) {
                member.set_paused(&partition, false).await?;
            }
            state.partitions.insert(partition.clone(), Progress::default());
            if let Some(start) = start {
                if let Err(error) = self.seek_one(state, &partition, start).await {
                    // The next look tries again.
                    state.partitions.remove(&partition);
                    match error.retryable() {
                        true => continue,
                        false => return Err(error),
                    }
                }
                if let Some(progress) = state.partitions.get_mut(&partition) {
                    progress.committed = Some(start);
                }
            }
            if self.settings.acknowledged.is_some() {
                self.take_over(state, &stored, &partition, start);
            } else {
                self.seek_again(state, &partition, &stored).await?;
            }
        }
        if self.settings.acknowledged.is_some() {
            state.parked.clear();
            self.keep(state).await?;
        }
        Ok(())
    }

    /// Puts a stored offset that lies beyond the partition's end where `auto.offset.reset` says; gives the new one.
    async fn give_up(&self, state: &mut State, partition: &TopicPartition, stored: i64, bounds: Bounds) -> Result<i64> {
        let start = match self.settings.auto_offset_reset.as_str() {
            "earliest" => bounds.earliest,
            "latest" => bounds.latest,
            _ => {
                return Err(self.illegal(&format!(
                    "begins {partition} at {stored}, which it does not have: it holds {} to {}, and auto.offset.reset is none; commit an offset it has, or create the instance with earliest or latest",
                    bounds.earliest, bounds.latest
                )));
            }
        };
        metrics::counter!("millrace_bridge_stale_offsets_total").increment(1);
        tracing::warn!(group = self.group, %partition, stored, end = bounds.latest, start, "the stored offset is beyond the partition's end and is given up");
        let commit = OffsetCommit { partition: partition.clone(), offset: start, metadata: String::new() };
        state.epoch = self.deps.store.reset(&self.group, &[commit]).await?;
        Ok(start)
    }

    /// The client reads before where it was put. Its partition was taken away and given back, or the position is none that the partition has, or
    /// the topic is a new one: then what is read counts, and what was known of the partition does not.
    async fn judge(&self, state: &mut State, partition: &TopicPartition) -> Result<()> {
        self.deps.topics.recognise(&partition.topic).await?;
        let asked = [partition.clone()];
        let stored = self.deps.store.get(&self.group, Some(&asked)).await?;
        let bounds = self.deps.topics.bounds(&asked).await?.get(partition).copied();
        let Some(progress) = state.partitions.get_mut(partition) else { return Ok(()) };
        let floor = progress.floor;
        if progress.committed.is_some() && !stored.offsets.contains_key(partition) {
            *progress = Progress { sought: progress.sought, ..Progress::default() };
            state.drop_ready(partition);
            state.epoch = stored.epoch;
            return Ok(());
        }
        let Some(bounds) = bounds else { return Ok(()) };
        if floor > bounds.latest {
            progress.floor = 0;
            // Where it is read now, that is below what was acknowledged.
            progress.window = progress.window.anew(None);
            progress.rewound |= self.settings.acknowledged.is_some();
            tracing::warn!(
                group = self.group,
                instance = self.name,
                %partition,
                position = floor,
                end = bounds.latest,
                "the position is beyond the partition's end; reading goes on where auto.offset.reset says"
            );
        }
        if let Some(stored) = stored.offsets.get(partition).filter(|stored| stored.offset > bounds.latest) {
            let start = self.give_up(state, partition, stored.offset, bounds).await?;
            if let Some(progress) = state.partitions.get_mut(partition) {
                progress.committed = Some(start);
                progress.window = progress.window.anew(None);
            }
        }
        Ok(())
    }

    /// A dead letter that came back as a record would be one again, for ever.
    fn check_dead_letters(&self, acknowledged: &Acknowledged, read: &[TopicPartition]) -> Result<()> {
        let Some(letters) = &acknowledged.dead_letters else { return Ok(()) };
        match read.iter().any(|partition| partition.topic == letters.topic) {
            true => {
                Err(self.illegal(&format!("reads {}, its own dead-letter topic; name another one, or read other topics", letters.topic)))
            }
            false => Ok(()),
        }
    }

    /// The group's offsets of partitions that come. Its ordinary members commit to Kafka alone: where they have gone further, the store follows.
    async fn stored(&self, new: &[TopicPartition]) -> Result<GroupOffsets> {
        loop {
            let mut stored = self.deps.store.get(&self.group, Some(new)).await?;
            if stored.offsets.is_empty() || self.deps.store.is_kafka() {
                return Ok(stored);
            }
            let known: Vec<TopicPartition> = stored.offsets.keys().cloned().collect();
            let mut ahead = Vec::new();
            for (partition, (offset, metadata)) in self.kafka().admin().await?.committed(&self.group, Some(&known)).await? {
                // An old copy, that a failed mirror or a reset has left behind.
                if metadata == MIRRORED {
                    continue;
                }
                let Some(kept) = stored.offsets.get_mut(&partition).filter(|kept| kept.offset != offset) else { continue };
                metrics::counter!("millrace_bridge_foreign_offsets_total").increment(1);
                if offset < kept.offset {
                    tracing::warn!(
                        group = self.group, %partition, kafka = offset, stored = kept.offset,
                        "Kafka's offset is before the stored one, which is used; was it set with Kafka's tools? `millrace group reset-offsets` moves the group back"
                    );
                    continue;
                }
                tracing::info!(group = self.group, %partition, from = kept.offset, to = offset, "an ordinary member of the group has gone further");
                *kept = StoredOffset { offset, metadata: String::new() };
                ahead.push(OffsetCommit { partition, offset, metadata: String::new() });
            }
            if ahead.is_empty() {
                return Ok(stored);
            }
            match self.deps.store.commit(&self.group, stored.epoch, &ahead).await {
                Ok(()) => return Ok(stored),
                // Another session was faster.
                Err(OffsetError::Regressed { .. } | OffsetError::Fenced { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Moves the client and forgets what was read of the partition. A partition that is gone meanwhile is taken up when it comes again.
    async fn seek_one(&self, state: &mut State, partition: &TopicPartition, offset: i64) -> Result<()> {
        let Some(source) = &state.source else { return Ok(()) };
        let member = Arc::clone(&source.member);
        let sought = member.seek(partition, offset).await;
        state.drop_ready(partition);
        if let Err(error) = sought {
            if source_still_has(state, partition).await {
                return Err(error.into());
            }
            state.partitions.remove(partition);
            return Ok(());
        }
        if state.paused.remove(partition) {
            member.set_paused(partition, false).await?;
        }
        state.seeks += 1;
        let sought = state.seeks;
        let position_then = member.positions().await.get(partition).copied();
        if let Some(progress) = state.partitions.get_mut(partition) {
            let Progress { committed, rewound, .. } = *progress;
            let window = progress.window.anew(Some(offset));
            *progress = Progress { committed, rewound, floor: offset, sought, position_then, window, ..Progress::default() };
        }
        Ok(())
    }

    /// Stores offsets and mirrors them to Kafka. Takes the lock and gives it back before it waits for Kafka.
    async fn acknowledge(&self, mut state: tokio::sync::MutexGuard<'_, State>, offsets: Vec<OffsetCommit>, explicit: bool) -> Result<()> {
        let stored = self.store(&mut state, offsets, explicit).await?;
        let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
        drop(state);
        self.mirror(member, stored).await;
        Ok(())
    }

    /// Gives Kafka its copy of stored offsets.
    async fn mirror(&self, member: Option<Arc<dyn Member>>, stored: Vec<(TopicPartition, i64)>) {
        if let (Some(member), false) = (member, stored.is_empty() || self.deps.store.is_kafka()) {
            let mirrored = timeout(MIRROR_WAIT_MAX, member.commit(stored, MIRRORED)).await;
            if !matches!(mirrored, Ok(Ok(()))) {
                metrics::counter!("millrace_bridge_mirror_failures_total").increment(1);
                tracing::debug!(?mirrored, group = self.group, "offsets are stored, Kafka did not take its copy");
            }
        }
    }

    /// Stores offsets under the session's epoch; gives what was stored.
    async fn store(&self, state: &mut State, mut offsets: Vec<OffsetCommit>, explicit: bool) -> Result<Vec<(TopicPartition, i64)>> {
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        for commit in &mut offsets {
            commit.offset = state.behind_marks(commit);
        }
        let store = &self.deps.store;
        let (back, mut on): (Vec<OffsetCommit>, Vec<OffsetCommit>) = offsets.into_iter().partition(|commit| state.goes_back(commit));
        // First what only goes on, also if it is nothing: that tells whether the epoch still holds, for which a reset does not ask.
        loop {
            match store.commit(&self.group, state.epoch, &on).await {
                Ok(()) if back.is_empty() => return Ok(state.stored(&on)),
                Ok(()) => {
                    state.epoch = store.reset(&self.group, &back).await?;
                    tracing::info!(
                        group = self.group,
                        instance = self.name,
                        epoch = state.epoch,
                        "group reset: the client sought back and committed"
                    );
                    on.extend(back);
                    return Ok(state.stored(&on));
                }
                Err(OffsetError::Fenced { .. }) => break,
                // Somebody else is ahead in a partition this session lost and has not yet noticed. Nothing is stored of the others either.
                Err(OffsetError::Regressed { topic, partition, stored, given, .. }) if !explicit => {
                    tracing::warn!(
                        group = self.group,
                        instance = self.name,
                        topic,
                        partition,
                        stored,
                        given,
                        "delivered records were acknowledged by another member"
                    );
                    let lost = TopicPartition::new(topic, partition);
                    let count = on.len();
                    on.retain(|commit| commit.partition != lost);
                    if on.len() == count {
                        return Err(BridgeError::new(Code::Internal, format!("{lost} is refused, and was not given")));
                    }
                }
                Err(OffsetError::Regressed { group, topic, partition, stored, given }) => {
                    return Err(BridgeError::new(
                        Code::IllegalState,
                        format!(
                            "{topic}-{partition} of group {group:?} is committed up to {stored}; {given} would go back: seek there first (POST …/positions), then commit"
                        ),
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let mut offsets = [on, back].concat();
        let moved = self.follow_reset(state).await?;
        offsets.retain(|commit| !moved.contains(&commit.partition));
        if explicit && !moved.is_empty() {
            let moved: Vec<String> = moved.iter().map(ToString::to_string).collect();
            return Err(BridgeError::new(
                Code::IllegalState,
                format!(
                    "group {:?} was reset meanwhile: {} start again at the new offsets; fetch and process them, then commit",
                    self.group,
                    moved.join(", ")
                ),
            ));
        }
        if offsets.is_empty() {
            return Ok(Vec::new());
        }
        if offsets.iter().any(|commit| state.goes_back(commit)) {
            return Err(BridgeError::new(Code::KafkaRetriable, format!("group {:?} was reset meanwhile; commit again", self.group)));
        }
        store.commit(&self.group, state.epoch, &offsets).await?;
        Ok(state.stored(&offsets))
    }

    /// Goes where a reset by somebody else put the offsets; gives the partitions that moved.
    async fn follow_reset(&self, state: &mut State) -> Result<BTreeSet<TopicPartition>> {
        let partitions: Vec<TopicPartition> = state.partitions.keys().cloned().collect();
        let GroupOffsets { epoch, offsets } = self.deps.store.get(&self.group, Some(&partitions)).await?;
        state.epoch = epoch;
        let mut moved = BTreeSet::new();
        for (partition, stored) in offsets {
            if state.partitions.get(&partition).is_some_and(|progress| progress.committed != Some(stored.offset)) {
                self.seek_one(state, &partition, stored.offset).await?;
                if let Some(progress) = state.partitions.get_mut(&partition) {
                    progress.committed = Some(stored.offset);
                    progress.rewound = false;
                }
                moved.insert(partition);
            }
        }
        tracing::info!(group = self.group, instance = self.name, epoch, moved = moved.len(), "group was reset, offsets read again");
        Ok(moved)
    }

    fn illegal(&self, what: &str) -> BridgeError {
        BridgeError::new(Code::IllegalState, format!("instance {:?} of group {:?} {what}", self.name, self.group))
    }

    fn not_assigned(&self, partition: &TopicPartition) -> BridgeError {
        self.illegal(&format!("does not have {partition} assigned now; fetch once to join the group, or look at GET …/assignments"))
    }

    /// Keeps the sum over all sessions.
    fn measure(&self, state: &State) {
        let held = (state.ready_bytes + state.window_bytes()) as u64;
        let before = self.held.swap(held, Ordering::Relaxed);
        self.deps.hold(held.wrapping_sub(before));
        let records = state.window_records() as u64;
        let change = records.wrapping_sub(self.windowed.swap(records, Ordering::Relaxed));
        let all = self.deps.window_records.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        metrics::gauge!("millrace_bridge_window_records").set(all as f64);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.deps.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn source_still_has(state: &State, partition: &TopicPartition) -> bool {
    match &state.source {
        None => false,
        Some(source) => source.member.assignment().await.contains(partition),
    }
}

pub(crate) fn instance_not_found(group: &str, name: &str) -> BridgeError {
    BridgeError::new(
        Code::InstanceNotFound,
        format!(
            "group {group:?} has no instance {name:?}: it expired or was deleted; create it again, the group goes on at its committed offsets"
        ),
    )
}

#[cfg(test)]
mod acknowledged_tests;
#[cfg(test)]
mod tests;
