//! `millrace job …`: jobs of the stream engine.

mod delete;
mod list;
mod savepoint;
mod savepoints;
mod show;
mod stop;
mod submit;

use clap::Subcommand;
use proto::control::v1::{Job, JobState};
use serde::Serialize;

use crate::{
    cli::Session,
    failure::Failure,
    output::{Table, Tone, human},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Checks, plans and starts a SQL job.
    Submit(submit::Args),
    /// Lists jobs.
    List,
    /// Shows a job: its batches, its plan, its definition.
    Show(show::Args),
    /// Stops a job after the running batch.
    Stop(stop::Args),
    /// Copies the checkpoint of a running job to a place that is kept.
    Savepoint(savepoint::Args),
    /// Lists the savepoints that are kept with a job's checkpoint, or deletes one.
    Savepoints(savepoints::Args),
    /// Forgets a job that is over, with --checkpoint also where it stood.
    Delete(delete::Args),
}

impl Command {
    pub(crate) async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Command::Submit(args) => submit::run(args, session).await,
            Command::List => list::run(session).await,
            Command::Show(args) => show::run(args, session).await,
            Command::Stop(args) => stop::run(args, session).await,
            Command::Savepoint(args) => savepoint::run(args, session).await,
            Command::Savepoints(args) => savepoints::run(args, session).await,
            Command::Delete(args) => delete::run(args, session).await,
        }
    }
}

#[derive(Serialize)]
struct JobView {
    name: String,
    /// `sql` or `program`.
    kind: String,
    state: &'static str,
    error: Option<String>,
    /// `null` before the job has started.
    started_at_ms: Option<i64>,
    batch_interval_ms: u64,
    batches_completed: u64,
    rows_in: u64,
    rows_out: u64,
    /// `null` before the first row with event time.
    watermark_ms: Option<i64>,
    late_rows: u64,
    malformed_rows: u64,
    checkpoint: String,
    /// `null` before the first batch.
    last_batch_at_ms: Option<i64>,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let state = match job.state() {
            JobState::Starting => "starting",
            JobState::Running => "running",
            JobState::Waiting => "waiting",
            JobState::Paused => "paused",
            JobState::Finished => "finished",
            JobState::Failed => "failed",
            JobState::Stopping => "stopping",
            JobState::Unspecified => "unknown",
        };
        Self {
            state,
            name: job.name,
            kind: job.kind,
            error: (!job.error.is_empty()).then_some(job.error),
            started_at_ms: (job.started_at_ms != 0).then_some(job.started_at_ms),
            batch_interval_ms: job.batch_interval_ms,
            batches_completed: job.batches_completed,
            rows_in: job.rows_in,
            rows_out: job.rows_out,
            watermark_ms: job.watermark_ms,
            late_rows: job.late_rows,
            malformed_rows: job.malformed_rows,
            checkpoint: job.checkpoint,
            last_batch_at_ms: job.last_batch_at_ms,
        }
    }
}

impl JobView {
    fn tone(&self) -> Tone {
        match self.state {
            "running" => Tone::Good,
            "finished" => Tone::Plain,
            "failed" => Tone::Bad,
            _ => Tone::Watch,
        }
    }

    fn fill(&self, table: &mut Table) {
        table.fact("job", &self.name);
        table.fact("state", self.state);
        if let Some(error) = &self.error {
            // A job that waits says so itself.
            table.fact(if self.state == "waiting" { "reason" } else { "error" }, error);
        }
        table.fact("kind", &self.kind);
        table.fact("started", human::time(self.started_at_ms));
        table.fact("batch interval", human::millis(self.batch_interval_ms));
        table.fact("last batch", human::time(self.last_batch_at_ms));
        table.fact("batches", human::count(self.batches_completed));
        table.fact("rows in", human::count(self.rows_in));
        table.fact("rows out", human::count(self.rows_out));
        table.fact("watermark", human::time(self.watermark_ms));
        table.fact("late rows", human::count(self.late_rows));
        table.fact("malformed rows", human::count(self.malformed_rows));
        table.fact("checkpoint", &self.checkpoint);
    }
}

/// An answer that lacks the part it exists for.
fn incomplete(part: &str) -> Failure {
    Failure::failed(format!("the engine answered without {part}; is it millrace-engine of this version?"))
}
