//! `regex_extractor`: what an expression's groups match in the body, as headers.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::joda::DatePattern;
use super::{Failures, GROWTH_MAX, Interceptor, review_regex};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::java_regex::JavaRegex;

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("regex_extractor"),
    class: Some("org.apache.flume.interceptor.RegexExtractorInterceptor$Builder"),
    doc: "Sets headers to what an expression's groups match in the body: the first serializer's header to the first group, and so on. A group that takes no part sets nothing. Headers that would make a batch more than 64 MiB larger are not set, with one warning and a count.",
    properties: &[
        Property::text("regex", None, "Java regular expression; its first match in the body (UTF-8) counts.").required(),
        Property::text("serializers", None, "Names of the serializers, one for each group, separated by blanks.").required(),
        Property::text(
            "serializers.*",
            None,
            "`serializers.<s>.name`: the header. `serializers.<s>.type`: `DEFAULT` (the text as it is) or org.apache.flume.interceptor.RegexExtractorInterceptorMillisSerializer, with `serializers.<s>.pattern`, a Joda-Time pattern: the time in milliseconds since 1970.",
        ),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review,
};

const AS_IT_IS: &str = "org.apache.flume.interceptor.RegexExtractorInterceptorPassThroughSerializer";
const MILLIS: &str = "org.apache.flume.interceptor.RegexExtractorInterceptorMillisSerializer";

enum Serializer {
    AsItIs,
    Millis(DatePattern),
}

struct Extract {
    header: String,
    serializer: Serializer,
}

/// What is wrong with one serializer's settings: its key, and why.
type Fault = (String, String);

fn extract(settings: &BTreeMap<String, String>, name: &str) -> Result<Extract, Fault> {
    let key = |last: &str| format!("serializers.{name}.{last}");
    let set = |last: &str| settings.get(&format!("{name}.{last}")).map(|value| value.trim());
    let header = set("name").ok_or_else(|| (key("name"), "the header's name is missing".to_owned()))?.to_owned();
    let serializer = match set("type").unwrap_or("DEFAULT") {
        kind if kind.eq_ignore_ascii_case("default") || kind == AS_IT_IS => Serializer::AsItIs,
        MILLIS => {
            let pattern = set("pattern").ok_or_else(|| (key("pattern"), "the pattern of the time is missing".to_owned()))?;
            Serializer::Millis(DatePattern::parse(pattern).map_err(|why| (key("pattern"), why))?)
        }
        other => return Err((key("type"), format!("`{other}` is not a serializer here; there are DEFAULT and {MILLIS}"))),
    };
    Ok(Extract { header, serializer })
}

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut told = Vec::new();
    let settings = component.below("serializers.");
    let names: Vec<&str> = component.text("serializers").split_whitespace().collect();
    let place =
        |key: &str| component.settings.get(key).or_else(|| component.settings.get("serializers")).and_then(|setting| setting.place.clone());
    for name in &names {
        if let Err((key, why)) = extract(&settings, name) {
            let finding = Finding::error("wrong-value", why).maybe_at(place(&key).as_ref()).key(format!("{}.{key}", component.name));
            told.push(finding.flume("drops the source").remedy("set it as the reference page says"));
        }
        let kind = format!("{name}.type");
        if settings.get(&kind).is_some_and(|kind| kind.eq_ignore_ascii_case("default") && kind != "DEFAULT") {
            let key = format!("serializers.{kind}");
            let finding = Finding::warning("wrong-value", "`default` is read as `DEFAULT`").maybe_at(place(&key).as_ref());
            told.push(
                finding.key(format!("{}.{key}", component.name)).flume("drops the source").remedy("write DEFAULT, or remove the line"),
            );
        }
    }
    match review_regex(component, "regex", JavaRegex::new) {
        Err(finding) => told.push(*finding),
        Ok(regex) if regex.groups() != names.len() => {
            let message = format!("the expression has {} groups, and there are {} serializers", regex.groups(), names.len());
            let finding = Finding::warning("serializers", message).maybe_at(place("serializers").as_ref());
            let finding = finding.key(format!("{}.serializers", component.name));
            told.push(finding.remedy("name one for each group, in their order; write (?:…) for a group that is no header"));
        }
        Ok(_) => {}
    }
    told
}

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let regex = JavaRegex::new(component.text("regex")).context("regex")?;
    let settings = component.below("serializers.");
    let names = component.text("serializers").split_whitespace();
    let extracts = names.map(|name| extract(&settings, name).map_err(|(key, why)| anyhow::anyhow!("{key}: {why}")));
    Ok(Box::new(RegexExtractor { regex, extracts: extracts.collect::<Result<_, _>>()?, failures: Failures::of(component) }))
}

struct RegexExtractor {
    regex: JavaRegex,
    extracts: Vec<Extract>,
    failures: Failures,
}

impl Interceptor for RegexExtractor {
    fn intercept(&self, event: Event) -> Option<Event> {
        self.intercept_within(event, &mut { GROWTH_MAX })
    }

    fn intercept_within(&self, mut event: Event, room: &mut usize) -> Option<Event> {
        let body = event.body.clone();
        let text = String::from_utf8_lossy(&body);
        let groups = self.failures.or(self.regex.groups_of(&text, 0), None).unwrap_or_default();
        let bytes: usize = groups.iter().skip(1).take(self.extracts.len()).flatten().map(ExactSizeIterator::len).sum();
        let Some(left) = room.checked_sub(bytes) else {
            self.failures.or(Err(format!("the headers are {bytes} bytes, which is too much")), ());
            return Some(event);
        };
        *room = left;
        for (extract, group) in self.extracts.iter().zip(groups.into_iter().skip(1)) {
            let Some(found) = group.map(|range| &text[range]) else { continue };
            let value = match &extract.serializer {
                Serializer::AsItIs => Some(found.to_owned()),
                Serializer::Millis(pattern) => self.failures.or(pattern.millis(found).map(|millis| Some(millis.to_string())), None),
            };
            if let Some(value) = value {
                event.set_header(&extract.header, value);
            }
        }
        Some(event)
    }
}
