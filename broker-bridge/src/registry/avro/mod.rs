//! Avro schemas: read (with references), written in the form that Avro's Java library writes, normalised, compared.
//!
//! | module | |
//! |---|---|
//! | `read` | JSON → [`Avro`], with every rule that a schema can break |
//! | `write` | the canonical and the normal form |
//! | `compat` | whether a reader's schema can read what a writer's schema wrote |
//! | `data` | values: JSON ↔ binary |

mod compat;
mod data;
mod read;
mod write;

use std::collections::{HashMap, HashSet};

pub(crate) use self::{data::Coder, read::Strictness};
use super::text::Json;

/// What a schema has beside what Avro defines, as it was written.
type Props = Vec<(String, Json)>;

/// A schema and the named types that it uses.
#[derive(Clone, Debug)]
pub(crate) struct Avro {
    root: Schema,
    named: HashMap<String, Named>,
    /// Full names that the references define: they are written by name alone.
    referenced: HashSet<String>,
}

#[derive(Clone, Debug)]
enum Schema {
    Primitive(Primitive, Props),
    Array(Box<Schema>, Props),
    Map(Box<Schema>, Props),
    Union(Vec<Schema>),
    /// By full name.
    Named(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Primitive {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
}

impl Primitive {
    const ALL: [(Primitive, &'static str); 8] = [
        (Primitive::Null, "null"),
        (Primitive::Boolean, "boolean"),
        (Primitive::Int, "int"),
        (Primitive::Long, "long"),
        (Primitive::Float, "float"),
        (Primitive::Double, "double"),
        (Primitive::Bytes, "bytes"),
        (Primitive::String, "string"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(primitive, _)| *primitive)
    }
}

#[derive(Clone, Debug)]
struct Named {
    name: String,
    space: Option<String>,
    doc: Option<String>,
    /// Full names.
    aliases: Vec<String>,
    kind: Kind,
    props: Props,
}

impl Named {
    fn full(&self) -> String {
        full_name(&self.name, self.space.as_deref())
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Record { fields: Vec<Field>, is_error: bool },
    Enum { symbols: Vec<String>, default: Option<String> },
    Fixed { size: u64 },
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Record { is_error: false, .. } => "record",
            Kind::Record { is_error: true, .. } => "error",
            Kind::Enum { .. } => "enum",
            Kind::Fixed { .. } => "fixed",
        }
    }
}

#[derive(Clone, Debug)]
struct Field {
    name: String,
    doc: Option<String>,
    schema: Schema,
    default: Option<Json>,
    /// `ascending` where the schema does not say it.
    order: String,
    aliases: Vec<String>,
    props: Props,
}

fn full_name(name: &str, space: Option<&str>) -> String {
    match space {
        Some(space) if !space.is_empty() => format!("{space}.{name}"),
        _ => name.to_owned(),
    }
}

impl Avro {
    /// Of the record that it is; nothing else has one that subjects are named by.
    pub(super) fn name(&self) -> Option<&str> {
        match &self.root {
            Schema::Named(name) if matches!(self.named(name)?.kind, Kind::Record { .. }) => Some(name),
            _ => None,
        }
    }

    fn named(&self, name: &str) -> Option<&Named> {
        self.named.get(name)
    }

    /// As Avro names it: `RECORD`, `INT`, …
    fn type_name(&self, schema: &Schema) -> String {
        match schema {
            Schema::Primitive(primitive, _) => primitive.name(),
            Schema::Array(..) => "array",
            Schema::Map(..) => "map",
            Schema::Union(_) => "union",
            Schema::Named(name) => match self.named(name).map(|named| &named.kind) {
                Some(Kind::Enum { .. }) => "enum",
                Some(Kind::Fixed { .. }) => "fixed",
                _ => "record",
            },
        }
        .to_uppercase()
    }
}

#[cfg(test)]
mod tests;
