//! The engine: a SQL job from topic to topic.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use integration_tests::{
    eventually, kafka,
    process::Process,
    secured::{Acl, By, Secured},
    unique,
};

use super::{WAIT, grant_all, needed, says, told};

const ENV: [(&str, &str); 2] = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")];

struct Job {
    kafka: Arc<Secured>,
    principal: String,
    dir: tempfile::TempDir,
    from: String,
    to: String,
    written: BTreeSet<u64>,
}

/// Copies each row when its batch is there.
const COPY: &str = "INSERT INTO results SELECT n FROM rows_in;\n";
/// Gives each row as a window of its own, over two slots of which one has no partition to read.
const WINDOWS: &str = "SET 'job.slots' = '2';\n\
    INSERT INTO results SELECT n FROM TABLE(TUMBLE(TABLE rows_in, DESCRIPTOR(ts), INTERVAL '1' SECOND)) GROUP BY window_start, window_end, n;\n";

impl Job {
    async fn new(by: By, query: &str, sink: &str) -> Self {
        let kafka = Secured::shared();
        let (from, to) = (unique("rows"), unique("results"));
        for topic in [&from, &to] {
            kafka::create_topic(&kafka.bootstrap, topic, 1).await;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let settings: String =
            kafka.settings(by, "engine").iter().map(|(key, value)| format!(", 'properties.{key}' = '{value}'")).collect();
        let table = |name: &str, columns: &str, topic: &str, more: &str| {
            format!(
                "CREATE TABLE {name} (n BIGINT{columns}) WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{}', 'format' = 'json'{settings}{more});\n",
                kafka.at(by)
            )
        };
        let sql = format!(
            "SET 'batch.interval' = '200ms';\n{}{}{query}",
            table(
                "rows_in",
                ", ts AS TO_TIMESTAMP_LTZ(n * 1000, 3), WATERMARK FOR ts AS ts",
                &from,
                ", 'scan.startup.mode' = 'earliest-offset'"
            ),
            table("results", "", &to, &sink.replace("PREFIX", &to))
        );
        fs::write(dir.path().join("job.sql"), sql).expect("the job");
        Self { principal: Secured::principal(by, "engine"), kafka, dir, from, to, written: BTreeSet::new() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn start(&self) -> Process {
        let (job, checkpoints) = (self.path().join("job.sql"), self.path().join("checkpoints"));
        let args = ["run", &job.to_string_lossy(), "--checkpoint", &checkpoints.to_string_lossy(), "--name", "secured"];
        Process::start("millrace-engine", self.path(), &args, &ENV)
    }

    fn produce(&mut self) {
        let first = self.written.len() as u64;
        let new = first..first + 10;
        kafka::produce(&self.kafka.bootstrap, &self.from, 1, new.clone().map(|n| format!("{{\"n\":{n}}}")));
        self.written.extend(new);
    }

    async fn all_in_results(&self, exactly: bool) {
        eventually(WAIT, "every row has its result", || async {
            let texts = kafka::texts(&self.kafka.bootstrap, &self.to);
            let number = |text: &String| serde_json::from_str::<serde_json::Value>(text).ok().and_then(|value| value["n"].as_u64());
            let seen: BTreeSet<u64> = texts.iter().filter_map(number).collect();
            let whole = seen == self.written && (!exactly || texts.len() == seen.len());
            if whole { Ok(()) } else { Err(format!("{} of {} rows, {} records", seen.len(), self.written.len(), texts.len())) }
        })
        .await;
    }

    /// While it runs, one entry after the other goes and comes back.
    async fn each_in_turn(&mut self, acls: &[Acl], exactly: bool) {
        let mut engine = self.start();
        self.produce();
        self.all_in_results(exactly).await;
        for acl in acls {
            self.kafka.revoke(&self.principal, acl);
            self.produce();
            told(&engine, &self.principal, acl).await;
            self.kafka.grant(&self.principal, acl);
            self.all_in_results(exactly).await;
        }
        engine.kill_9();
    }
}

const EXACTLY_ONCE: &str = ", 'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = 'PREFIX'";

async fn at_least_once(by: By) {
    let mut job = Job::new(by, COPY, "").await;
    let mut acls = needed("engine: source table", &[("TOPIC", &job.from)]);
    let read = acls.clone();
    acls.extend(needed("engine: sink table", &[("TOPIC", &job.to)]));
    grant_all(&job.kafka, &job.principal, &acls);
    // A job is not begun without what it reads.
    for acl in &read {
        job.kafka.revoke(&job.principal, acl);
        let mut engine = job.start();
        told(&engine, &job.principal, acl).await;
        assert!(!engine.ended(WAIT).await.success(), "{}", engine.log());
        job.kafka.grant(&job.principal, acl);
    }
    job.each_in_turn(&acls, false).await;
}

#[tokio::test]
async fn a_job_by_scram_says_what_it_lacks_and_goes_on() {
    at_least_once(By::Scram).await;
}

#[tokio::test]
async fn a_job_by_certificate_says_what_it_lacks_and_goes_on() {
    at_least_once(By::Certificate).await;
}

#[tokio::test]
async fn an_exactly_once_job_by_scram_says_what_it_lacks_and_repeats_nothing() {
    let mut job = Job::new(By::Scram, COPY, EXACTLY_ONCE).await;
    let mut acls = needed("engine: source table", &[("TOPIC", &job.from)]);
    acls.extend(needed("engine: exactly-once sink table", &[("TOPIC", &job.to), ("PREFIX", &job.to)]));
    grant_all(&job.kafka, &job.principal, &acls);
    job.each_in_turn(&acls, true).await;
}

/// It begins with nothing of what a shared job needs, and is granted what it says that it lacks: in the end that is all of the table, but for what
/// it does later.
#[tokio::test]
async fn a_shared_job_by_scram_says_what_it_lacks_until_it_has_all() {
    let mut job = Job::new(By::Scram, WINDOWS, EXACTLY_ONCE).await;
    let writers = format!("{}/*", job.to);
    let mut acls = needed("engine: source table", &[("TOPIC", &job.from)]);
    acls.extend(needed("engine: exactly-once sink table", &[("TOPIC", &job.to), ("PREFIX", &writers)]));
    grant_all(&job.kafka, &job.principal, &acls);
    let names = [("WORKERS", "millrace-secured"), ("SLOTS", "millrace-secured-slots"), ("EXCHANGE", "millrace-secured-exchange-*")];
    let (later, mut missing): (Vec<Acl>, Vec<Acl>) =
        needed("engine: shared job", &names).into_iter().partition(|acl| acl.operation == "DELETE");
    grant_all(&job.kafka, &job.principal, &later);
    let engine = job.start();
    job.produce();
    // Closes the windows before its own.
    kafka::produce(&job.kafka.bootstrap, &job.from, 1, [r#"{"n":1000000}"#.to_owned()]);
    while !missing.is_empty() {
        let said = eventually(WAIT, "it says what it lacks", || async {
            let log = engine.log();
            let (said, silent): (Vec<&Acl>, Vec<&Acl>) = missing.iter().partition(|acl| says(&log, &job.principal, acl));
            if said.is_empty() { Err(format!("nothing of {silent:?}\n{log}")) } else { Ok(said.into_iter().cloned().collect::<Vec<_>>()) }
        })
        .await;
        grant_all(&job.kafka, &job.principal, &said);
        missing.retain(|acl| !said.contains(acl));
    }
    job.all_in_results(true).await;
    drop(engine);
}
