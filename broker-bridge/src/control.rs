//! Status, pause and drain for operators: asks the parts, changes nothing itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use proto::ServiceError;
use service_kit::Control;

use crate::{config::BridgeConfig, gate::Gate, monitor::Seen, session::Sessions};

pub(crate) struct BridgeControl {
    pub(crate) config: BridgeConfig,
    pub(crate) gate: Arc<Gate>,
    pub(crate) sessions: Sessions,
    pub(crate) seen: Arc<Mutex<Seen>>,
    /// Where it listens, by name.
    pub(crate) addresses: Arc<OnceLock<BTreeMap<&'static str, SocketAddr>>>,
}

#[async_trait]
impl Control for BridgeControl {
    async fn facts(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock().clone();
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let at = |name: &str| self.addresses.get()?.get(name).map(SocketAddr::to_string);
        vec![
            fact("http", at("http").unwrap_or_default()),
            fact("registry", at("registry").unwrap_or_else(|| "at the same address".to_owned())),
            fact("kafka", self.config.kafka.bootstrap_servers.clone()),
            fact("brokers", seen.brokers.to_string()),
            fact("topics", seen.topics.to_string()),
            fact("under-replicated", seen.replicas.under_replicated.to_string()),
            fact("offline", seen.replicas.offline.to_string()),
            fact("consumers", self.sessions.count().to_string()),
            fact("in flight", self.gate.in_flight().to_string()),
            fact("offsets", self.config.offsets.identity()),
        ]
    }

    async fn degraded(&self) -> Option<String> {
        self.gate.degraded()
    }

    async fn paused(&self) -> Vec<String> {
        self.gate.paused()
    }

    async fn pause(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.gate.set_paused(component, true)
    }

    async fn resume(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.gate.set_paused(component, false)
    }

    async fn remaining(&self) -> u64 {
        self.gate.in_flight()
    }

    fn effective_config(&self) -> (String, String) {
        ("toml".to_owned(), service_kit::config::render(&self.config))
    }
}
