//! The agent in this process: start, stop, pause, reload. What needs Kafka is tested elsewhere, with the binary.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use collector::agent::{Agent, Place, State, View};
use collector::config::CollectorConfig;
use collector::flume_conf::{ConfFile, Options, Plan, read};
use collector::tap::TapConfig;
use service_kit::Readiness;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

fn plan(text: &str) -> Plan {
    let env = |_: &str| None;
    let run = |_: &str, _: &str| Err(String::new());
    let outcome = read(
        &[ConfFile { name: "a.conf", bytes: text.as_bytes() }],
        &Options { agent: None, strict: false, env: &env, run: &run, sys: &BTreeMap::new(), now: chrono::Local::now() },
    );
    assert!(!outcome.failed(), "{:?}", outcome.findings);
    outcome.plans.into_iter().next().unwrap()
}

async fn start(text: &str, state: &Path) -> anyhow::Result<Arc<Agent>> {
    let place = Place { state_dir: state.to_owned(), strict: false, drain: Duration::from_secs(10), taps: TapConfig::default() };
    Agent::start(plan(text), place, TaskTracker::new(), Readiness::default().latch("pipeline")).await
}

fn view(agent: &Agent, name: &str) -> View {
    agent.view().into_iter().find(|view| view.name == name).unwrap()
}

fn counter(agent: &Agent, component: &str, counter: &str) -> f64 {
    view(agent, component).counters.iter().find(|(name, _)| *name == counter).unwrap().1
}

/// Waits until the counter has the value, or fails.
async fn until(agent: &Agent, component: &str, name: &str, value: f64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while counter(agent, component, name) != value {
        assert!(Instant::now() < deadline, "{component} {name} is {}, not {value}", counter(agent, component, name));
        sleep(Duration::from_millis(5)).await;
    }
}

fn seq(total: u64, more: &str) -> String {
    format!(
        "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.type = seq\na.sources.r.batchSize = 10\na.sources.r.totalEvents = {total}\na.sources.r.channels = c\n\
         a.channels.c.type = memory\na.sinks.k.type = null\na.sinks.k.channel = c\n{more}"
    )
}

fn tail(file: &Path, more: &str) -> String {
    format!(
        "a.sources = r\na.channels = c\na.sinks = k\na.sources.r.type = exec\na.sources.r.command = tail -n +1 -F {}\na.sources.r.channels = c\n\
         a.channels.c.type = memory\na.sinks.k.type = null\na.sinks.k.channel = c\n{more}",
        file.display()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn events_go_from_source_to_sink_and_a_source_may_end_by_itself() {
    let state = tempfile::tempdir().unwrap();
    let agent = start(&seq(1000, ""), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 1000.0).await;
    let source = view(&agent, "r");
    assert_eq!((source.state, source.error.as_str()), (State::Stopped, ""));
    assert_eq!(counter(&agent, "c", "EventTakeSuccessCount"), 1000.0);
    assert_eq!(agent.remaining(), 0);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_has_delivered_everything_and_goes_on_from_there() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, (0..5000).map(|number| format!("line {number}\n")).collect::<String>()).unwrap();
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    until(&agent, "r", "EventReceivedCount", 5000.0).await;
    agent.stop().await.unwrap();
    assert_eq!(agent.remaining(), 0);
    drop(agent);
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("one\ntwo\n");
    fs::OpenOptions::new().append(true).open(&log).and_then(|mut file| std::io::Write::write_all(&mut file, b"one\ntwo\n")).unwrap();
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 2.0).await;
    agent.stop().await.unwrap();
    assert_eq!(counter(&agent, "r", "EventReceivedCount"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_sink_has_taken_is_read_again() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, "a\nb\nc\n").unwrap();
    // Nobody can be reached there: the events stay in the channel.
    let unreachable = "a.sinks.k.type = bridge\na.sinks.k.endpoint = http://127.0.0.1:1\na.sinks.k.topic = t\n";
    let place = Place { state_dir: state.path().to_owned(), strict: false, drain: Duration::from_millis(300), taps: TapConfig::default() };
    let agent = Agent::start(plan(&tail(&log, unreachable)), place, TaskTracker::new(), Readiness::default().latch("p")).await.unwrap();
    until(&agent, "r", "EventAcceptedCount", 3.0).await;
    agent.stop().await.unwrap();
    assert_eq!(agent.remaining(), 3);
    drop(agent);
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 3.0).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_at_the_end_is_an_error() {
    let state = tempfile::tempdir().unwrap();
    let unreachable = "a.sinks.k.type = bridge\na.sinks.k.endpoint = http://127.0.0.1:1\na.sinks.k.topic = t\n";
    let place = Place { state_dir: state.path().to_owned(), strict: false, drain: Duration::from_millis(300), taps: TapConfig::default() };
    let agent = Agent::start(plan(&seq(20, unreachable)), place, TaskTracker::new(), Readiness::default().latch("p")).await.unwrap();
    until(&agent, "r", "EventAcceptedCount", 20.0).await;
    let error = agent.stop().await.unwrap_err();
    assert!(error.to_string().starts_with("20 events were not delivered within 300ms; those of r are lost"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_only_what_changed() {
    let state = tempfile::tempdir().unwrap();
    let agent = start(&seq(100, ""), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 100.0).await;
    let response = agent.change(plan(&seq(100, "a.sinks.k.batchSize = 7\na.channels.c.capacity = 777\n"))).await.unwrap();
    assert_eq!((response.changed, response.unchanged), (vec!["c".to_owned(), "k".to_owned()], vec!["r".to_owned()]));
    // The source goes on (it would have begun again at 0), the sink is new, the channel is the same with another size.
    assert_eq!(counter(&agent, "r", "EventReceivedCount"), 100.0);
    assert_eq!(counter(&agent, "k", "EventDrainSuccessCount"), 0.0);
    assert_eq!(counter(&agent, "c", "EventTakeSuccessCount"), 100.0);
    assert_eq!(counter(&agent, "c", "ChannelCapacity"), 777.0);
    let response = agent.change(plan(&seq(50, "a.sinks.k.batchSize = 7\na.channels.c.capacity = 777\n"))).await.unwrap();
    assert_eq!(response.changed, ["r"]);
    until(&agent, "k", "EventDrainSuccessCount", 50.0).await;
    let added = "a.sources = r s\na.sources.s.type = seq\na.sources.s.totalEvents = 5\na.sources.s.channels = c\na.sinks.k.batchSize = 7\na.channels.c.capacity = 777\n";
    assert_eq!(agent.change(plan(&seq(50, added))).await.unwrap().changed, ["s"]);
    until(&agent, "k", "EventDrainSuccessCount", 55.0).await;
    let response = agent.change(plan(&seq(50, "a.sinks.k.batchSize = 7\na.channels.c.capacity = 777\n"))).await.unwrap();
    assert_eq!(response.changed, ["s"]);
    assert!(agent.view().iter().all(|view| view.name != "s"));
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_built_leaves_the_old_pipeline_running() {
    let state = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let agent = start(&seq(100, ""), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 100.0).await;
    let netcat = format!(
        "a.sources = r n\na.sources.n.type = netcat\na.sources.n.bind = 127.0.0.1\na.sources.n.port = {port}\na.sources.n.channels = c\na.sinks.k.batchSize = 7\n"
    );
    let error = agent.change(plan(&seq(100, &netcat))).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("source n: cannot listen on 127.0.0.1:{port}")), "{error:#}");
    assert!(error.to_string().ends_with("set another port"), "{error:#}");
    assert_eq!(agent.view().len(), 3);
    assert_eq!(counter(&agent, "k", "EventDrainSuccessCount"), 100.0);
    // A start fails as a whole.
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(start(&seq(100, &netcat), elsewhere.path()).await.is_err());
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn components_are_paused_and_resumed() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, "").unwrap();
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    assert_eq!(agent.set_paused("", true).unwrap(), ["r"]);
    assert_eq!(view(&agent, "r").state, State::Paused);
    fs::write(&log, "a\nb\n").unwrap();
    until(&agent, "r", "EventReceivedCount", 2.0).await;
    assert_eq!(counter(&agent, "r", "EventAcceptedCount"), 0.0);
    assert_eq!(agent.set_paused("k", true).unwrap(), ["k"]);
    assert_eq!(agent.set_paused("r", false).unwrap(), ["r"]);
    until(&agent, "r", "EventAcceptedCount", 2.0).await;
    assert_eq!(agent.remaining(), 2);
    assert_eq!(agent.set_paused("", false).unwrap(), ["k"]);
    until(&agent, "k", "EventDrainSuccessCount", 2.0).await;
    let error = agent.set_paused("x", true).unwrap_err();
    assert_eq!(error.message, "there is no source or sink `x`; there are r, k");
    assert!(agent.set_paused("c", true).unwrap_err().message.contains("is a channel"));
    agent.stop().await.unwrap();
}

fn netcat(port: u16, more: &str) -> String {
    format!(
        "a.sources = n\na.channels = c\na.sinks = k\na.sources.n.type = netcat\na.sources.n.bind = 127.0.0.1\na.sources.n.port = {port}\n\
         a.sources.n.channels = c\na.channels.c.type = memory\na.sinks.k.type = null\na.sinks.k.channel = c\n{more}"
    )
}

/// Below the range that the kernel hands out to outgoing connections.
fn free_port() -> u16 {
    let mut ports = (0..1000).map(|_| rand::random_range(20_000..32_000u16));
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Sends a line, and gives the answer.
fn say(port: u16) -> std::io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"line\n")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_to_a_port_in_use_leaves_the_listener_and_one_to_its_own_port_takes_it_over() {
    let state = tempfile::tempdir().unwrap();
    let port = free_port();
    let agent = start(&netcat(port, ""), state.path()).await.unwrap();
    let listens = async |port| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !say(port).is_ok_and(|answer| answer == "OK\n") {
            assert!(Instant::now() < deadline, "nothing answers on {port}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    listens(port).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = agent.change(plan(&netcat(taken.local_addr().unwrap().port(), ""))).await.unwrap_err();
    assert!(error.to_string().contains("cannot listen on 127.0.0.1"), "{error:#}");
    assert_eq!(view(&agent, "n").state, State::Running);
    listens(port).await;
    // The same port with another setting, under another name, and then another port.
    assert_eq!(agent.change(plan(&netcat(port, "a.sources.n.max-line-length = 100\n"))).await.unwrap().changed, ["n"]);
    listens(port).await;
    let renamed = netcat(port, "").replace("sources.n.", "sources.n2.").replace("sources = n", "sources = n2");
    agent.change(plan(&renamed)).await.unwrap();
    listens(port).await;
    assert_eq!(view(&agent, "n2").state, State::Running);
    let other = free_port();
    agent.change(plan(&netcat(other, ""))).await.unwrap();
    listens(other).await;
    assert!(say(port).is_err());
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_starts_again_what_has_failed() {
    let state = tempfile::tempdir().unwrap();
    let gate = state.path().join("gate");
    // Ends with an error until the gate is there.
    let text = seq(1, &format!("a.sources.r.type = exec\na.sources.r.command = cat {}\n", gate.display()));
    let text: String =
        text.lines().filter(|line| !line.contains("totalEvents") && !line.contains("batchSize")).map(|line| format!("{line}\n")).collect();
    let agent = start(&text, state.path()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while view(&agent, "r").state != State::Failed {
        assert!(Instant::now() < deadline, "{:?}", view(&agent, "r").state);
        sleep(Duration::from_millis(5)).await;
    }
    fs::write(&gate, "a\nb\n").unwrap();
    let response = agent.change(plan(&text)).await.unwrap();
    assert_eq!((response.changed, response.unchanged), (vec!["r".to_owned()], vec!["c".to_owned(), "k".to_owned()]));
    until(&agent, "k", "EventDrainSuccessCount", 2.0).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_ends_no_pause() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, "").unwrap();
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    agent.set_paused("r", true).unwrap();
    agent.set_paused("k", true).unwrap();
    let changed = "a.sources.r.batchSize = 7\na.sinks.k.batchSize = 7\n";
    assert_eq!(agent.change(plan(&tail(&log, changed))).await.unwrap().changed, ["r", "k"]);
    assert_eq!((view(&agent, "r").state, view(&agent, "k").state), (State::Paused, State::Paused));
    fs::write(&log, "a\n").unwrap();
    until(&agent, "r", "EventReceivedCount", 1.0).await;
    assert_eq!(counter(&agent, "r", "EventAcceptedCount"), 0.0);
    agent.set_paused("r", false).unwrap();
    agent.set_paused("k", false).unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 1.0).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_with_another_name_goes_on_where_the_old_one_stopped() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, (0..100).map(|number| format!("line {number}\n")).collect::<String>()).unwrap();
    let named =
        |name: &str| tail(&log, "").replace("sources.r.", &format!("sources.{name}.")).replace("sources = r", &format!("sources = {name}"));
    let agent = start(&named("r"), state.path()).await.unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 100.0).await;
    // By a reload, then over a restart, while another line is written; and the old name has nothing left of it.
    let more = |text: &str| {
        fs::OpenOptions::new().append(true).open(&log).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())).unwrap()
    };
    agent.change(plan(&named("s"))).await.unwrap();
    more("one\n");
    until(&agent, "s", "EventReceivedCount", 1.0).await;
    agent.stop().await.unwrap();
    drop(agent);
    more("two\nthree\n");
    for (name, count) in [("t", 2.0), ("r", 3.0)] {
        let agent = start(&named(name), state.path()).await.unwrap();
        until(&agent, "k", "EventDrainSuccessCount", count).await;
        agent.stop().await.unwrap();
        assert_eq!(counter(&agent, name, "EventReceivedCount"), count);
        drop(agent);
        more("four\nfive\nsix\n");
    }
    let left: Vec<_> = fs::read_dir(state.path().join("a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("s.")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written_is_waited_for() {
    let state = tempfile::tempdir().unwrap();
    let log = state.path().join("app.log");
    fs::write(&log, "a\n").unwrap();
    // A directory where the first look is to be written.
    let first = state.path().join("a/r.first.json");
    fs::create_dir_all(first.join("in the way")).unwrap();
    let agent = start(&tail(&log, ""), state.path()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !view(&agent, "r").error.starts_with("the state directory cannot be used: ") {
        assert!(Instant::now() < deadline, "{}", view(&agent, "r").error);
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(view(&agent, "r").state, State::Running);
    fs::remove_dir_all(&first).unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 1.0).await;
    assert_eq!(view(&agent, "r").error, "");
    // Gone while it runs: made again.
    fs::remove_dir_all(state.path().join("a")).unwrap();
    fs::write(&log, "a\nb\n").unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 2.0).await;
    agent.stop().await.unwrap();
    assert!(state.path().join("a/r.positions.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_do_not_share_their_positions() {
    let state = tempfile::tempdir().unwrap();
    let agent = start(&seq(1, ""), state.path()).await.unwrap();
    let error = start(&seq(1, ""), state.path()).await.err().unwrap();
    assert!(error.to_string().starts_with("another collector runs this agent with the state directory"), "{error:#}");
    agent.stop().await.unwrap();
    drop(agent);
    start(&seq(1, ""), state.path()).await.unwrap().stop().await.unwrap();
}

#[test]
fn the_example_settings_are_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/collector.example.toml");
    let config: CollectorConfig = service_kit::config::load(Some(&path), serde_json::Value::Null).unwrap();
    assert_eq!(config.agent.name.as_deref(), Some("agent"));
    assert_eq!(config.metrics.listen.to_string(), "127.0.0.1:41414");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_shown_and_begins_anew_with_all_of_its_sinks() {
    let state = tempfile::tempdir().unwrap();
    let group = "a.sinks = k l\na.sinks.l.type = null\na.sinks.l.channel = c\na.sinkgroups = g\na.sinkgroups.g.sinks = k l\n\
                 a.sinkgroups.g.processor.type = failover\na.sinkgroups.g.processor.priority.l = 5\n";
    let agent = start(&seq(100, group), state.path()).await.unwrap();
    until(&agent, "l", "EventDrainSuccessCount", 100.0).await;
    assert_eq!((view(&agent, "l").state, view(&agent, "k").state), (State::Running, State::Paused));
    let shown = view(&agent, "g");
    assert_eq!((shown.type_name.as_str(), shown.error.as_str(), shown.channels), ("failover", "", vec!["k".to_owned(), "l".to_owned()]));
    // The other sink is to go first; both begin anew, the source does not.
    let other = group.replace("priority.l", "priority.k");
    let response = agent.change(plan(&seq(100, &other))).await.unwrap();
    assert_eq!(response.changed, ["k", "l"]);
    let response = agent.change(plan(&seq(100, &format!("{other}a.sinks.l.batchSize = 7\n")))).await.unwrap();
    assert_eq!(response.changed, ["l", "k"]);
    agent.set_paused("k", true).unwrap();
    agent.change(plan(&seq(50, &format!("{other}a.sinks.l.batchSize = 7\n")))).await.unwrap();
    until(&agent, "r", "EventAcceptedCount", 50.0).await;
    // A pause that does not hold has no sign to wait for but the delivery itself: it gets time to happen.
    sleep(Duration::from_millis(300)).await;
    assert_eq!(counter(&agent, "k", "EventDrainSuccessCount"), 0.0);
    agent.set_paused("k", false).unwrap();
    until(&agent, "k", "EventDrainSuccessCount", 50.0).await;
    agent.stop().await.unwrap();
}
