//! What is remembered, and where reading goes on.

use proptest::prelude::*;

use super::*;
use crate::source::tail::identity::{Checksum, Fingerprint};

#[test]
fn a_kill_before_anything_was_delivered_begins_where_the_first_start_would_have() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 25));
    trial.start();
    trial.append("app.log", &numbered(25, 60));
    trial.kill();
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(60, 70));
    trial.kill();
    assert_eq!(trial.read(), lines(15, 70));
}

#[test]
fn only_what_was_delivered_is_not_read_again() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 20));
    assert_eq!(trial.start().read(), lines(10, 20));
    // Killed before anything was delivered: the same ten lines, not the last ten of what is there by then.
    trial.append("app.log", &numbered(20, 40));
    assert_eq!(trial.kill().read(), lines(10, 40));
    trial.deliver();
    trial.append("app.log", &numbered(40, 45));
    assert_eq!(trial.kill().read(), lines(40, 45));
    assert_eq!(trial.kill().read(), lines(40, 45));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn an_unfinished_line_is_read_whole_after_a_restart() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nbegun");
    assert_eq!(trial.start().read(), ["a"]);
    trial.deliver();
    trial.append("app.log", " and ended\n");
    assert_eq!(trial.kill().read(), ["begun and ended"]);
}

#[test]
fn what_was_read_and_forgotten_is_not_begun_anew_where_nothing_else_is_left() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.rename("app.log", "old");
    trial.read();
    trial.deliver();
    assert_eq!(trial.saved(), []);
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_file_that_is_through_is_told_once_its_last_position_is_on_disk_and_forgotten_when_that_is_done() {
    let mut trial = Trial::new(Begin::Line(1));
    let forgotten = Forgotten::default();
    trial.forgotten = Some(forgotten.clone());
    let told = || forgotten.lock().iter().copied().collect::<Vec<u64>>();
    trial.append("app.log", &numbered(0, 3));
    trial.start().read();
    trial.deliver();
    let old = trial.saved()[0].clone();
    trial.append("app.log", &numbered(3, 5));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(5, 7));
    assert_eq!(trial.read(), lines(3, 7));
    trial.engine.as_mut().unwrap().save().unwrap();
    // Closed, and its last lines are on their way.
    assert_eq!((trial.open_files(), told()), (1, vec![]));
    trial.deliver();
    assert_eq!(told(), [old.id]);
    let on_disk = trial.saved().into_iter().find(|file| file.id == old.id).unwrap();
    assert_eq!(on_disk.offset, numbered(0, 5).len() as u64);
    // A restart before the tombstone finds it again, has nothing to read, and tells it again.
    forgotten.lock().clear();
    assert_eq!(trial.kill().read(), NOTHING);
    trial.deliver();
    assert_eq!(told(), [old.id]);
    forgotten.lock().clear();
    trial.deliver();
    assert!(trial.saved().iter().all(|file| file.id != old.id));
    // One that is gone when the next start looks for it is told too.
    let current = trial.saved()[0].id;
    fs::remove_file(trial.path("app.log")).unwrap();
    trial.kill().read();
    trial.deliver();
    assert_eq!(told(), [current]);
}

#[test]
fn another_sources_files_in_the_same_topic_are_left_alone() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 3));
    trial.start().read();
    trial.deliver();
    trial.append("other.log", "not ours\n");
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(trial.path("other.log")).unwrap());
    let mut other = trial.saved()[0].clone();
    other = Remembered { id: other.id ^ 1, path: trial.path("other.log"), inode, offset: 0, fingerprint: Default::default(), ..other };
    let forgotten = Forgotten::default();
    trial.forgotten = Some(forgotten.clone());
    trial.engine = None;
    assert_eq!(trial.start_with(vec![other]).read(), NOTHING);
    trial.deliver();
    assert!(forgotten.lock().is_empty());
    assert_eq!(trial.saved().len(), 1);
}

#[test]
fn positions_found_elsewhere_count_when_the_state_directory_is_lost() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 30));
    trial.start().read();
    trial.deliver();
    let committed: Vec<Remembered> = trial.engine.as_ref().unwrap().positions().cloned().collect();
    let id = committed[0].id;
    trial.append("app.log", &numbered(30, 50));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(50, 52));
    trial.engine = None;
    fs::remove_dir_all(trial.directory.path().join("state")).unwrap();
    assert_eq!(trial.start_with(committed).read(), lines(30, 52));
    assert!(trial.engine.as_ref().unwrap().positions().any(|position| position.id == id), "the file keeps its id");
}

#[test]
fn the_further_one_of_two_known_positions_counts() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 10));
    trial.start().read();
    trial.deliver();
    let ahead: Vec<Remembered> = trial.engine.as_ref().unwrap().positions().cloned().collect();
    // The state directory is that of an earlier moment.
    let behind = ahead.iter().map(|file| Remembered {
        offset: 0,
        fingerprint: Fingerprint { tail: Checksum::default(), ..file.fingerprint },
        ..file.clone()
    });
    trial.store().save(behind.collect()).unwrap();
    trial.engine = None;
    assert_eq!(trial.start_with(ahead).read(), NOTHING);
}

#[test]
fn a_file_has_its_id_on_disk_before_its_first_line_is_given_out() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\n");
    trial.start().read();
    let id = trial.open[0].origin.as_ref().unwrap().file.as_ref().unwrap().id;
    let saved = trial.saved();
    assert_eq!(saved.iter().map(|file| (file.id, file.offset)).collect::<Vec<_>>(), [(id, 0)]);
}

#[test]
fn flumes_own_positions_are_gone_on_from() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:.*)$");
    trial.append("app.log", &numbered(0, 10));
    trial.append("new.log", "n\n");
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(trial.path("app.log")).unwrap());
    let text = format!(
        r#"[{{"inode":{inode},"pos":{},"file":"{}"}},{{"inode":1,"pos":5,"file":"/gone"}}]"#,
        numbered(0, 7).len(),
        trial.path("app.log").display()
    );
    let file = trial.directory.path().join("taildir_position.json");
    fs::write(&file, text).unwrap();
    let known = FlumePositions::new(file).found(None).unwrap();
    let mut read = trial.start_with(known).read();
    read.sort();
    assert_eq!(read, ["line 7", "line 8", "line 9", "n"]);
}

/// What cannot be written to: a file where the directory should be.
fn block(trial: &Trial) {
    let state = trial.directory.path().join("state");
    fs::rename(&state, trial.directory.path().join("aside")).unwrap();
    fs::write(&state, "").unwrap();
}

fn unblock(trial: &Trial) {
    let state = trial.directory.path().join("state");
    fs::remove_file(&state).unwrap();
    fs::rename(trial.directory.path().join("aside"), &state).unwrap();
}

#[test]
fn while_positions_cannot_be_saved_known_files_are_read_on_and_new_ones_wait() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:.*)$");
    trial.append("known", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.deliver();
    block(&trial);
    trial.append("known", &numbered(3, 5));
    trial.append("new", "n\n");
    assert_eq!(trial.read(), lines(3, 5));
    assert!(trial.in_trouble().unwrap().starts_with("positions cannot be saved in "), "{:?}", trial.in_trouble());
    acknowledge(&std::mem::take(&mut trial.open));
    assert!(trial.engine.as_mut().unwrap().save().is_err());
    unblock(&trial);
    // What was delivered meanwhile is saved now, and nothing of the new file was lost.
    trial.engine.as_mut().unwrap().save().unwrap();
    assert_eq!((trial.read(), trial.in_trouble()), (vec!["n".to_owned()], None));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_file_that_is_emptied_while_positions_cannot_be_saved_loses_nothing() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nhalf");
    assert_eq!(trial.start().read(), ["a"]);
    trial.deliver();
    block(&trial);
    trial.truncate("app.log");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["half"]);
    unblock(&trial);
    trial.engine.as_mut().unwrap().save().unwrap();
    assert_eq!(trial.read(), ["b"]);
}

#[test]
fn a_state_directory_that_was_removed_is_made_again() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 3));
    trial.start().read();
    trial.deliver();
    fs::remove_dir_all(trial.directory.path().join("state")).unwrap();
    trial.append("app.log", &numbered(3, 5));
    assert_eq!(trial.read(), lines(3, 5));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

proptest! {
    /// Any bytes, and a good file with some bytes changed: read or kept aside, for the source's own file and for Flume's.
    #[test]
    fn no_positions_file_makes_it_panic(bytes in any::<Vec<u8>>(), at in 0usize..300, put in "[0-9a-f\"{}:,\\[\\]-]{0,8}") {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.positions.json");
        let checksum = Checksum { bytes: 9, crc: 7 };
        let file = Remembered { id: 1, path: "/a".into(), dev: 2, inode: 3, fingerprint: Fingerprint { head: checksum, tail: checksum }, offset: 9 };
        Store::open(directory.path(), "s").unwrap().save(vec![file]).unwrap();
        let mut near = fs::read(&path).unwrap();
        let at = at.min(near.len());
        near.splice(at..(at + put.len()).min(near.len()), put.bytes());
        for text in [bytes, near, br#"[{"inode":1,"pos":2,"file":"/a"}]"#.iter().copied().take(at).chain(put.bytes()).collect()] {
            fs::write(&path, &text).unwrap();
            let opened = Store::open(directory.path(), "s");
            // What cannot be read is there still.
            let damaged = path.with_extension("json.damaged");
            if opened.is_ok_and(|store| store.saved().is_none()) {
                prop_assert_eq!(fs::read(&damaged).unwrap(), text.clone());
            }
            let flumes = directory.path().join("taildir_position.json");
            fs::write(&flumes, &text).unwrap();
            let _either = FlumePositions::new(flumes).found(None);
        }
    }

    /// Whatever is remembered of a file: what is given out is its end, from the remembered offset or from the beginning.
    #[test]
    fn no_remembered_position_makes_it_panic(
        offset in prop_oneof![0u64..60, any::<u64>()],
        head in (0u32..80, any::<bool>(), any::<u32>()),
        tail in (0u32..80, any::<bool>(), any::<u32>()),
        same_inode in any::<bool>(),
    ) {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 6));
        let text = numbered(0, 6).into_bytes();
        let checksum = |(bytes, right, crc): (u32, bool, u32), end: u64| {
            let end = usize::try_from(end).unwrap_or(usize::MAX).min(text.len());
            let true_one = Checksum::of(&text[end.saturating_sub(bytes as usize)..end]);
            if right { true_one } else { Checksum { bytes, crc } }
        };
        let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(trial.path("app.log")).unwrap());
        let file = Remembered {
            id: 5,
            path: trial.path("app.log"),
            dev: 1,
            inode: if same_inode { inode } else { 1 },
            fingerprint: Fingerprint { head: checksum(head, u64::from(head.0)), tail: checksum(tail, offset) },
            offset,
        };
        trial.store().save(vec![file.clone()]).unwrap();
        let read = trial.start().read().join("\n");
        let whole = String::from_utf8(text).unwrap();
        let whole = whole.trim_end();
        let rest = usize::try_from(offset).ok().and_then(|offset| whole.get(offset..)).unwrap_or_default();
        prop_assert!(read == whole || read == rest.trim_start_matches('\n') || read == rest, "{:?} of {:?}", read, file);
    }
}

/// With a position that cannot be, all lines came again, although the sink's transactions knew better.
#[test]
fn a_position_beyond_the_files_end_does_not_count_where_the_sink_has_one() {
    for damaged in [u64::MAX, 1_000_000] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 50));
        trial.start().read();
        trial.deliver();
        let committed: Vec<Remembered> = trial.engine.as_ref().unwrap().positions().cloned().collect();
        trial.append("app.log", &numbered(50, 63));
        trial.engine = None;
        trial.store().save(committed.iter().map(|file| Remembered { offset: damaged, ..file.clone() }).collect()).unwrap();
        assert_eq!(trial.start_with(committed.clone()).read(), lines(50, 63));
        assert_eq!(trial.deliver().saved()[0].id, committed[0].id, "the file keeps its id");
        // Nobody knows better: repeated rather than lost.
        trial.engine = None;
        trial.store().save(committed.iter().map(|file| Remembered { offset: damaged, ..file.clone() }).collect()).unwrap();
        assert_eq!(trial.start().read(), lines(0, 63));
    }
}
