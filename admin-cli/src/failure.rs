//! How a command ends when it does not end well: one line that says what and what to do, and the exit code.

/// What the process exits with. Documented in `--help`; only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The service answered, and the answer is no.
    Failed = 1,
    /// A service could not be reached, or did not answer a status call in time.
    Unreachable = 2,
    /// The command line is wrong (`sysexits.h`: EX_USAGE).
    Usage = 64,
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// Empty where stdout has said it already.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into() }
    }

    pub(crate) fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, message: message.into() }
    }

    /// The output shows what is wrong; only the exit code is left to give.
    pub(crate) fn shown(exit: Exit) -> Self {
        Self { exit, message: String::new() }
    }
}
