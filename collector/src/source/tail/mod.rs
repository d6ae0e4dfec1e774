//! Tailed files: the source behind `exec tail -F FILE` and TAILDIR.
//!
//! One thread reads; positions advance when the sinks have committed. See [`engine`] for what happens to files.

pub mod command;
pub mod engine;
pub mod find;
pub mod flume;
pub mod identity;
pub mod reader;
pub mod store;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
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
    find::{Find, Listed},
    flume::FlumePositions,
    identity::{Inode, Remembered},
    reader::{Chunk, open},
    store::Store,
};
use super::{Output, Source, Stop, exec};
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

/// `most` file handles, and no more than a quarter of what the process may have.
pub fn handles(most: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| usize::try_from(limit / 4).ok()).map_or(most, |share| most.min(share)).max(1)
}

pub struct TailSource {
    pub name: String,
    pub state_dir: PathBuf,
    pub settings: Settings,
    /// Where to begin in files that are there when the source starts for the first time.
    pub begin: Begin,
    pub committed: Option<Committed>,
    /// The agent's sources: positions of any other name were left by a source that is gone.
    pub configured: Vec<String>,
    pub flume: Option<FlumePositions>,
    /// How often delivered positions are written to disk.
    pub save_interval: Duration,
    /// Header that takes each line's offset.
    pub offset_header: Option<String>,
}

/// Sleep between looks at idle files: short after a line came, longer the longer none came.
const IDLE_MIN: Duration = Duration::from_millis(2);
const IDLE_MAX: Duration = Duration::from_millis(20);
/// The same with so many files that they are looked at more seldom; a new name is seen within this time.
const REST_MAX: Duration = Duration::from_millis(200);
/// Between looks at files while lines wait for room.
const FULL_WAIT: Duration = Duration::from_millis(200);
/// Where nothing happens, positions are looked through so many times more seldom.
const QUIET_SAVES: u32 = 10;
/// Between tries to use the state directory.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[async_trait]
impl Source for TailSource {
    async fn run(mut self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        // Before anything is waited for: what is written from now on is read.
        let look = self.settings.find.first_look(self.begin);
        let Some(first) = until_done(&out, &stop, || Store::first(&self.state_dir, &self.name, || look.clone())).await else {
            return Ok(());
        };
        let mut known = Found::default();
        if let Some(committed) = &mut self.committed {
            // The sink's transactions decide where reading goes on; without its word lines could be repeated.
            tokio::select! {
                found = committed.wait_for(Option::is_some) => known = found.context("the transactional sink ended")?.as_deref().cloned().unwrap_or_default(),
                () = stop.begin.cancelled() => return Ok(()),
            }
        }
        let Some(store) = until_done(&out, &stop, || Store::open(&self.state_dir, &self.name)).await else { return Ok(()) };
        let first = match first {
            Some(first) => first,
            None => {
                let is_known = store.saved().is_some() || known.positions.iter().any(|file| self.settings.find.owns(&file.path));
                let (spare, means) = (is_known || self.begin == Begin::Line(1), exec::describe(self.begin));
                let means = format!("reading begins at {means} of what was there when this process began");
                let work = || Store::first_or_aside(&self.state_dir, &self.name, spare, &means, || look.clone());
                let Some(first) = until_done(&out, &stop, work).await else { return Ok(()) };
                first
            }
        };
        let mut left = Vec::new();
        if store.saved().is_none() {
            match until_done(&out, &stop, || Store::left(&self.state_dir, &self.configured)).await {
                Some(stores) => left = stores.into_iter().filter(|left| leaves_to(left, &self.settings.find)).collect(),
                None => return Ok(()),
            }
        }
        let handle = Handle::current();
        // A thread of its own: files are read and synced in blocking calls.
        tokio::task::spawn_blocking(move || self.tail(Before { known, first, store, left }, &out, &stop, &handle))
            .await
            .context("the tail thread panicked")?
    }
}

/// What is there when the tail begins.
struct Before {
    known: Found,
    first: Vec<Remembered>,
    store: Store,
    /// Positions that a source of another name left for this one.
    left: Vec<Store>,
}

/// Tries until it works, told once; `None` when told to stop.
async fn until_done<T>(out: &Output, stop: &Stop, mut work: impl FnMut() -> io::Result<T>) -> Option<T> {
    let (mut backoff, mut told) = (BACKOFF_MIN, false);
    loop {
        let error = match work() {
            Ok(done) => {
                if told {
                    tracing::info!(source = out.name(), "the state directory can be used again");
                    out.trouble(None);
                }
                return Some(done);
            }
            Err(error) => error,
        };
        out.counters.read_failures.add(1);
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(source = out.name(), %error, "the state directory cannot be used; waiting until it can");
        }
        out.trouble(Some(format!("the state directory cannot be used: {error}")));
        tokio::select! {
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
            () = stop.begin.cancelled() => return None,
        }
    }
}

/// Is one of the files that these positions are of one that is to be found, known by device, inode and content?
fn leaves_to(left: &Store, find: &Find) -> bool {
    let mut listed = Listed::default();
    left.saved().unwrap_or_default().iter().filter(|file| find.owns(&file.path)).any(|file| {
        let inode = Inode { device: file.dev, number: file.inode };
        let path = listed.name_of(&file.path, inode).unwrap_or_else(|| file.path.clone());
        open(&path).and_then(|(handle, metadata)| file.is(&handle, &metadata, &path)).unwrap_or(false)
    })
}

impl TailSource {
    fn tail(mut self, before: Before, out: &Output, stop: &Stop, handle: &Handle) -> anyhow::Result<()> {
        let Before { known, first, store, mut left } = before;
        let forgotten = self.committed.as_ref().map(|_| known.forgotten);
        let mut known = known.positions;
        for left in &left {
            tracing::info!(source = out.name(), was = left.name(), "going on from the positions of a source that is gone");
            known.extend(left.saved().unwrap_or_default().iter().cloned());
        }
        if let (true, Some(flume)) = (left.is_empty(), &self.flume) {
            match flume.found(store.saved()) {
                Ok(positions) if positions.is_empty() => {}
                Ok(positions) => {
                    tracing::info!(file = %flume.path().display(), files = positions.len(), "going on from Flume's positions");
                    known.extend(positions);
                }
                Err(error) => tracing::warn!(file = %flume.path().display(), %error, "Flume's position file cannot be read"),
            }
        }
        let ledger = Arc::new(Ledger::default());
        let mut engine = Engine::new(self.settings, store, Earlier { known, first, forgotten }, ledger.clone());
        let mut idle = IDLE_MIN;
        let mut saved_at = Instant::now();
        // Chunks read, and how many there were, with how many files, when all of it was delivered and saved.
        let (mut reads, mut saved) = (0u64, None);
        while !stop.begin.is_cancelled() {
            if !left.is_empty() && engine.save_when_possible() {
                // They are this source's own now: whoever gets the old name begins anew.
                for mut left in left.drain(..) {
                    if let Err(error) = left.give_away(|file| engine.owns(&file.path)) {
                        tracing::warn!(source = out.name(), was = left.name(), %error, "its positions cannot be removed");
                    }
                }
            }
            let read = engine.next_chunk();
            // Where nothing was read and nothing is on its way there is nothing new to save; with very many files, looking costs.
            let quiet = saved == Some((reads, engine.open_files()));
            if saved_at.elapsed() >= self.save_interval * if quiet { QUIET_SAVES } else { 1 } {
                if engine.save_when_possible()
                    && let Some(flume) = &mut self.flume
                {
                    flume.write(engine.positions(), |path| engine.owns(path));
                }
                out.counters.is_behind(engine.unread_bytes());
                saved_at = Instant::now();
                saved = (ledger.underway() == 0).then(|| (reads, engine.open_files()));
            }
            let failures = engine.take_failures();
            if failures > 0 {
                out.counters.read_failures.add(failures);
            }
            out.trouble(engine.in_trouble());
            match read {
                Some(chunk) => {
                    idle = IDLE_MIN;
                    reads += 1;
                    let meanwhile = || {
                        engine.keep_up();
                        if saved_at.elapsed() >= self.save_interval {
                            engine.save_when_possible();
                            saved_at = Instant::now();
                        }
                    };
                    if !deliver(&chunk, self.offset_header.as_deref(), &ledger, out, stop, handle, meanwhile) {
                        break;
                    }
                }
                None => {
                    let wait = idle.max(engine.rest().min(REST_MAX));
                    let _stopped = handle.block_on(async { tokio::time::timeout(wait, stop.begin.cancelled()).await });
                    idle = (idle * 2).min(IDLE_MAX);
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
        engine.save().context("positions cannot be saved")?;
        if let Some(flume) = &mut self.flume {
            flume.write(engine.positions(), |path| engine.owns(path));
        }
        Ok(())
    }
}

/// Gives the chunk's lines to the channels, in batches that fit; false when told to stop. `meanwhile` is done now and then
/// while they wait for room.
fn deliver(
    chunk: &Chunk,
    offset_header: Option<&str>,
    ledger: &Arc<Ledger>,
    out: &Output,
    stop: &Stop,
    handle: &Handle,
    mut meanwhile: impl FnMut(),
) -> bool {
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
        let put = out.deliver(events);
        tokio::pin!(put);
        let delivered = loop {
            let done = handle.block_on(async {
                tokio::select! {
                    biased;
                    () = &mut put => Some(true),
                    // Not accepted by the channel, so not delivered: read again after the next start.
                    () = stop.begin.cancelled() => Some(false),
                    () = tokio::time::sleep(FULL_WAIT) => None,
                }
            });
            match done {
                Some(delivered) => break delivered,
                None => meanwhile(),
            }
        };
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
