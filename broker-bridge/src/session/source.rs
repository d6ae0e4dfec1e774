//! Where a session's records come from: a member of a Kafka group (`subscribe`), or partitions read directly (`assign`).
//!
//! Both are a [`Member`], so that a session does not care.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use parking_lot::Mutex;
use service_kit::kafka::{self, Admin, Isolation, Joining, KafkaError, Member, RangeReader, Record, TopicPartition};
use tokio::time::{Instant, sleep};

use super::Settings;
use crate::connect::Connection;

/// Makes Kafka clients for sessions.
#[async_trait]
pub(crate) trait Clients: Send + Sync + 'static {
    /// `instance`: of a static member, which takes the place of one of the same name.
    async fn member(
        &self,
        group: &str,
        topics: &[String],
        settings: &Settings,
        instance: Option<&str>,
    ) -> Result<Arc<dyn Member>, KafkaError>;
    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError>;
}

/// The real ones.
pub(crate) struct KafkaClients {
    pub(crate) kafka: Connection,
    /// A member must poll within this time; above the session's idle time, so that the bridge decides when it is over.
    pub(crate) poll_interval_max: Duration,
    /// What the client reads ahead is memory of the session.
    pub(crate) read_ahead_bytes_max: usize,
}

#[async_trait]
impl Clients for KafkaClients {
    async fn member(
        &self,
        group: &str,
        topics: &[String],
        settings: &Settings,
        instance: Option<&str>,
    ) -> Result<Arc<dyn Member>, KafkaError> {
        let mut config = self.kafka.of_caller()?.config().clone();
        config.set("max.poll.interval.ms", self.poll_interval_max.as_millis().to_string());
        config.set("isolation.level", isolation_name(settings.isolation));
        if let Some(instance) = instance {
            config.set("group.instance.id", instance);
        }
        // Kafka wants 1,000 at least.
        let fetch_bytes = self.read_ahead_bytes_max.clamp(1_000, 8 << 20).to_string();
        let partition_bytes = self.read_ahead_bytes_max.min(128 << 10).to_string();
        for (key, value) in [
            ("fetch.max.bytes", fetch_bytes.as_str()),
            ("max.partition.fetch.bytes", &partition_bytes),
            // The partitions of a bridge that was killed are free after this, instead of after Kafka's 45 s.
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "3000"),
        ] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        let queue_bytes_max = self.read_ahead_bytes_max;
        kafka::bounded_member(&config, &Joining { group, auto_offset_reset: &settings.auto_offset_reset, queue_bytes_max }, topics).await
    }

    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError> {
        let mut config = self.kafka.of_caller()?.config().clone();
        if config.get("max.partition.fetch.bytes").is_none() {
            config.set("max.partition.fetch.bytes", "1048576");
        }
        kafka::range_reader(&config, isolation).await
    }
}

fn isolation_name(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "read_uncommitted",
        Isolation::ReadCommitted => "read_committed",
    }
}

/// How often a direct reader without news looks for some.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Partitions read without group membership. Starts at Kafka's committed offset, else where `auto.offset.reset` says; the session seeks to
/// its own offsets first.
pub(super) struct Direct {
    group: String,
    auto_offset_reset: String,
    reader: Arc<dyn RangeReader>,
    admin: Arc<dyn Admin>,
    /// Next offset to read; `None` until it is known.
    positions: Mutex<BTreeMap<TopicPartition, Option<i64>>>,
    paused: Mutex<BTreeSet<TopicPartition>>,
    /// The partition that was read last: the next read begins behind it, so that none starves.
    last: Mutex<Option<TopicPartition>>,
}

impl Direct {
    pub(super) fn new(
        group: &str,
        settings: &Settings,
        reader: Arc<dyn RangeReader>,
        admin: Arc<dyn Admin>,
        partitions: &[TopicPartition],
    ) -> Self {
        Self {
            group: group.to_owned(),
            auto_offset_reset: settings.auto_offset_reset.clone(),
            reader,
            admin,
            positions: Mutex::new(partitions.iter().map(|partition| (partition.clone(), None)).collect()),
            paused: Mutex::default(),
            last: Mutex::new(None),
        }
    }

    /// The positions, with those filled in that were not known.
    async fn filled(&self) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        let known = self.positions.lock().clone();
        let missing: Vec<TopicPartition> =
            known.iter().filter(|(_, offset)| offset.is_none()).map(|(partition, _)| partition.clone()).collect();
        if !missing.is_empty() {
            let committed = self.admin.committed(&self.group, Some(&missing)).await?;
            let bounds = self.reader.bounds(&missing).await?;
            let mut positions = self.positions.lock();
            for partition in missing {
                let bounds = bounds.get(&partition).copied();
                let start = match (committed.get(&partition), bounds) {
                    (Some((offset, _)), _) => *offset,
                    (None, Some(bounds)) => self.reset_to(&partition, bounds, None)?,
                    (None, None) => continue,
                };
                // A seek that came in between wins.
                if let Some(position @ None) = positions.get_mut(&partition) {
                    *position = Some(start);
                }
            }
        }
        Ok(self.known())
    }

    fn known(&self) -> BTreeMap<TopicPartition, i64> {
        self.positions.lock().iter().filter_map(|(partition, offset)| offset.map(|offset| (partition.clone(), offset))).collect()
    }

    fn reset_to(&self, partition: &TopicPartition, bounds: kafka::Bounds, out_of_range: Option<i64>) -> Result<i64, KafkaError> {
        match self.auto_offset_reset.as_str() {
            "earliest" => Ok(bounds.earliest),
            "latest" => Ok(bounds.latest),
            _ => Err(KafkaError::Conflict(match out_of_range {
                Some(offset) => format!(
                    "{partition} has no offset {offset} any more, it holds {} to {}, and auto.offset.reset is none; seek to an offset it holds",
                    bounds.earliest, bounds.latest
                ),
                None => format!(
                    "group {:?} has no offset for {partition} and auto.offset.reset is none; commit or seek to one first",
                    self.group
                ),
            })),
        }
    }

    /// Moves the position unless somebody else did.
    fn advance(&self, partition: &TopicPartition, from: i64, to: i64) {
        if let Some(Some(position)) = self.positions.lock().get_mut(partition)
            && *position == from
        {
            *position = to;
        }
    }

    /// The first chunk that is there now.
    async fn look(&self, max: usize) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        let mut positions = self.filled().await?;
        positions.retain(|partition, _| !self.paused.lock().contains(partition));
        let partitions: Vec<TopicPartition> = positions.keys().cloned().collect();
        let bounds = self.reader.bounds(&partitions).await?;
        let last = self.last.lock().clone();
        let behind = partitions.iter().position(|partition| last.as_ref().is_some_and(|last| partition > last)).unwrap_or(0);
        for partition in partitions[behind..].iter().chain(&partitions[..behind]) {
            let (Some(&from), Some(&bounds)) = (positions.get(partition), bounds.get(partition)) else { continue };
            if from < bounds.earliest || from > bounds.latest {
                let to = self.reset_to(partition, bounds, Some(from))?;
                tracing::warn!(group = self.group, %partition, from, to, "offset is out of range, reset");
                self.advance(partition, from, to);
                continue;
            }
            if from == bounds.latest {
                continue;
            }
            *self.last.lock() = Some(partition.clone());
            let mut chunks = self.reader.read(partition.clone(), from, bounds.latest);
            while let Some(mut chunk) = chunks.next().await.transpose()? {
                chunk.truncate(max);
                if let Some(end) = chunk.last() {
                    self.advance(partition, from, end.offset + 1);
                    return Ok(chunk.into_iter().map(|record| (partition.clone(), record)).collect());
                }
            }
            // Nothing but markers of transactions, or compacted away.
            self.advance(partition, from, bounds.latest);
        }
        Ok(Vec::new())
    }
}

#[async_trait]
impl Member for Direct {
    async fn poll(&self, max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        let until = Instant::now() + wait;
        loop {
            let records = self.look(max).await?;
            let left = until.saturating_duration_since(Instant::now());
            if !records.is_empty() || left.is_zero() {
                return Ok(records);
            }
            sleep(left.min(LOOK_EVERY)).await;
        }
    }

    async fn commit(&self, offsets: Vec<(TopicPartition, i64)>, metadata: &str) -> Result<(), KafkaError> {
        let offsets: Vec<_> = offsets.into_iter().map(|(partition, offset)| (partition, offset, metadata.to_owned())).collect();
        self.admin.commit(&self.group, &offsets).await
    }

    async fn assignment(&self) -> Vec<TopicPartition> {
        self.positions.lock().keys().cloned().collect()
    }

    async fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        self.known()
    }

    async fn set_paused(&self, partition: &TopicPartition, paused: bool) -> Result<(), KafkaError> {
        let mut all = self.paused.lock();
        if paused {
            all.insert(partition.clone())
        } else {
            all.remove(partition)
        };
        Ok(())
    }

    async fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), KafkaError> {
        match self.positions.lock().get_mut(partition) {
            Some(position) => *position = Some(offset),
            None => return Err(KafkaError::Conflict(format!("{partition} is not assigned"))),
        }
        Ok(())
    }

    async fn close(&self) {}
}
