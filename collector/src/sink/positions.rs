//! File positions in Kafka: the topic that a transactional sink writes in the same transactions as the records.
//!
//! One record per file, key `<transactional id>/<file id>`, value JSON (`Remembered`); compaction keeps the last one. A
//! file that is through gets a tombstone, so that the topic holds the files of now and not every file there ever was.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use service_kit::kafka::{self, Isolation, KafkaConfig, KafkaError, OutRecord, TopicPartition};

use crate::source::tail::identity::Remembered;

pub struct Positions {
    config: KafkaConfig,
    topic: Arc<str>,
    prefix: String,
    /// What is doubtful about the topic was said.
    told: AtomicBool,
}

/// How long another writer's open transaction is waited for. Brokers end those after `transaction.timeout.ms`, 1 min by default.
const OPEN_TRANSACTIONS_WAIT: Duration = Duration::from_secs(90);

impl Positions {
    pub fn new(config: KafkaConfig, topic: &str, transactional_id: &str) -> Self {
        Self { config, topic: topic.into(), prefix: format!("{transactional_id}/"), told: AtomicBool::default() }
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    pub fn record(&self, position: &Remembered) -> Result<OutRecord, serde_json::Error> {
        Ok(self.out(position.id, Some(serde_json::to_vec(position)?.into())))
    }

    /// The file's position is not needed any more.
    pub fn tombstone(&self, id: u64) -> OutRecord {
        self.out(id, None)
    }

    fn out(&self, id: u64, value: Option<Bytes>) -> OutRecord {
        let key = format!("{}{id:016x}", self.prefix);
        OutRecord { topic: self.topic.clone(), partition: None, key: Some(key.into()), value, headers: Vec::new(), timestamp_ms: None }
    }

    /// What is committed, by file id. To be read after the writer was taken over, so that nothing of an older one can follow.
    pub async fn read(&self) -> Result<BTreeMap<u64, Remembered>, KafkaError> {
        let reader = kafka::range_reader(&self.config, Isolation::ReadCommitted).await?;
        let admin = kafka::admin(&self.config).await?;
        let partitions = match reader.partitions(&self.topic).await {
            Ok(partitions) => partitions,
            Err(KafkaError::UnknownTopic(_)) => {
                self.create(admin.as_ref()).await?;
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(error),
        };
        self.check(admin.as_ref()).await?;
        let partitions: Vec<TopicPartition> =
            partitions.into_iter().map(|partition| TopicPartition::new(self.topic.clone(), partition)).collect();
        // Committed records may lie behind another writer's open transaction, where a committed reader does not look yet:
        // the end of that transaction is waited for, else committed positions would be missed and lines repeated.
        let ends = admin.bounds(&partitions).await?;
        let deadline = tokio::time::Instant::now() + OPEN_TRANSACTIONS_WAIT;
        let stable = loop {
            let stable = reader.bounds(&partitions).await?;
            if ends.iter().all(|(partition, end)| stable.get(partition).is_some_and(|stable| stable.latest >= end.latest)) {
                break stable;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(KafkaError::Retryable(format!(
                    "an open transaction of another writer has been blocking topic {} for {OPEN_TRANSACTIONS_WAIT:?}",
                    self.topic
                )));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut found = BTreeMap::new();
        for (partition, bounds) in stable {
            let mut records = reader.read(partition, bounds.earliest, bounds.latest);
            while let Some(chunk) = records.next().await {
                for record in chunk? {
                    self.apply(&mut found, record.key.as_ref(), record.value.as_ref());
                }
            }
        }
        Ok(found)
    }

    /// Without compaction the topic forgets where files that have rested for its retention were: they would be read again.
    async fn check(&self, admin: &dyn kafka::Admin) -> Result<(), KafkaError> {
        let entries = match admin.topic_config(&self.topic).await {
            Ok(entries) => entries,
            Err(error) if error.retryable() => return Err(error),
            Err(error) => {
                if !self.told.swap(true, Relaxed) {
                    tracing::warn!(topic = &*self.topic, %error, "it cannot be seen whether the topic of file positions is compacted; it has to be");
                }
                return Ok(());
            }
        };
        let policy = entries.into_iter().find(|entry| entry.name == "cleanup.policy").and_then(|entry| entry.value).unwrap_or_default();
        let has = |word: &str| policy.split(',').any(|part| part.trim() == word);
        if !has("compact") && has("delete") {
            return Err(KafkaError::Config(format!(
                "positionsTopic \"{}\" has cleanup.policy = {policy}: it would forget file positions, and lines would be written again; set \
                 cleanup.policy = compact for it, or name another topic",
                self.topic
            )));
        }
        if has("delete") && !self.told.swap(true, Relaxed) {
            tracing::warn!(
                topic = &*self.topic,
                policy,
                "positions of files that rest for longer than the topic's retention are forgotten, and such a file may be written again; set \
                 cleanup.policy = compact"
            );
        }
        Ok(())
    }

    fn apply(&self, found: &mut BTreeMap<u64, Remembered>, key: Option<&Bytes>, value: Option<&Bytes>) {
        let id = key
            .and_then(|key| std::str::from_utf8(key).ok())
            .and_then(|key| key.strip_prefix(&self.prefix))
            .and_then(|id| u64::from_str_radix(id, 16).ok());
        let Some(id) = id else { return };
        match value.map(|value| serde_json::from_slice::<Remembered>(value)) {
            Some(Ok(position)) => {
                found.insert(id, position);
            }
            Some(Err(error)) => tracing::warn!(topic = &*self.topic, %error, "a position cannot be read and is left out"),
            None => {
                found.remove(&id);
            }
        }
    }

    async fn create(&self, admin: &dyn kafka::Admin) -> Result<(), KafkaError> {
        let compacted = [("cleanup.policy".to_owned(), "compact".to_owned())].into();
        match admin.create_topic(&self.topic, 1, -1, &compacted, false).await {
            Ok(()) => {
                tracing::info!(topic = &*self.topic, "topic for file positions created");
                Ok(())
            }
            Err(KafkaError::AlreadyExists(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tail::identity::Fingerprint;

    #[test]
    fn positions_are_read_as_they_were_written_and_others_are_left_alone() {
        let positions = |id| Positions::new(KafkaConfig::new("h:1"), "t", id);
        let position = |id, offset| Remembered { id, path: "/a".into(), dev: 1, inode: 2, fingerprint: Fingerprint::default(), offset };
        let mut found = BTreeMap::new();
        for (writer, position) in
            [("w", position(u64::MAX, 1)), ("w", position(7, 5)), ("w", position(u64::MAX, 9)), ("w2", position(7, 99))]
        {
            let record = positions(writer).record(&position).unwrap();
            positions("w").apply(&mut found, record.key.as_ref(), record.value.as_ref());
        }
        let offsets = |found: &BTreeMap<u64, Remembered>| found.values().map(|position| (position.id, position.offset)).collect::<Vec<_>>();
        assert_eq!(offsets(&found), [(7, 5), (u64::MAX, 9)]);
        for writer in ["w2", "w"] {
            let tombstone = positions(writer).tombstone(u64::MAX);
            positions("w").apply(&mut found, tombstone.key.as_ref(), tombstone.value.as_ref());
        }
        assert_eq!(offsets(&found), [(7, 5)]);
    }
}
