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
use crate::job::{JobKind, JobSettings, JobState, NewJob, Registry};

fn registry(kafka: &FakeKafka) -> Registry {
    Registry::new(None, 10, BTreeMap::new(), Arc::new(kafka.clone()), Arc::new(SystemClock), TaskTracker::new())
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
        "Completed batches",
        "/jobs/shop/batches/0",
    ] {
        assert!(body.contains(part), "{part} is not in {body}");
    }
    let (status, body) = get(&registry, "/jobs/shop/batches/0").await;
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
    let (_, body) = get(&registry, "/jobs/shop/batches/0").await;
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
    for path in ["/jobs/none", "/jobs/%3Cscript%3E", "/jobs/shop/batches/99", "/nothing", "/api/v1/applications/none", "/api/v1/x"] {
        let (status, body) = get(&registry, path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(!body.contains("<script>\""), "{body}");
    }
    let (_, body) = get(&registry, "/jobs/%3Cb%3E").await;
    assert!(body.contains("&lt;b&gt;") && !body.contains("<b>"), "{body}");
}

#[tokio::test]
async fn the_api_has_sparks_shape() {
    let registry = with_job().await;
    let json = async |path: &str| -> serde_json::Value { serde_json::from_str(&get(&registry, path).await.1).unwrap() };
    let statistics = json("/api/v1/applications/shop/streaming/statistics").await;
    assert_eq!((&statistics["batchDuration"], &statistics["numProcessedRecords"]), (&50.into(), &3.into()));
    assert_eq!(statistics["numTotalCompletedBatches"], 1);
    let batches = json("/api/v1/applications/shop/streaming/batches").await;
    assert_eq!((&batches[0]["status"], &batches[0]["inputSize"]), (&"COMPLETED".into(), &3.into()));
    let batch = json("/api/v1/applications/shop/streaming/batches/0").await;
    assert_eq!(batch["inputInfo"][0][0]["until"], 3);
    let operations = json("/api/v1/applications/shop/streaming/batches/0/operations").await;
    assert_eq!(operations[0]["outputOpId"], 0);
    assert_eq!(json("/api/v1/applications").await[0]["id"], "shop");
    assert_eq!(json("/api/v1/applications/shop/streaming/receivers").await, serde_json::json!([]));
}
