//! A request for a consumer instance that another replica holds goes there, whole, and its answer comes back.
//!
//! One for an instance that is held here is served at once and looks at nothing. What is known of the others is believed until it turns out to be
//! wrong: an owner that does not hold the instance says so (421), and one that does not answer is looked for in the directory, and
//! replaced if it is still the one that is named there. Since every operation can be done twice (`session/sharing.rs`), the request is then
//! done here, although the owner may have done it before it broke off.
//!
//! A request is forwarded once: it carries a header that says so, and its answer one that says that it comes from a bridge. Somebody else
//! at the owner's address, or a bridge that refuses everything because it stops, does not set it, and counts as gone.
//!
//! Bounds: the body (`limits.body_bytes_max`), the connect (`consume.forward_connect_timeout`), the answer (`consume.request_timeout_max` and a little), the
//! rounds of claims that others win. An owner whose host vanished keeps its connections open: every second of waiting it is connected to anew.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest as _, RawPathParams, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{
    select,
    time::{Instant, sleep},
};

use super::{App, consume};
use crate::{
    config,
    error::{BridgeError, Code, Result},
    session::{Place, answers_at, instance_not_found},
};

/// On requests: the address of the replica that forwards it. On answers: the address of the one that holds the instance.
const FORWARDED: HeaderName = HeaderName::from_static("millrace-forwarded");
/// Concern one connection alone.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Claims in a row that others may win.
const ROUNDS_MAX: usize = 6;
/// How often an owner that has not answered yet is connected to anew.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Beyond the longest wait for records.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// The kit's listeners close a connection without requests after 60 s or more.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Connections to the other replicas. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forward {
    client: Client<HttpConnector, Body>,
    connect_timeout: Duration,
    answer_timeout: Duration,
}

/// Why another replica did not answer for an instance.
enum Refused {
    /// It is there, and does not hold it.
    NotHeld,
    /// It does not answer, or no bridge does.
    Gone(String),
}

impl Forward {
    pub(crate) fn new(config: &config::Consume) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.forward_connect_timeout));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(config.forward_idle_max)
            .build(connector);
        Self { client, connect_timeout: config.forward_connect_timeout, answer_timeout: config.request_timeout_max + ANSWER_TIME }
    }

    async fn send(&self, owner: &str, me: &str, parts: &Parts, body: Bytes) -> Result<Response, Refused> {
        let gone = |reason: &dyn std::fmt::Display| Refused::Gone(reason.to_string());
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("{owner}{path}").parse().map_err(|error| gone(&error))?;
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = end_to_end(parts.headers.clone());
        // It is sent as one piece.
        request.headers_mut().remove(header::CONTENT_LENGTH);
        request.headers_mut().insert(FORWARDED, HeaderValue::try_from(me).map_err(|error| gone(&error))?);
        let mut answer = std::pin::pin!(self.client.request(request));
        let until = Instant::now() + self.answer_timeout;
        let answer = loop {
            select! {
                answer = &mut answer => break answer.map_err(|error| gone(&error))?,
                () = sleep(PROBE_INTERVAL) => {}
            }
            if !answers_at(owner, self.connect_timeout).await {
                return Err(Refused::Gone("it takes no connections any more".to_owned()));
            }
            if Instant::now() >= until {
                return Err(Refused::Gone(format!("no answer within {:?}", self.answer_timeout)));
            }
        };
        let (mut parts, body) = answer.into_parts();
        if parts.headers.remove(FORWARDED).is_none() {
            return Err(Refused::Gone(format!("{} from somebody who holds no consumers", parts.status)));
        }
        if parts.status == StatusCode::MISDIRECTED_REQUEST {
            return Err(Refused::NotHeld);
        }
        parts.headers = end_to_end(parts.headers);
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    headers
}

/// Around every operation of a consumer instance.
pub(super) async fn hand_over(State(app): State<App>, params: RawPathParams, request: Request, next: Next) -> Response {
    if app.sessions.directory().is_none() {
        return next.run(request).await;
    }
    let param = |name: &str| params.iter().find(|(of, _)| *of == name).map_or("", |(_, value)| value).to_owned();
    let (group, name) = (param("group"), param("instance"));
    let (parts, body) = request.into_parts();
    // Whoever answers it, it may have to be sent again.
    let body = match Bytes::from_request(Request::from_parts(parts.clone(), body), &app).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    let is_forwarded = parts.headers.contains_key(FORWARDED);
    let handing = Handing { app: &app, group: &group, name: &name, parts, body, is_forwarded };
    let mut answer = handing.answer(next).await.unwrap_or_else(IntoResponse::into_response);
    if is_forwarded && let Some(me) = app.sessions.directory().and_then(|directory| HeaderValue::try_from(directory.me()).ok()) {
        answer.headers_mut().insert(FORWARDED, me);
    }
    answer
}

struct Handing<'a> {
    app: &'a App,
    group: &'a str,
    name: &'a str,
    parts: Parts,
    body: Bytes,
    is_forwarded: bool,
}

impl Handing<'_> {
    async fn answer(self, next: Next) -> Result<Response> {
        let Self { app, group, name, .. } = self;
        let me = app.sessions.directory().map_or("", |directory| directory.me());
        // The turn whose owner did not answer for it.
        let mut refused = None;
        let mut broke_off = false;
        for _ in 0..ROUNDS_MAX {
            let (turn, entry) = match app.sessions.find(group, name, refused.is_some()).await? {
                Place::Here(session) => {
                    let request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
                    let answer = next.clone().run(request).await;
                    if !is_doubtful(&answer) {
                        return Ok(answer);
                    }
                    if app.sessions.lost(&session).await {
                        continue;
                    }
                    let is_missing = answer.extensions().get::<BridgeError>().is_some_and(|error| error.code == Code::InstanceNotFound);
                    if is_missing && session.is_shared() {
                        // The directory has it still: it was given up here, to go on elsewhere.
                        return Err(BridgeError::new(
                            Code::Unavailable,
                            "the bridge is stopping; another one, or this one after its restart, goes on",
                        ));
                    }
                    return Ok(answer);
                }
                Place::Nowhere if broke_off && self.is_deletion() => return Ok(StatusCode::NO_CONTENT.into_response()),
                Place::Nowhere => return Err(instance_not_found(group, name)),
                Place::There(turn, entry) => (turn, entry),
            };
            let is_ours = entry.owner == me;
            if is_ours && refused.is_none() {
                // This process was started again; what it knows may be old.
                refused = Some(0);
                continue;
            }
            if !is_ours && self.is_forwarded {
                return Err(BridgeError::new(
                    Code::Misdirected,
                    format!("instance {name:?} of group {group:?} is held by {}", entry.owner),
                ));
            }
            if !is_ours && refused != Some(turn) {
                metrics::counter!("millrace_bridge_forwarded_requests_total").increment(1);
                match app.forward.send(&entry.owner, me, &self.parts, self.body.clone()).await {
                    Ok(answer) => return Ok(answer),
                    Err(Refused::NotHeld) => {}
                    Err(Refused::Gone(reason)) => {
                        broke_off = true;
                        metrics::counter!("millrace_bridge_forward_failures_total").increment(1);
                        tracing::debug!(group, instance = name, owner = entry.owner, reason, "the owner of a consumer does not answer");
                    }
                }
                refused = Some(turn);
                continue;
            }
            if self.is_deletion() && app.sessions.directory().is_some_and(|directory| directory.store() != entry.store) {
                if app.sessions.strike_out(group, name, turn).await? {
                    return Ok(StatusCode::NO_CONTENT.into_response());
                }
                continue;
            }
            let (_, settings) = consume::settings(entry.fields.clone(), &app.config)?;
            // Whoever has won: the next round finds it.
            app.sessions.take_over(group, name, turn, &entry, settings).await?;
        }
        Err(BridgeError::new(Code::Unavailable, format!("instance {name:?} of group {group:?} moves from bridge to bridge; try again")))
    }

    fn is_deletion(&self) -> bool {
        self.parts.method == Method::DELETE && !self.parts.uri.path().ends_with("/subscription")
    }
}

/// An answer that may be so because the instance is another replica's by now.
fn is_doubtful(answer: &Response) -> bool {
    matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::CONFLICT) || answer.status().is_server_error()
}
