//! The tail engine: finds files, follows each of them over every kind of rotation, and remembers what was delivered.
//!
//! | what happens to the file | what the engine does |
//! |---|---|
//! | renamed, a new one in its place | reads the old one to its end and `rotate_wait` longer, the new one from its beginning |
//! | emptied in place (copytruncate), also grown again past the old position | reads the new content from its beginning, as another file; what it had not read of the old one, in the copy, if its name begins with the file's |
//! | deleted | reads on through the open handle for `rotate_wait`; a new file of that name is read from its beginning |
//! | inode used again by another file | the fingerprint differs: another file |
//! | symlink points elsewhere | as renamed |
//! | `tail -F` only: made and rotated away while no collector ran | found beside the file as `FILE.1`, `FILE-20260102` and the like when it was written later than the last remembered file; read from its beginning, oldest first |
//! | `tail -F` only: made and rotated away between two looks (the process stood still) | the same, when it was made after the look before |
//! | last line without newline | waits for the rest; when the file is rotated away or emptied it is a line |
//!
//! Synchronous: it is driven by one thread, and tests drive it step by step. Positions are saved by [`Engine::save`], over
//! what the [`Ledger`] says is delivered, and once before the first line of a new file is read, so that the file's id is
//! known for ever after. While they cannot be saved, known files are read on and new ones wait.
//!
//! At most `handles_max` files are open: beyond that, those that were of no use the longest are closed until they grow.

mod away;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs, io,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::Forgotten;
use super::find::{Find, Listed};
use super::identity::{Checksum, Inode, Remembered, TailedFile, head};
use super::reader::{Chunk, Read, Reader, open};
use super::store::Store;
use crate::event::{Headers, Ledger, Mark};

/// What is known from before, besides what the store holds.
#[derive(Default)]
pub struct Earlier {
    /// Positions that were found elsewhere (the positions topic, Flume's position file); the furthest one counts.
    pub known: Vec<Remembered>,
    /// What the source's very first look found; it counts where nothing was ever saved.
    pub first: Vec<Remembered>,
    /// Where files that are through are told, if somebody else keeps their positions too.
    pub forgotten: Option<Forgotten>,
}

pub struct Settings {
    pub find: Find,
    pub line_bytes_max: usize,
    /// How long a file that lost its name is still watched for more.
    pub rotate_wait: Duration,
    /// After this time without growth an unterminated last line is a line (Flume's TAILDIR). `None`: it waits.
    pub partial_wait: Option<Duration>,
    /// How often names are looked at.
    pub scan_interval: Duration,
    /// Very many files cost time even while nothing comes: looking at all of them takes the [`LOOK_SHARE`]th part of a core's
    /// time at most, unless they are looked at as seldom as this already. What a directory says has changed is looked at
    /// at once.
    pub look_pause_max: Duration,
    /// Header that takes the file's path.
    pub path_header: Option<String>,
    /// Files open at a time.
    pub handles_max: usize,
}

const LOOK_SHARE: u32 = 300;
/// More files than that are not rotated between two looks.
const CLOSED_MAX: usize = 100;

/// Between tries to save positions while that fails.
const SAVE_BACKOFF_MIN: Duration = Duration::from_millis(100);
const SAVE_BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A file that is away for so long is said to be waited for; a rotation takes less.
const ABSENT_MAX: Duration = Duration::from_secs(10);

/// A name that is meant.
struct Target {
    path: PathBuf,
    headers: Headers,
    /// Where the directory told it.
    inode: Option<Inode>,
}

pub struct Engine {
    settings: Settings,
    store: Store,
    ledger: Arc<Ledger>,
    open: Vec<Reader>,
    /// What is saved: open files, and closed ones whose last lines are still on their way.
    positions: BTreeMap<u64, Remembered>,
    /// Remembered from before and not found yet, by inode.
    sought: BTreeMap<u64, Vec<Remembered>>,
    /// By id: what was found elsewhere of files that the store has further on.
    second: HashMap<u64, Remembered>,
    /// Ids of what the store held at the start, and of what was saved since.
    on_disk: HashSet<u64>,
    /// Read to their end and delivered. Kept until their positions are gone elsewhere too: what is forgotten here and known
    /// there, or the other way round, would be read again or stay for ever.
    through: BTreeMap<u64, Remembered>,
    /// Those of `through` that were told.
    told_through: HashSet<u64>,
    forgotten: Option<Forgotten>,
    scanned_at: Option<Instant>,
    /// The same by the clock of file times, and the CPU time that it took.
    scanned: (SystemTime, Duration),
    /// When all files were last found without news, and the CPU time that it took.
    looked: Option<(Instant, Duration)>,
    /// Whose turn it is: a busy file does not keep the others waiting.
    turn: usize,
    /// Files that may be opened before handles are counted again.
    spare_handles: usize,
    /// Unterminated last lines of contents that were replaced while nothing could be read.
    waiting: VecDeque<Chunk>,
    /// New files whose ids are not on disk yet.
    unsaved: HashSet<u64>,
    /// Ids that the first look gave: files that are new rather than found again.
    new: HashSet<u64>,
    /// Rotated files that were read last, with their times of birth: nobody is to find them again.
    closed: VecDeque<(Inode, SystemTime)>,
    /// There may be files among the open ones that lost their names.
    rotated: bool,
    /// When the file was first seen to be away.
    absent_since: Option<Instant>,
    /// Told once each.
    troubles: BTreeMap<PathBuf, String>,
    /// Why positions are not saved, when the next try is, and how long the one after that waits.
    save_trouble: Option<(String, Instant, Duration)>,
    /// The process had no file handle left in the last look.
    starved: bool,
    failures: u64,
}

impl Engine {
    pub fn new(settings: Settings, store: Store, earlier: Earlier, ledger: Arc<Ledger>) -> Self {
        let Earlier { known, first, forgotten } = earlier;
        let mut sought: BTreeMap<u64, Remembered> = store.saved().unwrap_or_default().iter().map(|file| (file.id, file.clone())).collect();
        let on_disk = sought.keys().copied().collect();
        let mut second = HashMap::new();
        for other in known {
            match sought.get_mut(&other.id) {
                Some(file) if file.offset < other.offset => *file = other,
                Some(_) => {
                    second.insert(other.id, other);
                }
                // Another source's files may be among them.
                None if settings.find.owns(&other.path) => {
                    sought.insert(other.id, other);
                }
                None => {}
            }
        }
        let mut new = HashSet::new();
        if sought.is_empty() && store.saved().is_none() {
            new.extend(first.iter().map(|file| file.id));
            sought.extend(first.into_iter().map(|file| (file.id, file)));
        }
        Self {
            settings,
            store,
            ledger,
            open: Vec::new(),
            positions: BTreeMap::new(),
            sought: by_inode(sought.into_values()),
            second,
            on_disk,
            through: BTreeMap::new(),
            told_through: HashSet::new(),
            forgotten,
            scanned_at: None,
            scanned: (SystemTime::UNIX_EPOCH, Duration::ZERO),
            looked: None,
            turn: 0,
            spare_handles: 0,
            waiting: VecDeque::new(),
            unsaved: HashSet::new(),
            new,
            closed: VecDeque::new(),
            rotated: false,
            absent_since: None,
            troubles: BTreeMap::new(),
            save_trouble: None,
            starved: false,
            failures: 0,
        }
    }

    /// The next lines of any file; `None` when there are none now.
    pub fn next_chunk(&mut self) -> Option<Chunk> {
        if self.scan_is_due() {
            self.scan();
        }
        self.waiting.pop_front().or_else(|| self.read_round()).or_else(|| self.close_finished())
    }

    /// To be called while lines wait for room: files that come and go meanwhile are opened, so that they are read later.
    pub fn keep_up(&mut self) {
        if self.scanned_at.is_some_and(|at| at.elapsed() < self.settings.scan_interval) {
            return;
        }
        for at in 0..self.open.len() {
            match self.look_at(at) {
                Ok(rest) => self.waiting.extend(rest),
                Err(error) => {
                    let path = self.open[at].file.path();
                    self.io_trouble(&path, "cannot read: ", &error);
                }
            }
        }
        self.scan();
    }

    fn look_at(&mut self, at: usize) -> io::Result<Option<Chunk>> {
        self.look_back(at)?;
        if self.open[at].is_replaced()? { self.replace(at) } else { Ok(None) }
    }

    /// Many names cost time: they are all looked at only as often as takes [`LOOK_SHARE`], and when a directory has changed.
    fn scan_is_due(&self) -> bool {
        let Some(at) = self.scanned_at else { return true };
        let (clock, took) = self.scanned;
        let since = at.elapsed();
        since >= self.settings.scan_interval && (since >= self.pause_after(took) || self.settings.find.may_have_changed(clock))
    }

    /// How long there is nothing to look at, where looking costs much.
    pub fn rest(&self) -> Duration {
        self.looked.map_or(Duration::ZERO, |(at, took)| self.pause_after(took).saturating_sub(at.elapsed()))
    }

    fn pause_after(&self, took: Duration) -> Duration {
        (took * LOOK_SHARE).min(self.settings.look_pause_max)
    }

    /// [`Self::save`], unless it failed a moment ago.
    pub fn save_when_possible(&mut self) -> bool {
        if self.save_trouble.as_ref().is_some_and(|(_, again, _)| Instant::now() < *again) {
            return false;
        }
        self.save().is_ok()
    }

    /// Saves what has been delivered since the last call.
    pub fn save(&mut self) -> io::Result<()> {
        let saved = self.try_save();
        match &saved {
            Ok(()) => {
                if self.save_trouble.take().is_some() {
                    tracing::info!(directory = %self.store.directory().display(), "positions are saved again");
                }
            }
            Err(error) => {
                self.failures += 1;
                let wait = match &self.save_trouble {
                    Some((_, _, wait)) => (*wait * 2).min(SAVE_BACKOFF_MAX),
                    None => SAVE_BACKOFF_MIN,
                };
                let what = format!("positions cannot be saved in {}: {error}", self.store.directory().display());
                if self.save_trouble.is_none() {
                    tracing::warn!(error = what, "known files are read on, new ones wait; trying again until it works");
                }
                self.save_trouble = Some((what, Instant::now() + wait, wait));
            }
        }
        saved
    }

    fn try_save(&mut self) -> io::Result<()> {
        let open: HashMap<u64, usize> = self.open.iter().enumerate().rev().map(|(at, reader)| (reader.file.id, at)).collect();
        for (id, mark) in self.ledger.advance() {
            if let Some(at) = open.get(&id) {
                self.positions.insert(id, self.open[*at].file.remember(mark));
            } else if let Some(position) = self.positions.get_mut(&id) {
                *position = position.at(mark);
            }
        }
        // Of a young file more is known now, and a file may have another name.
        for reader in &self.open {
            if let Some(position) = self.positions.get_mut(&reader.file.id) {
                *position = reader.file.remember(Mark { offset: position.offset, tail: position.fingerprint.tail });
            }
        }
        let held = self.ledger.held();
        let through = self.positions.extract_if(.., |id, _| !open.contains_key(id) && !held.contains(id));
        match &self.forgotten {
            Some(forgotten) => {
                self.through.extend(through);
                let waiting = forgotten.lock();
                self.through.retain(|id, _| !self.told_through.contains(id) || waiting.contains(id));
            }
            None => through.for_each(drop),
        }
        let mut files: Vec<Remembered> =
            self.positions.values().chain(self.sought.values().flatten()).chain(self.through.values()).cloned().collect();
        files.sort_by_key(|file| file.id);
        let ids = files.iter().map(|file| file.id).collect();
        self.store.save(files)?;
        self.on_disk = ids;
        self.unsaved.clear();
        if let Some(forgotten) = &self.forgotten {
            // Only now: their last positions are on disk.
            let new = self.through.keys().filter(|id| !self.told_through.contains(id));
            forgotten.lock().extend(new);
            self.told_through = self.through.keys().copied().collect();
        }
        Ok(())
    }

    /// Could a file that was at `path` be one of these?
    pub fn owns(&self, path: &Path) -> bool {
        self.settings.find.owns(path)
    }

    /// Files followed now.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }

    /// File handles in use.
    pub fn handles(&self) -> usize {
        self.open.iter().filter(|reader| reader.is_open()).count()
    }

    /// Bytes that are in the files and not read yet.
    pub fn unread_bytes(&self) -> u64 {
        self.open.iter().map(Reader::unread).sum()
    }

    /// What is remembered of each file, delivered positions included.
    pub fn positions(&self) -> impl Iterator<Item = &Remembered> {
        self.positions.values()
    }

    fn read_round(&mut self) -> Option<Chunk> {
        // What a rotated file still holds was written before what its successor holds.
        let most = if self.rotated { self.open.len() } else { 0 };
        for at in 0..most {
            if self.open[at].rotated_at.is_some()
                && let Some(chunk) = self.read_one(at)
            {
                return Some(chunk);
            }
        }
        if self.looked.is_some_and(|(at, took)| at.elapsed() < self.pause_after(took)) {
            return None;
        }
        let spent = cpu_time();
        for _ in 0..self.open.len() {
            self.turn = (self.turn + 1) % self.open.len();
            if let Some(chunk) = self.read_one(self.turn) {
                self.looked = None;
                return Some(chunk);
            }
        }
        self.looked = Some((Instant::now(), cpu_time().saturating_sub(spent)));
        None
    }

    fn read_one(&mut self, at: usize) -> Option<Chunk> {
        match self.try_read(at) {
            Ok(chunk) => {
                if !self.troubles.is_empty() {
                    let path = self.open[at].file.path();
                    self.troubles.remove(&path);
                }
                chunk
            }
            Err(error) => {
                let path = self.open[at].file.path();
                self.io_trouble(&path, "cannot read: ", &error);
                None
            }
        }
    }

    fn try_read(&mut self, at: usize) -> io::Result<Option<Chunk>> {
        if !self.open[at].is_open() {
            if !self.open[at].has_news()? {
                return Ok(self.stale_partial(at));
            }
            self.make_room();
            if let Err(error) = self.open[at].reopen() {
                if !(is_starved(&error) && self.close_quarter()) {
                    return Err(error);
                }
                self.open[at].reopen()?;
            }
        }
        if self.look_back(at)? {
            return Ok(None);
        }
        let line_bytes_max = self.settings.line_bytes_max;
        // Twice: where the content was replaced, the new one is read at once.
        for _ in 0..2 {
            if self.unsaved.contains(&self.open[at].file.id) && !self.save_when_possible() {
                return Ok(None);
            }
            match self.open[at].read(line_bytes_max)? {
                Read::Lines(chunk) => return Ok(Some(chunk)),
                Read::Idle => return Ok(self.stale_partial(at)),
                Read::Replaced => {
                    let rest = self.replace(at)?;
                    if rest.is_some() {
                        return Ok(rest);
                    }
                }
            }
        }
        Ok(None)
    }

    fn stale_partial(&mut self, at: usize) -> Option<Chunk> {
        let reader = &mut self.open[at];
        let stale = self.settings.partial_wait.is_some_and(|wait| reader.has_stale_partial(wait));
        if stale { reader.take_partial() } else { None }
    }

    /// The file at `at` holds another content: it is another file from here on. Gives what waited of the old one's last line.
    fn replace(&mut self, at: usize) -> io::Result<Option<Chunk>> {
        let reader = &self.open[at];
        let path = reader.file.path();
        let (known_at, now) = (reader.known_at(), SystemTime::now());
        let (inode, head) = (reader.inode, reader.head()?);
        tracing::info!(file = %path.display(), "file was emptied; its new content is read from the beginning");
        let file = self.mint(&path, inode, head, 0);
        let copy = self.copy_of(at);
        let rest = if copy.is_some() { None } else { self.open[at].take_partial() };
        // The old content's position is kept until what was read of it is delivered: there may be a copy.
        self.open[at].emptied(file, now);
        self.open.extend(copy);
        self.find_passed(known_at);
        self.rotated = true;
        Ok(rest)
    }

    /// Closes files until another one may be opened.
    fn make_room(&mut self) {
        // Counting goes over all files: not for each that is opened.
        if self.spare_handles == 0 {
            let most = self.settings.handles_max.max(1);
            let surplus = (self.handles() + 1).saturating_sub(most);
            if surplus > 0 {
                self.close_some(surplus.max(most / 4));
            }
            self.spare_handles = most.saturating_sub(self.handles()).max(1);
        }
        self.spare_handles -= 1;
    }

    /// Closes so many files that were of no use the longest; one without a name could not be opened again.
    fn close_some(&mut self, count: usize) -> bool {
        let mut able: Vec<&mut Reader> = self.open.iter_mut().filter(|reader| reader.is_open() && reader.rotated_at.is_none()).collect();
        if count < able.len() {
            able.select_nth_unstable_by_key(count, |reader| reader.used_at);
        }
        let closed = able.into_iter().take(count).map(Reader::close).count();
        closed > 0
    }

    /// The process has no handle left, whatever this engine may have.
    fn close_quarter(&mut self) -> bool {
        self.close_some((self.handles() / 4).max(1))
    }

    fn open(&mut self, path: &Path) -> io::Result<(fs::File, fs::Metadata)> {
        self.make_room();
        match open(path) {
            Err(error) if is_starved(&error) && self.close_quarter() => open(path),
            opened => opened,
        }
    }

    fn mint(&mut self, path: &Path, inode: Inode, head: Checksum, offset: u64) -> Arc<TailedFile> {
        let file = Arc::new(TailedFile::new(rand::random(), path.to_owned(), inode, head));
        let remembered = file.remember(Mark { offset, tail: Checksum::default() });
        self.positions.insert(file.id, remembered);
        self.unsaved.insert(file.id);
        file
    }

    /// Looks at every name, and how long that takes.
    fn scan(&mut self) {
        let (clock, spent, open) = (SystemTime::now(), cpu_time(), self.open.len());
        self.scan_names();
        self.scanned = (clock, cpu_time().saturating_sub(spent));
        self.rotated = self.open.iter().any(|reader| reader.rotated_at.is_some());
        if self.open.len() != open {
            self.looked = None;
        }
    }

    /// New files, renamed ones, names that mean another file now.
    fn scan_names(&mut self) {
        let first = self.scanned_at.is_none();
        // What is known by no byte of its content says nothing about the file that is there now.
        let known =
            |sought: &BTreeMap<u64, Vec<Remembered>>| sought.values().flatten().filter(|file| file.fingerprint.head.bytes > 0).count();
        let sought = known(&self.sought);
        self.scanned_at = Some(Instant::now());
        let starved = std::mem::take(&mut self.starved);
        let mut seen = HashSet::new();
        let mut open: HashMap<Inode, usize> = self.open.iter().enumerate().map(|(at, reader)| (reader.inode, at)).collect();
        for Target { path, headers, inode } in self.targets(&open) {
            let inode = match inode.map_or_else(|| fs::metadata(&path).map(|metadata| Inode::from(&metadata)), Ok) {
                Ok(inode) => inode,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if matches!(self.settings.find, Find::Path(_)) {
                        self.absent(&path, first);
                    }
                    continue;
                }
                Err(error) => {
                    self.io_trouble(&path, "", &error);
                    continue;
                }
            };
            if let Some(&at) = open.get(&inode) {
                self.open[at].rotated_at = None;
                self.open[at].file.renamed(&path);
                seen.insert(inode);
                self.is_there(&path);
                continue;
            }
            match self.adopt(&path, headers) {
                Ok(inode) => {
                    self.is_there(&path);
                    seen.insert(inode);
                    open.insert(inode, self.open.len() - 1);
                }
                Err(error) => self.io_trouble(&path, "", &error),
            }
        }
        if starved && !self.starved {
            tracing::info!("there are file handles again");
        } else if self.starved && !starved {
            tracing::warn!(
                open = self.handles(),
                "too many open files in this process; those that cannot be opened wait. Raise the limit (ulimit -n)"
            );
        }
        if first {
            // Nothing lies between the last file and the current one where they are the same.
            let in_place = known(&self.sought) < sought;
            self.find_rotated(&mut seen);
            if let (false, Find::Path(path)) = (in_place, &self.settings.find) {
                let path = path.clone();
                self.find_missed(&path, &seen);
            }
            // Rotated files are older than what has their names now.
            self.open.sort_by_cached_key(|reader| (reader.rotated_at.is_none(), reader.modified()));
        }
        let rotated = !first && self.open.iter().any(|reader| !seen.contains(&reader.inode) && reader.rotated_at.is_none());
        let mut listed = Listed::default();
        for reader in &mut self.open {
            if !seen.contains(&reader.inode) && reader.rotated_at.is_none() {
                tracing::info!(file = %reader.file.path().display(), "file was rotated away; reading it to its end");
                reader.rotated_at = Some(Instant::now());
                // A closed one is opened by its name when it has grown.
                if !reader.is_open()
                    && let Some(path) = listed.name_of(&reader.file.path(), reader.inode)
                {
                    reader.file.renamed(&path);
                }
            }
        }
        if rotated {
            self.find_passed(self.scanned.0);
        }
        if !self.unsaved.is_empty() {
            self.save_when_possible();
        }
    }

    fn is_there(&mut self, path: &Path) {
        self.absent_since = None;
        self.troubles.remove(path);
    }

    fn absent(&mut self, path: &Path, at_start: bool) {
        let since = *self.absent_since.get_or_insert_with(Instant::now);
        if (at_start || since.elapsed() >= ABSENT_MAX) && !self.troubles.contains_key(path) {
            tracing::warn!(file = %path.display(), "file is not there; waiting for it to appear");
            self.troubles.insert(path.to_owned(), format!("waiting for {} to appear", path.display()));
        }
    }

    /// Every name that is meant; those of new files oldest first, as their lines were written. Of a name that a directory says to
    /// be a file that is followed already, nothing more is asked: with very many files that is what looking costs.
    fn targets(&mut self, open: &HashMap<Inode, usize>) -> Vec<Target> {
        let groups = match &self.settings.find {
            Find::Path(path) => return vec![Target { path: path.clone(), headers: None, inode: None }],
            Find::Groups(groups) => groups,
        };
        let (mut known, mut new, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let directory = fs::metadata(&group.directory).and_then(|metadata| Ok((metadata.dev(), fs::read_dir(&group.directory)?)));
            let (device, entries) = match directory {
                Ok(directory) => directory,
                Err(error) => {
                    faults.push((group.directory.clone(), error));
                    continue;
                }
            };
            self.troubles.remove(&group.directory);
            for entry in entries.flatten().filter(|entry| group.matches(&entry.file_name())) {
                let inode = Inode { device, number: entry.ino() };
                let (path, headers) = (entry.path(), group.headers.clone());
                // A link has an inode of its own.
                if open.contains_key(&inode) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    known.push(Target { path, headers, inode: Some(inode) });
                } else if let Ok(metadata) = fs::metadata(&path)
                    && metadata.is_file()
                {
                    new.push((metadata.modified().ok(), Target { path, headers, inode: None }));
                }
            }
        }
        for (directory, fault) in faults {
            self.io_trouble(&directory, "", &fault);
        }
        new.sort_by(|(a_time, a), (b_time, b)| (a_time, &a.path).cmp(&(b_time, &b.path)));
        known.extend(new.into_iter().map(|(_, target)| target));
        known
    }

    /// Opens a file that is not open yet, at its remembered position if it has one.
    fn adopt(&mut self, path: &Path, headers: Headers) -> io::Result<Inode> {
        let headers = match &self.settings.path_header {
            Some(name) => {
                let mut all = headers.as_deref().cloned().unwrap_or_default();
                all.insert(name.clone(), path.display().to_string());
                Some(Arc::new(all))
            }
            None => headers,
        };
        let (handle, metadata) = self.open(path)?;
        let inode = Inode::from(&metadata);
        if let Some(remembered) = self.remembered(&handle, &metadata, path)? {
            self.resume(remembered, path, headers, handle, inode)?;
            return Ok(inode);
        }
        let file = self.mint(path, inode, head(&handle)?, 0);
        tracing::info!(file = %path.display(), "new file");
        self.open.push(Reader::new(file, inode, headers, handle, 0)?);
        Ok(inode)
    }

    fn resume(&mut self, remembered: Remembered, path: &Path, headers: Headers, handle: fs::File, inode: Inode) -> io::Result<()> {
        if self.new.remove(&remembered.id) {
            tracing::info!(file = %path.display(), from = remembered.offset, "new file");
        } else {
            tracing::info!(file = %path.display(), from = remembered.offset, "file found again");
        }
        let file = Arc::new(TailedFile::new(remembered.id, path.to_owned(), inode, head(&handle)?));
        let mark = Mark { offset: remembered.offset, tail: remembered.fingerprint.tail };
        self.positions.insert(file.id, file.remember(mark));
        if !self.on_disk.contains(&file.id) {
            self.unsaved.insert(file.id);
        }
        self.open.push(Reader::new(file, inode, headers, handle, remembered.offset)?);
        Ok(())
    }

    /// Takes this file out of `sought`; the furthest one if there are several.
    fn remembered(&mut self, handle: &fs::File, metadata: &fs::Metadata, path: &Path) -> io::Result<Option<Remembered>> {
        let Some(near) = self.sought.get_mut(&metadata.ino()) else { return Ok(None) };
        let mut best: Option<usize> = None;
        for at in 0..near.len() {
            let mut fits = near[at].is(handle, metadata, path)?;
            if !fits && near[at].begins(handle, metadata, path)? {
                let wrong = near[at].offset;
                // The same content, and not its position: damaged, or the file was cut while nobody watched.
                if let Some(second) = self.second.get(&near[at].id)
                    && second.is(handle, metadata, path)?
                {
                    tracing::warn!(file = %path.display(), remembered = wrong, from = second.offset, length = metadata.len(), "the remembered position does not fit the file; the sink's own counts");
                    near[at] = second.clone();
                    fits = true;
                } else if wrong > metadata.len() {
                    tracing::warn!(file = %path.display(), remembered = wrong, length = metadata.len(), "the remembered position is beyond the file's end: the file was cut while it was not watched, or the position is damaged; it is read from its beginning, and lines may come again");
                }
            }
            if fits && best.is_none_or(|best| near[best].offset < near[at].offset) {
                best = Some(at);
            }
        }
        let found = best.map(|at| near.swap_remove(at));
        if near.is_empty() {
            self.sought.remove(&metadata.ino());
        }
        Ok(found)
    }

    /// Closes files that lost their name and have nothing more to say; gives an unterminated last line first.
    fn close_finished(&mut self) -> Option<Chunk> {
        if !self.rotated {
            return None;
        }
        let wait = self.settings.rotate_wait;
        let (mut rest, mut finished) = (None, HashSet::new());
        for at in 0..self.open.len() {
            if !(self.open[at].is_finished(wait) && self.open[at].unread() == 0) {
                continue;
            }
            // It may hold lines that nobody could be given yet.
            if self.unsaved.contains(&self.open[at].file.id) && !self.save_when_possible() {
                break;
            }
            rest = self.open[at].take_partial();
            if rest.is_some() {
                break;
            }
            finished.insert(at);
        }
        if finished.is_empty() {
            return rest;
        }
        let mut at = 0;
        let gone = self.open.extract_if(.., |_| {
            at += 1;
            finished.contains(&(at - 1))
        });
        for reader in gone {
            self.closed.extend(reader.created().map(|created| (reader.inode, created)));
            tracing::info!(file = %reader.file.path().display(), "rotated file is read to its end and closed");
        }
        self.turn = 0;
        self.closed.drain(..self.closed.len().saturating_sub(CLOSED_MAX));
        rest
    }

    fn io_trouble(&mut self, path: &Path, doing: &str, error: &io::Error) {
        self.failures += 1;
        if is_starved(error) {
            self.starved = true;
            return;
        }
        let what = format!("{}: {doing}{error}", path.display());
        if self.troubles.get(path) != Some(&what) {
            tracing::warn!(error = what, "cannot tail; trying again");
            self.troubles.insert(path.to_owned(), what);
        }
    }

    /// What has not gone away: the first of it.
    pub fn in_trouble(&self) -> Option<String> {
        let starved = || self.starved.then(|| "too many open files in this process; raise the limit (ulimit -n)".to_owned());
        let saving = self.save_trouble.as_ref().map(|(what, ..)| what.clone());
        saving.or_else(starved).or_else(|| self.troubles.values().next().cloned())
    }

    /// Failed tries to read or save since the last call.
    pub fn take_failures(&mut self) -> u64 {
        std::mem::take(&mut self.failures)
    }
}

pub(super) fn by_inode(files: impl IntoIterator<Item = Remembered>) -> BTreeMap<u64, Vec<Remembered>> {
    let mut sorted: BTreeMap<u64, Vec<Remembered>> = BTreeMap::new();
    for file in files {
        sorted.entry(file.inode).or_default().push(file);
    }
    sorted
}

/// CPU time of this thread: what it waits for a disk, or for its turn, costs nobody else anything.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// No handle left, in the process or in the system.
fn is_starved(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
