//! What a killed Flume left in its file channel: given out by the collector's commands exactly as Flume itself would
//! deliver it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use integration_tests::{eventually, flume::Flume, process::run};
use rustix::process::Signal;
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(60);
const EVENTS: usize = 6000;

/// An agent whose channel is below `dir`; its sink writes files to `DIR/OUT`.
fn conf(dir: &Path, out: &str, events: usize, batch: usize) -> String {
    let (dir, source) = (dir.display(), if events == 0 { "" } else { "r" });
    format!(
        "agent.sources = {source}\nagent.channels = c\nagent.sinks = k\n\
         agent.sources.r.type = seq\nagent.sources.r.totalEvents = {events}\nagent.sources.r.batchSize = 50\nagent.sources.r.channels = c\n\
         agent.sources.r.interceptors = s\nagent.sources.r.interceptors.s.type = static\nagent.sources.r.interceptors.s.key = k\n\
         agent.channels.c.type = file\nagent.channels.c.checkpointDir = {dir}/checkpoint\n\
         agent.channels.c.dataDirs = {dir}/data1,{dir}/data2\nagent.channels.c.checkpointInterval = 1000\n\
         agent.channels.c.transactionCapacity = 100\nagent.channels.c.maxFileSize = 100000\n\
         agent.sinks.k.type = file_roll\nagent.sinks.k.sink.directory = {dir}/{out}\nagent.sinks.k.sink.rollInterval = 0\n\
         agent.sinks.k.sink.batchSize = {batch}\nagent.sinks.k.channel = c\n"
    )
}

/// The lines that Flume's sink has written.
fn rolled(folder: &Path) -> Vec<String> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).expect("the sink's folder").flatten().map(|entry| entry.path()).collect();
    files.sort();
    files.iter().flat_map(|file| fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("a copy");
        }
    }
}

/// Every file below `folder` with what is in it.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for path in fs::read_dir(folder).expect("a folder").flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            all.extend(contents(&path));
        } else {
            all.push((path.clone(), fs::read(&path).expect("a file")));
        }
    }
    all.sort();
    all
}

fn command(args: &[&str], conf: &Path) -> (i32, String, String) {
    let conf = conf.to_string_lossy();
    let output = run("millrace-collector", &[&["channel"], args, &[&conf]].concat(), &[]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn what_a_killed_flume_left_is_given_out_as_flume_delivers_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (left, again) = (dir.path().join("left"), dir.path().join("again"));
    for folder in [left.join("out"), again.join("out")] {
        fs::create_dir_all(folder).expect("a folder");
    }
    // A sync for each event: the sink has long to do.
    let text = conf(&left, "out", EVENTS, 1);
    let mut flume = Some(Flume::start(dir.path(), "filling", &text));
    eventually(WAIT, "Flume has delivered some", || async {
        let count = rolled(&left.join("out")).len();
        if count > 300 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    // It must not have delivered everything by the time it is killed.
    flume.iter().for_each(|flume| flume.signal(Signal::STOP));
    let file = dir.path().join("filling.conf");
    // Not beside a running Flume, unless told.
    let (code, _, error) = command(&["drain"], &file);
    assert!(code == 1 && error.contains("in_use.lock: stop Flume first"), "{error}");
    assert_eq!(command(&["inspect", "--ignore-lock"], &file).0, 0);
    // SIGKILL.
    drop(flume.take());
    for folder in ["checkpoint", "data1", "data2"] {
        copy(&left.join(folder), &again.join(folder));
    }
    let before = contents(&left);

    let inspected: Value = serde_json::from_str(&command(&["inspect", "-o", "json"], &file).1).expect("JSON");
    let (code, verified, _) = command(&["verify", "-o", "json"], &file);
    let verified: Value = serde_json::from_str(&verified).expect("JSON");
    assert_eq!((code, &verified["well"], &inspected["of"]), (0, &Value::Bool(true), &Value::from("flume")), "{verified}");
    let (code, drained, said) = command(&["drain"], &file);
    assert_eq!(code, 0, "{said}");
    let mut bodies = Vec::new();
    for line in drained.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(event["headers"], serde_json::json!({ "k": "value" }), "{line}");
        bodies.push(event["body"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(inspected["waiting"], bodies.len());
    assert!(!bodies.is_empty() && bodies.len() < EVENTS, "{}", bodies.len());
    assert!(before == contents(&left), "something was changed in Flume's directories");

    // `check` tells of them.
    let checked = run("millrace-collector", &["check", &file.to_string_lossy()], &[]);
    assert!(String::from_utf8_lossy(&checked.stdout).contains("logs that Flume left"));

    let _flume = Flume::start(dir.path(), "delivering", &conf(&again, "out", 0, 100));
    eventually(WAIT, "Flume has delivered as much", || async {
        let count = rolled(&again.join("out")).len();
        if count >= bodies.len() { Ok(()) } else { Err(format!("{count} of {}", bodies.len())) }
    })
    .await;
    assert_eq!(rolled(&again.join("out")), bodies);
}
