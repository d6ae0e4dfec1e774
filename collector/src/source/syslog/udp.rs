//! `syslogudp`.

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use chrono::Utc;

use super::fields::Keep;
use super::format::{self, Format};
use super::pattern::Parser;
use super::{CLIENT_IP, CLIENT_NAME, HOST, KEEP_FIELDS};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Kind, Property, Role};
use crate::source::peer::Peers;
use crate::source::udp::{RECEIVE_BUFFER, Receiver};
use crate::source::{Output, Setup, Source, Stop};

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("syslogudp"),
    class: Some("org.apache.flume.source.SyslogUDPSource"),
    doc: "Syslog over UDP, RFC 3164 and RFC 5424: a datagram is a message (Flume: what follows its first newline is lost). While the channel is full datagrams wait in the socket's buffer; what the kernel drops then is counted and told.",
    properties: &[
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        HOST,
        KEEP_FIELDS,
        CLIENT_IP,
        CLIENT_NAME,
        format::REGEX,
        format::SEARCH,
        format::REPLACE,
        format::DATE_FORMAT,
        RECEIVE_BUFFER,
    ],
    deprecated: &[],
    misspelt: &[("bind", "host"), ("clientIpHeader", "clientIPHeader"), ("keepfields", "keepFields")],
    adopt: adopts_nothing,
    batch: None,
    review: super::review_common,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let port = u16::try_from(component.integer("port")).context("port")?;
    let receiver = Receiver::bind(component, component.text("host").trim(), port, &setup)?;
    let parser = Parser { keep: Keep::parse(component.text("keepFields")), format: Format::of(component)?, strict: setup.strict };
    Ok(Box::new(SyslogUdp { receiver, parser, peers: Peers::of(component) }))
}

struct SyslogUdp {
    receiver: Receiver,
    parser: Parser,
    peers: Peers,
}

#[async_trait]
impl Source for SyslogUdp {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let Self { receiver, parser, peers } = *self;
        let read = |datagram: &[u8], _sender, events: &mut Vec<Event>| match message(datagram, parser.strict) {
            Some(message) => events.push(parser.event(Bytes::copy_from_slice(message), false, Utc::now())),
            None => out.counters.read_failures.add(1),
        };
        receiver.run(&out, &stop, &peers, read).await
    }
}

/// The datagram without newlines before and after it; Flume's ends at the first newline in it.
fn message(datagram: &[u8], strict: bool) -> Option<&[u8]> {
    let begin = datagram.iter().position(|&byte| byte != b'\n')?;
    let text = &datagram[begin..];
    let end = if strict { memchr::memchr(b'\n', text) } else { text.iter().rposition(|&byte| byte != b'\n').map(|last| last + 1) };
    Some(&text[..end.unwrap_or(text.len())])
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn a_datagram_is_a_message() {
        for (datagram, plain, strict) in [
            ("<34>a", Some("<34>a"), Some("<34>a")),
            ("<34>a\n", Some("<34>a"), Some("<34>a")),
            ("\n\n<34>a\n\n", Some("<34>a"), Some("<34>a")),
            ("<34>a\n\tat b\n", Some("<34>a\n\tat b"), Some("<34>a")),
            ("\n", None, None),
            ("", None, None),
        ] {
            let text = |strict| message(datagram.as_bytes(), strict).map(|text| String::from_utf8_lossy(text).into_owned());
            assert_eq!((text(false).as_deref(), text(true).as_deref()), (plain, strict), "{datagram:?}");
        }
    }
}
