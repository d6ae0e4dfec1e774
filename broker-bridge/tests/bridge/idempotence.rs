//! Requests under a key: once, whichever bridge they come to, whoever is killed meanwhile, and after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::StreamExt as _;
use parking_lot::Mutex;
use proto::data::v1::{ProduceRequest, Record};
use serde_json::{Value, json};
use service_kit::kafka::{self, Isolation, KafkaConfig, TopicPartition};
use tokio::time::{Instant, sleep};

use crate::{
    Client, JSON,
    process::{Bridge, servers, unique},
};

/// What a reader at `read_committed` finds: value → where, for every time it is there.
pub(crate) async fn committed(servers: &str, topic: &str, partitions: i32) -> BTreeMap<String, Vec<(i32, i64)>> {
    let reader = kafka::range_reader(&KafkaConfig::new(servers), Isolation::ReadCommitted).await.unwrap();
    let admin = kafka::admin(&KafkaConfig::new(servers)).await.unwrap();
    let mut found: BTreeMap<String, Vec<(i32, i64)>> = BTreeMap::new();
    for partition in 0..partitions {
        let of = TopicPartition::new(topic, partition);
        let end = admin.bounds(std::slice::from_ref(&of)).await.unwrap()[&of].latest;
        let deadline = Instant::now() + Duration::from_secs(30);
        // What a killed bridge left open ends in time.
        while reader.bounds(std::slice::from_ref(&of)).await.unwrap()[&of].latest < end {
            assert!(Instant::now() < deadline, "{of}: a transaction is open still");
            sleep(Duration::from_millis(50)).await;
        }
        let mut chunks = reader.read(of, 0, end);
        while let Some(chunk) = chunks.next().await {
            for record in chunk.unwrap() {
                let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
                // Embedded JSON.
                found.entry(value.trim_matches('"').to_owned()).or_default().push((partition, record.offset));
            }
        }
    }
    found
}

/// One request under a key with two records; where they are, and whether an earlier request wrote them.
async fn keyed(http: &reqwest::Client, base: &str, topic: &str, key: &str) -> Result<(Vec<(i32, i64)>, bool), String> {
    let body = json!({"records": [{"value": format!("{key} first")}, {"value": format!("{key} second")}]}).to_string();
    let request = http.post(format!("{base}/topics/{topic}")).header("content-type", JSON).header("idempotency-key", key).body(body);
    let response = request.send().await.map_err(|error| error.to_string())?;
    let replayed = response.headers().contains_key("idempotency-replayed");
    let status = response.status();
    let text = response.text().await.map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    let place = |one: &Value| Some((i32::try_from(one["partition"].as_i64()?).ok()?, one["offset"].as_i64()?));
    let places: Option<Vec<_>> = answer["offsets"].as_array().and_then(|all| all.iter().map(place).collect());
    match places {
        Some(places) if status == 200 => Ok((places, replayed)),
        _ => Err(format!("{status} {answer}")),
    }
}

/// Repeats a request, as its answer says, until it is known what became of it.
async fn persist(http: &reqwest::Client, base: &str, topic: &str, key: &str) -> (Vec<(i32, i64)>, bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match keyed(http, base, topic, key).await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.contains("repeat") && Instant::now() < deadline, "{key}: {error}"),
        }
    }
}

/// Each key's two records are there once, where its answer says.
fn check(found: &BTreeMap<String, Vec<(i32, i64)>>, answers: &BTreeMap<String, Vec<(i32, i64)>>) {
    let twice: Vec<_> = found.iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(twice.is_empty(), "more than once: {twice:?}");
    for (key, places) in answers {
        for (which, place) in ["first", "second"].into_iter().zip(places) {
            assert_eq!(found.get(&format!("{key} {which}")), Some(&vec![*place]), "{key} {which}");
        }
    }
    assert_eq!(found.len(), answers.len() * 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_sent_to_two_bridges_at_once_is_written_once_and_known_after_a_restart_until_its_window_ends() {
    let window = unique("keys");
    let variables = [("MILLRACE_PRODUCE__DEDUP_TOPIC", window.as_str()), ("MILLRACE_PRODUCE__DEDUP_AGE", "60s")];
    let bridges = [Bridge::start_with(&servers(), &variables).await, Bridge::start_with(&servers(), &variables).await];
    let client = Client::of(&bridges[0]).await;
    let topic = client.create_topic(2).await;
    let bases = [client.base.clone(), format!("http://{}", bridges[1].http)];

    let both = |key: usize| {
        let (http, bases, topic) = (client.http.clone(), bases.clone(), topic.clone());
        async move {
            let key = format!("key-{key}");
            let both = tokio::join!(persist(&http, &bases[0], &topic, &key), persist(&http, &bases[1], &topic, &key));
            (key, both.0, both.1)
        }
    };
    let mut answers = BTreeMap::new();
    let mut pairs = futures::stream::iter((0..200).map(both)).buffer_unordered(25);
    while let Some((key, first, second)) = pairs.next().await {
        assert_eq!(first.0, second.0, "{key}");
        assert!(first.1 || second.1, "{key}: only one of them has written it: {first:?} {second:?}");
        answers.insert(key, first.0);
    }
    check(&committed(&servers(), &topic, 2).await, &answers);

    // The same by gRPC, and an empty batch; another one under a known key is refused.
    let other = Client::of(&bridges[1]).await;
    let batch = |id: &str, count: usize| ProduceRequest {
        topic: topic.clone(),
        records: (0..count).map(|number| Record { value: Some(format!("{id} {number}").into()), ..Record::default() }).collect(),
        batch_id: id.to_owned(),
        encoding: None,
    };
    for (id, count) in [("grpc", 3), ("none", 0)] {
        let first = client.data().produce(batch(id, count)).await.unwrap().into_inner();
        let second = other.data().produce(batch(id, count)).await.unwrap().into_inner();
        assert!(!first.replayed && second.replayed && first.results == second.results && first.results.len() == count, "{second:?}");
    }
    let refused = other.data().produce(batch("grpc", 2)).await.unwrap_err();
    assert!(refused.message().contains("its own id"), "{refused}");

    // One record that cannot be written: the request is not, and the key is free.
    let bad = json!({"records": [{"value": "good"}, {"value": "bad", "partition": 7}]}).to_string();
    let request = client.http.post(format!("{}/topics/{topic}", bases[0])).header("content-type", JSON).header("idempotency-key", "bad");
    let answer: Value = request.body(bad).send().await.unwrap().json().await.unwrap();
    let codes: Vec<_> = answer["offsets"].as_array().unwrap().iter().map(|one| one["error_code"].as_u64()).collect();
    assert_eq!(codes, [Some(40402); 2], "{answer}");
    assert!(!keyed(&client.http, &bases[0], &topic, "bad").await.unwrap().1);

    // Known after a restart, of the bridge that wrote it or another one, by all.
    let [first, second] = bridges;
    let (first, second) = (first.stop_and_restart().await, second.kill_and_restart().await);
    let again = [format!("http://{}", first.http), format!("http://{}", second.http)];
    let fresh = "fresh".to_owned();
    answers.insert(fresh.clone(), keyed(&client.http, &again[0], &topic, &fresh).await.unwrap().0);
    for base in &again {
        assert_eq!(keyed(&client.http, base, &topic, &fresh).await.unwrap(), (answers[&fresh].clone(), true));
    }
    assert_eq!(keyed(&client.http, &again[1], &topic, "key-0").await.unwrap(), (answers["key-0"].clone(), true));
    let metrics = client.http.get(format!("{}/metrics", again[1])).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("millrace_bridge_dedup_replayed_total") && metrics.contains("millrace_bridge_keyed_requests 0"), "{metrics}");

    // And new when its window is over.
    let short = unique("keys");
    let variables = [("MILLRACE_PRODUCE__DEDUP_TOPIC", short.as_str()), ("MILLRACE_PRODUCE__DEDUP_AGE", "2s")];
    let third = Bridge::start_with(&servers(), &variables).await;
    let base = format!("http://{}", third.http);
    let once = keyed(&client.http, &base, &topic, "aged").await.unwrap();
    let written = Instant::now();
    assert_eq!(keyed(&client.http, &base, &topic, "aged").await.unwrap(), (once.0.clone(), true));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (places, replayed) = keyed(&client.http, &base, &topic, "aged").await.unwrap();
        if !replayed {
            assert!(places != once.0 && written.elapsed() > Duration::from_millis(1_500), "{:?}", written.elapsed());
            break;
        }
        assert!(Instant::now() < deadline, "a key is known for ever");
        sleep(Duration::from_millis(50)).await;
    }

    // Topics that somebody deletes are made again; what they knew is lost.
    let client = Client::of(&first).await;
    for name in [&short, &format!("{short}_claims")] {
        client.delete_topic(name).await;
    }
    assert!(!persist(&client.http, &base, &topic, "later").await.1);
    assert!(persist(&client.http, &base, &topic, "later").await.1);

    for name in [&topic, &window, &format!("{window}_claims"), &short, &format!("{short}_claims")] {
        client.delete_topic(name).await;
    }
    third.stop().await;
    second.stop().await;
    first.stop().await;
}

/// So long clients write while bridges are killed, at least; and until so many keys are answered after so many kills, whatever else the machine does.
const UNDER_FIRE: Duration = Duration::from_secs(10);
const KILLS_MIN: usize = 3;
const KEYS_MIN: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_is_written_once_while_bridges_are_killed_and_clients_repeat_at_the_other() {
    let window = unique("keys");
    let variables = [("MILLRACE_PRODUCE__DEDUP_TOPIC", window.as_str()), ("MILLRACE_PRODUCE__DEDUP_LEASE", "1s")];
    let mut bridges = vec![Bridge::start_with(&servers(), &variables).await, Bridge::start_with(&servers(), &variables).await];
    let client = Client::of(&bridges[0]).await;
    let topic = client.create_topic(2).await;
    let bases: Arc<Mutex<Vec<String>>> = Arc::new(Mutex::new(bridges.iter().map(|bridge| format!("http://{}", bridge.http)).collect()));

    let begun = Instant::now();
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers = (0..16).map(|writer| {
        let (bases, topic, over, answered) = (Arc::clone(&bases), topic.clone(), Arc::clone(&over), Arc::clone(&answered));
        tokio::spawn(async move {
            let http = reqwest::Client::builder().timeout(Duration::from_secs(3)).build().unwrap();
            let mut answers = Vec::new();
            for number in 0.. {
                let key = format!("{writer}-{number}");
                for attempt in 0.. {
                    let base = bases.lock()[(writer + number + attempt) % 2].clone();
                    match keyed(&http, &base, &topic, &key).await {
                        Ok((places, _)) => {
                            // Once more at the other one: the answer is the same.
                            let other = bases.lock()[(writer + number + attempt + 1) % 2].clone();
                            if let Ok(again) = keyed(&http, &other, &topic, &key).await {
                                assert_eq!(again, (places.clone(), true), "{key}");
                            }
                            answers.push((key, places));
                            answered.fetch_add(1, Ordering::Relaxed);
                            break;
                        }
                        Err(error) => {
                            assert!(begun.elapsed() < Duration::from_secs(90), "{key} is not written: {error}");
                            sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
            answers
        })
    });
    let writers: Vec<_> = writers.collect();
    // Any moment of a request may be the last one of a bridge.
    let mut kills = 0;
    while begun.elapsed() < UNDER_FIRE || kills < KILLS_MIN || answered.load(Ordering::Relaxed) < KEYS_MIN {
        assert!(begun.elapsed() < Duration::from_secs(60), "{kills} kills, {answered:?} keys");
        let random = u64::try_from(uuid::Uuid::new_v4().as_u128() % 1_000).unwrap();
        sleep(Duration::from_millis(300 + random)).await;
        let which = kills % 2;
        let killed = bridges.remove(which).kill_and_restart().await;
        bases.lock()[which] = format!("http://{}", killed.http);
        bridges.insert(which, killed);
        kills += 1;
    }
    over.store(true, Ordering::Relaxed);
    let mut answers = BTreeMap::new();
    for writer in writers {
        answers.extend(writer.await.unwrap());
    }
    let places: BTreeSet<_> = answers.values().flatten().collect();
    assert_eq!(places.len(), answers.len() * 2, "no two keys in one place");
    check(&committed(&servers(), &topic, 2).await, &answers);

    let client = Client::of(&bridges[0]).await;
    for name in [&topic, &window, &format!("{window}_claims")] {
        client.delete_topic(name).await;
    }
    for bridge in bridges {
        bridge.stop().await;
    }
}
