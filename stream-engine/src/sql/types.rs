//! Flink's type names and the columns they stand for.
//!
//! | Flink | column |
//! |---|---|
//! | STRING, VARCHAR(n), CHAR(n) | Utf8 |
//! | BYTES, BINARY(n), VARBINARY(n) | Binary |
//! | BOOLEAN, TINYINT, SMALLINT, INT (INTEGER), BIGINT, FLOAT, DOUBLE, DECIMAL(p, s) (NUMERIC) | the same |
//! | DATE, TIMESTAMP(p), TIMESTAMP_LTZ(p) | days; milliseconds for p ≤ 3 (default 3), microseconds ≤ 6, nanoseconds ≤ 9 |
//! | ROW<…>, ARRAY<…>, MAP<STRING, …> | struct, list, map |

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};

/// TIMESTAMP_LTZ is kept in UTC.
pub(crate) const UTC: &str = "+00:00";

pub(crate) const TYPE_NAMES: &[&str] = &[
    "STRING",
    "VARCHAR",
    "CHAR",
    "BYTES",
    "BINARY",
    "VARBINARY",
    "BOOLEAN",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
    "NUMERIC",
    "DATE",
    "TIMESTAMP",
    "TIMESTAMP_LTZ",
    "ROW",
    "ARRAY",
    "MAP",
];

/// A scalar type by name and arguments; the error is what is wrong with the arguments.
pub(crate) fn scalar(name: &str, arguments: &[u64]) -> Option<Result<DataType, String>> {
    let count = |max: usize| {
        if arguments.len() > max { Err(format!("{name} takes at most {max} arguments")) } else { Ok(()) }
    };
    let plain = |data_type: DataType| count(0).map(|()| data_type);
    Some(match name {
        "STRING" => plain(DataType::Utf8),
        "VARCHAR" | "CHAR" => count(1).map(|()| DataType::Utf8),
        "BYTES" => plain(DataType::Binary),
        "BINARY" | "VARBINARY" => count(1).map(|()| DataType::Binary),
        "BOOLEAN" => plain(DataType::Boolean),
        "TINYINT" => plain(DataType::Int8),
        "SMALLINT" => plain(DataType::Int16),
        "INT" | "INTEGER" => plain(DataType::Int32),
        "BIGINT" => plain(DataType::Int64),
        "FLOAT" => plain(DataType::Float32),
        "DOUBLE" => plain(DataType::Float64),
        "DATE" => plain(DataType::Date32),
        "DECIMAL" | "NUMERIC" => count(2).and_then(|()| {
            let (precision, scale) = (arguments.first().copied().unwrap_or(10), arguments.get(1).copied().unwrap_or(0));
            if !(1..=38).contains(&precision) || scale > precision {
                return Err(format!("{name}({precision}, {scale}): precision is 1 to 38, and scale at most the precision"));
            }
            Ok(DataType::Decimal128(precision as u8, scale as i8))
        }),
        "TIMESTAMP" => count(1).and_then(|()| unit(name, arguments)).map(|unit| DataType::Timestamp(unit, None)),
        "TIMESTAMP_LTZ" => count(1).and_then(|()| unit(name, arguments)).map(|unit| DataType::Timestamp(unit, Some(UTC.into()))),
        _ => return None,
    })
}

fn unit(name: &str, arguments: &[u64]) -> Result<TimeUnit, String> {
    match arguments.first().copied().unwrap_or(3) {
        0..=3 => Ok(TimeUnit::Millisecond),
        4..=6 => Ok(TimeUnit::Microsecond),
        7..=9 => Ok(TimeUnit::Nanosecond),
        other => Err(format!("{name}({other}): precision is 0 to 9")),
    }
}

pub(crate) fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("item", item, true)))
}

pub(crate) fn map(key: DataType, value: DataType) -> DataType {
    let entries = vec![Field::new("keys", key, false), Field::new("values", value, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(entries.into()), false)), false)
}

/// How a column's type is called in messages.
pub(crate) fn flink_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "STRING".into(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "BYTES".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Timestamp(unit, zone) => {
            let digits = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("{}({digits})", if zone.is_some() { "TIMESTAMP_LTZ" } else { "TIMESTAMP" })
        }
        DataType::List(item) => format!("ARRAY<{}>", flink_name(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<_> = fields.iter().map(|f| format!("{} {}", f.name(), flink_name(f.data_type()))).collect();
            format!("ROW<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(entry) if entry.len() == 2 => {
                format!("MAP<{}, {}>", flink_name(entry[0].data_type()), flink_name(entry[1].data_type()))
            }
            _ => "MAP".into(),
        },
        other => other.to_string(),
    }
}
