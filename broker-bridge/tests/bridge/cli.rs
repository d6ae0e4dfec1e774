//! The CLI against a bridge that runs, on a broker that runs.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Client, V2,
    process::{Bridge, millrace, millrace_exits, servers, unique},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cli_shows_lag_advice_brokers_and_settings_of_a_bridge() {
    // So that the little that is written here is more than a partition carries.
    let bridge = Bridge::start_with(&servers(), &[("MILLRACE_TOPICS__PARTITION_RATE_MAX", "1")]).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    let group = unique("group");
    let document = async |words: &[&str]| -> Value {
        let printed = millrace(&bridge, &[words, &["-o", "json"]].concat()).await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{words:?}: {error}: {printed}"))
    };

    client.produce(&topic, 0..25).await;
    let base = client.consumer(&group, &topic, false).await;
    client.fetch_values(&base, 25).await;
    let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 9}]});
    assert_eq!(client.post(&format!("{base}/offsets"), V2, &commit).await.0, 200);
    let lag = document(&["group", "lag", &group]).await;
    assert_eq!((&lag["total_lag"], &lag["group"]["members"]), (&json!(15), &json!(1)), "{lag}");
    let row = &lag["partitions"][0];
    assert_eq!((&row["topic"], &row["committed"], &row["end_offset"]), (&json!(topic), &json!(10), &json!(25)), "{lag}");
    assert!(row["member"].is_string(), "{lag}");
    let all = document(&["group", "lag"]).await;
    let line = all["groups"].as_array().unwrap().iter().find(|line| line["group"]["id"] == group.as_str());
    assert_eq!(line.unwrap()["total_lag"], 15, "{all}");
    let table = millrace(&bridge, &["group", "lag", &group]).await;
    assert!(table.lines().any(|line| line.starts_with(&topic) && line.contains(" 10 ") && line.contains(" 15 ")), "{table}");
    client.delete(&base).await;

    let brokers = document(&["broker", "list"]).await;
    let rows = brokers["brokers"].as_array().unwrap();
    assert!(!brokers["cluster_id"].as_str().unwrap().is_empty());
    assert_eq!(rows.iter().filter(|broker| broker["controller"] == true).count(), 1, "{brokers}");
    assert!(rows.iter().all(|broker| broker["log_bytes"].as_i64().is_some_and(|bytes| bytes > 0)), "{brokers}");

    let advice = document(&["topic", "advise", "--consumers", "3", "--producers", "2"]).await;
    assert_eq!((&advice["partitions"], &advice["replication"]), (&json!(6), &json!(rows.len().min(3))), "{advice}");

    // What is measured into a topic, the advice on it and on one like it carries.
    let deadline = Instant::now() + Duration::from_secs(30);
    let measured = loop {
        client.produce(&topic, 0..20).await;
        let advice = document(&["topic", "advise", "--topic", &topic]).await;
        if advice["partitions"].as_u64().unwrap() > 2 {
            break advice;
        }
        assert!(Instant::now() < deadline, "{advice}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(measured["reasons"][1].as_str().unwrap().contains("records/s at 1 each (topics.partition_rate_max)"), "{measured}");
    let like = document(&["topic", "create", &unique("like"), "--like", &topic, "--dry-run"]).await;
    assert!(like["topic"]["partitions"].as_u64().unwrap() > 2, "{like}");
    assert!(like["advice"]["reasons"].to_string().contains(&format!("are measured into \\\"{topic}\\\"")), "{like}");
    let (code, told) = millrace_exits(&bridge, &["topic", "advise", "--topic", "no-such-topic"]).await;
    assert!(code == 1 && told.contains("does not exist"), "{code} {told}");

    let settings = document(&["config", "bridge"]).await;
    assert_eq!((&settings["service"], &settings["format"]), (&json!("bridge"), &json!("toml")));
    let settings: toml::Table = settings["text"].as_str().unwrap().parse().unwrap();
    assert_eq!(settings["kafka"]["bootstrap_servers"].as_str(), Some(servers().as_str()));
    assert_eq!(settings["monitor"]["interval"].as_str(), Some("1s"), "from the environment");

    let changed = document(&["log-level", "bridge", "debug"]).await;
    assert_eq!(changed["current"], "debug", "{changed}");
    let back = document(&["log-level", "bridge", "info"]).await;
    assert_eq!((&back["previous"], &back["current"]), (&json!("debug"), &json!("info")));
    // The same by Burrow's path.
    let level = format!("{}/v3/admin/loglevel", client.base);
    let (status, set) = client.post(&level, "application/json", &json!({"level": "WARNING"})).await;
    assert_eq!((status, &set["error"], &set["message"]), (200, &json!(false), &json!("set log level")), "{set}");
    let shown = client.http.get(&level).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(
        (&shown["level"], &shown["message"], &shown["request"]["url"]),
        (&json!("warn"), &json!("log level returned"), &json!("/v3/admin/loglevel"))
    );
    assert_eq!(document(&["log-level", "bridge", "info"]).await["previous"], "warn");

    client.delete_topic(&topic).await;
    bridge.stop().await;
}
