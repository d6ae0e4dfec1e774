//! The files that are open: one for each directory and name, rolled by count, size, age and idleness.
//!
//! On this machine's disk a file has its in-use name until it is closed; after [`Files::settle`] what was written is
//! synced. In a store a file is nowhere until it is closed, and only then its events are safe.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use object_store::ObjectStore;
use tokio::{task::block_in_place, time::Instant};

use super::format::{Encoder, FileFormat};
use super::store::Upload;
use crate::counters::unix_ms;
use crate::event::Event;
use crate::sink::unfinished::{Entry, Unfinished, make_directory, sync_parent};

/// What the files are like. A bound of 0 is none.
pub struct Shaping {
    pub format: FileFormat,
    pub naming: Naming,
    /// End of the names; the codec's where it is empty.
    pub suffix: String,
    pub in_use_prefix: String,
    pub in_use_suffix: String,
    pub roll_interval: Duration,
    pub roll_bytes: u64,
    pub roll_events: u64,
    pub idle: Duration,
    pub files_max: usize,
    /// Sync what is written on this machine's disk before it counts as written.
    pub fsync: bool,
    pub retry_interval: Duration,
    pub close_tries: u64,
    pub call_timeout: Duration,
}

impl Shaping {
    /// When the file comes of age, or has lain idle.
    fn due(&self, open: &OpenFile) -> Option<Instant> {
        let after = |since: Instant, bound: Duration| (!bound.is_zero()).then(|| since + bound);
        after(open.opened, self.roll_interval).into_iter().chain(after(open.written, self.idle)).min()
    }
}

/// How a bucket's files are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `name.1772643967089`, counting from the time the bucket was begun.
    Stamped,
    /// `name-1`, `name-2`, …
    Series,
    /// `name20260304170607-1`, by the time the file was begun.
    RollTime,
}

pub struct Files {
    shaping: Shaping,
    store: Option<Arc<dyn ObjectStore>>,
    buckets: HashMap<String, Bucket>,
    unfinished: Unfinished,
    /// Closed files whose last name could not be given yet.
    renames: Vec<Rename>,
    /// Files of the store that were closed since [`Files::closed`] was asked.
    closed: BTreeSet<u64>,
    /// Counts up: files, and uses of buckets.
    serial: u64,
}

/// One directory and name.
struct Bucket {
    directory: String,
    name: String,
    /// Stands in the last file's name.
    counter: i64,
    /// The second that stands in it.
    second: String,
    used: u64,
    open: Option<OpenFile>,
}

struct OpenFile {
    id: u64,
    finished: String,
    encoder: Encoder,
    /// Encoded and not yet written.
    out: Vec<u8>,
    events: u64,
    bytes: u64,
    opened: Instant,
    written: Instant,
    /// Written to since the last [`Files::settle`].
    dirty: bool,
    place: Place,
}

enum Place {
    Local { file: File, path: PathBuf, length: u64, settled: u64 },
    Store(Box<Upload>),
}

struct Rename {
    from: PathBuf,
    to: PathBuf,
    tries: u64,
    at: Instant,
}

/// Encoded bytes that are kept before they are written.
const OUT_BYTES: usize = 1 << 20;

impl Files {
    pub fn new(shaping: Shaping, store: Option<Arc<dyn ObjectStore>>, unfinished: Unfinished) -> Self {
        Self { shaping, store, buckets: HashMap::new(), unfinished, renames: Vec::new(), closed: BTreeSet::new(), serial: 0 }
    }

    /// Finishes what an earlier process left on this machine's disk.
    pub fn finish_left(&mut self) -> io::Result<()> {
        block_in_place(|| self.unfinished.finish_all())
    }

    pub fn open_count(&self) -> usize {
        self.buckets.values().filter(|bucket| bucket.open.is_some()).count()
    }

    /// Writes one event. After an error all that is not settled is to be given up ([`Self::give_up`]).
    pub async fn write(&mut self, directory: &str, name: &str, event: &Event) -> anyhow::Result<u64> {
        let key = format!("{directory}/{name}");
        self.serial += 1;
        let serial = self.serial;
        if !self.buckets.contains_key(&key) {
            if self.buckets.len() >= self.shaping.files_max {
                self.close_oldest().await?;
            }
            let counter = if self.shaping.naming == Naming::Stamped { unix_ms() } else { 0 };
            let bucket =
                Bucket { directory: directory.to_owned(), name: name.to_owned(), counter, second: String::new(), used: serial, open: None };
            self.buckets.insert(key.clone(), bucket);
        }
        let full = |open: &OpenFile| {
            let over = |bound: u64, value: u64| bound > 0 && value >= bound;
            over(self.shaping.roll_events, open.events) || over(self.shaping.roll_bytes, open.bytes)
        };
        if self.buckets.get(&key).and_then(|bucket| bucket.open.as_ref()).is_some_and(full) {
            self.close(&key, false).await?;
        }
        if self.buckets.get(&key).is_some_and(|bucket| bucket.open.is_none()) {
            self.open(&key).await?;
        }
        let bucket = self.buckets.get_mut(&key).context("the file has just been opened")?;
        bucket.used = serial;
        let open = bucket.open.as_mut().context("the file has just been opened")?;
        open.encoder.append(event, unix_ms(), &mut open.out)?;
        open.events += 1;
        open.bytes += event.body.len() as u64;
        open.dirty = true;
        if open.out.len() >= OUT_BYTES {
            open.drain().await?;
        }
        Ok(open.id)
    }

    async fn open(&mut self, key: &str) -> anyhow::Result<()> {
        let Some(bucket) = self.buckets.get_mut(key) else { return Ok(()) };
        let suffix = if self.shaping.suffix.is_empty() { self.shaping.format.extension() } else { &self.shaping.suffix };
        self.serial += 1;
        loop {
            let name = format!("{}{suffix}", bucket.next_name(self.shaping.naming));
            let finished = format!("{}/{name}", bucket.directory);
            let place = match &self.store {
                Some(store) => {
                    let mut upload = Upload::new(store.clone(), &finished, self.shaping.call_timeout)?;
                    if upload.taken().await? {
                        continue;
                    }
                    Place::Store(Box::new(upload))
                }
                None => {
                    let in_use = format!("{}/{}{name}{}", bucket.directory, self.shaping.in_use_prefix, self.shaping.in_use_suffix);
                    let (path, finished) = (PathBuf::from(in_use), PathBuf::from(&finished));
                    let unmade = || format!("{} cannot be made", path.display());
                    if block_in_place(|| is_taken(&path, &finished)).with_context(unmade)? {
                        continue;
                    }
                    let entry = Entry { finished, shape: self.shaping.format.shape() };
                    block_in_place(|| self.unfinished.add(path.clone(), entry)).context("the list of unfinished files")?;
                    let file = block_in_place(|| create(&path)).inspect_err(|_| self.unfinished.remove(&path)).with_context(unmade)?;
                    Place::Local { file, path, length: 0, settled: 0 }
                }
            };
            let mut out = Vec::new();
            let encoder = self.shaping.format.begin(&mut out);
            let now = Instant::now();
            bucket.open = Some(OpenFile {
                id: self.serial,
                finished,
                encoder,
                out,
                events: 0,
                bytes: 0,
                opened: now,
                written: now,
                dirty: true,
                place,
            });
            return Ok(());
        }
    }

    /// What was written is safe: on this machine's disk at once, in a store when its file is closed.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        let fsync = self.shaping.fsync;
        for open in self.buckets.values_mut().filter_map(|bucket| bucket.open.as_mut()).filter(|open| open.dirty) {
            open.encoder.flush(&mut open.out)?;
            open.drain().await?;
            if let Place::Local { file, path, length, .. } = &open.place
                && fsync
            {
                block_in_place(|| file.sync_data()).with_context(|| format!("{} cannot be synced", path.display()))?;
                tracing::trace!(file = %path.display(), length, "synced");
            }
            open.written = Instant::now();
        }
        block_in_place(|| self.unfinished.saved()).context("the list of unfinished files")?;
        for open in self.buckets.values_mut().filter_map(|bucket| bucket.open.as_mut()) {
            open.dirty = false;
            if let Place::Local { length, settled, .. } = &mut open.place {
                *settled = *length;
            }
        }
        Ok(())
    }

    /// Files of the store that have been closed: their events are safe.
    pub fn closed(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.closed)
    }

    /// When there is something to do: a file's age, its idleness, a name to give.
    pub fn next_due(&self) -> Option<Instant> {
        let open = self.buckets.values().filter_map(|bucket| bucket.open.as_ref());
        let due = open.filter_map(|open| self.shaping.due(open));
        due.chain(self.renames.iter().map(|rename| rename.at)).min()
    }

    /// Closes what has come of age or lies idle.
    pub async fn close_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let shaping = &self.shaping;
        let is_due = |bucket: &Bucket| bucket.open.as_ref().and_then(|open| shaping.due(open)).is_some_and(|due| due <= now);
        let due: Vec<String> = self.buckets.iter().filter(|(_, bucket)| is_due(bucket)).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.close(&key, self.shaping.naming == Naming::Stamped).await?;
        }
        self.rename_due(now);
        Ok(())
    }

    pub async fn close_all(&mut self) -> anyhow::Result<()> {
        let keys: Vec<String> = self.buckets.keys().cloned().collect();
        for key in keys {
            self.close(&key, true).await?;
        }
        Ok(())
    }

    async fn close_oldest(&mut self) -> anyhow::Result<()> {
        let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.used).map(|(key, _)| key.clone());
        match oldest {
            Some(key) => self.close(&key, true).await,
            None => Ok(()),
        }
    }

    /// Closes a bucket's file; the bucket goes with it, or makes a next one.
    async fn close(&mut self, key: &str, with_bucket: bool) -> anyhow::Result<()> {
        let Some(bucket) = self.buckets.get_mut(key) else { return Ok(()) };
        if let Some(open) = bucket.open.as_mut() {
            open.encoder.flush(&mut open.out)?;
            open.drain().await?;
            if let Place::Local { file, path, length, settled } = &mut open.place {
                let synced = block_in_place(|| file.sync_all());
                synced.with_context(|| format!("{} cannot be synced", path.display()))?;
                *settled = *length;
            }
        }
        if let Some(open) = bucket.open.take() {
            match open.place {
                Place::Local { path, .. } => self.name(path, PathBuf::from(&open.finished)),
                Place::Store(upload) => {
                    upload.finish().await.with_context(|| format!("{} cannot be completed", open.finished))?;
                    self.closed.insert(open.id);
                    tracing::debug!(file = open.finished, events = open.events, "written");
                }
            }
        }
        if with_bucket {
            self.buckets.remove(key);
        }
        Ok(())
    }

    /// Gives a closed file its last name; what fails is tried again.
    fn name(&mut self, from: PathBuf, to: PathBuf) {
        self.renames.push(Rename { from, to, tries: 0, at: Instant::now() });
        self.rename_due(Instant::now());
    }

    fn rename_due(&mut self, now: Instant) {
        let (tries, interval) = (self.shaping.close_tries, self.shaping.retry_interval);
        for mut rename in std::mem::take(&mut self.renames) {
            if rename.at > now {
                self.renames.push(rename);
                continue;
            }
            match block_in_place(|| give_name(&rename.from, &rename.to)) {
                Ok(()) => {
                    self.unfinished.remove(&rename.from);
                    tracing::debug!(file = %rename.to.display(), "written");
                }
                Err(error) => {
                    rename.tries += 1;
                    let file = rename.from.display();
                    if rename.tries < tries && !interval.is_zero() {
                        tracing::warn!(%error, %file, retry_in = ?interval, "a file cannot be given its name");
                        rename.at = now + interval;
                        self.renames.push(rename);
                    } else {
                        tracing::warn!(%error, %file, "a file cannot be given its name; tried again at the next start");
                    }
                }
            }
        }
    }

    /// After an error: files go back to what is settled, and new ones are begun. A disk that has failed to sync is not asked again.
    pub async fn give_up(&mut self) {
        let buckets = std::mem::take(&mut self.buckets);
        for open in buckets.into_values().filter_map(|bucket| bucket.open) {
            match open.place {
                Place::Store(upload) => upload.abort().await,
                Place::Local { file, path, settled, .. } => {
                    if settled == 0 {
                        let removed = block_in_place(|| fs::remove_file(&path));
                        if let Err(error) = removed {
                            tracing::warn!(%error, file = %path.display(), "an empty file could not be removed");
                        }
                        self.unfinished.remove(&path);
                    } else if let Err(error) = block_in_place(|| file.set_len(settled)) {
                        tracing::warn!(%error, file = %path.display(), "a file could not be cut; it may hold events twice");
                        self.name(path, PathBuf::from(open.finished));
                    } else {
                        self.name(path, PathBuf::from(open.finished));
                    }
                }
            }
        }
        self.closed.clear();
    }
}

impl Bucket {
    fn next_name(&mut self, naming: Naming) -> String {
        let second = match naming {
            Naming::RollTime => chrono::Local::now().format("%Y%m%d%H%M%S").to_string(),
            Naming::Stamped | Naming::Series => String::new(),
        };
        self.counter = if second == self.second { self.counter + 1 } else { 1 };
        self.second = second;
        let joint = if naming == Naming::Stamped { '.' } else { '-' };
        format!("{}{}{joint}{}", self.name, self.second, self.counter)
    }
}

impl OpenFile {
    /// Writes what is encoded.
    async fn drain(&mut self) -> anyhow::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        match &mut self.place {
            Place::Local { file, path, length, .. } => {
                block_in_place(|| file.write_all(&self.out)).with_context(|| format!("{} cannot be written", path.display()))?;
                *length += self.out.len() as u64;
                self.out.clear();
                Ok(())
            }
            Place::Store(upload) => upload.write(std::mem::take(&mut self.out)).await,
        }
    }
}

fn is_taken(path: &Path, finished: &Path) -> io::Result<bool> {
    Ok(path.try_exists()? || finished.try_exists()?)
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    sync_parent(path)?;
    Ok(file)
}

fn give_name(from: &Path, to: &Path) -> io::Result<()> {
    if from == to {
        return Ok(());
    }
    if to.try_exists()? {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is there already", to.display())));
    }
    fs::rename(from, to)?;
    sync_parent(to)
}
