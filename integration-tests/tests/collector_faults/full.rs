//! A channel that is full for long: everybody waits, nothing grows, nothing that was accepted is lost.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use integration_tests::{kafka, process::Process, servers::kafka_bootstrap, unique};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UdpSocket},
};

use crate::{Agent, Log, WAIT, millrace};

/// The debug build of the collector with what this channel holds, librdkafka included.
const MEMORY_MAX_KB: u64 = 160 << 10;
/// While nothing moves; what malloc and the kernel's page granularity make of it.
const GROWTH_MAX_KB: u64 = 8 << 10;

/// Lines and requests that are refused meanwhile, at least.
const REFUSED_MIN: usize = 500;

/// How often the tailed files are rotated meanwhile, and how often lines and datagrams are sent between two rotations.
const ROTATIONS: u32 = 20;
const WRITES: u32 = 20;

/// The sink is paused; tail, TCP, HTTP and UDP senders go on, and the tailed files are rotated, every second if it is for 20 s (`FULL_SECONDS`).
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_full_for_long_costs_no_memory_and_nothing_that_was_accepted() {
    let topic = unique("full");
    kafka::create_topic(&kafka_bootstrap(), &topic, 1).await;
    let agent = Agent::new(
        &kafka_bootstrap(),
        &topic,
        "tail dir tcp http udp",
        "sources.tail.type = exec\nsources.tail.command = tail -n +1 -F DIR/tail/app.log\n\
         sources.dir.type = TAILDIR\nsources.dir.filegroups = f\nsources.dir.filegroups.f = DIR/dir/app\\\\.log\n\
         sources.tcp.type = netcat\nsources.tcp.bind = 127.0.0.1\nsources.tcp.port = 0\n\
         sources.http.type = http\nsources.http.bind = 127.0.0.1\nsources.http.port = 0\n\
         sources.udp.type = netcatudp\nsources.udp.bind = 127.0.0.1\nsources.udp.port = 0\nchannels.c.keep-alive = 0",
    );
    let (mut tail, mut dir) = (agent.log("tail", "tail/app.log"), agent.log("dir", "dir/app.log"));
    let mut collector = agent.start();
    let control = collector.address("control").await;
    let [tcp, http, udp] =
        [listener(&mut collector, "tcp").await, listener(&mut collector, "http").await, listener(&mut collector, "udp").await];
    [&mut tail, &mut dir].into_iter().for_each(|log| log.write(10));
    agent.delivered_once([&tail, &dir]).await;

    millrace(&control, &["pause", "k"]);
    let (done, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let full = Duration::from_secs(std::env::var("FULL_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20));
    let pace = full / ROTATIONS / WRITES;
    let feed = async {
        let begun = Instant::now();
        let (mut rotations, mut memory) = (0, Vec::new());
        while begun.elapsed() < full {
            // More than the channel holds.
            [&mut tail, &mut dir].into_iter().for_each(|log| log.write(50));
            tokio::time::sleep(pace).await;
            if begun.elapsed() >= full / ROTATIONS * (rotations + 1) {
                rotations += 1;
                // Out of the pattern: known only to who looked while the name was there.
                tail.rename(&format!("app.log.old{rotations}"));
                dir.rename(&format!("gone{rotations}"));
                memory.push(resident_kb(&collector));
            }
        }
        millrace(&control, &["resume", "k"]);
        done.store(true, Ordering::Release);
        memory
    };
    let (memory, by_tcp, by_http, by_udp) = tokio::join!(
        feed,
        send_tcp(&tcp, agent.log("tcp", "-"), &done, &refused),
        send_http(&http, agent.log("http", "-"), &done, &refused),
        send_udp(&udp, pace / 10, &done)
    );
    agent.delivered_some("udp", &by_udp, [&tail, &dir, &by_tcp, &by_http]).await;
    let settled = memory[4];
    let highest = memory[4..].iter().copied().max().unwrap_or_default();
    assert!(highest < MEMORY_MAX_KB && highest < settled + GROWTH_MAX_KB, "KiB at each rotation while the channel is full: {memory:?}");
    let refused = refused.into_inner();
    assert!(refused >= REFUSED_MIN, "only {refused} lines and requests were refused: the channel was not full");
    collector.stop().await;
    agent.delivered_some("udp", &by_udp, [&tail, &dir, &by_tcp, &by_http]).await;
}

async fn listener(collector: &mut Process, source: &str) -> String {
    let begins = format!("source=\"{source}\" address=");
    collector.log_contains(WAIT, &begins).await;
    let log = collector.log();
    let address = log.split(&begins).nth(1).and_then(|rest| rest.split_whitespace().next());
    address.unwrap_or_else(|| panic!("no address of {source}: {log}")).to_owned()
}

fn resident_kb(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

/// One line after the other, each again and again until the answer is OK.
async fn send_tcp(address: &str, mut log: Log, done: &AtomicBool, refused: &AtomicUsize) -> Log {
    let (read, mut write) = TcpStream::connect(address).await.expect("netcat").into_split();
    let mut answers = BufReader::new(read).lines();
    while !done.load(Ordering::Acquire) {
        let line = log.line("by TCP") + "\n";
        loop {
            write.write_all(line.as_bytes()).await.expect("a line");
            let answer = answers.next_line().await.expect("an answer").unwrap_or_default();
            if answer == "OK" {
                break;
            }
            assert!(answer.starts_with("FAILED: channel full"), "{answer}");
            refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    log
}

/// One event after the other, again and again until it is taken.
async fn send_http(address: &str, mut log: Log, done: &AtomicBool, refused: &AtomicUsize) -> Log {
    let client = reqwest::Client::new();
    while !done.load(Ordering::Acquire) {
        let body = serde_json::json!([{"headers": {}, "body": log.line("by HTTP")}]).to_string();
        loop {
            let status = client.post(format!("http://{address}/")).body(body.clone()).send().await.expect("an answer").status();
            if status == 200 {
                break;
            }
            assert_eq!(status, 503);
            refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    log
}

/// Datagrams sent, whoever takes them.
async fn send_udp(address: &str, pace: Duration, done: &AtomicBool) -> Vec<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    let mut sent = Vec::new();
    while !done.load(Ordering::Acquire) {
        for _ in 0..10 {
            let line = format!("udp 0000 {:07}", sent.len());
            socket.send_to(line.as_bytes(), address).await.expect("a datagram");
            sent.push(line);
        }
        tokio::time::sleep(pace).await;
    }
    sent
}
