//! What a job may set: Spark's names as they are, and our own few.
//!
//! A name without meaning here is accepted with a note; an unknown `spark.streaming.*` name is a mistake and is
//! refused with the nearest known one.

use std::{fmt, time::Duration};

use crate::commit::{IGNORE_UNCLAIMED, slots::SLOTS_MAX};
use crate::source::OffsetSettings;
use crate::sql::without_passwords;

/// Everything a job may set. `JobSettings::default()` is Spark's defaults where Spark has the setting.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSettings {
    /// `batch.interval`: time between batches, 10 ms to 1 h; default 5 s.
    pub batch_interval: Duration,
    /// `spark.streaming.kafka.maxRatePerPartition`: records per second and partition; `None` (0) means no limit.
    pub max_rate_per_partition: Option<u64>,
    /// `spark.streaming.kafka.minRatePerPartition`: records per batch and partition that a limit never goes below; default 1.
    pub min_rate_per_partition: u64,
    pub backpressure: PidConfig,
    /// `batch.records.max`: records that a batch covers at most, over all partitions of a source, split by lag; `None` (0)
    /// means no limit. Bounds what a job reads at once after it was away; default 5,000,000.
    pub records_max: Option<u64>,
    /// `batch.queue.max`: batches that may be cut and wait while one runs; then no further batch is cut until there is
    /// room, and the next one covers the missed time. 1 to 1000, default 64.
    pub queue_batches_max: usize,
    /// `batch.retry.attempts`: how often a failed batch is run again before the job fails; default 10 (about two
    /// and a half minutes).
    pub retry_attempts: u32,
    /// `batch.retry.backoff`: wait before the first of these runs; doubles each time, up to 30 s; default 500 ms.
    pub retry_backoff: Duration,
    /// `checkpoint.retained`: how many batches' entries the checkpoint keeps, 2 to 1000, default 10.
    pub checkpoint_retained: u64,
    /// `execution.state-recovery.ignore-unclaimed-state`: a changed program may drop the state of operators and the offsets of sources that
    /// it does not have any more. Default false: it is refused.
    pub ignore_unclaimed_state: bool,
    /// `job.slots`: into how many slots the job is cut, which the workers of its group share; `None` (0): one process runs all of it.
    pub slots: Option<u32>,
    /// `failOnDataLoss`: stop when offsets that were still to be read are gone from the topic; `false` goes on at the
    /// earliest that is there. Default true.
    pub fail_on_data_loss: bool,
    /// `offsets.store`, `offsets.store.previous`: where the consumer group of each Kafka source has its offsets, beside the checkpoint;
    /// default: in Kafka.
    pub offsets: OffsetSettings,
    /// `topic.missing.timeout`: how long a job waits for a topic that was there when it began and is missing now; `0s` fails at
    /// once. Default 5 min.
    pub topic_missing_timeout: Duration,
    /// `spark.streaming.ui.retainedBatches`: completed batches that page and API remember; 1 to 100000, default 1000.
    pub retained_batches: usize,
    /// `spark.streaming.stopGracefullyOnShutdown`: run every batch that is cut before stopping, not just the running one.
    pub stop_gracefully: bool,
    pub receiver: ReceiverSettings,
    /// `spark.streaming.fileStream.minRememberDuration`: how far back a file stream looks for new files, and for how long it knows
    /// those that it took; default 60 s.
    pub file_remember: Duration,
}

/// `spark.streaming.receiver.*` and what else concerns receivers.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceiverSettings {
    /// `spark.streaming.blockInterval`: how often what was stored one by one becomes a block, which batches see; default 200 ms.
    pub block_interval: Duration,
    /// `spark.streaming.receiver.maxRate`: records per second and receiver; `None` (0) means no limit.
    pub max_rate: Option<u64>,
    /// `spark.streaming.receiverRestartDelay`: from the end of a receiver to its next start; default 2 s.
    pub restart_delay: Duration,
    /// `receiver.bytes.max`: bytes that each receiver's log holds at most before the receiver waits; default 64 MiB.
    pub bytes_max: u64,
    pub write_ahead_log: WriteAheadLogSettings,
}

/// `spark.streaming.receiver.writeAheadLog.*`.
#[derive(Clone, Debug, PartialEq)]
pub struct WriteAheadLogSettings {
    pub enabled: bool,
    /// Age at which a segment is closed; default 60 s.
    pub rolling_interval: Duration,
    /// Attempts to write a block, each to a new segment, before the receiver is told; default 3.
    pub max_failures: u32,
    /// A segment for each write; default false.
    pub close_file_after_write: bool,
}

/// `spark.streaming.backpressure.*`: the rate follows what the job can process.
#[derive(Clone, Debug, PartialEq)]
pub struct PidConfig {
    pub enabled: bool,
    /// Records per second for the first batches, over all partitions; `None` (0) means no limit.
    pub initial_rate: Option<u64>,
    /// Weight of the present error, ≥ 0; default 1.0.
    pub proportional: f64,
    /// Weight of what has piled up, ≥ 0; default 0.2.
    pub integral: f64,
    /// Weight of the error's change, ≥ 0; default 0.0.
    pub derived: f64,
    /// Records per second that the estimate never goes below, > 0; default 100.
    pub min_rate: f64,
}

impl Default for PidConfig {
    fn default() -> Self {
        Self { enabled: false, initial_rate: None, proportional: 1.0, integral: 0.2, derived: 0.0, min_rate: 100.0 }
    }
}

impl Default for ReceiverSettings {
    fn default() -> Self {
        Self {
            block_interval: Duration::from_millis(200),
            max_rate: None,
            restart_delay: Duration::from_secs(2),
            bytes_max: 64 << 20,
            write_ahead_log: WriteAheadLogSettings {
                enabled: false,
                rolling_interval: Duration::from_secs(60),
                max_failures: 3,
                close_file_after_write: false,
            },
        }
    }
}

impl Default for JobSettings {
    fn default() -> Self {
        Self {
            batch_interval: Duration::from_secs(5),
            max_rate_per_partition: None,
            min_rate_per_partition: 1,
            backpressure: PidConfig::default(),
            records_max: Some(5_000_000),
            queue_batches_max: 64,
            retry_attempts: 10,
            retry_backoff: Duration::from_millis(500),
            checkpoint_retained: 10,
            ignore_unclaimed_state: false,
            slots: None,
            fail_on_data_loss: true,
            offsets: OffsetSettings::default(),
            topic_missing_timeout: Duration::from_secs(300),
            retained_batches: 1000,
            stop_gracefully: false,
            receiver: ReceiverSettings::default(),
            file_remember: Duration::from_secs(60),
        }
    }
}

/// A setting that was accepted without effect, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note(pub String);

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    #[error("unknown setting `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Unknown { key: String, nearest: Option<String> },
    #[error("setting `{key}`: `{value}` is not {expected}")]
    Value { key: String, value: String, expected: &'static str },
}

type Set = fn(&mut JobSettings, &str) -> Result<(), &'static str>;

/// A name with an effect.
pub struct Known {
    pub name: &'static str,
    pub default: &'static str,
    /// For the reference page.
    pub meaning: &'static str,
    /// The error is what the value should have been.
    set: Set,
}

const fn known(name: &'static str, default: &'static str, meaning: &'static str, set: Set) -> Known {
    Known { name, default, meaning, set }
}

pub const KNOWN: &[Known] = &[
    known("batch.interval", "5s", "Time between batches, 10 ms to 1 h.", |s, v| interval(v).map(|d| s.batch_interval = d)),
    known(
        "batch.queue.max",
        "64",
        "Batches that may be cut and wait while one runs; then none is cut until there is room, and the next one covers the missed time.",
        |s, v| within(v, 1, 1000, "a whole number from 1 to 1000").map(|n| s.queue_batches_max = n as usize),
    ),
    known("batch.records.max", "5000000", "Records that a batch covers at most, over all partitions of a source; 0: no limit.", |s, v| {
        rate(v).map(|n| s.records_max = n)
    }),
    known(
        "batch.retry.attempts",
        "10",
        "How often a failed batch is run again before the job fails. A broker that is away is no failure: the batch waits.",
        |s, v| within(v, 0, 1000, "a whole number from 0 to 1000").map(|n| s.retry_attempts = n as u32),
    ),
    known("batch.retry.backoff", "500ms", "Wait before the first of these runs; doubles each time, up to 30 s.", |s, v| {
        duration(v).map(|d| s.retry_backoff = d)
    }),
    known("checkpoint.retained", "10", "Batches whose entries the checkpoint keeps, 2 to 1000.", |s, v| {
        within(v, 2, 1000, "a whole number from 2 to 1000").map(|n| s.checkpoint_retained = n)
    }),
    known(
        IGNORE_UNCLAIMED,
        "false",
        "Drop the state of INSERTs and the offsets of tables that a changed job does not have any more; otherwise such a job is refused.",
        |s, v| boolean(v).map(|b| s.ignore_unclaimed_state = b),
    ),
    known(
        "failOnDataLoss",
        "true",
        "Fail when offsets that were still to be read are gone, or the topic was deleted and created again; `false` goes on at the earliest \
         offset there is.",
        |s, v| boolean(v).map(|b| s.fail_on_data_loss = b),
    ),
    known(
        "job.slots",
        "0",
        "Into how many slots the job is cut, 1 to 1024: every process that runs the job under the same name, with the same checkpoint, is a worker \
         and has a share of them. Partition p of each topic belongs to slot p modulo this. Fixed when the job first starts. 0: one process runs all of it.",
        |s, v| {
            within(v, 0, u64::from(SLOTS_MAX), "a whole number from 0 to 1024").map(|n| s.slots = u32::try_from(n).ok().filter(|n| *n > 0))
        },
    ),
    known(
        "offsets.store",
        "kafka",
        "Where the consumer group of each Kafka source has its offsets, beside the checkpoint: `checkpoint` (nowhere), `kafka`, \
         `zookeeper://host:port,host:port/chroot`, `redis://host:port/database`, `hbase://host:port/table` or `sled:/folder`; see above.",
        |s, v| v.parse().map(|place| s.offsets.store = place),
    ),
    known(
        "offsets.store.previous",
        "",
        "The store that the job comes from, for a start at `group-offsets` without a checkpoint: as `offsets.store`, and empty for none.",
        |s, v| {
            s.offsets.previous = match v {
                "" => None,
                "checkpoint" => return Err("the address of a store; a checkpoint is gone on from by itself"),
                store => Some(store.parse()?),
            };
            Ok(())
        },
    ),
    known(
        "receiver.bytes.max",
        "67108864",
        "Bytes that the log of each receiver holds at most, 65536 at least; then the receiver waits. Without a write-ahead log: in memory, also \
         what windows may read again; with it: on disk and not processed yet.",
        |s, v| within(v, 65_536, u64::MAX, "a whole number of bytes of at least 65536").map(|n| s.receiver.bytes_max = n),
    ),
    known("spark.streaming.backpressure.enabled", "false", "Cut batches by the rate at which the job can process them.", |s, v| {
        boolean(v).map(|b| s.backpressure.enabled = b)
    }),
    known(
        "spark.streaming.backpressure.initialRate",
        "0",
        "Records per second for the first batches, over all partitions, and of each receiver; 0: no limit.",
        |s, v| rate(v).map(|r| s.backpressure.initial_rate = r),
    ),
    known("spark.streaming.backpressure.rateEstimator", "pid", "The only estimator there is.", |_, v| {
        if v == "pid" { Ok(()) } else { Err("`pid`, the only estimator there is") }
    }),
    known("spark.streaming.backpressure.pid.proportional", "1", "Weight of the present error.", |s, v| {
        weight(v).map(|w| s.backpressure.proportional = w)
    }),
    known("spark.streaming.backpressure.pid.integral", "0.2", "Weight of what has piled up.", |s, v| {
        weight(v).map(|w| s.backpressure.integral = w)
    }),
    known("spark.streaming.backpressure.pid.derived", "0", "Weight of the error's change.", |s, v| {
        weight(v).map(|w| s.backpressure.derived = w)
    }),
    known(
        "spark.streaming.backpressure.pid.minRate",
        "100",
        "Records per second that the estimate never goes below.",
        |s, v| match weight(v) {
            Ok(w) if w > 0.0 => {
                s.backpressure.min_rate = w;
                Ok(())
            }
            _ => Err("a number above 0"),
        },
    ),
    known(
        "spark.streaming.blockInterval",
        "200ms",
        "Receivers: how often what was stored one by one becomes a block, which batches see; 10 ms to 1 h.",
        |s, v| spark_time(v, "ms").filter(|d| is_interval(*d)).ok_or(SPARK_MS).map(|d| s.receiver.block_interval = d),
    ),
    known(
        "spark.streaming.fileStream.minRememberDuration",
        "60s",
        "File streams: how far back new files are looked for, and for how long those that were taken are known.",
        |s, v| spark_time(v, "s").filter(|d| !d.is_zero()).ok_or(SPARK_S).map(|d| s.file_remember = d),
    ),
    known("spark.streaming.kafka.maxRatePerPartition", "0", "Records per second and partition; 0: no limit.", |s, v| {
        rate(v).map(|r| s.max_rate_per_partition = r)
    }),
    known("spark.streaming.kafka.minRatePerPartition", "1", "Records per batch and partition that a limit never goes below.", |s, v| {
        within(v, 0, u64::MAX, "a whole number").map(|n| s.min_rate_per_partition = n)
    }),
    known("spark.streaming.receiver.maxRate", "0", "Records per second that each receiver takes; 0: no limit.", |s, v| {
        rate(v).map(|r| s.receiver.max_rate = r)
    }),
    known("spark.streaming.receiver.writeAheadLog.closeFileAfterWrite", "false", "Write-ahead log: a segment for each write.", |s, v| {
        boolean(v).map(|b| s.receiver.write_ahead_log.close_file_after_write = b)
    }),
    known(
        "spark.streaming.receiver.writeAheadLog.enable",
        "false",
        "Receivers: what they store is on disk, in the checkpoint's folder, before it counts as stored, and outlives the process. Without it, \
         what no batch has read yet is lost with the process.",
        |s, v| boolean(v).map(|b| s.receiver.write_ahead_log.enabled = b),
    ),
    known(
        "spark.streaming.receiver.writeAheadLog.maxFailures",
        "3",
        "Write-ahead log: attempts to write a block, each to a new segment, before the receiver is told that it failed; 1 to 1000.",
        |s, v| within(v, 1, 1000, "a whole number from 1 to 1000").map(|n| s.receiver.write_ahead_log.max_failures = n as u32),
    ),
    known(
        "spark.streaming.receiver.writeAheadLog.rollingIntervalSecs",
        "60",
        "Write-ahead log: age in seconds at which a segment is closed (64 MiB close it too); whole segments are deleted.",
        |s, v| {
            within(v, 1, 86_400, "a whole number of seconds from 1 to 86400")
                .map(|n| s.receiver.write_ahead_log.rolling_interval = Duration::from_secs(n))
        },
    ),
    known(
        "spark.streaming.receiverRestartDelay",
        "2000",
        "From the end or failure of a receiver to its next start, in milliseconds.",
        |s, v| spark_time(v, "ms").ok_or(SPARK_MS).map(|d| s.receiver.restart_delay = d),
    ),
    known(
        "spark.streaming.stopGracefullyOnShutdown",
        "false",
        "Run every batch that is cut before stopping, not just the running one.",
        |s, v| boolean(v).map(|b| s.stop_gracefully = b),
    ),
    known("spark.streaming.ui.retainedBatches", "1000", "Completed batches that page and API remember, 1 to 100000.", |s, v| {
        within(v, 1, 100_000, "a whole number from 1 to 100000").map(|n| s.retained_batches = n as usize)
    }),
    known(
        "topic.missing.timeout",
        "5m",
        "How long a job waits for a topic that was there when it began and is missing now; `0s` fails at once.",
        |s, v| duration(v).map(|d| s.topic_missing_timeout = d),
    ),
];

/// Names of Spark without an effect here, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("spark.streaming.clock", "the clock is not pluggable"),
    ("spark.streaming.concurrentJobs", "batches of a job run one after another; partitions of a batch run at the same time"),
    ("spark.streaming.driver.writeAheadLog.allowBatching", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.driver.writeAheadLog.batchingTimeout", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.driver.writeAheadLog.class", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.driver.writeAheadLog.closeFileAfterWrite", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.driver.writeAheadLog.maxFailures", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.driver.writeAheadLog.rollingIntervalSecs", "there is no driver; batch definitions are in the checkpoint"),
    ("spark.streaming.gracefulStopTimeout", "`shutdown.deadline` bounds every stop"),
    ("spark.streaming.kafka.allowNonConsecutiveOffsets", "always allowed"),
    ("spark.streaming.kafka.consumer.cache.enabled", "connections are kept per broker, not per partition"),
    ("spark.streaming.kafka.consumer.cache.initialCapacity", "connections are kept per broker, not per partition"),
    ("spark.streaming.kafka.consumer.cache.loadFactor", "connections are kept per broker, not per partition"),
    ("spark.streaming.kafka.consumer.cache.maxCapacity", "connections are kept per broker, not per partition"),
    ("spark.streaming.kafka.consumer.poll.ms", "a batch waits for its broker as long as the broker is away"),
    ("spark.streaming.listeners", "classes of the JVM cannot be loaded; the page, /api/v1 and /metrics show the same events"),
    ("spark.streaming.manualClock.jump", "for Spark's own tests"),
    ("spark.streaming.receiver.writeAheadLog.class", "classes of the JVM cannot be loaded; there is one write-ahead log"),
    ("spark.streaming.sessionByKey.deltaChainThreshold", "state is not kept as chains of deltas"),
    ("spark.streaming.unpersist", "data of a batch is freed when no window needs it"),
];

impl JobSettings {
    /// Takes one setting. `Ok(Some(note))` when it is accepted without effect. Settings that do not begin with a known
    /// prefix (`batch.`, `checkpoint.`, `spark.`) are [`SettingError::Unknown`], so that callers can offer them elsewhere.
    pub fn apply(&mut self, key: &str, value: &str) -> Result<Option<Note>, SettingError> {
        let value = value.trim();
        if let Some(known) = KNOWN.iter().find(|known| known.name == key) {
            return match (known.set)(self, value) {
                Ok(()) => Ok(None),
                Err(expected) => Err(SettingError::Value { key: key.into(), value: without_passwords(value), expected }),
            };
        }
        if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(name, _)| *name == key) {
            return Ok(Some(Note(format!("`{key}` has no effect: {why}"))));
        }
        if key.starts_with("spark.") && !key.starts_with("spark.streaming.") {
            return Ok(Some(Note(format!("`{key}` has no effect: it configures Spark's own runtime"))));
        }
        let names = KNOWN.iter().map(|known| known.name).chain(WITHOUT_EFFECT.iter().map(|(name, _)| *name));
        Err(SettingError::Unknown { key: key.into(), nearest: nearest(key, names) })
    }

    /// Names with an effect, for listings.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|known| known.name)
    }
}

fn boolean(value: &str) -> Result<bool, &'static str> {
    value.to_ascii_lowercase().parse().map_err(|_| "`true` or `false`")
}

fn within(value: &str, min: u64, max: u64, expected: &'static str) -> Result<u64, &'static str> {
    value.parse().ok().filter(|n| (min..=max).contains(n)).ok_or(expected)
}

fn rate(value: &str) -> Result<Option<u64>, &'static str> {
    value.parse::<u64>().map(|n| (n > 0).then_some(n)).map_err(|_| "a whole number of records (0 = no limit)")
}

fn weight(value: &str) -> Result<f64, &'static str> {
    value.parse::<f64>().ok().filter(|w| w.is_finite() && *w >= 0.0).ok_or("a number of at least 0")
}

fn duration(value: &str) -> Result<Duration, &'static str> {
    humantime::parse_duration(value).map_err(|_| "a duration such as `500ms` or `5s`")
}

const SPARK_MS: &str = "a duration such as `200ms`, or a whole number of milliseconds (a block: 10 ms to 1 h)";
const SPARK_S: &str = "a duration above zero such as `60s`, or a whole number of seconds";

/// A duration; a bare number counts `unit`s, as in Spark.
fn spark_time(value: &str, unit: &str) -> Option<Duration> {
    let bare = value.bytes().all(|byte| byte.is_ascii_digit());
    humantime::parse_duration(&if bare { format!("{value}{unit}") } else { value.into() }).ok()
}

fn is_interval(duration: Duration) -> bool {
    (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&duration) && duration.subsec_nanos().is_multiple_of(1_000_000)
}

fn interval(value: &str) -> Result<Duration, &'static str> {
    const EXPECTED: &str = "a duration from 10ms to 1h in whole milliseconds, such as `500ms` or `5s`";
    let parsed = humantime::parse_duration(value).map_err(|_| EXPECTED)?;
    if is_interval(parsed) { Ok(parsed) } else { Err(EXPECTED) }
}

/// The name with the fewest edits, when it is near enough to be what was meant.
pub(crate) fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let key_lower = key.to_ascii_lowercase();
    let (distance, name) = names.map(|name| (edits(&key_lower, &name.to_ascii_lowercase()), name)).min()?;
    (distance <= key.len().max(name.len()) / 3).then(|| name.to_string())
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::OffsetPlace;

    #[test]
    fn sparks_names_are_taken() {
        let mut settings = JobSettings::default();
        for (key, value) in [
            ("batch.interval", "10 s"),
            ("spark.streaming.backpressure.enabled", "TRUE"),
            ("spark.streaming.backpressure.initialRate", "1000"),
            ("spark.streaming.backpressure.pid.minRate", "50"),
            ("spark.streaming.kafka.maxRatePerPartition", "200"),
            ("spark.streaming.ui.retainedBatches", "7"),
            ("failOnDataLoss", "false"),
            ("spark.streaming.blockInterval", "50"),
            ("spark.streaming.receiverRestartDelay", "1s"),
            ("spark.streaming.fileStream.minRememberDuration", "90"),
            ("spark.streaming.receiver.writeAheadLog.enable", "true"),
            ("offsets.store", "redis://h:6379/1"),
            ("offsets.store.previous", "kafka"),
        ] {
            assert_eq!(settings.apply(key, value), Ok(None), "{key}");
        }
        assert_eq!(settings.receiver.block_interval, Duration::from_millis(50));
        assert_eq!((settings.receiver.restart_delay, settings.file_remember), (Duration::from_secs(1), Duration::from_secs(90)));
        assert!(settings.receiver.write_ahead_log.enabled);
        assert_eq!(settings.batch_interval, Duration::from_secs(10));
        assert!(settings.backpressure.enabled);
        assert_eq!(settings.backpressure.initial_rate, Some(1000));
        assert_eq!(settings.backpressure.min_rate, 50.0);
        assert_eq!(settings.max_rate_per_partition, Some(200));
        assert_eq!(settings.retained_batches, 7);
        assert!(!settings.fail_on_data_loss);
        assert!(matches!(settings.offsets.store, OffsetPlace::Store(_)), "{:?}", settings.offsets);
        assert_eq!(settings.offsets.previous, Some(OffsetPlace::Kafka));
    }

    #[test]
    fn the_defaults_that_are_documented_are_those_that_hold() {
        let mut settings = JobSettings::default();
        for known in KNOWN {
            assert_eq!(settings.apply(known.name, known.default), Ok(None), "{}", known.name);
            assert_eq!(settings, JobSettings::default(), "{}", known.name);
        }
    }

    #[test]
    fn zero_means_no_limit_as_in_spark() {
        let mut settings = JobSettings { max_rate_per_partition: Some(5), ..JobSettings::default() };
        settings.apply("spark.streaming.kafka.maxRatePerPartition", "0").unwrap();
        assert_eq!(settings.max_rate_per_partition, None);
    }

    #[test]
    fn names_without_meaning_are_accepted_with_a_note() {
        let mut settings = JobSettings::default();
        for key in ["spark.serializer", "spark.master", "spark.streaming.unpersist", "spark.streaming.concurrentJobs"] {
            let note = settings.apply(key, "1").unwrap().unwrap();
            assert!(note.0.contains(key), "{note}");
        }
        assert_eq!(settings, JobSettings::default());
    }

    #[test]
    fn unknown_streaming_names_are_refused_with_the_nearest() {
        for (wrong, right) in [
            ("spark.streaming.backpresure.enabled", "spark.streaming.backpressure.enabled"),
            ("spark.streaming.kafka.maxRatePerPartitions", "spark.streaming.kafka.maxRatePerPartition"),
            ("batch.intervall", "batch.interval"),
            ("spark.streaming.Kafka.maxrateperpartition", "spark.streaming.kafka.maxRatePerPartition"),
        ] {
            let error = JobSettings::default().apply(wrong, "1").unwrap_err();
            assert_eq!(error, SettingError::Unknown { key: wrong.into(), nearest: Some(right.into()) });
        }
        let error = JobSettings::default().apply("nonsense", "1").unwrap_err();
        assert_eq!(error.to_string(), "unknown setting `nonsense`");
    }

    #[test]
    fn a_wrong_store_is_named_with_what_would_be_right_and_without_its_password() {
        let error = JobSettings::default().apply("offsets.store", "reddis://me:hunter2@h:1").unwrap_err().to_string();
        assert!(error.contains("`offsets.store`") && error.contains("redis://host:port/database"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn values_are_checked_and_the_error_says_what_fits() {
        for (key, value) in [
            ("batch.interval", "9ms"),
            ("batch.interval", "2h"),
            ("batch.interval", "soon"),
            ("batch.interval", "10500us"),
            ("spark.streaming.backpressure.enabled", "yes"),
            ("spark.streaming.backpressure.rateEstimator", "mine"),
            ("spark.streaming.backpressure.pid.minRate", "0"),
            ("spark.streaming.backpressure.pid.integral", "-0.1"),
            ("spark.streaming.kafka.maxRatePerPartition", "-1"),
            ("checkpoint.retained", "1"),
            ("receiver.bytes.max", "1024"),
            ("spark.streaming.blockInterval", "5ms"),
            ("spark.streaming.blockInterval", "soon"),
            ("spark.streaming.fileStream.minRememberDuration", "0"),
            ("spark.streaming.receiver.writeAheadLog.maxFailures", "0"),
            ("offsets.store", "zookeper://h:2181"),
            ("offsets.store", ""),
            ("offsets.store.previous", "checkpoint"),
        ] {
            let error = JobSettings::default().apply(key, value).unwrap_err();
            assert!(matches!(error, SettingError::Value { .. }), "{key}={value}: {error}");
            assert!(error.to_string().contains(key) && error.to_string().contains(value), "{error}");
        }
    }
}
