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

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

use self::json::Encoding;
use super::web::{CONNECTIONS_MAX, Puts, REQUESTS_MAX, RETRY_AFTER, Refused, Web};
use super::{Output, Setup, Source, Stop};
use crate::channel::PutError;
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::tls;

const JSON: &str = "org.apache.flume.source.http.JSONHandler";
const PARAMETERS: &str = "org.apache.flume.source.http.BLOBHandler";
const BLOB: &str = "org.apache.flume.sink.solr.morphline.BlobHandler";
const JETTY: &str = "Accepted; there is no Jetty here. See `maxConnections` and `maxRequestBytes`.";

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("http"),
    class: Some("org.apache.flume.source.http.HTTPSource"),
    doc: "Events over HTTP: POST (or GET with a body) to any path. One request is one transaction: 200 when every channel has its events, 400 for a body that is not understood, 503 when the channel is full. Bodies may be gzip.",
    properties: tls::with_listener![
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
        CONNECTIONS_MAX,
        REQUESTS_MAX,
    ],
    deprecated: &[("enableSSL", "ssl"), ("keystorePassword", "keystore-password"), ("excludeProtocols", "exclude-protocols")],
    misspelt: &[("host", "bind")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let mut findings = tls::review_server(component, strict);
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
    let handler = Handler::of(component).with_context(|| format!("no handler `{}`", component.text("handler")))?;
    let (blob, request) = (component.count("handler.maxBlobLength"), component.count("maxRequestBytes"));
    let blob_counts =
        handler == Handler::Blob && (component.set("handler.maxBlobLength").is_some() || component.set("maxRequestBytes").is_none());
    let reader = Reader { handler, bytes_max: if blob_counts { blob } else { request }, strict: setup.strict };
    Ok(Box::new(Http { web: Web::build(component, reader.bytes_max, None, &setup)?, reader }))
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
    web: Web,
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
        let Self { web, reader } = *self;
        web.run(out, stop, |puts| Router::new().fallback(answer).with_state(Arc::new(Serving { reader, puts }))).await
    }
}

struct Serving {
    reader: Reader,
    puts: Puts,
}

async fn answer(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    if request.method() != Method::POST && request.method() != Method::GET {
        return ([(header::ALLOW, "POST, GET")], refuse(StatusCode::METHOD_NOT_ALLOWED, "send events by POST")).into_response();
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, serving.reader.bytes_max).await else {
        // The listener knows why and answers instead.
        return refuse(StatusCode::BAD_REQUEST, "the body did not arrive whole");
    };
    let events = match serving.reader.handler.events(parts.uri.query(), &parts.headers, body) {
        Ok(events) => events,
        Err(fault) => {
            serving.puts.out.counters.read_failures.add(1);
            tracing::debug!(source = serving.puts.out.name(), fault, "bad request");
            return refuse(StatusCode::BAD_REQUEST, &format!("Bad request from client. {fault}"));
        }
    };
    let Err(refused) = serving.puts.put(events).await else { return StatusCode::OK.into_response() };
    let why = match refused {
        Refused::Channel(error @ PutError::BatchTooLarge { .. }) if !serving.reader.strict => {
            let why = format!("{error}; send fewer events in a request, or raise the channel's transactionCapacity");
            return refuse(StatusCode::PAYLOAD_TOO_LARGE, &why);
        }
        Refused::Broken => return refuse(StatusCode::INTERNAL_SERVER_ERROR, "Unexpected error while appending event to channel."),
        Refused::Channel(error) => format!("Error appending event to channel. Channel might be full. {error}"),
        Refused::Paused => refused.to_string(),
    };
    let retry = [(header::RETRY_AFTER, RETRY_AFTER.as_secs().to_string())];
    (retry, refuse(StatusCode::SERVICE_UNAVAILABLE, &why)).into_response()
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
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
        let state = Arc::new(Serving { reader: Reader { handler, bytes_max: 1000, strict }, puts: Puts::into_output(out) });
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
