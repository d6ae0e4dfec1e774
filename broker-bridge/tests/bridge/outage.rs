//! The only broker dies under load and comes back: nothing that was acknowledged is lost, what has a key is written once, refusals are quick, memory
//! stands still, and writes are soon as fast as before.
//!
//! `OUTAGE_SECONDS=30` keeps it away for so long.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Client, JSON,
    cluster::Cluster,
    eventually,
    honest::resident,
    idempotence::committed,
    process::{Bridge, unique},
};

const REGISTRY: &str = "application/vnd.schemaregistry.v1+json";
const WRITERS: usize = 4;
/// After the broker is back.
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
const GROWTH_MAX: u64 = 64 << 20;
/// A stream without a word for so long has ended.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Load {
    next: AtomicI64,
    acknowledged: Mutex<BTreeSet<i64>>,
    read: Mutex<BTreeSet<i64>>,
    /// By a stream that is opened again whenever it ends.
    pushed: Mutex<BTreeSet<i64>>,
    /// Requests under a key, each repeated until it was answered.
    keyed: AtomicUsize,
    /// Numbers of registered schemas, by the id that was answered.
    schemas: Mutex<BTreeMap<i64, usize>>,
    refused: AtomicUsize,
    slowest_refusal: Mutex<Duration>,
    over: AtomicBool,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    async fn write(&self, client: &Client, topic: &str) -> Option<Duration> {
        let value = self.next.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let body = json!({"records": [{"value": value}]}).to_string();
        let request = client.http.post(format!("{}/topics/{topic}", client.base)).header("content-type", JSON).body(body);
        let answer = timeout(Duration::from_secs(30), request.send()).await.expect("a write is answered, or refused").unwrap();
        let (status, answer) = (answer.status(), answer.json::<Value>().await.unwrap());
        if status == 200 && answer["offsets"][0]["offset"].as_i64().is_some_and(|offset| offset >= 0) {
            self.acknowledged.lock().insert(value);
            return Some(begun.elapsed());
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut slowest = self.slowest_refusal.lock();
        *slowest = begun.elapsed().max(*slowest);
        None
    }

    async fn write_all(self: Arc<Self>, client: Client, topic: String) {
        while self.goes_on() {
            if self.write(&client, &topic).await.is_none() {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn write_keyed(self: Arc<Self>, client: Client, topic: String) {
        while self.goes_on() {
            let value = self.keyed.load(Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_secs(60);
            let body = json!({"records": [{"value": value}]}).to_string();
            loop {
                let request = client.http.post(format!("{}/topics/{topic}", client.base)).header("content-type", JSON).body(body.clone());
                let answer = request.header("idempotency-key", format!("key-{value}")).send().await.unwrap();
                let (status, answer) = (answer.status(), answer.text().await.unwrap());
                if status == 200 {
                    break;
                }
                assert!(status.is_server_error() && Instant::now() < deadline, "{status} {answer}");
                sleep(Duration::from_millis(50)).await;
            }
            self.keyed.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn follow(self: Arc<Self>, client: Client, topic: String) {
        let url = format!("{}/consumers/{}/stream?format=json&auto.offset.reset=earliest&topics={topic}", client.base, unique("push"));
        let mut position = None;
        while self.goes_on() {
            let mut request = client.http.get(&url);
            if let Some(position) = &position {
                request = request.header("last-event-id", position);
            }
            let mut answer = request.send().await.unwrap();
            assert!(answer.status() == 200 || answer.status().is_server_error(), "{}", answer.text().await.unwrap());
            let mut text = String::new();
            while let (200, Ok(Ok(Some(chunk)))) = (answer.status().as_u16(), timeout(PATIENCE, answer.chunk()).await) {
                text.push_str(std::str::from_utf8(&chunk).unwrap());
                while let Some(end) = text.find('\n') {
                    let line: String = text.drain(..=end).collect();
                    if let Some(record) = line.strip_prefix("data: ").and_then(|record| serde_json::from_str::<Value>(record).ok()) {
                        self.pushed.lock().extend(record["value"].as_i64());
                    } else if let Some(id) = line.strip_prefix("id: ") {
                        position = Some(id.trim().to_owned());
                    }
                }
                if !self.goes_on() {
                    return;
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Registers one schema after another, each repeated until it was answered, and asks for all that were.
    async fn register(self: Arc<Self>, client: Client) {
        let schema = |number: usize| json!({"schema": json!({"type": "enum", "name": format!("e{number}"), "symbols": ["A"]}).to_string()});
        let mut number = 0;
        while self.goes_on() {
            let (status, answer) = client.post(&format!("/subjects/s{number}/versions"), REGISTRY, &schema(number)).await;
            if status == 200 {
                let before = self.schemas.lock().insert(answer["id"].as_i64().unwrap(), number);
                assert_eq!(before, None, "{answer} is given twice");
                number += 1;
            } else {
                assert!(status >= 500, "{status} {answer}");
            }
            let known: Vec<(i64, usize)> = self.schemas.lock().iter().map(|(id, number)| (*id, *number)).collect();
            for (id, number) in known.into_iter().rev().take(5) {
                let answer = client.http.get(format!("{}/schemas/ids/{id}", client.base)).send().await.unwrap();
                let (status, answer) = (answer.status(), answer.text().await.unwrap());
                assert!(status.is_server_error() || (status == 200 && answer.contains(&format!("e{number}"))), "{id}: {status} {answer}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn read_all(self: Arc<Self>, client: Client, base: String) {
        while self.goes_on() {
            let request = client.http.get(format!("{base}/records?timeout=500")).header("accept", JSON).send();
            let answer = request.await.unwrap();
            if answer.status() != 200 {
                assert!(answer.status().is_server_error(), "{}", answer.text().await.unwrap());
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            let records: Vec<Value> = answer.json().await.unwrap();
            self.read.lock().extend(records.iter().map(|record| record["value"].as_i64().unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_under_load_and_comes_back_costs_nothing_that_was_acknowledged() {
    let away = Duration::from_secs(std::env::var("OUTAGE_SECONDS").map_or(6, |text| text.parse().expect("OUTAGE_SECONDS is a number")));
    let cluster = Cluster::start(1);
    // So soon is it asked for again whether a topic is there.
    let bridge = Bridge::start_with(&cluster.servers, &[("MILLRACE_TOPICS__METADATA_AGE", "1s")]).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
    let keyed = client.create_topic(1).await;
    let base = client.consumer(&unique("group"), &topic, true).await;
    let load = Arc::new(Load::default());
    let mut before = Vec::new();
    for _ in 0..100 {
        before.push(load.write(&client, &topic).await.expect("a write"));
    }
    before.sort_unstable();
    let usual = before[98];
    let mut tasks = Vec::new();
    for _ in 0..WRITERS {
        tasks.push(tokio::spawn(Arc::clone(&load).write_all(Client::of(&bridge).await, topic.clone())));
    }
    tasks.push(tokio::spawn(Arc::clone(&load).read_all(Client::of(&bridge).await, base.clone())));
    tasks.push(tokio::spawn(Arc::clone(&load).write_keyed(Client::of(&bridge).await, keyed.clone())));
    tasks.push(tokio::spawn(Arc::clone(&load).register(Client::of(&bridge).await)));
    tasks.push(tokio::spawn(Arc::clone(&load).follow(Client::of(&bridge).await, topic.clone())));
    let so_far = || [load.read.lock().len(), load.pushed.lock().len(), load.keyed.load(Ordering::Relaxed), load.schemas.lock().len()];
    let all_go_on = async || {
        let from = so_far();
        let goal = [from[0] + 200, from[1] + 200, from[2] + 10, from[3] + 5];
        // By itself each is awaited, so that a failure names it.
        for (at, what) in
            ["records are read", "records are pushed", "keyed requests are answered", "schemas are registered"].iter().enumerate()
        {
            eventually(what, async || so_far()[at] >= goal[at]).await;
        }
    };
    all_go_on().await;
    let at_first = resident(bridge.pid());

    cluster.broker("kill", 1);
    let killed = Instant::now();
    let mut peak = at_first;
    // A busy machine takes its time to notice.
    while killed.elapsed() < away || load.refused.load(Ordering::Relaxed) <= WRITERS {
        assert!(killed.elapsed() < away + Duration::from_secs(20), "writes are refused while there is no broker");
        peak = peak.max(resident(bridge.pid()));
        assert_eq!(client.http.get(format!("{}/healthy", client.base)).send().await.unwrap().status(), 200);
        sleep(Duration::from_millis(100)).await;
    }
    cluster.broker("restart", 1);
    let back = Instant::now();
    // As fast as before, ten times in a row.
    let mut fast = 0;
    while fast < 10 {
        let took = load.write(&client, &topic).await;
        fast = if took.is_some_and(|took| took < 2 * usual + Duration::from_millis(250)) { fast + 1 } else { 0 };
        assert!(
            back.elapsed() < RECOVERED_WITHIN,
            "not as fast as before ({usual:?}) {:?} after the broker is back: {took:?}",
            back.elapsed()
        );
    }
    all_go_on().await;
    peak = peak.max(resident(bridge.pid()));
    // No more is written; what was acknowledged is read to the last.
    let acknowledged = load.acknowledged.lock().clone();
    eventually("what was acknowledged is read", async || acknowledged.is_subset(&load.read.lock())).await;
    eventually("what was acknowledged is pushed", async || acknowledged.is_subset(&load.pushed.lock())).await;
    load.over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (slowest, grown) = (*load.slowest_refusal.lock(), peak.saturating_sub(at_first));
    // `produce.timeout`, and a busy machine.
    assert!(slowest < Duration::from_secs(8), "a write was refused after {slowest:?}");
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    let found = committed(&cluster.servers, &keyed, 1).await;
    assert_eq!(found.len(), load.keyed.load(Ordering::Relaxed));
    assert!(found.values().all(|places| places.len() == 1), "more than once: {found:?}");
    // Another process reads the same of the registry's topic.
    let fresh = Bridge::start(&cluster.servers).await;
    let schemas = load.schemas.lock().clone();
    for (id, number) in schemas {
        let answer = client.http.get(format!("http://{}/schemas/ids/{id}", fresh.http)).send().await.unwrap().text().await.unwrap();
        assert!(answer.contains(&format!("e{number}")), "{id}: {answer}");
    }
    fresh.stop().await;
    client.delete(&base).await;
    bridge.stop().await;
}
