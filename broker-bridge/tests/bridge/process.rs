//! The bridge as a process: started on free ports with a store of its own, stopped, killed, started again.

use std::{
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// How long a start or a stop may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a log, when a test fails.
const LAST_LINES: usize = 40;
const LINE_MAX: usize = 400;

pub(crate) struct Bridge {
    child: Child,
    /// Offset store, address file and log; kept over restarts.
    directory: TempDir,
    servers: String,
    /// Of its environment, beside what every bridge has here.
    variables: Vec<(String, String)>,
    pub(crate) http: String,
    /// The registry's own port; empty where it has none.
    pub(crate) registry: String,
    pub(crate) control: String,
}

impl Bridge {
    /// Started and ready.
    pub(crate) async fn start(servers: &str) -> Self {
        let bridge = Self::start_unready(servers).await;
        bridge.ready().await;
        bridge
    }

    /// Started and ready, with settings of its own.
    pub(crate) async fn start_with(servers: &str, variables: &[(&str, &str)]) -> Self {
        let bridge = Self::start_unready_with(servers, variables).await;
        bridge.ready().await;
        bridge
    }

    /// Started; its listeners are there.
    pub(crate) async fn start_unready(servers: &str) -> Self {
        Self::start_unready_with(servers, &[]).await
    }

    /// As `start_unready`, with these variables.
    pub(crate) async fn start_unready_with(servers: &str, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::start_in(TempDir::new().unwrap(), servers.to_owned(), variables).await
    }

    async fn start_in(directory: TempDir, servers: String, variables: Vec<(String, String)>) -> Self {
        let addresses = directory.path().join("addresses.json");
        // A file that is not there is the first start's.
        drop(std::fs::remove_file(&addresses));
        let mut command = command(directory.path(), &servers);
        command.envs(variables.iter().map(|(name, value)| (name, value))).env("MILLRACE_ADDRESS_FILE", &addresses);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let found: Value = loop {
            if let Ok(text) = std::fs::read_to_string(&addresses) {
                break serde_json::from_str(&text).unwrap();
            }
            assert!(child.try_wait().unwrap().is_none(), "the bridge ended at its start: {}", log(directory.path()));
            assert!(Instant::now() < deadline, "the bridge does not listen: {}", log(directory.path()));
            sleep(Duration::from_millis(20)).await;
        };
        let address = |name: &str| found[name].as_str().unwrap().to_owned();
        let registry = found["registry"].as_str().unwrap_or_default().to_owned();
        Self { child, http: address("http"), registry, control: address("control"), directory, servers, variables }
    }

    pub(crate) async fn ready(&self) {
        let url = format!("http://{}/ready", self.http);
        let deadline = Instant::now() + PATIENCE;
        while reqwest::get(&url).await.unwrap().status() != 200 {
            assert!(Instant::now() < deadline, "the bridge is not ready: {}", log(self.directory.path()));
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it has written until now.
    pub(crate) fn log(&self) -> String {
        log(self.directory.path())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// SIGTERM, and a clean end.
    pub(crate) async fn stop(mut self) {
        self.terminate().await;
    }

    async fn terminate(&mut self) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("the bridge does not end").unwrap();
        assert_eq!(ended.code(), Some(0), "{}", log(self.directory.path()));
    }

    pub(crate) async fn stop_and_restart(mut self) -> Self {
        self.terminate().await;
        self.restart().await
    }

    /// SIGKILL, for good.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGKILL: nothing is said, nothing is flushed.
    pub(crate) async fn kill_and_restart(mut self) -> Self {
        self.child.kill().await.unwrap();
        self.restart().await
    }

    async fn restart(mut self) -> Self {
        // What has a `Drop` is not taken apart; the new one is told all that the old one had.
        let directory = std::mem::replace(&mut self.directory, TempDir::new().unwrap());
        let bridge = Self::start_in(directory, std::mem::take(&mut self.servers), std::mem::take(&mut self.variables)).await;
        bridge.ready().await;
        bridge
    }

    pub(crate) async fn try_second_on_the_same_store(&self) -> Output {
        let mut second = command(self.directory.path(), &self.servers);
        timeout(PATIENCE, second.stdout(Stdio::piped()).stderr(Stdio::piped()).output()).await.expect("the second bridge runs").unwrap()
    }
}

/// A test that fails tells the last that its bridges said.
impl Drop for Bridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last = log.lines().count().saturating_sub(LAST_LINES);
            let lines = log.lines().skip(last).map(|line| line.chars().take(LINE_MAX).collect::<String>());
            drop(writeln!(std::io::stderr(), "the bridge said last:\n{}", lines.collect::<Vec<_>>().join("\n")));
        }
    }
}

fn command(directory: &Path, servers: &str) -> Command {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-bridge"));
    command
        .args(["serve", "--bootstrap-servers", servers, "--http-listen", "127.0.0.1:0", "--control-listen", "127.0.0.1:0"])
        .arg("--offsets-path")
        .arg(directory.join("offsets"))
        .env("MILLRACE_MONITOR__INTERVAL", "1s")
        .env("MILLRACE_REGISTRY__LISTEN", "127.0.0.1:0")
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}

/// The binary with these arguments and variables, to its end.
pub(crate) async fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-bridge"));
    let running = command.args(arguments).envs(variables.iter().copied()).output();
    timeout(PATIENCE, running).await.expect("the process does not end").unwrap()
}

/// The CLI on this bridge, to its end, which is a good one; gives what it printed.
pub(crate) async fn millrace(bridge: &Bridge, words: &[&str]) -> String {
    let (code, told) = millrace_exits(bridge, words).await;
    assert_eq!(code, 0, "{words:?}: {told}");
    told
}

/// As [`millrace`], with its exit code; what it printed is its error where it printed nothing else.
pub(crate) async fn millrace_exits(bridge: &Bridge, words: &[&str]) -> (i32, String) {
    millrace_as(bridge, words, &[]).await
}

/// As [`millrace_exits`], with these variables.
pub(crate) async fn millrace_as(bridge: &Bridge, words: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    // Cargo puts the binaries of the workspace side by side.
    let binary = Path::new(env!("CARGO_BIN_EXE_millrace-bridge")).with_file_name("millrace");
    assert!(binary.is_file(), "{} is not built: run `cargo build --workspace --bins`", binary.display());
    let mut command = Command::new(binary);
    let running = command.args(["--bridge", &bridge.control]).args(words).envs(variables.iter().copied()).stdin(Stdio::null()).output();
    let output = timeout(PATIENCE, running).await.expect("millrace does not end").unwrap();
    let told = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    (output.status.code().unwrap(), String::from_utf8(told).unwrap())
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// The broker to test on.
pub(crate) fn servers() -> String {
    std::env::var("KAFKA_BOOTSTRAP_SERVERS").unwrap_or_else(|_| {
        panic!(
            "KAFKA_BOOTSTRAP_SERVERS is not set: start a broker with the scripts in deploy/dev, or name a broker of your own as host:port"
        )
    })
}

/// A name that no other run uses.
pub(crate) fn unique(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("bridge-test-{what}-{}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed), uuid::Uuid::new_v4().simple())
}
