//! What can be set for the engine process; `config/engine.example.toml` shows every key with its default.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};
use service_kit::{
    KitConfig, ListenAddr,
    config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig},
};

/// The whole configuration of `millrace-engine` and of DStream programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    pub control: ControlConfig,
    pub telemetry: TelemetryConfig,
    pub shutdown: ShutdownConfig,
    pub limits: LimitsConfig,
    pub page: PageConfig,
    pub jobs: JobsConfig,
}

/// `[page]`: the web page, its JSON under `/api/v1`, and `/metrics`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PageConfig {
    /// Default 127.0.0.1:4040; port 0 takes a free one.
    pub listen: ListenAddr,
}

/// `[jobs]`: what `serve` runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobsConfig {
    /// Folder or URL where jobs' definitions are kept, and their checkpoints unless a job names its own.
    pub checkpoint: String,
    /// Jobs that the engine takes, finished ones included.
    pub max: usize,
    /// Defaults for every job, by the names that `SET` takes: `"batch.interval" = "1s"`.
    pub settings: BTreeMap<String, String>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            control: ControlConfig::on_port(7103),
            telemetry: TelemetryConfig::default(),
            shutdown: ShutdownConfig::default(),
            limits: LimitsConfig::default(),
            page: PageConfig::default(),
            jobs: JobsConfig::default(),
        }
    }
}

impl Default for PageConfig {
    fn default() -> Self {
        Self { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 4040)) }
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self { checkpoint: "millrace-checkpoints".into(), max: 100, settings: BTreeMap::new() }
    }
}

impl EngineConfig {
    pub fn kit(&self) -> KitConfig {
        KitConfig {
            control: self.control.clone(),
            telemetry: self.telemetry.clone(),
            shutdown: self.shutdown.clone(),
            limits: self.limits.clone(),
        }
    }
}

/// The same for `run`: several may run on one machine, so the default ports are free ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunConfig(pub EngineConfig);

impl Default for RunConfig {
    fn default() -> Self {
        let free = ListenAddr::new((Ipv4Addr::LOCALHOST, 0));
        Self(EngineConfig { control: ControlConfig { listen: free }, page: PageConfig { listen: free }, ..EngineConfig::default() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_example_is_the_defaults() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/engine.example.toml");
        let loaded: EngineConfig = service_kit::config::load(Some(&file), serde_json::Value::Null).unwrap();
        assert_eq!(serde_json::to_value(loaded).unwrap(), serde_json::to_value(EngineConfig::default()).unwrap());
    }
}
