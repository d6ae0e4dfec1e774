//! A connection to Kafka: the bridge's own, or that of a caller who logs in to Kafka itself. It starts without a broker: clients are made when they
//! are first needed, and again until that succeeds.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use service_kit::kafka::{self, Admin, KafkaConfig, KafkaError, Manage, Producer};
use tokio::{sync::OnceCell, time::Instant};

use crate::auth;

/// How long it is believed that something is allowed.
const ALLOWED_FOR: Duration = Duration::from_secs(10);

/// What a login may do in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Right {
    Write { topic: String },
    Read { group: String },
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Inner>);

struct Inner {
    config: KafkaConfig,
    manage: Manage,
    admin: OnceCell<Arc<dyn Admin>>,
    producer: OnceCell<Arc<dyn Producer>>,
    /// What is allowed in Kafka, and since when that is known.
    allowed: Mutex<HashMap<Right, Instant>>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(config: KafkaConfig) -> Self {
        let (manage, allowed) = (Manage::new(&config), Mutex::default());
        Self(Arc::new(Inner { config, manage, admin: OnceCell::new(), producer: OnceCell::new(), allowed }))
    }

    /// One that is there already.
    #[cfg(test)]
    pub(crate) fn made(admin: Arc<dyn Admin>) -> Self {
        let config = KafkaConfig::new("nowhere:1");
        let (manage, allowed) = (Manage::new(&config), Mutex::default());
        Self(Arc::new(Inner { config, manage, admin: OnceCell::new_with(Some(admin)), producer: OnceCell::new(), allowed }))
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
        let topics: BTreeSet<&str> = topics.into_iter().collect();
        let right = |topic: &str| Right::Write { topic: topic.to_owned() };
        let unknown: Vec<&str> = topics.into_iter().filter(|topic| !self.is_allowed(&right(topic))).collect();
        if !unknown.is_empty() {
            self.0.manage.check_write(&unknown).await?;
            unknown.into_iter().for_each(|topic| self.allow(right(topic)));
        }
        Ok(())
    }

    /// An error unless Kafka lets this login commit the group's offsets.
    pub(crate) async fn check_group(&self, group: &str) -> Result<(), KafkaError> {
        let right = Right::Read { group: group.to_owned() };
        if !self.is_allowed(&right) {
            self.0.manage.check_group(group).await?;
            self.allow(right);
        }
        Ok(())
    }

    fn is_allowed(&self, right: &Right) -> bool {
        self.0.allowed.lock().get(right).is_some_and(|since| since.elapsed() < ALLOWED_FOR)
    }

    fn allow(&self, right: Right) {
        let mut allowed = self.0.allowed.lock();
        allowed.retain(|_, since| since.elapsed() < ALLOWED_FOR);
        allowed.insert(right, Instant::now());
    }
}
