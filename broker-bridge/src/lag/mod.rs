//! How far consumer groups are behind.
//!
//! A group's offsets are the offset store's where it has them, else Kafka's: a bridge's group is right even while its mirror in Kafka is behind.
//!
//! | module | question it answers |
//! |---|---|
//! | `status` | how a group is, by Burrow's rules |
//! | `ring` | what is remembered of a partition |
//! | `table` | all groups as they were seen last |
//! | `watch` | how they are looked at |
//! | `reset` | how a group is put elsewhere |
//! | `members` | who looks after a group, and which of its members are static |

mod members;
mod reset;
mod ring;
mod status;
mod table;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(crate) use members::{coordinator, instances, offsets_topic};
pub(crate) use reset::{Place, Resets};
use service_kit::{
    kafka::{Bounds, GroupView, KafkaError, TopicPartition},
    offsets::OffsetStore,
};
pub(crate) use status::{Commit, Status};
pub(crate) use table::{GroupState, Pace, PartitionState};
pub(crate) use watch::{Watch, now_ms};

use crate::{
    auth::{self, Kind, Verb},
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
    watch: Watch,
}

/// One group, partition by partition.
#[derive(Debug)]
pub(crate) struct GroupLag {
    pub(crate) group: GroupView,
    pub(crate) partitions: Vec<PartitionLag>,
    /// As it was seen last; `None` where it never committed to Kafka, or was not looked at yet.
    pub(crate) state: Option<GroupState>,
}

#[derive(Debug, PartialEq)]
pub(crate) struct PartitionLag {
    pub(crate) partition: TopicPartition,
    /// Next offset to read; `None` for a partition that a member reads and nobody has committed.
    pub(crate) committed: Option<i64>,
    pub(crate) metadata: String,
    pub(crate) end: i64,
    pub(crate) member: Option<Owner>,
    pub(crate) pace: Pace,
}

/// The member a partition is assigned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) id: String,
    pub(crate) client_id: String,
    pub(crate) host: String,
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

    /// How the group as a whole moves; all unknown where it was not looked at.
    pub(crate) fn pace(&self) -> Pace {
        self.state.as_ref().map(|state| state.pace).unwrap_or_default()
    }

    pub(crate) fn status_of(&self, partition: &TopicPartition) -> Option<Status> {
        let found = self.state.as_ref()?.partitions.iter().find(|state| state.partition == *partition)?;
        Some(found.status)
    }
}

/// A group that Kafka knows no members of.
fn without_members(id: String) -> GroupView {
    GroupView { id, state: "Empty".to_owned(), protocol: String::new(), protocol_type: "consumer".to_owned(), members: Vec::new() }
}

impl Lag {
    pub(crate) fn new(kafka: Connection, store: Arc<dyn OffsetStore>, gate: Arc<Gate>, watch: Watch) -> Self {
        Self { kafka, store, gate, watch }
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Kafka's groups, and those that only the offset store knows, as far as the caller may see them; ascending by id.
    pub(crate) async fn groups(&self) -> Result<Vec<GroupView>> {
        self.gate.broker()?;
        let mut groups: BTreeMap<String, GroupView> =
            self.kafka.of_caller()?.admin().await?.groups().await?.into_iter().map(|group| (group.id.clone(), group)).collect();
        for id in self.store.groups().await? {
            groups.entry(id.clone()).or_insert_with(|| without_members(id));
        }
        groups.retain(|id, _| auth::sees(Verb::Describe, Kind::Group, id));
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
        Ok(self.assemble(group, offsets, &bounds))
    }

    /// All groups, by one pass over all of them.
    pub(crate) async fn all(&self) -> Result<Vec<GroupLag>> {
        self.gate.broker()?;
        match self.watch.pass().await {
            Ok(()) => {
                let mut all = self.watch.table().all(now_ms());
                all.retain(|lag| auth::sees(Verb::Describe, Kind::Group, &lag.group.id));
                Ok(all)
            }
            Err(error) if error.code == Code::Forbidden => self.one_by_one().await,
            Err(error) => Err(error),
        }
    }

    /// Where the log of groups may not be read: a question for each group, and one for all partitions' ends.
    async fn one_by_one(&self) -> Result<Vec<GroupLag>> {
        let mut found = Vec::new();
        let mut partitions = BTreeSet::new();
        for group in self.groups().await? {
            let offsets = self.offsets(&group).await?;
            partitions.extend(offsets.keys().cloned());
            found.push((group, offsets));
        }
        let bounds = self.bounds(partitions).await?;
        Ok(found.into_iter().map(|(group, offsets)| self.assemble(group, offsets, &bounds)).collect())
    }

    /// Committed offsets; `None` for partitions that are assigned and have none.
    async fn offsets(&self, group: &GroupView) -> Result<BTreeMap<TopicPartition, Option<(i64, String)>>> {
        let assigned = group.members.iter().flat_map(|member| &member.assignment).map(|partition| (partition.clone(), None));
        let mut offsets: BTreeMap<_, _> = assigned.collect();
        match self.kafka.of_caller()?.admin().await?.committed(&group.id, None).await {
            Ok(mut committed) => {
                committed.retain(|partition, (offset, _)| !self.watch.is_bookkeeping(partition, *offset));
                offsets.extend(committed.into_iter().map(|(partition, committed)| (partition, Some(committed))));
            }
            // Known to the store only.
            Err(KafkaError::UnknownGroup(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if !self.store.is_kafka() {
            let stored = self.store.get(&group.id, None).await?.offsets;
            offsets.extend(stored.into_iter().map(|(partition, stored)| (partition, Some((stored.offset, stored.metadata)))));
        }
        Ok(offsets)
    }

    /// Without the partitions of topics that are gone: a group may hold offsets of them for days.
    async fn bounds(&self, mut partitions: BTreeSet<TopicPartition>) -> Result<BTreeMap<TopicPartition, Bounds>> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let existing: BTreeMap<String, usize> =
            self.kafka.of_caller()?.admin().await?.topics().await?.into_iter().map(|topic| (topic.name, topic.partitions.len())).collect();
        partitions.retain(|partition| {
            let count = existing.get(&*partition.topic).copied().unwrap_or(0);
            usize::try_from(partition.partition).is_ok_and(|partition| partition < count)
        });
        let partitions: Vec<TopicPartition> = partitions.into_iter().collect();
        Ok(self.kafka.of_caller()?.admin().await?.bounds(&partitions).await?)
    }

    fn assemble(
        &self,
        group: GroupView,
        offsets: BTreeMap<TopicPartition, Option<(i64, String)>>,
        bounds: &BTreeMap<TopicPartition, Bounds>,
    ) -> GroupLag {
        let owners = table::owners(Some(&group));
        let (table, now_ms) = (self.watch.table(), now_ms());
        let partitions = offsets.into_iter().filter_map(|(partition, committed)| {
            let end = bounds.get(&partition)?.latest;
            let (committed, metadata) = committed.map_or((None, String::new()), |(offset, metadata)| (Some(offset), metadata));
            let pace = table.pace(&group.id, &partition, committed, now_ms);
            Some(PartitionLag { member: owners.get(&partition).cloned(), partition, committed, metadata, end, pace })
        });
        GroupLag { partitions: partitions.collect(), state: table.state(&group.id, now_ms), group }
    }
}

#[cfg(test)]
mod tests {

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

    #[tokio::test]
    async fn what_the_store_in_kafka_notes_for_itself_is_no_lag() {
        let kafka = FakeKafka::with_topic("t", 2);
        kafka.add_topic("_offsets", 1);
        for topic in ["t", "_offsets"] {
            kafka.append(topic, 0, 10);
        }
        let epoch = TopicPartition::new("_offsets", 0);
        kafka.set_committed("g", &[(tp(0), 4), (tp(1), i64::MAX), (epoch.clone(), 3)]);
        for (partition, offset) in [(&tp(0), 4), (&tp(1), 5), (&epoch, 3), (&tp(1), i64::MAX)] {
            kafka.note_commit("g", partition, Some(offset), now_ms());
        }
        let lag = testing::lag(&kafka, testing::MemoryOffsets::default());
        let found = lag.of("g").await.unwrap();
        assert_eq!(found.partitions.iter().map(|row| (&row.partition, row.lag())).collect::<Vec<_>>(), [(&tp(0), Some(6))]);
        lag.watch().pass().await.unwrap();
        let state = lag.watch().table().state("g", now_ms()).unwrap();
        assert_eq!((state.total_lag, state.partitions.len()), (6, 1));
    }

    fn status(lag: &Lag, group: &str, at_ms: i64) -> Option<(Status, Vec<Status>)> {
        let state = lag.watch().table().state(group, at_ms)?;
        Some((state.status, state.partitions.iter().map(|partition| partition.status).collect()))
    }

    #[tokio::test]
    async fn one_pass_sees_who_stopped_who_stalls_and_who_is_well() {
        let kafka = FakeKafka::with_topic("t", 2);
        kafka.append("t", 0, 100);
        let now = now_ms();
        for at in 0..5 {
            let second = at * 10_000;
            kafka.note_commit("stopped", &tp(0), Some(10 + at), now - 600_000 + second);
            kafka.note_commit("stalled", &tp(0), Some(10), now - 40_000 + second);
            kafka.note_commit("back", &tp(0), Some(if at == 4 { 5 } else { 10 + at }), now - 40_000 + second);
            kafka.note_commit("catching-up", &tp(0), Some(10 + at * 10), now - 40_000 + second);
            kafka.note_commit("well", &tp(0), Some(96 + at), now - 40_000 + second);
        }
        kafka.note_commit("long-ago", &tp(0), Some(1), now - 8 * 24 * 3_600_000);
        kafka.note_commit("elsewhere", &TopicPartition::new("gone", 0), Some(1), now);
        let lag = testing::lag(&kafka, testing::MemoryOffsets::default());
        lag.watch().pass().await.unwrap();
        for (group, partition, of_group) in [
            ("stopped", Status::Stop, Status::Error),
            ("stalled", Status::Stall, Status::Error),
            ("back", Status::Rewind, Status::Error),
            ("catching-up", Status::Ok, Status::Ok),
            ("well", Status::Ok, Status::Ok),
        ] {
            assert_eq!(status(&lag, group, now), Some((of_group, vec![partition])), "{group}");
        }
        assert_eq!(status(&lag, "long-ago", now), None);
        // The next pass knows that the topic is not there.
        lag.watch().pass().await.unwrap();
        assert_eq!(status(&lag, "elsewhere", now), None);
        assert_eq!(lag.watch().table().readers("t").len(), 5);
        assert_eq!(lag.watch().table().topics()["t"], BTreeMap::from([(0, 100), (1, 0)]));

        // What is written later is seen by the next pass, and only that is read.
        kafka.note_commit("stopped", &tp(0), Some(100), now);
        kafka.note_commit("well", &tp(0), None, now);
        lag.watch().pass().await.unwrap();
        assert_eq!((status(&lag, "stopped", now), status(&lag, "well", now)), (Some((Status::Ok, vec![Status::Ok])), None));
        assert_eq!(lag.watch().table().commits("stopped").unwrap()[&tp(0)].len(), 6);
    }

    #[tokio::test]
    async fn the_age_of_unread_records_comes_from_their_time_and_then_from_the_ends() {
        let kafka = FakeKafka::with_topic("t", 1);
        // Written at 1,000 ms and after that, one each millisecond.
        kafka.append("t", 0, 10);
        kafka.note_commit("g", &tp(0), Some(4), now_ms());
        let lag = testing::lag(&kafka, testing::MemoryOffsets::default());
        lag.watch().pass().await.unwrap();
        let pace = |committed| lag.watch().table().pace("g", &tp(0), Some(committed), 61_004);
        assert_eq!(pace(4).lag_seconds, Some(60.0), "by the record's own time");
        assert_eq!((pace(10).lag_seconds, pace(10).catch_up_seconds), (Some(0.0), Some(0.0)), "nothing is unread");
        assert_eq!(pace(5).lag_seconds, None, "nobody looked at that one");

        kafka.append("t", 0, 10);
        lag.watch().pass().await.unwrap();
        let seconds = lag.watch().table().pace("g", &tp(0), Some(15), now_ms()).lag_seconds.unwrap();
        assert!(seconds < 30.0, "it was written between two looks: {seconds}");
    }

    #[tokio::test]
    async fn a_trend_says_when_a_group_has_caught_up() {
        let kafka = FakeKafka::with_topic("t", 1);
        kafka.append("t", 0, 1_000);
        let lag = testing::lag(&kafka, testing::MemoryOffsets::default());
        for committed in [100, 200, 300, 400] {
            kafka.note_commit("g", &tp(0), Some(committed), now_ms());
            lag.watch().pass().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let found = lag.of("g").await;
        assert_eq!(found.unwrap_err().code, Code::GroupNotFound, "it is in the log of groups alone");
        let state = lag.watch().table().state("g", now_ms()).unwrap();
        let (trend, left) = (state.pace.trend.unwrap(), state.pace.catch_up_seconds.unwrap());
        assert!(trend < 0.0 && (left - 600.0 / -trend).abs() < 1e-6, "{trend} {left}");
        assert_eq!((state.total_lag, state.history.len(), state.worst().unwrap().current_lag), (600, 4, 600));
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let kafka = FakeKafka::with_topic("t", 8);
        let store: Arc<dyn OffsetStore> = Arc::new(testing::MemoryOffsets::default());
        let config = crate::config::Monitor { groups_max: 3, group_partitions_max: 5, intervals: 4, ..Default::default() };
        let watch = Watch::new(kafka.connection(), Arc::new(kafka.clone()), store, "_offsets", config);
        for at in 0..20 {
            for group in 0..6 {
                for partition in 0..2 {
                    kafka.note_commit(&format!("g{group}"), &tp(partition), Some(at), now_ms() - 100_000 + at * 2_000);
                }
            }
        }
        watch.pass().await.unwrap();
        let table = watch.table();
        assert_eq!(table.sizes(), (3, 5, 4), "g0 and g1 in full, half of g2; it and three groups are left out, in full or in part");
        assert!(table.commits("g0").unwrap().values().all(|commits| commits.len() == 4));
    }

    /// Ten thousand groups of ten partitions: what is remembered of them answers at once.
    #[tokio::test]
    async fn ten_thousand_groups_are_one_pass() {
        let kafka = FakeKafka::with_topic("t", 10);
        (0..10).for_each(|partition| kafka.append("t", partition, 5));
        for group in 0..10_000 {
            for partition in 0..10 {
                kafka.note_commit(&format!("group-{group:05}"), &tp(partition), Some(i64::from(group % 6)), now_ms());
            }
        }
        let lag = testing::lag(&kafka, testing::MemoryOffsets::default());
        let all = lag.all().await.unwrap();
        assert_eq!(all.len(), 10_000);
        assert_eq!(all[1].total(), 40);
        assert_eq!(lag.watch().table().sizes(), (10_000, 100_000, 0));
        assert_eq!(kafka.questions(), 0, "no group is asked for by itself");
    }
}
