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

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{}:{}: ", place.file, place.line)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.message)?;
        if !self.flume.is_empty() {
            write!(f, "; Flume: {}", self.flume)?;
        }
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}
