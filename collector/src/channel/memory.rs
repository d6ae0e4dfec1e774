//! The memory channel: a queue bounded in events and bytes. What is in it is lost with the process; tailed files are
//! read again from the last delivered line, so they lose nothing over it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use super::{Channel, Fill, PutError, Taken, Traffic};
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Channel,
    alias: Some("memory"),
    class: Some("org.apache.flume.channel.MemoryChannel"),
    doc: "Events in memory, bounded by count and bytes. Full means that sources wait.",
    properties: &[
        Property::integer(
            "capacity",
            1,
            100_000_000,
            Some("100"),
            "Events the channel holds, those a sink has taken and not yet delivered included.",
        ),
        Property::integer("transactionCapacity", 1, 100_000_000, Some("100"), "Events in one put or take. At most `capacity`."),
        Property::integer(
            "keep-alive",
            0,
            86_400,
            Some("3"),
            "Seconds a put waits for room before the source is told that the channel is full.",
        ),
        Property::integer(
            "byteCapacity",
            0,
            i64::MAX,
            Some("33554432"),
            "Bytes the channel holds: bodies and about 64 bytes an event. 0 is no bound. (Flume: 80 % of the heap, bodies only.) A single batch above it is let into an empty channel.",
        ),
        Property::integer(
            "byteCapacityBufferPercentage",
            0,
            99,
            Some("20"),
            "Share of `byteCapacity` left free for headers, in percent. Counts only where `byteCapacity` is set.",
        ),
    ],
    deprecated: &[],
    misspelt: &[
        ("transactioncapacity", "transactionCapacity"),
        ("keepAlive", "keep-alive"),
        ("keepalive", "keep-alive"),
        ("bytecapacity", "byteCapacity"),
    ],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component, _setup: super::Setup) -> anyhow::Result<Arc<dyn Channel>> {
    Ok(Arc::new(MemoryChannel::new(Limits::of(component))))
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events_max: usize,
    pub transaction_max: usize,
    pub bytes_max: usize,
    pub keep_alive: Duration,
}

impl Limits {
    fn of(component: &Component) -> Self {
        let bytes = component.count("byteCapacity");
        let spare = if component.set("byteCapacity").is_some() { component.count("byteCapacityBufferPercentage") } else { 0 };
        Self {
            events_max: component.count("capacity"),
            transaction_max: component.count("transactionCapacity"),
            bytes_max: if bytes == 0 { usize::MAX } else { bytes / 100 * (100 - spare.min(99)) },
            keep_alive: Duration::from_secs(component.count("keep-alive") as u64),
        }
    }
}

/// Places that an empty queue keeps.
const QUEUE_KEPT: usize = 16_384;
/// Places that a queue grows to at once: what is never touched costs nothing, and doubling leaves half as much unused behind.
const QUEUE_AT_ONCE: usize = 131_072;

pub struct MemoryChannel {
    state: Mutex<State>,
    /// Putters wait for room in the order they came, so that a large batch is not passed by small ones for ever.
    turn: tokio::sync::Mutex<()>,
    room: Notify,
    data: Notify,
}

struct State {
    queue: VecDeque<Event>,
    /// Taken and neither committed nor returned.
    out: usize,
    /// Of the queue and what is out.
    bytes: usize,
    next_number: u64,
    limits: Limits,
    traffic: Traffic,
}

impl State {
    fn used(&self) -> usize {
        self.queue.len() + self.out
    }

    fn make_place(&mut self, events: usize) {
        let needed = self.queue.len() + events;
        if needed > self.queue.capacity() && needed > QUEUE_KEPT && needed <= QUEUE_AT_ONCE {
            let places = needed.max(self.limits.events_max.min(QUEUE_AT_ONCE));
            self.queue.reserve_exact(places - self.queue.len());
        }
    }

    fn has_room(&self, events: usize, bytes: usize) -> bool {
        let fits = self.used() + events <= self.limits.events_max && self.bytes.saturating_add(bytes) <= self.limits.bytes_max;
        // What is larger than the whole channel would otherwise wait for ever.
        fits || self.used() == 0
    }
}

impl MemoryChannel {
    pub fn new(limits: Limits) -> Self {
        let state = State { queue: VecDeque::new(), out: 0, bytes: 0, next_number: 0, limits, traffic: Traffic::default() };
        Self { state: Mutex::new(state), turn: tokio::sync::Mutex::default(), room: Notify::new(), data: Notify::new() }
    }

    pub fn set_limits(&self, limits: Limits) {
        self.state.lock().limits = limits;
        self.room.notify_one();
    }

    /// Puts the batch if there is room now.
    fn try_put(&self, events: &mut Vec<Event>, bytes: usize) -> bool {
        let mut state = self.state.lock();
        if !state.has_room(events.len(), bytes) {
            return false;
        }
        state.make_place(events.len());
        state.bytes += bytes;
        state.traffic.put_successes += events.len() as u64;
        let mut number = state.next_number;
        state.queue.extend(events.drain(..).map(|event| {
            number += 1;
            Event { number, ..event }
        }));
        state.next_number = number;
        drop(state);
        self.data.notify_one();
        true
    }

    fn try_take(&self, max: usize) -> Vec<Event> {
        let mut state = self.state.lock();
        let count = max.min(state.limits.transaction_max).min(state.queue.len());
        let events: Vec<Event> = state.queue.drain(..count).collect();
        state.out += count;
        state.traffic.take_attempts += count as u64;
        let more = !state.queue.is_empty();
        if !more {
            // A full channel's queue is megabytes.
            state.queue.shrink_to(QUEUE_KEPT);
        }
        drop(state);
        if more {
            // Another sink may take what is left.
            self.data.notify_one();
        }
        events
    }
}

#[async_trait]
impl Channel for MemoryChannel {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        let bytes = events.iter().map(Event::size).sum();
        let keep_alive = {
            let mut state = self.state.lock();
            state.traffic.put_attempts += events.len() as u64;
            if events.len() > state.limits.transaction_max {
                return Err(PutError::BatchTooLarge { events: events.len(), max: state.limits.transaction_max });
            }
            state.limits.keep_alive
        };
        if events.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + keep_alive;
        let full = || {
            let state = self.state.lock();
            PutError::Full {
                used: state.used(),
                capacity: state.limits.events_max,
                bytes: state.bytes,
                bytes_max: state.limits.bytes_max,
                waited: keep_alive,
            }
        };
        let Ok(_turn) = timeout_at(deadline, self.turn.lock()).await else { return Err(full()) };
        loop {
            let room = self.room.notified();
            if self.try_put(events, bytes) {
                return Ok(());
            }
            if timeout_at(deadline, room).await.is_err() {
                return Err(full());
            }
        }
    }

    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken {
        let deadline = Instant::now() + wait;
        loop {
            let data = self.data.notified();
            let events = self.try_take(max);
            if !events.is_empty() || timeout_at(deadline, data).await.is_err() {
                return Taken::new(events, self.clone());
            }
        }
    }

    fn committed(&self, events: &[Event]) {
        let bytes: usize = events.iter().map(Event::size).sum();
        let mut state = self.state.lock();
        state.out -= events.len();
        state.bytes -= bytes;
        state.traffic.take_successes += events.len() as u64;
        drop(state);
        self.room.notify_one();
    }

    fn returned(&self, events: Vec<Event>) {
        let mut state = self.state.lock();
        state.out -= events.len();
        // Two takes may come back in any order: numbers say where each belongs, nearly always at the head.
        for event in events.into_iter().rev() {
            let at = state.queue.partition_point(|queued| queued.number < event.number);
            state.queue.insert(at, event);
        }
        drop(state);
        self.data.notify_one();
    }

    fn transaction_capacity(&self) -> usize {
        self.state.lock().limits.transaction_max
    }

    fn may_fail(&self) -> bool {
        false
    }

    fn fill(&self) -> Fill {
        let state = self.state.lock();
        Fill { events: state.used(), events_max: state.limits.events_max, bytes: state.bytes, bytes_max: state.limits.bytes_max }
    }

    fn traffic(&self) -> Traffic {
        self.state.lock().traffic
    }

    fn reconfigure(&self, component: &Component) {
        self.set_limits(Limits::of(component));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn channel(events_max: usize, transaction_max: usize, bytes_max: usize) -> Arc<MemoryChannel> {
        Arc::new(MemoryChannel::new(Limits { events_max, transaction_max, bytes_max, keep_alive: Duration::ZERO }))
    }

    fn events(from: u32, count: u32) -> Vec<Event> {
        (from..from + count).map(|number| Event::new(number.to_string())).collect()
    }

    fn bodies(taken: &Taken) -> Vec<u32> {
        taken.events().iter().map(|event| std::str::from_utf8(&event.body).unwrap().parse().unwrap()).collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u32),
        Take(usize),
        /// The nth open take.
        Commit(usize),
        Rollback(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u32..8).prop_map(Step::Put),
            3 => (1usize..8).prop_map(Step::Take),
            2 => (0usize..4).prop_map(Step::Commit),
            2 => (0usize..4).prop_map(Step::Rollback),
        ]
    }

    proptest! {
        /// Against a model: a sorted list of what waits, and what each open take holds.
        #[test]
        fn behaves_like_its_model(steps in prop::collection::vec(step(), 1..80), capacity in 1usize..20, transaction in 1usize..8) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async move {
                let channel = channel(capacity, transaction, usize::MAX);
                let (mut waiting, mut open, mut next) = (Vec::<u32>::new(), Vec::<(Taken, Vec<u32>)>::new(), 0u32);
                let mut delivered = Vec::new();
                for step in steps {
                    let used = waiting.len() + open.iter().map(|(_, held)| held.len()).sum::<usize>();
                    match step {
                        Step::Put(count) => {
                            let mut batch = events(next, count);
                            let result = channel.put(&mut batch).await;
                            if count as usize > transaction {
                                assert!(matches!(result, Err(PutError::BatchTooLarge { .. })));
                                assert_eq!(batch.len(), count as usize);
                            } else if used + count as usize <= capacity || used == 0 || count == 0 {
                                assert_eq!(result, Ok(()));
                                assert!(batch.is_empty());
                                waiting.extend(next..next + count);
                                next += count;
                            } else {
                                assert!(matches!(result, Err(PutError::Full { .. })));
                                assert_eq!(batch.len(), count as usize);
                            }
                        }
                        Step::Take(max) => {
                            let taken = channel.clone().take(max, Duration::ZERO).await;
                            let expected: Vec<u32> = waiting.drain(..max.min(transaction).min(waiting.len())).collect();
                            assert_eq!(bodies(&taken), expected);
                            open.push((taken, expected));
                        }
                        Step::Commit(at) if at < open.len() => {
                            let (taken, held) = open.remove(at);
                            taken.commit();
                            delivered.extend(held);
                        }
                        Step::Rollback(at) if at < open.len() => {
                            let (taken, held) = open.remove(at);
                            taken.rollback();
                            waiting.extend(held);
                            waiting.sort_unstable();
                        }
                        Step::Commit(_) | Step::Rollback(_) => {}
                    }
                    let used = waiting.len() + open.iter().map(|(_, held)| held.len()).sum::<usize>();
                    assert_eq!(channel.fill().events, used);
                }
                drop(open);
                let mut rest = Vec::new();
                loop {
                    let taken = channel.clone().take(3, Duration::ZERO).await;
                    if taken.is_empty() { break }
                    rest.extend(bodies(&taken));
                    taken.commit();
                }
                assert!(rest.is_sorted());
                delivered.extend(rest);
                delivered.sort_unstable();
                assert_eq!(delivered, (0..next).collect::<Vec<_>>());
                assert_eq!(channel.fill().bytes, 0);
                assert_eq!(channel.traffic().take_successes, u64::from(next));
            });
        }
    }

    #[tokio::test]
    async fn a_put_waits_for_room_and_a_take_for_data() {
        let keep_alive = Duration::from_millis(100);
        let channel = Arc::new(MemoryChannel::new(Limits { events_max: 2, transaction_max: 2, bytes_max: usize::MAX, keep_alive }));
        channel.put(&mut events(0, 2)).await.unwrap();
        let taken = channel.clone().take(2, Duration::ZERO).await;
        // Taken is not gone: only the commit makes room.
        let mut refused = events(2, 1);
        let started = Instant::now();
        assert!(matches!(channel.put(&mut refused).await, Err(PutError::Full { used: 2, capacity: 2, .. })));
        assert!(started.elapsed() >= keep_alive);
        assert_eq!(refused.len(), 1);
        let (mut late, taking) = (events(2, 1), channel.clone().take(9, Duration::from_secs(30)));
        let (put, ()) = tokio::join!(channel.put(&mut late), async { taken.commit() });
        put.unwrap();
        assert_eq!(bodies(&taking.await), [2]);

        let (waiting, ()) = tokio::join!(channel.clone().take(9, Duration::from_secs(30)), async {
            channel.put(&mut events(3, 1)).await.unwrap();
        });
        assert_eq!(bodies(&waiting), [2]);
    }

    #[tokio::test]
    async fn two_sinks_share_a_channel_and_neither_sleeps_while_there_is_data() {
        let channel = channel(1000, 1000, usize::MAX);
        let sink = |channel: Arc<MemoryChannel>| {
            tokio::task::spawn(async move {
                let mut seen = Vec::new();
                loop {
                    let taken = channel.clone().take(7, Duration::from_millis(300)).await;
                    if taken.is_empty() {
                        return seen;
                    }
                    seen.extend(bodies(&taken));
                    taken.commit();
                    tokio::task::yield_now().await;
                }
            })
        };
        let sinks = [sink(channel.clone()), sink(channel.clone())];
        channel.put(&mut events(0, 500)).await.unwrap();
        let mut all = Vec::new();
        for sink in sinks {
            let seen = sink.await.unwrap();
            assert!(!seen.is_empty());
            all.extend(seen);
        }
        all.sort_unstable();
        assert_eq!(all, (0..500).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn bytes_bound_it_too_and_what_is_larger_than_all_of_it_goes_through_alone() {
        let event = |size: usize| vec![Event::new(vec![b'x'; size])];
        let channel = channel(100, 10, 1000);
        channel.put(&mut event(500)).await.unwrap();
        assert!(matches!(channel.put(&mut event(500)).await, Err(PutError::Full { .. })));
        channel.clone().take(1, Duration::ZERO).await.commit();
        channel.put(&mut event(5000)).await.unwrap();
        assert!(channel.put(&mut event(1)).await.is_err());
        assert!(channel.fill().percent() > 100.0);
        channel.clone().take(1, Duration::ZERO).await.commit();
        assert_eq!(channel.fill().percent(), 0.0);
    }

    #[tokio::test]
    async fn a_dropped_take_waits_in_the_queue_again() {
        let channel = channel(10, 10, usize::MAX);
        channel.put(&mut events(0, 4)).await.unwrap();
        drop(channel.clone().take(2, Duration::ZERO).await);
        assert_eq!(bodies(&channel.clone().take(9, Duration::ZERO).await), [0, 1, 2, 3]);
    }
}
