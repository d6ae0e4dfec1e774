use serde_json::json;

use super::*;

fn apply<T>(state: &mut State, decision: Decision<T>) -> T {
    for record in decision.records {
        state.apply(record, 0).unwrap();
    }
    decision.answer
}

fn level(state: &mut State, scope: Option<&str>, level: &str) {
    let decision = set_config(state, scope, &Map::from_iter([("compatibility".to_owned(), json!(level))])).unwrap();
    apply(state, decision);
}

fn mode(state: &mut State, scope: &str, name: &str) {
    let decision = set_mode(state, Some(scope), name, false).unwrap();
    apply(state, decision);
}

fn submitted(body: Value) -> Submitted {
    serde_json::from_value(body).unwrap()
}

fn put(state: &mut State, subject: &str, body: Value) -> Result<Stored> {
    let decision = register(state, subject, &submitted(body), Registering::default())?;
    Ok(apply(state, decision))
}

fn record(name: &str, fields: &str) -> String {
    format!(r#"{{"type":"record","name":"{name}","fields":[{fields}]}}"#)
}

#[test]
fn a_reference_to_the_newest_is_one_to_the_version_that_it_is() {
    let mut state = State::default();
    put(&mut state, "base", json!({"schema": record("Base", "")})).unwrap();
    let using = json!({"schema": record("Using", r#"{"name":"b","type":"Base"}"#), "references": [{"name": "Base", "subject": "base", "version": -1}]});
    let first = put(&mut state, "using", using.clone()).unwrap();
    assert_eq!(first.references[0].version, 1);
    put(&mut state, "base", json!({"schema": record("Base", r#"{"name":"n","type":"int","default":0}"#)})).unwrap();
    // What the first version means has not changed, and what it needs stays.
    assert_eq!(state.resolve("using", &first.references).unwrap()[0].text, record("Base", ""));
    assert_eq!(delete_version(&state, "base", 1, false).unwrap_err().code, 42206);
    assert!(delete_version(&state, "base", 2, false).is_ok());
    let second = put(&mut state, "using", using.clone()).unwrap();
    assert_eq!((second.references[0].version, second.version), (2, 2));
    assert_eq!(look_up(&state, "using", &submitted(using), false, Filter::Live).unwrap().version, 2);

    // No circle: the newest of the subject itself is the one before.
    let itself = |field: &str| json!({"schema": record(&format!("Self{field}"), ""), "references": [{"name": "n", "subject": "itself", "version": -1}]});
    assert_eq!(put(&mut state, "itself", itself("A")).unwrap_err().code, 42201);
    put(&mut state, "itself", json!({"schema": record("SelfB", "")})).unwrap();
    level(&mut state, Some("itself"), "NONE");
    assert_eq!(put(&mut state, "itself", itself("C")).unwrap().references[0].version, 1);
    assert_eq!(put(&mut state, "itself", itself("D")).unwrap().references[0].version, 2);
}

#[test]
fn ids_and_versions_that_nothing_can_follow_are_not_taken() {
    let mut state = State::default();
    mode(&mut state, "s", "IMPORT");
    let brings = |id: i64, version: i64| json!({"schema": "\"int\"", "id": id, "version": version});
    for (id, version, word) in [(0, 1, "id 0"), (i64::from(i32::MAX), 1, "id 2147483647"), (1, i64::from(i32::MAX), "version 2147483647")] {
        let refused = put(&mut state, "s", brings(id, version)).unwrap_err();
        assert!(refused.code == 422 && refused.message.contains(word), "{refused}");
    }
    put(&mut state, "s", brings(7, i64::from(i32::MAX) - 1)).unwrap();
    mode(&mut state, "s", "READWRITE");
    level(&mut state, None, "NONE");
    let refused = put(&mut state, "s", json!({"schema": "\"long\""})).unwrap_err();
    assert!(refused.code == 42205 && refused.message.contains("none follows"), "{refused}");

    // As another registry may have left them.
    super::super::values::put(&mut state, "t", i32::MAX, i32::MAX, "AVRO", "\"bytes\"", &[]);
    assert_eq!(put(&mut state, "t", json!({"schema": "\"long\""})).unwrap_err().code, 42205);
    assert_eq!(put(&mut state, "u", json!({"schema": "\"long\""})).unwrap().id, 8);
}

/// `levels` definitions, each of which holds the next one twice.
fn shared(levels: usize, each: impl Fn(&str) -> String, leaf: &str) -> String {
    let definitions: Vec<String> =
        (0..levels).map(|at| format!(r##""d{at}":{}"##, each(&format!(r##"{{"$ref":"#/definitions/d{}"}}"##, at + 1)))).collect();
    format!(r##"{{"definitions":{{{},"d{levels}":{{"type":"{leaf}"}}}},"$ref":"#/definitions/d0"}}"##, definitions.join(","))
}

fn all_of(next: &str) -> String {
    format!(r#"{{"allOf":[{next},{next}]}}"#)
}

fn properties(next: &str) -> String {
    format!(r#"{{"type":"object","properties":{{"a":{next},"b":{next}}}}}"#)
}

fn avro(levels: usize, leaf: &str) -> String {
    let last = record(&format!("R{levels}"), &format!(r#"{{"name":"a","type":"{leaf}"}}"#));
    (0..levels).rev().fold(last, |next, at| {
        let again = at + 1;
        record(&format!("R{at}"), &format!(r#"{{"name":"a","type":{next}}},{{"name":"b","type":"R{again}"}}"#))
    })
}

#[test]
fn schemas_that_share_definitions_take_no_longer_than_they_are_long() {
    let mut state = State::default();
    level(&mut state, None, "FULL_TRANSITIVE");
    let started = std::time::Instant::now();
    let json = |text: String| json!({"schema": text, "schemaType": "JSON"});
    let refused = put(&mut state, "growing", json(shared(40, all_of, "string"))).unwrap_err();
    assert!(refused.code == 42201 && refused.message.contains("more than 100000 schemas"), "{refused}");
    put(&mut state, "few", json(shared(10, all_of, "string"))).unwrap();

    let one_of = |other: &str| {
        let one = |at: usize| json!({"type": "object", "properties": {format!("p{at}"): {"type": "string"}, other: {"type": "integer"}}, "required": [format!("p{at}")]});
        json!({"oneOf": (0..300).map(one).collect::<Vec<_>>()}).to_string()
    };
    for (subject, kind, first, second) in [
        ("properties", "JSON", shared(40, properties, "string"), shared(40, properties, "integer")),
        ("alternatives", "JSON", one_of("q"), one_of("r")),
        ("records", "AVRO", avro(28, "int"), avro(28, "string")),
    ] {
        put(&mut state, subject, json!({"schema": first, "schemaType": kind})).unwrap();
        let refused = put(&mut state, subject, json!({"schema": second, "schemaType": kind})).unwrap_err();
        assert_eq!(refused.code, 40901, "{subject}");
        assert!(refused.message.len() < 128 * 1024, "{subject}: {} bytes", refused.message.len());
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn what_no_value_could_be_written_with_is_refused() {
    let state = State::default();
    for (kind, text, word) in [
        ("AVRO", r#"{"type":"fixed","name":"F","size":2147483648}"#, "size"),
        ("JSON", r#"{"type":"string","pattern":"(("}"#, "(("),
        ("JSON", r#"{"type":"object","patternProperties":{"[a":{}}}"#, "[a"),
    ] {
        let refused = register(&state, "s", &submitted(json!({"schema": text, "schemaType": kind})), Registering::default()).unwrap_err();
        assert!(refused.code == 42201 && refused.message.contains(word), "{refused}");
    }
    let right = json!({"schema": r#"{"type":"string","pattern":"^(?!x)\\d+$"}"#, "schemaType": "JSON"});
    assert!(register(&state, "s", &submitted(right), Registering::default()).is_ok());
}
