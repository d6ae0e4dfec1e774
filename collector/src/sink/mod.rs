//! Sinks: where events go. One file and one line in [`SINKS`] each.
//!
//! A sink takes from its channel, delivers, and commits the take; it knows its [`Input`] and nothing behind it.

pub mod avro;
pub mod bridge;
pub mod dead_letter;
pub mod file_roll;
pub mod flights;
pub mod hbase;
pub mod hdfs;
pub mod http;
pub mod kafka;
pub mod logger;
pub mod null;
pub mod positions;
pub mod record;
pub mod rpc;
pub mod thrift;
pub mod transactions;
pub mod unfinished;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::channel::{Channel, Fill, Taken};
use crate::counters::SinkCounters;
use crate::event::Event;
use crate::flume_conf::{Component, Kind};
use crate::source::{Stop, tail::Found};
use crate::tap::{Direction, Point, Taps};

/// A sink as the table knows it.
pub struct SinkKind {
    pub kind: &'static Kind,
    pub build: fn(&Component, Setup) -> anyhow::Result<Box<dyn Sink>>,
}

pub static SINKS: &[SinkKind] = &[
    SinkKind { kind: &kafka::KIND, build: kafka::build },
    SinkKind { kind: &bridge::KIND, build: bridge::build },
    SinkKind { kind: &avro::KIND, build: avro::build },
    SinkKind { kind: &thrift::KIND, build: thrift::build },
    SinkKind { kind: &hdfs::KIND, build: hdfs::build },
    SinkKind { kind: &file_roll::KIND, build: file_roll::build },
    SinkKind { kind: &hbase::HBASE, build: hbase::build },
    SinkKind { kind: &hbase::HBASE2, build: hbase::build },
    SinkKind { kind: &hbase::ASYNC, build: hbase::build },
    SinkKind { kind: &http::KIND, build: http::build },
    SinkKind { kind: &logger::KIND, build: logger::build },
    SinkKind { kind: &null::KIND, build: null::build },
];

/// What a sink gets besides its settings.
pub struct Setup {
    /// The agent's own directory below the state directory.
    pub state_dir: PathBuf,
    pub strict: bool,
    /// Where a transactional sink tells the committed positions.
    pub committed: watch::Sender<Option<Arc<Found>>>,
}

#[async_trait]
pub trait Sink: Send {
    /// Runs until [`Stop::begin`], then finishes what it has taken; at [`Stop::abandon`] it ends at once, and what it holds goes back.
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()>;
}

/// Does the sink keep file positions in its transactions?
pub fn keeps_positions(component: &Component) -> bool {
    component.set("kafka.producer.transactional.id").is_some()
}

/// Sees what a sink takes and what it has delivered.
pub struct Witness {
    counters: Arc<SinkCounters>,
    channel: Point,
    sink: Point,
}

impl Witness {
    fn taken(&self, events: &[Event], max: usize) {
        self.counters.taken(events.len(), max);
        self.channel.see(Direction::Out, events);
        self.sink.see(Direction::In, events);
    }

    pub(crate) fn committed(&self, events: &[Event]) {
        self.counters.committed_bytes.add(events.iter().map(|event| event.body.len() as u64).sum());
        self.sink.see(Direction::Out, events);
    }
}

/// A sink's way out of its channel.
#[derive(Clone)]
pub struct Input {
    pub counters: Arc<SinkCounters>,
    name: Arc<str>,
    channel: Arc<dyn Channel>,
    paused: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
    hurry: watch::Receiver<bool>,
    witness: Arc<Witness>,
}

impl Input {
    pub fn new(
        name: &str,
        channel: Arc<dyn Channel>,
        counters: Arc<SinkCounters>,
        paused: watch::Receiver<bool>,
        trouble: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let witness = Arc::new(Witness { counters: counters.clone(), channel: Point::default(), sink: Point::default() });
        Self { counters, name: name.into(), channel, paused, trouble, hurry: watch::Sender::new(false).subscribe(), witness }
    }

    /// To be seen by taps.
    pub fn tapped(self, taps: &Arc<Taps>, channel: &str) -> Self {
        let (channel, sink) = (Point::new(taps, "channel", channel), Point::new(taps, "sink", &self.name));
        Self { witness: Arc::new(Witness { counters: self.counters.clone(), channel, sink }), ..self }
    }

    pub fn hurried_by(self, hurry: watch::Receiver<bool>) -> Self {
        Self { hurry, ..self }
    }

    /// True while somebody waits for what the sink has taken: a sink that holds events to deliver them together holds them no longer.
    pub fn hurry(&self) -> watch::Receiver<bool> {
        self.hurry.clone()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Up to `max` events; waits for the first. Dropping the call takes nothing.
    pub async fn take(&self, max: usize) -> Taken {
        loop {
            if *self.paused.borrow() {
                let mut paused = self.paused.clone();
                let _gone = paused.wait_for(|paused| !paused).await;
            }
            let taken = self.channel.clone().take(max, Duration::from_secs(1)).await;
            if !taken.is_empty() {
                // A pause that came while waiting: they go back.
                if *self.paused.borrow() {
                    continue;
                }
                self.witness.taken(taken.events(), max);
                return taken.witnessed(&self.witness);
            }
            self.counters.taken(0, max);
        }
    }

    /// [`Self::take`], gathering takes until there are `max` events or no more now. Each take holds at most `transactionCapacity`.
    pub async fn gather(&self, max: usize) -> Vec<Taken> {
        let mut all = vec![self.take(max).await];
        let mut count = all.iter().map(Taken::len).sum();
        self.gather_more(&mut all, &mut count, max).await;
        all
    }

    /// Adds what is there now; nothing while the sink is paused.
    pub async fn gather_more(&self, all: &mut Vec<Taken>, count: &mut usize, max: usize) {
        while *count < max && !*self.paused.borrow() {
            let more = self.channel.clone().take(max - *count, Duration::ZERO).await;
            if more.is_empty() {
                return;
            }
            self.witness.taken(more.events(), max);
            *count += more.len();
            all.push(more.witnessed(&self.witness));
        }
    }

    /// How full the channel is.
    pub fn fill(&self) -> Fill {
        self.channel.fill()
    }

    /// What is wrong with the sink now, for status; `None` when it is well.
    pub fn trouble(&self, what: Option<String>) {
        let mut trouble = self.trouble.lock();
        if *trouble != what {
            *trouble = what;
        }
    }
}

/// The span of sending these takes, when any of their events is traced: a child of the first one's read, linked to the others'.
fn send_span<'a>(takes: impl IntoIterator<Item = &'a Taken> + Clone, sink: &str) -> Option<tracing::Span> {
    /// OpenTelemetry keeps 128 links of a span.
    const LINKS_MAX: usize = 128;
    if !service_kit::telemetry::tracing_on() {
        return None;
    }
    let events = takes.clone().into_iter().flat_map(Taken::events);
    let mut traces: Vec<&str> = events.filter_map(|event| event.origin.as_ref()?.trace.as_deref()).collect();
    traces.dedup();
    let (first, others) = traces.split_first()?;
    let count: usize = takes.into_iter().map(Taken::len).sum();
    let span = tracing::info_span!(parent: None, "collector.send", sink, events = count);
    service_kit::telemetry::set_parent(&span, first);
    for other in others.iter().take(LINKS_MAX) {
        service_kit::telemetry::add_link(&span, other);
    }
    Some(span)
}
