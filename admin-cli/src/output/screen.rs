//! A table renewed in place: the terminal's other screen, given back at the end.

use std::io::{self, IsTerminal as _, Write as _};

use console::Term;

use super::human;
use crate::failure::Failure;

pub(crate) struct Screen {
    term: Term,
    shown: String,
}

impl Screen {
    /// `None` where stdout is no terminal.
    pub(crate) fn open() -> Option<Self> {
        if !io::stdout().is_terminal() {
            return None;
        }
        // The other screen, no cursor. What cannot be written now is told by the first table.
        drop(write!(io::stdout(), "\x1b[?1049h\x1b[?25l"));
        Some(Self { term: Term::stdout(), shown: String::new() })
    }

    pub(crate) fn show(&mut self, table: &str) -> Result<(), Failure> {
        self.shown = table.to_owned();
        self.draw(None)
    }

    /// Leaves the last table and says why there is no newer one.
    pub(crate) fn trouble(&mut self, reason: &str) -> Result<(), Failure> {
        self.draw(Some(&human::line(reason)))
    }

    fn draw(&self, last: Option<&str>) -> Result<(), Failure> {
        let rows = usize::from(self.term.size().0);
        let mut text = "\x1b[H".to_owned();
        for line in fitting(&self.shown, rows.saturating_sub(2)) {
            // The rest of the line may hold what was there before.
            text += &format!("{line}\x1b[K\n");
        }
        text += &format!("{}\x1b[K\x1b[J", last.unwrap_or("Ctrl-C ends"));
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        written.map_err(|error| Failure::failed(format!("cannot write to the terminal: {error}")))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        drop(write!(io::stdout(), "\x1b[?25h\x1b[?1049l").and_then(|()| io::stdout().flush()));
    }
}

/// No more lines than there are rows; the last one says how many are missing.
fn fitting(text: &str, rows: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.len() > rows.max(1) {
        let missing = lines.len() - rows.max(1) + 1;
        lines.truncate(rows.max(1) - 1);
        lines.push(format!("… {missing} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn a_table_that_is_too_long_says_so() {
        assert_eq!(fitting("a\nb\nc", 3), ["a", "b", "c"]);
        assert_eq!(fitting("a\nb\nc\nd", 3), ["a", "b", "… 2 more"]);
        assert_eq!(fitting("a\nb", 0), ["… 2 more"]);
    }
}
