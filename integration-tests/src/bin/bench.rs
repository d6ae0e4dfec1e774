//! Speed and memory as whole processes see them, next to the peer that people use today, on one broker in one run.
//!
//! Collector: a file of 160-byte lines, through a memory channel, into Kafka. One clock runs from the first record in the
//! topic to the last, so that neither side pays for its start; another from the start of the process. A first round, in
//! which the broker warms up, is not counted. Engine: a bounded SQL job with a ten-second window over JSON
//! rows; the clock runs from the process's start to its end.

use std::{
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use integration_tests::{kafka, process::binary, root, servers, unique};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

struct Measured {
    name: &'static str,
    per_second: f64,
    /// With the time from the process's start to its first record.
    with_start: f64,
    memory_mb: f64,
    cpu_seconds: f64,
}

fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.replace(['_', ','], "").parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

/// Peak resident memory in MB and used CPU seconds of a running process.
fn usage(pid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    // Fields 14 and 15 of proc(5), counted after the name; 100 ticks a second on Linux.
    (peak.unwrap_or_default() / 1024.0, (ticks(11) + ticks(12)) / 100.0)
}

fn stop(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}

/// Waits until the topic holds `lines` records; gives the seconds from its first record on.
fn until_complete(bootstrap: &str, topic: &str, lines: i64, child: &mut Child) -> Result<f64> {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", "bench").create()?;
    let limit = Instant::now() + Duration::from_secs(300);
    let mut first = None;
    loop {
        let (_, end) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
        if end > 0 && first.is_none() {
            first = Some((Instant::now(), end));
        }
        if let (Some((start, already)), true) = (first, end >= lines) {
            // What was there at the first look counts as not measured.
            return Ok(start.elapsed().as_secs_f64() * lines as f64 / (lines - already).max(1) as f64);
        }
        if let Some(status) = child.try_wait()? {
            bail!("ended with {status} after {end} of {lines} records");
        }
        if Instant::now() > limit {
            bail!("only {end} of {lines} records after 300 s");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn collector(name: &'static str, command: &mut Command, bootstrap: &str, topic: &str, lines: usize, log: &Path) -> Result<Measured> {
    let out = fs::File::create(log)?;
    announce(name, command)?;
    let start = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn().with_context(|| name.to_owned())?;
    let seconds = until_complete(bootstrap, topic, i64::try_from(lines)?, &mut child);
    let whole = start.elapsed().as_secs_f64();
    let (memory_mb, cpu_seconds) = usage(child.id());
    stop(&mut child);
    let seconds = seconds.with_context(|| format!("{name}; its log: {}", fs::read_to_string(log).unwrap_or_default()))?;
    Ok(Measured { name, per_second: lines as f64 / seconds, with_start: lines as f64 / whole, memory_mb, cpu_seconds })
}

/// What is started, as one could type it, and how busy the machine is just then.
fn announce(name: &str, command: &Command) -> Result<()> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
    let mut out = std::io::stdout().lock();
    writeln!(out, "load {}  {name}\n  $ {}", load.split(' ').next().unwrap_or_default(), words.collect::<Vec<_>>().join(" "))?;
    Ok(())
}

fn agent_conf(file: &Path, bootstrap: &str, topic: &str, positions: &Path, sink: &str) -> String {
    format!(
        "agent.sources = s\nagent.channels = c\nagent.sinks = k\n\
         agent.sources.s.type = TAILDIR\nagent.sources.s.filegroups = f\nagent.sources.s.filegroups.f = {}\n\
         agent.sources.s.positionFile = {}\nagent.sources.s.batchSize = 1000\nagent.sources.s.channels = c\n\
         agent.channels.c.type = memory\nagent.channels.c.capacity = 50000\nagent.channels.c.transactionCapacity = 1000\n\
         agent.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nagent.sinks.k.channel = c\n\
         agent.sinks.k.kafka.bootstrap.servers = {bootstrap}\nagent.sinks.k.kafka.topic = {topic}\n\
         agent.sinks.k.flumeBatchSize = 1000\nagent.sinks.k.kafka.producer.compression.type = snappy\n{sink}",
        file.display(),
        positions.display()
    )
}

fn table(title: &str, unit: &str, rows: &[Measured]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{title}")?;
    writeln!(out, "  {:<44} {:>12} {:>12} {:>10} {:>9}", "", unit, "with start", "peak MB", "CPU s")?;
    for row in rows {
        writeln!(
            out,
            "  {:<44} {:>12.0} {:>12.0} {:>10.0} {:>9.1}",
            row.name, row.per_second, row.with_start, row.memory_mb, row.cpu_seconds
        )?;
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn bench_collector(bootstrap: &str, dir: &Path) -> Result<()> {
    let (lines, rounds) = (setting("BENCH_LINES", 2_000_000)?, setting("BENCH_ROUNDS", 3)?);
    let file = dir.join("app.log");
    let mut out = BufWriter::new(fs::File::create(&file)?);
    for n in 0..lines {
        writeln!(
            out,
            "{:<159}",
            format!("203.0.113.{} - - [22/Nov/2026:10:00:00 +0000] \"GET /item/{n} HTTP/1.1\" 200 {} \"-\" \"bench\"", n % 250, n % 9973)
        )?;
    }
    out.into_inner().map_err(|error| error.into_error())?;
    let (mut ratios, mut highest) = (Vec::new(), 0.0_f64);
    for round in 0..=rounds {
        let mut rows = Vec::new();
        for (peer, acks) in
            [(true, "agent.sinks.k.kafka.producer.acks = 1\n"), (false, "agent.sinks.k.kafka.producer.acks = 1\n"), (false, "")]
        {
            let topic = unique("bench-lines");
            kafka::create_topic(bootstrap, &topic, 1).await;
            let conf = dir.join(format!("{topic}.conf"));
            fs::write(&conf, agent_conf(&file, bootstrap, &topic, &dir.join(format!("{topic}.positions")), acks))?;
            let log = dir.join(format!("{topic}.log"));
            let mut command;
            let name = if peer {
                command = Command::new(root().join("deploy/dev/flume/flume"));
                command.arg(&conf).arg("agent");
                "Flume 1.11, batch 1000, snappy, acks=1"
            } else {
                command = Command::new(binary("millrace-collector"));
                command.arg("agent").arg("--name").arg("agent").arg("--conf-file").arg(&conf);
                command.arg("--state-dir").arg(dir.join(format!("{topic}.state"))).arg("--no-reload-conf");
                command.env("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0").env("MILLRACE_METRICS__LISTEN", "127.0.0.1:0");
                if acks.is_empty() { "Millrace, the same with acks=all, idempotent" } else { "Millrace, the same file" }
            };
            rows.push(collector(name, &mut command, bootstrap, &topic, lines, &log)?);
        }
        let title = if round == 0 { "warm-up, not counted".to_owned() } else { format!("round {round}") };
        table(&format!("{title}: {lines} lines of 160 bytes, file → memory channel → Kafka"), "lines/s", &rows)?;
        if let ([flume, same, safe], true) = (rows.as_slice(), round > 0) {
            let ratio = |ours: &Measured| (ours.per_second / flume.per_second, ours.with_start / flume.with_start);
            ratios.push((ratio(same), ratio(safe), safe.memory_mb));
            highest = highest.max(same.memory_mb).max(safe.memory_mb);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\ncollector / Flume, median of {rounds}: {:.1}× with the same file ({:.1}× with start), {:.1}× with acks=all and idempotence \
         ({:.1}× with start); peak memory {:.0} MB with acks=all, {highest:.0} MB at its highest in any run",
        median(ratios.iter().map(|r| r.0.0).collect()),
        median(ratios.iter().map(|r| r.0.1).collect()),
        median(ratios.iter().map(|r| r.1.0).collect()),
        median(ratios.iter().map(|r| r.1.1).collect()),
        median(ratios.iter().map(|r| r.2).collect())
    )?;
    Ok(())
}

async fn bench_engine(bootstrap: &str, dir: &Path) -> Result<()> {
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
             WITH ('connector' = 'kafka', 'topic' = '{out_topic}', 'properties.bootstrap.servers' = '{bootstrap}', 'format' = 'json');\n\
             INSERT INTO windows SELECT window_start, host, status, COUNT(*) AS requests, SUM(bytes) AS bytes\n\
             FROM TABLE(TUMBLE(TABLE rows_in, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) GROUP BY window_start, window_end, host, status;\n"
        ),
    )?;
    let mut measured = Vec::new();
    for round in 1..=rounds {
        let log = dir.join(format!("engine-{round}.log"));
        let out = fs::File::create(&log)?;
        let mut command = Command::new(binary("millrace-engine"));
        command
            .arg("run")
            .arg(&job)
            .arg("--name")
            .arg(format!("bench-{round}"))
            .arg("--checkpoint")
            .arg(dir.join(format!("checkpoint-{round}")))
            .env("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0")
            .env("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        announce("engine", &command)?;
        let start = Instant::now();
        let mut child = command.spawn()?;
        let mut last = (0.0, 0.0);
        let status = loop {
            let now = usage(child.id());
            if now.0 > 0.0 {
                last = now;
            }
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > Duration::from_secs(300) {
                stop(&mut child);
                bail!("the window job still ran after 300 s:\n{}", fs::read_to_string(&log)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let seconds = start.elapsed().as_secs_f64();
        if !status.success() {
            bail!("the window job ended with {status}:\n{}", fs::read_to_string(&log)?);
        }
        measured.push(Measured {
            name: "engine, process start to end",
            per_second: rows as f64 / seconds,
            with_start: rows as f64 / seconds,
            memory_mb: last.0,
            cpu_seconds: last.1,
        });
    }
    let counted: u64 = kafka::texts(bootstrap, &out_topic)
        .iter()
        .filter_map(|text| serde_json::from_str::<serde_json::Value>(text).ok()?.get("requests")?.as_u64())
        .sum();
    if counted != (rows * rounds) as u64 {
        bail!("the windows count {counted} rows, {} were read", rows * rounds);
    }
    table(&format!("{rows} JSON rows → 10 s window × host × status → Kafka, exactly once"), "rows/s", &measured)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nengine, median of {rounds}: {:.0} rows/s, every row counted once",
        median(measured.iter().map(|m| m.per_second).collect())
    )?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let bootstrap = servers::kafka_bootstrap();
    let dir: PathBuf = tempfile::Builder::new().prefix("millrace-bench").tempdir()?.keep();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut out = std::io::stdout().lock();
    writeln!(out, "cores: {}, load before: {}", std::thread::available_parallelism()?, load.trim())?;
    drop(out);
    let result = async {
        bench_collector(&bootstrap, &dir).await?;
        bench_engine(&bootstrap, &dir).await
    }
    .await;
    if result.is_ok() {
        fs::remove_dir_all(&dir)?;
    }
    result.with_context(|| format!("files and logs are kept in {}", dir.display()))
}
