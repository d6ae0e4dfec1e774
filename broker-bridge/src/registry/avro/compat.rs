//! Whether a reader's schema can read what a writer's schema wrote, by Avro's schema resolution, with every reason why not.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Avro, Field, Kind, Primitive, Schema};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    NameMismatch,
    FixedSizeMismatch,
    MissingEnumSymbols,
    ReaderFieldMissingDefaultValue,
    TypeMismatch,
    MissingUnionBranch,
}

#[derive(Clone)]
struct Found {
    reason: Reason,
    /// `/fields/0/type`.
    path: String,
    detail: String,
}

impl Found {
    /// `%s` stands for `new` and `old`, which the caller knows.
    fn text(&self) -> String {
        let Self { reason, path, detail } = self;
        let (name, text) = match reason {
            Reason::FixedSizeMismatch => ("FIXED_SIZE_MISMATCH", "a fixed has another size in the %s schema than in the %s schema"),
            Reason::TypeMismatch => ("TYPE_MISMATCH", "the type in the %s schema does not read that in the %s schema"),
            Reason::NameMismatch => ("NAME_MISMATCH", "a type has another name in the %s schema than in the %s schema"),
            Reason::MissingEnumSymbols => ("MISSING_ENUM_SYMBOLS", "an enum of the %s schema does not have all symbols of the %s schema"),
            Reason::MissingUnionBranch => ("MISSING_UNION_BRANCH", "no branch of a union in the %s schema reads what the %s schema writes"),
            Reason::ReaderFieldMissingDefaultValue => {
                ("READER_FIELD_MISSING_DEFAULT_VALUE", "a field of the %s schema has no default and is not in the %s schema")
            }
        };
        format!("{{errorType:'{name}', description:'{text}, at {path}', additionalInfo:'{detail}'}}")
    }
}

impl Avro {
    /// Why `self` cannot read what `writer` wrote; nothing where it can. `%s` in a text stands for the reader's name, then the writer's.
    pub(crate) fn cannot_read(&self, writer: &Avro) -> Vec<String> {
        let mut check = Check {
            reader: self,
            writer,
            path: Vec::new(),
            under_way: HashSet::new(),
            unfit: HashMap::new(),
            left: COMPARISONS_MAX,
            depth: 0,
        };
        let mut texts: Vec<String> = check.schemas(&self.root, &writer.root).iter().map(Found::text).collect();
        if check.left == 0 {
            texts.insert(0, format!("the schemas need more than {COMPARISONS_MAX} comparisons: they count as incompatible"));
        }
        texts
    }
}

/// Of pairs of types, in one check. What is found about a pair of records counts too wherever it is told again.
const COMPARISONS_MAX: u32 = 200_000;
/// Reasons that are told of one pair of types, those within it included.
const FOUND_MAX: usize = 100;
/// Longest path that is told, in bytes.
const PATH_BYTES_MAX: usize = 1_000;
/// Types within types, by way of names too: the walk over them is recursive, and a thread has room for these.
const LEVELS_MAX: usize = 192;

struct Check<'a> {
    reader: &'a Avro,
    writer: &'a Avro,
    path: Vec<String>,
    /// Pairs of records that are being compared, which count as compatible within themselves, and those that were found to be.
    under_way: HashSet<(&'a str, &'a str)>,
    /// What was found about pairs of records that do not fit, as if they stood at the root.
    unfit: HashMap<(&'a str, &'a str), Vec<Found>>,
    /// Comparisons that may still be made.
    left: u32,
    depth: usize,
}

impl<'a> Check<'a> {
    fn found(&self, reason: Reason, detail: String) -> Found {
        Found { reason, path: format!("/{}", self.path.join("/")), detail }
    }

    /// What was found as if it stood at the root, where it stands.
    fn here(&mut self, mut found: Vec<Found>) -> Vec<Found> {
        self.left = self.left.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        if !self.path.is_empty() {
            let prefix = format!("/{}", self.path.join("/"));
            for one in &mut found {
                one.path = if one.path.len() == 1 { prefix.clone() } else { format!("{prefix}{}", one.path) };
                one.path.truncate(one.path.floor_char_boundary(PATH_BYTES_MAX));
            }
        }
        found
    }

    fn at(&mut self, step: impl ToString, check: impl FnOnce(&mut Self) -> Vec<Found>) -> Vec<Found> {
        self.path.push(step.to_string());
        let found = check(self);
        self.path.pop();
        found
    }

    /// Branches of unions are compared as if each stood alone.
    fn alone(&mut self, reader: &'a Schema, writer: &'a Schema) -> Vec<Found> {
        let path = std::mem::take(&mut self.path);
        let found = self.schemas(reader, writer);
        self.path = path;
        found
    }

    fn mismatch(&self, reader: &Schema, writer: &Schema) -> Vec<Found> {
        let (reader, writer) = (self.reader.type_name(reader), self.writer.type_name(writer));
        vec![self.found(Reason::TypeMismatch, format!("{reader} does not read {writer}"))]
    }

    fn missing_branch(&self, writer: &Schema) -> Found {
        self.found(Reason::MissingUnionBranch, format!("nothing reads {}", self.writer.type_name(writer)))
    }

    fn schemas(&mut self, reader: &'a Schema, writer: &'a Schema) -> Vec<Found> {
        if self.depth == LEVELS_MAX {
            return vec![self.found(Reason::TypeMismatch, format!("types lead to one another through more than {LEVELS_MAX} levels"))];
        }
        self.depth += 1;
        let mut found = self.compare(reader, writer);
        found.truncate(FOUND_MAX);
        self.depth -= 1;
        found
    }

    fn compare(&mut self, reader: &'a Schema, writer: &'a Schema) -> Vec<Found> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return vec![self.found(Reason::TypeMismatch, "not compared".to_owned())];
        }
        match (reader, writer) {
            (Schema::Union(_), Schema::Union(branches)) => {
                let mut found = Vec::new();
                for (at, branch) in branches.iter().enumerate() {
                    if self.left == 0 {
                        break;
                    }
                    if !self.alone(reader, branch).is_empty() {
                        found.extend(self.at(at, |check| vec![check.missing_branch(branch)]));
                    }
                }
                found
            }
            (_, Schema::Union(branches)) => branches.iter().flat_map(|branch| self.alone(reader, branch)).collect(),
            (Schema::Union(branches), _) => {
                if branches.iter().any(|branch| self.alone(branch, writer).is_empty()) {
                    return Vec::new();
                }
                vec![self.missing_branch(writer)]
            }
            (Schema::Primitive(to, _), Schema::Primitive(from, _)) if to == from || promotes(*from, *to) => Vec::new(),
            (Schema::Array(reader, _), Schema::Array(writer, _)) => self.at("items", |check| check.schemas(reader, writer)),
            (Schema::Map(reader, _), Schema::Map(writer, _)) => self.at("values", |check| check.schemas(reader, writer)),
            (Schema::Named(to), Schema::Named(from)) => self.named(reader, writer, to, from),
            _ => self.mismatch(reader, writer),
        }
    }

    fn named(&mut self, reader: &'a Schema, writer: &'a Schema, to: &'a str, from: &'a str) -> Vec<Found> {
        let (reader_of, writer_of) = (self.reader, self.writer);
        let (Some(to_type), Some(from_type)) = (reader_of.named(to), writer_of.named(from)) else { return Vec::new() };
        let mut found = Vec::new();
        // Names without their namespaces, as Avro compares them; or by an alias.
        let same_name = to_type.name == from_type.name || to_type.aliases.iter().any(|alias| alias == from);
        let name = |check: &mut Self| {
            if same_name {
                return Vec::new();
            }
            check.at("name", |check| vec![check.found(Reason::NameMismatch, format!("written as {from}"))])
        };
        match (&to_type.kind, &from_type.kind) {
            (Kind::Fixed { size: to_size }, Kind::Fixed { size: from_size }) => {
                found.extend(name(self));
                if to_size != from_size {
                    let detail = format!("{from_size} written, {to_size} read");
                    found.extend(self.at("size", |check| vec![check.found(Reason::FixedSizeMismatch, detail)]));
                }
            }
            (Kind::Enum { symbols: to_symbols, default }, Kind::Enum { symbols: from_symbols, .. }) => {
                found.extend(name(self));
                let missing: BTreeSet<&str> =
                    from_symbols.iter().filter(|symbol| !to_symbols.contains(symbol)).map(String::as_str).collect();
                if !missing.is_empty() && default.is_none() {
                    let detail = format!("[{}]", missing.into_iter().collect::<Vec<_>>().join(", "));
                    found.extend(self.at("symbols", |check| vec![check.found(Reason::MissingEnumSymbols, detail)]));
                }
            }
            (Kind::Record { fields: to_fields, .. }, Kind::Record { fields: from_fields, .. }) => {
                if let Some(known) = self.unfit.get(&(to, from)).cloned() {
                    return self.here(known);
                }
                if !self.under_way.insert((to, from)) {
                    return Vec::new();
                }
                let path = std::mem::take(&mut self.path);
                found.extend(name(self));
                found.extend(self.at("fields", |check| check.fields(to_fields, from_fields, writer)));
                found.truncate(FOUND_MAX);
                self.path = path;
                if !found.is_empty() {
                    self.under_way.remove(&(to, from));
                    self.unfit.insert((to, from), found.clone());
                }
                return self.here(found);
            }
            _ => return self.mismatch(reader, writer),
        }
        found
    }

    fn fields(&mut self, to: &'a [Field], from: &'a [Field], writer: &'a Schema) -> Vec<Found> {
        let mut found = Vec::new();
        for (at, field) in to.iter().enumerate() {
            let by_name = |name: &String| from.iter().find(|other| other.name == *name);
            let other = by_name(&field.name).or_else(|| field.aliases.iter().find_map(by_name));
            found.extend(self.at(at, |check| match other {
                Some(other) => check.at("type", |check| check.schemas(&field.schema, &other.schema)),
                None if field.default.is_some() => Vec::new(),
                // An enum's own default stands in for the field's; Avro then compares the enum with the record.
                None if check.reader.enum_default(&field.schema) => check.at("type", |check| check.mismatch(&field.schema, writer)),
                None => vec![check.found(Reason::ReaderFieldMissingDefaultValue, field.name.clone())],
            }));
        }
        found
    }
}

impl Avro {
    fn enum_default(&self, schema: &Schema) -> bool {
        let Schema::Named(name) = schema else { return false };
        matches!(self.named(name).map(|named| &named.kind), Some(Kind::Enum { default: Some(_), .. }))
    }
}

/// Whether a reader that expects `to` can take `from`.
fn promotes(from: Primitive, to: Primitive) -> bool {
    use Primitive::{Bytes, Double, Float, Int, Long, String};
    matches!((from, to), (Int, Long | Float | Double) | (Long, Float | Double) | (Float, Double) | (String, Bytes) | (Bytes, String))
}
