//! What a job's slots stand on: members on hold, offsets that carry a member's identity, and tails.

use std::sync::Arc;
use std::time::Duration;

use service_kit::kafka::{self, Isolation, KafkaConfig, KafkaError, MemberOnHold, Tail, TailEvent, TopicPartition};
use tokio::time::timeout;

use crate::support::{admin, config, eventually, numbered, produce, topic, unique, values, with};

const BOUND: Duration = Duration::from_secs(30);

async fn given(member: &Arc<dyn MemberOnHold>, count: usize) -> Vec<TopicPartition> {
    let mut assignment = member.assignment();
    let what = "its partitions";
    let seen = timeout(BOUND, assignment.wait_for(|assignment| assignment.partitions.len() == count)).await.expect(what).unwrap();
    seen.partitions.clone()
}

fn quick() -> KafkaConfig {
    with(&[("heartbeat.interval.ms", "300"), ("session.timeout.ms", "30000")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_generation_commits_nothing_and_the_new_one_does() {
    topic("generation", 2, &[], async |name| {
        let group = unique("group");
        let input = TopicPartition::new(Arc::clone(&name), 0);
        let first = kafka::member_on_hold(&quick(), &group, &name).await.unwrap();
        let partitions = given(&first, 2).await;
        assert!(first.holds(&partitions[0]).await.unwrap());
        let stale = first.identity().await.unwrap();

        let second = kafka::member_on_hold(&quick(), &group, &name).await.unwrap();
        let (mine, other) = tokio::join!(given(&first, 1), given(&second, 1));
        assert_ne!(mine, other);
        eventually("the coordinator says so too", BOUND, async || {
            first.holds(&mine[0]).await.unwrap() && !first.holds(&other[0]).await.unwrap()
        })
        .await;

        let mut writer = kafka::transactional_writer(&config(), &unique("generation")).await.unwrap();
        writer.begin().await.unwrap();
        writer.queue(numbered(&name, "stale", 2)).await.unwrap();
        let refused = writer.offsets_of(&stale, vec![(input.clone(), 7, String::new())]).await;
        assert!(matches!(refused, Err(KafkaError::Conflict(_))), "{refused:?}");
        assert!(writer.commit().await.is_err(), "the transaction can only be aborted");
        writer.abort().await.unwrap();

        // The writer is as good as before.
        writer.begin().await.unwrap();
        writer.queue(numbered(&name, "current", 1)).await.unwrap();
        let current = first.identity().await.unwrap();
        writer.offsets_of(&current, vec![(input.clone(), 9, "batch 4".into())]).await.unwrap();
        writer.commit().await.unwrap();
        let committed = admin().await.committed(&group, Some(std::slice::from_ref(&input))).await.unwrap();
        assert_eq!(committed[&input], (9, "batch 4".to_owned()));
        let mut tail = tail_of(&input).await;
        assert_eq!(texts(&mut tail).await, ["current-0"]);
        first.close().await;
        assert_eq!(given(&second, 2).await, partitions);
        second.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_on_hold_is_replaced_and_told_so() {
    topic("seat", 3, &[], async |name| {
        let group = unique("group");
        let mut config = quick();
        config.set("group.instance.id", "worker-0");
        let first = kafka::member_on_hold(&config, &group, &name).await.unwrap();
        let partitions = given(&first, 3).await;
        let old = first.identity().await.unwrap();
        let second = kafka::member_on_hold(&config, &group, &name).await.unwrap();
        given(&second, 3).await;
        let mut assignment = first.assignment();
        let over = timeout(BOUND, assignment.wait_for(|assignment| assignment.over.is_some())).await.expect("told").unwrap().over.clone();
        assert!(matches!(over, Some(KafkaError::Fenced(_))), "{over:?}");
        assert!(second.holds(&partitions[2]).await.unwrap());
        assert!(!first.holds(&partitions[2]).await.unwrap());

        let mut writer = kafka::transactional_writer(&config, &unique("seat")).await.unwrap();
        writer.begin().await.unwrap();
        let refused = writer.offsets_of(&old, vec![(partitions[0].clone(), 1, String::new())]).await;
        assert!(matches!(refused, Err(KafkaError::Fenced(_))), "{refused:?}");
        drop(first);
        second.close().await;
    })
    .await;
}

async fn tail_of(partition: &TopicPartition) -> Tail {
    let reader = kafka::range_reader(&with(&[("fetch.max.wait.ms", "20")]), Isolation::ReadCommitted).await.unwrap();
    Tail::new(reader, partition.clone(), 0)
}

/// What comes until the tail has caught up.
async fn texts(tail: &mut Tail) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        match timeout(BOUND, tail.next()).await.expect("an event").unwrap() {
            TailEvent::Records(records) => texts.extend(values(&records)),
            TailEvent::CaughtUp(_) => return texts,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_ends_at_the_first_open_transaction_goes_on_behind_it_and_passes_what_was_aborted() {
    topic("tail", 1, &[], async |name| {
        let partition = TopicPartition::new(Arc::clone(&name), 0);
        produce(numbered(&name, "plain", 2)).await;
        let mut tail = tail_of(&partition).await;
        assert_eq!(texts(&mut tail).await, ["plain-0", "plain-1"]);

        let mut writer = kafka::transactional_writer(&config(), &unique("tail")).await.unwrap();
        writer.begin().await.unwrap();
        writer.send(numbered(&name, "aborted", 3)).await.unwrap();
        // Behind the open one, and not to be seen before it has ended.
        produce(numbered(&name, "behind", 1)).await;
        let mut fresh = tail_of(&partition).await;
        assert_eq!(texts(&mut fresh).await, ["plain-0", "plain-1"]);
        writer.abort().await.unwrap();
        for tail in [&mut tail, &mut fresh] {
            assert_eq!(texts(tail).await, ["behind-0"]);
        }

        writer.begin().await.unwrap();
        writer.send(numbered(&name, "kept", 2)).await.unwrap();
        writer.commit().await.unwrap();
        for tail in [&mut tail, &mut fresh] {
            assert_eq!(texts(tail).await, ["kept-0", "kept-1"]);
        }

        // What nobody needs any more is removed; who still wanted it is told.
        admin().await.delete_records(&[(partition.clone(), 6)]).await.unwrap();
        let refused = tail_of(&partition).await.next().await;
        assert!(matches!(refused, Err(KafkaError::OffsetOutOfRange { offset: 0, earliest: 6, .. })), "{refused:?}");
    })
    .await;
}
