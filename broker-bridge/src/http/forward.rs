//! A request for a consumer instance that another replica holds goes there, whole, and its answer comes back.
//!
//! One for an instance that is held here is served at once and looks at nothing. What is known of the others is believed until it turns out to be
//! wrong: an owner that does not hold the instance says so (421), and one that is gone is looked for in the directory, and
//! replaced if it is still the one that is named there. Since every operation can be done twice (`session/sharing.rs`), the request is then
//! done here, although the owner may have done it before it broke off.
//!
//! Gone is an owner to which no connection comes about, or that says that it stops; or at its address there is somebody else: a request is
//! forwarded once, it carries a header that says so, and its answer one that says that it comes from a bridge, or from its listener
//! (`millrace-refused`). An owner that lives keeps its sessions, however busy it is. One that breaks off a request is asked once more: it may just have
//! closed a connection that nobody used.
//!
//! With authentication the replica that was asked first knows the caller; the owner is told who it is in a signed header, never by the credential
//! (`auth/hop.rs`), and asks its own policy. Where the others listen with TLS, their certificates are checked (`consume.forward_ca`), and this one's own
//! is shown to those that ask for one.
//!
//! A transaction is handed to the bridge that began it, which the directory names too; nobody goes on with one whose bridge is gone.
//!
//! Bounds: the body (`limits.body_bytes_max`), the connect (`consume.forward_connect_timeout`), the answer (`consume.request_timeout_max` and a little), the
//! rounds of claims that others win. An owner whose host vanished keeps its connections open: every second of waiting it is connected to anew.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest as _, RawPathParams, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;
use service_kit::{
    files::Watched,
    listen::{DRAINING, REFUSED},
};
use tokio::{
    select,
    time::{Instant, sleep},
};
use tokio_rustls::rustls::ClientConfig;

use super::{App, consume};
use crate::{
    auth::{self, Auth},
    config::BridgeConfig,
    error::{BridgeError, Code, Result},
    session::{Place, answers_at, instance_not_found},
    transaction::unknown,
    trust,
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
/// Well below the time after which a listener closes a connection without requests (`limits.header_timeout`, 10 s).
const IDLE_MAX: Duration = Duration::from_secs(5);

/// How often requests have the files of TLS looked at.
const LOOK: Duration = Duration::from_secs(1);

type Connections = Client<HttpsConnector<HttpConnector>, Body>;

/// Connections to the other replicas. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forward {
    config: Arc<BridgeConfig>,
    connections: Arc<Mutex<Kept>>,
}

struct Kept {
    client: Connections,
    files: Watched,
    looked: Instant,
}

/// Why another replica did not answer for an instance.
enum Refused {
    /// It is there, and does not hold it.
    NotHeld,
    /// It cannot be connected to, stops, or is no bridge.
    Gone(String),
    /// It is there, and broke off; whether it has done what it was asked to is not known.
    BrokeOff(String),
    /// It may be there, and cannot be asked, or does not answer.
    Unasked(String),
}

impl Forward {
    /// The error names what is wrong with the files of TLS.
    pub(crate) fn new(config: &BridgeConfig) -> Result<Self, String> {
        let tls = &config.http.tls;
        let files = Watched::new([config.consume.forward_ca.clone(), tls.cert.clone(), tls.key.clone()]);
        let ca = &config.consume.forward_ca;
        // What is wrong with the certificate, its listener tells; and who has no other bridges needs no authorities.
        let otherwise = |_| if ca.as_os_str().is_empty() { trust::nobody() } else { trust::client(ca, None) };
        let client = connections(config, trusted(config).or_else(otherwise)?);
        let kept = Kept { client, files, looked: Instant::now() };
        Ok(Self { config: Arc::new(config.clone()), connections: Arc::new(Mutex::new(kept)) })
    }

    fn client(&self) -> Connections {
        let mut kept = self.connections.lock();
        if kept.looked.elapsed() >= LOOK {
            kept.looked = Instant::now();
            if kept.files.changed() {
                match trusted(&self.config) {
                    Ok(trusted) => kept.client = connections(&self.config, trusted),
                    Err(error) => {
                        tracing::error!(error, "the changed TLS files cannot be used to reach other bridges; going on with those before")
                    }
                }
            }
        }
        kept.client.clone()
    }

    async fn send(&self, owner: &str, me: &str, auth: Option<&Auth>, parts: &Parts, body: Bytes) -> Result<Response, Refused> {
        let connect_timeout = self.config.consume.forward_connect_timeout;
        let answer_timeout = self.config.consume.request_timeout_max + ANSWER_TIME;
        let gone = |reason: &dyn std::fmt::Display| Refused::Gone(reason.to_string());
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri: Uri = format!("{owner}{path}").parse().map_err(|error| gone(&error))?;
        let mut headers = end_to_end(parts.headers.clone());
        // It is sent as one piece.
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(FORWARDED, HeaderValue::try_from(me).map_err(|error| gone(&error))?);
        if let Some(auth) = auth
            && !auth.hand_on(&parts.method, &parts.uri, &body, &mut headers)
        {
            if !answers_at(owner, connect_timeout).await {
                return Err(Refused::Gone("it takes no connections any more".to_owned()));
            }
            return Err(Refused::Unasked(
                "auth.forward_secret_file is not set, so no request is handed on; give all bridges the same".to_owned(),
            ));
        }
        let mut request = Request::new(Body::from(body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let mut answer = std::pin::pin!(self.client().request(request));
        let until = Instant::now() + answer_timeout;
        let answer = loop {
            select! {
                answer = &mut answer => break answer,
                () = sleep(PROBE_INTERVAL) => {}
            }
            if !answers_at(owner, connect_timeout).await {
                return Err(Refused::Gone("it takes no connections any more".to_owned()));
            }
            if Instant::now() >= until {
                return Err(Refused::Unasked(format!("it takes connections, and gave no answer within {answer_timeout:?}")));
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            // Somebody is there: what goes wrong then must not cost a replica that lives its sessions.
            Err(error) if answers_at(owner, connect_timeout).await => {
                let why = causes(&error);
                return Err(match error.is_connect() {
                    true if owner.starts_with("https:") => Refused::Unasked(format!("no TLS with it (consume.forward_ca): {why}")),
                    _ => Refused::BrokeOff(format!("it takes connections, and breaks them off: {why}")),
                });
            }
            Err(error) => return Err(gone(&causes(&error))),
        };
        let (mut parts, body) = answer.into_parts();
        if parts.headers.remove(FORWARDED).is_none() {
            return Err(match parts.headers.get(REFUSED).map(HeaderValue::as_bytes) {
                None => Refused::Gone(format!("{} from somebody who holds no consumers", parts.status)),
                Some(DRAINING) => Refused::Gone("it is stopping".to_owned()),
                Some(reason) => Refused::Unasked(format!("it answers {} ({})", parts.status, String::from_utf8_lossy(reason))),
            });
        }
        if parts.status == StatusCode::MISDIRECTED_REQUEST {
            return Err(Refused::NotHeld);
        }
        // The caller's credential was good here.
        if parts.status == StatusCode::UNAUTHORIZED && auth.is_some() {
            let reason = "it does not take what is handed on: give all bridges the same auth.forward_secret_file, and set their clocks";
            return Err(Refused::Unasked(reason.to_owned()));
        }
        parts.headers = end_to_end(parts.headers);
        Ok(Response::from_parts(parts, Body::new(body)))
    }
}

/// Whom the files trust, and what they show.
fn trusted(config: &BridgeConfig) -> Result<ClientConfig, String> {
    let (consume, tls) = (&config.consume, &config.http.tls);
    let secure = tls.is_on() || !consume.forward_ca.as_os_str().is_empty() || config.http.advertised.trim().starts_with("https:");
    let identity = tls.is_on().then_some((tls.cert.as_path(), tls.key.as_path()));
    if secure { trust::client(&consume.forward_ca, identity) } else { trust::nobody() }
}

fn connections(config: &BridgeConfig, trusted: ClientConfig) -> Connections {
    let consume = &config.consume;
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(consume.forward_connect_timeout));
    connector.set_nodelay(true);
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(trusted).https_or_http().enable_http1().wrap_connector(connector);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(consume.forward_idle_max)
        .build(connector)
}

/// An error with what lies behind it.
fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Around everything of a consumer instance, the guard too: tells the replica that has handed a request on that a bridge has answered it.
pub(super) async fn marked(State(app): State<App>, request: Request, next: Next) -> Response {
    let is_forwarded = request.headers().contains_key(FORWARDED);
    let mut answer = next.run(request).await;
    if is_forwarded && let Some(me) = app.sessions.directory().and_then(|directory| HeaderValue::try_from(directory.me()).ok()) {
        answer.headers_mut().insert(FORWARDED, me);
    }
    answer
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
    let param = |name: &str| params.iter().find(|(of, _)| *of == name).map_or("", |(_, value)| value).to_owned();
    let (group, name) = (param("group"), param("instance"));
    let (parts, body) = match whole(&app, request).await {
        Ok(whole) => whole,
        Err(refusal) => return refusal,
    };
    let is_forwarded = parts.headers.contains_key(FORWARDED);
    let handing = Handing { app: &app, group: &group, name: &name, parts, body, is_forwarded };
    handing.answer(next).await.unwrap_or_else(IntoResponse::into_response)
}

/// Whoever answers it, it may have to be sent again.
async fn whole(app: &App, request: Request) -> Result<(Parts, Bytes), Response> {
    let (parts, body) = request.into_parts();
    let body = Bytes::from_request(Request::from_parts(parts.clone(), body), app).await.map_err(IntoResponse::into_response)?;
    auth::check_body(&body).map_err(IntoResponse::into_response)?;
    Ok((parts, body))
}

/// Around every operation of a transaction. It is in the hands of the bridge that began it, and ends with that one.
pub(super) async fn hand_over_transaction(State(app): State<App>, params: RawPathParams, request: Request, next: Next) -> Response {
    let id = params.iter().find(|(of, _)| *of == "transaction").map_or("", |(_, value)| value).to_owned();
    let (parts, body) = match whole(&app, request).await {
        Ok(whole) => whole,
        Err(refusal) => return refusal,
    };
    match transaction_elsewhere(&app, &id, &parts, &body).await {
        Ok(Some(answer)) => answer,
        Ok(None) => next.run(Request::from_parts(parts, Body::from(body))).await,
        Err(error) => error.into_response(),
    }
}

/// The answer of the bridge that has it; `None` where that is this one, or none.
async fn transaction_elsewhere(app: &App, id: &str, parts: &Parts, body: &Bytes) -> Result<Option<Response>> {
    let Some(directory) = app.sessions.directory() else { return Ok(None) };
    if app.transactions.has(id) || parts.headers.contains_key(FORWARDED) {
        return Ok(None);
    }
    let Some(entry) = app.sessions.transaction(id).await?.filter(|entry| entry.owner != directory.me()) else { return Ok(None) };
    metrics::counter!("millrace_bridge_forwarded_requests_total").increment(1);
    let error = match app.forward.send(&entry.owner, directory.me(), app.auth.as_ref(), parts, body.clone()).await {
        Ok(answer) => return Ok(Some(answer)),
        Err(Refused::NotHeld) => unknown(id),
        Err(Refused::Gone(reason)) => {
            tracing::debug!(id, owner = entry.owner, reason, "the bridge of a transaction is gone");
            unknown(id)
        }
        Err(Refused::BrokeOff(reason) | Refused::Unasked(reason)) => {
            BridgeError::new(Code::Unavailable, format!("transaction {id:?} is held by {}: {reason}", entry.owner))
        }
    };
    metrics::counter!("millrace_bridge_forward_failures_total").increment(1);
    Err(error)
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
        // Whether an owner, or this one, may have done it before it broke off.
        let mut broke_off = false;
        let mut asked_again = false;
        for _ in 0..ROUNDS_MAX {
            let (turn, entry) = match app.sessions.find(group, name, refused.is_some()).await? {
                Place::Here(session) => {
                    let request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
                    let answer = next.clone().run(request).await;
                    if !is_doubtful(&answer) {
                        return Ok(answer);
                    }
                    if app.sessions.lost(&session).await {
                        broke_off |= answer.status().is_server_error();
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
                match app.forward.send(&entry.owner, me, app.auth.as_ref(), &self.parts, self.body.clone()).await {
                    Ok(answer) if broke_off && self.is_deletion() && answer.status() == StatusCode::NOT_FOUND => {
                        return Ok(StatusCode::NO_CONTENT.into_response());
                    }
                    Ok(answer) => return Ok(answer),
                    Err(Refused::NotHeld) => {}
                    Err(Refused::BrokeOff(reason)) if !asked_again => {
                        (broke_off, asked_again) = (true, true);
                        metrics::counter!("millrace_bridge_forward_failures_total").increment(1);
                        tracing::debug!(group, instance = name, owner = entry.owner, reason, "the owner of a consumer is asked once more");
                        continue;
                    }
                    Err(Refused::BrokeOff(reason) | Refused::Unasked(reason)) => {
                        metrics::counter!("millrace_bridge_forward_failures_total").increment(1);
                        return Err(BridgeError::new(
                            Code::Unavailable,
                            format!("instance {name:?} of group {group:?} is held by {}: {reason}", entry.owner),
                        ));
                    }
                    Err(Refused::Gone(reason)) => {
                        broke_off = true;
                        metrics::counter!("millrace_bridge_forward_failures_total").increment(1);
                        tracing::debug!(group, instance = name, owner = entry.owner, reason, "the owner of a consumer is gone");
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
            // Only where the caller has logged in to Kafka itself can its consumer go on.
            if self.is_forwarded && auth::connection().is_err() {
                return Err(BridgeError::new(
                    Code::Misdirected,
                    format!("instance {name:?} of group {group:?} needs its caller's login to Kafka"),
                ));
            }
            let settings = match consume::settings(entry.fields.clone(), &app.config) {
                Ok((_, settings)) => settings,
                // Kept by a bridge that was set otherwise.
                Err(_) if self.is_deletion() && app.sessions.strike_out(group, name, turn).await? => {
                    return Ok(StatusCode::NO_CONTENT.into_response());
                }
                Err(error) => return Err(error),
            };
            // Whoever has won: the next round finds it.
            app.sessions.take_over(group, name, turn, &entry, settings).await?;
        }
        Err(BridgeError::new(Code::Unavailable, format!("instance {name:?} of group {group:?} moves from bridge to bridge; try again")))
    }

    fn is_deletion(&self) -> bool {
        // Of the instance itself, and of nothing below it.
        self.parts.method == Method::DELETE && self.parts.uri.path().split('/').count() == "/consumers/G/instances/I".split('/').count()
    }
}

/// An answer that may be so because the instance is another replica's by now.
fn is_doubtful(answer: &Response) -> bool {
    matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::CONFLICT) || answer.status().is_server_error()
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
