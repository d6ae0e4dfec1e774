#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::{read::Strictness, *};

fn parse(text: &str) -> Avro {
    Avro::parse(text, &[], Strictness::New).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"myrecord","fields":[{fields}]}}"#)
}

#[test]
fn a_schema_is_written_as_avro_writes_it() {
    let cases = [
        (r#" "string" "#, r#""string""#),
        ("string", r#""string""#),
        (r#"{"type":"string"}"#, r#""string""#),
        (r#"{"type":"int","logicalType":"date"}"#, r#"{"type":"int","logicalType":"date"}"#),
        (r#"{"items":"long","type":"array","x":[1.0]}"#, r#"{"type":"array","items":"long","x":[1.0]}"#),
        (
            r#"{"fields":[{"type":["null",{"type":"enum","name":"E","symbols":["B","A"]}],"default":null,"name":"f","custom":1,"order":"ascending"},
                {"name":"g","type":"E","doc":"d","order":"ignore","aliases":["h"]}],"doc":"D","namespace":"a.b","aliases":["a.b.Old","x.Other"],"name":"R","type":"record"}"#,
            r#"{"type":"record","name":"R","namespace":"a.b","doc":"D","fields":[{"name":"f","type":["null",{"type":"enum","name":"E","symbols":["B","A"]}],"default":null,"custom":1},{"name":"g","type":"E","doc":"d","order":"ignore","aliases":["h"]}],"aliases":["Old","x.Other"]}"#,
        ),
        // A name's own namespace wins; what stands in another one is written in full.
        (
            r#"{"type":"record","name":"x.R","namespace":"y","fields":[{"name":"a","type":{"type":"fixed","name":"z.F","size":2}},{"name":"b","type":"z.F"},{"name":"c","type":["null","R"]}]}"#,
            r#"{"type":"record","name":"R","namespace":"x","fields":[{"name":"a","type":{"type":"fixed","name":"F","namespace":"z","size":2}},{"name":"b","type":"z.F"},{"name":"c","type":["null","R"]}]}"#,
        ),
    ];
    for (text, expected) in cases {
        let written = parse(text).canonical();
        assert_eq!(written, expected);
        assert_eq!(parse(&written).canonical(), written, "again");
    }
}

#[test]
fn normal_forms_forget_what_makes_no_difference() {
    let one = parse(
        r#"{"type":"record","namespace":"n","name":"R","z":1,"a":{"d":1,"c":2},"fields":[{"name":"f","type":{"type":"bytes","scale":0,"precision":4,"logicalType":"decimal"},"aliases":["y","x"]}]}"#,
    );
    let two = parse(
        r#"{"a":{"c":2,"d":1},"type":"record","name":"n.R","z":1,"fields":[{"order":"ascending","aliases":["x","y"],"name":"f","type":{"logicalType":"decimal","type":"bytes","precision":4}}]}"#,
    );
    assert_ne!(one.canonical(), two.canonical());
    let expected = r#"{"name":"n.R","type":"record","fields":[{"name":"f","type":{"type":"bytes","logicalType":"decimal","precision":4},"order":"ascending","aliases":["x","y"]}],"a":{"c":2,"d":1},"z":1}"#;
    assert_eq!((one.normalized().as_str(), two.normalized().as_str()), (expected, expected));
}

#[test]
fn referenced_types_are_known_and_written_by_name() {
    let inner = r#"{"type":"record","name":"Inner","namespace":"n","fields":[{"name":"x","type":"int"}]}"#.to_owned();
    let text =
        r#"{"type":"record","name":"Outer","namespace":"n","fields":[{"name":"i","type":"n.Inner"},{"name":"j","type":["null","Inner"]}]}"#;
    let outer = Avro::parse(text, std::slice::from_ref(&inner), Strictness::New).unwrap();
    assert_eq!(
        outer.canonical(),
        r#"{"type":"record","name":"Outer","namespace":"n","fields":[{"name":"i","type":"Inner"},{"name":"j","type":["null","Inner"]}]}"#
    );
    let resolved = outer.resolved();
    assert!(resolved.contains(r#""type":{"type":"record","name":"Inner""#), "{resolved}");
    assert_eq!(parse(&resolved).resolved(), resolved);
    assert!(Avro::parse(text, &[], Strictness::New).unwrap_err().contains("n.Inner"));
}

#[test]
fn what_breaks_a_rule_is_refused_with_the_reason() {
    for (text, reason) in [
        ("{", "not JSON"),
        ("{}", "no type"),
        (r#""strin""#, "not a defined name"),
        (r#"{"type":"record","name":"R"}"#, "has no fields"),
        (r#"{"type":"record","fields":[]}"#, "no name"),
        (r#"{"type":"record","name":"1R","fields":[]}"#, "illegal name"),
        (r#"{"type":"record","name":"int","fields":[]}"#, "primitives"),
        (r#"{"type":"array"}"#, "no items"),
        (r#"{"type":"fixed","name":"F","size":-1}"#, "size"),
        (r#"{"type":"enum","name":"E","symbols":["A","A"]}"#, "duplicate enum symbol"),
        (r#"{"type":"enum","name":"E","symbols":["A"],"default":"B"}"#, "not in the symbols"),
        (r#"["null","null"]"#, "duplicate in union"),
        (r#"["null",["int"]]"#, "within a union"),
        (&record(r#"{"name":"a","type":"int"},{"name":"a","type":"int"}"#), "duplicate field"),
        (&record(r#"{"name":"a","type":"int","default":"x"}"#), "is no value of its type int"),
        (&record(r#"{"name":"a","type":"int","default":3000000000}"#), "is no value"),
        (&record(r#"{"name":"a","type":["null","int"],"default":"x"}"#), "is no value of its type union"),
        (&record(r#"{"name":"a","type":"int","order":"up"}"#), "order"),
        (&record(r#"{"name":"a","type":{"type":"record","name":"myrecord","fields":[]}}"#), "redefine"),
    ] {
        let error = Avro::parse(text, &[], Strictness::New).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    // What an older registry took stays readable.
    for text in [r#"{"type":"record","name":"a-b","fields":[]}"#, &record(r#"{"name":"a","type":"int","default":"x"}"#)] {
        assert!(Avro::parse(text, &[], Strictness::Stored).is_ok());
    }
}

/// The schemas of the specification's and of other registries' tests: who reads whom.
#[test]
fn readers_and_writers_fit_by_schema_resolution() {
    let one = record(r#"{"type":"string","name":"f1"}"#);
    let two = record(r#"{"type":"string","name":"f1"},{"type":"string","name":"f2","default":"foo"}"#);
    let three = record(r#"{"type":"string","name":"f1"},{"type":"string","name":"f2"}"#);
    let four = record(r#"{"type":"string","name":"f1_new","aliases":["f1"]}"#);
    let six = record(r#"{"type":["null","string"],"name":"f1","doc":"doc of f1"}"#);
    let seven = record(r#"{"type":["null","string","int"],"name":"f1","doc":"doc of f1"}"#);
    let enumeration = |symbols: &str, rest: &str| format!(r#"{{"type":"enum","name":"E","symbols":[{symbols}]{rest}}}"#);
    let (ab, abc) = (enumeration(r#""A","B""#, ""), enumeration(r#""A","B","C""#, ""));
    let list = record(r#"{"name":"v","type":"int"},{"name":"next","type":["null","myrecord"]}"#);
    let longer = record(r#"{"name":"v","type":"long"},{"name":"next","type":["null","myrecord"]}"#);
    let texts = |pairs: &[(&str, &str)]| pairs.iter().map(|(one, two)| ((*one).to_owned(), (*two).to_owned())).collect::<Vec<_>>();
    let mut reads = texts(&[
        (&two, &one),
        (&four, &one),
        (&six, &one),
        (&seven, &six),
        (&one, &two),
        (&one, &three),
        (&three, &two),
        (&abc, &ab),
        (&longer, &list),
    ]);
    reads.push((enumeration(r#""A""#, r#","default":"A""#), abc.clone()));
    for (from, to) in [
        ("int", "long"),
        ("int", "float"),
        ("int", "double"),
        ("long", "float"),
        ("long", "double"),
        ("float", "double"),
        ("string", "bytes"),
        ("bytes", "string"),
    ] {
        reads.push((format!("\"{to}\""), format!("\"{from}\"")));
    }
    reads.push((r#"["int","string"]"#.to_owned(), r#"["string","int"]"#.to_owned()));
    reads.push((r#""long""#.to_owned(), r#"["int","long"]"#.to_owned()));
    reads.push((r#"{"type":"map","values":"long"}"#.to_owned(), r#"{"type":"map","values":"int"}"#.to_owned()));
    for (reader, writer) in reads {
        assert_eq!(parse(&reader).cannot_read(&parse(&writer)), Vec::<String>::new(), "{reader} reads {writer}");
    }
    let fixed = |name: &str, size: u32| format!(r#"{{"type":"fixed","name":"{name}","size":{size}}}"#);
    for (reader, writer, message) in [
        (
            &three,
            &one,
            "{errorType:'READER_FIELD_MISSING_DEFAULT_VALUE', description:'The field 'f2' at path '/fields/1' in the %s schema has no default value and is missing in the %s schema', additionalInfo:'f2'}",
        ),
        (
            &one,
            &six,
            "{errorType:'TYPE_MISMATCH', description:'The type (path '/') of a field in the %s schema does not match with the %s schema', additionalInfo:'reader type: STRING not compatible with writer type: NULL'}",
        ),
        (
            &six,
            &seven,
            "{errorType:'MISSING_UNION_BRANCH', description:'The %s schema is missing a type inside a union field at path '/fields/0/type/2' in the %s schema', additionalInfo:'reader union lacking writer type: INT'}",
        ),
        (
            &ab,
            &abc,
            "{errorType:'MISSING_ENUM_SYMBOLS', description:'The %s schema is missing enum symbols '[C]' at path '/symbols' in the %s schema', additionalInfo:'[C]'}",
        ),
        (
            &fixed("F", 3),
            &fixed("F", 2),
            "{errorType:'FIXED_SIZE_MISMATCH', description:'The size of FIXED type field at path '/size' in the %s schema does not match with the %s schema', additionalInfo:'expected: 2, found: 3'}",
        ),
        (
            &fixed("G", 2),
            &fixed("n.F", 2),
            "{errorType:'NAME_MISMATCH', description:'The name of the schema has changed (path '/name')', additionalInfo:'expected: n.F'}",
        ),
        (
            &list,
            &longer,
            "{errorType:'TYPE_MISMATCH', description:'The type (path '/fields/0/type') of a field in the %s schema does not match with the %s schema', additionalInfo:'reader type: INT not compatible with writer type: LONG'}",
        ),
    ] {
        assert_eq!(parse(reader).cannot_read(&parse(writer)), [message], "{reader} reads {writer}");
    }
    // Many records that refer to many: the work is bounded by their number, not by the paths through them.
    let wide = |kind: &str| {
        let mut text = format!(r#"{{"type":"record","name":"R30","fields":[{{"name":"v","type":"{kind}"}}]}}"#);
        for at in (0..30).rev() {
            let next = at + 1;
            text = format!(
                r#"{{"type":"record","name":"R{at}","fields":[{{"name":"a","type":{text}}},{{"name":"b","type":"R{next}"}},{{"name":"c","type":["null","R{next}"]}}]}}"#
            );
        }
        parse(&text)
    };
    assert!(wide("long").cannot_read(&wide("int")).is_empty());
    assert!(!wide("int").cannot_read(&wide("string")).is_empty());
}

fn schema() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec!["null", "boolean", "int", "long", "float", "double", "bytes", "string"])
        .prop_map(|name| format!("\"{name}\""));
    let nested = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| format!(r#"{{"type":"array","items":{items}}}"#)),
            inner.clone().prop_map(|values| format!(r#"{{"type":"map","values":{values}}}"#)),
            inner
                .clone()
                .prop_filter("no union within", |one| !one.starts_with('[') && one != "\"null\"")
                .prop_map(|one| format!(r#"["null",{one}]"#)),
            (prop::collection::vec(inner, 1..4), any::<u32>()).prop_map(|(fields, name)| {
                let fields: Vec<String> =
                    fields.iter().enumerate().map(|(at, schema)| format!(r#"{{"name":"f{at}","type":{schema}}}"#)).collect();
                format!(r#"{{"type":"record","name":"R{name}","fields":[{}]}}"#, fields.join(","))
            }),
        ]
    });
    nested.prop_filter("names are there once", |text| Avro::parse(text, &[], Strictness::New).is_ok())
}

#[test]
fn a_chain_of_types_that_a_reference_brings_has_an_end() {
    let chain = |length: usize| {
        let link = |at: usize| {
            let of = if at == 0 { "int".to_owned() } else { format!("A{}", at - 1) };
            format!(r#"{{"name":"f{at}","type":{{"type":"record","name":"A{at}","fields":[{{"name":"a","type":"{of}"}}]}}}}"#)
        };
        let fields: Vec<String> = (0..length).map(link).collect();
        let holder = format!(r#"{{"type":"record","name":"H","fields":[{}]}}"#, fields.join(","));
        let last = record(&format!(r#"{{"name":"x","type":"A{}"}}"#, length - 1));
        Avro::parse(&last, &[holder], Strictness::New).unwrap()
    };
    let (short, long) = (chain(150), chain(2_000));
    assert!(short.cannot_read(&short).is_empty());
    let found = long.cannot_read(&long);
    assert!(found.len() == 1 && found[0].contains("more than 192 levels"), "{found:?}");
}

proptest! {
    #[test]
    fn every_schema_reads_itself_and_is_written_the_same_again(text in schema()) {
        let one = parse(&text);
        prop_assert_eq!(one.cannot_read(&one.clone()), Vec::<String>::new());
        prop_assert_eq!(parse(&one.canonical()).canonical(), one.canonical());
        prop_assert_eq!(parse(&one.normalized()).normalized(), one.normalized());
    }

    #[test]
    fn no_text_makes_it_panic(text in r#"[\[\]{}":,a-z0-9\\. ]{0,80}"#) {
        drop(Avro::parse(&text, &[], Strictness::New));
    }
}
