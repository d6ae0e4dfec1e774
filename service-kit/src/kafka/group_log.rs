//! What Kafka writes into `__consumer_offsets`, as far as offsets go.
//!
//! Key: int16 version; 0 and 1 are an offset (string group, string topic, int32 partition), 2 is a group of the classic protocol (string
//! group). Others belong to newer protocols and are passed over. Value of an offset: int16 version, int64 offset, from 3 on int32 leader
//! epoch, string metadata, int64 time of the commit; version 4 is flexible. A key without a value is gone.

use super::wire::Input;
use super::{Record, TopicPartition};

/// The topic's name.
pub const GROUP_LOG: &str = "__consumer_offsets";

/// One thing that the log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRecord {
    /// A group committed an offset; `None`: it holds none any more.
    Offset { group: String, partition: TopicPartition, commit: Option<GroupCommit> },
    /// The group is no more.
    Gone { group: String },
}

/// A commit as the broker took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupCommit {
    /// Next offset to read.
    pub offset: i64,
    /// Milliseconds since 1970, by the broker's clock.
    pub timestamp_ms: i64,
}

/// What a record of [`GROUP_LOG`] says about offsets; `None` for all else, and for what cannot be read.
pub fn group_record(record: &Record) -> Option<GroupRecord> {
    parse(record.key.as_deref()?, record.value.as_deref()).ok().flatten()
}

fn parse(key: &[u8], value: Option<&[u8]>) -> Result<Option<GroupRecord>, String> {
    let mut key = Input(key);
    let version = key.i16()?;
    match (version, value) {
        (0 | 1, value) => {
            let group = key.string()?.unwrap_or_default();
            let topic = key.string()?.unwrap_or_default();
            let partition = TopicPartition::new(topic, key.i32()?);
            let commit = value.map(commit).transpose()?;
            Ok(Some(GroupRecord::Offset { group, partition, commit }))
        }
        (2, None) => Ok(Some(GroupRecord::Gone { group: key.string()?.unwrap_or_default() })),
        _ => Ok(None),
    }
}

fn commit(value: &[u8]) -> Result<GroupCommit, String> {
    let mut value = Input(value);
    let version = value.i16()?;
    let offset = value.i64()?;
    if version >= 3 {
        let _leader_epoch = value.i32()?;
    }
    match version {
        0..=3 => drop(value.string()?),
        4 => value.compact()?,
        other => return Err(format!("an offset in version {other}")),
    }
    Ok(GroupCommit { offset, timestamp_ms: value.i64()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat()
    }

    fn key(version: i16) -> Vec<u8> {
        [&version.to_be_bytes()[..], &string("g"), &string("t"), &7i32.to_be_bytes()].concat()
    }

    fn value(version: i16) -> Vec<u8> {
        let mut value = [&version.to_be_bytes()[..], &42i64.to_be_bytes()].concat();
        if version >= 3 {
            value.extend(5i32.to_be_bytes());
        }
        value.extend(if version >= 4 { vec![3, b'm', b'd'] } else { string("md") });
        value.extend(1_000i64.to_be_bytes());
        match version {
            1 => value.extend(9_000i64.to_be_bytes()),
            4 => value.push(0),
            _ => {}
        }
        value
    }

    #[test]
    fn commits_of_every_version_are_read() {
        for key_version in [0, 1] {
            for version in 0..=4 {
                let found = parse(&key(key_version), Some(&value(version))).unwrap().unwrap();
                let commit = Some(GroupCommit { offset: 42, timestamp_ms: 1_000 });
                assert_eq!(found, GroupRecord::Offset { group: "g".into(), partition: TopicPartition::new("t", 7), commit }, "{version}");
            }
        }
        assert!(parse(&key(1), Some(&value(5))).is_err(), "a version of tomorrow is not guessed at");
    }

    #[test]
    fn what_is_gone_is_told_and_what_is_no_offset_is_passed_over() {
        let gone = parse(&key(1), None).unwrap().unwrap();
        assert!(matches!(gone, GroupRecord::Offset { commit: None, .. }));
        let group = [&2i16.to_be_bytes()[..], &string("g")].concat();
        assert_eq!(parse(&group, None), Ok(Some(GroupRecord::Gone { group: "g".into() })));
        assert_eq!(parse(&group, Some(b"members")), Ok(None));
        assert_eq!(parse(&[0, 9, 1], Some(b"newer")), Ok(None));
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let (key, value) = (key(1), value(3));
        for length in 0..key.len() {
            assert!(parse(&key[..length], Some(&value)).is_err(), "{length}");
        }
        for length in 0..value.len() {
            assert!(parse(&key, Some(&value[..length])).is_err(), "{length}");
        }
    }
}
