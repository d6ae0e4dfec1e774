//! The caps of what a client sends, on the real process: what is as large as it may be is taken, one more is refused, and so is a hundred times as
//! much, and memory stands still.

use std::time::Duration;

use proto::data::v1::{ProduceRequest, Record};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    Client, JSON,
    honest::resident,
    process::{Bridge, servers, unique},
};

/// All of it together, many times the caps.
const GROWTH_MAX: u64 = 64 << 20;

/// Of `[limits]` and `[produce]`, as they are where nobody sets them.
const BODY_BYTES: usize = 10 << 20;
const HEADER_BYTES: usize = 32 << 10;
const FIELDS: usize = 64;
const BATCH_RECORDS: usize = 10_000;
const STREAM_RECORD_BYTES: usize = 1 << 20;
const GRPC_MESSAGE_BYTES: usize = 4 << 20;
const SOCKET_MESSAGE_BYTES: usize = 64 << 10;

/// Status of the answer to these pieces; sending ends when the answer comes, or the connection is closed. `None`: closed without a word.
async fn status(address: &str, head: String, piece: &[u8], times: usize) -> Option<u16> {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let piece = piece.to_vec();
    let sending = tokio::spawn(async move {
        if write.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        for _ in 0..times {
            if write.write_all(&piece).await.is_err() {
                return;
            }
        }
        // Kept open for the answer.
        std::future::pending::<()>().await;
    });
    let mut answer = [0; 12];
    let read = timeout(Duration::from_secs(60), read.read_exact(&mut answer)).await.expect("an answer");
    sending.abort();
    read.ok()?;
    Some(std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap())
}

/// A cap, one more, and a hundred times as much.
fn sizes(cap: usize) -> [usize; 3] {
    [cap, cap + 1, cap * 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_at_its_cap_is_taken_and_one_more_or_a_hundred_times_as_much_is_refused_and_costs_no_memory() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let to = format!("/topics/{topic}");
    client.produce(&topic, 0..1).await;
    // As much as it ever needs for one of each: the caps themselves.
    let mut before = 0;
    for round in 0..2 {
        // A body of spaces behind a record: whole, told before, or in chunks.
        let body = r#"{"records":[{"value":1}]}"#;
        for (size, expected) in sizes(BODY_BYTES).into_iter().zip([200, 413, 413]) {
            let head = format!("POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ncontent-length: {size}\r\n\r\n{body}");
            let rest = size - body.len();
            let (piece, times) = if size > BODY_BYTES + 1 { (vec![b' '; 1 << 20], rest >> 20) } else { (vec![b' '; rest], 1) };
            assert_eq!(status(&bridge.http, head, &piece, times).await, Some(expected), "a body of {size} bytes");
            let chunks = |count: usize| format!("{count:x}\r\n{}\r\n", " ".repeat(count));
            let head = format!(
                "POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
                body.len()
            );
            let (piece, times) =
                if size > BODY_BYTES + 1 { (chunks(1 << 20), rest >> 20) } else { (format!("{}0\r\n\r\n", chunks(rest)), 1) };
            assert_eq!(status(&bridge.http, head, piece.as_bytes(), times).await, Some(expected), "a chunked body of {size} bytes");
        }
        for (size, expected) in sizes(HEADER_BYTES).into_iter().zip([200, 431, 431]) {
            let (begin, end) = ("GET /healthy HTTP/1.1\r\nhost: b\r\nx: ", "\r\n\r\n");
            let head = format!("{begin}{}{end}", "y".repeat(size - begin.len() - end.len()));
            assert_eq!(status(&bridge.http, head, b"", 0).await, Some(expected), "a header of {size} bytes");
        }
        for (count, expected) in sizes(FIELDS).into_iter().zip([200, 431, 431]) {
            let fields: String = (1..count).map(|number| format!("x{number}:y\r\n")).collect();
            let head = format!("GET /healthy HTTP/1.1\r\nhost: b\r\n{fields}\r\n");
            assert_eq!(status(&bridge.http, head, b"", 0).await, Some(expected), "{count} fields");
        }
        for (count, expected) in sizes(BATCH_RECORDS).into_iter().zip([200, 413, 413]) {
            let body = format!("{{\"records\":[{}{{\"value\":1}}]}}", "{\"value\":1},".repeat(count.min(700_000) - 1));
            let answer = client.http.post(format!("{}{to}", client.base)).header("content-type", JSON).body(body).send().await.unwrap();
            assert_eq!(answer.status(), expected, "{count} records: {}", answer.text().await.unwrap());
        }
        let clusters: Value = client.http.get(format!("{}/v3/clusters", client.base)).send().await.unwrap().json().await.unwrap();
        let v3 = format!("/v3/clusters/{}/topics/{topic}/records", clusters["data"][0]["cluster_id"].as_str().unwrap());
        for (size, is_taken) in sizes(STREAM_RECORD_BYTES).into_iter().zip([true, false, false]) {
            let (begin, end) = ("{\"partition_id\":0", "}");
            let record = format!("{begin}{}{end}", " ".repeat(size - begin.len() - end.len()));
            let request = client.http.post(format!("{}{v3}", client.base)).header("content-type", "application/json").body(record);
            // The bridge may close before it has read a hundred times as much.
            let Ok(answer) = request.send().await else {
                assert!(size > STREAM_RECORD_BYTES + 1, "no answer to a record of {size} bytes");
                continue;
            };
            let text = answer.text().await.unwrap();
            let is_refused = ["produce.stream_bytes_max", "limits.body_bytes_max"].iter().any(|limit| text.contains(limit));
            assert_eq!(!is_refused, is_taken, "a record of {size} bytes in a stream: {text}");
        }
        for (size, code) in sizes(GRPC_MESSAGE_BYTES).into_iter().zip([None, Some(()), Some(())]) {
            // Name and bytes of the field before the value, whose length is a varint of four.
            let mut request = ProduceRequest { topic: topic.clone(), records: vec![Record::default()], ..Default::default() };
            let fill = |request: &mut ProduceRequest, bytes: usize| request.records[0].value = Some(vec![b'x'; bytes].into());
            fill(&mut request, size);
            let over = prost::Message::encoded_len(&request) - size;
            fill(&mut request, size - over);
            assert_eq!(prost::Message::encoded_len(&request), size);
            let answer = client.data().produce(request).await;
            let refusals = [tonic::Code::OutOfRange, tonic::Code::ResourceExhausted];
            match (answer, code) {
                // Taken, and the broker takes no such record.
                (Ok(answer), None) => assert!(!answer.into_inner().results[0].error.is_empty()),
                (Err(error), None) => assert!(!refusals.contains(&error.code()), "{size}: {error}"),
                (Err(error), Some(())) => assert!(refusals.contains(&error.code()), "{size}: {error}"),
                (answer, _) => panic!("a message of {size} bytes: {answer:?}"),
            }
        }
        for (size, is_heard) in sizes(SOCKET_MESSAGE_BYTES).into_iter().zip([true, false, false]) {
            let url = format!("{}/consumers/{}/stream?topics={topic}&format=json", client.base, unique("socket")).replacen("http", "ws", 1);
            let (mut socket, _) = tokio_tungstenite::connect_async(url.into_client_request().unwrap()).await.unwrap();
            let said = json!({"credit": 1}).to_string();
            let said = format!("{said}{}", " ".repeat(size - said.len()));
            futures::SinkExt::send(&mut socket, Message::text(said)).await.ok();
            // What is heard is understood and followed by what is not; what is too large is the end.
            futures::SinkExt::send(&mut socket, Message::text("{\"acknowledge\":1}")).await.ok();
            let told = async {
                while let Some(Ok(message)) = futures::StreamExt::next(&mut socket).await {
                    if let Message::Close(Some(frame)) = message {
                        return Some(u16::from(frame.code));
                    }
                }
                None
            };
            let told = timeout(Duration::from_secs(30), told).await.expect("an answer, or the end");
            // A connection may end before its last word is read.
            let ends: &[_] = if is_heard { &[Some(1008)] } else { &[Some(1009), None] };
            assert!(ends.contains(&told), "a message of {size} bytes: {told:?}");
        }
        if round == 0 {
            before = resident(bridge.pid());
        }
    }
    let grown = resident(bridge.pid()).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    client.delete_topic(&topic).await;
    bridge.stop().await;
}
