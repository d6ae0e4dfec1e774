//! A job's checkpoint at an object store URL.
//!
//! ```text
//! <root>/metadata         job, checkpoint id, fingerprint, where the sources began
//! <root>/offsets/N        definition of batch N, put before it runs
//! <root>/commits/N        where batch N+1 begins, totals, and the program's state
//! <root>/savepoints/ID/   metadata and one commit; also copied to any other place
//! <root>/engine.lock      where an engine keeps its jobs: locked by it
//! ```
//!
//! Entries are put once and never changed; a put that finds one there means that another process runs the same job.
//! Writes are atomic (staged, then linked) and, on a local disk, synced before the put returns.

pub mod frame;
mod location;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use frame::FrameError;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};
use serde::{Serialize, de::DeserializeOwned};

use crate::commit::{Commit, Discard, Facts, Health, Metadata, PlannedBatch};

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint `{location}`: {message}")]
    Location { location: String, message: String },
    #[error(
        "checkpoint `{location}`: `{entry}` exists already; another process runs this job on it (stop one of them, or give this one another checkpoint)"
    )]
    Taken { location: String, entry: String },
    #[error("checkpoint `{location}`: `{entry}`: {error}")]
    Entry { location: String, entry: String, error: FrameError },
    #[error("checkpoint `{location}`: cannot {what} `{entry}`: {error}")]
    Store { location: String, what: &'static str, entry: String, error: Box<object_store::Error> },
}

impl CheckpointError {
    /// The store may answer when it is asked again.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Store { error, .. } if !matches!(**error, object_store::Error::NotFound { .. } | object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. }))
    }
}

/// One job's checkpoint. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Set for a local disk: entries are synced.
    local: Option<PathBuf>,
    location: String,
}

/// What a restart finds.
#[derive(Debug, Default)]
pub struct Loaded {
    pub metadata: Option<Metadata>,
    /// Sound definitions above the newest sound commit.
    pub planned: BTreeMap<u64, PlannedBatch>,
    /// The newest sound commit, and the state stored with it.
    pub commit: Option<(Commit, Bytes)>,
    pub facts: Facts,
}

const METADATA: &str = "metadata";
const LOCK: &str = "engine.lock";

/// An engine's hold on the place of its jobs.
#[derive(Debug)]
pub struct Lock {
    _file: std::fs::File,
}

impl Checkpoint {
    /// `file:///path`, a plain path (made absolute; created if missing) or `memory:///name` (lives as long as the process).
    pub fn open(location: &str) -> Result<Self, CheckpointError> {
        let (store, root, local) = location::open(location)?;
        Ok(Self { store, root, local, location: location.trim_end_matches('/').to_string() })
    }

    /// For jobs without a checkpoint: forgotten at the end of the process.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()))
    }

    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, root: Path::default(), local: None, location: "memory:".into() }
    }

    /// The URL or path as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// A checkpoint in a folder of this one.
    pub fn child(&self, name: &str) -> Self {
        Self {
            store: self.store.clone(),
            root: self.root.clone().join(name),
            local: self.local.as_ref().map(|path| path.join(name)),
            location: format!("{}/{name}", self.location),
        }
    }

    /// Reads what a restart needs: metadata, the newest sound commit, and the definitions above it.
    pub async fn load(&self) -> Result<Loaded, CheckpointError> {
        let mut loaded = Loaded { metadata: self.metadata().await?, ..Loaded::default() };
        let definitions = self.ids("offsets").await?;
        let commits = self.ids("commits").await?;
        for id in commits.iter().rev() {
            match self.read::<Commit>(&format!("commits/{id}")).await? {
                Some(Ok(commit)) => {
                    loaded.facts.commits.insert(*id, Health::Sound);
                    loaded.commit = Some(commit);
                    break;
                }
                Some(Err(error @ FrameError::Version(_))) => return Err(self.entry(&format!("commits/{id}"), error)),
                Some(Err(FrameError::Torn)) => {
                    loaded.facts.commits.insert(*id, Health::Torn);
                }
                None => {}
            }
        }
        let restored = loaded.commit.as_ref().map(|(commit, _)| commit.id);
        for id in definitions {
            if restored.is_some_and(|restored| id <= restored) {
                // Not needed for a restart, so not read; absence and presence are the same.
                continue;
            }
            match self.read::<PlannedBatch>(&format!("offsets/{id}")).await? {
                Some(Ok((planned, _))) => {
                    loaded.facts.definitions.insert(id, Health::Sound);
                    loaded.planned.insert(id, planned);
                }
                Some(Err(error @ FrameError::Version(_))) => return Err(self.entry(&format!("offsets/{id}"), error)),
                Some(Err(FrameError::Torn)) => {
                    loaded.facts.definitions.insert(id, Health::Torn);
                }
                None => {}
            }
        }
        loaded.facts.metadata = loaded.metadata.is_some();
        Ok(loaded)
    }

    pub async fn metadata(&self) -> Result<Option<Metadata>, CheckpointError> {
        match self.read::<Metadata>(METADATA).await? {
            None => Ok(None),
            Some(Ok((metadata, _))) => Ok(Some(metadata)),
            // A torn metadata file was never acknowledged; without batches the job has not begun.
            Some(Err(FrameError::Torn)) if self.ids("offsets").await?.is_empty() && self.ids("commits").await?.is_empty() => {
                self.delete(METADATA).await?;
                Ok(None)
            }
            Some(Err(error)) => Err(self.entry(METADATA, error)),
        }
    }

    pub async fn put_metadata(&self, metadata: &Metadata) -> Result<(), CheckpointError> {
        self.put_new(METADATA, metadata, &[]).await
    }

    pub async fn put_definition(&self, planned: &PlannedBatch) -> Result<(), CheckpointError> {
        self.put_new(&format!("offsets/{}", planned.definition.id), planned, &[]).await
    }

    pub async fn put_commit(&self, commit: &Commit, state: &[u8]) -> Result<(), CheckpointError> {
        self.put_new(&format!("commits/{}", commit.id), commit, state).await
    }

    pub async fn discard(&self, entry: Discard) -> Result<(), CheckpointError> {
        match entry {
            Discard::Definition(id) => self.delete(&format!("offsets/{id}")).await,
            Discard::Commit(id) => self.delete(&format!("commits/{id}")).await,
        }
    }

    /// Deletes what is older than the newest `keep` batches before and including `newest`.
    pub async fn prune(&self, newest: u64, keep: u64) -> Result<(), CheckpointError> {
        let Some(below) = (newest + 1).checked_sub(keep) else { return Ok(()) };
        for folder in ["offsets", "commits"] {
            for id in self.ids(folder).await?.into_iter().filter(|id| *id < below) {
                self.delete(&format!("{folder}/{id}")).await?;
            }
        }
        Ok(())
    }

    /// Deletes the one batch that falls out of retention now; what a crash left is [`Self::prune`]d at the next start.
    pub async fn prune_one(&self, newest: u64, keep: u64) -> Result<(), CheckpointError> {
        let Some(id) = newest.checked_sub(keep) else { return Ok(()) };
        self.delete(&format!("offsets/{id}")).await?;
        self.delete(&format!("commits/{id}")).await
    }

    /// A savepoint: metadata and this commit, at `target`, which must hold no checkpoint yet: one that does is left as it is.
    pub async fn copy_to(&self, target: &Self, metadata: &Metadata, commit: &Commit, state: &[u8]) -> Result<(), CheckpointError> {
        if let Some(entry) = target.occupied().await? {
            return Err(CheckpointError::Taken { location: target.location.clone(), entry });
        }
        // The commit first: a target with metadata is complete.
        target.put_commit(commit, state).await?;
        let put = target.put_metadata(metadata).await;
        if put.is_err() {
            // Somebody was faster; what is his stays as he left it.
            target.discard(Discard::Commit(commit.id)).await?;
        }
        put
    }

    /// An entry of a job that is here, if there is one.
    pub async fn occupied(&self) -> Result<Option<String>, CheckpointError> {
        if self.read::<serde_json::Value>(METADATA).await?.is_some() {
            return Ok(Some(METADATA.into()));
        }
        for folder in ["commits", "offsets"] {
            if let Some(id) = self.ids(folder).await?.last() {
                return Ok(Some(format!("{folder}/{id}")));
            }
        }
        Ok(None)
    }

    /// Deletes what a job keeps here; savepoints stay.
    pub async fn clear(&self) -> Result<(), CheckpointError> {
        for folder in ["offsets", "commits"] {
            for id in self.ids(folder).await? {
                self.delete(&format!("{folder}/{id}")).await?;
            }
        }
        self.delete(METADATA).await
    }

    /// Keeps other engines away until the guard is dropped or the process ends, however it ends. `None`: this store lives and dies with
    /// the process, so there is nobody to keep away.
    pub fn lock(&self) -> Result<Option<Lock>, CheckpointError> {
        let Some(root) = &self.local else { return Ok(None) };
        let wrong = |message: String| CheckpointError::Location { location: self.location.clone(), message };
        let path = root.join(LOCK);
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| wrong(format!("cannot open `{}`: {error}", path.display())))?;
        match file.try_lock() {
            Ok(()) => {
                let owner = format!("process {}, since {}", std::process::id(), chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC"));
                let written = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
                written.map_err(|error| wrong(format!("cannot write `{}`: {error}", path.display())))?;
                Ok(Some(Lock { _file: file }))
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Who it is helps; that there is one counts.
                file.take(200).read_to_string(&mut owner).ok();
                let owner = if owner.is_empty() { "another process".to_owned() } else { owner };
                Err(wrong(format!(
                    "another engine keeps its jobs here ({owner}); two engines would run the same jobs. Stop it, or give this one another place (jobs.checkpoint)"
                )))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(wrong(format!("cannot lock `{}`: {error}", path.display()))),
        }
    }

    async fn ids(&self, folder: &str) -> Result<Vec<u64>, CheckpointError> {
        let prefix = self.root.clone().join(folder);
        let names = self
            .store
            .list(Some(&prefix))
            .map_ok(|meta| meta.location.filename().and_then(|name| name.parse::<u64>().ok()))
            .try_collect::<Vec<_>>()
            .await
            .map_err(|error| self.store_error("list", folder, error))?;
        let mut ids: Vec<u64> = names.into_iter().flatten().collect();
        ids.sort_unstable();
        Ok(ids)
    }

    async fn read<T: DeserializeOwned>(&self, entry: &str) -> Result<Option<Result<(T, Bytes), FrameError>>, CheckpointError> {
        let bytes = match self.store.get(&self.path(entry)).await {
            Ok(found) => found.bytes().await.map_err(|error| self.store_error("read", entry, error))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.store_error("read", entry, error)),
        };
        Ok(Some(frame::decode(&bytes)))
    }

    async fn put_new<T: Serialize>(&self, entry: &str, head: &T, payload: &[u8]) -> Result<(), CheckpointError> {
        let bytes = frame::encode(head, payload).map_err(|error| CheckpointError::Location {
            location: self.location.clone(),
            message: format!("`{entry}` cannot be written as JSON: {error}"),
        })?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&self.path(entry), bytes.into(), options).await {
            Ok(_) => self.sync(entry).await,
            Err(object_store::Error::AlreadyExists { .. }) => {
                Err(CheckpointError::Taken { location: self.location.clone(), entry: entry.into() })
            }
            Err(error) => Err(self.store_error("write", entry, error)),
        }
    }

    async fn delete(&self, entry: &str) -> Result<(), CheckpointError> {
        match self.store.delete(&self.path(entry)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.store_error("delete", entry, error)),
        }
    }

    /// The store renames into place without syncing; a power cut could leave an empty file under the final name.
    async fn sync(&self, entry: &str) -> Result<(), CheckpointError> {
        let Some(root) = &self.local else { return Ok(()) };
        let file = root.join(entry);
        let synced = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&file)?.sync_all()?;
            // The directory too: a durable file whose name is lost is a lost file.
            match file.parent() {
                Some(folder) => std::fs::File::open(folder)?.sync_all(),
                None => Ok(()),
            }
        });
        let result = synced.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        result.map_err(|error| {
            self.store_error("sync", entry, object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(error) })
        })
    }

    fn path(&self, entry: &str) -> Path {
        entry.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn entry(&self, entry: &str, error: FrameError) -> CheckpointError {
        CheckpointError::Entry { location: self.location.clone(), entry: entry.into(), error }
    }

    fn store_error(&self, what: &'static str, entry: &str, error: object_store::Error) -> CheckpointError {
        CheckpointError::Store { location: self.location.clone(), what, entry: entry.into(), error: Box::new(error) }
    }

    /// Small files beside the checkpoints (job definitions): replaced as a whole.
    pub async fn put_file<T: Serialize>(&self, name: &str, head: &T, payload: &[u8]) -> Result<(), CheckpointError> {
        let bytes = frame::encode(head, payload).map_err(|error| CheckpointError::Location {
            location: self.location.clone(),
            message: format!("`{name}` cannot be written as JSON: {error}"),
        })?;
        self.store.put(&self.path(name), bytes.into()).await.map_err(|error| self.store_error("write", name, error))?;
        self.sync(name).await
    }

    pub async fn delete_file(&self, name: &str) -> Result<(), CheckpointError> {
        self.delete(name).await
    }

    /// `None` when there is no such file.
    pub async fn get_file<T: DeserializeOwned>(&self, name: &str) -> Result<Option<(T, Bytes)>, CheckpointError> {
        self.read(name).await?.transpose().map_err(|error| self.entry(name, error))
    }

    /// Names of the folders directly in this one.
    pub async fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        let found = self.store.list_with_delimiter(Some(&self.root)).await.map_err(|error| self.store_error("list", "", error))?;
        Ok(found.common_prefixes.iter().filter_map(|prefix| prefix.filename().map(str::to_string)).collect())
    }
}
