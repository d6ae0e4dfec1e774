//! The file channel in a real process: killed at any time it loses nothing that it has acknowledged, and with a
//! transactional sink a tailed file arrives exactly once. Its commands work without the agent.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write,
    path::PathBuf,
    process::Command,
    sync::Arc,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use integration_tests::{
    eventually,
    flume::free_port,
    kafka,
    process::{Process, binary, run},
    servers::kafka_bootstrap,
    unique,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const WAIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    bootstrap: String,
    topic: String,
}

impl Bench {
    async fn new(partitions: i32) -> Self {
        let (bootstrap, topic) = (kafka_bootstrap(), unique("file-channel"));
        kafka::create_topic(&bootstrap, &topic, partitions).await;
        Self { dir: tempfile::tempdir().expect("a temporary folder"), bootstrap, topic }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An agent `a` with a file channel `c` and a Kafka sink `k`; `lines` are without their `a.`.
    fn conf(&self, bootstrap: &str, lines: &str) -> String {
        let mut text = format!(
            "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.channels = c\na.sinks.k.channel = c\n\
             a.channels.c.type = file\na.channels.c.checkpointDir = {}\na.channels.c.dataDirs = {},{}\n\
             a.channels.c.maxFileSize = 200000\na.channels.c.memoryBytes = 65536\na.channels.c.minimumRequiredSpace = 1048576\n\
             a.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.k.kafka.bootstrap.servers = {bootstrap}\n\
             a.sinks.k.kafka.topic = {}\n",
            self.path("checkpoint").display(),
            self.path("data1").display(),
            self.path("data2").display(),
            self.topic
        );
        for line in lines.lines() {
            text.push_str(&format!("a.{}\n", line.trim()));
        }
        let path = self.path("agent.conf");
        fs::write(&path, text).expect("the agent's file");
        path.display().to_string()
    }

    fn start(&self) -> Process {
        let (conf, state) = (self.path("agent.conf"), self.path("state"));
        let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
        let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
        Process::start("millrace-collector", self.dir.path(), &args, &env)
    }

    fn texts(&self) -> Vec<String> {
        kafka::texts(&self.bootstrap, &self.topic)
    }
}

/// Kills of each test; another number with `KILLS` (not `MILLRACE_…`: the collector would take that for a setting).
fn kills() -> u32 {
    std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Lets whoever works in the background end, also when the test fails.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_it_loses_no_line_that_it_has_acknowledged() {
    let bench = Bench::new(2).await;
    let port = free_port();
    bench.conf(
        &bench.bootstrap,
        &format!("sources.r.type = netcat\nsources.r.bind = 127.0.0.1\nsources.r.port = {port}\nsources.r.max-line-length = 2000"),
    );
    let (next, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let background = Done(done.clone());
    // Senders outside the process: a line counts when it was answered `OK`.
    let senders: Vec<_> = (0..6)
        .map(|_| {
            let (next, done) = (next.clone(), done.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                while !done.load(SeqCst) {
                    let Ok(stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    let (read, mut write) = stream.into_split();
                    let mut answers = BufReader::new(read).lines();
                    while !done.load(SeqCst) {
                        let id = next.fetch_add(1, SeqCst);
                        let line = format!("{id:08} {}", "x".repeat(id as usize % 700));
                        if write.write_all(format!("{line}\n").as_bytes()).await.is_err() {
                            break;
                        }
                        match answers.next_line().await {
                            Ok(Some(answer)) if answer == "OK" => acknowledged.push(line),
                            // Full or failed: not taken.
                            Ok(Some(_)) => {}
                            _ => break,
                        }
                    }
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..kills() {
        let mut collector = bench.start();
        collector.addresses().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..900))).await;
        collector.kill_9();
    }
    let mut collector = bench.start();
    collector.addresses().await;
    drop(background);
    let mut acknowledged = BTreeSet::new();
    for sender in senders {
        acknowledged.extend(sender.await.expect("a sender"));
    }
    assert!(acknowledged.len() > 200, "{}", acknowledged.len());
    eventually(WAIT, "every acknowledged line is in Kafka", || async {
        let seen: BTreeSet<String> = bench.texts().into_iter().collect();
        match acknowledged.difference(&seen).next() {
            None => Ok(()),
            Some(line) => Err(format!("{} lost, the first is {line}", acknowledged.difference(&seen).count())),
        }
    })
    .await;
    collector.stop().await;
    let log = collector.log();
    assert!(!log.contains("damaged events") && !log.contains("are missing"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tailed_file_arrives_exactly_once_over_the_file_channel_and_a_transactional_sink() {
    let bench = Bench::new(1).await;
    let log = bench.path("app.log");
    bench.conf(
        &bench.bootstrap,
        &format!(
            "sources.r.type = TAILDIR\nsources.r.filegroups = g\nsources.r.filegroups.g = {}\n\
             sinks.k.kafka.producer.transactional.id = {}",
            log.display(),
            bench.topic
        ),
    );
    fs::write(&log, "").expect("the log");
    let done = Arc::new(AtomicBool::new(false));
    let background = Done(done.clone());
    let writer = {
        let (log, done) = (log.clone(), done.clone());
        tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().append(true).open(&log).expect("the log");
            let mut written = Vec::new();
            while !done.load(SeqCst) {
                let mut text = String::new();
                for _ in 0..50 {
                    written.push(format!("{:07} {}", written.len(), "y".repeat(written.len() % 200)));
                    text.push_str(&written[written.len() - 1]);
                    text.push('\n');
                }
                file.write_all(text.as_bytes()).expect("the log");
                std::thread::sleep(Duration::from_millis(5));
            }
            written
        })
    };
    for _ in 0..kills() {
        let mut collector = bench.start();
        collector.addresses().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(20..1500))).await;
        collector.kill_9();
    }
    drop(background);
    let written = writer.await.expect("the writer");
    let mut collector = bench.start();
    collector.addresses().await;
    eventually(WAIT, "every line is in Kafka", || async {
        let count = bench.texts().len();
        if count >= written.len() { Ok(()) } else { Err(format!("{count} of {}", written.len())) }
    })
    .await;
    collector.stop().await;
    let seen = bench.texts();
    let wrong = seen.iter().zip(&written).position(|(seen, written)| seen != written);
    assert!(
        seen.len() == written.len() && wrong.is_none(),
        "{} records, {} lines; the first difference is at {wrong:?}",
        seen.len(),
        written.len()
    );
}

/// With Kafka away lines are taken in and the agent stops at once; the commands show, check and give out what waits.
#[tokio::test]
async fn what_waits_on_disk_is_shown_checked_and_drained() {
    let bench = Bench::new(1).await;
    let nowhere = format!("127.0.0.1:{}", free_port());
    let source = "sources.r.type = seq\nsources.r.totalEvents = 5000\nsources.r.batchSize = 100\n\
                  sources.r.interceptors = i\nsources.r.interceptors.i.type = static\nsources.r.interceptors.i.key = k\nsources.r.interceptors.i.value = v";
    let conf = bench.conf(&nowhere, source);
    let mut collector = bench.start();
    let metrics = collector.address("metrics").await;
    eventually(WAIT, "everything is in the channel", || async {
        let page: serde_json::Value =
            reqwest::get(format!("http://{metrics}/metrics")).await.expect("the page").json().await.expect("JSON");
        let put = page["CHANNEL.c"]["EventPutSuccessCount"].as_str().unwrap_or_default().to_owned();
        if put == "5000" { Ok(()) } else { Err(put) }
    })
    .await;
    let state = bench.path("state").display().to_string();
    let command = |args: &[&str]| {
        let output = run("millrace-collector", &[&["channel"], args, &[&conf, "--state-dir", &state]].concat(), &[]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    };
    let json = |args: &[&str]| serde_json::from_str::<serde_json::Value>(&command(args).1).expect("JSON");
    assert_eq!(json(&["inspect", "-o", "json"])["waiting"], 5000);
    let (code, _, error) = command(&["drain"]);
    assert!(code == 1 && error.contains("stop it first; `inspect` and `verify` work while it runs"), "{error}");
    assert_eq!(command(&["verify", "-o", "json"]).0, 0, "beside the running agent");
    assert_eq!(command(&["inspect", "--channel", "other"]).0, 78);
    collector.stop().await;

    assert_eq!(json(&["verify", "-o", "json"])["well"], true);
    // Whoever reads what is told may stop early.
    for verb in ["inspect", "verify"] {
        for output in ["table", "json"] {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let command = Command::new(binary("millrace-collector"))
                .args(["channel", verb, &conf, "--state-dir", &state, "-o", output])
                .stdout(writer)
                .output()
                .expect("it runs");
            assert!(command.status.success() && command.stderr.is_empty(), "{verb}: {command:?}");
        }
    }
    let (code, out, _) = command(&["drain", "--keep", "--events", "raw"]);
    let numbers = |from: usize| (from..5000).map(|number| number.to_string()).collect::<Vec<_>>();
    assert_eq!((code, out.lines().map(str::to_owned).collect::<Vec<_>>()), (0, numbers(0)));

    // One byte of one event: it alone is lost.
    let segment = fs::read_dir(bench.path("data1"))
        .into_iter()
        .chain(fs::read_dir(bench.path("data2")))
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "log"))
        .max_by_key(|path| fs::metadata(path).map(|metadata| metadata.len()).unwrap_or_default())
        .expect("a segment");
    let mut bytes = fs::read(&segment).expect("the segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&segment, bytes).expect("the segment");
    let (code, out, _) = command(&["verify"]);
    assert!(code == 1 && out.contains("1 are missing or damaged"), "{out}");
    let whole = fs::read(&segment).expect("the segment");

    // With Kafka there again the rest is delivered.
    bench.conf(&bench.bootstrap, &source.replace("5000", "0"));
    let mut collector = bench.start();
    collector.addresses().await;
    eventually(WAIT, "the rest is in Kafka", || async {
        let count = bench.texts().len();
        if count >= 4999 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    collector.log_contains(WAIT, "damaged events passed over").await;
    collector.stop().await;
    let seen = bench.texts();
    let all = numbers(0);
    assert_eq!((seen.len(), all.iter().filter(|number| !seen.contains(number)).count()), (4999, 1));
    let (code, _, said) = command(&["drain"]);
    assert!(code == 0 && said.contains("0 events drained"), "{said}");
    // The segment is removed when all else is gone from it; a drain keeps what cannot be read.
    fs::remove_file(bench.path("checkpoint/acks")).expect("the acknowledgements");
    fs::write(&segment, &whole).expect("the segment");
    let (code, _, said) = command(&["drain"]);
    let kept = segment.with_extension("log.damaged");
    assert!(
        code == 1 && said.contains(" damaged or missing") && said.contains(&format!("the segment is kept as {}", kept.display())),
        "{said}"
    );
    assert_eq!(fs::read(&kept).ok(), Some(whole));
}
