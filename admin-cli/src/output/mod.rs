//! The only place that writes to the terminal: data to stdout, talk to stderr.

pub(crate) mod human;
mod screen;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{
    cli::Format,
    failure::{Exit, Failure},
};
pub(crate) use screen::Screen;
pub(crate) use table::{Table, Tone, left, right, toned};

#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    color: bool,
}

impl Output {
    pub(crate) fn new(format: Format, no_color: bool) -> Self {
        let wanted = !no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, color: wanted && io::stdout().is_terminal() }
    }

    /// `view` as JSON, or what `people` make of it.
    pub(crate) fn show<T: Serialize>(&self, view: &T, people: impl FnOnce(&T, &Self) -> String) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table => people(view, self),
            Format::Json => {
                serde_json::to_string_pretty(view).map_err(|error| Failure::failed(format!("cannot write the answer as JSON: {error}")))?
            }
        };
        self.text(&text)
    }

    /// Writes `text` and a line end to stdout.
    pub(crate) fn text(&self, text: &str) -> Result<(), Failure> {
        self.line(text).map(drop)
    }

    /// The same, one of many; false when the reader (`| head`) has seen enough.
    pub(crate) fn line(&self, text: &str) -> Result<bool, Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.trim_end_matches('\n').as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush())
        {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
            Ok(()) => Ok(true),
        }
    }

    /// Something to know that is no error and no data; JSON readers find it in the document instead.
    pub(crate) fn note(&self, text: &str) {
        stderr(&format!("note: {}", human::line(text)));
    }

    pub(crate) fn warning(&self, text: &str) {
        stderr(&format!("warning: {}", human::line(text)));
    }

    pub(crate) fn people(&self) -> bool {
        self.format == Format::Table
    }

    pub(crate) fn color(&self) -> bool {
        self.color
    }

    /// A spinner with the elapsed time on stderr while something takes long; nothing where stderr is no terminal.
    pub(crate) fn waiting(&self, what: String) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            spinner.set_style(style);
        }
        spinner.set_message(what);
        spinner.tick();
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }
}

/// Says why the command failed and gives its exit code.
pub(crate) fn failure(failure: &Failure) -> ExitCode {
    if !failure.message.is_empty() {
        stderr(&format!("error: {}", failure.message));
    }
    ExitCode::from(failure.exit as u8)
}

/// clap's answer: help and version are data, all else is a usage error.
pub(crate) fn usage(answer: &clap::Error) -> ExitCode {
    // Nothing is left to do where not even the message can be written.
    drop(answer.print());
    if answer.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
}

fn stderr(text: &str) {
    // As above: a closed stderr must not turn into a panic.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// Reads the answer to `question` from a terminal; `None` where there is none to ask.
pub(crate) fn ask(question: &str) -> Option<String> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    stderr(question);
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(answer.trim().to_owned())
}
