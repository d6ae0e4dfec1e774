//! The places where a debug build of the collector can be made to fail: on every step between an event's arrival, the disk,
//! Kafka's commit, and the note that it is delivered.

service_kit::fault_points! {
    pub(crate) enum Point {
        // What the file channel asks of the disk; these may also fail, or be left out.
        DiskCreate = "disk-create",
        DiskWrite = "disk-write",
        DiskSync = "disk-sync",
        DiskSyncDirectory = "disk-sync-directory",
        DiskRename = "disk-rename",
        DiskRemove = "disk-remove",
        // The file channel's recovery.
        RecoveryBegun = "recovery-begun",
        RecoveryDecided = "recovery-decided",
        RecoveryMovedAside = "recovery-moved-aside",
        RecoveryRemoved = "recovery-removed",
        RecoveryCopyWritten = "recovery-copy-written",
        RecoveryCopySynced = "recovery-copy-synced",
        RecoveryCopyRenamed = "recovery-copy-renamed",
        RecoveryCopySafe = "recovery-copy-safe",
        RecoveryDone = "recovery-done",
        // A new segment.
        SegmentCreated = "segment-created",
        SegmentWritten = "segment-written",
        SegmentSynced = "segment-synced",
        SegmentBegun = "segment-begun",
        SegmentRemoved = "segment-removed",
        LastSegmentRemoved = "last-segment-removed",
        // A put.
        PutEncoded = "put-encoded",
        PutWritten = "put-written",
        PutSynced = "put-synced",
        PutPublished = "put-published",
        PutAnswered = "put-answered",
        // A take.
        TakeRead = "take-read",
        TakeGiven = "take-given",
        TakeCommitted = "take-committed",
        // The note of what is delivered.
        AcksCreated = "acks-created",
        AcksSyncedNew = "acks-synced-new",
        AcksRenamed = "acks-renamed",
        AcksReplaced = "acks-replaced",
        AcksWritten = "acks-written",
        AcksSynced = "acks-synced",
        Closed = "closed",
        // The Kafka sink's transactions.
        TransactionWriterTaken = "transaction-writer-taken",
        TransactionPositionsRead = "transaction-positions-read",
        TransactionBegun = "transaction-begun",
        TransactionPartSent = "transaction-part-sent",
        TransactionPositionsSent = "transaction-positions-sent",
        TransactionCommitted = "transaction-committed",
        TransactionDecided = "transaction-decided",
    }
}
