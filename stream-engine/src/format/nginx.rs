//! The preset `nginx-combined`, read by hand (a regular expression would take ten times as long).
//!
//! ```text
//! $remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent" EXTRA…
//! ```
//! Columns: the names above without `$`, and `method`, `path` (without query), `query`, `protocol` taken from the request;
//! they are NULL where the request is none (port scans, empty requests). EXTRA are the fields of `nginx.extra-fields`,
//! default `request_time;msec`, separated by blanks and possibly in quotes; a missing one is NULL. `-` in a number or time is
//! NULL. A column of a timestamp type in EXTRA reads epoch seconds with fraction, as nginx writes `$msec`.
//! nginx writes quotes and bytes outside ASCII as `\xHH`; they stay as they are.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef};

use super::regex::without_line_break;
use super::rows::{Cell, Rows};
use super::time::{self, Instant};
use super::{Decoder, Format, Malformed};
use crate::sql::SqlError;
use crate::sql::options::{Options, did_you_mean};

pub(super) const NAME: &str = "nginx-combined";

const EXTRA: &str = "request_time;msec";

/// Columns in the order of [`Line`]'s ranges.
const COLUMNS: [&str; 12] = [
    "remote_addr",
    "remote_user",
    "time_local",
    "request",
    "status",
    "body_bytes_sent",
    "http_referer",
    "http_user_agent",
    "method",
    "path",
    "query",
    "protocol",
];
const TIME_LOCAL: usize = 2;

pub(super) fn build(options: &mut Options, fields: &[FieldRef]) -> Result<Arc<dyn Format>, SqlError> {
    let extra: Vec<String> = options
        .optional("nginx.extra-fields")
        .unwrap_or_else(|| EXTRA.to_owned())
        .split(';')
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    let known: Vec<&str> = COLUMNS.iter().copied().chain(extra.iter().map(String::as_str)).collect();
    for field in fields {
        if !known.contains(&field.name().as_str()) {
            return Err(options.error(
                "regex.preset",
                format!("`{NAME}` has no field `{}`", field.name()),
                did_you_mean(field.name(), &known).unwrap_or_else(|| {
                    format!("fields: {}; add others that follow the combined format by 'nginx.extra-fields'", known.join(", "))
                }),
            ));
        }
    }
    Ok(Arc::new(Nginx { extra }))
}

#[derive(Debug)]
struct Nginx {
    extra: Vec<String>,
}

impl Format for Nginx {
    fn decoder(&self, fields: &[FieldRef]) -> Box<dyn Decoder> {
        let place = |field: &FieldRef| {
            let name = field.name().as_str();
            let fixed = COLUMNS.iter().position(|column| *column == name);
            fixed.unwrap_or_else(|| COLUMNS.len() + self.extra.iter().position(|extra| extra == name).unwrap_or(0))
        };
        Box::new(NginxDecoder {
            places: fields.iter().map(place).collect(),
            rows: Rows::new(fields),
            extra: Vec::new(),
            second: (Vec::new(), Instant { seconds: 0, nanos: 0 }),
        })
    }
}

struct NginxDecoder {
    /// Of each column: index into [`COLUMNS`], or behind it into the extra fields.
    places: Vec<usize>,
    rows: Rows,
    extra: Vec<Range<usize>>,
    /// The time read last: thousands of lines share a second.
    second: (Vec<u8>, Instant),
}

impl Decoder for NginxDecoder {
    fn stage(&mut self, message: &[u8]) -> Result<(), Malformed> {
        self.rows.begin();
        let line = without_line_break(message);
        if let Err(error) = std::str::from_utf8(line) {
            return Err(Malformed(format!("not UTF-8 at byte {}", error.valid_up_to())));
        }
        let fixed = self.split(line)?;
        for column in 0..self.places.len() {
            let place = self.places[column];
            let range = match place.checked_sub(COLUMNS.len()) {
                None => fixed[place].clone(),
                Some(extra) => self.extra.get(extra).cloned(),
            };
            self.cell(column, place, line, range)?;
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

impl NginxDecoder {
    fn cell(&mut self, column: usize, place: usize, line: &[u8], range: Option<Range<usize>>) -> Result<(), Malformed> {
        let data_type = self.rows.data_type(column);
        let range = match range {
            Some(range) if &line[range.clone()] != b"-" || data_type == &DataType::Utf8 => range,
            _ => {
                self.rows.cells[column] = Cell::Null;
                return Ok(());
            }
        };
        let text = &line[range.clone()];
        if !matches!(data_type, DataType::Timestamp(..)) {
            return self.rows.stage_text(column, line, range);
        }
        let instant = if place == TIME_LOCAL {
            if self.second.0 != text {
                let instant = time::parse(text).ok_or_else(|| self.rows.wrong(column, text))?;
                self.second = (text.to_vec(), instant);
            }
            self.second.1
        } else {
            time::parse_epoch_seconds(text).or_else(|| time::parse(text)).ok_or_else(|| self.rows.wrong(column, text))?
        };
        self.rows.stage_instant(column, instant)
    }

    /// Ranges of [`COLUMNS`] in the line; the extra fields go to `self.extra`.
    fn split(&mut self, line: &[u8]) -> Result<[Option<Range<usize>>; COLUMNS.len()], Malformed> {
        let mut cut = Cut { line, at: 0 };
        let remote_addr = cut.until(" - ", "remote_addr")?;
        let remote_user = cut.until(" [", "remote_user")?;
        let time_local = cut.until("] \"", "time_local")?;
        let request = cut.until("\" ", "request")?;
        let status = cut.until(" ", "status")?;
        let body_bytes_sent = cut.until(" \"", "body_bytes_sent")?;
        let http_referer = cut.until("\" \"", "http_referer")?;
        let http_user_agent = cut.until("\"", "http_user_agent")?;
        self.extra.clear();
        cut.extra(&mut self.extra);
        let (method, path, query, protocol) = request_parts(line, request.clone());
        Ok([
            Some(remote_addr),
            Some(remote_user),
            Some(time_local),
            Some(request),
            Some(status),
            Some(body_bytes_sent),
            Some(http_referer),
            Some(http_user_agent),
            method,
            path,
            query,
            protocol,
        ])
    }
}

type Part = Option<Range<usize>>;

/// `GET /a?b HTTP/1.1` in parts; none of them when it is not of this form.
fn request_parts(line: &[u8], request: Range<usize>) -> (Part, Part, Part, Part) {
    let text = &line[request.clone()];
    let at = |start: usize, end: usize| Some(request.start + start..request.start + end);
    let first = text.iter().position(|b| *b == b' ');
    let last = text.iter().rposition(|b| *b == b' ');
    match (first, last) {
        (Some(first), Some(last)) if first < last && text[last + 1..].starts_with(b"HTTP/") => {
            let mark = text[first + 1..last].iter().position(|b| *b == b'?').map(|mark| first + 1 + mark);
            let query = mark.and_then(|mark| at(mark + 1, last));
            (at(0, first), at(first + 1, mark.unwrap_or(last)), query, at(last + 1, text.len()))
        }
        _ => (None, None, None, None),
    }
}

struct Cut<'a> {
    line: &'a [u8],
    at: usize,
}

impl Cut<'_> {
    /// The field up to `end`, which is skipped.
    fn until(&mut self, end: &'static str, field: &'static str) -> Result<Range<usize>, Malformed> {
        let rest = &self.line[self.at..];
        let end = end.as_bytes();
        let mut from = 0;
        while let Some(found) = rest[from..].iter().position(|b| *b == end[0]) {
            let found = from + found;
            if rest[found..].starts_with(end) {
                let range = self.at..self.at + found;
                self.at += found + end.len();
                return Ok(range);
            }
            from = found + 1;
        }
        Err(Malformed(format!("not nginx's combined format: no end of `{field}` after byte {}", self.at)))
    }

    fn extra(&mut self, fields: &mut Vec<Range<usize>>) {
        while self.at < self.line.len() {
            let (close, skip) = match self.line[self.at] {
                b' ' => {
                    self.at += 1;
                    continue;
                }
                b'"' => (b'"', 1),
                _ => (b' ', 0),
            };
            let start = self.at + skip;
            let length = self.line[start..].iter().position(|b| *b == close).unwrap_or(self.line.len() - start);
            fields.push(start..start + length);
            self.at = start + length + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::decode;
    use super::*;
    use arrow::datatypes::{Field, TimeUnit};

    const LINE: &str = r#"10.0.0.7 - ann [22/Nov/2026:14:00:00 +0100] "GET /a/b?c=d HTTP/1.1" 200 512 "https://example.org/" "Mozilla/5.0 (X11)" 0.042 1795352400.123"#;

    /// Every field as text, in the order of the header.
    fn read(names: &[&str], lines: &[&str]) -> (Vec<Vec<String>>, Vec<String>) {
        let fields: Vec<FieldRef> = names
            .iter()
            .map(|name| {
                let data_type = match *name {
                    "status" => DataType::Int32,
                    "body_bytes_sent" => DataType::Int64,
                    "request_time" => DataType::Float64,
                    "time_local" | "msec" => DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into())),
                    _ => DataType::Utf8,
                };
                Arc::new(Field::new(*name, data_type, true)) as FieldRef
            })
            .collect();
        let format = Nginx { extra: EXTRA.split(';').map(str::to_owned).collect() };
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        let (batch, bad) = decode(&format, &fields, &lines);
        let text = |row: usize| {
            let show = |column: &ArrayRef| arrow::util::display::array_value_to_string(column, row).unwrap();
            batch.columns().iter().map(show).collect()
        };
        ((0..batch.num_rows()).map(text).collect(), bad.into_iter().map(|(_, reason)| reason).collect())
    }

    #[test]
    fn all_fields_of_a_line_are_read() {
        let names: Vec<&str> = COLUMNS.iter().copied().chain(["request_time", "msec"]).collect();
        let (rows, bad) = read(&names, &[LINE]);
        assert_eq!(bad, Vec::<String>::new());
        assert_eq!(
            rows[0],
            [
                "10.0.0.7",
                "ann",
                "2026-11-22T13:00:00Z",
                "GET /a/b?c=d HTTP/1.1",
                "200",
                "512",
                "https://example.org/",
                "Mozilla/5.0 (X11)",
                "GET",
                "/a/b",
                "c=d",
                "HTTP/1.1",
                "0.042",
                "2026-11-22T13:00:00.123Z"
            ]
        );
    }

    #[test]
    fn odd_requests_and_missing_extras_are_rows_too() {
        let line = |request: &str, rest: &str| format!(r#"::1 - - [22/Nov/2026:13:00:00 +0000] "{request}" 400 0 "-" "-"{rest}"#);
        let lines = [line(r"\x16\x03\x01", ""), line("", " -"), line("-", ""), line("GET / HTTP/1.0", " 0.1 - \"quoted extra\" more")];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (rows, bad) = read(&["status", "method", "path", "request_time", "msec", "remote_user"], &lines);
        assert_eq!(bad, Vec::<String>::new());
        assert_eq!(rows[0], ["400", "", "", "", "", "-"]);
        assert_eq!(rows[1], rows[0]);
        assert_eq!(rows[2], rows[0]);
        assert_eq!(rows[3], ["400", "GET", "/", "0.1", "", "-"]);
    }

    #[test]
    fn what_is_not_the_combined_format_says_where_it_breaks() {
        let (rows, bad) = read(
            &["status", "time_local"],
            &["", "hello", &LINE[..60], &LINE.replace(" 200 ", " two "), &LINE.replace("Nov", "Foo"), LINE],
        );
        assert_eq!(rows.len(), 1);
        assert_eq!(
            bad,
            [
                "not nginx's combined format: no end of `remote_addr` after byte 0",
                "not nginx's combined format: no end of `remote_addr` after byte 0",
                "not nginx's combined format: no end of `request` after byte 45",
                "field `status`: `two` is not INT",
                "field `time_local`: `22/Foo/2026:14:00:00 +0100` is not TIMESTAMP_LTZ(3)",
            ]
        );
    }

    /// The hand-written reader and the pattern it stands for agree.
    #[test]
    fn it_reads_what_the_regular_expression_would() {
        let pattern = regex::Regex::new(r#"^(\S+) - (.*?) \[(.*?)\] "(.*?)" (\d+) (\d+) "(.*?)" "(.*?)""#).unwrap();
        for line in [LINE, r#"h - a b [x] "r" 1 2 "" """#, r#"h - - [22/Nov/2026:13:00:00 +0000] "POST /x\x22y HTTP/2.0" 301 0 "r" "u""#] {
            let names = ["remote_addr", "remote_user", "request", "status", "http_referer", "http_user_agent"];
            let (rows, _) = read(&names, &[line]);
            let captures = pattern.captures(line).unwrap();
            let expected: Vec<&str> = [1, 2, 4, 5, 7, 8].into_iter().map(|group| captures.get(group).unwrap().as_str()).collect();
            assert_eq!(rows[0], expected, "{line}");
        }
    }
}
