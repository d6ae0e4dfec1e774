use super::{super::vectors, *};

fn parse(text: &str) -> Protobuf {
    Protobuf::parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn differences_between_messages() {
    vectors::check(include_str!("vectors.txt"), |before, after| {
        // Proto3 unless it says otherwise.
        let full = |text: &str| if text.starts_with("syntax") { text.to_owned() } else { format!("syntax = \"proto3\"; {text}") };
        let read = |side: &vectors::Side| {
            let references: Vec<Referenced> =
                side.references.iter().map(|one| Referenced { name: one.name.clone(), text: full(&one.text) }).collect();
            Protobuf::parse(&full(&side.text), &references)
        };
        Ok(read(after)?.differences(&read(before)?))
    });
}

const ALL: &str = r#"syntax = "proto3";
package shop;
import "google/protobuf/timestamp.proto";
option java_package = "x.y";
message Order {
  reserved 9, 20 to 25, 100 to max;
  reserved "old";
  string id = 1;
  repeated Line lines = 2 [deprecated = true];
  map<string, Line> by_name = 3;
  oneof how { int32 cash = 4; bytes card = 5; }
  optional bool paid = 6;
  google.protobuf.Timestamp at = 7;
  State state = 8;
  message Line { double price = 1; }
  enum State { NEW = 0; DONE = 1; }
}
service Shop { rpc Buy (Order) returns (stream Order); }
"#;

#[test]
fn a_schema_is_the_same_as_source_as_descriptor_and_written_again() {
    let one = parse(ALL);
    assert_eq!(one.canonical(), ALL.trim());
    let written = parse(&one.normalized());
    assert_eq!(written.normalized(), one.normalized());
    assert!(one.same(&written));
    let sent = parse(&one.serialized());
    assert!(one.same(&sent) && sent.cannot_read(&one).is_empty());
    assert_eq!(sent.canonical(), one.normalized());
    assert!(!one.same(&parse(&ALL.replace("double price", "float price"))));
}

#[test]
fn references_are_imports() {
    let line = Referenced {
        name: "line.proto".to_owned(),
        text: "syntax = \"proto3\"; package shop; message Line { double price = 1; }".to_owned(),
    };
    let text = "syntax = \"proto3\"; import \"line.proto\"; message Order { shop.Line line = 1; }";
    let one = Protobuf::parse(text, std::slice::from_ref(&line)).unwrap();
    let other = Referenced { text: line.text.replace("double", "string"), ..line };
    let two = Protobuf::parse(text, &[other]).unwrap();
    let messages = two.cannot_read(&one);
    assert!(messages.iter().any(|one| one.contains("FIELD_NAMED_TYPE_CHANGED") && one.contains("#/Order/1")), "{messages:?}");
    assert!(Protobuf::parse(text, &[]).unwrap_err().contains("line.proto"));
}

#[test]
fn what_is_no_schema_is_refused_with_the_reason() {
    for (text, reason) in [
        ("message", "expected"),
        ("syntax = \"proto3\"; message A { B b = 1; }", "B"),
        ("syntax = \"proto3\"; message A { int32 a = 1; int32 b = 1; }", "1"),
    ] {
        let error = Protobuf::parse(text, &[]).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}
