//! From properties to components: Flume's component model, and what is wrong with a file by it.
//!
//! Two readings. `strict` is Flume 1.11's own: components that are wrong are dropped and the rest runs, dead keys stay
//! dead. The default is the safer one: what is certain to be meant is done, with a warning; anything else that Flume
//! would drop is an error, and nothing starts. Both give the same findings, at different levels.

use std::collections::BTreeMap;

use chrono::{DateTime, Local};
use serde::Serialize;

use super::build::Build;
use super::component::{Component, Setting};
use super::kinds::Role;
use super::merge::{group, merge};
use super::{Finding, Level};

/// One file, as named on the command line.
pub struct ConfFile<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// How to read.
pub struct Options<'a> {
    /// The one agent that is wanted; `None` reads all of them.
    pub agent: Option<&'a str>,
    /// Flume's own reading.
    pub strict: bool,
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Runs a config filter's command with a key; its first line, or what went wrong.
    pub run: &'a dyn Fn(&str, &str) -> Result<String, String>,
    /// `-Dname=value`.
    pub sys: &'a BTreeMap<String, String>,
    pub now: DateTime<Local>,
}

/// What one agent runs.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub agent: String,
    pub sources: Vec<Component>,
    pub channels: Vec<Component>,
    pub sinks: Vec<Component>,
    /// Sink groups; each of their sinks has a copy.
    pub groups: Vec<Component>,
}

impl Plan {
    pub fn components(&self) -> impl Iterator<Item = &Component> {
        self.sources.iter().chain(&self.channels).chain(&self.sinks)
    }

    /// Is there a channel of this name whose events outlive the process?
    pub fn has_durable_channel(&self, name: &str) -> bool {
        self.channels.iter().any(|channel| channel.name == name && crate::channel::is_durable(channel))
    }

    pub(super) fn of(&self, role: Role) -> &[Component] {
        match role {
            Role::Source => &self.sources,
            Role::Channel => &self.channels,
            Role::Sink => &self.sinks,
            Role::Group => &self.groups,
            // Parts of their sources; spent when the file is read.
            Role::Interceptor | Role::Selector | Role::Filter => &[],
        }
    }

    /// The list of a listed role.
    pub(super) fn of_mut(&mut self, role: Role) -> &mut Vec<Component> {
        match role {
            Role::Source | Role::Interceptor | Role::Selector => &mut self.sources,
            Role::Channel => &mut self.channels,
            Role::Sink => &mut self.sinks,
            Role::Group | Role::Filter => &mut self.groups,
        }
    }

    /// As a properties file, in the current spelling; secrets masked.
    pub fn to_properties(&self) -> String {
        let mut text = String::new();
        let agent = &self.agent;
        for role in Role::LISTED {
            let names: Vec<_> = self.of(role).iter().map(|component| component.name.as_str()).collect();
            text.push_str(&format!("{agent}.{} = {}\n", role.plural(), names.join(" ")));
        }
        if !self.groups.is_empty() {
            let names: Vec<_> = self.groups.iter().map(|group| group.name.as_str()).collect();
            text.push_str(&format!("{agent}.sinkgroups = {}\n", names.join(" ")));
        }
        for group in &self.groups {
            text.push_str(&format!("\n{agent}.sinkgroups.{}.processor.type = {}\n", group.name, group.type_name));
            for (key, setting) in &group.settings {
                text.push_str(&format!("{agent}.sinkgroups.{}.{key} = {}\n", group.name, setting.value));
            }
        }
        for component in self.components() {
            let prefix = format!("{agent}.{}.{}", component.kind.role.plural(), component.name);
            text.push_str(&format!("\n{prefix}.type = {}\n", component.type_name));
            match component.kind.role {
                Role::Source => text.push_str(&format!("{prefix}.channels = {}\n", component.channels.join(" "))),
                Role::Sink => text.push_str(&format!("{prefix}.channel = {}\n", component.channels.join(" "))),
                _ => {}
            }
            if !component.interceptors.is_empty() {
                let names: Vec<_> = component.interceptors.iter().map(|part| last(&part.name)).collect();
                text.push_str(&format!("{prefix}.interceptors = {}\n", names.join(" ")));
            }
            for part in component.with_parts() {
                let prefix = format!("{agent}.{}.{}", part.kind.role.plural(), part.name);
                if !std::ptr::eq(part, component) {
                    text.push_str(&format!("{prefix}.type = {}\n", part.type_name));
                }
                for (key, setting) in &part.settings {
                    let value = if is_secret(key) { "***".to_owned() } else { setting.value.replace('\\', "\\\\").replace('\n', "\\n") };
                    text.push_str(&format!("{prefix}.{key} = {value}\n"));
                }
            }
        }
        text
    }
}

/// `i1` of `r1.interceptors.i1`.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    // The name of a file is none.
    !key.ends_with("file")
        && ["password", "secret", "jaas", "token", "apikey", "credential", "ssl.key", "keystore.key"].iter().any(|word| key.contains(word))
}

/// What a file came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One per agent, in the order of their names. With an error among the findings none of them may be started.
    pub plans: Vec<Plan>,
    /// In the order of the file.
    pub findings: Vec<Finding>,
}

impl Outcome {
    pub fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Error)
    }
}

/// Reads the files, later ones over earlier ones.
pub fn read(files: &[ConfFile<'_>], options: &Options<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    let merged = merge(files, options, &mut outcome.findings);
    let agents = group(merged, options, &mut outcome.findings);
    let known: Vec<String> = agents.keys().cloned().collect();
    if let Some(wanted) = options.agent
        && !agents.contains_key(wanted)
    {
        let remedy = match known.as_slice() {
            [] => "the file defines no agent".to_owned(),
            names => format!("the file defines {}; give one of them with --name", names.join(", ")),
        };
        let finding = Finding::error("no-such-agent", format!("there is no agent `{wanted}`"))
            .flume("starts, says \"No configuration found for this host\", and idles");
        outcome.findings.push(finding.remedy(remedy));
    } else if known.is_empty() {
        outcome.findings.push(
            Finding::error("no-agent", "no agent is defined").remedy("begin with <agent>.sources, <agent>.channels and <agent>.sinks"),
        );
    }
    for (name, raw) in agents {
        if options.agent.is_none_or(|wanted| wanted == name) {
            let plan = Build {
                strict: options.strict,
                raw: &raw,
                options,
                plan: Plan { agent: name, ..Plan::default() },
                findings: &mut outcome.findings,
            }
            .run();
            outcome.plans.push(plan);
        }
    }
    let order: BTreeMap<&str, usize> = files.iter().enumerate().map(|(at, file)| (file.name, at)).collect();
    let rank = |finding: &Finding| {
        finding.place.as_ref().map_or((usize::MAX, 0), |place| (order.get(place.file.as_str()).copied().unwrap_or_default(), place.line))
    };
    outcome.findings.sort_by_key(rank);
    outcome
}

/// What `check --output json` prints of one component.
#[derive(Serialize)]
pub struct ComponentView<'a> {
    pub role: Role,
    pub name: &'a str,
    #[serde(rename = "type")]
    pub type_name: &'a str,
    pub channels: &'a [String],
    pub settings: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interceptors: Vec<ComponentView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Box<ComponentView<'a>>>,
}

impl<'a> From<&'a Component> for ComponentView<'a> {
    fn from(component: &'a Component) -> Self {
        let shown = |(key, setting): (&'a String, &'a Setting)| (key.as_str(), if is_secret(key) { "***" } else { setting.value.as_str() });
        Self {
            role: component.kind.role,
            name: &component.name,
            type_name: &component.type_name,
            channels: &component.channels,
            settings: component.settings.iter().map(shown).collect(),
            interceptors: component.interceptors.iter().map(Self::from).collect(),
            selector: component.selector.as_deref().map(|selector| Box::new(Self::from(selector))),
        }
    }
}
