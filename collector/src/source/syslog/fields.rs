//! `keepFields`: which parts of a message's header stay in the body.

use bytes::Bytes;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The message as it came.
    pub all: bool,
    pub priority: bool,
    pub version: bool,
    pub timestamp: bool,
    pub hostname: bool,
}

/// The parts as they were written; empty where they are missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written<'a> {
    pub priority: &'a [u8],
    pub version: &'a [u8],
    pub timestamp: &'a [u8],
    pub hostname: &'a [u8],
}

impl Keep {
    pub const FIELDS: [&str; 4] = ["priority", "version", "timestamp", "hostname"];

    pub fn parse(text: &str) -> Self {
        let text = text.trim().to_ascii_lowercase();
        match text.as_str() {
            "" | "false" | "none" => Self::default(),
            "true" | "all" => Self { all: true, ..Self::default() },
            text => Self {
                all: false,
                priority: text.contains("priority"),
                version: text.contains("version"),
                timestamp: text.contains("timestamp"),
                hostname: text.contains("hostname"),
            },
        }
    }

    /// The body with the chosen fields before it; a slice of the message where there are none.
    pub fn body(self, message: &Bytes, body: &[u8], written: Written<'_>) -> Bytes {
        if !(self.priority || self.version || self.timestamp || self.hostname) {
            return message.slice_ref(body);
        }
        let mut text = Vec::with_capacity(message.len() + 8);
        if self.priority {
            text.push(b'<');
            text.extend_from_slice(written.priority);
            text.push(b'>');
        }
        if self.version && !written.version.is_empty() {
            text.extend_from_slice(written.version);
            text.push(b' ');
        }
        for (wanted, field) in [(self.timestamp, written.timestamp), (self.hostname, written.hostname)] {
            if wanted {
                text.extend_from_slice(if field.is_empty() { b"-" } else { field });
                text.push(b' ');
            }
        }
        text.extend_from_slice(body);
        text.into()
    }
}
