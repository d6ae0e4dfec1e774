use service_kit::hbase::Row;

use super::key::Keys;
use super::serializer::Serializer;
use super::{ASYNC, HBASE, HBASE2};
use crate::event::Event;
use crate::flume_conf::component::Setting;
use crate::flume_conf::{Component, Kind};

const SIMPLE2: &str = "org.apache.flume.sink.hbase2.SimpleHBase2EventSerializer";
const REGEX2: &str = "org.apache.flume.sink.hbase2.RegexHBase2EventSerializer";
const NOW: i64 = 1_700_000_000_000;

fn component(kind: &'static Kind, settings: &[(&str, &str)]) -> Component {
    let mut component = Component::new(kind, "k", kind.name());
    for (key, value) in [("table", "t"), ("columnFamily", "cf"), ("hbase.rest.url", "http://h:8080")].iter().chain(settings) {
        component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
    }
    component
}

fn serialize(settings: &[(&str, &str)], strict: bool, event: &Event) -> Result<Option<Row>, String> {
    let serializer = Serializer::build(&component(&HBASE2, settings), strict).unwrap().0;
    serializer.row(event, &Keys::new("c"), NOW)
}

/// The row's key and its cells as text, `column=value`.
fn text(row: &Row) -> (String, String) {
    let cell =
        |cell: &service_kit::hbase::Cell| format!("{}={}", String::from_utf8_lossy(&cell.column), String::from_utf8_lossy(&cell.value));
    (String::from_utf8_lossy(&row.key).into_owned(), row.cells.iter().map(cell).collect::<Vec<_>>().join(" "))
}

/// A body becomes a row under a regular expression: its cells, and its key where a group is the key.
#[track_caller]
fn regex(settings: &[(&str, &str)], body: &str, expected: Result<&str, &str>) {
    let settings: Vec<_> = [("serializer", REGEX2)].iter().chain(settings).map(|(key, value)| (*key, *value)).collect();
    let row = serialize(&settings, false, &Event::with_headers(body.to_owned(), [("h", "v"), ("timestamp", "5")]));
    let row = row.map(|row| text(&row.unwrap()));
    match expected {
        Ok(expected) => {
            let (key, cells) = row.unwrap();
            match expected.split_once(" <- ") {
                Some((expected_key, expected)) => assert_eq!((key.as_str(), cells.as_str()), (expected_key, expected), "{body}"),
                None => {
                    assert!(key.starts_with("5-"), "{key}");
                    assert_eq!(cells, expected, "{body}");
                }
            }
        }
        Err(why) => assert!(row.as_ref().is_err_and(|error| error.contains(why)), "{body}: {row:?}"),
    }
}

#[test]
fn a_regex_serializer_writes_groups_as_flume_does() {
    regex(&[], "a line\nand more", Ok("cf:payload=a line\nand more"));
    let two = [("serializer.regex", "^([^\t]+)\t([^\t]+)$"), ("serializer.colNames", "ROW_KEY,col 2")];
    regex(&two, "a\tb", Ok("cf:ROW_KEY=a cf:col 2=b"));
    let key = [two[0], ("serializer.colNames", "row_key,x"), ("serializer.rowKeyIndex", "0")];
    regex(&key, "k\tv", Ok("k <- cf:x=v"));
    regex(&key, "no tab", Err("does not match"));
    regex(&key, "k\tv\n", Ok("k <- cf:x=v\n"));
    let last = [("serializer.regex", "(.*)-(.*)"), ("serializer.colNames", "x,ROW_KEY,,"), ("serializer.rowKeyIndex", "1")];
    regex(&last, "v-k", Ok("k <- cf:x=v"));
    regex(&last, "v-", Err("row key has no bytes"));
    let part = [("serializer.regex", "(a)|(b)"), ("serializer.colNames", "x,y")];
    regex(&part, "a", Err("group 2"));
    let case = [("serializer.regex", "(ERROR) (.*)"), ("serializer.colNames", "level,text"), ("serializer.regexIgnoreCase", "true")];
    regex(&case, "Error x", Ok("cf:level=Error cf:text=x"));
    regex(&case[..2], "Error x", Err("does not match"));
    let headers = [("serializer.depositHeaders", "true"), ("serializer.charset", "ISO-8859-1"), ("serializer.colNames", "p\u{e9}")];
    let settings: Vec<_> = [("serializer", REGEX2)].iter().chain(&headers).map(|(key, value)| (*key, *value)).collect();
    let row = serialize(&settings, false, &Event::with_headers(&b"\xe9"[..], [("h", "v\u{e9}")])).unwrap().unwrap();
    // Names and headers in the charset; groups always in UTF-8.
    assert_eq!((&row.cells[0].column[..], &row.cells[0].value[..]), (&b"cf:p\xe9"[..], "\u{e9}".as_bytes()));
    assert_eq!((&row.cells[1].column[..], &row.cells[1].value[..]), (&b"cf:h"[..], &b"v\xe9"[..]));
}

#[test]
fn a_body_that_does_not_match_is_left_out_only_where_flume_is_copied() {
    let settings = [("serializer", REGEX2), ("serializer.regex", "(a)")];
    assert_eq!(serialize(&settings, true, &Event::new("b")), Ok(None));
    assert!(serialize(&settings, false, &Event::new("b")).is_err());
}

#[test]
fn a_simple_serializer_writes_the_body_and_counts() {
    let event = Event { number: 3, ..Event::with_headers(&b"\xff\x00"[..], [("timestamp", "5")]) };
    let simple = |settings: &[(&str, &str)], strict| text(&serialize(settings, strict, &event).unwrap().unwrap());
    let (key, cells) = simple(&[("serializer", SIMPLE2)], false);
    assert!(key.starts_with("default") && key.len() == 7 + 36, "{key}");
    assert_eq!(cells, "cf:pCol=\u{fffd}\u{0}");
    let named = [("serializer.rowPrefix", "p-"), ("serializer.payloadColumn", "body"), ("serializer.suffix", "timestamp")];
    assert_eq!(simple(&named, true), ("p-1700000000000".into(), "cf:body=\u{fffd}\u{0}".into()));
    let (key, _) = simple(&named, false);
    assert!(key.starts_with("p-5-"), "{key}");
    for (settings, row, column) in
        [(&[][..], "incRow", "cf:iCol"), (&[("serializer.incrementRow", "r"), ("serializer.incrementColumn", "c")], "r", "cf:c")]
    {
        let count = Serializer::build(&component(&HBASE, settings), false).unwrap().1.unwrap();
        assert_eq!((&count.row[..], count.column.as_str()), (row.as_bytes(), column));
    }
    assert!(Serializer::build(&component(&HBASE, &[("serializer", REGEX2)]), false).unwrap().1.is_none());
    // The same event in another try is the same row.
    let serializer = Serializer::build(&component(&ASYNC, &[]), false).unwrap().0;
    let keys = Keys::new("c");
    assert_eq!(serializer.row(&event, &keys, 1), serializer.row(&event, &keys, 2));
}

#[test]
fn slips_are_told() {
    let codes = |settings: &[(&str, &str)], strict| -> Vec<&str> {
        (HBASE2.review)(&component(&HBASE2, settings), strict).into_iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(&[], false), [""; 0]);
    assert_eq!(codes(&[("zookeeperQuorum", "h:2181"), ("znodeParent", "/x")], false), ["not-used", "not-used"]);
    assert_eq!(codes(&[("kerberosPrincipal", "p"), ("kerberosKeytab", "/k")], false), ["kerberos", "kerberos"]);
    assert_eq!(codes(&[("enableWal", "false")], false), ["always-logged"]);
    assert_eq!(codes(&[("hbase.rest.url", "h:8080")], false), ["wrong-value"]);
    assert_eq!(codes(&[("hbase.rest.url", "https://u:p@h/x")], false), [""; 0]);
    assert_eq!(codes(&[("serializer", "com.example.Mine")], false), ["custom-class"]);
    assert_eq!(codes(&[("serializer.suffix", "timestamp")], false), ["shared-keys"]);
    assert_eq!(codes(&[("serializer.suffix", "Nano")], true), ["wrong-value"]);
    let regex = |settings: &[(&str, &str)]| {
        codes(&[("serializer", REGEX2)].iter().chain(settings).map(|(key, value)| (*key, *value)).collect::<Vec<_>>(), false)
    };
    assert_eq!(regex(&[]), [""; 0]);
    assert_eq!(regex(&[("serializer.regex", "(")]), ["regular-expression"]);
    assert_eq!(regex(&[("serializer.regex", "(a)(b)")]), ["wrong-value"]);
    assert_eq!(regex(&[("serializer.rowKeyIndex", "1")]), ["wrong-value"]);
    assert_eq!(regex(&[("serializer.rowKeyIndex", "0")]), ["wrong-value"]);
    assert_eq!(regex(&[("serializer.rowKeyIndex", "0"), ("serializer.colNames", "ROW_KEY")]), [""; 0]);
    assert_eq!(regex(&[("serializer.colNames", "ROW_KEY")]), ["wrong-value"]);
    assert_eq!(regex(&[("serializer.regex", "(a)(b)"), ("serializer.colNames", "a, b")]), ["wrong-value"]);
    assert_eq!(regex(&[("serializer.charset", "UTF-16")]), ["wrong-value"]);
    let mut nowhere = component(&HBASE, &[]);
    nowhere.settings.remove("hbase.rest.url");
    let findings = (HBASE.review)(&nowhere, true);
    assert!(findings[0].code == "no-gateway" && findings[0].remedy.contains("hbase.rest.url"), "{findings:?}");
}
