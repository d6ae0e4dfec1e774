//! `millrace-engine`: `serve` keeps jobs, `run` runs one in the foreground.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc,
};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use service_kit::config::load;
use stream_engine::{
    batch::runner::Mode,
    config::{EngineConfig, RunConfig},
    job::{JobKind, check_name, compile},
    service::{EngineService, Foreground},
    sql::SqlError,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The job's text is wrong (`EX_DATAERR`).
const WRONG_JOB: u8 = 65;
/// The job's file cannot be read (`EX_NOINPUT`).
const NO_INPUT: u8 = 66;

/// Millrace's stream engine: micro-batches over Kafka, programmed in SQL.
#[derive(Parser)]
#[command(name = "millrace-engine", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Keep jobs: take them over the control port (millrace job submit), and resume those that ran before.
    Serve(Serve),
    /// Run one job in the foreground; ends by itself, with code 0, when every source is bounded and read.
    Run(Run),
    /// Lists the points where this build can be made to fail, one a line.
    #[cfg(debug_assertions)]
    #[command(hide = true)]
    FaultPoints,
}

#[derive(Args)]
struct Common {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "MILLRACE_CONFIG")]
    config: Option<PathBuf>,
    /// Address of the control port [default: 127.0.0.1:7103, a free port for run].
    #[arg(long, value_name = "ADDRESS")]
    control_listen: Option<String>,
    /// Address of the web page [default: 127.0.0.1:4040, a free port for run].
    #[arg(long, value_name = "ADDRESS")]
    page_listen: Option<String>,
}

impl Common {
    fn flags(&self) -> Value {
        json!({
            "control": { "listen": self.control_listen },
            "page": { "listen": self.page_listen },
        })
    }
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    common: Common,
    /// Where jobs' definitions and checkpoints are kept: a folder or a URL (file://, hdfs://, viewfs://, s3://) [default:
    /// millrace/engine below $XDG_STATE_HOME, ~/.local/state, or /var/lib].
    #[arg(long, value_name = "URL")]
    checkpoint: Option<String>,
}

#[derive(Args)]
struct Run {
    /// SQL file of the job.
    #[arg(value_name = "JOB.sql")]
    file: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Where the job keeps its checkpoint: a folder or a URL (file://, hdfs://, viewfs://, s3://); without one it starts anew each time.
    #[arg(long, value_name = "URL")]
    checkpoint: Option<String>,
    /// Check and plan the job, show the plan, run nothing.
    #[arg(long)]
    dry_run: bool,
    /// Name of the job [default: the file's name].
    #[arg(long, value_name = "JOB")]
    name: Option<String>,
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(Cli { command: Command::Serve(serve) }) => serve.start(),
        Ok(Cli { command: Command::Run(run) }) => run.start(),
        #[cfg(debug_assertions)]
        Ok(Cli { command: Command::FaultPoints }) => print(&stream_engine::fault::POINTS.join("\n")),
        Err(error) => {
            // Nothing can be done about a closed terminal.
            error.print().ok();
            ExitCode::from(if error.use_stderr() { service_kit::exit::USAGE } else { 0 })
        }
    }
}

impl Serve {
    fn start(self) -> ExitCode {
        let mut flags = self.common.flags();
        flags["jobs"] = json!({ "checkpoint": self.checkpoint });
        match load::<EngineConfig>(self.common.config.as_deref(), flags) {
            Ok(config) => {
                let kit = config.kit();
                service_kit::run(EngineService::serve(config), kit)
            }
            Err(errors) => errors.report(),
        }
    }
}

impl Run {
    fn start(self) -> ExitCode {
        let RunConfig(config) = match load(self.common.config.as_deref(), self.common.flags()) {
            Ok(config) => config,
            Err(errors) => return errors.report(),
        };
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(error) => return complain(&format!("cannot read {}: {error}", self.file.display()), NO_INPUT),
        };
        let stem = || self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = self.name.clone().unwrap_or_else(stem);
        if let Err(error) = check_name(&name) {
            return complain(&format!("{error} (--name)"), service_kit::exit::USAGE);
        }
        let compiled = match compile(&text, &config.jobs.settings) {
            Ok(compiled) => compiled,
            Err(error) => return complain(&with_caret(&self.file, &text, &error), WRONG_JOB),
        };
        if compiled.explain_only || self.dry_run {
            let notes: String = compiled.notes.iter().map(|note| format!("note: {note}\n")).collect();
            return print(&format!("{notes}{}", compiled.plan));
        }
        if let (None, Some(table)) = (&self.checkpoint, compiled.exactly_once.first()) {
            let why = "without a checkpoint, a job that is started again reads and writes everything again";
            let remedy = "give --checkpoint URL, or say 'sink.delivery-guarantee' = 'at-least-once'";
            return complain(&format!("table `{table}` cannot be exactly-once: {why}; {remedy}"), service_kit::exit::USAGE);
        }
        let kit = config.kit();
        let (started, wait) = mpsc::sync_channel(1);
        let line = stream_engine::terminal::show(wait);
        let job = Foreground {
            name,
            kind: JobKind::Sql,
            settings: compiled.settings,
            program: compiled.program,
            checkpoint: self.checkpoint,
            definition: text,
            notes: compiled.notes,
            mode: tokio::sync::watch::channel(Mode::Run),
            started,
        };
        let code = service_kit::run(EngineService::foreground(config, job), kit);
        if let Some(line) = line {
            // It only draws; that it panicked is in the log.
            line.join().ok();
        }
        code
    }
}

#[allow(clippy::print_stdout)] // what was asked for
fn print(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[allow(clippy::print_stderr)] // the log does not exist yet
fn complain(message: &str, code: u8) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(code)
}

/// `file:line:column: what`, the line, and a caret under the place.
fn with_caret(file: &Path, text: &str, error: &SqlError) -> String {
    let mut shown = format!("{}:{}:{}: {}", file.display(), error.line, error.column, error.message);
    let nth = usize::try_from(error.line).unwrap_or(0).saturating_sub(1);
    if let Some(line) = text.lines().nth(nth) {
        let before = usize::try_from(error.column).unwrap_or(0).saturating_sub(1);
        // Tabs stay tabs, so that the caret stands under its place.
        let indent: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        shown.push_str(&format!("\n{:>5} | {line}\n      | {indent}^", error.line));
    }
    if !error.remedy.is_empty() {
        shown.push_str(&format!("\nhelp: {}", error.remedy));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let error = SqlError { line: 2, column: 9, message: "no column `hots`".into(), remedy: "did you mean `host`?".into() };
        assert_eq!(
            with_caret(Path::new("job.sql"), "INSERT INTO t\n\tSELECT hots FROM s", &error),
            "job.sql:2:9: no column `hots`\n    2 | \tSELECT hots FROM s\n      | \t       ^\nhelp: did you mean `host`?"
        );
    }
}
