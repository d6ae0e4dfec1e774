//! Offsets in an embedded store, for one process.
//!
//! Promise: after `Ok` the offsets are on disk (sled flushed). One owner: `owner.lock` in the store's directory is locked for as
//! long as the store is open and holds the owner's process id; a second opener gets `InUse`.
//!
//! One tree. Group key: `g` group; value: epoch (u64). Offset key: `o` length(group) group topic 0 partition; value: offset (i64),
//! metadata. Topic key: `t` topic; value: its id (16 bytes). Numbers are big-endian, so that keys sort by partition.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::{GroupOffsets, OffsetCommit, OffsetError, OffsetStore, StoredOffset, validate};
use crate::kafka::TopicPartition;

/// The default store of bridge and engine. Clones share the one open store.
#[derive(Clone)]
pub struct SledOffsets {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    tree: sled::Db,
    /// Held from the check to the write of a commit; the flush happens outside of it, so that concurrent commits share one.
    write: Mutex<()>,
    /// The lock is released when the file is closed.
    _owner: File,
}

impl SledOffsets {
    /// Opens or creates the store in the directory `path`. Blocks: call it where blocking is allowed.
    pub fn open(path: &Path) -> Result<Self, OffsetError> {
        let storage = |message: String| OffsetError::Storage { path: path.display().to_string(), message };
        fs::create_dir_all(path).map_err(|error| storage(format!("cannot create the directory: {error}")))?;
        let owner = lock(path)?;
        let config = sled::Config::new()
            .path(path.join("offsets.sled"))
            // Offsets are small; the default cache is a gigabyte.
            .cache_capacity(16 * 1024 * 1024)
            // Every commit is flushed before it answers; a timer would only add work.
            .flush_every_ms(None);
        let begun = Instant::now();
        let tree = loop {
            match config.open() {
                // The store is ours by now: what still has sled's own lock is an owner that is just ending, or a process
                // that was forked and has not yet become another program.
                Err(sled::Error::Io(error)) if is_locked(&error) && begun.elapsed() < ENDING_MAX => std::thread::sleep(ENDING_LOOK),
                opened => break opened.map_err(|error| storage(error.to_string()))?,
            }
        };
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), tree, write: Mutex::new(()), _owner: owner }) })
    }

    /// Runs `work` where blocking is allowed. Dropping the future does not stop it: a commit that has begun ends whole.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, OffsetError> + Send + 'static,
    ) -> Result<T, OffsetError> {
        let inner = Arc::clone(&self.inner);
        let path = self.inner.path.display().to_string();
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| Err(OffsetError::Storage { path, message: format!("the store's thread failed: {error}") }))
    }
}

#[async_trait]
impl OffsetStore for SledOffsets {
    async fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        let group = group.to_owned();
        let partitions = partitions.map(<[_]>::to_vec);
        self.blocking(move |inner| inner.get(&group, partitions.as_deref())).await
    }

    async fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        validate(group, offsets)?;
        let (group, offsets) = (group.to_owned(), offsets.to_vec());
        self.blocking(move |inner| inner.commit(&group, epoch, &offsets)).await
    }

    async fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        validate(group, offsets)?;
        let (group, offsets) = (group.to_owned(), offsets.to_vec());
        self.blocking(move |inner| inner.reset(&group, &offsets)).await
    }

    async fn groups(&self) -> Result<Vec<String>, OffsetError> {
        self.blocking(Inner::groups).await
    }

    async fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        let group = group.to_owned();
        self.blocking(move |inner| inner.delete(&group)).await
    }

    async fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        let topic = topic.to_owned();
        self.blocking(move |inner| inner.know_topic(&topic, id)).await
    }

    async fn forget_topic(&self, topic: &str) -> Result<Vec<String>, OffsetError> {
        let topic = topic.to_owned();
        self.blocking(move |inner| inner.forget_topic(&topic, sled::Batch::default())).await
    }
}

impl Inner {
    fn get(&self, group: &str, partitions: Option<&[TopicPartition]>) -> Result<GroupOffsets, OffsetError> {
        // Epoch and offsets must be of one moment: a reset between the two reads would pair the old epoch with new offsets.
        let _write = self.write.lock();
        let mut found = GroupOffsets { epoch: self.epoch(group)?, ..GroupOffsets::default() };
        match partitions {
            Some(partitions) => {
                for partition in partitions {
                    if let Some(stored) = self.offset(group, partition)? {
                        found.offsets.insert(partition.clone(), stored);
                    }
                }
            }
            None => {
                let prefix = group_prefix(group);
                for entry in self.tree.scan_prefix(&prefix) {
                    let (key, value) = entry.map_err(|error| self.storage(error))?;
                    let partition = key.get(prefix.len()..).and_then(decode_partition);
                    let partition = partition.ok_or_else(|| self.damaged("an offset's key"))?;
                    found.offsets.insert(partition, self.decode_offset(&value)?);
                }
            }
        }
        Ok(found)
    }

    fn commit(&self, group: &str, epoch: u64, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        {
            let _write = self.write.lock();
            let current = self.epoch(group)?;
            if epoch != current {
                return Err(OffsetError::Fenced { group: group.to_owned(), given: epoch, current });
            }
            for commit in offsets {
                if let Some(stored) = self.offset(group, &commit.partition)?
                    && commit.offset < stored.offset
                {
                    return Err(OffsetError::Regressed {
                        group: group.to_owned(),
                        topic: commit.partition.topic.to_string(),
                        partition: commit.partition.partition,
                        stored: stored.offset,
                        given: commit.offset,
                    });
                }
            }
            self.write(group, None, offsets)?;
        }
        self.flush()
    }

    fn reset(&self, group: &str, offsets: &[OffsetCommit]) -> Result<u64, OffsetError> {
        let epoch = {
            let _write = self.write.lock();
            let epoch = self.epoch(group)? + 1;
            self.write(group, Some(epoch), offsets)?;
            epoch
        };
        self.flush()?;
        Ok(epoch)
    }

    fn delete(&self, group: &str) -> Result<bool, OffsetError> {
        let existed = {
            let _write = self.write.lock();
            let mut batch = sled::Batch::default();
            let mut existed = false;
            for entry in self.tree.scan_prefix(group_prefix(group)).keys() {
                batch.remove(entry.map_err(|error| self.storage(error))?);
                existed = true;
            }
            if existed {
                // The epoch stays behind: a commit that is still on its way must not bring the group back.
                batch.insert(group_key(group), &(self.epoch(group)? + 1).to_be_bytes());
                self.tree.apply_batch(batch).map_err(|error| self.storage(error))?;
            }
            existed
        };
        self.flush()?;
        Ok(existed)
    }

    fn know_topic(&self, topic: &str, id: [u8; 16]) -> Result<Vec<String>, OffsetError> {
        let key = [b"t", topic.as_bytes()].concat();
        let known = self.tree.get(&key).map_err(|error| self.storage(error))?;
        if known.as_deref() == Some(&id) {
            return Ok(Vec::new());
        }
        if known.is_some() {
            let mut batch = sled::Batch::default();
            batch.insert(key, &id);
            return self.forget_topic(topic, batch);
        }
        self.tree.insert(key, &id).map_err(|error| self.storage(error))?;
        self.flush()?;
        Ok(Vec::new())
    }

    /// Together with what is in `batch` already.
    fn forget_topic(&self, topic: &str, mut batch: sled::Batch) -> Result<Vec<String>, OffsetError> {
        let mut groups = self.groups()?;
        {
            let _write = self.write.lock();
            let mut failed = None;
            groups.retain(|group| {
                let prefix = [&*group_prefix(group), topic.as_bytes(), b"\0"].concat();
                let keys: Result<Vec<_>, _> = self.tree.scan_prefix(prefix).keys().collect();
                match keys.map_err(|error| self.storage(error)).and_then(|keys| Ok((self.epoch(group)?, keys))) {
                    Ok((_, keys)) if keys.is_empty() => false,
                    Ok((epoch, keys)) => {
                        keys.into_iter().for_each(|key| batch.remove(key));
                        // A commit for the old topic may be on its way.
                        batch.insert(group_key(group), &(epoch + 1).to_be_bytes());
                        true
                    }
                    Err(error) => {
                        failed.get_or_insert(error);
                        false
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            self.tree.apply_batch(batch).map_err(|error| self.storage(error))?;
        }
        self.flush()?;
        Ok(groups)
    }

    fn groups(&self) -> Result<Vec<String>, OffsetError> {
        let mut groups: Vec<String> = Vec::new();
        // Jump from group to group; a group may have thousands of partitions.
        let mut from = b"o".to_vec();
        while let Some(entry) = self.tree.range(from.clone()..b"p".to_vec()).next() {
            let (key, _) = entry.map_err(|error| self.storage(error))?;
            let group = decode_group(&key).ok_or_else(|| self.damaged("an offset's key"))?;
            from = group_prefix(&group);
            // The byte after the prefix is a topic's first, and no name holds 0xff.
            from.push(0xff);
            groups.push(group);
        }
        groups.sort_unstable();
        Ok(groups)
    }

    /// One atomic write; the caller holds the write lock and flushes afterwards.
    fn write(&self, group: &str, epoch: Option<u64>, offsets: &[OffsetCommit]) -> Result<(), OffsetError> {
        let mut batch = sled::Batch::default();
        if let Some(epoch) = epoch {
            batch.insert(group_key(group), &epoch.to_be_bytes());
        }
        for commit in offsets {
            let mut value = commit.offset.to_be_bytes().to_vec();
            value.extend_from_slice(commit.metadata.as_bytes());
            batch.insert(offset_key(group, &commit.partition), value);
        }
        self.tree.apply_batch(batch).map_err(|error| self.storage(error))
    }

    fn epoch(&self, group: &str) -> Result<u64, OffsetError> {
        match self.tree.get(group_key(group)).map_err(|error| self.storage(error))? {
            None => Ok(0),
            Some(value) => {
                let bytes = <[u8; 8]>::try_from(value.as_ref()).map_err(|_| self.damaged("a group's epoch"))?;
                Ok(u64::from_be_bytes(bytes))
            }
        }
    }

    fn offset(&self, group: &str, partition: &TopicPartition) -> Result<Option<StoredOffset>, OffsetError> {
        let value = self.tree.get(offset_key(group, partition)).map_err(|error| self.storage(error))?;
        value.map(|value| self.decode_offset(&value)).transpose()
    }

    fn decode_offset(&self, value: &[u8]) -> Result<StoredOffset, OffsetError> {
        let (offset, metadata) = value.split_first_chunk::<8>().ok_or_else(|| self.damaged("an offset"))?;
        let metadata = std::str::from_utf8(metadata).map_err(|_| self.damaged("an offset's metadata"))?;
        Ok(StoredOffset { offset: i64::from_be_bytes(*offset), metadata: metadata.to_owned() })
    }

    fn flush(&self) -> Result<(), OffsetError> {
        self.tree.flush().map(|_| ()).map_err(|error| self.storage(error))
    }

    fn storage(&self, error: sled::Error) -> OffsetError {
        OffsetError::Storage { path: self.path.display().to_string(), message: error.to_string() }
    }

    fn damaged(&self, what: &str) -> OffsetError {
        OffsetError::Storage {
            path: self.path.display().to_string(),
            message: format!("{what} is damaged; restore the directory from a copy, or remove it to start from Kafka's committed offsets"),
        }
    }
}

/// Takes the directory for this process, or says who has it.
/// How long an owner that is ending is waited for, and how often it is looked for.
const ENDING_MAX: Duration = Duration::from_secs(5);
const ENDING_LOOK: Duration = Duration::from_millis(20);

/// sled puts the system's error into one of its own, as text.
fn is_locked(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock")
}

fn lock(directory: &Path) -> Result<File, OffsetError> {
    let path = directory.join("owner.lock");
    let storage = |error: std::io::Error| OffsetError::Storage { path: path.display().to_string(), message: error.to_string() };
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(storage)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // A name is a courtesy: without it the error still says what to do.
            let owner = match file.read_to_string(&mut owner) {
                Ok(_) if !owner.trim().is_empty() => format!("process {}", owner.trim()),
                _ => "another process".to_owned(),
            };
            return Err(OffsetError::InUse { path: directory.display().to_string(), owner });
        }
        Err(TryLockError::Error(error)) => return Err(storage(error)),
    }
    file.set_len(0).map_err(storage)?;
    file.rewind().map_err(storage)?;
    writeln!(file, "{}", std::process::id()).map_err(storage)?;
    Ok(file)
}

fn group_key(group: &str) -> Vec<u8> {
    [b"g", group.as_bytes()].concat()
}

/// All offset keys of a group begin with this, and no other group's do: the length comes first.
fn group_prefix(group: &str) -> Vec<u8> {
    let length = u16::try_from(group.len()).unwrap_or(u16::MAX);
    [b"o".as_slice(), &length.to_be_bytes(), group.as_bytes()].concat()
}

fn offset_key(group: &str, partition: &TopicPartition) -> Vec<u8> {
    let mut key = group_prefix(group);
    key.extend_from_slice(partition.topic.as_bytes());
    key.push(0);
    key.extend_from_slice(&partition.partition.to_be_bytes());
    key
}

fn decode_group(key: &[u8]) -> Option<String> {
    let (length, rest) = key.get(1..)?.split_first_chunk::<2>()?;
    let group = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    String::from_utf8(group.to_vec()).ok()
}

/// The part of an offset's key after the group.
fn decode_partition(key: &[u8]) -> Option<TopicPartition> {
    let (rest, partition) = key.split_last_chunk::<4>()?;
    let (zero, topic) = rest.split_last()?;
    let topic = std::str::from_utf8(topic).ok().filter(|_| *zero == 0)?;
    Some(TopicPartition { topic: topic.into(), partition: i32::from_be_bytes(*partition) })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_second_opener_is_told_who_has_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let first = SledOffsets::open(directory.path()).unwrap();
        let error = SledOffsets::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        assert!(error.contains(&directory.path().display().to_string()), "{error}");
        drop(first);
        // Another test's child may have been forked in between and holds the lock until it is another program.
        let begun = Instant::now();
        let again = loop {
            match SledOffsets::open(directory.path()) {
                Err(OffsetError::InUse { .. }) if begun.elapsed() < Duration::from_secs(5) => std::thread::yield_now(),
                opened => break opened,
            }
        };
        again.unwrap();
    }

    #[test]
    fn a_path_that_is_a_file_is_refused_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = SledOffsets::open(file.path()).err().unwrap().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }

    #[test]
    fn keys_survive_names_that_contain_one_another() {
        let partition = |topic: &str, partition| TopicPartition { topic: topic.into(), partition };
        for (group, topic, number) in [("a", "b", 0), ("ab", "c", i32::MAX), ("a", "bc", 7), ("g", "ö", 1)] {
            let key = offset_key(group, &partition(topic, number));
            assert_eq!(decode_group(&key).as_deref(), Some(group));
            assert_eq!(decode_partition(&key[group_prefix(group).len()..]), Some(partition(topic, number)));
        }
        assert!(!offset_key("ab", &partition("c", 0)).starts_with(&group_prefix("a")));
    }
}
