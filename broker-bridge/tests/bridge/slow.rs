//! Clients of streams that do not read, or read a hundredth, while others read and somebody writes as fast as he can: what they cost is bounded,
//! nobody else is slower for it, and who takes nothing is cut off in time.
//!
//! `SLOW_SECONDS=60` goes on for so long, with new ones in the place of those that were cut off.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use proto::data::v1::{ConsumeRequest, ConsumeResponse};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::client::IntoClientRequest as _};

use crate::{
    Client, JSON, consume, eventually,
    honest::resident,
    process::{Bridge, servers, unique},
    push::Reader,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Of each kind: events, lines, WebSockets, gRPC with credit.
const STALLED_OF_A_KIND: usize = 4;
/// gRPC without credit.
const WITHOUT_CREDIT: usize = 2;
const STALLED: usize = 4 * STALLED_OF_A_KIND + WITHOUT_CREDIT;
/// `consume.session_idle`.
const IDLE: Duration = Duration::from_secs(6);
/// `consume.held_bytes_max`: less than the stalled ones would hold.
const HELD_BYTES_MAX: u64 = 16 << 20;
/// `consume.read_ahead_bytes_max`.
const READ_AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Beside what is held: what a consumer reads ahead with one fetch more, a batch in the connection, and the Kafka client itself.
const CLIENT_BYTES_MAX: u64 = 2 * READ_AHEAD_BYTES_MAX + (2 << 20) + (3 << 20);
const PACED_RECORDS: usize = 10_000;
const PACED_BYTES: usize = 1_000;

/// A connection that takes little.
async fn narrow(address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 << 10).unwrap();
    socket.connect(address.parse().unwrap()).await.unwrap()
}

fn stream_path(topic: &str) -> String {
    format!("/consumers/{}/stream?topics={topic}&format=json&auto.offset.reset=earliest", unique("slow"))
}

async fn narrow_stream(bridge: &Bridge, topic: &str, accept: &str) -> TcpStream {
    let mut socket = narrow(&bridge.http).await;
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\naccept: {accept}\r\n\r\n", stream_path(topic), bridge.http);
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    timeout(PATIENCE, socket.read_exact(&mut status)).await.unwrap().unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    socket
}

type Call = (mpsc::Sender<ConsumeRequest>, tonic::Streaming<ConsumeResponse>);

/// Clients that do not read.
#[derive(Default)]
struct Stalled {
    http: Vec<TcpStream>,
    sockets: Vec<WebSocketStream<TcpStream>>,
    calls: Vec<Call>,
}

impl Stalled {
    async fn open(bridge: &Bridge, topic: &str) -> Self {
        let mut stalled = Self::default();
        for _ in 0..STALLED_OF_A_KIND {
            for accept in ["text/event-stream", "application/x-ndjson"] {
                stalled.http.push(narrow_stream(bridge, topic, accept).await);
            }
            let request = format!("ws://{}{}", bridge.http, stream_path(topic)).into_client_request().unwrap();
            let (socket, _) = tokio_tungstenite::client_async(request, narrow(&bridge.http).await).await.unwrap();
            stalled.sockets.push(socket);
            // A connection of its own.
            stalled.calls.push(consume(&Client::of(bridge).await, &unique("slow"), topic, 100_000).await);
        }
        for _ in 0..WITHOUT_CREDIT {
            stalled.calls.push(consume(&Client::of(bridge).await, &unique("slow"), topic, 0).await);
        }
        stalled
    }

    /// Each connection is over.
    async fn are_cut_off(self) {
        for mut socket in self.http {
            let rest = timeout(PATIENCE, tokio::io::copy(&mut socket, &mut tokio::io::sink())).await;
            rest.expect("a stream that nobody reads is closed").ok();
        }
        for socket in self.sockets {
            let rest = timeout(PATIENCE, futures::StreamExt::count(socket)).await;
            rest.expect("a WebSocket that nobody reads is closed");
        }
        for (_requests, mut batches) in self.calls {
            let end = async {
                loop {
                    match batches.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("the call ends without a word"),
                        Err(end) => break end,
                    }
                }
            };
            let end = timeout(PATIENCE, end).await.expect("a call that nobody reads ends");
            assert!(end.code() == tonic::Code::DeadlineExceeded && end.message().contains("consume.session_idle"), "{end}");
        }
    }
}

/// How long an honest client takes from the first of the records to the last.
async fn pace(client: &Client, topic: &str) -> Duration {
    let query = format!("topics={topic}&auto.offset.reset=earliest");
    let mut reader = Reader::open(client, &unique("paced"), &query, &[]).await;
    let (mut seen, mut begun) = (0, None);
    while seen < PACED_RECORDS {
        seen += usize::from(reader.line().await.starts_with("data: "));
        begun.get_or_insert_with(Instant::now);
    }
    begun.unwrap().elapsed()
}

/// The best of three: what else the machine does comes and goes.
async fn best_pace(client: &Client, topic: &str) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        best = best.min(pace(client, topic).await);
    }
    best
}

async fn metric(client: &Client, name: &str) -> u64 {
    let page = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
    value.parse::<f64>().unwrap() as u64
}

/// A hundredth of what an honest client takes, until told to end; gives how many bytes came.
fn hundredth(mut socket: TcpStream, bytes_per_second: u64, over: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let over = Arc::clone(over);
    tokio::spawn(async move {
        let mut piece = vec![0; usize::try_from(bytes_per_second / 100 / 20).unwrap().max(1)];
        let mut taken = 0;
        while !over.load(Ordering::Relaxed) {
            taken +=
                timeout(PATIENCE, socket.read_exact(&mut piece)).await.expect("a slow client is served").expect("and not cut off") as u64;
            sleep(Duration::from_millis(50)).await;
        }
        taken
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_cost_a_bounded_memory_keep_nobody_waiting_and_are_cut_off() {
    let long = std::env::var("SLOW_SECONDS").ok().map(|seconds| Duration::from_secs(seconds.parse().expect("SLOW_SECONDS is a number")));
    let settings = [
        ("MILLRACE_CONSUME__SESSION_IDLE", format!("{}s", IDLE.as_secs())),
        ("MILLRACE_CONSUME__HELD_BYTES_MAX", HELD_BYTES_MAX.to_string()),
        ("MILLRACE_CONSUME__READ_AHEAD_BYTES_MAX", READ_AHEAD_BYTES_MAX.to_string()),
    ];
    let bridge = Bridge::start_with(&servers(), &settings.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    let client = Client::of(&bridge).await;
    let (flood, paced) = (client.create_topic(2).await, client.create_topic(1).await);
    let records: Vec<Value> = (0..500).map(|_| json!({"value": "x".repeat(PACED_BYTES)})).collect();
    for _ in 0..PACED_RECORDS / 500 {
        let (status, answer) = client.post(&format!("/topics/{paced}"), JSON, &json!({"records": records})).await;
        assert_eq!(status, 200, "{answer}");
    }
    let over = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let producer = {
        let (client, flood, over, written) = (Client::of(&bridge).await, flood.clone(), Arc::clone(&over), Arc::clone(&written));
        tokio::spawn(async move {
            let value = "x".repeat(10_000);
            let records: Vec<Value> = (0..80).map(|_| json!({"value": value})).collect();
            let records = json!({"records": records});
            while !over.load(Ordering::Relaxed) {
                let (status, answer) = client.post(&format!("/topics/{flood}"), JSON, &records).await;
                // A busy broker may not take it in time.
                assert!(status == 200 || status >= 500, "{status} {answer}");
                written.fetch_add(800_000, Ordering::Relaxed);
            }
        })
    };
    let before = best_pace(&client, &paced).await;
    eventually("there is more to read than fits on the way", async || written.load(Ordering::Relaxed) > 16 << 20).await;
    let at_first = resident(bridge.pid());
    let honest_bytes_per_second = (PACED_RECORDS * PACED_BYTES) as u64 * 1_000 / u64::try_from(before.as_millis()).unwrap().max(1);
    let mut slow = Vec::new();
    for accept in ["text/event-stream", "application/x-ndjson"] {
        slow.push(hundredth(narrow_stream(&bridge, &flood, accept).await, honest_bytes_per_second, &over));
    }

    let begun = Instant::now();
    let (mut rounds, mut peak) = (0, 0);
    loop {
        rounds += 1;
        let stalled = Stalled::open(&bridge, &flood).await;
        eventually("they hold half of what may be held", async || {
            metric(&client, "millrace_bridge_session_held_bytes").await >= HELD_BYTES_MAX / 2
        })
        .await;
        let meanwhile = best_pace(&client, &paced).await;
        // As fast as before, but for what a busy machine makes of it.
        assert!(meanwhile < 2 * before + Duration::from_millis(250), "{before:?} before, {meanwhile:?} beside clients that do not read");
        let held = metric(&client, "millrace_bridge_session_held_bytes").await;
        // And one poll of each, which is no more than it has read ahead.
        assert!(held < HELD_BYTES_MAX + (STALLED + 3) as u64 * READ_AHEAD_BYTES_MAX, "{held} bytes held");
        peak = peak.max(resident(bridge.pid()));
        let cut = (rounds * STALLED) as u64;
        let each = async {
            while metric(&client, "millrace_bridge_streams_cut_total").await < cut {
                sleep(Duration::from_millis(20)).await;
            }
        };
        // Where it is not so, what the streams say for themselves is the better message.
        let in_time = timeout(2 * PATIENCE, each).await;
        peak = peak.max(resident(bridge.pid()));
        stalled.are_cut_off().await;
        in_time.expect("each is cut off");
        assert_eq!(metric(&client, "millrace_bridge_streams_cut_total").await, cut, "slow ones are not cut off");
        if long.is_none_or(|long| begun.elapsed() >= long) {
            break;
        }
    }
    let grown = peak.saturating_sub(at_first);
    let bound = HELD_BYTES_MAX + (STALLED + slow.len()) as u64 * CLIENT_BYTES_MAX;
    assert!(grown < bound, "{} MiB more than before; {} MiB are allowed", grown >> 20, bound >> 20);
    over.store(true, Ordering::Relaxed);
    for slow in slow {
        assert!(slow.await.unwrap() > 0);
    }
    producer.await.unwrap();
    eventually("what they held is free again", async || metric(&client, "millrace_bridge_session_held_bytes").await < 1 << 20).await;
    client.delete_topic(&flood).await;
    client.delete_topic(&paced).await;
    bridge.stop().await;
}
