//! Event-time clocks: one per input partition, and the watermark that follows from them.
//!
//! The watermark is the least of `latest event time − delay` over the partitions that are not idle; it never goes back.
//! A partition holds it back from the moment it is known, also before its first row, until it is idle: read to its end, and
//! silent for `table.exec.source.idle-timeout` while others had rows. Silence is counted batch by batch, at most one
//! interval for each, so neither a pause of all partitions nor time in which no batch ran counts. With `0 s` no partition
//! is ever idle. Of a bounded source, a partition that was read to its end is done and holds nothing back.
//! All times come from batch definitions and the snapshot, so a batch that runs again computes the same watermark.
//! See docs/decisions/0004-idle-partitions.md.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Goes into the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clocks {
    /// Milliseconds since 1970; `None` before the first row of every partition that counts.
    pub(crate) watermark_ms: Option<i64>,
    /// Time of the newest batch.
    #[serde(default)]
    batch_ms: Option<i64>,
    /// By `topic-partition`.
    partitions: BTreeMap<String, Clock>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Clock {
    max_event_ms: Option<i64>,
    /// How long others have had rows and this one none.
    #[serde(default)]
    silent_ms: i64,
}

/// What one batch brought for one partition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) partition: String,
    pub(crate) caught_up: bool,
    pub(crate) max_event_ms: Option<i64>,
}

/// How a table's watermark moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) delay_ms: i64,
    /// Zero: never.
    pub(crate) idle_after: Duration,
    /// Silence that one batch may add.
    pub(crate) interval_ms: i64,
    pub(crate) bounded: bool,
}

impl Clocks {
    pub(crate) fn advance(&mut self, batch_ms: i64, seen: &[Seen], pace: Pace) {
        let passed = self.batch_ms.map_or(0, |before| batch_ms.saturating_sub(before)).clamp(0, pace.interval_ms);
        self.batch_ms = Some(batch_ms);
        let idle_after = i64::try_from(pace.idle_after.as_millis()).unwrap_or(i64::MAX);
        let any_rows = seen.iter().any(|seen| seen.max_event_ms.is_some());
        let mut least: Option<Option<i64>> = None;
        for seen in seen {
            let clock = self.partitions.entry(seen.partition.clone()).or_default();
            clock.max_event_ms = clock.max_event_ms.max(seen.max_event_ms);
            let silent = seen.caught_up && seen.max_event_ms.is_none();
            clock.silent_ms = if silent && any_rows { clock.silent_ms.saturating_add(passed) } else { 0 };
            let idle = silent && (pace.bounded || (idle_after > 0 && clock.silent_ms >= idle_after));
            if !idle {
                // `None` is the least: a partition that has shown nothing yet holds everything back.
                least = Some(least.map_or(clock.max_event_ms, |least| least.min(clock.max_event_ms)));
            }
        }
        if let Some(Some(least)) = least {
            self.watermark_ms = self.watermark_ms.max(Some(least - pace.delay_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(partition: &str, caught_up: bool, max_event_ms: Option<i64>) -> Seen {
        Seen { partition: partition.into(), caught_up, max_event_ms }
    }

    fn row(partition: &str, event_ms: i64) -> Seen {
        seen(partition, true, Some(event_ms))
    }

    fn silent(partition: &str) -> Seen {
        seen(partition, true, None)
    }

    fn pace(idle_after_ms: u64) -> Pace {
        Pace { delay_ms: 5, idle_after: Duration::from_millis(idle_after_ms), interval_ms: 100, bounded: false }
    }

    #[test]
    fn a_partition_that_is_not_idle_holds_the_watermark_back() {
        let mut clocks = Clocks::default();
        let mut step = |batch_ms, seen: &[Seen]| {
            clocks.advance(batch_ms, seen, pace(200));
            clocks.watermark_ms
        };
        assert_eq!(step(0, &[row("t-0", 100), silent("t-1")]), None, "t-1 has shown nothing yet");
        assert_eq!(step(100, &[row("t-0", 110), row("t-1", 50)]), Some(45));
        assert_eq!(step(200, &[row("t-0", 900), silent("t-1")]), Some(45), "silent for a moment is not idle");
        assert_eq!(step(300, &[row("t-0", 910), row("t-1", 60)]), Some(55), "its rows are in time");
        assert_eq!(step(400, &[row("t-0", 920), silent("t-1")]), Some(55));
        assert_eq!(step(500, &[row("t-0", 930), silent("t-1")]), Some(925), "idle after 200 ms");
        assert_eq!(step(600, &[silent("t-0"), row("t-1", 70)]), Some(925), "never back");
        assert_eq!(step(700, &[silent("t-0"), silent("t-1")]), Some(925));
    }

    #[test]
    fn what_is_not_read_to_its_end_is_never_idle() {
        let mut clocks = Clocks::default();
        for n in 0..50 {
            clocks.advance(n * 100, &[row("t-0", n * 100), seen("t-1", false, None)], pace(200));
        }
        assert_eq!(clocks.watermark_ms, None);
    }

    #[test]
    fn silence_of_all_and_time_without_batches_do_not_count() {
        let mut clocks = Clocks::default();
        clocks.advance(0, &[row("t-0", 100), row("t-1", 10)], pace(200));
        for n in 1..50 {
            clocks.advance(n * 100, &[silent("t-0"), silent("t-1")], pace(200));
        }
        clocks.advance(5_000, &[row("t-0", 200), silent("t-1")], pace(200));
        assert_eq!(clocks.watermark_ms, Some(5), "t-1 is alone silent for one interval");
        // As after an outage of an hour: t-0 is back first.
        clocks.advance(3_600_000, &[row("t-0", 300), silent("t-1")], pace(250));
        assert_eq!(clocks.watermark_ms, Some(5), "the outage counts for one interval");
        clocks.advance(3_600_100, &[row("t-0", 400), silent("t-1")], pace(250));
        assert_eq!(clocks.watermark_ms, Some(395), "no row came from t-1 for 250 ms of batches");
    }

    #[test]
    fn zero_means_never_and_a_bounded_source_is_done_at_its_end() {
        let mut clocks = Clocks::default();
        for n in 0..1000 {
            clocks.advance(n * 100, &[row("t-0", 100 + n), silent("t-1")], pace(0));
        }
        assert_eq!(clocks.watermark_ms, None);
        let bounded = Pace { bounded: true, ..pace(0) };
        clocks.advance(100_000, &[seen("t-0", false, Some(2_000)), silent("t-1")], bounded);
        assert_eq!(clocks.watermark_ms, Some(1_995));
    }

    #[test]
    fn a_new_partition_holds_the_watermark_where_it_is() {
        let mut clocks = Clocks::default();
        clocks.advance(0, &[row("t-0", 100)], pace(200));
        clocks.advance(100, &[row("t-0", 200), silent("t-1")], pace(200));
        assert_eq!(clocks.watermark_ms, Some(95));
        clocks.advance(200, &[row("t-0", 300), row("t-1", 250)], pace(200));
        assert_eq!(clocks.watermark_ms, Some(245));
    }

    #[test]
    fn clocks_survive_a_snapshot() {
        let mut clocks = Clocks::default();
        clocks.advance(0, &[row("t-0", 100), row("t-1", 50)], pace(200));
        clocks.advance(100, &[row("t-0", 110), silent("t-1")], pace(200));
        let text = serde_json::to_string(&clocks).unwrap_or_default();
        let mut restored: Clocks = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(restored, clocks);
        restored.advance(200, &[row("t-0", 120), silent("t-1")], pace(200));
        assert_eq!(restored.watermark_ms, Some(115), "the silence before the restart counts too");
    }
}
