//! Hundreds of clients that are slow on purpose, with their headers, their bodies, their reading, their handshake: they are closed in time, and
//! honest clients do not notice.
//!
//! `SIEGE_SECONDS=30` goes on for so long, with `SIEGE_CONNECTIONS=1000` at a time.

use std::{path::Path, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    JSON, V2,
    honest::resident,
    process::{Bridge, servers, unique},
};

/// By all of them, from when they were opened.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);
/// Of one address; the listener takes 128 (`limits.connections_per_ip_max`).
const OF_AN_ADDRESS: usize = 100;
const GROWTH_MAX: u64 = 64 << 20;
/// For what else the machine does, beside twice what it took before.
const JITTER: Duration = Duration::from_millis(100);

fn given(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// From an address that no honest client has.
async fn connect(address: &str, number: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    socket.bind(([127, 0, 0, u8::try_from(2 + number / OF_AN_ADDRESS).unwrap()], 0).into()).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

/// A byte now and then, for as long as the bridge takes it.
async fn drip(mut socket: TcpStream) {
    while socket.write_all(b"x").await.is_ok() {
        sleep(Duration::from_millis(500)).await;
    }
}

/// One of those.
async fn besiege(http: &str, control: &str, number: usize) {
    match number % 4 {
        0 => {
            let mut socket = connect(http, number).await;
            socket.write_all(b"GET /healthy HTTP/1.1\r\nhost: b\r\nx-slow: ").await.ok();
            drip(socket).await;
        }
        1 => {
            let mut socket = connect(http, number).await;
            let head =
                format!("POST /topics/t HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ncontent-length: 1000000\r\n\r\n{{\"records\":[");
            socket.write_all(head.as_bytes()).await.ok();
            drip(socket).await;
        }
        2 => {
            // Far more than fits on the way, of which it takes a byte now and then.
            let mut socket = connect(http, number).await;
            socket.write_all("GET /openapi HTTP/1.1\r\nhost: b\r\n\r\n".repeat(100).as_bytes()).await.ok();
            while socket.read_u8().await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        }
        _ => {
            // The beginning of a handshake.
            let mut socket = connect(control, number).await;
            socket.write_all(&[22, 3, 1, 2, 0, 1]).await.ok();
            socket.read_u8().await.ok();
        }
    }
}

/// How long an honest client's request takes, in so many of a hundred.
fn percentile(times: &mut [Duration], of_hundred: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * of_hundred / 100]
}

struct Honest {
    http: reqwest::Client,
    base: String,
    topic: String,
}

impl Honest {
    async fn post(&self, path: &str, kind: &str, body: String) -> Duration {
        let begun = Instant::now();
        let request = self.http.post(format!("{}{path}", self.base)).header("content-type", kind).body(body);
        let answer = timeout(Duration::from_secs(30), request.send()).await.expect("honest clients are answered").unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        answer.bytes().await.unwrap();
        begun.elapsed()
    }

    async fn write(&self) -> Duration {
        self.post(&format!("/topics/{}", self.topic), JSON, r#"{"records":[{"value":1}]}"#.to_owned()).await
    }

    async fn metrics(&self) -> String {
        self.http.get(format!("{}/metrics", self.base)).send().await.unwrap().text().await.unwrap()
    }

    /// Connections of both listeners, without its own.
    async fn others(&self) -> u64 {
        let page = self.metrics().await;
        let open = page.lines().filter(|line| line.starts_with("millrace_listen_connections{"));
        open.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>() - 1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_headers_bodies_readers_and_handshakes_are_closed_in_time_and_honest_clients_do_not_notice() {
    let (connections, seconds) = (given("SIEGE_CONNECTIONS", 300), given("SIEGE_SECONDS", 0));
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(Path::new(&at("cert")), certificate.pem()).unwrap();
    std::fs::write(Path::new(&at("key")), key.serialize_pem()).unwrap();
    let (cert, key) = (at("cert"), at("key"));
    let mut variables = vec![("MILLRACE_CONTROL__TLS__CERT", cert.as_str()), ("MILLRACE_CONTROL__TLS__KEY", key.as_str())];
    // Half of what they are where nobody sets them: a busy machine is not to count.
    if seconds == 0 {
        let timeouts = ["MILLRACE_LIMITS__HEADER_TIMEOUT", "MILLRACE_LIMITS__BODY_IDLE_TIMEOUT", "MILLRACE_LIMITS__WRITE_IDLE_TIMEOUT"];
        variables.extend(timeouts.map(|name| (name, "5s")));
    }
    let bridge = Bridge::start_with(&servers(), &variables).await;
    // One connection, which stays.
    let http = reqwest::Client::builder().pool_max_idle_per_host(1).build().unwrap();
    let honest = Honest { http, base: format!("http://{}", bridge.http), topic: unique("topic") };
    let new = json!({"topic_name": honest.topic, "partitions_count": 1, "replication_factor": 1}).to_string();
    honest.post("/admin/topics", V2, new).await;
    let mut before = Vec::new();
    for _ in 0..300 {
        before.push(honest.write().await);
    }
    let at_first = resident(bridge.pid());

    let begun = Instant::now();
    let (mut times, mut slowest, mut opened, mut peak) = (Vec::new(), Duration::ZERO, 0, 0);
    while opened == 0 || begun.elapsed() < Duration::from_secs(seconds as u64) {
        let mut siege = JoinSet::new();
        let round = Instant::now();
        for number in 0..connections {
            let (http, control) = (bridge.http.clone(), bridge.control.clone());
            siege.spawn(async move { besiege(&http, &control, number).await });
        }
        opened += connections;
        let mut most = 0;
        let closed = loop {
            times.push(honest.write().await);
            let others = honest.others().await;
            most = most.max(others);
            peak = peak.max(resident(bridge.pid()));
            // Each was there.
            if others == 0 && most > connections as u64 / 2 {
                break round.elapsed();
            }
            assert!(round.elapsed() < 2 * CLOSED_WITHIN, "{others} of {connections} connections are open, {most} were at a time");
        };
        slowest = slowest.max(closed);
        siege.abort_all();
    }
    // Beside other tests, what is seldom is theirs: p99 is for a run of its own.
    let of_hundred = if seconds > 0 { 99 } else { 50 };
    let (before, meanwhile) = (percentile(&mut before, of_hundred), percentile(&mut times, of_hundred));
    let grown = peak.saturating_sub(at_first);
    assert!(slowest < CLOSED_WITHIN, "closed after {slowest:?}");
    assert!(meanwhile < 2 * before + JITTER, "p{of_hundred} {before:?} before, {meanwhile:?} meanwhile");
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    let page = honest.metrics().await;
    for (listener, reason) in
        [("http", "header_timeout"), ("http", "body_timeout"), ("http", "write_idle_timeout"), ("control", "header_timeout")]
    {
        let counted = format!("millrace_listen_rejected_total{{listener=\"{listener}\",reason=\"{reason}\"}} ");
        let count = page.lines().find_map(|line| line.strip_prefix(&counted)).map_or(0, |count| count.parse::<usize>().unwrap());
        assert!(count >= opened / 4, "{count} of {} closed by the {reason} of {listener}", opened / 4);
    }
    let clusters = honest.http.get(format!("{}/v3/clusters", honest.base)).send().await.unwrap().json::<Value>().await.unwrap();
    let cluster = clusters["data"][0]["cluster_id"].as_str().unwrap();
    let gone = honest.http.delete(format!("{}/v3/clusters/{cluster}/topics/{}", honest.base, honest.topic)).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    bridge.stop().await;
}
