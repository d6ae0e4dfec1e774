//! How far a batch reads: `[from, until)` per partition, within the limits that are set.
//!
//! `maxRatePerPartition` limits each partition, the backpressure estimate all of a source together: it is split over
//! the partitions by their lag. No limit of a partition goes below `minRatePerPartition` records a batch.

use std::{collections::BTreeMap, time::Duration};

use service_kit::kafka::{Bounds, TopicPartition};

use super::OffsetRange;
use crate::job::JobSettings;

/// What limits the batches of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub interval: Duration,
    /// Records per second and partition.
    pub max_rate_per_partition: Option<u64>,
    /// Records per batch and partition.
    pub min_rate_per_partition: u64,
    /// Records per second over all partitions.
    pub backpressure_rate: Option<f64>,
    /// Records per batch over all partitions.
    pub records_max: Option<u64>,
}

impl Limits {
    pub fn new(settings: &JobSettings, backpressure_rate: Option<f64>) -> Self {
        Self {
            interval: settings.batch_interval,
            max_rate_per_partition: settings.max_rate_per_partition,
            min_rate_per_partition: settings.min_rate_per_partition,
            backpressure_rate,
            records_max: settings.records_max,
        }
    }

    /// Everything there is.
    pub fn none(interval: Duration) -> Self {
        Self { interval, max_rate_per_partition: None, min_rate_per_partition: 1, backpressure_rate: None, records_max: None }
    }
}

/// Records per batch for each partition by its rate, given its lag; `None` means no limit.
pub fn records_by_rate(lag: &BTreeMap<TopicPartition, u64>, limits: &Limits) -> Option<BTreeMap<TopicPartition, u64>> {
    let total_lag: u64 = lag.values().sum();
    let max_rate = limits.max_rate_per_partition.map(|rate| rate as f64);
    let rates: BTreeMap<&TopicPartition, f64> = lag
        .iter()
        .map(|(partition, lag)| {
            let rate = match limits.backpressure_rate.filter(|rate| *rate > 0.0) {
                // Without lag this is NaN, and a sum with a NaN in it is no limit.
                Some(rate) => {
                    let share = *lag as f64 / total_lag as f64 * rate;
                    max_rate.map_or(share, |max| if share.is_nan() { share } else { share.min(max) })
                }
                None => max_rate.unwrap_or(0.0),
            };
            (partition, rate)
        })
        .collect();
    if rates.values().sum::<f64>() > 0.0 {
        let seconds = limits.interval.as_millis() as f64 / 1000.0;
        let records = |rate: f64| ((seconds * rate) as u64).max(limits.min_rate_per_partition);
        Some(rates.into_iter().map(|(partition, rate)| (partition.clone(), records(rate))).collect())
    } else {
        None
    }
}

/// The range of every partition in `positions`, ordered by topic and partition, and whether it reaches the end.
/// `ends` are where a bounded source ends; partitions that are not in it do not end.
pub fn cut(
    positions: &BTreeMap<TopicPartition, i64>,
    bounds: &BTreeMap<TopicPartition, Bounds>,
    ends: Option<&BTreeMap<TopicPartition, i64>>,
    limits: &Limits,
) -> Vec<(OffsetRange, bool)> {
    let latest = |partition: &TopicPartition, from: i64| {
        let latest = bounds.get(partition).map_or(from, |bounds| bounds.latest);
        let end = ends.and_then(|ends| ends.get(partition)).copied().unwrap_or(i64::MAX);
        latest.min(end).max(from)
    };
    let lag: BTreeMap<TopicPartition, u64> = positions
        .iter()
        .map(|(partition, from)| (partition.clone(), u64::try_from(latest(partition, *from) - from).unwrap_or(0)))
        .collect();
    let by_rate = records_by_rate(&lag, limits);
    let total_lag: u128 = lag.values().map(|lag| u128::from(*lag)).sum();
    // The share of each partition in what a batch may hold, rounded up so that every one goes on.
    let share = |lag: u64| match limits.records_max {
        Some(max) if total_lag > u128::from(max) => {
            u64::try_from((u128::from(lag) * u128::from(max)).div_ceil(total_lag)).unwrap_or(u64::MAX)
        }
        _ => u64::MAX,
    };
    positions
        .iter()
        .map(|(partition, from)| {
            let latest = latest(partition, *from);
            let by_rate = by_rate.as_ref().and_then(|max| max.get(partition)).copied().unwrap_or(u64::MAX);
            let max = by_rate.min(lag.get(partition).map_or(u64::MAX, |lag| share(*lag)));
            let until = from.saturating_add(i64::try_from(max).unwrap_or(i64::MAX)).min(latest);
            let range = OffsetRange { topic: partition.topic.clone(), partition: partition.partition, from: *from, until };
            (range, until == latest)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tp(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    fn limits(max: Option<u64>, min: u64, backpressure: Option<f64>) -> Limits {
        Limits {
            interval: Duration::from_secs(5),
            max_rate_per_partition: max,
            min_rate_per_partition: min,
            backpressure_rate: backpressure,
            records_max: None,
        }
    }

    #[track_caller]
    fn check(lag: &[u64], limits: &Limits, expected: Option<&[u64]>) {
        let lag = lag.iter().enumerate().map(|(n, lag)| (tp(n as i32), *lag)).collect();
        let got = records_by_rate(&lag, limits).map(|max| max.into_values().collect::<Vec<_>>());
        assert_eq!(got.as_deref(), expected);
    }

    #[test]
    fn without_settings_there_is_no_limit() {
        check(&[10, 20], &limits(None, 1, None), None);
    }

    #[test]
    fn max_rate_is_per_second_and_partition() {
        check(&[1000, 0], &limits(Some(10), 1, None), Some(&[50, 50]));
    }

    #[test]
    fn backpressure_is_split_by_lag() {
        check(&[300, 100], &limits(None, 1, Some(100.0)), Some(&[375, 125]));
        check(&[300, 0], &limits(None, 1, Some(100.0)), Some(&[500, 1]));
    }

    #[test]
    fn the_smaller_of_max_rate_and_backpressure_counts() {
        check(&[300, 100], &limits(Some(50), 1, Some(100.0)), Some(&[250, 125]));
    }

    #[test]
    fn min_rate_is_records_per_batch() {
        check(&[999, 1], &limits(None, 10, Some(1.0)), Some(&[10, 10]));
        check(&[5, 5], &limits(Some(1), 100, None), Some(&[100, 100]));
    }

    #[test]
    fn without_lag_backpressure_sets_no_limit() {
        check(&[0, 0], &limits(None, 1, Some(100.0)), None);
        check(&[0, 0], &limits(Some(10), 1, Some(100.0)), None);
    }

    #[test]
    fn fractions_of_a_record_are_cut_off() {
        let limits = Limits { interval: Duration::from_millis(333), ..limits(Some(10), 1, None) };
        check(&[100], &limits, Some(&[3]));
    }

    #[test]
    fn a_batch_holds_no_more_than_it_may_split_by_lag() {
        let positions = BTreeMap::from([(tp(0), 0), (tp(1), 0), (tp(2), 0)]);
        let bounds = [(0, 900), (1, 99), (2, 1)].map(|(p, latest)| (tp(p), Bounds { earliest: 0, latest }));
        let limits = Limits { records_max: Some(100), ..limits(None, 1, None) };
        let cut = cut(&positions, &bounds.into(), None, &limits);
        let until: Vec<(i64, bool)> = cut.iter().map(|(range, caught_up)| (range.until, *caught_up)).collect();
        assert_eq!(until, [(90, false), (10, false), (1, true)]);
    }

    fn cut_one(from: i64, earliest: i64, latest: i64, end: Option<i64>, limits: &Limits) -> (i64, i64, bool) {
        let ends = end.map(|end| BTreeMap::from([(tp(0), end)]));
        let bounds = BTreeMap::from([(tp(0), Bounds { earliest, latest })]);
        let cut = cut(&BTreeMap::from([(tp(0), from)]), &bounds, ends.as_ref(), limits);
        (cut[0].0.from, cut[0].0.until, cut[0].1)
    }

    #[test]
    fn a_cut_reaches_from_the_position_to_the_limit_or_the_end() {
        let five_a_batch = limits(Some(1), 1, None);
        let unlimited = limits(None, 1, None);
        for (from, latest, end, limits, expected) in [
            (10, 100, None, &unlimited, (10, 100, true)),
            (10, 100, None, &five_a_batch, (10, 15, false)),
            (98, 100, None, &five_a_batch, (98, 100, true)),
            (100, 100, None, &five_a_batch, (100, 100, true)),
            (10, 100, Some(50), &unlimited, (10, 50, true)),
            (10, 100, Some(12), &five_a_batch, (10, 12, true)),
            (10, 40, Some(50), &unlimited, (10, 40, true)),
            // Past its end, or after the high watermark went back: nothing, and never backwards.
            (60, 100, Some(50), &unlimited, (60, 60, true)),
            (60, 50, None, &unlimited, (60, 60, true)),
        ] {
            assert_eq!(cut_one(from, 0, latest, end, limits), expected, "{from} {latest} {end:?}");
        }
    }
}
