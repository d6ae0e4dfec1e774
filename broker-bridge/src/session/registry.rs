//! All sessions of this process by group and name: their number is bounded, and idle ones expire.

use std::{collections::HashMap, sync::Arc};

use futures::future::join_all;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;

use super::{Deps, Session, Settings, instance_not_found};
use crate::{
    auth::{self, Kind, Verb},
    error::{BridgeError, Code, Result},
};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    deps: Arc<Deps>,
    by_name: Mutex<HashMap<(String, String), Arc<Session>>>,
}

impl Sessions {
    pub(crate) fn new(deps: Deps) -> Self {
        Self { inner: Arc::new(Inner { deps: Arc::new(deps), by_name: Mutex::default() }) }
    }

    /// `name: None` takes a name of its own.
    pub(crate) fn create(&self, group: &str, name: Option<String>, settings: Settings) -> Result<Arc<Session>> {
        auth::check(Verb::Read, Kind::Group, group)?;
        let max = self.inner.deps.config.sessions_max;
        let name = name.unwrap_or_else(|| format!("millrace-{}", uuid::Uuid::new_v4()));
        let mut by_name = self.inner.by_name.lock();
        if by_name.len() >= max {
            return Err(BridgeError::new(
                Code::TooMany,
                format!(
                    "the bridge has {max} consumers already (consume.sessions_max); delete instances that are not used, or raise the limit"
                ),
            ));
        }
        let key = (group.to_owned(), name.clone());
        if by_name.contains_key(&key) {
            return Err(BridgeError::new(
                Code::InstanceExists,
                format!("group {group:?} has an instance {name:?} already; go on with it, delete it, or take another name"),
            ));
        }
        let session = Arc::new(Session::new(group.to_owned(), name, settings, Arc::clone(&self.inner.deps)));
        by_name.insert(key, Arc::clone(&session));
        gauge(by_name.len());
        Ok(session)
    }

    /// Also keeps it from expiring.
    pub(crate) fn get(&self, group: &str, name: &str) -> Result<Arc<Session>> {
        let found = self.inner.by_name.lock().get(&(group.to_owned(), name.to_owned())).cloned();
        let session = found.ok_or_else(|| instance_not_found(group, name))?;
        auth::check_owner(session.owner.as_ref(), || format!("instance {name:?} of group {group:?}"))?;
        session.touch();
        Ok(session)
    }

    /// Ends a session. `acknowledge`: the client itself ends it.
    pub(crate) async fn remove(&self, session: &Session, acknowledge: bool) {
        {
            let mut by_name = self.inner.by_name.lock();
            by_name.remove(&(session.group.clone(), session.name.clone()));
            gauge(by_name.len());
        }
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
        let expired: Vec<Arc<Session>> = self.inner.by_name.lock().values().filter(|session| session.is_idle(idle)).cloned().collect();
        for session in &expired {
            tracing::info!(group = session.group, instance = session.name, ?idle, "idle consumer left its group");
            metrics::counter!("millrace_bridge_sessions_expired_total").increment(1);
            self.remove(session, false).await;
        }
        expired.len()
    }

    /// Ends all, so that their groups rebalance now and not when Kafka misses them.
    pub(crate) async fn close(&self) {
        let all: Vec<Arc<Session>> = self.inner.by_name.lock().values().cloned().collect();
        join_all(all.iter().map(|session| self.remove(session, false))).await;
    }
}

fn gauge(count: usize) {
    metrics::gauge!("millrace_bridge_sessions").set(count as f64);
}
