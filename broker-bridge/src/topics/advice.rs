//! How many partitions and replicas a topic should have, and why. Pure: numbers in, advice out.
//!
//! - partitions = max(consumers, producers) × 2: every consumer has work, and the group can double before the topic must grow
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

const REPLICATION_MAX: u32 = 3;

/// Consumers and producers are counted at their peak; 0 is taken as 1.
pub(crate) fn advise(consumers: u32, producers: u32, brokers: u32, partitions_max: u32) -> Advice {
    let (consumers, producers) = (consumers.max(1), producers.max(1));
    let wanted = consumers.max(producers).saturating_mul(2);
    let partitions = wanted.min(partitions_max);
    let mut reasons = vec![format!("partitions: max({}, {}) × 2 = {wanted}", count(consumers, "consumer"), count(producers, "producer"))];
    if partitions < wanted {
        reasons.push(format!("partitions: cut to {partitions} (topics.partitions_max); each partition costs the brokers files and memory"));
    }

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
            let advice = advise(consumers, producers, brokers, 1_000);
            assert_eq!((advice.partitions, advice.replication, advice.min_insync_replicas), expected, "{consumers} {producers} {brokers}");
        }
    }

    #[test]
    fn every_number_has_its_reason() {
        let reasons = advise(3, 2, 3, 1_000).reasons;
        assert_eq!(
            reasons,
            [
                "partitions: max(3 consumers, 2 producers) × 2 = 6",
                "replication: min(3, 3 brokers) = 3",
                "min.insync.replicas: 2, of 3 replicas"
            ]
        );
        let reasons = advise(900, 1, 1, 1_000).reasons.join("\n");
        assert!(reasons.contains("max(900 consumers, 1 producer) × 2 = 1800"), "{reasons}");
        assert!(reasons.contains("cut to 1000") && reasons.contains("single copy"), "{reasons}");
    }
}
