//! The HBase sink on a real HBase, counted from outside: its rows are read through the gateway's JSON and compared with what the input gives.
//! HBase takes a while to start, so it is started once.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use integration_tests::{
    eventually, kafka,
    process::{Process, run},
    servers::{OwnHbase, kafka_bootstrap},
    unique,
};
use serde_json::{Value, json};

use super::{FREE_PORTS, SMALL_BATCHES, WAIT, WINDOWED, cli, engine, expected, killed_on_its_way, row, source};

struct Bench {
    hbase: OwnHbase,
    http: reqwest::Client,
    bootstrap: String,
}

const INTERVAL: &str = "SET 'batch.interval' = '200ms';\n";

/// Window and host → requests and bytes.
type Totals = BTreeMap<String, (u64, u64)>;

impl Bench {
    async fn create(&self, table: &str) {
        let schema = json!({"name": table, "ColumnSchema": [{"name": "cf"}]});
        let answer = self.http.put(format!("{}/{table}/schema", self.hbase.url)).json(&schema).send().await.expect("the gateway");
        assert!(answer.status().is_success(), "{table}: {}", answer.status());
    }

    async fn rows(&self, table: &str) -> Result<Vec<Value>, String> {
        let fault = |error: reqwest::Error| error.to_string();
        let answer = self.http.get(format!("{}/{table}/*", self.hbase.url)).header("Accept", "application/json").send().await;
        let answer: Value = answer.and_then(|answer| answer.error_for_status()).map_err(fault)?.json().await.map_err(fault)?;
        Ok(answer["Row"].as_array().cloned().unwrap_or_default())
    }

    async fn totals(&self, table: &str) -> Result<Totals, String> {
        let number = |row: &Value, column: &str| {
            let cells = row["Cell"].as_array().cloned().unwrap_or_default();
            let cell = cells.iter().find(|cell| bytes(&cell["column"]) == column.as_bytes());
            let value = cell.map(|cell| bytes(&cell["$"])).and_then(|value| value.try_into().ok());
            value.map(u64::from_be_bytes).ok_or_else(|| format!("{column} in {row}"))
        };
        let rows = self.rows(table).await?;
        let total = |row: &Value| Ok((text(&row["key"]), (number(row, "cf:requests")?, number(row, "cf:bytes")?)));
        rows.iter().map(total).collect()
    }

    async fn hold(&self, table: &str, rows: u64, said: impl Fn() -> String) {
        let wanted = expected(rows);
        eventually(WAIT, &format!("{table} holds the totals of {rows} rows"), || async {
            let found = self.totals(table).await?;
            if found == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted:?}\n{}", said())) }
        })
        .await;
    }

    /// Totals of ten seconds by host, in `table`; all that are open, again and again.
    fn job(&self, topic: &str, table: &str) -> String {
        format!(
            "{INTERVAL}SET 'millrace.emit' = 'every-batch';\nSET 'sink.delivery-guarantee' = 'exactly-once';\n{}\
             CREATE TABLE totals (k STRING, cf ROW<requests BIGINT, bytes BIGINT>, PRIMARY KEY (k) NOT ENFORCED)\n\
             WITH ('connector' = 'hbase', 'url' = '{}', 'table-name' = '{table}', 'sink.buffer-flush.max-rows' = '3', 'sink.retry.timeout' = '5 min');\n\
             INSERT INTO totals SELECT CONCAT(CAST(window_start AS STRING), ':', host), ROW(requests, bytes) FROM (\n{});\n",
            source(topic, &self.bootstrap, ""),
            self.hbase.url,
            WINDOWED.trim_end().trim_end_matches(';')
        )
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64")
}

fn text(value: &Value) -> String {
    String::from_utf8(bytes(value)).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_stand_in_hbase_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let hbase = OwnHbase::start(dir.path().join("hbase"));
    let bench = Bench { hbase, http: reqwest::Client::new(), bootstrap: kafka_bootstrap() };
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    };
    killed_again_and_again(&bench, &folder("killed")).await;
    a_checkpoint_put_back_is_refused(&bench, &folder("put-back")).await;
    no_checkpoint_no_table(&bench, &folder("refused")).await;
}

/// The engine is killed six times, the gateway once for a while.
async fn killed_again_and_again(bench: &Bench, dir: &Path) {
    let topic = unique("engine");
    kafka::create_topic(&bench.bootstrap, &topic, 3).await;
    bench.create("killed").await;
    let job = dir.join("job.sql");
    fs::write(&job, bench.job(&topic, "killed").replacen(INTERVAL, SMALL_BATCHES, 1)).expect("the job");
    let mut process = engine(dir);
    let mut address = process.address("control").await;
    let (code, said) = cli(&address, &["job", "submit", &job.to_string_lossy(), "--name", "totals"]);
    assert_eq!(code, 0, "{said}");
    let (mut rows, mut read) = (0, 0);
    let mut more = || {
        kafka::produce(&bench.bootstrap, &topic, 3, (rows..rows + 1_500).map(|n| row(n).2));
        rows += 1_500;
        rows
    };
    for _ in 0..6 {
        killed_on_its_way(&mut process, "totals", &mut read, more()).await;
        process = engine(dir);
        address = process.address("control").await;
    }
    bench.hold("killed", more(), || process.log()).await;

    bench.hbase.kill_gateway();
    more();
    process.log_contains(WAIT, "hbase is away, waiting").await;
    let (code, said) = cli(&address, &["job", "show", "totals"]);
    assert!(code == 0 && said.contains("HBase does not answer"), "{said}");
    more();
    bench.hbase.restart_gateway();
    let rows = more();
    bench.hold("killed", rows, || process.log()).await;
    assert!(process.log().contains("hbase is back"), "{}", process.log());

    let (code, said) = cli(&address, &["job", "stop", "totals", "--drain"]);
    assert_eq!(code, 0, "{said}\n{}", process.log());
    process.stop().await;
    assert_eq!(bench.totals("killed").await, Ok(expected(rows)), "{}", process.log());
    // One fence for the job's only history, and no cell that has the gateway's clock instead of a batch's time.
    let fences = bench.rows("millrace_fences").await.expect("the fences");
    assert_eq!(fences.len(), 1, "{fences:?}");
    assert!(text(&fences[0]["key"]).starts_with("totals/") && text(&fences[0]["key"]).ends_with("/totals"), "{fences:?}");
    let newest = fences[0]["Cell"][0]["$"].clone();
    let newest: u64 = text(&newest).rsplit(' ').next().and_then(|time| time.parse().ok()).expect("a timestamp");
    for row in bench.rows("killed").await.expect("rows") {
        for cell in row["Cell"].as_array().expect("cells") {
            let at = cell["timestamp"].as_u64().expect("a timestamp");
            assert!(at <= newest && at % 20 == 0, "{at} behind {newest}: {row}");
        }
    }
}

/// A batch whose number was used for other records already is not taken for written.
async fn a_checkpoint_put_back_is_refused(bench: &Bench, dir: &Path) {
    let topic = unique("put-back");
    kafka::create_topic(&bench.bootstrap, &topic, 1).await;
    bench.create("put-back").await;
    let job = dir.join("job.sql");
    fs::write(&job, bench.job(&topic, "put-back")).expect("the job");
    let (job, checkpoint) = (job.to_string_lossy().into_owned(), dir.join("checkpoint"));
    let start = || {
        let args = ["run", &job, "--name", "totals", "--checkpoint", &checkpoint.to_string_lossy()];
        Process::start("millrace-engine", dir, &args, &FREE_PORTS)
    };
    let run_to = async |from: u64, until: u64| {
        let mut engine = start();
        kafka::produce(&bench.bootstrap, &topic, 1, (from..until).map(|n| row(n).2));
        bench.hold("put-back", until, || engine.log()).await;
        engine.signal(rustix::process::Signal::TERM);
        assert!(engine.ended(WAIT).await.success(), "{}", engine.log());
    };
    run_to(0, 300).await;
    let aside = dir.join("aside");
    assert!(Command::new("cp").arg("-r").args([&checkpoint, &aside]).status().expect("cp").success());
    run_to(300, 600).await;
    fs::remove_dir_all(&checkpoint).and_then(|()| fs::rename(&aside, &checkpoint)).expect("the older checkpoint");
    kafka::produce(&bench.bootstrap, &topic, 1, (600..601).map(|n| row(n).2));
    let mut engine = start();
    assert!(!engine.ended(WAIT).await.success(), "it goes on:\n{}", engine.log());
    for part in ["output `totals` is refused", "whose checkpoint was put back", "start from a savepoint"] {
        assert!(engine.log().contains(part), "without {part:?}:\n{}", engine.log());
    }
    assert_eq!(bench.totals("put-back").await, Ok(expected(600)), "{}", engine.log());
}

/// What cannot be exactly-once is said before the job starts; a table that is not there, before anything is written.
async fn no_checkpoint_no_table(bench: &Bench, dir: &Path) {
    let topic = unique("refused");
    kafka::create_topic(&bench.bootstrap, &topic, 1).await;
    kafka::produce(&bench.bootstrap, &topic, 1, (0..10).map(|n| row(n).2));
    let job = dir.join("job.sql");
    let text = bench.job(&topic, "nowhere");
    fs::write(&job, format!("SET 'batch.retry.attempts' = '0';\n{text}")).expect("the job");
    let job = job.to_string_lossy().into_owned();
    let said = |args: &[&str]| {
        let output = run("millrace-engine", args, &FREE_PORTS);
        assert!(!output.status.success());
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let refused = said(&["run", &job, "--name", "totals"]);
    assert!(refused.contains("table `totals` cannot be exactly-once") && refused.contains("give --checkpoint URL"), "{refused}");
    let missing = said(&["run", &job, "--name", "totals", "--checkpoint", &dir.join("checkpoint").to_string_lossy()]);
    assert!(
        missing.contains("\"nowhere\\\" does not exist in HBase") || missing.contains("\"nowhere\" does not exist in HBase"),
        "{missing}"
    );
}
