//! The pages as a browser gets them, over a registry whose Kafka is in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::{CountingProgram, FakeKafka, FencedSink, spec};
use crate::batch::{Bounded, Startup, runner::Mode};
use crate::checkpoint::Checkpoint;
use crate::job::{
    BatchView, JobKind, JobSettings, JobState, ListenerBus, Monitor, NewJob, OutputView, QueryProgress, Registry, StreamView,
    StreamingListener,
};

fn registry(kafka: &FakeKafka) -> Registry {
    Registry::new(None, 10, BTreeMap::new(), Arc::new(kafka.clone()), Arc::new(SystemClock), TaskTracker::new(), None)
}

async fn get(registry: &Registry, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router(registry.clone()).oneshot(request).await.unwrap();
    assert!(response.headers().contains_key("content-security-policy"));
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn shop(program: CountingProgram) -> NewJob {
    NewJob {
        name: "shop".into(),
        kind: JobKind::Sql,
        settings: JobSettings { batch_interval: Duration::from_millis(50), retry_attempts: 0, ..JobSettings::default() },
        program: Box::new(program),
        checkpoint: Checkpoint::in_memory(),
        definition: "SET 'sasl.password' = 'hunter2'; SET 'url' = 'redis://:hunter2@host'; SELECT '<script>alert(1)</script>' & \"more\""
            .into(),
        notes: vec!["<b>note</b>".into()],
        mode: watch::channel(Mode::Run),
    }
}

/// A finished job over a topic of three records, with texts that a page must not take for markup.
async fn with_job() -> Registry {
    let kafka = FakeKafka::with_topic("t", 1);
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    let registry = registry(&kafka);
    let program = CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), &FencedSink::default());
    let job = registry.start(shop(program)).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state.is_over())).await.unwrap();
    registry
}

#[tokio::test]
async fn an_engine_without_jobs_says_how_to_submit_one() {
    let (status, body) = get(&registry(&FakeKafka::default()), "/").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("No jobs yet") && body.contains("millrace job submit"), "{body}");
}

#[tokio::test]
async fn the_pages_show_jobs_batches_offsets_and_outputs() {
    let registry = with_job().await;
    let (_, body) = get(&registry, "/").await;
    assert!(body.contains("href=\"/jobs/shop\"") && body.contains("FINISHED"), "{body}");
    let (status, body) = get(&registry, "/jobs/shop").await;
    assert_eq!(status, StatusCode::OK);
    for part in [
        "batches of <strong>50 ms</strong>",
        "Input rate",
        "Scheduling delay",
        "Processing time",
        "Total delay",
        "<svg",
        "Completed batches (last 1 out of 1)",
    ] {
        assert!(body.contains(part), "{part} is not in {body}");
    }
    let batch = format!("/jobs/shop/batches/{}", newest(&registry).await);
    assert!(body.contains(&format!("href=\"{batch}\"")), "{batch} is not in {body}");
    let (status, body) = get(&registry, &batch).await;
    assert_eq!(status, StatusCode::OK);
    for part in ["3 records", "Until offset", "sink", "succeeded"] {
        assert!(body.contains(part), "{part} is not in {body}");
    }
}

#[tokio::test]
async fn a_failed_job_shows_its_error_on_every_page() {
    let kafka = FakeKafka::with_topic("t", 1);
    kafka.send("t", 0, "x");
    let registry = registry(&kafka);
    let program = CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), &FencedSink::default());
    *program.failures.lock() = vec![0];
    let job = registry.start(shop(program)).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state.is_over())).await.unwrap();
    for (path, frame) in [("/", "<div class=\"error-line\">"), ("/jobs/shop", "<div class=\"alert\" role=\"alert\"><pre>")] {
        let (status, body) = get(&registry, path).await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("<span class=\"state failed\">FAILED</span>"), "{path}: {body}");
        let shown = body.split_once(frame).map(|(_, rest)| rest.split('<').next().unwrap());
        assert!(shown.is_some_and(|error| error.contains("told to fail before batch 0")), "{path}: {shown:?}");
    }
    let (_, body) = get(&registry, &format!("/jobs/shop/batches/{}", newest(&registry).await)).await;
    assert!(body.contains("Last error") && body.contains("told to fail before batch 0"), "{body}");
}

#[tokio::test]
async fn a_waiting_job_shows_what_it_waits_for() {
    let kafka = FakeKafka::with_topic("t", 1);
    let registry = registry(&kafka);
    let job = registry.start(shop(CountingProgram::new(spec(Startup::Earliest, None), &FencedSink::default()))).unwrap();
    let until = async |wanted: JobState| {
        tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state == wanted)).await.unwrap();
    };
    until(JobState::Running).await;
    kafka.delete_topic("t");
    until(JobState::Waiting).await;
    for path in ["/", "/jobs/shop"] {
        let (_, body) = get(&registry, path).await;
        assert!(body.contains("<span class=\"state waiting\">WAITING</span>"), "{path}: {body}");
        assert!(body.contains("topic &quot;t&quot; does not exist") && body.contains("(since "), "{path}: {body}");
    }
    let (_, body) = get(&registry, "/jobs/shop").await;
    assert!(body.contains("Waiting to run batches of"), "{body}");
    registry.stop("shop", false, Duration::from_secs(20)).await.unwrap();
}

#[tokio::test]
async fn texts_of_a_job_are_escaped() {
    let (_, body) = get(&with_job().await, "/jobs/shop").await;
    assert!(!body.contains("<script>alert") && !body.contains("<b>note"), "{body}");
    assert!(body.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{body}");
    assert!(!body.contains("hunter2") && body.contains("redis://:***@host"), "{body}");
}

#[tokio::test]
async fn what_is_not_there_is_a_404_also_for_odd_names() {
    let registry = with_job().await;
    for path in [
        "/jobs/none",
        "/jobs/%3Cscript%3E",
        "/jobs/shop/batches/99",
        "/jobs/shop/batches/x",
        "/nothing",
        "/api/v1/applications/none",
        "/api/v1/x",
    ] {
        let (status, body) = get(&registry, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(!body.contains("<script>\""), "{body}");
    }
    let (_, body) = get(&registry, "/jobs/%3Cb%3E").await;
    assert!(body.contains("&lt;b&gt;") && !body.contains("<b>"), "{body}");
}

/// The address of a job's newest batch.
async fn newest(registry: &Registry) -> i64 {
    registry.job("shop").unwrap().monitor.completed(1)[0].time_ms
}

async fn json(registry: &Registry, path: &str) -> serde_json::Value {
    let (status, body) = get(registry, &format!("/api/v1/applications/shop/streaming/{path}")).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Which of these fields an object has; it has no others.
fn fields<'a>(object: &serde_json::Value, known: &[&'a str]) -> Vec<&'a str> {
    let object = object.as_object().unwrap();
    let unknown: Vec<_> = object.keys().filter(|key| !known.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "not Spark's: {unknown:?}");
    assert!(object.values().all(|value| !value.is_null()), "what is not known is absent: {object:?}");
    known.iter().copied().filter(|field| object.contains_key(*field)).collect()
}

// The fields of the classes in Spark's `status/api/v1/streaming/api.scala`.
const STATISTICS: [&str; 14] = [
    "startTime",
    "batchDuration",
    "numReceivers",
    "numActiveReceivers",
    "numInactiveReceivers",
    "numTotalCompletedBatches",
    "numRetainedCompletedBatches",
    "numActiveBatches",
    "numProcessedRecords",
    "numReceivedRecords",
    "avgInputRate",
    "avgSchedulingDelay",
    "avgProcessingTime",
    "avgTotalDelay",
];
const RECEIVER: [&str; 10] = [
    "streamId",
    "streamName",
    "avgEventRate",
    "eventRates",
    "isActive",
    "executorId",
    "executorHost",
    "lastErrorTime",
    "lastErrorMessage",
    "lastError",
];
const BATCH: [&str; 13] = [
    "batchId",
    "batchTime",
    "status",
    "batchDuration",
    "inputSize",
    "schedulingDelay",
    "processingTime",
    "totalDelay",
    "numActiveOutputOps",
    "numCompletedOutputOps",
    "numFailedOutputOps",
    "numTotalOutputOps",
    "firstFailureReason",
];
const OPERATION: [&str; 8] = ["outputOpId", "name", "description", "jobIds", "startTime", "endTime", "duration", "failureReason"];

#[tokio::test]
async fn the_api_has_sparks_fields_and_types() {
    let registry = with_job().await;
    let id = newest(&registry).await;
    let statistics = json(&registry, "statistics").await;
    assert_eq!(fields(&statistics, &STATISTICS), STATISTICS);
    assert_eq!((&statistics["batchDuration"], &statistics["numProcessedRecords"]), (&50.into(), &3.into()));
    assert_eq!((&statistics["numTotalCompletedBatches"], &statistics["numReceivers"]), (&1.into(), &0.into()));
    assert_eq!(statistics["avgInputRate"], 60.0, "three records in 50 ms");
    for whole in ["avgSchedulingDelay", "avgProcessingTime", "avgTotalDelay"] {
        assert!(statistics[whole].is_u64(), "{whole}: {statistics}");
    }
    let started = statistics["startTime"].as_str().unwrap();
    assert!(chrono::NaiveDateTime::parse_from_str(started, "%Y-%m-%dT%H:%M:%S%.3fGMT").is_ok(), "{started}");

    let batches = json(&registry, "batches").await;
    let batch = json(&registry, &format!("batches/{id}")).await;
    assert_eq!(batches, serde_json::json!([batch]));
    assert_eq!(fields(&batch, &BATCH), BATCH[..12], "it did not fail");
    assert_eq!((&batch["batchId"], &batch["status"], &batch["inputSize"]), (&id.into(), &"COMPLETED".into(), &3.into()));
    assert_eq!(chrono::DateTime::from_timestamp_millis(id).unwrap().format("%Y-%m-%dT%H:%M:%S%.3fGMT").to_string(), batch["batchTime"]);
    assert_eq!((&batch["numCompletedOutputOps"], &batch["numTotalOutputOps"]), (&1.into(), &1.into()));

    let operations = json(&registry, &format!("batches/{id}/operations")).await;
    let operation = json(&registry, &format!("batches/{id}/operations/0")).await;
    assert_eq!(operations, serde_json::json!([operation]));
    assert_eq!(fields(&operation, &OPERATION), OPERATION[..7], "it did not fail");
    assert_eq!((&operation["outputOpId"], &operation["name"], &operation["jobIds"]), (&0.into(), &"sink".into(), &serde_json::json!([0])));

    // A stream that is read directly has rates and no receiver.
    let receivers = json(&registry, "receivers").await;
    let receiver = json(&registry, "receivers/0").await;
    assert_eq!(receivers, serde_json::json!([receiver]));
    assert_eq!(fields(&receiver, &RECEIVER), RECEIVER[..4]);
    assert_eq!((&receiver["streamName"], &receiver["eventRates"]), (&"logs".into(), &serde_json::json!([[id, 60.0]])));
    let (_, all) = get(&registry, "/api/v1/applications").await;
    assert!(all.contains("\"id\":\"shop\""), "{all}");
}

#[tokio::test]
async fn averages_of_nothing_are_absent() {
    let registry = registry(&FakeKafka::with_topic("t", 1));
    let quiet = JobSettings { batch_interval: Duration::from_secs(3600), ..JobSettings::default() };
    let program = CountingProgram::new(spec(Startup::Earliest, None), &FencedSink::default());
    let job = registry.start(NewJob { settings: quiet, ..shop(program) }).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state == JobState::Running)).await.unwrap();
    assert_eq!(fields(&json(&registry, "statistics").await, &STATISTICS), STATISTICS[..10]);
    registry.stop("shop", false, Duration::from_secs(20)).await.unwrap();
}

#[tokio::test]
async fn a_failed_batch_says_in_the_api_which_operation_failed_and_why() {
    let kafka = FakeKafka::with_topic("t", 1);
    kafka.send("t", 0, "x");
    let registry = registry(&kafka);
    let mut program = CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), &FencedSink::default());
    *program.failures.lock() = vec![0];
    program.fail_after_effect = true;
    let job = registry.start(shop(program)).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state.is_over())).await.unwrap();
    let id = newest(&registry).await;
    let batch = json(&registry, &format!("batches/{id}")).await;
    assert_eq!(fields(&batch, &BATCH), BATCH);
    assert_eq!((&batch["status"], &batch["numFailedOutputOps"]), (&"FAILED".into(), &1.into()));
    let operation = json(&registry, &format!("batches/{id}/operations/0")).await;
    assert_eq!(fields(&operation, &OPERATION), OPERATION);
    assert!(operation["failureReason"].as_str().unwrap().contains("told to fail after batch 0"), "{operation}");
    assert_eq!(operation["failureReason"], batch["firstFailureReason"]);

    for (query, found) in [("FAILED", 1), ("COMPLETED", 0), ("QUEUED&status=FAILED", 1), ("PROCESSING", 0)] {
        let batches = json(&registry, &format!("batches?status={query}")).await;
        assert_eq!(batches.as_array().unwrap().len(), found, "{query}");
    }
    let (status, body) = get(&registry, "/api/v1/applications/shop/streaming/batches?status=DONE").await;
    assert!(status == StatusCode::BAD_REQUEST && body.contains("QUEUED, PROCESSING, COMPLETED, FAILED"), "{status}: {body}");

    let (_, page) = get(&registry, "/jobs/shop").await;
    assert!(page.contains("Failed batches (1)") && page.contains("Completed batches (last 0 out of 0)"), "{page}");
    let (_, page) = get(&registry, &format!("/jobs/shop/batches/{id}")).await;
    assert!(page.contains("a test&#39;s sink") || page.contains("a test's sink"), "{page}");
    assert!(page.contains("<details class=\"error\">"), "{page}");
}

#[tokio::test]
async fn receivers_show_where_they_run_and_their_last_error() {
    let registry = with_job().await;
    let monitor = registry.job("shop").unwrap().monitor.clone();
    monitor.receiver_started(0, "worker-2", "host-b");
    let receiver = json(&registry, "receivers/0").await;
    assert_eq!(fields(&receiver, &RECEIVER), RECEIVER[..7]);
    assert_eq!((&receiver["isActive"], &receiver["executorHost"]), (&true.into(), &"host-b".into()));
    monitor.receiver_stopped(0, Some(&anyhow::anyhow!("connection refused").context("socket feed:9999")));
    let receiver = json(&registry, "receivers/0").await;
    assert_eq!(fields(&receiver, &RECEIVER), RECEIVER);
    assert_eq!((&receiver["isActive"], &receiver["lastErrorMessage"]), (&false.into(), &"socket feed:9999".into()));
    assert_eq!(receiver["lastError"], "socket feed:9999: connection refused");
    let statistics = json(&registry, "statistics").await;
    assert_eq!((&statistics["numReceivers"], &statistics["numInactiveReceivers"]), (&1.into(), &1.into()));
    let (_, page) = get(&registry, "/jobs/shop").await;
    for part in ["Input rate by stream (1)", "INACTIVE", "worker-2 / host-b", "socket feed:9999"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
}

#[tokio::test]
async fn progress_has_the_fields_of_a_streaming_query_progress() {
    let registry = with_job().await;
    let progress = json(&registry, "progress").await;
    let progress = &progress[0];
    let known = [
        "id",
        "runId",
        "name",
        "timestamp",
        "batchId",
        "batchDuration",
        "numInputRows",
        "durationMs",
        "eventTime",
        "stateOperators",
        "sources",
        "sink",
        "processedRowsPerSecond",
        "inputRowsPerSecond",
    ];
    let found = fields(progress, &known);
    assert!(found.starts_with(&known[..12]) && !found.contains(&"inputRowsPerSecond"), "there was no batch before: {found:?}");
    let steps = ["latestOffset", "walCommit", "addBatch", "commitOffsets", "triggerExecution"];
    assert_eq!(fields(&progress["durationMs"], &steps), steps);
    assert_eq!((&progress["name"], &progress["batchId"], &progress["numInputRows"]), (&"shop".into(), &0.into(), &3.into()));
    assert_eq!(progress["sink"], serde_json::json!({ "description": "sink", "numOutputRows": 3 }));
    let source = &progress["sources"][0];
    let at = |offset: i64| serde_json::json!({ "t": { "0": offset } });
    assert_eq!((&source["startOffset"], &source["endOffset"], &source["latestOffset"]), (&at(0), &at(3), &at(3)));
    assert_eq!((&source["description"], &source["metrics"]["maxOffsetsBehindLatest"]), (&"logs".into(), &"0".into()));
}

/// Writes down what it hears.
#[derive(Default)]
struct Heard(parking_lot::Mutex<Vec<String>>);

impl Heard {
    fn hear(&self, what: String) -> anyhow::Result<()> {
        self.0.lock().push(what);
        Ok(())
    }
}

impl StreamingListener for Heard {
    fn on_streaming_started(&self, _: i64) -> anyhow::Result<()> {
        self.hear("streaming started".into())
    }

    fn on_receiver_started(&self, stream: &StreamView) -> anyhow::Result<()> {
        self.hear(format!("receiver of {} started", stream.name))
    }

    fn on_receiver_error(&self, stream: &StreamView) -> anyhow::Result<()> {
        let error = stream.receiver.as_ref().and_then(|receiver| receiver.last_error.as_ref());
        self.hear(format!("receiver error: {}", error.map(|error| error.message.as_str()).unwrap_or_default()))
    }

    fn on_receiver_stopped(&self, stream: &StreamView) -> anyhow::Result<()> {
        self.hear(format!("receiver stopped, active: {:?}", stream.receiver.as_ref().map(|receiver| receiver.active)))
    }

    fn on_batch_submitted(&self, batch: &BatchView) -> anyhow::Result<()> {
        self.hear(format!("batch {} submitted with {} records", batch.id, batch.records))
    }

    fn on_batch_started(&self, batch: &BatchView) -> anyhow::Result<()> {
        self.hear(format!("batch {} started, attempt {}", batch.id, batch.attempt))
    }

    fn on_batch_completed(&self, batch: &BatchView) -> anyhow::Result<()> {
        self.hear(format!("batch {} {}", batch.id, batch.state.name()))
    }

    fn on_output_operation_started(&self, _: i64, output: &OutputView) -> anyhow::Result<()> {
        self.hear(format!("{} started as job {}", output.name, output.job_ids.last().unwrap()))
    }

    fn on_output_operation_completed(&self, _: i64, output: &OutputView) -> anyhow::Result<()> {
        self.hear(format!("{} {}", output.name, output.state().name()))
    }

    fn on_query_progress(&self, progress: &QueryProgress) -> anyhow::Result<()> {
        self.hear(format!("progress of batch {}: {} rows", progress.batch_id, progress.num_input_rows))
    }
}

#[tokio::test]
async fn a_listener_has_heard_everything_in_order_when_the_job_is_over() {
    let kafka = FakeKafka::with_topic("t", 1);
    (0..3).for_each(|_| kafka.send("t", 0, "x"));
    let mut program = CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), &FencedSink::default());
    // It fails once, after its output.
    *program.failures.lock() = vec![0];
    program.fail_after_effect = true;
    let heard = Arc::new(Heard::default());
    program.listeners.add(heard.clone());
    let patient = JobSettings { retry_attempts: 1, retry_backoff: Duration::from_millis(1), ..JobSettings::default() };
    let job = registry(&kafka).start(NewJob { settings: patient, ..shop(program) }).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.state.is_over())).await.unwrap();
    let wanted = [
        "streaming started",
        "batch 0 submitted with 3 records",
        "batch 0 started, attempt 0",
        "sink started as job 0",
        "sink failed",
        "sink started as job 1",
        "sink succeeded",
        "batch 0 completed",
        "progress of batch 0: 3 rows",
    ];
    assert_eq!(*heard.0.lock(), wanted);
}

#[tokio::test]
async fn a_listener_hears_of_receivers() {
    let monitor = Monitor::new("job", 1000, 10, "", Arc::new(SystemClock));
    let (bus, heard) = (Arc::new(ListenerBus::default()), Arc::new(Heard::default()));
    bus.add(heard.clone());
    let monitor = monitor.with_listeners(bus);
    monitor.begins("c", ["lines".to_owned()]);
    monitor.receiver_started(0, "worker-0", "host");
    monitor.receiver_error(0, &anyhow::anyhow!("reset by peer"));
    monitor.receiver_stopped(0, None);
    monitor.listeners_done().await;
    let wanted =
        ["streaming started", "receiver of lines started", "receiver error: reset by peer", "receiver stopped, active: Some(false)"];
    assert_eq!(*heard.0.lock(), wanted);
    let receiver = monitor.view().streams[0].receiver.clone().unwrap();
    assert!(receiver.last_error.is_some(), "a stop without an error keeps the last one");
}

#[tokio::test]
async fn completed_batches_are_shown_page_by_page() {
    let kafka = FakeKafka::with_topic("t", 1);
    let registry = registry(&kafka);
    let fast = JobSettings { batch_interval: Duration::from_millis(10), ..JobSettings::default() };
    let program = CountingProgram::new(spec(Startup::Earliest, None), &FencedSink::default());
    let job = registry.start(NewJob { settings: fast, ..shop(program) }).unwrap();
    tokio::time::timeout(Duration::from_secs(20), job.monitor.wait_for(|view| view.totals.batches > 60)).await.unwrap();
    registry.stop("shop", false, Duration::from_secs(20)).await.unwrap();
    let link = |n: u64| format!("> #{n}<");
    let (_, first) = get(&registry, "/jobs/shop").await;
    let (_, second) = get(&registry, "/jobs/shop?page=2").await;
    let (_, beyond) = get(&registry, "/jobs/shop?page=99").await;
    assert!(first.contains("Page 1 of 2") && first.contains("?page=2") && !first.contains(&link(0)), "{first}");
    assert!(second.contains("Page 2 of 2") && second.contains("?page=1") && second.contains(&link(0)), "{second}");
    assert!(beyond.contains("Page 2 of 2"));
}
