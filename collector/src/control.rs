//! The collector's control port, and the page with its numbers. Translates, then asks the agent's handle.

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::State as Extract,
    http::{HeaderMap, StatusCode, header::ACCEPT},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{Stream, StreamExt as _, stream};
use memchr::memmem::Finder;
use proto::control::v1::collector_server::{Collector, CollectorServer};
use proto::control::v1::{self, ComponentsRequest, ComponentsResponse, ReloadResponse, TapRequest, TapResponse, tap_response::What};
use proto::{ErrorKind, ServiceError};
use service_kit::{Control, Readiness};

use crate::agent::{Agent, State, View};
use crate::flume_conf::Role;
use crate::reload::Reloader;
use crate::tap::{Direction, Seen, Wanted, means};

#[derive(Clone)]
pub struct Operator {
    pub agent: Arc<Agent>,
    pub reloader: Arc<Reloader>,
    pub readiness: Readiness,
}

impl Operator {
    pub fn grpc(&self) -> tonic::service::Routes {
        tonic::service::Routes::new(CollectorServer::new(self.clone()))
    }

    pub fn http(&self) -> Router {
        Router::new()
            .route("/", get(paths))
            .route("/metrics", get(metrics))
            .route("/prometheus", get(prometheus))
            .route("/health", get(health))
            .with_state(self.clone())
    }

    /// What is wrong, and what is paused.
    fn not_well(&self) -> Option<String> {
        let paused = self.names_paused();
        let paused = (!paused.is_empty()).then(|| format!("paused: {}", paused.join(" ")));
        let told: Vec<String> = paused.into_iter().chain(self.wrong()).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    fn names_paused(&self) -> Vec<String> {
        let paused = self.agent.view().into_iter().filter(|view| view.state == State::Paused);
        paused.map(|view| view.name).collect()
    }

    fn wrong(&self) -> Option<String> {
        let views = self.agent.view();
        let bad = views.iter().filter(|view| view.state == State::Failed || !view.error.is_empty());
        let bad = bad.map(|view| format!("{} {}: {}", view.role, view.name, view.error));
        let stale = self.reloader.failed().map(|error| format!("the agent's files are not what runs: {error}"));
        let told: Vec<_> = bad.chain(stale).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

#[async_trait]
impl Control for Operator {
    async fn facts(&self) -> Vec<(String, String)> {
        let plan = self.agent.plan();
        let views = self.agent.view();
        let sum = |role: Role, counter: &str| views.iter().filter(|view| view.role == role).map(|view| value(view, counter)).sum::<f64>();
        let fullest =
            views.iter().filter(|view| view.role == Role::Channel).map(|view| value(view, "ChannelFillPercentage")).fold(0.0, f64::max);
        vec![
            ("agent".into(), plan.agent),
            ("sources".into(), plan.sources.len().to_string()),
            ("channels".into(), plan.channels.len().to_string()),
            ("sinks".into(), plan.sinks.len().to_string()),
            ("accepted events".into(), sum(Role::Source, "EventAcceptedCount").to_string()),
            ("delivered events".into(), sum(Role::Sink, "EventDrainSuccessCount").to_string()),
            ("dead letters".into(), sum(Role::Sink, "DeadLetterCount").to_string()),
            ("channel fill".into(), format!("{fullest:.1} %")),
        ]
    }

    async fn degraded(&self) -> Option<String> {
        self.wrong()
    }

    async fn reload(&self) -> Result<ReloadResponse, ServiceError> {
        self.reloader.reload().await
    }

    async fn paused(&self) -> Vec<String> {
        self.names_paused()
    }

    async fn pause(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.agent.set_paused(by_name(&self.agent.view(), component)?, true)
    }

    async fn resume(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.agent.set_paused(by_name(&self.agent.view(), component)?, false)
    }

    async fn remaining(&self) -> u64 {
        self.agent.remaining()
    }

    fn effective_config(&self) -> (String, String) {
        let settings: String = service_kit::config::render(self.reloader.config()).lines().map(|line| format!("# {line}\n")).collect();
        ("properties".into(), format!("{}\n# The process's own settings:\n{settings}", self.agent.plan().to_properties()))
    }
}

#[async_trait]
impl Collector for Operator {
    async fn components(&self, _: tonic::Request<ComponentsRequest>) -> Result<tonic::Response<ComponentsResponse>, tonic::Status> {
        let components = self.agent.view().into_iter().map(|view| v1::Component {
            kind: match view.role {
                Role::Source | Role::Interceptor | Role::Selector => v1::ComponentKind::Source,
                Role::Channel => v1::ComponentKind::Channel,
                Role::Sink => v1::ComponentKind::Sink,
                Role::Group | Role::Filter => v1::ComponentKind::SinkGroup,
            }
            .into(),
            name: view.name,
            r#type: view.type_name,
            state: match view.state {
                State::Running => v1::ComponentState::Running,
                State::Paused => v1::ComponentState::Paused,
                State::Failed => v1::ComponentState::Failed,
                State::Stopped => v1::ComponentState::Stopped,
            }
            .into(),
            error: view.error,
            channels: view.channels,
            counters: view.counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        });
        Ok(tonic::Response::new(ComponentsResponse { components: components.collect() }))
    }

    type TapStream = Pin<Box<dyn Stream<Item = Result<TapResponse, tonic::Status>> + Send>>;

    async fn tap(&self, request: tonic::Request<TapRequest>) -> Result<tonic::Response<Self::TapStream>, tonic::Status> {
        let request = request.into_inner();
        let left = if request.events_max == 0 { u64::MAX } else { request.events_max };
        let wanted = wanted(request)?;
        let named = |view: &View| (view.role != Role::Group).then(|| format!("{}.{}", view.role.singular(), view.name));
        let known: Vec<String> = self.agent.view().iter().filter_map(named).collect();
        let covered = |component: &&String| wanted.patterns().any(|pattern| means(pattern, component));
        let started = v1::TapStarted {
            components: known.iter().filter(covered).cloned().collect(),
            unmatched: wanted.patterns().filter(|pattern| !known.iter().any(|component| means(pattern, component))).cloned().collect(),
        };
        let opened = self.agent.taps().open(wanted).map_err(|open| {
            ServiceError::new(ErrorKind::LimitExceeded, format!("{open} taps are open already; end one, or raise [tap] taps_max"))
        })?;
        let events = stream::unfold((opened, left), |(mut opened, left)| async move {
            let left = left.checked_sub(1)?;
            let event = opened.next().await?;
            Some((What::Event(shown(event)), (opened, left)))
        });
        let answers = stream::iter([What::Started(started)]).chain(events);
        Ok(tonic::Response::new(Box::pin(answers.map(|what| Ok(TapResponse { what: Some(what) })))))
    }
}

/// The request with its defaults, within its bounds.
fn wanted(request: TapRequest) -> Result<Wanted, ServiceError> {
    let within = |name: &str, value: u32, default: u32, min: u32, max: u32| match value {
        0 => Ok(default),
        value if (min..=max).contains(&value) => Ok(value),
        value => Err(ServiceError::new(ErrorKind::Invalid, format!("{name}: {value} is not from {min} to {max}"))),
    };
    let mut outputs_of = request.outputs_of;
    if outputs_of.is_empty() && request.inputs_of.is_empty() {
        outputs_of.push("*".to_owned());
    }
    Ok(Wanted {
        inputs_of: request.inputs_of,
        outputs_of,
        limit: within("limit", request.limit, 100, 1, 10_000)? as usize,
        interval: Duration::from_millis(within("interval_ms", request.interval_ms, 1000, 10, 3_600_000)?.into()),
        body_bytes_max: within("body_bytes_max", request.body_bytes_max, 4096, 1, 16_384)? as usize,
        contains: (!request.contains.is_empty()).then(|| Finder::new(&request.contains).into_owned()),
        headers: request.headers.into_iter().collect(),
    })
}

fn shown(seen: Seen) -> v1::TapEvent {
    let direction = match seen.direction {
        Direction::In => v1::TapDirection::In,
        Direction::Out => v1::TapDirection::Out,
    };
    v1::TapEvent {
        component: seen.component.to_string(),
        direction: direction.into(),
        headers: seen.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| (name.clone(), value.clone())).collect(),
        body: seen.body.into(),
        body_bytes: seen.body_bytes as u64,
        passed_over: seen.passed_over,
    }
}

/// The name of a component that is named alone, or with its role as `millrace tap` shows it.
fn by_name<'a>(views: &[View], component: &'a str) -> Result<&'a str, ServiceError> {
    let Some((role, name)) = component.split_once('.') else { return Ok(component) };
    let is = |view: &&View| view.name == name && [Role::Source, Role::Channel, Role::Sink].contains(&view.role);
    let roles: Vec<&str> = views.iter().filter(is).map(|view| view.role.singular()).collect();
    if views.iter().any(|view| view.name == component) {
        return Ok(component);
    }
    match roles.iter().find(|known| **known != role) {
        _ if !["source", "channel", "sink"].contains(&role) => Ok(component),
        // Both would stand still.
        Some(other) if roles.contains(&role) && *other != "channel" && role != "channel" => {
            let message = format!("there are a {role} and a {other} `{name}`, which are only paused and resumed together: say `{name}`");
            Err(ServiceError::new(ErrorKind::Invalid, message))
        }
        Some(other) if !roles.contains(&role) => Err(ServiceError::not_found(format!("there is no {role} `{name}`; say {other}.{name}"))),
        _ => Ok(name),
    }
}

fn value(view: &View, counter: &str) -> f64 {
    view.counters.iter().find(|(name, _)| *name == counter).map_or(0.0, |(_, value)| *value)
}

async fn paths() -> &'static str {
    "millrace-collector\n/health      how it is, as JSON\n/metrics     Flume's counters as JSON\n/prometheus  the same and more as text\n"
}

/// Flume's JSON, or Prometheus' text for those who ask for it.
async fn metrics(Extract(operator): Extract<Operator>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let wants_text = ["text/plain", "openmetrics"].iter().any(|kind| accept.contains(kind));
    if wants_text { prometheus(Extract(operator)).await } else { Json(flume_json(&operator.agent.view())).into_response() }
}

async fn prometheus(Extract(operator): Extract<Operator>) -> Response {
    operator.agent.publish();
    let kind = [(axum::http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, service_kit::metrics::render()).into_response()
}

async fn health(Extract(operator): Extract<Operator>) -> Response {
    let ready = operator.readiness.is_ready();
    let wrong = operator.not_well();
    let (code, state) = match (ready, &wrong) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        (true, None) => (StatusCode::OK, "ready"),
        // It runs, and restarting it would not help.
        (true, Some(_)) => (StatusCode::OK, "degraded"),
    };
    (code, Json(serde_json::json!({ "state": state, "reason": wrong.unwrap_or_default() }))).into_response()
}

/// `{"SOURCE.r1":{…},"CHANNEL.c1":{…},"SINK.k1":{…}}`, every value a string, as Flume's own page.
pub(crate) fn flume_json(views: &[View]) -> serde_json::Value {
    // Flume's page has no groups.
    let page = views.iter().filter(|view| view.role != Role::Group).map(|view| {
        let role = view.role.singular().to_uppercase();
        let mut counters: serde_json::Map<String, serde_json::Value> =
            view.counters.iter().map(|(name, value)| ((*name).to_owned(), java_number(name, *value).into())).collect();
        counters.insert("Type".into(), role.clone().into());
        (format!("{role}.{}", view.name), serde_json::Value::Object(counters))
    });
    serde_json::Value::Object(page.collect())
}

/// Java prints a double with a fraction always, a long never.
fn java_number(name: &str, value: f64) -> String {
    if ["ChannelFillPercentage", "SuccessRate"].contains(&name) { format!("{value:?}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::memory::{Limits, MemoryChannel};
    use crate::counters::{ChannelGauges, Shown, SinkCounters, SourceCounters};

    fn view(role: Role, name: &str, counters: Shown) -> View {
        View {
            role,
            name: name.into(),
            type_name: String::new(),
            state: State::Running,
            error: String::new(),
            channels: Vec::new(),
            counters,
        }
    }

    #[test]
    fn a_component_may_be_named_as_a_tap_shows_it() {
        let views = [(Role::Source, "r"), (Role::Channel, "c"), (Role::Sink, "k"), (Role::Source, "x"), (Role::Sink, "x")]
            .map(|(role, name)| view(role, name, Shown::new()));
        let check =
            |component, expected| assert_eq!(by_name(&views, component).map_err(|error| error.to_string()).ok(), expected, "{component}");
        for (component, name) in
            [("", ""), ("r", "r"), ("source.r", "r"), ("sink.k", "k"), ("x", "x"), ("channel.c", "c"), ("sink.none", "none")]
        {
            check(component, Some(name));
        }
        check("other.r", Some("other.r"));
        check("sink.r", None);
        check("source.x", None);
    }

    #[test]
    fn the_page_has_flumes_shape() {
        let channel = MemoryChannel::new(Limits { events_max: 8, transaction_max: 8, bytes_max: usize::MAX, keep_alive: Duration::ZERO });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(crate::channel::Channel::put(&channel, &mut vec![crate::event::Event::new("x")])).unwrap();
        let page = flume_json(&[
            view(Role::Source, "r1", SourceCounters::new("r1").shown()),
            view(Role::Channel, "c1", ChannelGauges::new("c1").shown(&channel)),
            view(Role::Sink, "k1", SinkCounters::new("k1").shown()),
        ]);
        let component = |name: &str| page[name].as_object().unwrap();
        assert!(["SOURCE.r1", "CHANNEL.c1", "SINK.k1"].iter().all(|name| component(name).values().all(serde_json::Value::is_string)));
        let names = |name: &str| component(name).keys().cloned().collect::<std::collections::BTreeSet<_>>();
        for (name, counters) in [
            (
                "SOURCE.r1",
                "EventReceivedCount EventAcceptedCount AppendReceivedCount AppendAcceptedCount AppendBatchReceivedCount AppendBatchAcceptedCount OpenConnectionCount ChannelWriteFail EventReadFail GenericProcessingFail StartTime StopTime Type",
            ),
            (
                "CHANNEL.c1",
                "ChannelCapacity ChannelSize ChannelFillPercentage EventPutAttemptCount EventPutSuccessCount EventTakeAttemptCount EventTakeSuccessCount StartTime StopTime Type",
            ),
            (
                "SINK.k1",
                "ConnectionCreatedCount ConnectionClosedCount ConnectionFailedCount BatchCompleteCount BatchEmptyCount BatchUnderflowCount EventDrainAttemptCount EventDrainSuccessCount EventWriteFail ChannelReadFail RollbackCount KafkaEventSendTimer SuccessRate StartTime StopTime Type",
            ),
        ] {
            for counter in counters.split(' ') {
                assert!(names(name).contains(counter), "{name} lacks {counter}");
            }
        }
        assert_eq!(page["CHANNEL.c1"]["ChannelFillPercentage"], "12.5");
        assert_eq!(page["CHANNEL.c1"]["ChannelSize"], "1");
        assert_eq!(page["SINK.k1"]["SuccessRate"], "100.0");
        assert_eq!(page["SINK.k1"]["Type"], "SINK");
    }
}
