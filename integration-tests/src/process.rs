//! A Millrace binary as a process: started, awaited, killed; its log kept for the failure message.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use crate::eventually;

/// Where cargo put the binaries of this profile.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let path = test.ancestors().skip(1).map(|folder| folder.join(name)).find(|path| path.is_file());
    path.unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace --bins` first (`make test` does)"))
}

/// Runs a binary to its end.
pub fn run(name: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(binary(name))
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    addresses: PathBuf,
}

impl Process {
    /// Starts `name`; its output goes to `DIR/<name>-<n>.log`, its addresses to a file beside it.
    pub fn start(name: &str, dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let n = (0..).find(|n| !dir.join(format!("{name}-{n}.log")).exists()).unwrap_or(0);
        let log = dir.join(format!("{name}-{n}.log"));
        let addresses = dir.join(format!("{name}-{n}.addresses"));
        let out = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out.try_clone().unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let child = Command::new(binary(name))
            .args(args)
            // Whatever it keeps below the home directory goes with the test.
            .env("HOME", dir)
            .envs(env.iter().copied())
            .env("MILLRACE_ADDRESS_FILE", &addresses)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), child, log, addresses }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The addresses it bound, by listener name; waits until it has bound them all.
    pub async fn addresses(&mut self) -> HashMap<String, String> {
        let start = Instant::now();
        loop {
            if let Ok(text) = fs::read(&self.addresses) {
                return serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", self.addresses.display()));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("{} ended with {status} before it listened:\n{}", self.name, self.log());
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{} did not listen within 60 s:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn address(&mut self, listener: &str) -> String {
        let addresses = self.addresses().await;
        addresses.get(listener).unwrap_or_else(|| panic!("{} has no listener {listener}: {addresses:?}", self.name)).clone()
    }

    pub async fn log_contains(&mut self, limit: Duration, needle: &str) {
        let log = self.log.clone();
        eventually(limit, &format!("{} logs {needle:?}", self.name), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            async move { if text.contains(needle) { Ok(()) } else { Err(text) } }
        })
        .await;
    }

    pub fn kill_9(&mut self) {
        // The process may have ended already; the wait below tells.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, signal).unwrap_or_else(|error| panic!("signal to {}: {error}", self.name));
        }
    }

    /// Waits for the end; panics with the log when it does not come.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if start.elapsed() > limit => {
                    panic!("{} still runs after {limit:?}:\n{}", self.name, self.log())
                }
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }

    /// SIGTERM and a clean end within the grace period.
    pub async fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.ended(Duration::from_secs(30)).await;
        assert!(status.success(), "{} ended with {status} after SIGTERM:\n{}", self.name, self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_9();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- end of the log of {} ---\n{}", self.name, tail.join("\n"));
        }
    }
}
