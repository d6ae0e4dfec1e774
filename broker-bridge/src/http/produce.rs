//! `POST /topics/{topic}` and `POST /topics/{topic}/partitions/{partition}`.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use service_kit::kafka::OutRecord;

use super::{App, V2, json_response, negotiate, object::Object, parse, partition_id, query, text_header};
use crate::{
    codec::{Schemas, Writer},
    config::Compat,
    error::{BridgeError, Code, Result},
    produce::{Receipt, RecordOutcome},
    trace::TRACEPARENT,
};

/// `{"records": […]}`, and the schemas where the format has some.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<'a> {
    #[serde(borrow)]
    records: Vec<Object<Record<'a>>>,
    #[serde(default)]
    key_schema: Option<String>,
    #[serde(default)]
    key_schema_id: Option<i32>,
    #[serde(default)]
    value_schema: Option<String>,
    #[serde(default)]
    value_schema_id: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record<'a> {
    #[serde(borrow, default)]
    pub(super) key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) value: Option<&'a RawValue>,
    #[serde(default)]
    pub(super) partition: Option<i32>,
    /// Milliseconds since 1970.
    #[serde(default)]
    pub(super) timestamp: Option<i64>,
    #[serde(default)]
    pub(super) headers: Vec<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    key: String,
    /// Base64.
    value: String,
}

pub(super) async fn to_topic(
    State(app): State<App>,
    Path(topic): Path<String>,
    Query(options): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    produce(&app, &topic, None, &options, &headers, &body).await
}

pub(super) async fn to_partition(
    State(app): State<App>,
    Path((topic, partition)): Path<(String, String)>,
    Query(options): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let partition = partition_id(&topic, &partition)?;
    produce(&app, &topic, Some(partition), &options, &headers, &body).await
}

async fn produce(
    app: &App,
    topic: &str,
    partition: Option<i32>,
    options: &HashMap<String, String>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response> {
    let codec = negotiate::produce_format(headers)?;
    negotiate::json_answer(headers)?;
    let key = text_header(headers, "idempotency-key")?;
    if key == Some("") {
        return Err(BridgeError::new(Code::Unprocessable, "the header idempotency-key is empty; send a key, as a UUID, or leave it out"));
    }
    let Request { records, key_schema, key_schema_id, value_schema, value_schema_id } = parse(body)?;
    if records.is_empty() {
        return Err(BridgeError::new(Code::Unprocessable, "records is empty; send at least one record"));
    }
    // No schema is registered for a topic that is not there.
    app.topics.check(topic, partition).await?;
    let schemas = Schemas { key_schema, key_schema_id, value_schema, value_schema_id };
    let writer = Writer::new(codec, &app.registry, topic, &schemas).await?;
    let topic: Arc<str> = topic.into();
    let records: Vec<OutRecord> = records
        .into_iter()
        .enumerate()
        .map(|(index, Object(record))| out_record(&writer, &topic, partition, index, record))
        .collect::<Result<_>>()?;

    let traceparent = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    if query::<bool>(options, "async")?.unwrap_or(false) {
        app.produce.send_unattended(key, records, traceparent)?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let receipt = app.produce.send(key, records, traceparent).await?;
    Ok(answer(app.config.http.compat, &receipt, &writer))
}

pub(super) fn out_record(writer: &Writer, topic: &Arc<str>, partition: Option<i32>, index: usize, record: Record<'_>) -> Result<OutRecord> {
    if let (Some(path), Some(own)) = (partition, record.partition)
        && path != own
    {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("records[{index}].partition is {own}, the path says {path}; leave it out"),
        ));
    }
    if record.timestamp.is_some_and(|timestamp| timestamp < 0) {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("records[{index}].timestamp is negative; it counts milliseconds since 1970"),
        ));
    }
    let headers = record.headers.into_iter().map(|header| match STANDARD.decode(&header.value) {
        Ok(value) => Ok((header.key, Bytes::from(value))),
        Err(error) => {
            let message = format!("records[{index}].headers {:?} is not padded base64: {error}", header.key);
            Err(BridgeError::new(Code::InvalidPayload, message))
        }
    });
    Ok(OutRecord {
        topic: Arc::clone(topic),
        partition: partition.or(record.partition),
        key: record.key.map(|raw| writer.key(raw, index)).transpose()?,
        value: record.value.map(|raw| writer.value(raw, index)).transpose()?,
        headers: headers.collect::<Result<_>>()?,
        timestamp_ms: record.timestamp,
    })
}

/// `200` when a record was written, with a result for each. When none was, the status is that of the first failure.
fn answer(compat: Compat, receipt: &Receipt, writer: &Writer) -> Response {
    let offsets: Vec<Value> = receipt.results.iter().map(|result| record_result(compat, result)).collect();
    let failed = receipt.results.iter().all(Result::is_err);
    let mut response = match receipt.results.first() {
        Some(Err(error)) if failed => {
            let number = if compat == Compat::Strimzi { u32::from(error.code.status().as_u16()) } else { error.code.number() };
            let body = json!({"error_code": number, "message": error.message, "offsets": offsets});
            let mut response = error.clone().into_response();
            *response.body_mut() = axum::body::Body::from(body.to_string());
            if compat == Compat::Strimzi {
                // It is in Strimzi's form already.
                response.extensions_mut().remove::<BridgeError>();
            }
            // The length is that of the shorter body.
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response
        }
        _ if compat == Compat::Confluent => {
            let (key, value) = (writer.key_schema_id(), writer.value_schema_id());
            json_response(StatusCode::OK, V2, &json!({"offsets": offsets, "key_schema_id": key, "value_schema_id": value}))
        }
        _ => json_response(StatusCode::OK, V2, &json!({"offsets": offsets})),
    };
    if receipt.replayed {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    response
}

fn record_result(compat: Compat, result: &RecordOutcome) -> Value {
    match (compat, result) {
        (Compat::Confluent, Ok(written)) => {
            json!({"partition": written.partition, "offset": written.offset, "error_code": null, "error": null})
        }
        (Compat::Confluent, Err(error)) => {
            json!({"partition": null, "offset": null, "error_code": error.code.number(), "error": error.message})
        }
        (Compat::Strimzi, Ok(written)) => json!({"partition": written.partition, "offset": written.offset}),
        (Compat::Strimzi, Err(error)) => json!({"error_code": error.code.status().as_u16(), "message": error.message}),
    }
}
