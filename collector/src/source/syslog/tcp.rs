//! `syslogtcp`.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::net::TcpStream;

use super::fields::Keep;
use super::format::{self, Format};
use super::framing::Frame;
use super::pattern::Parser;
use super::{Accepting, CLIENT_IP, CLIENT_NAME, EVENT_SIZE, FRAMING, HOST, KEEP_FIELDS, Reader};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Kind, Property, Role};
use crate::source::server::{CONNECTIONS_MAX, Server};
use crate::source::{Output, Setup, Source, Stop};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("syslogtcp"),
    class: Some("org.apache.flume.source.SyslogTcpSource"),
    doc: "Syslog over TCP, RFC 3164 and RFC 5424. A full channel makes senders wait; Flume drops their messages. The rest of a connection that is closed without a newline is a message, too.",
    properties: tls::with_listener![
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        HOST,
        EVENT_SIZE,
        KEEP_FIELDS,
        CLIENT_IP,
        CLIENT_NAME,
        format::REGEX,
        format::SEARCH,
        format::REPLACE,
        format::DATE_FORMAT,
        FRAMING,
        CONNECTIONS_MAX,
    ],
    deprecated: &[],
    misspelt: &[("bind", "host"), ("clientIpHeader", "clientIPHeader"), ("keepfields", "keepFields")],
    adopt: adopts_nothing,
    batch: None,
    review: super::review_tcp,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let port = u16::try_from(component.integer("port")).context("port")?;
    let server = Server::bind(component, component.text("host").trim(), port, &setup)?;
    let session = Session {
        accepting: Accepting::build(component, setup.strict, usize::MAX)?,
        parser: Parser { keep: Keep::parse(component.text("keepFields")), format: Format::of(component)?, strict: setup.strict },
    };
    Ok(Box::new(SyslogTcp { server, session: Arc::new(session) }))
}

struct SyslogTcp {
    server: Server,
    session: Arc<Session>,
}

struct Session {
    accepting: Accepting,
    parser: Parser,
}

#[async_trait]
impl Source for SyslogTcp {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let serve = |stream: TcpStream, address: SocketAddr| {
            let (session, out, stop) = (self.session.clone(), out.clone(), stop.clone());
            async move { session.accepting.serve(stream, address, &*session, &out, &stop).await }
        };
        self.server.run(&out, &stop, serve).await
    }
}

impl Reader for Session {
    fn read(&self, frame: Frame, _out: &Output, now: DateTime<Utc>) -> Event {
        self.parser.event(frame.text, frame.cut, now)
    }
}
