//! How bytes of a Kafka record become columns, and rows become bytes again.
//!
//! A decoder stages one message, which either yields a whole row or leaves no trace, and then commits it. So a bad
//! line never takes its neighbours with it, and key and value of a record are taken together or not at all.
//!
//! | format | file | what it reads |
//! |---|---|---|
//! | `json` | `json.rs` | one JSON object per record, fields by name |
//! | `regex` | `regex.rs`, `nginx.rs` | text lines, named groups by name; preset `nginx-combined` |
//! | `raw` | `raw.rs` | the whole record as one column |
//!
//! `rows.rs` turns text and JSON scalars into typed columns; `time.rs` reads timestamps; `encode.rs` writes JSON.

mod encode;
mod json;
mod json_scan;
mod nginx;
mod raw;
mod regex;
mod rows;
pub(crate) mod time;

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;

pub use encode::{JsonEncoder, TimestampStyle};

use crate::sql::SqlError;
use crate::sql::options::Options;

/// Why a message is not a row of the table. For people: it names the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl Malformed {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Turns messages into columns; one per thread.
pub trait Decoder: Send {
    /// Reads one message without keeping it. A staged message that is not committed is forgotten.
    fn stage(&mut self, message: &[u8]) -> Result<(), Malformed>;
    /// Appends the row of the message staged last. `message` is that message.
    fn commit(&mut self, message: &[u8]);
    /// The rows committed since the last call, one array per field, in the order of the fields.
    fn finish(&mut self) -> anyhow::Result<Vec<ArrayRef>>;
}

/// A format with its options, checked; makes decoders for a choice of its fields.
pub trait Format: Send + Sync + std::fmt::Debug {
    /// `fields` are some of the fields the format was built for.
    fn decoder(&self, fields: &[FieldRef]) -> Box<dyn Decoder>;
}

/// Builds a format from the options of a table for its fields.
type Build = fn(&mut Options, &[FieldRef]) -> Result<Arc<dyn Format>, SqlError>;

/// A line in the table of formats.
pub struct FormatKind {
    pub name: &'static str,
    /// Options it knows, beside `format` itself.
    pub options: &'static [&'static str],
    pub build: Build,
}

pub const FORMATS: &[FormatKind] = &[json::KIND, regex::KIND, raw::KIND];

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use arrow::array::RecordBatch;
    use arrow::datatypes::Schema;

    /// Decodes lines; gives the table as text and the reasons of the malformed ones with their index.
    pub(crate) fn decode(format: &dyn Format, fields: &[FieldRef], lines: &[&[u8]]) -> (RecordBatch, Vec<(usize, String)>) {
        let mut decoder = format.decoder(fields);
        let mut bad = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            match decoder.stage(line) {
                Ok(()) => decoder.commit(line),
                Err(Malformed(reason)) => bad.push((index, reason)),
            }
        }
        let arrays = decoder.finish().unwrap();
        (RecordBatch::try_new(Arc::new(Schema::new(fields.to_vec())), arrays).unwrap(), bad)
    }
}
