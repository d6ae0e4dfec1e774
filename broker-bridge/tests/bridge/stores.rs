//! Offsets outside of the bridge: another bridge goes on, and a store that is missing is told.

use serde_json::json;
use service_kit::kafka::{self, KafkaConfig, TopicPartition};
use tokio::time::{Duration, Instant, sleep};

use crate::{
    Client, V2, eventually,
    process::{self, Bridge, servers, unique},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_bridge_goes_on_where_a_killed_one_was_answered() {
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL is not set: run `make test`, or start Redis with deploy/dev/redis");
    for (store, address) in [("kafka", None), ("redis", Some(redis.as_str()))] {
        let mut variables = vec![("MILLRACE_OFFSETS__STORE", store)];
        variables.extend(address.map(|address| ("MILLRACE_OFFSETS__ADDRESS", address)));
        let first = Bridge::start_unready_with(&servers(), &variables).await;
        first.ready().await;
        let client = Client::of(&first).await;
        let topic = client.create_topic(1).await;
        let group = unique("group");
        client.produce(&topic, 0..20).await;
        let base = client.consumer(&group, &topic, false).await;
        assert_eq!(client.fetch_values(&base, 20).await.len(), 20);
        let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 11, "metadata": "kept"}]});
        assert_eq!(client.post(&format!("{base}/offsets"), V2, &commit).await.0, 200);
        first.kill().await;
        if store == "redis" {
            // The store's word counts, and not that of its copy in Kafka.
            let admin = kafka::admin(&KafkaConfig::new(servers())).await.unwrap();
            let older = [(TopicPartition::new(topic.as_str(), 0), 3, "millrace".to_owned())];
            eventually("the killed member is out of the group", async || admin.commit(&group, &older).await.is_ok()).await;
        }

        let second = Bridge::start_unready_with(&servers(), &variables).await;
        second.ready().await;
        let client = Client::of(&second).await;
        let base = client.consumer(&group, &topic, true).await;
        assert_eq!(client.fetch_values(&base, 8).await, (12..20).collect::<Vec<_>>(), "{store}");
        client.delete(&base).await;
        let metrics = reqwest::get(format!("http://{}/metrics", second.http)).await.unwrap().text().await.unwrap();
        assert!(metrics.contains(&format!("store=\"{store}\"")), "{metrics}");
        client.delete_topic(&topic).await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_missing_is_told_and_waited_for() {
    for (variables, told) in [
        (&[("MILLRACE_OFFSETS__STORE", "redis")][..], "is missing; store = \"redis\" needs redis://host:port/database"),
        (&[("MILLRACE_OFFSETS__STORE", "zookeeper"), ("MILLRACE_OFFSETS__ADDRESS", "h:port")], "write host:port,host:port"),
        (&[("MILLRACE_OFFSETS__STORE", "hbase"), ("MILLRACE_OFFSETS__ADDRESS", "h:8080")], "write http://host:port"),
        (&[("MILLRACE_OFFSETS__ADDRESS", "redis://h:1")], "belongs to store = \"redis\""),
    ] {
        let output = process::run(&["serve", "--bootstrap-servers", "k:1"], variables).await;
        assert_eq!(output.status.code(), Some(78));
        let text = process::text(&output);
        assert!(text.contains("offsets.address") && text.contains(told), "{text}");
    }
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = format!("redis://{free}");
    let variables = [("MILLRACE_OFFSETS__STORE", "redis"), ("MILLRACE_OFFSETS__ADDRESS", address.as_str())];
    let bridge = Bridge::start_unready_with(&servers(), &variables).await;
    let url = format!("http://{}", bridge.http);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap().text().await.unwrap();
        if metrics.contains("millrace_offset_store_calls_total{store=\"redis\",outcome=\"away\"}") {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(reqwest::get(format!("{url}/ready")).await.unwrap().status(), 503);
    bridge.stop().await;
}
