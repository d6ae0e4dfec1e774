//! Messages as Flume's `SyslogParser` reads them (`multiport_syslogtcp`): field after field. What does not fit is an
//! event with the status `Invalid` and the whole message as its body.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Datelike, Local, Months, Utc};

use super::STATUS;
use super::fields::{Keep, Written};
use super::pattern::without_year;
use super::time;
use crate::event::Event;
use crate::source::charset::Charset;

#[derive(Clone, Copy, Debug)]
pub struct Parser {
    pub keep: Keep,
    /// With Flume's mistakes: a date of RFC 3164 more than a month away is in the year 1999 or 2001, and a day of one
    /// digit needs two blanks before it.
    pub strict: bool,
}

impl Parser {
    /// `cut`: the message was longer than `eventSize`. The flag is false for an invalid one.
    pub fn event(&self, message: Bytes, cut: bool, charset: Charset, now: DateTime<Utc>) -> (Event, bool) {
        let mut headers = BTreeMap::new();
        let body = charset.is_valid(&message).then(|| self.describe(&message, charset, &mut headers, now)).flatten();
        let valid = body.is_some();
        if !valid {
            headers.clear();
        }
        if !valid || cut {
            headers.insert(STATUS.to_owned(), if valid { "Incomplete" } else { "Invalid" }.to_owned());
        }
        (Event { headers: Some(Arc::new(headers)), ..Event::new(body.unwrap_or(message)) }, valid)
    }

    fn describe(&self, message: &Bytes, charset: Charset, headers: &mut BTreeMap<String, String>, now: DateTime<Utc>) -> Option<Bytes> {
        let mut put = |name: &str, value: &[u8]| headers.insert(name.to_owned(), charset.decode(value));
        let rest = message.strip_prefix(b"<")?;
        let end = memchr::memchr(b'>', &rest[..rest.len().min(6)])?;
        let priority = &rest[..end];
        let code: i32 = std::str::from_utf8(priority).ok()?.parse().ok()?;
        put("Priority", priority);
        put("Facility", (code / 8).to_string().as_bytes());
        put("Severity", (code % 8).to_string().as_bytes());
        let mut rest = &rest[end + 1..];
        let mut version = &b""[..];
        if let ([b'1', b' ', after @ ..], true) = (rest, rest.len() > 2) {
            (version, rest) = (&rest[..1], after);
            put("Version", version);
        }
        let stamp_length = match rest.first()? {
            b'-' => 1,
            b'A'..=b'Z' => self.short_length(rest),
            _ => memchr::memchr(b' ', rest)?,
        };
        let (stamp, after) = rest.split_at_checked(stamp_length)?;
        let millis = match stamp.first() {
            Some(b'-') => now.timestamp_millis(),
            Some(b'A'..=b'Z') => self.short(stamp, now)?,
            _ => full(stamp)?,
        };
        put("timestamp", millis.to_string().as_bytes());
        let rest = after.get(1..)?;
        let (hostname, body) = rest.split_at_checked(memchr::memchr(b' ', rest)?)?;
        put("host", hostname);
        let body = &body[1..];
        if body.is_empty() || self.keep.all {
            return Some(message.clone());
        }
        Some(self.keep.body(message, body, Written { priority, version, timestamp: stamp, hostname }))
    }

    /// Flume takes fifteen characters, whatever the day.
    fn short_length(&self, rest: &[u8]) -> usize {
        let one_digit = !self.strict && rest.get(..14).is_some_and(|stamp| without_year(stamp).is_some());
        if one_digit { 14 } else { 15 }
    }

    /// 0 where it is no date.
    fn short(&self, stamp: &[u8], now: DateTime<Utc>) -> Option<i64> {
        let Some(written) = without_year(stamp).filter(|written| written.is_real()) else { return Some(0) };
        if !self.strict {
            return written.millis(&Utc, now);
        }
        let date = |year| time::Written { year: Some(year), ..written };
        // A 29th of February outside a leap year cannot be given that year.
        let year = Some(date(now.with_timezone(&Local).year())).filter(|written| written.is_real())?;
        let month = Months::new(1);
        let this = DateTime::from_timestamp_millis(year.millis(&Utc, now)?)?;
        // A date without a year is one of 2000 to Flume: that is what it rolls.
        let rolled = if this > now && this.checked_sub_months(month)? > now {
            date(1999)
        } else if this < now && this.checked_add_months(month)? < now {
            date(2001)
        } else {
            return Some(this.timestamp_millis());
        };
        let day = if rolled.is_real() { rolled.day } else { rolled.day - 1 };
        time::Written { day, ..rolled }.millis(&Utc, now)
    }
}

/// `yyyy-MM-ddThh:mm:ss`, a fraction, and a zone; something must follow the seconds.
fn full(stamp: &[u8]) -> Option<i64> {
    let (seconds, rest) = stamp.split_at_checked(19).filter(|(_, rest)| !rest.is_empty())?;
    let written = time::date_and_time(seconds).filter(|written| written.is_real())?;
    let mut millis = written.millis(&Utc, DateTime::default())?;
    let mut rest = rest;
    if let [b'.', after @ ..] = rest {
        let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let fraction = std::str::from_utf8(&after[..digits]).ok()?;
        let kept = &fraction[..digits.min(3)];
        // More digits than a long has are no number to Flume.
        fraction.parse::<i64>().ok()?;
        millis += kept.parse::<i64>().ok()? * 10_i64.pow(3 - u32::try_from(kept.len()).ok()?);
        rest = &after[digits..];
    }
    match rest {
        [] => None,
        [b'+' | b'-', ..] => Some(millis - time::offset(rest.get(..6)?)? * 60_000),
        _ => Some(millis),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> DateTime<Utc> {
        DateTime::parse_from_rfc3339("2026-06-15T12:00:00Z").unwrap().to_utc()
    }

    fn utf8() -> Charset {
        Charset::of("UTF-8").unwrap()
    }

    fn read(text: &[u8], keep: &str, strict: bool) -> (Vec<u8>, String) {
        let (event, _) = Parser { keep: Keep::parse(keep), strict }.event(Bytes::copy_from_slice(text), false, utf8(), now());
        let headers = event.headers.unwrap();
        (event.body.to_vec(), headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn messages_are_read_as_flume_reads_them() {
        for (text, body, headers) in [
            (
                "<34>1 2003-10-11T22:14:15.003Z m.example.com su - ID47 - failed",
                "su - ID47 - failed",
                "Facility=4 Priority=34 Severity=2 Version=1 host=m.example.com timestamp=1065910455003",
            ),
            ("<34>1 2003-10-11T22:14:15.5-07:00 h b", "b", "Facility=4 Priority=34 Severity=2 Version=1 host=h timestamp=1065935655500"),
            ("<34>2003-10-11T22:14:15.123456Z h b", "b", "Facility=4 Priority=34 Severity=2 host=h timestamp=1065910455123"),
            ("<34>2003-10-11T22:14:15X h b", "b", "Facility=4 Priority=34 Severity=2 host=h timestamp=1065910455000"),
            ("<34>1 - h b", "b", "Facility=4 Priority=34 Severity=2 Version=1 host=h timestamp=1781524800000"),
            ("<34>Jun  1 01:02:03 h b", "b", "Facility=4 Priority=34 Severity=2 host=h timestamp=1780275723000"),
            ("<34>Jun 1 01:02:03 h b", "b", "Facility=4 Priority=34 Severity=2 host=h timestamp=1780275723000"),
            ("<34>Jun 31 01:02:03 h b", "b", "Facility=4 Priority=34 Severity=2 host=h timestamp=0"),
            ("<34>Jun  1 01:02:03 h ", "<34>Jun  1 01:02:03 h ", "Facility=4 Priority=34 Severity=2 host=h timestamp=1780275723000"),
            ("<34>Jun  1 01:02:03  b", "b", "Facility=4 Priority=34 Severity=2 host= timestamp=1780275723000"),
            ("<-9>1 - h b", "b", "Facility=-1 Priority=-9 Severity=-1 Version=1 host=h timestamp=1781524800000"),
        ] {
            let (got, found) = read(text.as_bytes(), "none", false);
            assert_eq!((String::from_utf8(got).unwrap().as_str(), found.as_str()), (body, headers), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_invalid_and_kept_whole() {
        for text in [
            "x",
            "<",
            "<>x",
            "<34",
            "<1234567>x",
            "<x>1 - h b",
            "<34>",
            "<34>1 ",
            "<34>-",
            "<34>1 - ",
            "<34>1 - h",
            "<34>Jun  1 01:02:03",
            "<34>Jun  1 01:02:03 h",
            "<34>2003-10-11T22:14:15 h b",
            "<34>2003-10-11T22:14:15. h b",
            "<34>2003-10-11T22:14:15.5 h b",
            "<34>2003-13-11T22:14:15Z h b",
            "<34>2003-10-11T22:14:15+0700 h b",
            "<34>2003-10-11T22:14:15Z h",
            "<34>yesterday h b",
        ] {
            assert_eq!(read(text.as_bytes(), "none", false), (text.as_bytes().to_vec(), "flume.syslog.status=Invalid".into()), "{text}");
        }
        assert_eq!(read(b"<34>1 - h \xff", "none", false).1, "flume.syslog.status=Invalid");
        let latin = Charset::of("ISO-8859-1").unwrap();
        let (event, valid) =
            Parser { keep: Keep::default(), strict: false }.event(Bytes::from_static(b"<34>1 - \xe9 \xff"), false, latin, now());
        assert_eq!((valid, event.header("host"), &event.body[..]), (true, Some("é"), &b"\xff"[..]));
    }

    #[test]
    fn strict_copies_flumes_years() {
        for (stamp, expected) in [("Jun 10 00:00:00", "2026-06-10"), ("Jan 10 00:00:00", "2001-01-10"), ("Dec 10 00:00:00", "1999-12-10")] {
            let headers = read(format!("<34>{stamp} h b").as_bytes(), "none", true).1;
            let millis = DateTime::parse_from_rfc3339(&format!("{expected}T00:00:00Z")).unwrap().timestamp_millis();
            assert!(headers.ends_with(&format!("timestamp={millis}")), "{stamp}: {headers}");
        }
        // Fifteen characters are taken, and then one that is the host's first.
        assert!(read(b"<34>Jun 1 01:02:03 host b", "none", true).1.ends_with("host=ost timestamp=0"));
    }

    proptest! {
        #[test]
        fn no_message_makes_it_panic(message in prop::collection::vec(prop_oneof![Just(b'<'), Just(b'>'), Just(b' '), Just(b'-'), Just(b':'), Just(b'.'), Just(b'T'), b'0'..=b'9', any::<u8>()], 0..80), strict: bool, cut: bool) {
            for keep in ["none", "all", "priority version timestamp hostname"] {
                let (event, valid) = Parser { keep: Keep::parse(keep), strict }.event(message.clone().into(), cut, utf8(), now());
                prop_assert!(valid || event.body == message);
            }
        }

        #[test]
        fn no_date_that_looks_right_makes_it_panic(text in "<[0-9]{1,3}>(1 )?([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,20})?(Z|[+-][0-9]{2}:[0-9]{2})?|(Jan|Feb|Dec|[A-Z][a-z]{2}) {1,2}[0-9]{1,2} [0-9]{2}:[0-9]{2}:[0-9]{2}) host .*", strict: bool) {
            read(text.as_bytes(), "none", strict);
        }

        #[test]
        fn a_message_of_parts_comes_out(code in 0i32..192, millis in 0i64..4_102_444_800_000, minutes in -14i32 * 60..14 * 60, host in "[^ \n]{0,20}", body in "[^\n]{1,80}", strict: bool) {
            let zone = chrono::FixedOffset::east_opt(minutes * 60).unwrap();
            let stamp = DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&zone).format("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string();
            let (got, headers) = read(format!("<{code}>1 {stamp} {host} {body}").as_bytes(), "none", strict);
            prop_assert_eq!(got, body.as_bytes());
            prop_assert_eq!(headers, format!("Facility={} Priority={code} Severity={} Version=1 host={host} timestamp={millis}", code / 8, code % 8));
        }
    }
}
