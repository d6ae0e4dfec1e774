//! The process ended, and the disk failing, at every marked point. The points are those that the binary names.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use integration_tests::{
    eventually, kafka,
    process::{Process, run},
    servers::kafka_bootstrap,
    unique,
};

use super::{Agent, WAIT, assert_none_lost, lines, senders::Senders};

fn points() -> Vec<String> {
    let output = run("millrace-collector", &["fault-points"], &[]);
    let names = lines(&output.stdout);
    assert!(output.status.success() && names.len() >= 40, "{output:?}");
    names
}

/// It ends by itself at the point, or when it is told to stop; by the signal in either case.
async fn killed(process: &mut Process, fault: &str) {
    let begun = Instant::now();
    let mut stopped = false;
    loop {
        if let Some(status) = process.status() {
            assert_eq!(status.signal(), Some(9), "{fault}: {status}\n{}", process.log());
            return;
        }
        // The last points are on the way out.
        if !stopped && begun.elapsed() > Duration::from_secs(if fault.starts_with("closed") { 1 } else { 10 }) {
            process.signal(rustix::process::Signal::TERM);
            stopped = true;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{fault} is never reached:\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Something to recover: a put that is on disk and was neither answered nor delivered; a copy of a segment, and an unfinished copy.
async fn prepare(agent: &Agent, conf: &str) {
    let fault = "put-synced:2";
    killed(&mut agent.start(conf, fault), fault).await;
    let data = agent.place.join("data1");
    let segment = fs::read_dir(&data)
        .expect("segments")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "log"));
    let segment = segment.or_else(|| {
        let other = fs::read_dir(agent.place.join("data2")).expect("segments").flatten().map(|entry| entry.path());
        other.into_iter().find(|path| path.extension().is_some_and(|end| end == "log"))
    });
    fs::copy(segment.expect("a segment"), data.join("segment-0000000000000000.log")).expect("a copy");
    fs::write(data.join("segment-0000000000000000.log.copy"), "unfinished").expect("a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_point_and_each_failing_operation_lose_no_acknowledged_line() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let agent = Agent::new(dir.path(), &dir.path().join("channel"));
    let conf = agent.conf("agent.conf", &agent.files());
    let senders = Senders::start(agent.port);
    let all: Vec<String> = points().into_iter().filter(|name| !name.starts_with("transaction-")).collect();
    let (mut kills, mut errors) = (0, 0);
    for name in &all {
        let recovery = name.starts_with("recovery-") || name.as_str() == "take-read";
        if recovery {
            prepare(&agent, &conf).await;
            kills += 1;
        }
        let often = ["put-", "acks-written", "acks-synced", "take-given", "take-committed", "disk-write"];
        let again = often.iter().any(|prefix| name.starts_with(prefix) && !name.ends_with("-new"));
        for nth in if again { &[1, 7][..] } else { &[1] } {
            let fault = format!("{name}:{nth}");
            killed(&mut agent.start(&conf, &fault), &fault).await;
            kills += 1;
        }
    }
    // Five deaths in a row, each a step further into the same recovery.
    prepare(&agent, &conf).await;
    for name in ["recovery-decided", "recovery-copy-written", "recovery-copy-renamed", "segment-written", "acks-renamed"] {
        killed(&mut agent.start(&conf, &format!("{name}:1")), name).await;
        kills += 1;
    }
    // An operation that fails: it goes on, or does not start and says why.
    for name in all.iter().filter(|name| name.starts_with("disk-")) {
        for nth in [1, 2, 5] {
            let before = senders.count();
            let mut collector = agent.start(&conf, &format!("{name}:{nth}:error"));
            let begun = Instant::now();
            while collector.status().is_none() && senders.count() < before + 20 {
                assert!(begun.elapsed() < WAIT, "{name}:{nth}: no line is taken any more:\n{}", collector.log());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if let Some(status) = collector.status() {
                assert_eq!(status.code(), Some(1), "{name}:{nth}: {status}\n{}", collector.log());
                assert!(collector.log().contains("os error 5"), "{name}:{nth}:\n{}", collector.log());
            }
            collector.kill_9();
            assert!(!collector.log().contains("panicked"), "{name}:{nth}:\n{}", collector.log());
            errors += 1;
        }
    }
    let mut collector = agent.start(&conf, "");
    collector.addresses().await;
    let acknowledged = senders.stop().await;
    collector.stop().await;
    assert!(acknowledged.len() > 500 && kills >= 50 && errors == 18, "{} lines, {kills} kills, {errors} errors", acknowledged.len());
    let mut there = agent.delivered();
    let delivered = there.len();
    there.extend(agent.drain(&conf));
    assert!(delivered > 100, "{delivered}");
    assert_none_lost(&acknowledged, &there.into_iter().collect(), &format!("{kills} kills, {errors} errors"));
}

/// Positions are event numbers of the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_point_of_a_transaction_over_a_file_channel_repeats_and_loses_no_line() {
    exactly_once("file", &["take-committed:2", "acks-written:2", "put-synced:3", "put-published:2"]).await;
}

/// Positions are those of the file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_point_of_a_transaction_over_a_memory_channel_repeats_and_loses_no_line() {
    exactly_once("memory", &[]).await;
}

async fn exactly_once(channel: &str, more: &[&str]) {
    let (bootstrap, topic) = (kafka_bootstrap(), unique("durability"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (log, conf) = (dir.path().join("app.log"), dir.path().join("agent.conf"));
    fs::write(&log, "").expect("the log");
    fs::write(&conf, transactional(dir.path(), channel, &log, &bootstrap, &topic)).expect("the agent's file");
    let done = Done(Arc::new(AtomicBool::new(false)));
    let writer = {
        let (log, done) = (log.clone(), done.0.clone());
        tokio::task::spawn_blocking(move || append(&log, &done))
    };
    let start = |fault: &str| {
        let state = dir.path().join("state");
        let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
        let mut env = vec![("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
        if !fault.is_empty() {
            env.push(("MILLRACE_FAULT", fault));
        }
        Process::start("millrace-collector", dir.path(), &args, &env)
    };
    let mut faults: Vec<String> = more.iter().map(|fault| (*fault).to_owned()).collect();
    for name in points().iter().filter(|name| name.starts_with("transaction-")) {
        faults.push(format!("{name}:1"));
        // A session is begun once in a process.
        if !["transaction-writer-taken", "transaction-positions-read"].contains(&name.as_str()) {
            faults.push(format!("{name}:3"));
        }
    }
    for fault in &faults {
        killed(&mut start(fault), fault).await;
    }
    drop(done);
    let written = writer.await.expect("the writer");
    let mut collector = start("");
    collector.addresses().await;
    eventually(WAIT, "every line is in Kafka", || async {
        let count = kafka::texts(&bootstrap, &topic).len();
        if count >= written.len() { Ok(()) } else { Err(format!("{count} of {}", written.len())) }
    })
    .await;
    collector.stop().await;
    let seen = kafka::texts(&bootstrap, &topic);
    let wrong = seen.iter().zip(&written).position(|(seen, written)| seen != written);
    let (records, lines, kills) = (seen.len(), written.len(), faults.len());
    assert!(records == lines && wrong.is_none(), "{records} records, {lines} lines; the first difference is at {wrong:?}");
    assert!(kills >= 12 && lines > 500, "{kills} kills, {lines} lines");
}

/// What was in memory is read again, and what was on disk is there; a start does not begin at the first line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spilling_channel_that_is_killed_at_random_loses_no_line() {
    const KILLS: usize = 10;
    let (bootstrap, topic) = (kafka_bootstrap(), unique("spilling"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (log, conf) = (dir.path().join("app.log"), dir.path().join("agent.conf"));
    fs::write(&log, "").expect("the log");
    // A batch of more lines than there is room for in memory goes to disk at once.
    let text = agent_file(dir.path(), "spillablememory", &log, &bootstrap, &topic)
        + "a.channels.c.memoryCapacity = 50\na.channels.c.overflowTimeout = 0\na.sources.r.writePosInterval = 100\n";
    fs::write(&conf, text).expect("the agent's file");
    let done = Done(Arc::new(AtomicBool::new(false)));
    let writer = {
        let (log, done) = (log.clone(), done.0.clone());
        tokio::task::spawn_blocking(move || append(&log, &done))
    };
    let state = dir.path().join("state");
    let args = ["agent", "-n", "a", "-f", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    let start = || Process::start("millrace-collector", dir.path(), &args, &env);
    let mut spilled: u64 = 0;
    for _ in 0..KILLS {
        let mut collector = start();
        collector.addresses().await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..800))).await;
        collector.kill_9();
        let segments = fs::read_dir(dir.path().join("data")).expect("segments").flatten();
        spilled = spilled.max(segments.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum());
    }
    drop(done);
    let written = writer.await.expect("the writer");
    let mut collector = start();
    collector.addresses().await;
    let count = || {
        let seen = kafka::texts(&bootstrap, &topic);
        let there: std::collections::BTreeSet<&String> = seen.iter().collect();
        (seen.len(), written.iter().filter(|line| !there.contains(line)).count())
    };
    eventually(WAIT, "every line is in Kafka", || async {
        let (records, missing) = count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} lines are missing, {records} records", written.len())) }
    })
    .await;
    collector.stop().await;
    let (records, _) = count();
    // A start repeats what came since the positions were saved, and what was in memory.
    let repeated = records - written.len();
    assert!(
        repeated < KILLS * 2000 && spilled > 10_000 && written.len() > 2000,
        "{repeated} of {} lines repeated, {spilled} bytes on disk",
        written.len()
    );
}

/// Lets the writer end, also when the test fails.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn transactional(dir: &Path, channel: &str, log: &Path, bootstrap: &str, topic: &str) -> String {
    agent_file(dir, channel, log, bootstrap, topic) + &format!("a.sinks.k.kafka.producer.transactional.id = {topic}\n")
}

/// A tailed file, a channel, a Kafka sink.
fn agent_file(dir: &Path, channel: &str, log: &Path, bootstrap: &str, topic: &str) -> String {
    let dir = dir.display();
    let on_disk = format!(
        "a.channels.c.checkpointDir = {dir}/checkpoint\na.channels.c.dataDirs = {dir}/data\na.channels.c.maxFileSize = 65536\n\
         a.channels.c.minimumRequiredSpace = 1048576\n"
    );
    let on_disk = if channel == "memory" { "" } else { on_disk.as_str() };
    format!(
        "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.channels = c\na.sinks.k.channel = c\n\
         a.sources.r.type = TAILDIR\na.sources.r.filegroups = g\na.sources.r.filegroups.g = {}\n\
         a.channels.c.type = {channel}\na.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\n\
         {on_disk}\
         a.sinks.k.kafka.bootstrap.servers = {bootstrap}\na.sinks.k.kafka.topic = {topic}\n",
        log.display()
    )
}

/// Appends numbered lines until told to end; gives them.
fn append(log: &Path, done: &AtomicBool) -> Vec<String> {
    let mut file = OpenOptions::new().append(true).open(log).expect("the log");
    let mut written = Vec::new();
    while !done.load(SeqCst) {
        let mut text = String::new();
        for _ in 0..20 {
            written.push(format!("{:07} {}", written.len(), "y".repeat(written.len() % 200)));
            text.push_str(&written[written.len() - 1]);
            text.push('\n');
        }
        file.write_all(text.as_bytes()).expect("the log");
        std::thread::sleep(Duration::from_millis(5));
    }
    written
}
