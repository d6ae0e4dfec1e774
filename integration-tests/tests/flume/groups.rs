//! Sink groups: a receiver is killed and comes back, and every event arrives.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::{Duration, Instant},
};

use integration_tests::{eventually, flume::free_port, process::Process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const WAIT: Duration = Duration::from_secs(60);

fn start(dir: &Path, name: &str, text: &str) -> Process {
    let (path, state) = (dir.join(format!("{name}.conf")), dir.join(format!("{name}-state")));
    fs::write(&path, text).expect("the agent's file");
    let args = ["agent", "-n", "a", "-f", &path.to_string_lossy(), "--state-dir", &state.to_string_lossy()];
    Process::start(
        "millrace-collector",
        dir,
        &args,
        &[("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_METRICS__LISTEN", "127.0.0.1:0")],
    )
}

/// An agent that writes what comes on `port` into its log.
fn receiver(port: u16) -> String {
    format!(
        "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.type = avro\na.sources.r.bind = 127.0.0.1\na.sources.r.port = {port}\n\
         a.sources.r.channels = c\na.channels.c.type = memory\na.channels.c.capacity = 10000\na.sinks.k.type = logger\na.sinks.k.channel = c\n"
    )
}

/// An agent that takes lines on `port` and gives them to two receivers.
fn sender(port: u16, receivers: [u16; 2], processor: &str) -> String {
    let mut text = format!(
        "a.sources = r\na.channels = c\na.sinks = k1 k2\na.sources.r.type = netcat\na.sources.r.bind = 127.0.0.1\na.sources.r.port = {port}\n\
         a.sources.r.channels = c\na.channels.c.type = memory\na.channels.c.capacity = 10000\na.sinkgroups = g\na.sinkgroups.g.sinks = k1 k2\n"
    );
    for (name, port) in ["k1", "k2"].iter().zip(receivers) {
        text.push_str(&format!(
            "a.sinks.{name}.type = avro\na.sinks.{name}.channel = c\na.sinks.{name}.hostname = 127.0.0.1\na.sinks.{name}.port = {port}\n"
        ));
    }
    text + &processor.lines().map(|line| format!("a.sinkgroups.g.processor.{}\n", line.trim())).collect::<String>()
}

/// The numbers that a receiver's log holds, with how often.
fn got(receivers: &[&Process]) -> BTreeMap<u32, usize> {
    let mut numbers = BTreeMap::new();
    for log in receivers.iter().map(|receiver| receiver.log()) {
        for event in log.lines().filter(|line| line.contains("Event: {")) {
            let number = event.trim_end_matches(" }").rsplit(' ').next().and_then(|text| text.trim_matches('"').parse().ok());
            *numbers.entry(number.unwrap_or_else(|| panic!("{event}"))).or_default() += 1;
        }
    }
    numbers
}

struct Input {
    answers: Lines<BufReader<OwnedReadHalf>>,
    lines: OwnedWriteHalf,
    written: u32,
}

impl Input {
    async fn open(port: u16) -> Self {
        let stream = eventually(WAIT, "the sender listens", || async {
            TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())
        });
        let (read, lines) = stream.await.into_split();
        Self { answers: BufReader::new(read).lines(), lines, written: 0 }
    }

    /// Numbers that have not been before.
    async fn write(&mut self, count: u32) -> BTreeSet<u32> {
        let numbers: BTreeSet<u32> = (self.written..self.written + count).collect();
        for number in &numbers {
            self.lines.write_all(format!("{number:06}\n").as_bytes()).await.expect("a line");
            assert_eq!(self.answers.next_line().await.expect("an answer").as_deref(), Some("OK"));
        }
        self.written += count;
        numbers
    }
}

async fn arrived(what: &str, receivers: &[&Process], numbers: &BTreeSet<u32>) {
    eventually(WAIT, what, || async {
        let got = got(receivers);
        let missing: Vec<&u32> = numbers.iter().filter(|number| !got.contains_key(number)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{} of {} missing, the first {:?}", missing.len(), numbers.len(), missing[0])) }
    })
    .await;
}

#[tokio::test]
async fn failover_takes_over_and_goes_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (port, ports) = (free_port(), [free_port(), free_port()]);
    let mut first = start(dir.path(), "first", &receiver(ports[0]));
    let mut second = start(dir.path(), "second", &receiver(ports[1]));
    // A sender that finds the first one away begins with the second.
    for receiver in [&mut first, &mut second] {
        receiver.log_contains(WAIT, "ready after").await;
    }
    let processor = "type = failover\npriority.k1 = 10\npriority.k2 = 5\nmaxpenalty = 2000\ntroubleTime = 200";
    let mut sender = start(dir.path(), "sender", &sender(port, ports, processor));
    let mut input = Input::open(port).await;

    let numbers = input.write(200).await;
    arrived("the first receiver has all", &[&first], &numbers).await;
    assert!(got(&[&second]).is_empty());

    first.kill_9();
    let during = input.write(200).await;
    arrived("the second receiver takes over", &[&second], &during).await;

    let again = start(dir.path(), "again", &receiver(ports[0]));
    // It is tried when its penalty is over, with what comes then; a trial may fail while it starts.
    let begun = Instant::now();
    loop {
        let numbers = input.write(20).await;
        arrived("one of them has it", &[&second, &again], &numbers).await;
        let back = got(&[&again]);
        if numbers.iter().all(|number| back.contains_key(number)) && numbers.is_disjoint(&got(&[&second]).into_keys().collect()) {
            break;
        }
        assert!(begun.elapsed() < WAIT, "the first receiver is not gone back to: {}", sender.log());
    }
    let after = input.write(200).await;
    arrived("the first receiver has all again", &[&again], &after).await;
    assert!(after.is_disjoint(&got(&[&second]).into_keys().collect()));

    let all = got(&[&first, &second, &again]);
    assert_eq!(all.len(), input.written as usize);
    // What was under way when the receiver was killed may have come twice.
    assert!(all.values().filter(|count| **count > 1).count() <= 100, "{all:?}");
    sender.stop().await;
}

#[tokio::test]
async fn a_balanced_group_loses_nothing_when_a_receiver_is_killed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (port, ports) = (free_port(), [free_port(), free_port()]);
    let mut first = start(dir.path(), "first", &receiver(ports[0]));
    let second = start(dir.path(), "second", &receiver(ports[1]));
    let processor = "type = load_balance\nbackoff = true\nselector.maxTimeOut = 2000\ntroubleTime = 200";
    let mut sender = start(dir.path(), "sender", &sender(port, ports, processor));
    let mut input = Input::open(port).await;
    let mut numbers = input.write(400).await;
    arrived("both receivers have all", &[&first, &second], &numbers).await;
    first.kill_9();
    numbers.extend(input.write(400).await);
    arrived("the second receiver has the rest", &[&first, &second], &numbers).await;
    sender.stop().await;
}
