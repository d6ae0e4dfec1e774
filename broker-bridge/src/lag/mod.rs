//! How far consumer groups are behind.
//!
//! A group's offsets are the offset store's where it has them, else Kafka's: a bridge's group is right even while its mirror in Kafka is behind.

mod reset;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) use reset::{Place, Resets};
use service_kit::{
    kafka::{Bounds, GroupView, KafkaError, TopicPartition},
    offsets::OffsetStore,
};

use crate::{
    connect::Connection,
    error::{BridgeError, Code, Result},
    gate::Gate,
};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Lag {
    kafka: Connection,
    store: Arc<dyn OffsetStore>,
    gate: Arc<Gate>,
}

/// One group, partition by partition.
#[derive(Debug)]
pub(crate) struct GroupLag {
    pub(crate) group: GroupView,
    pub(crate) partitions: Vec<PartitionLag>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PartitionLag {
    pub(crate) partition: TopicPartition,
    /// Next offset to read; `None` for a partition that a member reads and nobody has committed.
    pub(crate) committed: Option<i64>,
    pub(crate) metadata: String,
    pub(crate) end: i64,
    pub(crate) member: Option<Owner>,
}

/// The member a partition is assigned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) id: String,
    pub(crate) client_id: String,
}

impl PartitionLag {
    /// Records not yet read. An offset beyond the end (the topic was created anew) is no lag; without an offset it is not known.
    pub(crate) fn lag(&self) -> Option<i64> {
        self.committed.map(|committed| (self.end - committed).max(0))
    }
}

impl GroupLag {
    pub(crate) fn total(&self) -> i64 {
        self.partitions.iter().filter_map(PartitionLag::lag).sum()
    }
}

impl Lag {
    pub(crate) fn new(kafka: Connection, store: Arc<dyn OffsetStore>, gate: Arc<Gate>) -> Self {
        Self { kafka, store, gate }
    }

    /// Kafka's groups, and those that only the offset store knows; ascending by id.
    pub(crate) async fn groups(&self) -> Result<Vec<GroupView>> {
        self.gate.broker()?;
        let mut groups: BTreeMap<String, GroupView> =
            self.kafka.admin().await?.groups().await?.into_iter().map(|group| (group.id.clone(), group)).collect();
        for id in self.store.groups().await? {
            groups.entry(id.clone()).or_insert_with(|| GroupView {
                id,
                state: "Empty".to_owned(),
                protocol: String::new(),
                protocol_type: "consumer".to_owned(),
                members: Vec::new(),
            });
        }
        Ok(groups.into_values().collect())
    }

    pub(crate) async fn of(&self, id: &str) -> Result<GroupLag> {
        let group = self.groups().await?.into_iter().find(|group| group.id == id).ok_or_else(|| {
            BridgeError::new(
                Code::GroupNotFound,
                format!("group {id:?} has neither members nor offsets; `millrace group list` shows the groups there are"),
            )
        })?;
        let offsets = self.offsets(&group).await?;
        let bounds = self.bounds(offsets.keys().cloned().collect()).await?;
        Ok(assemble(group, offsets, &bounds))
    }

    /// All groups, with one question for all partitions' ends.
    pub(crate) async fn all(&self) -> Result<Vec<GroupLag>> {
        let mut found = Vec::new();
        let mut partitions = BTreeSet::new();
        for group in self.groups().await? {
            let offsets = self.offsets(&group).await?;
            partitions.extend(offsets.keys().cloned());
            found.push((group, offsets));
        }
        let bounds = self.bounds(partitions).await?;
        Ok(found.into_iter().map(|(group, offsets)| assemble(group, offsets, &bounds)).collect())
    }

    /// Committed offsets; `None` for partitions that are assigned and have none.
    async fn offsets(&self, group: &GroupView) -> Result<BTreeMap<TopicPartition, Option<(i64, String)>>> {
        let assigned = group.members.iter().flat_map(|member| &member.assignment).map(|partition| (partition.clone(), None));
        let mut offsets: BTreeMap<_, _> = assigned.collect();
        match self.kafka.admin().await?.committed(&group.id, None).await {
            Ok(committed) => offsets.extend(committed.into_iter().map(|(partition, committed)| (partition, Some(committed)))),
            // Known to the store only.
            Err(KafkaError::UnknownGroup(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let stored = self.store.get(&group.id, None).await?.offsets;
        offsets.extend(stored.into_iter().map(|(partition, stored)| (partition, Some((stored.offset, stored.metadata)))));
        Ok(offsets)
    }

    /// Without the partitions of topics that are gone: a group may hold offsets of them for days.
    async fn bounds(&self, mut partitions: BTreeSet<TopicPartition>) -> Result<BTreeMap<TopicPartition, Bounds>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let existing: BTreeMap<String, usize> =
            self.kafka.admin().await?.topics().await?.into_iter().map(|topic| (topic.name, topic.partitions.len())).collect();
        partitions.retain(|partition| {
            let count = existing.get(&*partition.topic).copied().unwrap_or(0);
            usize::try_from(partition.partition).is_ok_and(|partition| partition < count)
        });
        let partitions: Vec<TopicPartition> = partitions.into_iter().collect();
        Ok(self.kafka.admin().await?.bounds(&partitions).await?)
    }
}

fn assemble(
    group: GroupView,
    offsets: BTreeMap<TopicPartition, Option<(i64, String)>>,
    bounds: &BTreeMap<TopicPartition, Bounds>,
) -> GroupLag {
    let mut owners = BTreeMap::new();
    for member in &group.members {
        for partition in &member.assignment {
            owners.insert(partition.clone(), Owner { id: member.id.clone(), client_id: member.client_id.clone() });
        }
    }
    let partitions = offsets.into_iter().filter_map(|(partition, committed)| {
        let end = bounds.get(&partition)?.latest;
        let (committed, metadata) = committed.map_or((None, String::new()), |(offset, metadata)| (Some(offset), metadata));
        Some(PartitionLag { member: owners.get(&partition).cloned(), partition, committed, metadata, end })
    });
    GroupLag { partitions: partitions.collect(), group }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use service_kit::{kafka::GroupMemberView, offsets::OffsetCommit};

    use super::*;
    use crate::testing::{self, FakeKafka};

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    #[tokio::test]
    async fn the_store_wins_over_kafka_and_owners_are_named() {
        let kafka = FakeKafka::with_topic("t", 3);
        kafka.append("t", 0, 10);
        kafka.append("t", 1, 5);
        kafka.set_committed("g", &[(tp(0), 2), (tp(1), 9), (TopicPartition::new("gone", 0), 1)]);
        kafka.set_members(
            "g",
            vec![GroupMemberView { id: "m-1".into(), client_id: "c".into(), host: "/h".into(), assignment: vec![tp(0), tp(2)] }],
        );
        let store = testing::MemoryOffsets::default();
        store.commit("g", 0, &[OffsetCommit { partition: tp(0), offset: 7, metadata: "mine".into() }]).await.unwrap();
        store.commit("only-here", 0, &[OffsetCommit { partition: tp(0), offset: 1, metadata: String::new() }]).await.unwrap();
        let lag = testing::lag(&kafka, store);

        let found = lag.of("g").await.unwrap();
        let rows: Vec<_> =
            found.partitions.iter().map(|row| (row.partition.partition, row.committed, row.end, row.lag(), row.member.is_some())).collect();
        assert_eq!(rows, [(0, Some(7), 10, Some(3), true), (1, Some(9), 5, Some(0), false), (2, None, 0, None, true)]);
        assert_eq!((found.total(), found.partitions[0].metadata.as_str()), (3, "mine"));

        let ids: Vec<String> = lag.groups().await.unwrap().into_iter().map(|group| group.id).collect();
        assert_eq!(ids, ["g", "only-here"]);
        assert_eq!(lag.all().await.unwrap().iter().map(GroupLag::total).collect::<Vec<_>>(), [3, 9]);
        assert_eq!(lag.of("nobody").await.unwrap_err().code, Code::GroupNotFound);
    }
}
