//! The only place a socket is bound. Every listener, HTTP and gRPC alike, holds the same limits (`[limits]`).
//!
//! | file | what it bounds |
//! |---|---|
//! | `serve.rs` | connections: how many, how many of one address, how long until the first bytes, how old |
//! | `request.rs` | requests: how many, header fields, time to the response, refusal while draining |
//! | `body.rs` | bodies: bytes as sent and decompressed, time; and how streams end when the service drains |
//! | `write.rs` | answers: how long a client may take nothing of them |
//! | `tls.rs` | TLS from files that may change, and who the client is |

mod body;
mod request;
mod serve;
mod tls;
mod write;

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    net::SocketAddr,
    path::Path,
    str::FromStr,
    sync::{Arc, atomic::AtomicU64},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

pub use body::StreamedBody;
pub use request::{DRAINING, REFUSED};
pub use tls::{ClientCertificate, Peer};
pub use write::Unhurried;

use crate::config::{LimitsConfig, TlsConfig};
use crate::exit;
use tls::Handshake;

/// Names the file that gets the bound addresses as JSON, `{"control":"127.0.0.1:41234"}`, once all are bound.
const ADDRESS_FILE: &str = "MILLRACE_ADDRESS_FILE";

/// The name of the listener for operators.
pub(crate) const CONTROL: &str = "control";

/// An HTTP listener of a service.
pub struct HttpEndpoint {
    /// The section of the configuration that holds `listen`, e.g. `http`; also the listener's name in logs, metrics and the address file.
    pub name: &'static str,
    pub listen: ListenAddr,
    pub tls: TlsConfig,
    pub router: axum::Router,
}

/// How a listener ends, in this order. Each token is shared by the listeners that take the step together.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    /// New requests are refused, except control calls; event streams and gRPC streams end.
    pub(crate) drain: CancellationToken,
    /// No more connections; the open ones close after their request.
    pub(crate) stop: CancellationToken,
    /// Whatever is still open is dropped.
    pub(crate) cut: CancellationToken,
    /// Requests being answered, control calls apart.
    pub(crate) in_flight: TaskTracker,
    /// Bytes of HTTP requests' bodies that are held now.
    pub(crate) body_bytes: Arc<AtomicU64>,
}

/// A bound socket.
pub(crate) struct Listener {
    pub(crate) name: &'static str,
    tcp: TcpListener,
    tls: Option<Handshake>,
    pub(crate) address: SocketAddr,
}

impl Listener {
    pub(crate) async fn bind(name: &'static str, address: ListenAddr, tls: &TlsConfig, limits: &LimitsConfig) -> Result<Self, ListenError> {
        let tls = Handshake::of(name, tls).map_err(|reason| ListenError::Tls { name, reason })?;
        if tls.is_none() && !address.is_loopback() && !limits.allow_plaintext {
            return Err(ListenError::Plaintext { name, address });
        }
        let failed = |error| ListenError::Bind { name, error };
        let tcp = bind_tcp(name, address).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        Ok(Self { name, tcp, tls, address })
    }
}

/// What of these would not open now, all of it; and the exit code. For whoever wants to know before anything has begun.
pub fn check(wanted: &[(&'static str, ListenAddr, &TlsConfig)], limits: &LimitsConfig) -> Result<(), (Vec<String>, u8)> {
    let fault = |&(name, address, tls): &(&'static str, ListenAddr, &TlsConfig)| {
        let tls = match Handshake::of(name, tls) {
            Ok(tls) => tls,
            Err(reason) => return Some(ListenError::Tls { name, reason }),
        };
        if tls.is_none() && !address.is_loopback() && !limits.allow_plaintext {
            return Some(ListenError::Plaintext { name, address });
        }
        let error = std::net::TcpListener::bind(address.0).err()?;
        Some(ListenError::Bind { name, error: sentence(name, address, &error) })
    };
    let faults: Vec<ListenError> = wanted.iter().filter_map(fault).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let config = faults.iter().any(|fault| !matches!(fault, ListenError::Bind { .. }));
    Err((faults.iter().map(ToString::to_string).collect(), if config { exit::CONFIG } else { exit::FAILURE }))
}

fn sentence(name: &str, address: ListenAddr, error: &io::Error) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::AddrInUse => "address in use".into(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".into(),
        io::ErrorKind::PermissionDenied => "permission denied (ports below 1024 need a privilege)".into(),
        _ => error.to_string(),
    };
    io::Error::new(error.kind(), format!("cannot listen on {address} ({name}): {reason}"))
}

/// A socket for a protocol other than HTTP; its limits are its owner's. `name` says whose it is. The error is a whole sentence.
pub async fn bind_tcp(name: &str, address: ListenAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address.0).await.and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
    let (address, tcp) = bound.map_err(|error| sentence(name, address, &error))?;
    info!(name, %address, "listening");
    Ok(tcp)
}

/// TLS of a listener, and who is told of handshakes that fail.
#[derive(Clone)]
pub struct Tls {
    pub acceptor: TlsAcceptor,
    pub failed: Arc<TlsFailed>,
}

/// A client, and why TLS could not be agreed with it.
pub type TlsFailed = dyn Fn(SocketAddr, &io::Error) + Send + Sync;

/// Serves HTTP, with TLS where it is given, on a socket that is not one of the service's own listeners, with all the
/// limits of those. `name` is in the metrics. From `stop` on requests are refused; those that have begun are answered, unless `cut` ends them.
pub async fn serve_http(
    name: &'static str,
    tcp: TcpListener,
    tls: Option<Tls>,
    router: axum::Router,
    limits: LimitsConfig,
    stop: CancellationToken,
    cut: CancellationToken,
) -> io::Result<()> {
    let address = tcp.local_addr()?;
    let ending = Ending { drain: stop.clone(), stop, cut, ..Ending::default() };
    Listener { name, tcp, tls: tls.map(Handshake::from), address }.serve(router, Arc::new(limits), ending).await;
    Ok(())
}

/// Why a listener was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("{error}; set [{name}] listen or {}", variable(name))]
    Bind { name: &'static str, error: io::Error },
    #[error(
        "will not serve without TLS on {address} ({name}), which other machines can reach; set [{name}] listen or {} to a loopback address, or allow it with [limits] allow_plaintext = true",
        variable(name)
    )]
    Plaintext { name: &'static str, address: ListenAddr },
    #[error("[{name}.tls] {reason}")]
    Tls { name: &'static str, reason: String },
}

fn variable(name: &str) -> String {
    format!("MILLRACE_{}__LISTEN", name.to_uppercase())
}

/// Tells whoever started the process which ports it has. The file appears whole or not at all.
pub(crate) fn write_address_file(addresses: &BTreeMap<&str, SocketAddr>) -> io::Result<()> {
    let Some(path) = env::var_os(ADDRESS_FILE) else { return Ok(()) };
    let path = Path::new(&path);
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let text = serde_json::to_vec(addresses)?;
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, path))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {} ({ADDRESS_FILE}): {error}", path.display())))
}

/// Where to listen: an IP address (or `localhost`) and a port; port 0 takes a free one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddr(SocketAddr);

impl ListenAddr {
    pub fn new(address: impl Into<SocketAddr>) -> Self {
        Self(address.into())
    }

    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        self.0.ip().is_loopback()
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        numeric
            .as_deref()
            .unwrap_or(text)
            .parse()
            .map(Self)
            .map_err(|_| format!("`{text}` is not an address to listen on; write an IP address and a port, e.g. 127.0.0.1:7101"))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ListenAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
