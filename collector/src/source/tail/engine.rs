//! The tail engine: finds files, follows each of them over every kind of rotation, and remembers what was delivered.
//!
//! | what happens to the file | what the engine does |
//! |---|---|
//! | renamed, a new one in its place | reads the old one to its end and `rotate_wait` longer, the new one from its beginning |
//! | emptied in place (copytruncate), also grown again past the old position | reads the new content from its beginning, as another file |
//! | deleted | reads on through the open handle for `rotate_wait`; a new file of that name is read from its beginning |
//! | inode used again by another file | the fingerprint differs: another file |
//! | symlink points elsewhere | as renamed |
//! | `tail -F` only: made and rotated away while no collector ran | found beside the file as `FILE.1`, `FILE-20260102` and the like when it was written later than the last remembered file; read from its beginning, oldest first |
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

use super::Forgotten;
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

impl Find {
    /// Could a file that was at `path` be one of these?
    fn owns(&self, path: &Path) -> bool {
        match self {
            Self::Path(own) => path == own || is_rotated_name(own, path),
            Self::Groups(groups) => groups.iter().any(|group| {
                path.parent() == Some(&group.directory) && path.file_name().is_some_and(|name| group.name.is_match(name.as_encoded_bytes()))
            }),
        }
    }
}

/// `app.log.1`, `app.log-20260102`, `app.log_3` for `app.log`; not what was compressed since.
fn is_rotated_name(file: &Path, path: &Path) -> bool {
    const COMPRESSED: [&str; 7] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z", ".zip"];
    let (Some(own), Some(name)) = (file.file_name(), path.file_name()) else { return false };
    let Some(rest) = name.as_encoded_bytes().strip_prefix(own.as_encoded_bytes()) else { return false };
    path.parent() == file.parent()
        && matches!(rest, [b'.' | b'-' | b'_', digit, ..] if digit.is_ascii_digit())
        && !COMPRESSED.iter().any(|end| rest.ends_with(end.as_bytes()))
}

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
    /// Read to their end and delivered. Kept until their positions are gone elsewhere too: what is forgotten here and known
    /// there, or the other way round, would be read again or stay for ever.
    through: BTreeMap<u64, Remembered>,
    /// Those of `through` that were told.
    told_through: HashSet<u64>,
    forgotten: Option<Forgotten>,
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
    pub fn new(settings: Settings, store: Store, earlier: Earlier, ledger: Arc<Ledger>) -> Self {
        let Earlier { known, first, forgotten } = earlier;
        let mut sought = store.saved().unwrap_or_default().to_vec();
        for other in known {
            match sought.iter_mut().find(|file| file.id == other.id) {
                Some(file) if file.offset < other.offset => *file = other,
                Some(_) => {}
                // Another source's files may be among them.
                None if settings.find.owns(&other.path) => sought.push(other),
                None => {}
            }
        }
        if sought.is_empty() && store.saved().is_none() {
            sought = first;
        }
        Self {
            settings,
            store,
            ledger,
            open: Vec::new(),
            positions: BTreeMap::new(),
            sought,
            through: BTreeMap::new(),
            told_through: HashSet::new(),
            forgotten,
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
        let through = self.positions.extract_if(.., |id, _| !open.contains(id) && !ledger.holds(*id));
        match &self.forgotten {
            Some(forgotten) => {
                self.through.extend(through);
                let waiting = forgotten.lock();
                self.through.retain(|id, _| !self.told_through.contains(id) || waiting.contains(id));
            }
            None => through.for_each(drop),
        }
        let mut files: Vec<Remembered> = self.positions.values().chain(&self.sought).chain(self.through.values()).cloned().collect();
        files.sort_by_key(|file| file.id);
        self.store.save(files)?;
        self.unsaved = false;
        if let Some(forgotten) = &self.forgotten {
            // Only now: their last positions are on disk.
            let new = self.through.keys().filter(|id| !self.told_through.contains(id));
            forgotten.lock().extend(new);
            self.told_through = self.through.keys().copied().collect();
        }
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
        let path = reader.file.path();
        let handle = reader.try_clone()?;
        tracing::info!(file = %path.display(), "file was emptied; its new content is read from the beginning");
        let (inode, headers, rotated_at) = (reader.inode, reader.headers.clone(), reader.rotated_at);
        let file = self.mint(&path, inode, head(&handle)?, 0);
        self.open[at] = Reader::new(file, inode, headers, handle, 0)?;
        self.open[at].rotated_at = rotated_at;
        // The old content's position is kept until what was read of it is delivered: there may be a copy.
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
        let sought = self.sought.len();
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
            // Nothing lies between the last file and the current one where they are the same.
            let in_place = self.sought.len() < sought;
            self.find_rotated(&mut seen);
            if let (false, Find::Path(path)) = (in_place, &self.settings.find) {
                let path = path.clone();
                self.find_missed(&path, &mut seen);
            }
            // Rotated files are older than what has their names now.
            self.open.sort_by_cached_key(|reader| (reader.rotated_at.is_none(), reader.modified()));
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
                if self.forgotten.is_some() {
                    self.through.insert(remembered.id, remembered);
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
    }

    /// Files that were made and rotated away while nobody watched: those beside `path` that were written later than the last
    /// remembered file; where that one is gone, later than positions were saved.
    fn find_missed(&mut self, path: &Path, seen: &mut HashSet<Inode>) {
        let remembered = self.open.iter().filter(|reader| reader.rotated_at.is_some()).filter_map(Reader::modified).max();
        let Some(since) = remembered.or_else(|| self.store.saved_at()) else { return };
        let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
        for beside in entries.map(|entry| entry.path()).filter(|beside| is_rotated_name(path, beside)) {
            let Ok((handle, metadata)) = open(&beside) else { continue };
            let inode = Inode::from(&metadata);
            if metadata.modified().is_ok_and(|modified| modified < since) || seen.contains(&inode) {
                continue;
            }
            let opened = head(&handle).and_then(|head| {
                let file = self.mint(&beside, inode, head, 0);
                Reader::new(file, inode, None, handle, 0)
            });
            match opened {
                Ok(mut reader) => {
                    tracing::info!(file = %beside.display(), "file was made and rotated away while nothing was watched; reading it");
                    reader.rotated_at = Some(Instant::now());
                    seen.insert(inode);
                    self.open.push(reader);
                }
                Err(error) => self.trouble(&beside, &error.to_string()),
            }
        }
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
