//! `file_roll`: events in files of one directory, a new one every so often.
//!
//! As in Flume a file has its name from the start. Here it holds whole events and is synced before a take is committed; a
//! torn end that a kill leaves is cut at the next start. A file is made with its first event, so there are no empty ones.

use std::time::Duration;

use super::dead_letter::DeadLetters;
use super::hdfs::files::{Naming, Shaping};
use super::hdfs::format::FileFormat;
use super::hdfs::store::Root;
use super::hdfs::{HoldBounds, RolledFiles, Where};
use super::{Setup, Sink};
use crate::counters::unix_ms;
use crate::escape::Escapes;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::serializer::{self, Format};

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("file_roll"),
    class: Some("org.apache.flume.sink.RollingFileSink"),
    doc: "Writes events into files of one directory, a new one every so often. What is committed is synced; a torn end that a \
          kill leaves is cut at the next start.",
    properties: &[
        Property::text("sink.directory", None, "Directory of the files; made if it is not there.").required(),
        Property::integer("sink.rollInterval", 0, i32::MAX as i64, Some("30"), "Seconds after which a new file is begun; 0 is never."),
        Property::integer("sink.batchSize", 1, 1_000_000, Some("100"), "Events of one take, written and synced together."),
        Property::text(
            "sink.pathManager",
            Some("DEFAULT"),
            "DEFAULT names files by the start and a number, ROLLTIME by the time of each roll.",
        ),
        Property::text("sink.pathManager.prefix", None, "Begin of the file names."),
        Property::text("sink.pathManager.extension", None, "End of the file names, without its dot."),
        serializer::serializer("sink.serializer"),
        serializer::append_newline("sink.serializer.appendNewline"),
        serializer::sync_interval_bytes("sink.serializer.syncIntervalBytes"),
        serializer::compression_codec("sink.serializer.compressionCodec"),
        Property::boolean("sink.fsync", "true", "Sync to the disk before a take is committed. Flume never does.").own(),
    ],
    deprecated: &[],
    misspelt: &[
        ("directory", "sink.directory"),
        ("rollInterval", "sink.rollInterval"),
        ("batchSize", "sink.batchSize"),
        ("serializer", "sink.serializer"),
        ("sink.prefix", "sink.pathManager.prefix"),
        ("sink.extension", "sink.pathManager.extension"),
    ],
    adopt: adopts_nothing,
    batch: Some("sink.batchSize"),
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let path_manager = naming(component).err().map(|fault| {
        let place = component.settings.get("sink.pathManager").and_then(|setting| setting.place.as_ref());
        Finding::error("wrong-value", fault).maybe_at(place).key(format!("{}.sink.pathManager", component.name))
    });
    path_manager.into_iter().chain(Format::review(component, "sink.serializer")).collect()
}

fn naming(component: &Component) -> Result<Naming, String> {
    const PACKAGE: &str = "org.apache.flume.formatter.output.";
    let name = component.text("sink.pathManager").trim();
    let class = name.strip_prefix(PACKAGE).map(|class| class.strip_suffix("$Builder").unwrap_or(class));
    match (name.to_ascii_uppercase().as_str(), class) {
        ("DEFAULT", _) | (_, Some("DefaultPathManager")) => Ok(Naming::Series),
        ("ROLLTIME", _) | (_, Some("RollTimePathManager")) => Ok(Naming::RollTime),
        _ => Err(format!("`{name}` is neither DEFAULT nor ROLLTIME")),
    }
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let format = Format::of(component, "sink.serializer").map_err(|(key, fault)| anyhow::anyhow!("{key}: {fault}"))?;
    let naming = naming(component).map_err(|fault| anyhow::anyhow!("sink.pathManager: {fault}"))?;
    let prefix = component.text("sink.pathManager.prefix");
    let name = match naming {
        Naming::Series => format!("{prefix}{}", unix_ms()),
        Naming::RollTime | Naming::Stamped => prefix.to_owned(),
    };
    let extension = component.set("sink.pathManager.extension");
    let shaping = Shaping {
        format: FileFormat::Stream(format),
        naming,
        suffix: extension.map(|extension| format!(".{extension}")).unwrap_or_default(),
        in_use_prefix: String::new(),
        in_use_suffix: String::new(),
        roll_interval: Duration::from_secs(u64::try_from(component.integer("sink.rollInterval")).unwrap_or_default()),
        roll_bytes: 0,
        roll_events: 0,
        idle: Duration::ZERO,
        files_max: 1,
        fsync: component.boolean("sink.fsync"),
        retry_interval: Duration::ZERO,
        close_tries: 1,
        call_timeout: Duration::ZERO,
    };
    let to = Where { root: Root::Local, directory: Escapes::plain(component.text("sink.directory")), name: Escapes::plain(&name) };
    Ok(Box::new(RolledFiles {
        to,
        store: None,
        shaping,
        batch: component.count("sink.batchSize"),
        bounds: HoldBounds { events: usize::MAX, bytes: usize::MAX, time: Duration::MAX },
        dead: DeadLetters::of(component, &setup.state_dir),
        state_dir: setup.state_dir,
    }))
}
