//! The registry over Kafka in memory: jobs across restarts of the engine, savepoints, defaults.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::{sync::Arc, time::Duration};

use proto::ErrorKind;
use tokio_util::task::TaskTracker;

use super::JobState;
use super::registry::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::FakeKafka;
use crate::checkpoint::Checkpoint;

const PATIENCE: Duration = Duration::from_secs(20);
const SQL: &str = "SET 'batch.interval' = '10ms';
    CREATE TABLE logs (line STRING) WITH ('connector' = 'kafka', 'topic' = 't', 'properties.bootstrap.servers' = 'fake:9092',
        'scan.startup.mode' = 'earliest-offset', 'format' = 'raw');
    CREATE TABLE seen (line STRING) WITH ('connector' = 'console');
    INSERT INTO seen SELECT line FROM logs WHERE line = 'never';";

#[test]
fn names_are_folders_and_labels() {
    for good in ["a", "nginx-stats", "A.b_c-9", &"x".repeat(128)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in ["", ".", "..", "a/b", "a b", "ä", "a\n", "<b>", &"x".repeat(129)] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
}

/// An engine as it is after a start: jobs that were running run again.
async fn engine(kafka: &FakeKafka, store: &Checkpoint) -> Registry {
    let cluster = Arc::new(kafka.clone());
    let registry = Registry::new(Some(store.clone()), 3, BTreeMap::new(), cluster, Arc::new(SystemClock), TaskTracker::new());
    registry.resume().await.unwrap();
    registry
}

fn named(name: &str) -> Submission {
    Submission { name: name.into(), sql: SQL.into(), ..Submission::default() }
}

async fn read(registry: &Registry, name: &str, rows: u64) {
    let job = registry.job(name).unwrap();
    let read = job.monitor.wait_for(|view| view.totals.rows_in == rows && view.state == JobState::Running);
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{:?}", job.monitor.view()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_engine_goes_on_with_its_jobs_and_leaves_stopped_ones_alone() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    let first = engine(&kafka, &store).await;
    first.submit(named("job")).await.unwrap();
    read(&first, "job", 3).await;
    first.close().await;
    assert_eq!(first.job("job").unwrap().monitor.state(), JobState::Finished);

    kafka.send("t", 0, "y");
    let second = engine(&kafka, &store).await;
    read(&second, "job", 4).await; // totals go on, nothing is read twice
    let stopped = second.stop("job", false, PATIENCE).await.unwrap();
    assert_eq!(stopped.monitor.state(), JobState::Finished);

    let third = engine(&kafka, &store).await;
    let listed = third.job("job").unwrap();
    assert_eq!((listed.monitor.state(), listed.definition.as_str()), (JobState::Finished, SQL));
    // Submitted again, it goes on where it was.
    third.submit(named("job")).await.unwrap();
    read(&third, "job", 4).await;
    third.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_submissions_are_refused_and_leave_nothing_behind() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    let registry = engine(&kafka, &store).await;
    registry.submit(named("job")).await.unwrap();
    let refused = async |submission: Submission| registry.submit(submission).await.err().unwrap();
    assert_eq!(refused(named("job")).await.kind, ErrorKind::AlreadyExists);
    assert_eq!(refused(named("a/b")).await.kind, ErrorKind::Invalid);
    let wrong = refused(Submission { sql: SQL.replace("SELECT line", "SELECT lien"), ..named("wrong") }).await;
    assert!(wrong.kind == ErrorKind::Invalid && wrong.message.contains("line 5"), "{wrong}");
    let place = refused(Submission { checkpoint: "s3://b/x".into(), ..named("place") }).await;
    assert!(place.kind == ErrorKind::Invalid && place.message.contains("s3"), "{place}");
    let nothing = refused(Submission { from_savepoint: "memory:///registry-nothing".into(), ..named("nothing") }).await;
    assert_eq!(nothing.kind, ErrorKind::NotFound);
    let (job, plan, _) = registry.submit(Submission { dry_run: true, ..named("dry") }).await.unwrap();
    assert!(job.is_none() && !plan.is_empty());
    assert_eq!(registry.jobs().iter().map(|job| job.name.clone()).collect::<Vec<_>>(), ["job"]);
    for name in ["two", "three"] {
        registry.submit(named(name)).await.unwrap();
    }
    assert_eq!(refused(named("four")).await.kind, ErrorKind::LimitExceeded);
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_starts_from_a_savepoint_with_the_state_of_then() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    let registry = engine(&kafka, &store).await;
    registry.submit(named("job")).await.unwrap();
    read(&registry, "job", 3).await;
    let target = "memory:///registry-savepoint";
    let (place, _) = registry.savepoint("job", target, PATIENCE).await.unwrap();
    assert_eq!(place, target);
    assert_eq!(registry.savepoint("job", target, PATIENCE).await.err().unwrap().kind, ErrorKind::AlreadyExists);
    kafka.send("t", 0, "y");
    read(&registry, "job", 4).await;
    let from = |name: &str| Submission { from_savepoint: target.into(), ..named(name) };
    registry.submit(from("fork")).await.unwrap();
    read(&registry, "fork", 4).await; // three from the savepoint, one read after it
    registry.stop("job", false, PATIENCE).await.unwrap();
    // Onto a checkpoint in use it is refused: that one is further.
    assert_eq!(registry.submit(from("job")).await.err().unwrap().kind, ErrorKind::Conflict);
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_and_resume_by_name_or_all_at_once() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    let registry = engine(&kafka, &store).await;
    registry.submit(named("job")).await.unwrap();
    read(&registry, "job", 0).await;
    assert_eq!(registry.pause("", true).unwrap(), ["job"]);
    let job = registry.job("job").unwrap();
    tokio::time::timeout(PATIENCE, job.monitor.wait_for(|view| view.state == JobState::Paused)).await.unwrap();
    kafka.send("t", 0, "x");
    assert_eq!(registry.pause("job", false).unwrap(), ["job"]);
    read(&registry, "job", 1).await;
    assert_eq!(registry.pause("none", true).err().unwrap().kind, ErrorKind::NotFound);
    registry.stop("job", false, PATIENCE).await.unwrap();
    assert_eq!(registry.pause("job", true).err().unwrap().kind, ErrorKind::Conflict);
}
#[tokio::test(flavor = "multi_thread")]
async fn the_engines_settings_hold_where_the_job_has_none() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    let settings = [("batch.interval", "70ms"), ("checkpoint.retained", "7"), ("table.exec.source.idle-timeout", "3 s")];
    let defaults = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let cluster = Arc::new(kafka.clone());
    let registry = Registry::new(Some(store), 3, defaults, cluster, Arc::new(SystemClock), TaskTracker::new());
    registry.submit(named("own-interval")).await.unwrap();
    let without = Submission { sql: SQL.replace("SET 'batch.interval' = '10ms';", ""), ..named("no-interval") };
    registry.submit(without).await.unwrap();
    for (name, interval) in [("own-interval", 10), ("no-interval", 70)] {
        let job = registry.job(name).unwrap();
        assert_eq!((job.settings.batch_interval, job.settings.checkpoint_retained), (Duration::from_millis(interval), 7), "{name}");
        assert_eq!(job.monitor.view().batch_interval_ms, interval, "{name}");
    }
    registry.close().await;
}
