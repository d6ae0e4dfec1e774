//! `format.*`: an expression of one's own for messages, tried before those of the RFCs. Flume has it and does not document it.

use std::borrow::Cow;

use anyhow::Context as _;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::date_format::DateFormat;
use crate::flume_conf::{Component, Finding, Property};
use crate::interceptor::review_regex;
use crate::java_regex::{JavaRegex, Replacement};

pub const REGEX: Property = Property::text(
    "format.regex",
    None,
    "A Java expression for whole messages, tried before those of RFC 5424 and RFC 3164. Its groups, by number: 1 priority, 2 version, 3 timestamp, 4 host, 5 body.",
);
pub const SEARCH: Property =
    Property::text("format.search", None, "With `format.regex`: a Java expression, replaced in the timestamp before it is read.");
pub const REPLACE: Property = Property::text("format.replace", None, "What takes the place of `format.search`: `$1` for a group.");
pub const DATE_FORMAT: Property = Property::text(
    "format.dateFormat",
    None,
    "With `format.regex`: how the timestamp is written, as Java's SimpleDateFormat has it: yMdHhKkmsSEazZX. Names are English, zones GMT, UTC or numbers. Without it no `timestamp` header is set.",
);

/// No timestamp is as long as this.
const STAMP_BYTES_MAX: usize = 64 << 10;

/// What is wrong with `format.*`.
pub fn review(component: &Component) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut told = |key: &str, why: String, flume: &str, remedy: &str| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("wrong-value", why).maybe_at(place).key(format!("{}.{key}", component.name));
        findings.push(finding.flume(flume).remedy(remedy));
    };
    let [regex, search, replace, date] = [&REGEX, &SEARCH, &REPLACE, &DATE_FORMAT].map(|property| component.set(property.name));
    if regex.is_none() {
        for key in [(&SEARCH, search), (&REPLACE, replace), (&DATE_FORMAT, date)].into_iter().filter(|(_, set)| set.is_some()) {
            told(
                key.0.name,
                format!("`{}` does nothing without format.regex", key.0.name),
                "does nothing",
                "set format.regex, or leave the line out",
            );
        }
        return findings;
    }
    if let Some(why) = date.and_then(|date| DateFormat::parse(date).err()) {
        told(DATE_FORMAT.name, why, "ends every connection where Java does not know the pattern either", "correct the pattern");
    }
    match (search, replace) {
        (Some(_), None) => told(SEARCH.name, "`format.search` needs format.replace".into(), "drops every message", "set format.replace"),
        (None, Some(_)) => {
            told(REPLACE.name, "`format.replace` does nothing without format.search".into(), "does nothing", "set format.search");
        }
        (Some(search), Some(replace)) => {
            if let Some(why) = JavaRegex::new(search).ok().and_then(|regex| Replacement::parse(replace, &regex).err()) {
                told(REPLACE.name, why, "drops every message in which it finds something", "correct the reference");
            }
        }
        (None, None) => {}
    }
    findings.extend(review_regex(component, REGEX.name, JavaRegex::whole).err().map(|finding| *finding));
    if search.is_some() {
        findings.extend(review_regex(component, SEARCH.name, JavaRegex::new).err().map(|finding| *finding));
    }
    findings
}

#[derive(Clone, Debug)]
pub struct Format {
    pub(super) regex: JavaRegex,
    pub(super) search: Option<(JavaRegex, Replacement)>,
    pub(super) date: Option<DateFormat>,
}

/// A message taken apart; empty where there is nothing.
pub struct Found {
    pub priority: Bytes,
    pub version: Bytes,
    pub stamp: Bytes,
    pub millis: Option<i64>,
    pub host: Bytes,
    pub body: Bytes,
}

impl Format {
    pub fn of(component: &Component) -> anyhow::Result<Option<Self>> {
        let Some(regex) = component.set(REGEX.name) else { return Ok(None) };
        let search = match (component.set(SEARCH.name), component.set(REPLACE.name)) {
            (Some(search), Some(replace)) => {
                let search = JavaRegex::new(search).context(SEARCH.name)?;
                let replace = Replacement::parse(replace, &search).map_err(anyhow::Error::msg).context(REPLACE.name)?;
                Some((search, replace))
            }
            _ => None,
        };
        let date = component.set(DATE_FORMAT.name).map(DateFormat::parse).transpose();
        let date = date.map_err(anyhow::Error::msg).context(DATE_FORMAT.name)?;
        Ok(Some(Self { regex: JavaRegex::whole(regex).context(REGEX.name)?, search, date }))
    }

    /// `None` where the expression does not match, or gives up.
    pub fn read(&self, message: &Bytes, now: DateTime<Utc>) -> Option<Found> {
        // As Java: what is no UTF-8 is replaced.
        let whole = match String::from_utf8_lossy(message) {
            Cow::Borrowed(_) => message.clone(),
            Cow::Owned(text) => Bytes::from(text),
        };
        let text = std::str::from_utf8(&whole).ok()?;
        let groups = self.regex.groups_of(text, 0).ok()??;
        let part = |group: usize| groups.get(group).cloned().flatten().map_or_else(Bytes::new, |range| whole.slice(range));
        let stamp = groups.get(3).cloned().flatten().map(|range| &text[range]);
        Some(Found {
            priority: part(1),
            version: part(2),
            millis: stamp.and_then(|stamp| self.millis(stamp, now)),
            stamp: part(3),
            host: part(4),
            body: part(5),
        })
    }

    fn millis(&self, stamp: &str, now: DateTime<Utc>) -> Option<i64> {
        let stamp = match &self.search {
            Some((search, replace)) => search.replace_all(stamp, replace, STAMP_BYTES_MAX).ok()?,
            None => Cow::Borrowed(stamp),
        };
        self.date.as_ref()?.millis(&stamp, now)
    }
}
