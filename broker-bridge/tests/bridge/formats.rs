//! The formats with schemas on real servers: with Confluent's client for Python, over two replicas, and with what does not fit.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Client, V2,
    process::{servers, unique},
    registry::{Registry, python},
};

const AVRO: &str = "application/vnd.kafka.avro.v2+json";
const PROTOBUF: &str = "application/vnd.kafka.protobuf.v2+json";
const JSON_SCHEMA: &str = "application/vnd.kafka.jsonschema.v2+json";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_s_deserialisers_read_what_the_bridge_writes_and_the_bridge_reads_what_its_serialisers_write() {
    let registry = Registry::new();
    let bridge = registry.replica().await;
    let client = Client::of(&bridge).await;
    let topics = [client.create_topic(1).await, client.create_topic(1).await, client.create_topic(1).await];
    let url = format!("http://{}", bridge.http);
    python(&["formats", &url, &servers(), &topics[0], &topics[1], &topics[2]]).await;
    for topic in &topics {
        client.delete_topic(topic).await;
    }
    bridge.stop().await;
    registry.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_that_refer_to_others_and_change_are_understood_by_python_and_by_every_replica() {
    let registry = Registry::new();
    let (one, two) = tokio::join!(registry.replica(), registry.replica());
    let client = Client::of(&one).await;
    let topics = [client.create_topic(1).await, client.create_topic(1).await, client.create_topic(1).await];
    let urls = [format!("http://{}", one.http), format!("http://{}", two.http)];
    python(&["references", &urls[0], &urls[1], &servers(), &topics[0], &topics[1], &topics[2]]).await;
    for topic in &topics {
        client.delete_topic(topic).await;
    }
    one.stop().await;
    two.stop().await;
    registry.remove().await;
}

fn user(fields: &[&str]) -> String {
    let fields: Vec<Value> = fields.iter().map(|name| json!({"name": name, "type": "string"})).collect();
    json!({"type": "record", "name": "shop.User", "fields": fields}).to_string()
}

async fn get(client: &Client, path: &str, accept: &str) -> (u16, Value) {
    let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", client.base) };
    let response = client.http.request(Method::GET, url).header("accept", accept).send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
}

#[track_caller]
fn fails((status, answer): (u16, Value), expected: u16, code: u32, message: &str) {
    assert_eq!((status, &answer["error_code"]), (expected, &json!(code)), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains(message), "{message:?} is not in {answer}");
}

/// Until records come.
async fn records(client: &Client, base: &str, accept: &str) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (status, answer) = get(client, &format!("{base}/records?timeout=1000"), accept).await;
        assert_eq!(status, 200, "{answer}");
        if answer != json!([]) {
            return answer.as_array().unwrap().clone();
        }
        assert!(Instant::now() < deadline, "no records came");
    }
}

async fn consumer(client: &Client, topic: &str, format: &str) -> String {
    let (status, created) =
        client.post(&format!("/consumers/{}", unique("group")), V2, &json!({"format": format, "auto.offset.reset": "earliest"})).await;
    assert_eq!(status, 200, "{created}");
    let base = created["base_uri"].as_str().unwrap().to_owned();
    assert_eq!(client.post(&format!("{base}/subscription"), V2, &json!({"topics": [topic]})).await.0, 204);
    base
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemas_are_registered_and_found_by_every_replica_and_what_does_not_fit_is_refused() {
    let registry = Registry::new();
    let (one, two) = (registry.replica().await, registry.replica().await);
    let (first, second) = (Client::of(&one).await, Client::of(&two).await);
    let topic = first.create_topic(1).await;
    let path = format!("/topics/{topic}");
    let value = json!({"name": "Ada"});

    // Read where it was not registered, at once.
    let base = consumer(&second, &topic, "avro").await;
    for round in 0..5 {
        let schema = user(&["name"]).replace("User", &format!("User{round}"));
        let other = unique("s");
        let subject = json!({"value": {"type": "AVRO", "subject": other, "schema": schema, "data": value}});
        let (_, cluster) = get(&first, "/v3/clusters", "*/*").await;
        let cluster = cluster["data"][0]["cluster_id"].as_str().unwrap();
        let (status, receipt) = first.post(&format!("/v3/clusters/{cluster}/topics/{topic}/records"), "application/json", &subject).await;
        assert_eq!((status, &receipt["error_code"], &receipt["value"]["subject"]), (200, &json!(200), &json!(other)), "{receipt}");
        assert_eq!(records(&second, &base, AVRO).await[0]["value"], value);
    }
    let schema = user(&["name"]);
    let (status, answer) = first.post(&path, AVRO, &json!({"value_schema": schema, "records": [{"value": value}]})).await;
    assert_eq!(status, 200, "{answer}");
    let id = answer["value_schema_id"].as_i64().unwrap();
    let (status, again) = second.post(&path, AVRO, &json!({"value_schema_id": id, "records": [{"value": value}]})).await;
    assert_eq!((status, again["value_schema_id"].as_i64()), (200, Some(id)), "{again}");
    let (status, again) = second.post(&path, AVRO, &json!({"value_schema": schema, "records": [{"value": value}]})).await;
    assert_eq!((status, again["value_schema_id"].as_i64()), (200, Some(id)), "{again}");
    let (_, versions) = get(&second, &format!("/subjects/{topic}-value/versions"), "*/*").await;
    assert_eq!(versions, json!([1]));

    // In a transaction, and by a push.
    let all = json!({"value_schema_id": id, "records": [{"topic": topic, "value": {"name": "Bob"}}]});
    let (status, written) = first.post("/records", AVRO, &all).await;
    assert_eq!((status, &written["records"]), (200, &json!(1)), "{written}");
    let mut names = Vec::new();
    while names.len() < 4 {
        names.extend(records(&second, &base, AVRO).await.iter().map(|record| record["value"]["name"].clone()));
    }
    assert_eq!(names, ["Ada", "Ada", "Ada", "Bob"]);
    let stream = format!("{}/consumers/{}/stream?topics={topic}&format=avro&auto.offset.reset=earliest", first.base, unique("group"));
    let mut lines = first.http.get(stream).header("accept", "application/x-ndjson").send().await.unwrap();
    let chunk = tokio::time::timeout(Duration::from_secs(30), lines.chunk()).await.unwrap().unwrap().unwrap();
    let line: Value = serde_json::from_slice(chunk.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(line["value"], value);
    drop(lines);

    // What the registry refuses.
    let body = |value_schema: Value, value: Value| json!({"value_schema": value_schema, "records": [{"value": value}]});
    let wrong = first.post(&path, AVRO, &body(json!(user(&["name", "mail"])), json!({"name": "A", "mail": "m"}))).await;
    fails(wrong, 422, 42207, "error code: 40901");
    fails(first.post(&path, AVRO, &body(json!("{\"type\":\"record\"}"), json!(1))).await, 422, 42205, "Invalid schema");
    fails(first.post(&path, PROTOBUF, &body(json!("message"), json!(1))).await, 422, 42205, "format = PROTOBUF");
    fails(
        first.post(&path, JSON_SCHEMA, &json!({"value_schema_id": id, "records": [{"value": 1}]})).await,
        422,
        42207,
        &format!("schema {id} is AVRO"),
    );
    fails(first.post(&path, AVRO, &json!({"value_schema_id": 4242, "records": [{"value": 1}]})).await, 422, 42207, "error code: 40403");
    fails(first.post(&path, AVRO, &json!({"records": [{"value": 1}]})).await, 422, 42202, "value_schema_id");
    fails(
        first.post(&path, AVRO, &json!({"value_schema_id": id, "records": [{"value": {"name": 1}}]})).await,
        422,
        42203,
        "at name: expected string, found 1",
    );
    // A mebibyte, nested.
    let deep =
        format!("{{\"value_schema_id\":{id},\"records\":[{{\"value\":{{\"name\":{}{}}}}}]}}", "[".repeat(500_000), "]".repeat(500_000));
    let response = first.http.post(format!("{}{path}", first.base)).header("content-type", AVRO).body(deep).send().await.unwrap();
    assert_eq!(response.status(), 422);
    assert_eq!(response.json::<Value>().await.unwrap()["error_code"], 42203);

    // What nobody can read blocks, and is passed by a seek.
    let odd = json!({"records": [{"value": "AAAAEJI="}]});
    let (status, written) = first.post(&path, "application/vnd.kafka.binary.v2+json", &odd).await;
    assert_eq!(status, 200, "{written}");
    let deadline = Instant::now() + Duration::from_secs(30);
    let blocked = loop {
        let (status, answer) = get(&second, &format!("{base}/records?timeout=1000"), AVRO).await;
        if status != 200 {
            break (status, answer);
        }
        assert!(Instant::now() < deadline && answer == json!([]), "{answer}");
    };
    fails(blocked, 408, 40801, "schema 4242 is not in the registry");
    let metrics = first.http.get(format!("{}/metrics", first.base)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("millrace_bridge_value_schemas_bytes ") && metrics.contains("millrace_bridge_value_schemas_read_total "),
        "{metrics}"
    );

    second.delete(&base).await;
    first.delete_topic(&topic).await;
    one.stop().await;
    two.stop().await;
    registry.remove().await;
}
