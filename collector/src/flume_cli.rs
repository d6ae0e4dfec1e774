//! `millrace-collector channel …` on the directories that Flume's own file channel left. Nothing in them is changed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the command line's output")]

use std::{
    fmt::{self, Write as _},
    io::{StdoutLock, Write as _},
};

use serde_json::json;

use crate::channel::flume_log::{Damage, FlumeLogs, Replay};
use crate::cli::print;
use crate::event::Event;

fn spans(damage: &[Damage]) -> Vec<serde_json::Value> {
    damage.iter().map(|part| json!({ "file": part.path, "from": part.from, "to": part.to, "why": part.why })).collect()
}

fn tell(text: &mut String, replay: &Replay) -> fmt::Result {
    for part in &replay.damaged {
        writeln!(text, "{}: bytes {} to {} are damaged: {}", part.path.display(), part.from, part.to, part.why)?;
    }
    for part in &replay.cut {
        writeln!(text, "{}: ends with {} bytes of an incomplete record", part.path.display(), part.to - part.from)?;
    }
    Ok(())
}

pub fn inspect(name: &str, logs: &FlumeLogs, as_json: bool) -> anyhow::Result<()> {
    let replay = logs.replay()?;
    let mut text = String::new();
    let bytes: u64 = logs.files().map(|(_, len)| len).sum();
    if as_json {
        let files: Vec<_> = logs.files().map(|(path, len)| json!({ "file": path, "bytes": len })).collect();
        writeln!(
            text,
            "{:#}",
            json!({ "channel": name, "of": "flume", "waiting": replay.waiting.len(), "bytes": bytes, "puts": replay.puts, "takes": replay.takes, "unfinished": replay.unfinished, "checkpoint": replay.without_checkpoint.is_none(), "damaged": spans(&replay.damaged), "incomplete": spans(&replay.cut), "logs": files })
        )?;
        print(&text);
        return Ok(());
    }
    writeln!(text, "channel {name}, written by Flume")?;
    writeln!(text, "{} events wait, {} logs, {bytes} bytes", replay.waiting.len(), logs.files().count())?;
    for (path, len) in logs.files() {
        writeln!(text, "  {}  {len:>12} bytes", path.display())?;
    }
    match &replay.without_checkpoint {
        None => writeln!(text, "  since the checkpoint {} puts and {} takes", replay.puts, replay.takes)?,
        Some(why) => writeln!(text, "  {} puts and {} takes; the checkpoint does not count: {why}", replay.puts, replay.takes)?,
    }
    if replay.unfinished > 0 {
        writeln!(text, "  {} events of unfinished transactions: their sender was never told that they had arrived", replay.unfinished)?;
    }
    tell(&mut text, &replay)?;
    print(&text);
    Ok(())
}

/// True when everything is well. An incomplete end is: it was never acknowledged.
pub fn verify(name: &str, logs: &FlumeLogs, as_json: bool) -> anyhow::Result<bool> {
    let replay = logs.replay()?;
    let unreadable: Vec<String> =
        replay.waiting.iter().filter_map(|pointer| logs.event(*pointer).err()).map(|error| format!("{error:#}")).collect();
    let well = replay.damaged.is_empty() && unreadable.is_empty();
    let waiting = replay.waiting.len() - unreadable.len();
    let mut text = String::new();
    if as_json {
        writeln!(
            text,
            "{:#}",
            json!({ "channel": name, "of": "flume", "waiting": waiting, "damaged": spans(&replay.damaged), "incomplete": spans(&replay.cut), "unreadable": unreadable, "well": well })
        )?;
        print(&text);
        return Ok(well);
    }
    tell(&mut text, &replay)?;
    for why in &unreadable {
        writeln!(text, "{why}")?;
    }
    writeln!(text, "{waiting} waiting events are good, {} cannot be read: {}", unreadable.len(), if well { "well" } else { "not well" })?;
    print(&text);
    Ok(well)
}

/// Writes what waits; true when nothing was damaged.
pub fn drain(logs: &FlumeLogs, write: impl Fn(&mut StdoutLock<'_>, &Event) -> anyhow::Result<()>) -> anyhow::Result<bool> {
    let replay = logs.replay()?;
    let mut out = std::io::stdout().lock();
    let (mut written, mut unreadable) = (0, 0);
    for pointer in &replay.waiting {
        match logs.event(*pointer) {
            Ok(event) => {
                write(&mut out, &event)?;
                written += 1;
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                unreadable += 1;
            }
        }
    }
    out.flush()?;
    for part in &replay.damaged {
        eprintln!("error: {}: bytes {} to {} are damaged: {}", part.path.display(), part.from, part.to, part.why);
    }
    eprintln!(
        "{written} events of Flume's channel written, {unreadable} cannot be read; its files are as they were: remove them when the events are where they belong"
    );
    Ok(replay.damaged.is_empty() && unreadable == 0)
}
