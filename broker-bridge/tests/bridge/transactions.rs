//! Transactions over HTTP and gRPC on a real broker: all or nothing, leases, a kill.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use proto::data::v1::{
    BeginTransactionRequest, EndTransactionRequest, ProduceRequest, Record, TransactionOffset, TransactionOffsetsRequest,
    TransactionProduceRequest,
};
use serde_json::{Value, json};
use service_kit::kafka::{self, Isolation, KafkaConfig, TopicPartition};
use tokio::time::{Instant, sleep};

use crate::{
    Client, JSON,
    process::{Bridge, servers, unique},
};

/// What a reader at `read_committed` sees of a topic of one partition, once nothing is open in it: until then its end is hidden.
async fn committed(topic: &str, expected_end: i64) -> Vec<String> {
    let reader = kafka::range_reader(&KafkaConfig::new(servers()), Isolation::ReadCommitted).await.unwrap();
    let partition = TopicPartition::new(topic, 0);
    let deadline = Instant::now() + Duration::from_secs(15);
    let until = loop {
        let until = reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest;
        if until >= expected_end {
            break until;
        }
        assert!(Instant::now() < deadline, "{topic} ends at {until}, not at {expected_end}: something is open still");
        sleep(Duration::from_millis(50)).await;
    };
    let mut values = Vec::new();
    let mut chunks = reader.read(partition, 0, until);
    while let Some(chunk) = chunks.next().await {
        values.extend(chunk.unwrap().into_iter().map(|record| String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
    }
    values
}

fn records(of: &[(&str, &str)]) -> Value {
    json!({"records": of.iter().map(|(topic, value)| json!({"topic": topic, "value": value})).collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_all_or_nothing_and_end_with_their_lease() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let (a, b, group) = (client.create_topic(1).await, client.create_topic(1).await, unique("group"));
    let text = "application/vnd.kafka.text.v2+json";
    let fails = |(status, answer): (u16, Value), expected: u16, code: u32, message: &str| {
        assert_eq!((status, answer["error_code"].as_u64()), (expected, Some(u64::from(code))), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(message), "{message:?} is not in {answer}");
    };

    // One request, two topics; nothing of one that names a topic which is not there.
    assert_eq!(client.post("/records", text, &records(&[(&a, "1"), (&b, "1"), (&a, "2")])).await, (200, json!({"records": 3})));
    fails(client.post("/records", text, &records(&[(&a, "lost"), ("none", "lost")])).await, 404, 40401, "none");
    fails(client.post("/records", text, &json!({"records": []})).await, 422, 422, "at least one");
    // Each transaction ends with a marker, which takes an offset.
    assert_eq!((committed(&a, 3).await, committed(&b, 2).await), (vec!["1".into(), "2".into()], vec!["1".to_owned()]));

    // Step by step, with a group's offsets; what is not committed is not seen.
    let begin = async || {
        let (status, begun) = client.post("/transactions", JSON, &json!({"lease_ms": 20_000})).await;
        assert_eq!((status, begun["lease_ms"].as_u64()), (201, Some(20_000)), "{begun}");
        begun["base_uri"].as_str().unwrap().to_owned()
    };
    let (kept, dropped) = (begin().await, begin().await);
    assert_eq!(client.post(&format!("{kept}/records"), text, &records(&[(&a, "3"), (&b, "2")])).await.0, 200);
    assert_eq!(client.post(&format!("{dropped}/records"), text, &records(&[(&b, "lost")])).await.0, 200);
    let offsets = json!({"group": group, "offsets": [{"topic": a, "partition": 0, "offset": 2, "metadata": "m"}]});
    assert_eq!(client.post(&format!("{kept}/offsets"), "application/json", &offsets).await.0, 204);
    let admin = kafka::admin(&KafkaConfig::new(servers())).await.unwrap();
    let partition = TopicPartition::new(a.as_str(), 0);
    assert_eq!(client.post(&format!("{dropped}/abort"), "application/json", &Value::Null).await.0, 204);
    assert_eq!(client.post(&format!("{kept}/commit"), "application/json", &Value::Null).await.0, 204);
    assert_eq!((committed(&a, 5).await.len(), committed(&b, 6).await), (3, vec!["1".to_owned(), "2".to_owned()]));
    assert_eq!(
        admin.committed(&group, Some(std::slice::from_ref(&partition))).await.unwrap(),
        BTreeMap::from([(partition, (2, "m".to_owned()))])
    );
    fails(client.post(&format!("{kept}/commit"), "application/json", &Value::Null).await, 404, 40410, "begin another");
    fails(client.post("/transactions", "application/json", &json!({"lease_ms": 61_000})).await, 422, 422, "transactions.timeout");
    fails(client.post("/transactions", "application/json", &json!({"lease_ms": 0})).await, 422, 422, "1 ms");

    // A lease that runs out aborts: the end of the topic is free again long before Kafka's own timeout.
    let (_, short) = client.post("/transactions", JSON, &json!({"lease_ms": 300})).await;
    let short = short["base_uri"].as_str().unwrap().to_owned();
    assert_eq!(client.post(&format!("{short}/records"), text, &records(&[(&a, "lost")])).await.0, 200);
    assert_eq!(committed(&a, 7).await.len(), 3);
    fails(client.post(&format!("{short}/commit"), "application/json", &Value::Null).await, 404, 40410, "lease");

    // The same by gRPC.
    let mut data = client.data();
    let record = |topic: &str, value: &str| Record { topic: topic.into(), value: Some(value.to_owned().into()), ..Record::default() };
    let all = ProduceRequest { records: vec![record(&a, "4"), record(&b, "3")], ..ProduceRequest::default() };
    assert_eq!(data.produce_atomically(all).await.unwrap().into_inner().records, 2);
    let id = data.begin_transaction(BeginTransactionRequest { lease_ms: None }).await.unwrap().into_inner().transaction_id;
    let produce =
        TransactionProduceRequest { transaction_id: id.clone(), topic: a.clone(), records: vec![record("", "5")], encoding: None };
    data.transaction_produce(produce).await.unwrap();
    let offset = TransactionOffset { topic: a.clone(), partition: 0, offset: 5, metadata: String::new() };
    data.transaction_offsets(TransactionOffsetsRequest { transaction_id: id.clone(), group, offsets: vec![offset] }).await.unwrap();
    data.end_transaction(EndTransactionRequest { transaction_id: id.clone(), commit: true }).await.unwrap();
    let again = data.end_transaction(EndTransactionRequest { transaction_id: id, commit: true }).await.unwrap_err();
    assert_eq!(again.code(), tonic::Code::NotFound);
    assert_eq!(committed(&a, 11).await, ["1", "2", "3", "4", "5"]);

    // Killed with one open: the next process takes the writer's id, which aborts it.
    let (_, open) = client.post("/transactions", JSON, &json!({"lease_ms": 60_000})).await;
    let path = open["base_uri"].as_str().unwrap().strip_prefix(&client.base).unwrap().to_owned();
    assert_eq!(client.post(&format!("{path}/records"), text, &records(&[(&a, "lost")])).await.0, 200);
    let bridge = bridge.kill_and_restart().await;
    let client = Client::of(&bridge).await;
    fails(client.post(&format!("{path}/commit"), "application/json", &Value::Null).await, 404, 40410, "its lease ran out");
    for value in ["6", "7"] {
        assert_eq!(client.post("/records", text, &records(&[(&a, value)])).await.0, 200);
    }
    assert_eq!(committed(&a, 17).await, ["1", "2", "3", "4", "5", "6", "7"]);

    let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("millrace_bridge_transactions_open 0") && metrics.contains("outcome=\"committed\"} 2"), "{metrics}");
    client.delete_topic(&a).await;
    client.delete_topic(&b).await;
    bridge.stop().await;
}
