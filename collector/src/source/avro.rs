//! `avro`: events from Flume's avro sinks, its clients and its log4j appender.
//!
//! A request is one put: it is answered `OK` when every channel has it, and `FAILED` when one has no room, upon which the
//! client sends it again.

use std::net::SocketAddr;

use async_trait::async_trait;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::server::{Answer, Answering, CONNECTIONS_MAX};
use super::{Output, Setup, Source, Stop};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::rpc::{
    self, Incoming, Limits,
    avro::{FrameError, Request, Responder, Status, answer, read_frame, write_frame},
    connection::{Accepting, COMPRESSION, review_filter},
};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("avro"),
    class: Some("org.apache.flume.source.AvroSource"),
    doc: "Events from avro sinks and Flume's client library. A request is a put of its own, answered `OK` when the channels have it and `FAILED` when they are full.",
    properties: tls::with_listener![
        Property::text("bind", None, "Address to listen on.").required(),
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        Property::integer("threads", 0, 65_536, Some("0"), "Without effect: no connection has a thread of its own."),
        COMPRESSION,
        Property::boolean("ipFilter", "false", "Let `ipFilterRules` decide who may connect."),
        Property::text(
            "ipFilterRules",
            None,
            "Rules separated by commas: `allow|deny:ip|name:pattern`, with `*` and `?`. The first that matches decides; whom none matches may connect.",
        ),
        Limits::FRAME_BYTES,
        Limits::EVENTS,
        CONNECTIONS_MAX,
    ],
    deprecated: &[],
    misspelt: &[("host", "bind"), ("hostname", "bind"), ("compressionType", "compression-type")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    review_filter(component).into_iter().chain(tls::review_server(component, strict)).collect()
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    Answering::build(component, &setup, Session::build(component)?)
}

/// Answers connections.
pub(crate) struct Session {
    accepting: Accepting,
    limits: Limits,
}

impl Session {
    pub(crate) fn build(component: &Component) -> anyhow::Result<Self> {
        Ok(Self { accepting: Accepting::build(component)?, limits: Limits::of(component) })
    }
}

#[async_trait]
impl Answer for Session {
    async fn serve(&self, tcp: TcpStream, peer: SocketAddr, out: &Output, stop: &Stop) -> anyhow::Result<()> {
        let mut stream = tokio::select! {
            stream = self.accepting.accept(tcp, peer, out) => stream?,
            () = stop.begin.cancelled() => return Ok(()),
        };
        let (mut incoming, mut responder) = (Incoming::new(), Responder::default());
        loop {
            let read = tokio::select! {
                biased;
                () = stop.begin.cancelled() => return Ok(()),
                read = read_frame(&mut incoming, &mut stream, self.limits.frame_bytes) => read,
            };
            let (serial, message) = match read {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => {
                    if !matches!(error, FrameError::Io(_)) {
                        rpc::unreadable(out, peer, &error);
                    }
                    return Err(error.into());
                }
            };
            let answer = match responder.request(message, self.limits) {
                Ok(Request::Answer(answer)) => answer,
                Ok(Request::Call { method, events, before }) => {
                    let status = if rpc::put(&method, events, out).await.is_ok() { Status::Ok } else { Status::Failed };
                    answer(before, status)
                }
                Err(refusal) => {
                    rpc::unreadable(out, peer, &refusal.error);
                    write_frame(&mut stream, serial, &refusal.answer).await?;
                    return Ok(stream.shutdown().await?);
                }
            };
            write_frame(&mut stream, serial, &answer).await?;
        }
    }
}
