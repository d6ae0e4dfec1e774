//! Batches as folders of files: `<prefix>-<time in ms>[.<suffix>]`, with a file for each partition and, when it is complete, `_SUCCESS`.
//!
//! A batch that runs again finds `_SUCCESS` and writes nothing; without it, it replaces what is in the folder. A folder with `_SUCCESS` holds
//! its batch once, unless another process runs the same batch at the same time (one that stood still and came back): then a file may be
//! replaced by the other's. Where two processes are possible, and each row counts, use connector `filesystem`, whose manifest holds.

use std::fmt::Display;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;

use super::DStream;
use super::rdd::{Data, Rdd, on_all_cores};
use super::state::StateValue;
use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::location::Place;
use crate::sink::folder::Folder;

const SUCCESS: &str = "_SUCCESS";

/// Puts one value behind those that are there.
type Encode<T> = Arc<dyn Fn(T, &mut Vec<u8>) -> anyhow::Result<()> + Send + Sync>;

impl<T: Data + Display> DStream<T> {
    /// Every batch as text, a line per value. `prefix` is a path or URL (`hdfs://namenode/out/counts`), whose store is reached by
    /// `[checkpoint.store]`; no suffix: `""`. One that cannot be a place is an error of the start.
    #[track_caller]
    pub fn save_as_text_files(&self, prefix: &str, suffix: &str) {
        use std::io::Write as _;
        self.save("saveAsTextFiles", prefix, suffix, Arc::new(|value, out| Ok(writeln!(out, "{value}")?)));
    }
}

impl<T: StateValue> DStream<T> {
    /// As [`Self::save_as_text_files`], in MessagePack: one value after the other, structs with the names of their fields. Spark's own
    /// object files are Java's.
    #[track_caller]
    pub fn save_as_object_files(&self, prefix: &str, suffix: &str) {
        self.save("saveAsObjectFiles", prefix, suffix, Arc::new(|value, out| Ok(rmp_serde::encode::write_named(out, &value)?)));
    }
}

impl<T: Data> DStream<T> {
    #[track_caller]
    fn save(&self, op: &'static str, prefix: &str, suffix: &str, encode: Encode<T>) {
        let suffix = if suffix.is_empty() { String::new() } else { format!(".{suffix}") };
        let target = split(prefix).and_then(|(parent, name)| Place::parse(parent).map(|_| (parent.to_owned(), name.to_owned())));
        let mut graph = self.graph.lock();
        let (parent, name) = target.unwrap_or_else(|message| {
            graph.error(format!("{op}: `{prefix}` {message}"));
            Default::default()
        });
        let stores = graph.stores.clone();
        drop(graph);
        let opened: Arc<Mutex<Option<Arc<Folder>>>> = Arc::default();
        self.output(op, move |rdd, time| {
            let folder = open(&opened, &parent, &stores);
            let (batch, encode) = (format!("{name}-{}{suffix}", time.milliseconds()), encode.clone());
            async move { save(&rdd, folder?, batch, encode).await }
        });
    }
}

/// The folder, and what its folders' names begin with.
fn split(prefix: &str) -> Result<(&str, &str), String> {
    let (parent, name) = match prefix.rsplit_once('/') {
        None => (".", prefix),
        Some(("", name)) => ("/", name),
        Some(("file://", name)) => ("file:///", name),
        Some(("memory://", name)) => ("memory:///", name),
        Some((parent, _)) if parent.ends_with(":/") => return Err("names no path; write what the folders' names begin with".into()),
        Some(both) => both,
    };
    if name.is_empty() { Err("ends with `/`; write what the folders' names begin with".into()) } else { Ok((parent, name)) }
}

/// With the first batch, for it makes the folder; once, for it connects.
fn open(opened: &Mutex<Option<Arc<Folder>>>, parent: &str, stores: &CheckpointConfig) -> anyhow::Result<Arc<Folder>> {
    let mut opened = opened.lock();
    if let Some(folder) = opened.as_ref() {
        return Ok(folder.clone());
    }
    let folder = Folder::open(parent, stores).map_err(|message| anyhow::anyhow!("`{parent}`: {message}"))?;
    Ok(opened.insert(Arc::new(folder)).clone())
}

async fn save<T: Data>(rdd: &Rdd<T>, folder: Arc<Folder>, batch: String, encode: Encode<T>) -> anyhow::Result<()> {
    let success = format!("{batch}/{SUCCESS}");
    if folder.read(&success).await?.is_some() {
        return Ok(());
    }
    // An attempt that was cut short may have had more partitions.
    for left in folder.names(&batch, "").await? {
        folder.delete(&format!("{batch}/{left}")).await?;
    }
    let parts = (0..rdd.num_partitions()).map(|partition| {
        let (data, folder, encode) = (rdd.data.clone(), folder.clone(), encode.clone());
        let part = format!("{batch}/part-{partition:05}");
        async move {
            let (mut content, mut failed) = (Vec::new(), None);
            let mut add = |value| {
                if failed.is_none() {
                    failed = encode(value, &mut content).err();
                }
            };
            data.for_each(partition, &mut add).await?;
            if let Some(error) = failed {
                return Err(error.context(format!("a value of `{part}` cannot be written")));
            }
            folder.put(&part, Bytes::from(content)).await.context("saving a partition")
        }
        .boxed()
    });
    on_all_cores(parts.collect()).await?;
    folder.create(&success, Bytes::new()).await?;
    Ok(())
}
