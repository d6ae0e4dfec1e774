//! The contract of `Producer`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use service_kit::kafka::{self, Isolation, KafkaConfig, KafkaError, OutRecord, Producer, TopicPartition};

use crate::own_broker::OwnBroker;
use crate::support::{config, numbered, offsets, read, to, topic, unique, values, with};

async fn producer(config: &KafkaConfig) -> Arc<dyn Producer> {
    kafka::producer(config).await.unwrap()
}

fn keyless(topic: &Arc<str>, count: usize) -> Vec<OutRecord> {
    (0..count).map(|number| OutRecord { partition: None, ..to(topic, 0, format!("{number}")) }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_result_per_record_in_order() {
    topic("results", 2, &[], async |name| {
        let producer = producer(&config()).await;
        let records: Vec<OutRecord> = (0..5_000).map(|number| to(&name, number % 2, format!("{number}"))).collect();
        let results = producer.send(records).await;
        assert_eq!(results.len(), 5_000);
        for (index, result) in results.into_iter().enumerate() {
            let written = result.unwrap();
            assert_eq!((written.partition, written.offset), ((index % 2) as i32, (index / 2) as i64));
        }
        let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
        let odd = read(&reader, &TopicPartition::new(name, 1), 0, 2_500).await.unwrap();
        assert_eq!(values(&odd), (0..2_500).map(|number| format!("{}", number * 2 + 1)).collect::<Vec<_>>());
        assert!(producer.send(Vec::new()).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_calls_keep_their_own_order() {
    topic("concurrent", 1, &[], async |name| {
        let producer = producer(&config()).await;
        let calls = (0..8).map(|call| {
            let producer = Arc::clone(&producer);
            let records = numbered(&name, &format!("call-{call}"), 3_000);
            tokio::spawn(async move { producer.send(records).await })
        });
        for results in futures::future::join_all(calls).await {
            let mut last = -1;
            for result in results.unwrap() {
                let offset = result.unwrap().offset;
                assert!(offset > last);
                last = offset;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversize_record_fails_alone() {
    // Larger than the producer allows; and larger than the topic allows, where the broker refuses the whole request.
    for (settings, size, max) in [(&[][..], 2 << 20, 1_048_576), (&[("max.message.bytes", "20000")][..], 30_000, 1_048_576)] {
        topic("oversize", 1, settings, async |name| {
            let producer = producer(&config()).await;
            let mut records = numbered(&name, "small", 4_000);
            records[2_000] = to(&name, 0, vec![b'x'; size]);
            for (index, result) in producer.send(records).await.into_iter().enumerate() {
                if index == 2_000 {
                    assert_eq!(result, Err(KafkaError::TooLarge { bytes: size, max }));
                } else {
                    result.unwrap();
                }
            }
            let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
            let mut seen = values(&read(&reader, &TopicPartition::new(name, 0), 0, 3_999).await.unwrap());
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 3_999, "each of the others once");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_gets_its_own_error() {
    // The shared broker creates a topic that a producer names.
    let broker = OwnBroker::start(&["--no-auto-create"]);
    let admin = kafka::admin(&KafkaConfig::new(broker.servers.as_str())).await.unwrap();
    let (name, absent): (Arc<str>, Arc<str>) = (unique("errors").into(), unique("absent").into());
    admin.create_topic(&name, 1, 1, &BTreeMap::new(), false).await.unwrap();
    let mut config = KafkaConfig::new(broker.servers.as_str());
    config.set("max.block.ms", "1000");
    let producer = producer(&config).await;
    let records = vec![to(&name, 0, "a"), to(&absent, 0, "b"), to(&name, 9, "c"), to(&name, 0, "d")];
    let results = producer.send(records).await;
    results[0].as_ref().unwrap();
    results[3].as_ref().unwrap();
    let error = results[2].as_ref().unwrap_err();
    assert!(matches!(error, KafkaError::Invalid(text) if text.contains("no partition 9")), "{error:?}");
    assert_eq!(results[1], Err(KafkaError::UnknownTopic(absent.to_string())));
    // Made meanwhile: found without a new producer.
    admin.create_topic(&absent, 1, 1, &BTreeMap::new(), false).await.unwrap();
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        outcomes.push(producer.send(vec![to(&absent, 0, "b")]).await.remove(0));
        if outcomes.last().is_some_and(Result::is_ok) {
            break;
        }
    }
    assert!(outcomes.last().unwrap().is_ok(), "{outcomes:?}");
}

/// Keys go where Java's clients send them (murmur2, vectors from Kafka's own tests).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_partitioned_as_in_java() {
    topic("keys", 7, &[], async |name| {
        let vectors: [(&str, i32); 4] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
        ];
        let record = |key: &str| OutRecord { partition: None, key: Some(Bytes::copy_from_slice(key.as_bytes())), ..to(&name, 0, "v") };
        let results = producer(&config()).await.send(vectors.iter().map(|(key, _)| record(key)).collect()).await;
        for ((key, hash), result) in vectors.iter().zip(results) {
            assert_eq!(result.unwrap().partition, (hash & 0x7fff_ffff) % 7, "{key}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyless_records_stay_together() {
    topic("sticky", 8, &[], async |name| {
        let producer = producer(&with(&[("linger.ms", "50")])).await;
        // Until the first record has found a leader, partitions are taken at random.
        for result in producer.send(keyless(&name, 1)).await {
            result.unwrap();
        }
        let results = producer.send(keyless(&name, 1_000)).await;
        let partitions: Vec<i32> = results.into_iter().map(|result| result.unwrap().partition).collect();
        let switches = partitions.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(switches < 20, "{switches} switches among 1,000 records; at random there would be 875");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_of_the_configuration_are_used() {
    topic("acks", 1, &[], async |name| {
        for (acks, offset) in [("1", 0), ("all", 1), ("0", -1)] {
            let results = producer(&with(&[("acks", acks)])).await.send(numbered(&name, "v", 1)).await;
            assert_eq!(results[0].as_ref().unwrap().offset, offset, "acks = {acks}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_ends_a_long_linger() {
    topic("flush", 1, &[], async |name| {
        let producer = producer(&with(&[("linger.ms", "60000")])).await;
        let sender = Arc::clone(&producer);
        let records = numbered(&name, "v", 10);
        let sending = tokio::spawn(async move { sender.send(records).await });
        let flushing = async {
            while !sending.is_finished() {
                producer.flush(Duration::from_secs(10)).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), flushing).await.expect("flush does not wait for linger.ms");
        assert!(sending.await.unwrap().into_iter().all(|result| result.is_ok()));
    })
    .await;
}

/// Memory is bounded by `buffer.memory`: far more than it holds goes through all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_buffer_waits_and_drops_nothing() {
    topic("buffer", 1, &[], async |name| {
        let producer = producer(&with(&[("buffer.memory", "1048576")])).await;
        let records: Vec<OutRecord> = (0..20_000).map(|_| to(&name, 0, vec![b'x'; 500])).collect();
        let results = producer.send(records).await;
        let written: Vec<i64> = results.into_iter().map(|result| result.unwrap().offset).collect();
        assert_eq!(written, (0..20_000).collect::<Vec<_>>());
        let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
        let records = read(&reader, &TopicPartition::new(name, 0), 0, 20_000).await.unwrap();
        assert_eq!(offsets(&records).len(), 20_000);
    })
    .await;
}
