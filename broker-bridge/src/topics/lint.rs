//! What is wrong with a topic, what that leads to, and what to do. Pure: facts in, findings out.

use std::collections::BTreeMap;

use serde::Serialize;
use service_kit::kafka::ConfigEntry;

use super::{Allowed, MIN_ISR, advice, count, setting};

/// Records are lost, writes refused or consumers idle: [`Level::Error`]. It will hurt some day: [`Level::Warning`]. Worth a look: [`Level::Hint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Error,
    Warning,
    Hint,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Hint => "hint",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// The rule's name; it does not change.
    pub(crate) rule: &'static str,
    /// What is so, and what follows from it.
    pub(crate) message: String,
    /// What to do.
    pub(crate) remedy: String,
}

/// All that is known of a topic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    /// Of each partition.
    pub(crate) replicas: Vec<u32>,
    pub(crate) brokers: u32,
    pub(crate) config: Vec<ConfigEntry>,
    /// Members of the largest group that reads it, or what the caller says.
    pub(crate) consumers: u32,
    pub(crate) producers: u32,
    /// Records a second into all of it; `None` before the second look.
    pub(crate) rate: Option<f64>,
    /// Whether its newest records have keys; `None` where there are none.
    pub(crate) keyed: Option<bool>,
    /// Groups whose oldest unread record is that old, in seconds, and those that lost records before they read them.
    pub(crate) behind: BTreeMap<String, f64>,
    pub(crate) lost: BTreeMap<String, i64>,
}

const HOUR_MS: i64 = 3_600_000;

/// Below this many records a second and partition, more of them only cost.
const RATE_MIN: f64 = 1.0;
/// So many times the advised partitions are worth a hint, from this many on.
const FAR_TOO_MANY: u32 = 4;
const MANY: u32 = 24;

/// The worst first.
pub(crate) fn lint(facts: &Facts, allowed: Allowed) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    partitions(facts, allowed, &mut findings);
    replication(facts, &mut findings);
    min_isr(facts, &mut findings);
    cleanup(facts, &mut findings);
    retention(facts, &mut findings);
    if setting(&facts.config, "unclean.leader.election.enable") == Some("true") {
        findings.add(
            Level::Error,
            "unclean-election",
            "unclean.leader.election.enable is true: a replica that misses records may become leader, and acknowledged records are gone",
            "set unclean.leader.election.enable=false",
        );
    }
    findings.0.sort_by_key(|finding| finding.level);
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, rule: &'static str, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { level, rule, message: message.into(), remedy: remedy.into() });
    }
}

fn number(facts: &Facts, name: &str) -> Option<i64> {
    setting(&facts.config, name)?.parse().ok()
}

fn compacts(facts: &Facts) -> bool {
    setting(&facts.config, "cleanup.policy").is_some_and(|policy| policy.contains("compact"))
}

fn deletes(facts: &Facts) -> bool {
    setting(&facts.config, "cleanup.policy").is_none_or(|policy| policy.contains("delete"))
}

fn partitions(facts: &Facts, allowed: Allowed, findings: &mut Findings) {
    let (wanted, why) = advice::partitions(facts.consumers, facts.producers, facts.rate, allowed);
    let why = why.join("; ");
    let have = facts.partitions;
    let grow = || {
        format!(
            "grow it to {wanted} partitions (`millrace topic add-partitions {} --partitions {wanted}`){}",
            facts.name,
            what_growing_breaks(facts)
        )
    };
    if have < facts.consumers {
        let idle = facts.consumers - have;
        findings.add(
            Level::Error,
            "consumers-idle",
            format!("{} for {}: {idle} of them read nothing", count(have, "partition"), count(facts.consumers, "consumer")),
            grow(),
        );
    } else if have < wanted {
        findings.add(Level::Warning, "partitions-few", format!("{}, and {wanted} are advised: {why}", count(have, "partition")), grow());
    }
    let thin = facts.rate.is_some_and(|rate| rate < RATE_MIN * f64::from(have));
    if have > allowed.partitions_max {
        findings.add(
            Level::Warning,
            "partitions-many",
            format!(
                "{have} partitions are more than {} (topics.partitions_max); each costs the brokers files, memory and time at an election",
                allowed.partitions_max
            ),
            "make a smaller topic and move producers and consumers to it: partitions cannot be taken away",
        );
    } else if thin && have >= MANY && have > wanted.saturating_mul(FAR_TOO_MANY) {
        findings.add(
            Level::Hint,
            "partitions-many",
            format!("{have} partitions for {:.1} records/s, and {wanted} are advised: {why}", facts.rate.unwrap_or(0.0)),
            "leave it, or make a smaller topic: partitions cannot be taken away",
        );
    }
}

/// Said wherever more partitions are advised.
fn what_growing_breaks(facts: &Facts) -> &'static str {
    match (facts.keyed, compacts(facts)) {
        (_, true) => {
            ". It is compacted: keys move to other partitions, and the old partition keeps the old value of a key for ever; consumers see both, in no order. Better copy it into a new topic of that size"
        }
        (Some(true), false) => {
            ". Its records have keys: a key goes to another partition from then on, so the order of a key's records breaks at that point, and joins with topics of the old size and state kept by partition go wrong. Drain the consumers first, or copy it into a new topic of that size"
        }
        (None, false) => {
            ". If its records have keys, a key goes to another partition from then on, and the order of its records breaks at that point"
        }
        (Some(false), false) => "; its records have no keys, so nothing depends on their partition",
    }
}

fn replication(facts: &Facts, findings: &mut Findings) {
    let (Some(fewest), Some(most)) = (facts.replicas.iter().min().copied(), facts.replicas.iter().max().copied()) else { return };
    let wanted = facts.brokers.clamp(1, 3);
    let remedy = format!("reassign its partitions to {wanted} replicas (kafka-reassign-partitions.sh)");
    if fewest == 1 && facts.brokers >= 2 {
        findings.add(
            Level::Error,
            "replication",
            format!("a single copy, and the cluster has {} brokers: the records are lost with one disk, and cannot be read or written while one broker is away", facts.brokers),
            remedy,
        );
    } else if fewest == 1 {
        findings.add(
            Level::Warning,
            "replication",
            "a single copy: the records are lost with the broker's disk",
            "run 3 brokers where that matters",
        );
    } else if fewest < wanted {
        findings.add(
            Level::Warning,
            "replication",
            format!("{fewest} replicas, and {wanted} are advised: min(3, {} brokers)", facts.brokers),
            remedy,
        );
    }
    if fewest != most {
        findings.add(
            Level::Warning,
            "replication-uneven",
            format!("its partitions have {fewest} to {most} replicas: a reassignment did not end, or was forgotten"),
            "look with kafka-reassign-partitions.sh --list, and give all of them the same number",
        );
    }
}

fn min_isr(facts: &Facts, findings: &mut Findings) {
    let Some(replicas) = facts.replicas.iter().min().copied().filter(|replicas| *replicas > 0) else { return };
    let min = number(facts, MIN_ISR).and_then(|min| u32::try_from(min).ok()).unwrap_or(1);
    let advised = replicas.saturating_sub(1).max(1);
    let remedy = format!("set {MIN_ISR}={advised}");
    if min > replicas {
        findings.add(
            Level::Error,
            "min-isr",
            format!("{MIN_ISR} is {min} with {}: no write with acks=all ever succeeds", count(replicas, "replica")),
            remedy,
        );
    } else if min == replicas && replicas > 1 {
        findings.add(
            Level::Warning,
            "min-isr",
            format!(
                "{MIN_ISR} is {min} with {replicas} replicas: one broker away, as in every rolling restart, stops writes with acks=all"
            ),
            remedy,
        );
    } else if min == 1 && replicas >= 3 {
        findings.add(
            Level::Warning,
            "min-isr",
            format!("{MIN_ISR} is 1 with {replicas} replicas: a write may be acknowledged by the leader alone, and is lost with it"),
            remedy,
        );
    }
}

fn cleanup(facts: &Facts, findings: &mut Findings) {
    if compacts(facts) && facts.keyed == Some(false) {
        findings.add(
            Level::Error,
            "compact-without-keys",
            "cleanup.policy is compact, and the newest records have no keys: brokers refuse such records, or keep only one of them",
            "write records with keys, or set cleanup.policy=delete",
        );
    }
    let lag_ms = number(facts, "max.compaction.lag.ms");
    if compacts(facts)
        && setting(&facts.config, "min.cleanable.dirty.ratio").is_some_and(|ratio| ratio.parse() == Ok(1.0))
        && lag_ms == Some(i64::MAX)
    {
        findings.add(
            Level::Warning,
            "never-compacted",
            "min.cleanable.dirty.ratio is 1 and max.compaction.lag.ms is not set: the topic is hardly ever compacted",
            "set min.cleanable.dirty.ratio=0.5, or max.compaction.lag.ms",
        );
    }
}

fn retention(facts: &Facts, findings: &mut Findings) {
    let ms = number(facts, "retention.ms");
    let bytes = number(facts, "retention.bytes");
    if deletes(facts) {
        match ms {
            Some(-1) if bytes.is_none_or(|bytes| bytes < 0) => findings.add(
                Level::Warning,
                "retention-unbounded",
                "neither retention.ms nor retention.bytes bounds it: it grows until a disk is full",
                "set retention.ms, e.g. 604800000 (7 days), or retention.bytes",
            ),
            Some(ms) if (0..HOUR_MS).contains(&ms) => findings.add(
                Level::Warning,
                "retention-short",
                format!("retention.ms is {ms}: consumers that are away for {} s lose records", ms / 1000),
                "set retention.ms to the longest time a consumer may be away, e.g. 604800000 (7 days)",
            ),
            _ => {}
        }
        if let (Some(ms @ 0..), Some(segment)) = (ms, number(facts, "segment.ms"))
            && segment > ms
        {
            findings.add(
                Level::Hint,
                "segment-over-retention",
                format!("segment.ms is {segment} and retention.ms {ms}: a partition with few records keeps them until its segment is full or that old"),
                format!("set segment.ms to {} or less", (ms / 2).max(1)),
            );
        }
        for (group, seconds) in &facts.behind {
            if let Some(ms @ 1..) = ms
                && *seconds * 1000.0 > ms as f64 * 0.8
            {
                findings.add(
                    Level::Error,
                    "retention-under-lag",
                    format!("group {group:?} is {seconds:.0} s behind and retention.ms is {ms}: its next records are deleted before it reads them"),
                    "raise retention.ms now, then see why the group is behind (`millrace group lag`)",
                );
            }
        }
    }
    for (group, records) in &facts.lost {
        findings.add(
            Level::Error,
            "lost-before-read",
            format!("{records} records were deleted before group {group:?} read them"),
            "raise retention.ms or retention.bytes above the longest lag, and add consumers",
        );
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    const ALLOWED: Allowed = Allowed { partitions_max: 1_000, partition_rate_max: 10_000 };

    /// A topic that nothing is wrong with.
    fn good() -> Facts {
        Facts {
            name: "t".into(),
            partitions: 6,
            replicas: vec![3; 6],
            brokers: 3,
            config: config(&[("retention.ms", "604800000"), ("min.insync.replicas", "2"), ("cleanup.policy", "delete")]),
            consumers: 3,
            producers: 2,
            rate: Some(100.0),
            keyed: Some(true),
            ..Facts::default()
        }
    }

    fn config(entries: &[(&str, &str)]) -> Vec<ConfigEntry> {
        let entry = |(name, value): &(&str, &str)| ConfigEntry {
            name: (*name).into(),
            value: Some((*value).into()),
            is_default: false,
            is_sensitive: false,
        };
        entries.iter().map(entry).collect()
    }

    fn with(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = good();
        change(&mut facts);
        lint(&facts, ALLOWED)
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        facts.config.retain(|entry| entry.name != name);
        facts.config.extend(config(&[(name, value)]));
    }

    #[test]
    fn a_good_topic_has_no_findings() {
        assert_eq!(with(|_| {}), []);
    }

    #[test]
    fn each_rule_finds_what_it_is_for_and_nothing_else() {
        use Level::{Error, Hint, Warning};
        type Change = fn(&mut Facts);
        let cases: &[(Level, &str, Change, &str)] = &[
            (Error, "consumers-idle", |f| (f.partitions, f.replicas) = (2, vec![3; 2]), "1 of them read nothing"),
            (Warning, "partitions-few", |f| (f.partitions, f.replicas) = (4, vec![3; 4]), "max(3 consumers, 2 producers) × 2 = 6"),
            (Warning, "partitions-few", |f| f.rate = Some(75_000.0), "8 for the measured 75000 records/s at 10000 each"),
            (Warning, "partitions-many", |f| (f.partitions, f.rate) = (1_001, Some(1e6)), "topics.partitions_max"),
            (Hint, "partitions-many", |f| (f.partitions, f.rate) = (30, Some(2.0)), "30 partitions for 2.0 records/s"),
            (
                Error,
                "replication",
                |f| {
                    f.replicas = vec![1; 6];
                    set(f, MIN_ISR, "1")
                },
                "a single copy",
            ),
            (
                Warning,
                "replication",
                |f| {
                    f.replicas = vec![2; 6];
                    set(f, MIN_ISR, "1")
                },
                "min(3, 3 brokers)",
            ),
            (Warning, "replication-uneven", |f| f.replicas[0] = 4, "3 to 4"),
            (Error, "min-isr", |f| set(f, MIN_ISR, "4"), "no write with acks=all ever succeeds"),
            (Warning, "min-isr", |f| set(f, MIN_ISR, "3"), "rolling restart"),
            (Warning, "min-isr", |f| set(f, MIN_ISR, "1"), "by the leader alone"),
            (
                Error,
                "compact-without-keys",
                |f| {
                    f.keyed = Some(false);
                    set(f, "cleanup.policy", "compact")
                },
                "no keys",
            ),
            (
                Warning,
                "never-compacted",
                |f| {
                    set(f, "cleanup.policy", "compact");
                    set(f, "min.cleanable.dirty.ratio", "1");
                    set(f, "max.compaction.lag.ms", "9223372036854775807");
                },
                "hardly ever",
            ),
            (Warning, "retention-unbounded", |f| set(f, "retention.ms", "-1"), "until a disk is full"),
            (Warning, "retention-short", |f| set(f, "retention.ms", "60000"), "away for 60 s"),
            (Hint, "segment-over-retention", |f| set(f, "segment.ms", "604800001"), "until its segment"),
            (Error, "retention-under-lag", |f| f.behind = BTreeMap::from([("g".to_owned(), 590_000.0)]), "590000 s behind"),
            (Error, "lost-before-read", |f| f.lost = BTreeMap::from([("g".to_owned(), 12)]), "12 records were deleted"),
            (Error, "unclean-election", |f| set(f, "unclean.leader.election.enable", "true"), "acknowledged records are gone"),
        ];
        for (level, rule, change, words) in cases {
            let found = with(change);
            assert_eq!(found.len(), 1, "{rule}: {found:?}");
            assert_eq!((found[0].level, found[0].rule), (*level, *rule), "{found:?}");
            assert!(found[0].message.contains(words), "{words:?} is not in {found:?}");
            assert!(!found[0].remedy.is_empty());
        }
    }

    #[test]
    fn a_single_broker_is_no_error_and_size_bounds_a_topic_without_time() {
        let found = with(|facts| {
            (facts.brokers, facts.replicas) = (1, vec![1; 6]);
            set(facts, MIN_ISR, "1");
            set(facts, "retention.ms", "-1");
            set(facts, "retention.bytes", "1000000");
        });
        assert_eq!(found.iter().map(|finding| (finding.level, finding.rule)).collect::<Vec<_>>(), [(Level::Warning, "replication")]);
    }

    #[test]
    fn growing_says_what_it_breaks() {
        let remedy = |keyed, policy: &str| {
            let found = with(|facts| {
                (facts.partitions, facts.replicas, facts.keyed) = (4, vec![3; 4], keyed);
                set(facts, "cleanup.policy", policy);
            });
            found[0].remedy.clone()
        };
        assert!(remedy(Some(true), "delete").contains("order of a key's records breaks"));
        assert!(remedy(None, "delete").contains("If its records have keys"));
        assert!(remedy(Some(false), "delete").contains("no keys"));
        assert!(remedy(Some(true), "compact").contains("keeps the old value of a key for ever"));
    }

    #[test]
    fn the_worst_comes_first() {
        let found = with(|facts| {
            set(facts, "retention.ms", "-1");
            set(facts, "unclean.leader.election.enable", "true");
        });
        assert_eq!(found.iter().map(|finding| finding.level).collect::<Vec<_>>(), [Level::Error, Level::Warning]);
    }
}
