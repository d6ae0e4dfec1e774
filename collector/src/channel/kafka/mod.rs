//! `org.apache.flume.channel.kafka.KafkaChannel`: a Kafka topic as the channel. What is in it outlives the machine, and others may
//! write and read it: an agent without sources delivers what they wrote, one without sinks writes what they deliver.
//!
//! A put returns when every record is acknowledged. Takes are records read as a member of a consumer group; their
//! offsets are committed without gaps when the sinks have delivered them, within 0.1 s. A record that is no event is put
//! aside where `deadLetter.directory` is set, else it stops the channel. A crash repeats what was not
//! committed; so does a rebalance, for what sinks hold then. The form is Flume's, so both can use one topic.

mod session;
mod window;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock};

use super::{Channel, Fill, PutError, Setup, Taken, Traffic};
use crate::event::Event;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::kafka_settings::{self, Client, say};
use crate::sink::dead_letter::DIRECTORY;
use crate::sink::record::topic_fault;
use session::Session;

pub static KIND: Kind = Kind {
    role: Role::Channel,
    alias: None,
    class: Some("org.apache.flume.channel.kafka.KafkaChannel"),
    doc: "A Kafka topic as the channel: a put returns when all replicas have the records, an offset is committed when a sink has delivered its event. Works without a source (delivers what others write) and without a sink (writes what others deliver).",
    properties: &[
        Property::text(kafka_settings::SERVERS, None, "Brokers to begin with: host:port, separated by commas.").required(),
        Property::text("kafka.topic", Some("flume-channel"), "Topic that holds the events."),
        Property::text("kafka.consumer.group.id", Some("flume"), "Consumer group of the sinks. Agents with the same one share the events."),
        Property::boolean(
            "parseAsFlumeEvent",
            "true",
            "Records are events in Flume's Avro form, headers included. Without it the value is the body, and headers are not kept. A record that is no event stops the channel before it, unless `deadLetter.directory` is set: then it is put aside there.",
        ),
        Property::integer(
            "kafka.pollTimeout",
            0,
            3_600_000,
            Some("500"),
            "Milliseconds a read waits for records; never more than 100 here.",
        ),
        Property::integer("defaultPartitionId", 0, 2_147_483_647, None, "Partition of every record. Without it the header `key` decides."),
        Property::text("partitionIdHeader", None, "Header with the partition's number; wins over `defaultPartitionId`."),
        Property::text(
            "kafka.producer.*",
            None,
            "Any property of Kafka's producer, in its Java name. Idempotent, with acks = all, where nothing else is set.",
        ),
        Property::text(
            "kafka.consumer.*",
            None,
            "Any property of Kafka's consumer, in its Java name. `auto.offset.reset` is `earliest` and `metadata.max.age.ms` 10 s here.",
        ),
        Property::text("readSmallestOffset", None, "Old: `false` is `kafka.consumer.auto.offset.reset = latest`."),
        Property::integer(
            "queue.events",
            1,
            1_000_000,
            Some("10000"),
            "Events read ahead and in the sinks' hands, at most; also of one put.",
        )
        .own(),
        Property::integer(
            "queue.bytes",
            65_536,
            1_073_741_824,
            Some("16777216"),
            "Their bytes, at most, and as many fetched ahead; a larger event goes alone.",
        )
        .own(),
        Property {
            doc: "Where events and records that cannot be used are written as JSON lines: events that can never be written (without it in `dead-letter/` in the state directory), and records that are no events (without it they stop the channel).",
            ..DIRECTORY
        },
    ],
    deprecated: &[
        ("topic", "kafka.topic"),
        ("brokerList", kafka_settings::SERVERS),
        ("groupId", "kafka.consumer.group.id"),
        ("zookeeperConnect", ""),
        ("migrateZookeeperOffsets", ""),
    ],
    misspelt: &[
        ("pollTimeout", "kafka.pollTimeout"),
        ("bootstrap.servers", kafka_settings::SERVERS),
        ("kafka.bootstrapServers", kafka_settings::SERVERS),
        ("kafka.brokerList", kafka_settings::SERVERS),
        ("kafka.groupId", "kafka.consumer.group.id"),
        ("kafka.parseAsFlumeEvent", "parseAsFlumeEvent"),
    ],
    adopt,
    batch: None,
    review,
};

fn adopt(key: &str) -> Option<String> {
    Client::Producer.adopt(key).or_else(|| Client::Consumer.adopt(key))
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let heard = |note: &str| !note.contains("in transactions");
    let mut findings = kafka_settings::review(component, &[Client::Producer, Client::Consumer], strict, heard);
    let wrong = if strict { Level::Warning } else { Level::Error };
    if let Some(fault) = topic_fault(component.text("kafka.topic")) {
        let message = format!("`{}` cannot be a topic: {fault}", component.text("kafka.topic"));
        findings.push(say(component, wrong, "wrong-value", "kafka.topic", message).flume("fails with every put and take"));
    }
    if let Some(acks) = component.set("kafka.producer.acks")
        && !["all", "-1"].contains(&acks.trim())
    {
        let message = format!("with acks = {acks} a put does not wait for all replicas: a broker's end may lose events");
        findings.push(say(component, Level::Warning, "unsafe", "kafka.producer.acks", message).remedy("remove the line"));
    }
    let reset = "kafka.consumer.auto.offset.reset";
    if component.set(reset).is_none() && component.set("readSmallestOffset").is_none() {
        let message = "not set: a group without offsets begins at the earliest record".into();
        let finding = say(component, Level::Note, "default-offset", reset, message).flume("does the same, though its guide says latest");
        findings.push(finding.remedy("write it out where it matters"));
    }
    if component.set("kafka.producer.transactional.id").is_some() {
        let message = "the channel writes without transactions; accepted without effect".into();
        findings.push(say(component, Level::Warning, "no-effect", "kafka.producer.transactional.id", message).remedy("remove the line"));
    }
    findings
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Arc<dyn Channel>> {
    let traffic = Arc::<Mutex<Traffic>>::default();
    let session = Arc::new(Session::new(component, &setup, traffic.clone())?);
    Ok(Arc::new(KafkaChannel { setup, traffic, session: RwLock::new(session) }))
}

/// The session with the settings in force. Takes belong to the session that gave them.
struct KafkaChannel {
    setup: Setup,
    traffic: Arc<Mutex<Traffic>>,
    session: RwLock<Arc<Session>>,
}

impl KafkaChannel {
    fn session(&self) -> Arc<Session> {
        self.session.read().clone()
    }
}

#[async_trait]
impl Channel for KafkaChannel {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        self.session().put(events).await
    }

    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken {
        self.session().take(max, wait).await
    }

    fn committed(&self, _events: &[Event]) {}

    fn returned(&self, _events: Vec<Event>) {}

    fn transaction_capacity(&self) -> usize {
        self.session().transaction_capacity()
    }

    fn fill(&self) -> Fill {
        self.session().fill()
    }

    fn traffic(&self) -> Traffic {
        *self.traffic.lock()
    }

    /// Another topic, group or broker is another session; the old one leaves when what it gave out is through.
    fn reconfigure(&self, component: &Component) {
        match Session::new(component, &self.setup, self.traffic.clone()) {
            Ok(session) => {
                let old = std::mem::replace(&mut *self.session.write(), Arc::new(session));
                drop(tokio::spawn(async move { old.end().await }));
            }
            Err(error) => tracing::error!(channel = component.name, %error, "the new settings cannot be used; the old ones stay in force"),
        }
    }

    /// It is in Kafka.
    fn at_risk(&self) -> usize {
        0
    }

    fn trouble(&self) -> Option<String> {
        self.session().trouble()
    }

    async fn leave(&self) {
        self.session().end().await;
    }
}
