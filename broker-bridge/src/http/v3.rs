//! The basics of Confluent REST v3: clusters, brokers, topics, consumer groups and their lag.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::kafka::{ClusterView, GroupView, TopicView};

use super::{App, JSON, base_url, json_response, parse, partition_id, segment};
use crate::{
    error::{BridgeError, Code, Result},
    lag::{GroupLag, PartitionLag},
    topics::{MIN_ISR, NewTopic},
};

/// v3 answers errors as plain JSON.
pub(super) struct V3Error(BridgeError);

impl From<BridgeError> for V3Error {
    fn from(error: BridgeError) -> Self {
        Self(error)
    }
}

impl IntoResponse for V3Error {
    fn into_response(self) -> Response {
        let mut response = self.0.into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
        response
    }
}

type Reply = std::result::Result<Response, V3Error>;

/// The cluster, and the URL of it; every v3 path below names the cluster.
struct Cluster {
    view: ClusterView,
    url: String,
}

impl Cluster {
    async fn find(app: &App, headers: &HeaderMap) -> Result<Self> {
        let view = app.topics.cluster().await?;
        let url = format!("{}/v3/clusters/{}", base_url(headers), segment(id(&view)));
        Ok(Self { view, url })
    }

    async fn named(app: &App, headers: &HeaderMap, name: &str) -> Result<Self> {
        let cluster = Self::find(app, headers).await?;
        if id(&cluster.view) != name {
            return Err(BridgeError::new(
                Code::NoRoute,
                format!("cluster {name:?} is not known here; this bridge serves {:?}", id(&cluster.view)),
            ));
        }
        Ok(cluster)
    }

    /// One resource with v3's frame: kind, its own address, the cluster.
    fn resource(&self, kind: &str, path: &str, fields: Value) -> Value {
        let mut resource = json!({"kind": kind, "metadata": {"self": format!("{}{path}", self.url)}, "cluster_id": id(&self.view)});
        if let (Some(resource), Value::Object(fields)) = (resource.as_object_mut(), fields) {
            resource.extend(fields);
        }
        resource
    }

    fn list(&self, kind: &str, path: &str, data: Vec<Value>) -> Response {
        let body = json!({"kind": kind, "metadata": {"self": format!("{}{path}", self.url), "next": null}, "data": data});
        json_response(StatusCode::OK, JSON, &body)
    }

    fn cluster_json(&self) -> Value {
        let related = |path: &str| json!({"related": format!("{}/{path}", self.url)});
        let controller = self.view.controller.map_or(Value::Null, |controller| related(&format!("brokers/{controller}")));
        let fields = json!({"controller": controller, "brokers": related("brokers"), "topics": related("topics"), "consumer_groups": related("consumer-groups")});
        self.resource("KafkaCluster", "", fields)
    }

    fn topic_json(&self, topic: &TopicView) -> Value {
        let replication = topic.partitions.first().map_or(0, |partition| partition.replicas.len());
        let path = format!("/topics/{}", topic.name);
        let fields = json!({
            "topic_name": topic.name,
            "is_internal": topic.name.starts_with("__"),
            "replication_factor": replication,
            "partitions_count": topic.partitions.len(),
        });
        self.resource("KafkaTopic", &path, fields)
    }

    fn group_json(&self, group: &GroupView) -> Value {
        let path = format!("/consumer-groups/{}", segment(&group.id));
        let fields = json!({
            "consumer_group_id": group.id,
            "is_simple": group.protocol_type.is_empty(),
            "partition_assignor": group.protocol,
            // v3 writes states in capitals: PREPARING_REBALANCE.
            "state": capitals(&group.state),
            "lag_summary": {"related": format!("{}{path}/lag-summary", self.url)},
        });
        self.resource("KafkaConsumerGroup", &path, fields)
    }

    fn lag_json(&self, lag: &GroupLag, row: &PartitionLag) -> Value {
        let group = &lag.group.id;
        let path = format!("/consumer-groups/{}/lags/{}/partitions/{}", segment(group), row.partition.topic, row.partition.partition);
        let mut fields = lag_fields(row);
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("consumer_group_id".to_owned(), group.as_str().into());
            fields.insert("topic_name".to_owned(), (*row.partition.topic).into());
            fields.insert("partition_id".to_owned(), row.partition.partition.into());
            fields.insert("status".to_owned(), json!(lag.status_of(&row.partition)));
        }
        self.resource("KafkaConsumerLag", &path, fields)
    }
}

fn lag_fields(row: &PartitionLag) -> Value {
    let owner = row.member.as_ref();
    json!({
        "current_offset": row.committed,
        "log_end_offset": row.end,
        "lag": row.lag(),
        "consumer_id": owner.map(|owner| &owner.id),
        "client_id": owner.map(|owner| &owner.client_id),
        "instance_id": null,
        "lag_seconds": row.pace.lag_seconds,
        "trend_records_per_second": row.pace.trend,
        "catch_up_seconds": row.pace.catch_up_seconds,
    })
}

/// Kafka before 0.10.1 has no id.
fn id(cluster: &ClusterView) -> &str {
    cluster.id.as_deref().unwrap_or("unknown")
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

pub(super) async fn clusters(State(app): State<App>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::find(&app, &headers).await?;
    let body = json!({
        "kind": "KafkaClusterList",
        "metadata": {"self": format!("{}/v3/clusters", base_url(&headers)), "next": null},
        "data": [cluster.cluster_json()],
    });
    Ok(json_response(StatusCode::OK, JSON, &body))
}

pub(super) async fn cluster(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Ok(json_response(StatusCode::OK, JSON, &cluster.cluster_json()))
}

pub(super) async fn brokers(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Ok(cluster.list("KafkaBrokerList", "/brokers", broker_list(&app, &cluster).await?.into_values().collect()))
}

pub(super) async fn broker(State(app): State<App>, Path((name, id)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let mut brokers = broker_list(&app, &cluster).await?;
    let known = brokers.keys().map(i32::to_string).collect::<Vec<_>>().join(", ");
    let broker = id.parse::<i32>().ok().and_then(|id| brokers.remove(&id));
    let broker = broker.ok_or_else(|| BridgeError::new(Code::NoRoute, format!("the cluster has no broker {id:?}; it has {known}")))?;
    Ok(json_response(StatusCode::OK, JSON, &broker))
}

async fn broker_list(app: &App, cluster: &Cluster) -> Result<BTreeMap<i32, Value>> {
    let brokers = app.topics.brokers().await?;
    let data = cluster.view.brokers.iter().map(|broker| {
        let load = brokers.load.get(&broker.id).copied().unwrap_or_default();
        let fields = json!({
            "broker_id": broker.id, "host": broker.host, "port": broker.port, "rack": null,
            "partitions_count": load.partitions, "leaders_count": load.leaders, "log_bytes": load.log_bytes,
        });
        (broker.id, cluster.resource("KafkaBroker", &format!("/brokers/{}", broker.id), fields))
    });
    Ok(data.collect())
}

pub(super) async fn topics(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let data = app.topics.list().await?.iter().map(|topic| cluster.topic_json(topic)).collect();
    Ok(cluster.list("KafkaTopicList", "/topics", data))
}

pub(super) async fn topic(State(app): State<App>, Path((name, topic)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Ok(json_response(StatusCode::OK, JSON, &cluster.topic_json(&app.topics.get(&topic).await?)))
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
    #[serde(default)]
    configs: Vec<Config>,
    #[serde(default)]
    validate_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    name: String,
    /// Numbers and booleans are taken as text.
    value: Value,
}

pub(super) async fn create_topic(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap, body: Bytes) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    super::negotiate::json_body(&headers)?;
    let wanted: Create = parse(&body)?;
    let text = |value: Value| if let Value::String(text) = value { text } else { value.to_string() };
    let config: BTreeMap<String, String> = wanted.configs.into_iter().map(|config| (config.name, text(config.value))).collect();
    let new = NewTopic {
        name: wanted.topic_name.clone(),
        partitions: wanted.partitions_count.unwrap_or(0),
        replication: wanted.replication_factor.unwrap_or(0),
        config,
        dry_run: wanted.validate_only,
        ..NewTopic::default()
    };
    let created = app.topics.create(new).await?;
    let fields = json!({
        "topic_name": wanted.topic_name, "is_internal": false,
        "replication_factor": created.replication, "partitions_count": created.partitions,
        MIN_ISR: created.config.get(MIN_ISR),
    });
    let status = if wanted.validate_only { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json_response(status, JSON, &cluster.resource("KafkaTopic", &format!("/topics/{}", wanted.topic_name), fields)))
}

pub(super) async fn delete_topic(State(app): State<App>, Path((name, topic)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    app.topics.delete(&topic).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn groups(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let data = app.lag.groups().await?.iter().map(|group| cluster.group_json(group)).collect();
    Ok(cluster.list("KafkaConsumerGroupList", "/consumer-groups", data))
}

pub(super) async fn group(State(app): State<App>, Path((name, group)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let (cluster, lag) = group_lag(&app, &headers, &name, &group).await?;
    Ok(json_response(StatusCode::OK, JSON, &cluster.group_json(&lag.group)))
}

pub(super) async fn lag_summary(State(app): State<App>, Path((name, group)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let (cluster, lag) = group_lag(&app, &headers, &name, &group).await?;
    let worst = lag.partitions.iter().filter(|row| row.lag().is_some()).max_by_key(|row| row.lag());
    let owner = worst.and_then(|row| row.member.as_ref());
    let fields = json!({
        "consumer_group_id": group,
        "max_lag_consumer_id": owner.map(|owner| &owner.id),
        "max_lag_client_id": owner.map(|owner| &owner.client_id),
        "max_lag_instance_id": null,
        "max_lag_topic_name": worst.map(|row| &*row.partition.topic),
        "max_lag_partition_id": worst.map(|row| row.partition.partition),
        "max_lag": worst.and_then(PartitionLag::lag),
        "total_lag": lag.total(),
        "status": lag.state.as_ref().map(|state| state.status),
        "lag_seconds": lag.pace().lag_seconds,
        "trend_records_per_second": lag.pace().trend,
        "catch_up_seconds": lag.pace().catch_up_seconds,
    });
    let path = format!("/consumer-groups/{}/lag-summary", segment(&group));
    Ok(json_response(StatusCode::OK, JSON, &cluster.resource("KafkaConsumerGroupLagSummary", &path, fields)))
}

pub(super) async fn lags(State(app): State<App>, Path((name, group)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let (cluster, lag) = group_lag(&app, &headers, &name, &group).await?;
    let data = lag.partitions.iter().map(|row| cluster.lag_json(&lag, row)).collect();
    Ok(cluster.list("KafkaConsumerLagList", &format!("/consumer-groups/{}/lags", segment(&group)), data))
}

pub(super) async fn partition_lag(
    State(app): State<App>,
    Path((name, group, topic, partition)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Reply {
    let (cluster, lag) = group_lag(&app, &headers, &name, &group).await?;
    let partition = partition_id(&topic, &partition)?;
    let row = lag.partitions.iter().find(|row| *row.partition.topic == *topic && row.partition.partition == partition);
    let row = row.ok_or_else(|| {
        BridgeError::new(
            Code::PartitionNotFound,
            format!("group {group:?} has no offset for {topic}-{partition}; GET …/lags lists those it has"),
        )
    })?;
    Ok(json_response(StatusCode::OK, JSON, &cluster.lag_json(&lag, row)))
}

async fn group_lag(app: &App, headers: &HeaderMap, cluster: &str, group: &str) -> Result<(Cluster, GroupLag)> {
    let cluster = Cluster::named(app, headers, cluster).await?;
    Ok((cluster, app.lag.of(group).await?))
}
