//! The engine's page in a browser, and its line on a terminal: what a person reads while a job runs.

use std::{fs, path::Path, process::Command, time::Duration};

use integration_tests::{
    eventually, kafka,
    process::{Process, binary, run},
    servers::{kafka_bootstrap, script},
    unique,
};
use regex::Regex;

const WAIT: Duration = Duration::from_secs(60);
const FREE_PORTS: [(&str, &str); 2] = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")];
const ROWS: u64 = 1234;

/// What the page says when its own script has run for a while, without the markup. With SCREENSHOTS=DIR a picture of it
/// is left there, to look at.
fn read_in_browser(url: &str, dir: &Path) -> String {
    let dom = browse(url, dir, &["--dump-dom"]);
    if let Ok(pictures) = std::env::var("SCREENSHOTS") {
        let name: String = url.chars().skip_while(|c| *c != ':').map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        browse(url, dir, &[&format!("--screenshot={pictures}/{name}.png"), "--window-size=1200,2200"]);
    }
    assert!(!dom.is_empty(), "{url}: the browser showed nothing");
    let replaced = |pattern: &str, text: &str, with: &str| Regex::new(pattern).expect("a pattern").replace_all(text, with).into_owned();
    let text = replaced("(?s)<(script|style|title).*?</(script|style|title)>", &dom, " ");
    let text = replaced("(?s)<[^>]*>", &text, " ");
    replaced(r"\s+", &text.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"), " ")
}

/// What the browser prints.
fn browse(url: &str, dir: &Path, what: &[&str]) -> String {
    let profile = format!("--user-data-dir={}", dir.join("profile").display());
    // Virtual time: the script's timers do not wait, its requests do.
    let flags =
        ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--virtual-time-budget=4000"];
    // A browser that hangs must not hang the test.
    let mut command = Command::new("timeout");
    command.arg("60").arg(script("chromium", &[])).args(flags).arg(profile).args(what).arg(url);
    let output = command.output().unwrap_or_else(|error| panic!("chromium: {error}"));
    assert!(output.status.success(), "chromium {url}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn reads(page: &str, parts: &[&str]) {
    for part in parts {
        assert!(page.contains(part), "{part:?} is not on the page:\n{page}");
    }
}

fn job(topic: &str, bootstrap: &str) -> String {
    format!(
        "SET 'batch.interval' = '200ms';\n\
         CREATE TABLE requests (host STRING, bytes BIGINT)\n\
         WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json');\n\
         CREATE TABLE large (host STRING, bytes BIGINT) WITH ('connector' = 'console', 'format' = 'json');\n\
         INSERT INTO large SELECT host, bytes FROM requests WHERE bytes >= 1000;\n"
    )
}

async fn topic(bootstrap: &str) -> String {
    let topic = unique("page");
    kafka::create_topic(bootstrap, &topic, 2).await;
    kafka::produce(bootstrap, &topic, 2, (0..ROWS).map(|n| format!(r#"{{"host":"web-{}","bytes":{n}}}"#, n % 7)));
    topic
}

async fn json(url: &str) -> serde_json::Value {
    let answer = reqwest::get(url).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    answer.json().await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_the_batches_of_a_running_job_in_a_browser() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bootstrap = kafka_bootstrap();
    let topic = topic(&bootstrap).await;
    let file = dir.path().join("job.sql");
    fs::write(&file, job(&topic, &bootstrap)).expect("the job");
    let checkpoints = dir.path().join("checkpoints").display().to_string();
    let mut engine = Process::start("millrace-engine", dir.path(), &["serve", "--checkpoint", &checkpoints], &FREE_PORTS);
    let control = engine.address("control").await;
    let page = format!("http://{}", engine.address("page").await);
    let submitted = run("millrace", &["--engine", &control, "job", "submit", &file.to_string_lossy(), "--name", "large"], &[]);
    assert!(submitted.status.success(), "{submitted:?}");
    let api = format!("{page}/api/v1/applications/large/streaming");
    eventually(WAIT, "all rows are processed", async || {
        let statistics = json(&format!("{api}/statistics")).await;
        if statistics["numProcessedRecords"] == ROWS { Ok(()) } else { Err(statistics.to_string()) }
    })
    .await;

    let jobs = read_in_browser(&page, dir.path());
    reads(&jobs, &["Jobs", "large RUNNING sql", "1,234 234"]);

    let seen = read_in_browser(&format!("{page}/jobs/large"), dir.path());
    reads(&seen, &["large RUNNING", "Running batches of 200 ms for", " since ", "completed batches, 1,234 records)", "Rows out 234"]);
    reads(
        &seen,
        &["Input rate", "Input rate by stream (1)", "requests", "Behind 0 records", "Scheduling delay", "Processing time", "Total delay"],
    );
    reads(&seen, &["Active batches (", "Completed batches (last ", " out of ", "Outputs: succeeded/total", "1/1 completed"]);
    // The page's script has fetched it again.
    assert!(Regex::new(r"Updated \d\d:\d\d:\d\d").expect("a pattern").is_match(&seen), "{seen}");

    let batches = json(&format!("{api}/batches?status=COMPLETED")).await;
    let full = batches.as_array().expect("batches").iter().find(|batch| batch["inputSize"].as_u64() > Some(0)).expect("a batch with rows");
    let id = &full["batchId"];
    let seen = read_in_browser(&format!("{page}/jobs/large/batches/{id}"), dir.path());
    reads(&seen, &["Batch at ", " completed", &format!("Input data size {} records", grouped(&full["inputSize"])), "Attempts 1"]);
    reads(
        &seen,
        &["0 large INSERT INTO large", "succeeded", "requests · left for later batches: 0 records", "From offset", "Until offset", &topic],
    );
    engine.stop().await;
}

/// As the page writes it: `1,234`.
fn grouped(n: &serde_json::Value) -> String {
    let n = n.as_u64().expect("a number");
    if n < 1000 { n.to_string() } else { format!("{},{:03}", n / 1000, n % 1000) }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_draws_one_line_on_a_terminal_and_none_elsewhere() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bootstrap = kafka_bootstrap();
    let topic = topic(&bootstrap).await;
    let file = dir.path().join("large.sql");
    let source = "'scan.startup.mode' = 'earliest-offset'";
    let bounded = job(&topic, &bootstrap).replace(source, &format!("{source}, 'scan.bounded.mode' = 'latest-offset'"));
    // At this rate it runs for about a second.
    fs::write(&file, format!("SET 'spark.streaming.kafka.maxRatePerPartition' = '500';\n{bounded}")).expect("the job");
    let command = format!("{} run {}", binary("millrace-engine").display(), file.display());
    let on_terminal = Command::new("script").args(["-qec", &command, "/dev/null"]).envs(FREE_PORTS).output().expect("script");
    let shown = String::from_utf8_lossy(&on_terminal.stdout);
    assert!(on_terminal.status.success(), "{shown}");
    assert!(shown.contains("large RUNNING · ") && shown.contains(" rows in, "), "{shown}");
    assert!(shown.contains(r#"{"host":"web-1","bytes":1233}"#), "{shown}");
    let elsewhere = run("millrace-engine", &["run", &file.to_string_lossy()], &FREE_PORTS);
    let log = String::from_utf8_lossy(&elsewhere.stderr);
    assert!(elsewhere.status.success() && !log.contains("large RUNNING"), "{log}");
}
