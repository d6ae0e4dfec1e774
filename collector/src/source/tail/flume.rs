//! Flume's `taildir_position.json`: gone on from when Flume ran last, and written beside our own positions, so that the way
//! back to Flume loses and repeats nothing either.
//!
//! Several sources may share a file (Flume's default path is one for all): each replaces the entries of its own files and
//! leaves the others. Flume writes the array on one line; ours begins with a line end, which Flume reads as well. That tells
//! who wrote last, and so whose positions are the newer ones.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::identity::{Fingerprint, Remembered};
use super::reader::open;

/// How a file that we wrote begins; one that Flume wrote never does.
const OURS: &[u8] = b"[\n";

/// Sources of this process take turns.
static TURN: Mutex<()> = Mutex::new(());

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    inode: u64,
    pos: u64,
    file: PathBuf,
}

impl From<Entry> for Remembered {
    /// Flume keeps neither device nor content: inode and path must do.
    fn from(entry: Entry) -> Self {
        let Entry { inode, pos, file } = entry;
        Self { id: rand::random(), path: file, dev: 0, inode, fingerprint: Fingerprint::default(), offset: pos }
    }
}

/// Where Flume's TAILDIR keeps its positions.
pub struct FlumePositions {
    path: PathBuf,
    /// What this source wrote last.
    written: Option<Vec<Entry>>,
    told: bool,
}

impl FlumePositions {
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None, told: false }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Positions to go on from, given those that this source has of its own.
    pub fn found(&self, saved: Option<&[Remembered]>) -> io::Result<Vec<Remembered>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let entries: Vec<Entry> = serde_json::from_slice(&text)?;
        Ok(match saved {
            None => entries.into_iter().map(Remembered::from).collect(),
            // Our own are as new, and know the content.
            Some(_) if text.starts_with(OURS) => Vec::new(),
            Some(saved) => entries.into_iter().filter_map(|entry| newer(entry, saved)).collect(),
        })
    }

    /// Writes what is delivered of files that are where they are said to be; told once when that fails.
    pub fn write<'a>(&mut self, positions: impl Iterator<Item = &'a Remembered>, owns: impl Fn(&Path) -> bool) {
        let entry = |file: &Remembered| Entry { inode: file.inode, pos: file.offset, file: file.path.clone() };
        let mut entries: Vec<Entry> = positions.filter(|file| file.path.to_str().is_some()).map(entry).collect();
        entries.sort_by(|a, b| a.file.cmp(&b.file).then(a.inode.cmp(&b.inode)));
        if self.written.as_ref() == Some(&entries) {
            return;
        }
        match replace(&self.path, &entries, owns) {
            Ok(done) => {
                if std::mem::take(&mut self.told) {
                    tracing::info!(file = %self.path.display(), "Flume's position file is written again");
                }
                // Another process has it now: the next time.
                self.written = done.then_some(entries);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(file = %self.path.display(), %error, "Flume's position file cannot be written: only a move back to Flume would need it");
                }
            }
        }
    }
}

/// Flume's position of a file, if Flume has read on in the content that we know, or knows another one.
fn newer(entry: Entry, saved: &[Remembered]) -> Option<Remembered> {
    let (handle, metadata) = open(&entry.file).ok()?;
    let is = |file: &&Remembered| {
        file.inode == entry.inode && file.path == entry.file && file.is(&handle, &metadata, &entry.file).unwrap_or(false)
    };
    match saved.iter().find(is) {
        Some(known) if known.offset >= entry.pos => None,
        Some(known) => {
            let fingerprint = Fingerprint { head: known.fingerprint.head, ..Fingerprint::default() };
            Some(Remembered { offset: entry.pos, fingerprint, ..known.clone() })
        }
        None => Some(entry.into()),
    }
}

/// False when another process is at it.
fn replace(path: &Path, entries: &[Entry], owns: impl Fn(&Path) -> bool) -> io::Result<bool> {
    let _turn = TURN.lock();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&temporary)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    // It may have become the file itself before it was locked.
    let inode = file.metadata()?.ino();
    if !fs::metadata(&temporary).is_ok_and(|metadata| metadata.ino() == inode) {
        return Ok(false);
    }
    let there = |entry: &Entry| fs::metadata(&entry.file).is_ok_and(|metadata| metadata.ino() == entry.inode);
    let others: Vec<Entry> = match fs::read(path) {
        // What cannot be read is no position of anybody.
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let others = others.iter().filter(|entry| !owns(&entry.file));
    let lines = others.chain(entries).filter(|entry| there(entry)).map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let mut text = OURS.to_vec();
    text.extend_from_slice(lines.join(",\n").as_bytes());
    text.extend_from_slice(b"]\n");
    file.set_len(0)?;
    file.write_all(&text)?;
    // Not synced, as Flume's is not: our own positions are, and reading waits for each sync.
    fs::rename(&temporary, path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tail::identity::head;

    struct Trial(tempfile::TempDir);

    impl Trial {
        fn file(&self, name: &str, text: &str) -> Remembered {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            let (handle, metadata) = open(&path).unwrap();
            let fingerprint = Fingerprint { head: head(&handle).unwrap(), ..Fingerprint::default() };
            Remembered { id: 5, path, dev: metadata.dev(), inode: metadata.ino(), fingerprint, offset: 2 }
        }

        fn positions(&self) -> FlumePositions {
            FlumePositions::new(self.0.path().join("below/positions"))
        }

        fn text(&self) -> String {
            fs::read_to_string(self.positions().path()).unwrap()
        }
    }

    fn entry(file: &Remembered, pos: u64) -> String {
        format!(r#"{{"inode":{},"pos":{pos},"file":"{}"}}"#, file.inode, file.path.display())
    }

    #[test]
    fn sources_share_a_file_and_forget_what_is_gone() {
        let trial = Trial(tempfile::tempdir().unwrap());
        let (a, b) = (trial.file("a", "one\ntwo\n"), trial.file("b", "three\n"));
        let gone = trial.file("gone", "four\n");
        fs::remove_file(&gone.path).unwrap();
        let (mut first, mut second) = (trial.positions(), trial.positions());
        first.write([&gone, &a].into_iter(), |path| path.ends_with("a"));
        assert_eq!(trial.text(), format!("[\n{}]\n", entry(&a, 2)));
        second.write([&b].into_iter(), |path| path.ends_with("b"));
        assert_eq!(trial.text(), format!("[\n{},\n{}]\n", entry(&a, 2), entry(&b, 2)));
        let moved = Remembered { offset: 4, ..a.clone() };
        first.write([&moved].into_iter(), |path| path.ends_with("a"));
        assert_eq!(trial.text(), format!("[\n{},\n{}]\n", entry(&b, 2), entry(&a, 4)));
        // What has not changed is not written again.
        fs::remove_file(first.path()).unwrap();
        first.write([&moved].into_iter(), |path| path.ends_with("a"));
        assert!(!first.path().exists());
    }

    #[test]
    fn flumes_positions_count_where_flume_wrote_last_and_read_further() {
        let trial = Trial(tempfile::tempdir().unwrap());
        let a = trial.file("a", "one\ntwo\n");
        let mut positions = trial.positions();
        assert_eq!(positions.found(None).unwrap(), []);
        positions.write([&Remembered { offset: 8, ..a.clone() }].into_iter(), |_| true);
        // Ours: only for those who have nothing else.
        assert_eq!(positions.found(Some(std::slice::from_ref(&a))).unwrap(), []);
        assert_eq!(positions.found(None).unwrap()[0].offset, 8);
        let flume = |pos| fs::write(trial.positions().path(), format!("[{}]", entry(&a, pos))).unwrap();
        flume(8);
        let found = positions.found(Some(std::slice::from_ref(&a))).unwrap();
        assert_eq!(found.iter().map(|file| (file.id, file.offset)).collect::<Vec<_>>(), [(5, 8)]);
        flume(1);
        assert_eq!(positions.found(Some(std::slice::from_ref(&a))).unwrap(), []);
        // Another content than the one we knew: Flume knows better.
        fs::write(&a.path, "six\nseven\n").unwrap();
        flume(4);
        let found = positions.found(Some(std::slice::from_ref(&a))).unwrap();
        assert_eq!((found[0].offset, found[0].id == 5), (4, false));
        fs::write(trial.positions().path(), "{").unwrap();
        assert!(positions.found(None).is_err());
    }
}
