//! What the list of groups does not say: `DescribeGroups` v4.

use std::collections::BTreeMap;

use super::{Answer, Manage, To};
use crate::kafka::{
    KafkaError,
    wire::{Input, Output},
};

const DESCRIBE: (i16, i16) = (15, 4);

impl Manage {
    /// `group.instance.id` by member id, of static members; `coordinator` is the broker that looks after the group.
    pub async fn static_members(&self, coordinator: i32, group: &str) -> Result<BTreeMap<String, String>, KafkaError> {
        Ok(self.describe_group(coordinator, group).await?.instances)
    }

    pub(super) async fn describe_group(&self, coordinator: i32, group: &str) -> Result<Described, KafkaError> {
        let mut body = Output::default();
        // With the group's authorized operations.
        body.count(1).string(group).bool(true);
        self.ask(To::Broker(coordinator), DESCRIBE, body.bytes(), parse).await
    }
}

/// One group.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) error: i16,
    /// `group.instance.id` by member id.
    instances: BTreeMap<String, String>,
    pub(super) operations: i32,
}

fn parse(input: &mut Input<'_>) -> Answer<Described> {
    let _throttle_ms = input.i32()?;
    let mut found = Described::default();
    for _ in 0..input.count()? {
        found.error = input.i16()?;
        // Id, state, protocol type, protocol.
        for _ in 0..4 {
            input.string()?;
        }
        for _ in 0..input.count()? {
            let (member, instance) = (input.string()?.unwrap_or_default(), input.string()?);
            let (_client_id, _host) = (input.string()?, input.string()?);
            // Metadata and assignment.
            for _ in 0..2 {
                let length = input.count()?;
                input.take(length)?;
            }
            found.instances.extend(instance.map(|instance| (member, instance)));
        }
        found.operations = input.i32()?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_members_are_found() {
        let mut answer = Output::default();
        answer.i32(0).count(1).i16(0).string("g").string("Stable").string("consumer").string("range").count(2);
        answer.string("m1").nullable(Some("i1")).string("c").string("/h").i32(2).i16(7).i32(0);
        answer.string("m2").nullable(None).string("c").string("/h").i32(0).i32(0);
        answer.i32(8);
        let instances = BTreeMap::from([("m1".to_owned(), "i1".to_owned())]);
        assert_eq!(parse(&mut Input(answer.bytes())).unwrap(), Described { error: 0, instances, operations: 8 });
        for length in 0..answer.bytes().len() {
            assert!(parse(&mut Input(&answer.bytes()[..length])).is_err(), "{length}");
        }
    }
}
