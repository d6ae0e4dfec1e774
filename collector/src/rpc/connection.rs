//! A connection with what its settings put around it.
//!
//! With `ssl` and `compression-type = deflate` both, Flume since 1.10 compresses the encrypted bytes, and before encrypted
//! the compressed ones. A listener sees by the first byte which of them a client does; a caller does as Flume 1.11.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls::pki_types::ServerName};

use super::deflate::Deflated;
use super::filter::Filter;
use crate::flume_conf::{Component, Finding, Property};
use crate::source::Output;
use crate::tls;

pub const COMPRESSION: Property =
    Property::choice("compression-type", &["none", "deflate"], "none", "`deflate` makes the stream zlib; both sides must have the same.");
pub const LEVEL: Property = Property::integer("compression-level", 0, 9, Some("6"), "Of `deflate`: 0 none, 1 fastest, 9 smallest.");

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

pub type Stream = Box<dyn Duplex>;

/// Flume's own level on the answering side.
const ANSWER_LEVEL: u32 = 6;
/// The first byte of every TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// The listening side.
pub struct Accepting {
    tls: Option<TlsAcceptor>,
    deflate: bool,
    filter: Option<Filter>,
}

impl Accepting {
    pub fn build(component: &Component) -> anyhow::Result<Self> {
        let filter = component.boolean("ipFilter").then(|| Filter::parse(component.text("ipFilterRules"))).transpose();
        Ok(Self {
            tls: tls::acceptor(component, &[])?,
            deflate: component.text(COMPRESSION.name).trim().eq_ignore_ascii_case("deflate"),
            filter: filter.map_err(|error| anyhow::anyhow!("ipFilterRules: {error}"))?,
        })
    }

    pub async fn accept(&self, tcp: TcpStream, peer: SocketAddr, out: &Output) -> anyhow::Result<Stream> {
        if let Some(filter) = &self.filter {
            anyhow::ensure!(filter.allows(peer, tcp.local_addr()?).await, "{peer} may not connect (ipFilterRules)");
        }
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(if self.deflate { Box::new(Deflated::new(tcp, ANSWER_LEVEL)) } else { Box::new(tcp) });
        };
        let handshake = async {
            if !self.deflate {
                return Ok::<Stream, io::Error>(Box::new(tls.accept(tcp).await?));
            }
            let mut first = [0];
            tcp.peek(&mut first).await?;
            if first == [TLS_HANDSHAKE] {
                return Ok(Box::new(Deflated::new(tls.accept(tcp).await?, ANSWER_LEVEL)));
            }
            Ok(Box::new(tls.accept(Deflated::new(tcp, ANSWER_LEVEL)).await?))
        };
        tls::shaken(out, peer, handshake).await
    }
}

/// The calling side.
pub struct Calling {
    host: String,
    port: u16,
    server: Option<ServerName<'static>>,
    tls: Option<TlsConnector>,
    deflate: Option<u32>,
    timeout: Duration,
}

impl Calling {
    pub fn build(component: &Component, timeout: Duration) -> anyhow::Result<Self> {
        let host = component.text("hostname").trim().to_owned();
        let tls = tls::connector(component)?;
        let server = tls.as_ref().map(|_| ServerName::try_from(host.clone())).transpose();
        let deflate = component.text(COMPRESSION.name).trim().eq_ignore_ascii_case("deflate");
        Ok(Self {
            server: server.with_context(|| format!("hostname `{host}` cannot be a certificate's"))?,
            host,
            port: u16::try_from(component.integer("port")).context("port")?,
            tls,
            deflate: deflate.then(|| u32::try_from(component.integer(LEVEL.name)).unwrap_or(ANSWER_LEVEL)),
            timeout,
        })
    }

    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub async fn connect(&self) -> anyhow::Result<Stream> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            let stream: Stream = match self.deflate {
                Some(level) => Box::new(Deflated::new(tcp, level)),
                None => Box::new(tcp),
            };
            Ok::<Stream, anyhow::Error>(match (&self.tls, &self.server) {
                (Some(tls), Some(server)) => Box::new(tls.connect(server.clone(), stream).await.context("TLS")?),
                _ => stream,
            })
        };
        let connected =
            timeout(self.timeout, connecting).await.with_context(|| format!("no connection within {:?} (connect-timeout)", self.timeout));
        connected.flatten().with_context(|| format!("cannot connect to {}", self.address()))
    }
}

/// What is wrong with `ipFilter` and `ipFilterRules`.
pub fn review_filter(component: &Component) -> Option<Finding> {
    if !component.boolean("ipFilter") {
        return None;
    }
    let (fault, place) = match component.settings.get("ipFilterRules") {
        Some(setting) => (Filter::parse(&setting.value).err()?, setting.place.as_ref()),
        None => ("`ipFilter` is true and there are no rules".to_owned(), None),
    };
    Some(
        Finding::error("wrong-value", fault)
            .maybe_at(place)
            .key(format!("{}.ipFilterRules", component.name))
            .flume("drops the source")
            .remedy("write rules as allow:ip:10.1.*,deny:name:* or leave ipFilter out"),
    )
}
