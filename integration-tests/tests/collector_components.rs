//! Every source of the collector on a real Kafka, its changes while it runs, and what a kill or an absent broker costs: nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use integration_tests::{
    eventually, kafka,
    process::{Process, run},
    servers::{OwnKafka, kafka_bootstrap},
    unique,
};
use rand::RngExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const WAIT: Duration = Duration::from_secs(60);

/// An agent `a` with a memory channel `c` and a Kafka sink `k`; the sources are the test's.
struct Bench {
    dir: tempfile::TempDir,
    bootstrap: String,
    topic: String,
    written: Vec<String>,
}

impl Bench {
    async fn new(bootstrap: &str, partitions: i32) -> Self {
        let topic = unique("components");
        kafka::create_topic(bootstrap, &topic, partitions).await;
        Self { dir: tempfile::tempdir().expect("a temporary folder"), bootstrap: bootstrap.to_owned(), topic, written: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the agent's file; `lines` are without their `a.`.
    fn conf(&self, sources: &str, lines: &str) {
        let mut text =
            format!("a.sources = {sources}\na.channels = c\na.sinks = k\na.channels.c.type = memory\na.channels.c.capacity = 10000\n");
        for source in sources.split(' ') {
            text.push_str(&format!("a.sources.{source}.channels = c\n"));
        }
        text.push_str(&format!(
            "a.sinks.k.channel = c\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = {}\n\
             a.sinks.k.kafka.topic = {}\n",
            self.bootstrap, self.topic
        ));
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            text.push_str(&format!("a.{}\n", line.trim()));
        }
        // As a whole, as editors and configuration tools write files: no look finds half of it.
        let (new, path) = (self.path("agent.conf.new"), self.path("agent.conf"));
        fs::write(&new, text).expect("the agent's file");
        fs::rename(new, path).expect("the agent's file");
    }

    fn start(&self) -> Process {
        let (conf, state) = (self.path("agent.conf"), self.path("state"));
        let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
        let env = [
            ("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"),
            ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0"),
            ("MILLRACE_AGENT__RELOAD_INTERVAL", "100ms"),
        ];
        Process::start("millrace-collector", self.dir.path(), &args, &env)
    }

    /// Appends numbered lines to a file; the numbers go on over all files.
    fn write(&mut self, file: &str, lines: usize) {
        let path = self.path(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        let mut text = String::new();
        for _ in 0..lines {
            let line = format!("{:07} {file} {}", self.written.len(), "x".repeat(self.written.len() % 90));
            text.push_str(&line);
            text.push('\n');
            self.written.push(line);
        }
        OpenOptions::new().append(true).create(true).open(&path).and_then(|mut log| log.write_all(text.as_bytes())).expect("the log");
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).expect("rotation");
    }

    fn texts(&self) -> Vec<String> {
        kafka::texts(&self.bootstrap, &self.topic)
    }

    /// Everything written is in the topic exactly once.
    async fn delivered_once(&self) {
        eventually(WAIT, "every line is in Kafka once", || async {
            let mut seen = self.texts();
            seen.sort();
            if seen == self.written {
                return Ok(());
            }
            let distinct: BTreeSet<&String> = seen.iter().collect();
            let missing = self.written.iter().find(|line| !distinct.contains(line));
            Err(format!("{} records, {} distinct, {} lines written; missing {missing:?}", seen.len(), distinct.len(), self.written.len()))
        })
        .await;
    }
}

/// A counter on Flume's page.
async fn counter(address: &str, component: &str, name: &str) -> u64 {
    let page: serde_json::Value =
        reqwest::get(format!("http://{address}/metrics")).await.expect("the page").json().await.expect("Flume's JSON");
    page[component][name].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{component} {name}: {page}"))
}

/// `millrace --collector ADDRESS collector ARGS`: exit code, and what it said.
fn millrace(address: &str, args: &[&str]) -> (i32, String) {
    let output = run("millrace", &[&["--collector", address, "collector"], args].concat(), &[]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap_or(-1), text)
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("the file"))
}

#[tokio::test]
async fn taildir_follows_its_groups_over_rotation_truncation_and_restart_and_names_where_lines_come_from() {
    let mut bench = Bench::new(&kafka_bootstrap(), 3).await;
    let logs = bench.dir.path().display().to_string();
    bench.conf(
        "r",
        &format!(
            "sources.r.type = TAILDIR\nsources.r.filegroups = web app\nsources.r.filegroups.web = {logs}/web/.*\\\\.log(\\\\.[0-9]+)?\n\
             sources.r.filegroups.app = {logs}/app/app\\\\.log\nsources.r.headers.web.tier = front\nsources.r.headers.app.tier = back\n\
             sources.r.fileHeader = true\nsources.r.byteOffsetHeader = true\n\
             sinks.k.header.tier = tier\nsinks.k.header.file = file\nsinks.k.header.byteoffset = offset"
        ),
    );
    bench.write("web/a.log", 300);
    bench.write("web/b.log", 200);
    bench.write("web/ignored.txt", 1);
    bench.written.pop();
    bench.write("app/app.log", 500);
    let mut collector = bench.start();
    collector.addresses().await;
    bench.delivered_once().await;

    // Renamed within the group's pattern: read on under its new name, not again.
    bench.write("web/a.log", 50);
    bench.rename("web/a.log", "web/a.log.1");
    bench.write("web/a.log", 70);
    // Copied and emptied, and soon longer than before.
    let (log, copy) = (bench.path("app/app.log"), bench.path("app/app.log.1"));
    let before = inode(&log);
    fs::copy(&log, copy).expect("copy");
    OpenOptions::new().write(true).truncate(true).open(&log).expect("truncate");
    bench.write("app/app.log", 900);
    assert_eq!(inode(&log), before);
    bench.write("web/new.log", 10);
    bench.delivered_once().await;
    collector.stop().await;

    bench.write("app/app.log", 30);
    bench.rename("web/b.log", "web/b.log.1");
    bench.write("web/b.log", 20);
    let mut collector = bench.start();
    bench.delivered_once().await;
    collector.stop().await;

    for record in kafka::read_all(&bench.bootstrap, &bench.topic) {
        let header = |name: &str| record.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
        let text = record.text();
        let written_to = text.split(' ').nth(1).expect("its file");
        assert_eq!(header("tier"), if written_to.starts_with("web/") { "front" } else { "back" }, "{text}");
        assert!(header("file").starts_with(&format!("{logs}/{written_to}")), "{text}: {}", header("file"));
        let offset: usize = header("offset").parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        // The first line of all stands at a file's beginning.
        assert!(!text.starts_with("0000000 ") || offset == 0, "{text}: {offset}");
    }
}

#[tokio::test]
async fn netcat_answers_every_line_and_refuses_what_is_too_long() {
    let bench = Bench::new(&kafka_bootstrap(), 1).await;
    bench.conf("n", "sources.n.type = netcat\nsources.n.bind = 127.0.0.1\nsources.n.port = 0\nsources.n.max-line-length = 32");
    let mut collector = bench.start();
    collector.addresses().await;
    collector.log_contains(WAIT, "source=\"n\" address=").await;
    let log = collector.log();
    let address =
        log.split("source=\"n\" address=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("its address").to_owned();

    let stream = tokio::net::TcpStream::connect(&address).await.expect("netcat");
    let (read, mut write) = stream.into_split();
    let mut answers = BufReader::new(read).lines();
    for n in 0..100 {
        write.write_all(format!("line {n}\n").as_bytes()).await.expect("a line");
        assert_eq!(answers.next_line().await.expect("an answer").as_deref(), Some("OK"));
    }
    // Thirty-one characters and the newline fit, one more does not and ends the connection.
    write.write_all(format!("{}\n{}\nnever read\n", "y".repeat(31), "z".repeat(32)).as_bytes()).await.expect("lines");
    assert_eq!(answers.next_line().await.expect("an answer").as_deref(), Some("OK"));
    let refusal = answers.next_line().await.expect("an answer").unwrap_or_default();
    assert_eq!(refusal, "FAILED: Event exceeds the maximum length (32 chars, including newline)");
    // What was not read any more may make the kernel say "reset" instead of the stream's end.
    assert!(!matches!(answers.next_line().await, Ok(Some(_))));

    let mut other = tokio::net::TcpStream::connect(&address).await.expect("netcat goes on");
    other.write_all("last\nwithout end".as_bytes()).await.expect("a line");
    other.shutdown().await.expect("the end");
    let mut said = String::new();
    other.read_to_string(&mut said).await.expect("answers");
    assert_eq!(said, "OK\n");
    collector.stop().await;
    let expected: Vec<String> = (0..100).map(|n| format!("line {n}")).chain(["y".repeat(31), "last".to_owned()]).collect();
    assert_eq!(bench.texts(), expected);
}

#[tokio::test]
async fn a_command_is_started_again_when_it_may_and_one_that_ends_is_seen_to_have_ended() {
    let bench = Bench::new(&kafka_bootstrap(), 1).await;
    // Not started again too soon: the oracle finds a topic's end only in a quiet moment.
    bench.conf(
        "again once seq",
        "sources.again.type = exec\nsources.again.shell = /bin/sh -c\nsources.again.command = echo one; echo two | tr a-z A-Z\n\
         sources.again.restart = true\nsources.again.restartThrottle = 700\n\
         sources.once.type = exec\nsources.once.command = seq 1001 1003\n\
         sources.seq.type = seq\nsources.seq.batchSize = 10\nsources.seq.totalEvents = 500",
    );
    let mut collector = bench.start();
    let control = collector.address("control").await;
    eventually(WAIT, "the command ran three times", || async {
        let seen = bench.texts();
        let count = |text: &str| seen.iter().filter(|line| *line == text).count();
        if count("one") >= 3 && count("TWO") >= 3 && seen.len() >= 509 { Ok(()) } else { Err(format!("{} records", seen.len())) }
    })
    .await;
    let (code, text) = millrace(&control, &["components", "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{code} {error}: {text}"));
    let state = |name: &str| {
        let components = report["components"].as_array().expect("components");
        components.iter().find(|component| component["name"] == name).map(|component| component["state"].clone()).expect("the component")
    };
    assert_eq!(
        (state("once"), state("seq"), state("again"), state("k")),
        ("stopped".into(), "stopped".into(), "running".into(), "running".into())
    );
    collector.stop().await;
    let seen = bench.texts();
    let numbers: Vec<u64> = seen.iter().filter_map(|line| line.parse().ok()).filter(|number| *number < 1000).collect();
    assert_eq!(numbers, (0..500).collect::<Vec<u64>>(), "each number once and in order");
    let once: Vec<&String> = seen.iter().filter(|line| line.starts_with("100")).filter(|line| line.len() == 4).collect();
    assert_eq!(once, ["1001", "1002", "1003"]);
}

#[tokio::test]
async fn a_changed_file_restarts_only_what_changed_and_a_broken_one_nothing_while_lines_flow() {
    let mut bench = Bench::new(&kafka_bootstrap(), 3).await;
    let tails = |bench: &Bench, batch: usize| {
        let tail = |name: &str, more: &str| {
            format!(
                "sources.{name}.type = exec\nsources.{name}.command = tail -n +1 -F {}\n{more}",
                bench.path(&format!("{name}.log")).display()
            )
        };
        format!("{}\n{}", tail("x", ""), tail("y", &format!("sources.y.batchSize = {batch}")))
    };
    let flow = async |bench: &mut Bench| {
        for _ in 0..10 {
            bench.write("x.log", 100);
            bench.write("y.log", 100);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    bench.conf("x y", &tails(&bench, 20));
    let mut collector = bench.start();
    collector.addresses().await;
    flow(&mut bench).await;

    // One source changes.
    bench.conf("x y", &tails(&bench, 30));
    flow(&mut bench).await;
    collector.log_contains(WAIT, "changed=\"y\" unchanged=\"x c k\"").await;

    // A mistake: told with its line, and everything goes on.
    bench.conf("x y", &tails(&bench, 30).replace("type = exec", "type = exex"));
    flow(&mut bench).await;
    collector.log_contains(WAIT, "configuration not reloaded").await;
    assert!(collector.log().contains("exex"), "{}", collector.log());
    flow(&mut bench).await;
    bench.delivered_once().await;

    // The sink changes, and a source goes and another one comes.
    let sources = tails(&bench, 30).replace(".y.", ".z.").replace("y.log", "z.log");
    bench.conf("x z", &format!("{sources}\nsinks.k.kafka.producer.linger.ms = 3"));
    for _ in 0..10 {
        bench.write("x.log", 100);
        bench.write("z.log", 100);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    collector.log_contains(WAIT, "unchanged=\"x c\"").await;
    bench.delivered_once().await;
    collector.stop().await;
    bench.delivered_once().await;
}

#[tokio::test]
async fn an_operator_pauses_resumes_and_reloads_by_command() {
    let mut bench = Bench::new(&kafka_bootstrap(), 1).await;
    let tail = |name: &str| {
        format!("sources.{name}.type = exec\nsources.{name}.command = tail -n +1 -F {}", bench.path(&format!("{name}.log")).display())
    };
    let sources = format!("{}\n{}", tail("x"), tail("y"));
    bench.conf("x y", &sources);
    let mut collector = bench.start();
    let (control, page) = (collector.address("control").await, collector.address("metrics").await);
    bench.write("x.log", 10);
    bench.write("y.log", 10);
    bench.delivered_once().await;

    let (code, text) = millrace(&control, &["pause", "x"]);
    assert!(code == 0 && text.contains("paused: x"), "{code} {text}");
    let held_back = bench.written.len();
    bench.write("x.log", 10);
    let shown = bench.written.len();
    bench.write("y.log", 1_000);
    eventually(WAIT, "the other source goes on", || async {
        let seen = bench.texts();
        if seen.contains(bench.written.last().expect("a line")) { Ok(()) } else { Err(format!("{} records", seen.len())) }
    })
    .await;
    let (seen, held) = (bench.texts(), &bench.written[held_back..shown]);
    assert!(held.iter().all(|line| !seen.contains(line)), "a paused source delivers");
    let (code, text) = millrace(&control, &["components"]);
    assert!(code == 0 && text.contains("paused"), "{code} {text}");
    assert_eq!(millrace(&control, &["resume", "x"]).0, 0);
    bench.delivered_once().await;

    // The sink too: what it does not take waits in the channel.
    assert_eq!(millrace(&control, &["pause", "k"]).0, 0);
    bench.write("y.log", 50);
    eventually(WAIT, "the channel holds them", || async {
        let held = counter(&page, "CHANNEL.c", "ChannelSize").await;
        if held == 50 { Ok(()) } else { Err(format!("{held} events")) }
    })
    .await;
    assert_eq!(millrace(&control, &["resume", "k"]).0, 0);
    bench.delivered_once().await;

    let (code, text) = millrace(&control, &["pause", "nobody"]);
    assert!(code != 0 && text.contains("nobody") && text.contains("there are x, y, k"), "{code} {text}");
    let (code, text) = millrace(&control, &["reload"]);
    assert!(code == 0 && text.contains("changed: nothing"), "{code} {text}");
    fs::write(bench.path("agent.conf"), "a.sources = x\nthis is no agent\n").expect("the agent's file");
    let (code, text) = millrace(&control, &["reload"]);
    assert!(code != 0 && text.contains("the running pipeline goes on"), "{code} {text}");
    let told = async |path: &str| reqwest::get(format!("http://{page}/{path}")).await.expect("the page").text().await.expect("text");
    assert!(told("health").await.contains("degraded") && told("health").await.contains("the agent's files are not what runs"));
    assert!(told("prometheus").await.contains("millrace_collector_reload_failed 1"));
    bench.write("x.log", 20);
    bench.delivered_once().await;
    bench.conf("x y", &format!("{sources}\nsinks.k.flumeBatchSize = 7"));
    let (code, text) = millrace(&control, &["reload"]);
    // The watcher may have been faster.
    assert!(code == 0 && (text.contains("changed: k") || collector.log().contains("changed=\"k\"")), "{code} {text}");
    assert!(told("health").await.contains("\"ready\"") && told("prometheus").await.contains("millrace_collector_reload_failed 0"));
    bench.write("x.log", 20);
    bench.delivered_once().await;
    collector.stop().await;
}

#[tokio::test]
async fn taildir_with_transactions_survives_kill_9_and_leaves_no_position_of_a_file_that_is_through() {
    rotated_and_killed(&kafka_bootstrap()).await;
}

/// The same on an old broker as on the newest: what it refuses, and what it has of a transaction that a kill has left.
#[tokio::test]
async fn on_kafka_2_8_poison_is_put_aside_and_kills_in_transactions_repeat_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let old = OwnKafka::start_version(folder.path().join("kafka-2.8"), "2.8");
    for (transactional, compression) in [(false, "none"), (true, "none"), (true, "snappy")] {
        poison_is_put_aside(&old.bootstrap, transactional, compression).await;
    }
    rotated_and_killed(&old.bootstrap).await;
}

async fn rotated_and_killed(bootstrap: &str) {
    let mut bench = Bench::new(bootstrap, 3).await;
    let id = unique("txn");
    let positions = unique("positions");
    let logs = bench.dir.path().display().to_string();
    bench.conf(
        "r",
        &format!(
            "sources.r.type = TAILDIR\nsources.r.filegroups = x y\nsources.r.filegroups.x = {logs}/x/app\\\\.log\n\
             sources.r.filegroups.y = {logs}/y/.*\\\\.log\nsources.r.rotateWait = 300\nsources.r.writePosInterval = 100\n\
             sinks.k.kafka.producer.transactional.id = {id}\nsinks.k.positionsTopic = {positions}"
        ),
    );
    bench.write("x/app.log", 1);
    // The first line of what is `x/app.log` now.
    let mut first = bench.written[0].clone();
    for round in 0..5 {
        let mut collector = bench.start();
        collector.addresses().await;
        for step in 0..10 {
            let begin = bench.written.len();
            bench.write("x/app.log", 300);
            if step == 6 {
                first = bench.written[begin].clone();
            }
            bench.write(&format!("y/{}.log", step % 3), 100);
            if step == 5 {
                // Out of the pattern: read to its end and then done with. Not before it was ever seen: then no pattern names it.
                eventually(WAIT, "the file was seen", || async {
                    if bench.texts().contains(&first) { Ok(()) } else { Err(first.clone()) }
                })
                .await;
                bench.rename("x/app.log", &format!("x/app.log.{round}"));
            }
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..60))).await;
        }
        if round == 2 {
            // Once from a state where everything is delivered and the rotated file is forgotten.
            bench.delivered_once().await;
        }
        collector.kill_9();
        bench.write("x/app.log", 40);
    }
    let mut collector = bench.start();
    bench.delivered_once().await;
    // Tombstones go with later transactions; in the end there are the files of now: x/app.log and three of y.
    eventually(WAIT, "only positions of present files are left", || {
        bench.write("x/app.log", 1);
        let mut last = BTreeMap::new();
        for record in kafka::read_all(&bench.bootstrap, &positions) {
            last.insert(record.key.clone().unwrap_or_default(), record.text());
        }
        let left: Vec<String> = last.into_values().filter(|text| !text.is_empty()).collect();
        async move { if left.len() == 4 { Ok(()) } else { Err(format!("{}: {left:?}", left.len())) } }
    })
    .await;
    bench.delivered_once().await;
    collector.stop().await;
    let mut collector = bench.start();
    bench.write("x/app.log", 10);
    bench.delivered_once().await;
    collector.stop().await;
}

#[tokio::test]
async fn files_that_came_and_went_while_no_collector_ran_are_read_in_their_order() {
    for transactional in [false, true] {
        let mut bench = Bench::new(&kafka_bootstrap(), 1).await;
        let txn = if transactional { format!("\nsinks.k.kafka.producer.transactional.id = {}", unique("txn")) } else { String::new() };
        bench.conf("s", &format!("sources.s.type = exec\nsources.s.command = tail -n +1 -F {}{txn}", bench.path("app.log").display()));
        bench.write("app.log", 1_000);
        let mut collector = bench.start();
        bench.delivered_once().await;
        collector.stop().await;
        bench.write("app.log", 10);
        for rotation in ["app.log.3", "app.log.2", "app.log.1"] {
            bench.rename("app.log", rotation);
            bench.write("app.log", 100);
        }
        let mut collector = bench.start();
        bench.delivered_once().await;
        assert_eq!(bench.texts(), bench.written, "in the order they were written");
        collector.stop().await;
    }
}

#[tokio::test]
async fn transactions_wait_for_a_broker_that_is_away_and_say_so_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = OwnKafka::start(folder.path().to_path_buf());
    let mut bench = Bench::new(&own.bootstrap, 1).await;
    bench.conf(
        "s",
        &format!(
            "sources.s.type = exec\nsources.s.command = tail -n +1 -F {}\nsinks.k.kafka.producer.transactional.id = {}",
            bench.path("app.log").display(),
            unique("txn")
        ),
    );
    bench.write("app.log", 2_000);
    let mut collector = bench.start();
    bench.delivered_once().await;
    let quiet = collector.log().lines().count();
    own.kill(1);
    bench.write("app.log", 2_000);
    collector.log_contains(WAIT, "no Kafka broker can be reached").await;
    for _ in 0..40 {
        bench.write("app.log", 50);
        // Long enough altogether for many failed attempts.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    own.restart(1);
    bench.delivered_once().await;
    collector.log_contains(WAIT, "Kafka is back").await;
    let log = collector.log();
    let since: Vec<&str> = log.lines().skip(quiet).filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    // One of the outage; one of the transaction that it broke, whose outcome must be asked for.
    assert!((1..=2).contains(&since.len()), "{} complaints:\n{}", since.len(), since.join("\n"));
    assert_eq!(log.matches("no Kafka broker can be reached").count(), 1, "{log}");
    collector.stop().await;
}

#[tokio::test]
async fn events_that_can_never_be_written_go_to_the_dead_letter_topic_with_their_reason() {
    for (transactional, compression) in [(false, "none"), (true, "none"), (false, "snappy"), (true, "snappy")] {
        poison_is_put_aside(&kafka_bootstrap(), transactional, compression).await;
    }
}

async fn poison_is_put_aside(bootstrap: &str, transactional: bool, compression: &str) {
    let mut bench = Bench::new(bootstrap, 1).await;
    let letters = unique("letters");
    kafka::create_topic(&bench.bootstrap, &letters, 1).await;
    bench.topic = unique("small");
    kafka::create_topic_with(&bench.bootstrap, &bench.topic, 1, &[("max.message.bytes", "100000")]).await;
    let txn = if transactional { format!("\nsinks.k.kafka.producer.transactional.id = {}", unique("txn")) } else { String::new() };
    bench.conf(
        "s",
        &format!(
            "sources.s.type = exec\nsources.s.command = tail -n +1 -F {}\nsources.s.interceptors = e\n\
             sources.s.interceptors.e.type = regex_extractor\nsources.s.interceptors.e.regex = part=(\\\\w+)\n\
             sources.s.interceptors.e.serializers = p\nsources.s.interceptors.e.serializers.p.name = part\n\
             sinks.k.partitionIdHeader = part\nsinks.k.deadLetter.topic = {letters}\n\
             sinks.k.kafka.producer.compression.type = {compression}\n\
             sinks.k.kafka.producer.max.request.size = 500000{txn}",
            bench.path("app.log").display()
        ),
    );
    bench.write("app.log", 200);
    // No compression makes these fit.
    let large = || rand::rng().sample_iter(rand::distr::Alphanumeric).take(200_000).map(char::from).collect::<String>();
    let bad = ["part=7 there is no such partition".to_owned(), "part=seven is no number".to_owned(), large(), large(), large()];
    // More than the sink's own limit, which is the dead letters' too: the file takes it.
    let huge = "h".repeat(600_000);
    let log = bench.path("app.log");
    let append = |line: &str| OpenOptions::new().append(true).open(&log).and_then(|mut log| writeln!(log, "{line}")).expect("the log");
    let mut collector = bench.start();
    let page = collector.address("metrics").await;
    for line in bad.iter().chain([&huge]) {
        append(line);
        bench.write("app.log", 100);
    }
    bench.delivered_once().await;
    eventually(WAIT, "all six are put aside", || async {
        let dead = counter(&page, "SINK.k", "DeadLetterCount").await;
        if dead == 6 { Ok(()) } else { Err(format!("{dead}\n{}", collector.log())) }
    })
    .await;
    assert_eq!(counter(&page, "SINK.k", "EventDrainSuccessCount").await, bench.written.len() as u64);
    collector.stop().await;
    bench.delivered_once().await;

    let aside: BTreeMap<String, kafka::Seen> =
        kafka::read_all(&bench.bootstrap, &letters).into_iter().map(|record| (record.text(), record)).collect();
    assert_eq!(aside.keys().collect::<BTreeSet<_>>(), bad.iter().collect::<BTreeSet<_>>());
    let header = |line: &String, name: &str| aside[line].headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let reasons = ["partition 7", "header part = `seven` is not a partition number"].into_iter().chain(["max.message.bytes"; 3]);
    for (line, reason) in bad.iter().zip(reasons) {
        let said = header(line, "millrace.reason").unwrap_or_default();
        assert!(said.contains(reason), "{line}: {said}");
        assert_eq!(header(line, "millrace.sink").as_deref(), Some("k"));
    }
    // Its own headers go along.
    assert_eq!(header(&bad[1], "part").as_deref(), Some("seven"));
    let text = fs::read_to_string(bench.path("state/a/dead-letter/k.jsonl")).expect("the file of dead letters");
    let letter: serde_json::Value = serde_json::from_str(&text).expect("one letter");
    assert!(letter["body"] == *huge && letter["reason"].as_str().is_some_and(|why| why.contains("500000")), "{}", letter["reason"]);
}

/// No record is too large for the topic, but some of their requests are; and then there is one that is.
#[tokio::test]
async fn requests_that_are_too_large_for_the_topic_are_made_smaller_within_transactions() {
    let mut bench = Bench::new(&kafka_bootstrap(), 1).await;
    bench.topic = unique("smaller");
    kafka::create_topic_with(&bench.bootstrap, &bench.topic, 1, &[("max.message.bytes", "20000")]).await;
    bench.conf(
        "s",
        &format!(
            "sources.s.type = exec\nsources.s.command = tail -n +1 -F {}\nsinks.k.kafka.producer.transactional.id = {}\n\
             sinks.k.kafka.producer.batch.size = 60000",
            bench.path("app.log").display(),
            unique("txn")
        ),
    );
    bench.write("app.log", 5_000);
    let mut collector = bench.start();
    let page = collector.address("metrics").await;
    bench.delivered_once().await;
    assert_eq!(counter(&page, "SINK.k", "DeadLetterCount").await, 0);
    collector.log_contains(WAIT, "requests are smaller from now on").await;
    let log = bench.path("app.log");
    let large = "z".repeat(30_000);
    OpenOptions::new().append(true).open(&log).and_then(|mut log| writeln!(log, "{large}")).expect("the log");
    bench.write("app.log", 5_000);
    bench.delivered_once().await;
    assert_eq!(bench.texts(), bench.written, "in the order they were written");
    assert_eq!(counter(&page, "SINK.k", "DeadLetterCount").await, 1);
    assert_eq!(collector.log().matches("requests are smaller from now on").count(), 1, "{}", collector.log());
    collector.stop().await;
}

/// Positions in a topic that forgets them are no positions: nothing is delivered until it is compacted, or gone.
#[tokio::test]
async fn a_positions_topic_that_is_not_compacted_is_refused_and_one_that_is_in_part_is_told() {
    for (policy, refused) in [("delete", true), ("compact,delete", false)] {
        let mut bench = Bench::new(&kafka_bootstrap(), 1).await;
        let positions = unique("positions");
        kafka::create_topic_with(&bench.bootstrap, &positions, 1, &[("cleanup.policy", policy)]).await;
        bench.conf(
            "s",
            &format!(
                "sources.s.type = exec\nsources.s.command = tail -n +1 -F {}\nsinks.k.kafka.producer.transactional.id = {}\n\
                 sinks.k.positionsTopic = {positions}",
                bench.path("app.log").display(),
                unique("txn")
            ),
        );
        bench.write("app.log", 100);
        let mut collector = bench.start();
        if refused {
            let said = format!("positionsTopic \\\"{positions}\\\" has cleanup.policy = delete: it would forget file positions");
            collector.log_contains(WAIT, &said).await;
            assert_eq!(bench.texts(), [""; 0]);
            // It is made anew as it has to be.
            kafka::delete_topic(&bench.bootstrap, &positions).await;
        } else {
            collector.log_contains(WAIT, "are forgotten, and such a file may be written again").await;
        }
        bench.delivered_once().await;
        collector.stop().await;
    }
}

/// A sender whose request fails sends it again: what one channel had taken by then would be there as often.
#[tokio::test]
async fn what_a_broken_channel_refuses_is_in_no_other_channel() {
    let broken = [
        (
            "Kafka without a broker",
            "type = org.apache.flume.channel.kafka.KafkaChannel\nkafka.bootstrap.servers = 127.0.0.1:9\nkafka.topic = t",
        ),
        ("a disk without room", "type = file\nminimumRequiredSpace = 4611686018427387904"),
    ];
    for (what, lines) in broken {
        let bench = Bench::new(&kafka_bootstrap(), 1).await;
        let port = integration_tests::flume::free_port();
        let second: String = lines.lines().map(|line| format!("channels.x.{line}\n")).collect();
        bench.conf(
            "s",
            &format!("sources.s.type = http\nsources.s.bind = 127.0.0.1\nsources.s.port = {port}\nchannels = c x\nsources.s.channels = c x\n{second}"),
        );
        let mut collector = bench.start();
        let page = collector.address("metrics").await;
        let client = reqwest::Client::new();
        for _ in 0..3 {
            let body = r#"[{"headers":{},"body":"once"}]"#;
            let request = client.post(format!("http://127.0.0.1:{port}/")).body(body).timeout(Duration::from_secs(2));
            let answer = request.send().await.map(|answer| answer.status().as_u16());
            assert!(answer.as_ref().map_or_else(reqwest::Error::is_timeout, |status| *status == 503), "{what}: {answer:?}");
        }
        assert_eq!(counter(&page, "CHANNEL.c", "EventPutAttemptCount").await, 0, "{what}");
        assert_eq!(counter(&page, "SOURCE.s", "EventReceivedCount").await, 3, "{what}");
        collector.kill_9();
    }
}
