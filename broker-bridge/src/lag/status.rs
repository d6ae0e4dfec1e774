//! How a consumer group is, by the rules of LinkedIn's Burrow. Pure: commits and ends in, status out.
//!
//! The rules, in their order; the first that fits decides:
//!
//! 1. the lag is at most what is allowed → OK
//! 2. nothing was committed for longer than all kept commits span, and no kept end was reached → STOP
//! 3. an offset went back and was not reached again since → REWIND
//! 4. at some kept commit the lag was at most what is allowed → OK
//! 5. all kept commits are of one offset → STALL
//! 6. the lag never fell from one commit to the next → WARN, else OK

use serde::Serialize;

/// In Burrow's order and with its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    /// Of groups alone: nobody knows it.
    #[serde(rename = "NOTFOUND")]
    NotFound = 0,
    #[default]
    Ok = 1,
    /// It reads, and falls behind.
    Warn = 2,
    /// Of groups alone: a partition is in one of the states below.
    #[serde(rename = "ERR")]
    Error = 3,
    Stop = 4,
    Stall = 5,
    Rewind = 6,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::NotFound => "NOTFOUND",
            Status::Ok => "OK",
            Status::Warn => "WARN",
            Status::Error => "ERR",
            Status::Stop => "STOP",
            Status::Stall => "STALL",
            Status::Rewind => "REWIND",
        }
    }

    /// A group is as its worst partition, and in error when that is worse than lagging.
    pub(crate) fn of_group(partitions: impl IntoIterator<Item = Status>) -> Status {
        partitions.into_iter().fold(Status::Ok, Status::max).min(Status::Error)
    }
}

/// One commit as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    /// When it was seen here.
    pub(crate) observed_ms: i64,
    /// Records behind at that time; `None` where the end was not known.
    pub(crate) lag: Option<u64>,
}

/// `commits` oldest first; `ends` in any order. Nothing committed is OK.
pub(crate) fn of_partition(commits: &[Commit], ends: &[i64], current_lag: u64, now_s: i64, allowed_lag: u64) -> Status {
    let Some(last) = commits.last() else { return Status::Ok };
    if current_lag <= allowed_lag {
        return Status::Ok;
    }
    if stopped(commits, now_s) && !ends.iter().any(|end| *end <= last.offset) {
        return Status::Stop;
    }
    if let Some(at) = went_back(commits)
        && !commits[at..].iter().any(|commit| commit.offset >= commits[at - 1].offset)
    {
        return Status::Rewind;
    }
    if commits.iter().any(|commit| commit.lag.is_some_and(|lag| lag <= allowed_lag)) {
        return Status::Ok;
    }
    if commits.iter().all(|commit| commit.offset == last.offset) {
        return Status::Stall;
    }
    if lag_never_fell(commits) { Status::Warn } else { Status::Ok }
}

fn stopped(commits: &[Commit], now_s: i64) -> bool {
    let (Some(first), Some(last)) = (commits.first(), commits.last()) else { return false };
    now_s.saturating_mul(1000).saturating_sub(last.timestamp_ms) > last.timestamp_ms.saturating_sub(first.timestamp_ms)
}

/// Where an offset is below the one before it, for the first time.
fn went_back(commits: &[Commit]) -> Option<usize> {
    (1..commits.len()).find(|at| commits[*at].offset < commits[at - 1].offset)
}

fn lag_never_fell(commits: &[Commit]) -> bool {
    let lags: Vec<u64> = commits.iter().filter_map(|commit| commit.lag).collect();
    lags.is_sorted()
}

#[cfg(test)]
mod tests {

    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    /// `(offset, time in ms, lag)`
    type Row = (i64, i64, Option<u64>);

    struct Case {
        commits: Vec<Row>,
        ends: Vec<i64>,
        lag: u64,
        now_s: i64,
        allowed: u64,
        status: Status,
        /// What the single rules say: stopped, where it went back, lag never fell.
        rules: (bool, Option<usize>, bool),
    }

    fn commits(rows: &[Row]) -> Vec<Commit> {
        rows.iter()
            .map(|(offset, timestamp_ms, lag)| Commit { offset: *offset, timestamp_ms: *timestamp_ms, observed_ms: 0, lag: *lag })
            .collect()
    }

    /// One commit each 100 s from 100 s on.
    fn steady(offsets: [i64; 5], lags: [u64; 5]) -> Vec<Row> {
        (0..5).map(|at| (offsets[at], 100_000 * (at as i64 + 1), Some(lags[at]))).collect()
    }

    const RISING: [i64; 5] = [1000, 2000, 3000, 4000, 5000];
    const SAME: [i64; 5] = [1000; 5];
    const BACK_AND_AGAIN: [i64; 5] = [1000, 2000, 3000, 2000, 4000];
    const JUMP: [u64; 5] = [100, 150, 200, 1250, 300];

    /// A commit about each second, always at the end.
    fn busy() -> Vec<Row> {
        let times =
            [18_356, 19_362, 20_366, 21_367, 22_370, 23_373, 24_378, 25_379, 26_383, 27_383, 28_383, 29_388, 30_391, 31_394, 32_397];
        times.iter().zip(792_748_079..).map(|(time, offset)| (offset, 1_512_224_600_000 + time, Some(0))).collect()
    }

    /// Burrow's sixteen, in its order: what its evaluator is held to.
    fn cases() -> Vec<Case> {
        let case = |commits: Vec<Row>, ends: &[i64], lag, now_s, allowed, rules, status| Case {
            commits,
            ends: ends.to_vec(),
            lag,
            now_s,
            allowed,
            rules,
            status,
        };
        let to_200 = [0, 50, 100, 150, 200];
        let to_250 = [50, 100, 150, 200, 250];
        let to_300 = [100, 150, 200, 250, 300];
        let mut with_unknown = Vec::new();
        for (offset, time, lag) in steady(RISING, to_200) {
            with_unknown.extend([(offset, time, lag), (offset + 500, time + 50_000, None)]);
        }
        vec![
            case(steady(RISING, to_200), &[5200], 200, 600, 0, (false, None, true), Status::Ok),
            case(steady(RISING, to_200), &[5200], 200, 900, 0, (false, None, true), Status::Ok),
            case(steady(RISING, to_200), &[5200], 200, 1000, 0, (true, None, true), Status::Stop),
            case(steady(RISING, to_250), &[5250], 250, 1000, 0, (true, None, true), Status::Stop),
            case(steady(SAME, to_200), &[1200], 200, 600, 0, (false, None, true), Status::Ok),
            case(steady(SAME, to_300), &[1300], 300, 600, 0, (false, None, true), Status::Stall),
            case(steady(SAME, [100; 5]), &[1100], 100, 600, 0, (false, None, true), Status::Stall),
            case(steady(BACK_AND_AGAIN, JUMP), &[4300], 300, 600, 0, (false, Some(3), false), Status::Ok),
            case(steady(RISING, to_250), &[5250], 0, 1000, 0, (true, None, true), Status::Ok),
            case(
                busy(),
                &[792_749_024, 792_749_000, 792_748_800, 792_748_600, 792_748_500],
                931,
                1_512_224_650,
                0,
                (true, None, true),
                Status::Stop,
            ),
            case(busy(), &[792_748_094, 792_748_093, 792_748_093, 792_748_093], 1, 1_512_224_650, 0, (true, None, true), Status::Ok),
            case(with_unknown, &[5700], 200, 600, 0, (false, None, true), Status::Ok),
            case(
                vec![(1000, 100_000, Some(2)), (2000, 200_000, Some(1)), (2000, 300_000, Some(1))],
                &[2001],
                1,
                550,
                1,
                (true, None, false),
                Status::Ok,
            ),
            case(steady(SAME, to_300), &[1300], 300, 600, 99, (false, None, true), Status::Stall),
            case(steady(BACK_AND_AGAIN, JUMP), &[4300], 300, 600, 99, (false, Some(3), false), Status::Ok),
            case(steady([1000, 2000, 3000, 2000, 2500], JUMP), &[4300], 300, 600, 0, (false, Some(3), false), Status::Rewind),
        ]
    }

    #[test]
    fn burrows_sixteen_cases() {
        let cases = cases();
        assert_eq!(cases.len(), 16);
        for (number, case) in cases.iter().enumerate() {
            let commits = commits(&case.commits);
            let rules = (stopped(&commits, case.now_s), went_back(&commits), lag_never_fell(&commits));
            assert_eq!(rules, case.rules, "rules of case {number}");
            assert_eq!(of_partition(&commits, &case.ends, case.lag, case.now_s, case.allowed), case.status, "case {number}");
        }
    }

    #[test]
    fn what_lags_more_and_more_is_a_warning() {
        let commits = commits(&steady(RISING, [10, 10, 20, 30, 30]));
        assert_eq!(of_partition(&commits, &[5030], 30, 600, 0), Status::Warn);
        assert_eq!(of_partition(&commits, &[5030], 30, 600, 9), Status::Warn);
        assert_eq!(of_partition(&commits, &[5030], 30, 600, 10), Status::Ok, "it was within bounds once");
    }

    #[test]
    fn a_group_is_as_its_worst_partition() {
        use Status::{Error, Ok, Rewind, Stall, Stop, Warn};
        for (partitions, group) in [(&[][..], Ok), (&[Ok, Warn], Warn), (&[Ok, Stop], Error), (&[Stall, Warn], Error), (&[Rewind], Error)] {
            assert_eq!(Status::of_group(partitions.iter().copied()), group, "{partitions:?}");
        }
        assert_eq!((Status::NotFound as u8, Error as u8, Rewind as u8), (0, 3, 6));
        for status in [Status::NotFound, Ok, Warn, Error, Stop, Stall, Rewind] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.name());
        }
    }

    prop_compose! {
        fn any_commits()(rows in vec((0i64..50, 0i64..20_000, option::of(0u64..40)), 1..12)) -> Vec<Commit> {
            let mut time = 0;
            rows.into_iter().map(|(offset, step, lag)| { time += step; Commit { offset, timestamp_ms: time, observed_ms: time, lag } }).collect()
        }
    }

    proptest! {
        #[test]
        fn what_must_hold_of_any_history(commits in any_commits(), ends in vec(0i64..60, 0..6), lag in 0u64..60, wait_s in 0i64..300, allowed in 0u64..20) {
            let last = *commits.last().unwrap();
            let now_s = last.timestamp_ms / 1000 + wait_s;
            let status = of_partition(&commits, &ends, lag, now_s, allowed);
            prop_assert!(!matches!(status, Status::NotFound | Status::Error), "these are groups'");
            if lag <= allowed {
                prop_assert_eq!(status, Status::Ok);
            }
            if ends.iter().any(|end| *end <= last.offset) {
                prop_assert_ne!(status, Status::Stop, "it was at the end a moment ago");
            }
            if went_back(&commits).is_none() {
                prop_assert_ne!(status, Status::Rewind);
            }
            if status == Status::Stall {
                prop_assert!(commits.iter().all(|commit| commit.offset == last.offset));
            }
            if status == Status::Warn {
                prop_assert!(commits.iter().all(|commit| commit.lag.is_none_or(|lag| lag > allowed)) && lag_never_fell(&commits));
            }
            // Whoever stopped stays stopped until something is committed.
            if status == Status::Stop {
                prop_assert_eq!(of_partition(&commits, &ends, lag, now_s + 3_600, allowed), Status::Stop);
            }
            // Times and offsets have no zero: all moved by as much is the same history.
            let moved: Vec<Commit> = commits.iter().map(|c| Commit { offset: c.offset + 1_000, timestamp_ms: c.timestamp_ms + 60_000, ..*c }).collect();
            let moved_ends: Vec<i64> = ends.iter().map(|end| end + 1_000).collect();
            prop_assert_eq!(of_partition(&moved, &moved_ends, lag, now_s + 60, allowed), status);
        }
    }
}
