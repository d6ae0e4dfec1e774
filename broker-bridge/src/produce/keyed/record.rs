//! What stands in the two topics, as JSON under the key's own bytes.

use md5::{Digest as _, Md5};
use serde::{Deserialize, Serialize};
use service_kit::kafka::{OutRecord, Written};

use crate::{auth::hex, produce::RecordOutcome, trace};

/// A record of the claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Said {
    Claim(Claim),
    /// Whoever made the claim at this offset promises that it never commits under it.
    Release(i64),
}

/// The wish to write a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// What its transactional ids begin with.
    pub(super) replica: String,
    /// How many of them there are.
    pub(super) lanes: u32,
    /// Everything below this offset was known when it was decided to claim.
    pub(super) seen: i64,
}

/// A record of the results: in the transaction that it tells of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Offset of the claim under which it was written.
    pub(super) claim: i64,
    pub(super) fingerprint: String,
    /// Where the records are, in their order.
    pub(super) written: Vec<Run>,
}

/// Records that stand one behind the other: partition, first offset, how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run(i32, i64, u32);

#[cfg(test)]
impl Run {
    pub(super) fn of(partition: i32, first: i64, count: u32) -> Self {
        Self(partition, first, count)
    }
}

/// The most that one record needs in an [`Outcome`], in bytes.
pub(super) const RUN_BYTES_MAX: usize = 48;

impl Outcome {
    pub(super) fn new(claim: i64, fingerprint: &str, written: &[Written]) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for one in written {
            match runs.last_mut() {
                Some(run) if run.0 == one.partition && run.1 + i64::from(run.2) == one.offset && run.2 < u32::MAX => run.2 += 1,
                _ => runs.push(Run(one.partition, one.offset, 1)),
            }
        }
        Self { claim, fingerprint: fingerprint.to_owned(), written: runs }
    }

    pub(super) fn results(&self) -> Vec<RecordOutcome> {
        let of = |run: &Run| {
            let Run(partition, first, count) = *run;
            (0..i64::from(count)).map(move |index| Ok(Written { partition, offset: first + index }))
        };
        self.written.iter().flat_map(of).collect()
    }

    /// How many records it tells of; an empty request takes room too.
    pub(super) fn weight(&self) -> usize {
        self.written.iter().map(|run| run.2 as usize).sum::<usize>().max(1)
    }
}

/// Tells a repeated request from another one under the same key, in every replica and version. The trace may differ.
pub(in crate::produce) fn fingerprint(records: &[OutRecord]) -> String {
    let mut digest = Md5::new();
    let mut put = |bytes: Option<&[u8]>| {
        digest.update(bytes.map_or(-1, |bytes| bytes.len() as i64).to_be_bytes());
        digest.update(bytes.unwrap_or_default());
    };
    for record in records {
        put(Some(record.topic.as_bytes()));
        put(record.partition.map(i32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
        put(record.key.as_deref());
        put(record.value.as_deref());
        put(record.timestamp_ms.map(i64::to_be_bytes).as_ref().map(<[u8; 8]>::as_slice));
        for (name, value) in record.headers.iter().filter(|(name, _)| !trace::is_trace(name)) {
            put(Some(name.as_bytes()));
            put(Some(value));
        }
        put(None);
    }
    hex(&digest.finalize())
}

/// The partition of both topics that a key belongs to: the same in every replica.
pub(super) fn partition_of(key: &[u8], partitions: u32) -> i32 {
    let digest = Md5::digest(key);
    let number = digest.iter().take(4).fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    (number % partitions.max(1)) as i32
}

#[cfg(test)]
mod tests {

    use super::*;

    fn record(value: &str) -> OutRecord {
        OutRecord {
            topic: "t".into(),
            partition: None,
            key: None,
            value: Some(value.to_owned().into()),
            headers: vec![],
            timestamp_ms: None,
        }
    }

    #[test]
    fn records_that_differ_in_a_header_are_other_records_and_the_trace_does_not_count() {
        let with = |name: &str, value: &'static str| {
            let mut record = record("v");
            record.headers.push((name.to_owned(), value.into()));
            fingerprint(&[record])
        };
        assert_ne!(with("type", "a"), with("type", "b"));
        assert_ne!(with("type", "a"), fingerprint(&[record("v")]));
        assert_eq!(with("traceparent", "a"), with("Traceparent", "b"));
        assert_eq!(with("tracestate", "a"), fingerprint(&[record("v")]));
        assert_ne!(fingerprint(&[record("a"), record("b")]), fingerprint(&[record("ab")]));
        // It is kept in Kafka: another version of this program must find the same.
        assert_eq!(fingerprint(&[]), "d41d8cd98f00b204e9800998ecf8427e");
    }

    #[test]
    fn an_outcome_holds_runs_and_gives_every_record_back_in_order() {
        let at = |partition, offset| Written { partition, offset };
        let written = [at(0, 5), at(0, 6), at(1, 7), at(1, 9), at(0, 7)];
        let outcome = Outcome::new(3, "f", &written);
        assert_eq!(outcome.written, [Run(0, 5, 2), Run(1, 7, 1), Run(1, 9, 1), Run(0, 7, 1)]);
        assert_eq!(outcome.results(), written.map(Ok));
        assert_eq!(outcome.weight(), 5);
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(text, r#"{"claim":3,"fingerprint":"f","written":[[0,5,2],[1,7,1],[1,9,1],[0,7,1]]}"#);
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
        let longest = serde_json::to_string(&Run(i32::MAX, i64::MAX, u32::MAX)).unwrap();
        assert!(longest.len() < RUN_BYTES_MAX, "{longest}");
        let said = Said::Claim(Claim { replica: "r".into(), lanes: 2, seen: 17 });
        assert_eq!(serde_json::to_string(&said).unwrap(), r#"{"claim":{"replica":"r","lanes":2,"seen":17}}"#);
        assert_eq!(serde_json::from_str::<Said>(r#"{"release":4}"#).unwrap(), Said::Release(4));
    }

    #[test]
    fn a_key_stays_in_its_partition() {
        assert_eq!([b"a".as_slice(), b"b", b"c", b""].map(|key| partition_of(key, 4)), [1, 2, 0, 1]);
        assert!((0..1000).map(|key: u32| partition_of(&key.to_be_bytes(), 4)).collect::<std::collections::BTreeSet<_>>().len() == 4);
    }
}
