//! What the writing thread does in one round: notes deliveries, frees segments, and writes all waiting puts with one sync.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::acks::AckFile;
use super::channel::Core;
use super::disk::Disk;
use super::format::{self, Content, FileMark};
use super::log::{Log, Trouble};
use super::queue::{Cursor, Pending};
use crate::event::{Event, Origin, acknowledge};
use crate::fault::Point;

/// Bytes of the puts that share a sync, about; a single put may be larger. The writer waits for the disk most of the time, so
/// that a sync should cover what a fast source reads in the meantime.
pub(super) const GROUP_BYTES: usize = 4 << 20;
const IDLE: Duration = Duration::from_secs(3600);

pub(super) struct Writer<D: Disk> {
    log: Log<D>,
    acks: AckFile<D>,
    /// The last note of deliveries failed.
    acks_failed: bool,
    acks_synced: Instant,
    /// Since when something is written without sync.
    unsynced: Option<Instant>,
    try_at: Option<Instant>,
    again: Duration,
    buffer: Vec<u8>,
}

impl<D: Disk> Writer<D> {
    pub(super) fn new(log: Log<D>, acks: AckFile<D>, again: Duration) -> Self {
        Self { log, acks, acks_failed: false, acks_synced: Instant::now(), unsynced: None, try_at: None, again, buffer: Vec::new() }
    }

    /// How long there is nothing to do, if nobody brings work.
    pub(super) fn pause(&self) -> Duration {
        match () {
            () if self.try_at.is_some() || self.acks_failed => self.again,
            () if self.unsynced.is_some() || self.acks.is_unsynced() => self.again,
            () => IDLE,
        }
    }

    pub(super) fn step(&mut self, core: &Core<D>) -> ControlFlow<()> {
        let limits = *core.limits.lock();
        self.log.set_segment_bytes_max(limits.segment_bytes_max());
        let closed = core.state.lock().closed;
        self.note(core);
        if self.acks.is_unsynced() && (self.acks_synced.elapsed() >= limits.checkpoint_interval || self.frees_a_segment()) {
            self.sync_acks(core);
        }
        self.free(core);
        self.write(core);
        if self.unsynced.is_some_and(|since| closed || since.elapsed() >= limits.sync_interval) {
            self.unsynced = None;
            if let Err(trouble) = self.log.sync() {
                self.trouble(core, trouble);
            }
        }
        if !closed {
            return ControlFlow::Continue(());
        }
        self.note(core);
        if limits.checkpoint_on_close && self.acks.is_unsynced() {
            self.sync_acks(core);
        }
        // What cannot be written any more is refused.
        while core.state.lock().next_pending().is_some() {}
        Point::Closed.reach();
        ControlFlow::Break(())
    }

    fn note(&mut self, core: &Core<D>) {
        let acked = {
            let mut state = core.state.lock();
            if !std::mem::take(&mut state.acked_new) && !self.acks_failed {
                return;
            }
            state.acked.clone()
        };
        match self.acks.write(&acked) {
            Ok(()) => self.acks_failed = false,
            Err(error) => self.acks_trouble(core, &error),
        }
    }

    fn sync_acks(&mut self, core: &Core<D>) {
        self.acks_synced = Instant::now();
        if let Err(error) = self.acks.sync() {
            self.acks_trouble(core, &error);
        }
    }

    fn acks_trouble(&mut self, core: &Core<D>, error: &std::io::Error) {
        if !std::mem::replace(&mut self.acks_failed, true) {
            let channel = &core.name;
            tracing::error!(channel, %error, "deliveries cannot be noted; trying again. A crash before that repeats them");
        }
    }

    fn frees_a_segment(&self) -> bool {
        let first = self.log.segments.lock().first().copied();
        first.is_some_and(|first| first.next > self.acks.synced_below() && first.next <= self.acks.written_below())
    }

    fn free(&mut self, core: &Core<D>) {
        let gone_below = self.acks.synced_below();
        let removed = self.log.remove_below(gone_below).and_then(|removed| {
            // The last one goes too when it is large, or in the way.
            let large = self.log.bytes() > self.log.segment_bytes_max() / 2;
            let wanted = large || core.state.lock().trouble.is_some();
            Ok(removed > 0 || (wanted && self.log.remove_last(gone_below)?))
        });
        match removed {
            Ok(false) => {}
            Ok(true) => {
                core.state.lock().disk_bytes = self.log.bytes();
                self.try_at = None;
                core.wake_room();
            }
            Err(trouble) => {
                tracing::debug!(channel = core.name, ?trouble, "a delivered segment cannot be removed yet");
            }
        }
    }

    /// Writes what waits, as long as something waits.
    fn write(&mut self, core: &Core<D>) {
        if self.try_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        loop {
            let group = gather(core);
            if group.is_empty() {
                break;
            }
            match self.write_group(core, group) {
                Ok(()) => self.well(core),
                Err((group, trouble)) => {
                    let mut state = core.state.lock();
                    group.into_iter().rev().for_each(|pending| state.pend_again(pending));
                    drop(state);
                    self.trouble(core, trouble);
                    return;
                }
            }
        }
    }

    fn trouble(&mut self, core: &Core<D>, trouble: Trouble) {
        self.try_at = Some(Instant::now() + self.again);
        let mut state = core.state.lock();
        if state.trouble.as_ref() != Some(&trouble) {
            tracing::error!(channel = core.name, ?trouble, "cannot write; puts wait, and it is tried again");
            state.trouble = Some(trouble);
        }
    }

    fn well(&mut self, core: &Core<D>) {
        self.try_at = None;
        if core.state.lock().trouble.take().is_some() {
            tracing::info!(channel = core.name, "writing again");
        }
    }

    fn write_group(&mut self, core: &Core<D>, mut group: Vec<Pending>) -> Result<(), (Vec<Pending>, Trouble)> {
        let limits = *core.limits.lock();
        let bytes: usize = group.iter().map(|pending| pending.bytes).sum();
        let ready = self.has_room(core, bytes as u64).and_then(|()| self.log.prepare(bytes as u64));
        let first = match ready {
            Ok(first) => first,
            Err(trouble) => return Err((group, trouble)),
        };
        let (fresh, marks) = self.fresh(&group);
        self.buffer.clear();
        let mut number = first;
        for (pending, fresh) in group.iter().zip(&fresh) {
            number = encode(&mut self.buffer, number, &pending.events, fresh);
        }
        let count = number - first;
        Point::PutEncoded.reach();
        let ended = if count == 0 { None } else { Some(self.log.append(&self.buffer, count, &marks, limits.sync_each)) };
        let from = match ended {
            Some(Err(trouble)) => return Err((group, trouble)),
            Some(Ok(from)) => Some(from),
            None => None,
        };
        if from.is_some() && !limits.sync_each {
            self.unsynced.get_or_insert_with(Instant::now);
        }
        let mut owned = Vec::with_capacity(usize::try_from(count).unwrap_or_default());
        let mut repeated = 0;
        let mut number = first;
        for (pending, fresh) in group.iter_mut().zip(&fresh) {
            let mut last: Option<(Option<Arc<Origin>>, Arc<Origin>)> = None;
            for (event, _) in pending.events.iter_mut().zip(fresh).filter(|(_, fresh)| **fresh) {
                let same = last.as_ref().filter(|(old, _)| match (old, &event.origin) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (a, b) => a.is_none() && b.is_none(),
                });
                let origin = match same {
                    Some((_, origin)) => origin.clone(),
                    None => core.origin(trace_of(event)),
                };
                // The content moves; what is acknowledged below is the origin.
                let content = Event { headers: event.headers.take(), ..Event::new(std::mem::take(&mut event.body)) };
                owned.push(core.own(number, content, &origin));
                last = Some((event.origin.clone(), origin));
                number += 1;
            }
            repeated += fresh.iter().filter(|fresh| !**fresh).count();
        }
        {
            let mut state = core.state.lock();
            if let Some((segment, offset)) = from {
                let at = Cursor { segment, offset, number: first };
                let end = Cursor { segment, offset: offset + self.buffer.len() as u64, number };
                state.publish(owned, at, end, limits.memory_bytes);
            }
            state.used -= repeated;
            state.traffic.repeated += repeated as u64;
            state.disk_bytes = self.log.bytes();
        }
        Point::PutPublished.reach();
        core.wake_data();
        for pending in group.drain(..) {
            // Whoever has given up waiting was told nothing: its source gives the events again or knows that they are here.
            if pending.done.is_none_or(|done| done.send(()).is_ok()) {
                acknowledge(&pending.events);
            }
            Point::PutAnswered.reach();
        }
        if self.buffer.capacity() > 2 * GROUP_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    fn has_room(&mut self, core: &Core<D>, bytes: u64) -> Result<(), Trouble> {
        let limits = *core.limits.lock();
        let used = self.log.bytes();
        if used + bytes > limits.bytes_max as u64 && !self.is_empty(core) {
            return Err(Trouble::NoSpace(format!("the channel has {used} bytes on disk, maxBytes is {}", limits.bytes_max)));
        }
        let free = self.log.free_bytes()?;
        if free < limits.space_min.saturating_add(bytes) {
            let min = limits.space_min;
            return Err(Trouble::NoSpace(format!("{free} bytes are free where dataDirs are, minimumRequiredSpace is {min}")));
        }
        Ok(())
    }

    /// Nothing in it but what is being put.
    fn is_empty(&self, core: &Core<D>) -> bool {
        let acked = &core.state.lock().acked;
        self.log.segments.lock().iter().all(|segment| acked.missing(segment.first, segment.next) == 0)
    }

    /// Which events are not in the channel yet, and how far files are in it with them.
    fn fresh(&self, group: &[Pending]) -> (Vec<Vec<bool>>, Vec<FileMark>) {
        let mut reached: HashMap<u64, u64> = HashMap::new();
        let fresh = group.iter().map(|pending| {
            let before = reached.clone();
            let mark = |id: u64| before.get(&id).copied().unwrap_or_else(|| self.log.marks().of(id));
            let is_fresh = |event: &Event| match file_mark(event) {
                Some((id, end)) => {
                    let fresh = end > mark(id);
                    if fresh {
                        let reached = reached.entry(id).or_insert(end);
                        *reached = end.max(*reached);
                    }
                    fresh
                }
                None => true,
            };
            pending.events.iter().map(is_fresh).collect()
        });
        let fresh = fresh.collect();
        (fresh, reached.into_iter().collect())
    }
}

/// Waiting puts, in their order, that share a sync.
fn gather<D: Disk>(core: &Core<D>) -> Vec<Pending> {
    let mut state = core.state.lock();
    let mut group = Vec::new();
    let mut bytes = 0;
    while bytes < GROUP_BYTES
        && let Some(pending) = state.next_pending()
    {
        if pending.done.as_ref().is_some_and(oneshot::Sender::is_closed) {
            state.used -= pending.events.len();
            core.wake_room();
            continue;
        }
        bytes += pending.bytes;
        group.push(pending);
    }
    group
}

fn trace_of(event: &Event) -> Option<&str> {
    event.origin.as_ref()?.trace.as_deref()
}

fn file_mark(event: &Event) -> Option<FileMark> {
    let file = event.origin.as_ref()?.file.as_ref()?;
    (event.end > 0).then_some((file.id, event.end))
}

/// Appends a put's fresh events; gives the number after them.
fn encode(out: &mut Vec<u8>, first: u64, events: &[Event], fresh: &[bool]) -> u64 {
    let mut marks: Vec<FileMark> = Vec::new();
    let mut chosen = events.iter().zip(fresh).filter(|(_, fresh)| **fresh).map(|(event, _)| event).peekable();
    let (mut number, mut before): (u64, Option<Option<&str>>) = (first, None);
    while let Some(event) = chosen.next() {
        if let Some((id, end)) = file_mark(event) {
            match marks.iter_mut().find(|(known, _)| *known == id) {
                Some(mark) => mark.1 = mark.1.max(end),
                None => marks.push((id, end)),
            }
        }
        let trace = trace_of(event);
        let content = Content { trace, same_trace: before == Some(trace), headers: &event.headers, body: &event.body };
        format::encode(out, number, &content, chosen.peek().is_none().then_some(marks.as_slice()));
        before = Some(trace);
        number += 1;
    }
    number
}
