//! Files as a sink: a job that is killed again and again, on a local folder and on a real HDFS. The manifest and the files are read here,
//! without the engine's code.

use std::{collections::BTreeMap, fs, path::Path};

use integration_tests::{
    eventually, kafka,
    process::Process,
    servers::{OwnHdfs, kafka_bootstrap},
    unique,
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::{FREE_PORTS, SMALL_BATCHES, WAIT, cli, engine, killed_on_its_way, source};

/// Enough for several files in a batch.
const FILE_ROWS: usize = 100;

/// Every input record is `{"ts":…,"host":…,"bytes":…}`; no two are alike.
fn record(n: u64) -> String {
    format!(r#"{{"ts":{n},"host":"web-{}","bytes":{}}}"#, n % 7, n * 3)
}

/// What a reader of the manifest sees.
pub(super) struct Listed {
    /// How often each line is there.
    pub(super) lines: BTreeMap<String, usize>,
    /// Files that no entry lists.
    pub(super) unlisted: Vec<String>,
    /// Of one batch, at most.
    pub(super) files: usize,
}

/// An entry or a file that is not whole fails the test.
pub(super) fn listed(folder: &Path) -> Listed {
    let mut data: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("the folder").flatten().filter(|entry| entry.path().is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        data.insert(name, fs::read_to_string(entry.path()).expect("a file"));
    }
    let mut lines = BTreeMap::new();
    let mut most = 0;
    // Without a batch there is none.
    for writer in fs::read_dir(folder.join("_millrace")).into_iter().flatten().flatten() {
        for entry in fs::read_dir(writer.path()).expect("its entries").flatten() {
            let text = fs::read_to_string(entry.path()).expect("an entry");
            let entry: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{:?}: {error}: {text}", entry.path()));
            let files = entry["files"].as_array().expect("files");
            most = most.max(files.len());
            for file in files {
                let name = file["path"].as_str().expect("a path");
                let content = data.remove(name).unwrap_or_else(|| panic!("{name} is listed twice, or is not there"));
                assert_eq!(file["bytes"], content.len(), "{name}");
                assert_eq!(file["rows"], content.lines().count(), "{name}");
                assert!(content.lines().count() <= FILE_ROWS, "{name} is too long");
                content.lines().for_each(|line| *lines.entry(line.to_owned()).or_default() += 1);
            }
        }
    }
    Listed { lines, unlisted: data.into_keys().collect(), files: most }
}

/// Runs a job that copies a topic to files at `path` while its engine is killed. Gives what the files must hold, counted from the input.
async fn killed_again_and_again(dir: &Path, batches: &str, path: &str) -> BTreeMap<String, usize> {
    let (bootstrap, topic) = (kafka_bootstrap(), unique("files"));
    kafka::create_topic(&bootstrap, &topic, 3).await;
    let job = dir.join("job.sql");
    let sql = format!(
        "{batches}{}CREATE TABLE files (ts BIGINT, host STRING, bytes BIGINT) WITH ('connector' = 'filesystem', 'path' = '{path}', \
         'format' = 'json', 'sink.rolling-policy.max-rows' = '{FILE_ROWS}', 'store.dfs.replication' = '1');\n\
         INSERT INTO files SELECT ts, host, bytes FROM rows_in;\n",
        source(&topic, &bootstrap, "")
    );
    fs::write(&job, sql).expect("the job");
    let mut process = engine(dir);
    let mut address = process.address("control").await;
    let (code, said) = cli(&address, &["job", "submit", &job.to_string_lossy(), "--name", "files"]);
    assert_eq!(code, 0, "{said}\n{}", process.log());
    let mut read = 0;
    for round in 0..6 {
        kafka::produce(&bootstrap, &topic, 3, (round * 1_500..(round + 1) * 1_500).map(record));
        killed_on_its_way(&mut process, "files", &mut read, (round + 1) * 1_500).await;
        // The job is the engine's: it resumes by itself.
        process = engine(dir);
        address = process.address("control").await;
    }
    let (code, said) = cli(&address, &["job", "stop", "files", "--drain"]);
    assert_eq!(code, 0, "{said}\n{}", process.log());
    process.stop().await;
    let mut wanted = BTreeMap::new();
    kafka::texts(&bootstrap, &topic).into_iter().for_each(|text| *wanted.entry(text).or_default() += 1);
    wanted
}

/// Says the difference, not nine thousand lines.
fn same(found: &Listed, wanted: &BTreeMap<String, usize>) {
    assert!(found.unlisted.is_empty(), "unlisted files are left: {:?}", found.unlisted);
    assert!(found.files > 1, "no batch had more than one file");
    let found = &found.lines;
    let wrong = wanted.keys().chain(found.keys()).filter(|line| found.get(*line) != wanted.get(*line));
    let wrong: Vec<_> = wrong.map(|line| (line, found.get(line), wanted.get(line))).take(10).collect();
    assert!(wrong.is_empty(), "found and wanted, for example: {wrong:?}");
    assert_eq!(wanted.len(), 9_000);
}

#[tokio::test]
async fn kill_9_at_any_moment_loses_and_repeats_nothing_in_files() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let out = dir.path().join("out");
    let wanted = killed_again_and_again(dir.path(), SMALL_BATCHES, &format!("file://{}", out.display())).await;
    same(&listed(&out), &wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_any_moment_loses_and_repeats_nothing_on_hdfs() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let hdfs = OwnHdfs::start(dir.path().join("hdfs"));
    // A batch is six files, of a tenth of a second each.
    let batches = SMALL_BATCHES.replace("2500", "10000");
    let wanted = killed_again_and_again(dir.path(), &batches, &format!("{}/out", hdfs.url)).await;
    let copy = dir.path().join("copy");
    hdfs.fs(&["-get", "/out", &copy.to_string_lossy()]);
    same(&listed(&copy), &wanted);
}

#[tokio::test]
async fn words_from_a_socket_are_counted_by_sql() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port().to_string();
    let mut process = Process::start("sql_network_word_count", dir.path(), &["127.0.0.1", &port], &FREE_PORTS);
    let (mut peer, _) = listener.accept().await.expect("the receiver");
    peer.write_all(b"to be or not to be\n").await.expect("a line");
    eventually(WAIT, "the words are counted", || async {
        let log = process.log();
        let rows = ["| word | total |", "| be   | 2     |", "| not  | 1     |", "| or   | 1     |", "| to   | 2     |"];
        if rows.iter().all(|row| log.contains(row)) { Ok(()) } else { Err(log) }
    })
    .await;
    process.stop().await;
}
