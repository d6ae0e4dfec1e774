//! Which file is read next, and what becomes of it when it is through.
//!
//! A file is picked up, read to its end, and completed (renamed, deleted, or noted in the tracker directory) when its last
//! event is delivered; meanwhile the next ones are read. A file that breaks the rules (changed after it was picked up,
//! not readable as text, its completed name taken) is set aside: it stays where it is, is told, remembered, and not read
//! again until it is another file or has another name. Flume stops the whole source there.
//!
//! Synchronous, driven by one thread; tests drive it step by step.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::read::{Fault, Piece, Reader};
use crate::event::{Headers, Ledger, Mark};
use crate::java_regex::JavaRegex;
use crate::source::tail::{
    Forgotten,
    identity::{Checksum, Inode, Remembered, TAIL_BYTES_MAX, TailedFile, head},
    reader::open,
    store::{Store, file_name, write_atomically},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Oldest,
    Youngest,
    Random,
}

/// What completes a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complete {
    Rename,
    Delete,
    /// An empty file of its name in this directory.
    Track(PathBuf),
}

/// Opens a file's events from an offset on; the length is what it had when it was picked up.
pub type OpenReader = Box<dyn Fn(Arc<fs::File>, u64, u64) -> Result<Box<dyn Reader>, Fault> + Send>;

pub struct Settings {
    pub directory: PathBuf,
    pub recursive: bool,
    pub suffix: String,
    pub include: JavaRegex,
    pub ignore: JavaRegex,
    pub order: Order,
    pub complete: Complete,
    pub path_header: Option<String>,
    pub name_header: Option<String>,
    pub poll: Duration,
    pub open: OpenReader,
    /// As Flume: what breaks the rules ends the source.
    pub strict: bool,
}

/// Events of one file.
pub struct Batch {
    pub file: Arc<TailedFile>,
    pub headers: Headers,
    pub pieces: Vec<Piece>,
    /// At the end of the last piece.
    pub mark: Mark,
}

/// A file that was picked up.
struct Picked {
    file: Arc<TailedFile>,
    path: PathBuf,
    inode: Inode,
    length: u64,
    modified: Option<SystemTime>,
}

impl Picked {
    /// Why it is not the file any more that it was; `Ok(false)` when it is gone.
    fn is_unchanged(&self) -> Result<bool, String> {
        match fs::metadata(&self.path) {
            Ok(now) if now.len() != self.length => {
                Err(format!("it has changed from {} to {} bytes since it was picked up", self.length, now.len()))
            }
            Ok(now) if now.modified().ok() != self.modified => Err("it has been written to since it was picked up".into()),
            Ok(now) if Inode::from(&now) != self.inode => Err("another file has taken its name since it was picked up".into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct Current {
    picked: Picked,
    handle: Arc<fs::File>,
    reader: Box<dyn Reader>,
    headers: Headers,
    /// Nothing of it was ever given out.
    fresh: bool,
}

/// A file that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Aside {
    path: PathBuf,
    dev: u64,
    inode: u64,
    why: String,
}

pub struct Engine {
    settings: Settings,
    store: Store,
    ledger: Arc<Ledger>,
    forgotten: Option<Forgotten>,
    /// Remembered from before and not picked up yet.
    sought: Vec<Remembered>,
    current: Option<Current>,
    /// Read to their end, and not delivered yet.
    ending: VecDeque<Picked>,
    /// What is delivered of the files that are picked up.
    positions: BTreeMap<u64, Remembered>,
    /// To be picked up next.
    listed: VecDeque<PathBuf>,
    listed_at: Option<Instant>,
    aside: Vec<Aside>,
    aside_path: PathBuf,
    /// What could not be done now and is tried again.
    trouble: Option<String>,
    /// Set aside since the last question.
    faults: u64,
}

impl Engine {
    /// `known`: positions found elsewhere, perhaps of other sources too.
    pub fn new(
        settings: Settings,
        store: Store,
        state: (&Path, &str),
        known: Vec<Remembered>,
        forgotten: Option<Forgotten>,
        ledger: Arc<Ledger>,
    ) -> io::Result<Self> {
        let mut sought = store.saved().unwrap_or_default().to_vec();
        for other in known.into_iter().filter(|other| other.path.starts_with(&settings.directory)) {
            match sought.iter_mut().find(|file| file.id == other.id) {
                Some(file) if file.offset < other.offset => *file = other,
                Some(_) => {}
                None => sought.push(other),
            }
        }
        let aside_path = state.0.join(format!("{}.aside.json", file_name(state.1)));
        let aside = match fs::read(&aside_path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::other(format!("{}: {error}; remove it to have those files read again", aside_path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            settings,
            store,
            ledger,
            forgotten,
            sought,
            current: None,
            ending: VecDeque::new(),
            positions: BTreeMap::new(),
            listed: VecDeque::new(),
            listed_at: None,
            aside,
            aside_path,
            trouble: None,
            faults: 0,
        })
    }

    /// Can files be read here, and completed?
    pub fn check_directory(&self) -> io::Result<()> {
        let Settings { directory, complete, .. } = &self.settings;
        fs::read_dir(directory).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?;
        match complete {
            Complete::Track(tracker) => {
                fs::create_dir_all(tracker).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", tracker.display())))
            }
            Complete::Rename | Complete::Delete => {
                let canary = directory.join(format!(".millrace-{:08x}.canary", rand::random::<u32>()));
                let tried = fs::File::create(&canary).and_then(|_| fs::remove_file(&canary));
                tried.map_err(|error| {
                    io::Error::new(error.kind(), format!("files in {} cannot be renamed or deleted: {error}", directory.display()))
                })
            }
        }
    }

    /// The next events of any file; `None` when there are none now.
    pub fn next_batch(&mut self, max: usize, bytes_max: usize) -> anyhow::Result<Option<Batch>> {
        loop {
            self.complete()?;
            if self.current.is_none() && !self.pick_up()? {
                return Ok(None);
            }
            let Some(current) = &mut self.current else { continue };
            match current.reader.read(max, bytes_max) {
                Ok(pieces) if pieces.is_empty() && !current.fresh => {
                    if let Some(current) = self.current.take() {
                        self.ending.push_back(current.picked);
                    }
                }
                Ok(mut pieces) => {
                    if pieces.is_empty() {
                        // A file without events is one empty event, whose headers may say which file that was.
                        pieces.push(Piece { body: bytes::Bytes::new(), end: 0 });
                    }
                    current.fresh = false;
                    let end = pieces.last().map_or(0, |piece| piece.end);
                    let tail = if current.reader.counts_bytes() { tail_before(&current.handle, end)? } else { Checksum::default() };
                    let mark = Mark { offset: end, tail };
                    return Ok(Some(Batch { file: current.picked.file.clone(), headers: current.headers.clone(), pieces, mark }));
                }
                Err(Fault::Io(error)) => {
                    self.trouble = Some(format!("{}: {error}", current.picked.path.display()));
                    tracing::warn!(file = %current.picked.path.display(), %error, "cannot be read; trying again");
                    self.faults += 1;
                    // What was delivered of it is known when it is picked up again.
                    if let Some(current) = self.current.take() {
                        self.give_back(current.picked);
                    }
                    return Ok(None);
                }
                Err(fault) => {
                    if let Some(current) = self.current.take() {
                        self.set_aside(&current.picked, fault.to_string())?;
                    }
                }
            }
        }
    }

    /// Files that are read or wait for their end.
    pub fn busy(&self) -> bool {
        self.current.is_some() || !self.ending.is_empty()
    }

    /// What is wrong now.
    pub fn in_trouble(&self) -> Option<String> {
        let aside = self.aside.first().map(|first| {
            let others = if self.aside.len() > 1 { format!(" (and {} more)", self.aside.len() - 1) } else { String::new() };
            format!("{} is set aside: {}{others}", first.path.display(), first.why)
        });
        self.trouble.clone().or(aside)
    }

    /// Failures since the last call.
    pub fn take_faults(&mut self) -> u64 {
        std::mem::take(&mut self.faults)
    }

    /// Notes what has been delivered since the last call.
    fn note(&mut self) {
        for (id, mark) in self.ledger.advance() {
            let picked = self.current.iter().map(|current| &current.picked).chain(&self.ending).find(|picked| picked.file.id == id);
            if let Some(picked) = picked {
                self.positions.insert(id, picked.file.remember(mark));
            } else if let Some(given_back) = self.sought.iter_mut().find(|file| file.id == id) {
                *given_back = given_back.at(mark);
            }
        }
    }

    /// Notes on disk what has been delivered since the last call.
    pub fn save(&mut self) -> io::Result<()> {
        self.note();
        let mut files: Vec<Remembered> = self.positions.values().chain(&self.sought).cloned().collect();
        files.sort_by_key(|file| file.id);
        self.store.save(files)
    }

    /// Completes the files whose last event is delivered.
    pub fn complete(&mut self) -> anyhow::Result<()> {
        // Deliveries count in the order of reading: behind a file that waits all others wait.
        let mut through = Vec::new();
        while let Some(picked) = self.ending.pop_front_if(|picked| !self.ledger.holds(picked.file.id)) {
            through.push(picked);
        }
        let (mut done, mut directories, mut result) = (Vec::new(), HashSet::new(), Ok(()));
        let mut through = through.into_iter();
        for picked in through.by_ref() {
            let id = picked.file.id;
            match self.complete_one(&picked) {
                Ok(changed) => {
                    directories.extend(changed);
                    done.push(id);
                }
                Err(Incomplete::Later(error)) => {
                    let what = format!("{} is read and cannot be completed: {error}", picked.path.display());
                    if self.trouble.as_ref() != Some(&what) {
                        tracing::warn!(file = %picked.path.display(), error, "read and delivered, but cannot be completed; trying again");
                        self.trouble = Some(what);
                        self.faults += 1;
                    }
                    self.ending.push_back(picked);
                }
                Err(Incomplete::Never(why)) => {
                    result = self.set_aside(&picked, why);
                    if result.is_err() {
                        break;
                    }
                }
            }
        }
        self.ending.extend(through);
        result?;
        if done.is_empty() {
            return Ok(());
        }
        // Before the positions are forgotten: else a power cut could bring the files back, to be read again.
        for directory in directories {
            fs::File::open(&directory)?.sync_all()?;
        }
        self.forget(&done)
    }

    fn forget(&mut self, ids: &[u64]) -> anyhow::Result<()> {
        self.note();
        for id in ids {
            self.positions.remove(id);
        }
        self.save()?;
        if let Some(forgotten) = &self.forgotten {
            forgotten.lock().extend(ids);
        }
        Ok(())
    }

    /// Gives the directory that was changed.
    fn complete_one(&mut self, picked: &Picked) -> Result<Option<PathBuf>, Incomplete> {
        let later = |error: io::Error| Incomplete::Later(error.to_string());
        if !picked.is_unchanged().map_err(Incomplete::Never)? {
            tracing::warn!(file = %picked.path.display(), "all its events are delivered; somebody else has removed it");
            return Ok(None);
        }
        let directory = picked.path.parent().map(Path::to_path_buf);
        let taken = |path: &Path| {
            Incomplete::Never(format!(
                "all its events are delivered, but its completed name {} is taken; file names may not be used again",
                path.display()
            ))
        };
        match &self.settings.complete {
            Complete::Delete => fs::remove_file(&picked.path).map_err(later)?,
            Complete::Rename => {
                let mut completed = picked.path.clone().into_os_string();
                completed.push(&self.settings.suffix);
                let completed = PathBuf::from(completed);
                // Nobody's file is overwritten.
                match rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &picked.path,
                    rustix::fs::CWD,
                    &completed,
                    rustix::fs::RenameFlags::NOREPLACE,
                ) {
                    Ok(()) => {}
                    Err(rustix::io::Errno::EXIST) => return Err(taken(&completed)),
                    // A file system without this kind of rename.
                    Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if completed.exists() => return Err(taken(&completed)),
                    Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(&picked.path, &completed).map_err(later)?,
                    Err(error) => return Err(later(error.into())),
                }
            }
            Complete::Track(_) => {
                let Some(note) = self.note_of(&picked.path) else { return Err(Incomplete::Never("it is not below spoolDir".into())) };
                let parent = note.parent().map(Path::to_path_buf);
                if let Some(parent) = &parent {
                    fs::create_dir_all(parent).map_err(later)?;
                }
                match fs::File::create_new(&note) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(&note)),
                    Err(error) => return Err(later(error)),
                }
                tracing::debug!(file = %picked.path.display(), "file is complete");
                return Ok(parent);
            }
        }
        tracing::info!(file = %picked.path.display(), bytes = picked.length, "file is complete");
        Ok(directory)
    }

    /// The file in the tracker directory that says it is complete.
    fn note_of(&self, path: &Path) -> Option<PathBuf> {
        let Complete::Track(tracker) = &self.settings.complete else { return None };
        let mut relative = path.strip_prefix(&self.settings.directory).ok()?.as_os_str().to_owned();
        relative.push(&self.settings.suffix);
        Some(tracker.join(relative))
    }

    /// What could not be read now is read later, from what is delivered on.
    fn give_back(&mut self, picked: Picked) {
        let known = self.positions.remove(&picked.file.id);
        self.sought.push(known.unwrap_or_else(|| picked.file.remember(Mark { offset: 0, tail: Checksum::default() })));
        self.listed_at = Some(Instant::now());
    }

    fn set_aside(&mut self, picked: &Picked, why: String) -> anyhow::Result<()> {
        self.faults += 1;
        anyhow::ensure!(!self.settings.strict, "{}: {why}", picked.path.display());
        let remedy = "it stays where it is; rename it to have all of it read again, what is delivered already too, or move it away";
        tracing::error!(file = %picked.path.display(), why, remedy, "file is set aside; the others go on");
        self.aside.retain(|aside| aside.path != picked.path);
        self.aside.push(Aside { path: picked.path.clone(), dev: picked.inode.device, inode: picked.inode.number, why });
        self.save_aside()?;
        self.forget(&[picked.file.id])
    }

    fn save_aside(&self) -> io::Result<()> {
        write_atomically(&self.aside_path, &serde_json::to_vec_pretty(&self.aside)?)
    }

    /// Opens the next file; false when there is none.
    fn pick_up(&mut self) -> anyhow::Result<bool> {
        let stale = self.listed_at.is_none_or(|at| at.elapsed() >= self.settings.poll);
        if stale && (self.listed.is_empty() || self.settings.order != Order::Random) {
            self.list()?;
        }
        while let Some(path) = self.listed.pop_front() {
            match self.open(&path) {
                Ok(Some(current)) => {
                    self.current = Some(current);
                    return Ok(true);
                }
                Ok(None) => {}
                Err((picked, Fault::Content(why))) => self.set_aside(&picked, why)?,
                Err((picked, Fault::Io(error))) if error.kind() != io::ErrorKind::NotFound => {
                    let what = format!("{}: {error}", path.display());
                    if self.trouble.as_ref() != Some(&what) {
                        tracing::warn!(file = %path.display(), %error, "cannot be opened; trying again");
                        self.trouble = Some(what);
                        self.faults += 1;
                    }
                    self.positions.remove(&picked.file.id).into_iter().for_each(|known| self.sought.push(known));
                }
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// `None` where the file is through already.
    fn open(&mut self, path: &Path) -> Result<Option<Current>, (Picked, Fault)> {
        let nothing = || Picked {
            file: Arc::new(TailedFile::new(0, path.to_owned(), Inode { device: 0, number: 0 }, Checksum::default())),
            path: path.to_owned(),
            inode: Inode { device: 0, number: 0 },
            length: 0,
            modified: None,
        };
        let opened = open(path).and_then(|(handle, metadata)| Ok((head(&handle)?, handle, metadata)));
        let (head, handle, metadata) = opened.map_err(|error| (nothing(), error.into()))?;
        let inode = Inode::from(&metadata);
        let known = self.sought.iter().position(|known| {
            // Offsets may count events: the length says nothing then.
            let near = known.inode == metadata.ino_number() && (known.dev == inode.device || known.path == path);
            near && known.content_is(&handle).unwrap_or(false)
        });
        let known = known.map(|at| self.sought.swap_remove(at));
        let (id, from) = known.as_ref().map_or_else(|| (rand::random(), 0), |known| (known.id, known.offset));
        let file = Arc::new(TailedFile::new(id, path.to_owned(), inode, head));
        let picked = Picked { file, path: path.to_owned(), inode, length: metadata.len(), modified: metadata.modified().ok() };
        let fresh = known.is_none();
        if let Some(known) = known {
            tracing::info!(file = %path.display(), from, "file is read on");
            self.positions.insert(id, Remembered { path: path.to_owned(), ..known });
        }
        let handle = Arc::new(handle);
        let reader = match (self.settings.open)(handle.clone(), from, picked.length) {
            Ok(reader) => reader,
            Err(fault) => return Err((picked, fault)),
        };
        let mut headers = BTreeMap::new();
        if let Some(name) = &self.settings.path_header {
            headers.insert(name.clone(), path.display().to_string());
        }
        if let (Some(header), Some(name)) = (&self.settings.name_header, path.file_name()) {
            headers.insert(header.clone(), name.to_string_lossy().into_owned());
        }
        headers.extend(reader.header());
        let headers = (!headers.is_empty()).then(|| Arc::new(headers));
        Ok(Some(Current { picked, handle, reader, headers, fresh }))
    }

    /// Lists the directory anew.
    fn list(&mut self) -> anyhow::Result<()> {
        self.listed_at = Some(Instant::now());
        self.trouble = None;
        let mut found = Vec::new();
        if let Err(error) = self.walk(&self.settings.directory, &mut found) {
            let what = format!("{}: {error}", self.settings.directory.display());
            tracing::warn!(error = what, "cannot be listed; trying again");
            self.trouble = Some(what);
            self.faults += 1;
            self.listed.clear();
            return Ok(());
        }
        // Java's `lastModified`; among files of the same moment the name decides.
        let name = |path: &PathBuf| path.file_name().map(std::ffi::OsStr::to_os_string);
        match self.settings.order {
            Order::Oldest => found.sort_by_cached_key(|(path, millis)| (*millis, name(path))),
            Order::Youngest => found.sort_by_cached_key(|(path, millis)| (std::cmp::Reverse(*millis), name(path))),
            Order::Random => {}
        }
        self.listed = found.into_iter().map(|(path, _)| path).collect();
        self.drop_what_is_gone()
    }

    /// Files that were remembered, and are not there any more: completed before a crash, or removed.
    fn drop_what_is_gone(&mut self) -> anyhow::Result<()> {
        if self.aside.is_empty() && self.sought.is_empty() {
            return Ok(());
        }
        let before = self.aside.len();
        self.aside.retain(|aside| {
            fs::metadata(&aside.path).is_ok_and(|now| Inode::from(&now) == Inode { device: aside.dev, number: aside.inode })
        });
        if self.aside.len() != before {
            self.save_aside()?;
        }
        let inodes: HashSet<u64> = self.listed.iter().filter_map(|path| Some(fs::metadata(path).ok()?.ino_number())).collect();
        let listed: HashSet<&PathBuf> = self.listed.iter().collect();
        let (stay, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sought).into_iter().partition(|known| listed.contains(&known.path) || inodes.contains(&known.inode));
        self.sought = stay;
        if gone.is_empty() {
            return Ok(());
        }
        self.forget(&gone.iter().map(|known| known.id).collect::<Vec<_>>())
    }

    fn walk(&self, directory: &Path, found: &mut Vec<(PathBuf, u128)>) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with('.') || self.settings.ignore.find(&name).unwrap_or(true) {
                continue;
            }
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                if self.settings.recursive {
                    self.walk(&path, found)?;
                }
                continue;
            }
            if name.ends_with(&self.settings.suffix) || !self.settings.include.find(&name).unwrap_or(false) || self.is_taken(&path) {
                continue;
            }
            // Gone in this moment, or a link to nowhere or to a directory.
            let Some(metadata) = fs::metadata(&path).ok().filter(fs::Metadata::is_file) else { continue };
            let inode = Inode::from(&metadata);
            let aside = |aside: &Aside| aside.path == path && Inode { device: aside.dev, number: aside.inode } == inode;
            if self.aside.iter().any(aside) {
                continue;
            }
            let modified = metadata.modified().ok().and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
            found.push((path, modified.map_or(0, |modified| modified.as_millis())));
        }
        Ok(())
    }

    /// Is it read now, or complete by the tracker directory?
    fn is_taken(&self, path: &Path) -> bool {
        self.current.iter().map(|current| &current.picked).chain(&self.ending).any(|picked| picked.path == path)
            || self.note_of(path).is_some_and(|note| note.exists())
    }
}

enum Incomplete {
    Later(String),
    Never(String),
}

trait InodeNumber {
    fn ino_number(&self) -> u64;
}

impl InodeNumber for fs::Metadata {
    fn ino_number(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(self)
    }
}

/// Checksum of the bytes before `end`.
fn tail_before(file: &fs::File, end: u64) -> io::Result<Checksum> {
    let mut bytes = vec![0; TAIL_BYTES_MAX.min(usize::try_from(end).unwrap_or(TAIL_BYTES_MAX))];
    let begin = end - bytes.len() as u64;
    let count = super::read::read_at(file, &mut bytes, begin)?;
    // A file that was shortened meanwhile is found out when it is completed.
    Ok(Checksum::of(&bytes[..count]))
}
