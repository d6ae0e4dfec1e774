//! `thrift`: events from Flume's thrift sinks and clients, in frames of the compact or the binary protocol.

use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::server::{Answer, Answering, CONNECTIONS_MAX};
use super::{Output, Setup, Source, Stop};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::rpc::{
    self, Incoming, Limits,
    connection::Accepting,
    thrift::{FrameError, Protocol, Status, read_frame, request, write_frame},
};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("thrift"),
    class: Some("org.apache.flume.source.ThriftSource"),
    doc: "Events from thrift sinks and Flume's client library. A request is a put of its own, answered `OK` when the channels have it and `FAILED` when they are full.",
    properties: tls::with_listener![
        Property::text("bind", None, "Address to listen on.").required(),
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        PROTOCOL,
        Property::integer("threads", 0, 65_536, Some("0"), "Without effect: no connection has a thread of its own."),
        KERBEROS,
        Limits::FRAME_BYTES,
        Limits::EVENTS,
        CONNECTIONS_MAX,
    ],
    deprecated: &[],
    misspelt: &[("host", "bind"), ("hostname", "bind")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

pub const PROTOCOL: Property =
    Property::choice("protocol", &["compact", "binary"], "compact", "How messages are written; both sides must have the same.");
pub const KERBEROS: Property = Property::boolean("kerberos", "false", "Kerberos is not there: `true` is refused.");

/// Kerberos is refused, not left out.
pub fn review_kerberos(component: &Component) -> Option<Finding> {
    component.boolean(KERBEROS.name).then(|| {
        Finding::error("no-kerberos", "Kerberos is not there for Flume's remote calls")
            .maybe_at(component.settings.get(KERBEROS.name).and_then(|setting| setting.place.as_ref()))
            .key(format!("{}.kerberos", component.name))
            .remedy("use ssl, or leave the line out on both sides")
    })
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    review_kerberos(component).into_iter().chain(tls::review_server(component, strict)).collect()
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    Answering::build(component, &setup, Session::build(component)?)
}

/// Answers connections.
pub(crate) struct Session {
    accepting: Accepting,
    limits: Limits,
    protocol: Protocol,
}

impl Session {
    pub(crate) fn build(component: &Component) -> anyhow::Result<Self> {
        let protocol = Protocol::named(component.text(PROTOCOL.name));
        Ok(Self { accepting: Accepting::build(component)?, limits: Limits::of(component), protocol })
    }
}

#[async_trait]
impl Answer for Session {
    async fn serve(&self, tcp: TcpStream, peer: SocketAddr, out: &Output, stop: &Stop) -> anyhow::Result<()> {
        let mut stream = tokio::select! {
            stream = self.accepting.accept(tcp, peer, out) => stream?,
            () = stop.begin.cancelled() => return Ok(()),
        };
        let mut incoming = Incoming::new();
        loop {
            let read = tokio::select! {
                biased;
                () = stop.begin.cancelled() => return Ok(()),
                read = read_frame(&mut incoming, &mut stream, self.limits.frame_bytes) => read,
            };
            let message = match read {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(error) => {
                    if !matches!(error, FrameError::Io(_)) {
                        rpc::unreadable(out, peer, &error);
                    }
                    return Err(error.into());
                }
            };
            match request(self.protocol, message, self.limits) {
                Ok(mut request) => {
                    let put = rpc::put(&request.method, std::mem::take(&mut request.events), out).await;
                    let status = if put.is_ok() { Status::Ok } else { Status::Failed };
                    write_frame(&mut stream, &request.answer(self.protocol, status)).await?;
                }
                Err(refusal) => {
                    rpc::unreadable(out, peer, &refusal.error);
                    write_frame(&mut stream, &refusal.answer).await?;
                    return Ok(stream.shutdown().await?);
                }
            }
        }
    }
}
