//! The bridge's own connection to Kafka. It starts without a broker: the connection is made when it is first needed, and again until it succeeds.

use std::sync::Arc;

use service_kit::kafka::{self, Admin, KafkaConfig, KafkaError};
use tokio::sync::OnceCell;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    config: KafkaConfig,
    admin: Arc<OnceCell<Arc<dyn Admin>>>,
}

impl Connection {
    pub(crate) fn new(config: KafkaConfig) -> Self {
        Self { config, admin: Arc::default() }
    }

    /// One that is there already.
    #[cfg(test)]
    pub(crate) fn made(admin: Arc<dyn Admin>) -> Self {
        Self { config: KafkaConfig::new("nowhere:1"), admin: Arc::new(OnceCell::new_with(Some(admin))) }
    }

    pub(crate) fn servers(&self) -> &str {
        self.config.get("bootstrap.servers").unwrap_or_default()
    }

    pub(crate) async fn admin(&self) -> Result<&Arc<dyn Admin>, KafkaError> {
        self.admin.get_or_try_init(|| kafka::admin(&self.config)).await
    }
}
