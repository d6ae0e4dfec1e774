//! The collector next to Flume 1.11, rsyslog and a bare librdkafka loop (`kcat`): throughput, CPU, memory.

use std::{
    fs,
    io::{BufWriter, Write},
    path::Path,
    process::Command,
};

use anyhow::Result;
use integration_tests::{kafka, unique};

use super::process::{Running, flume, millrace};
use super::{Verdict, median, setting};

struct Row {
    name: &'static str,
    per_second: f64,
    /// With the time from the process's start to its first record.
    with_start: f64,
    peak_mb: f64,
    /// Per million lines.
    cpu_seconds: f64,
}

pub(crate) struct Agent<'a> {
    pub(crate) bootstrap: &'a str,
    pub(crate) topic: &'a str,
    /// As `filegroups.f` takes it.
    pub(crate) files: &'a str,
    /// Lines of `agent.channels.c`.
    pub(crate) channel: &'a str,
    /// Lines of `agent.sinks.k`.
    pub(crate) sink: &'a str,
}

impl Agent<'_> {
    /// TAILDIR → channel → Kafka sink, tuned as Flume's users tune it: batches of 1000, snappy.
    pub(crate) fn text(&self, dir: &Path) -> String {
        let lines = |prefix: &str, lines: &str| lines.lines().map(|line| format!("{prefix}{line}\n")).collect::<String>();
        format!(
            "agent.sources = s\nagent.channels = c\nagent.sinks = k\n\
             agent.sources.s.type = TAILDIR\nagent.sources.s.filegroups = f\nagent.sources.s.filegroups.f = {files}\n\
             agent.sources.s.positionFile = {positions}\nagent.sources.s.batchSize = 1000\nagent.sources.s.channels = c\n\
             {channel}\
             agent.sinks.k.type = org.apache.flume.sink.kafka.KafkaSink\nagent.sinks.k.channel = c\n\
             agent.sinks.k.kafka.bootstrap.servers = {bootstrap}\nagent.sinks.k.kafka.topic = {topic}\n\
             agent.sinks.k.flumeBatchSize = 1000\nagent.sinks.k.kafka.producer.compression.type = snappy\n{sink}",
            files = self.files,
            positions = dir.join(format!("{}.positions", self.topic)).display(),
            channel = lines("agent.channels.c.", self.channel),
            bootstrap = self.bootstrap,
            topic = self.topic,
            sink = lines("agent.sinks.k.", self.sink),
        )
    }
}

pub(crate) const MEMORY: &str = "type = memory\ncapacity = 50000\ntransactionCapacity = 1000";

pub(crate) fn file_channel(dir: &Path) -> String {
    let dir = dir.display();
    format!("type = file\ncheckpointDir = {dir}/checkpoint\ndataDirs = {dir}/data\ncapacity = 1000000\ntransactionCapacity = 1000")
}

/// 160 bytes each, newline included.
pub(crate) fn write_lines(file: &Path, lines: usize) -> Result<()> {
    let mut out = BufWriter::new(fs::File::create(file)?);
    for n in 0..lines {
        let line =
            format!("203.0.113.{} - - [22/Nov/2026:10:00:00 +0000] \"GET /item/{n} HTTP/1.1\" 200 {} \"-\" \"bench\"", n % 250, n % 9973);
        writeln!(out, "{line:<159}")?;
    }
    out.into_inner().map_err(|error| error.into_error())?;
    Ok(())
}

struct Contest<'a> {
    bootstrap: &'a str,
    dir: &'a Path,
    file: &'a Path,
    lines: usize,
}

impl Contest<'_> {
    async fn run(&self, name: &'static str, command: impl FnOnce(&str) -> Result<Command>) -> Result<Row> {
        let topic = unique("bench-lines");
        kafka::create_topic(self.bootstrap, &topic, 1).await;
        let mut running = Running::start(name, &mut command(&topic)?, &self.dir.join(format!("{topic}.log")))?;
        let (seconds, whole) = running.until_complete(self.bootstrap, &topic, i64::try_from(self.lines)?)?;
        let used = running.usage();
        drop(running);
        // Its records would take the page cache from the next one.
        kafka::delete_topic(self.bootstrap, &topic).await;
        let lines = self.lines as f64;
        Ok(Row {
            name,
            per_second: lines / seconds,
            with_start: lines / whole,
            peak_mb: used.peak_mb,
            cpu_seconds: used.cpu_seconds * 1e6 / lines,
        })
    }

    async fn agent(&self, name: &'static str, ours: bool, channel: &str, sink: &str) -> Result<Row> {
        self.run(name, |topic| {
            let (channel, sink) = (channel.replace("{topic}", topic), sink.replace("{topic}", topic));
            let files = self.file.display().to_string();
            let conf = self.dir.join(format!("{topic}.conf"));
            fs::write(&conf, Agent { bootstrap: self.bootstrap, topic, files: &files, channel: &channel, sink: &sink }.text(self.dir))?;
            Ok(if ours { millrace(&conf) } else { flume(&conf) })
        })
        .await
    }

    async fn rsyslog(&self) -> Result<Row> {
        self.run("rsyslog, imfile → omkafka, snappy", |topic| {
            let work = self.dir.join(format!("{topic}.rsyslog"));
            fs::create_dir(&work)?;
            let conf = work.join("rsyslog.conf");
            let text = format!(
                "global(workDirectory=\"{work}\")\nmodule(load=\"imfile\")\nmodule(load=\"omkafka\")\n\
                 main_queue(queue.size=\"50000\" queue.dequeueBatchSize=\"1000\")\n\
                 template(name=\"line\" type=\"string\" string=\"%msg%\")\n\
                 input(type=\"imfile\" file=\"{file}\" tag=\"bench\")\n\
                 action(type=\"omkafka\" broker=[\"{bootstrap}\"] topic=\"{topic}\" template=\"line\"\n\
                   confParam=[\"compression.codec=snappy\", \"queue.buffering.max.messages=100000\"])\n",
                work = work.display(),
                file = self.file.display(),
                bootstrap = self.bootstrap,
            );
            fs::write(&conf, text)?;
            let mut command = Command::new("rsyslogd");
            command.arg("-n").arg("-f").arg(&conf).arg("-i").arg(work.join("pid"));
            Ok(command)
        })
        .await
    }

    async fn kcat(&self) -> Result<Row> {
        self.run("kcat, a bare librdkafka loop, snappy", |topic| {
            let mut command = Command::new("kcat");
            command.args(["-P", "-b", self.bootstrap, "-t", topic, "-z", "snappy", "-l"]).arg(self.file);
            Ok(command)
        })
        .await
    }
}

fn table(title: &str, rows: &[Row]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{title}\n  {:<46} {:>10} {:>11} {:>8} {:>14}", "", "lines/s", "with start", "peak MB", "CPU s/M lines")?;
    for row in rows {
        writeln!(
            out,
            "  {:<46} {:>10.0} {:>11.0} {:>8.0} {:>14.2}",
            row.name, row.per_second, row.with_start, row.peak_mb, row.cpu_seconds
        )?;
    }
    Ok(())
}

/// Ratio of two contestants' throughput in each round.
fn ratios(rounds: &[Vec<Row>], ours: usize, peer: usize) -> f64 {
    median(rounds.iter().map(|rows| rows[ours].per_second / rows[peer].per_second))
}

pub(crate) async fn memory_channel(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let (lines, rounds) = (setting("BENCH_LINES", 2_000_000)?, setting("BENCH_ROUNDS", 3)?);
    let file = dir.join("app.log");
    write_lines(&file, lines)?;
    let contest = Contest { bootstrap, dir, file: &file, lines };
    let mut counted = Vec::new();
    for round in 0..=rounds {
        let rows = vec![
            contest.agent("Flume 1.11, batch 1000, snappy, acks=1", false, MEMORY, "kafka.producer.acks = 1").await?,
            contest.agent("Millrace, the same file", true, MEMORY, "kafka.producer.acks = 1").await?,
            contest.agent("Millrace, acks=all, idempotent", true, MEMORY, "").await?,
            contest.agent("Millrace, exactly once (transactional.id)", true, MEMORY, "kafka.producer.transactional.id = {topic}").await?,
            contest.rsyslog().await?,
            contest.kcat().await?,
        ];
        let title = if round == 0 { "warm-up, not counted".to_owned() } else { format!("round {round}") };
        table(&format!("{title}: {lines} lines of 160 bytes, file → memory channel → Kafka"), &rows)?;
        if round > 0 {
            counted.push(rows);
        }
    }
    let peak = median(counted.iter().map(|rows| rows[2].peak_mb));
    Ok(vec![
        Verdict::at_least("memory channel / tuned Flume, the same file", ratios(&counted, 1, 0), 5.0, "×"),
        Verdict::at_least("memory channel, acks=all and idempotent / tuned Flume", ratios(&counted, 2, 0), 5.0, "×"),
        Verdict::at_least("memory channel, acks=all and idempotent / rsyslog", ratios(&counted, 2, 4), 4.0, "×"),
        Verdict::at_least("memory channel, acks=all and idempotent / kcat", ratios(&counted, 2, 5), 0.6, "×"),
        Verdict::at_least("exactly once / tuned Flume, at least once", ratios(&counted, 3, 0), 1.0, "×"),
        Verdict::at_most("peak memory, acks=all and idempotent", peak, 64.0, "MB"),
    ])
}

pub(crate) async fn on_file_channel(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let (lines, rounds) = (setting("BENCH_FILE_LINES", 500_000)?, setting("BENCH_ROUNDS", 3)?);
    let file = dir.join("durable.log");
    write_lines(&file, lines)?;
    let contest = Contest { bootstrap, dir, file: &file, lines };
    let channel = file_channel(&dir.join("{topic}.channel"));
    let mut counted = Vec::new();
    for round in 1..=rounds {
        let rows = vec![
            contest.agent("Flume 1.11, file channel", false, &channel, "kafka.producer.acks = 1").await?,
            contest.agent("Millrace, the same file", true, &channel, "kafka.producer.acks = 1").await?,
            contest.agent("Millrace, acks=all, idempotent", true, &channel, "").await?,
        ];
        table(&format!("round {round}: {lines} lines of 160 bytes, file → file channel, each put synced → Kafka"), &rows)?;
        counted.push(rows);
    }
    Ok(vec![
        Verdict::at_least("file channel / Flume's, the same file", ratios(&counted, 1, 0), 6.0, "×"),
        Verdict::at_least("file channel, acks=all and idempotent / Flume's", ratios(&counted, 2, 0), 6.0, "×"),
    ])
}
