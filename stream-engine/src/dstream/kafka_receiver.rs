//! `KafkaUtils.createStream`: a member of a consumer group as a receiver.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use service_kit::kafka::{KafkaConfig, TopicPartition, member};

use super::kafka::FromKafka;
use super::receiver::{Receiver, ReceiverSupervisor};
use super::{DStream, KafkaUtils, StreamingContext};

/// Records that are stored, and acknowledged to Kafka, at once.
const POLL_RECORDS: usize = 10_000;
const POLL_WAIT: Duration = Duration::from_millis(100);

/// Key and value.
type Pair = (Option<Bytes>, Option<Bytes>);

struct Group {
    config: KafkaConfig,
    group: String,
    topics: Vec<String>,
    reset: String,
}

#[async_trait]
impl Receiver<Pair> for Group {
    async fn on_start(&self, supervisor: &ReceiverSupervisor<Pair>) -> anyhow::Result<()> {
        let member = member(&self.config, &self.group, &self.topics, &self.reset).await?;
        while !supervisor.is_stopped() {
            let records = member.poll(POLL_RECORDS, POLL_WAIT).await?;
            let mut next: BTreeMap<TopicPartition, i64> = BTreeMap::new();
            let mut pairs: Vec<Pair> = Vec::with_capacity(records.len());
            for (partition, record) in records {
                next.insert(partition, record.offset + 1);
                pairs.push((record.key, record.value));
            }
            if pairs.is_empty() {
                continue;
            }
            supervisor.store_all(pairs).await?;
            // Who takes the partition over, and this process after a crash, reads on from here.
            if let Err(error) = member.commit(next.into_iter().collect(), "").await {
                supervisor.report_error("offsets are not committed; the records may come again", &error.into());
            }
        }
        member.close().await;
        Ok(())
    }
}

impl KafkaUtils {
    /// Reads topics as a member of the consumer group `group.id`, through a receiver. Offsets are committed to the group when records are
    /// stored: with the write-ahead log none is lost, and one that was stored just before a crash may come again. The direct stream
    /// ([`Self::create_direct_stream`]) has no such doubt, and needs no log.
    ///
    /// `params` are the Java consumer's, `group.id` among them; `auto.offset.reset` counts where the group has no offsets. `topics` come
    /// with the number of threads that Spark would read them with, which has no effect.
    pub fn create_stream<K: FromKafka, V: FromKafka>(
        ssc: &StreamingContext,
        params: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
        topics: impl IntoIterator<Item = (impl Into<String>, usize)>,
    ) -> DStream<(Option<K>, Option<V>)> {
        let topics: Vec<String> = topics.into_iter().map(|(topic, _)| topic.into()).collect();
        let op = format!("createStream({})", topics.join(", "));
        let params: BTreeMap<String, String> = params.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let group = Group::new(params, topics).unwrap_or_else(|error| {
            ssc.graph.lock().error(format!("{op}: {error}"));
            Group { config: KafkaConfig::new(""), group: String::new(), topics: Vec::new(), reset: String::new() }
        });
        group.config.notes().iter().for_each(|note| ssc.note(note.clone()));
        ssc.received(&op, group, |(key, value): Pair| {
            let wrong = |what: &str, expected: &str| anyhow::anyhow!("a record's {what} is not {expected}");
            let key = key.as_ref().map(K::from_kafka).transpose().map_err(|expected| wrong("key", expected))?;
            let value = value.as_ref().map(V::from_kafka).transpose().map_err(|expected| wrong("value", expected))?;
            Ok((key, value))
        })
    }
}

impl Group {
    fn new(mut params: BTreeMap<String, String>, topics: Vec<String>) -> Result<Self, String> {
        // The stream's types decide.
        params.remove("key.deserializer");
        params.remove("value.deserializer");
        params.remove("enable.auto.commit");
        if topics.is_empty() {
            return Err("no topics to read".into());
        }
        let group =
            params.remove("group.id").filter(|group| !group.is_empty()).ok_or("a receiver is a member of a group; set `group.id`")?;
        let reset = params.remove("auto.offset.reset").unwrap_or_else(|| "latest".into());
        if !matches!(reset.as_str(), "earliest" | "latest" | "none") {
            return Err(format!("`auto.offset.reset` is `{reset}`; it must be earliest, latest or none"));
        }
        let config = KafkaConfig::from_properties(params).map_err(|error| error.to_string())?;
        Ok(Self { config, group, topics, reset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_parameters_is_said() {
        let group = |params: &[(&str, &str)], topics: &[&str]| {
            let params = [("bootstrap.servers", "b:9092")].iter().chain(params).map(|(key, value)| (key.to_string(), value.to_string()));
            Group::new(params.collect(), topics.iter().map(ToString::to_string).collect())
        };
        assert!(group(&[], &["t"]).err().unwrap().contains("group.id"));
        assert!(group(&[("group.id", "g")], &[]).err().unwrap().contains("no topics"));
        assert!(group(&[("group.id", "g"), ("auto.offset.reset", "smallest")], &["t"]).err().unwrap().contains("smallest"));
        let sound = group(&[("group.id", "g"), ("enable.auto.commit", "true")], &["t"]).unwrap();
        assert_eq!((sound.group.as_str(), sound.reset.as_str()), ("g", "latest"));
    }
}
