//! The bridge: single and batched produce over HTTP, a stream of records, sessions at rest, and the schema registry.
//!
//! The client is a plain loop over keep-alive connections in this process, on the same cores as the bridge and the broker. The
//! peers' figures in `docs/performance.md` come from elsewhere: neither Confluent's proxy nor Strimzi's bridge can be installed by a script here.

use std::{
    fs,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{kafka, process::Process, unique};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::{Verdict, setting};

const JSON: &str = "application/vnd.kafka.json.v2+json";
const SCHEMA: &str = "application/vnd.schemaregistry.v1+json";
const CONNECTIONS: usize = 50;
const BATCH_CONNECTIONS: usize = 8;
const BATCH_RECORDS: usize = 1_000;
const SESSIONS: usize = 100;
/// Requests of `BATCH_RECORDS` that every session then reads.
const SESSION_BATCHES: usize = 5;
const SCHEMAS: usize = 50;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bridge {
    process: Process,
    http: String,
}

impl Bridge {
    async fn start(bootstrap: &str, dir: &Path, name: &str) -> Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let env = ["MILLRACE_HTTP__LISTEN", "MILLRACE_REGISTRY__LISTEN", "MILLRACE_CONTROL__LISTEN"].map(|name| (name, "127.0.0.1:0"));
        let mut process = Process::start("millrace-bridge", &dir, &["serve", "--bootstrap-servers", bootstrap], &env);
        let http = process.address("http").await;
        Ok(Self { process, http })
    }

    /// Resident memory, now and at most, in MB.
    fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let kb = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
        Ok((kb("VmRSS:").context("VmRSS")? / 1024.0, kb("VmHWM:").context("VmHWM")? / 1024.0))
    }
}

/// A keep-alive connection.
struct Connection {
    stream: BufReader<TcpStream>,
    body: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::with_capacity(64 << 10, stream), body: Vec::new() })
    }

    /// Sends the request and reads its answer into `body`; gives the status.
    async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        timeout(PATIENCE, async {
            self.stream.get_mut().write_all(request).await?;
            let (status, length) = head(&mut self.stream).await?;
            self.body.resize(length.context("an answer without a length")?, 0);
            self.stream.read_exact(&mut self.body).await?;
            Ok(status)
        })
        .await
        .context("no answer")?
    }

    async fn json(&mut self, method: &str, path: &str, content_type: &str, body: &Value) -> Result<Value> {
        let status = self.ask(&request(method, path, content_type, &body.to_string())).await?;
        let text = String::from_utf8_lossy(&self.body);
        ensure!((200..300).contains(&status), "{method} {path}: {status} {text}");
        Ok(if self.body.is_empty() { Value::Null } else { serde_json::from_slice(&self.body)? })
    }
}

/// Status and length of an answer.
async fn head(stream: &mut BufReader<TcpStream>) -> Result<(u16, Option<usize>)> {
    let (mut line, mut status, mut length) = (String::new(), 0, None);
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line).await? > 0, "the bridge closed the connection");
        let text = line.trim_end();
        if text.is_empty() {
            return Ok((status, if status == 204 { Some(0) } else { length }));
        }
        match text.split_once(": ") {
            None => status = text.split(' ').nth(1).unwrap_or_default().parse()?,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = Some(value.parse()?),
            Some(_) => {}
        }
    }
}

fn request(method: &str, path: &str, content_type: &str, body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n");
    if !body.is_empty() {
        head.push_str(&format!("content-type: {content_type}\r\ncontent-length: {}\r\n", body.len()));
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// Requests a second, and latencies in milliseconds, sorted.
struct Load {
    rate: f64,
    latencies: Vec<f64>,
}

impl Load {
    fn percentile(&self, part: f64) -> f64 {
        self.latencies.get((self.latencies.len() as f64 * part) as usize).copied().unwrap_or_default()
    }
}

/// The same request on so many connections, one after the other on each. Every answer must be 200 and, of records, tell no error.
async fn load(address: &str, connections: usize, request: Vec<u8>, seconds: usize) -> Result<Load> {
    let (request, done) = (Arc::new(request), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(address).await?;
        let (request, done) = (request.clone(), done.clone());
        clients.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let sent = Instant::now();
                let status = connection.ask(&request).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
                let text = String::from_utf8_lossy(&connection.body);
                // A record that was not written has no offset, also where the answer is 200.
                if status != 200 || text.contains("\"offset\":null") || text.contains("\"offset\":-1") {
                    bail!("{status} {}", text.chars().take(300).collect::<String>());
                }
            }
            Ok(latencies)
        }));
    }
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    done.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await??);
    }
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    Ok(Load { rate, latencies })
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

pub(crate) async fn produce_and_consume(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let seconds = setting("BENCH_BRIDGE_SECONDS", 10)?;
    let bridge = Bridge::start(bootstrap, dir, "bridge").await?;
    let topic = unique("bench-bridge");
    kafka::create_topic(bootstrap, &topic, 4).await;
    let path = format!("/topics/{topic}");
    let one = json!({"records": [{"value": {"user": 123_456, "page": "/products/42", "ms": 17}}]}).to_string();
    let request_of_one = request("POST", &path, JSON, &one);
    load(&bridge.http, CONNECTIONS, request_of_one.clone(), 2).await?;
    let single = load(&bridge.http, CONNECTIONS, request_of_one, seconds).await?;
    let single_memory = bridge.memory()?.1;
    say(&format!(
        "one record a request, {CONNECTIONS} connections: {:.0} requests/s, p50 {:.1} ms, p99 {:.1} ms, {single_memory:.0} MB",
        single.rate,
        single.percentile(0.5),
        single.percentile(0.99)
    ))?;

    let topic = unique("bench-bridge");
    kafka::create_topic(bootstrap, &topic, 4).await;
    let record = json!({"value": {"user": 123_456, "page": "/products/42", "ms": 17}}).to_string();
    let many = format!(r#"{{"records":[{}]}}"#, vec![record; BATCH_RECORDS].join(","));
    let batched = load(&bridge.http, BATCH_CONNECTIONS, request("POST", &format!("/topics/{topic}"), JSON, &many), seconds).await?;
    let written = batched.latencies.len() * BATCH_RECORDS;
    let batched_rate = batched.rate * BATCH_RECORDS as f64;
    say(&format!(
        "{BATCH_RECORDS} records a request, {BATCH_CONNECTIONS} connections: {:.0} k records/s, p99 {:.0} ms, {:.0} MB",
        batched_rate / 1e3,
        batched.percentile(0.99),
        bridge.memory()?.1
    ))?;

    let (lines, took) = read_stream(&bridge.http, &topic, written).await?;
    let stream_rate = lines as f64 / took.as_secs_f64();
    say(&format!("a stream of lines of JSON: {lines} records, {:.0} k records/s, {:.0} MB", stream_rate / 1e3, bridge.memory()?.1))?;
    drop(bridge);

    let topic = unique("bench-bridge");
    kafka::create_topic(bootstrap, &topic, 4).await;
    let bridge = Bridge::start(bootstrap, dir, "sessions").await?;
    let before = bridge.memory()?.0;
    let (mut connection, mut fetches) = (Connection::open(&bridge.http).await?, Vec::new());
    for number in 0..SESSIONS {
        let group = format!("{topic}-{number}");
        let named = json!({"name": "i", "format": "json", "auto.offset.reset": "earliest"});
        connection.json("POST", &format!("/consumers/{group}"), "application/vnd.kafka.v2+json", &named).await?;
        let base = format!("/consumers/{group}/instances/i");
        let topics = json!({"topics": [topic]});
        connection.json("POST", &format!("{base}/subscription"), "application/vnd.kafka.v2+json", &topics).await?;
        let records = request("GET", &format!("{base}/records?timeout=100"), "", "");
        let records = String::from_utf8_lossy(&records).replace("host: bench\r\n", &format!("host: bench\r\naccept: {JSON}\r\n"));
        let status = connection.ask(records.as_bytes()).await?;
        ensure!(status == 200, "session {number}: {status} {}", String::from_utf8_lossy(&connection.body));
        fetches.push(records);
    }
    let sessions = bridge.memory()?.1;
    let begun = Instant::now();
    for _ in 0..SESSION_BATCHES {
        let status = connection.ask(&request("POST", &format!("/topics/{topic}"), JSON, &many)).await?;
        ensure!(status == 200, "records for the sessions: {status}");
    }
    for (number, fetch) in fetches.iter().enumerate() {
        let mut seen = 0;
        while seen < SESSION_BATCHES * BATCH_RECORDS {
            ensure!(begun.elapsed() < 4 * PATIENCE, "session {number} has {seen} records");
            let status = connection.ask(fetch.as_bytes()).await?;
            ensure!(status == 200, "session {number}: {status} {}", String::from_utf8_lossy(&connection.body));
            seen += serde_json::from_slice::<Vec<serde::de::IgnoredAny>>(&connection.body)?.len();
        }
    }
    let (took, reading) = (begun.elapsed().as_secs_f64(), bridge.memory()?.1);
    say(&format!(
        "{SESSIONS} sessions, each a group of its own: {sessions:.0} MB, {before:.0} MB before; {reading:.0} MB when each has read {} records, one after the other ({took:.1} s)",
        SESSION_BATCHES * BATCH_RECORDS
    ))?;
    Ok(vec![
        Verdict::at_least("bridge: one record a request, 50 connections", single.rate / 1e3, 15.0, "k/s"),
        Verdict::at_most("bridge: its p99", single.percentile(0.99), 20.0, "ms"),
        Verdict::at_least("bridge: 1,000 records a request", batched_rate / 1e3, 400.0, "k/s"),
        Verdict::at_least("bridge: a stream of records", stream_rate / 1e3, 300.0, "k/s"),
        Verdict::at_most("bridge: 100 sessions", sessions, 100.0, "MB"),
        Verdict::at_most("bridge: 100 sessions that read", reading, 100.0, "MB"),
    ])
}

/// Reads a stream until so many records came; gives their number and the time from the first one on.
async fn read_stream(address: &str, topic: &str, records: usize) -> Result<(usize, Duration)> {
    let mut stream = BufReader::with_capacity(256 << 10, TcpStream::connect(address).await?);
    let path = format!("/consumers/{topic}/stream?topics={topic}&format=json&auto.offset.reset=earliest");
    let ask = format!("GET {path} HTTP/1.1\r\nhost: bench\r\naccept: application/x-ndjson\r\n\r\n");
    stream.get_mut().write_all(ask.as_bytes()).await?;
    let (status, _) = head(&mut stream).await?;
    ensure!(status == 200, "the stream: {status}");
    let (mut seen, mut first, mut news) = (0, None, Instant::now());
    // Lines go on over the chunks of the transfer. Those without a record are positions, and empty ones.
    let (mut head, mut chunk, mut text) = (String::new(), Vec::new(), Vec::new());
    while seen < records {
        let so_far = || format!("{seen} of {records} records");
        ensure!(news.elapsed() < PATIENCE, "nothing more came after {}", so_far());
        head.clear();
        timeout(PATIENCE, stream.read_line(&mut head)).await.with_context(so_far)??;
        let size = usize::from_str_radix(head.trim_end(), 16).with_context(so_far)?;
        ensure!(size > 0, "the stream ended after {}", so_far());
        chunk.resize(size + 2, 0);
        timeout(PATIENCE, stream.read_exact(&mut chunk)).await.with_context(so_far)??;
        text.extend_from_slice(&chunk[..size]);
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = text[..whole].split(|byte| *byte == b'\n');
        let new = lines.filter(|line| !line.is_empty() && !line.starts_with(b"{\"position\"")).count();
        text.drain(..whole);
        if new > 0 {
            news = Instant::now();
            first.get_or_insert(news);
            seen += new;
        }
    }
    Ok((seen, first.context("no record")?.elapsed()))
}

pub(crate) async fn registry(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let seconds = setting("BENCH_BRIDGE_SECONDS", 10)?;
    let (one, other) = (Bridge::start(bootstrap, dir, "registry-1").await?, Bridge::start(bootstrap, dir, "registry-2").await?);
    let (mut writer, mut reader) = (Connection::open(&one.http).await?, Connection::open(&other.http).await?);
    let subject = unique("bench-registry");
    let (mut id, mut waits) = (Value::Null, Vec::new());
    for number in 0..SCHEMAS {
        let schema = json!({"type": "record", "name": "R", "fields": [{"name": format!("f{number}"), "type": "string", "default": ""}]});
        let begun = Instant::now();
        let registered =
            writer.json("POST", &format!("/subjects/{subject}/versions"), SCHEMA, &json!({"schema": schema.to_string()})).await?;
        id = registered["id"].clone();
        while reader.ask(&request("GET", &format!("/schemas/ids/{id}"), "", "")).await? != 200 {
            ensure!(begun.elapsed() < PATIENCE, "the other bridge does not know schema {id}");
        }
        waits.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    // The first one makes the registry's topic and takes the transactional id.
    let first = waits.remove(0);
    waits.sort_by(f64::total_cmp);
    let (half, most) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    let lookups = load(&other.http, CONNECTIONS, request("GET", &format!("/schemas/ids/{id}"), "", ""), seconds).await?;
    say(&format!(
        "registry: registered here and read from the other bridge within {half:.0} ms (median), {most:.0} ms (most of {}), the very first {first:.0} ms; {:.0} lookups/s, p99 {:.1} ms, {:.0} MB",
        waits.len(),
        lookups.rate,
        lookups.percentile(0.99),
        other.memory()?.1
    ))?;
    Ok(vec![
        Verdict::at_most("registry: registered, and read from another bridge", most, 100.0, "ms"),
        Verdict::at_least("registry: lookups, 50 connections", lookups.rate / 1e3, 20.0, "k/s"),
    ])
}
