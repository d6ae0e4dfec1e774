//! Components that are changed while nothing can be delivered.

use std::fs;

use integration_tests::{eventually, kafka, process::Process, servers::kafka_bootstrap, unique};

use crate::{Agent, Log, WAIT, millrace};

const STOPPING: &str = "stopping what changes";

/// Lines that the sink does not take.
async fn hold(collector: &mut Process, log: &mut Log, lines: usize) {
    let (control, page) = (collector.address("control").await, collector.address("metrics").await);
    millrace(&control, &["pause", "k"]);
    log.write(lines);
    eventually(WAIT, "the channel holds them", || async {
        let answer = reqwest::get(format!("http://{page}/metrics")).await.map_err(|error| error.to_string())?;
        let shown: serde_json::Value = answer.json().await.map_err(|error| error.to_string())?;
        let size = &shown["CHANNEL.c"]["ChannelSize"];
        if size == &serde_json::json!(lines.to_string()) { Ok(()) } else { Err(format!("{size} events")) }
    })
    .await;
}

fn add(agent: &Agent, lines: &str) {
    let path = agent.dir.path().join("agent.conf");
    let text = fs::read_to_string(&path).expect("the agent's file") + lines;
    fs::write(path, text).expect("the agent's file");
}

async fn stopped(collector: &Process, times: usize) {
    eventually(WAIT, "the reload begins", || async {
        let log = collector.log();
        if log.matches(STOPPING).count() == times { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_changed_while_its_lines_wait_repeats_none_and_resuming_meanwhile_counts() {
    let topic = unique("changed");
    kafka::create_topic(&kafka_bootstrap(), &topic, 1).await;
    let lines = "sources.r.type = TAILDIR\nsources.r.filegroups = f\nsources.r.filegroups.f = DIR/logs/app\\\\.log";
    let agent = Agent::new(&kafka_bootstrap(), &topic, "r", lines);
    let mut log = agent.log("r", "logs/app.log");
    let mut collector = agent.start_with(&[("MILLRACE_SHUTDOWN__DEADLINE", "5s")]);
    let control = collector.address("control").await;
    log.write(100);
    agent.delivered_once([&log]).await;

    hold(&mut collector, &mut log, 150).await;
    add(&agent, "a.sources.r.batchSize = 7\n");
    millrace(&control, &["reload", "--timeout", "60s"]);
    collector.log_contains(WAIT, "is read again").await;
    millrace(&control, &["resume", "k"]);
    log.write(50);
    agent.delivered_once([&log]).await;

    hold(&mut collector, &mut log, 151).await;
    add(&agent, "a.sources.r.batchSize = 9\na.sinks.k.flumeBatchSize = 9\n");
    let reload = tokio::task::spawn_blocking({
        let control = control.clone();
        move || millrace(&control, &["reload", "--timeout", "60s"])
    });
    stopped(&collector, 2).await;
    millrace(&control, &["resume", "k"]);
    let said = reload.await.expect("the reload");
    assert!(said.contains("changed: k, r") || said.contains("changed: r, k"), "{said}");
    log.write(50);
    agent.delivered_once([&log]).await;
    collector.stop().await;
}
