//! `remove_header`: headers taken off, by name, by a list of names, or by an expression that the whole name matches.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::Context as _;

use super::{Failures, Interceptor, review_regex};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::java_regex::JavaRegex;

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("remove_header"),
    class: Some("org.apache.flume.interceptor.RemoveHeaderInterceptor$Builder"),
    doc: "Takes headers off: the one of a name, those of a list, those whose name matches an expression.",
    properties: &[
        Property::text("withName", None, "The header with this name."),
        Property::text("fromList", None, "The headers of this list."),
        Property::text("fromListSeparator", Some(r"\s*,\s*"), "Java regular expression for what stands between the list's names."),
        Property::text("matching", None, "Headers whose whole name this Java regular expression matches."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut told: Vec<Finding> = ["fromListSeparator", "matching"]
        .into_iter()
        .filter_map(|key| review_regex(component, key, JavaRegex::whole).err())
        .map(|finding| *finding)
        .collect();
    if ["withName", "fromList", "matching"].iter().all(|key| component.set(key).is_none()) {
        let finding = Finding::warning("no-effect", "nothing is removed: neither withName nor fromList nor matching is set");
        told.push(finding.key(format!("{}.withName", component.name)).remedy("set one of them, or remove the interceptor"));
    }
    told
}

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let mut names: BTreeSet<String> = component.set("withName").map(str::to_owned).into_iter().collect();
    if let Some(list) = component.set("fromList") {
        names.extend(JavaRegex::new(component.text("fromListSeparator")).context("fromListSeparator")?.split(list)?);
    }
    let matching = component.set("matching").map(JavaRegex::whole).transpose().context("matching")?;
    Ok(Box::new(RemoveHeader { names, matching, failures: Failures::of(component) }))
}

struct RemoveHeader {
    names: BTreeSet<String>,
    matching: Option<JavaRegex>,
    failures: Failures,
}

impl RemoveHeader {
    fn removes(&self, name: &str) -> bool {
        let matches = |regex: &JavaRegex| self.failures.or(regex.find(name), false);
        self.names.contains(name) || self.matching.as_ref().is_some_and(matches)
    }
}

impl Interceptor for RemoveHeader {
    fn intercept(&self, mut event: Event) -> Option<Event> {
        // Headers are shared: they are copied only where one goes.
        if let Some(headers) = event.headers.as_mut().filter(|headers| headers.keys().any(|name| self.removes(name))) {
            Arc::make_mut(headers).retain(|name, _| !self.removes(name));
            if headers.is_empty() {
                event.headers = None;
            }
        }
        Some(event)
    }
}
