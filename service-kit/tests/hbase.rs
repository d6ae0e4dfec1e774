//! `service_kit::hbase` against a real HBase and its REST gateway, which the test starts (`deploy/dev/hbase/hbase`).
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use service_kit::hbase::{Cell, Family, Hbase, HbaseConfig, HbaseError, Row, Scan};

/// Stopped when the test ends, however it ends.
struct Server {
    dir: tempfile::TempDir,
    url: String,
}

fn script(command: &str, dir: &Path) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev/hbase/hbase");
    let output = Command::new(script).arg(command).arg(dir).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "hbase {command} ended with {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = script("start", dir.path()).lines().next().unwrap().to_owned();
        Self { dir, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        script("stop", self.dir.path());
    }
}

fn families(names: &[&str]) -> Vec<Family> {
    names.iter().map(|name| Family { name: (*name).to_owned(), versions: 1 }).collect()
}

fn all(rows_max: usize) -> Scan {
    Scan { start: Bytes::new(), end: Bytes::new(), columns: Vec::new(), rows_max }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_on_a_real_hbase() {
    let server = Server::start();
    let hbase = Hbase::new(HbaseConfig::new(&server.url)).unwrap();
    assert!(hbase.version().await.unwrap().starts_with("2."));
    tables(&hbase).await;
    rows(&hbase).await;
    scans(&hbase).await;
    refusals(&hbase, &server.url).await;
    checks(&hbase).await;
    one_of_two_writers_wins(&server.url).await;
    without_a_gateway(&hbase, &server).await;
}

async fn tables(hbase: &Hbase) {
    assert_eq!(hbase.families("t").await, Ok(None));
    assert_eq!(hbase.create_table("t", &families(&["f", "g"])).await, Ok(true));
    assert_eq!(hbase.create_table("t", &families(&["h"])).await, Ok(false));
    assert_eq!(hbase.families("t").await, Ok(Some(vec!["f".to_owned(), "g".to_owned()])));
}

async fn rows(hbase: &Hbase) {
    // Keys that are no text, mean something in a path, or read like the gateway's own names once they are base64.
    let reserved = [&b"\xad\xe8\x22\xa2\x7b"[..], b"\x9a\xe9\x6d\x8a\x07\xad", b"\xb1\xc7\x9e\x99\xa0"];
    let keys = [b"plain".as_slice(), b"a*", b"a/b,c?d#e%20 ", b"\xff\x00\xfe", b"schema", b"multiget", "\u{e9}".as_bytes()];
    for key in keys.iter().chain(&reserved) {
        let row = Row::new(Bytes::copy_from_slice(key)).with("f:q", "v").with("g:\u{e9},/", &b"\x00\xff"[..]).with("f:", "nameless");
        hbase.put("t", std::slice::from_ref(&row)).await.unwrap();
        let got = hbase.get("t", key, &[]).await.unwrap().unwrap();
        assert_eq!((got.key.as_ref(), got.cells.len()), (*key, 3));
        assert!(got.cells.iter().all(|cell| cell.timestamp_ms.is_some()));
        assert_eq!(got.value("g:\u{e9},/").unwrap().as_ref(), b"\x00\xff");
        let part = hbase.get("t", key, &["f:q"]).await.unwrap().unwrap();
        assert_eq!((part.cells.len(), part.value("f:q").unwrap().as_ref()), (1, &b"v"[..]));
        assert_eq!(hbase.get("t", key, &["f"]).await.unwrap().unwrap().cells.len(), 2);
        hbase.delete("t", key, &["f:q"]).await.unwrap();
        assert_eq!(hbase.get("t", key, &["f:q"]).await, Ok(None));
        hbase.delete("t", key, &["g"]).await.unwrap();
        assert_eq!(hbase.get("t", key, &[]).await.unwrap().unwrap().cells.len(), 1);
        hbase.delete("t", key, &[]).await.unwrap();
        assert_eq!(hbase.get("t", key, &[]).await, Ok(None));
        hbase.delete("t", key, &[]).await.unwrap();
    }
    // An older cell stays behind a newer one.
    let at = |timestamp_ms, value: &'static str| Row {
        key: "times".into(),
        cells: vec![Cell { column: "f:q".into(), timestamp_ms: Some(timestamp_ms), value: value.into() }],
    };
    hbase.put("t", &[at(20, "new")]).await.unwrap();
    hbase.put("t", &[at(10, "old")]).await.unwrap();
    let got = hbase.get("t", b"times", &[]).await.unwrap().unwrap();
    assert_eq!((got.cells[0].timestamp_ms, got.cells[0].value.as_ref()), (Some(20), &b"new"[..]));
    for by in [5, -2] {
        hbase.increment("t", b"count", "f:n", by).await.unwrap();
    }
    assert_eq!(hbase.get("t", b"count", &[]).await.unwrap().unwrap().value("f:n").unwrap().as_ref(), 3i64.to_be_bytes());
}

async fn scans(hbase: &Hbase) {
    hbase.create_table("s", &families(&["f"])).await.unwrap();
    assert_eq!(hbase.scan("s", &all(10)).await, Ok(Vec::new()));
    let row = |n: usize| Row::new(format!("{n:05}")).with("f:a", n.to_string()).with("f:b", "x".repeat(500));
    let rows: Vec<Row> = (0..3_000).map(row).collect();
    // Two requests: a request has at most 1 MiB here.
    let small = Hbase::new(HbaseConfig { request_bytes_max: 1 << 20, ..HbaseConfig::new(format!("http://{}", hbase.address())) }).unwrap();
    small.put("s", &rows).await.unwrap();
    // A row of more cells than one answer has.
    let wide = (0..5_000).fold(Row::new("wide"), |row, n| row.with(format!("f:{n:04}"), "v"));
    hbase.put("s", &[wide]).await.unwrap();
    let got = hbase.scan("s", &all(10_000)).await.unwrap();
    assert_eq!((got.len(), got[0].value("f:a").unwrap().as_ref(), got[3_000].cells.len()), (3_001, &b"0"[..], 5_000));
    assert!(got.iter().zip(&rows).all(|(got, put)| got.key == put.key && got.cells.len() == 2));
    for (rows_max, expected) in [(0, 0), (1, 1), (999, 999), (1_000, 1_000), (2_999, 2_999)] {
        let got = hbase.scan("s", &all(rows_max)).await.unwrap();
        assert!(got.len() == expected && got.iter().all(|row| row.cells.len() == 2), "{rows_max}: {}", got.len());
    }
    let some = Scan { start: "00010".into(), end: "00020".into(), columns: vec!["f:a".into()], rows_max: 100 };
    let got = hbase.scan("s", &some).await.unwrap();
    assert_eq!((got.len(), got[0].key.as_ref(), got[9].key.as_ref()), (10, &b"00010"[..], &b"00019"[..]));
    assert!(got.iter().all(|row| row.cells.len() == 1));
}

async fn refusals(hbase: &Hbase, url: &str) {
    let put = async |table: &str, row: Row| hbase.put(table, &[row]).await.unwrap_err();
    assert_eq!(put("nope", Row::new("k").with("f:q", "v")).await, HbaseError::UnknownTable("nope".into()));
    assert!(matches!(put("t", Row::new("k").with("no:q", "v")).await, HbaseError::UnknownFamily(_)));
    for row in [
        Row::new("").with("f:q", "v"),
        Row::new("k".repeat(40_000)).with("f:q", "v"),
        Row::new("k").with("f:q", vec![b'x'; 11 << 20]),
        Row::new("k").with("no-colon", "v"),
    ] {
        let error = put("t", row).await;
        assert!(matches!(error, HbaseError::Refused(_)) && !error.retryable(), "{error}");
    }
    // The gateway does not tell a missing table from a missing row.
    assert_eq!(hbase.get("nope", b"k", &[]).await, Ok(None));
    assert!(hbase.scan("nope", &all(1)).await.is_err());
    let tiny = Hbase::new(HbaseConfig { answer_bytes_max: 1_000, ..HbaseConfig::new(url) }).unwrap();
    assert!(matches!(tiny.scan("s", &all(100)).await, Err(HbaseError::TooLarge(_))));
    // Its connection was given up; the client goes on.
    assert_eq!(tiny.get("t", b"none", &[]).await, Ok(None));
}

async fn checks(hbase: &Hbase) {
    let row = |value: &'static str| Row::new("cas").with("f:v", value).with("f:other", value);
    assert_eq!(hbase.check_and_put("t", &row("1"), "f:v", Some(b"0")).await, Ok(false));
    assert_eq!(hbase.check_and_put("t", &row("1"), "f:v", None).await, Ok(true));
    assert_eq!(hbase.check_and_put("t", &row("2"), "f:v", None).await, Ok(false));
    assert_eq!(hbase.check_and_put("t", &row("2"), "f:v", Some(b"1")).await, Ok(true));
    assert_eq!(hbase.get("t", b"cas", &[]).await.unwrap().unwrap().value("f:other").unwrap().as_ref(), b"2");
    assert!(matches!(hbase.check_and_put("t", &row("3"), "f:absent", None).await, Err(HbaseError::Refused(_))));
    assert_eq!(hbase.check_and_delete("t", b"cas", "f:v", Some(b"1"), &[]).await, Ok(false));
    assert!(matches!(hbase.check_and_delete("t", b"cas", "f:v", Some(b"2"), &["f:other"]).await, Err(HbaseError::Refused(_))));
    assert_eq!(hbase.check_and_delete("t", b"cas", "f:v", Some(b"2"), &[]).await, Ok(true));
    assert_eq!(hbase.get("t", b"cas", &[]).await.unwrap().unwrap().cells.len(), 1);
    hbase.put("t", &[row("5")]).await.unwrap();
    assert_eq!(hbase.check_and_delete("t", b"cas", "f:v", Some(b"5"), &["f"]).await, Ok(true));
    assert_eq!(hbase.get("t", b"cas", &[]).await, Ok(None));
}

/// Two clients count with compare-and-set: every number is given once.
async fn one_of_two_writers_wins(url: &str) {
    const EACH: usize = 60;
    let writer = |url: String| async move {
        let hbase = Hbase::new(HbaseConfig::new(url)).unwrap();
        let mut won = Vec::new();
        while won.len() < EACH {
            let now = hbase.get("t", b"race", &["f:n"]).await.unwrap();
            let now = now.and_then(|row| row.value("f:n").cloned());
            let next = now.as_deref().map_or(0, |text| std::str::from_utf8(text).unwrap().parse::<usize>().unwrap() + 1);
            let row = Row::new("race").with("f:n", next.to_string());
            if hbase.check_and_put("t", &row, "f:n", now.as_deref()).await.unwrap() {
                won.push(next);
            }
        }
        won
    };
    let (a, b) = tokio::join!(tokio::spawn(writer(url.to_owned())), tokio::spawn(writer(url.to_owned())));
    let mut all = a.unwrap();
    all.extend(b.unwrap());
    all.sort_unstable();
    assert_eq!(all, (0..2 * EACH).collect::<Vec<_>>());
}

async fn without_a_gateway(hbase: &Hbase, server: &Server) {
    script("kill", server.dir.path());
    let error = hbase.get("t", b"k", &[]).await.unwrap_err();
    assert!(matches!(error, HbaseError::Unreachable(_)) && error.retryable(), "{error}");
    script("restart", server.dir.path());
    assert_eq!(hbase.get("t", b"none", &[]).await, Ok(None));
    // A gateway that takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config =
        HbaseConfig { request_timeout: Duration::from_millis(200), ..HbaseConfig::new(format!("http://{}", silent.local_addr().unwrap())) };
    let error = Hbase::new(config).unwrap().version().await.unwrap_err();
    assert!(matches!(error, HbaseError::Timeout(_)) && error.retryable(), "{error}");
}
