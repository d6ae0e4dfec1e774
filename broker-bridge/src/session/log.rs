//! The directory's topic in Kafka.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use service_kit::kafka::{self, Bounds, Isolation, KafkaConfig, KafkaError, OutRecord, Producer, RangeReader, Record, TopicPartition};
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
        let log = KafkaLog { config, connection, partition, reader: OnceCell::new(), producer: OnceCell::new() };
        Self::new(log, me, entries_max, bound)
    }
}

impl KafkaLog {
    async fn reader(&self) -> Result<&Arc<dyn RangeReader>, KafkaError> {
        self.reader.get_or_try_init(|| kafka::range_reader(&self.config, Isolation::ReadUncommitted)).await
    }

    async fn producer(&self) -> Result<&Arc<dyn Producer>, KafkaError> {
        let make = async || {
            self.ensure().await?;
            kafka::producer(&self.config).await
        };
        self.producer.get_or_try_init(make).await
    }

    /// Creates the topic where it is missing; refuses one that would lose entries.
    async fn ensure(&self) -> Result<(), KafkaError> {
        let name = &self.partition.topic;
        let admin = self.connection.admin().await?;
        if let Err(KafkaError::UnknownTopic(_)) = admin.topic(name).await {
            let settings: BTreeMap<String, String> = SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            match admin.create_topic(name, 1, -1, &settings, false).await {
                Ok(()) => tracing::info!(topic = %name, "the topic of all consumer instances is created"),
                Err(KafkaError::AlreadyExists(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let partitions = admin.topic(name).await?.partitions.len();
        if partitions != 1 {
            return Err(KafkaError::Invalid(format!("topic {name:?} has {partitions} partitions and needs one: name another topic")));
        }
        let config = admin.topic_config(name).await?;
        let policy = config.iter().find(|entry| entry.name == "cleanup.policy").and_then(|entry| entry.value.as_deref());
        if policy != Some("compact") {
            let policy = policy.unwrap_or("unknown");
            return Err(KafkaError::Invalid(format!(
                "topic {name:?} has cleanup.policy = {policy} and would lose entries: set it to compact"
            )));
        }
        Ok(())
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn bounds(&self) -> Result<Option<Bounds>, KafkaError> {
        let reader = self.reader().await?;
        match reader.bounds(std::slice::from_ref(&self.partition)).await {
            Ok(bounds) => Ok(bounds.get(&self.partition).copied()),
            Err(KafkaError::UnknownTopic(_)) => Ok(None),
            // A partition of a topic that is not there is no valid one.
            Err(error @ KafkaError::Invalid(_)) => match reader.partitions(&self.partition.topic).await {
                Err(KafkaError::UnknownTopic(_)) => Ok(None),
                // It was created in this moment, and the client has heard of it by now.
                Ok(_) => Ok(reader.bounds(std::slice::from_ref(&self.partition)).await?.get(&self.partition).copied()),
                Err(_) => Err(error),
            },
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
                self.ensure().await?;
                send().await?
            }
            sent => sent?,
        };
        Ok(written.offset)
    }
}
