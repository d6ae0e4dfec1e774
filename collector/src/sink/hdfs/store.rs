//! Where the files go: this machine's disk, or a store that shows a file when it is complete (S3, HDFS).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use hdfs_native_object_store::HdfsObjectStoreBuilder;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, WriteMultipart, path::Path};
use url::Url;

/// The part of `hdfs.path` before its directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    Local,
    /// `s3://bucket`, `hdfs://namenode:8020`.
    Store(String),
}

/// Where a path without a scheme leads is `default`. Gives the root and the path below it.
pub fn split(path: &str, default: &str) -> Result<(Root, String), String> {
    let path = path.trim();
    let Some((scheme, rest)) = path.split_once(':').filter(|(scheme, _)| scheme.chars().all(|char| char.is_ascii_alphanumeric())) else {
        return match default.trim() {
            "" => Ok((Root::Local, path.to_owned())),
            default => split(&format!("{}/{}", default.trim_end_matches('/'), path.trim_start_matches('/')), ""),
        };
    };
    let (authority, below) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/').map_or((rest, String::new()), |(authority, below)| (authority, format!("/{below}"))),
        None => ("", rest.to_owned()),
    };
    if authority.contains('%') {
        return Err(format!("`{authority}` cannot hold escapes; they may stand in directories and file names"));
    }
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "file" if authority.is_empty() => return Ok((Root::Local, below)),
        "file" => return Err(format!("file://{authority} names a host; write file:///{authority}{below}")),
        "s3" | "s3a" | "s3n" => "s3",
        "hdfs" => "hdfs",
        "viewfs" => "viewfs",
        other => return Err(format!("scheme `{other}` is none of file, hdfs, viewfs, s3, s3a, s3n")),
    };
    if authority.is_empty() {
        return Err(format!("{scheme}:// needs a host or bucket behind it"));
    }
    Ok((Root::Store(format!("{scheme}://{authority}")), below))
}

/// `options` are object_store's names (`aws_endpoint`, …) or Hadoop's (`dfs.…`); S3 takes the rest from the environment (`AWS_…`).
pub fn open(root: &str, options: BTreeMap<String, String>) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let url = Url::parse(root).with_context(|| format!("`{root}` is not an address"))?;
    if url.scheme() != "s3" {
        let configured = ["HADOOP_CONF_DIR", "HADOOP_HOME"].iter().any(|name| std::env::var_os(name).is_some());
        // Hadoop's own port, where no configuration could say what the name stands for.
        let address = if url.port().is_none() && url.scheme() == "hdfs" && !configured { format!("{root}:8020") } else { root.to_owned() };
        let store = HdfsObjectStoreBuilder::new().with_url(&address).with_config(options).build();
        return Ok(Arc::new(store.with_context(|| format!("`{address}` cannot be opened"))?));
    }
    let mut builder = object_store::aws::AmazonS3Builder::from_env().with_url(root);
    for (key, value) in options {
        let key = key.parse().with_context(|| format!("hdfs.store.{key} is no setting of S3"))?;
        builder = builder.with_config(key, value);
    }
    Ok(Arc::new(builder.build().with_context(|| format!("`{root}` cannot be opened"))?))
}

/// Bytes of one part of an upload; what is smaller goes in one piece.
pub const PART_BYTES: usize = 8 << 20;
/// Parts on their way at a time.
const PARTS_MAX: usize = 2;

/// A file on its way into a store. Nobody sees it before [`Upload::finish`].
pub struct Upload {
    store: Arc<dyn ObjectStore>,
    path: Path,
    timeout: Duration,
    state: State,
}

enum State {
    Small(Vec<u8>),
    Parts(Box<WriteMultipart>),
}

impl Upload {
    /// An error where the path cannot be one.
    pub fn new(store: Arc<dyn ObjectStore>, path: &str, timeout: Duration) -> anyhow::Result<Self> {
        let path = Path::parse(path).with_context(|| format!("`{path}` cannot be a name"))?;
        Ok(Self { store, path, timeout, state: State::Small(Vec::new()) })
    }

    /// Is the name taken?
    pub async fn taken(&mut self) -> anyhow::Result<bool> {
        match timed(self.timeout, self.store.head(&self.path)).await? {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn write(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        if let State::Small(buffer) = &mut self.state {
            buffer.extend_from_slice(&bytes);
            if buffer.len() < PART_BYTES {
                return Ok(());
            }
            let begun = std::mem::take(buffer);
            let upload = timed(self.timeout, self.store.put_multipart(&self.path)).await??;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            parts.put(Bytes::from(begun));
            self.state = State::Parts(Box::new(parts));
            return Ok(());
        }
        if let State::Parts(parts) = &mut self.state {
            timed(self.timeout, parts.wait_for_capacity(PARTS_MAX)).await??;
            parts.put(Bytes::from(bytes));
        }
        Ok(())
    }

    /// The file is there, whole.
    pub async fn finish(self) -> anyhow::Result<()> {
        match self.state {
            State::Small(bytes) => {
                // Nothing that is there already is written over.
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                timed(self.timeout, self.store.put_opts(&self.path, Bytes::from(bytes).into(), options)).await??;
            }
            State::Parts(parts) => {
                // A part on its way, and the word that it was the last.
                timed(self.timeout * (PARTS_MAX as u32 + 1), parts.finish()).await??;
            }
        }
        Ok(())
    }

    /// What was sent is forgotten; parts that could not be taken back are the store's to clear away.
    pub async fn abort(self) {
        if let State::Parts(parts) = self.state
            && let Err(error) = timed(self.timeout, parts.abort()).await.and_then(|aborted| Ok(aborted?))
        {
            tracing::warn!(path = %self.path, error = format!("{error:#}"), "an unfinished upload could not be taken back");
        }
    }
}

async fn timed<T>(timeout: Duration, call: impl Future<Output = T>) -> anyhow::Result<T> {
    tokio::time::timeout(timeout, call).await.with_context(|| format!("no answer within hdfs.callTimeout = {} ms", timeout.as_millis()))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn paths_name_their_place() {
        let store = |root: &str, below: &str| Ok((Root::Store(root.into()), below.to_owned()));
        let local = |below: &str| Ok((Root::Local, below.to_owned()));
        for (path, default, expected) in [
            ("/flume/%Y", "", local("/flume/%Y")),
            ("flume", "", local("flume")),
            ("file:///tmp/x", "", local("/tmp/x")),
            ("file:/tmp/x", "", local("/tmp/x")),
            ("hdfs://nn:8020/l/%Y", "", store("hdfs://nn:8020", "/l/%Y")),
            ("hdfs://nn", "", store("hdfs://nn", "")),
            ("s3a://bucket/a/b", "", store("s3://bucket", "/a/b")),
            ("/flume/%H:%M", "", local("/flume/%H:%M")),
            ("/flume/x", "hdfs://nn:8020/", store("hdfs://nn:8020", "/flume/x")),
            ("s3://%{b}/x", "", Err("`%{b}` cannot hold escapes; they may stand in directories and file names".into())),
            ("gs://b/x", "", Err("scheme `gs` is none of file, hdfs, viewfs, s3, s3a, s3n".into())),
            ("file://host/x", "", Err("file://host names a host; write file:///host/x".into())),
            ("hdfs:///x", "", Err("hdfs:// needs a host or bucket behind it".into())),
        ] {
            assert_eq!(split(path, default), expected, "{path} {default}");
        }
    }

    #[tokio::test]
    async fn a_file_is_seen_when_it_is_whole() {
        for size in [10, PART_BYTES * 3] {
            let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let upload = || Upload::new(store.clone(), "/a b/c%20.gz", Duration::from_secs(5)).unwrap();
            let mut first = upload();
            assert!(!first.taken().await.unwrap());
            for chunk in vec![7u8; size].chunks(PART_BYTES / 2) {
                first.write(chunk.to_vec()).await.unwrap();
            }
            assert!(!upload().taken().await.unwrap(), "seen before it is whole");
            first.finish().await.unwrap();
            let path = Path::parse("a b/c%20.gz").unwrap();
            assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap().len(), size);
            assert!(upload().taken().await.unwrap());
            let mut other = upload();
            other.write(vec![1]).await.unwrap();
            assert!(other.finish().await.is_err(), "written over");
            let mut aborted = Upload::new(store.clone(), "x", Duration::from_secs(5)).unwrap();
            aborted.write(vec![0; size]).await.unwrap();
            aborted.abort().await;
            assert!(store.head(&Path::from("x")).await.is_err());
        }
    }
}
