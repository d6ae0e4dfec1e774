use axum::{body::Body, http::Request};
use http_body_util::BodyExt as _;
use serde_json::Value;
use service_kit::{
    kafka::{KafkaError, TopicPartition},
    offsets::{OffsetCommit, OffsetStore as _},
};
use tower::ServiceExt as _;

use super::*;
use crate::{
    config::Compat,
    lag::now_ms,
    testing::{self, FakeKafka, MemoryOffsets},
};

pub(super) fn app(kafka: &FakeKafka, store: &MemoryOffsets, config: BridgeConfig, auth: Option<Auth>) -> App {
    App {
        produce: testing::produce(kafka),
        sessions: testing::sessions(kafka, store, config.consume.clone()),
        topics: testing::topics(kafka),
        lag: testing::lag(kafka, store.clone()),
        registry: testing::registry(kafka),
        transactions: testing::transactions(kafka),
        kafka: kafka.connection(),
        forward: Forward::new(&config).unwrap(),
        config: Arc::new(config),
        readiness: Readiness::default(),
        gate: testing::gate(),
        auth,
    }
}

pub(super) struct Bridge {
    pub(super) kafka: FakeKafka,
    store: MemoryOffsets,
    lag: Lag,
    pub(super) registry: Registry,
    router: Router,
    /// What the registry's own port serves.
    pub(super) registry_router: Router,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    #[track_caller]
    pub(super) fn fails(&self, status: u16, code: u32, message: &str) {
        let json = self.json();
        assert_eq!((self.status, json["error_code"].as_u64()), (status, Some(u64::from(code))), "{json}");
        assert!(json["message"].as_str().unwrap().contains(message), "{message:?} is not in {json}");
    }
}

/// One request to one router.
pub(super) async fn call(router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("host", "bridge:8082");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(Body::from(body.to_owned())).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text }
}

impl Bridge {
    pub(super) fn new(compat: Compat) -> Self {
        let kafka = FakeKafka::with_topic("t", 2);
        let store = MemoryOffsets::default();
        let mut config = BridgeConfig::default();
        config.http.compat = compat;
        let app = app(&kafka, &store, config, None);
        let registry_router = registry_router(app.clone());
        Self { kafka, store, lag: app.lag.clone(), registry: app.registry.clone(), registry_router, router: router(app) }
    }

    pub(super) async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        call(&self.router, method, path, headers, body).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], "").await
    }

    pub(super) async fn post(&self, path: &str, body: &str) -> Answer {
        self.call("POST", path, &[("content-type", V2)], body).await
    }

    pub(super) async fn produce(&self, path: &str, format: &str, body: &str) -> Answer {
        self.call("POST", path, &[("content-type", &format!("application/vnd.kafka.{format}.v2+json"))], body).await
    }

    /// An instance that reads `t` from its beginning.
    pub(super) async fn consumer(&self, config: &str) -> String {
        let created = self.post("/consumers/g", config).await.json();
        let base = created["base_uri"].as_str().unwrap().strip_prefix("http://bridge:8082").unwrap().to_owned();
        assert_eq!(self.post(&format!("{base}/subscription"), r#"{"topics":["t"]}"#).await.status, 204);
        base
    }
}

#[test]
fn the_openapi_document_describes_exactly_what_is_served() {
    let document: Value = serde_json::from_str(OPENAPI).unwrap();
    let mut described: Vec<String> = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            described.push(format!("{} {path}", method.to_uppercase()));
            let names: Vec<&str> = operation["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|p| p["in"] == "path")
                .map(|p| p["name"].as_str().unwrap())
                .collect();
            let in_path: Vec<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(names, in_path, "parameters of {method} {path}");
            assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()));
        }
    }
    let mut served: Vec<String> = routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    described.sort();
    served.sort();
    assert_eq!(described, served);
    // Every reference leads somewhere.
    for reference in OPENAPI.split("\"$ref\": \"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn produce_answers_each_record_as_each_dialect_writes_it() {
    let body = r#"{"records":[{"key":"S2V5","value":"S2Fma2E=","partition":1,"timestamp":5,"headers":[{"key":"h","value":"AP8="}]},{"value":null}]}"#;
    let confluent = Bridge::new(Compat::Confluent);
    let answer = confluent.produce("/topics/t", "binary", body).await;
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (200, V2));
    assert_eq!(
        answer.json(),
        json!({"offsets": [{"partition": 1, "offset": 0, "error_code": null, "error": null}, {"partition": 0, "offset": 0, "error_code": null, "error": null}],
               "key_schema_id": null, "value_schema_id": null})
    );
    let records = confluent.kafka.records("t");
    assert_eq!((records[0].value.clone(), records[1].key.as_deref(), records[1].timestamp_ms), (None, Some(b"Key".as_slice()), 5));
    assert_eq!(records[1].headers[0].1.as_deref(), Some([0, 255].as_slice()));

    let strimzi = Bridge::new(Compat::Strimzi).produce("/topics/t/partitions/1", "text", r#"{"records":[{"value":"ö"}]}"#).await;
    assert_eq!((strimzi.status, strimzi.json()), (200, json!({"offsets": [{"partition": 1, "offset": 0}]})));
}

#[tokio::test]
async fn a_produce_that_wrote_nothing_is_not_200() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.kafka.fail_next_produce("1", KafkaError::Retryable("not enough replicas".into()));
    let answer = bridge.produce("/topics/t", "json", r#"{"records":[{"value":1}]}"#).await;
    // As the REST proxy has it; Strimzi's bridge has no such code.
    answer.fails(500, 50003, "not enough replicas");
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["offsets"][0]["error_code"], 50003);
    let strimzi = Bridge::new(Compat::Strimzi);
    strimzi.kafka.fail_next_produce("1", KafkaError::Retryable("not enough replicas".into()));
    strimzi.produce("/topics/t", "json", r#"{"records":[{"value":1}]}"#).await.fails(503, 503, "not enough replicas");
    // On paths of others the status is the honest one.
    bridge.kafka.fail_next_produce("1", KafkaError::Retryable("not enough replicas".into()));
    let atomic = bridge.call("POST", "/records", &[("content-type", JSON)], r#"{"records":[{"topic":"t","value":1}]}"#).await;
    assert_eq!((atomic.status, atomic.json()["error_code"].as_u64()), (503, Some(50003)), "{}", atomic.text);

    bridge.kafka.fail_next_produce("1", KafkaError::TooLarge { bytes: 9, max: 1 });
    let mixed = bridge.produce("/topics/t", "json", r#"{"records":[{"value":1},{"value":2}]}"#).await;
    assert_eq!(mixed.status, 200);
    let offsets = &mixed.json()["offsets"];
    assert_eq!((&offsets[0]["error_code"], &offsets[1]["offset"]), (&json!(413), &json!(0)));
}

#[tokio::test]
async fn bad_produce_requests_say_where_and_what_to_do() {
    let bridge = Bridge::new(Compat::Confluent);
    let bad = async |path: &str, format: &str, body: &str| bridge.produce(path, format, body).await;
    bad("/topics/none", "json", r#"{"records":[{"value":1}]}"#).await.fails(404, 40401, "does not exist; create it");
    bad("/topics/a%20b", "json", r#"{"records":[{"value":1}]}"#).await.fails(404, 40401, "a b");
    bad("/topics/t/partitions/7", "json", r#"{"records":[{"value":1}]}"#).await.fails(404, 40402, "it has 0 to 1");
    bad("/topics/t/partitions/x", "json", r#"{"records":[{"value":1}]}"#).await.fails(404, 40402, "numbers");
    bad("/topics/t", "json", "{\"records\":[\n{\"value\": }]}").await.fails(400, 400, "line 2 column 11");
    bad("/topics/t", "json", "").await.fails(400, 400, "no body");
    bad("/topics/t", "json", r#"{"record":[]}"#).await.fails(422, 422, "unknown field `record`");
    bad("/topics/t", "json", r#"{"records":[{"valeu":1}]}"#).await.fails(422, 422, "line 1 column 20");
    bad("/topics/t", "json", r#"{"records":[]}"#).await.fails(422, 422, "at least one");
    bad("/topics/t", "binary", r#"{"records":[{"value":"S2Fma2E="},{"value":"%"}]}"#).await.fails(
        422,
        42206,
        "records[1].value is not padded base64",
    );
    bad("/topics/t", "text", r#"{"records":[{"key":1}]}"#).await.fails(422, 42206, "records[0].key must be a string");
    bad("/topics/t/partitions/1", "json", r#"{"records":[{"value":1,"partition":0}]}"#).await.fails(422, 422, "leave it out");
    bad("/topics/t", "json", r#"{"records":[{"value":1,"timestamp":-1}]}"#).await.fails(422, 422, "timestamp");
    bad("/topics/t", "thrift", r#"{"records":[{"value":1}]}"#).await.fails(415, 415, "application/vnd.kafka.json.v2+json");
    bad("/topics/t?async=maybe", "json", r#"{"records":[{"value":1}]}"#).await.fails(400, 400, "?async=maybe");
    let html = bridge
        .call(
            "POST",
            "/topics/t",
            &[("content-type", "application/vnd.kafka.json.v2+json"), ("accept", "text/html")],
            r#"{"records":[{}]}"#,
        )
        .await;
    html.fails(406, 406, "text/html");
    assert!(bridge.kafka.values("t").is_empty(), "nothing was written");
}

#[tokio::test]
async fn an_idempotency_key_answers_a_repetition_without_writing() {
    let bridge = Bridge::new(Compat::Confluent);
    let headers = [("content-type", "application/vnd.kafka.json.v2+json"), ("idempotency-key", "k1")];
    let first = bridge.call("POST", "/topics/t", &headers, r#"{"records":[{"value":1}]}"#).await;
    let second = bridge.call("POST", "/topics/t", &headers, r#"{"records":[{"value":1}]}"#).await;
    assert_eq!(first.json(), second.json());
    assert!(!first.headers.contains_key("idempotency-replayed"));
    assert_eq!(second.headers["idempotency-replayed"], "true");
    assert_eq!(bridge.kafka.values("t"), ["1"]);
    bridge.call("POST", "/topics/t", &headers, r#"{"records":[{"value":2}]}"#).await.fails(422, 422, "its own id");
}

#[tokio::test]
async fn an_idempotency_key_is_obeyed_or_refused_and_never_passed_over() {
    let bridge = Bridge::new(Compat::Confluent);
    let send = async |keys: &[&[u8]]| {
        let mut request = Request::builder().method("POST").uri("/topics/t").header("content-type", "application/vnd.kafka.json.v2+json");
        for key in keys {
            request = request.header("Idempotency-Key", *key);
        }
        let response = bridge.router.clone().oneshot(request.body(Body::from(r#"{"records":[{"value":1}]}"#)).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, text }
    };
    for (keys, message) in
        [(&[&b""[..]][..], "empty"), (&[b"a", b"a"], "more than once"), (&[b"a", b"b"], "more than once"), (&[b"caf\xe9"], "UTF-8")]
    {
        send(keys).await.fails(422, 422, message);
    }
    assert!(bridge.kafka.values("t").is_empty(), "nothing was written");
    let first = send(&["café".as_bytes()]).await;
    assert_eq!((first.status, send(&["café".as_bytes()]).await.text), (200, first.text));
    assert_eq!(bridge.kafka.values("t").len(), 1);
    let keyed = [("content-type", "application/json"), ("idempotency-key", "k")];
    for (path, (status, code), body) in [
        ("/records", (422, 422), r#"{"records":[{"topic":"t","value":1}]}"#),
        ("/v3/clusters/fake/topics/t/records", (400, 40002), r#"{"value":{"type":"JSON","data":1}}"#),
        ("/v3/clusters/fake/topics/t/records:batch", (400, 40002), r#"{"entries":[{"id":"1","value":{"type":"JSON","data":1}}]}"#),
    ] {
        bridge.call("POST", path, &keyed, body).await.fails(status, code, "Idempotency-Key");
    }
    assert_eq!(bridge.kafka.values("t").len(), 1);
}

#[tokio::test]
async fn a_traceparent_goes_on_in_the_records() {
    let bridge = Bridge::new(Compat::Confluent);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("content-type", "application/vnd.kafka.json.v2+json"), ("traceparent", parent)];
    bridge.call("POST", "/topics/t", &headers, r#"{"records":[{"value":1}]}"#).await;
    let records = bridge.kafka.records("t");
    assert_eq!(records[0].headers, [("traceparent".to_owned(), Some(bytes::Bytes::from(parent)))]);
}

#[tokio::test]
async fn an_instance_lives_through_the_whole_v2_protocol() {
    let bridge = Bridge::new(Compat::Confluent);
    for value in 0..3 {
        bridge.produce("/topics/t/partitions/0", "json", &format!(r#"{{"records":[{{"key":{{"k":{value}}},"value":{value}}}]}}"#)).await;
    }
    let base = bridge.consumer(r#"{"name":"c1","format":"json","auto.offset.reset":"earliest","auto.commit.enable":"false"}"#).await;
    assert_eq!(base, "/consumers/g/instances/c1");
    assert_eq!(bridge.get(&format!("{base}/subscription")).await.json(), json!({"topics": ["t"]}));

    let json_type = "application/vnd.kafka.json.v2+json";
    let answer = bridge.call("GET", &format!("{base}/records?timeout=1000&max_bytes=140"), &[("accept", json_type)], "").await;
    assert_eq!(answer.headers["content-type"], json_type);
    assert_eq!(
        answer.json(),
        json!([{"topic": "t", "key": {"k": 0}, "value": 0, "partition": 0, "offset": 0}, {"topic": "t", "key": {"k": 1}, "value": 1, "partition": 0, "offset": 1}])
    );
    assert!(answer.text.len() <= 140);
    assert_eq!(bridge.get(&format!("{base}/assignments")).await.json()["partitions"].as_array().unwrap().len(), 2);

    // The REST proxy commits the last offset processed, so the next to read is one more.
    let committed = bridge.post(&format!("{base}/offsets"), r#"{"offsets":[{"topic":"t","partition":0,"offset":0,"metadata":"m"}]}"#).await;
    assert_eq!((committed.status, committed.text.as_str()), (200, "[]"));
    let found = bridge.get(&format!("{base}/offsets")).await.json();
    assert_eq!(found, json!({"offsets": [{"topic": "t", "partition": 0, "offset": 1, "metadata": "m"}]}));
    let asked =
        bridge.call("GET", &format!("{base}/offsets"), &[("content-type", V2)], r#"{"partitions":[{"topic":"t","partition":1}]}"#).await;
    assert_eq!(asked.json(), json!({"offsets": []}));

    assert_eq!(bridge.post(&format!("{base}/positions"), r#"{"offsets":[{"topic":"t","partition":0,"offset":2}]}"#).await.status, 204);
    assert_eq!(bridge.get(&format!("{base}/records")).await.json()[0]["offset"], 2);
    assert_eq!(bridge.post(&format!("{base}/positions/beginning"), r#"{"partitions":[{"topic":"t","partition":0}]}"#).await.status, 204);
    assert_eq!(bridge.get(&format!("{base}/records")).await.json().as_array().unwrap().len(), 3);
    assert_eq!(bridge.post(&format!("{base}/positions/end"), r#"{"partitions":[{"topic":"t","partition":0}]}"#).await.status, 204);
    assert_eq!(bridge.get(&format!("{base}/records?timeout=0")).await.text, "[]");

    assert_eq!(bridge.call("DELETE", &format!("{base}/subscription"), &[], "").await.status, 204);
    assert_eq!(bridge.post(&format!("{base}/assignments"), r#"{"partitions":[{"topic":"t","partition":1}]}"#).await.status, 204);
    assert_eq!(bridge.call("DELETE", &base, &[], "").await.status, 204);
    bridge.get(&format!("{base}/records")).await.fails(404, 40403, "create it again");
}

#[tokio::test]
async fn strimzis_offsets_are_the_next_to_read_and_its_records_have_timestamps() {
    let bridge = Bridge::new(Compat::Strimzi);
    bridge.produce("/topics/t", "text", r#"{"records":[{"value":"a","timestamp":77},{"value":"b","timestamp":78}]}"#).await;
    let base = bridge.consumer(r#"{"format":"text","auto.offset.reset":"earliest","enable.auto.commit":false}"#).await;
    let records = bridge.get(&format!("{base}/records")).await.json();
    assert_eq!(records[0], json!({"topic": "t", "key": null, "value": "a", "partition": 0, "offset": 0, "timestamp": 77}));
    let committed = bridge.post(&format!("{base}/offsets"), r#"{"offsets":[{"topic":"t","partition":0,"offset":1}]}"#).await;
    assert_eq!(committed.status, 204);
    let group = bridge.store.get("g", None).await.unwrap();
    assert_eq!(group.offsets[&TopicPartition::new("t", 0)].offset, 1);
}

#[tokio::test]
async fn bad_consumer_requests_say_what_to_do() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.post("/consumers/g", r#"{"format":"thrift"}"#).await.fails(422, 42204, "binary, json, text, avro, jsonschema, protobuf");
    bridge.post("/consumers/g", r#"{"auto.offset.reset":"smallest"}"#).await.fails(422, 42204, "earliest, latest or none");
    bridge.post("/consumers/g", r#"{"group.protocol":"x"}"#).await.fails(422, 42204, "group.protocol is not a setting");
    for name in ["a/b", ".", ".."] {
        bridge.post("/consumers/g", &format!(r#"{{"name":"{name}"}}"#)).await.fails(422, 42204, "letters");
    }
    bridge.post("/consumers/a%00b", "{}").await.fails(422, 422, "name of a group");
    bridge.call("POST", "/consumers/g", &[("content-type", "text/plain")], "{}").await.fails(415, 415, V2);
    let base = bridge.consumer(r#"{"name":"one"}"#).await;
    bridge.post("/consumers/g", r#"{"name":"one"}"#).await.fails(409, 40902, "another name");
    bridge.post(&format!("{base}/assignments"), r#"{"partitions":[{"topic":"t","partition":0}]}"#).await.fails(
        409,
        40903,
        "delete the subscription first",
    );
    bridge.post(&format!("{base}/subscription"), r#"{"topics":["none"]}"#).await.fails(404, 40401, "none");
    bridge.post(&format!("{base}/subscription"), r#"{}"#).await.fails(422, 422, "either topics");
    let json_accept = [("accept", "application/vnd.kafka.json.v2+json")];
    bridge.call("GET", &format!("{base}/records"), &json_accept, "").await.fails(406, 40601, "format binary");
    bridge.get(&format!("{base}/records?timeout=soon")).await.fails(400, 400, "?timeout=soon");
    bridge.get("/consumers/g/instances/nobody/records").await.fails(404, 40403, "nobody");

    bridge.kafka.append_value("t", b"{not json");
    let base = bridge.consumer(r#"{"format":"json","auto.offset.reset":"earliest"}"#).await;
    bridge.get(&format!("{base}/records")).await.fails(406, 406, "value of t-0 at offset 0 is not JSON");
}

#[tokio::test]
async fn topics_are_listed_described_created_and_deleted() {
    let bridge = Bridge::new(Compat::Confluent);
    assert_eq!(bridge.get("/topics").await.json(), json!(["t"]));
    let topic = bridge.get("/topics/t").await.json();
    assert_eq!((topic["name"].as_str(), topic["configs"]["retention.ms"].as_str()), (Some("t"), Some("604800000")));
    let partition = json!({"partition": 1, "leader": 1, "replicas": [{"broker": 1, "leader": true, "in_sync": true}]});
    assert_eq!(topic["partitions"][1], partition);
    assert_eq!(bridge.get("/topics/t/partitions/1").await.json(), partition);
    bridge.kafka.append("t", 1, 4);
    assert_eq!(bridge.get("/topics/t/partitions/1/offsets").await.json(), json!({"beginning_offset": 0, "end_offset": 4}));
    bridge.get("/topics/none").await.fails(404, 40401, "none");
    bridge.get("/topics/t/partitions/9").await.fails(404, 40402, "no partition 9");

    let created = bridge.post("/admin/topics", r#"{"topic_name":"new"}"#).await;
    assert_eq!((created.status, created.json()["partitions_count"].as_u64()), (201, Some(2)));
    assert!(created.json()["advice"][0].as_str().unwrap().contains("× 2 = 2"));
    bridge.post("/admin/topics", r#"{"topic_name":"new"}"#).await.fails(409, 40002, "exists already");
    assert_eq!(bridge.call("DELETE", "/v3/clusters/fake/topics/new", &[], "").await.status, 204);
    bridge.get("/topics/new").await.fails(404, 40401, "new");
}

#[tokio::test]
async fn v3_has_clusters_topics_groups_and_lags() {
    let bridge = Bridge::new(Compat::Confluent);
    let clusters = bridge.get("/v3/clusters").await.json();
    assert_eq!((clusters["kind"].as_str(), clusters["data"][0]["cluster_id"].as_str()), (Some("KafkaClusterList"), Some("fake")));
    assert_eq!(clusters["data"][0]["metadata"]["self"], "http://bridge:8082/v3/clusters/fake");
    let wrong = bridge.get("/v3/clusters/other/topics").await;
    wrong.fails(404, 404, "this bridge serves \"fake\"");
    assert_eq!(wrong.headers["content-type"], JSON);
    assert_eq!(bridge.get("/v3/clusters/fake/brokers").await.json()["data"][0]["log_bytes"], 1_000);

    let json_type = [("content-type", JSON)];
    let body = r#"{"topic_name":"v3","partitions_count":3,"configs":[{"name":"retention.ms","value":1000}],"validate_only":true}"#;
    let checked = bridge.call("POST", "/v3/clusters/fake/topics", &json_type, body).await;
    assert_eq!((checked.status, checked.json()["partitions_count"].as_u64()), (200, Some(3)));
    let created = bridge.call("POST", "/v3/clusters/fake/topics", &json_type, &body.replace(r#","validate_only":true"#, "")).await;
    assert_eq!(created.status, 201);
    assert_eq!(bridge.get("/v3/clusters/fake/topics/v3").await.json()["partitions_count"], 3);

    bridge.kafka.append("t", 0, 10);
    bridge
        .store
        .commit("g", 0, &[OffsetCommit { partition: TopicPartition::new("t", 0), offset: 4, metadata: String::new() }])
        .await
        .unwrap();
    let groups = bridge.get("/v3/clusters/fake/consumer-groups").await.json();
    assert_eq!((groups["data"][0]["consumer_group_id"].as_str(), groups["data"][0]["state"].as_str()), (Some("g"), Some("EMPTY")));
    let summary = bridge.get("/v3/clusters/fake/consumer-groups/g/lag-summary").await.json();
    assert_eq!((summary["total_lag"].as_i64(), summary["max_lag_topic_name"].as_str()), (Some(6), Some("t")));
    assert_eq!(bridge.get("/v3/clusters/fake/consumer-groups/g/lags").await.json()["data"][0]["current_offset"], 4);
    assert_eq!(bridge.get("/v3/clusters/fake/consumer-groups/g/lags/t/partitions/0").await.json()["lag"], 6);
    bridge.get("/v3/clusters/fake/consumer-groups/g/lags/t/partitions/1").await.fails(404, 40403, "lists those it has");
    bridge.get("/v3/clusters/fake/consumer-groups/nobody").await.fails(404, 40405, "nobody");
}

#[tokio::test]
async fn the_service_says_what_it_is_and_whether_it_is_ready() {
    let bridge = Bridge::new(Compat::Confluent);
    assert_eq!(bridge.get("/healthy").await.status, 200);
    assert_eq!(bridge.get("/ready").await.status, 200);
    assert_eq!(bridge.get("/openapi").await.json()["openapi"], "3.1.0");
    assert!(bridge.get("/").await.json()["operations"].as_array().unwrap().contains(&json!("POST /topics/{topic}")));
    bridge.get("/nowhere").await.fails(404, 404, "/openapi");
    bridge.call("PUT", "/topics/t", &[], "").await.fails(405, 405, "PUT");
}

#[test]
fn the_base_uri_is_what_the_client_can_reach() {
    let check = |headers: &[(&'static str, &str)], expected: &str| {
        let headers =
            HeaderMap::from_iter(headers.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())));
        assert_eq!(base_url(&headers), expected);
    };
    check(&[("host", "b:1")], "http://b:1");
    check(&[("host", "b:1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "api.example, inner")], "https://api.example");
    check(&[("host", "b:1"), ("forwarded", "for=1.2.3.4;host=\"f.example\";proto=https, host=x")], "https://f.example");
    assert_eq!(segment("a b/ö.-_~"), "a%20b%2F%C3%B6.-_~");
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_web_socket() {
    let bridge = Bridge::new(Compat::Confluent);
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let proxied = [("x-forwarded-host", "api.example"), ("x-forwarded-proto", "https")];
    for (more, is_let_in) in [
        (&[][..], true),
        (&[("origin", "http://bridge:8082")], true),
        (&[("origin", "https://BRIDGE:8082")], true),
        (&[("origin", "http://bridge")], false),
        (&[("origin", "http://bridge:8082.evil.example")], false),
        (&[("origin", "https://evil.example")], false),
        (&[("origin", "null")], false),
        (&[("origin", "bridge:8082")], false),
        (&[("origin", "")], false),
        (&[proxied[0], proxied[1], ("origin", "https://api.example")], true),
        // Some proxies write the usual port, and browsers never do.
        (&[("x-forwarded-host", "api.example:443"), ("origin", "https://api.example")], true),
        (&[("x-forwarded-host", "api.example:80"), ("origin", "https://api.example")], false),
        (&[proxied[0], ("origin", "https://evil.example")], false),
        (&[("origin", "http://bridge:8082"), ("origin", "https://evil.example")], false),
    ] {
        let headers = [&upgrade, more].concat();
        let answer = bridge.call("GET", "/consumers/g/stream?topics=t", &headers, "").await;
        if is_let_in {
            // Who is let in has no connection to upgrade here.
            answer.fails(400, 400, "upgrade");
        } else {
            answer.fails(403, 40301, "Origin");
        }
    }
    // What is no WebSocket, a browser does not let another page read.
    let lines = [("accept", "application/x-ndjson"), ("origin", "https://evil.example")];
    assert_eq!(bridge.call("GET", "/consumers/g/stream?topics=t,missing", &lines, "").await.status, 404);
}

#[tokio::test]
async fn what_cannot_be_read_at_all_is_refused_in_the_same_form() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.get("/topics/%FF").await.fails(400, 400, "UTF-8");
    bridge.post("/consumers/%FF", "{}").await.fails(400, 400, "UTF-8");
    let broken = futures::stream::iter([Ok(bytes::Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))]);
    let request = Request::post("/topics/t").header("content-type", "application/vnd.kafka.json.v2+json");
    let response = bridge.router.clone().oneshot(request.body(Body::from_stream(broken)).unwrap()).await.unwrap();
    assert_eq!((response.status(), response.headers()["content-type"].to_str().unwrap()), (StatusCode::BAD_REQUEST, V2));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error_code"], 400);
}

#[tokio::test]
async fn an_idempotency_key_holds_for_unattended_requests_too() {
    let bridge = Bridge::new(Compat::Confluent);
    let headers = [("content-type", "application/vnd.kafka.json.v2+json"), ("idempotency-key", "k1")];
    for _ in 0..2 {
        assert_eq!(bridge.call("POST", "/topics/t?async=true", &headers, r#"{"records":[{"value":1}]}"#).await.status, 204);
    }
    // Waits for whoever is writing it, and is answered with its result.
    let third = bridge.call("POST", "/topics/t", &headers, r#"{"records":[{"value":1}]}"#).await;
    assert_eq!((third.status, bridge.kafka.values("t").len()), (200, 1), "{}", third.text);
}

#[tokio::test]
async fn links_lead_somewhere() {
    fn links(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
                Value::String(url) if name == "related" || name == "self" => found.push(url.clone()),
                other => links(other, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| links(item, found)),
            _ => {}
        }
    }
    let bridge = Bridge::new(Compat::Confluent);
    let mut found = Vec::new();
    for path in ["/v3/clusters", "/v3/clusters/fake/brokers", "/v3/clusters/fake/topics"] {
        links(&bridge.get(path).await.json(), &mut found);
    }
    assert!(found.len() > 5, "{found:?}");
    // These are asked of real brokers alone.
    let asked = |url: &String| !["/acls", "configs", "reassignment"].iter().any(|end| url.ends_with(end));
    for url in found.into_iter().filter(asked) {
        let path = url.strip_prefix("http://bridge:8082").unwrap();
        assert_eq!(bridge.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn burrows_paths_answer_in_burrows_words() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.kafka.append("t", 0, 10);
    let now = now_ms();
    let partition = |id| TopicPartition::new("t", id);
    for at in 0..3 {
        bridge.kafka.note_commit("slow", &partition(0), Some(4), now - 20_000 + at * 10_000);
        bridge.kafka.note_commit("slow", &partition(1), Some(0), now - 20_000 + at * 10_000);
    }
    assert_eq!((bridge.get("/burrow/admin").await.text, bridge.get("/burrow/admin/ready").await.status), ("GOOD".to_owned(), 503));
    bridge.lag.watch().pass().await.unwrap();
    assert_eq!(bridge.get("/burrow/admin/ready").await.text, "READY");

    let clusters = bridge.get("/v3/kafka").await.json();
    assert_eq!(
        (&clusters["error"], &clusters["clusters"], &clusters["request"]["url"]),
        (&json!(false), &json!(["fake"]), &json!("/v3/kafka"))
    );
    assert_eq!(bridge.get("/v3/kafka/fake/topic/t").await.json()["offsets"], json!([10, 0]));
    assert_eq!(bridge.get("/v3/kafka/fake/topic/t/consumers").await.json()["consumers"], json!(["slow"]));
    assert_eq!(bridge.get("/v3/kafka/fake/consumer").await.json()["consumers"], json!(["slow"]));
    assert_eq!(bridge.get("/v3/kafka/fake").await.json()["module"]["class-name"], "kafka");
    let detail = bridge.get("/v3/kafka/fake/consumer/slow").await.json();
    assert_eq!(
        (detail["topics"]["t"][0]["current-lag"].as_i64(), detail["topics"]["t"][0]["offsets"].as_array().unwrap().len()),
        (Some(6), 10)
    );
    assert_eq!(detail["topics"]["t"][0]["offsets"][9]["offset"], 4);

    let status = bridge.get("/v3/kafka/fake/consumer/slow/status").await.json()["status"].clone();
    let names: Vec<&str> = status.as_object().unwrap().keys().map(String::as_str).collect();
    for name in ["cluster", "group", "status", "complete", "partitions", "partition_count", "maxlag", "totallag"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!((&status["status"], &status["totallag"], &status["partition_count"]), (&json!("ERR"), &json!(6), &json!(2)));
    assert_eq!((status["partitions"].as_array().unwrap().len(), &status["maxlag"]["status"]), (1, &json!("STALL")));
    for name in ["topic", "partition", "owner", "client_id", "status", "start", "end", "current_lag", "complete"] {
        assert!(status["maxlag"].get(name).is_some(), "{name} is not in {status}");
    }
    let lag = bridge.get("/v3/kafka/fake/consumer/slow/lag").await.json();
    assert_eq!(lag["status"]["partitions"].as_array().unwrap().len(), 2);

    for path in ["/v3/kafka/fake/consumer/nobody/status", "/v3/kafka/other/consumer/slow/lag"] {
        let answer = bridge.get(path).await;
        assert_eq!((answer.status, &answer.json()["status"]["status"]), (404, &json!("NOTFOUND")), "{path}");
    }
    for path in
        ["/v3/kafka/other", "/v3/kafka/other/topic", "/v3/kafka/fake/topic/nope", "/v3/kafka/fake/consumer/nobody", "/v3/config/storage/x"]
    {
        let answer = bridge.get(path).await;
        assert_eq!((answer.status, &answer.json()["error"]), (404, &json!(true)), "{path}");
    }
    for (kind, message) in [("consumer", "consumer module not found"), ("notifier", "notifier module not found")] {
        let answer = bridge.get(&format!("/v3/config/{kind}/x")).await;
        assert_eq!((answer.status, &answer.json()["error"], &answer.json()["message"]), (404, &json!(true), &json!(message)));
    }
    assert_eq!(bridge.get("/v3/config/storage/millrace").await.json()["module"]["intervals"], 10);
    let module = bridge.get("/v3/config/consumer/millrace").await.json()["module"].clone();
    assert_eq!(
        (&module["cluster"], &module["offsets-topic"], &module["servers"]),
        (&json!("fake"), &json!("__consumer_offsets"), &json!([""]))
    );
    let level = bridge.get("/v3/admin/loglevel").await.json();
    assert_eq!((&level["error"], &level["message"], &level["level"]), (&json!(false), &json!("log level returned"), &json!("info")));
    for (body, status, message) in [
        ("level", 400, "could not decode message body"),
        ("{}", 404, "unknown log level"),
        (r#"{"level":"loud"}"#, 404, "unknown log level"),
    ] {
        let answer = bridge.post("/v3/admin/loglevel", body).await;
        let expected =
            json!({"error": true, "message": message, "request": {"url": "/v3/admin/loglevel", "host": answer.json()["request"]["host"]}});
        assert_eq!((answer.status, answer.json()), (status, expected));
    }
    assert!(bridge.get("/v3/config").await.json()["httpserver"]["default"]["address"].is_string());
    assert_eq!(bridge.call("DELETE", "/v3/kafka/fake/consumer/slow", &[], "").await.status, 200);
    assert_eq!(bridge.get("/v3/kafka/fake/consumer/slow/status").await.status, 404);
}

#[tokio::test]
async fn the_page_shows_cluster_topics_and_groups_and_escapes_what_it_is_told() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.kafka.append("t", 0, 10);
    let name = "<script>alert(1)</script>";
    bridge.kafka.note_commit(name, &TopicPartition::new("t", 0), Some(4), now_ms());
    for _ in 0..2 {
        bridge.lag.watch().pass().await.unwrap();
    }
    let encoded = "%3Cscript%3Ealert%281%29%3C%2Fscript%3E";
    for (path, words) in [
        ("/ui".to_owned(), "Partitions that need a look"),
        ("/ui/topics".to_owned(), "<th scope=\"row\">t</th>"),
        ("/ui/groups".to_owned(), "&lt;script&gt;"),
        ("/ui/groups?search=SCRIPT".to_owned(), encoded),
        (format!("/ui/groups/{encoded}"), "Lag: newest 6, highest 6 records"),
    ] {
        let page = bridge.get(&path).await;
        assert_eq!(page.status, 200, "{path}: {}", page.text);
        assert!(page.text.contains(words) && !page.text.contains("<script>alert"), "{path}: {}", page.text);
        assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
        assert!(page.text.contains("href=\"/ui/subjects\"") && page.text.contains("width=device-width"));
    }
    let missing = bridge.get("/ui/groups/nobody").await;
    assert!(missing.status == 404 && missing.text.starts_with("<!DOCTYPE html>"), "{}", missing.text);
    assert_eq!(bridge.get("/ui/assets/style.css").await.headers["content-type"], "text/css; charset=utf-8");
    assert!(bridge.get("/ui/assets/page.js").await.text.contains("DOMParser"));

    let cluster = bridge.get("/ui/api/cluster").await.json();
    assert_eq!((&cluster["under_replicated"], &cluster["brokers"][0]["preferred"]), (&json!(0), &json!(3)));
    assert_eq!(bridge.get("/ui/api/groups?search=nothing").await.json(), json!({"groups": [], "count": 0}));
    assert_eq!(bridge.get("/ui/api/groups").await.json()["groups"][0]["total_lag"], 6);
    assert_eq!(bridge.get(&format!("/ui/api/groups/{encoded}")).await.json()["partitions"][0]["lag"], 6);
    assert_eq!(bridge.get("/ui/api/topics?search=T").await.json()["count"], 2);
    bridge.get("/ui/api/groups?offset=x").await.fails(400, 400, "offset");
}

/// The bodies that each documents, byte by byte where the order of fields does not matter.
#[tokio::test]
async fn answers_and_errors_are_those_of_each_dialect() {
    const FORMAT: &str = "application/vnd.kafka.json.v2+json";
    let partition = json!({"partition": 1, "leader": 1, "replicas": [{"broker": 1, "leader": true, "in_sync": true}]});
    let confluent_ok = json!({"offsets": [{"partition": 1, "offset": 0, "error_code": null, "error": null}], "key_schema_id": null, "value_schema_id": null});
    // Method, path, content type, body; status and body of Confluent, of Strimzi. A message is compared by its presence.
    type Expected = (u16, Value);
    let table: Vec<(&str, &str, &str, &str, Expected, Expected)> = vec![
        ("GET", "/topics", "", "", (200, json!(["t"])), (200, json!(["t"]))),
        ("GET", "/topics/t/partitions/1", "", "", (200, partition.clone()), (200, partition)),
        (
            "GET",
            "/topics/t/partitions/1/offsets",
            "",
            "",
            (200, json!({"beginning_offset": 0, "end_offset": 0})),
            (200, json!({"beginning_offset": 0, "end_offset": 0})),
        ),
        (
            "POST",
            "/topics/t/partitions/1",
            FORMAT,
            r#"{"records":[{"value":1}]}"#,
            (200, confluent_ok),
            (200, json!({"offsets": [{"partition": 1, "offset": 0}]})),
        ),
        ("POST", "/topics/t?async=true", FORMAT, r#"{"records":[{"value":1}]}"#, (204, Value::Null), (204, Value::Null)),
        ("GET", "/topics/none", "", "", (404, json!({"error_code": 40401})), (404, json!({"error_code": 404}))),
        (
            "POST",
            "/topics/none",
            FORMAT,
            r#"{"records":[{"value":1}]}"#,
            (404, json!({"error_code": 40401})),
            (404, json!({"error_code": 404})),
        ),
        ("GET", "/topics/t/partitions/9", "", "", (404, json!({"error_code": 40402})), (404, json!({"error_code": 404}))),
        ("POST", "/topics/t", FORMAT, r#"{"records":[]}"#, (422, json!({"error_code": 422})), (422, json!({"error_code": 422}))),
        ("POST", "/topics/t", FORMAT, "{", (400, json!({"error_code": 400})), (400, json!({"error_code": 400, "validation_errors": 1}))),
        ("DELETE", "/consumers/g/instances/none", "", "", (404, json!({"error_code": 40403})), (404, json!({"error_code": 404}))),
        (
            "POST",
            "/consumers/g",
            V2,
            r#"{"foo":"bar"}"#,
            (422, json!({"error_code": 42204})),
            (400, json!({"error_code": 400, "validation_errors": 1})),
        ),
        (
            "POST",
            "/consumers/g",
            V2,
            r#"{"auto.offset.reset":"foo"}"#,
            (422, json!({"error_code": 42204})),
            (422, json!({"error_code": 422})),
        ),
        (
            "POST",
            "/consumers/g",
            V2,
            r#"{"name":"n"}"#,
            (200, json!({"instance_id": "n", "base_uri": "http://bridge:8082/consumers/g/instances/n"})),
            (200, json!({"instance_id": "n", "base_uri": "http://bridge:8082/consumers/g/instances/n"})),
        ),
        ("POST", "/consumers/g", V2, r#"{"name":"n"}"#, (409, json!({"error_code": 40902})), (409, json!({"error_code": 409}))),
        ("POST", "/consumers/g/instances/n/subscription", V2, r#"{"topics":["t"]}"#, (204, Value::Null), (204, Value::Null)),
        (
            "POST",
            "/consumers/g/instances/n/assignments",
            V2,
            r#"{"partitions":[{"topic":"t","partition":0}]}"#,
            (409, json!({"error_code": 40903})),
            (409, json!({"error_code": 409})),
        ),
        ("DELETE", "/consumers/g/instances/n", "", "", (204, Value::Null), (204, Value::Null)),
        ("GET", "/nowhere", "", "", (404, json!({"error_code": 404})), (404, json!({"error_code": 404}))),
    ];
    let (confluent, strimzi) = (Bridge::new(Compat::Confluent), Bridge::new(Compat::Strimzi));
    for (method, path, kind, body, of_confluent, of_strimzi) in table {
        for (bridge, (status, expected)) in [(&confluent, of_confluent), (&strimzi, of_strimzi)] {
            let headers = [("content-type", kind)];
            let answer = bridge.call(method, path, if kind.is_empty() { &[] } else { &headers }, body).await;
            assert_eq!(answer.status, status, "{method} {path}: {}", answer.text);
            if expected.is_null() {
                assert_eq!(answer.text, "", "{method} {path}");
                continue;
            }
            let mut found = answer.json();
            if status >= 400 {
                let fields = found.as_object_mut().unwrap();
                assert!(fields.remove("message").is_some_and(|message| message.is_string()), "{method} {path}: {}", answer.text);
                if let Some(errors) = fields.get_mut("validation_errors") {
                    *errors = json!(errors.as_array().unwrap().len());
                }
            }
            assert_eq!(found, expected, "{method} {path}");
        }
    }
    for path in ["/openapi", "/openapi/v3"] {
        assert_eq!(strimzi.get(path).await.json()["openapi"], "3.1.0");
    }
}

#[tokio::test]
async fn batches_are_given_again_until_they_are_acknowledged() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.kafka.add_topic("dead", 1);
    bridge.kafka.append("t", 0, 3);
    let base = bridge.consumer(r#"{"format":"json","auto.offset.reset":"earliest","delivery":"acknowledged","visibility.timeout.ms":"60000","delivery.attempts.max":2,"dead.letter.topic":"dead"}"#).await;
    let records = format!("{base}/records?timeout=20");
    let first = bridge.get(&records).await;
    assert_eq!(first.status, 200, "{}", first.text);
    let record = |offset: i64, attempt: u32| json!({"topic": "t", "key": null, "value": offset, "partition": 0, "offset": offset, "attempt": attempt});
    assert_eq!(first.json(), json!([record(0, 1), record(1, 1), record(2, 1)]));
    let batch = first.headers["millrace-batch"].to_str().unwrap();
    let again = bridge.get(&format!("{records}&max_bytes=1")).await;
    assert_eq!((&again.text, again.headers["millrace-batch"].to_str().unwrap()), (&first.text, batch), "byte for byte");

    let said = format!("{base}/acknowledgements");
    let answer = bridge
        .post(&said, r#"{"acknowledge":[{"topic":"t","partition":0,"offset":0},{"topic":"u","partition":0,"offset":0}],"reject":[{"topic":"t","partition":0,"offset":1,"reason":"odd"}]}"#)
        .await;
    assert_eq!(
        (answer.status, answer.json()),
        (200, json!({"acknowledged": 1, "rejected": 1, "ignored": [{"topic": "u", "partition": 0, "offset": 0}]}))
    );
    let second = bridge.get(&format!("{records}&acknowledge={batch}")).await;
    assert_eq!(second.json(), json!([record(1, 2)]));
    assert!(!second.headers.contains_key("millrace-window-full"));
    assert_eq!(bridge.post(&said, r#"{"reject":[{"topic":"t","partition":0,"offset":1}]}"#).await.json()["rejected"], 1);
    assert_eq!(bridge.get(&records).await.text, "[]");
    assert_eq!(bridge.kafka.values("dead"), ["1"]);
    let offsets = bridge.get(&format!("{base}/offsets")).await.json();
    assert_eq!(offsets["offsets"][0]["offset"], 3, "{offsets}");

    for (body, status, code, message) in [
        ("{}", 422, 422, "give batch, acknowledge or reject"),
        (r#"{"batch":1}"#, 422, 422, "not as expected"),
        (r#"{"ack":[]}"#, 422, 422, "unknown field"),
        (r#"{"batch":"x-1"}"#, 409, 40903, "was not given out"),
        (r#"{"reject":[{"topic":"t","partition":0,"offset":1,"delay_ms":999999999}]}"#, 422, 422, "consume.session_idle"),
        (r#"{"reject":[{"topic":"t","partition":0,"offset":1,"delay_ms":-1}]}"#, 422, 422, "not as expected"),
        ("{", 400, 400, "not JSON"),
    ] {
        bridge.post(&said, body).await.fails(status, code, message);
    }
    let long = json!({"reject": [{"topic": "t", "partition": 0, "offset": 1, "reason": "x".repeat(1_001)}]}).to_string();
    bridge.post(&said, &long).await.fails(422, 422, "1001 bytes");
    bridge.get(&format!("{records}&acknowledge=x-1")).await.fails(409, 40903, "fetch without");

    let ordinary = bridge.consumer(r#"{"format":"json"}"#).await;
    bridge.post(&format!("{ordinary}/acknowledgements"), r#"{"batch":"x-1"}"#).await.fails(409, 40903, "delivery");
    bridge.get(&format!("{ordinary}/records?acknowledge=x-1")).await.fails(409, 40903, "delivery = acknowledged");
}

#[tokio::test]
async fn settings_of_delivery_are_checked() {
    let bridge = Bridge::new(Compat::Confluent);
    bridge.kafka.add_topic("dead", 1);
    for (settings, message) in [
        (r#"{"delivery":"never"}"#, "continuous or acknowledged"),
        (r#"{"visibility.timeout.ms":1000}"#, "belong to delivery = acknowledged"),
        (r#"{"delivery":"continuous","dead.letter.topic":"dead"}"#, "belong to delivery = acknowledged"),
        (
            r#"{"delivery":"acknowledged","visibility.timeout.ms":0}"#,
            "visibility.timeout.ms = 0 is not possible; give 1 to 300000 (consume.session_idle)",
        ),
        (r#"{"delivery":"acknowledged","visibility.timeout.ms":"300001"}"#, "consume.session_idle"),
        (r#"{"delivery":"acknowledged","delivery.attempts.max":3}"#, "needs dead.letter.topic"),
        (r#"{"delivery":"acknowledged","delivery.attempts.max":53,"dead.letter.topic":"dead"}"#, "1 to 52"),
        (r#"{"delivery":"acknowledged","delivery.attempts.max":0,"dead.letter.topic":"dead"}"#, "1 to 52"),
        (r#"{"delivery":"acknowledged","auto.commit.enable":true}"#, "contradicts"),
        (r#"{"delivery":"acknowledged","visibility.timeout.ms":-1}"#, "a number of milliseconds"),
        (r#"{"delivery":"acknowledged","delivery.attempts.max":"many"}"#, "a number of attempts"),
        (r#"{"deliver":"acknowledged"}"#, "delivery.attempts.max"),
    ] {
        bridge.post("/consumers/g", settings).await.fails(422, 42204, message);
    }
    bridge.post("/consumers/g", r#"{"delivery":"acknowledged","dead.letter.topic":"none"}"#).await.fails(404, 40401, "none");
    let accepted = r#"{"delivery":"acknowledged","auto.commit.enable":"false","dead.letter.topic":"dead","delivery.attempts.max":"52"}"#;
    assert_eq!(bridge.post("/consumers/g", accepted).await.status, 200);
    let stream = bridge.call("GET", "/consumers/g/stream?topics=t&delivery=acknowledged", &[("accept", "text/event-stream")], "").await;
    stream.fails(422, 42204, "a stream goes on by itself");
}
