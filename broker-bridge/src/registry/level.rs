//! Compatibility levels: which versions a new schema is compared with, and in which direction.

use std::time::{Duration, Instant};

use super::schema::Parsed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    None,
    Backward,
    BackwardTransitive,
    Forward,
    ForwardTransitive,
    Full,
    FullTransitive,
}

impl Level {
    const ALL: [(Level, &'static str); 7] = [
        (Level::None, "NONE"),
        (Level::Backward, "BACKWARD"),
        (Level::BackwardTransitive, "BACKWARD_TRANSITIVE"),
        (Level::Forward, "FORWARD"),
        (Level::ForwardTransitive, "FORWARD_TRANSITIVE"),
        (Level::Full, "FULL"),
        (Level::FullTransitive, "FULL_TRANSITIVE"),
    ];

    /// In any case.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(level, _)| *level)
    }

    pub(super) fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn transitive(self) -> bool {
        matches!(self, Level::BackwardTransitive | Level::ForwardTransitive | Level::FullTransitive)
    }

    fn forward(self) -> bool {
        matches!(self, Level::Forward | Level::ForwardTransitive | Level::Full | Level::FullTransitive)
    }

    fn backward(self) -> bool {
        matches!(self, Level::Backward | Level::BackwardTransitive | Level::Full | Level::FullTransitive)
    }
}

/// An earlier version.
pub(super) struct Earlier {
    pub(super) version: i32,
    pub(super) text: String,
    /// The reason where it cannot be read any more.
    pub(super) parsed: Result<Parsed, String>,
}

/// Reasons that an answer tells, and the longest of them, in bytes.
const MESSAGES_MAX: usize = 100;
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// Of one check of all earlier versions together; it is looked at between two of them.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Longest text of an earlier schema in a message, in bytes.
const TEXT_MAX: usize = 10 * 1024;

/// Why `schema` may not follow `earlier` (newest first); nothing where it may.
pub(super) fn violations(level: Level, schema: &Parsed, earlier: impl Iterator<Item = Earlier>) -> Vec<String> {
    if level == Level::None {
        return Vec::new();
    }
    let compared = if level.transitive() { usize::MAX } else { 1 };
    let started = Instant::now();
    for Earlier { version, text, parsed } in earlier.take(compared) {
        let mut messages = Vec::new();
        if started.elapsed() > TIME_MAX {
            return vec![format!("comparing with the versions after {version} took {TIME_MAX:?}, which is all that a check has")];
        }
        match &parsed {
            Err(reason) => messages.push(format!("Version {version} cannot be read any more: {reason}")),
            Ok(parsed) if parsed.kind() != schema.kind() => messages.push(format!("version {version} is of type {}", parsed.kind().name())),
            Ok(parsed) => {
                if level.forward() {
                    messages.extend(parsed.cannot_read(schema).into_iter().map(|text| named(&text, "old", "new")));
                }
                if level.backward() {
                    messages.extend(schema.cannot_read(parsed).into_iter().map(|text| named(&text, "new", "old")));
                }
                bound(&mut messages);
                if !messages.is_empty() {
                    messages.push(format!("{{oldSchemaVersion: {version}}}"));
                    messages.push(match text.char_indices().map(|(at, _)| at).find(|at| *at >= TEXT_MAX) {
                        None => format!("{{oldSchema: '{text}'}}"),
                        Some(end) => format!("{{oldSchema: <truncated> '{}...'}}", &text[..end]),
                    });
                }
            }
        }
        if !messages.is_empty() {
            messages.push(format!("{{validateFields: 'false', compatibility: '{}'}}", level.name()));
            return messages;
        }
    }
    Vec::new()
}

fn bound(messages: &mut Vec<String>) {
    let more = messages.len().saturating_sub(MESSAGES_MAX);
    messages.truncate(MESSAGES_MAX);
    for message in &mut *messages {
        if message.len() > MESSAGE_BYTES_MAX {
            message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
            message.push_str("...");
        }
    }
    if more > 0 {
        messages.push(format!("and {more} more"));
    }
}

fn named(text: &str, reader: &str, writer: &str) -> String {
    text.replacen("%s", reader, 1).replacen("%s", writer, 1)
}
