//! HTTP: Confluent REST v2 (with Strimzi's `text` format and admin path) and v3; the schema registry brings its own table. Translates and
//! calls; decides nothing.
//!
//! `routes` is the table of everything that is served. `openapi.json` describes it, and a test compares the two.

mod burrow;
mod consume;
mod forward;
mod negotiate;
mod object;
mod produce;
mod push;
mod topics;
mod transactions;
mod ui;
mod v3;

pub(crate) use forward::Forward;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    handler::Handler,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::{from_fn_with_state, map_request, map_response},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, patch, post, put},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use service_kit::Readiness;

use crate::{
    auth::{
        Access, Auth, KNOWN,
        Kind::{Group, Topic},
        OPEN,
        Verb::{Alter, AlterConfigs, Create, Delete, Describe, DescribeConfigs, Read, Write},
        guarded, on_any, on_cluster, on_group, on_topic,
    },
    config::{BridgeConfig, Compat},
    connect::Connection,
    error::{BridgeError, Code, Result},
    gate::Gate,
    lag::Lag,
    produce::Produce,
    registry::{self, Registry},
    session::Sessions,
    topics::Topics,
    transaction::Transactions,
};

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) produce: Produce,
    pub(crate) sessions: Sessions,
    pub(crate) topics: Topics,
    pub(crate) lag: Lag,
    pub(crate) kafka: Connection,
    pub(crate) transactions: Transactions,
    pub(crate) registry: Registry,
    pub(crate) config: Arc<BridgeConfig>,
    pub(crate) readiness: Readiness,
    pub(crate) gate: Arc<Gate>,
    /// To the replica that holds a session.
    pub(crate) forward: Forward,
    /// `None`: everybody may do everything.
    pub(crate) auth: Option<Auth>,
}

/// One operation.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// What a caller must be allowed.
    pub(crate) access: Access,
    pub(crate) handler: MethodRouter<App>,
}

impl Route {
    fn get<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self { method: "GET", path, access, handler: get(handler) }
    }

    fn post<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self { method: "POST", path, access, handler: post(handler) }
    }

    fn delete<H: Handler<T, App>, T: 'static>(path: &'static str, access: Access, handler: H) -> Self {
        Self { method: "DELETE", path, access, handler: delete(handler) }
    }
}

/// A path below a consumer instance.
macro_rules! instance {
    ($path:literal) => {
        concat!("/consumers/{group}/instances/{instance}", $path)
    };
}

/// A path below the cluster.
macro_rules! cluster {
    ($path:literal) => {
        concat!("/v3/clusters/{cluster}", $path)
    };
}

/// Everything that is served.
#[rustfmt::skip] // a table: one line an operation
fn routes() -> Vec<Route> {
    macro_rules! route {
        (GET $path:expr, $access:expr, $handler:expr) => { Route { method: "GET", path: $path, access: $access, handler: get($handler) } };
        (POST $path:expr, $access:expr, $handler:expr) => { Route { method: "POST", path: $path, access: $access, handler: post($handler) } };
        (PUT $path:expr, $access:expr, $handler:expr) => { Route { method: "PUT", path: $path, access: $access, handler: put($handler) } };
        (PATCH $path:expr, $access:expr, $handler:expr) => { Route { method: "PATCH", path: $path, access: $access, handler: patch($handler) } };
        (DELETE $path:expr, $access:expr, $handler:expr) => { Route { method: "DELETE", path: $path, access: $access, handler: delete($handler) } };
    }
    let mut routes = vec![
        route!(GET "/", KNOWN, root),
        route!(GET "/healthy", OPEN, healthy),
        route!(GET "/ready", OPEN, ready),
        route!(GET "/metrics", on_cluster(Describe), async || service_kit::metrics::render()),
        route!(GET "/openapi", KNOWN, openapi),
        route!(GET "/openapi/v3", KNOWN, openapi),

        route!(GET "/topics", on_any(Describe, Topic), topics::list),
        route!(GET "/topics/{topic}", on_topic(Describe), topics::describe),
        route!(POST "/topics/{topic}", on_topic(Write), produce::to_topic),
        route!(GET "/topics/{topic}/partitions", on_topic(Describe), topics::partitions),
        route!(GET "/topics/{topic}/partitions/{partition}", on_topic(Describe), topics::partition),
        route!(POST "/topics/{topic}/partitions/{partition}", on_topic(Write), produce::to_partition),
        route!(GET "/topics/{topic}/partitions/{partition}/offsets", on_topic(Describe), topics::offsets),
        route!(POST "/admin/topics", on_any(Create, Topic), topics::create),
        route!(GET "/brokers", on_cluster(Describe), topics::brokers),

        route!(POST "/records", on_any(Write, Topic), transactions::write_all),
        route!(POST "/transactions", on_any(Write, Topic), transactions::begin),
        route!(POST "/transactions/{transaction}/records", on_any(Write, Topic), transactions::produce),
        route!(POST "/transactions/{transaction}/offsets", on_any(Read, Group), transactions::offsets),
        route!(POST "/transactions/{transaction}/commit", on_any(Write, Topic), transactions::commit),
        route!(POST "/transactions/{transaction}/abort", on_any(Write, Topic), transactions::abort),

        route!(GET "/consumers/{group}/stream", on_group(Read), push::stream),
        route!(POST "/consumers/{group}", on_group(Read), consume::create),
        route!(DELETE instance!(""), on_group(Read), consume::remove),
        route!(GET instance!("/subscription"), on_group(Read), consume::subscription),
        route!(POST instance!("/subscription"), on_group(Read), consume::subscribe),
        route!(DELETE instance!("/subscription"), on_group(Read), consume::unsubscribe),
        route!(GET instance!("/assignments"), on_group(Read), consume::assignment),
        route!(POST instance!("/assignments"), on_group(Read), consume::assign),
        route!(GET instance!("/records"), on_group(Read), consume::records),
        route!(GET instance!("/offsets"), on_group(Read), consume::committed),
        route!(POST instance!("/offsets"), on_group(Read), consume::commit),
        route!(POST instance!("/acknowledgements"), on_group(Read), consume::acknowledge),
        route!(POST instance!("/positions"), on_group(Read), consume::seek),
        route!(POST instance!("/positions/beginning"), on_group(Read), consume::seek_to_beginning),
        route!(POST instance!("/positions/end"), on_group(Read), consume::seek_to_end),

        route!(GET "/v3/clusters", on_cluster(Describe), v3::clusters),
        route!(GET cluster!(""), on_cluster(Describe), v3::cluster),
        route!(GET cluster!("/acls"), on_cluster(Describe), v3::acls),
        route!(POST cluster!("/acls"), on_cluster(Alter), v3::create_acl),
        route!(DELETE cluster!("/acls"), on_cluster(Alter), v3::delete_acls),
        route!(POST cluster!("/acls:batch"), on_cluster(Alter), v3::create_acls),
        route!(GET cluster!("/broker-configs"), on_cluster(DescribeConfigs), v3::cluster_configs),
        route!(POST cluster!("/broker-configs:alter"), on_cluster(AlterConfigs), v3::alter_cluster_configs),
        route!(GET cluster!("/broker-configs/{name}"), on_cluster(DescribeConfigs), v3::cluster_config),
        route!(PUT cluster!("/broker-configs/{name}"), on_cluster(AlterConfigs), v3::put_cluster_config),
        route!(DELETE cluster!("/broker-configs/{name}"), on_cluster(AlterConfigs), v3::delete_cluster_config),
        route!(GET cluster!("/brokers"), on_cluster(Describe), v3::brokers),
        route!(GET cluster!("/brokers/-/configs"), on_cluster(DescribeConfigs), v3::brokers_configs),
        route!(GET cluster!("/brokers/{broker}"), on_cluster(Describe), v3::broker),
        route!(GET cluster!("/brokers/{broker}/configs"), on_cluster(DescribeConfigs), v3::broker_configs),
        route!(POST cluster!("/brokers/{broker}/configs:alter"), on_cluster(AlterConfigs), v3::alter_broker_configs),
        route!(GET cluster!("/brokers/{broker}/configs/{name}"), on_cluster(DescribeConfigs), v3::broker_config),
        route!(PUT cluster!("/brokers/{broker}/configs/{name}"), on_cluster(AlterConfigs), v3::put_broker_config),
        route!(DELETE cluster!("/brokers/{broker}/configs/{name}"), on_cluster(AlterConfigs), v3::delete_broker_config),
        route!(GET cluster!("/brokers/{broker}/partition-replicas"), on_cluster(Describe), v3::broker_replicas),
        route!(GET cluster!("/topics"), on_any(Describe, Topic), v3::topics),
        route!(POST cluster!("/topics"), on_any(Create, Topic), v3::create_topic),
        route!(GET cluster!("/topics/-/configs"), on_any(DescribeConfigs, Topic), v3::all_topic_configs),
        route!(GET cluster!("/topics/-/partitions/-/reassignment"), on_any(Describe, Topic), v3::all_reassignments),
        route!(GET cluster!("/topics/{topic}"), on_topic(Describe), v3::topic),
        route!(PATCH cluster!("/topics/{topic}"), on_topic(Alter), v3::grow_topic),
        route!(DELETE cluster!("/topics/{topic}"), on_topic(Delete), v3::delete_topic),
        route!(GET cluster!("/topics/{topic}/configs"), on_topic(DescribeConfigs), v3::topic_configs),
        route!(POST cluster!("/topics/{topic}/configs:alter"), on_topic(AlterConfigs), v3::alter_topic_configs),
        route!(GET cluster!("/topics/{topic}/configs/{name}"), on_topic(DescribeConfigs), v3::topic_config),
        route!(PUT cluster!("/topics/{topic}/configs/{name}"), on_topic(AlterConfigs), v3::put_topic_config),
        route!(DELETE cluster!("/topics/{topic}/configs/{name}"), on_topic(AlterConfigs), v3::delete_topic_config),
        route!(GET cluster!("/topics/{topic}/partitions"), on_topic(Describe), v3::partitions),
        route!(GET cluster!("/topics/{topic}/partitions/-/reassignment"), on_topic(Describe), v3::topic_reassignments),
        route!(GET cluster!("/topics/{topic}/partitions/{partition}"), on_topic(Describe), v3::partition),
        route!(GET cluster!("/topics/{topic}/partitions/{partition}/offset"), on_topic(Describe), v3::offset),
        route!(GET cluster!("/topics/{topic}/partitions/{partition}/reassignment"), on_topic(Describe), v3::reassignment),
        route!(GET cluster!("/topics/{topic}/partitions/{partition}/replicas"), on_topic(Describe), v3::replicas),
        route!(GET cluster!("/topics/{topic}/partitions/{partition}/replicas/{broker}"), on_topic(Describe), v3::replica),
        route!(POST cluster!("/topics/{topic}/records"), on_topic(Write), v3::records),
        route!(POST cluster!("/topics/{topic}/records:batch"), on_topic(Write), v3::records_batch),
        route!(GET cluster!("/consumer-groups"), on_any(Describe, Group), v3::groups),
        route!(GET cluster!("/consumer-groups/{group}"), on_group(Describe), v3::group),
        route!(GET cluster!("/consumer-groups/{group}/consumers"), on_group(Describe), v3::consumers),
        route!(GET cluster!("/consumer-groups/{group}/consumers/{consumer}"), on_group(Describe), v3::consumer),
        route!(GET cluster!("/consumer-groups/{group}/consumers/{consumer}/assignments"), on_group(Describe), v3::assignments),
        route!(GET cluster!("/consumer-groups/{group}/consumers/{consumer}/assignments/{topic}/partitions/{partition}"), on_group(Describe), v3::assignment),
        route!(GET cluster!("/consumer-groups/{group}/lag-summary"), on_group(Describe), v3::lag_summary),
        route!(GET cluster!("/consumer-groups/{group}/lags"), on_group(Describe), v3::lags),
        route!(GET cluster!("/consumer-groups/{group}/lags/{topic}/partitions/{partition}"), on_group(Describe), v3::partition_lag),
    ];
    routes.extend(burrow::routes());
    routes.extend(ui::routes());
    routes.extend(registry::routes());
    routes
}

pub(crate) fn router(app: App) -> Router {
    let compat = app.config.http.compat;
    let mut router = Router::new();
    for Route { path, access, handler, .. } in routes() {
        // Who is known here is known to the replica that holds the instance, or the transaction.
        let (is_of_an_instance, is_of_a_transaction) = (path.starts_with(instance!("")), path.starts_with("/transactions/{transaction}"));
        let handler = match () {
            () if is_of_an_instance => handler.route_layer(from_fn_with_state(app.clone(), forward::hand_over)),
            () if is_of_a_transaction => handler.route_layer(from_fn_with_state(app.clone(), forward::hand_over_transaction)),
            () => handler,
        };
        let handler = guarded(app.auth.as_ref(), access, handler);
        let marked = || from_fn_with_state(app.clone(), forward::marked);
        let handler = if is_of_an_instance || is_of_a_transaction { handler.route_layer(marked()) } else { handler };
        let is_confluents =
            compat == Compat::Confluent && ["/topics", "/consumers", "/brokers"].iter().any(|begin| path.starts_with(begin));
        router = router.route(path, if is_confluents { handler.layer(map_response(as_confluent)) } else { handler });
    }
    let router = router.fallback(no_route).method_not_allowed_fallback(no_method).layer(map_response(in_our_form));
    let router = if compat == Compat::Strimzi { router.layer(map_response(as_strimzi)) } else { router };
    let router = if app.config.http.tls.is_on() { router.layer(map_request(by_tls)) } else { router };
    router.with_state(app)
}

/// The registry's paths by themselves, for a listener of their own. The answers are the same as beside the others, and errors are in its form.
pub(crate) fn registry_router(app: App) -> Router {
    let root = Route::get("/", KNOWN, async || json_response(StatusCode::OK, registry::CONTENT_TYPE, &json!({})));
    let mut router = Router::new();
    for Route { path, access, handler, .. } in registry::routes().into_iter().chain([root]) {
        router = router.route(path, guarded(app.auth.as_ref(), access, handler));
    }
    let no_method = async |method: Method| BridgeError::new(Code::MethodNotAllowed, format!("HTTP 405 Method Not Allowed: {method}"));
    let no_route =
        async |uri: Uri| BridgeError::new(Code::NoRoute, format!("HTTP 404 Not Found: {} is no path of the registry", uri.path()));
    let router = router.fallback(no_route).method_not_allowed_fallback(no_method);
    router.layer(map_response(in_our_form)).layer(map_response(as_registry)).with_state(app)
}

async fn root() -> Response {
    let operations: Vec<String> = routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    json_response(
        StatusCode::OK,
        JSON,
        &json!({"name": "millrace-bridge", "version": env!("CARGO_PKG_VERSION"), "bridge_version": env!("CARGO_PKG_VERSION"), "openapi": "/openapi", "operations": operations}),
    )
}

/// The process runs.
async fn healthy() -> &'static str {
    "ok\n"
}

/// It may be sent work.
async fn ready(State(app): State<App>) -> Response {
    let pending = app.readiness.pending();
    let reason = if pending.is_empty() { app.gate.unready() } else { Some(format!("waiting for: {}", pending.join(", "))) };
    match reason {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, JSON)], OPENAPI).into_response()
}

async fn no_route(uri: Uri) -> BridgeError {
    BridgeError::new(Code::NoRoute, format!("{} is not a path of the bridge; GET /openapi lists them", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> BridgeError {
    BridgeError::new(Code::MethodNotAllowed, format!("{method} is not possible on {}; GET /openapi lists what is", uri.path()))
}

/// What axum refuses by itself (a path or query that is not UTF-8, a body that breaks off) it says as plain text, which no answer of ours is.
async fn in_our_form(response: Response) -> Response {
    let status = response.status();
    let is_text = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !status.is_client_error() || !is_text {
        return response;
    }
    let message = axum::body::to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let message = String::from_utf8_lossy(&message).into_owned();
    let code = if status == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::BadRequest };
    BridgeError::new(code, if message.is_empty() { "the request cannot be read".to_owned() } else { message }).into_response()
}

/// Addresses in answers are https ones, unless a proxy in front says otherwise.
async fn by_tls(mut request: Request) -> Request {
    if !request.headers().contains_key("forwarded") {
        request.headers_mut().entry("x-forwarded-proto").or_insert(HeaderValue::from_static("https"));
    }
    request
}

/// Confluent's REST proxy answers 500 to whatever Kafka refuses for now, on all paths of v2. Elsewhere that is 503, which balancers understand.
async fn as_confluent(mut response: Response) -> Response {
    if response.extensions().get::<BridgeError>().is_some_and(|error| error.code == Code::KafkaRetriable) {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}

/// Strimzi's errors have the status as their code, and say twice what is wrong with a body.
async fn as_strimzi(mut response: Response) -> Response {
    let Some(error) = response.extensions_mut().remove::<BridgeError>() else { return response };
    let status = response.status();
    let mut body = json!({"error_code": status.as_u16(), "message": error.message});
    if error.code == Code::BadRequest {
        body["validation_errors"] = json!([error.message]);
    }
    *response.body_mut() = axum::body::Body::from(body.to_string());
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
}

/// What its clients read as an error of the registry.
async fn as_registry(mut response: Response) -> Response {
    if response.extensions().get::<BridgeError>().is_some() {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(registry::CONTENT_TYPE));
    }
    response
}

/// Of axum's own words.
const REFUSAL_BYTES_MAX: usize = 4096;

const JSON: &str = "application/json";
/// What v2 answers are, records apart.
const V2: &str = "application/vnd.kafka.v2+json";

fn json_response(status: StatusCode, content_type: &'static str, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, content_type)], body).into_response(),
        Err(error) => BridgeError::new(Code::Internal, format!("the answer cannot be written: {error}")).into_response(),
    }
}

impl IntoResponse for BridgeError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        if status.is_server_error() {
            tracing::debug!(error = %self, "request failed");
        }
        let mut response = json_response(status, V2, &json!({"error_code": self.code.number(), "message": self.message}));
        if self.retryable() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        // For who writes it in another form.
        response.extensions_mut().insert(self);
        response
    }
}

/// A request's JSON body. What is not JSON is 400, what is not the expected JSON is 422; both with the place.
fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map(|object::Object(request)| request).map_err(|error| {
        if body.is_empty() {
            return BridgeError::new(Code::BadRequest, "the request has no body; send JSON");
        }
        let (code, what) =
            if error.is_data() { (Code::Unprocessable, "the body is not as expected") } else { (Code::BadRequest, "the body is not JSON") };
        BridgeError::new(code, format!("{what}: {error}; GET /openapi shows what is expected"))
    })
}

/// A path's partition, which any text could be.
fn partition_id(topic: &str, text: &str) -> Result<i32> {
    text.parse().map_err(|_| {
        BridgeError::new(Code::PartitionNotFound, format!("topic {topic:?} has no partition {text:?}; partitions are numbers from 0"))
    })
}

/// One value of a query string, of any type that has a text form.
fn query<T: std::str::FromStr>(query: &std::collections::HashMap<String, String>, name: &str) -> Result<Option<T>> {
    match query.get(name) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| BridgeError::new(Code::BadRequest, format!("?{name}={text} is not understood; give a number, or true or false"))),
    }
}

/// Where a client reaches this bridge.
fn base_url(headers: &HeaderMap) -> String {
    let (scheme, host) = reached_at(headers);
    format!("{scheme}://{host}")
}

/// Scheme and host by which a client reaches this bridge: as a proxy in front says, else as the client itself said.
fn reached_at(headers: &HeaderMap) -> (&str, &str) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let forwarded = |key: &str| {
        let first = text("forwarded")?.split(',').next()?;
        let pairs = first.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (name.trim(), value.trim().trim_matches('"')))
            .find(|(name, _)| name.eq_ignore_ascii_case(key))
            .map(|(_, value)| value)
    };
    let first = |value: &'static str| text(value).and_then(|list| list.split(',').next()).map(str::trim);
    let scheme = forwarded("proto").or_else(|| first("x-forwarded-proto")).unwrap_or("http");
    let host = forwarded("host").or_else(|| first("x-forwarded-host")).or_else(|| text("host")).unwrap_or("localhost");
    (scheme, host)
}

/// A header that is text and comes once; `None` where it does not come.
fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BridgeError::new(Code::Unprocessable, format!("the header {name} comes more than once; send one")));
    }
    let text = std::str::from_utf8(value.as_bytes());
    text.map(Some).map_err(|_| BridgeError::new(Code::Unprocessable, format!("the header {name} is not UTF-8; send text, as a UUID is")))
}

/// Where no key counts, one is refused: its sender would repeat a request that was written.
fn without_key(headers: &HeaderMap) -> Result<()> {
    match headers.contains_key("idempotency-key") {
        true => {
            Err(BridgeError::new(Code::Unprocessable, "an Idempotency-Key counts for POST /topics/… alone; write there, or leave it out"))
        }
        false => Ok(()),
    }
}

/// A name as a segment of a path.
fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod access_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod tests;
