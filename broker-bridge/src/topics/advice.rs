//! How many partitions and replicas a topic should have, and why. Pure: numbers in, advice out.
//!
//! - partitions = max(consumers, producers) × 2: every consumer has work, and the group can double before the topic must grow
//! - at least as many as carry the measured records, one taking `topics.partition_rate_max` a second; at most `topics.partitions_max`
//! - replication = min(3, brokers)
//! - min.insync.replicas = 2 of three replicas or more, else 1: one broker may be away without stopping writes with acks=all

/// Advice for one topic, with a reason for each number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Advice {
    pub(crate) partitions: u32,
    pub(crate) replication: u32,
    pub(crate) min_insync_replicas: u32,
    pub(crate) reasons: Vec<String>,
}

/// What a partition takes, and how many there may be: `[topics]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub(crate) partitions_max: u32,
    pub(crate) partition_rate_max: u32,
}

/// A topic that is there, and the records a second into all of it; `None` before the second look.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measured {
    pub(crate) topic: String,
    pub(crate) rate: Option<f64>,
}

const REPLICATION_MAX: u32 = 3;

/// Partitions by the rule, by the records a second that they must carry, and by what is allowed; and why. Consumers and producers are counted at
/// their peak; 0 is taken as 1.
pub(super) fn partitions(consumers: u32, producers: u32, rate: Option<f64>, allowed: Allowed) -> (u32, Vec<String>) {
    let (consumers, producers) = (consumers.max(1), producers.max(1));
    let mut wanted = consumers.max(producers).saturating_mul(2);
    let mut reasons = vec![format!("max({}, {}) × 2 = {wanted}", count(consumers, "consumer"), count(producers, "producer"))];
    if let Some(rate) = rate
        && carrying(rate, allowed) > wanted
    {
        wanted = carrying(rate, allowed);
        reasons.push(format!(
            "{wanted} for the measured {rate:.0} records/s at {} each (topics.partition_rate_max)",
            allowed.partition_rate_max
        ));
    }
    if wanted > allowed.partitions_max {
        wanted = allowed.partitions_max;
        reasons.push(format!("cut to {wanted} (topics.partitions_max): each partition costs the brokers files and memory"));
    }
    (wanted, reasons)
}

fn carrying(rate: f64, allowed: Allowed) -> u32 {
    (rate / f64::from(allowed.partition_rate_max)).ceil() as u32
}

/// `measured`: the topic itself, or one that is used alike.
pub(crate) fn advise(consumers: u32, producers: u32, measured: Option<&Measured>, brokers: u32, allowed: Allowed) -> Advice {
    let (partitions, mut reasons) = partitions(consumers, producers, measured.and_then(|measured| measured.rate), allowed);
    match measured {
        Some(Measured { topic, rate: None }) => {
            reasons.push(format!("the records into {topic:?} are not measured yet; ask again after two looks (monitor.interval)"));
        }
        Some(Measured { topic, rate: Some(rate) }) if carrying(*rate, allowed) <= partitions => {
            let most = u64::from(partitions) * u64::from(allowed.partition_rate_max);
            reasons.push(format!("that carries {most} records/s, and {rate:.0} are measured into {topic:?}"));
        }
        Some(Measured { topic, .. }) => {
            reasons
                .push(format!("too few for what is measured into {topic:?}; raise topics.partitions_max, or spread it over more topics"));
        }
        None => {}
    }
    reasons.iter_mut().for_each(|reason| reason.insert_str(0, "partitions: "));

    let replication = brokers.clamp(1, REPLICATION_MAX);
    reasons.push(format!("replication: min({REPLICATION_MAX}, {}) = {replication}", count(brokers, "broker")));
    if replication == 1 {
        reasons.push("replication: a single copy is lost with its broker's disk; run 3 brokers where that matters".to_owned());
    }

    let min_insync_replicas = min_insync_replicas(replication);
    reasons.push(format!("min.insync.replicas: {min_insync_replicas}, of {}", count(replication, "replica")));
    Advice { partitions, replication, min_insync_replicas, reasons }
}

/// Of three replicas or more one may be away, and what is acknowledged is on two; fewer have none to spare.
pub(super) fn min_insync_replicas(replication: u32) -> u32 {
    if replication >= 3 { 2 } else { 1 }
}

pub(super) fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Allowed = Allowed { partitions_max: 1_000, partition_rate_max: 10_000 };

    #[test]
    fn what_is_measured_is_carried() {
        // (consumers, records a second) → partitions, and the reason beside the rule's
        for ((consumers, rate), partitions, reason) in [
            ((1, Some(0.0)), 2, "partitions: that carries 20000 records/s, and 0 are measured into \"t\""),
            ((1, Some(20_000.0)), 2, "partitions: that carries 20000 records/s, and 20000 are measured into \"t\""),
            ((1, Some(20_001.0)), 3, "partitions: 3 for the measured 20001 records/s at 10000 each (topics.partition_rate_max)"),
            ((4, Some(75_000.0)), 8, "partitions: that carries 80000 records/s, and 75000 are measured into \"t\""),
            ((4, Some(1e6)), 100, "partitions: 100 for the measured 1000000 records/s at 10000 each (topics.partition_rate_max)"),
            (
                (4, Some(1e9)),
                1_000,
                "partitions: too few for what is measured into \"t\"; raise topics.partitions_max, or spread it over more topics",
            ),
            ((4, None), 8, "partitions: the records into \"t\" are not measured yet; ask again after two looks (monitor.interval)"),
        ] {
            let advice = advise(consumers, 1, Some(&Measured { topic: "t".into(), rate }), 3, ALLOWED);
            assert_eq!(advice.partitions, partitions, "{consumers} {rate:?}");
            assert!(advice.reasons.iter().any(|found| found == reason), "{reason:?} is not in {:?}", advice.reasons);
        }
    }

    #[test]
    fn the_rule_in_numbers() {
        // (consumers, producers, brokers) → (partitions, replication, min ISR)
        for ((consumers, producers, brokers), expected) in [
            ((3, 2, 3), (6, 3, 2)),
            ((2, 5, 3), (10, 3, 2)),
            ((1, 1, 1), (2, 1, 1)),
            ((0, 0, 1), (2, 1, 1)),
            ((4, 4, 2), (8, 2, 1)),
            ((4, 4, 9), (8, 3, 2)),
            ((500, 1, 3), (1_000, 3, 2)),
            ((501, 1, 3), (1_000, 3, 2)),
            ((u32::MAX, 1, 0), (1_000, 1, 1)),
        ] {
            let advice = advise(consumers, producers, None, brokers, ALLOWED);
            assert_eq!((advice.partitions, advice.replication, advice.min_insync_replicas), expected, "{consumers} {producers} {brokers}");
        }
    }

    #[test]
    fn every_number_has_its_reason() {
        let reasons = advise(3, 2, None, 3, ALLOWED).reasons;
        assert_eq!(
            reasons,
            [
                "partitions: max(3 consumers, 2 producers) × 2 = 6",
                "replication: min(3, 3 brokers) = 3",
                "min.insync.replicas: 2, of 3 replicas"
            ]
        );
        let reasons = advise(900, 1, None, 1, ALLOWED).reasons.join("\n");
        assert!(reasons.contains("max(900 consumers, 1 producer) × 2 = 1800"), "{reasons}");
        assert!(reasons.contains("cut to 1000") && reasons.contains("single copy"), "{reasons}");
    }
}
