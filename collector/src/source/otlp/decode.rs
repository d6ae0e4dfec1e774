//! Exports out of bytes. What they hold is counted before it is read: two bytes make an empty record of hundreds in memory.

use std::fmt;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::{
    DecodeError, Message as _,
    encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use tonic::Status;

use super::records;
use crate::event::Event;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Protobuf,
    Json,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("not an export of log records: {0}")]
    Malformed(String),
    #[error("more than {max} log records in one export (maxRecords)")]
    TooMany { max: usize },
}

impl Encoding {
    /// From a request's `Content-Type`.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let kind = kind.split(';').next().unwrap_or_default().trim();
        [Self::Protobuf, Self::Json].into_iter().find(|encoding| encoding.content_type().eq_ignore_ascii_case(kind))
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// An answer without `partial_success`.
    pub(super) fn nothing(self) -> &'static str {
        match self {
            Self::Protobuf => "",
            Self::Json => "{}",
        }
    }

    /// Why an export was refused, as `google.rpc.Status`.
    pub(super) fn fault(self, status: &Status) -> Vec<u8> {
        let (code, message) = (i32::from(status.code()), status.message());
        match self {
            Self::Protobuf => tonic_types::Status { code, message: message.to_owned(), details: Vec::new() }.encode_to_vec(),
            Self::Json => serde_json::json!({"code": code, "message": message}).to_string().into_bytes(),
        }
    }
}

/// The events of an export of `max` records at most.
pub(super) fn events(encoding: Encoding, body: &Bytes, max: usize) -> Result<Vec<Event>, Fault> {
    let parts = match encoding {
        Encoding::Protobuf => in_protobuf(body, &LEVELS).map_err(|error| error.to_string()),
        Encoding::Json => in_json(body).map_err(|error| error.to_string()),
    };
    let Parts { records, groups } = parts.map_err(Fault::Malformed)?;
    // A record needs one resource and one scope, within the export; more groups than that are empty.
    if records > max || groups > 2 * max + 1 {
        return Err(Fault::TooMany { max });
    }
    let request = match encoding {
        Encoding::Protobuf => ExportLogsServiceRequest::decode(body.clone()).map_err(|error| error.to_string()),
        Encoding::Json => serde_json::from_slice(body).map_err(|error| error.to_string()),
    };
    Ok(records::events(request.map_err(Fault::Malformed)?))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    records: usize,
    /// The export, resources and scopes.
    groups: usize,
}

/// Field numbers and JSON names on the way to a log record.
const LEVELS: [(u32, &str); 3] = [(1, "resourceLogs"), (2, "scopeLogs"), (2, "logRecords")];

fn in_protobuf(mut message: &[u8], levels: &[(u32, &str)]) -> Result<Parts, DecodeError> {
    let Some(((wanted, _), below)) = levels.split_first() else { return Ok(Parts { records: 1, groups: 0 }) };
    let mut parts = Parts { records: 0, groups: 1 };
    while !message.is_empty() {
        let (field, wire) = decode_key(&mut message)?;
        if field != *wanted || wire != WireType::LengthDelimited {
            skip_field(wire, field, &mut message, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
        // A message that is cut short is refused where it is read.
        let Some((inner, rest)) = message.split_at_checked(length) else { return Ok(parts) };
        let found = in_protobuf(inner, below)?;
        parts = Parts { records: parts.records + found.records, groups: parts.groups + found.groups };
        message = rest;
    }
    Ok(parts)
}

fn in_json(text: &[u8]) -> Result<Parts, serde_json::Error> {
    let mut parts = Parts::default();
    let mut reader = serde_json::Deserializer::from_slice(text);
    Level { below: &LEVELS, parts: &mut parts }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(parts)
}

/// Counts what an object and those below it hold, and keeps nothing.
struct Level<'a> {
    below: &'a [(u32, &'static str)],
    parts: &'a mut Parts,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.below.is_empty() {
            self.parts.records += 1;
            return IgnoredAny::deserialize(deserializer).map(drop);
        }
        self.parts.groups += 1;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {}", self.below.first().map_or("nothing", |(_, name)| name))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(((_, wanted), below)) = self.below.split_first() else { return Err(A::Error::custom("no level")) };
        while let Some(name) = map.next_key::<String>()? {
            if name == *wanted {
                map.next_value_seed(List { below, parts: self.parts })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct List<'a> {
    below: &'a [(u32, &'static str)],
    parts: &'a mut Parts,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Level { below: self.below, parts: self.parts })?.is_some() {}
        Ok(())
    }
}
