//! Kafka's own consumer in a group with sessions of the bridge: they share the partitions, and each goes on where another one left off.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    Client, JSON, V2,
    process::{Bridge, servers, text, unique},
};

const PARTITIONS: i64 = 4;
const PATIENCE: Duration = Duration::from_secs(45);
/// The least that a broker takes; so long a killed member keeps its partitions.
const SESSION_TIMEOUT_MS: &str = "6000";

/// What was written, who was given it, and who has said so; times are milliseconds since 1970, as Java's consumer tells them.
#[derive(Default)]
struct Oracle {
    produced: BTreeSet<i64>,
    /// By value.
    given: BTreeMap<i64, Vec<Given>>,
    /// By partition: when, and the next to read.
    acknowledged: BTreeMap<i64, Vec<(u128, i64)>>,
    /// Partitions of Java's consumer.
    java: BTreeSet<i64>,
    /// What it printed beside its events.
    told: String,
}

#[derive(Debug)]
struct Given {
    who: String,
    at: u128,
    partition: i64,
    offset: i64,
}

impl Oracle {
    fn give(&mut self, who: &str, at: u128, record: &Value, value: i64) {
        let number = |field: &str| record[field].as_i64().unwrap();
        let given = Given { who: who.to_owned(), at, partition: number("partition"), offset: number("offset") };
        self.given.entry(value).or_default().push(given);
    }

    /// An event of Java's consumer.
    fn hear(&mut self, event: &Value) {
        let at = u128::from(event["timestamp"].as_u64().unwrap());
        let partitions = || event["partitions"].as_array().into_iter().flatten().map(|one| one["partition"].as_i64().unwrap());
        match event["name"].as_str().unwrap() {
            "partitions_assigned" => self.java.extend(partitions()),
            "partitions_revoked" => self.java.retain(|partition| partitions().all(|revoked| revoked != *partition)),
            "record_data" => self.give("java", at, event, event["value"].as_str().unwrap().parse().unwrap()),
            "offsets_committed" if event["success"] == true => {
                for one in event["offsets"].as_array().unwrap() {
                    let of = self.acknowledged.entry(one["partition"].as_i64().unwrap()).or_default();
                    of.push((at, one["offset"].as_i64().unwrap()));
                }
            }
            _ => {}
        }
    }

    /// Given out although somebody had acknowledged it before.
    fn given_again(&self) -> Vec<&Given> {
        let is_acknowledged = |given: &&Given| {
            let of = self.acknowledged.get(&given.partition).into_iter().flatten();
            of.into_iter().any(|(at, next)| *at < given.at && given.offset < *next)
        };
        self.given.values().flatten().filter(is_acknowledged).collect()
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

#[derive(Clone)]
struct World {
    http: reqwest::Client,
    base: String,
    topic: String,
    group: String,
    oracle: Arc<Mutex<Oracle>>,
}

/// A session that fetches and commits until it is told to go.
struct Session {
    url: String,
    going: Arc<AtomicBool>,
    running: JoinHandle<()>,
}

/// Kafka's `VerifiableConsumer`, which commits what it has told before it asks for more.
struct Java {
    child: Child,
    hearing: JoinHandle<()>,
}

impl World {
    fn produce(&self, going: Arc<AtomicBool>) -> JoinHandle<()> {
        let world = self.clone();
        tokio::spawn(async move {
            let mut next = 0;
            while going.load(Ordering::Relaxed) {
                let values = next..next + 8;
                let record = |value: i64| json!({"value": value, "partition": value % PARTITIONS});
                let body = json!({"records": values.clone().map(record).collect::<Vec<_>>()}).to_string();
                let request = world.http.post(format!("{}/topics/{}", world.base, world.topic)).header("content-type", JSON);
                let answer = request.body(body).send().await.unwrap();
                assert_eq!(answer.status(), 200);
                world.oracle.lock().produced.extend(values);
                next += 8;
                sleep(Duration::from_millis(20)).await;
            }
        })
    }

    async fn session(&self, client: &Client, name: &str) -> Session {
        let config = json!({"name": name, "format": "json", "auto.offset.reset": "earliest", "auto.commit.enable": false});
        let (status, created) = client.post(&format!("/consumers/{}", self.group), V2, &config).await;
        assert_eq!(status, 200, "{created}");
        let url = created["base_uri"].as_str().unwrap().to_owned();
        assert_eq!(client.post(&format!("{url}/subscription"), V2, &json!({"topics": [self.topic]})).await.0, 204);
        let going = Arc::new(AtomicBool::new(true));
        let (world, name, from, until) = (self.clone(), name.to_owned(), url.clone(), Arc::clone(&going));
        let running = tokio::spawn(async move {
            while until.load(Ordering::Relaxed) {
                world.fetch_and_commit(&name, &from).await;
            }
        });
        Session { url, going, running }
    }

    async fn fetch_and_commit(&self, name: &str, url: &str) {
        // It may have been read as early as this.
        let asked = now();
        let answer = self.http.get(format!("{url}/records?timeout=100")).header("accept", JSON).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
        let records: Vec<Value> = answer.json().await.unwrap();
        let mut ends = BTreeMap::new();
        for record in &records {
            self.oracle.lock().give(name, asked, record, record["value"].as_i64().unwrap());
            ends.insert(record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap());
        }
        // One by one: of those that have moved meanwhile, none is taken.
        for (partition, offset) in ends {
            let body = json!({"offsets": [{"topic": self.topic, "partition": partition, "offset": offset}]}).to_string();
            let answer = self.http.post(format!("{url}/offsets")).header("content-type", V2).body(body).send().await.unwrap();
            if answer.status() == 200 {
                self.oracle.lock().acknowledged.entry(partition).or_default().push((now(), offset + 1));
            } else {
                assert_eq!(answer.status(), 409, "{name}: {}", answer.text().await.unwrap());
            }
        }
    }

    /// Of a session.
    async fn assigned(&self, session: &Session) -> BTreeSet<i64> {
        let answer = self.http.get(format!("{}/assignments", session.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.unwrap();
        answer["partitions"].as_array().unwrap().iter().map(|one| one["partition"].as_i64().unwrap()).collect()
    }

    async fn java(&self) -> Java {
        let dev = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/dev");
        let jars = Command::new(format!("{dev}/jars")).args(["kafka", &format!("{dev}/kafka/pom.xml")]).output().await.unwrap();
        assert!(jars.status.success(), "{}", text(&jars));
        let mut child = Command::new("java")
            .args(["-Xmx128m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"])
            .arg(format!("{}/*", String::from_utf8(jars.stdout).unwrap().trim()))
            .args(["org.apache.kafka.tools.VerifiableConsumer", "--verbose", "--reset-policy", "earliest"])
            .args(["--bootstrap-server", &servers(), "--topic", &self.topic, "--group-id", &self.group])
            .args(["--session-timeout", SESSION_TIMEOUT_MS])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut lines, oracle) = (BufReader::new(child.stdout.take().unwrap()).lines(), Arc::clone(&self.oracle));
        let hearing = tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.unwrap() {
                let mut oracle = oracle.lock();
                match serde_json::from_str::<Value>(&line) {
                    Ok(event) => oracle.hear(&event),
                    Err(_) => oracle.told.extend([line.as_str(), "\n"]),
                }
            }
        });
        Java { child, hearing }
    }

    /// Until each member has some of the partitions, and all of them have all.
    async fn divided(&self, sessions: &[&Session], with_java: bool) {
        let begun = Instant::now();
        loop {
            let mut parts = Vec::new();
            for session in sessions {
                parts.push(self.assigned(session).await);
            }
            parts.extend(with_java.then(|| self.oracle.lock().java.clone()));
            let all: BTreeSet<i64> = parts.iter().flatten().copied().collect();
            let count: usize = parts.iter().map(BTreeSet::len).sum();
            if parts.iter().all(|part| !part.is_empty()) && all.len() == count && count == PARTITIONS as usize {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{parts:?} {}", self.oracle.lock().told);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until so many more records were written and given out; gives their values.
    async fn some_more(&self, count: i64) -> std::ops::Range<i64> {
        let from = self.oracle.lock().produced.last().map_or(0, |last| last + 1);
        self.given_out(from..from + count).await;
        from..from + count
    }

    async fn given_out(&self, values: std::ops::Range<i64>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let missing: Vec<i64> = {
                let oracle = self.oracle.lock();
                values.clone().filter(|value| !oracle.given.contains_key(value)).collect()
            };
            if missing.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{} were given to nobody: {missing:?} {}", missing.len(), self.oracle.lock().told);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Each of these went to one member, and every one of `who` got some.
    fn given_once(&self, values: std::ops::Range<i64>, who: &[&str]) {
        let oracle = self.oracle.lock();
        let of = |value: i64| &oracle.given[&value];
        let more: Vec<_> = values.clone().filter(|value| of(*value).len() != 1).map(of).collect();
        assert!(more.is_empty(), "{more:?}");
        let found: BTreeSet<&str> = values.map(|value| of(value)[0].who.as_str()).collect();
        assert_eq!(found, BTreeSet::from_iter(who.iter().copied()));
    }
}

impl Session {
    /// With everything that it was given acknowledged, as far as it was its own.
    async fn leave(self, http: &reqwest::Client) {
        self.going.store(false, Ordering::Relaxed);
        self.running.await.unwrap();
        assert_eq!(http.delete(&self.url).send().await.unwrap().status(), 204);
    }
}

impl Java {
    async fn leave(mut self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        self.child.wait().await.unwrap();
        self.hearing.await.unwrap();
    }

    async fn kill(mut self, oracle: &Mutex<Oracle>) {
        self.child.kill().await.unwrap();
        self.hearing.await.unwrap();
        oracle.lock().java.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_javas_consumer_share_a_group_and_each_record_goes_to_one_of_them() {
    // Offsets are where Java's consumer keeps its own.
    share_a_group("kafka").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_share_it_too_where_sessions_keep_their_offsets_elsewhere() {
    share_a_group("sled").await;
}

async fn share_a_group(store: &str) {
    let bridge = Bridge::start_with(&servers(), &[("MILLRACE_OFFSETS__STORE", store)]).await;
    let client = Client::of(&bridge).await;
    let world = World {
        http: client.http.clone(),
        base: client.base.clone(),
        topic: client.create_topic(PARTITIONS as u32).await,
        group: unique("group"),
        oracle: Arc::default(),
    };
    let producing = Arc::new(AtomicBool::new(true));
    let producer = world.produce(Arc::clone(&producing));

    // Java's consumer comes to two sessions, and leaves again.
    let (one, two) = tokio::join!(world.session(&client, "one"), world.session(&client, "two"));
    world.divided(&[&one, &two], false).await;
    let java = world.java().await;
    world.divided(&[&one, &two], true).await;
    let values = world.some_more(200).await;
    world.given_once(values, &["one", "two", "java"]);
    java.leave().await;
    world.divided(&[&one, &two], false).await;
    let values = world.some_more(100).await;
    world.given_once(values, &["one", "two"]);

    // The sessions leave it alone.
    let java = world.java().await;
    world.divided(&[&one, &two], true).await;
    world.some_more(50).await;
    one.leave(&world.http).await;
    two.leave(&world.http).await;
    world.divided(&[], true).await;
    let values = world.some_more(100).await;
    world.given_once(values, &["java"]);

    // It is killed beside a session.
    let three = world.session(&client, "three").await;
    world.divided(&[&three], true).await;
    world.some_more(50).await;
    java.kill(&world.oracle).await;
    world.divided(&[&three], false).await;
    let values = world.some_more(50).await;
    world.given_once(values, &["three"]);

    producing.store(false, Ordering::Relaxed);
    producer.await.unwrap();
    let end = world.oracle.lock().produced.last().unwrap() + 1;
    world.given_out(0..end).await;
    three.leave(&world.http).await;
    {
        let oracle = world.oracle.lock();
        let again = oracle.given_again();
        assert!(again.is_empty(), "given out after an acknowledgement: {again:?}");
    }
    client.delete_topic(&world.topic).await;
    bridge.stop().await;
}
