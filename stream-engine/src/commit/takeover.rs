//! What the new owner of a slot must do. Facts in, decision out; no I/O.
//!
//! The facts are read after the slot was taken, when no earlier owner can change them any more. The progress in Kafka is the truth; the local store and
//! the snapshots are copies, good where the changelog still holds all that lies between them and the progress. A copy that is ahead of the progress holds what
//! never happened (a topic or a disk was put back), and is no copy of this.

use std::collections::BTreeMap;

use super::progress::{JobIdentity, SlotBatch, SlotProgress};
use super::slots::Slot;

/// By table: an offset of the slot's changelog.
pub type Offsets = BTreeMap<String, i64>;

/// State, and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the job that it belongs to.
    pub checkpoint_id: String,
    /// It holds every change below these; a table that is absent has none.
    pub until: Offsets,
}

/// One that was put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Newer ones have higher ids.
    pub id: u64,
    /// Complete and unaltered, as far as can be told without loading it.
    pub sound: bool,
    pub copy: Kept,
}

/// What the new owner found.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub job: &'a JobIdentity,
    pub slot: Slot,
    pub progress: Option<&'a SlotProgress>,
    /// First offset that each changelog still holds; 0 where it is absent.
    pub changelogs: &'a Offsets,
    /// What this worker has from an earlier time.
    pub local: Option<&'a Kept>,
    pub snapshots: &'a [Snapshot],
}

/// Where the state comes from; the changelogs are read from there to the progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restore {
    /// There is none yet: wipe what is here.
    Nothing,
    /// From the local store.
    Local(Offsets),
    /// Wipe, load the snapshot, read from where it ends.
    Snapshot(u64, Offsets),
    /// Wipe, read the changelogs from their beginnings.
    Changelog,
}

/// What the new owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nobody ever began: look up where to begin, and make that durable before anything is read.
    Fresh,
    /// Cut the next batch.
    Resume(Restore),
    /// Run this batch first, as it is: it may have had effects.
    Rerun(Restore, SlotBatch),
    /// The text says why, and what would be right.
    Refuse(String),
}

/// See the module's description.
pub fn take_over(facts: &Facts<'_>) -> Plan {
    let Some(progress) = facts.progress else { return Plan::Fresh };
    if let Some(reason) = stranger(facts, progress) {
        return Plan::Refuse(reason);
    }
    let restore = match restore(facts, progress) {
        Ok(restore) => restore,
        Err(reason) => return Plan::Refuse(reason),
    };
    match &progress.defined {
        None => Plan::Resume(restore),
        Some(batch) => Plan::Rerun(restore, batch.clone()),
    }
}

fn stranger(facts: &Facts<'_>, progress: &SlotProgress) -> Option<String> {
    let (then, now) = (&progress.job, facts.job);
    let topic = now.slots_topic();
    if (&then.name, &then.checkpoint_id) != (&now.name, &now.checkpoint_id) {
        let of = |job: &JobIdentity| format!("job `{}` with checkpoint {}", job.name, job.checkpoint_id);
        return Some(format!("topic {topic} belongs to {}, not to {}; give this job another name", of(then), of(now)));
    }
    if then.shape != now.shape {
        return Some(format!(
            "job `{}` was cut into {} slots and {} key-groups when it was created, which cannot change: set these, or start it anew",
            then.name, then.shape.slots, then.shape.key_groups
        ));
    }
    if progress.slot != facts.slot {
        return Some(format!(
            "topic {topic} holds slot {} where slot {} should be; its partitions were written by something else",
            progress.slot, facts.slot
        ));
    }
    let defined = progress.defined.as_ref().filter(|batch| batch.id != progress.next);
    defined.map(|batch| {
        format!("slot {} defines batch {} where batch {} comes next; topic {topic} was altered", facts.slot, batch.id, progress.next)
    })
}

fn restore(facts: &Facts<'_>, progress: &SlotProgress) -> Result<Restore, String> {
    let ends = &progress.changelogs;
    if ends.values().all(|end| *end == 0) {
        return Ok(Restore::Nothing);
    }
    let at = |offsets: &Offsets, table: &str| offsets.get(table).copied().unwrap_or(0);
    let held = |table: &str| at(facts.changelogs, table);
    let usable = |copy: &Kept| {
        let tables = ends.keys().chain(copy.until.keys());
        let mut tables = tables.map(|table| (at(&copy.until, table), held(table), at(ends, table)));
        // Equal to the end, nothing is read, whatever the changelog holds.
        copy.checkpoint_id == facts.job.checkpoint_id && tables.all(|(until, held, end)| until == end || (held..=end).contains(&until))
    };
    if let Some(local) = facts.local.filter(|local| usable(local)) {
        return Ok(Restore::Local(local.until.clone()));
    }
    let sound = facts.snapshots.iter().filter(|snapshot| snapshot.sound && usable(&snapshot.copy));
    if let Some(newest) = sound.max_by_key(|snapshot| snapshot.id) {
        return Ok(Restore::Snapshot(newest.id, newest.copy.until.clone()));
    }
    match ends.keys().find(|table| held(table) > 0) {
        None => Ok(Restore::Changelog),
        Some(table) => Err(format!(
            "the changelog of table `{table}` begins at offset {} for slot {}, and no sound snapshot reaches that far: restore the snapshots of the job, or start it anew",
            held(table),
            facts.slot
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::slots::Shape;

    fn job() -> JobIdentity {
        JobIdentity { name: "totals".into(), checkpoint_id: "a".into(), shape: Shape::new(4, 128).unwrap() }
    }

    fn offsets(offset: Option<i64>) -> Offsets {
        offset.map(|offset| ("counts".to_owned(), offset)).into_iter().collect()
    }

    fn batch(id: u64) -> SlotBatch {
        SlotBatch { id, time_ms: 0, ranges: BTreeMap::new() }
    }

    /// Every combination of progress, definition, local store, snapshots and what is left of the changelog, over a changelog of
    /// three changes: what is decided always leads to exactly the state of the progress, and is refused only where nothing does.
    #[test]
    fn exhaustive_over_progress_definition_local_store_snapshots_and_changelog() {
        let copies: Vec<Option<Kept>> = [None]
            .into_iter()
            .chain(["a", "b"].into_iter().flat_map(|of| {
                [None, Some(0), Some(1), Some(2), Some(3), Some(4)]
                    .map(|until| Some(Kept { checkpoint_id: of.into(), until: offsets(until) }))
            }))
            .collect();
        let job = job();
        let (mut seen, mut refused) = (std::collections::BTreeSet::new(), 0);
        for end in [None, Some(0), Some(1), Some(3)] {
            for defined in [false, true] {
                for held in [None, Some(0), Some(1), Some(2), Some(3)] {
                    for local in &copies {
                        for snapshot in &copies {
                            for older in [None, Some(0), Some(1), Some(2)] {
                                for sound in [false, true] {
                                    let mut progress = SlotProgress::fresh(&job, Slot(2), BTreeMap::new());
                                    progress.next = 5;
                                    progress.changelogs = offsets(end);
                                    progress.defined = defined.then(|| batch(5));
                                    let mut snapshots = Vec::new();
                                    if let Some(until) = older {
                                        snapshots.push(Snapshot {
                                            id: 1,
                                            sound: true,
                                            copy: Kept { checkpoint_id: "a".into(), until: offsets(Some(until)) },
                                        });
                                    }
                                    if let Some(copy) = snapshot {
                                        snapshots.push(Snapshot { id: 2, sound, copy: copy.clone() });
                                    }
                                    let facts = Facts {
                                        job: &job,
                                        slot: Slot(2),
                                        progress: Some(&progress),
                                        changelogs: &offsets(held),
                                        local: local.as_ref(),
                                        snapshots: &snapshots,
                                    };
                                    let (end, held) = (end.unwrap_or(0), held.unwrap_or(0));
                                    // What leads there: a copy of this job that is not ahead, and the changelog from it on.
                                    let leads = |copy: &Kept| {
                                        let until = copy.until.get("counts").copied().unwrap_or(0);
                                        copy.checkpoint_id == "a" && until <= end && (until >= held || until == end)
                                    };
                                    let restore = match take_over(&facts) {
                                        Plan::Resume(restore) if !defined => restore,
                                        Plan::Rerun(restore, again) if defined && again == batch(5) => restore,
                                        Plan::Refuse(reason) => {
                                            refused += 1;
                                            assert!(end > 0 && held > 0, "{facts:?}");
                                            assert!(!local.as_ref().is_some_and(leads), "{facts:?}");
                                            assert!(!snapshots.iter().any(|one| one.sound && leads(&one.copy)), "{facts:?}");
                                            assert!(reason.contains("`counts`"), "{reason}");
                                            continue;
                                        }
                                        other => panic!("{other:?} of {facts:?}"),
                                    };
                                    seen.insert(match &restore {
                                        Restore::Nothing => 0,
                                        Restore::Local(_) => 1,
                                        Restore::Snapshot(..) => 2,
                                        Restore::Changelog => 3,
                                    });
                                    match restore {
                                        Restore::Nothing => assert_eq!(end, 0),
                                        Restore::Local(from) => {
                                            let local = local.as_ref().unwrap();
                                            assert!(leads(local) && from == local.until, "{facts:?}");
                                        }
                                        Restore::Snapshot(id, from) => {
                                            let one = snapshots.iter().find(|one| one.id == id).unwrap();
                                            assert!(one.sound && leads(&one.copy) && from == one.copy.until, "{facts:?}");
                                            assert!(!local.as_ref().is_some_and(leads), "the local store is nearer: {facts:?}");
                                            let newer = snapshots.iter().any(|other| other.id > id && other.sound && leads(&other.copy));
                                            assert!(!newer, "{facts:?}");
                                        }
                                        Restore::Changelog => assert_eq!(held, 0, "{facts:?}"),
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(seen.len(), 4);
        assert!(refused > 0);
    }

    #[test]
    fn without_progress_nobody_has_begun() {
        let local = Kept { checkpoint_id: "a".into(), until: offsets(Some(3)) };
        let facts = Facts { job: &job(), slot: Slot(0), progress: None, changelogs: &offsets(None), local: Some(&local), snapshots: &[] };
        assert_eq!(take_over(&facts), Plan::Fresh);
    }

    #[test]
    fn progress_of_another_job_shape_or_slot_is_refused() {
        let own = SlotProgress::fresh(&job(), Slot(2), BTreeMap::new());
        let of = |job: JobIdentity| SlotProgress { job, ..own.clone() };
        for (progress, part) in [
            (of(JobIdentity { checkpoint_id: "b".into(), ..job() }), "checkpoint b"),
            (of(JobIdentity { name: "other".into(), ..job() }), "`other`"),
            (of(JobIdentity { shape: Shape::new(8, 128).unwrap(), ..job() }), "8 slots"),
            (SlotProgress { slot: Slot(1), ..own.clone() }, "slot 1"),
            (SlotProgress { defined: Some(batch(7)), ..own.clone() }, "batch 7"),
        ] {
            let facts =
                Facts { job: &job(), slot: Slot(2), progress: Some(&progress), changelogs: &offsets(None), local: None, snapshots: &[] };
            match take_over(&facts) {
                Plan::Refuse(reason) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
