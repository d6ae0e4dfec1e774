//! A job's checkpoint at an object store URL: a folder, `file://`, `hdfs://`, `viewfs://`, `s3://`, `memory://`.
//!
//! ```text
//! <root>/metadata         job, checkpoint id, fingerprint, where the sources began
//! <root>/upgrades/K       the same, of the K-th changed program that went on from here
//! <root>/offsets/N        definition of batch N, put before it runs
//! <root>/commits/N        where batch N+1 begins, totals, and the program's state
//! <root>/savepoints/NAME/ metadata and one commit; also copied to any other place
//! <root>/received/NAME/ what a receiver or file stream keeps, see `source/log`; on a local disk only
//! <root>/owner/EPOCH      the process that may put something here
//! <root>/engine.lock      on a local disk: locked by it
//! ```
//!
//! Entries are put once, where none is, and never changed. Puts are atomic. Local disk: staged, then linked, and synced before the put returns. HDFS: written under a hidden name, then renamed
//! without overwriting. S3: `If-None-Match: *`; that the store heeds it is tried at each start. A put whose outcome was not told is made
//! again, and finds its own entry by its bytes.

pub mod frame;
pub(crate) mod location;
mod owner;
mod savepoints;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use frame::FrameError;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, path::Path};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use service_kit::kafka::TopicPartition;

use crate::batch::{
    OffsetRange,
    clock::{Clock as _, SystemClock},
};
use crate::commit::{Commit, Discard, Facts, Health, Metadata, PlannedBatch, SourceStart};
use crate::fault::Point;
pub use location::CheckpointConfig;
pub use owner::Holder;
pub use savepoints::Savepoint;

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("checkpoint `{location}`: {message}")]
    Location { location: String, message: String },
    #[error(
        "checkpoint `{location}`: `{entry}` exists already; another process runs this job on it (stop one of them, or give this one another checkpoint)"
    )]
    Taken { location: String, entry: String },
    #[error(
        "checkpoint `{location}`: {by}; this process puts nothing there any more and ends the job. Run it once, or give one of the two another place"
    )]
    Lost { location: String, by: String },
    /// On a local disk: another process lives that has it.
    #[error("checkpoint `{location}`: {by}")]
    Held { location: String, by: String },
    #[error("checkpoint `{location}`: the process that was here before has put `{entry}` after this one had begun")]
    Late { location: String, entry: String },
    #[error("checkpoint `{location}`: `{entry}`: {error}")]
    Entry { location: String, entry: String, error: FrameError },
    #[error("checkpoint `{location}`: cannot {what} `{entry}`: {error}")]
    Store { location: String, what: &'static str, entry: String, error: Box<object_store::Error> },
    #[error("checkpoint `{location}`: cannot {what} `{entry}`: no answer within {} (checkpoint.timeout)", humantime::format_duration(*timeout))]
    Silent { location: String, what: &'static str, entry: String, timeout: Duration },
}

impl CheckpointError {
    /// The store may answer when it is asked again.
    pub fn retryable(&self) -> bool {
        use object_store::Error::{NotFound, NotImplemented, NotSupported};
        match self {
            Self::Silent { .. } => true,
            Self::Store { error, .. } => !matches!(**error, NotFound { .. } | NotSupported { .. } | NotImplemented { .. }),
            _ => false,
        }
    }
}

const IN_MEMORY: &str = "memory:";

/// One job's checkpoint. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Set for a local disk: entries are synced.
    local: Option<PathBuf>,
    /// Set for a store on the network.
    timeout: Option<Duration>,
    location: String,
    config: Arc<CheckpointConfig>,
    /// Set where this process owns the place; puts look first.
    hold: Option<Arc<owner::Hold>>,
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

impl Loaded {
    /// Brings what is by source index into the order of these sources, of which the program that wrote it may have had others. One
    /// that an entry does not know stands where it begins. `then`: the order of entries that do not name their sources.
    pub fn in_order_of(&mut self, sources: &[SourceStart], then: &[String]) {
        let known = |names: &[String]| -> Vec<Option<usize>> {
            let names = if names.is_empty() { then } else { names };
            sources.iter().map(|source| names.iter().position(|name| *name == source.name)).collect()
        };
        fn pick<T: Clone>(values: &mut Vec<T>, sources: &[SourceStart], places: &[Option<usize>], begin: impl Fn(&SourceStart) -> T) {
            let value = |(source, place): (&SourceStart, &Option<usize>)| {
                place.and_then(|n| values.get(n).cloned()).unwrap_or_else(|| begin(source))
            };
            *values = sources.iter().zip(places).map(value).collect();
        }
        let names: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
        if let Some((commit, _)) = &mut self.commit {
            let places = known(&commit.sources);
            pick(&mut commit.next, sources, &places, |source| source.starts.clone());
            pick(&mut commit.topics, sources, &places, |source| source.topics.clone());
            commit.sources.clone_from(&names);
        }
        for planned in self.planned.values_mut() {
            let places = known(&planned.sources);
            let nothing = |(partition, at): (&TopicPartition, &i64)| OffsetRange {
                topic: partition.topic.clone(),
                partition: partition.partition,
                from: *at,
                until: *at,
            };
            pick(&mut planned.definition.ranges, sources, &places, |source| source.starts.0.iter().map(nothing).collect());
            pick(&mut planned.caught_up, sources, &places, |source| vec![false; source.starts.0.len()]);
            pick(&mut planned.topics, sources, &places, |source| source.topics.clone());
            planned.sources.clone_from(&names);
        }
    }
}

const METADATA: &str = "metadata";
const UPGRADES: &str = "upgrades";
const DEFINITIONS: &str = "offsets";
const COMMITS: &str = "commits";
const RECEIVED: &str = "received";
/// How often, and after which pause, a commit is read again that could not be read beside others that could.
const READ_TRIES: usize = 3;
const READ_PAUSE: Duration = Duration::from_millis(700);
/// After a put that took longer the owner looks again: it may have stood still, and another may have taken over.
const STANDSTILL: Duration = Duration::from_secs(1);

/// An entry's head as it is stored.
#[derive(Serialize)]
struct Stamped<'a, T> {
    /// The epoch of the owner who put it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<u64>,
    #[serde(flatten)]
    head: &'a T,
}

/// What every head holds.
#[derive(Deserialize)]
struct Stamp {
    owner: Option<u64>,
}

impl Checkpoint {
    /// A plain path (made absolute; created if missing), `file:///path`, `hdfs://host[:port]/path`, `s3://bucket/path` or `memory:///name`
    /// (lives as long as the process). Nothing is asked of a store yet.
    pub fn open(location: &str, config: &CheckpointConfig) -> Result<Self, CheckpointError> {
        let wrong = |message| CheckpointError::Location { location: location.into(), message };
        let location::Opened { store, root, local, timeout } =
            location::Place::parse(location).and_then(|place| place.open(config)).map_err(wrong)?;
        let location = location.trim_end_matches('/').to_string();
        Ok(Self { store, root, local, timeout, location, config: Arc::new(config.clone()), hold: None })
    }

    /// Another place, reached by the same settings.
    pub fn elsewhere(&self, location: &str) -> Result<Self, CheckpointError> {
        Self::open(location, &self.config)
    }

    /// For jobs without a checkpoint: forgotten at the end of the process.
    pub fn in_memory() -> Self {
        Self::over(Arc::new(object_store::memory::InMemory::new()))
    }

    /// Nobody else can reach it, and it is gone with the process.
    pub fn is_in_memory(&self) -> bool {
        self.location.starts_with(IN_MEMORY)
    }

    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        let (location, config) = (IN_MEMORY.into(), Arc::default());
        Self { store, root: Path::default(), local: None, timeout: None, location, config, hold: None }
    }

    /// The URL or path as it was given.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Where a source's own log is, on a local disk.
    pub fn received(&self, source: &str) -> Option<PathBuf> {
        self.local.as_ref().map(|root| root.join(RECEIVED).join(source))
    }

    /// A checkpoint in a folder of this one.
    pub fn child(&self, name: &str) -> Self {
        Self {
            root: self.root.clone().join(name),
            local: self.local.as_ref().map(|path| path.join(name)),
            location: format!("{}/{name}", self.location),
            ..self.clone()
        }
    }

    /// Reads what a restart needs: metadata, the newest sound commit, and the definitions above it.
    pub async fn load(&self) -> Result<Loaded, CheckpointError> {
        let mut loaded = Loaded { metadata: self.metadata().await?, ..Loaded::default() };
        let definitions = self.ids(DEFINITIONS).await?;
        let commits = self.ids(COMMITS).await?;
        let mut unreadable = Vec::new();
        for id in commits.into_iter().rev() {
            match self.read_commit(id, &mut loaded).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) if error.retryable() => unreadable.push((id, error)),
                Err(error) => return Err(error),
            }
        }
        for (id, error) in unreadable {
            // The store gives others: this one's blocks may be damaged (HDFS), or where they are has just come back.
            if loaded.commit.is_none() {
                return Err(error);
            }
            if self.read_patiently(id, &mut loaded).await? {
                break;
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

    /// True when it is sound; it is the commit to go on from then.
    async fn read_commit(&self, id: u64, loaded: &mut Loaded) -> Result<bool, CheckpointError> {
        let entry = format!("{COMMITS}/{id}");
        match self.read::<Commit>(&entry).await? {
            Some(Ok(commit)) => {
                loaded.facts.commits.insert(id, Health::Sound);
                loaded.commit = Some(commit);
                Ok(true)
            }
            Some(Err(error @ FrameError::Version(_))) => Err(self.entry(&entry, error)),
            Some(Err(FrameError::Torn)) => {
                loaded.facts.commits.insert(id, Health::Torn);
                Ok(false)
            }
            None => Ok(false),
        }
    }

    /// The same for one that could not be read, beside others that can: after some tries it is damaged.
    async fn read_patiently(&self, id: u64, loaded: &mut Loaded) -> Result<bool, CheckpointError> {
        for _ in 0..READ_TRIES {
            tokio::time::sleep(READ_PAUSE).await;
            match self.read_commit(id, loaded).await {
                Err(error) if error.retryable() => tracing::warn!(%error, "others can be read"),
                read => return read,
            }
        }
        loaded.facts.commits.insert(id, Health::Torn);
        Ok(false)
    }

    /// Of the newest program that ran from here.
    pub async fn metadata(&self) -> Result<Option<Metadata>, CheckpointError> {
        for id in self.ids(UPGRADES).await?.into_iter().rev() {
            let entry = format!("{UPGRADES}/{id}");
            match self.read::<Metadata>(&entry).await? {
                Some(Ok((metadata, _))) => return Ok(Some(metadata)),
                Some(Err(error @ FrameError::Version(_))) => return Err(self.entry(&entry, error)),
                // It was never acknowledged, so no batch of that program ran.
                Some(Err(FrameError::Torn)) | None => {}
            }
        }
        match self.read::<Metadata>(METADATA).await? {
            None => Ok(None),
            Some(Ok((metadata, _))) => Ok(Some(metadata)),
            // A torn metadata file was never acknowledged; without batches the job has not begun.
            Some(Err(FrameError::Torn)) if self.ids(DEFINITIONS).await?.is_empty() && self.ids(COMMITS).await?.is_empty() => {
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

    /// A changed program goes on from here.
    pub async fn put_upgrade(&self, metadata: &Metadata) -> Result<(), CheckpointError> {
        let next = self.ids(UPGRADES).await?.last().map_or(1, |newest| newest + 1);
        self.put_new(&format!("{UPGRADES}/{next}"), metadata, &[]).await
    }

    pub async fn discard(&self, entry: Discard) -> Result<(), CheckpointError> {
        self.look().await?;
        self.delete(&entry.to_string()).await
    }

    /// Deletes what is older than the newest `keep` batches before and including `newest`.
    pub async fn prune(&self, newest: u64, keep: u64) -> Result<(), CheckpointError> {
        let Some(below) = (newest + 1).checked_sub(keep) else { return Ok(()) };
        self.look().await?;
        for folder in [DEFINITIONS, COMMITS] {
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
        Point::CheckpointHalfPruned.reach();
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
        if let Err(CheckpointError::Taken { .. }) = put {
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
        for folder in [COMMITS, DEFINITIONS] {
            if let Some(id) = self.ids(folder).await?.last() {
                return Ok(Some(format!("{folder}/{id}")));
            }
        }
        Ok(None)
    }

    /// Deletes what a job keeps here; savepoints stay.
    pub async fn clear(&self) -> Result<(), CheckpointError> {
        for folder in [DEFINITIONS, COMMITS, UPGRADES, owner::OWNERS] {
            for name in self.names(folder).await? {
                self.delete(&format!("{folder}/{name}")).await?;
            }
        }
        if let Some(folder) = self.local.as_ref().map(|root| root.join(RECEIVED)) {
            match tokio::fs::remove_dir_all(&folder).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let error = object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(error) };
                    return Err(self.store_error("delete", RECEIVED, error));
                }
                _ => {}
            }
        }
        self.delete(METADATA).await
    }

    /// Files directly in a folder.
    async fn names(&self, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let prefix = if folder.is_empty() { self.root.clone() } else { self.path(folder) };
        let listed = self.answer("list", folder, self.store.list_with_delimiter(Some(&prefix))).await?;
        let listed = listed.map_err(|error| self.store_error("list", folder, error))?;
        Ok(listed.objects.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect())
    }

    /// Numbers directly in a folder, ascending.
    async fn ids(&self, folder: &str) -> Result<Vec<u64>, CheckpointError> {
        let mut ids: Vec<u64> = self.names(folder).await?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    async fn bytes(&self, entry: &str) -> Result<Option<Bytes>, CheckpointError> {
        let path = self.path(entry);
        let read = async { self.store.get(&path).await?.bytes().await };
        match self.answer("read", entry, read).await? {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.store_error("read", entry, error)),
        }
    }

    async fn read<T: DeserializeOwned>(&self, entry: &str) -> Result<Option<Result<(T, Bytes), FrameError>>, CheckpointError> {
        Ok(self.bytes(entry).await?.map(|bytes| frame::decode(&bytes)))
    }

    fn encode<T: Serialize>(&self, entry: &str, head: &T, payload: &[u8]) -> Result<Vec<u8>, CheckpointError> {
        let owner = self.hold.as_ref().map(|hold| hold.epoch);
        frame::encode(&Stamped { owner, head }, payload)
            .map_err(|error| self.wrong(format!("`{entry}` cannot be written as JSON: {error}")))
    }

    async fn put_new<T: Serialize>(&self, entry: &str, head: &T, payload: &[u8]) -> Result<(), CheckpointError> {
        self.look().await?;
        let looked = SystemClock.monotonic();
        let bytes = Bytes::from(self.encode(entry, head, payload)?);
        match self.create(entry, bytes.clone()).await {
            Ok(true) => {}
            Ok(false) => self.whose(entry, &bytes).await?,
            // Who takes over sweeps away what is being written.
            Err(error) => return Err(self.look().await.err().filter(|lost| matches!(lost, CheckpointError::Lost { .. })).unwrap_or(error)),
        }
        Point::CheckpointEntryPut.reach();
        if SystemClock.monotonic() - looked > STANDSTILL {
            self.look().await?;
        }
        self.sync(entry).await
    }

    /// False when there is one already.
    async fn create(&self, entry: &str, bytes: Bytes) -> Result<bool, CheckpointError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.answer("write", entry, self.store.put_opts(&self.path(entry), bytes.into(), options)).await? {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.store_error("write", entry, error)),
        }
    }

    /// An entry stands where these bytes were to be put. All is well when it is they.
    async fn whose(&self, entry: &str, bytes: &Bytes) -> Result<(), CheckpointError> {
        let Some(found) = self.bytes(entry).await? else {
            let message = "it was there, and is not; another put may be under way";
            return Err(self.store_error("write", entry, object_store::Error::Generic { store: "checkpoint", source: message.into() }));
        };
        if found == *bytes {
            // An earlier put was answered with an error, and happened all the same.
            return Ok(());
        }
        self.look().await?;
        let by = frame::decode::<Stamp>(&found).ok().and_then(|(stamp, _)| stamp.owner);
        let (location, entry) = (self.location.clone(), entry.to_owned());
        Err(match (by, &self.hold) {
            (Some(by), Some(hold)) if by < hold.epoch => CheckpointError::Late { location, entry },
            _ => CheckpointError::Taken { location, entry },
        })
    }

    async fn delete(&self, entry: &str) -> Result<(), CheckpointError> {
        match self.answer("delete", entry, self.store.delete(&self.path(entry))).await? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.store_error("delete", entry, error)),
        }
    }

    /// What the store says, if it says it in time.
    async fn answer<T>(
        &self,
        what: &'static str,
        entry: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<object_store::Result<T>, CheckpointError> {
        let Some(timeout) = self.timeout else { return Ok(call.await) };
        let silent = |_| CheckpointError::Silent { location: self.location.clone(), what, entry: entry.into(), timeout };
        tokio::time::timeout(timeout, call).await.map_err(silent)
    }

    async fn sync(&self, entry: &str) -> Result<(), CheckpointError> {
        let Some(root) = &self.local else { return Ok(()) };
        location::sync(root.join(entry)).await.map_err(|error| {
            self.store_error("sync", entry, object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(error) })
        })
    }

    fn path(&self, entry: &str) -> Path {
        entry.split('/').fold(self.root.clone(), |path, part| path.join(part))
    }

    fn wrong(&self, message: String) -> CheckpointError {
        CheckpointError::Location { location: self.location.clone(), message }
    }

    fn entry(&self, entry: &str, error: FrameError) -> CheckpointError {
        CheckpointError::Entry { location: self.location.clone(), entry: entry.into(), error }
    }

    fn store_error(&self, what: &'static str, entry: &str, error: object_store::Error) -> CheckpointError {
        CheckpointError::Store { location: self.location.clone(), what, entry: entry.into(), error: Box::new(error) }
    }

    /// Small files beside the checkpoints (job definitions): replaced as a whole.
    pub async fn put_file<T: Serialize>(&self, name: &str, head: &T, payload: &[u8]) -> Result<(), CheckpointError> {
        self.look().await?;
        let bytes = self.encode(name, head, payload)?;
        let put = self.answer("write", name, self.store.put(&self.path(name), bytes.into())).await?;
        put.map_err(|error| self.store_error("write", name, error))?;
        self.sync(name).await
    }

    /// The small file `name` as whoever was first wrote it: all who ask get the same.
    pub async fn agree<T: Serialize + DeserializeOwned>(&self, name: &str, head: T) -> Result<T, CheckpointError> {
        let bytes = self.encode(name, &head, &[])?;
        if self.create(name, bytes.into()).await? {
            self.sync(name).await?;
            return Ok(head);
        }
        let found = self.get_file(name).await?;
        found.map(|(head, _)| head).ok_or_else(|| self.wrong(format!("`{name}` was there, and is not; something else deletes files here")))
    }

    pub async fn delete_file(&self, name: &str) -> Result<(), CheckpointError> {
        self.look().await?;
        self.delete(name).await
    }

    /// `None` when there is no such file.
    pub async fn get_file<T: DeserializeOwned>(&self, name: &str) -> Result<Option<(T, Bytes)>, CheckpointError> {
        self.read(name).await?.transpose().map_err(|error| self.entry(name, error))
    }

    /// Names of the folders directly in this one.
    pub async fn folders(&self) -> Result<Vec<String>, CheckpointError> {
        let found = self.answer("list", "", self.store.list_with_delimiter(Some(&self.root))).await?;
        let found = found.map_err(|error| self.store_error("list", "", error))?;
        Ok(found.common_prefixes.iter().filter_map(|prefix| prefix.filename().map(str::to_string)).collect())
    }
}
