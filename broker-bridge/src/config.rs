//! What can be set: `config/bridge.example.toml` shows every key with its default.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use service_kit::{
    KitConfig, ListenAddr,
    config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig, TlsConfig, at_least_one, duration, period},
    kafka::{deserialize_properties, deserialize_servers},
};

mod auth;

pub use auth::{Algorithm, Audit, Auth, CertificateName, Jwt, PassThrough, Quota};

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
    pub transactions: Transactions,
    pub consume: Consume,
    pub offsets: Offsets,
    pub topics: Topics,
    pub monitor: Monitor,
    pub registry: Registry,
    pub auth: Auth,
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
            transactions: Transactions::default(),
            consume: Consume::default(),
            offsets: Offsets::default(),
            topics: Topics::default(),
            monitor: Monitor::default(),
            registry: Registry::default(),
            auth: Auth::default(),
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
    /// Where the other bridges reach this one: `http://host:port`, or `https://` with TLS. Empty: where it listens, by the host's name if that is everywhere.
    pub advertised: String,
    /// As `[control.tls]`.
    pub tls: TlsConfig,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 8082)),
            compat: Compat::Confluent,
            advertised: String::new(),
            tls: TlsConfig::default(),
        }
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
    /// The topic of these results. It and a second one with `_claims` behind its name are created with the first batch that has a key. Every
    /// replica names the same one.
    pub dedup_topic: String,
    /// Partitions of both topics. Every replica has the same number here, and it is the topics'.
    #[serde(deserialize_with = "at_least_one")]
    pub dedup_partitions: u32,
    /// Replicas of both topics when they are created; 0: as the brokers' default says.
    pub dedup_replication_factor: u16,
    /// How long a replica that claimed a key may take to write it; then another one ends its transactions and writes it itself. A batch is
    /// given a third of it to be acknowledged, or half where its topic is slow.
    #[serde(with = "period")]
    pub dedup_lease: Duration,
    /// Requests with a key at a time; more get 429.
    #[serde(deserialize_with = "at_least_one")]
    pub keyed_requests_max: usize,
    /// Streams of records (`POST /v3/…/records`) at a time; more get 503.
    #[serde(deserialize_with = "at_least_one")]
    pub streams_max: usize,
    /// Records of one stream that are on their way at a time; the client is not read from while they are.
    #[serde(deserialize_with = "at_least_one")]
    pub stream_records_max: usize,
    /// The same in bytes, and the largest record of a stream.
    #[serde(deserialize_with = "at_least_one")]
    pub stream_bytes_max: usize,
}

impl Default for Produce {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            batch_records_max: 10_000,
            in_flight_bytes_max: 32 * 1024 * 1024,
            dedup_records_max: 1_000_000,
            dedup_age: Duration::from_secs(600),
            dedup_topic: "_millrace_idempotence".to_owned(),
            dedup_partitions: 4,
            dedup_replication_factor: 0,
            dedup_lease: Duration::from_secs(3),
            keyed_requests_max: 1_000,
            streams_max: 64,
            stream_records_max: 1_000,
            stream_bytes_max: 1024 * 1024,
        }
    }
}

impl Produce {
    /// `in_flight_bytes_max` in units of a KiB, at least one.
    pub(crate) fn room_kib(&self) -> u32 {
        u32::try_from(self.in_flight_bytes_max / 1024).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3)
    }

    /// `stream_bytes_max` in units of a KiB, at least one.
    pub(crate) fn stream_room_kib(&self) -> u32 {
        u32::try_from(self.stream_bytes_max / 1024).unwrap_or(u32::MAX).clamp(1, u32::MAX >> 3)
    }
}

/// `[transactions]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transactions {
    /// What the transactional ids begin with; no other process may have the same. Empty: made of host, listener and store.
    pub id: String,
    /// Transactions at a time; more get 429. Each has a writer of its own, which is kept for the next one.
    #[serde(deserialize_with = "at_least_one")]
    pub open_max: usize,
    /// Records in one transaction.
    #[serde(deserialize_with = "at_least_one")]
    pub records_max: usize,
    /// How long a transaction lives without a call where its caller does not say it; then it is aborted.
    #[serde(with = "period")]
    pub lease: Duration,
    /// How long one lives at most, and the longest lease.
    #[serde(with = "period")]
    pub timeout: Duration,
}

impl Default for Transactions {
    fn default() -> Self {
        Self { id: String::new(), open_max: 32, records_max: 100_000, lease: Duration::from_secs(10), timeout: Duration::from_secs(60) }
    }
}

impl BridgeConfig {
    /// What the transactional ids of this process begin with: the same after a restart, and no other process's.
    pub(crate) fn transactional_id(&self) -> String {
        if !self.transactions.id.is_empty() {
            return self.transactions.id.clone();
        }
        let (host, store) = self.offsets.place();
        let place = format!("{}\0{:?}\0{}", host.trim(), self.http.listen, store.display());
        format!("millrace-bridge-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, place.as_bytes()).simple())
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
    /// Half of it is kept, in equal parts, for consumers that hold less than their part.
    #[serde(deserialize_with = "at_least_one")]
    pub held_bytes_max: u64,
    /// What a subscribed consumer reads ahead of its client, in bytes, beside these; about one answer of a broker more. Of each partition, a record for each
    /// KiB of it at most: small ones cost more than their bytes.
    #[serde(deserialize_with = "at_least_one")]
    pub read_ahead_bytes_max: usize,
    /// Records on their way to one gRPC consumer, whatever credit it gives.
    #[serde(deserialize_with = "at_least_one")]
    pub credit_records_max: u32,
    /// Records of one partition that an instance with `delivery = acknowledged` may have out, from the lowest unacknowledged one on. Some 4,000 at
    /// most fit into the offset's metadata.
    #[serde(deserialize_with = "at_least_one")]
    pub window_records_max: usize,
    /// The topic that says which bridge holds which consumer instance; created when it is not there. Bridges that name the same one answer for each
    /// other, and a restarted one goes on. Empty: instances are this process's alone, and end with it.
    pub sessions_topic: String,
    /// Consumer instances of all these bridges together.
    #[serde(deserialize_with = "at_least_one")]
    pub directory_max: usize,
    /// A bridge that does not take a connection within this time has lost its instances to the one that was asked.
    #[serde(with = "period")]
    pub forward_connect_timeout: Duration,
    /// Connections to each other bridge that are kept for the next request.
    pub forward_idle_max: usize,
    /// PEM file of the authorities that the other bridges' certificates come from, where `[http.tls]` is set. Empty: the system's.
    pub forward_ca: PathBuf,
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
            read_ahead_bytes_max: 1024 * 1024,
            credit_records_max: 100_000,
            window_records_max: 1_000,
            sessions_topic: "_millrace_sessions".to_owned(),
            directory_max: 100_000,
            forward_connect_timeout: Duration::from_millis(500),
            forward_idle_max: 32,
            forward_ca: PathBuf::new(),
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
    /// Where Redis, ZooKeeper or HBase's REST gateway is. Required for these stores, and for no other.
    pub address: String,
    /// Table of the store in HBase; created when it is not there.
    pub hbase_table: String,
    /// Topic of the store in Kafka, beside Kafka's own offsets; created when it is not there.
    pub kafka_topic: String,
    /// How long a call waits for a store outside of the bridge.
    #[serde(with = "period")]
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    Sled,
    Kafka,
    Zookeeper,
    Redis,
    Hbase,
}

impl Default for Offsets {
    fn default() -> Self {
        Self {
            store: Store::Sled,
            path: "millrace-bridge-offsets".into(),
            address: String::new(),
            hbase_table: "millrace_offsets".to_owned(),
            kafka_topic: "_millrace_offsets".to_owned(),
            timeout: Duration::from_secs(5),
        }
    }
}

impl Offsets {
    /// Host and directory of the embedded store.
    fn place(&self) -> (String, PathBuf) {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        (host, std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()))
    }

    /// Bridges with the same one keep their offsets in the same place: whatever name each has for the servers of an outside store, the same database,
    /// path, table or topic in it; with sled, the same directory.
    pub(crate) fn identity(&self) -> String {
        match self.store {
            Store::Sled => {
                let (host, path) = self.place();
                format!("sled at {}:{}", host.trim(), path.display())
            }
            Store::Kafka => format!("kafka, topic {}", self.kafka_topic),
            Store::Hbase => format!("hbase, table {}", self.hbase_table),
            Store::Zookeeper => format!("zookeeper{}", self.path_of_address()),
            Store::Redis => format!("redis{}", self.path_of_address().trim_end_matches("/0")),
        }
    }

    /// What stands behind the servers: Redis' database, ZooKeeper's chroot.
    fn path_of_address(&self) -> &str {
        let servers = self.address.split_once("://").map_or(self.address.as_str(), |(_, servers)| servers);
        servers.find('/').map_or("", |at| servers[at..].trim_end_matches('/'))
    }
}

/// `[topics]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Topics {
    /// The most partitions that advice gives, and that a new topic may have.
    #[serde(deserialize_with = "at_least_one")]
    pub partitions_max: u32,
    /// Records a second that one partition should take at most; what is measured above asks for more partitions. 10 MB/s of 200 bytes each.
    #[serde(deserialize_with = "at_least_one")]
    pub partition_rate_max: u32,
    /// How long the bridge believes that a topic exists.
    #[serde(with = "duration")]
    pub metadata_age: Duration,
}

impl Default for Topics {
    fn default() -> Self {
        Self { partitions_max: 1_000, partition_rate_max: 50_000, metadata_age: Duration::from_secs(30) }
    }
}

/// `[monitor]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitor {
    /// How often brokers, replicas and lag are looked at. While the broker is away it is asked every second.
    #[serde(with = "period")]
    pub interval: Duration,
    /// Partitions of groups with a lag gauge, and groups with gauges of their own; what is above is counted and left out.
    pub lag_series_max: usize,
    /// What the cluster is called in Burrow's paths; Kafka's own id when empty.
    pub cluster: String,
    /// Commits and ends kept of a partition to judge a group by (Burrow's `intervals`).
    #[serde(deserialize_with = "at_least_one")]
    pub intervals: usize,
    /// A commit that follows sooner takes the place of the last one (`min-distance`).
    #[serde(with = "duration")]
    pub min_distance: Duration,
    /// Groups without members that have not committed for this long are forgotten (`expire-group`). Older commits are not read.
    #[serde(with = "period")]
    pub expire_group: Duration,
    /// Records that a group may be behind and still be well (`allowed-lag`).
    pub allowed_lag: u64,
    /// Share of `intervals`, 0 to 1, below which a partition counts as well (`minimum-complete`).
    pub minimum_complete: f64,
    /// Groups that are watched; what is above is counted and left out.
    #[serde(deserialize_with = "at_least_one")]
    pub groups_max: usize,
    /// Partitions of all groups that are watched; about 2 KiB each.
    #[serde(deserialize_with = "at_least_one")]
    pub group_partitions_max: usize,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            lag_series_max: 1_000,
            cluster: String::new(),
            intervals: 10,
            min_distance: Duration::from_secs(1),
            expire_group: Duration::from_secs(7 * 24 * 3600),
            allowed_lag: 0,
            minimum_complete: 0.0,
            groups_max: 20_000,
            group_partitions_max: 200_000,
        }
    }
}

/// `[registry]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// Where the registry's paths are by themselves, as Confluent's clients expect them. Empty: nowhere but beside the others, at `[http] listen`.
    #[serde(with = "or_nowhere")]
    pub listen: Option<ListenAddr>,
    /// As `[control.tls]`.
    pub tls: TlsConfig,
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
    /// What the schemas may need that records were written or read with last (formats avro, jsonschema, protobuf), in bytes, by a guess:
    /// 4 KiB each, and 16 times its text. The others are read again when they are needed.
    pub value_schemas_bytes_max: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            listen: Some(ListenAddr::new((Ipv4Addr::LOCALHOST, 8081))),
            tls: TlsConfig::default(),
            topic: "_schemas".to_owned(),
            replication_factor: 0,
            transactional_id: "millrace-schema-registry".to_owned(),
            freshness: Duration::from_millis(50),
            timeout: Duration::from_secs(15),
            bytes_max: 256 * 1024 * 1024,
            value_schemas_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// An address to listen on; an empty text for none.
mod or_nowhere {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use service_kit::ListenAddr;

    pub(super) fn serialize<S: Serializer>(listen: &Option<ListenAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        match listen {
            Some(listen) => serializer.collect_str(listen),
            None => serializer.serialize_str(""),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ListenAddr>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

#[cfg(test)]
mod tests {

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
    fn a_store_is_known_by_what_is_kept_where_and_not_by_its_servers_names() {
        let identity = |store, address: &str| Offsets { store, address: address.to_owned(), ..Offsets::default() }.identity();
        for same in ["redis://a", "redis://b:6379/", "redis://:secret@c/0"] {
            assert_eq!(identity(Store::Redis, same), "redis");
        }
        assert_eq!(identity(Store::Redis, "rediss://a/3"), "redis/3");
        assert_eq!(identity(Store::Zookeeper, "a:2181,b:2181"), "zookeeper");
        assert_eq!(identity(Store::Zookeeper, "a:2181,b:2181/kafka/one/"), "zookeeper/kafka/one");
        assert_eq!(identity(Store::Kafka, ""), "kafka, topic _millrace_offsets");
    }

    #[test]
    fn the_registry_s_own_port_can_be_moved_and_switched_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.toml");
        let load = |listen: &str| {
            std::fs::write(&path, format!("[registry]\nlisten = {listen:?}\n")).unwrap();
            service_kit::config::load::<BridgeConfig>(Some(&path), serde_json::Value::Null)
        };
        for (listen, shown) in [("", "listen = \"\""), ("[::1]:0", "listen = \"[::1]:0\""), ("localhost:81", "listen = \"127.0.0.1:81\"")] {
            let config = load(listen).unwrap();
            assert_eq!(config.registry.listen.is_none(), listen.is_empty());
            let rendered = service_kit::config::render(&config);
            let section = rendered.split("[registry]").nth(1).unwrap();
            assert!(section.contains(shown), "{section}");
        }
        let error = load("off").unwrap_err().to_string();
        assert!(error.contains("b.toml:2: registry.listen: `off` is not an address to listen on"), "{error}");
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
