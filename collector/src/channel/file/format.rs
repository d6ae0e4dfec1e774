//! The bytes of a segment: a header, then records. Pure.
//!
//! | part | bytes |
//! |---|---|
//! | header | magic 8, version 4, CRC-32C 4, channel 8, segment 8, first number 8, and of the segment before: its id 8, its bytes that count 8, its next number 8 |
//! | record | length of the payload 4, CRC-32C of length, number and payload 4, number 8, payload |
//! | payload | flags 1, then as they say: trace (length 2, text), marks (count 4, file id 8 and end 8 each), headers (count, then name and value, each with its length as a varint), body to the end |
//!
//! Everything is little-endian. A record says by itself what it is: after damage the next one is found by looking at every
//! byte for a length, a number that may come there, and a checksum that fits. Numbers go up by one within a segment.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;

use crate::event::Headers;

pub const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 64;
pub const RECORD_BYTES: usize = 16;
/// Longer payloads are not written, and a length above it is damage.
pub const PAYLOAD_MAX: usize = 1 << 30;
const MAGIC: [u8; 8] = *b"MRFILEC1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minted once for a channel's directories.
    pub channel: u64,
    pub segment: u64,
    /// Number of the first record.
    pub first: u64,
    /// How the segment before ends; what it holds beyond that was never acknowledged.
    pub previous: Option<Previous>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    pub segment: u64,
    pub len: u64,
    pub next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    Damaged,
    /// Written by a newer program.
    Version(u32),
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let previous = self.previous.unwrap_or(Previous { segment: 0, len: 0, next: 0 });
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let numbers = [self.channel, self.segment, self.first, previous.segment, previous.len, previous.next];
        for (at, number) in (16..).step_by(8).zip(numbers) {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let crc = Self::checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let bytes = bytes.get(..HEADER_BYTES).filter(|bytes| bytes[..8] == MAGIC).ok_or(HeaderFault::Damaged)?;
        if Self::checksum(bytes) != u32_at(bytes, 12) {
            return Err(HeaderFault::Damaged);
        }
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(HeaderFault::Version(version)),
        }
        let number = |at: usize| u64_at(bytes, 16 + 8 * at);
        // Segments are counted from 1.
        let previous = (number(3) != 0).then(|| Previous { segment: number(3), len: number(4), next: number(5) });
        Ok(Self { channel: number(0), segment: number(1), first: number(2), previous })
    }

    fn checksum(bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..HEADER_BYTES])
    }
}

/// The put ends with this record.
pub const LAST: u8 = 1;
/// The trace follows.
const TRACE: u8 = 2;
/// The trace is that of the record before.
const SAME_TRACE: u8 = 4;
/// Marks of tailed files follow.
const MARKS: u8 = 8;
/// No event, only marks; it has the number of the event to come.
pub const NOTE: u8 = 16;

/// How far a tailed file is in the channel: its id, and where its last event ends.
pub type FileMark = (u64, u64);

/// What is written of an event.
pub struct Content<'a> {
    pub trace: Option<&'a str>,
    /// The record before in the same put has the same one.
    pub same_trace: bool,
    pub headers: &'a Headers,
    pub body: &'a [u8],
}

/// Appends a record. `marks` go with the last record of a put.
pub fn encode(out: &mut Vec<u8>, number: u64, content: &Content<'_>, last: Option<&[FileMark]>) {
    let start = begin(out, number);
    let mut flags = 0;
    let trace = content.trace.filter(|trace| !content.same_trace && trace.len() <= usize::from(u16::MAX));
    let marks = last.filter(|marks| !marks.is_empty());
    for (set, flag) in [
        (last.is_some(), LAST),
        (trace.is_some(), TRACE),
        (content.same_trace && content.trace.is_some(), SAME_TRACE),
        (marks.is_some(), MARKS),
    ] {
        flags |= if set { flag } else { 0 };
    }
    out.push(flags);
    if let Some(trace) = trace {
        out.extend_from_slice(&(trace.len() as u16).to_le_bytes());
        out.extend_from_slice(trace.as_bytes());
    }
    put_marks(out, marks.unwrap_or_default());
    let headers = content.headers.as_deref();
    varint(out, headers.map_or(0, BTreeMap::len));
    for (name, value) in headers.into_iter().flatten() {
        for text in [name, value] {
            varint(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
    }
    out.extend_from_slice(content.body);
    finish(out, start);
}

/// Appends a record that holds marks alone.
pub fn encode_note(out: &mut Vec<u8>, number: u64, marks: &[FileMark]) {
    let start = begin(out, number);
    out.push(NOTE | LAST | if marks.is_empty() { 0 } else { MARKS });
    put_marks(out, marks);
    finish(out, start);
}

fn put_marks(out: &mut Vec<u8>, marks: &[FileMark]) {
    if !marks.is_empty() {
        out.extend_from_slice(&(marks.len() as u32).to_le_bytes());
        for (id, end) in marks {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
    }
}

fn begin(out: &mut Vec<u8>, number: u64) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&number.to_le_bytes());
    start
}

fn finish(out: &mut [u8], start: usize) {
    let len = (out.len() - start - RECORD_BYTES) as u32;
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    let crc = record_checksum(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

fn record_checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..4]), &record[8..])
}

/// Bytes an event takes, about.
pub fn record_size(headers: &Headers, body: usize) -> usize {
    let headers: usize = headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| name.len() + value.len() + 4).sum();
    RECORD_BYTES + 2 + headers + body
}

/// One thing found in a segment's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Record {
        number: u64,
        flags: u8,
        /// Of the payload after its flags.
        content: Range<usize>,
        end: usize,
    },
    /// No record begins between here and there.
    Damaged {
        to: usize,
    },
    /// What begins here is longer than the bytes that were read.
    More {
        bytes: usize,
    },
    End,
}

/// What is at `at` in `bytes`, which are followed by `beyond` bytes of the segment. Only numbers in `numbers` may come.
pub fn step(bytes: &[u8], at: usize, beyond: u64, numbers: Range<u64>) -> Step {
    if at >= bytes.len() && beyond == 0 {
        return Step::End;
    }
    match look(bytes, at, beyond, &numbers) {
        Look::Record { number, flags, content, end } => return Step::Record { number, flags, content, end },
        Look::More(bytes) => return Step::More { bytes },
        Look::Nothing => {}
    }
    for to in at + 1..bytes.len() {
        match look(bytes, to, beyond, &numbers) {
            Look::Nothing => {}
            Look::Record { .. } | Look::More(_) => return Step::Damaged { to },
        }
    }
    Step::Damaged { to: bytes.len() }
}

enum Look {
    Record { number: u64, flags: u8, content: Range<usize>, end: usize },
    More(usize),
    Nothing,
}

fn look(bytes: &[u8], at: usize, beyond: u64, numbers: &Range<u64>) -> Look {
    let left = bytes.len() - at;
    if left < RECORD_BYTES {
        return if beyond == 0 { Look::Nothing } else { Look::More(RECORD_BYTES) };
    }
    let (len, number) = (u32_at(bytes, at) as usize, u64_at(bytes, at + 8));
    if len == 0 || len > PAYLOAD_MAX || !numbers.contains(&number) || (RECORD_BYTES + len) as u64 > left as u64 + beyond {
        return Look::Nothing;
    }
    let end = at + RECORD_BYTES + len;
    match bytes.get(at..end) {
        None => Look::More(RECORD_BYTES + len),
        Some(record) if record_checksum(record) == u32_at(bytes, at + 4) => {
            Look::Record { number, flags: bytes[at + RECORD_BYTES], content: at + RECORD_BYTES + 1..end, end }
        }
        Some(_) => Look::Nothing,
    }
}

/// A record's content, read. The checksum was right, so `None` is a fault of the writer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    pub trace: Option<String>,
    pub same_trace: bool,
    pub marks: Vec<FileMark>,
    pub headers: Headers,
    pub body: Bytes,
}

pub fn decode(bytes: &Bytes, flags: u8, content: Range<usize>) -> Option<Decoded> {
    let mut decoded = Decoded { same_trace: flags & SAME_TRACE != 0, ..Decoded::default() };
    let mut rest = Rest { bytes: bytes.get(content.clone())? };
    if flags & TRACE != 0 {
        let len = u16::from_le_bytes(rest.take(2)?.try_into().ok()?);
        decoded.trace = Some(String::from_utf8(rest.take(usize::from(len))?.to_vec()).ok()?);
    }
    if flags & MARKS != 0 {
        let count = u32_at(rest.take(4)?, 0) as usize;
        decoded.marks = rest.take(count.checked_mul(16)?)?.chunks_exact(16).map(|mark| (u64_at(mark, 0), u64_at(mark, 8))).collect();
    }
    if flags & NOTE != 0 {
        return Some(decoded);
    }
    let count = rest.varint()?;
    if count > 0 {
        let mut headers = BTreeMap::new();
        for _ in 0..count {
            let name = rest.text()?;
            headers.insert(name, rest.text()?);
        }
        decoded.headers = Some(Arc::new(headers));
    }
    decoded.body = bytes.slice(content.end - rest.bytes.len()..content.end);
    Some(decoded)
}

struct Rest<'a> {
    bytes: &'a [u8],
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0usize;
        for shift in (0..35).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let len = self.varint()?;
        String::from_utf8(self.take(len)?.to_vec()).ok()
    }
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Written = (Option<String>, Vec<(String, String)>, Vec<u8>);

    fn written() -> impl Strategy<Value = Written> {
        (
            prop::option::of("[0-9a-f-]{0,55}"),
            prop::collection::vec(("\\PC{0,8}", "\\PC{0,200}"), 0..4),
            prop::collection::vec(any::<u8>(), 0..300),
        )
    }

    proptest! {
        #[test]
        fn what_is_written_comes_out(puts in prop::collection::vec(prop::collection::vec(written(), 1..5), 1..5), first in any::<u32>()) {
            let first = u64::from(first);
            let (mut bytes, mut number) = (Vec::new(), first);
            let marks = [(7, 9), (u64::MAX, 1)];
            encode_note(&mut bytes, number, &marks);
            for put in &puts {
                for (at, (trace, headers, body)) in put.iter().enumerate() {
                    let headers: Headers = (!headers.is_empty()).then(|| Arc::new(headers.iter().cloned().collect()));
                    let content = Content { trace: trace.as_deref(), same_trace: false, headers: &headers, body };
                    encode(&mut bytes, number, &content, (at + 1 == put.len()).then_some(&marks[..at % 3]));
                    number += 1;
                }
            }
            let bytes = Bytes::from(bytes);
            let Step::Record { flags, content, end, .. } = step(&bytes, 0, 0, first..number + 1) else { panic!("no note") };
            prop_assert_eq!(decode(&bytes, flags, content).unwrap().marks, marks);
            let (mut at, mut expected) = (end, first);
            for put in &puts {
                for (place, (trace, headers, body)) in put.iter().enumerate() {
                    let Step::Record { number, flags, content, end } = step(&bytes, at, 0, expected..u64::MAX) else { panic!("no record") };
                    prop_assert_eq!((number, flags & LAST != 0), (expected, place + 1 == put.len()));
                    let decoded = decode(&bytes, flags, content).unwrap();
                    prop_assert_eq!(&decoded.trace, trace);
                    prop_assert_eq!(decoded.body.as_ref(), body.as_slice());
                    let found: BTreeMap<String, String> = decoded.headers.map(|headers| (*headers).clone()).unwrap_or_default();
                    prop_assert_eq!(found, headers.iter().cloned().collect());
                    (at, expected) = (end, expected + 1);
                }
            }
            prop_assert_eq!(step(&bytes, at, 0, 0..u64::MAX), Step::End);
        }

        #[test]
        fn no_bytes_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), flags in any::<u8>(), beyond in 0u64..100, from in 0usize..200) {
            let _header = Header::decode(&bytes);
            let bytes = Bytes::from(bytes);
            if from <= bytes.len() {
                match step(&bytes, from, beyond, 0..u64::MAX) {
                    Step::Record { end, .. } => prop_assert!(end > from && end <= bytes.len()),
                    Step::Damaged { to } => prop_assert!(to > from || from == bytes.len()),
                    Step::More { bytes: more } => prop_assert!(more > bytes.len() - from),
                    Step::End => prop_assert_eq!((from, beyond), (bytes.len(), 0)),
                }
                if let Some(decoded) = decode(&bytes, flags, from..bytes.len()) {
                    prop_assert!(decoded.body.len() <= bytes.len());
                }
            }
        }
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_no_header() {
        let header = Header { channel: 1, segment: 2, first: 3, previous: Some(Previous { segment: 1, len: 64, next: 3 }) };
        let good = header.encode();
        assert_eq!(Header::decode(&good), Ok(header));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad), Err(HeaderFault::Damaged), "bit {bit}");
        }
    }
}
