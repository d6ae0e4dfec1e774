use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::record::{Record, Reference, SchemaValue},
    *,
};

/// References as (name, subject), of version 1.
pub(in super::super) fn put(
    state: &mut State,
    subject: &str,
    version: i32,
    id: i32,
    kind: &str,
    schema: &str,
    references: &[(&str, &str)],
) {
    let references =
        references.iter().map(|(name, subject)| Reference { name: (*name).into(), subject: (*subject).into(), version: 1 }).collect();
    let value = SchemaValue {
        subject: subject.to_owned(),
        version,
        id,
        md5: None,
        schema_type: Some(kind.to_owned()),
        references,
        metadata: None,
        rule_set: None,
        schema: schema.to_owned(),
        deleted: false,
    };
    state.apply(Record::Schema { subject: subject.to_owned(), version, value: Some(Box::new(value)) }, 0).unwrap();
}

fn with_references(kind: &str, schema: &str, references: &[(&str, &str)]) -> ValueSchema {
    let mut state = State::default();
    for (number, (name, text)) in references.iter().enumerate() {
        put(&mut state, name, 1, 100 + number as i32, kind, text, &[]);
    }
    let names: Vec<(&str, &str)> = references.iter().map(|(name, _)| (*name, *name)).collect();
    put(&mut state, "s", 1, 7, kind, schema, &names);
    ValueSchema::read(&state, state.version("s", 1, super::super::state::Filter::Live).unwrap()).unwrap()
}

fn schema(kind: &str, text: &str) -> ValueSchema {
    with_references(kind, text, &[])
}

fn decode(schema: &ValueSchema, bytes: &[u8]) -> Result<Value, String> {
    let mut out = b"before".to_vec();
    let read = schema.decode(bytes, &mut out, 1 << 20);
    assert!(out.starts_with(b"before") && (read.is_ok() || out.len() == 6));
    read.map(|()| serde_json::from_slice(&out[6..]).unwrap())
}

#[track_caller]
fn check(schema: &ValueSchema, json: &Value, bytes: &[u8], shown: &Value) {
    assert_eq!(schema.encode(&json.to_string()).unwrap(), [&[0, 0, 0, 0, 7], bytes].concat(), "{json}");
    assert_eq!(&decode(schema, &[&[0, 0, 0, 0, 7], bytes].concat()).unwrap(), shown);
}

#[track_caller]
fn refused(schema: &ValueSchema, json: &Value, expected: &str) {
    let error = schema.encode(&json.to_string()).unwrap_err();
    assert!(error.contains(expected), "{json}: {expected:?} is not in {error:?}");
}

#[test]
fn the_head_says_the_schema() {
    assert_eq!(schema_id(&[0, 0, 0, 1, 2, 9]), Some(258));
    for other in [&[][..], &[0, 0, 0, 1], &[1, 0, 0, 0, 1, 0], b"{\"a\":1}"] {
        assert_eq!(schema_id(other), None);
    }
    let avro = with_references(
        "AVRO",
        r#"{"type":"record","name":"U","fields":[{"name":"r","type":"R"}]}"#,
        &[("R", r#"{"type":"record","name":"R","fields":[{"name":"a","type":"int"}]}"#)],
    );
    check(&avro, &json!({"r": {"a": 1}}), &[2], &json!({"r": {"a": 1}}));
    assert_eq!(avro.name.as_deref(), Some("U"));
    refused(&avro, &json!({"r": {"a": "x"}}), r#"at r.a: expected int, found "x""#);
}

#[test]
fn json_values_are_checked_by_their_schema_and_stay_as_they_are() {
    let text = r#"{"type":"object","title":"Item","properties":{"id":{"type":"integer"},"tags":{"type":"array","items":{"type":"string","maxLength":3}},
        "at":{"type":"string","format":"date-time"}},"required":["id"],"additionalProperties":false}"#;
    let item = schema("JSON", text);
    assert_eq!(item.name.as_deref(), Some("Item"));
    check(&item, &json!({"id": 1, "tags": ["a"]}), br#"{"id":1,"tags":["a"]}"#, &json!({"id": 1, "tags": ["a"]}));
    // The text of numbers, and the order, are the caller's.
    assert_eq!(&item.encode("{ \"tags\" : [ ], \"id\" : 1.0 }").unwrap()[5..], br#"{"tags":[],"id":1.0}"#);
    refused(&item, &json!({"id": 1, "tags": ["a", "long"]}), "at tags.1: ");
    refused(&item, &json!({"id": "1"}), "at id: ");
    refused(&item, &json!({}), "\"id\" is a required property");
    refused(&item, &json!({"id": 1, "more": 1}), "more");
    // A schema that does not say its draft is of draft-07, which checks formats.
    refused(&item, &json!({"id": 1, "at": "yesterday"}), "at at: ");
    let long = json!({"id": "x".repeat(100_000)});
    assert!(item.encode(&long.to_string()).unwrap_err().len() < 1_000, "a value is not repeated in full");

    // References by name, within each other, and by their ids.
    let order = with_references(
        "JSON",
        r#"{"type":"object","properties":{"by":{"$ref":"user.json"},"to":{"$ref":"https://shop/place.json"}}}"#,
        &[
            ("name.json", r#"{"type":"string","minLength":2}"#),
            ("user.json", r#"{"type":"object","properties":{"name":{"$ref":"name.json"}}}"#),
            ("https://shop/place.json", r#"{"$id":"https://shop/place.json","type":"integer"}"#),
        ],
    );
    let right = json!({"by": {"name": "Ada"}, "to": 3});
    check(&order, &right, right.to_string().as_bytes(), &right);
    refused(&order, &json!({"by": {"name": "A"}}), "at by.name: ");
    refused(&order, &json!({"to": "x"}), "at to: ");
    let with_id = with_references(
        "JSON",
        r#"{"$id":"https://shop/order.json","items":{"$ref":"user.json"}}"#,
        &[("user.json", r#"{"type":"boolean"}"#)],
    );
    refused(&with_id, &json!([true, 1]), "at 1: ");
    // What is read is JSON, whatever it says: the writer has checked it.
    assert_eq!(decode(&item, b"\0\0\0\0\x07{\"id\":\n\"x\"}").unwrap(), json!({"id": "x"}));
    for broken in [&b"\0\0\0\0\x07"[..], b"\0\0\0\0\x07{", b"\0\0\0\0\x07\xff", b"\0\0\0\0\x071 2"] {
        assert!(decode(&item, broken).unwrap_err().starts_with("it is not JSON"));
    }
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    assert!(schema("JSON", "{}").encode(&deep).unwrap_err().contains("recursion limit"));
    // A pattern that takes long is given up, not waited for.
    let slow = schema("JSON", r#"{"type":"string","pattern":"^(a|aa)+(?=b)$"}"#);
    let started = std::time::Instant::now();
    drop(slow.encode(&json!("a".repeat(60)).to_string()));
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

const PROTO: &str = r#"
    syntax = "proto3";
    package shop;
    import "google/protobuf/timestamp.proto";
    message Order {
      int64 id = 1;
      string by_name = 2;
      repeated Line lines = 3;
      map<string, int32> counts = 4;
      Kind kind = 5;
      bytes raw = 6;
      optional double price = 7;
      oneof way { string post = 8; bool fetched = 9; }
      google.protobuf.Timestamp at = 10;
      Order before = 11;
      message Line { string what = 1; message Deep { bool yes = 1; } }
    }
    enum Kind { NONE = 0; SOME = 1; }
    message Second { int32 number = 1; }
"#;

#[test]
fn protobuf_messages_are_as_java_s_json_has_them() {
    let order = schema("PROTOBUF", PROTO);
    assert_eq!(order.name.as_deref(), Some("shop.Order"));
    let defaults = json!({"id": "0", "byName": "", "lines": [], "counts": {}, "kind": "NONE", "raw": ""});
    check(&order, &json!({}), &[0], &defaults);
    let shown = json!({"id": "-5", "byName": "Ada", "lines": [{"what": "x"}], "counts": {"a": 1}, "kind": "SOME", "raw": "AP8=", "price": 0.5, "post": "", "at": "2021-02-05T19:14:42Z"});
    let bytes = order.encode(&shown.to_string()).unwrap();
    assert_eq!(decode(&order, &bytes).unwrap(), shown);
    // Names as in the schema, and numbers as numbers.
    check(
        &order,
        &json!({"id": 3, "by_name": "A"}),
        &[0, 8, 3, 0x12, 1, b'A'],
        &json!({"id": "3", "byName": "A", "lines": [], "counts": {}, "kind": "NONE", "raw": ""}),
    );
    refused(&order, &json!({"id": "x"}), "at id: ");
    refused(&order, &json!({"lines": [{}, {"what": 1}]}), "at lines[1].what: ");
    refused(&order, &json!({"nothing": 1}), "unrecognized field name 'nothing'");
    refused(&order, &json!({"kind": "OTHER"}), "at kind: ");
    refused(&order, &json!([]), "invalid type");
    assert!(order.encode("{}{}").is_err());

    // The type by its place: of the second message, and of one within another.
    let head = [0, 0, 0, 0, 7];
    let at = |rest: &[u8]| decode(&order, &[&head[..], rest].concat());
    assert_eq!(at(&[2, 2, 8, 9]).unwrap(), json!({"number": 9}));
    assert_eq!(at(&[4, 0, 0, 10, 1, b'x']).unwrap(), json!({"what": "x"}));
    assert_eq!(at(&[6, 0, 0, 0, 8, 1]).unwrap(), json!({"yes": true}));
    for (rest, expected) in [
        (&[][..], "breaks off within the message indexes"),
        (&[2], "breaks off within the message indexes"),
        (&[2, 4], "no message with index 2"),
        (&[4, 0, 2], "no message with index 1"),
        (&[1], "-1 is no count"),
        (&[0xfe, 0xff, 0xff, 0xff, 0xf], "is no count"),
        (&[0, 8], "it is no shop.Order"),
        (&[0, 0x12, 9, b'x'], "it is no shop.Order"),
    ] {
        let error = at(rest).unwrap_err();
        assert!(error.contains(expected), "{rest:?}: {expected:?} is not in {error:?}");
    }
    // Nested deeper than readers of Protobuf go.
    let mut deep: Vec<u8> = Vec::new();
    for _ in 0..200 {
        let mut length = Vec::new();
        let mut left = deep.len();
        while left >= 0x80 {
            length.push(left as u8 | 0x80);
            left >>= 7;
        }
        length.push(left as u8);
        deep = [&[0x5a][..], &length, &deep].concat();
    }
    assert!(at(&[&[0][..], &deep].concat()).unwrap_err().contains("recursion"));
    assert!(
        order.encode(&format!("{}{{}}{}", r#"{"before":"#.repeat(100_000), "}".repeat(100_000))).unwrap_err().contains("recursion limit")
    );
    // Many empty messages of many defaults are short in bytes.
    let wide = schema(
        "PROTOBUF",
        &format!(
            "syntax = \"proto3\"; message A {{ repeated B b = 1; }} message B {{ {} }}",
            (1..500).map(|number| format!("string a_field_of_some_length_{number} = {number};")).collect::<String>()
        ),
    );
    let many = [&head[..], &[0], &[10, 0].repeat(10_000)].concat();
    let mut out = Vec::new();
    assert!(wide.decode(&many, &mut out, 100_000).unwrap_err().contains("too large as JSON"));
    assert!(out.is_empty() && out.capacity() < 1 << 20);

    let user = r#"syntax = "proto3"; package p; message User { string name = 1; }"#;
    let using =
        with_references("PROTOBUF", r#"syntax = "proto3"; import "user.proto"; message O { p.User by = 1; }"#, &[("user.proto", user)]);
    check(&using, &json!({"by": {"name": "A"}}), &[0, 10, 3, 10, 1, b'A'], &json!({"by": {"name": "A"}}));
    refused(&schema("PROTOBUF", r#"syntax = "proto3"; enum E { A = 0; }"#), &json!({}), "declares no message");
}

#[test]
fn what_was_used_longest_ago_is_kept_no_more() {
    let make = |id: i32| {
        let mut state = State::default();
        put(&mut state, "s", 1, id, "AVRO", r#""string""#, &[]);
        Arc::new(ValueSchema::read(&state, state.by_id(".", id).unwrap()).unwrap())
    };
    let one = make(1).weight;
    let kept = Kept::new(one * 3);
    (1..=3).for_each(|id| kept.put(".", &make(id)));
    assert!(kept.get(".", 1).is_some() && kept.get(".other", 1).is_none());
    kept.put(".", &make(4));
    kept.put(".", &make(4));
    let there: Vec<i32> = (1..=4).filter(|id| kept.get(".", *id).is_some()).collect();
    assert_eq!(there, [1, 3, 4]);
    assert_eq!(kept.inner.lock().weight, one * 3);
    kept.clear();
    assert!(kept.get(".", 4).is_none() && kept.inner.lock().weight == 0);
    Kept::new(one - 1).put(".", &make(1));
}

/// A chain of objects within objects that each lead to the schema twice.
#[test]
fn a_value_that_its_schema_would_be_applied_to_for_ever_is_refused() {
    let next = r##"{"properties":{"x":{"$ref":"#"}}}"##;
    let doubling = schema("JSON", &format!(r#"{{"allOf":[{next},{next}]}}"#));
    let nested = |levels: usize| format!("{}1{}", r#"{"x":"#.repeat(levels), "}".repeat(levels));
    assert!(doubling.encode(&nested(8)).is_ok());
    let refused = doubling.encode(&nested(60)).unwrap_err();
    assert!(refused.contains("more than 2000000 times"), "{refused}");
    // As often as it is long.
    let tree = schema("JSON", r##"{"properties":{"x":{"$ref":"#"},"y":{"$ref":"#"}}}"##);
    assert!(tree.encode(&nested(60)).is_ok());
}

#[test]
fn messages_are_nested_no_deeper_than_they_can_be_read() {
    let chain = schema("PROTOBUF", "syntax = \"proto3\"; message M { M m = 1; }");
    let nested = |levels: usize| format!("{}{{}}{}", r#"{"m":"#.repeat(levels), "}".repeat(levels));
    for levels in 90..120 {
        match chain.encode(&nested(levels)) {
            Ok(bytes) => assert!(decode(&chain, &bytes).is_ok(), "{levels}"),
            Err(reason) => assert!(levels > 95 && reason.contains("nested deeper"), "{levels}: {reason}"),
        }
    }
    assert!(chain.encode(&nested(105)).is_err());
}

proptest! {
    #[test]
    fn any_bytes_as_a_value_of_any_schema_are_shown_or_refused(bytes: Vec<u8>, head in prop::collection::vec(0u8..4, 0..4)) {
        let bytes = [&[0, 0, 0, 0, 7][..], &head, &bytes].concat();
        let schemas = [schema("PROTOBUF", PROTO), schema("JSON", "{}"), schema("AVRO", r#"{"type":"map","values":["null","string","bytes",{"type":"array","items":"double"}]}"#)];
        for schema in schemas {
            for end in [0, 3, 5, bytes.len()] {
                drop(decode(&schema, &bytes[..end.min(bytes.len())]));
            }
        }
    }

    #[test]
    fn every_message_comes_back(id: i64, name: String, lines: Vec<String>, counts: HashMap<String, i32>, some: bool, raw: Vec<u8>, price in prop::option::of(-1e300..1e300f64)) {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let order = schema("PROTOBUF", PROTO);
        let mut message = json!({
            "id": id.to_string(), "byName": name, "lines": lines.iter().map(|what| json!({"what": what})).collect::<Vec<_>>(), "counts": counts,
            "kind": if some { "SOME" } else { "NONE" }, "raw": STANDARD.encode(&raw),
        });
        if let Some(price) = price {
            message["price"] = json!(price);
        }
        let bytes = order.encode(&message.to_string()).unwrap();
        prop_assert_eq!(decode(&order, &bytes).unwrap(), message);
    }
}
