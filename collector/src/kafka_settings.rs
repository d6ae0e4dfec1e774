//! Settings that the Kafka sink, source and channel have in common: brokers, and the properties of Kafka's own clients below
//! `kafka.producer.` and `kafka.consumer.`.

use std::collections::BTreeMap;

use service_kit::kafka::{self, KafkaConfig, KafkaError};

use crate::flume_conf::kinds::nearest;
use crate::flume_conf::{Component, Finding, Level, Role};

pub const SERVERS: &str = "kafka.bootstrap.servers";

/// Which of a component's properties a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Producer,
    Consumer,
}

impl Client {
    pub fn prefix(self) -> &'static str {
        match self {
            Client::Producer => "kafka.producer.",
            Client::Consumer => "kafka.consumer.",
        }
    }

    /// Where Millrace's default is another one than the client's.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Client::Producer => &[("client.id", "millrace-collector")],
            // New partitions and topics are found soon; topics are made where the broker makes them, as by Java's client.
            Client::Consumer => {
                &[("client.id", "millrace-collector"), ("metadata.max.age.ms", "10000"), ("allow.auto.create.topics", "true")]
            }
        }
    }

    /// Set by the component itself, whatever the file says.
    fn own(self) -> &'static [&'static str] {
        match self {
            Client::Producer => &["transactional.id"],
            Client::Consumer => &["group.id", "enable.auto.commit"],
        }
    }

    /// Properties that are told from other words; security ones go by their prefix.
    fn known(self) -> &'static [&'static str] {
        match self {
            Client::Producer => PRODUCER,
            Client::Consumer => CONSUMER,
        }
    }

    /// `kafka.acks`, `producer.acks` → `kafka.producer.acks`.
    pub fn adopt(self, key: &str) -> Option<String> {
        let bare = self.prefix().strip_prefix("kafka.").unwrap_or_default();
        let property = key.strip_prefix("kafka.").or_else(|| key.strip_prefix(bare))?;
        let known = self.known().contains(&property) || ["ssl.", "sasl.", "security."].iter().any(|prefix| property.starts_with(prefix));
        known.then(|| format!("{}{property}", self.prefix()))
    }
}

const PRODUCER: &[&str] = &[
    "acks",
    "batch.size",
    "buffer.memory",
    "client.id",
    "compression.type",
    "compression.gzip.level",
    "compression.lz4.level",
    "compression.zstd.level",
    "connections.max.idle.ms",
    "delivery.timeout.ms",
    "enable.idempotence",
    "key.serializer",
    "linger.ms",
    "max.block.ms",
    "max.in.flight.requests.per.connection",
    "max.request.size",
    "metadata.max.age.ms",
    "partitioner.class",
    "partitioner.ignore.keys",
    "receive.buffer.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "request.timeout.ms",
    "retries",
    "retry.backoff.ms",
    "send.buffer.bytes",
    "transaction.timeout.ms",
    "transactional.id",
    "value.serializer",
];

const CONSUMER: &[&str] = &[
    "auto.commit.interval.ms",
    "auto.offset.reset",
    "check.crcs",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "enable.auto.commit",
    "fetch.max.bytes",
    "fetch.max.wait.ms",
    "fetch.min.bytes",
    "group.id",
    "group.instance.id",
    "heartbeat.interval.ms",
    "isolation.level",
    "key.deserializer",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "max.poll.records",
    "metadata.max.age.ms",
    "partition.assignment.strategy",
    "receive.buffer.bytes",
    "request.timeout.ms",
    "session.timeout.ms",
    "value.deserializer",
];

/// The brokers of `kafka.bootstrap.servers`: separated by commas, or by blanks, which Flume does not understand.
pub fn brokers(component: &Component) -> Vec<String> {
    let servers = component.text(SERVERS).split(|char: char| char == ',' || char.is_whitespace());
    servers.filter(|server| !server.is_empty()).map(str::to_owned).collect()
}

pub fn config(component: &Component, client: Client) -> Result<KafkaConfig, KafkaError> {
    KafkaConfig::from_properties(properties(component, client))
}

fn properties(component: &Component, client: Client) -> BTreeMap<String, String> {
    let mut properties = component.below(client.prefix());
    for own in client.own() {
        properties.remove(*own);
    }
    if properties.remove("ssl.disableTLSHostnameVerification").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
        properties.insert("ssl.endpoint.identification.algorithm".into(), String::new());
    }
    properties.insert("bootstrap.servers".into(), brokers(component).join(","));
    for (key, value) in client.defaults() {
        properties.entry((*key).to_owned()).or_insert_with(|| (*value).to_owned());
    }
    properties
}

/// What there is to say about the brokers and the clients' properties. `heard` leaves notes out.
pub fn review(component: &Component, clients: &[Client], strict: bool, heard: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if component.set(SERVERS).is_none() {
        return findings;
    }
    let role = component.kind.role;
    let wrong = if strict { Level::Warning } else { Level::Error };
    for client in clients {
        let told = findings.len();
        for (property, value) in properties(component, *client) {
            let key = format!("{}{property}", client.prefix());
            if !KafkaConfig::names().any(|name| name == property) {
                let message = format!("{property} {}", kafka::UNKNOWN);
                let remedy = nearest(&property, KafkaConfig::names())
                    .map_or_else(|| "remove the line".to_owned(), |near| format!("did you mean `{}{near}`?", client.prefix()));
                findings.push(say(component, Level::Warning, "dead-key", &key, message).flume("ignores it").remedy(remedy));
            } else if let Err(error) = KafkaConfig::check_one(&property, &value)
                && property != "bootstrap.servers"
            {
                let finding = say(component, wrong, "wrong-value", &key, error.to_string());
                findings.push(finding.flume(made_of(&error, role)));
            }
        }
        match config(component, *client) {
            Ok(config) => {
                findings.extend(config.notes().iter().filter(|note| heard(note) && !note.ends_with(kafka::UNKNOWN)).map(|note| {
                    // It begins with the property's name.
                    let key = format!("{}{}", client.prefix(), note.split_whitespace().next().unwrap_or_default());
                    let all = format!("{}*", client.prefix());
                    let key = if component.settings.contains_key(&key) { key } else { all };
                    say(component, Level::Note, "no-effect", &key, note.clone())
                }))
            }
            // What is wrong with one by itself has been told.
            Err(_) if findings.iter().skip(told).any(|finding| finding.code == "wrong-value") => {}
            Err(error) => {
                let message = error.to_string();
                // The message begins with the property's name.
                let property = message.split([' ', ':']).next().unwrap_or_default();
                let key = if property == "bootstrap.servers" { SERVERS.to_owned() } else { format!("{}{property}", client.prefix()) };
                let finding = say(component, wrong, "wrong-value", &key, message).flume(made_of(&error, role));
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
    }
    let servers = component.text(SERVERS);
    if servers.trim().contains(char::is_whitespace) && !servers.contains(',') {
        let message = "brokers are separated by commas, not blanks; read so".into();
        let finding = say(component, Level::Warning, "wrong-value", SERVERS, message);
        findings.push(finding.flume("finds no broker").remedy("write host:port,host:port"));
    }
    for server in brokers(component) {
        if server.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            let finding = say(component, Level::Error, "wrong-value", SERVERS, format!("`{server}` is not host:port"));
            findings.push(finding.flume(format!("fails when the {role} starts")).remedy("write e.g. kafka1:9092"));
        }
    }
    if clients.contains(&Client::Consumer)
        && let Some(value) = component.set("kafka.consumer.enable.auto.commit")
        && value.trim().eq_ignore_ascii_case("true")
    {
        let message = "offsets are committed when their events are taken over, never by themselves: read as false".into();
        let finding = say(component, Level::Warning, "no-effect", "kafka.consumer.enable.auto.commit", message);
        findings.push(finding.flume("sets it to false without a word").remedy("remove the line"));
    }
    findings
}

/// What Flume makes of a setting that is not taken here. What is refused is right, and only not there in this build.
fn made_of(error: &KafkaError, role: Role) -> String {
    if error.to_string().contains(" is refused: ") { "runs with it".to_owned() } else { format!("fails when the {role} starts") }
}

/// Files that the clients' TLS settings name and that cannot be used.
pub fn look(component: &Component) -> Vec<Finding> {
    let has = |client: &Client| component.kind.properties.iter().any(|property| property.name.strip_suffix('*') == Some(client.prefix()));
    let mut findings: Vec<Finding> = Vec::new();
    for client in [Client::Producer, Client::Consumer].into_iter().filter(has) {
        if let Ok(config) = config(component, client)
            && let Err((property, reason)) = kafka::check_tls(&config)
        {
            let key = format!("{}{property}", client.prefix());
            let finding = say(component, Level::Error, "tls-file", &key, format!("TLS cannot be set up: {reason}"));
            let remedy = "correct the path or the password, and let the collector's user read the file";
            findings.push(finding.flume(format!("fails when the {} starts", component.kind.role)).remedy(remedy));
        }
    }
    findings
}

/// A finding about one of the component's keys.
pub fn say(component: &Component, level: Level, code: &'static str, key: &str, message: String) -> Finding {
    let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
    Finding::new(level, code, message).maybe_at(place).key(format!("{}.{key}", component.name))
}
