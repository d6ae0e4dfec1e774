//! What a librdkafka consumer is asked without reading: metadata, watermarks, offsets by time, groups, committed offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::client::Client;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{IsError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::access::Need;
use super::context::{Elsewhere, Watch, blocking, client_config, reach};
use super::properties::Role;
use super::{Bounds, Isolation, KafkaConfig, KafkaError, PartitionView, TopicPartition, TopicView};

pub(super) struct Lookup {
    pub(super) consumer: Elsewhere<Arc<BaseConsumer<Watch>>>,
    pub(super) watch: Watch,
    pub(super) timeout: Duration,
    stop: Arc<AtomicBool>,
}

impl Lookup {
    /// `group`: whose offsets to look at. Waits until a broker can be reached.
    pub(super) async fn new(config: &KafkaConfig, isolation: Isolation, group: Option<&str>) -> Result<Arc<Self>, KafkaError> {
        let mut client = client_config(config, Role::Reader)?;
        client.set("isolation.level", isolation.name());
        if let Some(group) = group {
            client.set("group.id", group);
        }
        reach(config, "connecting").await?;
        let watch = Watch::new(config);
        let consumer = BaseConsumer::from_config_and_context(&client, watch.clone())
            .map_err(|error| watch.explain(&error, "making a Kafka client"))?;
        let consumer = Arc::new(consumer);
        let stop = Arc::new(AtomicBool::new(false));
        serve(&consumer, &stop)?;
        let lookup = Arc::new(Self { consumer: Elsewhere::new(consumer), watch, timeout: config.api_timeout(), stop });
        // A server that takes connections may still not be Kafka, or refuse the credentials.
        let answers = |lookup: &Self| match lookup.client().fetch_cluster_id(lookup.timeout) {
            Some(_) => Ok(()),
            // Tells why.
            None => lookup.client().fetch_metadata(None, lookup.timeout).map(drop),
        };
        lookup.ask("connecting", answers).await?;
        Ok(lookup)
    }

    pub(super) fn client(&self) -> &Client<Watch> {
        self.consumer.client()
    }

    /// One blocking question, its error explained.
    pub(super) async fn ask<T, F>(self: &Arc<Self>, what: &str, question: F) -> Result<T, KafkaError>
    where
        F: FnOnce(&Self) -> Result<T, rdkafka::error::KafkaError> + Send + 'static,
        T: Send + 'static,
    {
        self.ask_for(what, Need::default(), question).await
    }

    /// As [`Self::ask`], with what has to be granted for it.
    pub(super) async fn ask_for<T, F>(self: &Arc<Self>, what: &str, need: Need, question: F) -> Result<T, KafkaError>
    where
        F: FnOnce(&Self) -> Result<T, rdkafka::error::KafkaError> + Send + 'static,
        T: Send + 'static,
    {
        let lookup = Arc::clone(self);
        let what = what.to_owned();
        blocking(move || match question(&lookup) {
            Ok(answer) => {
                lookup.watch.on_success();
                Ok(answer)
            }
            Err(error) => {
                let error = lookup.watch.explain_for(&error, &what, &need);
                if matches!(error, KafkaError::Timeout(_) | KafkaError::Unreachable(_)) {
                    // The loss of its brokers may have been told before the answer that took them counted as a success.
                    lookup.watch.unanswered();
                }
                Err(error)
            }
        })
        .await
        .map_err(|error| match error {
            // Metadata requests say "timed out" or "transport failure" when there is no broker.
            KafkaError::Timeout(what) if !self.watch.outage.reason().is_empty() => KafkaError::Unreachable(self.watch.unreachable(&what)),
            other => other,
        })
    }

    /// All topics, ascending by name.
    pub(super) async fn topics(self: &Arc<Self>) -> Result<Vec<TopicView>, KafkaError> {
        let metadata = self.ask("listing topics", |lookup| lookup.client().fetch_metadata(None, lookup.timeout)).await?;
        let mut topics: Vec<TopicView> = views(&metadata);
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    pub(super) async fn topic(self: &Arc<Self>, name: &str) -> Result<TopicView, KafkaError> {
        let asked = name.to_owned();
        let what = format!("looking at topic \"{name}\"");
        let need = Need::topic("DESCRIBE", name);
        let metadata =
            self.ask_for(&what, need.clone(), move |lookup| lookup.client().fetch_metadata(Some(&asked), lookup.timeout)).await?;
        let error = metadata.topics().iter().find(|topic| topic.name() == name).map(|topic| topic.error());
        if let Some(Some(code)) = error {
            return Err(match Code::from(code) {
                Code::UnknownTopicOrPartition | Code::UnknownTopic => KafkaError::UnknownTopic(name.into()),
                other => self.watch.explain_code(other, &what, &need),
            });
        }
        views(&metadata).into_iter().find(|view| view.name == name).ok_or_else(|| KafkaError::UnknownTopic(name.into()))
    }

    pub(super) async fn bounds(self: &Arc<Self>, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        let (earliest, latest) =
            tokio::try_join!(self.list_offsets(partitions, Offset::Beginning), self.list_offsets(partitions, Offset::End))?;
        let both = |(partition, earliest): (TopicPartition, i64)| {
            let latest = latest.get(&partition).copied().unwrap_or(earliest);
            (partition, Bounds { earliest, latest })
        };
        Ok(earliest.into_iter().map(both).collect())
    }

    pub(super) async fn offsets_at(
        self: &Arc<Self>,
        partitions: &[TopicPartition],
        timestamp_ms: i64,
    ) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        // Negative times are the protocol's names of the ends.
        let mut offsets = self.list_offsets(partitions, Offset::Offset(timestamp_ms.max(0))).await?;
        let none: Vec<TopicPartition> = offsets.iter().filter(|(_, offset)| **offset < 0).map(|(partition, _)| partition.clone()).collect();
        if !none.is_empty() {
            offsets.extend(self.list_offsets(&none, Offset::End).await?);
        }
        Ok(offsets)
    }

    /// One `ListOffsets` request for each leader; `at` is a time, or one of the ends.
    async fn list_offsets(
        self: &Arc<Self>,
        partitions: &[TopicPartition],
        at: Offset,
    ) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        // A broker refuses a request that names a partition twice.
        let list = list(partitions.iter().map(|partition| (partition, at)).collect::<BTreeMap<_, _>>())?;
        let need = Need { topic: Some(("DESCRIBE", topics_of(partitions))), ..Need::default() };
        let deadline = Instant::now() + NEW_TOPIC_PATIENCE.min(self.timeout);
        loop {
            let list = list.clone();
            let asked = move |lookup: &Self| lookup.consumer.offsets_for_times(list, lookup.timeout);
            let answer = self.ask_for("asking for offsets", need.clone(), asked).await;
            let error = match answer.and_then(|list| offsets(&self.watch, &list)) {
                Ok(offsets) => return Ok(offsets),
                Err(error) => error,
            };
            return Err(match (self.are_there(partitions).await, error) {
                (Err(missing), _) => missing,
                // It was made in this moment: its leader, or this client, hears of it later than whoever names it.
                (Ok(true), KafkaError::Invalid(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(NEW_TOPIC_INTERVAL).await;
                    continue;
                }
                (Ok(_), KafkaError::Invalid(message)) => KafkaError::Retryable(message),
                (Ok(_), error) => error,
            });
        }
    }

    /// What the client's group has committed; of `partitions` or of all. Partitions without an offset are absent. With
    /// `Isolation::ReadCommitted` it waits for transactions that hold some of them.
    pub(super) async fn committed(
        self: &Arc<Self>,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, (i64, String)>, KafkaError> {
        let partitions = match partitions {
            Some(partitions) => partitions.to_vec(),
            None => {
                let of = |topic: TopicView| {
                    let name: Arc<str> = topic.name.into();
                    topic.partitions.into_iter().map(move |partition| TopicPartition::new(Arc::clone(&name), partition.id))
                };
                self.topics().await?.into_iter().flat_map(of).collect()
            }
        };
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let wanted = list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
        let what = format!("reading the offsets of group \"{group}\"");
        let need = Need { topic: Some(("DESCRIBE", topics_of(&partitions))), ..Need::default() }.and_group("DESCRIBE", group);
        let asked = move |lookup: &Self| {
            let deadline = Instant::now() + lookup.timeout;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match lookup.consumer.committed_offsets(wanted.clone(), left) {
                    Err(error) if error.rdkafka_error_code().is_some_and(moves) && left > COORDINATOR_INTERVAL => {
                        thread::sleep(COORDINATOR_INTERVAL);
                    }
                    answer => return answer,
                }
            }
        };
        let answer = self.ask_for(&what, need.clone(), asked).await?;
        let mut committed = BTreeMap::new();
        for element in answer.elements() {
            let partition = TopicPartition::new(element.topic(), element.partition());
            match element.error() {
                Ok(()) => {}
                // Of all partitions, one may be gone meanwhile.
                Err(error) if error.rdkafka_error_code() == Some(Code::UnknownTopicOrPartition) => continue,
                Err(error) => return Err(self.watch.explain_for(&error, &format!("{what}, {partition}"), &need)),
            }
            if let Offset::Offset(offset) = element.offset() {
                committed.insert(partition, (offset, element.metadata().to_owned()));
            }
        }
        Ok(committed)
    }

    /// An error names a partition that does not exist; false: it cannot be told.
    async fn are_there(self: &Arc<Self>, partitions: &[TopicPartition]) -> Result<bool, KafkaError> {
        // One question a topic: its highest partition is there, or not.
        let mut highest: BTreeMap<&str, &TopicPartition> = BTreeMap::new();
        for partition in partitions {
            let of = highest.entry(&partition.topic).or_insert(partition);
            *of = partition.max(*of);
        }
        for wanted in highest.into_values() {
            match self.topic(&wanted.topic).await {
                Ok(topic) if topic.partitions.iter().any(|partition| partition.id == wanted.partition) => {}
                Ok(topic) => {
                    let count = topic.partitions.len();
                    let text = format!("{wanted} does not exist: topic \"{}\" has {count} partitions", wanted.topic);
                    return Err(KafkaError::Invalid(text));
                }
                Err(error @ KafkaError::UnknownTopic(_)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// Reads what one group has committed, and waits for transactions that hold some of it.
#[derive(Clone)]
pub struct StableOffsets {
    lookup: Arc<Lookup>,
    group: Arc<str>,
}

/// Waits until a broker can be reached, `default.api.timeout.ms` at most.
pub async fn stable_offsets(config: &KafkaConfig, group: &str) -> Result<StableOffsets, KafkaError> {
    Ok(StableOffsets { lookup: Lookup::new(config, Isolation::ReadCommitted, Some(group)).await?, group: group.into() })
}

impl StableOffsets {
    /// Offsets with metadata, of `partitions` or (`None`) of all; partitions without one are absent. A transaction that stays open makes it
    /// [`KafkaError::Timeout`].
    pub async fn read(&self, partitions: Option<&[TopicPartition]>) -> Result<BTreeMap<TopicPartition, (i64, String)>, KafkaError> {
        self.lookup.committed(&self.group, partitions).await
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Serves a consumer's log lines and errors, which nobody else polls for, until `stop`.
pub(super) fn serve(consumer: &Arc<BaseConsumer<Watch>>, stop: &Arc<AtomicBool>) -> Result<(), KafkaError> {
    let consumer = Arc::clone(consumer);
    let stop = Arc::clone(stop);
    let work = move || {
        while !stop.load(Ordering::Relaxed) {
            consumer.context().help(consumer.client());
            if let Some(Err(error)) = consumer.poll(SERVE_INTERVAL) {
                // Told to the context already.
                tracing::trace!(%error, "consumer event");
            }
        }
    };
    thread::Builder::new()
        .name("kafka-events".into())
        .spawn(work)
        .map(drop)
        .map_err(|error| KafkaError::Fatal(format!("cannot start a thread: {error}")))
}

const SERVE_INTERVAL: Duration = Duration::from_millis(200);

/// How long to wait before a partition is asked for again that has just been made, and for how long.
const NEW_TOPIC_INTERVAL: Duration = Duration::from_millis(50);
const NEW_TOPIC_PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait before a group's coordinator is asked again that is being made or moved.
const COORDINATOR_INTERVAL: Duration = Duration::from_millis(50);

/// The group's coordinator is another one by now, or will be there in a moment. librdkafka looks for it, but gives up the question.
fn moves(code: Code) -> bool {
    matches!(code, Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
}

pub(super) fn list<'a>(entries: impl IntoIterator<Item = (&'a TopicPartition, Offset)>) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in entries {
        list.add_partition_offset(&partition.topic, partition.partition, offset)
            .map_err(|error| KafkaError::Invalid(format!("{partition}: {error}")))?;
    }
    Ok(list)
}

/// Names of the topics, each once.
pub(super) fn topics_of<'a>(partitions: impl IntoIterator<Item = &'a TopicPartition>) -> String {
    let names: BTreeSet<&str> = partitions.into_iter().map(|partition| &*partition.topic).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn offsets(watch: &Watch, list: &TopicPartitionList) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
    let mut offsets = BTreeMap::new();
    for element in list.elements() {
        let partition = TopicPartition::new(element.topic(), element.partition());
        let need = || Need::topic("DESCRIBE", element.topic());
        element.error().map_err(|error| watch.explain_for(&error, &format!("offsets of {partition}"), &need()))?;
        let offset = match element.offset() {
            Offset::Offset(offset) => offset,
            // No record at or after the time.
            _ => -1,
        };
        offsets.insert(partition, offset);
    }
    Ok(offsets)
}

fn views(metadata: &Metadata) -> Vec<TopicView> {
    let topics = metadata.topics().iter().filter(|topic| !topic.error().is_some_and(|error| error.is_error()));
    let view = |topic: &rdkafka::metadata::MetadataTopic| {
        let partition = |partition: &rdkafka::metadata::MetadataPartition| PartitionView {
            id: partition.id(),
            leader: Some(partition.leader()).filter(|id| *id >= 0),
            replicas: partition.replicas().to_vec(),
            isr: partition.isr().to_vec(),
        };
        let mut partitions: Vec<PartitionView> = topic.partitions().iter().map(partition).collect();
        partitions.sort_by_key(|partition| partition.id);
        TopicView { name: topic.name().to_owned(), partitions }
    };
    topics.map(view).collect()
}

impl Isolation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Isolation::ReadUncommitted => "read_uncommitted",
            Isolation::ReadCommitted => "read_committed",
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Refused};

    use super::*;

    #[tokio::test]
    async fn a_coordinator_that_moves_is_asked_again_and_one_that_refuses_is_not() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("logs", 1, 1).unwrap();
        let config = KafkaConfig::new(cluster.bootstrap_servers());
        let group = stable_offsets(&config, "readers").await.unwrap();
        let partitions = [TopicPartition::new("logs", 0)];
        let moving = [
            Refused::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
            Refused::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
            Refused::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        ];
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &moving);
        assert_eq!(group.read(Some(&partitions)).await.unwrap(), BTreeMap::new());
        cluster.request_errors(RDKafkaApiKey::OffsetFetch, &[Refused::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED]);
        assert!(matches!(group.read(Some(&partitions)).await, Err(KafkaError::Auth(_))));
    }
}
