//! `millrace tap` and `millrace top` on a running collector, and `millrace-collector test`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration_tests::{
    eventually,
    flume::free_port,
    process::{Process, binary, run},
    root,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(60);

fn conf(dir: &Path, port: u16, tier: &str) {
    let text = format!(
        "a.sources = r1\na.channels = c1\na.sinks = k1\na.sources.r1.type = netcat\na.sources.r1.bind = 127.0.0.1\na.sources.r1.port = {port}\n\
         a.sources.r1.ack-every-event = false\na.sources.r1.channels = c1\na.sources.r1.interceptors = i f\na.sources.r1.interceptors.i.type = static\n\
         a.sources.r1.interceptors.i.key = tier\na.sources.r1.interceptors.i.value = {tier}\na.sources.r1.interceptors.f.type = regex_filter\n\
         a.sources.r1.interceptors.f.regex = ^#\na.sources.r1.interceptors.f.excludeEvents = true\na.channels.c1.type = memory\n\
         a.sinks.k1.type = null\na.sinks.k1.channel = c1\n"
    );
    let new = dir.join("agent.conf.new");
    fs::write(&new, text).expect("the agent's file");
    fs::rename(new, dir.join("agent.conf")).expect("the agent's file");
}

/// A `millrace` that goes on until it is told to stop.
struct Running(Child);

impl Running {
    fn start(control: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary("millrace"));
        command.arg("--collector").arg(control).args(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("millrace");
        Self(child)
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("its id");
        kill_process(pid, signal).expect("the signal");
    }

    async fn ended(&mut self) -> Option<i32> {
        eventually(WAIT, "it ends", || {
            let ended = self.0.try_wait().expect("its state");
            async move { ended.map(|status| status.code()).ok_or_else(|| "it runs".to_owned()) }
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Lines to the source until `enough`; each has its number.
fn feed(port: u16, mut enough: impl FnMut() -> bool) {
    let begun = Instant::now();
    let mut number = 0;
    let mut to: Option<TcpStream> = None;
    while !enough() {
        assert!(begun.elapsed() < WAIT, "not enough after {number} lines");
        // A reload closes the connection.
        let connected = to.take().map_or_else(|| TcpStream::connect(("127.0.0.1", port)), Ok);
        if let Ok(mut stream) = connected
            && stream.write_all(format!("# comment\nline {number}\n").as_bytes()).is_ok()
        {
            number += 1;
            to = Some(stream);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

async fn counters(metrics: &str, component: &str) -> Value {
    let page: Value = reqwest::get(format!("http://{metrics}/metrics")).await.expect("the page").json().await.expect("JSON");
    page[component].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn taps_and_top_show_what_passes_and_hold_up_nothing() {
    let (dir, port) = (tempfile::tempdir().expect("a temporary folder"), free_port());
    conf(dir.path(), port, "web");
    let (file, state) = (dir.path().join("agent.conf"), dir.path().join("state"));
    let args = ["agent", "-n", "a", "-f", &file.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [
        ("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"),
        ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0"),
        ("MILLRACE_AGENT__RELOAD_INTERVAL", "100ms"),
    ];
    let mut collector = Process::start("millrace-collector", dir.path(), &args, &env);
    let (control, metrics) = (collector.address("control").await, collector.address("metrics").await);

    // The same event at every place, as it is there.
    let mut tap = Running::start(&control, &["tap", "--inputs-of", "*", "*", "--format", "json", "--limit", "9999", "--quiet"]);
    let lines = BufReader::new(tap.0.stdout.take().expect("its output")).lines();
    let (sender, seen) = std::sync::mpsc::sync_channel::<Value>(100_000);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(serde_json::from_str(&line).expect("JSON")).is_err() {
                return;
            }
        }
    });
    let (places, comments) = tokio::task::block_in_place(|| {
        let (mut places, mut comments) = (std::collections::BTreeMap::new(), 0);
        feed(port, || {
            while let Ok(event) = seen.try_recv() {
                let place =
                    format!("{} {}", event["component"].as_str().expect("its name"), event["direction"].as_str().expect("in or out"));
                if event["body"] == "# comment" {
                    assert_eq!(place, "source.r1 in", "an interceptor ends it");
                    comments += 1;
                } else {
                    places.insert(place, event);
                }
            }
            places.len() == 6 && comments > 0
        });
        (places, comments)
    });
    assert!(comments > 0);
    assert_eq!(
        places.keys().map(String::as_str).collect::<Vec<_>>(),
        ["channel.c1 in", "channel.c1 out", "sink.k1 in", "sink.k1 out", "source.r1 in", "source.r1 out"]
    );
    for (place, event) in &places {
        let tier = if place == "source.r1 in" { Value::Null } else { "web".into() };
        assert_eq!(event["headers"]["tier"], tier, "{place}");
        assert!(event["body"].as_str().expect("text").starts_with("line "), "{place}: {event}");
    }

    // Components that come with a reload are tapped on.
    conf(dir.path(), port, "api");
    tokio::task::block_in_place(|| {
        feed(port, || seen.try_iter().any(|event| event["component"] == "sink.k1" && event["headers"]["tier"] == "api"));
    });
    tap.signal(Signal::INT);
    assert_eq!(tap.ended().await, Some(0));

    // A filter, and an end.
    let mut tap = Running::start(&control, &["tap", "r1", "--contains", "7", "--header", "tier=api", "--max", "2", "--headers"]);
    tokio::task::block_in_place(|| feed(port, || tap.0.try_wait().expect("its state").is_some()));
    assert_eq!(tap.ended().await, Some(0));
    let text = std::io::read_to_string(tap.0.stdout.take().expect("its output")).expect("text");
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.lines().all(|line| line.starts_with("source.r1 → {tier=api} line ") && line.contains('7')), "{text}");

    // Who does not read holds up nobody: what is too much is counted.
    let stuck = Running::start(&control, &["tap", "--limit", "10000", "--interval", "10"]);
    eventually(WAIT, "the tap is open", || async {
        let text = reqwest::get(format!("http://{metrics}/prometheus")).await.expect("the page").text().await.expect("text");
        if text.contains("\nmillrace_collector_taps 1") { Ok(()) } else { Err(text) }
    })
    .await;
    stuck.signal(Signal::STOP);
    let mut to = TcpStream::connect(("127.0.0.1", port)).expect("the source");
    let before = counters(&metrics, "SINK.k1").await["EventDrainSuccessCount"].as_str().and_then(|count| count.parse::<u64>().ok());
    const MANY: u64 = 40_000;
    let text: String = (0..MANY).map(|number| format!("{number} {}\n", "x".repeat(200))).collect();
    to.write_all(text.as_bytes()).expect("lines");
    eventually(WAIT, "all of it is delivered", || async {
        let now = counters(&metrics, "SINK.k1").await["EventDrainSuccessCount"].as_str().and_then(|count| count.parse::<u64>().ok());
        if now >= before.map(|before| before + MANY) { Ok(()) } else { Err(format!("{before:?}, {now:?}")) }
    })
    .await;
    let text = reqwest::get(format!("http://{metrics}/prometheus")).await.expect("the page").text().await.expect("text");
    let over = text.lines().find_map(|line| line.strip_prefix("millrace_collector_tap_passed_over_events_total ")?.parse::<u64>().ok());
    assert!(over.is_some_and(|over| over > 0), "{over:?}");

    // A line for each look, with rates.
    let mut top = Running::start(&control, &["top", "--interval", "300ms", "--output", "json"]);
    let (sender, reports) = std::sync::mpsc::sync_channel::<Value>(100_000);
    let lines = BufReader::new(top.0.stdout.take().expect("its output")).lines();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(serde_json::from_str(&line).expect("JSON")).is_err() {
                return;
            }
        }
    });
    let report = tokio::task::block_in_place(|| {
        let mut last = Value::Null;
        feed(port, || {
            last = reports.try_iter().find(|report| report["components"][0]["in_per_s"].as_f64() > Some(0.0)).unwrap_or_default();
            !last.is_null()
        });
        last
    });
    let row = |at: usize| &report["components"][at];
    assert_eq!((&row(0)["kind"], &row(1)["kind"], &row(2)["kind"]), (&"source".into(), &"channel".into(), &"sink".into()));
    assert!(row(0)["bytes_per_s"].as_f64() > Some(0.0) && row(2)["bytes_per_s"].as_f64() > Some(0.0), "{report}");
    assert!(row(1)["fill_percent"].is_number() && row(0)["state"] == "running", "{report}");
    top.signal(Signal::INT);
    assert_eq!(top.ended().await, Some(0));
    let table = run("millrace", &["--collector", &control, "top", "--interval", "50ms"], &[]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("KIND") && table.lines().count() == 4, "one table where there is no terminal: {table}");

    // An open tap does not hold up the end.
    let stop = Instant::now();
    collector.stop().await;
    assert!(stop.elapsed() < Duration::from_secs(10), "{:?}", stop.elapsed());
}

#[test]
fn pipeline_tests_are_run_from_the_command_line() {
    let collector = |args: &[&str]| {
        let output = run("millrace-collector", args, &[]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let fixture: PathBuf = root().join("collector/tests/fixtures/article-tests.toml");
    let (code, text, error) = collector(&["test", &fixture.to_string_lossy()]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{text}");
    assert!(text.ends_with("2 tests, 0 failed\n"), "{text}");

    let dir = tempfile::tempdir().expect("a temporary folder");
    let wrong = fs::read_to_string(&fixture)
        .expect("the fixture")
        .replace("article.conf", &fixture.with_file_name("article.conf").to_string_lossy());
    let (bad, unknown) = (dir.path().join("wrong.toml"), dir.path().join("unknown.toml"));
    fs::write(&bad, wrong.replace("topic = \"logs_topic\"", "topic = \"other\"")).expect("a file");
    fs::write(&unknown, wrong.replace("topic = ", "topik = ")).expect("a file");
    let line = 1 + wrong.lines().position(|line| line.contains("[[test.expect.event]]")).expect("an event");
    let (code, text, _) = collector(&["test", &bad.to_string_lossy()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("topic\n         expected  \"other\"\n         seen      \"logs_topic\""), "{text}");
    let (code, text, _) = collector(&["test", "--output", "json", &bad.to_string_lossy()]);
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["passed"]), (Some(1), &false.into()));
    let failures: Vec<&Value> =
        report["tests"].as_array().expect("tests").iter().flat_map(|test| test["failures"].as_array().expect("failures")).collect();
    assert!(failures.iter().all(|failure| failure["what"] == "topic" && failure["line"].as_u64() >= Some(line as u64)), "{text}");
    let (code, _, error) = collector(&["test", &unknown.to_string_lossy()]);
    assert_eq!(code, Some(78), "{error}");
    assert!(error.contains("unknown.toml:") && error.contains("unknown field `topik`"), "{error}");
    assert_eq!(collector(&["test"]).0, Some(64));
}
