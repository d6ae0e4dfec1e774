//! The oracle's own view of Kafka, through librdkafka and apart from the services' code.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

use crate::eventually;

const WAIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, Vec<u8>>,
}

impl Seen {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

pub async fn create_topic(bootstrap: &str, name: &str, partitions: i32) {
    create_topic_with(bootstrap, name, partitions, &[]).await;
}

/// With settings of the topic, such as `max.message.bytes`.
pub async fn create_topic_with(bootstrap: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    make(bootstrap, NewTopic::new(name, partitions, TopicReplication::Fixed(1)), settings).await;
}

/// One partition on these brokers, the first of which leads.
pub async fn create_replicated_topic(bootstrap: &str, name: &str, brokers: &[i32], settings: &[(&str, &str)]) {
    make(bootstrap, NewTopic::new(name, 1, TopicReplication::Variable(&[brokers])), settings).await;
}

async fn make(bootstrap: &str, topic: NewTopic<'_>, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap_or_else(|error| panic!("admin client: {error}"));
    let name = topic.name;
    let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
    let results = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(WAIT))).await;
    let results = results.unwrap_or_else(|error| panic!("creating {name}: {error}"));
    assert!(results.iter().all(Result::is_ok), "creating {name}: {results:?}");
}

/// Raises the number of the topic's partitions.
pub async fn add_partitions(bootstrap: &str, topic: &str, partitions: usize) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap_or_else(|error| panic!("admin client: {error}"));
    let more = NewPartitions::new(topic, partitions);
    let results = admin.create_partitions([&more], &AdminOptions::new().operation_timeout(Some(WAIT))).await;
    let results = results.unwrap_or_else(|error| panic!("partitions of {topic}: {error}"));
    assert!(results.iter().all(Result::is_ok), "partitions of {topic}: {results:?}");
}

/// What the group has not committed of the topic, in records, as the broker tells it.
pub fn lag(bootstrap: &str, group: &str, topic: &str) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", group)
        .create()
        .unwrap_or_else(|error| panic!("consumer: {error}"));
    let metadata = consumer.fetch_metadata(Some(topic), WAIT).unwrap_or_else(|error| panic!("metadata of {topic}: {error}"));
    let partitions = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id());
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(list, WAIT).unwrap_or_else(|error| panic!("offsets of {group}: {error}"));
    let lag = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        let (low, high) = consumer.fetch_watermarks(topic, element.partition(), WAIT).unwrap_or_else(|error| panic!("{topic}: {error}"));
        high - element.offset().to_raw().filter(|offset| *offset >= 0).unwrap_or(low)
    };
    committed.elements().iter().map(lag).sum()
}

pub fn exists(bootstrap: &str, topic: &str) -> bool {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap_or_else(|error| panic!("consumer: {error}"));
    let metadata = consumer.fetch_metadata(None, WAIT).unwrap_or_else(|error| panic!("metadata: {error}"));
    metadata.topics().iter().any(|known| known.name() == topic)
}

/// Asks for the deletion and waits until the broker no longer lists the topic.
pub async fn delete_topic(bootstrap: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().unwrap_or_else(|error| panic!("admin client: {error}"));
    let results = admin.delete_topics(&[topic], &AdminOptions::new().operation_timeout(Some(WAIT))).await;
    let results = results.unwrap_or_else(|error| panic!("deleting {topic}: {error}"));
    assert!(results.iter().all(Result::is_ok), "deleting {topic}: {results:?}");
    eventually(WAIT, &format!("{topic} is gone"), || async { if exists(bootstrap, topic) { Err("still listed".into()) } else { Ok(()) } })
        .await;
}

/// Writes `values` in order, round robin over the partitions when `partitions` > 1, and waits for the acknowledgements.
pub fn produce(bootstrap: &str, topic: &str, partitions: i32, values: impl IntoIterator<Item = String>) {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("queue.buffering.max.messages", "2000000")
        .create()
        .unwrap_or_else(|error| panic!("producer: {error}"));
    for (n, value) in (0_i32..).zip(values) {
        let mut record = BaseRecord::<(), String>::to(topic).payload(&value).partition(n % partitions);
        while let Err((KafkaError::MessageProduction(_), back)) = producer.send(record) {
            record = back;
            producer.flush(Duration::from_millis(100)).unwrap_or(());
        }
    }
    producer.flush(WAIT).unwrap_or_else(|error| panic!("flush: {error}"));
}

/// A consumer at the beginning of every partition of the topic, and how many those are.
fn assigned(bootstrap: &str, topic: &str) -> (BaseConsumer, usize) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "millrace-oracle")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        // The end of a topic is told at once.
        .set("fetch.wait.max.ms", "20")
        .create()
        .unwrap_or_else(|error| panic!("consumer: {error}"));
    let metadata = consumer.fetch_metadata(Some(topic), WAIT).unwrap_or_else(|error| panic!("metadata of {topic}: {error}"));
    let partitions: Vec<i32> = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning).unwrap_or_else(|error| panic!("{topic}: {error}"));
    }
    consumer.assign(&list).unwrap_or_else(|error| panic!("{topic}: {error}"));
    (consumer, partitions.len())
}

/// Every committed record of the topic as it stands now, in partition and offset order.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<Seen> {
    let (consumer, mut open) = assigned(bootstrap, topic);
    let mut seen = Vec::new();
    while open > 0 {
        match consumer.poll(WAIT) {
            Some(Ok(message)) => seen.push(Seen {
                partition: message.partition(),
                offset: message.offset(),
                timestamp_ms: message.timestamp().to_millis(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().unwrap_or_default().to_vec(),
                headers: message
                    .headers()
                    .map(|headers| headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect())
                    .unwrap_or_default(),
            }),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            None => panic!("reading {topic}: nothing for {WAIT:?}"),
        }
    }
    seen.sort_by_key(|record| (record.partition, record.offset));
    seen
}

/// The values of [`read_all`] as text.
pub fn texts(bootstrap: &str, topic: &str) -> Vec<String> {
    read_all(bootstrap, topic).iter().map(Seen::text).collect()
}

/// Counts the committed records of a topic as they come.
pub struct Follower {
    consumer: BaseConsumer,
    count: u64,
}

impl Follower {
    pub fn new(bootstrap: &str, topic: &str) -> Self {
        let consumer = assigned(bootstrap, topic).0;
        Self { consumer, count: 0 }
    }

    /// Takes what is there within `wait`.
    pub fn count(&mut self, wait: Duration) -> u64 {
        let end = std::time::Instant::now() + wait;
        while let Some(outcome) = self.consumer.poll(end.saturating_duration_since(std::time::Instant::now())) {
            // A broker that is away for a while is none of the counter's business.
            if outcome.is_ok() {
                self.count += 1;
            }
        }
        self.count
    }
}
