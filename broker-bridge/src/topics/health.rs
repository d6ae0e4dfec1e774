//! How partitions and their leaders are. Pure: what the brokers say in, what needs a look out.
//!
//! A partition's preferred leader is the first of its replicas. A broker's imbalance is, as Kafka counts it, the share of the partitions it
//! should lead that others lead.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use service_kit::kafka::TopicView;

/// Partitions named in one answer; the counts are of all.
pub(crate) const PROBLEMS_MAX: usize = 1_000;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Health {
    pub(crate) partitions: u32,
    /// Their ISR is smaller than their replica list.
    pub(crate) under_replicated: u32,
    /// Their ISR is below `min.insync.replicas`: writes with acks=all are refused.
    pub(crate) under_min_isr: u32,
    /// They have no leader.
    pub(crate) offline: u32,
    /// Another replica than the preferred one leads.
    pub(crate) not_preferred: u32,
    /// What is wrong, the worst first; [`PROBLEMS_MAX`] at most.
    pub(crate) problems: Vec<Problem>,
    /// By broker id.
    pub(crate) balance: BTreeMap<i32, Balance>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) kind: Kind,
    pub(crate) leader: Option<i32>,
    pub(crate) replicas: Vec<i32>,
    pub(crate) isr: Vec<i32>,
    pub(crate) min_isr: u32,
}

/// The worst first. A partition has the first that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Offline,
    UnderMinIsr,
    UnderReplicated,
    NotPreferred,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Offline => "offline",
            Kind::UnderMinIsr => "under-min-isr",
            Kind::UnderReplicated => "under-replicated",
            Kind::NotPreferred => "not-preferred",
        }
    }
}

/// What a broker should lead, and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Balance {
    pub(crate) preferred: u32,
    pub(crate) preferred_and_led: u32,
}

impl Balance {
    /// 0 to 1.
    pub(crate) fn imbalance(self) -> f64 {
        if self.preferred == 0 { 0.0 } else { f64::from(self.preferred - self.preferred_and_led) / f64::from(self.preferred) }
    }
}

/// `min_isr` of topics; 1 where it is not known.
pub(crate) fn health(topics: &[TopicView], min_isr: &HashMap<String, u32>) -> Health {
    let mut health = Health::default();
    for topic in topics {
        let needed = min_isr.get(&topic.name).copied().unwrap_or(1);
        for partition in &topic.partitions {
            health.partitions += 1;
            let preferred = partition.replicas.first().copied();
            let offline = partition.leader.is_none();
            let short = partition.isr.len() < partition.replicas.len();
            let below = partition.isr.len() < usize::try_from(needed).unwrap_or(usize::MAX);
            let moved = !offline && partition.leader != preferred;
            if let Some(preferred) = preferred {
                let balance = health.balance.entry(preferred).or_default();
                balance.preferred += 1;
                balance.preferred_and_led += u32::from(partition.leader == Some(preferred));
            }
            health.under_replicated += u32::from(short);
            health.under_min_isr += u32::from(below);
            health.offline += u32::from(offline);
            health.not_preferred += u32::from(moved);
            let kinds = [(offline, Kind::Offline), (below, Kind::UnderMinIsr), (short, Kind::UnderReplicated), (moved, Kind::NotPreferred)];
            if let Some((_, kind)) = kinds.into_iter().find(|(fits, _)| *fits) {
                health.problems.push(Problem {
                    topic: topic.name.clone(),
                    partition: partition.id,
                    kind,
                    leader: partition.leader,
                    replicas: partition.replicas.clone(),
                    isr: partition.isr.clone(),
                    min_isr: needed,
                });
            }
        }
    }
    health.problems.sort_by_key(|problem| problem.kind);
    health.problems.truncate(PROBLEMS_MAX);
    health
}

#[cfg(test)]
mod tests {
    use service_kit::kafka::PartitionView;

    use super::*;

    fn topic(name: &str, partitions: &[(Option<i32>, &[i32])]) -> TopicView {
        let view = |(id, (leader, isr)): (usize, &(Option<i32>, &[i32]))| PartitionView {
            id: id as i32,
            leader: *leader,
            replicas: vec![1, 2, 3],
            isr: isr.to_vec(),
        };
        TopicView { name: name.into(), partitions: partitions.iter().enumerate().map(view).collect() }
    }

    #[test]
    fn every_partition_is_counted_in_all_that_fits_and_named_for_the_worst() {
        let topics =
            [topic("a", &[(Some(1), &[1, 2, 3]), (Some(2), &[1, 2, 3]), (Some(2), &[2, 3])]), topic("b", &[(Some(3), &[3]), (None, &[])])];
        let found = health(&topics, &HashMap::from([("b".to_owned(), 2)]));
        assert_eq!((found.partitions, found.under_replicated, found.under_min_isr, found.offline, found.not_preferred), (5, 3, 2, 1, 3));
        let problems: Vec<_> = found.problems.iter().map(|problem| (problem.topic.as_str(), problem.partition, problem.kind)).collect();
        let expected =
            [("b", 1, Kind::Offline), ("b", 0, Kind::UnderMinIsr), ("a", 2, Kind::UnderReplicated), ("a", 1, Kind::NotPreferred)];
        assert_eq!(problems, expected);
        let balance = found.balance[&1];
        assert_eq!((balance.preferred, balance.preferred_and_led, balance.imbalance()), (5, 1, 0.8));
        for kind in [Kind::Offline, Kind::UnderMinIsr, Kind::UnderReplicated, Kind::NotPreferred] {
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.name().into()));
        }
    }

    #[test]
    fn an_answer_is_bounded_and_the_counts_are_not() {
        let many: Vec<_> = std::iter::repeat_n((None, &[][..]), PROBLEMS_MAX + 5).collect();
        let found = health(&[topic("a", &many)], &HashMap::new());
        assert_eq!((found.problems.len(), found.offline), (PROBLEMS_MAX, 1_005));
        assert_eq!(Balance::default().imbalance(), 0.0);
    }
}
