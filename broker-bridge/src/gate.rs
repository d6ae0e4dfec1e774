//! Whether work is taken now: not while it is paused, not while the broker is away, not while the bridge drains.
//!
//! A caller gets 503 at once instead of waiting out a deadline; the monitor looks every second whether the broker is back.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use proto::ServiceError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::error::{BridgeError, Code, Result};

/// What can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Produce,
    Consume,
}

impl Work {
    const ALL: [Work; 2] = [Work::Produce, Work::Consume];

    fn name(self) -> &'static str {
        match self {
            Work::Produce => "produce",
            Work::Consume => "consume",
        }
    }
}

pub(crate) struct Gate {
    /// By `Work`.
    paused: [AtomicBool; 2],
    in_flight: [AtomicU64; 2],
    /// Why the broker counts as away.
    away: RwLock<Option<String>>,
    /// Cancelled when the broker was looked at for the first time.
    asked: CancellationToken,
    shutdown: CancellationToken,
    suspicion: Notify,
}

/// One unit of work that was let in; it counts as in flight until dropped.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    work: Work,
    amount: u64,
}

impl Gate {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            paused: Default::default(),
            in_flight: Default::default(),
            away: RwLock::new(None),
            asked: CancellationToken::new(),
            shutdown,
            suspicion: Notify::new(),
        }
    }

    /// Lets `amount` records or requests in, or says why not.
    pub(crate) fn enter(&self, work: Work, amount: u64) -> Result<Pass<'_>> {
        let unavailable = |message: String| Err(BridgeError::new(Code::Unavailable, message));
        if self.shutdown.is_cancelled() {
            return unavailable("the bridge is shutting down; try another one, or again after its restart".to_owned());
        }
        if self.paused[work as usize].load(Ordering::Relaxed) {
            return unavailable(format!("{0} is paused; resume {0} on the control port", work.name()));
        }
        self.broker()?;
        self.in_flight[work as usize].fetch_add(amount, Ordering::Relaxed);
        Ok(Pass { gate: self, work, amount })
    }

    /// An error while the broker is away.
    pub(crate) fn broker(&self) -> Result<()> {
        match &*self.away.read() {
            None => Ok(()),
            Some(why) => Err(BridgeError::new(
                Code::KafkaRetriable,
                format!("Kafka does not answer ({why}); nothing was written or read, try again: the bridge asks it every second"),
            )),
        }
    }

    /// Notes whether the broker answers; true when that changed.
    pub(crate) fn set_broker(&self, away: Option<String>) -> bool {
        let mut current = self.away.write();
        let changed = current.is_some() != away.is_some();
        *current = away;
        self.asked.cancel();
        changed
    }

    /// Waits for the first [`Self::set_broker`]; where it does not come within `bound`, the broker counts as away until it does.
    pub(crate) async fn first_look(&self, bound: Duration) {
        let _looked = tokio::time::timeout(bound, self.asked.cancelled()).await;
        if !self.asked.is_cancelled() {
            *self.away.write() = Some("no answer yet".to_owned());
        }
    }

    /// Something failed that a broker should have answered: have it looked at now.
    pub(crate) fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Resolves when the bridge begins to shut down.
    pub(crate) fn draining(&self) -> tokio_util::sync::WaitForCancellationFutureOwned {
        self.shutdown.clone().cancelled_owned()
    }

    /// Waits for `suspect`.
    pub(crate) async fn suspected(&self) {
        self.suspicion.notified().await;
    }

    pub(crate) fn degraded(&self) -> Option<String> {
        self.away.read().as_ref().map(|why| format!("Kafka does not answer: {why}"))
    }

    /// Why it should be sent no work now.
    pub(crate) fn unready(&self) -> Option<String> {
        if self.shutdown.is_cancelled() {
            return Some("the bridge is shutting down".to_owned());
        }
        let paused = self.paused();
        if paused.is_empty() { self.degraded() } else { Some(format!("paused: {}", paused.join(", "))) }
    }

    /// The names of what is paused.
    pub(crate) fn paused(&self) -> Vec<String> {
        let paused = Work::ALL.into_iter().filter(|work| self.paused[*work as usize].load(Ordering::Relaxed));
        paused.map(|work| work.name().to_owned()).collect()
    }

    /// Pauses or resumes `produce`, `consume` or (empty) both; gives the names.
    pub(crate) fn set_paused(&self, component: &str, paused: bool) -> Result<Vec<String>, ServiceError> {
        let chosen: Vec<Work> = Work::ALL.into_iter().filter(|work| component.is_empty() || component == work.name()).collect();
        if chosen.is_empty() {
            return Err(ServiceError::not_found(format!("the bridge has no component {component:?}; it has produce and consume")));
        }
        for work in &chosen {
            self.paused[*work as usize].store(paused, Ordering::Relaxed);
        }
        Ok(chosen.into_iter().map(|work| work.name().to_owned()).collect())
    }

    /// Records accepted and not yet acknowledged, and requests for records that are not yet answered.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.in_flight[self.work as usize].fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn paused_work_is_refused_and_the_other_goes_on() {
        let gate = Gate::new(CancellationToken::new());
        assert_eq!(gate.set_paused("produce", true).unwrap(), ["produce"]);
        let error = gate.enter(Work::Produce, 1).err().unwrap();
        assert_eq!((error.code, error.code.status().as_u16()), (Code::Unavailable, 503));
        assert!(error.message.contains("resume produce"), "{error}");
        assert_eq!((gate.paused(), gate.degraded()), (vec!["produce".to_owned()], None));
        assert_eq!(gate.unready().unwrap(), "paused: produce");
        let pass = gate.enter(Work::Consume, 3).unwrap();
        assert_eq!(gate.in_flight(), 3);
        drop(pass);
        assert_eq!(gate.in_flight(), 0);
        assert_eq!(gate.set_paused("", false).unwrap(), ["produce", "consume"]);
        assert!(gate.enter(Work::Produce, 1).is_ok() && gate.paused().is_empty());
        assert!(gate.set_paused("sink", true).unwrap_err().message.contains("produce and consume"));
    }

    #[test]
    fn a_broker_that_is_away_refuses_at_once_until_it_is_back() {
        let gate = Gate::new(CancellationToken::new());
        assert!(!gate.set_broker(None));
        assert!(gate.set_broker(Some("k:9092 refused".to_owned())));
        assert!(!gate.set_broker(Some("k:9092 timed out".to_owned())));
        let error = gate.enter(Work::Produce, 1).err().unwrap();
        assert_eq!((error.code, error.retryable()), (Code::KafkaRetriable, true));
        assert!(error.message.contains("k:9092 timed out"), "{error}");
        assert_eq!(gate.unready().unwrap(), "Kafka does not answer: k:9092 timed out");
        assert!(gate.set_broker(None) && gate.unready().is_none());
        assert!(gate.enter(Work::Produce, 1).is_ok());
    }

    #[test]
    fn a_draining_bridge_takes_nothing_new() {
        let shutdown = CancellationToken::new();
        let gate = Gate::new(shutdown.clone());
        shutdown.cancel();
        assert_eq!(gate.enter(Work::Consume, 1).err().unwrap().code, Code::Unavailable);
        assert!(gate.unready().unwrap().contains("shutting down"));
    }
}
