//! What a file of the HDFS sink holds: `hdfs.fileType`.

use std::io;

use super::codec::Codec;
use super::sequence::SequenceFile;
use crate::event::Event;
use crate::serializer::{Format, Serializer};
use crate::sink::unfinished::Shape;

#[derive(Clone, Copy, Debug)]
pub enum FileFormat {
    Stream(Format),
    Compressed(Format, Codec),
    Sequence { text: bool, codec: Option<Codec> },
}

impl FileFormat {
    pub fn extension(self) -> &'static str {
        match self {
            Self::Stream(_) => "",
            Self::Compressed(_, codec) => codec.extension(),
            Self::Sequence { codec, .. } => codec.map_or("", Codec::extension),
        }
    }

    /// How the end of the last whole event is found in a file that a crash has cut short.
    pub fn shape(self) -> Shape {
        match self {
            Self::Stream(format) => Shape::of(format),
            Self::Compressed(_, codec) => Shape::Members(codec),
            Self::Sequence { .. } => Shape::Sequence,
        }
    }

    /// The first bytes of a file, and what writes the rest.
    pub fn begin(self, out: &mut Vec<u8>) -> Encoder {
        match self {
            Self::Stream(format) => Encoder::Stream(format.begin(out)),
            Self::Compressed(format, codec) => {
                let mut raw = Vec::new();
                Encoder::Compressed { serializer: format.begin(&mut raw), raw, codec }
            }
            Self::Sequence { text, codec } => Encoder::Sequence(SequenceFile::begin(text, codec, out)),
        }
    }
}

pub enum Encoder {
    Stream(Serializer),
    Compressed { serializer: Serializer, raw: Vec<u8>, codec: Codec },
    Sequence(SequenceFile),
}

/// Bytes that are compressed at a time, about.
const MEMBER_BYTES: usize = 4 << 20;

impl Encoder {
    pub fn append(&mut self, event: &Event, now: i64, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Stream(serializer) => serializer.write(event, out),
            Self::Compressed { serializer, raw, .. } => {
                serializer.write(event, raw)?;
                if raw.len() >= MEMBER_BYTES { self.flush(out) } else { Ok(()) }
            }
            Self::Sequence(file) => file.append(event, now, out),
        }
    }

    /// The file is readable up to here.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Stream(serializer) => serializer.flush(out),
            Self::Compressed { serializer, raw, codec } => {
                serializer.flush(raw)?;
                if !raw.is_empty() {
                    codec.member(raw, out)?;
                    raw.clear();
                }
                Ok(())
            }
            Self::Sequence(file) => file.flush(out),
        }
    }
}
