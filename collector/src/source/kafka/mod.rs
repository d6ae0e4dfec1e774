//! `org.apache.flume.source.kafka.KafkaSource`: records of Kafka topics, read as a member of a consumer group.
//!
//! Nothing accepted is lost: an offset is committed when every channel has its event safely. A durable channel has it with
//! the put; of any other the sink must have delivered it, so what a crash takes from memory is read again. Order is kept
//! within a partition. What was read in one tenure of a partition is never committed in a later one, so that a
//! rebalance repeats events at most. While a channel is full the member stays in its group and fetches nothing.

pub mod event;
mod session;

use std::time::Duration;

use async_trait::async_trait;
use service_kit::kafka::{Joining, KafkaConfig, KafkaError, group_reader};

use super::{Output, Setup, Source, Stop};
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::java_regex::JavaRegex;
use crate::kafka_settings::{self, Client, say};
use crate::sink::record::topic_fault;
use event::Shape;
use session::Session;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: None,
    class: Some("org.apache.flume.source.kafka.KafkaSource"),
    doc: "Reads Kafka topics as a member of a consumer group. An offset is committed when a durable channel has the event, or the sink has delivered it; a crash repeats events and loses none. Records of aborted transactions are passed over unless `kafka.consumer.isolation.level` says `read_uncommitted`.",
    properties: &[
        Property::text(kafka_settings::SERVERS, None, "Brokers to begin with: host:port, separated by commas.").required(),
        Property::text("kafka.topics", None, "Topics, separated by commas."),
        Property::text(
            "kafka.topics.regex",
            None,
            "Java's regular expression for whole topic names; wins over `kafka.topics`. New topics are found within `kafka.consumer.metadata.max.age.ms`.",
        ),
        Property::text("kafka.consumer.group.id", Some("flume"), "The consumer group. Its members share the partitions."),
        Property::integer("batchSize", 1, 1_000_000, Some("1000"), "Events in one put, at most."),
        Property::integer(
            "batchDurationMillis",
            1,
            3_600_000,
            Some("1000"),
            "Accepted: a batch goes to the channel as soon as nothing more is ready, so never later than this.",
        ),
        Property::boolean(
            "useFlumeEventFormat",
            "false",
            "Records are events in Flume's Avro form, headers included. Without it the value is the body.",
        ),
        Property::boolean("setTopicHeader", "true", "Put the topic's name into a header."),
        Property::text("topicHeader", Some("topic"), "Name of that header."),
        Property::text("header.*", None, "`header.<event header> = <record header>`: record headers to take over."),
        Property::text(
            "kafka.consumer.*",
            None,
            "Any property of Kafka's consumer, in its Java name: `kafka.consumer.auto.offset.reset`, … `metadata.max.age.ms` is 10 s here.",
        ),
        Property::integer("batch.bytes", 1024, 1_073_741_824, Some("4194304"), "Bytes in one put, at most; a larger record goes alone.")
            .own(),
        Property::integer(
            "queue.bytes",
            65_536,
            1_073_741_824,
            Some("8388608"),
            "Bytes fetched ahead, all partitions together, and one fetch more. Metric: `millrace_kafka_member_queue_bytes`.",
        )
        .own(),
    ],
    deprecated: &[
        ("topic", "kafka.topics"),
        ("groupId", "kafka.consumer.group.id"),
        ("zookeeperConnect", ""),
        ("migrateZookeeperOffsets", ""),
    ],
    misspelt: &[
        ("bootstrap.servers", kafka_settings::SERVERS),
        ("kafka.bootstrapServers", kafka_settings::SERVERS),
        ("kafka.brokerList", kafka_settings::SERVERS),
        ("brokerList", kafka_settings::SERVERS),
        ("kafka.topic", "kafka.topics"),
        ("topics", "kafka.topics"),
        ("kafka.groupId", "kafka.consumer.group.id"),
        ("kafka.batchSize", "batchSize"),
        ("kafka.batchDurationMillis", "batchDurationMillis"),
    ],
    adopt,
    batch: Some("batchSize"),
    review,
};

fn adopt(key: &str) -> Option<String> {
    Client::Consumer.adopt(key)
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let mut findings = kafka_settings::review(component, &[Client::Consumer], strict, |_| true);
    let wrong = if strict { Level::Warning } else { Level::Error };
    if let Some(pattern) = component.set("kafka.topics.regex") {
        if let Err(refused) = JavaRegex::whole(pattern.trim()) {
            let flume = if refused.by_java { "drops the source" } else { "" };
            findings.push(say(component, wrong, "wrong-value", "kafka.topics.regex", refused.to_string()).flume(flume));
        }
        if component.set("kafka.topics").is_some() {
            let message = "kafka.topics.regex is set too and counts".into();
            findings.push(say(component, Level::Warning, "no-effect", "kafka.topics", message).remedy("remove one of the two"));
        }
    } else if component.set("kafka.topics").is_none() {
        let finding = say(component, wrong, "missing-property", "kafka.topics", "there is no topic to read".into());
        findings.push(finding.flume("drops the source").remedy("add kafka.topics = … or kafka.topics.regex = …"));
    }
    for topic in topics(component) {
        if let Some(fault) = topic_fault(&topic) {
            let finding = say(component, wrong, "wrong-value", "kafka.topics", format!("`{topic}` cannot be a topic: {fault}"));
            findings.push(finding.flume("reads nothing").remedy("separate topics by commas"));
        }
    }
    if component.set("kafka.consumer.auto.offset.reset").is_none() {
        let message = "not set, so a group without offsets, and a partition that is new to it, begins at its end: what was written before is not read".into();
        let finding = say(component, Level::Note, "begins-at-end", "kafka.consumer.auto.offset.reset", message);
        findings.push(finding.remedy("add kafka.consumer.auto.offset.reset = earliest to read everything"));
    }
    findings
}

fn topics(component: &Component) -> Vec<String> {
    let names = component.text("kafka.topics").split(',').map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// What is read.
enum Wanted {
    Topics(Vec<String>),
    Pattern(Box<JavaRegex>),
}

pub struct KafkaSource {
    config: KafkaConfig,
    group: String,
    reset: String,
    wanted: Wanted,
    shape: Shape,
    bounds: Bounds,
    refresh: Duration,
}

#[derive(Clone, Copy)]
struct Bounds {
    batch: usize,
    batch_bytes: usize,
    queue_bytes: usize,
}

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let wanted = match component.set("kafka.topics.regex") {
        Some(pattern) => Wanted::Pattern(Box::new(JavaRegex::whole(pattern.trim())?)),
        None => Wanted::Topics(topics(component)),
    };
    let config = kafka_settings::config(component, Client::Consumer)?;
    let number = |key: &str| config.get(key).and_then(|value| value.parse().ok());
    Ok(Box::new(KafkaSource {
        group: component.text("kafka.consumer.group.id").trim().to_owned(),
        // Kafka's own default, and Flume's here.
        reset: config.get("auto.offset.reset").unwrap_or("latest").to_ascii_lowercase(),
        refresh: Duration::from_millis(number("metadata.max.age.ms").unwrap_or(10_000)),
        config,
        wanted,
        shape: Shape::of(component),
        bounds: Bounds {
            batch: component.count("batchSize"),
            batch_bytes: component.count("batch.bytes"),
            queue_bytes: component.count("queue.bytes"),
        },
    }))
}

const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[async_trait]
impl Source for KafkaSource {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let mut backoff = BACKOFF_MIN;
        let mut told = String::new();
        loop {
            let joining = Joining { group: &self.group, auto_offset_reset: &self.reset, queue_bytes_max: self.bounds.queue_bytes };
            let joined = tokio::select! {
                joined = group_reader(&self.config, &joining) => joined,
                () = stop.begin.cancelled() => return Ok(()),
            };
            let result = match joined {
                Ok(reader) => Session::new(&self, reader, &out, &stop).run().await,
                Err(error) => Err(error),
            };
            let error = match result {
                Ok(()) => return Ok(()),
                Err(error @ (KafkaError::Config(_) | KafkaError::Unsupported(_))) => return Err(error.into()),
                Err(error) => error,
            };
            let text = error.to_string();
            // An outage is told where it is seen.
            if told != text && !error.retryable() {
                tracing::warn!(source = out.name(), %error, "cannot read; trying again until it can");
            }
            out.trouble(Some(text.clone()));
            told = text;
            tokio::select! {
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = stop.begin.cancelled() => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flume_conf::component::Setting;

    #[test]
    fn what_there_is_to_say_about_settings() {
        let earliest = ("kafka.consumer.auto.offset.reset", "earliest");
        for (settings, expected) in [
            (&[("kafka.topics", "a, b"), earliest][..], &[][..]),
            (&[("kafka.topics", "a")], &[(Level::Note, "kafka.consumer.auto.offset.reset")]),
            (&[earliest], &[(Level::Error, "kafka.topics")]),
            (&[("kafka.topics", "a b"), earliest], &[(Level::Error, "kafka.topics")]),
            (&[("kafka.topics", "a"), ("kafka.topics.regex", "a.*"), earliest], &[(Level::Warning, "kafka.topics")]),
            (&[("kafka.topics.regex", "a(.*"), earliest], &[(Level::Error, "kafka.topics.regex")]),
            (
                &[("kafka.topics", "a"), ("kafka.consumer.enable.auto.commit", "true"), earliest],
                &[(Level::Warning, "kafka.consumer.enable.auto.commit")],
            ),
            (
                &[("kafka.topics", "a"), ("kafka.consumer.fetch.min.bytes", "many"), earliest],
                &[(Level::Error, "kafka.consumer.fetch.min.bytes")],
            ),
            (
                // All at once.
                &[
                    ("kafka.topics", "a"),
                    ("kafka.consumer.fetch.min.byte", "1"),
                    ("kafka.consumer.fetch.max.bytes", "many"),
                    ("kafka.consumer.check.crcs", "perhaps"),
                    ("kafka.consumer.what.is.this", "1"),
                    earliest,
                ],
                &[
                    (Level::Error, "kafka.consumer.check.crcs"),
                    (Level::Error, "kafka.consumer.fetch.max.bytes"),
                    (Level::Warning, "kafka.consumer.fetch.min.byte"),
                    (Level::Warning, "kafka.consumer.what.is.this"),
                ],
            ),
        ] {
            let mut component = Component::new(&KIND, "s", KIND.name());
            let setting = |value: &str| Setting { value: value.to_owned(), place: None };
            component.settings = settings.iter().map(|(key, value)| ((*key).to_owned(), setting(value))).collect();
            component.settings.insert(kafka_settings::SERVERS.into(), setting("k:9092"));
            let told = review(&component, false);
            let told: Vec<_> =
                told.iter().map(|finding| (finding.level, finding.key.as_deref().unwrap().strip_prefix("s.").unwrap())).collect();
            assert_eq!(told, expected, "{settings:?}");
        }
        let mut component = Component::new(&KIND, "s", KIND.name());
        for (key, value) in [(kafka_settings::SERVERS, "k:9092"), ("kafka.topics", "a"), ("kafka.consumer.fetch.min.byte", "1")] {
            component.settings.insert(key.into(), Setting { value: value.into(), place: None });
        }
        assert_eq!(review(&component, false)[0].remedy, "did you mean `kafka.consumer.fetch.min.bytes`?");
        assert_eq!(adopt("kafka.auto.offset.reset").as_deref(), Some("kafka.consumer.auto.offset.reset"));
        assert_eq!(adopt("consumer.security.protocol").as_deref(), Some("kafka.consumer.security.protocol"));
        assert_eq!(adopt("kafka.acks"), None);
    }
}
