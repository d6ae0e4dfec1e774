//! A descriptor as source: one text for equal schemas, with types by their full names. Options that are not Protobuf's own are left out.

use std::fmt::Write as _;

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

pub(super) fn source(file: &FileDescriptorProto) -> String {
    let mut out = Out::default();
    let syntax = file.syntax.as_deref().filter(|syntax| !syntax.is_empty()).unwrap_or("proto2");
    out.line(&format!("syntax = \"{syntax}\";"));
    if let Some(package) = &file.package {
        out.line(&format!("package {package};"));
    }
    for (at, import) in file.dependency.iter().enumerate() {
        let is = |all: &[i32]| all.iter().any(|one| usize::try_from(*one) == Ok(at));
        let how = if is(&file.public_dependency) {
            "public "
        } else if is(&file.weak_dependency) {
            "weak "
        } else {
            ""
        };
        out.line(&format!("import {how}\"{import}\";"));
    }
    if let Some(options) = &file.options {
        let texts = [
            ("java_package", &options.java_package),
            ("java_outer_classname", &options.java_outer_classname),
            ("go_package", &options.go_package),
            ("objc_class_prefix", &options.objc_class_prefix),
            ("csharp_namespace", &options.csharp_namespace),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                out.line(&format!("option {name} = {value:?};"));
            }
        }
        for (name, value) in [("java_multiple_files", options.java_multiple_files), ("deprecated", options.deprecated)] {
            if let Some(value) = value {
                out.line(&format!("option {name} = {value};"));
            }
        }
    }
    let syntax3 = syntax == "proto3";
    for message in &file.message_type {
        out.message(message, syntax3);
    }
    for one in &file.enum_type {
        out.enumeration(one);
    }
    out.extensions(&file.extension, syntax3);
    for service in &file.service {
        out.open(&format!("service {}", service.name()));
        for method in &service.method {
            let stream = |is: bool| if is { "stream " } else { "" };
            out.line(&format!(
                "rpc {} ({}{}) returns ({}{});",
                method.name(),
                stream(method.client_streaming()),
                method.input_type(),
                stream(method.server_streaming()),
                method.output_type()
            ));
        }
        out.close();
    }
    out.text
}

#[derive(Default)]
struct Out {
    text: String,
    depth: usize,
}

impl Out {
    fn line(&mut self, text: &str) {
        let _infallible = writeln!(self.text, "{:1$}{text}", "", self.depth * 2);
    }

    fn open(&mut self, text: &str) {
        self.line(&format!("{text} {{"));
        self.depth += 1;
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    fn message(&mut self, message: &DescriptorProto, syntax3: bool) {
        self.open(&format!("message {}", message.name()));
        self.body(message, syntax3);
        self.close();
    }

    fn body(&mut self, message: &DescriptorProto, syntax3: bool) {
        for (name, value) in message.options.iter().flat_map(|options| [("deprecated", options.deprecated)]) {
            if let Some(value) = value {
                self.line(&format!("option {name} = {value};"));
            }
        }
        let mut written = Vec::new();
        for field in &message.field {
            match field.oneof_index.filter(|_| !field.proto3_optional()) {
                None => self.field(message, field, syntax3),
                Some(index) if !written.contains(&index) => {
                    written.push(index);
                    let name = usize::try_from(index).ok().and_then(|index| message.oneof_decl.get(index)).map_or("", |one| one.name());
                    self.open(&format!("oneof {name}"));
                    for member in message.field.iter().filter(|member| member.oneof_index == Some(index)) {
                        let (kind, rest) = (type_name(member), options(member));
                        self.line(&format!("{kind} {} = {}{rest};", member.name(), member.number()));
                    }
                    self.close();
                }
                Some(_) => {}
            }
        }
        // A range of messages ends before its end.
        for range in &message.reserved_range {
            self.line(&format!("reserved {};", range_text(range.start(), range.end() - 1, MESSAGE_MAX)));
        }
        for name in &message.reserved_name {
            self.line(&format!("reserved \"{name}\";"));
        }
        for range in &message.extension_range {
            self.line(&format!("extensions {};", range_text(range.start(), range.end() - 1, MESSAGE_MAX)));
        }
        self.extensions(&message.extension, syntax3);
        let is_map = |one: &DescriptorProto| one.options.as_ref().is_some_and(|options| options.map_entry());
        let is_group = |one: &DescriptorProto| {
            message
                .field
                .iter()
                .any(|field| field.r#type() == Type::Group && field.type_name().ends_with(&format!(".{}.{}", message.name(), one.name())))
        };
        for nested in message.nested_type.iter().filter(|one| !is_map(one) && !is_group(one)) {
            self.message(nested, syntax3);
        }
        for one in &message.enum_type {
            self.enumeration(one);
        }
    }

    fn field(&mut self, message: &DescriptorProto, field: &FieldDescriptorProto, syntax3: bool) {
        let nested = |name: &str| message.nested_type.iter().find(|one| one.name() == name);
        let last = field.type_name().rsplit('.').next().unwrap_or_default();
        if let Some(entry) = nested(last).filter(|one| one.options.as_ref().is_some_and(|options| options.map_entry()))
            && let [key, value] = entry.field.as_slice()
        {
            let (key, value, rest) = (type_name(key), type_name(value), options(field));
            return self.line(&format!("map<{key}, {value}> {} = {}{rest};", field.name(), field.number()));
        }
        let label = match field.label() {
            Label::Repeated => "repeated ",
            Label::Required => "required ",
            Label::Optional if syntax3 && !field.proto3_optional() => "",
            Label::Optional => "optional ",
        };
        if field.r#type() == Type::Group
            && let Some(group) = nested(last)
        {
            self.open(&format!("{label}group {last} = {}", field.number()));
            self.body(group, syntax3);
            return self.close();
        }
        let (kind, rest) = (type_name(field), options(field));
        self.line(&format!("{label}{kind} {} = {}{rest};", field.name(), field.number()));
    }

    fn enumeration(&mut self, one: &EnumDescriptorProto) {
        self.open(&format!("enum {}", one.name()));
        if one.options.as_ref().is_some_and(|options| options.allow_alias()) {
            self.line("option allow_alias = true;");
        }
        for value in &one.value {
            let deprecated = value.options.as_ref().is_some_and(|options| options.deprecated());
            self.line(&format!("{} = {}{};", value.name(), value.number(), if deprecated { " [deprecated = true]" } else { "" }));
        }
        for range in &one.reserved_range {
            self.line(&format!("reserved {};", range_text(range.start(), range.end(), i32::MAX)));
        }
        for name in &one.reserved_name {
            self.line(&format!("reserved \"{name}\";"));
        }
        self.close();
    }

    fn extensions(&mut self, all: &[FieldDescriptorProto], syntax3: bool) {
        for field in all {
            self.open(&format!("extend {}", field.extendee()));
            self.field(&DescriptorProto::default(), field, syntax3);
            self.close();
        }
    }
}

/// The highest number of a field.
const MESSAGE_MAX: i32 = (1 << 29) - 1;

fn range_text(start: i32, end: i32, most: i32) -> String {
    match end {
        _ if start == end => start.to_string(),
        _ if end == most => format!("{start} to max"),
        _ => format!("{start} to {end}"),
    }
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Double => "double",
        Type::Float => "float",
        Type::Int64 => "int64",
        Type::Uint64 => "uint64",
        Type::Int32 => "int32",
        Type::Fixed64 => "fixed64",
        Type::Fixed32 => "fixed32",
        Type::Bool => "bool",
        Type::String => "string",
        Type::Bytes => "bytes",
        Type::Uint32 => "uint32",
        Type::Sfixed32 => "sfixed32",
        Type::Sfixed64 => "sfixed64",
        Type::Sint32 => "sint32",
        Type::Sint64 => "sint64",
        Type::Group | Type::Message | Type::Enum => return field.type_name().to_owned(),
    }
    .to_owned()
}

fn options(field: &FieldDescriptorProto) -> String {
    let mut all = Vec::new();
    if let Some(value) = &field.default_value {
        // The descriptor has the bytes' escapes already.
        all.push(match field.r#type() {
            Type::String => format!("default = {}", serde_json::Value::from(value.as_str())),
            Type::Bytes => format!("default = \"{value}\""),
            _ => format!("default = {value}"),
        });
    }
    if let Some(options) = &field.options {
        all.extend(options.packed.map(|packed| format!("packed = {packed}")));
        all.extend(options.deprecated.map(|deprecated| format!("deprecated = {deprecated}")));
    }
    if all.is_empty() { String::new() } else { format!(" [{}]", all.join(", ")) }
}
