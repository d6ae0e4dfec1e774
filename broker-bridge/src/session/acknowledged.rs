//! Sessions with `delivery = acknowledged`: a batch is given again until it is acknowledged, rejected, or its time is over.
//!
//! - A fetch gives what is due again, then new records, as one batch with an id. As long as nothing of it was acknowledged or rejected and its
//!   visibility timeout is not over, the next fetch gives the same batch again, byte for byte: a client that lost an answer just asks again.
//! - Acknowledged is by batch or by record, in any order. What is rejected comes again at once, or after a delay; what is not acknowledged in time
//!   comes again, too, in a later batch and with its attempt's number.
//! - After `delivery.attempts.max` attempts a record goes to the dead-letter topic, and counts as acknowledged once Kafka has it there. So does one
//!   that the session's format cannot show. Without a dead-letter topic a record is delivered until it is acknowledged.
//! - What is out is bounded (`consume.window_records_max` a partition, `consume.response_bytes_max` the session): behind a record that is never
//!   acknowledged, no more than that is delivered, and answers say so.
//! - Acknowledgements are stored before they are answered, attempts before the batch is: whoever goes on with the partition, after a restart
//!   or a rebalance, delivers nothing again that was acknowledged, and counts on. What was out then is due at once.
//! - The first thing that a session does with a new partition is to raise the group's epoch: an acknowledgement that is still on its way from the
//!   partition's last owner is refused, and that owner looks who has it now. A session that was cut off without noticing and acknowledges in
//!   the moment between its successor's look and write is not kept from it; those records come again.
//!
//! - A seek begins a new window and is stored at once, so that whoever goes on knows of it. Ids of batches are their owner's: after a takeover, one of
//!   before is refused, and what is acknowledged by offsets and was not read again yet is ignored; both come again.
//!
//! Sessions of one group should have the same delivery: an ordinary one that commits knows nothing of a window, and what was acknowledged
//! above its offset comes again.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use service_kit::{
    kafka::{OutRecord, TopicPartition},
    offsets::{GroupOffsets, OffsetCommit, OffsetError},
};
use tokio::{
    sync::{MutexGuard, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    EncodeBatch, HELD_INTERVAL, Limits, POLL_WAIT_MAX, Session,
    batches::DeadLetter,
    state::State,
    window::{ATTEMPTS_MAX, Held, Settled, Window},
};
use crate::{
    auth::{self, Kind, Verb},
    error::{BridgeError, Code, Result},
    gate::Work,
};

/// Dead letters written at a time.
const DEAD_LETTERS_MAX: usize = 100;
/// How long one that could not be written waits.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(1);
/// Windows in one commit; each has some 4 KiB, and ZooKeeper takes 1 MiB.
const STORED_AT_ONCE: usize = 100;
/// Takeovers by others, in one acknowledgement: each is a rebalance.
const TAKEOVERS_MAX: usize = 10;

/// How a session delivers until it is told that a record is done with.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    /// How long a batch is out.
    pub(crate) visibility: Duration,
    pub(crate) dead_letters: Option<DeadLetters>,
}

#[derive(Clone, Debug)]
pub(crate) struct DeadLetters {
    pub(crate) topic: Arc<str>,
    pub(crate) attempts_max: u32,
}

/// Where the client does not say it.
const VISIBILITY: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
/// Longest reason of a reject, in bytes: it becomes a header of a dead letter.
const REASON_BYTES_MAX: usize = 1_000;

impl Acknowledged {
    /// As a client wants it. `idle`: an instance that is not used for longer leaves its group, and its records come again.
    pub(crate) fn new(
        visibility: Option<Duration>,
        attempts_max: Option<u64>,
        dead_letter_topic: Option<String>,
        idle: Duration,
    ) -> Result<Self> {
        let wrong = |message: String| Err(BridgeError::new(Code::InvalidConsumerConfig, message));
        let visibility = visibility.unwrap_or(VISIBILITY.min(idle));
        if visibility.is_zero() || visibility > idle {
            let (given, most) = (visibility.as_millis(), idle.as_millis());
            return wrong(format!("visibility.timeout.ms = {given} is not possible; give 1 to {most} (consume.session_idle)"));
        }
        let attempts = attempts_max.unwrap_or(u64::from(ATTEMPTS));
        let Some(checked) = u32::try_from(attempts).ok().filter(|attempts| (1..=ATTEMPTS_MAX).contains(attempts)) else {
            return wrong(format!("delivery.attempts.max = {attempts} is not possible; give 1 to {ATTEMPTS_MAX}"));
        };
        let dead_letters = match dead_letter_topic {
            Some(topic) => Some(DeadLetters { topic: topic.into(), attempts_max: checked }),
            None if attempts_max.is_none() => None,
            None => {
                let remedy = "needs dead.letter.topic: without one, a record is delivered until it is acknowledged";
                return wrong(format!("delivery.attempts.max {remedy}"));
            }
        };
        Ok(Self { visibility, dead_letters })
    }

    /// Whether it goes to the dead-letter topic in place of being delivered again.
    pub(super) fn is_dead(&self, held: &Held) -> bool {
        self.dead_letters.as_ref().is_some_and(|letters| held.refused.is_some() || held.attempts >= letters.attempts_max)
    }

    pub(super) fn is_due(&self, held: &Held, now: Instant) -> bool {
        held.due <= now && held.refused.is_none() && !self.is_dead(held)
    }

    /// Without being acknowledged, it is looked at again.
    pub(super) fn comes_again(&self, held: &Held) -> bool {
        held.refused.is_none() || self.is_dead(held)
    }
}

/// A fetched batch.
pub(crate) struct Fetched<E> {
    pub(crate) answer: E,
    /// To acknowledge it by; `None` where nothing came.
    pub(crate) batch: Option<String>,
    /// Partitions that give nothing new until some of their records are acknowledged.
    pub(crate) full: Vec<TopicPartition>,
}

/// What a client says of records that it got.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// All of them is acknowledged, but what is rejected here or before.
    pub(crate) batches: Vec<String>,
    pub(crate) acknowledge: Vec<(TopicPartition, i64)>,
    pub(crate) reject: Vec<Reject>,
}

#[derive(Debug)]
pub(crate) struct Reject {
    pub(crate) partition: TopicPartition,
    pub(crate) offset: i64,
    pub(crate) delay: Duration,
    pub(crate) why: Cow<'static, str>,
}

impl Reject {
    /// `idle` bounds the delay, as it does [`Acknowledged::new`]'s time.
    pub(crate) fn new(partition: TopicPartition, offset: i64, delay: Duration, reason: Option<String>, idle: Duration) -> Result<Self> {
        let wrong = |message: String| Err(BridgeError::new(Code::Unprocessable, message));
        if delay > idle {
            return wrong(format!("delay_ms = {} is longer than {} (consume.session_idle)", delay.as_millis(), idle.as_millis()));
        }
        let why = match reason {
            None => Cow::Borrowed("rejected"),
            Some(reason) if reason.len() > REASON_BYTES_MAX => {
                return wrong(format!("a reason of {} bytes is longer than {REASON_BYTES_MAX}; shorten it", reason.len()));
            }
            Some(reason) => Cow::Owned(format!("rejected: {reason}")),
        };
        Ok(Self { partition, offset, delay, why })
    }
}

/// What became of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Acknowledged now or before.
    pub(crate) acknowledged: usize,
    pub(crate) rejected: usize,
    /// Records that this instance has not out: never delivered by it, rejected after they were acknowledged, or their partition moved.
    pub(crate) ignored: Vec<(TopicPartition, i64)>,
}

/// What storing the windows did.
#[derive(Default)]
pub(super) struct Kept {
    /// Offsets that moved, for Kafka's copy.
    moved: Vec<(TopicPartition, i64)>,
    /// Partitions that somebody else has now.
    lost: BTreeSet<TopicPartition>,
}

impl Session {
    fn acknowledged(&self) -> Result<&Acknowledged> {
        self.settings.acknowledged.as_ref().ok_or_else(|| {
            BridgeError::new(
                Code::IllegalState,
                format!(
                    "instance {:?} of group {:?} has no batches to acknowledge; create it with \"delivery\": \"acknowledged\", or commit offsets",
                    self.name, self.group
                ),
            )
        })
    }

    /// The next batch, or the last one again. `acknowledge`: a batch that is done with, as in [`Self::settle`].
    pub(crate) async fn fetch_batch<E: EncodeBatch>(
        self: &Arc<Self>,
        limits: Limits,
        acknowledge: Option<String>,
        encode: E,
    ) -> Result<Fetched<E>> {
        if let Some(batch) = acknowledge {
            let outcome = self.settle(Settlement { batches: vec![batch], ..Settlement::default() }).await?;
            if let Some((partition, _)) = outcome.ignored.first() {
                return Err(self.illegal(&format!(
                    "has lost {partition}, whose records come again; the rest of the batch is acknowledged, fetch without acknowledging it"
                )));
            }
        }
        self.fetch_after(limits, true, encode).await
    }

    /// The next batch, even while the last one is out: for a stream, which does not lose answers.
    pub(crate) async fn fetch_on<E: EncodeBatch>(self: &Arc<Self>, limits: Limits, encode: E) -> Result<Fetched<E>> {
        self.fetch_after(limits, false, encode).await
    }

    async fn fetch_after<E: EncodeBatch>(self: &Arc<Self>, limits: Limits, may_repeat: bool, encode: E) -> Result<Fetched<E>> {
        let reads = self.reads.lock().clone();
        auth::check_subscription(&self.group, reads.iter().map(String::as_str))?;
        if let Some(letters) = &self.acknowledged()?.dead_letters {
            auth::check(Verb::Write, Kind::Topic, &letters.topic)?;
        }
        let (answer, answered) = oneshot::channel();
        let session = Arc::clone(self);
        // A task of its own: a caller that hangs up must not take polled records with it. A batch that nobody was there for is given again.
        let work = async move {
            let fetched = session.next_batch(limits, may_repeat, encode, &answer).await;
            session.has_fetched(fetched.as_ref().is_ok_and(|fetched| fetched.batch.is_some()));
            drop(answer.send(fetched));
        };
        self.deps.tasks.spawn(auth::carrier().run(work));
        answered.await.unwrap_or_else(|_| Err(BridgeError::new(Code::Internal, "the session's task ended without an answer")))
    }

    async fn next_batch<E: EncodeBatch>(
        &self,
        limits: Limits,
        may_repeat: bool,
        mut encode: E,
        answer: &oneshot::Sender<Result<Fetched<E>>>,
    ) -> Result<Fetched<E>> {
        let settings = self.acknowledged()?;
        let (records_max, bytes_max) = (self.deps.config.window_records_max, self.deps.config.response_bytes_max);
        let until = Instant::now() + limits.wait;
        let _pass = self.deps.gate.enter(Work::Consume, 1)?;
        // Another request may be waiting for records: this one waits no longer than it may, and gets none.
        let polling = timeout(limits.wait, self.polling.lock()).await;
        let (mut nothing_came, mut over) = (false, false);
        loop {
            // Who hung up is given no batch: its time would pass for nothing.
            if polling.is_err() || answer.is_closed() || self.deps.shutdown.is_cancelled() {
                return Ok(self.fetched(encode, None, Vec::new()));
            }
            let mut state = self.open().await?;
            self.follow_assignment(&mut state).await?;
            if state.source.is_none() {
                return Err(self.illegal("is not subscribed and has no partitions; subscribe or assign first"));
            }
            let now = Instant::now();
            let repeats = may_repeat && state.repeats(now);
            let letters = if repeats { Vec::new() } else { state.dead_letters(settings, now, DEAD_LETTERS_MAX) };
            if !letters.is_empty() {
                // Only its owner writes it: storing the windows shows who that is.
                state.store_again(letters.iter().map(|letter| &letter.partition));
                let kept = self.keep(&mut state).await?;
                let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
                drop(state);
                self.mirror(member, kept.moved).await;
                if !kept.lost.is_empty() {
                    continue;
                }
                self.write_dead_letters(letters, settings).await?;
                continue;
            }
            let next_due = state.next_due(settings).filter(|_| !repeats);
            let (count, bytes) = state.fresh(records_max);
            let has_enough = next_due.is_some_and(|due| due <= now) || (count > 0 && bytes >= limits.bytes_min);
            let is_full = count >= limits.records_max || bytes >= limits.bytes_max;
            let all_held = self.holds_enough(self.windows_bytes_max());
            if repeats || over || is_full || (has_enough && (nothing_came || all_held)) {
                let schemas = encode.wants(state.candidates(repeats, records_max, settings, now));
                if !schemas.is_empty() {
                    drop(state);
                    encode.look_up(schemas).await?;
                    continue;
                }
                let full = if repeats { Vec::new() } else { state.full(records_max, bytes_max) };
                if repeats {
                    state.repeat(&mut encode)?;
                } else if !state.choose(&limits, records_max, settings, now, &mut encode) {
                    if !over {
                        // None of it can be shown.
                        over = until <= Instant::now();
                        continue;
                    }
                    if let Some(trouble) = state.trouble(settings) {
                        return Err(trouble);
                    }
                    drop(state);
                    self.keep_and_mirror().await?;
                    self.check_topics().await?;
                    return Ok(self.fetched(encode, None, full));
                }
                let kept = self.keep(&mut state).await?;
                if !state.repeats(now) {
                    encode.clear();
                    state.withdraw(now);
                    continue;
                }
                let (id, count, again) = state.give_out(Instant::now() + settings.visibility);
                metrics::counter!("millrace_bridge_consume_records_total").increment(count as u64);
                metrics::counter!("millrace_bridge_redelivered_records_total").increment(again as u64);
                self.measure(&state);
                let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
                drop(state);
                self.mirror(member, kept.moved).await;
                return Ok(self.fetched(encode, Some(id), full));
            }
            let left = until.saturating_duration_since(now);
            if all_held {
                // Windows leave room for those who only pass records on.
                drop(state);
                self.keep_and_mirror().await?;
                over = left.is_zero() || self.deps.shutdown.is_cancelled();
                sleep(left.min(HELD_INTERVAL)).await;
                continue;
            }
            let wait = if has_enough { Duration::ZERO } else { left.min(POLL_WAIT_MAX) };
            let wait = next_due.map_or(wait, |due| wait.min(due.saturating_duration_since(now)));
            self.pause(&mut state, records_max, bytes_max).await;
            drop(state);
            self.keep_and_mirror().await?;
            nothing_came = self.read(wait).await?;
            over = left.is_zero() || self.deps.shutdown.is_cancelled();
        }
    }

    fn fetched<E>(&self, answer: E, batch: Option<String>, full: Vec<TopicPartition>) -> Fetched<E> {
        if !full.is_empty() {
            metrics::counter!("millrace_bridge_full_window_answers_total").increment(1);
        }
        Fetched { answer, batch, full }
    }

    /// Of what all sessions may hold: a window may be held for long.
    fn windows_bytes_max(&self) -> u64 {
        self.deps.config.held_bytes_max / 2
    }

    /// Polls once; true where nothing came.
    async fn read(&self, wait: Duration) -> Result<bool> {
        let (member, seeks) = {
            let state = self.open().await?;
            let Some(source) = &state.source else { return Ok(true) };
            (Arc::clone(&source.member), state.seeks)
        };
        let polled = self.poll(&member, wait).await?;
        let nothing_came = polled.is_empty();
        if self.deps.shutdown.is_cancelled() {
            return Ok(true);
        }
        let mut state = self.open().await?;
        if !state.source.as_ref().is_some_and(|source| Arc::ptr_eq(&source.member, &member)) {
            return Ok(nothing_came);
        }
        self.follow_assignment(&mut state).await?;
        for partition in state.behind(&polled, seeks) {
            self.judge(&mut state, &partition).await?;
        }
        for partition in state.absorb(polled, seeks) {
            // The client may have read on from before the seek, or from before the partition was taken over.
            let sought = state.partitions.get_mut(&partition).map(|progress| (progress.floor, std::mem::take(&mut progress.window)));
            if let Some((floor, window)) = sought {
                self.seek_one(&mut state, &partition, floor).await?;
                if let Some(progress) = state.partitions.get_mut(&partition) {
                    progress.window = window;
                }
            }
        }
        state.take_in(Instant::now());
        if nothing_came {
            let positions = member.positions().await;
            state.pass_marks_of_windows(&positions);
        }
        self.measure(&state);
        Ok(nothing_came)
    }

    /// Keeps the client from reading what there is no room for.
    async fn pause(&self, state: &mut State, records_max: usize, bytes_max: usize) {
        let Some(member) = state.source.as_ref().map(|source| Arc::clone(&source.member)) else { return };
        let unwanted = state.unwanted(records_max, bytes_max);
        let resumed = state.paused.difference(&unwanted).filter(|partition| state.partitions.contains_key(*partition));
        let resumed: Vec<_> = resumed.map(|partition| (partition.clone(), false)).collect();
        let paused: Vec<_> = unwanted.difference(&state.paused).map(|partition| (partition.clone(), true)).collect();
        for (partition, pause) in resumed.into_iter().chain(paused) {
            match member.set_paused(&partition, pause).await {
                Ok(()) if pause => drop(state.paused.insert(partition)),
                Ok(()) => drop(state.paused.remove(&partition)),
                Err(error) => tracing::debug!(%error, %partition, pause, "not paused or resumed; the next fetch does it"),
            }
        }
    }

    /// Writes what is not to be delivered any more where it can be looked at.
    async fn write_dead_letters(&self, letters: Vec<DeadLetter>, settings: &Acknowledged) -> Result<()> {
        let Some(DeadLetters { topic, .. }) = &settings.dead_letters else { return Ok(()) };
        let sent = letters.iter().map(|letter| async move {
            let records = vec![self.dead_letter(letter, topic)];
            let receipt = self.deps.produce.send(Some(&letter.id), records, None).await?;
            receipt.results.first().cloned().unwrap_or_else(|| Err(BridgeError::new(Code::Internal, "no result for the record")))
        });
        let results = join_all(sent).await;
        let mut state = self.open().await?;
        let now = Instant::now();
        for (DeadLetter { partition, record, attempts, why, .. }, result) in letters.into_iter().zip(results) {
            let outcome = if result.is_ok() { "written" } else { "failed" };
            metrics::counter!("millrace_bridge_dead_letters_total", "outcome" => outcome).increment(1);
            match result {
                Ok(_) => {
                    tracing::info!(group = self.group, %partition, offset = record.offset, attempts, %why, dead_letter_topic = &**topic, "a record is a dead letter");
                    state.settle(&partition, record.offset);
                }
                Err(error) => {
                    tracing::warn!(group = self.group, %partition, offset = record.offset, %error, dead_letter_topic = &**topic, "a dead letter is not written yet");
                    if let Some(progress) = state.partitions.get_mut(&partition) {
                        progress.window.put_off(record.offset, now + DEAD_LETTER_RETRY);
                    }
                    let message = format!("dead-letter topic {topic} does not take {partition} at offset {}: {error}", record.offset);
                    state.batches.trouble = Some(BridgeError::new(error.code, message));
                }
            }
        }
        Ok(())
    }

    /// The record as it was, and where it comes from.
    fn dead_letter(&self, letter: &DeadLetter, topic: &Arc<str>) -> OutRecord {
        let DeadLetter { partition, record, attempts, why, .. } = letter;
        let mut headers: Vec<(String, bytes::Bytes)> =
            record.headers.iter().map(|(name, value)| (name.clone(), value.clone().unwrap_or_default())).collect();
        for (name, value) in [
            ("topic", partition.topic.to_string()),
            ("partition", partition.partition.to_string()),
            ("offset", record.offset.to_string()),
            ("group", self.group.clone()),
            ("attempts", attempts.to_string()),
            ("reason", why.to_string()),
        ] {
            headers.push((format!("millrace.dead-letter.{name}"), value.into()));
        }
        OutRecord {
            topic: Arc::clone(topic),
            partition: None,
            key: record.key.clone(),
            value: record.value.clone(),
            headers,
            timestamp_ms: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
        }
    }

    /// Acknowledges and rejects; stored when it answers.
    pub(crate) async fn settle(&self, wanted: Settlement) -> Result<Outcome> {
        self.acknowledged()?;
        auth::check_subscription(&self.group, [])?;
        let both =
            wanted.reject.iter().find(|reject| wanted.acknowledge.iter().any(|(of, at)| (of, *at) == (&reject.partition, reject.offset)));
        if let Some(Reject { partition, offset, .. }) = both {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!("{partition} at offset {offset} is acknowledged and rejected in one request; do one of them"),
            ));
        }
        let mut state = self.open().await?;
        self.follow_assignment(&mut state).await?;
        let batches: Vec<u64> = wanted.batches.iter().map(|id| state.batch_number(id)).collect::<Result<_>>()?;
        let mut outcome = Outcome::default();
        let now = Instant::now();
        for Reject { partition, offset, delay, why } in wanted.reject {
            if state.reject(&partition, offset, now + delay, why) {
                outcome.rejected += 1;
            } else {
                outcome.ignored.push((partition, offset));
            }
        }
        let mut acknowledged = state.acknowledge_batches(&batches);
        for (partition, offset) in wanted.acknowledge {
            match state.settle(&partition, offset) {
                Settled::Now | Settled::Before => acknowledged.push((partition, offset)),
                Settled::Unknown => outcome.ignored.push((partition, offset)),
            }
        }
        let kept = self.keep(&mut state).await?;
        let (lost, acknowledged): (Vec<_>, Vec<_>) = acknowledged.into_iter().partition(|(partition, _)| kept.lost.contains(partition));
        outcome.acknowledged = acknowledged.len();
        outcome.ignored.extend(lost);
        self.measure(&state);
        let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
        drop(state);
        self.mirror(member, kept.moved).await;
        Ok(outcome)
    }

    /// What a commit of offsets means here: everything that was delivered below them, or all that was delivered, is acknowledged.
    pub(super) async fn settle_below(&self, ends: Option<Vec<OffsetCommit>>) -> Result<()> {
        let mut state = self.open().await?;
        self.follow_assignment(&mut state).await?;
        for end in ends.iter().flatten() {
            if !state.partitions.contains_key(&end.partition) {
                return Err(self.not_assigned(&end.partition));
            }
            if !end.metadata.is_empty() {
                return Err(self.illegal("keeps its window in the metadata of offsets; commit without metadata"));
            }
        }
        self.check_ends(&state, ends.as_deref().unwrap_or_default()).await?;
        state.acknowledge_below(ends.as_deref());
        drop(state);
        self.keep_and_mirror().await
    }

    /// Stores the windows that begin where the client sought.
    pub(super) async fn keep_sought(&self, mut state: MutexGuard<'_, State>, positions: &[(TopicPartition, i64)]) -> Result<()> {
        state.store_again(positions.iter().map(|(partition, _)| partition));
        let kept = self.keep(&mut state).await?;
        let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
        drop(state);
        self.mirror(member, kept.moved).await;
        match positions.iter().find(|(partition, _)| kept.lost.contains(partition)) {
            Some((partition, _)) => Err(self.not_assigned(partition)),
            None => Ok(()),
        }
    }

    async fn keep_and_mirror(&self) -> Result<()> {
        let mut state = self.open().await?;
        let kept = self.keep(&mut state).await?;
        let member = state.source.as_ref().map(|source| Arc::clone(&source.member));
        drop(state);
        self.mirror(member, kept.moved).await;
        Ok(())
    }

    /// Fences the former owners of partitions that come: what they acknowledge from now on is refused.
    pub(super) async fn fence(&self, state: &mut State) -> Result<()> {
        self.deps.store.reset(&self.group, &[]).await?;
        if !state.partitions.is_empty() {
            // The session's own ones are under the new epoch from now on, as far as they are its own.
            self.lose(state).await?;
        }
        Ok(())
    }

    /// Stores the windows that changed.
    pub(super) async fn keep(&self, state: &mut State) -> Result<Kept> {
        let (mut kept, mut takeovers) = (Kept::default(), 0);
        while takeovers < TAKEOVERS_MAX {
            let mut commits = state.changed_windows();
            if commits.is_empty() {
                return Ok(kept);
            }
            commits.truncate(STORED_AT_ONCE);
            let store = &self.deps.store;
            let (back, on): (Vec<OffsetCommit>, Vec<OffsetCommit>) = commits.iter().cloned().partition(|commit| state.goes_back(commit));
            // First what only goes on, also if it is nothing: that tells whether the epoch still holds, for which a reset does not ask.
            let mut stored = store.commit(&self.group, state.epoch, &on).await;
            if stored.is_ok() && !back.is_empty() {
                // The client sought back, and has acknowledged since.
                stored = store.reset(&self.group, &back).await.map(|epoch| state.epoch = epoch);
            }
            match stored {
                Ok(()) => kept.moved.extend(state.kept(&commits)),
                Err(OffsetError::Fenced { .. } | OffsetError::Regressed { .. }) => {
                    takeovers += 1;
                    kept.lost.extend(self.lose(state).await?);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(BridgeError::new(Code::Unavailable, format!("group {:?} rebalances all the time; try again", self.group)))
    }

    /// Looks which partitions are still this session's; gives those that are not, and forgets them. One that is assigned all the same, as after a
    /// reset of the group, is taken up again from what is stored.
    async fn lose(&self, state: &mut State) -> Result<BTreeSet<TopicPartition>> {
        let partitions: Vec<TopicPartition> = state.partitions.keys().cloned().collect();
        let GroupOffsets { epoch, offsets } = self.deps.store.get(&self.group, Some(&partitions)).await?;
        let assigned: BTreeSet<TopicPartition> = match &state.source {
            None => BTreeSet::new(),
            Some(source) => source.member.assignment().await.into_iter().collect(),
        };
        state.epoch = epoch;
        let mut lost = BTreeSet::new();
        for (partition, progress) in &state.partitions {
            if !assigned.contains(partition) || !progress.window.is_mine(offsets.get(partition), progress.committed) {
                lost.insert(partition.clone());
            }
        }
        for partition in &lost {
            state.partitions.remove(partition);
            tracing::info!(group = self.group, instance = self.name, %partition, "the partition has another owner, or the group was reset; its window is given up");
        }
        Ok(lost)
    }

    /// What a session takes over with a partition: what is stored, or what it had before where nobody stored anything since.
    pub(super) fn take_over(&self, state: &mut State, stored: &GroupOffsets, partition: &TopicPartition, start: Option<i64>) {
        let parked = state.parked.remove(partition);
        let stored = stored.offsets.get(partition).filter(|stored| Some(stored.offset) == start);
        if let (Some(stored), Some(progress)) = (stored, state.partitions.get_mut(partition)) {
            let mine = parked.filter(|window| window.is_mine(Some(stored), start));
            progress.window = mine.unwrap_or_else(|| Window::restored(stored));
        }
    }
}
