//! SQL jobs: Flink's DDL and window functions, planned once by DataFusion, run per batch.
//!
//! | file | question it answers |
//! |---|---|
//! | `parser.rs`, `tvf.rs`, `types.rs`, `error.rs` | what does the text say, and where is it wrong |
//! | `options.rs`, `kafka.rs` | what do a table's options mean |
//! | `settings.rs` | what can be set |
//! | `job.rs` | which tables and queries does the job have |
//! | `session.rs`, `functions.rs`, `lineage.rs`, `plan.rs`, `feed.rs` | what runs in every batch for a query |
//! | `source.rs`, `malformed.rs`, `pipeline.rs`, `queue.rs` | how records become rows and reach the queries |
//! | `watermark.rs`, `window.rs` | when is a window complete, and what is in it |
//! | `sum.rs` | when is a total too large |
//! | `mask.rs` | what of a job's text may be shown |
//! | `program.rs` | one batch from beginning to end, snapshot and restore |
//!
//! A job's own settings (`SET 'key' = 'value'`; others are the batch core's, see [`JobSettings`]):
//!
//! | key | default | |
//! |---|---|---|
//! | `sink.delivery-guarantee` | the table's | for the INSERTs below it, of tables that do not say their own: `exactly-once`, `at-least-once` or `at-most-once`; a table that cannot give it is refused |
//! | `millrace.emit` | on-watermark | for the INSERTs below it: `every-batch` also writes the totals so far of open windows that changed, to a sink that replaces rows |
//! | `millrace.query.memory.max` | 512 MB | memory for hash tables of running plans |
//! | `millrace.pipeline.queue.max` | 2 | chunks or batches that wait in front of each step (decode, query, write, dead-letters), per partition and query, and chunks of a partition that are decoded at once; 1 to 64 |
//! | `table.exec.source.idle-timeout` | 1 min | how long a partition that is read to its end and silent while others have rows holds the watermark back; `0 s`: for ever |
//! | `table.local-time-zone` | UTC | only UTC |

pub(crate) mod error;
pub(crate) mod exchange;
mod feed;
mod functions;
mod job;
pub(crate) mod kafka;
mod lineage;
mod malformed;
mod mask;
pub(crate) mod options;
mod parser;
mod pipeline;
mod plan;
mod program;
mod queue;
mod session;
mod settings;
mod source;
mod sum;
mod tvf;
pub(crate) mod types;
mod watermark;
mod window;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use error::SqlError;
pub use mask::masked;
pub(crate) use mask::without_passwords;
pub use settings::check_settings;
pub use sum::Overflow;

use crate::batch::Program;
use crate::job::JobSettings;

/// Looks a variable up.
pub type Environment = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What surrounds a job's text.
pub struct CompileOptions {
    /// Settings that hold where the text has no `SET` for them.
    pub defaults: BTreeMap<String, String>,
    /// Gives `${env:NAME}`.
    pub environment: Environment,
}

impl Default for CompileOptions {
    /// No settings; the environment of the process.
    fn default() -> Self {
        Self { defaults: BTreeMap::new(), environment: Box::new(|name| std::env::var(name).ok()) }
    }
}

/// A job that is ready to run.
pub struct CompiledJob {
    pub settings: JobSettings,
    pub program: Box<dyn Program>,
    /// What was accepted without effect, one sentence each.
    pub notes: Vec<String>,
    /// For people: each INSERT's plan; with EXPLAIN also those.
    pub plan: String,
    /// The text has EXPLAIN statements and no INSERT: show [`Self::plan`] and run nothing.
    pub explain_only: bool,
    /// Tables whose `sink.delivery-guarantee` says `exactly-once`: the job needs a checkpoint.
    pub exactly_once: Vec<String>,
}

/// Reads and plans a job. Connects to nothing.
pub fn compile(text: &str, options: &CompileOptions) -> Result<CompiledJob, SqlError> {
    let job::Compiled { settings, program, notes, plan, explain_only, exactly_once } = job::compile(text, options)?;
    Ok(CompiledJob { settings, program: Box::new(program), notes, plan, explain_only, exactly_once })
}

/// As [`compile`], one half of a slot of a shared job.
pub(crate) fn compile_part(text: &str, options: &CompileOptions, part: exchange::Part) -> Result<Box<dyn Program>, SqlError> {
    let mut program = job::compile(text, options)?.program;
    program.become_part(part);
    Ok(Box::new(program))
}
