//! A JSON Schema read. `$ref` leads within the schema, to a reference by its name, or to an `$id` of any of them.

use std::collections::HashMap;

use super::{
    super::{schema::Referenced, text::Json},
    Additional, Array, Criterion, Id, JsonSchema, Number, Object, Rule, Schema, Step,
};

impl JsonSchema {
    /// Reads a schema and what of the references it uses.
    pub(in super::super) fn parse(text: &str, references: &[Referenced]) -> Result<Self, String> {
        match Self::parse_within(FLAT, text, references) {
            Err(reason) if reason == too_deep(FLAT) => with_room(|| Self::parse_within(DEEP_MAX, text, references)),
            read => read,
        }
    }

    fn parse_within(levels_max: usize, text: &str, references: &[Referenced]) -> Result<Self, String> {
        let text = Json::parse(text)?;
        let mut documents = vec![(String::new(), text.clone())];
        for reference in references {
            let json = Json::parse(&reference.text).map_err(|error| format!("reference {}: {error}", reference.name))?;
            documents.push((reference.name.clone(), json));
        }
        let mut reader = Reader {
            documents: &documents,
            ids: HashMap::new(),
            all: Vec::new(),
            steps: HashMap::new(),
            known: HashMap::new(),
            heights: HashMap::new(),
            tallest: 0,
            depth: 0,
            levels_max,
        };
        for (_, document) in &documents {
            reader.index(document, "");
        }
        let root = reader.schema(&documents[0].1, Place { document: 0, base: "" })?;
        let (all, height) = (reader.all, reader.tallest);
        let steps = (0..all.len()).map(|id| reader.steps.remove(&id).unwrap_or_default()).collect();
        let mut schema = JsonSchema { text, root, all, steps, heavy: false, height };
        schema.measure()?;
        Ok(schema)
    }
}

/// Levels of schemas within schemas, by way of `$ref` too, that every thread has room for: each walk over them is recursive.
pub(super) const FLAT: usize = 48;
/// More are refused.
const DEEP_MAX: usize = 256;
/// Of a thread for more than `FLAT`: a value of 128 levels may lead through all of the schema's at each of its own, and each needs some
/// frames. It is only taken where it is used.
const ROOM_BYTES: usize = DEEP_MAX * 128 * 4 * 1024;

fn too_deep(levels_max: usize) -> String {
    format!("schemas lead to one another through more than {levels_max} levels")
}

/// Does it where there is room for `DEEP_MAX` levels.
pub(super) fn with_room<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(ROOM_BYTES).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| format!("there is no thread for a schema this deep: {error}"))?;
        thread.join().unwrap_or_else(|_| Err("the schema cannot be worked with".to_owned()))
    })
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    document: usize,
    /// The nearest `$id` around it.
    base: &'a str,
}

struct Reader<'a> {
    /// With the names that references are given.
    documents: &'a [(String, Json)],
    /// By absolute `$id`; an `$anchor` behind `#`.
    ids: HashMap<String, &'a Json>,
    all: Vec<Schema>,
    steps: HashMap<Id, Vec<(Step, Id)>>,
    /// By address: a schema that is met again is the same one, also within itself.
    known: HashMap<*const Json, Id>,
    /// Levels of schemas below each, by way of `$ref` too.
    heights: HashMap<Id, usize>,
    /// Of the schemas that were met within the one that is being read.
    tallest: usize,
    depth: usize,
    levels_max: usize,
}

const TYPES: &[&str] = &["null", "boolean", "string", "number", "integer", "object", "array"];
/// By what else a schema is known to be about, where it names no type.
const OF_OBJECT: &[&str] = &[
    "properties",
    "required",
    "patternProperties",
    "additionalProperties",
    "unevaluatedProperties",
    "maxProperties",
    "minProperties",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "propertyNames",
];
const OF_ARRAY: &[&str] = &[
    "items",
    "prefixItems",
    "additionalItems",
    "unevaluatedItems",
    "maxItems",
    "minItems",
    "uniqueItems",
    "contains",
    "maxContains",
    "minContains",
];
const OF_TEXT: &[&str] = &["maxLength", "minLength", "pattern"];
const OF_NUMBER: &[&str] = &["maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf"];

fn id(json: &Json) -> Option<&str> {
    json.get("$id").or_else(|| json.get("id")).and_then(Json::as_str)
}

fn reference(json: &Json) -> Result<Option<&str>, String> {
    let reference = ["$ref", "$dynamicRef", "$recursiveRef"].iter().find_map(|key| json.get(key));
    reference.map(|reference| reference.as_str().ok_or_else(|| format!("$ref {reference} is no text"))).transpose()
}

/// A reference seen from `base`: a name beside it unless it is absolute.
pub(super) fn absolute(base: &str, reference: &str) -> String {
    if reference.contains("://") || reference.starts_with("urn:") {
        return reference.to_owned();
    }
    let base = base.split('#').next().unwrap_or_default();
    if reference.starts_with('#') || reference.is_empty() {
        return format!("{base}{reference}");
    }
    let after_scheme = base.find("://").map_or(0, |at| at + 3);
    if reference.starts_with('/') && after_scheme > 0 {
        let host_end = base[after_scheme..].find('/').map_or(base.len(), |at| after_scheme + at);
        return format!("{}{reference}", &base[..host_end]);
    }
    match base[after_scheme..].rfind('/') {
        Some(at) => format!("{}/{reference}", &base[..after_scheme + at]),
        None => reference.to_owned(),
    }
}

impl<'a> Reader<'a> {
    fn index(&mut self, json: &'a Json, base: &str) {
        match json {
            Json::Object(members) => {
                let base = id(json).map_or_else(|| base.to_owned(), |id| absolute(base, id));
                if id(json).is_some() {
                    self.ids.entry(base.trim_end_matches('#').to_owned()).or_insert(json);
                }
                for key in ["$anchor", "$dynamicAnchor"] {
                    if let Some(anchor) = json.get(key).and_then(Json::as_str) {
                        self.ids.entry(format!("{}#{anchor}", base.split('#').next().unwrap_or_default())).or_insert(json);
                    }
                }
                // What a value is compared with is no schema.
                for (_, member) in members.iter().filter(|(key, _)| !["enum", "const", "default", "examples"].contains(&key.as_str())) {
                    self.index(member, &base);
                }
            }
            Json::Array(items) => items.iter().for_each(|item| self.index(item, base)),
            _ => {}
        }
    }

    fn put(&mut self, schema: Schema) -> Id {
        self.all.push(schema);
        self.all.len() - 1
    }

    fn rule(&mut self, rule: Rule) -> Id {
        self.put(Schema { rule, ..Schema::default() })
    }

    fn schema(&mut self, json: &'a Json, place: Place<'a>) -> Result<Id, String> {
        if let Some(known) = self.known.get(&std::ptr::from_ref(json)) {
            self.tallest = self.tallest.max(self.heights.get(known).copied().unwrap_or(0));
            return Ok(*known);
        }
        let at = match json {
            Json::Bool(true) => return Ok(self.rule(Rule::Anything)),
            Json::Bool(false) => return Ok(self.rule(Rule::Nothing)),
            Json::Object(_) => self.put(Schema::default()),
            other => return Err(format!("{other} is no schema: it must be an object, true or false")),
        };
        self.known.insert(std::ptr::from_ref(json), at);
        if self.depth == self.levels_max {
            return Err(too_deep(self.levels_max));
        }
        self.depth += 1;
        let beside = std::mem::take(&mut self.tallest);
        let text = |key: &str| json.get(key).and_then(Json::as_str).map(str::to_owned);
        let own = id(json);
        let rule = match reference(json)? {
            // Nothing beside it counts.
            Some(reference) if !self.is_since_2019(place) => Rule::Same(self.referred(reference, place)?),
            _ => self.rules(json, Place { base: own.unwrap_or(place.base), ..place })?,
        };
        let steps = self.steps(json, Place { base: own.unwrap_or(place.base), ..place })?;
        self.steps.insert(at, steps);
        self.all[at] = Schema {
            id: own.map(str::to_owned),
            title: text("title"),
            description: text("description"),
            default: json.get("default").cloned(),
            connect_bytes: json.get("connect.type").and_then(Json::as_str) == Some("bytes"),
            rule,
        };
        self.depth -= 1;
        let height = self.tallest + 1;
        if height > self.levels_max {
            return Err(too_deep(self.levels_max));
        }
        self.heights.insert(at, height);
        self.tallest = beside.max(height);
        Ok(at)
    }

    /// To what a schema leads; it has been read.
    fn steps(&mut self, json: &'a Json, place: Place<'a>) -> Result<Vec<(Step, Id)>, String> {
        let mut steps = Vec::new();
        if let Some(to) = reference(json)? {
            steps.push((Step::Same, self.referred(to, place)?));
            if !self.is_since_2019(place) {
                return Ok(steps);
            }
        }
        for (key, value) in json.as_object().unwrap_or_default() {
            let members = |step: fn(&str) -> Step| value.as_object().into_iter().flatten().map(move |(name, one)| (step(name), one));
            let within: Vec<(Step, &'a Json)> = match (key.as_str(), value) {
                ("allOf" | "anyOf" | "oneOf", Json::Array(all)) => all.iter().map(|one| (Step::Same, one)).collect(),
                ("not" | "if" | "then" | "else", _) => vec![(Step::Same, value)],
                ("dependencies" | "dependentSchemas", _) => members(|_| Step::Same).collect(),
                ("properties", _) => members(|name| Step::Member(name.to_owned())).collect(),
                ("patternProperties", _) => members(|_| Step::Every).collect(),
                ("items" | "prefixItems", Json::Array(all)) => all.iter().enumerate().map(|(at, one)| (Step::Item(at), one)).collect(),
                (
                    "items"
                    | "additionalItems"
                    | "additionalProperties"
                    | "unevaluatedItems"
                    | "unevaluatedProperties"
                    | "contains"
                    | "propertyNames",
                    _,
                ) => vec![(Step::Every, value)],
                _ => Vec::new(),
            };
            for (step, schema) in within {
                if let Json::Object(_) = schema {
                    steps.push((step, self.schema(schema, place)?));
                }
            }
        }
        Ok(steps)
    }

    fn referred(&mut self, reference: &str, place: Place<'a>) -> Result<Id, String> {
        let unresolved = || format!("$ref '{reference}' leads nowhere: name the schema that it is in as a reference");
        let (file, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        if file.contains("json-schema.org/draft") {
            // Any schema: what these say is not compared.
            return Ok(self.rule(Rule::Anything));
        }
        let found = if file.is_empty() {
            let by_anchor = self.ids.get(&absolute(place.base, reference)).copied();
            let whole = &self.documents[place.document].1;
            match (fragment.is_empty() || fragment.starts_with('/'), by_anchor) {
                (true, _) => pointed(whole, fragment).map(|json| (json, place.document)),
                (false, anchored) => anchored.map(|json| (json, place.document)),
            }
        } else {
            let seen = absolute(place.base, file);
            let by_name =
                self.documents.iter().position(|(name, _)| !name.is_empty() && (name == file || *name == seen || name == reference));
            match by_name {
                Some(document) => {
                    let whole = &self.documents[document].1;
                    let by_pointer = pointed(whole, fragment).filter(|_| fragment.is_empty() || fragment.starts_with('/'));
                    by_pointer.or_else(|| anchor(whole, fragment)).map(|json| (json, document))
                }
                None => {
                    let whole = self.ids.get(&seen).or_else(|| self.ids.get(file)).copied();
                    let by_pointer =
                        whole.and_then(|whole| pointed(whole, fragment)).filter(|_| fragment.is_empty() || fragment.starts_with('/'));
                    let found = by_pointer.or_else(|| self.ids.get(&format!("{seen}#{fragment}")).copied());
                    found.map(|json| (json, self.document_of(json).unwrap_or(place.document)))
                }
            }
        };
        let (json, document) = found.ok_or_else(unresolved)?;
        let base = id(&self.documents[document].1).unwrap_or(&self.documents[document].0);
        self.schema(json, Place { document, base })
    }

    /// Which document a schema stands in.
    fn document_of(&self, json: &Json) -> Option<usize> {
        fn within(whole: &Json, json: &Json) -> bool {
            std::ptr::eq(whole, json)
                || match whole {
                    Json::Object(members) => members.iter().any(|(_, one)| within(one, json)),
                    Json::Array(items) => items.iter().any(|one| within(one, json)),
                    _ => false,
                }
        }
        self.documents.iter().position(|(_, whole)| within(whole, json))
    }

    /// Everything that a schema says.
    fn rules(&mut self, json: &'a Json, place: Place<'a>) -> Result<Rule, String> {
        let mut rules = Vec::new();
        if let Some(reference) = reference(json)? {
            rules.push(Rule::Same(self.referred(reference, place)?));
        }
        if let Some(values) = json.get("enum") {
            let values = values.as_array().ok_or_else(|| format!("enum {values} is no list"))?;
            rules.push(Rule::Enum(values.to_vec()));
        }
        for criterion in [Criterion::All, Criterion::Any, Criterion::One] {
            if let Some(schemas) = json.get(criterion.name()) {
                let schemas = schemas.as_array().ok_or_else(|| format!("{} is no list", criterion.name()))?;
                rules.push(Rule::Combined(criterion, self.distinct(schemas, place)?));
            }
        }
        if let Some(schema) = json.get("not") {
            rules.push(Rule::Not(self.schema(schema, place)?));
        }
        if let Some(value) = json.get("const") {
            rules.push(Rule::Const(value.clone()));
        }
        match json.get("type") {
            Some(Json::String(name)) => rules.push(self.typed(json, name, place)?),
            Some(Json::Array(names)) => {
                let mut all = Vec::new();
                for name in names {
                    let name = name.as_str().ok_or_else(|| format!("type {name} is no text"))?;
                    let rule = self.typed(json, name, place)?;
                    all.push(self.rule(rule));
                }
                rules.push(Rule::Combined(Criterion::Any, all));
            }
            Some(other) => return Err(format!("type {other} is neither a name nor a list of names")),
            None => {
                for (name, keys) in [("object", OF_OBJECT), ("array", OF_ARRAY), ("string", OF_TEXT), ("number", OF_NUMBER)] {
                    if keys.iter().any(|key| json.get(key).is_some()) {
                        rules.push(self.typed(json, name, place)?);
                    }
                }
            }
        }
        let conditions: Vec<&Json> = ["if", "then", "else"].iter().filter_map(|key| json.get(key)).collect();
        if !conditions.is_empty() {
            conditions.into_iter().try_for_each(|schema| self.schema(schema, place).map(drop))?;
            rules.push(Rule::Condition);
        }
        // What is not said here is read all the same: it may be wrong.
        for definitions in ["definitions", "$defs"] {
            for (_, schema) in json.get(definitions).and_then(Json::as_object).unwrap_or_default() {
                if matches!(schema, Json::Object(_) | Json::Bool(_)) {
                    self.schema(schema, place)?;
                }
            }
        }
        Ok(match rules.len() {
            0 => Rule::Anything,
            1 => rules.remove(0),
            _ => Rule::Combined(Criterion::All, rules.into_iter().map(|rule| self.rule(rule)).collect()),
        })
    }

    fn distinct(&mut self, schemas: &'a [Json], place: Place<'a>) -> Result<Vec<Id>, String> {
        let mut ids = Vec::new();
        for (at, schema) in schemas.iter().enumerate() {
            if !schemas[..at].iter().any(|earlier| earlier.same(schema)) {
                ids.push(self.schema(schema, place)?);
            }
        }
        Ok(ids)
    }

    fn typed(&mut self, json: &'a Json, name: &str, place: Place<'a>) -> Result<Rule, String> {
        let number = |key: &str| match json.get(key) {
            None => Ok(None),
            Some(Json::Number(text)) => Ok(text.parse::<f64>().ok()),
            Some(other) => Err(format!("{key} {other} is no number")),
        };
        Ok(match name {
            "null" => Rule::Null,
            "boolean" => Rule::Boolean,
            "string" => Rule::Text {
                max_length: number("maxLength")?,
                min_length: number("minLength")?,
                pattern: json.get("pattern").and_then(Json::as_str).map(str::to_owned),
            },
            "number" | "integer" => {
                // draft-04 says with a boolean whether the limit itself is left out.
                let limit = |key: &str, exclusive: &str| match json.get(exclusive) {
                    Some(Json::Bool(true)) => Ok::<_, String>((None, number(key)?)),
                    Some(Json::Bool(false)) | None => Ok((number(key)?, None)),
                    Some(_) => Ok((number(key)?, number(exclusive)?)),
                };
                let (maximum, exclusive_maximum) = limit("maximum", "exclusiveMaximum")?;
                let (minimum, exclusive_minimum) = limit("minimum", "exclusiveMinimum")?;
                Rule::Number(Box::new(Number {
                    maximum,
                    minimum,
                    exclusive_maximum,
                    exclusive_minimum,
                    multiple_of: number("multipleOf")?,
                    is_integer: name == "integer",
                }))
            }
            "object" => {
                let mut object = self.object(json, place)?;
                (object.max_properties, object.min_properties) = (number("maxProperties")?, number("minProperties")?);
                Rule::Object(Box::new(object))
            }
            "array" => {
                let mut array = self.array(json, place)?;
                (array.max_items, array.min_items) = (number("maxItems")?, number("minItems")?);
                (array.max_contains, array.min_contains) = (number("maxContains")?, number("minContains")?);
                if self.is_since_2019(place) {
                    // One unless it says how many; without a kind the numbers say nothing.
                    let contains = json.get("contains").is_some();
                    array.max_contains = array.max_contains.filter(|_| contains);
                    array.min_contains = contains.then(|| array.min_contains.unwrap_or(1.0));
                }
                Rule::Array(Box::new(array))
            }
            other => return Err(format!("unknown type {other:?}; it is one of {}", TYPES.join(", "))),
        })
    }

    fn additional(&mut self, json: Option<&'a Json>, place: Place<'a>) -> Result<Additional, String> {
        Ok(match json {
            None | Some(Json::Bool(true)) => Additional::Any,
            Some(Json::Bool(false)) => Additional::None,
            Some(schema) => Additional::As(self.schema(schema, place)?),
        })
    }

    fn members(&mut self, json: &'a Json, key: &str, place: Place<'a>) -> Result<Vec<(String, Id)>, String> {
        let Some(members) = json.get(key) else { return Ok(Vec::new()) };
        let members = members.as_object().ok_or_else(|| format!("{key} is no object: {members}"))?;
        members.iter().map(|(name, schema)| Ok((name.clone(), self.schema(schema, place)?))).collect()
    }

    fn object(&mut self, json: &'a Json, place: Place<'a>) -> Result<Object, String> {
        let names =
            |json: &Json| -> Vec<String> { json.as_array().into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect() };
        let mut object = Object {
            properties: self.members(json, "properties", place)?,
            // In draft-03 a property said it of itself, with a boolean.
            required: json.get("required").map(names).unwrap_or_default(),
            patterns: self.members(json, "patternProperties", place)?,
            additional: self.additional(json.get("additionalProperties"), place)?,
            unevaluated: json.get("unevaluatedProperties").map(|schema| self.schema(schema, place)).transpose()?,
            ..Object::default()
        };
        for key in ["dependencies", "dependentRequired", "dependentSchemas"] {
            for (name, dependency) in json.get(key).and_then(Json::as_object).unwrap_or_default() {
                match dependency {
                    Json::Array(_) => object.property_dependencies.push((name.clone(), names(dependency))),
                    schema => object.schema_dependencies.push((name.clone(), self.schema(schema, place)?)),
                }
            }
        }
        Ok(object)
    }

    fn dialect(&self, place: Place<'a>) -> &str {
        self.documents[place.document].1.get("$schema").and_then(Json::as_str).unwrap_or_default()
    }

    fn is_2020_12(&self, place: Place<'a>) -> bool {
        self.dialect(place).contains("2020-12")
    }

    fn is_since_2019(&self, place: Place<'a>) -> bool {
        self.is_2020_12(place) || self.dialect(place).contains("2019-09")
    }

    fn array(&mut self, json: &'a Json, place: Place<'a>) -> Result<Array, String> {
        let unique = json.get("uniqueItems") == Some(&Json::Bool(true));
        let unevaluated = json.get("unevaluatedItems").map(|schema| self.schema(schema, place)).transpose()?;
        // 2020-12 calls the first items `prefixItems`, and what follows them `items`.
        let (first, rest) = match (json.get("prefixItems"), json.get("items")) {
            (Some(first), rest) => (Some(first), rest),
            (None, Some(first @ Json::Array(_))) => (Some(first), json.get("additionalItems")),
            // In 2020-12 a list of no first items.
            (None, rest @ Some(Json::Bool(_))) if self.is_2020_12(place) => (None, rest),
            (None, Some(each)) => {
                // None is left for `additionalItems`.
                let each = Some(self.schema(each, place)?);
                return Ok(Array { each, unevaluated, unique, ..Array::default() });
            }
            (None, None) => (None, json.get("additionalItems")),
        };
        let items =
            first.and_then(Json::as_array).unwrap_or_default().iter().map(|schema| self.schema(schema, place)).collect::<Result<_, _>>()?;
        Ok(Array { items, additional: self.additional(rest, place)?, unevaluated, unique, ..Array::default() })
    }
}

/// What a JSON pointer leads to.
fn pointed<'a>(whole: &'a Json, pointer: &str) -> Option<&'a Json> {
    let mut at = whole;
    for step in pointer.split('/').skip(1) {
        let step = percent(step).replace("~1", "/").replace("~0", "~");
        at = match at {
            Json::Object(_) => at.get(&step)?,
            Json::Array(items) => items.get(step.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(at)
}

fn anchor<'a>(whole: &'a Json, name: &str) -> Option<&'a Json> {
    if whole.get("$anchor").and_then(Json::as_str) == Some(name) {
        return Some(whole);
    }
    match whole {
        Json::Object(members) => members.iter().find_map(|(_, one)| anchor(one, name)),
        Json::Array(items) => items.iter().find_map(|one| anchor(one, name)),
        _ => None,
    }
}

/// `%25` is a `%`.
fn percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}
