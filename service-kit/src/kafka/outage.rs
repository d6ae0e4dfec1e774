//! A broker that is away is logged once, and once more when it is back.
//!
//! All clients of a process that share a bootstrap list share one [`Outage`], so that a service with a reader, a writer
//! and an admin client reports one outage, not three. While it lasts, and for [`FORGOTTEN_AFTER`], it outlives its clients: one that tries
//! again with a new client each time reports one outage too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{debug, error, info, warn};

use super::wire;

static OUTAGES: Mutex<BTreeMap<String, Arc<Outage>>> = Mutex::new(BTreeMap::new());

pub(super) struct Outage {
    servers: String,
    tls: bool,
    away: AtomicBool,
    /// A broker has answered.
    answered: AtomicBool,
    /// A probe thread is running.
    probing: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    /// A client was made then.
    wanted: Option<Instant>,
    /// The latest reason a client gave, also while the outage is not declared yet.
    reason: String,
    /// Host names reported as not resolving.
    unresolved: BTreeSet<String>,
    /// Refusals that were reported.
    refused: BTreeSet<String>,
}

impl Outage {
    /// The one for this bootstrap list.
    pub(super) fn of(servers: &str, tls: bool) -> Arc<Self> {
        let mut outages = OUTAGES.lock();
        outages.retain(|name, outage| name == servers || !outage.forgotten(1));
        if let Some(outage) = outages.get(servers) {
            outage.state.lock().wanted = Some(Instant::now());
            return Arc::clone(outage);
        }
        let outage = Arc::new(Self {
            servers: servers.to_owned(),
            tls,
            away: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            state: Mutex::new(State { wanted: Some(Instant::now()), ..State::default() }),
        });
        outages.insert(servers.to_owned(), Arc::clone(&outage));
        outage
    }

    /// No client has it any more (`own`: references beside clients'), and nothing is worth remembering.
    fn forgotten(self: &Arc<Self>, own: usize) -> bool {
        let state = self.state.lock();
        Arc::strong_count(self) <= own && (state.since.is_none() || state.wanted.is_none_or(|at| at.elapsed() >= FORGOTTEN_AFTER))
    }

    /// A client lost all its connections. That alone says little (brokers close idle connections), so a thread looks
    /// for [`PROBES`] tries whether a server of the list still answers, and, if none does, until one answers again.
    pub(super) fn suspect(self: &Arc<Self>) {
        if self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let outage = Arc::clone(self);
        let probe = move || {
            // A broker that is going down may take connections for a moment yet.
            let mut answered = 0;
            loop {
                // The list of outages has one, this thread the other.
                if outage.forgotten(2) {
                    outage.probing.store(false, Ordering::Release);
                    return;
                }
                if outage.answers() {
                    answered += 1;
                    outage.back();
                } else {
                    answered = 0;
                    outage.away(&outage.reason());
                }
                if answered >= PROBES {
                    outage.probing.store(false, Ordering::Release);
                    return;
                }
                thread::sleep(PROBE_INTERVAL);
            }
        };
        if let Err(failed) = thread::Builder::new().name("kafka-probe".into()).spawn(probe) {
            debug!(error = %failed, "cannot start the probe; the next request will tell");
            self.probing.store(false, Ordering::Release);
        }
    }

    /// No broker can be reached.
    pub(super) fn away(&self, reason: &str) {
        let mut state = self.state.lock();
        reason.clone_into(&mut state.reason);
        if state.since.is_none() {
            state.since = Some(Instant::now());
            self.away.store(true, Ordering::Relaxed);
            metrics::counter!("millrace_kafka_outages_total").increment(1);
            warn!(servers = self.servers, reason, "no Kafka broker can be reached; waiting for one, nothing is dropped");
        }
    }

    /// A broker answered. Two relaxed loads while nothing is wrong.
    pub(super) fn back(&self) {
        if !self.answered.load(Ordering::Relaxed) {
            self.answered.store(true, Ordering::Relaxed);
        }
        if !self.away.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        if let Some(since) = state.since.take() {
            self.away.store(false, Ordering::Relaxed);
            info!(servers = self.servers, away_seconds = since.elapsed().as_secs_f64(), "Kafka is back");
        }
    }

    /// One connection failed; only kept, to explain what follows from it.
    pub(super) fn failed(&self, reason: &str) {
        reason.clone_into(&mut self.state.lock().reason);
    }

    /// A name of the list does not resolve: reported once for each name.
    pub(super) fn unresolved(&self, reason: &str) {
        let mut state = self.state.lock();
        reason.clone_into(&mut state.reason);
        // The reason begins with the broker's name; the rest may vary from try to try.
        let name = reason.split("/bootstrap").next().unwrap_or(reason);
        if state.unresolved.len() < UNRESOLVED_MAX && state.unresolved.insert(name.to_owned()) {
            warn!(servers = self.servers, reason, "a Kafka server's name does not resolve; going on with the others");
        }
    }

    /// A broker, or TLS, refuses a client's connections: reported once until one is taken.
    pub(super) fn refused(&self, reason: &str) {
        let mut state = self.state.lock();
        reason.clone_into(&mut state.reason);
        if state.refused.len() < UNRESOLVED_MAX && state.refused.insert(reason.to_owned()) {
            error!(servers = self.servers, reason, "Kafka cannot be used; trying again until it can, nothing is dropped");
        }
    }

    /// One that was refused is taken.
    pub(super) fn accepted(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.refused).is_empty() {
            info!(servers = self.servers, "Kafka takes the connection");
        }
    }

    fn answers(&self) -> bool {
        let addresses = self.servers.split(',').filter_map(|server| server.to_socket_addrs().ok()).flatten();
        addresses.take(PROBED_MAX).any(|address| self.speak(&address).is_ok())
    }

    /// Connects, and asks what versions the broker speaks where it can be asked without TLS.
    fn speak(&self, address: &SocketAddr) -> std::io::Result<()> {
        let mut stream = TcpStream::connect_timeout(address, PROBE_TIMEOUT)?;
        if self.tls {
            return Ok(());
        }
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(&wire::api_versions())?;
        stream.read_exact(&mut [0; 4])
    }

    /// Some broker was reached before, and none that all are away since.
    pub(super) fn answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed) && !self.away.load(Ordering::Relaxed)
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// Latest reason of a failed connection; empty when none failed.
    pub(super) fn reason(&self) -> String {
        self.state.lock().reason.clone()
    }

    pub(super) fn servers(&self) -> &str {
        &self.servers
    }
}

/// How long an outage without a client is remembered, so that the next client's is the same one.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Probes in a row that must be answered before an alarm is called false, or an outage over.
const PROBES: usize = 4;
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
const PROBED_MAX: usize = 16;

/// Names and refusals remembered as reported; more than this are not.
const UNRESOLVED_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_one_cluster_share_an_outage() {
        let a = Outage::of("shared:1", false);
        let b = Outage::of("shared:1", false);
        a.away("connection refused");
        assert!(b.away.load(Ordering::Relaxed));
        assert_eq!(b.reason(), "connection refused");
        b.back();
        assert!(!a.away.load(Ordering::Relaxed));
        assert!(!Arc::ptr_eq(&a, &Outage::of("other:1", false)));
    }

    #[test]
    fn an_outage_outlives_clients_that_come_and_go() {
        Outage::of("tries:1", false).away("refused");
        let next = Outage::of("tries:1", false);
        let since = next.state.lock().since;
        assert!(since.is_some(), "the next try is in the same outage");
        next.away("refused");
        assert_eq!(next.state.lock().since, since);
        next.state.lock().wanted = Instant::now().checked_sub(FORGOTTEN_AFTER);
        drop(next);
        drop(Outage::of("another:1", false));
        assert!(Outage::of("tries:1", false).state.lock().since.is_none(), "nobody asked for so long");
    }

    #[test]
    fn an_outage_is_counted_once_until_it_ends() {
        let outage = Outage::of("once:1", false);
        outage.away("a");
        let since = outage.state.lock().since;
        outage.away("b");
        assert_eq!(outage.state.lock().since, since);
        outage.back();
        outage.back();
        assert_eq!(outage.state.lock().since, None);
    }
}
