//! Burrow's v3 paths: groups by its rules, in its words. Answers are from what the last look saw, as Burrow's are.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use service_kit::telemetry;

use super::{App, JSON, Route, json_response, object::Object};
use crate::{
    auth::{
        Access,
        Kind::{Group, Topic},
        OPEN, Verb,
        Verb::{AlterConfigs, Delete, Describe, DescribeConfigs},
        on_any, on_cluster, on_topic, sees,
    },
    error::{BridgeError, Code, Result},
    lag::{Commit, GroupState, PartitionState, Status, now_ms},
};

/// Burrow's paths.
#[rustfmt::skip] // a table: one line an operation
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/burrow/admin", OPEN, async || "GOOD"),
        Route::get("/burrow/admin/ready", OPEN, ready),
        Route::get("/v3/kafka", on_cluster(Describe), clusters),
        Route::get("/v3/kafka/{cluster}", on_cluster(Describe), cluster),
        Route::get("/v3/kafka/{cluster}/topic", on_any(Describe, Topic), topics),
        Route::get("/v3/kafka/{cluster}/topic/{topic}", on_topic(Describe), topic),
        Route::get("/v3/kafka/{cluster}/topic/{topic}/consumers", on_topic(Describe), topic_consumers),
        Route::get("/v3/kafka/{cluster}/consumer", on_any(Describe, Group), consumers),
        Route::get("/v3/kafka/{cluster}/consumer/{consumer}", of_consumer(Describe), consumer),
        Route::delete("/v3/kafka/{cluster}/consumer/{consumer}", of_consumer(Delete), forget),
        Route::delete("/v3/kafka/{cluster}/consumer/{consumer}/topic/{topic}", of_consumer(Delete), forget_topic),
        Route::get("/v3/kafka/{cluster}/consumer/{consumer}/status", of_consumer(Describe), status),
        Route::get("/v3/kafka/{cluster}/consumer/{consumer}/lag", of_consumer(Describe), lag),
        Route::get("/v3/config", on_cluster(DescribeConfigs), config),
        Route::get("/v3/config/cluster", on_cluster(DescribeConfigs), config_clusters),
        Route::get("/v3/config/cluster/{cluster}", on_cluster(DescribeConfigs), cluster),
        Route::get("/v3/config/storage", on_cluster(DescribeConfigs), config_modules),
        Route::get("/v3/config/storage/{name}", on_cluster(DescribeConfigs), config_storage),
        Route::get("/v3/config/evaluator", on_cluster(DescribeConfigs), config_modules),
        Route::get("/v3/config/evaluator/{name}", on_cluster(DescribeConfigs), config_evaluator),
        Route::get("/v3/config/consumer", on_cluster(DescribeConfigs), config_modules),
        Route::get("/v3/config/consumer/{name}", on_cluster(DescribeConfigs), config_consumer),
        Route::get("/v3/config/notifier", on_cluster(DescribeConfigs), config_notifiers),
        Route::get("/v3/config/notifier/{name}", on_cluster(DescribeConfigs), async |uri: Uri| missing(&uri, "notifier module not found")),
        Route::get("/v3/admin/loglevel", on_cluster(DescribeConfigs), log_level),
        Route::post("/v3/admin/loglevel", on_cluster(AlterConfigs), set_log_level),
    ]
}

/// A group, as Burrow's paths call it.
fn of_consumer(verb: Verb) -> Access {
    Access::Of(verb, Group, "consumer")
}

/// What Burrow calls its only storage, evaluator and consumer here.
const MODULE: &str = "millrace";

/// Burrow's frame of an answer.
fn answer(uri: &Uri, status: StatusCode, message: &str, fields: Value) -> Response {
    let host = std::env::var("HOSTNAME").unwrap_or_default();
    let mut body = json!({"error": !status.is_success(), "message": message, "request": {"url": uri.path(), "host": host}});
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
    json_response(status, JSON, &body)
}

fn missing(uri: &Uri, message: &str) -> Response {
    answer(uri, StatusCode::NOT_FOUND, message, json!({}))
}

fn found(uri: &Uri, message: &str, fields: Value) -> Response {
    answer(uri, StatusCode::OK, message, fields)
}

/// `[monitor] cluster`, else Kafka's id.
async fn name(app: &App) -> Result<String> {
    let set = &app.config.monitor.cluster;
    if !set.is_empty() {
        return Ok(set.clone());
    }
    Ok(app.topics.cluster().await?.id.unwrap_or_else(|| "unknown".to_owned()))
}

async fn is_ours(app: &App, cluster: &str) -> Result<bool> {
    Ok(name(app).await? == cluster)
}

async fn ready(State(app): State<App>) -> Response {
    if app.readiness.pending().is_empty() && app.lag.watch().table().is_complete() {
        return "READY".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "STARTING").into_response()
}

async fn clusters(State(app): State<App>, uri: Uri) -> Result<Response> {
    Ok(found(&uri, "cluster list returned", json!({"clusters": [name(&app).await?]})))
}

async fn cluster(State(app): State<App>, Path(cluster): Path<String>, uri: Uri) -> Result<Response> {
    if !is_ours(&app, &cluster).await? {
        return Ok(missing(&uri, "cluster module not found"));
    }
    let interval = app.config.monitor.interval.as_secs();
    let module = json!({
        "class-name": "kafka",
        "servers": servers(&app),
        "topic-refresh": interval,
        "offset-refresh": interval,
        "client-profile": client_profile(),
    });
    Ok(found(&uri, "cluster module detail returned", json!({"module": module})))
}

fn servers(app: &App) -> Vec<&str> {
    app.config.kafka.bootstrap_servers.split(',').map(str::trim).collect()
}

fn client_profile() -> Value {
    json!({"name": MODULE, "client-id": "millrace-bridge", "kafka-version": "", "tls": null, "sasl": null})
}

async fn topics(State(app): State<App>, Path(cluster): Path<String>, uri: Uri) -> Result<Response> {
    if !is_ours(&app, &cluster).await? {
        return Ok(missing(&uri, "cluster not found"));
    }
    let topics: Vec<String> = app.lag.watch().table().topics().into_keys().filter(|topic| sees(Describe, Topic, topic)).collect();
    Ok(found(&uri, "topic list returned", json!({"topics": topics})))
}

async fn topic(State(app): State<App>, Path((cluster, topic)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    let ours = is_ours(&app, &cluster).await?;
    let ends = app.lag.watch().table().topics().remove(&topic).filter(|_| ours);
    let Some(ends) = ends else { return Ok(missing(&uri, "cluster or topic not found")) };
    // By partition: one without a leader has a place, too.
    let last = ends.keys().next_back().copied().unwrap_or(-1);
    let offsets: Vec<i64> = (0..=last).map(|partition| ends.get(&partition).copied().unwrap_or(0)).collect();
    Ok(found(&uri, "topic offsets returned", json!({"offsets": offsets})))
}

async fn topic_consumers(State(app): State<App>, Path((cluster, topic)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    if !is_ours(&app, &cluster).await? {
        return Ok(missing(&uri, "cluster not found"));
    }
    let mut consumers = app.lag.watch().table().readers(&topic);
    consumers.retain(|group| sees(Describe, Group, group));
    Ok(found(&uri, "consumers of topic returned", json!({"consumers": consumers})))
}

async fn consumers(State(app): State<App>, Path(cluster): Path<String>, uri: Uri) -> Result<Response> {
    if !is_ours(&app, &cluster).await? {
        return Ok(missing(&uri, "cluster not found"));
    }
    let mut consumers = app.lag.watch().table().committed_groups();
    consumers.retain(|group| sees(Describe, Group, group));
    Ok(found(&uri, "consumer list returned", json!({"consumers": consumers})))
}

fn commit_json(commit: &Commit) -> Value {
    json!({"offset": commit.offset, "timestamp": commit.timestamp_ms, "observedAt": commit.observed_ms, "lag": commit.lag})
}

async fn consumer(State(app): State<App>, Path((cluster, consumer)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    let ours = is_ours(&app, &cluster).await?;
    let (commits, state) = {
        let table = app.lag.watch().table();
        (table.commits(&consumer), table.state(&consumer, now_ms()))
    };
    let (Some(commits), Some(state), true) = (commits, state, ours) else { return Ok(missing(&uri, "cluster or consumer not found")) };
    let mut topics: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for partition in &state.partitions {
        let kept = commits.get(&partition.partition).map(Vec::as_slice).unwrap_or_default();
        // A slot for every commit that there could be: the unused ones are null, and first.
        let unused = app.config.monitor.intervals.saturating_sub(kept.len());
        let offsets: Vec<Value> = std::iter::repeat_n(Value::Null, unused).chain(kept.iter().map(commit_json)).collect();
        let (owner, client) = owner(partition);
        let rows = topics.entry(partition.partition.topic.to_string()).or_default();
        // The place is the partition's number: one that the group does not read has no commits.
        while i32::try_from(rows.len()).is_ok_and(|next| next < partition.partition.partition) {
            rows.push(json!({"offsets": [], "owner": "", "client_id": "", "current-lag": 0}));
        }
        rows.push(json!({"offsets": offsets, "owner": owner, "client_id": client, "current-lag": partition.current_lag}));
    }
    Ok(found(&uri, "consumer detail returned", json!({"topics": topics})))
}

fn owner(partition: &PartitionState) -> (&str, &str) {
    partition.owner.as_ref().map_or(("", ""), |owner| (&owner.host, &owner.client_id))
}

fn partition_json(partition: &PartitionState) -> Value {
    let (owner, client) = owner(partition);
    json!({
        "topic": &*partition.partition.topic,
        "partition": partition.partition.partition,
        "owner": owner,
        "client_id": client,
        "status": partition.status,
        "start": partition.start.as_ref().map(commit_json),
        "end": partition.end.as_ref().map(commit_json),
        "current_lag": partition.current_lag,
        "complete": partition.complete,
        "lag_seconds": partition.pace.lag_seconds,
        "trend_records_per_second": partition.pace.trend,
        "catch_up_seconds": partition.pace.catch_up_seconds,
    })
}

fn state_json(cluster: &str, group: &str, state: &GroupState, wanted: impl Fn(&&PartitionState) -> bool) -> Value {
    json!({
        "cluster": cluster,
        "group": group,
        "status": state.status,
        "complete": state.complete,
        "partitions": state.partitions.iter().filter(wanted).map(partition_json).collect::<Vec<_>>(),
        "partition_count": state.partitions.len(),
        "maxlag": state.worst().map(partition_json),
        "totallag": state.total_lag,
        "lag_seconds": state.pace.lag_seconds,
        "trend_records_per_second": state.pace.trend,
        "catch_up_seconds": state.pace.catch_up_seconds,
    })
}

async fn status_of(app: &App, uri: &Uri, cluster: &str, group: &str, wanted: impl Fn(&&PartitionState) -> bool) -> Result<Response> {
    let state = app.lag.watch().table().state(group, now_ms());
    let message = "consumer status returned";
    match state {
        Some(state) if is_ours(app, cluster).await? => {
            Ok(found(uri, message, json!({"status": state_json(cluster, group, &state, wanted)})))
        }
        _ => Ok(not_found(uri, message, cluster, group)),
    }
}

/// As Burrow has it: 404, and no error.
fn not_found(uri: &Uri, message: &str, cluster: &str, group: &str) -> Response {
    let status = json!({
        "cluster": cluster, "group": group, "status": Status::NotFound, "complete": 1, "partitions": [], "partition_count": 0,
        "maxlag": null, "totallag": 0,
    });
    answer(uri, StatusCode::NOT_FOUND, message, json!({"error": false, "status": status}))
}

async fn status(State(app): State<App>, Path((cluster, consumer)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    status_of(&app, &uri, &cluster, &consumer, |partition| partition.status > Status::Ok).await
}

async fn lag(State(app): State<App>, Path((cluster, consumer)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    status_of(&app, &uri, &cluster, &consumer, |_| true).await
}

async fn forget(State(app): State<App>, Path((cluster, consumer)): Path<(String, String)>, uri: Uri) -> Result<Response> {
    if is_ours(&app, &cluster).await? {
        app.lag.watch().forget(&consumer);
    }
    Ok(found(&uri, "consumer group removed", json!({})))
}

async fn forget_topic(
    State(app): State<App>,
    Path((cluster, consumer, topic)): Path<(String, String, String)>,
    uri: Uri,
) -> Result<Response> {
    if is_ours(&app, &cluster).await? {
        app.lag.watch().forget_topic(&consumer, &topic);
    }
    Ok(found(&uri, "consumer group removed", json!({})))
}

async fn config(State(app): State<App>, uri: Uri) -> Response {
    let fields = json!({
        "general": {"pidfile": "", "stdout-logfile": "", "access-control-allow-origin": ""},
        "logging": {
            "filename": "", "max-size": 0, "max-backups": 0, "max-age": 0, "use-local-time": false, "use-compression": false,
            "level": level(&app),
        },
        "zookeeper": {"servers": [], "timeout": 0, "root-path": ""},
        "httpserver": {"default": {"address": app.config.http.listen.to_string(), "tls": "", "timeout": 0}},
    });
    found(&uri, "main config returned", fields)
}

fn modules(uri: &Uri, modules: &[String]) -> Response {
    let coordinator = uri.path().rsplit('/').next().unwrap_or_default();
    found(uri, "module list returned", json!({"coordinator": coordinator, "modules": modules}))
}

async fn config_modules(uri: Uri) -> Response {
    modules(&uri, &[MODULE.to_owned()])
}

/// Prometheus' rules notify: deploy/prometheus.
async fn config_notifiers(uri: Uri) -> Response {
    modules(&uri, &[])
}

async fn config_clusters(State(app): State<App>, uri: Uri) -> Result<Response> {
    Ok(modules(&uri, &[name(&app).await?]))
}

async fn config_storage(State(app): State<App>, Path(name): Path<String>, uri: Uri) -> Response {
    if name != MODULE {
        return missing(&uri, "storage module not found");
    }
    let monitor = &app.config.monitor;
    let module = json!({
        "class-name": "inmemory",
        "intervals": monitor.intervals,
        "min-distance": monitor.min_distance.as_secs(),
        "group-allowlist": "",
        "expire-group": monitor.expire_group.as_secs(),
    });
    found(&uri, "storage module detail returned", json!({"module": module}))
}

async fn config_consumer(State(app): State<App>, Path(module): Path<String>, uri: Uri) -> Result<Response> {
    if module != MODULE {
        return Ok(missing(&uri, "consumer module not found"));
    }
    let module = json!({
        "class-name": "kafka",
        "cluster": name(&app).await?,
        "servers": servers(&app),
        "group-allowlist": "",
        "zookeeper-path": "",
        "zookeeper-timeout": 0,
        "client-profile": client_profile(),
        "offsets-topic": "__consumer_offsets",
        "start-latest": false,
    });
    Ok(found(&uri, "consumer module detail returned", json!({"module": module})))
}

async fn config_evaluator(Path(name): Path<String>, uri: Uri) -> Response {
    if name != MODULE {
        return missing(&uri, "evaluator module not found");
    }
    // Nothing is kept: an answer costs less than looking it up.
    found(&uri, "evaluator module detail returned", json!({"module": {"class-name": "caching", "expire-cache": 0}}))
}

/// The filter in force: one word, unless somebody asked for more with `millrace log-level`.
fn level(app: &App) -> String {
    telemetry::log_filter().unwrap_or_else(|| app.config.telemetry.log.clone())
}

async fn log_level(State(app): State<App>, uri: Uri) -> Response {
    found(&uri, "log level returned", json!({"level": level(&app)}))
}

#[derive(Deserialize)]
struct LogLevel {
    #[serde(default)]
    level: String,
}

/// Burrow's words, in any case, and its answers. It takes `trace` for `debug`; above `error` there is nothing here.
async fn set_log_level(uri: Uri, body: Bytes) -> Result<Response> {
    let Ok(Object(LogLevel { level })) = serde_json::from_slice(&body) else {
        return Ok(answer(&uri, StatusCode::BAD_REQUEST, "could not decode message body", json!({})));
    };
    let filter = match level.to_lowercase().as_str() {
        "debug" | "trace" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "fatal" => "error",
        _ => return Ok(missing(&uri, "unknown log level")),
    };
    telemetry::set_log_filter(filter).map_err(|error| BridgeError::new(Code::Internal, error))?;
    Ok(found(&uri, "set log level", json!({})))
}
