use std::collections::BTreeMap;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::testing::{self, FakeKafka};

fn config(lease: Duration) -> config::Produce {
    config::Produce { dedup_lease: lease, dedup_partitions: 2, ..config::Produce::default() }
}

const LEASE: Duration = Duration::from_millis(200);

fn records(values: &[&str]) -> Vec<OutRecord> {
    let record = |value: &&str| OutRecord {
        topic: "t".into(),
        partition: None,
        key: None,
        value: Some((*value).to_owned().into()),
        headers: vec![],
        timestamp_ms: None,
    };
    values.iter().map(record).collect()
}

async fn send(keyed: &Keyed, key: &str, values: &[&str]) -> Result<Receipt> {
    let records = records(values);
    keyed.send(key, &fingerprint(&records), records).await
}

fn offsets(receipt: &Receipt) -> Vec<i64> {
    receipt.results.iter().map(|result| result.as_ref().unwrap().offset).collect()
}

/// What another replica says: claims `key` and dies.
async fn claim_and_die(kafka: &FakeKafka, replica: &str, key: &str) -> i64 {
    let log = Log::open(&config(LEASE), &(Arc::new(kafka.clone()) as Arc<dyn Broker>)).await.unwrap();
    let partition = record::partition_of(key.as_bytes(), 2);
    log.load().await.unwrap();
    let claim = Claim { replica: replica.into(), lanes: 2, seen: log.table(|table| table.next(true, partition)) };
    log.claim(&Bytes::copy_from_slice(key.as_bytes()), partition, claim).await.unwrap()
}

#[test]
fn whoever_fenced_the_writer_the_request_may_be_repeated() {
    let refused = not_written(KafkaError::Fenced("InvalidProducerEpoch".into()));
    assert!(refused.code == Code::KafkaRetriable && refused.retryable() && refused.message.contains("repeat"), "{refused}");
}

#[tokio::test]
async fn every_replica_gives_the_first_answer_also_after_its_restart() {
    let kafka = FakeKafka::with_topic("t", 1);
    let (a, b) = (testing::keyed(&kafka, "a", &config(LEASE)), testing::keyed(&kafka, "b", &config(LEASE)));
    let first = send(&a, "k", &["x", "y"]).await.unwrap();
    assert_eq!((offsets(&first), first.replayed), (vec![0, 1], false));
    for again in [&a, &b, &testing::keyed(&kafka, "a", &config(LEASE)), &testing::keyed(&kafka, "c", &config(LEASE))] {
        let again = send(again, "k", &["x", "y"]).await.unwrap();
        assert_eq!((offsets(&again), again.replayed), (vec![0, 1], true));
    }
    let other = send(&b, "k", &["z"]).await.unwrap_err();
    assert!(
        other.code == Code::Unprocessable && other.message.contains("this batch id, or Idempotency-Key, was used for other records"),
        "{other}"
    );
    send(&b, "l", &["z"]).await.unwrap();
    assert_eq!(kafka.committed_values("t"), ["x", "y", "z"]);
}

#[tokio::test]
async fn requests_of_several_replicas_at_once_are_one() {
    let kafka = FakeKafka::with_topic("t", 1);
    let replicas: Vec<Keyed> = ["a", "b", "c"].map(|name| testing::keyed(&kafka, name, &config(LEASE))).into();
    let requests = (0..60).map(|number| {
        let (keyed, key) = (replicas[number % 3].clone(), format!("k{}", number / 6));
        tokio::spawn(async move { (key.clone(), send(&keyed, &key, &[&key]).await.unwrap()) })
    });
    let mut answers: BTreeMap<String, Vec<Vec<i64>>> = BTreeMap::new();
    let mut written = 0;
    for request in requests.collect::<Vec<_>>() {
        let (key, receipt) = request.await.unwrap();
        written += usize::from(!receipt.replayed);
        answers.entry(key).or_default().push(offsets(&receipt));
    }
    assert!(answers.values().all(|answers| answers.len() == 6 && answers.iter().all(|answer| *answer == answers[0])), "{answers:?}");
    assert_eq!((written, kafka.committed_values("t").len()), (10, 10));
}

#[tokio::test]
async fn a_key_of_a_dead_replica_is_taken_over_after_its_lease_and_what_it_left_open_is_aborted() {
    let kafka = FakeKafka::with_topic("t", 1);
    claim_and_die(&kafka, "dead", "k").await;
    let mut left = Broker::writer(&kafka, "dead-key-1").await.unwrap();
    left.begin().await.unwrap();
    left.send(records(&["lost"])).await.unwrap();
    let keyed = testing::keyed(&kafka, "b", &config(LEASE));
    let started = Instant::now();
    let receipt = send(&keyed, "k", &["x"]).await.unwrap();
    assert!(!receipt.replayed && started.elapsed() >= LEASE / 2, "{:?}", started.elapsed());
    assert!(matches!(left.commit().await, Err(KafkaError::Fenced(_))));
    assert_eq!(kafka.committed_values("t"), ["x"]);
}

#[tokio::test]
async fn a_key_that_its_former_process_left_is_free_without_a_lease() {
    let kafka = FakeKafka::with_topic("t", 1);
    claim_and_die(&kafka, "a", "k").await;
    let lease = Duration::from_secs(60);
    let keyed = testing::keyed(&kafka, "a", &config(lease));
    assert!(!send(&keyed, "k", &["x"]).await.unwrap().replayed);
    assert_eq!(kafka.committed_values("t"), ["x"]);
}

#[tokio::test]
async fn an_answer_of_a_commit_that_is_lost_is_found() {
    let kafka = FakeKafka::with_topic("t", 1);
    let keyed = testing::keyed(&kafka, "a", &config(LEASE));
    for (key, takes_effect) in [("k", true), ("l", false)] {
        kafka.lose_next_commit(takes_effect);
        let receipt = send(&keyed, key, &[key]).await.unwrap();
        assert!(!receipt.replayed && receipt.results[0].is_ok(), "{receipt:?}");
        assert!(send(&keyed, key, &[key]).await.unwrap().replayed);
    }
    assert_eq!(kafka.committed_values("t"), ["k", "l"]);
}

#[tokio::test]
async fn a_writer_that_was_fenced_writes_under_a_new_claim() {
    let kafka = FakeKafka::with_topic("t", 1);
    let keyed = testing::keyed(&kafka, "a", &config(LEASE));
    send(&keyed, "k", &["k"]).await.unwrap();
    drop(Broker::writer(&kafka, "a-key-0").await.unwrap());
    assert!(!send(&keyed, "l", &["l"]).await.unwrap().replayed);
    assert_eq!(kafka.committed_values("t"), ["k", "l"]);
}

#[tokio::test]
async fn a_request_that_cannot_be_written_spoils_neither_its_company_nor_its_key() {
    let kafka = FakeKafka::with_topic("t", 1);
    let keyed = testing::keyed(&kafka, "a", &config(LEASE));
    send(&keyed, "first", &["first"]).await.unwrap();
    kafka.fail_next_produce("bad", KafkaError::TooLarge { bytes: 2, max: 1 });
    let company = (0..20).map(|number| {
        let keyed = keyed.clone();
        tokio::spawn(async move { send(&keyed, &format!("k{number}"), &["good"]).await })
    });
    let company: Vec<_> = company.collect();
    let bad = send(&keyed, "k", &["good", "bad"]).await.unwrap();
    let codes: Vec<Code> = bad.results.iter().map(|result| result.as_ref().unwrap_err().code).collect();
    assert_eq!(codes, [Code::TooLarge; 2]);
    assert!(bad.results[0].as_ref().unwrap_err().message.contains("record 1 of the same request"), "{bad:?}");
    for one in company {
        assert!(one.await.unwrap().unwrap().results[0].is_ok());
    }
    assert_eq!(kafka.committed_values("t").len(), 21);
    // The key is free, even for other records.
    assert!(send(&keyed, "k", &["other"]).await.unwrap().results[0].is_ok());
    // What can be known before is refused at once.
    let mut none = records(&["a", "b"]);
    none[1].topic = "none".into();
    let refused = keyed.send("n", "f", none).await.unwrap();
    assert!(refused.results.iter().all(|result| result.as_ref().is_err_and(|error| error.code == Code::TopicNotFound)), "{refused:?}");
}

#[tokio::test]
async fn a_topic_that_does_not_acknowledge_holds_no_other_up_for_long() {
    let kafka = FakeKafka::with_topic("t", 1);
    kafka.add_topic("slow", 1);
    let config = config::Produce { timeout: Duration::from_millis(800), ..config(LEASE) };
    let keyed = testing::keyed(&kafka, "a", &config);
    kafka.set_slow("slow", true);
    let slow = |key: &'static str| {
        let (keyed, mut records) = (keyed.clone(), records(&[key]));
        records[0].topic = "slow".into();
        async move { keyed.send(key, "f", records).await }
    };
    let late: Vec<_> = ["s1", "s2", "s3"].map(|key| tokio::spawn(slow(key))).into();
    let mut longest = Duration::ZERO;
    let started = Instant::now();
    for number in 0.. {
        let asked = Instant::now();
        assert!(send(&keyed, &format!("k{number}"), &["x"]).await.unwrap().results[0].is_ok());
        longest = longest.max(asked.elapsed());
        if started.elapsed() > Duration::from_millis(600) {
            break;
        }
    }
    // Once by the first writer's patience; the topic is left to the second one then.
    assert!(longest < LEASE * 2, "{longest:?}");
    for late in late {
        let error = late.await.unwrap().unwrap_err();
        assert!(error.code == Code::KafkaRetriable && error.message.contains("nothing was written"), "{error}");
    }
    kafka.set_slow("slow", false);
    assert!(slow("s1").await.unwrap().results[0].is_ok());
    assert_eq!(kafka.committed_values("slow"), ["s1"]);
}

#[tokio::test]
async fn where_transactions_are_refused_requests_with_a_key_are_too() {
    let kafka = FakeKafka::with_topic("t", 1);
    kafka.refuse_transactions(KafkaError::Auth("starting transactions: transactional id authorization failed".into()));
    let keyed = testing::keyed(&kafka, "a", &config(LEASE));
    let error = send(&keyed, "k", &["x"]).await.unwrap_err();
    assert_eq!(error.code, Code::Forbidden);
    assert!(error.message.contains("authorization failed") && error.message.contains("begin with \"a\""), "{error}");
    let other = FakeKafka::with_topic("t", 1);
    other.add_topic("_millrace_idempotence", 3);
    let error = send(&testing::keyed(&other, "a", &config(LEASE)), "k", &["x"]).await.unwrap_err();
    assert!(error.message.contains("produce.dedup_partitions"), "{error}");
    assert!(kafka.values("t").is_empty() && other.values("t").is_empty());
}

#[tokio::test]
async fn a_key_is_new_when_its_window_is_over() {
    let kafka = FakeKafka::with_topic("t", 1);
    let age = Duration::from_secs(2);
    let config = config::Produce { dedup_age: age, ..config(LEASE) };
    let (a, b) = (testing::keyed(&kafka, "a", &config), testing::keyed(&kafka, "b", &config));
    let written = Instant::now();
    send(&a, "k", &["x"]).await.unwrap();
    while send(&b, "k", &["x"]).await.unwrap().replayed {
        assert!(written.elapsed() < 10 * age, "asking does not make the window longer");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(written.elapsed() >= age, "{:?}", written.elapsed());
    assert!(send(&a, "k", &["x"]).await.unwrap().replayed, "by the other one");
    assert_eq!(kafka.committed_values("t"), ["x", "x"]);
}

#[tokio::test]
async fn results_that_are_young_are_not_given_up_for_others() {
    let kafka = FakeKafka::with_topic("t", 1);
    let config = config::Produce { dedup_records_max: 1, ..config(Duration::from_secs(60)) };
    let keyed = testing::keyed(&kafka, "a", &config);
    send(&keyed, "k", &["x", "y"]).await.unwrap();
    let error = send(&keyed, "l", &["z"]).await.unwrap_err();
    assert!(error.code == Code::TooMany && error.message.contains("produce.dedup_records_max"), "{error}");
    assert!(send(&keyed, "k", &["x", "y"]).await.unwrap().replayed);
}

/// A good one: key and offsets.
type Answer = (u8, Vec<i64>);

/// Replicas as processes that can be killed at any step, on a Kafka whose calls arrive when the test says so.
struct World {
    kafka: FakeKafka,
    replicas: Vec<(Runtime, Keyed)>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

const REPLICAS: u8 = 3;
const KEYS: u8 = 3;
/// Of each replica, in milliseconds: one takes over what the others are about, one goes on with what was taken from it.
const LEASES: [u64; REPLICAS as usize] = [2, 10, 100];

impl World {
    fn new() -> Self {
        let kafka = FakeKafka::with_topic("t", 1);
        let replicas = (0..REPLICAS).map(|number| Self::replica(&kafka, number)).collect();
        Self { kafka, replicas, answers: Arc::default() }
    }

    fn replica(kafka: &FakeKafka, number: u8) -> (Runtime, Keyed) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        (runtime, testing::keyed(kafka, &format!("r{number}"), &config(Duration::from_millis(LEASES[usize::from(number)]))))
    }

    fn request(&self, replica: u8, key: u8) {
        let (runtime, keyed) = &self.replicas[usize::from(replica % REPLICAS)];
        let (keyed, answers) = (keyed.clone(), Arc::clone(&self.answers));
        runtime.spawn(async move {
            let values = [format!("{key}-first"), format!("{key}-second")];
            if let Ok(receipt) = send(&keyed, &format!("key {key}"), &[&values[0], &values[1]]).await {
                answers.lock().push((key, offsets(&receipt)));
            }
        });
    }

    /// Killed: whatever it was about stays as it is, and what it has sent may still arrive.
    fn crash(&mut self, replica: u8) {
        let slot = &mut self.replicas[usize::from(replica % REPLICAS)];
        let (runtime, _) = std::mem::replace(slot, Self::replica(&self.kafka, replica % REPLICAS));
        runtime.shutdown_background();
    }

    /// Everything that can go on without an answer of Kafka does.
    fn settle(&self) {
        if self.kafka.held_calls() == 0 {
            // Leases and pauses go by the clock.
            std::thread::sleep(Duration::from_millis(1));
        }
        for (runtime, _) in &self.replicas {
            runtime.block_on(async {
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    fn step(&mut self, (kind, number): (u8, u8)) {
        match kind {
            0..=3 => self.request(number, number / REPLICAS % KEYS),
            4 => self.crash(number),
            5 => self.kafka.lose_next_commit(number % 2 == 0),
            // Time passes for what is on the wire too.
            6 => std::thread::sleep(Duration::from_millis(u64::from(number % 16))),
            _ => match self.kafka.held_calls() {
                0 => {}
                held => self.kafka.deliver(usize::from(number) % held),
            },
        }
        self.settle();
    }

    /// No more faults: every key is written in the end.
    fn finish(mut self) -> (Vec<String>, Vec<Answer>) {
        for key in 0..KEYS {
            self.request(REPLICAS - 1, key);
        }
        let started = std::time::Instant::now();
        let is_done = |world: &Self| (0..KEYS).all(|key| world.answers.lock().iter().any(|(answered, _)| *answered == key));
        let mut number = 0;
        while !is_done(&self) {
            if self.kafka.held_calls() > 0 {
                self.kafka.deliver(0);
            }
            self.settle();
            number += 1;
            if number % 2_000 == 0 {
                // What was refused, or waited too long, is repeated.
                (0..KEYS).for_each(|key| self.request(REPLICAS - 1, key));
            }
            assert!(started.elapsed() < Duration::from_secs(60), "no end");
        }
        // Nor does anything come behind.
        for _ in 0..30 {
            if self.kafka.held_calls() > 0 {
                self.kafka.deliver(0);
            }
            self.settle();
        }
        for replica in 0..REPLICAS {
            self.crash(replica);
        }
        while self.kafka.held_calls() > 0 {
            self.kafka.deliver(0);
        }
        (self.kafka.committed_values("t"), self.answers.lock().clone())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn each_key_is_written_once_and_answered_alike_whoever_dies_and_when(
        steps in proptest::collection::vec((0u8..24, any::<u8>()), 0..200),
    ) {
        let mut world = World::new();
        world.kafka.hold_calls();
        for step in steps {
            world.step(step);
        }
        let (mut values, answers) = world.finish();
        values.sort();
        let expected: Vec<String> = (0..KEYS).flat_map(|key| ["first", "second"].map(|which| format!("{key}-{which}"))).collect();
        prop_assert_eq!(values, expected);
        for (key, offsets) in &answers {
            let first = answers.iter().find(|(answered, _)| answered == key).map(|(_, offsets)| offsets);
            prop_assert_eq!(Some(offsets), first);
        }
    }
}
