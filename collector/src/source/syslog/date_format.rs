//! `format.dateFormat`: times by a pattern of Java's `SimpleDateFormat`, which reads leniently: missing fields are those of
//! 1970-01-01 00:00, the 31st of February is in March, and what follows the time does not matter. Names are English.

use chrono::{DateTime, Datelike, FixedOffset, Local, Utc};

use super::time::Written;
use crate::interceptor::joda::{Token, tokens};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DateFormat(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// As many digits as there are, or so many where another number follows at once.
    Number(char, usize, bool),
    Name(char),
    HalfDay,
    /// `+hhmm`, `GMT`, `GMT+hh:mm`
    Zone,
    /// `Z`, `+hh`, `+hhmm` or `+hh:mm`
    IsoZone(usize),
}

const MONTHS: [&str; 12] =
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"];
const DAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
const NUMBERS: &str = "ydHkKhmsS";

impl DateFormat {
    /// The error says what is wrong with the pattern, or not known here.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        let tokens = tokens(pattern);
        let is_number = |token: Option<&Token>| match token {
            Some(Token::Letter('M', count)) => *count <= 2,
            Some(Token::Letter(letter, _)) => NUMBERS.contains(*letter),
            _ => false,
        };
        let part = |(at, token): (usize, &Token)| match token {
            Token::Literal(text) => Ok(Part::Literal(text.clone())),
            Token::Letter('M', count) if *count > 2 => Ok(Part::Name('M')),
            Token::Letter('E', _) => Ok(Part::Name('E')),
            Token::Letter('a', _) => Ok(Part::HalfDay),
            Token::Letter('z' | 'Z', _) => Ok(Part::Zone),
            Token::Letter('X', count @ 1..=3) => Ok(Part::IsoZone(*count)),
            Token::Letter(letter, count) if *letter == 'M' || NUMBERS.contains(*letter) => {
                Ok(Part::Number(*letter, *count, is_number(tokens.get(at + 1))))
            }
            Token::Letter(letter, count) => Err(format!(
                "`{}` in a pattern is not known here; use yMdHhKkmsSEazZX, and quote text: 'T'",
                letter.to_string().repeat(*count)
            )),
        };
        tokens.iter().enumerate().map(part).collect::<Result<_, _>>().map(Self)
    }

    /// Milliseconds since 1970.
    pub fn millis(&self, text: &str, now: DateTime<Utc>) -> Option<i64> {
        let mut found = Found { year: 1970, month: 1, day: 1, ..Found::default() };
        let mut rest = text;
        for part in &self.0 {
            rest = found.take(part, rest, now)?;
        }
        let hour = found.hour + if found.afternoon { 12 } else { 0 };
        let written =
            Written { year: Some(found.year), month: found.month, day: found.day, hour, minute: found.minute, second: found.second };
        let millis = match found.zone {
            Some(seconds) => written.millis(&FixedOffset::east_opt(seconds)?, now),
            None => written.millis(&Local, now),
        };
        millis?.checked_add(found.millis)
    }
}

#[derive(Default)]
struct Found {
    year: i32,
    month: u32,
    day: u32,
    hour: u32,
    afternoon: bool,
    minute: u32,
    second: u32,
    millis: i64,
    /// Seconds east of UTC.
    zone: Option<i32>,
}

/// More digits are no time to anybody.
const DIGITS_MAX: usize = 9;

fn number(text: &str) -> Option<(u32, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok().filter(|_| digits <= DIGITS_MAX)?, rest))
}

/// The longest of `names`, or of their first three letters, in any case.
fn name<'t>(names: &[&str], text: &'t str) -> Option<(u32, &'t str)> {
    let at_start = |name: &str| text.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)).then_some(name.len());
    let found =
        |short: bool| names.iter().zip(1..).find_map(|(name, index)| Some((index, at_start(if short { &name[..3] } else { name })?)));
    found(false).or_else(|| found(true)).map(|(index, length)| (index, &text[length..]))
}

/// Hours and minutes of a zone, with or without a colon.
fn offset(text: &str, minutes: bool, colon: Option<bool>) -> Option<(i32, &str)> {
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let two = |text: &str| {
        text.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())).and_then(|digits| digits.parse::<i32>().ok())
    };
    let rest = text.strip_prefix(['+', '-'])?;
    let (hours, mut rest) = (two(rest)?, &rest[2..]);
    let mut more = 0;
    if minutes {
        match (rest.strip_prefix(':'), colon) {
            (Some(_), Some(false)) | (None, Some(true)) => return None,
            (after, _) => rest = after.unwrap_or(rest),
        }
        more = two(rest)?;
        rest = &rest[2..];
    }
    (hours < 24 && more < 60).then_some((sign * (hours * 3600 + more * 60), rest))
}

impl Found {
    fn take<'t>(&mut self, part: &Part, text: &'t str, now: DateTime<Utc>) -> Option<&'t str> {
        if let Part::Literal(literal) = part {
            return text.strip_prefix(literal.as_str());
        }
        // Blanks before a field do not count, but for its width.
        let trimmed = text.trim_start_matches([' ', '\t']);
        match part {
            Part::Literal(_) => None,
            Part::Number(letter, count, exact) => {
                if !exact {
                    return number(trimmed)
                        .and_then(|(value, rest)| self.set(*letter, *count, value, trimmed.len() - rest.len(), now).map(|()| rest));
                }
                let (field, after) = text.split_at_checked(*count)?;
                let field = field.trim_start_matches([' ', '\t']);
                let (value, rest) = number(field)?;
                self.set(*letter, *count, value, field.len() - rest.len(), now)?;
                Some(&text[text.len() - after.len() - rest.len()..])
            }
            Part::Name('M') => name(&MONTHS, trimmed).map(|(month, rest)| {
                self.month = month;
                rest
            }),
            Part::Name(_) => name(&DAYS, trimmed).map(|(_, rest)| rest),
            Part::HalfDay => {
                let half = trimmed.get(..2)?;
                self.afternoon = half.eq_ignore_ascii_case("pm");
                (self.afternoon || half.eq_ignore_ascii_case("am")).then(|| &trimmed[2..])
            }
            Part::Zone => {
                let named = ["GMT", "UTC"].iter().find_map(|name| trimmed.strip_prefix(name));
                let (zone, rest) = match named {
                    Some(rest) if rest.starts_with(['+', '-']) => offset(rest, true, Some(true))?,
                    Some(rest) => (0, rest),
                    None => offset(trimmed, true, Some(false))?,
                };
                self.zone = Some(zone);
                Some(rest)
            }
            Part::IsoZone(count) => {
                let (zone, rest) = match trimmed.strip_prefix('Z') {
                    Some(rest) => (0, rest),
                    None => offset(trimmed, *count > 1, Some(*count == 3))?,
                };
                self.zone = Some(zone);
                Some(rest)
            }
        }
    }

    fn set(&mut self, letter: char, count: usize, value: u32, digits: usize, now: DateTime<Utc>) -> Option<()> {
        match letter {
            // Two digits are the year between eighty years ago and twenty ahead.
            'y' if count <= 2 && digits == 2 => {
                let first = now.year() - 80;
                self.year = first + (i32::try_from(value).ok()? - first).rem_euclid(100);
            }
            'y' => self.year = i32::try_from(value).ok()?,
            'M' => self.month = value,
            'd' => self.day = value,
            'k' => self.hour = value % 24,
            'h' => self.hour = value % 12,
            'H' | 'K' => self.hour = value,
            'm' => self.minute = value,
            's' => self.second = value,
            _ => self.millis = value.into(),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-06-15T12:00:00Z").unwrap().to_utc()
    }

    /// The expected times are what `SimpleDateFormat` of Java 17 gives.
    #[test]
    fn times_are_read_as_java_reads_them() {
        for (pattern, text, expected) in [
            ("yyyy-MM-dd'T'HH:mm:ss.SSSZ", "2003-10-11T22:14:15.003+0000", Some("2003-10-11T22:14:15.003Z")),
            ("yyyyMMddHHmmssX", "20031011221415Z", Some("2003-10-11T22:14:15Z")),
            ("yyyyMMddHHmmssX", "20031011221415+02", Some("2003-10-11T20:14:15Z")),
            ("yyyy-MM-dd HH:mm:ss XXX", "2003-10-11 22:14:15 -07:00", Some("2003-10-12T05:14:15Z")),
            ("dd/MMM/yyyy:HH:mm:ss Z", "01/feb/2024:10:20:30 +0100 and more", Some("2024-02-01T09:20:30Z")),
            ("MMM d yyyy hh:mm:ss a z", "Oct  1 2003 12:14:15 PM GMT", Some("2003-10-01T12:14:15Z")),
            ("EEE, d MMM yy HH:mm z", "Sat, 11 October 03 1:02 GMT+01:30", Some("2003-10-10T23:32:00Z")),
            // Lenient, and as milliseconds what is a fraction.
            ("yyyy-MM-dd HH:mm:ss.S X", "2003-02-31 25:00:00.5 Z", Some("2003-03-04T01:00:00.005Z")),
            ("HH:mm Z", "10:20 +0000", Some("1970-01-01T10:20:00Z")),
            ("yyyy-MM-dd", "2003/10/11", None),
            ("HH:mm X", "10:20 +1", None),
            ("HH:mm", "", None),
            ("yyyyMMdd", "2003", None),
        ] {
            let expected = expected.map(|time| DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis());
            assert_eq!(DateFormat::parse(pattern).unwrap().millis(text, now()), expected, "{pattern} of {text}");
        }
        assert!(DateFormat::parse("yyyy-MM-ddTHH").unwrap_err().contains("`T`"));
        assert!(DateFormat::parse("ww").unwrap_err().contains("`ww`"));
    }

    proptest! {
        #[test]
        fn no_date_makes_it_panic(pattern in "[yMdHhKkmsSEazZX' :./-]{0,20}", text in "[0-9a-zA-ZéßΩ+: ./-]{0,30}") {
            if let Ok(format) = DateFormat::parse(&pattern) {
                format.millis(&text, now());
            }
        }

        #[test]
        fn the_time_that_was_written_comes_out(millis in 0i64..4_102_444_800_000, minutes in -14i32 * 60..14 * 60) {
            let zone = FixedOffset::east_opt(minutes * 60).unwrap();
            let text = DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&zone).format("%d %b %Y %H:%M:%S.%3f%z").to_string();
            prop_assert_eq!(DateFormat::parse("dd MMM yyyy HH:mm:ss.SSSZ").unwrap().millis(&text, now()), Some(millis));
        }
    }
}
