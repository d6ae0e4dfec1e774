//! The properties of `hbase`, `hbase2` and `asynchbase`, which are one sink here, and what there is to say about them.

use service_kit::hbase::{Hbase, HbaseConfig};

use super::serializer::{self, Which};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::interceptor::review_regex;
use crate::sink::dead_letter::DIRECTORY;
use crate::source::charset::Charset;
use crate::tls;

pub(super) const URL: &str = "hbase.rest.url";

const PROPERTIES: usize = 29;

const fn properties(serializer: &'static str, timeout_is_flumes: bool) -> [Property; PROPERTIES] {
    [
        Property::text("table", None, "Table to write to. It must exist; until it does, events wait.").required(),
        Property::text("columnFamily", None, "Column family to write to. It must exist; until it does, events wait.").required(),
        Property::text(
            URL,
            None,
            "Address of HBase's REST gateway: http://host:8080, or https; `user:password@` and a path are possible. Needed.",
        )
        .own(),
        Property::integer("batchSize", 1, 100_000, Some("100"), "Events written with one request, at most."),
        Property::text("serializer", Some(serializer), "How an event becomes a row: one of Flume's Simple… and Regex… serializers."),
        Property::text("serializer.rowPrefix", Some("default"), "Simple: what row keys begin with."),
        Property::text(
            "serializer.suffix",
            Some("uuid"),
            "Simple: what follows in row keys: `uuid`, `random` (a number), `timestamp` (milliseconds; an own number after them, unless `--flume-strict`), `nano` (nanoseconds). The first two are the same however often an event of a tailed file or of the file channel is sent, so that nothing is written twice; `timestamp` is where events bear a header `timestamp`; `nano` while the sink tries, and not after a crash.",
        ),
        Property::text("serializer.payloadColumn", Some("pCol"), "Simple: column for the body."),
        Property::text(
            "serializer.incrementColumn",
            Some("iCol"),
            "Simple: column that counts events, in the row `serializer.incrementRow`. Counted once for a request, after its rows. What HBase counted without an answer arriving, or before a crash, is counted again: it never counts too few.",
        ),
        Property::text("serializer.incrementRow", Some("incRow"), "Simple: row that counts events."),
        Property::text(
            "serializer.regex",
            Some("(.*)"),
            "Regex: Java regular expression for the whole body; `.` is any character. A body that does not match is put aside with the reason (`--flume-strict`: left out).",
        ),
        Property::boolean("serializer.regexIgnoreCase", "false", "Regex: letters match without regard to case."),
        Property::text(
            "serializer.colNames",
            Some("payload"),
            "Regex: columns for the expression's groups, separated by commas without blanks. `ROW_KEY`: the group is the row key.",
        ),
        Property::integer(
            "serializer.rowKeyIndex",
            -1,
            10_000,
            Some("-1"),
            "Regex: which of the columns is `ROW_KEY`, from 0. -1: keys are `<milliseconds>-<letters>-<number>`, by the event's header `timestamp` or the clock; they are the same in a second try after a crash where events bear that header.",
        ),
        Property::boolean("serializer.depositHeaders", "false", "Regex: headers are written too, a column each."),
        Property::text("serializer.charset", Some("UTF-8"), "Regex: of bodies, column names and headers. Groups are written in UTF-8."),
        Property::boolean("coalesceIncrements", "false", "Accepted: a request's increments are always one."),
        Property::text("zookeeperQuorum", None, "Of no use: the REST gateway knows where HBase is."),
        Property::text("znodeParent", Some("/hbase"), "Of no use: the REST gateway knows where HBase is."),
        Property::boolean("enableWal", "true", "Accepted: the write-ahead log is always written."),
        Property::text("kerberosPrincipal", None, "Refused: the REST gateway logs in to HBase, with its own keytab."),
        Property::text("kerberosKeytab", None, "Refused: the REST gateway logs in to HBase, with its own keytab."),
        Property { own: !timeout_is_flumes, ..Property::integer("timeout", 1, 3_600_000, Some("60000"), "Milliseconds for an answer.") },
        Property::integer("maxConsecutiveFails", 0, i64::MAX, Some("10"), "Accepted: a connection that failed is not used again."),
        Property::text("async.*", None, "Accepted: settings of another client of HBase."),
        Property::integer("connectTimeout", 1, 3_600_000, Some("5000"), "Milliseconds for a connection.").own(),
        Property {
            doc: "https: a PEM file of certificates to trust. Without it the system's authorities are trusted.",
            own: true,
            ..tls::TRUSTSTORE
        },
        tls::VERIFY_HOSTNAME,
        DIRECTORY,
    ]
}

static HBASE_PROPERTIES: [Property; PROPERTIES] = properties("org.apache.flume.sink.hbase.SimpleHbaseEventSerializer", false);
static HBASE2_PROPERTIES: [Property; PROPERTIES] = properties("org.apache.flume.sink.hbase2.SimpleHBase2EventSerializer", false);
static ASYNC_PROPERTIES: [Property; PROPERTIES] = properties("org.apache.flume.sink.hbase.SimpleAsyncHbaseEventSerializer", true);

pub static HBASE: Kind = kind("hbase", "org.apache.flume.sink.hbase.HBaseSink", &HBASE_PROPERTIES);
pub static HBASE2: Kind = kind("hbase2", "org.apache.flume.sink.hbase2.HBase2Sink", &HBASE2_PROPERTIES);
pub static ASYNC: Kind = kind("asynchbase", "org.apache.flume.sink.hbase.AsyncHBaseSink", &ASYNC_PROPERTIES);

const fn kind(alias: &'static str, class: &'static str, properties: &'static [Property]) -> Kind {
    Kind {
        role: Role::Sink,
        alias: Some(alias),
        class: Some(class),
        doc: "Writes events as rows to HBase, through its REST gateway. Row keys are made of the event, so that a retry writes no second row; where Flume draws lots.",
        properties,
        deprecated: &[],
        misspelt: &[
            ("serializer.encoding", "serializer.charset"),
            ("serializer.columns", "serializer.colNames"),
            ("batch-size", "batchSize"),
        ],
        adopt: adopts_nothing,
        batch: Some("batchSize"),
        review,
    }
}

pub(super) fn config(component: &Component) -> anyhow::Result<HbaseConfig> {
    let url = component.text(URL).trim();
    let tls = url.starts_with("https:").then(|| tls::client(component, &[])).transpose()?;
    Ok(HbaseConfig {
        tls,
        connect_timeout: component.millis("connectTimeout"),
        request_timeout: component.millis("timeout"),
        // The sink sends one request after another.
        connections_max: 1,
        ..HbaseConfig::new(url)
    })
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let at = |finding: Finding, key: &str| {
        finding.maybe_at(component.settings.get(key).and_then(|setting| setting.place.as_ref())).key(format!("{}.{key}", component.name))
    };
    let mut findings = Vec::new();
    if component.set(URL).is_none() {
        let finding = Finding::error("no-gateway", "HBase is reached through its REST gateway, whose address is not set");
        findings.push(
            at(finding, URL)
                .flume("asks ZooKeeper, and speaks to HBase's servers itself")
                .remedy("start a gateway (`hbase rest start`) and set hbase.rest.url = http://HOST:8080"),
        );
    } else if let Err(error) = address(component) {
        findings.push(at(Finding::error("wrong-value", error), URL).remedy("write http://host:port"));
    }
    for key in ["zookeeperQuorum", "znodeParent"].into_iter().filter(|key| component.set(key).is_some()) {
        let finding = Finding::note("not-used", "of no use here: the REST gateway knows where HBase is");
        findings.push(at(finding, key).remedy("it may stay for Flume's sake"));
    }
    for key in ["kerberosPrincipal", "kerberosKeytab"].into_iter().filter(|key| component.set(key).is_some()) {
        let finding = Finding::error("kerberos", "Kerberos is not spoken with the REST gateway");
        let remedy = "give the keytab to the gateway (hbase.rest.keytab.file, hbase.rest.kerberos.principal) and remove the line; \
                      protect the way to it with https and user:password@";
        findings.push(at(finding, key).flume("logs in with it").remedy(remedy));
    }
    if component.set("enableWal").is_some() && !component.boolean("enableWal") {
        let finding = Finding::warning("always-logged", "the write-ahead log is written all the same");
        findings.push(at(finding, "enableWal").flume("leaves it out, and a server's crash loses rows").remedy("remove the line"));
    }
    match serializer::which(component) {
        Some(Which::Simple) => review_simple(component, strict, &at, &mut findings),
        Some(Which::Regex) => review_expression(component, &at, &mut findings),
        None => {
            let finding = Finding::error("custom-class", format!("`{}` is not a serializer here", component.text("serializer")));
            findings.push(at(finding, "serializer").flume("loads the class").remedy(format!("set {}", serializer::names())));
        }
    }
    findings
}

fn address(component: &Component) -> Result<(), String> {
    // The TLS files are read when the sink starts; here the address alone counts.
    let url = component.text(URL).trim();
    let plain = url.strip_prefix("https:").map_or_else(|| url.to_owned(), |rest| format!("http:{rest}"));
    Hbase::new(HbaseConfig::new(plain)).map(drop).map_err(|error| error.to_string())
}

fn review_simple(component: &Component, strict: bool, at: &dyn Fn(Finding, &str) -> Finding, findings: &mut Vec<Finding>) {
    let key = "serializer.suffix";
    let word = component.text(key);
    match serializer::suffix(component, true) {
        None => {
            let finding = Finding::warning("wrong-value", format!("`{word}` is read as uuid"));
            findings.push(at(finding, key).flume("does the same").remedy("write uuid, random, timestamp or nano, in small letters"));
        }
        Some(super::key::Suffix::Timestamp) => {
            let (message, flume) = if strict {
                ("events of the same millisecond share a row key: the last one stays", "the same")
            } else {
                ("the row key gets a number after the milliseconds", "events of the same millisecond share a row key: the last one stays")
            };
            findings.push(at(Finding::warning("shared-keys", message), key).flume(flume).remedy("set suffix = uuid"));
        }
        Some(_) => {}
    }
}

fn review_expression(component: &Component, at: &dyn Fn(Finding, &str) -> Finding, findings: &mut Vec<Finding>) {
    let charset = component.text("serializer.charset");
    if let Some(fault) = Charset::fault(charset) {
        findings.push(at(Finding::error("wrong-value", fault), "serializer.charset").remedy("write UTF-8"));
    }
    let names = serializer::column_names(component);
    let told_key = if component.set("serializer.colNames").is_some() { "serializer.colNames" } else { "serializer.regex" };
    // What reads the flags before the expression is checked here, and not a shorter form of it.
    match serializer::regex(component) {
        Err(_) => match review_regex(component, "serializer.regex", crate::java_regex::JavaRegex::whole) {
            Err(finding) => findings.push(*finding),
            Ok(_) => findings.push(at(Finding::error("regular-expression", "it cannot be used here"), "serializer.regex")),
        },
        Ok(regex) if regex.groups() != names.len() => {
            let message = format!("serializer.regex has {} groups and serializer.colNames {} columns", regex.groups(), names.len());
            let finding = Finding::error("wrong-value", message).flume("drops every event in silence");
            findings.push(at(finding, told_key).remedy("name one column for each group; `(?:…)` is no group"));
        }
        Ok(_) => {}
    }
    if let Err(fault) = serializer::key_index(component) {
        let finding = Finding::error("wrong-value", fault).flume("drops the sink");
        findings.push(at(finding, "serializer.rowKeyIndex").remedy("count the columns from 0, and call that one ROW_KEY"));
    } else if component.integer("serializer.rowKeyIndex") < 0 && serializer::names_key(component) {
        let finding = Finding::warning("wrong-value", "ROW_KEY is a column like others: serializer.rowKeyIndex is not set");
        findings.push(at(finding, told_key).flume("does the same").remedy("set serializer.rowKeyIndex to its place, from 0"));
    }
    if let Some(name) = names.iter().find(|name| name.trim() != **name) {
        let finding = Finding::warning("wrong-value", format!("the blank is part of the column's name `{name}`"));
        findings.push(at(finding, told_key).flume("does the same").remedy("separate the names by commas alone"));
    }
}
