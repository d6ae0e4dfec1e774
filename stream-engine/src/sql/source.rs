//! A table that is read: records → rows of its needed columns.
//!
//! Decoded once per batch for all queries; columns nobody needs are not decoded. Rows come with the largest event
//! time among them, and with the records that could not be read.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, MapBuilder, RecordBatch, RecordBatchOptions, StringArray,
    StringBuilder, TimestampMillisecondArray,
};
use arrow::compute;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimestampMillisecondType};
use datafusion::physical_expr::PhysicalExpr;
use parking_lot::Mutex;
use service_kit::kafka::Record;

use super::kafka::KafkaTable;
use crate::batch::{OffsetRange, SourceKind, SourceSpec};
use crate::format::{Decoder, Malformed};

/// Metadata columns by their key, and the types they can be declared as.
pub(crate) const METADATA: &[&str] = &["topic", "partition", "offset", "timestamp", "headers", "key"];

/// A table as it can be read.
#[derive(Clone)]
pub(crate) struct SourceTable {
    pub(crate) name: String,
    pub(crate) kafka: KafkaTable,
    pub(crate) columns: Vec<SourceColumn>,
    /// Fields of `columns`.
    pub(crate) schema: SchemaRef,
    pub(crate) watermark: Option<Watermark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermark {
    pub(crate) column: usize,
    pub(crate) delay_ms: i64,
}

#[derive(Clone)]
pub(crate) struct SourceColumn {
    pub(crate) field: FieldRef,
    pub(crate) origin: ColumnOrigin,
}

#[derive(Clone)]
pub(crate) enum ColumnOrigin {
    Value,
    Key,
    Metadata(&'static str),
    /// Over all columns that are not computed, in the order of the table.
    Computed(Arc<dyn PhysicalExpr>),
}

impl SourceTable {
    pub(crate) fn spec(&self) -> SourceSpec {
        SourceSpec {
            name: self.name.clone(),
            kind: SourceKind::Kafka(self.kafka.config.clone()),
            topics: self.kafka.topics.clone(),
            startup: self.kafka.startup.clone(),
            bounded: self.kafka.bounded,
            isolation: self.kafka.isolation,
            group: self.kafka.group.clone(),
        }
    }
}

/// Reads the columns that the job's queries need.
pub(crate) struct Reader {
    table: SourceTable,
    /// Columns of the table that rows have, in this order.
    pub(crate) columns: Vec<usize>,
    schema: SchemaRef,
    /// Columns that must be decoded for them, by index in the table.
    value: Vec<usize>,
    key: Vec<usize>,
    watermark: Option<usize>,
    /// Decoders that are not in use; their buffers are kept.
    idle: Mutex<Vec<Decoders>>,
}

struct Decoders {
    value: Box<dyn Decoder>,
    key: Option<Box<dyn Decoder>>,
}

/// One chunk of records, read.
pub(crate) struct Rows {
    pub(crate) batch: RecordBatch,
    pub(crate) max_event_ms: Option<i64>,
    /// Index in the chunk, and why.
    pub(crate) malformed: Vec<(usize, Malformed)>,
}

impl Reader {
    /// `needed`: columns of the table.
    pub(crate) fn new(table: &SourceTable, mut needed: BTreeSet<usize>) -> anyhow::Result<Self> {
        needed.extend(table.watermark.map(|watermark| watermark.column));
        let columns: Vec<usize> = needed.iter().copied().collect();
        let mut decoded = needed.clone();
        for column in &columns {
            if let ColumnOrigin::Computed(expr) = &table.columns[*column].origin {
                decoded.extend(inputs(expr, table));
            }
        }
        let of = |wanted: fn(&ColumnOrigin) -> bool| -> Vec<usize> {
            decoded.iter().copied().filter(|column| wanted(&table.columns[*column].origin)).collect()
        };
        Ok(Self {
            value: of(|origin| matches!(origin, ColumnOrigin::Value)),
            key: of(|origin| matches!(origin, ColumnOrigin::Key)),
            schema: Arc::new(table.schema.project(&columns)?),
            watermark: table.watermark.and_then(|watermark| columns.iter().position(|column| *column == watermark.column)),
            columns,
            table: table.clone(),
            idle: Mutex::default(),
        })
    }

    pub(crate) fn table(&self) -> &SourceTable {
        &self.table
    }

    /// Position of a table's column in the rows.
    pub(crate) fn position(&self, column: usize) -> Option<usize> {
        self.columns.iter().position(|known| *known == column)
    }

    pub(crate) fn read(&self, range: &OffsetRange, records: &[Record]) -> anyhow::Result<Rows> {
        let mut decoders = self.idle.lock().pop().unwrap_or_else(|| self.decoders());
        let mut malformed = Vec::new();
        // Records that became rows.
        let mut kept: Vec<usize> = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            match stage(&mut decoders, record) {
                Ok(true) => {
                    if let Some(decoder) = &mut decoders.key {
                        decoder.commit(record.key.as_deref().unwrap_or_default());
                    }
                    decoders.value.commit(record.value.as_deref().unwrap_or_default());
                    kept.push(index);
                }
                // A record without value deletes a key; as a row it has nothing to say.
                Ok(false) => {}
                Err(reason) => malformed.push((index, reason)),
            }
        }
        let value = decoders.value.finish()?;
        let key = decoders.key.as_mut().map(|decoder| decoder.finish()).transpose()?.unwrap_or_default();
        self.idle.lock().push(decoders);
        let batch = self.assemble(range, records, &kept, value, key)?;
        self.with_event_time(batch, &kept, malformed)
    }

    fn decoders(&self) -> Decoders {
        let fields = |columns: &[usize]| -> Vec<FieldRef> { columns.iter().map(|c| self.table.columns[*c].field.clone()).collect() };
        Decoders {
            value: self.table.kafka.value.format.decoder(&fields(&self.value)),
            key: match &self.table.kafka.key {
                Some(choice) if !self.key.is_empty() => Some(choice.format.decoder(&fields(&self.key))),
                _ => None,
            },
        }
    }

    fn assemble(
        &self,
        range: &OffsetRange,
        records: &[Record],
        kept: &[usize],
        value: Vec<ArrayRef>,
        key: Vec<ArrayRef>,
    ) -> anyhow::Result<RecordBatch> {
        let rows = kept.len();
        let base = |column: usize| -> anyhow::Result<ArrayRef> {
            let of = |columns: &[usize], arrays: &[ArrayRef]| {
                columns.iter().position(|known| *known == column).and_then(|position| arrays.get(position).cloned())
            };
            let data_type = self.table.columns[column].field.data_type();
            Ok(match &self.table.columns[column].origin {
                ColumnOrigin::Metadata(key) => metadata(key, data_type, range, records, kept)?,
                // What no expression needs is not decoded; its place is kept by NULLs.
                _ => {
                    of(&self.value, &value).or_else(|| of(&self.key, &key)).unwrap_or_else(|| arrow::array::new_null_array(data_type, rows))
                }
            })
        };
        let mut computing = None;
        let mut columns = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let SourceColumn { field, origin } = &self.table.columns[*column];
            let array = match origin {
                ColumnOrigin::Computed(expr) => {
                    if computing.is_none() {
                        computing = Some(self.computing_batch(rows, &base)?);
                    }
                    let batch = computing.as_ref().context("made above")?;
                    let value = expr.evaluate(batch).with_context(|| format!("column `{}`", field.name()))?;
                    value.into_array(rows)?
                }
                _ => base(*column)?,
            };
            columns.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }

    /// What computed columns are computed from: all columns that are not computed, undecoded ones as NULL.
    fn computing_batch(&self, rows: usize, base: &dyn Fn(usize) -> anyhow::Result<ArrayRef>) -> anyhow::Result<RecordBatch> {
        let mut fields = Vec::new();
        let mut arrays = Vec::new();
        for (index, column) in self.table.columns.iter().enumerate() {
            if !matches!(column.origin, ColumnOrigin::Computed(_)) {
                fields.push(column.field.as_ref().clone().with_nullable(true));
                arrays.push(base(index)?);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)?)
    }

    /// Drops rows without event time, and finds the latest one.
    fn with_event_time(&self, batch: RecordBatch, kept: &[usize], mut malformed: Vec<(usize, Malformed)>) -> anyhow::Result<Rows> {
        let Some(position) = self.watermark else {
            return Ok(Rows { batch, max_event_ms: None, malformed });
        };
        let times = batch.column(position).as_primitive::<TimestampMillisecondType>();
        let max_event_ms = compute::max(times);
        if times.null_count() == 0 {
            return Ok(Rows { batch, max_event_ms, malformed });
        }
        let name = self.schema.field(position).name();
        let present = compute::is_not_null(times)?;
        let reason = Malformed(format!("event time `{name}` has no value"));
        malformed.extend(kept.iter().zip(present.values()).filter(|(_, present)| !present).map(|(index, _)| (*index, reason.clone())));
        malformed.sort_by_key(|(index, _)| *index);
        Ok(Rows { batch: compute::filter_record_batch(&batch, &present)?, max_event_ms, malformed })
    }
}

fn stage(decoders: &mut Decoders, record: &Record) -> Result<bool, Malformed> {
    let Some(value) = record.value.as_deref() else { return Ok(false) };
    if let Some(decoder) = &mut decoders.key {
        let key = record.key.as_deref().ok_or_else(|| Malformed("the record has no key".into()))?;
        decoder.stage(key).map_err(|Malformed(reason)| Malformed(format!("key: {reason}")))?;
    }
    decoders.value.stage(value)?;
    Ok(true)
}

/// Table columns that a computed column reads.
fn inputs(expr: &Arc<dyn PhysicalExpr>, table: &SourceTable) -> Vec<usize> {
    let base: Vec<usize> =
        (0..table.columns.len()).filter(|index| !matches!(table.columns[*index].origin, ColumnOrigin::Computed(_))).collect();
    let read = datafusion::physical_expr::utils::collect_columns(expr);
    read.iter().filter_map(|column| base.get(column.index()).copied()).collect()
}

/// Types that a metadata column can be declared as; the first is Flink's.
pub(crate) fn metadata_types(key: &str) -> Vec<DataType> {
    use super::types::{UTC, map};
    use arrow::datatypes::TimeUnit::Millisecond;
    match key {
        "topic" => vec![DataType::Utf8],
        "partition" => vec![DataType::Int32],
        "offset" => vec![DataType::Int64],
        "timestamp" => vec![DataType::Timestamp(Millisecond, Some(UTC.into())), DataType::Timestamp(Millisecond, None)],
        "headers" => vec![map(DataType::Utf8, DataType::Binary)],
        _ => vec![DataType::Binary, DataType::Utf8],
    }
}

fn metadata(key: &str, data_type: &DataType, range: &OffsetRange, records: &[Record], kept: &[usize]) -> anyhow::Result<ArrayRef> {
    let kept = || kept.iter().map(|index| &records[*index]);
    Ok(match key {
        "topic" => Arc::new(StringArray::from_iter_values(kept().map(|_| &*range.topic))),
        "partition" => Arc::new(Int32Array::from_iter_values(kept().map(|_| range.partition))),
        "offset" => Arc::new(Int64Array::from_iter_values(kept().map(|record| record.offset))),
        "timestamp" => {
            let times: TimestampMillisecondArray = kept().map(|record| (record.timestamp_ms >= 0).then_some(record.timestamp_ms)).collect();
            match data_type {
                DataType::Timestamp(_, zone) => Arc::new(times.with_timezone_opt(zone.clone())),
                _ => Arc::new(times),
            }
        }
        "headers" => {
            let mut headers = MapBuilder::new(None, StringBuilder::new(), BinaryBuilder::new());
            for record in kept() {
                for (name, value) in &record.headers {
                    headers.keys().append_value(name);
                    headers.values().append_option(value.as_deref());
                }
                headers.append(true)?;
            }
            compute::cast(&headers.finish(), data_type)?
        }
        _ if data_type == &DataType::Binary => {
            let mut keys = BinaryBuilder::new();
            kept().for_each(|record| keys.append_option(record.key.as_deref()));
            Arc::new(keys.finish())
        }
        _ => {
            let text = |record: &Record| record.key.as_deref().map(|key| String::from_utf8_lossy(key).into_owned());
            Arc::new(kept().map(text).collect::<StringArray>())
        }
    })
}
