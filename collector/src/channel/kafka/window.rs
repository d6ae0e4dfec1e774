//! What was read and is not through: what waits to be taken, what sinks hold, and which offsets may be committed.
//!
//! Events leave in the order they came, so an offset is due when everything read before it is delivered. What was read
//! in a partition's earlier tenure is never due, and is not given out any more: whoever has the partition reads it again.

use std::collections::{BTreeMap, VecDeque};

use service_kit::kafka::TopicPartition;

use crate::event::Event;

#[derive(Default)]
pub(super) struct Window {
    /// Ascending by number.
    waiting: VecDeque<Event>,
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    bytes: usize,
    due: BTreeMap<TopicPartition, (u64, i64)>,
}

struct Entry {
    partition: TopicPartition,
    tenure: u64,
    /// The offset behind it.
    next: i64,
    bytes: usize,
    done: bool,
}

impl Window {
    pub(super) fn events(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `None`: a record that is no event, and was put aside.
    pub(super) fn add(&mut self, partition: &TopicPartition, tenure: u64, offset: i64, event: Option<Event>) {
        let number = self.first + self.entries.len() as u64;
        let bytes = event.as_ref().map_or(0, Event::size);
        self.bytes += bytes;
        self.entries.push_back(Entry { partition: partition.clone(), tenure, next: offset + 1, bytes, done: event.is_none() });
        self.waiting.extend(event.map(|event| Event { number, ..event }));
        self.settle();
    }

    pub(super) fn take(&mut self, max: usize) -> Vec<Event> {
        self.waiting.drain(..max.min(self.waiting.len())).collect()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn committed(&mut self, events: &[Event]) {
        for event in events {
            if let Some(entry) = self.entry(event.number) {
                entry.done = true;
            }
        }
        self.settle();
    }

    pub(super) fn returned(&mut self, events: Vec<Event>) {
        for event in events.into_iter().rev() {
            // Done: its partition went meanwhile.
            if self.entry(event.number).is_some_and(|entry| !entry.done) {
                let at = self.waiting.partition_point(|waiting| waiting.number < event.number);
                self.waiting.insert(at, event);
            }
        }
    }

    /// Forgets what was read in other tenures than the present ones.
    pub(super) fn keep(&mut self, tenure: impl Fn(&TopicPartition) -> Option<u64>) {
        for entry in &mut self.entries {
            if !entry.done && tenure(&entry.partition) != Some(entry.tenure) {
                entry.done = true;
            }
        }
        let (entries, first) = (&self.entries, self.first);
        let is_done = |number: u64| entries.get(index(number, first)).is_none_or(|entry| entry.done);
        self.waiting.retain(|event| !is_done(event.number));
        self.settle();
        self.due.retain(|partition, (known, _)| tenure(partition) == Some(*known));
    }

    /// Offsets that may be committed: what [`Self::keep`] has left of them.
    pub(super) fn due(&self) -> Vec<(TopicPartition, i64)> {
        self.due.iter().map(|(partition, (_, next))| (partition.clone(), *next)).collect()
    }

    /// These are committed.
    pub(super) fn settled(&mut self, offsets: &[(TopicPartition, i64)]) {
        for (partition, offset) in offsets {
            if self.due.get(partition).is_some_and(|(_, next)| next == offset) {
                self.due.remove(partition);
            }
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        self.entries.get_mut(index(number, self.first))
    }

    fn settle(&mut self) {
        while let Some(entry) = self.entries.pop_front_if(|entry| entry.done) {
            self.first += 1;
            self.bytes -= entry.bytes;
            self.due.insert(entry.partition, (entry.tenure, entry.next));
        }
    }
}

/// Where a number is; beyond the end when it is through.
fn index(number: u64, first: u64) -> usize {
    number.checked_sub(first).and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        /// So many records of a partition.
        Read(i32, u8),
        Take(usize),
        /// The nth open take.
        Commit(usize),
        Rollback(usize),
        /// The partition goes and comes back; it is read again from what was committed.
        Rebalance(i32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2i32, 1..6u8).prop_map(|(partition, count)| Step::Read(partition, count)),
            4 => (1..6usize).prop_map(Step::Take),
            3 => (0..3usize).prop_map(Step::Commit),
            2 => (0..3usize).prop_map(Step::Rollback),
            1 => (0..2i32).prop_map(Step::Rebalance),
        ]
    }

    proptest! {
        /// Whatever happens: no offset is committed before everything below it is delivered, order is kept, and in the end all is delivered.
        #[test]
        fn offsets_are_committed_behind_deliveries(steps in prop::collection::vec(step(), 1..80)) {
            let partitions = [TopicPartition::new("t", 0), TopicPartition::new("t", 1)];
            let mut window = Window::default();
            let (mut position, mut tenures, mut committed) = ([0i64; 2], [0u64; 2], [0i64; 2]);
            let mut delivered: [BTreeSet<i64>; 2] = Default::default();
            let mut open: Vec<Vec<Event>> = Vec::new();
            let place = |event: &Event| -> (usize, i64) {
                let text = std::str::from_utf8(&event.body).unwrap();
                let (partition, offset) = text.split_once(' ').unwrap();
                (partition.parse().unwrap(), offset.parse().unwrap())
            };
            for step in steps.into_iter().chain([Step::Rebalance(0), Step::Read(0, 60), Step::Read(1, 60)]) {
                match step {
                    Step::Read(partition, count) => {
                        let at = partition as usize;
                        for _ in 0..count {
                            let offset = position[at];
                            position[at] += 1;
                            // Every seventh is no event.
                            let event = (offset % 7 != 6).then(|| Event::new(format!("{partition} {offset}")));
                            if event.is_none() {
                                delivered[at].insert(offset);
                            }
                            window.add(&partitions[at], tenures[at], offset, event);
                        }
                    }
                    Step::Take(max) => {
                        let taken = window.take(max);
                        prop_assert!(taken.is_sorted_by_key(|event| event.number));
                        open.push(taken);
                    }
                    Step::Commit(at) if at < open.len() => {
                        let taken = open.remove(at);
                        for event in &taken {
                            let (partition, offset) = place(event);
                            delivered[partition].insert(offset);
                        }
                        window.committed(&taken);
                    }
                    Step::Rollback(at) if at < open.len() => window.returned(open.remove(at)),
                    Step::Rebalance(partition) => {
                        tenures[partition as usize] += 1;
                        position[partition as usize] = committed[partition as usize];
                    }
                    Step::Commit(_) | Step::Rollback(_) => {}
                }
                window.keep(|partition| Some(tenures[partition.partition as usize]));
                let due = window.due();
                for (partition, next) in &due {
                    let at = partition.partition as usize;
                    prop_assert!((0..*next).all(|offset| delivered[at].contains(&offset)), "{next} of {at}");
                    prop_assert!(*next >= committed[at]);
                    committed[at] = *next;
                }
                window.settled(&due);
                prop_assert!(window.due().is_empty());
            }
            for taken in open {
                window.returned(taken);
            }
            let rest = window.take(usize::MAX);
            window.committed(&rest);
            window.keep(|partition| Some(tenures[partition.partition as usize]));
            for (partition, next) in window.due() {
                committed[partition.partition as usize] = next;
            }
            prop_assert_eq!((committed, window.events(), window.bytes()), (position, 0, 0));
        }
    }
}
