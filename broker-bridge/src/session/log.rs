//! The directory's topic in Kafka.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use service_kit::kafka::{
    self, Bounds, Isolation, KafkaConfig, KafkaError, OutRecord, OwnTopic, Producer, RangeReader, Record, TopicPartition,
};
use tokio::sync::OnceCell;

use super::directory::{Directory, Log, Me, TURN};
use crate::connect::Connection;

/// Records that did not count are seen by everybody before the ones that did are compacted away; a new reader reads no more than a few segments.
const SETTINGS: [(&str, &str); 5] = [
    ("cleanup.policy", "compact"),
    ("min.compaction.lag.ms", "600000"),
    ("segment.bytes", "16777216"),
    ("segment.ms", "3600000"),
    ("delete.retention.ms", "3600000"),
];

struct KafkaLog {
    config: KafkaConfig,
    connection: Connection,
    partition: TopicPartition,
    bound: Duration,
    reader: OnceCell<Arc<dyn RangeReader>>,
    producer: OnceCell<Arc<dyn Producer>>,
}

impl Directory {
    /// In this topic. Connects when it is first used. `bound` limits each call.
    pub(crate) fn in_kafka(config: &KafkaConfig, connection: Connection, topic: &str, me: Me, entries_max: usize, bound: Duration) -> Self {
        let mut config = config.clone();
        // Whatever the bridge's records may do: an answer here means that it is written.
        for (key, value) in [("acks", "all"), ("enable.idempotence", "true"), ("linger.ms", "0"), ("compression.type", "none")] {
            config.set(key, value);
        }
        let partition = TopicPartition::new(topic, 0);
        let log = KafkaLog { config, connection, partition, bound, reader: OnceCell::new(), producer: OnceCell::new() };
        Self::new(log, me, entries_max, bound)
    }
}

impl KafkaLog {
    async fn reader(&self) -> Result<&Arc<dyn RangeReader>, KafkaError> {
        self.reader.get_or_try_init(|| kafka::range_reader(&self.config, Isolation::ReadUncommitted)).await
    }

    async fn producer(&self) -> Result<&Arc<dyn Producer>, KafkaError> {
        let make = async || {
            self.make().await?;
            kafka::producer(&self.config).await
        };
        self.producer.get_or_try_init(make).await
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn bounds(&self) -> Result<Option<Bounds>, KafkaError> {
        let reader = self.reader().await?;
        match reader.bounds(std::slice::from_ref(&self.partition)).await {
            Ok(bounds) => Ok(bounds.get(&self.partition).copied()),
            Err(KafkaError::UnknownTopic(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read(&self, from: i64, until: i64, take: &mut (dyn FnMut(Record) + Send)) -> Result<(), KafkaError> {
        let mut chunks = self.reader().await?.read(self.partition.clone(), from, until);
        while let Some(chunk) = chunks.next().await {
            chunk?.into_iter().for_each(&mut *take);
        }
        Ok(())
    }

    /// Refuses one that would lose entries.
    async fn make(&self) -> Result<(), KafkaError> {
        let topic = OwnTopic {
            name: &self.partition.topic,
            setting: "consume.sessions_topic",
            partitions: 1,
            replication: -1,
            config: &SETTINGS,
            policy: Some("compact"),
        };
        kafka::own_topic(self.connection.admin().await?.as_ref(), &topic, self.bound).await
    }

    async fn append(&self, key: Bytes, turn: u64, value: Option<Bytes>) -> Result<i64, KafkaError> {
        let producer = self.producer().await?;
        let record = OutRecord {
            topic: Arc::clone(&self.partition.topic),
            partition: Some(self.partition.partition),
            key: Some(key),
            value,
            headers: vec![(TURN.to_owned(), Bytes::from(turn.to_string()))],
            timestamp_ms: None,
        };
        let send = async || {
            let result = producer.send(vec![record.clone()]).await.pop();
            result.unwrap_or_else(|| Err(KafkaError::Fatal("the producer gave no result".to_owned())))
        };
        let written = match send().await {
            // Somebody deleted the topic.
            Err(KafkaError::UnknownTopic(_) | KafkaError::Invalid(_)) => {
                self.make().await?;
                send().await?
            }
            sent => sent?,
        };
        Ok(written.offset)
    }
}
