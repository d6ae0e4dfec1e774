//! The `hdfs` sink on a server of the S3 protocol, read by Amazon's own client.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    time::Duration,
};

use integration_tests::{eventually, process::Process, servers::OwnS3};

const WAIT: Duration = Duration::from_secs(60);

/// Key and content of every object.
fn objects(s3: &OwnS3) -> BTreeMap<String, String> {
    s3.objects().into_iter().map(|(key, content)| (key, String::from_utf8(content).expect("text"))).collect()
}

/// Small files by count, and large ones, which go up in parts.
fn conf(dir: &Path, url: &str) -> String {
    let mut text = "agent.sources = small large\nagent.channels = small large\nagent.sinks = small large\n".to_owned();
    for (name, roll) in [("small", "hdfs.rollCount = 700\nhdfs.rollInterval = 1"), ("large", "hdfs.rollCount = 0\nhdfs.rollInterval = 2")] {
        let component = format!(
            "sources.NAME.type = TAILDIR\nsources.NAME.filegroups = g\nsources.NAME.filegroups.g = {}/NAME.log\n\
             sources.NAME.channels = NAME\nchannels.NAME.type = memory\nchannels.NAME.capacity = 40000\n\
             channels.NAME.transactionCapacity = 1000\nsinks.NAME.type = hdfs\nsinks.NAME.channel = NAME\n\
             sinks.NAME.hdfs.path = s3a://logs/app/NAME\nsinks.NAME.hdfs.filePrefix = ev\nsinks.NAME.hdfs.fileSuffix = .log\n\
             sinks.NAME.hdfs.fileType = DataStream\nsinks.NAME.hdfs.rollSize = 0\n\
             sinks.NAME.hdfs.store.aws_endpoint = {url}\nsinks.NAME.hdfs.store.aws_allow_http = true\n",
            dir.display()
        );
        let roll = roll.lines().map(|line| format!("sinks.NAME.{line}\n"));
        for line in component.lines().map(str::to_owned).chain(roll) {
            text += &format!("agent.{}\n", line.trim().replace("NAME", name));
        }
    }
    text
}

fn start(dir: &Path) -> Process {
    let (path, state) = (dir.join("agent.conf"), dir.join("state"));
    let args = ["agent", "-n", "agent", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [
        ("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"),
        ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0"),
        ("AWS_ACCESS_KEY_ID", "millrace"),
        ("AWS_SECRET_ACCESS_KEY", "millrace"),
        ("AWS_REGION", "us-east-1"),
        ("NO_PROXY", "127.0.0.1"),
    ];
    Process::start("millrace-collector", dir, &args, &env)
}

fn append(path: &Path, lines: &[String]) {
    let mut log = OpenOptions::new().create(true).append(true).open(path).expect("the log");
    log.write_all((lines.join("\n") + "\n").as_bytes()).expect("the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_has_every_line_after_a_kill_in_whole_objects_that_never_change() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let s3 = OwnS3::start(dir.path().join("s3"), "logs");
    fs::write(dir.path().join("agent.conf"), conf(dir.path(), &s3.url)).expect("the agent's file");
    let small: Vec<String> = (0..6000).map(|n| format!("line {n:05}")).collect();
    // Above the bytes that go up in one piece.
    let large: Vec<String> = (0..12_000).map(|n| format!("{n:05} {}", "x".repeat(1000))).collect();
    append(&dir.path().join("small.log"), &small[..3000]);
    append(&dir.path().join("large.log"), &large);
    let mut first = start(dir.path());
    first.addresses().await;
    let early = eventually(WAIT, "the first objects", || async {
        let objects = objects(&s3);
        if objects.is_empty() { Err("none".to_owned()) } else { Ok(objects) }
    })
    .await;
    first.kill_9();
    append(&dir.path().join("small.log"), &small[3000..]);
    let mut second = start(dir.path());
    second.addresses().await;
    let found = |objects: &BTreeMap<String, String>| -> BTreeSet<String> {
        objects.values().flat_map(|text| text.lines()).map(str::to_owned).collect()
    };
    eventually(WAIT, "every line is in S3", || async {
        let found = found(&objects(&s3));
        let missing = small.iter().chain(&large).filter(|line| !found.contains(*line)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    })
    .await;
    second.stop().await;
    let objects = objects(&s3);
    let written: BTreeSet<&String> = small.iter().chain(&large).collect();
    for (key, text) in &objects {
        let name = key.strip_prefix("app/small/ev.").or_else(|| key.strip_prefix("app/large/ev."));
        let counter = name.and_then(|name| name.strip_suffix(".log"));
        assert!(counter.is_some_and(|counter| counter.parse::<u64>().is_ok()), "{key}");
        assert!(text.ends_with('\n'), "{key} is torn");
        assert!(text.lines().all(|line| written.contains(&line.to_owned())), "{key} has a line that nobody wrote");
        let most = if key.contains("small") { 700 } else { large.len() };
        assert!(text.lines().count() <= most, "{key} has {} lines", text.lines().count());
    }
    assert!(objects.values().any(|text| text.lines().count() == 700), "no file was rolled by its count");
    assert!(objects.values().any(|text| text.len() > 8 << 20), "nothing went up in parts");
    for (key, text) in &early {
        assert!(objects.get(key) == Some(text), "{key} changed, or is gone");
    }
}
