//! Flume's escapes in paths and topics: `%{header}`, `%[localhost]`, and parts of the time (`%Y-%m-%d`).
//!
//! A pattern is read once; a slip in it is told then. The time is the event's header `timestamp` (milliseconds), or the
//! present, and may be rounded down, so that all events of ten minutes go to one place.

use std::{borrow::Cow, fmt::Write as _, net::IpAddr, sync::OnceLock};

use chrono::{DateTime, Datelike as _, FixedOffset, Local, NaiveDateTime, Offset as _, TimeZone, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::event::Event;

/// A pattern with its time rules.
pub struct Escapes {
    parts: Vec<Part>,
    time: TimeRule,
}

/// Where an event's time comes from, and what is done to it.
#[derive(Clone, Debug, Default)]
pub struct TimeRule {
    pub zone: Zone,
    pub round: Option<Round>,
    pub from: TimeFrom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeFrom {
    /// Header `timestamp`; an event without it cannot be placed.
    #[default]
    Header,
    /// Header `timestamp`; the present for events without it.
    HeaderOrNow,
    Now,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    #[default]
    Local,
    Named(Tz),
    Fixed(FixedOffset),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub value: u32,
    pub unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Second,
    Minute,
    Hour,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Header(String),
    Time(char),
}

/// What may stand after `%` for a part of the time.
const LETTERS: &str = "aAbBcdDeHIjklmMnpsStyYz";

/// What may stand in a path or topic, for the reference.
pub const REFERENCE: &[(&str, &str)] = &[
    ("%{name}", "the event's header `name`; nothing where it has none"),
    ("%[localhost] %[IP] %[FQDN]", "this machine's name, address and full name"),
    ("%Y %y %m %n %d %e %j", "year, its last two digits, month, month without zero, day of the month, day without zero, day of the year"),
    ("%H %k %I %l %p %M %S", "hour, hour without zero, hour of twelve, the same without zero, AM or PM, minute, second"),
    ("%a %A %b %B %c %D %z", "short and long name of the day, of the month, date and time, `03/31/26`, `+0200`"),
    ("%s %t", "seconds and milliseconds since 1970"),
    ("%%", "a percent sign"),
];

impl Escapes {
    pub fn parse(pattern: &str, time: TimeRule) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once('%') {
            text.push_str(before);
            let bracketed = |open: char, close: char, extra: &str| {
                let (word, tail) = after.strip_prefix(open)?.split_once(close)?;
                let plain = |char: char| char.is_ascii_alphanumeric() || char == '_' || extra.contains(char);
                (!word.is_empty() && word.chars().all(plain)).then_some((word, tail))
            };
            if let Some((name, tail)) = bracketed('{', '}', ".-") {
                flush(&mut text, &mut parts);
                parts.push(Part::Header(name.to_owned()));
                rest = tail;
            } else if let Some((word, tail)) = bracketed('[', ']', "") {
                text.push_str(this_host(word)?);
                rest = tail;
            } else {
                let mut chars = after.chars();
                match chars.next() {
                    Some('%') => text.push('%'),
                    Some(letter) if LETTERS.contains(letter) => {
                        flush(&mut text, &mut parts);
                        parts.push(Part::Time(letter));
                    }
                    Some(letter) if letter.is_ascii_alphanumeric() || letter == '_' => {
                        return Err(format!("`%{letter}` stands for nothing; `%%` is a percent sign"));
                    }
                    // As in Flume, a percent sign before anything else is itself.
                    _ => {
                        text.push('%');
                        rest = after;
                        continue;
                    }
                }
                rest = chars.as_str();
            }
        }
        text.push_str(rest);
        flush(&mut text, &mut parts);
        Ok(Self { parts, time })
    }

    /// A text in which nothing stands for anything else.
    pub fn plain(text: &str) -> Self {
        Self { parts: vec![Part::Text(text.to_owned())], time: TimeRule::default() }
    }

    /// Does the text hang on the event or the time?
    pub fn vary(&self) -> bool {
        self.parts.iter().any(|part| !matches!(part, Part::Text(_)))
    }

    /// Is there no text for an event without the header `timestamp`?
    pub fn needs_timestamp(&self) -> bool {
        self.time.from == TimeFrom::Header && self.parts.iter().any(|part| matches!(part, Part::Time(_)))
    }

    /// The text for one event; an error is the reason why the event has none. `now` is in milliseconds since 1970.
    pub fn expand(&self, event: &Event, now: i64) -> Result<Cow<'_, str>, String> {
        match self.parts.as_slice() {
            [] => return Ok(Cow::Borrowed("")),
            [Part::Text(text)] => return Ok(Cow::Borrowed(text)),
            _ => {}
        }
        let mut result = String::new();
        let mut time: Option<(i64, DateTime<FixedOffset>)> = None;
        for part in &self.parts {
            match part {
                Part::Text(text) => result.push_str(text),
                Part::Header(name) => result.push_str(event.header(name).unwrap_or_default()),
                Part::Time(letter) => {
                    let (raw, time) = match time {
                        Some(known) => known,
                        None => *time.insert(self.time.of(event, now)?),
                    };
                    write_time(&mut result, *letter, raw, &time);
                }
            }
        }
        Ok(Cow::Owned(result))
    }
}

fn flush(text: &mut String, parts: &mut Vec<Part>) {
    if !text.is_empty() {
        parts.push(Part::Text(std::mem::take(text)));
    }
}

impl TimeRule {
    /// The event's milliseconds as they are, and its time rounded down in the rule's zone.
    fn of(&self, event: &Event, now: i64) -> Result<(i64, DateTime<FixedOffset>), String> {
        let header = match self.from {
            TimeFrom::Now => None,
            TimeFrom::Header | TimeFrom::HeaderOrNow => event.header("timestamp"),
        };
        let raw = match header.map(|text| (text, text.trim().parse::<i64>())) {
            Some((_, Ok(raw))) => raw,
            Some((text, Err(_))) if self.from == TimeFrom::Header => {
                return Err(format!("header timestamp = `{text}` is not a time in milliseconds"));
            }
            None if self.from == TimeFrom::Header => {
                return Err("the path holds parts of the time and the event has no header `timestamp`; give it one with the timestamp interceptor, or set hdfs.useLocalTimeStamp = true".into());
            }
            Some(_) | None => now,
        };
        let utc = DateTime::<Utc>::from_timestamp_millis(raw).ok_or_else(|| format!("header timestamp = {raw} is out of range"))?;
        let local = self.zone.at(utc.naive_utc());
        Ok((raw, self.round.map_or(local, |round| round.down(self.zone, local))))
    }
}

impl Zone {
    /// A zone by its IANA name, or as `GMT+8`, `UTC-03:30`.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.trim();
        let offset = ["GMT", "UTC"].iter().find_map(|prefix| name.strip_prefix(prefix)).filter(|rest| !rest.is_empty());
        if let Some(rest) = offset {
            let (sign, digits) = rest.strip_prefix('+').map(|rest| (1, rest)).or_else(|| rest.strip_prefix('-').map(|rest| (-1, rest)))?;
            let (hours, minutes) = match digits.split_once(':') {
                Some(both) => both,
                None if digits.len() > 2 => digits.split_at(digits.len() - 2),
                None => (digits, "0"),
            };
            let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
            ((0..24).contains(&hours) && (0..60).contains(&minutes)).then_some(())?;
            return FixedOffset::east_opt(sign * (hours * 3600 + minutes * 60)).map(Zone::Fixed);
        }
        name.parse().ok().map(Zone::Named)
    }

    fn at(self, utc: NaiveDateTime) -> DateTime<FixedOffset> {
        match self {
            Zone::Local => Local.from_utc_datetime(&utc).fixed_offset(),
            Zone::Named(zone) => zone.from_utc_datetime(&utc).fixed_offset(),
            Zone::Fixed(zone) => zone.from_utc_datetime(&utc),
        }
    }

    /// The instant that clocks of the zone show as `local`; where they show it twice, the one with `offset`.
    fn reading(self, local: NaiveDateTime, offset: FixedOffset) -> Option<DateTime<FixedOffset>> {
        let found = match self {
            Zone::Local => Local.from_local_datetime(&local).map(|time| time.fixed_offset()),
            Zone::Named(zone) => zone.from_local_datetime(&local).map(|time| time.fixed_offset()),
            Zone::Fixed(zone) => zone.from_local_datetime(&local),
        };
        let (first, second) = (found.earliest()?, found.latest()?);
        Some(if second.offset().fix() == offset { second } else { first })
    }
}

impl Round {
    pub fn parse(value: u32, unit: &str) -> Result<Self, String> {
        let (unit, max) = match unit.trim().to_ascii_lowercase().as_str() {
            "second" => (Unit::Second, 60),
            "minute" => (Unit::Minute, 60),
            "hour" => (Unit::Hour, 24),
            other => return Err(format!("`{other}` is none of second, minute, hour")),
        };
        if value == 0 || value > max {
            return Err(format!("{value} is not between 1 and {max}"));
        }
        Ok(Self { value, unit })
    }

    fn down(self, zone: Zone, time: DateTime<FixedOffset>) -> DateTime<FixedOffset> {
        let below = |number: u32| number - number % self.value;
        let naive = time.naive_local();
        let (hour, minute, second) = match self.unit {
            Unit::Second => (naive.hour(), naive.minute(), below(naive.second())),
            Unit::Minute => (naive.hour(), below(naive.minute()), 0),
            Unit::Hour => (below(naive.hour()), 0, 0),
        };
        let Some(rounded) = naive.date().and_hms_opt(hour, minute, second) else { return time };
        // No clock shows the rounded time where an hour is left out: then by arithmetic.
        zone.reading(rounded, *time.offset()).unwrap_or_else(|| time - (naive - rounded))
    }
}

fn write_time(out: &mut String, letter: char, raw: i64, time: &DateTime<FixedOffset>) {
    let format = match letter {
        'a' => "%a",
        'A' => "%A",
        'b' => "%b",
        'B' => "%B",
        'c' => "%a %b %-d %H:%M:%S %Y",
        'D' => "%m/%d/%y",
        'p' => "%p",
        'z' => "%z",
        _ => "",
    };
    let hour_12 = time.hour12().1;
    // Numbers by hand: paths have many, and the formatter reads its text every time.
    let _infallible = match letter {
        'Y' => write!(out, "{:04}", time.year()),
        'y' => write!(out, "{:02}", time.year().rem_euclid(100)),
        'm' => write!(out, "{:02}", time.month()),
        'n' => write!(out, "{}", time.month()),
        'd' => write!(out, "{:02}", time.day()),
        'e' => write!(out, "{}", time.day()),
        'j' => write!(out, "{:03}", time.ordinal()),
        'H' => write!(out, "{:02}", time.hour()),
        'k' => write!(out, "{}", time.hour()),
        'I' => write!(out, "{hour_12:02}"),
        'l' => write!(out, "{hour_12}"),
        'M' => write!(out, "{:02}", time.minute()),
        'S' => write!(out, "{:02}", time.second()),
        's' => write!(out, "{}", time.timestamp()),
        't' => write!(out, "{raw}"),
        _ => write!(out, "{}", time.format(format)),
    };
}

/// `%[localhost]`, `%[IP]`, `%[FQDN]`.
fn this_host(word: &str) -> Result<&'static str, String> {
    let host = host();
    match word.to_ascii_lowercase().as_str() {
        "localhost" => Ok(&host.name),
        "ip" => Ok(&host.address),
        "fqdn" => Ok(&host.full_name),
        _ => Err(format!("`%[{word}]` stands for nothing; there are %[localhost], %[IP] and %[FQDN]")),
    }
}

struct Host {
    name: String,
    address: String,
    full_name: String,
}

/// Looked up once, as Flume does it.
fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let resolved = std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), 0));
        let address: Option<IpAddr> = resolved.ok().and_then(|mut found| found.next()).map(|address| address.ip());
        let full_name = address.and_then(|address| dns_lookup::lookup_addr(&address).ok()).unwrap_or_else(|| name.clone());
        Host { address: address.map_or_else(|| name.clone(), |address| address.to_string()), full_name, name }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_letter_is_in_the_reference() {
        for letter in LETTERS.chars() {
            let written = format!("%{letter}");
            assert!(REFERENCE.iter().any(|(escapes, _)| escapes.split(' ').any(|escape| escape == written)), "{written}");
        }
    }

    /// 2026-03-04 17:06:07.089 UTC, a Wednesday.
    const AT: i64 = 1_772_643_967_089;

    fn rule(zone: &str, round: Option<(u32, &str)>) -> TimeRule {
        TimeRule {
            zone: Zone::parse(zone).unwrap(),
            round: round.map(|(value, unit)| Round::parse(value, unit).unwrap()),
            from: TimeFrom::Header,
        }
    }

    fn expand(pattern: &str, time: TimeRule, event: &Event) -> Result<String, String> {
        Escapes::parse(pattern, time)?.expand(event, AT).map(Cow::into_owned)
    }

    #[test]
    fn every_escape_of_flume() {
        let event = Event::with_headers("", [("host", "h1"), ("a.b-c", "x"), ("timestamp", "1772643967089")]);
        for (pattern, expected) in [
            ("logs-%{host}", "logs-h1"),
            ("%{host}%{none}%{a.b-c}", "h1x"),
            ("%a %A %b %B", "Wed Wednesday Mar March"),
            ("%c", "Wed Mar 4 17:06:07 2026"),
            ("%d %e %D", "04 4 03/04/26"),
            ("%H %I %k %l %p", "17 05 17 5 PM"),
            ("%j %m %n %M %S", "063 03 3 06 07"),
            ("%s %t", "1772643967 1772643967089"),
            ("%y %Y %z", "26 2026 +0000"),
            ("/l/%Y-%m-%d/%H%M%S", "/l/2026-03-04/170607"),
            ("100%%", "100%"),
            ("a%", "a%"),
            ("a%-b%/", "a%-b%/"),
            ("%{open", "%{open"),
            ("%{a b}", "%{a b}"),
            ("%[a-b]", "%[a-b]"),
            ("plain", "plain"),
            ("", ""),
        ] {
            assert_eq!(expand(pattern, rule("UTC", None), &event).as_deref(), Ok(expected), "{pattern}");
        }
        for word in ["%[localhost]", "%[IP]", "%[fqdn]"] {
            assert!(!expand(word, rule("UTC", None), &event).unwrap().is_empty(), "{word}");
        }
    }

    #[test]
    fn slips_are_told_once_and_not_by_every_event() {
        for (pattern, expected) in [
            ("/l/%Q", "`%Q` stands for nothing; `%%` is a percent sign"),
            ("%[ip4]", "`%[ip4]` stands for nothing; there are %[localhost], %[IP] and %[FQDN]"),
        ] {
            assert_eq!(Escapes::parse(pattern, TimeRule::default()).err().as_deref(), Some(expected));
        }
    }

    #[test]
    fn times_are_rounded_down_in_their_zone() {
        let event = Event::with_headers("", [("timestamp", "1772643967089")]);
        for (zone, round, expected) in [
            ("UTC", None, "2026-03-04 17:06:07"),
            ("UTC", Some((5, "second")), "2026-03-04 17:06:05"),
            ("UTC", Some((10, "minute")), "2026-03-04 17:00:00"),
            ("UTC", Some((60, "Minute")), "2026-03-04 17:00:00"),
            ("UTC", Some((6, "hour")), "2026-03-04 12:00:00"),
            ("UTC", Some((24, "hour")), "2026-03-04 00:00:00"),
            ("Asia/Shanghai", Some((1, "hour")), "2026-03-05 01:00:00"),
            // Half an hour off: whole hours are the zone's own.
            ("Asia/Kolkata", Some((1, "hour")), "2026-03-04 22:00:00"),
            ("GMT+8", None, "2026-03-05 01:06:07"),
            ("UTC-03:30", None, "2026-03-04 13:36:07"),
            ("GMT-0330", None, "2026-03-04 13:36:07"),
        ] {
            assert_eq!(expand("%Y-%m-%d %H:%M:%S", rule(zone, round), &event).as_deref(), Ok(expected), "{zone} {round:?}");
        }
        // `%t` is the header as it is; `%s` is rounded.
        assert_eq!(expand("%t %s", rule("UTC", Some((1, "hour"))), &event).as_deref(), Ok("1772643967089 1772643600"));
        // The hour that Berlin's clocks show twice: each stays itself.
        for (ms, expected) in [("1792888200000", "02:00 +0200"), ("1792891800000", "02:00 +0100")] {
            let event = Event::with_headers("", [("timestamp", ms)]);
            assert_eq!(expand("%H:%M %z", rule("Europe/Berlin", Some((1, "hour"))), &event).as_deref(), Ok(expected), "{ms}");
        }
        assert_eq!(Round::parse(61, "minute"), Err("61 is not between 1 and 60".into()));
        assert_eq!(Round::parse(25, "hour"), Err("25 is not between 1 and 24".into()));
        assert_eq!(Round::parse(1, "day"), Err("`day` is none of second, minute, hour".into()));
        assert!(["", "Mars/Base", "GMT+", "GMT+25", "GMT8"].iter().all(|name| Zone::parse(name).is_none()));
    }

    #[test]
    fn an_event_without_a_time_is_told_apart() {
        let bare = Event::new("");
        assert!(expand("%Y", rule("UTC", None), &bare).unwrap_err().contains("no header `timestamp`"));
        assert_eq!(expand("%{x}-", rule("UTC", None), &bare).as_deref(), Ok("-"));
        let slip = Event::with_headers("", [("timestamp", "soon")]);
        assert_eq!(expand("%Y", rule("UTC", None), &slip), Err("header timestamp = `soon` is not a time in milliseconds".into()));
        for from in [TimeFrom::HeaderOrNow, TimeFrom::Now] {
            let time = TimeRule { from, ..rule("UTC", None) };
            assert_eq!(expand("%Y%m%d %t", time.clone(), &bare).as_deref(), Ok("20260304 1772643967089"));
            assert_eq!(expand("%Y", time, &slip).as_deref(), Ok("2026"));
        }
        let other = Event::with_headers("", [("timestamp", "0")]);
        let now = TimeRule { from: TimeFrom::Now, ..rule("UTC", None) };
        assert_eq!(expand("%Y", now, &other).as_deref(), Ok("2026"));
    }

    #[test]
    fn a_pattern_knows_whether_it_varies() {
        for (pattern, vary) in [("a", false), ("", false), ("%%[x", false), ("%{a}", true), ("%Y", true)] {
            assert_eq!(Escapes::parse(pattern, TimeRule::default()).unwrap().vary(), vary, "{pattern}");
        }
        assert_eq!(Escapes::plain("%Y").expand(&Event::new(""), AT).as_deref(), Ok("%Y"));
    }
}
