//! The channel over its log: puts wait for the thread that writes, takes read what is durable.

use std::{
    ops::ControlFlow,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant as Moment},
};

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until, timeout_at},
};

use super::acks::AckFile;
use super::disk::{Disk, DiskFile, RealDisk, Unusable, lock};
use super::format;
use super::log::{COPY, Found, Log, Place, Segments, Trouble, Walk};
use super::queue::{Cursor, Pending, State};
use super::recovery::{self, Decision};
use super::{
    Limits,
    writer::{GROUP_BYTES, Writer},
};
use crate::channel::{Channel, Fill, PutError, Taken, Traffic};
use crate::event::{Event, Origin};
use crate::fault::Point;
use crate::flume_conf::Component;
use crate::source::tail::identity::{Checksum, Inode, TailedFile};

/// A put that cannot be written waits at least so long before it is refused.
const REFUSE_AFTER: Duration = Duration::from_millis(100);
/// After so many failed reads of one place, what cannot be read is passed over as damaged.
const READ_TRIES: u32 = 3;
const READ_AGAIN: Duration = Duration::from_millis(500);
/// Events read from disk at once: up to this many bytes of the segment.
const LOAD_BYTES: u64 = if cfg!(test) { 200 } else { 512 * 1024 };
/// What a file's source may put ahead of the sync, at most.
const AHEAD_BYTES: usize = GROUP_BYTES / 2;
/// How long after a failed write the next one is tried.
const AGAIN: Duration = Duration::from_millis(200);

pub struct FileChannel<D: Disk> {
    core: Arc<Core<D>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    locks: Mutex<Vec<std::fs::File>>,
}

/// What the channel's threads share.
pub(super) struct Core<D: Disk> {
    pub(super) name: String,
    pub(super) place: Arc<Place<D>>,
    pub(super) state: Mutex<State>,
    pub(super) limits: Mutex<Limits>,
    pub(super) segments: Segments,
    /// Something is there to write.
    pub(super) work: Condvar,
    room: Notify,
    data: Notify,
    /// Putters wait for room in the order they came.
    turn: tokio::sync::Mutex<()>,
    loading: Arc<tokio::sync::Mutex<Reading>>,
    pub(super) writer: Mutex<Writer<D>>,
    /// The channel, as a file whose positions are event numbers: what a transactional sink remembers of it.
    file: Arc<TailedFile>,
    plain: Arc<Origin>,
}

#[derive(Default)]
struct Reading {
    failed: u32,
}

impl FileChannel<RealDisk> {
    /// With its directories made and locked.
    pub fn open_locked(name: &str, place: Place<RealDisk>, limits: Limits) -> anyhow::Result<Self> {
        let mut locks = Vec::new();
        let data = place.data.iter().map(|directory| ("dataDirs", directory));
        for (property, directory) in std::iter::once(("checkpointDir", &place.checkpoint)).chain(data) {
            let made = place.disk.create_dir_all(directory);
            made.map_err(|error| Unusable { property, directory: directory.clone(), error })?;
            locks.push(lock(property, directory)?);
        }
        warn_of_flume(name, &place);
        let channel = Self::open(name, place, limits, true)?;
        *channel.locks.lock() = locks;
        Ok(channel)
    }
}

/// Flume's own files look different and are not read.
fn warn_of_flume(name: &str, place: &Place<RealDisk>) {
    for directory in &place.data {
        let names = place.disk.list(directory).unwrap_or_default();
        if names.iter().any(|name| name.strip_prefix("log-").is_some_and(|rest| rest.parse::<u64>().is_ok())) {
            let directory = directory.display();
            tracing::warn!(channel = name, %directory, "Flume's own log files are here; their events are not read; `millrace-collector channel drain FILE --flume` gives them out, then remove the logs");
        }
    }
}

impl<D: Disk> FileChannel<D> {
    /// Recovers what is in `place` and begins a new segment. Without `thread` nothing is written until [`Self::step`].
    pub fn open(name: &str, place: Place<D>, limits: Limits, thread: bool) -> anyhow::Result<Self> {
        let started = Moment::now();
        Point::RecoveryBegun.reach();
        let facts = place.facts()?;
        let mut decision = recovery::decide(&facts)?;
        if !limits.remembers {
            decision.marks.clear();
        }
        Point::RecoveryDecided.reach();
        let place = Arc::new(place);
        settle(name, &place, &decision)?;
        for directory in &place.data {
            place.disk.sync_dir(directory).map_err(|error| anyhow::anyhow!("{}: {error}", directory.display()))?;
        }
        let mut log = Log::new(place.clone(), &decision, limits.segment_bytes_max());
        let mut acks = AckFile::new(place.clone(), decision.channel);
        // What a process left in the page cache was read, and counts from here on: it must be on disk like the rest, before
        // a sink is given it or a source is told that it is here. Where all is delivered, a sync will do.
        for kept in &decision.segments {
            let unsealed = facts.segments.iter().any(|segment| segment.id == kept.id && segment.scan.is_some());
            if unsealed && !decision.unsure.contains(&kept.id) {
                let synced = place.open(kept).and_then(|file| file.sync());
                synced.map_err(|error| anyhow::anyhow!("{}: {error}", place.path(kept.id, kept.directory).display()))?;
            }
        }
        let secured = log.secure();
        let begun = log.begin_segment();
        let noted = acks.write(&decision.acked).map_err(|error| Trouble::of(&error, &place.checkpoint));
        // A full disk is waited for; anything else should be looked at before events are taken in.
        let trouble = secured.and(begun).and(noted).err();
        if let Some(Trouble::Failed(reason)) = &trouble {
            anyhow::bail!("{reason}");
        }
        let segments = log.segments.clone();
        let (used, first, last) = {
            let segments = segments.lock();
            let live: u64 = segments.iter().map(|segment| decision.acked.missing(segment.first, segment.next)).sum();
            (usize::try_from(live)?, segments.first().copied(), segments.last().copied())
        };
        let cursor = |number, segment, offset| Cursor { segment, offset, number };
        let cold = first.filter(|_| used > 0).map(|first| cursor(first.first, first.id, format::HEADER_BYTES as u64));
        let end = last.map_or(cursor(decision.next, 0, 0), |last| cursor(decision.next, last.id, last.len));
        let mut state = State::new(decision.acked.clone(), used, cold, end);
        state.traffic.damaged = decision.lost.iter().map(|lost| lost.events).sum();
        state.disk_bytes = log.bytes();
        state.trouble = trouble;
        // Named so that no tailed file can be meant.
        let nowhere = Inode { device: 0, number: 0 };
        let file = Arc::new(TailedFile::new(decision.channel, format!("file channel {name}").into(), nowhere, Checksum::default()));
        let plain = Arc::new(Origin::of_file(file.clone(), None));
        let core = Arc::new(Core {
            name: name.to_owned(),
            place,
            state: Mutex::new(state),
            limits: Mutex::new(limits),
            segments,
            work: Condvar::new(),
            room: Notify::new(),
            data: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            loading: Arc::default(),
            writer: Mutex::new(Writer::new(log, acks, if thread { AGAIN } else { Duration::ZERO })),
            file,
            plain,
        });
        Point::RecoveryDone.reach();
        tracing::info!(channel = name, events = used, segments = facts.segments.len(), took = ?started.elapsed(), "file channel is open");
        let thread = match thread {
            true => {
                let core = core.clone();
                Some(std::thread::Builder::new().name(format!("channel {name}")).spawn(move || core.write_on())?)
            }
            false => None,
        };
        Ok(Self { core, thread: Mutex::new(thread), locks: Mutex::default() })
    }

    pub fn set_limits(&self, limits: Limits) {
        *self.core.limits.lock() = limits;
        self.core.work.notify_one();
        self.core.room.notify_one();
    }

    /// One round of writing.
    #[cfg(test)]
    pub(super) fn step(&self) {
        let _ended = self.core.step();
    }

    fn end(&self) {
        self.core.state.lock().closed = true;
        self.core.work.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!(channel = self.core.name, "the writing thread of the channel panicked");
        }
        self.locks.lock().clear();
    }
}

impl<D: Disk> Drop for FileChannel<D> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Says what was decided, and moves what is in the way.
fn settle<D: Disk>(name: &str, place: &Place<D>, decision: &Decision) -> anyhow::Result<()> {
    for lost in &decision.lost {
        tracing::error!(channel = name, events = lost.events, segment = lost.before, "events before this segment are missing: lost");
    }
    if let Some((segment, bytes)) = decision.cut {
        tracing::info!(channel = name, segment, bytes, "an incomplete put at the end was cut off; it was never acknowledged");
    }
    for &(id, directory, why) in &decision.aside {
        let path = place.path(id, directory);
        let aside = path.with_extension("log.aside");
        tracing::error!(channel = name, file = %path.display(), moved = %aside.display(), "segment {why}; it is not read");
        place.disk.rename(&path, &aside).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Point::RecoveryMovedAside.reach();
    }
    let mut remove: Vec<_> = decision.remove.iter().map(|&(id, directory)| place.path(id, directory)).collect();
    for directory in &place.data {
        let copies = place.disk.list(directory)?.into_iter().filter(|name| name.ends_with(COPY));
        remove.extend(copies.map(|name| directory.join(name)));
    }
    for path in remove {
        place.disk.remove(&path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Point::RecoveryRemoved.reach();
    }
    Ok(())
}

impl<D: Disk> Core<D> {
    pub(super) fn wake_room(&self) {
        self.room.notify_one();
    }

    pub(super) fn wake_data(&self) {
        self.data.notify_one();
    }

    /// As it leaves the channel: its source has nothing more to do with it, its number is its position.
    pub(super) fn own(&self, number: u64, event: Event, origin: &Arc<Origin>) -> Event {
        Event { number, end: number + 1, origin: Some(origin.clone()), ..event }
    }

    pub(super) fn origin(&self, trace: Option<&str>) -> Arc<Origin> {
        match trace {
            None => self.plain.clone(),
            Some(trace) => Arc::new(Origin::of_file(self.file.clone(), Some(trace.to_owned()))),
        }
    }

    fn try_take(&self, max: usize) -> Vec<Event> {
        let mut state = self.state.lock();
        let events = state.take(max);
        let more = state.has_more();
        drop(state);
        if more {
            self.data.notify_one();
        }
        events
    }

    /// Reads the next events from disk. True when there may be more to take now.
    fn load(&self, reading: &mut Reading) -> bool {
        let (cold, end) = {
            let state = self.state.lock();
            (state.cold, state.end)
        };
        let Some(cursor) = cold else { return true };
        let read = self.read(cursor, end, reading.failed >= READ_TRIES);
        let mut state = self.state.lock();
        match read {
            Ok((events, on, gaps)) => {
                Point::TakeRead.reach();
                reading.failed = 0;
                state.unreadable = None;
                for Gap { segment, offset, from, to } in gaps {
                    let events = state.gone(from, to);
                    if events > 0 {
                        state.traffic.damaged += events;
                        let channel = &self.name;
                        tracing::error!(channel, segment, offset, events, first = from, "damaged events passed over: lost");
                    }
                }
                let events = events.into_iter().filter(|event| !state.acked.contains(event.number)).collect();
                state.loaded(events, on);
                drop(state);
                self.work.notify_one();
                self.room.notify_one();
                true
            }
            Err(error) => {
                reading.failed += 1;
                if state.unreadable.is_none() {
                    tracing::error!(channel = self.name, segment = cursor.segment, offset = cursor.offset, %error, "cannot read; trying again");
                }
                state.unreadable = Some(format!("segment {} cannot be read: {error}", cursor.segment));
                false
            }
        }
    }

    /// From the cursor on, and never beyond `end`: what comes after it is given to the queue when it is durable.
    fn read(&self, cursor: Cursor, end: Cursor, lossy: bool) -> std::io::Result<(Vec<Event>, Cursor, Vec<Gap>)> {
        let (segment, after) = {
            let segments = self.segments.lock();
            let mut from = segments.iter().filter(|segment| (cursor.segment..=end.segment).contains(&segment.id));
            (from.next().copied(), from.next().copied())
        };
        let Some(mut segment) = segment else { return Ok((Vec::new(), end, Vec::new())) };
        if segment.id == end.segment {
            (segment.len, segment.next) = (end.offset, end.number.min(segment.next));
        }
        let cursor = if segment.id == cursor.segment {
            cursor
        } else {
            Cursor { segment: segment.id, offset: format::HEADER_BYTES as u64, number: segment.first }
        };
        let file = match self.place.open(&segment) {
            Ok(file) => file,
            // Somebody removed it.
            Err(_) if lossy => return Ok((Vec::new(), self.behind(cursor, after), vec![Gap::of(cursor, segment.next)])),
            Err(error) => return Err(error),
        };
        let (mut events, mut gaps) = (Vec::new(), Vec::new());
        let mut walk = Walk::new(&file, cursor.offset, segment.len, cursor.number..segment.next.saturating_add(1)).lossy(lossy);
        let mut origin = self.plain.clone();
        let mut on = cursor;
        let mut damaged = false;
        while walk.offset() - cursor.offset < LOAD_BYTES {
            let Some(found) = walk.advance()? else {
                if walk.expected() < segment.next {
                    gaps.push(Gap::of(on, segment.next));
                }
                return Ok((events, self.behind(Cursor { offset: segment.len, number: segment.next, ..on }, after), gaps));
            };
            match found {
                Found::Damaged { .. } => damaged = true,
                Found::Record { number, flags, bytes, content, end } => {
                    if number > on.number {
                        gaps.push(Gap::of(on, number));
                    }
                    on = Cursor { offset: end, number: walk.expected(), ..on };
                    let Some(decoded) = format::decode(&bytes, flags, content).filter(|_| flags & format::NOTE == 0) else { continue };
                    // After damage nobody knows whose trace it was.
                    if !decoded.same_trace || std::mem::take(&mut damaged) {
                        origin = self.origin(decoded.trace.as_deref());
                    }
                    events.push(self.own(number, Event { headers: decoded.headers, ..Event::new(decoded.body) }, &origin));
                }
            }
        }
        Ok((events, Cursor { offset: walk.offset(), ..on }, gaps))
    }

    /// A segment is read to its end: the next one's beginning, if there is one.
    fn behind(&self, end: Cursor, after: Option<recovery::Segment>) -> Cursor {
        after.map_or(end, |after| Cursor { segment: after.id, offset: format::HEADER_BYTES as u64, number: after.first })
    }

    fn full(&self, waited: Duration) -> PutError {
        let (state, limits) = (self.state.lock(), self.limits.lock());
        match &state.trouble {
            Some(Trouble::Failed(reason)) => PutError::Failed { reason: reason.clone() },
            _ => PutError::Full {
                used: state.used,
                capacity: limits.events_max,
                bytes: usize::try_from(state.disk_bytes).unwrap_or(usize::MAX),
                bytes_max: limits.bytes_max,
                waited,
            },
        }
    }
}

/// Numbers that should be there and are not.
struct Gap {
    segment: u64,
    offset: u64,
    from: u64,
    to: u64,
}

impl Gap {
    fn of(at: Cursor, to: u64) -> Self {
        Self { segment: at.segment, offset: at.offset, from: at.number, to }
    }
}

#[async_trait]
impl<D: Disk> Channel for FileChannel<D> {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        let core = &self.core;
        let limits = *core.limits.lock();
        core.state.lock().traffic.put_attempts += events.len() as u64;
        if events.len() > limits.transaction_max {
            return Err(PutError::BatchTooLarge { events: events.len(), max: limits.transaction_max });
        }
        if events.is_empty() {
            return Ok(());
        }
        let bytes = events.iter().map(|event| format::record_size(&event.headers, event.body.len())).sum();
        let awaited = events.iter().all(|event| event.origin.as_ref().is_some_and(|origin| origin.is_awaited()));
        let deadline = Instant::now() + limits.keep_alive;
        let (id, mut done) = {
            let Ok(_turn) = timeout_at(deadline, core.turn.lock()).await else { return Err(core.full(limits.keep_alive)) };
            loop {
                let room = core.room.notified();
                {
                    let mut state = core.state.lock();
                    if state.closed {
                        return Err(PutError::Failed { reason: "the channel is closed".into() });
                    }
                    // What is larger than the whole channel would otherwise wait for ever.
                    if state.used + events.len() <= core.limits.lock().events_max || state.used == 0 {
                        let (sender, done) = oneshot::channel();
                        state.next_id += 1;
                        let id = state.next_id;
                        // The source goes on reading while the events before are synced; its position waits for the acknowledgement.
                        let ahead = awaited && state.trouble.is_none() && state.pending_bytes + bytes <= AHEAD_BYTES;
                        state.used += events.len();
                        state.pending_bytes += bytes;
                        let done_to = if ahead { None } else { Some(sender) };
                        state.pending.push_back(Pending { id, events: std::mem::take(events), bytes, done: done_to });
                        core.work.notify_one();
                        if ahead {
                            return Ok(());
                        }
                        break (id, done);
                    }
                }
                if timeout_at(deadline, room).await.is_err() {
                    return Err(core.full(limits.keep_alive));
                }
            }
        };
        let mut refuse_at = deadline.max(Instant::now() + REFUSE_AFTER);
        loop {
            tokio::select! {
                biased;
                result = &mut done => {
                    return result.map_err(|_| PutError::Failed { reason: "the channel was closed".into() });
                }
                () = sleep_until(refuse_at) => {}
            }
            let withdrawn = {
                let mut state = core.state.lock();
                if state.trouble.is_some() || state.closed { state.withdraw(id) } else { None }
            };
            if let Some(withdrawn) = withdrawn {
                *events = withdrawn;
                core.room.notify_one();
                return Err(core.full(limits.keep_alive));
            }
            refuse_at = Instant::now() + REFUSE_AFTER;
        }
    }

    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken {
        let deadline = Instant::now() + wait;
        let max = max.min(self.core.limits.lock().transaction_max);
        loop {
            let data = self.core.data.notified();
            let events = self.core.try_take(max);
            if !events.is_empty() {
                Point::TakeGiven.reach();
                return Taken::new(events, self.clone());
            }
            if self.core.state.lock().cold.is_some() {
                let core = self.core.clone();
                let Ok(mut reading) = timeout_at(deadline + READ_AGAIN, core.loading.clone().lock_owned()).await else {
                    return Taken::new(Vec::new(), self.clone());
                };
                // Files are read in blocking calls. It goes on if this call is dropped, and what it read waits.
                let loaded = tokio::task::spawn_blocking(move || core.load(&mut reading)).await.unwrap_or(false);
                if loaded {
                    continue;
                }
                tokio::time::sleep(READ_AGAIN).await;
            } else if timeout_at(deadline, data).await.is_ok() {
                continue;
            }
            if Instant::now() >= deadline {
                return Taken::new(Vec::new(), self.clone());
            }
        }
    }

    fn committed(&self, events: &[Event]) {
        self.core.state.lock().committed(events);
        Point::TakeCommitted.reach();
        self.core.work.notify_one();
        self.core.room.notify_one();
    }

    fn returned(&self, events: Vec<Event>) {
        self.core.state.lock().returned(events);
        self.core.data.notify_one();
    }

    fn transaction_capacity(&self) -> usize {
        self.core.limits.lock().transaction_max
    }

    fn fill(&self) -> Fill {
        let (state, limits) = (self.core.state.lock(), self.core.limits.lock());
        let bytes = usize::try_from(state.disk_bytes).unwrap_or(usize::MAX);
        // An empty channel is empty, whatever its last segment holds.
        let bytes = if state.used == 0 { 0 } else { bytes };
        Fill { events: state.used, events_max: limits.events_max, bytes, bytes_max: limits.bytes_max }
    }

    fn traffic(&self) -> Traffic {
        self.core.state.lock().traffic
    }

    fn reconfigure(&self, component: &Component) {
        self.set_limits(Limits::of(component));
    }

    fn at_risk(&self) -> usize {
        0
    }

    fn trouble(&self) -> Option<String> {
        let state = self.core.state.lock();
        let trouble = state.trouble.as_ref().map(|trouble| match trouble {
            Trouble::NoSpace(reason) => format!("no room on disk, puts wait: {reason}"),
            Trouble::Failed(reason) => format!("cannot write, puts wait: {reason}"),
        });
        trouble.or_else(|| state.unreadable.clone())
    }

    fn close(&self) {
        self.end();
    }
}

impl<D: Disk> Core<D> {
    /// The thread that writes, until the channel is closed.
    fn write_on(self: Arc<Self>) {
        loop {
            let flow = self.step();
            if flow.is_break() {
                return;
            }
            let pause = self.writer.lock().pause();
            let mut state = self.state.lock();
            let ready = |state: &State| (!state.pending.is_empty() && state.trouble.is_none()) || state.acked_new || state.closed;
            if !ready(&state) {
                self.work.wait_for(&mut state, pause);
            }
        }
    }

    fn step(&self) -> ControlFlow<()> {
        self.writer.lock().step(self)
    }
}
