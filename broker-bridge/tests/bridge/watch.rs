//! Groups that are well, stall and stop; topics that break each rule of the linter. Both on a real broker.

use std::{collections::BTreeMap, time::Duration};

use proto::control::v1::{CreateTopicRequest, GroupLagRequest, LintTopicsRequest};
use serde_json::{Value, json};
use service_kit::kafka::{self, KafkaConfig, TopicPartition};
use tokio::time::{Instant, sleep};

use crate::{
    Client,
    process::{Bridge, millrace_exits, servers, unique},
};

const PATIENCE: Duration = Duration::from_secs(30);

impl Client {
    async fn json(&self, path: &str) -> Value {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap().json().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_stops_one_that_stalls_and_one_that_is_well() {
    let servers = servers();
    let bridge = Bridge::start_with(&servers, &[("MILLRACE_MONITOR__MIN_DISTANCE", "100ms"), ("MILLRACE_MONITOR__INTERVALS", "4")]).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let [well, stalls, stops] = ["well", "stalls", "stops"].map(unique);
    client.produce(&topic, 0..100).await;

    // What consumers do, and nothing of the bridge: it must learn of it from Kafka alone.
    let admin = kafka::admin(&KafkaConfig::new(&servers)).await.unwrap();
    let partition = TopicPartition::new(topic.as_str(), 0);
    let commit = async |group: &str, offset: i64| admin.commit(group, &[(partition.clone(), offset, String::new())]).await.unwrap();
    for offset in [10, 20, 30, 40] {
        commit(&stops, offset).await;
        sleep(Duration::from_millis(150)).await;
    }
    let cluster = client.json("/v3/kafka").await["clusters"][0].as_str().unwrap().to_owned();
    let status = async |group: &str| client.json(&format!("/v3/kafka/{cluster}/consumer/{group}/lag")).await["status"].clone();
    let deadline = Instant::now() + PATIENCE;
    // The one commits where it was, to the end of the test.
    let stalling = tokio::spawn({
        let (admin, group, partition) = (std::sync::Arc::clone(&admin), stalls.clone(), partition.clone());
        async move {
            loop {
                admin.commit(&group, &[(partition.clone(), 7, String::new())]).await.unwrap();
                sleep(Duration::from_millis(150)).await;
            }
        }
    });
    let mut read = 0;
    let (stopped, stalled, healthy) = loop {
        // The other catches up.
        read = (read + 5).min(100);
        commit(&well, read).await;
        let found = (status(&stops).await, status(&stalls).await, status(&well).await);
        let states = [&found.0, &found.1, &found.2].map(|status| status["partitions"][0]["status"].as_str().unwrap_or_default().to_owned());
        let settled = read == 100
            && found.2["totallag"] == 0
            && found.1["lag_seconds"].is_number()
            && found.0["trend_records_per_second"].is_number();
        if settled && states == ["STOP", "STALL", "OK"] {
            break found;
        }
        assert!(Instant::now() < deadline, "{states:?} {found:?}");
        sleep(Duration::from_millis(200)).await;
    };
    assert_eq!((&stopped["status"], &stopped["totallag"], &stopped["maxlag"]["current_lag"]), (&json!("ERR"), &json!(60), &json!(60)));
    assert_eq!((&stalled["status"], &stalled["totallag"]), (&json!("ERR"), &json!(93)));
    assert_eq!((&healthy["status"], &healthy["lag_seconds"]), (&json!("OK"), &json!(0.0)));
    // The records are all of this test's time, and older than its commits.
    let age = stalled["lag_seconds"].as_f64().unwrap();
    assert!((0.1..120.0).contains(&age), "{age}");
    assert_eq!(stopped["trend_records_per_second"].as_f64(), Some(0.0), "nobody reads, nobody writes");
    // Only what is not OK, on the other path.
    assert_eq!(client.json(&format!("/v3/kafka/{cluster}/consumer/{well}/status")).await["status"]["partitions"], json!([]));
    let readers = client.json(&format!("/v3/kafka/{cluster}/topic/{topic}/consumers")).await;
    assert_eq!(readers["consumers"].as_array().unwrap().len(), 3);
    assert_eq!(client.json(&format!("/v3/kafka/{cluster}/topic/{topic}")).await["offsets"], json!([100]));

    // The same over gRPC, v3, the CLI, as metrics, on the page.
    let lag = client.control().group_lag(GroupLagRequest { group: stalls.clone() }).await.unwrap().into_inner();
    assert_eq!((lag.status.as_str(), lag.partitions[0].status.as_str(), lag.total_lag), ("ERR", "STALL", 93));
    assert!(lag.pace.unwrap().lag_seconds.unwrap() >= age && lag.partitions[0].pace.unwrap().lag_seconds.is_some());
    let row = client.json(&format!("/v3/clusters/{cluster}/consumer-groups/{stalls}/lags")).await["data"][0].clone();
    assert!(row["lag"] == 93 && row["status"] == "STALL" && row["lag_seconds"].as_f64().unwrap() >= age, "{row}");
    let (code, told) = millrace_exits(&bridge, &["group", "lag", &stops]).await;
    assert!(code == 0 && told.contains("ERR") && told.contains("STOP") && told.contains("oldest unread"), "{told}");
    let line = format!("millrace_bridge_group_status{{group=\"{stops}\"}} 3");
    loop {
        let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
        if metrics.contains(&line) && metrics.contains(&format!("millrace_bridge_group_lag_seconds{{group=\"{stalls}\"}}")) {
            assert!(metrics.contains("millrace_bridge_watch_pass_seconds_count"), "{metrics}");
            break;
        }
        assert!(Instant::now() < deadline, "{line} is not in {metrics}");
        sleep(Duration::from_millis(100)).await;
    }
    let page = client.http.get(format!("{}/ui/groups/{stops}", client.base)).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("STOP") && page.contains("<svg"), "{page}");
    stalling.abort();
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_judged_by_what_they_are_and_who_reads_them() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let create = async |partitions: u32, config: &[(&str, &str)]| {
        let name = unique("lint");
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        client.control().create_topic(CreateTopicRequest { name: name.clone(), partitions, config, ..Default::default() }).await.unwrap();
        name
    };
    let wrong = create(
        2,
        &[
            ("retention.ms", "-1"),
            ("unclean.leader.election.enable", "true"),
            ("min.cleanable.dirty.ratio", "1"),
            ("cleanup.policy", "compact,delete"),
        ],
    )
    .await;
    let short = create(2, &[("retention.ms", "60000")]).await;
    let good = create(2, &[("retention.ms", "604800000")]).await;
    for topic in [&wrong, &good] {
        client.produce(topic, 0..10).await;
    }
    let findings = async |topics: Vec<String>, consumers: u32| {
        let found = client.control().lint_topics(LintTopicsRequest { topics, consumers, producers: 1 }).await.unwrap().into_inner();
        let rules = |findings: Vec<proto::control::v1::Finding>| {
            findings
                .into_iter()
                .map(|finding| (finding.rule.clone(), (finding.level, finding.message, finding.remedy)))
                .collect::<BTreeMap<_, _>>()
        };
        found.topics.into_iter().map(|topic| (topic.topic.clone(), (topic.keyed, rules(topic.findings)))).collect::<BTreeMap<_, _>>()
    };
    let found = findings(vec![wrong.clone(), short.clone(), good.clone()], 0).await;
    let rules = |topic: &str| found[topic].1.keys().map(String::as_str).collect::<Vec<_>>();
    // One broker: a single copy is a warning.
    assert_eq!(rules(&wrong), ["never-compacted", "replication", "retention-unbounded", "unclean-election"]);
    assert_eq!(rules(&short), ["replication", "retention-short", "segment-over-retention"]);
    assert_eq!(rules(&good), ["replication"]);
    assert_eq!((found[&wrong].0, found[&short].0), (Some(true), None), "keys, and no records");
    assert_eq!(found[&wrong].1["unclean-election"].0, "error");

    // Three readers for two partitions; what growing would break is said.
    let (level, message, remedy) = findings(vec![good.clone()], 3).await[&good].1["consumers-idle"].clone();
    assert!(level == "error" && message.contains("1 of them read nothing"), "{message}");
    assert!(remedy.contains("6 partitions") && remedy.contains("order of a key's records breaks"), "{remedy}");
    // A member that is there is counted.
    let base = client.consumer(&unique("group"), &good, true).await;
    assert_eq!(client.fetch_values(&base, 10).await.len(), 10);
    assert_eq!(findings(vec![good.clone()], 0).await[&good].1.keys().collect::<Vec<_>>(), ["replication"]);
    client.delete(&base).await;

    let (code, told) = millrace_exits(&bridge, &["topic", "lint", &wrong]).await;
    assert!(code == 1 && told.contains("unclean-election") && told.contains("1 topic: 1 error, 3 warnings"), "{code} {told}");
    let (code, told) = millrace_exits(&bridge, &["topic", "lint", &good, "-o", "json"]).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["errors"], &told["topics"][0]["findings"][0]["rule"]), (0, &json!(0), &json!("replication")));
    let (code, told) = millrace_exits(&bridge, &["topic", "lint", "no-such-topic"]).await;
    assert!(code == 1 && told.contains("does not exist"), "{told}");
    for topic in [&wrong, &short, &good] {
        client.delete_topic(topic).await;
    }
    bridge.stop().await;
}
