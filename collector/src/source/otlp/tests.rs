use std::{io::Write as _, time::Duration};

use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
    resource::v1::Resource,
};
use proptest::prelude::*;
use prost::Message as _;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::decode::{Fault, events};
use super::*;
use crate::channel::{
    Channel,
    memory::{Limits as ChannelLimits, MemoryChannel},
};
use crate::counters::SourceCounters;
use crate::event::Event;

fn some(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn text(text: &str) -> Value {
    Value::StringValue(text.into())
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.into(), value: some(value), key_strindex: 0 }
}

fn export(records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let resource = Resource { attributes: vec![pair("service.name", text("shop"))], dropped_attributes_count: 0, entity_refs: Vec::new() };
    let scope = InstrumentationScope {
        name: "till".into(),
        version: "1.2".into(),
        attributes: vec![pair("name", text("of the scope"))],
        dropped_attributes_count: 0,
    };
    let scope_logs = vec![ScopeLogs { scope: Some(scope), log_records: records, schema_url: "http://scope".into() }];
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs { resource: Some(resource), scope_logs, schema_url: "http://resource".into() }],
    }
}

fn said(body: &str) -> LogRecord {
    LogRecord { body: some(text(body)), ..LogRecord::default() }
}

fn read(request: &ExportLogsServiceRequest) -> Vec<Event> {
    events(Encoding::Protobuf, &request.encode_to_vec().into(), 100).unwrap()
}

fn headers(event: &Event) -> Vec<String> {
    event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}")).collect()
}

#[test]
fn a_record_is_an_event() {
    let record = LogRecord {
        time_unix_nano: 1_700_000_000_123_456_789,
        observed_time_unix_nano: 1_700_000_001_000_000_000,
        severity_number: 9,
        severity_text: "Information".into(),
        attributes: vec![
            pair("n", Value::IntValue(-3)),
            pair("b", Value::BytesValue(vec![0, 255])),
            pair("inf", Value::DoubleValue(f64::NEG_INFINITY)),
            pair(
                "list",
                Value::ArrayValue(ArrayValue { values: vec![AnyValue { value: Some(Value::BoolValue(true)) }, AnyValue::default()] }),
            ),
        ],
        dropped_attributes_count: 2,
        flags: 1,
        trace_id: (0..16).collect(),
        span_id: (16..24).collect(),
        event_name: "sold".into(),
        ..said("hello")
    };
    let events = read(&export(vec![record, LogRecord { observed_time_unix_nano: 5_000_000, severity_number: 14, ..LogRecord::default() }]));
    let common = [
        "resource.attributes.service.name=shop",
        "resource.schemaUrl=http://resource",
        "scope.attributes.name=of the scope",
        "scope.name=till",
        "scope.schemaUrl=http://scope",
        "scope.version=1.2",
    ];
    let first = [
        &["attributes.b=AP8=", "attributes.inf=-Infinity", "attributes.list=[true,null]", "attributes.n=-3"][..],
        &["droppedAttributesCount=2", "eventName=sold", "flags=1", "observedTimeUnixNano=1700000001000000000"],
        &common,
        &["severity=Information", "severityNumber=9", "spanId=1011121314151617", "timeUnixNano=1700000000123456789"],
        &["timestamp=1700000000123", "traceId=000102030405060708090a0b0c0d0e0f"],
    ];
    assert_eq!((&events[0].body[..], headers(&events[0])), (&b"hello"[..], first.concat().iter().map(ToString::to_string).collect()));
    let second = [&["observedTimeUnixNano=5000000"][..], &common, &["severity=WARN2", "severityNumber=14", "timestamp=5"]];
    assert_eq!((&events[1].body[..], headers(&events[1])), (&b""[..], second.concat().iter().map(ToString::to_string).collect()));
}

#[test]
fn a_body_that_is_no_text_is_json() {
    let map = |values| Value::KvlistValue(KeyValueList { values });
    for (body, expected) in [
        (text("{\"as\": \"it is\"}"), &b"{\"as\": \"it is\"}"[..]),
        (Value::BytesValue(vec![0, 159, 146]), &[0, 159, 146]),
        (Value::BoolValue(false), b"false"),
        (Value::IntValue(i64::MIN), b"-9223372036854775808"),
        (Value::DoubleValue(0.5), b"0.5"),
        (Value::DoubleValue(f64::NAN), b"NaN"),
        (
            map(vec![
                pair("z", text("é\"")),
                pair("a", map(vec![pair("x", Value::DoubleValue(f64::NAN)), pair("y", Value::BytesValue(vec![1]))])),
            ]),
            "{\"z\":\"é\\\"\",\"a\":{\"x\":\"NaN\",\"y\":\"AQ==\"}}".as_bytes(),
        ),
    ] {
        let events = read(&export(vec![LogRecord { body: some(body.clone()), ..LogRecord::default() }]));
        assert_eq!(&events[0].body[..], expected, "{body:?}");
    }
}

/// The example of the OTLP specification, shortened.
#[test]
fn json_is_read_by_otlps_rules() {
    let text = r#"{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]},
        "scopeLogs":[{"scope":{"name":"my.library","version":"1.0.0"},"unknown":[{}],"logRecords":[{"timeUnixNano":"1544712660300000000",
        "observedTimeUnixNano":1544712660300000000,"severityNumber":10,"severityText":"Information","traceId":"5B8EFFF798038103D269B633813FC60C",
        "spanId":"EEE19B7EC3C1B174","body":{"stringValue":"Example log record"},"attributes":[{"key":"int","value":{"intValue":"10"}},
        {"key":"map","value":{"kvlistValue":{"values":[{"key":"some","value":{"boolValue":true}}]}}}]}]}]}]}"#;
    let events = events(Encoding::Json, &Bytes::from_static(text.as_bytes()), 1).unwrap();
    let expected = [
        "attributes.int=10",
        "attributes.map={\"some\":true}",
        "observedTimeUnixNano=1544712660300000000",
        "resource.attributes.service.name=my.service",
        "scope.name=my.library",
        "scope.version=1.0.0",
        "severity=Information",
        "severityNumber=10",
        "spanId=eee19b7ec3c1b174",
        "timeUnixNano=1544712660300000000",
        "timestamp=1544712660300",
        "traceId=5b8efff798038103d269b633813fc60c",
    ];
    assert_eq!((&events[0].body[..], headers(&events[0])), (&b"Example log record"[..], expected.map(String::from).to_vec()));
}

#[test]
fn records_are_counted_before_they_are_read() {
    let many = |count: usize| export(vec![LogRecord::default(); count]).encode_to_vec();
    assert_eq!(events(Encoding::Protobuf, &many(5).into(), 5).unwrap().len(), 5);
    assert_eq!(events(Encoding::Protobuf, &many(6).into(), 5).unwrap_err(), Fault::TooMany { max: 5 });
    let json = |records: &str| format!(r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{records}]}}]}}]}}"#);
    assert_eq!(events(Encoding::Json, &json("{},{}").into(), 2).unwrap().len(), 2);
    assert_eq!(events(Encoding::Json, &json("{},{},{}").into(), 2).unwrap_err(), Fault::TooMany { max: 2 });
    // Nothing but empty groups.
    let empty = ExportLogsServiceRequest { resource_logs: vec![ResourceLogs::default(); 12] }.encode_to_vec();
    assert_eq!(events(Encoding::Protobuf, &empty.into(), 5).unwrap_err(), Fault::TooMany { max: 5 });
    for (encoding, body) in
        [(Encoding::Protobuf, &b"\x0a\x7f"[..]), (Encoding::Protobuf, b"\xff"), (Encoding::Json, b"{"), (Encoding::Json, b"[]")]
    {
        assert!(matches!(events(encoding, &body.into(), 5).unwrap_err(), Fault::Malformed(_)), "{body:?}");
    }
}

/// What is sent to a source before a channel of three events, two a transaction; the answers and the bodies that arrived.
async fn ask<B: Into<Body>>(requests: Vec<(&str, &str, B)>) -> (Vec<String>, Vec<String>) {
    let limits = ChannelLimits { events_max: 3, transaction_max: 2, bytes_max: usize::MAX, keep_alive: Duration::ZERO };
    let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(limits));
    let (_resume, paused) = watch::channel(false);
    let out = Output::new("o", vec![channel.clone()], SourceCounters::new("o"), paused, Arc::default());
    let router =
        router(Serving { puts: Puts::into_output(out), limits: Limits { bytes: 1000, records: 5, time: Duration::from_millis(50) } });
    let mut answers = Vec::new();
    for (path, kind, body) in requests {
        let request = Request::builder().method("POST").uri(path).header(header::CONTENT_TYPE, kind).header("grpc-encoding", "gzip");
        let response = router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let status = Status::from_header_map(response.headers());
        let retry = status.as_ref().and_then(|status| status.get_details_retry_info()).is_some()
            || response.headers().contains_key(header::RETRY_AFTER);
        let code = match (status, kind) {
            (Some(status), _) => format!("{:?}", status.code()),
            (None, "application/grpc") => "Ok".into(),
            (None, _) => response.status().as_u16().to_string(),
        };
        answers.push(if retry { format!("{code}, again") } else { code });
    }
    let (mut bodies, mut taken) = (Vec::new(), channel.clone().take(2, Duration::ZERO).await);
    while !taken.is_empty() {
        bodies.extend(taken.events().iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()));
        taken.commit();
        taken = channel.clone().take(2, Duration::ZERO).await;
    }
    (answers, bodies)
}

/// A gRPC message, gzip.
fn framed(message: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(message).unwrap();
    let packed = gzip.finish().unwrap();
    [&[1][..], &u32::try_from(packed.len()).unwrap().to_be_bytes(), &packed].concat()
}

#[tokio::test]
async fn an_export_is_taken_whole_or_refused_whole() {
    let two = || export(vec![said("1"), said("2")]).encode_to_vec();
    let of = |count: usize| export(vec![said("x"); count]).encode_to_vec();
    const GRPC: &str = "application/grpc";
    const PROTOBUF: &str = "application/x-protobuf";
    let requests = vec![
        (EXPORT, GRPC, framed(&two()), "Ok"),
        // Room for one: nothing is taken.
        (EXPORT, GRPC, framed(&two()), "Unavailable, again"),
        ("/v1/logs", PROTOBUF, two(), "503, again"),
        // Three are more than a transaction, six more than an export.
        (EXPORT, GRPC, framed(&of(3)), "ResourceExhausted"),
        ("/v1/logs", PROTOBUF, of(3), "413"),
        (EXPORT, GRPC, framed(&of(6)), "ResourceExhausted"),
        (EXPORT, GRPC, framed(b"\xff\xff"), "InvalidArgument"),
        ("/v1/logs", PROTOBUF, b"\xff\xff".to_vec(), "400"),
        ("/v1/logs", "application/json; charset=utf-8", b"{".to_vec(), "400"),
        ("/v1/logs", "text/plain", b"{}".to_vec(), "415"),
        // A megabyte of zeros in a kilobyte.
        (EXPORT, GRPC, framed(&vec![0; 1 << 20]), "OutOfRange"),
        (EXPORT, GRPC, framed(b""), "Ok"),
        ("/v1/logs", "application/json", b"{\"resourceLogs\":[]}".to_vec(), "200"),
        ("/v1/traces", PROTOBUF, Vec::new(), "404"),
        ("/opentelemetry.proto.collector.trace.v1.TraceService/Export", GRPC, framed(b""), "Unimplemented"),
        ("/v1/logs", PROTOBUF, of(1), "200"),
    ];
    let expected: Vec<&str> = requests.iter().map(|request| request.3).collect();
    let (answers, bodies) = ask(requests.into_iter().map(|(path, kind, body, _)| (path, kind, body)).collect()).await;
    assert_eq!((answers, bodies), (expected.iter().map(ToString::to_string).collect(), vec!["1".to_owned(), "2".into(), "x".into()]));
}

#[tokio::test]
async fn a_body_that_does_not_come_whole_is_sent_again() {
    type Piece = Result<Bytes, std::io::Error>;
    let begun = || futures::stream::iter([Piece::Ok(Bytes::copy_from_slice(&framed(b"")[..9]))]);
    let endless = || Body::from_stream(begun().chain(futures::stream::pending::<Piece>()));
    let broken = || Body::from_stream(begun().chain(futures::stream::iter([Err(std::io::ErrorKind::ConnectionReset.into())])));
    let (grpc, protobuf) = ("application/grpc", "application/x-protobuf");
    let requests =
        vec![(EXPORT, grpc, endless()), ("/v1/logs", protobuf, endless()), (EXPORT, grpc, broken()), ("/v1/logs", protobuf, broken())];
    let (answers, bodies) = ask(requests).await;
    assert_eq!((answers.join("; "), bodies.len()), ("DeadlineExceeded; 503, again; Aborted; 503, again".into(), 0));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<String>().prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        any::<f64>().prop_map(Value::DoubleValue),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::BytesValue),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let pairs = prop::collection::vec((any::<String>(), inner.clone()), 0..4);
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|values| Value::ArrayValue(ArrayValue {
                values: values.into_iter().map(|value| AnyValue { value: Some(value) }).collect()
            })),
            pairs.prop_map(|pairs| Value::KvlistValue(KeyValueList {
                values: pairs.iter().map(|(key, value)| pair(key, value.clone())).collect()
            })),
        ]
    })
}

proptest! {
    #[test]
    fn no_export_makes_it_panic(body in prop::collection::vec(prop_oneof![Just(0x0a), Just(0x12), Just(0x2a), 0..24u8, any::<u8>()], 0..200)) {
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            drop(events(encoding, &body.clone().into(), 10));
        }
    }

    #[test]
    fn nothing_like_an_export_in_json_makes_it_panic(text in r#"(\[|\{|\]|\}|,|:|"resourceLogs":|"scopeLogs":|"logRecords":|"body":|"stringValue":|"intValue":|"traceId":|"a"|"zz"|null|true|-?[0-9]{1,20}){0,30}"#) {
        drop(events(Encoding::Json, &text.into(), 10));
    }

    /// A cut or flipped byte of a whole export: an error, or events; never a panic.
    #[test]
    fn no_damaged_export_makes_it_panic(bodies in prop::collection::vec(value(), 1..4), at: prop::sample::Index, bits: u8, cut: bool) {
        let records = bodies.into_iter().map(|body| LogRecord { body: some(body), ..said("") }).collect();
        let mut message = export(records).encode_to_vec();
        let at = at.index(message.len());
        if cut { message.truncate(at) } else { message[at] ^= bits }
        drop(events(Encoding::Protobuf, &message.into(), 10));
    }

    /// Every record of a valid export comes out, with its body and attributes, in order; the same from JSON.
    #[test]
    fn every_record_comes_out(sent in prop::collection::vec((any::<String>(), prop::collection::btree_map(any::<String>(), value(), 0..4)), 0..8)) {
        let record = |(body, attributes): &(String, std::collections::BTreeMap<String, Value>)| LogRecord {
            attributes: attributes.iter().map(|(key, value)| pair(key, value.clone())).collect(),
            ..said(body)
        };
        let request = export(sent.iter().map(record).collect());
        let got = read(&request);
        prop_assert_eq!(got.len(), sent.len());
        for (event, (body, attributes)) in got.iter().zip(&sent) {
            prop_assert_eq!(&event.body[..], body.as_bytes());
            for (key, value) in attributes {
                let header = event.header(&format!("attributes.{key}"));
                prop_assert!(header.is_some(), "{}", key);
                if let Value::StringValue(text) = value {
                    prop_assert_eq!(header, Some(text.as_str()));
                }
            }
        }
        // JSON has no numbers that are not finite.
        let finite = !format!("{request:?}").contains("DoubleValue(NaN)") && !format!("{request:?}").contains("inf)");
        if finite {
            let json = serde_json::to_vec(&request).unwrap();
            let from_json = events(Encoding::Json, &json.into(), 100).unwrap();
            let shown = |events: &[Event]| events.iter().map(|event| (event.body.clone(), headers(event))).collect::<Vec<_>>();
            prop_assert_eq!(shown(&from_json), shown(&got));
        }
    }
}
