//! Sources: where events come from. One file and one line in [`SOURCES`] each.
//!
//! A source is built from its settings (may fail, touches nothing yet), then runs until it is told to stop. It knows its
//! [`Output`] and nothing behind it.

pub mod avro;
pub mod charset;
pub mod exec;
pub mod http;
pub mod kafka;
pub mod lines;
pub mod netcat;
pub mod netcat_udp;
pub mod otlp;
pub mod peer;
pub mod seq;
pub mod server;
pub mod spooldir;
pub mod syslog;
pub mod tail;
pub mod taildir;
pub mod thrift;
pub mod udp;
pub mod web;

use std::{
    cmp::Reverse,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::channel::{Channel, PutError};
use crate::counters::SourceCounters;
use crate::event::{Event, Origin, acknowledge};
use crate::flume_conf::{Component, Kind};
use crate::interceptor::{Chain, timestamp};
use crate::selector::Selector;
use crate::tap::{Direction, Point, Taps};

/// A source as the table knows it.
pub struct SourceKind {
    pub kind: &'static Kind,
    pub build: fn(&Component, Setup) -> anyhow::Result<Box<dyn Source>>,
}

pub static SOURCES: &[SourceKind] = &[
    SourceKind { kind: &avro::KIND, build: avro::build },
    SourceKind { kind: &thrift::KIND, build: thrift::build },
    SourceKind { kind: &exec::KIND, build: exec::build },
    SourceKind { kind: &taildir::KIND, build: taildir::build },
    SourceKind { kind: &netcat::KIND, build: netcat::build },
    SourceKind { kind: &seq::KIND, build: seq::build },
    SourceKind { kind: &netcat_udp::KIND, build: netcat_udp::build },
    SourceKind { kind: &syslog::tcp::KIND, build: syslog::tcp::build },
    SourceKind { kind: &syslog::multiport::KIND, build: syslog::multiport::build },
    SourceKind { kind: &syslog::udp::KIND, build: syslog::udp::build },
    SourceKind { kind: &http::KIND, build: http::build },
    SourceKind { kind: &otlp::KIND, build: otlp::build },
    SourceKind { kind: &spooldir::KIND, build: spooldir::build },
    SourceKind { kind: &kafka::KIND, build: kafka::build },
];

/// What a source gets besides its settings.
pub struct Setup {
    /// The agent's own directory below the state directory.
    pub state_dir: PathBuf,
    /// Set where the source's sink keeps the positions in its transactions.
    pub committed: Option<tail::Committed>,
    pub strict: bool,
    /// All sources of the agent, by name.
    pub configured: Vec<String>,
    /// Where sources listen that run now and stop before this one starts.
    pub freed: Vec<SocketAddr>,
}

#[async_trait]
pub trait Source: Send {
    /// Runs until [`Stop::begin`], then finishes what it has accepted. Ends by itself when there is no more to come.
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()>;
}

/// Events for one channel.
type Part<'a> = (&'a Door, Vec<Event>);

/// A channel, seen from a source.
#[derive(Clone)]
struct Door {
    channel: Arc<dyn Channel>,
    point: Point,
}

impl Door {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        let held = self.point.hold(Direction::In, events);
        self.channel.put(events).await?;
        self.point.see(Direction::In, &held);
        Ok(())
    }
}

/// How a source is told to end.
#[derive(Clone, Default)]
pub struct Stop {
    /// Take nothing more; give on what was taken.
    pub begin: CancellationToken,
    /// No more time: end now.
    pub abandon: CancellationToken,
}

/// Do the source's events have positions in files?
pub fn has_positions(component: &Component, strict: bool) -> bool {
    [&taildir::KIND, &spooldir::KIND].iter().any(|kind| std::ptr::eq(component.kind, *kind))
        || (std::ptr::eq(component.kind, &exec::KIND) && exec::tail_of(component, strict).is_some())
}

/// Does the source read again, after the next start, what was not delivered?
pub fn reads_again(component: &Component, strict: bool) -> bool {
    std::ptr::eq(component.kind, &kafka::KIND) || has_positions(component, strict)
}

/// Do all of the source's events have a header `timestamp`, by their protocol or by an interceptor?
pub fn sets_timestamp(source: &Component) -> bool {
    let kinds: [&Kind; 5] = [&kafka::KIND, &otlp::KIND, &syslog::tcp::KIND, &syslog::multiport::KIND, &syslog::udp::KIND];
    kinds.iter().any(|kind| std::ptr::eq(source.kind, *kind))
        || source.interceptors.iter().any(|part| {
            let named = part.settings.values().any(|setting| setting.value.trim() == "timestamp");
            named || (std::ptr::eq(part.kind, &timestamp::KIND) && part.set("headerName").is_none())
        })
}

/// A source's way into its channels.
#[derive(Clone)]
pub struct Output {
    pub counters: Arc<SourceCounters>,
    name: Arc<str>,
    channels: Vec<Door>,
    point: Point,
    route: Arc<Route>,
    paused: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
    listening: Arc<Mutex<Vec<SocketAddr>>>,
    /// When a failed TLS handshake was told last.
    tls_told: Arc<Mutex<Option<Instant>>>,
}

/// Between two words about TLS handshakes.
const TLS_TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What happens to a source's events before its channels.
pub struct Route {
    chain: Chain,
    selector: Selector,
}

impl Route {
    pub fn build(source: &Component) -> anyhow::Result<Self> {
        Ok(Self { chain: Chain::build(source)?, selector: Selector::build(source)? })
    }
}

impl Output {
    pub fn new(
        name: &str,
        channels: Vec<Arc<dyn Channel>>,
        counters: Arc<SourceCounters>,
        paused: watch::Receiver<bool>,
        trouble: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let route = Route { chain: Chain::default(), selector: Selector::everything(channels.len()) };
        let channels = channels.into_iter().map(|channel| Door { channel, point: Point::default() }).collect();
        let point = Point::default();
        Self {
            counters,
            name: name.into(),
            channels,
            point,
            route: Arc::new(route),
            paused,
            trouble,
            listening: Arc::default(),
            tls_told: Arc::default(),
        }
    }

    /// To be seen by taps; `channels` are the names of its channels.
    pub fn tapped(mut self, taps: &Arc<Taps>, channels: &[String]) -> Self {
        self.point = Point::new(taps, "source", &self.name);
        for (door, name) in self.channels.iter_mut().zip(channels) {
            door.point = Point::new(taps, "channel", name);
        }
        self
    }

    /// Where it is noted on which addresses the source listens.
    pub fn noting(self, listening: Arc<Mutex<Vec<SocketAddr>>>) -> Self {
        Self { listening, ..self }
    }

    /// The source listens there, so that a successor may be given the same address.
    pub fn listens(&self, address: SocketAddr) {
        self.listening.lock().push(address);
    }

    /// TLS could not be agreed with `peer`: counted, and told every ten seconds at most.
    pub fn no_tls(&self, peer: SocketAddr, error: &io::Error) {
        self.counters.tls_failures.add(1);
        let reason = error.to_string();
        // Whoever only looks whether the port is open says nothing.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return tracing::debug!(source = &*self.name, %peer, reason, "no TLS");
        }
        let mut told = self.tls_told.lock();
        if told.is_none_or(|at| at.elapsed() >= TLS_TELL_INTERVAL) {
            *told = Some(Instant::now());
            let failures = self.counters.tls_failures.get();
            let hint = if reason.contains("InvalidContentType") {
                "; does the client speak TLS? (ssl)"
            } else if reason.contains("AlertReceived") {
                "; the client refuses: does it trust the certificate in keystore?"
            } else {
                ""
            };
            tracing::warn!(source = &*self.name, %peer, failures, "a TLS handshake failed: {reason}{hint}");
        }
    }

    /// With the source's interceptors and selector.
    pub fn through(self, route: Route) -> Self {
        Self { route: Arc::new(route), ..self }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Channels each event goes to.
    pub fn copies(&self) -> usize {
        self.channels.len()
    }

    /// The largest batch that every channel takes.
    pub fn batch_max(&self) -> usize {
        self.channels.iter().map(|door| door.channel.transaction_capacity()).min().unwrap_or(1).max(1)
    }

    /// What is wrong with the source now, for status; `None` when it is well.
    pub fn trouble(&self, what: Option<String>) {
        let mut trouble = self.trouble.lock();
        if *trouble != what {
            *trouble = what;
        }
    }

    /// The span of reading a batch, when tracing is on.
    pub fn read_span(&self, events: usize, bytes: usize) -> Option<Span> {
        service_kit::telemetry::tracing_on()
            .then(|| tracing::info_span!(parent: None, "collector.read", source = &*self.name, events, bytes))
    }

    /// Gives every event its batch's trace.
    pub fn trace(&self, events: &mut [Event]) {
        let bytes = || events.iter().map(|event| event.body.len()).sum();
        if !service_kit::telemetry::tracing_on() {
            return;
        }
        if let Some(trace) = self.read_span(events.len(), bytes()).as_ref().and_then(service_kit::telemetry::traceparent) {
            let origin = Arc::new(Origin::traced(Some(trace)));
            for event in events {
                event.origin = Some(origin.clone());
            }
        }
    }

    /// Puts the batch into its channels, however long that takes: a full channel and a pause are waited out.
    /// A channel that has taken the batch does not get it again.
    pub async fn deliver(&self, events: Vec<Event>) {
        let count = self.arrived(&events);
        self.counters.batches_received.add(1);
        self.unpaused().await;
        let (required, optional) = self.routed(events);
        for (channel, part) in required {
            self.put_all(channel, part).await;
        }
        self.put_optional(optional).await;
        self.counters.accepted.add(count);
        self.counters.batches_accepted.add(1);
    }

    /// [`Self::deliver`] for senders that can only be made to wait: what no channel has taken when there is no more time
    /// is lost, and counted.
    pub async fn hold_back(&self, events: Vec<Event>, stop: &Stop) {
        let count = events.len() as u64;
        tokio::select! {
            biased;
            () = self.deliver(events) => {}
            () = stop.abandon.cancelled() => {
                self.counters.dropped.add(count);
                tracing::error!(source = &*self.name, events = count, "lost: taken from senders, and the channel was full to the end");
            }
        }
    }

    /// Puts the batch if the channels take it within their `keep-alive`: all of it or nothing. Once one channel has taken it,
    /// the others are waited for, so that a sender who tries again after a failure repeats nothing.
    pub async fn offer(&self, events: Vec<Event>) -> Result<(), PutError> {
        let count = self.arrived(&events);
        self.unpaused().await;
        let (mut required, optional) = self.routed(events);
        // The one most likely to refuse is asked first: what the others have taken by then would come again with the next try.
        required.sort_by_cached_key(|(door, _)| {
            let channel = &door.channel;
            Reverse((channel.trouble().is_some(), channel.may_fail(), (channel.fill().percent() * 1000.0) as u64))
        });
        let mut required = required.into_iter();
        if let Some((channel, mut part)) = required.next()
            && let Err(error) = channel.put(&mut part).await
        {
            self.counters.channel_failures.add(1);
            return Err(error);
        }
        for (channel, part) in required {
            self.put_all(channel, part).await;
        }
        self.put_optional(optional).await;
        self.counters.accepted.add(count);
        Ok(())
    }

    /// Counts a batch, and shows it to taps; how many events it has.
    fn arrived(&self, events: &[Event]) -> u64 {
        let count = events.len() as u64;
        self.counters.received.add(count);
        self.counters.received_bytes.add(events.iter().map(|event| event.body.len() as u64).sum());
        self.point.see(Direction::In, events);
        count
    }

    /// The parts of a batch for the channels that must and for those that may take them.
    fn routed(&self, events: Vec<Event>) -> (Vec<Part<'_>>, Vec<Part<'_>>) {
        let mut events = events;
        if !self.route.chain.is_empty() {
            let (going, ended) = self.route.chain.apply(events);
            if !ended.is_empty() {
                self.counters.filtered.add(ended.len() as u64);
                // They count as delivered in each of the channels.
                self.channels.iter().for_each(|_| acknowledge(&ended));
            }
            events = going;
        }
        self.point.see(Direction::Out, &events);
        if self.route.selector.is_everything(self.channels.len()) {
            let mut last = Some(events);
            let parts = self.channels.iter().enumerate().map(|(at, channel)| {
                let events = if at + 1 == self.channels.len() { last.take() } else { last.clone() };
                (channel, events.unwrap_or_default())
            });
            return (parts.collect(), Vec::new());
        }
        let routes = self.route.selector.route(events, self.channels.len());
        acknowledge(&routes.skipped);
        if routes.unrouted > 0 {
            self.counters.unrouted.add(routes.unrouted as u64);
        }
        let parts = |lists: Vec<Vec<Event>>| self.channels.iter().zip(lists).filter(|(_, part)| !part.is_empty()).collect();
        (parts(routes.required), parts(routes.optional))
    }

    async fn put_all(&self, door: &Door, mut batch: Vec<Event>) {
        let mut full_told = false;
        while !batch.is_empty() {
            // A reload may have made transactions smaller than this batch.
            let most = door.channel.transaction_capacity().max(1);
            let mut part: Vec<Event> = if batch.len() > most { batch.drain(..most).collect() } else { std::mem::take(&mut batch) };
            while let Err(error) = door.put(&mut part).await {
                self.counters.channel_failures.add(1);
                if !std::mem::replace(&mut full_told, true) {
                    tracing::warn!(source = &*self.name, %error, "waiting for the channel");
                }
            }
        }
    }

    async fn put_optional(&self, parts: Vec<Part<'_>>) {
        for (channel, mut part) in parts {
            if let Err(error) = channel.put(&mut part).await {
                self.counters.channel_failures.add(1);
                self.counters.optional_refused.add(part.len() as u64);
                tracing::debug!(source = &*self.name, %error, events = part.len(), "an optional channel refused events");
                acknowledge(&part);
            }
        }
    }

    pub async fn unpaused(&self) {
        if *self.paused.borrow() {
            // The sender lives as long as the agent; without it nobody could resume.
            let mut paused = self.paused.clone();
            let _gone = paused.wait_for(|paused| !paused).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::channel::memory::{Limits, MemoryChannel};
    use crate::channel::{Fill, Taken, Traffic};
    use crate::event::{Ledger, Mark};
    use crate::flume_conf::component::Setting;
    use crate::source::tail::identity::{Checksum, TailedFile};

    fn part(kind: &'static Kind, name: &str, settings: &[(&str, &str)]) -> Component {
        let mut part = Component::new(kind, name, kind.name());
        part.channels = vec!["a".into(), "b".into()];
        let setting = |value: &str| Setting { value: value.to_owned(), place: None };
        part.settings = settings.iter().map(|(key, value)| ((*key).to_owned(), setting(value))).collect();
        part
    }

    fn channels(capacities: [usize; 2]) -> Vec<Arc<dyn Channel>> {
        let channel = |events_max| -> Arc<dyn Channel> {
            Arc::new(MemoryChannel::new(Limits { events_max, transaction_max: 10, bytes_max: usize::MAX, keep_alive: Duration::ZERO }))
        };
        capacities.map(channel).into()
    }

    fn output(source: &Component, channels: &[Arc<dyn Channel>]) -> Output {
        let (resume, paused) = watch::channel(false);
        // An agent keeps the other end for as long as it lives.
        std::mem::forget(resume);
        Output::new("s", channels.to_vec(), SourceCounters::new("s"), paused, Arc::default()).through(Route::build(source).unwrap())
    }

    async fn bodies(channel: &Arc<dyn Channel>) -> Vec<String> {
        let taken = channel.clone().take(10, Duration::ZERO).await;
        let bodies = taken.events().iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()).collect();
        taken.commit();
        bodies
    }

    /// Whatever interceptors and selectors leave out, the file's position passes it once the rest is delivered.
    #[tokio::test]
    async fn a_position_passes_what_went_to_no_channel_or_to_one_of_two() {
        let mut source = part(&seq::KIND, "s", &[]);
        let settings = [("header", "kind"), ("mapping.x", "a"), ("mapping.y", "a b")];
        let selectors = crate::selector::SELECTORS.iter().find(|kind| kind.kind.alias == Some("multiplexing")).unwrap();
        source.selector = Some(Box::new(part(selectors.kind, "s.selector", &settings)));
        let channels = channels([10, 10]);
        let out = output(&source, &channels);
        let (ledger, file) = (Arc::new(Ledger::default()), Arc::new(TailedFile::for_test(1)));
        let origin = ledger.open(&file, Mark { offset: 30, tail: Checksum::default() }, 3 * out.copies(), None);
        let event = |body: &'static str, kind| Event { origin: Some(origin.clone()), ..Event::with_headers(body, [("kind", kind)]) };
        out.deliver(vec![event("1", "x"), event("2", "y"), event("3", "z")]).await;
        assert_eq!(out.counters.unrouted.get(), 1);
        assert_eq!(bodies(&channels[0]).await, ["1", "2"]);
        assert_eq!(ledger.advance().len(), 0);
        assert_eq!(bodies(&channels[1]).await, ["2"]);
        assert_eq!(ledger.advance()[&1].offset, 30);
    }

    #[tokio::test]
    async fn interceptors_work_in_their_order() {
        let mut source = part(&seq::KIND, "s", &[]);
        source.interceptors = vec![
            part(&crate::interceptor::fixed::KIND, "s.interceptors.i1", &[("key", "k"), ("value", "1")]),
            part(&crate::interceptor::fixed::KIND, "s.interceptors.i2", &[("key", "k"), ("value", "2")]),
            part(&crate::interceptor::fixed::KIND, "s.interceptors.i3", &[("key", "l"), ("value", "3"), ("preserveExisting", "false")]),
            part(&timestamp::KIND, "s.interceptors.i4", &[("headerName", "t")]),
        ];
        let channels = channels([10, 10]);
        source.channels.truncate(1);
        output(&source, &channels[..1]).deliver(vec![Event::with_headers("1", [("l", "0")])]).await;
        let taken = channels[0].clone().take(10, Duration::ZERO).await;
        let event = &taken.events()[0];
        assert_eq!((event.header("k"), event.header("l")), (Some("1"), Some("3")));
        assert!(event.header("t").unwrap().parse::<i64>().unwrap() > 1_700_000_000_000);
    }

    /// Flume commits one channel after the other: with the second one full, a sender's retry repeats the events in the first.
    #[tokio::test]
    async fn a_full_second_channel_refuses_before_the_first_has_anything() {
        let channels = channels([10, 1]);
        let out = output(&part(&seq::KIND, "s", &[]), &channels);
        out.offer(vec![Event::new("1")]).await.unwrap();
        for _ in 0..3 {
            assert!(matches!(out.offer(vec![Event::new("2")]).await, Err(PutError::Full { .. })));
        }
        assert_eq!((bodies(&channels[0]).await, bodies(&channels[1]).await), (vec!["1".to_owned()], vec!["1".to_owned()]));
    }

    /// A disk without room, a broker that is away: nothing is in it, and it takes nothing.
    struct Failing {
        knows: bool,
    }

    #[async_trait]
    impl Channel for Failing {
        async fn put(&self, _events: &mut Vec<Event>) -> Result<(), PutError> {
            Err(PutError::Failed { reason: "no room".into() })
        }

        async fn take(self: Arc<Self>, _max: usize, _wait: Duration) -> Taken {
            Taken::new(Vec::new(), self)
        }

        fn committed(&self, _events: &[Event]) {}

        fn returned(&self, _events: Vec<Event>) {}

        fn transaction_capacity(&self) -> usize {
            10
        }

        fn fill(&self) -> Fill {
            Fill { events: 0, events_max: 10, bytes: 0, bytes_max: 10 }
        }

        fn traffic(&self) -> Traffic {
            Traffic::default()
        }

        fn reconfigure(&self, _component: &Component) {}

        fn trouble(&self) -> Option<String> {
            self.knows.then(|| "no room".to_owned())
        }
    }

    #[tokio::test]
    async fn a_channel_that_may_fail_is_asked_before_one_that_is_only_fuller() {
        for knows in [false, true] {
            let [memory, _] = <[_; 2]>::try_from(channels([10, 10])).map_err(drop).unwrap();
            let channels = [memory, Arc::new(Failing { knows }) as Arc<dyn Channel>];
            let out = output(&part(&seq::KIND, "s", &[]), &channels);
            channels[0].put(&mut vec![Event::new("0")]).await.unwrap();
            for _ in 0..3 {
                let refused = tokio::time::timeout(Duration::from_secs(5), out.offer(vec![Event::new("1")])).await;
                assert_eq!(refused.expect("an answer"), Err(PutError::Failed { reason: "no room".into() }));
            }
            assert_eq!(bodies(&channels[0]).await, ["0"]);
        }
    }

    #[tokio::test]
    async fn an_optional_channel_may_refuse() {
        let mut source = part(&seq::KIND, "s", &[]);
        let kind = crate::selector::SELECTORS.iter().find(|kind| kind.kind.alias == Some("replicating")).unwrap();
        source.selector = Some(Box::new(part(kind.kind, "s.selector", &[("optional", "b")])));
        let channels = channels([10, 1]);
        let out = output(&source, &channels);
        out.deliver(vec![Event::new("1")]).await;
        out.deliver(vec![Event::new("2")]).await;
        assert_eq!(bodies(&channels[0]).await, ["1", "2"]);
        assert_eq!(bodies(&channels[1]).await, ["1"]);
        assert_eq!(out.counters.optional_refused.get(), 1);
    }
}
