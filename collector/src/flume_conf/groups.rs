//! Sink groups: which sinks each has, and what Flume makes of a group that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::build::Build;
use super::component::{Component, Setting};
use super::kinds::{self, Role};
use super::{Finding, Level, Place};

impl Build<'_> {
    /// Reads the groups and tells their sinks. After this, sinks that Flume drops with a group are gone in the strict reading.
    pub(super) fn groups(&mut self) {
        let listed = self.listed(Role::Group);
        let mut used: BTreeMap<String, String> = BTreeMap::new();
        for (name, place) in listed {
            self.group(&name, place.as_ref(), &mut used);
        }
        self.undeclared(Role::Group);
    }

    fn group(&mut self, name: &str, listed_at: Option<&Place>, used: &mut BTreeMap<String, String>) {
        let Some(properties) = self.raw.components.get(&(Role::Group, name.to_owned())) else {
            let _none = self.component(Role::Group, name, listed_at);
            return;
        };
        let first = properties.values().filter_map(|setting| setting.place.as_ref()).min();
        let Some(list) = properties.get("sinks") else {
            let key = self.key(Role::Group, name, "sinks");
            let finding = Finding::error("missing-property", format!("sink group `{name}` has no sinks")).maybe_at(first);
            self.broken(finding.key(&key).flume("fails while it reads the file; nothing starts").remedy(format!("add {key} = …")));
            if self.strict {
                self.nothing_starts();
            }
            return;
        };
        let Some(sinks) = self.sinks_of(name, list, used) else { return };
        let mut properties = properties.clone();
        properties.insert("sinks".into(), Setting { value: sinks.join(" "), place: list.place.clone() });
        // The table of kinds looks for `type`.
        let kind = properties.remove("processor.type");
        let Some(kind) = kind else {
            let key = self.key(Role::Group, name, "processor.type");
            let finding = Finding::error("no-type", format!("sink group `{name}` has no processor.type")).maybe_at(first);
            let finding = finding.key(&key).flume("drops the group and its sinks");
            self.broken(finding.remedy(format!("add {key} = failover, load_balance, or default for one sink alone")));
            self.drop_sinks(&sinks);
            return;
        };
        properties.insert("type".into(), kind);
        let Some(mut group) = self.described(Role::Group, name, &properties) else {
            self.drop_sinks(&sinks);
            return;
        };
        group.channels = sinks.clone();
        self.one_channel(&group);
        let told = (group.kind.review)(&group, self.strict);
        let dropped = self.strict && told.iter().any(Finding::drops_component);
        let prefix = format!("{}.sinkgroups", self.plan.agent);
        self.findings.extend(told.into_iter().map(|finding| Finding { key: finding.key.map(|key| format!("{prefix}.{key}")), ..finding }));
        if dropped {
            self.drop_sinks(&sinks);
            return;
        }
        if self.strict {
            self.leave_out_duplicates(&mut group);
        }
        for sink in self.plan.sinks.iter_mut().filter(|sink| sinks.contains(&sink.name)) {
            sink.group = Some(Box::new(group.clone()));
        }
        self.plan.groups.push(group);
    }

    /// The group's sinks that run and that no other group has; `None` where Flume does not go on with the group.
    fn sinks_of(&mut self, name: &str, list: &Setting, used: &mut BTreeMap<String, String>) -> Option<Vec<String>> {
        let key = self.key(Role::Group, name, "sinks");
        let mut sinks: Vec<String> = Vec::new();
        let declared: BTreeSet<&str> =
            self.raw.lists.get(&Role::Sink).map(|list| list.value.split_whitespace().collect()).unwrap_or_default();
        for sink in list.value.split_whitespace() {
            let error = |code, message: String| Finding::error(code, message).maybe_at(list.place.as_ref()).key(&key);
            if let Some(other) = used.get(sink) {
                let finding = error("sink-in-two-groups", format!("sink `{sink}` is in group `{other}` already"));
                self.broken(finding.flume("leaves it out of this group").remedy("name it in one of them"));
                continue;
            }
            if self.plan.sinks.iter().any(|known| known.name == sink) {
                if !sinks.iter().any(|known| known == sink) {
                    sinks.push(sink.to_owned());
                }
                used.insert(sink.to_owned(), name.to_owned());
                continue;
            }
            if !declared.contains(sink) {
                let names = self.plan.sinks.iter().map(|sink| sink.name.as_str());
                let remedy = kinds::nearest(sink, names).map_or_else(
                    || format!("list `{sink}` in {}.sinks and define it", self.plan.agent),
                    |near| format!("did you mean `{near}`?"),
                );
                self.broken(error("no-such-sink", format!("there is no sink `{sink}`")).flume("leaves it out of the group").remedy(remedy));
            } else if self.strict && self.is_bound(sink) {
                let finding = error("no-such-sink", format!("sink `{sink}` of the group is wrong"));
                self.broken(finding.flume("starts nothing at all").remedy("correct the sink"));
                self.nothing_starts();
                return None;
            }
        }
        if sinks.is_empty() {
            let finding = Finding::error("group-size", format!("no sink is left for sink group `{name}`")).maybe_at(list.place.as_ref());
            self.broken(
                finding.key(&key).flume("drops the group; its sinks run by themselves").remedy("name sinks that run and have no group"),
            );
            return None;
        }
        Some(sinks)
    }

    /// Is the sink defined, with a channel that is there? Flume finds what else is wrong with it later, and gives up then.
    fn is_bound(&self, sink: &str) -> bool {
        let Some(properties) = self.raw.components.get(&(Role::Sink, sink.to_owned())) else { return false };
        let channel = properties.get("channel").map(|setting| setting.value.trim());
        properties.contains_key("type") && channel.is_some_and(|name| self.plan.channels.iter().any(|channel| channel.name == name))
    }

    /// Events move from a failed sink to another one through their channel.
    fn one_channel(&mut self, group: &Component) {
        let members: Vec<&Component> = self.plan.sinks.iter().filter(|sink| group.channels.contains(&sink.name)).collect();
        let channels: BTreeSet<&String> = members.iter().flat_map(|sink| &sink.channels).collect();
        let place = group.settings.get("sinks").and_then(|setting| setting.place.clone());
        let key = self.key(Role::Group, &group.name, "sinks");
        let mut told = Vec::new();
        if channels.len() > 1 && crate::group::supervises(group) {
            let names: Vec<&str> = channels.iter().map(|name| name.as_str()).collect();
            let message = format!("the group's sinks read {}: no sink takes over another channel's events", names.join(", "));
            told.push(Finding::warning("group-channels", message).flume("does the same without a word").remedy("give them one channel"));
        }
        if let Some(sink) = members.iter().find(|sink| crate::sink::keeps_positions(sink))
            && crate::group::supervises(group)
        {
            let message = format!("sink `{}` is transactional: what it has sent and not committed cannot go to another sink", sink.name);
            told.push(Finding::error("exactly-once", message).remedy("take it out of the group, or remove its transactional id"));
        }
        self.findings.extend(told.into_iter().map(|finding| finding.maybe_at(place.as_ref()).key(&key)));
    }

    /// Flume leaves a sink out whose priority another one has; it does not run then.
    fn leave_out_duplicates(&mut self, group: &mut Component) {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let priority = |sink: &String| group.set(&format!("processor.priority.{sink}")).map(|text| text.trim().to_owned());
        let out: Vec<String> =
            group.channels.iter().filter(|sink| priority(sink).is_some_and(|text| !seen.insert(text))).cloned().collect();
        group.channels.retain(|sink| !out.contains(sink));
        self.drop_sinks(&out);
    }

    /// In the strict reading; otherwise an error has been told, and nothing starts.
    fn drop_sinks(&mut self, sinks: &[String]) {
        if self.strict {
            self.plan.sinks.retain(|sink| !sinks.contains(&sink.name));
            self.plan.groups.retain(|group| group.channels.iter().any(|sink| !sinks.contains(sink)));
        }
    }

    fn nothing_starts(&mut self) {
        let plan = &mut self.plan;
        (plan.sources, plan.channels, plan.sinks, plan.groups) = Default::default();
    }

    /// A source runs with the channels that are left, a sink only with its one.
    fn unbind(&mut self) {
        let known: BTreeSet<String> = self.plan.channels.iter().map(|channel| channel.name.clone()).collect();
        for role in [Role::Source, Role::Sink] {
            self.plan.of_mut(role).retain_mut(|component| {
                component.channels.retain(|channel| known.contains(channel));
                !component.channels.is_empty()
            });
        }
    }

    /// Leaves out what Flume drops because of what a kind's own review finds; the findings are told by the caller.
    pub(super) fn reviewed(&mut self) -> Vec<Finding> {
        let mut all = Vec::new();
        for role in [Role::Channel, Role::Source, Role::Sink] {
            let mut components = std::mem::take(self.plan.of_mut(role));
            components.retain(|component| {
                let mut dropped = false;
                for part in component.with_parts() {
                    let prefix = format!("{}.{}", self.plan.agent, part.kind.role.plural());
                    for mut finding in (part.kind.review)(part, self.strict) {
                        finding.key = finding.key.map(|key| format!("{prefix}.{key}"));
                        if self.strict && finding.drops_component() {
                            dropped = true;
                            finding.level = finding.level.max(Level::Warning);
                        }
                        all.push(finding);
                    }
                }
                !dropped
            });
            *self.plan.of_mut(role) = components;
            if self.strict && role == Role::Channel {
                self.unbind();
            }
        }
        all
    }
}
