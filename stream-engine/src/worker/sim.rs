//! A Kafka in memory for the slots: transactions with epochs and fencing, last stable offsets, a group with generations, sessions and `range`; and processes
//! that die, sleep, and lose answers, at any of the calls they make.
//!
//! Time stands still but when the driver moves it, and every choice comes from a seed: a schedule can be run again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use service_kit::kafka::{
    Assignment, Bounds, KafkaError, MemberIdentity, MemberOnHold, OutRecord, RangeReader, Record, TopicPartition, TransactionalWriter,
    Written,
};
use tokio::sync::watch;

use crate::batch::SourceSpec;
use crate::batch::clock::{Clock, ManualClock};
use crate::commit::progress::Job;
use crate::commit::topic_log::Clients;
use crate::source::Cluster;

/// How long a member may be silent.
pub(super) const SESSION_MS: i64 = 400;
/// How long a transaction may be open.
const TRANSACTION_MS: i64 = 900;

/// SplitMix64.
#[derive(Clone)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// What happens to a process at one of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The call does not reach the broker, and the process is no more.
    DieBefore,
    /// The call has its effect, and the process is no more.
    DieAfter,
    /// The process stands still for so many milliseconds, then goes on with the call.
    Sleep(i64),
    /// The call has its effect, and its answer is lost.
    LoseAnswer,
    /// The call does not reach the broker.
    Refuse,
}

/// One worker process, as the broker sees it.
pub(super) struct Process {
    pub(super) name: String,
    state: Mutex<ProcessState>,
}

#[derive(Default)]
struct ProcessState {
    calls: u64,
    fates: BTreeMap<u64, Fate>,
    dead: bool,
    asleep_until_ms: i64,
}

impl Process {
    pub(super) fn new(name: String, fates: impl IntoIterator<Item = (u64, Fate)>) -> Arc<Self> {
        Arc::new(Self { name, state: Mutex::new(ProcessState { fates: fates.into_iter().collect(), ..ProcessState::default() }) })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    pub(super) fn calls(&self) -> u64 {
        self.state.lock().calls
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Open {
        since_ms: i64,
    },
    /// Decided, and its marks are not written yet.
    Ending {
        commit: bool,
    },
    Committed,
    Aborted,
}

struct Transaction {
    outcome: Outcome,
    partitions: BTreeSet<TopicPartition>,
    offsets: Vec<(TopicPartition, i64)>,
}

struct Entry {
    /// `None`: a mark.
    record: Option<Record>,
    transaction: Option<usize>,
}

#[derive(Default)]
struct TransactionalId {
    epoch: u64,
    current: Option<usize>,
    last: Option<usize>,
}

struct Member {
    process: Arc<Process>,
    heard_ms: i64,
    /// Given by the group, and when the member hears of it.
    given: BTreeSet<TopicPartition>,
    told_at_ms: Option<i64>,
    view: watch::Sender<Assignment>,
    /// What the member's client knows.
    known: Arc<Mutex<Known>>,
}

#[derive(Clone, Copy)]
struct Known {
    id: u64,
    generation: u64,
}

#[derive(Default)]
struct Broker {
    logs: BTreeMap<TopicPartition, Vec<Entry>>,
    transactions: Vec<Transaction>,
    ids: BTreeMap<String, TransactionalId>,
    /// The job's group, which is the only one.
    members: BTreeMap<u64, Member>,
    topic: Arc<str>,
    generation: u64,
    last_member: u64,
    committed: BTreeMap<TopicPartition, i64>,
    /// `init_transactions` so far.
    takes: u64,
    canary: Option<Canary>,
}

/// What a cluster does that does not keep its word: a simulation that does not notice would prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Canary {
    /// Earlier owners may write on.
    NoFence,
    /// Who begins with an id ends nothing of an earlier owner.
    NothingEnded,
    /// Records are there at once and for good, whatever becomes of the transaction.
    NoAbort,
    /// Outside stores take what they are told, as often as they are told.
    OutsideUnfenced,
}

impl Broker {
    fn stable_end(&self, partition: &TopicPartition) -> Option<i64> {
        let log = self.logs.get(partition)?;
        let open = |entry: &Entry| {
            entry.transaction.is_some_and(|of| matches!(self.transactions[of].outcome, Outcome::Open { .. } | Outcome::Ending { .. }))
        };
        Some(log.iter().position(open).unwrap_or(log.len()) as i64)
    }

    fn append(&mut self, record: OutRecord, transaction: Option<usize>, now_ms: i64) -> Result<TopicPartition, KafkaError> {
        let partition = TopicPartition::new(record.topic, record.partition.unwrap_or(0));
        let log = self.logs.get_mut(&partition).ok_or_else(|| KafkaError::UnknownTopic(partition.topic.to_string()))?;
        let record = Record { offset: log.len() as i64, timestamp_ms: now_ms, key: record.key, value: record.value, headers: Vec::new() };
        log.push(Entry { record: Some(record), transaction });
        Ok(partition)
    }

    /// The transaction that the id has open, for its owner of that epoch.
    fn owned(&mut self, id: &str, epoch: u64) -> Result<Option<usize>, KafkaError> {
        match self.ids.get(id) {
            Some(known) if known.epoch == epoch || self.canary == Some(Canary::NoFence) => Ok(known.current),
            _ => Err(KafkaError::Fenced(format!("epoch {epoch} of {id} is over"))),
        }
    }

    fn decide(&mut self, id: &str, commit: bool) {
        let Some(of) = self.ids.get_mut(id).and_then(|known| known.current.take()) else { return };
        self.transactions[of].outcome = Outcome::Ending { commit };
    }

    /// Writes the marks.
    fn end(&mut self, of: usize) {
        let Outcome::Ending { commit } = self.transactions[of].outcome else { return };
        self.transactions[of].outcome = if commit { Outcome::Committed } else { Outcome::Aborted };
        for partition in self.transactions[of].partitions.clone() {
            self.logs.entry(partition).or_default().push(Entry { record: None, transaction: None });
        }
        if commit {
            let offsets = std::mem::take(&mut self.transactions[of].offsets);
            self.committed.extend(offsets);
        }
    }

    /// `range`, in the order of the members' ids.
    fn rebalance(&mut self, now_ms: i64, random: &mut Random) {
        self.generation += 1;
        let partitions: Vec<TopicPartition> = self.logs.keys().filter(|partition| partition.topic == self.topic).cloned().collect();
        let members = self.members.len().max(1);
        let (each, more) = (partitions.len() / members, partitions.len() % members);
        let mut partitions = partitions.into_iter();
        for (n, member) in self.members.values_mut().enumerate() {
            member.given = partitions.by_ref().take(each + usize::from(n < more)).collect();
            member.told_at_ms = Some(now_ms + random.below(120) as i64);
        }
    }

    fn tick(&mut self, now_ms: i64, random: &mut Random) {
        for of in 0..self.transactions.len() {
            if let Outcome::Open { since_ms } = self.transactions[of].outcome
                && now_ms - since_ms > TRANSACTION_MS
            {
                // The coordinator ends it, and whoever had it is fenced.
                let id = self.ids.values_mut().find(|id| id.current == Some(of));
                if let Some(id) = id {
                    id.epoch += 1;
                    id.current = None;
                }
                self.transactions[of].outcome = Outcome::Ending { commit: false };
            }
            if random.below(2) == 0 {
                self.end(of);
            }
        }
        let mut changed = false;
        for member in self.members.values_mut() {
            let process = member.process.state.lock();
            if !process.dead && process.asleep_until_ms <= now_ms {
                member.heard_ms = now_ms;
            }
        }
        let silent = |member: &Member| now_ms - member.heard_ms > SESSION_MS;
        let gone: Vec<u64> = self.members.iter().filter(|(_, member)| silent(member)).map(|(id, _)| *id).collect();
        for id in gone {
            // Its process may wake up again, and is told nothing meanwhile.
            let Some(member) = self.members.remove(&id) else { continue };
            changed = true;
            if !member.process.is_dead() {
                self.last_member += 1;
                ASLEEP.with(|asleep| asleep.lock().push((self.last_member, member)));
            }
        }
        let woken: Vec<(u64, Member)> = ASLEEP.with(|asleep| {
            let mut asleep = asleep.lock();
            let (woken, rest) = std::mem::take(&mut *asleep).into_iter().partition(|(_, member): &(u64, Member)| {
                let process = member.process.state.lock();
                !process.dead && process.asleep_until_ms <= now_ms
            });
            *asleep = rest;
            woken
        });
        for (id, mut member) in woken {
            member.heard_ms = now_ms;
            self.members.insert(id, member);
            changed = true;
        }
        if changed {
            self.rebalance(now_ms, random);
        }
        for (id, member) in &mut self.members {
            let process = member.process.state.lock();
            let up = !process.dead && process.asleep_until_ms <= now_ms;
            if up && member.told_at_ms.is_some_and(|at| at <= now_ms) {
                member.told_at_ms = None;
                *member.known.lock() = Known { id: *id, generation: self.generation };
                let partitions = member.given.iter().cloned().collect();
                member.view.send_modify(|view| {
                    view.tenure += 1;
                    view.partitions = partitions;
                });
            }
        }
    }
}

thread_local! {
    /// Members whose session is over and whose process will wake up.
    static ASLEEP: Mutex<Vec<(u64, Member)>> = const { Mutex::new(Vec::new()) };
}

/// The cluster and its time.
#[derive(Clone)]
pub(super) struct Sim {
    broker: Arc<Mutex<Broker>>,
    random: Arc<Mutex<Random>>,
    pub(super) clock: ManualClock,
}

impl Sim {
    pub(super) fn new(seed: u64, topics: &[(&str, i32)], canary: Option<Canary>) -> Self {
        ASLEEP.with(|asleep| asleep.lock().clear());
        let mut broker = Broker { canary, ..Broker::default() };
        for (topic, partitions) in topics {
            let topic: Arc<str> = (*topic).into();
            for partition in 0..*partitions {
                broker.logs.insert(TopicPartition::new(topic.clone(), partition), Vec::new());
            }
        }
        Self { broker: Arc::new(Mutex::new(broker)), random: Arc::new(Mutex::new(Random(seed))), clock: ManualClock::at(1_000_000) }
    }

    pub(super) fn random(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    /// Time goes on, and the broker does what is due.
    pub(super) fn tick(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
        let mut random = self.random.lock();
        self.broker.lock().tick(self.clock.now_ms(), &mut random);
    }

    pub(super) fn produce(&self, topic: &str, partition: i32, text: String) {
        let record = OutRecord {
            topic: topic.into(),
            partition: Some(partition),
            key: None,
            value: Some(text.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        self.broker.lock().append(record, None, self.clock.now_ms()).unwrap();
    }

    /// What a committed reader sees.
    pub(super) fn texts(&self, topic: &str, partition: i32) -> Vec<String> {
        let partition = TopicPartition::new(topic, partition);
        let broker = self.broker.lock();
        let end = broker.stable_end(&partition).unwrap_or(0);
        let records = broker.visible(&partition, 0, end).into_iter();
        records.map(|record| String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap()).collect()
    }

    pub(super) fn committed(&self, topic: &str, partition: i32) -> Option<i64> {
        self.broker.lock().committed.get(&TopicPartition::new(topic, partition)).copied()
    }

    pub(super) fn takes(&self) -> u64 {
        self.broker.lock().takes
    }

    pub(super) fn generation(&self) -> u64 {
        self.broker.lock().generation
    }

    /// What a process may reach.
    pub(super) fn seen_by(&self, process: &Arc<Process>) -> Seen {
        Seen { sim: self.clone(), process: Arc::clone(process) }
    }
}

impl Broker {
    fn visible(&self, partition: &TopicPartition, from: i64, until: i64) -> Vec<Record> {
        let aborted = |entry: &&Entry| {
            entry.transaction.is_some_and(|of| self.transactions[of].outcome != Outcome::Committed && self.canary != Some(Canary::NoAbort))
        };
        let entries = self.logs.get(partition).into_iter().flatten();
        let within = entries.skip(from.max(0) as usize).take((until - from).max(0) as usize);
        within.filter(|entry| !aborted(entry)).filter_map(|entry| entry.record.clone()).collect()
    }
}

/// The cluster from one process.
#[derive(Clone)]
pub(super) struct Seen {
    sim: Sim,
    pub(super) process: Arc<Process>,
}

impl Seen {
    /// One call: it takes its time, and may be the last.
    pub(super) async fn call<T>(&self, act: impl FnOnce() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
        let pause = self.sim.random(3);
        for _ in 0..pause {
            tokio::task::yield_now().await;
        }
        let fate = {
            let mut state = self.process.state.lock();
            state.calls += 1;
            let calls = state.calls;
            let fate = state.fates.remove(&calls);
            if let Some(Fate::Sleep(ms)) = fate {
                state.asleep_until_ms = self.sim.clock.now_ms() + ms;
            }
            if matches!(fate, Some(Fate::DieBefore)) {
                state.dead = true;
            }
            fate
        };
        self.awake().await;
        match fate {
            None | Some(Fate::Sleep(_) | Fate::DieBefore) => act(),
            Some(Fate::Refuse) => Err(KafkaError::Retryable("no broker answers".into())),
            Some(Fate::LoseAnswer) => {
                drop(act());
                Err(KafkaError::Timeout("no answer".into()))
            }
            Some(Fate::DieAfter) => {
                drop(act());
                self.process.state.lock().dead = true;
                std::future::pending().await
            }
        }
    }

    /// The whole process stands still while it sleeps, and for ever when it is dead.
    async fn awake(&self) {
        loop {
            let until = {
                let state = self.process.state.lock();
                if state.dead { i64::MAX } else { state.asleep_until_ms }
            };
            if until <= self.sim.clock.now_ms() {
                return;
            }
            self.sim.clock.sleep_until(until).await;
        }
    }

    async fn ask<T>(&self, act: impl FnOnce(&mut Broker) -> Result<T, KafkaError>) -> Result<T, KafkaError> {
        let broker = Arc::clone(&self.sim.broker);
        self.call(move || act(&mut broker.lock())).await
    }
}

#[async_trait]
impl Clients for Seen {
    async fn prepare(&self, job: &Job) -> Result<(), KafkaError> {
        let (topic, slots): (Arc<str>, i32) = (job.slots_topic().into(), job.shape.slots.cast_signed());
        let mut broker = self.sim.broker.lock();
        for partition in 0..slots {
            broker.logs.entry(TopicPartition::new(topic.clone(), partition)).or_default();
        }
        broker.topic = topic;
        Ok(())
    }

    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        let id = transactional_id.to_owned();
        let epoch = self.ask({
            let id = id.clone();
            move |broker| {
                broker.takes += 1;
                if broker.canary != Some(Canary::NothingEnded) {
                    broker.decide(&id, false);
                }
                // Also what was decided before and not written yet: the coordinator answers when it is.
                if let Some(last) = broker.ids.get(&id).and_then(|known| known.last) {
                    broker.end(last);
                }
                let known = broker.ids.entry(id).or_default();
                known.epoch += 1;
                Ok(known.epoch)
            }
        });
        Ok(Box::new(Writer { epoch: epoch.await?, seen: self.clone(), id, open: false, failed: None, poisoned: None }))
    }

    async fn reader(&self) -> Result<Arc<dyn RangeReader>, KafkaError> {
        Ok(Arc::new(self.clone()))
    }

    async fn member(&self, _: &str, _: &str) -> Result<Arc<dyn MemberOnHold>, KafkaError> {
        let mut random = self.sim.random.lock();
        let mut broker = self.sim.broker.lock();
        broker.last_member += 1;
        let id = broker.last_member;
        let known = Arc::new(Mutex::new(Known { id, generation: 0 }));
        let view = watch::Sender::new(Assignment::default());
        let now_ms = self.sim.clock.now_ms();
        let member = Member {
            process: Arc::clone(&self.process),
            heard_ms: now_ms,
            given: BTreeSet::new(),
            told_at_ms: None,
            view: view.clone(),
            known: Arc::clone(&known),
        };
        broker.members.insert(id, member);
        broker.rebalance(now_ms, &mut random);
        Ok(Arc::new(OnHold { seen: self.clone(), known, view }))
    }
}

struct OnHold {
    seen: Seen,
    known: Arc<Mutex<Known>>,
    view: watch::Sender<Assignment>,
}

#[async_trait]
impl MemberOnHold for OnHold {
    fn assignment(&self) -> watch::Receiver<Assignment> {
        self.view.subscribe()
    }

    async fn identity(&self) -> Result<MemberIdentity, KafkaError> {
        self.seen.awake().await;
        Ok(MemberIdentity::new("job", *self.known.lock()))
    }

    async fn holds(&self, partition: &TopicPartition) -> Result<bool, KafkaError> {
        let (partition, known) = (partition.clone(), *self.known.lock());
        let asked = self.seen.ask(move |broker| Ok(broker.members.get(&known.id).is_some_and(|member| member.given.contains(&partition))));
        asked.await
    }

    async fn close(&self) {
        self.release().await;
    }

    async fn release(&self) {
        let id = self.known.lock().id;
        let mut random = self.seen.sim.random.lock();
        let mut broker = self.seen.sim.broker.lock();
        if broker.members.remove(&id).is_some() {
            broker.rebalance(self.seen.sim.clock.now_ms(), &mut random);
        }
    }
}

struct Writer {
    seen: Seen,
    id: String,
    epoch: u64,
    open: bool,
    failed: Option<KafkaError>,
    poisoned: Option<KafkaError>,
}

impl Writer {
    fn expect(&self, open: bool) -> Result<(), KafkaError> {
        match (&self.poisoned, &self.failed) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(error)) => Err(KafkaError::Conflict(format!("abort it: {error}"))),
            (None, None) if self.open == open => Ok(()),
            (None, None) => Err(KafkaError::Conflict("out of order".into())),
        }
    }

    /// One step within the transaction.
    async fn step(&mut self, act: impl FnOnce(&mut Broker, usize, i64) -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        self.expect(true)?;
        let (id, epoch, now_ms) = (self.id.clone(), self.epoch, self.seen.sim.clock.now_ms());
        let done = self.seen.ask(move |broker| {
            let of = match broker.owned(&id, epoch)? {
                Some(of) => of,
                None => {
                    // The coordinator begins the id's next transaction when the marks of the one before are written.
                    if let Some(before) = broker.ids.get(&id).and_then(|known| known.last) {
                        broker.end(before);
                    }
                    let outcome = Outcome::Open { since_ms: now_ms };
                    broker.transactions.push(Transaction { outcome, partitions: BTreeSet::new(), offsets: Vec::new() });
                    let of = broker.transactions.len() - 1;
                    let known = broker.ids.entry(id).or_default();
                    (known.current, known.last) = (Some(of), Some(of));
                    of
                }
            };
            act(broker, of, now_ms)
        });
        let done = done.await;
        done.map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: KafkaError) -> KafkaError {
        if matches!(error, KafkaError::Fenced(_) | KafkaError::OutcomeUnknown(_)) {
            self.poisoned = Some(error.clone());
        } else {
            self.failed = Some(error.clone());
        }
        error
    }

    async fn finish(&mut self, commit: bool) -> Result<(), KafkaError> {
        let (id, epoch) = (self.id.clone(), self.epoch);
        let done = self.seen.ask(move |broker| {
            broker.owned(&id, epoch)?;
            broker.decide(&id, commit);
            Ok(())
        });
        match done.await {
            Ok(()) => {
                (self.open, self.failed) = (false, None);
                Ok(())
            }
            // Neither is told apart by a client that got no answer.
            Err(KafkaError::Timeout(text) | KafkaError::Retryable(text)) => Err(self.fail(KafkaError::OutcomeUnknown(text))),
            Err(error) => Err(self.fail(error)),
        }
    }
}

#[async_trait]
impl TransactionalWriter for Writer {
    async fn begin(&mut self) -> Result<(), KafkaError> {
        self.expect(false)?;
        self.open = true;
        Ok(())
    }

    async fn queue(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        let step = self.step(move |broker, of, now_ms| {
            for record in records {
                let partition = broker.append(record, Some(of), now_ms)?;
                broker.transactions[of].partitions.insert(partition);
            }
            Ok(())
        });
        step.await
    }

    async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), KafkaError> {
        self.queue(records).await
    }

    async fn write(&mut self, batches: Vec<Vec<OutRecord>>, _: Duration) -> Vec<Option<Vec<Result<Written, KafkaError>>>> {
        batches.iter().map(|_| None).collect()
    }

    async fn offsets(&mut self, _: &str, _: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        Err(KafkaError::Unsupported("slots send their member's identity".into()))
    }

    async fn offsets_of(&mut self, member: &MemberIdentity, offsets: Vec<(TopicPartition, i64, String)>) -> Result<(), KafkaError> {
        let Some(known) = member.native::<Known>() else { return Err(KafkaError::Invalid("another client's member".into())) };
        let step = self.step(move |broker, of, _| {
            if !broker.members.contains_key(&known.id) || broker.generation != known.generation {
                return Err(KafkaError::Conflict(format!("generation {} is over", known.generation)));
            }
            broker.transactions[of].offsets.extend(offsets.into_iter().map(|(partition, offset, _)| (partition, offset)));
            Ok(())
        });
        step.await
    }

    async fn commit(&mut self) -> Result<(), KafkaError> {
        self.expect(true)?;
        self.finish(true).await
    }

    async fn abort(&mut self) -> Result<(), KafkaError> {
        if let Some(error) = &self.poisoned {
            return Err(error.clone());
        }
        self.finish(false).await
    }
}

/// Records in one chunk of a read.
const CHUNK: usize = 4;

#[async_trait]
impl RangeReader for Seen {
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError> {
        let topic = topic.to_owned();
        self.ask(move |broker| Ok(broker.logs.keys().filter(|known| *known.topic == *topic).map(|known| known.partition).collect())).await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        let partitions = partitions.to_vec();
        let asked = self.ask(move |broker| {
            let of = |partition: TopicPartition| {
                let latest = broker.stable_end(&partition)?;
                Some((partition, Bounds { earliest: 0, latest }))
            };
            Ok(partitions.into_iter().filter_map(of).collect())
        });
        asked.await
    }

    async fn offsets_at(&self, _: &[TopicPartition], _: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        Err(KafkaError::Unsupported("times are not kept".into()))
    }

    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let seen = self.clone();
        let read = async move { seen.ask(move |broker| Ok(broker.visible(&partition, from, until))).await };
        let chunks = |read: Result<Vec<Record>, KafkaError>| match read {
            Ok(records) => records.chunks(CHUNK).map(|chunk| Ok(chunk.to_vec())).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        };
        stream::once(read).flat_map(move |read| stream::iter(chunks(read))).boxed()
    }
}

#[async_trait]
impl Cluster for Seen {
    async fn reader(&self, _: &SourceSpec) -> Result<Arc<dyn RangeReader>, KafkaError> {
        Ok(Arc::new(self.clone()))
    }

    async fn committed(&self, _: &SourceSpec, _: &str, _: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        Ok(BTreeMap::new())
    }

    async fn commit(&self, _: &SourceSpec, _: &str, _: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        Ok(())
    }

    async fn topic_id(&self, _: &SourceSpec, _: &str) -> Result<Option<[u8; 16]>, KafkaError> {
        Ok(None)
    }
}

/// The newest batch, counted from 1, and all values.
type Told = (u64, Vec<Bytes>);

/// A store outside of Kafka that keeps to the fence: for each slot and output the newest batch, and what it was told.
#[derive(Default)]
pub(super) struct Outside {
    all: Mutex<BTreeMap<(u32, usize), Told>>,
    unfenced: bool,
}

impl Outside {
    pub(super) fn new(canary: Option<Canary>) -> Self {
        Self { unfenced: canary == Some(Canary::OutsideUnfenced), ..Self::default() }
    }

    pub(super) fn apply(&self, slot: u32, output: usize, batch: u64, values: &[Bytes]) {
        let mut all = self.all.lock();
        let (newest, told) = all.entry((slot, output)).or_insert((0, Vec::new()));
        if batch + 1 > *newest || self.unfenced {
            *newest = batch + 1;
            told.extend_from_slice(values);
        }
    }

    pub(super) fn told(&self, output: usize) -> Vec<String> {
        let all = self.all.lock();
        let of = all.iter().filter(|((_, of), _)| *of == output).flat_map(|(_, (_, told))| told);
        of.map(|value| String::from_utf8(value.to_vec()).unwrap()).collect()
    }
}
