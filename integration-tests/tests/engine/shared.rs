//! A SQL job that several engines share (`job.slots`), which come, go, die and stand still: every row once.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

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

struct Shared<'a> {
    dir: &'a Path,
    bootstrap: String,
    from: String,
    to: String,
    config: String,
    fed: u64,
}

impl<'a> Shared<'a> {
    async fn new(dir: &'a Path, s3: &OwnS3) -> Self {
        let (bootstrap, from, to) = (kafka_bootstrap(), unique("shared-from"), unique("shared-to"));
        for topic in [&from, &to] {
            kafka::create_topic(&bootstrap, topic, PARTITIONS).await;
        }
        // Of an owner that stands still, a store on the network lets the next one in; a local lock would not.
        let config = format!("[checkpoint.store]\naws_endpoint = '{}'\naws_allow_http = true\naws_region = 'us-east-1'\n", s3.url);
        fs::write(dir.join("engine.toml"), config).expect("the configuration");
        let sql = format!(
            "SET 'batch.interval' = '100ms';\nSET 'job.slots' = '4';\n\
             CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'kafka', 'topic' = '{from}', 'properties.bootstrap.servers' = '{bootstrap}',\n\
             'properties.session.timeout.ms' = '6000', 'properties.heartbeat.interval.ms' = '500',\n\
             'scan.startup.mode' = 'earliest-offset', 'format' = 'json');\n\
             CREATE TABLE copies (n BIGINT) WITH ('connector' = 'kafka', 'topic' = '{to}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',\n\
             'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{to}');\n\
             INSERT INTO copies SELECT n FROM numbers;\n"
        );
        fs::write(dir.join("job.sql"), sql).expect("the job");
        Self { dir, config: dir.join("engine.toml").to_string_lossy().into_owned(), bootstrap, from, to, fed: 0 }
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
        kafka::produce(&self.bootstrap, &self.from, PARTITIONS, (self.fed..self.fed + count).map(|n| format!(r#"{{"n":{n}}}"#)));
        self.fed += count;
    }

    /// All but `left` of what was fed, each once.
    async fn copied(&self, left: u64, workers: &[&Process]) {
        let logs = || workers.iter().map(|one| one.log()).collect::<Vec<_>>().join("\n---\n");
        let texts = eventually(WAIT, "the rows are copied", || async {
            let texts = kafka::texts(&self.bootstrap, &self.to);
            if texts.len() as u64 >= self.fed - left { Ok(texts) } else { Err(format!("{} of {}\n{}", texts.len(), self.fed, logs())) }
        })
        .await;
        let mut times: BTreeMap<u64, u32> = BTreeMap::new();
        for text in texts {
            let row: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            *times.entry(row["n"].as_u64().expect("a number")).or_default() += 1;
        }
        let repeated: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(5).collect();
        assert!(repeated.is_empty(), "{repeated:?}\n{}", logs());
        assert!(left > 0 || times.len() as u64 == self.fed, "{} of {}\n{}", times.len(), self.fed, logs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sql_job_is_shared_by_engines_that_come_go_die_and_stand_still() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let s3 = OwnS3::start(dir.path().join("s3"), "jobs");
    let mut job = Shared::new(dir.path(), &s3).await;
    let mut a = job.worker();
    job.feed(1_000);
    job.copied(0, &[&a]).await;
    // Three share it.
    let (mut b, mut c) = (job.worker(), job.worker());
    b.log_contains(WAIT, "job starts").await;
    c.log_contains(WAIT, "job starts").await;
    job.feed(4_000);
    job.copied(3_500, &[&a, &b, &c]).await;
    a.kill_9();
    job.copied(0, &[&a, &b, &c]).await;
    // One stands still for longer than the group waits for it, and wakes up in the belief that its slots are its own.
    job.feed(4_000);
    job.copied(3_500, &[&a, &b, &c]).await;
    b.signal(Signal::STOP);
    job.copied(0, &[&a, &c]).await;
    job.feed(2_000);
    b.signal(Signal::CONT);
    job.copied(0, &[&a, &b, &c]).await;
    // Back to one.
    job.feed(3_000);
    b.signal(Signal::TERM);
    assert!(b.ended(WAIT).await.success(), "{}", b.log());
    job.copied(0, &[&a, &b, &c]).await;
    c.stop().await;
}
