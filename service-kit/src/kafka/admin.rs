//! Looks at and changes the cluster, on librdkafka.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::groups::GroupInfo;
use tokio::{select, time::sleep};
use tracing::debug;

use super::access::Need;
use super::context::{Elsewhere, Watch, blocking, client_config};
use super::dial::Dialer;
use super::lookup::{Lookup, list, topics_of};
use super::properties::Role;
use super::{
    Admin, Bounds, BrokerView, ClusterView, ConfigEntry, ConfigOf, GroupMemberView, GroupView, Isolation, KafkaConfig, KafkaError, Manage,
    TopicPartition, TopicView, wire,
};

/// Clients kept for groups whose offsets were asked for; the one unused longest goes first.
const GROUP_CLIENTS_MAX: usize = 16;

const VISIBLE_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a broker can be reached, `default.api.timeout.ms` (10 s) at most.
pub async fn admin(config: &KafkaConfig) -> Result<Arc<dyn Admin>, KafkaError> {
    Ok(Arc::new(Native {
        lookup: Lookup::new(config, Isolation::ReadUncommitted, None).await?,
        client: client(config)?,
        dialer: Dialer::new(config),
        groups: Mutex::default(),
    }))
}

/// A topic's configuration, by a client of its own.
pub(super) async fn topic_config(config: &KafkaConfig, name: &str) -> Result<Vec<ConfigEntry>, KafkaError> {
    describe(&client(config)?, config.api_timeout(), name).await
}

type Client = Arc<Elsewhere<AdminClient<Watch>>>;

/// So long an answer may take before the brokers are asked who there is.
const RENEWAL: Duration = Duration::from_secs(1);

/// librdkafka sends admin requests to the controller that its last metadata named. Where that broker is gone, the request waits for it to come back
/// until its time is over, and the next one too: a client that only administers has its metadata renewed every five minutes. So it is renewed while
/// an answer is waited for, and the request goes to whom it names then.
async fn answered<T>(client: &Client, request: impl Future<Output = T>) -> T {
    let mut request = std::pin::pin!(request);
    loop {
        select! {
            answer = &mut request => return answer,
            () = sleep(RENEWAL) => {}
        }
        let asked = Arc::clone(client);
        let renewal = blocking(move || {
            let watch = asked.inner().context();
            match asked.inner().fetch_metadata(None, RENEWAL) {
                Ok(_) => watch.on_success(),
                Err(_) => watch.unanswered(),
            }
            watch.help(asked.inner());
            Ok(())
        });
        select! {
            answer = &mut request => return answer,
            _ = renewal => {}
        }
    }
}

fn client(config: &KafkaConfig) -> Result<Client, KafkaError> {
    let watch = Watch::new(config);
    let mut client = client_config(config, Role::Admin)?;
    // Nobody serves this client's log lines; the lookup client beside it tells of outages.
    client.set_log_level(RDKafkaLogLevel::Emerg);
    AdminClient::from_config_and_context(&client, watch.clone())
        .map(|client| Arc::new(Elsewhere::new(client)))
        .map_err(|error| watch.explain(&error, "making a Kafka admin client"))
}

/// How long a broker may not have heard of a topic that another one knows.
const UNHEARD_MAX: Duration = Duration::from_secs(2);
const UNHEARD_INTERVAL: Duration = Duration::from_millis(50);

/// Topics asked for in one request.
const DESCRIBED_AT_ONCE: usize = 500;

async fn describe(client: &Client, bound: Duration, name: &str) -> Result<Vec<ConfigEntry>, KafkaError> {
    let what = format!("reading the configuration of topic \"{name}\"");
    let options = AdminOptions::new().request_timeout(Some(bound));
    let wanted = [ResourceSpecifier::Topic(name)];
    let answer = answered(client, client.describe_configs(&wanted, &options)).await;
    let watch = client.inner().context();
    let need = Need::topic("DESCRIBE_CONFIGS", name);
    let resources = answer.map_err(|error| watch.explain_for(&error, &what, &need))?;
    let mut all = Vec::new();
    for resource in resources {
        let resource = resource.map_err(|code| match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic => KafkaError::UnknownTopic(name.into()),
            other => watch.explain_code(other, &what, &need),
        })?;
        all.extend(entries(resource));
    }
    Ok(all)
}

/// Ascending by name.
fn entries(resource: ConfigResource) -> Vec<ConfigEntry> {
    let entry = |entry: rdkafka::admin::ConfigEntry| ConfigEntry {
        name: entry.name,
        value: entry.value.filter(|_| !entry.is_sensitive),
        is_default: entry.is_default,
        is_sensitive: entry.is_sensitive,
    };
    let mut entries: Vec<ConfigEntry> = resource.entries.into_iter().map(entry).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}

struct Native {
    dialer: Dialer,
    lookup: Arc<Lookup>,
    client: Client,
    /// By group, with the time of last use.
    groups: Mutex<HashMap<String, (Instant, Arc<Lookup>)>>,
}

impl Native {
    async fn group(&self, group: &str) -> Result<Arc<Lookup>, KafkaError> {
        if group.is_empty() {
            return Err(KafkaError::Invalid("a group's name must not be empty".into()));
        }
        if let Some((used, lookup)) = self.groups.lock().get_mut(group) {
            *used = Instant::now();
            return Ok(Arc::clone(lookup));
        }
        let lookup = Lookup::new(&self.dialer.config, Isolation::ReadUncommitted, Some(group)).await?;
        let mut groups = self.groups.lock();
        if groups.len() >= GROUP_CLIENTS_MAX
            && let Some(oldest) = groups.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone())
        {
            groups.remove(&oldest);
        }
        groups.insert(group.to_owned(), (Instant::now(), Arc::clone(&lookup)));
        Ok(lookup)
    }

    /// Waits until the brokers know a new topic: the controller answers before they do.
    async fn visible(&self, name: &str) {
        let known = async {
            while !self.lookup.topic(name).await.is_ok_and(|topic| topic.partitions.iter().all(|one| one.leader.is_some())) {
                sleep(VISIBLE_INTERVAL).await;
            }
            // That was one broker, and whoever asks next may ask another one.
            for address in self.addresses().await.unwrap_or_default() {
                while matches!(wire::topic_id(&self.dialer, &address, name, self.lookup.timeout).await, Ok(None)) {
                    sleep(VISIBLE_INTERVAL).await;
                }
            }
        };
        if tokio::time::timeout(self.lookup.timeout, known).await.is_err() {
            debug!(topic = name, "the new topic is not yet known to the brokers");
        }
    }

    /// Of all brokers.
    async fn addresses(&self) -> Result<Vec<String>, KafkaError> {
        let asked = self.lookup.ask("looking for brokers", |lookup| {
            let metadata = lookup.client().fetch_metadata(None, lookup.timeout)?;
            Ok(metadata.brokers().iter().map(|broker| format!("{}:{}", bracketed(broker.host()), broker.port())).collect())
        });
        asked.await
    }

    fn options(&self) -> AdminOptions {
        let bound = Some(self.lookup.timeout);
        AdminOptions::new().request_timeout(bound).operation_timeout(bound)
    }
}

#[async_trait]
impl Admin for Native {
    async fn cluster(&self) -> Result<ClusterView, KafkaError> {
        let asked = self.lookup.ask("describing the cluster", |lookup| {
            let metadata = lookup.client().fetch_metadata(None, lookup.timeout)?;
            let broker = |broker: &rdkafka::metadata::MetadataBroker| BrokerView {
                id: broker.id(),
                host: broker.host().to_owned(),
                port: u16::try_from(broker.port()).unwrap_or_default(),
            };
            let brokers: Vec<BrokerView> = metadata.brokers().iter().map(broker).collect();
            Ok((lookup.client().fetch_cluster_id(lookup.timeout), brokers))
        });
        let (id, mut brokers) = asked.await?;
        brokers.sort_by_key(|broker| broker.id);
        let mut controller = None;
        if self.dialer.dial().await.is_ok() {
            for broker in &brokers {
                match wire::controller(&self.dialer, &address(broker), self.lookup.timeout).await {
                    Ok(id) => {
                        controller = id;
                        break;
                    }
                    Err(error) => debug!(%error, "asking the next broker for the controller"),
                }
            }
        }
        Ok(ClusterView { id, controller, brokers })
    }

    async fn topics(&self) -> Result<Vec<TopicView>, KafkaError> {
        self.lookup.topics().await
    }

    async fn topic(&self, name: &str) -> Result<TopicView, KafkaError> {
        self.lookup.topic(name).await
    }

    async fn topic_id(&self, name: &str) -> Result<Option<[u8; 16]>, KafkaError> {
        if self.dialer.dial().await.is_err() {
            return Ok(None);
        }
        for address in self.addresses().await? {
            match wire::topic_id(&self.dialer, &address, name, self.lookup.timeout).await {
                Ok(id) => return Ok(id),
                Err(error) => debug!(%error, "asking the next broker for the topic's id"),
            }
        }
        Ok(None)
    }

    async fn topic_config(&self, name: &str) -> Result<Vec<ConfigEntry>, KafkaError> {
        let deadline = Instant::now() + UNHEARD_MAX;
        loop {
            let entries = describe(&self.client, self.lookup.timeout, name).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
            // The binding drops the reason: there is no such topic, or the broker that was asked has not heard of it yet, or it may not be looked at.
            self.lookup.topic(name).await?;
            let asked = Manage::of(&self.dialer).configs(&[ConfigOf::Topic(name)]).await;
            if let Err(refused @ KafkaError::Auth(_)) = asked {
                return Err(refused);
            }
            if Instant::now() >= deadline {
                let what = format!("reading the configuration of topic \"{name}\"");
                let need = Need::topic("DESCRIBE_CONFIGS", name);
                return Err(self.lookup.watch.explain_code(Code::TopicAuthorizationFailed, &what, &need));
            }
            sleep(UNHEARD_INTERVAL).await;
        }
    }

    async fn topic_configs(&self, names: &[String]) -> Result<BTreeMap<String, Vec<ConfigEntry>>, KafkaError> {
        let mut found = BTreeMap::new();
        for names in names.chunks(DESCRIBED_AT_ONCE) {
            let wanted: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
            let options = AdminOptions::new().request_timeout(Some(self.lookup.timeout));
            let answer = answered(&self.client, self.client.describe_configs(wanted.iter(), &options)).await;
            let resources = answer.map_err(|error| self.lookup.watch.explain(&error, "reading the configuration of topics"))?;
            for mut resource in resources.into_iter().flatten().filter(|resource| !resource.entries.is_empty()) {
                let specifier = std::mem::replace(&mut resource.specifier, OwnedResourceSpecifier::Broker(-1));
                if let OwnedResourceSpecifier::Topic(name) = specifier {
                    found.insert(name, entries(resource));
                }
            }
        }
        Ok(found)
    }

    async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication: i32,
        config: &BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), KafkaError> {
        if partitions == 0 || partitions < -1 || replication == 0 || replication < -1 {
            return Err(KafkaError::Invalid(format!(
                "topic \"{name}\": partitions ({partitions}) and replication ({replication}) must be 1 or more, or -1 for the broker's default"
            )));
        }
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(replication));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let what = format!("creating topic \"{name}\"");
        let need = Need { cluster: Some("CREATE"), ..Need::topic("CREATE", name) };
        let options = self.options().validate_only(validate_only);
        let answer = answered(&self.client, self.client.create_topics([&topic], &options)).await;
        let results = answer.map_err(|error| self.lookup.watch.explain(&error, &what))?;
        for result in results {
            if matches!(result, Err((_, Code::TopicAlreadyExists))) {
                // Perhaps only since a moment, by another process.
                self.visible(name).await;
            }
            result.map_err(|(_, code)| match code {
                Code::TopicAlreadyExists => KafkaError::AlreadyExists(name.into()),
                // The binding drops the broker's words.
                Code::InvalidConfig => KafkaError::Invalid(format!("{what}: {}", super::topic_config::reasons(config))),
                other => self.lookup.watch.explain_code(other, &what, &need),
            })?;
        }
        if !validate_only {
            self.visible(name).await;
        }
        Ok(())
    }

    async fn delete_topic(&self, name: &str) -> Result<(), KafkaError> {
        let what = format!("deleting topic \"{name}\"");
        let (names, options) = ([name], self.options());
        let answer = answered(&self.client, self.client.delete_topics(&names, &options)).await;
        let results = answer.map_err(|error| self.lookup.watch.explain(&error, &what))?;
        for result in results {
            result.map_err(|(_, code)| match code {
                Code::UnknownTopicOrPartition | Code::UnknownTopic => KafkaError::UnknownTopic(name.into()),
                other => self.lookup.watch.explain_code(other, &what, &Need::topic("DELETE", name)),
            })?;
        }
        Ok(())
    }

    async fn groups(&self) -> Result<Vec<GroupView>, KafkaError> {
        let need = Need::cluster("DESCRIBE");
        let asked = self.lookup.ask_for("listing groups", need, |lookup| {
            let groups = lookup.client().fetch_group_list(None, lookup.timeout)?;
            Ok(groups.groups().iter().map(group).collect::<Vec<GroupView>>())
        });
        let mut groups = asked.await?;
        groups.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(groups)
    }

    async fn committed(
        &self,
        group: &str,
        partitions: Option<&[TopicPartition]>,
    ) -> Result<BTreeMap<TopicPartition, (i64, String)>, KafkaError> {
        self.group(group).await?.committed(group, partitions).await
    }

    async fn commit(&self, group: &str, offsets: &[(TopicPartition, i64, String)]) -> Result<(), KafkaError> {
        if offsets.is_empty() {
            return Ok(());
        }
        if let Some((partition, offset, _)) = offsets.iter().find(|(_, offset, _)| *offset < 0) {
            return Err(KafkaError::Invalid(format!("{partition}: {offset} is not an offset")));
        }
        let list = list(offsets.iter().map(|(partition, offset, _)| (partition, Offset::Offset(*offset))))?;
        for (partition, _, metadata) in offsets {
            if let Some(mut element) = list.find_partition(&partition.topic, partition.partition)
                && !metadata.is_empty()
            {
                element.set_metadata(metadata);
            }
        }
        let what = format!("committing offsets of group \"{group}\"");
        let lookup = self.group(group).await?;
        let need = Need::topic("READ", &topics_of(offsets.iter().map(|(partition, _, _)| partition))).and_group("READ", group);
        lookup.ask_for(&what, need, move |lookup| lookup.consumer.commit(&list, CommitMode::Sync)).await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        self.lookup.bounds(partitions).await
    }

    async fn delete_records(&self, before: &[(TopicPartition, i64)]) -> Result<(), KafkaError> {
        if before.is_empty() {
            return Ok(());
        }
        let until = |offset: i64| if offset < 0 { Offset::End } else { Offset::Offset(offset) };
        let list = list(before.iter().map(|(partition, offset)| (partition, until(*offset))))?;
        let topics = topics_of(before.iter().map(|(partition, _)| partition));
        let what = format!("removing records of {topics}");
        let need = Need::topic("DELETE", &topics);
        let options = self.options();
        let answer = answered(&self.client, self.client.delete_records(&list, &options)).await;
        let deleted = answer.map_err(|error| self.lookup.watch.explain_for(&error, &what, &need))?;
        for element in deleted.elements() {
            let of = || format!("{what}, partition {}", element.partition());
            element.error().map_err(|error| self.lookup.watch.explain_for(&error, &of(), &need))?;
        }
        Ok(())
    }

    async fn log_bytes(&self) -> Result<BTreeMap<i32, i64>, KafkaError> {
        let brokers = self.cluster().await?.brokers;
        let sizes = brokers.iter().map(async |broker| {
            let bytes = wire::log_bytes(&self.dialer, &address(broker), self.lookup.timeout).await?;
            Ok::<_, KafkaError>((broker.id, bytes))
        });
        Ok(futures::future::try_join_all(sizes).await?.into_iter().collect())
    }
}

fn address(broker: &BrokerView) -> String {
    format!("{}:{}", bracketed(&broker.host), broker.port)
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn group(info: &GroupInfo) -> GroupView {
    let is_consumer = info.protocol_type() == "consumer";
    let members = info.members().iter().map(|member| {
        let assignment = member.assignment().filter(|_| is_consumer).unwrap_or_default();
        let topics = wire::parse_assignment(assignment).unwrap_or_else(|reason| {
            debug!(group = info.name(), member = member.id(), reason, "the member's assignment cannot be read");
            Vec::new()
        });
        let of = |(topic, ids): (String, Vec<i32>)| {
            let topic: Arc<str> = topic.into();
            ids.into_iter().map(move |id| TopicPartition::new(Arc::clone(&topic), id))
        };
        let mut assignment: Vec<TopicPartition> = topics.into_iter().flat_map(of).collect();
        assignment.sort();
        GroupMemberView {
            id: member.id().to_owned(),
            client_id: member.client_id().to_owned(),
            host: member.client_host().trim_start_matches('/').to_owned(),
            assignment,
        }
    });
    GroupView {
        id: info.name().to_owned(),
        state: info.state().to_owned(),
        protocol: info.protocol().to_owned(),
        protocol_type: info.protocol_type().to_owned(),
        members: members.collect(),
    }
}
