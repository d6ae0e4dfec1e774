//! `regex_filter`: events whose body matches go on, or end here.

use anyhow::Context as _;

use super::{Failures, Interceptor, review_regex};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::java_regex::JavaRegex;

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("regex_filter"),
    class: Some("org.apache.flume.interceptor.RegexFilteringInterceptor$Builder"),
    doc: "Lets events pass in whose body an expression matches somewhere, or the others.",
    properties: &[
        Property::text("regex", Some(".*"), "Java regular expression, matched anywhere in the body (UTF-8)."),
        Property::boolean("excludeEvents", "false", "The events that match end here; the others pass."),
    ],
    deprecated: &[],
    misspelt: &[("excludeRegex", "excludeEvents"), ("pattern", "regex")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    review_regex(component, "regex", JavaRegex::new).err().map(|finding| *finding).into_iter().collect()
}

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let regex = JavaRegex::new(component.text("regex")).context("regex")?;
    Ok(Box::new(RegexFilter { regex, exclude: component.boolean("excludeEvents"), failures: Failures::of(component) }))
}

struct RegexFilter {
    regex: JavaRegex,
    exclude: bool,
    failures: Failures,
}

impl Interceptor for RegexFilter {
    fn intercept(&self, event: Event) -> Option<Event> {
        // What cannot be decided passes: an event too many does less harm than one too few.
        let found = self.failures.or(self.regex.find(&String::from_utf8_lossy(&event.body)), !self.exclude);
        (found != self.exclude).then_some(event)
    }
}
