//! `org.apache.flume.sink.kafka.KafkaSink`: records in Kafka, idempotent and acknowledged by all replicas unless the conf
//! says otherwise; exactly once with `kafka.producer.transactional.id`.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use service_kit::kafka::{KafkaConfig, KafkaError, OutRecord, PIECE_RECORDS, Producer};

use super::dead_letter::{DIRECTORY, DeadLetters};
use super::flights::{Bounds, Deliver, Flights};
use super::positions::Positions;
use super::record::{self, Maker};
use super::transactions::{self, Transactions};
use super::{Input, Setup, Sink, keeps_positions};
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::kafka_settings::{self, Client, say};
use crate::source::{Stop, tail::Forgotten};

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: None,
    class: Some("org.apache.flume.sink.kafka.KafkaSink"),
    doc: "Writes every event as a record to Kafka. Idempotent and acknowledged by all replicas where the conf says nothing else; only failed events are sent again; events that can never be written are put aside.",
    properties: &[
        Property::text("kafka.bootstrap.servers", None, "Brokers to begin with: host:port, separated by commas.").required(),
        Property::text(
            "kafka.topic",
            Some("default-flume-topic"),
            "Topic. `%{header}` and parts of the time (`%Y-%m-%d`) stand for an event's own while `allowTopicOverride` is true.",
        ),
        Property::integer(
            "flumeBatchSize",
            1,
            1_000_000,
            Some("100"),
            "Events of one delivery, at least; several are under way at a time.",
        ),
        Property::text(
            "kafka.producer.*",
            None,
            "Any property of Kafka's producer, in its Java name: `kafka.producer.acks`, `kafka.producer.compression.type`, …",
        ),
        record::FLUME_FORMAT,
        record::PARTITION,
        record::PARTITION_HEADER,
        record::TOPIC_OVERRIDE,
        record::TOPIC_HEADER,
        record::TIMESTAMP_HEADER,
        record::HEADERS,
        Property::text(
            "deadLetter.topic",
            None,
            "Topic for events that can never be written (too large, no such partition). What it does not take, such as what is above `kafka.producer.max.request.size`, goes to a file, and without it everything.",
        )
        .own(),
        DIRECTORY,
        Property::integer("inFlight.events", 1, 1_000_000, Some("8192"), "Events sent and not yet acknowledged, at most.").own(),
        Property::integer("inFlight.bytes", 65_536, 1_073_741_824, Some("4194304"), "Their bytes, at most.").own(),
        Property::text(
            "positionsTopic",
            Some("__millrace_positions"),
            "With a transactional id: the compacted topic that takes the files' positions. Made if it is not there.",
        )
        .own(),
        Property::integer(
            "transaction.events",
            1,
            1_000_000,
            Some("65536"),
            "With a transactional id: events of one transaction, at most, and never more than half of the channel's capacity. A transaction takes in what is ready, so it grows with the backlog.",
        )
        .own(),
        Property::integer(
            "transaction.bytes",
            65_536,
            1_073_741_824,
            Some("16777216"),
            "With a transactional id: bytes of one transaction (bodies and about 64 bytes an event), at most.",
        )
        .own(),
        Property::integer(
            "transaction.time",
            1,
            60_000,
            Some("1000"),
            "With a transactional id: milliseconds after which a transaction takes in nothing more and is committed.",
        )
        .own(),
        Property::integer(
            "transaction.linger",
            0,
            60_000,
            Some("20"),
            "With a transactional id: milliseconds a transaction waits for more events when none are ready.",
        )
        .own(),
    ],
    deprecated: &[
        ("topic", "kafka.topic"),
        ("brokerList", "kafka.bootstrap.servers"),
        ("batchSize", "flumeBatchSize"),
        ("requiredAcks", "kafka.producer.acks"),
        ("key.serializer.class", ""),
        ("serializer.class", ""),
    ],
    misspelt: &[
        ("kafka.flumeBatchSize", "flumeBatchSize"),
        ("kafka.batchSize", "flumeBatchSize"),
        ("bootstrap.servers", "kafka.bootstrap.servers"),
        ("kafka.bootstrapServers", "kafka.bootstrap.servers"),
        ("kafka.brokerList", "kafka.bootstrap.servers"),
        ("kafka.requiredAcks", "kafka.producer.acks"),
        ("kafka.topics", "kafka.topic"),
        ("kafka.compression.codec", "kafka.producer.compression.type"),
        ("compression.codec", "kafka.producer.compression.type"),
        ("compression.type", "kafka.producer.compression.type"),
    ],
    adopt,
    batch: Some("flumeBatchSize"),
    review,
};

fn adopt(key: &str) -> Option<String> {
    Client::Producer.adopt(key)
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let say = |level, code, key: &str, message: String| say(component, level, code, key, message);
    // What concerns transactions alone says nothing to a sink without them.
    let heard = |note: &str| keeps_positions(component) || !note.contains("in transactions");
    let mut findings = kafka_settings::review(component, &[Client::Producer], strict, heard);
    if component.set("kafka.topic").is_none() {
        let message = format!("no topic is set; records go to `{}`", component.text("kafka.topic"));
        findings.push(say(Level::Warning, "default-topic", "kafka.topic", message).remedy("add kafka.topic = …"));
    } else {
        findings.extend(record::review_topic(component, "kafka.topic"));
    }
    const TIMEOUT: &str = "kafka.producer.transaction.timeout.ms";
    // Brokers' default of transaction.max.timeout.ms.
    const TIMEOUT_MAX: i64 = 900_000;
    if keeps_positions(component) && component.set(TIMEOUT).and_then(|value| value.trim().parse::<i64>().ok()) > Some(TIMEOUT_MAX) {
        let message =
            format!("above {TIMEOUT_MAX}, which is the brokers' default for transaction.max.timeout.ms: they refuse the sink then");
        let finding = say(Level::Warning, "exactly-once", TIMEOUT, message);
        findings.push(finding.remedy(format!("set {TIMEOUT_MAX} or less, or raise transaction.max.timeout.ms of the brokers")));
    }
    let is_good = |property: &str, value: &str| match property {
        "acks" => ["all", "-1"].contains(&value),
        "retries" => value != "0",
        _ => !value.eq_ignore_ascii_case("false"),
    };
    for property in ["acks", "retries", "enable.idempotence"].iter().filter(|_| keeps_positions(component)) {
        let key = format!("kafka.producer.{property}");
        if let Some(value) = component.set(&key).map(str::trim)
            && !is_good(property, value)
        {
            let finding = say(Level::Error, "exactly-once", &key, format!("{property} = {value} does not go with transactions"));
            // What it would come to without them need not be told as well.
            findings.retain(|told| told.level != Level::Note || told.key != finding.key);
            findings.push(finding.remedy("remove the line"));
        }
    }
    findings
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let mut config = kafka_settings::config(component, Client::Producer)?;
    if config.get("delivery.timeout.ms").is_none() {
        // A broker that is away is waited for: giving up would only mean to send again later, out of order.
        config.set("delivery.timeout.ms", "2147483647");
    }
    let maker = Maker::of(component, "kafka.topic");
    let dead = DeadLetters::of(component, &setup.state_dir);
    let dead_topic = component.set("deadLetter.topic").map(str::to_owned);
    if let Some(id) = component.set("kafka.producer.transactional.id") {
        let mut config = config;
        if component.set("kafka.producer.delivery.timeout.ms").is_none() {
            // A transaction ends within its timeout; records are not waited for longer.
            config.set("delivery.timeout.ms", "30000");
        }
        return Ok(Box::new(KafkaSink {
            dead_topic,
            way: Way::Transactions(Box::new(Transactions {
                positions: Positions::new(config.clone(), component.text("positionsTopic"), id.trim()),
                record_bytes_max: config.get("max.request.size").and_then(|value| value.parse().ok()).unwrap_or(1 << 20),
                config,
                id: id.trim().to_owned(),
                maker,
                dead,
                committed: setup.committed,
                forgotten: Forgotten::default(),
                bounds: transactions::Bounds {
                    events: component.count("transaction.events"),
                    bytes: component.count("transaction.bytes"),
                    time: component.millis("transaction.time"),
                },
                linger: component.millis("transaction.linger"),
            })),
        }));
    }
    let bounds = Bounds {
        // One piece of the producer: larger sends could overtake each other.
        records: PIECE_RECORDS,
        // Below the five requests that an idempotent producer may have under way: with five, and records waiting behind
        // them, librdkafka's thread spins until an answer comes (60 % of the CPU time under load). Sends grow instead.
        sends: component.count("inFlight.events").div_ceil(PIECE_RECORDS).max(2),
        events: component.count("inFlight.events"),
        bytes: component.count("inFlight.bytes"),
    };
    Ok(Box::new(KafkaSink { dead_topic, way: Way::Flights(Box::new(Direct { config, maker, dead, bounds })) }))
}

struct KafkaSink {
    dead_topic: Option<String>,
    way: Way,
}

enum Way {
    Flights(Box<Direct>),
    Transactions(Box<Transactions>),
}

struct Direct {
    config: KafkaConfig,
    maker: Maker,
    dead: DeadLetters,
    bounds: Bounds,
}

#[async_trait]
impl Sink for KafkaSink {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        match self.way {
            Way::Flights(direct) => {
                let Direct { config, maker, mut dead, bounds } = *direct;
                let producer = service_kit::kafka::producer(&config).await?;
                input.counters.connections_created.add(1);
                if let Some(topic) = &self.dead_topic {
                    dead = dead.to_topic(topic, producer.clone());
                }
                let result = Flights { deliver: Arc::new(ToKafka(producer.clone())), maker, dead, bounds }.run(input, stop).await;
                if let Err(error) = producer.flush(Duration::from_millis(100)).await {
                    tracing::debug!(%error, "records were still under way");
                }
                result
            }
            Way::Transactions(mut transactions) => {
                if let Some(topic) = &self.dead_topic {
                    let producer = service_kit::kafka::producer(&transactions.config).await?;
                    transactions.dead = transactions.dead.to_topic(topic, producer);
                }
                transactions.run(input, stop).await
            }
        }
    }
}

struct ToKafka(Arc<dyn Producer>);

#[async_trait]
impl Deliver for ToKafka {
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
        self.0.send(records).await.into_iter().map(|result| result.map(|_| ())).collect()
    }

    fn trouble(&self) -> Option<String> {
        self.0.trouble()
    }
}
