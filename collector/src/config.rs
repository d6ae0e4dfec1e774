//! The process's own settings, beside the agent's file: flags > environment `MILLRACE_…` > TOML > these defaults.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use service_kit::config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig, duration};
use service_kit::{KitConfig, ListenAddr};

use crate::conf_files::Origins;
use crate::ganglia::GangliaConfig;
use crate::tap::TapConfig;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectorConfig {
    pub agent: AgentConfig,
    pub metrics: MetricsConfig,
    pub ganglia: GangliaConfig,
    pub tap: TapConfig,
    pub control: ControlConfig,
    pub telemetry: TelemetryConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
}

impl Default for CollectorConfig {
    fn default() -> Self {
        Self {
            agent: AgentConfig::default(),
            metrics: MetricsConfig::default(),
            ganglia: GangliaConfig::default(),
            tap: TapConfig::default(),
            control: ControlConfig::on_port(7101),
            telemetry: TelemetryConfig::default(),
            shutdown: ShutdownConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl CollectorConfig {
    pub fn kit(&self) -> KitConfig {
        KitConfig {
            control: self.control.clone(),
            telemetry: self.telemetry.clone(),
            shutdown: self.shutdown.clone(),
            limits: self.limits.clone(),
        }
    }
}

/// `[agent]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// The agent to run, as named in the file (`--name`).
    pub name: Option<String>,
    /// Flume properties files, later ones over earlier ones (`--conf-file`).
    pub conf_file: Vec<PathBuf>,
    /// Flume properties files by their URI (`file:`, `http:`, `https:`), read before the files, so that those count over them
    /// (`--conf-uri`).
    pub conf_uri: Vec<String>,
    /// How long a URI's answer may take.
    #[serde(with = "duration")]
    pub uri_timeout: Duration,
    /// How often URIs are looked at.
    #[serde(with = "duration")]
    pub uri_interval: Duration,
    /// Where positions and dead letters are kept (`--state-dir`). Unset: `millrace/collector` below `$XDG_STATE_HOME`, below
    /// `~/.local/state`, or `/var/lib`.
    pub state_dir: Option<PathBuf>,
    /// Copy Flume even where that is harmful (`--flume-strict`).
    pub flume_strict: bool,
    /// Read the files again when they change (off: `--no-reload-conf`).
    pub reload_conf: bool,
    /// How often they are looked at.
    #[serde(with = "duration")]
    pub reload_interval: Duration,
    /// Java system properties, as `${sys:name}` in the file reads them (`-Dname=value`).
    pub define: BTreeMap<String, String>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            name: None,
            conf_file: Vec::new(),
            conf_uri: Vec::new(),
            uri_timeout: Duration::from_secs(10),
            uri_interval: Duration::from_secs(300),
            state_dir: None,
            flume_strict: false,
            reload_conf: true,
            reload_interval: Duration::from_secs(30),
            define: BTreeMap::new(),
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// Flume's JSON page (`/metrics`), Prometheus (`/prometheus`) and `/health`.
    pub listen: ListenAddr,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 41414)) }
    }
}

impl AgentConfig {
    /// What the agent's files are.
    pub fn origins(&self) -> Origins {
        Origins { uris: self.conf_uri.clone(), files: self.conf_file.clone(), timeout: self.uri_timeout }
    }

    /// The state directory, found.
    pub fn state_dir(&self) -> PathBuf {
        if let Some(directory) = &self.state_dir {
            return directory.clone();
        }
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = variable("XDG_STATE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
            .unwrap_or_else(|| PathBuf::from("/var/lib"));
        base.join("millrace/collector")
    }
}
