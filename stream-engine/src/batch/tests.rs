//! The runner over Kafka in memory: what happens to records when jobs start, fail, stop, crash and go on.

use std::{sync::Arc, time::Duration};

use object_store::memory::InMemory;
use service_kit::kafka::TopicPartition;
use service_kit::offsets::OffsetCommit;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::clock::ManualClock;
use super::fake::{CountingProgram, FakeKafka, FencedSink, spec};
use super::runner::{Mode, Runner};
use super::{Bounded, Program, SourceKind, Startup};
use crate::checkpoint::Checkpoint;
use crate::job::{JobSettings, JobState, Monitor};
use crate::source::{Cluster, OffsetPlace};

const INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for a condition; far above what any of them takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A job under test.
struct Running {
    monitor: Arc<Monitor>,
    mode: watch::Sender<Mode>,
    clock: ManualClock,
    tasks: TaskTracker,
    done: JoinHandle<anyhow::Result<()>>,
}

fn settings() -> JobSettings {
    JobSettings { batch_interval: INTERVAL, retry_backoff: Duration::from_millis(1), ..JobSettings::default() }
}

fn start(kafka: &FakeKafka, checkpoint: &Checkpoint, settings: JobSettings, program: impl Program + 'static) -> Running {
    start_at(1_000_000, kafka, checkpoint, settings, program)
}

/// A later start: time has passed.
fn start_again(kafka: &FakeKafka, checkpoint: &Checkpoint, settings: JobSettings, program: impl Program + 'static) -> Running {
    start_at(2_000_000, kafka, checkpoint, settings, program)
}

fn start_at(now_ms: i64, kafka: &FakeKafka, checkpoint: &Checkpoint, settings: JobSettings, program: impl Program + 'static) -> Running {
    let clock = ManualClock::at(now_ms);
    let monitor = Arc::new(Monitor::new("job", 1000, 100, checkpoint.location(), Arc::new(clock.clone())));
    let (mode, receiver) = watch::channel(Mode::Run);
    let tasks = TaskTracker::new();
    let runner = Runner {
        job: "job".into(),
        settings,
        program: Box::new(program),
        checkpoint: checkpoint.clone(),
        cluster: Arc::new(kafka.clone()),
        clock: Arc::new(clock.clone()),
        monitor: monitor.clone(),
        mode: receiver,
        tasks: tasks.clone(),
        share: None,
    };
    Running { monitor, mode, clock, tasks, done: tokio::spawn(runner.run()) }
}

impl Running {
    async fn until(&self, fits: impl FnMut(&crate::job::JobView) -> bool) {
        tokio::time::timeout(PATIENCE, self.monitor.wait_for(fits)).await.expect("the condition did not come about");
    }

    /// Moves the clock one interval and waits for that batch.
    async fn tick(&self) {
        // Restored totals are there once the job runs.
        self.until(|view| view.state == JobState::Running).await;
        self.tick_waiting().await;
    }

    async fn tick_waiting(&self) {
        let before = self.monitor.view().totals.batches;
        self.asleep().await;
        self.clock.advance(INTERVAL);
        self.until(|view| view.totals.batches > before).await;
    }

    /// Waits until the cutter sleeps.
    async fn asleep(&self) {
        let sleeping = async {
            while self.clock.sleepers() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, sleeping).await.expect("the cutter never slept");
    }

    async fn end(self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.done).await.expect("the job did not end").unwrap()
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.mode.send_replace(Mode::Stop);
        self.end().await
    }
}

fn counting(startup: Startup, bounded: Option<Bounded>, sink: &FencedSink) -> CountingProgram {
    CountingProgram::new(spec(startup, bounded), sink)
}

#[tokio::test]
async fn batches_follow_each_other_without_gap_or_overlap() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 2), FencedSink::default(), Checkpoint::in_memory());
    kafka.send("t", 0, "before");
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    kafka.send("t", 0, "a");
    kafka.send("t", 1, "b");
    job.tick().await;
    job.tick().await; // nothing new: an empty batch
    job.stop().await.unwrap();
    let state = sink.state();
    assert_eq!(state.effects, kafka.all("t"));
    assert_eq!(
        state.batches.iter().map(|batch| (batch.id, batch.time_ms)).collect::<Vec<_>>(),
        [(0, 1_001_000), (1, 1_002_000), (2, 1_003_000)]
    );
    assert_eq!(state.batches[2].count(), 0);
}

#[tokio::test]
async fn latest_begins_after_what_is_there_and_keeps_that_place() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    kafka.send("t", 0, "old");
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Latest, None, &sink));
    job.until(|view| view.state == JobState::Running).await;
    // Stopped before its first batch: what comes now must not be skipped by the next start.
    job.stop().await.unwrap();
    kafka.send("t", 0, "new");
    let job = start_again(&kafka, &checkpoint, settings(), counting(Startup::Latest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects.keys().collect::<Vec<_>>(), ["t-0@1"]);
}

#[tokio::test]
async fn a_bounded_job_reads_everything_at_once_and_finishes_and_stays_finished() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 3), FencedSink::default(), Checkpoint::in_memory());
    (0..30).for_each(|n| kafka.send("t", n % 3, "x"));
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Earliest, Some(Bounded::Latest), &sink));
    let monitor = job.monitor.clone();
    job.end().await.unwrap();
    assert_eq!(monitor.state(), JobState::Finished);
    assert_eq!(sink.state().effects, kafka.all("t"));
    assert_eq!(sink.state().lasts, [0]);
    let everything = kafka.all("t");
    kafka.send("t", 0, "later");
    start_again(&kafka, &checkpoint, settings(), counting(Startup::Earliest, Some(Bounded::Latest), &sink)).end().await.unwrap();
    assert_eq!(sink.state().effects, everything);
}

#[tokio::test]
async fn a_bounded_job_over_an_empty_topic_runs_one_last_batch() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, Some(Bounded::Latest), &sink)).end().await.unwrap();
    assert_eq!(sink.state().lasts, [0]);
}

#[tokio::test]
async fn max_rate_per_partition_bounds_every_batch() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 2), FencedSink::default());
    (0..25).for_each(|_| kafka.send("t", 0, "x"));
    kafka.send("t", 1, "x");
    let settings = JobSettings { max_rate_per_partition: Some(10), ..settings() };
    let job = start(&kafka, &Checkpoint::in_memory(), settings, counting(Startup::Earliest, Some(Bounded::Latest), &sink));
    job.until(|view| view.totals.batches == 1).await; // bounded: at once
    job.tick().await;
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.end().await.unwrap();
    let counts: Vec<u64> = sink.state().batches.iter().map(|batch| batch.count()).collect();
    assert_eq!(counts, [11, 10, 5]);
}

#[tokio::test]
async fn a_failed_batch_is_run_again_from_the_state_before_it() {
    for fail_after_effect in [false, true] {
        let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
        let mut program = counting(Startup::Earliest, None, &sink);
        program.fail_after_effect = fail_after_effect;
        *program.failures.lock() = vec![1, 1, 1];
        let job = start(&kafka, &Checkpoint::in_memory(), settings(), program);
        for _ in 0..3 {
            kafka.send("t", 0, "x");
            job.tick().await;
        }
        let view = job.monitor.batch(1_002_000).unwrap();
        assert_eq!((view.attempt, view.error.is_some()), (3, true));
        assert_eq!(job.monitor.view().error, None);
        job.stop().await.unwrap();
        assert_eq!(sink.state().effects, kafka.all("t"));
        assert_eq!(sink.state().totals.values().copied().collect::<Vec<_>>(), [1, 2, 3], "state is not counted twice");
    }
}

#[tokio::test]
async fn a_batch_that_keeps_failing_fails_the_job_with_its_error() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    kafka.send("t", 0, "x");
    let program = counting(Startup::Earliest, None, &sink);
    *program.failures.lock() = vec![0; 4];
    let job = start(&kafka, &checkpoint, JobSettings { retry_attempts: 3, ..settings() }, program);
    job.asleep().await;
    job.clock.advance(INTERVAL);
    let monitor = job.monitor.clone();
    let error = format!("{:#}", job.end().await.unwrap_err());
    assert!(error.contains("batch 0 failed 4 times") && error.contains("told to fail"), "{error}");
    assert_eq!(monitor.state(), JobState::Failed);
    assert!(monitor.view().error.unwrap().contains("told to fail"));
    // The next start runs the same batch again.
    let job = start_again(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.until(|view| view.totals.batches == 1).await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
}

#[tokio::test]
async fn a_broker_that_is_away_is_waited_for_and_loses_nothing() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    kafka.set_away(true);
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, None, &sink));
    job.until(|view| view.error.as_ref().is_some_and(|error| error.contains("fake:9092"))).await;
    assert_eq!(job.monitor.state(), JobState::Starting);
    kafka.set_away(false);
    kafka.send("t", 0, "a");
    job.until(|view| view.state == JobState::Running && view.error.is_none()).await;
    job.tick().await;
    // Away between two batches.
    kafka.set_away(true);
    kafka.send("t", 0, "b");
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.until(|view| view.error.is_some()).await;
    assert!(kafka.refused() > 0);
    kafka.set_away(false);
    job.until(|view| view.totals.batches == 2).await;
    assert_eq!(job.monitor.view().error, None);
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
}

#[tokio::test]
async fn an_unknown_topic_fails_the_job_at_once() {
    let (kafka, sink) = (FakeKafka::default(), FencedSink::default());
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, None, &sink));
    let error = format!("{:#}", job.end().await.unwrap_err());
    assert!(error.contains("topic \"t\" does not exist"), "{error}");
}

#[tokio::test]
async fn new_partitions_are_read_from_their_first_record() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Latest, None, &sink));
    job.tick().await;
    kafka.add_partitions("t", 1..3);
    kafka.send("t", 2, "x");
    job.tick().await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
}

#[tokio::test]
async fn drain_reads_to_the_end_and_the_next_start_goes_on_with_what_is_closed() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    let limited = JobSettings { max_rate_per_partition: Some(1), ..settings() };
    let job = start(&kafka, &checkpoint, limited.clone(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    (0..10).for_each(|_| kafka.send("t", 0, "x"));
    job.mode.send_replace(Mode::Drain);
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.end().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"), "a drain ignores the rate");
    assert_eq!(sink.state().lasts, [1]);
    kafka.send("t", 0, "y");
    let job = start_again(&kafka, &checkpoint, limited, counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
    assert_eq!(sink.state().totals[&2], 11, "what was emitted is remembered");
}

#[tokio::test]
async fn a_drain_that_comes_while_the_job_starts_is_carried_out() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    kafka.set_away(true);
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, None, &sink));
    job.until(|view| view.error.is_some()).await;
    job.mode.send_replace(Mode::Drain);
    kafka.set_away(false);
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.end().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
    assert_eq!(sink.state().lasts, [0]);
}

#[tokio::test]
async fn a_deleted_topic_is_waited_for_and_one_made_anew_is_not_taken_for_it() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    let refill = |kafka: &FakeKafka| {
        kafka.add_partitions("t", 0..1);
        (0..25).for_each(|_| kafka.send("t", 0, "new"));
    };
    (0..10).for_each(|_| kafka.send("t", 0, "x"));
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    kafka.delete_topic("t");
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.until(|view| view.state == JobState::Waiting && view.error.as_ref().is_some_and(|error| error.contains("\"t\" does not exist")))
        .await;
    refill(&kafka);
    let error = job.end().await.unwrap_err().to_string();
    for part in ["source `logs`", "topic `t` was deleted and created again", "failOnDataLoss=false"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(sink.state().effects.len(), 10, "nothing of the new topic was read");

    // The same after a start, and nothing is skipped when the loss is accepted.
    let error = start_again(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    assert!(error.end().await.unwrap_err().to_string().contains("created again"));
    let accepting = JobSettings { fail_on_data_loss: false, ..settings() };
    let job = start_again(&kafka, &checkpoint, accepting, counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    let times = |from: i64, until: i64, times: u64| (from..until).map(move |n| (format!("t-0@{n}"), times));
    let wanted: std::collections::BTreeMap<String, u64> = times(0, 10, 2).chain(times(10, 25, 1)).collect();
    assert_eq!(sink.state().effects, wanted);
    // The checkpoint knows the new topic now.
    let job = start_at(3_000_000, &kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, wanted);
}

#[tokio::test]
async fn a_topic_that_stays_away_fails_the_job_in_the_end() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let settings = JobSettings { topic_missing_timeout: Duration::from_millis(150), ..settings() };
    let job = start(&kafka, &Checkpoint::in_memory(), settings, counting(Startup::Earliest, None, &sink));
    job.tick().await;
    kafka.delete_topic("t");
    job.asleep().await;
    job.clock.advance(INTERVAL);
    job.until(|view| view.state == JobState::Waiting).await;
    job.clock.advance(Duration::from_millis(150));
    let error = format!("{:#}", job.end().await.unwrap_err());
    assert!(error.contains("missing for 150ms") && error.contains("topic.missing.timeout") && error.contains("\"t\""), "{error}");
}

#[tokio::test]
async fn what_one_part_waits_for_is_shown_until_that_part_goes_on() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    assert!(job.monitor.waiting("totals", "not authorised".into()));
    assert!(!job.monitor.waiting("totals", "not authorised".into()), "each cause is told once");
    assert!(job.monitor.waiting("totals", "Redis at redis://x does not answer".into()), "another cause is told too");
    job.tick_waiting().await;
    let view = job.monitor.view();
    assert_eq!(view.state, JobState::Waiting, "the source's success is not the output's");
    let error = view.error.unwrap();
    assert!(error.starts_with("waiting: Redis at redis://x does not answer (since ") && error.ends_with(" UTC)"), "{error}");
    assert!(job.monitor.not_waiting("totals"));
    assert_eq!((job.monitor.view().state, job.monitor.view().error), (JobState::Running, None));
    assert!(job.monitor.view().last_batch_at_ms.is_some());
    job.stop().await.unwrap();
}

#[tokio::test]
async fn how_far_a_job_has_caught_up_stands_still_while_it_is_behind() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 2), FencedSink::default());
    let send = |count: usize| (0..count).for_each(|_| kafka.send("t", 0, "x"));
    let settings = JobSettings { max_rate_per_partition: Some(10), ..settings() };
    send(25);
    let job = start(&kafka, &Checkpoint::in_memory(), settings, counting(Startup::Earliest, None, &sink));
    let began = job.monitor.view().caught_up_ms;
    let mut seen = Vec::new();
    for tick in 0..9 {
        // What comes in between is not yet there when the batch is cut that reads what came before.
        send(if tick == 4 { 15 } else { 0 });
        job.tick().await;
        job.until(|view| view.totals.batches == tick + 1 && view.active.is_empty()).await;
        seen.push((job.monitor.view().caught_up_ms - began) / 1000);
    }
    assert_eq!(seen, [0, 0, 3, 4, 4, 6, 7, 8, 9]);
    job.stop().await.unwrap();
}

#[tokio::test]
async fn pause_cuts_nothing_until_resume() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.mode.send_replace(Mode::Pause);
    job.until(|view| view.state == JobState::Paused).await;
    kafka.send("t", 0, "x");
    job.clock.advance(INTERVAL * 5);
    assert_eq!(job.monitor.view().totals.batches, 1);
    job.mode.send_replace(Mode::Run);
    job.until(|view| view.totals.batches == 2).await;
    job.stop().await.unwrap();
    let state = sink.state();
    assert_eq!(state.batches.last().unwrap().time_ms, 1_006_000, "one batch covers the missed time");
}

#[tokio::test]
async fn offsets_removed_by_retention_are_an_error_or_skipped_when_that_is_accepted() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    kafka.send("t", 0, "x");
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    (0..9).for_each(|_| kafka.send("t", 0, "x"));
    kafka.remove_before("t", 0, 5);
    let job = start_again(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.asleep().await;
    job.clock.advance(INTERVAL);
    let error = format!("{:#}", job.end().await.unwrap_err());
    assert!(["t-0", "offset 1", "begins at 5", "failOnDataLoss=false"].iter().all(|part| error.contains(part)), "{error}");
    let lossy = JobSettings { fail_on_data_loss: false, ..settings() };
    let job = start_again(&kafka, &checkpoint, lossy, counting(Startup::Earliest, None, &sink));
    job.tick().await;
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects.len(), 6, "the first, and 5 to 9");
}

#[tokio::test]
async fn another_job_another_program_and_another_process_are_refused() {
    let (kafka, sink, checkpoint) = (FakeKafka::with_topic("t", 1), FencedSink::default(), Checkpoint::in_memory());
    let job = start(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    job.tick().await;
    // A second process on the same checkpoint takes it over.
    let other = start_again(&kafka, &checkpoint, settings(), counting(Startup::Earliest, None, &sink));
    other.tick().await;
    job.asleep().await;
    job.clock.advance(INTERVAL);
    let error = format!("{:#}", job.end().await.unwrap_err());
    assert!(error.contains("another process"), "{error}");
    other.stop().await.unwrap();

    let mut changed = counting(Startup::Earliest, None, &sink);
    changed.fingerprint = serde_json::json!({ "program": "sum" });
    let error = format!("{:#}", start_again(&kafka, &checkpoint, settings(), changed).end().await.unwrap_err());
    assert!(error.contains(r#"/program: was "count", is "sum""#), "{error}");
}

#[tokio::test]
async fn group_offsets_are_mirrored_and_a_fresh_job_begins_at_them() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 2), FencedSink::default());
    (0..4).for_each(|n| kafka.send("t", n % 2, "x"));
    kafka.set_committed("g", "t", 0, 1);
    let mut program = counting(Startup::GroupOffsets, None, &sink);
    program.spec.group = Some("g".into());
    let SourceKind::Kafka(config) = &mut program.spec.kind else { panic!("not Kafka") };
    config.set("auto.offset.reset", "earliest");
    let job = start(&kafka, &Checkpoint::in_memory(), settings(), program);
    job.tick().await;
    assert_eq!(sink.state().effects.keys().collect::<Vec<_>>(), ["t-0@1", "t-1@0", "t-1@1"]);
    let mirrored = async {
        while kafka.committed("g", "t", 0) != Some(2) || kafka.committed("g", "t", 1) != Some(2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, mirrored).await.expect("offsets were not mirrored");
    let tasks = job.tasks.clone();
    job.stop().await.unwrap();
    tasks.close();
    tokio::time::timeout(PATIENCE, tasks.wait()).await.expect("the job left tasks behind");
}

fn in_store(store: &str, previous: &str) -> JobSettings {
    let mut settings = settings();
    settings.apply("offsets.store", store).unwrap();
    settings.apply("offsets.store.previous", previous).unwrap();
    settings
}

/// A first start at the offsets of group `g`, or else at the earliest.
fn from_group(sink: &FencedSink) -> CountingProgram {
    let mut program = counting(Startup::GroupOffsets, None, sink);
    program.spec.group = Some("g".into());
    let SourceKind::Kafka(config) = &mut program.spec.kind else { panic!("not Kafka") };
    config.set("auto.offset.reset", "earliest");
    program
}

/// One batch over what is there, a stop, and the end of everything that the job had begun.
async fn one_batch(kafka: &FakeKafka, settings: JobSettings, program: CountingProgram) {
    let job = start(kafka, &Checkpoint::in_memory(), settings, program);
    job.tick().await;
    let tasks = job.tasks.clone();
    job.stop().await.unwrap();
    tasks.close();
    tokio::time::timeout(PATIENCE, tasks.wait()).await.expect("the job left tasks behind");
}

#[tokio::test]
async fn jobs_without_a_checkpoint_go_on_from_their_store_and_from_the_one_before() {
    let (kafka, sink, folder) = (FakeKafka::with_topic("t", 2), FencedSink::default(), tempfile::tempdir().unwrap());
    let store = |name: &str| format!("sled:{}", folder.path().join(name).display());
    let (one, two) = (store("one"), store("two"));
    // Back in the first store, what it holds is older than what the one before holds.
    let moves = [(&*one, ""), (&*one, ""), (&*two, &*one), ("kafka", &*two), (&*one, "kafka"), (&*two, &*one)];
    for (store, previous) in moves {
        (0..3).for_each(|n| kafka.send("t", n % 2, "x"));
        one_batch(&kafka, in_store(store, previous), from_group(&sink)).await;
        assert_eq!(sink.state().effects, kafka.all("t"), "{store} after {previous}");
    }
    assert_eq!(kafka.committed("g", "t", 0), Some(8), "the stores that are not named are left alone");
}

#[tokio::test]
async fn with_checkpoint_as_the_store_nothing_is_written_beside_it() {
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    kafka.send("t", 0, "x");
    one_batch(&kafka, in_store("checkpoint", ""), from_group(&sink)).await;
    assert_eq!((sink.state().effects.len(), kafka.committed("g", "t", 0)), (1, None));
}

#[tokio::test]
async fn offsets_of_a_topic_that_was_made_anew_are_not_begun_at() {
    let (kafka, sink, folder) = (FakeKafka::with_topic("t", 1), FencedSink::default(), tempfile::tempdir().unwrap());
    let store = format!("sled:{}", folder.path().display());
    kafka.send("t", 0, "old");
    one_batch(&kafka, in_store(&store, ""), from_group(&sink)).await;
    kafka.delete_topic("t");
    kafka.add_partitions("t", 0..1);
    (0..3).for_each(|_| kafka.send("t", 0, "new"));
    let sink = FencedSink::default();
    one_batch(&kafka, in_store(&store, ""), from_group(&sink)).await;
    assert_eq!(sink.state().effects, kafka.all("t"));
}

#[tokio::test]
async fn the_store_shows_where_the_job_is_whoever_moves_the_group() {
    let (kafka, sink, folder) = (FakeKafka::with_topic("t", 1), FencedSink::default(), tempfile::tempdir().unwrap());
    let settings = in_store(&format!("sled:{}", folder.path().display()), "");
    let OffsetPlace::Store(address) = &settings.offsets.store else { panic!("no store") };
    let store = kafka.offsets(address).await.unwrap();
    let at = |offset| [OffsetCommit { partition: TopicPartition::new("t", 0), offset, metadata: String::new() }];
    let reaches = async |wanted: i64| {
        let reached = async {
            while store.get("g", None).await.unwrap().offsets.values().next().map(|stored| stored.offset) != Some(wanted) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("the store never said {wanted}"));
    };
    // Somebody had read further; this job begins at the first record, and says so.
    store.commit("g", 0, &at(50)).await.unwrap();
    let mut program = counting(Startup::Earliest, None, &sink);
    program.spec.group = Some("g".into());
    kafka.send("t", 0, "x");
    let job = start(&kafka, &Checkpoint::in_memory(), settings.clone(), program);
    job.tick().await;
    reaches(1).await;
    assert_eq!(store.get("g", None).await.unwrap().epoch, 1);
    // Set back, and set ahead, while the job runs.
    store.reset("g", &at(0)).await.unwrap();
    kafka.send("t", 0, "x");
    job.tick().await;
    reaches(2).await;
    store.reset("g", &at(4)).await.unwrap();
    kafka.send("t", 0, "x");
    job.tick().await;
    (0..2).for_each(|_| kafka.send("t", 0, "x"));
    job.tick().await;
    reaches(5).await;
    assert_eq!(store.get("g", None).await.unwrap().epoch, 3, "a running job fences nobody");
    job.stop().await.unwrap();
    assert_eq!(sink.state().effects, kafka.all("t"));
}

#[tokio::test]
async fn the_checkpoint_keeps_as_many_batches_as_it_is_told() {
    let store = Arc::new(InMemory::new());
    let checkpoint = Checkpoint::over(store.clone());
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let job = start(&kafka, &checkpoint, JobSettings { checkpoint_retained: 3, ..settings() }, counting(Startup::Earliest, None, &sink));
    for _ in 0..7 {
        job.tick().await;
    }
    job.stop().await.unwrap();
    use futures::TryStreamExt;
    use object_store::ObjectStore;
    let mut names: Vec<String> = store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    names.retain(|name| !name.starts_with("owner/"));
    names.sort();
    assert_eq!(names, ["commits/4", "commits/5", "commits/6", "metadata", "offsets/4", "offsets/5", "offsets/6"]);
}

#[tokio::test]
async fn a_slow_batch_shows_as_scheduling_delay_of_those_behind_it() {
    struct Slow(CountingProgram, Arc<tokio::sync::Semaphore>);
    #[async_trait::async_trait]
    impl Program for Slow {
        fn sources(&self) -> Vec<super::SourceSpec> {
            self.0.sources()
        }
        fn plan(&self) -> String {
            self.0.plan()
        }
        fn fingerprint(&self) -> serde_json::Value {
            self.0.fingerprint()
        }
        async fn run(&mut self, batch: &super::BatchContext, input: Vec<super::PartitionInput>) -> anyhow::Result<super::BatchOutcome> {
            self.1.acquire().await?.forget();
            self.0.run(batch, input).await
        }
        fn snapshot(&mut self) -> anyhow::Result<bytes::Bytes> {
            self.0.snapshot()
        }
        fn restore(&mut self, snapshot: bytes::Bytes) -> anyhow::Result<()> {
            self.0.restore(snapshot)
        }
    }
    let (kafka, sink) = (FakeKafka::with_topic("t", 1), FencedSink::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let program = Slow(counting(Startup::Earliest, None, &sink), gate.clone());
    let job = start(&kafka, &Checkpoint::in_memory(), JobSettings { queue_batches_max: 2, ..settings() }, program);
    for n in 1..=3 {
        job.asleep().await;
        job.clock.advance(INTERVAL);
        job.until(|view| view.active.len() == n).await;
    }
    gate.add_permits(1);
    job.until(|view| view.totals.batches == 1).await;
    gate.add_permits(2);
    job.until(|view| view.totals.batches == 3).await;
    let delays = [1_001_000, 1_002_000, 1_003_000].map(|time_ms| job.monitor.batch(time_ms).unwrap().scheduling_delay_ms());
    assert_eq!(delays, [Some(0), Some(1000), Some(0)]);
    assert_eq!(job.monitor.batch(1_001_000).unwrap().processing_ms(), Some(2000));
    job.stop().await.unwrap();
}
