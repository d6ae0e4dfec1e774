//! A schema's text: as Avro's Java library writes it (what registries store and hash), and normalised.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::{
    super::text::{Json, quoted},
    Avro, Field, Kind, Named, Props, Schema,
};

impl Avro {
    /// With everything that was written, in Avro's order.
    pub(crate) fn canonical(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, &self.root, None, &mut self.referenced.clone());
        out
    }

    /// With the referenced types written out.
    pub(crate) fn resolved(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, &self.root, None, &mut HashSet::new());
        out
    }

    /// The same text for schemas that differ in the order of properties, in writing a default order or in namespaces.
    pub(crate) fn normalized(&self) -> String {
        let mut out = String::new();
        self.normal(&mut out, &self.root, &mut self.referenced.clone());
        out
    }

    fn write(&self, out: &mut String, schema: &Schema, space: Option<&str>, known: &mut HashSet<String>) {
        match schema {
            Schema::Primitive(primitive, props) if props.is_empty() => out.push_str(&quoted(primitive.name())),
            Schema::Primitive(primitive, props) => {
                let _infallible = write!(out, "{{\"type\":{}", quoted(primitive.name()));
                push_props(out, props);
                out.push('}');
            }
            Schema::Array(inner, props) | Schema::Map(inner, props) => {
                out.push_str(if matches!(schema, Schema::Array(..)) {
                    "{\"type\":\"array\",\"items\":"
                } else {
                    "{\"type\":\"map\",\"values\":"
                });
                self.write(out, inner, space, known);
                push_props(out, props);
                out.push('}');
            }
            Schema::Union(branches) => {
                separated(out, '[', ']', branches, |out, branch| self.write(out, branch, space, known));
            }
            Schema::Named(name) => {
                let Some(named) = self.named(name) else { return };
                if known.insert(name.clone()) {
                    self.define(out, named, space, known);
                } else if named.space.as_deref() == space || named.space.is_none() {
                    out.push_str(&quoted(&named.name));
                } else {
                    out.push_str(&quoted(name));
                }
            }
        }
    }

    fn define(&self, out: &mut String, named: &Named, space: Option<&str>, known: &mut HashSet<String>) {
        let _infallible = write!(out, "{{\"type\":\"{}\",\"name\":{}", named.kind.name(), quoted(&named.name));
        if named.space.as_deref() != space {
            push(out, "namespace", &quoted(named.space.as_deref().unwrap_or_default()));
        }
        if let Some(doc) = &named.doc {
            push(out, "doc", &quoted(doc));
        }
        match &named.kind {
            Kind::Record { fields, .. } => {
                out.push_str(",\"fields\":");
                separated(out, '[', ']', fields, |out, field| self.field(out, field, named.space.as_deref(), known));
            }
            Kind::Enum { symbols, default } => {
                push(out, "symbols", &texts(symbols));
                if let Some(default) = default {
                    push(out, "default", &quoted(default));
                }
            }
            Kind::Fixed { size } => push(out, "size", &size.to_string()),
        }
        push_props(out, &named.props);
        if !named.aliases.is_empty() {
            let in_space = |alias: &String| match alias.rsplit_once('.') {
                Some((of, name)) if Some(of) == named.space.as_deref() => name.to_owned(),
                _ => alias.clone(),
            };
            push(out, "aliases", &texts(&named.aliases.iter().map(in_space).collect::<Vec<_>>()));
        }
        out.push('}');
    }

    fn field(&self, out: &mut String, field: &Field, space: Option<&str>, known: &mut HashSet<String>) {
        let _infallible = write!(out, "{{\"name\":{},\"type\":", quoted(&field.name));
        self.write(out, &field.schema, space, known);
        if let Some(doc) = &field.doc {
            push(out, "doc", &quoted(doc));
        }
        if let Some(default) = &field.default {
            push(out, "default", &default.to_string());
        }
        if field.order != "ascending" {
            push(out, "order", &quoted(&field.order));
        }
        if !field.aliases.is_empty() {
            push(out, "aliases", &texts(&field.aliases));
        }
        push_props(out, &field.props);
        out.push('}');
    }

    fn normal(&self, out: &mut String, schema: &Schema, known: &mut HashSet<String>) {
        match schema {
            Schema::Primitive(primitive, props) if props.is_empty() => out.push_str(&quoted(primitive.name())),
            Schema::Primitive(primitive, props) => {
                let _infallible = write!(out, "{{\"type\":{}", quoted(primitive.name()));
                push_normal_props(out, props);
                out.push('}');
            }
            Schema::Array(inner, props) | Schema::Map(inner, props) => {
                out.push_str(if matches!(schema, Schema::Array(..)) {
                    "{\"type\":\"array\",\"items\":"
                } else {
                    "{\"type\":\"map\",\"values\":"
                });
                self.normal(out, inner, known);
                push_normal_props(out, props);
                out.push('}');
            }
            Schema::Union(branches) => separated(out, '[', ']', branches, |out, branch| self.normal(out, branch, known)),
            Schema::Named(name) => {
                let Some(named) = self.named(name) else { return };
                if !known.insert(name.clone()) {
                    out.push_str(&quoted(name));
                    return;
                }
                // An error is a record here, as a normal form has it.
                let kind = if matches!(named.kind, Kind::Record { .. }) { "record" } else { named.kind.name() };
                let _infallible = write!(out, "{{\"name\":{},\"type\":\"{kind}\"", quoted(name));
                match &named.kind {
                    Kind::Record { fields, .. } => {
                        out.push_str(",\"fields\":");
                        separated(out, '[', ']', fields, |out, field| self.normal_field(out, field, known));
                    }
                    Kind::Enum { symbols, .. } => push(out, "symbols", &texts(symbols)),
                    Kind::Fixed { size } => push(out, "size", &size.to_string()),
                }
                push_logical(out, &named.props);
                if let Some(doc) = named.doc.as_ref().filter(|doc| !doc.is_empty()) {
                    push(out, "doc", &quoted(doc));
                }
                push_aliases(out, &named.aliases);
                if let Kind::Enum { default: Some(default), .. } = &named.kind {
                    push(out, "default", &quoted(default));
                }
                push_sorted(out, &named.props);
                out.push('}');
            }
        }
    }

    fn normal_field(&self, out: &mut String, field: &Field, known: &mut HashSet<String>) {
        let _infallible = write!(out, "{{\"name\":{},\"type\":", quoted(&field.name));
        self.normal(out, &field.schema, known);
        push(out, "order", &quoted(&field.order));
        if let Some(doc) = &field.doc {
            push(out, "doc", &quoted(doc));
        }
        push_aliases(out, &field.aliases);
        if let Some(default) = &field.default {
            push(out, "default", &default.sorted().to_string());
        }
        push_sorted(out, &field.props);
        out.push('}');
    }
}

fn push(out: &mut String, key: &str, value: &str) {
    let _infallible = write!(out, ",{}:{value}", quoted(key));
}

fn push_props(out: &mut String, props: &Props) {
    for (key, value) in props {
        push(out, key, &value.to_string());
    }
}

/// Of a type that is not named: the logical type first.
fn push_normal_props(out: &mut String, props: &Props) {
    push_logical(out, props);
    push_sorted(out, props);
}

const LOGICAL: &str = "logicalType";

fn decimal(props: &Props) -> bool {
    props.iter().any(|(key, value)| key == LOGICAL && value.as_str() == Some("decimal"))
}

fn push_logical(out: &mut String, props: &Props) {
    let get = |wanted: &str| props.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
    let Some(logical) = get(LOGICAL) else { return };
    push(out, LOGICAL, &logical.to_string());
    if decimal(props) {
        if let Some(precision) = get("precision") {
            push(out, "precision", &precision.to_string());
        }
        if let Some(scale) = get("scale").filter(|scale| scale.as_f64() != Some(0.0)) {
            push(out, "scale", &scale.to_string());
        }
    }
}

fn push_sorted(out: &mut String, props: &Props) {
    let mut rest: Vec<&(String, Json)> =
        props.iter().filter(|(key, _)| key != LOGICAL && !(decimal(props) && (key == "precision" || key == "scale"))).collect();
    rest.sort_by(|one, two| one.0.cmp(&two.0));
    for (key, value) in rest {
        push(out, key, &value.sorted().to_string());
    }
}

fn push_aliases(out: &mut String, aliases: &[String]) {
    if !aliases.is_empty() {
        let mut sorted = aliases.to_vec();
        sorted.sort();
        push(out, "aliases", &texts(&sorted));
    }
}

fn texts(all: &[String]) -> String {
    let mut out = String::new();
    separated(&mut out, '[', ']', all, |out, text| out.push_str(&quoted(text)));
    out
}

fn separated<T>(out: &mut String, open: char, close: char, all: &[T], mut write: impl FnMut(&mut String, &T)) {
    out.push(open);
    for (at, one) in all.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write(out, one);
    }
    out.push(close);
}
