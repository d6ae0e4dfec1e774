//! Records out of an Avro object container file, as their bytes are: the schema says where each ends.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::Value;

use super::read::{Fault, Piece, Reader, damaged, gather, read_at};
use super::schema::{Cut, Schema, canonical_form, fingerprint};

/// Which header tells the schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaHeader {
    Hash,
    Literal,
}

/// Flume's `AVRO`. Ends count records.
pub struct Records {
    /// What the file's header says besides.
    metadata: BTreeMap<Vec<u8>, Vec<u8>>,
    file: Arc<File>,
    length: u64,
    /// Of the next block.
    at: u64,
    sync: [u8; 16],
    codec: Codec,
    schema: Schema,
    header: (String, String),
    block: Bytes,
    /// Records of the block that were not given out.
    left: u64,
    given: u64,
    /// Records that were delivered before.
    skip: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Null,
    Deflate,
    Snappy,
    Zstandard,
}

/// A block's bytes, as stored and unpacked.
const BLOCK_BYTES_MAX: u64 = 256 * 1024 * 1024;
const HEADER_BYTES_MAX: usize = 16 * 1024 * 1024;

impl Records {
    pub fn open(file: Arc<File>, from: u64, length: u64, header: SchemaHeader) -> Result<Self, Fault> {
        let mut bytes = vec![0; HEADER_BYTES_MAX.min(usize::try_from(length).unwrap_or(HEADER_BYTES_MAX))];
        let filled = read_at(&file, &mut bytes, 0)?;
        let mut cut = Cut { bytes: &bytes[..filled], at: 0 };
        if cut.take(4)? != b"Obj\x01" {
            return Err(damaged("it does not begin with `Obj`"));
        }
        let mut metadata = BTreeMap::new();
        loop {
            let count = cut.count()?;
            if count == 0 {
                break;
            }
            for _ in 0..count {
                let key = cut.text()?.to_vec();
                metadata.insert(key, cut.text()?.to_vec());
            }
        }
        let sync = cut.take(16)?.try_into().map_err(|_| damaged("no sync marker"))?;
        let at = cut.at as u64;
        let text = |key: &str| metadata.get(key.as_bytes()).map(|value| String::from_utf8_lossy(value).into_owned());
        let codec = match text("avro.codec").as_deref() {
            None | Some("null") => Codec::Null,
            Some("deflate") => Codec::Deflate,
            Some("snappy") => Codec::Snappy,
            Some("zstandard") => Codec::Zstandard,
            Some(other) => return Err(Fault::Content(format!("codec `{other}` is not one of null, deflate, snappy, zstandard"))),
        };
        let literal = text("avro.schema").ok_or_else(|| damaged("no schema"))?;
        let parsed: Value = serde_json::from_str(&literal).map_err(|error| damaged(format!("its schema is no JSON: {error}")))?;
        let schema = Schema::parse(&parsed)?;
        let header = match header {
            SchemaHeader::Literal => ("flume.avro.schema.literal".to_owned(), literal),
            SchemaHeader::Hash => {
                let mut canonical = String::new();
                canonical_form(&parsed, "", &mut canonical);
                let hash = fingerprint(canonical.as_bytes()).to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                ("flume.avro.schema.hash".to_owned(), hash)
            }
        };
        Ok(Self { metadata, file, length, at, sync, codec, schema, header, block: Bytes::new(), left: 0, given: 0, skip: from })
    }

    fn next(&mut self) -> Result<Option<Piece>, Fault> {
        loop {
            if self.left == 0 {
                if !self.next_block()? {
                    return Ok(None);
                }
                continue;
            }
            let mut cut = Cut { bytes: &self.block, at: 0 };
            self.schema.pass(&mut cut, &self.schema.root, 0)?;
            let body = self.block.split_to(cut.at);
            self.left -= 1;
            self.given += 1;
            if self.given > self.skip {
                return Ok(Some(Piece { body, end: self.given }));
            }
        }
    }

    /// False at the end of the file.
    fn next_block(&mut self) -> Result<bool, Fault> {
        loop {
            if self.at >= self.length {
                return Ok(false);
            }
            let mut head = [0; 20];
            let filled = read_at(&self.file, &mut head, self.at)?;
            let mut cut = Cut { bytes: &head[..filled], at: 0 };
            let (records, bytes) = (cut.long()?, cut.long()?);
            let records = u64::try_from(records).map_err(|_| damaged("a block of less than no records"))?;
            let size =
                u64::try_from(bytes).ok().filter(|size| *size <= BLOCK_BYTES_MAX).ok_or_else(|| damaged("a block of impossible size"))?;
            let begin = self.at + cut.at as u64;
            let end = begin + size + 16;
            if end > self.length {
                return Err(damaged(format!("it ends within the block at byte {}", self.at)));
            }
            // Whole blocks that were delivered before are not unpacked.
            let passed = self.given + records <= self.skip;
            let from = if passed { begin + size } else { begin };
            let mut stored = vec![0; usize::try_from(end - from).unwrap_or_default()];
            let filled = read_at(&self.file, &mut stored, from)?;
            let block = self.at;
            if filled < stored.len() || stored[stored.len() - 16..] != self.sync {
                return Err(damaged(format!("the block at byte {block} is not followed by the file's marker")));
            }
            self.at = end;
            if passed {
                self.given += records;
                continue;
            }
            stored.truncate(stored.len() - 16);
            self.block =
                self.codec.unpack(stored).map_err(|error| damaged(format!("the block at byte {block} cannot be unpacked: {error}")))?;
            self.left = records;
            return Ok(true);
        }
    }
}

/// Which file Flume's spooling source was reading, and how far it was: its `.flumespool-main.meta`.
pub fn flume_position(meta: &Path) -> Result<(PathBuf, u64), Fault> {
    let file = File::open(meta)?;
    let length = file.metadata()?.len();
    let mut records = Records::open(Arc::new(file), 0, length, SchemaHeader::Hash)?;
    let path = records.metadata.get(&b"file"[..]).ok_or_else(|| damaged("it names no file"))?;
    let path = PathBuf::from(String::from_utf8_lossy(path).into_owned());
    let mut offset = 0;
    while let Some(piece) = records.next()? {
        offset = Cut { bytes: &piece.body, at: 0 }.long()?;
    }
    Ok((path, u64::try_from(offset).map_err(|_| damaged("a position below zero"))?))
}

impl Reader for Records {
    fn read(&mut self, max: usize, bytes_max: usize) -> Result<Vec<Piece>, Fault> {
        gather(max, bytes_max, || self.next())
    }

    fn counts_bytes(&self) -> bool {
        false
    }

    fn header(&self) -> Option<(String, String)> {
        Some(self.header.clone())
    }
}

impl Codec {
    fn unpack(self, stored: Vec<u8>) -> std::io::Result<Bytes> {
        let bounded = |reader: &mut dyn std::io::Read| {
            let mut plain = Vec::new();
            reader.take(BLOCK_BYTES_MAX + 1).read_to_end(&mut plain)?;
            if plain.len() as u64 > BLOCK_BYTES_MAX { Err(std::io::Error::other("it is too large")) } else { Ok(plain.into()) }
        };
        match self {
            Self::Null => Ok(stored.into()),
            Self::Deflate => bounded(&mut flate2::read::DeflateDecoder::new(&stored[..])),
            Self::Zstandard => bounded(&mut zstd::Decoder::new(&stored[..])?),
            Self::Snappy => {
                // A checksum follows.
                let (packed, checksum) = stored.split_last_chunk::<4>().ok_or_else(|| std::io::Error::other("it is too short"))?;
                if snap::raw::decompress_len(packed)? as u64 > BLOCK_BYTES_MAX {
                    return Err(std::io::Error::other("it is too large"));
                }
                let plain = snap::raw::Decoder::new().decompress_vec(packed)?;
                let mut sum = flate2::Crc::new();
                sum.update(&plain);
                if sum.sum() != u32::from_be_bytes(*checksum) {
                    return Err(std::io::Error::other("its checksum is another one"));
                }
                Ok(plain.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn zigzag(value: i64) -> Vec<u8> {
        let mut left = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while left >= 0x80 {
            bytes.push(left as u8 | 0x80);
            left >>= 7;
        }
        bytes.push(left as u8);
        bytes
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [zigzag(text.len() as i64), text.to_vec()].concat()
    }

    const SYNC: [u8; 16] = *b"0123456789abcdef";

    fn container(schema: &Value, codec: &str, blocks: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut file = b"Obj\x01".to_vec();
        file.extend(
            [
                zigzag(2),
                text(b"avro.schema"),
                text(schema.to_string().as_bytes()),
                text(b"avro.codec"),
                text(codec.as_bytes()),
                zigzag(0),
                SYNC.to_vec(),
            ]
            .concat(),
        );
        for records in blocks {
            let plain = records.concat();
            let packed = match codec {
                "deflate" => {
                    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                    encoder.write_all(&plain).unwrap();
                    encoder.finish().unwrap()
                }
                "snappy" => {
                    let mut sum = flate2::Crc::new();
                    sum.update(&plain);
                    [snap::raw::Encoder::new().compress_vec(&plain).unwrap(), sum.sum().to_be_bytes().to_vec()].concat()
                }
                "zstandard" => zstd::encode_all(&plain[..], 1).unwrap(),
                _ => plain,
            };
            file.extend([zigzag(records.len() as i64), zigzag(packed.len() as i64), packed, SYNC.to_vec()].concat());
        }
        file
    }

    fn open(bytes: &[u8], from: u64) -> Result<Records, Fault> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Records::open(Arc::new(file), from, bytes.len() as u64, SchemaHeader::Hash)
    }

    fn all(bytes: &[u8], from: u64) -> Result<Vec<(Vec<u8>, u64)>, Fault> {
        let mut records = open(bytes, from)?;
        let mut seen = Vec::new();
        loop {
            let some = records.read(2, 1_000_000)?;
            if some.is_empty() {
                return Ok(seen);
            }
            seen.extend(some.into_iter().map(|piece| (piece.body.to_vec(), piece.end)));
        }
    }

    fn schema() -> Value {
        json!({"type": "record", "name": "Line", "namespace": "logs", "doc": "a line", "fields": [
            {"name": "id", "type": "long", "default": 0},
            {"name": "text", "type": ["null", {"type": "string", "avro.java.string": "String"}]},
            {"name": "level", "type": {"type": "enum", "name": "Level", "symbols": ["LOW", "HIGH"]}},
            {"name": "sum", "type": {"type": "fixed", "name": "Sum", "size": 3}},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "more", "type": {"type": "map", "values": "double"}},
            {"name": "before", "type": ["null", "Line"]},
            {"name": "other", "type": "Level"},
        ]})
    }

    fn record(id: i64, nested: bool) -> Vec<u8> {
        let before = if nested { [zigzag(1), record(id + 1, false)].concat() } else { zigzag(0) };
        [
            zigzag(id),
            zigzag(1),
            text(format!("line {id}").as_bytes()),
            zigzag(1),
            b"abc".to_vec(),
            // Two blocks, one with its size.
            [zigzag(1), text(b"x"), zigzag(-2), zigzag(4), text(b"y"), text(b"z"), zigzag(0)].concat(),
            [zigzag(1), text(b"k"), 1.5_f64.to_le_bytes().to_vec(), zigzag(0)].concat(),
            before,
            zigzag(0),
        ]
        .concat()
    }

    #[test]
    fn records_come_out_as_they_are_from_any_place_on() {
        let blocks = [vec![record(1, false), record(2, true)], vec![], vec![record(3, true)], vec![record(4, false); 3]];
        let expected: Vec<(Vec<u8>, u64)> = blocks.concat().into_iter().zip(1..).collect();
        for codec in ["null", "deflate", "snappy", "zstandard"] {
            let file = container(&schema(), codec, &blocks);
            for from in 0..=6 {
                assert_eq!(all(&file, from).unwrap(), expected[from as usize..], "{codec} from {from}");
            }
        }
        assert!(open(&container(&schema(), "lzo", &blocks), 0).err().unwrap().to_string().contains("lzo"));
    }

    /// Computed with Avro's own `SchemaNormalization`.
    #[test]
    fn schemas_are_known_by_avros_fingerprint() {
        for (schema, canonical) in [
            (json!("int"), r#""int""#),
            (json!({"type": "string", "avro.java.string": "String"}), r#""string""#),
            (
                json!({"type": "array", "items": {"type": "map", "values": "long"}}),
                r#"{"type":"array","items":{"type":"map","values":"long"}}"#,
            ),
            (
                schema(),
                r#"{"name":"logs.Line","type":"record","fields":[{"name":"id","type":"long"},{"name":"text","type":["null","string"]},{"name":"level","type":{"name":"logs.Level","type":"enum","symbols":["LOW","HIGH"]}},{"name":"sum","type":{"name":"logs.Sum","type":"fixed","size":3}},{"name":"tags","type":{"type":"array","items":"string"}},{"name":"more","type":{"type":"map","values":"double"}},{"name":"before","type":["null","logs.Line"]},{"name":"other","type":"logs.Level"}]}"#,
            ),
        ] {
            let mut form = String::new();
            canonical_form(&schema, "", &mut form);
            assert_eq!(form, canonical);
        }
        // From Avro's specification tests.
        assert_eq!(fingerprint(br#""int""#), 0x7275_d51a_3f39_5c8f);
        assert_eq!(fingerprint(br#""string""#), 0x8f01_4872_6345_03c7);
    }

    #[test]
    fn what_is_damaged_says_where() {
        let file = container(&schema(), "null", &[vec![record(1, false)], vec![record(2, false)]]);
        let end = file.len();
        for (bytes, why) in [
            (&b"not avro"[..], "`Obj`"),
            (b"", "ends within"),
            (&file[..end - 1], "within the block"),
            (&[&file[..end - 1], b"!"].concat(), "marker"),
        ] {
            let mut records = match open(bytes, 0) {
                Ok(records) => records,
                Err(fault) => {
                    assert!(fault.to_string().contains(why), "{fault}");
                    continue;
                }
            };
            assert_eq!(records.read(10, 1_000_000).unwrap().len(), 1);
            let fault = records.read(10, 1_000_000).unwrap_err().to_string();
            assert!(fault.contains(why), "{fault}");
        }
    }

    #[test]
    fn flumes_own_position_is_read() {
        let schema = json!({"type": "record", "name": "TransferStateFileMeta", "namespace": "org.apache.flume.serialization", "fields": [{"name": "offset", "type": "long"}]});
        let plain = container(&schema, "null", &[vec![zigzag(5)], vec![zigzag(300)], vec![zigzag(70_000)]]);
        // One more entry in the header.
        let file = [&b"Obj\x01"[..], &zigzag(1), &text(b"file"), &text("/spool/a grü".as_bytes()), &plain[4..]].concat();
        let meta = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(meta.path(), file).unwrap();
        assert_eq!(flume_position(meta.path()).unwrap(), (PathBuf::from("/spool/a grü"), 70_000));
        std::fs::write(meta.path(), plain).unwrap();
        assert!(flume_position(meta.path()).unwrap_err().to_string().contains("names no file"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..1000, value: u8) {
            drop(all(&bytes, 0));
            let mut file = container(&schema(), "null", &[vec![record(1, true)], vec![record(2, false)]]);
            let at = at % file.len();
            file[at] = value;
            drop(all(&file, 0));
        }
    }
}
