//! `'format' = 'raw'`: the whole record is one column, STRING or BYTES. STRING must be UTF-8.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};

use super::rows::{Cell, Rows};
use super::{Decoder, Format, FormatKind, Malformed};
use crate::sql::SqlError;
use crate::sql::options::Options;

pub(super) const KIND: FormatKind = FormatKind { name: "raw", options: &[], build };

#[derive(Debug)]
struct Raw;

fn build(options: &mut Options, fields: &[FieldRef]) -> Result<Arc<dyn Format>, SqlError> {
    match fields {
        [field] if matches!(field.data_type(), DataType::Utf8 | DataType::Binary) => Ok(Arc::new(Raw)),
        [field] => Err(options.error(
            "format",
            format!("format `raw` cannot read `{}` as {}", field.name(), crate::sql::types::flink_name(field.data_type())),
            "declare it STRING or BYTES, and CAST it in the query",
        )),
        _ => Err(options.error(
            "format",
            format!("format `raw` reads one column, the table declares {}", fields.len()),
            "keep one STRING or BYTES column (metadata and computed columns do not count), or use `json` or `regex`",
        )),
    }
}

impl Format for Raw {
    fn decoder(&self, fields: &[FieldRef]) -> Box<dyn Decoder> {
        Box::new(RawDecoder { rows: Rows::new(fields), text: fields.iter().any(|f| f.data_type() == &DataType::Utf8) })
    }
}

struct RawDecoder {
    rows: Rows,
    text: bool,
}

impl Decoder for RawDecoder {
    fn stage(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.rows.begin();
        if let (true, Err(error)) = (self.text, std::str::from_utf8(message)) {
            return Err(Malformed(format!("not UTF-8 at byte {}", error.valid_up_to())));
        }
        self.rows.cells.fill(Cell::Text(0, message.len() as u32));
        Ok(())
    }

    fn commit(&mut self, message: &[u8]) {
        self.rows.commit(message);
    }

    fn finish(&mut self) -> anyhow::Result<Vec<ArrayRef>> {
        self.rows.finish()
    }
}
