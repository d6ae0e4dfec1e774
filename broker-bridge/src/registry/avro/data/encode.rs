//! JSON → binary, in one pass over the text: nothing is built in between.
//!
//! Every field of a record must be there (defaults are for readers of older data), by its name or an alias, in any order; and no other.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::de::{self, Deserialize as _, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{super::Primitive, Coder, Names, Node, Record};

impl Coder {
    /// Appends the value; an error says where in it, and may leave a part of it in `out`.
    pub(in super::super::super) fn encode(&self, json: &str, out: &mut Vec<u8>) -> Result<(), String> {
        let mut encoder = Encoder { coder: self, out: std::mem::take(out), path: String::new() };
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let done = Value { encoder: &mut encoder, node: self.root }.deserialize(&mut deserializer).and_then(|()| deserializer.end());
        *out = encoder.out;
        done.map_err(|error| match encoder.path.strip_prefix('.').unwrap_or(&encoder.path) {
            "" => error.to_string(),
            path => format!("at {path}: {error}"),
        })
    }
}

struct Encoder<'a> {
    coder: &'a Coder,
    out: Vec<u8>,
    /// Of the value that is read; where it ends when one is refused.
    path: String,
}

impl Encoder<'_> {
    /// A value whose JSON form has no others in it.
    fn scalar(&mut self, node: usize, json: &str) -> Result<(), String> {
        let wrong = || format!("expected {}, found {}", self.coder.expected(node), shown(json));
        match self.coder.node(node) {
            Node::Primitive(Primitive::Null) if json == "null" => {}
            Node::Primitive(Primitive::Boolean) if json == "true" => self.out.push(1),
            Node::Primitive(Primitive::Boolean) if json == "false" => self.out.push(0),
            Node::Primitive(Primitive::Int) => {
                let number = integer(json).and_then(|number| i32::try_from(number).ok()).ok_or_else(wrong)?;
                zigzag(i64::from(number), &mut self.out);
            }
            Node::Primitive(Primitive::Long) => zigzag(integer(json).ok_or_else(wrong)?, &mut self.out),
            Node::Primitive(Primitive::Float) => {
                // Of the text itself: by way of a double it would be rounded twice.
                let number: f32 = number_text(json).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
                if number.is_infinite() && is_number(json) {
                    return Err(wrong());
                }
                self.out.extend_from_slice(&number.to_le_bytes());
            }
            Node::Primitive(Primitive::Double) => {
                let number: f64 = number_text(json).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
                if number.is_infinite() && is_number(json) {
                    return Err(wrong());
                }
                self.out.extend_from_slice(&number.to_le_bytes());
            }
            Node::Primitive(Primitive::String) => {
                let text = text(json).ok_or_else(wrong)?;
                sized(text.as_bytes(), &mut self.out);
            }
            Node::Primitive(Primitive::Bytes) => {
                let bytes = latin_1(&text(json).ok_or_else(wrong)?)?;
                sized(&bytes, &mut self.out);
            }
            Node::Fixed(size) => {
                let bytes = latin_1(&text(json).ok_or_else(wrong)?)?;
                if bytes.len() != *size {
                    return Err(format!("expected {size} bytes (fixed), found {}", bytes.len()));
                }
                self.out.extend_from_slice(&bytes);
            }
            Node::Enum(symbols) => {
                let symbol = text(json).and_then(|text| symbols.number(&text)).ok_or_else(wrong)?;
                zigzag(symbol as i64, &mut self.out);
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// The beginning of what was sent.
fn shown(json: &str) -> String {
    const SHOWN: usize = 40;
    let mut text: String = json.chars().take(SHOWN).collect();
    if text.len() < json.len() {
        text.push('…');
    }
    text
}

fn is_number(json: &str) -> bool {
    json.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// `2.0` and `2e3` are integers too.
fn integer(json: &str) -> Option<i64> {
    if let Ok(number) = json.parse() {
        return Some(number);
    }
    let number: f64 = json.parse().ok()?;
    // Where every integer has a double of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (is_number(json) && number.fract() == 0.0 && number.abs() <= EXACT).then_some(number as i64)
}

/// A number's text, or one that JSON has no number for.
fn number_text(json: &str) -> Option<&str> {
    match json {
        "\"NaN\"" => Some("NaN"),
        "\"Infinity\"" => Some("inf"),
        "\"-Infinity\"" => Some("-inf"),
        _ => is_number(json).then_some(json),
    }
}

fn text(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(json).ok().map(Cow::Owned)
}

fn latin_1(text: &str) -> Result<Vec<u8>, String> {
    text.chars()
        .map(u8::try_from)
        .collect::<Result<_, _>>()
        .map_err(|_| "bytes are text of the characters U+0000 to U+00FF, one a byte; it has others".to_owned())
}

pub(super) fn zigzag(number: i64, out: &mut Vec<u8>) {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn sized(bytes: &[u8], out: &mut Vec<u8>) {
    zigzag(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// A value of one type, written as it is read.
struct Value<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    node: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let coder = self.encoder.coder;
        match coder.node(self.node) {
            Node::Array(items) => deserializer.deserialize_seq(Items { encoder: self.encoder, node: self.node, items: *items }),
            Node::Map(values) => deserializer.deserialize_map(Entries { encoder: self.encoder, node: self.node, values: *values }),
            Node::Record(record) => deserializer.deserialize_map(Fields { encoder: self.encoder, node: self.node, record }),
            Node::Union(names, nodes) => deserializer.deserialize_any(Branch { encoder: self.encoder, node: self.node, names, nodes }),
            _ => {
                let raw = <&RawValue>::deserialize(deserializer)?;
                self.encoder.scalar(self.node, raw.get()).map_err(D::Error::custom)
            }
        }
    }
}

struct Items<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    node: usize,
    items: usize,
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoder.coder.expected(self.node))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let encoder = self.encoder;
        let (start, path) = (encoder.out.len(), encoder.path.len());
        let mut count = 0u64;
        loop {
            super::push_index(&mut encoder.path, count);
            if items.next_element_seed(Value { encoder: &mut *encoder, node: self.items })?.is_none() {
                break;
            }
            encoder.path.truncate(path);
            count += 1;
        }
        encoder.path.truncate(path);
        block(count as i64, start, &mut encoder.out);
        Ok(())
    }
}

/// One block of what was written since `start`, and its end.
fn block(count: i64, start: usize, out: &mut Vec<u8>) {
    if count > 0 {
        let mut head = Vec::with_capacity(5);
        zigzag(count, &mut head);
        out.splice(start..start, head);
    }
    out.push(0);
}

struct Entries<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    node: usize,
    values: usize,
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoder.coder.expected(self.node))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let encoder = self.encoder;
        let (start, path) = (encoder.out.len(), encoder.path.len());
        let mut count = 0;
        while let Some(key) = entries.next_key::<String>()? {
            sized(key.as_bytes(), &mut encoder.out);
            encoder.path.push('.');
            encoder.path.push_str(&shown(&key));
            entries.next_value_seed(Value { encoder: &mut *encoder, node: self.values })?;
            encoder.path.truncate(path);
            count += 1;
        }
        block(count, start, &mut encoder.out);
        Ok(())
    }
}

/// The number of a name.
struct Name<'a> {
    names: &'a Names,
    what: &'static str,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<usize, E> {
        let unknown = || E::custom(format!("{} {:?} is not one of {}", self.what, shown(name), super::listed(&self.names.list)));
        self.names.number(name).ok_or_else(unknown)
    }
}

struct Fields<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    node: usize,
    record: &'a Record,
}

impl<'de> Visitor<'de> for Fields<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoder.coder.expected(self.node))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Fields { encoder, record, .. } = self;
        let path = encoder.path.len();
        // Fields stand in the schema's order; what comes earlier waits.
        let mut next = 0;
        let mut early: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        while let Some(number) = members.next_key_seed(Name { names: &record.fields, what: "field" })? {
            encoder.path.push('.');
            encoder.path.push_str(record.fields.name(number));
            if number < next || early.contains_key(&number) {
                return Err(A::Error::custom("the field is there twice"));
            }
            let node = record.nodes[number];
            if number == next {
                members.next_value_seed(Value { encoder: &mut *encoder, node })?;
                next += 1;
                while let Some(waiting) = early.remove(&next) {
                    encoder.out.extend_from_slice(&waiting);
                    next += 1;
                }
            } else {
                let held = std::mem::take(&mut encoder.out);
                let read = members.next_value_seed(Value { encoder: &mut *encoder, node });
                early.insert(number, std::mem::replace(&mut encoder.out, held));
                read?;
            }
            encoder.path.truncate(path);
        }
        if next < record.nodes.len() {
            encoder.path.push('.');
            encoder.path.push_str(record.fields.name(next));
            let expected = encoder.coder.expected(record.nodes[next]);
            return Err(A::Error::custom(format!("the field is missing; expected {expected}")));
        }
        Ok(())
    }
}

/// A union's value.
struct Branch<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    node: usize,
    names: &'a Names,
    nodes: &'a [usize],
}

impl<'de> Visitor<'de> for Branch<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoder.coder.expected(self.node))
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        match self.names.number("null") {
            Some(number) => zigzag(number as i64, &mut self.encoder.out),
            None => return Err(E::invalid_type(de::Unexpected::Unit, &self)),
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Some(number) = members.next_key_seed(Name { names: self.names, what: "type" })? else {
            return Err(A::Error::custom(format!("expected {}, found {{}}", self.encoder.coder.expected(self.node))));
        };
        zigzag(number as i64, &mut self.encoder.out);
        members.next_value_seed(Value { encoder: &mut *self.encoder, node: self.nodes[number] })?;
        if members.next_key::<de::IgnoredAny>()?.is_some() {
            return Err(A::Error::custom(format!("expected {}, found more members", self.encoder.coder.expected(self.node))));
        }
        Ok(())
    }
}
