//! How long a line takes to its topic, how soon the first record is there, and what idle files cost.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use integration_tests::{kafka, unique};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};

use super::collector::{Agent, MEMORY, file_channel};
use super::process::{Running, flume, millrace};
use super::{Verdict, median, setting};

/// What starts a contestant with an agent file.
type Start = fn(&Path) -> Command;

/// A reader that sees a record as soon as a consumer can.
fn reader(bootstrap: &str, topic: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("fetch.min.bytes", "1")
        .set("fetch.wait.max.ms", "100")
        .create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&list)?;
    Ok(consumer)
}

fn next(consumer: &BaseConsumer, wait: Duration) -> Result<Vec<u8>> {
    let message = consumer.poll(wait).with_context(|| format!("no record within {wait:?}"))??;
    Ok(message.payload().unwrap_or_default().to_vec())
}

/// Appends 10 lines every millisecond; each says when it was written, in nanoseconds since `epoch`.
fn write(file: &mut fs::File, epoch: Instant, lines: usize) -> Result<()> {
    let begun = Instant::now();
    let mut text = String::new();
    for batch in 0..lines / 10 {
        let due = begun + Duration::from_millis(batch as u64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        text.clear();
        for _ in 0..10 {
            let line = format!("{:020} ", epoch.elapsed().as_nanos());
            text.push_str(&format!("{line:.<159}\n"));
        }
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Latencies in milliseconds of lines written at 10,000 a second, sorted.
async fn latencies(bootstrap: &str, dir: &Path, name: &str, channel: &str, command: Start) -> Result<Vec<f64>> {
    let lines = setting("BENCH_LATENCY_LINES", 100_000)?;
    let topic = unique("bench-latency");
    kafka::create_topic(bootstrap, &topic, 1).await;
    let file = dir.join(format!("{topic}.log"));
    let mut out = fs::File::create(&file)?;
    let conf = dir.join(format!("{topic}.conf"));
    let channel = channel.replace("{topic}", &topic);
    fs::write(&conf, Agent { bootstrap, topic: &topic, files: &file.display().to_string(), channel: &channel, sink: "" }.text(dir))?;
    let _running = Running::start(name, &mut command(&conf), &dir.join(format!("{topic}.out")))?;
    let consumer = reader(bootstrap, &topic)?;
    // Everything is running and connected before the clock does.
    out.write_all(b"first\n")?;
    next(&consumer, Duration::from_secs(60))?;
    let epoch = Instant::now();
    let writer = std::thread::spawn(move || write(&mut out, epoch, lines));
    let mut seen = Vec::with_capacity(lines);
    while seen.len() < lines {
        let record = next(&consumer, Duration::from_secs(60))?;
        let at = epoch.elapsed().as_nanos();
        let written: u128 = std::str::from_utf8(&record)?.split(' ').next().unwrap_or_default().parse()?;
        seen.push((at - written) as f64 / 1e6);
    }
    writer.join().map_err(|_| anyhow!("the writer panicked"))??;
    seen.sort_by(f64::total_cmp);
    Ok(seen)
}

pub(crate) async fn line_to_topic(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let files = file_channel(&dir.join("{topic}.channel"));
    let contestants: [(&str, &str, Start); 4] = [
        ("Flume 1.11, memory channel", MEMORY, flume),
        ("Flume 1.11, file channel", &files, flume),
        ("Millrace, memory channel", MEMORY, millrace),
        ("Millrace, file channel", &files, millrace),
    ];
    let mut verdicts = Vec::new();
    let mut rows = Vec::new();
    for (name, channel, command) in contestants {
        let seen = latencies(bootstrap, dir, name, channel, command).await?;
        let at = |part: f64| seen[((seen.len() - 1) as f64 * part) as usize];
        rows.push(format!("  {name:<46} {:>8.1} {:>8.1} {:>8.1}", at(0.5), at(0.99), at(1.0)));
        if name.starts_with("Millrace") {
            verdicts.push(Verdict::at_most(format!("line to topic, p99 at 10,000 lines/s, {}", &name[10..]), at(0.99), 20.0, "ms"));
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nfrom the write of a line to a consumer's poll, 10,000 lines/s, ms\n  {:<46} {:>8} {:>8} {:>8}",
        "", "p50", "p99", "max"
    )?;
    writeln!(out, "{}", rows.join("\n"))?;
    Ok(verdicts)
}

/// From the start of the process to its first record.
async fn first_record(bootstrap: &str, dir: &Path, name: &str, command: Start) -> Result<f64> {
    let topic = unique("bench-start");
    kafka::create_topic(bootstrap, &topic, 1).await;
    let file = dir.join(format!("{topic}.log"));
    fs::write(&file, "line\n")?;
    let conf = dir.join(format!("{topic}.conf"));
    fs::write(&conf, Agent { bootstrap, topic: &topic, files: &file.display().to_string(), channel: MEMORY, sink: "" }.text(dir))?;
    let consumer = reader(bootstrap, &topic)?;
    // The reader is connected and waits.
    drop(consumer.poll(Duration::from_millis(500)));
    let running = Running::start(name, &mut command(&conf), &dir.join(format!("{topic}.out")))?;
    next(&consumer, Duration::from_secs(60))?;
    Ok(running.started.elapsed().as_secs_f64() * 1000.0)
}

pub(crate) async fn start(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let theirs = first_record(bootstrap, dir, "Flume 1.11", flume).await?;
    let mut ours = Vec::new();
    for _ in 0..5 {
        ours.push(first_record(bootstrap, dir, "Millrace", millrace).await?);
    }
    let ours = median(ours);
    writeln!(
        std::io::stdout().lock(),
        "\nfrom the start of the process to the first record: Flume {theirs:.0} ms, Millrace {ours:.0} ms (median of 5)"
    )?;
    Ok(vec![Verdict::at_most("start to first record", ours, 300.0, "ms")])
}

pub(crate) async fn idle_files(bootstrap: &str, dir: &Path) -> Result<Vec<Verdict>> {
    let files = setting("BENCH_IDLE_FILES", 10_000)?;
    let topic = unique("bench-idle");
    kafka::create_topic(bootstrap, &topic, 1).await;
    let folder = dir.join("idle");
    fs::create_dir(&folder)?;
    for n in 0..files {
        fs::write(folder.join(format!("app-{n}.log")), format!("line of file {n}\n"))?;
    }
    let pattern = folder.join("app-.*[.]log").display().to_string();
    let conf = dir.join(format!("{topic}.conf"));
    fs::write(&conf, Agent { bootstrap, topic: &topic, files: &pattern, channel: MEMORY, sink: "" }.text(dir))?;
    let mut running = Running::start("Millrace, idle files", &mut millrace(&conf), &dir.join(format!("{topic}.out")))?;
    running.until_complete(bootstrap, &topic, i64::try_from(files)?)?;
    // Positions are written and connections idle by then.
    std::thread::sleep(Duration::from_secs(5));
    let (before, begun) = (running.usage(), Instant::now());
    std::thread::sleep(Duration::from_secs(20));
    let after = running.usage();
    let share = (after.cpu_seconds - before.cpu_seconds) / begun.elapsed().as_secs_f64() * 100.0;
    Ok(vec![
        Verdict::at_most(format!("{files} idle files, CPU of one core"), share, 1.0, "%"),
        Verdict::at_most(format!("{files} idle files, peak memory"), after.peak_mb, 64.0, "MB"),
    ])
}
