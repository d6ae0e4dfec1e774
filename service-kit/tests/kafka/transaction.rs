//! The contract of `TransactionalWriter`, and what readers see of transactions.

use std::sync::Arc;
use std::time::Duration;

use service_kit::kafka::{self, Isolation, KafkaError, RangeReader, TopicPartition};

use crate::support::{Proxy, admin, config, eventually, numbered, offsets, produce, read, to, topic, unique, values, with};

/// Offsets: plain 0–2, committed 3–7 and its mark 8, aborted 9–12 and its mark 13, committed 14–15 and its mark 16.
async fn mixed(name: &Arc<str>) {
    produce(numbered(name, "plain", 3)).await;
    let mut writer = kafka::transactional_writer(&config(), &unique("mixed")).await.unwrap();
    writer.begin().await.unwrap();
    writer.send(numbered(name, "first", 5)).await.unwrap();
    writer.commit().await.unwrap();
    writer.begin().await.unwrap();
    writer.send(numbered(name, "aborted", 4)).await.unwrap();
    writer.abort().await.unwrap();
    writer.begin().await.unwrap();
    writer.send(numbered(name, "second", 2)).await.unwrap();
    writer.commit().await.unwrap();
}

const COMMITTED: &[i64] = &[0, 1, 2, 3, 4, 5, 6, 7, 14, 15];
const ALL: &[i64] = &[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15];
const END: i64 = 17;

async fn reader(isolation: Isolation) -> Arc<dyn RangeReader> {
    kafka::range_reader(&config(), isolation).await.unwrap()
}

/// Waits until the mark of the latest transaction is visible: the coordinator writes it just after it has answered.
async fn settled(reader: &Arc<dyn RangeReader>, partition: &TopicPartition, latest: i64) {
    eventually("the mark is visible", Duration::from_secs(10), async || {
        reader.bounds(std::slice::from_ref(partition)).await.unwrap()[partition].latest == latest
    })
    .await;
}

/// Waits until no transaction is open in the partition; its end.
async fn eventually_committed(committed: &Arc<dyn RangeReader>, partition: &TopicPartition) -> i64 {
    let uncommitted = reader(Isolation::ReadUncommitted).await;
    let mut end = 0;
    eventually("no open transaction", Duration::from_secs(10), async || {
        let of = async |reader: &Arc<dyn RangeReader>| reader.bounds(std::slice::from_ref(partition)).await.unwrap()[partition].latest;
        end = of(&uncommitted).await;
        of(committed).await == end
    })
    .await;
    end
}

/// Every range over marks and aborted records, whatever its ends: exactly the records in it, and the stream ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_range_over_transactions_is_exact() {
    topic("mixed", 1, &[], async |name| {
        mixed(&name).await;
        let partition = TopicPartition::new(name, 0);
        for (isolation, visible) in [(Isolation::ReadCommitted, COMMITTED), (Isolation::ReadUncommitted, ALL)] {
            // Each range seeks, and a seek waits for the fetch under way at the end of the partition.
            let config = with(&[("fetch.max.wait.ms", "10")]);
            let reader = kafka::range_reader(&config, isolation).await.unwrap();
            settled(&reader, &partition, END).await;
            for from in 0..END {
                for until in from..=END {
                    let expected: Vec<i64> = visible.iter().copied().filter(|offset| (from..until).contains(offset)).collect();
                    let records = read(&reader, &partition, from, until).await.unwrap();
                    assert_eq!(offsets(&records), expected, "{isolation:?} {from}..{until}");
                }
            }
        }
    })
    .await;
}

/// The usual course of an exactly-once job: each range ends with the mark of a commit, and the next begins there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consecutive_ranges_that_end_in_marks_miss_nothing() {
    topic("marks", 1, &[], async |name| {
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        let mut writer = kafka::transactional_writer(&config(), &unique("marks")).await.unwrap();
        let readers = [reader(Isolation::ReadCommitted).await, reader(Isolation::ReadUncommitted).await];
        let mut from = [0, 0];
        for round in 0..10 {
            writer.begin().await.unwrap();
            writer.send(numbered(&name, &format!("round-{round}"), 7)).await.unwrap();
            writer.commit().await.unwrap();
            for (reader, from) in readers.iter().zip(&mut from) {
                let until = *from + 8;
                settled(reader, &partition, until).await;
                let records = read(reader, &partition, *from, until).await.unwrap();
                let expected: Vec<String> = (0..7).map(|number| format!("round-{round}-{number}")).collect();
                assert_eq!(values(&records), expected);
                *from = until;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_holds_back_committed_readers_only() {
    topic("open", 1, &[], async |name| {
        produce(numbered(&name, "plain", 2)).await;
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        let (committed, uncommitted) = (reader(Isolation::ReadCommitted).await, reader(Isolation::ReadUncommitted).await);
        let latest =
            async |reader: &Arc<dyn RangeReader>| reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest;
        let mut writer = kafka::transactional_writer(&config(), &unique("open")).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "open", 3)).await.unwrap();
        assert_eq!((latest(&committed).await, latest(&uncommitted).await), (2, 5));
        assert_eq!(read(&committed, &partition, 0, 2).await.unwrap().len(), 2);
        assert_eq!(read(&uncommitted, &partition, 0, 5).await.unwrap().len(), 5);
        writer.commit().await.unwrap();
        settled(&committed, &partition, 6).await;
        settled(&uncommitted, &partition, 6).await;
        assert_eq!(read(&committed, &partition, 2, 6).await.unwrap().len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_and_their_metadata_are_part_of_the_transaction() {
    topic("offsets", 2, &[], async |name| {
        let admin = admin().await;
        let group = unique("group");
        let partitions = [TopicPartition::new(Arc::clone(&name), 0), TopicPartition::new(Arc::clone(&name), 1)];
        let committed = async || admin.committed(&group, Some(&partitions)).await.unwrap();
        let mut writer = kafka::transactional_writer(&config(), &unique("offsets")).await.unwrap();

        writer.begin().await.unwrap();
        writer.send(numbered(&name, "a", 1)).await.unwrap();
        let first = vec![(partitions[0].clone(), 11, "batch-1".to_owned()), (partitions[1].clone(), 12, String::new())];
        writer.offsets(&group, first).await.unwrap();
        writer.commit().await.unwrap();
        let after = committed().await;
        assert_eq!(after[&partitions[0]], (11, "batch-1".to_owned()));
        assert_eq!(after[&partitions[1]], (12, String::new()));

        writer.begin().await.unwrap();
        writer.offsets(&group, vec![(partitions[0].clone(), 99, "batch-2".into())]).await.unwrap();
        writer.abort().await.unwrap();
        assert_eq!(committed().await, after, "an abort leaves the offsets");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_writer_fences_the_first_and_aborts_what_it_left() {
    topic("fenced", 1, &[], async |name| {
        let id = unique("fenced");
        let mut first = kafka::transactional_writer(&config(), &id).await.unwrap();
        first.begin().await.unwrap();
        first.send(numbered(&name, "lost", 3)).await.unwrap();

        let mut second = kafka::transactional_writer(&config(), &id).await.unwrap();
        let error = first.commit().await.unwrap_err();
        assert!(matches!(error, KafkaError::Fenced(_)), "{error:?}");
        for again in [first.begin().await, first.commit().await, first.abort().await] {
            assert_eq!(again, Err(error.clone()), "a fenced writer stays fenced");
        }
        assert_eq!(first.send(numbered(&name, "lost", 1)).await, Err(error));

        second.begin().await.unwrap();
        second.send(numbered(&name, "kept", 2)).await.unwrap();
        second.commit().await.unwrap();
        let reader = reader(Isolation::ReadCommitted).await;
        let partition = TopicPartition::new(name, 0);
        // Three lost and their mark, two kept and theirs.
        settled(&reader, &partition, 7).await;
        assert_eq!(values(&read(&reader, &partition, 0, 7).await.unwrap()), ["kept-0", "kept-1"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_record_leaves_only_the_way_of_abort() {
    topic("failed", 1, &[], async |name| {
        let mut writer = kafka::transactional_writer(&config(), &unique("failed")).await.unwrap();
        writer.begin().await.unwrap();
        let mut records = numbered(&name, "gone", 2);
        records.push(to(&name, 0, vec![0; 2 << 20]));
        let error = writer.send(records).await.unwrap_err();
        assert!(matches!(error, KafkaError::TooLarge { .. }), "{error:?}");
        assert!(matches!(writer.commit().await, Err(KafkaError::Conflict(_))));
        writer.abort().await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "kept", 1)).await.unwrap();
        writer.commit().await.unwrap();
        let reader = reader(Isolation::ReadCommitted).await;
        let partition = TopicPartition::new(name, 0);
        let latest = eventually_committed(&reader, &partition).await;
        assert_eq!(values(&read(&reader, &partition, 0, latest).await.unwrap()), ["kept-0"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_is_settled_by_the_commit() {
    topic("queued", 1, &[], async |name| {
        let mut writer = kafka::transactional_writer(&config(), &unique("queued")).await.unwrap();
        writer.begin().await.unwrap();
        for round in 0..10 {
            writer.queue(numbered(&name, &format!("kept-{round}"), 1000)).await.unwrap();
        }
        writer.commit().await.unwrap();
        writer.begin().await.unwrap();
        writer.queue(vec![to(&name, 0, vec![0; 2 << 20])]).await.unwrap();
        assert!(matches!(writer.commit().await, Err(KafkaError::TooLarge { .. })));
        writer.abort().await.unwrap();
        // What an aborted transaction left under way does not concern the next one.
        writer.begin().await.unwrap();
        writer.queue(vec![to(&name, 0, vec![0; 2 << 20])]).await.unwrap();
        writer.abort().await.unwrap();
        writer.begin().await.unwrap();
        writer.queue(numbered(&name, "last", 1)).await.unwrap();
        writer.commit().await.unwrap();
        let reader = reader(Isolation::ReadCommitted).await;
        let partition = TopicPartition::new(name, 0);
        let latest = eventually_committed(&reader, &partition).await;
        let expected = (0..10).flat_map(|round| (0..1000).map(move |n| format!("kept-{round}-{n}"))).chain(["last-0".to_owned()]);
        assert_eq!(values(&read(&reader, &partition, 0, latest).await.unwrap()), expected.collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_out_of_order_are_refused() {
    topic("order", 1, &[], async |name| {
        let mut writer = kafka::transactional_writer(&config(), &unique("order")).await.unwrap();
        assert!(matches!(writer.commit().await, Err(KafkaError::Conflict(_))));
        assert!(matches!(writer.abort().await, Err(KafkaError::Conflict(_))));
        assert!(matches!(writer.send(numbered(&name, "x", 1)).await, Err(KafkaError::Conflict(_))));
        writer.begin().await.unwrap();
        assert!(matches!(writer.begin().await, Err(KafkaError::Conflict(_))));
        // An empty transaction is one.
        writer.commit().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_writer_ends_its_transaction() {
    topic("dropped", 1, &[], async |name| {
        let mut writer = kafka::transactional_writer(&config(), &unique("dropped")).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "gone", 1)).await.unwrap();
        drop(writer);
        let reader = reader(Isolation::ReadCommitted).await;
        let partition = TopicPartition::new(name, 0);
        // transaction.timeout.ms would take a minute.
        eventually("aborted", Duration::from_secs(20), async || {
            reader.bounds(std::slice::from_ref(&partition)).await.unwrap()[&partition].latest == 2
        })
        .await;
        assert!(read(&reader, &partition, 0, 2).await.unwrap().is_empty());
    })
    .await;
}

/// A commit whose answer is lost: the writer says so and refuses everything; a new one with the id goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_poisons_the_writer() {
    topic("unknown", 1, &[], async |name| {
        let proxy = Proxy::start().await;
        let id = unique("unknown");
        let mut config = with(&[("default.api.timeout.ms", "1500"), ("transaction.timeout.ms", "20000")]);
        config.set("bootstrap.servers", &proxy.servers);
        let mut writer = kafka::transactional_writer(&config, &id).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "maybe", 2)).await.unwrap();
        proxy.cut().await;
        let error = writer.commit().await.unwrap_err();
        assert!(matches!(error, KafkaError::OutcomeUnknown(_)), "{error:?}");
        assert_eq!(writer.abort().await, Err(error.clone()));
        assert_eq!(writer.begin().await, Err(error));
        proxy.restore();
        drop(writer);
        let mut next = kafka::transactional_writer(&crate::support::config(), &id).await.unwrap();
        next.begin().await.unwrap();
        next.send(numbered(&name, "sure", 1)).await.unwrap();
        next.commit().await.unwrap();
        let reader = reader(Isolation::ReadCommitted).await;
        let partition = TopicPartition::new(name, 0);
        let latest = eventually_committed(&reader, &partition).await;
        let seen = values(&read(&reader, &partition, 0, latest).await.unwrap());
        assert_eq!(seen, ["sure-0"], "the request never reached the broker, so the new writer aborted it");
    })
    .await;
}
