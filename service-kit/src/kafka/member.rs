//! A member of a consumer group, on librdkafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use tracing::warn;

use super::context::{Watch, blocking, client_config, reach};
use super::lookup::list;
use super::properties::Role;
use super::range::{record, size};
use super::{KafkaConfig, KafkaError, Member, Record, TopicPartition};

/// Joins `group` for `topics`. `auto_offset_reset`: `earliest`, `latest` or `none`, where the group has no offset.
/// Partitions come with the first polls.
pub async fn member(config: &KafkaConfig, group: &str, topics: &[String], auto_offset_reset: &str) -> Result<Arc<dyn Member>, KafkaError> {
    let reset = match auto_offset_reset {
        "earliest" | "latest" => auto_offset_reset,
        "none" => "error",
        other => {
            return Err(KafkaError::Config(format!("auto.offset.reset = {other}: expected one of earliest, latest, none")));
        }
    };
    let mut client = client_config(config, Role::Member)?;
    client.set("group.id", group).set("auto.offset.reset", reset);
    reach(config, &format!("joining group \"{group}\"")).await?;
    let watch = Watch::new(config);
    let what = format!("joining group \"{group}\"");
    let consumer = BaseConsumer::from_config_and_context(&client, watch.clone()).map_err(|error| watch.explain(&error, &what))?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    consumer.subscribe(&names).map_err(|error| match error {
        RdError::Subscription(reason) => KafkaError::Invalid(match names.iter().find(|name| name.starts_with('^')) {
            Some(pattern) => format!("topic pattern {pattern:?} is not a regular expression; correct it, or name the topics"),
            None => format!("{what}: topics {} are refused: {reason}", names.join(", ")),
        }),
        error => watch.explain(&error, &what),
    })?;
    Ok(Arc::new(Native { consumer: Mutex::new(Some(Arc::new(consumer))), watch, group: group.into(), bound: config.api_timeout() }))
}

type NativeConsumer = Arc<BaseConsumer<Watch>>;

struct Native {
    /// `None` after `close`.
    consumer: Mutex<Option<NativeConsumer>>,
    watch: Watch,
    group: Arc<str>,
    bound: Duration,
}

impl Native {
    fn consumer(&self) -> Result<NativeConsumer, KafkaError> {
        let closed = || KafkaError::Conflict(format!("the member of group \"{}\" is closed", self.group));
        self.consumer.lock().clone().ok_or_else(closed)
    }
}

/// Polls are cut into pieces of this, so that closing a member does not wait for a long poll.
const POLL: Duration = Duration::from_millis(100);

#[async_trait]
impl Member for Native {
    async fn poll(&self, max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        let consumer = self.consumer()?;
        let watch = self.watch.clone();
        let group = Arc::clone(&self.group);
        blocking(move || {
            let deadline = std::time::Instant::now() + wait;
            let mut records = Vec::new();
            let mut bytes = 0;
            let mut topic: Arc<str> = "".into();
            while records.len() < max {
                let left = deadline.saturating_duration_since(std::time::Instant::now()).min(POLL);
                // Once there is something, only what is here already.
                let polled = consumer.poll(if records.is_empty() { left } else { Duration::ZERO });
                match polled {
                    Some(Ok(message)) => {
                        if *topic != *message.topic() {
                            topic = message.topic().into();
                        }
                        let record = record(&message);
                        bytes += size(&record);
                        records.push((TopicPartition::new(Arc::clone(&topic), message.partition()), record));
                    }
                    Some(Err(error)) => judge(&watch, &group, &error)?,
                    None if records.is_empty() && std::time::Instant::now() < deadline => {}
                    None => break,
                }
            }
            if !records.is_empty() {
                watch.on_success();
            }
            metrics::counter!("millrace_kafka_fetch_records_total", "client" => "member").increment(records.len() as u64);
            metrics::counter!("millrace_kafka_fetch_bytes_total", "client" => "member").increment(bytes as u64);
            Ok(records)
        })
        .await
    }

    async fn commit(&self, offsets: Vec<(TopicPartition, i64)>) -> Result<(), KafkaError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let consumer = self.consumer()?;
        let watch = self.watch.clone();
        let what = format!("committing offsets of group \"{}\"", self.group);
        blocking(move || {
            let list = list(offsets.iter().map(|(partition, offset)| (partition, Offset::Offset(*offset))))?;
            consumer.commit(&list, CommitMode::Sync).map_err(|error| watch.explain(&error, &what))
        })
        .await
    }

    async fn assignment(&self) -> Vec<TopicPartition> {
        let Ok(assignment) = self.consumer().map(|consumer| consumer.assignment()) else { return Vec::new() };
        let Ok(list) = assignment else { return Vec::new() };
        let mut partitions: Vec<TopicPartition> =
            list.elements().iter().map(|element| TopicPartition::new(element.topic(), element.partition())).collect();
        partitions.sort();
        partitions
    }

    async fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        let Ok(Ok(list)) = self.consumer().map(|consumer| consumer.position()) else { return BTreeMap::new() };
        let known = list.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((TopicPartition::new(element.topic(), element.partition()), offset)),
            _ => None,
        });
        known.collect()
    }

    async fn set_paused(&self, partition: &TopicPartition, paused: bool) -> Result<(), KafkaError> {
        let list = list([(partition, Offset::Invalid)])?;
        let consumer = self.consumer()?;
        let result = if paused { consumer.pause(&list) } else { consumer.resume(&list) };
        result.map_err(|error| self.watch.explain(&error, &format!("pausing {partition}")))
    }

    async fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<(), KafkaError> {
        let consumer = self.consumer()?;
        let watch = self.watch.clone();
        let (partition, bound) = (partition.clone(), self.bound);
        blocking(move || {
            let list = list([(&partition, Offset::Offset(offset))])?;
            let sought =
                consumer.seek_partitions(list, bound).and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
            sought.map_err(|error| match error.rdkafka_error_code() {
                Some(Code::State | Code::UnknownPartition) => KafkaError::Conflict(format!("{partition} is not assigned to this member")),
                _ => watch.explain(&error, &format!("seeking {partition} to {offset}")),
            })
        })
        .await
    }

    async fn close(&self) {
        let Some(consumer) = self.consumer.lock().take() else { return };
        // The last owner leaves the group; a poll that is under way ends soon and is the last then.
        drop(
            blocking(move || {
                drop(consumer);
                Ok(())
            })
            .await,
        );
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.lock().take() {
            drop(super::context::Elsewhere::new(consumer));
        }
    }
}

fn judge(watch: &Watch, group: &str, error: &RdError) -> Result<(), KafkaError> {
    match error.rdkafka_error_code() {
        // Told to the context; librdkafka goes on by itself.
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut) => Ok(()),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            // Told once for each topic; it may be created later.
            warn!(group, %error, "a subscribed topic does not exist");
            Ok(())
        }
        Some(Code::AutoOffsetReset | Code::NoOffset) => Err(KafkaError::Conflict(format!(
            "group \"{group}\" has no usable offset, and auto.offset.reset is none: commit one, or set earliest or latest"
        ))),
        Some(Code::PollExceeded) => Err(KafkaError::Conflict(format!(
            "the member of group \"{group}\" was not polled within max.poll.interval.ms and lost its partitions; poll again to rejoin"
        ))),
        _ => Err(watch.explain(error, &format!("reading as a member of group \"{group}\""))),
    }
}
