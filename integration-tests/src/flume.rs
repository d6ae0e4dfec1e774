//! Real Flume 1.11, as an agent or as its command-line client.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{eventually, root, servers::script};

/// A free loopback port below the range that the kernel hands out to outgoing connections; no two tests of a process get
/// the same one, although nobody listens on it yet.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    let mut ports = (0..1000).map(|_| rand::random_range(20_000..32_000u16));
    ports.find(|port| free(port) && given.insert(*port)).unwrap_or_else(|| panic!("no free port between 20000 and 32000"))
}

/// A running agent named `agent`.
pub struct Flume {
    child: Child,
    log: PathBuf,
}

impl Flume {
    /// Starts the agent file `text`; it and its log are in `DIR/NAME.*`.
    pub fn start(dir: &Path, name: &str, text: &str) -> Self {
        Self::start_with(dir, name, text, &[])
    }

    /// With options for Java.
    pub fn start_with(dir: &Path, name: &str, text: &str, options: &[&str]) -> Self {
        let (conf, log) = (dir.join(format!("{name}.conf")), dir.join(format!("{name}.log")));
        fs::write(&conf, text).unwrap_or_else(|error| panic!("{}: {error}", conf.display()));
        let out = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out.try_clone().unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let child = Command::new(root().join("deploy/dev/flume/flume"))
            .arg(&conf)
            .args(["agent", "-Xmx256m"])
            .args(options)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("flume: {error}"));
        Self { child, log }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).unwrap_or_else(|error| panic!("signal to Flume: {error}"));
        }
    }

    /// SIGTERM, and waits for the end: files are closed by then.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let start = std::time::Instant::now();
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            assert!(start.elapsed() < Duration::from_secs(30), "Flume still runs 30 s after SIGTERM:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until something listens on the port.
    pub async fn listens(&mut self, port: u16) {
        eventually(Duration::from_secs(60), &format!("Flume listens on {port}"), || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}

impl Drop for Flume {
    fn drop(&mut self) {
        // The script has become the Java process: it is the child itself.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().filter(|line| !line.starts_with("\tat ")).rev().take(40).collect();
            eprintln!("--- end of Flume's log ---\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Flume's `avro-client`: sends a file's lines with a client of its library, and gives its exit code and output.
pub fn avro_client(args: &[&str]) -> (bool, String) {
    static JARS: OnceLock<String> = OnceLock::new();
    let pom = root().join("deploy/dev/flume/pom.xml");
    let jars = JARS.get_or_init(|| script("jars", &["flume", &pom.to_string_lossy()]));
    let output = Command::new("java")
        .args(["-Xmx128m", "-cp", &format!("{jars}/*"), "org.apache.flume.client.avro.AvroCLIClient"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("java: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}
