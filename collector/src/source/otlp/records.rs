//! Log records as events. The names of headers are those of OTLP, and of OTTL for attributes.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, SeverityNumber},
};
use serde::{Serialize, Serializer};

use crate::event::Event;

const NANOS_A_MILLI: u64 = 1_000_000;

type Headers = BTreeMap<String, String>;

pub(super) fn events(request: ExportLogsServiceRequest) -> Vec<Event> {
    let mut events = Vec::new();
    for of_resource in request.resource_logs {
        let mut common = Headers::new();
        put(&mut common, "resource.schemaUrl", of_resource.schema_url);
        put_all(&mut common, "resource.attributes.", of_resource.resource.unwrap_or_default().attributes);
        for of_scope in of_resource.scope_logs {
            let (mut common, scope) = (common.clone(), of_scope.scope.unwrap_or_default());
            put(&mut common, "scope.name", scope.name);
            put(&mut common, "scope.version", scope.version);
            put(&mut common, "scope.schemaUrl", of_scope.schema_url);
            put_all(&mut common, "scope.attributes.", scope.attributes);
            events.extend(of_scope.log_records.into_iter().map(|record| event(record, common.clone())));
        }
    }
    events
}

fn event(record: LogRecord, mut headers: Headers) -> Event {
    let number = |number: u64| if number == 0 { String::new() } else { number.to_string() };
    let time = if record.time_unix_nano == 0 { record.observed_time_unix_nano } else { record.time_unix_nano };
    if time > 0 {
        put(&mut headers, "timestamp", (time / NANOS_A_MILLI).to_string());
    }
    put(&mut headers, "timeUnixNano", number(record.time_unix_nano));
    put(&mut headers, "observedTimeUnixNano", number(record.observed_time_unix_nano));
    if record.severity_number != 0 {
        put(&mut headers, "severityNumber", record.severity_number.to_string());
    }
    put(&mut headers, "severity", if record.severity_text.is_empty() { severity(record.severity_number) } else { record.severity_text });
    put(&mut headers, "traceId", hex(&record.trace_id));
    put(&mut headers, "spanId", hex(&record.span_id));
    put(&mut headers, "flags", number(record.flags.into()));
    put(&mut headers, "eventName", record.event_name);
    put(&mut headers, "droppedAttributesCount", number(record.dropped_attributes_count.into()));
    put_all(&mut headers, "attributes.", record.attributes);
    let body = match record.body.and_then(|body| body.value) {
        Some(Value::BytesValue(bytes)) => bytes,
        body => text(body).into_bytes(),
    };
    Event { headers: (!headers.is_empty()).then(|| Arc::new(headers)), ..Event::new(body) }
}

/// Empty is as if it were not there, as everywhere in Protobuf.
fn put(headers: &mut Headers, name: &str, value: String) {
    if !value.is_empty() {
        headers.insert(name.to_owned(), value);
    }
}

fn put_all(headers: &mut Headers, prefix: &str, attributes: Vec<KeyValue>) {
    for attribute in attributes {
        headers.insert(format!("{prefix}{}", attribute.key), text(attribute.value.and_then(|value| value.value)));
    }
}

/// `INFO`, `WARN2`; empty where the number means nothing.
fn severity(number: i32) -> String {
    let known = SeverityNumber::try_from(number).ok().filter(|known| *known != SeverityNumber::Unspecified);
    known.map(|known| known.as_str_name().trim_start_matches("SEVERITY_NUMBER_").to_owned()).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value as text, as OTLP says it for protocols that have nothing but text.
fn text(value: Option<Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::StringValue(text)) => text,
        Some(Value::BytesValue(bytes)) => BASE64.encode(bytes),
        Some(Value::DoubleValue(number)) if !number.is_finite() => not_finite(number).to_owned(),
        // Writing JSON to memory fails at nothing that can be here.
        Some(value) => serde_json::to_string(&Json(&value)).unwrap_or_default(),
    }
}

fn not_finite(number: f64) -> &'static str {
    if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

struct Json<'a>(&'a Value);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn inner(value: Option<&AnyValue>) -> Option<Json<'_>> {
            value.and_then(|value| value.value.as_ref()).map(Json)
        }
        match self.0 {
            Value::StringValue(text) => serializer.serialize_str(text),
            Value::BoolValue(truth) => serializer.serialize_bool(*truth),
            Value::IntValue(number) => serializer.serialize_i64(*number),
            Value::DoubleValue(number) if !number.is_finite() => serializer.serialize_str(not_finite(*number)),
            Value::DoubleValue(number) => serializer.serialize_f64(*number),
            Value::BytesValue(bytes) => serializer.serialize_str(&BASE64.encode(bytes)),
            Value::ArrayValue(list) => serializer.collect_seq(list.values.iter().map(|value| inner(Some(value)))),
            Value::KvlistValue(map) => serializer.collect_map(map.values.iter().map(|pair| (&pair.key, inner(pair.value.as_ref())))),
            // Means something in profiles only.
            Value::StringValueStrindex(index) => serializer.serialize_i32(*index),
        }
    }
}
