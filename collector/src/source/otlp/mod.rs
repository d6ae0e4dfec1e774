//! `otlp`: log records from OpenTelemetry SDKs and Collectors. One export is one transaction.
//!
//! | gRPC | HTTP | when |
//! |---|---|---|
//! | `OK` | 200 | every channel has the records |
//! | `UNAVAILABLE` with `RetryInfo` | 503 with `Retry-After` | the channel is full or the source paused; nothing was taken, the sender tries again |
//! | `DEADLINE_EXCEEDED` | 503 with `Retry-After` | the body was not there within `maxRequestTime`; the sender tries again |
//! | `INVALID_ARGUMENT` | 400 | the body is no export request |
//! | `RESOURCE_EXHAUSTED` without `RetryInfo` | 413 | more records than `maxRecords` or a transaction holds; the sender must not try again |
//! | `OUT_OF_RANGE` | 413 | larger than `maxRequestBytes` |
//! | as the listener says | 408, 415, 431, 503, 504 | the limits that every listener of Millrace has |
//!
//! Nothing is ever taken in part, so `partial_success` stays empty.

mod decode;
mod records;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::{StreamExt as _, future::BoxFuture};
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Status,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, UnaryService},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use self::decode::Encoding;
use super::web::{CONNECTIONS_MAX, Puts, RETRY_AFTER, Refused, Web};
use super::{Output, Setup, Source, Stop};
use crate::channel::PutError;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Kind, Property, Role};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("otlp"),
    class: None,
    doc: "Log records by OpenTelemetry's protocol, on one port: gRPC (`LogsService/Export`) and HTTP (`POST /v1/logs`, Protobuf or JSON), plain or gzip. One export is one transaction; a full channel is answered so that the sender tries again. Body: the record's body, text and bytes as they are, anything else as JSON. Headers: `timestamp` (milliseconds since 1970, from `timeUnixNano`, or else from `observedTimeUnixNano`), `timeUnixNano`, `observedTimeUnixNano`, `severity` (the record's text, or else the name of its number), `severityNumber`, `traceId` and `spanId` (hexadecimal), `flags`, `eventName`, `droppedAttributesCount`; `resource.attributes.NAME`, `resource.schemaUrl`, `scope.name`, `scope.version`, `scope.attributes.NAME`, `scope.schemaUrl`, `attributes.NAME`: each where the record has it. Attributes that are no text are written as OTLP says: numbers and truth values as in JSON, bytes in Base64, lists and maps as JSON. Of two attributes of one name, which OTLP forbids, the last counts.",
    properties: tls::with_listener![
        Property::text("bind", Some("0.0.0.0"), "Address to listen on.").own(),
        Property::integer("port", 0, 65_535, Some("4317"), "Port to listen on, for gRPC and HTTP; 0 takes a free one.").own(),
        Property::integer(
            "maxRequestBytes",
            1024,
            1_073_741_824,
            Some("4194304"),
            "Bytes of an export, as sent and after decompression; larger ones are refused for good.",
        )
        .own(),
        Property::integer(
            "maxRecords",
            1,
            1_000_000,
            Some("8192"),
            "Log records of an export; more are refused for good. Keep it at what senders are set to at most (OpenTelemetry's SDKs 512, its Collector 8192), and the channel's transactionCapacity at this or more.",
        )
        .own(),
        Property::integer(
            "maxRequestTime",
            100,
            3_600_000,
            Some("10000"),
            "Milliseconds until an export must be there whole; later ones are told to come again. While it comes it counts for `maxRequests`.",
        )
        .own(),
        CONNECTIONS_MAX,
        Property::integer(
            "maxRequests",
            1,
            65_536,
            Some("64"),
            "Exports at a time, which together may hold this many times `maxRequestBytes`; more are told to come back later.",
        )
        .own(),
    ],
    deprecated: &[],
    misspelt: &[("host", "bind"), ("endpoint", "bind")],
    adopt: adopts_nothing,
    batch: Some("maxRecords"),
    review: tls::review_server,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let limits = Limits {
        bytes: component.count("maxRequestBytes"),
        records: component.count("maxRecords"),
        time: component.millis("maxRequestTime"),
    };
    Ok(Box::new(Otlp { web: Web::build(component, limits.bytes, Some(limits.time), &setup)?, limits }))
}

struct Otlp {
    web: Web,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    bytes: usize,
    records: usize,
    time: Duration,
}

#[async_trait]
impl Source for Otlp {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let Self { web, limits } = *self;
        web.run(out, stop, |puts| router(Serving { puts, limits })).await
    }
}

const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

fn router(serving: Serving) -> Router {
    Router::new().route(EXPORT, post(by_grpc)).route("/v1/logs", post(by_http)).fallback(nothing_there).with_state(Arc::new(serving))
}

struct Serving {
    puts: Puts,
    limits: Limits,
}

/// Larger bodies are read beside the tasks that answer.
const READ_INLINE_MAX: usize = 64 << 10;

impl Serving {
    async fn export(&self, encoding: Encoding, body: Bytes) -> Result<(), Status> {
        let (length, records_max) = (body.len(), self.limits.records);
        let read = move || decode::events(encoding, &body, records_max);
        let events = if length <= READ_INLINE_MAX {
            read()
        } else {
            tokio::task::spawn_blocking(read).await.map_err(|error| Status::internal(error.to_string()))?
        };
        let events = events.map_err(|fault| match fault {
            decode::Fault::Malformed(_) => Status::invalid_argument(fault.to_string()),
            decode::Fault::TooMany { .. } => Status::resource_exhausted(fault.to_string()),
        })?;
        if events.is_empty() {
            return Ok(());
        }
        let out = &self.puts.out;
        match self.puts.put(events).await {
            Ok(()) => {
                out.trouble(None);
                Ok(())
            }
            Err(Refused::Channel(error @ PutError::BatchTooLarge { .. })) => {
                let why = format!("{error}; set the channel's transactionCapacity to maxRecords, or send less at a time");
                out.trouble(Some(why.clone()));
                Err(Status::resource_exhausted(why))
            }
            Err(refused) => {
                let retry = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
                Err(Status::with_error_details(Code::Unavailable, refused.to_string(), retry))
            }
        }
    }

    /// A sender that is told to try again loses nothing; whatever else it is told, it drops its records.
    fn count(&self, code: Code, why: &str) {
        let (source, code_name) = (self.puts.out.name(), format!("{code:?}"));
        match code {
            Code::Ok => {}
            Code::Unavailable => tracing::debug!(source, why, "a sender is told to try again"),
            Code::DeadlineExceeded | Code::Aborted => {
                self.puts.out.counters.read_failures.add(1);
                tracing::debug!(source, why, "an export did not come whole");
            }
            _ => {
                self.puts.out.counters.read_failures.add(1);
                tracing::warn!(source, code = code_name, why, "an export is refused for good");
            }
        }
    }
}

async fn by_grpc(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    let mut grpc = Grpc::new(Bare).accept_compressed(CompressionEncoding::Gzip).max_decoding_message_size(serving.limits.bytes);
    let response = grpc.unary(Export(serving.clone()), request.map(|body| in_time(body, serving.limits.time))).await;
    if let Some(status) = Status::from_header_map(response.headers()) {
        serving.count(status.code(), status.message());
    }
    response.map(Body::new)
}

/// The one call of the service.
struct Export(Arc<Serving>);

impl UnaryService<Bytes> for Export {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<tonic::Response<Bytes>, Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        let serving = self.0.clone();
        // An answer without `partial_success` has no bytes.
        Box::pin(async move { serving.export(Encoding::Protobuf, request.into_inner()).await.map(|()| tonic::Response::new(Bytes::new())) })
    }
}

/// Messages as their bytes: what is wrong with them is said here, not by the codec.
#[derive(Clone, Copy, Default)]
struct Bare;

impl Codec for Bare {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Bare {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// The body with a bound on the time until its end. Its errors are statuses: which of them it was is seen by their codes.
fn in_time(body: Body, time: Duration) -> Body {
    let deadline = Instant::now() + time;
    Body::from_stream(futures::stream::try_unfold(body.into_data_stream(), move |mut body| async move {
        match timeout_at(deadline, body.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some((piece, body))),
            Ok(None) => Ok(None),
            Ok(Some(Err(error))) => Err(Status::aborted(format!("the body ended early: {error}"))),
            Err(_) => Err(Status::deadline_exceeded(format!("the body was not there whole within {time:?} (maxRequestTime); try again"))),
        }
    }))
}

async fn by_http(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    let Some(encoding) = Encoding::of(request.headers()) else {
        let why = "send application/x-protobuf or application/json\n";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, why).into_response();
    };
    let body = axum::body::to_bytes(in_time(request.into_body(), serving.limits.time), serving.limits.bytes).await;
    let exported = match body {
        Ok(body) => serving.export(encoding, body).await,
        // Where a limit of the listener was reached, it answers instead.
        Err(error) => Err(Status::try_from_error(error.into()).unwrap_or_else(|error| Status::out_of_range(error.to_string()))),
    };
    let kind = [(header::CONTENT_TYPE, encoding.content_type())];
    let Err(status) = exported else { return (kind, encoding.nothing()).into_response() };
    serving.count(status.code(), status.message());
    let code = match status.code() {
        // 408 would tell it to drop its records.
        Code::Unavailable | Code::DeadlineExceeded | Code::Aborted => StatusCode::SERVICE_UNAVAILABLE,
        Code::ResourceExhausted | Code::OutOfRange => StatusCode::PAYLOAD_TOO_LARGE,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = (code, kind, encoding.fault(&status)).into_response();
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER.as_secs()));
    }
    response
}

async fn nothing_there(headers: HeaderMap) -> Response {
    let why = "this source takes logs: gRPC LogsService/Export, or POST /v1/logs";
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc { Status::unimplemented(why).into_http() } else { (StatusCode::NOT_FOUND, format!("{why}\n")).into_response() }
}

#[cfg(test)]
mod tests;
