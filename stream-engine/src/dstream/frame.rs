//! Batches as tables: an [`Rdd`] as a DataFusion [`DataFrame`], on which SQL can be run, and back.
//!
//! ```no_run
//! # use serde::{Deserialize, Serialize};
//! # use stream_engine::dstream::{DStream, SessionContext};
//! #[derive(Clone, Serialize, Deserialize)]
//! struct Record {
//!     word: String,
//! }
//! # fn declare(words: DStream<String>) {
//! words.foreach_rdd(|rdd, _| async move {
//!     let session = SessionContext::new();
//!     let records = rdd.map(|word| Record { word }).to_df(&session)?;
//!     session.register_table("words", records.into_view())?;
//!     session.sql("SELECT word, COUNT(*) AS total FROM words GROUP BY word").await?.show().await?;
//!     Ok(())
//! });
//! # }
//! ```

use std::any::type_name;
use std::fmt;
use std::sync::Arc;

use anyhow::Context as _;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;

use super::rdd::{Computed, Data, Partitions, Rdd, on_all_cores};
use super::schema::fields_of;
use super::shuffle;
use super::state::StateValue;
use crate::format::{JsonEncoder, TimestampStyle};

/// Rows of one record batch.
const ROWS_MAX: usize = 8192;

type Encode<T> = Arc<dyn Fn(Vec<T>) -> anyhow::Result<Vec<RecordBatch>> + Send + Sync>;

impl<T: StateValue> Rdd<T> {
    /// These values, structs with named fields, as a table with a column per field. Nothing is computed before the frame is. The error
    /// names a field whose type no column has: an enum, a map, a type that parses its text; columns are numbers, booleans, text, lists and
    /// structs of them, and `Option`s, which may be NULL.
    pub fn to_df(&self, session: &SessionContext) -> anyhow::Result<DataFrame> {
        let schema = Arc::new(Schema::new(fields_of::<T>()?));
        let of = schema.clone();
        let encode = move |values: Vec<T>| {
            let mut decoder = ReaderBuilder::new(of.clone()).build_decoder()?;
            let batches = values.chunks(ROWS_MAX).map(|rows| {
                decoder.serialize(rows)?;
                decoder.flush()?.context("rows were given")
            });
            batches.collect()
        };
        self.frame(session, schema, Arc::new(encode))
    }
}

impl Rdd<RecordBatch> {
    /// Spark's `createDataFrame`: record batches of this schema as a table.
    pub fn create_data_frame(&self, session: &SessionContext, schema: SchemaRef) -> anyhow::Result<DataFrame> {
        let of = schema.clone();
        let check = move |batches: Vec<RecordBatch>| {
            let other = batches.iter().find(|batch| batch.schema().fields() != of.fields());
            anyhow::ensure!(other.is_none(), "create_data_frame: a record batch has another schema: {:?}", other.map(RecordBatch::schema));
            Ok(batches)
        };
        self.frame(session, schema, Arc::new(check))
    }
}

impl<T: Data + DeserializeOwned> Rdd<T> {
    /// The rows of a frame as structs, by the names of its columns, when they are asked for. `frame` may be what
    /// `session.sql("…")` gives: it is waited for then.
    pub fn from_df(frame: impl Future<Output = datafusion::error::Result<DataFrame>> + Send + 'static) -> Self {
        let partitions = shuffle::partitions();
        let compute = async move {
            let mut rows: Vec<Vec<T>> = (0..partitions).map(|_| Vec::new()).collect();
            for (n, batches) in frame.await?.collect_partitioned().await?.into_iter().enumerate() {
                for batch in batches {
                    if let Some(rows) = rows.get_mut(n % partitions) {
                        rows.append(&mut from_batch(&batch)?);
                    }
                }
            }
            Ok(rows)
        };
        Self::over(Computed::new(partitions, compute.boxed()))
    }
}

fn from_batch<T: DeserializeOwned>(batch: &RecordBatch) -> anyhow::Result<Vec<T>> {
    let json = JsonEncoder { timestamps: TimestampStyle::Iso, without_nulls: false };
    let row = |line: &bytes::Bytes| {
        serde_json::from_slice(line).with_context(|| format!("from_df: no {}: {}", type_name::<T>(), String::from_utf8_lossy(line)))
    };
    json.encode(batch)?.iter().map(row).collect()
}

impl<T: Data> Rdd<T> {
    fn frame(&self, session: &SessionContext, schema: SchemaRef, encode: Encode<T>) -> anyhow::Result<DataFrame> {
        // A query may read a table more than once.
        let data = self.cache().data;
        // A table has at least one.
        let partitions = (0..data.count().max(1)).map(|partition| {
            let of = Partition { data: data.clone(), partition, schema: schema.clone(), encode: encode.clone() };
            Arc::new(of) as Arc<dyn PartitionStream>
        });
        let partitions = partitions.collect();
        Ok(session.read_table(Arc::new(StreamingTable::try_new(schema, partitions)?))?)
    }
}

struct Partition<T> {
    data: Arc<dyn Partitions<T>>,
    partition: usize,
    schema: SchemaRef,
    encode: Encode<T>,
}

impl<T> fmt::Debug for Partition<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {} of an Rdd", self.partition)
    }
}

impl<T: Data> PartitionStream for Partition<T> {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (data, partition, encode) = (self.data.clone(), self.partition, self.encode.clone());
        let compute = async move {
            let mut values = Vec::new();
            if partition < data.count() {
                data.for_each(partition, &mut |value| values.push(value)).await?;
            }
            encode(values)
        };
        let batches = async move {
            let computed = on_all_cores(vec![compute.boxed()]).await.map_err(|error| DataFusionError::External(error.into()))?;
            Ok::<_, DataFusionError>(stream::iter(computed.into_iter().flatten().map(Ok)))
        };
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream::once(batches).try_flatten().boxed()))
    }
}
