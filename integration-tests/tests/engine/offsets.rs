//! Where offsets live: a job that loses its checkpoint goes on from each store, on real servers, and moves from store to store.

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{OwnHbase, kafka_bootstrap, redis_url},
    unique,
};
use redis::Commands as _;

use super::{FREE_PORTS, WAIT};

const PARTITIONS: i32 = 2;

/// A job that copies numbers from topic to topic, and how many of them there are.
struct Copying<'a> {
    dir: &'a Path,
    bootstrap: String,
    topic: String,
    out: String,
    group: String,
    rows: u64,
}

impl<'a> Copying<'a> {
    async fn new(dir: &'a Path) -> Self {
        let (bootstrap, topic, out) = (kafka_bootstrap(), unique("offsets"), unique("offsets-out"));
        kafka::create_topic(&bootstrap, &topic, PARTITIONS).await;
        kafka::create_topic(&bootstrap, &out, 1).await;
        Self { dir, bootstrap, topic, out, group: unique("offsets-group"), rows: 0 }
    }

    fn feed(&mut self, rows: u64) {
        kafka::produce(&self.bootstrap, &self.topic, PARTITIONS, (self.rows..self.rows + rows).map(|n| format!(r#"{{"id":{n}}}"#)));
        self.rows += rows;
    }

    /// Runs the job over what is there and a bit more, and stops it when all of it is copied: each number once.
    async fn run(&mut self, settings: &[(&str, &str)]) -> String {
        let settings: String = settings.iter().map(|(key, value)| format!("SET '{key}' = '{value}';\n")).collect();
        let Self { bootstrap, topic, out, group, .. } = &*self;
        let sql = format!(
            "SET 'batch.interval' = '100ms';\n{settings}\
             CREATE TABLE numbers (id BIGINT) WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}',\n\
             'properties.group.id' = '{group}', 'properties.auto.offset.reset' = 'earliest', 'scan.startup.mode' = 'group-offsets', 'format' = 'json');\n\
             CREATE TABLE copies (id BIGINT) WITH ('connector' = 'kafka', 'topic' = '{out}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json');\n\
             INSERT INTO copies SELECT id FROM numbers;\n"
        );
        let job = self.dir.join("job.sql");
        fs::write(&job, sql).expect("the job");
        let checkpoint = self.checkpoint();
        let args = ["run", &*job.to_string_lossy(), "--name", "copying", "--checkpoint", &*checkpoint.to_string_lossy()];
        let mut engine = Process::start("millrace-engine", self.dir, &args, &FREE_PORTS);
        self.copied(&engine).await;
        self.feed(20);
        self.copied(&engine).await;
        engine.stop().await;
        engine.log()
    }

    async fn copied(&self, engine: &Process) {
        let copies = eventually(WAIT, "every number is copied", || async {
            let copies = kafka::texts(&self.bootstrap, &self.out);
            if copies.len() as u64 >= self.rows { Ok(copies) } else { Err(format!("{} of {}:\n{}", copies.len(), self.rows, engine.log())) }
        })
        .await;
        let mut times: BTreeMap<u64, u64> = (0..self.rows).map(|n| (n, 0)).collect();
        for copy in copies {
            let value: serde_json::Value = serde_json::from_str(&copy).expect("JSON");
            *times.entry(value["id"].as_u64().expect("an id")).or_default() += 1;
        }
        let wrong: Vec<_> = times.iter().filter(|(_, times)| **times != 1).take(10).collect();
        assert!(wrong.is_empty(), "lost or repeated (number, times): {wrong:?}\n{}", engine.log());
    }

    fn checkpoint(&self) -> std::path::PathBuf {
        self.dir.join("checkpoint")
    }

    fn lose_checkpoint(&self) {
        fs::remove_dir_all(self.checkpoint()).expect("the checkpoint");
    }
}

fn leading_number(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text).into_owned();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no offset: {text:?}"))
}

/// How many records of the topic the group has read, as the store's own tools would find it; `None` where no other process can look.
async fn position(store: &str, job: &Copying<'_>, hbase: &OwnHbase) -> Option<u64> {
    let Copying { group, topic, .. } = job;
    let mut position = 0;
    match store.split(':').next().unwrap_or_default() {
        "kafka" => return job.rows.checked_sub(u64::try_from(kafka::lag(&job.bootstrap, group, topic)).expect("a lag")),
        "zookeeper" => {
            let client = zookeeper_client::Client::connect(&hbase.zookeeper).await.expect("ZooKeeper");
            for partition in 0..PARTITIONS {
                let (data, _) = client.get_data(&format!("/consumers/{group}/offsets/{topic}/{partition}")).await.expect("the node");
                position += leading_number(&data);
            }
        }
        "redis" => {
            let mut connection = redis::Client::open(redis_url()).expect("URL").get_connection().expect("Redis");
            for partition in 0..PARTITIONS {
                let value: Vec<u8> =
                    connection.hget(format!("millrace:offsets:group:{group}"), format!("{topic}:{partition}")).expect("the field");
                position += leading_number(&value);
            }
        }
        "hbase" => {
            let row = reqwest::Client::new().get(format!("{}/{}/g{group}", hbase.url, table(store)));
            let answer = row.header("accept", "application/json").send().await.expect("HBase");
            let row: serde_json::Value = answer.json().await.expect("JSON");
            let decoded = |value: &serde_json::Value| BASE64_STANDARD.decode(value.as_str().expect("base64")).expect("base64");
            for cell in row["Row"][0]["Cell"].as_array().expect("cells") {
                if decoded(&cell["column"]).starts_with(format!("o:p:{topic}:").as_bytes()) {
                    position += leading_number(&decoded(&cell["$"]));
                }
            }
        }
        _ => return None,
    }
    Some(position)
}

fn table(store: &str) -> &str {
    store.rsplit('/').next().unwrap_or_default()
}

#[tokio::test]
async fn a_job_that_loses_its_checkpoint_goes_on_from_every_store_and_moves_between_them() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    // It brings a ZooKeeper.
    let hbase = OwnHbase::start(dir.path().join("hbase"));
    let mut job = Copying::new(dir.path()).await;
    let redis = redis_url();
    let stores = [
        "kafka".to_owned(),
        format!("zookeeper://{}", hbase.zookeeper),
        redis.clone(),
        format!("sled:{}", dir.path().join("sled").display()),
        format!("{}/offsets", hbase.url.replace("http://", "hbase://")),
    ];
    let mut previous = "";
    for store in &stores {
        job.feed(200);
        // Without a checkpoint, and where nothing of this group is yet: from the store before.
        job.run(&[("offsets.store", store), ("offsets.store.previous", previous)]).await;
        job.lose_checkpoint();
        job.feed(100);
        let log = job.run(&[("offsets.store", store)]).await;
        if let Some(position) = position(store, &job, &hbase).await {
            assert_eq!(position, job.rows, "{store}\n{log}");
        }
        if store != &stores[stores.len() - 1] {
            job.lose_checkpoint();
        }
        previous = store;
    }
    // With its checkpoint it goes on from there, whatever an old store says, and takes that one along.
    job.feed(50);
    let before = position(&redis, &job, &hbase).await;
    assert!(before.is_some_and(|before| before < job.rows), "{before:?} of {}", job.rows);
    let log = job.run(&[("offsets.store", &redis)]).await;
    assert_eq!(position(&redis, &job, &hbase).await, Some(job.rows), "{log}");
}

#[tokio::test]
async fn a_store_that_is_away_is_said_once_and_holds_no_batch_up() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut job = Copying::new(dir.path()).await;
    job.feed(50);
    // With a checkpoint from before: a first start would wait for its offsets.
    job.run(&[]).await;
    let log = job.run(&[("offsets.store", "redis://127.0.0.1:1")]).await;
    assert_eq!(log.matches("cannot write offsets to the group").count(), 1, "{log}");
}
