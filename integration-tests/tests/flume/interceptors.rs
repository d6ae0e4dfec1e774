//! Interceptors: the same file and the same lines give the same events in real Flume and in the collector.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use integration_tests::{
    eventually,
    flume::{Flume, free_port},
    process::Process,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

const WAIT: Duration = Duration::from_secs(60);

/// At most 16 bytes each: the logger sink then writes an event as one line.
const LINES: &[&str] = &[
    "INFO a=1 b=22",
    "WARN a=x b=3",
    "2012-10-18 18:47",
    "aaa bbb",
    "drop me",
    "DROP me too",
    "café 1 é",
    "a.b$c{d}",
    "user=bob k=v",
    "x  y",
    "k=v,k2=v2",
    "1.2.3.4 GET",
    "\\back\\",
    "tail\r",
    "ÀÉ _x",
];

/// The last one ends the input: it is not touched.
const END: &str = "~end~";

fn conf(agent: &str, port: u16) -> String {
    let interceptors = [
        ("ip", "type = host\nhostHeader = ip"),
        ("name", "type = org.apache.flume.interceptor.HostInterceptor$Builder\nhostHeader = name\nuseIP = false"),
        ("gone", "type = static\nkey = gone\nvalue = 1"),
        ("x1", "type = static\nkey = x1\nvalue = 1"),
        ("y1", "type = static\nkey = y1\nvalue = 1"),
        ("less", "type = remove_header\nwithName = gone\nfromList = a ; y1;b\nfromListSeparator = \\\\s*;\\\\s*\nmatching = x\\\\d"),
        ("drop", "type = regex_filter\nregex = (?i)^drop\\\\b(?!.*\\\\btoo$)\nexcludeEvents = true"),
        ("keep", "type = regex_filter\nregex = [^\\\\d\\\\s]|\\\\d{4}"),
        (
            "find",
            "type = regex_extractor\nregex = (?:^|\\\\s)(?<key>\\\\w+)=(\\\\p{Alnum}+)(?:\\\\s(b)=)?\nserializers = s1 s2 s3\n\
             serializers.s1.name = key\nserializers.s2.name = value\nserializers.s2.type = DEFAULT\nserializers.s3.name = third",
        ),
        (
            "when",
            "type = regex_extractor\nregex = ^(\\\\d{4}-\\\\d\\\\d-\\\\d\\\\d\\\\s\\\\d\\\\d:\\\\d\\\\d)\nserializers = t\nserializers.t.name = timestamp\n\
             serializers.t.type = org.apache.flume.interceptor.RegexExtractorInterceptorMillisSerializer\nserializers.t.pattern = yyyy-MM-dd HH:mm",
        ),
        ("swap", "type = search_replace\nsearchPattern = (\\\\w)=(\\\\w++)(?=\\\\s|$)\nreplaceString = $2:$1\\\\$"),
        ("blank", "type = search_replace\nsearchPattern = \\\\h{2,}|\\\\b(bbb)\\\\b\nreplaceString = <$1>"),
    ];
    let names: Vec<&str> = interceptors.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "{agent}.sources = r\n{agent}.channels = c\n{agent}.sinks = k\n{agent}.sources.r.type = netcat\n{agent}.sources.r.bind = 127.0.0.1\n\
         {agent}.sources.r.port = {port}\n{agent}.sources.r.channels = c\n{agent}.channels.c.type = memory\n{agent}.sinks.k.type = logger\n\
         {agent}.sinks.k.channel = c\n{agent}.sources.r.interceptors = {}\n",
        names.join(" ")
    );
    for (name, settings) in interceptors {
        for line in settings.lines() {
            text.push_str(&format!("{agent}.sources.r.interceptors.{name}.{}\n", line.trim()));
        }
    }
    // Flume's consumer of a third group that took no part writes null; here the header is not set: see below.
    text
}

/// Headers and body.
type Shown = (BTreeMap<String, String>, String);

/// Headers and body of every event in a log, in order; up to [`END`].
fn events(log: &str) -> Result<Vec<Shown>, String> {
    let mut found = Vec::new();
    for line in log.lines().filter_map(|line| line.split_once("Event: { headers:{")).map(|(_, event)| event) {
        let (headers, body) = line.split_once("} body:").ok_or("no body")?;
        let headers = headers.split(", ").filter_map(|pair| pair.split_once('=')).filter(|(_, value)| *value != "null");
        let hex = body.split_whitespace().take_while(|word| word.len() == 2 && u8::from_str_radix(word, 16).is_ok());
        let bytes: Vec<u8> = hex.take(16).filter_map(|word| u8::from_str_radix(word, 16).ok()).collect();
        let body = String::from_utf8_lossy(&bytes).into_owned();
        if body.starts_with(END) {
            return Ok(found);
        }
        found.push((headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), body));
    }
    Err(format!("{} events, and no end", found.len()))
}

async fn send(port: u16) {
    let stream =
        eventually(WAIT, "netcat listens", || async { TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string()) })
            .await;
    let (read, mut write) = stream.into_split();
    let mut answers = BufReader::new(read).lines();
    for line in LINES.iter().copied().chain([END]) {
        write.write_all(format!("{line}\n").as_bytes()).await.expect("a line");
        assert_eq!(answers.next_line().await.expect("an answer").as_deref(), Some("OK"), "{line}");
    }
}

fn start(dir: &Path, text: &str) -> Process {
    let (path, state) = (dir.join("collector.conf"), dir.join("state"));
    fs::write(&path, text).expect("the agent's file");
    let args = ["agent", "-n", "agent", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    Process::start(
        "millrace-collector",
        dir,
        &args,
        &[("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")],
    )
}

#[tokio::test]
async fn the_same_file_and_lines_give_the_same_events() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (theirs, ours) = (free_port(), free_port());
    let flume = Flume::start(dir.path(), "flume", &conf("agent", theirs));
    let collector = start(dir.path(), &conf("agent", ours));
    tokio::join!(send(theirs), send(ours));
    let expected = eventually(WAIT, "Flume's events", || async { events(&flume.log()) }).await;
    let found = eventually(WAIT, "the collector's events", || async { events(&collector.log()) }).await;
    // Not by dropping everything.
    assert_eq!(expected.len(), LINES.len() - 1, "{expected:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}
