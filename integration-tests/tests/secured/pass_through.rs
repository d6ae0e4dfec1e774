//! Callers of the bridge that log in to Kafka themselves: their own entries hold, not the bridge's.

use integration_tests::{
    eventually, kafka,
    secured::{Acl, By, Secured},
    unique,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    WAIT,
    bridge::{Bridge, JSON, V2, consumed},
    grant_all, needed,
};

/// Everybody whom Kafka knows may ask for everything; Kafka's lists decide.
async fn bridge(dir: &tempfile::TempDir, sessions: &str, more: &str) -> Bridge {
    let (policy, secret) = (dir.path().join("policy.toml"), dir.path().join("secret"));
    std::fs::write(&policy, "[principals.\"*\"]\nallow = [\"all\"]\n").expect("the policy");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n").expect("the secret");
    let more = format!(
        "[auth]\npolicy_file = {policy:?}\nforward_secret_file = {secret:?}\n[auth.pass_through]\nenabled = true\nprincipals_max = 2\n{more}"
    );
    let mut bridge = Bridge::start_with(By::Scram, sessions, &more).await;
    bridge.log_in("engine", "engine-secret");
    bridge
}

fn record() -> Option<Value> {
    Some(json!({"records": [{"value": 1}]}))
}

#[tokio::test]
async fn who_logs_in_to_kafka_has_its_own_rights_and_not_the_bridges() {
    let (secured, dir) = (Secured::shared(), tempfile::tempdir().expect("a temporary folder"));
    let (id, results) = (unique("through"), unique("results"));
    let more = format!("[transactions]\nid = {id:?}\n[produce]\ndedup_topic = {results:?}\ndedup_partitions = 1");
    let mut bridge = bridge(&dir, "", &more).await;
    let (mine, theirs) = (unique("mine"), unique("theirs"));
    for topic in [&mine, &theirs] {
        kafka::create_topic(&secured.bootstrap, topic, 1).await;
    }
    let (caller, own) = (Secured::principal(By::Scram, "engine"), Secured::principal(By::Scram, "bridge"));
    let write = |topic: &str| Acl::new("topic", topic, "WRITE");
    secured.grant(&own, &write(&theirs));
    let produce =
        async |topic: &str, key: Option<&str>| bridge.ask_under(Method::POST, &format!("/topics/{topic}"), JSON, record(), key).await;

    // The bridge may write there, the caller may not; and the other way round.
    bridge.misses(&write(&theirs), async || produce(&theirs, None).await).await;
    bridge.at_last(&write(&mine), async || produce(&mine, None).await).await;

    // Under a key the bridge writes, for those who may.
    let names = [("TOPIC", theirs.as_str()), ("RESULTS", &results)];
    let claims = format!("{results}_claims");
    for lane in [format!("{id}-key-0"), format!("{id}-key-1")] {
        let names = [&names[..], &[("CLAIMS", claims.as_str()), ("ID", &lane)]].concat();
        grant_all(&secured, &own, &needed("bridge: idempotency keys", &names));
    }
    bridge.misses(&write(&theirs), async || produce(&theirs, Some("k")).await).await;
    secured.grant(&own, &write(&mine));
    eventually(WAIT, "it is written under a key", || produce(&mine, Some("k"))).await;
    let count = kafka::texts(&secured.bootstrap, &mine).len();
    produce(&mine, Some("k")).await.expect("the same answer");
    assert_eq!(kafka::texts(&secured.bootstrap, &mine).len(), count, "written once");
    assert!(kafka::texts(&secured.bootstrap, &theirs).is_empty());

    // A transaction, by an id of the caller's.
    let atomic = json!({"records": [{"topic": mine, "value": 2}]});
    let atomically = async || bridge.ask(Method::POST, "/records", JSON, Some(atomic.clone())).await;
    bridge.at_last(&Acl::new("transactional id", &format!("{id}.of.engine-0"), "WRITE"), atomically).await;

    // Topics: seen, made, looked into.
    let made = unique("made");
    let create = json!({"topic_name": made, "partitions_count": 1, "replication_factor": 1});
    let create = async || bridge.ask(Method::POST, "/admin/topics", V2, Some(create.clone())).await;
    bridge.at_last(&Acl::new("topic", &made, "CREATE"), create).await;
    let listed = bridge.ask(Method::GET, "/topics", V2, None).await.expect("topics").to_string();
    assert!(listed.contains(&mine) && !listed.contains(&theirs), "{listed}");

    // Records: with the caller's membership.
    let group = unique("group");
    let (topic, member) = (Acl::new("topic", &mine, "READ"), Acl::new("group", &group, "READ"));
    secured.grant(&caller, &member);
    bridge.at_last(&topic, async || consumed(&bridge, &group, &mine).await).await;
    secured.revoke(&caller, &member);
    bridge.misses(&member, async || consumed(&bridge, &group, &mine).await).await;

    // A topic that the bridge has no right to, twice: the second time there is a stored offset.
    let (alone, group) = (unique("alone"), unique("group"));
    kafka::create_topic(&secured.bootstrap, &alone, 1).await;
    grant_all(&secured, &caller, &[Acl::new("topic", &alone, "READ"), Acl::new("group", &group, "READ")]);
    for value in ["1", "2"] {
        kafka::produce(&secured.bootstrap, &alone, 1, [value.to_owned()]);
        eventually(WAIT, "it is read", async || consumed(&bridge, &group, &alone).await).await;
    }

    // Rejected records go where the caller may write, not where the bridge may.
    secured.revoke(&caller, &write(&mine));
    bridge.misses(&write(&mine), async || bridge.rejected(&group, &alone, &mine).await).await;
    secured.grant(&caller, &write(&mine));
    eventually(WAIT, "it is put aside", async || bridge.rejected(&group, &alone, &mine).await).await;
    bridge.process.stop().await;
}

#[tokio::test]
async fn rights_that_are_taken_away_under_an_instance_are_named_and_it_goes_on_when_they_are_back() {
    let (secured, dir) = (Secured::shared(), tempfile::tempdir().expect("a temporary folder"));
    let mut bridge = bridge(&dir, "", "").await;
    let topic = unique("taken");
    kafka::create_topic(&secured.bootstrap, &topic, 1).await;
    let rights = |group: &str| [Acl::new("topic", &topic, "READ"), Acl::new("group", group, "READ")];
    let mut instances = Vec::new();
    for name in ["collector", "engine"] {
        let group = unique(name);
        grant_all(&secured, &Secured::principal(By::Scram, name), &rights(&group));
        bridge.log_in(name, &format!("{name}-secret"));
        let settings = json!({"format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": false});
        let created = bridge.ask(Method::POST, &format!("/consumers/{group}"), V2, Some(settings)).await.expect("an instance");
        let base = created["base_uri"].as_str().expect("its address").to_owned();
        let topics = json!({"topics": [topic]});
        let subscribe = async || bridge.ask(Method::POST, &format!("{base}/subscription"), V2, Some(topics.clone())).await;
        eventually(WAIT, "it subscribes", subscribe).await;
        instances.push((group, base));
    }
    // Records that were fetched before may still be given; a new one shows what holds now.
    let read = async |bridge: &Bridge, base: &str| {
        kafka::produce(&secured.bootstrap, &topic, 1, ["1".to_owned()]);
        let records = bridge.ask(Method::GET, &format!("{base}/records?timeout=2000"), JSON, None).await?;
        if records.as_array().is_none_or(Vec::is_empty) {
            return Err("no records".to_owned());
        }
        bridge.ask(Method::POST, &format!("{base}/offsets"), V2, None).await.map(drop)
    };
    let [(_, other), (group, mine)] = &instances[..] else { panic!("two instances") };
    eventually(WAIT, "it reads", async || read(&bridge, mine).await).await;
    let caller = Secured::principal(By::Scram, "engine");
    for right in rights(group) {
        secured.revoke(&caller, &right);
        bridge.misses(&right, async || read(&bridge, mine).await).await;
        bridge.log_in("collector", "collector-secret");
        eventually(WAIT, "the other one reads on", async || read(&bridge, other).await).await;
        bridge.log_in("engine", "engine-secret");
        secured.grant(&caller, &right);
        eventually(WAIT, "it goes on", async || read(&bridge, mine).await).await;
    }
    for (name, (_, base)) in ["collector", "engine"].into_iter().zip(&instances) {
        bridge.log_in(name, &format!("{name}-secret"));
        bridge.ask(Method::DELETE, base, V2, None).await.expect("deleted");
    }
    bridge.process.stop().await;
}

#[tokio::test]
async fn kafka_says_whose_password_is_right() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut bridge = bridge(&dir, "", "").await;
    let topics = async |bridge: &Bridge| bridge.ask(Method::GET, "/topics", V2, None).await;
    topics(&bridge).await.expect("the engine's own password");
    for (name, password) in [("engine", "wrong"), ("nobody", "engine-secret"), ("", "x"), ("engine", "engine-secret\0")] {
        bridge.log_in(name, password);
        for _ in 0..2 {
            let said = topics(&bridge).await.expect_err("a wrong password");
            assert!(said.starts_with("401") && said.contains("Kafka refuses name or password"), "{said}");
        }
    }
    // More than are kept: the one that was unused longest makes room, and logs in again.
    for name in ["collector", "engine", "stranger", "collector"] {
        bridge.log_in(name, &format!("{name}-secret"));
        topics(&bridge).await.unwrap_or_else(|said| panic!("{name}: {said}"));
    }
    let metrics = bridge.text("/metrics").await;
    assert!(metrics.lines().any(|line| line == "millrace_bridge_auth_kafka_logins 2"), "{metrics}");
    let log = bridge.process.log();
    assert!(!log.contains("-secret"), "no password is told: {log}");
    bridge.process.stop().await;
}

#[tokio::test]
async fn another_replica_hands_the_caller_on_without_its_password() {
    let (secured, dir) = (Secured::shared(), tempfile::tempdir().expect("a temporary folder"));
    let (topic, group, sessions) = (unique("handed"), unique("group"), unique("sessions"));
    kafka::create_topic(&secured.bootstrap, &topic, 1).await;
    kafka::produce(&secured.bootstrap, &topic, 1, ["1".to_owned()]);
    let own = Secured::principal(By::Scram, "bridge");
    for operation in ["CREATE", "DESCRIBE_CONFIGS", "READ", "WRITE"] {
        secured.grant(&own, &Acl::new("topic", &sessions, operation));
    }
    let caller = Secured::principal(By::Scram, "engine");
    for acl in [Acl::new("topic", &topic, "READ"), Acl::new("group", &group, "READ")] {
        secured.grant(&caller, &acl);
    }
    let (mut first, mut second) = tokio::join!(bridge(&dir, &sessions, ""), bridge(&dir, &sessions, ""));
    let settings = json!({"name": "i", "format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": false});
    first.ask(Method::POST, &format!("/consumers/{group}"), V2, Some(settings)).await.expect("an instance");
    let instance = format!("/consumers/{group}/instances/i");
    let topics = Some(json!({"topics": [topic]}));
    // Joins the group, at the first one, by the caller's login there.
    eventually(WAIT, "the second hands it on", async || {
        second.ask(Method::POST, &format!("{instance}/subscription"), V2, topics.clone()).await
    })
    .await;
    eventually(WAIT, "records come through the second", || async {
        let records = second.ask(Method::GET, &format!("{instance}/records?timeout=2000"), JSON, None).await?;
        if records.as_array().is_some_and(|records| !records.is_empty()) { Ok(()) } else { Err("no records".to_owned()) }
    })
    .await;
    second.ask(Method::POST, &format!("{instance}/offsets"), V2, None).await.expect("committed");
    second.ask(Method::DELETE, &instance, V2, None).await.expect("deleted");
    first.process.stop().await;
    second.process.stop().await;
}
