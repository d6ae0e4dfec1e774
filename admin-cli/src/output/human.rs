//! Numbers and texts as people read them. JSON gets them raw.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat};

/// `1,234,567`
pub(crate) fn count(number: impl Into<i128>) -> String {
    let number = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1.5 GiB`; `-` for the -1 that stands for "cannot be asked".
pub(crate) fn bytes(number: i64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 0 {
        return "-".to_owned();
    }
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// The two largest units that matter: `3d 4h`, `12m 5s`, `1.5s`, `340ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, a: &str, small: u64, b: &str| if small == 0 { format!("{large}{a}") } else { format!("{large}{a} {small}{b}") };
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..=59 => {
            let tenths = duration.subsec_millis() / 100;
            if tenths == 0 { format!("{seconds}s") } else { format!("{seconds}.{tenths}s") }
        }
        60..=3_599 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..=86_399 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

pub(crate) fn millis(millis: u64) -> String {
    duration(Duration::from_millis(millis))
}

/// A Kafka setting with its unit: `604800000 (7d)`.
pub(crate) fn setting(name: &str, value: &str) -> String {
    let readable = if name.ends_with(".ms") {
        value.parse().ok().filter(|ms| *ms >= 1_000).map(millis)
    } else if name.ends_with(".bytes") {
        value.parse().ok().filter(|number| *number >= 1_024).map(bytes)
    } else {
        None
    };
    readable.map_or_else(|| value.to_owned(), |readable| format!("{value} ({readable})"))
}

/// UTC, to the second; `-` where there is no time.
pub(crate) fn time(epoch_ms: Option<i64>) -> String {
    epoch_ms
        .filter(|ms| *ms != 0)
        .and_then(DateTime::from_timestamp_millis)
        .map_or_else(|| "-".to_owned(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// One line without control characters: what a service says must not move the cursor.
pub(crate) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split(['\n', '\r', '\t']) {
        if !line.is_empty() && !word.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }));
    }
    line
}

/// Several lines, each as [`line`] has it, but with its indentation.
pub(crate) fn lines(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.lines().map(|line| line.replace('\t', "    ").chars().map(clean).collect::<String>()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_thousands() {
        for (number, text) in
            [(0_i64, "0"), (999, "999"), (1_000, "1,000"), (-1_234_567, "-1,234,567"), (i64::MAX, "9,223,372,036,854,775,807")]
        {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn bytes_keep_one_decimal_and_the_fitting_unit() {
        for (number, text) in [
            (-1, "-"),
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (64 << 20, "64.0 MiB"),
            (i64::MAX, "8192.0 PiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_show_two_units() {
        for (ms, text) in [
            (0, "0ms"),
            (340, "340ms"),
            (1_000, "1s"),
            (1_540, "1.5s"),
            (60_000, "1m"),
            (725_000, "12m 5s"),
            (7_500_000, "2h 5m"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(millis(ms), text);
        }
    }

    #[test]
    fn a_setting_shows_its_number_and_what_it_is() {
        for (name, value, text) in [
            ("retention.ms", "604800000", "604800000 (7d)"),
            ("segment.bytes", "1073741824", "1073741824 (1.0 GiB)"),
            ("retention.ms", "-1", "-1"),
            ("retention.bytes", "9223372036854775808", "9223372036854775808"),
            ("cleanup.policy", "compact", "compact"),
        ] {
            assert_eq!(setting(name, value), text);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(Some(1_763_817_600_000)), "2025-11-22T13:20:00Z");
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(0)), "-");
    }

    #[test]
    fn a_line_stays_a_line() {
        assert_eq!(line("one\ntwo\r\n\tthree"), "one two three");
        assert_eq!(line("red\u{1b}[31m"), "red\u{fffd}[31m");
        assert_eq!(lines("a\n\tb"), "a\n    b");
    }
}
