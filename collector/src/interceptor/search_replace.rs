//! `search_replace`: the body's text, every match of an expression replaced.

use std::borrow::Cow;

use anyhow::Context as _;
use bytes::Bytes;

use super::{Failures, GROWTH_MAX, Interceptor, review_regex};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::java_regex::{JavaRegex, Replacement};

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("search_replace"),
    class: Some("org.apache.flume.interceptor.SearchAndReplaceInterceptor$Builder"),
    doc: "Replaces every match of an expression in the body. A body without a match stays as it is, byte for byte; so does one whose result would make its batch more than 64 MiB larger, with one warning and a count.",
    properties: &[
        Property::text("searchPattern", None, "Java regular expression.").required(),
        Property::text(
            "replaceString",
            None,
            "What stands in its place: `$1` or `${name}` for a group, `\\$` for a dollar sign. Unset: nothing.",
        ),
        Property::choice("charset", CHARSETS, "UTF-8", "How the body's bytes are read and written."),
    ],
    deprecated: &[],
    misspelt: &[("regex", "searchPattern"), ("replaceWith", "replaceString"), ("replacement", "replaceString")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

const CHARSETS: &[&str] = &["UTF-8", "UTF8", "US-ASCII", "ASCII", "ISO-8859-1", "ISO8859_1", "latin1"];

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let told = review_regex(component, "searchPattern", JavaRegex::new).and_then(|regex| {
        let Some(setting) = component.settings.get("replaceString") else { return Ok(()) };
        Replacement::parse(&setting.value, &regex).map(|_| ()).map_err(|why| {
            let finding = Finding::error("wrong-value", why).maybe_at(setting.place.as_ref());
            let finding = finding.key(format!("{}.replaceString", component.name));
            Box::new(finding.flume("fails at every event that matches").remedy("correct the reference"))
        })
    });
    told.err().map(|finding| *finding).into_iter().collect()
}

#[derive(Clone, Copy)]
enum Charset {
    Utf8,
    Ascii,
    Latin1,
}

impl Charset {
    fn of(name: &str) -> Self {
        match name.trim().to_ascii_uppercase().as_str() {
            "US-ASCII" | "ASCII" => Charset::Ascii,
            "ISO-8859-1" | "ISO8859_1" | "LATIN1" => Charset::Latin1,
            _ => Charset::Utf8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Charset::Utf8 => String::from_utf8_lossy(bytes),
            // The same in all of them.
            _ if bytes.is_ascii() => String::from_utf8_lossy(bytes),
            Charset::Ascii => bytes.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { '\u{fffd}' }).collect(),
            Charset::Latin1 => bytes.iter().map(|&byte| char::from(byte)).collect(),
        }
    }

    /// What the charset lacks is a question mark, as in Java.
    fn encode(self, text: String) -> Bytes {
        let last = match self {
            Charset::Utf8 => return text.into(),
            Charset::Ascii => 0x7f,
            Charset::Latin1 => 0xff,
        };
        text.chars().map(|char| u8::try_from(char).ok().filter(|byte| *byte <= last).unwrap_or(b'?')).collect()
    }
}

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let regex = JavaRegex::new(component.text("searchPattern")).context("searchPattern")?;
    let replacement = Replacement::parse(component.text("replaceString"), &regex).map_err(anyhow::Error::msg).context("replaceString")?;
    let charset = Charset::of(component.text("charset"));
    Ok(Box::new(SearchReplace { regex, replacement, charset, failures: Failures::of(component) }))
}

struct SearchReplace {
    regex: JavaRegex,
    replacement: Replacement,
    charset: Charset,
    failures: Failures,
}

impl Interceptor for SearchReplace {
    fn intercept(&self, event: Event) -> Option<Event> {
        self.intercept_within(event, &mut { GROWTH_MAX })
    }

    fn intercept_within(&self, mut event: Event, room: &mut usize) -> Option<Event> {
        let text = self.charset.decode(&event.body);
        let replaced = self.regex.replace_all(&text, &self.replacement, text.len().saturating_add(*room));
        if let Cow::Owned(replaced) = self.failures.or(replaced, Cow::Borrowed("")) {
            *room = room.saturating_sub(replaced.len().saturating_sub(text.len()));
            let body = self.charset.encode(replaced);
            drop(text);
            event.body = body;
        }
        Some(event)
    }
}
