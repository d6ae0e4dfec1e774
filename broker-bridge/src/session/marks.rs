//! Offsets without a record to give: the marks of transactions, and partitions blocked by a record that cannot be shown.

use tokio::sync::MutexGuard;

use super::{Arc, Session, state::State};

impl Session {
    /// Moves behind the marks that the client has passed; gives the lock back. What fails here is done with the next acknowledgement.
    pub(super) async fn pass_marks<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(member) = state.source.as_ref().map(|source| Arc::clone(&source.member)) else { return state };
        let positions = member.positions().await;
        let passed = state.pass_marks(&positions);
        if passed.is_empty() {
            return state;
        }
        if let Err(error) = self.acknowledge(state, passed, false).await {
            tracing::debug!(%error, group = self.group, instance = self.name, "marks of transactions are passed later");
        }
        self.state.lock().await
    }

    /// Keeps the client from reading what would only be dropped.
    pub(super) async fn pause_blocked(&self, state: &mut State) {
        let Some(member) = state.source.as_ref().map(|source| Arc::clone(&source.member)) else { return };
        for partition in state.blocked() {
            if state.paused.contains(&partition) {
                continue;
            }
            match member.set_paused(&partition, true).await {
                Ok(()) => drop(state.paused.insert(partition)),
                Err(error) => tracing::debug!(%error, %partition, "not paused; its records are dropped as they come"),
            }
        }
    }
}
