//! `millrace-collector channel …`: a file channel looked at, checked and emptied without its agent.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line's output")]

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use crate::channel::file::{
    self,
    channel::FileChannel,
    disk::{Disk, DiskFile, InUse, RealDisk},
    format::{HEADER_BYTES, Header, NOTE},
    log::{Found, Place, Walk},
    recovery::{self, Decision},
};
use crate::channel::flume_log::{self, FlumeLogs};
use crate::channel::{Channel, Setup};
use crate::cli::print;
use crate::config::AgentConfig;
use crate::event::Event;
use crate::flume_cli;
use crate::flume_conf::{Component, Outcome};
use crate::source::tail::store::file_name;

#[derive(Args)]
pub struct ChannelArgs {
    #[command(subcommand)]
    command: Verb,
}

const CODES: &str = "Exit codes: 0 done (verify: all is well); 1 it did not work (verify, drain: something is damaged or missing; drain: a running agent holds the channel); 64 the command line is wrong; 78 the agent's file cannot be used, or does not name the channel.";

#[derive(Subcommand)]
enum Verb {
    /// Shows segments, waiting events and what a start would find. Reads only what a start reads, so it is quick and sees no damage within a segment: for that there is `verify`. Changes nothing; the agent may run.
    #[command(after_help = CODES)]
    Inspect(Which),
    /// Reads every record of every segment and checks it, which takes as long as reading all of it. Exit code 1 when something is damaged or missing. Shows no waiting events: for those there is `inspect`. Changes nothing; the agent may run.
    #[command(after_help = CODES)]
    Verify(Which),
    /// Writes the waiting events to standard output and takes them out of the channel. The agent must be stopped. What is damaged is told, and its segment kept as `….log.damaged`. Flume's own directories stay as they are.
    #[command(after_help = CODES)]
    Drain {
        #[command(flatten)]
        which: Which,
        /// Leave the events in the channel.
        #[arg(long)]
        keep: bool,
        /// `json`: one object a line with headers and body (`body_base64` where it is no text); `raw`: bodies, each with a newline.
        #[arg(long, value_enum, default_value = "json")]
        events: EventFormat,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EventFormat {
    Json,
    Raw,
}

#[derive(Args)]
pub struct Which {
    /// Flume properties file that defines the channel.
    #[arg(required_unless_present = "conf_file")]
    file: Vec<PathBuf>,
    /// The same, in the agent's words.
    #[arg(short = 'f', long = "conf-file", value_name = "FILE")]
    conf_file: Vec<PathBuf>,
    /// The agent; may be left out when the file has only one.
    #[arg(short, long)]
    pub name: Option<String>,
    /// The channel; may be left out when the agent has only one on disk.
    #[arg(long)]
    channel: Option<String>,
    /// The agent's state directory, as it runs with.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Look at the files that Flume left in the channel's directories, also where the collector has a channel already.
    #[arg(long)]
    flume: bool,
    /// With Flume's files: read them although a running Flume holds them.
    #[arg(long)]
    ignore_lock: bool,
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl ChannelArgs {
    pub fn which(&self) -> &Which {
        match &self.command {
            Verb::Inspect(which) | Verb::Verify(which) | Verb::Drain { which, .. } => which,
        }
    }

    /// With what the files say.
    pub fn run(&self, outcome: Outcome) -> ExitCode {
        let which = self.which();
        let (component, setup) = match which.find(outcome) {
            Ok(found) => found,
            Err(error) => {
                eprintln!("error: {error:#}");
                return ExitCode::from(service_kit::exit::CONFIG);
            }
        };
        match self.carry_out(&component, &setup) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        }
    }

    /// False when something is not well.
    fn carry_out(&self, component: &Component, setup: &Setup) -> anyhow::Result<bool> {
        let which = self.which();
        match &self.command {
            verb if which.is_flumes(component, setup) => {
                let (name, logs) = (&component.name, which.flumes(component)?);
                match verb {
                    Verb::Inspect(_) => flume_cli::inspect(name, &logs, which.output == Format::Json).map(|()| true),
                    Verb::Verify(_) => flume_cli::verify(name, &logs, which.output == Format::Json),
                    Verb::Drain { events, .. } => flume_cli::drain(&logs, |out, event| write_event(out, event, *events)),
                }
            }
            Verb::Inspect(_) => inspect(&component.name, &file::place(component, setup), which.output).map(|()| true),
            Verb::Verify(_) => verify(&component.name, &file::place(component, setup), which.output),
            Verb::Drain { keep, events, .. } => drain(component, setup, *keep, *events),
        }
    }
}

impl Which {
    pub fn files(&self) -> Vec<PathBuf> {
        self.file.iter().chain(&self.conf_file).cloned().collect()
    }

    /// Are Flume's files meant? They are where the collector has no channel yet, which would have its acknowledgements there.
    fn is_flumes(&self, component: &Component, setup: &Setup) -> bool {
        let own = file::place(component, setup).checkpoint.join(file::acks::FILE);
        self.flume || (!own.exists() && !flume_log::logs_in(&file::flume_place(component).data).is_empty())
    }

    fn flumes(&self, component: &Component) -> anyhow::Result<FlumeLogs> {
        let place = file::flume_place(component);
        let directories: Vec<PathBuf> = place.data.iter().chain([&place.checkpoint]).cloned().collect();
        if let Some((lock, pid)) = flume_log::holder(&directories).filter(|_| !self.ignore_lock) {
            anyhow::bail!(
                "process {pid} holds {}: stop Flume first (or read what it has written so far with --ignore-lock)",
                lock.display()
            );
        }
        let logs = FlumeLogs::open(&place.data, place.checkpoint)?;
        anyhow::ensure!(logs.files().next().is_some(), "there is no log of Flume in {:?}", place.data);
        Ok(logs)
    }

    fn find(&self, outcome: Outcome) -> anyhow::Result<(Component, Setup)> {
        let errors = || outcome.findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let agents: Vec<&str> = outcome.plans.iter().map(|plan| plan.agent.as_str()).collect();
        let [plan] = outcome.plans.as_slice() else {
            anyhow::ensure!(!agents.is_empty(), "no agent can be read:\n{}", errors());
            anyhow::bail!("there are several agents: {}; give one of them with --name", agents.join(", "));
        };
        let on_disk: Vec<&Component> = plan.channels.iter().filter(|channel| channel.kind.property("dataDirs").is_some()).collect();
        let names: Vec<&str> = on_disk.iter().map(|channel| channel.name.as_str()).collect();
        let channel = match (&self.channel, on_disk.as_slice()) {
            (None, [only]) => Some(*only),
            (None, _) => None,
            (Some(name), _) => on_disk.iter().find(|channel| channel.name == *name).copied(),
        };
        let channel = channel.with_context(|| match names.as_slice() {
            [] => format!("agent `{}` has no channel on disk", plan.agent),
            names => format!("name one of the channels on disk with --channel: {}", names.join(", ")),
        })?;
        let state_dir = AgentConfig { state_dir: self.state_dir.clone(), ..AgentConfig::default() }.state_dir();
        Ok((channel.clone(), Setup { state_dir: state_dir.join(file_name(&plan.agent)) }))
    }
}

/// What a start would decide now.
fn look(place: &Place<RealDisk>) -> anyhow::Result<Decision> {
    let facts = place.facts().context("there is no channel yet, or it cannot be read")?;
    Ok(recovery::decide(&facts)?)
}

fn inspect(name: &str, place: &Place<RealDisk>, format: Format) -> anyhow::Result<()> {
    let decision = look(place)?;
    let mut text = String::new();
    let waiting = |segment: &recovery::Segment| decision.acked.missing(segment.first, segment.next);
    let total: u64 = decision.segments.iter().map(waiting).sum();
    let bytes: u64 = decision.segments.iter().map(|segment| segment.len).sum();
    let lost: u64 = decision.lost.iter().map(|lost| lost.events).sum();
    if format == Format::Json {
        let segments: Vec<_> = decision
            .segments
            .iter()
            .map(|segment| json!({ "file": place.path(segment.id, segment.directory), "bytes": segment.len, "first": segment.first, "next": segment.next, "waiting": waiting(segment) }))
            .collect();
        let aside: Vec<_> =
            decision.aside.iter().map(|(id, directory, why)| json!({ "file": place.path(*id, *directory), "why": why })).collect();
        writeln!(
            text,
            "{:#}",
            json!({ "channel": name, "identity": format!("{:016x}", decision.channel), "waiting": total, "bytes": bytes, "missing": lost, "cut_bytes": decision.cut.map(|(_, bytes)| bytes), "segments": segments, "not_read": aside })
        )?;
        print(&text);
        return Ok(());
    }
    writeln!(text, "channel {name}, identity {:016x}", decision.channel)?;
    writeln!(text, "{total} events wait, {} segments, {bytes} bytes", decision.segments.len())?;
    for segment in &decision.segments {
        let path = place.path(segment.id, segment.directory);
        writeln!(
            text,
            "  {}  {:>12} bytes  events {}..{}  {} waiting",
            path.display(),
            segment.len,
            segment.first,
            segment.next,
            waiting(segment)
        )?;
    }
    for (id, directory, why) in &decision.aside {
        writeln!(text, "  {}  {why}; it is not read", place.path(*id, *directory).display())?;
    }
    for lost in &decision.lost {
        writeln!(text, "  {} events before segment {:016x} are missing", lost.events, lost.before)?;
    }
    if let Some((segment, bytes)) = decision.cut {
        writeln!(text, "  segment {segment:016x} ends with {bytes} bytes of an incomplete put (or one that is being written)")?;
    }
    print(&text);
    Ok(())
}

/// What reading every record of the segments has found.
#[derive(Default)]
struct Scan {
    records: u64,
    missing: u64,
    /// Which bytes of which files.
    damage: Vec<(PathBuf, u64, u64)>,
}

fn scan(place: &Place<RealDisk>, decision: &Decision) -> anyhow::Result<Scan> {
    let mut scan = Scan { missing: decision.lost.iter().map(|lost| lost.events).sum(), ..Scan::default() };
    for segment in &decision.segments {
        let path = place.path(segment.id, segment.directory);
        // A running agent may have removed it since.
        let file = match place.open(segment) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        let mut header = [0; HEADER_BYTES];
        let read = file.read_at(&mut header, 0).unwrap_or_default();
        if Header::decode(&header[..read]).is_err() {
            scan.damage.push((path.clone(), 0, HEADER_BYTES as u64));
        }
        let numbers = segment.first..segment.next.saturating_add(1);
        let mut walk = Walk::new(&file, HEADER_BYTES as u64, segment.len, numbers).lossy(true);
        let mut found = 0;
        while let Some(next) = walk.advance()? {
            match next {
                Found::Record { flags, .. } => found += u64::from(flags & NOTE == 0),
                Found::Damaged { from, to } => scan.damage.push((path.clone(), from, to)),
            }
        }
        scan.missing += (segment.next - segment.first).saturating_sub(found);
        scan.records += found;
    }
    Ok(scan)
}

/// True when everything is well.
fn verify(name: &str, place: &Place<RealDisk>, format: Format) -> anyhow::Result<bool> {
    let decision = look(place)?;
    let Scan { records, missing, damage } = scan(place, &decision)?;
    let well = missing == 0 && damage.is_empty() && decision.aside.is_empty();
    let mut text = String::new();
    if format == Format::Json {
        let damage: Vec<_> = damage.iter().map(|(path, from, to)| json!({ "file": path, "from": from, "to": to })).collect();
        writeln!(
            text,
            "{:#}",
            json!({ "channel": name, "records": records, "missing": missing, "damaged": damage, "not_read": decision.aside.len(), "well": well })
        )?;
        print(&text);
        return Ok(well);
    }
    for (path, from, to) in &damage {
        writeln!(text, "{}: bytes {from} to {to} are damaged", path.display())?;
    }
    for (id, directory, why) in &decision.aside {
        writeln!(text, "{}: {why}", place.path(*id, *directory).display())?;
    }
    writeln!(text, "{records} records are good, {missing} are missing or damaged: {}", if well { "well" } else { "not well" })?;
    print(&text);
    Ok(well)
}

/// Writes what waits; true when nothing was damaged. A damaged segment is kept under another name: draining removes it.
fn drain(component: &Component, setup: &Setup, keep: bool, format: EventFormat) -> anyhow::Result<bool> {
    let place = file::place(component, setup);
    let there = place.disk.list(&place.checkpoint).is_ok();
    anyhow::ensure!(there, "{} is not there: nothing to drain", place.checkpoint.display());
    let decision = look(&place)?;
    let scan = scan(&place, &decision)?;
    let moved = decision.aside.iter().map(|(id, directory, why)| (place.path(*id, *directory), *why)).collect::<Vec<_>>();
    let opened = FileChannel::open_locked(&component.name, place, file::Limits::of(component));
    let channel = Arc::new(opened.map_err(|error| match error.downcast_ref::<InUse>() {
        Some(InUse(directory)) => anyhow::anyhow!(
            "a running agent (or another drain) holds {}: stop it first; `inspect` and `verify` work while it runs",
            directory.display()
        ),
        None => error,
    })?);
    for (path, why) in &moved {
        eprintln!("error: {}: {why}; it is not read, and is now {}", path.display(), path.with_extension("log.aside").display());
    }
    for (path, from, to) in &scan.damage {
        let kept = if keep { String::new() } else { format!("; the segment is kept as {}", kept(path)?.display()) };
        eprintln!("error: {}: bytes {from} to {to} are damaged{kept}", path.display());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut out = std::io::stdout().lock();
    let mut held = Vec::new();
    let mut count = 0;
    let drained: anyhow::Result<()> = runtime.block_on(async {
        loop {
            let taken = channel.clone().take(usize::MAX, Duration::ZERO).await;
            if taken.is_empty() {
                return Ok(());
            }
            for event in taken.events() {
                write_event(&mut out, event, format)?;
            }
            // What could not be written stays.
            out.flush()?;
            count += taken.len();
            if keep { held.push(taken) } else { taken.commit() }
        }
    });
    let lost = channel.traffic().damaged;
    drop(held);
    channel.close();
    let missing = if lost > 0 { format!(", {lost} damaged or missing") } else { String::new() };
    eprintln!("{count} events{}{missing}", if keep { ", left in the channel" } else { " drained" });
    drained?;
    Ok(lost == 0 && scan.damage.is_empty() && moved.is_empty())
}

/// A second name for a segment, which no start looks at.
fn kept(segment: &Path) -> anyhow::Result<PathBuf> {
    let kept = segment.with_extension("log.damaged");
    match std::fs::hard_link(segment, &kept) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error).context(kept.display().to_string()),
        _ => Ok(kept),
    }
}

fn write_event(out: &mut impl Write, event: &Event, format: EventFormat) -> anyhow::Result<()> {
    if format == EventFormat::Raw {
        out.write_all(&event.body)?;
        out.write_all(b"\n")?;
        return Ok(());
    }
    let headers = event.headers.as_deref();
    let line = match std::str::from_utf8(&event.body) {
        Ok(body) => json!({ "headers": headers, "body": body }),
        Err(_) => json!({ "headers": headers, "body_base64": STANDARD.encode(&event.body) }),
    };
    writeln!(out, "{line}")?;
    Ok(())
}
