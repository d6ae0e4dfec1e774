//! Flume's remote calls: `append` and `appendBatch`, over Avro or Thrift. Shared by the sources that answer them and the
//! sinks that make them.
//!
//! | module | what |
//! |---|---|
//! | [`avro`] | frames, handshake and messages of Avro's IPC |
//! | [`thrift`] | frames and messages of Thrift, in the compact and the binary protocol |
//! | [`deflate`] | a stream that is zlib on the wire |
//! | [`filter`] | `ipFilterRules`: who may connect |
//! | [`connection`] | a socket with what its settings put around it |
//!
//! Codecs are pure and see bytes from outside: whatever comes, they give an error or events, and what they hold is bounded
//! by what has arrived.

pub mod avro;
pub mod connection;
pub mod deflate;
pub mod filter;
pub mod thrift;

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::channel::PutError;
use crate::event::{Event, Headers};
use crate::flume_conf::{Component, Property};
use crate::source::Output;

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    Append,
    AppendBatch,
}

impl Method {
    const ALL: [Method; 2] = [Method::Append, Method::AppendBatch];

    pub fn name(&self) -> &'static str {
        match self {
            Method::Append => "append",
            Method::AppendBatch => "appendBatch",
        }
    }

    fn named(name: &[u8]) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name().as_bytes() == name)
    }
}

/// How much a client may ask for at a time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub frame_bytes: usize,
    pub events: usize,
}

impl Limits {
    pub const FRAME_BYTES: Property = Property::integer(
        "maxFrameBytes",
        1024,
        1_073_741_824,
        Some("33554432"),
        "Bytes of one request. A larger one ends the connection, and its client sends it again: keep this above the largest batch.",
    )
    .own();
    pub const EVENTS: Property =
        Property::integer("maxBatchEvents", 1, 1_000_000, Some("100000"), "Events of one request. More are answered with an error.").own();

    pub fn of(component: &Component) -> Self {
        Self { frame_bytes: component.count(Self::FRAME_BYTES.name), events: component.count(Self::EVENTS.name) }
    }

    fn one_more(self, events: usize) -> Result<(), Malformed> {
        let most = self.events;
        if events < most { Ok(()) } else { Err(Malformed::new(format!("more than {most} events in one request (maxBatchEvents)"))) }
    }
}

/// Bytes that are not what the protocol says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(Cow<'static, str>);

impl Malformed {
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self(what.into())
    }
}

/// A message, as far as it has not been read.
#[derive(Clone, Debug)]
pub struct Cut(Bytes);

impl Cut {
    pub fn new(message: Bytes) -> Self {
        Self(message)
    }

    pub fn rest(&self) -> &[u8] {
        &self.0
    }

    fn at_least(&self, length: usize) -> Result<(), Malformed> {
        let left = self.0.len();
        if length <= left { Ok(()) } else { Err(Malformed::new(format!("{length} bytes are announced and {left} are left"))) }
    }

    pub fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        self.at_least(length)?;
        Ok(self.0.split_to(length))
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.at_least(1)?;
        Ok(self.0.get_u8())
    }

    pub fn int16(&mut self) -> Result<i16, Malformed> {
        self.at_least(2)?;
        Ok(self.0.get_i16())
    }

    pub fn int32(&mut self) -> Result<i32, Malformed> {
        self.at_least(4)?;
        Ok(self.0.get_i32())
    }

    /// Seven bits a byte, lowest first.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::new("a number of more than ten bytes"))
    }

    pub fn zigzag(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1).cast_unsigned() ^ (value >> 63).cast_unsigned());
}

/// Headers of consecutive events are often the same: their bytes are compared before they are read.
#[derive(Default)]
pub struct LastHeaders {
    bytes: Bytes,
    headers: Headers,
}

impl LastHeaders {
    /// Reads a map that `read` understands from `cut`. A map's bytes say where it ends, so the same bytes are the same map.
    fn read(
        &mut self,
        cut: &mut Cut,
        read: impl FnOnce(&mut Cut) -> Result<BTreeMap<String, String>, Malformed>,
    ) -> Result<Headers, Malformed> {
        if !self.bytes.is_empty() && cut.rest().starts_with(&self.bytes) {
            cut.take(self.bytes.len())?;
        } else {
            let before = cut.0.clone();
            let headers = read(cut)?;
            self.headers = (!headers.is_empty()).then(|| Arc::new(headers));
            self.bytes = before.slice(..before.len() - cut.0.len());
        }
        Ok(self.headers.clone())
    }
}

/// Text as Java reads it: what is not UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The read side of a stream with the bytes that came and have not been taken.
pub struct Incoming {
    buffer: BytesMut,
}

/// Bytes asked for at once.
const READ_BYTES: usize = 16 << 10;

impl Incoming {
    pub fn new() -> Self {
        Self { buffer: BytesMut::new() }
    }

    /// Waits for `length` bytes. False when the stream ends before the first of them.
    /// Memory grows with what arrives, not with what is announced.
    pub async fn fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, length: usize) -> std::io::Result<bool> {
        while self.buffer.len() < length {
            self.buffer.reserve(READ_BYTES);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(false) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        Ok(true)
    }
}

impl Default for Incoming {
    fn default() -> Self {
        Self::new()
    }
}

/// Puts what a client sent. Only when the channels have it all is the answer yes.
pub async fn put(method: &Method, mut events: Vec<Event>, out: &Output) -> Result<(), PutError> {
    let counters = &out.counters;
    let (received, accepted) = match method {
        Method::Append => (&counters.appends_received, &counters.appends_accepted),
        Method::AppendBatch => (&counters.batches_received, &counters.batches_accepted),
    };
    received.add(1);
    out.trace(&mut events);
    if !events.is_empty()
        && let Err(error) = out.offer(events).await
    {
        out.trouble(Some(match error {
            PutError::BatchTooLarge { .. } => format!("{error}; set the channel's transactionCapacity higher, or the client's batch lower"),
            _ => format!("answering FAILED: {error}"),
        }));
        tracing::debug!(source = out.name(), %error, "a client is told to send its events again");
        return Err(error);
    }
    out.trouble(None);
    accepted.add(1);
    Ok(())
}

/// A request that cannot be read: counted, and shown until one can be read again.
pub fn unreadable(out: &Output, peer: std::net::SocketAddr, error: &(dyn std::error::Error + Send + Sync)) {
    out.counters.read_failures.add(1);
    let connections = out.counters.connections.load(Relaxed);
    tracing::warn!(source = out.name(), %peer, %error, connections, "a client's request cannot be read; its connection is closed");
}
