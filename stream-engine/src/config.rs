//! What can be set for the engine process; `config/engine.example.toml` shows every key with its default.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use service_kit::{
    KitConfig, ListenAddr,
    config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig},
};

use crate::checkpoint::CheckpointConfig;

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
    pub checkpoint: CheckpointConfig,
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
    /// Folder or URL (`file://`, `hdfs://`, `s3://`) where jobs' definitions are kept, and their checkpoints unless a job names its own. Unset: `millrace/engine` below
    /// `$XDG_STATE_HOME`, below `~/.local/state`, or `/var/lib`.
    pub checkpoint: Option<String>,
    /// Jobs that run at once; as many that are over are remembered.
    pub max: usize,
    /// Static id of this process among the workers of its shared jobs (`job.slots`), unique among them: started again under it, it has its slots back at
    /// once. Unset: a member like any other, whose slots move to the others when it leaves.
    pub worker_id: Option<String>,
    /// Defaults for every job, by the names that `SET` takes: `"batch.interval" = "1s"`.
    #[serde(deserialize_with = "known_settings")]
    pub settings: BTreeMap<String, String>,
}

/// A wrong default is refused at the start of the engine, not with every job.
fn known_settings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let settings = BTreeMap::deserialize(deserializer)?;
    crate::sql::check_settings(&settings).map_err(D::Error::custom)?;
    Ok(settings)
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
            checkpoint: CheckpointConfig::default(),
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
        Self { checkpoint: None, max: 100, worker_id: None, settings: BTreeMap::new() }
    }
}

impl JobsConfig {
    /// Where jobs are kept, as an absolute path or URL.
    pub fn checkpoint(&self) -> String {
        let given = self.checkpoint.clone().unwrap_or_else(|| {
            let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
            let base = variable("XDG_STATE_HOME")
                .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
                .unwrap_or_else(|| PathBuf::from("/var/lib"));
            base.join("millrace/engine").to_string_lossy().into_owned()
        });
        if given.is_empty() || given.contains("://") {
            return given;
        }
        std::path::absolute(&given).map_or(given, |path| path.to_string_lossy().into_owned())
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
        Self(EngineConfig {
            control: ControlConfig { listen: free, ..ControlConfig::default() },
            page: PageConfig { listen: free },
            ..EngineConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_default_for_jobs_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engine.toml");
        let text = "[jobs.settings]\n\"batch.interval\" = \"1s\"\n\"millrace.emit\" = \"always\"\n\"batch.intervall\" = \"1s\"\n";
        std::fs::write(&file, text).unwrap();
        let said = service_kit::config::load::<EngineConfig>(Some(&file), serde_json::Value::Null).unwrap_err().to_string();
        for part in ["engine.toml:3", "`always` is not `on-watermark` or `every-batch`", "engine.toml:4", "did you mean `batch.interval`?"]
        {
            assert!(said.contains(part), "without {part:?}: {said}");
        }
        assert!(!said.contains("engine.toml:2"), "{said}");
    }

    #[test]
    fn the_settings_of_stores_are_read_by_their_own_names_and_secrets_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engine.toml");
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            service_kit::config::load::<EngineConfig>(Some(&file), serde_json::Value::Null)
        };
        let text = "[checkpoint]\ntimeout = '5s'\n[checkpoint.store]\naws_endpoint = 'http://s3:9000'\naws_allow_http = true\n\
                    dfs.ha.namenodes.ns = 'a,b'\naws_secret_access_key = 'hunter2'\n";
        let config = load(text).unwrap();
        let store: Vec<String> = config.checkpoint.store.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = ["aws_allow_http=true", "aws_endpoint=http://s3:9000", "aws_secret_access_key=hunter2", "dfs.ha.namenodes.ns=a,b"];
        assert_eq!(store, expected);
        let shown = service_kit::config::render(&config);
        assert!(shown.contains("http://s3:9000") && !shown.contains("hunter2"), "{shown}");
        let said = load("[checkpoint.store]\naws_endpoint = 'x'\nendpont = 'y'\n").unwrap_err().to_string();
        assert!(said.contains("engine.toml:3") && said.contains("`endpont` is neither a setting of S3"), "{said}");
    }

    #[test]
    fn the_place_of_the_jobs_does_not_depend_on_where_the_engine_is_started() {
        let place = |given: Option<&str>| JobsConfig { checkpoint: given.map(Into::into), ..JobsConfig::default() }.checkpoint();
        assert!(place(None).starts_with('/') && place(None).ends_with("/millrace/engine"), "{}", place(None));
        let here = std::env::current_dir().unwrap();
        assert_eq!(place(Some("jobs")), here.join("jobs").to_string_lossy());
        assert_eq!(place(Some("file:///var/jobs")), "file:///var/jobs");
    }

    #[test]
    fn the_example_is_the_defaults() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/engine.example.toml");
        let loaded: EngineConfig = service_kit::config::load(Some(&file), serde_json::Value::Null).unwrap();
        assert_eq!(serde_json::to_value(loaded).unwrap(), serde_json::to_value(EngineConfig::default()).unwrap());
    }
}
