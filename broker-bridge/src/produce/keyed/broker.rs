//! What keyed requests need of Kafka, and how it is set up for them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use service_kit::kafka::{self, Admin, Isolation, KafkaConfig, KafkaError, Producer, RangeReader, TransactionalWriter};

use crate::{config, connect::Connection};

/// Makes clients; in tests without a broker.
#[async_trait]
pub(crate) trait Broker: Send + Sync {
    async fn admin(&self) -> Result<Arc<dyn Admin>, KafkaError>;
    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError>;
    /// Of claims: acknowledged by every replica in sync, whatever the bridge's own producer is set to.
    async fn producer(&self) -> Result<Arc<dyn Producer>, KafkaError>;
    /// Fences whoever had the id.
    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError>;
}

/// Clients of the configured cluster.
pub(crate) struct KafkaBroker {
    connection: Connection,
    config: KafkaConfig,
    claims: KafkaConfig,
    transactional: KafkaConfig,
}

/// What a replica that is gone for good left open holds readers up for this long, where nobody takes its ids before.
const TRANSACTION_TIMEOUT_MIN: Duration = Duration::from_secs(10);

impl KafkaBroker {
    pub(crate) fn new(config: KafkaConfig, connection: Connection, produce: &config::Produce) -> Self {
        let mut claims = config.clone();
        let within = produce.timeout.as_millis().clamp(10, 300_000).to_string();
        for (key, value) in [("acks", "all"), ("enable.idempotence", "true"), ("linger.ms", "1"), ("delivery.timeout.ms", within.as_str())]
        {
            claims.set(key, value);
        }
        let mut transactional = config.clone();
        let timeout = (produce.dedup_lease * 5).max(TRANSACTION_TIMEOUT_MIN);
        transactional.set("transaction.timeout.ms", timeout.as_millis().min(i32::MAX as u128).to_string());
        // What can share a transaction is together already.
        transactional.set("linger.ms", "0");
        Self { connection, config, claims, transactional }
    }
}

#[async_trait]
impl Broker for KafkaBroker {
    async fn admin(&self) -> Result<Arc<dyn Admin>, KafkaError> {
        self.connection.admin().await.cloned()
    }

    async fn reader(&self, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError> {
        kafka::range_reader(&self.config, isolation).await
    }

    async fn producer(&self) -> Result<Arc<dyn Producer>, KafkaError> {
        kafka::producer(&self.claims).await
    }

    async fn writer(&self, transactional_id: &str) -> Result<Box<dyn TransactionalWriter>, KafkaError> {
        kafka::transactional_writer(&self.transactional, transactional_id).await
    }
}
