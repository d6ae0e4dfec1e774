//! Tailed files: the source behind `exec tail -F FILE` and TAILDIR.
//!
//! One thread reads; positions advance when the sinks have committed. See [`engine`] for what happens to files.

pub mod command;
pub mod engine;
pub mod identity;
pub mod reader;
pub mod store;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use self::{
    command::Begin,
    engine::{Earlier, Engine, Settings},
    identity::Remembered,
    reader::Chunk,
    store::Store,
};
use super::{Output, Source, Stop};
use crate::event::{Event, Headers, Ledger};

/// What a transactional sink found in its topic; `None` until it has looked.
pub type Committed = watch::Receiver<Option<Arc<Found>>>;

/// Files whose positions nobody needs any more: a source adds them when it knows for good that they are through, the
/// sink takes them out when their tombstones are committed.
pub type Forgotten = Arc<Mutex<BTreeSet<u64>>>;

#[derive(Clone, Debug, Default)]
pub struct Found {
    pub positions: Vec<Remembered>,
    pub forgotten: Forgotten,
}

/// Where Flume's TAILDIR keeps its positions.
pub struct FlumePositions(pub PathBuf);

pub struct TailSource {
    pub name: String,
    pub state_dir: PathBuf,
    pub settings: Settings,
    /// Where to begin in files that are there when the source starts for the first time.
    pub begin: Begin,
    pub committed: Option<Committed>,
    pub flume: Option<FlumePositions>,
    /// How often delivered positions are written to disk.
    pub save_interval: Duration,
    /// Header that takes each line's offset.
    pub offset_header: Option<String>,
}

/// Sleep between looks at idle files: short after a line came, longer the longer none came.
const IDLE_MIN: Duration = Duration::from_millis(2);
const IDLE_MAX: Duration = Duration::from_millis(200);

#[async_trait]
impl Source for TailSource {
    async fn run(mut self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        // Before anything is waited for: what is written from now on is read.
        let first = Store::first(&self.state_dir, &self.name, || self.settings.find.first_look(self.begin))
            .with_context(|| format!("state directory {}", self.state_dir.display()))?;
        let mut known = Found::default();
        if let Some(committed) = &mut self.committed {
            // The sink's transactions decide where reading goes on; without its word lines could be repeated.
            tokio::select! {
                found = committed.wait_for(Option::is_some) => known = found.context("the transactional sink ended")?.as_deref().cloned().unwrap_or_default(),
                () = stop.begin.cancelled() => return Ok(()),
            }
        }
        let handle = Handle::current();
        // A thread of its own: files are read and synced in blocking calls.
        tokio::task::spawn_blocking(move || self.tail(known, first, &out, &stop, &handle)).await.context("the tail thread panicked")?
    }
}

impl TailSource {
    fn tail(self, known: Found, first: Vec<Remembered>, out: &Output, stop: &Stop, handle: &Handle) -> anyhow::Result<()> {
        let store = Store::open(&self.state_dir, &self.name).with_context(|| format!("state directory {}", self.state_dir.display()))?;
        let forgotten = self.committed.as_ref().map(|_| known.forgotten);
        let mut known = known.positions;
        if let (true, Some(FlumePositions(path))) = (store.saved().is_none(), &self.flume)
            && let Ok(text) = std::fs::read(path)
        {
            match engine::flume_positions(&text) {
                Ok(positions) => {
                    tracing::info!(file = %path.display(), files = positions.len(), "going on from Flume's positions");
                    known.extend(positions);
                }
                Err(error) => tracing::warn!(file = %path.display(), %error, "Flume's position file cannot be read"),
            }
        }
        let ledger = Arc::new(Ledger::default());
        let mut engine = Engine::new(self.settings, store, Earlier { known, first, forgotten }, ledger.clone());
        let mut idle = IDLE_MIN;
        let mut saved_at = Instant::now();
        while !stop.begin.is_cancelled() {
            let read = engine.next_chunk();
            if saved_at.elapsed() >= self.save_interval {
                engine.save().context("positions cannot be saved")?;
                saved_at = Instant::now();
            }
            match read {
                Ok(Some(chunk)) => {
                    idle = IDLE_MIN;
                    if !deliver(&chunk, self.offset_header.as_deref(), &ledger, out, stop, handle) {
                        break;
                    }
                    out.trouble(None);
                }
                Ok(None) => {
                    out.trouble(engine.in_trouble());
                    let _stopped = handle.block_on(async { tokio::time::timeout(idle, stop.begin.cancelled()).await });
                    idle = (idle * 2).min(IDLE_MAX);
                }
                Err(error) => {
                    out.counters.read_failures.add(1);
                    tracing::error!(source = out.name(), %error, "cannot tail; trying again");
                    out.trouble(Some(error.to_string()));
                    let _stopped = handle.block_on(async { tokio::time::timeout(Duration::from_secs(1), stop.begin.cancelled()).await });
                }
            }
        }
        // What was given out is delivered by the sinks; what they do not manage in time is read again after the next start.
        handle.block_on(async {
            tokio::select! {
                () = ledger.settled() => {}
                () = stop.abandon.cancelled() => {}
            }
        });
        engine.save().context("positions cannot be saved")
    }
}

/// Gives the chunk's lines to the channels, in batches that fit; false when told to stop.
fn deliver(chunk: &Chunk, offset_header: Option<&str>, ledger: &Arc<Ledger>, out: &Output, stop: &Stop, handle: &Handle) -> bool {
    let mut start = 0;
    for ends in chunk.ends.chunks(out.batch_max()) {
        let Some(&last) = ends.last() else { continue };
        let span = out.read_span(ends.len(), last - start);
        let trace = span.as_ref().and_then(service_kit::telemetry::traceparent);
        let origin = ledger.open(&chunk.file, chunk.mark(last), ends.len() * out.copies(), trace);
        let mut events = Vec::with_capacity(ends.len());
        for &end in ends {
            let headers = match offset_header {
                Some(name) => with_offset(&chunk.headers, name, chunk.begin + start as u64),
                None => chunk.headers.clone(),
            };
            events.push(Event {
                headers,
                body: chunk.line(start, end),
                end: chunk.begin + end as u64,
                origin: Some(origin.clone()),
                number: 0,
            });
            start = end;
        }
        let delivered = handle.block_on(async {
            tokio::select! {
                biased;
                () = out.deliver(events) => true,
                // Not accepted by the channel, so not delivered: read again after the next start.
                () = stop.begin.cancelled() => false,
            }
        });
        if !delivered {
            ledger.withdraw();
            return false;
        }
    }
    true
}

fn with_offset(headers: &Headers, name: &str, offset: u64) -> Headers {
    let mut headers = headers.as_deref().cloned().unwrap_or_default();
    headers.insert(name.to_owned(), offset.to_string());
    Some(Arc::new(headers))
}
