//! Servers of the tests' own, and a proxy that makes one go away.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Stopped when the test ends, however it ends.
pub(crate) struct Server {
    directory: tempfile::TempDir,
    script: PathBuf,
    address: String,
}

impl Server {
    /// `script` below `deploy/dev`; the first line that its `start` prints is the address.
    pub(crate) fn start(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dev").join(script);
        let mut command = Command::new(&script);
        command.arg("start").arg(directory.path()).env("KAFKA_HEAP", "256m").stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{} start ended with {}", script.display(), output.status);
        let address = String::from_utf8(output.stdout).unwrap().lines().next().unwrap().to_owned();
        Self { directory, script, address }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Another command of the script: its name, then what follows the directory.
    pub(crate) fn run(&self, command: &[&str]) {
        let status = Command::new(&self.script).arg(command[0]).arg(self.directory.path()).args(&command[1..]).status();
        assert!(status.unwrap().success(), "{command:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let stopped = Command::new(&self.script).arg("stop").arg(self.directory.path()).status();
        // A second panic would hide why the test failed.
        assert!(std::thread::panicking() || stopped.is_ok_and(|status| status.success()));
    }
}

/// Carries connections to a server, until it is cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    open: watch::Sender<bool>,
    carried: Arc<AtomicUsize>,
}

impl Proxy {
    pub(crate) async fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, watched) = watch::channel(true);
        let carried = Arc::new(AtomicUsize::new(0));
        let (server, count) = (server.to_owned(), Arc::clone(&carried));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if !*watched.borrow() {
                    continue;
                }
                let (server, mut watched, count) = (server.clone(), watched.clone(), Arc::clone(&count));
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(&server).await {
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut server) => {}
                            _ = watched.wait_for(|open| !open) => {}
                        }
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, open, carried }
    }

    /// Ends all connections, and returns when they have ended.
    pub(crate) async fn cut(&self) {
        self.open.send_replace(false);
        let begun = Instant::now();
        while self.carried.load(Ordering::SeqCst) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn restore(&self) {
        self.open.send_replace(true);
    }
}
