//! The bridge's page: brokers and partitions that need a look, topics, groups and how their lag moves, schemas; the same as JSON.
//!
//! Rendered on the server; a few lines of script fetch the page again and swap its live part, so it works without them too. All but the
//! brokers, their partitions and the registry is what the last look saw, so that the page costs the same with 10,000 groups. Everything that comes from
//! Kafka is escaped by the templates.

mod chart;
mod diff;
mod page;
mod schemas;
mod text;

use std::collections::HashMap;

use axum::{
    extract::{Path, Query, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use maud::Markup;
use serde_json::{Value, json};

use super::{App, JSON, Route, json_response, query};
use crate::{
    auth::{
        KNOWN,
        Kind::{Group, Subject, Topic},
        Verb::{Describe, Read},
        on_any, on_cluster, on_group, on_subject, sees,
    },
    error::{BridgeError, Code, Result},
    lag::{GroupState, now_ms},
    topics::{Brokers, ReplicaState},
};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Nothing but this server's own style and script runs on the page.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
/// Rows of one page and of one answer; `?offset=` gives the next ones, `?search=` fewer.
const ROWS: usize = 200;

#[rustfmt::skip] // a table: one line an operation
pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get("/ui", on_cluster(Describe), cluster_page),
        Route::get("/ui/topics", on_any(Describe, Topic), topics_page),
        Route::get("/ui/groups", on_any(Describe, Group), groups_page),
        Route::get("/ui/groups/{group}", on_group(Describe), group_page),
        Route::get("/ui/subjects", on_any(Read, Subject), schemas::subjects_page),
        Route::get("/ui/subjects/{subject}", on_subject(Read), schemas::subject_page),
        Route::get("/ui/assets/style.css", KNOWN, async || asset("text/css; charset=utf-8", STYLE)),
        Route::get("/ui/assets/page.js", KNOWN, async || asset("text/javascript; charset=utf-8", SCRIPT)),
        Route::get("/ui/api/cluster", on_cluster(Describe), cluster_json),
        Route::get("/ui/api/topics", on_any(Describe, Topic), topics_json),
        Route::get("/ui/api/groups", on_any(Describe, Group), groups_json),
        Route::get("/ui/api/groups/{group}", on_group(Describe), group_json),
        Route::get("/ui/api/subjects", on_any(Read, Subject), schemas::subjects_json),
        Route::get("/ui/api/subjects/{subject}", on_subject(Read), schemas::subject_json),
    ]
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")], text).into_response()
}

/// A rendered page.
struct Page(StatusCode, Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut response = (self.0, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], self.1.into_string()).into_response();
        for (name, value) in [
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("x-frame-options"), "DENY"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// What went wrong, as a page.
struct PageError(BridgeError);

impl From<BridgeError> for PageError {
    fn from(error: BridgeError) -> Self {
        Self(error)
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        Page(self.0.code.status(), page::failed(&self.0)).into_response()
    }
}

type Shown = std::result::Result<Page, PageError>;

/// Which rows are wanted.
struct Window {
    search: String,
    offset: usize,
}

impl Window {
    fn of(values: &HashMap<String, String>) -> Result<Self> {
        Ok(Self { search: values.get("search").cloned().unwrap_or_default(), offset: query(values, "offset")?.unwrap_or(0) })
    }

    /// The rows of this window and how many there are in all; `name` is searched, in any case.
    fn cut<T>(&self, rows: Vec<T>, name: impl Fn(&T) -> &str) -> (Vec<T>, usize) {
        let search = self.search.to_lowercase();
        let rows: Vec<T> = rows.into_iter().filter(|row| name(row).to_lowercase().contains(&search)).collect();
        let count = rows.len();
        (rows.into_iter().skip(self.offset).take(ROWS).collect(), count)
    }
}

struct TopicRow {
    name: String,
    partitions: usize,
    replication: usize,
    state: ReplicaState,
    /// Records a second.
    rate: Option<f64>,
    readers: usize,
}

struct GroupRow {
    id: String,
    state: GroupState,
}

async fn topic_rows(app: &App) -> Result<Vec<TopicRow>> {
    let topics = app.topics.list().await?;
    let (rates, readers) = app.lag.watch().table().use_of_topics();
    let row = |topic: service_kit::kafka::TopicView| TopicRow {
        partitions: topic.partitions.len(),
        replication: topic.partitions.first().map_or(0, |partition| partition.replicas.len()),
        state: ReplicaState::of([&topic]),
        rate: rates.get(topic.name.as_str()).copied(),
        readers: readers.get(topic.name.as_str()).copied().unwrap_or(0),
        name: topic.name,
    };
    Ok(topics.into_iter().map(row).collect())
}

/// The worst first, then those with most lag.
fn group_rows(app: &App) -> Vec<GroupRow> {
    let now_ms = now_ms();
    let mut rows: Vec<GroupRow> = {
        let table = app.lag.watch().table();
        let groups = table.committed_groups().into_iter().filter(|group| sees(Describe, Group, group));
        groups.filter_map(|id| Some(GroupRow { state: table.state(&id, now_ms)?, id })).collect()
    };
    rows.sort_by(|a, b| (b.state.status, b.state.total_lag).cmp(&(a.state.status, a.state.total_lag)).then_with(|| a.id.cmp(&b.id)));
    rows
}

fn group_row(app: &App, id: &str) -> Result<GroupState> {
    app.lag.watch().table().state(id, now_ms()).ok_or_else(|| {
        BridgeError::new(
            Code::GroupNotFound,
            format!("group {id:?} has committed nothing that is remembered; /ui/groups shows those that have"),
        )
    })
}

async fn cluster_page(State(app): State<App>) -> Shown {
    let brokers = app.topics.brokers().await?;
    let sizes = app.lag.watch().table().sizes();
    Ok(Page(StatusCode::OK, page::cluster(&brokers, sizes)))
}

async fn topics_page(State(app): State<App>, Query(values): Query<HashMap<String, String>>) -> Shown {
    let window = Window::of(&values)?;
    let (rows, count) = window.cut(topic_rows(&app).await?, |row| &row.name);
    Ok(Page(StatusCode::OK, page::topics(&rows, count, &window)))
}

async fn groups_page(State(app): State<App>, Query(values): Query<HashMap<String, String>>) -> Shown {
    let window = Window::of(&values)?;
    let (rows, count) = window.cut(group_rows(&app), |row| &row.id);
    Ok(Page(StatusCode::OK, page::groups(&rows, count, &window)))
}

async fn group_page(State(app): State<App>, Path(group): Path<String>) -> Shown {
    Ok(Page(StatusCode::OK, page::group(&group, &group_row(&app, &group)?)))
}

async fn cluster_json(State(app): State<App>) -> Result<Response> {
    let Brokers { cluster, load, health } = app.topics.brokers().await?;
    let brokers = cluster.brokers.iter().map(|broker| {
        let load = load.get(&broker.id).copied().unwrap_or_default();
        let balance = health.balance.get(&broker.id).copied().unwrap_or_default();
        json!({
            "id": broker.id, "host": broker.host, "port": broker.port, "controller": cluster.controller == Some(broker.id),
            "partitions": load.partitions, "leaders": load.leaders, "log_bytes": load.log_bytes,
            "preferred": balance.preferred, "leader_imbalance": balance.imbalance(),
        })
    });
    let body = json!({
        "cluster_id": cluster.id,
        "brokers": brokers.collect::<Vec<_>>(),
        "partitions": health.partitions,
        "under_replicated": health.under_replicated,
        "under_min_isr": health.under_min_isr,
        "offline": health.offline,
        "not_preferred": health.not_preferred,
        "problems": health.problems,
    });
    Ok(json_response(StatusCode::OK, JSON, &body))
}

fn list(name: &str, rows: Vec<Value>, count: usize) -> Response {
    json_response(StatusCode::OK, JSON, &json!({name: rows, "count": count}))
}

async fn topics_json(State(app): State<App>, Query(values): Query<HashMap<String, String>>) -> Result<Response> {
    let (rows, count) = Window::of(&values)?.cut(topic_rows(&app).await?, |row| &row.name);
    let row = |row: &TopicRow| {
        json!({
            "name": row.name, "partitions": row.partitions, "replication": row.replication, "under_replicated": row.state.under_replicated,
            "offline": row.state.offline, "records_per_second": row.rate, "groups": row.readers,
        })
    };
    Ok(list("topics", rows.iter().map(row).collect(), count))
}

fn group_value(id: &str, state: &GroupState) -> Value {
    json!({
        "group": id, "status": state.status, "total_lag": state.total_lag, "lag_seconds": state.pace.lag_seconds,
        "trend_records_per_second": state.pace.trend, "catch_up_seconds": state.pace.catch_up_seconds,
    })
}

async fn groups_json(State(app): State<App>, Query(values): Query<HashMap<String, String>>) -> Result<Response> {
    let (rows, count) = Window::of(&values)?.cut(group_rows(&app), |row| &row.id);
    Ok(list("groups", rows.iter().map(|row| group_value(&row.id, &row.state)).collect(), count))
}

async fn group_json(State(app): State<App>, Path(group): Path<String>) -> Result<Response> {
    let state = group_row(&app, &group)?;
    let mut body = group_value(&group, &state);
    body["history"] = state.history.iter().map(|(at_ms, lag)| json!({"timestamp": at_ms, "lag": lag})).collect();
    body["partitions"] = state
        .partitions
        .iter()
        .map(|row| {
            json!({
                "topic": &*row.partition.topic, "partition": row.partition.partition, "status": row.status, "lag": row.current_lag,
                "client_id": row.owner.as_ref().map(|owner| &owner.client_id), "lag_seconds": row.pace.lag_seconds,
                "trend_records_per_second": row.pace.trend, "catch_up_seconds": row.pace.catch_up_seconds,
            })
        })
        .collect();
    Ok(json_response(StatusCode::OK, JSON, &body))
}
