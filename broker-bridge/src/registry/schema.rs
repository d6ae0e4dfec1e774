//! One schema of any type: read, written, compared.

use super::{
    avro::{Avro, Strictness},
    json_schema::JsonSchema,
    protobuf::Protobuf,
};

/// What a schema is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Avro,
    Json,
    Protobuf,
}

impl Kind {
    pub(super) const ALL: [(Kind, &'static str); 3] = [(Kind::Json, "JSON"), (Kind::Protobuf, "PROTOBUF"), (Kind::Avro, "AVRO")];

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("AVRO", |(_, name)| name)
    }
}

/// The text of a schema that another one refers to, by the name that it refers to it with.
#[derive(Clone, Debug)]
pub(super) struct Referenced {
    pub(super) name: String,
    pub(super) text: String,
}

#[derive(Clone, Debug)]
pub(super) enum Parsed {
    Avro(Avro),
    Json(JsonSchema),
    Protobuf(Box<Protobuf>),
}

impl Parsed {
    /// `references`: each behind those that it refers to itself. `is_new`: every rule counts; what is stored was accepted once.
    pub(super) fn parse(kind: Kind, text: &str, references: &[Referenced], is_new: bool) -> Result<Self, String> {
        match kind {
            Kind::Avro => {
                let texts: Vec<String> = references.iter().map(|reference| reference.text.clone()).collect();
                Avro::parse(text, &texts, if is_new { Strictness::New } else { Strictness::Stored }).map(Parsed::Avro)
            }
            Kind::Json => {
                let schema = JsonSchema::parse(text, references)?;
                if is_new {
                    schema.check_patterns()?;
                }
                Ok(Parsed::Json(schema))
            }
            Kind::Protobuf => Protobuf::parse(text, references).map(|parsed| Parsed::Protobuf(Box::new(parsed))),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Parsed::Avro(_) => Kind::Avro,
            Parsed::Json(_) => Kind::Json,
            Parsed::Protobuf(_) => Kind::Protobuf,
        }
    }

    /// The text to store.
    pub(super) fn canonical(&self) -> String {
        match self {
            Parsed::Avro(schema) => schema.canonical(),
            Parsed::Json(schema) => schema.canonical(),
            Parsed::Protobuf(schema) => schema.canonical(),
        }
    }

    pub(super) fn normalized(&self) -> String {
        match self {
            Parsed::Avro(schema) => schema.normalized(),
            Parsed::Json(schema) => schema.normalized(),
            Parsed::Protobuf(schema) => schema.normalized(),
        }
    }

    /// In a format that a request names; an unknown one is the canonical text.
    pub(super) fn formatted(&self, format: &str) -> String {
        match (self, format) {
            (Parsed::Avro(schema), "resolved") => schema.resolved(),
            (Parsed::Protobuf(schema), "serialized") => schema.serialized(),
            _ => self.canonical(),
        }
    }

    /// Whether both say the same in other words: for Avro with references and written out, for Protobuf as source and as descriptor.
    pub(super) fn same(&self, other: &Parsed) -> bool {
        match (self, other) {
            (Parsed::Protobuf(one), Parsed::Protobuf(two)) => one.same(two),
            (Parsed::Avro(one), Parsed::Avro(two)) => one.resolved() == two.resolved(),
            _ => false,
        }
    }

    /// Why data of `writer` cannot be read with `self`. `%s` stands for the reader's and then for the writer's name.
    pub(super) fn cannot_read(&self, writer: &Parsed) -> Vec<String> {
        match (self, writer) {
            (Parsed::Avro(reader), Parsed::Avro(writer)) => reader.cannot_read(writer),
            (Parsed::Json(reader), Parsed::Json(writer)) => reader.cannot_read(writer),
            (Parsed::Protobuf(reader), Parsed::Protobuf(writer)) => reader.cannot_read(writer),
            _ => vec!["schemas of different types do not read each other".to_owned()],
        }
    }
}
