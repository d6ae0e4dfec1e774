use proptest::prelude::*;

use super::{read::Strictness, *};

fn parse(text: &str) -> Avro {
    Avro::parse(text, &[], Strictness::New).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn record(fields: &str) -> String {
    format!(r#"{{"type":"record","name":"Reading","fields":[{fields}]}}"#)
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
        ("{}", "without a type"),
        (r#""strin""#, "neither a primitive type"),
        (r#"{"type":"record","name":"R"}"#, "has no fields"),
        (r#"{"type":"record","fields":[]}"#, "record without a name"),
        (r#"{"type":"record","name":"1R","fields":[]}"#, "illegal name"),
        (r#"{"type":"record","name":"int","fields":[]}"#, "primitive type"),
        (r#"{"type":"array"}"#, "array without items"),
        (r#"{"type":"fixed","name":"F","size":-1}"#, "size"),
        (r#"{"type":"enum","name":"E","symbols":["A","A"]}"#, "symbol A twice"),
        (r#"{"type":"enum","name":"E","symbols":["A"],"default":"B"}"#, "none of its symbols"),
        (r#"["null","null"]"#, "null twice"),
        (r#"["null",["int"]]"#, "within a union"),
        (&record(r#"{"name":"a","type":"int"},{"name":"a","type":"int"}"#), "field a twice"),
        (&record(r#"{"name":"a","type":"int","default":"x"}"#), "is no value of its type int"),
        (&record(r#"{"name":"a","type":"int","default":3000000000}"#), "is no value"),
        (&record(r#"{"name":"a","type":["null","int"],"default":"x"}"#), "is no value of its type union"),
        (&record(r#"{"name":"a","type":"int","order":"up"}"#), "order"),
        (&record(r#"{"name":"a","type":{"type":"record","name":"Reading","fields":[]}}"#), "defined twice"),
    ] {
        let error = Avro::parse(text, &[], Strictness::New).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
    // What an older registry took stays readable.
    for text in [r#"{"type":"record","name":"a-b","fields":[]}"#, &record(r#"{"name":"a","type":"int","default":"x"}"#)] {
        assert!(Avro::parse(text, &[], Strictness::Stored).is_ok());
    }
}

/// By the rules of Avro's specification, one or a few pairs a rule.
#[test]
fn readers_and_writers_fit_by_schema_resolution() {
    let celsius = r#"{"name":"celsius","type":"float"}"#;
    let with = |fields: &str| record(&format!("{celsius},{fields}"));
    let short = record(celsius);
    let (height, height_or_two) = (with(r#"{"name":"height","type":"int"}"#), with(r#"{"name":"height","type":"int","default":2}"#));
    let renamed = record(r#"{"name":"temperature","type":"float","aliases":["degrees","celsius"]}"#);
    let (wider, maybe) = (record(r#"{"name":"celsius","type":"double"}"#), record(r#"{"name":"celsius","type":["null","float"]}"#));
    let maybe_words = record(r#"{"name":"celsius","type":["null","float","string"]}"#);
    let sky = |symbols: &str, rest: &str| format!(r#"{{"type":"enum","name":"Sky","symbols":[{symbols}]{rest}}}"#);
    let (two, three) = (sky(r#""CLEAR","RAIN""#, ""), sky(r#""CLEAR","RAIN","SNOW""#, ""));
    let or_clear = sky(r#""CLEAR""#, r#","default":"CLEAR""#);
    let chain = |weight: &str| {
        format!(
            r#"{{"type":"record","name":"Wagon","fields":[{{"name":"t","type":"{weight}"}},{{"name":"next","type":["null","Wagon"]}}]}}"#
        )
    };
    let fixed = |name: &str, size: u32| format!(r#"{{"type":"fixed","name":"{name}","size":{size}}}"#);
    for (reader, writer) in [
        // A field that only the writer has is passed over; one that only the reader has needs a default.
        (&short, &height),
        (&height_or_two, &short),
        (&height, &height_or_two),
        // By an alias, in one direction.
        (&renamed, &short),
        // What a type is promoted to, and what a branch of a union takes.
        (&wider, &short),
        (&maybe, &short),
        (&maybe_words, &maybe),
        // Symbols may come, and go where there is a default for them.
        (&three, &two),
        (&or_clear, &three),
        (&chain("long"), &chain("int")),
        (&fixed("depot.Code", 4), &fixed("Code", 4)),
        // The order of branches does not count; every branch of the writer needs a reader.
        (&r#"["bytes","int"]"#.to_owned(), &r#"["int","string"]"#.to_owned()),
        (&r#""double""#.to_owned(), &r#"["int","long","float"]"#.to_owned()),
        (&r#"{"type":"map","values":"double"}"#.to_owned(), &r#"{"type":"map","values":"float"}"#.to_owned()),
        (&r#"{"type":"array","items":["null","long"]}"#.to_owned(), &r#"{"type":"array","items":"int"}"#.to_owned()),
    ] {
        assert_eq!(parse(reader).cannot_read(&parse(writer)), Vec::<String>::new(), "{reader} reads {writer}");
    }
    // Each type is read as those that stand behind it here, and as itself.
    let promotions: [(&str, &[&str]); 5] = [
        ("int", &["long", "float", "double"]),
        ("long", &["float", "double"]),
        ("float", &["double"]),
        ("string", &["bytes"]),
        ("bytes", &["string"]),
    ];
    for (_, from) in Primitive::ALL {
        for (_, to) in Primitive::ALL {
            let reads = from == to || promotions.iter().any(|(one, others)| *one == from && others.contains(&to));
            let (reader, writer) = (parse(&format!("\"{to}\"")), parse(&format!("\"{from}\"")));
            assert_eq!(reader.cannot_read(&writer).is_empty(), reads, "{to} reads {from}");
        }
    }
    let mismatch = "TYPE_MISMATCH', description:'the type in the %s schema does not read that in the %s schema, at";
    for (reader, writer, message) in [
        (
            &height,
            &short,
            "READER_FIELD_MISSING_DEFAULT_VALUE', description:'a field of the %s schema has no default and is not in the %s schema, at /fields/1', additionalInfo:'height'".to_owned(),
        ),
        (&short, &maybe, format!("{mismatch} /', additionalInfo:'FLOAT does not read NULL'")),
        (
            &maybe,
            &maybe_words,
            "MISSING_UNION_BRANCH', description:'no branch of a union in the %s schema reads what the %s schema writes, at /fields/0/type/2', additionalInfo:'nothing reads STRING'".to_owned(),
        ),
        (
            &two,
            &three,
            "MISSING_ENUM_SYMBOLS', description:'an enum of the %s schema does not have all symbols of the %s schema, at /symbols', additionalInfo:'[SNOW]'".to_owned(),
        ),
        (
            &fixed("Code", 6),
            &fixed("Code", 4),
            "FIXED_SIZE_MISMATCH', description:'a fixed has another size in the %s schema than in the %s schema, at /size', additionalInfo:'4 written, 6 read'".to_owned(),
        ),
        (
            &fixed("Label", 4),
            &fixed("depot.Code", 4),
            "NAME_MISMATCH', description:'a type has another name in the %s schema than in the %s schema, at /name', additionalInfo:'written as depot.Code'".to_owned(),
        ),
        (&chain("int"), &chain("long"), format!("{mismatch} /fields/0/type', additionalInfo:'INT does not read LONG'")),
        (&wider, &two, format!("{mismatch} /', additionalInfo:'RECORD does not read ENUM'")),
    ] {
        assert_eq!(parse(reader).cannot_read(&parse(writer)), [format!("{{errorType:'{message}}}")], "{reader} reads {writer}");
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
