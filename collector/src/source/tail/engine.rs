//! The tail engine: finds files, follows each of them over every kind of rotation, and remembers what was delivered.
//!
//! | what happens to the file | what the engine does |
//! |---|---|
//! | renamed, a new one in its place | reads the old one to its end and `rotate_wait` longer, the new one from its beginning |
//! | emptied in place (copytruncate), also grown again past the old position | reads the new content from its beginning, as another file |
//! | deleted | reads on through the open handle for `rotate_wait`; a new file of that name is read from its beginning |
//! | inode used again by another file | the fingerprint differs: another file |
//! | symlink points elsewhere | as renamed |
//! | last line without newline | waits for the rest; when the file is rotated away or emptied it is a line |
//!
//! Synchronous: it is driven by one thread, and tests drive it step by step. Positions are saved by [`Engine::save`], over
//! what the [`Ledger`] says is delivered, and once before the first line of a new file is given out, so that the file's id
//! is known for ever after.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use regex::bytes::Regex;

use super::command::Begin;
use super::identity::{Checksum, Fingerprint, Inode, Remembered, TailedFile, head};
use super::reader::{Chunk, Read, Reader, begin_offset, open};
use super::store::Store;
use crate::event::{Headers, Ledger, Mark};

/// Files of one directory whose names match.
pub struct Group {
    pub directory: PathBuf,
    /// Matched against the whole file name.
    pub name: Regex,
    pub headers: Headers,
}

impl Group {
    /// The files that match; none while the directory cannot be read.
    fn entries(&self) -> Vec<fs::DirEntry> {
        let matches = |entry: &fs::DirEntry| self.name.is_match(entry.file_name().as_encoded_bytes()) && entry.path().is_file();
        fs::read_dir(&self.directory).into_iter().flatten().flatten().filter(matches).collect()
    }
}

pub enum Find {
    Path(PathBuf),
    Groups(Vec<Group>),
}

impl Find {
    /// The files that are there now, each with the place where reading begins.
    pub fn first_look(&self, begin: Begin) -> Vec<Remembered> {
        let paths: Vec<PathBuf> = match self {
            Self::Path(path) => vec![path.clone()],
            Self::Groups(groups) => groups.iter().flat_map(Group::entries).map(|entry| entry.path()).collect(),
        };
        let look = |path: &PathBuf| {
            let (handle, metadata) = open(path)?;
            let file = TailedFile::new(rand::random(), path.clone(), Inode::from(&metadata), head(&handle)?);
            Ok(file.remember(Mark { offset: begin_offset(&handle, begin)?, tail: Checksum::default() }))
        };
        // What cannot be opened now is told, and read from its beginning, when it is looked for.
        paths.iter().filter_map(|path: &PathBuf| -> Option<Remembered> { (look(path) as io::Result<Remembered>).ok() }).collect()
    }
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
    /// Header that takes the file's path.
    pub path_header: Option<String>,
}

pub struct Engine {
    settings: Settings,
    store: Store,
    ledger: Arc<Ledger>,
    open: Vec<Reader>,
    /// What is saved: open files, and closed ones whose last lines are still on their way.
    positions: BTreeMap<u64, Remembered>,
    /// Remembered from before and not found yet.
    sought: Vec<Remembered>,
    scanned_at: Option<Instant>,
    /// Whose turn it is: a busy file does not keep the others waiting.
    turn: usize,
    /// A new file's id is not saved yet.
    unsaved: bool,
    /// Read already, to be given out next.
    next_up: Option<Chunk>,
    /// Told once each.
    troubles: HashMap<PathBuf, String>,
}

impl Engine {
    /// `known`: positions that were found elsewhere (the positions topic, Flume's position file); the furthest one counts.
    /// `first`: what the source's very first look found; it counts while there is nothing else.
    pub fn new(
        settings: Settings,
        store: Store,
        saved: Vec<Remembered>,
        known: Vec<Remembered>,
        first: Vec<Remembered>,
        ledger: Arc<Ledger>,
    ) -> Self {
        let mut sought = saved;
        for other in known {
            match sought.iter_mut().find(|file| file.id == other.id) {
                Some(file) if file.offset < other.offset => *file = other,
                Some(_) => {}
                None => sought.push(other),
            }
        }
        if sought.is_empty() {
            sought = first;
        }
        Self {
            settings,
            store,
            ledger,
            open: Vec::new(),
            positions: BTreeMap::new(),
            sought,
            scanned_at: None,
            turn: 0,
            unsaved: false,
            next_up: None,
            troubles: HashMap::new(),
        }
    }

    /// The next lines of any file; `None` when there are none now.
    pub fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        if let Some(chunk) = self.next_up.take() {
            return Ok(Some(chunk));
        }
        if self.scanned_at.is_none_or(|at| at.elapsed() >= self.settings.scan_interval) {
            self.scan()?;
        }
        if let Some(chunk) = self.read_round()? {
            return Ok(Some(chunk));
        }
        self.close_finished()
    }

    /// Saves what has been delivered since the last call.
    pub fn save(&mut self) -> io::Result<()> {
        for (id, mark) in self.ledger.advance() {
            if let Some(reader) = self.open.iter().find(|reader| reader.file.id == id) {
                self.positions.insert(id, reader.file.remember(mark));
            } else if let Some(position) = self.positions.get_mut(&id) {
                *position = position.at(mark);
            }
        }
        let open: HashSet<u64> = self.open.iter().map(|reader| reader.file.id).collect();
        let ledger = &self.ledger;
        self.positions.retain(|id, _| open.contains(id) || ledger.holds(*id));
        let mut files: Vec<Remembered> = self.positions.values().chain(&self.sought).cloned().collect();
        files.sort_by_key(|file| file.id);
        self.store.save(files)?;
        self.unsaved = false;
        Ok(())
    }

    /// Files open now.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }

    /// Bytes that are in the files and not read yet.
    pub fn unread_bytes(&self) -> u64 {
        self.open.iter().map(Reader::unread).sum()
    }

    /// What is remembered of each file, delivered positions included.
    pub fn positions(&self) -> impl Iterator<Item = &Remembered> {
        self.positions.values()
    }

    fn read_round(&mut self) -> io::Result<Option<Chunk>> {
        // What a rotated file still holds was written before what its successor holds.
        for at in 0..self.open.len() {
            if self.open[at].rotated_at.is_some()
                && let Some(chunk) = self.read_one(at)?
            {
                return Ok(Some(chunk));
            }
        }
        for _ in 0..self.open.len() {
            self.turn = (self.turn + 1) % self.open.len();
            if let Some(chunk) = self.read_one(self.turn)? {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    fn read_one(&mut self, at: usize) -> io::Result<Option<Chunk>> {
        let line_bytes_max = self.settings.line_bytes_max;
        let chunk = match self.open[at].read(line_bytes_max) {
            Ok(Read::Lines(chunk)) => Some(chunk),
            Ok(Read::Idle) => {
                let stale = self.settings.partial_wait.is_some_and(|wait| self.open[at].has_stale_partial(wait));
                if stale { self.open[at].take_partial() } else { None }
            }
            Ok(Read::Replaced(rest)) => {
                self.replace(at)?;
                match (rest, self.open[at].read(line_bytes_max)?) {
                    (None, Read::Lines(chunk)) => Some(chunk),
                    (Some(rest), Read::Lines(chunk)) => {
                        self.next_up = Some(chunk);
                        Some(rest)
                    }
                    (rest, _) => rest,
                }
            }
            Err(error) => {
                let path = self.open[at].file.path();
                self.trouble(&path, &format!("cannot read: {error}"));
                None
            }
        };
        if chunk.is_some() {
            self.save_new_ids()?;
        }
        Ok(chunk)
    }

    /// The file at `at` holds another content: it is another file from here on.
    fn replace(&mut self, at: usize) -> io::Result<()> {
        let reader = &self.open[at];
        let (path, old) = (reader.file.path(), reader.file.id);
        let handle = reader.try_clone()?;
        tracing::info!(file = %path.display(), "file was emptied; its new content is read from the beginning");
        let (inode, headers, rotated_at) = (reader.inode, reader.headers.clone(), reader.rotated_at);
        let file = self.mint(&path, inode, head(&handle)?, 0);
        self.open[at] = Reader::new(file, inode, headers, handle, 0)?;
        self.open[at].rotated_at = rotated_at;
        // The old content is gone; nothing can be read again from its position.
        self.positions.remove(&old);
        Ok(())
    }

    fn mint(&mut self, path: &Path, inode: Inode, head: Checksum, offset: u64) -> Arc<TailedFile> {
        let file = Arc::new(TailedFile::new(rand::random(), path.to_owned(), inode, head));
        let remembered = file.remember(Mark { offset, tail: Checksum::default() });
        self.positions.insert(file.id, remembered);
        self.unsaved = true;
        file
    }

    fn save_new_ids(&mut self) -> io::Result<()> {
        if self.unsaved { self.save() } else { Ok(()) }
    }

    /// Looks at every name: new files, renamed ones, names that mean another file now.
    fn scan(&mut self) -> io::Result<()> {
        let first = self.scanned_at.is_none();
        self.scanned_at = Some(Instant::now());
        let mut seen = HashSet::new();
        for (path, headers) in self.targets() {
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if first && matches!(self.settings.find, Find::Path(_)) {
                        tracing::warn!(file = %path.display(), "file is not there yet; waiting for it");
                    }
                    continue;
                }
                Err(error) => {
                    self.trouble(&path, &error.to_string());
                    continue;
                }
            };
            let inode = Inode::from(&metadata);
            if let Some(reader) = self.open.iter_mut().find(|reader| reader.inode == inode) {
                reader.rotated_at = None;
                reader.file.renamed(&path);
                seen.insert(inode);
                continue;
            }
            match self.adopt(&path, headers) {
                Ok(inode) => {
                    self.troubles.remove(&path);
                    seen.insert(inode);
                }
                Err(error) => self.trouble(&path, &error.to_string()),
            }
        }
        if first {
            self.find_rotated(&mut seen);
        }
        for reader in &mut self.open {
            if !seen.contains(&reader.inode) && reader.rotated_at.is_none() {
                tracing::info!(file = %reader.file.path().display(), "file was rotated away; reading it to its end");
                reader.rotated_at = Some(Instant::now());
            }
        }
        self.save_new_ids()
    }

    fn targets(&mut self) -> Vec<(PathBuf, Headers)> {
        let groups = match &self.settings.find {
            Find::Path(path) => return vec![(path.clone(), None)],
            Find::Groups(groups) => groups,
        };
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        for group in groups {
            let entries = match fs::read_dir(&group.directory) {
                Ok(entries) => entries,
                Err(error) => {
                    faults.push((group.directory.clone(), error.to_string()));
                    continue;
                }
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if group.name.is_match(name.as_encoded_bytes()) && entry.path().is_file() {
                    found.push((entry.path(), group.headers.clone()));
                }
            }
        }
        for (directory, fault) in faults {
            self.trouble(&directory, &fault);
        }
        // Oldest first, as their lines were written.
        found.sort_by_cached_key(|(path, _)| (fs::metadata(path).and_then(|metadata| metadata.modified()).ok(), path.clone()));
        found
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
        let (handle, metadata) = open(path)?;
        let inode = Inode::from(&metadata);
        if let Some(at) = self.remembered(&handle, &metadata, path)? {
            let remembered = self.sought.swap_remove(at);
            self.resume(remembered, path, headers, handle, inode)?;
            return Ok(inode);
        }
        let file = self.mint(path, inode, head(&handle)?, 0);
        tracing::info!(file = %path.display(), "file opened");
        self.open.push(Reader::new(file, inode, headers, handle, 0)?);
        Ok(inode)
    }

    fn resume(&mut self, remembered: Remembered, path: &Path, headers: Headers, handle: fs::File, inode: Inode) -> io::Result<()> {
        tracing::info!(file = %path.display(), from = remembered.offset, "file found again");
        let file = Arc::new(TailedFile::new(remembered.id, path.to_owned(), inode, head(&handle)?));
        let mark = Mark { offset: remembered.offset, tail: remembered.fingerprint.tail };
        self.positions.insert(file.id, file.remember(mark));
        self.unsaved = true;
        self.open.push(Reader::new(file, inode, headers, handle, remembered.offset)?);
        Ok(())
    }

    /// Where in `sought` this file is; the furthest one if there are several.
    fn remembered(&self, handle: &fs::File, metadata: &fs::Metadata, path: &Path) -> io::Result<Option<usize>> {
        let mut best: Option<usize> = None;
        for (at, candidate) in self.sought.iter().enumerate() {
            if candidate.is(handle, metadata, path)? && best.is_none_or(|best| self.sought[best].offset < candidate.offset) {
                best = Some(at);
            }
        }
        Ok(best)
    }

    /// Files that were rotated while nobody watched: looked for in their directory by inode and content, or by content alone among
    /// files whose names begin with theirs (the copy that copytruncate made).
    fn find_rotated(&mut self, seen: &mut HashSet<Inode>) {
        let mut still_sought = Vec::new();
        for remembered in std::mem::take(&mut self.sought) {
            let directory = remembered.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let Ok(entries) = fs::read_dir(directory) else {
                // A volume that is not mounted comes back with its files.
                still_sought.push(remembered);
                continue;
            };
            let begins = remembered.path.file_name().unwrap_or_default().as_encoded_bytes();
            let is_copy = |entry: &fs::DirEntry| remembered.offset > 0 && entry.file_name().as_encoded_bytes().starts_with(begins);
            let near = entries.flatten().filter(|entry| entry.ino() == remembered.inode || is_copy(entry));
            let found = near.map(|entry| entry.path()).find_map(|path| {
                let (handle, metadata) = open(&path).ok()?;
                let inode = Inode::from(&metadata);
                let fits = !seen.contains(&inode) && metadata.len() >= remembered.offset && remembered.content_is(&handle).ok()?;
                fits.then_some((path, handle, inode))
            });
            let Some((path, handle, inode)) = found else {
                if !self.open.iter().any(|reader| reader.file.path() == remembered.path) || remembered.offset > 0 {
                    tracing::info!(file = %remembered.path.display(), offset = remembered.offset, "file was replaced or removed while it was not watched; what it held after this offset is gone");
                }
                continue;
            };
            let name = remembered.path.display().to_string();
            if let Err(error) = self.resume(remembered, &path, None, handle, inode) {
                self.trouble(&path, &error.to_string());
                continue;
            }
            seen.insert(inode);
            tracing::info!(file = %path.display(), was = name, "file was rotated while it was not watched; reading it to its end");
            if let Some(reader) = self.open.last_mut() {
                reader.rotated_at = Some(Instant::now());
            }
        }
        self.sought = still_sought;
        // Rotated files are older than what has their names now.
        self.open.sort_by_key(|reader| reader.rotated_at.is_none());
    }

    /// Closes files that lost their name and have nothing more to say; gives an unterminated last line first.
    fn close_finished(&mut self) -> io::Result<Option<Chunk>> {
        let wait = self.settings.rotate_wait;
        while let Some(at) = self.open.iter().position(|reader| reader.is_finished(wait)) {
            if let Some(chunk) = self.open[at].take_partial() {
                self.save_new_ids()?;
                return Ok(Some(chunk));
            }
            let reader = self.open.remove(at);
            self.turn = 0;
            tracing::info!(file = %reader.file.path().display(), "rotated file is read to its end and closed");
        }
        Ok(None)
    }

    fn trouble(&mut self, path: &Path, what: &str) {
        if self.troubles.get(path).is_none_or(|told| told != what) {
            tracing::warn!(file = %path.display(), error = what, "cannot tail");
            self.troubles.insert(path.to_owned(), what.to_owned());
        }
    }

    /// The first trouble that has not gone away.
    pub fn in_trouble(&self) -> Option<String> {
        self.troubles.iter().next().map(|(path, what)| format!("{}: {what}", path.display()))
    }
}

/// Positions as Flume's TAILDIR writes them: `[{"inode":I,"pos":P,"file":"/abs"}]`.
pub fn flume_positions(text: &[u8]) -> Result<Vec<Remembered>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Entry {
        inode: u64,
        pos: u64,
        file: PathBuf,
    }
    let entries: Vec<Entry> = serde_json::from_slice(text)?;
    // Flume keeps neither device nor content: inode and path must do.
    let remembered = |entry: Entry| Remembered {
        id: rand::random(),
        path: entry.file,
        dev: 0,
        inode: entry.inode,
        fingerprint: Fingerprint::default(),
        offset: entry.pos,
    };
    Ok(entries.into_iter().map(remembered).collect())
}
