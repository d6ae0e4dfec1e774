//! `'connector' = 'kafka'`: the options of a table, for reading and writing, by Flink's names.
//!
//! | option | default | |
//! |---|---|---|
//! | `topic` | | one topic; for reading also several, separated by `;` |
//! | `properties.bootstrap.servers` | | `host:port`, separated by commas |
//! | `properties.*` | | Kafka's own settings |
//! | `properties.group.id` | | group to which offsets are written after each batch, where `offsets.store` says; needed by `group-offsets` |
//! | `properties.isolation.level` | read_committed | `read_uncommitted` is faster where nobody writes transactionally |
//! | `scan.startup.mode` | group-offsets | `earliest-offset`, `latest-offset`, `group-offsets`, `timestamp`, `specific-offsets` |
//! | `scan.startup.timestamp-millis` | | with `timestamp` |
//! | `scan.startup.specific-offsets` | | with `specific-offsets`: `partition:0,offset:42;partition:1,offset:300` |
//! | `scan.bounded.mode` | unbounded | `latest-offset`, `timestamp` with `scan.bounded.timestamp-millis` |
//! | `format` or `value.format` | | `json`, `regex`, `raw`; a format's options may carry `value.` in front |
//! | `key.format`, `key.fields` | | format of the record's key, and its columns separated by `;` |
//! | `value.fields-include` | ALL | `EXCEPT_KEY`: key columns are not in the value |
//! | `dead-letter.topic` | | where records go that cannot be read |
//! | `sink.delivery-guarantee` | at-least-once | `exactly-once`: one transaction per batch; `at-most-once`: a batch that comes again is not written |
//! | `sink.transactional-id-prefix` | | with `exactly-once`; unique per table and job, and no group that the job reads in |
//! | `json.encode.ignore-null-fields` | false | leave columns that are NULL out of the object that is written |

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::FieldRef;
use service_kit::kafka::{Isolation, KafkaConfig, KafkaError, TopicPartition};

use super::error::{SqlError, nearest_or_all};
use super::options::Options;
use crate::batch::{Bounded, Startup};
use crate::format::{FORMATS, Format, FormatKind};
use crate::sink::Guarantee;

pub(crate) const OPTIONS: &[&str] = &[
    "connector",
    "topic",
    "properties.bootstrap.servers",
    "properties.group.id",
    "properties.isolation.level",
    "scan.startup.mode",
    "scan.startup.timestamp-millis",
    "scan.startup.specific-offsets",
    "scan.bounded.mode",
    "scan.bounded.timestamp-millis",
    "format",
    "value.format",
    "key.format",
    "key.fields",
    "value.fields-include",
    "dead-letter.topic",
    "sink.delivery-guarantee",
    "sink.transactional-id-prefix",
    "json.encode.ignore-null-fields",
];

/// A Kafka table's options, checked.
#[derive(Clone)]
pub(crate) struct KafkaTable {
    pub(crate) config: KafkaConfig,
    pub(crate) topics: Vec<String>,
    pub(crate) startup: Startup,
    pub(crate) bounded: Option<Bounded>,
    pub(crate) isolation: Isolation,
    pub(crate) group: Option<String>,
    pub(crate) value: FormatChoice,
    pub(crate) key: Option<FormatChoice>,
    pub(crate) key_fields: Vec<String>,
    /// Key columns are in the value too.
    pub(crate) value_has_key: bool,
    pub(crate) dead_letters: Option<Arc<str>>,
    pub(crate) guarantee: Guarantee,
    /// The prefix of transactional ids, for exactly-once.
    pub(crate) transactional_prefix: Option<String>,
    pub(crate) iso_timestamps: bool,
    pub(crate) without_nulls: bool,
}

#[derive(Clone)]
pub(crate) struct FormatChoice {
    pub(crate) name: &'static str,
    pub(crate) format: Arc<dyn Format>,
}

impl KafkaTable {
    /// `fields`: the table's physical columns.
    pub(crate) fn read(options: &mut Options, fields: &[FieldRef]) -> Result<Self, SqlError> {
        let topics: Vec<String> =
            options.required("topic", "<topic>")?.split(';').map(|topic| topic.trim().to_owned()).filter(|t| !t.is_empty()).collect();
        options.required("properties.bootstrap.servers", "${env:KAFKA_BOOTSTRAP_SERVERS}")?;
        let mut properties = options.prefixed("properties.");
        let group = properties.remove("group.id").filter(|group| !group.is_empty());
        let isolation = match properties.remove("isolation.level").as_deref() {
            None | Some("read_committed") => Isolation::ReadCommitted,
            Some("read_uncommitted") => Isolation::ReadUncommitted,
            Some(other) => {
                let choices = ["read_committed", "read_uncommitted"];
                return Err(options.error(
                    "properties.isolation.level",
                    format!("`properties.isolation.level`: unknown value `{other}`"),
                    nearest_or_all("values", other, &choices),
                ));
            }
        };
        let config = KafkaConfig::from_properties(properties.clone()).map_err(|error| property_error(options, &properties, &error))?;
        let (startup, bounded) = (startup(options, &topics, group.as_deref())?, bounded(options)?);

        let key_fields: Vec<String> =
            options.optional("key.fields").map(|list| list.split(';').map(|name| name.trim().to_owned()).collect()).unwrap_or_default();
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        if let Some(unknown) = key_fields.iter().find(|name| !names.contains(&name.as_str())) {
            return Err(options.error("key.fields", format!("unknown column `{unknown}`"), nearest_or_all("columns", unknown, &names)));
        }
        let value_has_key = options.choice("value.fields-include", &["ALL", "EXCEPT_KEY"], "ALL")? == "ALL";
        let is_key = |field: &FieldRef| key_fields.contains(field.name());
        let key_columns: Vec<FieldRef> = fields.iter().filter(|field| is_key(field)).cloned().collect();
        let value_columns: Vec<FieldRef> = fields.iter().filter(|field| value_has_key || !is_key(field)).cloned().collect();
        let key = match options.optional("key.format") {
            None if key_fields.is_empty() => None,
            None => return Err(options.error("key.fields", "`key.fields` needs `key.format`", "add 'key.format' = 'raw' or 'json'")),
            Some(_) if key_fields.is_empty() => {
                return Err(options.error("key.format", "`key.format` needs `key.fields`", "add 'key.fields' = 'column'"));
            }
            Some(name) => Some(choose(options, "key.format", &name, &key_columns)?),
        };
        let value = value_format(options, &value_columns)?;

        let guarantee = options.guarantee(Guarantee::AtLeastOnce, &[])?;
        let exactly_once = guarantee == Guarantee::ExactlyOnce;
        let prefix = options.optional("sink.transactional-id-prefix").filter(|prefix| !prefix.is_empty());
        if exactly_once && prefix.is_none() {
            return Err(options.error(
                "sink.delivery-guarantee",
                format!("table `{}` cannot be exactly-once without `sink.transactional-id-prefix`", options.table()),
                "add 'sink.transactional-id-prefix' = 'a name unique to this job and table'",
            ));
        }
        let table = Self {
            config,
            topics,
            startup,
            bounded,
            isolation,
            group,
            value,
            key,
            key_fields,
            value_has_key,
            dead_letters: options.optional("dead-letter.topic").map(Into::into),
            guarantee,
            transactional_prefix: prefix.filter(|_| exactly_once),
            iso_timestamps: options.optional("json.timestamp-format.standard").as_deref() == Some("ISO-8601"),
            without_nulls: options.boolean("json.encode.ignore-null-fields", false)?,
        };
        Ok(table)
    }

    /// All option names, for suggestions.
    pub(crate) fn known_options() -> Vec<&'static str> {
        OPTIONS.iter().copied().chain(FORMATS.iter().flat_map(|format| format.options.iter().copied())).collect()
    }
}

fn value_format(options: &mut Options, fields: &[FieldRef]) -> Result<FormatChoice, SqlError> {
    let key = match (options.optional("format"), options.optional("value.format")) {
        (Some(_), Some(_)) => {
            return Err(options.error("value.format", "`format` and `value.format` are the same option", "leave one of them out"));
        }
        (None, Some(_)) => "value.format",
        _ => "format",
    };
    let name = options.required(key, "json")?;
    choose(options, key, &name, fields)
}

fn choose(options: &mut Options, key: &str, name: &str, fields: &[FieldRef]) -> Result<FormatChoice, SqlError> {
    let Some(kind): Option<&FormatKind> = FORMATS.iter().find(|kind| kind.name == name) else {
        let names: Vec<&str> = FORMATS.iter().map(|kind| kind.name).collect();
        return Err(options.error(key, format!("unknown format `{name}`"), nearest_or_all("formats", name, &names)));
    };
    Ok(FormatChoice { name: kind.name, format: (kind.build)(options, fields)? })
}

fn startup(options: &Options, topics: &[String], group: Option<&str>) -> Result<Startup, SqlError> {
    const MODE: &str = "scan.startup.mode";
    let modes = ["earliest-offset", "latest-offset", "group-offsets", "timestamp", "specific-offsets"];
    let given = options.optional(MODE).is_some();
    Ok(match options.choice(MODE, &modes, "group-offsets")? {
        "earliest-offset" => Startup::Earliest,
        "latest-offset" => Startup::Latest,
        "timestamp" => Startup::Timestamp(timestamp(options, "scan.startup.timestamp-millis", MODE)?),
        "specific-offsets" => Startup::Specific(specific_offsets(options, topics)?),
        _ if group.is_some() => Startup::GroupOffsets,
        // A table that is only written needs no start; reading without one is refused when a query reads it.
        _ if !given => Startup::GroupOffsets,
        _ => {
            return Err(options.error(MODE, "`group-offsets` needs a group", "add 'properties.group.id' = 'name'"));
        }
    })
}

fn bounded(options: &Options) -> Result<Option<Bounded>, SqlError> {
    const MODE: &str = "scan.bounded.mode";
    Ok(match options.choice(MODE, &["unbounded", "latest-offset", "timestamp"], "unbounded")? {
        "latest-offset" => Some(Bounded::Latest),
        "timestamp" => Some(Bounded::Timestamp(timestamp(options, "scan.bounded.timestamp-millis", MODE)?)),
        _ => None,
    })
}

fn timestamp(options: &Options, key: &str, mode: &str) -> Result<i64, SqlError> {
    let parsed = options.parsed(key, "milliseconds since 1970", |value| value.parse::<i64>().ok())?;
    parsed.ok_or_else(|| options.error(mode, format!("`{mode}` = `timestamp` needs `{key}`"), format!("add '{key}' = '1795352400000'")))
}

/// `partition:0,offset:42;partition:1,offset:300`, for every topic of the table.
fn specific_offsets(options: &Options, topics: &[String]) -> Result<BTreeMap<TopicPartition, i64>, SqlError> {
    const KEY: &str = "scan.startup.specific-offsets";
    let text = options.required(KEY, "partition:0,offset:42;partition:1,offset:300")?;
    let mut offsets = BTreeMap::new();
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let parsed = item.split_once(',').and_then(|(partition, offset)| {
            let partition = partition.trim().strip_prefix("partition:")?.trim().parse::<i32>().ok()?;
            let offset = offset.trim().strip_prefix("offset:")?.trim().parse::<i64>().ok().filter(|offset| *offset >= 0)?;
            Some((partition, offset))
        });
        let Some((partition, offset)) = parsed else {
            return Err(options.error(
                KEY,
                format!("`{item}` is not a partition's offset"),
                "write partition:0,offset:42;partition:1,offset:300",
            ));
        };
        for topic in topics {
            offsets.insert(TopicPartition::new(topic.as_str(), partition), offset);
        }
    }
    Ok(offsets)
}

fn property_error(options: &Options, properties: &BTreeMap<String, String>, error: &KafkaError) -> SqlError {
    let text = error.to_string();
    // The longest name in the message is the property that it is about.
    let named = properties.keys().filter(|key| text.contains(key.as_str())).max_by_key(|key| key.len());
    let key = named.map_or_else(|| "properties.bootstrap.servers".to_owned(), |key| format!("properties.{key}"));
    options.error(&key, text, "")
}
