//! `SparkConf`: a program's settings, by Spark's names.

use std::{ffi::OsString, path::PathBuf};

use clap::{Arg, CommandFactory, FromArgMatches, Parser};

use crate::config::EngineConfig;

/// Settings of a DStream program. Wrong ones are said by [`super::StreamingContext::new`].
#[derive(Clone, Debug, Default)]
pub struct SparkConf {
    pub(super) settings: Vec<(String, String)>,
    pub(super) flags: Flags,
}

/// The command line of a DStream program; what `spark-submit` would take is taken here.
#[derive(Clone, Debug, Default, Parser)]
#[command(about = "A streaming program of Millrace's stream engine", long_about = None)]
pub(super) struct Flags {
    /// A setting, e.g. spark.streaming.kafka.maxRatePerPartition=1000; wins over the program's own.
    #[arg(long = "conf", value_name = "KEY=VALUE")]
    pub(super) conf: Vec<String>,
    /// Where the job keeps its checkpoint (a folder or file:// URL); wins over the program's own.
    #[arg(long, value_name = "URL", env = "MILLRACE_CHECKPOINT")]
    pub(super) checkpoint: Option<String>,
    /// Name of the job; default is the program's own.
    #[arg(long, value_name = "JOB")]
    pub(super) name: Option<String>,
    /// Engine configuration (TOML): [control], [page], [jobs.settings], [telemetry], [shutdown], [limits].
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Address of the control port; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) control_listen: Option<String>,
    /// Address of the web page; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(super) page_listen: Option<String>,
}

impl SparkConf {
    /// No settings; the environment (`MILLRACE_…`) still counts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the program's command line (`--help` lists it). Prints what is wrong with it and exits with code 64.
    pub fn from_args() -> Self {
        Self::with_args([]).0
    }

    /// As [`Self::from_args`], with the program's own arguments, which must be given: `["brokers", "topics"]` is shown as
    /// `<brokers> <topics>`.
    pub fn with_args<const N: usize>(names: [&'static str; N]) -> (Self, [String; N]) {
        parse(std::env::args_os(), names).unwrap_or_else(|error| {
            // Nothing can be done about a closed terminal.
            error.print().ok();
            std::process::exit(if error.use_stderr() { i32::from(service_kit::exit::USAGE) } else { 0 });
        })
    }

    /// The job's name: in the checkpoint, on the page, in metrics.
    pub fn set_app_name(self, name: &str) -> Self {
        self.set("spark.app.name", name)
    }

    /// One process runs the job, so a master has no meaning; accepted so that programs read alike.
    pub fn set_master(self, master: &str) -> Self {
        self.set("spark.master", master)
    }

    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.into(), value.into()));
        self
    }

    /// The engine's configuration: defaults < file < environment < command line.
    pub(super) fn engine(&self) -> anyhow::Result<EngineConfig> {
        let mut flags = serde_json::Map::new();
        for (section, address) in [("control", &self.flags.control_listen), ("page", &self.flags.page_listen)] {
            if let Some(address) = address {
                flags.insert(section.into(), serde_json::json!({ "listen": address }));
            }
        }
        service_kit::config::load(self.flags.config.as_deref(), flags.into()).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// Everything that was set, the command line last.
    pub(super) fn all(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut all = self.settings.clone();
        for setting in &self.flags.conf {
            let Some((key, value)) = setting.split_once('=') else {
                anyhow::bail!("--conf {setting}: write KEY=VALUE");
            };
            all.push((key.trim().into(), value.trim().into()));
        }
        Ok(all)
    }
}

/// What clap calls a program's own arguments, by place: their names may be those of flags.
const OWN: [&str; 9] = ["own-1", "own-2", "own-3", "own-4", "own-5", "own-6", "own-7", "own-8", "own-9"];

fn parse<const N: usize>(
    line: impl IntoIterator<Item = OsString>,
    names: [&'static str; N],
) -> Result<(SparkConf, [String; N]), clap::Error> {
    const { assert!(N <= OWN.len(), "a program has nine arguments of its own at most") };
    let own = OWN.iter().zip(names).map(|(id, name)| Arg::new(*id).required(true).value_name(name));
    let mut matches = Flags::command().args(own).try_get_matches_from(line)?;
    let flags = Flags::from_arg_matches(&matches)?;
    let mut own = OWN.iter().take(N).map(|id| matches.remove_one(id));
    // Each is there: clap saw to it.
    let own = names.map(|_| own.next().flatten().unwrap_or_default());
    Ok((SparkConf { flags, ..SparkConf::default() }, own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_programs_own_arguments_stand_beside_the_flags() {
        let (conf, [brokers, topics]) =
            parse(line("program b:9092 --conf spark.app.name=x words,lines --checkpoint /c"), ["brokers", "topics"]).unwrap();
        assert_eq!((brokers.as_str(), topics.as_str()), ("b:9092", "words,lines"));
        assert_eq!(conf.all().unwrap(), [("spark.app.name".into(), "x".into())]);
        assert_eq!(conf.flags.checkpoint.as_deref(), Some("/c"));
    }

    #[test]
    fn missing_and_superfluous_arguments_are_said() {
        let error = parse(line("program b:9092"), ["brokers", "topics"]).err().unwrap().to_string();
        assert!(error.contains("<topics>"), "{error}");
        let error = parse(line("program more"), []).err().unwrap().to_string();
        assert!(error.contains("unexpected argument 'more'"), "{error}");
    }
}
