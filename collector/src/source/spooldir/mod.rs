//! `spooldir`: complete files that are put into a directory.
//!
//! | file | what it does |
//! |---|---|
//! | `engine.rs` | which file is next, positions, what becomes of a file at its end |
//! | `read.rs` | lines and blobs out of a file |
//! | `avro.rs`, `schema.rs` | records out of an Avro container file |

pub mod avro;
pub mod engine;
pub mod read;
pub mod schema;

#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio::runtime::Handle;

use self::avro::SchemaHeader;
use self::engine::{Batch, Complete, Engine, OpenReader, Order, Settings};
use self::read::{Blobs, LineSettings, Lines, OnError};
use super::charset::Charset;
use super::tail::{
    Committed, Found,
    identity::{Fingerprint, Inode, Remembered},
    store::Store,
};
use super::{Output, Setup, Source, Stop};
use crate::event::{Event, Ledger};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::java_regex::JavaRegex;

const BLOB: &str = "org.apache.flume.sink.solr.morphline.BlobDeserializer$Builder";

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("spooldir"),
    class: Some("org.apache.flume.source.SpoolDirectorySource"),
    doc: "Reads complete files that are put into a directory, one after the other, and renames or deletes each when its last event is delivered by the sinks (Flume: taken by the channel). A file that is changed after it was picked up, or cannot be read as text, is set aside and told, and the others go on (Flume: the source stops).",
    properties: &[
        Property::text("spoolDir", None, "The directory.").required(),
        Property::text("fileSuffix", Some(".COMPLETED"), "End of a completed file's name."),
        Property::choice("deletePolicy", &["never", "immediate"], "never", "`immediate`: a completed file is deleted."),
        Property::choice(
            "trackingPolicy",
            &["rename", "tracker_dir"],
            "rename",
            "How completed files are known: by their name, or by an empty file in `trackerDir`.",
        ),
        Property::text("trackerDir", Some(".flumespool"), "Where `tracker_dir` notes completed files; relative to `spoolDir`."),
        Property::boolean("fileHeader", "false", "Put the file's absolute path into a header."),
        Property::text("fileHeaderKey", Some("file"), "Name of that header."),
        Property::boolean("basenameHeader", "false", "Put the file's name into a header."),
        Property::text("basenameHeaderKey", Some("basename"), "Name of that header."),
        Property::text("includePattern", Some("^.*$"), "Java regular expression for the names of files to read."),
        Property::text("ignorePattern", Some("^$"), "Java regular expression for the names of files and directories to leave alone."),
        Property::choice(
            "consumeOrder",
            &["oldest", "youngest", "random"],
            "oldest",
            "Which file is next, by the time of its last change; files of the same moment by name.",
        ),
        Property::integer("pollDelay", 1, 86_400_000, Some("500"), "Milliseconds between looks into the directory."),
        Property::boolean("recursiveDirectorySearch", "false", "Read the files of subdirectories, too."),
        Property::integer("maxBackoff", 1, i64::MAX, Some("4000"), "Accepted; a full channel is waited for, not asked again and again."),
        Property::integer(
            "batchSize",
            1,
            1_000_000,
            Some("100"),
            "Events in one put, at least; up to `transactionCapacity` are put together.",
        ),
        Property::text("inputCharset", Some("UTF-8"), "How files are written."),
        Property::choice(
            "decodeErrorPolicy",
            &["fail", "replace", "ignore"],
            "fail",
            "Bytes that are no text in `inputCharset`: set the file aside, write U+FFFD for them, or leave them out.",
        ),
        Property::text(
            "deserializer",
            Some("LINE"),
            "`LINE`: a line is an event. `AVRO`: a record of an Avro file is an event, its header has the schema. `org.apache.flume.sink.solr.morphline.BlobDeserializer$Builder`: a file is an event.",
        ),
        Property::integer(
            "deserializer.maxLineLength",
            1,
            67_108_864,
            Some("2048"),
            "LINE: characters after which the rest of a line becomes the next event.",
        ),
        Property::text("deserializer.outputCharset", Some("UTF-8"), "LINE: how bodies are written."),
        Property::choice(
            "deserializer.schemaType",
            &["hash", "literal"],
            "hash",
            "AVRO: whether the header `flume.avro.schema.hash` has the schema's fingerprint, or `flume.avro.schema.literal` the schema.",
        ),
        Property::integer(
            "deserializer.maxBlobLength",
            1,
            2_147_483_647,
            Some("100000000"),
            "BlobDeserializer: bytes after which the rest of a file becomes the next event.",
        ),
    ],
    deprecated: &[("bufferMaxLineLength", "deserializer.maxLineLength"), ("bufferMaxLines", "")],
    misspelt: &[
        ("directory", "spoolDir"),
        ("spooldir", "spoolDir"),
        ("maxLineLength", "deserializer.maxLineLength"),
        ("deserializer.maxBlobLength.", "deserializer.maxBlobLength"),
    ],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut refuse = |key: &str, what: String, remedy: &str| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("wrong-value", what).maybe_at(place).key(format!("{}.{key}", component.name));
        findings.push(finding.flume("drops the source").remedy(remedy));
    };
    for key in ["includePattern", "ignorePattern"] {
        if let Err(error) = JavaRegex::whole(component.text(key)) {
            refuse(key, error.to_string(), "write a Java regular expression for the whole file name");
        }
    }
    for key in ["inputCharset", "deserializer.outputCharset"] {
        if let Some(fault) = Charset::fault(component.text(key)) {
            refuse(key, fault, "write UTF-8, ISO-8859-1, US-ASCII, windows-1252, GBK or the like, or convert the files with iconv");
        }
    }
    if deserializer(component).is_none() {
        let known = format!("known here: LINE, AVRO, {BLOB}");
        refuse("deserializer", format!("there is no deserializer `{}`", component.text("deserializer")), &known);
    }
    if component.text("fileSuffix").is_empty() && component.text("deletePolicy").trim().eq_ignore_ascii_case("never") {
        refuse(
            "fileSuffix",
            "without a suffix completed files cannot be told from others".into(),
            "write a suffix, or deletePolicy = immediate",
        );
    }
    findings
}

fn is_avro(component: &Component) -> bool {
    let name = component.text("deserializer").trim();
    name.eq_ignore_ascii_case("AVRO") || name == "org.apache.flume.serialization.AvroEventDeserializer$Builder"
}

fn deserializer(component: &Component) -> Option<OpenReader> {
    let name = component.text("deserializer").trim();
    let is = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
    if is(&["LINE", "org.apache.flume.serialization.LineDeserializer$Builder"]) {
        let on_error = match component.text("decodeErrorPolicy").trim().to_ascii_lowercase().as_str() {
            "replace" => OnError::Replace,
            "ignore" => OnError::Ignore,
            _ => OnError::Fail,
        };
        let settings = LineSettings {
            length_max: component.count("deserializer.maxLineLength").max(1),
            input: Charset::of(component.text("inputCharset"))?,
            output: Charset::of(component.text("deserializer.outputCharset"))?,
            on_error,
        };
        return Some(Box::new(move |file, from, length| Ok(Box::new(Lines::new(file, settings, from, length)))));
    }
    if is_avro(component) {
        let literal = component.text("deserializer.schemaType").trim().eq_ignore_ascii_case("literal");
        let header = if literal { SchemaHeader::Literal } else { SchemaHeader::Hash };
        return Some(Box::new(move |file, from, length| Ok(Box::new(avro::Records::open(file, from, length, header)?))));
    }
    if is(&[BLOB]) {
        let bytes_max = component.count("deserializer.maxBlobLength") as u64;
        return Some(Box::new(move |file, at, length| Ok(Box::new(Blobs { file, at, length, bytes_max }))));
    }
    None
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    let directory = std::path::absolute(component.text("spoolDir")).context("spoolDir")?;
    let is = |key: &str, value: &str| component.text(key).trim().eq_ignore_ascii_case(value);
    let complete = if is("deletePolicy", "immediate") {
        Complete::Delete
    } else if is("trackingPolicy", "tracker_dir") {
        Complete::Track(directory.join(Path::new(component.text("trackerDir"))))
    } else {
        Complete::Rename
    };
    let order = match component.text("consumeOrder").trim().to_ascii_lowercase().as_str() {
        "youngest" => Order::Youngest,
        "random" => Order::Random,
        _ => Order::Oldest,
    };
    let header = |wanted: &str, name: &str| component.boolean(wanted).then(|| component.text(name).to_owned());
    Ok(Box::new(SpoolDir {
        name: component.name.clone(),
        state_dir: setup.state_dir,
        committed: setup.committed,
        // Positions in Avro files count records here and bytes there.
        flume_meta: (!is_avro(component)).then(|| directory.join(component.text("trackerDir")).join(".flumespool-main.meta")),
        settings: Settings {
            directory,
            recursive: component.boolean("recursiveDirectorySearch"),
            suffix: component.text("fileSuffix").to_owned(),
            include: JavaRegex::whole(component.text("includePattern"))?,
            ignore: JavaRegex::whole(component.text("ignorePattern"))?,
            order,
            complete,
            path_header: header("fileHeader", "fileHeaderKey"),
            name_header: header("basenameHeader", "basenameHeaderKey"),
            poll: component.millis("pollDelay"),
            open: deserializer(component).context("deserializer")?,
            strict: setup.strict,
        },
    }))
}

struct SpoolDir {
    name: String,
    state_dir: PathBuf,
    committed: Option<Committed>,
    /// Where Flume notes how far it is in which file.
    flume_meta: Option<PathBuf>,
    settings: Settings,
}

/// Bytes of bodies in one put.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// How often delivered positions are written to disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(3);
/// While read files wait to be delivered.
const BUSY_LOOK: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

#[async_trait]
impl Source for SpoolDir {
    async fn run(mut self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let mut known = Found::default();
        let mut transactional = false;
        if let Some(committed) = &mut self.committed {
            transactional = true;
            // The sink's transactions decide where reading goes on; without its word events could be repeated.
            tokio::select! {
                found = committed.wait_for(Option::is_some) => known = found.context("the transactional sink ended")?.as_deref().cloned().unwrap_or_default(),
                () = stop.begin.cancelled() => return Ok(()),
            }
        }
        let handle = Handle::current();
        // A thread of its own: files are read and synced in blocking calls.
        tokio::task::spawn_blocking(move || {
            let store =
                Store::open(&self.state_dir, &self.name).with_context(|| format!("state directory {}", self.state_dir.display()))?;
            let ledger = Arc::new(Ledger::default());
            let forgotten = transactional.then_some(known.forgotten);
            let state = (self.state_dir.as_path(), self.name.as_str());
            let poll = self.settings.poll;
            if store.saved().is_none() && known.positions.is_empty() {
                known.positions.extend(self.flume_meta.as_deref().and_then(from_flume));
            }
            let engine = Engine::new(self.settings, store, state, known.positions, forgotten, ledger.clone())?;
            Spool { engine, ledger, poll, out, stop, handle }.run()
        })
        .await
        .context("the spooling thread panicked")?
    }
}

/// What Flume was reading when this source begins for the first time.
fn from_flume(meta: &Path) -> Option<Remembered> {
    // It is empty when Flume was between two files.
    let length = std::fs::metadata(meta).ok()?.len();
    let found = if length == 0 { return None } else { avro::flume_position(meta) };
    match found {
        Ok((path, offset)) => {
            let path = std::path::absolute(path).ok()?;
            let now = std::fs::metadata(&path).ok().filter(|now| now.len() >= offset)?;
            tracing::info!(file = %path.display(), offset, "going on from Flume's position");
            let Inode { device, number } = Inode::from(&now);
            Some(Remembered { id: rand::random(), path, dev: device, inode: number, fingerprint: Fingerprint::default(), offset })
        }
        Err(error) => {
            tracing::warn!(file = %meta.display(), %error, "Flume's position cannot be read; its file is read from the beginning");
            None
        }
    }
}

struct Spool {
    engine: Engine,
    ledger: Arc<Ledger>,
    poll: Duration,
    out: Output,
    stop: Stop,
    handle: Handle,
}

impl Spool {
    fn run(mut self) -> anyhow::Result<()> {
        let mut told = false;
        while let Err(error) = self.engine.check_directory() {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(source = self.out.name(), %error, "cannot spool; waiting until it can");
            }
            self.out.trouble(Some(error.to_string()));
            if self.sleep(RETRY) {
                return Ok(());
            }
        }
        let mut saved_at = Instant::now();
        while !self.stop.begin.is_cancelled() {
            let mut read = self.engine.next_batch(self.out.batch_max(), BATCH_BYTES_MAX);
            if saved_at.elapsed() >= SAVE_INTERVAL && read.is_ok() {
                read = self.engine.save().map_err(Into::into).and(read);
                saved_at = Instant::now();
            }
            self.out.counters.read_failures.add(self.engine.take_faults());
            let read = match read {
                Ok(read) => read,
                // A full disk, most likely: it may have room again.
                Err(error) if error.is::<std::io::Error>() => {
                    self.out.counters.read_failures.add(1);
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!(source = self.out.name(), %error, "cannot go on; trying again until it works");
                    }
                    self.out.trouble(Some(error.to_string()));
                    self.sleep(RETRY);
                    continue;
                }
                Err(error) => return Err(error),
            };
            told = false;
            self.out.trouble(self.engine.in_trouble());
            match read {
                Some(batch) if !self.deliver(&batch) => break,
                Some(_) => {}
                None => drop(self.sleep(if self.engine.busy() { BUSY_LOOK.min(self.poll) } else { self.poll })),
            }
        }
        // What was given out is delivered by the sinks; what they do not manage in time is read again after the next start.
        self.handle.block_on(async {
            tokio::select! {
                () = self.ledger.settled() => {}
                () = self.stop.abandon.cancelled() => {}
            }
        });
        self.engine.complete()?;
        self.engine.save().context("positions cannot be saved")
    }

    /// True when told to stop.
    fn sleep(&self, time: Duration) -> bool {
        self.handle.block_on(async { tokio::time::timeout(time, self.stop.begin.cancelled()).await.is_ok() })
    }

    /// Gives the events to the channels; false when told to stop.
    fn deliver(&self, batch: &Batch) -> bool {
        let (events, bytes) = (batch.pieces.len(), batch.pieces.iter().map(|piece| piece.body.len()).sum());
        let span = self.out.read_span(events, bytes);
        let trace = span.as_ref().and_then(service_kit::telemetry::traceparent);
        let origin = self.ledger.open(&batch.file, batch.mark, events * self.out.copies(), trace);
        let event = |piece: &read::Piece| Event {
            headers: batch.headers.clone(),
            body: piece.body.clone(),
            end: piece.end,
            origin: Some(origin.clone()),
            number: 0,
        };
        let events: Vec<Event> = batch.pieces.iter().map(event).collect();
        let delivered = self.handle.block_on(async {
            tokio::select! {
                biased;
                () = self.out.deliver(events) => true,
                // Not accepted by the channel, so not delivered: read again after the next start.
                () = self.stop.begin.cancelled() => false,
            }
        });
        if !delivered {
            self.ledger.withdraw();
        }
        delivered
    }
}
