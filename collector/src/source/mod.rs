//! Sources: where events come from. One file and one line in [`SOURCES`] each.
//!
//! A source is built from its settings (may fail, touches nothing yet), then runs until it is told to stop. It knows its
//! [`Output`] and nothing behind it.

pub mod exec;
pub mod lines;
pub mod netcat;
pub mod seq;
pub mod tail;
pub mod taildir;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::channel::{Channel, PutError};
use crate::counters::SourceCounters;
use crate::event::{Event, Origin};
use crate::flume_conf::{Component, Kind};

/// A source as the table knows it.
pub struct SourceKind {
    pub kind: &'static Kind,
    pub build: fn(&Component, Setup) -> anyhow::Result<Box<dyn Source>>,
}

pub static SOURCES: &[SourceKind] = &[
    SourceKind { kind: &exec::KIND, build: exec::build },
    SourceKind { kind: &taildir::KIND, build: taildir::build },
    SourceKind { kind: &netcat::KIND, build: netcat::build },
    SourceKind { kind: &seq::KIND, build: seq::build },
];

/// What a source gets besides its settings.
pub struct Setup {
    /// The agent's own directory below the state directory.
    pub state_dir: PathBuf,
    /// Set where the source's sink keeps the positions in its transactions.
    pub committed: Option<tail::Committed>,
    pub strict: bool,
    /// A source of this name runs now and stops before this one starts.
    pub replaces: bool,
}

#[async_trait]
pub trait Source: Send {
    /// Runs until [`Stop::begin`], then finishes what it has accepted. Ends by itself when there is no more to come.
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()>;
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
    std::ptr::eq(component.kind, &taildir::KIND)
        || (std::ptr::eq(component.kind, &exec::KIND) && exec::tail_of(component, strict).is_some())
}

/// A source's way into its channels.
#[derive(Clone)]
pub struct Output {
    pub counters: Arc<SourceCounters>,
    name: Arc<str>,
    channels: Vec<Arc<dyn Channel>>,
    paused: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Output {
    pub fn new(
        name: &str,
        channels: Vec<Arc<dyn Channel>>,
        counters: Arc<SourceCounters>,
        paused: watch::Receiver<bool>,
        trouble: Arc<Mutex<Option<String>>>,
    ) -> Self {
        Self { counters, name: name.into(), channels, paused, trouble }
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
        self.channels.iter().map(|channel| channel.transaction_capacity()).min().unwrap_or(1).max(1)
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

    /// Puts the batch into every channel, however long that takes: a full channel and a pause are waited out.
    /// A channel that has taken the batch does not get it again.
    pub async fn deliver(&self, events: Vec<Event>) {
        let count = events.len() as u64;
        self.counters.received.add(count);
        self.counters.batches_received.add(1);
        self.unpaused().await;
        let mut last = Some(events);
        for (at, channel) in self.channels.iter().enumerate() {
            let is_last = at + 1 == self.channels.len();
            let batch = if is_last { last.take() } else { last.clone() };
            let mut batch = batch.unwrap_or_default();
            let mut full_told = false;
            while !batch.is_empty() {
                // A reload may have made transactions smaller than this batch.
                let most = channel.transaction_capacity().max(1);
                let mut part: Vec<Event> = if batch.len() > most { batch.drain(..most).collect() } else { std::mem::take(&mut batch) };
                while let Err(error) = channel.put(&mut part).await {
                    self.counters.channel_failures.add(1);
                    if !std::mem::replace(&mut full_told, true) {
                        tracing::warn!(source = &*self.name, %error, "waiting for the channel");
                    }
                }
            }
        }
        self.counters.accepted.add(count);
        self.counters.batches_accepted.add(1);
    }

    /// Puts the batch if the channels take it within their `keep-alive`.
    pub async fn offer(&self, mut events: Vec<Event>) -> Result<(), PutError> {
        let count = events.len() as u64;
        self.counters.received.add(count);
        self.unpaused().await;
        for (at, channel) in self.channels.iter().enumerate() {
            let result =
                if at + 1 == self.channels.len() { channel.put(&mut events).await } else { channel.put(&mut events.clone()).await };
            if let Err(error) = result {
                self.counters.channel_failures.add(1);
                return Err(error);
            }
        }
        self.counters.accepted.add(count);
        Ok(())
    }

    pub async fn unpaused(&self) {
        if *self.paused.borrow() {
            // The sender lives as long as the agent; without it nobody could resume.
            let mut paused = self.paused.clone();
            let _gone = paused.wait_for(|paused| !paused).await;
        }
    }
}
