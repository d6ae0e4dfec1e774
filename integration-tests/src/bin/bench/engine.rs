//! A bounded SQL job: a ten-second window over JSON rows, exactly once.

use std::{fs, io::Write, path::Path, process::Command};

use anyhow::{Result, bail};
use integration_tests::{kafka, process::binary, unique};

use super::process::Running;
use super::{Verdict, setting};

pub(crate) async fn windows(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let (rows, rounds) = (setting("BENCH_ROWS", 1_000_000)?, setting("BENCH_ROUNDS", 3)?);
    let topic = unique("bench-rows");
    kafka::create_topic(bootstrap, &topic, 2).await;
    let json = (0..rows).map(|n| {
        // 2,000 rows a second of event time, 20 hosts, 4 statuses: 130 bytes.
        let ts = 1_790_000_000_000_u64 + n as u64 / 2;
        format!(
            r#"{{"ts":{ts},"host":"web-{:02}.example","status":{},"bytes":{},"path":"/item/{:07}","agent":"bench","duration_ms":{:.3}}}"#,
            n % 20,
            [200, 200, 301, 404][n % 4],
            n % 9973,
            n % 1_000_003,
            (n % 977) as f64 / 10.0
        )
    });
    kafka::produce(bootstrap, &topic, 2, json);
    let job = dir.join("window.sql");
    let out_topic = unique("bench-windows");
    kafka::create_topic(bootstrap, &out_topic, 1).await;
    fs::write(
        &job,
        format!(
            "SET 'batch.interval' = '100ms';\n\
             CREATE TABLE rows_in (ts BIGINT, host STRING, status INT, bytes BIGINT, path STRING,\n  event_time AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR event_time AS event_time - INTERVAL '5' SECOND)\n\
             WITH ('connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{bootstrap}',\n  'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset', 'properties.isolation.level' = 'read_uncommitted', 'format' = 'json');\n\
             CREATE TABLE windows (window_start TIMESTAMP(3), host STRING, status INT, requests BIGINT, bytes BIGINT)\n\
             WITH ('connector' = 'kafka', 'topic' = '{out_topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json',\n  'sink.delivery-guarantee' = 'exactly-once', 'sink.transactional-id-prefix' = '{out_topic}');\n\
             INSERT INTO windows SELECT window_start, host, status, COUNT(*) AS requests, SUM(bytes) AS bytes\n\
             FROM TABLE(TUMBLE(TABLE rows_in, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, host, status;\n"
        ),
    )?;
    let mut measured = Vec::new();
    for round in 1..=rounds {
        let mut command = Command::new(binary("millrace-engine"));
        command.arg("run").arg(&job).arg("--name").arg(format!("bench-{round}"));
        command.arg("--checkpoint").arg(dir.join(format!("checkpoint-{round}")));
        command.env("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0").env("MILLRACE_PAGE__LISTEN", "127.0.0.1:0");
        let mut running = Running::start("engine", &mut command, &dir.join(format!("engine-{round}.log")))?;
        running.finish()?;
        measured.push((rows as f64 / running.started.elapsed().as_secs_f64(), running.usage()));
    }
    let counted: u64 = kafka::texts(bootstrap, &out_topic)
        .iter()
        .filter_map(|text| serde_json::from_str::<serde_json::Value>(text).ok()?.get("requests")?.as_u64())
        .sum();
    if counted != (rows * rounds) as u64 {
        bail!("the windows count {counted} rows, {} were read", rows * rounds);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{rows} JSON rows → 10 s window × host × status → Kafka, exactly once; from the start of the process to its end")?;
    writeln!(out, "  {:<46} {:>10} {:>8} {:>8}", "", "rows/s", "peak MB", "CPU s")?;
    for (round, (per_second, used)) in measured.iter().enumerate() {
        writeln!(out, "  {:<46} {per_second:>10.0} {:>8.0} {:>8.1}", format!("round {}", round + 1), used.peak_mb, used.cpu_seconds)?;
    }
    Ok(Vec::new())
}
