//! The batches of a session with `delivery = acknowledged`, over the windows of its partitions. No waiting here.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use service_kit::{
    kafka::{Record, TopicPartition},
    offsets::OffsetCommit,
};
use tokio::time::Instant;

use super::{
    Acknowledged, EncodeBatch, Limits,
    state::{State, size},
    window::{Held, Settled, Window},
};
use crate::error::{BridgeError, Code, Result};

/// What was handed out last, and what to name the next.
#[derive(Default)]
pub(super) struct Batches {
    /// Begins the ids: a number of an earlier instance of the same name is another's.
    nonce: Option<String>,
    number: u64,
    current: Option<Batch>,
    /// The partition that ended the last batch; the next one begins behind it, so that none starves.
    last: Option<TopicPartition>,
    /// Why dead letters could not be written.
    pub(super) trouble: Option<BridgeError>,
}

struct Batch {
    number: u64,
    records: Vec<(TopicPartition, i64)>,
    /// Its attempts are in the store, and its time runs.
    kept: bool,
}

/// A record whose attempts are over.
pub(super) struct DeadLetter {
    pub(super) partition: TopicPartition,
    pub(super) record: Record,
    pub(super) attempts: u32,
    pub(super) why: Cow<'static, str>,
    /// The same for each try to write it.
    pub(super) id: String,
}

/// Short, however long the topic's name is. One with another reason is another one.
fn letter_id(owner: &str, partition: &TopicPartition, held: &Held) -> String {
    let what = format!("{owner}/{partition}/{}/{}/{}", held.record.offset, held.attempts, held.why);
    format!("dead-letter/{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, what.as_bytes()).simple())
}

impl State {
    fn held(&self, partition: &TopicPartition, offset: i64) -> Option<&Held> {
        self.partitions.get(partition)?.window.held(offset)
    }

    /// Moves what was polled into the windows.
    pub(super) fn take_in(&mut self, now: Instant) {
        for (partition, record) in std::mem::take(&mut self.ready) {
            if let Some(progress) = self.partitions.get_mut(&partition) {
                progress.window.take_in(record, now);
            }
        }
        self.ready_bytes = 0;
    }

    /// Of all windows, those never delivered included.
    pub(super) fn window_bytes(&self) -> usize {
        let windows = self.partitions.values().map(|progress| &progress.window).chain(self.parked.values());
        windows.map(Window::bytes).sum()
    }

    pub(super) fn window_records(&self) -> usize {
        let windows = self.partitions.values().map(|progress| &progress.window).chain(self.parked.values());
        windows.map(Window::len).sum()
    }

    /// Whether the last batch is to be given again: nothing of it was acknowledged, rejected or lost, and its time is not over.
    pub(super) fn repeats(&self, now: Instant) -> bool {
        self.batches.current.as_ref().is_some_and(|batch| {
            let is_whole = |(partition, offset): &(TopicPartition, i64)| {
                self.held(partition, *offset).is_some_and(|held| held.batch == Some(batch.number) && (!batch.kept || now < held.due))
            };
            batch.records.iter().all(is_whole)
        })
    }

    /// Writes the last batch again, as it was. Its windows are to be stored again, which shows whether they are still this session's.
    pub(super) fn repeat(&mut self, encode: &mut impl EncodeBatch) -> Result<()> {
        encode.unbounded();
        for (partition, offset) in self.batches.current.iter().flat_map(|batch| &batch.records) {
            let Some(progress) = self.partitions.get_mut(partition) else { continue };
            progress.window.store_again();
            if let Some(held) = progress.window.held(*offset) {
                encode.add_attempt(partition, &held.record, held.attempts)?;
            }
        }
        Ok(())
    }

    /// The last batch goes out now: its time begins, where it has not yet. Gives its id, its records, and how many of them are new attempts.
    pub(super) fn give_out(&mut self, due: Instant) -> (String, usize, usize) {
        let nonce = self.batches.nonce.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()[..8].to_owned());
        let Some(batch) = &mut self.batches.current else { return (String::new(), 0, 0) };
        let id = format!("{nonce}-{}", batch.number);
        let mut again = 0;
        if !std::mem::replace(&mut batch.kept, true) {
            for (partition, offset) in &batch.records {
                let Some(progress) = self.partitions.get_mut(partition) else { continue };
                progress.window.put_off(*offset, due);
                again += usize::from(progress.window.held(*offset).is_some_and(|held| held.attempts > 1));
            }
        }
        (id, batch.records.len(), again)
    }

    /// The last batch lost a partition. Where it went to nobody, the rest of it is as before.
    pub(super) fn withdraw(&mut self, now: Instant) {
        let unheard = self.batches.current.take().filter(|batch| !batch.kept);
        for (partition, offset) in unheard.map(|batch| batch.records).unwrap_or_default().into_iter().rev() {
            if let Some(progress) = self.partitions.get_mut(&partition) {
                progress.window.withdraw(offset, now);
            }
        }
    }

    /// Chooses the next batch: first what is due again, then what was never delivered; each in the order of its partition. False: nothing is there.
    pub(super) fn choose(
        &mut self,
        limits: &Limits,
        records_max: usize,
        settings: &Acknowledged,
        now: Instant,
        encode: &mut impl EncodeBatch,
    ) -> bool {
        let mut partitions: Vec<TopicPartition> = self.partitions.keys().cloned().collect();
        let behind = partitions.iter().position(|partition| self.batches.last.as_ref().is_some_and(|last| partition > last));
        partitions.rotate_left(behind.unwrap_or(0));
        let due = now + settings.visibility;
        let number = self.batches.number + 1;
        let (mut records, mut bytes): (Vec<(TopicPartition, i64)>, usize) = (Vec::new(), 0);
        'full: for again in [true, false] {
            for partition in &partitions {
                let Some(progress) = self.partitions.get_mut(partition) else { continue };
                let window = &mut progress.window;
                let mut from = 0;
                loop {
                    let next = if again {
                        window.held_from(from).find(|held| settings.is_due(held, now)).map(|held| (&held.record, held.attempts))
                    } else {
                        window.fresh(records_max).next().map(|record| (record, 0))
                    };
                    let Some((record, attempts)) = next else { break };
                    let (offset, size) = (record.offset, size(record));
                    let is_first = records.is_empty();
                    if !is_first && (bytes + size > limits.bytes_max || records.len() >= limits.records_max) {
                        break 'full;
                    }
                    from = offset + 1;
                    match encode.add_attempt(partition, record, attempts + 1) {
                        Ok(true) => {}
                        Ok(false) => break 'full,
                        Err(error) => {
                            tracing::warn!(%partition, offset, %error, "a record cannot be shown to this consumer");
                            window.refuse(offset, error, now);
                            continue;
                        }
                    }
                    bytes += size;
                    window.deliver(offset, number, due);
                    records.push((partition.clone(), offset));
                }
            }
        }
        for (partition, progress) in &self.partitions {
            if progress.window.held_from(0).any(|held| held.refused.is_some()) {
                encode.blocked(partition);
            }
        }
        let Some((last, _)) = records.last() else {
            self.batches.current = None;
            return false;
        };
        self.batches.last = Some(last.clone());
        self.batches.number = number;
        self.batches.current = Some(Batch { number, records, kept: false });
        true
    }

    /// The records that the next batch is made of, as far as they fit.
    pub(super) fn candidates<'a>(
        &'a self,
        repeats: bool,
        records_max: usize,
        settings: &'a Acknowledged,
        now: Instant,
    ) -> impl Iterator<Item = &'a Record> {
        let current = self.batches.current.iter().filter(move |_| repeats).flat_map(|batch| &batch.records);
        let again = current.filter_map(|(partition, offset)| self.held(partition, *offset)).map(|held| &held.record);
        let windows = self.partitions.values().filter(move |_| !repeats).map(|progress| &progress.window);
        let new = windows.flat_map(move |window| {
            let due = window.held_from(0).filter(move |held| settings.is_due(held, now)).map(|held| &held.record);
            due.chain(window.fresh(records_max))
        });
        again.chain(new)
    }

    /// Never delivered records that there is room for: how many, and their bytes.
    pub(super) fn fresh(&self, records_max: usize) -> (usize, usize) {
        let fresh = self.partitions.values().flat_map(|progress| progress.window.fresh(records_max));
        fresh.fold((0, 0), |(count, bytes), record| (count + 1, bytes + size(record)))
    }

    /// When the next record is due again; what is due already counts.
    pub(super) fn next_due(&self, settings: &Acknowledged) -> Option<Instant> {
        let held = self.partitions.values().flat_map(|progress| progress.window.held_from(0));
        held.filter(|held| settings.comes_again(held)).map(|held| held.due).min()
    }

    /// Partitions without room for a new record.
    pub(super) fn full(&self, records_max: usize, bytes_max: usize) -> Vec<TopicPartition> {
        let no_more = self.window_bytes() >= bytes_max;
        let full = self.partitions.iter().filter(|(_, progress)| {
            let window = &progress.window;
            !window.has_room(records_max) || (no_more && window.fresh(records_max).next().is_none())
        });
        full.map(|(partition, _)| partition.clone()).collect()
    }

    /// Partitions that are not to be read further for now.
    pub(super) fn unwanted(&self, records_max: usize, bytes_max: usize) -> BTreeSet<TopicPartition> {
        let no_more = self.window_bytes() >= bytes_max;
        let unwanted = self.partitions.iter().filter(|(_, progress)| no_more || !progress.window.wants(records_max));
        unwanted.map(|(partition, _)| partition.clone()).collect()
    }

    /// What is due and may not be delivered any more.
    pub(super) fn dead_letters(&self, settings: &Acknowledged, now: Instant, max: usize) -> Vec<DeadLetter> {
        let all = self.partitions.iter().flat_map(|(partition, progress)| {
            let due = progress.window.held_from(0).filter(move |held| settings.is_dead(held) && held.due <= now);
            due.map(move |held| DeadLetter {
                partition: partition.clone(),
                record: held.record.clone(),
                attempts: held.attempts,
                why: held.why.clone(),
                id: letter_id(progress.window.owner(), partition, held),
            })
        });
        all.take(max).collect()
    }

    /// The windows of these are to be stored again, which shows whether they are still this session's.
    pub(super) fn store_again<'a>(&mut self, partitions: impl Iterator<Item = &'a TopicPartition>) {
        for partition in partitions {
            if let Some(progress) = self.partitions.get_mut(partition) {
                progress.window.store_again();
            }
        }
    }

    /// Why nothing comes where something is there: it cannot be shown, or the dead-letter topic does not take it.
    pub(super) fn trouble(&mut self, settings: &Acknowledged) -> Option<BridgeError> {
        let mut held = self.partitions.values().flat_map(|progress| progress.window.held_from(0));
        let refused = held.find(|held| !settings.comes_again(held)).and_then(|held| held.refused.clone());
        self.batches.trouble.take().or(refused)
    }

    // === Acknowledging ===

    /// The batch's number, where it is one that was given out.
    pub(super) fn batch_number(&self, id: &str) -> Result<u64> {
        let mine = id.rsplit_once('-').filter(|(nonce, _)| self.batches.nonce.as_deref() == Some(*nonce));
        let number = mine.and_then(|(_, number)| number.parse().ok());
        number.filter(|number| (1..=self.batches.number).contains(number)).ok_or_else(|| {
            BridgeError::new(
                Code::IllegalState,
                format!(
                    "batch {id:?} was not given out by this instance since it began; what of it is not acknowledged comes again: fetch without acknowledging it"
                ),
            )
        })
    }

    /// Acknowledges what is still out of these batches; gives the records.
    pub(super) fn acknowledge_batches(&mut self, numbers: &[u64]) -> Vec<(TopicPartition, i64)> {
        let mut records = Vec::new();
        for (partition, progress) in &mut self.partitions {
            let held = progress.window.held_from(0).filter(|held| held.batch.is_some_and(|batch| numbers.contains(&batch)));
            let offsets: Vec<i64> = held.map(|held| held.record.offset).collect();
            for offset in offsets {
                progress.window.acknowledge(offset);
                records.push((partition.clone(), offset));
            }
        }
        records
    }

    /// Acknowledges what was delivered below these offsets; everything where there are none.
    pub(super) fn acknowledge_below(&mut self, ends: Option<&[OffsetCommit]>) {
        for (partition, progress) in &mut self.partitions {
            let end = match ends {
                None => i64::MAX,
                Some(ends) => ends.iter().filter(|end| end.partition == *partition).map(|end| end.offset).max().unwrap_or(0),
            };
            let delivered: Vec<i64> =
                progress.window.held_from(0).take_while(|held| held.record.offset < end).map(|held| held.record.offset).collect();
            for offset in delivered {
                progress.window.acknowledge(offset);
            }
        }
    }

    pub(super) fn settle(&mut self, partition: &TopicPartition, offset: i64) -> Settled {
        self.partitions.get_mut(partition).map_or(Settled::Unknown, |progress| progress.window.acknowledge(offset))
    }

    pub(super) fn reject(&mut self, partition: &TopicPartition, offset: i64, due: Instant, why: Cow<'static, str>) -> bool {
        self.partitions.get_mut(partition).is_some_and(|progress| progress.window.reject(offset, due, why))
    }

    // === Storing ===

    /// What the store does not have yet.
    pub(super) fn changed_windows(&mut self) -> Vec<OffsetCommit> {
        let changed = self.partitions.iter_mut().filter_map(|(partition, progress)| {
            let stored = progress.window.unstored()?;
            Some(OffsetCommit { partition: partition.clone(), offset: stored.offset, metadata: stored.metadata })
        });
        changed.collect()
    }

    /// Notes that the store has them; gives the offsets that moved.
    pub(super) fn kept(&mut self, commits: &[OffsetCommit]) -> Vec<(TopicPartition, i64)> {
        let mut moved = Vec::new();
        for commit in commits {
            if let Some(progress) = self.partitions.get_mut(&commit.partition) {
                progress.window.is_stored();
                if progress.committed != Some(commit.offset) {
                    moved.push((commit.partition.clone(), commit.offset));
                }
            }
        }
        self.stored(commits);
        moved
    }

    /// Passes the marks of transactions, so that a group that has acknowledged everything has no lag. `positions` are the client's, of now.
    pub(super) fn pass_marks_of_windows(&mut self, positions: &BTreeMap<TopicPartition, i64>) {
        for (partition, position) in positions {
            let Some(progress) = self.partitions.get_mut(partition) else { continue };
            // Where nothing was read yet, the client was put at the committed offset, and has moved since.
            let was_put = progress.committed == Some(progress.floor) && progress.position_then != Some(*position);
            if (progress.last.is_some() || was_put) && progress.window.end().is_some_and(|end| end < *position) {
                progress.window.pass(*position);
            }
        }
    }
}
