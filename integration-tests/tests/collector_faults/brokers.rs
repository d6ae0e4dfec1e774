//! Brokers that are there and cannot take a record.

use std::time::Duration;

use integration_tests::{eventually, kafka, servers::OwnKafka, unique};

use crate::{Agent, WAIT, complaints};

/// Three brokers; the topic is on the first two and needs both. The second is killed: the first refuses every record. The
/// third is killed too: there is no quorum of controllers any more, so nobody can say who leads. Both come back.
#[tokio::test]
async fn too_few_replicas_in_sync_are_waited_for_and_nothing_is_lost_or_repeated() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let own = OwnKafka::start_three(folder.path().to_path_buf());
    let topic = unique("replicated");
    kafka::create_replicated_topic(&own.bootstrap, &topic, &[1, 2], &[("min.insync.replicas", "2")]).await;
    let agent = Agent::new(&own.bootstrap, &topic, "s", "sources.s.type = exec\nsources.s.command = tail -n +1 -F DIR/app.log");
    let mut log = agent.log("s", "app.log");
    log.write(2_000);
    let mut collector = agent.start();
    agent.delivered_once([&log]).await;
    let quiet = collector.log().lines().count();

    own.kill(2);
    log.write(2_000);
    eventually(WAIT, "broker 1 refuses records", || {
        log.write(100);
        let said = own.log(1);
        async move { if said.contains("NotEnoughReplicasException") { Ok(()) } else { Err(said.chars().rev().take(500).collect()) } }
    })
    .await;
    own.kill(3);
    for _ in 0..50 {
        log.write(20);
        // Five seconds without any majority.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    own.restart(2);
    own.restart(3);
    log.write(2_000);
    agent.delivered_once([&log]).await;
    let text = collector.log();
    let since: Vec<&str> = text.lines().skip(quiet).collect();
    let since = since.join("\n");
    // Each cause once; a slow machine meets more of them.
    assert!((1..=5).contains(&complaints(&since).len()), "{} complaints:\n{since}", complaints(&since).len());
    collector.stop().await;
    agent.delivered_once([&log]).await;
}
