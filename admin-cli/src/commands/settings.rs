//! Settings of topics and brokers: shown with where each value comes from, and changed without touching the others.

use std::collections::{BTreeMap, HashMap};

use proto::control::v1::ConfigEntry;
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{Output, Table, human, left},
};

#[derive(Debug, clap::Args)]
pub(super) struct Changes {
    /// A setting's new value, by Kafka's name; may be given several times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting, required_unless_present = "delete")]
    set: Vec<(String, String)>,
    /// A setting whose value is taken away, so that the default holds again; may be given several times.
    #[arg(long, value_name = "KEY")]
    delete: Vec<String>,
    /// Lets Kafka check the changes; makes none.
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl Changes {
    /// New values, and what is taken away.
    pub(super) fn checked(self) -> Result<(HashMap<String, String>, Vec<String>), Failure> {
        let mut set = HashMap::new();
        for (key, value) in self.set {
            if set.contains_key(&key) || self.delete.contains(&key) {
                return Err(Failure::usage(format!("{key} is given twice; keep one")));
            }
            set.insert(key, value);
        }
        Ok((set, self.delete))
    }
}

pub(super) fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, e.g. cleanup.policy=compact".to_owned()),
    }
}

#[derive(Serialize)]
pub(super) struct Changed {
    /// False after `--dry-run`.
    changed: bool,
    of: String,
    set: BTreeMap<String, String>,
    delete: Vec<String>,
}

impl Changed {
    /// `of`: as `topic orders`.
    pub(super) fn new(of: String, dry_run: bool, set: &HashMap<String, String>, delete: &[String]) -> Self {
        let set = set.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { changed: !dry_run, of, set, delete: delete.to_vec() }
    }

    pub(super) fn text(&self, out: &Output) -> String {
        let mut table = Table::plain(out);
        table.fact(if self.changed { "changed" } else { "would change" }, &self.of);
        for (name, value) in &self.set {
            table.fact(name, human::setting(name, value));
        }
        for name in &self.delete {
            table.fact(name, "(default)");
        }
        table.render()
    }
}

#[derive(Serialize)]
pub(super) struct Shown {
    configs: Vec<ConfigView>,
}

#[derive(Serialize)]
struct ConfigView {
    name: String,
    /// `null` where the broker keeps it to itself, or where none is set.
    value: Option<String>,
    is_default: bool,
    read_only: bool,
    sensitive: bool,
    /// As Kafka names it: `DYNAMIC_TOPIC_CONFIG`, `DEFAULT_CONFIG`, …
    source: String,
}

impl Shown {
    /// Those that somebody set, or all.
    pub(super) fn new(configs: Vec<ConfigEntry>, all: bool) -> Self {
        let configs = configs.into_iter().filter(|config| all || !config.is_default).map(|config| {
            let ConfigEntry { name, value, is_default, read_only, sensitive, source, .. } = config;
            ConfigView { name, value, is_default, read_only, sensitive, source }
        });
        Self { configs: configs.collect() }
    }

    pub(super) fn text(&self, out: &Output) -> String {
        let mut table = Table::new(out, vec![left("SETTING"), left("VALUE"), left("SOURCE")]);
        for ConfigView { name, value, sensitive, source, .. } in &self.configs {
            let value = match value {
                Some(value) => human::setting(name, value),
                None if *sensitive => "***".to_owned(),
                None => "-".to_owned(),
            };
            table.row(vec![left(name), left(value), left(source)]);
        }
        table.render()
    }
}
