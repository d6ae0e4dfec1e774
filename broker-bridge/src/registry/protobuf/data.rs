//! Messages of a schema: Protobuf's JSON mapping ↔ bytes, as Java's `JsonFormat` has it, defaults written out.
//!
//! Before a message's bytes stand the numbers that lead to its type in the schema: of the message in the file, of the one nested in it, and so on.
//! Nothing but a zero stands for the first message.

use prost::Message as _;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};

use super::{super::json_schema::nesting, OWN_NAME, Protobuf};

/// A schema made for messages.
#[derive(Debug)]
pub(crate) struct Messages(DescriptorPool);

/// Levels of JSON that no messages deeper than can be read stand for.
const FLAT: usize = 24;
/// Types are not nested deeper.
const INDEXES_MAX: i64 = 64;

impl Messages {
    pub(crate) fn new(schema: &Protobuf) -> Self {
        Self(schema.pool.clone())
    }

    fn declared(&self) -> impl Iterator<Item = MessageDescriptor> + '_ {
        let file = self.0.get_file_by_name(OWN_NAME);
        file.into_iter().flat_map(|file| file.messages().collect::<Vec<_>>())
    }

    /// Appends the numbers of the first message (nobody can name another), and its bytes.
    pub(in super::super) fn encode(&self, json: &str, out: &mut Vec<u8>) -> Result<(), String> {
        let kind = self.declared().next().ok_or("the schema declares no message")?;
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
        let read = DynamicMessage::deserialize_with_options(kind.clone(), tracked, &DeserializeOptions::new().deny_unknown_fields(true));
        let message = read.map_err(|error| match track.path().to_string().as_str() {
            "." => error.to_string(),
            path => format!("at {path}: {error}"),
        })?;
        deserializer.end().map_err(|error| error.to_string())?;
        out.push(0);
        let before = out.len();
        message.encode(out).map_err(|error| error.to_string())?;
        // Deep ones are tried: JSON says little of how deep the messages are that stand for it.
        if nesting(json) > FLAT && DynamicMessage::decode(kind, &out[before..]).is_err() {
            return Err("its messages are nested deeper than can be read again (100 levels)".to_owned());
        }
        Ok(())
    }

    /// Appends the message in at most `bytes_max`; an error may leave a part of it in `out`.
    pub(in super::super) fn decode(&self, mut bytes: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), String> {
        let kind = self.kind(&mut bytes)?;
        let name = kind.full_name().to_owned();
        let message = DynamicMessage::decode(kind, bytes).map_err(|error| format!("it is no {name}: {error}"))?;
        let options = SerializeOptions::new().skip_default_fields(false);
        let room = Room { out, left: bytes_max };
        message.serialize_with_options(&mut serde_json::Serializer::new(room), &options).map_err(|error| match error.is_io() {
            true => "it is too large as JSON (consume.response_bytes_max)".to_owned(),
            false => format!("it has no JSON form: {error}"),
        })
    }

    /// Of the message that follows.
    fn kind(&self, bytes: &mut &[u8]) -> Result<MessageDescriptor, String> {
        let count = number(bytes)?;
        if !(0..=INDEXES_MAX).contains(&count) {
            return Err(format!("{count} is no count of message indexes"));
        }
        let missing = |number: i64| format!("the schema has no message with index {number} there");
        let mut indexes = Vec::new();
        for _ in 0..count {
            indexes.push(number(bytes)?);
        }
        let first = indexes.first().copied().unwrap_or(0);
        let nth = |number: i64, mut all: Box<dyn Iterator<Item = MessageDescriptor> + '_>| {
            usize::try_from(number).ok().and_then(|number| all.nth(number)).ok_or_else(|| missing(number))
        };
        let mut kind = nth(first, Box::new(self.declared()))?;
        for number in indexes.into_iter().skip(1) {
            // What stands for the entries of maps is in no source.
            let nested: Vec<_> = kind.child_messages().filter(|child| !child.is_map_entry()).collect();
            kind = nth(number, Box::new(nested.into_iter()))?;
        }
        Ok(kind)
    }
}

/// A number in zigzag form, of at most 32 bits.
fn number(bytes: &mut &[u8]) -> Result<i64, String> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (at * 7);
        if byte & 0x80 == 0 {
            *bytes = &bytes[at + 1..];
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    Err("it breaks off within the message indexes".to_owned())
}

/// What is written has an end: an empty message can be long in JSON, with all its defaults.
struct Room<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl std::io::Write for Room<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
