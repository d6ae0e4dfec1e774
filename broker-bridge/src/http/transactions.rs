//! `POST /records` (many topics at once, all or none) and `/transactions`: what the REST proxy does not have.

use std::time::Duration;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use service_kit::kafka::{OutRecord, TopicPartition};

use super::{
    App, JSON, base_url, json_response, negotiate,
    object::Object,
    parse,
    produce::{Record, out_record},
    without_key,
};
use crate::{
    codec::{Schemas, Writers},
    error::Result,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Records<'a> {
    #[serde(borrow)]
    records: Vec<Object<TopicRecord<'a>>>,
    /// These hold for each topic, under the subjects that are named by it.
    #[serde(default)]
    key_schema: Option<String>,
    #[serde(default)]
    key_schema_id: Option<i32>,
    #[serde(default)]
    value_schema: Option<String>,
    #[serde(default)]
    value_schema_id: Option<i32>,
}

/// A record of v2 with its topic.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicRecord<'a> {
    topic: String,
    #[serde(borrow, default)]
    key: Option<&'a serde_json::value::RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a serde_json::value::RawValue>,
    #[serde(default)]
    partition: Option<i32>,
    #[serde(default)]
    timestamp: Option<i64>,
    #[serde(default)]
    headers: Vec<super::produce::Header>,
}

/// Keys and values are in the format of the content type; plain JSON is the json format.
async fn records(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<Vec<OutRecord>> {
    without_key(headers)?;
    let codec = negotiate::produce_format_or_json(headers)?;
    let Records { records, key_schema, key_schema_id, value_schema, value_schema_id } = parse(body)?;
    let schemas = Schemas { key_schema, key_schema_id, value_schema, value_schema_id };
    let mut writers = Writers::new(codec, schemas);
    let mut ready = Vec::with_capacity(records.len());
    for (index, Object(record)) in records.into_iter().enumerate() {
        let TopicRecord { topic, key, value, partition, timestamp, headers } = record;
        let (topic, writer) = writers.of(&app.topics, &app.registry, &topic).await?;
        ready.push(out_record(writer, topic, None, index, Record { key, value, partition, timestamp, headers })?);
    }
    Ok(ready)
}

/// All records are written in one transaction, or none is.
pub(super) async fn write_all(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let records = records(&app, &headers, &body).await?;
    let count = records.len();
    app.transactions.write_all(records).await?;
    Ok(json_response(StatusCode::OK, JSON, &json!({"records": count})))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    /// How long it lives without a call.
    #[serde(default)]
    lease_ms: Option<u64>,
}

pub(super) async fn begin(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let wanted: Begin = if body.is_empty() {
        Begin::default()
    } else {
        negotiate::json_body(&headers)?;
        parse(&body)?
    };
    let begun = app.transactions.begin(wanted.lease_ms.map(Duration::from_millis)).await?;
    if let Err(error) = app.sessions.announce(&begun.id, app.config.transactions.timeout).await {
        // Nobody could find it.
        app.transactions.abort(&begun.id).await.ok();
        return Err(error);
    }
    let place = format!("{}/transactions/{}", base_url(&headers), begun.id);
    let mut response = json_response(
        StatusCode::CREATED,
        JSON,
        &json!({"transaction_id": begun.id, "base_uri": place, "lease_ms": begun.lease.as_millis() as u64}),
    );
    if let Ok(place) = HeaderValue::from_str(&place) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

pub(super) async fn produce(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let count = app.transactions.produce(&id, records(&app, &headers, &body).await?).await?;
    Ok(json_response(StatusCode::OK, JSON, &json!({"records": count})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offsets {
    group: String,
    offsets: Vec<Offset>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offset {
    topic: String,
    partition: i32,
    /// The next one to read.
    offset: i64,
    #[serde(default)]
    metadata: String,
}

pub(super) async fn offsets(State(app): State<App>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Result<StatusCode> {
    negotiate::json_body(&headers)?;
    let Offsets { group, offsets } = parse(&body)?;
    let offsets = offsets.into_iter().map(|one| (TopicPartition::new(one.topic, one.partition), one.offset, one.metadata)).collect();
    app.transactions.offsets(&id, &group, offsets).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn commit(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    app.transactions.commit(&id).await?;
    ended(app, id);
    Ok(StatusCode::NO_CONTENT)
}

/// Nobody waits for its entry to go.
fn ended(app: App, id: String) {
    app.sessions.tasks().spawn(async move { app.sessions.withdraw(&id).await });
}

pub(super) async fn abort(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode> {
    app.transactions.abort(&id).await?;
    ended(app, id);
    Ok(StatusCode::NO_CONTENT)
}
