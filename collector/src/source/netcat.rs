//! `netcat`: lines over TCP, each answered `OK`, or `FAILED: …` when the channel did not take it.

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::server::{CONNECTIONS_MAX, Server};
use super::{Output, Setup, Source, Stop};
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("netcat"),
    class: Some("org.apache.flume.source.NetcatSource"),
    doc: "Lines over TCP. Every line is a put of its own and is answered `OK`, or `FAILED: …` when the channel is full.",
    properties: &[
        Property::text("bind", None, "Address to listen on.").required(),
        Property::integer("port", 0, 65_535, None, "Port to listen on; 0 takes a free one.").required(),
        Property::integer(
            "max-line-length",
            2,
            16_777_216,
            Some("512"),
            "Characters of a line, its newline included. A longer one is answered `FAILED` and ends the connection.",
        ),
        Property::boolean("ack-every-event", "true", "Answer `OK` to every line."),
        Property::choice(
            "encoding",
            &["utf-8", "utf8", "us-ascii", "iso-8859-1"],
            "utf-8",
            "How the peer writes text. Bodies are always UTF-8.",
        ),
        CONNECTIONS_MAX,
    ],
    deprecated: &[],
    misspelt: &[("host", "bind"), ("maxLineLength", "max-line-length"), ("ackEveryEvent", "ack-every-event")],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let port = u16::try_from(component.integer("port")).context("port")?;
    let server = Server::bind(component, component.text("bind").trim(), port, &setup)?;
    let session = Session {
        line_max: component.count("max-line-length"),
        ack: component.boolean("ack-every-event"),
        latin_1: component.text("encoding").trim().eq_ignore_ascii_case("iso-8859-1"),
    };
    Ok(Box::new(Netcat { server, session }))
}

struct Netcat {
    server: Server,
    session: Session,
}

#[async_trait]
impl Source for Netcat {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let session = self.session;
        let serve = |stream, _| {
            let (out, stop) = (out.clone(), stop.clone());
            async move { session.serve(stream, &out, &stop).await }
        };
        self.server.run(&out, &stop, serve).await
    }
}

#[derive(Clone, Copy)]
struct Session {
    line_max: usize,
    ack: bool,
    latin_1: bool,
}

impl Session {
    async fn serve(self, mut stream: TcpStream, out: &Output, stop: &Stop) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        loop {
            let read = tokio::select! {
                read = stream.read_buf(&mut lines) => read?,
                () = stop.begin.cancelled() => return Ok(()),
            };
            // At the end of the stream a last line without newline is dropped, as Flume does it.
            if read == 0 {
                return Ok(());
            }
            let mut answers = Vec::new();
            let mut start = 0;
            while let Some(length) = memchr::memchr(b'\n', &lines[start..]) {
                let line = &lines[start..start + length];
                if self.is_too_long(line, 1) {
                    return self.refuse(stream, answers).await;
                }
                self.line(line, out, &mut answers).await;
                start += length + 1;
            }
            lines.drain(..start);
            let endless = self.is_too_long(&lines, 0);
            if endless {
                return self.refuse(stream, answers).await;
            }
            stream.write_all(&answers).await?;
        }
    }

    async fn line(self, line: &[u8], out: &Output, answers: &mut Vec<u8>) {
        let body = if self.latin_1 { line.iter().map(|&byte| char::from(byte)).collect::<String>().into_bytes() } else { line.to_vec() };
        let mut events = vec![Event::new(body)];
        out.trace(&mut events);
        match out.offer(events).await {
            Ok(()) if self.ack => answers.extend_from_slice(b"OK\n"),
            Ok(()) => {}
            Err(error) => answers.extend_from_slice(format!("FAILED: {error}\n").as_bytes()),
        }
    }

    /// Flume's buffer holds `max-line-length` characters, the newline among them.
    fn is_too_long(self, line: &[u8], newline: usize) -> bool {
        let over = |characters: usize| if newline == 1 { characters + 1 > self.line_max } else { characters >= self.line_max };
        // Characters are at most as many as bytes.
        over(line.len()) && over(if self.latin_1 { line.len() } else { line.iter().filter(|&&byte| byte & 0xc0 != 0x80).count() })
    }

    async fn refuse(self, mut stream: TcpStream, mut answers: Vec<u8>) -> anyhow::Result<()> {
        answers.extend_from_slice(
            format!("FAILED: Event exceeds the maximum length ({} chars, including newline)\n", self.line_max).as_bytes(),
        );
        stream.write_all(&answers).await?;
        Ok(stream.shutdown().await?)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use parking_lot::Mutex;
    use tokio::{net::TcpListener, sync::watch};

    use super::*;
    use crate::channel::{
        Channel,
        memory::{Limits, MemoryChannel},
    };
    use crate::counters::SourceCounters;

    /// Sends `input`, closes, and gives the answers and what reached a channel of `capacity` events.
    async fn talk(session: Session, capacity: usize, input: &[u8]) -> (String, Vec<String>) {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(Limits {
            events_max: capacity,
            transaction_max: capacity,
            bytes_max: usize::MAX,
            keep_alive: Duration::ZERO,
        }));
        let (_resume, paused) = watch::channel(false);
        let out = Output::new("n", vec![channel.clone()], SourceCounters::new("n"), paused, Arc::new(Mutex::new(None)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let served = tokio::task::spawn(async move { session.serve(server, &out, &Stop::default()).await });
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        served.await.unwrap().unwrap();
        let taken = channel.take(capacity, Duration::ZERO).await;
        (answers, taken.events().iter().map(|event| String::from_utf8(event.body.to_vec()).unwrap()).collect())
    }

    const PLAIN: Session = Session { line_max: 512, ack: true, latin_1: false };

    #[tokio::test]
    async fn every_line_is_answered() {
        for (session, capacity, input, answers, bodies) in [
            (PLAIN, 9, "a\nb b\n".as_bytes(), "OK\nOK\n", &["a", "b b"][..]),
            (PLAIN, 9, b"\n\n", "OK\nOK\n", &["", ""]),
            (PLAIN, 9, b"a\r\n", "OK\n", &["a\r"]),
            (PLAIN, 9, b"a\nunterminated", "OK\n", &["a"]),
            (PLAIN, 9, b"", "", &[]),
            (PLAIN, 9, "é中\n".as_bytes(), "OK\n", &["é中"]),
            (Session { ack: false, ..PLAIN }, 9, b"a\nb\n", "", &["a", "b"]),
            (Session { latin_1: true, ..PLAIN }, 9, b"\xe9\n", "OK\n", &["é"]),
            (
                PLAIN,
                1,
                b"a\nb\n",
                "OK\nFAILED: channel full: 1 of 1 events, 65 of 18446744073709551615 bytes; waited 0ns for the sinks\n",
                &["a"],
            ),
            (Session { line_max: 4, ..PLAIN }, 9, b"abc\nd\n", "OK\nOK\n", &["abc", "d"]),
            (Session { line_max: 4, ..PLAIN }, 9, "é中x\nd\n".as_bytes(), "OK\nOK\n", &["é中x", "d"]),
            (
                Session { line_max: 4, ..PLAIN },
                9,
                b"a\nbcde\nf\n",
                "OK\nFAILED: Event exceeds the maximum length (4 chars, including newline)\n",
                &["a"],
            ),
            (
                Session { line_max: 4, ..PLAIN },
                9,
                b"a\nbcde",
                "OK\nFAILED: Event exceeds the maximum length (4 chars, including newline)\n",
                &["a"],
            ),
        ] {
            let (said, got) = talk(session, capacity, input).await;
            assert_eq!(
                (said.as_str(), got.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (answers, bodies),
                "{:?}",
                String::from_utf8_lossy(input)
            );
        }
    }
}
