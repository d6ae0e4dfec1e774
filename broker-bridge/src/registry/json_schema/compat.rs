//! What changed between two JSON Schemas, and whether a reader of the newer one bears it.

use std::collections::{BTreeSet, HashMap, HashSet};

use regex::Regex;

use super::{Additional, Array, Criterion, Id, JsonSchema, Number, Object, Rule, Schema, read::with_room};

/// A difference by the name that registries have for it, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: &'static str,
    /// `#/properties/a`.
    path: String,
}

/// Differences with which what was valid before is valid still.
const COMPATIBLE: &[&str] = &[
    "ADDITIONAL_ITEMS_ADDED",
    "ADDITIONAL_ITEMS_EXTENDED",
    "ADDITIONAL_PROPERTIES_ADDED",
    "ADDITIONAL_PROPERTIES_EXTENDED",
    "COMBINED_TYPE_EXTENDED",
    "DEFAULT_CHANGED",
    "DEPENDENCY_ARRAY_NARROWED",
    "DEPENDENCY_ARRAY_REMOVED",
    "DEPENDENCY_SCHEMA_REMOVED",
    "DESCRIPTION_CHANGED",
    "ENUM_ARRAY_EXTENDED",
    "EXCLUSIVE_MAXIMUM_INCREASED",
    "EXCLUSIVE_MAXIMUM_REMOVED",
    "EXCLUSIVE_MINIMUM_DECREASED",
    "EXCLUSIVE_MINIMUM_REMOVED",
    "ID_CHANGED",
    "ITEM_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL",
    "ITEM_ADDED_TO_CLOSED_CONTENT_MODEL",
    "ITEM_REMOVED_FROM_OPEN_CONTENT_MODEL",
    "ITEM_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL",
    "ITEM_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL",
    "ITEM_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL",
    "MAXIMUM_INCREASED",
    "MAXIMUM_REMOVED",
    "MAX_CONTAINS_INCREASED",
    "MAX_CONTAINS_REMOVED",
    "MAX_ITEMS_INCREASED",
    "MAX_ITEMS_REMOVED",
    "MAX_LENGTH_INCREASED",
    "MAX_LENGTH_REMOVED",
    "MAX_PROPERTIES_INCREASED",
    "MAX_PROPERTIES_REMOVED",
    "MINIMUM_DECREASED",
    "MINIMUM_REMOVED",
    "MIN_CONTAINS_DECREASED",
    "MIN_CONTAINS_REMOVED",
    "MIN_ITEMS_DECREASED",
    "MIN_ITEMS_REMOVED",
    "MIN_LENGTH_DECREASED",
    "MIN_LENGTH_REMOVED",
    "MIN_PROPERTIES_DECREASED",
    "MIN_PROPERTIES_REMOVED",
    "MULTIPLE_OF_REDUCED",
    "MULTIPLE_OF_REMOVED",
    "NOT_TYPE_NARROWED",
    "OPTIONAL_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL",
    "PATTERN_REMOVED",
    "PRODUCT_TYPE_NARROWED",
    "PROPERTY_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL",
    "PROPERTY_REMOVED_FROM_OPEN_CONTENT_MODEL",
    "PROPERTY_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL",
    "PROPERTY_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL",
    "PROPERTY_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL",
    "REQUIRED_ATTRIBUTE_REMOVED",
    "REQUIRED_ATTRIBUTE_WITH_DEFAULT_ADDED",
    "REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_UNOPEN_CONTENT_MODEL",
    "SCHEMA_REMOVED",
    "SUM_TYPE_EXTENDED",
    "TITLE_CHANGED",
    "TYPE_EXTENDED",
    "UNEVALUATED_ITEMS_ADDED",
    "UNEVALUATED_ITEMS_EXTENDED",
    "UNEVALUATED_PROPERTIES_ADDED",
    "UNEVALUATED_PROPERTIES_EXTENDED",
    "UNIQUE_ITEMS_REMOVED",
];

fn fits(found: &[Found]) -> bool {
    found.iter().all(|one| COMPATIBLE.contains(&one.name))
}

impl Found {
    /// `%s` stands for `new` and `old`, which the caller knows.
    fn text(&self) -> String {
        let Self { name, path } = self;
        let text = match *name {
            "REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL" => {
                "a property must be there in the %s schema that was not known to the %s schema"
            }
            "PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL" | "ITEM_REMOVED_FROM_CLOSED_CONTENT_MODEL" => {
                "the %s schema takes only what it names, and does not name what the %s schema names"
            }
            name if name.contains("_ADDED_TO_OPEN_CONTENT_MODEL") => {
                "the %s schema limits what could be anything in the %s schema, which takes what it does not name"
            }
            name if name.contains("_REMOVED_NOT_COVERED_") => {
                "what the %s schema says of all that it does not name does not take what the %s schema names"
            }
            name if name.contains("_ADDED_NOT_COVERED_") => {
                "what the %s schema names does not take what the %s schema says of all that it does not name"
            }
            "TYPE_CHANGED" | "TYPE_NARROWED" | "COMBINED_TYPE_CHANGED" | "COMBINED_TYPE_SUBSCHEMAS_CHANGED" | "ENUM_ARRAY_CHANGED" => {
                "the type in the %s schema does not take all that it takes in the %s schema"
            }
            "PATTERN_CHANGED" | "MULTIPLE_OF_CHANGED" | "DEPENDENCY_ARRAY_CHANGED" => {
                "what the %s schema asks for is not what the %s schema asks for"
            }
            name if name.ends_with("_INCREASED") || name.ends_with("_EXPANDED") => {
                "the value in the %s schema is higher than in the %s schema"
            }
            name if name.ends_with("_DECREASED") => "the value in the %s schema is lower than in the %s schema",
            name if name.ends_with("_NARROWED") => "the %s schema leaves less to choose from than the %s schema",
            name if name.ends_with("_EXTENDED") => "the %s schema asks for more than the %s schema",
            _ => "the %s schema has a limit that the %s schema does not have",
        };
        format!("{{errorType:\"{name}\", description:\"{text}, at {path}\"}}")
    }
}

impl JsonSchema {
    /// Why what is valid for `writer` may not be valid for `self`. `%s` in a text stands for the reader's name, then the writer's.
    pub(in super::super) fn cannot_read(&self, writer: &JsonSchema) -> Vec<String> {
        if self.is_deep() || writer.is_deep() {
            return with_room(|| Ok(self.hindrances(writer))).unwrap_or_else(|reason| vec![reason]);
        }
        self.hindrances(writer)
    }

    fn hindrances(&self, writer: &JsonSchema) -> Vec<String> {
        let (found, complete) = self.compare(writer, false);
        let mut texts: Vec<String> = found.iter().map(Found::text).collect();
        if !complete {
            texts.insert(0, format!("the schemas need more than {COMPARISONS_MAX} comparisons: they count as incompatible"));
        }
        texts
    }

    /// All differences as vectors have them: `! NAME path` what hinders, `NAME path` what does not.
    #[cfg(test)]
    pub(super) fn differences(&self, writer: &JsonSchema) -> Vec<String> {
        let marked = |found: Found| {
            let mark = if COMPATIBLE.contains(&found.name) { "" } else { "! " };
            format!("{mark}{} {}", found.name, found.path)
        };
        self.compare(writer, true).0.into_iter().map(marked).collect()
    }

    /// What hinders (the first of that), or with `all` every difference; and whether the bound of comparisons was enough.
    fn compare(&self, writer: &JsonSchema, all: bool) -> (Vec<Found>, bool) {
        // A schema within itself counts as compatible while it is compared. Where it turns out not to be, what was found on
        // that ground is looked at again, until nothing new comes.
        let mut known = HashMap::new();
        let mut comparisons = COMPARISONS_MAX;
        loop {
            let mut check = Check {
                before: writer,
                after: self,
                found: Vec::new(),
                path: Vec::new(),
                memo: HashMap::new(),
                under_way: HashSet::new(),
                known: &known,
                assumed: false,
                left: comparisons,
                all,
            };
            check.schemas(Some(writer.root), Some(self.root));
            let Check { found, memo, assumed, left, .. } = check;
            let bad: HashMap<(Id, Id), Vec<Found>> = memo.into_iter().filter(|(_, found)| !fits(found)).collect();
            if !assumed || bad.len() == known.len() || left == 0 {
                return (found, left > 0);
            }
            (known, comparisons) = (bad, left);
        }
    }
}

/// Of pairs of schemas, in one check. What is found about a pair counts too wherever it is told again.
const COMPARISONS_MAX: u32 = 200_000;
/// Differences that are told of one pair of schemas, those within it included.
const FOUND_MAX: usize = 100;
/// Longest path that is told, in bytes.
const PATH_BYTES_MAX: usize = 1_000;

struct Check<'a> {
    before: &'a JsonSchema,
    after: &'a JsonSchema,
    found: Vec<Found>,
    path: Vec<String>,
    /// What was found about a pair, as if it stood at the root.
    memo: HashMap<(Id, Id), Vec<Found>>,
    under_way: HashSet<(Id, Id)>,
    /// Pairs that an earlier pass found incompatible.
    known: &'a HashMap<(Id, Id), Vec<Found>>,
    /// A pair under way was taken for compatible.
    assumed: bool,
    left: u32,
    /// What does not hinder is noted too.
    all: bool,
}

impl<'a> Check<'a> {
    fn add(&mut self, name: &'static str) {
        if self.all || (!COMPATIBLE.contains(&name) && self.found.len() < FOUND_MAX) {
            self.found.push(Found { name, path: cut(format!("#/{}", self.path.join("/"))) });
        }
    }

    fn extend(&mut self, found: impl IntoIterator<Item = Found>) {
        self.found.extend(found);
        if !self.all {
            self.found.truncate(FOUND_MAX);
        }
    }

    fn add_at(&mut self, step: &str, name: &'static str) {
        self.at(step, |check| check.add(name));
    }

    fn at(&mut self, step: impl Into<String>, check: impl FnOnce(&mut Self)) {
        self.path.push(step.into());
        check(self);
        self.path.pop();
    }

    /// What is found is given instead of noted.
    fn aside(&mut self, check: impl FnOnce(&mut Self)) -> Vec<Found> {
        let noted = std::mem::take(&mut self.found);
        check(self);
        std::mem::replace(&mut self.found, noted)
    }

    fn target(of: &JsonSchema, mut id: Id) -> Id {
        // A reference to a reference to itself leads nowhere.
        for _ in 0..of.all.len() {
            match of.all[id].rule {
                Rule::Same(next) => id = next,
                _ => break,
            }
        }
        id
    }

    fn schemas(&mut self, before: Option<Id>, after: Option<Id>) {
        let (before, after) = match (before, after) {
            (None, None) => return,
            (None, Some(_)) => return self.add("SCHEMA_ADDED"),
            (Some(_), None) => return self.add("SCHEMA_REMOVED"),
            (Some(before), Some(after)) => (Self::target(self.before, before), Self::target(self.after, after)),
        };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return;
        }
        let pair = (before, after);
        let found = if let Some(found) = self.memo.get(&pair) {
            found.clone()
        } else if self.under_way.contains(&pair) {
            match self.known.get(&pair) {
                Some(found) => found.clone(),
                None => {
                    self.assumed = true;
                    return;
                }
            }
        } else {
            self.under_way.insert(pair);
            let path = std::mem::take(&mut self.path);
            let found = self.aside(|check| check.types(before, after));
            self.path = path;
            self.under_way.remove(&pair);
            self.memo.insert(pair, found.clone());
            found
        };
        self.left = self.left.saturating_sub(u32::try_from(found.len()).unwrap_or(u32::MAX));
        let prefix = format!("#/{}", self.path.join("/"));
        let here = |one: Found| match (self.path.is_empty(), one.path.len() <= 2) {
            (true, _) => one,
            (false, true) => Found { path: prefix.clone(), ..one },
            (false, false) => Found { path: cut(format!("{prefix}/{}", &one.path[2..])), ..one },
        };
        let found: Vec<Found> = found.into_iter().map(here).collect();
        self.extend(found);
    }

    /// Notes what is found where it is no hindrance, and says so.
    fn fit(&mut self, before: Id, after: Id, name: &'static str) -> bool {
        let found = self.aside(|check| check.schemas(Some(before), Some(after)));
        if !fits(&found) {
            return false;
        }
        self.extend(found);
        if !name.is_empty() {
            self.add(name);
        }
        true
    }

    fn types(&mut self, before_id: Id, after_id: Id) {
        let (old, new) = (self.before, self.after);
        let (before, after): (&'a Schema, &'a Schema) = (&old.all[before_id], &new.all[after_id]);
        match (&before.rule, &after.rule) {
            (Rule::Combined(..), Rule::Combined(..)) => {}
            (_, Rule::Combined(criterion, subs)) => {
                if let [only] = subs.as_slice() {
                    if self.fit(before_id, *only, "") {
                        return;
                    }
                } else if *criterion != Criterion::All && subs.iter().any(|sub| self.fit(before_id, *sub, "SUM_TYPE_EXTENDED")) {
                    return;
                }
            }
            (Rule::Combined(criterion, subs), _) => {
                if let [only] = subs.as_slice() {
                    if self.fit(*only, after_id, "") {
                        return;
                    }
                } else if *criterion == Criterion::All && subs.iter().any(|sub| self.fit(*sub, after_id, "PRODUCT_TYPE_NARROWED")) {
                    return;
                }
            }
            _ => {}
        }
        if std::mem::discriminant(&before.rule) != std::mem::discriminant(&after.rule) {
            let free = matches!(before.rule, Rule::Nothing) || matches!(after.rule, Rule::Anything);
            let both_bytes = before.connect_bytes && after.connect_bytes;
            if !free && !both_bytes {
                self.add("TYPE_CHANGED");
            }
            return;
        }
        for (changed, name) in [
            (before.id != after.id, "ID_CHANGED"),
            (before.title != after.title, "TITLE_CHANGED"),
            (before.description != after.description, "DESCRIPTION_CHANGED"),
            (before.default != after.default, "DEFAULT_CHANGED"),
        ] {
            if changed {
                self.add(name);
            }
        }
        match (&before.rule, &after.rule) {
            (
                Rule::Text { max_length, min_length, pattern },
                Rule::Text { max_length: max_after, min_length: min_after, pattern: pattern_after },
            ) => {
                self.limit("maxLength", *max_length, *max_after, MAX_LENGTH);
                self.limit("minLength", *min_length, *min_after, MIN_LENGTH);
                match (pattern, pattern_after) {
                    (None, Some(_)) => self.add_at("pattern", "PATTERN_ADDED"),
                    (Some(_), None) => self.add_at("pattern", "PATTERN_REMOVED"),
                    (one, two) if one != two => self.add_at("pattern", "PATTERN_CHANGED"),
                    _ => {}
                }
            }
            (Rule::Number(before), Rule::Number(after)) => self.numbers(before, after),
            (Rule::Const(one), Rule::Const(two)) if !one.same(two) => self.add_at("const", "ENUM_ARRAY_CHANGED"),
            (Rule::Enum(one), Rule::Enum(two)) => {
                let within = |one: &[super::Json], two: &[super::Json]| one.iter().all(|value| two.iter().any(|other| other.same(value)));
                match (within(one, two), within(two, one)) {
                    (true, true) => {}
                    (true, false) => self.add_at("enum", "ENUM_ARRAY_EXTENDED"),
                    (false, true) => self.add_at("enum", "ENUM_ARRAY_NARROWED"),
                    (false, false) => self.add_at("enum", "ENUM_ARRAY_CHANGED"),
                }
            }
            (Rule::Combined(one, subs), Rule::Combined(two, subs_after)) => self.combined(*one, subs, *two, subs_after),
            (Rule::Not(one), Rule::Not(two)) => {
                // What must not be turns the direction round.
                let mut turned = Check {
                    before: self.after,
                    after: self.before,
                    found: Vec::new(),
                    path: Vec::new(),
                    memo: HashMap::new(),
                    under_way: HashSet::new(),
                    known: &HashMap::new(),
                    assumed: false,
                    left: self.left,
                    all: false,
                };
                turned.schemas(Some(*two), Some(*one));
                let (fits, left) = (fits(&turned.found), turned.left);
                self.left = left;
                self.add_at("not", if fits { "NOT_TYPE_NARROWED" } else { "NOT_TYPE_EXTENDED" });
            }
            (Rule::Object(before), Rule::Object(after)) => self.objects(before, after),
            (Rule::Array(before), Rule::Array(after)) => self.arrays(before, after),
            _ => {}
        }
    }

    fn limit(&mut self, key: &str, before: Option<f64>, after: Option<f64>, names: [&'static str; 4]) {
        let [added, removed, increased, decreased] = names;
        match (before, after) {
            (None, Some(_)) => self.add_at(key, added),
            (Some(_), None) => self.add_at(key, removed),
            (Some(before), Some(after)) if before < after => self.add_at(key, increased),
            (Some(before), Some(after)) if before > after => self.add_at(key, decreased),
            _ => {}
        }
    }

    fn numbers(&mut self, before: &Number, after: &Number) {
        self.limit("maximum", before.maximum, after.maximum, MAXIMUM);
        self.limit("minimum", before.minimum, after.minimum, MINIMUM);
        self.limit("exclusiveMaximum", before.exclusive_maximum, after.exclusive_maximum, EXCLUSIVE_MAXIMUM);
        self.limit("exclusiveMinimum", before.exclusive_minimum, after.exclusive_minimum, EXCLUSIVE_MINIMUM);
        // Decimals such as 0.1 have no exact binary form.
        let divides = |one: f64, other: f64| one != 0.0 && ((other / one).round() * one - other).abs() <= other.abs() * 1e-9;
        match (before.multiple_of, after.multiple_of) {
            (None, Some(_)) => self.add_at("multipleOf", "MULTIPLE_OF_ADDED"),
            (Some(_), None) => self.add_at("multipleOf", "MULTIPLE_OF_REMOVED"),
            (Some(before), Some(after)) if before == after => {}
            (Some(before), Some(after)) if divides(before, after) => self.add_at("multipleOf", "MULTIPLE_OF_EXPANDED"),
            (Some(before), Some(after)) if divides(after, before) => self.add_at("multipleOf", "MULTIPLE_OF_REDUCED"),
            (Some(_), Some(_)) => self.add_at("multipleOf", "MULTIPLE_OF_CHANGED"),
            (None, None) => {}
        }
        match (before.is_integer, after.is_integer) {
            (true, false) => self.add("TYPE_EXTENDED"),
            (false, true) => self.add("TYPE_NARROWED"),
            _ => {}
        }
    }

    fn combined(&mut self, before: Criterion, old: &[Id], after: Criterion, new: &[Id]) {
        let (one_old, one_new) = (old.len() == 1, new.len() == 1);
        if before != after {
            let extended =
                after == Criterion::Any || (one_old && (one_new || after == Criterion::One)) || (one_new && before == Criterion::All);
            self.add(if extended { "COMBINED_TYPE_EXTENDED" } else { "COMBINED_TYPE_CHANGED" });
            if !extended {
                return;
            }
        }
        match old.len().cmp(&new.len()) {
            std::cmp::Ordering::Less if after == Criterion::All => self.add("PRODUCT_TYPE_EXTENDED"),
            std::cmp::Ordering::Less => self.add("SUM_TYPE_EXTENDED"),
            std::cmp::Ordering::Greater if before == Criterion::All => self.add("PRODUCT_TYPE_NARROWED"),
            std::cmp::Ordering::Greater => self.add("SUM_TYPE_NARROWED"),
            std::cmp::Ordering::Equal => {}
        }
        let mut edges: Vec<Vec<(usize, Vec<Found>)>> = Vec::with_capacity(old.len());
        for (at, sub) in old.iter().enumerate() {
            let mut of = Vec::new();
            self.at(format!("{}/{at}", before.name()), |check| {
                for (to, other) in new.iter().enumerate() {
                    if check.left == 0 {
                        break;
                    }
                    let found = check.aside(|check| check.schemas(Some(*sub), Some(*other)));
                    if fits(&found) {
                        of.push((to, found));
                    }
                }
            });
            edges.push(of);
        }
        let matching = matching(&edges, new.len());
        let count = matching.iter().flatten().count();
        for (at, of) in edges.into_iter().enumerate() {
            self.extend(of.into_iter().filter(|(to, _)| matching[*to] == Some(at)).flat_map(|(_, found)| found));
        }
        if count < old.len().min(new.len()) {
            self.add("COMBINED_TYPE_SUBSCHEMAS_CHANGED");
        }
    }

    fn additional(&mut self, before: Additional, after: Additional, names: [&'static str; 4]) {
        let [added, removed, extended, narrowed] = names;
        match (before, after) {
            (Additional::None, Additional::None) | (Additional::Any, Additional::Any) => {}
            (Additional::None, _) => self.add(added),
            (_, Additional::None) => self.add(removed),
            (Additional::As(_), Additional::Any) => self.add(extended),
            (Additional::Any, Additional::As(_)) => self.add(narrowed),
            (Additional::As(before), Additional::As(after)) => self.schemas(Some(before), Some(after)),
        }
    }

    fn unevaluated(&mut self, before: Option<Id>, after: Option<Id>, names: [&'static str; 4]) {
        let [added, removed, extended, narrowed] = names;
        let old = before.map(|id| &self.before.all[id].rule);
        let new = after.map(|id| &self.after.all[id].rule);
        match (old, new) {
            (None, None) => {}
            (None, Some(Rule::Nothing)) => self.add(removed),
            (None, Some(_)) => self.add(narrowed),
            (Some(Rule::Nothing), None) => self.add(added),
            (Some(_), None) => self.add(extended),
            (Some(Rule::Nothing), Some(Rule::Nothing)) | (Some(Rule::Anything), Some(Rule::Anything)) => {}
            (Some(Rule::Nothing), Some(_)) => self.add(added),
            (Some(_), Some(Rule::Nothing)) => self.add(removed),
            (Some(Rule::Anything), Some(_)) => self.add(narrowed),
            (Some(_), Some(Rule::Anything)) => self.add(extended),
            _ => self.schemas(before, after),
        }
    }

    fn objects(&mut self, before: &Object, after: &Object) {
        self.at("required", |check| check.required(before, after));
        self.at("properties", |check| {
            let names: BTreeSet<&str> = before.properties.iter().chain(&after.properties).map(|(name, _)| name.as_str()).collect();
            for name in names {
                check.at(name, |check| check.property(before, after, name));
            }
        });
        self.at("dependencies", |check| check.dependencies(before, after));
        self.at("additionalProperties", |check| check.additional(before.additional, after.additional, ADDITIONAL_PROPERTIES));
        self.at("unevaluatedProperties", |check| check.unevaluated(before.unevaluated, after.unevaluated, UNEVALUATED_PROPERTIES));
        self.limit("maxProperties", before.max_properties, after.max_properties, MAX_PROPERTIES);
        self.limit("minProperties", before.min_properties, after.min_properties, MIN_PROPERTIES);
    }

    fn required(&mut self, before: &Object, after: &Object) {
        for (name, _) in &before.properties {
            let Some(schema) = get(&after.properties, name) else { continue };
            match (before.required.contains(name), after.required.contains(name)) {
                (true, false) => self.add_at(name, "REQUIRED_ATTRIBUTE_REMOVED"),
                (false, true) if self.after.all[schema].default.is_some() => self.add_at(name, "REQUIRED_ATTRIBUTE_WITH_DEFAULT_ADDED"),
                (false, true) => self.add_at(name, "REQUIRED_ATTRIBUTE_ADDED"),
                _ => {}
            }
        }
    }

    fn property(&mut self, before: &Object, after: &Object, name: &str) {
        match (get(&before.properties, name), get(&after.properties, name)) {
            (Some(old), None) => {
                let covering = after.covering(self.after, name);
                if after.is_open(self.after) {
                    self.add("PROPERTY_REMOVED_FROM_OPEN_CONTENT_MODEL");
                } else if let Some(covering) = covering {
                    let found = self.aside(|check| check.schemas(Some(old), Some(covering)));
                    let covered = fits(&found);
                    self.extend(found);
                    self.add(if covered {
                        "PROPERTY_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    } else {
                        "PROPERTY_REMOVED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    });
                } else if matches!(self.before.all[old].rule, Rule::Nothing) {
                    self.add("PROPERTY_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL");
                } else {
                    self.add("PROPERTY_REMOVED_FROM_CLOSED_CONTENT_MODEL");
                }
            }
            (None, Some(new)) => {
                let schema = &self.after.all[new];
                let required = after.required.iter().any(|one| one == name);
                let has_default = schema.default.is_some();
                if before.is_open(self.before) {
                    self.add(match (&schema.rule, required, has_default) {
                        (Rule::Anything, ..) => "PROPERTY_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL",
                        (_, true, true) => "REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_OPEN_CONTENT_MODEL",
                        (_, true, false) => "REQUIRED_PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL",
                        (_, false, _) => "OPTIONAL_PROPERTY_ADDED_TO_OPEN_CONTENT_MODEL",
                    });
                    return;
                }
                if let Some(covering) = before.covering(self.before, name) {
                    let found = self.aside(|check| check.schemas(Some(covering), Some(new)));
                    let covered = fits(&found);
                    self.extend(found);
                    self.add(if covered {
                        "PROPERTY_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    } else {
                        "PROPERTY_ADDED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    });
                }
                self.add(match (required, has_default) {
                    (true, true) => "REQUIRED_PROPERTY_WITH_DEFAULT_ADDED_TO_UNOPEN_CONTENT_MODEL",
                    (true, false) => "REQUIRED_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL",
                    (false, _) => "OPTIONAL_PROPERTY_ADDED_TO_UNOPEN_CONTENT_MODEL",
                });
            }
            (old, new) => self.schemas(old, new),
        }
    }

    fn dependencies(&mut self, before: &Object, after: &Object) {
        let names: BTreeSet<&String> =
            before.property_dependencies.iter().chain(&after.property_dependencies).map(|(name, _)| name).collect();
        for name in names {
            let of = |object: &Object| {
                let found = object.property_dependencies.iter().find(|(known, _)| known == name);
                found.map(|(_, names)| names.iter().cloned().collect::<BTreeSet<String>>())
            };
            match (of(before), of(after)) {
                (_, None) => self.add_at(name, "DEPENDENCY_ARRAY_REMOVED"),
                (None, _) => self.add_at(name, "DEPENDENCY_ARRAY_ADDED"),
                (Some(old), Some(new)) if old == new => {}
                (Some(old), Some(new)) if new.is_superset(&old) => self.add_at(name, "DEPENDENCY_ARRAY_EXTENDED"),
                (Some(old), Some(new)) if old.is_superset(&new) => self.add_at(name, "DEPENDENCY_ARRAY_NARROWED"),
                _ => self.add_at(name, "DEPENDENCY_ARRAY_CHANGED"),
            }
        }
        let names: BTreeSet<&String> = before.schema_dependencies.iter().chain(&after.schema_dependencies).map(|(name, _)| name).collect();
        for name in names {
            match (get(&before.schema_dependencies, name), get(&after.schema_dependencies, name)) {
                (_, None) => self.add_at(name, "DEPENDENCY_SCHEMA_REMOVED"),
                (None, _) => self.add_at(name, "DEPENDENCY_SCHEMA_ADDED"),
                (old, new) => self.at(name.as_str(), |check| check.schemas(old, new)),
            }
        }
    }

    fn arrays(&mut self, before: &Array, after: &Array) {
        self.at("items", |check| check.schemas(before.each, after.each));
        for at in 0..before.items.len().max(after.items.len()) {
            self.at(format!("items/{at}"), |check| check.item(before, after, at));
        }
        self.at("additionalItems", |check| check.additional(before.additional, after.additional, ADDITIONAL_ITEMS));
        self.at("unevaluatedItems", |check| check.unevaluated(before.unevaluated, after.unevaluated, UNEVALUATED_ITEMS));
        self.limit("maxItems", before.max_items, after.max_items, MAX_ITEMS);
        self.limit("minItems", before.min_items, after.min_items, MIN_ITEMS);
        match (before.unique, after.unique) {
            (true, false) => self.add_at("uniqueItems", "UNIQUE_ITEMS_REMOVED"),
            (false, true) => self.add_at("uniqueItems", "UNIQUE_ITEMS_ADDED"),
            _ => {}
        }
        self.limit("maxContains", before.max_contains, after.max_contains, MAX_CONTAINS);
        self.limit("minContains", before.min_contains, after.min_contains, MIN_CONTAINS);
    }

    fn item(&mut self, before: &Array, after: &Array, at: usize) {
        match (before.items.get(at).copied(), after.items.get(at).copied()) {
            (Some(old), None) => {
                if after.is_open(self.after) {
                    self.add("ITEM_REMOVED_FROM_OPEN_CONTENT_MODEL");
                } else if let Some(covering) = after.covering(self.after) {
                    let found = self.aside(|check| check.schemas(Some(old), Some(covering)));
                    let covered = fits(&found);
                    self.extend(found);
                    self.add(if covered {
                        "ITEM_REMOVED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    } else {
                        "ITEM_REMOVED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    });
                } else if matches!(self.before.all[old].rule, Rule::Nothing) {
                    self.add("ITEM_WITH_FALSE_REMOVED_FROM_CLOSED_CONTENT_MODEL");
                } else {
                    self.add("ITEM_REMOVED_FROM_CLOSED_CONTENT_MODEL");
                }
            }
            (None, Some(new)) => {
                if before.is_open(self.before) {
                    let empty = matches!(self.after.all[new].rule, Rule::Anything);
                    self.add(if empty { "ITEM_WITH_EMPTY_SCHEMA_ADDED_TO_OPEN_CONTENT_MODEL" } else { "ITEM_ADDED_TO_OPEN_CONTENT_MODEL" });
                } else if let Some(covering) = before.covering(self.before) {
                    let found = self.aside(|check| check.schemas(Some(covering), Some(new)));
                    let covered = fits(&found);
                    self.extend(found);
                    self.add(if covered {
                        "ITEM_ADDED_IS_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    } else {
                        "ITEM_ADDED_NOT_COVERED_BY_PARTIALLY_OPEN_CONTENT_MODEL"
                    });
                } else {
                    self.add("ITEM_ADDED_TO_CLOSED_CONTENT_MODEL");
                }
            }
            (old, new) => self.schemas(old, new),
        }
    }
}

fn cut(mut path: String) -> String {
    path.truncate(path.floor_char_boundary(PATH_BYTES_MAX));
    path
}

fn get(members: &[(String, Id)], name: &str) -> Option<Id> {
    members.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
}

/// Neither closed nor open to everything: the schema of what is not evaluated.
fn partly(of: &JsonSchema, unevaluated: Option<Id>) -> Option<Id> {
    unevaluated.filter(|id| !matches!(of.all[*id].rule, Rule::Nothing | Rule::Anything))
}

fn free(of: &JsonSchema, unevaluated: Option<Id>) -> bool {
    unevaluated.is_none_or(|id| matches!(of.all[id].rule, Rule::Anything))
}

impl Object {
    /// Any other property may be there.
    fn is_open(&self, of: &JsonSchema) -> bool {
        self.additional == Additional::Any && self.patterns.is_empty() && free(of, self.unevaluated)
    }

    /// What a property has to be that is not named.
    fn covering(&self, of: &JsonSchema, name: &str) -> Option<Id> {
        let matches = |pattern: &str| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(name));
        let by_pattern = self.patterns.iter().find(|(pattern, _)| matches(pattern)).map(|(_, id)| *id);
        by_pattern.or(match self.additional {
            Additional::As(id) => Some(id),
            Additional::Any => partly(of, self.unevaluated),
            Additional::None => None,
        })
    }
}

impl Array {
    fn is_open(&self, of: &JsonSchema) -> bool {
        self.additional == Additional::Any && free(of, self.unevaluated)
    }

    fn covering(&self, of: &JsonSchema) -> Option<Id> {
        match self.additional {
            Additional::As(id) => Some(id),
            Additional::Any => partly(of, self.unevaluated),
            Additional::None => None,
        }
    }
}

/// As many pairs as can be made: by each one of the right, the one of the left that it goes with.
fn matching(edges: &[Vec<(usize, Vec<Found>)>], right: usize) -> Vec<Option<usize>> {
    fn place(at: usize, edges: &[Vec<(usize, Vec<Found>)>], seen: &mut [bool], taken: &mut [Option<usize>]) -> bool {
        edges[at].iter().any(|(to, _)| {
            if std::mem::replace(&mut seen[*to], true) {
                return false;
            }
            if taken[*to].is_none_or(|other| place(other, edges, seen, taken)) {
                taken[*to] = Some(at);
                return true;
            }
            false
        })
    }
    let mut taken = vec![None; right];
    for at in 0..edges.len() {
        place(at, edges, &mut vec![false; right], &mut taken);
    }
    taken
}

/// Of a limit: added, removed, increased, decreased.
macro_rules! limits {
    ($($name:ident),*) => { $(
        const $name: [&str; 4] = [
            concat!(stringify!($name), "_ADDED"),
            concat!(stringify!($name), "_REMOVED"),
            concat!(stringify!($name), "_INCREASED"),
            concat!(stringify!($name), "_DECREASED"),
        ];
    )* };
}
limits!(
    MAX_LENGTH,
    MIN_LENGTH,
    MAXIMUM,
    MINIMUM,
    EXCLUSIVE_MAXIMUM,
    EXCLUSIVE_MINIMUM,
    MAX_PROPERTIES,
    MIN_PROPERTIES,
    MAX_ITEMS,
    MIN_ITEMS,
    MAX_CONTAINS,
    MIN_CONTAINS
);

/// Of what may be beside what is named: added, removed, extended, narrowed.
macro_rules! openness {
    ($($name:ident),*) => { $(
        const $name: [&str; 4] = [
            concat!(stringify!($name), "_ADDED"),
            concat!(stringify!($name), "_REMOVED"),
            concat!(stringify!($name), "_EXTENDED"),
            concat!(stringify!($name), "_NARROWED"),
        ];
    )* };
}
openness!(ADDITIONAL_PROPERTIES, ADDITIONAL_ITEMS, UNEVALUATED_PROPERTIES, UNEVALUATED_ITEMS);
