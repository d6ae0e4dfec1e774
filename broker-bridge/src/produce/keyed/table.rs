//! What the two topics say of each key, as far as this replica has read them. Pure: records in, what may be done about a key out.
//!
//! A claim **stands** when no other claim of its key lies between what its maker had read (`seen`) and itself. Whoever made it finds exactly
//! that, because the key's entry is pinned from before its request first looks. Others may have forgotten an earlier claim and take one for standing that does not: they wait
//! for nothing then, which costs time. They never take a standing one for lost.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::record::{Claim, Outcome};

/// Bounds of the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long a result is given again.
    pub(super) age: Duration,
    /// How long a claim without a result is remembered; at least `age`.
    pub(super) keep: Duration,
    /// Records in all results.
    pub(super) records_max: usize,
    /// A result younger than this is not given up for others.
    pub(super) young: Duration,
}

/// What is to be done about a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Look {
    /// It is written.
    Done(Arc<Outcome>),
    /// Somebody writes it, or has died over it.
    Held(Holder),
    /// Nobody does, as far as is known up to this offset of the claims.
    Free { seen: i64 },
}

/// Who may write a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holder {
    /// Of the claim.
    pub(super) offset: i64,
    pub(super) replica: Arc<str>,
    pub(super) lanes: u32,
    /// When the claim was read here.
    pub(super) since: Instant,
}

pub(super) struct Table {
    limits: Limits,
    parts: Vec<Part>,
    keys: HashMap<Bytes, Entry>,
    /// Keys with a result, oldest first; stale where the key has another result by now.
    finished: VecDeque<(Instant, Bytes)>,
    /// Keys that were claimed, oldest first.
    claimed: VecDeque<(Instant, Bytes)>,
    /// In all results.
    records: usize,
}

#[derive(Default)]
struct Part {
    claims_next: i64,
    results_next: i64,
    /// Claims of a replica below this offset are over: their transactional ids were taken after it was read.
    fenced: HashMap<Arc<str>, i64>,
}

struct Entry {
    /// Offset of the last claim, standing or not; -1: none.
    latest: i64,
    claimed_at: Instant,
    holder: Option<Holder>,
    result: Option<Stored>,
    /// Requests of this replica about the key.
    pins: u32,
}

struct Stored {
    at: Instant,
    outcome: Arc<Outcome>,
}

impl Entry {
    /// The result, unless a later claim stands.
    fn finished(&self) -> Option<&Stored> {
        let holder = self.holder.as_ref().map_or(-1, |holder| holder.offset);
        self.result.as_ref().filter(|stored| stored.outcome.claim >= holder)
    }

    fn is_empty(&self) -> bool {
        self.holder.is_none() && self.result.is_none() && self.pins == 0
    }
}

impl Table {
    pub(super) fn new(partitions: u32, limits: Limits) -> Self {
        Self {
            limits,
            parts: (0..partitions).map(|_| Part::default()).collect(),
            keys: HashMap::new(),
            finished: VecDeque::new(),
            claimed: VecDeque::new(),
            records: 0,
        }
    }

    pub(super) fn look(&self, key: &[u8], partition: i32, now: Instant) -> Look {
        let free = Look::Free { seen: self.next(true, partition) };
        let Some(entry) = self.keys.get(key) else { return free };
        match (entry.finished(), &entry.holder) {
            (Some(stored), _) if now.duration_since(stored.at) < self.limits.age => Look::Done(Arc::clone(&stored.outcome)),
            (Some(_), _) | (None, None) => free,
            (None, Some(holder)) => Look::Held(holder.clone()),
        }
    }

    /// Offset to go on reading at: of the claims, or of the results.
    pub(super) fn next(&self, claims: bool, partition: i32) -> i64 {
        let part = self.parts.get(usize::try_from(partition).unwrap_or_default());
        part.map_or(0, |part| if claims { part.claims_next } else { part.results_next })
    }

    pub(super) fn set_next(&mut self, claims: bool, partition: i32, next: i64) {
        if let Some(part) = self.part(partition) {
            *(if claims { &mut part.claims_next } else { &mut part.results_next }) = next;
        }
    }

    fn part(&mut self, partition: i32) -> Option<&mut Part> {
        self.parts.get_mut(usize::try_from(partition).unwrap_or_default())
    }

    /// `since`: when it was read, or earlier where it is known to be older.
    pub(super) fn claimed(&mut self, partition: i32, offset: i64, key: &Bytes, claim: Claim, since: Instant) {
        self.set_next(true, partition, offset + 1);
        let entry = self.keys.entry(key.clone()).or_insert_with(|| Entry::new(since));
        let stands = entry.latest < claim.seen;
        entry.latest = offset;
        entry.claimed_at = since;
        if stands && entry.result.as_ref().is_none_or(|stored| stored.outcome.claim < offset) {
            entry.holder = Some(Holder { offset, replica: claim.replica.into(), lanes: claim.lanes, since });
        }
        self.claimed.push_back((since, key.clone()));
    }

    /// Whether the claim at `offset`, which was read, stands, and no later one does.
    pub(super) fn stood(&self, key: &[u8], offset: i64) -> bool {
        self.keys.get(key).is_some_and(|entry| entry.holder.as_ref().is_some_and(|holder| holder.offset == offset))
    }

    /// Nothing is ever committed under this claim, or it was and its result is here.
    pub(super) fn bury(&mut self, key: &[u8], claim: i64) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        if entry.holder.as_ref().is_some_and(|holder| holder.offset == claim) {
            entry.holder = None;
        }
        if entry.is_empty() {
            self.keys.remove(key);
        }
    }

    /// A result that was committed; of an earlier generation it changes nothing.
    pub(super) fn finished(&mut self, key: &Bytes, outcome: Arc<Outcome>, at: Instant) {
        let entry = self.keys.entry(key.clone()).or_insert_with(|| Entry::new(at));
        if entry.result.as_ref().is_some_and(|stored| stored.outcome.claim >= outcome.claim) {
            return;
        }
        self.records += outcome.weight();
        let earlier = entry.result.replace(Stored { at, outcome });
        self.records -= earlier.map_or(0, |earlier| earlier.outcome.weight());
        self.finished.push_back((at, key.clone()));
    }

    /// Keeps what is known of a key until `unpin`.
    pub(super) fn pin(&mut self, key: &Bytes, now: Instant) {
        self.keys.entry(key.clone()).or_insert_with(|| Entry::new(now)).pins += 1;
    }

    pub(super) fn unpin(&mut self, key: &[u8]) {
        let Some(entry) = self.keys.get_mut(key) else { return };
        entry.pins -= 1;
        if entry.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Up to where the claims of a replica are over.
    pub(super) fn fenced(&self, partition: i32, replica: &str) -> i64 {
        let part = self.parts.get(usize::try_from(partition).unwrap_or_default());
        part.and_then(|part| part.fenced.get(replica)).copied().unwrap_or_default()
    }

    /// `below`: what was read of each partition before the replica's transactional ids were taken.
    pub(super) fn set_fenced(&mut self, replica: &Arc<str>, below: &[i64]) {
        for (part, below) in self.parts.iter_mut().zip(below) {
            if part.fenced.len() >= FENCED_MAX && !part.fenced.contains_key(replica) {
                // It is taken once more where it is needed again.
                part.fenced.clear();
            }
            let known = part.fenced.entry(Arc::clone(replica)).or_default();
            *known = (*known).max(*below);
        }
    }

    /// What was read of the claims of each partition.
    pub(super) fn claims_read(&self) -> Vec<i64> {
        self.parts.iter().map(|part| part.claims_next).collect()
    }

    /// Forgets what is too old, and the oldest results where there are too many.
    pub(super) fn prune(&mut self, now: Instant) {
        while let Some((at, key)) = self.finished.front() {
            let age = now.duration_since(*at);
            let too_many = self.records > self.limits.records_max && age >= self.limits.young;
            if age < self.limits.age && !too_many {
                break;
            }
            let at = *at;
            let key = key.clone();
            let pinned = self.keys.get(&key).is_some_and(|entry| entry.pins > 0);
            if pinned {
                // Its request is under way, and ends soon.
                break;
            }
            self.finished.pop_front();
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            if let Some(stored) = entry.result.take_if(|stored| stored.at == at) {
                self.records -= stored.outcome.weight();
                // Its claim is over with it; a later one stays.
                if entry.holder.as_ref().is_some_and(|holder| holder.offset <= stored.outcome.claim) {
                    entry.holder = None;
                }
            }
            if entry.is_empty() {
                self.keys.remove(&key);
            }
        }
        while let Some((at, key)) = self.claimed.front() {
            let entry = self.keys.get(key).filter(|entry| entry.claimed_at == *at && entry.finished().is_none());
            let is_old = now.duration_since(*at) >= self.limits.keep;
            match entry {
                Some(entry) if !is_old || entry.pins > 0 => break,
                Some(_) => drop(self.keys.remove(key)),
                None => {}
            }
            self.claimed.pop_front();
        }
    }

    /// No room for another result: all that there are stand for requests of a moment ago.
    pub(super) fn is_full(&self) -> bool {
        self.records > self.limits.records_max
    }

    /// Keys, and records in their results.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.keys.len(), self.records)
    }

    /// The topics are not what they were: everything is read anew.
    pub(super) fn clear(&mut self) {
        let pinned: Vec<Bytes> = self.keys.iter().filter(|(_, entry)| entry.pins > 0).map(|(key, _)| key.clone()).collect();
        let mut empty = Self::new(self.parts.len() as u32, self.limits);
        for key in pinned {
            let pins = self.keys.get(&key).map_or(0, |entry| entry.pins);
            empty.keys.insert(key, Entry { pins, ..Entry::new(Instant::now()) });
        }
        *self = empty;
    }
}

/// Replicas whose fences are remembered.
const FENCED_MAX: usize = 1_000;

impl Entry {
    fn new(at: Instant) -> Self {
        Self { latest: -1, claimed_at: at, holder: None, result: None, pins: 0 }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::produce::keyed::record::Run;

    const AGE: Duration = Duration::from_secs(60);

    fn table(records_max: usize) -> Table {
        Table::new(1, Limits { age: AGE, keep: AGE * 2, records_max, young: Duration::from_secs(10) })
    }

    fn claim(table: &mut Table, key: &'static str, offset: i64, replica: &str, seen: i64, at: Instant) {
        table.claimed(0, offset, &Bytes::from_static(key.as_bytes()), Claim { replica: replica.into(), lanes: 2, seen }, at);
    }

    fn result(table: &mut Table, key: &'static str, claim: i64, count: u32, at: Instant) {
        let outcome = Outcome { claim, fingerprint: "f".into(), written: vec![Run::of(0, 0, count)] };
        table.finished(&Bytes::from_static(key.as_bytes()), Arc::new(outcome), at);
    }

    fn holder(table: &Table, key: &str, now: Instant) -> Option<i64> {
        match table.look(key.as_bytes(), 0, now) {
            Look::Held(holder) => Some(holder.offset),
            _ => None,
        }
    }

    #[test]
    fn the_first_of_claims_at_the_same_time_stands_and_one_that_has_seen_it_takes_over() {
        let (mut table, now) = (table(100), Instant::now());
        claim(&mut table, "k", 5, "a", 3, now);
        claim(&mut table, "other", 6, "b", 3, now);
        claim(&mut table, "k", 7, "b", 4, now);
        assert!(table.stood(b"k", 5) && !table.stood(b"k", 7));
        assert_eq!((holder(&table, "k", now), holder(&table, "other", now)), (Some(5), Some(6)));
        // One that did not stand counts against the next: what its maker had seen must reach behind it.
        claim(&mut table, "k", 9, "c", 6, now);
        assert_eq!(holder(&table, "k", now), Some(5));
        claim(&mut table, "k", 12, "c", 10, now);
        assert_eq!(holder(&table, "k", now), Some(12));
        assert_eq!(table.next(true, 0), 13);
    }

    #[test]
    fn a_key_is_free_after_a_release_and_done_after_a_result_whatever_is_read_first() {
        let (mut table, now) = (table(100), Instant::now());
        claim(&mut table, "k", 0, "a", 0, now);
        table.bury(b"k", 7);
        assert_eq!(holder(&table, "k", now), Some(0), "another one's");
        table.bury(b"k", 0);
        assert_eq!(table.look(b"k", 0, now), Look::Free { seen: 1 });
        result(&mut table, "k", 4, 1, now);
        claim(&mut table, "k", 4, "a", 1, now);
        assert!(matches!(table.look(b"k", 0, now), Look::Done(_)));
        // A later generation is open although the earlier one has a result.
        claim(&mut table, "k", 6, "b", 5, now);
        assert_eq!(holder(&table, "k", now), Some(6));
        result(&mut table, "k", 4, 1, now);
        assert_eq!(holder(&table, "k", now), Some(6));
        result(&mut table, "k", 6, 1, now);
        assert!(matches!(table.look(b"k", 0, now), Look::Done(outcome) if outcome.claim == 6));
    }

    #[test]
    fn a_pinned_key_remembers_that_it_was_claimed() {
        let (mut table, now) = (table(100), Instant::now());
        let key = Bytes::from_static(b"k");
        table.pin(&key, now);
        claim(&mut table, "k", 0, "a", 0, now);
        table.bury(b"k", 0);
        table.prune(now + AGE * 3);
        claim(&mut table, "k", 1, "b", 0, now);
        assert!(!table.stood(b"k", 1));
        table.unpin(b"k");
        assert_eq!(table.size(), (0, 0));
    }

    #[test]
    fn results_end_with_their_age_and_the_oldest_first_when_there_are_too_many() {
        let (mut table, start) = (table(5), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (number, key) in ["a", "b", "c"].into_iter().enumerate() {
            claim(&mut table, key, number as i64, "r", 0, at(number as u64));
            result(&mut table, key, number as i64, 2, at(number as u64));
        }
        table.prune(at(5));
        assert!(table.is_full() && table.size() == (3, 6), "all are young: {:?}", table.size());
        table.prune(at(11));
        assert_eq!((table.is_full(), table.size()), (false, (2, 4)));
        assert!(matches!(table.look(b"a", 0, at(11)), Look::Free { seen: 3 }));
        assert!(matches!(table.look(b"b", 0, at(60)), Look::Done(_)));
        assert!(matches!(table.look(b"b", 0, at(61)), Look::Free { .. }));
        table.prune(at(62));
        assert_eq!(table.size(), (0, 0));
        assert!(table.claimed.is_empty() && table.finished.is_empty());
        // A claim without a result is remembered longer than any result.
        claim(&mut table, "d", 9, "r", 0, at(70));
        table.prune(at(70) + AGE);
        assert_eq!(holder(&table, "d", at(70) + AGE), Some(9));
        table.prune(at(70) + AGE * 2);
        assert_eq!(table.size(), (0, 0));
    }

    #[test]
    fn fences_only_rise() {
        let mut table = table(5);
        table.set_fenced(&"r".into(), &[7]);
        table.set_fenced(&"r".into(), &[3]);
        assert_eq!((table.fenced(0, "r"), table.fenced(0, "s")), (7, 0));
    }
}
