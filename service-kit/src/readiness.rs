//! When the service may be sent work: when every latch is released. gRPC health follows.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

/// Latches by name. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    /// Name → how many latches of that name are still held.
    held: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { held: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }
}

impl Readiness {
    /// Holds readiness back until the latch is released. A latch that is dropped without release holds for ever: what it stood for did not happen.
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let name = name.into();
        self.held.send_modify(|held| *held.entry(name.clone()).or_default() += 1);
        Latch { name, held: self.held.clone() }
    }

    pub fn is_ready(&self) -> bool {
        self.held.borrow().is_empty()
    }

    /// The names of what is still waited for.
    pub fn pending(&self) -> Vec<String> {
        self.held.borrow().keys().cloned().collect()
    }

    /// Wakes at every latch and release.
    pub(crate) fn watch(&self) -> watch::Receiver<BTreeMap<String, usize>> {
        self.held.subscribe()
    }
}

/// One thing that must happen before the service is ready.
#[must_use = "readiness waits until the latch is released"]
pub struct Latch {
    name: String,
    held: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

impl Latch {
    pub fn release(self) {
        self.held.send_modify(|held| {
            if let Some(count) = held.get_mut(&self.name) {
                *count -= 1;
                if *count == 0 {
                    held.remove(&self.name);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_latch_is_released_and_a_dropped_latch_is_not_a_released_one() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let (sinks, first, second) = (readiness.latch("sinks"), readiness.latch("source"), readiness.latch("source"));
        first.release();
        assert_eq!(readiness.pending(), ["sinks", "source"]);
        second.release();
        assert_eq!(readiness.pending(), ["sinks"]);
        drop(sinks);
        assert!(!readiness.is_ready());
    }
}
