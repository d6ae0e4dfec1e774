//! `millrace status`: every service asked at the same time, each with the whole deadline; one that is away is a row, not an end.

use std::time::Duration;

use proto::control::v1::{Health, StatusRequest, StatusResponse, control_client::ControlClient};
use serde::Serialize;

use crate::{
    cli::{Service, Session},
    failure::{Exit, Failure},
    output::{Output, Table, Tone, human, left, right, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these; all three when none is named.
    #[arg(value_enum, value_name = "SERVICE")]
    services: Vec<Service>,
    /// What each service says of itself, too; JSON always has it.
    #[arg(long)]
    wide: bool,
}

#[derive(Serialize)]
struct Report {
    services: Vec<Row>,
    #[serde(skip)]
    wide: bool,
}

#[derive(Serialize)]
struct Row {
    service: &'static str,
    address: String,
    /// One of ready, degraded, starting, draining, paused, unknown, unreachable.
    health: &'static str,
    /// Why the service is not ready, or cannot be reached.
    reason: Option<String>,
    /// `null` where the service cannot be reached.
    details: Option<Details>,
}

#[derive(Serialize)]
struct Details {
    program: String,
    version: String,
    host: String,
    pid: u32,
    uptime_ms: u64,
    started_at_ms: i64,
    /// `null` where the platform does not tell.
    memory_bytes: Option<u64>,
    facts: Vec<Fact>,
}

#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let wanted = |service: Service| args.services.is_empty() || args.services.contains(&service);
    let [collector, bridge, engine] = Service::ALL;
    let (collector, bridge, engine) = tokio::join!(
        ask(collector, wanted(collector), session),
        ask(bridge, wanted(bridge), session),
        ask(engine, wanted(engine), session)
    );
    let answers: Vec<(Row, Option<Exit>)> = [collector, bridge, engine].into_iter().flatten().collect();

    // The worst that happened decides: away before answered wrongly.
    let exits = || answers.iter().filter_map(|(_, exit)| *exit);
    let exit = exits().find(|exit| *exit == Exit::Unreachable).or_else(|| exits().next());
    let report = Report { services: answers.into_iter().map(|(row, _)| row).collect(), wide: args.wide };
    session.out.show(&report, table)?;
    match exit {
        None => Ok(()),
        Some(exit) => Err(Failure::shown(exit)),
    }
}

async fn ask(service: Service, wanted: bool, session: &Session) -> Option<(Row, Option<Exit>)> {
    if !wanted {
        return None;
    }
    let address = session.address(service).to_string();
    let answer = async {
        let link = session.connect(service).await?;
        let mut control = ControlClient::new(link.channel());
        link.answer(control.status(link.request(StatusRequest {}))).await
    };
    Some(match answer.await {
        Ok(status) => {
            let (health, reason, exit) = judge(service, &status);
            (Row { service: service.word(), address, health, reason, details: Some(details(status)) }, exit)
        }
        Err(failure) => {
            let health = if failure.exit == Exit::Unreachable { "unreachable" } else { "unknown" };
            // The row says who and where already.
            let who = format!("cannot reach the {} at {address}: ", service.word());
            let reason = failure.message.strip_prefix(&who).unwrap_or(&failure.message).to_owned();
            (Row { service: service.word(), address, health, reason: Some(reason), details: None }, Some(failure.exit))
        }
    })
}

fn judge(service: Service, status: &StatusResponse) -> (&'static str, Option<String>, Option<Exit>) {
    if status.service != service.program() {
        let reason =
            format!("{} answers here, not {}; set --{} or {}", status.service, service.program(), service.word(), service.variable());
        return ("unknown", Some(reason), Some(Exit::Failed));
    }
    let reason = (!status.reason.is_empty()).then(|| status.reason.clone());
    let health = match status.health() {
        Health::Ready => "ready",
        Health::Degraded => "degraded",
        Health::Starting => "starting",
        Health::Draining => "draining",
        Health::Paused => "paused",
        Health::Unspecified => "unknown",
    };
    (health, reason, None)
}

fn details(status: StatusResponse) -> Details {
    Details {
        program: status.service,
        version: status.version,
        host: status.host,
        pid: status.pid,
        uptime_ms: status.uptime_ms,
        started_at_ms: status.started_at_ms,
        memory_bytes: (status.memory_bytes > 0).then_some(status.memory_bytes),
        facts: status.facts.into_iter().map(|fact| Fact { name: fact.name, value: fact.value }).collect(),
    }
}

fn table(report: &Report, out: &Output) -> String {
    let header = ["SERVICE", "ADDRESS", "HEALTH"].map(left).into_iter();
    let header = header.chain(["UPTIME", "MEMORY"].map(right)).chain(["VERSION", "DETAILS"].map(left));
    let mut table = Table::new(out, header.collect());
    for row in &report.services {
        let tone = match row.health {
            "ready" => Tone::Good,
            "unreachable" | "unknown" => Tone::Bad,
            _ => Tone::Watch,
        };
        let details = row.details.as_ref();
        let facts = details
            .filter(|_| report.wide)
            .into_iter()
            .flat_map(|details| &details.facts)
            .map(|fact| format!("{} {}", fact.name, fact.value));
        let talk: Vec<String> = row.reason.iter().cloned().chain(facts).collect();
        table.row(vec![
            left(row.service),
            left(&row.address),
            toned(out, row.health, tone),
            right(details.map_or_else(dash, |details| human::duration(Duration::from_millis(details.uptime_ms)))),
            right(
                details
                    .and_then(|details| details.memory_bytes)
                    .map_or_else(dash, |bytes| human::bytes(i64::try_from(bytes).unwrap_or(i64::MAX))),
            ),
            left(details.map_or_else(dash, |details| details.version.clone())),
            left(talk.join(" · ")),
        ]);
    }
    table.render()
}

fn dash() -> String {
    "-".to_owned()
}
