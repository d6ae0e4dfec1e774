//! A Kafka that is really secured: TLS, SCRAM, PLAIN, client certificates, access control lists.
//!
//! What a component needs is what `docs/kafka-security.md` says: it is granted that and nothing else, and each entry is taken away in turn.

mod bridge;
mod collector;
mod engine;
mod pass_through;
mod refused;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use integration_tests::{
    eventually,
    process::Process,
    root,
    secured::{Acl, Secured},
};

const WAIT: Duration = Duration::from_secs(60);

/// Components of the documentation's table; each is run by a test here.
const COMPONENTS: &[&str] = &[
    "collector: Kafka sink",
    "collector: transactional Kafka sink",
    "collector: Kafka source",
    "collector: Kafka channel",
    "bridge: produce",
    "bridge: consume",
    "bridge: offsets in Kafka",
    "bridge: topics",
    "bridge: transactions",
    "bridge: idempotency keys",
    "bridge: registry",
    "bridge: access control lists",
    "engine: source table",
    "engine: sink table",
    "engine: exactly-once sink table",
    "engine: shared job",
];

/// The table: component → entries, with the names' placeholders.
fn table() -> BTreeMap<String, Vec<Acl>> {
    let text = fs::read_to_string(root().join("docs/kafka-security.md")).expect("docs/kafka-security.md");
    let mut table: BTreeMap<String, Vec<Acl>> = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [component, resource, name, operation, _] = cells[..] else { continue };
        if let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) {
            table.entry(component.to_owned()).or_default().push(Acl::new(resource, name, operation));
        }
    }
    table
}

/// What a component needs, with its names.
fn needed(component: &str, names: &[(&str, &str)]) -> Vec<Acl> {
    assert!(COMPONENTS.contains(&component), "{component}");
    let rows = table().remove(component).unwrap_or_else(|| panic!("the table says nothing of {component:?}"));
    let name = |acl: Acl| {
        let known = names.iter().find(|(placeholder, _)| *placeholder == acl.name);
        Acl { name: known.unwrap_or_else(|| panic!("{component}: no name for {acl:?}")).1.to_owned(), ..acl }
    };
    rows.into_iter().map(name).collect()
}

/// The sentence that says what is missing.
fn says(text: &str, principal: &str, acl: &Acl) -> bool {
    let text = text.replace("\\\"", "\"");
    text.lines().any(|line| {
        let Some((_, grant)) = line.split_once("not authorised: grant ") else { return false };
        // WRITE and READ bring DESCRIBE with them, so that may be what is missed first.
        let operation = grant.starts_with(&format!("{} ", acl.operation)) || grant.starts_with("DESCRIBE on");
        let object = match acl.resource.as_str() {
            "cluster" => "on the cluster".to_owned(),
            // Of a prefix, some name that begins with it.
            resource => match acl.name.strip_suffix('*') {
                Some(prefix) => format!("on {resource} \"{prefix}"),
                None => format!("on {resource} \"{}\"", acl.name),
            },
        };
        let whom = format!("to {principal}");
        operation && grant.contains(&object) && grant.contains(&whom)
    })
}

/// Waits until the process has logged what is missing.
async fn told(process: &Process, principal: &str, acl: &Acl) {
    eventually(WAIT, &format!("{acl:?} is missed"), || async {
        if says(&process.log(), principal, acl) { Ok(()) } else { Err(process.log()) }
    })
    .await;
}

fn grant_all(kafka: &Secured, principal: &str, acls: &[Acl]) {
    acls.iter().for_each(|acl| kafka.grant(principal, acl));
}

/// The whole lines of all files of a folder, in no order.
fn lines(folder: &Path) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("the folder").flatten() {
        let text = fs::read_to_string(entry.path()).expect("a file");
        lines.extend(text.lines().map(str::to_owned));
    }
    lines
}

#[test]
fn every_component_of_the_table_is_run_here() {
    let listed: Vec<String> = table().into_keys().collect();
    let mut run: Vec<&str> = COMPONENTS.to_vec();
    run.sort_unstable();
    assert_eq!(listed, run);
}
