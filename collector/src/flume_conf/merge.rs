//! From files to one agent's raw components: values merged and substituted, keys sorted by agent, role and name.

use std::collections::BTreeMap;

use super::component::Setting;
use super::kinds::{self, Role};
use super::plan::{ConfFile, Options};
use super::substitute::{Variables, substitute};
use super::{Finding, Level, Place, filters, properties};

/// A value with its place, substituted.
pub(super) type Merged = BTreeMap<String, Setting>;

pub(super) fn merge(files: &[ConfFile<'_>], options: &Options<'_>, findings: &mut Vec<Finding>) -> Merged {
    let mut merged = Merged::new();
    for file in files {
        let text = properties::decode(file.bytes, options.strict);
        if properties::is_mangled(file.bytes) {
            let line = file.bytes.split(|byte| *byte == b'\n').take_while(|line| line.is_ascii()).count() + 1;
            let place = Place { file: file.name.to_owned(), line: u32::try_from(line).unwrap_or(u32::MAX) };
            let (level, message) =
                if options.strict { (Level::Warning, "UTF-8, read as ISO-8859-1") } else { (Level::Note, "the file is read as UTF-8") };
            let finding = Finding::new(level, "encoding", message).at(&place);
            findings.push(
                finding.flume("reads ISO-8859-1: two or more other letters for each").remedy("write \\uXXXX for letters beyond ASCII"),
            );
        }
        let (entries, faults) = properties::parse(&text);
        for fault in faults {
            let place = Place { file: file.name.to_owned(), line: fault.line };
            findings.push(
                Finding::error("unreadable-line", fault.message)
                    .at(&place)
                    .flume("does not load the file")
                    .remedy("double the backslash, or write four digits"),
            );
        }
        let mut in_this_file: BTreeMap<String, u32> = BTreeMap::new();
        for entry in entries {
            let place = Place { file: file.name.to_owned(), line: entry.line };
            if !entry.key.contains('.') || entry.value.is_empty() {
                findings.push(ignored_line(&entry, &place, options.strict));
                continue;
            }
            if !entry.lost_escapes.is_empty() {
                let lost: String = entry.lost_escapes.iter().map(|char| format!("\\{char} ")).collect();
                let finding = Finding::warning(
                    "lost-backslash",
                    format!("a single backslash is dropped by the file's grammar ({}reads without it)", lost),
                );
                findings.push(finding.at(&place).key(&entry.key).remedy("double it: \\\\"));
            }
            if let Some(at) = entry.value.find(" #").or_else(|| entry.value.find("\t#")) {
                let finding = Finding::warning(
                    "comment-in-value",
                    format!("`{}` is part of the value, not a comment", entry.value.split_at(at).1.trim()),
                );
                findings.push(finding.at(&place).key(&entry.key).remedy("put the comment on its own line"));
            }
            if let Some(before) = in_this_file.insert(entry.key.clone(), entry.line) {
                let finding = Finding::warning("duplicate-key", format!("set before in line {before}; the last one counts"));
                findings.push(finding.at(&place).key(&entry.key).remedy("remove one of them"));
            }
            merged.insert(entry.key, Setting { value: entry.value, place: Some(place) });
        }
    }
    let raw: BTreeMap<String, String> = merged.iter().map(|(key, setting)| (key.clone(), setting.value.clone())).collect();
    let variables = Variables { env: options.env, sys: options.sys, now: options.now };
    for (key, setting) in &mut merged {
        if !setting.value.contains("${") {
            continue;
        }
        let substituted = substitute(&setting.value, &raw, &variables);
        setting.value = substituted.value;
        if let Some(cycle) = substituted.cycle {
            let finding =
                Finding::error("circular-reference", format!("`{cycle}` refers to itself")).maybe_at(setting.place.as_ref()).key(key);
            findings.push(finding.flume("does not load the file").remedy("write the value out once"));
        }
        for unknown in substituted.unknown {
            if filters::is_reference(&unknown) {
                continue;
            }
            let message = format!("`${{{unknown}}}` is not known and stays as it is");
            let finding = Finding::warning("unknown-variable", message).maybe_at(setting.place.as_ref()).key(key);
            let remedy = if !unknown.contains(['.', ':']) && !unknown.contains(char::is_lowercase) {
                format!("write ${{env:{unknown}}}, if a variable of the environment is meant")
            } else {
                "set it, or give a default: ${env:NAME:-value}".to_owned()
            };
            findings.push(finding.remedy(remedy));
        }
    }
    filters::apply(&mut merged, options, findings);
    merged
}

/// A line that Flume ignores with a warning: its key has no dot, or its value is empty.
fn ignored_line(entry: &properties::Entry, place: &Place, strict: bool) -> Finding {
    let finding = if !entry.separated {
        let level = if strict { Level::Warning } else { Level::Error };
        Finding::new(level, "unreadable-line", "this line has no `=`").remedy("write `key = value`, or begin a comment with #")
    } else if entry.value.is_empty() {
        Finding::warning("empty-value", "the value is empty, so the key has no effect").remedy("give a value or remove the line")
    } else {
        Finding::warning("foreign-key", "no agent's key: it has no dot").remedy("write <agent>.<sources|channels|sinks>…")
    };
    finding.at(place).key(&entry.key).flume("ignores the line")
}

/// One agent's part of the file.
#[derive(Default)]
pub(super) struct Raw {
    /// `sources = a b`.
    pub(super) lists: BTreeMap<Role, Setting>,
    /// Role, name → key → value.
    pub(super) components: BTreeMap<(Role, String), BTreeMap<String, Setting>>,
}

pub(super) fn group(merged: Merged, options: &Options<'_>, findings: &mut Vec<Finding>) -> BTreeMap<String, Raw> {
    let mut agents: BTreeMap<String, Raw> = BTreeMap::new();
    let mut strays: Vec<(String, String, Setting)> = Vec::new();
    for (key, setting) in merged {
        let Some((agent, rest)) = key.split_once('.') else { continue };
        const ROLES: [Role; 5] = [Role::Source, Role::Channel, Role::Sink, Role::Group, Role::Filter];
        let role = ROLES.into_iter().find(|role| rest == role.plural());
        if let Some(role) = role {
            agents.entry(agent.to_owned()).or_default().lists.insert(role, setting);
            continue;
        }
        let mut parts = rest.splitn(3, '.');
        let role = parts.next().and_then(|word| ROLES.into_iter().find(|role| word == role.plural()));
        match (role, parts.next(), parts.next()) {
            (Some(role), Some(name), Some(property)) if !name.is_empty() && !property.is_empty() => {
                let raw = agents.entry(agent.to_owned()).or_default();
                raw.components.entry((role, name.to_owned())).or_default().insert(property.to_owned(), setting);
            }
            _ => strays.push((agent.to_owned(), key, setting)),
        }
    }
    for (agent, key, setting) in strays {
        if options.agent.is_some_and(|wanted| wanted != agent) && agents.contains_key(&agent) {
            continue;
        }
        let word = key.split('.').nth(1).unwrap_or_default();
        let remedy = match kinds::nearest(word, ["sources", "channels", "sinks", "sinkgroups", "configfilters"]) {
            Some(near) if near != word => format!("write {agent}.{near}…"),
            _ => "write <agent>.<sources|channels|sinks>.<name>.<property>".to_owned(),
        };
        findings.push(
            Finding::warning("foreign-key", "no agent's key")
                .maybe_at(setting.place.as_ref())
                .key(key)
                .flume("ignores it with a warning")
                .remedy(remedy),
        );
    }
    agents
}
