//! The contract of `Member`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use service_kit::kafka::{self, KafkaError, Member, TopicPartition};

use crate::support::{admin, config, eventually, produce, to, topic, unique, values};

const BOUND: Duration = Duration::from_secs(30);

async fn join(group: &str, topic: &str) -> Arc<dyn Member> {
    kafka::member(&config(), group, &[topic.to_owned()], "earliest").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_partitions_and_take_over() {
    topic("share", 2, &[], async |name| {
        produce((0..200).map(|number| to(&name, number % 2, format!("{number}"))).collect()).await;
        let group = unique("group");
        let (first, second) = (join(&group, &name).await, join(&group, &name).await);
        let poll = async |member: &Arc<dyn Member>| member.poll(500, Duration::from_millis(100)).await.unwrap();
        let mut seen = BTreeSet::new();
        eventually("one partition each", BOUND, async || {
            for (partition, record) in [poll(&first).await, poll(&second).await].concat() {
                seen.insert((partition, record.offset));
            }
            first.assignment().await.len() == 1 && second.assignment().await.len() == 1
        })
        .await;
        assert_ne!(first.assignment().await, second.assignment().await);

        // What the first commits is where its successor begins.
        let mine = first.assignment().await.remove(0);
        first.commit(vec![(mine.clone(), 60)], "").await.unwrap();
        assert_eq!(admin().await.committed(&group, None).await.unwrap()[&mine].0, 60);
        first.close().await;
        assert!(matches!(first.poll(1, Duration::ZERO).await, Err(KafkaError::Conflict(_))));
        let mut successor = Vec::new();
        eventually("taken over", BOUND, async || {
            let taken = poll(&second).await.into_iter().filter(|(partition, _)| *partition == mine);
            successor.extend(taken.map(|(_, record)| record.offset));
            successor.len() >= 40
        })
        .await;
        assert_eq!(successor, (60..100).collect::<Vec<_>>());
        second.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polls_are_bounded_and_seek_moves() {
    topic("seek", 1, &[], async |name| {
        produce((0..50).map(|number| to(&name, 0, format!("{number}"))).collect()).await;
        let member = join(&unique("group"), &name).await;
        let mut records = Vec::new();
        eventually("first records", BOUND, async || {
            records = member.poll(7, Duration::from_millis(100)).await.unwrap();
            !records.is_empty()
        })
        .await;
        assert!(records.len() <= 7);
        let partition = TopicPartition::new(name, 0);
        member.seek(&partition, 48).await.unwrap();
        let mut rest = Vec::new();
        eventually("the last two", BOUND, async || {
            rest.extend(member.poll(10, Duration::from_millis(100)).await.unwrap().into_iter().map(|(_, record)| record));
            rest.len() >= 2
        })
        .await;
        assert_eq!(values(&rest), ["48", "49"]);
        let foreign = member.seek(&TopicPartition::new("elsewhere", 0), 1).await;
        assert!(matches!(foreign, Err(KafkaError::Conflict(_))), "{foreign:?}");
        member.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_group_begins_where_it_is_told() {
    topic("reset", 1, &[], async |name| {
        produce(vec![to(&name, 0, "old")]).await;
        let latest = kafka::member(&config(), &unique("group"), &[name.to_string()], "latest").await.unwrap();
        eventually("assigned", BOUND, async || {
            assert!(latest.poll(10, Duration::from_millis(100)).await.unwrap().is_empty());
            !latest.assignment().await.is_empty()
        })
        .await;
        // The position is looked up after the assignment; records sent before that may be skipped, as `latest` says.
        let mut seen = Vec::new();
        eventually("a new record", BOUND, async || {
            produce(vec![to(&name, 0, "new")]).await;
            seen.extend(latest.poll(10, Duration::from_millis(200)).await.unwrap().into_iter().map(|(_, record)| record));
            !seen.is_empty()
        })
        .await;
        assert!(values(&seen).iter().all(|value| value == "new"));
        latest.close().await;

        let none = kafka::member(&config(), &unique("group"), &[name.to_string()], "none").await.unwrap();
        let mut refused = None;
        eventually("no offset", BOUND, async || {
            refused = none.poll(10, Duration::from_millis(100)).await.err();
            refused.is_some()
        })
        .await;
        assert!(matches!(&refused, Some(KafkaError::Conflict(text)) if text.contains("auto.offset.reset")), "{refused:?}");
        none.close().await;

        let Err(error) = kafka::member(&config(), "g", &[name.to_string()], "soon").await else { panic!("accepted") };
        assert!(matches!(&error, KafkaError::Config(text) if text.contains("auto.offset.reset")), "{error:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_is_replaced_with_its_partitions_and_its_place_is_free_at_once_when_it_leaves() {
    topic("static", 2, &[], async |name| {
        produce((0..20).map(|number| to(&name, number % 2, format!("{number}"))).collect()).await;
        let group = unique("group");
        let mut config = config();
        // Nothing here is to come from a session that times out.
        config.set("session.timeout.ms", "45000");
        config.set("heartbeat.interval.ms", "300");
        let mut static_config = config.clone();
        static_config.set("group.instance.id", "one");
        let topics = [name.to_string()];
        let static_member = async || kafka::member(&static_config, &group, &topics, "earliest").await.unwrap();
        let poll = async |member: &Arc<dyn Member>| member.poll(500, Duration::from_millis(50)).await;
        let owned = async |member: &Arc<dyn Member>, count: usize| {
            eventually("its partitions", BOUND, async || {
                poll(member).await.unwrap();
                member.assignment().await.len() == count
            })
            .await;
        };
        let first = static_member().await;
        owned(&first, 2).await;
        let second = static_member().await;
        owned(&second, 2).await;
        let mut fenced = None;
        eventually("fenced", BOUND, async || {
            fenced = poll(&first).await.err();
            fenced.is_some()
        })
        .await;
        assert!(matches!(fenced, Some(KafkaError::Fenced(_))), "{fenced:?}");
        first.close().await;

        // Released, its place waits for it.
        second.release().await;
        let ordinary = kafka::member(&config, &group, &topics, "earliest").await.unwrap();
        let third = static_member().await;
        tokio::join!(owned(&third, 1), owned(&ordinary, 1));
        // Closed, its partitions are the other one's at once; also when one is closed that has taken a place and has not joined yet.
        let begun = Instant::now();
        tokio::join!(owned(&ordinary, 2), third.close());
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        let fourth = static_member().await;
        tokio::join!(owned(&ordinary, 1), owned(&fourth, 1));
        fourth.release().await;
        let begun = Instant::now();
        let fifth = static_member().await;
        tokio::join!(owned(&ordinary, 2), fifth.close());
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        ordinary.close().await;
    })
    .await;
}
