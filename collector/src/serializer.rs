//! Events as bytes in files: Flume's serializers. Bytes out, no file in here.
//!
//! `text` writes the body and a newline, `header_and_text` puts `{name=value, …} ` before it, `avro_event` makes an Avro
//! container file. What has been written up to a [`Serializer::flush`] can be read, whatever comes after it.

use std::{io, io::Write as _};

use flate2::{Compression, write::DeflateEncoder};

use crate::event::Event;
use crate::flume_conf::{Component, Finding, Property};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text { newline: bool },
    HeaderAndText { newline: bool },
    Avro { block_bytes: usize, codec: AvroCodec },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AvroCodec {
    Null,
    Deflate,
    Snappy,
    Zstandard,
}

/// Alias, class.
const NAMES: [(&str, &str); 3] = [
    ("TEXT", "org.apache.flume.serialization.BodyTextEventSerializer"),
    ("HEADER_AND_TEXT", "org.apache.flume.serialization.HeaderAndBodyTextEventSerializer"),
    ("AVRO_EVENT", "org.apache.flume.serialization.FlumeEventAvroEventSerializer"),
];

/// The properties of a sink that writes files; a sink has its own prefix before their names.
pub const fn serializer(name: &'static str) -> Property {
    Property::text(name, Some("TEXT"), "TEXT, HEADER_AND_TEXT or AVRO_EVENT, or Flume's class of one of them.")
}

pub const fn append_newline(name: &'static str) -> Property {
    Property::boolean(name, "true", "TEXT, HEADER_AND_TEXT: a newline after every body.")
}

pub const fn sync_interval_bytes(name: &'static str) -> Property {
    Property::integer(name, 32, 1 << 30, Some("2048000"), "AVRO_EVENT: bytes of a block, about.")
}

pub const fn compression_codec(name: &'static str) -> Property {
    Property::text(name, Some("null"), "AVRO_EVENT: null, deflate, snappy or zstandard.")
}

impl Format {
    /// As the properties `key` and `key.*` say; an error names the key and the fault.
    pub fn of(component: &Component, key: &str) -> Result<Self, (String, String)> {
        let below = |name: &str| format!("{key}.{name}");
        let name = component.text(key).trim();
        let class = name.strip_suffix("$Builder").unwrap_or(name);
        let newline = component.boolean(&below("appendNewline"));
        match NAMES.iter().position(|(alias, of)| alias.eq_ignore_ascii_case(name) || *of == class) {
            Some(0) => Ok(Self::Text { newline }),
            Some(1) => Ok(Self::HeaderAndText { newline }),
            Some(_) => {
                let key = below("compressionCodec");
                let codec = match component.text(&key).trim() {
                    "null" => AvroCodec::Null,
                    "deflate" => AvroCodec::Deflate,
                    "snappy" => AvroCodec::Snappy,
                    "zstandard" => AvroCodec::Zstandard,
                    other => return Err((key, format!("`{other}` is none of null, deflate, snappy, zstandard"))),
                };
                Ok(Self::Avro { block_bytes: component.count(&below("syncIntervalBytes")), codec })
            }
            None => Err((key.to_owned(), format!("`{name}` is none of TEXT, HEADER_AND_TEXT, AVRO_EVENT"))),
        }
    }

    pub fn review(component: &Component, key: &str) -> Option<Finding> {
        let (key, fault) = Self::of(component, key).err()?;
        let place = component.settings.get(&key).and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("wrong-value", fault).maybe_at(place).key(format!("{}.{key}", component.name));
        Some(finding.remedy("custom serializers are not run; text with a newline serves most readers"))
    }

    /// Can a file be cut after the last whole event by looking for newlines alone?
    pub fn is_lines(self) -> bool {
        matches!(self, Self::Text { newline: true } | Self::HeaderAndText { newline: true })
    }

    /// For one file, from its first byte.
    pub fn begin(self, out: &mut Vec<u8>) -> Serializer {
        match self {
            Self::Text { newline } => Serializer::Text { headers: false, newline },
            Self::HeaderAndText { newline } => Serializer::Text { headers: true, newline },
            Self::Avro { block_bytes, codec } => {
                let file = AvroFile { codec, block_bytes, sync: rand::random(), block: Vec::new(), events: 0 };
                file.header(out);
                Serializer::Avro(file)
            }
        }
    }
}

pub enum Serializer {
    Text { headers: bool, newline: bool },
    Avro(AvroFile),
}

impl Serializer {
    pub fn write(&mut self, event: &Event, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Text { headers, newline } => {
                if *headers {
                    out.push(b'{');
                    for (at, (name, value)) in event.headers.iter().flat_map(|headers| headers.iter()).enumerate() {
                        if at > 0 {
                            out.extend_from_slice(b", ");
                        }
                        out.extend_from_slice(name.as_bytes());
                        out.push(b'=');
                        out.extend_from_slice(value.as_bytes());
                    }
                    out.extend_from_slice(b"} ");
                }
                out.extend_from_slice(&event.body);
                if *newline {
                    out.push(b'\n');
                }
                Ok(())
            }
            Self::Avro(file) => file.write(event, out),
        }
    }

    /// What was written can be read from here on.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Text { .. } => Ok(()),
            Self::Avro(file) => file.end_block(out),
        }
    }
}

/// An Avro container of Flume's event record.
pub struct AvroFile {
    codec: AvroCodec,
    block_bytes: usize,
    sync: [u8; 16],
    block: Vec<u8>,
    events: usize,
}

/// As Flume writes it into its files.
const SCHEMA: &str = r#"{"type":"record","name":"Event","fields":[{"name":"headers","type":{"type":"map","values":"string"}},{"name":"body","type":"bytes"}]}"#;

impl AvroFile {
    fn header(&self, out: &mut Vec<u8>) {
        let codec = match self.codec {
            AvroCodec::Null => "null",
            AvroCodec::Deflate => "deflate",
            AvroCodec::Snappy => "snappy",
            AvroCodec::Zstandard => "zstandard",
        };
        out.extend_from_slice(b"Obj\x01");
        avro_length(out, 2);
        for text in ["avro.codec", codec, "avro.schema", SCHEMA] {
            avro_length(out, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        avro_length(out, 0);
        out.extend_from_slice(&self.sync);
    }

    fn write(&mut self, event: &Event, out: &mut Vec<u8>) -> io::Result<()> {
        avro_event(&mut self.block, event);
        self.events += 1;
        if self.block.len() >= self.block_bytes { self.end_block(out) } else { Ok(()) }
    }

    fn end_block(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if self.events == 0 {
            return Ok(());
        }
        let data = match self.codec {
            AvroCodec::Null => std::mem::take(&mut self.block),
            AvroCodec::Deflate => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&self.block)?;
                encoder.finish()?
            }
            AvroCodec::Snappy => {
                let mut data = snap::raw::Encoder::new().compress_vec(&self.block).map_err(io::Error::other)?;
                let mut crc = flate2::Crc::new();
                crc.update(&self.block);
                data.extend_from_slice(&crc.sum().to_be_bytes());
                data
            }
            AvroCodec::Zstandard => zstd::bulk::compress(&self.block, 0)?,
        };
        avro_length(out, self.events);
        avro_length(out, data.len());
        out.extend_from_slice(&data);
        out.extend_from_slice(&self.sync);
        self.block.clear();
        self.events = 0;
        Ok(())
    }
}

/// Flume's event in bare Avro binary: `{map<string> headers; bytes body}`.
pub fn avro_event(out: &mut Vec<u8>, event: &Event) {
    if let Some(headers) = event.headers.as_deref().filter(|headers| !headers.is_empty()) {
        avro_length(out, headers.len());
        for (name, value) in headers {
            for text in [name, value] {
                avro_length(out, text.len());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    avro_length(out, 0);
    avro_length(out, event.body.len());
    out.extend_from_slice(&event.body);
}

/// Avro's zigzag number, never negative here.
fn avro_length(out: &mut Vec<u8>, length: usize) {
    let mut number = (length as u64) << 1;
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Where a container's last whole block ends; an error where it is no container.
pub fn whole_avro(input: &mut (impl io::BufRead + io::Seek)) -> io::Result<u64> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut magic = [0; 4];
    input.read_exact(&mut magic)?;
    if magic != *b"Obj\x01" {
        return Err(bad());
    }
    // The metadata: one block of pairs as it is written here, then the end.
    while let pairs @ 1.. = read_length(input)? {
        for _ in 0..pairs * 2 {
            let length = read_length(input)?;
            skip(input, length)?;
        }
    }
    let mut sync = [0; 16];
    input.read_exact(&mut sync)?;
    let mut end = input.stream_position()?;
    let mut block = || -> io::Result<u64> {
        let events = read_length(input)?;
        let length = read_length(input)?;
        skip(input, length)?;
        let mut mark = [0; 16];
        input.read_exact(&mut mark)?;
        if events > 0 && mark == sync { input.stream_position() } else { Err(bad()) }
    };
    while let Ok(whole) = block() {
        end = whole;
    }
    Ok(end)
}

fn skip(input: &mut impl io::Read, length: u64) -> io::Result<()> {
    let read = io::copy(&mut io::Read::take(input, length), &mut io::sink())?;
    if read == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_length(input: &mut impl io::Read) -> io::Result<u64> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let mut byte = [0];
        input.read_exact(&mut byte)?;
        number |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return if number & 1 == 0 { Ok(number >> 1) } else { Err(io::ErrorKind::InvalidData.into()) };
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: Format, events: &[Event]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut serializer = format.begin(&mut out);
        for event in events {
            serializer.write(event, &mut out).unwrap();
        }
        serializer.flush(&mut out).unwrap();
        out
    }

    #[test]
    fn text_is_as_flume_writes_it() {
        let events = [Event::new("a\tb"), Event::with_headers("é", [("k", "v"), ("a", "1")]), Event::new("")];
        for (format, expected) in [
            (Format::Text { newline: true }, "a\tb\né\n\n"),
            (Format::Text { newline: false }, "a\tbé"),
            (Format::HeaderAndText { newline: true }, "{} a\tb\n{a=1, k=v} é\n{} \n"),
            (Format::HeaderAndText { newline: false }, "{} a\tb{a=1, k=v} é{} "),
        ] {
            assert_eq!(String::from_utf8(written(format, &events)).unwrap(), expected, "{format:?}");
        }
    }

    #[test]
    fn avro_files_have_a_block_for_every_flush_and_every_interval() {
        let events = [Event::with_headers("b", [("k", "v")]), Event::new("c")];
        let bytes = written(Format::Avro { block_bytes: 1 << 20, codec: AvroCodec::Null }, &events);
        assert!(bytes.starts_with(b"Obj\x01\x04\x14avro.codec\x08null\x16avro.schema"));
        let header = 4 + 1 + 11 + 5 + 12 + 2 + SCHEMA.len() + 1 + 16;
        let sync = &bytes[header - 16..header];
        assert_eq!(&bytes[header..bytes.len() - 16], b"\x04\x16\x02\x02k\x02v\x00\x02b\x00\x02c");
        assert_eq!(&bytes[bytes.len() - 16..], sync);
        let small = written(Format::Avro { block_bytes: 1, codec: AvroCodec::Null }, &events);
        let sync = &small[header - 16..header];
        assert_eq!(small.windows(16).filter(|window| *window == sync).count(), 3);
        assert_eq!(written(Format::Avro { block_bytes: 1, codec: AvroCodec::Null }, &[]).len(), header);
    }
}
