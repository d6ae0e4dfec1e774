//! Numbers, times and durations for people.

use chrono::DateTime;

/// `2026/11/22 14:05:10` in UTC; with milliseconds where there are any.
pub(super) fn time(ms: i64) -> String {
    let format = if ms % 1000 == 0 { "%Y/%m/%d %H:%M:%S" } else { "%Y/%m/%d %H:%M:%S%.3f" };
    DateTime::from_timestamp_millis(ms).map_or_else(|| ms.to_string(), |time| time.format(format).to_string())
}

/// `14:05:10`.
pub(super) fn clock(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).map_or_else(|| ms.to_string(), |time| time.format("%H:%M:%S").to_string())
}

/// `7 ms`, `1.5 s`, `3.2 min`, `5.0 h`.
pub(super) fn duration(ms: u64) -> String {
    let n = ms as f64;
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", n / 1e3),
        60_000..3_600_000 => format!("{:.1} min", n / 6e4),
        _ => format!("{:.1} h", n / 3.6e6),
    }
}

pub(super) fn maybe_duration(ms: Option<u64>) -> String {
    ms.map_or_else(|| "–".into(), duration)
}

/// `3 h 5 min 7 s`, in whole seconds.
pub(super) fn span(ms: u64) -> String {
    let s = ms / 1000;
    let parts = [(s / 86_400, "d"), (s / 3600 % 24, "h"), (s / 60 % 60, "min"), (s % 60, "s")];
    let shown: Vec<String> = parts.iter().skip_while(|(n, unit)| *n == 0 && *unit != "s").map(|(n, unit)| format!("{n} {unit}")).collect();
    shown.join(" ")
}

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

/// `950`, `1.2k`, `3.4M`: for axes.
pub(super) fn short(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.1}G", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.0}k", n / 1e3),
        n if n >= 1e3 => format!("{:.1}k", n / 1e3),
        n if n >= 10.0 || n == n.trunc() => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!(time(1_795_356_310_000), "2026/11/22 14:05:10");
        assert_eq!(time(1_795_356_310_250), "2026/11/22 14:05:10.250");
        for (ms, text) in [(0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (90_000, "1.5 min"), (18_000_000, "5.0 h")] {
            assert_eq!(duration(ms), text);
        }
        assert_eq!(span(0), "0 s");
        assert_eq!(span(11_107_000), "3 h 5 min 7 s");
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
        for (n, text) in [(0.0, "0"), (0.5, "0.5"), (950.0, "950"), (1200.0, "1.2k"), (12_345.0, "12k"), (3.4e6, "3.4M")] {
            assert_eq!(short(n), text);
        }
    }
}
