//! `…/consumer-groups`: groups, their members, what these read, and how far they are behind.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::HeaderMap,
};
use serde_json::{Value, json};
use service_kit::kafka::{GroupMemberView, GroupView, TopicPartition, TopicView};

use super::{App, Cluster, Reply, ok, segment};
use crate::{
    error::{BridgeError, Code, Result},
    http::partition_id,
    lag::{GroupLag, PartitionLag, coordinator, instances, offsets_topic},
};

fn group_path(group: &str) -> String {
    format!("/consumer-groups/{}", segment(group))
}

fn group_json(cluster: &Cluster, group: &GroupView, offsets: Option<&TopicView>) -> Value {
    let path = group_path(&group.id);
    let coordinator = offsets.and_then(|offsets| coordinator(offsets, &group.id));
    let fields = json!({
        "consumer_group_id": group.id,
        "is_simple": group.protocol_type.is_empty(),
        "partition_assignor": group.protocol,
        // v3 writes states in capitals: PREPARING_REBALANCE.
        "state": capitals(&group.state),
        "type": "CLASSIC",
        "is_mixed_consumer_group": false,
        "coordinator": coordinator.map(|id| cluster.related(&format!("/brokers/{id}"))),
        "consumers": cluster.related(&format!("{path}/consumers")),
        "lag_summary": cluster.related(&format!("{path}/lag-summary")),
    });
    cluster.resource("KafkaConsumerGroup", &path, &format!("consumer-group={}", group.id), fields)
}

/// `PreparingRebalance` → `PREPARING_REBALANCE`
fn capitals(state: &str) -> String {
    let mut out = String::new();
    for (at, letter) in state.char_indices() {
        if at > 0 && letter.is_uppercase() {
            out.push('_');
        }
        out.extend(letter.to_uppercase());
    }
    out
}

/// A group in a path, with its lag and the instance ids of its static members.
struct Group {
    cluster: Cluster,
    lag: GroupLag,
    instances: BTreeMap<String, String>,
    offsets: Option<TopicView>,
}

impl Group {
    async fn find(app: &App, headers: &HeaderMap, cluster: &str, group: &str) -> Result<Self> {
        let cluster = Cluster::named(app, headers, cluster).await?;
        let lag = app.lag.of(group).await?;
        let offsets = offsets_topic(&app.topics).await;
        let coordinator = offsets.as_ref().and_then(|offsets| coordinator(offsets, group));
        let instances = instances(&app.kafka, coordinator, &lag.group).await?;
        Ok(Self { cluster, lag, instances, offsets })
    }

    fn id(&self) -> &str {
        &self.lag.group.id
    }

    fn path(&self) -> String {
        group_path(self.id())
    }

    fn member(&self, id: &str) -> Result<&GroupMemberView> {
        let found = self.lag.group.members.iter().find(|member| member.id == id);
        found.ok_or_else(|| {
            BridgeError::new(Code::NoRoute, format!("group {:?} has no member {id:?}; GET …/consumers lists those it has", self.id()))
        })
    }

    fn consumer_json(&self, member: &GroupMemberView) -> Value {
        let path = format!("{}/consumers/{}", self.path(), segment(&member.id));
        let fields = json!({
            "consumer_group_id": self.id(),
            "consumer_id": member.id,
            "instance_id": self.instances.get(&member.id),
            "client_id": member.client_id,
            "assignments": self.cluster.related(&format!("{path}/assignments")),
        });
        self.cluster.resource("KafkaConsumer", &path, &format!("consumer-group={}/consumer={}", self.id(), member.id), fields)
    }

    fn assignment_json(&self, member: &GroupMemberView, partition: &TopicPartition) -> Value {
        let tail = format!("{}/partitions/{}", partition.topic, partition.partition);
        let fields = json!({
            "consumer_group_id": self.id(),
            "consumer_id": member.id,
            "topic_name": *partition.topic,
            "partition_id": partition.partition,
            "partition": self.cluster.related(&format!("/topics/{tail}")),
            "lag": self.cluster.related(&format!("{}/lags/{tail}", self.path())),
        });
        let path = format!("{}/consumers/{}/assignments/{tail}", self.path(), segment(&member.id));
        let name =
            format!("consumer-group={}/consumer={}/assignment={}/partition={}", self.id(), member.id, partition.topic, partition.partition);
        self.cluster.resource("KafkaConsumerAssignment", &path, &name, fields)
    }

    fn lag_json(&self, row: &PartitionLag) -> Value {
        let owner = row.member.as_ref();
        let of = &row.partition;
        let fields = json!({
            "consumer_group_id": self.id(),
            "topic_name": *of.topic,
            "partition_id": of.partition,
            "current_offset": row.committed,
            "log_end_offset": row.end,
            "lag": row.lag(),
            "status": self.lag.status_of(&row.partition),
            "lag_seconds": row.pace.lag_seconds,
            "trend_records_per_second": row.pace.trend,
            "catch_up_seconds": row.pace.catch_up_seconds,
            // Nobody is the empty name in v3.
            "consumer_id": owner.map_or("", |owner| &owner.id),
            "instance_id": owner.and_then(|owner| self.instances.get(&owner.id)),
            "client_id": owner.map_or("", |owner| &owner.client_id),
        });
        let path = format!("{}/lags/{}/partitions/{}", self.path(), of.topic, of.partition);
        let name = format!("consumer-group={}/lag={}/partition={}", self.id(), of.topic, of.partition);
        self.cluster.resource("KafkaConsumerLag", &path, &name, fields)
    }
}

pub(in crate::http) async fn groups(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let offsets = offsets_topic(&app.topics).await;
    let data = app.lag.groups().await?.iter().map(|group| group_json(&cluster, group, offsets.as_ref())).collect();
    Ok(cluster.list("KafkaConsumerGroupList", "/consumer-groups", data))
}

type OfGroup = Path<(String, String)>;

pub(in crate::http) async fn group(State(app): State<App>, Path((name, group)): OfGroup, headers: HeaderMap) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    ok(&group_json(&group.cluster, &group.lag.group, group.offsets.as_ref()))
}

pub(in crate::http) async fn consumers(State(app): State<App>, Path((name, group)): OfGroup, headers: HeaderMap) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let data = group.lag.group.members.iter().map(|member| group.consumer_json(member)).collect();
    Ok(group.cluster.list("KafkaConsumerList", &format!("{}/consumers", group.path()), data))
}

pub(in crate::http) async fn consumer(
    State(app): State<App>,
    Path((name, group, consumer)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    ok(&group.consumer_json(group.member(&consumer)?))
}

pub(in crate::http) async fn assignments(
    State(app): State<App>,
    Path((name, group, consumer)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let member = group.member(&consumer)?;
    let data = member.assignment.iter().map(|partition| group.assignment_json(member, partition)).collect();
    let path = format!("{}/consumers/{}/assignments", group.path(), segment(&member.id));
    Ok(group.cluster.list("KafkaConsumerAssignmentList", &path, data))
}

pub(in crate::http) async fn assignment(
    State(app): State<App>,
    Path((name, group, consumer, topic, partition)): Path<(String, String, String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let member = group.member(&consumer)?;
    let of = TopicPartition::new(topic.as_str(), partition_id(&topic, &partition)?);
    if !member.assignment.contains(&of) {
        return Err(BridgeError::new(Code::NoRoute, format!("{of} is not assigned to member {consumer:?}")).into());
    }
    ok(&group.assignment_json(member, &of))
}

pub(in crate::http) async fn lag_summary(State(app): State<App>, Path((name, group)): OfGroup, headers: HeaderMap) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let worst = group.lag.partitions.iter().filter(|row| row.lag().is_some()).max_by_key(|row| row.lag());
    let owner = worst.and_then(|row| row.member.as_ref());
    let cluster = &group.cluster;
    let fields = json!({
        "consumer_group_id": group.id(),
        "max_lag_consumer_id": owner.map_or("", |owner| &owner.id),
        "max_lag_instance_id": owner.and_then(|owner| group.instances.get(&owner.id)),
        "max_lag_client_id": owner.map_or("", |owner| &owner.client_id),
        "max_lag_topic_name": worst.map(|row| &*row.partition.topic),
        "max_lag_partition_id": worst.map(|row| row.partition.partition),
        "max_lag": worst.and_then(PartitionLag::lag),
        "total_lag": group.lag.total(),
        "status": group.lag.state.as_ref().map(|state| state.status),
        "lag_seconds": group.lag.pace().lag_seconds,
        "trend_records_per_second": group.lag.pace().trend,
        "catch_up_seconds": group.lag.pace().catch_up_seconds,
        "max_lag_consumer": owner.map(|owner| cluster.related(&format!("{}/consumers/{}", group.path(), segment(&owner.id)))),
        "max_lag_partition":
            worst.map(|row| cluster.related(&format!("/topics/{}/partitions/{}", row.partition.topic, row.partition.partition))),
    });
    let name = format!("consumer-groups={}/lag-summary", group.id());
    ok(&cluster.resource("KafkaConsumerGroupLagSummary", &format!("{}/lag-summary", group.path()), &name, fields))
}

pub(in crate::http) async fn lags(State(app): State<App>, Path((name, group)): OfGroup, headers: HeaderMap) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let data = group.lag.partitions.iter().map(|row| group.lag_json(row)).collect();
    Ok(group.cluster.list("KafkaConsumerLagList", &format!("{}/lags", group.path()), data))
}

pub(in crate::http) async fn partition_lag(
    State(app): State<App>,
    Path((name, group, topic, partition)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let group = Group::find(&app, &headers, &name, &group).await?;
    let partition = partition_id(&topic, &partition)?;
    let row = group.lag.partitions.iter().find(|row| *row.partition.topic == *topic && row.partition.partition == partition);
    let row = row.ok_or_else(|| {
        BridgeError::new(
            Code::PartitionNotFound,
            format!("group {:?} has no offset for {topic}-{partition}; GET …/lags lists those it has", group.id()),
        )
    })?;
    ok(&group.lag_json(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_in_capitals() {
        assert_eq!((capitals("PreparingRebalance"), capitals("Empty")), ("PREPARING_REBALANCE".to_owned(), "EMPTY".to_owned()));
    }
}
