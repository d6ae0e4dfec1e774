//! A broker of a test's own, started with options that the shared one does not have.

use std::process::Command;

use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dev/kafka/kafka");

/// Stopped, and its files removed, when it goes out of scope.
pub(crate) struct OwnBroker {
    directory: TempDir,
    pub(crate) servers: String,
}

impl OwnBroker {
    pub(crate) fn start(options: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let output = Command::new(SCRIPT).arg("start").arg(directory.path()).args(options).env("KAFKA_HEAP", "256m").output().unwrap();
        assert!(output.status.success(), "{SCRIPT} start: {}", String::from_utf8_lossy(&output.stderr));
        Self { servers: String::from_utf8(output.stdout).unwrap().trim().to_owned(), directory }
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        let stopped = Command::new(SCRIPT).arg("stop").arg(self.directory.path()).status();
        // A second panic would hide why the test failed.
        assert!(std::thread::panicking() || stopped.is_ok_and(|status| status.success()), "{SCRIPT} stop failed");
    }
}
