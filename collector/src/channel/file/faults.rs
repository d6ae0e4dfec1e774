//! Single faults at every place: the process ended at each change of the disk, each operation failing once, each byte of a
//! segment damaged, segments missing, cut, copied; a full disk; numbers at their end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use proptest::prelude::*;

use super::channel::FileChannel;
use super::disk::RealDisk;
use super::format::{self, HEADER_BYTES, Header, Previous};
use super::log::Place;
use super::simulated::SimDisk;
use super::tests::{MODEL, block_on, cases, drain, event, ids, limits, open, open_with, place, put, put_ids};
use super::*;
use crate::channel::{Channel, PutError, Taken};
use crate::event::{Event, Ledger, Mark, Origin};
use crate::source::tail::identity::{Checksum, TailedFile};

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = disk.paths().into_iter().filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    paths.sort_by_key(|path| path.file_name().unwrap().to_owned());
    paths
}

/// The next `count` events; fewer when no more come.
async fn take(channel: &Arc<FileChannel<SimDisk>>, count: usize) -> Vec<Taken> {
    let mut all = Vec::new();
    let mut left = count;
    while left > 0 {
        let taken = channel.clone().take(left, Duration::ZERO).await;
        if taken.is_empty() {
            break;
        }
        left -= taken.len();
        all.push(taken);
    }
    all
}

/// Puts, takes, rolls and frees segments; what was put and what was delivered before the disk was gone.
async fn script(disk: &SimDisk) -> (Vec<u32>, Vec<u32>) {
    let (mut acknowledged, mut delivered) = (Vec::new(), Vec::new());
    let Ok(channel) = open_with(disk, limits()) else { return (acknowledged, delivered) };
    for round in 0..6u32 {
        let batch = round * 10..round * 10 + 10;
        if put(&channel, &mut batch.clone().map(event).collect()).await == Ok(true) {
            acknowledged.extend(batch);
        }
        if round % 2 == 1 && !disk.is_killed() {
            for taken in take(&channel, 15).await {
                delivered.extend(ids(&taken));
                taken.commit();
            }
            channel.step();
        }
    }
    channel.close();
    channel.step();
    (acknowledged, delivered)
}

#[test]
fn a_kill_and_a_power_cut_at_every_change_of_the_disk_lose_nothing() {
    block_on(async {
        let whole = SimDisk::new(0, 512);
        let (acknowledged, delivered) = script(&whole).await;
        assert_eq!((acknowledged.len(), delivered.len()), (60, 45));
        let changes = whole.operations();
        assert!(changes >= 40, "{changes}");
        for at in 1..=changes {
            for (power, seed) in [(false, 0), (true, 1), (true, 2), (true, 3)] {
                let disk = SimDisk::new(seed, 512);
                disk.kill_after(at);
                let (acknowledged, delivered) = script(&disk).await;
                disk.crash(power);
                let rest = drain(&open(&disk)).await;
                assert!(rest.is_sorted(), "{at} {power}: {rest:?}");
                let lost: Vec<&u32> = acknowledged.iter().filter(|id| !rest.contains(id) && !delivered.contains(id)).collect();
                assert!(lost.is_empty(), "{at} {power}: {lost:?} are lost");
                // Three starts in a row are as one.
                let (a, b) = (drain(&open(&disk)).await, drain(&open(&disk)).await);
                assert!(a.is_empty() && b.is_empty(), "{at} {power}: {a:?} {b:?} again");
            }
        }
    });
}

#[test]
fn each_operation_may_fail_once() {
    block_on(async {
        for kind in ["write", "sync", "create", "remove", "rename"] {
            for at in 1..30 {
                let disk = SimDisk::new(at, 512);
                let channel = open(&disk);
                disk.fail_after(kind, at);
                let mut expected = Vec::new();
                let mut refused = 0;
                for round in 0..8u32 {
                    let mut events: Vec<Event> = (round * 10..round * 10 + 10).map(event).collect();
                    // What fails is written again, into another segment, while the put waits.
                    while put(&channel, &mut events).await != Ok(true) {
                        refused += 1;
                        assert!(refused < 5, "{kind} {at}");
                        events = (round * 10..round * 10 + 10).map(event).collect();
                    }
                    expected.extend(round * 10..round * 10 + 10);
                    let first: Vec<u32> = expected.drain(..5).collect();
                    let taken = take(&channel, 5).await;
                    assert_eq!(taken.iter().flat_map(ids).collect::<Vec<_>>(), first, "{kind} {at}");
                    taken.into_iter().for_each(Taken::commit);
                }
                assert_eq!(refused, 0, "{kind} {at}");
                drop(channel);
                disk.crash(true);
                let rest = drain(&open(&disk)).await;
                assert!(expected.iter().all(|id| rest.contains(id)) && rest.is_sorted(), "{kind} {at}: {rest:?} instead of {expected:?}");
            }
        }
    });
}

#[test]
fn after_a_failed_sync_that_segment_is_never_synced_or_written_again() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let channel = open_with(&disk, Limits { file_bytes_max: 1 << 20, ..limits() }).unwrap();
        put_ids(&channel, 0..5).await;
        let first = &segments(&disk)[0];
        disk.fail_after("sync", 1);
        put_ids(&channel, 5..10).await;
        let after = disk.bytes(first);
        put_ids(&channel, 10..15).await;
        assert_eq!(disk.bytes(first), after);
        assert_eq!(segments(&disk).len(), 2);
        disk.crash(true);
        drop(channel);
        assert_eq!(drain(&open(&disk)).await, (0..15).collect::<Vec<_>>());
    });
}

/// Every byte of every segment, one after the other: only what was damaged is missing, and it is counted.
#[test]
fn a_damaged_byte_costs_one_event_at_most() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let channel = open(&disk);
        put_ids(&channel, 0..12).await;
        put_ids(&channel, 12..24).await;
        channel.close();
        channel.step();
        drop(channel);
        drop(open(&disk));
        let good: Vec<(PathBuf, Vec<u8>)> = disk.paths().into_iter().map(|path| (path.clone(), disk.bytes(&path))).collect();
        let mut lost = 0;
        for path in segments(&disk) {
            let bytes = disk.bytes(&path);
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << (at % 8);
                disk.put(&path, bad);
                let channel = open(&disk);
                let rest = drain(&channel).await;
                assert!(rest.is_sorted() && rest.len() >= 23, "{} byte {at}: {rest:?}", path.display());
                assert_eq!(channel.traffic().damaged, 24 - rest.len() as u64, "{} byte {at}", path.display());
                assert_eq!(channel.fill().events, 0);
                lost += 24 - rest.len();
                drop(channel);
                for path in disk.paths() {
                    disk.delete(&path);
                }
                good.iter().for_each(|(path, bytes)| disk.put(path, bytes.clone()));
            }
        }
        assert!(lost > 500, "{lost}");
    });
}

#[test]
fn segments_that_are_cut_missing_emptied_copied_or_strange() {
    block_on(async {
        let make = || async {
            let disk = SimDisk::new(1, 512);
            let channel = open(&disk);
            for round in 0..4u32 {
                put_ids(&channel, round * 10..round * 10 + 10).await;
            }
            channel.close();
            channel.step();
            drop(channel);
            let paths = segments(&disk);
            assert!(paths.len() >= 4);
            (disk, paths)
        };
        let all: Vec<u32> = (0..40).collect();
        let after = |disk: SimDisk| async move {
            let channel = open(&disk);
            let rest = drain(&channel).await;
            let damaged = channel.traffic().damaged;
            assert!(rest.is_sorted());
            assert_eq!(channel.fill().events, 0);
            put_ids(&channel, 100..103).await;
            assert_eq!(drain(&channel).await, [100, 101, 102]);
            (rest, damaged)
        };
        // One segment is missing, each in turn.
        for at in 0..4 {
            let (disk, paths) = make().await;
            disk.delete(&paths[at]);
            let (rest, damaged) = after(disk).await;
            // Of the last one nobody knows how much it held.
            if at < 3 {
                assert_eq!(damaged, 40 - rest.len() as u64, "without {at}");
            }
            assert!(rest.len() >= 20, "without {at}: {rest:?}");
        }
        // Cut short, at every length of the second; the third byte of every length of the last.
        let (disk, paths) = make().await;
        let len = disk.bytes(&paths[1]).len();
        for keep in 0..len {
            let (disk, paths) = make().await;
            let bytes = disk.bytes(&paths[1]);
            disk.put(&paths[1], bytes[..keep].to_vec());
            let (rest, damaged) = after(disk).await;
            assert_eq!(damaged, 40 - rest.len() as u64, "cut at {keep}");
        }
        // Zeros.
        for at in 0..4 {
            let (disk, paths) = make().await;
            disk.put(&paths[at], vec![0; disk.bytes(&paths[at]).len()]);
            let (rest, _) = after(disk).await;
            assert!(rest.len() >= 20, "zeros in {at}");
        }
        // A copy under another name and in another directory, and a segment of another channel.
        let (disk, paths) = make().await;
        let bytes = disk.bytes(&paths[1]);
        disk.put("/data1/segment-00000000000000aa.log".as_ref(), bytes.clone());
        let other = if paths[1].starts_with("/data1") { "/data2" } else { "/data1" };
        disk.put(&PathBuf::from(other).join(paths[1].file_name().unwrap()), bytes);
        let mut strange = Header { channel: 1, segment: 2, first: 0, previous: None }.encode().to_vec();
        format::encode(&mut strange, 0, &format::Content { trace: None, same_trace: false, headers: &None, body: b"5 " }, Some(&[]));
        disk.put("/data1/segment-0000000000000bbb.log".as_ref(), strange);
        assert_eq!(after(disk.clone()).await, (all.clone(), 0));
        assert_eq!(disk.paths().iter().filter(|path| path.to_string_lossy().ends_with(".aside")).count(), 3);
        // Without acknowledgements everything comes again, with damaged ones too.
        for bytes in [None, Some(vec![0xff; 131_072]), Some(Vec::new())] {
            let (disk, _) = make().await;
            let channel = open(&disk);
            channel.clone().take(7, Duration::ZERO).await.commit();
            channel.close();
            channel.step();
            drop(channel);
            match bytes {
                None => disk.delete("/checkpoint/acks".as_ref()),
                Some(bytes) => disk.put("/checkpoint/acks".as_ref(), bytes),
            }
            assert_eq!(after(disk).await, (all.clone(), 0));
        }
        // A newer program's.
        let (disk, paths) = make().await;
        let mut bytes = disk.bytes(&paths[0]);
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER_BYTES]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        disk.put(&paths[0], bytes);
        let error = open_with(&disk, limits()).err().unwrap().to_string();
        assert!(error.contains("format version 2"), "{error}");
    });
}

#[test]
fn a_place_that_cannot_be_read_is_waited_for_and_then_passed_over() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let channel = open(&disk);
        put_ids(&channel, 0..40).await;
        channel.close();
        channel.step();
        drop(channel);
        let channel = open(&disk);
        let all = segments(&disk);
        all.iter().for_each(|path| disk.set_unreadable(path, true));
        assert_eq!(drain(&channel).await, [] as [u32; 0]);
        assert!(channel.trouble().unwrap().contains("cannot be read"));
        all.iter().for_each(|path| disk.set_unreadable(path, false));
        assert_eq!(drain(&channel).await, (0..40).collect::<Vec<_>>());
        assert_eq!((channel.trouble(), channel.traffic().damaged), (None, 0));
    });
}

#[test]
fn a_full_disk_holds_back_and_goes_on_when_there_is_room() {
    block_on(async {
        for (limits, capacity) in
            [(limits(), 140_000), (Limits { space_min: 2000, ..limits() }, 140_000), (Limits { bytes_max: 4000, ..limits() }, u64::MAX)]
        {
            let disk = SimDisk::new(1, 512);
            disk.set_capacity(capacity);
            let channel = open_with(&disk, limits).unwrap();
            let (mut next, mut delivered) = (0, 0);
            for _ in 0..3 {
                let mut accepted = 0;
                let refused = loop {
                    let mut events: Vec<Event> = (next..next + 10).map(event).collect();
                    let rounds = async {
                        loop {
                            channel.step();
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    };
                    let result = tokio::select! {
                        result = channel.put(&mut events) => result,
                        () = rounds => unreachable!(),
                    };
                    match result {
                        Ok(()) => (next, accepted) = (next + 10, accepted + 10),
                        Err(error) => {
                            assert_eq!(events.len(), 10);
                            break error;
                        }
                    }
                };
                assert!(matches!(refused, PutError::Full { .. }), "{refused}");
                assert!(accepted >= 30 || limits.bytes_max < usize::MAX, "{accepted}");
                assert!(channel.trouble().unwrap().contains("no room on disk"));
                let all = drain(&channel).await;
                assert_eq!(all, (delivered..next).collect::<Vec<_>>());
                delivered = next;
                channel.step();
            }
            assert_eq!(channel.fill().events, 0);
            put_ids(&channel, next..next + 10).await;
            assert_eq!(channel.trouble(), None);
            drop(channel);
            disk.crash(true);
            let rest = drain(&open_with(&disk, limits).unwrap()).await;
            assert!(rest.ends_with(&(next..next + 10).collect::<Vec<_>>()), "{rest:?}");
        }
    });
}

#[test]
fn numbers_near_their_end() {
    block_on(async {
        for (id, first) in [(u64::from(u32::MAX) - 2, u64::from(u32::MAX) - 7), (u64::MAX - 20, u64::MAX / 2)] {
            let disk = SimDisk::new(1, 512);
            let header = Header { channel: 7, segment: id, first, previous: Some(Previous { segment: id - 1, len: 64, next: first }) };
            disk.put(&place(&disk).path(id, 0), header.encode().to_vec());
            for round in 0..3u32 {
                let channel = open(&disk);
                put_ids(&channel, round * 20..round * 20 + 20).await;
                assert_eq!(drain(&channel).await, (round * 20..round * 20 + 20).collect::<Vec<_>>());
                put_ids(&channel, 1000..1001).await;
                drop(channel);
                disk.crash(true);
                assert!(drain(&open(&disk)).await.contains(&1000));
            }
        }
        for (id, first) in [(u64::MAX, 0), (5, u64::MAX - 5)] {
            let disk = SimDisk::new(1, 512);
            let header = Header { channel: 7, segment: id, first, previous: None };
            disk.put(&place(&disk).path(id, 0), header.encode().to_vec());
            assert!(open_with(&disk, limits()).err().unwrap().to_string().contains("used up"));
        }
    });
}

/// Lines of a tailed file whose source waits for the word that they are safe.
fn lines(ledger: &Arc<Ledger>, ids: std::ops::Range<u32>) -> Vec<Event> {
    let mark = Mark { offset: u64::from(ids.end), tail: Checksum::default() };
    let origin = ledger.open(&Arc::new(TailedFile::for_test(5)), mark, ids.len(), None);
    ids.map(|id| Event { end: u64::from(id) + 1, origin: Some(origin.clone()), ..event(id) }).collect()
}

/// A failed sync leaves the put's bytes in the page cache, called clean; the process is killed. What the next one reads there
/// counts only when it is on disk anew: the source is told so, and then the power is cut.
#[test]
fn after_a_failed_sync_and_a_kill_nothing_counts_before_it_is_on_disk() {
    block_on(async {
        let mut cases = 0;
        for sector in [512, 4096] {
            for seed in 0..4 {
                // And the start after it is killed, or fails, at each of its changes of the disk.
                for (fault, at) in
                    [("", 0)].into_iter().chain((1..30).flat_map(|at| [("kill", at), ("power", at), ("sync", at), ("write", at)]))
                {
                    let disk = SimDisk::new(seed, sector);
                    let ledger = Arc::new(Ledger::default());
                    let channel = open(&disk);
                    assert_eq!(put(&channel, &mut lines(&ledger, 0..10)).await, Ok(true));
                    channel.step();
                    disk.fail_after("sync", 1);
                    assert_eq!(put(&channel, &mut lines(&ledger, 10..20)).await, Ok(true));
                    // One round: it is written, and the sync fails.
                    channel.step();
                    assert!(channel.trouble().is_some());
                    drop(channel);
                    disk.crash(false);

                    match fault {
                        "" => {}
                        "kill" | "power" => disk.kill_after(at),
                        kind => disk.fail_after(kind, at),
                    }
                    let opened = open_with(&disk, limits());
                    let reached = !fault.is_empty() && opened.is_err();
                    drop(opened);
                    disk.crash(reached && fault == "power");

                    // The source has its saved position, reads the lines again, and is told that they are safe.
                    let (channel, ledger) = (open(&disk), Arc::new(Ledger::default()));
                    assert_eq!(put(&channel, &mut lines(&ledger, 0..20)).await, Ok(true));
                    channel.step();
                    assert_eq!(ledger.advance()[&5].offset, 20);
                    drop(channel);
                    disk.crash(true);
                    let all = drain(&open(&disk)).await;
                    assert_eq!(all, (0..20).collect::<Vec<_>>(), "{fault} {at}, sectors of {sector}, seed {seed}");
                    cases += 1;
                }
            }
        }
        assert_eq!(cases, 2 * 4 * 117);
    });
}

/// The same with no room for the copy: sinks are given what there is, sources wait.
#[test]
fn without_room_to_make_sure_sources_wait_and_sinks_do_not() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let ledger = Arc::new(Ledger::default());
        let channel = open(&disk);
        disk.fail_after("sync", 1);
        assert_eq!(put(&channel, &mut lines(&ledger, 0..20)).await, Ok(true));
        channel.step();
        drop(channel);
        disk.crash(false);
        disk.set_capacity(disk.used() + 100);
        let (channel, ledger) = (open(&disk), Arc::new(Ledger::default()));
        assert!(channel.trouble().unwrap().contains("no room on disk"));
        assert_ne!(put(&channel, &mut lines(&ledger, 0..20)).await, Ok(true));
        assert!(ledger.advance().is_empty());
        let taken = take(&channel, 20).await;
        assert_eq!(taken.iter().flat_map(ids).collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        drop(taken);
        // It looks for room again.
        disk.set_capacity(u64::MAX);
        let ledger = Arc::new(Ledger::default());
        assert_eq!(put(&channel, &mut lines(&ledger, 0..20)).await, Ok(true));
        channel.step();
        assert_eq!((ledger.advance()[&5].offset, channel.trouble()), (20, None));
        drop(channel);
        disk.crash(true);
        assert_eq!(drain(&open(&disk)).await, (0..20).collect::<Vec<_>>());
    });
}

/// A put of several sectors is cut by the power before its sync, in every combination of those sectors.
#[test]
fn a_put_torn_between_sectors_of_either_size_harms_nothing_before_it() {
    block_on(async {
        for sector in [512, 4096] {
            let mut torn = 0;
            for seed in 0..300 {
                let disk = SimDisk::new(seed, sector);
                let channel = open_with(&disk, Limits { file_bytes_max: 1 << 20, ..limits() }).unwrap();
                put_ids(&channel, 0..5).await;
                let large: Vec<u32> = (MODEL..MODEL + 20).filter(|id| id % 7 == 3).collect();
                // Its write is done, its sync is not, or not known to be.
                disk.kill_after(2);
                let mut events = large.iter().copied().map(event).collect();
                assert_ne!(put(&channel, &mut events).await, Ok(true));
                drop(channel);
                disk.crash(true);
                torn += disk.torn();
                let channel = open(&disk);
                let rest = drain(&channel).await;
                assert!(
                    rest.starts_with(&[0, 1, 2, 3, 4]) && rest[5..].iter().all(|id| large.contains(id)) && rest.is_sorted(),
                    "{seed}: {rest:?}"
                );
                put_ids(&channel, 5..9).await;
                assert_eq!(drain(&channel).await, [5, 6, 7, 8]);
            }
            assert!(torn >= 100, "sectors of {sector}: torn {torn} times");
        }
    });
}

/// Without a sync for each put, what an interval's sync covers is safe in all segments, not in the last one alone.
#[test]
fn the_sync_of_an_interval_covers_segments_that_were_left() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let limits = Limits { sync_each: false, ..limits() };
        let channel = open_with(&disk, limits).unwrap();
        for round in 0..6 {
            put_ids(&channel, round * 10..round * 10 + 10).await;
        }
        assert!(segments(&disk).len() >= 3);
        channel.set_limits(Limits { sync_interval: Duration::ZERO, ..limits });
        channel.step();
        disk.crash(true);
        assert_eq!(drain(&open(&disk)).await, (0..60).collect::<Vec<_>>());
    });
}

/// What may happen to a directory behind the channel's back.
#[derive(Clone, Debug)]
enum Harm {
    Flip {
        file: usize,
        at: usize,
        with: u8,
    },
    Cut {
        file: usize,
        at: usize,
    },
    Zero {
        file: usize,
        at: usize,
        count: usize,
    },
    Insert {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    /// The content of one file in another.
    Copy {
        from: usize,
        to: usize,
    },
    Remove {
        file: usize,
    },
    /// A header that is right in itself.
    Header {
        file: usize,
        numbers: [u64; 6],
    },
}

fn harms() -> impl Strategy<Value = Vec<Harm>> {
    let number = || prop_oneof![0u64..70, any::<u64>(), (0u64..5).prop_map(|below| u64::MAX - below), Just(1u64 << 32)];
    let numbers = || (number(), number(), number(), number(), number(), number()).prop_map(|(a, b, c, d, e, f)| [a, b, c, d, e, f]);
    let harm = prop_oneof![
        4 => (0usize..9, 0usize..4000, 1u8..).prop_map(|(file, at, with)| Harm::Flip { file, at, with }),
        2 => (0usize..9, 0usize..4000).prop_map(|(file, at)| Harm::Cut { file, at }),
        2 => (0usize..9, 0usize..4000, 1usize..600).prop_map(|(file, at, count)| Harm::Zero { file, at, count }),
        2 => (0usize..9, 0usize..4000, prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(file, at, bytes)| Harm::Insert { file, at, bytes }),
        2 => (0usize..9, 0usize..9).prop_map(|(from, to)| Harm::Copy { from, to }),
        1 => (0usize..9).prop_map(|file| Harm::Remove { file }),
        2 => (0usize..9, numbers()).prop_map(|(file, numbers)| Harm::Header { file, numbers }),
    ];
    prop::collection::vec(harm, 1..6)
}

fn harm(disk: &SimDisk, harm: &Harm) {
    let paths = disk.paths();
    let path = |file: usize| paths[file % paths.len()].clone();
    let change = |file: usize, act: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = disk.bytes(&path(file));
        act(&mut bytes);
        disk.put(&path(file), bytes);
    };
    match harm {
        Harm::Flip { file, at, with } => change(*file, &|bytes| {
            let len = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at % len) {
                *byte ^= with;
            }
        }),
        Harm::Cut { file, at } => change(*file, &|bytes| bytes.truncate(at % (bytes.len() + 1))),
        Harm::Zero { file, at, count } => change(*file, &|bytes| {
            let from = at % (bytes.len() + 1);
            let to = (from + count).min(bytes.len());
            bytes[from..to].fill(0);
        }),
        Harm::Insert { file, at, bytes: more } => change(*file, &|bytes| {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, more.iter().copied());
        }),
        Harm::Copy { from, to } => disk.put(&path(*to), disk.bytes(&path(*from))),
        Harm::Remove { file } => disk.delete(&path(*file)),
        Harm::Header { file, numbers: [channel, segment, first, a, b, c] } => change(*file, &|bytes| {
            let previous = (*a != 0).then_some(Previous { segment: *a, len: *b, next: *c });
            let header = Header { channel: *channel, segment: *segment, first: *first, previous }.encode();
            bytes.resize(bytes.len().max(HEADER_BYTES), 0);
            bytes[..HEADER_BYTES].copy_from_slice(&header);
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(500), ..ProptestConfig::default() })]

    /// Whatever became of its files, the channel opens or says why not; gives nothing but what was put, in order; and takes new events.
    #[test]
    fn no_harm_to_its_files_makes_it_panic(all in harms()) {
        block_on(async {
            let disk = SimDisk::new(1, 512);
            let channel = open(&disk);
            for round in 0..4u32 {
                put_ids(&channel, round * 10..round * 10 + 10).await;
            }
            take(&channel, 5).await.into_iter().for_each(Taken::commit);
            channel.step();
            drop(channel);
            all.iter().for_each(|one| harm(&disk, one));
            let channel = match open_with(&disk, limits()) {
                Ok(channel) => channel,
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains("used up") || said.contains("format version"), "{said}");
                    return;
                }
            };
            let rest = drain(&channel).await;
            // A file under another's name may be read in its place; within it the order is kept.
            assert!(rest.len() <= 80 && rest.iter().all(|id| *id < 40), "{rest:?}");
            // Headers that lie and have a right checksum are no damage; their numbers may overlap.
            let lies = all.iter().any(|harm| matches!(harm, Harm::Header { .. }));
            assert!(lies || channel.fill().events == 0, "{:?}", channel.fill());
            put_ids(&channel, 100..103).await;
            assert_eq!(drain(&channel).await, [100, 101, 102]);
        });
    }
}

/// A tailed file's source has saved no position when the process ends: what it reads again is not taken twice.
#[test]
fn what_a_file_source_reads_again_is_not_taken_twice() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let ledger = Arc::new(Ledger::default());
        let lines = |ids| lines(&ledger, ids);
        let channel = open(&disk);
        let before = disk.used();
        assert_eq!(put(&channel, &mut lines(0..10)).await, Ok(true));
        // Taken in, and not acknowledged before it is on disk.
        assert_eq!((ledger.advance().len(), disk.used()), (0, before));
        channel.step();
        // Safe on disk is delivered for the source.
        assert_eq!(ledger.advance()[&5].offset, 10);
        assert_eq!(put(&channel, &mut lines(10..20)).await, Ok(true));
        channel.step();
        let taken = take(&channel, 100).await;
        let events: Vec<&Event> = taken.iter().flat_map(Taken::events).collect();
        assert_eq!(events.len(), 20);
        let file_of = |event: &Event| event.origin.as_ref().and_then(|origin| origin.file.as_ref().map(|file| file.id));
        let channels: Vec<_> = events.iter().map(|event| file_of(event)).collect();
        assert!(channels.iter().all(|id| id.is_some_and(|id| id != 5)) && channels.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(events.iter().all(|event| event.end == event.number + 1));
        taken.into_iter().for_each(Taken::rollback);
        for power in [false, true, true] {
            disk.crash(power);
            let channel = open(&disk);
            assert_eq!(put(&channel, &mut lines(5..15)).await, Ok(true));
            channel.step();
            assert_eq!((channel.fill().events, channel.traffic().repeated), (20, 10));
        }
        let channel = open(&disk);
        assert_eq!(put(&channel, &mut lines(15..25)).await, Ok(true));
        channel.step();
        assert_eq!(drain(&channel).await, (0..25).collect::<Vec<_>>());
        assert_eq!(ledger.underway(), 0);
    });
}

#[test]
fn traces_and_headers_come_back_from_disk() {
    block_on(async {
        let disk = SimDisk::new(1, 512);
        let channel = open_with(&disk, Limits { memory_bytes: 0, ..limits() }).unwrap();
        let traced = |text: &str| Some(Arc::new(Origin::traced(Some(text.to_owned()))));
        let mut events: Vec<Event> = (0..6).map(|_| Event::with_headers("b", [("k", "v")])).collect();
        for (at, trace) in [(1, "one"), (2, "one"), (3, "two"), (5, "one")] {
            events[at].origin = traced(trace);
        }
        assert_eq!(put(&channel, &mut events).await, Ok(true));
        let taken = channel.clone().take(100, Duration::ZERO).await;
        let traces: Vec<_> = taken.events().iter().map(|event| event.origin.as_ref().unwrap().trace.clone()).collect();
        let traces: Vec<_> = traces.iter().map(|trace| trace.as_deref().unwrap_or("-")).collect();
        assert_eq!(traces, ["-", "one", "one", "two", "-", "one"]);
        assert!(taken.events().iter().all(|event| event.header("k") == Some("v")));
    });
}

/// On the real disk, with its thread: many small puts at once share syncs; a second channel is kept out; all of it comes back.
#[test]
fn on_a_real_disk_puts_share_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let place = || Place {
        disk: RealDisk,
        checkpoint: directory.path().join("checkpoint"),
        data: vec![directory.path().join("a"), directory.path().join("b")],
    };
    let keep_alive = Duration::from_secs(30);
    let limits = Limits { events_max: 100_000, file_bytes_max: 100_000, space_min: 1 << 20, memory_bytes: 1 << 20, keep_alive, ..limits() };
    let open = || Arc::new(FileChannel::open_locked("c", place(), limits).unwrap());
    block_on(async {
        let channel = open();
        let error = FileChannel::open_locked("d", place(), limits).err().unwrap().to_string();
        assert!(error.contains("another channel or process"), "{error}");
        let puts = (0..2000u32).map(|id| {
            let channel = channel.clone();
            async move { channel.put(&mut vec![event(id)]).await }
        });
        let started = std::time::Instant::now();
        let results = futures::future::join_all(puts).await;
        assert!(results.iter().all(Result::is_ok));
        // One by one they would take some milliseconds each.
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
        let taken = channel.clone().take(100, Duration::ZERO).await;
        assert_eq!(ids(&taken), (0..100).collect::<Vec<_>>());
        taken.commit();
        channel.close();
        let again = open();
        let mut all = Vec::new();
        while all.len() < 1900 {
            let taken = again.clone().take(100, Duration::from_secs(5)).await;
            all.extend(ids(&taken));
            taken.commit();
        }
        assert_eq!(all, (100..2000).collect::<Vec<_>>());
        again.close();
        assert_eq!(open().fill().events, 0);
    });
}
