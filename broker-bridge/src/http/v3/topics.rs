//! `…/topics`: listed, created, grown, deleted.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::kafka::TopicView;

use super::{App, Cluster, JSON, Reply, body, configs::value_of, done, json_response, ok};
use crate::{
    error::{BridgeError, Code},
    topics::NewTopic,
};

impl Cluster {
    fn topic_json(&self, name: &str, partitions: usize, replication: usize) -> Value {
        let path = format!("/topics/{name}");
        let fields = json!({
            "topic_name": name,
            "is_internal": INTERNAL.contains(&name),
            "replication_factor": replication,
            "partitions_count": partitions,
            "partitions": self.related(&format!("{path}/partitions")),
            "configs": self.related(&format!("{path}/configs")),
            "partition_reassignments": self.related(&format!("{path}/partitions/-/reassignment")),
            "authorized_operations": [],
        });
        self.resource("KafkaTopic", &path, &format!("topic={name}"), fields)
    }

    fn view_json(&self, topic: &TopicView) -> Value {
        let replication = topic.partitions.first().map_or(0, |partition| partition.replicas.len());
        self.topic_json(&topic.name, topic.partitions.len(), replication)
    }
}

/// Those that brokers count as their own.
const INTERNAL: &[&str] = &["__consumer_offsets", "__transaction_state", "__share_group_state"];

pub(in crate::http) async fn topics(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let data = app.topics.list().await?.iter().map(|topic| cluster.view_json(topic)).collect();
    Ok(cluster.list("KafkaTopicList", "/topics", data))
}

pub(in crate::http) async fn topic(State(app): State<App>, Path((name, topic)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    ok(&cluster.view_json(&app.topics.get(&topic).await?))
}

/// v3's request; what is left out follows the advice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    topic_name: String,
    #[serde(default)]
    partitions_count: Option<u32>,
    #[serde(default)]
    replication_factor: Option<u32>,
    /// Brokers by partition; then count and factor follow from it.
    #[serde(default)]
    replicas_assignments: BTreeMap<i32, Vec<i32>>,
    #[serde(default)]
    configs: Vec<Config>,
    #[serde(default)]
    validate_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    name: String,
    /// Null is the broker's default.
    #[serde(default)]
    value: Option<Value>,
}

pub(in crate::http) async fn create_topic(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, bytes: Bytes) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let wanted: Create = body(&headers, &bytes)?;
    let mut config = BTreeMap::new();
    for Config { name, value } in wanted.configs {
        if let Some(value) = value_of(&name, value)? {
            config.insert(name, value);
        }
    }
    let new = NewTopic {
        name: wanted.topic_name.clone(),
        partitions: wanted.partitions_count.unwrap_or(0),
        replication: wanted.replication_factor.unwrap_or(0),
        config,
        dry_run: wanted.validate_only,
        ..NewTopic::default()
    };
    let (partitions, replication) = if wanted.replicas_assignments.is_empty() {
        let created = app.topics.create(new).await?;
        (created.partitions as usize, created.replication as usize)
    } else {
        let assignments = wanted.replicas_assignments;
        app.topics.create_assigned(new, &assignments).await?;
        (assignments.len(), assignments.values().next().map_or(0, Vec::len))
    };
    let status = if wanted.validate_only { StatusCode::OK } else { StatusCode::CREATED };
    let topic = cluster.topic_json(&wanted.topic_name, partitions, replication);
    let mut response = json_response(status, JSON, &topic);
    if let Some(Ok(place)) = topic["metadata"]["self"].as_str().map(HeaderValue::from_str) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grow {
    partitions_count: u32,
}

/// More partitions; records of a key written before stay where they are.
pub(in crate::http) async fn grow_topic(
    State(app): State<App>,
    Path((name, topic)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let Grow { partitions_count } = body(&headers, &bytes)?;
    let grown = app.topics.grow(&topic, partitions_count).await?;
    ok(&cluster.view_json(&grown))
}

pub(in crate::http) async fn delete_topic(
    State(app): State<App>,
    Path((name, topic)): Path<(String, String)>,
    headers: HeaderMap,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    app.topics.delete(&topic).await.map_err(|error| match error.code {
        Code::TopicNotFound => BridgeError::new(error.code, format!("topic {topic:?} does not exist; GET …/topics lists the topics")),
        _ => error,
    })?;
    done()
}
