//! `docs/generated/grpc.md`, written from the protocol definition with its comments, and from what each method asks of its caller.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path};

use prost::Message as _;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

use crate::{
    auth::{Access, METHODS},
    error::Code,
};

const HEAD: &str = "\
# gRPC

<!-- Written by a test of broker-bridge; renew with `MILLRACE_BLESS=1 cargo test -p broker-bridge --lib`. -->

The services on the control ports: the collector's (7101), the bridge's (7102) with its data API, and the engine's (7103). Reflection and
`grpc.health.v1` are there, too. The definitions are in `proto/`.

`Needs` is what a caller must be allowed where authentication is on (`docs/auth.md`); without it nobody is asked. The collector and the engine ask
nobody: who may reach their ports is decided by their network and TLS. A method that is not in this page is refused. `write topic` is: some topic;
which one, the message says, and the same right is asked for there. Lists show what the caller may see.

An error has the code that follows from the REST API's `error_code`, whose meaning and remedy is in the message:
";

/// Comments by the path of what they belong to.
struct Comments(BTreeMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let places = file.source_code_info.iter().flat_map(|info| &info.location);
        let told = places.filter(|place| !place.leading_comments().trim().is_empty());
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self(told.map(|place| (place.path.clone(), one_line(place.leading_comments()))).collect())
    }

    fn at(&self, path: &[i32]) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }
}

/// In a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn link(name: &str, stream: bool) -> String {
    let package = name.trim_start_matches('.').rsplit_once('.').map_or("", |(package, _)| package);
    let anchor = format!("{package}.{}", short(name)).replace('.', "").to_lowercase();
    format!("{}[`{}`](#{anchor})", if stream { "stream of " } else { "" }, short(name))
}

fn needs(path: &str) -> String {
    let is_bridges = path.starts_with("/millrace.control.v1.Bridge/") || path.starts_with("/millrace.data.v1.");
    match METHODS.iter().find(|(method, _)| *method == path).map(|(_, access)| *access) {
        None if is_bridges => panic!("{path} is served and not declared"),
        None => String::new(),
        Some(Access::Open) => "nothing".to_owned(),
        Some(Access::Known) => "to be known".to_owned(),
        Some(Access::Cluster(verb)) => format!("`{} cluster`", verb.name()),
        Some(Access::Of(verb, kind, _) | Access::Any(verb, kind) | Access::All(verb, kind)) => {
            format!("`{} {}`", verb.name(), kind.name())
        }
    }
}

fn field_type(field: &FieldDescriptorProto, owner: &DescriptorProto) -> String {
    let scalar = |kind: Type| kind.as_str_name().trim_start_matches("TYPE_").to_lowercase();
    let entry = owner.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry()) && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    if let Some(entry) = entry {
        return format!("map of {} to {}", field_type(&entry.field[0], entry), field_type(&entry.field[1], entry));
    }
    let named = match field.r#type() {
        Type::Message | Type::Enum => link(field.type_name(), false),
        kind => scalar(kind),
    };
    match () {
        () if field.label() == Label::Repeated => format!("list of {named}"),
        () if field.proto3_optional() => format!("optional {named}"),
        () => named,
    }
}

fn services(page: &mut String, file: &FileDescriptorProto, comments: &Comments) {
    for (at, service) in file.service.iter().enumerate() {
        let at = at as i32;
        write!(page, "\n## `{}.{}`\n\n", file.package(), service.name()).unwrap();
        let about = comments.at(&[6, at]);
        if !about.is_empty() {
            write!(page, "{about}\n\n").unwrap();
        }
        page.push_str("| method | takes | gives | needs | |\n|---|---|---|---|---|\n");
        for (place, method) in service.method.iter().enumerate() {
            let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
            let takes = link(method.input_type(), method.client_streaming());
            let gives = link(method.output_type(), method.server_streaming());
            let about = cell(comments.at(&[6, at, 2, place as i32]));
            writeln!(page, "| `{}` | {takes} | {gives} | {} | {about} |", method.name(), needs(&path)).unwrap();
        }
    }
}

fn messages(page: &mut String, file: &FileDescriptorProto, comments: &Comments) {
    for (at, message) in file.message_type.iter().enumerate() {
        let at = at as i32;
        write!(page, "\n### `{}.{}`\n\n", file.package(), message.name()).unwrap();
        let about = comments.at(&[4, at]);
        if !about.is_empty() {
            write!(page, "{about}\n\n").unwrap();
        }
        if message.field.is_empty() {
            page.push_str("No fields.\n");
            continue;
        }
        page.push_str("| field | type | |\n|---|---|---|\n");
        for (place, field) in message.field.iter().enumerate() {
            let about = cell(comments.at(&[4, at, 2, place as i32]));
            let choice = field.oneof_index.filter(|_| !field.proto3_optional());
            let choice = choice.and_then(|index| message.oneof_decl.get(index as usize)).map(|oneof| oneof.name());
            let choice = choice.map_or(String::new(), |oneof| format!("; one of `{oneof}`"));
            writeln!(page, "| `{}` = {} | {}{choice} | {about} |", field.name(), field.number(), field_type(field, message)).unwrap();
        }
    }
    for (at, kind) in file.enum_type.iter().enumerate() {
        write!(page, "\n### `{}.{}`\n\n", file.package(), kind.name()).unwrap();
        page.push_str("| value | |\n|---|---|\n");
        for (place, value) in kind.value.iter().enumerate() {
            let about = cell(comments.at(&[5, at as i32, 2, place as i32]));
            writeln!(page, "| `{}` = {} | {about} |", value.name(), value.number()).unwrap();
        }
    }
}

fn errors(page: &mut String) {
    let mut by_code: BTreeMap<i32, (String, Vec<String>)> = BTreeMap::new();
    for code in Code::all() {
        let status = code.kind().grpc();
        let (_, numbers) = by_code.entry(status as i32).or_insert_with(|| (format!("{status:?}"), Vec::new()));
        numbers.push(code.number().to_string());
    }
    page.push_str("\n| gRPC | `error_code` | again? |\n|---|---|---|\n");
    for (number, (name, codes)) in by_code {
        let again = if proto::ErrorKind::from_grpc(number.into()).retryable() { "yes, later" } else { "" };
        writeln!(page, "| {number} {name} | {} | {again} |", codes.join(", ")).unwrap();
    }
}

fn page() -> String {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let own: Vec<(&FileDescriptorProto, Comments)> =
        set.file.iter().filter(|file| file.package().starts_with("millrace.")).map(|file| (file, Comments::of(file))).collect();
    let mut page = HEAD.to_owned();
    errors(&mut page);
    for (file, comments) in &own {
        services(&mut page, file, comments);
    }
    page.push_str("\n## Messages\n");
    for (file, comments) in &own {
        messages(&mut page, file, comments);
    }
    page
}

#[test]
fn the_reference_page_says_what_the_protocol_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/generated/grpc.md");
    let page = page();
    if env::var_os("MILLRACE_BLESS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/generated/grpc.md is stale; renew it with: MILLRACE_BLESS=1 cargo test -p broker-bridge --lib");
}

#[test]
fn every_service_and_method_is_explained() {
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    for file in set.file.iter().filter(|file| file.package().starts_with("millrace.")) {
        let comments = Comments::of(file);
        for (at, service) in file.service.iter().enumerate() {
            assert!(!comments.at(&[6, at as i32]).is_empty(), "{} has no comment", service.name());
            for (place, method) in service.method.iter().enumerate() {
                let about = comments.at(&[6, at as i32, 2, place as i32]);
                assert!(!about.is_empty(), "{}.{} has no comment", service.name(), method.name());
            }
        }
    }
}
