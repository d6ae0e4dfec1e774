//! What was found about the client crates, shown on the broker, so that the choice can be looked at again when one of
//! these tests fails with a newer crate.
//!
//! Not shown, because there is nothing to call: rskafka has no groups, transactions or idempotence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rskafka::chrono::{TimeZone, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling};
use rskafka::record::Record;
use service_kit::kafka::{self, Isolation, KafkaConfig, TopicPartition};

use crate::support::{Proxy, capture_log, config, eventually, logged, numbered, produce, read, servers, to, topic, unique, values};

async fn raw(servers: &str, topic: &Arc<str>) -> PartitionClient {
    let servers = servers.split(',').map(str::to_owned).collect();
    let client = ClientBuilder::new(servers).build().await.unwrap();
    client.partition_client(topic.to_string(), 0, UnknownTopicHandling::Retry).await.unwrap()
}

/// rskafka fails on the marks of transactions; our reader hands the partition over, once, and reads everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rskafka_cannot_read_transactions_and_is_relieved() {
    capture_log();
    topic("control", 1, &[], async |name| {
        produce(numbered(&name, "plain", 2)).await;
        let mut writer = kafka::transactional_writer(&config(), &unique("control")).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "committed", 2)).await.unwrap();
        writer.commit().await.unwrap();

        let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        // A commit is answered before its mark is written.
        eventually("the mark is there", Duration::from_secs(10), async || {
            reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest == 5
        })
        .await;
        let error = raw(&servers(), &name).await.fetch_records(0, 1..1_000_000, 500).await.unwrap_err();
        assert!(error.to_string().contains("control batch"), "{error}");

        for _ in 0..3 {
            let seen = values(&read(&reader, &partition, 0, 5).await.unwrap());
            assert_eq!(seen, ["plain-0", "plain-1", "committed-0", "committed-1"]);
        }
        let lines = logged(&format!("{name}-0"));
        let reported = lines.iter().filter(|line| line.contains("read by librdkafka from here on")).count();
        assert_eq!(reported, 1, "{lines:?}");
    })
    .await;
}

/// rskafka's latest offset is the last stable one; ours at `read_uncommitted` is the high watermark.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rskafka_asks_for_offsets_as_a_committed_reader() {
    topic("stable", 1, &[], async |name| {
        produce(numbered(&name, "plain", 2)).await;
        let mut writer = kafka::transactional_writer(&config(), &unique("stable")).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "open", 3)).await.unwrap();
        assert_eq!(raw(&servers(), &name).await.get_offset(OffsetAt::Latest).await.unwrap(), 2);
        let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        assert_eq!(reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest, 5);
        writer.abort().await.unwrap();
    })
    .await;
}

/// rskafka gives the producer's time where the topic asks for the broker's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rskafka_ignores_log_append_time() {
    topic("append", 1, &[("message.timestamp.type", "LogAppendTime")], async |name| {
        let mut record = to(&name, 0, "v");
        record.timestamp_ms = Some(1_000);
        produce(vec![record]).await;
        let (records, _) = raw(&servers(), &name).await.fetch_records(0, 1..1_000_000, 500).await.unwrap();
        assert_eq!(records[0].record.timestamp, Utc.timestamp_millis_opt(1_000).unwrap());
        let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
        let ours = read(&reader, &TopicPartition::new(name, 0), 0, 1).await.unwrap();
        assert!(ours[0].timestamp_ms > 1_700_000_000_000, "{}", ours[0].timestamp_ms);
    })
    .await;
}

/// rskafka writes a request over 8 KiB as its length and the rest, without TCP_NODELAY: the rest waits for the
/// broker's delayed acknowledgement, 40 ms. librdkafka and small requests do not show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rskafka_writes_larger_requests_in_two_pieces() {
    const REQUESTS: usize = 20;
    topic("pieces", 1, &[], async |name| {
        let split_of = async |bytes: usize| {
            let proxy = Proxy::start().await;
            let client = raw(&proxy.servers, &name).await;
            let before = (proxy.split_requests.load(Ordering::Relaxed), proxy.requests.load(Ordering::Relaxed));
            for _ in 0..REQUESTS {
                let record = Record {
                    key: None,
                    value: Some(vec![b'x'; bytes]),
                    headers: BTreeMap::new(),
                    timestamp: Utc.timestamp_millis_opt(1_000).unwrap(),
                };
                client.produce(vec![record], Compression::NoCompression).await.unwrap();
            }
            assert_eq!(proxy.requests.load(Ordering::Relaxed) - before.1, REQUESTS);
            proxy.split_requests.load(Ordering::Relaxed) - before.0
        };
        assert_eq!(split_of(1_000).await, 0, "a small request is one piece");
        let split = split_of(32_000).await;
        assert!(split >= REQUESTS * 3 / 4, "{split} of {REQUESTS} requests of 32 kB came in two pieces");

        let proxy = Proxy::start().await;
        let producer = kafka::producer(&KafkaConfig::new(&proxy.servers)).await.unwrap();
        for _ in 0..REQUESTS {
            producer.send(vec![to(&name, 0, vec![b'x'; 32_000])]).await.remove(0).unwrap();
        }
        assert_eq!(proxy.split_requests.load(Ordering::Relaxed), 0, "librdkafka writes it at once");
    })
    .await;
}
