//! What is remembered of a partition: its last commits by a group, and where its end was at which time. Bounded; pure.

use std::collections::VecDeque;

use super::status::Commit;

/// Ends kept beyond the newest `intervals`: each time there are more, every second of the old ones goes, so they reach back far and coarsely.
const OLD_ENDS: usize = 64;

/// Puts a commit behind the others. One that follows too soon replaces the last one and keeps its time, else a group that commits often would
/// leave no history; the oldest goes when there are `size`.
pub(super) fn push_commit(ring: &mut VecDeque<Commit>, commit: Commit, size: usize, min_distance_ms: i64) {
    if let Some(last) = ring.back_mut()
        && commit.timestamp_ms - last.timestamp_ms < min_distance_ms
    {
        *last = Commit { timestamp_ms: last.timestamp_ms, ..commit };
        return;
    }
    if ring.len() >= size {
        ring.pop_front();
    }
    ring.push_back(commit);
}

/// `(time in ms, end)` of a partition, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    samples: Vec<(i64, i64)>,
    pub(super) earliest: i64,
}

impl Ends {
    pub(super) fn push(&mut self, at_ms: i64, end: i64, earliest: i64, recent: usize) {
        self.earliest = earliest;
        match self.samples.last() {
            // Another log than before: the topic was made anew, or lost its end.
            Some((_, last)) if end < *last => self.samples.clear(),
            Some((last_ms, _)) if at_ms <= *last_ms => return,
            _ => {}
        }
        self.samples.push((at_ms, end));
        if self.samples.len() > recent + OLD_ENDS {
            let old = self.samples.len() - recent;
            let mut at = 0;
            // The first is kept: it says how far back the rest reaches.
            self.samples.retain(|_| {
                at += 1;
                at > old || at % 2 == 1
            });
        }
    }

    /// The newest end.
    pub(super) fn end(&self) -> Option<i64> {
        self.samples.last().map(|(_, end)| *end)
    }

    /// The newest `count`, oldest first.
    pub(super) fn recent(&self, count: usize) -> Vec<i64> {
        self.samples[self.samples.len().saturating_sub(count)..].iter().map(|(_, end)| *end).collect()
    }

    /// The end that was known at a time; before the first one, the newest.
    pub(super) fn known_at(&self, at_ms: i64) -> Option<i64> {
        let before = self.samples.partition_point(|(sampled, _)| *sampled <= at_ms);
        before.checked_sub(1).map_or_else(|| self.end(), |at| Some(self.samples[at].1))
    }

    /// When the record at `offset` was written, in ms: between two looks at the end, in proportion. `None` before the first look, and where
    /// there is no such record yet.
    pub(super) fn written_at(&self, offset: i64) -> Option<i64> {
        let at = self.samples.partition_point(|(_, end)| *end <= offset);
        let (after_ms, after) = *self.samples.get(at)?;
        let (before_ms, before) = *self.samples.get(at.checked_sub(1)?)?;
        let share = (offset - before + 1) as f64 / (after - before) as f64;
        Some(before_ms + ((after_ms - before_ms) as f64 * share) as i64)
    }

    /// Records a second over all that is kept; `None` before the second look.
    pub(super) fn rate(&self) -> Option<f64> {
        let ((first_ms, first), (last_ms, last)) = (self.samples.first()?, self.samples.last()?);
        (last_ms > first_ms).then(|| (last - first) as f64 * 1000.0 / (last_ms - first_ms) as f64)
    }
}

/// Change a second of `(time in ms, value)`, by least squares; `None` for fewer than three, or at one time.
pub(super) fn slope<'a>(samples: impl ExactSizeIterator<Item = &'a (i64, i64)> + Clone) -> Option<f64> {
    let count = samples.len() as f64;
    let (first_ms, first) = *samples.clone().next()?;
    if samples.len() < 3 {
        return None;
    }
    // From the first on, so that large offsets lose no digits.
    let points = samples.map(|(at, value)| ((at - first_ms) as f64 / 1000.0, (value - first) as f64));
    let (mut x, mut y, mut xy, mut xx) = (0.0, 0.0, 0.0, 0.0);
    for (time, value) in points {
        x += time;
        y += value;
        xy += time * value;
        xx += time * time;
    }
    let spread = count * xx - x * x;
    (spread > 0.0).then(|| (count * xy - x * y) / spread)
}

#[cfg(test)]
mod tests {

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn commit(offset: i64, timestamp_ms: i64) -> Commit {
        Commit { offset, timestamp_ms, observed_ms: 0, lag: None }
    }

    #[test]
    fn frequent_commits_take_the_place_of_the_last_and_keep_its_time() {
        let mut ring = VecDeque::new();
        for (offset, time) in [(1, 0), (2, 500), (3, 900), (4, 1_000), (5, 2_500)] {
            push_commit(&mut ring, commit(offset, time), 10, 1_000);
        }
        let kept: Vec<_> = ring.iter().map(|commit| (commit.offset, commit.timestamp_ms)).collect();
        assert_eq!(kept, [(3, 0), (4, 1_000), (5, 2_500)]);
    }

    #[test]
    fn a_records_time_is_between_the_looks_around_it() {
        let mut ends = Ends::default();
        for (time, end) in [(10_000, 100), (20_000, 100), (30_000, 200), (40_000, 300)] {
            ends.push(time, end, 0, 10);
        }
        assert_eq!(ends.written_at(100), Some(20_100));
        assert_eq!(ends.written_at(149), Some(25_000));
        assert_eq!(ends.written_at(299), Some(40_000));
        assert_eq!((ends.written_at(99), ends.written_at(300)), (None, None), "before the first look, and not there");
        assert_eq!((ends.known_at(25_000), ends.known_at(5_000)), (Some(100), Some(300)));
        assert_eq!(ends.rate(), Some(200.0 / 30.0));
    }

    #[test]
    fn another_log_begins_anew() {
        let mut ends = Ends::default();
        ends.push(1, 500, 0, 3);
        ends.push(2, 7, 0, 3);
        assert_eq!((ends.end(), ends.samples.len(), ends.written_at(3)), (Some(7), 1, None));
    }

    #[test]
    fn old_ends_get_coarse_and_the_first_stays() {
        let mut ends = Ends::default();
        for at in 0..100_000 {
            ends.push(at * 1_000, at * 10, 0, 10);
        }
        assert!(ends.samples.len() <= 10 + OLD_ENDS);
        assert_eq!((ends.samples[0].0, ends.recent(3)), (0, vec![999_970, 999_980, 999_990]));
        let written = ends.written_at(500_000).unwrap();
        assert!((49_999_000..=50_001_000).contains(&written), "{written}");
    }

    #[test]
    fn a_slope_needs_three_samples_and_time() {
        let slope = |samples: &[(i64, i64)]| slope(samples.iter());
        assert_eq!((slope(&[]), slope(&[(0, 1), (1_000, 2)]), slope(&[(5, 1), (5, 2), (5, 3)])), (None, None, None));
        assert_eq!(slope(&[(0, 100), (1_000, 90), (2_000, 80)]), Some(-10.0));
        assert_eq!(slope(&[(0, 7), (10_000, 7), (20_000, 7)]), Some(0.0));
    }

    proptest! {
        #[test]
        fn times_follow_offsets(steps in vec((1i64..20_000, 0i64..500), 2..300), recent in 1usize..20) {
            let mut ends = Ends::default();
            let (mut time, mut end) = (0, 0);
            for (wait, more) in steps {
                (time, end) = (time + wait, end + more);
                ends.push(time, end, 0, recent);
            }
            let mut last = None;
            for offset in 0..end {
                let written = ends.written_at(offset);
                prop_assert!(written >= last || written.is_none() && last.is_none(), "{offset}: {written:?} after {last:?}");
                prop_assert!(written.is_none_or(|at| at <= time));
                last = written;
            }
            prop_assert_eq!(ends.written_at(end), None);
        }
    }
}
