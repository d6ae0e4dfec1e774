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
//! | `hbase` | `hbase.rs` | writes the same cells again, with the same timestamps; behind another process it is refused ([`Fenced`]) |
//! | `console`, `print` | `console.rs` | is printed again |
//!
//! What stands in the output after crashes, by `sink.delivery-guarantee` (option of the table, or `SET` for all tables below it):
//!
//! | output | `exactly-once` | `at-least-once` | `at-most-once` |
//! |---|---|---|---|
//! | `kafka` | with `sink.transactional-id-prefix`, for readers with `read_committed`: one transaction per batch | default | yes |
//! | `redis` | default: values by key behind a fence | without the fence | refused |
//! | `hbase` | default: cells with the batch's timestamps behind a fence | without the fence | refused |
//! | `filesystem` | default: files that the manifest lists | as exactly-once | yes |
//! | `console`, `print` | refused | default | yes |
//! | dead letters | no | always | no |
//! | a DStream program's `hbase_bulk_put` | default, as `hbase` | `at_least_once` | no |
//! | a DStream program's `foreach_rdd`, `print` | no: its own function does what it does | always | no |
//!
//! At-most-once leaves a batch out that comes again, after a crash or an error: what its first run had not yet written is lost.
//!
//! No output can be better than what is read:
//!
//! | input | after a crash |
//! |---|---|
//! | Kafka, read directly | the same records again, as long as the topic holds them; with `failOnDataLoss` = `false` removed ones are passed over |
//! | files, rates | the same again |
//! | receivers (sockets, HTTP, Kafka by a consumer group, a program's own) with the write-ahead log | what was acknowledged comes again; the sender may repeat what was not |
//! | receivers without it | what was received and not yet processed is lost |
//! | queues of the program | lost with the process |
//!
//! A job that says `exactly-once` is refused before it starts where this cannot be: without `--checkpoint`, with a connector that cannot, with `RANDOM` or
//! `UUID` in a query for `redis` or `hbase`; and so is a DStream program with such an output, or with `require_exactly_once`, on receivers without the log or
//! on queues. Exactly-once is per job: a fresh one, with a checkpoint of its own, writes everything again.

mod console;
mod files;
pub(crate) mod folder;
pub(crate) mod hbase;
pub(crate) mod kafka;
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

/// A write that came after a batch which this process knows nothing of, or knows with other input. The job fails with it at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "batch {batch} of output `{output}` is refused: batch {ahead} is written already{}, by another process that runs this job from the same \
     checkpoint, or by a run whose checkpoint was put back; leave the other one running, or start from a savepoint, which gets fences of its own",
    if .ahead == .batch { " with other input" } else { "" }
)]
pub struct Fenced {
    pub output: String,
    pub batch: u64,
    pub ahead: u64,
}

/// `sink.delivery-guarantee`: how often a row is in the sink although its batch may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    ExactlyOnce,
    /// A batch that comes again is written again.
    AtLeastOnce,
    /// A batch that comes again is not written: what the first run left out is lost. The sink does not see it.
    AtMostOnce,
}

impl Guarantee {
    pub const OPTION: &str = "sink.delivery-guarantee";

    pub fn name(self) -> &'static str {
        match self {
            Self::ExactlyOnce => "exactly-once",
            Self::AtLeastOnce => "at-least-once",
            Self::AtMostOnce => "at-most-once",
        }
    }
}

/// One INSERT's way out.
#[async_trait]
pub trait Sink: Send {
    fn guarantee(&self) -> Guarantee;

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

pub const SINKS: &[SinkKind] = &[kafka::KIND, redis::KIND, hbase::KIND, files::KIND, console::KIND, console::PRINT];
