//! A SQL job that several engines share (`job.slots`), which come, go, die and stand still: every row once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{OwnS3, kafka_bootstrap},
    unique,
};
use rustix::process::Signal;

use super::FREE_PORTS;

const PARTITIONS: i32 = 6;
const WAIT: Duration = Duration::from_secs(90);

/// What becomes of the rows.
#[derive(Clone, Copy)]
enum Query {
    Copy,
    /// Groups of `KEYS` keys in windows of a second.
    Windows,
}

const KEYS: u64 = 7;
/// Event time between two rows.
const STEP_MS: u64 = 10;

struct Shared<'a> {
    dir: &'a Path,
    query: Query,
    bootstrap: String,
    from: String,
    to: String,
    config: String,
    fed: u64,
}

impl<'a> Shared<'a> {
    async fn new(dir: &'a Path, s3: &OwnS3, query: Query) -> Self {
        let (bootstrap, from, to) = (kafka_bootstrap(), unique("shared-from"), unique("shared-to"));
        for topic in [&from, &to] {
            kafka::create_topic(&bootstrap, topic, PARTITIONS).await;
        }
        // Of an owner that stands still, a store on the network lets the next one in; a local lock would not.
        let config = format!("[checkpoint.store]\naws_endpoint = '{}'\naws_allow_http = true\naws_region = 'us-east-1'\n", s3.url);
        fs::write(dir.join("engine.toml"), config).expect("the configuration");
        let (columns, insert) = match query {
            Query::Copy => ("n BIGINT", "SELECT n FROM numbers"),
            Query::Windows => (
                "w STRING, k BIGINT, c BIGINT, s BIGINT",
                "SELECT CAST(window_start AS STRING), k, COUNT(*), SUM(n) FROM TABLE(TUMBLE(TABLE numbers, DESCRIPTOR(ts), INTERVAL '1' SECOND))\n\
                 GROUP BY window_start, window_end, k",
            ),
        };
        let sql = format!(
            "SET 'batch.interval' = '300ms';\nSET 'job.slots' = '4';\n\
             CREATE TABLE numbers (n BIGINT, k BIGINT, ms BIGINT, ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND)\n\
             WITH ('connector' = 'kafka', 'topic' = '{from}', 'properties.bootstrap.servers' = '{bootstrap}',\n\
             'properties.session.timeout.ms' = '6000', 'properties.heartbeat.interval.ms' = '500',\n\
             'scan.startup.mode' = 'earliest-offset', 'format' = 'json');\n\
             CREATE TABLE results ({columns}) WITH ('connector' = 'kafka', 'topic' = '{to}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',\n\
             'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{to}');\n\
             INSERT INTO results {insert};\n"
        );
        fs::write(dir.join("job.sql"), sql).expect("the job");
        Self { dir, query, config: dir.join("engine.toml").to_string_lossy().into_owned(), bootstrap, from, to, fed: 0 }
    }

    fn worker(&self) -> Process {
        let job = self.dir.join("job.sql");
        let checkpoint = format!("s3://jobs/{}", self.to);
        let args = ["run", &*job.to_string_lossy(), "--name", &self.to, "--checkpoint", &checkpoint];
        let env = [
            ("MILLRACE_CONFIG", self.config.as_str()),
            ("AWS_ACCESS_KEY_ID", "millrace"),
            ("AWS_SECRET_ACCESS_KEY", "millrace"),
            ("NO_PROXY", "127.0.0.1"),
        ];
        Process::start("millrace-engine", self.dir, &args, &[&FREE_PORTS[..], &env].concat())
    }

    fn feed(&mut self, count: u64) {
        let row = |n: u64| format!(r#"{{"n":{n},"k":{},"ms":{}}}"#, n % KEYS, n * STEP_MS);
        kafka::produce(&self.bootstrap, &self.from, PARTITIONS, (self.fed..self.fed + count).map(row));
        self.fed += count;
    }

    /// The rows that come of what was fed; of windows, with `complete` those that must be written by now.
    fn expected(&self, complete: bool) -> BTreeSet<String> {
        match self.query {
            Query::Copy => (0..self.fed).map(|n| format!(r#"{{"n":{n}}}"#)).collect(),
            Query::Windows => {
                let mut windows: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
                // The last row of each partition is among the last six, and the delay is a second.
                let until = if complete { (self.fed.saturating_sub(6) * STEP_MS).saturating_sub(1_001) / 1000 } else { u64::MAX };
                for n in (0..self.fed).filter(|n| n * STEP_MS / 1000 < until) {
                    let (count, sum) = windows.entry((n * STEP_MS / 1000, n % KEYS)).or_default();
                    (*count, *sum) = (*count + 1, *sum + n);
                }
                let text = |((second, key), (count, sum)): ((u64, u64), (u64, u64))| {
                    let time = format!("1970-01-01T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
                    format!(r#"{{"w":"{time}","k":{key},"c":{count},"s":{sum}}}"#)
                };
                windows.into_iter().map(text).collect()
            }
        }
    }

    /// This share of what is expected, in percent, and of it each row once.
    async fn done(&self, percent: usize, workers: &[&Process]) {
        let logs = || workers.iter().map(|one| one.log()).collect::<Vec<_>>().join("\n---\n");
        let expected = self.expected(true);
        let texts = eventually(WAIT, "the rows are written", || async {
            let texts = kafka::texts(&self.bootstrap, &self.to);
            let there = texts.iter().filter(|text| expected.contains(*text)).collect::<BTreeSet<_>>().len();
            if there * 100 >= expected.len() * percent { Ok(texts) } else { Err(format!("{there} of {}\n{}", expected.len(), logs())) }
        })
        .await;
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for text in &texts {
            *times.entry(text).or_default() += 1;
        }
        let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(5).collect();
        assert!(repeated.is_empty(), "{repeated:?}\n{}", logs());
        let possible = self.expected(false);
        let wrong: Vec<_> = times.keys().filter(|text| !possible.contains(**text)).take(5).collect();
        assert!(wrong.is_empty(), "{wrong:?}\n{}", logs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sql_job_is_shared_by_engines_that_come_go_die_and_stand_still() {
    shared_and_disturbed(Query::Copy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_over_slots_are_right_whatever_becomes_of_the_engines() {
    shared_and_disturbed(Query::Windows).await;
}

async fn shared_and_disturbed(query: Query) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let s3 = OwnS3::start(dir.path().join("s3"), "jobs");
    let mut job = Shared::new(dir.path(), &s3, query).await;
    let mut a = job.worker();
    job.feed(1_000);
    job.done(100, &[&a]).await;
    // Three share it.
    let (mut b, mut c) = (job.worker(), job.worker());
    b.log_contains(WAIT, "job starts").await;
    c.log_contains(WAIT, "job starts").await;
    job.feed(4_000);
    job.done(30, &[&a, &b, &c]).await;
    a.kill_9();
    job.done(100, &[&a, &b, &c]).await;
    // One stands still for longer than the group waits for it, and wakes up in the belief that its slots are its own.
    job.feed(4_000);
    job.done(60, &[&a, &b, &c]).await;
    b.signal(Signal::STOP);
    job.done(100, &[&a, &c]).await;
    job.feed(2_000);
    b.signal(Signal::CONT);
    job.done(100, &[&a, &b, &c]).await;
    // Back to one.
    job.feed(3_000);
    b.signal(Signal::TERM);
    assert!(b.ended(WAIT).await.success(), "{}", b.log());
    job.done(100, &[&a, &b, &c]).await;
    c.stop().await;
}
