//! The engine from outside: records in Kafka, results in Redis and Kafka, killed and restarted in between.

mod control;
mod fence;

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use integration_tests::{
    eventually, kafka,
    process::{Process, run},
    servers::{kafka_bootstrap, redis_url},
    unique,
};
use rand::RngExt;
use redis::Commands;

const WAIT: Duration = Duration::from_secs(60);
const FREE_PORTS: [(&str, &str); 2] = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")];

/// Event times begin here; a multiple of every window used.
const EPOCH_MS: u64 = 1_790_000_000_000;

/// `n`-th row: a row every 10 ms of event time, up to 400 ms out of order.
fn row(n: u64) -> (u64, String, String) {
    let ts = EPOCH_MS + n * 10 - (n * 7919 % 41) * 10 * u64::from(n > 100);
    let host = format!("web-{}", n % 7);
    let json = format!(r#"{{"ts":{ts},"host":"{host}","bytes":{}}}"#, n % 1000);
    (ts, host, json)
}

/// Requests and bytes per `window:host` of ten seconds, counted straight from the rows.
fn expected(rows: u64) -> BTreeMap<String, (u64, u64)> {
    let mut windows: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for n in 0..rows {
        let (ts, host, _) = row(n);
        let window = windows.entry(format!("{}:{host}", stamp(ts - ts % 10_000))).or_default();
        window.0 += 1;
        window.1 += n % 1000;
    }
    windows
}

fn source(topic: &str, bootstrap: &str, more: &str) -> String {
    format!(
        "CREATE TABLE rows_in (ts BIGINT, host STRING, bytes BIGINT,\n  event_time AS TO_TIMESTAMP_LTZ(ts, 3),\n  WATERMARK FOR event_time AS event_time - INTERVAL '2' SECOND)\n\
         WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}',\n  'scan.startup.mode' = 'earliest-offset', 'format' = 'json'{more});\n"
    )
}

const WINDOWED: &str = "SELECT window_start, host, COUNT(*) AS requests, SUM(bytes) AS bytes\n\
    FROM TABLE(TUMBLE(TABLE rows_in, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, host;\n";

fn redis_sink(prefix: &str, url: &str) -> String {
    format!(
        "CREATE TABLE totals (window_start TIMESTAMP(3), host STRING, requests BIGINT, bytes BIGINT, PRIMARY KEY (window_start, host) NOT ENFORCED)\n\
         WITH ('connector' = 'redis', 'url' = '{url}', 'mode' = 'hash', 'key' = '{prefix}:{{window_start}}:{{host}}');\n"
    )
}

/// The engine's own writing of a window's start in keys: UTC, without a zone, as the column's type has it.
fn stamp(ms: u64) -> String {
    let ms = i64::try_from(ms).expect("a time");
    chrono::DateTime::from_timestamp_millis(ms).expect("a time").format("%Y-%m-%dT%H:%M:%S").to_string()
}

fn in_redis(prefix: &str) -> BTreeMap<String, (u64, u64)> {
    let mut connection = redis::Client::open(redis_url()).expect("URL").get_connection().expect("Redis");
    let keys: Vec<String> = connection.scan_match::<_, String>(format!("{prefix}:*")).expect("scan").map(|key| key.expect("key")).collect();
    keys.into_iter()
        .map(|key| {
            let fields: BTreeMap<String, String> = connection.hgetall(&key).expect("hash");
            let number =
                |name: &str| fields.get(name).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{key}: {name} in {fields:?}"));
            let counts = (number("requests"), number("bytes"));
            (key.trim_start_matches(prefix).trim_start_matches(':').to_owned(), counts)
        })
        .collect()
}

fn engine(dir: &Path) -> Process {
    let checkpoints = dir.join("checkpoints");
    Process::start("millrace-engine", dir, &["serve", "--checkpoint", &checkpoints.to_string_lossy()], &FREE_PORTS)
}

fn cli(engine: &str, args: &[&str]) -> (i32, String) {
    let output = run("millrace", &[&["--engine", engine, "--timeout", "60s"], args].concat(), &[]);
    (output.status.code().unwrap_or(-1), format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test]
async fn kill_9_at_any_moment_loses_and_repeats_nothing_in_redis() {
    let (bootstrap, url) = (kafka_bootstrap(), redis_url());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, prefix) = (unique("engine"), unique("engine-totals"));
    kafka::create_topic(&bootstrap, &topic, 3).await;
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\n{}{}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, ""),
        redis_sink(&prefix, &url)
    );
    fs::write(&job, sql).expect("the job");

    let mut process = engine(dir.path());
    let mut address = process.address("control").await;
    let (code, said) = cli(&address, &["job", "submit", &job.to_string_lossy(), "--name", "totals"]);
    assert_eq!(code, 0, "{said}");
    let mut rows = 0;
    for _ in 0..8 {
        kafka::produce(&bootstrap, &topic, 3, (rows..rows + 1_500).map(|n| row(n).2));
        rows += 1_500;
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(50..900))).await;
        process.kill_9();
        // The job is the engine's, not the submitter's: it resumes by itself.
        process = engine(dir.path());
        address = process.address("control").await;
    }
    let (code, said) = cli(&address, &["job", "stop", "totals", "--drain"]);
    assert_eq!(code, 0, "{said}\n{}", process.log());
    assert_eq!(in_redis(&prefix), expected(rows), "{}", process.log());
    process.stop().await;
}

#[tokio::test]
async fn a_bounded_job_ends_by_itself_and_writes_each_window_to_kafka_once() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, out) = (unique("engine"), unique("engine-out"));
    kafka::create_topic(&bootstrap, &topic, 2).await;
    kafka::create_topic(&bootstrap, &out, 1).await;
    kafka::produce(&bootstrap, &topic, 2, (0..5_000).map(|n| row(n).2));
    // Lines that are no rows are counted and do not take their neighbours along.
    kafka::produce(&bootstrap, &topic, 1, ["{\"ts\": oops".to_owned(), String::new(), "[]".to_owned()]);
    let job = dir.path().join("job.sql");
    let sink = format!(
        "CREATE TABLE totals (window_start TIMESTAMP(3), host STRING, requests BIGINT, bytes BIGINT)\n\
         WITH ('connector' = 'kafka', 'topic' = '{out}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',\n\
         'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{out}');\n"
    );
    let sql = format!(
        "SET 'batch.interval' = '100ms';\n{}{sink}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, ",\n  'scan.bounded.mode' = 'latest-offset'")
    );
    fs::write(&job, sql).expect("the job");
    let checkpoint = dir.path().join("checkpoint");
    let args = ["run", &job.to_string_lossy(), "--name", &unique("bounded"), "--checkpoint", &checkpoint.to_string_lossy()];
    let output = run("millrace-engine", &args, &FREE_PORTS);
    let log = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    assert_eq!(log.matches("older transaction protocol").count(), 1, "said once per sink: {log}");
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let records = kafka::texts(&bootstrap, &out);
    for text in &records {
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        *counts.entry(value["host"].as_str().expect("host").to_owned()).or_default() += value["requests"].as_u64().expect("requests");
    }
    assert_eq!(counts.values().sum::<u64>(), 5_000);
    assert_eq!(records.len(), expected(5_000).len(), "a window stands twice or is missing");
}

#[test]
fn mistakes_in_sql_are_shown_with_place_and_remedy() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let table = "CREATE TABLE t (a BIGINT, b STRING) WITH ('connector' = 'kafka', 'topic' = 'x', 'properties.bootstrap.servers' = '127.0.0.1:1', 'format' = 'json');\n\
                 CREATE TABLE o (a BIGINT) WITH ('connector' = 'console');\n";
    let cases: &[(String, &[&str])] = &[
        (format!("{table}INSERT INTO o SELEC a FROM t;"), &["3"]),
        (format!("{table}INSERT INTO o SELECT aa FROM t;"), &["aa"]),
        (format!("{table}INSERT INTO o SELECT a FROM tt;"), &["tt"]),
        (table.replace("'json'", "'jason'"), &["jason", "json"]),
        (table.replace("'topic' =", "'topik' ="), &["topik", "topic"]),
        (table.replace("'kafka'", "'kafkka'"), &["kafkka", "kafka"]),
        (format!("SET 'batch.interval' = 'soon';\n{table}"), &["batch.interval", "soon"]),
    ];
    for (sql, needles) in cases {
        let job = dir.path().join("job.sql");
        fs::write(&job, sql).expect("the job");
        let output = run("millrace-engine", &["run", &job.to_string_lossy()], &FREE_PORTS);
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "accepted: {sql}");
        for needle in *needles {
            assert!(text.contains(needle), "{sql}\ndoes not say {needle:?}: {text}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[tokio::test]
async fn the_articles_program_prints_its_windows() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    if !kafka::exists(&bootstrap, "logs_topic") {
        kafka::create_topic(&bootstrap, "logs_topic", 1).await;
    }
    let env = [("KAFKA_BOOTSTRAP_SERVERS", bootstrap.as_str()), FREE_PORTS[0], FREE_PORTS[1]];
    let mut program = Process::start("kafka_stream", dir.path(), &[], &env);
    program.addresses().await;
    // `latest`: what comes after the start is counted. Lines go in until a window with them is printed.
    eventually(Duration::from_secs(90), "a window shows the records", || async {
        kafka::produce(&bootstrap, "logs_topic", 1, (0..10).map(|n| format!("the article's line {n}")));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let log = program.log();
        if log.contains("the article's line") { Ok(()) } else { Err(log) }
    })
    .await;
    program.stop().await;
}

#[tokio::test]
async fn the_page_shows_jobs_batches_and_offset_ranges() {
    let (bootstrap, url) = (kafka_bootstrap(), redis_url());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, prefix) = (unique("page"), unique("page-totals"));
    kafka::create_topic(&bootstrap, &topic, 1).await;
    kafka::produce(&bootstrap, &topic, 1, (0..500).map(|n| row(n).2));
    let job = dir.path().join("job.sql");
    let sql = format!(
        "SET 'batch.interval' = '200ms';\n{}{}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, ""),
        redis_sink(&prefix, &url)
    );
    fs::write(&job, sql).expect("the job");
    let mut process = engine(dir.path());
    let (control, page) = (process.address("control").await, process.address("page").await);
    let (code, said) = cli(&control, &["job", "submit", &job.to_string_lossy(), "--name", "page"]);
    assert_eq!(code, 0, "{said}");
    eventually(WAIT, "the page shows the batch", || async {
        let get =
            |path: String| async move { reqwest::get(path).await.map_err(|e| e.to_string())?.text().await.map_err(|e| e.to_string()) };
        let index = get(format!("http://{page}/")).await?;
        let text = get(format!("http://{page}/jobs/page")).await?;
        let wanted = ["Scheduling Delay", "Processing Time", "Total Delay", "<svg"];
        let missing: Vec<_> = wanted.iter().filter(|word| !text.to_lowercase().contains(&word.to_lowercase())).collect();
        if index.contains("page") && missing.is_empty() && text.contains("500") {
            Ok(())
        } else {
            Err(format!("without {missing:?}: {text}"))
        }
    })
    .await;
    process.stop().await;
}
