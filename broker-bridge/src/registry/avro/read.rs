//! A schema's JSON read, by the rules of Avro's specification.

use std::collections::{HashMap, HashSet};

use super::{super::text::Json, Avro, Field, Kind, Named, Primitive, Props, Schema, full_name};

/// How strictly a schema is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// A new one: names and defaults must be right.
    New,
    /// One that was accepted once, maybe by an older registry.
    Stored,
}

impl Avro {
    /// Reads a schema. `references` are the texts of the schemas that it refers to, each behind those that it refers to itself.
    pub(crate) fn parse(text: &str, references: &[String], strictness: Strictness) -> Result<Self, String> {
        let mut reader = Reader { named: HashMap::new(), strictness: Strictness::Stored };
        for reference in references {
            reader.schema(&json(reference)?, None)?;
        }
        let referenced: HashSet<String> = reader.named.keys().cloned().collect();
        reader.strictness = strictness;
        let root = reader.schema(&json(text)?, None)?;
        let avro = Avro { root, named: reader.named, referenced };
        if strictness == Strictness::New {
            avro.check_defaults()?;
        }
        Ok(avro)
    }

    /// The default of every field must be a value of its type.
    fn check_defaults(&self) -> Result<(), String> {
        for named in self.named.values().filter(|named| !self.referenced.contains(&named.full())) {
            let Kind::Record { fields, .. } = &named.kind else { continue };
            for field in fields {
                if let Some(default) = &field.default
                    && !self.is_value(&field.schema, default)
                {
                    return Err(format!(
                        "the default {default} of field {} of {} is no value of its type {}",
                        field.name,
                        named.full(),
                        self.type_name(&field.schema).to_lowercase()
                    ));
                }
            }
        }
        Ok(())
    }

    fn is_value(&self, schema: &Schema, value: &Json) -> bool {
        let within = |low: i64, high: i64| match value {
            Json::Number(text) => {
                text.parse::<i64>().is_ok_and(|number| (low..=high).contains(&number))
                    || text.parse::<f64>().is_ok_and(|number| {
                        // Java takes 1.0 for an int.
                        number.fract() == 0.0 && number >= low as f64 && number <= high as f64
                    })
            }
            _ => false,
        };
        match schema {
            Schema::Primitive(primitive, _) => match primitive {
                Primitive::Null => *value == Json::Null,
                Primitive::Boolean => matches!(value, Json::Bool(_)),
                Primitive::Int => within(i64::from(i32::MIN), i64::from(i32::MAX)),
                Primitive::Long => within(i64::MIN, i64::MAX),
                Primitive::Float | Primitive::Double => {
                    matches!(value, Json::Number(_)) || matches!(value.as_str(), Some("NaN" | "Infinity" | "-Infinity"))
                }
                Primitive::Bytes | Primitive::String => matches!(value, Json::String(_)),
            },
            Schema::Array(items, _) => value.as_array().is_some_and(|all| all.iter().all(|one| self.is_value(items, one))),
            Schema::Map(values, _) => value.as_object().is_some_and(|all| all.iter().all(|(_, one)| self.is_value(values, one))),
            Schema::Union(branches) => branches.iter().any(|branch| self.is_value(branch, value)),
            Schema::Named(name) => match self.named(name).map(|named| &named.kind) {
                Some(Kind::Enum { .. } | Kind::Fixed { .. }) => matches!(value, Json::String(_)),
                Some(Kind::Record { fields, .. }) => {
                    let of = |field: &Field| {
                        value.get(&field.name).or(field.default.as_ref()).is_some_and(|one| self.is_value(&field.schema, one))
                    };
                    value.as_object().is_some() && fields.iter().all(of)
                }
                None => false,
            },
        }
    }
}

/// A bare name is a schema too, as Avro's own parser has it.
fn json(text: &str) -> Result<Json, String> {
    match Json::parse(text) {
        Ok(json) => Ok(json),
        Err(_) if Primitive::of(text.trim()).is_some() => Ok(Json::String(text.trim().to_owned())),
        Err(error) => Err(error),
    }
}

struct Reader {
    named: HashMap<String, Named>,
    strictness: Strictness,
}

/// What is no property of one's own, by where it stands.
const OF_SCHEMA: &[&str] = &["doc", "fields", "items", "name", "namespace", "size", "symbols", "values", "type", "aliases"];
const OF_FIELD: &[&str] = &["default", "doc", "name", "order", "type", "aliases"];

impl Reader {
    fn schema(&mut self, json: &Json, space: Option<&str>) -> Result<Schema, String> {
        match json {
            Json::String(name) => self.by_name(name, space),
            Json::Array(branches) => self.union(branches, space),
            Json::Object(_) => match json.get("type") {
                Some(Json::String(kind)) => self.typed(json, kind, space),
                Some(nested @ (Json::Object(_) | Json::Array(_))) => self.schema(nested, space),
                Some(other) => Err(format!("{other} is no type")),
                None => Err(format!("a schema without a type: {json}")),
            },
            other => Err(format!("{other} is no schema")),
        }
    }

    fn by_name(&self, name: &str, space: Option<&str>) -> Result<Schema, String> {
        if let Some(primitive) = Primitive::of(name) {
            return Ok(Schema::Primitive(primitive, Vec::new()));
        }
        let in_space = if name.contains('.') { name.to_owned() } else { full_name(name, space) };
        [in_space.as_str(), name]
            .into_iter()
            .find(|name| self.named.contains_key(*name))
            .map(|name| Schema::Named(name.to_owned()))
            .ok_or_else(|| format!("\"{name}\" is neither a primitive type nor one that is defined before it is used"))
    }

    fn union(&mut self, branches: &[Json], space: Option<&str>) -> Result<Schema, String> {
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(branches.len());
        for branch in branches {
            let schema = self.schema(branch, space)?;
            let name = match &schema {
                Schema::Union(_) => return Err(format!("a union stands within a union: {branch}")),
                Schema::Named(name) => name.clone(),
                Schema::Primitive(primitive, _) => primitive.name().to_owned(),
                Schema::Array(..) => "array".to_owned(),
                Schema::Map(..) => "map".to_owned(),
            };
            if !seen.insert(name.clone()) {
                return Err(format!("a union has {name} twice"));
            }
            all.push(schema);
        }
        Ok(Schema::Union(all))
    }

    fn typed(&mut self, json: &Json, kind: &str, space: Option<&str>) -> Result<Schema, String> {
        let nested = |key: &str| json.get(key).ok_or_else(|| format!("{kind} without {key}: {json}"));
        match kind {
            "record" | "error" | "enum" | "fixed" => self.define(json, kind, space),
            "array" => Ok(Schema::Array(Box::new(self.schema(nested("items")?, space)?), props(json, OF_SCHEMA))),
            "map" => Ok(Schema::Map(Box::new(self.schema(nested("values")?, space)?), props(json, OF_SCHEMA))),
            _ => match self.by_name(kind, space)? {
                Schema::Primitive(primitive, _) => Ok(Schema::Primitive(primitive, props(json, OF_SCHEMA))),
                named => Ok(named),
            },
        }
    }

    fn define(&mut self, json: &Json, kind: &str, space: Option<&str>) -> Result<Schema, String> {
        let text = json.get("name").and_then(Json::as_str).ok_or_else(|| format!("{kind} without a name: {json}"))?;
        let (name, own) = match text.rsplit_once('.') {
            Some((own, name)) => (name, Some(own)),
            None => (text, json.get("namespace").and_then(Json::as_str).or(space)),
        };
        let own = own.filter(|space| !space.is_empty());
        self.check_name(name)?;
        if let Some(own) = own {
            own.split('.').try_for_each(|part| self.check_name(part))?;
        }
        let full = full_name(name, own);
        if Primitive::of(name).is_some() && own.is_none() {
            return Err(format!("{name} is what a primitive type is called: name it otherwise"));
        }
        if self.named.contains_key(&full) {
            return Err(format!("{full} is defined twice"));
        }
        let mut named = Named {
            name: name.to_owned(),
            space: own.map(str::to_owned),
            doc: json.get("doc").and_then(Json::as_str).map(str::to_owned),
            aliases: aliases(json)?.into_iter().map(|alias| if alias.contains('.') { alias } else { full_name(&alias, own) }).collect(),
            props: props(json, OF_SCHEMA),
            kind: Kind::Fixed { size: 0 },
        };
        match kind {
            "enum" => {
                named.props.retain(|(key, _)| key != "default");
                named.kind = self.enumeration(json, &full)?;
            }
            "fixed" => {
                let size = json.get("size").and_then(|size| match size {
                    Json::Number(text) => text.parse::<i32>().ok().and_then(|size| u64::try_from(size).ok()),
                    _ => None,
                });
                let wrong = || format!("fixed {full} has no size, or one that is no number from 0 to {}", i32::MAX);
                named.kind = Kind::Fixed { size: size.ok_or_else(wrong)? };
            }
            _ => {
                // Known before its fields are read: they may refer to it.
                named.kind = Kind::Record { fields: Vec::new(), is_error: kind == "error" };
                self.named.insert(full.clone(), named);
                let read = self.fields(json, &full, own)?;
                if let Some(Named { kind: Kind::Record { fields, .. }, .. }) = self.named.get_mut(&full) {
                    *fields = read;
                }
                return Ok(Schema::Named(full));
            }
        }
        self.named.insert(full.clone(), named);
        Ok(Schema::Named(full))
    }

    fn enumeration(&self, json: &Json, full: &str) -> Result<Kind, String> {
        let symbols = json.get("symbols").and_then(Json::as_array).ok_or_else(|| format!("enum {full} has no symbols"))?;
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(symbols.len());
        for symbol in symbols {
            let symbol = symbol.as_str().ok_or_else(|| format!("a symbol of enum {full} is no text: {symbol}"))?;
            self.check_name(symbol)?;
            if !seen.insert(symbol) {
                return Err(format!("enum {full} has symbol {symbol} twice"));
            }
            all.push(symbol.to_owned());
        }
        let default = json.get("default").and_then(Json::as_str).map(str::to_owned);
        if let Some(default) = &default
            && !all.contains(default)
        {
            return Err(format!("the default {default} of enum {full} is none of its symbols"));
        }
        Ok(Kind::Enum { symbols: all, default })
    }

    fn fields(&mut self, json: &Json, full: &str, space: Option<&str>) -> Result<Vec<Field>, String> {
        let all = json.get("fields").and_then(Json::as_array).ok_or_else(|| format!("record {full} has no fields"))?;
        let mut seen = HashSet::new();
        let mut fields = Vec::with_capacity(all.len());
        for field in all {
            let name = field.get("name").and_then(Json::as_str).ok_or_else(|| format!("a field of {full} has no name: {field}"))?;
            self.check_name(name)?;
            if !seen.insert(name) {
                return Err(format!("record {full} has field {name} twice"));
            }
            let schema = field.get("type").ok_or_else(|| format!("field {name} of {full} has no type: {field}"))?;
            let order = field.get("order").and_then(Json::as_str).unwrap_or("ascending").to_lowercase();
            if !["ascending", "descending", "ignore"].contains(&order.as_str()) {
                return Err(format!("order {order:?} of field {name} is none of ascending, descending, ignore"));
            }
            fields.push(Field {
                name: name.to_owned(),
                doc: field.get("doc").and_then(Json::as_str).map(str::to_owned),
                schema: self.schema(schema, space)?,
                default: field.get("default").cloned(),
                order,
                aliases: aliases(field)?,
                props: props(field, OF_FIELD),
            });
        }
        Ok(fields)
    }

    fn check_name(&self, name: &str) -> Result<(), String> {
        let right = |name: &str| {
            name.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_')
                && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
        };
        if name.is_empty() || (self.strictness == Strictness::New && !right(name)) {
            return Err(format!("illegal name {name:?}: letters, digits and _, and no digit first"));
        }
        Ok(())
    }
}

fn props(json: &Json, reserved: &[&str]) -> Props {
    let all = json.as_object().unwrap_or_default();
    all.iter().filter(|(key, _)| !reserved.contains(&key.as_str())).cloned().collect()
}

fn aliases(json: &Json) -> Result<Vec<String>, String> {
    let Some(aliases) = json.get("aliases") else { return Ok(Vec::new()) };
    let texts = aliases.as_array().and_then(|all| all.iter().map(|one| one.as_str().map(str::to_owned)).collect());
    texts.ok_or_else(|| format!("aliases are no list of names: {aliases}"))
}
