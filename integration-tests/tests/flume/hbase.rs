//! The HBase sinks on a real HBase: beside real Flume's, with a gateway that is killed, with a collector that is killed.
//! Rows are counted from outside, through the gateway's JSON. HBase takes a while to start, so it is started once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use base64::Engine as _;
use integration_tests::{
    eventually,
    flume::Flume,
    process::{Process, run},
    servers::OwnHbase,
};
use serde_json::{Value, json};

const WAIT: Duration = Duration::from_secs(60);

const REGEX: &str = "serializer = org.apache.flume.sink.hbase2.RegexHBase2EventSerializer";

/// Row key → column → value.
type Rows = BTreeMap<String, BTreeMap<String, String>>;

struct Bench {
    hbase: OwnHbase,
    http: reqwest::Client,
}

impl Bench {
    async fn create(&self, table: &str, family: &str) {
        let schema = json!({"name": table, "ColumnSchema": [{"name": family}]});
        let answer = self.http.put(format!("{}/{table}/schema", self.hbase.url)).json(&schema).send().await.expect("the gateway");
        assert!(answer.status().is_success(), "{table}: {}", answer.status());
    }

    /// All rows of a table; counters as numbers.
    async fn rows(&self, table: &str) -> Result<Rows, String> {
        let text = |value: &Value| {
            let bytes = value.as_str().and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok()).unwrap_or_default();
            match <[u8; 8]>::try_from(bytes.as_slice()) {
                Ok(number) if number[0] == 0 => i64::from_be_bytes(number).to_string(),
                _ => String::from_utf8_lossy(&bytes).into_owned(),
            }
        };
        let fault = |error: reqwest::Error| error.to_string();
        let answer = self.http.get(format!("{}/{table}/*", self.hbase.url)).header("Accept", "application/json").send().await;
        let answer: Value = answer.and_then(|answer| answer.error_for_status()).map_err(fault)?.json().await.map_err(fault)?;
        let rows = answer["Row"].as_array().cloned().unwrap_or_default();
        let cells = |row: &Value| {
            let cells = row["Cell"].as_array().cloned().unwrap_or_default();
            cells.iter().map(|cell| (text(&cell["column"]), text(&cell["$"]))).collect()
        };
        Ok(rows.iter().map(|row| (text(&row["key"]), cells(row))).collect())
    }

    /// The rows, once there are so many.
    async fn rows_when(&self, table: &str, count: usize) -> Rows {
        eventually(WAIT, &format!("{count} rows in {table}"), || async {
            let rows = self.rows(table).await?;
            if rows.len() < count { Err(format!("{} rows", rows.len())) } else { Ok(rows) }
        })
        .await
    }

    /// A sink's lines, with what every one needs.
    fn sink(&self, name: &str, table: &str, lines: &str) -> String {
        let all = format!("type = hbase2\ntable = {table}\ncolumnFamily = cf\nhbase.rest.url = {}\n{lines}", self.hbase.url);
        all.lines().map(|line| format!("agent.sinks.{name}.{}\n", line.trim())).collect()
    }
}

fn start(dir: &Path, conf: &str) -> Process {
    let (path, state) = (dir.join("agent.conf"), dir.join("state"));
    fs::write(&path, conf).expect("the agent's file");
    let args = ["agent", "-n", "agent", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy(), "--no-reload-conf"];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

/// A file that is followed, over a channel, into one sink.
fn tailing(log: &Path, channel: &str, sink: &str) -> String {
    format!(
        "agent.sources = r\nagent.channels = c\nagent.sinks = k\nagent.sources.r.type = TAILDIR\nagent.sources.r.channels = c\n\
         agent.sources.r.filegroups = g\nagent.sources.r.filegroups.g = {}\nagent.sources.r.maxLineLength = 67108864\n\
         agent.sinks.k.channel = c\n{channel}{sink}",
        log.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sinks_on_a_real_hbase() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let bench = Bench { hbase: OwnHbase::start(dir.path().join("hbase")), http: reqwest::Client::new() };
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    };
    beside_flume(&bench, &folder("beside")).await;
    poison_and_a_missing_table(&bench, &folder("poison")).await;
    a_killed_gateway(&bench, &folder("gateway")).await;
    a_killed_collector(&bench, &folder("killed")).await;
}

/// Every serializer: the same events through both, into tables of the same shape.
async fn beside_flume(bench: &Bench, dir: &Path) {
    let key = "serializer.regex = (.)(.*)\nserializer.colNames = first,ROW_KEY\nserializer.rowKeyIndex = 1";
    let sinks = [
        ("plain", String::new()),
        ("named", "serializer.rowPrefix = p\nserializer.suffix = random\nserializer.payloadColumn = body\nserializer.incrementColumn = n\nserializer.incrementRow = total\ncoalesceIncrements = true".into()),
        ("nano", "serializer.suffix = nano".into()),
        ("groups", format!("{REGEX}\nserializer.regex = (e)VENT-(..)\nserializer.colNames = a,b\nserializer.regexIgnoreCase = true\nserializer.depositHeaders = true")),
        ("whole", REGEX.into()),
        ("keyed", format!("{REGEX}\n{key}")),
    ];
    let names: Vec<&str> = sinks.iter().map(|(name, _)| *name).collect();
    let names = names.join(" ");
    let log = dir.join("in.log");
    let lines: String = (10..40).map(|n| format!("event-{n}\n")).collect();
    fs::write(&log, lines).expect("the log");
    let mut made = Vec::new();
    for who in ["flume", "millrace"] {
        let mut conf = format!(
            "agent.sources = r\nagent.channels = {names}\nagent.sinks = {names}\nagent.sources.r.type = TAILDIR\n\
             agent.sources.r.channels = {names}\nagent.sources.r.filegroups = g\nagent.sources.r.filegroups.g = {}\n\
             agent.sources.r.positionFile = {}\nagent.sources.r.interceptors = s\nagent.sources.r.interceptors.s.type = static\n\
             agent.sources.r.interceptors.s.key = kind\nagent.sources.r.interceptors.s.value = web\n",
            log.display(),
            dir.join(format!("{who}.json")).display()
        );
        for (name, lines) in &sinks {
            let table = format!("{who}-{name}");
            bench.create(&table, "cf").await;
            conf += &format!("agent.channels.{name}.type = memory\nagent.sinks.{name}.channel = {name}\n");
            conf += &bench.sink(name, &table, lines);
            // Flume's way to HBase; of no use to the other, and no harm.
            conf += &format!("agent.sinks.{name}.zookeeperQuorum = {}\n", bench.hbase.zookeeper);
        }
        let folder = dir.join(who);
        fs::create_dir_all(&folder).expect("a folder");
        let flume = (who == "flume").then(|| Flume::start(&folder, who, &conf));
        let millrace = (who == "millrace").then(|| start(&folder, &conf));
        let mut tables = Vec::new();
        for (name, _) in &sinks {
            let counts = ["plain", "named", "nano"].contains(name);
            let rows = bench.rows_when(&format!("{who}-{name}"), 30 + usize::from(counts)).await;
            // The counter is raised after the rows.
            let counted = async || {
                let rows = bench.rows(&format!("{who}-{name}")).await?;
                let count = rows.get(if *name == "named" { "total" } else { "incRow" }).and_then(|row| row.values().next().cloned());
                if count.as_deref() == Some("30") { Ok(rows) } else { Err(format!("{count:?}")) }
            };
            tables.push((*name, if counts { eventually(WAIT, &format!("{who}-{name} counted"), counted).await } else { rows }));
        }
        if let Some(flume) = flume {
            flume.stop().await;
        }
        if let Some(mut millrace) = millrace {
            millrace.stop().await;
        }
        made.push(tables);
    }
    // A key that is drawn or timed differs; its form must not.
    let digits =
        regex::Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9]{13}-[0-9A-Za-z]{10}-[0-9]+|-?[0-9]{9,}")
            .expect("a pattern");
    let shape = |name: &str, rows: &Rows| -> Vec<(String, BTreeMap<String, String>)> {
        let key = |key: &String| if name == "keyed" { key.clone() } else { digits.replace(key, "#").into_owned() };
        let mut shape: Vec<_> = rows.iter().map(|(row, cells)| (key(row), cells.clone())).collect();
        shape.sort();
        shape
    };
    for ((name, flume), (_, millrace)) in made[0].iter().zip(&made[1]) {
        assert_eq!(shape(name, flume), shape(name, millrace), "{name}");
    }
    let keyed = &made[1][5].1;
    assert_eq!((keyed.len(), keyed["vent-10"]["cf:first"].as_str()), (30, "e"));
}

/// Refused events are put aside and the others written; a table that comes late is waited for.
async fn poison_and_a_missing_table(bench: &Bench, dir: &Path) {
    let log = dir.join("in.log");
    let mut lines: Vec<String> = (0..50).map(|n| format!("k{n:02}=v{n}")).collect();
    lines[7] = "no match".into();
    lines[20] = "=no key".into();
    // HBase takes no value of more than 10 MiB.
    lines[33] = format!("k33={}", "x".repeat(11 << 20));
    fs::write(&log, lines.join("\n") + "\n").expect("the log");
    let sink = bench.sink(
        "k",
        "late",
        &format!("{REGEX}\nserializer.regex = ([^=]*)=(.*)\nserializer.colNames = ROW_KEY,v\nserializer.rowKeyIndex = 0"),
    );
    let mut collector = start(dir, &tailing(&log, "agent.channels.c.type = memory\n", &sink));
    collector.log_contains(WAIT, "table \\\"late\\\" does not exist").await;
    bench.create("late", "cf").await;
    let rows = bench.rows_when("late", 47).await;
    let expected: BTreeSet<String> = (0..50).filter(|n| ![7, 20, 33].contains(n)).map(|n| format!("k{n:02}")).collect();
    assert_eq!(rows.into_keys().collect::<BTreeSet<_>>(), expected);
    let letters = dir.join("state/agent/dead-letter/k.jsonl");
    let told = eventually(WAIT, "three events are put aside", || async {
        let text = fs::read_to_string(&letters).map_err(|error| format!("{}: {error}", letters.display()))?;
        let letters: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if letters.len() == 3 { Ok(letters) } else { Err(format!("{} letters", letters.len())) }
    })
    .await;
    let mut reasons: Vec<&str> = told.iter().filter_map(|letter| letter["reason"].as_str()).collect();
    reasons.sort_unstable();
    assert!(reasons[0].contains("KeyValue size too large"), "{reasons:?}");
    assert_eq!(reasons[1..], ["it does not match serializer.regex", "its row key has no bytes"]);
    collector.stop().await;
    // Without a gateway's address there is nothing to run, and the remedy is told.
    let conf = dir.join("nowhere.conf");
    let text = fs::read_to_string(dir.join("agent.conf")).expect("the agent's file");
    let text: String = text.lines().filter(|line| !line.contains("hbase.rest.url")).map(|line| format!("{line}\n")).collect();
    fs::write(&conf, text).expect("the agent's file");
    let output = run("millrace-collector", &["check", &conf.to_string_lossy()], &[]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success() && said.contains("set hbase.rest.url = http://HOST:8080"), "{said}");
}

/// Lets the writer in the background end, also when the test fails.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Appends numbered lines until told to end; gives how many.
fn writing(log: &Path) -> (Done, tokio::task::JoinHandle<usize>) {
    let done = Arc::new(AtomicBool::new(false));
    let (log, told) = (log.to_owned(), done.clone());
    let writer = tokio::task::spawn_blocking(move || {
        let mut file = OpenOptions::new().append(true).create(true).open(&log).expect("the log");
        let mut written = 0;
        while !told.load(SeqCst) {
            let text: String = (written..written + 20).map(|n| format!("{n:07} {}\n", "y".repeat(n % 100))).collect();
            file.write_all(text.as_bytes()).expect("the log");
            written += 20;
            std::thread::sleep(Duration::from_millis(10));
        }
        written
    });
    (Done(done), writer)
}

/// One row for every line, and not one more.
async fn exactly(bench: &Bench, table: &str, lines: usize, counter: bool) {
    let rows = bench.rows_when(table, lines + usize::from(counter)).await;
    let bodies: BTreeSet<usize> = rows.values().filter_map(|row| row.get("cf:pCol")?.split(' ').next()?.parse().ok()).collect();
    assert_eq!(bodies, (0..lines).collect::<BTreeSet<_>>(), "{table}");
    assert_eq!(rows.len(), lines + usize::from(counter), "{table} has rows twice");
}

/// Lines in order, two kills of the gateway under them.
async fn a_killed_gateway(bench: &Bench, dir: &Path) {
    bench.create("gateway", "cf").await;
    let log = dir.join("in.log");
    fs::write(&log, "").expect("the log");
    let mut collector =
        start(dir, &tailing(&log, "agent.channels.c.type = memory\nagent.channels.c.capacity = 10000\n", &bench.sink("k", "gateway", "")));
    collector.addresses().await;
    let (done, writer) = writing(&log);
    for kill in 1..=2usize {
        bench.rows_when("gateway", 200 * kill).await;
        bench.hbase.kill_gateway();
        bench.hbase.restart_gateway();
    }
    drop(done);
    let written = writer.await.expect("the writer");
    exactly(bench, "gateway", written, true).await;
    collector.stop().await;
    assert!(collector.log().contains("rows are written again"), "{}", collector.log());
    let counted: usize = bench.rows("gateway").await.expect("rows")["incRow"]["cf:iCol"].parse().expect("a number");
    // An increment whose answer was lost is done again: never too few.
    assert!(counted >= written, "{counted} counted of {written}");
}

/// A file channel, and the process killed again and again.
async fn a_killed_collector(bench: &Bench, dir: &Path) {
    bench.create("killed", "cf").await;
    let log = dir.join("in.log");
    fs::write(&log, "").expect("the log");
    let channel = format!(
        "agent.channels.c.type = file\nagent.channels.c.checkpointDir = {0}/checkpoint\nagent.channels.c.dataDirs = {0}/data\n\
         agent.channels.c.minimumRequiredSpace = 1048576\n",
        dir.display()
    );
    let conf = tailing(&log, &channel, &bench.sink("k", "killed", "batchSize = 20"));
    let (done, writer) = writing(&log);
    let mut seen = 0;
    for _ in 0..5 {
        let mut collector = start(dir, &conf);
        collector.addresses().await;
        // In the middle of its work: rows have come since it began.
        seen = bench.rows_when("killed", seen + 30).await.len();
        collector.kill_9();
    }
    drop(done);
    let written = writer.await.expect("the writer");
    let mut collector = start(dir, &conf);
    exactly(bench, "killed", written, true).await;
    collector.stop().await;
}
