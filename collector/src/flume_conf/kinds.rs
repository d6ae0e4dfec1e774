//! What a component kind is, and the ones that Flume has and Millrace has not (yet).
//!
//! The kinds that run are declared beside their code (`source::SOURCES`, `channel::CHANNELS`, `sink::SINKS`). Everything
//! that lists kinds or properties reads these tables: the checks, `millrace-collector components`, the reference page.

use std::fmt;

use serde::Serialize;

use super::{Component, Finding};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Source,
    Channel,
    Sink,
    /// Part of a source.
    Interceptor,
    /// Part of a source.
    Selector,
    /// Several sinks and their processor.
    Group,
    /// Puts words into a file's values.
    Filter,
}

impl Role {
    /// Those that an agent lists: `agent.sources = r1`.
    pub const LISTED: [Role; 3] = [Role::Source, Role::Channel, Role::Sink];
    pub const ALL: [Role; 7] = [Role::Source, Role::Interceptor, Role::Selector, Role::Channel, Role::Sink, Role::Group, Role::Filter];

    /// The word in keys: `agent.sources.r1.type`, `agent.sources.r1.interceptors.i1.type`.
    pub fn plural(self) -> &'static str {
        match self {
            Role::Source | Role::Interceptor | Role::Selector => "sources",
            Role::Channel => "channels",
            Role::Sink => "sinks",
            Role::Group => "sinkgroups",
            Role::Filter => "configfilters",
        }
    }

    pub fn singular(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Channel => "channel",
            Role::Sink => "sink",
            Role::Interceptor => "interceptor",
            Role::Selector => "channel selector",
            Role::Group => "sink group",
            Role::Filter => "config filter",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

/// A component type: its names and its properties.
#[derive(Debug)]
pub struct Kind {
    pub role: Role,
    /// Flume's alias (any case); `None` where only the class name is known to Flume.
    pub alias: Option<&'static str>,
    /// Flume's class; `None` for Millrace's own kinds.
    pub class: Option<&'static str>,
    pub doc: &'static str,
    pub properties: &'static [Property],
    /// Old key → new key. An empty new key: accepted without effect.
    pub deprecated: &'static [(&'static str, &'static str)],
    /// Keys that people write because a guide says so, or by a slip; dead in Flume, applied here: wrong → right.
    pub misspelt: &'static [(&'static str, &'static str)],
    /// The same for whole families of keys: the right key for a wrong one.
    pub adopt: fn(&str) -> Option<String>,
    /// The property that bounds a transaction's events, where Flume compares it with `transactionCapacity`.
    pub batch: Option<&'static str>,
    /// What there is to say about one component beyond its properties' types. The flag is `--flume-strict`.
    pub review: fn(&Component, bool) -> Vec<Finding>,
}

/// For [`Kind::adopt`].
pub fn adopts_nothing(_key: &str) -> Option<String> {
    None
}

/// For [`Kind::review`].
pub fn nothing_to_say(_component: &Component, _strict: bool) -> Vec<Finding> {
    Vec::new()
}

impl Kind {
    /// The name to write in a file.
    pub fn name(&self) -> &'static str {
        self.alias.or(self.class).unwrap_or_default()
    }

    pub fn is_called(&self, name: &str) -> bool {
        self.class == Some(name) || self.alias.is_some_and(|alias| alias.eq_ignore_ascii_case(name))
    }

    /// The property that `key` sets: by its full name, or by a `prefix.*`.
    pub fn property(&self, key: &str) -> Option<&'static Property> {
        let exact = self.properties.iter().find(|property| property.name == key);
        exact.or_else(|| {
            self.properties
                .iter()
                .find(|property| property.prefix().is_some_and(|prefix| key.len() > prefix.len() && key.starts_with(prefix)))
        })
    }
}

/// How a property's text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    /// Inclusive bounds.
    Integer(i64, i64),
    Boolean,
    Choice(&'static [&'static str]),
}

/// How a value is written.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Text => f.write_str("text"),
            Type::Integer(min, i64::MAX) => write!(f, "number from {min}"),
            Type::Integer(min, max) => write!(f, "number from {min} to {max}"),
            Type::Boolean => f.write_str("true or false"),
            Type::Choice(of) => f.write_str(&of.join(", ")),
        }
    }
}

/// One property of a kind. Its documentation is the reference's text.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// `capacity`, or `kafka.producer.*` for every key with that prefix.
    pub name: &'static str,
    pub kind: Type,
    pub default: Option<&'static str>,
    pub required: bool,
    /// Flume has no such property.
    pub own: bool,
    pub doc: &'static str,
}

/// The properties of one kind, and those that it has in common with others.
pub const fn join<const N: usize>(own: &[Property], common: &[Property]) -> [Property; N] {
    let mut all = [common[0]; N];
    let mut at = 0;
    while at < N {
        all[at] = if at < own.len() { own[at] } else { common[at - own.len()] };
        at += 1;
    }
    all
}

impl Property {
    pub const fn text(name: &'static str, default: Option<&'static str>, doc: &'static str) -> Self {
        Self { name, kind: Type::Text, default, required: false, own: false, doc }
    }

    pub const fn integer(name: &'static str, min: i64, max: i64, default: Option<&'static str>, doc: &'static str) -> Self {
        Self { name, kind: Type::Integer(min, max), default, required: false, own: false, doc }
    }

    pub const fn boolean(name: &'static str, default: &'static str, doc: &'static str) -> Self {
        Self { name, kind: Type::Boolean, default: Some(default), required: false, own: false, doc }
    }

    pub const fn choice(name: &'static str, of: &'static [&'static str], default: &'static str, doc: &'static str) -> Self {
        Self { name, kind: Type::Choice(of), default: Some(default), required: false, own: false, doc }
    }

    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Millrace's own.
    pub const fn own(self) -> Self {
        Self { own: true, ..self }
    }

    fn prefix(&self) -> Option<&'static str> {
        self.name.strip_suffix('*')
    }

    /// What is wrong with `value`, if anything.
    pub fn fault(&self, value: &str) -> Option<String> {
        match self.kind {
            Type::Text => None,
            Type::Integer(min, max) => match value.trim().parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => None,
                Ok(_) if max == i64::MAX => Some(format!("`{value}` is below {min}")),
                Ok(_) => Some(format!("`{value}` is not between {min} and {max}")),
                Err(_) => Some(format!("`{value}` is not a whole number")),
            },
            Type::Boolean => (!["true", "false"].iter().any(|word| value.trim().eq_ignore_ascii_case(word)))
                .then(|| format!("`{value}` is neither true nor false")),
            Type::Choice(of) => {
                (!of.iter().any(|word| value.trim().eq_ignore_ascii_case(word))).then(|| format!("`{value}` is none of {}", of.join(", ")))
            }
        }
    }
}

/// Every kind that runs here.
pub fn built() -> impl Iterator<Item = &'static Kind> {
    let sources = crate::source::SOURCES.iter().map(|source| source.kind);
    let channels = crate::channel::CHANNELS.iter().map(|channel| channel.kind);
    let sinks = crate::sink::SINKS.iter().map(|sink| sink.kind);
    let interceptors = crate::interceptor::INTERCEPTORS.iter().map(|interceptor| interceptor.kind);
    let selectors = crate::selector::SELECTORS.iter().map(|selector| selector.kind);
    let groups = crate::group::PROCESSORS.iter().copied();
    let filters = super::filters::FILTERS.iter().copied();
    sources.chain(interceptors).chain(selectors).chain(channels).chain(sinks).chain(groups).chain(filters)
}

/// The kind that `name` means as a type of `role`.
pub fn find(role: Role, name: &str) -> Option<&'static Kind> {
    built().find(|kind| kind.role == role && kind.is_called(name))
}

/// A kind that Flume 1.11 has and this version has not.
#[derive(Debug)]
pub struct Missing {
    pub role: Role,
    pub alias: Option<&'static str>,
    pub class: &'static str,
    /// What to use in the meantime.
    pub instead: &'static str,
}

const fn missing(role: Role, alias: &'static str, class: &'static str, instead: &'static str) -> Missing {
    Missing { role, alias: if alias.is_empty() { None } else { Some(alias) }, class, instead }
}

const TAIL: &str = "let the sender write a file and collect it with TAILDIR";
const MEMORY: &str = "`memory`; tailed files lose nothing over it, because positions advance only after the sink";
const KAFKA: &str = "write to Kafka with org.apache.flume.sink.kafka.KafkaSink and let a sink of Kafka Connect write it on";

pub const MISSING: &[Missing] = &[
    missing(Role::Source, "jms", "org.apache.flume.source.jms.JMSSource", TAIL),
    missing(Role::Source, "", "org.apache.flume.source.StressSource", "`seq` generates events"),
    missing(Role::Source, "", "org.apache.flume.source.scribe.ScribeSource", TAIL),
    missing(Role::Source, "", "org.apache.flume.source.twitter.TwitterSource", TAIL),
    missing(Role::Source, "", "org.apache.flume.source.avroLegacy.AvroLegacySource", TAIL),
    missing(Role::Source, "", "org.apache.flume.source.thriftLegacy.ThriftLegacySource", TAIL),
    missing(Role::Channel, "jdbc", "org.apache.flume.channel.jdbc.JdbcChannel", MEMORY),
    missing(Role::Channel, "", "org.apache.flume.channel.PseudoTxnMemoryChannel", "`memory`"),
    missing(Role::Sink, "irc", "org.apache.flume.sink.irc.IRCSink", "`logger`"),
    missing(Role::Sink, "elasticsearch", "org.apache.flume.sink.elasticsearch.ElasticSearchSink", KAFKA),
    missing(Role::Sink, "morphline_solr", "org.apache.flume.sink.solr.morphline.MorphlineSolrSink", KAFKA),
    missing(Role::Sink, "hive", "org.apache.flume.sink.hive.HiveSink", KAFKA),
    missing(Role::Sink, "", "org.apache.flume.sink.kudu.KuduSink", KAFKA),
    missing(
        Role::Interceptor,
        "",
        "org.apache.flume.sink.solr.morphline.MorphlineInterceptor$Builder",
        "`regex_extractor`, `search_replace` and `regex_filter` for what they can do",
    ),
    missing(
        Role::Filter,
        "hadoop",
        "org.apache.flume.configfilter.HadoopCredentialStoreConfigFilter",
        "`external` with a command that prints the secret",
    ),
];

pub fn find_missing(role: Role, name: &str) -> Option<&'static Missing> {
    MISSING
        .iter()
        .find(|kind| kind.role == role && (kind.class == name || kind.alias.is_some_and(|alias| alias.eq_ignore_ascii_case(name))))
}

/// The candidate most like `word`, if any is like it at all.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    let last = |text: &str| text.rsplit('.').next().unwrap_or_default().to_owned();
    candidates
        .into_iter()
        .filter(|candidate| !candidate.is_empty())
        .filter_map(|candidate| {
            let lower = candidate.to_ascii_lowercase();
            let mut distance = edits(&word, &lower);
            // `flumeBatchSize` for `kafka.flumeBatchSize`, `KafkaSink` for its class: the last word alone counts as well.
            if lower.contains('.') || word.contains('.') {
                distance = distance.min(edits(&last(&word), &last(&lower)) + 1);
            }
            let shorter = word.len().min(lower.len());
            (distance < shorter && distance <= (shorter / 3).clamp(1, 4)).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            next[j] = (row[j] + 1).min(next[j - 1] + 1).min(row[j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_means_one_kind() {
        let mut seen = BTreeSet::new();
        let names =
            built().flat_map(|kind| [kind.alias, kind.class].into_iter().flatten().map(move |name| (kind.role, name.to_lowercase())));
        let missing = MISSING
            .iter()
            .flat_map(|kind| [kind.alias, Some(kind.class)].into_iter().flatten().map(move |name| (kind.role, name.to_lowercase())));
        for name in names.chain(missing) {
            assert!(seen.insert(name.clone()), "{name:?} twice");
        }
    }

    #[test]
    fn the_tables_agree_with_themselves() {
        for kind in built() {
            assert!(!kind.name().is_empty() && !kind.doc.is_empty());
            for property in kind.properties {
                assert!(!property.doc.is_empty(), "{} of {} has no documentation", property.name, kind.name());
                assert!(property.default.is_none_or(|default| property.fault(default).is_none()), "default of {}", property.name);
                assert!(!(property.required && property.default.is_some()), "{} is required and has a default", property.name);
            }
            for (old, new) in kind.deprecated.iter().chain(kind.misspelt) {
                assert!(kind.property(old).is_none_or(|property| property.name.ends_with('*')), "{old} is old and current");
                assert!(new.is_empty() || kind.property(new).is_some(), "{new} is not a property of {}", kind.name());
            }
            assert!(kind.batch.is_none_or(|batch| kind.property(batch).is_some()));
        }
    }

    #[test]
    fn nearest_knows_slips_from_strangers() {
        let keys = ["kafka.topic", "kafka.bootstrap.servers", "flumeBatchSize", "capacity", "transactionCapacity"];
        for (word, expected) in [
            ("kafka.topik", Some("kafka.topic")),
            ("kakfa.topic", Some("kafka.topic")),
            ("capcity", Some("capacity")),
            ("transactioncapacity", Some("transactionCapacity")),
            ("kafka.flumeBatchSize", Some("flumeBatchSize")),
            ("batchSize", None),
            ("x", None),
            ("colour", None),
        ] {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }
}
