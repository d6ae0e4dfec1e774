//! What the avro and the thrift sink share: a batch is sent, and its take is committed when the other side says `OK`.
//!
//! After anything else the take is rolled back, as in Flume: the events go back to their place, and another sink of the
//! channel may take them. A batch of many bytes goes in several requests; what the other side has of it is not sent again
//! as long as the sink runs.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::time::timeout;

use super::{Input, Sink};
use crate::event::Event;
use crate::flume_conf::{Component, Finding, Property};
use crate::rpc::connection::{Calling, Stream};
use crate::source::Stop;

pub const HOSTNAME: Property = Property::text("hostname", None, "Host to send to.").required();
pub const PORT: Property = Property::integer("port", 1, 65_535, None, "Its port.").required();
pub const BATCH: Property = Property::integer("batch-size", 1, 1_000_000, Some("100"), "Events of one request, at most.");
pub const CONNECT_TIMEOUT: Property =
    Property::integer("connect-timeout", 0, 3_600_000, Some("20000"), "Milliseconds for a connection. Less than 1000 is read as 20000.");
pub const REQUEST_TIMEOUT: Property =
    Property::integer("request-timeout", 0, 3_600_000, Some("20000"), "Milliseconds for an answer. Less than 1000 is read as 20000.");
pub const RESET: Property = Property::integer(
    "reset-connection-interval",
    0,
    31_536_000,
    Some("0"),
    "Seconds after which the connection is made anew, so that a load balancer may choose again; 0 never.",
);
pub const REQUEST_BYTES: Property = Property::integer(
    "maxRequestBytes",
    1024,
    1_073_741_824,
    Some("8388608"),
    "Bytes of bodies in one request; a batch of more is sent in several.",
)
.own();
pub const BACKOFF: Property =
    Property::integer("maxBackoffSleep", 1, 3_600_000, Some("5000"), "Milliseconds to wait at most after a failure, before the next try.")
        .own();

/// The first pause after a failure; each is twice the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// Timeouts that are not read as written.
pub fn review_timeouts(component: &Component) -> Vec<Finding> {
    let short = |property: &Property| {
        let setting = component.settings.get(property.name)?;
        (component.integer(property.name) < 1000).then(|| {
            Finding::warning("short-timeout", format!("`{}` ms is less than a second: read as 20000", setting.value.trim()))
                .maybe_at(setting.place.as_ref())
                .key(format!("{}.{}", component.name, property.name))
                .flume("does the same")
                .remedy("set 1000 or more")
        })
    };
    [short(&CONNECT_TIMEOUT), short(&REQUEST_TIMEOUT)].into_iter().flatten().collect()
}

fn patience(component: &Component, property: &Property) -> Duration {
    let set = component.millis(property.name);
    if set < Duration::from_secs(1) { Duration::from_secs(20) } else { set }
}

/// A connection that makes calls.
#[async_trait]
pub trait Caller: Send {
    /// One `appendBatch`; an error means that the connection is of no more use.
    async fn append(&mut self, events: &[Event]) -> anyhow::Result<()>;
}

/// How a connection becomes a [`Caller`].
pub type Speak = Box<dyn Fn(Stream) -> Box<dyn Caller> + Send + Sync>;

pub struct RpcSink {
    calling: Calling,
    speak: Speak,
    batch: usize,
    request_bytes: usize,
    request_timeout: Duration,
    reset: Option<Duration>,
    backoff_max: Duration,
}

struct Link {
    caller: Box<dyn Caller>,
    since: Instant,
}

impl RpcSink {
    pub fn build(component: &Component, speak: Speak) -> anyhow::Result<Self> {
        let reset = u64::try_from(component.integer(RESET.name)).ok().filter(|seconds| *seconds > 0);
        Ok(Self {
            calling: Calling::build(component, patience(component, &CONNECT_TIMEOUT))?,
            speak,
            batch: component.count(BATCH.name),
            request_bytes: component.count(REQUEST_BYTES.name),
            request_timeout: patience(component, &REQUEST_TIMEOUT),
            reset: reset.map(Duration::from_secs),
            backoff_max: component.millis(BACKOFF.name),
        })
    }

    /// Sends what of `events` is not `done` yet.
    async fn send(&self, link: &mut Option<Link>, events: &[Event], done: &mut usize, input: &Input) -> anyhow::Result<()> {
        if self.reset.is_some_and(|after| link.as_ref().is_some_and(|link| link.since.elapsed() >= after)) {
            *link = None;
        }
        let link = match link {
            Some(link) => link,
            None => {
                let connected = self.calling.connect().await.inspect_err(|_| input.counters.connections_failed.add(1))?;
                input.counters.connections_created.add(1);
                link.insert(Link { caller: (self.speak)(connected), since: Instant::now() })
            }
        };
        while *done < events.len() {
            let part = self.part(&events[*done..]);
            let called = timeout(self.request_timeout, link.caller.append(part)).await;
            called.with_context(|| format!("no answer within {:?} (request-timeout)", self.request_timeout)).flatten()?;
            *done += part.len();
        }
        Ok(())
    }

    /// As many events as one request takes, and one at least.
    fn part<'a>(&self, events: &'a [Event]) -> &'a [Event] {
        let mut bytes = 0;
        let fits = events.iter().take_while(|event| {
            bytes += event.body.len();
            bytes <= self.request_bytes
        });
        &events[..fits.count().max(1).min(events.len())]
    }
}

#[async_trait]
impl Sink for RpcSink {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        let mut link = None;
        let mut backoff = BACKOFF_FIRST;
        let mut failing = false;
        while !stop.begin.is_cancelled() {
            let taken = tokio::select! {
                taken = input.take(self.batch) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            let mut done = 0;
            loop {
                let sent = tokio::select! {
                    sent = self.send(&mut link, taken.events(), &mut done, &input) => sent,
                    // What is not committed goes back.
                    () = stop.abandon.cancelled() => return Ok(()),
                };
                let Err(error) = sent else {
                    input.counters.delivered.add(taken.len() as u64);
                    taken.commit();
                    if std::mem::take(&mut failing) {
                        tracing::info!(sink = input.name(), to = self.calling.address(), "events are taken again");
                    }
                    input.trouble(None);
                    backoff = BACKOFF_FIRST;
                    break;
                };
                link = None;
                let error = format!("{error:#}");
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        sink = input.name(),
                        to = self.calling.address(),
                        error,
                        "events are not taken; tried again until they are"
                    );
                }
                input.trouble(Some(error));
                input.counters.failed.add((taken.len() - done) as u64);
                let pause = backoff.min(self.backoff_max);
                backoff = pause * 2;
                if done == 0 {
                    input.counters.rollbacks.add(1);
                    taken.rollback();
                    tokio::select! {
                        () = tokio::time::sleep(pause) => break,
                        () = stop.begin.cancelled() => return Ok(()),
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = stop.abandon.cancelled() => return Ok(()),
                }
            }
        }
        Ok(())
    }
}
