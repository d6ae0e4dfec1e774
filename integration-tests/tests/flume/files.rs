//! Sinks that write files or POST, beside real Flume, real HDFS and Hadoop's own reader; and what a kill costs: nothing.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use integration_tests::{
    eventually,
    flume::{Flume, free_port},
    process::Process,
    servers::{OwnHdfs, script},
};
use rand::RngExt as _;
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

const WAIT: Duration = Duration::from_secs(90);
/// Of every comparison.
const EVENTS: usize = 25;

/// One sink: its name is its folder; `OUT` stands for the folder of all.
const SINKS: &[(&str, &str)] = &[
    ("text", "type = file_roll\nsink.directory = OUT/text\nsink.rollInterval = 0"),
    (
        "headers",
        "type = file_roll\nsink.directory = OUT/headers\nsink.rollInterval = 0\nsink.serializer = header_and_text\n\
         sink.pathManager.prefix = p-\nsink.pathManager.extension = log",
    ),
    ("avro", "type = file_roll\nsink.directory = OUT/avro\nsink.rollInterval = 0\nsink.serializer = avro_event"),
    (
        "stream",
        "type = hdfs\nhdfs.path = file://OUT/stream/%{kind}/%y-%n-%e/%H%M\nhdfs.filePrefix = ev-%{kind}\nhdfs.fileSuffix = .log\n\
         hdfs.fileType = DataStream\nhdfs.rollCount = 10\nhdfs.rollSize = 0\nhdfs.rollInterval = 0\nhdfs.timeZone = Asia/Kolkata\n\
         hdfs.round = true\nhdfs.roundValue = 10\nhdfs.roundUnit = minute",
    ),
    (
        "gzip",
        "type = hdfs\nhdfs.path = file://OUT/gzip\nhdfs.fileType = CompressedStream\nhdfs.codeC = gzip\nhdfs.rollCount = 10\nhdfs.rollSize = 0\nhdfs.rollInterval = 0",
    ),
    (
        "snappy",
        "type = hdfs\nhdfs.path = file://OUT/snappy\nhdfs.fileType = CompressedStream\nhdfs.codeC = snappy\nhdfs.rollCount = 10\nhdfs.rollSize = 0\nhdfs.rollInterval = 0",
    ),
    ("bytes", "type = hdfs\nhdfs.path = file://OUT/bytes\nhdfs.rollCount = 10\nhdfs.rollSize = 0\nhdfs.rollInterval = 0"),
    (
        "values",
        "type = hdfs\nhdfs.path = file://OUT/values\nhdfs.writeFormat = Text\nhdfs.rollCount = 0\nhdfs.rollSize = 12\nhdfs.rollInterval = 0",
    ),
    (
        "blocks",
        "type = hdfs\nhdfs.path = file://OUT/blocks\nhdfs.writeFormat = Text\nhdfs.codeC = DefaultCodec\nhdfs.rollCount = 10\nhdfs.rollSize = 0\nhdfs.rollInterval = 0",
    ),
];

/// The same events into every sink, each over a channel of its own.
fn everything(out: &Path) -> String {
    let names = SINKS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
    let mut text = format!(
        "agent.sources = r\nagent.channels = {names}\nagent.sinks = {names}\nagent.sources.r.type = seq\nagent.sources.r.channels = {names}\n\
         agent.sources.r.totalEvents = {EVENTS}\nagent.sources.r.interceptors = t k\nagent.sources.r.interceptors.t.type = static\n\
         agent.sources.r.interceptors.t.key = timestamp\nagent.sources.r.interceptors.t.value = 1772643967089\n\
         agent.sources.r.interceptors.k.type = static\nagent.sources.r.interceptors.k.key = kind\nagent.sources.r.interceptors.k.value = web\n"
    );
    for (name, settings) in SINKS {
        text += &format!("agent.channels.{name}.type = memory\nagent.sinks.{name}.channel = {name}\n");
        for line in settings.replace("OUT", &out.to_string_lossy()).lines() {
            text += &format!("agent.sinks.{name}.{}\n", line.trim());
        }
        fs::create_dir_all(out.join(name)).expect("the folder");
    }
    text
}

fn start(dir: &Path, conf: &str) -> Process {
    let (path, state) = (dir.join("agent.conf"), dir.join("state"));
    fs::write(&path, conf).expect("the agent's file");
    let args = ["agent", "-n", "agent", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

/// Files below a folder in the order of their names, Hadoop's checksums aside.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !entry.file_name().to_string_lossy().starts_with('.') {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The shape of a name: a moment becomes `#`, and a number counted on from it as well.
fn shape(path: &Path, below: &Path) -> String {
    let name = path.strip_prefix(below).expect("below").to_string_lossy().into_owned();
    regex::Regex::new("[0-9]{13}").expect("a pattern").replace_all(&name, "#").into_owned()
}

/// What Hadoop's reader makes of every sink's files, and the shapes of their names.
fn read(work: &Path, out: &Path) -> Vec<(String, Vec<String>, Vec<String>)> {
    let read = |name: &str| {
        let found = files(&out.join(name));
        let paths: Vec<String> = found.iter().map(|path| format!("file://{}", path.display())).collect();
        let mut args = vec!["text".to_owned(), work.to_string_lossy().into_owned()];
        args.extend(paths);
        let text = script("hdfs/hdfs", &args.iter().map(String::as_str).collect::<Vec<_>>());
        (name.to_owned(), found.iter().map(|path| shape(path, out)).collect(), text.lines().map(str::to_owned).collect())
    };
    SINKS.iter().map(|(name, _)| read(name)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_of_flume() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (theirs, ours, work) = (dir.path().join("theirs"), dir.path().join("ours"), dir.path().join("hadoop"));
    let port = free_port();
    let monitor = [format!("-Dflume.monitoring.port={port}"), "-Dflume.monitoring.type=http".into()];
    let flume = Flume::start_with(dir.path(), "flume", &everything(&theirs), &monitor.each_ref().map(String::as_str));
    let mut collector = start(dir.path(), &everything(&ours));
    let metrics = collector.address("metrics").await;
    for address in [format!("127.0.0.1:{port}"), metrics] {
        eventually(WAIT, "every sink has written every event", || async {
            let page = reqwest::get(format!("http://{address}/metrics")).await.map_err(|error| error.to_string())?;
            let page: serde_json::Value = page.json().await.map_err(|error| error.to_string())?;
            let all = EVENTS.to_string();
            let late = SINKS.iter().find(|(name, _)| page[format!("SINK.{name}")]["EventDrainSuccessCount"].as_str() != Some(&all));
            late.map_or(Ok(()), |(name, _)| Err(format!("{name} has not: {page}")))
        })
        .await;
    }
    // The last files are closed by the end.
    flume.stop().await;
    collector.stop().await;
    for (theirs, ours) in read(&work, &theirs).into_iter().zip(read(&work, &ours)) {
        assert_eq!(ours, theirs);
        assert_eq!(ours.2.len(), EVENTS, "{ours:?}");
    }
}

/// A tailed file into `sink`, over a memory channel.
fn tailing(dir: &Path, sink: &str) -> String {
    let dir = dir.display();
    let mut text = format!(
        "agent.sources = r\nagent.channels = c\nagent.sinks = k\nagent.sources.r.type = TAILDIR\nagent.sources.r.channels = c\n\
         agent.sources.r.filegroups = g\nagent.sources.r.filegroups.g = {dir}/in/.*\nagent.channels.c.type = memory\n\
         agent.channels.c.capacity = 5000\nagent.channels.c.transactionCapacity = 1000\nagent.sinks.k.channel = c\n"
    );
    for line in sink.lines() {
        text += &format!("agent.sinks.k.{}\n", line.trim().replace("OUT", &format!("{dir}/out")));
    }
    text
}

/// Every line written is in some file, whole; lines may be there twice, and no file is called unfinished.
async fn nothing_lost_by_kills(sink: &str, text_of: impl Fn(&Path) -> Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir_all(dir.path().join("in")).expect("the folder");
    let conf = tailing(dir.path(), sink);
    let mut written = BTreeSet::new();
    let mut log = OpenOptions::new().create(true).append(true).open(dir.path().join("in/a.log")).expect("the log");
    for _ in 0..6 {
        let mut collector = start(dir.path(), &conf);
        collector.address("metrics").await;
        for _ in 0..4 {
            let mut text = String::new();
            for _ in 0..500 {
                let line = format!("line {:07} {}", written.len(), "x".repeat(written.len() % 150));
                text += &line;
                text.push('\n');
                written.insert(line);
            }
            log.write_all(text.as_bytes()).expect("the log");
            tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..120))).await;
        }
        collector.kill_9();
    }
    let mut collector = start(dir.path(), &conf);
    let out = dir.path().join("out");
    eventually(WAIT, "every line is in a file", || async {
        let text: Vec<u8> = files(&out).iter().flat_map(|path| text_of(path)).collect();
        let found: BTreeSet<String> = String::from_utf8_lossy(&text).lines().map(str::to_owned).collect();
        let missing = written.difference(&found).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} of {} lines are missing", written.len())) }
    })
    .await;
    collector.stop().await;
    let left: Vec<PathBuf> = files(&out).into_iter().filter(|path| path.extension().is_some_and(|end| end == "tmp")).collect();
    assert_eq!(left, [""; 0].map(PathBuf::from));
    for path in files(&out) {
        let text = String::from_utf8(text_of(&path)).expect("text");
        assert!(text.is_empty() || text.ends_with('\n'), "{} ends within a line", path.display());
        let torn = text.lines().find(|line| !written.contains(*line));
        assert_eq!(torn, None, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_tear_no_line_in_rolled_files() {
    nothing_lost_by_kills("type = file_roll\nsink.directory = OUT\nsink.rollInterval = 1", |path| fs::read(path).unwrap_or_default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_tear_no_member_in_compressed_files() {
    let sink = "type = hdfs\nhdfs.path = file://OUT/%Y\nhdfs.useLocalTimeStamp = true\nhdfs.fileType = CompressedStream\nhdfs.codeC = gzip\n\
                hdfs.rollCount = 700\nhdfs.rollSize = 0\nhdfs.idleTimeout = 1";
    nothing_lost_by_kills(sink, |path| {
        // It may have got its name in this moment.
        let Ok(file) = fs::File::open(path) else { return Vec::new() };
        let output = std::process::Command::new("gzip").arg("-dc").stdin(file).output().expect("gzip");
        // A file in use may end within a member; a finished one may not.
        let finished = path.extension().is_some_and(|extension| extension == "gz");
        assert!(output.status.success() || !finished, "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        output.stdout
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hdfs_has_every_line_after_a_kill_and_only_whole_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let hdfs = OwnHdfs::start(dir.path().join("hdfs"));
    fs::create_dir_all(dir.path().join("in")).expect("the folder");
    let sink = format!(
        "type = hdfs\nhdfs.path = {}/logs/%[localhost]\nhdfs.fileType = DataStream\nhdfs.rollCount = 700\nhdfs.rollSize = 0\n\
         hdfs.rollInterval = 1",
        hdfs.url
    );
    let conf = tailing(dir.path(), &sink);
    let lines: Vec<String> = (0..6000).map(|n| format!("line {n:05}")).collect();
    let log = dir.path().join("in/a.log");
    fs::write(&log, lines[..3000].join("\n") + "\n").expect("the log");
    let mut first = start(dir.path(), &conf);
    let metrics = first.address("metrics").await;
    let delivered = || async {
        let page: serde_json::Value =
            reqwest::get(format!("http://{metrics}/metrics")).await.map_err(|e| e.to_string())?.json().await.map_err(|e| e.to_string())?;
        let count = page["SINK.k"]["EventDrainSuccessCount"].as_str().unwrap_or_default().to_owned();
        // Some are held for their file.
        if count.parse::<u64>().is_ok_and(|count| count >= 700) { Ok(()) } else { Err(count) }
    };
    eventually(WAIT, "the first file is complete", delivered).await;
    first.kill_9();
    OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut log| log.write_all((lines[3000..].join("\n") + "\n").as_bytes()))
        .expect("the log");
    let mut second = start(dir.path(), &conf);
    second.address("metrics").await;
    // What the killed process was writing has a hidden name.
    eventually(WAIT, "every line is in HDFS", || async {
        let found: BTreeSet<String> = hdfs.text("/logs/*/FlumeData*").into_iter().collect();
        let missing = lines.iter().filter(|line| !found.contains(*line)).count();
        if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
    })
    .await;
    second.signal(Signal::TERM);
    assert!(second.ended(WAIT).await.success(), "{}", second.log());
    let torn: Vec<String> = hdfs.text("/logs/*/FlumeData*").into_iter().filter(|line| !lines.contains(line)).collect();
    assert_eq!(torn, [""; 0]);
}

/// Answers POSTs by a script; keeps what came, in its order, and counts connections.
#[derive(Clone, Default)]
struct Answering {
    posts: Arc<Mutex<Vec<(String, u16)>>>,
    connections: Arc<Mutex<usize>>,
}

impl Answering {
    /// `status` gives the answer to a body that came for the n-th time.
    async fn listen(&self, status: fn(&str, usize) -> u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = self.clone();
        tokio::task::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *server.connections.lock().expect("no panic") += 1;
                let server = server.clone();
                tokio::task::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(body) = post(&mut stream).await {
                        let code = {
                            let mut posts = server.posts.lock().expect("no panic");
                            let code = status(&body, posts.iter().filter(|(seen, _)| *seen == body).count());
                            posts.push((body, code));
                            code
                        };
                        let answer = format!("HTTP/1.1 {code} X\r\ncontent-length: 2\r\n\r\nok");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        port
    }
}

/// The next request's body.
async fn post(stream: &mut BufReader<tokio::net::TcpStream>) -> Option<String> {
    let (mut length, mut line) = (0, String::new());
    let mut head = String::new();
    while stream.read_line(&mut line).await.ok()? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head += &std::mem::take(&mut line);
    }
    if head.is_empty() {
        return None;
    }
    assert!(head.starts_with("POST /in HTTP/1.1") && head.to_lowercase().contains("content-type: text/x"), "{head}");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    String::from_utf8(body).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_are_repeated_in_order_until_taken_and_refused_ones_are_put_aside() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::create_dir_all(dir.path().join("in")).expect("the folder");
    let server = Answering::default();
    // Every fifth is taken at the third try; the one called bad never.
    let port = server
        .listen(|body, times| {
            if body == "bad" {
                400
            } else if body.ends_with('5') && times < 2 {
                503
            } else {
                201
            }
        })
        .await;
    let sink = format!(
        "type = http\nendpoint = http://127.0.0.1:{port}/in\ncontentTypeHeader = text/x\nrollback.4XX = false\nbackoff.4XX = false\n\
         incrementMetrics.4XX = false\nbackoff.503 = false"
    );
    let mut lines: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
    lines.insert(50, "bad".into());
    fs::write(dir.path().join("in/a.log"), lines.join("\n") + "\n").expect("the log");
    let mut collector = start(dir.path(), &tailing(dir.path(), &sink));
    eventually(WAIT, "every line is taken", || async {
        let posts = server.posts.lock().expect("no panic").len();
        if posts == 101 + 20 { Ok(()) } else { Err(format!("{posts} posts")) }
    })
    .await;
    collector.stop().await;
    let posts = server.posts.lock().expect("no panic").clone();
    let taken: Vec<&String> = posts.iter().filter(|(_, code)| *code != 503).map(|(body, _)| body).collect();
    assert_eq!(taken, lines.iter().collect::<Vec<_>>());
    assert_eq!(*server.connections.lock().expect("no panic"), 1, "the connection is kept");
    let letters = fs::read_to_string(dir.path().join("state/agent/dead-letter/k.jsonl")).expect("the dead letters");
    assert!(letters.lines().count() == 1 && letters.contains("\"bad\"") && letters.contains("answered 400"), "{letters}");
    let log = collector.log();
    assert!(log.contains("put aside as dead letters since the start") && !log.contains("everything accepted is delivered"), "{log}");
}
