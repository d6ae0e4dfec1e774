//! The engine killed at every marked step of a batch, by itself, so that the step is hit and not merely likely. The steps are those that
//! the binary names. What stands in Kafka, Redis and the files is counted from outside, against what went in.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use futures::{StreamExt as _, stream};
use integration_tests::{
    kafka,
    process::{Process, run},
    servers::{kafka_bootstrap, redis_url},
    unique,
};

use super::{FREE_PORTS, WAIT, WINDOWED, expected, files::listed, in_redis, redis_sink, row, source};

/// Eight batches of a hundred; `bytes` of [`row`] is a row's number.
const ROWS: u64 = 800;
/// Jobs that run at once.
const JOBS: usize = 4;
/// Reached once in a process.
const ONCE: [&str; 2] = ["job-restored", "kafka-marks-read"];

fn points() -> Vec<String> {
    let output = run("millrace-engine", &["fault-points"], &[]);
    let names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert!(output.status.success() && names.len() >= 21, "{output:?}");
    names
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// Each row a record, in transactions.
    Kafka,
    /// Totals of windows, replaced in every batch: they come from the checkpoint's state too.
    Redis,
    /// Each row a line, several files a batch.
    Files,
}

impl Output {
    /// Those whose jobs reach the point. A point of a sink is named after it.
    fn of(point: &str) -> Vec<Self> {
        let all = [(Self::Kafka, "kafka-"), (Self::Redis, "redis-"), (Self::Files, "files-")];
        let own: Vec<Self> = all.iter().filter(|(_, prefix)| point.starts_with(prefix)).map(|(output, _)| *output).collect();
        if own.is_empty() { all.map(|(output, _)| output).to_vec() } else { own }
    }
}

/// What every job reads.
#[derive(Clone)]
struct Input {
    bootstrap: String,
    topic: String,
}

impl Input {
    async fn new() -> Self {
        let (bootstrap, topic) = (kafka_bootstrap(), unique("steps"));
        kafka::create_topic(&bootstrap, &topic, 2).await;
        kafka::produce(&bootstrap, &topic, 2, (0..ROWS).map(|n| row(n).2));
        Self { bootstrap, topic }
    }
}

/// A job with an output and a checkpoint of its own. It ends by itself when everything is read.
struct Job {
    input: Input,
    /// Also of the output's topic or keys.
    name: String,
    output: Output,
    dir: PathBuf,
}

impl Job {
    async fn new(input: &Input, dir: &Path, output: Output) -> Self {
        let name = unique("steps-out");
        let dir = dir.join(&name);
        fs::create_dir(&dir).expect("a folder");
        let rows = "CREATE TABLE copies (ts BIGINT, host STRING, bytes BIGINT) WITH (";
        let copy = "INSERT INTO copies SELECT ts, host, bytes FROM rows_in;\n";
        let to = match output {
            Output::Kafka => {
                kafka::create_topic(&input.bootstrap, &name, 1).await;
                format!(
                    "{rows}'connector' = 'kafka', 'topic' = '{name}', 'properties.bootstrap.servers' = '{}', 'format' = 'json', \
                     'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{name}');\n{copy}",
                    input.bootstrap
                )
            }
            // Of seven hosts: three calls a batch.
            Output::Redis => format!(
                "SET 'millrace.emit' = 'every-batch';\n{}INSERT INTO totals {WINDOWED}",
                redis_sink(&name, &redis_url()).replace("'mode' = 'hash'", "'mode' = 'hash', 'sink.buffer-flush.max-rows' = '3'")
            ),
            Output::Files => format!(
                "{rows}'connector' = 'filesystem', 'path' = '{}', 'format' = 'json', 'sink.rolling-policy.max-rows' = '40');\n{copy}",
                dir.join("out").display()
            ),
        };
        let bounded = format!(",\n  'scan.bounded.mode' = 'latest-offset', 'properties.group.id' = '{name}-reader'");
        let sql = format!(
            "SET 'batch.interval' = '50ms';\nSET 'spark.streaming.kafka.maxRatePerPartition' = '1000';\nSET 'checkpoint.retained' = '2';\n{}{to}",
            source(&input.topic, &input.bootstrap, &bounded)
        );
        fs::write(dir.join("job.sql"), sql).expect("the job");
        Self { input: input.clone(), name, output, dir }
    }

    fn start(&self, fault: &str) -> Process {
        let args = ["run", "job.sql", "--name", &self.name, "--checkpoint", "checkpoint"];
        let fault = Some(("MILLRACE_FAULT", fault)).filter(|(_, fault)| !fault.is_empty());
        let env: Vec<(&str, &str)> = FREE_PORTS.into_iter().chain(fault).collect();
        Process::start("millrace-engine", &self.dir, &args, &env)
    }

    /// Nobody else sends the signal.
    async fn killed(&self, fault: &str) {
        let mut engine = self.start(fault);
        let status = engine.ended(WAIT).await;
        assert_eq!(status.signal(), Some(9), "{fault} is never reached by {:?}: {status}\n{}", self.output, engine.log());
        self.cut_a_put_short();
    }

    async fn ends(&self, fault: &str) {
        let mut engine = self.start(fault);
        let status = engine.ended(WAIT).await;
        assert!(status.success(), "{fault}: {:?}: {status}\n{}", self.output, engine.log());
    }

    /// The numbers of a folder's entries in the checkpoint.
    fn entries(&self, folder: &str) -> Vec<u64> {
        let names = fs::read_dir(self.dir.join("checkpoint").join(folder)).into_iter().flatten().flatten();
        let mut ids: Vec<u64> = names.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect();
        ids.sort_unstable();
        ids
    }

    /// Leaves what a process does that is killed in the middle of a put: half of the next entry, which has not got its name yet.
    fn cut_a_put_short(&self) {
        for folder in ["offsets", "commits"] {
            let Some(newest) = self.entries(folder).last().copied() else { continue };
            let folder = self.dir.join("checkpoint").join(folder);
            let entry = fs::read(folder.join(newest.to_string())).expect("an entry");
            fs::write(folder.join(format!("{}#1", newest + 1)), &entry[..entry.len() / 2]).expect("half of an entry");
        }
    }

    /// Puts the checkpoint where a kill between the last output and its commit leaves it.
    fn forget_the_last_commit(&self) {
        let newest = self.entries("commits").last().copied().expect("a commit");
        fs::remove_file(self.dir.join("checkpoint").join("commits").join(newest.to_string())).expect("the commit");
    }

    /// Everything that went in stands in the output once, and nothing else does.
    fn compare(&self) -> Result<(), String> {
        let found = match self.output {
            Output::Redis => {
                let (found, wanted) = (in_redis(&self.name), expected(ROWS));
                let wrong = wanted.iter().filter(|(window, totals)| found.get(*window) != Some(*totals)).count();
                return match (wrong, found.len() - wanted.len().min(found.len())) {
                    (0, 0) => Ok(()),
                    (wrong, more) => Err(format!("{wrong} of {} windows are wrong or lost, {more} too many", wanted.len())),
                };
            }
            Output::Kafka => count(kafka::texts(&self.input.bootstrap, &self.name)),
            Output::Files => {
                let found = listed(&self.dir.join("out"));
                if !found.unlisted.is_empty() || found.files < 2 {
                    return Err(format!("{} files in a batch; lost: unlisted files are left: {:?}", found.files, found.unlisted));
                }
                found.lines
            }
        };
        let wanted = count((0..ROWS).map(|n| row(n).2));
        assert_eq!(wanted.len() as u64, ROWS, "rows are alike");
        let lost = wanted.keys().filter(|row| !found.contains_key(*row)).count();
        let repeated: usize = found.values().map(|times| times - 1).sum();
        let strange = found.keys().filter(|row| !wanted.contains_key(*row)).count();
        if (lost, repeated, strange) == (0, 0, 0) {
            Ok(())
        } else {
            Err(format!("{lost} of {ROWS} rows are lost, {repeated} repeated, {strange} never went in"))
        }
    }
}

fn count(rows: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    rows.into_iter().for_each(|row| *times.entry(row).or_default() += 1);
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_of_a_batch_loses_and_repeats_nothing_in_kafka_redis_and_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let input = Input::new().await;
    let points = points();
    let all = points.iter().flat_map(|point| Output::of(point).into_iter().map(move |output| (point.clone(), output)));
    let killed = stream::iter(all).map(|(point, output)| {
        let (input, dir) = (input.clone(), dir.path().to_owned());
        async move {
            let job = tokio::spawn(async move {
                let job = Job::new(&input, &dir, output).await;
                let faults = if ONCE.contains(&&*point) {
                    // A batch is to be recovered from; then in the recovery, and in that after it.
                    ["batch-outputs-written:2".into(), format!("{point}:1"), format!("{point}:1")]
                } else {
                    // In the first batch, in the batch after the one that comes again, and then in the one that comes again.
                    [format!("{point}:1"), format!("{point}:2"), format!("{point}:1")]
                };
                for fault in &faults {
                    job.killed(fault).await;
                }
                job.ends("").await;
                let lag = kafka::lag(&input.bootstrap, &format!("{}-reader", job.name), &input.topic);
                let wrong = job.compare().err().or_else(|| (lag != 0).then(|| format!("the group is {lag} records behind")));
                if let Some(wrong) = wrong {
                    panic!("{point}, {output:?}: {wrong}; see {}", faults.join(", "));
                }
                faults.len()
            });
            job.await.expect("the job of a point")
        }
    });
    let kills: Vec<usize> = killed.buffer_unordered(JOBS).collect().await;
    assert!(kills.iter().sum::<usize>() >= 111, "{kills:?}");
}

/// The oracle sees what it is to see: without the marks in Kafka's transactions a batch that comes again stands there twice, and what a sink
/// leaves out is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_apart_from_the_output_and_output_that_is_left_out_are_found_out() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let input = Input::new().await;
    let found = |job: &Job| job.compare().err().unwrap_or_else(|| "nothing".into());

    // Offsets are committed by the checkpoint alone. The same with the marks is no harm.
    for (fault, wanted) in [("", "nothing"), ("kafka-marks-write:skip", "0 of 800 rows are lost, 100 repeated")] {
        let job = Job::new(&input, dir.path(), Output::Kafka).await;
        job.ends(fault).await;
        assert_eq!(found(&job), "nothing", "{fault}");
        job.forget_the_last_commit();
        job.ends("").await;
        assert!(found(&job).starts_with(wanted), "{fault}: {}", found(&job));
    }
    // The marks are there and not heeded.
    let job = Job::new(&input, dir.path(), Output::Kafka).await;
    job.killed("kafka-committed:2").await;
    job.ends("kafka-marks-read:skip").await;
    assert!(found(&job).starts_with("0 of 800 rows are lost, 100 repeated"), "{}", found(&job));

    for (output, fault) in [(Output::Redis, "redis-write:skip"), (Output::Files, "files-entry-write:skip")] {
        let job = Job::new(&input, dir.path(), output).await;
        job.ends(fault).await;
        assert!(found(&job).contains("lost"), "{fault}: {}", found(&job));
    }
}
