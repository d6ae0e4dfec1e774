//! The file channel and the transactional sink of a real collector, made to fail at every marked point, on every damaged file
//! and at power cuts. What was acknowledged is known outside of it: by those who sent it.

mod damage;
mod disk;
mod points;
mod senders;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use integration_tests::process::{Process, run};

const WAIT: Duration = Duration::from_secs(60);

/// An agent `a` with a netcat source, a file channel `c`, and a sink.
struct Agent {
    dir: PathBuf,
    /// Where the channel is.
    place: PathBuf,
    port: u16,
}

/// A sink that never delivers.
const NOWHERE: &str = "type = org.apache.flume.sink.kafka.KafkaSink\nkafka.bootstrap.servers = 127.0.0.1:9\nkafka.topic = t";

impl Agent {
    fn new(dir: &Path, place: &Path) -> Self {
        Self { dir: dir.to_owned(), place: place.to_owned(), port: integration_tests::flume::free_port() }
    }

    /// A sink that writes what it gets into files of `out`, which is on no disk that fails.
    fn files(&self) -> String {
        format!("type = file_roll\nsink.directory = {}\nsink.rollInterval = 0", self.dir.join("out").display())
    }

    /// Writes the agent file; its path.
    fn conf(&self, name: &str, sink: &str) -> String {
        let place = self.place.display();
        let mut text = format!(
            "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.channels = c\na.sinks.k.channel = c\n\
             a.sources.r.type = netcat\na.sources.r.bind = 127.0.0.1\na.sources.r.port = {}\na.sources.r.max-line-length = 2000\n\
             a.channels.c.type = file\na.channels.c.checkpointDir = {place}/checkpoint\na.channels.c.dataDirs = {place}/data1,{place}/data2\n\
             a.channels.c.maxFileSize = 65536\na.channels.c.minimumRequiredSpace = 1048576\na.channels.c.checkpointInterval = 50\n\
             a.channels.c.keep-alive = 0\n",
            self.port,
        );
        for line in sink.lines() {
            text.push_str(&format!("a.sinks.k.{}\n", line.trim()));
        }
        let path = self.dir.join(name);
        fs::write(&path, text).expect("the agent's file");
        path.display().to_string()
    }

    fn start(&self, conf: &str, fault: &str) -> Process {
        let state = self.dir.join("state").display().to_string();
        let args = ["agent", "-n", "a", "-f", conf, "--state-dir", &state, "--no-reload-conf"];
        let mut env = vec![("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
        if !fault.is_empty() {
            env.push(("MILLRACE_FAULT", fault));
        }
        Process::start("millrace-collector", &self.dir, &args, &env)
    }

    /// `channel VERB…`
    fn channel(&self, conf: &str, args: &[&str]) -> Output {
        let state = self.dir.join("state").display().to_string();
        run("millrace-collector", &[&["channel"], args, &[conf, "--state-dir", &state]].concat(), &[])
    }

    fn json(&self, conf: &str, verb: &str) -> serde_json::Value {
        let output = self.channel(conf, &[verb, "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("channel {verb}: {error}: {output:?}"))
    }

    /// What waits in the channel, after a recovery.
    fn drain(&self, conf: &str) -> Vec<String> {
        let output = self.channel(conf, &["drain", "--keep", "--events", "raw"]);
        // 1: something is damaged, and told.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
        lines(&output.stdout)
    }

    /// What the files of the sink hold; a last line without its end was not committed.
    fn delivered(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dir.join("out")) else { return Vec::new() };
        let mut all = Vec::new();
        for entry in entries {
            let bytes = fs::read(entry.expect("an entry").path()).expect("a file of the sink");
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            all.extend(lines(&bytes[..end]));
        }
        all
    }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

/// Fails when an acknowledged line is not there.
fn assert_none_lost(acknowledged: &BTreeSet<String>, there: &BTreeSet<String>, what: &str) {
    let lost: Vec<_> = acknowledged.difference(there).collect();
    assert!(lost.is_empty(), "{what}: {} of {} acknowledged lines are lost, the first is {:?}", lost.len(), acknowledged.len(), lost[0]);
}
