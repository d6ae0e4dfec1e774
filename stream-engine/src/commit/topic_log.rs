//! The durable history of one slot, in Kafka: why a batch of a slot happens exactly once.
//!
//! 1. *One owner writes.* [`SlotLog::take`] begins with the slot's transactional id (`init_transactions`). The transaction coordinator raises the id's
//!    epoch, and from then on refuses every request of an earlier owner, whatever that one believes, and however late it comes. A transaction that the
//!    earlier owner left open is aborted, one that it was committing is completed, before the call returns.
//! 2. *The new owner knows the truth.* Only after that it reads the slot's partition to its end, `read_committed`. Nobody else writes progress for the slot, and
//!    no transaction of the slot is open: what it reads is the last word of the last batch that happened, and cannot change any more but by itself.
//! 3. *All or nothing.* Outputs, progress and the group's offsets of a batch are in one transaction. So a batch that is not in the progress has put
//!    nothing into Kafka, and is cut again, and one that is in it has put all of it there, and is passed.
//! 4. *Outside of Kafka*, where a batch has effects there too, it is durable as it was cut ([`SlotLog::define`]) before the first of them, and is run
//!    again as it was; effects are fenced by slot and batch id, which only grow, whoever owns the slot.
//!
//! Who *should* own a slot is the consumer group's business, and correctness does not hang on it: two workers that both take a slot fence each other, and
//! what each had open is aborted. That they do not go on doing so hangs on one rule: who is fenced lets go ([`LogError::Lost`]), and a slot is only taken after the
//! group's coordinator has named this member its holder ([`service_kit::kafka::MemberOnHold::holds`]). A worker that was put to sleep between the two may fence its
//! successor once, and not again: the coordinator has forgotten it.
//!
//! The offsets carry the member's generation (KIP-447). It protects the group's offsets from a member that the group has forgotten; the batch
//! does not need it. While the group finds a new order, a generation goes stale in the middle of a batch: [`LogError::Stale`], the batch is run again.
//!
//! One gap is left to the client's transaction protocol (TV1): a request to end a transaction that the network holds back, while the same
//! owner goes on to the next one, ends that one too early. Protocol 2 (KIP-890) closes it.

use std::sync::Arc;

use async_trait::async_trait;
use service_kit::kafka::{
    Bounds, Isolation, KafkaConfig, KafkaError, MemberIdentity, MemberOnHold, OutRecord, OwnTopic, RangeReader, Tail, TailEvent,
    TopicPartition, TransactionalWriter,
};
use tracing::warn;

use super::progress::{Job, SlotBatch, SlotProgress};
use super::slots::Slot;

/// What the slots of a job need of the cluster that holds its progress.
#[async_trait]
pub trait Clients: Send + Sync + 'static {
    /// Makes the job's `…-slots` topic where it is missing; refuses one with another number of partitions.
    async fn prepare(&self, job: &Job) -> Result<(), KafkaError>;
    /// Every earlier writer with the id is fenced, and its transaction ended, when this returns.
    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError>;
    /// Committed records only.
    async fn reader(&self) -> Result<Arc<dyn RangeReader>, KafkaError>;
    /// Joins the group for the partitions of `topic`.
    async fn member(&self, group: &str, topic: &str) -> Result<Arc<dyn MemberOnHold>, KafkaError>;
}

/// The real thing.
pub struct KafkaClients {
    /// Of the cluster that the outputs are in too: a transaction does not span two.
    pub kafka: KafkaConfig,
    /// Static id of this worker in the group, unique among the job's: started again under it, the worker has its slots back at once. `None`: a member like any
    /// other, whose slots move to the others when it leaves.
    pub worker_id: Option<String>,
}

/// How long a transaction may be open before the coordinator ends it, and with it what hides the slot's outputs from readers.
const TRANSACTION_TIMEOUT_MS: &str = "10000";
/// How long the brokers may take to hear of a topic that was just made.
const TOPIC_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

#[async_trait]
impl Clients for KafkaClients {
    async fn prepare(&self, job: &Job) -> Result<(), KafkaError> {
        let topic = OwnTopic {
            name: &job.slots_topic(),
            setting: "the job's name",
            // At most `SLOTS_MAX`.
            partitions: job.shape.slots.cast_signed(),
            replication: -1,
            // Small segments: who takes a slot reads what is not compacted yet.
            config: &[("cleanup.policy", "compact"), ("segment.bytes", "4194304"), ("min.cleanable.dirty.ratio", "0.1")],
            policy: Some("compact"),
        };
        let admin = service_kit::kafka::admin(&self.kafka).await?;
        service_kit::kafka::own_topic(admin.as_ref(), &topic, TOPIC_PATIENCE).await
    }

    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        let mut config = self.kafka.clone();
        if config.get("transaction.timeout.ms").is_none() {
            config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
        }
        service_kit::kafka::transactional_writer(&config, transactional_id).await
    }

    async fn reader(&self) -> Result<Arc<dyn RangeReader>, KafkaError> {
        service_kit::kafka::range_reader(&self.kafka, Isolation::ReadCommitted).await
    }

    async fn member(&self, group: &str, topic: &str) -> Result<Arc<dyn MemberOnHold>, KafkaError> {
        let mut config = self.kafka.clone();
        if let Some(id) = &self.worker_id {
            config.set("group.instance.id", id);
        }
        service_kit::kafka::member_on_hold(&config, group, topic).await
    }
}

/// Why a step of a slot did not happen, by what its owner has to do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another owner has the slot. Drop the log and let go; take it again only when the group says so.
    #[error("{0}")]
    Lost(String),
    /// It is not known whether the batch happened. Drop the log; whoever takes the slot next, this worker too, reads it in the progress.
    #[error("{0}")]
    Unknown(String),
    /// The group has gone on to another generation. Nothing of the batch is there; run it again.
    #[error("{0}")]
    Stale(String),
    /// A broker is away. Nothing of the batch is there; run it again, as often as it takes.
    #[error("{0:#}")]
    Away(anyhow::Error),
    /// Nothing of the batch is there, and to run it again would not help.
    #[error("{0:#}")]
    Fatal(anyhow::Error),
}

impl From<KafkaError> for LogError {
    fn from(error: KafkaError) -> Self {
        match error {
            KafkaError::Fenced(reason) => Self::Lost(reason),
            // A client that cannot go on says nothing about the transaction it had.
            KafkaError::OutcomeUnknown(reason) | KafkaError::Fatal(reason) => Self::Unknown(reason),
            KafkaError::Conflict(reason) => Self::Stale(reason),
            error if error.retryable() => Self::Away(error.into()),
            error => Self::Fatal(error.into()),
        }
    }
}

/// What a slot's owner holds. Dropped, what is open is aborted.
pub struct SlotLog {
    writer: Box<dyn TransactionalWriter>,
    open: bool,
}

/// Offsets of the slot's partition that are looked at first for its newest progress, from the end; each batch takes two.
const LOOK_BACK: i64 = 256;

impl SlotLog {
    /// The slot is this worker's, and no earlier owner's, when it returns, with how far it is; `None` where nobody ever began. Say before by
    /// [`MemberOnHold::holds`] whether it may be taken.
    pub async fn take(
        clients: &dyn Clients,
        reader: &Arc<dyn RangeReader>,
        job: &Job,
        slot: Slot,
    ) -> Result<(Self, Option<SlotProgress>), LogError> {
        let writer = clients.writer(&job.transactional_id(slot)).await?;
        // Not before: an earlier owner could still write.
        let progress = newest(reader, &job.partition(slot)).await?;
        Ok((Self { writer, open: false }, progress))
    }

    /// Makes the batch durable as it was cut, before it has its first effect outside of Kafka. Jobs without such effects need it not.
    pub async fn define(&mut self, progress: &SlotProgress, batch: &SlotBatch) -> Result<(), LogError> {
        let defined = SlotProgress { defined: Some(batch.clone()), ..progress.clone() };
        self.commit(&defined, None).await
    }

    /// Part of the batch under way. The transaction begins with the first records, so that its timeout does not run while a batch reads and computes.
    pub async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), LogError> {
        let sent = async {
            self.begin().await?;
            self.writer.queue(records).await
        };
        match sent.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.undo(error).await),
        }
    }

    /// The batch happens: all that was sent, the progress behind it, and with `member` the offsets of it in the member's group.
    pub async fn commit(&mut self, progress: &SlotProgress, member: Option<&MemberIdentity>) -> Result<(), LogError> {
        let record = progress.record().map_err(|error| LogError::Fatal(error.into()))?;
        let committed = async {
            self.begin().await?;
            self.writer.queue(vec![record]).await?;
            if let Some(member) = member {
                let offsets = progress.offsets().into_iter().map(|(partition, offset)| (partition, offset, String::new())).collect();
                self.writer.offsets_of(member, offsets).await?;
            }
            self.writer.commit().await
        };
        match committed.await {
            Ok(()) => {
                self.open = false;
                Ok(())
            }
            Err(error) => Err(self.undo(error).await),
        }
    }

    /// Nothing of the batch under way is there when it returns.
    pub async fn abort(&mut self) -> Result<(), LogError> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        Ok(self.writer.abort().await?)
    }

    async fn begin(&mut self) -> Result<(), KafkaError> {
        if !self.open {
            self.writer.begin().await?;
            self.open = true;
        }
        Ok(())
    }

    /// What an error means, with nothing left open where the log can be used again.
    async fn undo(&mut self, error: KafkaError) -> LogError {
        match LogError::from(error) {
            gone @ (LogError::Lost(_) | LogError::Unknown(_)) => gone,
            error => match self.abort().await {
                Ok(()) => error,
                Err(worse @ (LogError::Lost(_) | LogError::Unknown(_))) => worse,
                Err(other) => LogError::Unknown(format!("{error}; and it cannot be undone: {other}")),
            },
        }
    }
}

/// The newest progress in the slot's partition.
async fn newest(reader: &Arc<dyn RangeReader>, partition: &TopicPartition) -> Result<Option<SlotProgress>, LogError> {
    let mut look_back = LOOK_BACK;
    loop {
        let bounds = reader.bounds(std::slice::from_ref(partition)).await?;
        let Some(Bounds { earliest, latest }) = bounds.get(partition).copied() else {
            return Err(KafkaError::UnknownTopic(partition.topic.to_string()).into());
        };
        let from = latest.saturating_sub(look_back).max(earliest);
        let mut tail = Tail::new(Arc::clone(reader), partition.clone(), from);
        let mut found = None;
        while let TailEvent::Records(records) = tail.next().await? {
            for record in &records {
                let read = SlotProgress::of(record, partition).map_err(|error| LogError::Fatal(error.into()))?;
                found = read.or(found);
            }
        }
        if found.is_some() || from == earliest {
            return Ok(found);
        }
        warn!(%partition, look_back, "no progress among the newest records of the slot; looking further back");
        look_back = look_back.saturating_mul(16);
    }
}
