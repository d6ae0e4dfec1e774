//! `…/topics/{topic}/records`: a stream of records in, a receipt for each out, in order; and `records:batch`.
//!
//! A stream is bounded: so many records and bytes on their way at a time (`produce.stream_records_max`, `stream_bytes_max`). A client that does
//! not read its receipts is not read from. A record that cannot be written has its own `error_code`; a body that cannot be read ends the stream.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension,
    body::{Body, BodyDataStream},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use service_kit::{
    StreamedBody,
    kafka::{OutRecord, Written},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    App, Cluster, JSON, Reply, code,
    data::{Data, Part},
    json_response,
    splitter::Splitter,
};
use crate::{
    auth::{Carrier, carrier},
    error::{BridgeError, Code, Result},
    http::{negotiate, object::Object, without_key},
    produce::Produce,
    registry::Registry,
    trace::TRACEPARENT,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Record<'a> {
    #[serde(default)]
    partition_id: Option<i32>,
    #[serde(default)]
    headers: Option<Vec<Header>>,
    #[serde(borrow, default)]
    key: Option<Data<'a>>,
    #[serde(borrow, default)]
    value: Option<Data<'a>>,
    /// As `2021-02-05T19:14:42Z`.
    #[serde(default)]
    timestamp: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    name: String,
    /// Base64.
    #[serde(default)]
    value: Option<String>,
}

/// A record as it was written, or why it was not.
#[derive(Serialize)]
struct Receipt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// 200, or the error's. Not in a batch's successes.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    place: Option<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    cluster_id: &'a str,
    topic_name: &'a str,
    partition_id: i32,
    offset: i64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a Part>,
}

/// A record ready to be written, and what its receipt repeats.
struct Ready {
    record: OutRecord,
    timestamp_ms: i64,
    key: Option<Part>,
    value: Option<Part>,
}

/// Where records of one request go.
struct Target {
    produce: Produce,
    registry: Registry,
    cluster: String,
    topic: Arc<str>,
    traceparent: Option<String>,
    /// Records are written after the request was answered.
    carrier: Carrier,
}

impl Target {
    async fn find(app: &App, headers: &HeaderMap, cluster: &str, topic: &str) -> Result<Self> {
        negotiate::json_body(headers)?;
        without_key(headers)?;
        let cluster = Cluster::named(app, headers, cluster).await?;
        // Fails now rather than once for each record.
        app.topics.check(topic, None).await?;
        let traceparent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Self {
            produce: app.produce.clone(),
            registry: app.registry.clone(),
            cluster: cluster.id().to_owned(),
            topic: topic.into(),
            traceparent,
            carrier: carrier(),
        })
    }

    async fn write(&self, ready: &Ready) -> Result<Written> {
        let sending = self.produce.send(None, vec![ready.record.clone()], self.traceparent.as_deref());
        let receipt = self.carrier.clone().run(sending).await?;
        let lost = || Err(BridgeError::new(Code::OutcomeUnknown, "the producer gave no result"));
        receipt.results.first().cloned().unwrap_or_else(lost)
    }

    fn place<'a>(&'a self, ready: &'a Ready, written: Written) -> Place<'a> {
        Place {
            cluster_id: &self.cluster,
            topic_name: &self.topic,
            partition_id: written.partition,
            offset: written.offset,
            timestamp: instant(ready.timestamp_ms),
            key: ready.key.as_ref(),
            value: ready.value.as_ref(),
        }
    }
}

/// As Java writes an instant: without a fraction where there is none.
fn instant(timestamp_ms: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(timestamp_ms).unwrap_or(0));
    if timestamp_ms % 1000 == 0 {
        humantime::format_rfc3339_seconds(at).to_string()
    } else {
        humantime::format_rfc3339_millis(at).to_string()
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn bad(message: String) -> BridgeError {
    BridgeError::new(Code::BadRequest, format!("Bad Request: {message}"))
}

impl Record<'_> {
    async fn ready(self, target: &Target) -> Result<Ready> {
        if let Some(partition) = self.partition_id.filter(|partition| *partition < 0) {
            return Err(BridgeError::new(Code::PartitionNotFound, format!("partition_id is {partition}; partitions are numbers from 0")));
        }
        let timestamp_ms = match self.timestamp {
            None => now_ms(),
            Some(text) => {
                let parsed = humantime::parse_rfc3339_weak(&text).ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                let parsed = parsed.and_then(|since| i64::try_from(since.as_millis()).ok());
                parsed.ok_or_else(|| bad(format!("timestamp={text:?} is not a time like 2021-02-05T19:14:42Z")))?
            }
        };
        let headers = self.headers.unwrap_or_default().into_iter().map(|header| {
            let value = STANDARD.decode(header.value.as_deref().unwrap_or_default());
            let value = value.map_err(|error| bad(format!("the value of header {:?} is not a base64 string: {error}", header.name)))?;
            Ok((header.name, Bytes::from(value)))
        });
        let headers = headers.collect::<Result<_>>()?;
        let (key, key_part) = match self.key {
            Some(data) => data.bytes(&target.registry, &target.topic, true).await?,
            None => (None, None),
        };
        let (value, value_part) = match self.value {
            Some(data) => data.bytes(&target.registry, &target.topic, false).await?,
            None => (None, None),
        };
        let topic = Arc::clone(&target.topic);
        let record = OutRecord { topic, partition: self.partition_id, key, value, headers, timestamp_ms: Some(timestamp_ms) };
        Ok(Ready { record, timestamp_ms, key: key_part, value: value_part })
    }
}

// === A stream ===

/// One record's bytes with their place in the body, or why no more can come.
type Piece = Result<(u64, Bytes, OwnedSemaphorePermit), BridgeError>;

/// What is cut from a body, as long as there is room for it.
struct Pieces {
    body: BodyDataStream,
    splitter: Splitter,
    /// In KiB.
    room: Arc<Semaphore>,
    room_kib: u32,
    over: bool,
}

impl Pieces {
    async fn next(&mut self) -> Option<Piece> {
        if self.over {
            return None;
        }
        let next = self.read().await;
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }

    async fn read(&mut self) -> Result<Option<(u64, Bytes, OwnedSemaphorePermit)>> {
        let garbled = |message: String| BridgeError::new(Code::BadRequest, format!("Error processing message: {message}"));
        loop {
            if let Some((at, object)) = self.splitter.next().map_err(garbled)? {
                let kib = u32::try_from(object.len().div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, self.room_kib);
                let permit = Arc::clone(&self.room).acquire_many_owned(kib).await;
                let permit = permit.map_err(|_| BridgeError::new(Code::Unavailable, "the stream is over"))?;
                return Ok(Some((at, object, permit)));
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.splitter.push(&bytes),
                Some(Err(error)) => {
                    return Err(BridgeError::new(Code::SlowBody, format!("the body came too slowly or broke off: {error}")));
                }
                None => {
                    self.splitter.finish().map_err(garbled)?;
                    return Ok(None);
                }
            }
        }
    }
}

pub(in crate::http) async fn records(
    State(app): State<App>,
    Path((name, topic)): Path<(String, String)>,
    headers: HeaderMap,
    limits: Option<Extension<StreamedBody>>,
    body: Body,
) -> Reply {
    let target = Arc::new(Target::find(&app, &headers, &name, &topic).await?);
    let open = app.produce.open_stream()?;
    // Bounded here: by what is on its way, not by what was sent in all.
    if let Some(Extension(limits)) = limits {
        limits.lift();
    }
    let config = &app.config.produce;
    let room_kib = config.stream_room_kib();
    let mut pieces = Pieces {
        body: body.into_data_stream(),
        splitter: Splitter::new(config.stream_bytes_max),
        room: Arc::new(Semaphore::new(room_kib as usize)),
        room_kib,
        over: false,
    };
    // The first tells whether this is a stream at all: until then the answer can have a status.
    let first = match pieces.next().await {
        None => return Err(BridgeError::new(Code::InvalidPayload, "Payload error. Request body is empty. Data is required.").into()),
        Some(Err(error)) => return Err(error.into()),
        Some(first) => first,
    };
    let rest = stream::unfold(pieces, async |mut pieces| Some((pieces.next().await?, pieces)));
    let all = stream::iter([first]).chain(rest).take_until(app.produce.draining());
    let receipts = receipts(all, target, config.stream_records_max, open);
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, JSON)], Body::from_stream(receipts)).into_response())
}

/// In the order of the records, one a line.
fn receipts<P>(
    pieces: P,
    target: Arc<Target>,
    at_a_time: usize,
    open: crate::produce::OpenStream,
) -> impl Stream<Item = Result<Bytes, std::io::Error>>
where
    P: Stream<Item = Piece>,
{
    // One after the other: a record that waits for its schema is not overtaken.
    let schemas = Arc::clone(&target);
    let ready = move |piece: Piece| {
        let target = Arc::clone(&schemas);
        async move {
            let (at, object, permit) = piece?;
            let record: Record<'_> =
                serde_json::from_slice(&object).map_err(|error| bad(format!("the record that begins at byte {at}: {error}")))?;
            Ok((target.carrier.clone().run(record.ready(&target)).await?, permit))
        }
    };
    let receipt = move |ready: Result<(Ready, OwnedSemaphorePermit)>| {
        let target = Arc::clone(&target);
        async move {
            let written = async {
                let (ready, _permit) = ready?;
                let written = target.write(&ready).await?;
                Ok::<_, BridgeError>((ready, written))
            };
            let mut line = match &written.await {
                Ok((ready, written)) => {
                    let place = Some(target.place(ready, *written));
                    serde_json::to_vec(&Receipt { id: None, error_code: Some(200), message: None, place })
                }
                Err(error) => {
                    serde_json::to_vec(&Receipt { id: None, error_code: Some(code(error).0), message: Some(&error.message), place: None })
                }
            }
            .unwrap_or_default();
            line.extend_from_slice(b"\r\n");
            Ok(Bytes::from(line))
        }
    };
    let answers = pieces.then(ready).map(receipt).buffered(at_a_time);
    answers.chain(stream::once(async move {
        drop(open);
        Ok(Bytes::new())
    }))
}

// === A batch ===

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch<'a> {
    #[serde(borrow)]
    entries: Vec<Object<Entry<'a>>>,
}

/// A record with an id of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    id: String,
    #[serde(default)]
    partition_id: Option<i32>,
    #[serde(default)]
    headers: Option<Vec<Header>>,
    #[serde(borrow, default)]
    key: Option<Data<'a>>,
    #[serde(borrow, default)]
    value: Option<Data<'a>>,
    #[serde(default)]
    timestamp: Option<String>,
}

/// 207: each entry is among the successes or the failures.
pub(in crate::http) async fn records_batch(
    State(app): State<App>,
    Path((name, topic)): Path<(String, String)>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let target = Arc::new(Target::find(&app, &headers, &name, &topic).await?);
    let refused = |message: &str| BridgeError::new(Code::InvalidBatch, message);
    if bytes.is_empty() {
        return Err(refused("Request body is empty. Data is required.").into());
    }
    let batch: Batch<'_> = serde_json::from_slice(&bytes)
        .map_err(|error| BridgeError::new(Code::BadRequest, format!("the body is not as expected: {error}; GET /openapi shows what is")))?;
    let mut ids = HashSet::new();
    for Object(entry) in &batch.entries {
        if entry.id.is_empty() || entry.id.len() > 80 {
            return Err(refused("Batch entry identifier is not a valid string.").into());
        }
        if !ids.insert(entry.id.as_str()) {
            return Err(refused("Batch entry IDs are not distinct.").into());
        }
    }
    if batch.entries.is_empty() {
        return Err(refused("Empty batch.").into());
    }
    if batch.entries.len() > app.config.produce.batch_records_max {
        return Err(refused("Too many entries in batch.").into());
    }
    let mut ready: Vec<(String, Result<Ready>)> = Vec::with_capacity(batch.entries.len());
    for Object(Entry { id, partition_id, headers, key, value, timestamp }) in batch.entries {
        ready.push((id, Record { partition_id, headers, key, value, timestamp }.ready(&target).await));
    }
    let write = |(id, ready): (String, Result<Ready>)| {
        let target = Arc::clone(&target);
        async move {
            let written = match ready {
                Ok(ready) => target.write(&ready).await.map(|written| (ready, written)),
                Err(error) => Err(error),
            };
            (id, written)
        }
    };
    let outcomes = stream::iter(ready).map(write);
    let outcomes: Vec<_> = outcomes.buffered(app.config.produce.stream_records_max).collect().await;
    let (mut successes, mut failures) = (Vec::new(), Vec::new());
    for (id, outcome) in &outcomes {
        let id = Some(id.as_str());
        match outcome {
            Ok((ready, written)) => {
                successes.push(Receipt { id, error_code: None, message: None, place: Some(target.place(ready, *written)) });
            }
            Err(error) => failures.push(Receipt { id, error_code: Some(code(error).0), message: Some(&error.message), place: None }),
        }
    }
    let answer: Response =
        json_response(StatusCode::MULTI_STATUS, JSON, &serde_json::json!({"successes": successes, "failures": failures}));
    Ok(answer)
}
