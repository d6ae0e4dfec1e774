//! Streams over HTTP: events, lines, WebSockets.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use proto::control::v1::{GroupLagRequest, ResetOffsetsRequest, reset_offsets_request::To};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{
        Message,
        client::IntoClientRequest as _,
        protocol::frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};

use crate::{
    Client, V2,
    process::{Bridge, servers, unique},
};

/// Sends a message for which a WebSocket is told why and closed.
async fn refused(mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>, message: Message, code: u16, told: &str) {
    socket.send(message).await.unwrap();
    let (mut reason, mut closed) = (String::new(), None);
    while let Some(Ok(heard)) = timeout(PATIENCE, socket.next()).await.expect("an answer") {
        match heard {
            Message::Text(text) => reason = text.to_string(),
            Message::Close(frame) => closed = frame.map(|frame| u16::from(frame.code)),
            _ => {}
        }
    }
    assert_eq!(closed, Some(code), "{told}: {reason}");
    assert!(reason.contains("\"error_code\":4") && reason.contains(told), "{reason}");
}

const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that goes on, as far as it was read.
pub(crate) struct Reader {
    response: reqwest::Response,
    text: String,
}

impl Reader {
    pub(crate) async fn open(client: &Client, group: &str, query: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = client.http.get(format!("{}/consumers/{group}/stream?format=json&{query}", client.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.text().await);
        Self { response, text: String::new() }
    }

    /// Whole lines, one at a time.
    pub(crate) async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.text.find('\n') {
                let line = self.text[..end].to_owned();
                self.text.drain(..=end);
                return line;
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("something comes").unwrap();
            self.text.push_str(std::str::from_utf8(&chunk.expect("the stream goes on")).unwrap());
        }
    }

    /// Values until there are `count`, and the position behind them.
    pub(crate) async fn events(&mut self, count: usize) -> (Vec<i64>, String) {
        let (mut values, mut position) = (Vec::new(), String::new());
        while values.len() < count || position.is_empty() {
            let line = self.line().await;
            if let Some(record) = line.strip_prefix("data: ") {
                values.push(serde_json::from_str::<Value>(record).unwrap()["value"].as_i64().unwrap());
                position.clear();
            } else if let Some(id) = line.strip_prefix("id: ") {
                id.clone_into(&mut position);
            }
        }
        values.sort_unstable();
        (values, position)
    }

    pub(crate) async fn lines(&mut self, count: usize) -> (Vec<i64>, String) {
        let (mut values, mut position) = (Vec::new(), String::new());
        while values.len() < count || position.is_empty() {
            let line = self.line().await;
            let line: Value = if line.is_empty() { continue } else { serde_json::from_str(&line).unwrap() };
            match line["position"].as_str() {
                Some(at) => at.clone_into(&mut position),
                None => {
                    values.push(line["value"].as_i64().unwrap());
                    position.clear();
                }
            }
        }
        values.sort_unstable();
        (values, position)
    }
}

/// Sum of the offsets that the group has committed.
async fn committed(client: &Client, group: &str) -> i64 {
    let lag = client.control().group_lag(GroupLagRequest { group: group.to_owned() }).await.unwrap().into_inner();
    lag.partitions.iter().map(|partition| partition.committed.max(0)).sum()
}

#[tokio::test]
async fn a_stream_goes_on_where_its_client_says_that_it_was() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(3).await;
    let group = unique("stream");
    client.produce(&topic, 0..30).await;
    let query = format!("topics={topic}&auto.offset.reset=earliest");

    let mut events = Reader::open(&client, &group, &query, &[]).await;
    assert_eq!(events.response.headers()["content-type"], "text/event-stream");
    let (values, position) = events.events(30).await;
    assert_eq!(values, (0..30).collect::<Vec<_>>());
    // Nothing is acknowledged by having been sent.
    assert_eq!(committed(&client, &group).await, 0);
    drop(events);

    let mut again = Reader::open(&client, &group, &query, &[("Last-Event-ID", &position)]).await;
    client.produce(&topic, 30..35).await;
    let (values, newer) = again.events(5).await;
    assert_eq!(values, (30..35).collect::<Vec<_>>());
    assert_eq!(committed(&client, &group).await, 30);
    drop(again);

    // An older position takes nothing back; the bridge need not be the same process.
    let bridge = bridge.kill_and_restart().await;
    let client = Client::of(&bridge).await;
    let mut lines = Reader::open(&client, &group, &format!("{query}&after={position}"), &[("Accept", "application/x-ndjson")]).await;
    assert_eq!(lines.lines(5).await.0, (30..35).collect::<Vec<_>>());
    drop(lines);

    // While it goes on, `POST …/offsets` acknowledges.
    let mut lines = Reader::open(&client, &group, &format!("{query}&after={newer}"), &[("Accept", "application/x-ndjson")]).await;
    client.produce(&topic, 35..36).await;
    assert_eq!(lines.lines(1).await.0, [35]);
    let name = lines.response.headers()["millrace-instance"].to_str().unwrap().to_owned();
    assert_eq!(committed(&client, &group).await, 35);
    let response = client
        .http
        .post(format!("{}/consumers/{group}/instances/{name}/offsets", client.base))
        .header("Content-Type", V2)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(committed(&client, &group).await, 36);
    drop(lines);

    // After a reset, what the client had before says nothing.
    let reset = ResetOffsetsRequest { group: group.clone(), topic: topic.clone(), to: Some(To::Earliest(true)), dry_run: false };
    let until = Instant::now() + PATIENCE;
    // The consumer leaves its group a moment after its connection has gone.
    while let Err(error) = client.control().reset_offsets(reset.clone()).await {
        assert!(error.message().contains("member") && Instant::now() < until, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    let mut after_reset = Reader::open(&client, &group, &query, &[("Last-Event-ID", &newer)]).await;
    assert_eq!(after_reset.events(36).await.0, (0..36).collect::<Vec<_>>());
    drop(after_reset);

    for (query, headers, status, words) in [
        ("", vec![], 422, "topics"),
        ("topics=", vec![], 422, "topics"),
        ("topics=none-such-topic", vec![], 404, "none-such-topic"),
        ("topics=t&after=nonsense", vec![], 400, "nonsense"),
        ("topics=t&colour=red", vec![], 422, "colour"),
        ("topics=t", vec![("Accept", "text/html")], 406, "text/event-stream"),
    ] {
        let mut request = client.http.get(format!("{}/consumers/{group}/stream?{query}", client.base));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        let (code, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(code, status, "{query}: {text}");
        assert!(text.contains(words), "{query}: {text}");
    }
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_web_socket_takes_credit_and_acks_and_a_client_that_does_not_read_keeps_nobody_waiting() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let group = unique("socket");
    client.produce(&topic, 0..30).await;

    // It never reads, and its topic holds far more than fits on the way.
    let large = client.create_topic(1).await;
    let text = "x".repeat(100_000);
    for _ in 0..20 {
        let records: Vec<Value> = (0..8).map(|_| json!({"value": text})).collect();
        let (status, answer) = client.post(&format!("/topics/{large}"), crate::JSON, &json!({"records": records})).await;
        assert_eq!(status, 200, "{answer}");
    }
    let unread = Reader::open(&client, &unique("unread"), &format!("topics={large}&auto.offset.reset=earliest"), &[]).await;

    let url = format!("{}/consumers/{group}/stream?topics={topic}&format=json&auto.offset.reset=earliest", client.base);
    let request = url.replacen("http", "ws", 1).into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    // Before anything else: no more than this.
    socket.send(Message::text(json!({"credit": 10}).to_string())).await.unwrap();
    let mut seen = Vec::new();
    let mut position = String::new();
    while seen.len() < 30 {
        let message = timeout(PATIENCE, socket.next()).await.expect("something comes").unwrap().unwrap();
        let Message::Text(text) = message else { continue };
        let batch: Value = serde_json::from_str(&text).unwrap();
        seen.extend(
            batch["records"].as_array().unwrap_or_else(|| panic!("{batch}")).iter().map(|record| record["value"].as_i64().unwrap()),
        );
        batch["position"].as_str().unwrap().clone_into(&mut position);
        socket.send(Message::text(json!({ "ack": position }).to_string())).await.unwrap();
        socket.send(Message::text(json!({"credit": 10}).to_string())).await.unwrap();
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    let until = Instant::now() + PATIENCE;
    while committed(&client, &group).await < 30 {
        assert!(Instant::now() < until, "the last ack moves the group to its end");
    }
    let behind = position.replace(":30", ":1000000");
    assert_ne!(behind, position);
    // The partition is this one's.
    refused(socket, Message::text(json!({ "ack": behind }).to_string()), 1011, "ends at 30").await;
    for (message, code, told) in [
        (Message::text("{\"acknowledge\":1}"), 1008, "POSITION"),
        (Message::text("{\"ack\":\"nowhere\"}"), 1008, "nowhere"),
        (Message::binary(vec![0xff, 0xfe]), 1007, "POSITION"),
        (Message::text("x".repeat(70_000)), 1009, "POSITION"),
        (Message::Frame(Frame::message(vec![0xff], OpCode::Data(Data::Text), true)), 1007, "POSITION"),
        (Message::Frame(Frame::message(vec![], OpCode::Data(Data::Reserved(3)), true)), 1002, "POSITION"),
    ] {
        let request = url.replacen("http", "ws", 1).replace(&group, &unique("wrong")).into_client_request().unwrap();
        let (socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
        refused(socket, message, code, told).await;
    }

    drop(unread);
    client.delete_topic(&topic).await;
    client.delete_topic(&large).await;
    bridge.stop().await;
}
