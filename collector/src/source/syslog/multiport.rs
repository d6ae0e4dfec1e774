//! `multiport_syslogtcp`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::net::TcpStream;

use super::fields::Keep;
use super::framing::Frame;
use super::positional::Parser;
use super::{Accepting, CLIENT_IP, CLIENT_NAME, EVENT_SIZE, FRAMING, HOST, KEEP_FIELDS, Reader};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::source::charset::Charset;
use crate::source::server::{CONNECTIONS_MAX, Server};
use crate::source::{Output, Setup, Source, Stop};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("multiport_syslogtcp"),
    class: Some("org.apache.flume.source.MultiportSyslogTCPSource"),
    doc: "Syslog over TCP on several ports. As Flume's, it names two headers `Priority` and `Version`, and one that is no syslog message has only `flume.syslog.status`. A full channel makes senders wait; Flume drops their messages.",
    properties: tls::with_listener![
        Property::text("ports", None, "Ports to listen on, separated by blanks.").required(),
        HOST,
        EVENT_SIZE,
        KEEP_FIELDS,
        Property::text("portHeader", None, "Header that takes the port a message came to."),
        CLIENT_IP,
        CLIENT_NAME,
        Property::text("charset.default", Some("UTF-8"), "How messages are written, for their headers. Bodies stay as they are."),
        Property::text("charset.port.*", None, "`charset.port.<port>`: the charset on that port."),
        Property::integer("batchSize", 1, 1_000_000, Some("100"), "Events in one put, at most."),
        Property::integer("readBufferBytes", 1, i64::MAX, Some("1024"), "Accepted; buffers grow with what comes."),
        Property::integer("numProcessors", 1, i64::MAX, None, "Accepted; connections share all threads."),
        FRAMING,
        CONNECTIONS_MAX,
    ],
    deprecated: &[],
    misspelt: &[("readBufferSize", "readBufferBytes"), ("bind", "host"), ("port", "ports"), ("keepfields", "keepFields")],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let mut findings = super::review_tcp(component, strict);
    let mut refuse = |key: &str, what: String, remedy: &str| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("wrong-value", what).maybe_at(place).key(format!("{}.{key}", component.name));
        findings.push(finding.flume("drops the source").remedy(remedy));
    };
    if let Err(error) = ports(component) {
        refuse("ports", format!("{error:#}"), "write port numbers separated by blanks: 10514 10515");
    }
    let default = ("charset.default".to_owned(), component.text("charset.default").to_owned());
    let each = component.below("charset.port.").into_iter().map(|(port, name)| (format!("charset.port.{port}"), name));
    for (key, name) in std::iter::once(default).chain(each) {
        if let Some(fault) = Charset::fault(&name) {
            refuse(&key, fault, "write UTF-8, ISO-8859-1, US-ASCII, windows-1252, GBK or the like");
        }
    }
    findings
}

fn ports(component: &Component) -> anyhow::Result<Vec<u16>> {
    let port = |word: &str| word.parse::<u16>().ok().with_context(|| format!("`{word}` is not a port"));
    let ports = component.text("ports").split_whitespace().map(port).collect::<anyhow::Result<Vec<_>>>()?;
    anyhow::ensure!(!ports.is_empty(), "there is no port");
    Ok(ports)
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let charset = |name: &str| Charset::of(name).with_context(|| format!("charset `{name}`"));
    let mut charsets = BTreeMap::new();
    for (port, name) in component.below("charset.port.") {
        charsets.insert(port.trim().to_owned(), charset(&name)?);
    }
    let default = charset(component.text("charset.default"))?;
    let session = Session {
        accepting: Accepting::build(component, setup.strict, component.count("batchSize"))?,
        parser: Parser { keep: Keep::parse(component.text("keepFields")), strict: setup.strict },
        port_header: component.set("portHeader").map(str::to_owned),
    };
    let mut servers = Vec::new();
    for port in ports(component)? {
        let server = Server::bind(component, component.text("host").trim(), port, &setup)?;
        servers.push((server, charsets.get(&port.to_string()).copied().unwrap_or(default)));
    }
    Ok(Box::new(Multiport { servers, session: Arc::new(session) }))
}

struct Multiport {
    servers: Vec<(Server, Charset)>,
    session: Arc<Session>,
}

struct Session {
    accepting: Accepting,
    parser: Parser,
    port_header: Option<String>,
}

/// A session on one port.
struct OnPort<'a> {
    session: &'a Session,
    charset: Charset,
    port: u16,
}

#[async_trait]
impl Source for Multiport {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let runs = self.servers.into_iter().map(|(server, charset)| {
            let (session, out, stop) = (self.session.clone(), out.clone(), stop.clone());
            async move {
                let serve = |stream: TcpStream, address: SocketAddr| {
                    let (session, out, stop) = (session.clone(), out.clone(), stop.clone());
                    async move {
                        let reader = OnPort { session: &session, charset, port: stream.local_addr()?.port() };
                        session.accepting.serve(stream, address, &reader, &out, &stop).await
                    }
                };
                server.run(&out, &stop, serve).await
            }
        });
        futures::future::try_join_all(runs).await.map(drop)
    }
}

impl Reader for OnPort<'_> {
    fn read(&self, frame: Frame, out: &Output, now: DateTime<Utc>) -> Event {
        let (mut event, valid) = self.session.parser.event(frame.text, frame.cut, self.charset, now);
        if !valid {
            out.counters.read_failures.add(1);
        }
        if let Some(header) = &self.session.port_header {
            event.set_header(header, self.port.to_string());
        }
        event
    }
}
