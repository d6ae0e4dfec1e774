//! `'format' = 'regex'`: text lines; each named group of the pattern is the column of that name.
//!
//! | option | |
//! |---|---|
//! | `regex.pattern` | a regular expression with named groups `(?<status>\d+)`, one for each column. The whole line must match, and a trailing line break is not part of it |
//! | `regex.preset` | instead of a pattern: `nginx-combined` (see `nginx.rs`) |
//! | `nginx.extra-fields` | with the preset: names of the fields behind the combined format, separated by `;` |
//!
//! A group that takes no part in the match is NULL; text that its column's type cannot hold makes the line malformed.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::FieldRef;
use regex::bytes::{CaptureLocations, Regex};

use super::rows::{Cell, Rows};
use super::{Decoder, Format, FormatKind, Malformed, nginx};
use crate::sql::SqlError;
use crate::sql::options::{Options, did_you_mean};

pub(super) const KIND: FormatKind = FormatKind { name: "regex", options: &["regex.pattern", "regex.preset", "nginx.extra-fields"], build };

fn build(options: &mut Options, fields: &[FieldRef]) -> Result<Arc<dyn Format>, SqlError> {
    let preset = options.optional("regex.preset");
    let pattern = options.optional("regex.pattern");
    match (pattern, preset) {
        (Some(_), Some(_)) => {
            Err(options.error("regex.preset", "`regex.pattern` and `regex.preset` are both given", "leave one of them out"))
        }
        (None, None) => Err(options.error(
            "format",
            "format `regex` needs a pattern",
            "give 'regex.pattern' = '…(?<name>…)…', or 'regex.preset' = 'nginx-combined'",
        )),
        (None, Some(preset)) if preset == nginx::NAME => nginx::build(options, fields),
        (None, Some(preset)) => {
            Err(options.error("regex.preset", format!("unknown preset `{preset}`"), format!("the only preset is `{}`", nginx::NAME)))
        }
        (Some(pattern), None) => {
            let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                options.error("regex.pattern", format!("the pattern does not compile: {reason}"), "")
            })?;
            let groups: Vec<&str> = regex.capture_names().flatten().collect();
            if let Some(field) = fields.iter().find(|field| !groups.contains(&field.name().as_str())) {
                return Err(options.error(
                    "regex.pattern",
                    format!("column `{}` has no group in the pattern", field.name()),
                    match did_you_mean(field.name(), &groups) {
                        Some(hint) => hint,
                        None => format!("name a group `(?<{}>…)`", field.name()),
                    },
                ));
            }
            Ok(Arc::new(Pattern(regex)))
        }
    }
}

#[derive(Debug)]
struct Pattern(Regex);

impl Format for Pattern {
    fn decoder(&self, fields: &[FieldRef]) -> Box<dyn Decoder> {
        let names: Vec<Option<&str>> = self.0.capture_names().collect();
        let group = |field: &FieldRef| names.iter().position(|name| *name == Some(field.name().as_str())).unwrap_or(0);
        Box::new(PatternDecoder {
            groups: fields.iter().map(group).collect(),
            locations: self.0.capture_locations(),
            regex: self.0.clone(),
            rows: Rows::new(fields),
        })
    }
}

struct PatternDecoder {
    regex: Regex,
    locations: CaptureLocations,
    /// Group of each column.
    groups: Vec<usize>,
    rows: Rows,
}

impl Decoder for PatternDecoder {
    fn stage(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.rows.begin();
        let line = without_line_break(message);
        if let Err(error) = std::str::from_utf8(line) {
            return Err(Malformed(format!("not UTF-8 at byte {}", error.valid_up_to())));
        }
        if self.regex.captures_read(&mut self.locations, line).is_none() {
            return Err(Malformed::new("the line does not match `regex.pattern`"));
        }
        for (column, group) in self.groups.iter().enumerate() {
            match self.locations.get(*group) {
                Some((start, end)) => self.rows.stage_text(column, line, start..end)?,
                None => self.rows.cells[column] = Cell::Null,
            }
        }
        self.rows.check(false)
    }

    fn commit(&mut self, message: &[u8]) {
        self.rows.commit(message);
    }

    fn finish(&mut self) -> anyhow::Result<Vec<ArrayRef>> {
        self.rows.finish()
    }
}

pub(super) fn without_line_break(message: &[u8]) -> &[u8] {
    let line = message.strip_suffix(b"\n").unwrap_or(message);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::super::testing::decode;
    use super::*;
    use arrow::datatypes::{DataType, Field};
    use arrow::util::pretty::pretty_format_batches;

    #[test]
    fn groups_become_typed_columns_and_other_lines_are_malformed() {
        let format = Pattern(Regex::new(r"^(?:(?<level>[A-Z]+) (?<ms>-?\w+)ms(?: (?<user>\w+))?)$").unwrap());
        let field = |name: &str, data_type| -> FieldRef { Arc::new(Field::new(name, data_type, true)) };
        let fields = [field("ms", DataType::Int32), field("user", DataType::Utf8)];
        let (batch, bad) = decode(&format, &fields, &[b"INFO 12ms ann\r\n", b"WARN 7ms", b"nonsense", b"INFO manyms", b"INFO 1ms \xff"]);
        let reasons: Vec<&str> = bad.iter().map(|(_, reason)| reason.as_str()).collect();
        assert_eq!(reasons, ["the line does not match `regex.pattern`", "field `ms`: `many` is not INT", "not UTF-8 at byte 9"]);
        assert_eq!(
            pretty_format_batches(&[batch]).unwrap().to_string(),
            "+----+------+\n| ms | user |\n+----+------+\n| 12 | ann  |\n| 7  |      |\n+----+------+"
        );
    }
}
