//! A connection to Kafka: the bridge's own, or that of a caller who logs in to Kafka itself. It starts without a broker: clients are made when they
//! are first needed, and again until that succeeds.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use service_kit::kafka::{self, Admin, KafkaConfig, KafkaError, Manage, Producer};
use tokio::{sync::OnceCell, time::Instant};

use crate::auth;

/// How long it is believed that a topic may be written to.
const WRITABLE_FOR: Duration = Duration::from_secs(10);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    manage: Manage,
    admin: OnceCell<Arc<dyn Admin>>,
    producer: OnceCell<Arc<dyn Producer>>,
    /// Topics that may be written to, and since when that is known.
    writable: Mutex<HashMap<String, Instant>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(config: KafkaConfig) -> Self {
        let (manage, writable) = (Manage::new(&config), Mutex::default());
        Self(Arc::new(Inner { config, manage, admin: OnceCell::new(), producer: OnceCell::new(), writable }))
    }

    /// One that is there already.
    #[cfg(test)]
    pub(crate) fn made(admin: Arc<dyn Admin>) -> Self {
        let config = KafkaConfig::new("nowhere:1");
        let (manage, writable) = (Manage::new(&config), Mutex::default());
        Self(Arc::new(Inner { config, manage, admin: OnceCell::new_with(Some(admin)), producer: OnceCell::new(), writable }))
    }

    /// The caller's own where callers log in to Kafka themselves, else this one. What the bridge does for itself, whoever calls, goes by this one.
    pub(crate) fn of_caller(&self) -> Result<Self, KafkaError> {
        Ok(auth::connection()?.unwrap_or_else(|| self.clone()))
    }

    pub(crate) fn config(&self) -> &KafkaConfig {
        &self.0.config
    }

    pub(crate) fn servers(&self) -> &str {
        self.0.config.get("bootstrap.servers").unwrap_or_default()
    }

    pub(crate) fn manage(&self) -> &Manage {
        &self.0.manage
    }

    pub(crate) async fn admin(&self) -> Result<&Arc<dyn Admin>, KafkaError> {
        self.0.admin.get_or_try_init(|| kafka::admin(&self.0.config)).await
    }

    pub(crate) async fn producer(&self) -> Result<&Arc<dyn Producer>, KafkaError> {
        self.0.producer.get_or_try_init(|| kafka::producer(&self.0.config)).await
    }

    /// An error unless Kafka lets this login write to the topics.
    pub(crate) async fn check_write<'a>(&self, topics: impl IntoIterator<Item = &'a str>) -> Result<(), KafkaError> {
        let now = Instant::now();
        let mut unknown: Vec<&str> = {
            let mut writable = self.0.writable.lock();
            writable.retain(|_, since| now - *since < WRITABLE_FOR);
            topics.into_iter().filter(|topic| !writable.contains_key(*topic)).collect()
        };
        unknown.sort_unstable();
        unknown.dedup();
        if unknown.is_empty() {
            return Ok(());
        }
        self.0.manage.check_write(&unknown).await?;
        self.0.writable.lock().extend(unknown.into_iter().map(|topic| (topic.to_owned(), now)));
        Ok(())
    }
}
