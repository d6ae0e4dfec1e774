//! `millrace top`: what each component of the collector moves, renewed in place. Rates are made here, from two looks at the counters.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proto::control::v1::{Component, ComponentsRequest, collector_client::CollectorClient};
use serde::Serialize;
use tokio::time::Instant;

use super::collector::components::{kind_word, state_word};
use crate::{
    cli::{Service, Session, duration},
    failure::Failure,
    output::{Output, Screen, Table, Tone, human, left, right, toned},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Time between two looks.
    #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// Print one table and end; so it is, too, where stdout is no terminal. JSON goes on without it, a line for each look.
    #[arg(long)]
    once: bool,
}

#[derive(Serialize)]
struct Report {
    time_ms: u64,
    address: String,
    /// Between the two looks that the rates are made from.
    interval_ms: u64,
    components: Vec<Row>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Row {
    kind: &'static str,
    name: String,
    state: &'static str,
    error: Option<String>,
    channels: Vec<String>,
    /// Events that came to it: read by a source, put into a channel, taken by a sink.
    in_per_s: f64,
    /// Events that left it: accepted by a source's channels, taken from a channel, delivered by a sink.
    out_per_s: f64,
    /// Bytes of bodies, of a source's events in and a sink's out.
    bytes_per_s: Option<f64>,
    /// Failures since its start: refused puts, failed reads, deliveries tried again, dead letters, damaged and lost events.
    errors: u64,
    errors_per_s: f64,
    events_held: Option<u64>,
    fill_percent: Option<f64>,
    /// Bytes in a source's files that it has not read yet.
    lag_bytes: Option<u64>,
    /// Mean of the sends between the two looks.
    send_ms: Option<f64>,
}

/// Components, and when they were asked for.
struct Look {
    at: Instant,
    components: Vec<Component>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let out = &session.out;
    let address = session.address(Service::Collector).to_string();
    let mut before = look(session).await?;
    let mut screen = if out.people() && !args.once { Screen::open() } else { None };
    let once = args.once || (out.people() && screen.is_none());
    loop {
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            interrupted = tokio::signal::ctrl_c() => {
                return interrupted.map_err(|error| Failure::failed(format!("cannot wait for Ctrl-C: {error}")));
            }
        }
        let now = match (look(session).await, &mut screen) {
            (Ok(now), _) => now,
            // The table stays, and the reason with it.
            (Err(failure), Some(screen)) => {
                screen.trouble(&failure.message)?;
                continue;
            }
            (Err(failure), None) => return Err(failure),
        };
        let report = report(&before, &now, address.clone());
        let go_on = match &mut screen {
            Some(screen) => screen.show(&table(&report, out)).map(|()| true)?,
            None if out.people() => out.line(&table(&report, out))?,
            None => {
                let line = serde_json::to_string(&report);
                out.line(&line.map_err(|error| Failure::failed(format!("cannot write the answer as JSON: {error}")))?)?
            }
        };
        if once || !go_on {
            return Ok(());
        }
        before = now;
    }
}

async fn look(session: &Session) -> Result<Look, Failure> {
    let link = session.connect(Service::Collector).await?;
    let answer = link.answer(CollectorClient::new(link.channel()).components(link.request(ComponentsRequest {}))).await?;
    Ok(Look { at: Instant::now(), components: answer.components })
}

fn report(before: &Look, now: &Look, address: String) -> Report {
    let passed = now.at.duration_since(before.at);
    let known: HashMap<(i32, &str), &Component> =
        before.components.iter().map(|component| ((component.kind, component.name.as_str()), component)).collect();
    let row = |component: &Component| row(known.get(&(component.kind, component.name.as_str())).copied(), component, passed);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Report {
        time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        address,
        interval_ms: u64::try_from(passed.as_millis()).unwrap_or(u64::MAX),
        components: now.components.iter().map(row).collect(),
    }
}

fn row(before: Option<&Component>, now: &Component, passed: Duration) -> Row {
    let count = |name: &str| now.counters.get(name).copied();
    let seconds = passed.as_secs_f64().max(0.001);
    // A component that was started anew counts from 0, and one that is new is not known to have counted just now.
    let grown = |name: &str| {
        let (now, was) = (count(name)?, before?.counters.get(name).copied().unwrap_or_default());
        Some(if now < was { now } else { now - was })
    };
    let per_s = |names: &[&str]| names.iter().filter_map(|name| grown(name)).sum::<f64>() / seconds;
    let kind = kind_word(now);
    let (came, left, bytes, errors): (&str, &str, &str, &[&str]) = match kind {
        "source" => (
            "EventReceivedCount",
            "EventAcceptedCount",
            "ByteReceivedCount",
            &["ChannelWriteFail", "EventReadFail", "GenericProcessingFail", "DroppedEventCount", "UnroutedEventCount"],
        ),
        "channel" => ("EventPutSuccessCount", "EventTakeSuccessCount", "", &["DamagedEventCount"]),
        "sink" => (
            "EventDrainAttemptCount",
            "EventDrainSuccessCount",
            "ByteDrainCount",
            &["EventWriteFail", "DeadLetterCount", "ConnectionFailedCount"],
        ),
        _ => ("", "", "", &[]),
    };
    let whole = |value: f64| value as u64;
    let sends = grown("SendCount").filter(|sends| *sends > 0.0);
    Row {
        kind,
        name: now.name.clone(),
        state: state_word(now),
        error: (!now.error.is_empty()).then(|| now.error.clone()),
        channels: now.channels.clone(),
        in_per_s: per_s(&[came]),
        out_per_s: per_s(&[left]),
        bytes_per_s: count(bytes).map(|_| per_s(&[bytes])),
        errors: whole(errors.iter().filter_map(|name| count(name)).sum()),
        errors_per_s: per_s(errors),
        events_held: count("ChannelSize").map(whole),
        fill_percent: count("ChannelFillPercentage"),
        lag_bytes: count("UnreadByteCount").map(whole),
        send_ms: sends.and_then(|sends| Some(grown("KafkaEventSendTimer")? / sends)),
    }
}

fn table(report: &Report, out: &Output) -> String {
    let header = ["KIND", "NAME", "STATE"].map(left).into_iter().chain(["IN/S", "OUT/S", "BYTES/S", "ERRORS"].map(right));
    let header = header.chain(["FILL"].map(left)).chain(["LAG", "SEND"].map(right)).chain(["ERROR"].map(left));
    let mut table = Table::new(out, header.collect());
    let dash = || "-".to_owned();
    let bytes = |bytes: f64| human::bytes(bytes as i64);
    for row in &report.components {
        let tone = match row.state {
            "running" => Tone::Good,
            "failed" => Tone::Bad,
            _ => Tone::Watch,
        };
        let moves = row.kind != "sink group";
        let rate = |rate: f64| if moves { human::count(rate.round() as i64) } else { dash() };
        let filled = match row.fill_percent {
            Some(percent) if percent >= 90.0 => Tone::Bad,
            Some(percent) if percent >= 50.0 => Tone::Watch,
            _ => Tone::Plain,
        };
        table.row(vec![
            left(row.kind),
            left(&row.name),
            toned(out, row.state, tone),
            right(rate(row.in_per_s)),
            right(rate(row.out_per_s)),
            right(row.bytes_per_s.map_or_else(dash, bytes)),
            right(if moves { human::count(row.errors) } else { dash() }),
            toned(out, row.fill_percent.map_or_else(dash, bar), filled),
            right(row.lag_bytes.map_or_else(dash, |lag| bytes(lag as f64))),
            right(row.send_ms.map_or_else(dash, |ms| format!("{ms:.1} ms"))),
            left(row.error.as_deref().unwrap_or_default()),
        ]);
    }
    table.render()
}

/// `███▌······▏35.0 %`: ten letters are all of it.
fn bar(percent: f64) -> String {
    const LETTERS: usize = 10;
    let halves = (percent / 100.0 * (2 * LETTERS) as f64).round().clamp(0.0, (2 * LETTERS) as f64) as usize;
    let (full, half) = (halves / 2, halves % 2);
    let bar = "█".repeat(full) + if half == 1 { "▌" } else { "" };
    format!("{bar}{}▏{percent:.1} %", "·".repeat(LETTERS - full - half))
}

#[cfg(test)]
mod tests {
    use proto::control::v1::ComponentKind;

    use super::*;

    fn component(kind: ComponentKind, counters: &[(&str, f64)]) -> Component {
        let counters = counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Component { kind: kind.into(), name: "x".into(), counters, ..Component::default() }
    }

    #[test]
    fn rates_are_what_was_counted_between_two_looks() {
        let before = component(
            ComponentKind::Sink,
            &[
                ("EventDrainAttemptCount", 100.0),
                ("EventDrainSuccessCount", 90.0),
                ("ByteDrainCount", 1000.0),
                ("SendCount", 4.0),
                ("KafkaEventSendTimer", 10.0),
            ],
        );
        let now = component(
            ComponentKind::Sink,
            &[
                ("EventDrainAttemptCount", 300.0),
                ("EventDrainSuccessCount", 290.0),
                ("ByteDrainCount", 5000.0),
                ("SendCount", 8.0),
                ("KafkaEventSendTimer", 30.0),
                ("EventWriteFail", 3.0),
                ("DeadLetterCount", 1.0),
            ],
        );
        let row = row(Some(&before), &now, Duration::from_secs(2));
        assert_eq!((row.in_per_s, row.out_per_s, row.bytes_per_s, row.send_ms), (100.0, 100.0, Some(2000.0), Some(5.0)));
        assert_eq!((row.errors, row.errors_per_s, row.fill_percent, row.lag_bytes), (4, 2.0, None, None));
    }

    #[test]
    fn a_component_that_began_anew_counts_from_nothing() {
        let before = component(ComponentKind::Source, &[("EventReceivedCount", 1000.0)]);
        let now = component(ComponentKind::Source, &[("EventReceivedCount", 10.0), ("UnreadByteCount", 7.0)]);
        let again = row(Some(&before), &now, Duration::from_secs(1));
        assert_eq!((again.in_per_s, again.lag_bytes), (10.0, Some(7)));
        assert_eq!(row(None, &now, Duration::from_secs(1)).in_per_s, 0.0);
    }

    #[test]
    fn a_bar_is_as_long_as_the_channel_is_full() {
        for (percent, text) in
            [(0.0, "··········▏0.0 %"), (35.0, "███▌······▏35.0 %"), (99.9, "██████████▏99.9 %"), (140.0, "██████████▏140.0 %")]
        {
            assert_eq!(bar(percent), text);
        }
    }
}
