//! What changes under live sessions: a topic is deleted, made again, has more partitions. Who reads it is told, and nobody else notices.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use proto::data::v1::{Ack, consume_request::Request};
use serde_json::{Value, json};
use service_kit::kafka::{self, KafkaConfig};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    Client, JSON, V2, consume, message,
    process::{Bridge, servers, unique},
    push::Reader,
};

/// `metadata.max.age.ms` and `topics.metadata_age`: how long what was known of a topic is believed.
const METADATA_AGE: Duration = Duration::from_secs(1);
/// Beside it: a rebalance, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks an instance until the answer is what is waited for.
async fn asked(client: &Client, base: &str, what: &str, holds: impl Fn(u16, &Value) -> bool) -> Value {
    let deadline = Instant::now() + METADATA_AGE + PATIENCE;
    loop {
        let answer = client.http.get(format!("{base}/records?timeout=300")).header("accept", JSON).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        if holds(status, &body) {
            return body;
        }
        assert!(status == 200 || status == 404, "{status} {body}");
        assert!(Instant::now() < deadline, "{what}: {status} {body}");
    }
}

/// Writes; a topic or partition that has appeared just now is refused until the bridge's client knows it.
async fn writes(client: &Client, topic: &str, records: &Value) {
    let deadline = Instant::now() + METADATA_AGE + PATIENCE;
    loop {
        let (status, answer) = client.post(&format!("/topics/{topic}"), JSON, records).await;
        if status == 200 && answer["offsets"].as_array().unwrap().iter().all(|offset| offset["offset"].is_number()) {
            return;
        }
        assert!(status == 500 && answer["error_code"] == 50003, "{status} {answer}");
        assert!(Instant::now() < deadline, "{answer}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn gives(client: &Client, base: &str, value: i64) {
    let has = |status, body: &Value| status == 200 && body.as_array().unwrap().iter().any(|record| record["value"] == value);
    asked(client, base, &format!("{value} comes"), has).await;
}

async fn next<T>(what: &str, coming: impl Future<Output = T>) -> T {
    timeout(METADATA_AGE + PATIENCE, coming).await.unwrap_or_else(|_| panic!("nothing comes: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_deleted_is_told_to_those_who_read_it_and_to_nobody_else() {
    let ages = [("MILLRACE_KAFKA__PROPERTIES__METADATA_MAX_AGE_MS", "1000"), ("MILLRACE_TOPICS__METADATA_AGE", "1s")];
    let bridge = Bridge::start_with(&servers(), &ages).await;
    let client = Client::of(&bridge).await;
    let (gone, kept) = (client.create_topic(1).await, client.create_topic(1).await);
    client.produce(&gone, 0..1).await;
    client.produce(&kept, 0..1).await;

    // Three that read it, one of them beside another topic; and three that do not.
    let group = unique("group");
    let base = client.consumer(&group, &kept, false).await;
    assert_eq!(client.http.delete(format!("{base}/subscription")).send().await.unwrap().status(), 204);
    assert_eq!(client.post(&format!("{base}/subscription"), V2, &json!({"topics": [gone, kept]})).await.0, 204);
    client.fetch_values(&base, 2).await;
    let windowed = json!({"format": "json", "auto.offset.reset": "earliest", "delivery": "acknowledged"});
    let (status, created) = client.post(&format!("/consumers/{}", unique("group")), V2, &windowed).await;
    assert_eq!(status, 200, "{created}");
    let windowed = created["base_uri"].as_str().unwrap().to_owned();
    assert_eq!(client.post(&format!("{windowed}/subscription"), V2, &json!({"topics": [gone]})).await.0, 204);
    let first = client.fetch(&windowed).await;
    let done = json!({"acknowledge": [{"topic": gone, "partition": 0, "offset": first[0]["offset"]}]});
    assert_eq!(client.post(&format!("{windowed}/acknowledgements"), V2, &done).await.0, 200);
    let other = client.consumer(&unique("group"), &kept, true).await;
    client.fetch_values(&other, 1).await;
    let open = async |topic: &str| {
        let query = format!("topics={topic}&auto.offset.reset=earliest");
        let mut events = Reader::open(&client, &unique("events"), &query, &[]).await;
        assert_eq!(events.events(1).await.0, [0]);
        let url = format!("{}/consumers/{}/stream?format=json&{query}", client.base, unique("socket")).replacen("http", "ws", 1);
        let (mut socket, _) = tokio_tungstenite::connect_async(url.into_client_request().unwrap()).await.unwrap();
        next("a first message", socket.next()).await.unwrap().unwrap();
        let (requests, mut batches) = consume(&client, &unique("call"), topic, 100).await;
        let batch = next("a first batch", batches.next()).await.unwrap().unwrap();
        requests.send(message(Request::Ack(Ack { batch: batch.batch }))).await.unwrap();
        (events, socket, requests, batches)
    };
    let (mut events, mut socket, _requests, mut batches) = open(&gone).await;
    let (mut other_events, mut other_socket, _other_requests, mut other_batches) = open(&kept).await;

    // By somebody else: the bridge is not told.
    let admin = kafka::admin(&KafkaConfig::new(servers().as_str())).await.unwrap();
    admin.delete_topic(&gone).await.unwrap();
    let told = |status: u16, body: &Value| {
        status == 404 && body["error_code"] == 40401 && body["message"].as_str().unwrap().contains(&format!("{gone:?} does not exist"))
    };
    asked(&client, &base, "the instance is told", told).await;
    asked(&client, &windowed, "the instance that acknowledges is told", told).await;
    let event = async {
        while events.line().await != "event: error" {}
        events.line().await
    };
    let event = next("an error event", event).await;
    assert!(event.contains("40401") && event.contains(&gone), "{event}");
    let word = loop {
        match next("a word", socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => break text.to_string(),
            _ => continue,
        }
    };
    assert!(word.contains("40401") && word.contains(&gone), "{word}");
    let status = next("the call's end", batches.next()).await.unwrap().unwrap_err();
    assert!(status.code() == tonic::Code::NotFound && status.message().contains(&gone), "{status}");

    // The other topic of the same instance goes on, and so do all others.
    client.produce(&kept, 7..8).await;
    gives(&client, &base, 7).await;
    gives(&client, &other, 7).await;
    assert_eq!(other_events.events(1).await.0, [7]);
    let text = loop {
        match next("a message", other_socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => break text.to_string(),
            _ => continue,
        }
    };
    assert!(text.contains("\"value\":7"), "{text}");
    let batch = next("a batch", other_batches.next()).await.unwrap().unwrap();
    assert_eq!(batch.records[0].value.as_deref(), Some(&b"7"[..]));
    // It is not a caller's fault that is forgotten: it is told again.
    asked(&client, &base, "the instance is told again", told).await;

    // Made again, it is read from its beginning.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = admin.create_topic(&gone, 1, 1, &Default::default(), false).await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
    let record = json!({"records": [{"value": 100}]});
    asked(&client, &base, "the topic is there again", |status, _| status == 200).await;
    writes(&client, &gone, &record).await;
    gives(&client, &base, 100).await;

    drop(other_socket.close(None).await);
    for base in [&base, &windowed, &other] {
        client.delete(base).await;
    }
    client.delete_topic(&gone).await;
    client.delete_topic(&kept).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_added_partitions_come_when_metadata_is_renewed() {
    let ages = [("MILLRACE_KAFKA__PROPERTIES__METADATA_MAX_AGE_MS", "1000"), ("MILLRACE_TOPICS__METADATA_AGE", "1s")];
    let bridge = Bridge::start_with(&servers(), &ages).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    client.produce(&topic, 0..1).await;
    let base = client.consumer(&unique("group"), &topic, true).await;
    client.fetch_values(&base, 1).await;
    let query = format!("topics={topic}&auto.offset.reset=earliest");
    let mut events = Reader::open(&client, &unique("events"), &query, &[]).await;
    assert_eq!(events.events(1).await.0, [0]);
    let (_requests, mut batches) = consume(&client, &unique("call"), &topic, 100).await;
    next("a first batch", batches.next()).await.unwrap().unwrap();

    let clusters: Value = client.http.get(format!("{}/v3/clusters", client.base)).send().await.unwrap().json().await.unwrap();
    let path = format!("{}/v3/clusters/{}/topics/{topic}", client.base, clusters["data"][0]["cluster_id"].as_str().unwrap());
    let more = client.http.patch(path).header("content-type", "application/json").body(r#"{"partitions_count":3}"#).send().await.unwrap();
    assert_eq!(more.status(), 200);
    let records = json!({"records": [{"value": 11, "partition": 1}, {"value": 12, "partition": 2}]});
    writes(&client, &topic, &records).await;

    let (mut fetched, deadline) = (BTreeSet::new(), Instant::now() + METADATA_AGE + PATIENCE);
    while fetched.len() < 2 {
        let body = asked(&client, &base, "the instance has them", |status, _| status == 200).await;
        fetched.extend(body.as_array().unwrap().iter().map(|record| record["value"].as_i64().unwrap()));
        assert!(Instant::now() < deadline, "{fetched:?}");
    }
    assert_eq!(fetched, BTreeSet::from([11, 12]));
    // A rebalance gives what was not acknowledged again.
    let mut seen = Vec::new();
    while !(seen.contains(&11) && seen.contains(&12)) {
        seen.extend(next("events of the new partitions", events.events(1)).await.0);
    }
    let mut values = Vec::new();
    while !(values.contains(&b"11".to_vec()) && values.contains(&b"12".to_vec())) {
        let batch = next("batches of the new partitions", batches.next()).await.unwrap().unwrap();
        values.extend(batch.records.iter().map(|record| record.value.as_deref().unwrap().to_vec()));
    }
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}
