use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use bytes::Bytes;
use tempfile::TempDir;

use super::wal::{Damage, Wal};
use crate::job::WriteAheadLogSettings;

const DAY_MS: i64 = 24 * 3600 * 1000;

fn settings() -> WriteAheadLogSettings {
    WriteAheadLogSettings { max_failures: 3, ..crate::job::JobSettings::default().receiver.write_ahead_log }
}

fn open(folder: &Path) -> (Wal, Vec<Damage>) {
    Wal::open(folder, settings()).unwrap()
}

fn sound(folder: &Path) -> Wal {
    let (wal, damages) = open(folder);
    assert_eq!(damages, []);
    wal
}

fn append(wal: &Wal, records: &[&str], now_ms: i64) -> i64 {
    let records: Vec<Bytes> = records.iter().map(|record| Bytes::from(record.to_string())).collect();
    wal.append(&records, now_ms).unwrap()
}

/// `(offset, text)` of everything that is there.
fn all(wal: &Wal) -> Vec<(i64, String)> {
    within(wal, i64::MIN, i64::MAX)
}

fn within(wal: &Wal, from: i64, until: i64) -> Vec<(i64, String)> {
    let records = wal.spans(from..until).into_iter().flat_map(|span| span.read().unwrap());
    let text = |value: Option<Bytes>| String::from_utf8(value.unwrap().to_vec()).unwrap();
    records.map(|record| (record.offset, text(record.value))).collect()
}

fn numbered(texts: &[&str]) -> Vec<(i64, String)> {
    (0..).zip(texts.iter().map(ToString::to_string)).collect()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    files.sort();
    files
}

/// A log of three frames in one segment, and where each of them ends in the file.
fn three_frames() -> (TempDir, Vec<u8>, [usize; 3]) {
    let dir = tempfile::tempdir().unwrap();
    let wal = sound(dir.path());
    let frames: [&[&str]; 3] = [&["a", "bb"], &["ccc"], &["d", "", "ff"]];
    let ends = frames.map(|records| {
        append(&wal, records, 0);
        fs::metadata(&segments(dir.path())[0]).unwrap().len() as usize
    });
    let bytes = fs::read(&segments(dir.path())[0]).unwrap();
    (dir, bytes, ends)
}

#[test]
fn records_survive_the_process_and_offsets_go_on() {
    let dir = tempfile::tempdir().unwrap();
    {
        let wal = sound(dir.path());
        assert_eq!(append(&wal, &["a", "b"], 0), 2);
        assert_eq!(append(&wal, &["c"], 0), 3);
    }
    let wal = sound(dir.path());
    assert_eq!(wal.bounds(), (0, 3));
    assert_eq!(append(&wal, &["d"], 0), 4);
    assert_eq!(all(&wal), numbered(&["a", "b", "c", "d"]));
    // Whole frames are read; who asks leaves out the rest.
    assert_eq!(within(&wal, 2, 3), [(2, "c".to_string())]);
}

#[test]
fn a_second_process_is_kept_away_while_the_first_one_writes() {
    let dir = tempfile::tempdir().unwrap();
    let first = sound(dir.path());
    let error = Wal::open(dir.path(), settings()).err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
    first.unlock();
    drop(sound(dir.path()));
}

#[test]
fn a_torn_tail_is_cut_at_every_byte_and_what_was_acknowledged_before_it_survives() {
    let (dir, bytes, ends) = three_frames();
    let file = segments(dir.path())[0].clone();
    let whole = ["a", "bb", "ccc", "d", "", "ff"];
    for len in 0..=bytes.len() {
        fs::remove_dir_all(dir.path()).unwrap();
        fs::create_dir(dir.path()).unwrap();
        fs::write(&file, &bytes[..len]).unwrap();
        let survive = match len {
            len if len >= ends[2] => 6,
            len if len >= ends[1] => 3,
            len if len >= ends[0] => 2,
            _ => 0,
        };
        let wal = sound(dir.path());
        assert_eq!(all(&wal), numbered(&whole[..survive]), "{len}");
        // And the log goes on where it was cut, also after another restart.
        append(&wal, &["next"], 0);
        let expected: Vec<&str> = whole[..survive].iter().copied().chain(["next"]).collect();
        assert_eq!(all(&wal), numbered(&expected), "{len}");
        drop(wal);
        assert_eq!(all(&sound(dir.path())), numbered(&expected), "{len}");
    }
}

#[test]
fn what_a_crash_leaves_behind_the_tail_is_cut_off() {
    let (dir, bytes, _) = three_frames();
    let file = segments(dir.path())[0].clone();
    for garbage in [vec![0; 4096], b"MRFR".to_vec(), vec![0xff; 100], b"MRFR\xff\xff\xff\xff\0\0\0\0".to_vec()] {
        fs::write(&file, [bytes.clone(), garbage].concat()).unwrap();
        assert_eq!(all(&sound(dir.path())).len(), 6);
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }
}

#[test]
fn a_damaged_frame_that_others_follow_is_told_at_every_byte() {
    let (dir, bytes, ends) = three_frames();
    let file = segments(dir.path())[0].clone();
    for at in ends[0]..ends[1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(&file, &damaged).unwrap();
        let (wal, damages) = open(dir.path());
        assert_eq!(damages, [Damage { file: file.clone(), at: ends[0] as u64, lost: 2..3 }], "{at}");
        assert!(damages[0].to_string().ends_with("1 records from offset 2 on are lost"), "{}", damages[0]);
        // The rest is there, under its own offsets.
        let rest: Vec<i64> = all(&wal).into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(rest, [0, 1, 3, 4, 5], "{at}");
        assert_eq!(append(&wal, &["next"], 0), 7);
        drop(wal);
        fs::remove_file(segments(dir.path()).pop().unwrap()).unwrap();
    }
}

#[test]
fn a_damaged_end_of_a_segment_that_others_follow_is_told() {
    let (dir, bytes, ends) = three_frames();
    // A day later: another segment.
    append(&sound(dir.path()), &["g"], DAY_MS);
    let files = segments(dir.path());
    assert_eq!(files.len(), 2);
    for at in ends[1]..ends[2] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(&files[0], &damaged).unwrap();
        let (wal, damages) = open(dir.path());
        assert_eq!(damages, [Damage { file: files[0].clone(), at: ends[1] as u64, lost: 3..6 }], "{at}");
        assert_eq!(all(&wal).last(), Some(&(6, "g".to_string())));
    }
    // Cut short, which no crash does to a segment that is closed.
    fs::write(&files[0], &bytes[..ends[0]]).unwrap();
    assert_eq!(open(dir.path()).1, [Damage { file: files[0].clone(), at: ends[0] as u64, lost: 2..6 }]);
    let mut damaged = bytes;
    damaged[5] ^= 1;
    fs::write(&files[0], &damaged).unwrap();
    assert_eq!(open(dir.path()).1, [Damage { file: files[0].clone(), at: 0, lost: 0..6 }]);
}

#[test]
fn a_write_that_fails_halfway_is_made_again_to_a_new_segment() {
    let dir = tempfile::tempdir().unwrap();
    let wal = sound(dir.path());
    append(&wal, &["a"], 0);
    for failures in [1, 2] {
        wal.failing.store(failures, Relaxed);
        append(&wal, &["b"], 0);
    }
    // More often than maxFailures: nothing of it is there, and the next one is.
    wal.failing.store(3, Relaxed);
    let error = wal.append(&[Bytes::from_static(b"never")], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    append(&wal, &["c"], 0);
    assert_eq!(all(&wal), numbered(&["a", "b", "b", "c"]));
    drop(wal);
    assert_eq!(all(&sound(dir.path())), numbered(&["a", "b", "b", "c"]));
}

#[test]
fn what_an_old_segment_holds_of_a_write_that_was_made_again_does_not_count() {
    let (dir, bytes, ends) = three_frames();
    let wal = sound(dir.path());
    append(&wal, &["g"], 0);
    drop(wal);
    let files = segments(dir.path());
    // The write was reported as failed, and the frame was there all the same.
    let mut twice = bytes;
    twice.extend(&fs::read(&files[1]).unwrap()[28..]);
    fs::write(&files[0], &twice).unwrap();
    assert_eq!(all(&sound(dir.path())), numbered(&["a", "bb", "ccc", "d", "", "ff", "g"]));
    twice.truncate(ends[2] + 5);
    fs::write(&files[0], &twice).unwrap();
    assert_eq!(all(&sound(dir.path())).len(), 7);
}

#[test]
fn segments_are_closed_by_age_and_deleted_when_nothing_of_them_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let wal = sound(dir.path());
    for (text, now_ms) in [("a", 0), ("b", 59_999), ("c", 60_000), ("d", 119_999), ("e", 120_000)] {
        append(&wal, &[text], now_ms);
    }
    assert_eq!(segments(dir.path()).len(), 3);
    for (needed, left) in [(0, 3), (1, 3), (2, 2), (3, 2), (4, 1), (100, 1)] {
        wal.release(needed);
        assert_eq!(segments(dir.path()).len(), left, "{needed}");
    }
    assert_eq!(wal.bounds(), (4, 5));
    let files = segments(dir.path());
    assert_eq!(wal.bytes(), fs::metadata(&files[0]).unwrap().len());
    drop(wal);
    // What is deleted is no damage.
    let wal = sound(dir.path());
    assert_eq!((wal.bounds(), all(&wal)), ((4, 5), vec![(4, "e".to_string())]));
}

#[test]
fn a_segment_for_each_write_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, _) = Wal::open(dir.path(), WriteAheadLogSettings { close_file_after_write: true, ..settings() }).unwrap();
    for text in ["a", "b", "c"] {
        append(&wal, &[text], 0);
    }
    assert_eq!(segments(dir.path()).len(), 3);
    assert_eq!(all(&wal), numbered(&["a", "b", "c"]));
}

#[test]
fn a_log_that_ends_before_the_checkpoints_position_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let wal = sound(dir.path());
    append(&wal, &["a"], 0);
    wal.go_on_at(10);
    assert_eq!(wal.bounds(), (0, 10));
    drop(wal);
    let wal = sound(dir.path());
    wal.go_on_at(10);
    append(&wal, &["b"], 0);
    drop(wal);
    // The gap was accepted once; it is no damage later.
    assert_eq!(all(&sound(dir.path())), [(0, "a".to_string()), (10, "b".to_string())]);
}
