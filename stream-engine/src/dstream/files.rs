//! File streams: the lines, or records, of files that appear in a directory.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use object_store::{ObjectStoreExt as _, local::LocalFileSystem, path::Path};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::graph::{AnyNode, Node};
use super::input::Input;
use super::rdd::{Data, Partitions, Rdd};
use super::socket::line;
use super::{DStream, StreamingContext};
use crate::batch::{PartitionInput, SourceSpec, Startup};
use crate::source::Mirror;
use crate::source::files::{FilesLog, Taken};

/// Takes the next value out of a file's bytes; `None`: it is not complete. The flag says that the file ends.
type Convert<T> = dyn Fn(&mut BytesMut, bool) -> anyhow::Result<Option<T>> + Send + Sync;

struct FilesInput<T> {
    spec: SourceSpec,
    node: Arc<Node<T>>,
    convert: Arc<Convert<T>>,
    read: Arc<AtomicU64>,
}

impl<T: Data> Input for FilesInput<T> {
    fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    fn node(&self) -> Arc<dyn AnyNode> {
        self.node.clone()
    }

    fn offer(&self, time_ms: i64, input: Vec<PartitionInput>, _: Option<Mirror>) {
        let count = input.iter().map(|input| input.range.count()).sum::<u64>();
        let files = Files {
            count: usize::try_from(count).unwrap_or(usize::MAX),
            input: Mutex::new(input),
            names: OnceCell::new(),
            convert: self.convert.clone(),
            read: self.read.clone(),
        };
        self.node.put(time_ms, Rdd::over(files));
    }

    fn take_read(&self) -> u64 {
        self.read.swap(0, Relaxed)
    }
}

/// A partition for each file.
struct Files<T> {
    count: usize,
    input: Mutex<Vec<PartitionInput>>,
    /// Read once, by whoever needs them first.
    names: OnceCell<Vec<Taken>>,
    convert: Arc<Convert<T>>,
    read: Arc<AtomicU64>,
}

impl<T: Data> Files<T> {
    async fn names(&self) -> anyhow::Result<Vec<Taken>> {
        let input = std::mem::take(&mut *self.input.lock());
        let mut names = Vec::new();
        for mut input in input {
            while let Some(chunk) = input.records.next().await {
                for record in chunk? {
                    names.push(Taken::decode(&record.value.unwrap_or_default())?);
                }
            }
        }
        Ok(names)
    }

    async fn read(&self, path: &str, each: &mut (dyn FnMut(T) + Send)) -> anyhow::Result<()> {
        let location = Path::from_absolute_path(path)?;
        let file = LocalFileSystem::new().get(&location).await;
        let mut chunks =
            file.with_context(|| format!("cannot read `{path}`, which this batch holds; files of a file stream must stay"))?.into_stream();
        let mut buffer = BytesMut::new();
        loop {
            let chunk = chunks.try_next().await.with_context(|| format!("cannot read `{path}`"))?;
            buffer.extend_from_slice(chunk.as_deref().unwrap_or_default());
            let mut count = 0;
            while let Some(value) = (self.convert)(&mut buffer, chunk.is_none()).with_context(|| format!("`{path}`"))? {
                each(value);
                count += 1;
            }
            self.read.fetch_add(count, Relaxed);
            if chunk.is_none() {
                return Ok(());
            }
        }
    }
}

impl<T: Data> Partitions<T> for Files<T> {
    fn count(&self) -> usize {
        self.count
    }

    fn for_each<'a>(&'a self, partition: usize, each: &'a mut (dyn FnMut(T) + Send)) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            let names = self.names.get_or_try_init(|| self.names()).await?;
            // Fewer than the range says: their names were lost with a process that had no place for them.
            let Some(taken) = names.get(partition) else { return Ok(()) };
            self.read(&taken.path, each).await
        }
        .boxed()
    }
}

impl StreamingContext {
    /// The lines of new files in a directory (a path or file: URL). Files must be moved there in one step, complete, and stay
    /// unchanged; those whose names begin with a dot are left out, and so are those that are there when the job first starts.
    pub fn text_file_stream(&self, directory: &str) -> DStream<String> {
        self.file_stream(directory, |name| !name.starts_with('.'), true)
    }

    /// As [`Self::text_file_stream`], with files whose names (without the directory) pass `filter`. Without `new_files_only` a fresh job also
    /// takes files that are there already, as far back as `spark.streaming.fileStream.minRememberDuration`.
    pub fn file_stream(
        &self,
        directory: &str,
        filter: impl Fn(&str) -> bool + Send + Sync + 'static,
        new_files_only: bool,
    ) -> DStream<String> {
        self.files(directory, filter, new_files_only, |bytes, end| Ok(line(bytes, end)))
    }

    /// New files of a directory, as in [`Self::text_file_stream`], in records of `record_length` bytes. A file whose length is no multiple of it
    /// fails the batch.
    pub fn binary_records_stream(&self, directory: &str, record_length: usize) -> DStream<Bytes> {
        if record_length == 0 {
            self.graph.lock().error("binaryRecordsStream: record_length (0) must be positive".into());
        }
        let length = record_length.max(1);
        self.files(
            directory,
            |name| !name.starts_with('.'),
            true,
            move |bytes, end| {
                if bytes.len() >= length {
                    return Ok(Some(bytes.split_to(length).freeze()));
                }
                anyhow::ensure!(!end || bytes.is_empty(), "its length is no multiple of {length}: {} bytes are left", bytes.len());
                Ok(None)
            },
        )
    }

    fn files<T: Data>(
        &self,
        directory: &str,
        filter: impl Fn(&str) -> bool + Send + Sync + 'static,
        new_files_only: bool,
        convert: impl Fn(&mut BytesMut, bool) -> anyhow::Result<Option<T>> + Send + Sync + 'static,
    ) -> DStream<T> {
        self.input_stream("files", format!("files({directory})"), |name, node| {
            let log = FilesLog::new(directory, Box::new(filter), new_files_only).map_err(|error| format!("fileStream: {error}"))?;
            let spec = SourceSpec::local(name, "", Arc::new(log), Startup::Earliest);
            Ok(Arc::new(FilesInput { spec, node, convert: Arc::new(convert), read: Arc::default() }))
        })
    }
}
