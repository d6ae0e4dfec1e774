//! `millrace tap`: events as they pass, one line each, until Ctrl-C.

use std::{collections::BTreeMap, time::Duration};

use proto::control::v1::{
    TapDirection, TapEvent, TapRequest, TapResponse, TapStarted, collector_client::CollectorClient, tap_response::What,
};
use serde::Serialize;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::{
    cli::{Service, Session, duration},
    connect::Link,
    failure::{Exit, Failure},
    output::human,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Components whose output to show: `source.r1`, `channel.c1`, `sink.k1`, or a name alone; `*` and `?` stand for any letters and any one.
    /// A source's output is what its interceptors left, a channel's what a sink took, a sink's what it delivered. Without any, all.
    #[arg(value_name = "COMPONENT", value_delimiter = ',')]
    components: Vec<String>,
    /// Components whose input to show: what a source has read, what was put into a channel, what a sink took.
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    inputs_of: Vec<String>,
    /// The same as COMPONENT.
    #[arg(long, value_name = "COMPONENT", value_delimiter = ',')]
    outputs_of: Vec<String>,
    /// Events to show in each interval, at most.
    #[arg(long, short, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// The interval: `500ms`, `2s`, `1m`; a number alone is milliseconds. From 10ms to 1h.
    #[arg(long, short, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: u32,
    /// How to print an event; `--output json` means json.
    #[arg(long, short, value_enum, default_value = "text")]
    format: Shape,
    /// Print the headers, too; json and logfmt always have them.
    #[arg(long)]
    headers: bool,
    /// Only events whose body has this text in it.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    contains: String,
    /// Only events with this header. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Bytes of a body to show.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    body_bytes: u32,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// End after this time, e.g. `30s`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Say nothing on stderr of what was passed over.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    Text,
    Json,
    Logfmt,
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// In milliseconds.
fn interval(text: &str) -> Result<u32, String> {
    let bare = text.bytes().all(|byte| byte.is_ascii_digit());
    let time = duration(&if bare { format!("{text}ms") } else { text.to_owned() })?;
    let millis = u32::try_from(time.as_millis()).ok().filter(|millis| (10..=3_600_000).contains(millis));
    millis.ok_or_else(|| "expected 10ms to 1h".to_owned())
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let mut view = View { args: &args, session, left: args.max.unwrap_or(u64::MAX), passed_over: 0, told_at: None };
    let end = async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = tap(&args, session, &mut view) => ended,
        () = end => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(|error| Failure::failed(format!("cannot wait for Ctrl-C: {error}"))),
    };
    view.tell();
    ended
}

/// Begins again when the connection is gone: the collector ends those that grow old, and it may be started anew.
async fn tap(args: &Args, session: &Session, view: &mut View<'_>) -> Result<(), Failure> {
    let (mut link, mut stream) = begin(args, session, view.left).await?;
    loop {
        let lost = match stream.message().await {
            Ok(Some(TapResponse { what: Some(What::Started(started)) })) => {
                view.started(&started);
                continue;
            }
            Ok(Some(TapResponse { what: Some(What::Event(event)) })) => {
                if view.event(&event)? {
                    continue;
                }
                return Ok(());
            }
            // What a newer collector says and this program does not know.
            Ok(Some(TapResponse { what: None })) => continue,
            Ok(None) => Status::unavailable("it ended the tap"),
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal) => status,
            Err(status) => return Err(link.explain(&status)),
        };
        (link, stream) = again(args, session, view.left, &lost).await?;
    }
}

async fn begin(args: &Args, session: &Session, left: u64) -> Result<(Link, Streaming<TapResponse>), Failure> {
    let link = session.connect(Service::Collector).await?;
    let request = link.open_ended(TapRequest {
        inputs_of: args.inputs_of.clone(),
        outputs_of: args.components.iter().chain(&args.outputs_of).cloned().collect(),
        limit: args.limit,
        interval_ms: args.interval,
        events_max: if args.max.is_some() { left } else { 0 },
        contains: args.contains.clone().into_bytes(),
        headers: args.header.iter().cloned().collect(),
        body_bytes_max: args.body_bytes,
    });
    let stream = link.answer(CollectorClient::new(link.channel()).tap(request)).await?;
    Ok((link, stream))
}

/// Tries for as long as a call may take.
async fn again(args: &Args, session: &Session, left: u64, lost: &Status) -> Result<(Link, Streaming<TapResponse>), Failure> {
    if !args.quiet {
        session.out.note(&format!("the tap was interrupted: {}; beginning again", lost.message()));
    }
    let deadline = Instant::now() + session.timeout();
    loop {
        match begin(args, session, left).await {
            Err(failure) if failure.exit == Exit::Unreachable && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            begun => return begun,
        }
    }
}

struct View<'a> {
    args: &'a Args,
    session: &'a Session,
    left: u64,
    /// Not told yet.
    passed_over: u64,
    told_at: Option<Instant>,
}

#[derive(Serialize)]
struct Document<'a> {
    component: &'a str,
    /// in, out
    direction: &'static str,
    headers: BTreeMap<&'a str, &'a str>,
    /// Bytes that are not UTF-8 are replaced.
    body: std::borrow::Cow<'a, str>,
    /// Of the whole body.
    body_bytes: u64,
    /// Events since the one before that were not shown.
    passed_over: u64,
}

impl View<'_> {
    fn started(&self, started: &TapStarted) {
        for pattern in &started.unmatched {
            let now = if started.components.is_empty() { String::new() } else { format!("; tapping {}", started.components.join(", ")) };
            self.session.out.note(&format!("nothing is called `{pattern}` now; it is tapped when it comes{now}"));
        }
    }

    /// False when that was the last one.
    fn event(&mut self, event: &TapEvent) -> Result<bool, Failure> {
        self.passed_over += event.passed_over;
        let read = self.session.out.line(&self.line(event)?)?;
        if self.told_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            self.tell();
        }
        self.left = self.left.saturating_sub(1);
        Ok(read && self.left > 0)
    }

    fn tell(&mut self) {
        if self.passed_over > 0 && !self.args.quiet {
            let over = human::count(std::mem::take(&mut self.passed_over));
            self.session.out.note(&format!("{over} events were passed over; --limit and --interval show more, a filter fewer"));
            self.told_at = Some(Instant::now());
        }
    }

    fn line(&self, event: &TapEvent) -> Result<String, Failure> {
        let direction = if event.direction() == TapDirection::In { "in" } else { "out" };
        let headers: BTreeMap<&str, &str> = event.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let body = String::from_utf8_lossy(&event.body);
        let cut = event.body_bytes.saturating_sub(event.body.len() as u64);
        let shape = if self.session.out.people() { self.args.format } else { Shape::Json };
        Ok(match shape {
            Shape::Json => {
                let document = Document {
                    component: &event.component,
                    direction,
                    headers,
                    body,
                    body_bytes: event.body_bytes,
                    passed_over: event.passed_over,
                };
                serde_json::to_string(&document).map_err(|error| Failure::failed(format!("cannot write the event as JSON: {error}")))?
            }
            Shape::Logfmt => {
                let mut line = format!("component={} direction={direction}", quoted(&event.component));
                for (name, value) in headers {
                    let name: String =
                        name.chars().map(|c| if c.is_whitespace() || "=\"".contains(c) || c.is_control() { '_' } else { c }).collect();
                    line += &format!(" header.{name}={}", quoted(value));
                }
                line + &format!(" body={} body_bytes={}", quoted(&body), event.body_bytes)
            }
            Shape::Text => {
                let arrow = if direction == "in" { "←" } else { "→" };
                let mut line = format!("{} {arrow} ", human::line(&event.component));
                if self.args.headers {
                    let pairs: Vec<_> =
                        headers.iter().map(|(name, value)| format!("{}={}", human::line(name), human::line(value))).collect();
                    line += &format!("{{{}}} ", pairs.join(", "));
                }
                line += &human::line(&body);
                if cut > 0 {
                    line += &format!("… ({cut} bytes more)");
                }
                line
            }
        })
    }
}

/// A logfmt value: bare where that is certain to be read as one word.
fn quoted(text: &str) -> String {
    let bare = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "-_./:@+,".contains(c));
    if bare { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logfmt_values_are_one_word() {
        for (value, text) in [("a-b", "a-b"), ("", "\"\""), ("a b", "\"a b\""), ("say \"x\"\n", "\"say \\\"x\\\"\\n\""), ("k=v", "\"k=v\"")]
        {
            assert_eq!(quoted(value), text);
        }
    }

    #[test]
    fn an_interval_has_a_unit_or_is_milliseconds() {
        for (text, expected) in
            [("500ms", Some(500)), ("2s", Some(2000)), ("1m", Some(60_000)), ("250", Some(250)), ("1h", Some(3_600_000))]
        {
            assert_eq!(interval(text).ok(), expected, "{text}");
        }
        assert!(["9ms", "2h", "", "soon", "-1s"].iter().all(|text| interval(text).is_err()));
    }

    #[test]
    fn a_header_filter_is_a_pair() {
        assert_eq!(header("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(header("a").is_err() && header("=b").is_err());
    }
}
