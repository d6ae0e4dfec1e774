//! `'format' = 'json'`: one object per record, fields by name, read straight into typed columns.
//!
//! One pass per line: the scanner meets the keys, wanted ones are converted and staged, others are only checked.
//! Lines of one topic mostly name their fields in the same order, so a key is first compared with the one that stood
//! there in the line before. Conversions follow Flink: `"12"` is an INT, 12 is a STRING, `1.5` is INT 1.
//!
//! | option | default | |
//! |---|---|---|
//! | `json.fail-on-missing-field` | false | an absent field makes the line malformed; otherwise it is NULL |
//! | `json.ignore-parse-errors` | false | a value of the wrong type becomes NULL; otherwise its line is malformed |
//! | `json.timestamp-format.standard` | SQL | `SQL` or `ISO-8601`; both are read, the choice is for writing |

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};

use super::json_scan::{Scanner, unescape};
use super::rows::{Cell, Rows, conforms, decimal, fits, float, int};
use super::{Decoder, Format, FormatKind, Malformed};
use crate::sql::SqlError;
use crate::sql::options::Options;

/// Keys whose place in the line is remembered.
const PLACES_MAX: usize = 256;

pub(super) const KIND: FormatKind = FormatKind {
    name: "json",
    options: &["json.fail-on-missing-field", "json.ignore-parse-errors", "json.timestamp-format.standard"],
    build,
};

#[derive(Debug)]
struct Json {
    fail_on_missing_field: bool,
    ignore_parse_errors: bool,
}

fn build(options: &mut Options, _fields: &[FieldRef]) -> Result<Arc<dyn Format>, SqlError> {
    let format = Json {
        fail_on_missing_field: options.boolean("json.fail-on-missing-field", false)?,
        ignore_parse_errors: options.boolean("json.ignore-parse-errors", false)?,
    };
    options.choice("json.timestamp-format.standard", &["SQL", "ISO-8601"], "SQL")?;
    if format.fail_on_missing_field && format.ignore_parse_errors {
        return Err(options.error(
            "json.ignore-parse-errors",
            "`json.ignore-parse-errors` and `json.fail-on-missing-field` cannot both be true",
            "leave one of them out",
        ));
    }
    Ok(Arc::new(format))
}

impl Format for Json {
    fn decoder(&self, fields: &[FieldRef]) -> Box<dyn Decoder> {
        let by_name = fields.iter().enumerate().map(|(index, field)| (field.name().as_bytes().into(), index)).collect();
        Box::new(JsonDecoder {
            rows: Rows::new(fields),
            by_name,
            places: Vec::new(),
            key: Vec::new(),
            fail_on_missing_field: self.fail_on_missing_field,
            ignore_parse_errors: self.ignore_parse_errors,
        })
    }
}

struct JsonDecoder {
    rows: Rows,
    by_name: HashMap<Box<[u8]>, usize>,
    /// The key met at each place of the line before, and its column.
    places: Vec<(Vec<u8>, Option<usize>)>,
    /// Unescaped key.
    key: Vec<u8>,
    fail_on_missing_field: bool,
    ignore_parse_errors: bool,
}

impl Decoder for JsonDecoder {
    fn stage(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.rows.begin();
        if let Err(error) = std::str::from_utf8(message) {
            return Err(Malformed(format!("not UTF-8 at byte {}", error.valid_up_to())));
        }
        let mut scanner = Scanner::new(message);
        scanner.expect(b'{', "an object `{…}`")?;
        if scanner.peek() == Some(b'}') {
            scanner.at += 1;
        } else {
            let mut place = 0;
            loop {
                scanner.peek();
                let key = scanner.string()?;
                let column = if key.escaped {
                    self.key.clear();
                    unescape(&message[key.start..key.end], &mut self.key);
                    self.by_name.get(self.key.as_slice()).copied()
                } else {
                    self.column_at(place, &message[key.start..key.end])
                };
                scanner.expect(b':', "`:`")?;
                match column {
                    Some(column) => self.value(&mut scanner, column)?,
                    None => {
                        scanner.skip()?;
                    }
                }
                place += 1;
                if scanner.next_or_close(b'}')? {
                    break;
                }
            }
        }
        if scanner.peek().is_some() {
            return Err(scanner.error("the end of the line"));
        }
        self.rows.check(self.fail_on_missing_field)
    }

    fn commit(&mut self, message: &[u8]) {
        self.rows.commit(message);
    }

    fn finish(&mut self) -> anyhow::Result<Vec<ArrayRef>> {
        self.rows.finish()
    }
}

impl JsonDecoder {
    fn column_at(&mut self, place: usize, key: &[u8]) -> Option<usize> {
        match self.places.get_mut(place) {
            Some((known, column)) if known == key => *column,
            Some((known, column)) => {
                known.clear();
                known.extend_from_slice(key);
                *column = self.by_name.get(key).copied();
                *column
            }
            None => {
                let column = self.by_name.get(key).copied();
                if place < PLACES_MAX {
                    self.places.push((key.to_vec(), column));
                }
                column
            }
        }
    }

    /// Stages the value under the scanner. Syntax errors always count; a wrong type only if the options say so.
    fn value(&mut self, scanner: &mut Scanner<'_>, column: usize) -> Result<(), Malformed> {
        let message = scanner.text;
        let staged = match scanner.peek() {
            Some(b'"') => {
                let text = scanner.string()?;
                if matches!(self.rows.data_type(column), DataType::Struct(_) | DataType::List(_) | DataType::Map(..)) {
                    Err(self.rows.wrong(column, &message[text.start..text.end]))
                } else if text.escaped {
                    self.key.clear();
                    unescape(&message[text.start..text.end], &mut self.key);
                    self.rows.stage_owned(column, &self.key)
                } else {
                    self.rows.stage_text(column, message, text.start..text.end)
                }
            }
            Some(b'n') => {
                scanner.literal("null")?;
                self.rows.cells[column] = Cell::Null;
                Ok(())
            }
            Some(b't') => scanner.literal("true").and_then(|()| self.boolean(column, true)),
            Some(b'f') => scanner.literal("false").and_then(|()| self.boolean(column, false)),
            Some(b'{' | b'[') => {
                let (start, end) = scanner.skip()?;
                self.nested(column, message, start, end)
            }
            _ => {
                let (start, end, whole) = scanner.number()?;
                self.number(column, message, start, end, whole)
            }
        };
        match staged {
            Err(_) if self.ignore_parse_errors => {
                self.rows.cells[column] = Cell::Null;
                Ok(())
            }
            staged => staged,
        }
    }

    fn boolean(&mut self, column: usize, value: bool) -> Result<(), Malformed> {
        let text = if value { "true" } else { "false" };
        match self.rows.data_type(column) {
            DataType::Boolean => {
                self.rows.cells[column] = Cell::Int(value.into());
                Ok(())
            }
            DataType::Utf8 => self.rows.stage_owned(column, text.as_bytes()),
            _ => Err(self.rows.wrong(column, text.as_bytes())),
        }
    }

    fn number(&mut self, column: usize, message: &[u8], start: usize, end: usize, whole: bool) -> Result<(), Malformed> {
        let text = &message[start..end];
        let data_type = self.rows.data_type(column);
        let cell = match data_type {
            DataType::Utf8 => Some(Cell::Text(start as u32, end as u32)),
            DataType::Float32 | DataType::Float64 => float(text).map(Cell::Float),
            DataType::Decimal128(precision, scale) => decimal(text, *precision, *scale).map(Cell::Int),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                let value = if whole { int(text) } else { float(text).and_then(truncate) };
                value.filter(|value| fits(data_type, *value)).map(|value| Cell::Int(value.into()))
            }
            _ => None,
        };
        self.rows.cells[column] = cell.ok_or_else(|| self.rows.wrong(column, text))?;
        Ok(())
    }

    fn nested(&mut self, column: usize, message: &[u8], start: usize, end: usize) -> Result<(), Malformed> {
        let text = &message[start..end];
        match self.rows.data_type(column) {
            // Flink gives an object in a STRING column as its JSON.
            DataType::Utf8 => {
                self.rows.cells[column] = Cell::Text(start as u32, end as u32);
                Ok(())
            }
            data_type @ (DataType::Struct(_) | DataType::List(_) | DataType::Map(..)) => {
                match serde_json::from_slice::<serde_json::Value>(text) {
                    Ok(value) if conforms(&value, data_type) => {
                        self.rows.cells[column] = Cell::Nested(self.rows.nested.len() as u32);
                        self.rows.nested.push(value);
                        Ok(())
                    }
                    _ => Err(self.rows.wrong(column, text)),
                }
            }
            _ => Err(self.rows.wrong(column, text)),
        }
    }
}

fn truncate(value: f64) -> Option<i64> {
    (value.is_finite() && value.abs() < i64::MAX as f64).then(|| value.trunc() as i64)
}

#[cfg(test)]
mod tests {
    use super::super::testing::decode;
    use super::*;
    use arrow::datatypes::{Field, TimeUnit};
    use arrow::util::pretty::pretty_format_batches;

    fn field(name: &str, data_type: DataType) -> FieldRef {
        Arc::new(Field::new(name, data_type, true))
    }

    fn json(fail_on_missing_field: bool, ignore_parse_errors: bool) -> Json {
        Json { fail_on_missing_field, ignore_parse_errors }
    }

    /// Rows as JSON, and reasons.
    fn read(format: &Json, fields: &[FieldRef], lines: &[&str]) -> (Vec<String>, Vec<String>) {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let (batch, bad) = decode(format, fields, &lines);
        let encoder = super::super::JsonEncoder { timestamps: super::super::TimestampStyle::Iso, without_nulls: true };
        let rows = encoder.encode(&batch).unwrap().iter().map(|row| String::from_utf8(row.to_vec()).unwrap()).collect();
        (rows, bad.into_iter().map(|(index, reason)| format!("{index}: {reason}")).collect())
    }

    #[test]
    fn values_become_columns_as_in_flink() {
        let fields = [
            field("s", DataType::Utf8),
            field("i", DataType::Int32),
            field("l", DataType::Int64),
            field("d", DataType::Float64),
            field("b", DataType::Boolean),
            field("m", DataType::Decimal128(10, 2)),
            field("t", DataType::Timestamp(TimeUnit::Millisecond, None)),
        ];
        let (rows, bad) = read(
            &json(false, false),
            &fields,
            &[
                r#"{"s":"a\"\u00e9\ud83d\ude00\n","i":-12,"l":9007199254740993,"d":1e3,"b":true,"m":1.25,"t":"2026-11-22 13:00:00.5"}"#,
                r#" { "skip" : {"x":[1,{"y":"]}"}]} , "i" : "12" , "s" : 12.50, "l":1.9, "b":"TRUE", "m":"7", "t":"2026-11-22T13:00:00Z" } "#,
                r#"{"s":{"nested":[1, 2]},"i":null,"d":"2.5"}"#,
                r#"{"d":7,"s":true}"#,
                "{}",
            ],
        );
        assert_eq!(bad, Vec::<String>::new());
        assert_eq!(
            rows,
            [
                "{\"s\":\"a\\\"é😀\\n\",\"i\":-12,\"l\":9007199254740993,\"d\":1000.0,\"b\":true,\"m\":1.25,\"t\":\"2026-11-22T13:00:00.500\"}",
                r#"{"s":"12.50","i":12,"l":1,"b":true,"m":7.00,"t":"2026-11-22T13:00:00"}"#,
                r#"{"s":"{\"nested\":[1, 2]}","d":2.5}"#,
                r#"{"s":"true","d":7.0}"#,
                "{}",
            ]
        );
    }

    #[test]
    fn a_bad_line_costs_only_itself_and_says_why() {
        let fields = [field("a", DataType::Int32), field("t", DataType::Timestamp(TimeUnit::Millisecond, None))];
        let (rows, bad) = read(
            &json(false, false),
            &fields,
            &[
                r#"{"a":1}"#,
                "",
                "[1]",
                r#"{"a":1"#,
                r#"{"a":1}}"#,
                r#"{"a":01}"#,
                r#"{"a":"x"}"#,
                r#"{"a":3000000000}"#,
                r#"{"t":"noon"}"#,
                r#"{"z":tru}"#,
                r#"{"z":"\x"}"#,
                "{\"z\":\"\u{1}\"}",
                r#"{"a":1,}"#,
                r#"{"a" 1}"#,
                r#"{"a":2}"#,
            ],
        );
        assert_eq!(rows, [r#"{"a":1}"#, r#"{"a":2}"#]);
        assert_eq!(
            bad,
            [
                "1: not JSON: ends at byte 0, expected an object `{…}`",
                "2: not JSON at byte 0: found `[`, expected an object `{…}`",
                "3: not JSON: ends at byte 6, expected `,` or `}`",
                "4: not JSON at byte 7: found `}`, expected the end of the line",
                "5: not JSON at byte 6: found `1`, expected `,` or `}`",
                "6: field `a`: `x` is not INT",
                "7: field `a`: `3000000000` is not INT",
                "8: field `t`: `noon` is not TIMESTAMP(3)",
                "9: not JSON at byte 5: found `t`, expected a value",
                "10: not JSON at byte 7: found `x`, expected an escape sequence",
                "11: not JSON at byte 6: found byte 0x01, expected the control character escaped",
                "12: not JSON at byte 7: found `}`, expected a string",
                "13: not JSON at byte 5: found `1`, expected `:`",
            ]
        );
        let deep = format!("{{\"z\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let (_, bad) = decode(&json(false, false), &fields, &[deep.as_bytes(), b"{\"a\":\xff}"]);
        assert_eq!(bad, [(0, "JSON nested deeper than 128".into()), (1, "not UTF-8 at byte 5".into())]);
    }

    #[test]
    fn options_decide_about_missing_fields_and_wrong_types() {
        let fields = [field("a", DataType::Int32), field("b", DataType::Int32)];
        let lines = [r#"{"a":1,"b":2}"#, r#"{"a":1}"#, r#"{"a":"x","b":2}"#];
        let (rows, bad) = read(&json(true, false), &fields, &lines);
        assert_eq!((rows.len(), bad), (1, vec!["1: field `b` is missing".to_owned(), "2: field `a`: `x` is not INT".to_owned()]));
        let (rows, bad) = read(&json(false, true), &fields, &lines);
        assert_eq!((rows[2].as_str(), bad.len()), (r#"{"b":2}"#, 0));
        let strict: FieldRef = Arc::new(Field::new("a", DataType::Int32, false));
        let (rows, bad) = read(&json(false, true), &[strict], &[r#"{"a":null}"#]);
        assert_eq!((rows.len(), bad), (0, vec!["0: field `a` has no value but is NOT NULL".to_owned()]));
    }

    #[test]
    fn rows_arrays_and_maps_are_read_and_checked() {
        let point = DataType::Struct(
            vec![Field::new("x", DataType::Int32, true), Field::new("tags", crate::sql::types::list(DataType::Utf8), true)].into(),
        );
        let fields = [field("p", point), field("m", crate::sql::types::map(DataType::Utf8, DataType::Int64))];
        let lines: [&[u8]; 4] =
            [br#"{"p":{"x":1,"tags":["a",null]},"m":{"k":1}}"#, br#"{"p":{"x":"one"}}"#, br#"{"p":[1]}"#, br#"{"m":null}"#];
        let (batch, bad) = decode(&json(false, false), &fields, &lines);
        assert_eq!(bad.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2]);
        let shown = pretty_format_batches(&[batch]).unwrap().to_string();
        assert!(shown.contains("{x: 1, tags: [a, ]}") && shown.contains("{k: 1}"), "{shown}");
    }

    #[test]
    fn keys_in_changing_order_are_found() {
        let fields = [field("a", DataType::Int32), field("b", DataType::Int32)];
        let (rows, bad) = read(&json(false, false), &fields, &[r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#, r#"{"x":0,"\u0061":1,"b":2}"#]);
        assert_eq!((rows, bad.len()), (vec![r#"{"a":1,"b":2}"#.to_owned(); 3], 0));
    }
}
