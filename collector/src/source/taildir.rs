//! `TAILDIR`: all files of some directories whose names match, followed over rotations.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;

use super::tail::command::Begin;
use super::tail::engine::Settings;
use super::tail::find::{Find, Group};
use super::tail::flume::FlumePositions;
use super::tail::{TailSource, handles};
use super::{Setup, Source};
use crate::flume_conf::kinds::{adopts_nothing, nearest};
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::java_regex::JavaRegex;

pub const LINE_LENGTH: Property = Property::integer(
    "maxLineLength",
    1024,
    67_108_864,
    Some("8388608"),
    "Bytes after which a line without end is split into several events.",
)
.own();
pub const ROTATE_WAIT: Property = Property::integer(
    "rotateWait",
    0,
    3_600_000,
    Some("5000"),
    "Milliseconds a file is still watched for more lines after it was renamed or deleted.",
)
.own();

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("taildir"),
    class: Some("org.apache.flume.source.taildir.TaildirSource"),
    doc: "Follows all files of some directories whose names match. A file is known by device, inode and content, so renaming and emptying lose and repeat nothing; positions advance when the sinks have delivered. A source that gets another name goes on from the positions of the old one.",
    properties: &[
        Property::text("filegroups", None, "Names of the groups, separated by blanks.").required(),
        Property::text("filegroups.*", None, "`filegroups.<group>`: absolute directory and a regular expression for the file name."),
        Property::text(
            "positionFile",
            Some("~/.flume/taildir_position.json"),
            "Flume's positions: gone on from where Flume wrote them last, and written every `writePosInterval`, so that a move to Flume and back loses and repeats nothing. What this source itself goes by is in the state directory.",
        ),
        Property::text("headers.*", None, "`headers.<group>.<name>`: a header for every event of the group."),
        Property::boolean("byteOffsetHeader", "false", "Put the line's offset in the file into the header `byteoffset`."),
        Property::boolean("skipToEnd", "false", "Begin at the end of the files that are there at the very first start."),
        Property::integer(
            "idleTimeout",
            1,
            i64::MAX,
            Some("120000"),
            "Milliseconds after which Flume takes an unterminated last line for a line and its rest for another. Only with --flume-strict; otherwise the line's end is waited for.",
        ),
        Property::integer("writePosInterval", 1, 3_600_000, Some("3000"), "Milliseconds between writes of the positions."),
        Property::integer(
            "batchSize",
            1,
            1_000_000,
            Some("100"),
            "Events in one put, at least; up to `transactionCapacity` are put together.",
        ),
        Property::integer("maxBatchCount", 1, i64::MAX, Some("9223372036854775807"), "Accepted; files take turns at every 256 KiB anyway."),
        Property::integer(
            "backoffSleepIncrement",
            0,
            i64::MAX,
            Some("1000"),
            "Accepted; idle files are looked at every 20 ms; thousands of them as often as costs a percent of a core, every 5 s at least.",
        ),
        Property::integer("maxBackoffSleep", 0, i64::MAX, Some("5000"), "Accepted, as `backoffSleepIncrement`."),
        Property::boolean("cachePatternMatching", "true", "Accepted; the directory is always listed anew."),
        Property::boolean("fileHeader", "false", "Put the file's path into a header."),
        Property::text("fileHeaderKey", Some("file"), "Name of that header."),
        Property::integer(
            "maxOpenFiles",
            1,
            1_000_000,
            Some("1024"),
            "Files open at a time. Beyond that, those that have not grown the longest are closed until they grow.",
        )
        .own(),
        LINE_LENGTH,
        ROTATE_WAIT,
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in component.text("filegroups").split_whitespace() {
        let key = format!("filegroups.{name}");
        let place =
            component.settings.get(&key).or_else(|| component.settings.get("filegroups")).and_then(|setting| setting.place.as_ref());
        if let Err(error) = pattern(component, name) {
            let finding = Finding::error("wrong-value", format!("{error:#}")).maybe_at(place).key(format!("{}.{key}", component.name));
            let without = component.set(&key).is_none();
            let level = if strict && without { Level::Warning } else { Level::Error };
            findings.push(
                Finding { level, ..finding }
                    .flume(if without { "leaves the group out" } else { "drops the source" })
                    .remedy("write an absolute directory and a regular expression for the file name: /var/log/app/.*\\\\.log"),
            );
        }
    }
    let listed: Vec<&str> = component.text("filegroups").split_whitespace().collect();
    for (key, setting) in &component.settings {
        let finding = |code, message: String| {
            Finding::warning(code, message)
                .maybe_at(setting.place.as_ref())
                .key(format!("{}.{key}", component.name))
                .flume("overlooks it without a word")
        };
        let near =
            |name: &str, else_: String| nearest(name, listed.iter().copied()).map_or(else_, |near| format!("did you mean `{near}`?"));
        if let Some(group) = key.strip_prefix("filegroups.").filter(|group| !listed.contains(group)) {
            let message = format!("group `{group}` is not listed in filegroups, so its files are not read");
            let remedy = format!("add `{group}` to {}.filegroups, or remove the line", component.name);
            findings.push(finding("not-listed", message).remedy(remedy));
        } else if let Some(header) = key.strip_prefix("headers.") {
            let is_of = |group: &str| header.strip_prefix(group).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'));
            if !listed.iter().any(|group| is_of(group)) {
                let group = header.split('.').next().unwrap_or_default();
                let message = format!("there is no group `{group}` in filegroups, so no event gets the header");
                findings.push(finding("dead-key", message).remedy(near(group, "write headers.<group>.<name>".into())));
            }
        }
    }
    findings
}

fn pattern(component: &Component, group: &str) -> anyhow::Result<(PathBuf, JavaRegex)> {
    let text = component.set(&format!("filegroups.{group}")).with_context(|| format!("group `{group}` has no files"))?;
    let (directory, name) = text.trim().rsplit_once('/').with_context(|| format!("`{text}` is not an absolute path"))?;
    anyhow::ensure!(text.trim().starts_with('/'), "`{text}` is not an absolute path");
    let name = JavaRegex::whole(name).with_context(|| format!("`{name}` is not taken as a regular expression"))?;
    Ok((PathBuf::from(if directory.is_empty() { "/" } else { directory }), name))
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let headers = component.below("headers.");
    let mut groups = Vec::new();
    for name in component.text("filegroups").split_whitespace() {
        // Only the strict reading comes this far with such a group.
        if setup.strict && component.set(&format!("filegroups.{name}")).is_none() {
            continue;
        }
        let (directory, pattern) = pattern(component, name)?;
        let own: BTreeMap<String, String> = headers
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(name)?.strip_prefix('.')?.to_owned(), value.clone())))
            .collect();
        groups.push(Group { directory, name: pattern, headers: (!own.is_empty()).then(|| Arc::new(own)) });
    }
    let flume = match component.text("positionFile").strip_prefix("~/") {
        Some(rest) => std::env::var_os("HOME").map(|home| PathBuf::from(home).join(rest)),
        None => Some(PathBuf::from(component.text("positionFile"))),
    };
    Ok(Box::new(TailSource {
        name: component.name.clone(),
        state_dir: setup.state_dir,
        settings: Settings {
            find: Find::Groups(groups),
            line_bytes_max: component.count("maxLineLength"),
            rotate_wait: component.millis("rotateWait"),
            partial_wait: setup.strict.then(|| component.millis("idleTimeout")),
            scan_interval: Duration::from_millis(250),
            // Flume's own `maxBackoffSleep`.
            look_pause_max: Duration::from_secs(5),
            handles_max: handles(component.count("maxOpenFiles")),
            path_header: component.boolean("fileHeader").then(|| component.text("fileHeaderKey").to_owned()),
        },
        begin: if component.boolean("skipToEnd") { Begin::End } else { Begin::Line(1) },
        committed: setup.committed,
        configured: setup.configured,
        flume: flume.map(FlumePositions::new),
        save_interval: component.millis("writePosInterval"),
        offset_header: component.boolean("byteOffsetHeader").then(|| "byteoffset".to_owned()),
    }))
}
