//! What sources that listen on TCP share: binding, one accept loop, a bound on connections, the end.

use std::{
    io::ErrorKind,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::task::TaskTracker;

use super::{Output, Setup, Source, Stop};
use crate::flume_conf::{Component, Property};

/// The property that every listening source has.
pub const CONNECTIONS_MAX: Property =
    Property::integer("maxConnections", 1, 65_536, Some("1024"), "Connections at a time; more wait to be accepted.").own();

pub struct Server {
    address: Address,
    listener: Option<std::net::TcpListener>,
    connections_max: usize,
}

impl Server {
    /// Binds, so that a port in use is told before anything runs.
    pub fn bind(component: &Component, host: &str, port: u16, setup: &Setup) -> anyhow::Result<Self> {
        let address = Address::of(component, host, port);
        let listener = match bind(&address) {
            // On reload an old source still has the port; it is bound when that one has stopped.
            Err(_) if is_freed(host, port, &setup.freed) => None,
            bound => Some(bound?),
        };
        Ok(Self { address, listener, connections_max: component.count("maxConnections") })
    }

    /// The socket, for a source that accepts connections itself.
    pub fn listen(self, out: &Output) -> anyhow::Result<TcpListener> {
        let listener = match self.listener {
            Some(listener) => listener,
            None => bind(&self.address)?,
        };
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        out.listens(address);
        tracing::info!(source = out.name(), %address, "listening");
        Ok(listener)
    }

    /// Serves each connection in a task of its own until [`Stop::begin`], then waits for those that are open.
    /// An error of `serve` ends its connection only.
    pub async fn run<Serving>(self, out: &Output, stop: &Stop, serve: impl Fn(TcpStream, SocketAddr) -> Serving) -> anyhow::Result<()>
    where
        Serving: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.connections_max));
        let listener = self.listen(out)?;
        let mut refused = false;
        let sessions = TaskTracker::new();
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = stop.begin.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if std::mem::take(&mut refused) {
                        out.trouble(None);
                    }
                    let (serving, out, abandon) = (serve(stream, peer), out.clone(), stop.abandon.clone());
                    sessions.spawn(async move {
                        let _permit = permit;
                        out.counters.connections.fetch_add(1, Relaxed);
                        tokio::select! {
                            result = serving => if let Err(error) = result {
                                tracing::debug!(source = out.name(), %peer, error = format!("{error:#}"), "connection ended");
                            },
                            () = abandon.cancelled() => {}
                        }
                        out.counters.connections.fetch_sub(1, Relaxed);
                    });
                }
                Err(error) => {
                    // Out of file handles, most likely: a moment later some may be free.
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(source = out.name(), %error, "cannot accept connections; trying again until it works");
                    }
                    out.trouble(Some(format!("cannot accept connections: {error}")));
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
        sessions.close();
        sessions.wait().await;
        Ok(())
    }
}

/// What a source does with one connection, until it ends or [`Stop::begin`].
#[async_trait]
pub trait Answer: Send + Sync + 'static {
    async fn serve(&self, tcp: TcpStream, peer: SocketAddr, out: &Output, stop: &Stop) -> anyhow::Result<()>;
}

/// A source with `bind` and `port` whose connections have nothing in common but their [`Answer`].
pub struct Answering<A> {
    server: Server,
    answer: Arc<A>,
}

impl<A: Answer> Answering<A> {
    pub fn build(component: &Component, setup: &Setup, answer: A) -> anyhow::Result<Box<dyn Source>> {
        let port = u16::try_from(component.integer("port")).context("port")?;
        let server = Server::bind(component, component.text("bind").trim(), port, setup)?;
        Ok(Box::new(Self { server, answer: Arc::new(answer) }))
    }
}

#[async_trait]
impl<A: Answer> Source for Answering<A> {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let answer = self.answer;
        let serve = |stream, peer| {
            let (answer, out, stop) = (answer.clone(), out.clone(), stop.clone());
            async move { answer.serve(stream, peer, &out, &stop).await }
        };
        self.server.run(&out, &stop, serve).await
    }
}

/// Will a source that stops on reload free this address? One on all addresses holds the port of each of them.
pub(super) fn is_freed(host: &str, port: u16, freed: &[SocketAddr]) -> bool {
    let Ok(wanted) = (host, port).to_socket_addrs() else { return false };
    wanted.into_iter().any(|wanted| {
        let same = |held: &SocketAddr| held.ip() == wanted.ip() || held.ip().is_unspecified() || wanted.ip().is_unspecified();
        port != 0 && freed.iter().any(|held| held.port() == port && same(held))
    })
}

/// Where a source listens, and the properties that say so.
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    /// Name and place of the properties.
    host_key: String,
    port_key: String,
}

impl Address {
    pub(super) fn of(component: &Component, host: &str, port: u16) -> Self {
        let key = |names: [&'static str; 2]| {
            let key = names.into_iter().find(|key| component.kind.property(key).is_some()).unwrap_or_default();
            match component.settings.get(key).and_then(|setting| setting.place.as_ref()) {
                Some(place) => format!("{key}, {}:{}", place.file, place.line),
                None => key.to_owned(),
            }
        };
        Self { host: host.to_owned(), port, host_key: key(["bind", "host"]), port_key: key(["port", "ports"]) }
    }

    pub(super) fn refused(&self, error: &std::io::Error) -> anyhow::Error {
        let (remedy, key) = match error.kind() {
            ErrorKind::AddrInUse => ("stop what listens there, or set another port", &self.port_key),
            ErrorKind::PermissionDenied => ("set a port from 1024 on, or give the process CAP_NET_BIND_SERVICE", &self.port_key),
            _ => ("set an address of this machine, or 0.0.0.0 for all of them", &self.host_key),
        };
        anyhow::anyhow!("cannot listen on {}:{}: {error}; {remedy} ({key})", self.host, self.port)
    }
}

fn bind(address: &Address) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((address.host.as_str(), address.port)).map_err(|error| address.refused(&error))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::{Address, bind, is_freed};
    use crate::flume_conf::{Component, Place, component::Setting};

    #[test]
    fn an_address_that_cannot_be_had_is_told_with_its_property_and_line() {
        let mut component = Component::new(&crate::source::netcat::KIND, "r", "netcat");
        let setting = |line| Setting { value: String::new(), place: Some(Place { file: "a.conf".into(), line }) };
        component.settings = [("bind".to_owned(), setting(3)), ("port".to_owned(), setting(4))].into();
        let error = |host, port| bind(&Address::of(&component, host, port)).err().map(|error| error.to_string()).unwrap_or_default();
        let unknown = error("nohost.invalid", 4141);
        assert!(unknown.starts_with("cannot listen on nohost.invalid:4141: ") && unknown.ends_with("(bind, a.conf:3)"), "{unknown}");
        let held = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| Ok((listener.local_addr()?, listener)));
        let taken = held.map(|(address, _held)| error("127.0.0.1", address.port())).unwrap_or_default();
        assert!(taken.ends_with("stop what listens there, or set another port (port, a.conf:4)"), "{taken}");
    }

    #[test]
    fn only_the_running_sources_own_port_is_waited_for() {
        for (host, port, freed, expected) in [
            ("127.0.0.1", 9001, "127.0.0.1:9001", true),
            ("localhost", 9001, "127.0.0.1:9001", true),
            ("127.0.0.1", 9001, "0.0.0.0:9001", true),
            ("0.0.0.0", 9001, "127.0.0.1:9001", true),
            ("127.0.0.1", 9002, "127.0.0.1:9001", false),
            ("127.0.0.1", 9001, "127.0.0.2:9001", false),
            ("127.0.0.1", 0, "127.0.0.1:9001", false),
        ] {
            let freed: Vec<_> = freed.parse().into_iter().collect();
            assert_eq!(is_freed(host, port, &freed), expected, "{host}:{port} after {freed:?}");
        }
    }
}
