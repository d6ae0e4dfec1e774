//! After a crash: which batch comes next. Facts in, decision out; no I/O.
//!
//! A definition is durable before its batch may have any effect, and a commit after all of them. So a definition
//! without a commit may have happened, in part or in full, and is run again as it was; a definition that was torn
//! while it was written cannot have happened and is dropped; a torn newest commit falls back to the one before,
//! and its batch is run again.

use std::{collections::BTreeMap, fmt};

/// What a restart can say about a stored entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Sound,
    /// Cut short or altered: length or checksum do not fit.
    Torn,
}

/// What a restart found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The job has started before.
    pub metadata: bool,
    /// `offsets/N`.
    pub definitions: BTreeMap<u64, Health>,
    /// `commits/N`, from the newest sound one upwards; older ones do not matter.
    pub commits: BTreeMap<u64, Health>,
}

/// What a restart must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Never started: look up where to begin, write the metadata, begin with batch 0.
    Fresh,
    /// Restore `commits/restore` (`None`: the state before the first batch) and cut the next batch.
    Continue { restore: Option<u64>, discard: Vec<Discard> },
    /// Restore, then run these definitions again, in order; then cut the next batch.
    Rerun { restore: Option<u64>, batches: Vec<u64>, discard: Vec<Discard> },
    /// The checkpoint is damaged beyond what a crash can do. The text says how.
    Refuse(String),
}

/// A torn entry that is in the way of its replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    Definition(u64),
    Commit(u64),
}

/// The entry's name.
impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Definition(id) => write!(f, "offsets/{id}"),
            Self::Commit(id) => write!(f, "commits/{id}"),
        }
    }
}

/// See the module's description.
pub fn decide(facts: &Facts) -> Decision {
    if !facts.metadata {
        return if facts.definitions.is_empty() && facts.commits.is_empty() {
            Decision::Fresh
        } else {
            Decision::Refuse("it holds batches but no readable `metadata`".into())
        };
    }
    let restore = facts.commits.iter().rev().find(|(_, health)| **health == Health::Sound).map(|(id, _)| *id);
    let next = restore.map_or(0, |id| id + 1);
    let newest_definition = facts.definitions.keys().next_back().copied();
    let newest_commit = facts.commits.keys().next_back().copied();

    let mut discard = Vec::new();
    let mut batches = Vec::new();
    let newest = newest_definition.max(newest_commit);
    for id in next..newest.map_or(next, |id| id + 1) {
        let committed = facts.commits.contains_key(&id);
        match facts.definitions.get(&id) {
            Some(Health::Sound) => {
                batches.push(id);
                if committed {
                    discard.push(Discard::Commit(id));
                }
            }
            Some(Health::Torn) if !committed && newest == Some(id) => discard.push(Discard::Definition(id)),
            Some(Health::Torn) => {
                return Decision::Refuse(format!("`offsets/{id}` is damaged, and its batch may have run"));
            }
            None => {
                let newest = newest.unwrap_or(id);
                return Decision::Refuse(match restore {
                    Some(commit) => format!("`offsets/{id}` is missing between commit {commit} and batch {newest}"),
                    None => format!("`offsets/{id}` is missing, and no readable commit covers it (newest batch {newest})"),
                });
            }
        }
    }
    if batches.is_empty() { Decision::Continue { restore, discard } } else { Decision::Rerun { restore, batches, discard } }
}

#[cfg(test)]
mod tests {
    use super::{Decision::*, Health::*, *};

    fn facts(definitions: &[(u64, Health)], commits: &[(u64, Health)]) -> Facts {
        Facts { metadata: true, definitions: definitions.iter().copied().collect(), commits: commits.iter().copied().collect() }
    }

    #[test]
    fn every_state_a_crash_can_leave() {
        type Case = (&'static str, &'static [(u64, Health)], &'static [(u64, Health)], Decision);
        let cases: Vec<Case> = vec![
            ("before the first definition", &[], &[], Continue { restore: None, discard: vec![] }),
            (
                "while the first definition was written",
                &[(0, Torn)],
                &[],
                Continue { restore: None, discard: vec![Discard::Definition(0)] },
            ),
            ("in the first batch", &[(0, Sound)], &[], Rerun { restore: None, batches: vec![0], discard: vec![] }),
            (
                "while the first commit was written",
                &[(0, Sound)],
                &[(0, Torn)],
                Rerun { restore: None, batches: vec![0], discard: vec![Discard::Commit(0)] },
            ),
            ("after the first commit", &[(0, Sound)], &[(0, Sound)], Continue { restore: Some(0), discard: vec![] }),
            (
                "while a later definition was written",
                &[(6, Sound), (7, Torn)],
                &[(6, Sound)],
                Continue { restore: Some(6), discard: vec![Discard::Definition(7)] },
            ),
            ("in a later batch", &[(6, Sound), (7, Sound)], &[(6, Sound)], Rerun { restore: Some(6), batches: vec![7], discard: vec![] }),
            (
                "while a later commit was written",
                &[(6, Sound), (7, Sound)],
                &[(6, Sound), (7, Torn)],
                Rerun { restore: Some(6), batches: vec![7], discard: vec![Discard::Commit(7)] },
            ),
            (
                "after a later commit, older definitions pruned",
                &[(7, Sound)],
                &[(7, Sound)],
                Continue { restore: Some(7), discard: vec![] },
            ),
            (
                "a commit was damaged after the next batch began",
                &[(5, Sound), (6, Sound), (7, Sound)],
                &[(5, Sound), (6, Torn)],
                Rerun { restore: Some(5), batches: vec![6, 7], discard: vec![Discard::Commit(6)] },
            ),
            (
                "the same, and the next definition was torn",
                &[(5, Sound), (6, Sound), (7, Torn)],
                &[(5, Sound), (6, Torn)],
                Rerun { restore: Some(5), batches: vec![6], discard: vec![Discard::Commit(6), Discard::Definition(7)] },
            ),
            (
                "two commits damaged",
                &[(5, Sound), (6, Sound), (7, Sound)],
                &[(5, Sound), (6, Torn), (7, Torn)],
                Rerun { restore: Some(5), batches: vec![6, 7], discard: vec![Discard::Commit(6), Discard::Commit(7)] },
            ),
            ("a commit whose definition is pruned", &[], &[(9, Sound)], Continue { restore: Some(9), discard: vec![] }),
        ];
        for (name, definitions, commits, expected) in cases {
            assert_eq!(decide(&facts(definitions, commits)), expected, "{name}");
        }
    }

    #[test]
    fn damage_that_no_crash_explains_is_refused() {
        for (definitions, commits, part) in [
            (&[(7, Torn)][..], &[(6, Sound), (7, Torn)][..], "offsets/7"),
            (&[], &[(6, Sound), (7, Torn)], "offsets/7"),
            (&[(3, Sound), (5, Sound)], &[(3, Sound)], "offsets/4"),
            (&[(8, Sound)], &[], "offsets/0"),
            (&[(6, Torn), (7, Sound)], &[(5, Sound)], "offsets/6"),
        ] {
            match decide(&facts(definitions, commits)) {
                Refuse(reason) => assert!(reason.contains(part), "{reason}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn without_metadata_only_an_empty_checkpoint_is_fresh() {
        assert_eq!(decide(&Facts::default()), Fresh);
        for damaged in [facts(&[(0, Sound)], &[]), facts(&[], &[(0, Sound)]), facts(&[(0, Torn)], &[])] {
            assert!(matches!(decide(&Facts { metadata: false, ..damaged }), Refuse(_)));
        }
    }

    /// Every combination of {absent, sound, torn} over three batches: the decision never skips a batch that may have
    /// run, never runs one again that is committed, and always leaves a gapless sequence.
    #[test]
    fn exhaustive_over_three_batches() {
        let states = [None, Some(Sound), Some(Torn)];
        let mut refused = 0;
        for n in 0..3_usize.pow(6) {
            let digit = |k: u32| states[n / 3_usize.pow(k) % 3];
            let collect = |from: u32| (0..3).filter_map(|k| digit(from + k as u32).map(|health| (k, health))).collect();
            let facts = Facts { metadata: true, definitions: collect(0), commits: collect(3) };
            let newest_sound = facts.commits.iter().filter(|(_, h)| **h == Sound).map(|(id, _)| *id).max();
            let check = |restore: Option<u64>, batches: &[u64], discard: &[Discard]| {
                assert_eq!(restore, newest_sound, "{facts:?}");
                let first = restore.map_or(0, |id| id + 1);
                for (k, id) in batches.iter().enumerate() {
                    assert_eq!(*id, first + k as u64, "{facts:?}");
                    assert_eq!(facts.definitions.get(id), Some(&Sound), "{facts:?}");
                    assert_ne!(facts.commits.get(id), Some(&Sound), "{facts:?}");
                }
                // Nothing above what runs again is left behind.
                let end = first + batches.len() as u64;
                for id in end..3 {
                    let dropped = discard.contains(&Discard::Definition(id));
                    assert!(!facts.definitions.contains_key(&id) || dropped, "{facts:?}");
                    assert!(!facts.commits.contains_key(&id), "{facts:?}");
                }
                for id in batches {
                    assert_eq!(facts.commits.contains_key(id), discard.contains(&Discard::Commit(*id)), "{facts:?}");
                }
            };
            match decide(&facts) {
                Continue { restore, discard } => check(restore, &[], &discard),
                Rerun { restore, batches, discard } => {
                    assert!(!batches.is_empty());
                    check(restore, &batches, &discard);
                }
                Refuse(reason) => {
                    refused += 1;
                    assert!(reason.contains("offsets/"));
                }
                Fresh => panic!("fresh with metadata: {facts:?}"),
            }
        }
        assert!(refused > 0);
    }
}
