//! Partitions that run apart: nothing is late because another partition was faster, and silence does not hold windows for ever.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::FakeKafka;
use crate::batch::runner::{Mode, Runner};
use crate::checkpoint::Checkpoint;
use crate::job::{JobSettings, Monitor};

const PATIENCE: Duration = Duration::from_secs(60);

fn job(settings: &str) -> String {
    format!(
        "{settings}
         CREATE TABLE t (ms BIGINT, ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts - INTERVAL '0.5' SECOND) WITH ({KAFKA});
         CREATE TABLE s (ws TIMESTAMP(3), n BIGINT) WITH ('connector' = 'console');
         INSERT INTO s SELECT window_start, COUNT(*) FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND))
           GROUP BY window_start, window_end;"
    )
}

fn line(ms: i64) -> String {
    format!(r#"{{"ms":{ms}}}"#)
}

fn rows(partition: i32, times: impl IntoIterator<Item = i64>) -> Lines {
    Lines { partition, lines: times.into_iter().map(line).collect(), behind: false }
}

#[test]
fn a_partition_that_is_silent_for_a_moment_loses_no_row() {
    let mut job = Job::new(&job(""));
    let mut late = 0;
    // By turns, each far ahead of the one before; batches are a second apart.
    for n in 0..30 {
        let times = |partition: i64| if n % 3 == partition { (n / 3 * 3000..n / 3 * 3000 + 3000).step_by(100).collect() } else { vec![] };
        late += job.batch(vec![rows(0, times(0)), rows(1, times(1)), rows(2, times(2))], n == 29).late;
    }
    assert_eq!(late, 0);
    assert_eq!(job.rows().len(), 30, "each window stands once");
    assert!(job.rows().iter().all(|row| row.ends_with(" | 30")), "{:?}", job.rows());
}

#[test]
fn a_partition_without_rows_holds_windows_for_the_timeout_and_no_longer() {
    let text = job("SET 'table.exec.source.idle-timeout' = '4 s'; SET 'batch.interval' = '1 s';");
    let mut job = Job::new(&text);
    for n in 0..4 {
        job.batch(vec![rows(0, [n * 1000]), rows(1, [])], false);
        assert_eq!(job.rows(), Vec::<String>::new(), "after batch {n}");
        // What is known of partitions outlives the process.
        job.restart(&text);
    }
    let outcome = job.batch(vec![rows(0, [4000]), rows(1, [])], false);
    assert_eq!(outcome.watermark_ms, Some(3500));
    assert_eq!(job.rows().len(), 3, "{:?}", job.rows());
    // It comes back: what is behind by now is late, and said.
    assert_eq!(job.batch(vec![rows(0, [5000]), rows(1, [2000, 4100])], false).late, 1);
}

#[test]
fn by_default_a_minute_and_with_zero_for_ever() {
    for (settings, emits) in [("", true), ("SET 'table.exec.source.idle-timeout' = '0 s';", false)] {
        let mut job = Job::new(&job(settings));
        for n in 0..60 {
            job.batch(vec![rows(0, [n * 1000]), rows(1, [])], false);
        }
        assert_eq!(job.rows(), Vec::<String>::new(), "{settings}");
        job.batch(vec![rows(0, [60_000]), rows(1, [])], false);
        assert_eq!(!job.rows().is_empty(), emits, "{settings}");
        job.batch(vec![rows(0, []), rows(1, [])], true);
        assert_eq!(job.rows().len(), 61, "the end emits the rest");
    }
}

#[test]
fn a_bounded_partition_that_was_read_to_its_end_holds_nothing() {
    let text = job("").replace("'format' = 'json'", "'format' = 'json', 'scan.bounded.mode' = 'latest-offset'");
    let mut job = Job::new(&text);
    job.batch(vec![rows(0, [0, 1000]), rows(1, [500])], false);
    job.batch(vec![Lines { behind: true, ..rows(0, [2000, 3000]) }, rows(1, [])], false);
    assert_eq!(job.rows(), ["1970-01-01T00:00:00 | 2", "1970-01-01T00:00:01 | 1"]);
}

/// Runs a job over the cluster until it has read this many rows and has emitted what it can.
async fn run_until(kafka: &FakeKafka, checkpoint: &Checkpoint, text: &str, rows: u64, written: &Written) -> crate::job::JobView {
    let mut compiled = try_compile(text).unwrap();
    compiled.program.outputs[0].sink = Box::new(MemorySink(written.clone(), Guarantee::AtLeastOnce));
    let settings: JobSettings = compiled.settings;
    let monitor = Arc::new(Monitor::new("job", 10, 100, checkpoint.location(), Arc::new(SystemClock)));
    let (mode, receiver) = watch::channel(Mode::Run);
    let runner = Runner {
        job: "job".into(),
        settings,
        program: Box::new(compiled.program),
        checkpoint: checkpoint.clone(),
        cluster: Arc::new(kafka.clone()),
        clock: Arc::new(SystemClock),
        monitor: monitor.clone(),
        mode: receiver,
        tasks: TaskTracker::new(),
        share: None,
    };
    let done = tokio::spawn(runner.run());
    let read = monitor.wait_for(|view| view.totals.rows_in >= rows || view.state.is_over());
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{:?}", monitor.view()));
    mode.send_replace(Mode::Stop);
    tokio::time::timeout(PATIENCE, done).await.unwrap().unwrap().unwrap();
    monitor.view()
}

/// One partition is read ahead of another: its share of a batch reaches further in event time.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_backlog_loses_no_row_of_the_partition_that_is_read_more_slowly() {
    let (kafka, checkpoint, written) = (FakeKafka::with_topic("in", 3), Checkpoint::in_memory(), Written::default());
    // At most 40 records a batch and partition: partition 0 has many rows a second, partition 1 few, partition 2 none.
    let text = job("SET 'batch.interval' = '10 ms'; SET 'spark.streaming.kafka.maxRatePerPartition' = '4000';");
    let send = |from: i64, until: i64| {
        (from..until).step_by(10).for_each(|ms| kafka.send("in", 0, &line(ms)));
        (from..until).step_by(200).for_each(|ms| kafka.send("in", 1, &line(ms)));
    };
    send(0, 2_000);
    let first = run_until(&kafka, &checkpoint, &text, 210, &written).await;
    assert_eq!((first.totals.rows_in, first.totals.late), (210, 0));
    send(2_000, 20_000);
    // Stopped in the middle of the backlog, and gone on with.
    run_until(&kafka, &checkpoint, &text, 800, &written).await;
    let read = run_until(&kafka, &checkpoint, &text, 2_100, &written).await;
    assert_eq!((read.totals.rows_in, read.totals.late), (2_100, 0));
    assert_eq!(written.lock().len(), 0, "partition 2 may still have something to say");

    // A row of partition 2 moves the watermark up to the slowest of the three.
    kafka.send("in", 2, &line(19_990));
    let end = run_until(&kafka, &checkpoint, &text, 2_101, &written).await;
    assert_eq!((end.totals.late, end.watermark_ms), (0, Some(19_800 - 500)));
    let windows: Vec<String> = written.lock().iter().map(|(_, row)| row.join(" | ")).collect();
    assert_eq!(windows.len(), 19, "{windows:?}");
    assert!(windows.iter().all(|row| row.ends_with(" | 105")), "{windows:?}");
}
