//! The file channel: events on disk, safe when `put` returns, in segments that are removed when all of their events are delivered.
//!
//! | module | question it answers |
//! |---|---|
//! | [`format`] | what a segment's bytes mean |
//! | [`acks`] | which events are gone |
//! | [`recovery`] | what a start makes of what it finds |
//! | [`log`] | how segments are written and read |
//! | `queue` | what is in memory, what only on disk |
//! | `writer` | what is written, and when |
//! | [`channel`] | puts and takes |
//! | [`disk`] | what the disk is asked for |
//!
//! Promise: what a put has returned for survives a kill and a power cut, in its order; of a tailed file, what was acknowledged
//! to its source, which reads on in the meantime. After a crash events may be delivered
//! again whose delivery was not noted; a transactional sink skips them. What a tailed file's source reads again after a crash
//! and is here already is not taken twice. A failed sync is never tried again: the segment is given up, the events of that
//! put go into a new one, and their source waits until they are safe there.

pub mod acks;
pub mod channel;
pub mod disk;
pub mod format;
pub mod log;
mod queue;
pub mod recovery;
mod writer;

#[cfg(test)]
mod faults;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use self::channel::FileChannel;
use self::disk::{RealDisk, Unusable};
use self::log::Place;
use super::{Channel, Setup};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role, shared::normal};
use crate::source::tail::store::file_name;

/// Accepted, and said to be without effect.
const IGNORED: &[(&str, &str)] = &[
    ("useDualCheckpoints", "the file of acknowledgements has two slots; without it events are only delivered again"),
    ("backupCheckpointDir", "the file of acknowledgements has two slots; without it events are only delivered again"),
    ("compressBackupCheckpoint", "there is no backup to compress"),
    ("use-log-replay-v1", "a start reads the last segment only"),
    ("use-fast-replay", "a start reads the last segment only"),
];

pub(super) const CHECKPOINT_DIR: Property = Property::text(
    "checkpointDir",
    None,
    "Directory for the note of what is delivered. Default: below the state directory (Flume: ~/.flume/file-channel/checkpoint).",
);
pub(super) const DATA_DIRS: Property = Property::text(
    "dataDirs",
    None,
    "Directories for the segments, separated by commas; segments take turns. Default: below the state directory (Flume: ~/.flume/file-channel/data).",
);
pub(super) const TRANSACTION_CAPACITY: Property =
    Property::integer("transactionCapacity", 1, 100_000_000, Some("10000"), "Events in one put or take. At most `capacity`.");
pub(super) const KEEP_ALIVE: Property = Property::integer(
    "keep-alive",
    0,
    86_400,
    Some("3"),
    "Seconds a put waits for room before the source is told that the channel is full.",
);
pub(super) const MAX_FILE_SIZE: Property = Property::integer(
    "maxFileSize",
    65_536,
    i64::MAX,
    Some("1623195647"),
    "Bytes of a segment. A new one is begun at 64 MiB at the latest, so that space is freed soon.",
);
pub(super) const MINIMUM_SPACE: Property = Property::integer(
    "minimumRequiredSpace",
    1_048_576,
    i64::MAX,
    Some("524288000"),
    "Bytes that stay free where the segments are; with less, puts wait. (Flume: takes wait, too.)",
);
pub(super) const CHECKPOINT_INTERVAL: Property = Property::integer(
    "checkpointInterval",
    1,
    86_400_000,
    Some("30000"),
    "Milliseconds between syncs of the note of what is delivered. A power cut repeats what was delivered since; a kill does not.",
);
pub(super) const CHECKPOINT_ON_CLOSE: Property = Property::boolean("checkpointOnClose", "true", "Sync that note at a clean stop.");
pub(super) const FSYNC: Property = Property::boolean(
    "fsyncPerTransaction",
    "true",
    "A put returns when it is on disk. `false`: when it is written, so that a power cut loses up to `fsyncInterval`.",
);
pub(super) const FSYNC_INTERVAL: Property =
    Property::integer("fsyncInterval", 1, 3600, Some("5"), "Seconds between syncs when `fsyncPerTransaction` is false.");
pub(super) const DUAL_CHECKPOINTS: Property =
    Property::boolean("useDualCheckpoints", "false", "Accepted: the note of what is delivered has two slots.");
pub(super) const BACKUP_DIR: Property = Property::text("backupCheckpointDir", None, "Accepted, as `useDualCheckpoints`.");
pub(super) const COMPRESS_BACKUP: Property = Property::boolean("compressBackupCheckpoint", "false", "Accepted, as `useDualCheckpoints`.");
pub(super) const REPLAY_V1: Property = Property::boolean("use-log-replay-v1", "false", "Accepted: a start reads the last segment only.");
pub(super) const FAST_REPLAY: Property = Property::boolean("use-fast-replay", "false", "Accepted: a start reads the last segment only.");
pub(super) const ENCRYPTION: Property = Property::text("encryption.*", None, "Refused: segments are not encrypted.");
pub(super) const MAX_BYTES: Property = Property::integer(
    "maxBytes",
    0,
    i64::MAX,
    Some("0"),
    "Bytes of all segments; with more, puts wait. 0: `capacity` and `minimumRequiredSpace` alone are the bounds.",
)
.own();
pub(super) const MEMORY_BYTES: Property = Property::integer(
    "memoryBytes",
    65_536,
    1_073_741_824,
    Some("4194304"),
    "Bytes of events kept in memory for the sinks; what is beyond is read from disk again.",
)
.own();

pub static KIND: Kind = Kind {
    role: Role::Channel,
    alias: Some("file"),
    class: Some("org.apache.flume.channel.file.FileChannel"),
    doc: "Events on disk: a put is safe when it returns, over a kill and a power cut. Puts that wait at the same time share a sync. A full disk makes sources wait.",
    properties: &[
        CHECKPOINT_DIR,
        DATA_DIRS,
        Property::integer(
            "capacity",
            1,
            i64::MAX,
            Some("1000000"),
            "Events the channel holds, those a sink has taken and not yet delivered included.",
        ),
        TRANSACTION_CAPACITY,
        KEEP_ALIVE,
        MAX_FILE_SIZE,
        MINIMUM_SPACE,
        CHECKPOINT_INTERVAL,
        CHECKPOINT_ON_CLOSE,
        FSYNC,
        FSYNC_INTERVAL,
        DUAL_CHECKPOINTS,
        BACKUP_DIR,
        COMPRESS_BACKUP,
        REPLAY_V1,
        FAST_REPLAY,
        ENCRYPTION,
        MAX_BYTES,
        MEMORY_BYTES,
    ],
    deprecated: &[],
    misspelt: &[
        ("checkpointdir", "checkpointDir"),
        ("dataDir", "dataDirs"),
        ("datadirs", "dataDirs"),
        ("keepAlive", "keep-alive"),
        ("keepalive", "keep-alive"),
        ("transactioncapacity", "transactionCapacity"),
        ("maxFilesize", "maxFileSize"),
    ],
    adopt: adopts_nothing,
    batch: None,
    review,
};

pub(super) fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let at = |key: &str| component.settings.get(key).and_then(|setting| setting.place.as_ref());
    let say = |level, code, key: &str, message: &str| {
        Finding::new(level, code, message).maybe_at(at(key)).key(format!("{}.{key}", component.name))
    };
    let mut told = Vec::new();
    if component.boolean("useDualCheckpoints") {
        let message = match component.set("backupCheckpointDir") {
            None => "there is no backupCheckpointDir",
            Some(backup) if component.set("checkpointDir").is_some_and(|first| first.trim() == backup.trim()) => {
                "both checkpoints are one directory"
            }
            Some(_) => "",
        };
        if !message.is_empty() {
            let finding = say(Level::Warning, "dual-checkpoint", "useDualCheckpoints", message).flume("drops the channel");
            told.push(finding.remedy("remove the line: it has no effect here"));
        }
    }
    for (key, why) in IGNORED.iter().filter(|(key, _)| component.set(key).is_some()) {
        told.push(say(Level::Note, "no-effect", key, &format!("accepted without effect: {why}")));
    }
    for key in ["checkpointDir", "dataDirs"].iter().filter(|key| component.set(key).is_none()) {
        let message = "kept below the state directory, one directory for each channel";
        told.push(say(Level::Note, "default-directory", key, message).flume("keeps all channels without one in ~/.flume/file-channel"));
    }
    if component.set(MAX_FILE_SIZE.name).is_some() && component.integer(MAX_FILE_SIZE.name) > FLUME_FILE_SIZE_MAX {
        let message = format!("more than {FLUME_FILE_SIZE_MAX} has no effect");
        let finding = say(Level::Note, "capped", MAX_FILE_SIZE.name, &message).flume("takes that much instead, whatever its guide says");
        told.push(finding.remedy("remove the line: a segment ends at 64 MiB at the latest"));
    }
    if let Some(key) = component.settings.keys().find(|key| key.starts_with("encryption.")) {
        let level = if strict { Level::Warning } else { Level::Error };
        let finding = say(level, "not-built", key, "segments are not encrypted");
        // Flume looks for both names when it reads the file.
        let whole =
            ["encryption.activeKey", "encryption.keyProvider", "encryption.cipherProvider"].iter().all(|key| component.set(key).is_some());
        let finding = finding.flume(if whole { "encrypts them" } else { "drops the channel" });
        told.push(finding.remedy("put the directories on an encrypted disk and remove the encryption lines"));
    }
    if !component.boolean("fsyncPerTransaction") {
        let message = "a put is not on disk when it returns: a power cut loses up to fsyncInterval";
        told.push(say(Level::Warning, "unsafe", "fsyncPerTransaction", message).remedy("remove the line; puts share syncs anyway"));
    }
    let data: Vec<&str> = directories(component.text("dataDirs")).collect();
    if component.set("dataDirs").is_some() && data.is_empty() {
        told.push(say(Level::Error, "wrong-value", "dataDirs", "there is no directory in it").remedy("name one, or remove the line"));
    }
    let all: Vec<PathBuf> = directories_of(component).map(|(_, directory)| directory).collect();
    if all.iter().enumerate().any(|(at, directory)| all[..at].contains(directory)) {
        let finding = say(Level::Error, "wrong-value", "dataDirs", "a directory is named twice").flume("fails when the channel starts");
        told.push(finding.remedy("give checkpointDir and each of dataDirs a directory of its own"));
    }
    told
}

fn directories(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|path| !path.is_empty())
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub events_max: usize,
    pub transaction_max: usize,
    pub bytes_max: usize,
    pub memory_bytes: usize,
    pub keep_alive: Duration,
    pub file_bytes_max: u64,
    /// Free bytes to leave.
    pub space_min: u64,
    pub checkpoint_interval: Duration,
    pub checkpoint_on_close: bool,
    pub sync_each: bool,
    pub sync_interval: Duration,
    /// What an earlier process put is known by its place in the file, and not put again. Only where all that came before it
    /// in the file was put here too.
    pub remembers: bool,
}

/// Flume's `maxFileSize` at most; its guide names 2146435071 as the default.
const FLUME_FILE_SIZE_MAX: i64 = 1_623_195_647;
/// Flume's segments are up to 1.6 GB, and not removed before they are through.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
const SEGMENT_BYTES_MIN: u64 = 64 << 10;

impl Limits {
    pub fn of(component: &Component) -> Self {
        let bytes = component.count("maxBytes");
        Self {
            events_max: component.count("capacity"),
            transaction_max: component.count("transactionCapacity"),
            bytes_max: if bytes == 0 { usize::MAX } else { bytes },
            memory_bytes: component.count("memoryBytes"),
            keep_alive: Duration::from_secs(component.count("keep-alive") as u64),
            file_bytes_max: component.count("maxFileSize") as u64,
            space_min: component.count("minimumRequiredSpace") as u64,
            checkpoint_interval: component.millis("checkpointInterval"),
            checkpoint_on_close: component.boolean("checkpointOnClose"),
            sync_each: component.boolean("fsyncPerTransaction"),
            sync_interval: Duration::from_secs(component.count("fsyncInterval") as u64),
            remembers: true,
        }
    }

    /// Small enough that a bound in bytes is many segments.
    pub fn segment_bytes_max(&self) -> u64 {
        let share = (self.bytes_max as u64 / 8).max(SEGMENT_BYTES_MIN);
        SEGMENT_BYTES_MAX.min(self.file_bytes_max).min(share)
    }
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Arc<dyn Channel>> {
    Ok(Arc::new(open(component, &setup, Limits::of(component))?))
}

/// Where the channel of this component is.
pub fn place(component: &Component, setup: &Setup) -> Place<RealDisk> {
    let own = || setup.state_dir.join("channels").join(file_name(&component.name));
    let data: Vec<PathBuf> = directories(component.text("dataDirs")).map(at_home).collect();
    Place {
        disk: RealDisk,
        checkpoint: component.set("checkpointDir").map_or_else(|| own().join("checkpoint"), at_home),
        data: if data.is_empty() { vec![own().join("data")] } else { data },
    }
}

/// Where Flume has its channel with the same lines.
pub fn flume_place(component: &Component) -> Place<RealDisk> {
    let data: Vec<PathBuf> = directories(component.text("dataDirs")).map(at_home).collect();
    Place {
        disk: RealDisk,
        checkpoint: at_home(component.set("checkpointDir").unwrap_or("~/.flume/file-channel/checkpoint")),
        data: if data.is_empty() { vec![at_home("~/.flume/file-channel/data")] } else { data },
    }
}

/// The directories that are written, each with its property, so that they can be compared.
pub(crate) fn directories_of(component: &Component) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let data = directories(component.text("dataDirs")).map(|directory| ("dataDirs", directory));
    component
        .set("checkpointDir")
        .map(|directory| ("checkpointDir", directory))
        .into_iter()
        .chain(data)
        .map(|(key, directory)| (key, normal(&at_home(directory))))
}

/// `~/…` is below the home directory, as Flume's own defaults are written.
fn at_home(path: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|_| path.starts_with("~/"));
    home.map_or_else(|| PathBuf::from(path.trim()), |home| PathBuf::from(home).join(path.trim_start_matches("~/").trim()))
}

pub(super) fn open(component: &Component, setup: &Setup, limits: Limits) -> anyhow::Result<FileChannel<RealDisk>> {
    FileChannel::open_locked(&component.name, place(component, setup), limits).map_err(|error| match error.downcast::<Unusable>() {
        Ok(unusable) => match component.settings.get(unusable.property).and_then(|setting| setting.place.as_ref()) {
            Some(place) => anyhow::anyhow!("{unusable} ({}:{})", place.file, place.line),
            None => unusable.into(),
        },
        Err(other) => other,
    })
}

#[cfg(test)]
mod settings {
    use super::*;
    use crate::flume_conf::component::Setting;

    #[test]
    fn what_there_is_to_say_about_settings() {
        for (settings, strict, expected) in [
            (&[("checkpointDir", "/c"), ("dataDirs", "/a,/b")][..], false, &[][..]),
            (&[], false, &[(Level::Note, "default-directory"), (Level::Note, "default-directory")]),
            (&[("checkpointDir", "/c"), ("dataDirs", "/a, /a")], false, &[(Level::Error, "wrong-value")]),
            (&[("checkpointDir", "/a"), ("dataDirs", "/b,/a")], false, &[(Level::Error, "wrong-value")]),
            (&[("checkpointDir", "/a"), ("dataDirs", "/b,/c/../a/")], false, &[(Level::Error, "wrong-value")]),
            (&[("checkpointDir", "/a"), ("dataDirs", " , ")], false, &[(Level::Error, "wrong-value")]),
            (&[("checkpointDir", "/c"), ("dataDirs", "/a"), ("use-fast-replay", "true")], false, &[(Level::Note, "no-effect")]),
            (&[("checkpointDir", "/c"), ("dataDirs", "/a"), ("fsyncPerTransaction", "false")], false, &[(Level::Warning, "unsafe")]),
            (&[("checkpointDir", "/c"), ("dataDirs", "/a"), ("encryption.activeKey", "k")], false, &[(Level::Error, "not-built")]),
            (&[("checkpointDir", "/c"), ("dataDirs", "/a"), ("encryption.activeKey", "k")], true, &[(Level::Warning, "not-built")]),
        ] {
            let mut component = Component::new(&KIND, "c", "file");
            let setting = |value: &str| Setting { value: value.to_owned(), place: None };
            component.settings = settings.iter().map(|(key, value)| ((*key).to_owned(), setting(value))).collect();
            let told: Vec<_> = review(&component, strict).iter().map(|finding| (finding.level, finding.code)).collect();
            assert_eq!(told, expected, "{settings:?}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told_with_its_property_and_line() {
        let state = tempfile::tempdir().unwrap();
        let mut component = Component::new(&KIND, "c", "file");
        let place = crate::flume_conf::Place { file: "a.conf".into(), line: 7 };
        for (key, path) in [("checkpointDir", "/proc/cp"), ("dataDirs", "/proc/d")] {
            component.settings = [(key.to_owned(), Setting { value: path.to_owned(), place: Some(place.clone()) })].into();
            let error = build(&component, Setup { state_dir: state.path().to_owned() }).err().unwrap().to_string();
            assert!(error.starts_with(&format!("{key}: {path}: ")) && error.ends_with("may write (a.conf:7)"), "{error}");
        }
    }

    #[test]
    fn segments_are_small_enough_to_free_space_soon() {
        let mut component = Component::new(&KIND, "c", "file");
        for (key, value, bytes) in [
            ("capacity", "1", 64 << 20),
            ("maxFileSize", "1000000", 1_000_000),
            ("maxBytes", "8000000", 1_000_000),
            ("maxBytes", "1", 65_536),
        ] {
            component.settings = [(key.to_owned(), Setting { value: value.to_owned(), place: None })].into();
            assert_eq!(Limits::of(&component).segment_bytes_max(), bytes, "{key} {value}");
        }
    }
}
