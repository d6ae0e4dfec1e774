//! The offset store, for callers that log in to Kafka themselves: what they change of a group, Kafka must let them change, wherever its offsets are.
//! What the bridge does for itself goes through, and so does what follows from a topic that is gone.

use std::sync::Arc;

use async_trait::async_trait;
use service_kit::{
    kafka::{KafkaError, TopicPartition},
    offsets::{GroupOffsets, OffsetCommit, OffsetError, OffsetStore},
};

pub(crate) struct CheckedOffsets(pub(crate) Arc<dyn OffsetStore>);

async fn check(group: &str) -> Result<(), OffsetError> {
    let checked = match super::connection() {
        Ok(None) => return Ok(()),
        Ok(Some(own)) => own.check_group(group).await,
        Err(error) => Err(error),
    };
    checked.map_err(|error| match error {
        KafkaError::Auth(message) => OffsetError::Denied(message),
        error => OffsetError::Away { path: "kafka".to_owned(), message: error.to_string() },
    })
}

#[async_trait]
impl OffsetStore for CheckedOffsets {
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        self.0.get(group, partitions).await
    }

    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        check(group).await?;
        self.0.commit(group, epoch, offsets).await
    }

    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        check(group).await?;
        self.0.reset(group, offsets).await
    }

    async fn groups(&self) -> Result<Vec<String>, OffsetError> {
        self.0.groups().await
    }

    async fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        check(group).await?;
        self.0.delete(group).await
    }

    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        self.0.know_topic(topic, id).await
    }

    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError> {
        self.0.forget_topic(topic).await
    }

    fn is_kafka(&self) -> bool {
        self.0.is_kafka()
    }
}
