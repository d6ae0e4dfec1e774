//! Timestamps and dates as text: SQL (`2026-11-22 13:00:00.123`), ISO-8601 (`2026-11-22T13:00:00.123Z`) and nginx's
//! `$time_local` (`22/Nov/2026:13:00:00 +0100`). Without a zone the time is UTC.

/// An instant: seconds since 1970 in UTC, and nanoseconds within the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instant {
    pub seconds: i64,
    pub nanos: u32,
}

const MONTHS: [&[u8; 3]; 12] = [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// Reads any of the three forms.
pub(crate) fn parse(text: &[u8]) -> Option<Instant> {
    match text.get(2) {
        Some(b'/') => parse_clf(text),
        _ => parse_sql(text),
    }
}

/// `2026-11-22`, with optional time `[T ]13:00[:00[.123456789]]` and zone `Z`, `+01:00`, `+0100`.
fn parse_sql(text: &[u8]) -> Option<Instant> {
    let days = days(number(text.get(..4)?)?, dash(text, 4)?, dash(text, 7)?)?;
    let Some((separator, rest)) = text.get(10..)?.split_first() else {
        return Some(Instant { seconds: days * 86_400, nanos: 0 });
    };
    if !matches!(separator, b' ' | b'T') {
        return None;
    }
    let (hour, minute) = (number(rest.get(..2)?)?, number(rest.get(3..5)?)?);
    if rest[2] != b':' {
        return None;
    }
    let mut rest = &rest[5..];
    let mut second = 0;
    let mut nanos = 0;
    if let [b':', after @ ..] = rest {
        second = number(after.get(..2)?)?;
        rest = &after[2..];
        if let [b'.', after @ ..] = rest {
            let digits = after.iter().take_while(|b| b.is_ascii_digit()).count();
            if digits == 0 || digits > 9 {
                return None;
            }
            nanos = (number(&after[..digits])? * 10_i64.pow(9 - digits as u32)) as u32;
            rest = &after[digits..];
        }
    }
    let offset = zone(rest)?;
    Some(Instant { seconds: days * 86_400 + clock(hour, minute, second)? - offset, nanos })
}

/// `22/Nov/2026:13:00:00 +0100`.
fn parse_clf(text: &[u8]) -> Option<Instant> {
    let month = MONTHS.iter().position(|m| Some(m.as_slice()) == text.get(3..6))? as i64 + 1;
    let days = days(number(text.get(7..11)?)?, month, number(&text[..2])?)?;
    let separators = (*text.get(6)?, *text.get(11)?, *text.get(14)?, *text.get(17)?);
    if separators != (b'/', b':', b':', b':') {
        return None;
    }
    let time = clock(number(text.get(12..14)?)?, number(text.get(15..17)?)?, number(text.get(18..20)?)?)?;
    let rest = &text[20..];
    let offset = zone(rest.strip_prefix(b" ").unwrap_or(rest))?;
    Some(Instant { seconds: days * 86_400 + time - offset, nanos: 0 })
}

/// Days since 1970 of `2026-11-22`.
pub(crate) fn parse_date(text: &[u8]) -> Option<i32> {
    if text.len() != 10 {
        return None;
    }
    i32::try_from(days(number(&text[..4])?, dash(text, 4)?, dash(text, 7)?)?).ok()
}

/// Epoch seconds with a fraction, as nginx writes `$msec`: `1795352400.123`.
pub(crate) fn parse_epoch_seconds(text: &[u8]) -> Option<Instant> {
    let dot = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let seconds = number(&text[..dot])?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    let nanos = match fraction.len() {
        0 => 0,
        digits @ 1..=9 => (number(fraction)? * 10_i64.pow(9 - digits as u32)) as u32,
        _ => return None,
    };
    Some(Instant { seconds, nanos })
}

fn dash(text: &[u8], at: usize) -> Option<i64> {
    if text.get(at) != Some(&b'-') {
        return None;
    }
    number(text.get(at + 1..at + 3)?)
}

fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, b| b.is_ascii_digit().then(|| value * 10 + i64::from(b - b'0')))
}

fn clock(hour: i64, minute: i64, second: i64) -> Option<i64> {
    // 60 is a leap second; it counts as the first of the next minute.
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3600 + minute * 60 + second)
}

/// Seconds east of UTC.
fn zone(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        [] | [b'Z'] | [b'z'] => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest.len() {
        2 => (number(rest)?, 0),
        4 => (number(&rest[..2])?, number(&rest[2..])?),
        5 if rest[2] == b':' => (number(&rest[..2])?, number(&rest[3..])?),
        _ => return None,
    };
    (hours <= 18 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Days since 1970-01-01 of a proleptic Gregorian date.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=length).contains(&day) {
        return None;
    }
    // Years begin in March here, so that the leap day is the last of the year.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_form_are_read() {
        for (text, seconds, nanos) in [
            ("1970-01-01 00:00:00", 0, 0),
            ("2026-11-22", 1_795_305_600, 0),
            ("2026-11-22 13:00:00.123", 1_795_352_400, 123_000_000),
            ("2026-11-22T13:00:00Z", 1_795_352_400, 0),
            ("2026-11-22T14:00:00.5+01:00", 1_795_352_400, 500_000_000),
            ("2026-11-22T13:00", 1_795_352_400, 0),
            ("22/Nov/2026:14:00:00 +0100", 1_795_352_400, 0),
            ("29/Feb/2024:00:00:00 +0000", 1_709_164_800, 0),
            ("1969-12-31 23:59:59", -1, 0),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(Instant { seconds, nanos }), "{text}");
        }
        assert_eq!(parse_epoch_seconds(b"1795352400.123"), Some(Instant { seconds: 1_795_352_400, nanos: 123_000_000 }));
        assert_eq!(parse_date(b"1970-01-02"), Some(1));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2026-11-22 25:00:00",
            "2026-11-22 13:00:00.",
            "22/Foo/2026:14:00:00 +0100",
            "2026-11-22 13:00:00 tomorrow",
            "2026-11-22x13:00:00",
            "22/Nov/2026:14:00",
            "2026-11-22 13:00:00.1234567890",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
