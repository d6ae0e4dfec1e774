//! What must be known of an Avro schema: where its values end, and its fingerprint.

use std::collections::BTreeMap;

use serde_json::Value;

use super::read::{Fault, damaged};

/// Nested values; deeper ones are nobody's data.
const DEPTH_MAX: usize = 64;

/// A place in bytes.
pub struct Cut<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Cut<'a> {
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count)).ok_or_else(|| damaged("it ends within a value"))?;
        self.at += count;
        Ok(taken)
    }

    pub fn long(&mut self) -> Result<i64, Fault> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(damaged("a number of more than ten bytes"))
    }

    /// Items of a block of an array or a map. A negative count is followed by the block's size.
    pub fn count(&mut self) -> Result<u64, Fault> {
        let count = self.long()?;
        if count < 0 {
            self.long()?;
        }
        Ok(count.unsigned_abs())
    }

    pub fn text(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::try_from(self.long()?).map_err(|_| damaged("a text of negative length"))?;
        self.take(length)
    }
}

/// Of a schema what one must know to find where values end.
#[derive(Clone, Debug)]
pub enum Shape {
    /// Values of so many bytes.
    Fixed(usize),
    Number,
    Text,
    Array(Box<Shape>),
    Map(Box<Shape>),
    Union(Vec<Shape>),
    Record(Vec<Shape>),
    Named(String),
}

#[derive(Clone, Debug)]
pub struct Schema {
    pub root: Shape,
    named: BTreeMap<String, Shape>,
}

impl Schema {
    pub fn parse(json: &Value) -> Result<Self, Fault> {
        let mut named = BTreeMap::new();
        let root = shape(json, "", &mut named, 0)?;
        Ok(Self { root, named })
    }

    /// Moves behind a value.
    pub fn pass(&self, cut: &mut Cut<'_>, shape: &Shape, depth: usize) -> Result<(), Fault> {
        if depth > DEPTH_MAX {
            return Err(damaged("values nested too deep"));
        }
        match shape {
            Shape::Fixed(size) => drop(cut.take(*size)?),
            Shape::Number => drop(cut.long()?),
            Shape::Text => drop(cut.text()?),
            Shape::Array(items) => self.pass_blocks(cut, |cut| self.pass(cut, items, depth + 1))?,
            Shape::Map(values) => self.pass_blocks(cut, |cut| {
                cut.text()?;
                self.pass(cut, values, depth + 1)
            })?,
            Shape::Union(branches) => {
                let branch = usize::try_from(cut.long()?).ok().and_then(|branch| branches.get(branch));
                self.pass(cut, branch.ok_or_else(|| damaged("a branch that its union has not"))?, depth + 1)?;
            }
            Shape::Record(fields) => fields.iter().try_for_each(|field| self.pass(cut, field, depth + 1))?,
            Shape::Named(name) => {
                let shape = self.named.get(name).ok_or_else(|| damaged(format!("its schema does not define `{name}`")))?;
                self.pass(cut, shape, depth + 1)?;
            }
        }
        Ok(())
    }

    fn pass_blocks(&self, cut: &mut Cut<'_>, mut item: impl FnMut(&mut Cut<'_>) -> Result<(), Fault>) -> Result<(), Fault> {
        loop {
            let count = cut.count()?;
            if count == 0 {
                return Ok(());
            }
            let before = cut.at;
            for done in 0..count {
                item(cut)?;
                // Items without bytes: any number of them is where the first one was.
                if done == 0 && cut.at == before {
                    break;
                }
            }
        }
    }
}

const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];

fn primitive(name: &str) -> Option<Shape> {
    Some(match name {
        "null" => Shape::Fixed(0),
        "boolean" => Shape::Fixed(1),
        "int" | "long" => Shape::Number,
        "float" => Shape::Fixed(4),
        "double" => Shape::Fixed(8),
        "bytes" | "string" => Shape::Text,
        _ => return None,
    })
}

fn full_name(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() { name.to_owned() } else { format!("{space}.{name}") }
}

/// The full name of what `json` defines, and the namespace within it.
fn defined(json: &Value, space: &str) -> Option<(String, String)> {
    let name = json.get("name")?.as_str()?;
    let space = json.get("namespace").and_then(Value::as_str).unwrap_or(space);
    let full = full_name(name, space);
    let within = full.rsplit_once('.').map_or("", |(within, _)| within).to_owned();
    Some((full, within))
}

fn shape(json: &Value, space: &str, named: &mut BTreeMap<String, Shape>, depth: usize) -> Result<Shape, Fault> {
    let fault = |what: &str| damaged(format!("its schema {what}: {json}"));
    if depth > DEPTH_MAX {
        return Err(damaged("its schema is nested too deep"));
    }
    match json {
        Value::String(name) => Ok(primitive(name).unwrap_or_else(|| Shape::Named(full_name(name, space)))),
        Value::Array(branches) => {
            Ok(Shape::Union(branches.iter().map(|branch| shape(branch, space, named, depth + 1)).collect::<Result<_, _>>()?))
        }
        Value::Object(_) => {
            let Some(kind) = json.get("type") else { return Err(fault("has something without a type")) };
            let Some(kind) = kind.as_str() else { return shape(kind, space, named, depth + 1) };
            let part = |key: &str| json.get(key).ok_or_else(|| fault(&format!("has something without {key}")));
            match kind {
                "array" => Ok(Shape::Array(Box::new(shape(part("items")?, space, named, depth + 1)?))),
                "map" => Ok(Shape::Map(Box::new(shape(part("values")?, space, named, depth + 1)?))),
                "record" | "error" | "enum" | "fixed" => {
                    let (name, within) = defined(json, space).ok_or_else(|| fault("has something without a name"))?;
                    let shape = match kind {
                        "enum" => Shape::Number,
                        "fixed" => {
                            let size = part("size")?.as_u64().and_then(|size| usize::try_from(size).ok());
                            Shape::Fixed(size.ok_or_else(|| fault("has a wrong size"))?)
                        }
                        _ => {
                            let fields = part("fields")?.as_array().ok_or_else(|| fault("has fields that are no list"))?;
                            let field = |field: &Value| {
                                shape(field.get("type").ok_or_else(|| fault("has a field without a type"))?, &within, named, depth + 1)
                            };
                            Shape::Record(fields.iter().map(field).collect::<Result<_, _>>()?)
                        }
                    };
                    named.insert(name.clone(), shape);
                    Ok(Shape::Named(name))
                }
                name => Ok(primitive(name).unwrap_or_else(|| Shape::Named(full_name(name, space)))),
            }
        }
        _ => Err(fault("is none")),
    }
}

/// Avro's Parsing Canonical Form.
pub fn canonical_form(json: &Value, space: &str, out: &mut String) {
    let quoted = |text: &str| Value::String(text.to_owned()).to_string();
    match json {
        Value::String(name) if PRIMITIVES.contains(&name.as_str()) => out.push_str(&quoted(name)),
        Value::String(name) => out.push_str(&quoted(&full_name(name, space))),
        Value::Array(branches) => {
            list(branches.iter(), out, |branch, out| canonical_form(branch, space, out));
        }
        _ => {
            let kind = json.get("type").unwrap_or(&Value::Null);
            let Some(name) = kind.as_str() else { return canonical_form(kind, space, out) };
            let Some((full, within)) = defined(json, space).filter(|_| !["array", "map"].contains(&name) && !PRIMITIVES.contains(&name))
            else {
                let (key, part) = match name {
                    "array" => ("items", json.get("items")),
                    "map" => ("values", json.get("values")),
                    _ => return canonical_form(kind, space, out),
                };
                out.push_str(&format!("{{\"type\":{},\"{key}\":", quoted(name)));
                canonical_form(part.unwrap_or(&Value::Null), space, out);
                out.push('}');
                return;
            };
            let kind = if name == "error" { "record" } else { name };
            out.push_str(&format!("{{\"name\":{},\"type\":{}", quoted(&full), quoted(kind)));
            if let Some(fields) = json.get("fields").and_then(Value::as_array) {
                out.push_str(",\"fields\":");
                list(fields.iter(), out, |field, out| {
                    let name = field.get("name").and_then(Value::as_str).unwrap_or_default();
                    out.push_str(&format!("{{\"name\":{},\"type\":", quoted(name)));
                    canonical_form(field.get("type").unwrap_or(&Value::Null), &within, out);
                    out.push('}');
                });
            }
            if let Some(symbols) = json.get("symbols").and_then(Value::as_array) {
                out.push_str(",\"symbols\":");
                list(symbols.iter(), out, |symbol, out| out.push_str(&symbol.to_string()));
            }
            if let Some(size) = json.get("size").and_then(Value::as_u64) {
                out.push_str(&format!(",\"size\":{size}"));
            }
            out.push('}');
        }
    }
}

fn list<'a>(items: impl Iterator<Item = &'a Value>, out: &mut String, mut write: impl FnMut(&'a Value, &mut String)) {
    out.push('[');
    for (number, item) in items.enumerate() {
        if number > 0 {
            out.push(',');
        }
        write(item, out);
    }
    out.push(']');
}

/// CRC-64-AVRO.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    const EMPTY: u64 = 0xc15d_213a_a4d7_a795;
    bytes.iter().fold(EMPTY, |sum, byte| {
        let mut low = (sum ^ u64::from(*byte)) & 0xff;
        for _ in 0..8 {
            low = (low >> 1) ^ (EMPTY & (low & 1).wrapping_neg());
        }
        (sum >> 8) ^ low
    })
}
