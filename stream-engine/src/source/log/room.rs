//! How many bytes a log may hold: who wants to add some waits until there is room.

use std::sync::Arc;

use metrics::Gauge;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(crate) struct Room {
    max: u64,
    held: Mutex<u64>,
    freed: Notify,
    gauge: Gauge,
}

/// A part of the room, given back when it is dropped.
pub(crate) struct Held {
    room: Arc<Room>,
    bytes: u64,
}

impl Room {
    pub(in crate::source) fn new(max: u64, gauge: Gauge) -> Arc<Self> {
        gauge.set(0.0);
        Arc::new(Self { max, held: Mutex::new(0), freed: Notify::new(), gauge })
    }

    /// Waits for room. What is larger than all of it gets all of it.
    pub(in crate::source) async fn take(self: &Arc<Self>, bytes: u64) -> Held {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Before the look, so that what is freed right after it is seen.
            freed.as_mut().enable();
            if self.add(|held| held == 0 || held + bytes <= self.max, bytes) {
                return Held { room: self.clone(), bytes };
            }
            freed.await;
        }
    }

    /// What is there already, whether it fits or not.
    pub(in crate::source) fn force(&self, bytes: u64) {
        self.add(|_| true, bytes);
    }

    fn add(&self, fits: impl Fn(u64) -> bool, bytes: u64) -> bool {
        let mut held = self.held.lock();
        let fits = fits(*held);
        if fits {
            *held += bytes;
            self.gauge.set(*held as f64);
        }
        fits
    }

    pub(in crate::source) fn give(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut held = self.held.lock();
        debug_assert!(*held >= bytes);
        *held = held.saturating_sub(bytes);
        self.gauge.set(*held as f64);
        drop(held);
        self.freed.notify_waiters();
    }
}

impl Held {
    pub(in crate::source) fn nothing(room: &Arc<Room>) -> Self {
        Self { room: room.clone(), bytes: 0 }
    }

    pub(in crate::source) fn add(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// It stays held, until the bytes are given back. Gives how many.
    pub(in crate::source) fn keep(mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.give(self.bytes);
    }
}
