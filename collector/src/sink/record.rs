//! From an event to a Kafka record: topic, partition, key, timestamp, headers, value.

use std::sync::Arc;

use bytes::Bytes;
use service_kit::kafka::OutRecord;

use crate::counters::unix_ms;
use crate::escape::{Escapes, TimeFrom, TimeRule};
use crate::event::Event;
use crate::flume_conf::{Component, Finding, Level, Property};
use crate::kafka_settings::say;
use crate::serializer::avro_event;

// What sinks that write records have in common.
pub const FLUME_FORMAT: Property =
    Property::boolean("useFlumeEventFormat", "false", "Write headers and body in Flume's Avro form instead of the body alone.");
pub const PARTITION: Property =
    Property::integer("defaultPartitionId", 0, 2_147_483_647, None, "Partition of every record. Without it the key decides.");
pub const PARTITION_HEADER: Property =
    Property::text("partitionIdHeader", None, "Header with the partition's number; wins over `defaultPartitionId`.");
pub const TOPIC_OVERRIDE: Property = Property::boolean("allowTopicOverride", "true", "Take the topic from a header where an event has it.");
pub const TOPIC_HEADER: Property = Property::text("topicHeader", Some("topic"), "Name of that header.");
pub const TIMESTAMP_HEADER: Property = Property::text("timestampHeader", None, "Header with the record's time in milliseconds since 1970.");
pub const HEADERS: Property = Property::text("header.*", None, "`header.<event header> = <record header>`: headers to pass on.");

/// What a Kafka record is made by.
pub struct Maker {
    topic: Arc<str>,
    /// What the topic is made by, where it varies.
    escapes: Option<Escapes>,
    topic_header: Option<String>,
    partition: Option<i32>,
    partition_header: Option<String>,
    timestamp_header: Option<String>,
    /// Flume header → record header.
    headers: Vec<(String, String)>,
    flume_format: bool,
}

/// Why an event can never be a record.
#[derive(Debug, PartialEq, Eq)]
pub struct Poison(pub String);

impl Maker {
    /// `topic_key`: the property that names the topic.
    pub fn of(component: &Component, topic_key: &str) -> Self {
        let topic = component.text(topic_key);
        let override_allowed = component.boolean(TOPIC_OVERRIDE.name);
        Self {
            topic: topic.into(),
            // A slip in it has been told by the check.
            escapes: override_allowed.then(|| topic_escapes(topic).ok()).flatten().filter(Escapes::vary),
            topic_header: override_allowed.then(|| component.text(TOPIC_HEADER.name).to_owned()),
            partition: component.set(PARTITION.name).and_then(|text| text.trim().parse().ok()),
            partition_header: component.set(PARTITION_HEADER.name).map(str::to_owned),
            timestamp_header: component.set(TIMESTAMP_HEADER.name).map(str::to_owned),
            headers: component.below("header.").into_iter().collect(),
            flume_format: component.boolean(FLUME_FORMAT.name),
        }
    }

    /// As Flume's Kafka channel writes: to one topic, headers within the value.
    pub fn of_channel(component: &Component) -> Self {
        Self {
            partition: component.set("defaultPartitionId").and_then(|text| text.trim().parse().ok()),
            partition_header: component.set("partitionIdHeader").map(str::to_owned),
            flume_format: component.boolean("parseAsFlumeEvent"),
            ..Self::to_topic(component.text("kafka.topic").trim())
        }
    }

    /// Every event to one topic, nothing else.
    pub fn to_topic(topic: &str) -> Self {
        Self {
            topic: topic.into(),
            escapes: None,
            topic_header: None,
            partition: None,
            partition_header: None,
            timestamp_header: None,
            headers: Vec::new(),
            flume_format: false,
        }
    }

    /// The topic that is written where no event says otherwise.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    pub fn record(&self, event: &Event) -> Result<OutRecord, Poison> {
        self.record_at(event, unix_ms)
    }

    /// The record that would be made at `now`, which is asked where the topic has a time in it.
    pub fn record_at(&self, event: &Event, now: impl FnOnce() -> i64) -> Result<OutRecord, Poison> {
        let mut headers = Vec::new();
        if let Some(trace) = event.origin.as_ref().and_then(|origin| origin.trace.as_ref()) {
            headers.push(("traceparent".to_owned(), Bytes::copy_from_slice(trace.as_bytes())));
        }
        let value = if self.flume_format { flume_avro(event) } else { event.body.clone() };
        if event.headers.is_none() && self.escapes.is_none() {
            return Ok(OutRecord {
                topic: self.topic.clone(),
                partition: self.partition,
                key: None,
                value: Some(value),
                headers,
                timestamp_ms: None,
            });
        }
        let text = |name: &str| Bytes::copy_from_slice(name.as_bytes());
        for (from, to) in &self.headers {
            headers.extend(event.header(from).map(|value| (to.clone(), text(value))));
        }
        let timestamp = self.timestamp_header.as_deref().and_then(|name| event.header(name)).and_then(|value| value.trim().parse().ok());
        Ok(OutRecord {
            topic: self.topic_of(event, now)?,
            partition: self.partition_of(event)?,
            key: event.header("key").map(text),
            value: Some(value),
            headers,
            timestamp_ms: timestamp,
        })
    }

    fn topic_of(&self, event: &Event, now: impl FnOnce() -> i64) -> Result<Arc<str>, Poison> {
        let named = self.topic_header.as_deref().and_then(|name| event.header(name));
        let topic: Arc<str> = match named {
            Some(topic) if topic == &*self.topic => self.topic.clone(),
            Some(topic) => topic.into(),
            None => match &self.escapes {
                Some(escapes) => escapes.expand(event, now()).map_err(Poison)?.as_ref().into(),
                None => self.topic.clone(),
            },
        };
        match topic_fault(&topic) {
            Some(fault) => Err(Poison(format!("`{topic}` cannot be a topic: {fault}"))),
            None => Ok(topic),
        }
    }

    fn partition_of(&self, event: &Event) -> Result<Option<i32>, Poison> {
        let Some(name) = &self.partition_header else { return Ok(self.partition) };
        match event.header(name) {
            None => Ok(self.partition),
            Some(text) => match text.trim().parse::<i32>() {
                Ok(partition) if partition >= 0 => Ok(Some(partition)),
                _ => Err(Poison(format!("header {name} = `{text}` is not a partition number"))),
            },
        }
    }
}

/// A topic's escapes; its time is the header `timestamp`, the present without it.
pub fn topic_escapes(topic: &str) -> Result<Escapes, String> {
    Escapes::parse(topic, TimeRule { from: TimeFrom::HeaderOrNow, ..TimeRule::default() })
}

/// What is wrong with the topic that the property `key` names.
pub fn review_topic(component: &Component, key: &str) -> Vec<Finding> {
    let topic = component.text(key);
    let varies = component.boolean(TOPIC_OVERRIDE.name);
    let mut told = Vec::new();
    if !(topic.contains('%') && varies)
        && let Some(fault) = topic_fault(topic)
    {
        let escapes = if topic.contains('%') { "; escapes count only while allowTopicOverride is true" } else { "" };
        let finding = say(component, Level::Error, "wrong-value", key, format!("`{topic}` cannot be a topic: {fault}{escapes}"));
        told.push(finding.remedy("name an existing topic"));
    }
    if varies && let Err(fault) = topic_escapes(topic) {
        told.push(say(component, Level::Error, "wrong-value", key, fault));
    }
    if component.kind.class.is_some() {
        told = told.into_iter().map(|finding| finding.flume("fails with every batch, for ever")).collect();
    }
    told
}

pub fn topic_fault(topic: &str) -> Option<&'static str> {
    if topic.is_empty() {
        Some("it is empty")
    } else if topic.len() > 249 {
        Some("it is longer than 249 characters")
    } else if topic == "." || topic == ".." {
        Some("it is a directory's name")
    } else if !topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        Some("only letters, digits, `.`, `_` and `-` may stand in it")
    } else {
        None
    }
}

/// Bare Avro binary of Flume's event: `{map<string> headers; bytes body}`.
fn flume_avro(event: &Event) -> Bytes {
    let mut out = Vec::with_capacity(event.body.len() + 16);
    avro_event(&mut out, event);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> Maker {
        Maker {
            topic_header: Some("topic".into()),
            partition: Some(1),
            partition_header: Some("part".into()),
            timestamp_header: Some("ts".into()),
            headers: vec![("host".into(), "X-Host".into())],
            ..Maker::to_topic("t")
        }
    }

    #[test]
    fn headers_decide_topic_partition_key_and_time() {
        let record = |event| maker().record(&event);
        let plain = record(Event::new("b")).unwrap();
        assert_eq!((&*plain.topic, plain.partition, plain.key, plain.timestamp_ms, plain.headers.len()), ("t", Some(1), None, None, 0));
        assert_eq!(plain.value.unwrap(), "b");
        let full =
            record(Event::with_headers("b", [("topic", "u"), ("part", " 7 "), ("key", "k"), ("ts", "5"), ("host", "h"), ("other", "o")]))
                .unwrap();
        assert_eq!((&*full.topic, full.partition, full.key.unwrap().as_ref(), full.timestamp_ms), ("u", Some(7), &b"k"[..], Some(5)));
        assert_eq!(full.headers, [("X-Host".to_owned(), Bytes::from("h"))]);
        assert_eq!(record(Event::with_headers("b", [("ts", "soon")])).unwrap().timestamp_ms, None);
        for (header, value, expected) in [
            ("part", "x", "header part = `x` is not a partition number"),
            ("part", "-1", "header part = `-1` is not a partition number"),
            ("topic", "", "`` cannot be a topic: it is empty"),
            ("topic", "a b", "`a b` cannot be a topic: only letters, digits, `.`, `_` and `-` may stand in it"),
            ("topic", "..", "`..` cannot be a topic: it is a directory's name"),
        ] {
            assert_eq!(record(Event::with_headers("b", [(header, value)])).unwrap_err(), Poison(expected.into()));
        }
        let fixed = Maker { topic_header: None, ..maker() };
        assert_eq!(&*fixed.record(&Event::with_headers("b", [("topic", "u")])).unwrap().topic, "t");
    }

    #[test]
    fn topics_vary_with_the_event() {
        let maker = Maker { escapes: topic_escapes("logs-%{host}").ok(), topic_header: None, ..Maker::to_topic("logs-%{host}") };
        assert_eq!(&*maker.record(&Event::with_headers("", [("host", "h1")])).unwrap().topic, "logs-h1");
        assert!(maker.record(&Event::with_headers("", [("host", "a b")])).unwrap_err().0.contains("cannot be a topic"));
    }

    #[test]
    fn flume_events_are_avro() {
        assert_eq!(flume_avro(&Event::new("hi")).as_ref(), b"\x00\x04hi");
        assert_eq!(flume_avro(&Event::with_headers("hi", [("k", "vv")])).as_ref(), b"\x02\x02k\x04vv\x00\x04hi");
        assert_eq!(flume_avro(&Event::new(vec![b'x'; 100]))[..3], [0, 0xc8, 0x01]);
    }
}
