//! What the black-box tests share: real servers, real processes, and an oracle outside both.
//!
//! Nothing here links a service. Binaries are started from the folder of the running test binary's profile, so
//! `cargo build --workspace --bins` comes first (`make test` does both).

#![allow(clippy::print_stderr, reason = "the end of a log is shown where the test fails")]

pub mod flume;
pub mod kafka;
pub mod otlp;
pub mod process;
pub mod secured;
pub mod servers;

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The repository's root. Asked at run time: clones may share one build cache, and with it a test binary.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.or_else(|| {
        std::env::current_dir().ok()?.ancestors().map(|folder| folder.join("integration-tests")).find(|folder| folder.is_dir())
    });
    package.as_deref().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default()
}

/// Polls `probe` until it gives a value; panics with `what` and the last reason when `limit` has passed.
pub async fn eventually<T, F, Fut>(limit: Duration, what: &str, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(reason) if start.elapsed() > limit => {
                panic!("{what}: not within {limit:?}: {reason}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A name no other test and no other run uses.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:x}-{:08x}", std::process::id(), rand::random::<u32>())
}
