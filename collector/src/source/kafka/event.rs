//! From a Kafka record to an event.

use std::collections::BTreeMap;
use std::sync::Arc;

use service_kit::kafka::{Record, TopicPartition};

use crate::event::Event;
use crate::flume_conf::Component;
use crate::rpc::{Malformed, avro::bare_event};

/// Header with the record's key, as text.
pub const KEY: &str = "key";

/// What an event is made by.
pub struct Shape {
    topic_header: Option<String>,
    /// Event header → record header.
    headers: Vec<(String, String)>,
    flume_format: bool,
}

impl Shape {
    pub fn of(component: &Component) -> Self {
        Self {
            topic_header: component.boolean("setTopicHeader").then(|| component.text("topicHeader").to_owned()),
            headers: component.below("header.").into_iter().collect(),
            flume_format: component.boolean("useFlumeEventFormat"),
        }
    }

    /// Headers that the event brings along win, except for the key.
    pub fn event(&self, partition: &TopicPartition, record: Record) -> Result<Event, Malformed> {
        let mut event = read(record.value, self.flume_format)?;
        let mut headers = event.headers.take().map(Arc::unwrap_or_clone).unwrap_or_default();
        let absent = |headers: &mut BTreeMap<String, String>, name: &str, value: String| {
            headers.entry(name.to_owned()).or_insert(value);
        };
        absent(&mut headers, "timestamp", record.timestamp_ms.to_string());
        for (to, from) in &self.headers {
            let values = record.headers.iter().filter(|(name, _)| name == from).filter_map(|(_, value)| value.as_ref());
            if let Some(value) = values.last() {
                headers.insert(to.clone(), String::from_utf8_lossy(value).into_owned());
            }
        }
        if let Some(name) = &self.topic_header {
            absent(&mut headers, name, partition.topic.to_string());
        }
        absent(&mut headers, "partition", partition.partition.to_string());
        absent(&mut headers, "offset", record.offset.to_string());
        if let Some(key) = record.key {
            headers.insert(KEY.to_owned(), String::from_utf8_lossy(&key).into_owned());
        }
        event.headers = Some(Arc::new(headers));
        Ok(event)
    }
}

/// The event in a record's value: Flume's Avro form, or the value itself as the body.
pub fn read(value: Option<bytes::Bytes>, flume_format: bool) -> Result<Event, Malformed> {
    match (value, flume_format) {
        (Some(value), true) => bare_event(value),
        (None, true) => Err(Malformed::new("a record without a value")),
        (value, false) => Ok(Event::new(value.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::serializer::avro_event;

    fn record(value: &[u8]) -> Record {
        Record {
            offset: 7,
            timestamp_ms: 5,
            key: Some("k".into()),
            value: Some(Bytes::copy_from_slice(value)),
            headers: vec![("h".into(), Some("1".into())), ("h".into(), Some("2".into())), ("n".into(), None)],
        }
    }

    fn shown(event: &Event) -> Vec<String> {
        event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn headers_tell_where_an_event_is_from() {
        let shape = Shape {
            topic_header: Some("topic".into()),
            headers: vec![("own".into(), "h".into()), ("none".into(), "n".into())],
            flume_format: false,
        };
        let event = shape.event(&TopicPartition::new("t", 3), record(b"body")).unwrap();
        assert_eq!(event.body, "body");
        assert_eq!(shown(&event), ["key=k", "offset=7", "own=2", "partition=3", "timestamp=5", "topic=t"]);
        let mut avro = Vec::new();
        avro_event(&mut avro, &Event::with_headers("inner", [("timestamp", "1"), ("key", "old"), ("x", "y"), ("topic", "u")]));
        let shape = Shape { flume_format: true, topic_header: None, headers: Vec::new() };
        let event = shape.event(&TopicPartition::new("t", 3), record(&avro)).unwrap();
        assert_eq!(event.body, "inner");
        assert_eq!(shown(&event), ["key=k", "offset=7", "partition=3", "timestamp=1", "topic=u", "x=y"]);
        assert!(shape.event(&TopicPartition::new("t", 3), Record { value: None, ..record(b"") }).is_err());
    }

    proptest! {
        #[test]
        fn flume_events_come_back_and_nothing_makes_it_panic(
            headers in prop::collection::btree_map(".{0,8}", ".{0,12}", 0..4),
            body in prop::collection::vec(any::<u8>(), 0..40),
            stain in prop::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
        ) {
            let mut event = Event::new(body);
            headers.into_iter().for_each(|(name, value)| event.set_header(&name, value));
            let mut bytes = Vec::new();
            avro_event(&mut bytes, &event);
            let again = read(Some(bytes.clone().into()), true).unwrap();
            prop_assert_eq!((again.headers, again.body), (event.headers, event.body));
            let at = at.index(bytes.len());
            bytes.splice(at.., stain);
            drop(read(Some(bytes.into()), true));
        }
    }
}
