//! Messages as Flume's `SyslogUtils` reads them (`syslogtcp`, `syslogudp`): two expressions, for RFC 5424 and RFC 3164.
//! What neither matches is an event too: with facility and severity, and the whole message as its body.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, FixedOffset, Local, Utc};

use super::STATUS;
use super::fields::{Keep, Written};
use super::format::Format;
use super::time::{self, Written as Time};
use crate::event::Event;

#[derive(Clone, Debug)]
pub struct Parser {
    pub keep: Keep,
    /// Tried first.
    pub format: Option<Format>,
    /// With Flume's mistakes: a zone after a fraction of a second is left out, `.5` is five milliseconds, and a body with
    /// a carriage return is not recognised.
    pub strict: bool,
}

/// A message taken apart.
struct Parts<'a> {
    version: &'a [u8],
    stamp: &'a [u8],
    has_year: bool,
    host: &'a [u8],
    body: &'a [u8],
}

impl Parser {
    /// `cut`: the message was longer than `eventSize`.
    pub fn event(&self, message: Bytes, cut: bool, now: DateTime<Utc>) -> Event {
        let mut headers = BTreeMap::new();
        let priority = priority(&message);
        let code = priority.unwrap_or_default().0;
        headers.insert("Facility".to_owned(), (code / 8).to_string());
        headers.insert("Severity".to_owned(), (code % 8).to_string());
        let mut body = None;
        match priority {
            None => drop(headers.insert(STATUS.to_owned(), "Invalid".to_owned())),
            Some((_, end)) => {
                if cut {
                    headers.insert(STATUS.to_owned(), "Incomplete".to_owned());
                }
                if let Some(found) = self.format.as_ref().and_then(|format| format.read(&message, now)) {
                    let digits = &found.priority;
                    let parts =
                        Parts { version: &found.version, stamp: &found.stamp, has_year: false, host: &found.host, body: &found.body };
                    body = self.describe(&found.body, digits, &parts, found.millis, &mut headers);
                } else if let Some(parts) = end.and_then(|end| self.parts(&message[end + 1..])) {
                    let digits = &message[1..end.unwrap_or(1)];
                    body = self.describe(&message, digits, &parts, self.millis(&parts, now), &mut headers);
                }
            }
        }
        Event { headers: Some(Arc::new(headers)), ..Event::new(body.unwrap_or(message)) }
    }

    /// Notes the parts in the headers; gives the body where it is not the whole message.
    fn describe(
        &self,
        message: &Bytes,
        priority: &[u8],
        parts: &Parts<'_>,
        millis: Option<i64>,
        headers: &mut BTreeMap<String, String>,
    ) -> Option<Bytes> {
        let mut put = |name: &str, value: &[u8]| {
            if !value.is_empty() {
                headers.insert(name.to_owned(), String::from_utf8_lossy(value).into_owned());
            }
        };
        put("priority", priority);
        put("version", parts.version);
        put("host", parts.host);
        if let Some(millis) = millis {
            put("timestamp", millis.to_string().as_bytes());
        }
        if self.keep.all {
            return None;
        }
        let written = Written { priority, version: parts.version, timestamp: parts.stamp, hostname: parts.host };
        let body = self.keep.body(message, parts.body, written);
        (!body.is_empty()).then_some(body)
    }

    fn parts<'a>(&self, rest: &'a [u8]) -> Option<Parts<'a>> {
        rfc5424(rest).or_else(|| rfc3164(rest)).filter(|parts| !self.strict || !ends_a_line(parts.body))
    }

    fn millis(&self, parts: &Parts<'_>, now: DateTime<Utc>) -> Option<i64> {
        if !parts.has_year {
            return without_year(parts.stamp)?.millis(&Local, now);
        }
        let (seconds, rest) = parts.stamp.split_at_checked(19)?;
        let written = time::date_and_time(seconds)?;
        let (fraction, zone) = match rest {
            [b'.', rest @ ..] => rest.split_at(rest.iter().take_while(|byte| byte.is_ascii_digit()).count()),
            rest => (&b""[..], rest),
        };
        let zone = if self.strict && !fraction.is_empty() { b"" } else { zone };
        let millis = match zone {
            b"" => written.millis(&Local, now)?,
            b"Z" => written.millis(&Utc, now)?,
            zone => written.millis(&FixedOffset::east_opt(i32::try_from(time::offset(zone)? * 60).ok()?)?, now)?,
        };
        let fraction = &fraction[..fraction.len().min(3)];
        let scale = if self.strict { 1 } else { 10_i64.pow(3 - u32::try_from(fraction.len()).unwrap_or(3)) };
        Some(millis + i64::from(time::number(fraction).unwrap_or_default()) * scale)
    }
}

/// The number between `<` and `>`, and where the `>` is; it may be missing at the end of a datagram.
fn priority(message: &[u8]) -> Option<(u32, Option<usize>)> {
    let [b'<', rest @ ..] = message else { return None };
    let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    let code = time::number(&rest[..digits]).filter(|_| digits <= 3)?;
    match rest.get(digits) {
        Some(b'>') => Some((code, Some(digits + 1))),
        Some(_) => None,
        None => Some((code, None)),
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// What Java's `.` does not match.
fn ends_a_line(text: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', text).is_some()
        || memchr::memchr_iter(0xc2, text).any(|at| text.get(at + 1) == Some(&0x85))
        || memchr::memchr_iter(0xe2, text).any(|at| matches!(text.get(at + 1..at + 3), Some([0x80, 0xa8 | 0xa9])))
}

/// After an optional version digit and an optional blank, tried in the order of Java's greedy expression.
fn after_version<'a, T>(rest: &'a [u8], mut then: impl FnMut(&'a [u8], &'a [u8]) -> Option<T>) -> Option<T> {
    let digit = usize::from(rest.first().is_some_and(u8::is_ascii_digit));
    for version in [digit, 0] {
        let (version, after) = rest.split_at(version);
        let blank = usize::from(after.first().is_some_and(|&byte| is_blank(byte)));
        for skipped in [blank, 0] {
            if let Some(found) = then(version, &after[skipped..]) {
                return Some(found);
            }
        }
    }
    None
}

/// `VERSION STAMP HOST BODY`, stamp and host may be `-`.
fn rfc5424(rest: &[u8]) -> Option<Parts<'_>> {
    after_version(rest, |version, rest| {
        let (stamp, rest) = match rest {
            [b'-', rest @ ..] => (&b""[..], rest),
            rest => rest.split_at(full_stamp(rest)?),
        };
        let (host, rest) = match blank(rest)? {
            [b'-', rest @ ..] => (&b""[..], rest),
            rest => host(rest)?,
        };
        Some(Parts { version, stamp, has_year: true, host, body: blank(rest)? })
    })
}

/// `MMM d hh:mm:ss HOST BODY`.
fn rfc3164(rest: &[u8]) -> Option<Parts<'_>> {
    after_version(rest, |version, rest| {
        let (stamp, rest) = rest.split_at(short_stamp(rest)?);
        let (host, rest) = host(blank(rest)?)?;
        Some(Parts { version, stamp, has_year: false, host, body: blank(rest)? })
    })
}

fn blank(text: &[u8]) -> Option<&[u8]> {
    text.split_first().filter(|(byte, _)| is_blank(**byte)).map(|(_, rest)| rest)
}

fn host(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if !is_word(*text.first()?) {
        return None;
    }
    let end = text.iter().take_while(|&&byte| is_word(byte) || b".@-".contains(&byte)).count();
    Some(text.split_at(end))
}

/// Length of `yyyy-MM-ddThh:mm:ss`, up to six digits of a fraction, and a zone.
fn full_stamp(text: &[u8]) -> Option<usize> {
    time::date_and_time(text.get(..19)?)?;
    let mut end = 19;
    if let Some([b'.', digits @ ..]) = text.get(end..) {
        let count = digits.iter().take(6).take_while(|byte| byte.is_ascii_digit()).count();
        if count > 0 {
            end += 1 + count;
        }
    }
    match text.get(end) {
        Some(b'Z') => end += 1,
        Some(b'+' | b'-') if text.get(end..end + 6).is_some_and(|zone| time::offset(zone).is_some()) => end += 6,
        _ => {}
    }
    Some(end)
}

/// Length of `MMM d hh:mm:ss`.
fn short_stamp(text: &[u8]) -> Option<usize> {
    let [first, second, third, rest @ ..] = text else { return None };
    if !(first.is_ascii_uppercase() && second.is_ascii_lowercase() && third.is_ascii_lowercase()) {
        return None;
    }
    let blanks = rest.iter().take(2).take_while(|&&byte| is_blank(byte)).count();
    let digits = rest.iter().skip(blanks).take(2).take_while(|byte| byte.is_ascii_digit()).count();
    let clock = 3 + blanks + digits + 1;
    if blanks == 0 || digits == 0 || !is_blank(*text.get(clock - 1)?) {
        return None;
    }
    time::clock(text.get(clock..clock + 8)?)?;
    Some(clock + 8)
}

/// The parts of what [`short_stamp`] has measured; none where they are no date to Java.
pub fn without_year(stamp: &[u8]) -> Option<Time> {
    let (name, rest) = stamp.split_at_checked(3)?;
    let rest = rest.strip_prefix(b"  ").or_else(|| rest.strip_prefix(b" "))?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (day, clock) = rest.split_at(digits);
    let (hour, minute, second) = time::clock(clock.strip_prefix(b" ")?)?;
    Some(Time { year: None, month: time::month(name)?, day: time::number(day)?, hour, minute, second })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::syslog::date_format::DateFormat;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-06-15T12:00:00Z").unwrap().to_utc()
    }

    fn read(text: &str, keep: &str, strict: bool) -> (String, BTreeMap<String, String>) {
        let event = Parser { keep: Keep::parse(keep), format: None, strict }.event(Bytes::copy_from_slice(text.as_bytes()), false, now());
        (String::from_utf8(event.body.to_vec()).unwrap(), event.headers.unwrap().as_ref().clone())
    }

    fn shown(headers: &BTreeMap<String, String>) -> String {
        headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    fn local(stamp: &str) -> i64 {
        without_year(stamp.as_bytes()).unwrap().millis(&Local, now()).unwrap()
    }

    #[test]
    fn messages_are_read_as_flume_reads_them() {
        let october = local("Jan 11 22:14:15");
        for (text, body, headers) in [
            (
                "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - BOM'su root' failed",
                "su - ID47 - BOM'su root' failed",
                "Facility=4 Severity=2 host=mymachine.example.com priority=34 timestamp=1065910455003 version=1",
            ),
            (
                "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
                "myproc 8710 - - %% It's time",
                "Facility=20 Severity=5 host=192.0.2.1 priority=165 timestamp=1061727255000 version=1",
            ),
            ("<13>1 - - app - - - hi", "app - - - hi", "Facility=1 Severity=5 priority=13 version=1"),
            ("<13>2003-10-11T22:14:15Z h b", "b", "Facility=1 Severity=5 host=h priority=13 timestamp=1065910455000"),
            ("<13>1 2003-10-11T22:14:15.5Z h b", "b", "Facility=1 Severity=5 host=h priority=13 timestamp=1065910455500 version=1"),
            (
                "<34>Jan 11 22:14:15 mymachine su: 'su root' failed",
                "su: 'su root' failed",
                &format!("Facility=4 Severity=2 host=mymachine priority=34 timestamp={october}"),
            ),
            (
                "<34>1Jan 11 22:14:15 mymachine su",
                "su",
                &format!("Facility=4 Severity=2 host=mymachine priority=34 timestamp={october} version=1"),
            ),
            ("<0>Xyz  1 00:00:00 h b", "b", "Facility=0 Severity=0 host=h priority=0"),
            // No expression matches: the message as it is.
            ("<34>hello world", "<34>hello world", "Facility=4 Severity=2"),
            ("<34>Jan 11 22:14:15 [::1] su", "<34>Jan 11 22:14:15 [::1] su", "Facility=4 Severity=2"),
            ("<34>", "<34>", "Facility=4 Severity=2"),
            ("<34", "<34", "Facility=4 Severity=2"),
            // Nothing after the host: the body is the message.
            ("<34>Jan 11 22:14:15 h ", "<34>Jan 11 22:14:15 h ", &format!("Facility=4 Severity=2 host=h priority=34 timestamp={october}")),
            ("no priority", "no priority", "Facility=0 Severity=0 flume.syslog.status=Invalid"),
            ("<>x", "<>x", "Facility=0 Severity=0 flume.syslog.status=Invalid"),
            ("<1x>x", "<1x>x", "Facility=0 Severity=0 flume.syslog.status=Invalid"),
            ("<1234>x", "<1234>x", "Facility=0 Severity=0 flume.syslog.status=Invalid"),
            ("<", "<", "Facility=0 Severity=0 flume.syslog.status=Invalid"),
            ("<999>x", "<999>x", "Facility=124 Severity=7"),
        ] {
            let (got, found) = read(text, "none", false);
            assert_eq!((got.as_str(), shown(&found).as_str()), (body, headers), "{text}");
        }
    }

    #[test]
    fn strict_copies_flumes_mistakes() {
        let headers = |text, strict| shown(&read(text, "none", strict).1);
        let wall = time::date_and_time(b"2003-10-11T22:14:15").unwrap().millis(&Local, now()).unwrap();
        assert!(headers("<13>1 2003-10-11T22:14:15.5+02:00 h b", true).contains(&format!("timestamp={}", wall + 5)));
        assert!(headers("<13>1 2003-10-11T22:14:15.5+02:00 h b", false).contains("timestamp=1065903255500"));
        for text in ["<13>1 - h b\r", "<13>1 - h b\u{85}c", "<13>1 - h b\u{2028}c"] {
            assert_eq!((headers(text, true).as_str(), headers(text, false).contains("host=h")), ("Facility=1 Severity=5", true));
        }
    }

    #[test]
    fn chosen_fields_stay_in_the_body() {
        let text = "<34>1 2003-10-11T22:14:15Z host app said";
        for (keep, body) in [
            ("none", "app said"),
            ("false", "app said"),
            ("all", text),
            ("true", text),
            ("priority version timestamp hostname", text),
            ("hostname", "host app said"),
            ("Priority,timestamp", "<34>2003-10-11T22:14:15Z app said"),
            ("version", "1 app said"),
        ] {
            assert_eq!(read(text, keep, false).0, body, "{keep}");
        }
        assert_eq!(read("<34>- - app said", "timestamp hostname version", false).0, "- - app said");
    }

    #[test]
    fn a_cut_message_says_so_and_is_read_as_far_as_it_goes() {
        let parser = Parser { keep: Keep::default(), format: None, strict: false };
        let event = parser.event(Bytes::from_static(b"<34>1 - host app sa"), true, now());
        assert_eq!((event.header(STATUS), event.header("host"), &event.body[..]), (Some("Incomplete"), Some("host"), &b"app sa"[..]));
    }

    /// Flume's own example of a format that is not documented, and more.
    #[test]
    fn a_format_of_ones_own_is_tried_first() {
        let component = |settings: &[(&str, &str)]| {
            let mut component = crate::flume_conf::Component::new(&crate::source::syslog::tcp::KIND, "s", "syslogtcp");
            for (key, value) in settings {
                let setting = crate::flume_conf::component::Setting { value: (*value).to_owned(), place: None };
                component.settings.insert(format!("format.{key}"), setting);
            }
            component
        };
        let custom = [
            ("regex", r"<(\d+)>(v\d)? ?\[(.*?)\] (\S+): (.*)"),
            ("search", "([+-]\\d\\d):"),
            ("replace", "$1"),
            ("dateFormat", "dd.MM.yyyy HH:mm Z"),
        ];
        let format = Format::of(&component(&custom)).unwrap();
        let read = |text: &[u8], keep: &str| {
            let parser = Parser { keep: Keep::parse(keep), format: format.clone(), strict: false };
            let event = parser.event(Bytes::copy_from_slice(text), false, now());
            (String::from_utf8_lossy(&event.body).into_owned(), shown(&event.headers.unwrap()))
        };
        let of = |rest: &str| format!("Facility=1 Severity=5 {rest}");
        for (text, keep, body, headers) in [
            (&b"<13>[01.02.2024 10:20 +01:00] h: said"[..], "none", "said", "host=h priority=13 timestamp=1706779200000"),
            (b"<13>v7 [no time] h: said", "none", "said", "host=h priority=13 version=v7"),
            (b"<13>v7 [no time] h: said", "version timestamp hostname", "v7 no time h said", "host=h priority=13 version=v7"),
            (b"<13>[x] h: said", "all", "<13>[x] h: said", "host=h priority=13"),
            (b"<13>[x] h: \xff!", "none", "\u{fffd}!", "host=h priority=13"),
            // Nothing for a body: the message.
            (b"<13>[x] h: ", "none", "<13>[x] h: ", "host=h priority=13"),
            // The RFCs' are tried then.
            (b"<13>1 2003-10-11T22:14:15Z h b", "none", "b", "host=h priority=13 timestamp=1065910455000 version=1"),
        ] {
            assert_eq!(read(text, keep), (body.to_owned(), of(headers)), "{:?} {keep}", String::from_utf8_lossy(text));
        }
        for (settings, expected) in [
            (&custom[..], &[][..]),
            (&[("regex", "a(")], &["format.regex"]),
            (&[("dateFormat", "yyyy"), ("search", "a")], &["format.search", "format.dateFormat"]),
            (&[("regex", "a"), ("search", "a")], &["format.search"]),
            (&[("regex", "a"), ("search", "a"), ("replace", "$1")], &["format.replace"]),
            (&[("regex", "a"), ("dateFormat", "ww")], &["format.dateFormat"]),
        ] {
            let findings: Vec<String> =
                crate::source::syslog::format::review(&component(settings)).iter().map(ToString::to_string).collect();
            assert!(
                findings.len() == expected.len() && findings.iter().zip(expected).all(|(told, key)| told.contains(key)),
                "{findings:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_message_of_ones_own_format_makes_it_panic(message in prop::collection::vec(prop_oneof![Just(b'<'), Just(b'>'), Just(b'|'), Just(b':'), b'0'..=b'9', any::<u8>()], 0..80)) {
            let regex = crate::java_regex::JavaRegex::whole(r"<(\d{1,3})>(\d?)\|?([^|]*)\|?(\S*?):(.*)").unwrap();
            let format = Format { regex, search: None, date: Some(DateFormat::parse("yyyyMMdd").unwrap()) };
            let parser = Parser { keep: Keep::default(), format: Some(format), strict: false };
            prop_assert!(parser.event(message.into(), false, now()).header("Facility").is_some());
        }

        #[test]
        fn no_message_makes_it_panic(message in prop::collection::vec(prop_oneof![Just(b'<'), Just(b'>'), Just(b' '), Just(b'-'), Just(b':'), Just(b'T'), b'0'..=b'9', any::<u8>()], 0..80), strict: bool, cut: bool) {
            for keep in ["none", "all", "priority version timestamp hostname"] {
                let event = Parser { keep: Keep::parse(keep), format: None, strict }.event(message.clone().into(), cut, now());
                prop_assert!(event.header("Facility").is_some() && event.header("Severity").is_some());
            }
        }

        #[test]
        fn no_date_that_looks_right_makes_it_panic(text in "<[0-9]{1,3}>(1 )?([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{1,7})?(Z|[+-][0-9]{2}:[0-9]{2})?|[A-Z][a-z]{2} {1,2}[0-9]{1,2} [0-9]{2}:[0-9]{2}:[0-9]{2}) host .*", strict: bool) {
            read(&text, "none", strict);
        }

        /// A message made of parts gives the parts back.
        #[test]
        fn a_message_of_parts_comes_out(code in 0u32..192, millis in 0i64..4_102_444_800_000, minutes in -14i32 * 60..14 * 60, host in "[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,20}", body in "[^\r\n\u{85}\u{2028}\u{2029}]{1,80}", strict: bool) {
            let zone = FixedOffset::east_opt(minutes * 60).unwrap();
            let stamp = DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&zone).format("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string();
            let (got, headers) = read(&format!("<{code}>1 {stamp} {host} {body}"), "none", strict);
            prop_assert_eq!(&got, &body);
            prop_assert_eq!(headers["Facility"].parse::<u32>().unwrap() * 8 + headers["Severity"].parse::<u32>().unwrap(), code);
            prop_assert_eq!((&headers["host"], headers["version"].as_str(), &headers["priority"]), (&host, "1", &code.to_string()));
            if !strict {
                prop_assert_eq!(headers["timestamp"].parse::<i64>().unwrap(), millis);
            }
        }
    }
}
