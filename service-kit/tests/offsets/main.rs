//! `service_kit::offsets` on real servers, which the tests start (`deploy/dev`): the contract, two processes' worth of clients, writers that are
//! killed, and a server that goes away and comes back.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod conformance;
mod kill;
mod servers;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use service_kit::{
    hbase::{Hbase, HbaseConfig, Row},
    kafka::{self, KafkaConfig, TopicPartition},
    offsets::{self, OffsetCommit, OffsetError, OffsetStore, SledOffsets},
};

use conformance::Facts;
use servers::{Proxy, Server};

/// Kinds of stores, as a killed child is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Sled,
    Redis,
    Zookeeper,
    Hbase,
    Kafka,
}

pub(crate) const KINDS: [Kind; 5] = [Kind::Sled, Kind::Redis, Kind::Zookeeper, Kind::Hbase, Kind::Kafka];

const BOUND: Duration = Duration::from_secs(20);

pub(crate) fn open(kind: Kind, address: &str, bound: Duration) -> Arc<dyn OffsetStore> {
    match kind {
        Kind::Sled => Arc::new(SledOffsets::open(Path::new(address)).unwrap()),
        Kind::Redis => Arc::new(offsets::redis(address, bound).unwrap()),
        Kind::Zookeeper => Arc::new(offsets::zookeeper(address, bound).unwrap()),
        Kind::Hbase => Arc::new(offsets::hbase(address, "offsets", bound).unwrap()),
        Kind::Kafka => Arc::new(offsets::kafka(&KafkaConfig::new(address), "_offsets", bound).unwrap()),
    }
}

async fn contract(kind: Kind, address: &str) {
    // Kafka knows only partitions that exist, and processes that write one group there take it from each other, which takes its time.
    let (partition_max, races) = if kind == Kind::Kafka { (7, 1) } else { (i32::MAX, 12) };
    let facts = Facts { shared: kind != Kind::Sled, races, partition_max };
    let begun = Instant::now();
    conformance::check(async || open(kind, address, BOUND), facts).await;
    println!("{kind:?}: the contract took {:?}", begun.elapsed());
    kill::check(kind, address).await;
}

fn at(topic: &str, partition: i32, offset: i64, metadata: &str) -> OffsetCommit {
    OffsetCommit { partition: TopicPartition::new(topic, partition), offset, metadata: metadata.to_owned() }
}

/// Within `bound` and some, a call to a server that is away says so; when it is back, calls succeed again.
async fn away_and_back(store: &dyn OffsetStore, bound: Duration, cut: impl AsyncFnOnce(), restore: impl AsyncFnOnce()) {
    store.commit("away", 0, &[at("logs", 0, 1, "")]).await.unwrap();
    cut().await;
    let begun = Instant::now();
    for error in [store.commit("away", 0, &[at("logs", 0, 2, "")]).await.unwrap_err(), store.get("away", None).await.unwrap_err()] {
        assert!(matches!(error, OffsetError::Away { .. }), "{error:?}");
        assert!(proto::ServiceError::from(error).kind.retryable());
    }
    assert!(begun.elapsed() < bound * 2 + Duration::from_secs(1), "{:?}", begun.elapsed());
    restore().await;
    let begun = Instant::now();
    while let Err(error) = store.commit("away", 0, &[at("logs", 0, 3, "")]).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        assert!(matches!(error, OffsetError::Away { .. }), "{error:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.get("away", None).await.unwrap().offsets[&TopicPartition::new("logs", 0)].offset, 3);
}

/// As `away_and_back`, by a proxy in front of the server. `address` writes the store's address of a host and port.
async fn proxied(kind: Kind, server: &str, address: impl Fn(&str) -> String) {
    let bound = Duration::from_secs(1);
    let proxy = Proxy::start(server).await;
    let store = open(kind, &address(&proxy.address), bound);
    away_and_back(&*store, bound, async || proxy.cut().await, async || proxy.restore()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sled_keeps_the_contract() {
    kill::child().await;
    let directory = tempfile::tempdir().unwrap();
    contract(Kind::Sled, directory.path().to_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_keeps_the_contract() {
    kill::child().await;
    let server = Server::start("redis");
    contract(Kind::Redis, server.address()).await;
    proxied(Kind::Redis, server.address().strip_prefix("redis://").unwrap(), |address| format!("redis://{address}")).await;
    // Another database holds nothing.
    assert!(open(Kind::Redis, &format!("{}/1", server.address()), BOUND).groups().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zookeeper_keeps_the_contract() {
    kill::child().await;
    let server = Server::start("zookeeper");
    contract(Kind::Zookeeper, server.address()).await;
    proxied(Kind::Zookeeper, server.address(), str::to_owned).await;
    old_consumers_and_their_tools(server.address()).await;
    let store = open(Kind::Zookeeper, &format!("{}/nowhere", server.address()), BOUND);
    let error = store.commit("g", 0, &[at("logs", 0, 1, "")]).await.unwrap_err().to_string();
    assert!(error.contains("does not exist; create it"), "{error}");
}

/// What an old consumer left is found, and what is written here stands where its tools look.
async fn old_consumers_and_their_tools(address: &str) {
    use zookeeper_client::{Acls, Client, CreateMode};
    let client = Client::connect(address).await.unwrap();
    let node = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/consumers/old/offsets/logs", &node).await.unwrap();
    client.create("/consumers/old/offsets/logs/0", b"41", &node).await.unwrap();
    let store = open(Kind::Zookeeper, address, BOUND);
    assert!(store.groups().await.unwrap().contains(&"old".to_owned()));
    let found = store.get("old", None).await.unwrap();
    assert_eq!((found.epoch, found.offsets[&TopicPartition::new("logs", 0)].offset), (0, 41));
    let error = store.commit("old", 0, &[at("logs", 0, 40, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Regressed { stored: 41, .. }), "{error}");
    store.commit("old", 0, &[at("logs", 0, 42, "a note"), at("logs", 3, 7, "")]).await.unwrap();
    assert_eq!(client.get_data("/consumers/old/offsets/logs/0").await.unwrap().0, b"42");
    assert_eq!(client.get_data("/consumers/old/offsets/logs/3").await.unwrap().0, b"7");
    assert_eq!(client.get_data("/consumers/old/millrace/logs/0").await.unwrap().0, b"a note");
    // A tool of old sets it: that is what is stored now.
    client.set_data("/consumers/old/offsets/logs/0", b"50", None).await.unwrap();
    let error = store.commit("old", 0, &[at("logs", 0, 45, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Regressed { stored: 50, .. }), "{error}");
    client.set_data("/consumers/old/offsets/logs/0", b"no number", None).await.unwrap();
    let error = store.get("old", None).await.unwrap_err();
    assert!(error.to_string().contains("/consumers/old/offsets/logs/0"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hbase_keeps_the_contract() {
    kill::child().await;
    let server = Server::start("hbase/hbase");
    contract(Kind::Hbase, server.address()).await;
    proxied(Kind::Hbase, server.address().strip_prefix("http://").unwrap(), |address| format!("http://{address}")).await;
    let client = Hbase::new(HbaseConfig::new(server.address())).unwrap();
    client.put("offsets", &[Row::new("gbad").with("o:version", "x")]).await.unwrap();
    let error = open(Kind::Hbase, server.address(), BOUND).get("bad", None).await.unwrap_err();
    assert!(error.to_string().contains("o:version of row gbad"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_keeps_the_contract() {
    kill::child().await;
    let server = Server::start("kafka/kafka");
    let admin = kafka::admin(&KafkaConfig::new(server.address())).await.unwrap();
    for (topic, partitions) in conformance::TOPICS {
        admin.create_topic(topic, partitions, 1, &BTreeMap::new(), false).await.unwrap();
    }
    contract(Kind::Kafka, server.address()).await;
    let store = open(Kind::Kafka, server.address(), BOUND);
    // They are Kafka's own.
    store.commit("own", 0, &[at("logs", 0, 5, "note"), at("logs", 1, 6, "")]).await.unwrap();
    let committed = admin.committed("own", Some(&[TopicPartition::new("logs", 0)])).await.unwrap();
    assert_eq!(committed[&TopicPartition::new("logs", 0)], (5, "note".to_owned()));
    let error = store.commit("own", 0, &[at("logs", 0, 9, ""), at("none", 0, 1, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Invalid(_)), "{error:?}");
    assert_eq!(store.get("own", None).await.unwrap().offsets[&TopicPartition::new("logs", 0)].offset, 5);
    // What an ordinary consumer committed counts as stored.
    admin.commit("ordinary", &[(TopicPartition::new("logs", 0), 30, String::new())]).await.unwrap();
    let error = store.commit("ordinary", 0, &[at("logs", 0, 29, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Regressed { stored: 30, .. }), "{error}");
    let bound = Duration::from_secs(6);
    let store = open(Kind::Kafka, server.address(), bound);
    away_and_back(&*store, bound, async || server.run(&["kill", "1"]), async || server.run(&["restart", "1"])).await;
}

#[test]
fn wrong_addresses_are_one_clear_error() {
    for (wrong, expected) in [
        (offsets::redis("http://h:1", BOUND).err(), "write redis://host:port"),
        (offsets::redis("", BOUND).err(), "write redis://host:port"),
        (offsets::zookeeper("", BOUND).err(), "write host:port"),
        (offsets::zookeeper("h:x", BOUND).err(), "port"),
        (offsets::hbase("h:8080", "t", BOUND).err(), "write http://host:port"),
        (offsets::hbase("http://h:8080", "", BOUND).err(), "table"),
        (offsets::kafka(&KafkaConfig::new("h:1"), "a b", BOUND).err(), "topic's name"),
    ] {
        let wrong = wrong.unwrap();
        assert!(matches!(&wrong, OffsetError::Invalid(message) if message.contains(expected)), "{wrong}");
    }
}
