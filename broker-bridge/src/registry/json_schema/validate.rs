//! Values of a JSON Schema: whether they are any.

use serde_json::Value;

use super::{super::schema::Referenced, read::absolute};

/// A schema made for values.
#[derive(Debug)]
pub(crate) struct Validator(jsonschema::Validator);

/// What a schema is that does not say its draft, as for Confluent's registry.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// Of the library's own words.
const MESSAGE_CHARS_MAX: usize = 400;

impl Validator {
    /// Nothing is fetched: `$ref` leads within the schema, or to the references by their names or `$id`s.
    pub(in super::super) fn new(text: &str, references: &[Referenced]) -> Result<Self, String> {
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
        built.map(Self).map_err(|error| wrong(&error))
    }

    /// The error says where in the value.
    pub(in super::super) fn check(&self, json: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        self.0.validate(&value).map_err(|error| {
            // The value itself may be long.
            let message = cut(&error.masked().to_string());
            match error.instance_path().as_str().strip_prefix('/') {
                None => message,
                Some(path) => format!("at {}: {message}", path.replace('/', ".")),
            }
        })
    }
}

fn cut(message: &str) -> String {
    message.chars().take(MESSAGE_CHARS_MAX).collect()
}
