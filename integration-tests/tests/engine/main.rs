//! The engine from outside: records in Kafka, results in Redis and Kafka, killed and restarted in between.

mod checkpoint;
mod control;
mod fence;
mod files;
mod hbase;
mod offsets;
mod shared;
mod slots;
mod sources;
mod steps;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

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

fn kafka_sink(topic: &str, bootstrap: &str) -> String {
    format!(
        "CREATE TABLE totals (window_start TIMESTAMP(3), host STRING, requests BIGINT, bytes BIGINT)\n\
         WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',\n\
         'json.timestamp-format.standard' = 'ISO-8601', 'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{topic}');\n"
    )
}

/// What stands committed in the topic; a window that stands there twice fails the test.
fn in_kafka(bootstrap: &str, topic: &str) -> BTreeMap<String, (u64, u64)> {
    let mut windows = BTreeMap::new();
    for text in kafka::texts(bootstrap, topic) {
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let word = |name: &str| value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"));
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"));
        let window = format!("{}:{}", word("window_start"), word("host"));
        let before = windows.insert(window, (number("requests"), number("bytes")));
        assert_eq!(before, None, "a window stands twice in {topic}: {value}");
    }
    windows
}

/// Batch follows batch without a pause, each of 50 records of a partition: so a job that has read enough is in the middle of its next batch.
const SMALL_BATCHES: &str = "SET 'batch.interval' = '20ms';\nSET 'spark.streaming.kafka.maxRatePerPartition' = '2500';\n";

/// Waits until the job has read this many rows; gives how many it has read.
async fn has_read(engine: &mut Process, job: &str, rows: u64) -> u64 {
    let page = engine.address("page").await;
    let log = || engine.log();
    eventually(WAIT, &format!("the job reads {rows} rows"), || async {
        let response = reqwest::get(format!("http://{page}/api/v1/applications/{job}")).await.map_err(|error| error.to_string())?;
        let job: serde_json::Value = response.json().await.map_err(|error| error.to_string())?;
        let read = job["totals"]["rows_in"].as_u64().filter(|read| *read >= rows);
        read.ok_or_else(|| format!("{job}\n{}", log()))
    })
    .await
}

/// Kills the engine when its job has read so many rows, a random number of those that it has not: none, some, or all. `read` is what it had
/// read when it was killed last, and then what it has read now.
async fn killed_on_its_way(engine: &mut Process, job: &str, read: &mut u64, rows: u64) {
    *read = has_read(engine, job, rand::rng().random_range(*read..=rows)).await;
    engine.kill_9();
}

/// Feeds the windowed job while its engine is killed eight times, and drains it. Gives the rows and the last engine's log.
async fn killed_again_and_again(bootstrap: &str, sink: &str) -> (u64, String) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("engine");
    kafka::create_topic(bootstrap, &topic, 3).await;
    let job = dir.path().join("job.sql");
    let sql = format!("{SMALL_BATCHES}{}{sink}INSERT INTO totals {WINDOWED}", source(&topic, bootstrap, ""));
    fs::write(&job, sql).expect("the job");

    let mut process = engine(dir.path());
    let mut address = process.address("control").await;
    let (code, said) = cli(&address, &["job", "submit", &job.to_string_lossy(), "--name", "totals"]);
    assert_eq!(code, 0, "{said}");
    let (mut rows, mut read) = (0, 0);
    for _ in 0..8 {
        kafka::produce(bootstrap, &topic, 3, (rows..rows + 1_500).map(|n| row(n).2));
        rows += 1_500;
        killed_on_its_way(&mut process, "totals", &mut read, rows).await;
        // The job is the engine's, not the submitter's: it resumes by itself.
        process = engine(dir.path());
        address = process.address("control").await;
    }
    let (code, said) = cli(&address, &["job", "stop", "totals", "--drain"]);
    assert_eq!(code, 0, "{said}\n{}", process.log());
    process.stop().await;
    (rows, process.log())
}

#[tokio::test]
async fn kill_9_at_any_moment_loses_and_repeats_nothing_in_redis() {
    let prefix = unique("engine-totals");
    let (rows, log) = killed_again_and_again(&kafka_bootstrap(), &redis_sink(&prefix, &redis_url())).await;
    assert_eq!(in_redis(&prefix), expected(rows), "{log}");
}

#[tokio::test]
async fn kill_9_at_any_moment_loses_and_repeats_nothing_in_kafka() {
    let (bootstrap, out) = (kafka_bootstrap(), unique("engine-out"));
    kafka::create_topic(&bootstrap, &out, 2).await;
    let (rows, log) = killed_again_and_again(&bootstrap, &kafka_sink(&out, &bootstrap)).await;
    assert_eq!(in_kafka(&bootstrap, &out), expected(rows), "{log}");
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
    let sql = format!(
        "SET 'batch.interval' = '100ms';\n{}{}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, ",\n  'scan.bounded.mode' = 'latest-offset'"),
        kafka_sink(&out, &bootstrap)
    );
    fs::write(&job, sql).expect("the job");
    let checkpoint = dir.path().join("checkpoint");
    let args = ["run", &job.to_string_lossy(), "--name", &unique("bounded"), "--checkpoint", &checkpoint.to_string_lossy()];
    let output = run("millrace-engine", &args, &FREE_PORTS);
    let log = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    assert_eq!(log.matches("older transaction protocol").count(), 1, "said once per sink: {log}");
    assert_eq!(in_kafka(&bootstrap, &out), expected(5_000), "{log}");
}

#[tokio::test]
async fn records_that_are_no_rows_arrive_in_the_dead_letter_topic() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (topic, out, letters) = (unique("engine"), unique("engine-out"), unique("engine-letters"));
    kafka::create_topic(&bootstrap, &topic, 2).await;
    kafka::create_topic(&bootstrap, &out, 1).await;
    kafka::create_topic(&bootstrap, &letters, 1).await;
    // Every fifth record is none, each bad in one of four ways; both partitions have some.
    let bad = |n: u64| match n % 4 {
        0 => (format!(r#"{{"ts": oops {n}"#), "not JSON"),
        1 => (format!("[{n}]"), "not JSON"),
        2 => (format!(r#"{{"ts":{EPOCH_MS},"host":"web","bytes":"{n} or so"}}"#), "field `bytes`"),
        _ => (format!("line {n} of something else"), "not JSON"),
    };
    let mixed = (0..1_000).flat_map(|n| [Some(row(n).2), (n % 4 == 3).then(|| bad(n / 4).0)]).flatten();
    kafka::produce(&bootstrap, &topic, 2, mixed);
    let wanted: BTreeMap<String, &str> = (0..250).map(bad).collect();
    let job = dir.path().join("job.sql");
    let more = format!(",\n  'scan.bounded.mode' = 'latest-offset', 'dead-letter.topic' = '{letters}'");
    let sql = format!(
        "SET 'batch.interval' = '100ms';\n{}{}INSERT INTO totals {WINDOWED}",
        source(&topic, &bootstrap, &more),
        kafka_sink(&out, &bootstrap)
    );
    fs::write(&job, sql).expect("the job");
    let checkpoint = dir.path().join("checkpoint");
    let args = ["run", &job.to_string_lossy(), "--name", &unique("letters"), "--checkpoint", &checkpoint.to_string_lossy()];
    let output = run("millrace-engine", &args, &FREE_PORTS);
    let log = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{log}");
    assert_eq!(in_kafka(&bootstrap, &out), expected(1_000), "{log}");

    let sent = kafka::read_all(&bootstrap, &topic);
    let arrived = kafka::read_all(&bootstrap, &letters);
    assert_eq!(arrived.len(), wanted.len(), "{log}");
    let texts: BTreeSet<String> = arrived.iter().map(kafka::Seen::text).collect();
    assert!(texts.iter().eq(wanted.keys()), "others arrived, or one twice: {texts:?}");
    for letter in &arrived {
        let header = |name: &str| String::from_utf8_lossy(letter.headers.get(name).map_or(b"", Vec::as_slice)).into_owned();
        let reason = header("millrace.reason");
        assert!(wanted.get(&letter.text()).is_some_and(|part| reason.contains(part)), "{reason:?} for {}", letter.text());
        assert_eq!(header("millrace.topic"), topic);
        let (partition, offset) = (header("millrace.partition").parse(), header("millrace.offset").parse());
        let origin = sent.iter().find(|record| (Ok(record.partition), Ok(record.offset)) == (partition.clone(), offset.clone()));
        assert_eq!(origin.map(kafka::Seen::text), Some(letter.text()), "at {partition:?} {offset:?}");
    }
}

#[test]
fn mistakes_in_sql_are_shown_with_place_and_remedy() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let table = "CREATE TABLE t (a BIGINT, b STRING) WITH ('connector' = 'kafka', 'topic' = 'x', 'properties.bootstrap.servers' = '127.0.0.1:1', 'format' = 'json');\n\
                 CREATE TABLE o (a BIGINT) WITH ('connector' = 'console');\n";
    let cases: &[(String, &[&str])] = &[
        (format!("{table}INSERT INTO o SELEC a FROM t;"), &["job.sql:3:15", "SELEC"]),
        (format!("{table}INSERT INTO o SELECT aa FROM t;"), &["job.sql:3:22", "unknown column `aa`", "columns: a, b"]),
        (format!("{table}INSERT INTO o SELECT a FROM tt;"), &["job.sql:3:29", "unknown table `tt`", "tables: o, t"]),
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
    let page = program.address("page").await;
    let counts = |log: &str| -> Vec<u64> {
        let lines = log.lines().filter_map(|line| line.strip_suffix(" lines in the last 30 seconds"));
        lines.map(|count| count.parse().unwrap_or_else(|error| panic!("{count}: {error}"))).collect()
    };
    // `latest`: what comes after the start is counted. The records go in just after a window, so that one batch reads them.
    program.log_contains(Duration::from_secs(60), "lines in the last 30 seconds").await;
    kafka::produce(&bootstrap, "logs_topic", 1, (0..30).map(|n| format!("the article's line {n}")));
    // 30 seconds every 10: three windows hold them, the next one does not.
    let log = eventually(Duration::from_secs(120), "the windows pass", || async {
        let log = program.log();
        if counts(&log).ends_with(&[30, 30, 30, 0]) { Ok(log) } else { Err(log) }
    })
    .await;
    assert_eq!((log.matches("null: the article's line 9\n").count(), log.matches("the article's line").count()), (3, 30), "{log}");
    let get = |path: &str| {
        let path = format!("http://{page}/api/v1/applications{path}");
        async move { reqwest::get(path).await.expect("the page").json::<serde_json::Value>().await.expect("JSON") }
    };
    let name = get("").await[0]["id"].as_str().expect("the job").to_owned();
    let batches = get(&format!("/{name}/streaming/batches")).await;
    let batches = batches.as_array().expect("a list").iter().filter(|batch| batch["status"] == "COMPLETED");
    let time = |batch: &serde_json::Value| batch["batchId"].as_u64().expect("a time");
    let mut windows: Vec<u64> = batches.filter(|batch| batch["numTotalOutputOps"] == 1).map(time).collect();
    windows.sort_unstable();
    assert!(windows.len() >= 4 && windows.windows(2).all(|pair| pair[1] - pair[0] == 10_000), "{windows:?}");
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
    let batches = reqwest::get(format!("http://{page}/api/v1/applications/page/streaming/batches")).await.expect("the batches");
    let batches: Vec<serde_json::Value> = batches.json().await.expect("JSON");
    let first = &batches.last().expect("a batch")["batchId"];
    let response = reqwest::get(format!("http://{page}/jobs/page/batches/{first}")).await.expect("the batch's page");
    assert_eq!(response.status(), 200);
    let text = response.text().await.expect("its text");
    // Topic, partition, from, until, records.
    let row = format!(
        "<th scope=\"row\">{topic}</th><td class=\"n\">0</td><td class=\"n\">0</td><td class=\"n\">500</td><td class=\"n\">500</td>"
    );
    assert!(text.contains(&row), "without {row}: {text}");
    process.stop().await;
}
