//! The sessions that this process holds, by group and name: their number is bounded, and idle ones expire.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::{Deps, Session, Settings, instance_not_found, sharing::Sharing};
use crate::{
    auth::{self, Kind, Verb},
    error::{BridgeError, Code, Result},
};

/// As long as a topic's name may be.
const GROUP_BYTES_MAX: usize = 249;

/// Idle sessions that are ended at a time.
const EXPIRED_AT_ONCE: usize = 16;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) deps: Arc<Deps>,
    by_name: Mutex<HashMap<(String, String), Arc<Session>>>,
}

impl Sessions {
    pub(crate) fn new(deps: Deps) -> Self {
        Self { inner: Arc::new(Inner { deps: Arc::new(deps), by_name: Mutex::default() }) }
    }

    /// One that only this process knows. `name: None` takes a name of its own.
    pub(crate) fn create(&self, group: &str, name: Option<String>, settings: Settings) -> Result<Arc<Session>> {
        self.insert(group, name, settings, None)
    }

    pub(super) fn insert(&self, group: &str, name: Option<String>, settings: Settings, sharing: Option<Sharing>) -> Result<Arc<Session>> {
        if group.is_empty() || group.len() > GROUP_BYTES_MAX || group.contains(char::is_control) {
            return Err(BridgeError::new(
                Code::Unprocessable,
                format!("{group:?} is no name of a group: 1 to {GROUP_BYTES_MAX} bytes without control characters"),
            ));
        }
        auth::check(Verb::Read, Kind::Group, group)?;
        if let Some(letters) = settings.acknowledged.as_ref().and_then(|acknowledged| acknowledged.dead_letters.as_ref()) {
            auth::check(Verb::Write, Kind::Topic, &letters.topic)?;
        }
        let name = name.unwrap_or_else(|| format!("millrace-{}", uuid::Uuid::new_v4()));
        let mut by_name = self.inner.by_name.lock();
        if by_name.len() >= self.inner.deps.config.sessions_max {
            return Err(self.full());
        }
        let key = (group.to_owned(), name.clone());
        if by_name.contains_key(&key) {
            return Err(BridgeError::new(
                Code::InstanceExists,
                format!("group {group:?} has an instance {name:?} already; go on with it, delete it, or take another name"),
            ));
        }
        let session = Arc::new(Session::new(group.to_owned(), name, settings, Arc::clone(&self.inner.deps), sharing));
        by_name.insert(key, Arc::clone(&session));
        gauge(by_name.len());
        Ok(session)
    }

    /// Refuses one more than there may be.
    pub(super) fn has_room(&self) -> Result<()> {
        if self.count() < self.inner.deps.config.sessions_max { Ok(()) } else { Err(self.full()) }
    }

    fn full(&self) -> BridgeError {
        let max = self.inner.deps.config.sessions_max;
        BridgeError::new(
            Code::TooMany,
            format!(
                "the bridge has {max} consumers already (consume.sessions_max); delete instances that are not used, or raise the limit"
            ),
        )
    }

    pub(super) fn hold(&self, session: Arc<Session>) -> Arc<Session> {
        let mut by_name = self.inner.by_name.lock();
        by_name.insert((session.group.clone(), session.name.clone()), Arc::clone(&session));
        gauge(by_name.len());
        session
    }

    /// Requests do not find it here any more.
    pub(super) fn forget(&self, session: &Session) {
        let mut by_name = self.inner.by_name.lock();
        let key = (session.group.clone(), session.name.clone());
        // Another one of the same name may have taken its place.
        if by_name.get(&key).is_some_and(|held| std::ptr::eq(&**held, session)) {
            by_name.remove(&key);
        }
        gauge(by_name.len());
    }

    pub(super) fn holds(&self, key: &(String, String)) -> bool {
        self.inner.by_name.lock().contains_key(key)
    }

    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.inner.by_name.lock().values().cloned().collect()
    }

    /// Also keeps it from expiring.
    pub(crate) fn get(&self, group: &str, name: &str) -> Result<Arc<Session>> {
        let found = self.inner.by_name.lock().get(&(group.to_owned(), name.to_owned())).cloned();
        let session = found.ok_or_else(|| instance_not_found(group, name))?;
        auth::check_owner(session.owner.as_deref(), || format!("instance {name:?} of group {group:?}"))?;
        auth::lend(session.connection.as_ref());
        session.touch();
        Ok(session)
    }

    /// Ends a session here. `acknowledge`: the client itself ends it.
    pub(crate) async fn remove(&self, session: &Session, acknowledge: bool) {
        self.forget(session);
        session.close(acknowledge).await;
    }

    /// For work that belongs to a session and outlives a call.
    pub(crate) fn tasks(&self) -> TaskTracker {
        self.inner.deps.tasks.clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.inner.by_name.lock().len()
    }

    /// Ends every session that was idle for too long; gives how many.
    pub(crate) async fn expire(&self) -> usize {
        let idle = self.inner.deps.config.session_idle;
        let expired: Vec<Arc<Session>> = self.all().into_iter().filter(|session| session.is_idle(idle)).collect();
        // Side by side: each may wait for its group, and for Kafka.
        let ended = stream::iter(expired).map(async |session| {
            // A request may have come meanwhile.
            if !session.is_idle(idle) {
                return 0;
            }
            tracing::info!(group = session.group, instance = session.name, ?idle, "idle consumer left its group");
            metrics::counter!("millrace_bridge_sessions_expired_total").increment(1);
            if let Err(error) = self.delete(&session, false).await {
                tracing::debug!(%error, group = session.group, instance = session.name, "another bridge may find the consumer still");
            }
            1
        });
        ended.buffer_unordered(EXPIRED_AT_ONCE).fold(0, async |sum, ended| sum + ended).await
    }
}

fn gauge(count: usize) {
    metrics::gauge!("millrace_bridge_sessions").set(count as f64);
}
