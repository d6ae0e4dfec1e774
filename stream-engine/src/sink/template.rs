//! Texts with column values in them: `'nginx:{window_start}:{status}'`. `{{` and `}}` are plain braces.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::sql::SqlError;
use crate::sql::error::nearest_or_all;
use crate::sql::options::Options;

/// Times as they stand in keys and values; TIMESTAMP_LTZ with its `Z`.
const FORMAT: FormatOptions<'static> = FormatOptions::new()
    .with_display_error(false)
    .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.f"))
    .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(usize),
}

impl Template {
    /// Reads the template in option `key`.
    pub(super) fn parse(options: &Options, key: &str, text: &str, schema: &SchemaRef) -> Result<Self, SqlError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            if rest[at + 1..].starts_with(brace) {
                plain.push_str(brace);
                rest = &rest[at + 2..];
                continue;
            }
            let Some((name, after)) = rest[at + 1..].split_once('}').filter(|_| brace == "{") else {
                return Err(options.error(
                    key,
                    format!("`{key}`: a brace without its partner in `{text}`"),
                    "write {column}, or {{ for a plain brace",
                ));
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Column(column(options, key, name, schema)?));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = usize> {
        self.0.iter().filter_map(|part| match part {
            Part::Column(column) => Some(*column),
            Part::Text(_) => None,
        })
    }

    pub(super) fn render(&self, values: &Values<'_>, row: usize) -> anyhow::Result<String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Column(column) => text.push_str(values.get(*column, row)?.as_deref().unwrap_or("")),
            }
        }
        Ok(text)
    }
}

/// The column that option `key` names.
pub(super) fn column(options: &Options, key: &str, name: &str, schema: &Schema) -> Result<usize, SqlError> {
    schema.index_of(name).map_err(|_| {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        options.error(key, format!("`{key}`: unknown column `{name}`"), nearest_or_all("columns", name, &names))
    })
}

/// A batch's values as texts.
pub(super) struct Values<'a>(Vec<(&'a dyn Array, ArrayFormatter<'a>)>);

impl<'a> Values<'a> {
    pub(super) fn new(batch: &'a RecordBatch) -> anyhow::Result<Self> {
        let columns = batch.columns().iter().map(|array| Ok((array.as_ref(), ArrayFormatter::try_new(array.as_ref(), &FORMAT)?)));
        Ok(Self(columns.collect::<anyhow::Result<_>>()?))
    }

    /// `None` is NULL.
    pub(super) fn get(&self, column: usize, row: usize) -> anyhow::Result<Option<String>> {
        let (array, formatter) = &self.0[column];
        if array.is_null(row) {
            return Ok(None);
        }
        Ok(Some(formatter.value(row).try_to_string()?))
    }
}
