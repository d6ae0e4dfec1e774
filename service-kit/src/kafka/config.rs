//! Kafka settings once, in Java property names.

use std::collections::BTreeMap;
use std::time::Duration;

use super::KafkaError;
use super::properties;

/// Settings of a Kafka client in the Java client's names. `bootstrap.servers` is required.
///
/// Beside the Java names one default differs: `default.api.timeout.ms`, the bound of every wait for a broker's answer
/// (admin, metadata, first connection), is 10 s instead of 60 s.
#[derive(Clone)]
pub struct KafkaConfig {
    values: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl KafkaConfig {
    /// `bootstrap`: `host:port` list separated by commas.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        let mut config = Self { values: BTreeMap::new(), notes: Vec::new() };
        config.set("bootstrap.servers", bootstrap);
        config
    }

    /// Checks every property; the error names the first wrong key and the remedy.
    pub fn from_properties(properties: BTreeMap<String, String>) -> Result<Self, KafkaError> {
        let mut config = Self { values: properties, notes: Vec::new() };
        if config.servers().is_empty() {
            return Err(KafkaError::Config("bootstrap.servers is missing: name the brokers as host:port, separated by commas".into()));
        }
        config.notes = properties::check(&config.values)?;
        Ok(config)
    }

    /// Sets one property. A wrong value is reported when a client is made from the configuration.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.values.insert(key.into(), value.into());
        // A wrong value stays in `values`, so that making a client reports it.
        self.notes = properties::check(&self.values).unwrap_or_default();
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|value| value.trim())
    }

    /// All properties; secrets as `***`.
    pub fn masked(&self) -> BTreeMap<String, String> {
        let mask = |(key, value): (&String, &String)| {
            let shown = if properties::is_secret(key) { "***".to_owned() } else { value.clone() };
            (key.clone(), shown)
        };
        self.values.iter().map(mask).collect()
    }

    /// What is accepted without effect, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// `host:port` of the bootstrap list; a port left out is 9092.
    pub(super) fn servers(&self) -> Vec<String> {
        let list = self.get("bootstrap.servers").unwrap_or_default();
        let names = list.split(|c: char| c == ',' || c.is_whitespace()).filter(|name| !name.is_empty());
        names
            .map(|name| {
                // Some tools write the listener's protocol before the host.
                let host = name.rsplit("://").next().unwrap_or(name);
                let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if has_port { host.to_owned() } else { format!("{host}:9092") }
            })
            .collect()
    }

    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    pub(super) fn protocol(&self) -> String {
        self.get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase()
    }

    pub(super) fn tls(&self) -> bool {
        self.protocol().ends_with("ssl")
    }

    /// Bound of every wait for an answer of the cluster.
    pub(super) fn api_timeout(&self) -> Duration {
        let ms = self.get("default.api.timeout.ms").and_then(|value| value.parse().ok());
        Duration::from_millis(ms.unwrap_or(10_000))
    }

    /// Size of one chunk of a range read, in bytes.
    pub(super) fn fetch_bytes_max(&self) -> i32 {
        self.get("max.partition.fetch.bytes").and_then(|value| value.parse().ok()).unwrap_or(FETCH_BYTES_MAX)
    }
}

/// Default of `max.partition.fetch.bytes`, as in Java. Larger is not faster, and costs memory for each partition.
pub(super) const FETCH_BYTES_MAX: i32 = 1 << 20;

/// Never shows a secret.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.masked()).finish()
    }
}
