//! A member that is given partitions and reads none of their records.

use std::ffi::CStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::bindings;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::watch;
use tracing::debug;

use super::{Joining, Native, NativeConsumer, Place, join, take};
use crate::kafka::access::Need;
use crate::kafka::context::blocking;
use crate::kafka::{Assignment, GroupReader, KafkaConfig, KafkaError, Member, MemberIdentity, MemberOnHold, TopicPartition, wire};

/// Joins `group` for the partitions of `topic`, by the classic protocol.
pub async fn member_on_hold(config: &KafkaConfig, group: &str, topic: &str) -> Result<Arc<dyn MemberOnHold>, KafkaError> {
    if config.get("group.protocol").is_some_and(|protocol| protocol.eq_ignore_ascii_case("consumer")) {
        let text =
            "group.protocol = consumer: its coordinator does not tell what a member has been given, which is asked for here; set classic";
        return Err(KafkaError::Config(text.into()));
    }
    // Nothing is fetched: where it would begin does not matter.
    let joining = Joining { group, auto_offset_reset: "latest", queue_bytes_max: QUEUE_BYTES };
    let native = Arc::new(join(config, &joining, |_| {}).await?);
    native.hold(true).await?;
    native.subscribe_to(&[topic.to_owned()])?;
    let polled = Arc::clone(&native);
    let poller = thread::Builder::new().name("kafka-member".into()).spawn(move || poll(&polled));
    let poller = poller.map_err(|error| KafkaError::Fatal(format!("cannot start a thread: {error}")))?;
    Ok(Arc::new(OnHold { native, poller: Mutex::new(Some(poller)) }))
}

const QUEUE_BYTES: usize = 64 << 10;
/// One poll; a member that ends waits for one.
const POLL: Duration = Duration::from_millis(200);

struct OnHold {
    native: Arc<Native>,
    poller: Mutex<Option<thread::JoinHandle<()>>>,
}

/// Stays in the group until the member is closed, or is none any more.
fn poll(native: &Native) {
    while let Ok(consumer) = native.consumer() {
        match take(&consumer, 1, usize::MAX, Instant::now() + POLL) {
            Ok(_) => {}
            Err(error @ (KafkaError::Fenced(_) | KafkaError::Fatal(_) | KafkaError::Auth(_))) => {
                return native.held.assignment.send_modify(|assignment| assignment.over = Some(error));
            }
            // It joins again by itself.
            Err(error) => debug!(%error, "a member on hold goes on"),
        }
    }
}

impl OnHold {
    async fn ended(&self) {
        let poller = self.poller.lock().take();
        if let Some(poller) = poller {
            let joined = blocking(move || poller.join().map_err(|_| KafkaError::Fatal("the member's thread panicked".into())));
            if let Err(error) = joined.await {
                debug!(%error, "a member on hold ends");
            }
        }
    }
}

#[async_trait]
impl MemberOnHold for OnHold {
    fn assignment(&self) -> watch::Receiver<Assignment> {
        self.native.held.assignment.subscribe()
    }

    async fn identity(&self) -> Result<MemberIdentity, KafkaError> {
        let consumer = self.native.consumer()?;
        let group = Arc::clone(&self.native.held.group);
        // Asks the client's own thread.
        blocking(move || {
            let metadata = consumer.group_metadata();
            metadata
                .map(|metadata| MemberIdentity::new(&group, metadata))
                .ok_or_else(|| KafkaError::Retryable(format!("the client is not yet a member of group \"{group}\"")))
        })
        .await
    }

    async fn holds(&self, partition: &TopicPartition) -> Result<bool, KafkaError> {
        let consumer = self.native.consumer()?;
        let (watch, group, bound) = (self.native.watch.clone(), Arc::clone(&self.native.held.group), self.native.bound);
        let partition = partition.clone();
        blocking(move || {
            let Some(own) = member_id(&consumer) else { return Ok(false) };
            let what = format!("asking who holds {partition} in group \"{group}\"");
            let need = Need::default().and_group("DESCRIBE", &group);
            let list = consumer.fetch_group_list(Some(&group), bound).map_err(|error| watch.explain_for(&error, &what, &need))?;
            watch.on_success();
            let mut members = list.groups().iter().filter(|one| one.state() == "Stable").flat_map(|one| one.members());
            let Some(member) = members.find(|member| member.id() == own) else { return Ok(false) };
            let given = wire::parse_assignment(member.assignment().unwrap_or_default());
            let given = given.map_err(|reason| KafkaError::Retryable(format!("{what}: {reason}")))?;
            Ok(given.iter().any(|(topic, ids)| **topic == *partition.topic && ids.contains(&partition.partition)))
        })
        .await
    }

    async fn close(&self) {
        self.native.close().await;
        self.ended().await;
    }

    async fn release(&self) {
        self.native.release().await;
        self.ended().await;
    }
}

impl Drop for OnHold {
    fn drop(&mut self) {
        // The poller has the member too; what is left of the client goes with its last poll.
        if let Some(consumer) = self.native.consumer.lock().take() {
            drop(crate::kafka::context::Elsewhere::new(consumer));
        }
    }
}

/// The id that the coordinator gave this member; `None` while it is none.
#[expect(unsafe_code, reason = "the `rdkafka` crate has no call for it")]
fn member_id(consumer: &NativeConsumer) -> Option<String> {
    let consumer: &BaseConsumer<Place> = consumer;
    let client = consumer.client().native_ptr();
    // SAFETY: the client lives for as long as it is borrowed; the text is ours until it is given back, and is given back once.
    unsafe {
        let text = bindings::rd_kafka_memberid(client);
        if text.is_null() {
            return None;
        }
        let id = CStr::from_ptr(text).to_str().ok().filter(|id| !id.is_empty()).map(str::to_owned);
        bindings::rd_kafka_mem_free(client, text.cast());
        id
    }
}
