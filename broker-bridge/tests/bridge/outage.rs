//! The only broker dies under load and comes back: nothing that was acknowledged is lost, refusals are quick, memory stands still, and writes are soon
//! as fast as before.
//!
//! `OUTAGE_SECONDS=30` keeps it away for so long.

use std::{
    collections::BTreeSet,
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
    honest::resident,
    process::{Bridge, unique},
};

const WRITERS: usize = 4;
/// After the broker is back.
const RECOVERED_WITHIN: Duration = Duration::from_secs(10);
const GROWTH_MAX: u64 = 64 << 20;

#[derive(Default)]
struct Load {
    next: AtomicI64,
    acknowledged: Mutex<BTreeSet<i64>>,
    read: Mutex<BTreeSet<i64>>,
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

#[allow(clippy::print_stderr)] // figures
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_dies_under_load_and_comes_back_costs_nothing_that_was_acknowledged() {
    let away = Duration::from_secs(std::env::var("OUTAGE_SECONDS").map_or(6, |text| text.parse().expect("OUTAGE_SECONDS is a number")));
    let cluster = Cluster::start(1);
    let bridge = Bridge::start(&cluster.servers).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(2).await;
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
    let has_read = async |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while load.read.lock().len() < count {
            assert!(Instant::now() < deadline, "{} of {count} are read", load.read.lock().len());
            sleep(Duration::from_millis(50)).await;
        }
    };
    has_read(200).await;
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
    let recovered = back.elapsed();
    let then = load.read.lock().len();
    has_read(then + 200).await;
    peak = peak.max(resident(bridge.pid()));
    // No more is written; what was acknowledged is read to the last.
    let (acknowledged, deadline) = (load.acknowledged.lock().clone(), Instant::now() + Duration::from_secs(60));
    loop {
        let missing = acknowledged.difference(&load.read.lock()).count();
        if missing == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{missing} of {} acknowledged records are not delivered", acknowledged.len());
        sleep(Duration::from_millis(50)).await;
    }
    load.over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let (slowest, grown) = (*load.slowest_refusal.lock(), peak.saturating_sub(at_first));
    eprintln!(
        "{} acknowledged, {} refused in {slowest:?} at most; as before {recovered:?} after the broker was back; {} MiB more",
        acknowledged.len(),
        load.refused.load(Ordering::Relaxed),
        grown >> 20
    );
    // `produce.timeout`, and a busy machine.
    assert!(slowest < Duration::from_secs(8), "a write was refused after {slowest:?}");
    assert!(grown < GROWTH_MAX, "{} MiB more than before", grown >> 20);
    client.delete(&base).await;
    bridge.stop().await;
}
