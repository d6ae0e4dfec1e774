//! Whether messages of one Protobuf schema can be read with another: by the numbers of fields and how their types lie on the wire.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost_types::{
    DescriptorProto, FieldDescriptorProto,
    field_descriptor_proto::{Label, Type as Wire},
};

use super::Protobuf;

/// What hinders, and where.
struct Found {
    name: &'static str,
    path: String,
}

impl Found {
    /// `%s` stands for `new` and `old`, which the caller knows.
    fn text(&self) -> String {
        let Self { name, path } = self;
        let text = match *name {
            "PACKAGE_CHANGED" => "the package of the %s schema is not that of the %s schema",
            "MESSAGE_REMOVED" => "the %s schema does not have a message that the %s schema has",
            "FIELD_KIND_CHANGED" => "a field is a scalar, a message or a map in the %s schema, and another of the three in the %s schema",
            "FIELD_SCALAR_KIND_CHANGED" => "a field lies on the wire otherwise in the %s schema than in the %s schema",
            "FIELD_NAMED_TYPE_CHANGED" => "the message of a field in the %s schema does not read that in the %s schema",
            "FIELD_NUMERIC_LABEL_CHANGED" => {
                "a number is optional, required or repeated in the %s schema, and another of the three in the %s schema"
            }
            "REQUIRED_FIELD_ADDED" => "a field must be there in the %s schema that the %s schema does not write",
            "REQUIRED_FIELD_REMOVED" => "the %s schema does not have a field that must be there in the %s schema",
            "ONEOF_FIELD_REMOVED" => "the %s schema does not have a field that is one of several in the %s schema",
            "MULTIPLE_FIELDS_MOVED_TO_ONEOF" => "fields exclude each other in the %s schema that stood each by itself in the %s schema",
            _ => "a field excludes others in the %s schema beside which it could stand in the %s schema",
        };
        format!("{{errorType:\"{name}\", description:\"{text}, at {path}\"}}")
    }
}

impl Protobuf {
    /// Why `self` cannot read what `writer` wrote; nothing where it can. `%s` in a text stands for the reader's name, then the writer's.
    pub(in super::super) fn cannot_read(&self, writer: &Protobuf) -> Vec<String> {
        self.hindrances(writer).iter().map(Found::text).collect()
    }

    /// As vectors have them: `! NAME path`.
    #[cfg(test)]
    pub(super) fn differences(&self, writer: &Protobuf) -> Vec<String> {
        self.hindrances(writer).iter().map(|found| format!("! {} {}", found.name, found.path)).collect()
    }

    fn hindrances(&self, writer: &Protobuf) -> Vec<Found> {
        let mut check = Check { before: writer, after: self, found: Vec::new(), imported: HashMap::new() };
        if writer.file.package() != self.file.package() {
            check.add("PACKAGE_CHANGED", "#/".to_owned());
        }
        check.messages("", &writer.file.message_type, &self.file.message_type);
        check.found
    }
}

struct Check<'a> {
    before: &'a Protobuf,
    after: &'a Protobuf,
    found: Vec<Found>,
    /// Pairs of messages that were compared where a field uses them, and whether they differ.
    imported: HashMap<(*const DescriptorProto, *const DescriptorProto), bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    Number,
    Signed,
    Text,
    Fixed32,
    Fixed64,
    Float,
    Double,
}

enum Kind<'a> {
    Scalar(Scalar),
    Message(&'a str),
    Map(&'a FieldDescriptorProto, &'a FieldDescriptorProto),
}

/// A oneof that is one: `optional` in proto3 is written as one with a single field.
fn oneof<'a>(message: &'a DescriptorProto, field: &FieldDescriptorProto) -> Option<&'a str> {
    let index = field.oneof_index.filter(|_| !field.proto3_optional())?;
    message.oneof_decl.get(usize::try_from(index).ok()?).map(|one| one.name())
}

impl Protobuf {
    fn kind<'a>(&'a self, field: &'a FieldDescriptorProto) -> Kind<'a> {
        Kind::Scalar(match field.r#type() {
            Wire::Int32 | Wire::Int64 | Wire::Uint32 | Wire::Uint64 | Wire::Bool | Wire::Enum => Scalar::Number,
            Wire::Sint32 | Wire::Sint64 => Scalar::Signed,
            Wire::String | Wire::Bytes => Scalar::Text,
            Wire::Fixed32 | Wire::Sfixed32 => Scalar::Fixed32,
            Wire::Fixed64 | Wire::Sfixed64 => Scalar::Fixed64,
            Wire::Float => Scalar::Float,
            Wire::Double => Scalar::Double,
            Wire::Message | Wire::Group => {
                let name = field.type_name().trim_start_matches('.');
                return match self.message(name).filter(|message| is_map(message)).map(|message| message.field.as_slice()) {
                    Some([key, value]) => Kind::Map(key, value),
                    _ => Kind::Message(name),
                };
            }
        })
    }

    /// As it is written: in proto3 a single field has none.
    fn label(&self, message: &DescriptorProto, field: &FieldDescriptorProto) -> Option<Label> {
        let written = self.file.syntax() != "proto3" || field.proto3_optional() || field.label() == Label::Repeated;
        let map = matches!(self.kind(field), Kind::Map(..));
        (written && !map && oneof(message, field).is_none()).then(|| field.label())
    }

    fn local<'a>(&'a self, name: &'a str) -> &'a str {
        let package = self.messages.get(name).map_or("", |message| message.package.as_str());
        name.strip_prefix(package).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
    }

    fn message(&self, name: &str) -> Option<&DescriptorProto> {
        self.messages.get(name).map(|message| &message.message)
    }
}

/// The path of a message.
fn at(name: &str) -> String {
    format!("#/{}", name.replace('.', "/"))
}

fn is_map(message: &DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(|options| options.map_entry())
}

impl<'a> Check<'a> {
    fn add(&mut self, name: &'static str, path: String) {
        self.found.push(Found { name, path });
    }

    /// Of one file or of one message. Messages that come, and enums, hinder nobody.
    fn messages(&mut self, scope: &str, before: &'a [DescriptorProto], after: &'a [DescriptorProto]) {
        for old in before.iter().filter(|message| !is_map(message)) {
            let name = super::full(scope, old.name());
            match after.iter().find(|message| message.name() == old.name() && !is_map(message)) {
                None => self.add("MESSAGE_REMOVED", at(&name)),
                Some(new) => self.message(&name, old, new),
            }
        }
    }

    fn message(&mut self, name: &str, before: &'a DescriptorProto, after: &'a DescriptorProto) {
        let by_number =
            |message: &'a DescriptorProto| message.field.iter().map(|field| (field.number(), field)).collect::<BTreeMap<_, _>>();
        let (old, new) = (by_number(before), by_number(after));
        self.oneofs(name, before, after, &old);
        let survives = |of: &str| before.field.iter().any(|field| oneof(before, field) == Some(of) && new.contains_key(&field.number()));
        let declared = |of: &str| after.oneof_decl.iter().any(|one| one.name() == of);
        for number in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let path = |of: Option<&str>| match of {
                Some(of) => format!("{}/{of}/{number}", at(name)),
                None => format!("{}/{number}", at(name)),
            };
            match (old.get(number), new.get(number)) {
                (Some(field), None) => match oneof(before, field) {
                    // A oneof that goes as a whole may go.
                    Some(of) if declared(of) || survives(of) => self.add("ONEOF_FIELD_REMOVED", path(Some(of))),
                    Some(_) => {}
                    None if field.label() == Label::Required => self.add("REQUIRED_FIELD_REMOVED", path(None)),
                    None => {}
                },
                (None, Some(field)) if field.label() == Label::Required => self.add("REQUIRED_FIELD_ADDED", path(None)),
                (Some(old), Some(new)) => {
                    let labels = (self.before.label(before, old), self.after.label(after, new));
                    self.field(&path(oneof(after, new)), old, new, labels);
                }
                _ => {}
            }
        }
        self.messages(name, &before.nested_type, &after.nested_type);
    }

    /// Fields that were independent must not exclude each other now.
    fn oneofs(&mut self, name: &str, before: &DescriptorProto, after: &DescriptorProto, old: &BTreeMap<i32, &FieldDescriptorProto>) {
        let mut members: HashMap<&str, Vec<i32>> = HashMap::new();
        for field in &after.field {
            if let Some(of) = oneof(after, field) {
                members.entry(of).or_default().push(field.number());
            }
        }
        for one in &after.oneof_decl {
            let mut origins = BTreeSet::new();
            let mut alone = 0;
            for number in members.get(one.name()).into_iter().flatten() {
                match old.get(number).map(|field| oneof(before, field)) {
                    Some(Some(of)) => drop(origins.insert(of.to_owned())),
                    Some(None) => {
                        origins.insert(format!("#{number}"));
                        alone += 1;
                    }
                    None => {}
                }
            }
            if origins.len() > 1 {
                let moved = if alone > 1 { "MULTIPLE_FIELDS_MOVED_TO_ONEOF" } else { "FIELD_MOVED_TO_EXISTING_ONEOF" };
                self.add(moved, format!("{}/{}", at(name), one.name()));
            }
        }
    }

    fn field(
        &mut self,
        path: &str,
        before: &'a FieldDescriptorProto,
        after: &'a FieldDescriptorProto,
        labels: (Option<Label>, Option<Label>),
    ) {
        match (self.before.kind(before), self.after.kind(after)) {
            (Kind::Scalar(one), Kind::Scalar(two)) if one != two => self.add("FIELD_SCALAR_KIND_CHANGED", path.to_owned()),
            (Kind::Scalar(kind), Kind::Scalar(_)) => {
                if let (Some(one), Some(two)) = labels
                    && one != two
                    && kind != Scalar::Text
                {
                    self.add("FIELD_NUMERIC_LABEL_CHANGED", path.to_owned());
                }
            }
            (Kind::Message(one), Kind::Message(two)) => self.named(path, one, two),
            (Kind::Map(key, value), Kind::Map(key_after, value_after)) => {
                self.field(path, key, key_after, (None, None));
                self.field(path, value, value_after, (None, None));
            }
            _ => self.add("FIELD_KIND_CHANGED", path.to_owned()),
        }
    }

    fn named(&mut self, path: &str, one: &'a str, two: &'a str) {
        let (before, after) = (self.before, self.after);
        if before.local(one) != after.local(two) {
            return self.add("FIELD_NAMED_TYPE_CHANGED", path.to_owned());
        }
        let (Some(old), Some(new)) = (before.messages.get(one), after.messages.get(two)) else { return };
        // Those of the schema itself are compared where they stand.
        if !old.imported && !new.imported {
            return;
        }
        let pair = (std::ptr::from_ref(&old.message), std::ptr::from_ref(&new.message));
        let differs = match self.imported.get(&pair) {
            Some(differs) => *differs,
            None => {
                // One that holds itself counts as the same meanwhile.
                self.imported.insert(pair, false);
                let known = self.found.len();
                self.message(after.local(two), &old.message, &new.message);
                let differs = self.found.len() > known;
                self.imported.insert(pair, differs);
                differs
            }
        };
        if differs {
            self.add("FIELD_NAMED_TYPE_CHANGED", path.to_owned());
        }
    }
}
