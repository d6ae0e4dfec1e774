//! `/v3/clusters` and `…/brokers`.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use serde_json::{Value, json};

use super::{App, Cluster, JSON, Reply, base_url, json_response, ok, partitions::replica_json};
use crate::{
    error::{BridgeError, Code, Result},
    manage,
};

impl Cluster {
    fn cluster_json(&self) -> Value {
        let fields = json!({
            "controller": self.view.controller.map(|id| self.related(&format!("/brokers/{id}"))),
            "acls": self.related("/acls"),
            "brokers": self.related("/brokers"),
            "broker_configs": self.related("/broker-configs"),
            "consumer_groups": self.related("/consumer-groups"),
            "topics": self.related("/topics"),
            "partition_reassignments": self.related("/topics/-/partitions/-/reassignment"),
        });
        self.resource("KafkaCluster", "", "", fields)
    }

    /// The id in the path, of a broker that is there.
    pub(super) fn broker_id(&self, text: &str) -> Result<i32> {
        let found = text.parse().ok().filter(|id| self.view.brokers.iter().any(|broker| broker.id == *id));
        found.ok_or_else(|| {
            let known = self.view.brokers.iter().map(|broker| broker.id.to_string()).collect::<Vec<_>>().join(", ");
            BridgeError::new(Code::NoRoute, format!("the cluster has no broker {text:?}; it has {known}"))
        })
    }
}

pub(in crate::http) async fn clusters(State(app): State<App>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::find(&app, &headers).await?;
    let body = json!({
        "kind": "KafkaClusterList",
        "metadata": {"self": format!("{}/v3/clusters", base_url(&headers)), "next": null},
        "data": [cluster.cluster_json()],
    });
    Ok(json_response(StatusCode::OK, JSON, &body))
}

pub(in crate::http) async fn cluster(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    ok(&Cluster::named(&app, &headers, &name).await?.cluster_json())
}

pub(in crate::http) async fn brokers(State(app): State<App>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    Ok(cluster.list("KafkaBrokerList", "/brokers", broker_list(&app, &cluster).await?.into_values().collect()))
}

pub(in crate::http) async fn broker(State(app): State<App>, Path((name, id)): Path<(String, String)>, headers: HeaderMap) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let id = cluster.broker_id(&id)?;
    let mut brokers = broker_list(&app, &cluster).await?;
    ok(&brokers.remove(&id).unwrap_or_default())
}

async fn broker_list(app: &App, cluster: &Cluster) -> Result<BTreeMap<i32, Value>> {
    let brokers = app.topics.brokers().await?;
    let racks = manage::racks(&app.kafka).await?;
    let data = cluster.view.brokers.iter().map(|broker| {
        let load = brokers.load.get(&broker.id).copied().unwrap_or_default();
        let path = format!("/brokers/{}", broker.id);
        let fields = json!({
            "broker_id": broker.id, "host": broker.host, "port": broker.port, "rack": racks.get(&broker.id),
            "configs": cluster.related(&format!("{path}/configs")),
            "partition_replicas": cluster.related(&format!("{path}/partition-replicas")),
            "partitions_count": load.partitions, "leaders_count": load.leaders, "log_bytes": load.log_bytes,
        });
        (broker.id, cluster.resource("KafkaBroker", &path, &format!("broker={}", broker.id), fields))
    });
    Ok(data.collect())
}

/// Replicas that a broker holds, of all topics.
pub(in crate::http) async fn broker_replicas(
    State(app): State<App>,
    Path((name, id)): Path<(String, String)>,
    headers: HeaderMap,
) -> Reply {
    let cluster = Cluster::named(&app, &headers, &name).await?;
    let id = cluster.broker_id(&id)?;
    let topics = app.topics.list().await?;
    let mut data = Vec::new();
    for topic in &topics {
        let held = topic.partitions.iter().filter(|partition| partition.replicas.contains(&id));
        data.extend(held.map(|partition| replica_json(&cluster, &topic.name, partition, id)));
    }
    Ok(cluster.list("KafkaReplicaList", &format!("/brokers/{id}/partition-replicas"), data))
}
