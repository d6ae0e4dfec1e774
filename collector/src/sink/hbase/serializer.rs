//! What becomes of an event: a row, and what is counted. As Flume's serializers of the sinks `hbase`, `hbase2` and `asynchbase`.

use bytes::Bytes;
use service_kit::hbase::Row;

use super::key::{Keys, Suffix, millis, timed};
use crate::event::Event;
use crate::flume_conf::Component;
use crate::java_regex::{JavaRegex, Refused};
use crate::source::charset::Charset;

/// In `colNames`: this group is the row key.
const ROW_KEY: &str = "ROW_KEY";

const SIMPLE: [&str; 3] = [
    "org.apache.flume.sink.hbase2.SimpleHBase2EventSerializer",
    "org.apache.flume.sink.hbase.SimpleHbaseEventSerializer",
    "org.apache.flume.sink.hbase.SimpleAsyncHbaseEventSerializer",
];
const REGEX: [&str; 2] =
    ["org.apache.flume.sink.hbase2.RegexHBase2EventSerializer", "org.apache.flume.sink.hbase.RegexHbaseEventSerializer"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Simple,
    Regex,
}

pub fn which(component: &Component) -> Option<Which> {
    let name = component.text("serializer").trim();
    if SIMPLE.contains(&name) {
        return Some(Which::Simple);
    }
    REGEX.contains(&name).then_some(Which::Regex)
}

/// The names that may be set.
pub fn names() -> String {
    [SIMPLE[0], REGEX[0]].join(" or ")
}

pub enum Serializer {
    /// The body in one column, and one counter of all events.
    Simple {
        prefix: String,
        suffix: Suffix,
        column: Bytes,
    },
    Regex(Box<Groups>),
}

pub struct Groups {
    regex: JavaRegex,
    charset: Charset,
    family: Vec<u8>,
    /// One for each group of the expression.
    columns: Vec<Bytes>,
    /// Which of them is the row key.
    key: Option<usize>,
    headers: bool,
    /// As in Flume, a body that does not match is no row and no mistake.
    drops: bool,
}

/// The counter that every event adds one to.
pub struct Count {
    pub row: Bytes,
    pub column: String,
}

/// `serializer.regex` as the serializer uses it: over the whole body, and `.` is any character.
pub fn regex(component: &Component) -> Result<JavaRegex, Refused> {
    let flags = if component.boolean("serializer.regexIgnoreCase") { "(?si)" } else { "(?s)" };
    JavaRegex::whole(&format!("{flags}{}", component.text("serializer.regex")))
        .map_err(|refused| Refused { at: refused.at.saturating_sub(flags.len()), ..refused })
}

/// As Java splits: empty names at the end do not count.
pub fn column_names(component: &Component) -> Vec<&str> {
    let mut names: Vec<&str> = component.text("serializer.colNames").split(',').collect();
    while names.last().is_some_and(|name| name.is_empty()) {
        names.pop();
    }
    names
}

/// Which column is the row key; an error is why none can be.
pub fn key_index(component: &Component) -> Result<Option<usize>, String> {
    let Ok(index) = usize::try_from(component.integer("serializer.rowKeyIndex")) else { return Ok(None) };
    let names = column_names(component);
    match names.get(index) {
        Some(name) if name.eq_ignore_ascii_case(ROW_KEY) => Ok(Some(index)),
        Some(name) => Err(format!("column {index} of serializer.colNames must be {ROW_KEY} and is `{name}`")),
        None => Err(format!("it must be less than the number of columns, {}", names.len())),
    }
}

pub fn names_key(component: &Component) -> bool {
    column_names(component).iter().any(|name| name.eq_ignore_ascii_case(ROW_KEY))
}

/// `None` for a word that Flume reads as `uuid`.
pub fn suffix(component: &Component, strict: bool) -> Option<Suffix> {
    match component.text("serializer.suffix") {
        "uuid" => Some(Suffix::Uuid),
        "random" => Some(Suffix::Random),
        "timestamp" if strict => Some(Suffix::Timestamp),
        "timestamp" => Some(Suffix::TimestampOwn),
        "nano" => Some(Suffix::Nano),
        _ => None,
    }
}

fn column(family: &str, name: &[u8]) -> Bytes {
    [family.as_bytes(), b":", name].concat().into()
}

impl Serializer {
    pub fn build(component: &Component, strict: bool) -> anyhow::Result<(Self, Option<Count>)> {
        let family = component.text("columnFamily").trim();
        match which(component) {
            Some(Which::Simple) => {
                let count = Count {
                    row: component.text("serializer.incrementRow").to_owned().into(),
                    column: format!("{family}:{}", component.text("serializer.incrementColumn")),
                };
                let simple = Self::Simple {
                    prefix: component.text("serializer.rowPrefix").to_owned(),
                    suffix: suffix(component, strict).unwrap_or(Suffix::Uuid),
                    column: column(family, component.text("serializer.payloadColumn").as_bytes()),
                };
                Ok((simple, Some(count)))
            }
            Some(Which::Regex) => {
                let name = component.text("serializer.charset");
                let charset = Charset::of(name).ok_or_else(|| anyhow::anyhow!("charset `{name}` is not known"))?;
                let groups = Groups {
                    regex: regex(component)?,
                    charset,
                    family: family.into(),
                    columns: column_names(component).into_iter().map(|name| column(family, &charset.encode(name))).collect(),
                    key: key_index(component).map_err(anyhow::Error::msg)?,
                    headers: component.boolean("serializer.depositHeaders"),
                    drops: strict,
                };
                Ok((Self::Regex(Box::new(groups)), None))
            }
            None => anyhow::bail!("serializer `{}` is not known; there are {}", component.text("serializer"), names()),
        }
    }

    /// `None`: the event is no row, and that is meant so. An error is why it can never be one. `now` in milliseconds.
    pub fn row(&self, event: &Event, keys: &Keys, now: i64) -> Result<Option<Row>, String> {
        let row = match self {
            Self::Simple { prefix, suffix, column } => {
                // Flume's key is the time of writing; the event's own time is the same in a second try.
                let time = if *suffix == Suffix::Timestamp { now } else { millis(event, now) };
                Row::new(suffix.write(prefix, keys.of(event), time)).with(column.clone(), event.body.clone())
            }
            Self::Regex(groups) => match groups.row(event, keys, now)? {
                Some(row) => row,
                None => return Ok(None),
            },
        };
        check(&row).map(|()| Some(row))
    }
}

/// What HBase takes as a row key.
const KEY_BYTES_MAX: usize = 32_767;

fn check(row: &Row) -> Result<(), String> {
    match row.key.len() {
        0 => Err("its row key has no bytes".into()),
        bytes if bytes > KEY_BYTES_MAX => Err(format!("its row key has {bytes} bytes, and HBase takes {KEY_BYTES_MAX}")),
        _ => Ok(()),
    }
}

impl Groups {
    fn row(&self, event: &Event, keys: &Keys, now: i64) -> Result<Option<Row>, String> {
        let text = self.charset.decode(&event.body);
        let Some(found) = self.regex.groups_of(&text, 0).map_err(|gave_up| format!("serializer.regex: {gave_up}"))? else {
            return if self.drops { Ok(None) } else { Err("it does not match serializer.regex".into()) };
        };
        let group = |index: usize| {
            let range = found.get(index + 1).cloned().flatten();
            range.and_then(|range| text.get(range)).ok_or_else(|| format!("group {} of serializer.regex takes no part in it", index + 1))
        };
        let mut row = match self.key {
            Some(key) => Row::new(group(key)?.to_owned()),
            None => Row::new(self.charset.encode(&timed(keys.of(event), millis(event, now)))),
        };
        for (index, column) in self.columns.iter().enumerate() {
            if self.key != Some(index) {
                row = row.with(column.clone(), group(index)?.to_owned());
            }
        }
        if self.headers {
            for (name, value) in event.headers.iter().flat_map(|headers| headers.iter()) {
                let column = [&self.family, &b":"[..], &self.charset.encode(name)].concat();
                row = row.with(column, self.charset.encode(value));
            }
        }
        // A row without cells is none; HBase would refuse it.
        if row.cells.is_empty() { Err("it gives no column to write".into()) } else { Ok(Some(row)) }
    }
}
