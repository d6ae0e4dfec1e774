//! Where the rows of an INSERT go.
//!
//! A sink gets all rows of a batch in one call and says when they are safe. A batch may come again (after a crash, or
//! an error): a sink that promises exactly-once recognises it by `(job, checkpoint id, batch id)`.
//!
//! | connector | file | a batch that comes again |
//! |---|---|---|
//! | `kafka` | `kafka.rs` | `exactly-once`: is skipped, and refused behind another process ([`Fenced`]); `at-least-once`: is written again |
//! | `redis` | `redis.rs` | is skipped by a fence, and would write the same values anyway; behind another process it is refused ([`Fenced`]) |
//! | `filesystem` | `files.rs` | is skipped where its entry is in the manifest; an entry of other input is refused ([`Fenced`]) |
//! | `console`, `print` | `console.rs` | is printed again |

mod console;
mod files;
pub(crate) mod folder;
mod kafka;
mod redis;
mod template;

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, SchemaRef};
use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::batch::BatchContext;
use crate::sql::SqlError;
use crate::sql::options::Options;

/// Rows of one batch. An error ends it: what was written of the batch so far must not stand.
pub type RowStream = BoxStream<'static, anyhow::Result<RecordBatch>>;

/// A write that came after a batch which this process knows nothing of. The job fails with it at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "batch {batch} of output `{output}` is refused: batch {ahead} is written already, by another process that runs this job from the same \
     checkpoint, or by a run whose checkpoint was put back; leave the other one running, or start from a savepoint, which gets fences of its own"
)]
pub struct Fenced {
    pub output: String,
    pub batch: u64,
    pub ahead: u64,
}

/// One INSERT's way out.
#[async_trait]
pub trait Sink: Send {
    /// Writes the rows of a batch and gives their number. After `Ok` they are safe. Dropping the call half-way is allowed;
    /// the next call clears up.
    async fn write(&mut self, batch: &BatchContext, rows: RowStream) -> anyhow::Result<u64>;
}

/// The table as a sink sees it.
#[derive(Clone, Debug)]
pub struct SinkTable {
    /// Names this output in fences and reports; unique in the job: the table's name, `page-2` for its second INSERT.
    pub output: String,
    /// From 0: how many INSERTs into the same table stand before this one.
    pub ordinal: usize,
    pub schema: SchemaRef,
    /// The columns as they are declared.
    pub fields: Vec<FieldRef>,
    pub primary_key: Vec<String>,
}

type Build = fn(&mut Options, &SinkTable) -> Result<Box<dyn Sink>, SqlError>;

/// A line in the table of sinks.
pub struct SinkKind {
    pub name: &'static str,
    /// A later row replaces an earlier one of the same key, so that open windows can be shown (`millrace.emit`).
    pub upsert: bool,
    pub options: fn() -> Vec<&'static str>,
    /// Checks the options; connects to nothing yet.
    pub build: Build,
}

pub const SINKS: &[SinkKind] = &[kafka::KIND, redis::KIND, files::KIND, console::KIND, console::PRINT];
