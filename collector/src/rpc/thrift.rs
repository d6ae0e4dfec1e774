//! Thrift as Flume uses it: frames of `int32 length, bytes`, and in each a message of the compact or the binary protocol.
//!
//! The service is `ThriftSourceProtocol`: `append(1: event)` and `appendBatch(1: list of events)`, an event being a struct
//! of `1: map<string, string>` and `2: binary`, the answer a status. Fields that nobody here knows are skipped.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Cut, Incoming, LastHeaders, Limits, Malformed, Method, put_varint, put_zigzag, text};
use crate::event::Event;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Compact,
    Binary,
}

impl Protocol {
    pub fn named(name: &str) -> Self {
        if name.trim().eq_ignore_ascii_case("binary") { Protocol::Binary } else { Protocol::Compact }
    }
}

/// A status, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
    Error,
    Unknown,
}

impl Status {
    const ALL: [Status; 4] = [Status::Ok, Status::Failed, Status::Error, Status::Unknown];
}

/// Frame errors end the connection: what follows cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a frame of {size} bytes is more than {max} (maxFrameBytes), or this is not framed Thrift")]
    TooLarge { size: u32, max: usize },
}

/// The next frame; `None` at the end of the stream.
pub async fn read_frame<S: AsyncRead + Unpin>(incoming: &mut Incoming, stream: &mut S, max: usize) -> Result<Option<Bytes>, FrameError> {
    if !incoming.fill(stream, 4).await? {
        return Ok(None);
    }
    let size = incoming.buffer.get_u32();
    let length = usize::try_from(size).ok().filter(|length| *length <= max).ok_or(FrameError::TooLarge { size, max })?;
    if length > 0 && !incoming.fill(stream, length).await? {
        return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(incoming.buffer.split_to(length).freeze()))
}

pub async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, message: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| std::io::Error::other("a message of more than 4 GiB"))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(message).await?;
    stream.flush().await
}

/// Kinds of values, by their numbers in the binary protocol.
mod kind {
    pub(super) const STOP: u8 = 0;
    pub(super) const BOOL: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const DOUBLE: u8 = 4;
    pub(super) const I16: u8 = 6;
    pub(super) const I32: u8 = 8;
    pub(super) const I64: u8 = 10;
    pub(super) const BINARY: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
    pub(super) const MAP: u8 = 13;
    pub(super) const SET: u8 = 14;
    pub(super) const LIST: u8 = 15;

    /// The compact protocol's number → ours. A field's truth value is in its kind: 1 true, 2 false.
    pub(super) const COMPACT: [u8; 13] = [STOP, BOOL, BOOL, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT];

    pub(super) fn compact(kind: u8) -> u8 {
        (1..COMPACT.len()).rev().find(|at| COMPACT[*at] == kind).unwrap_or_default() as u8
    }
}

const CALL: u8 = 1;
const REPLY: u8 = 2;
const EXCEPTION: u8 = 3;

/// Structs within structs that are skipped; ours are two deep.
const DEPTH_MAX: usize = 32;

struct Field {
    kind: u8,
    id: i16,
    /// In the compact protocol a field that is a truth value has no bytes of its own.
    empty: bool,
}

/// Reads one message.
struct Reader {
    protocol: Protocol,
    cut: Cut,
}

fn length(length: u64) -> Result<usize, Malformed> {
    usize::try_from(length).map_err(|_| Malformed::new(format!("a length of {length}")))
}

impl Reader {
    /// The message's kind, name and number.
    fn message(&mut self) -> Result<(u8, Bytes, i32), Malformed> {
        match self.protocol {
            Protocol::Compact => {
                let (magic, head) = (self.cut.byte()?, self.cut.byte()?);
                if (magic, head & 0x1f) != (0x82, 1) {
                    return Err(Malformed::new(format!(
                        "a message that begins with {magic:#04x} {head:#04x} is not of the compact protocol (see `protocol`)"
                    )));
                }
                let number = self.cut.varint()?;
                let name = self.binary()?;
                // The number's 32 bits, as they are.
                Ok((head >> 5, name, (number as u32).cast_signed()))
            }
            Protocol::Binary => {
                let head = self.cut.int32()?.cast_unsigned();
                if head & 0x8000_0000 == 0 {
                    // The older form, without a version.
                    let name = self.cut.take(length(u64::from(head))?)?;
                    return Ok((self.cut.byte()?, name, self.cut.int32()?));
                }
                if head >> 16 != 0x8001 {
                    return Err(Malformed::new(format!(
                        "a message that begins with {head:#010x} is not of the binary protocol (see `protocol`)"
                    )));
                }
                let name = self.binary()?;
                Ok(((head & 0xff) as u8, name, self.cut.int32()?))
            }
        }
    }

    /// The next field; `before` is the last one's id. `None` at the struct's end.
    fn field(&mut self, before: i16) -> Result<Option<Field>, Malformed> {
        let head = self.cut.byte()?;
        if head == kind::STOP {
            return Ok(None);
        }
        Ok(Some(match self.protocol {
            Protocol::Binary => Field { kind: head, id: self.cut.int16()?, empty: false },
            Protocol::Compact => {
                let id = match i16::from(head >> 4) {
                    0 => i16::try_from(self.cut.zigzag()?).map_err(|_| Malformed::new("a field's id of more than 16 bits"))?,
                    further => before.checked_add(further).ok_or_else(|| Malformed::new("a field's id of more than 16 bits"))?,
                };
                let kind = self.compact(head & 0x0f)?;
                Field { kind, id, empty: kind == kind::BOOL }
            }
        }))
    }

    fn compact(&self, number: u8) -> Result<u8, Malformed> {
        kind::COMPACT.get(usize::from(number)).copied().ok_or_else(|| Malformed::new(format!("a value of kind {number}")))
    }

    fn binary(&mut self) -> Result<Bytes, Malformed> {
        let size = match self.protocol {
            Protocol::Binary => u64::from(self.cut.int32()?.cast_unsigned()),
            Protocol::Compact => self.cut.varint()?,
        };
        self.cut.take(length(size)?)
    }

    fn int32(&mut self) -> Result<i64, Malformed> {
        match self.protocol {
            Protocol::Binary => Ok(i64::from(self.cut.int32()?)),
            Protocol::Compact => self.cut.zigzag(),
        }
    }

    /// Kind and number of a list's items.
    fn list(&mut self) -> Result<(u8, u64), Malformed> {
        let head = self.cut.byte()?;
        Ok(match self.protocol {
            Protocol::Binary => (head, u64::from(self.cut.int32()?.cast_unsigned())),
            Protocol::Compact => {
                let count = if head >> 4 == 15 { self.cut.varint()? } else { u64::from(head >> 4) };
                (self.compact(head & 0x0f)?, count)
            }
        })
    }

    /// Kinds of keys and values, and their number.
    fn map(&mut self) -> Result<(u8, u8, u64), Malformed> {
        match self.protocol {
            Protocol::Binary => Ok((self.cut.byte()?, self.cut.byte()?, u64::from(self.cut.int32()?.cast_unsigned()))),
            Protocol::Compact => {
                let count = self.cut.varint()?;
                if count == 0 {
                    return Ok((kind::BINARY, kind::BINARY, 0));
                }
                let kinds = self.cut.byte()?;
                Ok((self.compact(kinds >> 4)?, self.compact(kinds & 0x0f)?, count))
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Malformed> {
        if depth == DEPTH_MAX {
            return Err(Malformed::new("structs nested too deep"));
        }
        let compact = self.protocol == Protocol::Compact;
        match kind {
            kind::BOOL | kind::BYTE => drop(self.cut.byte()?),
            kind::I16 | kind::I32 | kind::I64 if compact => drop(self.cut.varint()?),
            kind::I16 => drop(self.cut.take(2)?),
            kind::I32 => drop(self.cut.take(4)?),
            kind::I64 | kind::DOUBLE => drop(self.cut.take(8)?),
            kind::BINARY => drop(self.binary()?),
            kind::STRUCT => self.fields(depth, |_, _| Ok(false))?,
            kind::LIST | kind::SET => {
                let (item, count) = self.list()?;
                for _ in 0..count {
                    self.skip(item, depth + 1)?;
                }
            }
            kind::MAP => {
                let (key, value, count) = self.map()?;
                for _ in 0..count {
                    self.skip(key, depth + 1)?;
                    self.skip(value, depth + 1)?;
                }
            }
            other => return Err(Malformed::new(format!("a value of kind {other}"))),
        }
        Ok(())
    }

    /// A struct's fields: those that `known` does not read (and says so) are skipped.
    fn fields(&mut self, depth: usize, mut known: impl FnMut(&mut Self, &Field) -> Result<bool, Malformed>) -> Result<(), Malformed> {
        let mut before = 0;
        while let Some(field) = self.field(before)? {
            if !known(self, &field)? && !field.empty {
                self.skip(field.kind, depth + 1)?;
            }
            before = field.id;
        }
        Ok(())
    }

    fn headers(&mut self) -> Result<BTreeMap<String, String>, Malformed> {
        let (key, value, count) = self.map()?;
        if count > 0 && (key, value) != (kind::BINARY, kind::BINARY) {
            return Err(Malformed::new("headers that are not text"));
        }
        let mut headers = BTreeMap::new();
        for _ in 0..count {
            let name = text(&self.binary()?);
            headers.insert(name, text(&self.binary()?));
        }
        Ok(headers)
    }

    fn event(&mut self, last: &mut LastHeaders) -> Result<Event, Malformed> {
        let (mut headers, mut body) = (None, None);
        let protocol = self.protocol;
        self.fields(0, |reader, field| {
            match (field.id, field.kind) {
                (1, kind::MAP) => {
                    let read = |cut: &mut Cut| {
                        let mut part = Reader { protocol, cut: cut.clone() };
                        let headers = part.headers()?;
                        *cut = part.cut;
                        Ok(headers)
                    };
                    headers = Some(last.read(&mut reader.cut, read)?);
                }
                (2, kind::BINARY) => body = Some(reader.binary()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let (Some(headers), Some(body)) = (headers, body) else { return Err(Malformed::new("an event without headers or body")) };
        Ok(Event { headers, ..Event::new(body) })
    }
}

/// What a request comes to.
#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub events: Vec<Event>,
    name: Bytes,
    number: i32,
}

/// A request that cannot be read, and what to answer before the connection is closed.
#[derive(Debug)]
pub struct Refusal {
    pub answer: Vec<u8>,
    pub error: Malformed,
}

pub fn request(protocol: Protocol, message: Bytes, limits: Limits) -> Result<Request, Refusal> {
    let (mut name, mut number) = (Bytes::new(), 0);
    read_request(protocol, message, limits, &mut name, &mut number).map_err(|error| {
        let mut out = head(protocol, EXCEPTION, &name[..name.len().min(80)], number);
        field_head(protocol, &mut out, kind::BINARY, 0, 1);
        put_binary(protocol, &mut out, error.to_string().as_bytes());
        out.push(kind::STOP);
        Refusal { answer: out, error }
    })
}

fn read_request(protocol: Protocol, message: Bytes, limits: Limits, name: &mut Bytes, number: &mut i32) -> Result<Request, Malformed> {
    let mut reader = Reader { protocol, cut: Cut::new(message) };
    let message;
    (message, *name, *number) = reader.message()?;
    let method = Method::named(name).filter(|_| message == CALL);
    let method = method.ok_or_else(|| {
        Malformed::new(format!("no call of `{}`; this is Flume's ThriftSourceProtocol", text(&name[..name.len().min(80)])))
    })?;
    let (mut events, mut last) = (Vec::new(), LastHeaders::default());
    reader.fields(0, |reader, field| {
        match (&method, field.id, field.kind) {
            (Method::Append, 1, kind::STRUCT) if events.is_empty() => events.push(reader.event(&mut last)?),
            (Method::AppendBatch, 1, kind::LIST) => {
                let (item, count) = reader.list()?;
                if item != kind::STRUCT && count > 0 {
                    return Err(Malformed::new("a batch that is no list of events"));
                }
                for _ in 0..count {
                    limits.one_more(events.len())?;
                    events.push(reader.event(&mut last)?);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if method == Method::Append && events.is_empty() {
        return Err(Malformed::new("`append` without an event"));
    }
    Ok(Request { method, events, name: name.clone(), number: *number })
}

impl Request {
    pub fn answer(&self, protocol: Protocol, status: Status) -> Vec<u8> {
        let mut out = head(protocol, REPLY, &self.name, self.number);
        field_head(protocol, &mut out, kind::I32, 0, 0);
        match protocol {
            Protocol::Binary => out.extend_from_slice(&(status as i32).to_be_bytes()),
            Protocol::Compact => put_zigzag(&mut out, status as i64),
        }
        out.push(kind::STOP);
        out
    }
}

/// `appendBatch`.
pub fn append_batch(protocol: Protocol, number: i32, events: &[Event]) -> Vec<u8> {
    let mut out = head(protocol, CALL, Method::AppendBatch.name().as_bytes(), number);
    out.reserve(events.iter().map(|event| event.body.len() + 64).sum());
    field_head(protocol, &mut out, kind::LIST, 0, 1);
    match protocol {
        Protocol::Binary => {
            out.push(kind::STRUCT);
            put_count(&mut out, events.len());
        }
        Protocol::Compact if events.len() < 15 => out.push((events.len() as u8) << 4 | kind::compact(kind::STRUCT)),
        Protocol::Compact => {
            out.push(0xf0 | kind::compact(kind::STRUCT));
            put_varint(&mut out, events.len() as u64);
        }
    }
    for event in events {
        field_head(protocol, &mut out, kind::MAP, 0, 1);
        let headers = event.headers.as_deref();
        let count = headers.map_or(0, BTreeMap::len);
        match protocol {
            Protocol::Binary => {
                out.extend_from_slice(&[kind::BINARY, kind::BINARY]);
                put_count(&mut out, count);
            }
            Protocol::Compact => {
                put_varint(&mut out, count as u64);
                if count > 0 {
                    out.push(kind::compact(kind::BINARY) << 4 | kind::compact(kind::BINARY));
                }
            }
        }
        for (name, value) in headers.into_iter().flatten() {
            put_binary(protocol, &mut out, name.as_bytes());
            put_binary(protocol, &mut out, value.as_bytes());
        }
        field_head(protocol, &mut out, kind::BINARY, 1, 2);
        put_binary(protocol, &mut out, &event.body);
        out.push(kind::STOP);
    }
    out.push(kind::STOP);
    out
}

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Status(Status),
    /// The server's exception.
    Error(String),
}

/// The answer to call `number`.
pub fn answer(protocol: Protocol, number: i32, message: Bytes) -> Result<Answer, Malformed> {
    let mut reader = Reader { protocol, cut: Cut::new(message) };
    let (kind, _, answered) = reader.message()?;
    if answered != number {
        return Err(Malformed::new(format!("an answer to call {answered} came to call {number}")));
    }
    let (mut status, mut error) = (None, String::from("an exception without a word"));
    reader.fields(0, |reader, field| {
        match (kind, field.id, field.kind) {
            (REPLY, 0, kind::I32) => status = Some(reader.int32()?),
            (EXCEPTION, 1, kind::BINARY) => error = text(&reader.binary()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if kind == EXCEPTION {
        return Ok(Answer::Error(error));
    }
    let known = status.and_then(|status| Status::ALL.get(usize::try_from(status).ok()?).copied());
    known.map(Answer::Status).ok_or_else(|| Malformed::new(format!("an answer of kind {kind} with status {status:?}")))
}

fn head(protocol: Protocol, kind: u8, name: &[u8], number: i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    match protocol {
        Protocol::Compact => {
            out.extend_from_slice(&[0x82, 1 | kind << 5]);
            put_varint(&mut out, u64::from(number.cast_unsigned()));
            put_binary(protocol, &mut out, name);
        }
        Protocol::Binary => {
            out.extend_from_slice(&[0x80, 1, 0, kind]);
            put_binary(protocol, &mut out, name);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
    out
}

/// A field after the one with id `before`.
fn field_head(protocol: Protocol, out: &mut Vec<u8>, kind: u8, before: i16, id: i16) {
    match protocol {
        Protocol::Binary => {
            out.push(kind);
            out.extend_from_slice(&id.to_be_bytes());
        }
        Protocol::Compact if (1..=15).contains(&(id - before)) => out.push(((id - before) as u8) << 4 | kind::compact(kind)),
        Protocol::Compact => {
            out.push(kind::compact(kind));
            put_zigzag(out, i64::from(id));
        }
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_binary(protocol: Protocol, out: &mut Vec<u8>, bytes: &[u8]) {
    match protocol {
        Protocol::Binary => put_count(out, bytes.len()),
        Protocol::Compact => put_varint(out, bytes.len() as u64),
    }
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { frame_bytes: 1 << 20, events: 1000 };
    const BOTH: [Protocol; 2] = [Protocol::Compact, Protocol::Binary];

    fn event(headers: &[(&str, &str)], body: &[u8]) -> Event {
        let mut event = Event::new(body.to_vec());
        headers.iter().for_each(|(name, value)| event.set_header(name, (*value).to_owned()));
        event
    }

    fn seen(events: &[Event]) -> Vec<(BTreeMap<String, String>, Vec<u8>)> {
        events.iter().map(|event| (event.headers.as_deref().cloned().unwrap_or_default(), event.body.to_vec())).collect()
    }

    /// The bytes are those that Thrift's Java library writes.
    #[test]
    fn appends_are_read_and_answered() {
        let compact = b"\x82\x21\x01\x06append\x1c\x1b\x01\x88\x01a\x02bc\x18\x03xyz\0\0";
        let binary = b"\x80\x01\0\x01\0\0\0\x06append\0\0\0\x01\x0c\0\x01\x0d\0\x01\x0b\x0b\0\0\0\x01\0\0\0\x01a\0\0\0\x02bc\x0b\0\x02\0\0\0\x03xyz\0\0";
        let older =
            b"\0\0\0\x06append\x01\0\0\0\x01\x0c\0\x01\x0d\0\x01\x0b\x0b\0\0\0\x01\0\0\0\x01a\0\0\0\x02bc\x0b\0\x02\0\0\0\x03xyz\0\0";
        for (protocol, message) in [(Protocol::Compact, &compact[..]), (Protocol::Binary, binary), (Protocol::Binary, older)] {
            let request = request(protocol, Bytes::copy_from_slice(message), LIMITS).unwrap();
            assert_eq!((&request.method, seen(&request.events)), (&Method::Append, seen(&[event(&[("a", "bc")], b"xyz")])));
            let said = request.answer(protocol, Status::Failed);
            match protocol {
                Protocol::Compact => assert_eq!(said, b"\x82\x41\x01\x06append\x05\0\x02\0"),
                Protocol::Binary => assert_eq!(said, b"\x80\x01\0\x02\0\0\0\x06append\0\0\0\x01\x08\0\0\0\0\0\x01\0"),
            }
            assert_eq!(answer(protocol, 1, said.into()).unwrap(), Answer::Status(Status::Failed));
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        // A truth value, a map of lists, a struct and a double before the known fields.
        let compact = b"\x82\x21\x01\x06append\x1c\x31\x1b\x01\x89\x01k\x15\x02\x1c\x16\x04\0\x17\x01\x02\x03\x04\x05\x06\x07\x08\x0b\x02\0\x08\x04\x01x\0\0";
        let request = request(Protocol::Compact, Bytes::copy_from_slice(compact), LIMITS).unwrap();
        assert_eq!(seen(&request.events), seen(&[event(&[], b"x")]));
    }

    #[test]
    fn bad_requests_are_refused_with_the_reason() {
        let many: Vec<Event> = (0..1001).map(|_| Event::new("")).collect();
        for protocol in BOTH {
            for (message, reason) in [
                (
                    b"GET / HTTP/1.1".to_vec(),
                    if protocol == Protocol::Compact { "not of the compact protocol" } else { "bytes are announced" },
                ),
                (head(protocol, CALL, b"ping", 1), "no call of `ping`"),
                (head(protocol, REPLY, b"append", 1), "no call of `append`"),
                ([head(protocol, CALL, b"append", 1), vec![0]].concat(), "`append` without an event"),
                (append_batch(protocol, 1, &many), "more than 1000 events"),
            ] {
                let refusal = request(protocol, message.into(), LIMITS).unwrap_err();
                assert!(refusal.error.to_string().contains(reason), "{protocol:?}: {} instead of {reason}", refusal.error);
                let number = if reason.contains("protocol") || reason.contains("announced") { 0 } else { 1 };
                assert_eq!(answer(protocol, number, refusal.answer.into()).unwrap(), Answer::Error(refusal.error.to_string()));
            }
        }
    }

    #[tokio::test]
    async fn frames_are_bounded() {
        let mut wire = Vec::new();
        write_frame(&mut wire, b"abc").await.unwrap();
        write_frame(&mut wire, b"").await.unwrap();
        let (mut incoming, mut stream) = (Incoming::new(), wire.as_slice());
        assert_eq!(read_frame(&mut incoming, &mut stream, 3).await.unwrap().unwrap(), "abc");
        assert_eq!(read_frame(&mut incoming, &mut stream, 3).await.unwrap().unwrap(), "");
        assert!(read_frame(&mut incoming, &mut stream, 3).await.unwrap().is_none());
        let mut stream = wire.as_slice();
        let error = read_frame(&mut incoming, &mut stream, 2).await.unwrap_err().to_string();
        assert!(error.contains("a frame of 3 bytes is more than 2 (maxFrameBytes)"), "{error}");
        let mut stream = &wire[..6];
        assert!(read_frame(&mut Incoming::new(), &mut stream, 3).await.is_err());
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let headers = prop::collection::btree_map("[a-zé]{0,8}", ".{0,12}", 0..4);
        let body = prop::collection::vec(any::<u8>(), 0..40);
        (headers, body).prop_map(|(headers, body)| {
            let mut event = Event::new(body);
            headers.into_iter().for_each(|(name, value)| event.set_header(&name, value));
            event
        })
    }

    proptest! {
        #[test]
        fn events_come_back(events in prop::collection::vec(any_event(), 0..20), number: i32, status in 0usize..4) {
            for protocol in BOTH {
                let request = request(protocol, append_batch(protocol, number, &events).into(), LIMITS).unwrap();
                prop_assert_eq!(&request.method, &Method::AppendBatch);
                prop_assert_eq!(seen(&request.events), seen(&events));
                let said = request.answer(protocol, Status::ALL[status]);
                prop_assert_eq!(answer(protocol, number, said.into()), Ok(Answer::Status(Status::ALL[status])));
            }
        }

        /// Whatever comes: a call or an error, and never more events than bytes.
        #[test]
        fn no_request_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), good in any::<prop::sample::Index>()) {
            for protocol in BOTH {
                let mut message = append_batch(protocol, 1, &[event(&[("a", "b")], b"c"), event(&[], b"d")]);
                let at = good.index(message.len());
                message.splice(at.., bytes.clone());
                for message in [bytes.clone(), message] {
                    let length = message.len();
                    if let Ok(request) = request(protocol, message.clone().into(), LIMITS) {
                        prop_assert!(request.events.len() <= length);
                    }
                    drop(answer(protocol, 1, message.into()));
                }
            }
        }
    }
}
