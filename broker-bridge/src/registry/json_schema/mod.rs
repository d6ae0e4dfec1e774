//! JSON Schemas, draft-04 to 2020-12: read (with references) and compared.
//!
//! | module | |
//! |---|---|
//! | `read` | JSON → [`JsonSchema`]: each schema as what it says about one kind of value |
//! | `compat` | the differences between two schemas, and which of them a reader bears |
//! | `cost` | how often a schema is applied when its references are followed, and the bounds of that |
//! | `validate` | whether a value is one of the schema's |

mod compat;
mod cost;
mod read;
mod validate;

use std::collections::HashSet;

use self::cost::Step;
pub(crate) use self::validate::Validator;
pub(super) use self::validate::nesting;
use super::text::Json;

#[derive(Clone, Debug)]
pub(super) struct JsonSchema {
    text: Json,
    root: Id,
    /// By [`Id`].
    all: Vec<Schema>,
    /// What each leads to, by [`Id`].
    steps: Vec<Vec<(Step, Id)>>,
    /// A value can ask for much more than it is long.
    heavy: bool,
    /// Levels of schemas, by way of `$ref` too.
    height: usize,
}

type Id = usize;

#[derive(Clone, Debug, Default)]
struct Schema {
    id: Option<String>,
    title: Option<String>,
    description: Option<String>,
    default: Option<Json>,
    /// `"connect.type": "bytes"`: values of this kind may be written in two ways.
    connect_bytes: bool,
    rule: Rule,
}

/// What a schema says. One that says several things is all of them ([`Criterion::All`]).
#[derive(Clone, Debug, Default)]
enum Rule {
    #[default]
    Anything,
    Nothing,
    Null,
    Boolean,
    Text {
        max_length: Option<f64>,
        min_length: Option<f64>,
        pattern: Option<String>,
    },
    Number(Box<Number>),
    Const(Json),
    Enum(Vec<Json>),
    Combined(Criterion, Vec<Id>),
    Not(Id),
    /// `if`, `then`, `else`: what they say is not compared.
    Condition,
    Object(Box<Object>),
    Array(Box<Array>),
    /// `$ref`.
    Same(Id),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Criterion {
    All,
    Any,
    One,
}

impl Criterion {
    fn name(self) -> &'static str {
        match self {
            Criterion::All => "allOf",
            Criterion::Any => "anyOf",
            Criterion::One => "oneOf",
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Number {
    maximum: Option<f64>,
    minimum: Option<f64>,
    exclusive_maximum: Option<f64>,
    exclusive_minimum: Option<f64>,
    multiple_of: Option<f64>,
    is_integer: bool,
}

/// What may be beside what is named: properties, or items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Additional {
    #[default]
    Any,
    None,
    As(Id),
}

#[derive(Clone, Debug, Default)]
struct Object {
    properties: Vec<(String, Id)>,
    required: Vec<String>,
    patterns: Vec<(String, Id)>,
    additional: Additional,
    unevaluated: Option<Id>,
    max_properties: Option<f64>,
    min_properties: Option<f64>,
    property_dependencies: Vec<(String, Vec<String>)>,
    schema_dependencies: Vec<(String, Id)>,
}

#[derive(Clone, Debug, Default)]
struct Array {
    /// Of every item.
    each: Option<Id>,
    /// Of the first items, one by one.
    items: Vec<Id>,
    additional: Additional,
    unevaluated: Option<Id>,
    max_items: Option<f64>,
    min_items: Option<f64>,
    max_contains: Option<f64>,
    min_contains: Option<f64>,
    unique: bool,
}

impl JsonSchema {
    pub(super) fn canonical(&self) -> String {
        self.text.to_string()
    }

    pub(super) fn normalized(&self) -> String {
        self.text.sorted().to_string()
    }

    /// Whether walks over it need more room than a thread has.
    fn is_deep(&self) -> bool {
        self.height > read::FLAT
    }

    /// Every regular expression in it must be one.
    pub(super) fn check_patterns(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for schema in &self.all {
            let patterns = match &schema.rule {
                Rule::Text { pattern, .. } => pattern.iter().collect(),
                Rule::Object(object) => object.patterns.iter().map(|(pattern, _)| pattern).collect(),
                _ => Vec::new(),
            };
            for pattern in patterns.into_iter().filter(|pattern| seen.insert(pattern.as_str())) {
                validate::check_pattern(pattern)?;
            }
        }
        Ok(())
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.text.get("title").and_then(Json::as_str)
    }
}

#[cfg(test)]
mod tests;
