//! Exactly-once delivery: records and the positions of their files in one Kafka transaction.
//!
//! A session begins with a new writer, which fences any older one and ends what it left open, and with the committed
//! positions. Within it every event at or below its file's committed position is skipped: it was written by an earlier
//! transaction. After an unknown outcome the session ends and the next one finds out what was committed.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use service_kit::kafka::{KafkaConfig, KafkaError, OutRecord, TransactionalWriter, transactional_writer};
use tokio::sync::watch;

use super::dead_letter::DeadLetters;
use super::flights::is_poison;
use super::positions::Positions;
use super::record::Maker;
use super::{Input, send_span};
use crate::channel::Taken;
use crate::event::{Event, Mark};
use crate::source::{
    Stop,
    tail::identity::{Checksum, Remembered, TailedFile},
};

pub struct Transactions {
    pub config: KafkaConfig,
    pub id: String,
    pub positions: Positions,
    pub maker: Maker,
    pub dead: DeadLetters,
    /// Where the source learns the committed positions.
    pub committed: watch::Sender<Option<Arc<Vec<Remembered>>>>,
    pub events_max: usize,
    pub linger: Duration,
    pub record_bytes_max: usize,
}

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Takes in the order of their events, and how many of the first one's are decided.
#[derive(Default)]
struct Held {
    takes: VecDeque<Taken>,
    decided: usize,
    /// Events whose dead letter is written, so that an attempt that is made again does not write it again.
    put_aside: HashSet<u64>,
}

impl Held {
    /// The next undecided events.
    fn events(&self, max: usize) -> impl Iterator<Item = &Event> {
        self.takes.iter().flat_map(Taken::events).skip(self.decided).take(max)
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
        let mut held = Held::default();
        let mut backoff = BACKOFF_MIN;
        let mut told = String::new();
        loop {
            let session = tokio::select! {
                session = self.begin_session() => session,
                () = stop.begin.cancelled(), if held.takes.is_empty() => return Ok(()),
                () = stop.abandon.cancelled() => return Ok(()),
            };
            let error = match session {
                Ok((writer, committed)) => {
                    input.counters.connections_created.add(1);
                    self.committed.send_replace(Some(Arc::new(committed.values().cloned().collect())));
                    let offsets = committed.into_iter().map(|(id, position)| (id, position.offset)).collect();
                    let session = Session { transactions: &self, writer, offsets, input: &input };
                    let ended = tokio::select! {
                        ended = session.run(&mut held, &stop, &mut backoff, &mut told) => ended,
                        () = stop.abandon.cancelled() => return Ok(()),
                    };
                    match ended? {
                        None => return Ok(()),
                        Some(error) => error,
                    }
                }
                Err(error) => {
                    input.counters.connections_failed.add(1);
                    error
                }
            };
            let advice = if matches!(error, KafkaError::Fenced(_)) { "; does another process use the transactional id?" } else { "" };
            report(&input, &mut told, &format!("{error}{advice}"));
            tokio::select! {
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = stop.begin.cancelled(), if held.takes.is_empty() => return Ok(()),
                () = stop.abandon.cancelled() => return Ok(()),
            }
        }
    }

    async fn begin_session(&self) -> Result<(Box<dyn TransactionalWriter>, BTreeMap<u64, Remembered>), KafkaError> {
        let writer = transactional_writer(&self.config, &self.id).await?;
        let committed = self.positions.read().await?;
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
}

impl Session<'_> {
    /// Delivers until told to stop (`None`) or until the writer is lost.
    async fn run(mut self, held: &mut Held, stop: &Stop, backoff: &mut Duration, told: &mut String) -> anyhow::Result<Option<KafkaError>> {
        let all = self.transactions.events_max;
        // Halved while the cause of an error is searched for.
        let mut most = all;
        loop {
            if held.takes.is_empty() {
                if stop.begin.is_cancelled() {
                    return Ok(None);
                }
                tokio::select! {
                    takes = self.input.gather(all) => held.takes.extend(takes),
                    () = stop.begin.cancelled() => return Ok(None),
                }
                if held.len() < all && !self.transactions.linger.is_zero() {
                    tokio::time::sleep(self.transactions.linger).await;
                    let (mut more, mut count) = (Vec::new(), held.len());
                    self.input.gather_more(&mut more, &mut count, all).await;
                    held.takes.extend(more);
                }
            }
            let count = held.len().min(most);
            let attempt = self.attempt(held, count).await?;
            match attempt {
                Attempt::Committed => {
                    held.decide(count);
                    most = (most * 2).min(all);
                    *backoff = BACKOFF_MIN;
                    self.input.trouble(None);
                    if !std::mem::take(told).is_empty() {
                        tracing::info!(sink = self.input.name(), "delivering again");
                    }
                }
                Attempt::Lost(error) => return Ok(Some(error)),
                Attempt::Aborted(error) if is_poison(&error, self.transactions.maker.topic()) => {
                    if count > 1 {
                        most = count / 2;
                    } else {
                        let letters = held.events(1).map(|event| (event.clone(), error.to_string())).collect();
                        self.transactions.dead.put(letters, &self.input.counters).await.context("dead letters cannot be written")?;
                        held.decide(1);
                    }
                }
                Attempt::Aborted(error) => {
                    self.input.counters.failed.add(count as u64);
                    report(self.input, told, &error.to_string());
                    tokio::select! {
                        () = tokio::time::sleep(*backoff) => *backoff = (*backoff * 2).min(BACKOFF_MAX),
                        () = stop.abandon.cancelled() => return Ok(None),
                    }
                }
            }
        }
    }

    /// One transaction with the next `count` events.
    async fn attempt(&mut self, held: &mut Held, count: usize) -> anyhow::Result<Attempt> {
        let mut records = Vec::with_capacity(count + 1);
        let mut reached: BTreeMap<u64, (Arc<TailedFile>, Mark)> = BTreeMap::new();
        let (mut letters, mut skipped) = (Vec::new(), 0);
        for event in held.events(count) {
            if let Some(origin) = &event.origin
                && let Some(file) = &origin.file
            {
                if self.offsets.get(&file.id).is_some_and(|&committed| event.end <= committed) {
                    skipped += 1;
                    continue;
                }
                // The checksum before the position is known where a source batch ends.
                let tail = origin.mark.filter(|mark| mark.offset == event.end).map_or_else(Checksum::default, |mark| mark.tail);
                reached.insert(file.id, (file.clone(), Mark { offset: event.end, tail }));
            }
            match self.transactions.maker.record(event) {
                Ok(record) if size(&record) > self.transactions.record_bytes_max => {
                    let reason = KafkaError::TooLarge { bytes: size(&record), max: self.transactions.record_bytes_max };
                    letters.push((event.clone(), reason.to_string()));
                }
                Ok(record) => records.push(record),
                Err(poison) => letters.push((event.clone(), poison.0)),
            }
        }
        let delivered = records.len() as u64;
        for (file, mark) in reached.values() {
            records.push(self.transactions.positions.record(&file.remember(*mark))?);
        }
        letters.retain(|(event, _)| !held.put_aside.contains(&event.number));
        let put_aside: Vec<u64> = letters.iter().map(|(event, _)| event.number).collect();
        self.transactions.dead.put(letters, &self.input.counters).await.context("dead letters cannot be written")?;
        held.put_aside.extend(put_aside);
        if !records.is_empty() {
            let span = send_span(&held.takes, self.input.name());
            let begun = tokio::time::Instant::now();
            let result = self.transaction(records).await;
            self.input
                .counters
                .send_ms
                .fetch_add(u64::try_from(begun.elapsed().as_millis()).unwrap_or_default(), std::sync::atomic::Ordering::Relaxed);
            drop(span);
            if let Err(error) = result {
                return Ok(self.after(error).await);
            }
        }
        for (id, (_, mark)) in reached {
            self.offsets.insert(id, mark.offset);
        }
        self.input.counters.delivered.add(delivered);
        self.input.counters.skipped.add(skipped);
        Ok(Attempt::Committed)
    }

    async fn transaction(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        self.writer.begin().await?;
        self.writer.send(records).await?;
        self.writer.commit().await
    }

    async fn after(&mut self, error: KafkaError) -> Attempt {
        let poisoned = |error: &KafkaError| matches!(error, KafkaError::OutcomeUnknown(_) | KafkaError::Fenced(_) | KafkaError::Fatal(_));
        if poisoned(&error) {
            return Attempt::Lost(error);
        }
        match self.writer.abort().await {
            Ok(()) => Attempt::Aborted(error),
            // A new writer ends what could not be aborted.
            Err(_) => Attempt::Lost(error),
        }
    }
}

fn size(record: &OutRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.key.as_ref().map_or(0, |key| key.len()) + record.value.as_ref().map_or(0, |value| value.len()) + headers
}
