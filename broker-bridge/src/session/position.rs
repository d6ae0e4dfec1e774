//! How far a client has come, as a text that it can give back: `EPOCH/TOPIC:PARTITION:OFFSET,…`, offsets being the next to read.
//!
//! The epoch is the group's: after a reset of the group, what a client had before the reset says nothing any more.
//!
//! And where the session itself is, in each partition.

use std::{collections::BTreeMap, fmt, str::FromStr};

use service_kit::{
    kafka::TopicPartition,
    offsets::{OffsetCommit, OffsetError},
};

use super::{Session, state::Progress};
use crate::{
    auth,
    error::{BridgeError, Code, Result},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) epoch: u64,
    /// Next offset to read.
    pub(crate) ends: BTreeMap<TopicPartition, i64>,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/", self.epoch)?;
        for (at, (partition, offset)) in self.ends.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(out, "{comma}{}:{}:{offset}", partition.topic, partition.partition)?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = BridgeError;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = || {
            let (epoch, ends) = text.split_once('/')?;
            let mut position = Self { epoch: epoch.parse().ok()?, ends: BTreeMap::new() };
            for end in ends.split(',').filter(|end| !end.is_empty()) {
                let mut parts = end.split(':');
                let (topic, partition, offset) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                if topic.is_empty() || parts.next().is_some() || partition < 0 || offset < 0 {
                    return None;
                }
                position.ends.insert(TopicPartition::new(topic.to_owned(), partition), offset);
            }
            Some(position)
        };
        parsed().ok_or_else(|| {
            BridgeError::new(
                Code::BadRequest,
                format!("position {text:?} is none of this bridge's; give back one that it sent, such as 0/orders:0:42"),
            )
        })
    }
}

impl Session {
    /// The next offset to deliver, of each partition it has; `None` where that is not known before something was read.
    pub(crate) async fn positions(&self) -> Result<BTreeMap<TopicPartition, Option<i64>>> {
        let mut state = self.open().await?;
        self.follow_assignment(&mut state).await?;
        let Some(source) = &state.source else { return Ok(BTreeMap::new()) };
        let polled = source.member.positions().await;
        let is_window = self.settings.acknowledged.is_some();
        let next = |(partition, progress): (&TopicPartition, &Progress)| {
            let behind = if is_window { progress.window.next() } else { progress.delivered };
            let ready = || state.ready.iter().find(|(of, _)| of == partition).map(|(_, record)| record.offset);
            // The client's own may still be of before the seek.
            let sought = || (progress.sought > 0).then_some(progress.floor);
            let next = behind.or_else(ready).or_else(sought).or_else(|| polled.get(partition).copied());
            (partition.clone(), next)
        };
        Ok(state.partitions.iter().map(next).collect())
    }

    /// Under which epoch of the group it reads.
    pub(crate) async fn epoch(&self) -> u64 {
        self.state.lock().await.epoch
    }

    /// Before it reads anything: acknowledges what the client says that it has. What others have acknowledged beyond that stays, and a
    /// position of before a reset of the group counts for nothing.
    pub(crate) async fn resume(&self, position: &Position) -> Result<()> {
        auth::check_subscription(&self.group, position.ends.keys().map(|partition| &*partition.topic))?;
        let partitions: Vec<TopicPartition> = position.ends.keys().cloned().collect();
        for partition in &partitions {
            self.deps.topics.check(&partition.topic, Some(partition.partition)).await?;
            self.deps.topics.recognise(&partition.topic).await?;
        }
        let bounds = self.deps.topics.bounds(&partitions).await?;
        loop {
            let known = self.deps.store.get(&self.group, Some(&partitions)).await?;
            if known.epoch != position.epoch {
                tracing::info!(
                    group = self.group,
                    given = position.epoch,
                    epoch = known.epoch,
                    "a position of before the group's reset is passed over"
                );
                return Ok(());
            }
            let ahead = position.ends.iter().filter(|(partition, end)| {
                let is_there = bounds.get(*partition).is_some_and(|bounds| **end <= bounds.latest);
                is_there && known.offsets.get(*partition).is_none_or(|known| known.offset < **end)
            });
            let commits: Vec<OffsetCommit> = ahead
                .map(|(partition, end)| OffsetCommit { partition: partition.clone(), offset: *end, metadata: String::new() })
                .collect();
            if commits.is_empty() {
                return Ok(());
            }
            match self.deps.store.commit(&self.group, position.epoch, &commits).await {
                // Somebody came further, or reset the group, between the two calls; each round is one such step.
                Err(OffsetError::Fenced { .. } | OffsetError::Regressed { .. }) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Acknowledges what the client has, as far as its partitions are still this session's.
    pub(crate) async fn acknowledge_position(&self, position: &Position) -> Result<()> {
        let epoch = self.epoch().await;
        if position.epoch != epoch {
            return Err(self.illegal(&format!(
                "reads under epoch {epoch} of its group, the position is of epoch {}: the group was reset meanwhile; acknowledge what comes from now on",
                position.epoch
            )));
        }
        self.acknowledge_assigned(position.ends.clone()).await
    }

    /// A partition that moved to another member is not ours to acknowledge: its records are delivered again there.
    pub(crate) async fn acknowledge_assigned(&self, ends: BTreeMap<TopicPartition, i64>) -> Result<()> {
        let assigned = self.assignment().await?;
        let offsets = ends.into_iter().filter(|(partition, _)| assigned.contains(partition));
        let offsets = offsets.map(|(partition, offset)| OffsetCommit { partition, offset, metadata: String::new() });
        self.commit(Some(offsets.collect())).await
    }
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_position_is_refused() {
        for text in
            ["", "0", "x/", "0/a", "0/a:1", "0/a:1:2:3", "0/a:-1:2", "0/a:1:-2", "0/:1:2", "-1/", "0/a:1:2,b", "0/a:1:99999999999999999999"]
        {
            assert_eq!(text.parse::<Position>().unwrap_err().code, Code::BadRequest, "{text}");
        }
        assert_eq!("3/".parse::<Position>().unwrap(), Position { epoch: 3, ends: BTreeMap::new() });
    }

    proptest! {
        #[test]
        fn a_position_survives_text(epoch: u64, ends in proptest::collection::btree_map(("[a-zA-Z0-9._-]{1,20}", 0..i32::MAX), 0..i64::MAX, 0..5)) {
            let ends = ends.into_iter().map(|((topic, partition), offset)| (TopicPartition::new(topic, partition), offset)).collect();
            let position = Position { epoch, ends };
            prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            drop(text.parse::<Position>());
        }
    }
}
