//! Batches that are given again until they are acknowledged: on a real broker, over kills, and with several consumers in a group.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use proto::data::v1::{Ack, Record, Redelivery, Reject, Subscribe, consume_request::Request};
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;

use crate::{
    Client, JSON, V2, message,
    process::{Bridge, servers, unique},
    subscribed,
};

/// One answer: its text, its batch, and whether windows are full.
struct Answer {
    text: String,
    batch: Option<String>,
    full: Option<String>,
}

impl Answer {
    fn records(&self) -> Vec<Value> {
        serde_json::from_str(&self.text).unwrap()
    }

    /// Value and attempt of each.
    fn seen(&self) -> Vec<(i64, i64)> {
        self.records().iter().map(|record| (record["value"].as_i64().unwrap(), record["attempt"].as_i64().unwrap())).collect()
    }
}

async fn create(client: &Client, group: &str, topic: &str, settings: Value) -> String {
    let mut config = json!({"format": "json", "auto.offset.reset": "earliest", "delivery": "acknowledged"});
    config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    let (status, created) = client.post(&format!("/consumers/{group}"), V2, &config).await;
    assert_eq!(status, 200, "{created}");
    let base = created["base_uri"].as_str().unwrap().to_owned();
    assert_eq!(client.post(&format!("{base}/subscription"), V2, &json!({"topics": [topic]})).await.0, 204);
    base
}

async fn ask(client: &Client, base: &str, query: &str) -> Answer {
    let response = client.http.get(format!("{base}/records?timeout=500{query}")).header("accept", JSON).send().await.unwrap();
    let status = response.status();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (batch, full) = (header("millrace-batch"), header("millrace-window-full"));
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{text}");
    Answer { text, batch, full }
}

/// Asked until something comes.
async fn fetch(client: &Client, base: &str) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = ask(client, base, "").await;
        if answer.batch.is_some() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no records came");
    }
}

async fn say(client: &Client, base: &str, body: &Value) -> Value {
    let (status, answer) = client.post(&format!("{base}/acknowledgements"), V2, body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

fn place(topic: &str, offset: i64) -> Value {
    json!({"topic": topic, "partition": 0, "offset": offset})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forgotten_comes_again_when_its_time_is_over() {
    const VISIBILITY: Duration = Duration::from_secs(1);
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let topic = client.create_topic(1).await;
    client.produce(&topic, 0..3).await;
    let visibility = u64::try_from(VISIBILITY.as_millis()).unwrap();
    let base = create(&client, &unique("group"), &topic, json!({"visibility.timeout.ms": visibility})).await;
    // Before the request that got the last attempt.
    let mut asked = Instant::now();
    let mut attempts = 0;
    while attempts < 3 {
        let now = Instant::now();
        let answer = ask(&client, &base, "").await;
        let Some(attempt) = answer.seen().first().map(|(_, attempt)| *attempt) else { continue };
        assert_eq!(answer.seen(), (0..3).map(|value| (value, attempt)).collect::<Vec<_>>());
        // The same until then; each attempt in its turn, however slow this test is.
        if attempt > attempts {
            assert!(attempt == attempts + 1 || asked.elapsed() >= 2 * VISIBILITY, "attempt {attempt} after {attempts}");
            assert!(attempts == 0 || asked.elapsed() >= VISIBILITY, "again after {:?}", asked.elapsed());
            (attempts, asked) = (attempt, now);
        }
    }
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_never_comes_again_and_the_rest_does_until_it_is_a_dead_letter() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let (topic, dead, group) = (client.create_topic(1).await, client.create_topic(1).await, unique("group"));
    client.produce(&topic, 0..5).await;
    // Longer than the test: nothing comes again for its time.
    let settings = json!({"visibility.timeout.ms": 120_000, "delivery.attempts.max": 3, "dead.letter.topic": dead});
    let base = create(&client, &group, &topic, settings).await;

    // The same again, byte for byte.
    let first = fetch(&client, &base).await;
    assert_eq!(first.seen(), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]);
    let again = ask(&client, &base, "&max_bytes=10").await;
    assert_eq!((&again.text, &again.batch), (&first.text, &first.batch));
    // 0 and 3 are done, 1 is rejected; 2 and 4 are forgotten.
    let said = say(&client, &base, &json!({"acknowledge": [place(&topic, 0), place(&topic, 3)], "reject": [place(&topic, 1)]})).await;
    assert_eq!(said, json!({"acknowledged": 2, "rejected": 1, "ignored": []}));
    let rejected = fetch(&client, &base).await;
    assert_eq!(rejected.seen(), [(1, 2)]);
    assert_eq!(say(&client, &base, &json!({"batch": rejected.batch})).await["acknowledged"], 1);

    // Killed: the instance goes on, 0, 1 and 3 do not come again, and the attempts are counted on.
    let bridge = bridge.kill_and_restart().await;
    let client = Client::of(&bridge).await;
    let base = base.replace(&base[..base.find("/consumers").unwrap()], &client.base);
    let second = fetch(&client, &base).await;
    assert_eq!(second.seen(), [(2, 2), (4, 2)]);
    let refused =
        client.http.get(format!("{base}/records?acknowledge={}", first.batch.unwrap())).header("accept", JSON).send().await.unwrap();
    assert_eq!(refused.status(), 409, "a batch of before the kill");
    say(&client, &base, &json!({"reject": [place(&topic, 2), place(&topic, 4)]})).await;
    assert_eq!(fetch(&client, &base).await.seen(), [(2, 3), (4, 3)]);
    // 4 is done, 2 had its attempts.
    say(
        &client,
        &base,
        &json!({"acknowledge": [place(&topic, 4)], "reject": [{"topic": topic, "partition": 0, "offset": 2, "reason": "odd"}]}),
    )
    .await;
    client.produce(&topic, 5..6).await;
    let last = fetch(&client, &base).await;
    assert_eq!(last.seen(), [(5, 1)]);
    let nothing = ask(&client, &base, &format!("&acknowledge={}", last.batch.unwrap())).await;
    assert_eq!((nothing.text.as_str(), nothing.batch), ("[]", None));

    let reader = client.consumer(&unique("group"), &dead, true).await;
    let letters = client.fetch(&reader).await;
    assert_eq!((letters.len(), &letters[0]["value"], &letters[0]["key"]), (1, &json!(2), &json!(2)));
    let decoded = |name: &str| {
        use base64::Engine as _;
        let headers = letters[0]["headers"].as_array().unwrap();
        let header = headers.iter().find(|header| header["key"] == format!("millrace.dead-letter.{name}")).unwrap();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(header["value"].as_str().unwrap()).unwrap()).unwrap()
    };
    let found = ["topic", "partition", "offset", "group", "attempts", "reason"].map(decoded);
    assert_eq!(found, [&topic, "0", "2", &group, "3", "rejected: odd"]);
    client.delete(&reader).await;

    // Everything is acknowledged or a dead letter: the group has no lag, in the store and in Kafka.
    let offsets = client.http.get(format!("{base}/offsets")).send().await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(offsets["offsets"][0]["offset"], 6, "{offsets}");
    let kafka = service_kit::kafka::admin(&service_kit::kafka::KafkaConfig::new(servers())).await.unwrap();
    let copy = kafka.committed(&group, None).await.unwrap();
    assert_eq!(copy.values().map(|(offset, _)| *offset).collect::<Vec<_>>(), [6]);
    client.delete(&base).await;
    for topic in [&topic, &dead] {
        client.delete_topic(topic).await;
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_never_acknowledged_bounds_its_partition_and_no_other() {
    let bridge = Bridge::start_with(&servers(), &[("MILLRACE_CONSUME__WINDOW_RECORDS_MAX", "10")]).await;
    let client = Client::of(&bridge).await;
    let (topic, group) = (client.create_topic(2).await, unique("group"));
    for (partition, count) in [(0, 30), (1, 5)] {
        let records: Vec<Value> = (0..count).map(|value| json!({"value": value, "partition": partition})).collect();
        assert_eq!(client.post(&format!("/topics/{topic}"), JSON, &json!({"records": records})).await.0, 200);
    }
    let base = create(&client, &group, &topic, json!({"visibility.timeout.ms": 1_000})).await;
    let (mut seen, mut poison, mut full) = (BTreeSet::new(), 0, false);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut last = None;
    while poison < 3 || seen.len() < 14 {
        assert!(Instant::now() < deadline, "{poison} {seen:?}");
        let answer = ask(&client, &base, "").await;
        full |= answer.full.as_deref() == Some(&format!("{topic}-0"));
        // Of a batch that holds nothing else, nothing is said: it is given again.
        if answer.batch.is_some() && answer.batch == last {
            continue;
        }
        last.clone_from(&answer.batch);
        let mut done = Vec::new();
        for record in answer.records() {
            let (partition, offset) = (record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap());
            if (partition, offset) == (0, 0) {
                poison += 1;
                assert_eq!(record["attempt"], poison);
                continue;
            }
            assert!(seen.insert((partition, offset)), "{record} was acknowledged");
            done.push(json!({"topic": topic, "partition": partition, "offset": offset}));
        }
        if !done.is_empty() {
            say(&client, &base, &json!({"acknowledge": done})).await;
        }
    }
    assert!(full, "it was said");
    assert_eq!(seen.iter().filter(|(partition, _)| *partition == 0).count(), 9, "the window, but for its lowest");
    let metrics = client.http.get(format!("{}/metrics", client.base)).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("millrace_bridge_window_records 10") && metrics.contains("millrace_bridge_full_window_answers_total"),
        "{metrics}"
    );
    // It is done with: the partition goes on.
    say(&client, &base, &json!({"acknowledge": [place(&topic, 0)]})).await;
    while seen.len() < 34 {
        assert!(Instant::now() < deadline, "{seen:?}");
        let answer = ask(&client, &base, "").await;
        for record in answer.records() {
            assert!(seen.insert((record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap())), "{record}");
        }
        if let Some(batch) = answer.batch {
            say(&client, &base, &json!({"batch": batch})).await;
        }
    }
    client.delete(&base).await;
    client.delete_topic(&topic).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_takes_the_window_along() {
    let variables = [("MILLRACE_OFFSETS__STORE", "kafka")];
    let broker = servers();
    let (one, other) = tokio::join!(Bridge::start_with(&broker, &variables), Bridge::start_with(&broker, &variables));
    let (first, second) = (Client::of(&one).await, Client::of(&other).await);
    let (topic, group) = (first.create_topic(2).await, unique("group"));
    for partition in 0..2 {
        let records: Vec<Value> = (0..20).map(|value| json!({"value": value, "partition": partition})).collect();
        assert_eq!(first.post(&format!("/topics/{topic}"), JSON, &json!({"records": records})).await.0, 200);
    }
    let settings = json!({"visibility.timeout.ms": 60_000});
    let base = create(&first, &group, &topic, settings.clone()).await;
    let mut attempts = std::collections::BTreeMap::new();
    let mut done = BTreeSet::new();
    let key = |record: &Value| (record["partition"].as_i64().unwrap(), record["offset"].as_i64().unwrap());
    // About every second record of all forty is acknowledged.
    let mut count = 0;
    while count < 40 {
        let answer = fetch(&first, &base).await;
        let records = answer.records();
        count += records.len();
        for record in &records {
            attempts.insert(key(record), record["attempt"].as_i64().unwrap());
        }
        // One of each batch at least, or it would be given again.
        let some: Vec<(i64, i64)> =
            records.iter().map(key).enumerate().filter(|(at, (_, offset))| *at == 0 || offset % 2 == 1).map(|(_, key)| key).collect();
        let places: Vec<Value> =
            some.iter().map(|(partition, offset)| json!({"topic": topic, "partition": partition, "offset": offset})).collect();
        assert_eq!(say(&first, &base, &json!({"acknowledge": places})).await["ignored"], json!([]));
        done.extend(some);
    }
    // A member on another bridge gets one of the partitions, and goes on with its window.
    let joined = create(&second, &group, &topic, settings).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let out = |of: i64| attempts.keys().filter(|key| key.0 == of && !done.contains(*key)).copied().collect::<BTreeSet<_>>();
    let mut moved: BTreeSet<(i64, i64)> = BTreeSet::new();
    while moved.is_empty() || (moved != out(0) && moved != out(1)) {
        assert!(Instant::now() < deadline, "{moved:?}");
        // The first one must take part in the rebalance.
        let (kept, answer) = tokio::join!(ask(&first, &base, ""), ask(&second, &joined, ""));
        assert_eq!(kept.records().len(), 0, "its own are still out");
        for record in answer.records() {
            assert!(!done.contains(&key(&record)), "{record} was acknowledged");
            assert_eq!(record["attempt"].as_i64(), attempts.get(&key(&record)).map(|attempt| attempt + 1), "{record}");
            moved.insert(key(&record));
        }
        if let Some(batch) = answer.batch {
            say(&second, &joined, &json!({"batch": batch})).await;
        }
    }
    // What the first one had out of the partition that went is not its own any more.
    let (partition, offset) = *moved.first().unwrap();
    let said = say(&first, &base, &json!({"reject": [{"topic": topic, "partition": partition, "offset": offset}]})).await;
    assert_eq!(said["ignored"].as_array().unwrap().len(), 1);
    first.delete(&base).await;
    second.delete(&joined).await;
    first.delete_topic(&topic).await;
    tokio::join!(one.stop(), other.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_stream_sends_again_what_is_rejected_or_forgotten() {
    let bridge = Bridge::start(&servers()).await;
    let client = Client::of(&bridge).await;
    let (topic, dead, group) = (client.create_topic(1).await, client.create_topic(1).await, unique("group"));
    client.produce(&topic, 0..4).await;
    let subscribe = |redelivery: Redelivery| Subscribe {
        group: group.clone(),
        topics: vec![topic.clone()],
        auto_offset_reset: "earliest".into(),
        credit: 1_000,
        redelivery: Some(redelivery),
        ..Subscribe::default()
    };
    for (wrong, told) in [
        (Redelivery { attempts_max: 2, ..Redelivery::default() }, "dead.letter.topic"),
        (Redelivery { visibility_timeout_ms: 99_999_999, ..Redelivery::default() }, "consume.session_idle"),
    ] {
        let (_requests, mut batches) = subscribed(&client, subscribe(wrong)).await;
        let refused = batches.next().await.unwrap().unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains(told), "{refused}");
    }

    let (requests, mut batches) =
        subscribed(&client, subscribe(Redelivery { visibility_timeout_ms: 2_000, attempts_max: 5, dead_letter_topic: dead.clone() })).await;
    let mut seen: Vec<(i64, u32)> = Vec::new();
    let mut last = 0;
    let mut read = async |seen: &mut Vec<(i64, u32)>, until: usize| {
        while seen.len() < until {
            let batch = batches.next().await.unwrap().unwrap();
            last = batch.batch;
            seen.extend(batch.records.iter().map(|record: &Record| (record.offset, record.attempt)));
        }
        last
    };
    // One is rejected until it has had its attempts; the batch is acked as a whole without it.
    let first = read(&mut seen, 4).await;
    assert_eq!(seen, [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let reject = Reject { topic: topic.clone(), partition: 0, offset: 2, delay_ms: 0, reason: "odd".into() };
    requests.send(message(Request::Reject(reject.clone()))).await.unwrap();
    requests.send(message(Request::Ack(Ack { batch: first }))).await.unwrap();
    for attempt in 2..=5 {
        let count = seen.len() + 1;
        read(&mut seen, count).await;
        assert_eq!(seen.last(), Some(&(2, attempt)));
        requests.send(message(Request::Reject(reject.clone()))).await.unwrap();
    }
    // One is forgotten: it is sent again when its time is over.
    client.produce(&topic, 4..5).await;
    assert!(read(&mut seen, 10).await > first);
    assert_eq!(seen[8..], [(4, 1), (4, 2)]);
    // The stream ends: what it has not acked is the next one's.
    drop(requests);
    while let Some(Ok(batch)) = batches.next().await {
        seen.extend(batch.records.iter().map(|record| (record.offset, record.attempt)));
    }
    let attempts = seen.last().unwrap().1;
    let (_requests, mut batches) = subscribed(&client, subscribe(Redelivery::default())).await;
    let rest = batches.next().await.unwrap().unwrap().records;
    assert_eq!(rest.iter().map(|record| (record.offset, record.attempt)).collect::<Vec<_>>(), [(4, attempts + 1)]);
    let reader = client.consumer(&unique("group"), &dead, true).await;
    assert_eq!(client.fetch_values(&reader, 1).await, [2]);
    for topic in [&topic, &dead] {
        client.delete_topic(topic).await;
    }
    bridge.stop().await;
}
