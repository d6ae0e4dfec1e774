//! The options of one table (`WITH ('key' = 'value', …)`), read once each and by type; what nobody reads is an error.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::error::{Place, SqlError, nearest_or_all};

pub(crate) use super::error::did_you_mean;
use crate::sink::Guarantee;

/// One option as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) at: Place,
}

/// Options of a table while its connector and format read them.
#[derive(Debug)]
pub struct Options {
    table: String,
    at: Place,
    entries: Vec<Entry>,
    read: RefCell<BTreeSet<String>>,
}

impl Options {
    /// `at` is the place for what is missing.
    pub(crate) fn new(table: &str, at: Place, entries: &[Entry]) -> Self {
        Self { table: table.to_owned(), at, entries: entries.to_vec(), read: RefCell::default() }
    }

    /// A format's option may carry `value.` in front, as Flink writes it beside `value.format`.
    fn entry(&self, key: &str) -> Option<&Entry> {
        let of_format = ["json.", "regex.", "nginx."].iter().any(|prefix| key.starts_with(prefix));
        let is = |entry: &&Entry| entry.key == key || (of_format && entry.key.strip_prefix("value.") == Some(key));
        self.entries.iter().find(is)
    }

    /// An error at the option, or at the table where it is absent.
    pub(crate) fn error(&self, key: &str, message: impl Into<String>, remedy: impl Into<String>) -> SqlError {
        self.entry(key).map_or(self.at, |entry| entry.at).error(message, remedy)
    }

    pub(crate) fn optional(&self, key: &str) -> Option<String> {
        let entry = self.entry(key);
        self.read.borrow_mut().insert(entry.map_or(key, |entry| &entry.key).to_owned());
        entry.map(|entry| entry.value.clone())
    }

    pub(crate) fn required(&self, key: &str, example: &str) -> Result<String, SqlError> {
        self.optional(key).filter(|value| !value.trim().is_empty()).ok_or_else(|| {
            // A misspelt option is met here as a missing one.
            let unread = self.entries.iter().filter(|entry| !self.read.borrow().contains(&entry.key));
            if let Some((entry, hint)) = unread.filter_map(|entry| Some((entry, did_you_mean(&entry.key, &[key])?))).next() {
                return entry.at.error(format!("unknown option `{}`", entry.key), hint);
            }
            self.error(key, format!("table `{}` needs the option `{key}`", self.table), format!("add '{key}' = '{example}'"))
        })
    }

    pub(crate) fn parsed<T>(&self, key: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, SqlError> {
        let Some(value) = self.optional(key) else { return Ok(None) };
        match parse(value.trim()) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(self.error(key, format!("`{key}`: `{value}` is not {expected}"), "")),
        }
    }

    pub(crate) fn boolean(&self, key: &str, default: bool) -> Result<bool, SqlError> {
        let parsed = self.parsed(key, "`true` or `false`", |value| value.to_ascii_lowercase().parse().ok())?;
        Ok(parsed.unwrap_or(default))
    }

    /// One of a few words; gives the word as it stands in `choices`.
    pub(crate) fn choice(&self, key: &str, choices: &[&'static str], default: &'static str) -> Result<&'static str, SqlError> {
        let Some(value) = self.optional(key) else { return Ok(default) };
        choices
            .iter()
            .copied()
            .find(|choice| *choice == value.trim())
            .ok_or_else(|| self.error(key, format!("`{key}`: unknown value `{value}`"), nearest_or_all("values", &value, choices)))
    }

    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// `sink.delivery-guarantee`. `refused`: those that the sink does not give, why, and the remedy.
    pub(crate) fn guarantee(&self, default: Guarantee, refused: &[(Guarantee, &str, &str)]) -> Result<Guarantee, SqlError> {
        let all = [Guarantee::ExactlyOnce, Guarantee::AtLeastOnce, Guarantee::AtMostOnce];
        let chosen = self.choice(Guarantee::OPTION, &all.map(Guarantee::name), default.name())?;
        let chosen = all.into_iter().find(|guarantee| guarantee.name() == chosen).unwrap_or(default);
        match refused.iter().find(|(guarantee, ..)| *guarantee == chosen) {
            None => Ok(chosen),
            Some((_, why, remedy)) => {
                let message = format!("table `{}` cannot be {}: {why}", self.table, chosen.name());
                Err(self.error(Guarantee::OPTION, message, format!("{remedy}, or say '{}' = '{}'", Guarantee::OPTION, default.name())))
            }
        }
    }

    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>, SqlError> {
        self.parsed(key, "a duration such as `500 ms`, `10 s` or `1 h`", |value| humantime::parse_duration(value).ok())
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, key: &str, min: u64, max: u64, default: u64) -> Result<u64, SqlError> {
        let parsed = self.parsed(key, &format!("a whole number from {min} to {max}"), |value| {
            value.parse().ok().filter(|number| (min..=max).contains(number))
        })?;
        Ok(parsed.unwrap_or(default))
    }

    /// All options `prefix…`, without the prefix.
    pub(crate) fn prefixed(&self, prefix: &str) -> BTreeMap<String, String> {
        let mut read = self.read.borrow_mut();
        let mut found = BTreeMap::new();
        for entry in &self.entries {
            if let Some(rest) = entry.key.strip_prefix(prefix) {
                read.insert(entry.key.clone());
                found.insert(rest.to_owned(), entry.value.clone());
            }
        }
        found
    }

    /// Refuses what nobody has read; `known` are the names a user may have meant.
    pub(crate) fn finish(self, what: &str, known: &[&str]) -> Result<(), SqlError> {
        let read = self.read.borrow();
        match self.entries.iter().find(|entry| !read.contains(&entry.key)) {
            None => Ok(()),
            Some(entry) if known.contains(&entry.key.as_str()) => Err(entry
                .at
                .error(format!("option `{}` has no effect on {what}", entry.key), "remove it, or choose the format or mode it belongs to")),
            Some(entry) => {
                Err(entry.at.error(format!("unknown option `{}` of {what}", entry.key), nearest_or_all("known options", &entry.key, known)))
            }
        }
    }
}
