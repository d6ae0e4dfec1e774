//! `KafkaUtils.createDirectStream` and its strategies, with the Java and Spark names of the parameters.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use service_kit::kafka::{Isolation, KafkaConfig, Record, TopicPartition};

use super::rdd::Data;
use super::{DStream, StreamingContext};
use crate::batch::{OffsetRange, SourceKind, SourceSpec, Startup};

/// A Kafka record with decoded key and value.
#[derive(Clone, Debug, PartialEq)]
pub struct ConsumerRecord<K, V> {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch; -1 where the record has none.
    pub timestamp: i64,
    /// `None`: Kafka's null.
    pub key: Option<K>,
    /// `None`: Kafka's null (a tombstone).
    pub value: Option<V>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// What a key or value can be; the counterpart of Kafka's deserializers.
pub trait FromKafka: Data {
    /// Last part of the Java class, e.g. `StringDeserializer`.
    const DESERIALIZER: &'static str;
    /// The error says what the bytes should have been.
    fn from_kafka(bytes: &Bytes) -> Result<Self, &'static str>;
}

impl FromKafka for String {
    const DESERIALIZER: &'static str = "StringDeserializer";
    /// As in Java, bytes that are no UTF-8 become U+FFFD.
    fn from_kafka(bytes: &Bytes) -> Result<Self, &'static str> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl FromKafka for Bytes {
    const DESERIALIZER: &'static str = "BytesDeserializer";
    fn from_kafka(bytes: &Bytes) -> Result<Self, &'static str> {
        Ok(bytes.clone())
    }
}

impl FromKafka for Vec<u8> {
    const DESERIALIZER: &'static str = "ByteArrayDeserializer";
    fn from_kafka(bytes: &Bytes) -> Result<Self, &'static str> {
        Ok(bytes.to_vec())
    }
}

macro_rules! number {
    ($($kind:ty, $name:literal, $expected:literal;)*) => {$(
        impl FromKafka for $kind {
            const DESERIALIZER: &'static str = $name;
            fn from_kafka(bytes: &Bytes) -> Result<Self, &'static str> {
                bytes.as_ref().try_into().map(<$kind>::from_be_bytes).map_err(|_| $expected)
            }
        }
    )*};
}
number! {
    i16, "ShortDeserializer", "2 bytes";
    i32, "IntegerDeserializer", "4 bytes";
    i64, "LongDeserializer", "8 bytes";
    f32, "FloatDeserializer", "4 bytes";
    f64, "DoubleDeserializer", "8 bytes";
}

/// Where partitions are read. One process reads them all, so this decides nothing; it is here so that programs read alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocationStrategy {
    PreferConsistent,
    PreferBrokers,
    PreferFixed(BTreeMap<TopicPartition, String>),
}

/// What is read, and how.
#[derive(Clone, Debug)]
pub struct ConsumerStrategy {
    topics: Vec<String>,
    params: BTreeMap<String, String>,
    offsets: Option<BTreeMap<TopicPartition, i64>>,
}

impl ConsumerStrategy {
    /// Whole topics. `params` are the Java consumer's: `bootstrap.servers`, `group.id`, `auto.offset.reset`,
    /// `isolation.level`, `key.deserializer`, security settings, …
    ///
    /// A fresh job begins at the group's committed offsets (in Kafka, or where `offsets.store` says) where there are some, else where `auto.offset.reset` says.
    pub fn subscribe<T, P, K, V>(topics: T, params: P) -> Self
    where
        T: IntoIterator<Item: Into<String>>,
        P: IntoIterator<Item = (K, V)>,
        K: Into<String>,
        V: Into<String>,
    {
        Self {
            topics: topics.into_iter().map(Into::into).collect(),
            params: params.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
            offsets: None,
        }
    }

    /// A fresh job begins at these offsets; partitions that are not named begin at their first record.
    pub fn with_offsets(mut self, offsets: BTreeMap<TopicPartition, i64>) -> Self {
        self.offsets = Some(offsets);
        self
    }

    fn spec(&self, name: String, key: &'static str, value: &'static str) -> Result<SourceSpec, String> {
        let mut params = self.params.clone();
        for (param, expected) in [("key.deserializer", key), ("value.deserializer", value)] {
            let given = params.remove(param);
            // `BytesDeserializer` and `ByteBufferDeserializer` give the same bytes.
            let short = given.as_deref().map(|class| class.rsplit('.').next().unwrap_or(class).replace("ByteBuffer", "Bytes"));
            if let (Some(given), Some(short)) = (given, short)
                && short != expected
            {
                return Err(format!("`{param}` is {given}, but the stream's type is read by {expected}"));
            }
        }
        // Offsets are committed with batches, as Spark's direct stream insists on too.
        params.remove("enable.auto.commit");
        if self.topics.is_empty() {
            return Err("no topics to subscribe to".into());
        }
        let group = params.get("group.id").cloned().filter(|group| !group.is_empty());
        let startup = match (&self.offsets, params.get("auto.offset.reset").map(String::as_str)) {
            (Some(offsets), _) => Startup::Specific(offsets.clone()),
            (None, _) if group.is_some() => Startup::GroupOffsets,
            (None, None | Some("latest")) => Startup::Latest,
            (None, Some("earliest")) => Startup::Earliest,
            (None, Some(other)) => return Err(format!("`auto.offset.reset` is `{other}`; without a group it must be earliest or latest")),
        };
        let isolation = match params.get("isolation.level").map(String::as_str) {
            None | Some("read_uncommitted") => Isolation::ReadUncommitted,
            Some("read_committed") => Isolation::ReadCommitted,
            Some(other) => return Err(format!("`isolation.level` is `{other}`; it must be read_uncommitted or read_committed")),
        };
        let kafka = KafkaConfig::from_properties(params).map_err(|error| error.to_string())?;
        Ok(SourceSpec { name, kind: SourceKind::Kafka(kafka), topics: self.topics.clone(), startup, bounded: None, isolation, group })
    }
}

/// Makes streams from Kafka.
pub struct KafkaUtils;

impl KafkaUtils {
    /// Reads topics directly: a partition of the topic is a partition of each batch, and the batch's offset ranges are
    /// known ([`Rdd::offset_ranges`]). What is wrong with the parameters is said by [`StreamingContext::start`].
    pub fn create_direct_stream<K: FromKafka, V: FromKafka>(
        ssc: &StreamingContext,
        location: LocationStrategy,
        strategy: ConsumerStrategy,
    ) -> DStream<ConsumerRecord<K, V>> {
        if location != LocationStrategy::PreferConsistent {
            ssc.note("location strategies have no effect: one process reads every partition".into());
        }
        let topics = strategy.topics.join(", ");
        let spec = |name| {
            let spec =
                strategy.spec(name, K::DESERIALIZER, V::DESERIALIZER).map_err(|error| format!("createDirectStream({topics}): {error}"))?;
            if let SourceKind::Kafka(config) = &spec.kind {
                config.notes().iter().for_each(|note| ssc.note(note.clone()));
            }
            Ok(spec)
        };
        ssc.record_stream("kafka", format!("kafka({topics})"), spec, decode)
    }
}

/// A record as the program sees it; the error says what is no key or value of its type.
fn decode<K: FromKafka, V: FromKafka>(range: &OffsetRange, record: Record) -> anyhow::Result<ConsumerRecord<K, V>> {
    let wrong = |what: &str, expected: &str| {
        anyhow::anyhow!("{}-{} offset {}: the {what} is not {expected}", range.topic, range.partition, record.offset)
    };
    let key = record.key.as_ref().map(K::from_kafka).transpose();
    let value = record.value.as_ref().map(V::from_kafka).transpose();
    Ok(ConsumerRecord {
        topic: range.topic.clone(),
        partition: range.partition,
        offset: record.offset,
        timestamp: record.timestamp_ms,
        key: key.map_err(|expected| wrong("key", expected))?,
        value: value.map_err(|expected| wrong("value", expected))?,
        headers: record.headers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(params: &[(&str, &str)]) -> Result<SourceSpec, String> {
        let params = [("bootstrap.servers", "b:9092")].iter().chain(params).copied();
        ConsumerStrategy::subscribe(["t"], params).spec("kafka-0".into(), "StringDeserializer", "StringDeserializer")
    }

    #[test]
    fn the_articles_parameters_are_understood() {
        let spec = spec(&[
            ("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer"),
            ("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer"),
            ("group.id", "spark-group"),
            ("auto.offset.reset", "latest"),
            ("enable.auto.commit", "false"),
        ])
        .unwrap();
        assert_eq!(spec.group.as_deref(), Some("spark-group"));
        assert_eq!(spec.startup, Startup::GroupOffsets);
        assert_eq!(spec.kafka("bootstrap.servers"), Some("b:9092"));
    }

    #[test]
    fn the_start_follows_group_offsets_and_reset() {
        assert_eq!(spec(&[]).unwrap().startup, Startup::Latest);
        assert_eq!(spec(&[("auto.offset.reset", "earliest")]).unwrap().startup, Startup::Earliest);
        assert!(spec(&[("auto.offset.reset", "none")]).err().unwrap().contains("auto.offset.reset"));
        assert_eq!(spec(&[("group.id", "g"), ("auto.offset.reset", "none")]).unwrap().startup, Startup::GroupOffsets);
    }

    #[test]
    fn a_deserializer_of_another_type_is_refused() {
        let error = spec(&[("value.deserializer", "org.apache.kafka.common.serialization.LongDeserializer")]).err().unwrap();
        assert!(error.contains("LongDeserializer") && error.contains("StringDeserializer"), "{error}");
    }

    #[test]
    fn values_are_decoded_as_java_does() {
        assert_eq!(String::from_kafka(&Bytes::from_static(b"a\xff")).unwrap(), "a\u{fffd}");
        assert_eq!(i64::from_kafka(&Bytes::from_static(&[0, 0, 0, 0, 0, 0, 1, 0])).unwrap(), 256);
        assert_eq!(i32::from_kafka(&Bytes::from_static(&[1])), Err("4 bytes"));
    }
}
