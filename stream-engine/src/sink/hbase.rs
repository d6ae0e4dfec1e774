//! HBase sink: rows become rows of an HBase table, through its REST gateway; each batch once.
//!
//! | option | default | |
//! |---|---|---|
//! | `url` | | HBase's REST gateway: `http://[user:password@]host:port` |
//! | `table-name` | | `table` or `namespace:table`; it exists, with its column families |
//! | `null-string-literal` | null | what NULL in a STRING is written as; NULL of other types is a cell without bytes |
//! | `sink.ignore-null-value` | false | leave NULL out: the cell keeps what it had |
//! | `sink.buffer-flush.max-rows` | 1000 | rows per request |
//! | `sink.retry.timeout` | 1 min | how long an absent gateway is waited for before the batch fails |
//! | `sink.delivery-guarantee` | exactly-once | `at-least-once`: without a fence |
//! | `fence.table` | millrace_fences | table of the fences, made where it is missing; its rows may go when their job is gone |
//!
//! As in Flink, each ROW column is a column family and its fields are the qualifiers; the only other column is the row key:
//! `CREATE TABLE t (k STRING, cf ROW<requests BIGINT, bytes BIGINT>, PRIMARY KEY (k) NOT ENFORCED)`, filled by
//! `INSERT INTO t SELECT …, ROW(COUNT(*), SUM(bytes))`. Values have the bytes of Flink and of HBase's own `Bytes.toBytes`:
//! STRING in UTF-8, numbers with the largest byte first, TIMESTAMP(3) as BIGINT of milliseconds, DATE as INT of days, DECIMAL as its
//! scale (INT) and unscaled value.
//!
//! What holds, and why:
//!
//! - Every cell carries a timestamp of its batch: the batch's time in milliseconds, or one more than the batch before, if that is later. A batch that
//!   comes again writes the same rows with the same timestamps, in place of what stands there. Values are absolute, nothing is ever incremented.
//! - A row is written as a whole. Of several rows with one key in a batch the last one stands.
//! - Before its first row, a batch is entered in the fence of (job, checkpoint, output): its number, what it covers, its timestamp; by `checkAndPut`, so of two
//!   processes one is first. A fence that is ahead of what this process knows of, or that names the same batch with other records,
//!   was raised by another process, or before a checkpoint was put back: nothing is written and the job fails ([`Fenced`]).
//! - HBase cannot check the fence and write other rows in one step. A process that is held up between the two writes late: rows of a batch
//!   that it was the first to enter, the same that whoever ran the batch again has written, with the batch's timestamp; so they change
//!   nothing and stand behind every later batch's.
//! - It does not hold for cells that others write or delete: HBase orders these by their timestamps alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimeUnit,
    TimestampMillisecondType,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use service_kit::hbase::{Cell, Family, Hbase, HbaseConfig, HbaseError, Row};
use tracing::{info, warn};

use super::{Fenced, Guarantee, RowStream, Sink, SinkKind, SinkTable};
use crate::batch::{BatchContext, BatchDefinition};
use crate::sql::SqlError;
use crate::sql::options::Options;
use crate::sql::types::flink_name;

pub(super) const KIND: SinkKind = SinkKind { name: "hbase", upsert: true, options, build };

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Of the fences.
const FAMILY: &str = "f";
const COLUMN: &str = "f:batch";
/// Default of `fence.table`.
pub(crate) const FENCES: &str = "millrace_fences";
/// Attempts to enter a batch while others change the fence.
const RACES_MAX: usize = 10;

fn options() -> Vec<&'static str> {
    vec![
        "connector",
        "url",
        "table-name",
        "null-string-literal",
        "sink.ignore-null-value",
        "sink.buffer-flush.max-rows",
        "sink.retry.timeout",
        "sink.delivery-guarantee",
        "fence.table",
    ]
}

fn build(options: &mut Options, table: &SinkTable) -> Result<Box<dyn Sink>, SqlError> {
    if options.optional("zookeeper.quorum").is_some() {
        let message = "`zookeeper.quorum`: connector `hbase` speaks to HBase's REST gateway, not to ZooKeeper";
        return Err(options.error("zookeeper.quorum", message, "write 'url' = 'http://host:8080'"));
    }
    let url = options.required("url", "${env:HBASE_REST_URL}")?;
    let client = Hbase::new(HbaseConfig::new(url)).map_err(|error| options.error("url", error.to_string(), ""))?;
    let name = options.required("table-name", &table.output)?;
    let guarantee = options.guarantee(
        Guarantee::ExactlyOnce,
        &[(Guarantee::AtMostOnce, "rows replace each other by key, so a batch that comes again changes nothing", "leave the option out")],
    )?;
    let fences = options.optional("fence.table").unwrap_or_else(|| FENCES.into());
    let shape = Shape::read(options, table)?;
    let families = shape.families.iter().map(|family| family.name.clone()).collect();
    let fences = (guarantee == Guarantee::ExactlyOnce).then_some(fences);
    let timeout = options.duration("sink.retry.timeout")?.unwrap_or(Duration::from_secs(60));
    Ok(Box::new(HbaseSink {
        chunk_rows: options.number("sink.buffer-flush.max-rows", 1, 100_000, 1000)? as usize,
        shape: Arc::new(shape),
        writer: HbaseWriter::new(client, name, families, fences, table.output.clone(), timeout),
    }))
}

struct HbaseSink {
    shape: Arc<Shape>,
    chunk_rows: usize,
    writer: HbaseWriter,
}

#[async_trait]
impl Sink for HbaseSink {
    fn guarantee(&self) -> Guarantee {
        if self.writer.fences.is_some() { Guarantee::ExactlyOnce } else { Guarantee::AtLeastOnce }
    }

    async fn write(&mut self, batch: &BatchContext, mut rows: RowStream) -> anyhow::Result<u64> {
        let mut count = 0;
        let mut chunk = BTreeMap::new();
        let mut begun = None;
        let shape = self.shape.clone();
        while let Some(next) = rows.next().await {
            let next = next?;
            count += next.num_rows() as u64;
            let columns = shape.columns(&next)?;
            for row in 0..next.num_rows() {
                columns.add(row, &mut chunk)?;
                if chunk.len() >= self.chunk_rows {
                    self.writer.put(batch, batch.definition.time_ms, std::mem::take(&mut chunk), &mut begun).await?;
                }
            }
        }
        if !chunk.is_empty() {
            self.writer.put(batch, batch.definition.time_ms, chunk, &mut begun).await?;
        }
        Ok(count)
    }
}

/// Writes batches into one table, each behind its fence.
pub(crate) struct HbaseWriter {
    client: Hbase,
    table: String,
    /// Those that are written; the table must have them.
    families: Vec<String>,
    /// The table of the fences; `None`: at-least-once.
    fences: Option<String>,
    /// What this process has entered last, in the fence with this key.
    held: Option<(String, Held)>,
    /// The tables are there.
    checked: bool,
    patience: Patience,
}

impl HbaseWriter {
    /// Connects to nothing yet. `timeout`: how long an absent gateway is waited for.
    pub(crate) fn new(
        client: Hbase,
        table: String,
        families: Vec<String>,
        fences: Option<String>,
        output: String,
        timeout: Duration,
    ) -> Self {
        let patience = Patience { output, address: client.address(), timeout, away_since: None };
        Self { client, table, families, fences, held: None, checked: false, patience }
    }

    /// Writes a chunk; the first one enters the batch in the fence, which `begun` remembers for the next ones. `time_ms`: the batch's
    /// own, or an earlier one that it makes up for.
    pub(crate) async fn put(
        &mut self,
        batch: &BatchContext,
        time_ms: i64,
        chunk: BTreeMap<Bytes, Cells>,
        begun: &mut Option<Begun>,
    ) -> anyhow::Result<()> {
        let begun = match begun {
            Some(begun) => begun,
            None => {
                self.check(batch).await?;
                begun.insert(match self.fences.clone() {
                    Some(fences) => self.enter(&fences, batch).await?,
                    None => Begun::At(batch.definition.time_ms),
                })
            }
        };
        let Begun::At(entered_ms) = *begun else { return Ok(()) };
        let timestamp_ms = entered_ms - (batch.definition.time_ms - time_ms);
        let cell = |(column, value)| Cell { column, timestamp_ms: Some(timestamp_ms), value };
        let rows: Vec<Row> = chunk.into_iter().map(|(key, cells)| Row { key, cells: cells.into_iter().map(cell).collect() }).collect();
        let (client, table) = (&self.client, &self.table);
        self.patience.call(batch, || client.put(table, &rows).boxed()).await
    }

    /// Finds a table or family that is missing before anything is entered or written.
    async fn check(&mut self, batch: &BatchContext) -> anyhow::Result<()> {
        if self.checked {
            return Ok(());
        }
        let (client, table) = (&self.client, &self.table);
        let families = self.patience.call(batch, || client.families(table).boxed()).await?;
        let families = families.ok_or_else(|| HbaseError::UnknownTable(table.clone()))?;
        if let Some(family) = self.families.iter().find(|family| !families.contains(family)) {
            anyhow::bail!(
                "table \"{table}\" in HBase has no column family \"{family}\" (it has {}), which `{}` writes; add it, or correct the name",
                families.join(", "),
                self.patience.output
            );
        }
        if let Some(fences) = &self.fences {
            let family = Family { name: FAMILY.to_owned(), versions: 1 };
            let made = self.patience.call(batch, || client.create_table(fences, std::slice::from_ref(&family)).boxed()).await;
            if made.with_context(|| format!("fence.table \"{fences}\""))? {
                info!(table = fences, "table of the fences made");
            }
        }
        self.checked = true;
        Ok(())
    }

    /// Enters the batch in its fence.
    async fn enter(&mut self, fences: &str, batch: &BatchContext) -> anyhow::Result<Begun> {
        let key = format!("{}/{}/{}", batch.job, batch.checkpoint_id, self.patience.output);
        let client = &self.client;
        // Usually it stands where this process left it. A batch that comes again looks.
        let left = |(of, held): (String, Held)| (of == key && held.batch < batch.definition.id).then_some(held);
        let mut known = self.held.take().and_then(left);
        for _ in 0..RACES_MAX {
            let held = match known.take() {
                Some(held) => Some(held),
                None => {
                    let row = self.patience.call(batch, || client.get(fences, key.as_bytes(), &[COLUMN]).boxed()).await?;
                    match row.as_ref().and_then(|row| row.value(COLUMN)) {
                        None => None,
                        Some(text) => {
                            Some(Held::parse(text).with_context(|| format!("the fence {key} in HBase table \"{fences}\" is damaged"))?)
                        }
                    }
                }
            };
            let output = &self.patience.output;
            let next = match judge(held.as_ref(), &batch.definition, batch.newest) {
                Verdict::Enter(next) => next,
                Verdict::Entered(timestamp_ms) => {
                    self.held = held.map(|held| (key, held));
                    return Ok(Begun::At(timestamp_ms));
                }
                Verdict::Written => {
                    info!(batch = batch.definition.id, output, "batch is in HBase already, skipped");
                    return Ok(Begun::Before);
                }
                Verdict::Behind(ahead) => {
                    metrics::counter!("millrace_engine_fenced_writes_total", "output" => output.clone()).increment(1);
                    return Err(Fenced { output: output.clone(), batch: batch.definition.id, ahead }.into());
                }
            };
            let row = Row::new(key.clone()).with(COLUMN, next.text());
            let expected = held.as_ref().map(Held::text);
            let expected = expected.as_deref().map(str::as_bytes);
            // Where its answer was lost it may have taken place: the next look shows it.
            if self.patience.call(batch, || client.check_and_put(fences, &row, COLUMN, expected).boxed()).await? {
                let timestamp_ms = next.timestamp_ms;
                self.held = Some((key, next));
                return Ok(Begun::At(timestamp_ms));
            }
        }
        anyhow::bail!("the fence {key} in HBase table \"{fences}\" changes all the time; is this job run by several processes?")
    }
}

/// How a batch stands in the fence.
#[derive(Clone, Copy)]
pub(crate) enum Begun {
    /// Its cells carry this timestamp.
    At(i64),
    /// It was written by an earlier run, and so were later ones.
    Before,
}

/// What a fence holds: the batch that was begun last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    batch: u64,
    /// Of what the batch covers.
    digest: u32,
    timestamp_ms: i64,
}

impl Held {
    fn text(&self) -> String {
        format!("{} {:08x} {}", self.batch, self.digest, self.timestamp_ms)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(text).ok()?.split(' ');
        let (batch, digest, timestamp_ms) = (parts.next()?, parts.next()?, parts.next()?);
        let held =
            Self { batch: batch.parse().ok()?, digest: u32::from_str_radix(digest, 16).ok()?, timestamp_ms: timestamp_ms.parse().ok()? };
        parts.next().is_none().then_some(held)
    }
}

/// What a fence means for a batch.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// To be entered so.
    Enter(Held),
    /// It is the newest that was begun, with this timestamp: it is written again.
    Entered(i64),
    /// A later one was begun, so this one was written to its end.
    Written,
    /// The fence is another history's.
    Behind(u64),
}

/// `newest`: the newest batch that this process knows of.
fn judge(held: Option<&Held>, batch: &BatchDefinition, newest: u64) -> Verdict {
    let enter = |timestamp_ms| Verdict::Enter(Held { batch: batch.id, digest: batch.digest(), timestamp_ms });
    match held {
        None => enter(batch.time_ms),
        Some(held) if held.batch > newest => Verdict::Behind(held.batch),
        Some(held) if held.batch > batch.id => Verdict::Written,
        Some(held) if held.batch < batch.id => enter(batch.time_ms.max(held.timestamp_ms + 1)),
        Some(held) if held.digest == batch.digest() => Verdict::Entered(held.timestamp_ms),
        Some(held) => Verdict::Behind(held.batch),
    }
}

/// Waits for a gateway that is away.
struct Patience {
    output: String,
    /// The gateway's, as it may be shown.
    address: String,
    timeout: Duration,
    away_since: Option<Duration>,
}

impl Patience {
    /// A call that may be made again.
    async fn call<'a, T>(
        &mut self,
        batch: &BatchContext,
        call: impl Fn() -> BoxFuture<'a, Result<T, HbaseError>> + Send + Sync,
    ) -> anyhow::Result<T> {
        let clock = batch.clock();
        let began = clock.monotonic();
        let mut backoff = BACKOFF_MIN;
        loop {
            match call().await {
                Ok(answer) => {
                    if let Some(since) = self.away_since.take() {
                        batch.not_waiting(&self.output);
                        info!(server = self.address, away_seconds = (clock.monotonic() - since).as_secs(), "hbase is back");
                    }
                    return Ok(answer);
                }
                Err(error) if error.retryable() && clock.monotonic() - began < self.timeout => {
                    if self.away_since.is_none() {
                        self.away_since = Some(clock.monotonic());
                        batch.waiting(&self.output, format!("HBase does not answer: {error}"));
                        warn!(server = self.address, %error, "hbase is away, waiting");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                Err(error) => return Err(error).with_context(|| format!("writing `{}` to HBase at {}", self.output, self.address)),
            }
        }
    }
}

/// Which column is what in HBase.
struct Shape {
    key: usize,
    key_name: String,
    families: Vec<ColumnFamily>,
    /// What NULL in a STRING becomes.
    null_text: Bytes,
    ignore_null: bool,
}

struct ColumnFamily {
    name: String,
    column: usize,
    /// `family:qualifier` of each field.
    columns: Vec<Bytes>,
}

/// A row's cells: column and value.
pub(crate) type Cells = Vec<(Bytes, Bytes)>;

impl Shape {
    fn read(options: &Options, table: &SinkTable) -> Result<Self, SqlError> {
        const EXAMPLE: &str = "declare one column for the row key, and a ROW column per column family: (k STRING, cf ROW<n BIGINT>)";
        let fields = table.schema.fields();
        let (families, keys): (Vec<usize>, Vec<usize>) =
            (0..fields.len()).partition(|index| matches!(fields[*index].data_type(), DataType::Struct(_)));
        let [key] = keys.as_slice() else {
            let names: Vec<&str> = keys.iter().map(|index| fields[*index].name().as_str()).collect();
            let message = match names.as_slice() {
                [] => format!("table `{}` has no column for the row key", table.output),
                names => {
                    format!("table `{}` has several columns that are no ROW, and HBase has one row key: {}", table.output, names.join(", "))
                }
            };
            return Err(options.error("connector", message, EXAMPLE));
        };
        if families.is_empty() {
            return Err(options.error("connector", format!("table `{}` has no column family", table.output), EXAMPLE));
        }
        let key_name = fields[*key].name().clone();
        if !table.primary_key.is_empty() && table.primary_key != [key_name.clone()] {
            return Err(options.error(
                "connector",
                format!("HBase's only key is the row key, `{key_name}`, and the PRIMARY KEY is ({})", table.primary_key.join(", ")),
                format!("write PRIMARY KEY ({key_name}) NOT ENFORCED"),
            ));
        }
        let writable = |name: &str, data_type: &DataType| match data_type {
            DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, _) => Err(options.error(
                "connector",
                format!("column `{name}` is {}, and HBase's values hold milliseconds", flink_name(data_type)),
                "declare TIMESTAMP(3) or TIMESTAMP_LTZ(3)",
            )),
            nested if nested.is_nested() => Err(options.error(
                "connector",
                format!("column `{name}` is {}, which is no value of a cell", flink_name(data_type)),
                "declare a field for each part, or one STRING",
            )),
            _ => Ok(()),
        };
        writable(&key_name, fields[*key].data_type())?;
        let mut read = Vec::with_capacity(families.len());
        for column in families {
            let (name, DataType::Struct(qualifiers)) = (fields[column].name(), fields[column].data_type()) else { continue };
            if name.contains(':') {
                return Err(options.error("connector", format!("`{name}` cannot be a column family: it has a colon"), "rename it"));
            }
            for qualifier in qualifiers {
                writable(&format!("{name}.{}", qualifier.name()), qualifier.data_type())?;
            }
            let columns = qualifiers.iter().map(|qualifier| format!("{name}:{}", qualifier.name()).into()).collect();
            read.push(ColumnFamily { name: name.clone(), column, columns });
        }
        Ok(Self {
            key: *key,
            key_name,
            families: read,
            null_text: options.optional("null-string-literal").unwrap_or_else(|| "null".into()).into(),
            ignore_null: options.boolean("sink.ignore-null-value", false)?,
        })
    }

    fn columns<'a>(&'a self, batch: &'a RecordBatch) -> anyhow::Result<Columns<'a>> {
        let mut cells = Vec::new();
        for family in &self.families {
            let row = batch.column(family.column).as_struct_opt().context("a column family is a ROW")?;
            for (column, values) in family.columns.iter().zip(row.columns()) {
                cells.push((column, row as &dyn Array, Values::of(values.as_ref())?));
            }
        }
        Ok(Columns { shape: self, key: Values::of(batch.column(self.key).as_ref())?, cells })
    }
}

/// A batch's columns, ready to be read by row.
struct Columns<'a> {
    shape: &'a Shape,
    key: Values<'a>,
    /// `family:qualifier`, the family's rows, the values.
    cells: Vec<(&'a Bytes, &'a dyn Array, Values<'a>)>,
}

impl Columns<'_> {
    /// A later row of a key replaces an earlier one.
    fn add(&self, row: usize, rows: &mut BTreeMap<Bytes, Cells>) -> anyhow::Result<()> {
        let key = self.key.get(row).filter(|key| !key.is_empty()).with_context(|| {
            format!(
                "row key `{0}` is NULL or empty, which HBase does not take; leave such rows out: WHERE {0} IS NOT NULL",
                self.shape.key_name
            )
        })?;
        let mut cells = Vec::with_capacity(self.cells.len());
        for (column, family, values) in &self.cells {
            match if family.is_null(row) { None } else { values.get(row) } {
                Some(value) => cells.push(((*column).clone(), value)),
                None if self.shape.ignore_null => {}
                None if matches!(values, Values::Text(_)) => cells.push(((*column).clone(), self.shape.null_text.clone())),
                None => cells.push(((*column).clone(), Bytes::new())),
            }
        }
        if cells.is_empty() {
            return Ok(());
        }
        add(rows, key, cells);
        Ok(())
    }
}

/// A later cell replaces an earlier one of its column.
pub(crate) fn add(rows: &mut BTreeMap<Bytes, Cells>, key: Bytes, cells: Cells) {
    let known = rows.entry(key).or_default();
    known.retain(|(column, _)| cells.iter().all(|(new, _)| new != column));
    known.extend(cells);
}

/// A column's values as HBase's own `Bytes.toBytes` has them.
enum Values<'a> {
    Text(&'a arrow::array::StringArray),
    Binary(&'a arrow::array::BinaryArray),
    Other(&'a dyn Array, fn(&dyn Array, usize) -> Bytes),
}

/// Numbers of a type, with the largest byte first.
macro_rules! numbers {
    ($type:ty) => {
        |array, row| Bytes::copy_from_slice(&array.as_primitive::<$type>().value(row).to_be_bytes())
    };
}

impl<'a> Values<'a> {
    fn of(array: &'a dyn Array) -> anyhow::Result<Self> {
        let encode: fn(&dyn Array, usize) -> Bytes = match array.data_type() {
            DataType::Utf8 => return Ok(Self::Text(array.as_string())),
            DataType::Binary => return Ok(Self::Binary(array.as_binary())),
            DataType::Boolean => |array, row| Bytes::from_static(if array.as_boolean().value(row) { &[0xff] } else { &[0] }),
            DataType::Int8 => numbers!(Int8Type),
            DataType::Int16 => numbers!(Int16Type),
            DataType::Int32 => numbers!(Int32Type),
            DataType::Int64 => numbers!(Int64Type),
            DataType::Float32 => numbers!(Float32Type),
            DataType::Float64 => numbers!(Float64Type),
            DataType::Date32 => numbers!(Date32Type),
            DataType::Timestamp(TimeUnit::Millisecond, _) => numbers!(TimestampMillisecondType),
            DataType::Decimal128(..) => |array, row| {
                let decimals = array.as_primitive::<Decimal128Type>();
                decimal(decimals.value(row), decimals.scale())
            },
            other => anyhow::bail!("{} cannot be written to HBase", flink_name(other)),
        };
        Ok(Self::Other(array, encode))
    }

    /// `None` is NULL.
    fn get(&self, row: usize) -> Option<Bytes> {
        match self {
            Self::Text(texts) => texts.is_valid(row).then(|| Bytes::copy_from_slice(texts.value(row).as_bytes())),
            Self::Binary(values) => values.is_valid(row).then(|| Bytes::copy_from_slice(values.value(row))),
            Self::Other(array, encode) => array.is_valid(row).then(|| encode(*array, row)),
        }
    }
}

/// The scale in four bytes, then the unscaled value in as few as its two's complement needs.
fn decimal(unscaled: i128, scale: i8) -> Bytes {
    let bytes = unscaled.to_be_bytes();
    let fill = if unscaled < 0 { 0xff } else { 0 };
    let redundant = |at: &usize| bytes[*at] == fill && (bytes[at + 1] & 0x80) == (fill & 0x80);
    let from = (0..bytes.len() - 1).take_while(redundant).count();
    [&i32::from(scale).to_be_bytes()[..], &bytes[from..]].concat().into()
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int8Array, Int64Array, StringArray, StructArray,
        TimestampMillisecondArray,
    };
    use arrow::buffer::NullBuffer;
    use arrow::datatypes::{Field, Fields, Schema};

    use super::*;
    use crate::batch::OffsetRange;
    use crate::sql::error::Place;
    use crate::sql::options::Entry;

    fn row(fields: Vec<(&str, ArrayRef)>, nulls: Option<NullBuffer>) -> ArrayRef {
        let (names, arrays): (Vec<_>, Vec<_>) =
            fields.into_iter().map(|(name, array)| (Field::new(name, array.data_type().clone(), true), array)).unzip();
        Arc::new(StructArray::new(Fields::from(names), arrays, nulls))
    }

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
    }

    fn read(schema: &Schema, primary_key: &[&str], options: &[(&str, &str)]) -> Result<Shape, SqlError> {
        let entry = |(key, value): &(&str, &str)| Entry { key: (*key).into(), value: (*value).into(), at: Place::default() };
        let entries: Vec<Entry> = options.iter().map(entry).collect();
        let table = SinkTable {
            output: "t".into(),
            ordinal: 0,
            schema: Arc::new(schema.clone()),
            fields: schema.fields().iter().cloned().collect(),
            primary_key: primary_key.iter().map(|name| (*name).to_owned()).collect(),
        };
        Shape::read(&Options::new("t", Place::default(), &entries), &table)
    }

    /// `key column=bytes …` of each row, as text where it is some.
    fn rows(batch: &RecordBatch, options: &[(&str, &str)]) -> Vec<String> {
        let shape = read(batch.schema().as_ref(), &[], options).unwrap();
        let mut rows = BTreeMap::new();
        let columns = shape.columns(batch).unwrap();
        (0..batch.num_rows()).for_each(|row| columns.add(row, &mut rows).unwrap());
        let shown = |bytes: &Bytes| bytes.escape_ascii().to_string();
        let cells = |cells: &Cells| cells.iter().map(|(column, value)| format!(" {}={}", shown(column), shown(value))).collect::<String>();
        rows.iter().map(|(key, of)| shown(key) + &cells(of)).collect()
    }

    #[test]
    fn values_have_the_bytes_of_hbase() {
        let values = row(
            vec![
                ("s", Arc::new(StringArray::from(vec!["\u{e9}"]))),
                ("b", Arc::new(BinaryArray::from(vec![&b"\x00\xff"[..]]))),
                ("t", Arc::new(BooleanArray::from(vec![true]))),
                ("i", Arc::new(Int8Array::from(vec![-2]))),
                ("l", Arc::new(Int64Array::from(vec![258]))),
                ("d", Arc::new(Float64Array::from(vec![1.0]))),
                ("day", Arc::new(Date32Array::from(vec![1]))),
                ("m", Arc::new(Decimal128Array::from(vec![-129]).with_precision_and_scale(10, 2).unwrap())),
            ],
            None,
        );
        let batch = batch(vec![("k", Arc::new(TimestampMillisecondArray::from(vec![1])) as ArrayRef), ("f", values)]);
        assert_eq!(
            rows(&batch, &[]),
            [
                r"\x00\x00\x00\x00\x00\x00\x00\x01 f:s=\xc3\xa9 f:b=\x00\xff f:t=\xff f:i=\xfe f:l=\x00\x00\x00\x00\x00\x00\x01\x02 f:d=?\xf0\x00\x00\x00\x00\x00\x00 f:day=\x00\x00\x00\x01 f:m=\x00\x00\x00\x02\xff\x7f"
            ]
        );
        let unscaled = |value: i128| decimal(value, 0)[4..].to_vec();
        assert_eq!([unscaled(0), unscaled(-1), unscaled(127), unscaled(128)], [vec![0], vec![0xff], vec![0x7f], vec![0, 0x80]]);
        assert_eq!((unscaled(-128), unscaled(i128::MIN).len()), (vec![0x80], 16));
    }

    /// Two families; of the second row a field and a family are NULL, and the third has the first one's key.
    fn with_nulls() -> RecordBatch {
        let first = row(
            vec![
                ("n", Arc::new(StringArray::from(vec![Some("1"), None, None]))),
                ("m", Arc::new(BinaryArray::from(vec![Some(&b"x"[..]), Some(b"y"), Some(b"z")]))),
            ],
            None,
        );
        let second =
            row(vec![("o", Arc::new(StringArray::from(vec!["p", "q", "r"])) as ArrayRef)], Some(NullBuffer::from(vec![true, false, true])));
        batch(vec![("f", first), ("k", Arc::new(StringArray::from(vec!["a", "b", "a"])) as ArrayRef), ("g", second)])
    }

    #[test]
    fn nulls_are_written_as_flink_does_and_the_last_row_of_a_key_stands() {
        let batch = with_nulls();
        assert_eq!(rows(&batch, &[]), ["a f:n=null f:m=z g:o=r", "b f:n=null f:m=y g:o=null"]);
        assert_eq!(rows(&batch, &[("null-string-literal", "")]), ["a f:n= f:m=z g:o=r", "b f:n= f:m=y g:o="]);
        assert_eq!(rows(&batch, &[("sink.ignore-null-value", "true")]), ["a f:n=1 f:m=z g:o=r", "b f:m=y"]);
        let keyless = batch_of_keys(vec![None]);
        let shape = read(keyless.schema().as_ref(), &[], &[]).unwrap();
        let error = shape.columns(&keyless).unwrap().add(0, &mut BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("WHERE k IS NOT NULL"), "{error}");
    }

    fn batch_of_keys(keys: Vec<Option<&str>>) -> RecordBatch {
        let values = row(vec![("n", Arc::new(Int64Array::from(vec![1; keys.len()])) as ArrayRef)], None);
        batch(vec![("k", Arc::new(StringArray::from(keys)) as ArrayRef), ("f", values)])
    }

    fn definition(id: u64, time_ms: i64, until: i64) -> BatchDefinition {
        BatchDefinition { id, time_ms, ranges: vec![vec![OffsetRange { topic: "t".into(), partition: 0, from: 0, until }]] }
    }

    #[test]
    fn a_fence_lets_a_history_go_on_and_refuses_another() {
        let batch = definition(7, 1000, 10);
        let held = |batch: &BatchDefinition, timestamp_ms| Held { batch: batch.id, digest: batch.digest(), timestamp_ms };
        let judged = |before: &BatchDefinition, timestamp_ms, newest| judge(Some(&held(before, timestamp_ms)), &batch, newest);
        assert_eq!(judge(None, &batch, 7), Verdict::Enter(held(&batch, 1000)));
        // Timestamps rise from batch to batch, also where two are of one time.
        assert_eq!(judged(&definition(5, 500, 5), 500, 7), Verdict::Enter(held(&batch, 1000)));
        assert_eq!(judged(&definition(6, 1000, 5), 1000, 7), Verdict::Enter(held(&batch, 1001)));
        assert_eq!(judged(&batch, 1001, 7), Verdict::Entered(1001));
        assert_eq!(judged(&definition(8, 2000, 5), 2000, 8), Verdict::Written, "both come again after a crash");
        assert_eq!(judged(&definition(8, 2000, 5), 2000, 7), Verdict::Behind(8));
        assert_eq!(judged(&definition(7, 1000, 11), 1000, 7), Verdict::Behind(7), "other records");
        assert_eq!(judged(&definition(7, 2000, 10), 2000, 7), Verdict::Behind(7), "another time");
    }

    #[test]
    fn a_fence_reads_as_it_was_written() {
        let held = Held { batch: 7, digest: 0x0a0b, timestamp_ms: 1_790_000_000_000 };
        assert_eq!(held.text(), "7 00000a0b 1790000000000");
        assert_eq!(Held::parse(held.text().as_bytes()), Some(held));
        for damaged in ["", "7", "7 0a", "7 0a 5 6", "7 xy 5", "\u{e9}"] {
            assert_eq!(Held::parse(damaged.as_bytes()), None, "{damaged}");
        }
    }
}
