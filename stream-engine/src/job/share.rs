//! A job that several workers share (`job.slots`).
//!
//! Every process that runs the job under the same name and with the same checkpoint is a worker. There is no driver: a worker is a member, on hold, of the group
//! `millrace-JOB`, which subscribes to `millrace-JOB-slots`; partition s of that topic stands for slot s. Each slot that the group gives to a worker runs there as if it
//! were a job by itself: its own partitions, its own checkpoint (`slot-S` in the job's), its own transactional id.
//!
//! Who should have a slot is the group's business, and nothing hangs on it: who begins with a slot owns its checkpoint ([`Checkpoint::own`]) and fences the
//! writers of the owner before. An owner that stood still and wakes up puts nothing there any more; it lets go ([`lost`]), and takes the slot again only when
//! the group's coordinator names it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use service_kit::kafka::{self, KafkaConfig, KafkaError, MemberOnHold, OwnTopic, TopicPartition};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::{Job, JobState, Registry, said};
use crate::batch::SourceKind;
use crate::batch::runner::Mode;
use crate::checkpoint::CheckpointError;
use crate::commit::Totals;
use crate::commit::slots::{Shape, Slot};
use crate::sink::Fenced;
use crate::source::Share;
use crate::worker::Tasks;

/// Between two questions whether the coordinator has named this worker the slot's holder.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// First and longest wait before a slot is taken again, or a broker is asked again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Losses of a slot one after the other, without a batch in between, before it is taken for something else than another worker.
const LOSSES_MAX: u32 = 20;
/// How long the brokers may take to hear of a topic that was just made.
const TOPIC_PATIENCE: Duration = Duration::from_secs(10);
/// Who waits, in the monitor.
const GROUP: &str = "group";

/// A worker of a job.
pub(super) struct Worker {
    pub job: Arc<Job>,
    pub shape: Shape,
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
        let Some(member) = self.join(&mut mode).await? else { return Ok(()) };
        let worker = Arc::new(self);
        worker.job.monitor.set_state(JobState::Running);
        let mut tasks = Tasks::default();
        let result = Arc::clone(&worker).follow(&member, &mut tasks, &mut mode).await;
        tasks.stop();
        while let Some(ended) = tasks.join_next().await {
            let failed = match ended {
                Ok((slot, End::Failed(error))) => error.context(format!("slot {slot} failed")),
                Ok(_) => continue,
                Err(panicked) => panicked,
            };
            warn!(job = worker.job.name, error = said(&failed), "while the worker stops");
        }
        // A process that is started again under its id finds its slots; a job that is over leaves them to the others at once.
        if worker.registry.is_closing() {
            member.release().await
        } else {
            member.close().await
        }
        result
    }

    fn topic(&self) -> String {
        format!("millrace-{}-slots", self.job.name)
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
    async fn join(&self, mode: &mut watch::Receiver<Mode>) -> anyhow::Result<Option<Arc<dyn MemberOnHold>>> {
        let kafka = self.kafka()?;
        let mut backoff = BACKOFF.0;
        loop {
            let error = match self.try_join(&kafka).await {
                Ok(member) => {
                    self.job.monitor.not_waiting(GROUP);
                    return Ok(Some(member));
                }
                Err(error) if error.retryable() || matches!(error, KafkaError::Auth(_)) => error,
                Err(error) => return Err(error.into()),
            };
            if self.job.monitor.waiting(GROUP, error.to_string()) {
                warn!(job = self.job.name, %error, "cannot join the job's workers; waiting");
            }
            if tokio::time::timeout(backoff, mode.wait_for(|mode| *mode == Mode::Stop)).await.is_ok() {
                return Ok(None);
            }
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    async fn try_join(&self, kafka: &KafkaConfig) -> Result<Arc<dyn MemberOnHold>, KafkaError> {
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
        kafka::own_topic(admin.as_ref(), &topic, TOPIC_PATIENCE).await?;
        let found = admin.topic(topic.name).await?.partitions.len();
        if found != self.shape.slots as usize {
            return Err(KafkaError::Config(format!(
                "job.slots: this job was cut into {found} slots when it first started (topic \"{}\"), and now it says {}: set {found}, or start it \
                 under another name with another checkpoint",
                topic.name, self.shape.slots
            )));
        }
        kafka::member_on_hold(kafka, &format!("millrace-{}", self.job.name), topic.name).await
    }

    /// Follows the group's word until there is nothing to follow any more.
    async fn follow(
        self: Arc<Self>,
        member: &Arc<dyn MemberOnHold>,
        tasks: &mut Tasks<End>,
        mode: &mut watch::Receiver<Mode>,
    ) -> anyhow::Result<()> {
        let mut assignment = member.assignment();
        let mut finished = BTreeSet::new();
        loop {
            let mode_now = *mode.borrow_and_update();
            if mode_now == Mode::Stop {
                return Ok(());
            }
            let now = assignment.borrow_and_update().clone();
            if let Some(over) = now.over {
                return Err(anyhow::Error::new(over).context("this process is no worker of the job any more"));
            }
            let slots = now.partitions.iter().filter_map(|partition| u32::try_from(partition.partition).ok().map(Slot));
            let mine: BTreeSet<Slot> = slots.filter(|slot| !finished.contains(slot)).collect();
            tasks.follow(&mine, |slot, stop| {
                let span = info_span!("slot", job = self.job.name, %slot);
                Arc::clone(&self).slot(Arc::clone(member), slot, stop, mode.clone()).instrument(span)
            });
            if tasks.is_empty() && mine.is_empty() && (!finished.is_empty() || mode_now == Mode::Drain) {
                return Ok(());
            }
            tokio::select! {
                biased;
                changed = mode.changed() => changed?,
                changed = assignment.changed() => changed?,
                Some(ended) = tasks.join_next() => match ended? {
                    (slot, End::Stopped) => info!(job = self.job.name, %slot, "slot released"),
                    (slot, End::Finished) => drop(finished.insert(slot)),
                    (slot, End::Failed(error)) => return Err(error.context(format!("slot {slot} failed"))),
                },
            }
        }
    }

    /// Runs one slot until `stop`, or to its end.
    async fn slot(
        self: Arc<Self>,
        member: Arc<dyn MemberOnHold>,
        slot: Slot,
        stop: CancellationToken,
        mut mode: watch::Receiver<Mode>,
    ) -> (Slot, End) {
        // At most `SLOTS_MAX`.
        let partition = TopicPartition::new(self.topic(), slot.0.cast_signed());
        let (mut backoff, mut losses) = (BACKOFF.0, 0);
        loop {
            // Who is not named by the coordinator would take the slot from its rightful owner.
            while !matches!(member.holds(&partition).await, Ok(true)) {
                if waited(&stop, ASK_INTERVAL).await {
                    return (slot, End::Stopped);
                }
            }
            let here = self.registry.slot_begins(&self.job, slot);
            let ran = self.run_slot(&here, slot, &stop, &mut mode).await;
            let told = stop.is_cancelled() || *mode.borrow() == Mode::Stop;
            let error = match ran {
                Ok(()) if told => {
                    self.registry.slot_leaves(&here);
                    return (slot, End::Stopped);
                }
                Ok(()) => {
                    here.monitor.ended(&Ok(()));
                    return (slot, End::Finished);
                }
                Err(error) => error,
            };
            let in_the_way = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(CheckpointError::Held { .. })));
            if here.monitor.completed(1).is_empty() {
                losses += 1
            } else {
                (backoff, losses) = (BACKOFF.0, 0)
            }
            if !in_the_way && (!lost(&error) || losses > LOSSES_MAX) {
                let failed = Err(error);
                here.monitor.ended(&failed);
                return (slot, failed.map_or_else(End::Failed, |()| End::Stopped));
            }
            self.registry.slot_leaves(&here);
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

    /// One ownership of the slot.
    async fn run_slot(&self, here: &Job, slot: Slot, stop: &CancellationToken, mode: &mut watch::Receiver<Mode>) -> anyhow::Result<()> {
        let (tell, told) = watch::channel(*mode.borrow_and_update());
        let runner = self.registry.slot_runner(here, &self.job.name, Share { shape: self.shape, slot }, told)?;
        let running = Box::pin(runner.run_to_end());
        tokio::pin!(running);
        let mut changes = here.monitor.changes();
        loop {
            tokio::select! {
                biased;
                ended = &mut running => {
                    self.sum();
                    return ended;
                }
                () = stop.cancelled(), if *tell.borrow() != Mode::Stop => drop(tell.send_replace(Mode::Stop)),
                Ok(()) = mode.changed(), if !stop.is_cancelled() => drop(tell.send_replace(*mode.borrow_and_update())),
                Ok(()) = changes.changed() => self.sum(),
            }
        }
    }

    /// What the job's page shows is what its slots here have done.
    fn sum(&self) {
        let views = self.registry.slots_of(&self.job.name);
        let mut totals = Totals::default();
        for view in &views {
            totals.batches += view.totals.batches;
            totals.rows_in += view.totals.rows_in;
            totals.rows_out += view.totals.rows_out;
            totals.malformed += view.totals.malformed;
            totals.late += view.totals.late;
        }
        let waits: BTreeMap<String, String> = views
            .iter()
            .filter(|view| view.state == JobState::Waiting)
            .filter_map(|view| Some((view.name.clone(), view.error.clone()?)))
            .collect();
        self.job.monitor.shows_slots(totals, waits);
    }
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
