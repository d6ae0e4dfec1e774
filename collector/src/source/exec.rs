//! `exec`: the output lines of a command. A following `tail` of one file is done by the tail engine instead.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep_until, timeout},
};

use super::lines::Lines;
use super::tail::TailSource;
use super::tail::command::{Begin, TailCommand, follows, recognise};
use super::tail::engine::Settings;
use super::tail::find::Find;
use super::taildir::{LINE_LENGTH, ROTATE_WAIT};
use super::{Output, Setup, Source, Stop};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};

/// How long a command that has closed its standard output may take to end by itself.
const END_WAIT: Duration = Duration::from_secs(2);
/// How long a command that was told to end (SIGTERM) may take before it is killed.
const KILL_WAIT: Duration = Duration::from_secs(2);

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("exec"),
    class: Some("org.apache.flume.source.ExecSource"),
    doc: "The output lines of a command. `tail -F FILE` is not run but done by Millrace itself: over rotations and restarts no line is lost or repeated; files that were rotated away while it did not run (`FILE.1`, `FILE-20260102`) are read first. A source that gets another name goes on from the positions of the old one.",
    properties: &[
        Property::text("command", None, "The command. Without `shell` it is split at blanks, without quoting.").required(),
        Property::text(
            "shell",
            None,
            "Shell that gets the command as its last argument, e.g. `/bin/sh -c`; needed for pipes, quotes and wildcards.",
        ),
        Property::boolean("restart", "false", "Start the command again when it ends."),
        Property::integer(
            "restartThrottle",
            0,
            86_400_000,
            Some("10000"),
            "Milliseconds before it is started again; doubled up to eight times over while it keeps ending at once.",
        ),
        Property::boolean("logStdErr", "false", "Log what the command writes to its standard error."),
        Property::integer(
            "batchSize",
            1,
            1_000_000,
            Some("20"),
            "Lines in one put, at least; where more are there at once, up to `transactionCapacity`.",
        ),
        Property::integer("batchTimeout", 1, 86_400_000, Some("3000"), "Milliseconds after which fewer lines are put."),
        Property::choice(
            "charset",
            &["utf-8", "utf8", "us-ascii", "iso-8859-1"],
            "UTF-8",
            "How the command writes text. Bodies are always UTF-8.",
        ),
        LINE_LENGTH,
        ROTATE_WAIT,
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

/// The command as a `tail` that the tail engine does.
pub fn tail_of(component: &Component, strict: bool) -> Option<TailCommand> {
    if strict || is_latin_1(component) {
        return None;
    }
    recognise(component.text("command"), component.set("shell"))
}

fn is_latin_1(component: &Component) -> bool {
    component.text("charset").trim().eq_ignore_ascii_case("iso-8859-1")
}

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let command = component.text("command").trim();
    let place = component.settings.get("command").and_then(|setting| setting.place.as_ref());
    let say = |level, code, message: String| Finding::new(level, code, message).maybe_at(place).key(format!("{}.command", component.name));
    let mut findings = Vec::new();
    if let Some(tail) = tail_of(component, strict) {
        let message = format!("{} is tailed by Millrace itself, from the last delivered line on", tail.path.display());
        let flume = "runs the command: lines are lost and repeated at restarts and when the channel is full";
        findings.push(say(Level::Warning, "tail-engine", message).flume(flume).remedy("nothing to do; --flume-strict runs the command"));
        if !tail.by_name {
            findings.push(
                say(Level::Warning, "tail-by-name", "`-f` would stay with the file when it is renamed; it is followed by name".into())
                    .remedy("write `tail -F`"),
            );
        }
        let literally = |char: &char| "*?[$~\"'".contains(*char);
        if let (None, Some(char)) = (component.set("shell"), command.chars().find(literally)) {
            let message = format!(
                "there is no shell that would expand `{char}`: a file whose name is {} to the letter is waited for",
                tail.path.display()
            );
            let directory = tail.path.parent().unwrap_or(Path::new("/")).display();
            findings.push(
                say(Level::Warning, "no-shell", message)
                    .remedy(format!("add shell = /bin/sh -c; or follow all of them with TAILDIR, filegroups.f = {directory}/.*\\\\.log")),
            );
        }
        if tail.path.is_relative() {
            findings.push(
                say(
                    Level::Warning,
                    "relative-path",
                    format!("`{}` is relative to the directory the collector is started in", tail.path.display()),
                )
                .remedy("write an absolute path"),
            );
        }
    } else if component.set("shell").is_none() && command.contains(|char: char| "|&;<>$`\"'*".contains(char)) {
        let message = "there is no shell, so `|`, `>`, `$`, quotes and wildcards reach the command as they are".into();
        findings.push(say(Level::Warning, "no-shell", message).remedy("add shell = /bin/sh -c"));
    } else if !strict && follows(command) {
        let message = "the command is run as it is, since it is more than one followed file: a crash loses and repeats lines, and what \
                       `tail` prints between several files becomes events";
        let remedy = "follow several files with TAILDIR; filter lines with the regex_filter interceptor";
        findings.push(say(Level::Warning, "tail-run", message.into()).flume("does the same").remedy(remedy));
    }
    findings
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    if let Some(tail) = tail_of(component, setup.strict) {
        return Ok(Box::new(TailSource {
            name: component.name.clone(),
            state_dir: setup.state_dir,
            settings: Settings {
                find: Find::Path(std::path::absolute(&tail.path).with_context(|| format!("path {}", tail.path.display()))?),
                line_bytes_max: component.count("maxLineLength"),
                rotate_wait: component.millis("rotateWait"),
                partial_wait: None,
                scan_interval: Duration::from_millis(100),
                look_pause_max: Duration::from_secs(3),
                path_header: None,
                handles_max: 64,
            },
            begin: tail.begin,
            committed: setup.committed,
            configured: setup.configured,
            flume: None,
            save_interval: Duration::from_millis(250),
            offset_header: None,
        }));
    }
    let command = component.text("command").trim();
    let words: Vec<String> = match component.set("shell") {
        Some(shell) => shell.split_whitespace().chain([command]).map(str::to_owned).collect(),
        None => command.split_whitespace().map(str::to_owned).collect(),
    };
    anyhow::ensure!(!words.is_empty(), "the command is empty");
    Ok(Box::new(Exec {
        words,
        restart: component.boolean("restart").then(|| component.millis("restartThrottle")),
        log_errors: component.boolean("logStdErr"),
        batch: component.count("batchSize"),
        batch_wait: component.millis("batchTimeout"),
        latin_1: is_latin_1(component),
        line_bytes_max: component.count("maxLineLength"),
    }))
}

struct Exec {
    words: Vec<String>,
    restart: Option<Duration>,
    log_errors: bool,
    batch: usize,
    batch_wait: Duration,
    latin_1: bool,
    line_bytes_max: usize,
}

#[async_trait]
impl Source for Exec {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let mut quick_ends = 0u32;
        loop {
            let started = Instant::now();
            let ended = self.once(&out, &stop).await;
            if stop.begin.is_cancelled() {
                return Ok(());
            }
            let Some(throttle) = self.restart else {
                let how = ended?;
                anyhow::ensure!(how.success(), "`{}` ended with {how}; set restart = true to start it again", self.words.join(" "));
                tracing::warn!(
                    source = out.name(),
                    command = self.words.join(" "),
                    "the command ended; nothing more comes from it (set restart = true to start it again)"
                );
                return Ok(());
            };
            quick_ends = if started.elapsed() > throttle.max(Duration::from_secs(1)) { 0 } else { (quick_ends + 1).min(3) };
            let wait = throttle * (1 << quick_ends.saturating_sub(1)) * if quick_ends > 2 { 2 } else { 1 };
            let how = ended.map_or_else(|error| format!("{error:#}"), |how| how.to_string());
            tracing::warn!(source = out.name(), ended = how, ?wait, "the command ended; starting it again");
            out.trouble(Some(format!("the command ended ({how}); it is started again")));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.begin.cancelled() => return Ok(()),
            }
        }
    }
}

impl Exec {
    /// Runs the command once, to its end or until told to stop; what it wrote until then is delivered.
    async fn once(&self, out: &Output, stop: &Stop) -> anyhow::Result<std::process::ExitStatus> {
        let mut child = self.spawn()?;
        out.trouble(None);
        let mut stdout = child.stdout.take().context("the command has no standard output")?;
        let errors = child.stderr.take().map(|stderr| {
            let name = out.name().to_owned();
            tokio::task::spawn(async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    tracing::warn!(source = name, line, "the command's standard error");
                }
            })
        });
        let (mut lines, mut events) = (Lines::default(), Vec::new());
        let mut flush_at = Instant::now() + self.batch_wait;
        let stopped = loop {
            let read = tokio::select! {
                read = stdout.read_buf(lines.buffer()) => Some(read),
                () = sleep_until(flush_at), if !events.is_empty() => None,
                () = stop.begin.cancelled() => break true,
            };
            let ended = match read {
                Some(Ok(0)) => true,
                Some(Ok(_)) => false,
                Some(Err(error)) => {
                    out.counters.read_failures.add(1);
                    tracing::warn!(source = out.name(), %error, "cannot read the command's output");
                    true
                }
                None => false,
            };
            events.extend(lines.by_ref().map(|line| self.event(line)));
            events.extend(lines.rest(if ended { 1 } else { self.line_bytes_max }).map(|line| self.event(line)));
            if ended || events.len() >= self.batch || Instant::now() >= flush_at {
                self.deliver(&mut events, out).await;
                flush_at = Instant::now() + self.batch_wait;
            }
            if ended {
                break false;
            }
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // The end of what it writes comes before its own: how it ends is for it to say.
        let mut ended = None;
        if !stopped {
            ended = tokio::select! {
                ended = timeout(END_WAIT, child.wait()) => ended.ok(),
                () = stop.begin.cancelled() => None,
            };
        }
        // The whole group: a shell's children too.
        kill(group, Signal::TERM);
        self.deliver(&mut events, out).await;
        let ended = match ended {
            Some(ended) => ended,
            None => match timeout(KILL_WAIT, child.wait()).await {
                Ok(ended) => ended,
                Err(_) => {
                    kill(group, Signal::KILL);
                    child.wait().await
                }
            },
        };
        let status = ended.context("waiting for the command")?;
        if let Some(errors) = errors {
            // A grandchild may hold the pipe open; its words are not waited for.
            errors.abort();
        }
        Ok(status)
    }

    /// Waits for the channel as long as it takes: what was read is never dropped.
    async fn deliver(&self, events: &mut Vec<Event>, out: &Output) {
        let most = out.batch_max();
        while !events.is_empty() {
            let mut batch: Vec<Event> = events.drain(..most.min(events.len())).collect();
            out.trace(&mut batch);
            out.deliver(batch).await;
        }
    }

    fn event(&self, line: bytes::Bytes) -> Event {
        if self.latin_1 && !line.is_ascii() {
            return Event::new(line.iter().map(|&byte| char::from(byte)).collect::<String>());
        }
        Event::new(line)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let (program, arguments) = self.words.split_first().context("the command is empty")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        command.stderr(if self.log_errors { Stdio::piped() } else { Stdio::null() });
        command.spawn().with_context(|| {
            let hint = if Path::new(program).is_absolute() { "" } else { " (not found in PATH?)" };
            format!("cannot start `{program}`{hint}")
        })
    }
}

fn kill(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, signal)
    {
        tracing::debug!(%error, "the command had ended already");
    }
}

/// Where the tail engine begins a file it has never seen, for people.
pub fn describe(begin: Begin) -> String {
    match begin {
        Begin::LastLines(lines) => format!("the last {lines} lines"),
        Begin::Line(1) => "the beginning".to_owned(),
        Begin::Line(line) => format!("line {line}"),
        Begin::End => "the end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::watch;

    use super::*;
    use crate::channel::{
        Channel,
        memory::{Limits, MemoryChannel},
    };
    use crate::counters::SourceCounters;

    fn exec(words: &[&str]) -> Exec {
        Exec {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            restart: None,
            log_errors: false,
            batch: 20,
            batch_wait: Duration::from_millis(20),
            latin_1: false,
            line_bytes_max: 1 << 20,
        }
    }

    fn output(capacity: usize) -> (Output, Arc<dyn Channel>, watch::Sender<bool>) {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(Limits {
            events_max: capacity,
            transaction_max: capacity.min(5),
            bytes_max: usize::MAX,
            keep_alive: Duration::from_millis(1),
        }));
        let (resume, paused) = watch::channel(false);
        (Output::new("e", vec![channel.clone()], SourceCounters::new("e"), paused, Arc::new(Mutex::new(None))), channel, resume)
    }

    async fn next(channel: &Arc<dyn Channel>) -> Vec<String> {
        let taken = channel.clone().take(100, Duration::from_secs(10)).await;
        let bodies = taken.events().iter().map(|event| String::from_utf8(event.body.to_vec()).unwrap()).collect();
        taken.commit();
        bodies
    }

    #[tokio::test]
    async fn every_line_arrives_though_the_channel_is_small() {
        let (out, channel, _resume) = output(3);
        let source = tokio::task::spawn(Box::new(exec(&["sh", "-c", "seq 1 200; printf 'a\\r\\nlast'"])).run(out, Stop::default()));
        let mut seen = Vec::new();
        while seen.len() < 202 {
            let more = next(&channel).await;
            assert!(!more.is_empty(), "only {} came", seen.len());
            seen.extend(more);
        }
        assert!(seen[..200].iter().enumerate().all(|(at, line)| *line == (at + 1).to_string()));
        assert_eq!(seen[200..], ["a", "last"]);
        source.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_lonely_line_does_not_wait_for_a_batch() {
        let (out, channel, _resume) = output(100);
        let stop = Stop::default();
        let source = tokio::task::spawn(Box::new(exec(&["sh", "-c", "echo one; exec sleep 600"])).run(out, stop.clone()));
        assert_eq!(next(&channel).await, ["one"]);
        stop.begin.cancel();
        // The sleeping command is killed.
        source.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_command_that_ends_is_started_again_when_it_may() {
        let (out, channel, _resume) = output(100);
        let stop = Stop::default();
        let restarting = Exec { restart: Some(Duration::from_millis(1)), ..exec(&["echo", "again"]) };
        let source = tokio::task::spawn(Box::new(restarting).run(out, stop.clone()));
        for _ in 0..3 {
            assert_eq!(next(&channel).await[0], "again");
        }
        stop.begin.cancel();
        source.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_cannot_run_is_told() {
        for (words, expected) in [
            (&["/no/such/program"][..], "cannot start `/no/such/program`"),
            (&["sh", "-c", "exit 3"], "`sh -c exit 3` ended with exit status: 3; set restart = true"),
        ] {
            let (out, _channel, _resume) = output(9);
            let error = Box::new(exec(words)).run(out, Stop::default()).await.unwrap_err();
            assert!(format!("{error:#}").starts_with(expected), "{error:#}");
        }
    }

    #[tokio::test]
    async fn a_command_that_closes_its_output_says_itself_how_it_ends() {
        let (out, _channel, _resume) = output(9);
        Box::new(exec(&["sh", "-c", "echo x; exec >&-; sleep 0.3"])).run(out, Stop::default()).await.unwrap();
        let (out, _channel, _resume) = output(9);
        let error = Box::new(exec(&["sh", "-c", "exec >&-; sleep 0.3; exit 4"])).run(out, Stop::default()).await.unwrap_err();
        assert!(format!("{error:#}").contains("ended with exit status: 4;"), "{error:#}");
    }

    #[tokio::test]
    async fn a_command_that_does_not_want_to_end_is_killed() {
        let (out, channel, _resume) = output(100);
        let stop = Stop::default();
        let stubborn = exec(&["sh", "-c", "trap '' TERM; echo one; while :; do sleep 1; done"]);
        let source = tokio::task::spawn(Box::new(stubborn).run(out, stop.clone()));
        assert_eq!(next(&channel).await, ["one"]);
        stop.begin.cancel();
        timeout(Duration::from_secs(30), source).await.expect("it ends").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_paused_source_gives_nothing() {
        let (out, channel, resume) = output(9);
        resume.send_replace(true);
        let source = tokio::task::spawn(Box::new(exec(&["echo", "x"])).run(out, Stop::default()));
        let taken = channel.clone().take(1, Duration::from_millis(100)).await;
        assert!(taken.is_empty());
        resume.send_replace(false);
        assert_eq!(next(&channel).await, ["x"]);
        source.await.unwrap().unwrap();
    }
}
