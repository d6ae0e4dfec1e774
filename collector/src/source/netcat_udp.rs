//! `netcatudp`: lines over UDP.

use anyhow::Context as _;
use async_trait::async_trait;

use super::peer::Peers;
use super::udp::{RECEIVE_BUFFER, Receiver};
use super::{Output, Setup, Source, Stop};
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("netcatudp"),
    class: Some("org.apache.flume.source.NetcatUdpSource"),
    doc: "Lines over UDP: every line of a datagram is an event (Flume: its first line, the others are lost; so with --flume-strict). While the channel is full datagrams wait in the socket's buffer; what the kernel drops then is counted and told.",
    properties: &[
        Property::text("bind", Some("0.0.0.0"), "Address to listen on."),
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        Property::text("remoteAddress", None, "Header that takes the sender, as Java writes it: `/192.0.2.1:40000`."),
        RECEIVE_BUFFER,
    ],
    deprecated: &[],
    misspelt: &[("remoteAddressHeader", "remoteAddress"), ("host", "bind")],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let port = u16::try_from(component.integer("port")).context("port")?;
    let receiver = Receiver::bind(component, component.text("bind").trim(), port, &setup)?;
    Ok(Box::new(NetcatUdp { receiver, sender_header: component.set("remoteAddress").map(str::to_owned), strict: setup.strict }))
}

struct NetcatUdp {
    receiver: Receiver,
    sender_header: Option<String>,
    strict: bool,
}

#[async_trait]
impl Source for NetcatUdp {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let Self { receiver, sender_header, strict } = *self;
        let read = |datagram: &[u8], sender, events: &mut Vec<Event>| {
            for line in lines(datagram, strict) {
                let mut event = Event::new(line.to_vec());
                if let Some(name) = &sender_header {
                    event.set_header(name, format!("/{sender}"));
                }
                events.push(event);
            }
        };
        receiver.run(&out, &stop, &Peers::default(), read).await
    }
}

/// An empty datagram is an empty line.
fn lines(datagram: &[u8], strict: bool) -> impl Iterator<Item = &[u8]> {
    let text = datagram.strip_suffix(b"\n").unwrap_or(datagram);
    text.split(|&byte| byte == b'\n').take(if strict { 1 } else { usize::MAX })
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn every_line_of_a_datagram_is_an_event() {
        for (datagram, plain) in [
            ("", &[""][..]),
            ("a", &["a"]),
            ("a\n", &["a"]),
            ("a\nb c\n", &["a", "b c"]),
            ("\n", &[""]),
            ("a\n\nb", &["a", "", "b"]),
            ("a\r\n", &["a\r"]),
        ] {
            let got =
                |strict| lines(datagram.as_bytes(), strict).map(|line| String::from_utf8_lossy(line).into_owned()).collect::<Vec<_>>();
            assert_eq!(
                (got(false), got(true)),
                (plain.iter().map(ToString::to_string).collect(), vec![plain[0].to_owned()]),
                "{datagram:?}"
            );
        }
    }
}
