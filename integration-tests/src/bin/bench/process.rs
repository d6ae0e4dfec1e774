//! A process under measurement: what it costs, and when its records are in Kafka.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use integration_tests::{process::binary, root};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

/// Longest run of one process.
const LIMIT: Duration = Duration::from_secs(300);

pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    pub(crate) started: Instant,
    used: Usage,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) peak_mb: f64,
    pub(crate) cpu_seconds: f64,
}

impl Running {
    /// Starts it and says so, as one could type it, with how busy the machine is just then.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = fs::File::create(log)?;
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy().into_owned());
        let words: Vec<_> = words.collect();
        writeln!(std::io::stdout().lock(), "load {}  {name}\n  $ {}", load.split(' ').next().unwrap_or_default(), words.join(" "))?;
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn().with_context(|| name.to_owned())?;
        Ok(Self { child, log: log.to_owned(), started, used: Usage::default() })
    }

    /// Peak resident memory and used CPU time, of the last moment in which the process was seen.
    pub(crate) fn usage(&mut self) -> Usage {
        let pid = self.child.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<f64>().ok());
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        if let Some(peak) = peak {
            // Fields 14 and 15 of proc(5), counted after the name; 100 ticks a second on Linux.
            self.used = Usage { peak_mb: peak / 1024.0, cpu_seconds: (ticks(11) + ticks(12)) / 100.0 };
        }
        self.used
    }

    /// Has it ended? An end in failure is an error.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        self.usage();
        match self.child.try_wait()? {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("ended with {status}; its log:\n{}", fs::read_to_string(&self.log).unwrap_or_default()),
        }
    }

    /// Waits for the end.
    pub(crate) fn finish(&mut self) -> Result<()> {
        while !self.ended()? {
            self.check_limit()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn check_limit(&self) -> Result<()> {
        if self.started.elapsed() > LIMIT {
            bail!("still running after {LIMIT:?}; its log:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        Ok(())
    }

    /// Waits until a one-partition topic holds `lines` records; gives the seconds from its first record on and from the start.
    pub(crate) fn until_complete(&mut self, bootstrap: &str, topic: &str, lines: i64) -> Result<(f64, f64)> {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).set("group.id", "bench").create()?;
        let mut first = None;
        let mut gone_at = None;
        loop {
            let (_, end) = consumer.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
            if end > 0 && first.is_none() {
                first = Some((Instant::now(), end));
            }
            if let (Some((start, already)), true) = (first, end >= lines) {
                self.usage();
                // What was there at the first look counts as not measured.
                let seconds = start.elapsed().as_secs_f64() * lines as f64 / (lines - already).max(1) as f64;
                return Ok((seconds, self.started.elapsed().as_secs_f64()));
            }
            if self.ended()? && gone_at.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2) {
                bail!("ended after {end} of {lines} records; its log:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
            }
            self.check_limit()?;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Real Flume 1.11 with this agent file.
pub(crate) fn flume(conf: &Path) -> Command {
    let mut command = Command::new(root().join("deploy/dev/flume/flume"));
    command.arg(conf).arg("agent");
    command
}

/// The collector with this agent file.
pub(crate) fn millrace(conf: &Path) -> Command {
    let mut command = Command::new(binary("millrace-collector"));
    command.args(["agent", "--name", "agent", "--no-reload-conf", "--conf-file"]).arg(conf);
    command.arg("--state-dir").arg(conf.with_extension("state"));
    command.env("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0").env("MILLRACE_METRICS__LISTEN", "127.0.0.1:0");
    command
}
