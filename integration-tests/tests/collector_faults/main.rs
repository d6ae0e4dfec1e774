//! What the tail and the Kafka sink make of faults, on the real binary in exactly-once mode. The oracle is outside: every
//! line carries its log, its file and its number, and is compared with what a `read_committed` reader finds in the topic.

mod brokers;
mod full;
mod reload;
mod tail;

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use integration_tests::{
    eventually, kafka,
    process::{Process, run},
    unique,
};

/// On a machine with other work; a test that passes waits for none of it.
const WAIT: Duration = Duration::from_secs(90);

/// An agent `a` with a memory channel `c` and a transactional Kafka sink `k`; the sources are the test's.
struct Agent {
    dir: tempfile::TempDir,
    bootstrap: String,
    topic: String,
}

impl Agent {
    /// For a topic that is there.
    fn new(bootstrap: &str, topic: &str, sources: &str, lines: &str) -> Self {
        let agent =
            Self { dir: tempfile::tempdir().expect("a temporary folder"), bootstrap: bootstrap.to_owned(), topic: topic.to_owned() };
        let mut text = format!(
            "a.sources = {sources}\na.channels = c\na.sinks = k\na.channels.c.type = memory\na.channels.c.capacity = 10000\n\
             a.sinks.k.channel = c\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\n\
             a.sinks.k.kafka.bootstrap.servers = {bootstrap}\na.sinks.k.kafka.topic = {topic}\n\
             a.sinks.k.kafka.producer.transactional.id = {}\na.sinks.k.positionsTopic = {}\n",
            unique("txn"),
            unique("positions")
        );
        for source in sources.split(' ') {
            text.push_str(&format!("a.sources.{source}.channels = c\n"));
        }
        for line in lines.replace("DIR/", &format!("{}/", agent.dir.path().display())).lines() {
            text.push_str(&format!("a.{}\n", line.trim()));
        }
        fs::write(agent.dir.path().join("agent.conf"), text).expect("the agent's file");
        agent
    }

    fn start(&self) -> Process {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[(&str, &str)]) -> Process {
        let (conf, state) = (self.dir.path().join("agent.conf"), self.dir.path().join("state"));
        let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
        let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
        Process::start("millrace-collector", self.dir.path(), &args, &[&env, more].concat())
    }

    fn log(&self, name: &str, path: &str) -> Log {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        Log { name: name.to_owned(), path, file: 0, written: Vec::new() }
    }

    /// Everything that was written to these logs is in the topic once, in the order of each file; nothing else is.
    async fn delivered_once<'a>(&self, logs: impl IntoIterator<Item = &'a Log> + Clone) {
        self.delivered(logs, None).await;
    }

    /// Of the log `name`, whose sender cannot know, some of `sent`: in their order, none twice.
    async fn delivered_some<'a>(&self, name: &str, sent: &[String], logs: impl IntoIterator<Item = &'a Log> + Clone) {
        self.delivered(logs, Some((name, sent))).await;
    }

    async fn delivered<'a>(&self, logs: impl IntoIterator<Item = &'a Log> + Clone, some: Option<(&str, &[String])>) {
        eventually(WAIT, "every line is in Kafka once", || async {
            let mut seen: HashMap<String, Vec<String>> = HashMap::new();
            for text in kafka::texts(&self.bootstrap, &self.topic) {
                seen.entry(text.split(' ').next().unwrap_or_default().to_owned()).or_default().push(text);
            }
            for log in logs.clone() {
                log.compare(seen.remove(&log.name).unwrap_or_default())?;
            }
            if let Some((name, sent)) = some {
                let seen = seen.remove(name).unwrap_or_default();
                let mut sent = sent.iter();
                if let Some(wrong) = seen.iter().find(|line| !sent.any(|sent| sent == *line)) {
                    return Err(format!("{wrong} came twice or too late, or was never sent"));
                }
                if seen.is_empty() {
                    return Err(format!("nothing of {name}"));
                }
            }
            if seen.is_empty() { Ok(()) } else { Err(format!("lines of {:?}", seen.into_keys())) }
        })
        .await;
    }
}

/// A log and its files, one after the other: lines `NAME FILE NUMBER …`.
struct Log {
    name: String,
    path: PathBuf,
    file: usize,
    written: Vec<String>,
}

impl Log {
    /// The next line, noted as written.
    fn line(&mut self, rest: &str) -> String {
        let line = format!("{} {:04} {:07} {rest}", self.name, self.file, self.written.len());
        self.written.push(line.clone());
        line
    }

    fn write(&mut self, lines: usize) {
        let text: String = (0..lines).map(|n| self.line(&"x".repeat(n % 90)) + "\n").collect();
        append(&self.path, &text);
    }

    /// Renamed; what is written from now on goes to another file.
    fn rename(&mut self, to: &str) {
        fs::rename(&self.path, self.path.with_file_name(to)).expect("rotation");
        self.file += 1;
    }

    /// Copied, and emptied in place.
    fn copy_truncate(&mut self, to: &str) {
        fs::copy(&self.path, self.path.with_file_name(to)).expect("copy");
        OpenOptions::new().write(true).truncate(true).open(&self.path).expect("truncate");
        self.file += 1;
    }

    fn compare(&self, mut seen: Vec<String>) -> Result<(), String> {
        // Files of one log may be read beside each other; the order within each is kept by this sort.
        seen.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        if seen == self.written {
            return Ok(());
        }
        let show = |line: Option<&String>| line.map(|line| line.chars().take(60).collect::<String>());
        let at = seen.iter().zip(&self.written).take_while(|(seen, written)| seen == written).count();
        Err(format!(
            "{}: {} lines in Kafka, {} written; line {at} should be {:?} and is {:?}",
            self.name,
            seen.len(),
            self.written.len(),
            show(self.written.get(at)),
            show(seen.get(at))
        ))
    }
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).and_then(|mut log| log.write_all(text.as_bytes())).expect("the log");
}

/// `millrace --collector ADDRESS collector ARGS`.
fn millrace(address: &str, args: &[&str]) -> String {
    let output = run("millrace", &[&["--collector", address, "collector"], args].concat(), &[]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

/// The collector's complaints.
fn complaints(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect()
}
