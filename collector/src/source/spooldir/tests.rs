//! The engine step by step: order, completion, what is set aside, and restarts at every point.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::engine::{Complete, Engine, Order, Settings};
use super::read::{LineSettings, Lines, OnError};
use crate::event::{Event, Ledger, acknowledge};
use crate::java_regex::JavaRegex;
use crate::source::charset::Charset;
use crate::source::tail::{Forgotten, identity::Remembered, store::Store};

struct Trial {
    directory: tempfile::TempDir,
    order: Order,
    complete: Complete,
    recursive: bool,
    strict: bool,
    known: Vec<Remembered>,
    forgotten: Forgotten,
    ledger: Arc<Ledger>,
    engine: Option<Engine>,
    open: Vec<Event>,
}

impl Trial {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("spool")).unwrap();
        Self {
            directory,
            order: Order::Oldest,
            complete: Complete::Rename,
            recursive: false,
            strict: false,
            known: Vec::new(),
            forgotten: Forgotten::default(),
            ledger: Arc::default(),
            engine: None,
            open: Vec::new(),
        }
    }

    fn spool(&self) -> PathBuf {
        self.directory.path().join("spool")
    }

    /// As a start, or as a start after a kill: what was not delivered is forgotten.
    fn start(&mut self) -> &mut Self {
        self.engine = None;
        self.open.clear();
        self.ledger = Arc::default();
        let state = self.directory.path().join("state");
        let line = LineSettings { length_max: 2048, input: Charset::Utf8, output: Charset::Utf8, on_error: OnError::Fail };
        let settings = Settings {
            directory: self.spool(),
            recursive: self.recursive,
            suffix: ".COMPLETED".into(),
            include: JavaRegex::whole("^.*$").unwrap(),
            ignore: JavaRegex::whole(r".*\.tmp").unwrap(),
            order: self.order,
            complete: self.complete.clone(),
            path_header: None,
            name_header: Some("basename".into()),
            poll: Duration::ZERO,
            open: Box::new(move |file, from, length| Ok(Box::new(Lines::new(file, line, from, length)))),
            strict: self.strict,
        };
        let store = Store::open(&state, "s").unwrap();
        let engine =
            Engine::new(settings, store, (&state, "s"), self.known.clone(), Some(self.forgotten.clone()), self.ledger.clone()).unwrap();
        engine.check_directory().unwrap();
        self.engine = Some(engine);
        self
    }

    /// A file written so many seconds ago.
    fn put(&self, name: &str, text: &[u8], age: u64) {
        let path = self.spool().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        fs::File::options().append(true).open(&path).unwrap().set_modified(time).unwrap();
    }

    /// `batches` puts of two events; `file: line` each.
    fn read(&mut self, batches: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..batches {
            let Some(batch) = self.engine.as_mut().unwrap().next_batch(2, 1000).unwrap() else { break };
            let origin = self.ledger.open(&batch.file, batch.mark, batch.pieces.len(), None);
            for piece in batch.pieces {
                let name = batch.headers.as_ref().unwrap()["basename"].clone();
                lines.push(format!("{name}: {}", String::from_utf8_lossy(&piece.body)));
                self.open.push(Event { end: piece.end, origin: Some(origin.clone()), ..Event::new(piece.body) });
            }
        }
        lines
    }

    fn read_all(&mut self) -> Vec<String> {
        self.read(usize::MAX)
    }

    fn deliver(&mut self) -> &mut Self {
        acknowledge(&std::mem::take(&mut self.open));
        let engine = self.engine.as_mut().unwrap();
        engine.complete().unwrap();
        engine.save().unwrap();
        self
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut directories = vec![self.spool()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    names.push(path.strip_prefix(self.spool()).unwrap().display().to_string());
                }
            }
        }
        names.sort();
        names
    }

    fn trouble(&self) -> String {
        self.engine.as_ref().unwrap().in_trouble().unwrap_or_default()
    }
}

#[test]
fn files_are_read_in_their_order_and_completed_when_they_are_delivered() {
    for (order, expected) in [(Order::Oldest, ["c: 3", "a: 1", "a: 2", "b: 4"]), (Order::Youngest, ["a: 1", "a: 2", "b: 4", "c: 3"])] {
        let mut trial = Trial { order, ..Trial::new() };
        trial.put("c", b"3\n", 20);
        trial.put("a", b"1\n2\n", 10);
        let both = fs::metadata(trial.spool().join("a")).unwrap().modified().unwrap();
        trial.put("b", b"4", 10);
        fs::File::options().append(true).open(trial.spool().join("b")).unwrap().set_modified(both).unwrap();
        for name in ["d.COMPLETED", ".hidden", "e.tmp", "sub/f"] {
            trial.put(name, b"no\n", 30);
        }
        assert_eq!(trial.start().read_all(), expected);
        assert!(trial.names().contains(&"a".to_owned()), "not delivered yet");
        trial.deliver();
        assert_eq!(trial.names(), [".hidden", "a.COMPLETED", "b.COMPLETED", "c.COMPLETED", "d.COMPLETED", "e.tmp", "sub/f"]);
        assert_eq!(trial.read_all(), [""; 0]);
        assert_eq!(trial.start().read_all(), [""; 0]);
    }
}

#[test]
fn subdirectories_are_read_when_asked_for_and_the_tracker_directory_leaves_files_alone() {
    let mut trial = Trial { recursive: true, ..Trial::new() };
    trial.complete = Complete::Track(trial.spool().join(".flumespool"));
    for (name, age) in [("one", 30), ("sub/two", 20), (".git/no", 10), ("x.tmp/no", 10)] {
        trial.put(name, b"x\n", age);
    }
    assert_eq!(trial.start().read_all(), ["one: x", "two: x"]);
    trial.deliver();
    assert_eq!(trial.names(), [".flumespool/one.COMPLETED", ".flumespool/sub/two.COMPLETED", ".git/no", "one", "sub/two", "x.tmp/no"]);
    assert_eq!(trial.start().read_all(), [""; 0]);
    let mut trial = Trial { complete: Complete::Delete, ..Trial::new() };
    trial.put("one", b"x\n", 1);
    trial.start().read_all();
    trial.deliver();
    assert_eq!(trial.names(), [""; 0]);
}

#[test]
fn a_file_without_events_is_one_empty_event() {
    let mut trial = Trial::new();
    trial.put("empty", b"", 1);
    assert_eq!(trial.start().read_all(), ["empty: "]);
    trial.deliver();
    assert_eq!(trial.names(), ["empty.COMPLETED"]);
}

#[test]
fn a_kill_in_the_middle_loses_and_repeats_nothing_that_was_delivered() {
    let mut trial = Trial::new();
    trial.put("a", b"1\n2\n3\n4\n5\n", 1);
    assert_eq!(trial.start().read(1), ["a: 1", "a: 2"]);
    // Nothing delivered: all again.
    assert_eq!(trial.start().read(1), ["a: 1", "a: 2"]);
    trial.deliver();
    assert_eq!(trial.start().read(1), ["a: 3", "a: 4"]);
    trial.deliver();
    // Renamed by somebody while nothing ran: still known.
    fs::rename(trial.spool().join("a"), trial.spool().join("b")).unwrap();
    assert_eq!(trial.start().read_all(), ["b: 5"]);
    acknowledge(&std::mem::take(&mut trial.open));
    trial.engine.as_mut().unwrap().save().unwrap();
    // Killed between the last delivery and the completion.
    assert_eq!(trial.start().read_all(), [""; 0]);
    assert_eq!(trial.names(), ["b.COMPLETED"]);
}

#[test]
fn a_transactional_sinks_positions_count_and_are_forgotten_when_the_file_is_complete() {
    let mut trial = Trial::new();
    trial.put("a", b"1\n2\n3\n", 1);
    trial.start().read(1);
    let origin = trial.open[1].origin.clone().unwrap();
    let committed = origin.file.as_ref().unwrap().remember(origin.mark.unwrap());
    let mut other = committed.clone();
    (other.id, other.path) = (7, "/elsewhere/a".into());
    trial.known = vec![committed.clone(), other];
    assert_eq!(trial.start().read_all(), ["a: 3"]);
    assert_eq!(trial.open[0].origin.as_ref().unwrap().file.as_ref().unwrap().id, committed.id, "the sink knows the file by this");
    trial.deliver();
    let told = |trial: &Trial| trial.forgotten.lock().iter().copied().collect::<Vec<_>>();
    assert_eq!(told(&trial), [committed.id]);
    // Completed before a crash, and the tombstone not committed: told again.
    trial.forgotten.lock().clear();
    assert_eq!(trial.start().read_all(), [""; 0]);
    assert_eq!(told(&trial), [committed.id]);
}

#[test]
fn a_file_that_changes_is_set_aside_and_the_others_go_on() {
    let mut trial = Trial::new();
    trial.put("grows", b"1\n", 20);
    assert_eq!(trial.start().read(1), ["grows: 1"]);
    trial.put("grows", b"1\n2\n", 20);
    trial.put("next", b"x\n", 10);
    assert_eq!(trial.read_all(), ["next: x"]);
    trial.deliver();
    assert_eq!(trial.names(), ["grows", "next.COMPLETED"]);
    assert!(trial.trouble().contains("grows is set aside: it has changed from 2 to 4 bytes"), "{}", trial.trouble());
    assert_eq!(trial.engine.as_mut().unwrap().take_faults(), 1);
    // Also after a restart, until it has another name.
    assert_eq!(trial.start().read_all(), [""; 0]);
    assert!(trial.trouble().contains("grows"));
    fs::rename(trial.spool().join("grows"), trial.spool().join("again")).unwrap();
    assert_eq!(trial.read_all(), ["again: 1", "again: 2"]);
    trial.deliver();
    assert_eq!((trial.names(), trial.trouble()), (vec!["again.COMPLETED".into(), "next.COMPLETED".into()], String::new()));
}

#[test]
fn a_file_that_is_no_text_or_whose_completed_name_is_taken_is_set_aside() {
    let mut trial = Trial::new();
    trial.put("bad", b"1\n2\n\xff\n", 30);
    trial.put("twice", b"old\n", 20);
    trial.put("twice.COMPLETED", b"older\n", 20);
    trial.put("good", b"x\n", 10);
    assert_eq!(trial.start().read_all(), ["bad: 1", "bad: 2", "twice: old", "good: x"]);
    trial.deliver();
    assert_eq!(trial.names(), ["bad", "good.COMPLETED", "twice", "twice.COMPLETED"]);
    assert_eq!(fs::read(trial.spool().join("twice.COMPLETED")).unwrap(), b"older\n");
    assert!(trial.trouble().contains("inputCharset") && trial.trouble().contains("1 more"), "{}", trial.trouble());
    assert_eq!(trial.start().read_all(), [""; 0]);
}

#[test]
fn with_flume_strict_what_breaks_the_rules_ends_the_source() {
    let mut trial = Trial { strict: true, ..Trial::new() };
    trial.put("bad", b"\xff\n", 30);
    let error = trial.start().engine.as_mut().unwrap().next_batch(2, 1000).err().unwrap();
    assert!(error.to_string().contains("bad") && !error.is::<std::io::Error>(), "{error}");
}

#[test]
fn a_file_that_somebody_removes_is_no_trouble() {
    let mut trial = Trial::new();
    trial.put("a", b"1\n", 1);
    trial.start().read_all();
    fs::remove_file(trial.spool().join("a")).unwrap();
    trial.deliver();
    assert_eq!(trial.trouble(), "");
    trial.put("a", b"2\n", 1);
    assert_eq!(trial.read_all(), ["a: 2"]);
}
