//! Confluent REST v3: one file a family of resources; here is what they share: the frame of answers, the cluster in every path, errors.

mod acls;
mod clusters;
mod configs;
mod data;
mod groups;
mod partitions;
mod records;
mod splitter;
mod topics;

pub(super) use acls::{acls, create_acl, create_acls, delete_acls};
pub(super) use clusters::{broker, broker_replicas, brokers, cluster, clusters};
pub(super) use configs::{
    all_topic_configs, alter_broker_configs, alter_cluster_configs, alter_topic_configs, broker_config, broker_configs, brokers_configs,
    cluster_config, cluster_configs, delete_broker_config, delete_cluster_config, delete_topic_config, put_broker_config,
    put_cluster_config, put_topic_config, topic_config, topic_configs,
};
pub(super) use groups::{assignment, assignments, consumer, consumers, group, groups, lag_summary, lags, partition_lag};
pub(super) use partitions::{all_reassignments, offset, partition, partitions, reassignment, replica, replicas, topic_reassignments};
pub(super) use records::{records, records_batch};
pub(super) use topics::{create_topic, delete_topic, grow_topic, topic, topics};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use service_kit::kafka::ClusterView;

use super::{App, JSON, base_url, json_response, negotiate, object::Object, segment};
use crate::error::{BridgeError, Code, Result};

/// v3 answers errors as plain JSON, and some with numbers of its own.
pub(super) struct V3Error(BridgeError);

impl From<BridgeError> for V3Error {
    fn from(error: BridgeError) -> Self {
        Self(error)
    }
}

impl From<service_kit::kafka::KafkaError> for V3Error {
    fn from(error: service_kit::kafka::KafkaError) -> Self {
        Self(error.into())
    }
}

/// Number and status of an error in v3.
fn code(error: &BridgeError) -> (u32, StatusCode) {
    match error.code {
        // "This server does not host this topic-partition."
        Code::TopicNotFound | Code::PartitionNotFound => (40403, StatusCode::NOT_FOUND),
        // What Kafka refuses as such.
        Code::TopicExists | Code::Unprocessable => (40002, StatusCode::BAD_REQUEST),
        code => (code.number(), code.status()),
    }
}

impl IntoResponse for V3Error {
    fn into_response(self) -> Response {
        let (number, status) = code(&self.0);
        let body = json!({"error_code": number, "message": self.0.message});
        let mut response = self.0.into_response();
        *response.status_mut() = status;
        response.extensions_mut().remove::<BridgeError>();
        *response.body_mut() = axum::body::Body::from(body.to_string());
        // That of the body before.
        response.headers_mut().remove(header::CONTENT_LENGTH);
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
        if cluster.id() != name {
            return Err(BridgeError::new(
                Code::NoRoute,
                format!("cluster {name:?} is not known here; this bridge serves {:?}", cluster.id()),
            ));
        }
        Ok(cluster)
    }

    fn id(&self) -> &str {
        id(&self.view)
    }

    /// A link to another resource of the cluster.
    fn related(&self, path: &str) -> Value {
        json!({"related": format!("{}{path}", self.url)})
    }

    /// One resource with v3's frame: kind, its own address and name, the cluster. `name` is as `topic=t/partition=0`.
    fn resource(&self, kind: &str, path: &str, name: &str, fields: Value) -> Value {
        let slash = if name.is_empty() { "" } else { "/" };
        let name = format!("crn:///kafka={}{slash}{name}", self.id());
        let mut resource =
            json!({"kind": kind, "metadata": {"self": format!("{}{path}", self.url), "resource_name": name}, "cluster_id": self.id()});
        if let (Some(resource), Value::Object(fields)) = (resource.as_object_mut(), fields) {
            resource.extend(fields);
        }
        resource
    }

    fn list(&self, kind: &str, path: &str, data: Vec<Value>) -> Response {
        let body = json!({"kind": kind, "metadata": {"self": format!("{}{path}", self.url), "next": null}, "data": data});
        json_response(StatusCode::OK, JSON, &body)
    }
}

/// Kafka before 0.10.1 has no id.
fn id(cluster: &ClusterView) -> &str {
    cluster.id.as_deref().unwrap_or("unknown")
}

fn ok(body: &Value) -> Reply {
    Ok(json_response(StatusCode::OK, JSON, body))
}

/// Nothing to say: done.
fn done() -> Reply {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A request's body: JSON by its type, and of the expected form.
fn body<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T> {
    negotiate::json_body(headers)?;
    if body.is_empty() {
        return Err(BridgeError::new(Code::InvalidPayload, "Payload error. Request body is empty. Data is required."));
    }
    serde_json::from_slice(body)
        .map(|Object(request)| request)
        .map_err(|error| BridgeError::new(Code::BadRequest, format!("the body is not as expected: {error}; GET /openapi shows what is")))
}
