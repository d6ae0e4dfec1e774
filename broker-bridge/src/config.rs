//! What can be set: `config/bridge.example.toml` shows every key with its default.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use service_kit::{
    KitConfig, ListenAddr,
    config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig, at_least_one, duration, period},
    kafka::{deserialize_properties, deserialize_servers},
};

/// The whole configuration of `millrace-bridge`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgeConfig {
    pub control: ControlConfig,
    pub telemetry: TelemetryConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
    pub kafka: Kafka,
    pub http: Http,
    pub produce: Produce,
    pub consume: Consume,
    pub offsets: Offsets,
    pub topics: Topics,
    pub monitor: Monitor,
    pub registry: Registry,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            control: ControlConfig::on_port(7102),
            telemetry: TelemetryConfig::default(),
            shutdown: ShutdownConfig::default(),
            limits: LimitsConfig::default(),
            kafka: Kafka::default(),
            http: Http::default(),
            produce: Produce::default(),
            consume: Consume::default(),
            offsets: Offsets::default(),
            topics: Topics::default(),
            monitor: Monitor::default(),
            registry: Registry::default(),
        }
    }
}

impl BridgeConfig {
    pub fn kit(&self) -> KitConfig {
        KitConfig {
            control: self.control.clone(),
            telemetry: self.telemetry.clone(),
            shutdown: self.shutdown.clone(),
            limits: self.limits.clone(),
        }
    }
}

/// `[kafka]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kafka {
    /// Brokers to start from: `host:port,host:port`. Required.
    #[serde(deserialize_with = "deserialize_servers")]
    pub bootstrap_servers: String,
    /// Any further setting by its Java name: `"security.protocol" = "SASL_SSL"`. Holds for every client of the bridge.
    #[serde(deserialize_with = "deserialize_properties")]
    pub properties: BTreeMap<String, String>,
}

/// Whose behaviour the v2 paths have where the two differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// A committed offset is the last one processed; `200 []` answers a commit.
    #[default]
    Confluent,
    /// A committed offset is the next one to read; `204` answers a commit; records carry their timestamp.
    Strimzi,
}

/// `[http]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub listen: ListenAddr,
    pub compat: Compat,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 8082)), compat: Compat::Confluent }
    }
}

/// `[produce]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Produce {
    /// How long a request waits for its records' acknowledgement. A record may be written later still, until Kafka's `delivery.timeout.ms`.
    #[serde(with = "period")]
    pub timeout: Duration,
    /// Records in one request.
    #[serde(deserialize_with = "at_least_one")]
    pub batch_records_max: usize,
    /// Records of all requests that are taken and not yet acknowledged, in bytes; more wait, and are refused after `timeout`.
    #[serde(deserialize_with = "at_least_one")]
    pub in_flight_bytes_max: u64,
    /// Results kept to answer repeated batches (`batch_id`, `Idempotency-Key`), counted in records; the oldest batches go first.
    pub dedup_records_max: usize,
    /// How long a batch's results are kept.
    #[serde(with = "duration")]
    pub dedup_age: Duration,
}

impl Default for Produce {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            batch_records_max: 10_000,
            in_flight_bytes_max: 32 * 1024 * 1024,
            dedup_records_max: 1_000_000,
            dedup_age: Duration::from_secs(600),
        }
    }
}

impl Produce {
    /// `in_flight_bytes_max` in units of a KiB, at least one.
    pub(crate) fn room_kib(&self) -> u32 {
        u32::try_from(self.in_flight_bytes_max / 1024).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3)
    }
}

/// `[consume]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Consume {
    /// Consumer instances and gRPC consumers at a time.
    #[serde(deserialize_with = "at_least_one")]
    pub sessions_max: usize,
    /// An instance that was not used for this long leaves its group. What it has not acknowledged is delivered again.
    #[serde(with = "period")]
    pub session_idle: Duration,
    /// How long a request for records waits for the first one, where neither request nor instance says it.
    #[serde(with = "period")]
    pub request_timeout: Duration,
    /// The longest a request for records may wait.
    #[serde(with = "period")]
    pub request_timeout_max: Duration,
    /// Largest answer in bytes; also bounds what an instance holds ready.
    #[serde(deserialize_with = "at_least_one")]
    pub response_bytes_max: usize,
    /// What all consumers hold ready and all answers on their way, in bytes; at the bound, no more is read from Kafka until some of it is taken.
    #[serde(deserialize_with = "at_least_one")]
    pub held_bytes_max: u64,
    /// Records on their way to one gRPC consumer, whatever credit it gives.
    #[serde(deserialize_with = "at_least_one")]
    pub credit_records_max: u32,
}

impl Default for Consume {
    fn default() -> Self {
        Self {
            sessions_max: 1_000,
            session_idle: Duration::from_secs(300),
            request_timeout: Duration::from_secs(1),
            request_timeout_max: Duration::from_secs(25),
            response_bytes_max: 64 * 1024 * 1024,
            held_bytes_max: 64 * 1024 * 1024,
            credit_records_max: 100_000,
        }
    }
}

/// `[offsets]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Offsets {
    /// Where the groups' offsets are kept.
    pub store: Store,
    /// Directory of the embedded store; one process at a time.
    pub path: PathBuf,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    Sled,
}

impl Default for Offsets {
    fn default() -> Self {
        Self { store: Store::Sled, path: "millrace-bridge-offsets".into() }
    }
}

/// `[topics]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// The most partitions that advice gives, and that a new topic may have.
    #[serde(deserialize_with = "at_least_one")]
    pub partitions_max: u32,
    /// How long the bridge believes that a topic exists.
    #[serde(with = "duration")]
    pub metadata_age: Duration,
}

impl Default for Topics {
    fn default() -> Self {
        Self { partitions_max: 1_000, metadata_age: Duration::from_secs(30) }
    }
}

/// `[monitor]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// How often brokers, replicas and lag are looked at. While the broker is away it is asked every second.
    #[serde(with = "period")]
    pub interval: Duration,
    /// Partitions of groups with a lag gauge; what is above is counted and left out.
    pub lag_series_max: usize,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), lag_series_max: 1_000 }
    }
}

/// `[registry]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// The topic that holds the schemas: one partition, compacted. It is created with the first write. Every replica names the same one.
    pub topic: String,
    /// Replicas of the topic when it is created; 0: as the brokers' default says.
    pub replication_factor: u16,
    /// Who holds this transactional id writes to the topic; the replicas take it from each other. Every replica names the same one.
    pub transactional_id: String,
    /// So old may be what an answer is made of; 0 asks Kafka for every request.
    #[serde(with = "duration")]
    pub freshness: Duration,
    /// How long a request may take: its turn, the write, and until it can be read here.
    #[serde(with = "period")]
    pub timeout: Duration,
    /// What all schemas may need in memory, in bytes. More are refused; a topic that holds more is not served.
    #[serde(deserialize_with = "at_least_one")]
    pub bytes_max: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            topic: "_schemas".to_owned(),
            replication_factor: 0,
            transactional_id: "millrace-schema-registry".to_owned(),
            freshness: Duration::from_millis(50),
            timeout: Duration::from_secs(15),
            bytes_max: 256 * 1024 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/bridge.example.toml");
        let mut example: BridgeConfig = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(example.kafka.bootstrap_servers, "127.0.0.1:9092");
        example.kafka.bootstrap_servers.clear();
        let (example, default) = (serde_json::to_value(&example).unwrap(), serde_json::to_value(BridgeConfig::default()).unwrap());
        assert_eq!(example, default);
        let shown: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        for (section, keys) in default.as_object().unwrap() {
            // The kit's own sections are in its reference.
            if ["control", "telemetry", "shutdown", "limits"].contains(&section.as_str()) {
                continue;
            }
            for key in keys.as_object().unwrap().keys() {
                assert!(shown[section].as_table().unwrap().contains_key(key), "[{section}] {key} is missing in the example");
            }
        }
    }

    #[test]
    fn values_without_which_there_is_no_work_and_wrong_kafka_settings_are_refused_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.toml");
        let text = "[kafka]\nbootstrap_servers = \"http://user:hunter2@h:1\"\n[kafka.properties]\nacks = \"7\"\n\"linger.ms\" = \"x\"\n\
            [produce]\ntimeout = \"0s\"\nbatch_records_max = 0\n[consume]\nsessions_max = 0\nsession_idle = \"0s\"\nrequest_timeout = \"0s\"\n\
            [topics]\npartitions_max = 0\n[monitor]\ninterval = \"0s\"\n";
        std::fs::write(&path, text).unwrap();
        let errors = service_kit::config::load::<BridgeConfig>(Some(&path), serde_json::Value::Null).unwrap_err();
        let places: Vec<String> =
            errors.0.iter().map(|error| error.place.rsplit(':').next().unwrap().to_owned() + " " + &error.key).collect();
        let expected = [
            "2 kafka.bootstrap_servers",
            "4 kafka.properties.acks",
            "5 kafka.properties.linger.ms",
            "7 produce.timeout",
            "8 produce.batch_records_max",
            "10 consume.sessions_max",
            "11 consume.session_idle",
            "12 consume.request_timeout",
            "14 topics.partitions_max",
            "16 monitor.interval",
        ];
        assert_eq!(places, expected, "{errors}");
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
    }
}
