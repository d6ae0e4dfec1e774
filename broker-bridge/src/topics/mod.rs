//! Topics and brokers: looked at, created with good defaults, deleted.

mod advice;
mod health;
pub(crate) mod lint;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use service_kit::{
    kafka::{self, Bounds, ClusterView, ConfigEntry, KafkaError, TopicPartition, TopicView},
    offsets::OffsetStore,
};
use tokio::time::{Instant, sleep, timeout};

pub(crate) use advice::{Advice, Measured};
use advice::{Allowed, count};
pub(crate) use health::{Health, Kind};

use crate::{
    auth::{self, Kind as Thing, Verb},
    config,
    connect::Connection,
    error::{BridgeError, Code, Result},
    gate::Gate,
};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Topics {
    inner: Arc<Inner>,
}

struct Inner {
    kafka: Connection,
    gate: Arc<Gate>,
    /// Its offsets belong to topics, and end with them.
    store: Arc<dyn OffsetStore>,
    config: config::Topics,
    /// Topic → its partitions, as of when. Only topics that exist, so the cluster bounds it.
    known: RwLock<HashMap<Arc<str>, (Instant, usize)>>,
    /// `min.insync.replicas` of every topic, and when all were asked for.
    min_isr: RwLock<(Option<Instant>, HashMap<String, u32>)>,
}

/// What a new topic should be. 0 and `None` take the advice or the broker's default.
#[derive(Clone, Debug, Default)]
pub(crate) struct NewTopic {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    pub(crate) replication: u32,
    pub(crate) consumers: u32,
    pub(crate) producers: u32,
    /// A topic that is used as this one will be.
    pub(crate) like: Option<Measured>,
    /// As `retention.ms`, `min.insync.replicas` and the like.
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) dry_run: bool,
}

/// What was, or in a dry run would be, created.
#[derive(Clone, Debug)]
pub(crate) struct Created {
    pub(crate) partitions: u32,
    pub(crate) replication: u32,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) advice: Advice,
}

/// A topic in full.
pub(crate) struct Described {
    pub(crate) topic: TopicView,
    pub(crate) bounds: BTreeMap<TopicPartition, Bounds>,
    pub(crate) config: Vec<ConfigEntry>,
}

/// The cluster and what each broker carries.
pub(crate) struct Brokers {
    pub(crate) cluster: ClusterView,
    /// By broker id.
    pub(crate) load: BTreeMap<i32, BrokerLoad>,
    pub(crate) health: Health,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BrokerLoad {
    pub(crate) partitions: u32,
    pub(crate) leaders: u32,
    /// `None` where the broker cannot be asked.
    pub(crate) log_bytes: Option<i64>,
}

/// Partitions that need a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaState {
    /// Their ISR is smaller than their replica list.
    pub(crate) under_replicated: u32,
    /// They have no leader.
    pub(crate) offline: u32,
}

impl ReplicaState {
    pub(crate) fn of<'a>(topics: impl IntoIterator<Item = &'a TopicView>) -> Self {
        let mut state = Self::default();
        for partition in topics.into_iter().flat_map(|topic| &topic.partitions) {
            state.under_replicated += u32::from(partition.isr.len() < partition.replicas.len());
            state.offline += u32::from(partition.leader.is_none());
        }
        state
    }
}

impl Topics {
    pub(crate) fn new(kafka: Connection, gate: Arc<Gate>, store: Arc<dyn OffsetStore>, config: config::Topics) -> Self {
        Self { inner: Arc::new(Inner { kafka, gate, store, config, known: RwLock::default(), min_isr: RwLock::default() }) }
    }

    async fn admin(&self) -> Result<Arc<dyn kafka::Admin>> {
        self.inner.gate.broker()?;
        Ok(Arc::clone(self.inner.kafka.of_caller()?.admin().await?))
    }

    /// An error unless the topic, and the partition where one is named, exists. Answers from memory for `topics.metadata_age`.
    pub(crate) async fn check(&self, topic: &str, partition: Option<i32>) -> Result<()> {
        let known = self.inner.known.read().get(topic).copied();
        let holds =
            |partitions: usize| partition.is_none_or(|partition| usize::try_from(partition).is_ok_and(|partition| partition < partitions));
        if let Some((at, partitions)) = known
            && at.elapsed() < self.inner.config.metadata_age
            && holds(partitions)
        {
            return Ok(());
        }
        let partitions = self.get(topic).await?.partitions.len();
        match partition {
            Some(partition) if !holds(partitions) => Err(BridgeError::unknown_partition(topic, partition, partitions)),
            _ => Ok(()),
        }
    }

    pub(crate) async fn get(&self, name: &str) -> Result<TopicView> {
        // A name that no topic can have is a topic that does not exist.
        check_name(name).map_err(|_| BridgeError::unknown_topic(name))?;
        let admin = self.admin().await?;
        let mut found = admin.topic(name).await;
        let was_known = self.inner.known.read().contains_key(name);
        // A broker that has just started may not know any topic yet.
        if was_known && matches!(found, Err(KafkaError::UnknownTopic(_))) && admin.topics().await?.is_empty() {
            found = Err(KafkaError::Retryable(format!("the broker knows no topic yet, {name:?} neither")));
        }
        let mut known = self.inner.known.write();
        match &found {
            Ok(topic) => drop(known.insert(name.into(), (Instant::now(), topic.partitions.len()))),
            Err(KafkaError::UnknownTopic(_)) => drop(known.remove(name)),
            Err(_) => {}
        }
        Ok(found?)
    }

    /// Those that the caller may see, ascending by name.
    pub(crate) async fn list(&self) -> Result<Vec<TopicView>> {
        let mut topics = self.admin().await?.topics().await?;
        topics.retain(|topic| auth::sees(Verb::Describe, Thing::Topic, &topic.name));
        Ok(topics)
    }

    pub(crate) async fn describe(&self, name: &str) -> Result<Described> {
        self.describe_all(name).await.map_err(|error| error.of_missing(name))
    }

    async fn describe_all(&self, name: &str) -> Result<Described> {
        let topic = self.get(name).await?;
        let partitions: Vec<TopicPartition> = topic.partitions.iter().map(|partition| TopicPartition::new(name, partition.id)).collect();
        let (bounds, config) = {
            let admin = self.admin().await?;
            tokio::try_join!(admin.bounds(&partitions), admin.topic_config(name))?
        };
        Ok(Described { topic, bounds, config })
    }

    pub(crate) async fn config(&self, name: &str) -> Result<Vec<ConfigEntry>> {
        self.get(name).await?;
        Ok(self.admin().await?.topic_config(name).await?)
    }

    /// Offsets that partitions begin and end at.
    pub(crate) async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>> {
        Ok(self.admin().await?.bounds(partitions).await?)
    }

    /// Drops the stored offsets of a topic that was deleted and created anew: they are places in a log that is gone.
    pub(crate) async fn recognise(&self, name: &str) -> Result<()> {
        let Some(id) = self.admin().await?.topic_id(name).await? else { return Ok(()) };
        let groups = self.inner.store.know_topic(name, id).await?;
        if !groups.is_empty() {
            metrics::counter!("millrace_bridge_stale_offsets_total").increment(groups.len() as u64);
            tracing::warn!(
                topic = name,
                groups = groups.join(", "),
                "the topic was deleted and created anew; its stored offsets are dropped"
            );
        }
        Ok(())
    }

    /// Says it where a partition has fewer replicas in sync than writes with acks=all need.
    pub(crate) async fn short_of_replicas(&self, name: &str) -> Result<Option<String>> {
        let topic = self.get(name).await?;
        let config = self.admin().await?.topic_config(name).await?;
        let needed = config.iter().find(|entry| entry.name == MIN_ISR).and_then(|entry| entry.value.as_deref()?.parse::<usize>().ok());
        let Some(needed) = needed else { return Ok(None) };
        let short = topic.partitions.iter().find(|partition| partition.isr.len() < needed);
        Ok(short.map(|partition| {
            let (in_sync, s) = (partition.isr.len(), if partition.isr.len() == 1 { "" } else { "s" });
            format!("{name}-{} has {in_sync} replica{s} in sync, and its min.insync.replicas is {needed}", partition.id)
        }))
    }

    pub(crate) async fn cluster(&self) -> Result<ClusterView> {
        Ok(self.admin().await?.cluster().await?)
    }

    /// `measured`: the topic, or one that is used alike.
    pub(crate) async fn advise(&self, consumers: u32, producers: u32, measured: Option<&Measured>) -> Result<Advice> {
        let brokers = u32::try_from(self.cluster().await?.brokers.len()).unwrap_or(u32::MAX);
        Ok(advice::advise(consumers, producers, measured, brokers, self.allowed()))
    }

    /// What advice goes by.
    pub(crate) fn allowed(&self) -> Allowed {
        let config::Topics { partitions_max, partition_rate_max, .. } = self.inner.config;
        Allowed { partitions_max, partition_rate_max }
    }

    pub(crate) async fn create(&self, new: NewTopic) -> Result<Created> {
        check_new_name(&new.name)?;
        auth::check(Verb::Create, Thing::Topic, &new.name)?;
        self.check_partitions(new.partitions)?;
        let advice = self.advise(new.consumers, new.producers, new.like.as_ref()).await?;
        let partitions = if new.partitions == 0 { advice.partitions } else { new.partitions };
        let replication = if new.replication == 0 { advice.replication } else { new.replication };
        let mut config = new.config;
        let brokers = self.cluster().await?.brokers.len();
        if usize::try_from(replication).unwrap_or(usize::MAX) > brokers {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!("a replication of {replication} needs as many brokers, and the cluster has {brokers}; ask for {brokers} at most"),
            ));
        }
        if let Some(min) = config.get(MIN_ISR).and_then(|min| min.trim().parse::<u32>().ok())
            && min > replication
        {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!(
                    "{MIN_ISR} = {min} with a replication of {replication}: no write with acks=all could ever succeed; ask for {replication} at most"
                ),
            ));
        }
        // Advice for the replication that the topic really gets.
        config.entry(MIN_ISR.to_owned()).or_insert_with(|| advice::min_insync_replicas(replication).to_string());
        keep_a_week(&mut config);
        let as_i32 = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        self.admin().await?.create_topic(&new.name, as_i32(partitions), as_i32(replication), &config, new.dry_run).await.map_err(
            |error| match error {
                KafkaError::AlreadyExists(_) => {
                    BridgeError::new(Code::TopicExists, format!("topic {:?} exists already; describe it, or delete it first", new.name))
                }
                other => other.into(),
            },
        )?;
        if !new.dry_run {
            tracing::info!(topic = new.name, partitions, replication, "topic created");
            self.await_usable(&new.name, partitions).await?;
        }
        Ok(Created { partitions, replication, config, advice })
    }

    /// Creates a topic whose replicas the caller places; brokers by partition. Gives its settings.
    pub(crate) async fn create_assigned(&self, new: NewTopic, assignments: &BTreeMap<i32, Vec<i32>>) -> Result<BTreeMap<String, String>> {
        check_new_name(&new.name)?;
        auth::check(Verb::Create, Thing::Topic, &new.name)?;
        self.inner.gate.broker()?;
        let partitions = u32::try_from(assignments.len()).unwrap_or(u32::MAX);
        self.check_partitions(partitions)?;
        let mut new = new;
        keep_a_week(&mut new.config);
        self.inner.kafka.of_caller()?.manage().create_topic(&new.name, assignments, &new.config, new.dry_run).await?;
        if !new.dry_run {
            tracing::info!(topic = new.name, partitions, "topic created, with replicas as assigned");
            self.await_usable(&new.name, partitions).await?;
        }
        Ok(new.config)
    }

    /// Lets a topic have more partitions, and waits until they can be used.
    pub(crate) async fn grow(&self, name: &str, partitions: u32) -> Result<TopicView> {
        self.get(name).await.map_err(|error| error.of_missing(name))?;
        self.check_partitions(partitions)?;
        let partitions_count = i32::try_from(partitions).unwrap_or(i32::MAX);
        self.inner.kafka.of_caller()?.manage().create_partitions(name, partitions_count, false).await?;
        tracing::info!(topic = name, partitions, "topic has more partitions");
        self.await_usable(name, partitions).await?;
        self.get(name).await
    }

    fn check_partitions(&self, partitions: u32) -> Result<()> {
        let partitions_max = self.inner.config.partitions_max;
        if partitions > partitions_max {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!(
                    "{partitions} partitions are more than {partitions_max} (topics.partitions_max); ask for fewer, or raise the limit"
                ),
            ));
        }
        Ok(())
    }

    /// A broker answers a creation before the new partitions have leaders everywhere; whoever writes at once would fail.
    async fn await_usable(&self, name: &str, partitions: u32) -> Result<()> {
        let admin = self.admin().await?;
        let all: Vec<TopicPartition> = (0..partitions).filter_map(|id| Some(TopicPartition::new(name, i32::try_from(id).ok()?))).collect();
        let usable = async {
            // The offsets come from the leaders themselves.
            while !admin.bounds(&all).await.is_ok_and(|bounds| bounds.len() == all.len()) {
                sleep(USABLE_INTERVAL).await;
            }
        };
        if timeout(USABLE_WAIT_MAX, usable).await.is_err() {
            tracing::warn!(topic = name, "topic is created, but not every partition has a leader yet");
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        check_name(name).map_err(|_| BridgeError::unknown_topic(name).of_missing(name))?;
        self.admin().await?.delete_topic(name).await.map_err(|error| BridgeError::from(error).of_missing(name))?;
        self.inner.known.write().remove(name);
        let groups = self.inner.store.forget_topic(name).await?;
        tracing::info!(topic = name, groups = groups.join(", "), "topic deleted, and its stored offsets");
        Ok(())
    }

    pub(crate) async fn brokers(&self) -> Result<Brokers> {
        let admin = self.admin().await?;
        let (cluster, topics) = tokio::try_join!(admin.cluster(), admin.topics())?;
        // A broker that does not tell its disks' use is still a broker.
        let log_bytes = admin.log_bytes().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "log sizes are not known");
            BTreeMap::new()
        });
        let mut load: BTreeMap<i32, BrokerLoad> = cluster.brokers.iter().map(|broker| (broker.id, BrokerLoad::default())).collect();
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            for replica in &partition.replicas {
                load.entry(*replica).or_default().partitions += 1;
            }
            if let Some(leader) = partition.leader {
                load.entry(leader).or_default().leaders += 1;
            }
        }
        for (broker, bytes) in log_bytes {
            load.entry(broker).or_default().log_bytes = Some(bytes);
        }
        Ok(Brokers { health: self.health(&topics), cluster, load })
    }

    /// How partitions and their leaders are, with the settings that were known last: while a broker goes away, nobody may answer for them.
    pub(crate) fn health(&self, topics: &[TopicView]) -> Health {
        health::health(topics, &self.inner.min_isr.read().1)
    }

    /// Asks for the settings that [`Self::health`] needs: of topics that are new, and each [`MIN_ISR_AGE`] of all.
    pub(crate) async fn learn_min_isr(&self, topics: &[TopicView]) -> Result<()> {
        let names: Vec<String> = {
            let known = self.inner.min_isr.read();
            let all = known.0.is_none_or(|at| at.elapsed() >= MIN_ISR_AGE);
            topics.iter().map(|topic| &topic.name).filter(|name| all || !known.1.contains_key(*name)).cloned().collect()
        };
        if names.is_empty() {
            return Ok(());
        }
        let found = self.admin().await?.topic_configs(&names).await?;
        let mut known = self.inner.min_isr.write();
        let exist: HashSet<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
        known.1.retain(|name, _| exist.contains(name.as_str()));
        if names.len() == topics.len() {
            known.0 = Some(Instant::now());
        }
        for name in names {
            // One that may not be looked at is not asked for each time.
            let min = found.get(&name).and_then(|config| setting(config, MIN_ISR)?.parse().ok()).unwrap_or(1);
            known.1.insert(name, min);
        }
        Ok(())
    }
}

/// A topic's setting, its default included.
fn setting<'a>(config: &'a [ConfigEntry], name: &str) -> Option<&'a str> {
    config.iter().find(|entry| entry.name == name)?.value.as_deref()
}

/// How long a topic's `min.insync.replicas` is believed while brokers answer.
const MIN_ISR_AGE: Duration = Duration::from_secs(300);

/// How long a creation waits for the leaders of its partitions, and how often it looks.
const USABLE_WAIT_MAX: Duration = Duration::from_secs(5);
const USABLE_INTERVAL: Duration = Duration::from_millis(25);

pub(crate) const MIN_ISR: &str = "min.insync.replicas";

/// Kafka's own default, said by the topic itself: what its brokers have may be another.
pub(crate) const RETENTION: &str = "retention.ms";
const WEEK_MS: &str = "604800000";

/// The retention of a topic for which none is asked. A compacted one keeps what it has.
fn keep_a_week(config: &mut BTreeMap<String, String>) {
    if !config.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        config.entry(RETENTION.to_owned()).or_insert_with(|| WEEK_MS.to_owned());
    }
}

/// Kafka's own, which it creates itself and with settings of its own.
const KAFKAS: [&str; 3] = ["__consumer_offsets", "__transaction_state", "__share_group_state"];

/// As [`check_name`], for a topic that is to be created.
fn check_new_name(name: &str) -> Result<()> {
    check_name(name)?;
    if KAFKAS.contains(&name) {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("topic {name:?} is Kafka's own, and Kafka creates it; take another name"),
        ));
    }
    Ok(())
}

/// Kafka's rule for names, checked here so that the error says it.
fn check_name(name: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(legal) {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("{name:?} is not a topic name: 1 to 249 of the letters a-z, A-Z, digits, '.', '_' and '-', and not '.' or '..'"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {

    use service_kit::kafka::PartitionView;

    use super::*;
    use crate::testing::{self, FakeKafka};

    #[tokio::test]
    async fn a_topic_is_created_with_the_advice_where_nothing_was_said() {
        let kafka = FakeKafka::default();
        let topics = testing::topics(&kafka);
        let created = topics.create(NewTopic { name: "t".into(), consumers: 3, producers: 2, ..NewTopic::default() }).await.unwrap();
        assert_eq!((created.partitions, created.replication), (6, 1));
        let week = (RETENTION.to_owned(), "604800000".to_owned());
        assert_eq!(created.config, BTreeMap::from([(MIN_ISR.to_owned(), "1".to_owned()), week]));
        let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let created = topics.create(NewTopic { name: "c".into(), config: compacted, ..NewTopic::default() }).await.unwrap();
        assert_eq!(created.config.get(RETENTION), None, "it keeps the last of each key");
        assert_eq!(topics.get("t").await.unwrap().partitions.len(), 6);
        let error = topics.create(NewTopic { name: "t".into(), ..NewTopic::default() }).await.unwrap_err();
        assert_eq!(error.code, Code::TopicExists);
    }

    #[tokio::test]
    async fn a_dry_run_creates_nothing() {
        let kafka = FakeKafka::default();
        let topics = testing::topics(&kafka);
        let new = NewTopic {
            name: "t".into(),
            partitions: 4,
            config: BTreeMap::from([("retention.ms".to_owned(), "7".to_owned())]),
            dry_run: true,
            ..NewTopic::default()
        };
        let created = topics.create(new).await.unwrap();
        assert_eq!((created.partitions, created.config["retention.ms"].as_str()), (4, "7"));
        assert_eq!(topics.get("t").await.unwrap_err().code, Code::TopicNotFound);
    }

    #[tokio::test]
    async fn wrong_names_and_too_many_partitions_are_refused_here() {
        let topics = testing::topics(&FakeKafka::default());
        for name in ["", ".", "..", "a b", "ö", &"x".repeat(250)] {
            let error = topics.create(NewTopic { name: name.into(), ..NewTopic::default() }).await.unwrap_err();
            assert!(error.code == Code::Unprocessable && error.message.contains("not a topic name"), "{error}");
        }
        let error = topics.create(NewTopic { name: "__consumer_offsets".into(), ..NewTopic::default() }).await.unwrap_err();
        assert!(error.code == Code::Unprocessable && error.message.contains("Kafka's own"), "{error}");
        let error = topics.create(NewTopic { name: "t".into(), partitions: 1_001, ..NewTopic::default() }).await.unwrap_err();
        assert!(error.message.contains("topics.partitions_max"), "{error}");
    }

    #[tokio::test]
    async fn a_topic_is_looked_up_once_and_again_when_a_partition_is_missing() {
        let kafka = FakeKafka::with_topic("t", 1);
        let topics = testing::topics(&kafka);
        topics.check("t", None).await.unwrap();
        topics.check("t", Some(0)).await.unwrap();
        assert_eq!(kafka.lookups(), 1);
        assert_eq!(topics.check("t", Some(1)).await.unwrap_err().code, Code::PartitionNotFound);
        assert_eq!(topics.check("t", Some(-1)).await.unwrap_err().code, Code::PartitionNotFound);
        kafka.add_topic("t", 2);
        topics.check("t", Some(1)).await.unwrap();
        topics.delete("t").await.unwrap();
        assert_eq!(topics.check("t", None).await.unwrap_err().code, Code::TopicNotFound);
    }

    #[test]
    fn replica_state_counts_small_isrs_and_missing_leaders() {
        let partition = |leader, isr: &[i32]| PartitionView { id: 0, leader, replicas: vec![1, 2, 3], isr: isr.to_vec() };
        let topic = TopicView {
            name: "t".into(),
            partitions: vec![partition(Some(1), &[1, 2, 3]), partition(Some(1), &[1]), partition(None, &[])],
        };
        assert_eq!(ReplicaState::of([&topic]), ReplicaState { under_replicated: 2, offline: 1 });
    }

    #[tokio::test]
    async fn replicas_that_cannot_be_are_refused_with_what_could() {
        let kafka = FakeKafka::default();
        let topics = testing::topics(&kafka);
        let new = |replication, min: &str| NewTopic {
            name: "t".into(),
            replication,
            config: BTreeMap::from([(MIN_ISR.to_owned(), min.to_owned())]),
            ..NewTopic::default()
        };
        for (new, message) in [(new(5, "1"), "ask for 1 at most"), (new(1, "5"), "no write with acks=all")] {
            let error = topics.create(new).await.unwrap_err();
            assert!(error.code == Code::Unprocessable && error.message.contains(message), "{error}");
        }
        topics.create(new(1, "1")).await.unwrap();
    }
}
