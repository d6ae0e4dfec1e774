//! Brings a client back that has thrown away all of its brokers.
//!
//! A broker that is fenced for a moment answers a question for metadata with topics and without brokers. librdkafka 2.12 then drops every
//! broker it knows, begins to go through `bootstrap.servers` again, takes that very answer for its success, stops, and believes for
//! ever that it has begun (`rk_rebootstrap_in_progress`; confluentinc/librdkafka issue 5301). Nothing but naming the servers anew helps.

use std::ffi::CString;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::bindings;
use rdkafka::client::{Client, ClientContext};
use tracing::debug;

/// From the loss of all brokers to the first try: librdkafka finds most of them again by itself.
const FIRST: Duration = Duration::from_secs(3);
/// Longest time between two tries. librdkafka keeps each list it is given.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a client has been without brokers.
#[derive(Default)]
pub(super) struct Rescue(Mutex<Option<Lost>>);

#[derive(Clone, Copy)]
struct Lost {
    due: Instant,
    pause: Duration,
}

impl Rescue {
    pub(super) fn lost(&self, now: Instant) {
        self.0.lock().get_or_insert(Lost { due: now + FIRST, pause: FIRST });
    }

    pub(super) fn found(&self) {
        *self.0.lock() = None;
    }

    /// Whether to try now; the next time is twice as far away.
    fn is_due(&self, now: Instant) -> bool {
        match &mut *self.0.lock() {
            Some(lost) if now >= lost.due => {
                lost.pause = (2 * lost.pause).min(PAUSE_MAX);
                lost.due = now + lost.pause;
                true
            }
            _ => false,
        }
    }

    /// To be called now and then, by whoever has the client; brokers that it knows are not added again.
    #[expect(unsafe_code, reason = "the `rdkafka` crate has no call for it")]
    pub(super) fn help<C: ClientContext>(&self, client: &Client<C>, servers: impl FnOnce() -> Vec<String>) {
        if !self.is_due(Instant::now()) {
            return;
        }
        let Ok(list) = CString::new(servers().join(",")) else { return };
        // SAFETY: the client lives for as long as it is borrowed; the list is a C string, which librdkafka copies.
        let added = unsafe { bindings::rd_kafka_brokers_add(client.native_ptr(), list.as_ptr()) };
        debug!(added, "a Kafka client without brokers is told its servers again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_less_and_less_often_until_a_broker_answers() {
        let (rescue, start) = (Rescue::default(), Instant::now());
        assert!(!rescue.is_due(start + Duration::from_secs(3_600)), "nothing is lost");
        rescue.lost(start);
        rescue.lost(start + Duration::from_secs(2));
        let tries: Vec<u64> = (0..200).filter(|second| rescue.is_due(start + Duration::from_secs(*second))).collect();
        assert_eq!(tries, [3, 9, 21, 45, 93, 153]);
        rescue.found();
        assert!(!rescue.is_due(start + Duration::from_secs(3_600)));
        rescue.lost(start);
        assert!(rescue.is_due(start + FIRST));
    }
}
