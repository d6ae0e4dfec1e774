use std::fs;

use super::*;

const AGENT: &str = r"
a.sources = r
a.channels = errors rest
a.sinks = k d
a.sources.r.type = seq
a.sources.r.channels = errors rest
a.sources.r.interceptors = drop level when where
a.sources.r.interceptors.drop.type = regex_filter
a.sources.r.interceptors.drop.regex = ^#
a.sources.r.interceptors.drop.excludeEvents = true
a.sources.r.interceptors.level.type = regex_extractor
a.sources.r.interceptors.level.regex = ^(\\w+)
a.sources.r.interceptors.level.serializers = s
a.sources.r.interceptors.level.serializers.s.name = level
a.sources.r.interceptors.when.type = timestamp
a.sources.r.interceptors.where.type = host
a.sources.r.interceptors.where.preserveExisting = true
a.sources.r.selector.type = multiplexing
a.sources.r.selector.header = level
a.sources.r.selector.mapping.ERROR = errors
a.sources.r.selector.default = rest
a.channels.errors.type = memory
a.channels.rest.type = memory
a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink
a.sinks.k.channel = errors
a.sinks.k.kafka.bootstrap.servers = nowhere:9092
a.sinks.k.kafka.topic = logs-%Y
a.sinks.k.partitionIdHeader = part
a.sinks.k.timestampHeader = timestamp
a.sinks.k.header.level = x-level
a.sinks.d.type = hdfs
a.sinks.d.channel = rest
a.sinks.d.hdfs.path = hdfs://nn/logs/%{level}/%Y-%m-%d
a.sinks.d.hdfs.timeZone = UTC
a.sinks.d.hdfs.filePrefix = from-%{host}
";

const HEAD: &str = "conf = \"agent.conf\"\nclock = 2026-03-04T17:06:07.089Z\nhost = \"web-1\"\n";

/// The report over one file of tests.
fn report(tests: &str) -> Report {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.toml");
    fs::write(directory.path().join("agent.conf"), AGENT).unwrap();
    fs::write(&path, tests).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut report = runtime.block_on(run_files(&[path], false));
    // The folder has another name each time.
    let below = format!("{}/", directory.path().display());
    report.faults.iter_mut().for_each(|fault| *fault = fault.replace(&below, ""));
    report.tests.iter_mut().for_each(|test| test.file = test.file.replace(&below, ""));
    report
}

#[test]
fn what_is_expected_of_channels_records_and_paths_is_found() {
    let tests = r##"
[[test]]
name = "errors"
lines = ["# a comment", "ERROR disk full", "INFO fine"]
[[test.expect]]
channel = "errors"
[[test.expect.event]]
body = "ERROR disk full"
headers = { level = "ERROR", timestamp = "1772643967089", host = "web-1" }
headers_absent = ["part"]
[[test.expect]]
channel = "rest"
count = 1
[[test.expect]]
sink = "k"
[[test.expect.event]]
topic = "logs-2026"
record_headers = { x-level = "ERROR" }
timestamp = 2026-03-04T17:06:07.089Z
[[test.expect]]
sink = "d"
[[test.expect.event]]
path = "hdfs://nn/logs/INFO/2026-03-04/from-web-1"

[[test]]
name = "headers of the event count"
[[test.input]]
body = "ERROR x"
headers = { host = "own", part = "7", key = "k", topic = "other" }
[[test.input]]
body = "ERROR y"
headers = { part = "seven" }
[[test.expect]]
sink = "k"
[[test.expect.event]]
topic = "other"
partition = 7
key = "k"
headers_match = { host = "o.n", timestamp = "\\d+" }
[[test.expect.event]]
body_matches = "ERROR ."
dead_letter = ".*`seven` is not a partition number"

[[test]]
name = "comments are dropped"
lines = ["# a comment"]
none = true

[[test]]
name = "nothing in one"
lines = ["INFO x"]
[[test.expect]]
channel = "errors"
none = true
"##;
    let report = report(&format!("{HEAD}{tests}"));
    assert!(report.passed, "{:?}\n{}", report.faults, report.text());
    assert_eq!(report.tests.iter().map(|test| test.name.as_str()).collect::<Vec<_>>().len(), 4);
}

#[test]
fn what_is_not_met_is_told_with_both_sides() {
    let tests = r##"[[test]]
name = "wrong"
lines = ["ERROR one", "ERROR two", "ERROR three", "INFO x"]
[[test.expect]]
channel = "errors"
[[test.expect.event]]
body = "ERROR one"
[[test.expect.event]]
body = "ERROR 2"
headers = { level = "WARN" }
headers_absent = ["host"]
[[test.expect.event]]
body = "ERROR three"
[[test.expect.event]]
body = "ERROR four"
[[test.expect]]
channel = "rest"
none = true
[[test.expect]]
sink = "k"
count = 2
[[test.expect.event]]
topic = "logs"
dead_letter = "x"
[[test]]
name = "dropped"
lines = ["INFO a"]
none = true
"##;
    let report = report(&format!("{HEAD}{tests}"));
    assert!(!report.passed && report.faults.is_empty(), "{:?}", report.faults);
    let expected = r#"FAIL t.toml:4 wrong
       t.toml:11: channel errors, event 2: body
         expected  "ERROR 2"
         seen      "ERROR two"
       t.toml:11: channel errors, event 2: header level
         expected  "WARN"
         seen      "ERROR"
       t.toml:11: channel errors, event 2: header host
         expected  nothing
         seen      "web-1"
       t.toml:17: channel errors, event 4: event
         expected  "ERROR four"
         seen      nothing
       t.toml:19: channel rest: event
         expected  nothing
         seen      "INFO x" {host="web-1", level="INFO", timestamp="1772643967089"}
       t.toml:22: sink k: events
         expected  2
         seen      3
       t.toml:25: sink k, event 1: dead letter
         expected  matches x
         seen      a record to logs-2026
       t.toml:25: sink k, event 1: topic
         expected  "logs"
         seen      "logs-2026"
FAIL t.toml:28 dropped
       t.toml:28: channel rest: event
         expected  nothing
         seen      "INFO a" {host="web-1", level="INFO", timestamp="1772643967089"}
2 tests, 2 failed
"#;
    assert_eq!(report.text(), expected);
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_its_line() {
    let test = "[[test]]\nname = \"t\"\nlines = [\"x\"]\n";
    for (text, told) in [
        (format!("{HEAD}{test}none = true\nnoen = 1\n"), "t.toml:8: unknown field `noen`"),
        (
            format!("conf = \"agent.conf\"\n{test}[[test.expect]]\nchannel = \"c\"\ncount = 1\n"),
            "t.toml:5: test `t`: `c` is not one of the source's channels (errors, rest)",
        ),
        (
            format!("conf = \"agent.conf\"\n{test}[[test.expect]]\nsink = \"s\"\ncount = 1\n"),
            "t.toml:5: test `t`: there is no sink `s`; there are k, d",
        ),
        (
            format!("conf = \"agent.conf\"\n{test}[[test.expect]]\nsink = \"d\"\n[[test.expect.event]]\ntopic = \"t\"\n"),
            "t.toml:5: test `t`: sink `d` is neither a Kafka nor a bridge sink",
        ),
        (
            format!("conf = \"agent.conf\"\n{test}[[test.expect]]\nchannel = \"rest\"\n[[test.expect.event]]\nbody_matches = \"(\"\n"),
            "t.toml:8: `(`: ",
        ),
        (format!("conf = \"agent.conf\"\n{test}"), "t.toml:2: test `t`: nothing is expected"),
        (format!("conf = \"agent.conf\"\n{test}none = true\n{test}none = true\n"), "t.toml:6: test `t`: another test has this name"),
        (format!("conf = \"agent.conf\"\n{test}source = \"q\"\nnone = true\n"), "t.toml:2: test `t`: there is no source `q`; there are r"),
        (format!("conf = \"agent.conf\"\nclock = \"noon\"\n{test}none = true\n"), "t.toml:2: `noon` is not a time with its zone"),
        (format!("conf = \"gone.conf\"\n{test}none = true\n"), "t.toml: gone.conf: "),
        ("conf = \"agent.conf\"\ntest = []\n".into(), "t.toml:1: there is no [[test]]"),
        ("conf = ".into(), "t.toml:1: "),
    ] {
        let report = report(&text);
        assert!(!report.passed && report.tests.is_empty(), "{text}");
        assert!(report.faults[0].starts_with(told), "{:?}\n{told}", report.faults);
    }
}

/// The manual's example, as it stands there.
#[test]
fn the_manuals_example_passes() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pipeline-tests.md")).unwrap();
    let block = |kind: &str| page.split(&format!("```{kind}\n")).nth(1).unwrap().split("```").next().unwrap().to_owned();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tests.toml");
    fs::write(directory.path().join("agent.conf"), block("properties")).unwrap();
    fs::write(&path, block("toml")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let report = runtime.block_on(run_files(&[path], false));
    assert!(report.passed && report.tests.len() == 3, "{:?}\n{}", report.faults, report.text());
}

#[test]
fn all_mistakes_are_told_at_once() {
    let unread = "conf = \"agent.conf\"\ncolour = 1\n[[test]]\nname = \"a\"\nlins = [\"x\"]\nlines = [\"x\"]\nnone = 5\n\n[[test]]\nname = \"b\"\nlines = 7\n";
    let faults = report(unread).faults;
    let lines: Vec<&str> = faults.iter().map(|fault| fault.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["t.toml:2", "t.toml:5", "t.toml:7", "t.toml:11"], "{faults:?}");
    let unmeant = format!("{HEAD}[[test]]\nname = \"a\"\n\n[[test]]\nname = \"a\"\nlines = [\"x\"]\n[[test.expect]]\ncount = 1\n");
    let faults = report(&unmeant).faults;
    let expected = ["nothing goes in", "nothing is expected", "another test has this name", "`channel` or `sink`"];
    assert!(faults.len() == 4 && expected.iter().all(|word| faults.iter().any(|fault| fault.contains(word))), "{faults:?}");
}
