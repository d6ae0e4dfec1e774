//! The demo's oracle: counts on its own, from nginx's log, from Kafka at `read_committed`, and from Redis, and compares.
//!
//! While traffic runs it shows the counts; when the file named by `--until` appears it prints the final table and ends with 0
//! only if every line that nginx wrote is in Kafka exactly once and every window and status in Redis has the count
//! that the log itself gives.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{IsTerminal, Read, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use integration_tests::{kafka, servers};
use redis::Commands;

#[derive(Parser)]
struct Args {
    /// nginx's log.
    #[arg(long)]
    access_log: PathBuf,
    /// The topic that its lines go to.
    #[arg(long)]
    topic: String,
    /// Compare and end when this file exists.
    #[arg(long)]
    until: Option<PathBuf>,
    /// Only tell whether as many records as lines are in Kafka: exit code 0 or 1.
    #[arg(long)]
    collected: bool,
}

const WINDOW_SECONDS: i64 = 10;

/// `(window start in epoch seconds, status)` → requests.
type Counts = BTreeMap<(i64, String), u64>;

/// The lines of the log, read as it grows.
struct Log {
    file: File,
    rest: Vec<u8>,
    lines: HashMap<String, u64>,
    count: u64,
    windows: Counts,
}

impl Log {
    fn open(path: &PathBuf) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self { file, rest: Vec::new(), lines: HashMap::new(), count: 0, windows: Counts::new() })
    }

    fn read(&mut self) -> Result<()> {
        self.file.read_to_end(&mut self.rest)?;
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let whole: Vec<u8> = self.rest.drain(..end).collect();
        for line in String::from_utf8_lossy(&whole).lines() {
            let (seconds, status) = time_and_status(line).with_context(|| format!("not a line of nginx's log: {line}"))?;
            *self.windows.entry((seconds - seconds.rem_euclid(WINDOW_SECONDS), status)).or_default() += 1;
            *self.lines.entry(line.to_owned()).or_default() += 1;
            self.count += 1;
        }
        Ok(())
    }
}

/// Epoch seconds of `[22/Nov/2026:10:00:00 +0000]`, and the word after the quoted request.
fn time_and_status(line: &str) -> Option<(i64, String)> {
    let (_, rest) = line.split_once('[')?;
    let (time, rest) = rest.split_once(']')?;
    let (stamp, zone) = time.split_once(' ')?;
    let number = |text: Option<&str>| text?.parse::<i64>().ok();
    let mut parts = stamp.split(['/', ':']);
    let day = number(parts.next())?;
    let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = i64::try_from(month.iter().position(|known| *known == name)?).ok()? + 1;
    let (year, hour, minute, second) = (number(parts.next())?, number(parts.next())?, number(parts.next())?, number(parts.next())?);
    // Days from the civil date: years begin in March, so that the leap day is the last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day - 1 - 719_468;
    let (sign, hours, minutes) = (zone.get(..1)?, number(zone.get(1..3))?, number(zone.get(3..5))?);
    let offset = (hours * 3600 + minutes * 60) * if sign == "-" { -1 } else { 1 };
    let (_, after) = rest.split_once("\" ")?;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second - offset, after.split(' ').next()?.to_owned()))
}

/// What the job has written: every hash `nginx:status:WINDOW:STATUS` (its first word is `NGINX_STATS_KEYS`) with its field `requests`.
fn counted(connection: &mut redis::Connection) -> Result<Counts> {
    let first = std::env::var("NGINX_STATS_KEYS").unwrap_or_else(|_| "nginx".to_owned());
    let keys: Vec<String> = connection.scan_match::<_, String>(format!("{first}:status:*"))?.collect::<redis::RedisResult<_>>()?;
    let mut counts = Counts::new();
    for key in keys {
        let fields: HashMap<String, String> = connection.hgetall(&key)?;
        let field = |name: &str| fields.get(name).with_context(|| format!("{key} has no field {name}"));
        let (window, status, requests) = (field("window_start")?, field("status")?, field("requests")?);
        let start = chrono::NaiveDateTime::parse_from_str(window.trim_end_matches('Z'), "%Y-%m-%dT%H:%M:%S%.f");
        let start = start.with_context(|| format!("{key}: window_start {window}"))?.and_utc().timestamp();
        counts.insert((start, status.clone()), requests.parse().with_context(|| format!("{key}: requests {requests}"))?);
    }
    Ok(counts)
}

/// Lines up to the position that the collector has committed for the log.
fn collected(bootstrap: &str, args: &Args) -> Result<u64> {
    let path = std::fs::canonicalize(&args.access_log)?;
    let mut offset = 0;
    for record in kafka::read_all(bootstrap, "__millrace_positions") {
        let position: serde_json::Value = serde_json::from_slice(&record.value).unwrap_or_default();
        if position.get("path").and_then(|value| value.as_str()).is_some_and(|text| path == *text) {
            offset = position.get("offset").and_then(serde_json::Value::as_u64).unwrap_or_default();
        }
    }
    let bytes = std::fs::read(&args.access_log)?;
    let read = bytes.get(..usize::try_from(offset)?.min(bytes.len())).unwrap_or_default();
    Ok(u64::try_from(read.iter().filter(|byte| **byte == b'\n').count())?)
}

fn finish(bootstrap: &str, args: &Args, log: &mut Log, connection: &mut redis::Connection) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    log.read()?;
    let mut in_kafka: HashMap<String, u64> = HashMap::new();
    let mut records = 0_u64;
    for text in kafka::texts(bootstrap, &args.topic) {
        *in_kafka.entry(text).or_default() += 1;
        records += 1;
    }
    // Lines may be alike; what counts is how often each stands on either side.
    let lost: u64 = log.lines.iter().map(|(line, n)| n.saturating_sub(in_kafka.get(line).copied().unwrap_or_default())).sum();
    let repeated: u64 = in_kafka.iter().map(|(line, n)| n.saturating_sub(log.lines.get(line).copied().unwrap_or_default())).sum();
    let counts = counted(connection)?;
    let total: u64 = counts.values().sum();
    let wrong: Vec<_> = log
        .windows
        .keys()
        .chain(counts.keys())
        .filter(|key| log.windows.get(key) != counts.get(key))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let taken = collected(bootstrap, args)?;
    writeln!(out, "\n  {:<22}{:>10}", "served by nginx", log.count)?;
    writeln!(out, "  {:<22}{:>10}", "collected", taken)?;
    writeln!(out, "  {:<22}{:>10}   {lost} lost, {repeated} repeated", "in Kafka", records)?;
    writeln!(
        out,
        "  {:<22}{:>10}   {} windows and statuses, {} differ from the log",
        "counted in Redis",
        total,
        counts.len(),
        wrong.len()
    )?;
    for key in wrong.iter().take(10) {
        let (window, status) = key;
        let (is, should) = (counts.get(key).copied().unwrap_or_default(), log.windows.get(key).copied().unwrap_or_default());
        writeln!(out, "    window {window} status {status}: {is} in Redis, {should} in the log")?;
    }
    let equal =
        log.count > 0 && taken == log.count && records == log.count && total == log.count && lost + repeated == 0 && wrong.is_empty();
    writeln!(out, "\n  {}", if equal { "equal: every line was counted exactly once" } else { "NOT equal" })?;
    Ok(equal)
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let bootstrap = servers::kafka_bootstrap();
    let mut log = Log::open(&args.access_log)?;
    if args.collected {
        log.read()?;
        let records = kafka::texts(&bootstrap, &args.topic).len() as u64;
        return Ok(if records >= log.count { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut connection = redis::Client::open(servers::redis_url())?.get_connection()?;
    let terminal = std::io::stdout().is_terminal();
    let mut follower = kafka::Follower::new(&bootstrap, &args.topic);
    let (mut shown, every) = (Instant::now(), Duration::from_secs(if terminal { 1 } else { 10 }));
    loop {
        if args.until.as_ref().is_some_and(|until| until.exists()) {
            return Ok(if finish(&bootstrap, &args, &mut log, &mut connection)? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        // Kafka first: what is there has been served.
        let records = follower.count(Duration::from_millis(200));
        log.read()?;
        if shown.elapsed() >= every {
            shown = Instant::now();
            let counts = counted(&mut connection)?;
            let total = counts.values().sum::<u64>();
            let windows = counts.keys().map(|(start, _)| start).collect::<std::collections::BTreeSet<_>>().len();
            let line = format!(
                "  served {:>8}   in Kafka {records:>8}   counted in Redis {total:>8}, in {windows} closed windows of {WINDOW_SECONDS} s",
                log.count
            );
            let mut out = std::io::stdout().lock();
            // A terminal shows one line that changes; a file gets a line at a time.
            if terminal {
                write!(out, "\r{line}")?
            } else {
                writeln!(out, "{line}")?
            }
            out.flush()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_times_and_statuses_are_read() {
        let line = |time: &str| format!(r#"127.0.0.1 - - [{time}] "GET / HTTP/1.1" 404 12 "-" "x" 0.001"#);
        for (time, seconds) in [
            ("01/Jan/1970:00:00:00 +0000", 0),
            ("29/Feb/2024:23:59:59 +0000", 1_709_251_199),
            ("22/Nov/2026:10:00:00 +0000", 1_795_341_600),
            ("22/Nov/2026:12:00:00 +0200", 1_795_341_600),
            ("22/Nov/2026:04:30:00 -0530", 1_795_341_600),
        ] {
            assert_eq!(time_and_status(&line(time)), Some((seconds, "404".to_owned())), "{time}");
        }
        assert_eq!(time_and_status("no log line"), None);
    }
}
