//! Staged cells, typed columns.
//!
//! A row is staged as one [`Cell`] per column, small and without borrowed data: numbers and times already converted,
//! texts as a range of the message. Only a complete row is appended, so a bad field costs exactly its own line.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder, Int8Builder,
    Int16Builder, Int32Builder, Int64Builder, StringArray, TimestampMicrosecondBuilder, TimestampMillisecondBuilder,
    TimestampNanosecondBuilder,
};
use arrow::compute::kernels::cast_utils::parse_decimal;
use arrow::datatypes::{DataType, Decimal128Type, FieldRef, Schema, TimeUnit};
use base64::Engine as _;

use super::Malformed;
use super::time::{self, Instant};

/// One staged value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell {
    /// The message does not name the column.
    Missing,
    Null,
    /// Integers, booleans, dates, timestamps in the column's unit, decimals without their point.
    Int(i128),
    Float(f64),
    /// A range of the message.
    Text(u32, u32),
    /// A range of [`Rows::scratch`].
    Scratch(u32, u32),
    /// An index into [`Rows::nested`].
    Nested(u32),
}

/// Columns under construction, and one staged row.
pub(crate) struct Rows {
    fields: Vec<FieldRef>,
    columns: Vec<Column>,
    pub(crate) cells: Vec<Cell>,
    /// Texts that are not in the message as they are (escapes resolved, bytes decoded).
    pub(crate) scratch: Vec<u8>,
    /// Rows, arrays and maps of the staged row.
    pub(crate) nested: Vec<serde_json::Value>,
    rows: usize,
}

enum Column {
    Text(BinaryBuilder),
    Bytes(BinaryBuilder),
    Bool(BooleanBuilder),
    Int8(Int8Builder),
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder),
    Date(Date32Builder),
    Millis(TimestampMillisecondBuilder),
    Micros(TimestampMicrosecondBuilder),
    Nanos(TimestampNanosecondBuilder),
    Nested(Vec<serde_json::Value>),
}

impl Rows {
    pub(crate) fn new(fields: &[FieldRef]) -> Self {
        Self {
            fields: fields.to_vec(),
            columns: fields.iter().map(|field| Column::new(field.data_type())).collect(),
            cells: vec![Cell::Missing; fields.len()],
            scratch: Vec::new(),
            nested: Vec::new(),
            rows: 0,
        }
    }

    pub(crate) fn data_type(&self, column: usize) -> &DataType {
        self.fields[column].data_type()
    }

    /// Forgets what is staged.
    pub(crate) fn begin(&mut self) {
        self.cells.fill(Cell::Missing);
        self.scratch.clear();
        self.nested.clear();
    }

    /// Refuses a row without a value in a `NOT NULL` column, or, with `all_present`, with a column missing.
    pub(crate) fn check(&self, all_present: bool) -> Result<(), Malformed> {
        for (cell, field) in self.cells.iter().zip(&self.fields) {
            match cell {
                Cell::Missing if all_present => {
                    return Err(Malformed::new(format!("field `{}` is missing", field.name())));
                }
                Cell::Missing | Cell::Null if !field.is_nullable() => {
                    return Err(Malformed::new(format!("field `{}` has no value but is NOT NULL", field.name())));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Stages a text value that is `message[range]`, converted to the column's type.
    pub(crate) fn stage_text(&mut self, column: usize, message: &[u8], range: Range<usize>) -> Result<(), Malformed> {
        let cell = match self.data_type(column) {
            DataType::Utf8 => Cell::Text(range.start as u32, range.end as u32),
            _ => self.convert(column, &message[range])?,
        };
        self.cells[column] = cell;
        Ok(())
    }

    /// Stages a text value that the message does not hold as it is.
    pub(crate) fn stage_owned(&mut self, column: usize, text: &[u8]) -> Result<(), Malformed> {
        let cell = match self.data_type(column) {
            DataType::Utf8 => self.keep(text),
            _ => self.convert(column, text)?,
        };
        self.cells[column] = cell;
        Ok(())
    }

    /// Stages an instant in a timestamp column.
    pub(crate) fn stage_instant(&mut self, column: usize, instant: Instant) -> Result<(), Malformed> {
        self.cells[column] = match self.data_type(column) {
            DataType::Timestamp(unit, _) => Cell::Int(scale(instant, *unit)),
            _ => return Err(self.wrong(column, b"a time")),
        };
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Cell {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        Cell::Scratch(start as u32, self.scratch.len() as u32)
    }

    /// A non-text column's value from text.
    fn convert(&mut self, column: usize, text: &[u8]) -> Result<Cell, Malformed> {
        let trimmed = text.trim_ascii();
        let converted = match self.data_type(column) {
            DataType::Boolean => match trimmed {
                t if t.eq_ignore_ascii_case(b"true") => Some(Cell::Int(1)),
                t if t.eq_ignore_ascii_case(b"false") => Some(Cell::Int(0)),
                _ => None,
            },
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                int(trimmed).filter(|value| fits(self.data_type(column), *value)).map(|value| Cell::Int(value.into()))
            }
            DataType::Float32 | DataType::Float64 => float(trimmed).map(Cell::Float),
            DataType::Decimal128(precision, scale) => decimal(trimmed, *precision, *scale).map(Cell::Int),
            DataType::Date32 => time::parse_date(trimmed).map(|days| Cell::Int(days.into())),
            DataType::Timestamp(unit, _) => time::parse(trimmed).map(|instant| Cell::Int(scale(instant, *unit))),
            DataType::Binary => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(trimmed).ok();
                decoded.map(|bytes| self.keep(&bytes))
            }
            _ => None,
        };
        converted.ok_or_else(|| self.wrong(column, text))
    }

    /// What is said about a value that its column cannot hold.
    pub(crate) fn wrong(&self, column: usize, value: &[u8]) -> Malformed {
        const SHOWN_MAX: usize = 40;
        let shown = String::from_utf8_lossy(&value[..value.len().min(SHOWN_MAX)]);
        let dots = if value.len() > SHOWN_MAX { "…" } else { "" };
        let (name, wanted) = (self.fields[column].name(), crate::sql::types::flink_name(self.data_type(column)));
        Malformed(format!("field `{name}`: `{shown}{dots}` is not {wanted}"))
    }

    /// Appends the staged row.
    pub(crate) fn commit(&mut self, message: &[u8]) {
        for (cell, column) in self.cells.iter().zip(&mut self.columns) {
            column.append(*cell, message, &self.scratch, &mut self.nested);
        }
        self.rows += 1;
    }

    /// All rows since the last call.
    pub(crate) fn finish(&mut self) -> anyhow::Result<Vec<ArrayRef>> {
        self.rows = 0;
        self.columns.iter_mut().zip(&self.fields).map(|(column, field)| column.finish(field)).collect()
    }
}

impl Column {
    fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Utf8 => Self::Text(BinaryBuilder::new()),
            DataType::Binary => Self::Bytes(BinaryBuilder::new()),
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            DataType::Int8 => Self::Int8(Int8Builder::new()),
            DataType::Int16 => Self::Int16(Int16Builder::new()),
            DataType::Int32 => Self::Int32(Int32Builder::new()),
            DataType::Int64 => Self::Int64(Int64Builder::new()),
            DataType::Float32 => Self::Float32(Float32Builder::new()),
            DataType::Float64 => Self::Float64(Float64Builder::new()),
            DataType::Decimal128(..) => Self::Decimal(Decimal128Builder::new()),
            DataType::Date32 => Self::Date(Date32Builder::new()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Self::Micros(TimestampMicrosecondBuilder::new()),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Self::Nanos(TimestampNanosecondBuilder::new()),
            DataType::Timestamp(..) => Self::Millis(TimestampMillisecondBuilder::new()),
            _ => Self::Nested(Vec::new()),
        }
    }

    fn append(&mut self, cell: Cell, message: &[u8], scratch: &[u8], nested: &mut [serde_json::Value]) {
        macro_rules! int {
            ($builder:expr) => {
                match cell {
                    Cell::Int(value) => $builder.append_value(value as _),
                    _ => $builder.append_null(),
                }
            };
        }
        macro_rules! float {
            ($builder:expr) => {
                match cell {
                    Cell::Float(value) => $builder.append_value(value as _),
                    Cell::Int(value) => $builder.append_value(value as _),
                    _ => $builder.append_null(),
                }
            };
        }
        match self {
            Self::Text(b) | Self::Bytes(b) => match cell {
                Cell::Text(start, end) => b.append_value(&message[start as usize..end as usize]),
                Cell::Scratch(start, end) => b.append_value(&scratch[start as usize..end as usize]),
                _ => b.append_null(),
            },
            Self::Bool(b) => match cell {
                Cell::Int(value) => b.append_value(value != 0),
                _ => b.append_null(),
            },
            Self::Int8(b) => int!(b),
            Self::Int16(b) => int!(b),
            Self::Int32(b) => int!(b),
            Self::Int64(b) => int!(b),
            Self::Float32(b) => float!(b),
            Self::Float64(b) => float!(b),
            Self::Decimal(b) => int!(b),
            Self::Date(b) => int!(b),
            Self::Millis(b) => int!(b),
            Self::Micros(b) => int!(b),
            Self::Nanos(b) => int!(b),
            Self::Nested(values) => values.push(match cell {
                Cell::Nested(index) => nested[index as usize].take(),
                _ => serde_json::Value::Null,
            }),
        }
    }

    fn finish(&mut self, field: &FieldRef) -> anyhow::Result<ArrayRef> {
        Ok(match self {
            // Each line was checked to be UTF-8; the column is checked once more, as a whole and therefore cheaply.
            Self::Text(b) => Arc::new(StringArray::try_from_binary(b.finish())?),
            Self::Bytes(b) => Arc::new(b.finish()),
            Self::Bool(b) => Arc::new(b.finish()),
            Self::Int8(b) => Arc::new(b.finish()),
            Self::Int16(b) => Arc::new(b.finish()),
            Self::Int32(b) => Arc::new(b.finish()),
            Self::Int64(b) => Arc::new(b.finish()),
            Self::Float32(b) => Arc::new(b.finish()),
            Self::Float64(b) => Arc::new(b.finish()),
            Self::Decimal(b) => Arc::new(b.finish().with_data_type(field.data_type().clone())),
            Self::Date(b) => Arc::new(b.finish()),
            Self::Millis(b) => Arc::new(b.finish().with_timezone_opt(zone(field))),
            Self::Micros(b) => Arc::new(b.finish().with_timezone_opt(zone(field))),
            Self::Nanos(b) => Arc::new(b.finish().with_timezone_opt(zone(field))),
            Self::Nested(values) => nested_array(field, std::mem::take(values))?,
        })
    }
}

fn zone(field: &FieldRef) -> Option<Arc<str>> {
    match field.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    }
}

/// Rows, arrays and maps: built by arrow's own JSON reader, from values that [`conforms`] has checked.
fn nested_array(field: &FieldRef, values: Vec<serde_json::Value>) -> anyhow::Result<ArrayRef> {
    if values.is_empty() {
        return Ok(arrow::array::new_empty_array(field.data_type()));
    }
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let mut decoder = arrow::json::ReaderBuilder::new(schema).with_batch_size(values.len()).build_decoder()?;
    let rows: Vec<_> = values.into_iter().map(|value| serde_json::json!({ field.name().as_str(): value })).collect();
    decoder.serialize(&rows)?;
    let batch = decoder.flush()?.ok_or_else(|| anyhow::anyhow!("no rows of `{}` were read", field.name()))?;
    Ok(batch.column(0).slice(0, batch.num_rows()))
}

/// Whether a JSON value can be read as the type without error.
pub(crate) fn conforms(value: &serde_json::Value, data_type: &DataType) -> bool {
    use serde_json::Value;
    match (value, data_type) {
        (Value::Null, _) => true,
        (Value::Bool(_), DataType::Boolean) => true,
        (Value::Number(n), DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64) => {
            n.as_i64().is_some_and(|n| fits(data_type, n))
        }
        (Value::Number(_), DataType::Float32 | DataType::Float64) => true,
        (Value::Number(n), DataType::Decimal128(p, s)) => decimal(n.to_string().as_bytes(), *p, *s).is_some(),
        (Value::String(_), DataType::Utf8) => true,
        (Value::String(s), DataType::Date32) => time::parse_date(s.as_bytes()).is_some(),
        (Value::String(s), DataType::Timestamp(..)) => time::parse(s.as_bytes()).is_some(),
        (Value::Array(items), DataType::List(item)) => items.iter().all(|value| conforms(value, item.data_type())),
        (Value::Object(map), DataType::Struct(fields)) => {
            fields.iter().all(|field| map.get(field.name()).is_none_or(|value| conforms(value, field.data_type())))
        }
        (Value::Object(map), DataType::Map(entries, _)) => match entries.data_type() {
            DataType::Struct(entry) if entry.len() == 2 => map.values().all(|value| conforms(value, entry[1].data_type())),
            _ => false,
        },
        _ => false,
    }
}

/// Whether an integer fits the column.
pub(crate) fn fits(data_type: &DataType, value: i64) -> bool {
    match data_type {
        DataType::Int8 => i8::try_from(value).is_ok(),
        DataType::Int16 => i16::try_from(value).is_ok(),
        DataType::Int32 => i32::try_from(value).is_ok(),
        _ => true,
    }
}

pub(crate) fn int(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        let value = value.checked_mul(10)?;
        if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
    })
}

pub(crate) fn float(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

pub(crate) fn decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    parse_decimal::<Decimal128Type>(std::str::from_utf8(text).ok()?, precision, scale).ok()
}

fn scale(instant: Instant, unit: TimeUnit) -> i128 {
    let Instant { seconds, nanos } = instant;
    let (seconds, nanos) = (i128::from(seconds), i128::from(nanos));
    match unit {
        TimeUnit::Second => seconds,
        TimeUnit::Millisecond => seconds * 1_000 + nanos / 1_000_000,
        TimeUnit::Microsecond => seconds * 1_000_000 + nanos / 1_000,
        TimeUnit::Nanosecond => seconds * 1_000_000_000 + nanos,
    }
}
