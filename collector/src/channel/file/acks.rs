//! Which events are gone: everything below a number, and ranges above it. Kept in a small file of two slots.
//!
//! A slot is written without sync after every delivery, so it outlives the process; after a sync the other slot is next, so
//! a power cut leaves at least what was synced last. The file never grows: deliveries are noted, and segments freed, on a full disk too.

use std::{collections::BTreeMap, io, path::Path, sync::Arc};

use super::disk::{Disk, DiskFile};
use super::format::{u32_at, u64_at};
use super::log::Place;
use crate::fault::Point;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Everything below it.
    pub below: u64,
    /// From → to (exclusive), above `below`, apart from each other.
    pub ranges: BTreeMap<u64, u64>,
}

impl Acked {
    pub fn insert(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from.max(self.below), to);
        if from >= to {
            return;
        }
        if let Some((&start, &end)) = self.ranges.range(..=from).next_back()
            && end >= from
        {
            (from, to) = (start, to.max(end));
        }
        while let Some((&start, &end)) = self.ranges.range(from..=to).next() {
            to = to.max(end);
            self.ranges.remove(&start);
        }
        if from == self.below {
            self.below = to;
        } else {
            self.ranges.insert(from, to);
        }
    }

    pub fn contains(&self, number: u64) -> bool {
        number < self.below || self.ranges.range(..=number).next_back().is_some_and(|(_, &end)| number < end)
    }

    /// Numbers of `from..to` that are not in it.
    pub fn missing(&self, from: u64, to: u64) -> u64 {
        let from = from.max(self.below);
        let overlap = |(&start, &end): (&u64, &u64)| end.min(to).saturating_sub(start.max(from));
        to.saturating_sub(from) - self.ranges.range(..to).map(overlap).sum::<u64>()
    }
}

const SLOT_BYTES: u64 = 64 * 1024;
const MAGIC: [u8; 4] = *b"MRAK";
/// Magic, checksum, length, sequence, channel, below.
const FIXED: usize = 36;
const RANGES_MAX: usize = (SLOT_BYTES as usize - FIXED) / 16;
pub const FILE: &str = "acks";

/// What the file said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub channel: u64,
    pub acked: Acked,
    sequence: u64,
}

pub struct AckFile<D: Disk> {
    place: Arc<Place<D>>,
    channel: u64,
    /// None before the first write and after an error: the next one is another file.
    file: Option<D::File>,
    slot: u64,
    sequence: u64,
    /// Everything below it is known to be on disk as delivered.
    synced_below: u64,
    written_below: u64,
    unsynced: bool,
}

impl<D: Disk> AckFile<D> {
    /// The newest slot that can be read.
    pub fn read(disk: &D, directory: &Path) -> io::Result<Option<Saved>> {
        let file = match disk.open(&directory.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut newest: Option<Saved> = None;
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES as usize];
            // What cannot be read is as good as lost: events are repeated.
            let count = file.read_at(&mut bytes, slot * SLOT_BYTES).unwrap_or_default();
            let saved = decode(&bytes[..count]);
            if saved.as_ref().map(|saved| saved.sequence) > newest.as_ref().map(|saved| saved.sequence) {
                newest = saved;
            }
        }
        Ok(newest)
    }

    /// The first [`Self::write`] makes a new file in place of the old one.
    pub fn new(place: Arc<Place<D>>, channel: u64) -> Self {
        Self { place, channel, file: None, slot: 0, sequence: 0, synced_below: 0, written_below: 0, unsynced: false }
    }

    /// A new file, durable.
    fn replace(&mut self, acked: &Acked) -> io::Result<()> {
        let Place { disk, checkpoint, .. } = &*self.place;
        let temporary = checkpoint.join("acks.new");
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.create(&temporary)?;
        Point::AcksCreated.reach();
        file.write_at(&vec![0; 2 * SLOT_BYTES as usize], 0)?;
        self.sequence += 1;
        file.write_at(&encode(self.sequence, self.channel, acked), 0)?;
        file.sync()?;
        Point::AcksSyncedNew.reach();
        disk.rename(&temporary, &checkpoint.join(FILE))?;
        Point::AcksRenamed.reach();
        disk.sync_dir(checkpoint)?;
        Point::AcksReplaced.reach();
        (self.file, self.slot) = (Some(file), 1);
        (self.synced_below, self.written_below, self.unsynced) = (acked.below, acked.below, false);
        Ok(())
    }

    /// Notes it for the life of the machine.
    pub fn write(&mut self, acked: &Acked) -> io::Result<()> {
        let Some(file) = &self.file else { return self.replace(acked) };
        self.sequence += 1;
        let written = file.write_at(&encode(self.sequence, self.channel, acked), self.slot * SLOT_BYTES);
        self.keep(written)?;
        Point::AcksWritten.reach();
        self.written_below = acked.below;
        self.unsynced = true;
        Ok(())
    }

    /// What was written is durable.
    pub fn sync(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Err(io::Error::other("the acknowledgement file is being replaced")) };
        let synced = file.sync();
        self.keep(synced)?;
        Point::AcksSynced.reach();
        self.synced_below = self.written_below;
        self.unsynced = false;
        self.slot = 1 - self.slot;
        Ok(())
    }

    /// Is something noted that a power cut would take?
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    pub fn written_below(&self) -> u64 {
        self.written_below
    }

    pub fn synced_below(&self) -> u64 {
        self.synced_below
    }

    /// A file that failed is not used again.
    fn keep(&mut self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.file = None;
        }
        result
    }
}

fn encode(sequence: u64, channel: u64, acked: &Acked) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + 16 * acked.ranges.len().min(RANGES_MAX));
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    let count = acked.ranges.len().min(RANGES_MAX);
    bytes.extend_from_slice(&(count as u32).to_le_bytes());
    for number in [sequence, channel, acked.below] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    // What has no room is repeated after a crash.
    for (from, to) in acked.ranges.iter().take(count) {
        bytes.extend_from_slice(&from.to_le_bytes());
        bytes.extend_from_slice(&to.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Saved> {
    if bytes.len() < FIXED || bytes[..4] != MAGIC {
        return None;
    }
    let end = FIXED + 16 * (u32_at(bytes, 8) as usize).min(RANGES_MAX);
    let checked = bytes.get(8..end)?;
    if crc32c::crc32c(checked) != u32_at(bytes, 4) {
        return None;
    }
    let mut acked = Acked { below: u64_at(bytes, 28), ranges: BTreeMap::new() };
    bytes[FIXED..end].chunks_exact(16).for_each(|range| acked.insert(u64_at(range, 0), u64_at(range, 8)));
    Some(Saved { channel: u64_at(bytes, 20), acked, sequence: u64_at(bytes, 12) })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_numbers(inserts in prop::collection::vec((0u64..60, 0u64..12), 0..30)) {
            let (mut acked, mut model) = (Acked::default(), BTreeSet::new());
            for (from, count) in inserts {
                acked.insert(from, from + count);
                model.extend(from..from + count);
                prop_assert!((0..80).all(|number| acked.contains(number) == model.contains(&number)));
                for (from, to) in [(0, 80), (7, 31), (30, 30), (50, 20)] {
                    let missing = (from..to).filter(|number| !model.contains(number)).count() as u64;
                    prop_assert_eq!(acked.missing(from, to), missing);
                }
                // Apart from each other, and above `below`.
                let mut end = acked.below;
                for (&from, &to) in &acked.ranges {
                    prop_assert!(from > end && to > from);
                    end = to;
                }
            }
            prop_assert_eq!(decode(&encode(3, 9, &acked)), Some(Saved { channel: 9, acked, sequence: 3 }));
        }
    }

    proptest! {
        /// With a checksum that is right and without.
        #[test]
        fn no_slot_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), ranges in 0u32..12, right in any::<bool>()) {
            let mut bytes = bytes;
            if right && bytes.len() >= FIXED {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&ranges.to_le_bytes());
                let end = (FIXED + 16 * ranges as usize).min(bytes.len());
                let crc = crc32c::crc32c(&bytes[8..end]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            if let Some(saved) = decode(&bytes) {
                prop_assert!(saved.acked.ranges.iter().all(|(from, to)| from < to && *from > saved.acked.below));
                prop_assert!(saved.acked.missing(0, u64::MAX) <= u64::MAX - saved.acked.below);
            }
        }
    }

    #[test]
    fn a_slot_with_any_bit_flipped_is_no_slot() {
        let acked = Acked { below: 5, ranges: [(7, 9), (20, 30)].into() };
        let good = encode(1, 2, &acked);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&bad), None, "bit {bit}");
        }
        assert_eq!(decode(&good[..good.len() - 1]), None);
    }
}
