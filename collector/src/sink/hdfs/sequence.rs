//! Hadoop's SequenceFile, version 6: key `LongWritable` (the event's time), value `BytesWritable` or `Text` (its body).
//!
//! Without a codec records stand one by one with a sync mark about every 100 KiB; with one they stand in compressed
//! blocks. Either way there is a mark at every flush, and the file is readable up to its last whole record or block.

use std::io::{self, Read};

use super::codec::Codec;
use crate::event::Event;

const SYNC_INTERVAL: u64 = 5 * 1024 * 20;
const BLOCK_BYTES: usize = 1_000_000;
const KEY_CLASS: &str = "org.apache.hadoop.io.LongWritable";
const SYNC_ESCAPE: [u8; 4] = [0xff; 4];

pub struct SequenceFile {
    text: bool,
    codec: Option<Codec>,
    sync: [u8; 16],
    /// Bytes of the file so far, and where its last sync mark ends.
    position: u64,
    last_sync: u64,
    block: Block,
    value: Vec<u8>,
}

#[derive(Default)]
struct Block {
    records: i64,
    key_lengths: Vec<u8>,
    keys: Vec<u8>,
    value_lengths: Vec<u8>,
    values: Vec<u8>,
}

impl SequenceFile {
    pub fn begin(text: bool, codec: Option<Codec>, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(b"SEQ\x06");
        write_text(out, KEY_CLASS.as_bytes());
        write_text(out, if text { b"org.apache.hadoop.io.Text" } else { b"org.apache.hadoop.io.BytesWritable" });
        let compressed = u8::from(codec.is_some());
        // Compressed, and in blocks.
        out.extend_from_slice(&[compressed, compressed]);
        if let Some(codec) = codec {
            write_text(out, codec.class().as_bytes());
        }
        // No metadata.
        out.extend_from_slice(&[0; 4]);
        let sync: [u8; 16] = rand::random();
        out.extend_from_slice(&sync);
        let position = (out.len() - start) as u64;
        Self { text, codec, sync, position, last_sync: 0, block: Block::default(), value: Vec::new() }
    }

    /// `now` is the key of events without a header `timestamp`.
    pub fn append(&mut self, event: &Event, now: i64, out: &mut Vec<u8>) -> io::Result<()> {
        let time = event.header("timestamp").and_then(|text| text.trim().parse().ok()).unwrap_or(now);
        self.value.clear();
        if self.text {
            write_text(&mut self.value, &event.body);
        } else {
            self.value.extend_from_slice(&length(event.body.len())?);
            self.value.extend_from_slice(&event.body);
        }
        if self.codec.is_some() {
            self.block.records += 1;
            write_number(&mut self.block.key_lengths, 8);
            self.block.keys.extend_from_slice(&time.to_be_bytes());
            write_number(&mut self.block.value_lengths, self.value.len() as i64);
            self.block.values.extend_from_slice(&self.value);
            return if self.block.keys.len() + self.block.values.len() >= BLOCK_BYTES { self.flush(out) } else { Ok(()) };
        }
        if self.position >= self.last_sync + SYNC_INTERVAL {
            self.mark(out);
        }
        let start = out.len();
        out.extend_from_slice(&length(8 + self.value.len())?);
        out.extend_from_slice(&length(8)?);
        out.extend_from_slice(&time.to_be_bytes());
        out.extend_from_slice(&self.value);
        self.position += (out.len() - start) as u64;
        Ok(())
    }

    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let Some(codec) = self.codec else {
            self.mark(out);
            return Ok(());
        };
        if self.block.records == 0 {
            return Ok(());
        }
        self.mark(out);
        let start = out.len();
        let block = std::mem::take(&mut self.block);
        write_number(out, block.records);
        for part in [block.key_lengths, block.keys, block.value_lengths, block.values] {
            let mut packed = Vec::new();
            codec.member(&part, &mut packed)?;
            write_number(out, packed.len() as i64);
            out.extend_from_slice(&packed);
        }
        self.position += (out.len() - start) as u64;
        Ok(())
    }

    fn mark(&mut self, out: &mut Vec<u8>) {
        if self.last_sync != self.position {
            out.extend_from_slice(&SYNC_ESCAPE);
            out.extend_from_slice(&self.sync);
            self.position += 20;
            self.last_sync = self.position;
        }
    }
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    i32::try_from(length).map(i32::to_be_bytes).map_err(|_| io::Error::other("an event is larger than a record of a SequenceFile"))
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    write_number(out, text.len() as i64);
    out.extend_from_slice(text);
}

/// Hadoop's VInt of a number that is not negative.
fn write_number(out: &mut Vec<u8>, number: i64) {
    match i8::try_from(number) {
        Ok(small) => out.push(small.cast_unsigned()),
        Err(_) => {
            let bytes = number.to_be_bytes();
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            // -113 says one byte, -114 two, …
            out.push((-112 - (8 - zeros) as i8).cast_unsigned());
            out.extend_from_slice(&bytes[zeros..]);
        }
    }
}

/// Where a file's last whole record or block ends; an error where it is no file of ours.
pub fn whole(input: &mut impl Read) -> io::Result<u64> {
    let mut input = Counting { input, count: 0 };
    if input.bytes::<4>()? != *b"SEQ\x06" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    input.skip_text()?;
    input.skip_text()?;
    let [_, blocks] = input.bytes::<2>()?;
    if blocks == 1 {
        input.skip_text()?;
    }
    input.bytes::<4>()?;
    let sync = input.bytes::<16>()?;
    let mut end = input.count;
    while input.entry(blocks == 1, &sync).is_ok() {
        end = input.count;
    }
    Ok(end)
}

struct Counting<'a, R> {
    input: &'a mut R,
    count: u64,
}

impl<R: Read> Counting<'_, R> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.count += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        let read = io::copy(&mut self.input.by_ref().take(length), &mut io::sink())?;
        self.count += read;
        if read == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn number(&mut self) -> io::Result<u64> {
        let [first] = self.bytes::<1>()?;
        let first = first.cast_signed();
        if first >= 0 {
            return Ok(first.cast_unsigned().into());
        }
        let mut number = 0;
        for _ in 0..(-112i32 - i32::from(first)).clamp(0, 8) {
            number = number << 8 | u64::from(self.bytes::<1>()?[0]);
        }
        Ok(number)
    }

    fn skip_text(&mut self) -> io::Result<()> {
        let length = self.number()?;
        self.skip(length)
    }

    /// One record, block or mark.
    fn entry(&mut self, blocks: bool, sync: &[u8; 16]) -> io::Result<()> {
        let start = self.bytes::<4>()?;
        if start == SYNC_ESCAPE {
            if self.bytes::<16>()? != *sync {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if blocks {
                self.number()?;
                for _ in 0..4 {
                    self.skip_text()?;
                }
            }
            return Ok(());
        }
        let length = u64::from(u32::from_be_bytes(start));
        // A disk that lost power gives zeros: no record of ours has a key of none.
        if blocks || length < 8 || self.bytes::<4>()? != [0, 0, 0, 8] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.skip(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_hadoops() {
        let mut out = Vec::new();
        let mut file = SequenceFile::begin(false, None, &mut out);
        let header = out.len();
        assert_eq!(&out[..header - 16], b"SEQ\x06\x21org.apache.hadoop.io.LongWritable\x22org.apache.hadoop.io.BytesWritable\0\0\0\0\0\0");
        let sync = out[header - 16..].to_vec();
        file.append(&Event::with_headers("hi", [("timestamp", "258")]), 0, &mut out).unwrap();
        assert_eq!(&out[header..], b"\0\0\0\x0e\0\0\0\x08\0\0\0\0\0\0\x01\x02\0\0\0\x02hi");
        file.flush(&mut out).unwrap();
        file.flush(&mut out).unwrap();
        assert_eq!(&out[out.len() - 20..], [&SYNC_ESCAPE[..], &sync].concat());
        assert_eq!(out.len(), header + 22 + 20);
        let mut text = Vec::new();
        let mut file = SequenceFile::begin(true, None, &mut text);
        let header = text.len();
        file.append(&Event::new("hi"), 1, &mut text).unwrap();
        assert_eq!(&text[header..], b"\0\0\0\x0b\0\0\0\x08\0\0\0\0\0\0\0\x01\x02hi");
    }

    #[test]
    fn numbers_are_hadoops() {
        for (number, expected) in
            [(0, &[0][..]), (127, &[127]), (128, &[0x8f, 128]), (255, &[0x8f, 255]), (256, &[0x8e, 1, 0]), (1 << 24, &[0x8c, 1, 0, 0, 0])]
        {
            let mut out = Vec::new();
            write_number(&mut out, number);
            assert_eq!(out, expected, "{number}");
            assert_eq!(Counting { input: &mut out.as_slice(), count: 0 }.number().unwrap(), number as u64);
        }
    }

    #[test]
    fn a_torn_end_is_found_wherever_it_is() {
        for codec in [None, Some(Codec::Gzip), Some(Codec::Snappy)] {
            let mut out = Vec::new();
            let mut file = SequenceFile::begin(false, codec, &mut out);
            let mut ends = vec![out.len() as u64];
            for round in 0..3 {
                for n in 0..4 {
                    file.append(&Event::new(vec![b'x'; n * 50]), round, &mut out).unwrap();
                    ends.push(out.len() as u64);
                }
                file.flush(&mut out).unwrap();
                ends.push(out.len() as u64);
            }
            for cut in ends[0]..=out.len() as u64 {
                let expected = ends.iter().copied().filter(|end| *end <= cut).max().unwrap();
                assert_eq!(whole(&mut &out[..cut as usize]).unwrap(), expected, "{codec:?} cut at {cut}");
            }
            let length = out.len() as u64;
            out.extend_from_slice(&[0; 100]);
            assert_eq!(whole(&mut out.as_slice()).unwrap(), length);
            assert!(whole(&mut &out[..10]).is_err() && whole(&mut &b"text\n"[..]).is_err());
        }
    }
}
