//! The tail engine, driven step by step over real files: every kind of rotation, and restarts with and without delivery.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use regex::bytes::Regex;
use tempfile::TempDir;

use super::Forgotten;
use super::command::Begin;
use super::engine::{Earlier, Engine, Find, Group, Settings, flume_positions};
use super::identity::Remembered;
use super::reader::READ_BYTES;
use super::store::Store;
use crate::event::{Event, Ledger, acknowledge};

struct Trial {
    directory: TempDir,
    begin: Begin,
    groups: Option<&'static str>,
    rotate_wait: Duration,
    partial_wait: Option<Duration>,
    line_bytes_max: usize,
    forgotten: Option<Forgotten>,
    engine: Option<Engine>,
    ledger: Arc<Ledger>,
    /// Given out and not yet delivered.
    open: Vec<Event>,
}

impl Trial {
    fn new(begin: Begin) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            begin,
            groups: None,
            rotate_wait: Duration::ZERO,
            partial_wait: None,
            line_bytes_max: 1 << 20,
            forgotten: None,
            engine: None,
            ledger: Arc::default(),
            open: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(name)
    }

    fn start(&mut self) -> &mut Self {
        self.start_with(Vec::new())
    }

    fn start_with(&mut self, known: Vec<Remembered>) -> &mut Self {
        fs::create_dir_all(self.path("")).unwrap();
        let find = match self.groups {
            Some(pattern) => Find::Groups(vec![Group { directory: self.path(""), name: Regex::new(pattern).unwrap(), headers: None }]),
            None => Find::Path(self.path("app.log")),
        };
        let settings = Settings {
            find,
            line_bytes_max: self.line_bytes_max,
            rotate_wait: self.rotate_wait,
            partial_wait: self.partial_wait,
            scan_interval: Duration::ZERO,
            path_header: None,
        };
        let store = self.store();
        let first = Store::first(&self.directory.path().join("state"), "s", || settings.find.first_look(self.begin)).unwrap();
        self.ledger = Arc::default();
        self.open.clear();
        self.engine = Some(Engine::new(settings, store, Earlier { known, first, forgotten: self.forgotten.clone() }, self.ledger.clone()));
        self
    }

    fn store(&self) -> Store {
        Store::open(&self.directory.path().join("state"), "s").unwrap()
    }

    fn saved(&self) -> Vec<Remembered> {
        self.store().saved().unwrap_or_default().to_vec()
    }

    /// As if the file had been written last so many seconds ago.
    fn age(&self, name: &str, seconds: u64) {
        let time = std::time::SystemTime::now() - Duration::from_secs(seconds);
        File::options().append(true).open(self.path(name)).unwrap().set_modified(time).unwrap();
    }

    /// Everything there is now, as text; delivered only by [`Self::deliver`].
    fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // A file that lost its name is closed by one more look.
        let mut looks = 0;
        while looks < 2 {
            let Some(chunk) = self.engine.as_mut().unwrap().next_chunk().unwrap() else {
                looks += 1;
                continue;
            };
            let origin = self.ledger.open(&chunk.file, chunk.mark(*chunk.ends.last().unwrap()), chunk.ends.len(), None);
            let mut start = 0;
            for &end in &chunk.ends {
                let body = chunk.line(start, end);
                lines.push(String::from_utf8(body.to_vec()).unwrap());
                self.open.push(Event { body, end: chunk.begin + end as u64, origin: Some(origin.clone()), ..Event::default() });
                start = end;
            }
        }
        lines
    }

    fn deliver(&mut self) -> &mut Self {
        acknowledge(&std::mem::take(&mut self.open));
        self.engine.as_mut().unwrap().save().unwrap();
        self
    }

    /// A kill: what was not delivered is forgotten.
    fn kill(&mut self) -> &mut Self {
        self.engine = None;
        self.start()
    }

    fn append(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn truncate(&self, name: &str) {
        OpenOptions::new().write(true).truncate(true).open(self.path(name)).unwrap();
    }

    fn open_files(&self) -> usize {
        self.engine.as_ref().unwrap().open_files()
    }
}

fn numbered(from: usize, to: usize) -> String {
    (from..to).map(|number| format!("line {number}\n")).collect()
}

fn lines(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("line {number}")).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn what_is_written_between_the_start_and_the_first_look_is_read() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 25));
    trial.start();
    trial.append("app.log", &numbered(25, 60));
    assert_eq!(trial.read(), lines(15, 60));
}

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
fn the_first_start_begins_where_tail_would() {
    for (begin, text, expected) in [
        (Begin::LastLines(10), numbered(0, 25), lines(15, 25)),
        (Begin::LastLines(10), numbered(0, 10), lines(0, 10)),
        (Begin::LastLines(10), numbered(0, 3), lines(0, 3)),
        (Begin::LastLines(10), String::new(), vec![]),
        (Begin::LastLines(2), "a\nb\nc\n".into(), vec!["b".into(), "c".into()]),
        (Begin::LastLines(1), "\n\n\n".into(), vec![String::new()]),
        (Begin::LastLines(2), "a\nb\nunfinished".into(), vec!["b".into()]),
        (
            Begin::LastLines(3),
            format!("{}\n{}\nz\n", "x".repeat(200_000), "y".repeat(70_000)),
            vec!["x".repeat(200_000), "y".repeat(70_000), "z".into()],
        ),
        (Begin::LastLines(2), format!("{}\n{}\nz\n", "x".repeat(200_000), "y".repeat(70_000)), vec!["y".repeat(70_000), "z".into()]),
        (Begin::Line(1), numbered(0, 25), lines(0, 25)),
        (Begin::Line(4), numbered(0, 5), lines(3, 5)),
        (Begin::Line(9), numbered(0, 5), vec![]),
        (Begin::End, numbered(0, 5), vec![]),
    ] {
        let mut trial = Trial::new(begin);
        trial.append("app.log", &text);
        assert_eq!(trial.start().read(), expected, "{begin:?}");
        trial.append("app.log", "!\nlater\n");
        assert_eq!(trial.read().last().unwrap(), "later");
    }
}

#[test]
fn a_file_that_is_not_there_yet_is_waited_for_and_read_whole() {
    let mut trial = Trial::new(Begin::LastLines(10));
    assert_eq!(trial.start().read(), NOTHING);
    trial.append("app.log", &numbered(0, 30));
    assert_eq!(trial.read(), lines(0, 30));
}

#[test]
fn lines_are_cut_at_newlines_whatever_their_length() {
    let mut trial = Trial::new(Begin::Line(1));
    let long = "l".repeat(3 * READ_BYTES + 17);
    trial.append("app.log", &format!("a\r\n\nb\n{long}\nc\rd\n"));
    assert_eq!(trial.start().read(), ["a", "", "b", &long, "c\rd"]);
    // Written byte by byte.
    for byte in ["h", "e", "y", "\r", "\n"] {
        assert_eq!(trial.read(), NOTHING);
        trial.append("app.log", byte);
    }
    assert_eq!(trial.read(), ["hey"]);
    trial.deliver().kill();
    assert_eq!(trial.read(), NOTHING);
}

#[test]
fn a_line_without_end_is_split_before_it_fills_the_memory() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.line_bytes_max = READ_BYTES;
    let endless = "x".repeat(2 * READ_BYTES + 100);
    trial.append("app.log", &format!("{endless}\nb\n"));
    let read = trial.start().read();
    assert_eq!(read.last().unwrap(), "b");
    assert!(read.len() > 2 && read.iter().all(|line| line.len() <= READ_BYTES));
    assert_eq!(read[..read.len() - 1].concat(), endless);
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
fn a_rename_loses_and_repeats_nothing() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.rotate_wait = Duration::from_secs(3600);
    trial.append("app.log", &numbered(0, 5));
    assert_eq!(trial.start().read(), lines(0, 5));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log.1", &numbered(5, 7));
    assert_eq!(trial.read(), lines(5, 7));
    trial.append("app.log", &numbered(8, 10));
    // The writer still had the old file open: what it wrote there comes first.
    trial.append("app.log.1", &numbered(7, 8));
    assert_eq!(trial.read(), lines(7, 10));
    trial.deliver();
    assert_eq!(trial.open_files(), 2);
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rotated_file_is_closed_when_it_is_through_and_its_unfinished_line_is_a_line() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nunfinished");
    assert_eq!(trial.start().read(), ["a"]);
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["b", "unfinished"]);
    assert_eq!(trial.open_files(), 1);
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rename_while_nobody_watched_is_followed() {
    let mut trial = Trial::new(Begin::LastLines(10));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    trial.append("app.log", &numbered(5, 20));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(20, 40));
    assert_eq!(trial.kill().read(), lines(5, 40));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn files_that_came_and_went_while_nobody_watched_are_read_oldest_first() {
    let mut trial = Trial::new(Begin::Line(1));
    // Read to its end and forgotten long before.
    trial.append("app.log", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.deliver();
    trial.age("app.log", 900);
    trial.rename("app.log", "app.log.4");
    trial.append("app.log", &numbered(3, 5));
    trial.read();
    trial.deliver();
    // Now nobody watches, and there are three rotations.
    trial.append("app.log", &numbered(5, 6));
    for (at, age) in [(3, 800), (2, 700), (1, 600)] {
        trial.age("app.log", age);
        trial.rename("app.log", &format!("app.log.{at}"));
        trial.append("app.log", &numbered(9 - at, 10 - at));
    }
    for other in ["app.log.1.gz", "app.log.swp", "app.logs", "app2.log.1", "other.log.1"] {
        trial.append(other, "none of its business\n");
    }
    assert_eq!(trial.kill().read(), lines(5, 9));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
    assert_eq!(trial.read(), NOTHING);
}

#[test]
fn files_that_came_and_went_are_read_also_when_the_last_known_one_is_gone() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 3));
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.age("app.log", 900);
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(3, 5));
    trial.read();
    trial.deliver();
    trial.engine = None;
    fs::remove_file(trial.path("app.log")).unwrap();
    trial.append("app.log-20260102", &numbered(5, 7));
    trial.append("app.log", &numbered(7, 9));
    assert_eq!(trial.kill().read(), lines(5, 9));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
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
fn emptied_in_place_is_read_from_the_beginning() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 50));
    assert_eq!(trial.start().read(), lines(0, 50));
    trial.deliver();
    trial.truncate("app.log");
    assert_eq!(trial.read(), NOTHING);
    trial.append("app.log", "new\n");
    assert_eq!(trial.read(), ["new"]);
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn emptied_and_grown_past_the_old_position_is_seen_too() {
    for kill in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &numbered(0, 50));
        assert_eq!(trial.start().read(), lines(0, 50));
        trial.deliver();
        trial.truncate("app.log");
        trial.append("app.log", &numbered(1000, 1400));
        if kill {
            trial.kill();
        }
        assert_eq!(trial.read(), lines(1000, 1400));
    }
}

#[test]
fn emptied_and_grown_to_the_very_same_length_is_seen_too() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "aaaa\nbbbb\n");
    assert_eq!(trial.start().read(), ["aaaa", "bbbb"]);
    trial.truncate("app.log");
    trial.append("app.log", "cccc\ndddd\n");
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    File::open(trial.path("app.log")).unwrap().set_modified(later).unwrap();
    assert_eq!(trial.read(), ["cccc", "dddd"]);
}

#[test]
fn the_same_first_lines_do_not_hide_that_a_file_is_new() {
    // A header longer than the fingerprint of the beginning.
    let header = format!("{}\n", "#".repeat(2000));
    for kill in [false, true] {
        let mut trial = Trial::new(Begin::Line(1));
        trial.append("app.log", &(header.clone() + &numbered(0, 30)));
        assert_eq!(trial.start().read().len(), 31);
        trial.deliver();
        trial.truncate("app.log");
        trial.append("app.log", &(header.clone() + &numbered(100, 200)));
        if kill {
            trial.kill();
        }
        assert_eq!(trial.read()[1..], lines(100, 200), "killed: {kill}");
    }
}

#[test]
fn copied_and_emptied_while_nobody_watched_is_finished_in_the_copy() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    trial.append("app.log", &numbered(5, 9));
    fs::copy(trial.path("app.log"), trial.path("app.log.1")).unwrap();
    trial.truncate("app.log");
    trial.append("app.log", &numbered(9, 12));
    assert_eq!(trial.kill().read(), lines(5, 12));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn an_unfinished_line_is_not_lost_when_the_file_is_emptied() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", "a\nhalf");
    assert_eq!(trial.start().read(), ["a"]);
    trial.truncate("app.log");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["half", "b"]);
}

#[test]
fn a_deleted_file_is_read_to_its_end_and_a_new_one_from_its_beginning() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 2));
    trial.start();
    let mut writer = OpenOptions::new().append(true).open(trial.path("app.log")).unwrap();
    assert_eq!(trial.read(), lines(0, 2));
    trial.rotate_wait = Duration::from_secs(3600);
    fs::remove_file(trial.path("app.log")).unwrap();
    writer.write_all(numbered(2, 3).as_bytes()).unwrap();
    assert_eq!(trial.read(), lines(2, 3));
    drop(writer);
    trial.append("app.log", &numbered(3, 5));
    assert_eq!(trial.read(), lines(3, 5));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn an_inode_used_again_is_another_file() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("app.log", &numbered(0, 5));
    trial.start().read();
    trial.deliver();
    let saved = trial.saved();
    trial.engine = None;
    fs::remove_file(trial.path("app.log")).unwrap();
    trial.append("app.log", &numbered(100, 110));
    // Whether the file system gives the number again is its own affair: the remembered one is made to fit.
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(trial.path("app.log")).unwrap());
    trial.store().save(saved.into_iter().map(|file| Remembered { inode, ..file }).collect()).unwrap();
    assert_eq!(trial.start().read(), lines(100, 110));
}

#[test]
fn a_symlink_that_points_elsewhere_is_a_rotation() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.append("day1", &numbered(0, 2));
    trial.append("day2", &numbered(3, 5));
    std::os::unix::fs::symlink(trial.path("day1"), trial.path("app.log")).unwrap();
    assert_eq!(trial.start().read(), lines(0, 2));
    trial.append("day1", &numbered(2, 3));
    std::os::unix::fs::symlink(trial.path("day2"), trial.path("link")).unwrap();
    trial.rename("link", "app.log");
    assert_eq!(trial.read(), lines(2, 5));
    trial.deliver();
    assert_eq!(trial.kill().read(), NOTHING);
}

#[test]
fn a_rename_back_is_no_rotation() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.rotate_wait = Duration::from_secs(3600);
    trial.append("app.log", "a\n");
    assert_eq!(trial.start().read(), ["a"]);
    trial.rename("app.log", "aside");
    assert_eq!(trial.read(), NOTHING);
    trial.rename("aside", "app.log");
    trial.append("app.log", "b\n");
    assert_eq!(trial.read(), ["b"]);
    assert_eq!(trial.open_files(), 1);
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
        fingerprint: super::identity::Fingerprint { tail: super::identity::Checksum::default(), ..file.fingerprint },
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
fn taildir_follows_files_whose_names_match_over_a_rename_among_them() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some(r"^(?:app\.log.*)$");
    trial.append("app.log", &numbered(0, 3));
    trial.append("other.txt", "no\n");
    assert_eq!(trial.start().read(), lines(0, 3));
    trial.rename("app.log", "app.log.1");
    trial.append("app.log", &numbered(3, 5));
    assert_eq!(trial.read(), lines(3, 5));
    trial.deliver();
    // Flume reads a renamed file again from its beginning.
    assert_eq!(trial.kill().read(), NOTHING);
    trial.rename("app.log", "app.log.2");
    trial.append("app.log", &numbered(5, 6));
    assert_eq!(trial.kill().read(), lines(5, 6));
}

#[test]
fn files_take_turns() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.groups = Some("^(?:[ab])$");
    let large = numbered(0, 3 * READ_BYTES / 10);
    trial.append("a", &large);
    trial.append("b", "quick\n");
    trial.start();
    let mut chunks = 0;
    loop {
        let chunk = trial.engine.as_mut().unwrap().next_chunk().unwrap().unwrap();
        if chunk.text.starts_with(b"quick") {
            break;
        }
        chunks += 1;
    }
    assert!(chunks <= 1, "the small file waited for {chunks} chunks");
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
    let known = flume_positions(text.as_bytes()).unwrap();
    let mut read = trial.start_with(known).read();
    read.sort();
    assert_eq!(read, ["line 7", "line 8", "line 9", "n"]);
    assert!(flume_positions(b"{").is_err());
}

#[test]
fn with_flumes_reading_an_unfinished_line_is_given_out_after_a_while() {
    let mut trial = Trial::new(Begin::Line(1));
    trial.partial_wait = Some(Duration::ZERO);
    trial.append("app.log", "half");
    assert_eq!(trial.start().read(), ["half"]);
    trial.append("app.log", " a line\n");
    assert_eq!(trial.read(), [" a line"]);
}

#[test]
fn what_cannot_be_read_is_told_and_the_others_go_on() {
    let mut trial = Trial::new(Begin::Line(1));
    fs::create_dir_all(trial.path("app.log")).unwrap();
    assert_eq!(trial.start().read(), NOTHING);
    assert!(trial.engine.as_ref().unwrap().in_trouble().unwrap().ends_with("app.log: not a regular file"));
    fs::remove_dir(trial.path("app.log")).unwrap();
    trial.append("app.log", "a\n");
    assert_eq!(trial.read(), ["a"]);
    assert_eq!(trial.engine.as_ref().unwrap().in_trouble(), None);
}

/// Whatever the writer does and whenever the reader is killed: every line arrives, and those delivered before a kill once.
#[test]
fn random_rotations_and_kills_lose_nothing() {
    for seed in 0..60u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut trial = Trial::new(Begin::Line(1));
        trial.rotate_wait = Duration::from_secs(3600);
        trial.start();
        let (mut written, mut rotations) = (0usize, 0);
        let (mut delivered, mut pending) = (Vec::<String>::new(), Vec::<String>::new());
        for _ in 0..60 {
            match random(6) {
                0..=2 => {
                    let count = 1 + random(20) as usize;
                    trial.append("app.log", &numbered(written, written + count));
                    written += count;
                }
                3 => {
                    pending.extend(trial.read());
                    if random(2) == 0 {
                        trial.deliver();
                        delivered.append(&mut pending);
                    }
                }
                4 if Path::new(&trial.path("app.log")).exists() => {
                    rotations += 1;
                    // A file that came and went between two looks was never there for the collector.
                    pending.extend(trial.read());
                    trial.rename("app.log", &format!("app.log.{rotations}"));
                    pending.extend(trial.read());
                }
                _ => {
                    pending.clear();
                    trial.kill();
                    pending.extend(trial.read());
                }
            }
        }
        pending.extend(trial.read());
        delivered.append(&mut pending);
        delivered.sort_by_key(|line| line.trim_start_matches("line ").parse::<usize>().unwrap());
        assert_eq!(delivered, lines(0, written), "seed {seed}");
    }
}
