//! Hostile HTTP/2 against the real process: floods of frames, streams that are opened and reset, windows that stay shut. Others are served
//! meanwhile, and memory stands still.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::{
    Client,
    honest::resident,
    process::{Bridge, servers},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// How long one flood goes on, if the bridge does not end it.
const FLOOD: Duration = Duration::from_secs(2);
/// Bytes of all frames of a flood.
const FLOOD_BYTES: usize = 64 << 20;
/// All floods together.
const GROWTH_MAX: u64 = 48 << 20;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// `GET` or `POST` of `/healthy` as HPACK: static table entries, then two literals.
fn headers(method: u8) -> Vec<u8> {
    let mut block = vec![method, 0x86, 0x44, 8];
    block.extend_from_slice(b"/healthy");
    block.extend_from_slice(&[0x41, 1, b'b']);
    block
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// A connection on which HTTP/2 has begun, with these settings.
async fn begin(address: &str, settings: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    socket.write_all(&frame(SETTINGS, 0, 0, settings)).await.unwrap();
    socket
}

/// Sends what `piece` makes, over and over, reading what comes; until the bridge closes, or enough is sent. Gives what was sent.
async fn flood(address: &str, first: Vec<u8>, mut piece: impl FnMut(u32) -> Vec<u8>) -> usize {
    let (mut read, mut write) = begin(address, &[]).await.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while read.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
    });
    let (begun, mut sent) = (Instant::now(), first.len());
    if write.write_all(&first).await.is_ok() {
        for number in 0.. {
            let mut pieces = Vec::new();
            for part in 0..64 {
                pieces.extend(piece(number * 64 + part));
            }
            let written = timeout(FLOOD, write.write_all(&pieces)).await;
            sent += pieces.len();
            if !matches!(written, Ok(Ok(()))) || reading.is_finished() || sent > FLOOD_BYTES || begun.elapsed() > FLOOD {
                break;
            }
        }
    }
    reading.abort();
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_cost_no_memory_and_keep_nobody_waiting() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let honest = async || {
        let answer = timeout(Duration::from_secs(10), client.http.get(format!("{}/healthy", client.base)).send()).await;
        assert!(answer.expect("an answer while others flood").unwrap().status().is_success());
    };
    honest().await;
    let before = resident(bridge.pid());
    let whole = END_HEADERS | END_STREAM;
    let stream = |number: u32| 2 * number + 1;
    let address = bridge.http.clone();
    let block = "x".repeat(16_000);
    let floods = async {
        // Opened and reset; opened and left; a header without an end; bodies of nothing; questions and settings without an end.
        flood(&address, Vec::new(), |n| {
            [frame(HEADERS, whole, stream(n), &headers(GET)), frame(RST_STREAM, 0, stream(n), &[0, 0, 0, 8])].concat()
        })
        .await;
        flood(&address, Vec::new(), |n| frame(HEADERS, END_HEADERS, stream(n), &headers(POST))).await;
        flood(&address, frame(HEADERS, 0, 1, &headers(GET)), |_| frame(CONTINUATION, 0, 1, block.as_bytes())).await;
        flood(&address, frame(HEADERS, END_HEADERS, 1, &headers(POST)), |_| frame(DATA, 0, 1, &[])).await;
        flood(&address, Vec::new(), |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes())).await;
        flood(&address, Vec::new(), |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
        // Answers that nobody takes: every stream's window is shut.
        let mut shut = Vec::new();
        for _ in 0..50 {
            let mut socket = begin(&address, &[0, 4, 0, 0, 0, 0]).await;
            for number in 0..50 {
                // The bridge may have had enough of it.
                drop(socket.write_all(&frame(HEADERS, whole, stream(number), &headers(GET))).await);
            }
            shut.push(socket);
        }
        shut
    };
    let mut floods = std::pin::pin!(floods);
    let shut = loop {
        tokio::select! {
            shut = &mut floods => break shut,
            () = tokio::time::sleep(Duration::from_millis(100)) => honest().await,
        }
    };
    honest().await;
    let grown = resident(bridge.pid()).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    drop(shut);
    bridge.stop().await;
}
