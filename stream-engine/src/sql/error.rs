//! What is said about a wrong job: where, what, and what to do.

use std::fmt;

use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::tokenizer::{Location, TokenWithSpan};

use crate::job::settings::nearest;

/// A mistake in the text of a job. Printed as `line 3, column 7: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    pub message: String,
    /// Empty when the message says it all.
    pub remedy: String,
}

impl std::error::Error for SqlError {}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// A place in the job's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl Place {
    pub(crate) fn error(self, message: impl Into<String>, remedy: impl Into<String>) -> SqlError {
        SqlError { line: self.line, column: self.column, message: message.into(), remedy: remedy.into() }
    }
}

impl From<Location> for Place {
    fn from(location: Location) -> Self {
        Self { line: location.line, column: location.column }
    }
}

impl From<&TokenWithSpan> for Place {
    fn from(token: &TokenWithSpan) -> Self {
        token.span.start.into()
    }
}

/// "did you mean `x`?", when one of the names is near.
pub(crate) fn did_you_mean(name: &str, names: &[&str]) -> Option<String> {
    nearest(name, names.iter().copied()).map(|near| format!("did you mean `{near}`?"))
}

/// The nearest name, or all of them when none is near and they are few.
pub(crate) fn nearest_or_all(what: &str, name: &str, names: &[&str]) -> String {
    did_you_mean(name, names)
        .unwrap_or_else(|| if names.is_empty() { format!("there are no {what}") } else { format!("{what}: {}", names.join(", ")) })
}

/// A parser's message ends in ` at Line: 3, Column: 7`; that becomes the place.
pub(crate) fn from_parser(message: &str, fallback: Place) -> SqlError {
    let message = message.trim_start_matches("sql parser error: ").replace("found: EOF", "found: the end of the statement");
    let message = message.as_str();
    if let Some((text, at)) = message.rsplit_once(" at Line: ")
        && let Some((line, column)) = at.split_once(", Column: ")
        && let (Ok(line), Ok(column)) = (line.trim().parse(), column.trim().parse())
    {
        return Place { line, column }.error(lower_first(text), "");
    }
    fallback.error(lower_first(message), "")
}

/// What the planner found wrong in a query that begins at `fallback`.
pub(crate) fn from_planner(error: &DataFusionError, fallback: Place) -> SqlError {
    let place = match error.diagnostic().and_then(|diagnostic| diagnostic.span) {
        Some(span) if span.start.line > 0 => Place { line: span.start.line, column: span.start.column },
        _ => fallback,
    };
    if let DataFusionError::SchemaError(schema, _) = error.find_root() {
        match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut names: Vec<&str> = valid_fields.iter().map(|column| column.name.as_str()).collect();
                names.sort_unstable();
                names.dedup();
                let relation = field.relation.as_ref().map(|relation| format!(" in `{relation}`")).unwrap_or_default();
                return place.error(format!("unknown column `{}`{relation}", field.name), nearest_or_all("columns", &field.name, &names));
            }
            SchemaError::AmbiguousReference { field } => {
                return place.error(format!("column `{}` is ambiguous", field.name), "write `table.column`");
            }
            _ => {}
        }
    }
    let root = error.find_root().strip_backtrace();
    let mut parts = root.split('\n').map(str::trim).filter(|line| !line.is_empty());
    let text = parts.next().unwrap_or_default();
    let text = ["Error during planning: ", "Schema error: ", "This feature is not implemented: ", "SQL error: ", "Execution error: "]
        .iter()
        .fold(text, |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
    let text = text.trim_end_matches('.');
    if let DataFusionError::NotImplemented(_) = error.find_root() {
        return place.error(format!("not supported: {text}"), "");
    }
    if text.to_ascii_lowercase().starts_with("projections require unique expression names") {
        let name = text.split('"').nth(1).unwrap_or_default();
        let remedy = "name them with AS; where only a CAST makes the difference, cast in a view or subquery below";
        return place.error(format!("two columns of the query are called `{name}`"), remedy);
    }
    let remedy = parts.find(|line| line.starts_with("Did you mean")).unwrap_or_default();
    place.error(lower_first(text), lower_first(remedy))
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        // `SUM …` stays as it is, `Expected …` does not.
        Some(first) if !characters.clone().next().is_some_and(char::is_uppercase) => first.to_lowercase().chain(characters).collect(),
        _ => text.to_owned(),
    }
}
