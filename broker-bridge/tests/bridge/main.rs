//! The real binary on a real broker: produce, consume, restart, kill, lag, advice.
//!
//! Needs `KAFKA_BOOTSTRAP_SERVERS`; every topic and group here has a name of its own and is removed at the end.

#![allow(clippy::unwrap_used)]

mod abuse;
mod auth;
mod changes;
mod cli;
mod cluster;
mod credentials;
mod documented;
mod formats;
mod grpc;
mod honest;
mod idempotence;
mod java;
mod limits;
mod openapi;
mod outage;
mod patterns;
mod process;
mod push;
mod registry;
mod replicas;
mod siege;
mod slow;
mod stores;
mod transactions;
mod v3;
mod versions;
mod watch;
mod window;

use std::time::Duration;

use futures::StreamExt as _;
use process::{Bridge, servers, unique};
use proto::{
    control::v1::{
        AdviseTopicRequest, BrokersRequest, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, GroupLagRequest,
        GroupLagsRequest, Health, ListTopicsRequest, PauseRequest, ResetOffsetsRequest, ResumeRequest, StatusRequest,
        bridge_client::BridgeClient, control_client::ControlClient, reset_offsets_request::To,
    },
    data::v1::{
        Ack, ConsumeRequest, Credit, ProduceRequest, ProduceResponse, Record, Subscribe, bridge_data_client::BridgeDataClient,
        consume_request::Request,
    },
};
use serde_json::{Value, json};
use service_kit::kafka::{self, KafkaConfig};
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
            let (status, text) = (response.status(), response.text().await.unwrap());
            assert_eq!(status, 200, "{text}");
            let records: Vec<Value> = serde_json::from_str(&text).unwrap();
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

/// Waits until it is so, two minutes at most: a machine may be busy.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "in two minutes it did not come to this: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
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

        // The instance goes on, too; a new one takes its place here.
        let base = base.replace(&base[..base.find("/consumers").unwrap()], &client.base);
        client.delete(&base).await;
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
    // Ids are known for minutes, to every bridge of the cluster that has the same window.
    let window = unique("keys");
    let bridge = Bridge::start_with(&servers(), &[("MILLRACE_PRODUCE__DEDUP_TOPIC", &window)]).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let group = unique("group");
    let batch = |id: &str, values: std::ops::Range<u8>| ProduceRequest {
        topic: topic.clone(),
        records: values
            .map(|value| Record { partition: Some(i32::from(value % 2)), value: Some(vec![value].into()), ..Default::default() })
            .collect(),
        batch_id: id.to_owned(),
        encoding: None,
    };

    // A broker that has just started makes its transaction coordinator first, which takes its time on a busy machine: what may be tried again is.
    let mut first = ProduceResponse::default();
    eventually("the first batch is written", async || {
        first = client.data().produce(batch("b1", 0..10)).await.unwrap().into_inner();
        assert!(first.results.len() == 10 && first.results.iter().all(|result| result.error.is_empty() || result.retryable), "{first:?}");
        first.results.iter().all(|result| result.error.is_empty())
    })
    .await;
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

    for name in [&topic, &window, &format!("{window}_claims")] {
        client.delete_topic(name).await;
    }
    bridge.stop().await;
}

async fn consume(
    client: &Client,
    group: &str,
    topic: &str,
    credit: u32,
) -> (mpsc::Sender<ConsumeRequest>, tonic::Streaming<proto::data::v1::ConsumeResponse>) {
    let subscribe = Subscribe {
        group: group.to_owned(),
        topics: vec![topic.to_owned()],
        auto_offset_reset: "earliest".into(),
        credit,
        ..Subscribe::default()
    };
    subscribed(client, subscribe).await
}

async fn subscribed(
    client: &Client,
    subscribe: Subscribe,
) -> (mpsc::Sender<ConsumeRequest>, tonic::Streaming<proto::data::v1::ConsumeResponse>) {
    let (requests, receiver) = mpsc::channel(8);
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

    let advice = control
        .advise_topic(AdviseTopicRequest { consumers: 3, producers: 2, ..Default::default() })
        .await
        .unwrap()
        .into_inner()
        .advice
        .unwrap();
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
    assert!(load.brokers.iter().all(|broker| broker.log_bytes > 0), "{load:?}");

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
async fn a_group_that_has_read_transactions_to_the_end_has_no_lag_and_is_put_elsewhere_when_it_is_empty() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let mut control = client.control();
    let config = KafkaConfig::new(servers().as_str());
    let mut writer = kafka::transactional_writer(&config, &unique("writer")).await.unwrap();
    let name: std::sync::Arc<str> = topic.as_str().into();
    // Recent: what is older than the topic's retention goes whenever the broker looks.
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let first_ms = i64::try_from(since.as_millis()).unwrap() - 60_000;
    let record = |value: i64| kafka::OutRecord {
        topic: name.clone(),
        partition: Some(0),
        key: None,
        value: Some(value.to_string().into()),
        headers: Vec::new(),
        timestamp_ms: Some(first_ms + value),
    };
    writer.begin().await.unwrap();
    writer.send((0..6).map(record).collect()).await.unwrap();
    writer.commit().await.unwrap();

    // Two groups, over REST and over gRPC; both have the mark behind the six records passed and kept.
    let (rest, grpc) = (unique("group"), unique("group"));
    let base = client.consumer(&rest, &topic, true).await;
    assert_eq!(client.fetch_values(&base, 6).await, [0, 1, 2, 3, 4, 5]);
    let (requests, mut batches) = consume(&client, &grpc, &topic, 100).await;
    let mut seen = 0;
    while seen < 6 {
        let batch = batches.next().await.unwrap().unwrap();
        seen += batch.records.len();
        requests.send(message(Request::Ack(Ack { batch: batch.batch }))).await.unwrap();
    }
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        // Nothing comes, and it acknowledges.
        let response = client.http.get(format!("{base}/records?timeout=200")).header("accept", JSON).send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "[]");
        let mut rows = Vec::new();
        for group in [&rest, &grpc] {
            let lag = control.group_lag(GroupLagRequest { group: group.clone() }).await.unwrap().into_inner();
            rows.push((lag.partitions[0].committed, lag.partitions[0].end_offset, lag.total_lag));
        }
        if rows == [(7, 7, 0), (7, 7, 0)] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{rows:?}");
    }
    drop((requests, batches));

    let reset = |to: To, dry_run: bool| ResetOffsetsRequest { group: rest.clone(), topic: topic.clone(), to: Some(to), dry_run };
    let busy = control.reset_offsets(reset(To::Earliest(true), false)).await.unwrap_err();
    assert!(busy.message().contains("1 member") && busy.message().contains("stop them"), "{busy}");
    client.delete(&base).await;
    for (to, expected) in
        [(To::Latest(true), 7), (To::Offset(99), 7), (To::TimestampMs(first_ms + 4), 4), (To::Earliest(true), 0), (To::Offset(2), 2)]
    {
        // The coordinator may still be at letting the member go.
        let changes = loop {
            match control.reset_offsets(reset(to, false)).await {
                Ok(answer) => break answer.into_inner().partitions,
                Err(error) => assert!(error.message().contains("member") && tokio::time::Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!((changes.len(), changes[0].to, changes[0].end_offset), (1, expected, 7), "{to:?}");
        let dry = control.reset_offsets(reset(To::Earliest(true), true)).await.unwrap().into_inner().partitions;
        assert_eq!((dry[0].from, dry[0].to), (Some(expected), 0));
    }
    let all = control.group_lags(GroupLagsRequest {}).await.unwrap().into_inner().groups;
    let lag = |group: &str| all.iter().find(|lag| lag.group.as_ref().unwrap().id == group).unwrap().total_lag;
    assert_eq!((lag(&rest), lag(&grpc)), (5, 0));
    let base = client.consumer(&rest, &topic, true).await;
    assert_eq!(client.fetch_values(&base, 4).await, [2, 3, 4, 5]);
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_not_json_holds_up_its_own_partition_only() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let records = json!({"records": [{"value": "eyJhIjox", "partition": 0}]});
    assert_eq!(client.post(&format!("/topics/{topic}"), "application/vnd.kafka.binary.v2+json", &records).await.0, 200);
    let good: Vec<Value> = (0..5).map(|value| json!({"value": value, "partition": 1})).collect();
    assert_eq!(client.post(&format!("/topics/{topic}"), JSON, &json!({"records": good})).await.0, 200);
    let base = client.consumer(&unique("group"), &topic, true).await;
    assert_eq!(client.fetch_values(&base, 5).await, [0, 1, 2, 3, 4]);
    let get = async || client.http.get(format!("{base}/records?timeout=300")).header("accept", JSON).send().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let refused = loop {
        let answer = get().await;
        // Partition 0 may not have been read yet.
        if answer.status() != 200 {
            break answer;
        }
        assert!(tokio::time::Instant::now() < deadline && answer.text().await.unwrap() == "[]");
    };
    assert_eq!(refused.status(), 406);
    assert!(refused.text().await.unwrap().contains(&format!("{topic}-0 at offset 0 is not JSON")));
    // More of the blocked partition is of no consequence, and the other one goes on beside it.
    let more = json!({"records": [{"value": 7, "partition": 0}, {"value": 8, "partition": 1}]});
    assert_eq!(client.post(&format!("/topics/{topic}"), JSON, &more).await.0, 200);
    let answer = get().await;
    assert_eq!(answer.headers()["millrace-blocked"], format!("{topic}-0"));
    assert_eq!(answer.json::<Value>().await.unwrap()[0]["value"], 8);
    let position = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 1}]});
    assert_eq!(client.post(&format!("{base}/positions"), V2, &position).await.0, 204);
    assert_eq!(client.fetch_values(&base, 1).await, [7]);
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
    assert_eq!((health.health(), health.reason.as_str()), (Health::Paused, "paused: produce"), "{health:?}");
    let ready = client.http.get(format!("{}/ready", client.base)).send().await.unwrap();
    assert_eq!((ready.status().as_u16(), ready.text().await.unwrap().as_str()), (503, "paused: produce\n"));
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
    assert_eq!(refused.status(), 500, "as Confluent's REST proxy answers there");
    assert_eq!(http.get(format!("{base}/v3/clusters")).send().await.unwrap().status(), 503);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_was_deleted_elsewhere_and_created_anew_is_read_from_its_beginning() {
    let (bridge, other) = tokio::join!(async { Bridge::start(&servers()).await }, async { Bridge::start(&servers()).await });
    let (client, elsewhere) = (Client::of(&bridge).await, Client::of(&other).await);
    let topic = client.create_topic(1).await;
    let group = unique("group");
    client.produce(&topic, 0..5).await;
    let base = client.consumer(&group, &topic, true).await;
    assert_eq!(client.fetch_values(&base, 5).await, [0, 1, 2, 3, 4]);
    // A position that the partition does not have is where auto.offset.reset says.
    let position = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 1000}]});
    assert_eq!(client.post(&format!("{base}/positions"), V2, &position).await.0, 204);
    assert_eq!(client.fetch_values(&base, 5).await, [0, 1, 2, 3, 4]);
    client.produce(&topic, 5..6).await;
    assert_eq!(client.fetch_values(&base, 1).await, [5]);
    client.delete(&base).await;

    // Another bridge has another store: this one is not told.
    elsewhere.delete_topic(&topic).await;
    let again = CreateTopicRequest { name: topic.clone(), partitions: 1, ..Default::default() };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Err(error) = elsewhere.control().create_topic(again.clone()).await {
        // A broker may still be at deleting it.
        assert!(error.code() == Code::AlreadyExists && tokio::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    elsewhere.produce(&topic, 100..120).await;
    let base = client.consumer(&group, &topic, true).await;
    assert_eq!(client.fetch_values(&base, 20).await, (100..120).collect::<Vec<_>>());
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    tokio::join!(bridge.stop(), other.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_consumer_that_does_not_read_does_not_keep_the_bridge_from_ending() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let record = || Record { value: Some(vec![b'x'; 400_000].into()), ..Default::default() };
    for _ in 0..6 {
        let request = ProduceRequest { topic: topic.clone(), records: (0..5).map(|_| record()).collect(), ..Default::default() };
        client.data().produce(request).await.unwrap();
    }
    let (requests, receiver) = mpsc::channel(1);
    let subscribe = Subscribe {
        group: unique("group"),
        topics: vec![topic.clone()],
        auto_offset_reset: "earliest".into(),
        credit: 100_000,
        ..Subscribe::default()
    };
    requests.send(ConsumeRequest { request: Some(Request::Subscribe(subscribe)) }).await.unwrap();
    let mut stream = client.data().consume(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    // Something has come; from now on nobody reads, while more is there than the connection takes.
    assert!(!stream.next().await.unwrap().unwrap().records.is_empty());
    client.delete_topic(&topic).await;
    // Ends with code 0, so within its deadline.
    bridge.stop().await;
    drop((stream, requests));
}
