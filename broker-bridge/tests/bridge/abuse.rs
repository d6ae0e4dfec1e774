//! Hostile HTTP/2 against the real process: floods of frames, streams that are opened and reset, windows that stay shut. That HTTP/2 was spoken is
//! seen in the frames that the bridge answers. Others are served meanwhile, and memory stands still.
//!
//! `FLOOD_SECONDS=10` lets each flood go on for so long.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp::OwnedReadHalf},
    time::{Instant, timeout, timeout_at},
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
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Reasons of GOAWAY.
const FRAME_SIZE_ERROR: u32 = 6;
const ENHANCE_YOUR_CALM: u32 = 11;

/// All floods together.
const GROWTH_MAX: u64 = 48 << 20;

/// How long one flood goes on, if the bridge does not end it; and bytes of all its frames.
fn bounds() -> (Duration, usize) {
    let seconds = std::env::var("FLOOD_SECONDS").map_or(2, |text| text.parse().expect("FLOOD_SECONDS is a number"));
    (Duration::from_secs(seconds), 32 << 20 << (seconds / 5).min(4))
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
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

/// What the bridge has said on a connection.
#[derive(Debug, Default)]
struct Said {
    frames: BTreeMap<u8, usize>,
    /// Streams that were answered.
    answered: BTreeSet<u32>,
    /// The reason of GOAWAY.
    goaway: Option<u32>,
    closed: bool,
}

impl Said {
    fn count(&self, kind: u8) -> usize {
        self.frames.get(&kind).copied().unwrap_or(0)
    }

    /// Reads frames until there are no more, it is enough, or the time is over.
    async fn hear(mut read: OwnedReadHalf, until: Instant, enough: impl Fn(&Self) -> bool) -> Self {
        let mut said = Self::default();
        while !enough(&said) {
            let mut head = [0; 9];
            match timeout_at(until, read.read_exact(&mut head)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => {
                    said.closed = true;
                    break;
                }
                Err(_) => break,
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            // What is not HTTP/2 has no frame of this kind and size.
            assert!(head[3] <= CONTINUATION && length <= 16_384, "the bridge speaks something else: {head:?}");
            let mut payload = vec![0; length];
            if !matches!(timeout_at(until, read.read_exact(&mut payload)).await, Ok(Ok(_))) {
                break;
            }
            *said.frames.entry(head[3]).or_default() += 1;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                HEADERS => drop(said.answered.insert(stream)),
                GOAWAY => said.goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
                _ => {}
            }
        }
        said
    }
}

/// Sends what `piece` makes, over and over, reading what comes; until the bridge closes, or enough is sent. Gives what the bridge said.
async fn flood(address: &str, first: Vec<u8>, mut piece: impl FnMut(u32) -> Vec<u8>) -> Said {
    let (duration, bytes_max) = bounds();
    let (read, mut write) = begin(address, &[]).await.into_split();
    let begun = Instant::now();
    // It has a while to say why it ends.
    let hearing = tokio::spawn(Said::hear(read, begun + 2 * duration, |_| false));
    let mut sent = first.len();
    if write.write_all(&first).await.is_ok() {
        for number in 0.. {
            let mut pieces = Vec::new();
            for part in 0..64 {
                pieces.extend(piece(number * 64 + part));
            }
            if pieces.is_empty() {
                break;
            }
            let written = timeout(duration, write.write_all(&pieces)).await;
            sent += pieces.len();
            if !matches!(written, Ok(Ok(()))) || hearing.is_finished() || sent > bytes_max || begun.elapsed() > duration {
                break;
            }
        }
    }
    drop(write);
    let said = hearing.await.unwrap();
    assert!(said.count(SETTINGS) > 0, "no HTTP/2: {said:?}");
    said
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
        // Opened and reset: enough of it ends the connection.
        let said = flood(&address, Vec::new(), |n| {
            [frame(HEADERS, whole, stream(n), &headers(GET)), frame(RST_STREAM, 0, stream(n), &[0, 0, 0, 8])].concat()
        })
        .await;
        assert_eq!(said.goaway, Some(ENHANCE_YOUR_CALM), "{said:?}");
        // Opened and left: no more than `limits.http2_streams_max` at a time are taken.
        let said = flood(&address, Vec::new(), |n| frame(HEADERS, END_HEADERS, stream(n), &headers(POST))).await;
        assert!(said.count(RST_STREAM) > 0 || said.goaway == Some(ENHANCE_YOUR_CALM), "{said:?}");
        // Asked without a pause: answered, or there are enough of them.
        let said = flood(&address, Vec::new(), |n| frame(HEADERS, whole, stream(n), &headers(GET))).await;
        assert!(!said.answered.is_empty() || said.goaway == Some(ENHANCE_YOUR_CALM), "{said:?}");
        // A header without an end.
        let said = flood(&address, frame(HEADERS, 0, 1, &headers(GET)), |_| frame(CONTINUATION, 0, 1, block.as_bytes())).await;
        assert!(said.goaway == Some(ENHANCE_YOUR_CALM) && said.closed, "{said:?}");
        // A body of nothing, without an end.
        let said = flood(&address, frame(HEADERS, END_HEADERS, 1, &headers(POST)), |_| frame(DATA, 0, 1, &[])).await;
        assert!(said.closed || said.answered.contains(&1) || said.goaway.is_some(), "{said:?}");
        // Questions and settings without an end: each is answered, or there are enough of them.
        let said = flood(&address, Vec::new(), |n| frame(PING, 0, 0, &u64::from(n).to_be_bytes())).await;
        assert!(said.count(PING) > 0, "{said:?}");
        let said = flood(&address, Vec::new(), |_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])).await;
        assert!(said.count(SETTINGS) > 1, "{said:?}");
        // A frame that is larger than frames are.
        let said = flood(&address, frame(DATA, 0, 1, &vec![0; 16_385]), |_| Vec::new()).await;
        assert!(said.goaway == Some(FRAME_SIZE_ERROR) && said.closed, "{said:?}");
        // Answers that nobody takes: every stream's window is shut.
        let mut shut = Vec::new();
        for _ in 0..50 {
            let (read, mut write) = begin(&address, &[0, 4, 0, 0, 0, 0]).await.into_split();
            for number in 0..50 {
                // The bridge may have had enough of it.
                drop(write.write_all(&frame(HEADERS, whole, stream(number), &headers(GET))).await);
            }
            let said = Said::hear(read, Instant::now() + Duration::from_secs(30), |said| said.answered.len() == 50).await;
            assert!(said.answered.len() == 50 && said.count(DATA) == 0, "the head of each answer, and nothing of its body: {said:?}");
            shut.push(write);
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
