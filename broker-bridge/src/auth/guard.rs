//! Stands before every route and every gRPC method: who is it, is there quota, may they. Counts the bytes that pass.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request, State},
    http::{HeaderValue, header, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::MethodRouter,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use service_kit::Peer;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tonic::Status;

use super::{
    Auth, CALLER, Caller,
    access::{Access, Kind, of_method},
    hop,
};
use crate::{
    error::{BridgeError, Code},
    registry::subject,
};

/// So much of a refused request's body is read, and for so long.
const UNWANTED_BYTES_MAX: usize = 64 * 1024;
const UNWANTED_WAIT_MAX: Duration = Duration::from_secs(1);
/// The longest single pause of a stream that is over its quota.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A route that asks first; without authentication the route itself.
pub(crate) fn guarded<S>(auth: Option<&Auth>, access: Access, route: MethodRouter<S>) -> MethodRouter<S>
where
    S: Clone + Send + Sync + 'static,
{
    match auth {
        Some(auth) if access != Access::Open => route.route_layer(from_fn_with_state((auth.clone(), access), ask)),
        _ => route,
    }
}

/// Everything on the control port, by the table of methods.
pub(crate) fn guard_grpc(auth: Auth, router: Router) -> Router {
    router.layer(from_fn_with_state(auth, ask_grpc))
}

/// Why a request does not pass.
struct Refusal {
    error: BridgeError,
    retry_after: Option<Duration>,
}

impl From<BridgeError> for Refusal {
    fn from(error: BridgeError) -> Self {
        Self { error, retry_after: None }
    }
}

impl Refusal {
    /// In whole seconds, as HTTP has them.
    fn seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }

    fn response(self, auth: &Auth) -> Response {
        let (seconds, code) = (self.seconds(), self.error.code);
        let mut response = self.error.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if code == Code::Unauthenticated {
            for challenge in auth.challenges() {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
        }
        response
    }
}

async fn ask(State((auth, access)): State<(Auth, Access)>, params: RawPathParams, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let name = match access {
        Access::Of(_, _, param) => params.iter().find(|(name, _)| *name == param).map(|(_, value)| value.to_owned()),
        _ => None,
    };
    match enter(&auth, access, name, &parts).await {
        Ok(caller) => pass(caller, Request::from_parts(parts, body), next, false).await,
        Err(refusal) => {
            hear_out(body).await;
            refusal.response(&auth)
        }
    }
}

/// Reads a body that nobody wants, if it is small: a connection that is closed over unread bytes may take the answer with it.
async fn hear_out(body: Body) {
    drop(timeout(UNWANTED_WAIT_MAX, Limited::new(body, UNWANTED_BYTES_MAX).collect()).await);
}

async fn ask_grpc(State(auth): State<Auth>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let grpc = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let refusal = match of_method(parts.uri.path()) {
        Some(Access::Open) => return next.run(Request::from_parts(parts, body)).await,
        Some(access) => match enter(&auth, access, None, &parts).await {
            Ok(caller) => return pass(caller, Request::from_parts(parts, body), next, grpc).await,
            Err(refusal) => refusal,
        },
        None => Refusal::from(BridgeError::new(Code::Forbidden, format!("{} is not declared, so nobody may call it", parts.uri.path()))),
    };
    if !grpc {
        return refusal.response(&auth);
    }
    let seconds = refusal.seconds();
    let mut response = Status::from(refusal.error).into_http::<Body>();
    if let Some(seconds) = seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

async fn enter(auth: &Auth, access: Access, name: Option<String>, parts: &Parts) -> Result<Caller, Refusal> {
    let caller = match parts.headers.get(hop::CALLER) {
        Some(said) => auth.handed_on(said, parts)?,
        None => auth.authenticate(&parts.headers, parts.extensions.get::<Peer>()).await?,
    };
    let principal = &caller.0.principal;
    if let Err(exhausted) = auth.0.quotas.admit(principal, auth.limits(&caller), Instant::now()) {
        metrics::counter!("millrace_bridge_quota_refused_total", "what" => exhausted.what).increment(1);
        // Not sooner than it says.
        let wait = (exhausted.wait.as_secs_f64() * 10.0).ceil() / 10.0;
        let message = format!("{principal:?} has used up its {} a second; try again in {wait:.1} s", exhausted.what);
        return Err(Refusal { error: BridgeError::new(Code::TooMany, message), retry_after: Some(exhausted.wait) });
    }
    match access {
        Access::Open | Access::Known => {}
        Access::Cluster(verb) => caller.check(verb, Kind::Cluster, "")?,
        Access::Any(verb, kind) => caller.check_any(verb, kind)?,
        Access::All(verb, kind) => caller.check_all(verb, kind, "")?,
        Access::Of(verb, kind, _) => {
            let name = name.ok_or_else(|| BridgeError::new(Code::Internal, "the path does not name what the route is about"))?;
            let name = if kind == Kind::Subject { subject::normal(&name) } else { name };
            match subject::split(&name) {
                (subject::GLOBAL, _) if kind == Kind::Subject => caller.check_all(verb, kind, "")?,
                // A context's settings hold for everything in it.
                (_, "") if kind == Kind::Subject => caller.check_all(verb, kind, &name)?,
                _ => {
                    caller.check(verb, kind, &name)?;
                    *caller.0.asked.lock() = Some((verb, kind, name));
                }
            }
        }
    }
    Ok(caller)
}

async fn pass(caller: Caller, request: Request, next: Next, slow_down: bool) -> Response {
    let metered = caller.0.auth.limits(&caller).bytes > 0.0;
    let meter = |body: Body, slow_down: bool| Body::new(Metered { body, caller: caller.clone(), slow_down, pause: None });
    // A request over HTTP is waited for in bounded time: who sends too much is refused next time.
    let request = if metered { request.map(|body| meter(body, slow_down)) } else { request };
    let response = CALLER.scope(caller.clone(), next.run(request)).await;
    if metered { response.map(|body| meter(body, true)) } else { response }
}

/// A body whose bytes count.
struct Metered {
    body: Body,
    caller: Caller,
    /// Whether it waits where more has passed than there was.
    slow_down: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let wait = this.caller.count(data.len());
            // Who has the whole answer waits for nothing.
            if this.slow_down && !wait.is_zero() && !this.body.is_end_stream() {
                this.pause = Some(Box::pin(sleep(wait.min(PAUSE_MAX))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
