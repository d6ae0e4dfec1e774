//! What sources that listen on TCP share: binding, one accept loop, a bound on connections, the end.

use std::{
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
    host: String,
    port: u16,
    listener: Option<std::net::TcpListener>,
    connections_max: usize,
}

impl Server {
    /// Binds, so that a port in use is told before anything runs.
    pub fn bind(component: &Component, host: &str, port: u16, setup: &Setup) -> anyhow::Result<Self> {
        let listener = match bind(host, port) {
            // On reload an old source still has the port; it is bound when that one has stopped.
            Err(_) if is_freed(host, port, &setup.freed) => None,
            bound => Some(bound?),
        };
        Ok(Self { host: host.to_owned(), port, listener, connections_max: component.count("maxConnections") })
    }

    /// The socket, for a source that accepts connections itself.
    pub fn listen(self, out: &Output) -> anyhow::Result<TcpListener> {
        let listener = match self.listener {
            Some(listener) => listener,
            None => bind(&self.host, self.port)?,
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

fn bind(host: &str, port: u16) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((host, port)).map_err(|error| {
        let remedy = if error.kind() == std::io::ErrorKind::AddrInUse { "; stop what listens there, or set another port" } else { "" };
        anyhow::anyhow!("cannot listen on {host}:{port}: {error}{remedy}")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::is_freed;

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
