//! Puts an empty group elsewhere in a topic.

use std::{collections::BTreeMap, sync::Arc};

use service_kit::{
    kafka::{Isolation, TopicPartition},
    offsets::{OffsetCommit, OffsetStore},
};

use super::Lag;
use crate::{
    auth::{self, Kind, Verb},
    connect::Connection,
    error::{BridgeError, Code, Result},
    session::Clients,
    topics::Topics,
};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resets {
    pub(crate) lag: Lag,
    pub(crate) topics: Topics,
    pub(crate) kafka: Connection,
    pub(crate) store: Arc<dyn OffsetStore>,
    pub(crate) clients: Arc<dyn Clients>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Earliest,
    Latest,
    /// Cut to what a partition holds.
    Offset(i64),
    /// The first record of that time or later, else the end.
    Time(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) partition: i32,
    pub(crate) from: Option<i64>,
    pub(crate) to: i64,
    pub(crate) end: i64,
}

impl Resets {
    /// What changes, by partition; with `dry_run` nothing does.
    pub(crate) async fn reset(&self, group: &str, topic: &str, place: Place, dry_run: bool) -> Result<Vec<Change>> {
        auth::check(Verb::Alter, Kind::Group, group)?;
        auth::check(Verb::Read, Kind::Topic, topic)?;
        let found = self.topics.describe(topic).await?;
        // Offsets of a topic that was created anew meanwhile are no place to come from.
        self.topics.recognise(topic).await?;
        let lag = self.lag.of(group).await?;
        let members = lag.group.members.len();
        if members > 0 || !matches!(lag.group.state.as_str(), "Empty" | "Dead") {
            return Err(BridgeError::new(
                Code::Conflict,
                format!(
                    "group {group:?} is {} with {members} member{}: its consumers would write over what is set; stop them, then try again",
                    lag.group.state,
                    if members == 1 { "" } else { "s" }
                ),
            ));
        }
        let before: BTreeMap<&TopicPartition, Option<i64>> = lag.partitions.iter().map(|row| (&row.partition, row.committed)).collect();
        let times = match place {
            Place::Time(timestamp_ms) => {
                let partitions: Vec<TopicPartition> = found.bounds.keys().cloned().collect();
                self.clients.reader(Isolation::ReadUncommitted).await?.offsets_at(&partitions, timestamp_ms).await?
            }
            _ => BTreeMap::new(),
        };
        let changes: Vec<(TopicPartition, Change)> = found
            .bounds
            .into_iter()
            .map(|(partition, bounds)| {
                let to = match place {
                    Place::Earliest => bounds.earliest,
                    Place::Latest => bounds.latest,
                    Place::Offset(offset) => offset.clamp(bounds.earliest, bounds.latest),
                    Place::Time(_) => times.get(&partition).copied().unwrap_or(bounds.latest).clamp(bounds.earliest, bounds.latest),
                };
                let from = before.get(&partition).copied().flatten();
                let change = Change { partition: partition.partition, from, to, end: bounds.latest };
                (partition, change)
            })
            .collect();
        if !dry_run {
            self.write(group, &changes).await?;
            tracing::info!(group, topic, ?place, "offsets reset by an operator");
        }
        Ok(changes.into_iter().map(|(_, change)| change).collect())
    }

    /// Where the store leads the group, it is told first: its offsets are the group's, and the new epoch fences consumers with assigned partitions.
    async fn write(&self, group: &str, changes: &[(TopicPartition, Change)]) -> Result<()> {
        if self.store.groups().await?.iter().any(|known| known == group) {
            let offsets: Vec<OffsetCommit> = changes
                .iter()
                .map(|(partition, change)| OffsetCommit { partition: partition.clone(), offset: change.to, metadata: String::new() })
                .collect();
            self.store.reset(group, &offsets).await?;
            if self.store.is_kafka() {
                return Ok(());
            }
        }
        let offsets: Vec<_> = changes.iter().map(|(partition, change)| (partition.clone(), change.to, String::new())).collect();
        Ok(self.kafka.of_caller()?.admin().await?.commit(group, &offsets).await?)
    }
}

#[cfg(test)]
mod tests {

    use service_kit::kafka::GroupMemberView;

    use super::*;
    use crate::testing::{self, FakeKafka, MemoryOffsets};

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    fn resets(kafka: &FakeKafka, store: &MemoryOffsets) -> Resets {
        Resets {
            lag: testing::lag(kafka, store.clone()),
            topics: testing::topics_with(kafka, store),
            kafka: kafka.connection(),
            store: Arc::new(store.clone()),
            clients: Arc::new(kafka.clone()),
        }
    }

    #[tokio::test]
    async fn an_empty_group_goes_where_it_is_put_in_the_store_and_in_kafka() {
        let kafka = FakeKafka::with_topic("t", 2);
        kafka.append("t", 0, 10);
        kafka.append("t", 1, 4);
        kafka.set_committed("kafkas", &[(tp(0), 9)]);
        let store = MemoryOffsets::default();
        store.commit("ours", 0, &[OffsetCommit { partition: tp(0), offset: 8, metadata: String::new() }]).await.unwrap();
        let resets = resets(&kafka, &store);
        // The fake's records are of the times 1000 and their offset.
        for (place, expected) in [
            (Place::Earliest, (0, 0)),
            (Place::Latest, (10, 4)),
            (Place::Offset(6), (6, 4)),
            (Place::Time(1_002), (2, 2)),
            (Place::Time(9_999), (10, 4)),
        ] {
            for group in ["kafkas", "ours"] {
                let dry = resets.reset(group, "t", place, true).await.unwrap();
                assert_eq!((dry[0].to, dry[1].to), expected, "{place:?}");
                let before = (kafka.committed(group), store.get(group, None).await.unwrap().offsets);
                assert_eq!(resets.reset(group, "t", place, true).await.unwrap(), dry, "a dry run changes nothing");
                assert_eq!((kafka.committed(group), store.get(group, None).await.unwrap().offsets), before);
                assert_eq!(resets.reset(group, "t", place, false).await.unwrap(), dry);
                assert_eq!(kafka.committed(group), BTreeMap::from([(tp(0), expected.0), (tp(1), expected.1)]));
                let lag = resets.lag.of(group).await.unwrap();
                assert_eq!(lag.partitions.iter().map(|row| row.committed).collect::<Vec<_>>(), [Some(expected.0), Some(expected.1)]);
            }
        }
        assert!(store.get("kafkas", None).await.unwrap().offsets.is_empty(), "a group that others commit stays theirs");
        assert_eq!(store.get("ours", None).await.unwrap().epoch, 5, "fences what is on its way");
    }

    #[tokio::test]
    async fn a_group_with_members_an_unknown_one_and_an_unknown_topic_are_refused() {
        let kafka = FakeKafka::with_topic("t", 1);
        kafka.set_committed("g", &[(tp(0), 0)]);
        kafka.set_members("g", vec![GroupMemberView { id: "m".into(), client_id: "c".into(), host: "/h".into(), assignment: vec![tp(0)] }]);
        let resets = resets(&kafka, &MemoryOffsets::default());
        let refused = resets.reset("g", "t", Place::Earliest, true).await.unwrap_err();
        assert!(
            refused.code == Code::Conflict && refused.message.contains("1 member: ") && refused.message.contains("stop them"),
            "{refused}"
        );
        assert_eq!(resets.reset("nobody", "t", Place::Earliest, false).await.unwrap_err().code, Code::GroupNotFound);
        let missing = resets.reset("g", "none", Place::Earliest, false).await.unwrap_err();
        assert!(missing.code == Code::TopicNotFound && missing.message.contains("millrace topic list"), "{missing}");
    }
}
