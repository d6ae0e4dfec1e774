//! Values of a schema: Avro's JSON encoding ↔ its binary encoding, as Avro's Java library has both.
//!
//! A union's value is `null` or `{"<type>": …}`; bytes are text, one code point up to U+00FF a byte; logical types are their base types; numbers
//! that JSON does not have are `"NaN"`, `"Infinity"` and `"-Infinity"`.

mod decode;
mod encode;

use std::{collections::HashMap, fmt::Write as _};

use super::{Avro, Kind, Primitive, Schema};

/// A schema made for values: names are resolved, members are found by hash.
#[derive(Debug)]
pub(crate) struct Coder {
    root: usize,
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Primitive(Primitive),
    Fixed(usize),
    Enum(Names),
    Array(usize),
    Map(usize),
    /// By the branches' names, and what they are.
    Union(Names, Vec<usize>),
    Record(Record),
}

#[derive(Debug)]
struct Record {
    name: String,
    fields: Names,
    nodes: Vec<usize>,
}

/// A list of names, found by number and by name.
#[derive(Debug, Default)]
struct Names {
    list: Vec<String>,
    numbers: HashMap<String, usize>,
}

impl Names {
    fn push(&mut self, name: String, aliases: &[String]) {
        let number = self.list.len();
        for alias in aliases {
            // A name goes before an alias.
            self.numbers.entry(alias.clone()).or_insert(number);
        }
        self.numbers.insert(name.clone(), number);
        self.list.push(name);
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    fn name(&self, number: usize) -> &str {
        self.list.get(number).map_or("", String::as_str)
    }
}

/// JSON that is nested deeper is neither read nor written; serde's own bound for what it reads is the same.
const DEPTH_MAX: usize = 127;

impl Coder {
    pub(crate) fn new(schema: &Avro) -> Self {
        let mut maker = Maker { schema, nodes: Vec::new(), named: HashMap::new(), open: Vec::new() };
        let root = maker.node(&schema.root);
        while let Some((name, at)) = maker.open.pop() {
            // Reading a schema leaves no name without its type.
            if let Some(node) = maker.define(name) {
                maker.nodes[at] = node;
            }
        }
        Self { root, nodes: maker.nodes }
    }

    fn node(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    /// What a value of a type should have been, for messages.
    fn expected(&self, at: usize) -> String {
        match self.node(at) {
            Node::Primitive(primitive) => primitive.name().to_owned(),
            Node::Fixed(size) => format!("fixed of {size} bytes"),
            Node::Enum(symbols) => format!("one of {}", listed(&symbols.list)),
            Node::Array(_) => "an array".to_owned(),
            Node::Map(_) => "an object (map)".to_owned(),
            Node::Record(record) => format!("an object (record {})", record.name),
            Node::Union(names, _) => {
                let null = if names.number("null").is_some() { "null, or " } else { "" };
                let others: Vec<String> = names.list.iter().filter(|name| *name != "null").cloned().collect();
                format!("{null}{{\"<type>\": <value>}} with type one of {}", listed(&others))
            }
        }
    }
}

/// The first few.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// An item's place in a path.
fn push_index(path: &mut String, number: u64) {
    let _infallible = write!(path, "[{number}]");
}

struct Maker<'a> {
    schema: &'a Avro,
    nodes: Vec<Node>,
    named: HashMap<&'a str, usize>,
    /// Named, and not yet made.
    open: Vec<(&'a str, usize)>,
}

impl<'a> Maker<'a> {
    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn node(&mut self, schema: &'a Schema) -> usize {
        match schema {
            Schema::Primitive(primitive, _) => self.push(Node::Primitive(*primitive)),
            Schema::Array(items, _) => {
                let items = self.node(items);
                self.push(Node::Array(items))
            }
            Schema::Map(values, _) => {
                let values = self.node(values);
                self.push(Node::Map(values))
            }
            Schema::Union(branches) => {
                let mut names = Names::default();
                let mut nodes = Vec::with_capacity(branches.len());
                for branch in branches {
                    names.push(branch_name(branch).to_owned(), &[]);
                    nodes.push(self.node(branch));
                }
                self.push(Node::Union(names, nodes))
            }
            Schema::Named(name) => self.named(name),
        }
    }

    fn named(&mut self, name: &'a str) -> usize {
        if let Some(known) = self.named.get(name) {
            return *known;
        }
        // Its place is known before what it is: it may be of its own type, and a chain of types may be long.
        let at = self.push(Node::Primitive(Primitive::Null));
        self.named.insert(name, at);
        self.open.push((name, at));
        at
    }

    fn define(&mut self, name: &'a str) -> Option<Node> {
        Some(match &self.schema.named(name)?.kind {
            Kind::Fixed { size } => Node::Fixed(usize::try_from(*size).unwrap_or(usize::MAX)),
            Kind::Enum { symbols, .. } => {
                let mut names = Names::default();
                symbols.iter().for_each(|symbol| names.push(symbol.clone(), &[]));
                Node::Enum(names)
            }
            Kind::Record { fields, .. } => {
                let mut record = Record { name: name.to_owned(), fields: Names::default(), nodes: Vec::with_capacity(fields.len()) };
                for field in fields {
                    record.fields.push(field.name.clone(), &field.aliases);
                    record.nodes.push(self.node(&field.schema));
                }
                Node::Record(record)
            }
        })
    }
}

/// As a union's value names its type: named types in full.
fn branch_name(schema: &Schema) -> &str {
    match schema {
        Schema::Primitive(primitive, _) => primitive.name(),
        Schema::Array(..) => "array",
        Schema::Map(..) => "map",
        // A union does not stand within a union.
        Schema::Union(_) => "union",
        Schema::Named(name) => name,
    }
}

#[cfg(test)]
mod tests;
