//! `SET 'key' = 'value'` in a job, and `[jobs.settings]` of the engine's configuration; [`super`] lists the keys.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{Place, SqlError, nearest_or_all};
use super::options::Entry;
use super::program::Emit;
use crate::job::{JobSettings, SettingError};
use crate::sink::Guarantee;

pub(crate) const EMIT: &str = "millrace.emit";
const MEMORY: &str = "millrace.query.memory.max";
const QUEUE: &str = "millrace.pipeline.queue.max";
const IDLE: &str = "table.exec.source.idle-timeout";
const ZONE: &str = "table.local-time-zone";
pub(crate) const OWN: &[&str] = &[Guarantee::OPTION, EMIT, MEMORY, QUEUE, IDLE, ZONE];

const QUEUE_ITEMS_MAX: usize = 64;

/// Everything that can be set, as it stands after some statements.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) job: JobSettings,
    pub(crate) emit: Emit,
    /// Option of the tables that are written below and have none of their own.
    pub(crate) guarantee: Option<Entry>,
    pub(crate) memory_bytes: usize,
    pub(crate) queue_items: usize,
    /// Zero: never.
    pub(crate) idle_after: Duration,
    /// What was accepted without effect.
    pub(crate) notes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            job: JobSettings::default(),
            emit: Emit::OnWatermark,
            guarantee: None,
            memory_bytes: 512 << 20,
            queue_items: 2,
            // Longer than a broker or a producer is usually away, so that its silence is not taken for its end.
            idle_after: Duration::from_secs(60),
            notes: Vec::new(),
        }
    }
}

impl Settings {
    pub(crate) fn set(&mut self, entry: &Entry) -> Result<(), SqlError> {
        let value = entry.value.trim();
        match entry.key.as_str() {
            EMIT => {
                self.emit = match value {
                    "on-watermark" => Emit::OnWatermark,
                    "every-batch" => Emit::EveryBatch,
                    _ => return Err(wrong(entry, "`on-watermark` or `every-batch`")),
                }
            }
            Guarantee::OPTION => self.guarantee = Some(entry.clone()),
            MEMORY => self.memory_bytes = bytes(value).ok_or_else(|| wrong(entry, "a size such as `256 MB` or `2 GB`"))?,
            QUEUE => {
                let items = value.parse().ok().filter(|items| (1..=QUEUE_ITEMS_MAX).contains(items));
                self.queue_items = items.ok_or_else(|| wrong(entry, &format!("a whole number from 1 to {QUEUE_ITEMS_MAX}")))?;
            }
            IDLE => {
                self.idle_after =
                    humantime::parse_duration(value).map_err(|_| wrong(entry, "a duration such as `10 s`; `0 s` means never idle"))?;
            }
            ZONE => {
                if !["UTC", "Etc/UTC", "GMT", "+00:00", "default"].contains(&value) {
                    return Err(entry.at.error(format!("`{ZONE}`: `{}` is not built yet", entry.value), "times are in UTC"));
                }
            }
            key => match self.job.apply(key, &entry.value) {
                Ok(note) => self.notes.extend(note.map(|note| note.to_string())),
                Err(SettingError::Unknown { nearest: None, .. }) => {
                    return Err(entry.at.error(format!("unknown setting `{key}`"), nearest_or_all("settings of SQL jobs", key, OWN)));
                }
                Err(error) => return Err(entry.at.error(error.to_string(), "")),
            },
        }
        Ok(())
    }

    /// The size of the pool is needed before the first statement, whichever sets it.
    pub(crate) fn is_memory(entry: &Entry) -> bool {
        entry.key == MEMORY
    }
}

/// Settings from outside a text.
pub(crate) fn entries(settings: &BTreeMap<String, String>) -> Vec<Entry> {
    let at = Place { line: 1, column: 1 };
    settings.iter().map(|(key, value)| Entry { key: key.clone(), value: value.clone(), at }).collect()
}

/// Checks what does not stand in a job's text.
pub fn check_settings(settings: &BTreeMap<String, String>) -> Result<(), String> {
    let mut checked = Settings::default();
    for entry in entries(settings) {
        checked.set(&entry).map_err(
            |SqlError { message, remedy, .. }| {
                if remedy.is_empty() { message } else { format!("{message}; {remedy}") }
            },
        )?;
    }
    Ok(())
}

fn wrong(entry: &Entry, expected: &str) -> SqlError {
    entry.at.error(format!("`{}`: `{}` is not {expected}", entry.key, entry.value), "")
}

/// `512 MB`, `2gb`, `65536`.
fn bytes(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: usize = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" | "bytes" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}
