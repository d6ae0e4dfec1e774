//! Sessions that any replica answers: two bridges behind a plain TCP balancer, killed, stopped and started again under load.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use service_kit::kafka::{self, KafkaConfig};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    Client, JSON, V2, eventually,
    idempotence::committed,
    process::{Bridge, servers, unique},
    push::Reader,
};

/// Hands each connection to the next of those that accept it.
#[derive(Clone, Default)]
struct Balancer {
    backends: Arc<Mutex<Vec<String>>>,
    turn: Arc<AtomicUsize>,
}

impl Balancer {
    /// Gives its address.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let balancer = self.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let balancer = balancer.clone();
                tokio::spawn(async move {
                    let backends = balancer.backends.lock().clone();
                    for _ in 0..backends.len() {
                        let turn = balancer.turn.fetch_add(1, Ordering::Relaxed);
                        if let Ok(mut backend) = TcpStream::connect(&backends[turn % backends.len()]).await {
                            drop(tokio::io::copy_bidirectional(&mut client, &mut backend).await);
                            return;
                        }
                    }
                });
            }
        });
        address
    }
}

/// From the death of a replica to the first answers of what it held.
const RESUMED_WITHIN: Duration = Duration::from_secs(2);

/// What was produced, delivered and acknowledged.
#[derive(Default)]
struct Oracle {
    produced: BTreeSet<i64>,
    delivered: BTreeMap<i64, usize>,
    /// Next to read, by partition, of commits that were answered.
    acknowledged: BTreeMap<i64, i64>,
    /// Delivered after their acknowledgement.
    wrong: Vec<(i64, i64)>,
    /// Of each consumer, when it asked and got a good answer.
    answered: BTreeMap<String, Vec<(Instant, Instant)>>,
}

struct Load {
    base: String,
    topic: String,
    group: String,
    oracle: Arc<Mutex<Oracle>>,
    producing: Arc<AtomicBool>,
    consuming: Arc<AtomicBool>,
}

/// A connection for each request: the balancer decides anew each time.
fn http() -> reqwest::Client {
    reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(20)).build().unwrap()
}

impl Load {
    fn produce(&self) -> JoinHandle<()> {
        let (url, oracle, going) = (format!("{}/topics/{}", self.base, self.topic), Arc::clone(&self.oracle), Arc::clone(&self.producing));
        tokio::spawn(async move {
            let http = http();
            let mut next = 0;
            while going.load(Ordering::Relaxed) {
                let values = next..next + 20;
                let records: Vec<Value> = values.clone().map(|value| json!({"value": value})).collect();
                let body = json!({"records": records}).to_string();
                let answer = http.post(&url).header("content-type", JSON).body(body).send().await;
                if !answer.is_ok_and(|answer| answer.status() == 200) {
                    // It may have been written; twice is not the consumers' doing.
                    continue;
                }
                oracle.lock().produced.extend(values);
                next += 20;
                sleep(Duration::from_millis(10)).await;
            }
        })
    }

    fn consume(&self, name: &str) -> JoinHandle<()> {
        let url = format!("{}/consumers/{}/instances/{name}", self.base, self.group);
        let (name, topic, oracle, going) = (name.to_owned(), self.topic.clone(), Arc::clone(&self.oracle), Arc::clone(&self.consuming));
        tokio::spawn(async move {
            let http = http();
            while going.load(Ordering::Relaxed) {
                let asked = Instant::now();
                let Ok(answer) = http.get(format!("{url}/records?timeout=500")).header("accept", JSON).send().await else { continue };
                if answer.status() != 200 {
                    assert!(answer.status().is_server_error(), "{name}: {}", answer.text().await.unwrap());
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
                let Ok(text) = answer.text().await else { continue };
                let Ok(records) = serde_json::from_str::<Vec<Value>>(&text) else { continue };
                let mut ends = BTreeMap::new();
                {
                    let mut oracle = oracle.lock();
                    oracle.answered.entry(name.clone()).or_default().push((asked, Instant::now()));
                    for record in &records {
                        let number = |field: &str| record[field].as_i64().unwrap();
                        let (partition, offset) = (number("partition"), number("offset"));
                        if oracle.acknowledged.get(&partition).is_some_and(|acknowledged| offset < *acknowledged) {
                            oracle.wrong.push((partition, offset));
                        }
                        *oracle.delivered.entry(number("value")).or_default() += 1;
                        ends.insert(partition, offset);
                    }
                }
                if ends.is_empty() {
                    continue;
                }
                let offsets: Vec<Value> =
                    ends.iter().map(|(partition, offset)| json!({"topic": topic, "partition": partition, "offset": offset})).collect();
                let body = json!({"offsets": offsets}).to_string();
                let answer = http.post(format!("{url}/offsets")).header("content-type", V2).body(body).send().await;
                if answer.is_ok_and(|answer| answer.status() == 200) {
                    let mut oracle = oracle.lock();
                    for (partition, offset) in ends {
                        let acknowledged = oracle.acknowledged.entry(partition).or_default();
                        *acknowledged = (*acknowledged).max(offset + 1);
                    }
                }
            }
        })
    }

    /// Until each of these had a good answer to a request that was sent after `since`; gives how long the slowest took.
    async fn all_answered(&self, names: &[&str], since: Instant) -> Duration {
        let deadline = since + Duration::from_secs(30);
        loop {
            let firsts: Vec<Option<Duration>> = {
                let oracle = self.oracle.lock();
                let first = |name: &&str| {
                    let later = oracle.answered.get(*name)?.iter().find(|(asked, _)| *asked > since);
                    later.map(|(_, answered)| answered.duration_since(since))
                };
                names.iter().map(first).collect()
            };
            if firsts.iter().all(Option::is_some) {
                return firsts.into_iter().flatten().max().unwrap();
            }
            assert!(Instant::now() < deadline, "{firsts:?}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn all_delivered(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let missing: Vec<i64> = {
                let oracle = self.oracle.lock();
                oracle.produced.iter().filter(|value| !oracle.delivered.contains_key(value)).copied().collect()
            };
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{} records were not delivered: {missing:?}", missing.len());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn some_more(&self, count: usize) {
        let before = self.oracle.lock().delivered.len();
        eventually("more is delivered", async || self.oracle.lock().delivered.len() >= before + count).await;
    }
}

async fn create(base: &str, group: &str, name: &str, topic: &str, more: Value) {
    let mut body = json!({"name": name, "format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": false});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let post = async |path: String, body: Value| {
        let answer = http().post(format!("{base}{path}")).header("content-type", V2).body(body.to_string()).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    };
    post(format!("/consumers/{group}"), body).await;
    post(format!("/consumers/{group}/instances/{name}/subscription"), json!({"topics": [topic]})).await;
}

async fn metric(bridge: &Bridge, name: &str) -> f64 {
    let text = reqwest::get(format!("http://{}/metrics", bridge.http)).await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_is_lost_and_none_given_again_after_its_acknowledgement_when_a_replica_is_killed_or_stops() {
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL is not set: run `make test`, or start Redis with deploy/dev/redis");
    let directory = unique("sessions");
    let variables = [
        ("MILLRACE_OFFSETS__STORE", "redis"),
        ("MILLRACE_OFFSETS__ADDRESS", redis.as_str()),
        ("MILLRACE_CONSUME__SESSIONS_TOPIC", directory.as_str()),
    ];
    let servers = servers();
    let (first, second) = tokio::join!(Bridge::start_with(&servers, &variables), Bridge::start_with(&servers, &variables));
    let client = Client::of(&second).await;
    let (topic, group) = (client.create_topic(4).await, unique("group"));
    let balancer = Balancer::default();
    *balancer.backends.lock() = vec![first.http.clone(), second.http.clone()];
    let load = Load {
        base: format!("http://{}", balancer.start().await),
        topic: topic.clone(),
        group: group.clone(),
        oracle: Arc::default(),
        producing: Arc::new(AtomicBool::new(true)),
        consuming: Arc::new(AtomicBool::new(true)),
    };
    let (base, other) = (format!("http://{}", first.http), format!("http://{}", second.http));
    for (base, name) in [(&base, "a0"), (&base, "a1"), (&other, "b0"), (&other, "b1")] {
        create(base, &group, name, &topic, json!({})).await;
    }
    // Each name once, whoever is asked.
    let again = http().post(format!("{other}/consumers/{group}")).header("content-type", V2).body(r#"{"name":"a0"}"#).send().await.unwrap();
    assert_eq!(again.status(), 409);

    let producer = load.produce();
    let consumers: Vec<JoinHandle<()>> = ["a0", "a1", "b0", "b1"].into_iter().map(|name| load.consume(name)).collect();
    load.all_answered(&["a0", "a1", "b0", "b1"], Instant::now()).await;
    load.some_more(500).await;
    assert!(metric(&first, "millrace_bridge_forwarded_requests_total").await > 0.0);

    let killed = Instant::now();
    first.kill().await;
    let dead = Instant::now();
    let resumed = load.all_answered(&["a0", "a1"], dead).await + (dead - killed);
    assert!(resumed < RESUMED_WITHIN, "{resumed:?}");
    load.some_more(1_000).await;
    assert!(metric(&second, "millrace_bridge_sessions_claimed_total").await >= 2.0);

    // A new replica; then the old one stops, and all four go on at the new one.
    let third = Bridge::start_with(&servers, &variables).await;
    *balancer.backends.lock() = vec![second.http.clone(), third.http.clone()];
    load.some_more(300).await;
    let stopped = Instant::now();
    second.stop().await;
    let ended = stopped.elapsed();
    let resumed = load.all_answered(&["a0", "a1", "b0", "b1"], stopped).await;
    // Of a stop nothing is promised to the second; but nobody waits for a timeout of Kafka's.
    assert!(resumed < ended + 3 * RESUMED_WITHIN, "{resumed:?}");
    load.some_more(500).await;

    load.producing.store(false, Ordering::Relaxed);
    producer.await.unwrap();
    load.all_delivered().await;
    load.consuming.store(false, Ordering::Relaxed);
    for consumer in consumers {
        consumer.await.unwrap();
    }
    {
        let oracle = load.oracle.lock();
        assert!(oracle.wrong.is_empty(), "given again after their acknowledgement: {:?}", oracle.wrong);
        assert!(oracle.produced.len() > 1_000);
    }
    let client = Client::of(&third).await;
    client.delete_topic(&topic).await;
    client.delete_topic(&directory).await;
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_at_another_replica_after_a_kill_where_its_client_says_that_it_was() {
    let redis = std::env::var("REDIS_URL").expect("REDIS_URL is not set: run `make test`, or start Redis with deploy/dev/redis");
    let variables = [("MILLRACE_OFFSETS__STORE", "redis"), ("MILLRACE_OFFSETS__ADDRESS", redis.as_str())];
    let servers = servers();
    let (first, second) = tokio::join!(Bridge::start_with(&servers, &variables), Bridge::start_with(&servers, &variables));
    let (one, other) = (Client::of(&first).await, Client::of(&second).await);
    let topic = one.create_topic(1).await;
    one.produce(&topic, 0..20).await;
    let query = format!("topics={topic}&auto.offset.reset=earliest");
    let (events_of, lines_of) = (unique("events"), unique("lines"));
    let lines = [("Accept", "application/x-ndjson")];
    let mut events = Reader::open(&one, &events_of, &query, &[]).await;
    let (seen, at) = events.events(20).await;
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    let mut written = Reader::open(&one, &lines_of, &query, &lines).await;
    let (seen, line_at) = written.lines(20).await;
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
    // This one says nothing of where it was: it is given everything again.
    let forgetful = unique("forgetful");
    let mut forgotten = Reader::open(&one, &forgetful, &query, &[]).await;
    forgotten.events(20).await;

    first.kill().await;
    other.produce(&topic, 20..25).await;
    let mut events = Reader::open(&other, &events_of, &query, &[("Last-Event-ID", &at)]).await;
    let mut written = Reader::open(&other, &lines_of, &format!("{query}&after={line_at}"), &lines).await;
    let mut forgotten = Reader::open(&other, &forgetful, &query, &[]).await;
    assert_eq!(events.events(5).await.0, (20..25).collect::<Vec<_>>());
    assert_eq!(written.lines(5).await.0, (20..25).collect::<Vec<_>>());
    assert_eq!(forgotten.events(25).await.0, (0..25).collect::<Vec<_>>());
    drop((events, written, forgotten));
    other.delete_topic(&topic).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_goes_on_with_a_transaction_until_its_bridge_is_gone() {
    let servers = servers();
    let (first, second) = tokio::join!(Bridge::start(&servers), Bridge::start(&servers));
    let (one, other) = (Client::of(&first).await, Client::of(&second).await);
    let (topic, group) = (one.create_topic(1).await, unique("group"));
    let begin = async || {
        let (status, begun) = one.post("/transactions", JSON, &json!({"lease_ms": 20_000})).await;
        assert_eq!(status, 201, "{begun}");
        format!("/transactions/{}", begun["transaction_id"].as_str().unwrap())
    };
    let records = json!({"records": [{"topic": topic, "value": "first"}, {"topic": topic, "value": "second"}]});
    let transaction = begin().await;
    assert_eq!(other.post(&format!("{transaction}/records"), JSON, &records).await, (200, json!({"records": 2})));
    let offsets = json!({"group": group, "offsets": [{"topic": topic, "partition": 0, "offset": 1}]});
    assert_eq!(other.post(&format!("{transaction}/offsets"), "application/json", &offsets).await.0, 204);
    assert_eq!(other.post(&format!("{transaction}/commit"), JSON, &Value::Null).await.0, 204);
    for client in [&one, &other] {
        let (status, over) = client.post(&format!("{transaction}/records"), JSON, &records).await;
        assert_eq!((status, &over["error_code"]), (404, &json!(40410)), "{over}");
    }
    let found = committed(&servers, &topic, 1).await;
    assert_eq!(found.keys().collect::<Vec<_>>(), ["first", "second"]);
    // What is wrong is said by the one that has it; and it ends with that one.
    let transaction = begin().await;
    let (status, wrong) = other.post(&format!("{transaction}/records"), JSON, &json!({"records": []})).await;
    assert!(status == 422 && wrong["message"].as_str().unwrap().contains("records is empty"), "{wrong}");
    first.kill().await;
    let (status, gone) = other.post(&format!("{transaction}/commit"), JSON, &Value::Null).await;
    assert!(status == 404 && gone["message"].as_str().unwrap().contains("its bridge has gone"), "{gone}");
    other.delete_topic(&topic).await;
    second.stop().await;
}

/// What comes until there are `count` records.
async fn fetch(url: &str, count: usize) -> Vec<i64> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut values = Vec::new();
    while values.len() < count {
        let answer = http().get(format!("{url}/records?timeout=500")).header("accept", JSON).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        values.extend(serde_json::from_str::<Vec<Value>>(&text).unwrap().iter().map(|record| record["value"].as_i64().unwrap()));
        assert!(Instant::now() < deadline, "{values:?}");
    }
    values
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_goes_on_after_a_restart_with_what_it_read_and_where_it_was_put_and_leaves_its_group_at_once_when_it_is_deleted() {
    let mut bridge = Bridge::start(&servers()).await;
    let mut client = Client::of(&bridge).await;
    let (topic, group) = (client.create_topic(1).await, unique("group"));
    client.produce(&topic, 0..20).await;
    create(&client.base, &group, "one", &topic, json!({})).await;
    let url = |client: &Client| format!("{}/consumers/{group}/instances/one", client.base);
    assert_eq!(fetch(&url(&client), 20).await, (0..20).collect::<Vec<_>>());
    let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 9}]});
    assert_eq!(client.post(&format!("{}/offsets", url(&client)), V2, &commit).await.0, 200);

    bridge = bridge.stop_and_restart().await;
    client = Client::of(&bridge).await;
    let url_now = url(&client);
    // It goes on at what was acknowledged, and what was given before is not acknowledged by a word that does not name it.
    let unnamed = http().post(format!("{url_now}/offsets")).send().await.unwrap();
    assert_eq!(unnamed.status(), 409);
    assert!(unnamed.text().await.unwrap().contains("taken over"));
    assert_eq!(fetch(&url_now, 10).await, (10..20).collect::<Vec<_>>());
    assert_eq!(http().post(format!("{url_now}/offsets")).send().await.unwrap().status(), 200);

    // Sought back and not committed: after kill -9 it is read from there again, and a commit makes it the group's.
    let seek = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 5}]});
    assert_eq!(client.post(&format!("{url_now}/positions"), V2, &seek).await.0, 204);
    bridge = bridge.kill_and_restart().await;
    client = Client::of(&bridge).await;
    let url_now = url(&client);
    assert_eq!(fetch(&url_now, 15).await, (5..20).collect::<Vec<_>>());
    let commit = json!({"offsets": [{"topic": topic, "partition": 0, "offset": 7}]});
    assert_eq!(client.post(&format!("{url_now}/offsets"), V2, &commit).await.0, 200);
    bridge = bridge.kill_and_restart().await;
    client = Client::of(&bridge).await;
    let url_now = url(&client);
    assert_eq!(fetch(&url_now, 12).await, (8..20).collect::<Vec<_>>(), "the seek is void after the commit");

    // An ordinary consumer waits for the only partition, which is free at once when the instance, or its subscription, is deleted.
    for what in ["/subscription", ""] {
        let waited = waits_for_the_partition(&group, &topic, &url_now, async || {
            assert_eq!(http().delete(format!("{url_now}{what}")).send().await.unwrap().status(), 204);
        });
        let waited = waited.await;
        assert!(waited < Duration::from_secs(3), "{what}: {waited:?}");
        if !what.is_empty() {
            assert_eq!(client.post(&format!("{url_now}/subscription"), V2, &json!({"topics": [topic]})).await.0, 204);
            client.produce(&topic, 20..21).await;
            fetch(&url_now, 1).await;
        }
    }
    assert_eq!(http().get(format!("{url_now}/records")).header("accept", JSON).send().await.unwrap().status(), 404);
    create(&client.base, &group, "one", &topic, json!({})).await;
    client.delete(&url_now).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

/// How long an ordinary member of the group waits for the only partition, which an instance has, from when something is done on.
async fn waits_for_the_partition(group: &str, topic: &str, instance: &str, something: impl AsyncFnOnce()) -> Duration {
    let mut config = KafkaConfig::new(servers().as_str());
    config.set("heartbeat.interval.ms", "300");
    // Partitions are given out in the order of names.
    config.set("client.id", "the-last-one");
    let member = kafka::member(&config, group, &[topic.to_owned()], "earliest").await.unwrap();
    let admin = kafka::admin(&config).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        // Both have to take part for the group to settle.
        let (polled, _) = tokio::join!(
            member.poll(1, Duration::from_millis(50)),
            http().get(format!("{instance}/records?timeout=50")).header("accept", JSON).send()
        );
        polled.unwrap();
        let groups = admin.groups().await.unwrap();
        let settled = groups.iter().any(|one| one.id == group && one.state == "Stable" && one.members.len() == 2);
        if settled && member.assignment().await.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{groups:?}");
    }
    let begun = Instant::now();
    let wait = async {
        while member.assignment().await.is_empty() {
            member.poll(1, Duration::from_millis(50)).await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(30));
        }
        begun.elapsed()
    };
    let waited = tokio::join!(something(), wait).1;
    member.close().await;
    waited
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_offsets_of_its_own_hands_on_and_does_not_take_over_and_what_nobody_asks_for_ends() {
    let directory = unique("sessions");
    let variables = [("MILLRACE_CONSUME__SESSIONS_TOPIC", directory.as_str()), ("MILLRACE_CONSUME__SESSION_IDLE", "3s")];
    let servers = servers();
    let (first, second) = tokio::join!(Bridge::start_with(&servers, &variables), Bridge::start_with(&servers, &variables));
    let client = Client::of(&second).await;
    let (topic, group) = (client.create_topic(1).await, unique("group"));
    client.produce(&topic, 0..5).await;
    let first_base = format!("http://{}", first.http);
    create(&first_base, &group, "far", &topic, json!({})).await;
    let url = format!("{}/consumers/{group}/instances/far", client.base);
    assert_eq!(fetch(&url, 5).await, [0, 1, 2, 3, 4]);
    assert!(metric(&second, "millrace_bridge_forwarded_requests_total").await >= 1.0);
    // A request that another bridge has sent on is not sent on again.
    let misdirected = http().get(format!("{url}/records")).header("millrace-forwarded", "http://nowhere:1").header("accept", JSON);
    let misdirected = misdirected.send().await.unwrap();
    assert!(misdirected.status() == 421 && misdirected.headers().contains_key("millrace-forwarded"));
    // Errors come back as they are.
    let wrong = http().get(format!("{url}/records")).header("accept", "application/vnd.kafka.binary.v2+json").send().await.unwrap();
    assert_eq!(wrong.status(), 406);

    let other = unique("group");
    create(&first_base, &other, "away", &topic, json!({})).await;
    let away = format!("{}/consumers/{other}/instances/away", client.base);
    assert_eq!(http().delete(format!("{away}/subscription")).send().await.unwrap().status(), 204);
    let log = second.log();
    assert!(log.contains("another bridge keeps its offsets elsewhere"), "{log}");
    first.kill().await;
    let refused = http().get(format!("{url}/records")).header("accept", JSON).send().await.unwrap();
    let (status, text) = (refused.status(), refused.text().await.unwrap());
    assert!(status == 503 && text.contains("sled at") && text.contains("[offsets] store"), "{status} {text}");

    // It can be deleted, all the same.
    assert_eq!(http().delete(&away).send().await.unwrap().status(), 204);
    assert_eq!(http().delete(&away).send().await.unwrap().status(), 404);

    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = http().get(format!("{url}/records")).header("accept", JSON).send().await.unwrap().status();
        if status == 404 {
            break;
        }
        assert!(status == 503 && Instant::now() < deadline, "{status}");
        sleep(Duration::from_millis(200)).await;
    }
    assert!(metric(&second, "millrace_bridge_sessions_expired_total").await >= 1.0);
    client.delete_topic(&topic).await;
    client.delete_topic(&directory).await;
    second.stop().await;
}

/// Values and attempts of the next batch, and its id; asked until one comes.
async fn batch(url: &str) -> (Vec<(i64, i64)>, String) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = http().get(format!("{url}/records?timeout=500")).header("accept", JSON).send().await.unwrap();
        let id = answer.headers().get("millrace-batch").map(|id| id.to_str().unwrap().to_owned());
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{text}");
        if let Some(id) = id {
            let records: Vec<Value> = serde_json::from_str(&text).unwrap();
            let seen = |record: &Value| (record["value"].as_i64().unwrap(), record["attempt"].as_i64().unwrap());
            return (records.iter().map(seen).collect(), id);
        }
        assert!(Instant::now() < deadline, "no batch came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_comes_again_from_the_replica_that_takes_over_and_what_is_does_not() {
    let directory = unique("sessions");
    let variables = [("MILLRACE_OFFSETS__STORE", "kafka"), ("MILLRACE_CONSUME__SESSIONS_TOPIC", directory.as_str())];
    let servers = servers();
    let (first, mut second) = tokio::join!(Bridge::start_with(&servers, &variables), Bridge::start_with(&servers, &variables));
    let mut client = Client::of(&second).await;
    let (topic, group) = (client.create_topic(1).await, unique("group"));
    client.produce(&topic, 0..6).await;
    let more = json!({"delivery": "acknowledged", "visibility.timeout.ms": 60_000});
    create(&format!("http://{}", first.http), &group, "one", &topic, more).await;
    // The other replica is asked, and hands on.
    let url = |client: &Client| format!("{}/consumers/{group}/instances/one", client.base);
    let at = |offset: i64| json!({"topic": topic, "partition": 0, "offset": offset});
    let (seen, early) = batch(&url(&client)).await;
    assert_eq!(seen, (0..6).map(|value| (value, 1)).collect::<Vec<_>>());
    let said =
        client.post(&format!("{}/acknowledgements", url(&client)), V2, &json!({"acknowledge": [at(1), at(3)], "reject": [at(2)]})).await;
    assert_eq!(said, (200, json!({"acknowledged": 2, "rejected": 1, "ignored": []})));
    assert!(metric(&second, "millrace_bridge_forwarded_requests_total").await >= 2.0);

    first.kill().await;
    let (seen, late) = batch(&url(&client)).await;
    assert_eq!(seen, [(0, 2), (2, 2), (4, 2), (5, 2)]);
    assert!(metric(&second, "millrace_bridge_sessions_claimed_total").await >= 1.0);
    let acknowledge =
        async |client: &Client, batch: &str| client.post(&format!("{}/acknowledgements", url(client)), V2, &json!({"batch": batch})).await;
    assert_eq!(acknowledge(&client, &early).await.0, 409, "a batch of the replica that is gone");
    assert_eq!(acknowledge(&client, &late).await, (200, json!({"acknowledged": 4, "rejected": 0, "ignored": []})));

    // A seek is known to whoever goes on.
    assert_eq!(client.post(&format!("{}/positions", url(&client)), V2, &json!({"offsets": [at(4)]})).await.0, 204);
    second = second.kill_and_restart().await;
    client = Client::of(&second).await;
    let (seen, last) = batch(&url(&client)).await;
    assert_eq!(seen, [(4, 1), (5, 1)]);
    assert_eq!(acknowledge(&client, &last).await.0, 200);
    client.delete(&url(&client)).await;
    client.delete_topic(&topic).await;
    client.delete_topic(&directory).await;
    second.stop().await;
}
