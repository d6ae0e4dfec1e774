//! Syslog over TCP and UDP, RFC 3164 and RFC 5424, as Flume's three sources read it.
//!
//! | file | what it does |
//! |---|---|
//! | `tcp.rs`, `multiport.rs`, `udp.rs` | the sources |
//! | `framing.rs` | messages out of a TCP stream |
//! | `pattern.rs` | a message's fields for `syslogtcp` and `syslogudp` |
//! | `format.rs`, `date_format.rs` | a format of one's own |
//! | `positional.rs` | a message's fields for `multiport_syslogtcp`, which names its headers differently |

pub mod date_format;
pub mod fields;
pub mod format;
pub mod framing;
pub mod multiport;
pub mod pattern;
pub mod positional;
pub mod tcp;
pub mod time;
pub mod udp;

use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;

use self::framing::{Frame, Frames};
use super::peer::Peers;
use super::{Output, Stop};
use crate::event::Event;
use crate::flume_conf::{Component, Finding, Property};
use crate::tls;

/// Header of a message that is not as it should be: `Invalid` or `Incomplete`.
pub const STATUS: &str = "flume.syslog.status";

const HOST: Property = Property::text("host", Some("0.0.0.0"), "Address to listen on.");
const EVENT_SIZE: Property = Property::integer(
    "eventSize",
    10,
    16_777_216,
    Some("2500"),
    "Bytes of a message. A longer one is cut: its first part has the header `flume.syslog.status` = `Incomplete`, the rest follows as events of their own.",
);
const KEEP_FIELDS: Property = Property::text(
    "keepFields",
    Some("none"),
    "What stays in the body of the message's header: `none`, `all`, or some of `priority version timestamp hostname`. (`false` and `true` are old for `none` and `all`.)",
);
const CLIENT_IP: Property = Property::text("clientIPHeader", None, "Header that takes the sender's IP address.");
const CLIENT_NAME: Property = Property::text(
    "clientHostnameHeader",
    None,
    "Header that takes the sender's host name, looked up backwards; its IP address where it has none within two seconds.",
);
const FRAMING: Property = Property::choice(
    "framing",
    &["auto", "newline"],
    "auto",
    "`newline`: a message is a line, as for Flume (and with --flume-strict). `auto`: also `LENGTH MESSAGE` (RFC 6587, octet counting).",
)
.own();

fn review_tcp(component: &Component, strict: bool) -> Vec<Finding> {
    review_common(component, strict).into_iter().chain(tls::review_server(component, strict)).collect()
}

fn review_common(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut findings = format::review(component);
    if let Some(setting) = component.settings.get("keepFields") {
        let known = |word: &str| ["none", "false", "all", "true"].contains(&word) || fields::Keep::FIELDS.contains(&word);
        let text = setting.value.to_ascii_lowercase();
        if let Some(word) = text.split([' ', '\t', ',']).find(|word| !word.is_empty() && !known(word)) {
            let finding =
                Finding::warning("wrong-value", format!("`{word}` is no field that can be kept")).maybe_at(setting.place.as_ref());
            let remedy = format!("write none, all, or some of {}", fields::Keep::FIELDS.join(" "));
            findings.push(finding.key(format!("{}.keepFields", component.name)).flume("overlooks it without a word").remedy(remedy));
        }
    }
    findings
}

/// What becomes of a message that came over TCP.
trait Reader: Sync {
    fn read(&self, frame: Frame, out: &Output, now: DateTime<Utc>) -> Event;
}

/// What the connections of a source have in common.
struct Accepting {
    size_max: usize,
    /// Messages may begin with their length.
    counted: bool,
    batch_max: usize,
    peers: Peers,
    tls: Option<TlsAcceptor>,
}

impl Accepting {
    fn build(component: &Component, strict: bool, batch_max: usize) -> anyhow::Result<Self> {
        Ok(Self {
            size_max: component.count("eventSize"),
            counted: !strict && component.text("framing").trim().eq_ignore_ascii_case("auto"),
            batch_max,
            peers: Peers::of(component),
            tls: tls::acceptor(component, &[])?,
        })
    }

    /// Serves one connection to its end. Where the channel is full the sender has to wait.
    async fn serve(&self, stream: TcpStream, address: SocketAddr, reader: &impl Reader, out: &Output, stop: &Stop) -> anyhow::Result<()> {
        match &self.tls {
            None => read(self, stream, address, reader, out, stop).await,
            Some(tls) => read(self, tls::shaken(out, address, tls.accept(stream)).await?, address, reader, out, stop).await,
        }
    }
}

async fn read(
    accepting: &Accepting,
    mut stream: impl AsyncRead + Unpin,
    address: SocketAddr,
    reader: &impl Reader,
    out: &Output,
    stop: &Stop,
) -> anyhow::Result<()> {
    let headers = accepting.peers.headers(address).await;
    let mut frames = Frames::new(accepting.size_max, accepting.counted);
    loop {
        let read = tokio::select! {
            read = stream.read_buf(frames.buffer()) => read,
            // Of a message that is not complete nothing has been accepted.
            () = stop.begin.cancelled() => return Ok(()),
        };
        let open = matches!(read, Ok(count) if count > 0);
        let now = Utc::now();
        let most = accepting.batch_max.min(out.batch_max());
        let mut events: Vec<Event> = Vec::new();
        loop {
            let frame = frames.next().or_else(|| if open { None } else { frames.rest() });
            let through = frame.is_none();
            if let Some(frame) = frame {
                // What a connection that broke leaves is no whole message.
                let cut = frame.cut || read.is_err();
                let mut event = reader.read(Frame { cut, ..frame }, out, now);
                for (name, value) in &headers {
                    event.set_header(name, value.clone());
                }
                events.push(event);
            }
            if events.len() >= most || (through && !events.is_empty()) {
                let mut batch = std::mem::take(&mut events);
                out.trace(&mut batch);
                out.hold_back(batch, stop).await;
            }
            if through {
                break;
            }
        }
        if !open {
            return read.map(|_| ()).map_err(Into::into);
        }
    }
}
