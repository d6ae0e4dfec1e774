//! Times read by a Joda-Time pattern, as the regex extractor's millisecond serializer reads them: in the machine's time
//! zone where the pattern has none, in the year 2000 where it has a day and no year.

use chrono::{Datelike, Duration, FixedOffset, Local, NaiveDate, NaiveDateTime, TimeZone};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// A year of so many digits at most, with or without a sign.
    Year {
        digits: usize,
        signed: bool,
    },
    /// Two digits, of the hundred years around thirty years ago; `lenient`: another count of digits is the year itself.
    ShortYear {
        lenient: bool,
    },
    Number(Field, usize),
    MonthName,
    DayName,
    HalfDay,
    /// Fraction of a second, up to so many digits.
    Fraction(usize),
    Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Month,
    Day,
    DayOfYear,
    /// 0–23
    Hour,
    /// 1–24
    ClockHour,
    /// 0–11
    HalfHour,
    /// 1–12
    HalfClockHour,
    Minute,
    Second,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DatePattern(Vec<Part>);

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl DatePattern {
    /// The error says what is wrong with the pattern.
    pub(super) fn parse(pattern: &str) -> Result<Self, String> {
        let tokens = tokens(pattern);
        let mut parts = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let (letter, count) = match token {
                Token::Literal(text) => {
                    parts.push(Part::Literal(text.clone()));
                    continue;
                }
                Token::Letter(letter, count) => (*letter, *count),
            };
            let number_follows = tokens.get(at + 1).is_some_and(Token::is_number);
            parts.push(match letter {
                'y' | 'Y' if count == 2 => Part::ShortYear { lenient: !number_follows },
                'y' | 'Y' => Part::Year { digits: if number_follows { count } else { 9 }, signed: letter == 'y' },
                'M' if count >= 3 => Part::MonthName,
                'M' => Part::Number(Field::Month, 2),
                'd' => Part::Number(Field::Day, 2),
                'D' => Part::Number(Field::DayOfYear, 3),
                'H' => Part::Number(Field::Hour, 2),
                'k' => Part::Number(Field::ClockHour, 2),
                'K' => Part::Number(Field::HalfHour, 2),
                'h' => Part::Number(Field::HalfClockHour, 2),
                'm' => Part::Number(Field::Minute, 2),
                's' => Part::Number(Field::Second, 2),
                'S' => Part::Fraction(count),
                'E' => Part::DayName,
                'a' => Part::HalfDay,
                'Z' if count <= 2 => Part::Offset,
                'G' | 'C' | 'x' | 'w' | 'e' | 'z' | 'Z' => {
                    return Err(format!("`{}` in a pattern is not known here; use yMdDHhKkmsSEaZ", letter.to_string().repeat(count)));
                }
                _ => return Err(format!("`{letter}` means nothing in a pattern; quote it: '{letter}'")),
            });
        }
        if parts.is_empty() {
            return Err("the pattern is empty".into());
        }
        let has_day = parts.iter().any(|part| matches!(part, Part::Number(Field::Day | Field::DayOfYear, _)));
        if parts.contains(&Part::DayName) && !has_day {
            return Err("a weekday's name without the day of the month is no time".into());
        }
        Ok(Self(parts))
    }

    /// Milliseconds since 1970.
    pub(super) fn millis(&self, text: &str) -> Result<i64, String> {
        self.read(text).ok_or_else(|| format!("`{text}` is no time of the pattern"))
    }

    fn read(&self, text: &str) -> Option<i64> {
        let mut found = Found::default();
        let mut rest = text;
        for part in &self.0 {
            rest = found.take(part, rest)?;
        }
        if !rest.is_empty() {
            return None;
        }
        let time = found.time()?;
        let millis = match found.offset {
            Some(offset) => FixedOffset::east_opt(offset)?.from_local_datetime(&time).single()?.timestamp_millis(),
            None => Local.from_local_datetime(&time).earliest()?.timestamp_millis(),
        };
        Some(millis)
    }
}

#[derive(Default)]
struct Found {
    year: Option<i32>,
    month: Option<u32>,
    day: Option<u32>,
    day_of_year: Option<u32>,
    day_of_week: Option<u32>,
    hour: Option<u32>,
    half_hour: Option<u32>,
    afternoon: Option<bool>,
    minute: u32,
    second: u32,
    nanos: u32,
    /// Seconds east of UTC.
    offset: Option<i32>,
}

impl Found {
    /// Reads a part at the beginning of `text`; what follows it.
    fn take<'t>(&mut self, part: &Part, text: &'t str) -> Option<&'t str> {
        match part {
            Part::Literal(literal) => {
                let found = text.get(..literal.len())?;
                found.eq_ignore_ascii_case(literal).then(|| &text[literal.len()..])
            }
            Part::Year { digits, signed } => {
                let sign = usize::from(*signed && text.starts_with(['-', '+']));
                let (number, rest) = number(&text[sign..], *digits)?;
                let year = i32::try_from(number).ok()?;
                self.year = Some(if text.starts_with('-') && sign == 1 { -year } else { year });
                Some(rest)
            }
            Part::ShortYear { lenient } => {
                let (year, rest) = number(text, if *lenient { 9 } else { 2 })?;
                let year = i32::try_from(year).ok()?;
                if text.len() - rest.len() != 2 {
                    self.year = lenient.then_some(year);
                    self.year?;
                } else {
                    let first = Local::now().year() - 80;
                    self.year = Some(first + (year - first).rem_euclid(100));
                }
                Some(rest)
            }
            Part::Number(field, digits) => {
                let (number, rest) = number(text, *digits)?;
                self.set(*field, u32::try_from(number).ok()?)?;
                Some(rest)
            }
            Part::Fraction(digits) => {
                let count = text.bytes().take(*digits).take_while(u8::is_ascii_digit).count();
                let (number, _) = number(text, count.min(9))?;
                self.nanos = u32::try_from(number * 10u64.pow(9 - u32::try_from(count.min(9)).ok()?)).ok()?;
                Some(&text[count..])
            }
            Part::MonthName => {
                let (index, rest) = name(&MONTHS, text)?;
                self.month = Some(index + 1);
                Some(rest)
            }
            Part::DayName => {
                let (index, rest) = name(&DAYS, text)?;
                self.day_of_week = Some(index);
                Some(rest)
            }
            Part::HalfDay => {
                let found = text.get(..2)?;
                let afternoon = ["AM", "PM"].iter().position(|word| *word == found || word.to_lowercase() == found)?;
                self.afternoon = Some(afternoon == 1);
                Some(&text[2..])
            }
            Part::Offset => {
                if let Some(rest) = text.strip_prefix(['Z', 'z']) {
                    self.offset = Some(0);
                    return Some(rest);
                }
                let sign = if text.starts_with('-') { -1 } else { 1 };
                let rest = text.strip_prefix(['+', '-'])?;
                let two = |text: &'t str| number(text, 2).filter(|(_, rest)| text.len() - rest.len() == 2);
                let (hours, rest) = two(rest)?;
                let (minutes, rest) = two(rest.strip_prefix(':').unwrap_or(rest)).unwrap_or((0, rest));
                let seconds = i32::try_from(hours * 3600 + minutes * 60).ok().filter(|_| hours < 24 && minutes < 60)?;
                self.offset = Some(sign * seconds);
                Some(rest)
            }
        }
    }

    fn set(&mut self, field: Field, value: u32) -> Option<()> {
        let within = |from: u32, to: u32| (from..=to).contains(&value).then_some(value);
        match field {
            Field::Month => self.month = Some(within(1, 12)?),
            Field::Day => self.day = Some(within(1, 31)?),
            Field::DayOfYear => self.day_of_year = Some(within(1, 366)?),
            Field::Hour => self.hour = Some(within(0, 23)?),
            Field::ClockHour => self.hour = Some(within(1, 24)? % 24),
            Field::HalfHour => self.half_hour = Some(within(0, 11)?),
            Field::HalfClockHour => self.half_hour = Some(within(1, 12)? % 12),
            Field::Minute => self.minute = within(0, 59)?,
            Field::Second => self.second = within(0, 59)?,
        }
        Some(())
    }

    fn time(&self) -> Option<NaiveDateTime> {
        let has_day = self.month.is_some() || self.day.is_some() || self.day_of_year.is_some() || self.day_of_week.is_some();
        let year = self.year.unwrap_or(if has_day { 2000 } else { 1970 });
        let mut date = match self.day_of_year {
            Some(day) => NaiveDate::from_yo_opt(year, day)?,
            None => NaiveDate::from_ymd_opt(year, self.month.unwrap_or(1), self.day.unwrap_or(1))?,
        };
        if let Some(day) = self.day_of_week {
            // The day of that name in the date's week.
            date += Duration::days(i64::from(day) - i64::from(date.weekday().num_days_from_monday()));
        }
        let hour = match (self.hour, self.half_hour) {
            (Some(hour), _) => hour,
            (None, half) => half.unwrap_or(0) + if self.afternoon == Some(true) { 12 } else { 0 },
        };
        date.and_hms_nano_opt(hour, self.minute, self.second, self.nanos)
    }
}

/// Digits at the beginning, `most` of them, as a number; what follows.
fn number(text: &str, most: usize) -> Option<(u64, &str)> {
    let count = text.bytes().take(most).take_while(u8::is_ascii_digit).count();
    Some((text[..count].parse().ok()?, &text[count..]))
}

/// The longest of `names`, or of their first three letters, at the beginning: its number, and what follows. As written,
/// or all in capital or small letters.
fn name<'t>(names: &[&str], text: &'t str) -> Option<(u32, &'t str)> {
    let begins = |name: &str| text.starts_with(name) || text.starts_with(&name.to_lowercase()) || text.starts_with(&name.to_uppercase());
    for short in [false, true] {
        for (index, name) in names.iter().enumerate() {
            let name = if short { &name[..3] } else { name };
            if begins(name) {
                return Some((u32::try_from(index).ok()?, &text[name.len()..]));
            }
        }
    }
    None
}

pub(crate) enum Token {
    Literal(String),
    Letter(char, usize),
}

impl Token {
    fn is_number(&self) -> bool {
        match self {
            Token::Literal(_) => false,
            Token::Letter('M', count) => *count <= 2,
            Token::Letter(letter, _) => "cCxyYdhHmsSwekKDF".contains(*letter),
        }
    }
}

/// Letters and text of a pattern, by the rules that Joda-Time has from Java's `SimpleDateFormat`.
pub(crate) fn tokens(pattern: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut literal = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        if char == '\'' {
            if chars.next_if_eq(&'\'').is_some() {
                literal.push('\'');
                continue;
            }
            while let Some(quoted) = chars.next() {
                // Two quotes are one.
                if quoted == '\'' && chars.next_if_eq(&'\'').is_none() {
                    break;
                }
                literal.push(quoted);
            }
        } else if char.is_ascii_alphabetic() {
            if !literal.is_empty() {
                tokens.push(Token::Literal(std::mem::take(&mut literal)));
            }
            let mut count = 1;
            while chars.next_if_eq(&char).is_some() {
                count += 1;
            }
            tokens.push(Token::Letter(char, count));
        } else {
            literal.push(char);
        }
    }
    if !literal.is_empty() {
        tokens.push(Token::Literal(literal));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> i64 {
        text.parse::<DateTime<Utc>>().unwrap().timestamp_millis()
    }

    #[test]
    fn times_with_a_zone() {
        for (pattern, text, expected) in [
            ("yyyy-MM-dd'T'HH:mm:ss.SSSZ", "2012-10-18T18:47:57.614+0000", "2012-10-18T18:47:57.614Z"),
            ("yyyy-MM-dd HH:mm Z", "2012-10-18 18:47 +02:00", "2012-10-18T16:47:00Z"),
            ("dd/MMM/yyyy:HH:mm:ss Z", "10/Oct/2000:13:55:36 -0700", "2000-10-10T20:55:36Z"),
            ("dd/MMM/yyyy:HH:mm:ss Z", "1/october/2000:3:5:6 Z", "2000-10-01T03:05:06Z"),
            ("yyyyMMddHHmmssZ", "20240229235959Z", "2024-02-29T23:59:59Z"),
            ("EEE, d MMM yyyy hh:mm a ZZ", "Tue, 5 MAR 2024 12:30 PM +01:00", "2024-03-05T11:30:00Z"),
            ("EEE, d MMM yyyy h:mm a ZZ", "Tuesday, 5 march 2024 12:30 am Z", "2024-03-05T00:30:00Z"),
            // The day of the name in that week.
            ("EEE, d MMM yyyy Z", "Wed, 5 Mar 2024 Z", "2024-03-06T00:00:00Z"),
            ("MMM d HH:mm:ssZ", "Feb 29 01:02:03Z", "2000-02-29T01:02:03Z"),
            ("HH:mmZ", "01:02Z", "1970-01-01T01:02:00Z"),
            ("yyyy-DDDZ", "2024-060Z", "2024-02-29T00:00:00Z"),
            ("kk:mm yyyyZ", "24:05 2024Z", "2024-01-01T00:05:00Z"),
            ("yy-MMZ", "24-03Z", "2024-03-01T00:00:00Z"),
            ("yy-MMZ", "2024-03Z", "2024-03-01T00:00:00Z"),
            ("s.SSSSSSZ", "5.123456Z", "1970-01-01T00:00:05.123Z"),
            ("s.SSSZ", "5.1Z", "1970-01-01T00:00:05.100Z"),
            ("''yyyy 'o''clock' Z", "'2024 O'Clock Z", "2024-01-01T00:00:00Z"),
        ] {
            assert_eq!(DatePattern::parse(pattern).unwrap().millis(text), Ok(utc(expected)), "{pattern} {text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_the_machines() {
        let expected = Local.with_ymd_and_hms(2012, 10, 18, 18, 47, 0).earliest().unwrap().timestamp_millis();
        assert_eq!(DatePattern::parse("yyyy-MM-dd HH:mm").unwrap().millis("2012-10-18 18:47"), Ok(expected));
    }

    #[test]
    fn what_is_no_time_of_the_pattern_is_an_error() {
        for (pattern, text) in [
            ("yyyy-MM-dd", "2012-13-01"),
            ("yyyy-MM-dd", "2023-02-29"),
            ("yyyy-MM-dd", "2023-02-28 "),
            ("yyyy-MM-dd", "2023-02"),
            ("yyyyMMdd", "2023228"),
            ("HH", "24"),
            ("MMM", "jAN"),
            ("Z", "+1"),
            ("s.SSSZ", "5.Z"),
            ("EEEZ", "WedZ"),
            ("", ""),
        ] {
            assert!(DatePattern::parse(pattern).is_err() || DatePattern::parse(pattern).unwrap().millis(text).is_err(), "{pattern} {text}");
        }
        for (pattern, told) in
            [("xxxx", "`xxxx` in a pattern"), ("yyyy z", "`z`"), ("yyyyTHH", "quote it: 'T'"), ("ZZZ", "`ZZZ`"), ("", "empty")]
        {
            let error = DatePattern::parse(pattern).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(pattern in "[yMdDHhKkmsSEaZ:'é -]{0,12}", text in "[0-9A-Za-z:'é +-]{0,16}") {
            if let Ok(pattern) = DatePattern::parse(&pattern) {
                let _any = pattern.millis(&text);
            }
        }
    }
}
