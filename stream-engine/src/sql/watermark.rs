//! Event-time clocks: one per input partition, and the watermark that follows from them.
//!
//! The watermark is the least of `latest event time − delay` over the partitions that are not idle; it never goes back.
//! A partition that was read to its end and had no rows in the batch is idle: it holds nothing back. With
//! `SET 'table.exec.source.idle-timeout' = '10 s'` it is idle only after it was silent that long while others had rows, so
//! that partitions which come back one after the other after an outage wait for each other; with `0 s` never.
//! All times come from the batch definition, so a batch that runs again computes the same watermark.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Goes into the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clocks {
    /// Milliseconds since 1970; `None` before the first row of every partition that counts.
    pub(crate) watermark_ms: Option<i64>,
    /// By `topic-partition`.
    partitions: BTreeMap<String, Clock>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Clock {
    max_event_ms: Option<i64>,
    /// Time of the batch since which other partitions had rows and this one had none.
    silent_since_ms: Option<i64>,
}

/// What one batch brought for one partition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) partition: String,
    pub(crate) caught_up: bool,
    pub(crate) max_event_ms: Option<i64>,
}

impl Clocks {
    /// `batch_ms`: time of the batch. `idle_after`: `None` at once, zero never.
    pub(crate) fn advance(&mut self, batch_ms: i64, seen: &[Seen], delay_ms: i64, idle_after: Option<Duration>) {
        let mut least: Option<Option<i64>> = None;
        let any_rows = seen.iter().any(|seen| seen.max_event_ms.is_some());
        for seen in seen {
            let first = Clock { max_event_ms: None, silent_since_ms: None };
            let clock = self.partitions.entry(seen.partition.clone()).or_insert(first);
            clock.max_event_ms = clock.max_event_ms.max(seen.max_event_ms);
            clock.silent_since_ms = match (seen.max_event_ms, any_rows) {
                (None, true) => clock.silent_since_ms.or(Some(batch_ms)),
                _ => None,
            };
            let silent = clock.silent_since_ms.map_or(0, |since| batch_ms.saturating_sub(since));
            let long_enough = idle_after.is_none_or(|after| !after.is_zero() && i128::from(silent) >= after.as_millis() as i128);
            let idle = seen.caught_up && seen.max_event_ms.is_none() && long_enough;
            if !idle {
                // `None` is the least: a partition that has shown nothing yet holds everything back.
                least = Some(least.map_or(clock.max_event_ms, |least| least.min(clock.max_event_ms)));
            }
        }
        if let Some(Some(least)) = least {
            self.watermark_ms = self.watermark_ms.max(Some(least - delay_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(partition: &str, caught_up: bool, max_event_ms: Option<i64>) -> Seen {
        Seen { partition: partition.into(), caught_up, max_event_ms }
    }

    #[test]
    fn the_slowest_partition_that_is_not_idle_sets_the_watermark() {
        let mut clocks = Clocks::default();
        let mut step = |batch_ms, seen: &[Seen], idle| {
            clocks.advance(batch_ms, seen, 5, idle);
            clocks.watermark_ms
        };
        assert_eq!(step(0, &[seen("t-0", true, Some(100)), seen("t-1", false, None)], None), None, "t-1 has more to read");
        assert_eq!(step(1, &[seen("t-0", true, Some(110)), seen("t-1", false, Some(50))], None), Some(45));
        assert_eq!(step(2, &[seen("t-0", true, None), seen("t-1", true, Some(60))], None), Some(55), "t-0 is idle, t-1 is not");
        assert_eq!(step(3, &[seen("t-0", true, Some(120)), seen("t-1", true, None)], None), Some(115), "t-1 is idle");
        assert_eq!(step(4, &[seen("t-0", true, None), seen("t-1", true, Some(70))], None), Some(115), "never back");
        assert_eq!(step(5, &[seen("t-0", true, None), seen("t-1", true, None)], None), Some(115), "all idle");
    }

    #[test]
    fn an_idle_timeout_delays_or_forbids_idleness() {
        let mut clocks = Clocks::default();
        let second = Some(Duration::from_secs(1));
        clocks.advance(0, &[seen("t-0", true, Some(100)), seen("t-1", true, Some(10))], 0, second);
        clocks.advance(60_000, &[seen("t-0", true, None), seen("t-1", true, None)], 0, second);
        clocks.advance(60_100, &[seen("t-0", true, Some(200)), seen("t-1", true, None)], 0, second);
        clocks.advance(61_000, &[seen("t-0", true, Some(250)), seen("t-1", true, None)], 0, second);
        assert_eq!(clocks.watermark_ms, Some(10), "the silence of all does not count, and since t-0 is back it is too short");
        clocks.advance(61_100, &[seen("t-0", true, Some(300)), seen("t-1", true, None)], 0, second);
        assert_eq!(clocks.watermark_ms, Some(300));

        let mut clocks = Clocks::default();
        let never = Some(Duration::ZERO);
        clocks.advance(0, &[seen("t-0", true, Some(100)), seen("t-1", true, None)], 0, never);
        clocks.advance(999_999, &[seen("t-0", true, Some(300)), seen("t-1", true, None)], 0, never);
        assert_eq!(clocks.watermark_ms, None);
    }
}
