//! Jobs: what they are called, what they may set, what they are doing, and which ones this engine has.

mod monitor;
mod registry;
pub mod settings;
#[cfg(test)]
mod tests;

pub use monitor::{BatchState, BatchView, JobState, JobView, Monitor};
pub use registry::{Job, JobKind, NewJob, Registry, Submission, check_name, compile};
pub use settings::{JobSettings, Note, PidConfig, SettingError};
