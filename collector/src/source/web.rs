//! What sources that answer HTTP have in common: a listener with its limits and TLS, and puts that outlive their client.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use service_kit::{
    config::LimitsConfig,
    listen::{Tls, serve_http},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::server::Server;
use super::{Output, Setup, Stop};
use crate::channel::PutError;
use crate::event::Event;
use crate::flume_conf::{Component, Property};
use crate::tls;

pub const CONNECTIONS_MAX: Property =
    Property::integer("maxConnections", 1, 65_536, Some("1024"), "Connections at a time; more are closed at once.").own();
pub const REQUESTS_MAX: Property =
    Property::integer("maxRequests", 1, 65_536, Some("1024"), "Requests at a time; more are told to come back later.").own();

/// When a refused client is told to come back.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// By so much the listener waits longer than a source that bounds the time of bodies itself.
const OWN_TIME_FIRST: Duration = Duration::from_secs(5);

/// How long a request waits for a paused source.
const PAUSE_WAIT: Duration = Duration::from_secs(5);

/// A listener, bound.
pub struct Web {
    server: Server,
    tls: Option<TlsAcceptor>,
    limits: LimitsConfig,
}

impl Web {
    /// With the component's `bind`, `port`, `maxConnections`, `maxRequests` and TLS. Bodies have `body_bytes` at most, and where the
    /// source itself bounds their time, `body_time`.
    pub fn build(component: &Component, body_bytes: usize, body_time: Option<Duration>, setup: &Setup) -> anyhow::Result<Self> {
        let port = u16::try_from(component.integer("port")).context("port")?;
        let count = |property: &Property| NonZeroU32::new(u32::try_from(component.integer(property.name))?).context(property.name);
        let connections_max = count(&CONNECTIONS_MAX)?;
        let defaults = LimitsConfig::default();
        let body_bytes_max = body_bytes as u64;
        let limits = LimitsConfig {
            connections_max,
            connections_per_ip_max: connections_max,
            requests_max: count(&REQUESTS_MAX)?,
            body_bytes_max,
            body_timeout: body_time.map_or(defaults.body_timeout, |time| time + OWN_TIME_FIRST),
            body_idle_timeout: body_time.map_or(defaults.body_idle_timeout, |time| time + OWN_TIME_FIRST),
            bodies_bytes_max: defaults.bodies_bytes_max.max(2 * body_bytes_max),
            ..defaults
        };
        Ok(Self {
            tls: tls::acceptor(component, &["h2", "http/1.1"])?,
            server: Server::bind(component, component.text("bind").trim(), port, setup)?,
            limits,
        })
    }

    /// Serves until [`Stop::begin`], then until every put has ended.
    pub async fn run(self, out: Output, stop: Stop, router: impl FnOnce(Puts) -> Router) -> anyhow::Result<()> {
        let listener = self.server.listen(&out)?;
        let puts = Puts { out: out.clone(), tasks: TaskTracker::new() };
        let router = router(puts.clone());
        let tls = self.tls.map(|acceptor| Tls { acceptor, failed: Arc::new(move |peer, error| out.no_tls(peer, error)) });
        serve_http("source", listener, tls, router, self.limits, stop.begin, stop.abandon.clone()).await?;
        // A client that has gone does not end its put.
        puts.tasks.close();
        tokio::select! {
            () = puts.tasks.wait() => {}
            () = stop.abandon.cancelled() => {}
        }
        Ok(())
    }
}

/// Why a request's events were not taken; none of them was.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the source is paused")]
    Paused,
    #[error(transparent)]
    Channel(#[from] PutError),
    #[error("the put failed")]
    Broken,
}

/// Where requests put their events: all of a request's, or none.
#[derive(Clone)]
pub struct Puts {
    pub out: Output,
    tasks: TaskTracker,
}

impl Puts {
    #[cfg(test)]
    pub fn into_output(out: Output) -> Self {
        Self { out, tasks: TaskTracker::new() }
    }

    pub async fn put(&self, mut events: Vec<Event>) -> Result<(), Refused> {
        // A put that is waited for without bound would be answered before it is made.
        if tokio::time::timeout(PAUSE_WAIT, self.out.unpaused()).await.is_err() {
            return Err(Refused::Paused);
        }
        self.out.counters.batches_received.add(1);
        self.out.trace(&mut events);
        // In a task of its own: a client that goes away must not end a put of which some channels have their part.
        let out = self.out.clone();
        match self.tasks.spawn(async move { out.offer(events).await }).await {
            Ok(Ok(())) => {
                self.out.counters.batches_accepted.add(1);
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Err(error) => {
                tracing::error!(source = self.out.name(), %error, "a put failed");
                Err(Refused::Broken)
            }
        }
    }
}
