//! Which shared sessions there are, which replica holds each, and what another one needs to go on with it.
//!
//! It is a compacted topic of one partition (`consume.sessions_topic`). A record's key is `NAME/GROUP`, its value an [`Entry`] as JSON, nothing where
//! the session is gone; its header `turn` is a number.
//!
//! **The log's order decides.** Who changes a session reads the topic to its end, and writes with the turn after the one it found. Of two
//! that do so at the same time, both records have the same turn: the first one counts, and everybody passes over the second, as over every
//! record whose turn is not above the last one that counted. The writer reads on to its own record and sees whether it counted. So of each turn
//! there is one winner at most, everybody names the same one, and no lock, lease or clock is needed for it.
//!
//! **Compaction** keeps the last record of a key, which may be one that did not count. Until then (`min.compaction.lag.ms`, ten minutes) everybody who
//! holds sessions has seen both. Whoever holds the session then finds a record behind its own that did not count, and writes its entry again, with the
//! next turn; where the session is gone, the loser itself writes that it is. A loser that dies before it does so leaves at worst an entry
//! whose owner does not answer: it is claimed or expires as that of any dead owner. A reader that begins in what compaction left sees turns with
//! gaps, so it is "above", not "the next one", that counts.
//!
//! **What it does not promise.** An owner that was cut off, and not killed, learns of its loss within a second (it looks at the topic's end while it
//! holds anything), or earlier from Kafka, which fences its static member. Until then it may serve a client that reaches it and not
//! the topic. Nothing is lost by that: offsets are compared and set in the offset store. Records may be delivered twice.
//!
//! Nobody follows the topic all the time: a replica reads to the end when it is asked for a session that it does not know, when a forwarded
//! request failed, about once a second while it holds sessions, and now and then for those that nobody holds any more.
//!
//! Bounds: `consume.directory_max` entries, of which a new one is refused; each call ends within `offsets.timeout`.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service_kit::kafka::{Bounds, KafkaError, Record, TopicPartition};
use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard},
    time::timeout,
};

use crate::error::{BridgeError, Code, Result};

/// A session's group and name.
pub(crate) type Key = (String, String);

/// The header of a record that says its turn, in decimal digits.
pub(super) const TURN: &str = "turn";

/// How long a gone session's last turn is remembered: longer than any write is on its way.
const GONE_KEPT: Duration = Duration::from_secs(600);
/// Changes of one session take their turns; so many locks for all.
const LOCKS: usize = 64;
/// Between two looks whether a record that was acknowledged can be read.
const VISIBLE_INTERVAL: Duration = Duration::from_millis(2);

/// What the directory says of a session. Fields that a later version adds are passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Where the replica that holds it is reached: `http://host:port`, or `https://`.
    pub(crate) owner: String,
    /// Who created it; nobody else may use it. `None`: nobody was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) principal: Option<String>,
    /// Where the owner keeps offsets; only a replica that keeps them there too may go on.
    pub(crate) store: String,
    /// So long after its last use the session is over.
    pub(crate) idle_ms: u64,
    /// The session's settings, as the client gave them.
    pub(crate) fields: BTreeMap<String, Value>,
    pub(crate) reads: Reads,
    /// Seeks that no commit has followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) sought: Vec<Sought>,
}

/// What a session reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reads {
    #[default]
    Nothing,
    /// Subscribed: topics, or one `^pattern`.
    Topics(Vec<String>),
    /// Assigned by name.
    Partitions(Vec<(String, i32)>),
}

/// A position that the client chose, and what was committed then: it is void when that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sought {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The next to read.
    pub(crate) offset: i64,
    pub(crate) committed: Option<i64>,
    /// Of the group.
    pub(crate) epoch: u64,
}

impl Sought {
    pub(super) fn partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.as_str(), self.partition)
    }
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// Of the last record that counted.
    pub(crate) turn: u64,
    /// `None`: gone.
    pub(crate) entry: Option<Arc<Entry>>,
    /// When that record was written; milliseconds since 1970.
    pub(crate) written_ms: i64,
    offset: i64,
    /// The last record of the key, whether it counted or not.
    last: i64,
    read_at: Instant,
}

impl Known {
    /// Behind the record that counted there is one that did not: compaction would keep the wrong one.
    pub(crate) fn is_covered(&self) -> bool {
        self.last != self.offset
    }
}

/// What the records say, one after another.
#[derive(Default)]
struct Entries {
    by_key: HashMap<Key, Known>,
    /// Those that are not gone.
    live: usize,
}

impl Entries {
    fn apply(&mut self, record: &Record) -> Result<(), &'static str> {
        let key = record.key.as_deref().and_then(read_key).ok_or("its key is not NAME/GROUP")?;
        let turn = record.headers.iter().find(|(name, _)| name == TURN).and_then(|(_, value)| value.as_deref());
        let turn: u64 = turn.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).ok_or("it has no turn")?;
        if let Some(known) = self.by_key.get_mut(&key)
            && turn <= known.turn
        {
            known.last = record.offset;
            return Ok(());
        }
        let entry = match &record.value {
            None => None,
            Some(value) => Some(Arc::new(serde_json::from_slice(value).map_err(|_| "its value is not an entry")?)),
        };
        let (offset, written_ms) = (record.offset, record.timestamp_ms);
        self.live += usize::from(entry.is_some());
        let before = self.by_key.insert(key, Known { turn, entry, written_ms, offset, last: offset, read_at: Instant::now() });
        self.live -= usize::from(before.is_some_and(|before| before.entry.is_some()));
        Ok(())
    }

    fn prune(&mut self) {
        self.by_key.retain(|_, known| known.entry.is_some() || known.read_at.elapsed() < GONE_KEPT);
    }
}

/// Names hold no slash, groups may.
fn write_key((group, name): &Key) -> Bytes {
    format!("{name}/{group}").into()
}

fn read_key(bytes: &[u8]) -> Option<Key> {
    let (name, group) = std::str::from_utf8(bytes).ok()?.split_once('/')?;
    Some((group.to_owned(), name.to_owned()))
}

/// The topic.
#[async_trait]
pub(super) trait Log: Send + Sync + 'static {
    /// What it holds; `None` where there is no such topic.
    async fn bounds(&self) -> Result<Option<Bounds>, KafkaError>;
    /// Records from `from` to before `until`, in order.
    async fn read(&self, from: i64, until: i64, take: &mut (dyn FnMut(Record) + Send)) -> Result<(), KafkaError>;
    /// Creates the topic where it is missing.
    async fn make(&self) -> Result<(), KafkaError>;
    /// Writes a record, after the topic was made; gives its offset.
    async fn append(&self, key: Bytes, turn: u64, value: Option<Bytes>) -> Result<i64, KafkaError>;
}

/// This replica, as the others see it.
pub(crate) struct Me {
    /// `http.advertised`, where it is set.
    pub(crate) advertised: String,
    /// Whether it listens with TLS.
    pub(crate) tls: bool,
    /// Where the listeners are bound.
    pub(crate) bound: Arc<OnceLock<BTreeMap<&'static str, SocketAddr>>>,
    /// Where offsets are kept.
    pub(crate) store: String,
}

/// One replica's view of the topic.
pub(crate) struct Directory {
    log: Box<dyn Log>,
    me: Me,
    address: OnceLock<String>,
    entries_max: usize,
    bound: Duration,
    entries: Mutex<Entries>,
    /// Offset to read on at.
    next: AsyncMutex<i64>,
    /// When the end of the topic was last asked for, of those that were reached.
    fresh_at: Mutex<Option<Instant>>,
    locks: [AsyncMutex<()>; LOCKS],
    hasher: RandomState,
    /// A replica with a store of its own was met and told of.
    stranger: AtomicBool,
}

impl Directory {
    /// Reads nothing yet. `bound` limits each call.
    pub(super) fn new(log: impl Log, me: Me, entries_max: usize, bound: Duration) -> Self {
        Self {
            log: Box::new(log),
            me,
            address: OnceLock::new(),
            entries_max,
            bound,
            entries: Mutex::default(),
            next: AsyncMutex::new(0),
            fresh_at: Mutex::new(None),
            locks: std::array::from_fn(|_| AsyncMutex::default()),
            hasher: RandomState::new(),
            stranger: AtomicBool::new(false),
        }
    }

    /// This replica's address.
    pub(crate) fn me(&self) -> &str {
        if !self.me.advertised.is_empty() {
            return &self.me.advertised;
        }
        let Some(bound) = self.me.bound.get().and_then(|bound| bound.get("http")) else { return "" };
        self.address.get_or_init(|| {
            let scheme = if self.me.tls { "https" } else { "http" };
            if !bound.ip().is_unspecified() {
                return format!("{scheme}://{bound}");
            }
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{scheme}://{}:{}", host.trim(), bound.port())
        })
    }

    pub(crate) fn store(&self) -> &str {
        &self.me.store
    }

    /// One change of a session at a time, and none while it is held.
    pub(super) async fn lock(&self, key: &Key) -> Result<MutexGuard<'_, ()>> {
        let index = self.hasher.hash_one(key) as usize % LOCKS;
        timeout(self.bound, self.locks[index].lock())
            .await
            .map_err(|_| self.explain(BridgeError::new(Code::Timeout, "other changes take too long; try again")))
    }

    /// As far as it was read.
    pub(crate) fn known(&self, key: &Key) -> Option<Known> {
        self.entries.lock().by_key.get(key).cloned()
    }

    /// Refuses one entry more than there may be.
    pub(super) fn has_room(&self) -> Result<()> {
        if self.entries.lock().live < self.entries_max {
            return Ok(());
        }
        Err(BridgeError::new(
            Code::TooMany,
            format!(
                "all bridges together have {} consumer instances already (consume.directory_max); delete instances that are not used, or raise the limit",
                self.entries_max
            ),
        ))
    }

    /// Those that were not written for longer than `late` beyond their idle time.
    pub(super) fn stale(&self, now_ms: i64, late: Duration) -> Vec<(Key, Known)> {
        let is_stale = |known: &Known| {
            let idle_ms = known.entry.as_ref().map_or(i64::MAX, |entry| i64::try_from(entry.idle_ms).unwrap_or(i64::MAX));
            now_ms.saturating_sub(known.written_ms) > idle_ms.saturating_add(late.as_millis() as i64)
        };
        let entries = self.entries.lock();
        entries.by_key.iter().filter(|(_, known)| is_stale(known)).map(|(key, known)| (key.clone(), known.clone())).collect()
    }

    /// Reads up to an end of the topic that was asked for from now on.
    pub(crate) async fn sync(&self) -> Result<()> {
        self.within(self.read_on(Instant::now(), None)).await
    }

    /// Writes the turn after `turn` (0: there was none); gives whether it counted.
    pub(super) async fn change(&self, key: &Key, turn: u64, entry: Option<&Entry>) -> Result<bool> {
        let value = |entry| serde_json::to_vec(entry).map(Bytes::from);
        let value = entry.map(value).transpose().map_err(|error| BridgeError::new(Code::Internal, error.to_string()))?;
        self.within(async {
            let offset = self.log.append(write_key(key), turn + 1, value).await?;
            self.read_on(Instant::now(), Some(offset + 1)).await?;
            let known = self.known(key);
            let won = known.as_ref().is_some_and(|known| known.offset == offset);
            if let Some(Known { turn, entry: None, .. }) = known
                && !won
            {
                // Nobody holds it who would put the topic right. Whether this one counts is all the same: another one is newer then.
                self.log.append(write_key(key), turn + 1, None).await?;
            }
            Ok(won)
        })
        .await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, KafkaError>> + Send) -> Result<T> {
        match timeout(self.bound, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.explain(error.into())),
            Err(_) => {
                Err(self
                    .explain(BridgeError::new(Code::Timeout, format!("no answer within {:?} (offsets.timeout); try again", self.bound))))
            }
        }
    }

    fn explain(&self, error: BridgeError) -> BridgeError {
        // Its own topic, which no caller could create.
        let code = if error.code == Code::TopicNotFound { Code::KafkaRetriable } else { error.code };
        BridgeError::new(code, format!("the topic of all consumer instances (consume.sessions_topic): {}", error.message))
    }

    /// Up to the end, or to before `until`, which is known to be there.
    async fn read_on(&self, since: Instant, until: Option<i64>) -> Result<(), KafkaError> {
        let mut next = self.next.lock().await;
        let asked_at = Instant::now();
        let (from, until) = match until {
            Some(until) if until <= *next => return Ok(()),
            // An acknowledged record may not be visible for a moment.
            Some(until) => loop {
                if let Some(bounds) = self.log.bounds().await?
                    && bounds.latest >= until
                {
                    break (bounds.earliest.max(*next), bounds.latest);
                }
                tokio::time::sleep(VISIBLE_INTERVAL).await;
            },
            None if self.fresh_at.lock().is_some_and(|at| at >= since) => return Ok(()),
            None => {
                let bounds = match self.log.bounds().await? {
                    Some(bounds) => bounds,
                    None if *next == 0 => Bounds { earliest: 0, latest: 0 },
                    // A broker that has just started may not know its topics yet; who makes topics does, and makes none anew that is there.
                    None => {
                        self.log.make().await?;
                        let late = || KafkaError::Retryable("the broker does not know it yet".to_owned());
                        self.log.bounds().await?.ok_or_else(late)?
                    }
                };
                if bounds.latest < *next {
                    tracing::warn!("the topic of all consumer instances was made anew; every bridge writes what it holds");
                    *self.entries.lock() = Entries::default();
                    *next = 0;
                }
                (bounds.earliest.max(*next), bounds.latest)
            }
        };
        if from < until {
            let mut take = |record: Record| {
                if let Err(reason) = self.entries.lock().apply(&record) {
                    tracing::warn!(offset = record.offset, reason, "a record of the topic of all consumer instances is passed over");
                }
                // A read that breaks off goes on here.
                *next = record.offset + 1;
            };
            self.log.read(from, until, &mut take).await?;
        }
        *next = until.max(*next);
        *self.fresh_at.lock() = Some(asked_at);
        self.observe();
        Ok(())
    }

    fn observe(&self) {
        let mut entries = self.entries.lock();
        entries.prune();
        metrics::gauge!("millrace_bridge_session_entries").set(entries.live as f64);
        if self.stranger.load(Ordering::Relaxed) {
            return;
        }
        let strange = |entry: &&Arc<Entry>| entry.store != self.me.store;
        if let Some(entry) = entries.by_key.values().filter_map(|known| known.entry.as_ref()).find(strange) {
            tracing::warn!(
                here = self.me.store,
                there = entry.store,
                bridge = entry.owner,
                "another bridge keeps its offsets elsewhere: neither goes on where the other one stopped; give all of them the same [offsets] store that they share, or each a [consume] sessions_topic of its own"
            );
            self.stranger.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
