//! What a request must keep to, and what it gets when it does not.
//!
//! HTTP gets a status, `{"error_code", "message"}` and [`REFUSED`], gRPC a status of its own. Control calls (`/millrace.control.…`, health, reflection,
//! `/metrics`) are not refused while the service drains, and not shed on the control port: that is when an operator needs them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{body::Body, extract::DefaultBodyLimit};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use metrics::{counter, gauge, histogram};
use tokio::{
    sync::{Semaphore, TryAcquireError},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tower::Service as _;
use tracing::{Instrument as _, Span, field, info_span};

use super::{
    CONTROL, Ending,
    body::{Progress, RequestBody, ResponseBody, StreamedBody},
};
use crate::{config::LimitsConfig, telemetry};

/// On answers that the listener gives instead of the service: why, in a word, as in `millrace_listen_rejected_total`.
pub const REFUSED: HeaderName = HeaderName::from_static("millrace-refused");
/// That word where the service is shutting down.
pub const DRAINING: &[u8] = b"draining";

/// Counts a connection or request that a limit refused.
pub(super) fn reject(listener: &'static str, reason: &'static str) {
    counter!("millrace_listen_rejected_total", "listener" => listener, "reason" => reason).increment(1);
}

/// Why a request was not answered by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Draining,
    Requests,
    Headers,
    Bodies,
    BodyBytes,
    BodyRatio,
    BodyTimeout,
    Encoding,
    Gzip,
    RequestTimeout,
}

impl Refusal {
    /// Label of the metric, HTTP status, gRPC code, message.
    fn parts(self) -> (&'static str, StatusCode, Code, &'static str) {
        match self {
            Self::Draining => (
                "draining",
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "the service is shutting down; use another replica or try again",
            ),
            Self::Requests => (
                "requests",
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "too many requests at a time (limits.requests_max); try again",
            ),
            Self::Headers => (
                "headers",
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Code::ResourceExhausted,
                "too many header fields (limits.headers_max)",
            ),
            Self::Bodies => (
                "bodies",
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "too many large requests at a time (limits.bodies_bytes_max); try again",
            ),
            Self::BodyBytes => {
                ("body_bytes", StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, "the body is too large (limits.body_bytes_max)")
            }
            Self::BodyRatio => (
                "body_ratio",
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                "the compressed body grows too much (limits.body_ratio_max)",
            ),
            Self::BodyTimeout => (
                "body_timeout",
                StatusCode::REQUEST_TIMEOUT,
                Code::DeadlineExceeded,
                "the body came too slowly (limits.body_idle_timeout, body_timeout)",
            ),
            Self::Encoding => (
                "encoding",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::Unimplemented,
                "this Content-Encoding is not understood; send gzip or none",
            ),
            Self::Gzip => {
                ("encoding", StatusCode::BAD_REQUEST, Code::InvalidArgument, "the body is not the gzip data that Content-Encoding promises")
            }
            Self::RequestTimeout => (
                "request_timeout",
                StatusCode::GATEWAY_TIMEOUT,
                Code::DeadlineExceeded,
                "no answer in time (limits.request_timeout, or the call's own deadline)",
            ),
        }
    }

    fn response(self, listener: &'static str, protocol: Protocol) -> Response<Body> {
        let (reason, status, code, message) = self.parts();
        reject(listener, reason);
        if protocol == Protocol::Grpc {
            return Status::new(code, message).into_http();
        }
        let body = serde_json::json!({"error_code": status.as_u16(), "message": message}).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(REFUSED, HeaderValue::from_static(reason));
        match self {
            Self::Draining | Self::Requests | Self::Bodies => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"))
            }
            Self::Encoding => response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip")),
            _ => None,
        };
        response
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    fn of(headers: &HeaderMap) -> Self {
        let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if grpc { Self::Grpc } else { Self::Http }
    }
}

/// A listener's requests.
pub(super) struct Requests {
    listener: &'static str,
    router: axum::Router,
    limits: Arc<LimitsConfig>,
    ending: Ending,
    free: Semaphore,
    in_progress: metrics::Gauge,
    seconds: metrics::Histogram,
    by_class: [metrics::Counter; 5],
}

impl Requests {
    pub(super) fn new(listener: &'static str, router: axum::Router, limits: Arc<LimitsConfig>, ending: Ending) -> Self {
        let class = |status: &'static str| counter!("millrace_listen_requests_total", "listener" => listener, "status" => status);
        Self {
            // The bound for whoever calls an HTTP request gRPC; `with_state` lets axum prepare its tables once.
            router: router.layer(DefaultBodyLimit::max(limits.body_bytes_max as usize)).with_state(()),
            free: Semaphore::new(limits.requests_max.get() as usize),
            in_progress: gauge!("millrace_listen_requests", "listener" => listener),
            seconds: histogram!("millrace_listen_request_seconds", "listener" => listener),
            by_class: [class("1xx"), class("2xx"), class("3xx"), class("4xx"), class("5xx")],
            listener,
            limits,
            ending,
        }
    }

    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        stream_end: CancellationToken,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let started = Instant::now();
        let protocol = Protocol::of(request.headers());
        let path = request.uri().path();
        let control = path.starts_with("/millrace.control.") || path.starts_with("/grpc.") || path == "/metrics";
        let span = span(&request, protocol);
        // The token first, then the question: a drain that begins between the two waits for this request.
        let in_flight = (!control).then(|| self.ending.in_flight.token());
        let response = if !control && self.ending.drain.is_cancelled() {
            Err(Refusal::Draining)
        } else if request.headers().len() > self.limits.headers_max as usize {
            Err(Refusal::Headers)
        } else {
            match self.free.try_acquire() {
                Err(TryAcquireError::NoPermits) if !control || self.listener != CONTROL => Err(Refusal::Requests),
                permit => {
                    self.in_progress.increment(1);
                    let _leave = Leave(&self.in_progress, permit.ok());
                    self.pass(request, protocol).instrument(span.clone()).await
                }
            }
        };
        let response = response.unwrap_or_else(|refusal| refusal.response(self.listener, protocol));
        if !span.is_disabled() {
            span.record("http.response.status_code", response.status().as_u16());
            if let Some(code) = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()) {
                span.record("rpc.grpc.status_code", code);
            }
        }
        self.seconds.record(started.elapsed());
        if let Some(class) = self.by_class.get(usize::from(response.status().as_u16() / 100).wrapping_sub(1)) {
            class.increment(1);
        }
        let events = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        // An operator's stream (a health watch) learns of the drain and goes on until the control port closes.
        let stream_end = if control { self.ending.stop.clone() } else { stream_end };
        let stream_end = (protocol == Protocol::Grpc || events).then_some(stream_end);
        Ok(response.map(|body| ResponseBody::new(body, stream_end, protocol == Protocol::Grpc, in_flight)))
    }

    /// Gives the request to the service, its body bounded and its answer awaited for a bounded time.
    async fn pass(&self, request: Request<Incoming>, protocol: Protocol) -> Result<Response<Body>, Refusal> {
        let mut router = self.router.clone();
        if protocol == Protocol::Grpc {
            let deadline =
                grpc_timeout(request.headers()).map_or(self.limits.request_timeout, |asked| asked.min(self.limits.connection_age_max));
            return tokio::select! {
                biased;
                Ok(response) = router.call(request.map(Body::new)) => Ok(response),
                () = sleep(deadline) => Err(Refusal::RequestTimeout),
            };
        }
        let (parts, body) = request.into_parts();
        if body.size_hint().lower() > self.limits.body_bytes_max {
            return Err(Refusal::BodyBytes);
        }
        if body.is_end_stream() {
            return tokio::select! {
                biased;
                Ok(response) = router.call(Request::from_parts(parts, Body::empty())) => Ok(response),
                () = sleep(self.limits.request_timeout) => Err(Refusal::RequestTimeout),
            };
        }
        let mut parts = parts;
        let gzip = match parts.headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity" | b"") => false,
            Some(b"gzip" | b"x-gzip") => true,
            Some(_) => return Err(Refusal::Encoding),
        };
        if gzip {
            parts.headers.remove(header::CONTENT_ENCODING);
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let progress = Arc::new(Progress::new(self.ending.body_bytes.clone()));
        parts.extensions.insert(StreamedBody::new(&progress));
        let body = RequestBody::new(body, gzip, self.limits.clone(), progress.clone());
        let response = tokio::select! {
            biased;
            Ok(response) = router.call(Request::from_parts(parts, Body::new(body))) => Ok(response),
            () = self.too_late(&progress) => Err(Refusal::RequestTimeout),
        };
        // Whatever the handler made of a broken body, this is what happened.
        match progress.refusal() {
            Some(refusal) => Err(refusal),
            None => response,
        }
    }

    /// `request_timeout` after the body has been read; a handler that does not read it has the body's time on top.
    async fn too_late(&self, progress: &Progress) {
        if timeout(self.limits.body_timeout, progress.complete.cancelled()).await.is_err() {
            tracing::debug!(listener = self.listener, "the handler has not read the body");
        }
        sleep(self.limits.request_timeout).await;
    }
}

/// Counts a request out, also when its client has gone and this future is dropped.
struct Leave<'a>(&'a metrics::Gauge, #[allow(dead_code, reason = "held until the answer")] Option<tokio::sync::SemaphorePermit<'a>>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// Control calls always have a span, so that what they log names them; other requests when they are traced. Probes and scrapes have none.
fn span(request: &Request<Incoming>, protocol: Protocol) -> Span {
    let path = request.uri().path();
    let call = path.starts_with("/millrace.control.");
    if !call && (!telemetry::tracing_on() || path.starts_with("/grpc.") || path == "/metrics") {
        return Span::none();
    }
    let span = match protocol {
        Protocol::Grpc => info_span!(
            "grpc",
            otel.name = path.trim_start_matches('/'),
            otel.kind = "server",
            http.response.status_code = field::Empty,
            rpc.grpc.status_code = field::Empty
        ),
        Protocol::Http => info_span!(
            "http",
            otel.name = request.method().as_str(),
            otel.kind = "server",
            http.request.method = request.method().as_str(),
            url.path = path,
            http.response.status_code = field::Empty
        ),
    };
    if let Some(parent) = request.headers().get("traceparent").and_then(|parent| parent.to_str().ok()) {
        telemetry::set_parent(&span, parent);
    }
    span
}

/// `grpc-timeout: 100m`: at most eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}
