//! The REST gateway's messages in protobuf, as far as they are used. Field numbers are HBase's.

use bytes::Bytes;

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CellSet {
    #[prost(message, repeated, tag = "1")]
    pub(super) rows: Vec<Row>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Row {
    // Written even when it is empty: HBase's message requires it.
    #[prost(bytes = "bytes", required, tag = "1")]
    pub(super) key: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub(super) values: Vec<Cell>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Cell {
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) column: Option<Bytes>,
    #[prost(int64, optional, tag = "3")]
    pub(super) timestamp: Option<i64>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) data: Option<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TableSchema {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(message, repeated, tag = "3")]
    pub(super) columns: Vec<ColumnSchema>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ColumnSchema {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(int32, optional, tag = "4")]
    pub(super) max_versions: Option<i32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Scanner {
    #[prost(bytes = "bytes", optional, tag = "1")]
    pub(super) start_row: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) end_row: Option<Bytes>,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) columns: Vec<Bytes>,
    /// Cells of one answer.
    #[prost(int32, optional, tag = "4")]
    pub(super) batch: Option<i32>,
    #[prost(int32, optional, tag = "7")]
    pub(super) max_versions: Option<i32>,
    /// Rows that the gateway fetches at a time.
    #[prost(int32, optional, tag = "9")]
    pub(super) caching: Option<i32>,
}
