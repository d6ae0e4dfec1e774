//! The accept loop and a connection's life.
//!
//! hyper bounds an HTTP/1 header's time only once it knows that it is HTTP/1, so the first bytes are read here, under the same time limit.

use std::{
    collections::HashMap,
    io::{self, Cursor},
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, StatusCode, header::CONNECTION};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::{
    Ending, Listener,
    request::{Requests, reject},
    tls::{ClientCertificate, Handshake, Peer},
    write::{Patience, TimedWriter, Unhurried},
};
use crate::config::LimitsConfig;

const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// When the process has no file descriptor left, accepting again at once only burns CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// For the last frames of streams that were told to end.
const LAST_FRAMES: Duration = Duration::from_secs(1);

impl Listener {
    /// Serves until `ending.stop`, then until the last connection is closed or `ending.cut`.
    pub(crate) async fn serve(self, router: axum::Router, limits: Arc<LimitsConfig>, ending: Ending) {
        let server = Arc::new(Server::new(self.name, self.tls, router, limits, ending.clone()));
        let connections = TaskTracker::new();
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                biased;
                () = ending.stop.cancelled() => break,
                accepted = self.tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    if let Some(slot) = server.admit(peer.ip()) {
                        connections.spawn(server.clone().connection(stream, peer, slot));
                    }
                }
                // The peer was faster to leave than we were to accept.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if !failing {
                        warn!(%error, listener = self.name, "cannot accept connections; trying on");
                        failing = true;
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.tcp);
        connections.close();
        connections.wait().await;
    }
}

struct Server {
    name: &'static str,
    tls: Option<Handshake>,
    limits: Arc<LimitsConfig>,
    ending: Ending,
    requests: Requests,
    http1: auto::Builder<TokioExecutor>,
    http2: auto::Builder<TokioExecutor>,
    open: Arc<Mutex<Open>>,
    open_gauge: metrics::Gauge,
    accepted: metrics::Counter,
}

#[derive(Default)]
struct Open {
    total: u32,
    by_ip: HashMap<IpAddr, u32>,
}

/// One connection's place among the open ones.
pub(super) struct Slot {
    ip: IpAddr,
    open: Arc<Mutex<Open>>,
    gauge: metrics::Gauge,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        open.total -= 1;
        if let Some(count) = open.by_ip.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                open.by_ip.remove(&self.ip);
            }
        }
        self.gauge.set(open.total);
    }
}

impl Server {
    fn new(name: &'static str, tls: Option<Handshake>, router: axum::Router, limits: Arc<LimitsConfig>, ending: Ending) -> Self {
        let mut http1 = auto::Builder::new(TokioExecutor::new()).http1_only();
        http1.http1().timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_buf_size(limits.header_bytes_max as usize);
        let mut http2 = auto::Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams_max.get())
            .max_header_list_size(limits.http2_header_list_bytes_max.get())
            .max_pending_accept_reset_streams(limits.http2_pending_resets_max.get() as usize)
            .keep_alive_interval(limits.http2_keep_alive_interval)
            .keep_alive_timeout(limits.http2_keep_alive_timeout);
        Self {
            requests: Requests::new(name, router, limits.clone(), ending.clone()),
            open: Arc::default(),
            open_gauge: gauge!("millrace_listen_connections", "listener" => name),
            accepted: counter!("millrace_listen_connections_total", "listener" => name),
            name,
            tls,
            limits,
            ending,
            http1,
            http2,
        }
    }

    /// None when a limit is reached: the connection is closed without a word, which costs least.
    fn admit(&self, ip: IpAddr) -> Option<Slot> {
        self.accepted.increment(1);
        let mut open = self.open.lock();
        if open.total >= self.limits.connections_max.get() {
            reject(self.name, "connections");
            return None;
        }
        let of_ip = open.by_ip.entry(ip).or_default();
        if *of_ip >= self.limits.connections_per_ip_max.get() {
            reject(self.name, "connections_per_ip");
            return None;
        }
        *of_ip += 1;
        open.total += 1;
        self.open_gauge.set(open.total);
        Some(Slot { ip, open: self.open.clone(), gauge: self.open_gauge.clone() })
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, slot: Slot) {
        tokio::select! {
            biased;
            () = self.ending.cut.cancelled() => {}
            () = self.clone().converse(stream, peer, slot) => {}
        }
    }

    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, slot: Slot) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, %peer, "cannot set TCP_NODELAY");
        }
        let Some(tls) = &self.tls else {
            let (read, write) = stream.into_split();
            return self.talk(read, write, Peer { address: peer, certificate: None }, slot).await;
        };
        let shaken = tokio::select! {
            shaken = timeout(self.limits.header_timeout, tls.acceptor().accept(stream)) => shaken,
            () = self.ending.stop.cancelled() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let certificate = shown.map(|shown| Arc::new(ClientCertificate::read(shown)));
                let (read, write) = tokio::io::split(stream);
                self.talk(read, write, Peer { address: peer, certificate }, slot).await;
            }
            Ok(Err(error)) => {
                reject(self.name, "tls");
                (tls.failed)(peer, &error);
            }
            Err(_) => {
                reject(self.name, "header_timeout");
                (tls.failed)(peer, &io::Error::new(io::ErrorKind::TimedOut, format!("none within {:?}", self.limits.header_timeout)));
            }
        }
    }

    async fn talk(
        self: Arc<Self>,
        mut read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
        peer: Peer,
        slot: Slot,
    ) {
        let first = tokio::select! {
            first = timeout(self.limits.header_timeout, first_bytes(&mut read)) => first,
            () = self.ending.stop.cancelled() => return,
        };
        let (bytes, http2) = match first {
            Ok(Ok(Some(first))) => first,
            Ok(_) => return, // closed before it said anything
            Err(_) => return reject(self.name, "header_timeout"),
        };
        let patience = Patience::new(self.limits.write_idle_timeout);
        let write = TimedWriter::new(write, patience.clone(), self.name, slot);
        let io = TokioIo::new(tokio::io::join(Cursor::new(bytes).chain(read), write));

        // Ends this connection's streams, when the service drains or the connection is too old.
        let ending = self.ending.drain.child_token();
        let old = Arc::new(AtomicBool::new(false));
        let service = {
            let (server, ending, old, peer) = (self.clone(), ending.clone(), old.clone(), peer.clone());
            hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                let (server, ending, old, patience) = (server.clone(), ending.clone(), old.clone(), patience.clone());
                request.extensions_mut().insert(peer.clone());
                async move {
                    let mut response = server.requests.answer(request, ending).await;
                    if let Ok(response) = &response {
                        patience.set(response.extensions().get::<Unhurried>().copied(), http2);
                    }
                    if let Ok(response) = &mut response
                        && !http2
                        && old.load(Ordering::Relaxed)
                        && response.status() != StatusCode::SWITCHING_PROTOCOLS
                    {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    response
                }
            })
        };
        let builder = if http2 { &self.http2 } else { &self.http1 };
        let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));

        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.ending.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.as_mut().await
            }
            () = sleep(self.limits.connection_age_max) => {
                // HTTP/1 has no word for "no more requests" but an answer's: one that is on its way would be lost by closing.
                old.store(true, Ordering::Relaxed);
                if http2 {
                    connection.as_mut().graceful_shutdown();
                }
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.ending.stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.as_mut().await
                    }
                    () = sleep(self.limits.connection_age_grace) => {
                        connection.as_mut().graceful_shutdown();
                        ending.cancel();
                        timeout(LAST_FRAMES, connection.as_mut()).await.unwrap_or(Ok(()))
                    }
                }
            }
        };
        if let Err(error) = ended {
            if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout) {
                reject(self.name, "header_timeout");
            }
            debug!(%error, peer = %peer.address, listener = self.name, "connection ended");
        }
    }
}

/// As many bytes as tell the protocol, and whether it is HTTP/2. None: closed before that.
async fn first_bytes(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Vec<u8>, bool)>> {
    let mut bytes = [0; HTTP2_PREFACE.len()];
    let mut filled = 0;
    while filled < bytes.len() {
        let count = read.read(&mut bytes[filled..]).await?;
        if count == 0 {
            return Ok(None);
        }
        filled += count;
        if bytes[..filled] != HTTP2_PREFACE[..filled] {
            return Ok(Some((bytes[..filled].to_vec(), false)));
        }
    }
    Ok(Some((bytes.to_vec(), true)))
}
