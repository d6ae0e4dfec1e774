//! `/topics`, `/brokers` and Strimzi's `/admin/topics`.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::kafka::{PartitionView, TopicPartition};

use super::{App, V2, json_response, negotiate, parse, partition_id};
use crate::{
    auth::{Kind::Topic, Verb::DescribeConfigs, sees},
    error::{BridgeError, Result},
    topics::NewTopic,
};

pub(super) async fn list(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let names: Vec<String> = app.topics.list().await?.into_iter().map(|topic| topic.name).collect();
    Ok(json_response(StatusCode::OK, V2, &names))
}

pub(super) async fn describe(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let topic = app.topics.get(&name).await?;
    // Whoever may not read them is told of none.
    let configs = if sees(DescribeConfigs, Topic, &name) { app.topics.config(&name).await? } else { Vec::new() };
    let configs: BTreeMap<String, Value> =
        configs.into_iter().map(|entry| (entry.name, entry.value.map_or(Value::Null, Value::from))).collect();
    let partitions: Vec<Value> = topic.partitions.iter().map(partition_json).collect();
    Ok(json_response(StatusCode::OK, V2, &json!({"name": name, "configs": configs, "partitions": partitions})))
}

pub(super) async fn partitions(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let partitions: Vec<Value> = app.topics.get(&name).await?.partitions.iter().map(partition_json).collect();
    Ok(json_response(StatusCode::OK, V2, &partitions))
}

pub(super) async fn partition(
    State(app): State<App>,
    Path((name, partition)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let partition = partition_id(&name, &partition)?;
    let topic = app.topics.get(&name).await?;
    let found = topic.partitions.iter().find(|found| found.id == partition);
    let found = found.ok_or_else(|| BridgeError::unknown_partition(&name, partition, topic.partitions.len()))?;
    Ok(json_response(StatusCode::OK, V2, &partition_json(found)))
}

pub(super) async fn offsets(
    State(app): State<App>,
    Path((name, partition)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let partition = partition_id(&name, &partition)?;
    app.topics.check(&name, Some(partition)).await?;
    let partition = TopicPartition::new(name, partition);
    let bounds = app.topics.bounds(std::slice::from_ref(&partition)).await?;
    let bounds = bounds.get(&partition).ok_or_else(|| BridgeError::unknown_topic(&partition.topic))?;
    Ok(json_response(StatusCode::OK, V2, &json!({"beginning_offset": bounds.earliest, "end_offset": bounds.latest})))
}

fn partition_json(partition: &PartitionView) -> Value {
    let replica =
        |broker: &i32| json!({"broker": broker, "leader": partition.leader == Some(*broker), "in_sync": partition.isr.contains(broker)});
    let replicas: Vec<Value> = partition.replicas.iter().map(replica).collect();
    json!({"partition": partition.id, "leader": partition.leader.unwrap_or(-1), "replicas": replicas})
}

/// Strimzi's request; what is left out follows the advice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    topic_name: String,
    #[serde(default)]
    partitions_count: u32,
    #[serde(default)]
    replication_factor: u32,
}

pub(super) async fn create(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    negotiate::json_body(&headers)?;
    let wanted: Create = parse(&body)?;
    let new = NewTopic {
        name: wanted.topic_name,
        partitions: wanted.partitions_count,
        replication: wanted.replication_factor,
        ..NewTopic::default()
    };
    let name = new.name.clone();
    let created = app.topics.create(new).await?;
    let body = json!({"topic_name": name, "partitions_count": created.partitions, "replication_factor": created.replication, "configs": created.config, "advice": created.advice.reasons});
    Ok(json_response(StatusCode::CREATED, V2, &body))
}

pub(super) async fn brokers(State(app): State<App>, headers: HeaderMap) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let ids: Vec<i32> = app.topics.cluster().await?.brokers.iter().map(|broker| broker.id).collect();
    Ok(json_response(StatusCode::OK, V2, &json!({"brokers": ids})))
}
