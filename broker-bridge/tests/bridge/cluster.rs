//! Three brokers, one of which is killed and comes back.

use std::{path::Path, process::Output, time::Duration};

use proto::control::v1::{BrokersRequest, CreateTopicRequest, DescribeTopicRequest, LintTopicsRequest, ListGroupsRequest};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    Client, JSON, eventually,
    process::{Bridge, text, unique},
};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dev/kafka/kafka");
/// Kafka takes a silent broker out after `broker.session.timeout.ms`, 9 s.
const PATIENCE: Duration = Duration::from_secs(30);

fn script(command: &str, directory: &Path, arguments: &[&str]) -> Output {
    let mut script = std::process::Command::new(SCRIPT);
    script.arg(command).arg(directory).args(arguments).env("KAFKA_HEAP", "256m").output().unwrap()
}

/// Stopped, and its files removed, when it goes out of scope.
pub(crate) struct Cluster {
    directory: TempDir,
    brokers: u32,
    pub(crate) servers: String,
}

impl Cluster {
    pub(crate) fn start(brokers: u32) -> Self {
        Self::start_with(brokers, &["--acls"])
    }

    pub(crate) fn start_with(brokers: u32, arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let output = script("start", directory.path(), &[&["--brokers", &brokers.to_string()], arguments].concat());
        assert!(output.status.success(), "{}", text(&output));
        Self { servers: String::from_utf8(output.stdout).unwrap().trim().to_owned(), brokers, directory }
    }

    pub(crate) fn broker(&self, command: &str, id: i32) {
        let output = script(command, self.directory.path(), &[&id.to_string()]);
        assert!(output.status.success(), "{command} {id}: {}", text(&output));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Brokers that are asked to end wait for each other, and there is nothing to keep. One that is dead already says so.
        for id in 1..=self.brokers {
            script("kill", self.directory.path(), &[&id.to_string()]);
        }
        let output = script("stop", self.directory.path(), &[]);
        // A second panic would hide why the test failed.
        assert!(std::thread::panicking() || output.status.success(), "{}", text(&output));
    }
}

/// Waits until every partition of the topic has this many replicas in sync and a leader among them, and the cluster as many
/// under-replicated partitions as that means.
async fn in_sync(client: &Client, topic: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let described = client.control().describe_topic(DescribeTopicRequest { name: topic.to_owned() }).await;
        let brokers = client.control().brokers(BrokersRequest {}).await;
        if let (Ok(described), Ok(brokers)) = (&described, &brokers) {
            let (described, brokers) = (described.get_ref(), brokers.get_ref());
            let settled = described.partitions.iter().all(|row| row.isr.len() == count && row.isr.contains(&row.leader));
            let missing = if count == 3 { 0 } else { described.partitions.len() };
            let told = described.topic.as_ref().unwrap().under_replicated as usize == missing;
            if settled && told && (brokers.under_replicated > 0) == (count < 3) && brokers.offline == 0 && brokers.brokers.len() == count {
                return;
            }
        }
        assert!(Instant::now() < deadline, "not {count} in sync within {PATIENCE:?}: {described:?} {brokers:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn gauge(client: &Client, name: &str) -> f64 {
    let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_brokers_killed_it_is_told_and_the_work_goes_on() {
    let cluster = Cluster::start(3);
    let bridge = Bridge::start(&cluster.servers).await;
    let client = Client::of(&bridge).await;
    let (topic, group) = (unique("topic"), unique("group"));
    let new = CreateTopicRequest { name: topic.clone(), partitions: 3, replication: 3, min_insync_replicas: 2, ..Default::default() };
    client.control().create_topic(new).await.unwrap();
    client.produce(&topic, 0..30).await;
    let base = client.consumer(&group, &topic, true).await;
    assert_eq!(client.fetch_values(&base, 30).await, (0..30).collect::<Vec<_>>());
    in_sync(&client, &topic, 3).await;
    // One that needs all of them: it is under its min ISR as soon as one is away.
    let strict = unique("strict");
    let new = CreateTopicRequest { name: strict.clone(), partitions: 2, replication: 3, min_insync_replicas: 3, ..Default::default() };
    client.control().create_topic(new).await.unwrap();
    in_sync(&client, &strict, 3).await;
    let lint =
        client.control().lint_topics(LintTopicsRequest { topics: vec![strict.clone()], ..Default::default() }).await.unwrap().into_inner();
    assert!(lint.topics[0].findings.iter().any(|found| found.rule == "min-isr" && found.message.contains("rolling restart")), "{lint:?}");

    // The one that leads the first partition, so that a leader has to be found too.
    let described = client.control().describe_topic(DescribeTopicRequest { name: topic.clone() }).await.unwrap().into_inner();
    let killed = described.partitions[0].leader;
    cluster.broker("kill", killed);
    in_sync(&client, &topic, 2).await;
    eventually("the metric says it", async || gauge(&client, "millrace_bridge_under_replicated_partitions").await >= 3.0).await;

    // Two of the strict topic's partitions, and none of the other's; what the rules in deploy/prometheus alert on.
    eventually("the metrics say it", async || {
        gauge(&client, "millrace_bridge_under_min_isr_partitions").await >= 2.0 && gauge(&client, "millrace_bridge_brokers").await == 2.0
    })
    .await;
    let brokers = client.control().brokers(BrokersRequest {}).await.unwrap().into_inner();
    let of = |topic: &str, kind: &str| brokers.problems.iter().filter(|problem| problem.topic == *topic && problem.kind == kind).count();
    assert_eq!((of(&strict, "under-min-isr"), of(&topic, "under-replicated"), of(&topic, "under-min-isr")), (2, 3, 0), "{brokers:?}");
    let health: serde_json::Value = client.http.get(format!("{}/ui/api/cluster", client.base)).send().await.unwrap().json().await.unwrap();
    assert_eq!((&health["offline"], health["problems"][0]["kind"].as_str()), (&json!(0), Some("under-min-isr")), "{health}");
    assert!(health["under_replicated"].as_u64() >= Some(5), "{health}");

    // Acknowledged by both that are left (acks=all is the bridge's default), on all partitions.
    for partition in 0..3 {
        let records = json!({"records": [{"value": 30 + partition}]});
        let (status, answer) = client.post(&format!("/topics/{topic}/partitions/{partition}"), JSON, &records).await;
        assert!(status == 200 && answer["offsets"][0]["offset"].as_i64().is_some_and(|offset| offset >= 0), "{status} {answer}");
    }
    assert_eq!(client.fetch_values(&base, 3).await, [30, 31, 32]);
    // A group's coordinator may have been the one that was killed.
    eventually("the group is listed", async || {
        let listed = client.control().list_groups(ListGroupsRequest {}).await;
        listed.is_ok_and(|listed| listed.get_ref().groups.iter().any(|found| found.id == group))
    })
    .await;
    cluster.broker("restart", killed);
    in_sync(&client, &topic, 3).await;
    eventually("the metric says that it is over", async || gauge(&client, "millrace_bridge_under_min_isr_partitions").await == 0.0).await;
    client.delete(&base).await;
    bridge.stop().await;
}
