//! What this login may do: whether the brokers take it, which topics it may write to (`Metadata` v8), which groups it may read
//! (`FindCoordinator` v1, `DescribeGroups` v4).

use super::{Answer, Manage, To};
use crate::kafka::{
    KafkaError,
    access::Need,
    wire::{Input, Output},
};

/// With the authorized operations of topics.
const METADATA: (i16, i16) = (3, 8);
const FIND_COORDINATOR: (i16, i16) = (10, 1);
/// Bits among authorized operations.
const READ: i32 = 1 << 3;
const WRITE: i32 = 1 << 4;
/// UNKNOWN_TOPIC_OR_PARTITION, TOPIC_AUTHORIZATION_FAILED
const UNKNOWN: i16 = 3;
const DENIED: i16 = 29;
/// GROUP_AUTHORIZATION_FAILED
const GROUP_DENIED: i16 = 30;

impl Manage {
    /// [`KafkaError::Auth`] where a broker refuses the login.
    pub async fn log_in(&self) -> Result<(), KafkaError> {
        self.nodes().await.map(drop)
    }

    /// [`KafkaError::Auth`] where this login may not read the group: be its member, commit its offsets.
    pub async fn check_group(&self, group: &str) -> Result<(), KafkaError> {
        let what = format!("committing offsets of group \"{group}\"");
        let need = Need::default().and_group("READ", group);
        let mut body = Output::default();
        // A group's, not a transactional id's.
        body.string(group).i8(0);
        let (error, coordinator) = self.ask(To::Any, FIND_COORDINATOR, body.bytes(), parse_coordinator).await?;
        if error != 0 {
            return Err(self.denied(error, None, &what, &need));
        }
        let found = self.describe_group(coordinator, group).await?;
        match found.error {
            0 if found.operations & READ != 0 => Ok(()),
            0 => Err(self.denied(GROUP_DENIED, None, &what, &need)),
            error => Err(self.denied(error, None, &what, &need)),
        }
    }

    /// [`KafkaError::Auth`] names the first of the topics that this login may not write to; one that is not there is [`KafkaError::UnknownTopic`].
    pub async fn check_write(&self, topics: &[&str]) -> Result<(), KafkaError> {
        let mut body = Output::default();
        body.count(topics.len());
        for topic in topics {
            body.string(topic);
        }
        // Do not create topics; nothing of the cluster; the topics' authorized operations.
        body.bool(false).bool(false).bool(true);
        for (topic, error, operations) in self.ask(To::Any, METADATA, body.bytes(), parse).await? {
            let code = if error == 0 && operations & WRITE == 0 { DENIED } else { error };
            match code {
                0 => {}
                UNKNOWN => return Err(KafkaError::UnknownTopic(topic)),
                code => return Err(self.denied(code, None, &format!("writing to \"{topic}\""), &Need::topic("WRITE", &topic))),
            }
        }
        Ok(())
    }
}

/// Error and broker.
fn parse_coordinator(input: &mut Input<'_>) -> Answer<(i16, i32)> {
    let (_throttle_ms, error, _message) = (input.i32()?, input.i16()?, input.string()?);
    Ok((error, input.i32()?))
}

/// Name, error and authorized operations of each topic.
fn parse(input: &mut Input<'_>) -> Answer<Vec<(String, i16, i32)>> {
    let _throttle_ms = input.i32()?;
    for _ in 0..input.count()? {
        let (_id, _host, _port, _rack) = (input.i32()?, input.string()?, input.i32()?, input.string()?);
    }
    let (_cluster, _controller) = (input.string()?, input.i32()?);
    let mut topics = Vec::new();
    for _ in 0..input.count()? {
        let (error, name, _internal) = (input.i16()?, input.string()?.unwrap_or_default(), input.bool()?);
        for _ in 0..input.count()? {
            // Its error, id, leader and the leader's epoch; then replicas, those in sync, those offline.
            input.take(2 + 3 * 4)?;
            for _ in 0..3 {
                let ids = input.count()?;
                input.take(ids * 4)?;
            }
        }
        topics.push((name, error, input.i32()?));
    }
    Ok(topics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topics_rights_are_read_and_a_cut_answer_is_an_error() {
        let mut answer = Output::default();
        answer.i32(0).count(1).i32(1).string("h").i32(9092).nullable(None).string("cluster").i32(1);
        answer.count(1).i16(0).string("t").bool(false);
        answer.count(1).i16(0).i32(0).i32(1).i32(5).count(2).i32(1).i32(2).count(1).i32(1).count(0);
        answer.i32(WRITE | 8).i32(i32::MIN);
        assert_eq!(parse(&mut Input(answer.bytes())), Ok(vec![("t".to_owned(), 0, WRITE | 8)]));
        for length in 0..answer.bytes().len() - 4 {
            assert!(parse(&mut Input(&answer.bytes()[..length])).is_err(), "{length}");
        }
    }
}
