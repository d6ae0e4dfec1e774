//! A job under the hands of an operator: paused, resumed, kept as a savepoint, started from it, held back by backpressure.

use std::{collections::BTreeMap, fs};

use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{kafka_bootstrap, redis_url},
    unique,
};
use serde_json::Value;

use super::{WAIT, WINDOWED, cli, engine, expected, in_redis, redis_sink, row, source};

async fn json(page: &str, path: &str) -> Result<Value, String> {
    let response = reqwest::get(format!("http://{page}/api/v1/applications/{path}")).await.map_err(|error| error.to_string())?;
    let text = response.text().await.map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

/// Waits until the job's JSON fits.
async fn until(process: &Process, page: &str, job: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let log = || process.log();
    eventually(WAIT, what, || async {
        let value = json(page, job).await?;
        if fits(&value) { Ok(value) } else { Err(format!("{value}\n{}", log())) }
    })
    .await
}

fn rows_in(job: &Value) -> u64 {
    job["totals"]["rows_in"].as_u64().unwrap_or_default()
}

#[tokio::test]
async fn a_job_is_paused_resumed_and_started_again_from_its_savepoint() {
    let (bootstrap, url) = (kafka_bootstrap(), redis_url());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, prefix) = (unique("control"), unique("control-totals"));
    kafka::create_topic(&bootstrap, &topic, 2).await;
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\n{}{}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, ""),
        redis_sink(&prefix, &url)
    );
    fs::write(&job, sql).expect("the job");
    let job = job.to_string_lossy().into_owned();
    let produce = |from: u64, until: u64| kafka::produce(&bootstrap, &topic, 2, (from..until).map(|n| row(n).2));
    let mut process = engine(dir.path());
    let (control, page) = (process.address("control").await, process.address("page").await);
    let told = |args: &[&str]| {
        let (code, said) = cli(&control, args);
        assert_eq!(code, 0, "{args:?}: {said}");
        said
    };

    produce(0, 2_000);
    told(&["job", "submit", &job, "--name", "first"]);
    until(&process, &page, "first", "the job reads", |view| rows_in(view) == 2_000).await;

    told(&["engine", "pause", "first"]);
    until(&process, &page, "first", "the job pauses", |view| view["state"] == "PAUSED").await;
    produce(2_000, 3_000);
    // What is cut still runs.
    eventually(WAIT, "no batch waits", || async {
        let statistics = json(&page, "first/streaming/statistics").await?;
        if statistics["numActiveBatches"] == 0 { Ok(()) } else { Err(statistics.to_string()) }
    })
    .await;
    // Another job of the engine, with the same interval, reads the new rows and cuts five batches meanwhile.
    let beside = dir.path().join("beside.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\n{}CREATE TABLE seen (host STRING) WITH ('connector' = 'console');\n\
         INSERT INTO seen SELECT host FROM rows_in WHERE bytes < 0;",
        source(&topic, &bootstrap, "")
    );
    fs::write(&beside, sql).expect("the job");
    told(&["job", "submit", &beside.to_string_lossy(), "--name", "beside"]);
    until(&process, &page, "beside", "five batches pass", |view| {
        rows_in(view) == 3_000 && view["totals"]["batches"].as_u64().is_some_and(|batches| batches >= 5)
    })
    .await;
    told(&["job", "stop", "beside"]);
    assert_eq!(rows_in(&json(&page, "first").await.expect("JSON")), 2_000, "it reads while it is paused");
    told(&["engine", "resume", "first"]);
    until(&process, &page, "first", "the job goes on", |view| rows_in(view) == 3_000 && view["state"] == "RUNNING").await;

    let savepoint = dir.path().join("savepoint").to_string_lossy().into_owned();
    told(&["job", "savepoint", "first", "--target", &savepoint]);
    // After it the job goes on, and is stopped in the middle of its windows.
    produce(3_000, 4_000);
    until(&process, &page, "first", "the job reads on", |view| rows_in(view) == 4_000).await;
    told(&["job", "stop", "first"]);
    until(&process, &page, "first", "the job ends", |view| view["state"] == "FINISHED").await;
    produce(4_000, 5_000);

    told(&["job", "submit", &job, "--name", "second", "--from-savepoint", &savepoint]);
    until(&process, &page, "second", "three thousand of the savepoint and the rest", |view| rows_in(view) == 5_000).await;
    told(&["job", "stop", "second", "--drain"]);
    let end = json(&page, "second").await.expect("JSON");
    assert_eq!((&end["totals"]["late"], &end["totals"]["malformed"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(in_redis(&prefix), expected(5_000), "{}", process.log());
    process.stop().await;
}

#[tokio::test]
async fn a_topic_made_anew_is_not_taken_for_the_one_that_was_read() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("anew");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    kafka::produce(&bootstrap, &topic, 1, (0..10).map(|n| row(n).2));
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\n{}CREATE TABLE seen (host STRING) WITH ('connector' = 'console');\n\
         INSERT INTO seen SELECT host FROM rows_in WHERE bytes < 0;",
        source(&topic, &bootstrap, "")
    );
    fs::write(&job, sql).expect("the job");
    let job = job.to_string_lossy().into_owned();
    let mut process = engine(dir.path());
    let (control, page) = (process.address("control").await, process.address("page").await);
    assert_eq!(cli(&control, &["job", "submit", &job, "--name", "anew"]).0, 0);
    until(&process, &page, "anew", "the job reads", |view| rows_in(view) == 10).await;
    kafka::delete_topic(&bootstrap, &topic).await;
    let gone = until(&process, &page, "anew", "the job waits for its topic", |view| view["state"] == "WAITING").await;
    assert!(gone["error"].as_str().is_some_and(|error| error.contains(&topic) && error.contains("since")), "{gone}");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    kafka::produce(&bootstrap, &topic, 1, (0..25).map(|n| row(n).2));
    let failed = until(&process, &page, "anew", "the job sees that it is another", |view| view["state"] == "FAILED").await;
    assert!(
        failed["error"].as_str().is_some_and(|error| error.contains("deleted and created again") && error.contains(&topic)),
        "{failed}"
    );
    assert_eq!(rows_in(&failed), 10, "it reads the new topic from the middle");
    // A submission that would fail at once says so; without its checkpoint the job begins afresh.
    let (code, said) = cli(&control, &["job", "submit", &job, "--name", "anew"]);
    assert!(code == 1 && said.contains("deleted and created again"), "{code}: {said}");
    let (code, said) = cli(&control, &["job", "delete", "anew", "--checkpoint"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(cli(&control, &["job", "submit", &job, "--name", "anew"]).0, 0);
    until(&process, &page, "anew", "the new topic is read", |view| rows_in(view) == 25).await;
    process.stop().await;
}

#[tokio::test]
async fn a_slow_start_is_limited_and_the_page_shows_the_rate() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("backpressure");
    kafka::create_topic(&bootstrap, &topic, 1).await;
    kafka::produce(&bootstrap, &topic, 1, (0..3_000).map(|n| row(n).2));
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\nSET 'spark.streaming.backpressure.enabled' = 'true';\n\
         SET 'spark.streaming.backpressure.initialRate' = '500';\n{}\
         CREATE TABLE seen (host STRING) WITH ('connector' = 'console');\nINSERT INTO seen SELECT host FROM rows_in WHERE bytes < 0;",
        source(&topic, &bootstrap, "")
    );
    fs::write(&job, sql).expect("the job");
    let mut process = engine(dir.path());
    let (control, page) = (process.address("control").await, process.address("page").await);
    let (code, said) = cli(&control, &["job", "submit", &job.to_string_lossy(), "--name", "slow"]);
    assert_eq!(code, 0, "{said}");
    let limit = |view: &Value| view["rateLimits"][0]["recordsPerSecond"].as_u64();
    let first = until(&process, &page, "slow", "a limit stands", |view| limit(view).is_some()).await;
    assert_eq!(first["rateLimits"][0]["source"], "rows_in");
    // The estimate takes over from the initial rate, and the backlog is read in the end.
    let end = until(&process, &page, "slow", "everything is read", |view| rows_in(view) == 3_000).await;
    assert_ne!(limit(&end), Some(500), "no estimate was made: {end}");
    let batches = json(&page, "slow/streaming/batches").await.expect("JSON");
    let by_time: BTreeMap<u64, u64> = batches
        .as_array()
        .expect("a list")
        .iter()
        .map(|batch| (batch["batchId"].as_u64().expect("id"), batch["inputSize"].as_u64().expect("size")))
        .collect();
    let sizes: Vec<u64> = by_time.into_values().collect();
    // The first batch only seeds the estimate, so the second is cut by the initial rate too: 500 a second are 100 in 200 ms.
    assert_eq!((sizes[0], sizes[1], sizes.iter().sum::<u64>()), (100, 100, 3_000), "{sizes:?}");
    let shown = reqwest::get(format!("http://{page}/jobs/slow")).await.expect("the page").text().await.expect("its text");
    assert!(shown.contains("Rate limit"), "{shown}");
    process.stop().await;
}
