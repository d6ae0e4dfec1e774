//! Reads the agent's files: at the start, and again when they change or when an operator asks.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Instant, SystemTime},
};

use parking_lot::Mutex;
use proto::control::v1::ReloadResponse;
use proto::{ErrorKind, ServiceError};
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::channel::{file, flume_log};
use crate::conf_files::{self, Origins};
use crate::config::CollectorConfig;
use crate::flume_conf::{self, Component, ConfFile, Finding, Level, Outcome, Plan};
use crate::kafka_settings;
use crate::source::{exec, spooldir, taildir};
use crate::tls;

/// Reads and checks the files of an agent. Blocks, on URIs and on config filters' commands.
///
/// `agent`: the one wanted; `None`: all of them.
pub fn read(origins: &Origins, agent: Option<&str>, strict: bool, define: &BTreeMap<String, String>) -> Outcome {
    let mut unreadable = Vec::new();
    let mut texts = Vec::new();
    for (name, bytes) in origins.read() {
        match bytes {
            Ok(bytes) => texts.push((name, bytes)),
            Err(error) => {
                let uri = origins.uris.len() > texts.len() + unreadable.len();
                let flume = if uri { "goes on without it" } else { "does not start" };
                let remedy = match (uri, Path::new(&name).is_dir()) {
                    (true, _) => "correct --conf-uri",
                    (false, true) => "name the agent's file, not a directory",
                    (false, false) => "name the agent's file",
                };
                unreadable.push(Finding::error("no-file", format!("{name}: {error:#}")).flume(flume).remedy(remedy));
            }
        }
    }
    if !unreadable.is_empty() {
        return Outcome { plans: Vec::new(), findings: unreadable };
    }
    let named: Vec<ConfFile<'_>> = texts.iter().map(|(name, bytes)| ConfFile { name, bytes }).collect();
    let env = |name: &str| std::env::var(name).ok();
    let options =
        flume_conf::Options { agent, strict, env: &env, run: &conf_files::run, sys: &system_properties(define), now: chrono::Local::now() };
    flume_conf::read(&named, &options)
}

/// `-Dname=value`, over the few of Java's own properties that mean something here.
fn system_properties(define: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut properties: BTreeMap<String, String> =
        [("file.separator", "/"), ("path.separator", ":"), ("line.separator", "\n"), ("os.name", "Linux"), ("java.io.tmpdir", "/tmp")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    for (name, variable) in [("user.home", "HOME"), ("user.name", "USER"), ("user.dir", "PWD")] {
        properties.extend(std::env::var(variable).ok().map(|value| (name.to_owned(), value)));
    }
    properties.extend(define.clone());
    properties
}

/// Adds what this machine has to say about a checked conf: whether tailed files are there, and whether files of TLS settings can be used.
pub fn look(outcome: &mut Outcome, strict: bool) {
    let mut found = Vec::new();
    // A component that is wrong already is not tried.
    let wrong: Vec<String> =
        outcome.findings.iter().filter(|finding| finding.level == Level::Error).filter_map(|f| f.key.clone()).collect();
    for (agent, component) in outcome.plans.iter().flat_map(|plan| plan.components().map(move |component| (&plan.agent, component))) {
        let prefix = format!("{agent}.{}.", component.kind.role.plural());
        if wrong.iter().any(|key| key.starts_with(&format!("{prefix}{}.", component.name))) {
            continue;
        }
        let told = tls::look(component).into_iter().chain(kafka_settings::look(component));
        found.extend(told.map(|finding| Finding { key: finding.key.map(|key| format!("{prefix}{key}")), ..finding }));
    }
    for source in outcome.plans.iter().flat_map(|plan| plan.sources.iter().map(move |source| (&plan.agent, source))) {
        let (agent, source) = source;
        let Some(tail) = exec::tail_of(source, strict).filter(|_| std::ptr::eq(source.kind, &exec::KIND)) else { continue };
        let place = source.settings.get("command").and_then(|setting| setting.place.as_ref());
        let say = |message: String, remedy: &str| {
            let key = format!("{agent}.sources.{}.command", source.name);
            Finding::warning("tailed-file", message).maybe_at(place).key(key).remedy(remedy)
        };
        let path = tail.path.display();
        match std::fs::metadata(&tail.path) {
            Ok(metadata) if metadata.is_dir() => found.push(say(
                format!("{path} is a directory; nothing is read from it"),
                "name a file, or follow all of its files with TAILDIR",
            )),
            Ok(metadata) if !metadata.is_file() => found.push(say(
                format!("{path} is not a regular file; nothing is read from it"),
                "add shell = /bin/sh -c: then the command is run",
            )),
            Ok(_) => {
                if let Err(error) = std::fs::File::open(&tail.path) {
                    found.push(say(format!("{path} cannot be read: {error}"), "let the collector's user read it"));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                found.push(say(format!("{path} is not there now; it is waited for"), "nothing to do, if it will be written"));
            }
            Err(error) => found.push(say(format!("{path}: {error}"), "correct the path")),
        }
    }
    for (agent, source) in outcome.plans.iter().flat_map(|plan| plan.sources.iter().map(move |source| (&plan.agent, source))) {
        found.extend(
            missing_directories(source)
                .into_iter()
                .map(|finding| Finding { key: finding.key.map(|key| format!("{agent}.sources.{}.{key}", source.name)), ..finding }),
        );
    }
    for (agent, channel) in outcome.plans.iter().flat_map(|plan| plan.channels.iter().map(move |channel| (&plan.agent, channel))) {
        if channel.kind.property("dataDirs").is_none() {
            continue;
        }
        let logs = flume_log::logs_in(&file::flume_place(channel).data);
        if let Some(first) = logs.first() {
            let message =
                format!("{} logs that Flume left, the first of them {}, are not read by the channel", logs.len(), first.display());
            let place = channel.settings.get("dataDirs").and_then(|setting| setting.place.as_ref());
            let finding =
                Finding::warning("flume-events", message).maybe_at(place).key(format!("{agent}.channels.{}.dataDirs", channel.name));
            found.push(finding.flume("delivers what waits in them").remedy(format!(
                "`millrace-collector channel inspect FILE -n {agent} --channel {} --flume` tells whether events wait, `drain` gives them out; then remove the logs",
                channel.name
            )));
        }
    }
    outcome.findings.extend(found);
}

/// Directories that a source reads from and that are not there.
fn missing_directories(source: &Component) -> Vec<Finding> {
    let of_group = |name: &str| {
        let key = format!("filegroups.{name}");
        let (directory, _) = source.text(&key).trim().rsplit_once('/')?;
        Some((key.clone(), directory.to_owned()))
    };
    let directories: Vec<(String, String)> = if std::ptr::eq(source.kind, &taildir::KIND) {
        source.text("filegroups").split_whitespace().filter_map(of_group).collect()
    } else if std::ptr::eq(source.kind, &spooldir::KIND) {
        vec![("spoolDir".to_owned(), source.text("spoolDir").trim().to_owned())]
    } else {
        Vec::new()
    };
    let missing = directories.into_iter().filter(|(_, directory)| !directory.is_empty() && !Path::new(directory).is_dir());
    let told = missing.map(|(key, directory)| {
        let place = source.settings.get(&key).and_then(|setting| setting.place.clone());
        let remedy = if directory.contains(['*', '?', '[']) {
            "only the file name is an expression; name one directory for each group"
        } else {
            "nothing to do, if it will be made"
        };
        let message = format!("there is no directory {directory} now; it is waited for");
        Finding::warning("no-directory", message).maybe_at(place.as_ref()).key(key).flume("does not get the source started").remedy(remedy)
    });
    told.collect()
}

/// Tells every finding in the log.
pub fn log(findings: &[Finding]) {
    for finding in findings {
        let place = finding.place.as_ref().map(|place| format!("{}:{}", place.file, place.line));
        let key = finding.key.as_deref();
        // A field that is `None` is not printed.
        let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (message, flume, remedy) = (&finding.message, said(&finding.flume), said(&finding.remedy));
        match finding.level {
            Level::Error => tracing::error!(place, key, flume, remedy, "{message}"),
            Level::Warning => tracing::warn!(place, key, flume, remedy, "{message}"),
            Level::Note => tracing::info!(place, key, "{message}"),
        }
    }
}

/// Goes over to changed files while the agent runs.
pub struct Reloader {
    config: CollectorConfig,
    agent: Arc<Agent>,
    /// Why the last reload failed: what runs is not what the files say.
    failed: Mutex<Option<String>>,
}

impl Reloader {
    pub fn new(config: CollectorConfig, agent: Arc<Agent>) -> Self {
        Self { config, agent, failed: Mutex::default() }
    }

    /// Why what runs is not what the files say.
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    pub fn config(&self) -> &CollectorConfig {
        &self.config
    }

    /// A conf with errors, or with a component that cannot be built, leaves the running pipeline in place.
    pub async fn reload(&self) -> Result<ReloadResponse, ServiceError> {
        let result = self.go_over().await;
        metrics::gauge!("millrace_collector_reload_failed").set(f64::from(u8::from(result.is_err())));
        *self.failed.lock() = result.as_ref().err().map(ToString::to_string);
        result
    }

    async fn go_over(&self) -> Result<ReloadResponse, ServiceError> {
        let (plan, findings) = self.plan().await?;
        let mut response = self
            .agent
            .change(plan)
            .await
            .map_err(|error| ServiceError::invalid(format!("the running pipeline goes on; the new one cannot be built: {error:#}")))?;
        response.warnings = findings.iter().filter(|finding| finding.level == Level::Warning).map(Finding::to_string).collect();
        Ok(response)
    }

    async fn plan(&self) -> Result<(Plan, Vec<Finding>), ServiceError> {
        let agent = self.config.agent.clone();
        let name = self.agent.plan().agent;
        let reading = tokio::task::spawn_blocking(move || read(&agent.origins(), Some(&name), agent.flume_strict, &agent.define));
        let outcome = reading.await.map_err(|error| ServiceError::internal(format!("the files were not read: {error}")))?;
        log(&outcome.findings);
        if outcome.failed() {
            let errors: Vec<String> =
                outcome.findings.iter().filter(|finding| finding.level == Level::Error).map(Finding::to_string).collect();
            return Err(ServiceError::invalid(format!(
                "the running pipeline goes on; the new configuration has errors: {}",
                errors.join("; ")
            )));
        }
        let plan =
            outcome.plans.into_iter().next().ok_or_else(|| ServiceError::new(ErrorKind::Invalid, "the files define no agent any more"))?;
        Ok((plan, outcome.findings))
    }

    /// Looks at the files' times, and from time to time at what URIs answer, until told to stop.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let agent = &self.config.agent;
        let mut seen = self.times();
        // What was read at the start may be older than any look: the first look reloads.
        let mut texts = None;
        let mut looked = Instant::now();
        loop {
            let files = if agent.conf_file.is_empty() { agent.uri_interval } else { agent.reload_interval };
            let uris = if agent.conf_uri.is_empty() { files } else { agent.uri_interval.saturating_sub(looked.elapsed()) };
            tokio::select! {
                () = tokio::time::sleep(files.min(uris)) => {}
                () = stop.cancelled() => return,
            }
            let now = self.times();
            let mut changed = now != seen;
            seen = now;
            if !agent.conf_uri.is_empty() && looked.elapsed() >= agent.uri_interval {
                looked = Instant::now();
                // What cannot be had now is as it was.
                if let Some(now) = self.texts().await {
                    changed |= texts.as_ref() != Some(&now);
                    texts = Some(now);
                }
            }
            if !changed {
                continue;
            }
            if let Err(error) = self.reload().await {
                tracing::error!(%error, "configuration not reloaded; to try again, save the file or run `millrace collector reload`");
            }
        }
    }

    /// What the URIs answer; `None` when one does not.
    async fn texts(&self) -> Option<Vec<Vec<u8>>> {
        let origins = Origins { files: Vec::new(), ..self.config.agent.origins() };
        if origins.uris.is_empty() {
            return None;
        }
        let read = tokio::task::spawn_blocking(move || origins.read()).await.unwrap_or_default();
        let text = |(name, text): (String, anyhow::Result<Vec<u8>>)| {
            text.inspect_err(|error| tracing::warn!(uri = name, error = format!("{error:#}"), "the agent's file cannot be had")).ok()
        };
        read.into_iter().map(text).collect()
    }

    fn times(&self) -> Vec<Option<SystemTime>> {
        self.config.agent.conf_file.iter().map(|path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_that_are_not_there_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        let check = |lines: &str| {
            let path = dir.path().join("a.conf");
            let text = format!(
                "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.channels = c\na.channels.c.type = memory\n\
                 a.sinks.k.type = null\na.sinks.k.channel = c\n{lines}"
            );
            std::fs::write(&path, text).unwrap();
            let mut outcome = read(&Origins { files: vec![path], ..Origins::default() }, None, false, &BTreeMap::new());
            look(&mut outcome, false);
            outcome
                .findings
                .into_iter()
                .map(|finding| format!("{} {}", finding.key.unwrap_or_default(), finding.remedy))
                .collect::<Vec<_>>()
        };
        let taildir =
            |files: &str| check(&format!("a.sources.r.type = TAILDIR\na.sources.r.filegroups = f\na.sources.r.filegroups.f = {files}"));
        assert_eq!(taildir(&format!("{here}/.*")), [""; 0]);
        assert_eq!(taildir(&format!("{here}/no/.*")), ["a.sources.r.filegroups.f nothing to do, if it will be made"]);
        assert!(taildir(&format!("{here}/**/.*"))[0].contains("only the file name is an expression"));
        assert_eq!(check(&format!("a.sources.r.type = spooldir\na.sources.r.spoolDir = {here}")), [""; 0]);
        assert_eq!(
            check("a.sources.r.type = spooldir\na.sources.r.spoolDir = /nonexist"),
            ["a.sources.r.spoolDir nothing to do, if it will be made"]
        );
    }
}
