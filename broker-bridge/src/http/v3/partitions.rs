//! `…/topics/{topic}/partitions`: offsets, replicas, reassignments under way.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
};
use serde_json::{Value, json};
use service_kit::kafka::{PartitionView, Reassignment, TopicPartition, TopicView};

use super::{App, Cluster, Reply, ok};
use crate::{
    auth::{Kind::Topic, Verb::Describe, sees},
    error::{BridgeError, Code, Result},
    http::partition_id,
};

type OfPartition = Path<(String, String, String)>;

fn path(topic: &str, partition: i32) -> String {
    format!("/topics/{topic}/partitions/{partition}")
}

fn partition_json(cluster: &Cluster, topic: &str, partition: &PartitionView) -> Value {
    let path = path(topic, partition.id);
    let fields = json!({
        "topic_name": topic,
        "partition_id": partition.id,
        "leader": partition.leader.map(|leader| cluster.related(&format!("{path}/replicas/{leader}"))),
        "replicas": cluster.related(&format!("{path}/replicas")),
        "reassignment": cluster.related(&format!("{path}/reassignment")),
    });
    cluster.resource("KafkaPartition", &path, &format!("topic={topic}/partition={}", partition.id), fields)
}

pub(super) fn replica_json(cluster: &Cluster, topic: &str, partition: &PartitionView, broker: i32) -> Value {
    let fields = json!({
        "topic_name": topic,
        "partition_id": partition.id,
        "broker_id": broker,
        "is_leader": partition.leader == Some(broker),
        "is_in_sync": partition.isr.contains(&broker),
        "broker": cluster.related(&format!("/brokers/{broker}")),
    });
    let place = format!("{}/replicas/{broker}", path(topic, partition.id));
    cluster.resource("KafkaReplica", &place, &format!("topic={topic}/partition={}/replica={broker}", partition.id), fields)
}

fn reassignment_json(cluster: &Cluster, moved: &Reassignment) -> Value {
    let path = path(&moved.topic, moved.partition);
    let fields = json!({
        "topic_name": moved.topic,
        "partition_id": moved.partition,
        "adding_replicas": moved.adding,
        "removing_replicas": moved.removing,
        "replicas": cluster.related(&format!("{path}/replicas")),
    });
    let name = format!("topic={}/partition={}/reassignment", moved.topic, moved.partition);
    cluster.resource("KafkaReassignment", &format!("{path}/reassignment"), &name, fields)
}

/// The topic and the partition of the path.
async fn find(app: &App, topic: &str, partition: &str) -> Result<(TopicView, usize)> {
    let id = partition_id(topic, partition)?;
    let view = app.topics.get(topic).await?;
    let at = view.partitions.iter().position(|found| found.id == id);
    let at = at.ok_or_else(|| BridgeError::unknown_partition(topic, id, view.partitions.len()))?;
    Ok((view, at))
}

pub(in crate::http) async fn partitions(State(app): State<App>, Path((name, topic)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let view = app.topics.get(&topic).await?;
    let data = view.partitions.iter().map(|partition| partition_json(&cluster, &topic, partition)).collect();
    Ok(cluster.list("KafkaPartitionList", &format!("/topics/{topic}/partitions"), data))
}

pub(in crate::http) async fn partition(State(app): State<App>, Path((name, topic, partition)): OfPartition, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let (view, at) = find(&app, &topic, &partition).await?;
    ok(&partition_json(&cluster, &topic, &view.partitions[at]))
}

/// Where the partition begins, and the offset that the next record gets.
pub(in crate::http) async fn offset(State(app): State<App>, Path((name, topic, partition)): OfPartition, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let id = partition_id(&topic, &partition)?;
    app.topics.check(&topic, Some(id)).await?;
    let of = TopicPartition::new(topic.as_str(), id);
    let bounds = app.topics.bounds(std::slice::from_ref(&of)).await?;
    let bounds = bounds.get(&of).ok_or_else(|| BridgeError::unknown_topic(&topic))?;
    let fields = json!({"topic_name": topic, "partition_id": id, "earliest_offset": bounds.earliest, "latest_offset": bounds.latest});
    let place = format!("{}/offset", path(&topic, id));
    ok(&cluster.resource("KafkaPartitionWithOffsets", &place, &format!("topic={topic}/partition={id}/offset"), fields))
}

pub(in crate::http) async fn replicas(State(app): State<App>, Path((name, topic, partition)): OfPartition, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let (view, at) = find(&app, &topic, &partition).await?;
    let partition = &view.partitions[at];
    let data = partition.replicas.iter().map(|broker| replica_json(&cluster, &topic, partition, *broker)).collect();
    Ok(cluster.list("KafkaReplicaList", &format!("{}/replicas", path(&topic, partition.id)), data))
}

pub(in crate::http) async fn replica(
    State(app): State<App>,
    Path((name, topic, partition, broker)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let (view, at) = find(&app, &topic, &partition).await?;
    let partition = &view.partitions[at];
    let broker = broker.parse().ok().filter(|broker| partition.replicas.contains(broker)).ok_or_else(|| {
        BridgeError::new(
            Code::NoRoute,
            format!("{topic}-{} has no replica on broker {broker:?}; it has {:?}", partition.id, partition.replicas),
        )
    })?;
    ok(&replica_json(&cluster, &topic, partition, broker))
}

async fn reassignments(app: &App, cluster: &Cluster, topic: Option<&str>, place: &str) -> Reply {
    let under_way = app.kafka.of_caller()?.manage().reassignments().await?;
    let of_topic = under_way.iter().filter(|moved| topic.is_none_or(|topic| topic == moved.topic));
    let of_topic = of_topic.filter(|moved| sees(Describe, Topic, &moved.topic));
    Ok(cluster.list("KafkaReassignmentList", place, of_topic.map(|moved| reassignment_json(cluster, moved)).collect()))
}

pub(in crate::http) async fn all_reassignments(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    reassignments(&app, &cluster, None, "/topics/-/partitions/-/reassignment").await
}

pub(in crate::http) async fn topic_reassignments(
    State(app): State<App>,
    Path((name, topic)): Path<(String, String)>,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    app.topics.check(&topic, None).await?;
    reassignments(&app, &cluster, Some(&topic), &format!("/topics/{topic}/partitions/-/reassignment")).await
}

/// 404 while the partition's replicas stay where they are.
pub(in crate::http) async fn reassignment(
    State(app): State<App>,
    Path((name, topic, partition)): OfPartition,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let id = partition_id(&topic, &partition)?;
    app.topics.check(&topic, Some(id)).await?;
    let under_way = app.kafka.of_caller()?.manage().reassignments().await?;
    let moved = under_way.iter().find(|moved| moved.topic == topic && moved.partition == id);
    let moved = moved.ok_or_else(|| BridgeError::new(Code::NoRoute, format!("no reassignment of {topic}-{id} is under way")))?;
    ok(&reassignment_json(&cluster, moved))
}
