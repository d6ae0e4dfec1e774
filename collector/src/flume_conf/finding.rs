//! What is to be said about a conf file.

use std::fmt;

use serde::Serialize;

/// Worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The pipeline does not start.
    Error,
    /// It starts, but something is not as written, or not as Flume does it.
    Warning,
    Note,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    pub file: String,
    pub line: u32,
}

/// One finding: where, what, what real Flume makes of it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// Stable name of the kind of finding, e.g. `dead-key`.
    pub code: &'static str,
    /// Absent where something is missing from the whole file.
    pub place: Option<Place>,
    pub key: Option<String>,
    pub message: String,
    /// What Flume 1.11 does with it. Empty where it does the same.
    pub flume: String,
    /// What to write instead. Empty where nothing needs to be done.
    pub remedy: String,
}

impl Finding {
    pub fn new(level: Level, code: &'static str, message: impl Into<String>) -> Self {
        Self { level, code, place: None, key: None, message: message.into(), flume: String::new(), remedy: String::new() }
    }

    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Level::Error, code, message)
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Level::Warning, code, message)
    }

    pub fn note(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(Level::Note, code, message)
    }

    /// Does Flume run without the component because of it?
    pub fn drops_component(&self) -> bool {
        ["drops the source", "drops the channel", "drops the sink", "drops the group"].iter().any(|word| self.flume.starts_with(word))
    }

    pub fn at(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }

    pub fn maybe_at(mut self, place: Option<&Place>) -> Self {
        self.place = place.cloned();
        self
    }

    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    pub fn flume(mut self, flume: impl Into<String>) -> Self {
        self.flume = flume.into();
        self
    }

    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// Text of a file for a terminal or a log: control characters, which could hide or change what is shown, as escapes.
pub struct Shown<T>(pub T);

impl<T: fmt::Display> fmt::Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // Those that turn the direction of writing round are no control characters by their category.
        let is_hidden =
            |char: char| char.is_control() || ('\u{202a}'..='\u{202e}').contains(&char) || ('\u{2066}'..='\u{2069}').contains(&char);
        for part in text.split_inclusive(is_hidden) {
            match part.chars().next_back().filter(|last| is_hidden(*last)) {
                Some(last) => write!(self.0, "{}{}", &part[..part.len() - last.len_utf8()], last.escape_default())?,
                None => self.0.write_str(part)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = Escaping(f);
        fmt::Write::write_fmt(&mut f, format_args!("{}", Plain(self)))
    }
}

struct Plain<'a>(&'a Finding);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{}:{}: ", place.file, place.line)?;
        }
        if let Some(key) = &self.0.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.0.message)?;
        if !self.0.flume.is_empty() {
            write!(f, "; Flume: {}", self.0.flume)?;
        }
        if !self.0.remedy.is_empty() {
            write!(f, "; {}", self.0.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_control_bytes_do_not_reach_the_terminal() {
        let place = Place { file: "a\r.conf".into(), line: 3 };
        let finding = Finding::error("x", "`\u{1b}[2J` is wrong").at(&place).key("a.\u{7}b").remedy("write é\u{202e}, or\tnothing");
        assert_eq!(finding.to_string(), "a\\r.conf:3: a.\\u{7}b: `\\u{1b}[2J` is wrong; write é\\u{202e}, or\\tnothing");
        assert_eq!(Shown("k\n1").to_string(), "k\\n1");
    }
}
