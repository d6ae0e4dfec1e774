//! Workers: equal members of one consumer group that share a job's slots.
//!
//! There is no driver. A worker is a member, on hold, of the job's group, which subscribes to the job's `…-slots` topic; the classic protocol's `range` deals its
//! partitions out, and partition s stands for slot s. For each slot that it is given a worker runs a task ([`slot`]), which takes the slot, runs its batches and
//! lets go: when the group gives the slot to another, when another has taken it, when the worker stops. A slot that is lost ends its own task and
//! nothing else; it is begun again as long as the group says that it is this worker's.
//!
//! Why a batch happens once, whoever runs it: [`crate::commit::topic_log`].

#[cfg(test)]
mod sim;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use service_kit::kafka::{MemberOnHold, OutRecord, RangeReader};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use crate::batch::clock::Clock;
use crate::batch::range::Limits;
use crate::batch::{PartitionInput, SourceSpec};
use crate::commit::progress::{Job, SlotBatch};
use crate::commit::slots::Slot;
use crate::commit::topic_log::{Clients, LogError, SlotLog};
use crate::source::{Cluster, Source};
use slot::{End, SlotTask};

/// What a job is, the same on every worker: its sources, and what runs in each of its slots.
pub trait Topology: Send + Sync + 'static {
    /// Names are unique within the job.
    fn sources(&self) -> Vec<SourceSpec>;
    /// Asked each time the slot is taken.
    fn slot(&self, slot: Slot) -> anyhow::Result<Box<dyn SlotProgram>>;
}

/// What runs in one slot. It keeps nothing that a later batch needs but in what it writes.
#[async_trait]
pub trait SlotProgram: Send {
    /// Runs one batch. After an error nothing of it is in Kafka, and it is run again: as it was where it [`Self::acts_outside`], cut anew otherwise.
    async fn run(&mut self, batch: &BatchContext<'_>, input: Vec<PartitionInput>, outputs: &mut Outputs<'_>) -> anyhow::Result<()>;

    /// Batches have effects outside of the job's Kafka cluster, so they are durable before they run. Those effects are to be fenced by slot and
    /// batch id: an effect of a lower id than one that was seen is refused, one of the same id is there already.
    fn acts_outside(&self) -> bool {
        false
    }
}

/// What a slot's program is told about the batch it runs.
pub struct BatchContext<'a> {
    pub job: &'a Job,
    pub slot: Slot,
    pub batch: &'a SlotBatch,
    /// It may have run before, here or elsewhere, and have had its effects outside, or some.
    pub replay: bool,
}

/// Where a program puts what is to be in Kafka when its batch has happened, and not before.
pub struct Outputs<'a>(&'a mut SlotLog);

impl Outputs<'_> {
    /// In the order of the calls, and of the records in each, within a partition.
    pub async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), LogError> {
        self.0.send(records).await
    }
}

/// One worker of a job.
pub struct Worker {
    pub job: Job,
    /// The group that shares the slots, and whose offsets on the inputs tell how far the job is.
    pub group: String,
    pub topology: Arc<dyn Topology>,
    pub clients: Arc<dyn Clients>,
    pub cluster: Arc<dyn Cluster>,
    pub clock: Arc<dyn Clock>,
    /// Of each slot's batches.
    pub limits: Limits,
    /// Runs of a batch that fails for a reason of its own, before the job fails.
    pub attempts_max: u32,
}

/// What all slots of a worker have in common.
struct Shared {
    worker: Worker,
    sources: Vec<Source>,
    reader: Arc<dyn RangeReader>,
    member: Arc<dyn MemberOnHold>,
}

impl Worker {
    /// Runs until `stop`, then finishes the batches under way and gives the place in the group back. An error is one that another worker
    /// would meet too, or that this worker is none any more.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        self.clients.prepare(&self.job).await?;
        let mut sources = Vec::new();
        for spec in self.topology.sources() {
            sources.push(Source::connect(self.cluster.as_ref(), spec, None).await?);
        }
        let reader = self.clients.reader().await?;
        let member = self.clients.member(&self.group, &self.job.slots_topic()).await?;
        let shared = Arc::new(Shared { worker: self, sources, reader, member });
        let mut tasks = Tasks::default();
        let result = shared.share(&mut tasks, &stop).await;
        tasks.stop();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended.and_then(said) {
                warn!(error = format!("{error:#}"), "while the worker stops");
            }
        }
        shared.member.release().await;
        result
    }
}

impl Shared {
    /// Follows the group's word until `stop`, or until there is nothing to follow any more.
    async fn share(self: &Arc<Self>, tasks: &mut Tasks<End>, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut assignment = self.member.assignment();
        loop {
            let now = assignment.borrow_and_update().clone();
            if let Some(over) = now.over {
                return Err(anyhow::Error::new(over).context(format!("this worker is no member of group {:?} any more", self.worker.group)));
            }
            let mine = now.partitions.iter().filter_map(|partition| u32::try_from(partition.partition).ok().map(Slot)).collect();
            tasks.follow(&mine, |slot, stop| {
                let span = info_span!("slot", job = self.worker.job.name, slot = slot.0);
                SlotTask { shared: Arc::clone(self), slot, stop }.run().instrument(span)
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                changed = assignment.changed() => changed?,
                Some(ended) = tasks.join_next() => said(ended?)?,
            }
        }
    }
}

/// How a slot's task ended; the error is the job's.
fn said((slot, end): (Slot, End)) -> anyhow::Result<()> {
    match end {
        End::Stopped => info!(slot = slot.0, "slot released"),
        End::Lost(reason) => info!(slot = slot.0, reason, "slot lost to another owner"),
        End::Failed(error) => return Err(error.context(format!("slot {slot} failed"))),
    }
    Ok(())
}

/// The slots' tasks, by the slot; `E` is how they end.
pub(crate) struct Tasks<E> {
    set: JoinSet<(Slot, E)>,
    running: BTreeMap<Slot, CancellationToken>,
}

impl<E> Default for Tasks<E> {
    fn default() -> Self {
        Self { set: JoinSet::new(), running: BTreeMap::new() }
    }
}

impl<E: Send + 'static> Tasks<E> {
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Tasks of slots that are not `mine` any more finish their batch; slots of mine that have none get one. A slot that comes back while its task is
    /// finishing gets a new one after that.
    pub(crate) fn follow<T>(&mut self, mine: &BTreeSet<Slot>, task: impl Fn(Slot, CancellationToken) -> T)
    where
        T: Future<Output = (Slot, E)> + Send + 'static,
    {
        for (slot, stop) in &self.running {
            if !mine.contains(slot) {
                stop.cancel();
            }
        }
        for slot in mine {
            if !self.running.contains_key(slot) {
                let stop = CancellationToken::new();
                self.running.insert(*slot, stop.clone());
                self.set.spawn(task(*slot, stop));
            }
        }
    }

    /// The next that ends; `None` while none runs. The error is a panic.
    pub(crate) async fn join_next(&mut self) -> Option<anyhow::Result<(Slot, E)>> {
        let ended = self.set.join_next().await?;
        if let Ok((slot, _)) = &ended {
            self.running.remove(slot);
        }
        Some(ended.map_err(Into::into))
    }

    /// Lets all of them finish their batches.
    pub(crate) fn stop(&self) {
        self.running.values().for_each(CancellationToken::cancel);
    }
}
