//! Channel selectors: which of a source's channels an event goes to.
//!
//! A required channel must take the event; an optional one may refuse it, which is counted and said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};

/// A selector as the table knows it.
pub struct SelectorKind {
    pub kind: &'static Kind,
    build: fn(&Component, &[String]) -> Rule,
}

pub static SELECTORS: &[SelectorKind] = &[
    SelectorKind { kind: &REPLICATING, build: replicating },
    SelectorKind { kind: &MULTIPLEXING, build: multiplexing },
    SelectorKind { kind: &LOAD_BALANCING, build: load_balancing },
];

static REPLICATING: Kind = Kind {
    role: Role::Selector,
    alias: Some("replicating"),
    class: Some("org.apache.flume.channel.ReplicatingChannelSelector"),
    doc: "Every event goes to every channel. The default.",
    properties: &[Property::text(
        "optional",
        None,
        "Channels that may refuse an event without holding up the source, separated by blanks.",
    )],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: review_channels,
};

static MULTIPLEXING: Kind = Kind {
    role: Role::Selector,
    alias: Some("multiplexing"),
    class: Some("org.apache.flume.channel.MultiplexingChannelSelector"),
    doc: "An event goes to the channels that the value of one of its headers is mapped to.",
    properties: &[
        Property::text("header", Some("flume.selector.header"), "The header that decides."),
        Property::text("mapping.*", None, "Channels for the value after `mapping.`, separated by blanks."),
        Property::text(
            "default",
            None,
            "Channels for a missing, blank or unmapped value. Without them such an event goes nowhere, which is counted.",
        ),
        Property::text("optional.*", None, "Channels for the value after `optional.` that may refuse the event."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: review_channels,
};

static LOAD_BALANCING: Kind = Kind {
    role: Role::Selector,
    alias: Some("load_balancing"),
    class: Some("org.apache.flume.channel.LoadBalancingChannelSelector"),
    doc: "Each event goes to one channel.",
    properties: &[Property::choice("policy", &["round_robin", "random"], "round_robin", "How the channel is chosen.")],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: review_load_balancing,
};

/// Its name is missing in one of Flume's own lists.
fn review_load_balancing(selector: &Component, strict: bool) -> Vec<Finding> {
    let level = if strict { Level::Warning } else { Level::Note };
    let finding = Finding::new(level, "flume-fault", "Flume 1.11 has this selector and cannot load it");
    vec![finding.key(format!("{}.type", selector.name)).flume("drops the source")]
}

/// Every channel that is named must be one of the source's.
fn review_channels(selector: &Component, strict: bool) -> Vec<Finding> {
    let mut told = Vec::new();
    for (key, setting) in &selector.settings {
        let names_channels = ["optional", "default"].contains(&key.as_str()) || key.starts_with("mapping.") || key.starts_with("optional.");
        for name in setting.value.split_whitespace().filter(|_| names_channels) {
            if !selector.channels.iter().any(|channel| channel == name) {
                let message = format!("`{name}` is not one of the source's channels ({})", selector.channels.join(", "));
                let finding = Finding::error("no-such-channel", message).maybe_at(setting.place.as_ref());
                let finding = finding.key(format!("{}.{key}", selector.name)).flume(if key == "optional" {
                    "leaves it out"
                } else {
                    "drops the source"
                });
                let finding = finding.remedy(format!("add `{name}` to the source's channels, or correct the name"));
                told.push(if strict { Finding { level: Level::Warning, ..finding } } else { finding });
            }
        }
    }
    if std::ptr::eq(selector.kind, &MULTIPLEXING) && selector.set("default").is_none() {
        let finding = Finding::warning("unrouted", "an event whose header has no mapping goes to no channel: it is lost");
        let finding = finding.key(format!("{}.default", selector.name)).flume("does the same without a word");
        told.push(finding.remedy("name channels for it"));
    }
    told
}

/// Channels by their number among the source's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Goal {
    required: Vec<usize>,
    optional: Vec<usize>,
}

enum Rule {
    Same(Goal),
    Header { name: String, mapping: BTreeMap<String, Goal>, otherwise: Goal },
    Turn { next: AtomicUsize, channels: usize },
    Random { channels: usize },
}

pub struct Selector(Rule);

/// A batch, cut up by channel.
#[derive(Debug, Default)]
pub struct Routes {
    /// One list for each of the source's channels.
    pub required: Vec<Vec<Event>>,
    pub optional: Vec<Vec<Event>>,
    /// One event for each channel that it does not go to, to be told as delivered there.
    pub skipped: Vec<Event>,
    /// Events that go to no channel at all.
    pub unrouted: usize,
}

impl Selector {
    pub fn build(source: &Component) -> anyhow::Result<Self> {
        let Some(part) = &source.selector else { return Ok(Self::everything(source.channels.len())) };
        let kind = SELECTORS.iter().find(|kind| std::ptr::eq(kind.kind, part.kind));
        let kind = kind.ok_or_else(|| anyhow::anyhow!("{}: no code for {}", part.name, part.type_name))?;
        Ok(Self((kind.build)(part, &source.channels)))
    }

    /// Every event to every channel.
    pub fn everything(channels: usize) -> Self {
        Self(Rule::Same(Goal { required: (0..channels).collect(), optional: Vec::new() }))
    }

    /// Does every event go to every one of the channels, and must each take it?
    pub fn is_everything(&self, channels: usize) -> bool {
        matches!(&self.0, Rule::Same(goal) if goal.required.len() == channels && goal.optional.is_empty())
    }

    pub fn route(&self, events: Vec<Event>, channels: usize) -> Routes {
        let lists = || (0..channels).map(|_| Vec::new()).collect::<Vec<_>>();
        let mut routes = Routes { required: lists(), optional: lists(), ..Routes::default() };
        for event in events {
            let turn;
            let goal = match &self.0 {
                Rule::Same(goal) => goal,
                Rule::Header { name, mapping, otherwise } => {
                    event.header(name).filter(|value| !value.trim().is_empty()).and_then(|value| mapping.get(value)).unwrap_or(otherwise)
                }
                Rule::Turn { next, channels } => {
                    turn = Goal { required: vec![next.fetch_add(1, Relaxed) % channels.max(&1)], optional: Vec::new() };
                    &turn
                }
                Rule::Random { channels } => {
                    turn = Goal { required: vec![rand::random_range(0..*channels.max(&1))], optional: Vec::new() };
                    &turn
                }
            };
            let goals = goal.required.len() + goal.optional.len();
            routes.unrouted += usize::from(goals == 0);
            routes.skipped.extend((goals..channels).map(|_| Event { origin: event.origin.clone(), ..Event::default() }));
            for (lists, numbers) in [(&mut routes.required, &goal.required), (&mut routes.optional, &goal.optional)] {
                for &number in numbers {
                    lists[number].push(event.clone());
                }
            }
        }
        routes
    }
}

/// The numbers of the channels that `text` names, each once.
fn numbers(text: &str, channels: &[String]) -> Vec<usize> {
    let known = text.split_whitespace().filter_map(|name| channels.iter().position(|channel| channel == name));
    known.collect::<BTreeSet<_>>().into_iter().collect()
}

fn replicating(selector: &Component, channels: &[String]) -> Rule {
    let optional = numbers(selector.text("optional"), channels);
    Rule::Same(Goal { required: (0..channels.len()).filter(|number| !optional.contains(number)).collect(), optional })
}

fn multiplexing(selector: &Component, channels: &[String]) -> Rule {
    let otherwise = Goal { required: numbers(selector.text("default"), channels), optional: Vec::new() };
    let mut mapping: BTreeMap<String, Goal> = BTreeMap::new();
    for (value, names) in selector.below("mapping.") {
        mapping.entry(value).or_default().required = numbers(&names, channels);
    }
    for (value, names) in selector.below("optional.") {
        let goal = mapping.entry(value).or_insert_with(|| otherwise.clone());
        // A channel that is required is not optional as well.
        goal.optional = numbers(&names, channels).into_iter().filter(|number| !goal.required.contains(number)).collect();
    }
    Rule::Header { name: selector.text("header").to_owned(), mapping, otherwise }
}

fn load_balancing(selector: &Component, channels: &[String]) -> Rule {
    let channels = channels.len();
    if selector.text("policy").trim().eq_ignore_ascii_case("random") {
        Rule::Random { channels }
    } else {
        Rule::Turn { next: AtomicUsize::new(0), channels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flume_conf::component::Setting;

    fn selector(kind: &'static Kind, settings: &[(&str, &str)]) -> Selector {
        let mut source = Component::new(&crate::source::seq::KIND, "s", "seq");
        source.channels = ["a", "b", "c"].map(str::to_owned).into();
        let mut part = Component::new(kind, "s.selector", kind.name());
        part.channels.clone_from(&source.channels);
        for (key, value) in settings {
            part.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
        }
        source.selector = Some(Box::new(part));
        Selector::build(&source).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Bodies by channel: required, then optional; then how many copies were skipped, and how many events went nowhere.
    fn routed(selector: &Selector, events: &[(&str, &str)]) -> (Vec<String>, Vec<String>, usize, usize) {
        let events = events.iter().map(|(body, header)| Event::with_headers((*body).to_owned(), [("state", *header)])).collect();
        let routes = selector.route(events, 3);
        let bodies = |lists: Vec<Vec<Event>>| -> Vec<String> {
            let text = |event: &Event| String::from_utf8_lossy(&event.body).into_owned();
            lists.iter().map(|list| list.iter().map(text).collect::<Vec<_>>().concat()).collect()
        };
        (bodies(routes.required), bodies(routes.optional), routes.skipped.len(), routes.unrouted)
    }

    #[test]
    fn replicating_tells_required_from_optional() {
        let selector = selector(&REPLICATING, &[("optional", "b  c")]);
        assert!(!selector.is_everything(3));
        assert_eq!(routed(&selector, &[("1", ""), ("2", "")]), (strings(["12", "", ""]), strings(["", "12", "12"]), 0, 0));
        assert!(Selector::everything(3).is_everything(3));
    }

    #[test]
    fn multiplexing_goes_by_the_header() {
        let settings = [
            ("header", "state"),
            ("mapping.CZ", "a"),
            ("mapping.US", "b c"),
            ("default", "c"),
            ("optional.CZ", "a b"),
            ("optional.XX", "a"),
        ];
        let selector = selector(&MULTIPLEXING, &settings);
        let events = [("1", "CZ"), ("2", "US"), ("3", "  "), ("4", "DE"), ("5", "XX")];
        assert_eq!(routed(&selector, &events), (strings(["1", "2", "2345"]), strings(["5", "1", ""]), 7, 0));
    }

    #[test]
    fn an_event_without_a_mapping_or_default_is_counted_as_unrouted() {
        let selector = selector(&MULTIPLEXING, &[("header", "state"), ("mapping.CZ", "a")]);
        assert_eq!(routed(&selector, &[("1", "DE"), ("2", "CZ")]), (strings(["2", "", ""]), strings(["", "", ""]), 5, 1));
    }

    #[test]
    fn load_balancing_takes_turns_or_chances() {
        let turns = selector(&LOAD_BALANCING, &[]);
        assert_eq!(routed(&turns, &[("1", ""), ("2", ""), ("3", ""), ("4", "")]).0, strings(["14", "2", "3"]));
        let chance = selector(&LOAD_BALANCING, &[("policy", "random")]);
        let events: Vec<(&str, &str)> = std::iter::repeat_n(("x", ""), 600).collect();
        let counts: Vec<usize> = routed(&chance, &events).0.iter().map(String::len).collect();
        assert_eq!(counts.iter().sum::<usize>(), 600);
        assert!(counts.iter().all(|count| *count > 120), "{counts:?}");
    }

    fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
        texts.map(str::to_owned).into()
    }
}
