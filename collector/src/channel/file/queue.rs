//! What is in the channel, in memory: the next events to take, and where the others are on disk.
//!
//! While sinks keep up, events go from the put to the take in memory. When more than `memoryBytes` wait, they stay on disk
//! alone and are read from there in their order ("cold"), until the reader has caught up.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::acks::Acked;
use super::log::Trouble;
use crate::channel::Traffic;
use crate::event::Event;

/// A put that waits for its sync.
pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) events: Vec<Event>,
    pub(super) bytes: usize,
    /// Who waits for it. Nobody waits for events whose source holds its position back until they are acknowledged.
    pub(super) done: Option<oneshot::Sender<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// The next number to come.
    pub(super) number: u64,
}

pub(super) struct State {
    /// In the order of their numbers; all that is durable and not here is taken, gone, or cold.
    front: VecDeque<Event>,
    front_bytes: usize,
    /// Where reading from disk goes on, while something is there that is not in `front`.
    pub(super) cold: Option<Cursor>,
    /// Where what is durable ends.
    pub(super) end: Cursor,
    pub(super) acked: Acked,
    /// Changed since it was noted on disk.
    pub(super) acked_new: bool,
    /// Events in the channel: durable and not gone, and those being put.
    pub(super) used: usize,
    pub(super) pending: VecDeque<Pending>,
    pub(super) pending_bytes: usize,
    pub(super) next_id: u64,
    pub(super) traffic: Traffic,
    /// Why nothing can be written now.
    pub(super) trouble: Option<Trouble>,
    /// Why nothing can be read now.
    pub(super) unreadable: Option<String>,
    pub(super) disk_bytes: u64,
    pub(super) closed: bool,
}

impl State {
    pub(super) fn new(acked: Acked, used: usize, cold: Option<Cursor>, end: Cursor) -> Self {
        Self {
            front: VecDeque::new(),
            front_bytes: 0,
            cold,
            end,
            acked,
            acked_new: false,
            used,
            pending: VecDeque::new(),
            pending_bytes: 0,
            next_id: 0,
            traffic: Traffic::default(),
            trouble: None,
            unreadable: None,
            disk_bytes: 0,
            closed: false,
        }
    }

    /// Events that became durable, from `at` on; `end` is where they end.
    pub(super) fn publish(&mut self, events: Vec<Event>, at: Cursor, end: Cursor, memory_bytes: usize) {
        // A gap between numbers is nobody's.
        if at.number > self.end.number {
            self.acked.insert(self.end.number, at.number);
        }
        self.end = end;
        self.traffic.put_successes += events.len() as u64;
        if self.cold.is_some() {
            return;
        }
        if self.front_bytes >= memory_bytes {
            self.cold = Some(at);
            return;
        }
        self.extend(events);
    }

    /// Events read from disk, and where reading goes on.
    pub(super) fn loaded(&mut self, events: Vec<Event>, on: Cursor) {
        self.cold = (on.segment != self.end.segment || on.offset < self.end.offset).then_some(on);
        self.extend(events);
    }

    fn extend(&mut self, events: Vec<Event>) {
        self.front_bytes += events.iter().map(Event::size).sum::<usize>();
        self.front.extend(events);
    }

    pub(super) fn take(&mut self, max: usize) -> Vec<Event> {
        let count = max.min(self.front.len());
        let events: Vec<Event> = self.front.drain(..count).collect();
        self.front_bytes -= events.iter().map(Event::size).sum::<usize>();
        self.traffic.take_attempts += count as u64;
        events
    }

    pub(super) fn has_more(&self) -> bool {
        !self.front.is_empty() || self.cold.is_some()
    }

    pub(super) fn committed(&mut self, events: &[Event]) {
        for run in events.chunk_by(|a, b| a.number + 1 == b.number) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                self.gone(first.number, last.number + 1);
            }
        }
        self.traffic.take_successes += events.len() as u64;
    }

    /// Events that are in the channel no more.
    pub(super) fn gone(&mut self, from: u64, to: u64) -> u64 {
        let events = self.acked.missing(from, to);
        self.acked.insert(from, to);
        self.acked_new = true;
        self.used = self.used.saturating_sub(usize::try_from(events).unwrap_or(usize::MAX));
        events
    }

    /// Two takes may come back in any order: numbers say where each belongs, nearly always at the head.
    pub(super) fn returned(&mut self, events: Vec<Event>) {
        self.front_bytes += events.iter().map(Event::size).sum::<usize>();
        for event in events.into_iter().rev() {
            let at = self.front.partition_point(|queued| queued.number < event.number);
            self.front.insert(at, event);
        }
    }

    /// Takes back a put that is not being written yet.
    pub(super) fn withdraw(&mut self, id: u64) -> Option<Vec<Event>> {
        let at = self.pending.iter().position(|pending| pending.id == id)?;
        let pending = self.pending.remove(at)?;
        self.used -= pending.events.len();
        self.pending_bytes -= pending.bytes;
        Some(pending.events)
    }

    pub(super) fn next_pending(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.pending_bytes -= pending.bytes;
        Some(pending)
    }

    /// Not written after all: the next to be.
    pub(super) fn pend_again(&mut self, pending: Pending) {
        self.pending_bytes += pending.bytes;
        self.pending.push_front(pending);
    }
}
