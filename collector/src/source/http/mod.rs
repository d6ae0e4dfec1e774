//! `http`: events by POST, one transaction a request.
//!
//! | answer | when |
//! |---|---|
//! | 200 | every channel has the events |
//! | 400 | the body is not what the handler takes |
//! | 413 | larger than `maxRequestBytes`, or more events than a transaction holds (Flume: 503 for ever) |
//! | 503 | the channel is full; nothing was taken |
//! | 408, 415, 431, 504 | the limits that every listener of Millrace has |

pub mod json;

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use service_kit::{config::LimitsConfig, listen::serve_http};
use tokio_util::task::TaskTracker;

use self::json::Encoding;
use super::server::Server;
use super::{Output, Setup, Source, Stop};
use crate::channel::PutError;
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};

const JSON: &str = "org.apache.flume.source.http.JSONHandler";
const PARAMETERS: &str = "org.apache.flume.source.http.BLOBHandler";
const BLOB: &str = "org.apache.flume.sink.solr.morphline.BlobHandler";
const JETTY: &str = "Accepted; there is no Jetty here. See `maxConnections` and `maxRequestBytes`.";

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("http"),
    class: Some("org.apache.flume.source.http.HTTPSource"),
    doc: "Events over HTTP: POST (or GET with a body) to any path. One request is one transaction: 200 when every channel has its events, 400 for a body that is not understood, 503 when the channel is full. Bodies may be gzip.",
    properties: &[
        Property::text("bind", Some("0.0.0.0"), "Address to listen on."),
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        Property::text(
            "handler",
            Some(JSON),
            "What reads a request. `org.apache.flume.source.http.JSONHandler`: an array of events. `org.apache.flume.sink.solr.morphline.BlobHandler`: the whole body is an event, the URL's parameters and `Content-Type` are headers. `org.apache.flume.source.http.BLOBHandler`: the same without `Content-Type`.",
        ),
        Property::integer(
            "handler.maxBlobLength",
            1,
            2_147_483_647,
            Some("100000000"),
            "BlobHandler: bytes of a body. (A longer one is refused with 413; Flume cuts it.)",
        ),
        Property::text("handler.mandatoryParameters", None, "BLOBHandler: parameters that a request must have, separated by commas."),
        Property::text("handler.*", None, "Accepted; the handlers have no other properties."),
        Property::text("QueuedThreadPool.*", None, JETTY),
        Property::text("HttpConfiguration.*", None, JETTY),
        Property::text("ServerConnector.*", None, JETTY),
        Property::integer(
            "maxRequestBytes",
            1024,
            2_147_483_647,
            Some("16777216"),
            "Bytes of a request's body, after decompression. Where a BlobHandler's `maxBlobLength` is set, that counts.",
        )
        .own(),
        Property::integer("maxConnections", 1, 65_536, Some("1024"), "Connections at a time; more are closed at once.").own(),
        Property::boolean("ssl", "false", "Speak TLS; not in this version of the source. Let a proxy do it."),
        Property::text("keystore", None, "For `ssl`."),
        Property::text("keystore-password", None, "For `ssl`."),
        Property::text("keystore-type", None, "For `ssl`."),
        Property::text("include-protocols", None, "For `ssl`."),
        Property::text("exclude-protocols", None, "For `ssl`."),
        Property::text("include-cipher-suites", None, "For `ssl`."),
        Property::text("exclude-cipher-suites", None, "For `ssl`."),
    ],
    deprecated: &[("enableSSL", "ssl"), ("keystorePassword", "keystore-password"), ("excludeProtocols", "exclude-protocols")],
    misspelt: &[("host", "bind")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if component.boolean("ssl") {
        let place = component.settings.get("ssl").and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("not-built", "the http source does not speak TLS in this version").maybe_at(place);
        let remedy = "let a proxy on this machine end TLS, and bind to 127.0.0.1";
        findings.push(finding.key(format!("{}.ssl", component.name)).flume("speaks TLS").remedy(remedy));
    }
    let handler = component.text("handler").trim();
    if Handler::of(component).is_some() {
        return findings;
    }
    let place = component.settings.get("handler").and_then(|setting| setting.place.as_ref());
    let near = crate::flume_conf::kinds::nearest(handler, [JSON, BLOB, PARAMETERS]);
    let remedy = near.map_or_else(|| format!("known here: {JSON}, {BLOB}, {PARAMETERS}"), |near| format!("did you mean `{near}`?"));
    let finding = Finding::error("unknown-type", format!("custom classes cannot be loaded: there is no handler `{handler}`"));
    findings.push(
        finding
            .maybe_at(place)
            .key(format!("{}.handler", component.name))
            .flume("drops the source, unless the class is on its path")
            .remedy(remedy),
    );
    findings
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let port = u16::try_from(component.integer("port")).context("port")?;
    let server = Server::bind(component, component.text("bind").trim(), port, &setup)?;
    let handler = Handler::of(component).with_context(|| format!("no handler `{}`", component.text("handler")))?;
    let (blob, request) = (component.count("handler.maxBlobLength"), component.count("maxRequestBytes"));
    let blob_counts =
        handler == Handler::Blob && (component.set("handler.maxBlobLength").is_some() || component.set("maxRequestBytes").is_none());
    Ok(Box::new(Http {
        server,
        connections_max: component.count("maxConnections"),
        reader: Reader { handler, bytes_max: if blob_counts { blob } else { request }, strict: setup.strict },
    }))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Handler {
    Json,
    Blob,
    /// With the mandatory ones.
    Parameters(Vec<String>),
}

impl Handler {
    fn of(component: &Component) -> Option<Self> {
        match component.text("handler").trim() {
            JSON => Some(Self::Json),
            BLOB => Some(Self::Blob),
            PARAMETERS => {
                let names = component.text("handler.mandatoryParameters").split(',').map(str::trim);
                Some(Self::Parameters(names.filter(|name| !name.is_empty()).map(str::to_owned).collect()))
            }
            _ => None,
        }
    }

    /// The error is for whoever sent it.
    fn events(&self, query: Option<&str>, headers: &HeaderMap, body: Bytes) -> Result<Vec<Event>, String> {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let mut named = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            named.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        match self {
            Self::Json => return json::events(&body, Encoding::of(content_type)?),
            Self::Blob => {
                if let Some(kind) = content_type {
                    named.entry("Content-Type".to_owned()).or_insert_with(|| kind.to_owned());
                }
            }
            Self::Parameters(mandatory) => {
                if let Some(missing) = mandatory.iter().find(|name| !named.contains_key(*name)) {
                    return Err(format!("the parameter {missing} is missing"));
                }
            }
        }
        Ok(vec![Event { headers: (!named.is_empty()).then(|| Arc::new(named)), ..Event::new(body) }])
    }
}

struct Http {
    server: Server,
    connections_max: usize,
    reader: Reader,
}

#[derive(Clone)]
struct Reader {
    handler: Handler,
    bytes_max: usize,
    strict: bool,
}

#[async_trait]
impl Source for Http {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let connections = NonZeroU32::new(u32::try_from(self.connections_max)?).context("maxConnections")?;
        let body_bytes = self.reader.bytes_max as u64;
        let defaults = LimitsConfig::default();
        let limits = LimitsConfig {
            connections_max: connections,
            connections_per_ip_max: connections,
            body_bytes_max: body_bytes,
            bodies_bytes_max: defaults.bodies_bytes_max.max(2 * body_bytes),
            ..defaults
        };
        let listener = self.server.listen(&out)?;
        let puts = TaskTracker::new();
        let state = Arc::new(Serving { reader: self.reader, out, puts: puts.clone() });
        let router = Router::new().fallback(answer).with_state(state);
        serve_http("source", listener, router, limits, stop.begin, stop.abandon.clone()).await?;
        // A client that has gone does not end its put.
        puts.close();
        tokio::select! {
            () = puts.wait() => {}
            () = stop.abandon.cancelled() => {}
        }
        Ok(())
    }
}

struct Serving {
    reader: Reader,
    out: Output,
    puts: TaskTracker,
}

/// Tells a refused client when to come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a request waits for a paused source.
const PAUSE_WAIT: Duration = Duration::from_secs(5);

async fn answer(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    if request.method() != Method::POST && request.method() != Method::GET {
        return ([(header::ALLOW, "POST, GET")], refuse(StatusCode::METHOD_NOT_ALLOWED, "send events by POST")).into_response();
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = body_of(body, serving.reader.bytes_max).await else {
        // The listener knows why and answers instead.
        return refuse(StatusCode::BAD_REQUEST, "the body did not arrive whole");
    };
    let counters = &serving.out.counters;
    let mut events = match serving.reader.handler.events(parts.uri.query(), &parts.headers, body) {
        Ok(events) => events,
        Err(fault) => {
            counters.read_failures.add(1);
            tracing::debug!(source = serving.out.name(), fault, "bad request");
            return refuse(StatusCode::BAD_REQUEST, &format!("Bad request from client. {fault}"));
        }
    };
    // A put that is waited for without bound would be answered before it is made.
    if tokio::time::timeout(PAUSE_WAIT, serving.out.unpaused()).await.is_err() {
        let retry = [(header::RETRY_AFTER, RETRY_AFTER.as_secs().to_string())];
        return (retry, refuse(StatusCode::SERVICE_UNAVAILABLE, "the source is paused")).into_response();
    }
    counters.batches_received.add(1);
    serving.out.trace(&mut events);
    // In a task of its own: a client that goes away must not end a put of which some channels have their part.
    let out = serving.out.clone();
    match serving.puts.spawn(async move { out.offer(events).await }).await {
        Ok(Ok(())) => {
            counters.batches_accepted.add(1);
            StatusCode::OK.into_response()
        }
        Ok(Err(error @ PutError::BatchTooLarge { .. })) if !serving.reader.strict => refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("{error}; send fewer events in a request, or raise the channel's transactionCapacity"),
        ),
        Ok(Err(error)) => {
            let retry = [(header::RETRY_AFTER, RETRY_AFTER.as_secs().to_string())];
            (retry, refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("Error appending event to channel. Channel might be full. {error}")))
                .into_response()
        }
        Err(error) => {
            tracing::error!(source = serving.out.name(), %error, "a put failed");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "Unexpected error while appending event to channel.")
        }
    }
}

async fn body_of(body: Body, max: usize) -> Result<Bytes, axum::Error> {
    axum::body::to_bytes(body, max).await
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::HeaderValue;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::*;
    use crate::channel::{
        Channel,
        memory::{Limits, MemoryChannel},
    };
    use crate::counters::SourceCounters;

    async fn ask(handler: Handler, strict: bool, requests: &[(Method, &str, &str)]) -> (Vec<u16>, Vec<(String, String)>) {
        let limits = Limits { events_max: 3, transaction_max: 2, bytes_max: usize::MAX, keep_alive: Duration::ZERO };
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(limits));
        let (_resume, paused) = watch::channel(false);
        let out = Output::new("h", vec![channel.clone()], SourceCounters::new("h"), paused, Arc::default());
        let state = Arc::new(Serving { reader: Reader { handler, bytes_max: 1000, strict }, out, puts: TaskTracker::new() });
        let router: Router = Router::new().fallback(answer).with_state(state);
        let mut statuses = Vec::new();
        for (method, uri, body) in requests {
            let request =
                Request::builder().method(method).uri(*uri).header(header::CONTENT_TYPE, "text/x").body(Body::from(body.to_string()));
            statuses.push(router.clone().oneshot(request.unwrap()).await.unwrap().status().as_u16());
        }
        let (mut events, mut taken) = (Vec::new(), channel.clone().take(2, Duration::ZERO).await);
        while !taken.is_empty() {
            events.extend(taken.events().iter().map(|event| {
                let headers = event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}"));
                (headers.collect::<Vec<_>>().join(" "), String::from_utf8_lossy(&event.body).into_owned())
            }));
            taken.commit();
            taken = channel.clone().take(2, Duration::ZERO).await;
        }
        (statuses, events)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[tokio::test]
    async fn a_request_is_a_transaction() {
        let two = r#"[{"body":"1"},{"headers":{"a":"b"},"body":"2"}]"#;
        let requests = [
            (Method::POST, "/", two),
            // Room for one: nothing is taken.
            (Method::POST, "/", two),
            (Method::POST, "/", r#"[{"body":"1"},{"body":"2"},{"body":"3"}]"#),
            (Method::POST, "/", "no json"),
            (Method::POST, "/", ""),
            (Method::POST, "/", "[]"),
            (Method::GET, "/any/path?x=y", r#"[{"body":"3"}]"#),
            (Method::PUT, "/", two),
            (Method::POST, "/", r#"[{"body":"4"}]"#),
        ];
        let (statuses, events) = ask(Handler::Json, false, &requests).await;
        assert_eq!(statuses, [200, 503, 413, 400, 400, 200, 200, 405, 503]);
        assert_eq!(events, pairs(&[("", "1"), ("a=b", "2"), ("", "3")]));
        assert_eq!(ask(Handler::Json, true, &requests[2..3]).await.0, [503]);
    }

    #[tokio::test]
    async fn a_blob_is_an_event_with_the_urls_parameters() {
        let requests = [(Method::POST, "/?name=a%20b+c&name=d&e", "not\njson"), (Method::POST, "/", "")];
        let (statuses, events) = ask(Handler::Blob, false, &requests).await;
        assert_eq!(statuses, [200, 200]);
        assert_eq!(events, pairs(&[("Content-Type=text/x e= name=a b c", "not\njson"), ("Content-Type=text/x", "")]));
        let (statuses, events) = ask(Handler::Parameters(vec!["name".into()]), false, &requests).await;
        assert_eq!((statuses, events), (vec![200, 400], pairs(&[("e= name=a b c", "not\njson")])));
    }

    #[test]
    fn an_unknown_charset_is_the_senders_fault() {
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=latin1"))]);
        assert!(Handler::Json.events(None, &headers, Bytes::from_static(b"[]")).unwrap_err().contains("latin1"));
    }
}
