//! A member of a consumer group, on librdkafka.

mod on_hold;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, RebalanceProtocol};
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientConfig, Offset};
use tokio::sync::watch;
use tracing::warn;

use super::access::Need;
use super::context::{Watch, blocking, client_config, reach};
use super::lookup::{list, topics_of};
use super::properties::Role;
use super::range::{record, size};
use super::{Assignment, GroupReader, KafkaConfig, KafkaError, Member, Record, TopicPartition};

pub use on_hold::member_on_hold;

/// Joins `group` for `topics`. `auto_offset_reset`: `earliest`, `latest` or `none`, where the group has no offset.
/// Partitions come with the first polls.
pub async fn member(config: &KafkaConfig, group: &str, topics: &[String], auto_offset_reset: &str) -> Result<Arc<dyn Member>, KafkaError> {
    bounded_member(config, &Joining { group, auto_offset_reset, queue_bytes_max: QUEUE_BYTES }, topics).await
}

/// As [`member`], with a bound of its own for what is fetched ahead of the polls.
pub async fn bounded_member(config: &KafkaConfig, joining: &Joining<'_>, topics: &[String]) -> Result<Arc<dyn Member>, KafkaError> {
    let native = join(config, joining, |client| {
        // Of each partition. A record that waits costs about 500 bytes beside its own, which librdkafka does not count.
        client.set("queued.min.messages", (joining.queue_bytes_max / 1024).max(1).to_string());
    });
    let native = native.await?;
    native.subscribe_to(topics)?;
    Ok(Arc::new(native))
}

/// How a member or a [`GroupReader`] joins.
pub struct Joining<'a> {
    pub group: &'a str,
    /// As of [`member`].
    pub auto_offset_reset: &'a str,
    /// Bytes fetched ahead of the reads, all partitions together; about one fetch more. Of a [`GroupReader`], the gauge is
    /// `millrace_kafka_member_queue_bytes`.
    pub queue_bytes_max: usize,
}

/// A member of `group` that has no topics before [`GroupReader::subscribe`].
pub async fn group_reader(config: &KafkaConfig, joining: &Joining<'_>) -> Result<Arc<dyn GroupReader>, KafkaError> {
    let native = join(config, joining, |client| {
        client.set("statistics.interval.ms", STATISTICS_MS);
    });
    Ok(Arc::new(native.await?))
}

/// Where nobody says it.
const QUEUE_BYTES: usize = 8 << 20;

const STATISTICS_MS: &str = "5000";

async fn join(config: &KafkaConfig, joining: &Joining<'_>, change: impl FnOnce(&mut ClientConfig)) -> Result<Native, KafkaError> {
    let group = joining.group;
    let reset = match joining.auto_offset_reset {
        reset @ ("earliest" | "latest") => reset,
        "none" => "error",
        other => {
            return Err(KafkaError::Config(format!("auto.offset.reset = {other}: expected one of earliest, latest, none")));
        }
    };
    let mut client = client_config(config, Role::Member)?;
    client
        .set("group.id", group)
        .set("auto.offset.reset", reset)
        .set("queued.max.messages.kbytes", (joining.queue_bytes_max / 1024).max(1).to_string());
    change(&mut client);
    let what = format!("joining group \"{group}\"");
    reach(config, &what).await?;
    let watch = Watch::new(config);
    let place = Place { watch: watch.clone(), held: Arc::new(Held { group: group.into(), ..Held::default() }) };
    let held = place.held.clone();
    let consumer = BaseConsumer::from_config_and_context(&client, place).map_err(|error| watch.explain(&error, &what))?;
    let instance = config.get("group.instance.id").map(str::to_owned);
    Ok(Native { consumer: Mutex::new(Some(Arc::new(consumer))), watch, held, bound: config.api_timeout(), instance })
}

type NativeConsumer = Arc<BaseConsumer<Place>>;

struct Native {
    /// `None` after `close`.
    consumer: Mutex<Option<NativeConsumer>>,
    watch: Watch,
    held: Arc<Held>,
    bound: Duration,
    /// Of a static member.
    instance: Option<String>,
}

/// What the member has been given, as told by its polls.
#[derive(Default)]
struct Held {
    group: Arc<str>,
    tenures: Mutex<BTreeMap<TopicPartition, u64>>,
    /// Taken away during the read that is under way: what it has of them is read again by whoever has them now.
    lost: Mutex<BTreeSet<TopicPartition>>,
    last_tenure: AtomicU64,
    on_hold: AtomicBool,
    /// Came although the partition was paused; given first.
    kept: Mutex<VecDeque<(TopicPartition, Record)>>,
    /// Came behind records; given by the next read.
    error: Mutex<Option<KafkaError>>,
    /// Told to [`super::MemberOnHold::assignment`].
    assignment: watch::Sender<Assignment>,
}

impl Held {
    fn tell_assignment(&self) {
        let partitions = self.tenures.lock().keys().cloned().collect();
        self.assignment.send_modify(|assignment| {
            assignment.tenure += 1;
            assignment.partitions = partitions;
        });
    }
}

/// The context of members: [`Watch`], and the partitions that come and go.
#[derive(Clone)]
struct Place {
    watch: Watch,
    held: Arc<Held>,
}

impl ClientContext for Place {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        Watch::on_log(facility, message);
    }

    fn error(&self, error: RdError, reason: &str) {
        self.watch.on_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        let bytes: u64 = partitions.map(|partition| partition.fetchq_size).sum();
        metrics::gauge!("millrace_kafka_member_queue_bytes", "group" => self.held.group.to_string()).set(bytes as f64);
    }
}

impl ConsumerContext for Place {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            let mut tenures = self.held.tenures.lock();
            for element in partitions.elements() {
                let partition = TopicPartition::new(element.topic(), element.partition());
                tenures.remove(&partition);
                self.held.kept.lock().retain(|(kept, _)| *kept != partition);
                self.held.lost.lock().insert(partition);
            }
            drop(tenures);
            // Otherwise all of them go, and the new order follows.
            if matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
                self.held.tell_assignment();
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = rebalance {
            let mut tenures = self.held.tenures.lock();
            for element in partitions.elements() {
                let tenure = self.held.last_tenure.fetch_add(1, Ordering::Relaxed);
                tenures.insert(TopicPartition::new(element.topic(), element.partition()), tenure);
            }
            drop(tenures);
            self.held.tell_assignment();
            if self.held.on_hold.load(Ordering::Acquire)
                && let Err(error) = consumer.pause(partitions)
            {
                // What comes is kept, and paused then.
                tracing::debug!(%error, "a partition that was given during a hold goes on");
            }
        }
    }
}

impl Native {
    fn consumer(&self) -> Result<NativeConsumer, KafkaError> {
        let closed = || KafkaError::Conflict(format!("the member of group \"{}\" is closed", self.held.group));
        self.consumer.lock().clone().ok_or_else(closed)
    }

    fn subscribe_to(&self, topics: &[String]) -> Result<(), KafkaError> {
        let consumer = self.consumer()?;
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let what = format!("joining group \"{}\"", self.held.group);
        consumer.subscribe(&names).map_err(|error| match error {
            RdError::Subscription(reason) => KafkaError::Invalid(match names.iter().find(|name| name.starts_with('^')) {
                Some(pattern) => format!("topic pattern {pattern:?} is not a regular expression; correct it, or name the topics"),
                None => format!("{what}: topics {} are refused: {reason}", names.join(", ")),
            }),
            error => self.watch.explain(&error, &what),
        })
    }
}

/// Polls are cut into pieces of this, so that closing a member does not wait for a long poll.
const POLL: Duration = Duration::from_millis(100);

/// One read, away from the async workers. What it takes is given, whatever error follows it.
///
/// librdkafka hands a partition over to another member within a poll, and only there.
fn take(
    consumer: &BaseConsumer<Place>,
    max: usize,
    bytes_max: usize,
    deadline: Instant,
) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
    let Place { watch, held } = &**consumer.context();
    if let Some(error) = held.error.lock().take() {
        return Err(error);
    }
    // librdkafka tells it with one poll and is silent from then on: who missed it, or could not act on it, would wait for ever.
    if let Some((code, reason)) = consumer.client().fatal_error() {
        return Err(KafkaError::from_code(code, &format!("reading as a member of group \"{}\" ({reason})", held.group)));
    }
    held.lost.lock().clear();
    watch.help(consumer.client());
    let on_hold = held.on_hold.load(Ordering::Acquire);
    let mut records: Vec<(TopicPartition, Record)> = Vec::new();
    let mut bytes = 0;
    if !on_hold {
        let mut kept = held.kept.lock();
        let count = kept.len().min(max);
        records.extend(kept.drain(..count));
    }
    let mut fetched = 0;
    let mut topic: Arc<str> = "".into();
    while records.len() < max && bytes < bytes_max {
        let left = deadline.saturating_duration_since(Instant::now()).min(POLL);
        // Once there is something, only what is here already.
        let polled = consumer.poll(if records.is_empty() { left } else { Duration::ZERO });
        let lost = std::mem::take(&mut *held.lost.lock());
        if !lost.is_empty() {
            records.retain(|(partition, _)| !lost.contains(partition));
        }
        match polled {
            Some(Ok(message)) => {
                if *topic != *message.topic() {
                    topic = message.topic().into();
                }
                let partition = TopicPartition::new(Arc::clone(&topic), message.partition());
                let record = record(&message);
                bytes += size(&record);
                fetched += 1;
                if on_hold {
                    let only = list([(&partition, Offset::Invalid)])?;
                    held.kept.lock().push_back((partition, record));
                    consumer.pause(&only).map_err(|error| watch.explain(&error, "pausing a partition"))?;
                } else {
                    records.push((partition, record));
                }
            }
            Some(Err(error)) => match judge(watch, &held.group, &error, || absent(consumer), || subscribed(consumer)) {
                Ok(()) => {}
                Err(error) if records.is_empty() => return Err(error),
                Err(error) => {
                    *held.error.lock() = Some(error);
                    break;
                }
            },
            None if records.is_empty() && Instant::now() < deadline => {}
            None => break,
        }
    }
    if fetched > 0 {
        watch.on_success();
    }
    metrics::counter!("millrace_kafka_fetch_records_total", "client" => "member").increment(fetched);
    metrics::counter!("millrace_kafka_fetch_bytes_total", "client" => "member").increment(bytes as u64);
    Ok(records)
}

#[async_trait]
impl GroupReader for Native {
    async fn read(&self, max: usize, bytes_max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        let consumer = self.consumer()?;
        blocking(move || take(&consumer, max, bytes_max, Instant::now() + wait)).await
    }

    async fn hold(&self, held: bool) -> Result<(), KafkaError> {
        if self.held.on_hold.swap(held, Ordering::AcqRel) == held {
            return Ok(());
        }
        let consumer = self.consumer()?;
        let watch = self.watch.clone();
        blocking(move || {
            let moved = consumer.assignment().and_then(|all| if held { consumer.pause(&all) } else { consumer.resume(&all) });
            moved.map_err(|error| watch.explain(&error, "pausing or resuming"))
        })
        .await
    }

    fn tenure(&self, partition: &TopicPartition) -> Option<u64> {
        self.held.tenures.lock().get(partition).copied()
    }

    fn trouble(&self) -> Option<String> {
        self.watch.outage.is_away().then(|| self.watch.unreachable(&format!("reading as a member of group \"{}\"", self.held.group)))
    }

    async fn topics(&self) -> Result<Vec<String>, KafkaError> {
        let consumer = self.consumer()?;
        let (watch, bound) = (self.watch.clone(), self.bound);
        blocking(move || {
            let metadata = consumer.fetch_metadata(None, bound).map_err(|error| watch.explain(&error, "listing topics"))?;
            let mut names: Vec<String> = metadata.topics().iter().map(|topic| topic.name().to_owned()).collect();
            names.sort();
            Ok(names)
        })
        .await
    }

    async fn subscribe(&self, topics: &[String]) -> Result<(), KafkaError> {
        self.subscribe_to(topics)
    }
}

#[async_trait]
impl Member for Native {
    async fn poll(&self, max: usize, wait: Duration) -> Result<Vec<(TopicPartition, Record)>, KafkaError> {
        self.read(max, usize::MAX, wait).await
    }

    async fn commit(&self, offsets: Vec<(TopicPartition, i64)>, metadata: &str) -> Result<(), KafkaError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let consumer = self.consumer()?;
        let watch = self.watch.clone();
        let group = Arc::clone(&self.held.group);
        let what = format!("committing offsets of group \"{group}\"");
        let metadata = metadata.to_owned();
        blocking(move || {
            let list = list(offsets.iter().map(|(partition, offset)| (partition, Offset::Offset(*offset))))?;
            if !metadata.is_empty() {
                list.elements().iter_mut().for_each(|element| element.set_metadata(&metadata));
            }
            let need = Need::topic("READ", &topics_of(offsets.iter().map(|(partition, _)| partition))).and_group("READ", &group);
            consumer.commit(&list, CommitMode::Sync).map_err(|error| watch.explain_for(&error, &what, &need))
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
            let assigned = || consumer.assignment().is_ok_and(|all| all.find_partition(&partition.topic, partition.partition).is_some());
            let sought =
                consumer.seek_partitions(list, bound).and_then(|list| list.elements().iter().try_for_each(|element| element.error()));
            sought.map_err(|error| match error.rdkafka_error_code() {
                // Its first offset is still looked for, as while the group's coordinator moves.
                Some(Code::State) if assigned() => KafkaError::Retryable(format!("{partition} is not being read yet")),
                Some(Code::State | Code::UnknownPartition) => KafkaError::Conflict(format!("{partition} is not assigned to this member")),
                _ => watch.explain(&error, &format!("seeking {partition} to {offset}")),
            })
        })
        .await
    }

    async fn close(&self) {
        let Some(consumer) = self.consumer.lock().take() else { return };
        let of = self.instance.clone().map(|instance| (Arc::clone(&self.held.group), instance));
        // The last owner leaves the group; a poll that is under way ends soon and is the last then.
        drop(
            blocking(move || {
                if let Some((group, instance)) = of {
                    leave(&consumer, &group, &instance);
                }
                drop(consumer);
                Ok(())
            })
            .await,
        );
    }

    async fn release(&self) {
        // Of a dynamic member the drop is a leave.
        let consumer = self.consumer.lock().take();
        drop(
            blocking(move || {
                drop(consumer);
                Ok(())
            })
            .await,
        );
    }
}

/// A static member takes its leave. To close it is not enough (KIP-345: it may be about to come again), but to unsubscribe is: librdkafka sends
/// LeaveGroup once the revocation was served and every partition has stopped, unless it is being closed by then. It does not say when,
/// so the coordinator is asked: it names a static member `INSTANCE-UUID`. Who has not joined yet joins first: the place may be one of before.
fn leave(consumer: &BaseConsumer<Place>, group: &str, instance: &str) {
    let member = format!("{instance}-");
    let joined_by = Instant::now() + JOIN_MAX;
    let is_fatal = || consumer.client().fatal_error().is_some();
    while matches!(consumer.rebalance_protocol(), RebalanceProtocol::None) && Instant::now() < joined_by && !is_fatal() {
        drop(consumer.poll(LEAVE_POLL));
    }
    if matches!(consumer.rebalance_protocol(), RebalanceProtocol::None) {
        // The others keep the group from settling: nobody can tell the coordinator who is to leave.
        return tracing::debug!(group, instance, "the member has not joined in time to leave");
    }
    let deadline = Instant::now() + LEAVE_MAX;
    consumer.unsubscribe();
    while Instant::now() < deadline && !is_fatal() {
        // Serves the revocation; what else comes is nobody's any more.
        drop(consumer.poll(LEAVE_POLL));
        if consumer.assignment().is_ok_and(|left| left.count() > 0) {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match consumer.client().fetch_group_list(Some(group), left.max(LEAVE_POLL)) {
            Ok(groups) if groups.groups().iter().flat_map(|group| group.members()).any(|one| one.id().starts_with(&member)) => {}
            Ok(_) => return,
            Err(error) => tracing::debug!(%error, group, instance, "cannot see whether the member has left"),
        }
    }
    tracing::debug!(group, instance, "the member's place is free when its session times out");
}

/// Longest wait for a static member that leaves before it has joined; brokers let the first member of a group wait 3 s.
const JOIN_MAX: Duration = Duration::from_millis(3_500);
/// Longest wait for a static member's leave; then its session timeout decides.
const LEAVE_MAX: Duration = Duration::from_secs(3);
const LEAVE_POLL: Duration = Duration::from_millis(5);

impl Drop for Native {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.lock().take() {
            drop(super::context::Elsewhere::new(consumer));
        }
    }
}

fn subscribed(consumer: &BaseConsumer<Place>) -> Vec<String> {
    let subscribed = consumer.subscription().map(|list| list.elements().iter().map(|topic| topic.topic().to_owned()).collect());
    subscribed.unwrap_or_default()
}

/// The topics that are subscribed to and not there.
fn absent(consumer: &BaseConsumer<Place>) -> String {
    let mut topics = subscribed(consumer);
    // All of them: asking for one by name may create it.
    if let Ok(metadata) = consumer.client().fetch_metadata(None, ABSENT_TIMEOUT) {
        topics.retain(|topic| !metadata.topics().iter().any(|known| known.name() == topic));
    }
    topics.join(", ")
}

const ABSENT_TIMEOUT: Duration = Duration::from_secs(2);

fn judge(
    watch: &Watch,
    group: &str,
    error: &RdError,
    absent: impl FnOnce() -> String,
    subscribed: impl FnOnce() -> Vec<String>,
) -> Result<(), KafkaError> {
    match error.rdkafka_error_code() {
        // Told to the context; librdkafka goes on by itself.
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut) => Ok(()),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
            // Told once for each topic; it may be created later.
            let topics = absent();
            // It may have come meanwhile.
            if !topics.is_empty() {
                warn!(group, topics, "there is no such topic; it is read from when there is: create it, or correct the name");
            }
            Ok(())
        }
        Some(Code::AutoOffsetReset | Code::NoOffset) => Err(KafkaError::Conflict(format!(
            "group \"{group}\" has no usable offset, and auto.offset.reset is none: commit one, or set earliest or latest"
        ))),
        Some(Code::PollExceeded) => Err(KafkaError::Conflict(format!(
            "the member of group \"{group}\" was not polled within max.poll.interval.ms and lost its partitions; poll again to rejoin"
        ))),
        _ => {
            let need = Need::topic("READ", &subscribed().join(", ")).and_group("READ", group);
            Err(watch.explain_for(error, &format!("reading as a member of group \"{group}\""), &need))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "the `rdkafka` crate has no call for it")]
    fn a_fatal_error_is_told_by_every_read() {
        let config = KafkaConfig::new("127.0.0.1:1");
        let mut client = client_config(&config, Role::Member).unwrap();
        client.set("group.id", "g");
        let place = Place { watch: Watch::new(&config), held: Arc::new(Held { group: "g".into(), ..Held::default() }) };
        // Never closed: librdkafka ends a client that has a fatal error and has never reached a broker in no time that a test could wait for.
        let consumer = ManuallyDrop::new(BaseConsumer::from_config_and_context(&client, place).unwrap());
        let read = || take(&consumer, 10, usize::MAX, Instant::now() + Duration::from_millis(10));
        assert!(read().unwrap().is_empty());
        let code = rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
        // SAFETY: the client lives; the reason is a C string, which librdkafka copies.
        unsafe { rdkafka::bindings::rd_kafka_test_fatal_error(consumer.client().native_ptr(), code, c"as if".as_ptr()) };
        for _ in 0..3 {
            let error = read().unwrap_err();
            assert!(matches!(error, KafkaError::Fenced(_)), "{error}");
        }
    }
}
