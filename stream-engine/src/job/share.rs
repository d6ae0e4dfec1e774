//! A job that several workers share (`job.slots`).
//!
//! Every process that runs the job under the same name and with the same checkpoint is a worker. There is no driver: a worker is a member, on hold, of the group
//! `millrace-JOB`, which subscribes to `millrace-JOB-slots`; partition s of that topic stands for slot s. Each slot that the group gives to a worker runs there as if it
//! were a job by itself: its own partitions, its own checkpoint (`slot-S` in the job's), its own transactional id.
//!
//! Where queries group rows, each slot has two halves, which run as two such jobs and meet in a topic of the job ([`sql::exchange`](crate::sql::exchange)). They start and end together.
//!
//! Who should have a slot is the group's business, and nothing hangs on it: who begins with a slot owns its checkpoint ([`Checkpoint::own`]) and fences the
//! writers of the owner before. An owner that stood still and wakes up puts nothing there any more; it lets go ([`lost`]), and takes the slot again only when
//! the group's coordinator names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::future::select_all;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use service_kit::kafka::{self, Admin, KafkaConfig, KafkaError, MemberOnHold, OwnTopic, TopicPartition};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::{Job, JobState, Registry, said};
use crate::batch::runner::Mode;
use crate::batch::{Sharing, SourceKind};
use crate::checkpoint::CheckpointError;
use crate::commit::Totals;
use crate::commit::slots::{Shape, Slot};
use crate::sink::Fenced;
use crate::source::Share;
use crate::sql::exchange::{Exchange, Part};
use crate::worker::Tasks;

/// Between two questions whether the coordinator has named this worker the slot's holder.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// First and longest wait before a slot is taken again, or a broker is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Losses of a slot one after the other, without a batch in between, before it is taken for something else than another worker.
const LOSSES_MAX: u32 = 20;
/// How long the brokers may take to hear of a topic that was just made.
const TOPIC_PATIENCE: Duration = Duration::from_secs(10);
/// Between two removals of what was read from the exchange.
const CLEAR_INTERVAL: Duration = Duration::from_secs(30);
/// In the names of slots' second halves: `JOB~SLOT~windows`.
pub(super) const WINDOWS: &str = "~windows";
/// Who waits, in the monitor.
const GROUP: &str = "group";

/// In the job's checkpoint: what all its workers agree on. The first of them writes it.
#[derive(Serialize, Deserialize)]
struct Agreed {
    /// Names what belongs to the job from its first start until its checkpoint is deleted.
    id: String,
}

const AGREED: &str = "slots";

type Joined = (Arc<dyn MemberOnHold>, Option<(Exchange, Arc<dyn Admin>)>);

/// Runs a slot's share of the job on behalf of a worker.
struct Member {
    worker: Arc<Worker>,
    group: Arc<dyn MemberOnHold>,
    /// Of jobs whose slots pass rows to each other.
    exchange: Option<(Exchange, Arc<dyn Admin>)>,
}

/// A worker of a job.
pub(super) struct Worker {
    pub job: Arc<Job>,
    pub shape: Shape,
    pub sharing: Sharing,
    pub registry: Registry,
    /// Static id in the group; `None`: a member like any other.
    pub id: Option<String>,
}

/// How a slot's task ended.
enum End {
    /// As it was told.
    Stopped,
    /// The slot's sources are bounded and read, or it was drained.
    Finished,
    /// Every owner would meet it.
    Failed(anyhow::Error),
}

impl Worker {
    /// Runs until the job is stopped, drained or, where it is bounded, read.
    pub(super) async fn run(self, mut mode: watch::Receiver<Mode>) -> anyhow::Result<()> {
        let worker = Arc::new(self);
        let mut backoff = BACKOFF.0;
        loop {
            let Some((group, exchange)) = worker.join(&mut mode).await? else { return Ok(()) };
            worker.job.monitor.set_state(JobState::Running);
            let member = Arc::new(Member { worker: Arc::clone(&worker), group, exchange });
            match member.work(&mut mode).await? {
                None => return Ok(()),
                Some(over) if can_wait(&over) => {
                    if worker.waits(&over.to_string(), &mut backoff, &mut mode).await {
                        return Ok(());
                    }
                }
                Some(over) => return Err(anyhow::Error::new(over).context("this process is no worker of the job any more")),
            }
        }
    }

    /// Shows why it waits, and logs it once.
    fn tells(&self, error: &str) {
        if self.job.monitor.waiting(GROUP, error.to_owned()) {
            warn!(job = self.job.name, error, "cannot share the job's slots with its other workers; waiting");
        }
    }

    /// Tells why, and waits; true when the job was stopped meanwhile.
    async fn waits(&self, error: &str, backoff: &mut Duration, mode: &mut watch::Receiver<Mode>) -> bool {
        self.tells(error);
        let stopped = tokio::time::timeout(*backoff, mode.wait_for(|mode| *mode == Mode::Stop)).await.is_ok();
        *backoff = (*backoff * 2).min(BACKOFF.1);
        stopped
    }

    fn topic(&self) -> String {
        slots_topic(&self.job.name)
    }

    /// Of the cluster that the first source is in; the group is there.
    fn kafka(&self) -> anyhow::Result<KafkaConfig> {
        let specs = self.registry.compile(&self.job.definition)?.program.sources();
        let kafka = specs.into_iter().find_map(|spec| match spec.kind {
            SourceKind::Kafka(kafka) => Some(kafka),
            SourceKind::Local(_) => None,
        });
        let mut kafka = kafka.context("the job reads nothing from Kafka, so there is nothing to share")?;
        if let Some(id) = &self.id {
            kafka.set("group.instance.id", id);
        }
        Ok(kafka)
    }

    /// `None` when the job was stopped before.
    async fn join(&self, mode: &mut watch::Receiver<Mode>) -> anyhow::Result<Option<Joined>> {
        let kafka = self.kafka()?;
        let mut backoff = BACKOFF.0;
        loop {
            let error = match self.try_join(&kafka).await {
                Ok(joined) => return Ok(Some(joined)),
                Err(error) if error.downcast_ref().is_some_and(can_wait) => error,
                Err(error) if error.downcast_ref().is_some_and(CheckpointError::retryable) => error,
                Err(error) => return Err(error),
            };
            if self.waits(&said(&error), &mut backoff, mode).await {
                return Ok(None);
            }
        }
    }

    async fn try_join(&self, kafka: &KafkaConfig) -> anyhow::Result<Joined> {
        let topic = OwnTopic {
            name: &self.topic(),
            setting: "job.slots",
            // At most `SLOTS_MAX`.
            partitions: self.shape.slots.cast_signed(),
            replication: -1,
            config: &[],
            policy: None,
        };
        let admin = kafka::admin(kafka).await?;
        if let Ok(found) = admin.topic(topic.name).await {
            let (found, slots) = (found.partitions.len(), self.shape.slots);
            ensure!(
                found == slots as usize,
                "job.slots: this job was cut into {found} slots when it first started (topic \"{}\"), and now it says {slots}: set {found}, or start it \
                 under another name with another checkpoint",
                topic.name
            );
        }
        kafka::own_topic(admin.as_ref(), &topic, TOPIC_PATIENCE).await?;
        let exchange = match self.sharing {
            Sharing::Apart => None,
            Sharing::Exchanged => {
                let id = uuid::Uuid::new_v4().simple().to_string();
                let agreed: Agreed = self.job.checkpoint.agree(AGREED, Agreed { id }).await?;
                let exchange = Exchange::new(&self.job.name, &agreed.id, self.shape);
                // What was read and is in every checkpoint is removed by the readers.
                let config = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
                kafka::own_topic(admin.as_ref(), &OwnTopic { name: &exchange.topic, config: &config, ..topic }, TOPIC_PATIENCE).await?;
                Some((exchange, admin))
            }
        };
        Ok((kafka::member_on_hold(kafka, &format!("millrace-{}", self.job.name), topic.name).await?, exchange))
    }
}

impl Member {
    /// Runs slots as long as it is a member; gives why it is none any more, where that is not because there is nothing left to do.
    async fn work(self: Arc<Self>, mode: &mut watch::Receiver<Mode>) -> anyhow::Result<Option<KafkaError>> {
        let mut tasks = Tasks::default();
        let result = Arc::clone(&self).follow(&mut tasks, mode).await;
        tasks.stop();
        while let Some(ended) = tasks.join_next().await {
            let failed = match ended {
                Ok((slot, End::Failed(error))) => error.context(format!("slot {slot} failed")),
                Ok(_) => continue,
                Err(panicked) => panicked,
            };
            warn!(job = self.worker.job.name, error = said(&failed), "while the worker stops");
        }
        // A process that is started again under its id finds its slots; a job that is over leaves them to the others at once.
        if self.worker.registry.is_closing() {
            self.group.release().await
        } else {
            self.group.close().await
        }
        result
    }

    /// Follows the group's word until there is nothing to follow any more.
    async fn follow(self: Arc<Self>, tasks: &mut Tasks<End>, mode: &mut watch::Receiver<Mode>) -> anyhow::Result<Option<KafkaError>> {
        let job = &self.worker.job.name;
        let mut assignment = self.group.assignment();
        let mut finished = BTreeSet::new();
        loop {
            let mode_now = *mode.borrow_and_update();
            if mode_now == Mode::Stop {
                return Ok(None);
            }
            let now = assignment.borrow_and_update().clone();
            if let Some(over) = now.over {
                return Ok(Some(over));
            }
            let slots = now.partitions.iter().filter_map(|partition| u32::try_from(partition.partition).ok().map(Slot));
            let mine: BTreeSet<Slot> = slots.filter(|slot| !finished.contains(slot)).collect();
            tasks.follow(&mine, |slot, stop| {
                let span = info_span!("slot", job, %slot);
                Arc::clone(&self).slot(slot, stop, mode.clone()).instrument(span)
            });
            if tasks.is_empty() && mine.is_empty() && (!finished.is_empty() || mode_now == Mode::Drain) {
                return Ok(None);
            }
            if !mine.is_empty() {
                self.worker.job.monitor.not_waiting(GROUP);
            }
            tokio::select! {
                biased;
                changed = mode.changed() => changed?,
                changed = assignment.changed() => changed?,
                Some(ended) = tasks.join_next() => match ended? {
                    (slot, End::Stopped) => info!(job, %slot, "slot released"),
                    (slot, End::Finished) => drop(finished.insert(slot)),
                    (slot, End::Failed(error)) => return Err(error.context(format!("slot {slot} failed"))),
                },
            }
        }
    }

    /// Runs one slot until `stop`, or to its end.
    async fn slot(self: Arc<Self>, slot: Slot, stop: CancellationToken, mut mode: watch::Receiver<Mode>) -> (Slot, End) {
        let Worker { registry, job, .. } = &*self.worker;
        // At most `SLOTS_MAX`.
        let partition = TopicPartition::new(self.worker.topic(), slot.0.cast_signed());
        let (mut backoff, mut losses) = (BACKOFF.0, 0);
        loop {
            // Who is not named by the coordinator would take the slot from its rightful owner.
            loop {
                match self.group.holds(&partition).await {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(error) => self.worker.tells(&format!("asking who has slot {slot}: {error}")),
                }
                if waited(&stop, ASK_INTERVAL).await {
                    return (slot, End::Stopped);
                }
            }
            let here: Vec<Arc<Job>> = self.parts().map(|part| registry.slot_begins(job, slot, part.as_ref())).collect();
            let ran = self.run_slot(&here, slot, &stop, &mut mode).await;
            let told = stop.is_cancelled() || *mode.borrow() == Mode::Stop;
            let leave = || here.iter().for_each(|half| registry.slot_leaves(half));
            let ended = |result: &anyhow::Result<()>| here.iter().for_each(|half| half.monitor.ended(result));
            let error = match ran {
                Ok(()) if told => {
                    leave();
                    return (slot, End::Stopped);
                }
                Ok(()) => {
                    ended(&Ok(()));
                    return (slot, End::Finished);
                }
                Err(error) => error,
            };
            let in_the_way = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(CheckpointError::Held { .. })));
            if here.iter().all(|half| half.monitor.completed(1).is_empty()) {
                losses += 1
            } else {
                (backoff, losses) = (BACKOFF.0, 0)
            }
            if !in_the_way && (!lost(&error) || losses > LOSSES_MAX) {
                let failed = Err(error);
                ended(&failed);
                return (slot, failed.map_or_else(End::Failed, |()| End::Stopped));
            }
            leave();
            if told {
                return (slot, End::Stopped);
            }
            info!(reason = said(&error), "slot lost to another owner; it is taken again when the group says so");
            if waited(&stop, backoff).await {
                return (slot, End::Stopped);
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// The halves of a slot; `None`: it has none.
    fn parts(&self) -> impl Iterator<Item = Option<Part>> {
        let halves =
            self.exchange.as_ref().map(|(exchange, _)| [Some(Part::Rows(exchange.clone())), Some(Part::Windows(exchange.clone()))]);
        let whole = halves.is_none().then_some(None);
        halves.into_iter().flatten().chain(whole)
    }

    /// One ownership of the slot; `here` by part.
    async fn run_slot(
        &self,
        here: &[Arc<Job>],
        slot: Slot,
        stop: &CancellationToken,
        mode: &mut watch::Receiver<Mode>,
    ) -> anyhow::Result<()> {
        let Worker { registry, job, shape, .. } = &*self.worker;
        let (tell, told) = watch::channel(*mode.borrow_and_update());
        let mut running = FuturesUnordered::new();
        for (half, part) in here.iter().zip(self.parts()) {
            let runner = registry.slot_runner(half, &job.name, Share { shape: *shape, slot }, part, told.clone())?;
            running.push(Box::pin(runner.run_to_end()));
        }
        let mut changes: Vec<_> = here.iter().map(|half| half.monitor.changes()).collect();
        let cleared = self.clear_read(here, slot);
        tokio::pin!(cleared);
        let mut result = Ok(());
        loop {
            let changed = select_all(changes.iter_mut().map(|changes| Box::pin(changes.changed())));
            tokio::select! {
                biased;
                ended = running.next() => {
                    self.sum();
                    let Some(ended) = ended else { return result };
                    result = result.and(ended);
                    // Neither half goes on without the other.
                    tell.send_replace(Mode::Stop);
                }
                () = stop.cancelled(), if *tell.borrow() != Mode::Stop => drop(tell.send_replace(Mode::Stop)),
                Ok(()) = mode.changed(), if *tell.borrow() != Mode::Stop => drop(tell.send_replace(*mode.borrow_and_update())),
                () = &mut cleared => {}
                (Ok(()), ..) = changed => self.sum(),
            }
        }
    }

    /// Removes from the slot's partition of the exchange what no checkpoint would read again, from time to time. Does not end.
    async fn clear_read(&self, here: &[Arc<Job>], slot: Slot) {
        let (Some((exchange, admin)), [_, windows]) = (&self.exchange, here) else { return std::future::pending().await };
        let partition = TopicPartition::new(exchange.topic.clone(), slot.0.cast_signed());
        let mut cleared = 0;
        loop {
            tokio::time::sleep(CLEAR_INTERVAL).await;
            let newest = windows.monitor.completed(usize::MAX).into_iter().filter(|batch| batch.records > 0);
            let kept = usize::try_from(windows.settings.checkpoint_retained).unwrap_or(usize::MAX);
            let oldest = newest.skip(kept).find_map(|batch| Some(batch.ranges.first()?.first()?.from));
            let Some(until) = oldest.filter(|until| *until > cleared) else { continue };
            match admin.delete_records(&[(partition.clone(), until)]).await {
                Ok(()) => cleared = until,
                Err(error) => warn!(%error, topic = &*exchange.topic, until, "what was read stays in the topic for now"),
            }
        }
    }

    /// What the job's page shows is what its slots here have done.
    fn sum(&self) {
        let Worker { registry, job, .. } = &*self.worker;
        let views = registry.slots_of(&job.name);
        let mut totals = Totals::default();
        for view in &views {
            totals.batches += view.totals.batches;
            // What the other half reads are no rows of the job's sources.
            if !view.name.ends_with(WINDOWS) {
                totals.rows_in += view.totals.rows_in;
            }
            totals.rows_out += view.totals.rows_out;
            totals.malformed += view.totals.malformed;
            totals.late += view.totals.late;
        }
        let waits: BTreeMap<String, String> = views
            .iter()
            .filter(|view| view.state == JobState::Waiting)
            .filter_map(|view| Some((view.name.clone(), view.error.clone()?)))
            .collect();
        job.monitor.shows_slots(totals, views.iter().map(|view| view.caught_up_ms).min(), waits);
    }
}

/// Removes what a job that is over has in Kafka: its checkpoint goes too.
pub(super) async fn forget(job: &Job, registry: &Registry) -> anyhow::Result<()> {
    let program = registry.compile(&job.definition)?.program;
    let Some(kafka) = program.sources().into_iter().find_map(|spec| match spec.kind {
        SourceKind::Kafka(kafka) => Some(kafka),
        SourceKind::Local(_) => None,
    }) else {
        return Ok(());
    };
    let agreed = job.checkpoint.get_file::<Agreed>(AGREED).await?;
    let Some(slots) = job.settings.slots else { return Ok(()) };
    let exchange = agreed.map(|(agreed, _)| Shape::new(slots, slots).map(|shape| Exchange::new(&job.name, &agreed.id, shape))).transpose();
    let topics = exchange.map_err(anyhow::Error::msg)?.map(|exchange| String::from(&*exchange.topic));
    let admin = kafka::admin(&kafka).await?;
    for topic in topics.into_iter().chain([slots_topic(&job.name)]) {
        match admin.delete_topic(&topic).await {
            Ok(()) | Err(KafkaError::UnknownTopic(_)) => {}
            Err(error) => return Err(anyhow::Error::new(error).context(format!("deleting topic `{topic}`"))),
        }
    }
    Ok(job.checkpoint.delete_file(AGREED).await?)
}

fn slots_topic(job: &str) -> String {
    format!("millrace-{job}-slots")
}

/// The broker may answer otherwise later: rights can be granted.
fn can_wait(error: &KafkaError) -> bool {
    error.retryable() || matches!(error, KafkaError::Auth(_))
}

/// Another process has the slot; this one has put nothing there that counts.
fn lost(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(CheckpointError::Lost { .. } | CheckpointError::Taken { .. }))
            || matches!(cause.downcast_ref(), Some(KafkaError::Fenced(_)))
            || cause.is::<Fenced>()
    })
}

/// True when it was told to stop meanwhile.
async fn waited(stop: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}
