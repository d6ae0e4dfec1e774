//! The collector from outside: files in, records out, killed and restarted in between.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use integration_tests::{
    eventually, kafka,
    process::{Process, binary, run},
    servers::{OwnKafka, kafka_bootstrap},
    unique,
};
use rand::RngExt;
use rustix::process::Signal;

const WAIT: Duration = Duration::from_secs(60);
const FREE_PORTS: [(&str, &str); 2] = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];

/// A log file, a topic and an agent between them.
struct Setup {
    dir: tempfile::TempDir,
    bootstrap: String,
    topic: String,
    log: PathBuf,
    conf: PathBuf,
    written: Vec<String>,
}

impl Setup {
    async fn new(bootstrap: &str, partitions: i32, sink: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let topic = unique("collector");
        kafka::create_topic(bootstrap, &topic, partitions).await;
        let log = dir.path().join("app.log");
        fs::write(&log, "").expect("the log");
        let conf = dir.path().join("agent.conf");
        let text = format!(
            "agent.sources = s\nagent.channels = c\nagent.sinks = k\nagent.sources.s.type = exec\nagent.sources.s.command = tail -F {}\n\
             agent.sources.s.channels = c\nagent.channels.c.type = memory\nagent.channels.c.capacity = 10000\nagent.sinks.k.channel = c\n\
             agent.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nagent.sinks.k.kafka.bootstrap.servers = {bootstrap}\n\
             agent.sinks.k.kafka.topic = {topic}\n{sink}",
            log.display()
        );
        fs::write(&conf, text).expect("the agent's file");
        Self { dir, bootstrap: bootstrap.to_owned(), topic, log, conf, written: Vec::new() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn start(&self) -> Process {
        self.start_in("state")
    }

    fn start_in(&self, state: &str) -> Process {
        let state = self.path().join(state);
        let args = ["agent", "-n", "agent", "-f", &self.conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
        Process::start("millrace-collector", self.path(), &args, &FREE_PORTS)
    }

    fn write(&mut self, lines: usize) {
        let mut log = OpenOptions::new().append(true).create(true).open(&self.log).expect("the log");
        let mut text = String::new();
        for _ in 0..lines {
            let line = format!("line {:07} {}", self.written.len(), "x".repeat(self.written.len() % 120));
            text.push_str(&line);
            text.push('\n');
            self.written.push(line);
        }
        log.write_all(text.as_bytes()).expect("the log");
    }

    /// Everything written is in the topic exactly once; in order when it has one partition.
    async fn delivered_once(&self, ordered: bool) {
        let mut expected = self.written.clone();
        if !ordered {
            expected.sort();
        }
        eventually(WAIT, "every line is in Kafka once", || async {
            let mut seen = kafka::texts(&self.bootstrap, &self.topic);
            if !ordered {
                seen.sort();
            }
            if seen == expected {
                return Ok(());
            }
            let distinct: std::collections::BTreeSet<&String> = seen.iter().collect();
            Err(format!("{} records, {} distinct, {} lines written", seen.len(), distinct.len(), expected.len()))
        })
        .await;
    }
}

/// Mount and network namespaces keep the test's port 9092, hosts file and `/var/log` apart from the machine's.
#[test]
fn the_articles_file_runs_as_it_stands_and_flume_collects_nothing_with_it() {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let output =
        command.args(["--mount", "--net", "--fork", "--kill-child", "--"]).arg(binary("article")).output().expect("unshare (util-linux)");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}", output.status);
}

#[tokio::test]
async fn kill_9_under_load_neither_loses_nor_repeats_a_line() {
    let bootstrap = kafka_bootstrap();
    let id = unique("txn");
    let sink = format!("agent.sinks.k.kafka.producer.transactional.id = {id}\n");
    let mut setup = Setup::new(&bootstrap, 3, &sink).await;
    for round in 0..6 {
        let mut collector = setup.start();
        collector.addresses().await;
        for _ in 0..10 {
            setup.write(500);
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..40))).await;
        }
        if round == 3 {
            fs::rename(&setup.log, setup.log.with_extension("log.1")).expect("rotation");
            setup.write(200);
        }
        collector.kill_9();
        // Written while nobody reads.
        setup.write(50);
    }
    let mut collector = setup.start();
    setup.delivered_once(false).await;
    collector.stop().await;
    setup.delivered_once(false).await;
}

#[tokio::test]
async fn a_broker_that_goes_away_loses_nothing_and_is_reported_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = OwnKafka::start(folder.path().to_path_buf());
    let mut setup = Setup::new(&own.bootstrap, 1, "").await;
    let mut collector = setup.start();
    collector.addresses().await;
    setup.write(2_000);
    setup.delivered_once(true).await;
    own.kill(1);
    setup.write(2_000);
    collector.log_contains(WAIT, &own.bootstrap).await;
    setup.write(2_000);
    // Long enough for many failed attempts.
    tokio::time::sleep(Duration::from_secs(8)).await;
    own.restart(1);
    setup.delivered_once(true).await;
    let log = collector.log();
    let reports =
        log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).filter(|line| line.contains(&own.bootstrap)).count();
    assert_eq!(reports, 1, "the broker's absence is reported {reports} times:\n{log}");
    collector.stop().await;
}

#[tokio::test]
async fn a_clean_stop_delivers_what_was_accepted_and_a_restart_repeats_nothing() {
    let bootstrap = kafka_bootstrap();
    let mut setup = Setup::new(&bootstrap, 1, "").await;
    for _ in 0..3 {
        let mut collector = setup.start();
        collector.addresses().await;
        setup.write(5_000);
        let written = setup.written.len();
        eventually(WAIT, "the collector sends", || async {
            let seen = kafka::texts(&setup.bootstrap, &setup.topic).len();
            if seen > written - 5_000 { Ok(()) } else { Err(format!("{seen} records")) }
        })
        .await;
        collector.stop().await;
    }
    let mut collector = setup.start();
    // Before it listens it may not know yet how to stop.
    collector.addresses().await;
    setup.delivered_once(true).await;
    collector.stop().await;
}

#[tokio::test]
async fn of_two_collectors_with_one_transactional_id_the_newer_goes_on_and_the_older_gives_up() {
    const TAKEN: &str = "another process uses the transactional id";
    let bootstrap = kafka_bootstrap();
    let sink = format!("agent.sinks.k.kafka.producer.transactional.id = {}\n", unique("txn"));
    let mut setup = Setup::new(&bootstrap, 3, &sink).await;
    let mut older = setup.start_in("older");
    older.addresses().await;
    setup.write(500);
    setup.delivered_once(false).await;

    // The same agent started twice, by mistake: both follow the same file.
    let mut newer = setup.start_in("newer");
    newer.addresses().await;
    let start = Instant::now();
    while !older.log().contains(TAKEN) {
        assert!(start.elapsed() < WAIT, "the older one does not give up:\n{}\n--- the newer one:\n{}", older.log(), newer.log());
        setup.write(50);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = older.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(TAKEN)).collect();
    assert!(told.len() == 1 && told[0].contains(" ERROR ") && told[0].contains("3 times") && told[0].contains("another id"), "{log}");
    setup.write(500);
    setup.delivered_once(false).await;
    // It has events that it cannot deliver any more, and must not when it is told to stop.
    older.signal(Signal::TERM);
    setup.write(500);
    setup.delivered_once(false).await;
    assert!(!newer.log().contains(TAKEN), "{}", newer.log());
    newer.stop().await;
    setup.delivered_once(false).await;
}

/// Runs `check` or `agent` with a file and gives the exit code and what was said.
fn try_conf(verb: &str, conf: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("agent.conf");
    fs::write(&path, conf).expect("the agent's file");
    let state = dir.path().join("state");
    let file = path.to_string_lossy();
    let args: Vec<&str> = match verb {
        "check" => vec!["check", &file],
        _ => vec!["agent", "-n", "agent", "-f", &file],
    };
    let output = run("millrace-collector", &args, &[FREE_PORTS[0], FREE_PORTS[1], ("MILLRACE_AGENT__STATE_DIR", &state.to_string_lossy())]);
    (output.status.code(), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn each_mistake_in_a_file_gets_one_error_with_its_line_and_remedy() {
    let base = "agent.sources = s\nagent.channels = c\nagent.sinks = k\nagent.sources.s.type = seq\nagent.sources.s.channels = c\n\
                agent.channels.c.type = memory\nagent.sinks.k.type = null\nagent.sinks.k.channel = c\n";
    let cases: &[(&str, &str, &[&str])] = &[
        ("agent.sources.s.type = seq", "agent.sources.s.type = sequence", &[":4:", "`sequence`", "seq,"]),
        ("agent.sinks.k.type = null", "agent.sinks.k.type = com.example.MySink", &[":7:", "com.example.MySink"]),
        ("agent.sinks.k.channel = c", "agent.sinks.k.channel = d", &[":8:", "`d`"]),
        (
            "agent.channels.c.type = memory",
            "agent.channels.c.type = memory\nagent.channels.c.capacity = many",
            &[":7:", "capacity", "`many`"],
        ),
    ];
    for (from, to, needles) in cases {
        for verb in ["check", "agent"] {
            let (code, text) = try_conf(verb, &base.replace(from, to));
            assert!(code.is_some_and(|code| code != 0), "{verb} accepts `{to}`: {text}");
            for needle in *needles {
                assert!(text.contains(needle), "{verb} of `{to}` does not say {needle:?}: {text}");
            }
            assert!(!text.contains("panicked"), "{text}");
        }
    }
    let (code, text) = try_conf("check", base);
    assert_eq!(code, Some(0), "{text}");
    // Flume drops such a source and runs on; the safer reading starts it, and says so.
    let (code, text) = try_conf("check", &base.replace("type = seq", "type = seq\nagent.sources.s.batchSize = 500"));
    assert!(code == Some(0) && text.contains("transactionCapacity") && text.contains(":5:"), "{text}");
}

#[test]
fn an_absent_file_and_a_port_in_use_are_named() {
    let output = run("millrace-collector", &["agent", "-n", "agent", "-f", "no-such-file.conf"], &FREE_PORTS);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("no-such-file.conf"), "{text}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let conf = dir.path().join("agent.conf");
    fs::write(&conf, "agent.sources=s\nagent.channels=c\nagent.sinks=k\nagent.sources.s.type=seq\nagent.sources.s.channels=c\nagent.channels.c.type=memory\nagent.sinks.k.type=null\nagent.sinks.k.channel=c\n")
        .expect("the agent's file");
    let state = dir.path().join("state");
    let args = ["agent", "-n", "agent", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let output = run("millrace-collector", &args, &[("MILLRACE_CONTROL__LISTEN", &address), FREE_PORTS[1]]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && text.contains(&address) && text.contains("in use"), "{text}");
}
