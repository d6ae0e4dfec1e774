//! What is durable about a job, and what follows from it after a crash.
//!
//! Protocol of a batch N: put `offsets/N` ([`PlannedBatch`]) → run, outputs fenced by N → put `commits/N` ([`Commit`]
//! with the state) → prune. [`decide()`] turns what a restart finds into what it must do; [`Metadata::check`] says whether a changed
//! program can go on from it.
//!
//! A job that is shared by several workers is cut into [`slots`]; the [`progress`] of each is kept in Kafka ([`topic_log`]), and
//! [`takeover`] decides what its next owner must do.

mod compat;
mod decide;
pub mod progress;
pub mod slots;
pub mod takeover;
pub mod topic_log;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use service_kit::kafka::TopicPartition;

pub use compat::{Difference, IGNORE_UNCLAIMED, Identity, What, differences};
pub use decide::{Decision, Discard, Facts, Health, decide};

use crate::batch::BatchDefinition;

/// Written when a job starts fresh, and when a changed program goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    pub job: String,
    /// Part of every fence. New for every fresh start, and when a job starts from a savepoint.
    pub checkpoint_id: String,
    /// [`crate::batch::Program::fingerprint`].
    pub fingerprint: serde_json::Value,
    pub started_at_ms: i64,
    /// By source index.
    pub sources: Vec<SourceStart>,
}

impl Metadata {
    /// Every source is bounded, and read to its end.
    pub fn read(&self, positions: &[Positions]) -> bool {
        let read = |(source, at): (&SourceStart, &Positions)| {
            let there = |(partition, end)| at.0.get(partition).is_some_and(|at| at >= end);
            source.ends.as_ref().is_some_and(|ends| ends.0.iter().all(there))
        };
        !self.sources.is_empty() && self.sources.len() == positions.len() && self.sources.iter().zip(positions).all(read)
    }
}

/// Where a source began, and where it ends when it is bounded: looked up once, then fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStart {
    pub name: String,
    pub starts: Positions,
    pub ends: Option<Positions>,
    /// What the source's topics were then.
    #[serde(default)]
    pub topics: TopicIds,
}

/// Kafka's ids of topics by their names, in hexadecimal; a topic whose id the brokers do not tell is absent.
pub type TopicIds = BTreeMap<String, String>;

/// `offsets/N`: the definition, and what else a replay must see again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBatch {
    pub definition: BatchDefinition,
    /// Same shape as the definition's ranges: `until` was the end of the partition.
    pub caught_up: Vec<Vec<bool>>,
    /// Set on the last batch of a job that ends.
    pub end: Option<End>,
    /// By source index: the topics that the offsets belong to.
    #[serde(default)]
    pub topics: Vec<TopicIds>,
    /// By source index: its name. Empty: as in the metadata.
    #[serde(default)]
    pub sources: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Every source is bounded and read.
    Finished,
    /// Stopped with drain: every window was emitted and is closed. A job that goes on from here counts their rows as late.
    Drained,
}

/// `commits/N`: batch N has happened. The program's state is stored beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub id: u64,
    pub time_ms: i64,
    /// Where batch N+1 begins, by source index.
    pub next: Vec<Positions>,
    pub watermark_ms: Option<i64>,
    pub totals: Totals,
    pub end: Option<End>,
    /// By source index: the topics that the offsets belong to.
    #[serde(default)]
    pub topics: Vec<TopicIds>,
    /// By source index: its name. Empty: as in the metadata.
    #[serde(default)]
    pub sources: Vec<String>,
}

/// Sums since the fresh start of the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub batches: u64,
    pub rows_in: u64,
    pub rows_out: u64,
    pub malformed: u64,
    pub late: u64,
}

/// Next offset to read, by partition. As JSON: `{"topic": {"0": 17}}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions(pub BTreeMap<TopicPartition, i64>);

impl Serialize for Positions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut topics: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
        for (partition, offset) in &self.0 {
            topics.entry(&partition.topic).or_default().insert(partition.partition, *offset);
        }
        topics.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Positions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let topics: BTreeMap<Arc<str>, BTreeMap<i32, i64>> = BTreeMap::deserialize(deserializer)?;
        let flat = topics.into_iter().flat_map(|(topic, partitions)| {
            partitions.into_iter().map(move |(partition, offset)| (TopicPartition { topic: topic.clone(), partition }, offset))
        });
        Ok(Self(flat.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_json() {
        let positions = Positions(BTreeMap::from([
            (TopicPartition::new("a", 0), 5),
            (TopicPartition::new("a", 10), 7),
            (TopicPartition::new("b", 2), 0),
        ]));
        let text = serde_json::to_string(&positions).unwrap();
        assert_eq!(text, r#"{"a":{"0":5,"10":7},"b":{"2":0}}"#);
        assert_eq!(serde_json::from_str::<Positions>(&text).unwrap(), positions);
    }
}
