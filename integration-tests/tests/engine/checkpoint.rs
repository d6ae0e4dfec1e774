//! Checkpoints on stores of the network: a real HDFS and a server of the S3 protocol, with the engine killed, the data node killed,
//! the store full, the newest entry torn, and two processes with one checkpoint.

use std::{
    fs,
    path::{Path, PathBuf},
};

use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{OwnHdfs, OwnS3, kafka_bootstrap, redis_url},
    unique,
};
use rustix::process::Signal;

use super::{FREE_PORTS, WAIT, WINDOWED, cli, expected, in_kafka, in_redis, kafka_sink, killed_on_its_way, redis_sink, row, source};

/// Said by a process that has lost its checkpoint, and by a fence that keeps its rows away.
const ANOTHER: &str = "another process";

/// As long as there is something to read, batch follows batch without a pause: this is less than two puts to S3 take.
const FAST: &str = "SET 'batch.interval' = '50ms';\nSET 'spark.streaming.kafka.maxRatePerPartition' = '2000';\n";

/// The windowed job of this folder's tests, fed row by row.
struct Fed {
    dir: PathBuf,
    bootstrap: String,
    topic: String,
    job: PathBuf,
    rows: u64,
}

impl Fed {
    async fn new(dir: &Path, settings: &str, sink: &str) -> Self {
        let (bootstrap, topic) = (kafka_bootstrap(), unique("checkpoint"));
        kafka::create_topic(&bootstrap, &topic, 2).await;
        let job = dir.join("job.sql");
        let sql =
            format!("SET 'batch.interval' = '200ms';\n{settings}{}{sink}INSERT INTO totals {WINDOWED}", source(&topic, &bootstrap, ""));
        fs::write(&job, sql).expect("the job");
        Self { dir: dir.to_owned(), bootstrap, topic, job, rows: 0 }
    }

    fn feed(&mut self, rows: u64) {
        kafka::produce(&self.bootstrap, &self.topic, 2, (self.rows..self.rows + rows).map(|n| row(n).2));
        self.rows += rows;
    }

    fn serve(&self, place: &str, env: &[(&str, &str)]) -> Process {
        Process::start("millrace-engine", &self.dir, &["serve", "--checkpoint", place], &[&FREE_PORTS, env].concat())
    }

    fn run(&self, place: &str) -> Process {
        let args = ["run", &*self.job.to_string_lossy(), "--name", "totals", "--checkpoint", place];
        Process::start("millrace-engine", &self.dir, &args, &FREE_PORTS)
    }

    async fn submit(&self, engine: &mut Process) {
        let (code, said) = cli(&engine.address("control").await, &["job", "submit", &self.job.to_string_lossy(), "--name", "totals"]);
        assert_eq!(code, 0, "{said}\n{}", engine.log());
    }

    async fn drain(&self, engine: &mut Process) {
        let (code, said) = cli(&engine.address("control").await, &["job", "stop", "totals", "--drain"]);
        assert_eq!(code, 0, "{said}\n{}", engine.log());
    }
}

/// Waits until the job has read what it was fed, and no more.
async fn has_read(engine: &mut Process, rows: u64) {
    assert_eq!(super::has_read(engine, "totals", rows).await, rows, "{}", engine.log());
}

/// Numbers of the entries in a folder of the checkpoint.
fn ids(hdfs: &OwnHdfs, folder: &str) -> Vec<u64> {
    let printed = hdfs.fs(&["-ls", "-C", folder]);
    let mut ids: Vec<u64> = printed.lines().filter_map(|path| path.rsplit('/').next()?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

/// Keeps the first half of a file.
fn tear(file: &Path) {
    let whole = fs::read(file).expect("the entry");
    assert!(whole.starts_with(b"millrace 1 "), "{}", String::from_utf8_lossy(&whole));
    fs::write(file, &whole[..whole.len() / 2]).expect("the torn entry");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_with_its_checkpoint_on_hdfs_counts_every_row_once_whatever_is_killed_full_or_torn() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let hdfs = OwnHdfs::start(dir.path().join("hdfs"));
    let (bootstrap, out) = (kafka_bootstrap(), unique("checkpoint-out"));
    kafka::create_topic(&bootstrap, &out, 2).await;
    // Two batches each time it is fed.
    let settings = "SET 'spark.streaming.kafka.maxRatePerPartition' = '1000';\n";
    let mut job = Fed::new(dir.path(), settings, &kafka_sink(&out, &bootstrap)).await;
    let place = format!("{}/jobs", hdfs.url);

    let mut engine = job.serve(&place, &[]);
    job.submit(&mut engine).await;
    let mut read = 0;
    for _ in 0..3 {
        job.feed(700);
        killed_on_its_way(&mut engine, "totals", &mut read, job.rows).await;
        engine = job.serve(&place, &[]);
        engine.addresses().await;
    }

    // The data node dies under the running job, which waits and goes on.
    job.feed(700);
    has_read(&mut engine, job.rows).await;
    hdfs.kill_data_node();
    job.feed(700);
    engine.log_contains(WAIT, "waiting to try again; nothing is lost").await;
    hdfs.restart_data_node();
    has_read(&mut engine, job.rows).await;

    // It is dead while the engine is started.
    hdfs.kill_data_node();
    engine.kill_9();
    job.feed(700);
    engine = job.serve(&place, &[]);
    engine.log_contains(WAIT, "waiting for the place of the jobs").await;
    hdfs.restart_data_node();
    has_read(&mut engine, job.rows).await;

    // No room for another block.
    hdfs.admin(&["-setSpaceQuota", "1m", "/jobs"]);
    job.feed(700);
    engine.log_contains(WAIT, "quota").await;
    assert!(engine.log().contains("waiting to try again; nothing is lost"), "{}", engine.log());
    hdfs.admin(&["-clrSpaceQuota", "/jobs"]);
    has_read(&mut engine, job.rows).await;

    // The newest entry is cut short.
    engine.kill_9();
    let newest = *ids(&hdfs, "/jobs/totals/commits").last().expect("a commit");
    let (entry, torn) = (format!("/jobs/totals/commits/{newest}"), dir.path().join("torn"));
    hdfs.fs(&["-get", &entry, &torn.to_string_lossy()]);
    tear(&torn);
    hdfs.fs(&["-put", "-f", &torn.to_string_lossy(), &entry]);
    job.feed(700);
    engine = job.serve(&place, &[]);
    let fell_back = format!("a checkpoint entry is damaged: going on from commits/{}; what came after it runs again", newest - 1);
    engine.log_contains(WAIT, &fell_back).await;
    has_read(&mut engine, job.rows).await;

    // The newest entry's only block is damaged on the data node's disk.
    engine.kill_9();
    let newest = *ids(&hdfs, "/jobs/totals/commits").last().expect("a commit");
    let whole = dir.path().join("whole");
    hdfs.fs(&["-get", &format!("/jobs/totals/commits/{newest}"), &whole.to_string_lossy()]);
    hdfs.damage_block(&fs::read(&whole).expect("the entry"));
    job.feed(700);
    engine = job.serve(&place, &[]);
    engine.log_contains(WAIT, &format!("going on from commits/{}; what came after it runs again", newest - 1)).await;
    has_read(&mut engine, job.rows).await;

    job.drain(&mut engine).await;
    engine.stop().await;
    assert_eq!(in_kafka(&bootstrap, &out), expected(job.rows), "{}", engine.log());
    let left = hdfs.fs(&["-ls", "-R", "-C", "/jobs/totals"]);
    assert!(!left.contains(".tmp."), "killed processes' files are left: {left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_processes_with_one_checkpoint_on_hdfs_the_older_ends_with_a_message_and_puts_nothing_more() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let hdfs = OwnHdfs::start(dir.path().join("hdfs"));
    let prefix = unique("checkpoint-totals");
    let mut job = Fed::new(dir.path(), "SET 'checkpoint.retained' = '2';\n", &redis_sink(&prefix, &redis_url())).await;
    let place = format!("{}/jobs/totals", hdfs.url);
    let definitions = || ids(&hdfs, "/jobs/totals/offsets");

    let mut first = job.run(&place);
    job.feed(700);
    has_read(&mut first, job.rows).await;
    // It stands still for longer than its entries are kept.
    first.signal(Signal::STOP);
    let last = *definitions().last().expect("a batch");
    let mut second = job.run(&place);
    job.feed(700);
    has_read(&mut second, job.rows).await;
    let kept = eventually(WAIT, "what the first could put again is gone", || async {
        let kept = definitions();
        if kept.first().is_some_and(|oldest| *oldest > last + 1) { Ok(kept) } else { Err(format!("{kept:?}, not above {last}")) }
    })
    .await;
    first.signal(Signal::CONT);
    let status = first.ended(WAIT).await;
    assert!(!status.success() && first.log().contains(ANOTHER), "the first goes on:\n{}", first.log());
    // It may have been stopped with one put on its way, for a batch that is long done: nobody reads that one.
    let now: Vec<u64> = definitions().into_iter().filter(|id| *id != last + 1).collect();
    assert!(now.first() >= kept.first(), "the first has put something: {now:?} after {kept:?}");

    // Without standing still, and in the middle of its work.
    job.feed(700);
    let mut third = job.run(&place);
    let status = second.ended(WAIT).await;
    assert!(!status.success() && second.log().contains(ANOTHER), "the second goes on:\n{}", second.log());
    job.feed(700);
    has_read(&mut third, job.rows).await;
    job.drain(&mut third).await;
    assert!(third.ended(WAIT).await.success(), "{}", third.log());
    assert_eq!(in_redis(&prefix), expected(job.rows), "{}", third.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_with_its_checkpoint_on_s3_counts_every_row_once_and_of_two_engines_the_older_ends() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let s3 = OwnS3::start(dir.path().join("s3"), "jobs");
    let prefix = unique("checkpoint-totals");
    let mut job = Fed::new(dir.path(), FAST, &redis_sink(&prefix, &redis_url())).await;
    let config = dir.path().join("engine.toml");
    fs::write(&config, format!("[checkpoint.store]\naws_endpoint = '{}'\naws_allow_http = true\naws_region = 'us-east-1'\n", s3.url))
        .expect("the configuration");
    let config = config.to_string_lossy().into_owned();
    let env = [
        ("MILLRACE_CONFIG", config.as_str()),
        ("AWS_ACCESS_KEY_ID", "millrace"),
        ("AWS_SECRET_ACCESS_KEY", "millrace"),
        ("NO_PROXY", "127.0.0.1"),
    ];
    let serve = |job: &Fed| job.serve("s3://jobs/engine", &env);

    let mut engine = serve(&job);
    job.submit(&mut engine).await;
    let mut read = 0;
    for _ in 0..5 {
        job.feed(700);
        killed_on_its_way(&mut engine, "totals", &mut read, job.rows).await;
        engine = serve(&job);
        engine.addresses().await;
    }
    has_read(&mut engine, job.rows).await;
    engine.kill_9();

    // What the engine builds on: a put that is told to replace nothing.
    let commits = s3.objects().into_iter().filter_map(|(key, content)| {
        let id: u64 = key.strip_prefix("engine/totals/commits/")?.parse().ok()?;
        Some((id, (key, content)))
    });
    let (newest, (key, content)) = commits.max_by_key(|(id, _)| *id).expect("a commit");
    let torn = dir.path().join("torn");
    fs::write(&torn, content).expect("the entry");
    tear(&torn);
    assert!(!s3.put_new(&key, &torn), "this server replaces what it is told to leave");
    assert!(s3.put_new("beside", &torn));
    s3.put(&key, &torn);

    job.feed(700);
    engine = serve(&job);
    let fell_back = format!("a checkpoint entry is damaged: going on from commits/{}; what came after it runs again", newest - 1);
    engine.log_contains(WAIT, &fell_back).await;
    has_read(&mut engine, job.rows).await;

    job.feed(700);
    let mut second = serve(&job);
    let status = engine.ended(WAIT).await;
    assert!(!status.success() && engine.log().contains("another process has taken it over"), "the first goes on:\n{}", engine.log());
    job.feed(700);
    has_read(&mut second, job.rows).await;
    job.drain(&mut second).await;
    second.stop().await;
    assert_eq!(in_redis(&prefix), expected(job.rows), "{}", second.log());
}
