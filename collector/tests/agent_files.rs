//! Agent files: what would run, and what is said about them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use collector::flume_conf::{Component, ConfFile, Level, Options, Outcome, read};
use proptest::prelude::*;

const ARTICLE: &str = include_str!("fixtures/article.conf");

fn outcome(text: &str, strict: bool) -> Outcome {
    several(&[("a.conf", text)], None, strict)
}

fn several(files: &[(&str, &str)], agent: Option<&str>, strict: bool) -> Outcome {
    let files: Vec<_> = files.iter().map(|(name, text)| ConfFile { name, bytes: text.as_bytes() }).collect();
    let env = |name: &str| (name == "BROKERS").then(|| "env1:9092".to_owned());
    let run = |command: &str, key: &str| if key == "no" { Err("it fails".to_owned()) } else { Ok(format!("{command} {key}")) };
    read(&files, &Options { agent, strict, env: &env, run: &run, sys: &BTreeMap::new(), now: chrono::Local::now() })
}

/// `(level, code, line)` of every finding but notes.
fn told(outcome: &Outcome) -> Vec<(Level, &'static str, u32)> {
    outcome
        .findings
        .iter()
        .filter(|finding| finding.level != Level::Note)
        .map(|finding| (finding.level, finding.code, finding.place.as_ref().map_or(0, |place| place.line)))
        .collect()
}

fn component<'a>(outcome: &'a Outcome, name: &str) -> &'a Component {
    outcome.plans[0].components().find(|component| component.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn names(outcome: &Outcome) -> String {
    outcome.plans.iter().flat_map(|plan| plan.components()).map(|component| component.name.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_article_runs_as_it_stands_with_a_warning_for_the_missing_channels_line() {
    let outcome = outcome(ARTICLE, false);
    assert!(!outcome.failed());
    assert_eq!(told(&outcome), [(Level::Warning, "no-channel", 7), (Level::Warning, "tail-engine", 8)]);
    let about = |code: &str| outcome.findings.iter().find(|finding| finding.code == code).unwrap();
    let finding = about("no-channel");
    assert_eq!(finding.key.as_deref(), Some("agent.sources.logSource.channels"));
    assert_eq!(finding.flume, "drops the source and collects nothing from it");
    assert_eq!(finding.remedy, "bound to `memChannel`, the agent's only channel; add agent.sources.logSource.channels = memChannel");
    assert_eq!(about("tail-engine").key.as_deref(), Some("agent.sources.logSource.command"));
    assert_eq!(names(&outcome), "logSource memChannel kafkaSink");
    assert_eq!(component(&outcome, "logSource").channels, ["memChannel"]);
    assert_eq!(component(&outcome, "memChannel").integer("capacity"), 10000);
    assert_eq!(component(&outcome, "kafkaSink").text("kafka.bootstrap.servers"), "kafka1:9092,kafka2:9092");
}

#[test]
fn strictly_read_the_article_has_no_source() {
    let outcome = outcome(ARTICLE, true);
    assert!(!outcome.failed());
    // Flume reads its files as ISO-8859-1: the comment in it is not.
    assert_eq!(told(&outcome), [(Level::Warning, "encoding", 1), (Level::Warning, "no-channel", 7), (Level::Warning, "left-out", 0)]);
    assert_eq!(names(&outcome), "memChannel kafkaSink");
}

#[test]
fn the_article_with_each_of_its_additions_runs_too() {
    let channel = "agent.channels.memChannel";
    let sink = "agent.sinks.kafkaSink";
    let source = "agent.sources.logSource";
    for (added, expected, key, value) in [
        (format!("{source}.channels = memChannel"), &["tail-engine"][..], "", ""),
        (format!("{channel}.capacity = 50000"), &["no-channel", "tail-engine", "duplicate-key"], "capacity", "50000"),
        (format!("{channel}.transactionCapacity = 1000"), &["no-channel", "tail-engine"], "transactionCapacity", "1000"),
        (
            format!("{sink}.kafka.compression.type = snappy"),
            &["no-channel", "tail-engine", "dead-key"],
            "kafka.producer.compression.type",
            "snappy",
        ),
        (format!("{sink}.batchSize = 50"), &["no-channel", "tail-engine", "deprecated-key"], "flumeBatchSize", "50"),
        // Flume drops the sink: the channel's transactions are smaller. Here they are made larger.
        (
            format!("{sink}.batchSize = 1000"),
            &["no-channel", "tail-engine", "deprecated-key", "batch-too-large"],
            "transactionCapacity",
            "1000",
        ),
        (format!("{sink}.flumeBatchSize = 20"), &["no-channel", "tail-engine"], "flumeBatchSize", "20"),
        (format!("{sink}.kafka.flumeBatchSize = 20"), &["no-channel", "tail-engine", "dead-key"], "flumeBatchSize", "20"),
        (format!("{source}.batchSize = 100"), &["no-channel", "tail-engine"], "batchSize", "100"),
        (format!("{sink}.kafka.producer.acks = 1"), &["no-channel", "tail-engine"], "kafka.producer.acks", "1"),
        (format!("{sink}.kafka.producer.acks = all"), &["no-channel", "tail-engine"], "kafka.producer.acks", "all"),
        (format!("{sink}.kafka.producer.acks = -1"), &["no-channel", "tail-engine"], "kafka.producer.acks", "-1"),
        (format!("{sink}.requiredAcks = -1"), &["no-channel", "tail-engine", "deprecated-key"], "kafka.producer.acks", "-1"),
        (format!("{sink}.serializer.class = kafka.serializer.StringEncoder"), &["no-channel", "tail-engine", "no-effect"], "", ""),
        (
            format!("{sink}.kafka.producer.transactional.id = collector-1"),
            &["no-channel", "tail-engine"],
            "kafka.producer.transactional.id",
            "collector-1",
        ),
        (format!("{sink}.kafka.producer.linger.ms = 5"), &["no-channel", "tail-engine"], "kafka.producer.linger.ms", "5"),
    ] {
        let outcome = outcome(&format!("{ARTICLE}{added}\n"), false);
        assert!(!outcome.failed(), "{added}: {:?}", outcome.findings);
        let codes: Vec<_> = told(&outcome).into_iter().map(|(_, code, _)| code).collect();
        assert_eq!(codes, expected, "{added}");
        let values: Vec<_> = outcome.plans[0].components().filter_map(|component| component.set(key)).collect();
        assert!(key.is_empty() || values.contains(&value), "{added}: {values:?}");
    }
}

/// A file that is fine, for one line at a time to be added or replaced.
const GOOD: &str = "\
a.sources = r
a.channels = c
a.sinks = k
a.sources.r.type = seq
a.sources.r.channels = c
a.channels.c.type = memory
a.sinks.k.type = logger
a.sinks.k.channel = c
";

/// `GOOD` with every line whose key is in `lines` replaced, and the rest of `lines` added.
fn with(lines: &str) -> String {
    let key = |line: &str| line.split_once('=').map_or(line, |(key, _)| key).trim().to_owned();
    let new: Vec<String> = lines.lines().map(key).collect();
    let kept: String = GOOD.lines().filter(|line| !new.contains(&key(line))).map(|line| format!("{line}\n")).collect();
    kept + &lines.lines().filter(|line| !line.ends_with("= -")).map(|line| format!("{line}\n")).collect::<String>()
}

#[test]
fn a_file_without_fault_has_no_findings() {
    assert_eq!(told(&outcome(GOOD, false)), []);
    assert_eq!(told(&outcome(GOOD, true)), []);
}

/// What is said in the default reading about `GOOD` with some lines changed (`key = -` removes one); and does it start?
#[test]
fn every_fault_is_told_once_with_its_remedy() {
    use Level::{Error, Note, Warning};
    let kafka =
        "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\na.sinks.k.kafka.topic = t";
    let exec = "a.sources.r.type = exec\na.sources.r.command = cat /x";
    let hdfs = "a.sinks.k.type = hdfs\na.sinks.k.hdfs.path = file:///x/%Y";
    for (lines, expected) in [
        // Lists and names.
        (
            "a.sources = -",
            &[(Error, "no-components", "list the sources after `a.sources =`"), (Warning, "not-listed", "add `r` to a.sources")][..],
        ),
        (
            "a.channels = -",
            &[
                (Error, "no-components", "list the channels"),
                (Warning, "not-listed", "add `c`"),
                (Error, "no-such-channel", "list `c` in a.channels"),
                (Error, "no-such-channel", "list `c`"),
            ],
        ),
        ("a.sinks = -", &[(Error, "no-components", "list the sinks"), (Warning, "not-listed", "add `k`")]),
        ("a.sources = r s", &[(Error, "not-defined", "define a.sources.s.type")]),
        ("a.sources = r,s", &[(Error, "not-defined", "separate names by blanks"), (Warning, "not-listed", "add `r`")]),
        ("a.sources = r r", &[(Warning, "duplicate-name", "list it once")]),
        ("a.sources = rr", &[(Error, "not-defined", "define a.sources.rr.type"), (Warning, "not-listed", "add `r`")]),
        ("a.sources.r.type = -", &[(Error, "no-type", "add a.sources.r.type")]),
        ("a.sinkgroups = g", &[(Error, "not-defined", "define a.sinkgroups.g.processor.type")]),
        ("a.configfilters = f", &[(Error, "not-defined", "define a.configfilters.f.type")]),
        // Types.
        ("a.sources.r.type = sequ", &[(Error, "unknown-type", "did you mean `seq`?")]),
        ("a.sources.r.type = SEQ", &[]),
        ("a.sources.r.type = org.apache.flume.source.SequenceGeneratorSource", &[]),
        ("a.sources.r.type = com.example.MySource", &[(Error, "unknown-type", "known here: ")]),
        ("a.sources.r.type = jms", &[(Error, "not-built", "TAILDIR")]),
        ("a.channels.c.type = jdbc", &[(Error, "not-built", "`memory`")]),
        ("a.sinks.k.type = kafka", &[(Error, "unknown-type", "did you mean `org.apache.flume.sink.kafka.KafkaSink`?")]),
        ("a.sinks.k.type = KafkaSink", &[(Error, "unknown-type", "did you mean `org.apache.flume.sink.kafka.KafkaSink`?")]),
        ("a.sinks.k.type = hive", &[(Error, "not-built", "let a sink of Kafka Connect write it on")]),
        ("a.sinks.k.type = memory", &[(Error, "unknown-type", "known here")]),
        // Channels.
        ("a.sources.r.channels = -", &[(Warning, "no-channel", "bound to `c`")]),
        ("a.sources.r.channels = -\na.sources.r.channel = c", &[(Warning, "channel-key", "read as a.sources.r.channels")]),
        ("a.sources.r.channels = d", &[(Error, "no-such-channel", "list `d` in a.channels")]),
        ("a.sinks.k.channel = -", &[(Warning, "no-channel", "bound to `c`")]),
        ("a.sinks.k.channel = -\na.sinks.k.channels = c", &[(Warning, "channel-key", "read as a.sinks.k.channel")]),
        ("a.sinks.k.channel = nowhere", &[(Error, "no-such-channel", "list `nowhere`")]),
        ("a.channels = c d\na.channels.d.type = memory", &[(Warning, "unattached-channel", "remove it")]),
        ("a.channels = c d\na.channels.d.type = memory\na.sources.r.channels = c d", &[(Warning, "no-sink", "add a sink")]),
        (
            "a.channels = c d\na.channels.d.type = memory\na.sinks.k.channel = -",
            &[(Error, "no-channel", "one of c, d"), (Warning, "unattached-channel", "remove it")],
        ),
        (
            "a.channels = c d\na.channels.d.type = memory\na.sinks.k.channel = c d",
            &[(Error, "many-channels", "name one"), (Warning, "unattached-channel", "remove it")],
        ),
        // Values.
        ("a.channels.c.capacity = many", &[(Error, "wrong-value", "the default is 100")]),
        ("a.channels.c.capacity = 0", &[(Error, "wrong-value", "the default is 100")]),
        ("a.channels.c.capacity = 50", &[(Warning, "transaction-capacity", "read as transactionCapacity = 50")]),
        ("a.channels.c.transactionCapacity = 500", &[(Warning, "transaction-capacity", "read as capacity = 500")]),
        ("a.channels.c.capacity = 50\na.channels.c.transactionCapacity = 60", &[(Error, "transaction-capacity", "set capacity to 60")]),
        ("a.sources.r.batchSize = 500", &[(Warning, "batch-too-large", "read as a.channels.c.transactionCapacity = 500")]),
        (
            "a.sources.r.batchSize = 500\na.channels.c.capacity = 1000\na.channels.c.transactionCapacity = 100",
            &[(Error, "batch-too-large", "set a.channels.c.transactionCapacity to 500 or more")],
        ),
        ("a.sources.r.batchSize = 500\na.channels.c.capacity = 200", &[(Error, "batch-too-large", "500 or more")]),
        // Keys.
        ("a.channels.c.capasity = 5", &[(Warning, "dead-key", "did you mean `capacity`?")]),
        ("a.channels.c.colour = red", &[(Warning, "dead-key", "`millrace-collector components memory`")]),
        ("a.channels.c.keepAlive = 9", &[(Warning, "dead-key", "write keep-alive")]),
        ("a.source.r.type = seq", &[(Warning, "foreign-key", "write a.sources…")]),
        ("log4j.rootLogger = INFO", &[(Warning, "foreign-key", "write <agent>")]),
        ("nodot = 1", &[(Warning, "foreign-key", "write <agent>")]),
        ("a.sources.r.batchSize =", &[(Warning, "empty-value", "give a value")]),
        ("this line is no property", &[(Warning, "foreign-key", "write <agent>")]),
        ("unreadable", &[(Error, "unreadable-line", "write `key = value`")]),
        ("a.sources.r.batchSize = \\u12", &[(Error, "unreadable-line", "four digits")]),
        ("a.sources.r.batchSize = 5 # five", &[(Warning, "comment-in-value", "its own line"), (Error, "wrong-value", "the default is 1")]),
        ("a.sources.r.batchSize = 1\na.sources.r.batchSize = 2", &[(Warning, "duplicate-key", "remove one")]),
        ("a.sources.r.batchSize = ${none}", &[(Warning, "unknown-variable", "give a default"), (Error, "wrong-value", "the default is 1")]),
        ("a.sources.r.batchSize = ${none:-3}", &[]),
        (
            "a.sources.r.type = exec\na.sources.r.command = cat ${BROKERS}",
            &[(Warning, "no-shell", ""), (Warning, "unknown-variable", "write ${env:BROKERS}")],
        ),
        (
            "a.sources.r.batchSize = ${a.sources.r.totalEvents}\na.sources.r.totalEvents = ${a.sources.r.batchSize}",
            &[
                (Error, "circular-reference", "write the value out"),
                (Error, "circular-reference", "write the value out"),
                (Error, "wrong-value", ""),
                (Error, "wrong-value", ""),
                (Warning, "unknown-variable", ""),
                (Warning, "unknown-variable", ""),
            ],
        ),
        ("a.sources.r.totalEvents = ${f['key']}", &[(Error, "config-filter", "add a.configfilters = f"), (Error, "wrong-value", "")]),
        // Selectors and interceptors.
        ("a.sources.r.selector.type = replicating", &[]),
        ("a.sources.r.selector.optional = c", &[]),
        ("a.sources.r.selector.optional = x", &[(Error, "no-such-channel", "add `x` to the source's channels")]),
        ("a.sources.r.selector.type = multiplexing", &[(Warning, "unrouted", "name channels")]),
        (
            "a.sources.r.selector.type = multiplexing\na.sources.r.selector.default = c\na.sources.r.selector.mapping.x = c d",
            &[(Error, "no-such-channel", "add `d`")],
        ),
        ("a.sources.r.selector.type = multiplexer", &[(Error, "unknown-type", "did you mean `multiplexing`?")]),
        ("a.sources.r.selector.type = load_balancing\na.sources.r.selector.policy = best", &[(Error, "wrong-value", "round_robin")]),
        ("a.sources.r.interceptors = i\na.sources.r.interceptors.i.type = timestamp", &[]),
        (
            "a.sources.r.interceptors = i j\na.sources.r.interceptors.i.type = static\na.sources.r.interceptors.i.vlue = x",
            &[(Error, "not-defined", "define a.sources.r.interceptors.j.type"), (Warning, "dead-key", "did you mean `value`?")],
        ),
        (
            "a.sources.r.interceptors = i\na.sources.r.interceptors.i.type = statics\na.sources.r.interceptors.k.type = static",
            &[(Error, "unknown-type", "did you mean `static`?"), (Warning, "not-listed", "add `k`")],
        ),
        // exec.
        ("a.sources.r.type = exec", &[(Error, "missing-property", "add a.sources.r.command")]),
        (exec, &[]),
        ("a.sources.r.type = exec\na.sources.r.command = tail -F /x | grep y", &[(Warning, "no-shell", "add shell = /bin/sh -c")]),
        (
            "a.sources.r.type = exec\na.sources.r.command = tail -f x",
            &[(Warning, "tail-engine", ""), (Warning, "tail-by-name", "write `tail -F`"), (Warning, "relative-path", "absolute")],
        ),
        (
            "a.sources.r.type = exec\na.sources.r.command = cat /x\na.sources.r.charset = EBCDIC",
            &[(Error, "wrong-value", "the default is UTF-8")],
        ),
        ("a.sources.r.type = exec\na.sources.r.command = tail -F /x /y", &[(Warning, "tail-run", "TAILDIR")]),
        (
            "a.sources.r.type = exec\na.sources.r.shell = /bin/bash -c\na.sources.r.command = tail -F /x | grep y",
            &[(Warning, "tail-run", "regex_filter")],
        ),
        // hdfs.
        (hdfs, &[(Warning, "no-timestamp", "set hdfs.useLocalTimeStamp = true")]),
        (&format!("{hdfs}\na.sinks.k.hdfs.useLocalTimeStamp = true"), &[]),
        (&format!("{hdfs}\na.sources.r.interceptors = i\na.sources.r.interceptors.i.type = timestamp"), &[]),
        (&format!("{hdfs}\na.sources.r.type = syslogtcp\na.sources.r.port = 5140"), &[]),
        ("a.sinks.k.type = hdfs\na.sinks.k.hdfs.path = file:///x/%{host}", &[]),
        // TAILDIR.
        ("a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = /var/log/.*\\\\.log", &[]),
        (
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = f g\na.sources.r.filegroups.f = /l/x",
            &[(Error, "wrong-value", "absolute directory")],
        ),
        (
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = logs/x",
            &[(Error, "wrong-value", "absolute directory")],
        ),
        (
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = /l/(",
            &[(Error, "wrong-value", "regular expression")],
        ),
        (
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = /var/log/\\d+",
            &[(Warning, "lost-backslash", "double it")],
        ),
        (
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = /var/log/.*\\.log",
            &[(Warning, "lost-backslash", "double it")],
        ),
        // netcat.
        (
            "a.sources.r.type = netcat\na.sources.r.bind = 0.0.0.0\na.sources.r.port = 70000",
            &[(Error, "wrong-value", "write a number from 0 to 65535")],
        ),
        // Kafka.
        (kafka, &[]),
        (
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.topic = t",
            &[(Error, "missing-property", "add a.sinks.k.kafka.bootstrap.servers")],
        ),
        (
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1",
            &[(Warning, "default-topic", "add kafka.topic")],
        ),
        (
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.brokerList = h:1 g:2\na.sinks.k.topic = t",
            &[
                (Warning, "deprecated-key", "write kafka.bootstrap.servers"),
                (Warning, "wrong-value", "host:port,host:port"),
                (Warning, "deprecated-key", "write kafka.topic"),
            ],
        ),
        (
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.bootstrap.servers = h:1\na.sinks.k.kafka.topic = t\na.sinks.k.producer.acks = 1",
            &[(Warning, "dead-key", "write kafka.bootstrap.servers"), (Warning, "dead-key", "write kafka.producer.acks")],
        ),
    ] {
        let outcome = outcome(&with(lines), false);
        let mut left: Vec<_> = outcome.findings.iter().collect();
        for (level, code, remedy) in expected {
            let at = left.iter().position(|finding| finding.level == *level && finding.code == *code && finding.remedy.contains(remedy));
            let at = at.unwrap_or_else(|| panic!("{lines}\nlacks {level} {code} ({remedy}) in {left:#?}"));
            left.remove(at);
        }
        left.retain(|finding| finding.level != Note);
        assert!(left.is_empty(), "{lines}\nsays too much: {left:#?}");
        assert_eq!(outcome.failed(), expected.iter().any(|(level, ..)| *level == Error));
    }
}

#[test]
fn kafka_settings_are_checked_before_anything_starts() {
    let sink = |more: &str| {
        with(&format!(
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\na.sinks.k.kafka.topic = t\n{more}"
        ))
    };
    for (more, code) in [
        ("a.sinks.k.kafka.producer.acks = two", "wrong-value"),
        ("a.sinks.k.kafka.producer.compression.type = zip", "wrong-value"),
        ("a.sinks.k.kafka.bootstrap.servers = h", "wrong-value"),
        ("a.sinks.k.kafka.bootstrap.servers = h:x,g:1", "wrong-value"),
        ("a.sinks.k.kafka.topic = a b", "wrong-value"),
        ("a.sinks.k.kafka.topic = logs-%Y\na.sinks.k.allowTopicOverride = false", "wrong-value"),
        ("a.sinks.k.kafka.producer.transactional.id = x\na.sinks.k.kafka.producer.acks = 1", "exactly-once"),
    ] {
        let outcome = outcome(&sink(more), false);
        assert!(
            outcome.findings.iter().any(|finding| finding.level == Level::Error && finding.code == code),
            "{more}: {:?}",
            outcome.findings
        );
    }
    let contradiction = "a.sinks.k.kafka.producer.transactional.id = x\na.sinks.k.kafka.producer.acks = 0";
    let about_acks = |key: &str| key.ends_with(".acks");
    let told = outcome(&sink(contradiction), false).findings.into_iter().filter(|finding| finding.key.as_deref().is_some_and(about_acks));
    assert_eq!(told.map(|finding| finding.level).collect::<Vec<_>>(), [Level::Error]);
    // Java's client has what this build has not.
    for more in
        ["SSL\na.sinks.k.kafka.producer.ssl.truststore.location = /x.jks", "SASL_SSL\na.sinks.k.kafka.producer.sasl.mechanism = GSSAPI"]
    {
        let outcome = outcome(&sink(&format!("a.sinks.k.kafka.producer.security.protocol = {more}")), false);
        let refused: Vec<_> =
            outcome.findings.iter().filter(|finding| finding.level == Level::Error).map(|finding| &finding.flume).collect();
        assert_eq!(refused, ["runs with it"], "{more}: {:?}", outcome.findings);
    }
    for more in [
        "a.sinks.k.kafka.topic = logs-%Y-%{host}",
        "a.sinks.k.kafka.producer.compression.type = zstd\na.sinks.k.header.host = X-Host\na.sinks.k.deadLetter.topic = dead",
    ] {
        let outcome = outcome(&sink(more), false);
        assert!(!outcome.failed(), "{more}: {:?}", outcome.findings);
    }
}

#[test]
fn exactly_once_needs_a_sink_of_its_own_and_a_tailed_file() {
    let kafka = |name: &str, id: &str| {
        format!(
            "a.sinks.{name}.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.{name}.kafka.bootstrap.servers = h:1\na.sinks.{name}.kafka.topic = t\na.sinks.{name}.channel = c\na.sinks.{name}.kafka.producer.transactional.id = {id}\n"
        )
    };
    let tail = "a.sources.r.type = exec\na.sources.r.command = tail -F /x\n";
    let once = |text: &str| {
        let outcome = outcome(&with(text), false);
        outcome.findings.into_iter().filter(|finding| finding.code == "exactly-once").map(|finding| finding.level).collect::<Vec<_>>()
    };
    assert_eq!(once(&format!("{tail}{}", kafka("k", "x"))), []);
    assert_eq!(once(&kafka("k", "x")), [Level::Warning], "seq has no positions");
    // What spills has the channel's positions, what does not has the file's.
    let spillable = format!("{tail}a.channels.c.type = SPILLABLEMEMORY\na.channels.c.capacity = 100\n{}", kafka("k", "x"));
    assert_eq!(once(&spillable.replace("a.channels.c.capacity = 100\n", "")), [Level::Warning]);
    assert_eq!(once(&spillable.replace("c.capacity = 100", "c.overflowCapacity = 0")), []);
    assert_eq!(once(&format!("{tail}a.sinks = k l\n{}{}", kafka("k", "x"), kafka("l", "y"))), [Level::Error; 2]);
    assert_eq!(once(&format!("{tail}a.sinks = k l\n{}a.sinks.l.type = null\na.sinks.l.channel = c", kafka("k", "x"))), [Level::Error]);
    assert_eq!(
        once(&format!("{tail}a.channels = c d\na.channels.d.type = memory\na.sources.r.channels = c d\n{}", kafka("k", "x"))),
        [Level::Error]
    );
}

#[test]
fn strictly_read_what_is_wrong_is_dropped_and_the_rest_runs() {
    for (lines, left) in [
        ("a.sources.r.channels = -", "c k"),
        ("a.sinks.k.channel = nowhere", "r c"),
        ("a.sources = r s\na.sources.s.type = exec\na.sources.s.channels = c", "r c k"),
        ("a.sources.r.batchSize = 500", "c k"),
        ("a.channels.c.capacity = many", "r c k"),
        ("a.channels = c d\na.channels.d.type = memory", "r c k"),
        ("a.sources.r.batchSize = x", "c k"),
    ] {
        let outcome = outcome(&with(lines), true);
        assert!(!outcome.failed(), "{lines}: {:?}", outcome.findings);
        assert!(!outcome.findings.is_empty());
        assert_eq!(names(&outcome), left, "{lines}");
    }
    // Flume itself stops at a class it cannot load.
    assert!(outcome(&with("a.sinks.k.type = com.example.Sink"), true).failed());
    // Dead keys stay dead.
    let dead = outcome(
        &with(
            "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\na.sinks.k.kafka.topic = t\na.sinks.k.kafka.compression.type = snappy",
        ),
        true,
    );
    assert_eq!(component(&dead, "k").set("kafka.producer.compression.type"), None);
}

#[test]
fn strictly_read_it_is_said_what_is_left_out() {
    let said = |lines: &str, code: &str| {
        let outcome = outcome(&with(lines), true);
        outcome.findings.iter().find(|finding| finding.code == code).map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(
        said("a.sources.r.batchSize = 500", "left-out"),
        "a: Flume does not load source `r`; what is left: channel `c`, sink `k`; the agent does not run as it is written; mend what is told of them"
    );
    assert_eq!(said("a.sinks.k.colour = red", "left-out"), "");
    // A kind of Millrace's own has no reading of Flume's: it runs.
    let own = "a.sources.r.type = otlp";
    assert!(said(own, "own-kind").contains("Flume has no source `otlp`; it runs here; Flume: stops the whole agent"));
    assert_eq!(said(own, "left-out"), "");
    assert_eq!(component(&outcome(&with(own), true), "c").integer("transactionCapacity"), 8192);
}

#[test]
fn the_key_that_is_told_is_the_one_in_the_file() {
    let lines = "a.sinkgroups = g\na.sinkgroups.g.sinks = k\na.sinkgroups.g.processor.type = fialover";
    let told = outcome(&with(lines), false).findings;
    assert_eq!(
        told.iter().map(|finding| finding.key.as_deref().unwrap_or_default()).collect::<Vec<_>>(),
        ["a.sinkgroups.g.processor.type"]
    );
}

#[test]
fn two_sources_do_not_listen_on_one_port() {
    let told = |lines: &str| {
        let lines = format!(
            "a.sources = r s\na.sources.r.type = netcat\na.sources.s.channels = c\na.sources.r.bind = 0.0.0.0\na.sources.r.port = 4141\n{lines}"
        );
        let outcome = outcome(&with(&lines), false);
        outcome.findings.iter().find(|finding| finding.code == "port-twice").map(ToString::to_string).unwrap_or_default()
    };
    let same = told("a.sources.s.type = avro\na.sources.s.bind = 127.0.0.1\na.sources.s.port = 4141");
    assert!(same.contains("a.sources.s.port: source `s` listens on 127.0.0.1, tcp 4141, where `r` does"), "{same}");
    assert!(told("a.sources.s.type = multiport_syslogtcp\na.sources.s.ports = 4140 4141").contains("a.sources.s.ports: "));
    assert_eq!(told("a.sources.s.type = avro\na.sources.s.bind = 127.0.0.1\na.sources.s.port = 4142"), "");
    assert_eq!(told("a.sources.s.type = syslogudp\na.sources.s.port = 4141"), "");
    assert_eq!(told("a.sources.s.type = avro\na.sources.s.bind = 127.0.0.1\na.sources.s.port = 0"), "");
}

#[test]
fn groups_of_files_that_are_not_listed_are_told() {
    let outcome = outcome(
        &with(
            "a.sources.r.type = TAILDIR\na.sources.r.filegroups = logs\na.sources.r.filegroups.logs = /var/log/.*\na.sources.r.filegroups.more = /var/more/.*\n\
             a.sources.r.headers.logs.kind = a\na.sources.r.headers.log.kind = b",
        ),
        false,
    );
    let told: Vec<_> = outcome
        .findings
        .iter()
        .map(|finding| (finding.key.as_deref().unwrap_or_default(), finding.message.as_str(), finding.remedy.as_str()))
        .collect();
    let expected = [
        (
            "a.sources.r.filegroups.more",
            "group `more` is not listed in filegroups, so its files are not read",
            "add `more` to r.filegroups, or remove the line",
        ),
        ("a.sources.r.headers.log.kind", "there is no group `log` in filegroups, so no event gets the header", "did you mean `logs`?"),
    ];
    assert!(expected.iter().all(|finding| told.contains(finding)) && !outcome.failed(), "{told:?}");
}

#[test]
fn a_transaction_longer_than_brokers_allow_is_told() {
    let told = |milliseconds: u32| {
        let outcome = outcome(
            &with(&format!(
                "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\na.sinks.k.kafka.topic = t\n\
                 a.sinks.k.kafka.producer.transactional.id = t\na.sinks.k.kafka.producer.transaction.timeout.ms = {milliseconds}"
            )),
            false,
        );
        outcome.findings.iter().any(|finding| finding.message.contains("transaction.max.timeout.ms"))
    };
    assert_eq!([told(900_000), told(900_001)], [false, true]);
}

#[test]
fn agents_are_chosen_by_name() {
    let two = format!("{GOOD}{}", GOOD.replace("a.", "b."));
    assert_eq!(several(&[("f", &two)], None, false).plans.len(), 2);
    let one = several(&[("f", &two)], Some("b"), false);
    assert_eq!((one.plans.len(), one.plans[0].agent.as_str()), (1, "b"));
    let none = several(&[("f", &two)], Some("z"), false);
    assert!(none.failed() && none.plans.is_empty());
    assert_eq!(none.findings[0].remedy, "the file defines a, b; give one of them with --name");
    assert!(outcome("", false).failed());
    assert!(outcome("# nothing\n", false).failed());
}

#[test]
fn later_files_count_over_earlier_ones_and_places_name_the_file() {
    let more = "a.channels.c.capacity = 700\na.sinks.k.colour = red\n";
    let outcome = several(&[("one.conf", GOOD), ("two.conf", more)], Some("a"), false);
    assert_eq!(component(&outcome, "c").integer("capacity"), 700);
    let place = outcome.findings[0].place.as_ref().unwrap();
    assert_eq!((place.file.as_str(), place.line), ("two.conf", 2));
}

#[test]
fn variables_are_filled_in() {
    let text = with(
        "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = ${env:BROKERS}\na.sinks.k.kafka.topic = ${a.sources}-logs",
    );
    let outcome = outcome(&text, false);
    assert_eq!(component(&outcome, "k").text("kafka.bootstrap.servers"), "env1:9092");
    assert_eq!(component(&outcome, "k").text("kafka.topic"), "r-logs");
}

#[test]
fn the_effective_file_reads_the_same_and_hides_secrets() {
    let text = with(
        "a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = h:1\na.sinks.k.topic = t\na.sinks.k.kafka.producer.ssl.key.password = hunter2\na.sinks.k.kafka.producer.client.id = C:\\\\x",
    );
    let first = outcome(&text, false);
    let written = first.plans[0].to_properties();
    assert!(!written.contains("hunter2") && written.contains("***"), "{written}");
    let again = outcome(&written, false);
    assert!(told(&again).is_empty(), "{:?}", again.findings);
    assert_eq!(component(&again, "k").set("kafka.producer.client.id"), component(&first, "k").set("kafka.producer.client.id"));
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(bytes in any::<Vec<u8>>(), strict in any::<bool>()) {
        let env = |_: &str| None;
        let run = |_: &str, _: &str| Err(String::new());
        read(&[ConfFile { name: "f", bytes: &bytes }], &Options { agent: None, strict, env: &env, run: &run, sys: &BTreeMap::new(), now: chrono::Local::now() });
    }

    /// Near misses: lines of a good file with something removed, doubled, or put in.
    #[test]
    fn nor_a_damaged_one(cuts in prop::collection::vec((0usize..600, 0usize..12, "[a-z=.: \\\\${}\n#0-9]{0,6}"), 1..8), strict in any::<bool>()) {
        let mut text: Vec<char> = ARTICLE.chars().collect();
        for (at, length, put) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        let outcome = outcome(&text, strict);
        // What would run is wired: every channel that is named is there.
        for plan in outcome.plans.iter().filter(|_| !outcome.failed()) {
            for component in plan.sources.iter().chain(&plan.sinks) {
                prop_assert!(!component.channels.is_empty());
                prop_assert!(component.channels.iter().all(|name| plan.channels.iter().any(|channel| channel.name == *name)));
            }
        }
    }
}
