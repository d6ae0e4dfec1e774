//! What a session with `delivery = acknowledged` knows of one partition. Pure: no waiting, no clock.
//!
//! From the lowest unacknowledged record on, each record is out (until its deadline), waiting to be delivered again, or acknowledged: that is the
//! window. Behind it are records that were read and never delivered. An unacknowledged record stays in memory, so that nothing is read twice.
//!
//! The window is kept in the offset store: the offset is that of the lowest unacknowledged record, and the metadata is
//! `millrace:window/1 OWNER RUNS`. OWNER tells who wrote it, so that a session that lost the partition notices. RUNS has a letter for each offset
//! from the stored one on: `.` acknowledged (or there is no such record), `a` to `z` and `A` to `Z` delivered 1 to 52 times and not acknowledged;
//! three and more of a kind are a count and the letter: `a12.bb` are 15 offsets. So a window of n records needs n bytes at most, whatever
//! is acknowledged in which order; where the metadata has no room for another record, the window does not grow.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
};

use service_kit::{
    kafka::Record,
    offsets::{METADATA_BYTES_MAX, StoredOffset},
};
use tokio::time::Instant;

use super::state::size;
use crate::error::BridgeError;

const PREFIX: &str = "millrace:window/1 ";
/// Hexadecimal digits.
const OWNER_BYTES: usize = 8;
/// For the runs, behind prefix, owner and a space.
const RUNS_BYTES_MAX: usize = METADATA_BYTES_MAX - PREFIX.len() - OWNER_BYTES - 1;
/// Attempts that the text can tell; more are kept as so many.
pub(super) const ATTEMPTS_MAX: u32 = 52;

const LETTERS: &[u8; ATTEMPTS_MAX as usize] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// No attempts: acknowledged.
const ACKNOWLEDGED: u8 = b'.';

#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Delivered ones, from the lowest unacknowledged on.
    entries: BTreeMap<i64, Entry>,
    /// Read and never delivered; all behind `entries`.
    ahead: VecDeque<Record>,
    /// What was stored about records that have not been read again.
    left: VecDeque<Run>,
    /// Every record below is in here or acknowledged. `None` until a place is known.
    end: Option<i64>,
    /// Of all records in here.
    bytes: usize,
    /// What the text of `entries` needs at most.
    text_bytes: usize,
    owner: Option<String>,
    /// The store does not have it as it is.
    changed: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Bytes of text, at most.
    cost: usize,
    /// `None`: acknowledged.
    held: Option<Held>,
}

/// A delivered record that is not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) record: Record,
    /// How often it was delivered.
    pub(super) attempts: u32,
    /// The last batch it was in; `None` when it was rejected since, or delivered by an earlier owner.
    pub(super) batch: Option<u64>,
    /// From then on it is delivered again.
    pub(super) due: Instant,
    /// The session's format cannot show it.
    pub(super) refused: Option<BridgeError>,
    /// Why it will be delivered again.
    pub(super) why: Cow<'static, str>,
}

/// Offsets of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    from: i64,
    until: i64,
    /// 0: acknowledged.
    attempts: u32,
}

/// What became of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Now,
    Before,
    /// It is not here: never delivered, or in other hands.
    Unknown,
}

impl Window {
    /// Takes over what is stored; the next store puts the new owner's name in.
    pub(super) fn restored(stored: &StoredOffset) -> Self {
        let left = parse(stored).unwrap_or_else(|| {
            if stored.metadata.starts_with(PREFIX) {
                tracing::warn!(metadata = stored.metadata, "the stored window is not understood; what it acknowledged is delivered again");
            }
            VecDeque::new()
        });
        Self { left, end: Some(stored.offset), owner: Some(new_owner()), changed: true, ..Self::default() }
    }

    /// Empty, going on at `end`, of the same owner: for a seek.
    pub(super) fn anew(&self, end: Option<i64>) -> Self {
        Self { end, owner: self.owner.clone(), ..Self::default() }
    }

    /// Whether what is stored was written by this owner. `committed`: the offset that it knows to be stored.
    pub(super) fn is_mine(&self, stored: Option<&StoredOffset>, committed: Option<i64>) -> bool {
        match (stored, &self.owner) {
            (Some(stored), Some(owner)) => stored.metadata.strip_prefix(PREFIX).is_some_and(|text| text.starts_with(owner.as_str())),
            (Some(_), None) => false,
            (None, _) => committed.is_none(),
        }
    }

    /// Takes in what was read. Records that are known already are passed over: after a rebalance, some are read again.
    pub(super) fn take_in(&mut self, record: Record, now: Instant) {
        let offset = record.offset;
        if self.end.is_some_and(|end| offset < end) {
            return;
        }
        self.end = Some(offset + 1);
        while self.left.front().is_some_and(|run| run.until <= offset) {
            self.left.pop_front();
        }
        match self.left.front().filter(|run| run.from <= offset).map(|run| run.attempts) {
            None => {
                self.bytes += size(&record);
                self.ahead.push_back(record);
            }
            Some(0) => self.add(offset, None),
            Some(attempts) => {
                self.bytes += size(&record);
                let why = Cow::Borrowed("not acknowledged when its reader changed");
                self.add(offset, Some(Held { record, attempts, batch: None, due: now, refused: None, why }));
            }
        }
    }

    fn add(&mut self, offset: i64, held: Option<Held>) {
        let cost = self.cost(offset);
        self.text_bytes += cost;
        self.entries.insert(offset, Entry { cost, held });
        self.trim();
    }

    /// One letter, and a run for the offsets before it that have no records.
    fn cost(&self, offset: i64) -> usize {
        let gap = self.entries.last_key_value().map_or(0, |(last, _)| offset - last - 1);
        1 + if gap == 0 { 0 } else { digits(gap) + 1 }
    }

    /// What is acknowledged at the bottom is no longer part of the window.
    fn trim(&mut self) {
        while let Some(first) = self.entries.first_entry().filter(|first| first.get().held.is_none()) {
            self.text_bytes -= first.remove().cost;
        }
        // Nothing is told of what lies below the lowest.
        if let Some(mut first) = self.entries.first_entry() {
            self.text_bytes -= std::mem::replace(&mut first.get_mut().cost, 1) - 1;
        }
    }

    /// No record lies between the last one that was read and this offset.
    pub(super) fn pass(&mut self, position: i64) {
        let before = self.base();
        if self.end.is_none_or(|end| end < position) {
            self.end = Some(position);
        }
        self.changed |= self.base() != before;
    }

    pub(super) fn end(&self) -> Option<i64> {
        self.end
    }

    /// The lowest that was never delivered.
    pub(super) fn next(&self) -> Option<i64> {
        self.ahead.front().map(|record| record.offset).or(self.end)
    }

    /// The lowest offset that is not acknowledged: what is to be stored. `None` until a place is known.
    pub(super) fn base(&self) -> Option<i64> {
        let held = self.entries.first_key_value().map(|(offset, _)| *offset);
        let left = || self.left().find(|run| run.attempts > 0).map(|run| run.from);
        let ahead = || self.ahead.front().map(|record| record.offset);
        // Acknowledged ones that are still to be read again do not hold it up.
        held.or_else(left).or_else(ahead).or(self.end.max(self.left.back().map(|run| run.until)))
    }

    fn left(&self) -> impl Iterator<Item = Run> {
        let read = self.end.unwrap_or(0);
        let unread = move |run: &Run| Run { from: run.from.max(read), ..run.clone() };
        self.left.iter().map(unread).filter(|run| run.from < run.until)
    }

    /// Records of the window.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Of all records in here, those never delivered included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether another record may be delivered for the first time.
    pub(super) fn has_room(&self, records_max: usize) -> bool {
        let next = self.ahead.front().map(|record| record.offset).or(self.end).unwrap_or(0);
        self.entries.len() < records_max && self.text_bytes + self.cost(next) <= RUNS_BYTES_MAX
    }

    /// Whether records should be read, beyond those that wait here.
    pub(super) fn wants(&self, records_max: usize) -> bool {
        self.has_room(records_max) && self.entries.len() + self.ahead.len() < records_max
    }

    /// Never delivered, as many as there is room for.
    pub(super) fn fresh(&self, records_max: usize) -> impl Iterator<Item = &Record> {
        let room = if self.has_room(records_max) { records_max - self.entries.len() } else { 0 };
        self.ahead.iter().take(room)
    }

    /// Unacknowledged ones, ascending, from this offset on.
    pub(super) fn held_from(&self, offset: i64) -> impl Iterator<Item = &Held> {
        self.entries.range(offset..).filter_map(|(_, entry)| entry.held.as_ref())
    }

    pub(super) fn held(&self, offset: i64) -> Option<&Held> {
        self.entries.get(&offset)?.held.as_ref()
    }

    fn held_mut(&mut self, offset: i64) -> Option<&mut Held> {
        self.entries.get_mut(&offset)?.held.as_mut()
    }

    /// Makes the first of those that were never delivered part of the window.
    fn enter(&mut self, offset: i64, due: Instant) {
        let Some(record) = self.ahead.pop_front_if(|first| first.offset == offset) else { return };
        self.add(offset, Some(Held { record, attempts: 0, batch: None, due, refused: None, why: Cow::Borrowed("") }));
    }

    /// The record is part of a batch: one that is due, or the first of those never delivered.
    pub(super) fn deliver(&mut self, offset: i64, batch: u64, due: Instant) {
        self.enter(offset, due);
        if let Some(held) = self.held_mut(offset) {
            held.attempts = held.attempts.saturating_add(1);
            (held.batch, held.due, held.why) = (Some(batch), due, Cow::Borrowed("not acknowledged in time"));
            self.changed = true;
        }
    }

    /// The batch that it is part of goes out only now.
    pub(super) fn put_off(&mut self, offset: i64, due: Instant) {
        if let Some(held) = self.held_mut(offset) {
            held.due = due;
        }
    }

    /// Nobody was given the batch.
    pub(super) fn withdraw(&mut self, offset: i64, now: Instant) {
        let is_last = self.entries.last_key_value().is_some_and(|(last, _)| *last == offset);
        let Some(held) = self.held_mut(offset) else { return };
        (held.batch, held.due) = (None, now);
        if held.attempts > 1 {
            held.attempts -= 1;
        } else if is_last && let Some(Entry { cost, held: Some(held) }) = self.entries.remove(&offset) {
            self.text_bytes -= cost;
            self.ahead.push_front(held.record);
        }
        self.changed = true;
    }

    pub(super) fn store_again(&mut self) {
        self.changed = true;
    }

    /// As if its time were over.
    #[cfg(test)]
    pub(super) fn expire(&mut self, now: Instant) {
        self.entries.values_mut().filter_map(|entry| entry.held.as_mut()).for_each(|held| held.due = held.due.min(now));
    }

    /// The format cannot show it: it stays in the window, and others pass it.
    pub(super) fn refuse(&mut self, offset: i64, error: BridgeError, now: Instant) {
        self.enter(offset, now);
        if let Some(held) = self.held_mut(offset) {
            held.attempts = held.attempts.max(1);
            held.why = Cow::Owned(error.message.clone());
            held.refused = Some(error);
            self.changed = true;
        }
    }

    pub(super) fn acknowledge(&mut self, offset: i64) -> Settled {
        match self.entries.get_mut(&offset).map(|entry| entry.held.take()) {
            Some(Some(held)) => {
                self.bytes -= size(&held.record);
                self.changed = true;
                self.trim();
                Settled::Now
            }
            Some(None) => Settled::Before,
            None if self.base().is_some_and(|base| offset < base) => Settled::Before,
            None => Settled::Unknown,
        }
    }

    /// It is delivered again from `due` on; false where it is not unacknowledged here.
    pub(super) fn reject(&mut self, offset: i64, due: Instant, why: Cow<'static, str>) -> bool {
        match self.held_mut(offset) {
            None => false,
            Some(held) => {
                (held.batch, held.due, held.why) = (None, due, why);
                true
            }
        }
    }

    /// Offset and metadata to be stored, where they are not yet.
    pub(super) fn unstored(&mut self) -> Option<StoredOffset> {
        let offset = self.base().filter(|_| self.changed)?;
        let owner = self.owner.get_or_insert_with(new_owner).clone();
        Some(StoredOffset { offset, metadata: format!("{PREFIX}{owner} {}", self.runs(offset)) })
    }

    pub(super) fn is_stored(&mut self) {
        self.changed = false;
    }

    pub(super) fn owner(&self) -> &str {
        self.owner.as_deref().unwrap_or_default()
    }

    fn runs(&self, base: i64) -> String {
        let mut runs = Runs { out: String::new(), letter: ACKNOWLEDGED, count: 0 };
        let mut at = base;
        let mut put = |from: i64, until: i64, letter: u8| {
            runs.put(from - at, ACKNOWLEDGED);
            runs.put(until - from, letter);
            at = until;
        };
        for (offset, entry) in &self.entries {
            put(*offset, offset + 1, letter(entry.held.as_ref().map_or(0, |held| held.attempts)));
        }
        // What is acknowledged below the lowest one that is not needs no words.
        for run in self.left().skip_while(|run| run.from < base) {
            put(run.from, run.until, letter(run.attempts));
        }
        let text = runs.finish();
        debug_assert!(text.len() <= RUNS_BYTES_MAX, "{} bytes", text.len());
        text
    }
}

fn new_owner() -> String {
    uuid::Uuid::new_v4().simple().to_string().chars().take(OWNER_BYTES).collect()
}

fn letter(attempts: u32) -> u8 {
    match attempts.min(ATTEMPTS_MAX).checked_sub(1) {
        None => ACKNOWLEDGED,
        Some(index) => LETTERS[index as usize],
    }
}

fn digits(count: i64) -> usize {
    count.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Writes runs of letters.
struct Runs {
    out: String,
    letter: u8,
    count: i64,
}

impl Runs {
    fn put(&mut self, count: i64, letter: u8) {
        if count <= 0 {
            return;
        }
        if letter != self.letter {
            self.end();
            self.letter = letter;
        }
        self.count += count;
    }

    fn end(&mut self) {
        match std::mem::take(&mut self.count) {
            count @ 0..=2 => (0..count).for_each(|_| self.out.push(char::from(self.letter))),
            count => {
                self.out.push_str(&count.to_string());
                self.out.push(char::from(self.letter));
            }
        }
    }

    fn finish(mut self) -> String {
        self.end();
        self.out
    }
}

/// `None` where the metadata is not a window.
fn parse(stored: &StoredOffset) -> Option<VecDeque<Run>> {
    let (_owner, text) = stored.metadata.strip_prefix(PREFIX)?.split_once(' ')?;
    let mut runs = VecDeque::new();
    let (mut from, mut count) = (stored.offset, None);
    for letter in text.bytes() {
        if letter.is_ascii_digit() {
            count = Some(count.unwrap_or(0_i64).checked_mul(10)?.checked_add(i64::from(letter - b'0'))?);
            continue;
        }
        let attempts = match letter {
            ACKNOWLEDGED => 0,
            letter => u32::try_from(LETTERS.iter().position(|known| *known == letter)?).ok()? + 1,
        };
        let until = from.checked_add(count.take().unwrap_or(1))?;
        runs.push_back(Run { from, until, attempts });
        from = until;
    }
    count.is_none().then_some(runs)
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    fn record(offset: i64) -> Record {
        Record { offset, timestamp_ms: 0, key: None, value: Some("v".into()), headers: vec![] }
    }

    fn delivered(offsets: impl IntoIterator<Item = i64>) -> Window {
        let (mut window, now) = (Window::default(), Instant::now());
        for offset in offsets {
            window.take_in(record(offset), now);
            window.deliver(offset, 1, now);
        }
        window
    }

    fn text(window: &mut Window) -> (i64, String) {
        window.changed = true;
        let stored = window.unstored().unwrap();
        (stored.offset, stored.metadata[PREFIX.len() + OWNER_BYTES + 1..].to_owned())
    }

    #[test]
    fn the_text_names_what_is_acknowledged_and_how_often_the_rest_was_delivered() {
        let mut window = delivered(10..16);
        assert_eq!(text(&mut window), (10, "6a".into()));
        for offset in [12, 13, 14] {
            assert_eq!(window.acknowledge(offset), Settled::Now);
        }
        window.deliver(10, 2, Instant::now());
        assert_eq!(text(&mut window), (10, "ba3.a".into()));
        assert_eq!(
            (window.acknowledge(12), window.acknowledge(9), window.acknowledge(16)),
            (Settled::Before, Settled::Before, Settled::Unknown)
        );
        window.acknowledge(10);
        window.acknowledge(11);
        assert_eq!(text(&mut window), (15, "a".into()), "what is acknowledged at the bottom is passed");
        window.acknowledge(15);
        assert_eq!(text(&mut window), (16, String::new()));
        window.take_in(record(20), Instant::now());
        assert_eq!(text(&mut window), (20, String::new()), "there is nothing between");
    }

    #[test]
    fn offsets_without_records_are_runs() {
        let mut window = delivered([5, 1_000_000, 1_000_001]);
        assert_eq!(text(&mut window), (5, "a999994.aa".into()));
        let stored = StoredOffset { offset: 5, metadata: format!("{PREFIX}00000000 a999994.aa") };
        let runs = parse(&stored).unwrap();
        assert_eq!(runs[1], Run { from: 6, until: 1_000_000, attempts: 0 });
    }

    #[test]
    fn a_restored_window_goes_on_while_it_is_read_again() {
        let stored = StoredOffset { offset: 10, metadata: format!("{PREFIX}00000000 b..c3a.a") };
        let mut window = Window::restored(&stored);
        assert!(!window.is_mine(Some(&stored), Some(10)), "the owner is another one now");
        assert_eq!(text(&mut window), (10, "b..c3a.a".into()), "nothing is read yet");
        let now = Instant::now();
        for offset in 10..13 {
            window.take_in(record(offset), now);
        }
        assert_eq!(text(&mut window), (10, "b..c3a.a".into()));
        assert_eq!(window.held(10).unwrap().attempts, 2);
        assert!(window.held(11).is_none());
        window.acknowledge(10);
        assert_eq!(text(&mut window), (13, "c3a.a".into()), "the lowest is one that is still to be read");
        // 13 and 14 are there no more.
        window.take_in(record(15), now);
        assert_eq!(text(&mut window), (15, "aa.a".into()));
        for offset in 16..20 {
            window.take_in(record(offset), now);
        }
        assert_eq!(window.held_from(0).map(|held| held.record.offset).collect::<Vec<_>>(), [15, 16, 18]);
        assert_eq!(window.fresh(10).map(|record| record.offset).collect::<Vec<_>>(), [19]);
        let mine = window.unstored().unwrap();
        assert!(window.is_mine(Some(&mine), Some(15)) && !window.is_mine(None, Some(15)));
    }

    #[test]
    fn what_is_no_window_is_none() {
        for metadata in [
            "",
            "hand made",
            "millrace:window/1",
            "millrace:window/1 x",
            "millrace:window/1 0 a3",
            "millrace:window/1 0 a-",
            "millrace:window/1 0 99999999999999999999a",
        ] {
            assert_eq!(parse(&StoredOffset { offset: 1, metadata: metadata.into() }), None, "{metadata}");
        }
        assert_eq!(parse(&StoredOffset { offset: 1, metadata: "millrace:window/1 0 ".into() }), Some(VecDeque::new()));
    }

    #[test]
    fn the_window_grows_no_further_than_the_metadata() {
        let (mut window, now) = (Window::default(), Instant::now());
        // Far apart: each needs more than its letter.
        for index in 0..5_000 {
            window.take_in(record(index * 1_000), now);
        }
        let mut count = 0;
        let next = |window: &Window| window.fresh(usize::MAX).next().map(|record| record.offset);
        while let Some(offset) = next(&window) {
            window.deliver(offset, 1, now);
            count += 1;
        }
        assert!((800..900).contains(&count), "{count}");
        let stored = window.unstored().unwrap();
        assert!((METADATA_BYTES_MAX - 16..=METADATA_BYTES_MAX).contains(&stored.metadata.len()), "{}", stored.metadata.len());
        assert_eq!(window.acknowledge(0), Settled::Now);
        assert!(window.has_room(usize::MAX));
    }

    proptest! {
        #[test]
        fn any_window_fits_and_survives_its_text(
            gaps in proptest::collection::vec(prop_oneof![8 => Just(0_i64), 1 => 1..2_000_000_i64], 1..400),
            attempts in proptest::collection::vec(0..60_u32, 400),
            base in 0..i64::MAX / 2,
        ) {
            let (mut window, now) = (Window::default(), Instant::now());
            let mut offset = base;
            let mut expected = Vec::new();
            for (gap, attempts) in gaps.iter().zip(&attempts) {
                offset += gap + 1;
                window.take_in(record(offset), now);
                (0..*attempts).for_each(|_| window.deliver(offset, 1, now));
                if *attempts == 0 {
                    window.deliver(offset, 1, now);
                    window.acknowledge(offset);
                } else {
                    expected.push((offset, (*attempts).min(ATTEMPTS_MAX)));
                }
            }
            prop_assert!(window.text_bytes <= RUNS_BYTES_MAX);
            let stored = window.unstored().unwrap();
            prop_assert!(stored.metadata.len() <= METADATA_BYTES_MAX);
            prop_assert!(stored.metadata.len() <= PREFIX.len() + OWNER_BYTES + 1 + window.text_bytes);
            let mut again = Window::restored(&stored);
            let mut offset = base;
            for gap in &gaps {
                offset += gap + 1;
                if offset >= stored.offset {
                    again.take_in(record(offset), now);
                }
            }
            let found: Vec<_> = again.held_from(0).map(|held| (held.record.offset, held.attempts)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(again.ahead.len(), 0);
            let twice = again.unstored().unwrap();
            prop_assert_eq!(&twice.metadata[PREFIX.len() + OWNER_BYTES..], &stored.metadata[PREFIX.len() + OWNER_BYTES..]);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", offset: i64) {
            drop(parse(&StoredOffset { offset, metadata: format!("{PREFIX}{text}") }));
        }
    }
}
