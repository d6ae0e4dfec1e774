//! `hdfs`: events in rolled files, in HDFS, in S3 or on this machine's disk.
//!
//! Promise: a file has its final name only when it is complete, and a take is committed only when its events are safe:
//! on disk synced, in a store in a file that has been closed. What is not, goes back to the channel: at least once.
//!
//! | module | question it answers |
//! |---|---|
//! | `settings` | what do the properties come to |
//! | [`files`] | which files are open, and when are they closed |
//! | [`format`], [`sequence`], [`codec`] | what do events look like in a file |
//! | [`store`] | where is a file, and when is it there |

pub mod codec;
pub mod files;
pub mod format;
pub mod sequence;
mod settings;
pub mod store;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use object_store::ObjectStore;
use tokio::time::{Instant, sleep_until};

pub use settings::{HoldBounds, KIND, Where, needs_timestamp, path_of};

use self::files::{Files, Shaping};
use self::store::Root;
use super::dead_letter::DeadLetters;
use super::unfinished::Unfinished;
use super::{Input, Setup, Sink, send_span};
use crate::channel::Taken;
use crate::counters::unix_ms;
use crate::event::Event;
use crate::flume_conf::Component;
use crate::source::Stop;

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let slip = |(key, fault): (&str, String)| anyhow::anyhow!("{key}: {fault}");
    let to = settings::destination(component).map_err(slip)?;
    let format = settings::format(component).map_err(slip)?;
    let store = match &to.root {
        Root::Local => None,
        Root::Store(root) => Some(store::open(root, component.below("hdfs.store."))?),
    };
    Ok(Box::new(RolledFiles {
        dead: DeadLetters::of(component, &setup.state_dir),
        shaping: settings::shaping(component, format),
        batch: component.count("hdfs.batchSize"),
        bounds: settings::hold(component),
        state_dir: setup.state_dir,
        to,
        store,
    }))
}

/// A sink that writes files; `file_roll` is one too.
pub struct RolledFiles {
    pub to: Where,
    /// None: this machine's disk.
    pub store: Option<Arc<dyn ObjectStore>>,
    pub shaping: Shaping,
    pub batch: usize,
    pub bounds: HoldBounds,
    pub dead: DeadLetters,
    pub state_dir: PathBuf,
}

const BACKOFF_STEP: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Without new events for so long, somebody who waits for the held ones is not kept waiting.
const HURRY_AFTER: Duration = Duration::from_millis(20);

#[async_trait]
impl Sink for RolledFiles {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        let Self { to, store, shaping, batch, bounds, dead, state_dir } = *self;
        let in_store = store.is_some();
        let unfinished = Unfinished::load(&state_dir, input.name())?;
        let mut files = Files::new(shaping, store, unfinished);
        files.finish_left().context("files that an earlier process left")?;
        let gauge = |name: &'static str| metrics::gauge!(name, "sink" => input.name().to_owned());
        let open_files = gauge("millrace_collector_sink_open_files");
        let held_events = gauge("millrace_collector_sink_held_events");
        let places = Places { to, in_store, last: None };
        let mut work = Work { places, files, held: Held::new(bounds), dead, aside: None, input: input.clone() };
        let mut failures = 0u32;
        let mut retry_at: Option<Instant> = None;
        let mut told = String::new();
        let mut hurry = input.hurry();
        loop {
            open_files.set(work.files.open_count() as f64);
            held_events.set(work.held.events as f64);
            let due = work.files.next_due().into_iter().chain(work.held.due()).min();
            let hurried = *hurry.borrow_and_update() && !work.held.takes.is_empty();
            let result = tokio::select! {
                biased;
                () = stop.abandon.cancelled() => return Ok(()),
                () = stop.begin.cancelled() => break,
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    retry_at = None;
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => work.tend().await,
                taken = input.take(batch), if retry_at.is_none() => work.write(taken).await,
                () = tokio::time::sleep(HURRY_AFTER), if hurried => work.close_all().await,
                _changed = hurry.changed() => continue,
            };
            match result {
                Ok(()) => {
                    failures = 0;
                    input.trouble(work.aside.clone());
                    if !std::mem::take(&mut told).is_empty() {
                        tracing::info!(sink = input.name(), "writing again");
                    }
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if told != error {
                        tracing::warn!(sink = input.name(), error, "not written; trying again until it is");
                        told.clone_from(&error);
                    }
                    input.trouble(Some(error));
                    input.counters.rollbacks.add(1);
                    input.counters.connections_failed.add(1);
                    work.give_up().await;
                    failures += 1;
                    retry_at = Some(Instant::now() + (BACKOFF_STEP * failures).min(BACKOFF_MAX));
                }
            }
        }
        tokio::select! {
            closed = work.close_all() => {
                if let Err(error) = closed {
                    tracing::warn!(sink = input.name(), error = format!("{error:#}"), "files could not be closed; their events go back to the channel");
                    work.give_up().await;
                }
            }
            // What is held goes back.
            () = stop.abandon.cancelled() => {}
        }
        Ok(())
    }
}

struct Work {
    places: Places,
    files: Files,
    held: Held,
    dead: DeadLetters,
    /// Why events of the last take were put aside.
    aside: Option<String>,
    input: Input,
}

impl Work {
    async fn write(&mut self, taken: Taken) -> anyhow::Result<()> {
        let span = send_span([&taken], self.input.name());
        let now = unix_ms();
        let mut letters = Vec::new();
        let mut into = BTreeSet::new();
        for event in taken.events() {
            match self.places.of(event, now) {
                Ok((directory, name)) => match self.files.write(directory, name, event).await {
                    Ok(file) => {
                        into.insert(file);
                    }
                    Err(error) => {
                        self.input.counters.failed.add(taken.len() as u64);
                        return Err(error);
                    }
                },
                Err(reason) => letters.push((event.clone(), reason)),
            }
        }
        self.files.settle().await.inspect_err(|_| self.input.counters.failed.add(taken.len() as u64))?;
        let written = taken.len() - letters.len();
        self.aside = letters.first().map(|(_, reason)| format!("{} of {} events were put aside: {reason}", letters.len(), taken.len()));
        self.dead.put(letters, &self.input.counters.dead).await.context("dead letters")?;
        drop(span);
        if !self.places.in_store {
            into.clear();
        }
        self.held.add(taken, into, written);
        self.release();
        if self.held.is_full(&self.input) { self.close_all().await } else { Ok(()) }
    }

    /// Commits what is safe.
    fn release(&mut self) {
        let closed = self.files.closed();
        self.held.release(&closed, &self.input);
    }

    /// Does what is due.
    async fn tend(&mut self) -> anyhow::Result<()> {
        if self.held.due().is_some_and(|due| due <= Instant::now()) {
            return self.close_all().await;
        }
        let done = self.files.close_due().await;
        self.release();
        done
    }

    async fn close_all(&mut self) -> anyhow::Result<()> {
        let done = self.files.close_all().await;
        self.release();
        done
    }

    /// What is safe is committed, the rest goes back to the channel.
    async fn give_up(&mut self) {
        self.release();
        self.files.give_up().await;
        self.held.give_back();
    }
}

/// Which directory and name an event belongs to.
struct Places {
    to: Where,
    in_store: bool,
    /// The last ones, as expanded and as used: most events belong where the one before did.
    last: Option<Place>,
}

struct Place {
    expanded: (String, String),
    directory: String,
    name: String,
}

/// A file system takes 255 bytes; counter and suffix come on top.
const NAME_BYTES_MAX: usize = 200;

impl Places {
    /// An error is why the event can be nowhere.
    fn of(&mut self, event: &Event, now: i64) -> Result<(&str, &str), String> {
        let (directory, name) = (self.to.directory.expand(event, now)?, self.to.name.expand(event, now)?);
        let known = self.last.as_ref().is_some_and(|last| last.expanded.0 == directory && last.expanded.1 == name);
        if !known {
            let place = Place {
                directory: clean(&directory, !self.in_store)?,
                name: clean(&name, false)?,
                expanded: (directory.to_string(), name.to_string()),
            };
            if self.in_store {
                let path = format!("{}/{}", place.directory, place.name);
                object_store::path::Path::parse(&path).map_err(|error| format!("`{path}` cannot be a path: {error}"))?;
            }
            self.last = Some(place);
        }
        self.last.as_ref().map(|place| (place.directory.as_str(), place.name.as_str())).ok_or_else(String::new)
    }
}

/// Without empty parts. Parts that lead elsewhere (a header may hold `..`) are refused.
fn clean(path: &str, rooted: bool) -> Result<String, String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let bad = |part: &&&str| [".", ".."].contains(*part) || part.contains('\0') || part.len() > NAME_BYTES_MAX;
    if let Some(part) = parts.iter().find(bad) {
        let part: String = part.chars().take(40).collect();
        return Err(format!("`{}` cannot be part of a path", part.escape_debug()));
    }
    let root = if rooted && path.starts_with('/') { "/" } else { "" };
    Ok(format!("{root}{}", parts.join("/")))
}

/// Takes whose events are in files that nobody sees yet.
struct Held {
    bounds: HoldBounds,
    takes: Vec<HeldTake>,
    events: usize,
    bytes: usize,
    /// Said once that the channel is too small for the files.
    told: bool,
}

struct HeldTake {
    taken: Taken,
    files: BTreeSet<u64>,
    written: usize,
    since: Instant,
}

impl Held {
    fn new(bounds: HoldBounds) -> Self {
        Self { bounds, takes: Vec::new(), events: 0, bytes: 0, told: false }
    }

    fn add(&mut self, taken: Taken, files: BTreeSet<u64>, written: usize) {
        self.events += taken.len();
        self.bytes += taken.events().iter().map(Event::size).sum::<usize>();
        self.takes.push(HeldTake { taken, files, written, since: Instant::now() });
    }

    fn release(&mut self, closed: &BTreeSet<u64>, input: &Input) {
        for mut take in std::mem::take(&mut self.takes) {
            take.files.retain(|file| !closed.contains(file));
            if take.files.is_empty() {
                input.counters.delivered.add(take.written as u64);
                self.events -= take.taken.len();
                self.bytes -= take.taken.events().iter().map(Event::size).sum::<usize>();
                take.taken.commit();
            } else {
                self.takes.push(take);
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        self.takes.first().map(|take| take.since + self.bounds.time)
    }

    /// Held events count against the channel: half of it is left for what comes.
    fn is_full(&mut self, input: &Input) -> bool {
        if self.takes.is_empty() {
            return false;
        }
        let fill = input.fill();
        let half = |value: usize, whole: usize| whole > 0 && value >= whole.div_ceil(2);
        let by_channel = half(self.events, fill.events_max) || half(self.bytes, fill.bytes_max);
        if by_channel && !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                sink = input.name(),
                held = self.events,
                capacity = fill.events_max,
                "files are closed early: a store shows a file when it is closed, its events are held until then, and they may \
                 fill half of the channel; a larger channel makes larger files"
            );
        }
        by_channel || self.events >= self.bounds.events || self.bytes >= self.bounds.bytes
    }

    fn give_back(&mut self) {
        self.takes.clear();
        (self.events, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
