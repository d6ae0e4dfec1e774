//! Jobs: what they are called, what they may set, what they are doing, and which ones this engine has.

pub mod listener;
mod monitor;
mod progress;
mod registry;
pub mod settings;
mod share;
#[cfg(test)]
mod tests;

pub use listener::{ListenerBus, StreamingListener};
pub use monitor::{
    BatchState, BatchView, JobState, JobView, Monitor, OutputState, OutputView, Reach, ReceiverError, ReceiverView, StreamView,
};
pub use progress::{Durations, QueryProgress, SinkProgress, SourceProgress, StateOperatorProgress};
pub use registry::{Job, JobKind, NewJob, Registry, Submission, check_name, compile};
pub use settings::{JobSettings, Note, PidConfig, SettingError, WriteAheadLogSettings};

/// An error with its causes. Some libraries repeat a cause in the text above it; it is said once.
pub(crate) fn said(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
