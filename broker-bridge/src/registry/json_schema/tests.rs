#![allow(clippy::unwrap_used)]

use super::{super::schema::Referenced, *};

fn parse(text: &str) -> JsonSchema {
    JsonSchema::parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What other registries find between two schemas, one pair a line: the differences that hinder are told, no other one.
#[test]
fn differences_are_those_that_other_registries_find() {
    let (mut checked, mut wrong) = (0, String::new());
    for line in include_str!("vectors.jsonl").lines() {
        let case = Json::parse(line).unwrap();
        let (before, after) = (case.get("before").unwrap().to_string(), case.get("after").unwrap().to_string());
        let mut expected: Vec<(String, String)> = case
            .get("changes")
            .and_then(Json::as_array)
            .unwrap()
            .iter()
            .filter_map(|change| change.as_str()?.split_once(' '))
            .map(|(name, path)| (name.to_owned(), path.to_owned()))
            .collect();
        let mut found = parse(&after).differences(&parse(&before));
        expected.sort();
        expected.dedup();
        found.sort();
        found.dedup();
        // An empty list says that nothing hinders.
        if expected.is_empty() && parse(&after).cannot_read(&parse(&before)).is_empty() {
            found.clear();
        }
        if found != expected {
            wrong.push_str(&format!("{line}\n  found {found:?}\n"));
        }
        checked += 1;
    }
    assert!(wrong.is_empty() && checked > 100, "{checked} checked\n{wrong}");
}

#[test]
fn texts_stay_as_they_are_and_normal_forms_are_sorted() {
    let text = r#"{ "type": "object", "properties": {"b": {"type":"string"}, "a": {"type":"number"}} }"#;
    assert_eq!(parse(text).canonical(), r#"{"type":"object","properties":{"b":{"type":"string"},"a":{"type":"number"}}}"#);
    assert_eq!(parse(text).normalized(), r#"{"properties":{"a":{"type":"number"},"b":{"type":"string"}},"type":"object"}"#);
}

#[test]
fn references_lead_within_to_names_and_to_ids() {
    let with =
        |text: &str, name: &str, other: &str| JsonSchema::parse(text, &[Referenced { name: name.to_owned(), text: other.to_owned() }]);
    let number = r#"{"$id":"http://x/n.json","type":"number","definitions":{"s":{"type":"string"}}}"#;
    let text = r##"{"$id":"http://x/main.json","type":"object","properties":{"a":{"$ref":"n.json"},"b":{"$ref":"n.json#/definitions/s"},"c":{"$ref":"#/$defs/d"}},"$defs":{"d":{"$anchor":"here","type":"integer"}},"additionalProperties":false}"##;
    for name in ["n.json", "http://x/n.json", "another-name"] {
        let one = with(text, name, number).unwrap();
        assert_eq!(one.cannot_read(&one.clone()), Vec::<String>::new());
        // The same with another file behind the name.
        let narrower = with(text, name, &number.replace("\"number\"", "\"integer\"")).unwrap();
        assert_eq!(one.cannot_read(&narrower), Vec::<String>::new());
        assert_eq!(
            narrower.cannot_read(&one),
            [
                "{errorType:\"TYPE_NARROWED\", description:\"A type at path '#/properties/a' is different between the %s schema and the %s schema'}"
            ]
        );
    }
    assert!(JsonSchema::parse(text, &[]).unwrap_err().contains("Unresolved $ref 'n.json'"));
    parse(r##"{"$defs":{"d":{"$anchor":"here","type":"integer"}},"$ref":"#here"}"##);
    parse(r##"{"$schema":"http://json-schema.org/draft-07/schema#","$ref":"http://json-schema.org/draft-07/schema#"}"##);
}

#[test]
fn schemas_within_themselves_are_compared_to_the_end() {
    let list = |kind: &str| {
        parse(&format!(
            r##"{{"$ref":"#/$defs/node","$defs":{{"node":{{"type":"object","additionalProperties":false,"properties":{{"next":{{"$ref":"#/$defs/node"}},"v":{{"type":"{kind}"}}}}}}}}}}"##
        ))
    };
    assert_eq!(list("number").cannot_read(&list("integer")), Vec::<String>::new());
    assert!(list("integer").cannot_read(&list("number"))[0].contains("TYPE_NARROWED"));
    // Nothing but itself.
    let circle = parse(r##"{"$ref":"#"}"##);
    assert_eq!(circle.cannot_read(&circle.clone()), Vec::<String>::new());
}

#[test]
fn what_is_no_schema_is_refused_with_the_reason() {
    for (text, reason) in [
        ("[]", "no schema"),
        (r#"{"type":"strin"}"#, "unknown type"),
        (r#"{"type":5}"#, "neither a name"),
        (r#"{"allOf":{}}"#, "allOf is no list"),
        (r#"{"properties":[]}"#, "properties is no object"),
        (r#"{"maximum":"x"}"#, "maximum"),
        (r#"{"properties":{"a":1}}"#, "no schema"),
        (r##"{"$ref":"#/nowhere"}"##, "Unresolved $ref"),
    ] {
        let error = JsonSchema::parse(text, &[]).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn chains_of_references_are_bounded_and_need_no_luck() {
    let chain = |levels: usize, last: &str| {
        let links: Vec<String> = (0..levels).map(|at| format!(r##""a{at}":{{"$ref":"#/definitions/a{}"}}"##, at + 1)).collect();
        format!(r##"{{"definitions":{{{},"a{levels}":{last}}},"properties":{{"x":{{"$ref":"#/definitions/a0"}}}}}}"##, links.join(","))
    };
    // Read from its end, a chain is flat at every step.
    let from_the_end = |levels: usize| {
        let links: Vec<String> = (0..levels).rev().map(|at| format!(r##""a{at}":{{"$ref":"#/definitions/a{}"}}"##, at + 1)).collect();
        let parts: Vec<String> = (0..=levels).rev().map(|at| format!(r##"{{"$ref":"#/definitions/a{at}"}}"##)).collect();
        format!(r##"{{"definitions":{{"a{levels}":{{"type":"string"}},{}}},"items":[{}]}}"##, links.join(","), parts.join(","))
    };
    for text in [chain(250, r#"{"type":"string"}"#), from_the_end(250)] {
        let read = parse(&text);
        assert!(read.is_deep());
        assert!(read.cannot_read(&read).is_empty());
        Validator::new(&text, &[]).unwrap();
    }
    for levels in [4, 40, 250] {
        let validator = Validator::new(&chain(levels, r##"{"properties":{"x":{"$ref":"#/definitions/a0"}}}"##), &[]).unwrap();
        validator.check(&format!("{}1{}", r#"{"x":"#.repeat(120), "}".repeat(120))).unwrap();
    }
    for text in [chain(3_000, "true"), from_the_end(3_000)] {
        let error = JsonSchema::parse(&text, &[]).unwrap_err();
        assert!(error.contains("through more than 256 levels"), "{error}");
    }
    for within_itself in [
        r##"{"$ref":"#"}"##,
        r##"{"allOf":[{"$ref":"#"}]}"##,
        r##"{"not":{"$ref":"#"}}"##,
        r##"{"anyOf":[{"$ref":"#"},{"type":"string"}]}"##,
    ] {
        drop(Validator::new(within_itself, &[]).unwrap().check("[1]"));
    }
}
