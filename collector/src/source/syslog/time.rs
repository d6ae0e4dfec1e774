//! Times in syslog messages, which say neither the year (RFC 3164) nor always the zone.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveDateTime, TimeDelta, TimeZone, Utc};

/// A date and a time of day as they were written; the year may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub year: Option<i32>,
    /// 1 is January.
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl Written {
    /// February 30th is March 1st or 2nd, 25 o'clock one o'clock of the next day.
    fn lenient(self, year: i32) -> Option<NaiveDateTime> {
        let months = Months::new(self.month.checked_sub(1)?);
        let date = NaiveDate::from_ymd_opt(year, 1, 1)?.checked_add_months(months)?.and_hms_opt(0, 0, 0)?;
        let date = date.checked_add_days(Days::new(self.day.into()))?.checked_sub_days(Days::new(1))?;
        let seconds = (i64::from(self.hour) * 60 + i64::from(self.minute)) * 60 + i64::from(self.second);
        date.checked_add_signed(TimeDelta::seconds(seconds))
    }

    /// Is it a day and a time that there is? Without a year, in a leap year.
    pub fn is_real(self) -> bool {
        let year = self.year.unwrap_or(2000);
        NaiveDate::from_ymd_opt(year, self.month, self.day).is_some() && self.hour < 24 && self.minute < 60 && self.second < 60
    }

    /// Milliseconds since 1970, read in `zone`. A missing year is the one that brings the time between eleven months ago
    /// and a month ahead.
    pub fn millis<Z: TimeZone>(self, zone: &Z, now: DateTime<Utc>) -> Option<i64> {
        if let Some(year) = self.year {
            return instant(zone, self.lenient(year)?);
        }
        let (time, now) = (self.lenient(now.year())?, now.timestamp_millis());
        let (month, eleven, year) = (Months::new(1), Months::new(11), Months::new(12));
        let plain = instant(zone, time)?;
        if plain > now && instant(zone, time.checked_sub_months(month)?)? > now {
            return instant(zone, time.checked_sub_months(year)?);
        }
        if plain < now && instant(zone, time.checked_add_months(eleven)?)? < now {
            return instant(zone, time.checked_add_months(year)?);
        }
        Some(plain)
    }
}

/// What the wall clock showed twice was the second time; what it never showed is an hour later.
fn instant<Z: TimeZone>(zone: &Z, wall: NaiveDateTime) -> Option<i64> {
    let hour = TimeDelta::hours(1);
    let found = zone.from_local_datetime(&wall).latest();
    let found = found.or_else(|| Some(zone.from_local_datetime(&wall.checked_sub_signed(hour)?).latest()? + hour))?;
    Some(found.timestamp_millis())
}

/// `Oct` and the like, in any case.
pub fn month(name: &[u8]) -> Option<u32> {
    const NAMES: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    let at = NAMES.iter().position(|known| name.eq_ignore_ascii_case(known.as_bytes()))?;
    u32::try_from(at + 1).ok()
}

/// A number of digits only.
pub fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `hh:mm:ss`.
pub fn clock(text: &[u8]) -> Option<(u32, u32, u32)> {
    match text {
        [h1, h2, b':', m1, m2, b':', s1, s2] => Some((number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?)),
        _ => None,
    }
}

/// `yyyy-MM-ddThh:mm:ss`.
pub fn date_and_time(text: &[u8]) -> Option<Written> {
    let (date, time) = text.split_at_checked(10)?;
    let [b'T', time @ ..] = time else { return None };
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = date else { return None };
    let year = i32::try_from(number(&[*y1, *y2, *y3, *y4])?).ok()?;
    let (hour, minute, second) = clock(time)?;
    Some(Written { year: Some(year), month: number(&[*m1, *m2])?, day: number(&[*d1, *d2])?, hour, minute, second })
}

/// `+hh:mm` or `-hh:mm` in minutes.
pub fn offset(text: &[u8]) -> Option<i64> {
    let [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = text else { return None };
    let minutes = i64::from(number(&[*h1, *h2])? * 60 + number(&[*m1, *m2])?);
    Some(if *sign == b'+' { minutes } else { -minutes })
}

#[cfg(test)]
mod tests {
    use chrono::FixedOffset;

    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    #[test]
    fn a_missing_year_is_the_one_nearest_to_now() {
        for (now, month, day, expected) in [
            ("2026-06-15T12:00:00Z", 6, 15, "2026-06-15T10:00:00Z"),
            ("2026-06-15T12:00:00Z", 7, 14, "2026-07-14T10:00:00Z"),
            ("2026-06-15T12:00:00Z", 7, 16, "2025-07-16T10:00:00Z"),
            ("2026-06-15T12:00:00Z", 1, 1, "2026-01-01T10:00:00Z"),
            ("2026-01-01T00:00:05Z", 12, 31, "2025-12-31T10:00:00Z"),
            ("2025-12-31T23:59:59Z", 1, 1, "2026-01-01T10:00:00Z"),
            ("2025-12-31T23:59:59Z", 1, 31, "2026-01-31T10:00:00Z"),
            ("2025-12-31T23:59:59Z", 2, 2, "2025-02-02T10:00:00Z"),
            // There is no 29th in 2026: the 1st of March.
            ("2026-03-05T00:00:00Z", 2, 29, "2026-03-01T10:00:00Z"),
            ("2026-06-15T12:00:00Z", 2, 31, "2026-03-03T10:00:00Z"),
        ] {
            let written = Written { year: None, month, day, hour: 10, minute: 0, second: 0 };
            assert_eq!(written.millis(&Utc, at(now)), Some(at(expected).timestamp_millis()), "{month}-{day} at {now}");
        }
    }

    #[test]
    fn the_zone_counts() {
        let written = date_and_time(b"2003-08-24T05:14:15").unwrap();
        let zone = FixedOffset::west_opt(7 * 3600).unwrap();
        assert_eq!(written.millis(&zone, at("2026-01-01T00:00:00Z")), Some(at("2003-08-24T12:14:15Z").timestamp_millis()));
        assert_eq!((offset(b"-07:00"), offset(b"+05:30"), offset(b"0700"), offset(b"+0a:00")), (Some(-420), Some(330), None, None));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2003-08-24",
            "2003-08-24 05:14:15",
            "2003-08-2405:14:15",
            "2003-08-24T5:14:15",
            "2003-08-24T05:14:1x",
            "２003-08-24T05:14:15",
        ] {
            assert_eq!(date_and_time(text.as_bytes()), None, "{text}");
        }
        assert_eq!((month(b"OCT"), month(b"Okt"), month(b"")), (Some(10), None, None));
    }
}
