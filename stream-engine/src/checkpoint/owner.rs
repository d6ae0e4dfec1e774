//! Who may put something into a checkpoint: one process.
//!
//! Whoever begins puts `owner/<epoch>`, above every epoch there is, and is the owner from then on. A put looks first whether it still
//! is, so a process that stood still while another took over puts nothing any more, however long it stood still and whatever has been
//! pruned since, but what was on its way: an entry of a batch that is long done, which nobody reads and the next start prunes. What was on its way when another took over is met there and taken for what it is ([`CheckpointError::Late`]): entries
//! are put only where none is, so each batch has one definition whoever runs it.
//!
//! On a local disk the owner also holds a lock, and who comes second is refused. Elsewhere nobody can tell whether the owner is alive:
//! who comes second takes over, so that a process that was killed can be started again at once.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{COMMITS, Checkpoint, CheckpointError, DEFINITIONS, UPGRADES};
use crate::batch::clock::{Clock as _, SystemClock};

pub(super) const OWNERS: &str = "owner";
const LOCK: &str = "engine.lock";
/// Others may be as fast; not so often.
const TRIES: usize = 100;
/// How often an engine looks whether its place is still its own.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// What an owner keeps in the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// `serve`: the definitions of its jobs.
    Engine,
    /// One job.
    Job,
}

/// Kept as long as the owner lives.
#[derive(Debug)]
pub(super) struct Hold {
    /// Microseconds since 1970, or one more than the newest: never used again, also when everything was deleted.
    pub(super) epoch: u64,
    place: Checkpoint,
    _lock: Option<File>,
}

/// `owner/<epoch>`, for people and to tell one process from another.
#[derive(Serialize, Deserialize)]
struct Owner {
    process: u32,
    host: String,
    since: String,
    id: String,
}

impl Owner {
    fn this_process() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { process: std::process::id(), host: host.trim().into(), since: now(), id: uuid::Uuid::new_v4().simple().to_string() }
    }
}

/// By the machine's clock: it is told to other processes.
fn now() -> String {
    chrono::DateTime::from_timestamp_millis(SystemClock.now_ms()).unwrap_or_default().format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

impl Checkpoint {
    /// The same place, owned: puts through it succeed until another process owns it. Until it is dropped nobody else gets the lock.
    pub async fn own(&self, holder: Holder) -> Result<Self, CheckpointError> {
        let lock = self.lock(holder)?;
        let place = Self { hold: None, ..self.clone() };
        let epoch = place.take_epoch().await?;
        for old in place.ids(OWNERS).await?.into_iter().filter(|old| *old < epoch) {
            place.delete(&format!("{OWNERS}/{old}")).await?;
        }
        place.sweep().await?;
        Ok(Self { hold: Some(Arc::new(Hold { epoch, place, _lock: lock })), ..self.clone() })
    }

    async fn take_epoch(&self) -> Result<u64, CheckpointError> {
        for _ in 0..TRIES {
            // Finer than the clock of batches: the next owner may come within the same millisecond.
            let now = SystemClock::now_us();
            let epoch = self.ids(OWNERS).await?.last().map_or(now, |newest| now.max(newest + 1));
            let entry = format!("{OWNERS}/{epoch}");
            let bytes = Bytes::from(self.encode(&entry, &Owner::this_process(), &[])?);
            if !self.create(&entry, bytes.clone()).await? {
                continue;
            }
            self.sync(&entry).await?;
            // All of this rests on puts that replace nothing.
            if self.create(&entry, bytes).await? {
                return Err(self.wrong(
                    "this store replaces an object when it is told to put it only where none is (If-None-Match: *), so two processes \
                     could overwrite each other's entries; use a store with conditional puts"
                        .into(),
                ));
            }
            return Ok(epoch);
        }
        Err(self.wrong(format!("{TRIES} other processes took it over in this moment; who starts them?")))
    }

    /// Takes away the files that were being written to HDFS when a process was killed or a put failed: they get their names no more. Only
    /// for the owner, and not beside a put of its own.
    pub async fn sweep(&self) -> Result<(), CheckpointError> {
        for folder in ["", OWNERS, UPGRADES, DEFINITIONS, COMMITS] {
            for name in self.names(folder).await?.into_iter().filter(|name| is_leftover(name)) {
                self.delete(&if folder.is_empty() { name } else { format!("{folder}/{name}") }).await?;
            }
        }
        Ok(())
    }

    /// Is this process still the owner? A place that is not owned may be written by anybody who has it (a savepoint's target).
    pub(super) async fn look(&self) -> Result<(), CheckpointError> {
        let Some(hold) = &self.hold else { return Ok(()) };
        let newest = hold.place.ids(OWNERS).await?.last().copied();
        if newest == Some(hold.epoch) {
            return Ok(());
        }
        let by = match newest {
            None => "somebody has deleted it".into(),
            Some(epoch) => match hold.place.read::<Owner>(&format!("{OWNERS}/{epoch}")).await? {
                Some(Ok((Owner { process, host, since, .. }, _))) => {
                    format!("another process has taken it over (process {process} on {host}, since {since})")
                }
                _ => "another process has taken it over".into(),
            },
        };
        Err(CheckpointError::Lost { location: hold.place.location.clone(), by })
    }

    /// Ends when this process is no longer the owner.
    pub async fn lost(&self) -> CheckpointError {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            if let Err(error @ CheckpointError::Lost { .. }) = self.look().await {
                return error;
            }
        }
    }

    /// On a local disk: keeps others away until the file is dropped or the process ends, however it ends.
    fn lock(&self, holder: Holder) -> Result<Option<File>, CheckpointError> {
        let Some(root) = &self.local else { return Ok(None) };
        let path = root.join(LOCK);
        let cannot = |what: &str, error: std::io::Error| self.wrong(format!("cannot {what} `{}`: {error}", path.display()));
        std::fs::create_dir_all(root).map_err(|error| cannot("create the folder of", error))?;
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(|error| cannot("open", error))?;
        match file.try_lock() {
            Ok(()) => {
                let owner = format!("process {}, since {}", std::process::id(), now());
                file.set_len(0).and_then(|()| file.write_all(owner.as_bytes())).map_err(|error| cannot("write", error))?;
                Ok(Some(file))
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Who it is helps; that there is one counts.
                file.take(200).read_to_string(&mut owner).ok();
                let owner = if owner.is_empty() { "another process".to_owned() } else { owner };
                let by = match holder {
                    Holder::Engine => format!(
                        "another engine keeps its jobs here ({owner}); two engines would run the same jobs. Stop it, or give this one another place (jobs.checkpoint)"
                    ),
                    Holder::Job => format!(
                        "another process runs a job here ({owner}); two would run the same batches. Stop it, or give this one another place (--checkpoint)"
                    ),
                };
                Err(CheckpointError::Held { location: self.location.clone(), by })
            }
            Err(std::fs::TryLockError::Error(error)) => Err(cannot("lock", error)),
        }
    }
}

/// `.7.tmp.1`: what the client of HDFS writes before it has the name `7`.
fn is_leftover(name: &str) -> bool {
    let number = name.strip_prefix('.').and_then(|name| name.rsplit_once(".tmp.")).map(|(_, number)| number);
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}
