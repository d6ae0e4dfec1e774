//! Kafka settings once, in Java property names.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{KafkaError, jaas, properties};

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

    /// What is wrong with one property by itself.
    pub fn check_one(key: &str, value: &str) -> Result<(), KafkaError> {
        properties::check_one(key, value)
    }

    /// The Java names of all properties that a client has.
    pub fn names() -> impl Iterator<Item = &'static str> {
        properties::names()
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
            let shown = if crate::config::is_secret(key) { "***".to_owned() } else { value.clone() };
            (key.clone(), shown)
        };
        self.values.iter().map(mask).collect()
    }

    /// What is accepted without effect, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The same settings for another user. [`KafkaError::Config`] where they have no login by password, [`KafkaError::Auth`] where the
    /// mechanism cannot carry this one.
    pub fn with_login(&self, name: &str, password: &str) -> Result<Self, KafkaError> {
        if !self.protocol().starts_with("sasl_") {
            let protocol = self.protocol().to_ascii_uppercase();
            return Err(KafkaError::Config(format!("security.protocol = {protocol} has no logins; set SASL_SSL (or SASL_PLAINTEXT)")));
        }
        if name.is_empty() || [name, password].iter().any(|text| text.contains(char::is_control)) {
            return Err(KafkaError::Auth(
                "a user's name must not be empty, and neither name nor password may have control characters".into(),
            ));
        }
        let module = jaas::login(self.values())?.module();
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut config = self.clone();
        config.set("sasl.jaas.config", format!("{module} required username=\"{}\" password=\"{}\";", quoted(name), quoted(password)));
        Ok(config)
    }

    pub(super) fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// `host:port` of the bootstrap list; a port left out is 9092.
    pub(super) fn servers(&self) -> Vec<String> {
        // A name that is none was reported by `properties::check`.
        server_names(self.get("bootstrap.servers").unwrap_or_default()).filter_map(|name| server(name).ok()).collect()
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

/// The entries of a bootstrap list.
pub(super) fn server_names(list: &str) -> impl Iterator<Item = &str> {
    list.split(|c: char| c == ',' || c.is_whitespace()).filter(|name| !name.is_empty())
}

/// One entry as `host:port`; or why it is none, without showing a password that was written into it.
pub(super) fn server(name: &str) -> Result<String, String> {
    if name.contains('@') {
        return Err(
            "holds a user name or password (`…@`), which Kafka does not take there; write host:port, and the login in sasl.jaas.config"
                .into(),
        );
    }
    // Some tools write the listener's protocol before the host.
    let host = match name.split_once("://") {
        None => name,
        Some((scheme, host)) if ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&scheme.to_ascii_lowercase().as_str()) => host,
        Some((scheme, _)) => return Err(format!("`{scheme}://` is not a Kafka address; write host:port")),
    };
    let (host, port) = match host.rsplit_once(':') {
        Some((address, port)) if !address.contains(':') || address.ends_with(']') => (address, port),
        // No port, or an IPv6 address without one.
        _ => (host, "9092"),
    };
    if host.is_empty() || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(format!("`{name}` is not host:port"));
    }
    Ok(format!("{host}:{port}"))
}

/// `#[serde(deserialize_with = "…")]` for settings by their Java names: each is checked by itself, so that every wrong one is reported with
/// the place where it stands.
pub fn properties<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values = <BTreeMap<String, String> as serde::Deserialize>::deserialize(deserializer)?;
    match values.iter().find_map(|(key, value)| properties::check_one(key, value).err()) {
        Some(error) => Err(serde::de::Error::custom(error)),
        None => Ok(values),
    }
}

/// As [`properties`], for `bootstrap.servers` under a name of its own.
pub fn servers<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let list = <String as serde::Deserialize>::deserialize(deserializer)?;
    let wrong = server_names(&list).find_map(|name| server(name).err());
    match wrong {
        Some(reason) => Err(serde::de::Error::custom(reason)),
        None => Ok(list),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn secured(mechanism: &str, module: &str) -> KafkaConfig {
        let jaas = format!("org.apache.kafka.common.security.{module} required username=\"bridge\" password=\"own\";");
        let mut config = KafkaConfig::new("h:9092");
        for (key, value) in [("security.protocol", "SASL_SSL"), ("sasl.mechanism", mechanism), ("sasl.jaas.config", &jaas)] {
            config.set(key, value);
        }
        config
    }

    #[test]
    fn another_login_takes_the_place_of_the_own_one_whatever_its_letters() {
        for (mechanism, module) in [("SCRAM-SHA-512", "scram.ScramLoginModule"), ("PLAIN", "plain.PlainLoginModule")] {
            let base = secured(mechanism, module);
            for (name, password) in [("alice", "secret"), ("a\"b", "\\ x=\"y\"; required"), ("ä,=", "'")] {
                let login = jaas::login(base.with_login(name, password).unwrap().values()).unwrap();
                assert_eq!((login.username.as_str(), login.password.as_str(), login.mechanism.as_str()), (name, password, mechanism));
            }
            for (name, password) in [("", "x"), ("a\0b", "x"), ("a", "x\0bridge\0own")] {
                assert!(matches!(base.with_login(name, password), Err(KafkaError::Auth(_))), "{name:?}");
            }
        }
        let error = KafkaConfig::new("h:9092").with_login("alice", "secret").err().unwrap();
        assert!(error.to_string().contains("security.protocol"), "{error}");
    }
}
