//! File sink: rows become lines of files in a folder or below a URL; each batch once.
//!
//! | option | default | |
//! |---|---|---|
//! | `path` | | a folder, or `file:///…`, `hdfs://host[:port]/…`, `s3://bucket/…` |
//! | `format` | | `json` (an object per line), `csv`, `raw` (the only column, STRING or BYTES, as a line; NULL is left out) |
//! | `sink.rolling-policy.file-size` | 33554432 | bytes, at most, of a file with more than one row; so much is held in memory |
//! | `sink.rolling-policy.max-rows` | 1000000000 | rows, at most, of a file |
//! | `sink.retry.timeout` | 1 min | how long an absent store is waited for before the batch fails |
//! | `json.timestamp-format.standard`, `json.encode.ignore-null-fields` | SQL, false | as of connector `kafka` |
//! | `csv.field-delimiter` | `,` | one character |
//! | `csv.null-literal` | nothing | what stands for NULL; a text like it is quoted |
//! | `sink.delivery-guarantee` | exactly-once | `at-most-once`: a batch that comes again is not written |
//! | `store.*` | | how the store is reached, by the names of `[checkpoint.store]`: `store.aws_endpoint`, `store.dfs.replication`; else the environment says it (`AWS_…`, `HADOOP_CONF_DIR`) |
//!
//! ```text
//! <path>/part-000000000007-00000-<output>-<checkpoint id>-<attempt>.json      rows of batch 7
//! <path>/_millrace/<output>-<checkpoint id>/000000000007.json                 what batch 7 wrote
//! ```
//!
//! A batch puts its files, each whole or not at all, then its entry in the manifest, where none is. Who reads the files that the entries
//! list, and no others, sees each batch once, whatever was killed, run twice, or stood still and came back: of two that run the same
//! batch, whose files have different names, one entry is first. A batch that runs again finds its entry and writes nothing; an entry of
//! other input than the batch's, or of a batch that this process knows nothing of, is another process's, or a checkpoint was put back:
//! then nothing is written ([`Fenced`]). A batch without rows writes nothing.
//!
//! Who reads everything (`cat part-*`; names with `_` or `.` in front are Hadoop's hidden ones) sees the files of the newest batch before
//! they count, and, where it was cut short and runs again, both attempts until its entry is put; then the unlisted ones are deleted.
//!
//! An entry is one line of JSON: `version`, `job`, `checkpoint`, `output`, `batch` (its `id`, `time_ms`, and `ranges` by source), `rows`,
//! and `files` (`path` below `<path>`, `rows`, `bytes`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::folder::{Folder, FolderError};
use super::{Fenced, Guarantee, RowStream, Sink, SinkKind, SinkTable};
use crate::batch::{BatchContext, BatchDefinition};
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::location::Place;
use crate::fault::Point;
use crate::format::{JsonEncoder, TimestampStyle};
use crate::sql::SqlError;
use crate::sql::options::Options;
use crate::sql::types::flink_name;

pub(super) const KIND: SinkKind = SinkKind { name: "filesystem", upsert: false, options, build };

const MANIFEST: &str = "_millrace";
const VERSION: u32 = 1;
const FILE_BYTES: u64 = 32 << 20;
const FILE_BYTES_MAX: u64 = 1 << 30;
const FILE_ROWS_MAX: u64 = 1_000_000_000;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

fn options() -> Vec<&'static str> {
    vec![
        "connector",
        "path",
        "format",
        "sink.rolling-policy.file-size",
        "sink.rolling-policy.max-rows",
        "sink.retry.timeout",
        "json.timestamp-format.standard",
        "json.encode.ignore-null-fields",
        "csv.field-delimiter",
        "csv.null-literal",
        Guarantee::OPTION,
    ]
}

fn build(options: &mut Options, table: &SinkTable) -> Result<Box<dyn Sink>, SqlError> {
    Ok(Box::new(sink(options, table)?))
}

fn sink(options: &Options, table: &SinkTable) -> Result<FileSink, SqlError> {
    let path = options.required("path", "file:///data/out")?;
    let wrong = |message| options.error("path", format!("`path`: `{path}` {message}"), "");
    let place = Place::parse(&path).map_err(wrong)?;
    let config = CheckpointConfig::with_store(options.prefixed("store."))
        .map_err(|message| options.error("path", format!("`store.*`: {message}"), "name what `[checkpoint.store]` takes"))?;
    if let Place::S3 { .. } | Place::Hdfs { .. } = place {
        place.open(&config).map_err(wrong)?;
    }
    if !table.primary_key.is_empty() {
        return Err(options.error(
            "connector",
            "connector `filesystem` appends; it cannot hold to a PRIMARY KEY",
            "remove the PRIMARY KEY, or write to `redis`",
        ));
    }
    if !table.output.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        return Err(options.error(
            "connector",
            format!("`{}` cannot be part of a file's name", table.output),
            "name the table with letters, digits and _",
        ));
    }
    let guarantee = options.guarantee(Guarantee::ExactlyOnce, &[])?;
    options.required("format", "json")?;
    let format = options.choice("format", &["json", "csv", "raw"], "json")?;
    Ok(FileSink {
        encoder: Arc::new(encoder(options, format, table)?),
        extension: if format == "raw" { "txt" } else { format },
        file_bytes_max: options.number("sink.rolling-policy.file-size", 1, FILE_BYTES_MAX, FILE_BYTES)? as usize,
        file_rows_max: options.number("sink.rolling-policy.max-rows", 1, FILE_ROWS_MAX, FILE_ROWS_MAX)?,
        retry_timeout: options.duration("sink.retry.timeout")?.unwrap_or(Duration::from_secs(60)),
        output: table.output.clone(),
        guarantee,
        path,
        config,
        folder: None,
        there: None,
        proved: false,
    })
}

fn encoder(options: &Options, format: &str, table: &SinkTable) -> Result<Encoder, SqlError> {
    match format {
        "csv" => {
            let one = |text: &str| {
                let mut chars = text.chars();
                chars.next().filter(|c| chars.next().is_none() && !['"', '\n', '\r'].contains(c))
            };
            // A space is trimmed away where options are parsed.
            let delimiter = match options.optional("csv.field-delimiter") {
                None => ',',
                Some(text) => one(&text).ok_or_else(|| {
                    options.error(
                        "csv.field-delimiter",
                        format!("`csv.field-delimiter`: `{text}` is not one character"),
                        "write , or ; or |",
                    )
                })?,
            };
            Ok(Encoder::Csv { delimiter, null: options.optional("csv.null-literal").unwrap_or_default() })
        }
        "raw" => match table.fields.as_slice() {
            [field] if matches!(field.data_type(), DataType::Utf8 | DataType::Binary) => Ok(Encoder::Raw),
            [field] => Err(options.error(
                "format",
                format!("format `raw` cannot write `{}`, which is {}", field.name(), flink_name(field.data_type())),
                "declare it STRING or BYTES, and CAST it in the query",
            )),
            fields => Err(options.error(
                "format",
                format!("format `raw` writes one column, the table declares {}", fields.len()),
                "keep one STRING or BYTES column, or use `json` or `csv`",
            )),
        },
        _ => {
            let iso = options.choice("json.timestamp-format.standard", &["SQL", "ISO-8601"], "SQL")? == "ISO-8601";
            let timestamps = if iso { TimestampStyle::Iso } else { TimestampStyle::Sql };
            Ok(Encoder::Json(JsonEncoder { timestamps, without_nulls: options.boolean("json.encode.ignore-null-fields", false)? }))
        }
    }
}

struct FileSink {
    encoder: Arc<Encoder>,
    extension: &'static str,
    file_bytes_max: usize,
    file_rows_max: u64,
    retry_timeout: Duration,
    output: String,
    guarantee: Guarantee,
    path: String,
    config: CheckpointConfig,
    folder: Option<Arc<Folder>>,
    /// Batches with an entry, from the first one of this process on, as it began: those that its checkpoint does not know to be written.
    there: Option<BTreeSet<u64>>,
    /// The store heeds a put that is to replace nothing.
    proved: bool,
}

/// What a batch wrote.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    version: u32,
    job: Arc<str>,
    checkpoint: Arc<str>,
    output: String,
    batch: BatchDefinition,
    rows: u64,
    files: Vec<Written>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    path: String,
    rows: u64,
    bytes: u64,
}

#[async_trait]
impl Sink for FileSink {
    fn guarantee(&self) -> Guarantee {
        self.guarantee
    }

    async fn write(&mut self, batch: &BatchContext, rows: RowStream) -> anyhow::Result<u64> {
        let result = self.write_batch(batch, rows).await;
        if result.as_ref().is_err_and(|error| error.is::<Fenced>()) {
            metrics::counter!("millrace_engine_fenced_writes_total", "output" => self.output.clone()).increment(1);
        }
        result
    }
}

impl FileSink {
    async fn write_batch(&mut self, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
        let folder = self.folder()?;
        let names = Names::new(&self.output, batch);
        if self.there.is_none() {
            self.there = Some(self.look_ahead(&folder, &names, batch).await?);
        }
        let is_there = self.there.as_ref().is_some_and(|there| there.contains(&batch.definition.id));
        if (batch.replay || is_there)
            && let Some(entry) = self.entry(&folder, &names, batch).await?
        {
            // Who gives the rows must be able to end.
            while let Some(next) = rows.next().await {
                next?;
            }
            info!(batch = batch.definition.id, output = self.output, "batch is in the manifest already, skipped");
            self.clear_up(&folder, &names, &entry).await;
            return Ok(entry.rows);
        }
        Point::FilesBegun.reach();
        let files = self.put_files(&folder, &names, batch, rows).await?;
        if files.is_empty() {
            return Ok(0);
        }
        let entry = Entry {
            version: VERSION,
            job: batch.job.clone(),
            checkpoint: batch.checkpoint_id.clone(),
            output: self.output.clone(),
            batch: batch.definition.as_ref().clone(),
            rows: files.iter().map(|file| file.rows).sum(),
            files,
        };
        if Point::FilesEntryWrite.hits()? {
            return Ok(entry.rows);
        }
        let stands = self.put_entry(&folder, &names, batch, entry).await?;
        Point::FilesEntryWritten.reach();
        Ok(stands.rows)
    }

    /// Opened with the first batch, for it makes the folder.
    fn folder(&mut self) -> anyhow::Result<Arc<Folder>> {
        if let Some(folder) = &self.folder {
            return Ok(folder.clone());
        }
        let folder = Folder::open(&self.path, &self.config).map_err(|message| anyhow::anyhow!("`{}`: {message}", self.path))?;
        Ok(self.folder.insert(Arc::new(folder)).clone())
    }

    /// A checkpoint that was put back gives new input the numbers of batches that are written. The batches from this one on that are.
    async fn look_ahead(&self, folder: &Folder, names: &Names, batch: &BatchContext) -> anyhow::Result<BTreeSet<u64>> {
        // Sorted in front of the batch's own.
        let from = names.entry_name.trim_end_matches(".json");
        let found = self.tried(folder, batch, || folder.names(&names.entries, from)).await?;
        let ids = found.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<u64>().ok());
        let there: BTreeSet<u64> = ids.filter(|id| *id >= batch.definition.id).collect();
        match there.last().filter(|id| **id > batch.newest) {
            Some(ahead) => Err(self.fenced(batch, *ahead)),
            None => Ok(there),
        }
    }

    fn fenced(&self, batch: &BatchContext, ahead: u64) -> anyhow::Error {
        Fenced { output: self.output.clone(), batch: batch.definition.id, ahead }.into()
    }

    /// The batch's entry. One of other input is refused; one that a power cut has torn is deleted, as it was never told of.
    async fn entry(&self, folder: &Folder, names: &Names, batch: &BatchContext) -> anyhow::Result<Option<Entry>> {
        let Some(bytes) = self.tried(folder, batch, || folder.read(&names.entry)).await? else { return Ok(None) };
        if serde_json::from_slice::<serde_json::Value>(&bytes).is_err() {
            warn!(output = self.output, entry = names.entry, "the manifest's entry is torn; the batch is written again");
            self.tried(folder, batch, || folder.delete(&names.entry)).await?;
            return Ok(None);
        }
        let entry: Entry = serde_json::from_slice(&bytes)
            .with_context(|| format!("{}: `{}` is no entry that this version reads", folder.location(), names.entry))?;
        if entry.batch != *batch.definition {
            return Err(self.fenced(batch, entry.batch.id));
        }
        Ok(Some(entry))
    }

    async fn put_files(&self, folder: &Folder, names: &Names, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<Vec<Written>> {
        // Names of its own: an attempt that was given up may still be on its way, here or in another process.
        let attempt = uuid::Uuid::new_v4().simple().to_string();
        let mut files = Vec::new();
        let mut content: Vec<u8> = Vec::new();
        let mut count = 0;
        loop {
            let next = rows.next().await.transpose()?;
            let ended = next.is_none();
            let lines = match next {
                Some(rows) => self.encoder.clone().lines(rows).await?,
                None => Vec::new(),
            };
            // An empty line at the end ends the last file.
            for line in lines.iter().map(Some).chain(ended.then_some(None)) {
                let full = line.is_none_or(|line| content.len() + line.len() + 1 > self.file_bytes_max || count == self.file_rows_max);
                if full && count > 0 {
                    let path = names.file(files.len(), &attempt, self.extension);
                    let bytes = Bytes::from(std::mem::take(&mut content));
                    self.tried(folder, batch, || folder.put(&path, bytes.clone())).await?;
                    Point::FilesPartWritten.reach();
                    files.push(Written { path, rows: std::mem::take(&mut count), bytes: bytes.len() as u64 });
                }
                if let Some(line) = line {
                    content.extend_from_slice(line);
                    content.push(b'\n');
                    count += 1;
                }
            }
            if ended {
                return Ok(files);
            }
        }
    }

    /// Puts the entry, or finds that of another attempt, whose files count then. Gives the one that stands.
    async fn put_entry(&mut self, folder: &Folder, names: &Names, batch: &BatchContext, entry: Entry) -> anyhow::Result<Entry> {
        let mut text = serde_json::to_vec(&entry)?;
        text.push(b'\n');
        let text = Bytes::from(text);
        loop {
            let stands = if self.tried(folder, batch, || folder.create(&names.entry, text.clone())).await? {
                // All of this rests on puts that replace nothing.
                if folder.is_on_network() && !self.proved {
                    let replaced = self.tried(folder, batch, || folder.create(&names.entry, text.clone())).await?;
                    anyhow::ensure!(
                        !replaced,
                        "{}: this store replaces an object when it is told to put it only where none is (If-None-Match: *), so a batch could be \
                         written twice; use a store with conditional puts",
                        folder.location()
                    );
                }
                self.proved = true;
                None
            } else {
                match self.entry(folder, names, batch).await {
                    // It was torn.
                    Ok(None) => continue,
                    found => found,
                }
                .inspect_err(|_| warn!(output = self.output, batch = batch.definition.id, "another process has written this batch"))?
            };
            // A first run of a batch whose own entry stands has left nothing else.
            let others = batch.replay || stands.is_some();
            let stands = stands.unwrap_or(entry);
            if others {
                self.clear_up(folder, names, &stands).await;
            }
            return Ok(stands);
        }
    }

    /// Deletes what attempts at the batch left that do not count. They are unlisted, so that a failure does no harm.
    async fn clear_up(&self, folder: &Folder, names: &Names, entry: &Entry) {
        let cleared = async {
            let mut left: Vec<String> = Vec::new();
            let is_listed = |name: &str| entry.files.iter().any(|file| file.path == name);
            left.extend(folder.names("", &names.files).await?.into_iter().filter(|name| names.is_file(name) && !is_listed(name)));
            let beside = folder.names(&names.entries, &names.entry_name).await?.into_iter().filter(|name| names.is_staged_entry(name));
            left.extend(beside.map(|name| format!("{}/{name}", names.entries)));
            for name in &left {
                folder.delete(name).await?;
            }
            Ok::<_, FolderError>(())
        };
        if let Err(error) = cleared.await {
            warn!(%error, output = self.output, "files that do not count are left");
        }
    }

    /// Waits for a store that is away.
    async fn tried<T, F: Future<Output = Result<T, FolderError>> + Send>(
        &self,
        folder: &Folder,
        batch: &BatchContext,
        call: impl Fn() -> F + Send + Sync,
    ) -> anyhow::Result<T> {
        let clock = batch.clock();
        let began = clock.monotonic();
        let (mut backoff, mut waited) = (BACKOFF_MIN, false);
        loop {
            match call().await {
                Ok(answer) => {
                    if waited {
                        batch.not_waiting(&self.output);
                        info!(store = folder.location(), away_seconds = (clock.monotonic() - began).as_secs(), "the store is back");
                    }
                    return Ok(answer);
                }
                Err(error) if error.retryable() && clock.monotonic() - began < self.retry_timeout => {
                    if !std::mem::replace(&mut waited, true) {
                        batch.waiting(&self.output, format!("{error}"));
                        warn!(store = folder.location(), %error, "the store is away, waiting");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                Err(error) => return Err(error).with_context(|| format!("writing `{}`", self.output)),
            }
        }
    }
}

/// Names of one batch's files.
struct Names {
    /// `<output>-<checkpoint id>`
    writer: String,
    /// In front of the batch's files: `part-000000000007-`
    files: String,
    /// The manifest's folder.
    entries: String,
    /// Sorted as the batches are.
    entry_name: String,
    /// Its path.
    entry: String,
}

impl Names {
    fn new(output: &str, batch: &BatchContext) -> Self {
        let writer = format!("{output}-{}", batch.checkpoint_id);
        let (entries, entry_name) = (format!("{MANIFEST}/{writer}"), format!("{:012}.json", batch.definition.id));
        let entry = format!("{entries}/{entry_name}");
        Self { files: format!("part-{:012}-", batch.definition.id), writer, entries, entry_name, entry }
    }

    fn file(&self, part: usize, attempt: &str, extension: &str) -> String {
        format!("{}{part:05}-{}-{attempt}.{extension}", self.files, self.writer)
    }

    /// A file of this batch, or what was to become one.
    fn is_file(&self, name: &str) -> bool {
        // HDFS: `.NAME.tmp.1`. A local disk: `NAME#1`.
        let name = name.strip_prefix('.').unwrap_or(name);
        let rest = name.strip_prefix(&self.files).map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let attempt = rest.and_then(|rest| rest.strip_prefix('-')?.strip_prefix(&self.writer)?.strip_prefix('-'));
        attempt.is_some_and(|attempt| !attempt.contains('-'))
    }

    fn is_staged_entry(&self, name: &str) -> bool {
        let staged = |mark: &str| name.trim_start_matches('.').strip_prefix(&self.entry_name).is_some_and(|rest| rest.starts_with(mark));
        staged(".tmp.") || staged("#")
    }
}

/// Rows → lines.
enum Encoder {
    Json(JsonEncoder),
    Csv { delimiter: char, null: String },
    Raw,
}

impl Encoder {
    /// Encodes beside the runtime: a batch takes milliseconds.
    async fn lines(self: Arc<Self>, rows: RecordBatch) -> anyhow::Result<Vec<Bytes>> {
        tokio::task::spawn_blocking(move || self.encode(&rows)).await?
    }

    fn encode(&self, rows: &RecordBatch) -> anyhow::Result<Vec<Bytes>> {
        match self {
            Self::Json(json) => json.encode(rows),
            Self::Csv { delimiter, null } => csv(rows, *delimiter, null),
            Self::Raw => {
                let column = rows.columns().first().context("format `raw` writes one column")?;
                let bytes = match column.data_type() {
                    DataType::Binary => column.clone(),
                    _ => arrow::compute::cast(column, &DataType::Binary)?,
                };
                Ok(bytes.as_binary::<i32>().iter().flatten().map(Bytes::copy_from_slice).collect())
            }
        }
    }
}

/// RFC 4180, with line feeds. Times as in JSON.
fn csv(rows: &RecordBatch, delimiter: char, null: &str) -> anyhow::Result<Vec<Bytes>> {
    let format = FormatOptions::new()
        .with_display_error(false)
        .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"));
    let columns = rows.columns().iter().map(|array| Ok((array, ArrayFormatter::try_new(array.as_ref(), &format)?)));
    let columns: Vec<_> = columns.collect::<anyhow::Result<_>>()?;
    let mut value = String::new();
    let mut lines = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        let mut line = String::new();
        for (index, (array, formatter)) in columns.iter().enumerate() {
            if index > 0 {
                line.push(delimiter);
            }
            if array.is_null(row) {
                line.push_str(null);
                continue;
            }
            value.clear();
            write!(value, "{}", formatter.value(row)).context("a value cannot be written")?;
            if value == null || value.contains([delimiter, '"', '\n', '\r']) {
                line.push('"');
                line.push_str(&value.replace('"', "\"\""));
                line.push('"');
            } else {
                line.push_str(&value);
            }
        }
        lines.push(line.into());
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray};
    use futures::TryStreamExt as _;
    use object_store::ObjectStoreExt as _;

    use super::*;
    use crate::batch::OffsetRange;
    use crate::checkpoint::location::Opened;
    use crate::sql::error::Place as TextPlace;
    use crate::sql::options::Entry as Given;

    fn rows(from: i64, until: i64) -> RecordBatch {
        let numbers: ArrayRef = Arc::new((from..until).map(Some).collect::<Int64Array>());
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true)]).unwrap()
    }

    fn sink_of(path: &str, more: &[(&str, &str)], rows: &RecordBatch) -> Result<FileSink, SqlError> {
        let schema = rows.schema();
        let given = [&[("path", path), ("sink.retry.timeout", "100 ms")], more].concat();
        let entry = |(key, value): &(&str, &str)| Given { key: (*key).into(), value: (*value).into(), at: TextPlace::default() };
        let options = Options::new("t", TextPlace::default(), &given.iter().map(entry).collect::<Vec<_>>());
        let fields = schema.fields().iter().cloned().collect();
        let table = SinkTable { output: "t".into(), ordinal: 0, schema, fields, primary_key: Vec::new() };
        sink(&options, &table)
    }

    /// As a process begins.
    fn process(path: &str) -> FileSink {
        sink_of(path, &[("format", "json"), ("sink.rolling-policy.max-rows", "2")], &rows(0, 1)).unwrap()
    }

    /// Batch `id` of rows `from..until`.
    fn batch(id: u64, from: i64, until: i64) -> BatchContext {
        let range = OffsetRange { topic: "in".into(), partition: 0, from, until };
        BatchContext {
            job: "job".into(),
            checkpoint_id: "c0".into(),
            definition: Arc::new(BatchDefinition { id, time_ms: id.cast_signed() * 1000, ranges: vec![vec![range]] }),
            newest: id,
            replay: false,
            last: false,
            slot: None,
            span: tracing::Span::none(),
            monitor: None,
        }
    }

    fn again(batch: BatchContext) -> BatchContext {
        BatchContext { replay: true, ..batch }
    }

    fn given(batches: Vec<anyhow::Result<RecordBatch>>) -> RowStream {
        futures::stream::iter(batches).boxed()
    }

    /// Writes what the batch covers, in record batches of three rows.
    async fn write(sink: &mut FileSink, batch: &BatchContext) -> anyhow::Result<u64> {
        let range = batch.definition.all_ranges().next().unwrap();
        let parts = (range.from..range.until).step_by(3).map(|from| Ok(rows(from, range.until.min(from + 3)))).collect();
        sink.write(batch, given(parts)).await
    }

    /// Writes a row, and fails.
    async fn cut_short(sink: &mut FileSink, batch: &BatchContext) {
        let parts = vec![Ok(rows(0, 3)), Err(anyhow::anyhow!("told to fail"))];
        assert_eq!(sink.write(batch, given(parts)).await.unwrap_err().to_string(), "told to fail");
    }

    /// Path and content of all there is.
    async fn files(path: &str) -> Vec<(String, String)> {
        let Opened { store, root, .. } = Place::parse(path).unwrap().open(&CheckpointConfig::default()).unwrap();
        let mut found = Vec::new();
        for meta in store.list(Some(&root)).try_collect::<Vec<_>>().await.unwrap() {
            let content = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
            found.push((meta.location.to_string(), String::from_utf8(content.to_vec()).unwrap()));
        }
        found.sort();
        found
    }

    fn numbers(text: &str) -> Vec<i64> {
        let number = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_i64().unwrap();
        text.lines().map(number).collect()
    }

    /// What a reader of the manifest sees, in the order of the batches; and that nothing unlisted is there.
    async fn listed(path: &str) -> Vec<i64> {
        let files = files(path).await;
        let entries: Vec<Entry> =
            files.iter().filter(|(path, _)| path.starts_with(MANIFEST)).map(|(_, text)| serde_json::from_str(text).unwrap()).collect();
        let mut seen = Vec::new();
        let mut names = BTreeSet::new();
        for written in entries.iter().flat_map(|entry| &entry.files) {
            let content = files.iter().find(|(path, _)| *path == written.path).map(|(_, text)| text).unwrap();
            assert_eq!((content.len() as u64, content.lines().count() as u64), (written.bytes, written.rows));
            seen.extend(numbers(content));
            assert!(names.insert(&written.path), "{} is listed twice", written.path);
        }
        let data: BTreeSet<&String> = files.iter().map(|(path, _)| path).filter(|path| path.starts_with("part-")).collect();
        assert_eq!(data, names, "files that do not count");
        seen
    }

    #[tokio::test]
    async fn a_batch_is_files_of_bounded_size_and_an_entry() {
        let path = "memory:///files-batch";
        let mut sink = process(path);
        assert_eq!(write(&mut sink, &batch(0, 0, 5)).await.unwrap(), 5);
        assert_eq!(write(&mut sink, &batch(1, 5, 5)).await.unwrap(), 0);
        assert_eq!(write(&mut sink, &batch(2, 5, 6)).await.unwrap(), 1);
        assert_eq!(listed(path).await, [0, 1, 2, 3, 4, 5]);
        let files = files(path).await;
        let names: Vec<&str> = files.iter().map(|(path, _)| path.rsplit_once("-c0-").map_or(path.as_str(), |(name, _)| name)).collect();
        assert_eq!(
            names,
            [
                "_millrace/t-c0/000000000000.json",
                "_millrace/t-c0/000000000002.json",
                "part-000000000000-00000-t",
                "part-000000000000-00001-t",
                "part-000000000000-00002-t",
                "part-000000000002-00000-t"
            ]
        );
    }

    #[tokio::test]
    async fn a_batch_that_runs_again_counts_once_whatever_was_left() {
        let path = "memory:///files-again";
        // The process dies within the batch, and the next one too; the third ends it.
        cut_short(&mut process(path), &batch(0, 0, 5)).await;
        cut_short(&mut process(path), &again(batch(0, 0, 5))).await;
        assert_eq!(files(path).await.len(), 2, "each left a file");
        let mut third = process(path);
        assert_eq!(write(&mut third, &again(batch(0, 0, 5))).await.unwrap(), 5);
        assert_eq!(listed(path).await, [0, 1, 2, 3, 4]);
        // It died before its checkpoint knew: the entry is there, nothing is written.
        let before = files(path).await;
        assert_eq!(write(&mut process(path), &again(batch(0, 0, 5))).await.unwrap(), 5);
        assert_eq!(files(path).await, before);
        // Within one process.
        cut_short(&mut third, &batch(1, 5, 8)).await;
        assert_eq!(write(&mut third, &again(batch(1, 5, 8))).await.unwrap(), 3);
        assert_eq!(listed(path).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn of_two_processes_with_one_batch_one_counts() {
        let path = "memory:///files-stale";
        let (mut stale, mut new) = (process(path), process(path));
        assert_eq!(write(&mut stale, &batch(0, 0, 3)).await.unwrap(), 3);
        assert_eq!(write(&mut new, &again(batch(1, 3, 8))).await.unwrap(), 5);
        let before = files(path).await;
        // It stood still within batch 1 and comes back.
        assert_eq!(write(&mut stale, &batch(1, 3, 8)).await.unwrap(), 5);
        assert_eq!(files(path).await, before, "its files are there, or it has replaced some");
        assert_eq!(listed(path).await, (0..8).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_checkpoint_that_was_put_back_is_refused() {
        let path = "memory:///files-put-back";
        let mut sink = process(path);
        for id in 0..3_i64 {
            write(&mut sink, &batch(id.cast_unsigned(), id, id + 1)).await.unwrap();
        }
        let refused = |error: anyhow::Error| error.downcast::<Fenced>().unwrap();
        // To before batch 1: there is one beyond it.
        let error = write(&mut process(path), &batch(1, 1, 3)).await.unwrap_err();
        assert_eq!(refused(error), Fenced { output: "t".into(), batch: 1, ahead: 2 });
        // To before batch 2, which is cut anew.
        for other in [batch(2, 2, 5), again(batch(2, 2, 5))] {
            let error = write(&mut process(path), &other).await.unwrap_err();
            assert_eq!(refused(error), Fenced { output: "t".into(), batch: 2, ahead: 2 });
        }
        // The new one has no rows to write; the old one's would be written again by the next.
        let error = write(&mut process(path), &batch(2, 2, 2)).await.unwrap_err();
        assert_eq!(refused(error), Fenced { output: "t".into(), batch: 2, ahead: 2 });
        // Two were cut anew before the first is written, which was without rows.
        write(&mut sink, &batch(3, 3, 3)).await.unwrap();
        write(&mut sink, &batch(4, 3, 4)).await.unwrap();
        let mut put_back = process(path);
        assert_eq!(write(&mut put_back, &BatchContext { newest: 4, ..batch(3, 3, 3) }).await.unwrap(), 0);
        let error = write(&mut put_back, &batch(4, 3, 3)).await.unwrap_err();
        assert_eq!(refused(error), Fenced { output: "t".into(), batch: 4, ahead: 4 });
        // Another history is none of its business.
        let other = BatchContext { checkpoint_id: "c1".into(), ..batch(1, 7, 8) };
        assert_eq!(write(&mut process(path), &other).await.unwrap(), 1);
        let entries: Vec<String> = files(path).await.into_iter().map(|(path, _)| path).filter(|path| path.starts_with(MANIFEST)).collect();
        assert_eq!(entries.len(), 5, "{entries:?}");
    }

    #[tokio::test]
    async fn torn_files_on_a_disk_do_not_count_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        write(&mut process(path), &batch(0, 0, 3)).await.unwrap();
        let names = Names::new("t", &batch(0, 0, 3));
        let entry = dir.path().join(&names.entry);
        let whole = std::fs::read(&entry).unwrap();
        std::fs::write(&entry, &whole[..whole.len() / 2]).unwrap();
        // What the store was staging when the process was killed.
        std::fs::write(dir.path().join(format!("{}#1", names.file(1, "dead", "json"))), "{\"n\":").unwrap();
        std::fs::write(dir.path().join(format!("{}#1", names.entry)), "{").unwrap();
        assert_eq!(write(&mut process(path), &again(batch(0, 0, 3))).await.unwrap(), 3);
        assert_eq!(listed(path).await, [0, 1, 2]);
        let mut left: Vec<String> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.retain(|name| !name.ends_with(".json"));
        assert_eq!(left, [MANIFEST]);
        assert_eq!(std::fs::read_dir(dir.path().join(&names.entries)).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_store_that_stays_away_fails_the_batch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        // A file stands where the manifest's folder is to be.
        std::fs::write(dir.path().join(MANIFEST), "").unwrap();
        let error = write(&mut process(path), &batch(0, 0, 3)).await.unwrap_err();
        assert!(format!("{error:#}").starts_with(&format!("writing `t`: {path}: cannot list `_millrace/t-c0`: ")), "{error:#}");
    }

    #[test]
    fn csv_and_raw_lines() {
        let table = RecordBatch::try_from_iter_with_nullable([
            ("name", Arc::new(StringArray::from(vec![Some("a,\"b\""), Some(""), None])) as ArrayRef, true),
            ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])), true),
            ("at", Arc::new(TimestampMillisecondArray::from(vec![0, 1500, 0])), true),
        ])
        .unwrap();
        let lines = |more: &[(&str, &str)], rows: &RecordBatch| -> Vec<String> {
            let lines = sink_of("memory:///files-lines", more, rows).unwrap().encoder.encode(rows).unwrap();
            lines.iter().map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
        };
        assert_eq!(
            lines(&[("format", "csv")], &table),
            ["\"a,\"\"b\"\"\",1,1970-01-01 00:00:00", "\"\",,1970-01-01 00:00:01.500", ",3,1970-01-01 00:00:00"]
        );
        assert_eq!(
            lines(&[("format", "csv"), ("csv.field-delimiter", ";"), ("csv.null-literal", "NULL")], &table.project(&[0, 1]).unwrap()),
            ["\"a,\"\"b\"\"\";1", ";NULL", "NULL;3"]
        );
        assert_eq!(lines(&[("format", "raw")], &table.project(&[0]).unwrap()), ["a,\"b\"", ""]);
    }

    #[test]
    fn wrong_options_are_named() {
        let said = |path: &str, more: &[(&str, &str)]| sink_of(path, more, &rows(0, 1)).err().unwrap().to_string();
        for (path, more, part) in [
            ("gs://bucket/x", &[("format", "json")][..], "`gs://bucket/x` scheme `gs` is not built in"),
            ("/tmp/x", &[("format", "parquet")], "unknown value `parquet`"),
            ("/tmp/x", &[("format", "raw")], "format `raw` cannot write `n`, which is BIGINT"),
            ("/tmp/x", &[("format", "csv"), ("csv.field-delimiter", "ab")], "`ab` is not one character"),
            ("s3://bucket/x", &[("format", "json"), ("store.endpoint_of_aws", "x")], "`endpoint_of_aws` is neither a setting of S3"),
        ] {
            let error = said(path, more);
            assert!(error.contains(part), "{error}");
        }
    }
}
