//! Savepoints by name, in `<checkpoint>/savepoints/<name>/`; one elsewhere is a [`Checkpoint`] of its own.

use super::{Checkpoint, CheckpointError};

const SAVEPOINTS: &str = "savepoints";

/// A savepoint that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Savepoint {
    pub name: String,
    pub location: String,
    /// Newest batch in it.
    pub batch: u64,
    /// That batch's time, milliseconds since the epoch.
    pub time_ms: i64,
}

impl Checkpoint {
    /// Where the savepoint of this name is, or would be.
    pub fn savepoint(&self, name: &str) -> Self {
        self.child(SAVEPOINTS).child(name)
    }

    /// By name. One that cannot be read is left out, and said.
    pub async fn savepoints(&self) -> Result<Vec<Savepoint>, CheckpointError> {
        let mut found = Vec::new();
        for name in self.child(SAVEPOINTS).folders().await? {
            let savepoint = self.savepoint(&name);
            match savepoint.load().await {
                Ok(loaded) => {
                    // Without metadata it was not finished, without a commit it is being deleted.
                    if let (Some(_), Some((commit, _))) = (loaded.metadata, loaded.commit) {
                        found.push(Savepoint { name, location: savepoint.location, batch: commit.id, time_ms: commit.time_ms });
                    }
                }
                Err(error) if error.retryable() => return Err(error),
                Err(error) => tracing::warn!(%error, "a savepoint cannot be read"),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// False when there is none of this name.
    pub async fn delete_savepoint(&self, name: &str) -> Result<bool, CheckpointError> {
        let savepoint = self.savepoint(name);
        let there = savepoint.occupied().await?.is_some();
        savepoint.clear().await?;
        Ok(there)
    }
}
