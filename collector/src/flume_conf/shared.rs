//! What two components of an agent cannot both have: a port, the directory of a file channel; and what they rarely should.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use super::Finding;
use super::build::Build;
use super::component::Component;
use crate::{channel, source::spooldir};

impl Build<'_> {
    pub(super) fn shared(&mut self) {
        let told = [self.ports(), self.channel_directories(), self.spool_directories()].concat();
        self.findings.extend(told);
    }

    /// Two sources that listen on the same port.
    fn ports(&self) -> Vec<Finding> {
        let mut held: HashMap<String, Vec<(&Component, &str)>> = HashMap::new();
        let mut told = Vec::new();
        for source in &self.plan.sources {
            let (key, ports) = listens(source);
            let host =
                ["bind", "host"].into_iter().find(|key| source.kind.property(key).is_some()).map_or("", |key| source.text(key).trim());
            let any = |host: &str| ["0.0.0.0", "::", "[::]"].contains(&host);
            let same = |other: &str| host.eq_ignore_ascii_case(other) || any(host) || any(other);
            let taken = ports.iter().find_map(|port| {
                let (other, _) = held.get(port)?.iter().find(|(_, other)| same(other))?;
                Some((*other, port))
            });
            if let Some((other, port)) = taken {
                let message = format!("source `{}` listens on {host}, {port}, where `{}` does", source.name, other.name);
                let finding = self.about(Finding::error("port-twice", message), source, key);
                told.push(finding.flume("gets only one of them started, and tries again for ever").remedy("give one of them another port"));
            }
            for port in ports {
                held.entry(port).or_default().push((source, host));
            }
        }
        told
    }

    /// Two channels that keep events in the same directory: the second one does not start.
    fn channel_directories(&self) -> Vec<Finding> {
        let mut held: HashMap<PathBuf, &Component> = HashMap::new();
        let mut told = Vec::new();
        let durable = self.plan.channels.iter().filter(|channel| channel::is_durable(channel) || channel::spills(channel));
        for channel in durable {
            for (key, directory) in channel::file::directories_of(channel) {
                let other = *held.entry(directory.clone()).or_insert(channel);
                // One that a channel names twice has a finding already.
                if other.name != channel.name {
                    let message =
                        format!("channel `{}` has its events in {}, where `{}` has its own", channel.name, directory.display(), other.name);
                    let finding = self.about(Finding::error("directory-twice", message), channel, key);
                    let finding = finding.flume("starts one of them; the other fails with every event");
                    told.push(finding.remedy("give each file channel its own checkpointDir and dataDirs"));
                }
            }
        }
        told
    }

    /// Two sources that read the same files of a directory, and rename or remove them under each other.
    fn spool_directories(&self) -> Vec<Finding> {
        const KEY: &str = "spoolDir";
        let mut held: HashMap<(PathBuf, &str, &str), &Component> = HashMap::new();
        let mut told = Vec::new();
        for source in self.plan.sources.iter().filter(|source| std::ptr::eq(source.kind, &spooldir::KIND)) {
            let directory = normal(Path::new(source.text(KEY).trim()));
            let message = format!("source `{}` takes the files of {}, ", source.name, directory.display());
            let other = *held.entry((directory, source.text("includePattern"), source.text("ignorePattern"))).or_insert(source);
            if other.name != source.name {
                let message = format!("{message}which `{}` takes: a file may be read by both, or by one and a half", other.name);
                let finding = self.about(Finding::warning("directory-twice", message), source, KEY);
                told.push(finding.flume("does the same").remedy("give each its own directory, or includePatterns that share no file"));
            }
        }
        told
    }

    fn about(&self, finding: Finding, component: &Component, key: &str) -> Finding {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        finding.maybe_at(place).key(self.key(component.kind.role, &component.name, key))
    }
}

/// The key of a source's ports, and what it listens on: `tcp 4141`.
fn listens(source: &Component) -> (&'static str, Vec<String>) {
    let Some(key) = ["port", "ports"].into_iter().find(|key| source.kind.property(key).is_some()) else { return ("", Vec::new()) };
    let protocol = if source.kind.name().to_ascii_lowercase().contains("udp") { "udp" } else { "tcp" };
    let ports = source.text(key).split_whitespace().filter(|port| *port != "0");
    (key, ports.map(|port| format!("{protocol} {port}")).collect())
}

/// A path by which two ways of writing it can be compared; links are not followed.
pub(crate) fn normal(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                normal.pop();
            }
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::flume_conf::{ConfFile, Options, read};

    /// What is said about directories in an agent with these lines, from line 10 on.
    fn told(lines: &str) -> Vec<String> {
        let text = format!(
            "a.sources = r s\na.channels = c d\na.sinks = k l\na.sources.r.channels = c\na.sources.s.channels = d\n\
             a.sinks.k.type = null\na.sinks.k.channel = c\na.sinks.l.type = null\na.sinks.l.channel = d\n{lines}"
        );
        let options = Options {
            agent: None,
            strict: false,
            env: &|_| None,
            run: &|_, _| Err(String::new()),
            sys: &BTreeMap::new(),
            now: chrono::Local::now(),
        };
        let outcome = read(&[ConfFile { name: "f", bytes: text.as_bytes() }], &options);
        let about = outcome.findings.into_iter().filter(|finding| finding.code == "directory-twice");
        about.map(|finding| format!("{} {finding}", finding.level)).collect()
    }

    #[test]
    fn two_channels_with_one_directory_do_not_start_and_are_told_before() {
        const KEYS: [&str; 2] = ["checkpointDir", "dataDirs"];
        let channels = |c: [&str; 2], d: [&str; 2]| {
            let set = |name: &str, values: [&str; 2]| {
                let lines = KEYS.iter().zip(values).filter(|(_, value)| !value.is_empty());
                lines.map(|(key, value)| format!("a.channels.{name}.{key} = {value}\n")).collect::<String>()
            };
            told(&format!(
                "a.sources.r.type = seq\na.sources.s.type = seq\na.channels.c.type = file\na.channels.d.type = file\n{}{}",
                set("c", c),
                set("d", d)
            ))
        };
        for (c, d, key, directory) in [
            (["/x", "/y"], ["/x/", "/z"], KEYS[0], "/x"),
            (["/x", "/y"], ["/y/.", "/z"], KEYS[0], "/y"),
            (["/x", "/y"], ["", "/z, /y"], KEYS[1], "/y"),
            (["/x", ""], ["/w", "/z/../x"], KEYS[1], "/x"),
        ] {
            let found = channels(c, d);
            assert_eq!(found.len(), 1, "{found:?}");
            let begin = format!("error f:16: a.channels.d.{key}: channel `d` has its events in {directory}, where `c` has its own; ");
            assert!(found[0].starts_with(&begin), "{begin} {found:?}");
        }
        assert_eq!(channels(["/x", "/y"], ["/z", "/w"]), [""; 0]);
        assert_eq!(channels(["", ""], ["", ""]), [""; 0]);
        assert_eq!(channels(["/x", "/y, /y"], ["", ""]), [""; 0]);
    }

    #[test]
    fn two_sources_that_spool_one_directory_are_told() {
        let sources = |more: &str| {
            told(&format!(
                "a.channels.c.type = memory\na.channels.d.type = memory\na.sources.r.type = spooldir\na.sources.r.spoolDir = /x\n\
                 a.sources.s.type = spooldir\n{more}"
            ))
        };
        let found = sources("a.sources.s.spoolDir = /x/");
        assert!(found[0].starts_with("warning f:15: a.sources.s.spoolDir: source `s` takes the files of /x, which `r` takes"), "{found:?}");
        assert_eq!(sources("a.sources.s.spoolDir = /y"), [""; 0]);
        assert_eq!(sources("a.sources.s.spoolDir = /x\na.sources.s.includePattern = .*b"), [""; 0]);
    }

    #[test]
    fn ways_to_write_one_path() {
        for path in ["/a/b", "/a//b/", "/a/./b", "/a/c/../b", "/../a/b"] {
            assert_eq!(normal(Path::new(path)), Path::new("/a/b"));
        }
        assert_eq!(normal(Path::new("x")), normal(Path::new("./x/")));
    }
}
