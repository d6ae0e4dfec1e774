//! A disk that loses what was not synced: write-back in sectors, names apart from contents, errors where they are wanted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::disk::{Disk, DiskFile};

#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    files: HashMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    /// Not yet synced, in their order.
    name_changes: Vec<(PathBuf, NameChange)>,
    next_inode: u64,
    sector: usize,
    random: StdRng,
    /// Changes so far.
    operations: u64,
    kill_at: Option<u64>,
    killed: bool,
    fail: HashMap<&'static str, Vec<u64>>,
    counts: HashMap<&'static str, u64>,
    capacity: u64,
    unreadable: HashSet<PathBuf>,
    sync_lies: bool,
    torn: u64,
}

#[derive(Clone)]
enum NameChange {
    Create(u64),
    Remove,
    Rename(PathBuf),
}

#[derive(Clone, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that the next sync writes.
    dirty: BTreeSet<usize>,
    len_dirty: bool,
}

impl SimDisk {
    pub(super) fn new(seed: u64, sector: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            files: HashMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            next_inode: 0,
            sector,
            random: StdRng::seed_from_u64(seed),
            operations: 0,
            kill_at: None,
            killed: false,
            fail: HashMap::new(),
            counts: HashMap::new(),
            capacity: u64::MAX,
            unreadable: HashSet::new(),
            sync_lies: false,
            torn: 0,
        })))
    }

    /// A canary: syncs that do nothing.
    pub(super) fn without_sync(self) -> Self {
        self.0.lock().sync_lies = true;
        self
    }

    /// Files of which a power cut kept some unsynced sectors and lost others, so far.
    pub(super) fn torn(&self) -> u64 {
        self.0.lock().torn
    }

    pub(super) fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }

    pub(super) fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// The process ends at the `after`th change from now on.
    pub(super) fn kill_after(&self, after: u64) {
        let mut inner = self.0.lock();
        inner.kill_at = Some(inner.operations + after);
    }

    pub(super) fn is_killed(&self) -> bool {
        self.0.lock().killed
    }

    pub(super) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The `after`th operation of this kind from now on fails once.
    pub(super) fn fail_after(&self, kind: &'static str, after: u64) {
        let mut inner = self.0.lock();
        let at = inner.counts.get(kind).copied().unwrap_or_default() + after;
        inner.fail.entry(kind).or_default().push(at);
    }

    pub(super) fn set_unreadable(&self, path: &Path, unreadable: bool) {
        let mut inner = self.0.lock();
        if unreadable {
            inner.unreadable.insert(path.to_owned());
        } else {
            inner.unreadable.remove(path);
        }
    }

    /// The process is gone; with `power` so is what was not synced, in any combination of sectors.
    pub(super) fn crash(&self, power: bool) {
        let mut inner = self.0.lock();
        (inner.kill_at, inner.killed) = (None, false);
        inner.fail.clear();
        if power {
            inner.lose();
        }
    }

    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    pub(super) fn bytes(&self, path: &Path) -> Vec<u8> {
        let inner = self.0.lock();
        inner.files[&inner.names[path]].now.clone()
    }

    /// Puts a file there, behind the back of whoever uses the disk.
    pub(super) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.0.lock();
        let inode = match inner.names.get(path) {
            Some(inode) => *inode,
            None => inner.inode(),
        };
        inner.files.insert(inode, Content { durable: bytes.clone(), now: bytes, ..Content::default() });
        inner.names.insert(path.to_owned(), inode);
        inner.durable_names.insert(path.to_owned(), inode);
    }

    pub(super) fn delete(&self, path: &Path) {
        let mut inner = self.0.lock();
        inner.names.remove(path);
        inner.durable_names.remove(path);
    }

    fn change<T>(&self, kind: &'static str, act: impl FnOnce(&mut Inner) -> io::Result<T>) -> io::Result<T> {
        let mut inner = self.0.lock();
        if inner.killed {
            return Err(io::Error::other("killed"));
        }
        inner.operations += 1;
        let count = inner.counts.entry(kind).or_default();
        *count += 1;
        let count = *count;
        if inner.kill_at.is_some_and(|at| inner.operations >= at) {
            inner.killed = true;
            // Half of them happen all the same.
            if inner.random.random() {
                act(&mut inner)?;
            }
            return Err(io::Error::other("killed"));
        }
        if inner.fail.get(kind).is_some_and(|fail| fail.contains(&count)) {
            return Err(io::Error::from_raw_os_error(5));
        }
        act(&mut inner)
    }
}

impl Inner {
    fn inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.next_inode
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.files[inode].now.len() as u64).sum()
    }

    fn lose(&mut self) {
        // Names come back in their order, up to some point of each directory.
        let directories: BTreeSet<PathBuf> = self.name_changes.iter().map(|(path, _)| path.parent().unwrap().to_owned()).collect();
        for directory in directories {
            let changes: Vec<_> = self.name_changes.iter().filter(|(path, _)| path.parent() == Some(&directory)).cloned().collect();
            let kept = self.random.random_range(0..=changes.len());
            for change in &changes[..kept] {
                apply(&mut self.durable_names, change);
            }
        }
        self.name_changes.clear();
        self.names = self.durable_names.clone();
        for content in self.files.values_mut() {
            let len = match content.len_dirty {
                false => content.durable.len(),
                true => {
                    let (a, b) = (content.durable.len(), content.now.len());
                    *[a, b, self.random.random_range(a.min(b)..=a.max(b))].get(self.random.random_range(0..3usize)).unwrap()
                }
            };
            let dirty: Vec<usize> = content.dirty.iter().copied().filter(|_| self.random.random()).collect();
            self.torn += u64::from(!dirty.is_empty() && dirty.len() < content.dirty.len());
            content.durable.resize(len, 0);
            for sector in dirty {
                copy(&mut content.durable, &content.now, sector, self.sector);
            }
            content.now = content.durable.clone();
            content.dirty.clear();
            content.len_dirty = false;
        }
    }
}

fn copy(to: &mut [u8], from: &[u8], sector: usize, size: usize) {
    let end = ((sector + 1) * size).min(from.len()).min(to.len());
    let start = sector * size;
    if start < end {
        to[start..end].copy_from_slice(&from[start..end]);
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, (path, change): &(PathBuf, NameChange)) {
    match change {
        NameChange::Create(inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Remove => {
            names.remove(path);
        }
        NameChange::Rename(to) => {
            if let Some(inode) = names.remove(path) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn create_dir_all(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        let inside = inner.names.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path) -> io::Result<SimFile> {
        let inode = self.0.lock().names.get(path).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { disk: self.clone(), inode, path: path.to_owned() })
    }

    fn create(&self, path: &Path) -> io::Result<SimFile> {
        let inode = self.change("create", |inner| {
            if inner.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = inner.inode();
            inner.files.insert(inode, Content::default());
            inner.names.insert(path.to_owned(), inode);
            inner.name_changes.push((path.to_owned(), NameChange::Create(inode)));
            Ok(inode)
        })?;
        Ok(SimFile { disk: self.clone(), inode, path: path.to_owned() })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change("rename", |inner| {
            let change = (from.to_owned(), NameChange::Rename(to.to_owned()));
            apply(&mut inner.names, &change);
            inner.name_changes.push(change);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change("remove", |inner| {
            inner.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
            inner.name_changes.push((path.to_owned(), NameChange::Remove));
            Ok(())
        })
    }

    fn sync_dir(&self, directory: &Path) -> io::Result<()> {
        self.change("sync", |inner| {
            if inner.sync_lies {
                return Ok(());
            }
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut inner.name_changes).into_iter().partition(|(path, _)| path.parent() == Some(directory));
            now.iter().for_each(|change| apply(&mut inner.durable_names, change));
            inner.name_changes = later;
            Ok(())
        })
    }

    fn free_bytes(&self, _directory: &Path) -> io::Result<u64> {
        let inner = self.0.lock();
        Ok(inner.capacity.saturating_sub(inner.used()))
    }
}

pub(super) struct SimFile {
    disk: SimDisk,
    inode: u64,
    path: PathBuf,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.inode].now.len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.0.lock();
        if inner.killed || inner.unreadable.contains(&self.path) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let content = &inner.files[&self.inode].now;
        let from = usize::try_from(offset).unwrap().min(content.len());
        let count = bytes.len().min(content.len() - from);
        bytes[..count].copy_from_slice(&content[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        self.disk.change("write", |inner| {
            let sector = inner.sector;
            let free = inner.capacity.saturating_sub(inner.used());
            let content = inner.files.get_mut(&self.inode).unwrap();
            let more = (from + bytes.len()).saturating_sub(content.now.len());
            // A short write before the error.
            let full = more as u64 > free;
            let count = if full { bytes.len() - (more - usize::try_from(free).unwrap()) } else { bytes.len() };
            if content.now.len() < from + count {
                content.now.resize(from + count, 0);
                content.len_dirty = true;
            }
            content.now[from..from + count].copy_from_slice(&bytes[..count]);
            if count > 0 {
                content.dirty.extend(from / sector..=(from + count - 1) / sector);
            }
            if full { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
        })
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.change("truncate", |inner| {
            let content = inner.files.get_mut(&self.inode).unwrap();
            content.now.resize(usize::try_from(len).unwrap(), 0);
            content.len_dirty = true;
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.change("sync", |inner| {
            let (sector, lies) = (inner.sector, inner.sync_lies);
            if !lies {
                let content = inner.files.get_mut(&self.inode).unwrap();
                content.durable.resize(content.now.len(), 0);
                for at in std::mem::take(&mut content.dirty) {
                    copy(&mut content.durable, &content.now, at, sector);
                }
                content.len_dirty = false;
            }
            Ok(())
        });
        if synced.is_err() && !self.disk.is_killed() {
            // As the kernel does it: what could not be written counts as clean, and the next sync says that all is well.
            let mut inner = self.disk.0.lock();
            inner.files.get_mut(&self.inode).unwrap().dirty.clear();
        }
        synced
    }
}
