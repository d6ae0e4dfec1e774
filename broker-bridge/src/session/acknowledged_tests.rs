use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    acknowledged::{DeadLetters, Outcome},
    *,
};
use crate::testing::{self, FakeKafka, MemoryOffsets};

/// What came, with its attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Got(Vec<(TopicPartition, i64, u32)>);

impl Encode for Got {
    fn add(&mut self, _: &TopicPartition, _: &Record) -> Result<bool> {
        unreachable!("records of windows have attempts")
    }
}

impl EncodeBatch for Got {
    fn add_attempt(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool> {
        if record.value.as_deref() == Some(b"poison") {
            return Err(BridgeError::new(Code::NotAcceptable, "poison"));
        }
        self.0.push((partition.clone(), record.offset, attempt));
        Ok(true)
    }

    fn unbounded(&mut self) {}

    fn clear(&mut self) {
        self.0.clear();
    }
}

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

/// Nothing times out by itself: tests say when.
const VISIBILITY: Duration = Duration::from_secs(3600);

struct World {
    kafka: FakeKafka,
    store: MemoryOffsets,
    sessions: Sessions,
    attempts_max: u32,
    window_records_max: usize,
}

impl World {
    fn new(records: usize) -> Self {
        Self::with(1, 2, 100, records)
    }

    /// A topic `t` with so many partitions and so many records in each, and `dead`.
    fn with(partitions: usize, attempts_max: u32, window_records_max: usize, records: usize) -> Self {
        let kafka = FakeKafka::with_topic("t", partitions);
        kafka.add_topic("dead", 1);
        (0..partitions).for_each(|partition| kafka.append("t", partition, records));
        let store = MemoryOffsets::default();
        let sessions = Self::process(&kafka, &store, window_records_max);
        Self { kafka, store, sessions, attempts_max, window_records_max }
    }

    fn process(kafka: &FakeKafka, store: &MemoryOffsets, window_records_max: usize) -> Sessions {
        testing::sessions(kafka, store, config::Consume { window_records_max, ..config::Consume::default() })
    }

    /// What a kill leaves is what the store has.
    fn kill(&mut self) {
        self.sessions = Self::process(&self.kafka, &self.store, self.window_records_max);
    }

    fn session(&self, dead_letters: Option<&str>) -> Arc<Session> {
        let dead_letters = dead_letters.map(|topic| DeadLetters { topic: topic.into(), attempts_max: self.attempts_max });
        let settings = Settings { acknowledged: Some(Acknowledged { visibility: VISIBILITY, dead_letters }), ..testing::settings() };
        self.sessions.create("g", None, settings).unwrap()
    }

    async fn subscribed(&self, dead_letters: Option<&str>) -> Arc<Session> {
        let session = self.session(dead_letters);
        session.subscribe(vec!["t".to_owned()]).await.unwrap();
        session
    }

    /// Where the dead letters come from.
    fn dead(&self) -> BTreeSet<(TopicPartition, i64)> {
        let origin = |record: &Record| {
            let header = |name: &str| {
                let found = record.headers.iter().find(|(header, _)| header.ends_with(name)).unwrap().1.clone().unwrap();
                String::from_utf8(found.to_vec()).unwrap()
            };
            (tp(header("letter.partition").parse().unwrap()), header("letter.offset").parse().unwrap())
        };
        self.kafka.records("dead").iter().map(origin).collect()
    }

    async fn stored(&self, partition: i32) -> (i64, String) {
        let stored = self.store.get("g", None).await.unwrap().offsets.remove(&tp(partition)).unwrap();
        (stored.offset, stored.metadata.rsplit(' ').next().unwrap().to_owned())
    }
}

/// Offsets and attempts of partition 0, and the batch.
async fn fetch(session: &Arc<Session>, records_max: usize) -> Result<(Vec<(i64, u32)>, String)> {
    fetch_after(session, records_max, None).await
}

async fn fetch_after(session: &Arc<Session>, records_max: usize, done: Option<&str>) -> Result<(Vec<(i64, u32)>, String)> {
    let limits = Limits { records_max, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(5) };
    let fetched = session.fetch_batch(limits, done.map(str::to_owned), Got::default()).await?;
    Ok((fetched.answer.0.into_iter().map(|(_, offset, attempt)| (offset, attempt)).collect(), fetched.batch.unwrap_or_default()))
}

async fn expire(session: &Session) {
    let mut state = session.state.lock().await;
    state.partitions.values_mut().for_each(|progress| progress.window.expire(Instant::now()));
}

fn acknowledge(offsets: &[i64]) -> Settlement {
    Settlement { acknowledge: offsets.iter().map(|offset| (tp(0), *offset)).collect(), ..Settlement::default() }
}

fn reject(offset: i64, delay: Duration) -> Settlement {
    Settlement { reject: vec![Reject { partition: tp(0), offset, delay, why: "rejected: odd".into() }], ..Settlement::default() }
}

async fn settled(session: &Session, settlement: Settlement) -> (usize, usize, Vec<i64>) {
    let Outcome { acknowledged, rejected, ignored } = session.settle(settlement).await.unwrap();
    (acknowledged, rejected, ignored.into_iter().map(|(_, offset)| offset).collect())
}

#[tokio::test]
async fn a_batch_is_given_again_until_it_is_acknowledged() {
    let world = World::new(6);
    let session = world.subscribed(None).await;
    let (records, first) = fetch(&session, 2).await.unwrap();
    assert_eq!(records, [(0, 1), (1, 1)]);
    assert_eq!(world.stored(0).await, (0, "aa".into()), "the attempts are stored before anybody has the batch");
    for records_max in [1, 2, 9] {
        assert_eq!(fetch(&session, records_max).await.unwrap(), (vec![(0, 1), (1, 1)], first.clone()));
    }
    let (records, second) = fetch_after(&session, 3, Some(&first)).await.unwrap();
    assert_eq!(records, [(2, 1), (3, 1), (4, 1)]);
    assert_ne!(first, second);
    assert_eq!((world.stored(0).await, world.kafka.committed("g")[&tp(0)]), ((2, "3a".into()), 2));
    // The answer was lost: the same request again.
    assert_eq!(fetch_after(&session, 3, Some(&first)).await.unwrap(), (records, second.clone()));
    assert_eq!(settled(&session, Settlement { batches: vec![second], ..Settlement::default() }).await, (3, 0, vec![]));
    assert_eq!(world.stored(0).await, (5, String::new()));
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(5, 1)]);
    let both = Settlement { acknowledge: vec![(tp(0), 5)], ..reject(5, Duration::ZERO) };
    let refused = session.settle(both).await.err().unwrap();
    assert!(refused.code == Code::Unprocessable && refused.message.contains("t-0 at offset 5"), "{refused}");
    for unknown in ["", "x", "1", "00000000-1", &format!("{}9", first)] {
        let error = fetch_after(&session, 9, Some(unknown)).await.unwrap_err();
        assert!(error.code == Code::IllegalState && error.message.contains("fetch without"), "{unknown}: {error}");
    }
}

#[tokio::test]
async fn what_is_acknowledged_one_by_one_stays_so_after_a_kill_and_attempts_go_on() {
    let mut world = World::new(5);
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 4).await.unwrap().0.len(), 4);
    assert_eq!(settled(&session, acknowledge(&[1, 2, 2, 4, 77])).await, (3, 0, vec![4, 77]));
    assert_eq!(world.stored(0).await, (0, "a..a".into()));
    // Something was said about the batch, so that the next one comes; the rest of it when its time is over.
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(4, 1)]);
    expire(&session).await;
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(0, 2), (3, 2), (4, 2)]);
    world.kill();
    let session = world.subscribed(None).await;
    world.kafka.append("t", 0, 1);
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(0, 3), (3, 3), (4, 3), (5, 1)]);
    assert_eq!(settled(&session, acknowledge(&[0, 3])).await, (2, 0, vec![]));
    assert_eq!(world.stored(0).await, (4, "ca".into()));
    world.kill();
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 1).await.unwrap().0, [(4, 4)]);
    assert_eq!(fetch(&session, 1).await.unwrap().0, [(4, 4)], "that one, again and again");
}

#[tokio::test]
async fn what_is_rejected_comes_again_at_once_or_later() {
    let world = World::new(4);
    let session = world.subscribed(None).await;
    let (_, batch) = fetch(&session, 3).await.unwrap();
    assert_eq!(settled(&session, reject(1, Duration::ZERO)).await, (0, 1, vec![]));
    // The batch is acknowledged but for that one.
    assert_eq!(settled(&session, Settlement { batches: vec![batch], ..Settlement::default() }).await, (2, 0, vec![]));
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(1, 2), (3, 1)]);
    assert_eq!(settled(&session, reject(3, VISIBILITY)).await, (0, 1, vec![]));
    assert_eq!(settled(&session, acknowledge(&[1])).await, (1, 0, vec![]));
    assert!(fetch(&session, 9).await.unwrap().0.is_empty());
    expire(&session).await;
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(3, 2)]);
    assert_eq!(settled(&session, reject(0, Duration::ZERO)).await, (0, 0, vec![0]), "acknowledged is acknowledged");
    // A fetch that waits sees it within its wait.
    assert_eq!(settled(&session, reject(3, Duration::from_millis(30))).await, (0, 1, vec![]));
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(60) };
    let waited = timeout(Duration::from_secs(10), session.fetch_batch(limits, None, Got::default())).await.unwrap().unwrap();
    assert_eq!(waited.answer.0, [(tp(0), 3, 3)]);
}

#[tokio::test]
async fn after_its_attempts_a_record_is_a_dead_letter() {
    let world = World::new(3);
    let session = world.subscribed(Some("dead")).await;
    let (_, batch) = fetch(&session, 3).await.unwrap();
    settled(&session, reject(1, Duration::ZERO)).await;
    assert_eq!(fetch_after(&session, 9, Some(&batch)).await.unwrap().0, [(1, 2)]);
    settled(&session, reject(1, Duration::ZERO)).await;
    // The topic does not take it at first.
    world.kafka.fail_next_produce("1", KafkaError::Retryable("not now".into()));
    let told = fetch(&session, 9).await.unwrap_err();
    assert!(told.message.contains("dead-letter topic dead does not take t-0 at offset 1") && told.message.contains("not now"), "{told}");
    assert_eq!(world.stored(0).await.0, 1);
    world.kafka.append("t", 0, 1);
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(3, 1)], "others go on");
    settled(&session, acknowledge(&[3])).await;
    expire(&session).await;
    assert!(fetch(&session, 9).await.unwrap().0.is_empty());
    assert_eq!(world.stored(0).await, (4, String::new()), "it counts as acknowledged");
    let dead = world.kafka.records("dead");
    let headers: HashMap<&str, String> = dead[0]
        .headers
        .iter()
        .map(|(name, value)| {
            (name.strip_prefix("millrace.dead-letter.").unwrap(), String::from_utf8(value.clone().unwrap().to_vec()).unwrap())
        })
        .collect();
    let expected = [("topic", "t"), ("partition", "0"), ("offset", "1"), ("group", "g"), ("attempts", "2"), ("reason", "rejected: odd")];
    assert_eq!(headers, expected.into_iter().map(|(name, value)| (name, value.to_owned())).collect());
    assert_eq!((dead.len(), dead[0].value.as_deref(), dead[0].timestamp_ms), (1, Some(&b"1"[..]), 1_001));

    // An attempt that was cut off by a restart was one.
    let mut world = World::new(1);
    for attempt in 1..=2 {
        let session = world.subscribed(Some("dead")).await;
        assert_eq!(fetch(&session, 9).await.unwrap().0, [(0, attempt)]);
        world.kill();
    }
    let session = world.subscribed(Some("dead")).await;
    assert!(fetch(&session, 9).await.unwrap().0.is_empty());
    assert_eq!((world.kafka.records("dead").len(), world.stored(0).await.0), (1, 1));
    // It would be read, and be a dead letter again.
    let session = world.session(Some("t"));
    session.subscribe(vec!["t".to_owned()]).await.unwrap();
    fetch(&session, 1).await.unwrap_or_default();
    assert!(fetch(&session, 1).await.unwrap_err().message.contains("its own dead-letter topic"));
}

#[tokio::test]
async fn a_record_that_cannot_be_shown_is_passed_and_becomes_a_dead_letter_where_there_is_a_topic() {
    for dead_letters in [None, Some("dead")] {
        let world = World::new(1);
        world.kafka.append_value("t", b"poison");
        world.kafka.append("t", 0, 1);
        let session = world.subscribed(dead_letters).await;
        let (records, batch) = fetch(&session, 9).await.unwrap();
        assert_eq!(records, [(0, 1), (2, 1)]);
        settled(&session, Settlement { batches: vec![batch], ..Settlement::default() }).await;
        let after = fetch(&session, 9).await;
        if dead_letters.is_some() {
            assert!(after.unwrap().0.is_empty());
            assert_eq!(world.kafka.values("dead"), ["poison"]);
        } else {
            assert_eq!(after.unwrap_err().code, Code::NotAcceptable, "nothing else is there");
            assert_eq!(world.stored(0).await.0, 1);
            assert_eq!(settled(&session, acknowledge(&[1])).await, (1, 0, vec![]), "the client says that it can go");
            assert!(fetch(&session, 9).await.unwrap().0.is_empty());
        }
        assert_eq!(world.stored(0).await, (3, String::new()));
    }
}

#[tokio::test]
async fn a_full_window_gives_what_is_due_again_and_says_so() {
    let world = World::with(2, 9, 4, 8);
    let session = world.subscribed(None).await;
    let wide = Limits { records_max: 99, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(5) };
    let fetch = async || session.fetch_batch(wide, None, Got::default()).await.unwrap();
    let first = fetch().await;
    assert_eq!((first.answer.0.len(), first.full.len()), (8, 0), "four of each");
    // All of partition 1, and of partition 0 all but its lowest.
    let all = first.answer.0.iter().filter(|(of, offset, _)| of.partition == 1 || *offset > 0).map(|(of, offset, _)| (of.clone(), *offset));
    session.settle(Settlement { acknowledge: all.collect(), ..Settlement::default() }).await.unwrap();
    let second = fetch().await;
    assert_eq!(second.full, [tp(0)]);
    assert!(second.answer.0.iter().all(|(of, ..)| of.partition == 1) && second.answer.0.len() == 4, "{:?}", second.answer);
    session.settle(Settlement { batches: second.batch.into_iter().collect(), ..Settlement::default() }).await.unwrap();
    expire(&session).await;
    let third = fetch().await;
    assert_eq!((third.answer.0, third.full), (vec![(tp(0), 0, 2)], vec![tp(0)]), "only what is due again");
    session.settle(Settlement { batches: third.batch.into_iter().collect(), ..Settlement::default() }).await.unwrap();
    let last = fetch().await;
    assert_eq!((last.answer.0.len(), last.answer.0[0].1, last.full.len()), (4, 4, 0));
    assert_eq!(session.deps.window_records.load(Ordering::Relaxed), 4);
    world.sessions.close().await;
    assert_eq!((session.deps.window_records.load(Ordering::Relaxed), session.deps.held_bytes.load(Ordering::Relaxed)), (0, 0));
}

#[tokio::test]
async fn who_takes_a_partition_over_keeps_its_last_owner_from_acknowledging() {
    let world = World::new(4);
    let old = world.subscribed(None).await;
    assert_eq!(fetch(&old, 3).await.unwrap().0.len(), 3);
    settled(&old, acknowledge(&[1])).await;
    // It does not notice that the partition is another's.
    let new = world.session(None);
    new.assign(vec![tp(0)]).await.unwrap();
    assert_eq!(fetch(&new, 2).await.unwrap().0, [(0, 2), (2, 2)]);
    settled(&new, acknowledge(&[2])).await;
    assert_eq!(settled(&old, acknowledge(&[0])).await, (0, 0, vec![0]), "said, and not stored");
    assert_eq!(world.stored(0).await, (0, "b..".into()));
    // It has the partition still, as far as it knows, and takes it up again from what is stored.
    assert_eq!(fetch(&old, 9).await.unwrap().0, [(0, 3), (3, 1)]);
    assert_eq!(settled(&new, acknowledge(&[0])).await, (0, 0, vec![0]));
    assert_eq!(settled(&old, acknowledge(&[0, 3])).await, (2, 0, vec![]));
    assert_eq!(world.stored(0).await, (4, String::new()));
}

#[tokio::test]
async fn a_rebalance_that_gives_a_partition_back_changes_nothing() {
    let world = World::new(4);
    let session = world.subscribed(None).await;
    let (_, batch) = fetch(&session, 3).await.unwrap();
    settled(&session, acknowledge(&[1])).await;
    world.kafka.set_away(&tp(0), true);
    assert!(fetch(&session, 9).await.unwrap().0.is_empty());
    assert_eq!(settled(&session, acknowledge(&[0])).await, (0, 0, vec![0]), "it is nobody's now");
    world.kafka.set_away(&tp(0), false);
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(3, 1)], "0 and 2 are still out");
    assert_eq!(settled(&session, Settlement { batches: vec![batch], ..Settlement::default() }).await, (2, 0, vec![]));
    assert_eq!(world.stored(0).await, (3, "a".into()));
}

#[tokio::test]
async fn a_takeover_elsewhere_in_the_group_costs_nothing_but_a_look() {
    let world = World::with(2, 9, 100, 2);
    let one = world.session(None);
    one.assign(vec![tp(0)]).await.unwrap();
    let (_, batch) = fetch(&one, 9).await.unwrap();
    let other = world.session(None);
    other.assign(vec![tp(1)]).await.unwrap();
    assert_eq!(fetch(&other, 9).await.unwrap().0, [(0, 1), (1, 1)]);
    assert_eq!(settled(&one, Settlement { batches: vec![batch], ..Settlement::default() }).await, (2, 0, vec![]));
    assert_eq!(world.stored(0).await, (2, String::new()));
    assert_eq!(world.stored(1).await, (0, "aa".into()));
}

#[tokio::test]
async fn while_the_store_is_away_nothing_is_given_and_nothing_is_lost() {
    let world = World::new(3);
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 1).await.unwrap().0, [(0, 1)]);
    let fails = async || {
        for _ in 0..3 {
            assert_eq!(fetch(&session, 9).await.unwrap_err().code, Code::Unavailable);
            expire(&session).await;
        }
    };
    expire(&session).await;
    world.store.set_away(true);
    fails().await;
    world.store.set_away(false);
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(0, 2), (1, 1), (2, 1)], "what nobody was given is no attempt");
    assert_eq!(world.stored(0).await, (0, "baa".into()));
    world.store.set_away(true);
    assert_eq!(session.settle(acknowledge(&[0])).await.unwrap_err().code, Code::Unavailable);
    fails().await;
    world.store.set_away(false);
    assert_eq!(settled(&session, acknowledge(&[0])).await, (1, 0, vec![]), "said again");
    assert_eq!(world.stored(0).await, (1, "aa".into()));
}

#[tokio::test]
async fn a_caller_that_hangs_up_costs_no_attempt() {
    let world = World::new(0);
    let session = world.subscribed(None).await;
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(60) };
    assert!(timeout(Duration::from_millis(50), session.fetch_batch(limits, None, Got::default())).await.is_err());
    world.kafka.append("t", 0, 2);
    assert_eq!(fetch_until(&session).await, [(0, 1), (1, 1)]);
}

/// Asks until something comes: who hung up may be waited for.
async fn fetch_until(session: &Arc<Session>) -> Vec<(i64, u32)> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (records, _) = fetch(session, 9).await.unwrap();
        if !records.is_empty() {
            return records;
        }
        assert!(Instant::now() < deadline);
    }
}

#[tokio::test]
async fn offsets_seeks_and_resets_mean_what_they_mean_elsewhere() {
    let mut world = World::new(9);
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 4).await.unwrap().0.len(), 4);
    let at = |offset| OffsetCommit { partition: tp(0), offset, metadata: String::new() };
    session.commit(Some(vec![at(2)])).await.unwrap();
    assert_eq!(world.stored(0).await, (2, "aa".into()), "everything below is acknowledged");
    session.commit(Some(vec![at(1)])).await.unwrap();
    session.commit(None).await.unwrap();
    assert_eq!(world.stored(0).await, (4, String::new()), "everything that was delivered");
    let told = session.commit(Some(vec![OffsetCommit { metadata: "mine".into(), ..at(4) }])).await.unwrap_err();
    assert!(told.message.contains("without metadata"), "{told}");
    assert_eq!(session.commit(Some(vec![OffsetCommit { partition: tp(7), ..at(1) }])).await.unwrap_err().code, Code::IllegalState);

    session.seek(&[(tp(0), 6)]).await.unwrap();
    let (records, batch) = fetch(&session, 2).await.unwrap();
    assert_eq!(records, [(6, 1), (7, 1)]);
    assert_eq!(world.stored(0).await, (6, "aa".into()), "what was passed counts as acknowledged");
    settled(&session, Settlement { batches: vec![batch], ..Settlement::default() }).await;
    session.seek(&[(tp(0), 1)]).await.unwrap();
    assert_eq!(fetch(&session, 2).await.unwrap().0, [(1, 1), (2, 1)]);
    assert_eq!(world.stored(0).await, (1, "aa".into()), "back");

    world.store.reset("g", &[at(5)]).await.unwrap();
    assert_eq!(settled(&session, acknowledge(&[1])).await, (0, 0, vec![1]));
    assert_eq!(fetch(&session, 2).await.unwrap().0, [(5, 1), (6, 1)]);
    // A place that is not there: where auto.offset.reset says.
    session.seek(&[(tp(0), 1000)]).await.unwrap();
    assert_eq!(fetch(&session, 2).await.unwrap().0, [(0, 1), (1, 1)]);
    session.commit(None).await.unwrap();
    assert_eq!(world.stored(0).await, (2, String::new()));
    session.seek(&[(tp(0), 1)]).await.unwrap();
    assert_eq!((world.stored(0).await, world.kafka.committed("g")[&tp(0)]), ((1, String::new()), 1), "at once");
    world.kill();
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 2).await.unwrap().0, [(1, 1), (2, 1)]);
}

#[tokio::test]
async fn a_group_that_has_acknowledged_everything_has_no_lag_behind_the_marks_of_transactions() {
    let world = World::new(2);
    world.kafka.append_marker("t");
    let session = world.subscribed(None).await;
    let (_, batch) = fetch(&session, 9).await.unwrap();
    fetch_after(&session, 9, Some(&batch)).await.unwrap();
    assert_eq!((world.stored(0).await, world.kafka.committed("g")[&tp(0)]), ((3, String::new()), 3));
    world.kafka.append("t", 0, 1);
    world.kafka.append_marker("t");
    world.kafka.append("t", 0, 1);
    let (records, _) = fetch(&session, 9).await.unwrap();
    assert_eq!(records, [(3, 1), (5, 1)]);
    assert_eq!(world.stored(0).await, (3, "a.a".into()));
}

#[tokio::test]
async fn ordinary_sessions_have_no_batches_and_foreign_metadata_is_none() {
    let world = World::new(2);
    let mut settings = world.session(None).settings.clone();
    settings.acknowledged = None;
    let ordinary = world.sessions.create("g", None, settings).unwrap();
    let told = ordinary.settle(acknowledge(&[0])).await.unwrap_err();
    assert!(told.code == Code::IllegalState && told.message.contains("delivery"), "{told}");
    world.store.commit("g", 0, &[OffsetCommit { partition: tp(0), offset: 1, metadata: "by hand".into() }]).await.unwrap();
    let session = world.subscribed(None).await;
    assert_eq!(fetch(&session, 9).await.unwrap().0, [(1, 1)]);
}

// === Against a model ===

#[derive(Clone, Debug)]
enum Step {
    Fetch {
        records_max: usize,
        done: bool,
    },
    Acknowledge {
        every: usize,
    },
    Reject {
        every: usize,
    },
    Expire,
    Append {
        partition: usize,
        count: usize,
    },
    /// A rebalance takes the partition away; somebody else may read it meanwhile.
    Away {
        partition: i32,
        rival: bool,
    },
    Back,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..7_usize, any::<bool>()).prop_map(|(records_max, done)| Step::Fetch { records_max, done }),
        4 => (1..4_usize).prop_map(|every| Step::Acknowledge { every }),
        2 => (1..4_usize).prop_map(|every| Step::Reject { every }),
        2 => Just(Step::Expire),
        2 => (0..PARTITIONS as usize, 1..4_usize).prop_map(|(partition, count)| Step::Append { partition, count }),
        1 => (0..PARTITIONS, any::<bool>()).prop_map(|(partition, rival)| Step::Away { partition, rival }),
        2 => Just(Step::Back),
        1 => Just(Step::Kill),
    ]
}

const PARTITIONS: i32 = 2;
const ATTEMPTS: u32 = 3;
const WINDOW: usize = 5;

/// What must be true of all that was delivered.
#[derive(Default)]
struct Model {
    acknowledged: BTreeSet<(TopicPartition, i64)>,
    attempts: BTreeMap<(TopicPartition, i64), u32>,
    /// The highest offset that was delivered for the first time.
    first: BTreeMap<TopicPartition, i64>,
    /// The last batch of the session, as long as nothing may have changed it.
    last: Option<(Option<String>, Got)>,
    /// By their ids.
    given: HashMap<String, Got>,
}

impl Model {
    fn deliver(&mut self, (batch, got): &(Option<String>, Got)) {
        let Some(batch) = batch else { return assert_eq!(got.0, []) };
        if let Some(before) = self.given.insert(batch.clone(), got.clone()) {
            assert_eq!(*got, before, "the same batch");
            let again = got.0.iter().find(|(partition, offset, _)| self.acknowledged.contains(&(partition.clone(), *offset)));
            return assert_eq!(again, None, "was acknowledged");
        }
        for (partition, offset, attempt) in &got.0 {
            let record = (partition.clone(), *offset);
            assert!(!self.acknowledged.contains(&record), "{record:?} was acknowledged and comes again");
            let attempts = self.attempts.entry(record.clone()).or_default();
            *attempts += 1;
            assert_eq!(attempt, attempts, "attempt of {record:?}");
            assert!(*attempt <= ATTEMPTS, "{record:?} should be a dead letter");
            if *attempt == 1 {
                let before = self.first.insert(partition.clone(), *offset);
                assert!(before.is_none_or(|before| before < *offset), "{record:?} comes after {before:?}");
            }
        }
    }
}

async fn fetched(session: &Arc<Session>, records_max: usize, done: Option<String>) -> (Option<String>, Got) {
    let limits = Limits { records_max, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::ZERO };
    let fetched = session.fetch_batch(limits, done, Got::default()).await.unwrap();
    (fetched.batch, fetched.answer)
}

/// Acknowledges every so manieth record of a batch; what is answered for is acknowledged.
async fn acknowledge_some(world: &World, session: &Session, model: &mut Model, got: &Got, every: usize) {
    let dead = world.dead();
    let some = got.0.iter().step_by(every).map(|(partition, offset, _)| (partition.clone(), *offset));
    let some: Vec<_> = some.filter(|record| !dead.contains(record)).collect();
    if some.is_empty() {
        return;
    }
    let outcome = session.settle(Settlement { acknowledge: some.clone(), ..Settlement::default() }).await.unwrap();
    model.acknowledged.extend(some.into_iter().filter(|record| !outcome.ignored.contains(record)));
}

async fn run(steps: Vec<Step>) {
    let mut world = World::with(PARTITIONS as usize, ATTEMPTS, WINDOW, 6);
    let mut model = Model::default();
    let mut session = world.subscribed(Some("dead")).await;
    // What the client has and may speak of, however long ago.
    let mut has = Got::default();
    for step in steps {
        match step {
            Step::Fetch { records_max, done } => {
                let last = model.last.take();
                let batch = last.as_ref().and_then(|(batch, _)| batch.clone()).filter(|_| done);
                if let (Some(_), Some((_, got))) = (&batch, &last) {
                    model.acknowledged.extend(got.0.iter().map(|(partition, offset, _)| (partition.clone(), *offset)));
                }
                let repeats = batch.is_none();
                let now = fetched(&session, records_max, batch).await;
                if let Some(last) = last.filter(|(batch, _)| repeats && batch.is_some()) {
                    assert_eq!(now, last, "the same batch");
                }
                model.deliver(&now);
                has = now.1.clone();
                model.last = Some(now);
            }
            Step::Acknowledge { every } => {
                acknowledge_some(&world, &session, &mut model, &has, every).await;
                model.last = None;
            }
            Step::Reject { every } => {
                let reject = has.0.iter().step_by(every).map(|(partition, offset, _)| Reject {
                    partition: partition.clone(),
                    offset: *offset,
                    delay: Duration::ZERO,
                    why: "rejected".into(),
                });
                session.settle(Settlement { reject: reject.collect(), ..Settlement::default() }).await.unwrap();
                model.last = None;
            }
            Step::Expire => {
                expire(&session).await;
                model.last = None;
            }
            Step::Append { partition, count } => world.kafka.append("t", partition, count),
            Step::Away { partition, rival } => {
                world.kafka.set_away(&tp(partition), true);
                model.last = None;
                if rival {
                    let rival = world.session(Some("dead"));
                    rival.assign(vec![tp(partition)]).await.unwrap();
                    let got = fetched(&rival, 3, None).await;
                    model.deliver(&got);
                    acknowledge_some(&world, &rival, &mut model, &got.1, 2).await;
                    world.sessions.remove(&rival, false).await;
                }
            }
            Step::Back => {
                (0..PARTITIONS).for_each(|partition| world.kafka.set_away(&tp(partition), false));
                model.last = None;
            }
            Step::Kill => {
                world.kill();
                session = world.subscribed(Some("dead")).await;
                model.last = None;
            }
        }
        let state = session.state.lock().await;
        assert!(state.partitions.values().all(|progress| progress.window.len() <= WINDOW));
    }
    // Everything else comes until it is acknowledged, or a dead letter.
    (0..PARTITIONS).for_each(|partition| world.kafka.set_away(&tp(partition), false));
    expire(&session).await;
    let mut empty = 0;
    while empty < 3 {
        let got = fetched(&session, 4, None).await;
        model.deliver(&got);
        empty = if got.0.is_none() { empty + 1 } else { 0 };
        acknowledge_some(&world, &session, &mut model, &got.1, 1).await;
        expire(&session).await;
    }
    let dead = world.dead();
    assert_eq!(dead.len(), world.kafka.records("dead").len(), "each once");
    for record in &dead {
        assert_eq!(model.attempts[record], ATTEMPTS, "{record:?}");
        assert!(!model.acknowledged.contains(record), "{record:?} was acknowledged");
    }
    for partition in 0..PARTITIONS {
        let end = world.kafka.connection().admin().await.unwrap().bounds(&[tp(partition)]).await.unwrap()[&tp(partition)].latest;
        for offset in 0..end {
            let record = (tp(partition), offset);
            assert!(model.acknowledged.contains(&record) || dead.contains(&record), "{record:?} is neither");
        }
        assert_eq!(world.stored(partition).await, (end, String::new()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn nothing_acknowledged_comes_again_and_everything_else_does(steps in proptest::collection::vec(step(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
