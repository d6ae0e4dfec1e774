//! Who looks after a group, and what Kafka's list of groups does not say of its members.

use std::collections::BTreeMap;

use service_kit::kafka::{GroupView, TopicView};

use crate::{connect::Connection, error::Result, topics::Topics};

/// Where groups are kept; a partition's leader coordinates its groups.
const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// Without groups there is no such topic.
pub(crate) async fn offsets_topic(topics: &Topics) -> Option<TopicView> {
    topics.get(OFFSETS_TOPIC).await.ok()
}

/// The broker that looks after a group; `None` while there is none.
pub(crate) fn coordinator(offsets: &TopicView, group: &str) -> Option<i32> {
    // As Java does it: the text's hash without its sign, by the number of partitions.
    let hash = group.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let partitions = i32::try_from(offsets.partitions.len()).ok().filter(|count| *count > 0)?;
    let id = (hash & i32::MAX) % partitions;
    offsets.partitions.iter().find(|partition| partition.id == id)?.leader
}

/// `group.instance.id` by member id, of static members; empty where the coordinator does not tell.
pub(crate) async fn instances(kafka: &Connection, coordinator: Option<i32>, group: &GroupView) -> Result<BTreeMap<String, String>> {
    let Some(coordinator) = coordinator.filter(|_| !group.members.is_empty()) else { return Ok(BTreeMap::new()) };
    let asked = kafka.of_caller()?.manage().static_members(coordinator, &group.id).await;
    Ok(asked.unwrap_or_else(|error| {
        tracing::debug!(%error, group = group.id, "the group's static members are not known");
        BTreeMap::new()
    }))
}

#[cfg(test)]
mod tests {
    use service_kit::kafka::PartitionView;

    use super::*;

    #[test]
    fn a_coordinator_is_the_leader_of_the_groups_partition() {
        let partition = |id| PartitionView { id, leader: Some(100 + id), replicas: vec![], isr: vec![] };
        let offsets = TopicView { name: OFFSETS_TOPIC.into(), partitions: (0..50).map(partition).collect() };
        // In Java "ö".hashCode() is 246, and "polygenelubricants" has Integer.MIN_VALUE.
        assert_eq!(coordinator(&offsets, "ö"), Some(100 + 246 % 50));
        assert_eq!(coordinator(&offsets, "polygenelubricants"), Some(100));
        assert_eq!(coordinator(&TopicView { name: String::new(), partitions: vec![] }, "g"), None);
    }
}
