//! `http`: every event as the body of a POST, one after another over a connection that is kept.
//!
//! The status code decides what becomes of the event, by Flume's rules: committed or rolled back, at once or after a while.
//! Rolled back means sent again until it is taken; order is kept. Two of Flume's readings lose or repeat events, and are
//! copied only by `--flume-strict`: there a success without a rule of its own is sent again for ever. An event that is
//! refused and not to be sent again is not dropped but put aside.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::dead_letter::{DIRECTORY, DeadLetters};
use super::{Input, Setup, Sink, send_span};
use crate::channel::Taken;
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::source::Stop;
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("http"),
    class: Some("org.apache.flume.sink.http.HttpSink"),
    doc: "Sends every event as the body of an HTTP POST. The status code decides whether it is committed or sent again.",
    properties: &[
        Property::text("endpoint", None, "Address to POST to: http://host:port/path, or https.").required(),
        Property::integer("connectTimeout", 1, 3_600_000, Some("5000"), "Milliseconds for a connection."),
        Property::integer("requestTimeout", 1, 3_600_000, Some("5000"), "Milliseconds for an answer."),
        Property::text("contentTypeHeader", Some("text/plain"), "Header Content-Type."),
        Property::text("acceptHeader", Some("text/plain"), "Header Accept."),
        Property::boolean(
            "defaultBackoff",
            "true",
            "Wait after an answer that no rule names. (A success waits only where a rule says so.)",
        ),
        Property::boolean(
            "defaultRollback",
            "true",
            "Send again after an answer that no rule names. (A success is sent again only where a rule says so.)",
        ),
        Property::boolean("defaultIncrementMetrics", "false", "Count an event as delivered after an answer that no rule names."),
        Property::boolean(
            "backoff.*",
            "false",
            "`backoff.503 = true`, `backoff.4XX = false`: wait after this code; a code counts over its hundred.",
        ),
        Property::boolean("rollback.*", "false", "`rollback.400 = false`: send again after this code."),
        Property::boolean("incrementMetrics.*", "false", "`incrementMetrics.2XX = true`: count as delivered after this code."),
        Property::integer("batchSize", 1, 100_000, Some("1"), "Events of one request, a newline after each.").own(),
        Property::text("header.*", None, "`header.<name> = <value>`: further headers of the request.").own(),
        Property {
            doc: "https: a PEM file of certificates to trust. Without it the system's authorities are trusted.",
            own: true,
            ..tls::TRUSTSTORE
        },
        tls::VERIFY_HOSTNAME,
        DIRECTORY,
    ],
    deprecated: &[],
    misspelt: &[("url", "endpoint"), ("connect-timeout", "connectTimeout"), ("request-timeout", "requestTimeout")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let place = |finding: Finding, key: &str| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        finding.maybe_at(place).key(format!("{}.{key}", component.name))
    };
    let mut findings = Vec::new();
    if component.set("endpoint").is_some()
        && let Err(error) = Target::of(component)
    {
        findings.push(
            place(Finding::error("wrong-value", format!("{error:#}")), "endpoint")
                .flume("drops the sink")
                .remedy("write http://host:port/path"),
        );
    }
    for key in component.settings.keys() {
        let Some((family, code)) =
            ["backoff.", "rollback.", "incrementMetrics."].iter().find_map(|family| Some((family, key.strip_prefix(family)?)))
        else {
            continue;
        };
        let digits = code.strip_suffix("XX").unwrap_or(code);
        let fits = digits.len() == if code.ends_with("XX") { 1 } else { 3 } && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !fits {
            let finding = Finding::warning("dead-key", format!("`{code}` is no status code, so the rule never counts"));
            findings.push(place(finding, key).flume("the same").remedy(format!("write e.g. {family}503 or {family}5XX")));
        }
    }
    for key in component.settings.keys().filter_map(|key| key.strip_prefix("header.")) {
        let value = component.text(&format!("header.{key}")).to_owned();
        if hyper::header::HeaderName::try_from(key).is_err() || HeaderValue::try_from(value).is_err() {
            findings.push(place(Finding::error("wrong-value", "no header can be so"), &format!("header.{key}")));
        }
    }
    for key in ["contentTypeHeader", "acceptHeader"] {
        if HeaderValue::from_str(component.text(key)).is_err() {
            findings.push(place(Finding::error("wrong-value", "no header can be so"), key));
        }
    }
    let rules = Rules::of(component, true);
    if rules.verdict(StatusCode::OK).rollback && !rules.named("rollback", StatusCode::OK) {
        let (message, remedy) = if strict {
            ("an event that was taken with 200 is sent again, for ever", "set rollback.2XX = false and backoff.2XX = false")
        } else {
            (
                "no rule says what a success means: it is committed",
                "set rollback.2XX = false and backoff.2XX = false, so that Flume does the same",
            )
        };
        findings
            .push(place(Finding::warning("success-rolled-back", message), "rollback.2XX").flume("sends it again, for ever").remedy(remedy));
    }
    findings
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let mut headers = vec![
        (CONTENT_TYPE, HeaderValue::from_str(component.text("contentTypeHeader"))?),
        (ACCEPT, HeaderValue::from_str(component.text("acceptHeader"))?),
    ];
    for (name, value) in component.below("header.") {
        headers.push((name.parse()?, HeaderValue::try_from(value)?));
    }
    Ok(Box::new(Http {
        batch: component.count("batchSize"),
        rules: Rules::of(component, setup.strict),
        dead: DeadLetters::of(component, &setup.state_dir),
        told_at: None,
        client: Client {
            target: Target::of(component)?,
            headers,
            connect_timeout: component.millis("connectTimeout"),
            request_timeout: component.millis("requestTimeout"),
            connection: None,
        },
    }))
}

struct Http {
    batch: usize,
    rules: Rules,
    dead: DeadLetters,
    client: Client,
    /// When a failure was last written to the log.
    told_at: Option<Instant>,
}

/// A server that refuses now and then does not fill the log.
const TELL_EVERY: Duration = Duration::from_secs(10);
const BACKOFF_STEP: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Between tries where no rule says to wait: a server that answers at once is not called ten thousand times a second.
const BACKOFF_LEAST: Duration = Duration::from_millis(10);

#[async_trait]
impl Sink for Http {
    async fn run(mut self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        loop {
            let taken = tokio::select! {
                taken = input.take(self.batch) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            tokio::select! {
                sent = self.send(taken, &input, &stop) => if !sent? {
                    return Ok(());
                },
                () = stop.abandon.cancelled() => return Ok(()),
            }
        }
    }
}

impl Http {
    /// Sends until the take is decided. False when it went back because the sink ends.
    async fn send(&mut self, taken: Taken, input: &Input, stop: &Stop) -> anyhow::Result<bool> {
        let Some(body) = body(taken.events()) else {
            // As in Flume, nothing is sent for a body of nothing.
            input.counters.skipped.add(taken.len() as u64);
            taken.commit();
            return Ok(true);
        };
        let events = taken.len() as u64;
        let mut failures = 0u32;
        loop {
            let span = send_span([&taken], input.name());
            let answer = self.client.post(body.clone(), input).await;
            drop(span);
            let (verdict, trouble) = match answer {
                Ok(status) => {
                    let verdict = self.rules.verdict(status);
                    if !verdict.rollback {
                        input.trouble(None);
                        if status.as_u16() >= 400 {
                            let reason = format!("{} answered {status}", self.client.target.uri);
                            let letters = taken.events().iter().map(|event| (event.clone(), reason.clone())).collect();
                            self.dead.put(letters, &input.counters.dead).await.context("dead letters")?;
                        }
                        if verdict.count {
                            input.counters.delivered.add(events);
                        }
                        taken.commit();
                        if verdict.backoff {
                            wait(BACKOFF_STEP, stop).await;
                        }
                        return Ok(true);
                    }
                    (verdict, format!("{} answered {status}", self.client.target.uri))
                }
                Err(error) => {
                    input.counters.connections_failed.add(1);
                    (Verdict { rollback: true, backoff: true, count: false }, format!("{error:#}"))
                }
            };
            failures += 1;
            if self.told_at.is_none_or(|at| at.elapsed() > TELL_EVERY) {
                self.told_at = Some(Instant::now());
                tracing::warn!(sink = input.name(), error = trouble, failures, "not delivered; trying again until it is");
            }
            if verdict.count {
                input.counters.delivered.add(events);
            }
            input.trouble(Some(trouble));
            input.counters.failed.add(events);
            input.counters.rollbacks.add(1);
            let pause = if verdict.backoff { (BACKOFF_STEP * failures).min(BACKOFF_MAX) } else { BACKOFF_LEAST };
            if !wait(pause, stop).await {
                taken.rollback();
                return Ok(false);
            }
        }
    }
}

/// False when the sink is told to end meanwhile.
async fn wait(pause: Duration, stop: &Stop) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => true,
        () = stop.begin.cancelled() => false,
    }
}

/// One body as it is, several with a newline after each; `None` where all are empty.
fn body(events: &[Event]) -> Option<Bytes> {
    if events.iter().all(|event| event.body.is_empty()) {
        return None;
    }
    if let [event] = events {
        return Some(event.body.clone());
    }
    let mut all = Vec::with_capacity(events.iter().map(|event| event.body.len() + 1).sum());
    for event in events.iter().filter(|event| !event.body.is_empty()) {
        all.extend_from_slice(&event.body);
        all.push(b'\n');
    }
    Some(all.into())
}

/// What a status code means.
struct Rules {
    strict: bool,
    /// Family → code or hundred (`4XX`) → set.
    named: BTreeMap<&'static str, BTreeMap<String, bool>>,
    default: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Verdict {
    rollback: bool,
    backoff: bool,
    /// As delivered.
    count: bool,
}

impl Rules {
    fn of(component: &Component, strict: bool) -> Self {
        let family = |name: &'static str| {
            let rules = component.below(&format!("{name}."));
            (name, rules.into_iter().map(|(code, value)| (code, value.trim().eq_ignore_ascii_case("true"))).collect())
        };
        Self {
            strict,
            named: [family("rollback"), family("backoff"), family("incrementMetrics")].into(),
            default: Verdict {
                rollback: component.boolean("defaultRollback"),
                backoff: component.boolean("defaultBackoff"),
                count: component.boolean("defaultIncrementMetrics"),
            },
        }
    }

    fn rule(&self, family: &str, status: StatusCode) -> Option<bool> {
        let rules = self.named.get(family)?;
        rules.get(status.as_str()).or_else(|| rules.get(&format!("{}XX", status.as_u16() / 100))).copied()
    }

    fn named(&self, family: &str, status: StatusCode) -> bool {
        self.rule(family, status).is_some()
    }

    fn verdict(&self, status: StatusCode) -> Verdict {
        let success = status.is_success() && !self.strict;
        let default = if success { Verdict { rollback: false, backoff: false, count: true } } else { self.default };
        Verdict {
            rollback: self.rule("rollback", status).unwrap_or(default.rollback),
            backoff: self.rule("backoff", status).unwrap_or(default.backoff),
            count: self.rule("incrementMetrics", status).unwrap_or(default.count),
        }
    }
}

/// Where to POST.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    header: HeaderValue,
    /// From `user:password@` in the address.
    authorization: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    fn of(component: &Component) -> anyhow::Result<Self> {
        let text = component.text("endpoint").trim();
        let uri: Uri = text.parse().with_context(|| format!("`{text}` is not an address"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => anyhow::bail!("`{text}` begins with neither http:// nor https://"),
        };
        let authority = uri.authority().with_context(|| format!("`{text}` names no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (user, plain) = authority.as_str().rsplit_once('@').map_or((None, authority.as_str()), |(user, plain)| (Some(user), plain));
        let authorization = user.map(|user| {
            use base64::Engine as _;
            HeaderValue::from_str(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)))
        });
        let tls = if https {
            let server = ServerName::try_from(host.clone()).with_context(|| format!("`{host}` cannot be a certificate's name"))?;
            Some((tls::client(component, &[])?, server))
        } else {
            None
        };
        Ok(Self {
            port: authority.port_u16().unwrap_or(if https { 443 } else { 80 }),
            header: HeaderValue::from_str(plain)?,
            authorization: authorization.transpose()?,
            host,
            tls,
            uri,
        })
    }
}

/// One connection, made anew when it is gone.
struct Client {
    target: Target,
    headers: Vec<(hyper::header::HeaderName, HeaderValue)>,
    connect_timeout: Duration,
    request_timeout: Duration,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// Of an answer's body that is read, so that the connection can be kept.
const ANSWER_BYTES_MAX: usize = 64 << 10;

impl Client {
    async fn post(&mut self, body: Bytes, input: &Input) -> anyhow::Result<StatusCode> {
        // A kept connection may have been closed by the server meanwhile; that is no failure.
        if let Some(mut kept) = self.connection.take().filter(|kept| !kept.is_closed())
            && kept.ready().await.is_ok()
        {
            match self.over(kept, body.clone()).await {
                Err(error) if error.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_canceled() || error.is_closed()) => {}
                answered => return answered,
            }
        }
        let connection = self.connect().await.with_context(|| format!("cannot connect to {}:{}", self.target.host, self.target.port))?;
        input.counters.connections_created.add(1);
        self.over(connection, body).await
    }

    async fn over(&mut self, mut connection: SendRequest<Full<Bytes>>, body: Bytes) -> anyhow::Result<StatusCode> {
        let path = self.target.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(Method::POST).uri(path).version(Version::HTTP_11).body(Full::new(body))?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.target.header.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("millrace-collector/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &self.target.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
        let exchange = async {
            let answer = connection.send_request(request).await?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            anyhow::Ok((status, read.is_ok()))
        };
        let answered = timeout(self.request_timeout, exchange).await;
        let (status, read) =
            answered.with_context(|| format!("no answer within {} ms (requestTimeout)", self.request_timeout.as_millis()))??;
        if read {
            self.connection = Some(connection);
        }
        Ok(status)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let connecting = async {
            let tcp = TcpStream::connect((self.target.host.as_str(), self.target.port)).await?;
            tcp.set_nodelay(true)?;
            match &self.target.tls {
                Some((tls, server)) => start(tls.connect(server.clone(), tcp).await.context("TLS")?).await,
                None => start(tcp).await,
            }
        };
        let connected = timeout(self.connect_timeout, connecting).await;
        connected.with_context(|| format!("no connection within {} ms (connectTimeout)", self.connect_timeout.as_millis()))?
    }
}

/// The connection's own task ends when it is closed or its sender is dropped.
async fn start<S>(stream: S) -> anyhow::Result<SendRequest<Full<Bytes>>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flume_conf::component::Setting;

    fn component(settings: &[(&str, &str)]) -> Component {
        let mut component = Component::new(&KIND, "k", "http");
        for (key, value) in settings {
            component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
        }
        component
    }

    /// The guide's example.
    const GUIDE: &[(&str, &str)] = &[
        ("defaultBackoff", "true"),
        ("defaultRollback", "true"),
        ("defaultIncrementMetrics", "false"),
        ("backoff.4XX", "false"),
        ("rollback.4XX", "false"),
        ("incrementMetrics.4XX", "true"),
        ("backoff.200", "false"),
        ("rollback.200", "false"),
        ("incrementMetrics.200", "true"),
    ];

    #[test]
    fn a_code_counts_over_its_hundred_and_a_hundred_over_the_default() {
        let (again, done) = ((true, true, false), (false, false, true));
        for (settings, strict, status, expected) in [
            (GUIDE, true, 200, done),
            (GUIDE, true, 404, done),
            (GUIDE, true, 503, again),
            (GUIDE, true, 204, again),
            (GUIDE, false, 204, done),
            (GUIDE, false, 302, again),
            (&[], true, 200, again),
            (&[], false, 200, done),
            (&[], false, 500, again),
            (&[("rollback.2XX", "true")], false, 201, (true, false, true)),
            (&[("rollback.429", "true"), ("rollback.4XX", "false")], false, 429, again),
            (&[("rollback.429", "true"), ("rollback.4XX", "false")], false, 400, (false, true, false)),
            (&[("defaultRollback", "false"), ("defaultBackoff", "false")], true, 500, (false, false, false)),
        ] {
            let verdict = Rules::of(&component(settings), strict).verdict(StatusCode::from_u16(status).unwrap());
            assert_eq!((verdict.rollback, verdict.backoff, verdict.count), expected, "{settings:?} {strict} {status}");
        }
    }

    #[test]
    fn bodies_go_as_they_are_or_as_lines() {
        for (events, expected) in
            [(&["a"][..], Some("a")), (&["a\n"], Some("a\n")), (&["a", "", "b"], Some("a\nb\n")), (&[""], None), (&["", ""], None)]
        {
            let events: Vec<Event> = events.iter().map(|body| Event::new(*body)).collect();
            assert_eq!(body(&events), expected.map(Bytes::from), "{expected:?}");
        }
    }

    #[test]
    fn slips_are_told() {
        let codes =
            |settings: &[(&str, &str)], strict| review(&component(settings), strict).into_iter().map(|f| f.code).collect::<Vec<_>>();
        let fine = [("endpoint", "http://h:80/p"), ("rollback.2XX", "false")];
        assert_eq!(codes(&fine, true), [""; 0]);
        assert_eq!(codes(&[("endpoint", "ftp://h"), fine[1]], true), ["wrong-value"]);
        assert_eq!(codes(&[("endpoint", "h:80"), fine[1]], true), ["wrong-value"]);
        assert_eq!(codes(&[fine[0], fine[1], ("backoff.50", "true"), ("backoff.5xx", "true")], true), ["dead-key", "dead-key"]);
        assert_eq!(codes(&[fine[0], fine[1], ("header.a b", "x")], true), ["wrong-value"]);
        assert_eq!(codes(&[fine[0]], false), ["success-rolled-back"]);
    }
}
