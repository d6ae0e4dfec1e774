//! Confluent's v3 on a real broker that keeps access control lists.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    Client, eventually,
    process::{Bridge, servers, unique},
};

const JSON: &str = "application/json";

struct V3 {
    client: Client,
    /// `/v3/clusters/…`
    cluster: String,
    id: String,
}

impl V3 {
    async fn of(bridge: &Bridge) -> Self {
        let client = Client::of(bridge).await;
        let clusters: Value = client.http.get(format!("{}/v3/clusters", client.base)).send().await.unwrap().json().await.unwrap();
        let id = clusters["data"][0]["cluster_id"].as_str().unwrap().to_owned();
        Self { cluster: format!("/v3/clusters/{id}"), client, id }
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}{}{path}", self.client.base, self.cluster);
        let mut request = self.client.http.request(method.parse().unwrap(), url);
        if let Some(body) = body {
            request = request.header("content-type", JSON).body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")) })
    }

    #[track_caller]
    fn fails((status, body): (u16, Value), expected: u16, code: u32, message: &str) {
        assert_eq!((status, body["error_code"].as_u64()), (expected, Some(u64::from(code))), "{body}");
        assert!(body["message"].as_str().unwrap().contains(message), "{message:?} is not in {body}");
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The frame that every list has; gives what is in it.
    async fn list(&self, path: &str, kind: &str) -> Vec<Value> {
        let body = self.get(path).await;
        assert_eq!((body["kind"].as_str(), &body["metadata"]["next"]), (Some(kind), &Value::Null), "{path}");
        assert!(body["metadata"]["self"].as_str().unwrap().ends_with(&format!("{}{path}", self.cluster)) || path.contains('?'), "{body}");
        body["data"].as_array().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn v3_manages_topics_partitions_settings_and_brokers() {
    let bridge = Bridge::start(&servers()).await;
    let v3 = V3::of(&bridge).await;
    let (id, topic) = (v3.id.clone(), unique("topic"));
    let broker = v3.list("/brokers", "KafkaBrokerList").await[0]["broker_id"].as_i64().unwrap();

    // Topics, with replicas placed by the caller.
    let new = json!({"topic_name": topic, "replicas_assignments": {"0": [broker], "1": [broker]}, "configs": [{"name": "retention.ms", "value": "7000"}]});
    let mut checked = new.clone();
    checked["validate_only"] = json!(true);
    assert_eq!(v3.call("POST", "/topics", Some(checked)).await.0, 200);
    let (status, created) = v3.call("POST", "/topics", Some(new.clone())).await;
    assert_eq!(status, 201, "{created}");
    let base = format!("{}{}", v3.client.base, v3.cluster);
    assert_eq!(
        created,
        json!({
            "kind": "KafkaTopic",
            "metadata": {"self": format!("{base}/topics/{topic}"), "resource_name": format!("crn:///kafka={id}/topic={topic}")},
            "cluster_id": id, "topic_name": topic, "is_internal": false, "replication_factor": 1, "partitions_count": 2,
            "partitions": {"related": format!("{base}/topics/{topic}/partitions")},
            "configs": {"related": format!("{base}/topics/{topic}/configs")},
            "partition_reassignments": {"related": format!("{base}/topics/{topic}/partitions/-/reassignment")},
            "authorized_operations": [],
        })
    );
    V3::fails(v3.call("POST", "/topics", Some(new)).await, 400, 40002, "exists already");
    let gap = json!({"topic_name": unique("topic"), "replicas_assignments": {"0": [999]}});
    V3::fails(v3.call("POST", "/topics", Some(gap)).await, 400, 40002, "999");
    V3::fails(v3.call("POST", "/topics", Some(json!({"topic": 1}))).await, 400, 400, "unknown field `topic`");
    V3::fails(v3.call("GET", "/topics/none", None).await, 404, 40403, "none");

    let grown = v3.call("PATCH", &format!("/topics/{topic}"), Some(json!({"partitions_count": 3}))).await;
    assert_eq!((grown.0, grown.1["partitions_count"].as_u64()), (200, Some(3)), "{}", grown.1);
    V3::fails(v3.call("PATCH", &format!("/topics/{topic}"), Some(json!({"partitions_count": 2}))).await, 400, 40002, "3");
    let partitions = v3.list(&format!("/topics/{topic}/partitions"), "KafkaPartitionList").await;
    assert_eq!(partitions.len(), 3);
    assert_eq!(partitions[0]["leader"]["related"], format!("{base}/topics/{topic}/partitions/0/replicas/{broker}"));
    let replica = v3.get(&format!("/topics/{topic}/partitions/2/replicas/{broker}")).await;
    assert_eq!((&replica["is_leader"], &replica["is_in_sync"], &replica["kind"]), (&json!(true), &json!(true), &json!("KafkaReplica")));
    V3::fails(v3.call("GET", &format!("/topics/{topic}/partitions/3"), None).await, 404, 40403, "it has 0 to 2");
    let held = v3.list(&format!("/brokers/{broker}/partition-replicas"), "KafkaReplicaList").await;
    assert_eq!(held.iter().filter(|replica| replica["topic_name"] == topic.as_str()).count(), 3);
    for path in ["/topics/-/partitions/-/reassignment".to_owned(), format!("/topics/{topic}/partitions/-/reassignment")] {
        assert_eq!(v3.list(&path, "KafkaReassignmentList").await, Vec::<Value>::new());
    }
    V3::fails(v3.call("GET", &format!("/topics/{topic}/partitions/0/reassignment"), None).await, 404, 404, "under way");

    // Settings of topics. Brokers learn of what the controller has a moment later.
    let changed = async |path: String, value: &str| {
        eventually(&format!("{path} is {value}"), async || v3.call("GET", &path, None).await.1["value"] == value).await;
    };
    let own = format!("/topics/{topic}/configs");
    let retention = v3.get(&format!("{own}/retention.ms")).await;
    assert_eq!((retention["value"].as_str(), retention["source"].as_str()), (Some("7000"), Some("DYNAMIC_TOPIC_CONFIG")));
    assert_eq!(retention["metadata"]["resource_name"], format!("crn:///kafka={id}/topic={topic}/config=retention.ms"));
    assert_eq!(retention["synonyms"][0], json!({"name": "retention.ms", "value": "7000", "source": "DYNAMIC_TOPIC_CONFIG"}));
    assert_eq!(v3.call("PUT", &format!("{own}/retention.ms"), Some(json!({"value": "9000"}))).await.0, 204);
    changed(format!("{own}/retention.ms"), "9000").await;
    let batch =
        json!({"data": [{"name": "retention.ms", "operation": "DELETE"}, {"name": "segment.ms", "value": 60000}], "validate_only": true});
    assert_eq!(v3.call("POST", &format!("{own}:alter"), Some(batch.clone())).await.0, 204);
    assert_eq!(v3.get(&format!("{own}/retention.ms")).await["value"], "9000", "validate_only changes nothing");
    let mut batch = batch;
    batch["validate_only"] = json!(false);
    assert_eq!(v3.call("POST", &format!("{own}:alter"), Some(batch)).await.0, 204);
    changed(format!("{own}/segment.ms"), "60000").await;
    let all = v3.list(&own, "KafkaTopicConfigList").await;
    let of = |name: &str| all.iter().find(|config| config["name"] == name).unwrap().clone();
    assert_eq!((&of("segment.ms")["value"], &of("retention.ms")["is_default"]), (&json!("60000"), &json!(true)));
    assert_eq!(v3.call("DELETE", &format!("{own}/segment.ms"), None).await.0, 204);
    changed(format!("{own}/segment.ms"), "604800000").await;
    V3::fails(v3.call("PUT", &format!("{own}/retention.ms"), Some(json!({"value": "x"}))).await, 400, 40002, "retention.ms");
    V3::fails(v3.call("GET", &format!("{own}/bogus"), None).await, 404, 404, "bogus");
    V3::fails(v3.call("GET", "/topics/none/configs", None).await, 404, 40403, "none");
    let every = v3.list("/topics/-/configs", "KafkaTopicConfigList").await;
    assert!(every.iter().any(|config| config["topic_name"] == topic.as_str() && config["name"] == "cleanup.policy"));

    // Of one broker, and of all.
    let own = format!("/brokers/{broker}/configs");
    assert!(v3.list(&own, "KafkaBrokerConfigList").await.len() > 100);
    assert!(v3.list("/brokers/-/configs", "KafkaBrokerConfigList").await.len() > 100);
    let setting = "log.cleaner.backoff.ms";
    assert_eq!(v3.call("PUT", &format!("/broker-configs/{setting}"), Some(json!({"value": "16000"}))).await.0, 204);
    assert_eq!(v3.call("POST", &format!("{own}:alter"), Some(json!({"data": [{"name": setting, "value": "17000"}]}))).await.0, 204);
    changed(format!("{own}/{setting}"), "17000").await;
    changed(format!("/broker-configs/{setting}"), "16000").await;
    let common = v3.list("/broker-configs", "KafkaClusterConfigList").await;
    assert_eq!((common[0]["config_type"].as_str(), common[0]["source"].as_str()), (Some("BROKER"), Some("DYNAMIC_DEFAULT_BROKER_CONFIG")));
    assert_eq!(v3.call("DELETE", &format!("{own}/{setting}"), None).await.0, 204);
    changed(format!("{own}/{setting}"), "16000").await;
    let delete = json!({"data": [{"name": setting, "operation": "DELETE"}]});
    assert_eq!(v3.call("POST", "/broker-configs:alter", Some(delete)).await.0, 204);
    V3::fails(v3.call("GET", "/brokers/99/configs", None).await, 404, 404, "99");

    assert_eq!(v3.call("DELETE", &format!("/topics/{topic}"), None).await.0, 204);
    V3::fails(v3.call("DELETE", &format!("/topics/{topic}"), None).await, 404, 40403, &topic);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn v3_keeps_access_control_lists_and_shows_groups_with_their_members() {
    let bridge = Bridge::start(&servers()).await;
    let v3 = V3::of(&bridge).await;
    let name = unique("acl");
    let acl = |operation: &str| json!({"resource_type": "TOPIC", "resource_name": name, "pattern_type": "PREFIXED", "principal": "User:alice", "host": "*", "operation": operation, "permission": "ALLOW"});
    let (status, body) = v3.call("POST", "/acls", Some(acl("READ"))).await;
    assert_eq!((status, body), (201, Value::Null));
    assert_eq!(v3.call("POST", "/acls:batch", Some(json!({"data": [acl("WRITE"), acl("DESCRIBE")]}))).await.0, 201);
    let search = format!("/acls?resource_name={name}&principal=User:alice");
    // Brokers learn of what the controller has a moment later.
    eventually("three entries", async || v3.list(&search, "KafkaAclList").await.len() == 3).await;
    let found = v3.list(&search, "KafkaAclList").await;
    let operations: Vec<&str> = found.iter().map(|acl| acl["operation"].as_str().unwrap()).collect();
    assert_eq!(operations, ["READ", "WRITE", "DESCRIBE"]);
    let place = format!(
        "{}/acls?resource_type=TOPIC&resource_name={name}&pattern_type=PREFIXED&principal=User%3Aalice&host=%2A&operation=READ&permission=ALLOW",
        v3.cluster
    );
    assert!(found[0]["metadata"]["self"].as_str().unwrap().ends_with(&place), "{}", found[0]);
    assert_eq!(v3.list(&format!("/acls?resource_type=topic&resource_name={name}-x&pattern_type=MATCH"), "KafkaAclList").await.len(), 3);
    V3::fails(v3.call("DELETE", &search, None).await, 400, 400, "resource_type cannot be unspecified or UNKNOWN");
    V3::fails(v3.call("POST", "/acls", Some(acl("ANY"))).await, 400, 400, "operation cannot be ANY");
    V3::fails(v3.call("POST", "/acls", Some(acl("FLY"))).await, 400, 400, "IDEMPOTENT_WRITE");
    let mut cluster = acl("ALTER");
    cluster["resource_type"] = json!("CLUSTER");
    V3::fails(v3.call("POST", "/acls", Some(cluster)).await, 400, 40002, "kafka-cluster");
    let all = format!("/acls?resource_type=TOPIC&resource_name={name}&pattern_type=PREFIXED&operation=ANY&permission=ANY");
    let (status, deleted) = v3.call("DELETE", &all, None).await;
    assert_eq!((status, deleted["data"].as_array().unwrap().len()), (200, 3), "{deleted}");

    // A group with a member.
    let topic = v3.client.create_topic(2).await;
    let group = unique("group");
    v3.client.produce(&topic, 0..10).await;
    let base = v3.client.consumer(&group, &topic, false).await;
    v3.client.fetch_values(&base, 10).await;
    let path = format!("/consumer-groups/{group}");
    let shown = v3.get(&path).await;
    assert_eq!(
        (shown["state"].as_str(), shown["is_simple"].as_bool(), shown["type"].as_str()),
        (Some("STABLE"), Some(false), Some("CLASSIC"))
    );
    assert!(shown["coordinator"]["related"].as_str().unwrap().contains("/brokers/"), "{shown}");
    let members = v3.list(&format!("{path}/consumers"), "KafkaConsumerList").await;
    let member = members[0]["consumer_id"].as_str().unwrap().to_owned();
    assert!(members[0]["client_id"].as_str().is_some_and(|client| !client.is_empty()), "{}", members[0]);
    assert_eq!(v3.get(&format!("{path}/consumers/{member}")).await, members[0]);
    let assigned = v3.list(&format!("{path}/consumers/{member}/assignments"), "KafkaConsumerAssignmentList").await;
    assert_eq!(assigned.len(), 2);
    assert_eq!(v3.get(&format!("{path}/consumers/{member}/assignments/{topic}/partitions/1")).await, assigned[1]);
    let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 0}]});
    assert_eq!(v3.client.post(&format!("{base}/offsets"), crate::V2, &commit).await.0, 200);
    let lags = v3.list(&format!("{path}/lags"), "KafkaConsumerLagList").await;
    assert_eq!((lags.len(), lags[0]["consumer_id"].as_str(), lags[0]["current_offset"].as_i64()), (2, Some(member.as_str()), Some(1)));
    let summary = v3.get(&format!("{path}/lag-summary")).await;
    assert!(summary["max_lag_consumer"]["related"].as_str().unwrap().contains(&format!("{path}/consumers/")), "{summary}");
    let offset = v3.get(&format!("/topics/{topic}/partitions/0/offset")).await;
    assert_eq!((offset["kind"].as_str(), offset["earliest_offset"].as_i64()), (Some("KafkaPartitionWithOffsets"), Some(0)));
    assert_eq!(offset["latest_offset"], lags[0]["log_end_offset"]);
    V3::fails(v3.call("GET", &format!("{path}/consumers/nobody"), None).await, 404, 404, "nobody");
    v3.client.delete(&base).await;
    v3.client.delete_topic(&topic).await;
    bridge.stop().await;
}

/// A chunked request, written and read piece by piece.
struct Stream {
    socket: TcpStream,
    read: String,
}

impl Stream {
    async fn open(v3: &V3, bridge: &Bridge, topic: &str) -> Self {
        let mut socket = TcpStream::connect(&bridge.http).await.unwrap();
        let head = format!(
            "POST {}/topics/{topic}/records HTTP/1.1\r\nhost: bridge\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            v3.cluster
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        Self { socket, read: String::new() }
    }

    async fn send(&mut self, text: &str) {
        self.socket.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.unwrap();
    }

    /// Receipts until there are `count`.
    async fn receipts(&mut self, count: usize) -> Vec<Value> {
        let all = async {
            loop {
                let receipts: Vec<Value> =
                    self.read.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect();
                if receipts.len() >= count {
                    return receipts;
                }
                let mut bytes = [0; 4096];
                let length = self.socket.read(&mut bytes).await.unwrap();
                assert!(length > 0, "the stream ended: {}", self.read);
                self.read.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
            }
        };
        timeout(Duration::from_secs(20), all).await.expect("receipts come")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn v3_writes_a_stream_of_records_with_a_receipt_for_each() {
    let bridge = Bridge::start(&servers()).await;
    let v3 = V3::of(&bridge).await;
    let topic = v3.client.create_topic(2).await;

    // A receipt comes while the request goes on.
    let mut stream = Stream::open(&v3, &bridge, &topic).await;
    stream.send(r#"{"partition_id":1,"key":{"type":"STRING","data":"k"},"value":{"type":"JSON","data":{"a" : 1}},"timestamp":"2021-02-05T19:14:42Z","headers":[{"name":"h","value":"AP8="}]}"#).await;
    let first = stream.receipts(1).await.remove(0);
    assert_eq!(
        first,
        json!({
            "error_code": 200, "cluster_id": v3.id, "topic_name": topic, "partition_id": 1, "offset": 0, "timestamp": "2021-02-05T19:14:42Z",
            "key": {"type": "STRING", "size": 1}, "value": {"type": "JSON", "size": 7},
        })
    );
    // Bad ones in between have receipts of their own, in order, wherever the chunks end.
    stream.send(r#"{"value":{"type":"BINARY","data":1}} {"value":{"type":"AVRO","data":1}}{"value":{"type":"#).await;
    stream.send(r#""STRING","data":"x"},"partition_id":7}{"valeu":1}{"value":{"type":"BINARY","data":"AQID"},"partition_id":0}"#).await;
    let receipts = stream.receipts(6).await;
    let codes: Vec<i64> = receipts.iter().map(|receipt| receipt["error_code"].as_i64().unwrap()).collect();
    assert_eq!(codes, [200, 400, 42207, 40403, 400, 200], "{receipts:?}");
    assert!(receipts[1]["message"].as_str().unwrap().starts_with("Bad Request: data=1 is not a base64 string"), "{}", receipts[1]);
    assert!(receipts[4]["message"].as_str().unwrap().contains("valeu"), "{}", receipts[4]);
    // What cannot be cut ends the stream, with its place.
    stream.send("]").await;
    let last = stream.receipts(7).await.remove(6);
    assert!(last["error_code"] == 400 && last["message"].as_str().unwrap().contains("begins with '{', not with ']'"), "{last}");

    // More than a body may have: 16 MiB of it.
    let record = format!("{{\"value\":{{\"type\":\"STRING\",\"data\":\"{}\"}}}}", "x".repeat(64 * 1024));
    let mut stream = Stream::open(&v3, &bridge, &topic).await;
    let mut written = 0;
    for _ in 0..16 {
        for _ in 0..16 {
            stream.send(&record).await;
        }
        written += 16;
        assert_eq!(stream.receipts(written).await.iter().filter(|receipt| receipt["error_code"] == 200).count(), written);
    }
    drop(stream);

    // Before the first record there is still a status.
    let records = format!("/topics/{topic}/records");
    V3::fails(v3.call("POST", &records, Some(json!([1]))).await, 400, 400, "begins with '{'");
    V3::fails(v3.call("POST", "/topics/none/records", Some(json!({}))).await, 404, 40403, "none");
    let empty =
        v3.client.http.post(format!("{}{}{records}", v3.client.base, v3.cluster)).header("content-type", JSON).send().await.unwrap();
    assert_eq!(empty.status(), 422);
    assert_eq!(empty.json::<Value>().await.unwrap()["error_code"], 42206);
    let wrong = v3.client.http.post(format!("{}{}{records}", v3.client.base, v3.cluster)).header("content-type", "text/plain").body("{}");
    assert_eq!(wrong.send().await.unwrap().status(), 415);

    // A batch.
    let batch = format!("{records}:batch");
    let entries = json!({"entries": [{"id": "1", "value": {"type": "JSON", "data": null}}, {"id": "2", "value": {"type": "BINARY", "data": "%"}}, {"id": "3", "key": {"type": "BINARY", "data": "AQ=="}}]});
    let (status, answer) = v3.call("POST", &batch, Some(entries)).await;
    assert_eq!(status, 207, "{answer}");
    let ids =
        |list: &str| answer[list].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!((ids("successes"), ids("failures")), (vec!["1".to_owned(), "3".to_owned()], vec!["2".to_owned()]));
    assert!(answer["successes"][0].get("error_code").is_none() && answer["failures"][0]["error_code"] == 400, "{answer}");
    V3::fails(v3.call("POST", &batch, Some(json!({"entries": []}))).await, 422, 42208, "Empty batch.");
    V3::fails(v3.call("POST", &batch, Some(json!({"entries": [{"id": "1"}, {"id": "1"}]}))).await, 422, 42208, "not distinct");
    V3::fails(v3.call("POST", &batch, Some(json!({"entries": [{"id": ""}]}))).await, 422, 42208, "identifier");
    v3.client.delete_topic(&topic).await;
    bridge.stop().await;
}
