//! Protobuf schemas: read as source or as a serialised descriptor (with references as imports), written as source, compared.

mod compat;
mod data;
mod known;
mod write;

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message as _;
use prost_reflect::DescriptorPool;
use prost_types::{DescriptorProto, FileDescriptorProto};
use protox::{
    Compiler, Error,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver},
};

pub(crate) use self::data::Messages;
use super::schema::Referenced;

#[derive(Clone, Debug)]
pub(crate) struct Protobuf {
    /// As it was sent, where that was source.
    source: Option<String>,
    file: FileDescriptorProto,
    /// With the imported ones, by full name.
    messages: HashMap<String, Message>,
    pool: DescriptorPool,
}

#[derive(Clone, Debug)]
struct Message {
    package: String,
    /// From another file.
    imported: bool,
    message: DescriptorProto,
}

/// The name that a schema has while it is read: none may import it.
const OWN_NAME: &str = "millrace-schema.proto";

/// The schema itself, what it refers to, and what needs no reference.
struct Sources {
    files: HashMap<String, File>,
}

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, Error> {
        let Some(file) = self.files.get(name) else {
            let source = known::source(name).ok_or_else(|| Error::file_not_found(name))?;
            return File::from_source(name, &source);
        };
        Ok(match file.source() {
            Some(source) => File::from_source(name, source)?,
            None => File::from_file_descriptor_proto(file.file_descriptor_proto().clone()),
        })
    }
}

/// A descriptor as clients send it, in base64.
fn descriptor(text: &str) -> Option<FileDescriptorProto> {
    let bytes = STANDARD.decode(text.trim()).ok()?;
    FileDescriptorProto::decode(bytes.as_slice()).ok()
}

fn file(name: &str, text: &str) -> Result<File, String> {
    match descriptor(text) {
        Some(descriptor) => Ok(File::from_file_descriptor_proto(FileDescriptorProto { name: Some(name.to_owned()), ..descriptor })),
        None => File::from_source(name, text).map_err(|error| format!("{error:?}")),
    }
}

impl Protobuf {
    pub(super) fn parse(text: &str, references: &[Referenced]) -> Result<Self, String> {
        let mut files = HashMap::from([(OWN_NAME.to_owned(), file(OWN_NAME, text)?)]);
        for reference in references {
            files.insert(reference.name.clone(), file(&reference.name, &reference.text)?);
        }
        let mut resolver = ChainFileResolver::new();
        resolver.add(Sources { files });
        // What every compiler brings along.
        resolver.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(resolver);
        compiler.include_imports(true).open_file(OWN_NAME).map_err(|error| format!("{error:?}"))?;
        let mut messages = HashMap::new();
        let mut own = None;
        for file in compiler.file_descriptor_set().file {
            let imported = file.name() != OWN_NAME;
            let of_file = |message: &DescriptorProto| Message { package: file.package().to_owned(), imported, message: message.clone() };
            for message in &file.message_type {
                collect(&mut messages, file.package(), message, &of_file);
            }
            if !imported {
                own = Some(FileDescriptorProto { name: None, source_code_info: None, ..file });
            }
        }
        let file = own.ok_or("the schema was not read")?;
        let source = descriptor(text).is_none().then(|| text.trim().to_owned());
        Ok(Self { source, file, messages, pool: compiler.descriptor_pool() })
    }

    pub(super) fn canonical(&self) -> String {
        self.source.clone().unwrap_or_else(|| write::source(&self.file))
    }

    pub(super) fn normalized(&self) -> String {
        write::source(&self.file)
    }

    /// Of its first message.
    pub(super) fn name(&self) -> Option<String> {
        Some(full(self.file.package(), self.file.message_type.first()?.name()))
    }

    /// The descriptor, in base64.
    pub(super) fn serialized(&self) -> String {
        STANDARD.encode(self.file.encode_to_vec())
    }

    /// Whether both describe the same, however they are written.
    pub(super) fn same(&self, other: &Protobuf) -> bool {
        let plain = |file: &FileDescriptorProto| write::source(file);
        plain(&self.file) == plain(&other.file)
    }
}

fn full(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn collect(
    messages: &mut HashMap<String, Message>,
    scope: &str,
    message: &DescriptorProto,
    of_file: &impl Fn(&DescriptorProto) -> Message,
) {
    let name = full(scope, message.name());
    for nested in &message.nested_type {
        collect(messages, &name, nested, of_file);
    }
    messages.insert(name, of_file(message));
}

#[cfg(test)]
mod tests;
