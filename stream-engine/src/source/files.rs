//! Which files of a directory are new: the log of a file stream. Offset `n` is the n-th file that was found; its value is the
//! file's name.
//!
//! The directory is looked through at each cut. A file is new when its name passes the filter, it was modified after the
//! threshold and not after now, and it was not taken before. The threshold is the start of the job (`new_files_only`; else
//! the beginning of time), and never further back than `spark.streaming.fileStream.minRememberDuration`. A file must appear in
//! one step, complete, by a rename, and not change afterwards: it is read once, whole, in the batch that took it.
//!
//! Which files a batch holds is written down, in the checkpoint's folder where it has one, before the batch is: a batch that
//! runs again reads the same. Files that came while the job was away are found when it is back.

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path as FilePath, PathBuf},
    sync::OnceLock,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use futures::{TryStreamExt as _, stream::BoxStream};
use object_store::{ObjectStore, local::LocalFileSystem};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use service_kit::kafka::{Bounds, KafkaError, Record};
use tokio::sync::Mutex as AsyncMutex;
use tracing::warn;

use super::local::{LocalLog, Place, Released, Resume};
use super::log::Log;
use crate::batch::clock::interval_ms;

/// Given a file's name without its directory.
pub(crate) type Filter = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// A file that a batch holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) path: String,
    modified_ms: i64,
    taken_ms: i64,
}

impl Taken {
    pub(crate) fn decode(value: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(value).map_err(|error| anyhow::anyhow!("no file's name: {error}"))
    }
}

pub(crate) struct FilesLog {
    directory: PathBuf,
    filter: Filter,
    new_files_only: bool,
    open: OnceLock<(Place, Log)>,
    /// Held while the directory is looked through.
    seen: AsyncMutex<Option<Seen>>,
    /// Files that may be looked at again, by their offsets.
    recent: Mutex<BTreeMap<i64, Taken>>,
}

/// How far the directory was looked through.
struct Seen {
    /// What was modified until then is no file of this job.
    initial_ms: i64,
    last_ms: i64,
    missing: bool,
}

impl FilesLog {
    /// `directory`: a path or a file: URL. The error says what is wrong with it.
    pub(crate) fn new(directory: &str, filter: Filter, new_files_only: bool) -> Result<Self, String> {
        let path = match directory.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err(format!("`{directory}`: a file URL has three slashes: file:///path")),
            Some((scheme, _)) => return Err(format!("`{directory}`: scheme `{scheme}` is not built in; give a path or file:///path")),
            None if directory.is_empty() => return Err("the directory is empty".into()),
            None => directory,
        };
        let directory = std::path::absolute(path).map_err(|error| format!("`{path}` is no usable path: {error}"))?;
        Ok(Self { directory, filter, new_files_only, open: OnceLock::new(), seen: AsyncMutex::new(None), recent: Mutex::default() })
    }

    fn opened(&self) -> Result<&(Place, Log), KafkaError> {
        self.open.get().ok_or_else(|| KafkaError::Conflict("the file stream's log is not open".into()))
    }

    /// Takes what is new, oldest first.
    async fn look(&self) -> Result<(), KafkaError> {
        let (place, log) = self.opened()?;
        let mut seen = self.seen.lock().await;
        let Some(seen) = seen.as_mut() else { return Ok(()) };
        let now_ms = place.clock.now_ms();
        let remember_ms = interval_ms(place.settings.file_remember);
        // Measured from the last look, so that what came while nobody looked is found.
        let threshold_ms = seen.initial_ms.max(seen.last_ms.min(now_ms) - remember_ms);
        let Some(found) = list(&self.directory).await? else {
            if !std::mem::replace(&mut seen.missing, true) {
                warn!(job = %place.job, source = %place.source, directory = %self.directory.display(), "the directory does not exist; there are no files before it does");
            }
            return Ok(());
        };
        seen.missing = false;
        let mut new: Vec<Taken> = {
            let recent = self.recent.lock();
            let known: HashSet<&str> = recent.values().map(|taken| taken.path.as_str()).collect();
            let is_new = |(path, modified_ms): &(String, i64)| {
                let name = path.rsplit('/').next().unwrap_or(path);
                (self.filter)(name) && *modified_ms > threshold_ms && *modified_ms <= now_ms && !known.contains(path.as_str())
            };
            let taken = |(path, modified_ms)| Taken { path, modified_ms, taken_ms: now_ms };
            found.into_iter().filter(is_new).map(taken).collect()
        };
        new.sort_by(|a, b| (a.modified_ms, &a.path).cmp(&(b.modified_ms, &b.path)));
        let encode = |taken: &Taken| serde_json::to_vec(taken).map(Bytes::from);
        let names: Vec<Bytes> = new.iter().map(encode).collect::<Result<_, _>>().map_err(|error| KafkaError::Fatal(error.to_string()))?;
        let first = log.bounds().latest;
        // Names are few bytes; they do not wait for the bound, which a batch that waits for this could not make.
        log.append(names, log.no_room())
            .await
            .map_err(|failed| KafkaError::Retryable(format!("cannot write down which files are new: {}", failed.reason)))?;
        let mut recent = self.recent.lock();
        recent.extend((first..).zip(new));
        recent.retain(|_, taken| taken.modified_ms > threshold_ms);
        seen.last_ms = now_ms;
        Ok(())
    }
}

/// Paths and modification times in milliseconds of the files in a directory; `None`: there is no such directory.
async fn list(directory: &FilePath) -> Result<Option<Vec<(String, i64)>>, KafkaError> {
    let failed = |error: object_store::Error| KafkaError::Retryable(format!("cannot list `{}`: {error}", directory.display()));
    if !tokio::fs::try_exists(directory).await.unwrap_or(true) {
        return Ok(None);
    }
    let store = LocalFileSystem::new_with_prefix(directory).map_err(failed)?;
    let listed = store.list_with_delimiter(None).await.map_err(failed)?;
    let files = listed.objects.into_iter().map(|file| {
        let path = directory.join(file.location.as_ref());
        (path.to_string_lossy().into_owned(), DateTime::timestamp_millis(&file.last_modified))
    });
    Ok(Some(files.collect()))
}

#[async_trait]
impl LocalLog for FilesLog {
    async fn open(&self, place: Place) -> anyhow::Result<()> {
        let durable = place.folder.is_some();
        let log = Log::open(&place, durable).await?;
        let Bounds { earliest, latest } = log.bounds();
        let records: Vec<Vec<Record>> = log.read(earliest, latest).try_collect().await?;
        let mut recent = BTreeMap::new();
        for record in records.into_iter().flatten() {
            recent.insert(record.offset, Taken::decode(&record.value.unwrap_or_default())?);
        }
        *self.recent.lock() = recent;
        anyhow::ensure!(self.open.set((place, log)).is_ok(), "the file stream's log is open already");
        Ok(())
    }

    fn begin(&self, resume: &Resume) {
        let Some((_, log)) = self.open.get() else { return };
        log.begin(resume.next);
        let initial_ms = if self.new_files_only { resume.started_at_ms } else { 0 };
        let last_ms = resume.last_ms.unwrap_or(resume.started_at_ms);
        // Nobody looks before this.
        if let Ok(mut seen) = self.seen.try_lock() {
            *seen = Some(Seen { initial_ms, last_ms, missing: false });
        }
    }

    async fn bounds(&self) -> Result<Bounds, KafkaError> {
        self.look().await?;
        Ok(self.opened()?.1.bounds())
    }

    fn read(&self, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        match self.opened() {
            Ok((_, log)) => log.read(from, until),
            Err(error) => Box::pin(futures::stream::iter([Err(error)])),
        }
    }

    fn release(&self, released: Released) {
        let Ok((_, log)) = self.opened() else { return };
        // A file that may be seen again must be known as taken, also after a restart.
        let known = self.recent.lock().keys().next().copied().unwrap_or(i64::MAX);
        log.release(Released { replayed: released.replayed.min(known), ..released });
    }

    async fn stop(&self) {
        // Looks once more, so that a drain has everything that is there.
        if let Some((place, log)) = self.open.get() {
            if let Err(error) = self.look().await {
                warn!(%error, job = %place.job, source = %place.source, "cannot look for new files once more");
            }
            *self.seen.lock().await = None;
            log.close();
        }
    }
}
