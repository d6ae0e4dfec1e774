//! Numbers and times for people.

use std::time::{Duration, UNIX_EPOCH};

/// `1,234,567`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `950`, `1.2k`, `3.4M`: for axes and rates.
pub(super) fn short(n: f64) -> String {
    match n.abs() {
        size if size >= 1e9 => format!("{:.1}G", n / 1e9),
        size if size >= 1e6 => format!("{:.1}M", n / 1e6),
        size if size >= 1e4 => format!("{:.0}k", n / 1e3),
        size if size >= 1e3 => format!("{:.1}k", n / 1e3),
        size if size >= 10.0 || n == n.trunc() => format!("{n:.0}"),
        _ => format!("{n:.1}"),
    }
}

/// `0 s`, `1.5 s`, `3.2 min`, `5.0 h`, `2.5 d`; `–` where it is not known.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(0.0) => "0 s".to_owned(),
        Some(s) if s < 60.0 => format!("{s:.1} s"),
        Some(s) if s < 3_600.0 => format!("{:.1} min", s / 60.0),
        Some(s) if s < 86_400.0 => format!("{:.1} h", s / 3_600.0),
        Some(s) => format!("{:.1} d", s / 86_400.0),
    }
}

/// `+12/s`, `−3.5/s`, `0/s`.
pub(super) fn trend(trend: Option<f64>) -> String {
    match trend {
        None => "–".to_owned(),
        Some(trend) if trend > 0.0 => format!("+{}/s", short(trend)),
        Some(trend) if trend < 0.0 => format!("−{}/s", short(-trend)),
        Some(_) => "0/s".to_owned(),
    }
}

/// `1.5 GiB`.
pub(super) fn bytes(n: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64 / 1024.0, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `14:05:10` in UTC.
pub(super) fn clock(ms: i64) -> String {
    let s = ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// `2026-11-23 14:05:10` in UTC.
pub(super) fn date(ms: i64) -> String {
    // Records say what their writers wanted.
    let at = UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0).min(YEAR_9999_MS));
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', "")
}

/// The end of what is written with four digits.
const YEAR_9999_MS: u64 = 253_402_300_799_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!((count(0), count(1_234_567)), ("0".to_owned(), "1,234,567".to_owned()));
        for (n, text) in [(0.0, "0"), (0.5, "0.5"), (950.0, "950"), (1200.0, "1.2k"), (12_345.0, "12k"), (3.4e6, "3.4M")] {
            assert_eq!(short(n), text);
        }
        for (s, text) in [(0.0, "0 s"), (1.5, "1.5 s"), (90.0, "1.5 min"), (18_000.0, "5.0 h"), (216_000.0, "2.5 d")] {
            assert_eq!(seconds(Some(s)), text);
        }
        assert_eq!(
            (trend(Some(12.0)), trend(Some(-3.5)), trend(Some(0.0)), trend(None)),
            ("+12/s".into(), "−3.5/s".into(), "0/s".into(), "–".into())
        );
        assert_eq!((bytes(7), bytes(1_610_612_736)), ("7 B".into(), "1.5 GiB".into()));
        assert_eq!(clock(1_795_356_310_000), "14:05:10");
        assert_eq!((date(1_795_442_710_000), date(i64::MAX)), ("2026-11-23 14:05:10".to_owned(), "9999-12-31 23:59:59".to_owned()));
    }
}
