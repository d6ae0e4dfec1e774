//! What is durable about a job, and what follows from it after a crash.
//!
//! Protocol of a batch N: put `offsets/N` ([`PlannedBatch`]) → run, outputs fenced by N → put `commits/N` ([`Commit`]
//! with the state) → prune. [`decide()`] turns what a restart finds into what it must do.

mod decide;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use service_kit::kafka::TopicPartition;

pub use decide::{Decision, Discard, Facts, Health, decide};

use crate::batch::BatchDefinition;

/// Written once, when a job starts fresh. Everything that must not change over restarts.
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

/// Differences named when a changed program meets an old checkpoint.
const DIFFERENCES_MAX: usize = 8;

impl Metadata {
    /// Why a program cannot go on from this checkpoint; `sources` are its sources' names.
    pub fn check(&self, location: &str, job: &str, fingerprint: &serde_json::Value, sources: &[String]) -> Result<(), String> {
        if self.job != job {
            return Err(format!("checkpoint `{location}` belongs to job `{}`, not to `{job}`; give this job its own", self.job));
        }
        let then: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        let mut differ = differences(&self.fingerprint, fingerprint, DIFFERENCES_MAX);
        if then != sources {
            differ.insert(0, format!("sources: was {then:?}, is {sources:?}"));
        }
        if differ.is_empty() {
            return Ok(());
        }
        Err(format!(
            "checkpoint `{location}` was written by a different program of job `{job}`:\n  {}\nRestore the program, or give the changed job a fresh checkpoint (--checkpoint, another --name, or `millrace job delete {job} --checkpoint`)",
            differ.join("\n  ")
        ))
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

/// The JSON pointers at which two fingerprints differ, with both values; at most `max`.
pub fn differences(old: &serde_json::Value, new: &serde_json::Value, max: usize) -> Vec<String> {
    fn walk(path: &str, old: &serde_json::Value, new: &serde_json::Value, out: &mut Vec<String>) {
        use serde_json::Value::{Array, Null, Object};
        match (old, new) {
            (Object(a), Object(b)) => {
                let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for key in keys {
                    let at = |map: &serde_json::Map<_, _>| map.get(key).cloned().unwrap_or(Null);
                    walk(&format!("{path}/{key}"), &at(a), &at(b), out);
                }
            }
            (Array(a), Array(b)) => {
                for n in 0..a.len().max(b.len()) {
                    walk(&format!("{path}/{n}"), a.get(n).unwrap_or(&Null), b.get(n).unwrap_or(&Null), out);
                }
            }
            _ if old != new => out.push(format!("{path}: was {old}, is {new}")),
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", old, new, &mut out);
    out.truncate(max);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    #[test]
    fn differences_name_the_place_and_both_values() {
        let old = json!({"operators": [{"id": "a"}, {"id": "b"}], "window": "10s"});
        let new = json!({"operators": [{"id": "a"}], "window": "20s", "sink": "redis"});
        assert_eq!(
            differences(&old, &new, 8),
            [r#"/operators/1: was {"id":"b"}, is null"#, r#"/sink: was null, is "redis""#, r#"/window: was "10s", is "20s""#]
        );
        assert!(differences(&old, &old, 8).is_empty());
        assert_eq!(differences(&old, &new, 1).len(), 1);
    }
}
