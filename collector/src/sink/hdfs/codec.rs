//! Compression as Hadoop's codecs write it: a file is a row of members, each complete in itself, so that a file is
//! readable up to its last whole member.

use std::io::{self, BufRead, Read, Write as _};

use flate2::{
    Compression,
    bufread::{GzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    Gzip,
    /// Hadoop's `DefaultCodec`: zlib.
    Deflate,
    Snappy,
    Zstandard,
}

/// Codec, Hadoop's class, the end of a file's name.
const CODECS: [(Codec, &str, &str); 5] = [
    (Codec::Gzip, "org.apache.hadoop.io.compress.GzipCodec", ".gz"),
    (Codec::Deflate, "org.apache.hadoop.io.compress.DefaultCodec", ".deflate"),
    (Codec::Deflate, "org.apache.hadoop.io.compress.DeflateCodec", ".deflate"),
    (Codec::Snappy, "org.apache.hadoop.io.compress.SnappyCodec", ".snappy"),
    (Codec::Zstandard, "org.apache.hadoop.io.compress.ZStandardCodec", ".zst"),
];

/// Raw bytes of a Snappy block: Hadoop's reader has room for 256 KiB.
const SNAPPY_BLOCK: usize = 192 << 10;

impl Codec {
    /// By its class, the class's last name, or that without `Codec`, in any case, as Flume does it. `None` is no codec.
    pub fn parse(name: &str) -> Result<Option<Self>, String> {
        let name = name.trim();
        if name.eq_ignore_ascii_case("none") {
            return Ok(None);
        }
        let found = CODECS.iter().find(|(_, class, _)| {
            let simple = class.rsplit('.').next().unwrap_or_default();
            *class == name || simple.eq_ignore_ascii_case(name) || simple.trim_end_matches("Codec").eq_ignore_ascii_case(name)
        });
        // What people write for it.
        let zstd = || name.eq_ignore_ascii_case("zstd").then_some(Codec::Zstandard);
        let codec = found.map(|(codec, ..)| *codec).or_else(zstd);
        codec.map(Some).ok_or_else(|| format!("codec `{name}` is not built in; there are gzip, snappy, zstandard, deflate, none"))
    }

    pub fn class(self) -> &'static str {
        CODECS.iter().find(|(codec, ..)| *codec == self).map_or("", |(_, class, _)| class)
    }

    pub fn extension(self) -> &'static str {
        CODECS.iter().find(|(codec, ..)| *codec == self).map_or("", |(.., extension)| extension)
    }

    /// `data` as one member (Snappy: as many blocks as it takes).
    pub fn member(self, data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Codec::Gzip => {
                let mut encoder = GzEncoder::new(out, Compression::default());
                encoder.write_all(data)?;
                encoder.finish()?;
            }
            Codec::Deflate => {
                let mut encoder = ZlibEncoder::new(out, Compression::default());
                encoder.write_all(data)?;
                encoder.finish()?;
            }
            Codec::Snappy => {
                let mut encoder = snap::raw::Encoder::new();
                for block in data.chunks(SNAPPY_BLOCK) {
                    let packed = encoder.compress_vec(block).map_err(io::Error::other)?;
                    for length in [block.len(), packed.len()] {
                        out.extend_from_slice(&u32::try_from(length).map_err(io::Error::other)?.to_be_bytes());
                    }
                    out.extend_from_slice(&packed);
                }
            }
            Codec::Zstandard => out.extend_from_slice(&zstd::bulk::compress(data, 0)?),
        }
        Ok(())
    }

    /// Reads over one member; false at the end. An error where it is not whole.
    pub fn skip_member(self, input: &mut impl BufRead) -> io::Result<bool> {
        if input.fill_buf()?.is_empty() {
            return Ok(false);
        }
        let mut void = io::sink();
        match self {
            Codec::Gzip => io::copy(&mut GzDecoder::new(input), &mut void)?,
            Codec::Deflate => io::copy(&mut ZlibDecoder::new(input), &mut void)?,
            Codec::Zstandard => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                io::copy(&mut decoder, &mut void)?
            }
            Codec::Snappy => {
                let mut left = number(input)?;
                while left > 0 {
                    let mut packed = Vec::new();
                    let length = number(input)?;
                    input.by_ref().take(length).read_to_end(&mut packed)?;
                    let raw = snap::raw::Decoder::new().decompress_vec(&packed).map_err(io::Error::other)?;
                    left = left.checked_sub(raw.len() as u64).filter(|_| !raw.is_empty()).ok_or(io::ErrorKind::InvalidData)?;
                }
                0
            }
        };
        Ok(true)
    }
}

fn number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codecs_go_by_flumes_names() {
        for (name, expected) in [
            ("gzip", Ok(Some(Codec::Gzip))),
            ("GzipCodec", Ok(Some(Codec::Gzip))),
            ("org.apache.hadoop.io.compress.GzipCodec", Ok(Some(Codec::Gzip))),
            ("default", Ok(Some(Codec::Deflate))),
            ("SNAPPY", Ok(Some(Codec::Snappy))),
            ("zstandard", Ok(Some(Codec::Zstandard))),
            ("zstd", Ok(Some(Codec::Zstandard))),
            ("None", Ok(None)),
            ("lzo", Err("codec `lzo` is not built in; there are gzip, snappy, zstandard, deflate, none")),
            ("bzip2", Err("codec `bzip2` is not built in; there are gzip, snappy, zstandard, deflate, none")),
        ] {
            assert_eq!(Codec::parse(name), expected.map_err(str::to_owned), "{name}");
        }
        assert_eq!((Codec::Deflate.class(), Codec::Zstandard.extension()), ("org.apache.hadoop.io.compress.DefaultCodec", ".zst"));
    }

    #[test]
    fn members_are_counted_and_a_torn_one_is_not() {
        let big: Vec<u8> = (0..500_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()).collect();
        for codec in [Codec::Gzip, Codec::Deflate, Codec::Snappy, Codec::Zstandard] {
            let mut out = Vec::new();
            for data in [&b"a\nb\n"[..], &big] {
                codec.member(data, &mut out).unwrap();
            }
            let mut whole = 0;
            let mut input = out.as_slice();
            while codec.skip_member(&mut input).unwrap() {
                whole += 1;
            }
            let blocks = 1 + big.len().div_ceil(SNAPPY_BLOCK);
            assert_eq!(whole, if codec == Codec::Snappy { blocks } else { 2 }, "{codec:?}");
            let mut torn = &out[..out.len() - 3];
            let last = std::iter::from_fn(|| Some(codec.skip_member(&mut torn))).take(blocks).find(Result::is_err);
            assert!(last.is_some(), "{codec:?}");
        }
    }
}
