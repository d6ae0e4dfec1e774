//! The contract of `RangeReader`, for each implementation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use service_kit::kafka::{self, Isolation, KafkaError, OutRecord, RangeReader, TopicPartition};

use crate::support::{config, eventually, numbered, offsets, produce, read, read_error, to, topic, unique, values, with};

/// A topic whose records carry the broker's time is read by librdkafka at both levels.
const HANDED_OVER: &[(&str, &str)] = &[("message.timestamp.type", "LogAppendTime")];

struct Implementation {
    name: &'static str,
    isolation: Isolation,
    topic: &'static [(&'static str, &'static str)],
}

const IMPLEMENTATIONS: &[Implementation] = &[
    Implementation { name: "rskafka", isolation: Isolation::ReadUncommitted, topic: &[] },
    Implementation { name: "handed-over", isolation: Isolation::ReadUncommitted, topic: HANDED_OVER },
    Implementation { name: "committed", isolation: Isolation::ReadCommitted, topic: &[] },
];

impl Implementation {
    async fn reader(&self) -> Arc<dyn RangeReader> {
        kafka::range_reader(&config(), self.isolation).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_exact_and_in_order() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 2, implementation.topic, async |name| {
            let records = (0..6_000).map(|number| to(&name, number % 2, format!("{:0>100}", number / 2)));
            produce(records.collect()).await;
            let reader = implementation.reader().await;
            let partition = TopicPartition::new(Arc::clone(&name), 1);
            // Forward, onward, again from the start, single, empty, last: seeks, kept records and plain going on.
            for (from, until) in
                [(0, 1_234), (1_234, 1_235), (1_235, 3_000), (0, 3_000), (17, 18), (500, 500), (2_999, 3_000), (18, 40), (39, 41)]
            {
                let records = read(&reader, &partition, from, until).await.unwrap();
                assert_eq!(offsets(&records), (from..until).collect::<Vec<_>>(), "{} {from}..{until}", implementation.name);
                let expected: Vec<String> = (from..until).map(|offset| format!("{offset:0>100}")).collect();
                assert_eq!(values(&records), expected, "{} {from}..{until}", implementation.name);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_read_side_by_side_in_bounded_chunks() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 4, implementation.topic, async |name| {
            // A batch is read whole, so small batches make small chunks.
            let producer = kafka::producer(&with(&[("batch.size", "16384")])).await.unwrap();
            let records = (0..20_000).map(|number| to(&name, number % 4, vec![b'x'; 200]));
            assert!(producer.send(records.collect()).await.iter().all(Result::is_ok));
            let config = with(&[("max.partition.fetch.bytes", "65536")]);
            let reader = kafka::range_reader(&config, implementation.isolation).await.unwrap();
            let reads = (0..4).map(|id| {
                let mut stream = reader.read(TopicPartition::new(Arc::clone(&name), id), 0, 5_000);
                async move {
                    let mut sizes = Vec::new();
                    while let Some(chunk) = stream.next().await {
                        sizes.push(chunk.unwrap().len());
                    }
                    sizes
                }
            });
            for sizes in futures::future::join_all(reads).await {
                assert_eq!(sizes.iter().sum::<usize>(), 5_000, "{}", implementation.name);
                assert!(sizes.len() > 3, "{} gave {sizes:?}", implementation.name);
                assert!(!sizes.contains(&0), "{} gave an empty chunk", implementation.name);
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_of_a_record_arrives() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 1, implementation.topic, async |name| {
            let full = OutRecord {
                topic: Arc::clone(&name),
                partition: Some(0),
                key: Some(Bytes::from_static(b"k")),
                value: Some(Bytes::from_static(b"v")),
                headers: vec![("a".into(), Bytes::from_static(b"1")), ("b".into(), Bytes::new())],
                timestamp_ms: Some(1_700_000_000_123),
            };
            let empty = OutRecord { key: None, value: None, headers: Vec::new(), ..full.clone() };
            produce(vec![full, empty]).await;
            let records = read(&implementation.reader().await, &TopicPartition::new(name, 0), 0, 2).await.unwrap();
            assert_eq!(records[0].key.as_deref(), Some(&b"k"[..]));
            assert_eq!(records[0].value.as_deref(), Some(&b"v"[..]));
            let headers = vec![("a".to_owned(), Some(Bytes::from_static(b"1"))), ("b".to_owned(), Some(Bytes::new()))];
            assert_eq!(records[0].headers, headers, "{}", implementation.name);
            if implementation.topic.is_empty() {
                assert_eq!(records[0].timestamp_ms, 1_700_000_000_123, "{}", implementation.name);
            } else {
                assert!(records[0].timestamp_ms > 1_750_000_000_000, "{}: the broker's time", implementation.name);
            }
            assert_eq!((records[1].key.as_ref(), records[1].value.as_ref()), (None, None));
            assert!(records[1].headers.is_empty());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_bounds_and_times_are_known() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 3, &[], async |name| {
            let reader = implementation.reader().await;
            assert_eq!(reader.partitions(&name).await.unwrap(), [0, 1, 2]);
            let records = (0..10).map(|number| {
                let mut record = to(&name, 1, "v");
                record.timestamp_ms = Some(1_700_000_000_000 + number * 1000);
                record
            });
            produce(records.collect()).await;
            let all: Vec<TopicPartition> = (0..3).map(|id| TopicPartition::new(Arc::clone(&name), id)).collect();
            let bounds = reader.bounds(&all).await.unwrap();
            assert_eq!((bounds[&all[0]].earliest, bounds[&all[0]].latest), (0, 0));
            assert_eq!((bounds[&all[1]].earliest, bounds[&all[1]].latest), (0, 10));
            let at = reader.offsets_at(&all, 1_700_000_003_500).await.unwrap();
            assert_eq!((at[&all[0]], at[&all[1]]), (0, 4), "{}", implementation.name);
            let after = reader.offsets_at(&all, 1_700_000_100_000).await.unwrap();
            assert_eq!(after[&all[1]], 10, "no record so late: the end");
            assert!(reader.bounds(&[]).await.unwrap().is_empty());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_is_said() {
    for implementation in IMPLEMENTATIONS {
        let reader = implementation.reader().await;
        let name = unique("absent");
        let absent = TopicPartition::new(name.as_str(), 0);
        let unknown = KafkaError::UnknownTopic(name.clone());
        assert_eq!(reader.partitions(&name).await, Err(unknown.clone()), "{}", implementation.name);
        assert_eq!(reader.bounds(std::slice::from_ref(&absent)).await, Err(unknown.clone()), "{}", implementation.name);
        if implementation.isolation == Isolation::ReadUncommitted {
            assert_eq!(read_error(&reader, &absent, 0, 5).await, unknown, "{}", implementation.name);
        }
        topic(implementation.name, 1, implementation.topic, async |name| {
            let beyond = TopicPartition::new(Arc::clone(&name), 7);
            let error = reader.bounds(&[beyond]).await.unwrap_err();
            assert!(matches!(&error, KafkaError::Invalid(text) if text.contains("has 1 partitions")), "{error:?}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_out_of_range_are_an_error() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 1, implementation.topic, async |name| {
            produce(numbered(&name, "v", 20)).await;
            delete_until(&name, 5).await;
            let reader = implementation.reader().await;
            let partition = TopicPartition::new(name, 0);
            // Deleted, beyond the end, and ending beyond the end.
            for (from, until, offset) in [(2, 10, 2), (30, 40, 30), (10, 40, 40)] {
                let error = read_error(&reader, &partition, from, until).await;
                let expected = |found: i64| KafkaError::OffsetOutOfRange {
                    partition: Box::new(partition.clone()),
                    offset: found,
                    earliest: 5,
                    latest: 20,
                };
                // Beyond the end either bound may be named.
                assert!(error == expected(offset) || error == expected(until), "{} {from}..{until}: {error:?}", implementation.name);
            }
            let held = read(&reader, &partition, 5, 20).await.unwrap();
            assert_eq!(offsets(&held), (5..20).collect::<Vec<_>>(), "{}", implementation.name);
        })
        .await;
    }
}

/// Ranges cut one after the other while records come in: none lost, none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_that_follow_a_growing_partition_miss_nothing() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 1, implementation.topic, async |name| {
            const COUNT: usize = 3_000;
            let reader = implementation.reader().await;
            let partition = TopicPartition::new(Arc::clone(&name), 0);
            let producer = kafka::producer(&config()).await.unwrap();
            let records = numbered(&name, "v", COUNT);
            let writing = tokio::spawn(async move {
                for batch in records.chunks(50) {
                    for result in producer.send(batch.to_vec()).await {
                        result.unwrap();
                    }
                }
            });
            let mut seen = Vec::new();
            let mut ranges = 0;
            while seen.len() < COUNT {
                let from = seen.len() as i64;
                let bounds = reader.bounds(std::slice::from_ref(&partition)).await.unwrap();
                let until = bounds[&partition].latest;
                seen.extend(offsets(&read(&reader, &partition, from, until).await.unwrap()));
                assert_eq!(seen.len() as i64, until, "{}", implementation.name);
                ranges += 1;
            }
            writing.await.unwrap();
            assert_eq!(seen, (0..COUNT as i64).collect::<Vec<_>>());
            assert!(ranges > 1, "the ranges must follow the writer");
        })
        .await;
    }
}

/// A stream that is dropped in the middle leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_does_not_disturb_the_next() {
    for implementation in IMPLEMENTATIONS {
        topic(implementation.name, 1, implementation.topic, async |name| {
            produce((0..5_000).map(|_| to(&name, 0, vec![b'x'; 100])).collect()).await;
            let config = with(&[("max.partition.fetch.bytes", "10000")]);
            let reader = kafka::range_reader(&config, implementation.isolation).await.unwrap();
            let partition = TopicPartition::new(name, 0);
            for _ in 0..3 {
                let mut stream = reader.read(partition.clone(), 0, 5_000);
                let first = stream.next().await.unwrap().unwrap();
                assert_eq!(first[0].offset, 0);
                drop(stream);
                let whole = read(&reader, &partition, 10, 5_000).await.unwrap();
                assert_eq!(offsets(&whole), (10..5_000).collect::<Vec<_>>(), "{}", implementation.name);
            }
        })
        .await;
    }
}

async fn delete_until(name: &Arc<str>, offset: i64) {
    let servers = crate::support::servers().split(',').map(str::to_owned).collect();
    let client = rskafka::client::ClientBuilder::new(servers).build().await.unwrap();
    let handling = rskafka::client::partition::UnknownTopicHandling::Retry;
    let partition = client.partition_client(name.to_string(), 0, handling).await.unwrap();
    partition.delete_records(offset, 5_000).await.unwrap();
    let reader = kafka::range_reader(&config(), Isolation::ReadUncommitted).await.unwrap();
    let partition = TopicPartition::new(Arc::clone(name), 0);
    eventually("records deleted", Duration::from_secs(10), async || {
        let bounds: BTreeMap<_, _> = reader.bounds(std::slice::from_ref(&partition)).await.unwrap();
        bounds[&partition].earliest == offset
    })
    .await;
}
