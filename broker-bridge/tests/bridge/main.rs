//! The real binary on a real broker: produce, consume, restart, kill, lag, advice.
//!
//! Needs `KAFKA_BOOTSTRAP_SERVERS`; every topic and group here has a name of its own and is removed at the end.

#![allow(clippy::unwrap_used)]

mod process;

use std::time::Duration;

use futures::StreamExt as _;
use process::{Bridge, servers, unique};
use proto::{
    control::v1::{
        AdviseTopicRequest, BrokersRequest, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, GroupLagRequest,
        ListTopicsRequest, PauseRequest, ResumeRequest, StatusRequest, bridge_client::BridgeClient, control_client::ControlClient,
    },
    data::v1::{
        Ack, ConsumeRequest, Credit, ProduceRequest, Record, Subscribe, bridge_data_client::BridgeDataClient, consume_request::Request,
    },
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

const JSON: &str = "application/vnd.kafka.json.v2+json";
const V2: &str = "application/vnd.kafka.v2+json";

struct Client {
    http: reqwest::Client,
    base: String,
    channel: Channel,
}

impl Client {
    async fn of(bridge: &Bridge) -> Self {
        let channel = Channel::from_shared(format!("http://{}", bridge.control)).unwrap().connect().await.unwrap();
        Self { http: reqwest::Client::new(), base: format!("http://{}", bridge.http), channel }
    }

    fn control(&self) -> BridgeClient<Channel> {
        BridgeClient::new(self.channel.clone())
    }

    fn data(&self) -> BridgeDataClient<Channel> {
        BridgeDataClient::new(self.channel.clone())
    }

    async fn create_topic(&self, partitions: u32) -> String {
        let name = unique("topic");
        self.control().create_topic(CreateTopicRequest { name: name.clone(), partitions, ..Default::default() }).await.unwrap();
        name
    }

    async fn delete_topic(&self, name: &str) {
        self.control().delete_topic(DeleteTopicRequest { name: name.to_owned() }).await.unwrap();
    }

    async fn post(&self, path: &str, content_type: &str, body: &Value) -> (u16, Value) {
        let url = if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.base) };
        let response = self.http.post(url).header("content-type", content_type).body(body.to_string()).send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn produce(&self, topic: &str, values: impl IntoIterator<Item = i64>) {
        let records: Vec<Value> = values.into_iter().map(|value| json!({"key": value, "value": value})).collect();
        let (status, answer) = self.post(&format!("/topics/{topic}"), JSON, &json!({"records": records})).await;
        assert_eq!(status, 200, "{answer}");
        for offset in answer["offsets"].as_array().unwrap() {
            assert!(offset["offset"].as_i64().unwrap() >= 0, "{answer}");
        }
    }

    /// Creates and subscribes an instance; gives its address.
    async fn consumer(&self, group: &str, topic: &str, auto_commit: bool) -> String {
        let config = json!({"format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": auto_commit});
        let (status, created) = self.post(&format!("/consumers/{group}"), V2, &config).await;
        assert_eq!(status, 200, "{created}");
        let base = created["base_uri"].as_str().unwrap().to_owned();
        assert_eq!(self.post(&format!("{base}/subscription"), V2, &json!({"topics": [topic]})).await.0, 204);
        base
    }

    /// One answer with records; empty ones, as while the group forms, are asked again until the deadline.
    async fn fetch(&self, base: &str) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let response = self.http.get(format!("{base}/records?timeout=2000")).header("accept", JSON).send().await.unwrap();
            assert_eq!(response.status(), 200);
            let records: Vec<Value> = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            if !records.is_empty() {
                return records;
            }
            assert!(tokio::time::Instant::now() < deadline, "no records came");
        }
    }

    /// Values until there are `count`.
    async fn fetch_values(&self, base: &str, count: usize) -> Vec<i64> {
        let mut values = Vec::new();
        while values.len() < count {
            values.extend(self.fetch(base).await.iter().map(|record| record["value"].as_i64().unwrap()));
        }
        values.sort_unstable();
        values
    }

    async fn delete(&self, base: &str) {
        assert_eq!(self.http.delete(base).send().await.unwrap().status(), 204);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_in_and_out_over_http_with_their_trace() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let group = unique("group");

    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let url = format!("{}/topics/{topic}/partitions/1", client.base);
    let body = json!({"records": [{"key": "k", "value": {"a": [1, null, "ö"]}}]}).to_string();
    let traced = client.http.post(url).header("content-type", JSON).header("traceparent", parent).body(body).send().await.unwrap();
    assert_eq!(traced.status(), 200);
    client.produce(&topic, 0..50).await;

    let base = client.consumer(&group, &topic, true).await;
    let mut records = Vec::new();
    while records.len() < 51 {
        records.extend(client.fetch(&base).await);
    }
    let traced = records.iter().find(|record| record["key"] == "k").unwrap();
    assert_eq!((&traced["value"], &traced["partition"]), (&json!({"a": [1, null, "ö"]}), &json!(1)));
    assert_eq!(traced["headers"][0]["key"], "traceparent");
    assert_eq!(records.len(), 51);

    let described = client.http.get(format!("{}/topics/{topic}", client.base)).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(described["partitions"].as_array().unwrap().len(), 2);
    let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("millrace_bridge_consume_records_total 51"), "{metrics}");

    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_where_it_was_after_a_stop_and_after_kill_9() {
    let mut bridge = Bridge::start(&servers()).await;
    let mut client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let group = unique("group");

    for (round, kill) in [false, true, true].into_iter().enumerate() {
        let start = i64::try_from(round).unwrap() * 20;
        client.produce(&topic, start..start + 20).await;
        let base = client.consumer(&group, &topic, false).await;
        let values = client.fetch_values(&base, 20).await;
        assert_eq!(values, (start..start + 20).collect::<Vec<_>>(), "round {round}: exactly what was not committed");
        // The last ten are fetched and not committed; committing the last one processed is the REST proxy's way.
        let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": start + 9}]});
        assert_eq!(client.post(&format!("{base}/offsets"), V2, &commit).await.0, 200);
        bridge = if kill { bridge.kill_and_restart().await } else { bridge.stop_and_restart().await };
        client = Client::of(&bridge).await;

        let gone = client
            .http
            .get(format!("{}/records", base.replace(&base[..base.find("/consumers").unwrap()], &client.base)))
            .send()
            .await
            .unwrap();
        assert_eq!(gone.status(), 404);
        let base = client.consumer(&group, &topic, true).await;
        assert_eq!(client.fetch_values(&base, 10).await, (start + 10..start + 20).collect::<Vec<_>>(), "round {round}");
        // Auto-commit: saying goodbye acknowledges what was fetched.
        client.delete(&base).await;
    }
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_writes_a_batch_once_and_consumes_by_credit_and_ack() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let group = unique("group");
    let batch = |id: &str, values: std::ops::Range<u8>| ProduceRequest {
        topic: topic.clone(),
        records: values
            .map(|value| Record { partition: Some(i32::from(value % 2)), value: Some(vec![value].into()), ..Default::default() })
            .collect(),
        batch_id: id.to_owned(),
    };

    let first = client.data().produce(batch("b1", 0..10)).await.unwrap().into_inner();
    assert!(!first.replayed && first.results.len() == 10 && first.results.iter().all(|result| result.error.is_empty()));
    let again = client.data().produce(batch("b1", 0..10)).await.unwrap().into_inner();
    assert!(again.replayed);
    assert_eq!(again.results, first.results);
    let stream = futures::stream::iter([batch("b2", 10..15), batch("b1", 0..10), batch("b3", 15..20)]);
    let answers: Vec<_> = client.data().produce_stream(stream).await.unwrap().into_inner().map(Result::unwrap).collect().await;
    let order: Vec<_> = answers.iter().map(|answer| (answer.batch_id.as_str(), answer.replayed)).collect();
    assert_eq!(order, [("b2", false), ("b1", true), ("b3", false)]);
    let mixed =
        ProduceRequest { records: vec![Record { topic: unique("missing"), ..Default::default() }, Record::default()], ..batch("", 0..0) };
    let mixed = client.data().produce(mixed).await.unwrap().into_inner();
    assert!(mixed.results[0].error.contains("does not exist") && !mixed.results[0].retryable && mixed.results[1].offset >= 0);

    // 21 records are there; the credit lets 8 through, then the rest of them.
    let (requests, mut batches) = consume(&client, &group, &topic, 8).await;
    let mut seen = Vec::new();
    let mut last = 0;
    while seen.len() < 8 {
        let batch = batches.next().await.unwrap().unwrap();
        last = batch.batch;
        seen.extend(batch.records);
    }
    assert_eq!(seen.len(), 8, "never more than the credit");
    requests.send(message(Request::Ack(Ack { batch: last }))).await.unwrap();
    requests.send(message(Request::Credit(Credit { records: 100 }))).await.unwrap();
    let mut rest = Vec::new();
    while rest.len() < 13 {
        rest.extend(batches.next().await.unwrap().unwrap().records);
    }
    // These are not acked: the next stream gets them again.
    drop(requests);
    while batches.next().await.is_some() {}
    let (_requests, mut batches) = consume(&client, &group, &topic, 100).await;
    let mut again = Vec::new();
    while again.len() < 13 {
        again.extend(batches.next().await.unwrap().unwrap().records);
    }
    let key = |record: &Record| (record.partition, record.offset);
    let mut expected: Vec<_> = rest.iter().map(key).collect();
    let mut found: Vec<_> = again.iter().map(key).collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);

    client.delete_topic(&topic).await;
    bridge.stop().await;
}

async fn consume(
    client: &Client,
    group: &str,
    topic: &str,
    credit: u32,
) -> (mpsc::Sender<ConsumeRequest>, tonic::Streaming<proto::data::v1::ConsumeResponse>) {
    let (requests, receiver) = mpsc::channel(8);
    let subscribe = Subscribe { group: group.to_owned(), topics: vec![topic.to_owned()], auto_offset_reset: "earliest".into(), credit };
    requests.send(message(Request::Subscribe(subscribe))).await.unwrap();
    let batches = client.data().consume(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    (requests, batches)
}

fn message(request: Request) -> ConsumeRequest {
    ConsumeRequest { request: Some(request) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_advised_created_described_and_deleted() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let mut control = client.control();
    let brokers = control.brokers(BrokersRequest {}).await.unwrap().into_inner();
    let count = u32::try_from(brokers.brokers.len()).unwrap();
    assert!(!brokers.cluster_id.is_empty() && brokers.brokers.iter().any(|broker| broker.controller));

    let advice = control.advise_topic(AdviseTopicRequest { consumers: 3, producers: 2 }).await.unwrap().into_inner().advice.unwrap();
    assert_eq!((advice.partitions, advice.replication), (6, count.min(3)));
    assert_eq!(advice.reasons[0], "partitions: max(3 consumers, 2 producers) × 2 = 6");

    let name = unique("topic");
    let new = CreateTopicRequest { name: name.clone(), consumers: 3, producers: 2, retention_ms: 3_600_000, ..Default::default() };
    control.create_topic(CreateTopicRequest { dry_run: true, ..new.clone() }).await.unwrap();
    let missing = control.describe_topic(DescribeTopicRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let created = control.create_topic(new.clone()).await.unwrap().into_inner();
    assert_eq!(created.topic.unwrap().partitions, 6);
    let twice = control.create_topic(new).await.unwrap_err();
    assert!(twice.code() == Code::AlreadyExists && twice.message().contains(&name), "{twice}");

    let described = control.describe_topic(DescribeTopicRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!(described.partitions.len(), 6);
    assert_eq!(described.config["retention.ms"], "3600000");
    assert_eq!(described.config["min.insync.replicas"], count.min(3).saturating_sub(1).max(1).to_string());
    assert!(described.partitions.iter().all(|partition| partition.leader >= 0 && partition.end_offset == 0));
    client.produce(&name, 0..30).await;
    let described = control.describe_topic(DescribeTopicRequest { name: name.clone() }).await.unwrap().into_inner();
    assert_eq!(described.partitions.iter().map(|partition| partition.end_offset).sum::<i64>(), 30);
    let load = control.brokers(BrokersRequest {}).await.unwrap().into_inner();
    assert!(load.brokers.iter().map(|broker| broker.leaders).sum::<u32>() >= 6);
    assert!(load.brokers.iter().all(|broker| broker.log_bytes != 0), "bytes, or -1 where they cannot be had");

    let listed = control.list_topics(ListTopicsRequest { include_internal: false }).await.unwrap().into_inner().topics;
    assert!(listed.iter().any(|topic| topic.name == name) && !listed.iter().any(|topic| topic.internal));
    client.delete_topic(&name).await;
    let gone = control.delete_topic(DeleteTopicRequest { name: name.clone() }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let (status, error) = client.post(&format!("/topics/{name}"), JSON, &json!({"records": [{"value": 1}]})).await;
    assert_eq!((status, error["error_code"].as_u64()), (404, Some(40401)), "{error}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_what_the_group_has_not_committed_and_names_the_member() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let group = unique("group");
    let mut control = client.control();
    let unknown = control.group_lag(GroupLagRequest { group: group.clone() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    client.produce(&topic, 0..25).await;
    let base = client.consumer(&group, &topic, false).await;
    client.fetch_values(&base, 25).await;
    let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 9}]});
    assert_eq!(client.post(&format!("{base}/offsets"), V2, &commit).await.0, 200);
    let lag = control.group_lag(GroupLagRequest { group: group.clone() }).await.unwrap().into_inner();
    let row = &lag.partitions[0];
    assert_eq!((lag.total_lag, row.committed, row.end_offset, row.lag), (15, 10, 25, 15));
    assert!(!row.member.is_empty());
    assert_eq!(lag.group.unwrap().members, 1);

    // The background poll has it as a gauge, and the broker's own view too.
    let series = format!("millrace_bridge_group_lag_records{{group=\"{group}\",topic=\"{topic}\",partition=\"0\"}} 15");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
        if metrics.contains(&series)
            && metrics.contains("millrace_bridge_broker_leaders{")
            && metrics.contains("millrace_bridge_kafka_available 1")
        {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{series} is not in {metrics}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pausing_refuses_new_work_and_resuming_takes_it_again() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let mut control = ControlClient::new(client.channel.clone());
    control.pause(PauseRequest { component: "produce".into() }).await.unwrap();
    let (status, error) = client.post(&format!("/topics/{topic}"), JSON, &json!({"records": [{"value": 1}]})).await;
    assert_eq!((status, error["error_code"].as_u64()), (503, Some(503)), "{error}");
    let health = control.status(StatusRequest {}).await.unwrap().into_inner();
    assert!(health.reason.contains("paused: produce"), "{health:?}");
    assert!(control.pause(PauseRequest { component: "nothing".into() }).await.is_err());
    control.resume(ResumeRequest { component: String::new() }).await.unwrap();
    client.produce(&topic, 0..1).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_the_bridge_runs_and_refuses_quickly() {
    // Port 9 (discard) is served by nobody.
    let bridge = Bridge::start_unready("127.0.0.1:9").await;
    let http = reqwest::Client::new();
    let base = format!("http://{}", bridge.http);
    assert_eq!(http.get(format!("{base}/healthy")).send().await.unwrap().status(), 200);
    assert_eq!(http.get(format!("{base}/ready")).send().await.unwrap().status(), 503);
    let started = tokio::time::Instant::now();
    let refused =
        http.post(format!("{base}/topics/t")).header("content-type", JSON).body(r#"{"records":[{"value":1}]}"#).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    let error: Value = refused.json().await.unwrap();
    // Before the first look at the broker the request finds out by itself.
    let message = error["message"].as_str().unwrap();
    assert!(error["error_code"] == 50003 && (message.contains("try again") || message.contains("start Kafka")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_has_one_owner_and_wrong_configuration_is_refused() {
    let bridge = Bridge::start(&servers()).await;
    let second = bridge.try_second_on_the_same_store().await;
    assert_eq!(second.status.code(), Some(1));
    let log = process::text(&second);
    assert!(log.contains(&format!("in use by process {}", bridge.pid())), "{log}");
    bridge.stop().await;

    let missing = process::run(&["serve"], &[]).await;
    assert_eq!(missing.status.code(), Some(78));
    assert!(process::text(&missing).contains("--bootstrap-servers"), "{}", process::text(&missing));
    let wrong = process::run(&["serve", "--bootstrap-servers", "k:1"], &[("MILLRACE_PRODUCE__TIMEUOT", "1s")]).await;
    assert_eq!(wrong.status.code(), Some(78));
    assert!(process::text(&wrong).contains("MILLRACE_PRODUCE__TIMEUOT"), "{}", process::text(&wrong));
    assert_eq!(process::run(&["serv"], &[]).await.status.code(), Some(64));
}
