//! Batches into HBase, each once: [`DStream::hbase_bulk_put`], with the fence and the timestamps of the SQL sink.

use std::{collections::BTreeMap, panic::Location, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use service_kit::hbase::{Hbase, HbaseConfig};

use super::DStream;
use super::graph::{AnyNode as _, Job, Output};
use super::rdd::Data;
use super::time::Time;
use crate::sink::hbase::{Cells, FENCES, HbaseWriter, add};

/// Rows of a request.
const CHUNK_ROWS: usize = 1000;

/// A table of HBase that a program writes.
#[derive(Clone, Debug)]
pub struct HbaseTable {
    url: String,
    name: String,
    fences: Option<String>,
    retry_timeout: Duration,
}

impl HbaseTable {
    /// `url`: HBase's REST gateway, `http://[user:password@]host:port`. `name`: `table` or `namespace:table`; it exists, with its column families.
    pub fn new(url: &str, name: &str) -> Self {
        Self { url: url.into(), name: name.into(), fences: Some(FENCES.into()), retry_timeout: Duration::from_secs(60) }
    }

    /// The table of the fences, made where it is missing; default `millrace_fences`.
    pub fn fence_table(self, name: &str) -> Self {
        Self { fences: Some(name.into()), ..self }
    }

    /// Without a fence: a batch that comes again is written again, also by a process that was thought dead, and without a checkpoint.
    pub fn at_least_once(self) -> Self {
        Self { fences: None, ..self }
    }

    /// How long an absent gateway is waited for before the batch fails; default 1 min.
    pub fn retry_timeout(self, timeout: Duration) -> Self {
        Self { retry_timeout: timeout, ..self }
    }
}

/// A row of HBase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    row: Bytes,
    cells: Cells,
}

impl Put {
    /// `row`: its key, of the values' own, so that it is the same when the batch comes again.
    pub fn new(row: impl Into<Bytes>) -> Self {
        Self { row: row.into(), cells: Cells::new() }
    }

    pub fn add_column(mut self, family: &str, qualifier: &str, value: impl Into<Bytes>) -> Self {
        self.cells.push((format!("{family}:{qualifier}").into(), value.into()));
        self
    }
}

impl<T: Data> DStream<T> {
    /// Writes each value as a row of HBase, exactly once unless the table says otherwise: cells carry the batch's time as their timestamp, and a
    /// fence refuses a process with another history. Of several rows with one key in a batch the last one stands. `put` must give the same for
    /// the same value. Needs a checkpoint, and sources that can be read again.
    #[track_caller]
    pub fn hbase_bulk_put(&self, table: &HbaseTable, put: impl Fn(T) -> Put + Send + Sync + 'static) {
        let place = Location::caller();
        let mut graph = self.graph.lock();
        graph.expect_open("hbaseBulkPut");
        let client = match Hbase::new(HbaseConfig::new(&table.url)) {
            Ok(client) => client,
            Err(error) => return graph.error(format!("hbaseBulkPut: {error}")),
        };
        self.node.consumed();
        let name = format!("hbaseBulkPut-{}", graph.outputs.len());
        let description = format!("hbaseBulkPut at {}:{}", place.file(), place.line());
        let exactly_once = table.fences.is_some();
        // Families are not known before the first row; HBase names one that is missing.
        let writer = HbaseWriter::new(client, table.name.clone(), Vec::new(), table.fences.clone(), name.clone(), table.retry_timeout);
        let (writer, put, node) = (Arc::new(tokio::sync::Mutex::new(writer)), Arc::new(put), self.node.clone());
        let at = move |time: Time| {
            let Some(rdd) = node.at(time.0)? else { return Ok(None) };
            let rdd = rdd.cache();
            let (data, writer, put) = (rdd.data.clone(), writer.clone(), put.clone());
            let batch = node.progress().batch.lock().clone().context("no batch runs")?;
            let work = async move {
                let puts = rdd.map(move |value| put(value)).collect().await?;
                let (mut chunk, mut begun, mut writer) = (BTreeMap::new(), None, writer.lock().await);
                for Put { row, cells } in puts {
                    add(&mut chunk, row, cells);
                    if chunk.len() >= CHUNK_ROWS {
                        writer.put(&batch, time.0, std::mem::take(&mut chunk), &mut begun).await?;
                    }
                }
                if !chunk.is_empty() {
                    writer.put(&batch, time.0, chunk, &mut begun).await?;
                }
                Ok(())
            };
            Ok(Some(Job { work: Box::pin(work), rows: Box::new(move || data.rows_kept()) }))
        };
        let node = self.node.clone();
        graph.outputs.push(Arc::new(Output { name, description, node, exactly_once, at: Box::new(at) }));
    }
}
