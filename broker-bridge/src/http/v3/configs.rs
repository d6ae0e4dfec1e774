//! Configurations of topics, of one broker, and of all brokers: read with where each value comes from, changed one by one or as a batch.

use axum::{
    extract::{Path, State},
    http::HeaderMap,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::kafka::{ConfigChange, ConfigDetail, ConfigOf};

use super::{App, Cluster, Reply, body, done, ok};
use crate::{
    auth::{Kind::Topic, Verb::DescribeConfigs, sees},
    error::{BridgeError, Code, Result},
    manage,
};

type Named = Path<(String, String)>;
type Setting = Path<(String, String, String)>;

/// What the fields of an answer differ in.
struct Family {
    of: Of,
    kind: &'static str,
    /// Without the setting's name.
    path: String,
    /// As `topic=t/config`.
    name: String,
}

/// Owned, for it comes from the path.
enum Of {
    Topic(String),
    Broker(i32),
    AllBrokers,
}

impl Family {
    fn topic(topic: String) -> Self {
        Self {
            kind: "KafkaTopicConfig",
            path: format!("/topics/{topic}/configs"),
            name: format!("topic={topic}/config"),
            of: Of::Topic(topic),
        }
    }

    fn broker(id: i32) -> Self {
        Self { kind: "KafkaBrokerConfig", path: format!("/brokers/{id}/configs"), name: format!("broker={id}/config"), of: Of::Broker(id) }
    }

    fn cluster() -> Self {
        Self { kind: "KafkaClusterConfig", path: "/broker-configs".to_owned(), name: "broker-config".to_owned(), of: Of::AllBrokers }
    }

    fn of(&self) -> ConfigOf<'_> {
        match &self.of {
            Of::Topic(name) => ConfigOf::Topic(name),
            Of::Broker(id) => ConfigOf::Broker(*id),
            Of::AllBrokers => ConfigOf::AllBrokers,
        }
    }

    fn json(&self, cluster: &Cluster, config: &ConfigDetail) -> Value {
        let synonyms: Vec<Value> =
            config.synonyms.iter().map(|one| json!({"name": one.name, "value": one.value, "source": one.source})).collect();
        let mut fields = json!({
            "name": config.name,
            "value": config.value,
            "is_default": config.is_default(),
            "is_read_only": config.is_read_only,
            "is_sensitive": config.is_sensitive,
            "source": config.source,
            "synonyms": synonyms,
        });
        let own = match &self.of {
            Of::Topic(name) => ("topic_name", json!(name)),
            Of::Broker(id) => ("broker_id", json!(id)),
            Of::AllBrokers => ("config_type", json!("BROKER")),
        };
        fields[own.0] = own.1;
        cluster.resource(self.kind, &format!("{}/{}", self.path, config.name), &format!("{}={}", self.name, config.name), fields)
    }

    async fn all(&self, app: &App) -> Result<Vec<ConfigDetail>> {
        Ok(app.kafka.of_caller()?.manage().configs(&[self.of()]).await?.pop().unwrap_or_default())
    }

    async fn list(&self, app: &App, cluster: &Cluster) -> Reply {
        let data = self.all(app).await?.iter().map(|config| self.json(cluster, config)).collect();
        Ok(cluster.list(&format!("{}List", self.kind), &self.path, data))
    }

    async fn get(&self, app: &App, cluster: &Cluster, setting: &str) -> Reply {
        let all = self.all(app).await?;
        let found = all.iter().find(|config| config.name == setting);
        let found = found.ok_or_else(|| {
            BridgeError::new(Code::NoRoute, format!("there is no setting {setting:?} here; GET {} lists them", self.path))
        })?;
        ok(&self.json(cluster, found))
    }

    async fn put(&self, app: &App, setting: String, headers: &HeaderMap, bytes: &[u8]) -> Reply {
        let Update { value } = body(headers, bytes)?;
        let value = value_of(&setting, value)?;
        self.change(app, vec![ConfigChange { name: setting, value }], false).await
    }

    async fn delete(&self, app: &App, setting: String) -> Reply {
        self.change(app, vec![ConfigChange { name: setting, value: None }], false).await
    }

    async fn alter(&self, app: &App, headers: &HeaderMap, bytes: &[u8]) -> Reply {
        let Batch { data, validate_only } = body(headers, bytes)?;
        let changes = data.into_iter().map(Alter::change).collect::<Result<Vec<_>>>()?;
        self.change(app, changes, validate_only).await
    }

    async fn change(&self, app: &App, changes: Vec<ConfigChange>, validate_only: bool) -> Reply {
        manage::alter_configs(&app.kafka, self.of(), &changes, validate_only).await?;
        done()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    /// Null takes the value away.
    #[serde(default)]
    value: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    data: Vec<Alter>,
    #[serde(default)]
    validate_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alter {
    name: String,
    #[serde(default)]
    value: Option<Value>,
    /// `SET` (also when left out) or `DELETE`.
    #[serde(default)]
    operation: Option<String>,
}

impl Alter {
    fn change(self) -> Result<ConfigChange> {
        match self.operation.as_deref() {
            None | Some("SET") => Ok(ConfigChange { value: value_of(&self.name, self.value)?, name: self.name }),
            Some("DELETE") => Ok(ConfigChange { name: self.name, value: None }),
            Some(other) => {
                Err(BridgeError::new(Code::BadRequest, format!("operation {other:?} of {} is not possible; give SET or DELETE", self.name)))
            }
        }
    }
}

/// Of a setting. Numbers and booleans are taken as text; null is none.
pub(super) fn value_of(setting: &str, value: Option<Value>) -> Result<Option<String>> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(_) | Value::Object(_)) => Err(BridgeError::new(
            Code::BadRequest,
            format!("the value of {setting:?} is a list or an object; give text, a number, true or false"),
        )),
        Some(other) => Ok(Some(other.to_string())),
    }
}

// === Topics ===

pub(in crate::http) async fn topic_configs(State(app): State<App>, Path((name, topic)): Named, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::topic(topic).list(&app, &cluster).await
}

/// Those of every topic.
pub(in crate::http) async fn all_topic_configs(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let mut topics = app.topics.list().await?;
    topics.retain(|topic| sees(DescribeConfigs, Topic, &topic.name));
    let of: Vec<ConfigOf<'_>> = topics.iter().map(|topic| ConfigOf::Topic(&topic.name)).collect();
    let found = app.kafka.of_caller()?.manage().configs(&of).await?;
    let mut data = Vec::new();
    for (topic, configs) in topics.iter().zip(found) {
        let family = Family::topic(topic.name.clone());
        data.extend(configs.iter().map(|config| family.json(&cluster, config)));
    }
    Ok(cluster.list("KafkaTopicConfigList", "/topics/-/configs", data))
}

pub(in crate::http) async fn topic_config(State(app): State<App>, Path((name, topic, setting)): Setting, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::topic(topic).get(&app, &cluster, &setting).await
}

pub(in crate::http) async fn put_topic_config(
    State(app): State<App>,
    Path((name, topic, setting)): Setting,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::topic(topic).put(&app, setting, &headers, &bytes).await
}

pub(in crate::http) async fn delete_topic_config(
    State(app): State<App>,
    Path((name, topic, setting)): Setting,
    headers: HeaderMap,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::topic(topic).delete(&app, setting).await
}

pub(in crate::http) async fn alter_topic_configs(
    State(app): State<App>,
    Path((name, topic)): Named,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::topic(topic).alter(&app, &headers, &bytes).await
}

// === One broker ===

pub(in crate::http) async fn broker_configs(State(app): State<App>, Path((name, broker)): Named, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::broker(cluster.broker_id(&broker)?).list(&app, &cluster).await
}

/// Those of every broker.
pub(in crate::http) async fn brokers_configs(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let mut data = Vec::new();
    for broker in &cluster.view.brokers {
        let family = Family::broker(broker.id);
        data.extend(family.all(&app).await?.iter().map(|config| family.json(&cluster, config)));
    }
    Ok(cluster.list("KafkaBrokerConfigList", "/brokers/-/configs", data))
}

pub(in crate::http) async fn broker_config(State(app): State<App>, Path((name, broker, setting)): Setting, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::broker(cluster.broker_id(&broker)?).get(&app, &cluster, &setting).await
}

pub(in crate::http) async fn put_broker_config(
    State(app): State<App>,
    Path((name, broker, setting)): Setting,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::broker(cluster.broker_id(&broker)?).put(&app, setting, &headers, &bytes).await
}

pub(in crate::http) async fn delete_broker_config(
    State(app): State<App>,
    Path((name, broker, setting)): Setting,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::broker(cluster.broker_id(&broker)?).delete(&app, setting).await
}

pub(in crate::http) async fn alter_broker_configs(
    State(app): State<App>,
    Path((name, broker)): Named,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::broker(cluster.broker_id(&broker)?).alter(&app, &headers, &bytes).await
}

// === All brokers ===

pub(in crate::http) async fn cluster_configs(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::cluster().list(&app, &cluster).await
}

pub(in crate::http) async fn cluster_config(State(app): State<App>, Path((name, setting)): Named, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Family::cluster().get(&app, &cluster, &setting).await
}

pub(in crate::http) async fn put_cluster_config(
    State(app): State<App>,
    Path((name, setting)): Named,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::cluster().put(&app, setting, &headers, &bytes).await
}

pub(in crate::http) async fn delete_cluster_config(State(app): State<App>, Path((name, setting)): Named, headers: HeaderMap) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::cluster().delete(&app, setting).await
}

pub(in crate::http) async fn alter_cluster_configs(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    Cluster::named(&app, &headers, &name).await?;
    Family::cluster().alter(&app, &headers, &bytes).await
}
