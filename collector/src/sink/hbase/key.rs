//! Row keys that are the same whenever an event is sent, so that a retry writes its row again and no second one.
//!
//! Flume draws a new key for every try. Here a key is made of what the event is: its place in a tailed file or in the file
//! channel, which a crash does not change; else its number in the channel and a number of this run.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use uuid::Uuid;

use crate::event::Event;

/// Any fixed one: it keeps these keys apart from other name-based UUIDs.
const NAMESPACE: Uuid = Uuid::from_u128(0x6d69_6c6c_7261_6365_8000_6862_6173_6521);

pub struct Keys {
    /// The channel, so that the same event by two channels makes two rows, as in Flume.
    channel: String,
    /// Numbers in memory begin anew with each run.
    run: u128,
}

impl Keys {
    pub fn new(channel: &str) -> Self {
        Self { channel: channel.to_owned(), run: rand::random() }
    }

    /// The event's own number.
    pub fn of(&self, event: &Event) -> u128 {
        let file = event.origin.as_ref().and_then(|origin| origin.file.as_ref()).filter(|_| event.end > 0);
        let (of, place) = file.map_or((self.run, event.number), |file| (u128::from(file.id), event.end));
        let mut name = Vec::with_capacity(self.channel.len() + 25);
        name.extend_from_slice(self.channel.as_bytes());
        name.push(0);
        name.extend_from_slice(&of.to_be_bytes());
        name.extend_from_slice(&place.to_be_bytes());
        Uuid::new_v5(&NAMESPACE, &name).as_u128()
    }
}

/// What follows `rowPrefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffix {
    Uuid,
    Random,
    /// Milliseconds. As in Flume, events of the same one share a row.
    Timestamp,
    /// Milliseconds and the event's number.
    TimestampOwn,
    Nano,
}

impl Suffix {
    pub fn write(self, prefix: &str, id: u128, millis: i64) -> String {
        match self {
            Self::Uuid => format!("{prefix}{}", Uuid::from_u128(id)),
            // The last bits: the version is among the first.
            Self::Random => format!("{prefix}{}", id as u64 as i64),
            Self::Timestamp => format!("{prefix}{millis}"),
            Self::TimestampOwn => format!("{prefix}{millis}-{:016x}", id as u64),
            Self::Nano => format!("{prefix}{}", nanos()),
        }
    }
}

/// Flume's form where no group is the key: milliseconds, ten letters or digits, a number.
pub fn timed(id: u128, millis: i64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut rest = id as u64;
    let word = (0..10).map(|_| {
        let digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
        char::from(digit)
    });
    let word: String = word.collect();
    format!("{millis}-{word}-{}", (id >> 96) as u32 >> 1)
}

/// The time an event bears in Flume's header, else now.
pub fn millis(event: &Event, now: i64) -> i64 {
    event.header("timestamp").and_then(|text| text.trim().parse().ok()).unwrap_or(now)
}

/// Nanoseconds since 1970; never the same twice in a process.
fn nanos() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX - 1));
    let next = |last: i64| now.max(last + 1);
    LAST.fetch_update(Relaxed, Relaxed, |last| Some(next(last))).map_or(now, next)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;
    use crate::event::Origin;
    use crate::source::tail::identity::TailedFile;

    #[test]
    fn a_place_in_a_file_is_one_key_in_every_run_and_a_number_in_memory_in_one_alone() {
        let origin = |id| Some(Arc::new(Origin::of_file(Arc::new(TailedFile::for_test(id)), None)));
        let tailed = |id, end, number| Event { origin: origin(id), end, number, ..Event::default() };
        let (a, b, other) = (Keys::new("c"), Keys::new("c"), Keys::new("d"));
        assert_eq!(a.of(&tailed(1, 7, 0)), b.of(&tailed(1, 7, 99)));
        let mut seen = BTreeSet::new();
        for key in [
            a.of(&tailed(1, 7, 0)),
            a.of(&tailed(1, 8, 0)),
            a.of(&tailed(2, 7, 0)),
            other.of(&tailed(1, 7, 0)),
            a.of(&Event { number: 7, ..Event::default() }),
            b.of(&Event { number: 7, ..Event::default() }),
            // A place that is not known is none.
            a.of(&tailed(1, 0, 8)),
        ] {
            assert!(seen.insert(key), "{key:x} twice");
        }
        let memory = Event { number: 7, ..Event::default() };
        assert_eq!(a.of(&memory), a.of(&memory));
    }

    #[test]
    fn keys_have_flumes_forms() {
        let id = Uuid::new_v5(&NAMESPACE, b"x").as_u128();
        let written = |suffix: Suffix| suffix.write("p", id, 1_700_000_000_000);
        assert_eq!((written(Suffix::Uuid).len(), written(Suffix::Uuid).matches('-').count()), (37, 4));
        assert!(written(Suffix::Random)[1..].parse::<i64>().is_ok());
        assert_eq!(written(Suffix::Timestamp), "p1700000000000");
        assert!(written(Suffix::TimestampOwn).starts_with("p1700000000000-") && written(Suffix::TimestampOwn).len() == 31);
        let nano: Vec<String> = (0..100).map(|_| written(Suffix::Nano)).collect();
        assert!(nano.windows(2).all(|pair| pair[0] < pair[1]), "{nano:?}");
        let timed = timed(id, 5);
        let parts: Vec<&str> = timed.split('-').collect();
        assert!(parts.len() == 3 && parts[0] == "5" && parts[1].len() == 10, "{timed}");
        assert!(parts[1].chars().all(|char| char.is_ascii_alphanumeric()) && parts[2].parse::<i32>().is_ok(), "{timed}");
    }
}
