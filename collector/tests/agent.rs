//! The agent in this process: start, stop, pause, reload. What needs Kafka is tested elsewhere, with the binary.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use collector::agent::{Agent, Place, State, View};
use collector::config::CollectorConfig;
use collector::flume_conf::{ConfFile, Options, Plan, read};
use service_kit::Readiness;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;

fn plan(text: &str) -> Plan {
    let env = |_: &str| None;
    let outcome = read(
        &[ConfFile { name: "a.conf", bytes: text.as_bytes() }],
        &Options { agent: None, strict: false, env: &env, sys: &BTreeMap::new(), now: chrono::Local::now() },
    );
    assert!(!outcome.failed(), "{:?}", outcome.findings);
    outcome.plans.into_iter().next().unwrap()
}

async fn start(text: &str, state: &Path) -> anyhow::Result<Arc<Agent>> {
    let place = Place { state_dir: state.to_owned(), strict: false, drain: Duration::from_secs(10) };
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
    let place = Place { state_dir: state.path().to_owned(), strict: false, drain: Duration::from_millis(300) };
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
    let place = Place { state_dir: state.path().to_owned(), strict: false, drain: Duration::from_millis(300) };
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
    assert_eq!(agent.set_paused("", false).unwrap(), ["r", "k"]);
    until(&agent, "k", "EventDrainSuccessCount", 2.0).await;
    let error = agent.set_paused("x", true).unwrap_err();
    assert_eq!(error.message, "there is no source or sink `x`; there are r, k");
    assert!(agent.set_paused("c", true).unwrap_err().message.contains("is a channel"));
    agent.stop().await.unwrap();
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
