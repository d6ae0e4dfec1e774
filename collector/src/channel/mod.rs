//! Channels: what stands between sources and sinks. One file and one line in [`CHANNELS`] each.
//!
//! The contract is Flume's. A put transaction is a batch: all of it or nothing. A take transaction is a [`Taken`]: until
//! it is committed its events are the channel's, and rolling back (or dropping it) puts them back in their order.

pub mod file;
pub mod flume_log;
pub mod kafka;
pub mod memory;
pub mod spillable;

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::event::{Event, acknowledge};
use crate::flume_conf::{Component, Kind};
use crate::sink::Witness;

/// A channel as the table knows it.
pub struct ChannelKind {
    pub kind: &'static Kind,
    pub build: fn(&Component, Setup) -> anyhow::Result<Arc<dyn Channel>>,
    /// What is in such a channel outlives the process.
    pub durable: bool,
}

pub static CHANNELS: &[ChannelKind] = &[
    ChannelKind { kind: &memory::KIND, build: memory::build, durable: false },
    ChannelKind { kind: &file::KIND, build: file::build, durable: true },
    ChannelKind { kind: &spillable::KIND, build: spillable::build, durable: false },
    ChannelKind { kind: &kafka::KIND, build: kafka::build, durable: true },
];

/// What a channel gets besides its settings.
pub struct Setup {
    /// The agent's own directory below the state directory.
    pub state_dir: PathBuf,
}

/// Does what is in such a channel outlive the process?
pub fn is_durable(channel: &Component) -> bool {
    CHANNELS.iter().any(|kind| kind.durable && std::ptr::eq(kind.kind, channel.kind))
}

/// Is the channel's store one that others write and read as well, so that it needs neither a source nor a sink here?
pub fn is_shared(channel: &Component) -> bool {
    std::ptr::eq(channel.kind, &kafka::KIND)
}

/// May events of such a channel be in memory, and others of the same source on disk?
pub fn spills(channel: &Component) -> bool {
    std::ptr::eq(channel.kind, &spillable::KIND) && channel.count("overflowCapacity") > 0
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// The caller keeps its events and tries again, or refuses them.
    #[error("channel full: {used} of {capacity} events, {bytes} of {bytes_max} bytes; waited {waited:?} for the sinks")]
    Full { used: usize, capacity: usize, bytes: usize, bytes_max: usize, waited: Duration },
    /// The caller must put less at a time.
    #[error("{events} events are more than transactionCapacity {max}")]
    BatchTooLarge { events: usize, max: usize },
    /// The channel cannot write; it goes on trying. As with [`PutError::Full`], the caller keeps its events.
    #[error("the channel cannot take events: {reason}")]
    Failed { reason: String },
}

/// How full a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Events in the channel, those taken and not yet committed included.
    pub events: usize,
    pub events_max: usize,
    pub bytes: usize,
    pub bytes_max: usize,
}

impl Fill {
    /// The fuller of events and bytes.
    pub fn percent(self) -> f64 {
        let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 };
        share(self.events, self.events_max).max(share(self.bytes, self.bytes_max))
    }
}

/// Counters of a channel since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub put_attempts: u64,
    pub put_successes: u64,
    pub take_attempts: u64,
    pub take_successes: u64,
    /// Events that are damaged on disk and were passed over.
    pub damaged: u64,
    /// Events that were in the channel already: read again by their source after a crash.
    pub repeated: u64,
}

#[async_trait]
pub trait Channel: Send + Sync + 'static {
    /// Takes all of `events` and leaves the vector empty, or leaves it as it is. Waits for room for the channel's `keep-alive`.
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError>;

    /// Up to `max` events in order, and no more than `transactionCapacity`; waits `wait` for the first. Empty when none came.
    /// Dropping the call takes nothing.
    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken;

    /// The end of a take: the events are gone.
    fn committed(&self, events: &[Event]);

    /// The end of a take: the events are back in their places.
    fn returned(&self, events: Vec<Event>);

    fn transaction_capacity(&self) -> usize;

    fn fill(&self) -> Fill;

    fn traffic(&self) -> Traffic;

    /// Takes new settings of the same kind while running; what is inside stays.
    fn reconfigure(&self, component: &Component);

    /// Events that would be lost with the process.
    fn at_risk(&self) -> usize {
        self.fill().events
    }

    /// May it refuse for what its fill does not show: a disk, a broker?
    fn may_fail(&self) -> bool {
        true
    }

    /// What is wrong with the channel now, for status.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Before the end: tells other processes what was delivered, and that this one goes. Takes a few seconds at most.
    async fn leave(&self) {}

    /// The end: what was noted in memory is on disk when this returns. May block for some milliseconds.
    fn close(&self) {}
}

/// Events under a take transaction. Dropped without [`Taken::commit`], they go back.
pub struct Taken {
    events: Vec<Event>,
    channel: Option<Arc<dyn Channel>>,
    witness: Option<Arc<Witness>>,
}

impl Taken {
    pub fn new(events: Vec<Event>, channel: Arc<dyn Channel>) -> Self {
        Self { events, channel: Some(channel), witness: None }
    }

    /// Who is told of the commit.
    pub fn witnessed(mut self, witness: &Arc<Witness>) -> Self {
        self.witness = Some(witness.clone());
        self
    }

    pub fn events(&self) -> &[Event] {
        &self.events
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events are delivered: the channel forgets them and their sources' positions advance.
    pub fn commit(mut self) {
        if let Some(channel) = self.channel.take() {
            channel.committed(&self.events);
        }
        if let Some(witness) = &self.witness {
            witness.committed(&self.events);
        }
        acknowledge(&self.events);
    }

    pub fn rollback(self) {
        drop(self);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(channel) = self.channel.take()
            && !self.events.is_empty()
        {
            channel.returned(std::mem::take(&mut self.events));
        }
    }
}
