//! The places where a debug build of the engine can be made to fail: on every step of a batch, from its cut to the moment after its
//! checkpoint. `millrace-engine fault-points` lists them. Those that begin with a connector's name are reached by jobs that write to it.

service_kit::fault_points! {
    pub(crate) enum Point {
        // A job, once in a process: where it stands is read from the checkpoint, nothing has run yet.
        JobRestored = "job-restored",
        // The checkpoint.
        /// An entry has its name, and is not synced: metadata, a batch's plan, a batch's commit.
        CheckpointEntryPut = "checkpoint-entry-put",
        /// An old batch's plan is removed, its commit is not.
        CheckpointHalfPruned = "checkpoint-half-pruned",
        // A batch.
        /// It was cut, or comes again.
        BatchBegun = "batch-begun",
        /// What it covers is in the checkpoint, nothing has run.
        BatchPlanStored = "batch-plan-stored",
        /// Every output has all of its rows, the checkpoint does not know.
        BatchOutputsWritten = "batch-outputs-written",
        /// The checkpoint is done, nobody was told.
        BatchCommitStored = "batch-commit-stored",
        /// The group's offsets are on their way, old entries are removed.
        BatchApplied = "batch-applied",
        // A transaction of the Kafka sink. Those that are named by what follows may also fail, or be left out.
        /// A new writer has fenced the old one and settled its transaction.
        KafkaMarksRead = "kafka-marks-read",
        KafkaTransactionBegun = "kafka-transaction-begun",
        /// Some rows are acknowledged, more may follow.
        KafkaPartSent = "kafka-part-sent",
        /// All rows are acknowledged; the offsets with the batch's id follow.
        KafkaMarksWrite = "kafka-marks-write",
        KafkaMarksWritten = "kafka-marks-written",
        KafkaCommitted = "kafka-committed",
        // The Redis sink.
        /// Before each of a batch's script calls.
        RedisWrite = "redis-write",
        RedisPartWritten = "redis-part-written",
        RedisWritten = "redis-written",
        // The file sink.
        FilesBegun = "files-begun",
        /// One of a batch's files is there.
        FilesPartWritten = "files-part-written",
        /// All of a batch's files are there; the manifest's entry follows.
        FilesEntryWrite = "files-entry-write",
        FilesEntryWritten = "files-entry-written",
    }
}

/// The names of all points.
pub const POINTS: &[&str] = Point::NAMES;
