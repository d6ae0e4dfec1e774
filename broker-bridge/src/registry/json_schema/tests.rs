use super::{
    super::{schema::Referenced, vectors},
    *,
};

fn parse(text: &str) -> JsonSchema {
    JsonSchema::parse(text, &[]).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Of what kind a value is, texts, numbers, lists of values, annotations.
#[test]
fn differences_between_values() {
    check(include_str!("vectors/values.txt"));
}

/// Properties that come and go in open and closed objects, which must be there, what one asks of others.
#[test]
fn differences_between_objects() {
    check(include_str!("vectors/objects.txt"));
}

/// Items of one kind, items with a place of their own, how many there are.
#[test]
fn differences_between_arrays() {
    check(include_str!("vectors/arrays.txt"));
}

/// Several kinds, alternatives, parts that must all hold, what must not be, conditions.
#[test]
fn differences_between_combinations() {
    check(include_str!("vectors/combined.txt"));
}

/// One change at every place where a schema can stand; references; schemas within themselves.
#[test]
fn differences_within_schemas() {
    check(include_str!("vectors/nested.txt"));
}

/// What only some drafts of JSON Schema have.
#[test]
fn differences_between_dialects() {
    check(include_str!("vectors/dialects.txt"));
}

fn check(text: &str) {
    vectors::check(text, |before, after| {
        let read = |side: &vectors::Side| JsonSchema::parse(&side.text, &side.references);
        let (before, after) = (read(before)?, read(after)?);
        let found = after.differences(&before);
        let hindering = found.iter().filter(|one| one.starts_with('!')).count();
        assert_eq!(after.cannot_read(&before).len(), hindering, "what hinders is what is told: {found:?}");
        Ok(found)
    });
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
                "{errorType:\"TYPE_NARROWED\", description:\"the type in the %s schema does not take all that it takes in the %s schema, at #/properties/a\"}"
            ]
        );
    }
    assert!(JsonSchema::parse(text, &[]).unwrap_err().contains("$ref 'n.json' leads nowhere"));
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
        (r##"{"$ref":"#/nowhere"}"##, "leads nowhere"),
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
