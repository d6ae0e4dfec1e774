//! The contract of `Admin`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use service_kit::kafka::{self, KafkaError, TopicPartition};

use crate::support::{admin, config, eventually, produce, to, topic, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_is_described() {
    let cluster = admin().await.cluster().await.unwrap();
    assert!(cluster.id.is_some_and(|id| !id.is_empty()));
    assert!(!cluster.brokers.is_empty());
    assert!(cluster.brokers.iter().any(|broker| Some(broker.id) == cluster.controller), "{:?}", cluster.controller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_lives_and_dies() {
    let admin = admin().await;
    let name = unique("life");
    let settings = BTreeMap::from([("retention.ms".to_owned(), "60000".to_owned())]);

    admin.create_topic(&name, 3, 1, &settings, true).await.unwrap();
    assert_eq!(admin.topic(&name).await, Err(KafkaError::UnknownTopic(name.clone())), "validated only");

    admin.create_topic(&name, 3, 1, &settings, false).await.unwrap();
    assert_eq!(admin.create_topic(&name, 3, 1, &settings, false).await, Err(KafkaError::AlreadyExists(name.clone())));
    let view = admin.topic(&name).await.unwrap();
    assert_eq!(view.partitions.iter().map(|partition| partition.id).collect::<Vec<_>>(), [0, 1, 2]);
    for partition in &view.partitions {
        assert_eq!(partition.replicas.len(), 1);
        assert_eq!(partition.isr, partition.replicas);
        assert_eq!(partition.leader, Some(partition.replicas[0]));
    }
    assert!(admin.topics().await.unwrap().contains(&view));

    let entries = admin.topic_config(&name).await.unwrap();
    let retention = entries.iter().find(|entry| entry.name == "retention.ms").unwrap();
    assert_eq!((retention.value.as_deref(), retention.is_default), (Some("60000"), false));
    assert!(entries.iter().any(|entry| entry.name == "cleanup.policy" && entry.is_default));

    admin.delete_topic(&name).await.unwrap();
    let unknown = KafkaError::UnknownTopic(name.clone());
    eventually("deleted", Duration::from_secs(10), async || admin.topic(&name).await == Err(unknown.clone())).await;
    assert_eq!(admin.delete_topic(&name).await, Err(unknown.clone()));
    assert_eq!(admin.topic_config(&name).await, Err(unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_topics_are_refused_with_the_reason() {
    let admin = admin().await;
    let none = BTreeMap::new();
    let bad = BTreeMap::from([("retention.ms".to_owned(), "soon".to_owned())]);
    for (name, partitions, replication, settings) in [
        (unique("replication"), 1, 99, &none),
        (unique("none"), 0, 1, &none),
        ("no blanks allowed".to_owned(), 1, 1, &none),
        (unique("config"), 1, 1, &bad),
    ] {
        let error = admin.create_topic(&name, partitions, replication, settings, false).await.unwrap_err();
        assert!(matches!(&error, KafkaError::Invalid(text) if text.contains(&name)), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_of_a_group_are_kept_with_metadata() {
    topic("committed", 3, &[], async |name| {
        let admin = admin().await;
        let group = unique("group");
        let partitions: Vec<TopicPartition> = (0..3).map(|id| TopicPartition::new(Arc::clone(&name), id)).collect();
        assert!(admin.committed(&group, None).await.unwrap().is_empty());
        let offsets = [(partitions[0].clone(), 7, "epoch=3".to_owned()), (partitions[2].clone(), 0, String::new())];
        admin.commit(&group, &offsets).await.unwrap();
        let expected = BTreeMap::from([(partitions[0].clone(), (7, "epoch=3".to_owned())), (partitions[2].clone(), (0, String::new()))]);
        assert_eq!(admin.committed(&group, Some(&partitions)).await.unwrap(), expected);
        assert_eq!(admin.committed(&group, None).await.unwrap(), expected);
        assert!(matches!(admin.commit(&group, &[(partitions[0].clone(), -5, String::new())]).await, Err(KafkaError::Invalid(_))));
        assert!(matches!(admin.commit("", &offsets).await, Err(KafkaError::Invalid(_))));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_shows_its_members_and_refuses_foreign_commits() {
    topic("group", 2, &[], async |name| {
        let admin = admin().await;
        let id = unique("group");
        let member = kafka::member(&config(), &id, &[name.to_string()], "earliest").await.unwrap();
        eventually("assigned", Duration::from_secs(20), async || {
            member.poll(1, Duration::from_millis(100)).await.unwrap();
            member.assignment().await.len() == 2
        })
        .await;
        let groups = admin.groups().await.unwrap();
        let group = groups.iter().find(|group| group.id == id).unwrap();
        assert_eq!((group.state.as_str(), group.protocol.as_str(), group.protocol_type.as_str()), ("Stable", "range", "consumer"));
        assert_eq!(group.members.len(), 1);
        assert_eq!(group.members[0].assignment, member.assignment().await);
        let foreign = admin.commit(&id, &[(TopicPartition::new(Arc::clone(&name), 0), 1, String::new())]).await;
        assert!(matches!(foreign, Err(KafkaError::Conflict(_))), "{foreign:?}");
        member.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_have_a_size() {
    topic("size", 1, &[], async |name| {
        let admin = admin().await;
        produce((0..100).map(|_| to(&name, 0, vec![b'x'; 1000])).collect()).await;
        let brokers = admin.cluster().await.unwrap().brokers;
        let sizes = admin.log_bytes().await.unwrap();
        assert_eq!(sizes.keys().copied().collect::<Vec<_>>(), brokers.iter().map(|broker| broker.id).collect::<Vec<_>>());
        assert!(sizes.values().sum::<i64>() >= 100_000, "{sizes:?}");
    })
    .await;
}
