//! The properties of the HDFS sink, and what they come to.

use std::time::Duration;

use super::codec::Codec;
use super::files::{Naming, Shaping};
use super::format::FileFormat;
use super::store::{self, Root};
use crate::escape::{Escapes, Round, TimeFrom, TimeRule, Zone};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::serializer::{self, Format};
use crate::sink::dead_letter::DIRECTORY;

const FOREVER: i64 = i32::MAX as i64;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("hdfs"),
    class: Some("org.apache.flume.sink.hdfs.HDFSEventSink"),
    doc: "Writes events into files in HDFS, S3 or on this machine's disk (hdfs://, s3a://, file://), rolled by time, size and count. \
          A file has its final name only when it is complete. On this machine's disk a take is committed when its events are \
          synced; HDFS and S3 show a file when it is closed, so there takes are held until then and given back when it fails.",
    properties: &[
        Property::text("hdfs.path", None, "Directory, with escapes: hdfs://namenode/logs/%{host}/%Y-%m-%d.").required(),
        Property::text("hdfs.filePrefix", Some("FlumeData"), "Begin of the file names; may hold escapes."),
        Property::text("hdfs.fileSuffix", None, "End of the file names, with its dot. Without it the codec's."),
        Property::text("hdfs.inUsePrefix", None, "Begin of a file's name while it is written, on this machine's disk."),
        Property::text("hdfs.inUseSuffix", Some(".tmp"), "End of a file's name while it is written, on this machine's disk."),
        Property::boolean("hdfs.emptyInUseSuffix", "false", "No such end; `hdfs.inUseSuffix` does not count."),
        Property::integer("hdfs.rollInterval", 0, FOREVER, Some("30"), "Seconds after which a file is closed; 0 is never."),
        Property::integer("hdfs.rollSize", 0, i64::MAX, Some("1024"), "Bytes of bodies after which a file is closed; 0 is never."),
        Property::integer("hdfs.rollCount", 0, i64::MAX, Some("10"), "Events after which a file is closed; 0 is never."),
        Property::integer("hdfs.idleTimeout", 0, FOREVER, Some("0"), "Seconds without an event after which a file is closed; 0 is never."),
        Property::integer("hdfs.batchSize", 1, 1_000_000, Some("100"), "Events of one take."),
        Property::text(
            "hdfs.codeC",
            None,
            "Compression of CompressedStream and SequenceFile: gzip, snappy, zstandard, deflate. lzo, lz4 and bzip2 are not built in.",
        ),
        Property::choice("hdfs.fileType", &["SequenceFile", "DataStream", "CompressedStream"], "SequenceFile", "What a file is."),
        Property::choice("hdfs.writeFormat", &["Writable", "Text"], "Writable", "Values of a SequenceFile."),
        Property::integer("hdfs.maxOpenFiles", 1, 100_000, Some("5000"), "Files open at a time; one more closes the one longest unused."),
        Property::integer("hdfs.callTimeout", 1, 3_600_000, Some("30000"), "Milliseconds to wait for an answer of HDFS or S3."),
        Property::integer(
            "hdfs.retryInterval",
            0,
            FOREVER,
            Some("180"),
            "Seconds until a closed file whose name could not be given is tried again, on this machine's disk; 0 is once.",
        ),
        Property::integer(
            "hdfs.closeTries",
            0,
            FOREVER,
            Some("0"),
            "How often that is tried; 0 is until it works. The next start tries again.",
        ),
        Property::boolean("hdfs.round", "false", "Round the time in escapes down."),
        Property::integer("hdfs.roundValue", 1, 60, Some("1"), "To the highest multiple of this, …"),
        Property::choice("hdfs.roundUnit", &["second", "minute", "hour"], "second", "… in this unit."),
        Property::text("hdfs.timeZone", None, "Zone of the time in escapes: Europe/Berlin, GMT+8. Without it this machine's."),
        Property::boolean("hdfs.useLocalTimeStamp", "false", "The present instead of the event's header `timestamp`."),
        serializer::serializer("serializer"),
        serializer::append_newline("serializer.appendNewline"),
        serializer::sync_interval_bytes("serializer.syncIntervalBytes"),
        serializer::compression_codec("serializer.compressionCodec"),
        Property::text("hdfs.kerberosPrincipal", None, "Not read: the process's own ticket (kinit) counts."),
        Property::text("hdfs.kerberosKeytab", None, "Not read: the process's own ticket (kinit -kt) counts."),
        Property::boolean("hdfs.fsync", "true", "Sync to this machine's disk before a take is committed.").own(),
        Property::text("hdfs.defaultFS", None, "Where a path without a scheme leads. Without it this machine's disk.").own(),
        Property::text("hdfs.store.*", None, "Settings of the store: S3's (`aws_endpoint`, `aws_region`, …), Hadoop's (`dfs.…`).").own(),
        Property::integer(
            "hdfs.hold.events",
            1,
            100_000_000,
            Some("1000000"),
            "HDFS, S3: events held at most; then the files are closed. Never more than half of the channel's capacity.",
        )
        .own(),
        Property::integer("hdfs.hold.bytes", 1, i64::MAX, Some("134217728"), "HDFS, S3: their bytes at most.").own(),
        Property::integer("hdfs.hold.time", 1, 86_400, Some("300"), "HDFS, S3: seconds an event is held at most.").own(),
        DIRECTORY,
    ],
    deprecated: &[
        ("hdfs.minBlockReplicas", ""),
        ("hdfs.threadsPoolSize", ""),
        ("hdfs.rollTimerPoolSize", ""),
        ("hdfs.useRawLocalFileSystem", ""),
    ],
    misspelt: &[
        ("path", "hdfs.path"),
        ("hdfs.codec", "hdfs.codeC"),
        ("hdfs.filetype", "hdfs.fileType"),
        ("hdfs.writeformat", "hdfs.writeFormat"),
        ("hdfs.serializer", "serializer"),
        ("hdfs.useLocalTimestamp", "hdfs.useLocalTimeStamp"),
        ("hdfs.rollinterval", "hdfs.rollInterval"),
        ("hdfs.rollsize", "hdfs.rollSize"),
        ("hdfs.rollcount", "hdfs.rollCount"),
        ("hdfs.batchsize", "hdfs.batchSize"),
        ("hdfs.timezone", "hdfs.timeZone"),
    ],
    adopt: adopts_nothing,
    batch: Some("hdfs.batchSize"),
    review,
};

/// Where files go and what they are called.
pub struct Where {
    pub root: Root,
    pub directory: Escapes,
    pub name: Escapes,
}

/// What is held until a store shows it.
#[derive(Clone, Copy)]
pub struct HoldBounds {
    pub events: usize,
    pub bytes: usize,
    pub time: Duration,
}

/// A key and its fault.
type Fault = (&'static str, String);

pub(super) fn destination(component: &Component) -> Result<Where, Fault> {
    let (root, below) =
        store::split(component.text("hdfs.path"), component.text("hdfs.defaultFS")).map_err(|fault| ("hdfs.path", fault))?;
    let time = time_rule(component)?;
    let directory = Escapes::parse(&below, time.clone()).map_err(|fault| ("hdfs.path", fault))?;
    let name = Escapes::parse(component.text("hdfs.filePrefix"), time).map_err(|fault| ("hdfs.filePrefix", fault))?;
    Ok(Where { root, directory, name })
}

/// The key whose time comes from the events' header `timestamp`, if there is one.
pub fn needs_timestamp(component: &Component) -> Option<&'static str> {
    if !std::ptr::eq(component.kind, &KIND) {
        return None;
    }
    let to = destination(component).ok()?;
    let needs = |of: &Escapes, key| of.needs_timestamp().then_some(key);
    needs(&to.directory, "hdfs.path").or_else(|| needs(&to.name, "hdfs.filePrefix"))
}

/// The path and the prefix of the file that an event would be written to at `now`.
pub fn path_of(component: &Component, event: &Event, now: i64) -> Result<String, String> {
    let part = |key: &str| {
        let time = time_rule(component).map_err(|(_, fault)| fault)?;
        Escapes::parse(component.text(key), time)?.expand(event, now).map(std::borrow::Cow::into_owned)
    };
    Ok(format!("{}/{}", part("hdfs.path")?.trim_end_matches('/'), part("hdfs.filePrefix")?))
}

fn time_rule(component: &Component) -> Result<TimeRule, Fault> {
    let zone = match component.set("hdfs.timeZone") {
        Some(name) => Zone::parse(name).ok_or_else(|| ("hdfs.timeZone", format!("`{name}` is no time zone")))?,
        None => Zone::Local,
    };
    let value = u32::try_from(component.integer("hdfs.roundValue")).unwrap_or(1);
    let round = Round::parse(value, component.text("hdfs.roundUnit")).map_err(|fault| ("hdfs.roundValue", fault))?;
    let from = if component.boolean("hdfs.useLocalTimeStamp") { TimeFrom::Now } else { TimeFrom::Header };
    Ok(TimeRule { zone, round: component.boolean("hdfs.round").then_some(round), from })
}

pub(super) fn format(component: &Component) -> Result<FileFormat, Fault> {
    let codec = match component.set("hdfs.codeC") {
        Some(name) => Codec::parse(name).map_err(|fault| ("hdfs.codeC", fault))?,
        None => None,
    };
    let serializer = || Format::of(component, "serializer").map_err(|(_, fault)| ("serializer", fault));
    match component.text("hdfs.fileType").trim().to_ascii_lowercase().as_str() {
        "datastream" if component.set("hdfs.codeC").is_some() => {
            Err(("hdfs.codeC", "a DataStream is not compressed; write hdfs.fileType = CompressedStream, or remove the codec".into()))
        }
        "datastream" => serializer().map(FileFormat::Stream),
        "compressedstream" => match codec {
            Some(codec) => Ok(FileFormat::Compressed(serializer()?, codec)),
            None => Err(("hdfs.codeC", "a CompressedStream needs a codec: gzip, snappy, zstandard, deflate".into())),
        },
        _ => Ok(FileFormat::Sequence { text: component.text("hdfs.writeFormat").trim().eq_ignore_ascii_case("text"), codec }),
    }
}

pub(super) fn shaping(component: &Component, format: FileFormat) -> Shaping {
    let seconds = |key: &str| Duration::from_secs(u64::try_from(component.integer(key)).unwrap_or_default());
    let number = |key: &str| u64::try_from(component.integer(key)).unwrap_or_default();
    let in_use_suffix = if component.boolean("hdfs.emptyInUseSuffix") { "" } else { component.text("hdfs.inUseSuffix") };
    Shaping {
        format,
        naming: Naming::Stamped,
        suffix: component.text("hdfs.fileSuffix").to_owned(),
        in_use_prefix: component.text("hdfs.inUsePrefix").to_owned(),
        in_use_suffix: in_use_suffix.to_owned(),
        roll_interval: seconds("hdfs.rollInterval"),
        roll_bytes: number("hdfs.rollSize"),
        roll_events: number("hdfs.rollCount"),
        idle: seconds("hdfs.idleTimeout"),
        files_max: component.count("hdfs.maxOpenFiles"),
        fsync: component.boolean("hdfs.fsync"),
        retry_interval: seconds("hdfs.retryInterval"),
        close_tries: Some(number("hdfs.closeTries")).filter(|tries| *tries > 0).unwrap_or(u64::MAX),
        call_timeout: component.millis("hdfs.callTimeout"),
    }
}

pub(super) fn hold(component: &Component) -> HoldBounds {
    HoldBounds {
        events: component.count("hdfs.hold.events"),
        bytes: component.count("hdfs.hold.bytes"),
        time: Duration::from_secs(u64::try_from(component.integer("hdfs.hold.time")).unwrap_or_default()),
    }
}

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let place = |finding: Finding, key: &str| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        finding.maybe_at(place).key(format!("{}.{key}", component.name))
    };
    let error = |(key, fault): Fault| place(Finding::error("wrong-value", fault), key);
    let mut findings = Vec::new();
    if component.set("hdfs.path").is_some() {
        match destination(component) {
            Ok(to) => {
                if to.root == Root::Local && !component.text("hdfs.path").trim().starts_with("file:") {
                    findings.push(
                        place(Finding::warning("no-scheme", "a path without a scheme is on this machine's disk"), "hdfs.path")
                            .flume("takes fs.defaultFS of core-site.xml")
                            .remedy("write hdfs://namenode/… or file:///…, or set hdfs.defaultFS"),
                    );
                }
                if !to.directory.vary() && !to.name.vary() && component.boolean("hdfs.round") {
                    findings.push(place(Finding::note("no-effect", "neither path nor prefix hold a time to round"), "hdfs.round"));
                }
            }
            Err(fault) => findings.push(error(fault)),
        }
    }
    match format(component) {
        Err(fault) => findings.push(error(fault).flume("drops the sink")),
        Ok(FileFormat::Sequence { .. }) if component.set("serializer").is_some() => {
            findings.push(place(Finding::note("no-effect", "a SequenceFile has hdfs.writeFormat instead of a serializer"), "serializer"));
        }
        Ok(_) => {}
    }
    for key in ["hdfs.kerberosPrincipal", "hdfs.kerberosKeytab"] {
        if component.set(key).is_some() {
            findings.push(
                place(Finding::warning("no-effect", "not read: the ticket of the process's user counts"), key)
                    .flume("logs in with it")
                    .remedy("keep a ticket with kinit -kt KEYTAB PRINCIPAL"),
            );
        }
    }
    findings
}
