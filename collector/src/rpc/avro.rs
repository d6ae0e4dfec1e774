//! Avro's IPC as Flume uses it: frames on a connection, the handshake, and the two messages.
//!
//! A frame is `int32 serial, int32 count`, then `count` buffers of `int32 length, bytes`; the buffers together are the
//! message. The answer carries the request's serial. The first request of a connection begins with a handshake, in which
//! the sides name their protocols by MD5 and send the text where the other does not know it.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Cut, Incoming, LastHeaders, Limits, Malformed, Method, put_zigzag, text};
use crate::event::{Event, Headers};

/// The protocol, as Avro writes it.
pub const PROTOCOL: &str = concat!(
    r#"{"protocol":"AvroSourceProtocol","namespace":"org.apache.flume.source.avro","#,
    r#""types":[{"type":"enum","name":"Status","symbols":["OK","FAILED","UNKNOWN"]},"#,
    r#"{"type":"record","name":"AvroFlumeEvent","fields":[{"name":"headers","type":{"type":"map","values":"string"}},"#,
    r#"{"name":"body","type":"bytes"}]}],"#,
    r#""messages":{"append":{"request":[{"name":"event","type":"AvroFlumeEvent"}],"response":"Status"},"#,
    r#""appendBatch":{"request":[{"name":"events","type":{"type":"array","items":"AvroFlumeEvent"}}],"response":"Status"}}}"#,
);

pub type Md5 = [u8; 16];

/// Of [`PROTOCOL`].
pub const OWN: Md5 = [0x30, 0xda, 0x54, 0x05, 0x9d, 0xf7, 0x2d, 0x95, 0x84, 0xb8, 0x67, 0xd5, 0x20, 0x2e, 0x20, 0x69];
/// Of Flume 1.11's text, which has a licence in its `doc` and is the same otherwise.
pub const FLUME: Md5 = [0x86, 0xaa, 0xda, 0xe2, 0xc4, 0x54, 0x74, 0xc0, 0xfe, 0x93, 0xff, 0xd0, 0xf2, 0x35, 0x0a, 0x65];

/// A status, by its place in the enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    Failed,
    Unknown,
}

/// Frame errors end the connection: what follows cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("a frame of more than {max} bytes (maxFrameBytes), or no Avro: {size} bytes are announced")]
    TooLarge { size: u64, max: usize },
    #[error("a frame of {0} buffers: not Avro, or compressed or encrypted differently from what is set here")]
    Count(i32),
}

/// Serial and message of the next frame; `None` at the end of the stream.
pub async fn read_frame<S: AsyncRead + Unpin>(
    incoming: &mut Incoming,
    stream: &mut S,
    max: usize,
) -> Result<Option<(i32, Bytes)>, FrameError> {
    if !incoming.fill(stream, 8).await? {
        return Ok(None);
    }
    let serial = incoming.buffer.get_i32();
    let count = incoming.buffer.get_i32();
    let buffers = usize::try_from(count).map_err(|_| FrameError::Count(count))?;
    // Each buffer has at least its length.
    if buffers.saturating_mul(4) > max {
        return Err(FrameError::Count(count));
    }
    let mut message = BytesMut::new();
    for _ in 0..buffers {
        if !incoming.fill(stream, 4).await? {
            return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let length = incoming.buffer.get_u32();
        let size = message.len() as u64 + u64::from(length);
        let too_large = FrameError::TooLarge { size, max };
        let length = usize::try_from(length).ok().filter(|length| length.saturating_add(message.len()) <= max).ok_or(too_large)?;
        if length > 0 && !incoming.fill(stream, length).await? {
            return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let part = incoming.buffer.split_to(length);
        if message.is_empty() {
            message = part;
        } else {
            message.extend_from_slice(&part);
        }
    }
    Ok(Some((serial, message.freeze())))
}

pub async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, serial: i32, message: &[u8]) -> std::io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| std::io::Error::other("a message of more than 4 GiB"))?;
    let mut head = Vec::with_capacity(12);
    head.extend_from_slice(&serial.to_be_bytes());
    head.extend_from_slice(&1i32.to_be_bytes());
    head.extend_from_slice(&length.to_be_bytes());
    stream.write_all(&head).await?;
    stream.write_all(message).await?;
    stream.flush().await
}

/// The match of a handshake's answer.
const BOTH: i64 = 0;
const CLIENT: i64 = 1;
const NONE: i64 = 2;

/// The answering side of one connection.
#[derive(Default)]
pub struct Responder {
    agreed: bool,
}

/// What a request comes to.
#[derive(Debug)]
pub enum Request {
    /// Events to put, and what goes before the answer.
    Call { method: Method, events: Vec<Event>, before: Vec<u8> },
    /// The handshake needs another round, or was all there is.
    Answer(Vec<u8>),
}

/// A request that cannot be read, and what to answer before the connection is closed.
#[derive(Debug)]
pub struct Refusal {
    pub answer: Vec<u8>,
    pub error: Malformed,
}

impl Responder {
    pub fn request(&mut self, message: Bytes, limits: Limits) -> Result<Request, Refusal> {
        let was_agreed = self.agreed;
        let mut before = Vec::new();
        match self.read(Cut::new(message), limits, &mut before) {
            Ok(Some((method, events))) => Ok(Request::Call { method, events, before }),
            Ok(None) => Ok(Request::Answer(before)),
            Err(error) => {
                let mut answer = before;
                if answer.is_empty() && !was_agreed {
                    // A client reads a handshake first: this one says that all is well, and the error follows.
                    answer.extend_from_slice(&[0, 0, 0, 0]);
                }
                // No extensions, an error, the first of a union: text.
                answer.extend_from_slice(&[0, 1, 0]);
                put_bytes(&mut answer, error.to_string().as_bytes());
                Err(Refusal { answer, error })
            }
        }
    }

    fn read(&mut self, mut cut: Cut, limits: Limits, before: &mut Vec<u8>) -> Result<Option<(Method, Vec<Event>)>, Malformed> {
        if !self.agreed && !self.handshake(&mut cut, before)? {
            return Ok(None);
        }
        skip_meta(&mut cut)?;
        let name = bytes(&mut cut)?;
        if name.is_empty() {
            return Ok(None);
        }
        let method = Method::named(&name).ok_or_else(|| {
            Malformed::new(format!("no message `{}`; this is Flume's AvroSourceProtocol", text(&name[..name.len().min(80)])))
        })?;
        let mut last = LastHeaders::default();
        let mut events = Vec::new();
        match method {
            Method::Append => events.push(event(&mut cut, &mut last)?),
            Method::AppendBatch => blocks(&mut cut, |cut| {
                limits.one_more(events.len())?;
                events.push(event(cut, &mut last)?);
                Ok(())
            })?,
        }
        if !cut.rest().is_empty() {
            return Err(Malformed::new(format!("{} bytes after the request's end", cut.rest().len())));
        }
        Ok(Some((method, events)))
    }

    /// Reads the client's part and writes the answer. False: the client has to say its protocol first.
    fn handshake(&mut self, cut: &mut Cut, answer: &mut Vec<u8>) -> Result<bool, Malformed> {
        let client = hash(cut)?;
        let protocol = if is_set(cut)? { Some(bytes(cut)?) } else { None };
        let server = hash(cut)?;
        if is_set(cut)? {
            skip_map(cut)?;
        }
        self.agreed = match protocol {
            _ if [OWN, FLUME].contains(&client) => true,
            Some(protocol) => {
                fits(&protocol)?;
                true
            }
            None => false,
        };
        let known = [OWN, FLUME].contains(&server);
        let matched = match (self.agreed, known) {
            (true, true) => BOTH,
            (true, false) => CLIENT,
            (false, _) => NONE,
        };
        put_zigzag(answer, matched);
        if matched == BOTH {
            put_zigzag(answer, 0);
            put_zigzag(answer, 0);
        } else {
            put_zigzag(answer, 1);
            put_bytes(answer, PROTOCOL.as_bytes());
            put_zigzag(answer, 1);
            answer.extend_from_slice(&OWN);
        }
        put_zigzag(answer, 0);
        Ok(self.agreed)
    }
}

/// The answer to a call; `before` is the handshake's, if there was one.
pub fn answer(before: Vec<u8>, status: Status) -> Vec<u8> {
    let mut out = before;
    out.extend_from_slice(&[0, 0]);
    put_zigzag(&mut out, status as i64);
    out
}

/// The calling side of one connection.
#[derive(Default)]
pub struct Requestor {
    agreed: bool,
    /// The server's hash, and that it asked for our protocol's text.
    asked: Option<Md5>,
}

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Status(Status),
    /// The server did not know our protocol: the request is to be sent again.
    Again,
    /// The server's error.
    Error(String),
}

impl Requestor {
    /// `appendBatch`.
    pub fn request(&self, events: &[Event]) -> Vec<u8> {
        let size: usize = events.iter().map(|event| event.body.len() + 64).sum();
        let mut out = Vec::with_capacity(size + PROTOCOL.len());
        if !self.agreed {
            match self.asked {
                None => {
                    out.extend_from_slice(&FLUME);
                    put_zigzag(&mut out, 0);
                    out.extend_from_slice(&FLUME);
                }
                Some(server) => {
                    out.extend_from_slice(&OWN);
                    put_zigzag(&mut out, 1);
                    put_bytes(&mut out, PROTOCOL.as_bytes());
                    out.extend_from_slice(&server);
                }
            }
            put_zigzag(&mut out, 0);
        }
        out.push(0);
        put_bytes(&mut out, Method::AppendBatch.name().as_bytes());
        if !events.is_empty() {
            put_zigzag(&mut out, events.len() as i64);
            for event in events {
                put_event(&mut out, event);
            }
        }
        out.push(0);
        out
    }

    pub fn answer(&mut self, message: Bytes) -> Result<Answer, Malformed> {
        let mut cut = Cut::new(message);
        if !self.agreed {
            let matched = cut.zigzag()?;
            let protocol = if is_set(&mut cut)? { Some(bytes(&mut cut)?) } else { None };
            let server = if is_set(&mut cut)? { Some(hash(&mut cut)?) } else { None };
            if is_set(&mut cut)? {
                skip_map(&mut cut)?;
            }
            if let Some(protocol) = protocol.filter(|_| matched != BOTH) {
                fits(&protocol)?;
            }
            match matched {
                BOTH | CLIENT => self.agreed = true,
                NONE if self.asked.is_none() => {
                    self.asked = Some(server.ok_or_else(|| Malformed::new("a handshake's answer without the server's hash"))?);
                    return Ok(Answer::Again);
                }
                NONE => return Err(Malformed::new("the server does not take Flume's protocol")),
                other => return Err(Malformed::new(format!("a handshake's answer of kind {other}"))),
            }
        }
        skip_meta(&mut cut)?;
        if cut.byte()? != 0 {
            // A union of one: text.
            return match cut.zigzag()? {
                0 => Ok(Answer::Error(text(&bytes(&mut cut)?))),
                other => Err(Malformed::new(format!("an error of kind {other}"))),
            };
        }
        match cut.zigzag()? {
            0 => Ok(Answer::Status(Status::Ok)),
            1 => Ok(Answer::Status(Status::Failed)),
            2 => Ok(Answer::Status(Status::Unknown)),
            other => Err(Malformed::new(format!("status {other}"))),
        }
    }
}

/// A union of null and something: is it the something?
fn is_set(cut: &mut Cut) -> Result<bool, Malformed> {
    match cut.zigzag()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Malformed::new(format!("branch {other} of a union of two: not an Avro handshake"))),
    }
}

fn hash(cut: &mut Cut) -> Result<Md5, Malformed> {
    let bytes = cut.take(16)?;
    bytes.as_ref().try_into().map_err(|_| Malformed::new("a hash that is not 16 bytes"))
}

fn bytes(cut: &mut Cut) -> Result<Bytes, Malformed> {
    let length = cut.zigzag()?;
    let length = usize::try_from(length).map_err(|_| Malformed::new(format!("a length of {length}")))?;
    cut.take(length)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_zigzag(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// The items of an array or a map: blocks of a count, or of a negative count and the block's bytes; a count of 0 ends them.
fn blocks(cut: &mut Cut, mut item: impl FnMut(&mut Cut) -> Result<(), Malformed>) -> Result<(), Malformed> {
    loop {
        let count = cut.zigzag()?;
        if count == 0 {
            return Ok(());
        }
        if count < 0 {
            cut.zigzag()?;
        }
        for _ in 0..count.unsigned_abs() {
            item(cut)?;
        }
    }
}

fn skip_map(cut: &mut Cut) -> Result<(), Malformed> {
    blocks(cut, |cut| {
        bytes(cut)?;
        bytes(cut)?;
        Ok(())
    })
}

/// Every request and answer has a map for extensions.
fn skip_meta(cut: &mut Cut) -> Result<(), Malformed> {
    skip_map(cut)
}

fn headers(cut: &mut Cut) -> Result<BTreeMap<String, String>, Malformed> {
    let mut headers = BTreeMap::new();
    blocks(cut, |cut| {
        let name = text(&bytes(cut)?);
        headers.insert(name, text(&bytes(cut)?));
        Ok(())
    })?;
    Ok(headers)
}

/// An event by itself, as Flume writes it to Kafka. What follows it is passed over, as Flume does.
pub fn bare_event(bytes: Bytes) -> Result<Event, Malformed> {
    event(&mut Cut::new(bytes), &mut LastHeaders::default())
}

fn event(cut: &mut Cut, last: &mut LastHeaders) -> Result<Event, Malformed> {
    let headers: Headers = last.read(cut, headers)?;
    Ok(Event { headers, ..Event::new(bytes(cut)?) })
}

fn put_event(out: &mut Vec<u8>, event: &Event) {
    if let Some(headers) = event.headers.as_deref().filter(|headers| !headers.is_empty()) {
        put_zigzag(out, headers.len() as i64);
        for (name, value) in headers {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value.as_bytes());
        }
    }
    out.push(0);
    put_bytes(out, &event.body);
}

/// Does a protocol's text describe the messages as they are read and written here? Names of other things do not matter.
fn fits(protocol: &[u8]) -> Result<(), Malformed> {
    let refuse = |what: &str| Malformed::new(format!("the other side's protocol is not Flume's: {what}"));
    let protocol: Value = serde_json::from_slice(protocol).map_err(|error| refuse(&error.to_string()))?;
    let types = protocol["types"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = |name: &str| {
        let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
        types.iter().find(|kind| kind["name"].as_str().is_some_and(|known| last(known) == last(name)))
    };
    // `"bytes"` or `{"type": "bytes"}`.
    let is = |kind: &Value, name: &str| kind == name || kind["type"] == name;
    let is_event = |kind: &Value| {
        let kind = kind.as_str().and_then(named).unwrap_or(kind);
        let fields = kind["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
        matches!(fields, [headers, body] if headers["name"] == "headers" && is(&headers["type"], "map") && is(&headers["type"]["values"], "string")
            && body["name"] == "body" && is(&body["type"], "bytes"))
    };
    let mut known = 0;
    for method in Method::ALL {
        let message = &protocol["messages"][method.name()];
        let Some(request) = message["request"].as_array() else { continue };
        let [parameter] = request.as_slice() else { return Err(refuse(&format!("`{}` has {} parameters", method.name(), request.len()))) };
        let kind = &parameter["type"];
        let right = match method {
            Method::Append => is_event(kind),
            Method::AppendBatch => is(kind, "array") && is_event(&kind["items"]),
        };
        if !right {
            return Err(refuse(&format!("`{}` takes something else than headers and body", method.name())));
        }
        known += 1;
    }
    if known == 0 { Err(refuse("it has neither `append` nor `appendBatch`")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use md5::{Digest as _, Md5 as Sum};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { frame_bytes: 1 << 20, events: 1000 };

    fn event(headers: &[(&str, &str)], body: &[u8]) -> Event {
        let mut event = Event::new(body.to_vec());
        headers.iter().for_each(|(name, value)| event.set_header(name, (*value).to_owned()));
        event
    }

    fn seen(events: &[Event]) -> Vec<(BTreeMap<String, String>, Vec<u8>)> {
        events.iter().map(|event| (event.headers.as_deref().cloned().unwrap_or_default(), event.body.to_vec())).collect()
    }

    #[test]
    fn the_hash_is_the_texts() {
        assert_eq!(Sum::digest(PROTOCOL.as_bytes()).as_slice(), OWN);
        fits(PROTOCOL.as_bytes()).unwrap();
    }

    /// What a client sends that is a Java one of Flume 1.11, byte by byte.
    #[test]
    fn a_first_request_has_a_handshake_and_the_next_has_none() {
        let mut responder = Responder::default();
        let mut request = [FLUME.as_slice(), &[0], &FLUME, &[0]].concat();
        request.extend_from_slice(b"\x00\x0cappend\x02\x02a\x04bc\x00\x06xyz");
        let Request::Call { method, events, before } = responder.request(request.into(), LIMITS).unwrap() else { panic!("a call") };
        assert_eq!((method, seen(&events)), (Method::Append, seen(&[event(&[("a", "bc")], b"xyz")])));
        assert_eq!(answer(before, Status::Failed), [0, 0, 0, 0, 0, 0, 2]);
        let second = b"\x00\x16appendBatch\x03\x0e\x00\x02p\x00\x02q\x00";
        let Request::Call { method, events, before } = responder.request(second.as_slice().into(), LIMITS).unwrap() else {
            panic!("a call")
        };
        assert_eq!((method, seen(&events)), (Method::AppendBatch, seen(&[event(&[], b"p"), event(&[], b"q")])));
        assert_eq!(answer(before, Status::Ok), [0, 0, 0]);
    }

    #[test]
    fn a_stranger_says_its_protocol_and_is_understood() {
        for (protocol, understood) in [
            (PROTOCOL.to_owned(), true),
            (PROTOCOL.replace(r#""bytes""#, r#"{"type":"bytes"}"#), true),
            (PROTOCOL.replace(r#""values":"string""#, r#""values":{"type":"string","avro.java.string":"String"}"#), true),
            (PROTOCOL.replace(r#""items":"AvroFlumeEvent""#, r#""items":"org.apache.flume.source.avro.AvroFlumeEvent""#), true),
            (PROTOCOL.replace("\"body\"", "\"payload\""), false),
            (PROTOCOL.replace(r#""values":"string""#, r#""values":"bytes""#), false),
            (PROTOCOL.replace("append", "send"), false),
            ("{}".to_owned(), false),
            ("[".to_owned(), false),
        ] {
            let mut responder = Responder::default();
            let call = b"\x00\x0cappend\x00\x02x";
            let first = [[7u8; 16].as_slice(), &[0], &[8; 16], &[0], call].concat();
            let Request::Answer(none) = responder.request(first.into(), LIMITS).unwrap() else { panic!("an answer") };
            assert_eq!(none[0], 4);
            let mut second = [[7u8; 16].as_slice(), &[2]].concat();
            put_bytes(&mut second, protocol.as_bytes());
            second.extend_from_slice(&[OWN.as_slice(), &[0], call].concat());
            match responder.request(second.into(), LIMITS) {
                Ok(Request::Call { events, before, .. }) => {
                    assert!(understood, "{protocol}");
                    assert_eq!((events.len(), before), (1, vec![0, 0, 0, 0]));
                }
                Ok(Request::Answer(_)) => panic!("{protocol}: no call"),
                Err(refusal) => {
                    assert!(!understood, "{protocol}: {}", refusal.error);
                    assert_eq!(refusal.answer[..7], [0, 0, 0, 0, 0, 1, 0]);
                }
            }
        }
    }

    #[test]
    fn bad_requests_are_refused_with_the_reason() {
        let hello = [FLUME.as_slice(), &[0], &FLUME, &[0]].concat();
        let batch = |rest: &[u8]| [b"\x00\x16appendBatch".as_slice(), rest].concat();
        for (call, reason) in [
            (b"\x00\x08ping".to_vec(), "no message `ping`"),
            (b"\x00\x0cappend\x00\x7fx".to_vec(), "a length of -64"),
            (b"\x00\x0cappend\x00\x7ex".to_vec(), "63 bytes are announced and 1 are left"),
            (batch(b"\x02\x00\x02x\x00!"), "1 bytes after the request's end"),
            (batch(&[&[0xd2, 0x0f][..], &[0; 2002], &[0]].concat()), "more than 1000 events in one request (maxBatchEvents)"),
            (batch(&[0xff; 10]), "a number of more than ten bytes"),
        ] {
            let refusal = Responder::default().request([hello.clone(), call].concat().into(), LIMITS).unwrap_err();
            assert!(refusal.error.to_string().contains(reason), "{} instead of {reason}", refusal.error);
            let mut client = Requestor::default();
            assert_eq!(client.answer(refusal.answer.into()).unwrap(), Answer::Error(refusal.error.to_string()));
        }
    }

    /// A server with another text of the protocol, as of another version.
    #[test]
    fn a_client_says_its_protocol_where_the_server_asks() {
        let mut client = Requestor::default();
        assert!(client.answer(Bytes::from_static(&[4, 2, 0xd6, 0x08])).is_err());
        let mut answer = vec![4, 2];
        put_bytes(&mut answer, PROTOCOL.as_bytes());
        answer.extend_from_slice(&[&[2][..], &[9; 16], &[0]].concat());
        assert_eq!(client.answer(answer.clone().into()).unwrap(), Answer::Again);
        let request = client.request(&[Event::new("x")]);
        assert_eq!(&request[..16], OWN.as_slice());
        let Request::Call { before, .. } = Responder::default().request(request.into(), LIMITS).unwrap() else { panic!("a call") };
        assert_eq!(before[0], 2);
        assert_eq!(client.answer(super::answer(before, Status::Ok).into()).unwrap(), Answer::Status(Status::Ok));
        let mut client = Requestor { asked: Some(OWN), ..Requestor::default() };
        assert!(client.answer(answer.into()).unwrap_err().to_string().contains("does not take"));
    }

    async fn frames(mut wire: &[u8], max: usize) -> Result<Vec<(i32, Bytes)>, FrameError> {
        let (mut incoming, mut frames) = (Incoming::new(), Vec::new());
        while let Some(frame) = read_frame(&mut incoming, &mut wire, max).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn frames_come_in_one_buffer_or_several() {
        let wire = b"\0\0\0\x07\0\0\0\x03\0\0\0\x02ab\0\0\0\0\0\0\0\x01c\0\0\0\x08\0\0\0\x01\0\0\0\x01d\0\0\0\x09\0\0\0\0";
        let read = frames(wire, 12).await.unwrap();
        assert_eq!(read, [(7, Bytes::from_static(b"abc")), (8, Bytes::from_static(b"d")), (9, Bytes::new())]);
        let mut written = Vec::new();
        write_frame(&mut written, 8, b"d").await.unwrap();
        assert_eq!(frames(&written, 4).await.unwrap(), [(8, Bytes::from_static(b"d"))]);
    }

    #[tokio::test]
    async fn frames_are_bounded() {
        for (wire, expected) in [
            (
                &b"\0\0\0\x07\0\0\0\x02\0\0\0\x02ab\0\0\0\x0fcdefg"[..],
                "a frame of more than 16 bytes (maxFrameBytes), or no Avro: 17 bytes",
            ),
            (b"GET / HTTP/1.1\r\n", "a frame of 790644820 buffers"),
            (b"\0\0\0\x07\xff\xff\xff\xff", "a frame of -1 buffers"),
            (b"\0\0\0\x07\0\0\0\x01\0\0\0\x02a", "unexpected end of file"),
            (b"\0\0\0", "unexpected end of file"),
        ] {
            let error = frames(wire, 16).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
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
        fn events_come_back(events in prop::collection::vec(any_event(), 0..20), again: bool) {
            let (mut client, mut server) = (Requestor::default(), Responder::default());
            for _ in 0..=usize::from(again) {
                let Ok(Request::Call { method, events: read, before }) = server.request(client.request(&events).into(), LIMITS) else {
                    panic!("a call")
                };
                prop_assert_eq!(method, Method::AppendBatch);
                prop_assert_eq!(seen(&read), seen(&events));
                prop_assert_eq!(client.answer(answer(before, Status::Ok).into()), Ok(Answer::Status(Status::Ok)));
            }
        }

        /// Whatever comes: an answer, a call or an error, and never more events than bytes.
        #[test]
        fn no_request_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), agreed: bool, good in any::<prop::sample::Index>()) {
            if let Ok(Request::Call { events, .. }) = (Responder { agreed }).request(bytes.clone().into(), LIMITS) {
                prop_assert!(events.len() <= bytes.len());
            }
            // And a good request with a stain.
            let mut request = Requestor::default().request(&[event(&[("a", "b")], b"c"), event(&[], b"d")]);
            let at = good.index(request.len());
            request.splice(at.., bytes.clone());
            drop(Responder::default().request(request.into(), LIMITS));
            drop(Requestor { agreed, asked: None }.answer(bytes.clone().into()));
            drop(fits(&bytes));
            let read = futures::executor::block_on(frames(&bytes, 100));
            prop_assert!(read.is_err() || read.unwrap().iter().all(|(_, message)| message.len() <= 100));
        }
    }
}
