//! The records of the registry's topic, in the form that Confluent's registry writes and reads.
//!
//! | key | value |
//! |---|---|
//! | `{"keytype":"SCHEMA","subject":…,"version":…,"magic":1}` | the schema; `"deleted":true` when it is softly deleted; none when it is gone |
//! | `{"keytype":"CONFIG","subject":…,"magic":0}`, without a subject for all | what is set |
//! | `{"keytype":"MODE","subject":…,"magic":0}` | the mode |
//! | `{"keytype":"DELETE_SUBJECT","subject":…,"magic":0}` | the version up to which all are softly deleted |
//! | `{"keytype":"CLEAR_SUBJECT","subject":…,"magic":0}` | the subject or context whose softly deleted versions are forgotten |
//! | `{"keytype":"CONTEXT","tenant":"default","context":…,"magic":0}` | a context that has or had subjects |
//! | `{"keytype":"NOOP","magic":0}` | nothing: a registry looks for the end of the topic with it |

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Schema {
        subject: String,
        version: i32,
    },
    Config(Option<String>),
    Mode(Option<String>),
    DeleteSubject(String),
    ClearSubject(Option<String>),
    Context(String),
    Noop,
    /// Of a registry that knows more.
    Other,
}

#[derive(Serialize, Deserialize)]
struct RawKey {
    keytype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<i32>,
    #[serde(default)]
    magic: u8,
}

/// The only one that a registry outside Confluent's cloud has.
const TENANT: &str = "default";

impl Key {
    pub(super) fn to_bytes(&self) -> Bytes {
        let raw = |keytype: &str, subject: Option<&String>| RawKey {
            keytype: keytype.to_owned(),
            tenant: None,
            context: None,
            subject: subject.cloned(),
            version: None,
            magic: 0,
        };
        let key = match self {
            Key::Schema { subject, version } => RawKey { version: Some(*version), magic: 1, ..raw("SCHEMA", Some(subject)) },
            Key::Config(subject) => raw("CONFIG", subject.as_ref()),
            Key::Mode(subject) => raw("MODE", subject.as_ref()),
            Key::DeleteSubject(subject) => raw("DELETE_SUBJECT", Some(subject)),
            Key::ClearSubject(subject) => raw("CLEAR_SUBJECT", subject.as_ref()),
            Key::Context(context) => RawKey { tenant: Some(TENANT.to_owned()), context: Some(context.clone()), ..raw("CONTEXT", None) },
            Key::Noop | Key::Other => raw("NOOP", None),
        };
        // Texts and numbers alone: there is always a JSON form.
        serde_json::to_vec(&key).unwrap_or_default().into()
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let key: RawKey = serde_json::from_slice(bytes).map_err(|error| format!("the key is not a registry's: {error}"))?;
        let subject = || key.subject.clone().ok_or_else(|| format!("the key of type {} has no subject", key.keytype));
        Ok(match key.keytype.as_str() {
            "SCHEMA" => Key::Schema { subject: subject()?, version: key.version.ok_or("the schema's key has no version")? },
            "CONFIG" => Key::Config(key.subject),
            "MODE" => Key::Mode(key.subject),
            "DELETE_SUBJECT" => Key::DeleteSubject(subject()?),
            "CLEAR_SUBJECT" => Key::ClearSubject(key.subject),
            "CONTEXT" => Key::Context(key.context.ok_or("the context's key has no context")?),
            "NOOP" => Key::Noop,
            _ => Key::Other,
        })
    }
}

/// Another schema that one refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) subject: String,
    /// -1: the newest.
    pub(crate) version: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SchemaValue {
    pub(super) subject: String,
    pub(super) version: i32,
    pub(super) id: i32,
    /// Base64; known where it cannot be computed from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) md5: Option<String>,
    #[serde(default)]
    pub(super) schema_type: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_empty")]
    pub(super) references: Vec<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rule_set: Option<Value>,
    pub(super) schema: String,
    #[serde(default)]
    pub(super) deleted: bool,
}

fn or_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Reference>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Schema { subject: String, version: i32, value: Option<Box<SchemaValue>> },
    Config { subject: Option<String>, value: Option<Map<String, Value>> },
    Mode { subject: Option<String>, mode: Option<String> },
    DeleteSubject { subject: String, version: i32 },
    ClearSubject { subject: Option<String> },
    Context { context: String, gone: bool },
    Nothing,
}

impl Record {
    pub(super) fn key(&self) -> Key {
        match self {
            Record::Schema { subject, version, .. } => Key::Schema { subject: subject.clone(), version: *version },
            Record::Config { subject, .. } => Key::Config(subject.clone()),
            Record::Mode { subject, .. } => Key::Mode(subject.clone()),
            Record::DeleteSubject { subject, .. } => Key::DeleteSubject(subject.clone()),
            Record::ClearSubject { subject } => Key::ClearSubject(subject.clone()),
            Record::Context { context, .. } => Key::Context(context.clone()),
            Record::Nothing => Key::Noop,
        }
    }

    pub(super) fn value(&self) -> Option<Bytes> {
        let with_subject = |subject: &Option<String>, members: Map<String, Value>| {
            let mut all = Map::new();
            if let Some(subject) = subject {
                all.insert("subject".to_owned(), subject.clone().into());
            }
            all.extend(members);
            Value::Object(all)
        };
        let value = match self {
            Record::Schema { value: Some(value), .. } => serde_json::to_vec(value),
            Record::Config { subject, value: Some(value) } => serde_json::to_vec(&with_subject(subject, value.clone())),
            Record::Mode { subject, mode: Some(mode) } => {
                serde_json::to_vec(&with_subject(subject, Map::from_iter([("mode".to_owned(), mode.clone().into())])))
            }
            Record::DeleteSubject { subject, version } => serde_json::to_vec(&serde_json::json!({"subject": subject, "version": version})),
            Record::ClearSubject { subject } => serde_json::to_vec(&with_subject(subject, Map::new())),
            Record::Context { context, gone: false } => serde_json::to_vec(&serde_json::json!({"tenant": TENANT, "context": context})),
            _ => return None,
        };
        value.ok().map(Bytes::from)
    }

    pub(super) fn parse(key: &[u8], value: Option<&[u8]>) -> Result<Self, String> {
        fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, String> {
            serde_json::from_slice(value).map_err(|error| format!("the value is not a registry's: {error}"))
        }
        let value = value.filter(|value| !value.is_empty());
        Ok(match (Key::parse(key)?, value) {
            (Key::Schema { subject, version }, None) => Record::Schema { subject, version, value: None },
            (Key::Schema { subject, version }, Some(value)) => Record::Schema { subject, version, value: Some(read(value)?) },
            (Key::Config(subject), None) => Record::Config { subject, value: None },
            (Key::Config(subject), Some(value)) => {
                let mut value: Map<String, Value> = read(value)?;
                for of_the_record in ["subject", "offset", "ts"] {
                    value.remove(of_the_record);
                }
                value.retain(|_, one| !one.is_null());
                Record::Config { subject, value: Some(value) }
            }
            (Key::Mode(subject), None) => Record::Mode { subject, mode: None },
            (Key::Mode(subject), Some(value)) => {
                let value: Map<String, Value> = read(value)?;
                Record::Mode { subject, mode: value.get("mode").and_then(Value::as_str).map(str::to_owned) }
            }
            (Key::DeleteSubject(subject), Some(value)) => {
                let value: Map<String, Value> = read(value)?;
                let version = value.get("version").and_then(Value::as_i64).and_then(|version| i32::try_from(version).ok());
                Record::DeleteSubject { subject, version: version.ok_or("the deletion has no version")? }
            }
            (Key::ClearSubject(subject), Some(_)) => Record::ClearSubject { subject },
            (Key::Context(context), value) => Record::Context { context, gone: value.is_none() },
            (Key::DeleteSubject(_) | Key::ClearSubject(_) | Key::Noop | Key::Other, _) => Record::Nothing,
        })
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    /// As registries of several releases have written them.
    #[test]
    fn keys_and_values_have_the_bytes_that_other_registries_write() {
        let key = br#"{"keytype":"SCHEMA","subject":"a-value","version":1,"magic":1}"#;
        let value = br#"{"subject":"a-value","version":1,"id":7,"schemaType":"AVRO","references":[{"name":"n","subject":"s","version":2}],"schema":"\"string\"","deleted":false}"#;
        let record = Record::parse(key, Some(value)).unwrap();
        assert_eq!((record.key().to_bytes().as_ref(), record.value().unwrap().as_ref()), (key.as_slice(), value.as_slice()));
        for (key, value) in [
            (r#"{"keytype":"CONFIG","magic":0}"#, r#"{"compatibilityLevel":"FULL"}"#),
            (r#"{"keytype":"CONFIG","subject":"s","magic":0}"#, r#"{"compatibilityLevel":"NONE","subject":"s"}"#),
            (r#"{"keytype":"MODE","magic":0}"#, r#"{"mode":"READONLY"}"#),
            (r#"{"keytype":"DELETE_SUBJECT","subject":"s","magic":0}"#, r#"{"subject":"s","version":3}"#),
            (r#"{"keytype":"CONTEXT","tenant":"default","context":".x","magic":0}"#, r#"{"context":".x","tenant":"default"}"#),
        ] {
            let record = Record::parse(key.as_bytes(), Some(value.as_bytes())).unwrap();
            assert_eq!(record.key().to_bytes(), key.as_bytes(), "{key}");
            let written: Value = serde_json::from_slice(&record.value().unwrap()).unwrap();
            assert_eq!(written, serde_json::from_str::<Value>(value).unwrap(), "{key}");
        }
        // Before references and types; with what later releases add.
        let old = br#"{"subject":"s","version":1,"id":1,"schema":"\"int\"","deleted":true,"offset":3,"ts":5}"#;
        let Record::Schema { value: Some(old), .. } = Record::parse(key, Some(old)).unwrap() else { panic!("a schema") };
        assert!(old.deleted && old.schema_type.is_none() && old.references.is_empty());
        assert_eq!(Record::parse(br#"{"keytype":"NOOP","magic":0}"#, None).unwrap(), Record::Nothing);
        assert_eq!(Record::parse(br#"{"keytype":"ASSOC","magic":0}"#, Some(b"{}")).unwrap(), Record::Nothing);
        assert!(Record::parse(b"k", None).unwrap_err().contains("key"));
        assert!(Record::parse(key, Some(b"[]")).unwrap_err().contains("value"));
    }
}
