//! Exactly-once delivery: records and the positions of their files in one Kafka transaction.
//!
//! A session begins with a new writer, which fences any older one and ends what it left open, and with the committed
//! positions. Within it every event at or below its file's committed position is skipped: it was written by an earlier
//! transaction. So is one at or below what the transaction itself has reached: a source that was changed while its lines
//! could not be delivered reads them again. After an unknown outcome the session ends and the next one finds out what was committed.
//!
//! A commit costs some milliseconds whatever the transaction holds, so a transaction takes what is ready up to its
//! [`Bounds`]: it is sent in parts, and while one part is under way the next one is taken and made into records. It ends
//! at the latest when it holds half of what the channel may hold: the source fills the other half during the commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use service_kit::kafka::{self, KafkaConfig, KafkaError, OutRecord, TransactionalWriter, transactional_writer};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::Span;

use super::dead_letter::DeadLetters;
use super::flights::is_poison;
use super::positions::Positions;
use super::record::Maker;
use super::{Input, send_span};
use crate::channel::Taken;
use crate::event::{Event, Mark};
use crate::fault::Point;
use crate::source::{
    Stop,
    tail::{
        Forgotten, Found,
        identity::{Checksum, Remembered, TailedFile},
    },
};

pub struct Transactions {
    pub config: KafkaConfig,
    pub id: String,
    pub positions: Positions,
    pub maker: Maker,
    pub dead: DeadLetters,
    /// Where the source learns the committed positions.
    pub committed: watch::Sender<Option<Arc<Found>>>,
    /// Files whose positions nobody needs any more.
    pub forgotten: Forgotten,
    pub bounds: Bounds,
    pub linger: Duration,
    pub record_bytes_max: usize,
}

/// What one transaction takes in, at most.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub events: usize,
    pub bytes: usize,
    /// After so long it takes in nothing more, so that it ends well within `transaction.timeout.ms`.
    pub time: Duration,
}

/// Events of one part of a transaction: many enough that waiting for their acknowledgement is a small share, few enough
/// that their copies in the client are a small share of the memory.
const PART_EVENTS: usize = 4096;
/// Tombstones of one transaction.
const TOMBSTONES_MAX: usize = 1000;

/// After so many fencings within [`FENCED_WITHIN`] another process has the transactional id, and keeps it.
const FENCED_MAX: usize = 3;
const FENCED_WITHIN: Duration = Duration::from_secs(60);
/// Before it is taken back: far longer than taking over lasts, so that the two lose it in turns and each knows how often.
const FENCED_PAUSE: Duration = Duration::from_secs(2);

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A transaction that lasts so much longer than it takes events in is told.
const SLOW: Duration = Duration::from_secs(10);

/// Takes in the order of their events, and how many of the first one's are decided.
struct Held {
    takes: VecDeque<Taken>,
    decided: usize,
    /// Events of the next transaction, at most: fewer while the cause of an error is searched for, also with the next writer.
    most: usize,
    /// Events whose dead letter is written, so that an attempt that is made again does not write it again.
    put_aside: HashSet<u64>,
}

impl Held {
    /// Undecided events from the `from`th on.
    fn events(&self, from: usize, max: usize) -> impl Iterator<Item = &Event> {
        let mut skip = self.decided + from;
        let mut takes = self.takes.iter();
        // Whole takes are passed over at once.
        let first = takes.by_ref().find_map(|take| {
            let part = take.events().get(skip..).filter(|part| !part.is_empty());
            skip = skip.saturating_sub(take.len());
            part
        });
        first.into_iter().flatten().chain(takes.flat_map(Taken::events)).take(max)
    }

    fn len(&self) -> usize {
        self.takes.iter().map(Taken::len).sum::<usize>() - self.decided
    }

    /// The next `count` events are decided; takes that are through are committed.
    fn decide(&mut self, count: usize) {
        self.decided += count;
        while let Some(take) = self.takes.pop_front_if(|take| take.len() <= self.decided) {
            self.decided -= take.len();
            take.commit();
        }
        if self.takes.is_empty() {
            self.put_aside.clear();
        }
    }
}

/// When the writer was taken over by another one.
#[derive(Default)]
struct Fencings(VecDeque<Instant>);

impl Fencings {
    /// One more; true when there are too many. The process that was there first is fenced first, so the newer one stays.
    fn add(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.pop_front_if(|at| now.duration_since(*at) > FENCED_WITHIN).is_some() {}
        self.0.len() >= FENCED_MAX
    }
}

/// What topics take at once (`max.message.bytes`), asked for after a broker refused something as too large.
///
/// A refusal does not say whether a record is too large or only the request around it, and ends the transaction, which
/// costs half a second. So requests are kept below the limit from then on, and what is above it by itself is put aside
/// without being sent.
struct Limits {
    topics: HashMap<Arc<str>, (usize, Instant)>,
    /// Of a request, in bytes: the settings', or less.
    request_bytes: usize,
    set: usize,
    /// Then a record that is larger than the limit may still fit.
    compressed: bool,
}

/// The producer's own `batch.size`.
const REQUEST_BYTES: usize = 262_144;
/// What is around the only record of a request, at least.
const ALONE_BYTES: usize = 70;
/// A limit may be raised: after this it is tried whether it still holds.
const LIMIT_AGE_MAX: Duration = Duration::from_secs(60);
const LIMITS_MAX: usize = 1000;

impl Limits {
    fn of(config: &KafkaConfig) -> Self {
        let set = config.get("batch.size").and_then(|value| value.parse().ok()).unwrap_or(REQUEST_BYTES);
        let compressed = config.get("compression.type").is_some_and(|kind| !kind.eq_ignore_ascii_case("none"));
        Self { topics: HashMap::new(), request_bytes: set, set, compressed }
    }

    /// What the writer's `batch.size` has to be, where it is not the settings'.
    fn batch_size(&self) -> Option<usize> {
        (self.request_bytes < self.set).then_some(self.request_bytes)
    }

    fn knows(&self, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|(_, at)| at.elapsed() < LIMIT_AGE_MAX)
    }

    /// True when requests are to be smaller.
    fn learn(&mut self, topic: Arc<str>, bytes: usize) -> bool {
        if self.topics.len() >= LIMITS_MAX {
            self.topics.clear();
        }
        self.topics.insert(topic, (bytes, Instant::now()));
        let request_bytes = bytes.saturating_sub(2 * ALONE_BYTES);
        let smaller = request_bytes < self.request_bytes;
        self.request_bytes = self.request_bytes.min(request_bytes);
        smaller
    }

    /// The record's size, and what its topic takes where that is known to be less.
    fn excess(&self, record: &OutRecord) -> Option<(usize, usize)> {
        if self.topics.is_empty() || !self.knows(&record.topic) {
            return None;
        }
        let (max, bytes) = (self.topics.get(&record.topic)?.0, size(record));
        (bytes + ALONE_BYTES > max).then_some((bytes, max))
    }

    /// Why the record cannot be written whatever is around it.
    fn refuses(&self, record: &OutRecord) -> Option<String> {
        if self.compressed {
            return None;
        }
        self.excess(record).map(|(bytes, max)| {
            format!(
                "record of {bytes} bytes is larger than the max.message.bytes of topic \"{}\", {max}; raise it, or make the record smaller",
                record.topic
            )
        })
    }
}

/// Why a session ended.
enum Ended {
    Stopped,
    Lost(KafkaError),
    /// A broker refused something as too large for one of these topics.
    TooLarge(BTreeSet<Arc<str>>),
}

/// What became of an attempt.
enum Attempt {
    Committed,
    /// The writer is of no more use.
    Lost(KafkaError),
    /// The transaction was aborted.
    Aborted(KafkaError),
}

impl Transactions {
    pub async fn run(self, input: Input, stop: Stop) -> anyhow::Result<()> {
        let mut held = Held { takes: VecDeque::new(), decided: 0, most: self.bounds.events, put_aside: HashSet::new() };
        let mut backoff = BACKOFF_MIN;
        let mut told = String::new();
        let mut fencings = Fencings::default();
        let mut limits = Limits::of(&self.config);
        loop {
            let session = tokio::select! {
                session = self.begin_session(limits.batch_size()) => session,
                () = stop.begin.cancelled(), if held.takes.is_empty() => return Ok(()),
                () = stop.abandon.cancelled() => return Ok(()),
            };
            let error = match session {
                Ok((writer, committed)) => {
                    input.counters.connections_created.add(1);
                    let positions = committed.values().cloned().collect();
                    self.committed.send_replace(Some(Arc::new(Found { positions, forgotten: self.forgotten.clone() })));
                    let offsets = committed.into_iter().map(|(id, position)| (id, position.offset)).collect();
                    let session = Session { transactions: &self, writer, offsets, input: &input, limits: &limits };
                    let ended = tokio::select! {
                        ended = session.run(&mut held, &stop, &mut backoff, &mut told) => ended,
                        () = stop.abandon.cancelled() => return Ok(()),
                    };
                    match ended? {
                        Ended::Stopped => return Ok(()),
                        Ended::Lost(error) => error,
                        Ended::TooLarge(topics) => {
                            self.ask(topics, &mut limits, &input).await;
                            continue;
                        }
                    }
                }
                Err(error) => {
                    input.counters.connections_failed.add(1);
                    error
                }
            };
            let fenced = matches!(error, KafkaError::Fenced(_));
            anyhow::ensure!(
                !(fenced && fencings.add(Instant::now())),
                "another process uses the transactional id `{}` and has taken it over {FENCED_MAX} times within {} s; this sink leaves it \
                 to the other. Give one of them another id, then reload",
                self.id,
                FENCED_WITHIN.as_secs()
            );
            let advice = if fenced { "; does another process use the transactional id?" } else { "" };
            report(&input, &mut told, &format!("{error}{advice}"));
            tokio::select! {
                () = tokio::time::sleep(if fenced { backoff.max(FENCED_PAUSE) } else { backoff }) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = stop.begin.cancelled(), if held.takes.is_empty() => return Ok(()),
                () = stop.abandon.cancelled() => return Ok(()),
            }
        }
    }

    /// Asks what the topics take. Where nobody answers, the cause of a refusal is searched for.
    async fn ask(&self, topics: BTreeSet<Arc<str>>, limits: &mut Limits, input: &Input) {
        let admin = kafka::admin(&self.config).await;
        for topic in topics {
            let config = match &admin {
                Ok(admin) => admin.topic_config(&topic).await,
                Err(error) => Err(error.clone()),
            };
            let entry = config.map(|entries| entries.into_iter().find(|entry| entry.name == "max.message.bytes"));
            let bytes = match entry {
                Ok(entry) => entry.and_then(|entry| entry.value?.parse().ok()).unwrap_or(usize::MAX),
                Err(error) => {
                    tracing::debug!(sink = input.name(), %topic, %error, "its max.message.bytes is not known");
                    usize::MAX
                }
            };
            if limits.learn(topic.clone(), bytes) {
                tracing::warn!(
                    sink = input.name(), %topic, bytes,
                    "a request or record was larger than the topic's max.message.bytes; requests are smaller from now on \
                     (kafka.producer.batch.size)"
                );
            }
        }
    }

    async fn begin_session(
        &self,
        batch_size: Option<usize>,
    ) -> Result<(Box<dyn TransactionalWriter>, BTreeMap<u64, Remembered>), KafkaError> {
        let mut config = self.config.clone();
        if let Some(bytes) = batch_size {
            config.set("batch.size", bytes.to_string());
        }
        let writer = transactional_writer(&config, &self.id).await?;
        Point::TransactionWriterTaken.reach();
        let committed = self.positions.read().await?;
        Point::TransactionPositionsRead.reach();
        Ok((writer, committed))
    }
}

/// Once per kind of trouble, not per try.
fn report(input: &Input, told: &mut String, error: &str) {
    if told != error {
        tracing::warn!(sink = input.name(), error, "not delivered; trying again until it is");
        error.clone_into(told);
    }
    input.trouble(Some(error.to_owned()));
    input.counters.rollbacks.add(1);
}

struct Session<'a> {
    transactions: &'a Transactions,
    writer: Box<dyn TransactionalWriter>,
    /// File id → committed offset.
    offsets: HashMap<u64, u64>,
    input: &'a Input,
    limits: &'a Limits,
}

/// The transaction under way.
struct Open {
    since: Instant,
    /// The bounds, and half of the channel.
    events_max: usize,
    bytes_max: usize,
    time: Duration,
    /// Events taken in: those made into records, skipped or put aside.
    events: usize,
    bytes: usize,
    delivered: u64,
    skipped: u64,
    reached: BTreeMap<u64, (Arc<TailedFile>, Mark)>,
    /// The writer has begun it.
    begun: bool,
    /// One for each time takes were added, and how many takes they cover.
    spans: Vec<Span>,
    spanned: usize,
}

impl Open {
    /// Events of the next part, at most.
    fn room(&self) -> usize {
        PART_EVENTS.min(self.events_max.saturating_sub(self.events))
    }

    fn is_full(&self) -> bool {
        self.events >= self.events_max || self.bytes >= self.bytes_max || self.since.elapsed() >= self.time
    }
}

/// What is sent at once.
#[derive(Default)]
struct Part {
    events: usize,
    records: Vec<OutRecord>,
    /// Events that can never be written, and why.
    letters: Vec<(Event, String)>,
}

impl Session<'_> {
    /// Delivers until told to stop or until another writer is needed.
    async fn run(mut self, held: &mut Held, stop: &Stop, backoff: &mut Duration, told: &mut String) -> anyhow::Result<Ended> {
        let all = self.transactions.bounds.events;
        loop {
            if held.takes.is_empty() {
                if stop.begin.is_cancelled() {
                    return Ok(Ended::Stopped);
                }
                let room = self.open(all).room();
                tokio::select! {
                    takes = self.input.gather(room) => held.takes.extend(takes),
                    () = stop.begin.cancelled() => return Ok(Ended::Stopped),
                }
            }
            let (attempt, count) = {
                let (input, slow) = (self.input, self.transactions.bounds.time + SLOW);
                let attempt = self.attempt(held, stop);
                tokio::pin!(attempt);
                match timeout(slow, &mut attempt).await {
                    Ok(done) => done?,
                    Err(_) => {
                        let text = format!("a transaction is open for {} s: Kafka takes it slowly, or not at all", slow.as_secs());
                        tracing::warn!(sink = input.name(), "{text}");
                        input.trouble(Some(text));
                        attempt.await?
                    }
                }
            };
            match attempt {
                Attempt::Committed => {
                    held.decide(count);
                    Point::TransactionDecided.reach();
                    held.most = (held.most * 2).min(all);
                    *backoff = BACKOFF_MIN;
                    self.input.trouble(None);
                    if !std::mem::take(told).is_empty() {
                        tracing::info!(sink = self.input.name(), "delivering again");
                    }
                }
                Attempt::Lost(error) => return Ok(Ended::Lost(error)),
                Attempt::Aborted(error) if is_poison(&error, self.transactions.maker.topic()) => {
                    let mut suspect = None;
                    if matches!(error, KafkaError::TooLarge { .. }) {
                        let record = |event| self.transactions.maker.record(event).ok();
                        let mut unknown: BTreeSet<_> = held.events(0, count).filter_map(record).map(|record| record.topic).collect();
                        unknown.retain(|topic| !self.limits.knows(topic));
                        if !unknown.is_empty() {
                            return Ok(Ended::TooLarge(unknown));
                        }
                        suspect = held
                            .events(0, count)
                            .position(|event| record(event).is_some_and(|record| self.limits.excess(&record).is_some()));
                    }
                    if count > 1 {
                        // Those before the first one that may be at fault; it alone, when there are none.
                        held.most = suspect.map_or(count / 2, |before| before.max(1));
                    } else {
                        let letters = held.events(0, 1).map(|event| (event.clone(), error.to_string())).collect();
                        self.transactions.dead.put(letters, &self.input.counters.dead).await.context("dead letters cannot be written")?;
                        held.decide(1);
                    }
                }
                Attempt::Aborted(error) => {
                    self.input.counters.failed.add(count as u64);
                    report(self.input, told, &error.to_string());
                    tokio::select! {
                        () = tokio::time::sleep(*backoff) => *backoff = (*backoff * 2).min(BACKOFF_MAX),
                        () = stop.abandon.cancelled() => return Ok(Ended::Stopped),
                    }
                }
            }
        }
    }

    /// One transaction with the next events; says how many they were.
    async fn attempt(&mut self, held: &mut Held, stop: &Stop) -> anyhow::Result<(Attempt, usize)> {
        let mut open = self.open(held.most);
        let result = self.fill(held, &mut open, stop).await?;
        self.input.counters.sent_in(open.since.elapsed());
        if let Err(error) = result {
            return Ok((self.after(error).await, open.events));
        }
        for (id, (_, mark)) in open.reached {
            self.offsets.insert(id, mark.offset);
        }
        self.input.counters.delivered.add(open.delivered);
        self.input.counters.skipped.add(open.skipped);
        Ok((Attempt::Committed, open.events))
    }

    fn open(&self, most: usize) -> Open {
        let (bounds, channel) = (self.transactions.bounds, self.input.fill());
        Open {
            since: Instant::now(),
            events_max: most.min((channel.events_max / 2).max(1)),
            bytes_max: bounds.bytes.min(channel.bytes_max / 2),
            time: bounds.time,
            events: 0,
            bytes: 0,
            delivered: 0,
            skipped: 0,
            reached: BTreeMap::new(),
            begun: false,
            spans: Vec::new(),
            spanned: 0,
        }
    }

    /// Sends part after part until the transaction is full or no more events come, then the positions; commits.
    async fn fill(&mut self, held: &mut Held, open: &mut Open, stop: &Stop) -> anyhow::Result<Result<(), KafkaError>> {
        let mut part = self.transactions.part(held, open, &self.offsets, self.limits, self.input);
        let mut tombstones = Vec::new();
        let mut positions_sent = false;
        loop {
            self.transactions.put_aside(held, std::mem::take(&mut part.letters), self.input).await?;
            let full = open.is_full();
            if part.records.is_empty() {
                part = Part::default();
                if !full && self.transactions.more(held, open, self.input, stop).await {
                    part = self.transactions.part(held, open, &self.offsets, self.limits, self.input);
                }
                if part.events == 0 {
                    break;
                }
                continue;
            }
            if !std::mem::replace(&mut open.begun, true)
                && let Err(error) = self.writer.begin().await
            {
                return Ok(Err(error));
            }
            Point::TransactionBegun.reach();
            if full {
                tombstones = self.add_positions(&mut part.records, open)?;
                positions_sent = true;
            }
            let Session { transactions, writer, offsets, input, limits } = &mut *self;
            let next = async {
                if full {
                    return Part::default();
                }
                let (mut takes, mut count) = (Vec::new(), held.len() - open.events);
                input.gather_more(&mut takes, &mut count, open.room()).await;
                held.takes.extend(takes);
                transactions.part(held, open, offsets, limits, input)
            };
            let (sent, next) = tokio::join!(writer.queue(part.records), next);
            if let Err(error) = sent {
                return Ok(Err(error));
            }
            Point::TransactionPartSent.reach();
            if full {
                break;
            }
            part = next;
        }
        if !open.begun {
            return Ok(Ok(()));
        }
        if !positions_sent {
            let mut records = Vec::new();
            tombstones = self.add_positions(&mut records, open)?;
            if !records.is_empty()
                && let Err(error) = self.writer.queue(records).await
            {
                return Ok(Err(error));
            }
        }
        Point::TransactionPositionsSent.reach();
        if let Err(error) = self.writer.commit().await {
            return Ok(Err(error));
        }
        Point::TransactionCommitted.reach();
        let mut forgotten = self.transactions.forgotten.lock();
        for id in tombstones {
            forgotten.remove(&id);
            self.offsets.remove(&id);
        }
        Ok(Ok(()))
    }

    /// The positions that this transaction reaches, and tombstones for files that are through; gives the latter's ids.
    fn add_positions(&self, records: &mut Vec<OutRecord>, open: &Open) -> anyhow::Result<Vec<u64>> {
        for (file, mark) in open.reached.values() {
            records.push(self.transactions.positions.record(&file.remember(*mark))?);
        }
        let forgotten = self.transactions.forgotten.lock();
        let through: Vec<u64> = forgotten.iter().copied().filter(|id| !open.reached.contains_key(id)).take(TOMBSTONES_MAX).collect();
        // What has no committed position needs no tombstone.
        let written = through.iter().filter(|id| self.offsets.contains_key(id));
        records.extend(written.map(|&id| self.transactions.positions.tombstone(id)));
        Ok(through)
    }

    async fn after(&mut self, error: KafkaError) -> Attempt {
        let poisoned = |error: &KafkaError| matches!(error, KafkaError::OutcomeUnknown(_) | KafkaError::Fenced(_) | KafkaError::Fatal(_));
        if poisoned(&error) {
            return Attempt::Lost(error);
        }
        // No event's fault: a new session looks after the positions' topic, and makes it where it is gone.
        let of_positions = match &error {
            KafkaError::UnknownTopic(topic) => topic == self.transactions.positions.topic(),
            KafkaError::Timeout(_) => true,
            _ => false,
        };
        match self.writer.abort().await {
            Ok(()) if !of_positions => Attempt::Aborted(error),
            Ok(()) => Attempt::Lost(error),
            // A new writer ends what could not be aborted.
            Err(_) => Attempt::Lost(error),
        }
    }
}

impl Transactions {
    /// Waits for more events for what is left of the linger time; false when there are none.
    async fn more(&self, held: &mut Held, open: &Open, input: &Input, stop: &Stop) -> bool {
        if held.len() > open.events {
            return true;
        }
        let left = self.linger.saturating_sub(open.since.elapsed());
        let mut takes = Vec::new();
        input.gather_more(&mut takes, &mut 0, open.room()).await;
        if takes.is_empty() && !left.is_zero() && !stop.begin.is_cancelled() {
            takes.extend(timeout(left, input.take(open.room())).await.ok());
        }
        held.takes.extend(takes);
        held.len() > open.events
    }

    async fn put_aside(&self, held: &mut Held, mut letters: Vec<(Event, String)>, input: &Input) -> anyhow::Result<()> {
        letters.retain(|(event, _)| !held.put_aside.contains(&event.number));
        let numbers: Vec<u64> = letters.iter().map(|(event, _)| event.number).collect();
        self.dead.put(letters, &input.counters.dead).await.context("dead letters cannot be written")?;
        held.put_aside.extend(numbers);
        Ok(())
    }

    /// The next events that are held, as records.
    fn part(&self, held: &Held, open: &mut Open, offsets: &HashMap<u64, u64>, limits: &Limits, input: &Input) -> Part {
        let mut part = Part::default();
        for event in held.events(open.events, open.room()) {
            part.events += 1;
            open.bytes += event.size();
            if let Some(origin) = &event.origin
                && let Some(file) = &origin.file
            {
                let reached = open.reached.get(&file.id).map(|(_, mark)| mark.offset);
                if reached.or_else(|| offsets.get(&file.id).copied()).is_some_and(|reached| event.end <= reached) {
                    open.skipped += 1;
                    continue;
                }
                // The checksum before the position is known where a source batch ends.
                let tail = origin.mark.filter(|mark| mark.offset == event.end).map_or_else(Checksum::default, |mark| mark.tail);
                let mark = Mark { offset: event.end, tail };
                match open.reached.get_mut(&file.id) {
                    Some((_, reached)) => *reached = mark,
                    None => {
                        open.reached.insert(file.id, (file.clone(), mark));
                    }
                }
            }
            match self.maker.record(event) {
                Ok(record) if size(&record) > self.record_bytes_max => {
                    let reason = KafkaError::TooLarge { bytes: size(&record), max: self.record_bytes_max };
                    part.letters.push((event.clone(), reason.to_string()));
                }
                Ok(record) => match limits.refuses(&record) {
                    Some(reason) => part.letters.push((event.clone(), reason)),
                    None => part.records.push(record),
                },
                Err(poison) => part.letters.push((event.clone(), poison.0)),
            }
        }
        open.events += part.events;
        open.delivered += part.records.len() as u64;
        let new = held.takes.iter().skip(open.spanned);
        open.spans.extend(send_span(new, input.name()));
        open.spanned = held.takes.len();
        part
    }
}

fn size(record: &OutRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, |key| key.len()) + record.value.as_ref().map_or(0, |value| value.len()) + headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_topic_refuses_is_known_after_it_was_asked() {
        let record = |topic: &str, bytes: usize| OutRecord {
            topic: topic.into(),
            partition: None,
            key: None,
            value: Some(vec![0; bytes].into()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let mut config = KafkaConfig::new("h:1");
        let mut limits = Limits::of(&config);
        assert_eq!((limits.batch_size(), limits.refuses(&record("t", 900_000))), (None, None));
        assert!(limits.learn("t".into(), 20_000) && !limits.learn("u".into(), usize::MAX));
        assert_eq!(limits.batch_size(), Some(19_860));
        let refused = [("t", 19_930), ("t", 19_931), ("u", 900_000), ("v", 900_000)];
        assert_eq!(refused.map(|(topic, bytes)| limits.refuses(&record(topic, bytes)).is_some()), [false, true, false, false]);
        // Compressed it may fit.
        config.set("compression.type", "lz4");
        let mut limits = Limits::of(&config);
        limits.learn("t".into(), 20_000);
        assert_eq!(limits.refuses(&record("t", 30_000)), None);
    }

    #[test]
    fn the_third_fencing_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let at = |seconds: &[u64]| {
            let mut fencings = Fencings::default();
            seconds.iter().map(|&second| fencings.add(start + Duration::from_secs(second))).collect::<Vec<_>>()
        };
        assert_eq!(at(&[0, 1, 2]), [false, false, true]);
        assert_eq!(at(&[0, 59, 61, 100, 130, 131]), [false, false, false, true, false, true]);
    }
}
