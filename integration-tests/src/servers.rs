//! Real servers: those that `make test` started (`KAFKA_BOOTSTRAP_SERVERS`, `REDIS_URL`), or one's own to break.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::root;

fn required(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`, or `deploy/dev/with-servers cargo test …`"))
}

pub fn kafka_bootstrap() -> String {
    required("KAFKA_BOOTSTRAP_SERVERS")
}

pub fn redis_url() -> String {
    required("REDIS_URL")
}

/// Runs a script of `deploy/dev` and gives what it printed.
pub fn script(name: &str, args: &[&str]) -> String {
    let output = Command::new(root().join("deploy/dev").join(name))
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("deploy/dev/{name}: {error}"));
    assert!(output.status.success(), "deploy/dev/{name} {args:?} ended with {}", output.status);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A Kafka of one's own, to kill and restart.
pub struct OwnKafka {
    dir: PathBuf,
    pub bootstrap: String,
}

impl OwnKafka {
    pub fn start(dir: PathBuf) -> Self {
        let bootstrap = script("kafka/kafka", &["start", &dir.to_string_lossy()]);
        Self { dir, bootstrap }
    }

    /// With three brokers; each is also one of the three controllers.
    pub fn start_three(dir: PathBuf) -> Self {
        let bootstrap = script("kafka/kafka", &["start", &dir.to_string_lossy(), "--brokers", "3"]);
        Self { dir, bootstrap }
    }

    /// What a broker has logged.
    pub fn log(&self, broker: usize) -> String {
        fs::read_to_string(self.dir.join(format!("broker-{broker}/broker.log"))).unwrap_or_default()
    }

    /// Of another line than the newest: `2.8`, with its ZooKeeper.
    pub fn start_version(dir: PathBuf, version: &str) -> Self {
        let bootstrap = script("kafka/kafka", &["start", &dir.to_string_lossy(), "--version", version]);
        Self { dir, bootstrap }
    }

    pub fn start_on(dir: PathBuf, port: u16) -> Self {
        let bootstrap = script("kafka/kafka", &["start", &dir.to_string_lossy(), "--port", &port.to_string()]);
        Self { dir, bootstrap }
    }

    pub fn kill(&self, broker: usize) {
        script("kafka/kafka", &["kill", &self.dir.to_string_lossy(), &broker.to_string()]);
    }

    pub fn restart(&self, broker: usize) {
        script("kafka/kafka", &["restart", &self.dir.to_string_lossy(), &broker.to_string()]);
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        script("kafka/kafka", &["stop", &self.dir.to_string_lossy()]);
    }
}

/// An HBase of one's own with its REST gateway, to kill and restart.
pub struct OwnHbase {
    dir: PathBuf,
    /// The gateway's.
    pub url: String,
    /// `host:port`.
    pub zookeeper: String,
}

impl OwnHbase {
    pub fn start(dir: PathBuf) -> Self {
        let printed = script("hbase/hbase", &["start", &dir.to_string_lossy()]);
        let (url, zookeeper) = printed.split_once('\n').unwrap_or_else(|| panic!("deploy/dev/hbase printed {printed:?}"));
        Self { dir, url: url.to_owned(), zookeeper: zookeeper.to_owned() }
    }

    pub fn kill_gateway(&self) {
        script("hbase/hbase", &["kill", &self.dir.to_string_lossy()]);
    }

    pub fn restart_gateway(&self) {
        script("hbase/hbase", &["restart", &self.dir.to_string_lossy()]);
    }
}

impl Drop for OwnHbase {
    fn drop(&mut self) {
        script("hbase/hbase", &["stop", &self.dir.to_string_lossy()]);
    }
}

/// An HDFS of one's own, one name node and one data node, to kill and restart.
pub struct OwnHdfs {
    dir: PathBuf,
    /// `hdfs://127.0.0.1:PORT`.
    pub url: String,
}

impl OwnHdfs {
    pub fn start(dir: PathBuf) -> Self {
        let url = script("hdfs/hdfs", &["start", &dir.to_string_lossy()]);
        Self { dir, url }
    }

    /// Lines of files, as `hadoop fs -text` shows them.
    pub fn text(&self, path: &str) -> Vec<String> {
        script("hdfs/hdfs", &["text", &self.dir.to_string_lossy(), path]).lines().map(str::to_owned).collect()
    }

    /// `hadoop fs`.
    pub fn fs(&self, args: &[&str]) -> String {
        script("hdfs/hdfs", &[&["fs", &*self.dir.to_string_lossy()], args].concat())
    }

    /// `hdfs dfsadmin`.
    pub fn admin(&self, args: &[&str]) {
        script("hdfs/hdfs", &[&["admin", &*self.dir.to_string_lossy()], args].concat());
    }

    /// Changes a byte of the block with this content on the data node's disk; its checksum stays.
    pub fn damage_block(&self, content: &[u8]) {
        let mut folders = vec![self.dir.join("data")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read(&path).is_ok_and(|block| block == content) {
                    let mut damaged = content.to_vec();
                    if let Some(byte) = damaged.last_mut() {
                        *byte ^= 1;
                    }
                    fs::write(&path, damaged).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    return;
                }
            }
        }
        panic!("no block holds this");
    }

    pub fn kill_data_node(&self) {
        script("hdfs/hdfs", &["kill", &self.dir.to_string_lossy(), "datanode"]);
    }

    pub fn restart_data_node(&self) {
        script("hdfs/hdfs", &["restart", &self.dir.to_string_lossy(), "datanode"]);
    }
}

impl Drop for OwnHdfs {
    fn drop(&mut self) {
        script("hdfs/hdfs", &["stop", &self.dir.to_string_lossy()]);
    }
}

/// A server of the S3 protocol of one's own, with one bucket.
pub struct OwnS3 {
    dir: PathBuf,
    /// `http://127.0.0.1:PORT`.
    pub url: String,
    bucket: &'static str,
}

impl OwnS3 {
    pub fn start(dir: PathBuf, bucket: &'static str) -> Self {
        let url = script("s3/s3", &["start", &dir.to_string_lossy(), bucket]);
        Self { dir, url, bucket }
    }

    /// Key and content of every object.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let printed = script("s3/s3", &["list", &self.url, self.bucket]);
        let objects = printed.lines().map(|line| line.split_once('\t').unwrap_or_else(|| panic!("{line}")));
        objects.map(|(key, content)| (key.to_owned(), BASE64_STANDARD.decode(content).expect("base64"))).collect()
    }

    pub fn put(&self, key: &str, file: &Path) {
        script("s3/s3", &["put", &self.url, self.bucket, key, &file.to_string_lossy()]);
    }

    /// Only where there is none; false where there is one.
    pub fn put_new(&self, key: &str, file: &Path) -> bool {
        script("s3/s3", &["put-new", &self.url, self.bucket, key, &file.to_string_lossy()]) == "put"
    }
}

impl Drop for OwnS3 {
    fn drop(&mut self) {
        script("s3/s3", &["stop", &self.dir.to_string_lossy()]);
    }
}
