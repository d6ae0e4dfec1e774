//! What is part of a source: its interceptors, in their order, and its channel selector.

use std::collections::BTreeMap;

use super::Finding;
use super::build::Build;
use super::component::{Component, Setting};
use super::kinds::{self, Role};

impl Build<'_> {
    /// Reads the parts of a source; false when Flume drops the source because of one.
    pub(super) fn parts(&mut self, source: &mut Component, properties: &BTreeMap<String, Setting>) -> bool {
        self.interceptors(source, properties) & self.selector(source, properties)
    }

    fn interceptors(&mut self, source: &mut Component, properties: &BTreeMap<String, Setting>) -> bool {
        let list = properties.get("interceptors");
        let listed: Vec<&str> = list.map(|list| list.value.split_whitespace().collect()).unwrap_or_default();
        let mut defined: Vec<&str> =
            properties.keys().filter_map(|key| key.strip_prefix("interceptors.")?.split_once('.')).map(|(name, _)| name).collect();
        defined.dedup();
        let place = list.and_then(|list| list.place.as_ref());
        let mut usable = true;
        for name in &listed {
            let path = format!("{}.interceptors.{name}", source.name);
            let settings = below(properties, &format!("interceptors.{name}."));
            if settings.is_empty() {
                let remedy = match kinds::nearest(name, defined.iter().copied()) {
                    _ if name.contains(',') => "separate names by blanks, not commas".to_owned(),
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("define {}", self.key(Role::Interceptor, &path, "type")),
                };
                let finding = Finding::error("not-defined", format!("interceptor `{name}` is listed but not defined")).maybe_at(place);
                self.broken(finding.key(self.key(Role::Source, &source.name, "interceptors")).flume("drops the source").remedy(remedy));
                usable = false;
                continue;
            }
            match self.described(Role::Interceptor, &path, &settings) {
                Some(part) => source.interceptors.push(part),
                None => usable = false,
            }
        }
        for name in defined.iter().filter(|name| !listed.contains(name)) {
            let place = below(properties, &format!("interceptors.{name}.")).into_values().filter_map(|setting| setting.place).min();
            let list = self.key(Role::Source, &source.name, "interceptors");
            let finding = Finding::warning("not-listed", format!("interceptor `{name}` is defined but not listed, so it does nothing"));
            let key = self.key(Role::Interceptor, &format!("{}.interceptors.{name}", source.name), "*");
            self.findings.push(finding.maybe_at(place.as_ref()).key(key).remedy(format!("add `{name}` to {list}, or remove its lines")));
        }
        usable
    }

    fn selector(&mut self, source: &mut Component, properties: &BTreeMap<String, Setting>) -> bool {
        let mut settings = below(properties, "selector.");
        if settings.is_empty() {
            return true;
        }
        // Flume's default where only `selector.optional` is written.
        settings.entry("type".into()).or_insert_with(|| Setting { value: "replicating".into(), place: None });
        let selector = self.described(Role::Selector, &format!("{}.selector", source.name), &settings);
        let usable = selector.is_some();
        source.selector = selector.map(Box::new);
        usable
    }
}

fn below(properties: &BTreeMap<String, Setting>, prefix: &str) -> BTreeMap<String, Setting> {
    let under = properties.iter().filter_map(|(key, setting)| Some((key.strip_prefix(prefix)?.to_owned(), setting.clone())));
    under.collect()
}
