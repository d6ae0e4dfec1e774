//! Files in a folder or below the URL of an object store, for outputs: opened as checkpoints are. One request, one try.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::location::{Opened, Place, sync};

#[derive(Debug, thiserror::Error)]
#[error("{location}: cannot {what} `{entry}`: {error}")]
pub(crate) struct FolderError {
    location: String,
    what: &'static str,
    entry: String,
    error: Box<Error>,
}

impl FolderError {
    /// The store may answer when it is asked again.
    pub(super) fn retryable(&self) -> bool {
        !matches!(
            *self.error,
            Error::NotFound { .. }
                | Error::NotSupported { .. }
                | Error::NotImplemented { .. }
                | Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
        )
    }
}

/// Entries are named by their path in the folder, with `/`.
#[derive(Debug)]
pub(crate) struct Folder {
    location: String,
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// Set for a local disk: what is put is synced.
    local: Option<PathBuf>,
    /// Set for a store on the network.
    timeout: Option<Duration>,
    /// Listings begin at a name where they are told to, instead of giving everything.
    lists_from: bool,
}

impl Folder {
    /// Makes the folder where it is a local one. The error says what is wrong, without the location.
    pub(crate) fn open(location: &str, config: &CheckpointConfig) -> Result<Self, String> {
        let place = Place::parse(location)?;
        let Opened { store, root, local, timeout } = place.open(config)?;
        let location = location.trim_end_matches('/').to_owned();
        Ok(Self { location, store, root, local, timeout, lists_from: matches!(place, Place::S3 { .. }) })
    }

    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn is_on_network(&self) -> bool {
        self.timeout.is_some()
    }

    /// Puts a file, also where there is one. Readers see it whole or not at all.
    pub(crate) async fn put(&self, entry: &str, content: Bytes) -> Result<(), FolderError> {
        self.answer("write", entry, self.store.put(&self.path(entry), content.into())).await?;
        self.sync(entry).await
    }

    /// Puts a file where none is. False: there is one.
    pub(crate) async fn create(&self, entry: &str, content: Bytes) -> Result<bool, FolderError> {
        let path = self.path(entry);
        let put = async {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&path, content.into(), options).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let created = self.answer("write", entry, put).await?;
        // Also one that is there: its writer may have died before it was on the disk.
        self.sync(entry).await?;
        Ok(created)
    }

    /// `None` when there is none.
    pub(crate) async fn read(&self, entry: &str) -> Result<Option<Bytes>, FolderError> {
        let path = self.path(entry);
        let read = async {
            match self.store.get(&path).await {
                Ok(found) => found.bytes().await.map(Some),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.answer("read", entry, read).await
    }

    /// One that is not there is deleted.
    pub(crate) async fn delete(&self, entry: &str) -> Result<(), FolderError> {
        let path = self.path(entry);
        let delete = async {
            // What the store stages on a local disk it does not take for files of its own.
            let deleted = match &self.local {
                Some(root) => tokio::fs::remove_file(root.join(entry)).await.map_err(of_disk),
                None => self.store.delete(&path).await,
            };
            match deleted {
                Err(Error::NotFound { .. }) => Ok(()),
                other => other,
            }
        };
        self.answer("delete", entry, delete).await
    }

    /// Names of the files directly in `folder` (`""` is this one), with those that were being written when a process died; where the
    /// store can, only those behind `from`.
    pub(crate) async fn names(&self, folder: &str, from: &str) -> Result<Vec<String>, FolderError> {
        let prefix = self.path(folder);
        let list = async {
            if let Some(root) = &self.local {
                return local_names(root.join(folder)).await;
            }
            let objects = if self.lists_from {
                let below: Vec<_> = self.store.list_with_offset(Some(&prefix), &prefix.clone().join(from)).try_collect().await?;
                below.into_iter().filter(|meta| meta.location.parts_count() == prefix.parts_count() + 1).collect()
            } else {
                self.store.list_with_delimiter(Some(&prefix)).await?.objects
            };
            Ok(objects.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect())
        };
        self.answer("list", folder, list).await
    }

    fn path(&self, entry: &str) -> Path {
        entry.split('/').filter(|part| !part.is_empty()).fold(self.root.clone(), |path, part| path.join(part))
    }

    async fn answer<T>(
        &self,
        what: &'static str,
        entry: &str,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, FolderError> {
        let answered = match self.timeout {
            None => call.await,
            Some(timeout) => tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| {
                let source = format!("no answer within {}", humantime::format_duration(timeout)).into();
                Err(Error::Generic { store: "store", source })
            }),
        };
        answered.map_err(|error| FolderError { location: self.location.clone(), what, entry: entry.to_owned(), error: Box::new(error) })
    }

    /// The file and the folders that were made for it.
    async fn sync(&self, entry: &str) -> Result<(), FolderError> {
        let Some(root) = &self.local else { return Ok(()) };
        let sync = async {
            let mut entry = Some(std::path::Path::new(entry));
            while let Some(part) = entry.filter(|part| part.file_name().is_some()) {
                sync(root.join(part)).await.map_err(of_disk)?;
                entry = part.parent();
            }
            Ok(())
        };
        self.answer("sync", entry, sync).await
    }
}

async fn local_names(folder: PathBuf) -> object_store::Result<Vec<String>> {
    let listed = async {
        let mut names = Vec::new();
        let mut entries = tokio::fs::read_dir(folder).await?;
        while let Some(entry) = entries.next_entry().await? {
            if entry.file_type().await?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    };
    match listed.await {
        Err(error) if std::io::Error::kind(&error) == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(of_disk),
    }
}

fn of_disk(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path: String::new(), source: Box::new(error) },
        _ => Error::Generic { store: "disk", source: Box::new(error) },
    }
}
