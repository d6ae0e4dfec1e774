//! Rows as JSON objects, one per row: for Kafka records and the console. NULLs are written, as Flink does.

use arrow::array::RecordBatch;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use bytes::Bytes;

/// `json.timestamp-format.standard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampStyle {
    /// `2026-11-22 13:00:00.123`, with `Z` for TIMESTAMP_LTZ.
    Sql,
    /// `2026-11-22T13:00:00.123`, with `Z` for TIMESTAMP_LTZ.
    Iso,
}

#[derive(Clone, Copy, Debug)]
pub struct JsonEncoder {
    pub timestamps: TimestampStyle,
    /// Leave NULL fields out (`json.encode.ignore-null-fields`).
    pub without_nulls: bool,
}

impl JsonEncoder {
    /// One JSON text per row, in order; slices of one buffer.
    pub fn encode(&self, rows: &RecordBatch) -> anyhow::Result<Vec<Bytes>> {
        if rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let format = |zone: &str| match self.timestamps {
            TimestampStyle::Sql => format!("%Y-%m-%d %H:%M:%S%.f{zone}"),
            TimestampStyle::Iso => format!("%Y-%m-%dT%H:%M:%S%.f{zone}"),
        };
        let mut writer = WriterBuilder::new()
            .with_explicit_nulls(!self.without_nulls)
            .with_timestamp_format(format(""))
            .with_timestamp_tz_format(format("Z"))
            .build::<_, LineDelimited>(Vec::new());
        writer.write(rows)?;
        writer.finish()?;
        let buffer = Bytes::from(writer.into_inner());
        let mut texts = Vec::with_capacity(rows.num_rows());
        let mut start = 0;
        // A line break inside a string is escaped, so each one here ends a row.
        for (end, _) in buffer.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            texts.push(buffer.slice(start..end));
            start = end + 1;
        }
        Ok(texts)
    }
}
