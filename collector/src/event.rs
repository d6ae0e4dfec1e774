//! What moves through the collector: an event, where it came from, and the word that it has arrived.
//!
//! A body is a slice of the buffer it was read into; making an event allocates nothing. What a batch has in common
//! (file, trace, acknowledgement) is held once, in its [`Origin`].

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::source::tail::identity::{Checksum, TailedFile};

/// Shared, because the events of a file have the same.
pub type Headers = Option<Arc<BTreeMap<String, String>>>;

#[derive(Clone, Debug, Default)]
pub struct Event {
    pub headers: Headers,
    pub body: Bytes,
    /// Where the event ends in its origin's file, in bytes; 0 where there is no file.
    pub end: u64,
    pub origin: Option<Arc<Origin>>,
    /// The channel's own number: order within the channel.
    pub number: u64,
}

impl Event {
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    pub fn with_headers<const N: usize>(body: impl Into<Bytes>, headers: [(&str, &str); N]) -> Self {
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { headers: Some(Arc::new(headers.into())), ..Self::new(body) }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(String::as_str)
    }

    /// Sets a header of this event alone.
    pub fn set_header(&mut self, name: &str, value: String) {
        Arc::make_mut(self.headers.get_or_insert_default()).insert(name.to_owned(), value);
    }

    /// What the event occupies, for bounds in bytes.
    pub fn size(&self) -> usize {
        self.body.len() + size_of::<Self>()
    }
}

/// What the events of one source batch have in common.
#[derive(Debug, Default)]
pub struct Origin {
    /// W3C `traceparent` of the span that read the batch; None when it is not sampled.
    pub trace: Option<String>,
    /// The file they were read from.
    pub file: Option<Arc<TailedFile>>,
    /// Where the batch ends in it.
    pub mark: Option<Mark>,
    receipt: Option<Receipt>,
}

impl Origin {
    pub fn traced(trace: Option<String>) -> Self {
        Self { trace, ..Self::default() }
    }

    /// Does a source hold its position back until these events are acknowledged?
    pub fn is_awaited(&self) -> bool {
        self.receipt.is_some()
    }

    /// Of events that have a place in `file` and no source that waits for them.
    pub fn of_file(file: Arc<TailedFile>, trace: Option<String>) -> Self {
        Self { trace, file: Some(file), ..Self::default() }
    }
}

#[derive(Debug)]
struct Receipt {
    ledger: Arc<Ledger>,
    batch: u64,
}

/// Tells the origins that their events have been delivered. Called by channels when a take is committed.
pub(crate) fn acknowledge(events: &[Event]) {
    for run in events.chunk_by(|a, b| match (&a.origin, &b.origin) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }) {
        if let Some(receipt) = run.first().and_then(|event| event.origin.as_ref()).and_then(|origin| origin.receipt.as_ref()) {
            receipt.ledger.delivered(receipt.batch, run.len());
        }
    }
}

/// Which of a source's batches are on their way, so that a file's position moves only over what has been delivered.
///
/// Sinks finish in any order; a position moves when everything before it has been delivered too.
#[derive(Debug, Default)]
pub struct Ledger {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    /// Number of the first batch in `batches`.
    first: u64,
    batches: VecDeque<Underway>,
    /// File id → the position up to which everything is delivered, since the last [`Ledger::advance`].
    delivered: HashMap<u64, Mark>,
}

#[derive(Debug)]
struct Underway {
    left: usize,
    file: u64,
    mark: Mark,
    /// Of a batch from several places, the others.
    more: Vec<(u64, Mark)>,
}

impl Open {
    /// Takes out what is delivered from the front on; true when nothing is on its way any more.
    fn settle(&mut self) -> bool {
        while let Some(done) = self.batches.pop_front_if(|underway| underway.left == 0) {
            self.first += 1;
            self.delivered.insert(done.file, done.mark);
            self.delivered.extend(done.more);
        }
        self.batches.is_empty()
    }
}

/// A position, and the checksum of the bytes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: u64,
    pub tail: Checksum,
}

impl Ledger {
    /// Opens a batch of `copies` events that end at `mark` in `file`; an event counts once for each channel it goes to.
    pub fn open(self: &Arc<Self>, file: &Arc<TailedFile>, mark: Mark, copies: usize, trace: Option<String>) -> Arc<Origin> {
        let mut open = self.open.lock();
        let batch = open.first + open.batches.len() as u64;
        open.batches.push_back(Underway { left: copies, file: file.id, mark, more: Vec::new() });
        drop(open);
        Arc::new(Origin { trace, file: Some(file.clone()), mark: Some(mark), receipt: Some(Receipt { ledger: self.clone(), batch }) })
    }

    /// As [`Self::open`], of events that are in no file: the next offset of each place (numbered by the caller) behind the batch.
    pub fn open_at(self: &Arc<Self>, offsets: &BTreeMap<u64, u64>, copies: usize, trace: Option<String>) -> Arc<Origin> {
        let mut marks = offsets.iter().map(|(place, offset)| (*place, Mark { offset: *offset, tail: Checksum::default() }));
        let Some((file, mark)) = marks.next() else { return Arc::new(Origin::traced(trace)) };
        let mut open = self.open.lock();
        let batch = open.first + open.batches.len() as u64;
        open.batches.push_back(Underway { left: copies, file, mark, more: marks.collect() });
        if copies == 0 {
            open.settle();
        }
        drop(open);
        Arc::new(Origin { receipt: Some(Receipt { ledger: self.clone(), batch }), ..Origin::traced(trace) })
    }

    fn delivered(&self, batch: u64, events: usize) {
        let mut open = self.open.lock();
        let at = batch.checked_sub(open.first).and_then(|at| usize::try_from(at).ok());
        // A batch that was withdrawn is not there any more.
        let Some(underway) = at.and_then(|at| open.batches.get_mut(at)) else { return };
        debug_assert!(underway.left >= events);
        underway.left = underway.left.saturating_sub(events);
        let empty = open.settle();
        drop(open);
        if empty {
            self.changed.notify_waiters();
        }
    }

    /// Forgets the batch opened last: no channel has taken it, or not every one. Nothing waits for it, and no position passes it.
    pub fn withdraw(&self) {
        let mut open = self.open.lock();
        open.batches.pop_back();
        let empty = open.batches.is_empty();
        drop(open);
        if empty {
            self.changed.notify_waiters();
        }
    }

    /// The positions that moved since the last call.
    pub fn advance(&self) -> HashMap<u64, Mark> {
        std::mem::take(&mut self.open.lock().delivered)
    }

    /// Batches on their way.
    pub fn underway(&self) -> usize {
        self.open.lock().batches.len()
    }

    /// Is a batch of this file on its way?
    pub fn holds(&self, file: u64) -> bool {
        self.open.lock().batches.iter().any(|underway| underway.file == file)
    }

    /// Files of which a batch is on its way.
    pub fn held(&self) -> HashSet<u64> {
        self.open.lock().batches.iter().map(|underway| underway.file).collect()
    }

    /// Returns when everything is delivered.
    pub async fn settled(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.underway() == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_is_a_cache_line() {
        assert!(size_of::<Event>() <= 64, "{}", size_of::<Event>());
    }

    fn mark(offset: u64) -> Mark {
        Mark { offset, tail: Checksum::default() }
    }

    proptest! {
        /// Whatever the order of deliveries, a position never passes an event that is still on its way.
        #[test]
        fn positions_move_in_order(sizes in prop::collection::vec(1usize..5, 1..20), order in any::<u64>()) {
            let (ledger, file) = (Arc::new(Ledger::default()), Arc::new(TailedFile::for_test(7)));
            let mut events = Vec::new();
            let mut end = 0;
            for &size in &sizes {
                let origin = ledger.open(&file, mark(end + size as u64), size, None);
                for _ in 0..size {
                    end += 1;
                    events.push(Event { end, origin: Some(origin.clone()), ..Event::default() });
                }
            }
            let mut seed = order | 1;
            let mut position = 0;
            while !events.is_empty() {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let event = events.swap_remove((seed >> 33) as usize % events.len());
                acknowledge(std::slice::from_ref(&event));
                if let Some(mark) = ledger.advance().get(&7) {
                    prop_assert!(mark.offset > position);
                    position = mark.offset;
                }
                let lowest = events.iter().map(|event| event.end).min().unwrap_or(u64::MAX);
                prop_assert!(position < lowest);
            }
            prop_assert_eq!(position, end);
            prop_assert_eq!(ledger.underway(), 0);
        }
    }

    #[test]
    fn a_batch_of_several_places_moves_all_of_them_and_one_without_events_waits_for_its_turn() {
        let ledger = Arc::new(Ledger::default());
        let origin = ledger.open_at(&BTreeMap::from([(1, 10), (2, 20)]), 2, None);
        ledger.open_at(&BTreeMap::from([(1, 11)]), 0, None);
        let event = || Event { origin: Some(origin.clone()), ..Event::default() };
        acknowledge(&[event()]);
        assert!(ledger.advance().is_empty() && ledger.underway() == 2);
        acknowledge(&[event()]);
        let moved: BTreeMap<u64, u64> = ledger.advance().into_iter().map(|(place, mark)| (place, mark.offset)).collect();
        assert_eq!((moved, ledger.underway()), (BTreeMap::from([(1, 11), (2, 20)]), 0));
    }
}
