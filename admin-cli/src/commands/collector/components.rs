//! `millrace collector components`

use std::collections::BTreeMap;

use proto::control::v1::{Component, ComponentKind, ComponentState, ComponentsRequest, collector_client::CollectorClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::Failure,
    output::{Output, Table, Tone, human, left, toned},
};

#[derive(Serialize)]
struct Report {
    components: Vec<View>,
}

#[derive(Serialize)]
struct View {
    kind: &'static str,
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    state: &'static str,
    error: Option<String>,
    channels: Vec<String>,
    /// Flume's counter names, all of them.
    counters: BTreeMap<String, f64>,
}

pub(crate) async fn run(session: &Session) -> Result<(), Failure> {
    let link = session.connect(Service::Collector).await?;
    let answer = link.answer(CollectorClient::new(link.channel()).components(link.request(ComponentsRequest {}))).await?;
    session.out.show(&Report { components: answer.components.into_iter().map(View::from).collect() }, table)
}

pub(crate) fn kind_word(component: &Component) -> &'static str {
    match component.kind() {
        ComponentKind::Source => "source",
        ComponentKind::Channel => "channel",
        ComponentKind::Sink => "sink",
        ComponentKind::SinkGroup => "sink group",
        ComponentKind::Unspecified => "unknown",
    }
}

pub(crate) fn state_word(component: &Component) -> &'static str {
    match component.state() {
        ComponentState::Running => "running",
        ComponentState::Paused => "paused",
        ComponentState::Failed => "failed",
        ComponentState::Stopped => "stopped",
        ComponentState::Unspecified => "unknown",
    }
}

impl From<Component> for View {
    fn from(component: Component) -> Self {
        Self {
            kind: kind_word(&component),
            state: state_word(&component),
            name: component.name,
            type_name: component.r#type,
            error: (!component.error.is_empty()).then_some(component.error),
            channels: component.channels,
            counters: component.counters.into_iter().collect(),
        }
    }
}

fn table(report: &Report, out: &Output) -> String {
    let mut table = Table::new(out, ["KIND", "NAME", "TYPE", "STATE", "CHANNELS", "EVENTS", "ERROR"].map(left).into());
    for view in &report.components {
        let tone = match view.state {
            "running" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Watch,
        };
        // `org.apache.flume.sink.kafka.KafkaSink` is recognised by its last word.
        let short = view.type_name.rsplit('.').next().unwrap_or_default();
        table.row(vec![
            left(view.kind),
            left(&view.name),
            left(short),
            toned(out, view.state, tone),
            left(view.channels.join(", ")),
            left(events(view)),
            left(view.error.as_deref().unwrap_or_default()),
        ]);
    }
    table.render()
}

/// The counters that tell whether it flows, in words.
fn events(view: &View) -> String {
    let counter = |name: &str| view.counters.get(name).copied();
    let whole = |value: f64| human::count(value as i64);
    let pair = |done: &str, tried: &str, verb: &str| match (counter(done), counter(tried)) {
        (Some(done), Some(tried)) if tried > done => format!("{} {verb} of {}", whole(done), whole(tried)),
        (Some(done), _) => format!("{} {verb}", whole(done)),
        _ => String::new(),
    };
    match view.kind {
        "source" => pair("EventAcceptedCount", "EventReceivedCount", "accepted"),
        "sink" => pair("EventDrainSuccessCount", "EventDrainAttemptCount", "delivered"),
        "channel" => match (counter("ChannelSize"), counter("ChannelFillPercentage")) {
            (Some(size), Some(fill)) => format!("{} held, {fill:.1} % full", whole(size)),
            (Some(size), None) => format!("{} held", whole(size)),
            _ => String::new(),
        },
        _ => String::new(),
    }
}
