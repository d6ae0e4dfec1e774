//! From a URL or path to an object store. One place decides which schemes there are, and how a store is reached.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use hdfs_native_object_store::HdfsObjectStoreBuilder;
use object_store::{
    ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// `[checkpoint]`: how stores on the network are reached. Credentials of S3 come from the environment (`AWS_…`), Hadoop's files from
/// `HADOOP_CONF_DIR`; what is set here wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Until a store must have answered one request; then the request is made again. Default 1 min.
    #[serde(with = "service_kit::config::period")]
    pub timeout: Duration,
    /// `[checkpoint.store]`: object_store's names for S3 (`aws_endpoint`), Hadoop's for HDFS (`dfs.…`).
    #[serde(deserialize_with = "known_settings")]
    pub store: BTreeMap<String, String>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), store: BTreeMap::new() }
    }
}

impl CheckpointConfig {
    /// With these settings of stores. The error names a wrong one.
    pub(crate) fn with_store(store: BTreeMap<String, String>) -> Result<Self, String> {
        store.keys().try_for_each(|name| Setting::of(name).map(drop))?;
        Ok(Self { store, ..Self::default() })
    }
}

/// Whose setting a name is.
enum Setting {
    S3(AmazonS3ConfigKey),
    Hadoop,
}

impl Setting {
    fn of(name: &str) -> Result<Self, String> {
        // In a variable's name `_` stands for `.`: MILLRACE_CHECKPOINT__STORE__AWS_ENDPOINT is `aws.endpoint`.
        match name.replace('.', "_").parse() {
            Ok(key) => Ok(Self::S3(key)),
            Err(_) if name.contains('.') => Ok(Self::Hadoop),
            Err(_) => Err(format!("`{name}` is neither a setting of S3, such as `aws_endpoint`, nor of Hadoop, such as `dfs.replication`")),
        }
    }
}

/// A wrong name is refused at the start of the engine, not with every job.
fn known_settings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    use serde_json::Value;
    let given = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let text = |(name, value): (String, Value)| {
        Setting::of(&name).map_err(D::Error::custom)?;
        match value {
            Value::String(text) => Ok((name, text)),
            Value::Bool(_) | Value::Number(_) => Ok((name, value.to_string())),
            other => Err(D::Error::custom(format!("`{other}` is neither text nor a number nor true or false"))),
        }
    };
    given.into_iter().map(text).collect()
}

/// Where entries are: what is in a store below a path.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    /// Set for a local disk.
    pub(crate) local: Option<PathBuf>,
    /// Set for a store on the network: how long it may take to answer.
    pub(crate) timeout: Option<Duration>,
}

/// Stores of `memory:///name`, so that a job that is started again in the same process finds its checkpoint.
static MEMORY: LazyLock<Mutex<BTreeMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

/// The store's own tries of one request: the job tries again itself, and says that it waits.
const TRIES: RetryConfig = RetryConfig {
    backoff: object_store::BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(2), base: 2.0 },
    max_retries: 3,
    retry_timeout: Duration::from_secs(10),
};

/// A location as it is written, checked.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// An absolute path.
    Local(PathBuf),
    Memory(String),
    S3 {
        address: String,
        root: Path,
    },
    Hdfs {
        address: String,
        root: Path,
    },
}

impl Place {
    /// The error says what is wrong, without the location.
    pub(crate) fn parse(location: &str) -> Result<Self, String> {
        let local = |path: &str| std::path::absolute(path).map(Self::Local).map_err(|error| format!("is no usable path: {error}"));
        match location.split_once("://") {
            None if location.is_empty() => Err("is empty; give a folder or a URL (file://, hdfs://, s3://)".into()),
            None => local(location),
            Some((_, path)) if path.contains('%') => Err("percent-encoding is not understood; give the plain path".into()),
            Some(("file", path)) if path.starts_with('/') => local(path),
            Some(("file", _)) => Err("a file URL has three slashes: file:///path".into()),
            Some(("memory", name)) => Ok(Self::Memory(name.trim_matches('/').to_owned())),
            Some((scheme, rest)) => {
                let scheme = match scheme {
                    "hdfs" | "viewfs" => scheme,
                    "s3" | "s3a" | "s3n" => "s3",
                    _ => return Err(format!("scheme `{scheme}` is not built in; use a folder, file://, hdfs://, viewfs:// or s3://")),
                };
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                if authority.is_empty() {
                    let what = if scheme == "s3" { "bucket" } else { "host" };
                    return Err(format!("names no {what}; write {scheme}://{}/path", what.to_uppercase()));
                }
                let root = Path::parse(path.trim_matches('/')).map_err(|error| format!("is no usable path: {error}"))?;
                let address = format!("{scheme}://{authority}");
                Ok(if scheme == "s3" { Self::S3 { address, root } } else { Self::Hdfs { address, root } })
            }
        }
    }

    /// Makes the folder where it is a local one; nothing is asked of a store on the network yet. The error says what is wrong, without
    /// the location.
    pub(crate) fn open(&self, config: &CheckpointConfig) -> Result<Opened, String> {
        match self {
            Self::Local(path) => {
                std::fs::create_dir_all(path).map_err(|error| format!("cannot create the folder: {error}"))?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
                Ok(Opened { store: Arc::new(store), root: Path::default(), local: Some(path.clone()), timeout: None })
            }
            Self::Memory(name) => {
                let store = MEMORY.lock().entry(name.clone()).or_default().clone();
                Ok(Opened { store, root: Path::default(), local: None, timeout: None })
            }
            Self::S3 { address, root } => {
                Ok(Opened { store: s3(address, config)?, root: root.clone(), local: None, timeout: Some(config.timeout) })
            }
            Self::Hdfs { address, root } => {
                Ok(Opened { store: hdfs(address.clone(), config)?, root: root.clone(), local: None, timeout: Some(config.timeout) })
            }
        }
    }
}

/// Local stores rename into place without syncing; a power cut could leave an empty file under the final name. Takes a folder too.
pub(crate) async fn sync(file: PathBuf) -> std::io::Result<()> {
    let synced = tokio::task::spawn_blocking(move || {
        std::fs::File::open(&file)?.sync_all()?;
        // The directory too: a durable file whose name is lost is a lost file.
        match file.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    });
    synced.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

fn s3(address: &str, config: &CheckpointConfig) -> Result<Arc<dyn ObjectStore>, String> {
    let mut builder = AmazonS3Builder::from_env().with_url(address).with_retry(TRIES);
    for (name, value) in &config.store {
        if let Setting::S3(key) = Setting::of(name)? {
            builder = builder.with_config(key, value);
        }
    }
    Ok(Arc::new(builder.build().map_err(|error| error.to_string())?))
}

fn hdfs(mut address: String, config: &CheckpointConfig) -> Result<Arc<dyn ObjectStore>, String> {
    let mut settings = BTreeMap::new();
    for (name, value) in &config.store {
        if let Setting::Hadoop = Setting::of(name)? {
            settings.insert(name, value);
        }
    }
    // A name without a port may stand for several name nodes; where nothing can say for which, it is a host with Hadoop's own port.
    let described = settings.keys().any(|name| name.starts_with("dfs.ha.namenodes."))
        || ["HADOOP_CONF_DIR", "HADOOP_HOME"].iter().any(|name| std::env::var_os(name).is_some());
    let url = url::Url::parse(&address).map_err(|error| format!("is no usable address: {error}"))?;
    if url.scheme() == "hdfs" && url.port().is_none() && !described {
        address.push_str(":8020");
    }
    let store = HdfsObjectStoreBuilder::new().with_url(address).with_config(settings).build();
    Ok(Arc::new(store.map_err(|error| error.to_string())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(location: &str, config: &CheckpointConfig) -> Result<Opened, String> {
        Place::parse(location)?.open(config)
    }

    fn at(location: &str) -> Result<Opened, String> {
        open(location, &CheckpointConfig::default())
    }

    #[test]
    fn unknown_schemes_and_unusable_places_are_named() {
        for (location, part) in [
            ("gs://bucket/x", "scheme `gs` is not built in; use a folder, file://, hdfs://, viewfs:// or s3://"),
            ("s3:///x", "names no bucket; write s3://BUCKET/path"),
            ("hdfs:///x", "names no host; write hdfs://HOST/path"),
            ("hdfs://host/a//b", "is no usable path"),
            ("hdfs://host:port/a", "is no usable address"),
            ("file://relative", "three slashes"),
            ("file:///a%20b", "percent-encoding"),
            ("s3://bucket/a%20b", "percent-encoding"),
            ("", "is empty"),
            ("/proc/self/nothing/here", "cannot create the folder"),
        ] {
            let error = at(location).err().unwrap();
            assert!(error.contains(part), "{location}: {error}");
        }
    }

    #[test]
    fn urls_on_the_network_give_a_store_and_the_path_in_it() {
        let config: CheckpointConfig = serde_json::from_value(serde_json::json!({
            "timeout": "5s",
            "store": { "aws_endpoint": "http://127.0.0.1:1", "aws.region": "here", "aws_allow_http": true, "dfs.replication": 1 },
        }))
        .unwrap();
        for (location, root) in
            [("hdfs://nn:8020/jobs/a", "jobs/a"), ("hdfs://nn", ""), ("s3://bucket/jobs/", "jobs"), ("s3a://bucket/jobs", "jobs")]
        {
            let opened = open(location, &config).unwrap();
            assert_eq!((opened.root.as_ref(), opened.timeout, opened.local), (root, Some(Duration::from_secs(5)), None), "{location}");
        }
    }

    #[test]
    fn a_setting_that_no_store_has_is_refused() {
        let said = |store: serde_json::Value| {
            serde_json::from_value::<CheckpointConfig>(serde_json::json!({ "store": store })).unwrap_err().to_string()
        };
        let unknown = said(serde_json::json!({ "endpoint_of_aws": "x" }));
        assert!(unknown.contains("`endpoint_of_aws` is neither a setting of S3"), "{unknown}");
        let list = said(serde_json::json!({ "aws_endpoint": ["x"] }));
        assert!(list.contains("neither text nor a number"), "{list}");
    }

    #[test]
    fn memory_of_the_same_name_is_the_same_store() {
        let store = |location: &str| at(location).unwrap().store;
        let a = store("memory:///location-test");
        assert!(Arc::ptr_eq(&a, &store("memory:///location-test")));
        assert!(!Arc::ptr_eq(&a, &store("memory:///location-other")));
    }
}
