//! Runs inside a mount and network namespace of its own (`unshare --mount --net`), where it may take port 9092, the hosts
//! file and `/var/log`: the configuration of the article, exactly as it stands, first with Millrace, then with real Flume.
//! Ends with 0 when everything held; otherwise says what did not.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{
    kafka,
    process::{Process, binary},
    root,
    servers::OwnKafka,
};

const LOG: &str = "/var/log/app.log";
const BOOTSTRAP: &str = "127.0.0.1:9092";

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program).args(args).status().with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {args:?} ended with {status}");
    Ok(())
}

fn append(lines: impl Iterator<Item = String>) -> Result<()> {
    let mut log = OpenOptions::new().append(true).create(true).open(LOG)?;
    for line in lines {
        writeln!(log, "{line}")?;
    }
    Ok(())
}

/// Waits until `topic` holds exactly `expected`, in order.
fn wait_for(topic: &str, expected: &[String], process: &Process) -> Result<()> {
    let start = Instant::now();
    loop {
        let seen = kafka::texts(BOOTSTRAP, topic);
        if seen == expected {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!(
                "{topic} holds {} records, not the {} expected; it begins {:?}\n{}",
                seen.len(),
                expected.len(),
                seen.first(),
                process.log()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

async fn millrace(dir: &Path, conf: &Path, name: &str) -> Result<()> {
    // What was in the file before: `tail -F` begins with the last ten lines.
    fs::write(LOG, "")?;
    append((0..25).map(|n| format!("{name} before {n}")))?;
    kafka::create_topic(BOOTSTRAP, "logs_topic", 1).await;
    let state = dir.join(name);
    let args = ["agent", "--name", "agent", "--conf-file", &conf.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    let env = [("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")];
    let mut collector = Process::start("millrace-collector", dir, &args, &env);
    collector.addresses().await;
    let mut expected: Vec<String> = (15..25).map(|n| format!("{name} before {n}")).collect();
    wait_for("logs_topic", &expected, &collector)?;
    append((0..1_000).map(|n| format!("{name} line {n}")))?;
    // Rotation, as logrotate does it: rename, and a new file of the same name.
    expected.extend((0..1_000).map(|n| format!("{name} line {n}")));
    wait_for("logs_topic", &expected, &collector)?;
    fs::rename(LOG, format!("{LOG}.1"))?;
    append((0..100).map(|n| format!("{name} after rotation {n}")))?;
    expected.extend((0..100).map(|n| format!("{name} after rotation {n}")));
    wait_for("logs_topic", &expected, &collector)?;
    let log = collector.log();
    let warned = log.lines().any(|line| line.contains("logSource") && line.contains("channels") && line.to_uppercase().contains("WARN"));
    ensure!(warned, "no warning about the source's missing `channels` line:\n{log}");
    collector.stop().await;
    kafka::delete_topic(BOOTSTRAP, "logs_topic").await;
    Ok(())
}

/// Real Flume starts with the same file, drops the source for want of a channel, and collects nothing.
async fn flume(dir: &Path, conf: &Path) -> Result<()> {
    fs::write(LOG, "")?;
    kafka::create_topic(BOOTSTRAP, "logs_topic", 1).await;
    let path = dir.join("flume.log");
    let out = File::create(&path)?;
    let mut flume = Command::new(root().join("deploy/dev/flume/flume"))
        .arg(conf)
        .arg("agent")
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let start = Instant::now();
    let outcome = loop {
        let log = fs::read_to_string(&path)?;
        if log.contains("name: kafkaSink started") {
            // It says so before it starts anything: no line can come yet, however long one waits.
            if !log.contains("No channels set for logSource") || !log.contains("sourceRunners:{}") {
                break Err(format!("Flume does not say that it drops the source:\n{log}"));
            }
            append((0..100).map(|n| format!("line {n}")))?;
            // Flume has no sign that it did not look at a line: it gets the time in which it would deliver one.
            std::thread::sleep(Duration::from_secs(3));
            let seen = kafka::texts(BOOTSTRAP, "logs_topic");
            break if seen.is_empty() { Ok(()) } else { Err(format!("Flume collected {} lines", seen.len())) };
        }
        if start.elapsed() > Duration::from_secs(60) {
            break Err(format!("Flume did not start its sink within 60 s:\n{log}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    drop(flume.kill());
    drop(flume.wait());
    outcome.map_err(anyhow::Error::msg)
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("millrace-article").tempdir()?;
    let dir = dir.path();
    run("ip", &["link", "set", "lo", "up"])?;
    let hosts = dir.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost kafka1 kafka2\n")?;
    run("mount", &["--bind", &hosts.to_string_lossy(), "/etc/hosts"])?;
    run("mount", &["-t", "tmpfs", "tmpfs", "/var/log"])?;
    let broker = dir.join("kafka");
    let own = OwnKafka::start_on(broker, 9092);
    ensure!(own.bootstrap == BOOTSTRAP, "the broker listens on {}", own.bootstrap);

    let conf = root().join("collector/tests/fixtures/article.conf");
    millrace(dir, &conf, "as-it-stands").await?;
    let article = fs::read_to_string(&conf)?;
    let common = "agent.channels.memChannel.capacity = 50000\nagent.channels.memChannel.transactionCapacity = 1000\n\
                  agent.sinks.kafkaSink.kafka.compression.type = snappy\nagent.sinks.kafkaSink.batchSize = 500\n\
                  agent.sinks.kafkaSink.serializer.class = kafka.serializer.StringEncoder\n";
    for acks in ["1", "all", "-1"] {
        let name = format!("acks-{acks}");
        let conf = dir.join(format!("{name}.conf"));
        fs::write(&conf, format!("{article}\n{common}agent.sinks.kafkaSink.kafka.producer.acks = {acks}\n"))?;
        millrace(dir, &conf, &name).await?;
    }
    // `check` knows it all without a broker.
    let check = Command::new(binary("millrace-collector")).arg("check").arg(&conf).arg("--output").arg("json").output()?;
    let text = String::from_utf8_lossy(&check.stdout);
    ensure!(text.contains("logSource") && text.contains("channels"), "`check` does not tell of the missing channels line: {text}");
    flume(dir, &conf).await
}
