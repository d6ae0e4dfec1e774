//! Partitions: `CreateTopics` v2 (with replica assignments and the broker's reasons), `CreatePartitions` v0, `ListPartitionReassignments` v0.

use std::collections::BTreeMap;

use super::{Answer, Manage, Need, To};
use crate::kafka::{
    KafkaError,
    wire::{Input, Output},
};

const CREATE_TOPICS: (i16, i16) = (19, 2);
const CREATE_PARTITIONS: (i16, i16) = (37, 0);
const LIST_REASSIGNMENTS: (i16, i16) = (46, 0);

/// A partition whose replicas are being moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    pub topic: String,
    pub partition: i32,
    pub replicas: Vec<i32>,
    pub adding: Vec<i32>,
    pub removing: Vec<i32>,
}

impl Manage {
    /// Replicas by partition, 0 and on without a gap. Returns when the controller has it; brokers learn of it a moment later.
    pub async fn create_topic(
        &self,
        name: &str,
        assignments: &BTreeMap<i32, Vec<i32>>,
        config: &BTreeMap<String, String>,
        validate_only: bool,
    ) -> Result<(), KafkaError> {
        let mut body = Output::default();
        // Partitions and replication follow from the assignments.
        body.count(1).string(name).i32(-1).i16(-1).count(assignments.len());
        for (partition, brokers) in assignments {
            body.i32(*partition).count(brokers.len());
            for broker in brokers {
                body.i32(*broker);
            }
        }
        body.count(config.len());
        for (key, value) in config {
            body.string(key).nullable(Some(value));
        }
        body.i32(self.timeout_ms()).bool(validate_only);
        let (code, message) = self.ask(To::Controller, CREATE_TOPICS, body.bytes(), parse_named).await?;
        match code {
            0 => Ok(()),
            36 => Err(KafkaError::AlreadyExists(name.to_owned())),
            _ => Err(self.denied(code, message, &format!("creating topic \"{name}\""), &Need::topic("CREATE", name))),
        }
    }

    /// Lets a topic have `count` partitions, more than it has.
    pub async fn create_partitions(&self, topic: &str, count: i32, validate_only: bool) -> Result<(), KafkaError> {
        let mut body = Output::default();
        body.count(1).string(topic).i32(count).null_array().i32(self.timeout_ms()).bool(validate_only);
        let (code, message) = self.ask(To::Controller, CREATE_PARTITIONS, body.bytes(), parse_named).await?;
        match code {
            0 => Ok(()),
            3 => Err(KafkaError::UnknownTopic(topic.to_owned())),
            _ => Err(self.denied(code, message, &format!("growing topic \"{topic}\""), &Need::topic("ALTER", topic))),
        }
    }

    /// Those under way, ascending.
    pub async fn reassignments(&self) -> Result<Vec<Reassignment>, KafkaError> {
        let mut body = Output::default();
        // Tagged fields of the header; a null list of topics: all; tagged fields.
        body.i8(0).i32(self.timeout_ms()).i8(0).i8(0);
        let (code, message, mut found) = self.ask(To::Controller, LIST_REASSIGNMENTS, body.bytes(), parse_reassignments).await?;
        if code != 0 {
            return Err(self.denied(code, message, "listing reassignments", &Need::cluster("DESCRIBE")));
        }
        found.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Ok(found)
    }

    fn timeout_ms(&self) -> i32 {
        i32::try_from(self.bound().as_millis()).unwrap_or(i32::MAX)
    }
}

/// The only result: name, code, reason.
fn parse_named(input: &mut Input<'_>) -> Answer<(i16, Option<String>)> {
    let _throttle_ms = input.i32()?;
    if input.count()? == 0 {
        return Err("no result".to_owned());
    }
    let _name = input.string()?;
    Ok((input.i16()?, input.string()?))
}

fn parse_reassignments(input: &mut Input<'_>) -> Answer<(i16, Option<String>, Vec<Reassignment>)> {
    input.tags()?;
    let _throttle_ms = input.i32()?;
    let (code, message) = (input.i16()?, input.compact_string()?);
    let mut found = Vec::new();
    for _ in 0..input.compact_count()? {
        let topic = input.compact_string()?.unwrap_or_default();
        for _ in 0..input.compact_count()? {
            let partition = input.i32()?;
            let mut brokers = || (0..input.compact_count()?).map(|_| input.i32()).collect::<Answer<Vec<i32>>>();
            let (replicas, adding, removing) = (brokers()?, brokers()?, brokers()?);
            input.tags()?;
            found.push(Reassignment { topic: topic.clone(), partition, replicas, adding, removing });
        }
        input.tags()?;
    }
    input.tags()?;
    Ok((code, message, found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reassignments_are_read() {
        let mut answer = Output::default();
        answer.i8(0).i32(0).i16(0).i8(0).i8(2).i8(2).raw(b"t").i8(2).i32(3);
        answer.i8(4).i32(1).i32(2).i32(3).i8(2).i32(3).i8(2).i32(1);
        answer.i8(0).i8(0).i8(0);
        let (code, message, found) = parse_reassignments(&mut Input(answer.bytes())).unwrap();
        assert_eq!((code, message), (0, None));
        let moved = Reassignment { topic: "t".into(), partition: 3, replicas: vec![1, 2, 3], adding: vec![3], removing: vec![1] };
        assert_eq!(found, [moved]);
        for length in 0..answer.bytes().len() {
            assert!(parse_reassignments(&mut Input(&answer.bytes()[..length])).is_err(), "{length}");
        }
    }
}
