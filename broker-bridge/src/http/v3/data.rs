//! A record's key or value in v3: any type, with the schema it is written with.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::records::bad;
use crate::{
    codec::{self, Codec, Form},
    error::{BridgeError, Code, Result},
    registry::{By, Chosen, Kind, Registry, Strategy, Wanted},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Data<'a> {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    subject: Option<String>,
    #[serde(default)]
    subject_name_strategy: Option<String>,
    #[serde(default)]
    schema_id: Option<i32>,
    #[serde(default)]
    schema_version: Option<i32>,
    #[serde(default)]
    schema: Option<String>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// What a record's result tells about a key or value.
#[derive(Clone, Serialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_id: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema_version: Option<i32>,
    size: usize,
}

impl Data<'_> {
    /// The bytes to write, of a record for `topic`, and what its receipt says of them.
    pub(super) async fn bytes(self, registry: &Registry, topic: &str, is_key: bool) -> Result<(Option<Bytes>, Option<Part>)> {
        let field = if is_key { "key" } else { "value" };
        let (kind, form) = match self.kind.as_deref() {
            None => return self.with_schema(None, registry, topic, is_key).await,
            Some(name) => *TYPES.iter().find(|(known, _)| *known == name).ok_or_else(|| {
                let known: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
                bad(format!("{field}.type={name:?} is not known; there are {}", known.join(", ")))
            })?,
        };
        let format = match form {
            Type::Schema(kind) => return self.with_schema(Some(kind), registry, topic, is_key).await,
            Type::Plain(format) => format,
        };
        if let Some(name) = self.about_schemas().next() {
            return Err(bad(format!("'type={kind}' cannot be used with '{name}'.")));
        }
        let part = |size| Some(Part { kind, subject: None, schema_id: None, schema_version: None, size });
        let Some(raw) = self.data else { return Ok((None, part(0))) };
        let Some(Codec { form: Form::Plain { parse, .. }, .. }) = codec::by_name(format) else {
            return Err(BridgeError::new(Code::Internal, format!("no codec {format}")));
        };
        let bytes = parse(raw).map_err(|reason| {
            let shown: String = raw.get().chars().take(40).collect();
            match kind {
                "BINARY" => bad(format!("data={shown} is not a base64 string ({field}: {reason}).")),
                _ => bad(format!("data={shown} is not {kind} ({field}: {reason}).")),
            }
        })?;
        let size = bytes.len();
        Ok((Some(bytes), part(size)))
    }

    /// Members that only make sense with a schema, of those that are there.
    fn about_schemas(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("subject_name_strategy", self.subject_name_strategy.is_some()),
            ("subject", self.subject.is_some()),
            ("schema_id", self.schema_id.is_some()),
            ("schema_version", self.schema_version.is_some()),
            ("schema", self.schema.is_some()),
        ];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name)
    }

    /// Without a type, it is that of the schema; without anything, the newest schema of the topic's subject counts.
    async fn with_schema(
        self,
        kind: Option<Kind>,
        registry: &Registry,
        topic: &str,
        is_key: bool,
    ) -> Result<(Option<Bytes>, Option<Part>)> {
        let field = if is_key { "key" } else { "value" };
        if self.subject.is_some() && self.subject_name_strategy.is_some() {
            return Err(bad("Only one of 'subject_name_strategy' or 'subject' can be used.".to_owned()));
        }
        let strategy = match self.subject_name_strategy.as_deref() {
            None => Strategy::default(),
            Some(name) => {
                let known = Strategy::ALL.iter().find(|(_, known)| *known == name).map(|(strategy, _)| *strategy);
                known.ok_or_else(|| {
                    bad(format!("{field}.subject_name_strategy={name:?} is none of TOPIC_NAME, RECORD_NAME, TOPIC_RECORD_NAME"))
                })?
            }
        };
        let by = match (self.schema_id, self.schema_version, &self.schema) {
            (Some(id), None, None) => By::Id(id),
            (None, Some(version), None) => By::Version(version),
            (None, None, Some(text)) if kind.is_some() => By::Text(text),
            (None, None, Some(_)) => return Err(bad(format!("'{field}.schema' needs a 'type': AVRO, JSONSCHEMA or PROTOBUF"))),
            (None, None, None) => By::Latest,
            _ => return Err(bad("Only one of 'schema_id', 'schema_version' or 'schema' can be used.".to_owned())),
        };
        let wanted = Wanted { topic, is_key, kind, subject: self.subject.as_deref(), strategy, by };
        let Chosen { schema, subject, version } = registry.choose(&wanted).await?;
        let bytes = self.data.map(|raw| schema.encode(raw.get())).transpose();
        let bytes = bytes.map_err(|reason| bad(format!("{field}.data does not fit schema {}: {reason}", schema.id)))?;
        let kind = TYPES.iter().find(|(_, form)| *form == Type::Schema(schema.kind)).map_or("", |(name, _)| name);
        let size = bytes.as_ref().map_or(0, Bytes::len);
        Ok((bytes, Some(Part { kind, subject: Some(subject), schema_id: Some(schema.id), schema_version: Some(version), size })))
    }
}

/// What `type` can be.
const TYPES: &[(&str, Type)] = &[
    ("BINARY", Type::Plain("binary")),
    ("JSON", Type::Plain("json")),
    ("STRING", Type::Plain("text")),
    ("AVRO", Type::Schema(Kind::Avro)),
    ("JSONSCHEMA", Type::Schema(Kind::Json)),
    ("PROTOBUF", Type::Schema(Kind::Protobuf)),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    /// The codec of this name.
    Plain(&'static str),
    Schema(Kind),
}
