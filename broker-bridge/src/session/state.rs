//! What a session knows between two calls: where it is in each partition, and what it holds ready. No waiting here.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use service_kit::{
    kafka::{Member, Record, TopicPartition},
    offsets::OffsetCommit,
};

use super::{Encode, Limits, batches::Batches, window::Window};
use crate::error::{BridgeError, Result};

#[derive(Default)]
pub(super) struct State {
    pub(super) source: Option<Source>,
    /// Of the group, as this session knows it.
    pub(super) epoch: u64,
    pub(super) partitions: BTreeMap<TopicPartition, Progress>,
    /// Polled and not yet delivered, in order.
    pub(super) ready: VecDeque<(TopicPartition, Record)>,
    pub(super) ready_bytes: usize,
    /// What the client was told to pause.
    pub(super) paused: BTreeSet<TopicPartition>,
    /// Counts seeks, to tell records polled before one from those polled after.
    pub(super) seeks: u64,
    /// Of a session with `delivery = acknowledged`.
    pub(super) batches: Batches,
    /// Windows of partitions that are gone, as in the middle of a rebalance: they are taken up again where nobody else had them meanwhile.
    pub(super) parked: BTreeMap<TopicPartition, Window>,
    pub(super) closed: bool,
}

pub(super) struct Source {
    pub(super) member: Arc<dyn Member>,
    /// Topics or one `^pattern`; `None` when the client named partitions.
    pub(super) subscription: Option<Vec<String>>,
}

/// Where a session is in a partition it reads. Offsets are the next to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// In the store.
    pub(super) committed: Option<i64>,
    /// Behind the last delivered record.
    pub(super) delivered: Option<i64>,
    /// Last record taken from the client.
    pub(super) last: Option<i64>,
    /// Records below are of before a seek.
    pub(super) floor: i64,
    /// `State::seeks` at the last seek.
    pub(super) sought: u64,
    /// From the first to before the second offset there are no records, only the marks of transactions.
    pub(super) barren: Option<(i64, i64)>,
    /// The client's position right after the last seek; it may be of before.
    pub(super) position_then: Option<i64>,
    /// Why the partition gives no more records: its next one cannot be shown. Until a seek.
    pub(super) blocked: Option<BridgeError>,
    /// The client went back behind `committed`: its next commit resets the group.
    pub(super) rewound: bool,
    /// With `delivery = acknowledged`, what was delivered; empty otherwise.
    pub(super) window: Window,
}

/// Records of one answer, as long as it may have to be taken back.
pub(super) struct Delivered {
    pub(super) records: Vec<(TopicPartition, Record)>,
    /// `Progress::delivered` as it was.
    pub(super) before: BTreeMap<TopicPartition, Option<i64>>,
}

impl State {
    /// Partitions whose client reads before where it was put.
    pub(super) fn behind(&self, polled: &[(TopicPartition, Record)], seeks: u64) -> BTreeSet<TopicPartition> {
        let behind = polled.iter().filter(|(partition, record)| {
            self.partitions.get(partition).is_some_and(|progress| {
                progress.sought <= seeks && (record.offset < progress.floor || progress.last.is_some_and(|last| record.offset <= last))
            })
        });
        behind.map(|(partition, _)| partition.clone()).collect()
    }

    /// Takes polled records in; gives the partitions whose records were dropped because of a seek after `seeks`.
    pub(super) fn absorb(&mut self, polled: Vec<(TopicPartition, Record)>, seeks: u64) -> BTreeSet<TopicPartition> {
        let mut again = BTreeSet::new();
        for (partition, record) in polled {
            let Some(progress) = self.partitions.get_mut(&partition) else { continue };
            if progress.sought > seeks {
                again.insert(partition);
                continue;
            }
            if record.offset < progress.floor || progress.blocked.is_some() {
                continue;
            }
            if progress.last.is_some_and(|last| record.offset <= last) {
                // The partition was taken away and given back: the client reads again from the committed offset.
                self.drop_ready(&partition);
            }
            if let Some(progress) = self.partitions.get_mut(&partition) {
                progress.last = Some(record.offset);
            }
            self.ready_bytes += size(&record);
            self.ready.push_back((partition, record));
        }
        again
    }

    /// Moves records from `ready` into the answer. A record that cannot be shown blocks its partition; the others go on. Its error is the answer's
    /// where there is no record at all.
    pub(super) fn deliver(&mut self, limits: &Limits, encode: &mut impl Encode) -> Result<Delivered> {
        let mut delivered = Delivered { records: Vec::new(), before: BTreeMap::new() };
        let mut bytes = 0;
        while let Some((partition, record)) = self.ready.front() {
            bytes += size(record);
            let first = delivered.records.is_empty();
            if !first && (bytes > limits.bytes_max || delivered.records.len() >= limits.records_max) {
                break;
            }
            match encode.add(partition, record) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    bytes -= size(record);
                    let partition = partition.clone();
                    self.block(&partition, error);
                    continue;
                }
            }
            let Some((partition, record)) = self.ready.pop_front() else { break };
            self.ready_bytes -= size(&record);
            if let Some(progress) = self.partitions.get_mut(&partition) {
                delivered.before.entry(partition.clone()).or_insert(progress.delivered);
                progress.delivered = Some(record.offset + 1);
            }
            delivered.records.push((partition, record));
        }
        if self.ready.is_empty() {
            // Its room for thousands of records would be kept for as long as the session is.
            self.ready = VecDeque::new();
        }
        for (partition, progress) in &self.partitions {
            match &progress.blocked {
                Some(error) if delivered.records.is_empty() => return Err(error.clone()),
                Some(_) => encode.blocked(partition),
                None => {}
            }
        }
        Ok(delivered)
    }

    fn block(&mut self, partition: &TopicPartition, error: BridgeError) {
        tracing::warn!(%partition, %error, "the partition is paused for this consumer");
        metrics::counter!("millrace_bridge_blocked_partitions_total").increment(1);
        self.drop_ready(partition);
        if let Some(progress) = self.partitions.get_mut(partition) {
            progress.blocked = Some(error);
        }
    }

    pub(super) fn blocked(&self) -> BTreeSet<TopicPartition> {
        let blocked = self.partitions.iter().filter(|(_, progress)| progress.blocked.is_some());
        blocked.map(|(partition, _)| partition.clone()).collect()
    }

    pub(super) fn all_blocked(&self) -> bool {
        !self.partitions.is_empty() && self.partitions.values().all(|progress| progress.blocked.is_some())
    }

    /// Passes the marks of transactions behind the delivered records, as Java's position does: a group that has read everything has no lag.
    /// `positions` are the client's, of now. Gives what is to be acknowledged because everything before it is.
    pub(super) fn pass_marks(&mut self, positions: &BTreeMap<TopicPartition, i64>) -> Vec<OffsetCommit> {
        let mut passed = Vec::new();
        for (partition, position) in positions {
            if self.ready.iter().any(|(of, _)| of == partition) {
                continue;
            }
            let Some(progress) = self.partitions.get_mut(partition) else { continue };
            // Where nothing was delivered yet, the client was put at the committed offset, and has moved since.
            let put = progress.committed.filter(|committed| *committed == progress.floor && progress.position_then != Some(*position));
            let Some(behind) = progress.delivered.or(put) else { continue };
            if progress.blocked.is_some() || *position <= behind {
                continue;
            }
            let from = progress.barren.filter(|(_, to)| *to == behind).map_or(behind, |(from, _)| from);
            progress.barren = Some((from, *position));
            progress.delivered = Some(*position);
            if progress.committed == Some(behind) {
                passed.push(OffsetCommit { partition: partition.clone(), offset: *position, metadata: String::new() });
            }
        }
        passed
    }

    /// The same place behind the marks of transactions, where there are some.
    pub(super) fn behind_marks(&self, commit: &OffsetCommit) -> i64 {
        let barren = self.partitions.get(&commit.partition).and_then(|progress| progress.barren);
        barren.filter(|(from, _)| *from == commit.offset).map_or(commit.offset, |(_, to)| to)
    }

    /// The answer reached nobody.
    pub(super) fn take_back(&mut self, delivered: Delivered) {
        for (partition, before) in delivered.before {
            if let Some(progress) = self.partitions.get_mut(&partition) {
                progress.delivered = before;
            }
        }
        for (partition, record) in delivered.records.into_iter().rev() {
            self.ready_bytes += size(&record);
            self.ready.push_front((partition, record));
        }
    }

    /// What `commit` without offsets means.
    pub(super) fn delivered(&self) -> Vec<OffsetCommit> {
        let behind = self.partitions.iter().filter_map(|(partition, progress)| {
            let offset = progress.delivered.filter(|delivered| progress.committed != Some(*delivered))?;
            Some(OffsetCommit { partition: partition.clone(), offset, metadata: String::new() })
        });
        behind.collect()
    }

    pub(super) fn goes_back(&self, commit: &OffsetCommit) -> bool {
        self.partitions
            .get(&commit.partition)
            .is_some_and(|progress| progress.rewound && progress.committed.is_some_and(|committed| commit.offset < committed))
    }

    /// Notes what the store took.
    pub(super) fn stored(&mut self, offsets: &[OffsetCommit]) -> Vec<(TopicPartition, i64)> {
        metrics::counter!("millrace_bridge_commits_total").increment(1);
        for commit in offsets {
            if let Some(progress) = self.partitions.get_mut(&commit.partition) {
                progress.committed = Some(commit.offset);
                progress.rewound = false;
            }
        }
        offsets.iter().map(|commit| (commit.partition.clone(), commit.offset)).collect()
    }

    pub(super) fn drop_ready(&mut self, partition: &TopicPartition) {
        self.ready.retain(|(of, _)| of != partition);
        self.ready_bytes = self.ready.iter().map(|(_, record)| size(record)).sum();
    }

    pub(super) fn clear(&mut self) {
        self.partitions.clear();
        self.parked.clear();
        self.paused.clear();
        self.ready.clear();
        self.ready_bytes = 0;
    }
}

/// Bytes of a record, with something for its frame.
pub(crate) fn size(record: &Record) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    let headers: usize = record.headers.iter().map(|(name, value)| name.len() + length(value)).sum();
    32 + length(&record.key) + length(&record.value) + headers
}
