//! How far a slot is: one record, the newest of which is the truth.
//!
//! It is written into the slot's partition of the job's `…-slots` topic in the same Kafka transaction as all that a batch has put into Kafka, so it and
//! they are there together or not at all. The topic is compacted and never expires: a job may rest for as long as it likes.
//!
//! As JSON, since people look into topics too; `version` comes first, and one that is not known is refused: to guess would be to lose or to repeat records.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use service_kit::kafka::{OutRecord, Record, TopicPartition};

use super::Positions;
use super::slots::{Shape, Slot};
use crate::batch::OffsetRange;

/// Of the encoding.
pub const VERSION: u32 = 1;

/// What makes a job this one, on every worker and for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobIdentity {
    pub name: String,
    /// Unique for each fresh start of a job by this name.
    pub checkpoint_id: String,
    pub shape: Shape,
}

impl JobIdentity {
    /// Letters of the checkpoint's id that the names below hold.
    const ID_LETTERS: usize = 8;

    fn prefix(&self) -> String {
        let id: String = self.checkpoint_id.chars().take(Self::ID_LETTERS).collect();
        format!("millrace-{}-{id}", self.name)
    }

    /// One partition for each slot. Also what the workers' group subscribes to: `range` deals out slots then, whatever partitions the inputs have.
    pub fn slots_topic(&self) -> String {
        format!("{}-slots", self.prefix())
    }

    pub fn partition(&self, slot: Slot) -> TopicPartition {
        // At most `SLOTS_MAX`.
        TopicPartition::new(self.slots_topic(), slot.0.cast_signed())
    }

    /// What Kafka knows the slot's owner by: whoever begins with it last is the owner, and all before it can write nothing any more.
    pub fn transactional_id(&self, slot: Slot) -> String {
        format!("{}/{slot}", self.prefix())
    }
}

/// A batch of one slot: what it covers, never changed once it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotBatch {
    /// 0, 1, 2, … without gaps since the fresh start of the job, whoever owns the slot.
    pub id: u64,
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    /// By source; within a source ordered by topic and partition, the slot's partitions alone.
    pub ranges: BTreeMap<String, Vec<OffsetRange>>,
}

/// Where a slot stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotProgress {
    pub job: JobIdentity,
    pub slot: Slot,
    /// Id of the first batch that has not happened.
    pub next: u64,
    /// Time of the batch before that; `None` before the first.
    pub time_ms: Option<i64>,
    /// By source: where the next batch begins.
    pub positions: BTreeMap<String, Positions>,
    /// By exchange: next offset of the slot's partition.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exchanges: BTreeMap<String, i64>,
    /// By table: end of the slot's changelog, up to which the state belongs to this progress.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub changelogs: BTreeMap<String, i64>,
    /// Batch `next`, where it may have had effects outside Kafka already: it has to be run as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined: Option<SlotBatch>,
}

#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    progress: &'a SlotProgress,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgressError {
    #[error(
        "{place} was written in version {found} of the format, and this program knows {VERSION}: run the program that wrote it, or a newer one"
    )]
    Version { place: String, found: u64 },
    #[error("{place} is not a slot's progress ({reason}): the topic is a job's own, nothing else may write to it")]
    Unreadable { place: String, reason: serde_json::Error },
}

impl SlotProgress {
    /// Before the first batch.
    pub fn fresh(job: &JobIdentity, slot: Slot, positions: BTreeMap<String, Positions>) -> Self {
        Self {
            job: job.clone(),
            slot,
            next: 0,
            time_ms: None,
            positions,
            exchanges: BTreeMap::new(),
            changelogs: BTreeMap::new(),
            defined: None,
        }
    }

    /// When the batch has happened.
    pub fn after(&self, batch: &SlotBatch) -> Self {
        let mut progress = self.clone();
        progress.next = batch.id + 1;
        progress.time_ms = Some(batch.time_ms);
        progress.defined = None;
        for (source, ranges) in &batch.ranges {
            let positions = progress.positions.entry(source.clone()).or_default();
            positions.0.extend(ranges.iter().map(|range| (range.topic_partition(), range.until)));
        }
        progress
    }

    pub fn record(&self) -> Result<OutRecord, serde_json::Error> {
        let partition = self.job.partition(self.slot);
        let value = serde_json::to_vec(&Versioned { version: VERSION, progress: self })?;
        Ok(OutRecord {
            topic: partition.topic,
            partition: Some(partition.partition),
            key: Some(key(self.slot).into()),
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        })
    }

    /// `None`: a record of something else.
    pub fn of(record: &Record, partition: &TopicPartition) -> Result<Option<Self>, ProgressError> {
        if !record.key.as_deref().is_some_and(|key| key.starts_with(KEY.as_bytes())) {
            return Ok(None);
        }
        let Some(value) = &record.value else { return Ok(None) };
        let place = || format!("record {} of {partition}", record.offset);
        let unreadable = |reason| ProgressError::Unreadable { place: place(), reason };
        let value: serde_json::Value = serde_json::from_slice(value).map_err(unreadable)?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        let version = version.ok_or_else(|| unreadable(serde::de::Error::missing_field("version")))?;
        if version != u64::from(VERSION) {
            return Err(ProgressError::Version { place: place(), found: version });
        }
        Ok(Some(serde_json::from_value(value).map_err(unreadable)?))
    }

    /// Every position, for the group's committed offsets.
    pub fn offsets(&self) -> Vec<(TopicPartition, i64)> {
        self.positions.values().flat_map(|positions| &positions.0).map(|(partition, offset)| (partition.clone(), *offset)).collect()
    }
}

const KEY: &str = "slot/";

fn key(slot: Slot) -> String {
    format!("{KEY}{slot}")
}

/// Shared by all that a worker runs of a job.
pub type Job = Arc<JobIdentity>;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn progress() -> SlotProgress {
        let job = JobIdentity { name: "copy".into(), checkpoint_id: "0123456789ab".into(), shape: Shape::new(4, 128).unwrap() };
        let at = |partition, offset| (TopicPartition::new("in", partition), offset);
        let positions = BTreeMap::from([("logs".to_owned(), Positions(BTreeMap::from([at(1, 7), at(5, 0)])))]);
        SlotProgress::fresh(&job, Slot(1), positions)
    }

    fn range(partition: i32, from: i64, until: i64) -> OffsetRange {
        OffsetRange { topic: "in".into(), partition, from, until }
    }

    fn read(key: &str, value: impl Into<Bytes>) -> Result<Option<SlotProgress>, ProgressError> {
        let record = Record { offset: 12, timestamp_ms: 0, key: Some(key.to_owned().into()), value: Some(value.into()), headers: vec![] };
        SlotProgress::of(&record, &TopicPartition::new("millrace-copy-01234567-slots", 1))
    }

    #[test]
    fn a_record_says_all_of_it_in_words() {
        let batch = SlotBatch { id: 0, time_ms: 500, ranges: BTreeMap::from([("logs".to_owned(), vec![range(1, 7, 9), range(5, 0, 0)])]) };
        let progress = SlotProgress { defined: Some(SlotBatch { id: 1, ..batch.clone() }), ..progress().after(&batch) };
        let record = progress.record().unwrap();
        assert_eq!((&*record.topic, record.partition), ("millrace-copy-01234567-slots", Some(1)));
        let value = record.value.unwrap();
        assert_eq!(read("slot/1", value.clone()).unwrap(), Some(progress.clone()));
        let text = std::str::from_utf8(&value).unwrap();
        let expected = concat!(
            r#"{"version":1,"job":{"name":"copy","checkpoint_id":"0123456789ab","shape":{"slots":4,"key_groups":128}},"slot":1,"next":1,"#,
            r#""time_ms":500,"positions":{"logs":{"in":{"1":9,"5":0}}},"defined":{"id":1,"#
        );
        assert!(text.starts_with(expected), "{text}");
        let plain = SlotProgress { defined: None, ..progress };
        assert_eq!(read("slot/1", plain.record().unwrap().value.unwrap()).unwrap(), Some(plain));
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_place() {
        assert_eq!(read("worker/a", "{}").unwrap(), None);
        let newer = read("slot/1", r#"{"version":2,"whatever":true}"#).unwrap_err().to_string();
        assert!(newer.contains("record 12 of millrace-copy-01234567-slots-1") && newer.contains("version 2"), "{newer}");
        for broken in ["", "{", r#"{"version":1}"#, r#"{"slot":1}"#] {
            assert!(matches!(read("slot/1", broken), Err(ProgressError::Unreadable { .. })), "{broken}");
        }
    }

    #[test]
    fn the_transactional_id_is_the_slots_whoever_owns_it() {
        let job = progress().job;
        assert_eq!(job.transactional_id(Slot(3)), "millrace-copy-01234567/3");
        assert_ne!(job.transactional_id(Slot(3)), JobIdentity { checkpoint_id: "other".into(), ..job }.transactional_id(Slot(3)));
    }
}
