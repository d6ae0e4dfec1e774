//! What a start makes of what it finds: facts in, decision out, nothing touched.
//!
//! | found | decided |
//! |---|---|
//! | the last put is incomplete | it was never acknowledged: cut off |
//! | a segment holds more than its successor says | the rest was given up after a failed write: not read |
//! | a header that cannot be read | the records are read without it |
//! | a copy of another segment, or one of another channel | moved aside |
//! | a segment is missing, or shorter than it was | its events are lost: counted, told, passed over |
//! | no acknowledgements | everything in the segments is delivered (again) |
//! | events in a segment without a successor | it is copied and synced before anything of it counts: a sync may have failed |
//!
//! Numbers are never given twice: each start leaves a gap that no lost segment could have filled. Gaps that a header declares are not losses.

use std::collections::BTreeMap;

use super::acks::{Acked, Saved};
use super::format::{HEADER_BYTES, Header, HeaderFault};

/// Larger than what a thousand lost segments could have held.
pub const GAP: u64 = 1 << 32;

#[derive(Debug)]
pub struct Facts {
    pub acks: Option<Saved>,
    /// In the order of their ids.
    pub segments: Vec<SegmentFacts>,
    /// For a channel that has no identity yet.
    pub fresh: u64,
}

#[derive(Clone, Debug)]
pub struct SegmentFacts {
    /// By its name.
    pub id: u64,
    /// Which of the data directories it is in.
    pub directory: usize,
    pub len: u64,
    pub header: Result<Header, HeaderFault>,
    /// Where one is [`needed`].
    pub scan: Option<Scan>,
}

/// What reading a whole segment found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Of the first record.
    pub first: Option<u64>,
    /// After the last complete put.
    pub next: u64,
    pub len: u64,
    pub marks: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub id: u64,
    pub directory: usize,
    pub first: u64,
    pub next: u64,
    /// Bytes that count.
    pub len: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub channel: u64,
    pub acked: Acked,
    pub segments: Vec<Segment>,
    /// (id, directory)
    pub remove: Vec<(u64, usize)>,
    /// (id, directory, why)
    pub aside: Vec<(u64, usize, &'static str)>,
    pub lost: Vec<Lost>,
    /// Segment and bytes of a put that was never acknowledged.
    pub cut: Option<(u64, u64)>,
    /// Ids of segments of which no successor says how far they are on disk, unless all of their events are delivered. What
    /// was read of them may be in the page cache alone, even after another sync: the last one may have failed.
    pub unsure: Vec<u64>,
    /// The next event's number.
    pub next: u64,
    pub next_segment: u64,
    pub marks: BTreeMap<u64, u64>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    pub events: u64,
    /// Before which segment they were.
    pub before: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("segment {segment} has format version {version}, this program reads version {}; use the newer program", super::format::VERSION)]
    Version { segment: u64, version: u32 },
    #[error("the event numbers are used up; let the channel drain and give it new directories")]
    Exhausted,
}

/// Must the whole segment be read to know where it ends? Else its successor says it.
pub fn needed(segments: &[SegmentFacts], at: usize) -> bool {
    let named = |after: &SegmentFacts| after.header.as_ref().ok()?.previous.map(|previous| previous.segment);
    segments[at].header.is_err() || segments.get(at + 1).is_none_or(|after| named(after) != Some(segments[at].id))
}

pub fn decide(facts: &Facts) -> Result<Decision, Refused> {
    for segment in &facts.segments {
        if let Err(HeaderFault::Version(version)) = segment.header {
            return Err(Refused::Version { segment: segment.id, version });
        }
    }
    let channel = identity(facts);
    let acks = facts.acks.as_ref().filter(|acks| acks.channel == channel);
    let mut decision = Decision { channel, next_segment: 1, ..Decision::default() };
    let mut kept: Vec<&SegmentFacts> = Vec::new();
    for segment in &facts.segments {
        decision.next_segment = decision.next_segment.max(segment.id.checked_add(1).ok_or(Refused::Exhausted)?);
        let aside = match &segment.header {
            Ok(header) if header.segment != segment.id => Some("is a copy of another segment"),
            Ok(header) if header.channel != channel => Some("belongs to another channel"),
            _ if kept.last().is_some_and(|last| last.id == segment.id) => Some("is there twice"),
            _ => None,
        };
        match aside {
            Some(why) => decision.aside.push((segment.id, segment.directory, why)),
            None => kept.push(segment),
        }
    }
    decision.acked = acks.map(|acks| acks.acked.clone()).unwrap_or_default();
    let mut known = acks.is_some();
    // Everything below is decided.
    let mut end = decision.acked.below;
    for (at, segment) in kept.iter().enumerate() {
        let scan = segment.scan.clone().unwrap_or_default();
        let header = segment.header.as_ref().ok();
        let previous = header.and_then(|header| header.previous);
        let Some(first) = header.map(|header| header.first).or(scan.first) else {
            // The process ended while it was made, or all of it is damaged.
            match segment.len {
                0 => decision.remove.push((segment.id, segment.directory)),
                _ => decision.aside.push((segment.id, segment.directory, "holds nothing that can be read")),
            }
            continue;
        };
        // Numbers go up with the ids. What has lost its header may be a copy of another one.
        let after = kept[at + 1..].iter().find_map(|segment| segment.header.as_ref().ok());
        if header.is_none() && (first < end || after.is_some_and(|after| scan.next > after.first)) {
            decision.aside.push((segment.id, segment.directory, "has no header, and its events belong elsewhere"));
            continue;
        }
        let sealed =
            kept.get(at + 1).and_then(|after| after.header.as_ref().ok()?.previous).filter(|previous| previous.segment == segment.id);
        let (next, len) = match sealed {
            Some(previous) => (previous.next.max(first), previous.len.min(segment.len)),
            None => (scan.next.max(first), scan.len.max(HEADER_BYTES as u64).min(segment.len)),
        };
        if sealed.is_none() {
            decision.unsure.push(segment.id);
        }
        if at + 1 == kept.len() && len < segment.len {
            decision.cut = Some((segment.id, segment.len - len));
        }
        if !known {
            decision.acked.insert(0, first);
            (known, end) = (true, first);
        }
        // Up to where the segment before is said to reach, events are missing; from there to the first one is a gap.
        let undeclared = || end + first.saturating_sub(end) % GAP;
        let missing_to = if header.is_some() { previous.map_or(end, |previous| previous.next) } else { undeclared() }.min(first);
        let lost = decision.acked.missing(end.min(missing_to), missing_to);
        if lost > 0 {
            decision.lost.push(Lost { events: lost, before: segment.id });
        }
        decision.acked.insert(end.min(first), first);
        end = end.max(next);
        decision.segments.push(Segment { id: segment.id, directory: segment.directory, first, next, len });
        for (&id, &mark) in &scan.marks {
            let known = decision.marks.entry(id).or_default();
            *known = mark.max(*known);
        }
    }
    let highest = decision.acked.ranges.values().copied().max().unwrap_or_default().max(decision.acked.below).max(end);
    let last = decision.segments.last().map_or(highest, |segment| segment.next);
    let begun = !facts.segments.is_empty() || facts.acks.is_some();
    decision.next = if begun { highest.checked_add(GAP).ok_or(Refused::Exhausted)? } else { highest };
    decision.acked.insert(last, decision.next);
    let Decision { segments, acked, .. } = &decision;
    let open = |segment: &Segment| segment.first == segment.next || acked.missing(segment.first, segment.next) > 0;
    let unsure = decision.unsure.iter().copied().filter(|id| segments.iter().any(|segment| segment.id == *id && open(segment))).collect();
    decision.unsure = unsure;
    Ok(decision)
}

/// The channel that most of the segments belong to.
fn identity(facts: &Facts) -> u64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for header in facts.segments.iter().filter_map(|segment| segment.header.as_ref().ok()) {
        *counts.entry(header.channel).or_default() += 1;
    }
    let noted = facts.acks.as_ref().map(|acks| acks.channel);
    let most = counts.iter().max_by_key(|(channel, count)| (**count, noted == Some(**channel))).map(|(channel, _)| *channel);
    most.or(noted).unwrap_or(facts.fresh)
}
