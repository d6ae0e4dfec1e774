//! Speed, latency and memory as whole processes see them, next to the peers that people use today, on one broker in one run.
//!
//! Throughput is measured from the first record in the topic to the last, so that neither side pays for its start, and
//! again from the start of the process. A first round, in which the broker warms up, is not counted. The last lines
//! compare what was measured with what is aimed at; a miss is told and does not fail the run, because it may be the machine's.

mod bridge;
mod collector;
mod engine;
mod latency;
mod process;

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use integration_tests::servers;

/// A figure and its aim.
pub(crate) struct Verdict {
    what: String,
    value: f64,
    aim: f64,
    unit: &'static str,
    met: bool,
}

impl Verdict {
    fn at_least(what: impl Into<String>, value: f64, aim: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, aim, unit, met: value >= aim }
    }

    fn at_most(what: impl Into<String>, value: f64, aim: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, aim, unit, met: value <= aim }
    }
}

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.replace(['_', ','], "").parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// Of an even number of values the mean of the middle two; 0 of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = &values[values.len().saturating_sub(1) / 2..values.len().min(values.len() / 2 + 1)];
    if middle.is_empty() { 0.0 } else { middle.iter().sum::<f64>() / middle.len() as f64 }
}

const PARTS: &str = "memory-channel file-channel latency start idle-files engine bridge registry";

#[tokio::main]
async fn main() -> Result<()> {
    let bootstrap = servers::kafka_bootstrap();
    let dir: PathBuf = tempfile::Builder::new().prefix("millrace-bench").tempdir()?.keep();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    writeln!(std::io::stdout().lock(), "cores: {}, load before: {}", std::thread::available_parallelism()?, load.trim())?;
    let parts = std::env::var("BENCH_PARTS").unwrap_or_else(|_| PARTS.to_owned());
    let result = async {
        let mut verdicts = Vec::new();
        for part in parts.split_whitespace() {
            verdicts.extend(match part {
                "memory-channel" => collector::memory_channel(&bootstrap, &dir).await,
                "file-channel" => collector::on_file_channel(&bootstrap, &dir).await,
                "latency" => latency::line_to_topic(&bootstrap, &dir).await,
                "start" => latency::start(&bootstrap, &dir).await,
                "idle-files" => latency::idle_files(&bootstrap, &dir).await,
                "bridge" => bridge::produce_and_consume(&bootstrap, &dir).await,
                "registry" => bridge::registry(&bootstrap, &dir).await,
                "engine" => engine::windows(&bootstrap, &dir).await,
                other => anyhow::bail!("BENCH_PARTS: no part `{other}`; there are: {PARTS}"),
            }?);
        }
        Ok(verdicts)
    }
    .await;
    let verdicts: Vec<Verdict> = result.with_context(|| format!("files and logs are kept in {}", dir.display()))?;
    fs::remove_dir_all(&dir)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nmedians and aims")?;
    for Verdict { what, value, aim, unit, met } in verdicts {
        writeln!(out, "  {:<62} {value:>8.1} {unit:<3} aim {aim:>5.1} {unit:<3} {}", what, if met { "met" } else { "MISSED" })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_of_two_is_between_them() {
        for (values, expected) in [(&[][..], 0.0), (&[3.0], 3.0), (&[4.0, 2.0], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[1.0, 9.0, 2.0, 4.0], 3.0)]
        {
            assert_eq!(super::median(values.iter().copied()), expected, "{values:?}");
        }
    }
}
