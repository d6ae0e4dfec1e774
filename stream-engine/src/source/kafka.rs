//! A connected source: where it begins and ends, and whether what is to be read is there. Kafka is read directly, by offset
//! ranges and without joining a group; a local log as if it were a topic of one partition.
//!
//! Start and end offsets are looked up once, when the job first starts, and then come from the checkpoint. Partitions
//! that appear later are read from their first record.

use std::{collections::BTreeMap, sync::Arc};

use service_kit::kafka::{Bounds, KafkaError, RangeReader, TopicPartition};

use super::Cluster;
use super::local::{LocalLog, LocalReader, Place};
use super::offsets::{OffsetSettings, stored};
use crate::batch::{Bounded, SourceKind, SourceSpec, Startup};
use crate::commit::{
    Positions, SourceStart, TopicIds,
    slots::{Shape, Slot},
};

/// A connected source.
pub struct Source {
    pub spec: SourceSpec,
    pub reader: Arc<dyn RangeReader>,
    /// Where a first start at group offsets looks for them.
    offsets: OffsetSettings,
    /// Of a job that several workers share: only the partitions of this slot are read.
    pub share: Option<Share>,
}

/// One slot of a job, and into how many the job is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub shape: Shape,
    pub slot: Slot,
}

/// Offsets that were still to be read are not in the topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataLoss {
    #[error(
        "source `{source_name}`: partition {partition} was to be read from offset {wanted}, but begins at {earliest}: \
         retention removed {} offsets. Set failOnDataLoss=false to go on at {earliest}, or start with a fresh checkpoint",
        earliest - wanted
    )]
    Removed { source_name: String, partition: TopicPartition, wanted: i64, earliest: i64 },
    #[error(
        "source `{source_name}`: partition {partition} was to be read from offset {wanted}, but ends at {latest}: \
         was the topic deleted and created again? Set failOnDataLoss=false to read it from its beginning ({earliest}), or start with a fresh checkpoint"
    )]
    BeyondEnd { source_name: String, partition: TopicPartition, wanted: i64, earliest: i64, latest: i64 },
    #[error(
        "source `{source_name}`: topic `{topic}` was deleted and created again since this job read it, so its offsets do not fit the new topic. \
         Set failOnDataLoss=false to read the new topic from its beginning, or start with a fresh checkpoint"
    )]
    Recreated { source_name: String, topic: String },
}

impl Source {
    /// `place`: of a local log; `None` where there is none to keep it in, as with several workers.
    pub async fn connect(cluster: &dyn Cluster, spec: SourceSpec, place: Option<Place>) -> anyhow::Result<Self> {
        let offsets = place.as_ref().map(|place| place.settings.offsets.clone()).unwrap_or_default();
        let reader = match &spec.kind {
            SourceKind::Kafka(_) => cluster.reader(&spec).await?,
            SourceKind::Local(log) => {
                let place = place
                    .ok_or_else(|| anyhow::anyhow!("source `{}` belongs to one process, and this job has several workers", spec.name))?;
                log.open(place).await?;
                Arc::new(LocalReader(log.clone()))
            }
        };
        Ok(Self { spec, reader, offsets, share: None })
    }

    /// Only the partitions of this share are read.
    pub fn shared(self, share: Option<Share>) -> Self {
        Self { share, ..self }
    }

    fn is_mine(&self, partition: &TopicPartition) -> bool {
        self.share.is_none_or(|share| share.shape.slot_of_partition(partition.partition) == share.slot)
    }

    pub fn local(&self) -> Option<&Arc<dyn LocalLog>> {
        match &self.spec.kind {
            SourceKind::Kafka(_) => None,
            SourceKind::Local(log) => Some(log),
        }
    }

    /// What the source's topics are at the moment.
    pub async fn topic_ids(&self, cluster: &dyn Cluster) -> Result<TopicIds, KafkaError> {
        let mut ids = TopicIds::new();
        if self.local().is_some() {
            return Ok(ids);
        }
        for topic in &self.spec.topics {
            if let Some(id) = cluster.topic_id(&self.spec, topic).await? {
                ids.insert(topic.clone(), format!("{:032x}", u128::from_be_bytes(id)));
            }
        }
        Ok(ids)
    }

    /// A topic that is no longer the one that was read.
    pub fn recreated(&self, read: &TopicIds, now: &TopicIds) -> Option<DataLoss> {
        let (topic, _) = read.iter().find(|(topic, id)| now.get(*topic).is_some_and(|now| now != *id))?;
        Some(DataLoss::Recreated { source_name: self.spec.name.clone(), topic: topic.clone() })
    }

    /// All partitions of the source's topics, of its share of them.
    pub async fn partitions(&self) -> Result<Vec<TopicPartition>, KafkaError> {
        let mut all = Vec::new();
        for topic in &self.spec.topics {
            let topic: Arc<str> = topic.as_str().into();
            let partitions = self.reader.partitions(&topic).await?;
            all.extend(partitions.into_iter().map(|partition| TopicPartition { topic: topic.clone(), partition }));
        }
        all.retain(|partition| self.is_mine(partition));
        Ok(all)
    }

    /// Where a fresh job begins, and where it ends when the source is bounded.
    pub async fn start(&self, cluster: &dyn Cluster) -> anyhow::Result<SourceStart> {
        // Before the offsets, so that a topic that is made anew in between is noticed.
        let topics = self.topic_ids(cluster).await?;
        let partitions = self.partitions().await?;
        let bounds = self.reader.bounds(&partitions).await?;
        let all = |offset: fn(&Bounds) -> i64| bounds.iter().map(|(p, b)| (p.clone(), offset(b))).collect::<BTreeMap<_, _>>();
        let starts = match &self.spec.startup {
            Startup::Earliest => all(|b| b.earliest),
            Startup::Latest => all(|b| b.latest),
            Startup::Timestamp(time_ms) => self.reader.offsets_at(&partitions, *time_ms).await?,
            Startup::Specific(offsets) => {
                if let Some(unknown) = offsets.keys().find(|partition| self.is_mine(partition) && !bounds.contains_key(*partition)) {
                    anyhow::bail!("source `{}`: start offset given for partition {unknown}, which does not exist", self.spec.name);
                }
                let mut starts = all(|b| b.earliest);
                starts.extend(
                    offsets.iter().filter(|(partition, _)| self.is_mine(partition)).map(|(partition, offset)| (partition.clone(), *offset)),
                );
                for (partition, wanted) in &starts {
                    self.check(partition, *wanted, bounds.get(partition))?;
                }
                starts
            }
            Startup::GroupOffsets => self.group_offsets(cluster, &partitions, &bounds).await?,
        };
        let ends = match self.spec.bounded {
            None => None,
            Some(Bounded::Latest) => Some(all(|b| b.latest)),
            Some(Bounded::Timestamp(time_ms)) => {
                let at = self.reader.offsets_at(&partitions, time_ms).await?;
                // An open transaction can keep the stable end below the offset of that time.
                let end = |(p, at): (TopicPartition, i64)| {
                    let latest = bounds.get(&p).map_or(at, |b| b.latest);
                    (p, at.min(latest))
                };
                Some(at.into_iter().map(end).collect())
            }
        };
        Ok(SourceStart { name: self.spec.name.clone(), starts: Positions(starts), ends: ends.map(Positions), topics })
    }

    async fn group_offsets(
        &self,
        cluster: &dyn Cluster,
        partitions: &[TopicPartition],
        bounds: &BTreeMap<TopicPartition, Bounds>,
    ) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
        let name = &self.spec.name;
        let Some(group) = self.spec.group.as_deref().or_else(|| self.spec.kafka("group.id")) else {
            anyhow::bail!("source `{name}`: starting at group offsets needs a group; set `group.id`");
        };
        let mut committed: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        for place in std::iter::once(&self.offsets.store).chain(&self.offsets.previous) {
            for (partition, offset) in stored(place, cluster, &self.spec, group, partitions).await? {
                // The group has got as far as the one that is further says; of a topic that is there no more, none says anything.
                if bounds.get(&partition).is_some_and(|bounds| (bounds.earliest..=bounds.latest).contains(&offset)) {
                    let furthest = committed.entry(partition).or_insert(offset);
                    *furthest = offset.max(*furthest);
                }
            }
        }
        let reset = self.spec.kafka("auto.offset.reset").unwrap_or("latest");
        let mut starts = BTreeMap::new();
        for (partition, bounds) in bounds {
            let start = match (committed.get(partition).copied(), reset) {
                (Some(offset), _) => offset,
                (None, "earliest") => bounds.earliest,
                (None, "latest") => bounds.latest,
                (None, "none") => {
                    anyhow::bail!(
                        "source `{name}`: group `{group}` has no usable offset for {partition} in its store, and `auto.offset.reset` is `none`"
                    )
                }
                (None, other) => {
                    anyhow::bail!("source `{name}`: `auto.offset.reset` is `{other}`; it must be earliest, latest or none")
                }
            };
            starts.insert(partition.clone(), start);
        }
        Ok(starts)
    }

    /// Is the offset within what the partition holds?
    pub fn check(&self, partition: &TopicPartition, wanted: i64, bounds: Option<&Bounds>) -> Result<(), DataLoss> {
        let Some(Bounds { earliest, latest }) = bounds.copied() else { return Ok(()) };
        let (source_name, partition) = (self.spec.name.clone(), partition.clone());
        if wanted < earliest {
            Err(DataLoss::Removed { source_name, partition, wanted, earliest })
        } else if wanted > latest {
            Err(DataLoss::BeyondEnd { source_name, partition, wanted, earliest, latest })
        } else {
            Ok(())
        }
    }
}
