//! Java property names → librdkafka's, as one table.
//!
//! Each property is passed on (under the same or another name), read by Millrace itself, accepted without effect (with
//! a note that says why), or refused (with the remedy). What depends on several properties at once (idempotence, SASL,
//! TLS stores) follows below the table.

use std::collections::BTreeMap;

use super::KafkaError;
use super::config::FETCH_BYTES_MAX;
use super::jaas::{KERBEROS, OAUTH, login};
use crate::config::is_secret;

/// What a client is made for; decides which properties it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Producer,
    Transactional,
    /// Reads partitions it names itself.
    Reader,
    Member,
    Admin,
}

impl Role {
    fn side(self) -> Side {
        match self {
            Role::Producer | Role::Transactional => Producer,
            Role::Reader | Role::Member => Consumer,
            Role::Admin => Both,
        }
    }
}

/// Which clients a property belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Producer,
    Consumer,
    Both,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Int(i64, i64),
    Bool,
    /// Compared and passed on in lower case.
    OneOf(&'static [&'static str]),
    /// `host:port`, separated by commas.
    Servers,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Same,
    As(&'static str),
    /// Used by Millrace, or by the rules below the table.
    Own,
    Note(&'static str),
    Refuse(&'static str),
}

struct Property {
    name: &'static str,
    side: Side,
    kind: Kind,
    way: Way,
}

const fn row(name: &'static str, side: Side, kind: Kind, way: Way) -> Property {
    Property { name, side, kind, way }
}

use Kind::{Bool, Int, OneOf, Servers, Text};
use Side::{Both, Consumer, Producer};
use Way::{As, Note, Own, Refuse, Same};

const MS_MAX: i64 = i32::MAX as i64;
const COMPRESSION: Kind = OneOf(&["none", "gzip", "snappy", "lz4", "zstd"]);
const PEM: &str = "Java key stores are not read. Export the certificates as PEM \
    (keytool -importkeystore … -deststoretype PKCS12, then openssl pkcs12 -in … -out ….pem) and set the type to PEM";
const CODE: &str = "Java classes cannot be loaded; remove it";
const JMX: &str = "metrics are served for Prometheus";
const BACKOFF: &str = "librdkafka chooses it itself";
const DRIVEN: &str = "Millrace decides how much it asks for and when it commits";

const TABLE: &[Property] = &[
    // Every client
    row("bootstrap.servers", Both, Servers, Own),
    row("client.id", Both, Text, Same),
    row("client.rack", Consumer, Text, Same),
    row("client.dns.lookup", Both, OneOf(&["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"]), Same),
    row("default.api.timeout.ms", Both, Int(1, MS_MAX), Own),
    row("metadata.max.age.ms", Both, Int(10, 3_600_000), As("topic.metadata.refresh.interval.ms")),
    // Of Java's consumers alone; without it, a producer that has written to a topic creates it again when it is deleted.
    row("allow.auto.create.topics", Both, Bool, Same),
    row("metadata.max.idle.ms", Producer, Int(0, MS_MAX), Note("topics are kept while the client lives")),
    row("metadata.recovery.strategy", Both, OneOf(&["none", "rebootstrap"]), Same),
    row("metadata.recovery.rebootstrap.trigger.ms", Both, Int(0, MS_MAX), Same),
    row("connections.max.idle.ms", Both, Int(0, MS_MAX), Same),
    row("reconnect.backoff.ms", Both, Int(0, 3_600_000), Same),
    row("reconnect.backoff.max.ms", Both, Int(0, 3_600_000), Same),
    row("retry.backoff.ms", Both, Int(1, 300_000), Same),
    row("retry.backoff.max.ms", Both, Int(1, 300_000), Same),
    row("request.timeout.ms", Both, Int(10, 300_000), Own),
    row("socket.connection.setup.timeout.ms", Both, Int(1000, MS_MAX), Same),
    row("socket.connection.setup.timeout.max.ms", Both, Int(1000, MS_MAX), Note(BACKOFF)),
    row("send.buffer.bytes", Both, Int(-1, 100_000_000), Own),
    row("receive.buffer.bytes", Both, Int(-1, 100_000_000), Own),
    row("interceptor.classes", Both, Text, Refuse(CODE)),
    row("metric.reporters", Both, Text, Note(JMX)),
    row("auto.include.jmx.reporter", Both, Bool, Note(JMX)),
    row("metrics.num.samples", Both, Int(1, MS_MAX), Note(JMX)),
    row("metrics.recording.level", Both, Text, Note(JMX)),
    row("metrics.sample.window.ms", Both, Int(0, MS_MAX), Note(JMX)),
    row("enable.metrics.push", Both, Bool, Same),
    row(
        "config.providers",
        Both,
        Text,
        Refuse("values are taken as they stand; write them out, or use ${env:NAME} where the file allows it"),
    ),
    // Security
    row("security.protocol", Both, OneOf(&["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]), Same),
    row("security.providers", Both, Text, Refuse(CODE)),
    row("sasl.mechanism", Both, Text, Own),
    row("sasl.jaas.config", Both, Text, Own),
    row("sasl.client.callback.handler.class", Both, Text, Refuse(CODE)),
    row("sasl.login.callback.handler.class", Both, Text, Refuse(CODE)),
    row("sasl.login.class", Both, Text, Refuse(CODE)),
    row("sasl.kerberos.service.name", Both, Text, Refuse(KERBEROS)),
    row("sasl.kerberos.kinit.cmd", Both, Text, Refuse(KERBEROS)),
    row("sasl.oauthbearer.token.endpoint.url", Both, Text, Refuse(OAUTH)),
    row("sasl.oauthbearer.jwks.endpoint.url", Both, Text, Refuse(OAUTH)),
    row("ssl.truststore.type", Both, OneOf(&["pem", "jks", "pkcs12"]), Own),
    row("ssl.truststore.location", Both, Text, Own),
    row("ssl.truststore.certificates", Both, Text, As("ssl.ca.pem")),
    row("ssl.truststore.password", Both, Text, Note("PEM trust stores have none")),
    row("ssl.keystore.type", Both, OneOf(&["pem", "jks", "pkcs12"]), Own),
    row("ssl.keystore.location", Both, Text, Own),
    row("ssl.keystore.password", Both, Text, Own),
    row("ssl.keystore.certificate.chain", Both, Text, As("ssl.certificate.pem")),
    row("ssl.keystore.key", Both, Text, As("ssl.key.pem")),
    row("ssl.key.password", Both, Text, Same),
    row("ssl.endpoint.identification.algorithm", Both, OneOf(&["https", ""]), Own),
    row("ssl.protocol", Both, Text, Note("OpenSSL agrees the highest version both sides have")),
    row("ssl.enabled.protocols", Both, Text, Note("OpenSSL agrees the highest version both sides have")),
    row("ssl.cipher.suites", Both, Text, Same),
    row("ssl.provider", Both, Text, Note("OpenSSL is used")),
    row("ssl.keymanager.algorithm", Both, Text, Note("OpenSSL is used")),
    row("ssl.trustmanager.algorithm", Both, Text, Note("OpenSSL is used")),
    row("ssl.secure.random.implementation", Both, Text, Note("OpenSSL is used")),
    row("ssl.engine.factory.class", Both, Text, Refuse(CODE)),
    // Producer
    row("acks", Producer, OneOf(&["all", "-1", "0", "1"]), Own),
    row("enable.idempotence", Producer, Bool, Own),
    row("retries", Producer, Int(0, MS_MAX), Own),
    row("max.in.flight.requests.per.connection", Producer, Int(1, 1_000_000), Own),
    row("compression.type", Producer, COMPRESSION, Same),
    row("compression.gzip.level", Producer, Int(-1, 9), Own),
    row("compression.lz4.level", Producer, Int(0, 17), Own),
    row("compression.zstd.level", Producer, Int(-131_072, 22), Own),
    row("linger.ms", Producer, Int(0, 900_000), Same),
    row("batch.size", Producer, Int(0, MS_MAX), Own),
    row("max.request.size", Producer, Int(1000, 1_000_000_000), As("message.max.bytes")),
    row("buffer.memory", Producer, Int(1024, 1 << 40), Own),
    row("delivery.timeout.ms", Producer, Int(1, MS_MAX), Same),
    row("max.block.ms", Producer, Int(0, 3_600_000), As("topic.metadata.propagation.max.ms")),
    row("partitioner.class", Producer, Text, Own),
    row("partitioner.ignore.keys", Producer, Bool, Own),
    row(
        "partitioner.adaptive.partitioning.enable",
        Producer,
        Bool,
        Note("a partition is kept for 10 ms, or twice linger.ms, whatever the broker's load"),
    ),
    row(
        "partitioner.availability.timeout.ms",
        Producer,
        Int(0, MS_MAX),
        Note("a partition is kept for 10 ms, or twice linger.ms, whatever the broker's load"),
    ),
    row("transactional.id", Producer, Text, Own),
    row("transaction.timeout.ms", Producer, Int(1000, MS_MAX), Own),
    row("transaction.two.phase.commit.enable", Producer, Bool, Refuse("two-phase commit is not offered; remove it")),
    row("key.serializer", Producer, Text, Own),
    row("value.serializer", Producer, Text, Own),
    // Consumer
    row("group.id", Consumer, Text, Own),
    row("group.instance.id", Consumer, Text, Own),
    row("group.protocol", Consumer, OneOf(&["classic", "consumer"]), Own),
    row("group.remote.assignor", Consumer, Text, Own),
    row("partition.assignment.strategy", Consumer, Text, Own),
    row("session.timeout.ms", Consumer, Int(1, 3_600_000), Same),
    row("heartbeat.interval.ms", Consumer, Int(1, 3_600_000), Same),
    row("max.poll.interval.ms", Consumer, Int(1, 86_400_000), Same),
    row("max.poll.records", Consumer, Int(1, MS_MAX), Note(DRIVEN)),
    row("auto.offset.reset", Consumer, OneOf(&["earliest", "latest", "none"]), Own),
    row("isolation.level", Consumer, OneOf(&["read_uncommitted", "read_committed"]), Own),
    row("enable.auto.commit", Consumer, Bool, Note(DRIVEN)),
    row("auto.commit.interval.ms", Consumer, Int(0, MS_MAX), Note(DRIVEN)),
    row("fetch.min.bytes", Consumer, Int(1, 100_000_000), Same),
    row("fetch.max.bytes", Consumer, Int(1000, 2_147_000_000), Same),
    row("fetch.max.wait.ms", Consumer, Int(0, 300_000), As("fetch.wait.max.ms")),
    row("max.partition.fetch.bytes", Consumer, Int(1, 1_000_000_000), Own),
    row("check.crcs", Consumer, Bool, Same),
    row("exclude.internal.topics", Consumer, Bool, Note("topics are named, never matched by a pattern")),
    row("key.deserializer", Consumer, Text, Own),
    row("value.deserializer", Consumer, Text, Own),
];

/// Said of a property that no client has.
pub const UNKNOWN: &str = "is not a property of Kafka's clients; it has no effect";

/// Notes on everything that has no effect; an error for the first value that cannot be used.
pub(super) fn check(values: &BTreeMap<String, String>) -> Result<Vec<String>, KafkaError> {
    let mut notes = Vec::new();
    for (key, value) in values {
        let Some(property) = find(key) else {
            notes.push(format!("{key} {UNKNOWN}"));
            continue;
        };
        property.checked(value)?;
        if let Note(why) = property.way {
            notes.push(format!("{key} has no effect: {why}"));
        }
    }
    for role in [Role::Producer, Role::Transactional, Role::Reader, Role::Member] {
        for note in translate_with_notes(values, role)?.1 {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(notes)
}

/// librdkafka's settings for one role, without `bootstrap.servers`. Later entries do not repeat earlier keys.
pub(super) fn translate(values: &BTreeMap<String, String>, role: Role) -> Result<BTreeMap<String, String>, KafkaError> {
    Ok(translate_with_notes(values, role)?.0)
}

/// An error where this value cannot be used, whatever the others are.
pub(super) fn check_one(key: &str, value: &str) -> Result<(), KafkaError> {
    find(key).map_or(Ok(()), |property| property.checked(value).map(drop))
}

pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|property| property.name)
}

fn find(key: &str) -> Option<&'static Property> {
    TABLE.iter().find(|property| property.name == key)
}

impl Property {
    /// The value as it is passed on.
    fn checked(&self, value: &str) -> Result<String, KafkaError> {
        let value = value.trim();
        let wrong = |expected: String| {
            let shown = if is_secret(self.name) { "***" } else { value };
            KafkaError::Config(format!("{} = {shown}: expected {expected}", self.name))
        };
        match self.kind {
            Text => {}
            Servers => {
                if let Some(reason) = super::config::server_names(value).find_map(|name| super::config::server(name).err()) {
                    return Err(KafkaError::Config(format!("{}: {reason}", self.name)));
                }
            }
            Int(min, max) => {
                if !value.parse::<i64>().is_ok_and(|number| (min..=max).contains(&number)) {
                    return Err(wrong(format!("a whole number from {min} to {max}")));
                }
            }
            Bool => {
                if !["true", "false"].contains(&value.to_ascii_lowercase().as_str()) {
                    return Err(wrong("true or false".into()));
                }
            }
            OneOf(choices) => {
                if !choices.contains(&value.to_ascii_lowercase().as_str()) {
                    let shown = choices.iter().map(|choice| if choice.is_empty() { "\"\"" } else { choice });
                    return Err(wrong(format!("one of {}", shown.collect::<Vec<_>>().join(", "))));
                }
            }
        }
        if let Refuse(remedy) = self.way {
            return Err(KafkaError::Config(format!("{} is refused: {remedy}", self.name)));
        }
        Ok(if matches!(self.kind, Bool | OneOf(_)) { value.to_ascii_lowercase() } else { value.to_owned() })
    }
}

/// The properties while they are being translated.
struct Translation<'a> {
    values: &'a BTreeMap<String, String>,
    native: BTreeMap<String, String>,
    notes: Vec<String>,
}

fn translate_with_notes(values: &BTreeMap<String, String>, role: Role) -> Result<(BTreeMap<String, String>, Vec<String>), KafkaError> {
    let mut t = Translation { values, native: BTreeMap::new(), notes: Vec::new() };
    t.defaults(role);
    for (key, value) in values {
        let Some(property) = find(key) else { continue };
        let value = property.checked(value)?;
        let wanted = property.side == Both || property.side == role.side();
        match property.way {
            Same if wanted => t.put(property.name, value),
            As(native) if wanted => t.put(native, value),
            _ => {}
        }
    }
    t.network();
    t.security()?;
    match role.side() {
        Producer => t.producer(role)?,
        Consumer => t.consumer(role)?,
        Both => {}
    }
    Ok((t.native, t.notes))
}

impl Translation<'_> {
    fn put(&mut self, key: &str, value: impl Into<String>) {
        self.native.insert(key.to_owned(), value.into());
    }

    /// Trimmed and, where the table says so, in lower case. The table has checked it before.
    fn get(&self, key: &str) -> Option<String> {
        let value = self.values.get(key)?;
        find(key).and_then(|property| property.checked(value).ok())
    }

    fn int(&self, key: &str) -> Option<i64> {
        self.get(key).and_then(|value| value.parse().ok())
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Where Millrace's default is not librdkafka's. Most of these are Java's.
    fn defaults(&mut self, role: Role) {
        self.put("client.id", "millrace");
        self.put("socket.nagle.disable", "true");
        self.put("reconnect.backoff.ms", "50");
        self.put("reconnect.backoff.max.ms", "1000");
        self.put("socket.timeout.ms", "30000");
        match role {
            Role::Producer | Role::Transactional => {
                // A call waits for its records, so waiting long for more of them gains nothing.
                self.put("linger.ms", if role == Role::Transactional { "0" } else { "1" });
                self.put("delivery.timeout.ms", "120000");
                self.put("message.max.bytes", "1048576");
                self.put("batch.size", "262144");
                self.put("topic.metadata.propagation.max.ms", "10000");
                self.put("partitioner", "murmur2_random");
                // The producer bounds what is queued itself (buffer.memory, overhead included), so that a full queue waits.
                self.put("queue.buffering.max.messages", "10000000");
                self.put("queue.buffering.max.kbytes", "2147483647");
                if role == Role::Transactional {
                    // Back-to-back transactions wait this long while the broker finishes the one before.
                    self.put("retry.backoff.ms", "5");
                }
            }
            Role::Reader | Role::Member => {
                self.put("enable.auto.commit", "false");
                self.put("enable.auto.offset.store", "false");
                self.put("check.crcs", "true");
                self.put("fetch.error.backoff.ms", "50");
                // A full local queue asks again this much later; the default of 1 s would make fast readers stutter.
                self.put("fetch.queue.backoff.ms", "5");
                self.put("queued.max.messages.kbytes", "8192");
            }
            Role::Admin => {}
        }
    }

    fn network(&mut self) {
        if let Some(ms) = self.get("request.timeout.ms") {
            self.put("socket.timeout.ms", ms);
        }
        for (java, native) in [("send.buffer.bytes", "socket.send.buffer.bytes"), ("receive.buffer.bytes", "socket.receive.buffer.bytes")] {
            // Java's -1 is librdkafka's 0: the system's default.
            if let Some(bytes) = self.int(java) {
                self.put(native, bytes.max(0).to_string());
            }
        }
    }

    fn security(&mut self) -> Result<(), KafkaError> {
        let protocol = self.get("security.protocol").unwrap_or_else(|| "plaintext".into());
        if protocol.starts_with("sasl_") {
            let login = login(self.values)?;
            self.put("sasl.mechanism", login.mechanism);
            self.put("sasl.username", login.username);
            self.put("sasl.password", login.password);
        } else if self.values.keys().any(|key| key.starts_with("sasl.")) {
            self.note(format!("sasl.* has no effect: security.protocol is {protocol}"));
        }
        if !protocol.ends_with("ssl") {
            if self.values.keys().any(|key| key.starts_with("ssl.")) {
                self.note(format!("ssl.* has no effect: security.protocol is {protocol}"));
            }
            self.native.retain(|key, _| !key.starts_with("ssl."));
            return Ok(());
        }
        self.stores()?;
        if self.get("ssl.endpoint.identification.algorithm").is_some_and(|name| name.is_empty()) {
            self.put("ssl.endpoint.identification.algorithm", "none");
        }
        Ok(())
    }

    fn stores(&mut self) -> Result<(), KafkaError> {
        let refuse = |key: &str| Err(KafkaError::Config(format!("{key} is refused: {PEM}")));
        let type_of = |t: &Self, key: &str, location: &str| {
            let by_name = if location.ends_with(".pem") || location.ends_with(".crt") { "pem" } else { "jks" };
            t.get(key).unwrap_or_else(|| by_name.into())
        };
        if let Some(location) = self.get("ssl.truststore.location") {
            match type_of(self, "ssl.truststore.type", &location).as_str() {
                "pem" => self.put("ssl.ca.location", location),
                _ => return refuse("ssl.truststore.location"),
            }
        }
        if let Some(location) = self.get("ssl.keystore.location") {
            match type_of(self, "ssl.keystore.type", &location).as_str() {
                // Java's PEM store holds the key and its certificates in one file; OpenSSL finds each in it.
                "pem" => {
                    self.put("ssl.certificate.location", location.clone());
                    self.put("ssl.key.location", location);
                }
                "pkcs12" => {
                    self.put("ssl.keystore.location", location);
                    self.put("ssl.keystore.password", self.get("ssl.keystore.password").unwrap_or_default());
                }
                _ => return refuse("ssl.keystore.location"),
            }
        }
        Ok(())
    }

    fn producer(&mut self, role: Role) -> Result<(), KafkaError> {
        for key in ["key.serializer", "value.serializer"] {
            self.codec(key, &["StringSerializer", "ByteArraySerializer", "ByteBufferSerializer", "BytesSerializer"])?;
        }
        self.idempotence(role)?;
        if let Some(ms) = self.get("request.timeout.ms") {
            self.put("request.timeout.ms", ms);
        }
        match self.int("batch.size") {
            Some(0) => {
                self.put("batch.num.messages", "1");
                self.native.remove("batch.size");
            }
            Some(bytes) => self.put("batch.size", bytes.to_string()),
            None => {}
        }
        let level = match self.native.get("compression.type").map(String::as_str) {
            Some("gzip") => self.get("compression.gzip.level"),
            Some("lz4") => self.get("compression.lz4.level"),
            Some("zstd") => self.get("compression.zstd.level"),
            _ => None,
        };
        if let Some(level) = level {
            self.put("compression.level", level);
        }
        self.partitioner()?;
        if role == Role::Transactional
            && let Some(ms) = self.int("transaction.timeout.ms")
        {
            self.put("transaction.timeout.ms", ms.to_string());
            // librdkafka refuses a longer network timeout than the transaction's own.
            let socket = self.native.get("socket.timeout.ms").and_then(|value| value.parse().ok()).unwrap_or(30_000);
            self.put("socket.timeout.ms", socket.min(ms).to_string());
        }
        if role == Role::Transactional {
            // A record may not outlive its transaction.
            let transaction = self.int("transaction.timeout.ms").unwrap_or(60_000);
            let delivery = self.int("delivery.timeout.ms").unwrap_or(120_000);
            self.put("delivery.timeout.ms", delivery.min(transaction).to_string());
        }
        Ok(())
    }

    /// As in Java: on by default, off (with a note) where another setting contradicts it, an error where it was asked for.
    fn idempotence(&mut self, role: Role) -> Result<(), KafkaError> {
        let acks = self.get("acks").unwrap_or_else(|| "all".into());
        let acks_all = acks == "all" || acks == "-1";
        let in_flight = self.int("max.in.flight.requests.per.connection");
        let retries = self.int("retries");
        let contradiction = if !acks_all {
            Some(format!("acks = {acks}"))
        } else if in_flight.is_some_and(|count| count > 5) {
            Some("max.in.flight.requests.per.connection above 5".into())
        } else if retries == Some(0) {
            Some("retries = 0".into())
        } else {
            None
        };
        let asked = match role {
            Role::Transactional => Some("a transactional producer".to_owned()),
            _ => self.get("enable.idempotence").filter(|value| value == "true").map(|_| "enable.idempotence".to_owned()),
        };
        let off = self.get("enable.idempotence").is_some_and(|value| value == "false");
        let on = match (contradiction, asked) {
            (Some(setting), Some(_)) if role == Role::Transactional => {
                // The setting is meant for the plain producer of the same configuration.
                self.note(format!("{setting} has no effect in transactions, which need acks = all and retries"));
                self.put("acks", "all");
                self.put("enable.idempotence", "true");
                return Ok(());
            }
            (Some(setting), Some(asked)) => {
                return Err(KafkaError::Config(format!(
                    "{asked} needs acks = all, retries above 0 and max.in.flight.requests.per.connection of at most 5, \
                     but {setting} is set: remove one of the two"
                )));
            }
            (Some(setting), None) => {
                if !off {
                    self.note(format!("{setting} turns idempotence off: a retried request may write records twice"));
                }
                false
            }
            (None, Some(_)) => true,
            (None, None) => !off,
        };
        self.put("enable.idempotence", on.to_string());
        self.put("acks", if acks_all { "all".into() } else { acks });
        if let Some(count) = in_flight {
            self.put("max.in.flight.requests.per.connection", count.to_string());
        }
        if let Some(count) = retries {
            self.put("retries", count.to_string());
        }
        Ok(())
    }

    fn partitioner(&mut self) -> Result<(), KafkaError> {
        // Keyless records stay in a partition for this long, so that batches are large.
        let linger = self.native.get("linger.ms").and_then(|value| value.parse::<i64>().ok()).unwrap_or_default();
        self.put("sticky.partitioning.linger.ms", (2 * linger).clamp(10, 900_000).to_string());
        let class = self.get("partitioner.class").unwrap_or_default();
        match class.rsplit('.').next().unwrap_or_default() {
            "" | "DefaultPartitioner" => {}
            "UniformStickyPartitioner" => self.put("partitioner", "random"),
            "RoundRobinPartitioner" => {
                self.put("partitioner", "random");
                self.put("sticky.partitioning.linger.ms", "0");
                self.note("partitioner.class = RoundRobinPartitioner spreads records at random, not in turn");
            }
            _ => {
                return Err(KafkaError::Config(format!(
                    "partitioner.class = {class} is refused: Java classes cannot be loaded; use the default, \
                     RoundRobinPartitioner or UniformStickyPartitioner, or set each record's partition"
                )));
            }
        }
        if self.get("partitioner.ignore.keys").is_some_and(|value| value == "true") {
            self.put("partitioner", "random");
        }
        Ok(())
    }

    fn consumer(&mut self, role: Role) -> Result<(), KafkaError> {
        for key in ["key.deserializer", "value.deserializer"] {
            self.codec(key, &["StringDeserializer", "ByteArrayDeserializer", "ByteBufferDeserializer", "BytesDeserializer"])?;
        }
        let bytes = self.int("max.partition.fetch.bytes").unwrap_or_else(|| FETCH_BYTES_MAX.into());
        self.put("fetch.message.max.bytes", bytes.to_string());
        if let Some(bytes) = self.int("fetch.max.bytes") {
            // librdkafka refuses a record limit above, or a response limit below, what one fetch may bring.
            self.put("message.max.bytes", bytes.clamp(1000, 1_000_000).to_string());
            self.put("receive.message.max.bytes", bytes.saturating_add(1024).clamp(100_000_000, MS_MAX).to_string());
        }
        let strategy = self.get("partition.assignment.strategy").unwrap_or_default();
        let strategy = assignor(&strategy)?;
        if role != Role::Member {
            return Ok(());
        }
        let protocol = self.get("group.protocol").unwrap_or_else(|| "classic".into());
        self.put("group.protocol", protocol.clone());
        if protocol == "consumer" {
            if let Some(name) = self.get("group.remote.assignor") {
                self.put("group.remote.assignor", name);
            }
            // The broker sets these for the newer protocol, and librdkafka refuses them.
            for key in ["session.timeout.ms", "heartbeat.interval.ms"] {
                if self.native.remove(key).is_some() {
                    self.note(format!("{key} has no effect: with group.protocol = consumer the broker decides it"));
                }
            }
        } else {
            self.put("partition.assignment.strategy", strategy);
        }
        if let Some(id) = self.get("group.instance.id") {
            self.put("group.instance.id", id);
        }
        if let Some(level) = self.get("isolation.level") {
            self.put("isolation.level", level);
        }
        Ok(())
    }

    fn codec(&self, key: &str, allowed: &[&str]) -> Result<(), KafkaError> {
        let Some(class) = self.get(key) else { return Ok(()) };
        let name = class.rsplit('.').next().unwrap_or_default();
        if allowed.contains(&name) {
            return Ok(());
        }
        Err(KafkaError::Config(format!(
            "{key} = {class} is refused: Java classes cannot be loaded; bytes are passed on as they are, so remove it or \
             use {}",
            allowed[1]
        )))
    }
}

/// Java's class names, or librdkafka's short ones; `range` when none is named.
fn assignor(list: &str) -> Result<String, KafkaError> {
    let mut names = Vec::new();
    for class in list.split(',').map(str::trim).filter(|class| !class.is_empty()) {
        names.push(match class.rsplit('.').next().unwrap_or_default() {
            "RangeAssignor" | "range" => "range",
            "RoundRobinAssignor" | "roundrobin" => "roundrobin",
            "CooperativeStickyAssignor" | "cooperative-sticky" => "cooperative-sticky",
            _ => {
                return Err(KafkaError::Config(format!(
                    "partition.assignment.strategy = {class} is refused: use RangeAssignor, RoundRobinAssignor or \
                     CooperativeStickyAssignor"
                )));
            }
        });
    }
    Ok(if names.is_empty() { "range".into() } else { names.join(",") })
}

#[cfg(test)]
#[path = "properties_tests.rs"]
mod tests;
