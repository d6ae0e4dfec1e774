use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::Strictness, *};

fn coder(schema: &str) -> Coder {
    Coder::new(&Avro::parse(schema, &[], Strictness::New).unwrap_or_else(|error| panic!("{schema}: {error}")))
}

fn encode(coder: &Coder, json: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    coder.encode(json, &mut out).map(|()| out)
}

fn decode(coder: &Coder, bytes: &[u8]) -> Result<String, String> {
    let mut out = Vec::new();
    coder.decode(bytes, &mut out, 1 << 20).map(|()| String::from_utf8(out).unwrap())
}

/// `bytes` is what `json` becomes; what it is shown as is the same but for blanks, or `shown`.
#[track_caller]
fn check(schema: &str, json: &str, bytes: &[u8], shown: Option<&str>) {
    let coder = coder(schema);
    assert_eq!(encode(&coder, json).unwrap(), bytes, "{schema} {json}");
    assert_eq!(decode(&coder, bytes).unwrap(), shown.unwrap_or(json), "{schema}");
}

#[test]
fn values_are_written_as_avro_s_specification_says() {
    let same = |schema: &str, json: &str, bytes: &[u8]| check(schema, json, bytes, None);
    same(r#""null""#, "null", &[]);
    same(r#""boolean""#, "true", &[1]);
    for (number, bytes) in
        [("0", &[0][..]), ("-1", &[1]), ("1", &[2]), ("-64", &[0x7f]), ("64", &[0x80, 1]), ("-2147483648", &[0xff, 0xff, 0xff, 0xff, 0xf])]
    {
        same(r#""int""#, number, bytes);
        same(r#""long""#, number, bytes);
    }
    same(r#""long""#, "9223372036854775807", &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    same(r#""long""#, "-9223372036854775808", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    same(r#""float""#, "0.1", &0.1f32.to_le_bytes());
    same(r#""double""#, "1.7976931348623157e+308", &f64::MAX.to_le_bytes());
    same(r#""double""#, r#""-Infinity""#, &f64::NEG_INFINITY.to_le_bytes());
    same(r#""float""#, r#""NaN""#, &f32::NAN.to_le_bytes());
    same(r#""string""#, r#""foo""#, b"\x06foo");
    same(r#""string""#, r#""a\n\"ö\"""#, "\x0ca\n\"ö\"".as_bytes());
    same(r#""bytes""#, "\"\\u0000aÿ\"", &[6, 0, b'a', 0xff]);
    same(r#"{"type":"fixed","name":"F","size":2}"#, r#""aÿ""#, &[b'a', 0xff]);
    same(r#"{"type":"enum","name":"E","symbols":["A","B"]}"#, r#""B""#, &[2]);
    same(r#"{"type":"array","items":"long"}"#, "[3,27]", &[4, 6, 0x36, 0]);
    same(r#"{"type":"array","items":"long"}"#, "[]", &[0]);
    same(r#"{"type":"map","values":"int"}"#, r#"{"k":1,"":2}"#, &[4, 2, b'k', 2, 0, 4, 0]);
    let record = r#"{"type":"record","name":"test","fields":[{"name":"a","type":"long"},{"name":"b","type":"string","aliases":["old"]}]}"#;
    same(record, r#"{"a":27,"b":"foo"}"#, b"\x36\x06foo");
    check(record, r#" { "b" : "foo", "a" : 27 } "#, b"\x36\x06foo", Some(r#"{"a":27,"b":"foo"}"#));
    check(record, r#"{"old":"foo","a":27}"#, b"\x36\x06foo", Some(r#"{"a":27,"b":"foo"}"#));
    // Logical types are what they are made of.
    same(r#"{"type":"bytes","logicalType":"decimal","precision":4,"scale":2}"#, "\"\\u0001ÿ\"", &[4, 1, 0xff]);
    same(r#"{"type":"long","logicalType":"timestamp-millis"}"#, "1", &[2]);
    check(r#""int""#, "2.0", &[4], Some("2"));
    check(r#""long""#, "2e3", &[0xa0, 0x1f], Some("2000"));
    check(r#""double""#, "1", &1f64.to_le_bytes(), Some("1.0"));

    let union = r#"{"type":"record","name":"x.R","fields":[{"name":"u","type":["null","string",{"type":"enum","name":"E","symbols":["A"]},{"type":"map","values":"int"},"R"]}]}"#;
    same(union, r#"{"u":null}"#, &[0]);
    same(union, r#"{"u":{"string":"a"}}"#, &[2, 2, b'a']);
    same(union, r#"{"u":{"x.E":"A"}}"#, &[4, 0]);
    same(union, r#"{"u":{"map":{"a":1}}}"#, &[6, 2, 2, b'a', 2, 0]);
    same(union, r#"{"u":{"x.R":{"u":null}}}"#, &[8, 0]);
    // Where the whole value is of a union, it is shown without its type, as Confluent's REST proxy does.
    check(r#"["null","string"]"#, r#"{"string":"a"}"#, &[2, 2, b'a'], Some(r#""a""#));
}

#[test]
fn what_does_not_fit_is_refused_with_its_place() {
    let schema = r#"{"type":"record","name":"R","fields":[
        {"name":"id","type":"int"},
        {"name":"tags","type":{"type":"array","items":{"type":"map","values":["null","string"]}}},
        {"name":"hash","type":{"type":"fixed","name":"F","size":2}},
        {"name":"kind","type":{"type":"enum","name":"E","symbols":["A","B"]}},
        {"name":"ratio","type":"float"}]}"#;
    let right = json!({"id": 1, "tags": [{"x": null}], "hash": "ab", "kind": "A", "ratio": 0.5});
    let coder = coder(schema);
    encode(&coder, &right.to_string()).unwrap();
    let refused = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut wrong = right.clone();
        change(&mut wrong);
        let error = encode(&coder, &wrong.to_string()).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    };
    refused(&|value| value["id"] = json!("1"), r#"at id: expected int, found "1""#);
    refused(&|value| value["id"] = json!(2_147_483_648_u32), "at id: expected int, found 2147483648");
    refused(&|value| value["id"] = json!(1.5), "at id: expected int, found 1.5");
    refused(&|value| value["tags"] = json!({}), "at tags: invalid type: map, expected an array");
    refused(
        &|value| value["tags"] = json!([{}, {"y": "bare"}]),
        r#"at tags[1].y: invalid type: string "bare", expected null, or {"<type>": <value>} with type one of string"#,
    );
    refused(&|value| value["tags"] = json!([{"y": {"int": 1}}]), r#"at tags[0].y: type "int" is not one of null, string"#);
    refused(&|value| value["tags"] = json!([{"y": {}}]), "at tags[0].y: expected null, or");
    refused(&|value| value["tags"] = json!([{"y": {"string": "a", "null": null}}]), "more members");
    refused(&|value| value["hash"] = json!("abc"), "at hash: expected 2 bytes (fixed), found 3");
    refused(&|value| value["hash"] = json!("aĀ"), "at hash: bytes are text of the characters U+0000 to U+00FF");
    refused(&|value| value["kind"] = json!("C"), r#"at kind: expected one of A, B, found "C""#);
    refused(&|value| value["ratio"] = json!(1e39), "at ratio: expected float");
    refused(&|value| value["ratio"] = json!("nan"), "at ratio: expected float");
    refused(&|value| value["extra"] = json!(1), r#"field "extra" is not one of id, tags, hash, kind, ratio"#);
    refused(&|value| drop(value.as_object_mut().unwrap().remove("kind")), "at kind: the field is missing; expected one of A, B");
    let twice = encode(&coder, r#"{"id":1,"id":2}"#).unwrap_err();
    assert!(twice.contains("at id: the field is there twice"), "{twice}");
    for broken in ["", "{", r#"{"id":"#, "[]", "1 2", "{}{}"] {
        assert!(encode(&coder, broken).is_err(), "{broken}");
    }
}

#[test]
fn what_cannot_be_read_is_told_with_its_place_and_takes_bounded_memory() {
    let schema = r#"{"type":"record","name":"R","fields":[{"name":"a","type":{"type":"array","items":"null"}},{"name":"s","type":["null","string","R"]},
        {"name":"e","type":{"type":"enum","name":"E","symbols":["A"]}},{"name":"b","type":"boolean"}]}"#;
    let coder = coder(schema);
    let bytes = |rest: &[u8]| [&[0][..], rest].concat();
    assert_eq!(decode(&coder, &bytes(&[2, 2, b'x', 0, 1])).unwrap(), r#"{"a":[],"s":{"string":"x"},"e":"A","b":true}"#);
    // What stands behind is not looked at.
    assert_eq!(decode(&coder, &bytes(&[0, 0, 0, 9, 9])).unwrap(), r#"{"a":[],"s":null,"e":"A","b":false}"#);
    for (rest, expected) in [
        (&[][..], "at s: it breaks off within a number"),
        (&[6], "at s: the union has 3 types, none is number 3"),
        (&[1], "at s: the union has 3 types, none is number -1"),
        (&[2, 0x80], "at s: it breaks off within a number"),
        (&[2, 20, b'x'], "at s: it breaks off: 10 bytes are needed, 1 are left"),
        (&[2, 1], "at s: a length is negative: -1"),
        (&[2, 2, 0xff, 0, 1], "at s: a string is not UTF-8"),
        (&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "at s: a number is longer than 64 bits"),
        (&[0, 2, 1], "at e: the enum has 1 symbols, none is number 1"),
        (&[0, 0, 2], "at b: [2] is no boolean"),
    ] {
        let error = decode(&coder, &bytes(rest)).unwrap_err();
        assert!(error.starts_with(expected), "{rest:?}: {expected:?} is not in {error:?}");
    }
    // An array of 2^60 nulls needs a few bytes, and more memory than there is.
    let mut many = Vec::new();
    encode::zigzag(1 << 60, &mut many);
    let error = decode(&coder, &many).unwrap_err();
    assert!(error.contains("too large as JSON"), "{error}");
    // A record within itself: two bytes a level.
    let deep = [0, 4].repeat(500_000);
    let error = decode(&coder, &deep).unwrap_err();
    assert!(error.contains("nested deeper than 127 levels"), "{error}");
    // A block with its size in bytes, as other writers have it.
    let array = self::coder(r#"{"type":"array","items":"int"}"#);
    assert_eq!(decode(&array, &[3, 4, 2, 4, 2, 6, 0]).unwrap(), "[1,2,3]");
    // A record that has no end.
    let endless = self::coder(r#"{"type":"record","name":"R","fields":[{"name":"r","type":"R"}]}"#);
    assert!(decode(&endless, &[]).unwrap_err().contains("nested deeper"));
}

#[test]
fn a_mebibyte_of_nesting_is_refused_without_a_fall() {
    let list = coder(r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#);
    let deep = |levels: usize| format!("{}null{}", r#"{"next":{"L":"#.repeat(levels), "}}".repeat(levels));
    let error = encode(&list, &deep(75_000)[..]).unwrap_err();
    assert!(error.contains("recursion limit exceeded"), "{error}");
    // What can be shown can also be sent: both end at the same depth.
    let most = (1..100).take_while(|levels| encode(&list, &format!(r#"{{"next":{}}}"#, wrapped(levels - 1))).is_ok()).last().unwrap();
    let bytes = encode(&list, &format!(r#"{{"next":{}}}"#, wrapped(most - 1))).unwrap();
    assert_eq!(decode(&list, &bytes).unwrap(), format!(r#"{{"next":{}}}"#, wrapped(most - 1)));
    assert!(decode(&list, &[&[2][..], &bytes].concat()).is_err());
}

fn wrapped(levels: usize) -> String {
    format!("{}null{}", r#"{"L":{"next":"#.repeat(levels), "}}".repeat(levels))
}

/// A type, for schemas and values by chance.
#[derive(Clone, Debug)]
enum Shape {
    Plain(&'static str),
    Fixed(usize),
    Enum(usize),
    Array(Box<Shape>),
    Map(Box<Shape>),
    /// Or null.
    Maybe(Box<Shape>),
    Record(Vec<Shape>),
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        prop::sample::select(vec!["null", "boolean", "int", "long", "float", "double", "bytes", "string"]).prop_map(Shape::Plain),
        (0..5usize).prop_map(Shape::Fixed),
        (1..4usize).prop_map(Shape::Enum),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|shape| Shape::Array(Box::new(shape))),
            inner.clone().prop_map(|shape| Shape::Map(Box::new(shape))),
            inner
                .clone()
                .prop_filter("one union", |shape| !matches!(shape, Shape::Maybe(_) | Shape::Plain("null")))
                .prop_map(|shape| Shape::Maybe(Box::new(shape))),
            prop::collection::vec(inner, 0..4).prop_map(Shape::Record),
        ]
    })
}

/// Its schema, and what a union calls it.
fn schema_of(shape: &Shape, names: &mut usize) -> (Value, String) {
    let mut named = |kind: &str| {
        *names += 1;
        format!("space.{kind}{names}")
    };
    match shape {
        Shape::Plain(name) => (json!(name), (*name).to_owned()),
        Shape::Fixed(size) => {
            let name = named("F");
            (json!({"type": "fixed", "name": name, "size": size}), name)
        }
        Shape::Enum(count) => {
            let name = named("E");
            let symbols: Vec<String> = (0..*count).map(|number| format!("S{number}")).collect();
            (json!({"type": "enum", "name": name, "symbols": symbols}), name)
        }
        Shape::Array(items) => (json!({"type": "array", "items": schema_of(items, names).0}), "array".to_owned()),
        Shape::Map(values) => (json!({"type": "map", "values": schema_of(values, names).0}), "map".to_owned()),
        Shape::Maybe(inner) => (json!(["null", schema_of(inner, names).0]), String::new()),
        Shape::Record(fields) => {
            let name = named("R");
            let fields: Vec<Value> = fields
                .iter()
                .enumerate()
                .map(|(number, field)| json!({"name": format!("f{number}"), "type": schema_of(field, names).0}))
                .collect();
            (json!({"type": "record", "name": name, "fields": fields}), name)
        }
    }
}

/// A value's JSON text. Names are counted as the schema's were.
fn value_of(shape: &Shape, names: &mut usize) -> BoxedStrategy<String> {
    let latin_1 = |size: prop::collection::SizeRange| {
        prop::collection::vec(any::<u8>(), size)
            .prop_map(|bytes| serde_json::to_string(&bytes.into_iter().map(char::from).collect::<String>()).unwrap())
    };
    match shape {
        Shape::Plain("null") => Just("null".to_owned()).boxed(),
        Shape::Plain("boolean") => any::<bool>().prop_map(|value| value.to_string()).boxed(),
        Shape::Plain("int") => any::<i32>().prop_map(|value| value.to_string()).boxed(),
        Shape::Plain("long") => any::<i64>().prop_map(|value| value.to_string()).boxed(),
        Shape::Plain("float") => {
            any::<f32>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| serde_json::to_string(&value).unwrap()).boxed()
        }
        Shape::Plain("double") => {
            any::<f64>().prop_filter("finite", |value| value.is_finite()).prop_map(|value| serde_json::to_string(&value).unwrap()).boxed()
        }
        Shape::Plain("bytes") => latin_1((0..20).into()).boxed(),
        Shape::Plain(_) => any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()).boxed(),
        Shape::Fixed(size) => {
            *names += 1;
            latin_1((*size).into()).boxed()
        }
        Shape::Enum(count) => {
            *names += 1;
            (0..*count).prop_map(|number| format!("\"S{number}\"")).boxed()
        }
        Shape::Array(items) => prop::collection::vec(value_of(items, names), 0..4).prop_map(|all| format!("[{}]", all.join(","))).boxed(),
        Shape::Map(values) => prop::collection::btree_map(any::<String>(), value_of(values, names), 0..4)
            .prop_map(|all| {
                let entries: Vec<String> =
                    all.into_iter().map(|(key, value)| format!("{}:{value}", serde_json::to_string(&key).unwrap())).collect();
                format!("{{{}}}", entries.join(","))
            })
            .boxed(),
        Shape::Maybe(inner) => {
            let mut ahead = *names;
            let name = schema_of(inner, &mut ahead).1;
            prop_oneof![Just("null".to_owned()), value_of(inner, names).prop_map(move |value| format!("{{\"{name}\":{value}}}"))].boxed()
        }
        Shape::Record(fields) => {
            *names += 1;
            let values: Vec<BoxedStrategy<String>> = fields.iter().map(|field| value_of(field, names)).collect();
            values
                .prop_map(|values| {
                    let members: Vec<String> =
                        values.into_iter().enumerate().map(|(number, value)| format!("\"f{number}\":{value}")).collect();
                    format!("{{{}}}", members.join(","))
                })
                .boxed()
        }
    }
}

fn schema_and_value() -> impl Strategy<Value = (String, String)> {
    // A record around it: a union at the top is shown without its type.
    prop::collection::vec(shape(), 0..4).prop_map(Shape::Record).prop_flat_map(|shape| {
        let schema = schema_of(&shape, &mut 0).0.to_string();
        value_of(&shape, &mut 0).prop_map(move |value| (schema.clone(), value))
    })
}

proptest! {
    #[test]
    fn every_value_of_every_schema_comes_back_and_none_that_breaks_off_does((schema, value) in schema_and_value(), cut in any::<prop::sample::Index>()) {
        let coder = coder(&schema);
        let bytes = encode(&coder, &value).unwrap();
        prop_assert_eq!(decode(&coder, &bytes).unwrap(), value);
        if !bytes.is_empty() {
            prop_assert!(decode(&coder, &bytes[..cut.index(bytes.len())]).is_err());
        }
    }

    #[test]
    fn any_bytes_under_any_schema_are_a_value_or_an_error((schema, _) in schema_and_value(), bytes: Vec<u8>) {
        let coder = coder(&schema);
        let mut out = b"before".to_vec();
        let read = coder.decode(&bytes, &mut out, 10_000);
        prop_assert!(out.len() <= 6 + 10_000 + 200, "{}", out.len());
        if read.is_ok() {
            let shown = std::str::from_utf8(&out[6..]).unwrap();
            prop_assert!(serde_json::from_str::<Value>(shown).is_ok(), "{}", shown);
            // Map keys may be there twice in bytes; everything else is written again as it was read.
            prop_assert!(encode(&coder, shown).is_ok(), "{}", shown);
        }
    }

    #[test]
    fn any_json_under_any_schema_is_bytes_or_an_error((schema, _) in schema_and_value(), (_, other) in schema_and_value(), text: String) {
        let coder = coder(&schema);
        for json in [other, text] {
            if let Ok(bytes) = encode(&coder, &json) {
                prop_assert!(decode(&coder, &bytes).is_ok());
            }
        }
    }
}
