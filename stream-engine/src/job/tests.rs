//! The registry over Kafka in memory: jobs across restarts of the engine, savepoints, defaults.

use std::collections::BTreeMap;
use std::{sync::Arc, time::Duration};

use proto::ErrorKind;
use service_kit::Control as _;
use tokio_util::task::TaskTracker;

use super::JobState;
use super::registry::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::FakeKafka;
use crate::checkpoint::Checkpoint;
use crate::commit::{Commit, Metadata};
use crate::control::EngineControl;

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
    let registry = Registry::new(Some(store.clone()), 3, BTreeMap::new(), cluster, Arc::new(SystemClock), TaskTracker::new(), None);
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
    let place = refused(Submission { checkpoint: "gs://b/x".into(), ..named("place") }).await;
    assert!(place.kind == ErrorKind::Invalid && place.message.contains("`gs`"), "{place}");
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
    // Onto a checkpoint in use it is refused: that one is further. It stays as it is, also what another job keeps.
    let at = |name: &str| store.child(name);
    let before = (kept(&at("job")).await, kept(&at("fork")).await);
    let refused = registry.submit(from("job")).await.err().unwrap();
    assert!(
        refused.kind == ErrorKind::Conflict && refused.message.contains("never replaces") && refused.message.contains("job delete job"),
        "{refused}"
    );
    let onto = Submission { checkpoint: "memory:///registry-onto".into(), ..from("onto") };
    let other = store.elsewhere(&onto.checkpoint).unwrap();
    at("job").copy_to(&other, &before.0.0, &before.0.1, b"").await.unwrap();
    let held = kept(&other).await;
    registry.stop("fork", false, PATIENCE).await.unwrap();
    let forked = kept(&at("fork")).await;
    let from_fork = "memory:///registry-forked";
    registry.savepoint("fork", from_fork, PATIENCE).await.unwrap();
    assert_eq!(registry.submit(Submission { from_savepoint: from_fork.into(), ..onto }).await.err().unwrap().kind, ErrorKind::Conflict);
    assert_eq!(registry.savepoint("fork", "memory:///registry-onto", PATIENCE).await.err().unwrap().kind, ErrorKind::AlreadyExists);
    assert_eq!((kept(&at("job")).await, kept(&at("fork")).await, kept(&other).await), (before.0, forked, held));
    registry.close().await;
}

/// What a checkpoint holds, but for the state.
async fn kept(checkpoint: &Checkpoint) -> (Metadata, Commit) {
    let loaded = checkpoint.load().await.unwrap();
    (loaded.metadata.unwrap(), loaded.commit.unwrap().0)
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_are_taken_used_listed_and_deleted_by_name() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    let registry = engine(&kafka, &store).await;
    registry.submit(named("job")).await.unwrap();
    read(&registry, "job", 3).await;
    let (place, batch) = registry.savepoint("job", "before", PATIENCE).await.unwrap();
    assert_eq!(place, store.child("job").savepoint("before").location());
    let twice = registry.savepoint("job", "before", PATIENCE).await.err().unwrap();
    assert!(twice.kind == ErrorKind::AlreadyExists && twice.message.contains("choose another name"), "{twice}");
    kafka.send("t", 0, "y");
    read(&registry, "job", 4).await;
    let (_, number) = registry.savepoint("job", "", PATIENCE).await.unwrap();
    let names = async || registry.savepoints("job").await.map(|found| found.into_iter().map(|s| (s.name, s.batch)).collect::<Vec<_>>());
    assert_eq!(names().await.unwrap(), [(number.to_string(), number), ("before".to_owned(), batch)]);

    // Another job's, by its name; one's own, once the checkpoint is gone.
    let from = |name: &str, savepoint: &str| Submission { from_savepoint: savepoint.into(), ..named(name) };
    assert_eq!(registry.submit(from("fork", "before")).await.err().unwrap().kind, ErrorKind::NotFound);
    registry.submit(from("fork", "job/before")).await.unwrap();
    read(&registry, "fork", 4).await;
    registry.stop("job", false, PATIENCE).await.unwrap();
    registry.delete("job", true).await.unwrap();
    assert_eq!(names().await.unwrap().len(), 2, "savepoints stay");
    registry.submit(from("job", "before")).await.unwrap();
    read(&registry, "job", 4).await;

    registry.delete_savepoint("job", "before").await.unwrap();
    assert_eq!(registry.delete_savepoint("job", "before").await.err().unwrap().kind, ErrorKind::NotFound);
    assert_eq!(names().await.unwrap(), [(number.to_string(), number)]);
    assert_eq!(registry.savepoints("nobody").await.err().unwrap().kind, ErrorKind::NotFound);
    assert_eq!(registry.delete_savepoint("job", "../job").await.err().unwrap().kind, ErrorKind::Invalid);
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_job_goes_on_where_it_can_and_is_told_exactly_what_does_not_fit() {
    const TABLES: &str = "SET 'batch.interval' = '10ms';
        CREATE TABLE logs (ts BIGINT, host STRING, event_time AS TO_TIMESTAMP_LTZ(ts, 3),
            WATERMARK FOR event_time AS event_time - INTERVAL '1' SECOND)
            WITH ('connector' = 'kafka', 'topic' = 't', 'properties.bootstrap.servers' = 'fake:9092',
            'scan.startup.mode' = 'earliest-offset', 'format' = 'json');
        CREATE TABLE totals (window_start TIMESTAMP(3), requests BIGINT) WITH ('connector' = 'console');
        CREATE TABLE hosts (window_start TIMESTAMP(3), host STRING, requests BIGINT) WITH ('connector' = 'console');";
    const TOTALS: &str = "INSERT INTO totals SELECT window_start, COUNT(*) AS requests
        FROM TABLE(TUMBLE(TABLE logs, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end;";
    const HOSTS: &str = "INSERT INTO hosts SELECT window_start, host, COUNT(*) AS requests
        FROM TABLE(TUMBLE(TABLE logs, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, host;";
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    let registry = engine(&kafka, &store).await;
    let with = |queries: &str| Submission { sql: format!("{TABLES}{queries}"), ..named("job") };
    let mut rows = 0;
    let mut next_row = || {
        kafka.send("t", 0, &format!(r#"{{"ts":{},"host":"a"}}"#, 1_000 + rows));
        rows += 1;
        rows
    };
    let rows = next_row();
    registry.submit(with(TOTALS)).await.unwrap();
    read(&registry, "job", rows).await;
    registry.stop("job", false, PATIENCE).await.unwrap();

    let (_, _, notes) = registry.submit(with(&format!("{HOSTS}{TOTALS}"))).await.unwrap();
    assert!(notes.len() == 1 && notes[0].contains("/operators/hosts: was not there; it begins without state"), "{notes:?}");
    let rows = next_row();
    read(&registry, "job", rows).await;
    registry.stop("job", false, PATIENCE).await.unwrap();

    // It knows nothing of the hosts, and what is kept for them would be lost.
    let refused = registry.submit(with(TOTALS)).await.err().unwrap();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("/operators/hosts: is not there any more"), "{refused}");
    let longer = format!("{HOSTS}{}", TOTALS.replace("'10'", "'20'"));
    let refused = registry.submit(with(&longer)).await.err().unwrap();
    for part in ["/operators/totals/window/size_ms: was 10000, is 20000", "different program", "job delete job"] {
        assert!(refused.message.contains(part), "without {part}: {refused}");
    }
    assert!(!refused.message.contains("hosts"), "{refused}");
    let dropping = format!("SET 'execution.state-recovery.ignore-unclaimed-state' = 'true'; {TOTALS}");
    let (_, _, notes) = registry.submit(with(&dropping)).await.unwrap();
    assert!(notes.iter().any(|note| note.contains("/operators/hosts: is not there any more; its state is dropped")), "{notes:?}");
    let rows = next_row();
    read(&registry, "job", rows).await;
    registry.stop("job", false, PATIENCE).await.unwrap();
    // From now on the job is the smaller one.
    let (_, _, notes) = registry.submit(with(TOTALS)).await.unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    registry.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_at_its_start_is_refused_and_takes_nobodys_place() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    kafka.add_partitions("u", 0..1);
    let registry = engine(&kafka, &store).await;
    let lost = Submission { sql: SQL.replace("'t'", "'nowhere'"), ..named("lost") };
    let refused = registry.submit(lost).await.err().unwrap();
    assert!(refused.message.contains("\"nowhere\" does not exist") && refused.message.contains("`lost` failed at its start"), "{refused}");
    assert!(registry.jobs().is_empty());

    registry.submit(named("job")).await.unwrap();
    kafka.send("t", 0, "x");
    read(&registry, "job", 1).await;
    let place = "memory:///registry-start";
    registry.savepoint("job", place, PATIENCE).await.unwrap();
    registry.stop("job", false, PATIENCE).await.unwrap();
    let other = Submission { sql: SQL.replace("'t'", "'u'"), ..named("job") };
    let refused = registry.submit(other.clone()).await.err().unwrap();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("different program"), "{refused}");
    assert_eq!(registry.job("job").unwrap().definition, SQL);
    // From a savepoint as well, and the place that was meant for it is free for the right job.
    let fork = Submission { name: "fork".into(), from_savepoint: place.into(), ..other };
    assert!(registry.submit(fork).await.err().unwrap().message.contains("different program"));
    registry.submit(Submission { from_savepoint: place.into(), ..named("fork") }).await.unwrap();
    registry.close().await;
    let next = engine(&kafka, &store).await;
    let definitions: Vec<_> = next.jobs().iter().map(|job| (job.name.clone(), job.definition.clone())).collect();
    assert_eq!(definitions, [("fork".to_owned(), SQL.to_owned()), ("job".to_owned(), SQL.to_owned())]);
    next.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_over_are_deleted_and_count_for_nothing() {
    let (kafka, store) = (FakeKafka::with_topic("t", 1), Checkpoint::in_memory());
    let registry = engine(&kafka, &store).await;
    kafka.send("t", 0, "x");
    let fragile = Submission { sql: format!("SET 'topic.missing.timeout' = '0s'; {SQL}"), ..named("fragile") };
    for name in ["a", "b"] {
        registry.submit(named(name)).await.unwrap();
        read(&registry, name, 1).await;
    }
    registry.submit(fragile).await.unwrap();
    read(&registry, "fragile", 1).await;
    assert_eq!(registry.submit(named("d")).await.err().unwrap().kind, ErrorKind::LimitExceeded);
    assert_eq!(registry.delete("a", true).await.err().unwrap().kind, ErrorKind::Conflict);
    registry.stop("a", true, PATIENCE).await.unwrap();
    let (_, _, notes) = registry.submit(named("d")).await.unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    registry.stop("d", false, PATIENCE).await.unwrap();
    let (_, _, notes) = registry.submit(named("a")).await.unwrap();
    assert!(notes[0].contains("was drained") && notes[0].contains("late"), "{notes:?}");
    for name in ["a", "b"] {
        registry.stop(name, false, PATIENCE).await.unwrap();
    }

    // A failed job is an engine's trouble until somebody has taken note of it.
    let control = EngineControl::new(registry.clone(), crate::config::EngineConfig::default());
    assert_eq!(control.degraded().await, None);
    kafka.delete_topic("t");
    let failed = registry.job("fragile").unwrap();
    tokio::time::timeout(PATIENCE, failed.monitor.wait_for(|view| view.state.is_over())).await.unwrap();
    assert!(control.degraded().await.unwrap().contains("job `fragile` FAILED"));
    registry.stop("fragile", false, PATIENCE).await.unwrap();
    assert_eq!(control.degraded().await, None);
    assert!(failed.monitor.view().error.unwrap().contains("\"t\""), "its error can still be read");

    let place = registry.delete("a", false).await.unwrap();
    assert_eq!(place, store.child("a").location());
    assert!(store.child("a").occupied().await.unwrap().is_some());
    registry.delete("b", true).await.unwrap();
    assert_eq!(store.child("b").occupied().await.unwrap(), None);
    assert_eq!(registry.delete("b", true).await.err().unwrap().kind, ErrorKind::NotFound);
    let names = |registry: &Registry| registry.jobs().iter().map(|job| job.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&registry), ["d", "fragile"]);
    registry.close().await;
    assert_eq!(names(&engine(&kafka, &store).await), ["d", "fragile"]);
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
    let control = EngineControl::new(registry.clone(), crate::config::EngineConfig::default());
    assert_eq!(control.facts().await[0].1, "0 running, 1 paused, 1 in all");
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
    let registry = Registry::new(Some(store), 3, defaults, cluster, Arc::new(SystemClock), TaskTracker::new(), None);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_shared_is_refused_and_says_why() {
    let kafka = FakeKafka::with_topic("t", 1);
    let folder = tempfile::tempdir().unwrap();
    let on_disk = Checkpoint::open(&folder.path().to_string_lossy(), &Default::default()).unwrap();
    let windows = SQL.replace("(line STRING) WITH ('connector' = 'kafka',", "(line STRING, at TIMESTAMP(3) METADATA FROM 'timestamp' VIRTUAL, WATERMARK FOR at AS at) WITH ('connector' = 'kafka', 'scan.bounded.mode' = 'latest-offset',");
    let windows = windows.split("CREATE TABLE seen").next().unwrap().to_owned()
        + "CREATE TABLE seen (n BIGINT) WITH ('connector' = 'console');
           INSERT INTO seen SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE logs, DESCRIPTOR(at), INTERVAL '1' SECOND)) GROUP BY window_start, window_end;";
    let sled = format!("SET 'offsets.store' = 'sled:{}';\n{SQL}", folder.path().join("offsets").display());
    for (store, sql, expected) in [
        (&Checkpoint::in_memory(), SQL, "needs a checkpoint that every worker reaches (--checkpoint)"),
        (&on_disk, &*windows, "table `logs` has an end (`scan.bounded.mode`)"),
        (&on_disk, &*sled, "name another `offsets.store`"),
    ] {
        let registry = engine(&kafka, store).await;
        let submission = Submission { sql: format!("SET 'job.slots' = '2';\n{sql}"), ..named("job") };
        let error = registry.submit(submission).await.err().unwrap();
        assert!(error.message.contains(expected), "{}", error.message);
        assert!(registry.job("job").is_err());
        registry.close().await;
    }
}
