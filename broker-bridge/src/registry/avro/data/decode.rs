//! Binary → JSON. What is read is bounded by what is there, what is written by the caller, how deep by [`DEPTH_MAX`](super::DEPTH_MAX).
//!
//! Bytes behind the value are not looked at, as by other readers.

use super::{super::Primitive, Coder, DEPTH_MAX, Node};

impl Coder {
    /// Appends the value in at most `bytes_max`; an error says where in it, and may leave a part of it in `out`.
    /// Where the schema is a union, its value stands without its type's name, as Confluent's REST proxy has it.
    pub(in super::super::super) fn decode(&self, bytes: &[u8], out: &mut Vec<u8>, bytes_max: usize) -> Result<(), String> {
        let end = out.len().saturating_add(bytes_max);
        let mut decoder = Decoder { coder: self, bytes, out, end, depth: 0, path: String::new() };
        decoder.root().map_err(|error| match decoder.path.strip_prefix('.').unwrap_or(&decoder.path) {
            "" => error,
            path => format!("at {path}: {error}"),
        })
    }
}

struct Decoder<'a> {
    coder: &'a Coder,
    bytes: &'a [u8],
    out: &'a mut Vec<u8>,
    /// The longest that `out` may get.
    end: usize,
    depth: usize,
    path: String,
}

type Done<T = ()> = Result<T, String>;

impl<'a> Decoder<'a> {
    fn root(&mut self) -> Done {
        match self.coder.node(self.coder.root) {
            Node::Union(_, nodes) => {
                let number = self.branch(nodes)?;
                self.value(nodes[number])
            }
            _ => self.value(self.coder.root),
        }
    }

    fn value(&mut self, node: usize) -> Done {
        let coder = self.coder;
        match coder.node(node) {
            Node::Primitive(primitive) => self.primitive(*primitive)?,
            Node::Fixed(size) => {
                let bytes = self.take(*size as u64)?;
                self.latin_1(bytes)?;
            }
            Node::Enum(symbols) => {
                let number = self.long()?;
                let symbol = usize::try_from(number).ok().and_then(|number| symbols.list.get(number));
                let symbol = symbol.ok_or_else(|| format!("the enum has {} symbols, none is number {number}", symbols.list.len()))?;
                self.text(symbol)?;
            }
            Node::Array(items) => {
                self.open(b'[')?;
                let mut number = 0u64;
                while let Some(count) = self.block()? {
                    for _ in 0..count {
                        self.comma(number)?;
                        let path = self.path.len();
                        super::push_index(&mut self.path, number);
                        self.value(*items)?;
                        self.path.truncate(path);
                        number += 1;
                    }
                }
                self.close(b']');
            }
            Node::Map(values) => {
                self.open(b'{')?;
                let mut number = 0u64;
                while let Some(count) = self.block()? {
                    for _ in 0..count {
                        self.comma(number)?;
                        let key = self.string()?;
                        self.text(key)?;
                        self.out.push(b':');
                        let path = self.path.len();
                        self.path.push('.');
                        self.path.extend(key.chars().take(40));
                        self.value(*values)?;
                        self.path.truncate(path);
                        number += 1;
                    }
                }
                self.close(b'}');
            }
            Node::Union(names, nodes) => {
                let number = self.branch(nodes)?;
                if matches!(coder.node(nodes[number]), Node::Primitive(Primitive::Null)) {
                    return self.primitive(Primitive::Null);
                }
                self.open(b'{')?;
                self.text(names.name(number))?;
                self.out.push(b':');
                self.value(nodes[number])?;
                self.close(b'}');
            }
            Node::Record(record) => {
                self.open(b'{')?;
                for (number, node) in record.nodes.iter().enumerate() {
                    self.comma(number as u64)?;
                    let name = record.fields.name(number);
                    self.text(name)?;
                    self.out.push(b':');
                    let path = self.path.len();
                    self.path.push('.');
                    self.path.push_str(name);
                    self.value(*node)?;
                    self.path.truncate(path);
                }
                self.close(b'}');
            }
        }
        Ok(())
    }

    fn primitive(&mut self, primitive: Primitive) -> Done {
        match primitive {
            Primitive::Null => self.write(b"null"),
            Primitive::Boolean => match self.take(1)? {
                [0] => self.write(b"false"),
                [1] => self.write(b"true"),
                other => Err(format!("{other:?} is no boolean")),
            },
            Primitive::Int => {
                let number = self.long()?;
                let number = i32::try_from(number).map_err(|_| format!("{number} is no int"))?;
                self.write(number.to_string().as_bytes())
            }
            Primitive::Long => {
                let number = self.long()?;
                self.write(number.to_string().as_bytes())
            }
            Primitive::Float => {
                let bytes = self.take(4)?.try_into().unwrap_or_default();
                let number = f32::from_le_bytes(bytes);
                let text = serde_json::Number::from_f64(f64::from(number)).map(|_| serde_json::to_string(&number).unwrap_or_default());
                self.number(text, f64::from(number))
            }
            Primitive::Double => {
                let bytes = self.take(8)?.try_into().unwrap_or_default();
                let number = f64::from_le_bytes(bytes);
                let text = serde_json::Number::from_f64(number).map(|number| number.to_string());
                self.number(text, number)
            }
            Primitive::Bytes => {
                let bytes = self.sized()?;
                self.latin_1(bytes)
            }
            Primitive::String => {
                let text = self.string()?;
                self.text(text)
            }
        }
    }

    /// `text` where JSON has the number.
    fn number(&mut self, text: Option<String>, number: f64) -> Done {
        match text {
            Some(text) => self.write(text.as_bytes()),
            None if number.is_nan() => self.write(b"\"NaN\""),
            None if number > 0.0 => self.write(b"\"Infinity\""),
            None => self.write(b"\"-Infinity\""),
        }
    }

    // === In ===

    fn take(&mut self, count: u64) -> Done<&'a [u8]> {
        let taken = usize::try_from(count).ok().and_then(|count| self.bytes.split_at_checked(count));
        let (taken, rest) = taken.ok_or_else(|| format!("it breaks off: {count} bytes are needed, {} are left", self.bytes.len()))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn long(&mut self) -> Done<i64> {
        let mut number = 0u64;
        for (at, byte) in self.bytes.iter().take(10).enumerate() {
            if at == 9 && *byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (at * 7);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[at + 1..];
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err(if self.bytes.len() < 10 { "it breaks off within a number".to_owned() } else { "a number is longer than 64 bits".to_owned() })
    }

    fn sized(&mut self) -> Done<&'a [u8]> {
        let length = self.long()?;
        let length = u64::try_from(length).map_err(|_| format!("a length is negative: {length}"))?;
        self.take(length)
    }

    fn string(&mut self) -> Done<&'a str> {
        std::str::from_utf8(self.sized()?).map_err(|error| format!("a string is not UTF-8 ({error})"))
    }

    /// How many items or entries follow; `None` at the end.
    fn block(&mut self) -> Done<Option<u64>> {
        let count = self.long()?;
        if count < 0 {
            // Its length in bytes is for who skips it.
            self.long()?;
        }
        Ok(Some(count.unsigned_abs()).filter(|count| *count > 0))
    }

    fn branch(&mut self, nodes: &[usize]) -> Done<usize> {
        let number = self.long()?;
        let branch = usize::try_from(number).ok().filter(|number| *number < nodes.len());
        branch.ok_or_else(|| format!("the union has {} types, none is number {number}", nodes.len()))
    }

    // === Out ===

    fn write(&mut self, json: &[u8]) -> Done {
        // An array of nulls takes nothing to write, and its length is anything.
        if self.out.len() + json.len() > self.end {
            return Err("it is too large as JSON (consume.response_bytes_max)".to_owned());
        }
        self.out.extend_from_slice(json);
        Ok(())
    }

    fn text(&mut self, text: &str) -> Done {
        if self.out.len() + text.len() > self.end {
            return self.write(text.as_bytes());
        }
        serde_json::to_writer(&mut *self.out, text).map_err(|error| error.to_string())
    }

    fn latin_1(&mut self, bytes: &[u8]) -> Done {
        let text: String = bytes.iter().copied().map(char::from).collect();
        self.text(&text)
    }

    fn comma(&mut self, number: u64) -> Done {
        if number > 0 { self.write(b",") } else { Ok(()) }
    }

    fn open(&mut self, bracket: u8) -> Done {
        if self.depth == DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX} levels as JSON"));
        }
        self.depth += 1;
        self.write(&[bracket])
    }

    fn close(&mut self, bracket: u8) {
        self.depth -= 1;
        self.out.push(bracket);
    }
}
