//! What happened to files while nobody watched.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs, io,
    ops::Bound,
    os::unix::fs::DirEntryExt,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::{Engine, by_inode, is_starved};
use crate::source::tail::find::{Find, is_rotated_name};
use crate::source::tail::identity::{Inode, head};
use crate::source::tail::reader::Reader;

/// File times are taken from a clock that goes in steps of up to this.
const BIRTH_STEP: Duration = Duration::from_millis(10);

/// A directory's names, to be looked up without going over all of them.
struct Beside {
    names: BTreeMap<OsString, u64>,
    by_inode: HashMap<u64, Vec<OsString>>,
}

impl Beside {
    fn list(directory: &Path) -> io::Result<Self> {
        let mut all = Self { names: BTreeMap::new(), by_inode: HashMap::new() };
        for entry in fs::read_dir(directory)?.flatten() {
            all.names.insert(entry.file_name(), entry.ino());
            all.by_inode.entry(entry.ino()).or_default().push(entry.file_name());
        }
        Ok(all)
    }

    /// Files of this inode, and those whose names begin so.
    fn near(&self, inode: u64, begins: Option<&OsStr>) -> impl Iterator<Item = &OsString> {
        let from =
            begins.map(|begins| (begins.as_encoded_bytes(), self.names.range::<OsStr, _>((Bound::Included(begins), Bound::Unbounded))));
        let copies =
            from.into_iter().flat_map(|(begins, from)| from.take_while(move |(name, _)| name.as_encoded_bytes().starts_with(begins)));
        let copies = copies.filter(move |(_, number)| **number != inode).map(|(name, _)| name);
        self.by_inode.get(&inode).into_iter().flatten().chain(copies)
    }
}

impl Engine {
    /// Files that were rotated while nobody watched: looked for in their directory by inode and content, or by content alone among
    /// files whose names begin with theirs (the copy that copytruncate made).
    pub(super) fn find_rotated(&mut self, seen: &mut HashSet<Inode>) {
        let mut still_sought = Vec::new();
        let mut listed: HashMap<PathBuf, Option<Beside>> = HashMap::new();
        let opened: HashSet<PathBuf> = self.open.iter().map(|reader| reader.file.path()).collect();
        for remembered in std::mem::take(&mut self.sought).into_values().flatten() {
            let directory = remembered.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let Some(beside) = listed.entry(directory.to_owned()).or_insert_with(|| Beside::list(directory).ok()) else {
                // A volume that is not mounted comes back with its files.
                still_sought.push(remembered);
                continue;
            };
            let begins = remembered.path.file_name().unwrap_or_default();
            let is_known = remembered.offset > 0 || remembered.fingerprint.head.bytes > 0;
            let mut near: Vec<PathBuf> =
                beside.near(remembered.inode, is_known.then_some(begins)).map(|name| directory.join(name)).collect();
            // The newest first: an older copy may begin with the same bytes.
            near.sort_by_cached_key(|path| Reverse(fs::metadata(path).and_then(|metadata| metadata.modified()).ok()));
            let mut unseen = false;
            let found = near.into_iter().find_map(|path| {
                let (handle, metadata) = match self.open(&path) {
                    Ok(opened) => opened,
                    Err(error) => {
                        unseen |= is_starved(&error);
                        return None;
                    }
                };
                let inode = Inode::from(&metadata);
                let fits = !seen.contains(&inode) && metadata.len() >= remembered.offset && remembered.content_is(&handle).ok()?;
                fits.then_some((path, handle, inode))
            });
            let Some((path, handle, inode)) = found else {
                if unseen {
                    // It may be one of those that could not be opened.
                    self.starved = true;
                    still_sought.push(remembered);
                    continue;
                }
                if remembered.offset > 0 || !opened.contains(&remembered.path) {
                    tracing::info!(file = %remembered.path.display(), offset = remembered.offset, "file was replaced or removed while it was not watched; what it held after this offset is gone");
                }
                if self.forgotten.is_some() {
                    self.through.insert(remembered.id, remembered);
                }
                continue;
            };
            let name = remembered.path.display().to_string();
            if let Err(error) = self.resume(remembered, &path, None, handle, inode) {
                self.io_trouble(&path, "", &error);
                continue;
            }
            seen.insert(inode);
            tracing::info!(file = %path.display(), was = name, "file was rotated while it was not watched; reading it to its end");
            if let Some(reader) = self.open.last_mut() {
                reader.rotated_at = Some(Instant::now());
            }
        }
        self.sought = by_inode(still_sought);
    }

    /// A reader of the copy that was made of the file at `at` before that was emptied; it begins where reading ended. The newest
    /// copy, as an older one may begin with the same bytes.
    pub(super) fn copy_of(&mut self, at: usize) -> Option<Reader> {
        let reader = &self.open[at];
        let (file, from, headers, content) = (reader.file.clone(), reader.line_begin(), reader.headers.clone(), reader.content()?);
        let name = content.path.file_name()?.as_encoded_bytes();
        let opened: HashSet<Inode> = self.open.iter().map(|reader| reader.inode).collect();
        let beside = fs::read_dir(content.path.parent()?).ok()?.flatten();
        let beside = beside.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(name)).filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let fits = metadata.is_file() && metadata.len() >= content.offset && !opened.contains(&Inode::from(&metadata));
            Some((metadata.modified().ok()?, entry.path())).filter(|_| fits)
        });
        let mut beside: Vec<_> = beside.collect();
        beside.sort_unstable();
        beside.into_iter().rev().find_map(|(_, path)| {
            let (handle, metadata) = self.open(&path).ok()?;
            let inode = Inode::from(&metadata);
            if !content.content_is(&handle).ok()? {
                return None;
            }
            let mut copy = Reader::new(file.clone(), inode, headers.clone(), handle, from).ok()?;
            tracing::info!(file = %path.display(), from, "the old content is read to its end in its copy");
            file.copied(&path, inode);
            copy.rotated_at = Some(Instant::now());
            Some(copy)
        })
    }

    /// Files that were made and rotated away while nobody watched: those beside `path` that were written later than the last
    /// remembered file; where that one is gone, later than positions were saved.
    pub(super) fn find_missed(&mut self, path: &Path, seen: &HashSet<Inode>) {
        let remembered = self.open.iter().filter(|reader| reader.rotated_at.is_some()).filter_map(Reader::modified).max();
        let Some(since) = remembered.or_else(|| self.store.saved_at()) else { return };
        self.open_beside(path, |_, inode, metadata| metadata.modified().is_ok_and(|modified| modified >= since) && !seen.contains(&inode));
    }

    /// The same while it runs, for a file that was followed until `known` and is another one now: what was made after that and
    /// has been rotated away since. Where the file system tells no times of birth nothing is found.
    pub(super) fn find_passed(&mut self, known: SystemTime) {
        let Find::Path(path) = &self.settings.find else { return };
        let path = path.clone();
        self.open_beside(&path, |engine, inode, metadata| {
            let is_late = |created| created + BIRTH_STEP >= known && !engine.closed.contains(&(inode, created));
            metadata.created().is_ok_and(is_late) && engine.open.iter().all(|reader| reader.inode != inode)
        });
    }

    /// Was the file at `at` empty at the last look, and is it not now? Then it may have been filled and rotated away between
    /// the two. True when such files were found.
    pub(super) fn look_back(&mut self, at: usize) -> io::Result<bool> {
        let reader = &self.open[at];
        if reader.rotated_at.is_some() || !reader.comes_from_nothing()? {
            return Ok(false);
        }
        let open = self.open.len();
        self.find_passed(self.open[at].known_at());
        self.rotated |= self.open.len() > open;
        Ok(self.open.len() > open)
    }

    fn open_beside(&mut self, path: &Path, is_missed: impl Fn(&Self, Inode, &fs::Metadata) -> bool) {
        let entries = path.parent().and_then(|directory| fs::read_dir(directory).ok()).into_iter().flatten().flatten();
        let mut beside: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|beside| is_rotated_name(path, beside)).collect();
        beside.sort_by_cached_key(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok());
        for beside in beside {
            let Ok((handle, metadata)) = self.open(&beside) else { continue };
            let inode = Inode::from(&metadata);
            // What holds nothing but the beginning of a file that is followed is a copy of it, or becomes one.
            let is_copy = |reader: &Reader| reader.begins_with(&handle, metadata.len()).unwrap_or(false);
            if metadata.len() == 0 || !is_missed(self, inode, &metadata) || self.open.iter().any(is_copy) {
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
                    self.open.push(reader);
                }
                Err(error) => self.io_trouble(&beside, "", &error),
            }
        }
    }
}
