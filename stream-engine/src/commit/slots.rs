//! Slots: the shares into which a job is cut when it is created.
//!
//! A slot has one owner at a time, and is all that is ever moved from one worker to another: the input partitions `p` with `p % slots` its number, and a
//! run of key-groups. Both follow from the numbers alone, so that workers need not agree on anything but the [`Shape`], which never changes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One share of a job: 0, 1, … below [`Shape::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(pub u32);

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Into how many shares a job and its keys are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub slots: u32,
    /// At least as many as slots. Keys of one group are never parted, so this bounds how far a job can ever be cut.
    pub key_groups: u32,
}

impl Shape {
    /// The error says what would be right.
    pub fn new(slots: u32, key_groups: u32) -> Result<Self, String> {
        if slots == 0 || slots > SLOTS_MAX {
            return Err(format!("{slots} slots: want 1 to {SLOTS_MAX}"));
        }
        if key_groups < slots || key_groups > KEY_GROUPS_MAX {
            return Err(format!("{key_groups} key-groups for {slots} slots: want {slots} to {KEY_GROUPS_MAX}"));
        }
        Ok(Self { slots, key_groups })
    }

    /// The same for every topic, so that topics with equally many partitions stay together. Partitions that are added later have a slot too.
    pub fn slot_of_partition(&self, partition: i32) -> Slot {
        Slot(partition.unsigned_abs() % self.slots)
    }

    /// By the hash that Kafka's producers place keys with: with as many groups as a topic has partitions, the two are the same.
    pub fn key_group(&self, key: &[u8]) -> u32 {
        (murmur2(key) & 0x7fff_ffff) % self.key_groups
    }

    pub fn slot_of_key_group(&self, group: u32) -> Slot {
        let slot = u64::from(group) * u64::from(self.slots) / u64::from(self.key_groups);
        // Below `slots`, since `group` is below `key_groups`.
        Slot(u32::try_from(slot).unwrap_or(self.slots - 1))
    }

    /// One after the other, so that state which is kept by key-group can be cut anew without reading all of it.
    pub fn key_groups_of(&self, slot: Slot) -> Range<u32> {
        let first = |slot: u32| (u64::from(slot) * u64::from(self.key_groups)).div_ceil(u64::from(self.slots));
        let first = |slot| u32::try_from(first(slot)).unwrap_or(self.key_groups);
        first(slot.0)..first(slot.0 + 1)
    }
}

/// Each is a partition of the job's own topics, and a producer while it runs.
pub const SLOTS_MAX: u32 = 1024;
pub const KEY_GROUPS_MAX: u32 = 32_768;

/// Kafka's variant (`Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    // Keys of 4 GiB and more are no records.
    let mut hash = 0x9747_b28c ^ (data.len() as u32);
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = word.iter().rev().fold(0u32, |k, byte| (k << 8) | u32::from(*byte)).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0u32, |k, byte| (k << 8) | u32::from(*byte));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hashed_as_kafka_does_it() {
        // Vectors of Kafka's own tests, and one of each length of the rest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()), i32::cast_unsigned(hash), "{key}");
        }
    }

    #[test]
    fn every_key_group_and_every_partition_has_one_slot() {
        for (slots, key_groups) in [(1, 1), (1, 128), (3, 128), (4, 128), (7, 7), (7, 100), (32, 128), (128, 128), (1024, 32_768)] {
            let shape = Shape::new(slots, key_groups).unwrap();
            let mut next = 0;
            for slot in (0..slots).map(Slot) {
                let groups = shape.key_groups_of(slot);
                assert_eq!(groups.start, next, "{shape:?} {slot}");
                assert!(!groups.is_empty(), "{shape:?} {slot}");
                for group in groups.clone() {
                    assert_eq!(shape.slot_of_key_group(group), slot, "{shape:?} {group}");
                }
                next = groups.end;
            }
            assert_eq!(next, key_groups, "{shape:?}");
            assert!((0..2_000).all(|partition| shape.slot_of_partition(partition).0 < slots));
            assert!((0..1_000).all(|n: i32| shape.key_group(&n.to_be_bytes()) < key_groups));
        }
    }

    #[test]
    fn a_shape_that_cannot_be_is_refused_with_what_can() {
        for (slots, key_groups, part) in
            [(0, 128, "1 to 1024"), (2000, 4000, "1 to 1024"), (64, 32, "64 to 32768"), (1, 40_000, "1 to 32768")]
        {
            let error = Shape::new(slots, key_groups).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
