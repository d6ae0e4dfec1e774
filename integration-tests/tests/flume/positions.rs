//! TAILDIR handed from Flume to the collector, back, and over again, with one conf: no line is lost or read twice.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use integration_tests::{eventually, flume::Flume, process::Process};

const WAIT: Duration = Duration::from_secs(60);

struct Logs {
    dir: tempfile::TempDir,
    written: Vec<String>,
}

impl Logs {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: &str) {
        let file = OpenOptions::new().create(true).append(true).open(self.path(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("the log");
    }

    fn write(&mut self, name: &str, lines: usize) {
        for _ in 0..lines {
            let line = format!("{:05} {name}", self.written.len());
            self.append(name, &format!("{line}\n"));
            self.written.push(line);
        }
    }

    /// What the sinks have written, in any order.
    fn seen(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("out")).expect("the folder").flatten();
        let mut lines: Vec<String> = files
            .flat_map(|file| fs::read_to_string(file.path()).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        lines.sort();
        lines
    }

    async fn delivered_once(&self) {
        eventually(WAIT, "every line is written once", || async {
            let seen = self.seen();
            if seen == self.written { Ok(()) } else { Err(format!("{} of {} lines", seen.len(), self.written.len())) }
        })
        .await;
    }

    fn positions(&self) -> String {
        fs::read_to_string(self.path("positions.json")).unwrap_or_default()
    }
}

fn collector(dir: &Path, conf: &str) -> Process {
    let (path, state) = (dir.join("ours.conf"), dir.join("state"));
    fs::write(&path, conf).expect("the agent's file");
    let args = ["agent", "-n", "agent", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    Process::start("millrace-collector", dir, &args, &env)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_from_flume_and_back_and_over_again_loses_and_repeats_nothing() {
    let mut logs = Logs { dir: tempfile::tempdir().expect("a temporary folder"), written: Vec::new() };
    fs::create_dir(logs.path("out")).expect("the folder");
    fs::create_dir(logs.path("in")).expect("the folder");
    let dir = logs.dir.path().to_owned();
    let conf = format!(
        "agent.sources = r\nagent.channels = c\nagent.sinks = k\nagent.sources.r.type = TAILDIR\nagent.sources.r.channels = c\n\
         agent.sources.r.filegroups = g\nagent.sources.r.filegroups.g = {dir}/in/.*\\\\.log\nagent.sources.r.positionFile = {dir}/positions.json\n\
         agent.sources.r.writePosInterval = 500\nagent.channels.c.type = memory\nagent.sinks.k.type = file_roll\nagent.sinks.k.channel = c\n\
         agent.sinks.k.sink.directory = {dir}/out\nagent.sinks.k.sink.rollInterval = 0\n",
        dir = dir.display()
    );

    // Flume reads one half, and stops within a line.
    logs.write("in/a.log", 300);
    logs.write("in/b.log", 50);
    logs.append("in/b.log", "00350 in/");
    let flume = Flume::start(&dir, "first", &conf);
    logs.delivered_once().await;
    flume.stop().await;
    let theirs = logs.positions();
    assert!(theirs.starts_with("[{") && theirs.contains("\"pos\":"), "{theirs}");

    // The collector goes on there.
    logs.append("in/b.log", "b.log\n");
    logs.written.push("00350 in/b.log".into());
    logs.write("in/a.log", 200);
    let mut ours = collector(&dir, &conf);
    logs.delivered_once().await;
    logs.write("in/new.log", 40);
    logs.delivered_once().await;
    // Written while it runs, not only at its end.
    eventually(WAIT, "the positions of all three files are written", || async {
        let text = logs.positions();
        if text.starts_with("[\n") && text.matches("\"pos\"").count() == 3 && text.contains("new.log") { Ok(()) } else { Err(text) }
    })
    .await;
    logs.append("in/a.log", "00591 in/");
    ours.stop().await;

    // Flume takes it back, within a line again.
    logs.append("in/a.log", "a.log\n");
    logs.written.push("00591 in/a.log".into());
    logs.write("in/new.log", 10);
    let flume = Flume::start(&dir, "second", &conf);
    logs.delivered_once().await;
    logs.write("in/b.log", 100);
    logs.delivered_once().await;
    flume.stop().await;

    // The collector's own positions are the older ones now.
    logs.write("in/a.log", 25);
    let mut ours = collector(&dir, &conf);
    logs.delivered_once().await;
    ours.stop().await;
    assert_eq!(logs.seen(), logs.written, "nothing came late");
}
