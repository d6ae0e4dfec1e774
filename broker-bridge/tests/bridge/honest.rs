//! Bad requests against the real process: a precise refusal for each, and no memory for it.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Client, JSON, V2,
    process::{Bridge, servers, unique},
};

/// Resident memory of the process.
pub(crate) fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A control character in place of each byte of a request: the refusal names the place.
async fn garbled_at_every_byte(client: &Client, to: &str) {
    let good = r#"{"records":[{"key":"k","value":{"a":[1.5e3,true,null]},"partition":0,"timestamp":5,"headers":[{"key":"h","value":"AP8="}]},{"value":null}]}"#;
    for at in 0..good.len() {
        let mut body = good.as_bytes().to_vec();
        body[at] = 1;
        let request = client.http.post(format!("{}{to}", client.base)).header("content-type", JSON).body(body);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        assert!(status == 400 && answer["error_code"] == 400, "garbled at {at}: {status} {answer}");
        // The byte, or the last one that was good.
        let places = [format!(" line 1 column {at};"), format!(" line 1 column {};", at + 1)];
        assert!(places.iter().any(|place| answer["message"].as_str().unwrap().contains(place)), "garbled at {at}: {answer}");
    }
    // Cut off: at its end.
    for end in 1..good.len() {
        let request = client.http.post(format!("{}{to}", client.base)).header("content-type", JSON).body(&good[..end]);
        let response = request.send().await.unwrap();
        let status = response.status();
        let answer: Value = response.json().await.unwrap();
        let told = answer["message"].as_str().unwrap();
        assert!(status == 400 && told.contains(&format!("column {end}")), "cut off after {end}: {status} {answer}");
    }
}

const REGISTRY: &str = "application/vnd.schemaregistry.v1+json";

/// What a bad request may cost, all of them together and many times.
const GROWTH_MAX: u64 = 48 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_get_a_precise_refusal_and_cost_no_memory() {
    // A body that comes byte by byte has this long, too.
    let bridge = Bridge::start_with(&servers(), &[("MILLRACE_LIMITS__BODY_TIMEOUT", "12s")]).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let to = format!("/topics/{topic}");
    let clusters: Value = client.http.get(format!("{}/v3/clusters", client.base)).send().await.unwrap().json().await.unwrap();
    let cluster = format!("/v3/clusters/{}", clusters["data"][0]["cluster_id"].as_str().unwrap());
    let (v3, batch) = (format!("{cluster}/topics/{topic}/records"), format!("{cluster}/topics/{topic}/records:batch"));

    let deep = format!("{{\"records\":[{{\"key\":{}1{}}}]}}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_type = format!("{{\"records\":[{{\"headers\":{}1{}}}]}}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_v3 = format!("{{\"value\":{{\"type\":\"JSON\",\"data\":{}", "[".repeat((1 << 20) - 25));
    let large = format!("{{\"records\":[{{\"value\":\"{}\"}}]}}", "x".repeat(2 << 20));
    let deep_schema = format!("{{\"schema\":\"{}\"}}", "[".repeat(200_000));
    let many = format!("{{\"records\":[{}{{}}]}}", "{},".repeat(10_000));
    let none = format!("/topics/{}", unique("none"));
    // Path, content type, body; status, error_code, a part of the message.
    let cases: &[(&str, &str, &str, u16, u64, &str)] = &[
        (&to, "text/plain", "{}", 415, 415, "application/vnd.kafka.json.v2+json"),
        (&to, "application/vnd.kafka.xml.v2+json", r#"{"records":[{"value":1}]}"#, 415, 415, "Content-Type"),
        (&to, "application/vnd.kafka.avro.v2+json", r#"{"records":[{"value":1}]}"#, 422, 42202, "value_schema_id"),
        (&none, JSON, r#"{"records":[{"value":1}]}"#, 404, 40401, "does not exist"),
        (&to, JSON, "{\"records\":[{\"value\":1}", 400, 400, "line 1 column 23"),
        (&to, JSON, "{\"records\":[{\"value\":\u{1}}]}", 400, 400, "line 1 column 22"),
        (&to, "application/vnd.kafka.text.v2+json", r#"{"records":[{"value":"\ud800"}]}"#, 422, 42206, "not Unicode text"),
        (&to, JSON, r#"{"records":{}}"#, 422, 422, "line 1 column 11"),
        (&to, JSON, r#"{"records":[{"value":1,"partition":"x"}]}"#, 422, 422, "expected i32 at line 1 column 38"),
        (&to, JSON, &deep_type, 422, 422, "expected a string"),
        (&to, JSON, &large, 413, 413, "max.request.size"),
        (&to, JSON, &many, 413, 413, "produce.batch_records_max"),
        (
            &v3,
            "application/json",
            "{\"value\":{\"type\":\"JSON\",\"data\":1}",
            400,
            400,
            "ends at byte 33 within the record that begins at byte 0",
        ),
        (&v3, "application/json", &deep_v3, 400, 400, "produce.stream_bytes_max"),
        (&v3, "application/xml", "{}", 415, 415, "application/json"),
        (&batch, "application/json", "[1]", 400, 400, "column 2"),
        ("/admin/topics", V2, r#"{"topic_name":"a b"}"#, 422, 422, "not a topic name"),
        ("/consumers/g", V2, r#"{"format":"json","bogus":1}"#, 422, 42204, "bogus"),
        ("/records", JSON, r#"{"records":[{"value":1}]}"#, 422, 422, "topic"),
        (&to, "application/vnd.kafka.avro.v2+json", r#"{"value_schema_id":4242,"records":[{"value":1}]}"#, 422, 42207, "error code: 40403"),
        ("/subjects/s/versions", REGISTRY, r#"{"schema":"{"#, 400, 400, "line 1 column 12"),
        ("/subjects/s/versions", REGISTRY, r#"{"schema":"{"}"#, 422, 42201, "not JSON at character 2"),
        ("/subjects/s/versions", REGISTRY, &deep_schema, 422, 42201, "nested deeper than 96 levels"),
        ("/subjects/s/versions", REGISTRY, &large, 422, 422, "Unrecognized field: records"),
        ("/transactions/none/records", JSON, r#"{"records":[{"topic":"t","value":1}]}"#, 404, 40410, "none"),
        ("/transactions", "application/json", r#"{"lease_ms":"1"}"#, 422, 422, "line 1 column 15"),
        ("/consumers/g/instances/none/offsets", V2, r#"{"offsets":[]}"#, 404, 40403, "none"),
        ("/nowhere", JSON, "{}", 404, 404, "/openapi"),
    ];
    let run = async || {
        let mut wrong = Vec::new();
        for (path, kind, body, status, code, message) in cases {
            let request = client.http.post(format!("{}{path}", client.base)).header("content-type", *kind).body((*body).to_owned());
            let response = request.send().await.unwrap();
            let found = response.status().as_u16();
            let text = response.text().await.unwrap();
            let answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
            let as_told = (found, answer["error_code"].as_u64()) == (*status, Some(*code))
                && answer["message"].as_str().is_some_and(|told| told.contains(message));
            if !as_told {
                wrong.push(format!("{path} {kind}: expected {status} {code} {message:?}, got {found} {answer}"));
            }
            assert!(text.len() < 4096, "{path}: an answer of {} bytes", text.len());
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // Deep nesting is as good a json value as any: what is kept is text.
        let answer = client.http.post(format!("{}{to}", client.base)).header("content-type", JSON).body(deep.clone()).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{} bytes", deep.len());
    };
    run().await;
    garbled_at_every_byte(&client, &to).await;
    let before = resident(bridge.pid());
    for _ in 0..5 {
        run().await;
    }

    // More than a body may have is refused before it is sent.
    let mut socket = TcpStream::connect(&bridge.http).await.unwrap();
    let head = format!("POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ncontent-length: 11534336\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 1024];
    let length = timeout(Duration::from_secs(5), socket.read(&mut bytes)).await.expect("a refusal at once").unwrap();
    let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("limits.body_bytes_max"), "{answer}");

    // Nor is more taken where its length is not told before.
    let mut socket = TcpStream::connect(&bridge.http).await.unwrap();
    let head = format!("POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ntransfer-encoding: chunked\r\n\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let (mut answers, mut requests) = socket.into_split();
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    let sending = tokio::spawn(async move {
        // Until it is refused, which comes before all of it.
        for _ in 0..64 {
            if requests.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
    });
    let length = timeout(Duration::from_secs(15), answers.read(&mut bytes)).await.expect("a refusal").unwrap();
    let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("limits.body_bytes_max"), "{answer}");
    drop(answers);
    sending.await.unwrap();

    // Bodies that do not come: a hundred connections that promise 10 MiB and send a piece.
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut socket = TcpStream::connect(&bridge.http).await.unwrap();
        let head = format!("POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ncontent-length: 10000000\r\n\r\n{{\"records\":[");
        socket.write_all(head.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    // And one that comes byte by byte.
    let mut trickle = TcpStream::connect(&bridge.http).await.unwrap();
    let head = format!("POST {to} HTTP/1.1\r\nhost: b\r\ncontent-type: {JSON}\r\ncontent-length: 10000000\r\n\r\n");
    trickle.write_all(head.as_bytes()).await.unwrap();
    let (mut trickled, mut bytewise) = trickle.into_split();
    let trickling = tokio::spawn(async move {
        while bytewise.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // Others are served meanwhile.
    client.produce(&topic, 0..10).await;
    for socket in &mut slow {
        let mut bytes = vec![0; 1024];
        let length = timeout(Duration::from_secs(15), socket.read(&mut bytes)).await.expect("a slow body is refused").unwrap();
        let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_idle_timeout"), "{answer}");
    }
    let length = timeout(Duration::from_secs(20), trickled.read(&mut bytes)).await.expect("a body that trickles is refused").unwrap();
    let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    trickling.abort();
    let grown = resident(bridge.pid()).saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    client.delete_topic(&topic).await;
    bridge.stop().await;
}
