//! What becomes of records that are no rows: counted, a few shown in the log, all sent to the dead-letter topic if there
//! is one. They never fail a batch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use service_kit::kafka::{OutRecord, Record};
use tracing::warn;

use super::pipeline::DeadLetters;
use crate::batch::{OffsetRange, clock::Clock};
use crate::format::Malformed;

/// Lines shown per period and table; others are only counted.
const SHOWN_MAX: u32 = 5;
const PERIOD: Duration = Duration::from_secs(10);
const SHOWN_BYTES_MAX: usize = 200;

/// Decides which malformed records are shown in the log.
#[derive(Default)]
pub(crate) struct Sampler(Mutex<Option<Period>>);

struct Period {
    /// On the monotonic clock.
    since: Duration,
    shown: u32,
    hidden: u64,
}

impl Sampler {
    /// Whether to show one at `now`; with the number that was hidden in the period before.
    fn admit(&self, now: Duration) -> Option<u64> {
        let mut period = self.0.lock();
        match &mut *period {
            Some(current) if now.saturating_sub(current.since) < PERIOD => {
                if current.shown < SHOWN_MAX {
                    current.shown += 1;
                    return Some(0);
                }
                current.hidden += 1;
                None
            }
            other => {
                let hidden = other.as_ref().map_or(0, |period| period.hidden);
                *other = Some(Period { since: now, shown: 1, hidden: 0 });
                Some(hidden)
            }
        }
    }
}

/// Where one table's malformed records are reported.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) table: Arc<str>,
    pub(crate) sampler: Arc<Sampler>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) dead_letters: Option<(Arc<str>, DeadLetters)>,
}

impl Reports {
    pub(crate) async fn report(&self, range: &OffsetRange, records: &[Record], malformed: &[(usize, Malformed)]) -> anyhow::Result<()> {
        for (index, Malformed(reason)) in malformed {
            let Some(hidden) = self.sampler.admit(self.clock.monotonic()) else { continue };
            let record = &records[*index];
            let value = record.value.as_deref().unwrap_or_default();
            let sample = String::from_utf8_lossy(&value[..value.len().min(SHOWN_BYTES_MAX)]);
            warn!(
                table = &*self.table, topic = &*range.topic, partition = range.partition, offset = record.offset,
                reason, %sample, not_shown_before = hidden, "malformed record"
            );
        }
        if let Some((topic, sender)) = &self.dead_letters {
            let letters = malformed.iter().map(|(index, reason)| dead_letter(topic, range, &records[*index], reason)).collect();
            sender.send(letters).await.map_err(|_| anyhow::anyhow!("topic `{topic}` takes no dead letters"))?;
        }
        Ok(())
    }
}

/// The record as it was, with the reason and its origin in headers.
fn dead_letter(topic: &Arc<str>, range: &OffsetRange, record: &Record, Malformed(reason): &Malformed) -> OutRecord {
    let mut headers: Vec<(String, Bytes)> =
        record.headers.iter().map(|(name, value)| (name.clone(), value.clone().unwrap_or_default())).collect();
    for (name, value) in [
        ("millrace.reason", reason.clone()),
        ("millrace.topic", range.topic.to_string()),
        ("millrace.partition", range.partition.to_string()),
        ("millrace.offset", record.offset.to_string()),
    ] {
        headers.push((name.to_owned(), Bytes::from(value)));
    }
    OutRecord {
        topic: topic.clone(),
        partition: None,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
        timestamp_ms: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_bad_lines_shows_five_and_says_how_many_it_hid() {
        let sampler = Sampler::default();
        let start = Duration::from_secs(1000);
        let shown = (0..1000).filter(|_| sampler.admit(start).is_some()).count();
        assert_eq!(shown, 5);
        assert_eq!(sampler.admit(start + PERIOD), Some(995));
        assert_eq!(sampler.admit(start + PERIOD), Some(0));
    }
}
