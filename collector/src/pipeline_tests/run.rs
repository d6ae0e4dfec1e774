//! One test: its events through the source's own interceptors and selector into channels of memory, and from there through
//! what the sinks make of them. No network, no files, no clock but the test's.

use std::{sync::Arc, time::Duration};

use service_kit::kafka::OutRecord;
use tokio::sync::watch;

use super::file::{Expect, Expected, Loaded, Test};
use crate::channel::Channel;
use crate::channel::memory::{Limits, MemoryChannel};
use crate::counters::{SourceCounters, unix_ms};
use crate::event::Event;
use crate::flume_conf::component::Setting;
use crate::flume_conf::{Component, Plan};
use crate::interceptor::{fixed, host, timestamp};
use crate::sink::record::{Maker, Poison};
use crate::sink::{bridge, hdfs, kafka};
use crate::source::{Output, Route};

/// One way in which an expectation is not met.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    pub line: usize,
    /// `channel c1, event 2`
    pub place: String,
    /// What differs: `body`, `header level`, `events`.
    pub what: String,
    pub expected: String,
    pub seen: String,
}

/// A plan whose clock and host are those of the test file.
pub fn pinned(mut plan: Plan, clock: Option<i64>, host: Option<&str>) -> Plan {
    for part in plan.sources.iter_mut().flat_map(|source| &mut source.interceptors) {
        let pin = |header: &str, value: String, part: &Component| {
            // What these two do with a fixed value is what `static` does.
            let mut pinned = Component::new(&fixed::KIND, &part.name, "static");
            let settings = [("key", header.to_owned()), ("value", value), ("preserveExisting", part.text("preserveExisting").to_owned())];
            pinned.settings = settings.map(|(key, value)| (key.to_owned(), Setting { value, place: None })).into();
            pinned
        };
        if let (Some(clock), true) = (clock, std::ptr::eq(part.kind, &timestamp::KIND)) {
            *part = pin(part.text("headerName"), clock.to_string(), part);
        } else if let (Some(host), true) = (host, std::ptr::eq(part.kind, &host::KIND)) {
            *part = pin(part.text("hostHeader"), host.to_owned(), part);
        }
    }
    plan
}

/// The source a test means; or what is wrong.
pub fn source_of<'a>(plan: &'a Plan, test: &Test) -> Result<&'a Component, String> {
    let names = || plan.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
    match (&test.source, plan.sources.as_slice()) {
        (Some(name), sources) => {
            sources.iter().find(|source| source.name == *name).ok_or_else(|| format!("there is no source `{name}`; there are {}", names()))
        }
        (None, [source]) => Ok(source),
        (None, _) => Err(format!("give its source; there are {}", names())),
    }
}

/// The property with the topic of a sink that makes records.
fn topic_key(sink: &Component) -> Option<&'static str> {
    [(&kafka::KIND, "kafka.topic"), (&bridge::KIND, "topic")]
        .into_iter()
        .find(|(kind, _)| std::ptr::eq(sink.kind, *kind))
        .map(|(_, key)| key)
}

/// What an expectation names but the agent does not have.
pub fn fault_of(plan: &Plan, source: &Component, expect: &Expect) -> Option<String> {
    if let Some(channel) = &expect.channel {
        let missing = || format!("`{channel}` is not one of the source's channels ({})", source.channels.join(", "));
        return (!source.channels.contains(channel)).then(missing);
    }
    let name = expect.sink.as_deref().unwrap_or_default();
    let Some(sink) = plan.sinks.iter().find(|sink| sink.name == name) else {
        let names: Vec<&str> = plan.sinks.iter().map(|sink| sink.name.as_str()).collect();
        return Some(format!("there is no sink `{name}`; there are {}", names.join(", ")));
    };
    if !sink.channels.iter().any(|channel| source.channels.contains(channel)) {
        return Some(format!("sink `{name}` reads none of the source's channels ({})", source.channels.join(", ")));
    }
    let said = |is: fn(&Expected) -> bool| expect.events.iter().any(|event| is(event.get_ref()));
    if said(Expected::is_of_record) && topic_key(sink).is_none() {
        return Some(format!(
            "sink `{name}` is neither a Kafka nor a bridge sink: it has no topic, partition, key, timestamp or dead letters"
        ));
    }
    if said(|event| event.path.is_some()) && !std::ptr::eq(sink.kind, &hdfs::KIND) {
        return Some(format!("sink `{name}` is no HDFS sink: it has no path"));
    }
    None
}

/// Runs one test; every way in which it fails.
pub async fn run(loaded: &Loaded, plan: &Plan, test: &toml::Spanned<Test>) -> anyhow::Result<Vec<Failure>> {
    let line = loaded.line(test);
    let test = test.get_ref();
    let source = source_of(plan, test).map_err(|fault| anyhow::anyhow!(fault))?;
    let events: Vec<Event> = if test.lines.is_empty() {
        let headers = |given: &super::file::Given| (!given.headers.is_empty()).then(|| Arc::new(given.headers.clone()));
        test.input.iter().map(|given| Event { headers: headers(given), ..Event::new(given.body.clone()) }).collect()
    } else {
        test.lines.iter().map(|line| Event::new(line.clone())).collect()
    };
    let room = events.len();
    let limits = || Limits { events_max: room, transaction_max: room, bytes_max: usize::MAX, keep_alive: Duration::ZERO };
    let channels: Vec<Arc<dyn Channel>> =
        source.channels.iter().map(|_| Arc::new(MemoryChannel::new(limits())) as Arc<dyn Channel>).collect();
    let (_resume, paused) = watch::channel(false);
    let counters = SourceCounters::new(&source.name);
    let output = Output::new(&source.name, channels.clone(), counters, paused, Arc::default()).through(Route::build(source)?);
    output.deliver(events).await;
    let mut came: Vec<Vec<Event>> = Vec::new();
    for channel in channels {
        let taken = channel.take(room, Duration::ZERO).await;
        came.push(taken.events().to_vec());
        taken.commit();
    }
    let in_channel = |name: &str| source.channels.iter().position(|channel| channel == name).and_then(|at| came.get(at));
    let mut failures = Vec::new();
    if test.none {
        for (name, events) in source.channels.iter().zip(&came) {
            failures.extend(events.iter().map(|event| unexpected(line, &format!("channel {name}"), event)));
        }
    }
    for expect in &test.expect {
        let (line, expect) = (loaded.line(expect), expect.get_ref());
        let (place, sink) = match (&expect.channel, &expect.sink) {
            (Some(name), _) => (format!("channel {name}"), None),
            (None, name) => {
                let name = name.as_deref().unwrap_or_default();
                (format!("sink {name}"), plan.sinks.iter().find(|sink| sink.name == name))
            }
        };
        let read = |sink: &Component| sink.channels.iter().find_map(|name| in_channel(name));
        let seen = expect.channel.as_deref().and_then(in_channel).or_else(|| sink.and_then(read)).map_or(&[][..], Vec::as_slice);
        let now = loaded.file.clock.unwrap_or_else(unix_ms);
        compare(loaded, &Place { line, place, sink, now }, expect, seen, &mut failures);
    }
    Ok(failures)
}

/// Where events came to.
struct Place<'a> {
    line: usize,
    place: String,
    sink: Option<&'a Component>,
    now: i64,
}

fn compare(loaded: &Loaded, at: &Place<'_>, expect: &Expect, seen: &[Event], failures: &mut Vec<Failure>) {
    if let Some(count) = expect.count
        && count != seen.len()
    {
        let (place, what) = (at.place.clone(), "events".to_owned());
        failures.push(Failure { line: at.line, place, what, expected: count.to_string(), seen: seen.len().to_string() });
    }
    if expect.none || (expect.count.is_none() && !expect.events.is_empty()) {
        // What fits at the beginning and at the end is told apart from what does not in between.
        let said = &expect.events;
        let fits = |(expected, event): &(&toml::Spanned<Expected>, &Event)| differences(at, expected.get_ref(), event).is_empty();
        let head = said.iter().zip(seen).take_while(fits).count();
        let rest = (said.len() - head).min(seen.len() - head);
        let tail = said.iter().rev().zip(seen.iter().rev()).take(rest).take_while(fits).count();
        let (said, middle) = (&said[head..said.len() - tail], &seen[head..seen.len() - tail]);
        for (number, pair) in (head + 1..).zip(said.iter().zip(middle)) {
            tell(loaded, at, number, pair, failures);
        }
        for (number, expected) in (head + 1..).zip(said).skip(middle.len()) {
            let place = format!("{}, event {number}", at.place);
            let expected = (loaded.line(expected), described(expected.get_ref()));
            failures.push(Failure { line: expected.0, place, what: "event".into(), expected: expected.1, seen: "nothing".into() });
        }
        failures.extend(middle.iter().skip(said.len()).map(|event| unexpected(at.line, &at.place, event)));
    } else {
        // With a count, the events that are named are the first ones.
        for (number, pair) in (1..).zip(expect.events.iter().zip(seen)) {
            tell(loaded, at, number, pair, failures);
        }
    }
}

fn tell(loaded: &Loaded, at: &Place<'_>, number: usize, pair: (&toml::Spanned<Expected>, &Event), failures: &mut Vec<Failure>) {
    let (expected, event) = pair;
    let (line, place) = (loaded.line(expected), format!("{}, event {number}", at.place));
    let failure = |(what, expected, seen)| Failure { line, place: place.clone(), what, expected, seen };
    failures.extend(differences(at, expected.get_ref(), event).into_iter().map(failure));
}

fn unexpected(line: usize, place: &str, event: &Event) -> Failure {
    Failure { line, place: place.to_owned(), what: "event".into(), expected: "nothing".into(), seen: shown(event) }
}

/// `"body" {a="1"}`
fn shown(event: &Event) -> String {
    let headers: Vec<String> =
        event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value:?}")).collect();
    let headers = if headers.is_empty() { String::new() } else { format!(" {{{}}}", headers.join(", ")) };
    format!("{:?}{headers}", body(event))
}

fn body(event: &Event) -> String {
    String::from_utf8_lossy(&event.body).into_owned()
}

fn described(expected: &Expected) -> String {
    match (&expected.body, &expected.body_matches) {
        (Some(body), _) => format!("{body:?}"),
        (None, Some(pattern)) => format!("a body that matches {}", pattern.text),
        (None, None) => "an event".into(),
    }
}

/// What is expected and what is seen, of everything that differs.
fn differences(at: &Place<'_>, expected: &Expected, event: &Event) -> Vec<(String, String, String)> {
    let mut told = Vec::new();
    let mut check = |fits: bool, what: &str, expected: String, seen: Option<String>| {
        if !fits {
            told.push((what.to_owned(), expected, seen.unwrap_or_else(|| "nothing".to_owned())));
        }
    };
    let quoted = |text: &str| format!("{text:?}");
    let body = body(event);
    if let Some(text) = &expected.body {
        check(text.as_bytes() == event.body, "body", quoted(text), Some(quoted(&body)));
    }
    if let Some(pattern) = &expected.body_matches {
        check(pattern.matches(&body), "body", format!("matches {}", pattern.text), Some(quoted(&body)));
    }
    for (name, value) in &expected.headers {
        let seen = event.header(name);
        check(seen == Some(value), &format!("header {name}"), quoted(value), seen.map(quoted));
    }
    for (name, pattern) in &expected.headers_match {
        let seen = event.header(name);
        let fits = seen.is_some_and(|value| pattern.matches(value));
        check(fits, &format!("header {name}"), format!("matches {}", pattern.text), seen.map(quoted));
    }
    for name in &expected.headers_absent {
        let seen = event.header(name);
        check(seen.is_none(), &format!("header {name}"), "nothing".into(), seen.map(quoted));
    }
    let Some(sink) = at.sink else { return told };
    if let Some(path) = &expected.path {
        let (fits, seen) = match hdfs::path_of(sink, event, at.now) {
            Ok(seen) => (seen == *path, quoted(&seen)),
            Err(fault) => (false, fault),
        };
        check(fits, "path", quoted(path), Some(seen));
    }
    if let Some(topic_key) = topic_key(sink) {
        match Maker::of(sink, topic_key).record_at(event, || at.now) {
            Ok(record) => of_record(&record, expected, &mut check),
            Err(Poison(reason)) => {
                let (fits, what) = match &expected.dead_letter {
                    Some(pattern) => (pattern.matches(&reason), format!("matches {}", pattern.text)),
                    None => (false, "a record".into()),
                };
                check(fits, "dead letter", what, Some(reason));
            }
        }
    }
    told
}

fn of_record(record: &OutRecord, expected: &Expected, check: &mut impl FnMut(bool, &str, String, Option<String>)) {
    let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
    if let Some(pattern) = &expected.dead_letter {
        check(false, "dead letter", format!("matches {}", pattern.text), Some(format!("a record to {}", record.topic)));
    }
    if let Some(topic) = &expected.topic {
        check(**topic == *record.topic, "topic", format!("{topic:?}"), Some(format!("{:?}", record.topic)));
    }
    if let Some(partition) = expected.partition {
        let seen = record.partition.map(|partition| partition.to_string());
        check(record.partition == Some(partition), "partition", partition.to_string(), seen);
    }
    if let Some(key) = &expected.key {
        let seen = record.key.as_deref();
        check(seen == Some(key.as_bytes()), "key", format!("{key:?}"), seen.map(text));
    }
    if let Some(time) = expected.timestamp {
        check(record.timestamp_ms == Some(time), "timestamp", time.to_string(), record.timestamp_ms.map(|time| time.to_string()));
    }
    for (name, value) in &expected.record_headers {
        let seen = record.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_ref());
        check(seen == Some(value.as_bytes()), &format!("record header {name}"), format!("{value:?}"), seen.map(text));
    }
}
