//! What Millrace's services do identically, once.
//!
//! A service is a [`Service`] given to [`run`]; `examples/minimal.rs` is a whole one.
//!
//! | module | question it answers |
//! |---|---|
//! | `app` | what happens from start to exit code |
//! | [`config`] | what was configured, and what is wrong with it |
//! | [`telemetry`] | logs, traces and their way out |
//! | [`metrics`] | every metric's name, unit and labels |
//! | [`readiness`] | when the service may be sent work |
//! | [`listen`] | the only place a socket is bound; limits of HTTP and gRPC |
//! | `admin` | the control port: status, drain, log level, health, reflection |
//! | [`kafka`] | the only code that names a Kafka client crate |
//! | [`offsets`] | where consumer offsets are kept |
//! | [`hbase`] | how to speak to HBase |
//! | [`fault`] | how a debug build is made to fail where a test wants it |
//! | [`files`] | which files have changed |
//! | [`verifier`] | which servers are believed, where that is not their certificate's authority and name |

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use proto::control::v1::ReloadResponse;
use proto::{ErrorKind, ServiceError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod admin;
mod app;
pub mod config;
pub mod fault;
pub mod files;
#[cfg(test)]
mod generated;
pub mod hbase;
pub mod kafka;
pub mod listen;
pub mod metrics;
pub mod offsets;
pub mod readiness;
pub mod telemetry;
pub mod verifier;

pub use app::exit;
pub use config::{ConfigErrors, KitConfig, Secret};
pub use listen::{HttpEndpoint, ListenAddr, Peer, StreamedBody};
pub use readiness::{Latch, Readiness};

/// Runs a service to its end and gives the process's exit code.
///
/// Builds the runtime, telemetry, the control listener and the service's HTTP listeners; waits for SIGINT, SIGTERM or the service's own end; drains within
/// `shutdown.deadline`. A second signal exits at once. Codes: [`exit`].
pub fn run<S: Service>(service: S, kit: KitConfig) -> ExitCode {
    app::run(service, kit)
}

/// One Millrace service.
#[async_trait]
pub trait Service: Send + 'static {
    /// As it appears in status, traces and logs: `millrace-collector`.
    const NAME: &'static str;

    /// Checks what can be checked and starts the service's tasks. Waiting for an outside party (a broker, a store) belongs in a task behind a
    /// [`Readiness`] latch, not here. An error ends the process with code 1.
    async fn start(self, ctx: Context) -> anyhow::Result<Running>;

    /// Put before everything on the control port, from its first request on. `None`: whoever reaches the port may call.
    fn guard(&self) -> Option<Guard> {
        None
    }
}

/// Wraps what is served, so that it is asked first.
pub type Guard = Box<dyn FnOnce(axum::Router) -> axum::Router + Send>;

/// What a service was given. Cheap to clone.
#[derive(Clone, Default)]
pub struct Context {
    /// Cancelled when the drain begins: requests in flight have been answered, no new ones come.
    pub shutdown: CancellationToken,
    /// Every task of the service is spawned here; the drain waits for them.
    pub tasks: TaskTracker,
    /// The service is ready when every latch taken from here is released.
    pub readiness: Readiness,
    /// Where the listeners were bound, by name; there before the first request is.
    pub addresses: Arc<OnceLock<BTreeMap<&'static str, SocketAddr>>>,
}

/// What a started service gives back.
pub struct Running {
    /// Behind the `Control` gRPC service.
    pub control: Arc<dyn Control>,
    /// The service's own gRPC services (`Routes::default()` if none), served on the control port.
    pub grpc: tonic::service::Routes,
    pub http: Vec<HttpEndpoint>,
    /// Completes when the service is finished: by itself, or after `Context::shutdown` is cancelled and everything accepted is delivered.
    /// An error ends the process with code 1.
    pub done: BoxFuture<'static, anyhow::Result<()>>,
}

/// What an operator can ask of a running service. The defaults are right for a service that has nothing to do there.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Short facts for people, in the order to show them.
    async fn facts(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// None when healthy, else what is wrong (health DEGRADED).
    async fn degraded(&self) -> Option<String> {
        None
    }

    /// What takes no input because an operator paused it (health PAUSED).
    async fn paused(&self) -> Vec<String> {
        Vec::new()
    }

    async fn reload(&self) -> Result<ReloadResponse, ServiceError> {
        Err(unsupported("reload"))
    }

    /// Stops taking input of `component`, of everything when it is empty; gives the names of what was paused.
    async fn pause(&self, _component: &str) -> Result<Vec<String>, ServiceError> {
        Err(unsupported("pause"))
    }

    async fn resume(&self, _component: &str) -> Result<Vec<String>, ServiceError> {
        Err(unsupported("resume"))
    }

    /// Events, records or rows accepted and not yet delivered. A drain asks until it is 0 or its deadline passes.
    async fn remaining(&self) -> u64 {
        0
    }

    /// `(format, text)`: `toml` or `properties`; secrets masked.
    fn effective_config(&self) -> (String, String);
}

fn unsupported(what: &str) -> ServiceError {
    ServiceError::new(ErrorKind::Unsupported, format!("this service has nothing to {what}"))
}
