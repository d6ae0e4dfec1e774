//! One component that would run, with its settings as its code reads them.

use std::collections::BTreeMap;

use super::{Kind, Place};

#[derive(Clone, Debug)]
pub struct Component {
    pub kind: &'static Kind,
    pub name: String,
    /// The type as written.
    pub type_name: String,
    /// By current key: deprecated and misspelt ones are translated already. Every value has passed its property's check.
    pub settings: BTreeMap<String, Setting>,
    /// The channels a source writes to; the one a sink reads from; empty for a channel.
    pub channels: Vec<String>,
    /// A source's interceptors, in their order. Their names are paths: `r1.interceptors.i1`.
    pub interceptors: Vec<Component>,
    /// A source's channel selector, where one is set.
    pub selector: Option<Box<Component>>,
    /// The group of a sink. Its `channels` are the names of its sinks.
    pub group: Option<Box<Component>>,
}

#[derive(Clone, Debug)]
pub struct Setting {
    pub value: String,
    /// Absent where the reading added it.
    pub place: Option<Place>,
}

impl Component {
    pub fn new(kind: &'static Kind, name: &str, type_name: &str) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            settings: BTreeMap::new(),
            channels: Vec::new(),
            interceptors: Vec::new(),
            selector: None,
            group: None,
        }
    }

    /// The component itself and what is part of it.
    pub fn with_parts(&self) -> impl Iterator<Item = &Component> {
        std::iter::once(self).chain(&self.interceptors).chain(self.selector.as_deref())
    }

    pub fn set(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(|setting| setting.value.as_str())
    }

    /// The value or its default. A key without either is a fault of the kind's table.
    pub fn text(&self, key: &str) -> &str {
        self.set(key).or_else(|| self.default(key)).unwrap_or_default()
    }

    /// The value or its default; 0 where there is neither (the plan has checked both).
    pub fn integer(&self, key: &str) -> i64 {
        self.text(key).trim().parse().unwrap_or_default()
    }

    /// [`Self::integer`] as a count; below zero is zero.
    pub fn count(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or_default()
    }

    pub fn boolean(&self, key: &str) -> bool {
        self.text(key).trim().eq_ignore_ascii_case("true")
    }

    pub fn millis(&self, key: &str) -> std::time::Duration {
        std::time::Duration::from_millis(u64::try_from(self.integer(key)).unwrap_or_default())
    }

    /// What is set below `prefix` (which ends with a dot), without it.
    pub fn below(&self, prefix: &str) -> BTreeMap<String, String> {
        let under = self.settings.iter().filter_map(|(key, setting)| Some((key.strip_prefix(prefix)?, setting)));
        under.map(|(key, setting)| (key.to_owned(), setting.value.clone())).collect()
    }

    /// Would it run the same? Places do not matter.
    pub fn same(&self, other: &Component) -> bool {
        let values = |component: &Component| {
            component.settings.iter().map(|(key, setting)| (key.clone(), setting.value.clone())).collect::<Vec<_>>()
        };
        let alike = |a: &Component, b: &Component| {
            std::ptr::eq(a.kind, b.kind) && a.name == b.name && a.channels == b.channels && values(a) == values(b)
        };
        self.with_parts().count() == other.with_parts().count()
            && self.with_parts().zip(other.with_parts()).all(|(a, b)| alike(a, b))
            && match (&self.group, &other.group) {
                (Some(group), Some(other)) => alike(group, other),
                (group, other) => group.is_none() && other.is_none(),
            }
    }

    fn default(&self, key: &str) -> Option<&'static str> {
        self.kind.property(key)?.default
    }
}
