//! From raw components to a plan: kinds and properties looked up, channels bound, sizes compared.

use std::collections::{BTreeMap, BTreeSet};

use super::component::{Component, Setting};
use super::kinds::{self, Kind, Role};
use super::lenient::leniency;
use super::merge::Raw;
use super::plan::{Options, Plan};
use super::{Finding, Level, Place};
use crate::tls;

pub(super) struct Build<'a> {
    pub(super) strict: bool,
    pub(super) raw: &'a Raw,
    pub(super) options: &'a Options<'a>,
    /// What has come of it so far; the agent's name at first.
    pub(super) plan: Plan,
    pub(super) findings: &'a mut Vec<Finding>,
}

impl Build<'_> {
    pub(super) fn run(mut self) -> Plan {
        // Channels first: sources and sinks are bound to them.
        for role in [Role::Channel, Role::Source, Role::Sink] {
            for (name, place) in self.listed(role) {
                let component = self.component(role, &name, place.as_ref());
                self.plan.of_mut(role).extend(component);
            }
            self.undeclared(role);
            if role == Role::Channel {
                self.channel_capacities();
                self.missing_lists();
            }
        }
        self.bind();
        self.batches();
        let mut told = self.reviewed();
        self.groups();
        self.unattached();
        for at in 0..self.plan.sinks.len() {
            self.exactly_once(at);
            self.timestamp(at);
        }
        self.filters();
        self.findings.append(&mut told);
        self.shared();
        if self.strict {
            self.left_out();
        }
        self.plan
    }

    /// In the strict reading: what is listed and not loaded, and what is left.
    fn left_out(&mut self) {
        let (mut gone, mut left) = (Vec::new(), Vec::new());
        for role in Role::LISTED {
            let names: BTreeSet<&str> = self.raw.lists.get(&role).map(|list| list.value.split_whitespace().collect()).unwrap_or_default();
            for name in names {
                let loaded = self.plan.of(role).iter().any(|component| component.name == name);
                if loaded { &mut left } else { &mut gone }.push(format!("{role} `{name}`"));
            }
        }
        if gone.is_empty() {
            return;
        }
        let left = if left.is_empty() { "nothing is left".to_owned() } else { format!("what is left: {}", left.join(", ")) };
        let finding = Finding::warning("left-out", format!("Flume does not load {}; {left}", gone.join(", "))).key(&self.plan.agent);
        self.findings.push(finding.remedy("the agent does not run as it is written; mend what is told of them"));
    }

    pub(super) fn key(&self, role: Role, name: &str, property: &str) -> String {
        // The key in the file; the table of kinds looks for `type`.
        let property = if (role, property) == (Role::Group, "type") { "processor.type" } else { property };
        format!("{}.{}.{name}.{property}", self.plan.agent, role.plural())
    }

    /// A component that Flume drops while the rest runs: here an error, unless Flume is to be copied.
    pub(super) fn broken(&mut self, finding: Finding) {
        let level = if self.strict { Level::Warning } else { Level::Error };
        self.findings.push(Finding { level, ..finding });
    }

    /// The config filters have done their work; here their lines are checked.
    fn filters(&mut self) {
        for (name, place) in self.listed(Role::Filter) {
            let _checked = self.component(Role::Filter, &name, place.as_ref());
        }
        self.undeclared(Role::Filter);
    }

    fn missing_lists(&mut self) {
        // Others may write what the sinks deliver, or read what the sources collect.
        let shared = self.plan.channels.iter().any(crate::channel::is_shared);
        let other = |role| if role == Role::Source { Role::Sink } else { Role::Source };
        for role in Role::LISTED {
            let without = shared && role != Role::Channel && self.raw.lists.contains_key(&other(role));
            if !self.raw.lists.contains_key(&role) && !without {
                let key = format!("{}.{}", self.plan.agent, role.plural());
                let (flume, why) = match role {
                    Role::Channel => ("drops the agent", "there is no channel"),
                    Role::Source | Role::Interceptor | Role::Selector => ("runs without", "there is no source: nothing is collected"),
                    _ => ("runs until the channel is full", "there is no sink: nothing is delivered"),
                };
                let remedy = format!("list the {} after `{key} =`", role.plural());
                self.broken(Finding::error("no-components", why).key(key).flume(flume).remedy(remedy));
            }
        }
    }

    pub(super) fn listed(&mut self, role: Role) -> Vec<(String, Option<Place>)> {
        let Some(list) = self.raw.lists.get(&role) else { return Vec::new() };
        let (mut names, mut seen) = (Vec::new(), BTreeSet::new());
        for name in list.value.split_whitespace() {
            if !seen.insert(name) {
                let key = format!("{}.{}", self.plan.agent, role.plural());
                self.findings.push(
                    Finding::warning("duplicate-name", format!("`{name}` is listed twice"))
                        .maybe_at(list.place.as_ref())
                        .key(key)
                        .remedy("list it once"),
                );
            } else {
                names.push((name.to_owned(), list.place.clone()));
            }
        }
        names
    }

    pub(super) fn undeclared(&mut self, role: Role) {
        let listed: BTreeSet<&str> = self.raw.lists.get(&role).map(|list| list.value.split_whitespace().collect()).unwrap_or_default();
        for ((of, name), properties) in &self.raw.components {
            if *of == role && !listed.contains(name.as_str()) {
                let place = properties.values().filter_map(|setting| setting.place.as_ref()).min();
                let list = format!("{}.{}", self.plan.agent, role.plural());
                let finding =
                    Finding::warning("not-listed", format!("{role} `{name}` is defined but not listed in {list}, so it does not run"));
                self.findings.push(
                    finding.maybe_at(place).key(self.key(role, name, "*")).remedy(format!("add `{name}` to {list}, or remove its lines")),
                );
            }
        }
    }

    pub(super) fn component(&mut self, role: Role, name: &str, listed_at: Option<&Place>) -> Option<Component> {
        let Some(properties) = self.raw.components.get(&(role, name.to_owned())) else {
            let remedy = if name.contains(',') {
                "separate names by blanks, not commas".to_owned()
            } else {
                let defined = self.raw.components.keys().filter(|(of, _)| *of == role).map(|(_, name)| name.as_str());
                kinds::nearest(name, defined)
                    .map_or_else(|| format!("define {}", self.key(role, name, "type")), |near| format!("did you mean `{near}`?"))
            };
            let list = format!("{}.{}", self.plan.agent, role.plural());
            self.broken(
                Finding::error("not-defined", format!("{role} `{name}` is listed but not defined"))
                    .maybe_at(listed_at)
                    .key(list)
                    .flume("drops it")
                    .remedy(remedy),
            );
            return None;
        };
        self.described(role, name, properties)
    }

    /// A component, or a part of one, from its properties.
    pub(super) fn described(&mut self, role: Role, name: &str, properties: &BTreeMap<String, Setting>) -> Option<Component> {
        let first = properties.values().filter_map(|setting| setting.place.as_ref()).min();
        let Some(kind_setting) = properties.get("type") else {
            let key = self.key(role, name, "type");
            self.broken(
                Finding::error("no-type", format!("{role} `{name}` has no type"))
                    .maybe_at(first)
                    .key(&key)
                    .flume("drops it")
                    .remedy(format!("add {key} = …")),
            );
            return None;
        };
        let kind = self.kind(role, name, kind_setting)?;
        let mut component = Component::new(kind, name, kind_setting.value.trim());
        let mut usable = true;
        // Current keys first: where an old spelling is there too, the current one counts.
        for (key, setting) in properties {
            if kind.property(key).is_some() {
                usable &= self.accept(&mut component, key, setting.clone(), key);
            }
        }
        for (key, setting) in properties {
            if kind.property(key).is_none() && !common(role, key) {
                usable &= self.other_key(&mut component, key, setting);
            }
        }
        if let Some(finding) = tls::fill_from_global(&mut component, self.options.sys, self.options.env) {
            let key = if kind.property(tls::SSL.name).is_some() { tls::SSL.name } else { "type" };
            self.findings.push(finding.key(self.key(role, name, key)));
        }
        if role == Role::Source {
            usable &= self.parts(&mut component, properties);
        }
        for property in kind.properties.iter().filter(|property| property.required) {
            // What is written and wrong has its own finding.
            if !component.settings.contains_key(property.name) && !properties.contains_key(property.name) {
                let key = self.key(role, name, property.name);
                let finding =
                    Finding::error("missing-property", format!("{role} `{name}` ({}) needs {}", component.type_name, property.name))
                        .maybe_at(kind_setting.place.as_ref());
                self.broken(finding.key(&key).flume("drops it").remedy(format!("add {key} = … ({})", first_sentence(property.doc))));
                usable = false;
            }
        }
        // In the default reading an error has been told and nothing starts; what else is wrong is still looked for.
        (usable || !self.strict).then_some(component)
    }

    fn kind(&mut self, role: Role, name: &str, setting: &Setting) -> Option<&'static Kind> {
        let written = setting.value.trim();
        if let Some(kind) = kinds::find(role, written) {
            if self.strict && kind.class.is_none() {
                let finding = Finding::warning("own-kind", format!("Flume has no {role} `{written}`; it runs here"));
                let finding = finding.maybe_at(setting.place.as_ref()).key(self.key(role, name, "type"));
                self.findings.push(
                    finding
                        .flume("stops the whole agent (ClassNotFoundException)")
                        .remedy("nothing to do, if Flume is not to run the file"),
                );
            }
            return Some(kind);
        }
        let key = self.key(role, name, "type");
        let finding = if let Some(missing) = kinds::find_missing(role, written) {
            Finding::error("not-built", format!("{role} `{written}` is not in this version")).flume("runs it").remedy(missing.instead)
        } else {
            let names: Vec<&str> =
                kinds::built().filter(|kind| kind.role == role).flat_map(|kind| [kind.alias, kind.class]).flatten().collect();
            let short = written.rsplit('.').next().unwrap_or(written);
            let close = if role == Role::Sink && written.eq_ignore_ascii_case("kafka") {
                Some("org.apache.flume.sink.kafka.KafkaSink")
            } else {
                kinds::nearest(written, names.iter().copied())
            };
            let close = close.or_else(|| kinds::nearest(short, names));
            let known: Vec<_> = kinds::built().filter(|kind| kind.role == role).map(Kind::name).collect();
            let remedy = close.map_or_else(|| format!("known here: {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            let custom = if written.contains('.') { "custom classes cannot be loaded: " } else { "" };
            let flume = match role {
                Role::Interceptor | Role::Selector => "drops the source",
                Role::Group => "drops the group and its sinks",
                Role::Filter => "leaves what refers to it as it is",
                Role::Source | Role::Channel | Role::Sink => "stops the whole agent (ClassNotFoundException)",
            };
            Finding::error("unknown-type", format!("{custom}there is no {role} `{written}`")).flume(flume).remedy(remedy)
        };
        let finding = finding.maybe_at(setting.place.as_ref()).key(key);
        if finding.drops_component() || (role == Role::Filter && finding.code == "unknown-type") {
            self.broken(finding);
        } else {
            self.findings.push(finding);
        }
        None
    }

    /// Takes a setting under a current key; false when its value is of the wrong type.
    fn accept(&mut self, component: &mut Component, key: &str, setting: Setting, written: &str) -> bool {
        let fault = component.kind.property(key).and_then(|property| property.fault(&setting.value).map(|fault| (property, fault)));
        if let Some((property, fault)) = fault {
            let role = component.kind.role;
            let remedy = match property.default {
                Some(default) => format!("the default is {default}"),
                None if property.required => format!("write a {}", property.kind),
                None => "remove the line".to_owned(),
            };
            let finding =
                Finding::error("wrong-value", fault).maybe_at(setting.place.as_ref()).key(self.key(role, &component.name, written));
            let lenient = leniency(component, property, &setting.value);
            self.broken(finding.flume(lenient.flume).remedy(remedy));
            if let Some((key, value)) = lenient.instead {
                component.settings.insert(key.to_owned(), Setting { value: value.to_owned(), place: setting.place });
            }
            return lenient.runs;
        }
        component.settings.insert(key.to_owned(), setting);
        true
    }

    /// A key that no property has: old, misspelt, or dead.
    fn other_key(&mut self, component: &mut Component, key: &str, setting: &Setting) -> bool {
        let kind = component.kind;
        let full = self.key(kind.role, &component.name, key);
        if let Some((_, new)) = kind.deprecated.iter().find(|(old, _)| *old == key) {
            if new.is_empty() {
                let finding = Finding::warning("no-effect", "accepted without effect").maybe_at(setting.place.as_ref()).key(full);
                self.findings.push(finding.flume("ignores it with a warning").remedy("remove the line"));
                return true;
            }
            let both = component.settings.contains_key(*new);
            let message = if both { format!("old name of `{new}`, which is set too and counts") } else { format!("old name of `{new}`") };
            let finding = Finding::warning("deprecated-key", message)
                .maybe_at(setting.place.as_ref())
                .key(&full)
                .flume("reads it up to 1.11, no longer in later versions");
            self.findings.push(finding.remedy(format!("write {new}")));
            return both || self.accept(component, new, setting.clone(), key);
        }
        let wrong = kind.misspelt.iter().find(|(wrong, _)| *wrong == key).map(|(_, right)| (*right).to_owned());
        if let Some(right) = wrong.or_else(|| (kind.adopt)(key)) {
            let taken = !component.settings.contains_key(&right);
            let message = match (self.strict, taken) {
                (true, _) => format!("dead key; `{right}` is meant"),
                (false, true) => format!("read as `{right}`"),
                (false, false) => format!("`{right}` is set too and counts"),
            };
            let finding = Finding::warning("dead-key", message)
                .maybe_at(setting.place.as_ref())
                .key(&full)
                .flume("ignores it without a word (1.7 to 1.11)");
            self.findings.push(finding.remedy(format!("write {right}")));
            return self.strict || !taken || self.accept(component, &right, setting.clone(), key);
        }
        let near = kinds::nearest(
            key,
            kind.properties
                .iter()
                .map(|property| property.name)
                .chain(kind.deprecated.iter().map(|(old, _)| *old))
                .chain(["type", "channel", "channels"]),
        );
        let remedy = near.map_or_else(
            || format!("remove the line; `millrace-collector components {}` lists the properties", kind.name()),
            |near| format!("did you mean `{near}`?"),
        );
        let finding = Finding::warning("dead-key", format!("{} `{}` has no such property", kind.role, component.type_name))
            .maybe_at(setting.place.as_ref());
        self.findings.push(finding.key(full).flume("keeps it without a word and does nothing with it").remedy(remedy));
        true
    }

    /// `transactionCapacity` must fit into `capacity`.
    fn channel_capacities(&mut self) {
        let mut channels = std::mem::take(&mut self.plan.channels);
        channels.retain_mut(|channel| {
            let (capacity, transaction) = (channel.integer("capacity"), channel.integer("transactionCapacity"));
            if transaction <= capacity || channel.kind.property("capacity").is_none() {
                return true;
            }
            let key = self.key(Role::Channel, &channel.name, "transactionCapacity");
            let (fixed, other) = match (channel.settings.get("capacity"), channel.settings.get("transactionCapacity")) {
                (Some(_), None) => ("transactionCapacity", capacity),
                (None, Some(_)) => ("capacity", transaction),
                _ => ("", 0),
            };
            let place = channel
                .settings
                .get("transactionCapacity")
                .or_else(|| channel.settings.get("capacity"))
                .and_then(|setting| setting.place.clone());
            let message = format!("transactionCapacity {transaction} is more than capacity {capacity}");
            let finding = Finding::error("transaction-capacity", message).maybe_at(place.as_ref()).key(key).flume("drops the channel");
            if self.strict || fixed.is_empty() {
                self.broken(finding.remedy(format!("set capacity to {transaction} or more")));
                return !self.strict;
            }
            let remedy = format!("read as {fixed} = {other}; write it out");
            self.findings.push(Finding { level: Level::Warning, ..finding.remedy(remedy) });
            channel.settings.insert(fixed.to_owned(), Setting { value: other.to_string(), place: None });
            true
        });
        self.plan.channels = channels;
    }

    fn bind(&mut self) {
        let known: BTreeSet<String> = self.plan.channels.iter().map(|channel| channel.name.clone()).collect();
        let raw = self.raw;
        let declared: BTreeSet<&str> =
            raw.lists.get(&Role::Channel).map(|list| list.value.split_whitespace().collect()).unwrap_or_default();
        for role in [Role::Source, Role::Sink] {
            let mut components = std::mem::take(self.plan.of_mut(role));
            components.retain_mut(|component| {
                let bound = self.bind_one(component, &known, &declared);
                if let Some(selector) = &mut component.selector {
                    selector.channels.clone_from(&component.channels);
                }
                bound
            });
            *self.plan.of_mut(role) = components;
        }
    }

    /// Finds the channels of a source or sink; false when Flume drops it for want of one.
    fn bind_one(&mut self, component: &mut Component, known: &BTreeSet<String>, declared: &BTreeSet<&str>) -> bool {
        let role = component.kind.role;
        let (right, wrong) = if role == Role::Source { ("channels", "channel") } else { ("channel", "channels") };
        let properties = self.raw.components.get(&(role, component.name.clone()));
        let at = |key: &str| properties.and_then(|properties| properties.get(key)).cloned();
        let key = self.key(role, &component.name, right);
        let type_place = at("type").and_then(|setting| setting.place);
        let drops = format!("drops the {role}{}", if role == Role::Source { " and collects nothing from it" } else { "" });
        let written = match (at(right), at(wrong)) {
            (Some(setting), _) => setting,
            (None, Some(setting)) => {
                let finding =
                    Finding::warning("channel-key", format!("a {role} has `{right}`, not `{wrong}`")).maybe_at(setting.place.as_ref());
                let finding = finding.key(self.key(role, &component.name, wrong)).flume(&drops);
                if self.strict {
                    self.findings.push(finding.remedy(format!("write {key}")));
                    return false;
                }
                self.findings.push(finding.remedy(format!("read as {key}; write it so")));
                setting
            }
            (None, None) => {
                let finding = Finding::error("no-channel", format!("{role} `{}` has no `{right}` line", component.name))
                    .maybe_at(type_place.as_ref())
                    .key(&key)
                    .flume(&drops);
                return match known.first() {
                    Some(only) if known.len() == 1 && !self.strict => {
                        component.channels = vec![only.clone()];
                        let finding = finding.remedy(format!("bound to `{only}`, the agent's only channel; add {key} = {only}"));
                        self.findings.push(Finding { level: Level::Warning, ..finding });
                        true
                    }
                    _ => {
                        let remedy = if known.is_empty() {
                            format!("add {key} = …")
                        } else {
                            format!("add {key} = one of {}", self.channel_names())
                        };
                        self.broken(finding.remedy(remedy));
                        !self.strict
                    }
                };
            }
        };
        let mut names: Vec<&str> = written.value.split_whitespace().collect();
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
        if role == Role::Sink && names.len() > 1 {
            let finding =
                Finding::error("many-channels", "a sink reads from one channel").maybe_at(written.place.as_ref()).key(&key).flume(&drops);
            self.broken(finding.remedy("name one; define a second sink for the other"));
            return !self.strict;
        }
        for name in names {
            if known.contains(name) {
                component.channels.push(name.to_owned());
            } else if !declared.contains(name) || self.strict {
                // A channel that is declared but wrong has its own finding already.
                let remedy = match kinds::nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("list `{name}` in {}.channels and define it", self.plan.agent),
                };
                let flume = if role == Role::Source { "leaves it out; without any channel it drops the source" } else { "drops the sink" };
                self.broken(
                    Finding::error("no-such-channel", format!("there is no channel `{name}`"))
                        .maybe_at(written.place.as_ref())
                        .key(&key)
                        .flume(flume)
                        .remedy(remedy),
                );
            }
        }
        !(self.strict && component.channels.is_empty())
    }

    fn channel_names(&self) -> String {
        self.plan.channels.iter().map(|channel| channel.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A batch must fit into its channel's transaction.
    fn batches(&mut self) {
        let channels: BTreeMap<String, usize> =
            self.plan.channels.iter().enumerate().map(|(at, channel)| (channel.name.clone(), at)).collect();
        for role in [Role::Source, Role::Sink] {
            let mut components = std::mem::take(self.plan.of_mut(role));
            components.retain(|component| self.batch_fits(component, &channels));
            *self.plan.of_mut(role) = components;
        }
    }

    fn batch_fits(&mut self, component: &Component, channels: &BTreeMap<String, usize>) -> bool {
        let Some(property) = component.kind.batch else { return true };
        let batch = component.integer(property);
        // Of a kind that Flume does not have there is no reading of Flume's.
        let known = component.kind.class.is_some();
        let strict = self.strict && known;
        let mut fits = true;
        let (mut told, agent) = (Vec::new(), self.plan.agent.clone());
        let mut its: Vec<usize> = component.channels.iter().filter_map(|name| channels.get(name).copied()).collect();
        its.sort_unstable();
        for at in its {
            let channel = &mut self.plan.channels[at];
            if channel.kind.property("transactionCapacity").is_none() {
                continue;
            }
            let transaction = channel.integer("transactionCapacity");
            if batch <= transaction {
                continue;
            }
            let setting = component.settings.get(property).or_else(|| channel.settings.get("transactionCapacity"));
            let capacity_fits = batch <= channel.integer("capacity") || !channel.settings.contains_key("capacity");
            let role = component.kind.role;
            let line = format!("{agent}.channels.{}.transactionCapacity", channel.name);
            let message = format!("{property} {batch} is more than channel `{}`'s transactionCapacity {transaction}", channel.name);
            let finding = Finding::error("batch-too-large", message).maybe_at(setting.and_then(|setting| setting.place.as_ref()));
            let finding = finding.key(format!("{agent}.{}.{}.{property}", role.plural(), component.name)).flume(if known {
                format!("drops the {role} and runs on without it")
            } else {
                String::new()
            });
            if !strict && capacity_fits && !channel.settings.contains_key("transactionCapacity") {
                let own = |value: i64| Setting { value: value.to_string(), place: None };
                channel.settings.insert("transactionCapacity".into(), own(batch));
                if batch > channel.integer("capacity") {
                    channel.settings.insert("capacity".into(), own(batch));
                }
                told.push(Finding { level: Level::Warning, ..finding.remedy(format!("read as {line} = {batch}; write it out")) });
            } else {
                let level = if strict { Level::Warning } else { Level::Error };
                told.push(Finding { level, ..finding.remedy(format!("set {line} to {batch} or more")) });
                fits = false;
            }
        }
        self.findings.append(&mut told);
        fits || !strict
    }

    fn unattached(&mut self) {
        let used: BTreeSet<String> =
            self.plan.sources.iter().chain(&self.plan.sinks).flat_map(|component| component.channels.clone()).collect();
        let read: BTreeSet<String> = self.plan.sinks.iter().flat_map(|sink| sink.channels.clone()).collect();
        let told_worse = self.findings.iter().any(|finding| finding.level == Level::Error);
        let mut channels = std::mem::take(&mut self.plan.channels);
        channels.retain(|channel| {
            let place = self
                .raw
                .components
                .get(&(Role::Channel, channel.name.clone()))
                .and_then(|properties| properties.get("type"))
                .and_then(|setting| setting.place.clone());
            if !used.contains(&channel.name) {
                let finding = Finding::warning("unattached-channel", format!("nothing is attached to channel `{}`", channel.name))
                    .maybe_at(place.as_ref());
                self.findings.push(
                    finding
                        .key(self.key(Role::Channel, &channel.name, "type"))
                        .flume("drops it")
                        .remedy("attach a source and a sink, or remove it"),
                );
                return false;
            }
            if !read.contains(&channel.name) && !told_worse && !crate::channel::is_shared(channel) {
                let finding =
                    Finding::warning("no-sink", format!("no sink reads channel `{}`; it fills up", channel.name)).maybe_at(place.as_ref());
                self.findings.push(finding.key(self.key(Role::Channel, &channel.name, "type")).remedy("add a sink for it"));
            }
            true
        });
        self.plan.channels = channels;
    }

    /// Parts of the time in a sink's path, and no source whose events have one.
    fn timestamp(&mut self, at: usize) {
        let Some(sink) = self.plan.sinks.get(at) else { return };
        let Some(key) = crate::sink::hdfs::needs_timestamp(sink) else { return };
        let without: Vec<&str> = self
            .plan
            .sources
            .iter()
            .filter(|source| source.channels.iter().any(|channel| sink.channels.contains(channel)))
            .filter(|source| !crate::source::sets_timestamp(source))
            .map(|source| source.name.as_str())
            .collect();
        if without.is_empty() {
            return;
        }
        let message = format!(
            "the path holds parts of the time, and nothing here gives the events of `{}` a header `timestamp`; those without are put aside as dead letters",
            without.join("`, `")
        );
        let finding = Finding::warning("no-timestamp", message)
            .maybe_at(sink.settings.get(key).and_then(|setting| setting.place.as_ref()))
            .key(self.key(Role::Sink, &sink.name, key))
            .flume("fails with each batch that has such an event, and tries again for ever");
        let remedy =
            "set hdfs.useLocalTimeStamp = true, or give the source the timestamp interceptor; nothing to do, if the senders set the header";
        self.findings.push(finding.remedy(remedy));
    }

    /// File positions inside the sink's transactions: only one sink may then read the channel, and only tailed files have positions.
    fn exactly_once(&mut self, at: usize) {
        const KEY: &str = "kafka.producer.transactional.id";
        let Some(sink) = self.plan.sinks.get(at) else { return };
        let Some(setting) = sink.settings.get(KEY) else { return };
        let key = self.key(Role::Sink, &sink.name, KEY);
        let place = setting.place.as_ref();
        let id = setting.value.clone();
        let of_channel = |component: &&Component| component.channels.iter().any(|channel| sink.channels.contains(channel));
        let mut told = Vec::new();
        let others: Vec<_> =
            self.plan.sinks.iter().filter(of_channel).map(|other| other.name.as_str()).filter(|name| *name != sink.name).collect();
        if !others.is_empty() {
            let finding = Finding::error(
                "exactly-once",
                format!("sink `{}` is transactional, but `{}` takes events from the same channel", sink.name, others.join("`, `")),
            );
            told.push(
                finding.flume("has no transactional sink in 1.11").remedy("give each sink its own channel, or remove the transactional id"),
            );
        }
        if self.plan.sinks.iter().filter(|other| other.set(KEY) == Some(id.as_str())).count() > 1 {
            told.push(
                Finding::error(
                    "exactly-once",
                    format!("transactional id `{id}` is used by two sinks, which would fence each other for ever"),
                )
                .remedy("give each sink its own id"),
            );
        }
        for channel in self.plan.channels.iter().filter(|channel| sink.channels.contains(&channel.name)) {
            let finding = if crate::channel::is_shared(channel) {
                let message =
                    format!("events of channel `{}` are written in transactions, but may be repeated after a crash", channel.name);
                Finding::warning("exactly-once", message).remedy("use a `file` channel")
            } else if crate::channel::spills(channel) {
                let message = format!(
                    "channel `{}` is partly on disk: what is there has the channel's positions and not its file's, so that a crash may \
                     repeat events",
                    channel.name
                );
                Finding::warning("exactly-once", message).remedy("use a `file` or a `memory` channel, or set its overflowCapacity to 0")
            } else {
                continue;
            };
            told.push(finding);
        }
        // What a durable channel has taken has its number there for a position, whatever source it is from.
        let durable = sink.channels.iter().all(|channel| self.plan.has_durable_channel(channel));
        for source in self.plan.sources.iter().filter(of_channel).filter(|_| !durable) {
            if source.channels.len() > 1 {
                let message = format!(
                    "source `{}` writes to {} channels; its file positions can be in one sink's transaction only",
                    source.name,
                    source.channels.len()
                );
                told.push(Finding::error("exactly-once", message).remedy("give the source one channel, or remove the transactional id"));
            } else if !crate::source::has_positions(source, self.strict) {
                let lost = if crate::source::reads_again(source, self.strict) { "" } else { " or lost with the process" };
                let message = format!(
                    "source `{}` ({}) has no positions in files: its events are written in transactions, but may be repeated{lost}",
                    source.name, source.type_name
                );
                told.push(
                    Finding::warning("exactly-once", message)
                        .remedy("collect one file with `exec` tail -F and nothing else, or several with TAILDIR; or use a `file` channel"),
                );
            }
        }
        let place = place.cloned();
        self.findings.extend(told.into_iter().map(|finding| finding.maybe_at(place.as_ref()).key(key.clone())));
    }
}

/// Keys that every component of a role may have.
fn common(role: Role, key: &str) -> bool {
    match role {
        Role::Source => {
            ["type", "channels", "channel"].contains(&key) || ["selector.", "interceptors"].iter().any(|prefix| key.starts_with(prefix))
        }
        Role::Sink => ["type", "channels", "channel"].contains(&key),
        Role::Group => ["type", "processor.type"].contains(&key),
        Role::Channel | Role::Interceptor | Role::Selector | Role::Filter => key == "type",
    }
}

fn first_sentence(doc: &str) -> &str {
    doc.split(". ").next().unwrap_or(doc).trim_end_matches('.')
}
