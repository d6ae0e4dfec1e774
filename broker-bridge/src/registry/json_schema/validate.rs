//! Values of a JSON Schema: whether they are any.

use serde_json::Value;

use super::{
    super::schema::Referenced,
    JsonSchema,
    read::{absolute, with_room},
};

/// A schema made for values.
#[derive(Debug)]
pub(crate) struct Validator {
    inner: jsonschema::Validator,
    schema: JsonSchema,
}

/// Levels of schemas, at all levels of a value, that every thread has room for.
const LEVELS_FLAT: usize = 256;

/// What a schema is that does not say its draft, as for Confluent's registry.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// Of the library's own words.
const MESSAGE_CHARS_MAX: usize = 400;

impl Validator {
    /// Nothing is fetched: `$ref` leads within the schema, or to the references by their names or `$id`s.
    pub(in super::super) fn new(text: &str, references: &[Referenced]) -> Result<Self, String> {
        let parsed = JsonSchema::parse(text, references)?;
        let build = || Self::build(text, references);
        let inner = if parsed.is_deep() { with_room(build) } else { build() }?;
        Ok(Self { inner, schema: parsed })
    }

    fn build(text: &str, references: &[Referenced]) -> Result<jsonschema::Validator, String> {
        let read = |text: &str| -> Result<Value, String> {
            let mut schema: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
            if let Some(members) = schema.as_object_mut() {
                members.entry("$schema").or_insert_with(|| DRAFT.into());
            }
            Ok(schema)
        };
        let wrong = |error: &dyn std::fmt::Display| cut(&error.to_string());
        let root = read(text)?;
        let base = root.get("$id").or_else(|| root.get("id")).and_then(Value::as_str).unwrap_or_default();
        let mut registry = jsonschema::Registry::new();
        for reference in references {
            let schema = read(&reference.text).map_err(|error| format!("reference {}: {error}", reference.name))?;
            // As a schema without an `$id` sees it, and as the root does.
            let seen = absolute(base, &reference.name);
            if seen != reference.name {
                registry = registry.add(seen, schema.clone()).map_err(|error| wrong(&error))?;
            }
            registry = registry.add(reference.name.clone(), schema).map_err(|error| wrong(&error))?;
        }
        let registry = registry.prepare().map_err(|error| wrong(&error))?;
        let built = jsonschema::options().offline().with_registry(&registry).build(&root);
        built.map_err(|error| wrong(&error))
    }

    /// The error says where in the value.
    pub(in super::super) fn check(&self, json: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let validate = || {
            self.schema.bears(&value)?;
            self.validate(&value)
        };
        if self.schema.height * nesting(json) > LEVELS_FLAT { with_room(validate) } else { validate() }
    }

    fn validate(&self, value: &Value) -> Result<(), String> {
        self.inner.validate(value).map_err(|error| {
            // The value itself may be long.
            let message = cut(&error.masked().to_string());
            match error.instance_path().as_str().strip_prefix('/') {
                None => message,
                Some(path) => format!("at {}: {message}", path.replace('/', ".")),
            }
        })
    }
}

/// As the validator takes it.
pub(super) fn check_pattern(pattern: &str) -> Result<(), String> {
    let schema = serde_json::json!({"$schema": DRAFT, "pattern": pattern});
    let built = jsonschema::options().offline().build(&schema);
    built.map(drop).map_err(|error| format!("pattern {:?} is no regular expression: {}", cut(pattern), cut(&error.to_string())))
}

/// How deep arrays and objects stand within each other.
pub(in super::super) fn nesting(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn cut(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}
