use super::{state::size, *};
use crate::testing::{self, FakeKafka, MemoryOffsets};

/// Values of the fetched records.
#[derive(Default)]
struct Values(Vec<String>);

impl Encode for Values {
    fn add(&mut self, _: &TopicPartition, record: &Record) -> Result<bool> {
        let value = String::from_utf8(record.value.clone().unwrap().to_vec()).unwrap();
        if value == "poison" {
            return Err(BridgeError::new(Code::NotAcceptable, "poison"));
        }
        self.0.push(value);
        Ok(true)
    }
}

fn tp(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn at(partition: i32, offset: i64) -> OffsetCommit {
    OffsetCommit { partition: tp(partition), offset, metadata: String::new() }
}

const IDLE: Duration = Duration::from_secs(60);

struct World {
    kafka: FakeKafka,
    store: MemoryOffsets,
    sessions: Sessions,
}

impl World {
    fn new(records: usize) -> Self {
        let kafka = FakeKafka::with_topic("t", 1);
        kafka.append("t", 0, records);
        let store = MemoryOffsets::default();
        let sessions =
            testing::sessions(&kafka, &store, config::Consume { sessions_max: 3, session_idle: IDLE, ..config::Consume::default() });
        Self { kafka, store, sessions }
    }

    fn session(&self, auto_commit: bool) -> Arc<Session> {
        let settings = Settings { auto_commit, ..testing::settings() };
        self.sessions.create("g", None, settings).unwrap()
    }

    async fn subscribed(&self, auto_commit: bool) -> Arc<Session> {
        let session = self.session(auto_commit);
        session.subscribe(vec!["t".to_owned()]).await.unwrap();
        session
    }

    async fn stored(&self) -> Option<i64> {
        self.store.get("g", None).await.unwrap().offsets.get(&tp(0)).map(|stored| stored.offset)
    }
}

async fn fetch(session: &Arc<Session>, records_max: usize) -> Result<Vec<String>> {
    let limits = Limits { records_max, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(1) };
    Ok(session.fetch(limits, Values::default()).await?.0)
}

#[tokio::test]
async fn without_auto_commit_only_a_commit_moves_the_group() {
    let world = World::new(6);
    let session = world.subscribed(false).await;
    assert_eq!(fetch(&session, 2).await.unwrap(), ["0", "1"]);
    assert_eq!(fetch(&session, 2).await.unwrap(), ["2", "3"]);
    assert_eq!(world.stored().await, None);
    session.commit(Some(vec![at(0, 3)])).await.unwrap();
    assert_eq!(world.stored().await, Some(3));
    assert_eq!(world.kafka.committed("g")[&tp(0)], 3, "mirrored to Kafka");
    session.commit(None).await.unwrap();
    assert_eq!(world.stored().await, Some(4), "everything delivered");
}

#[tokio::test]
async fn a_stop_ends_a_long_poll_at_once_with_what_is_there() {
    let world = World::new(0);
    let session = world.subscribed(false).await;
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(20) };
    let polling = tokio::spawn(async move { session.fetch(limits, Values::default()).await });
    while world.kafka.polls() == 0 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    world.sessions.inner.deps.shutdown.cancel();
    world.sessions.close().await;
    assert_eq!(polling.await.unwrap().unwrap().0, Vec::<String>::new());
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_topic_named_twice_is_read_once_and_group_names_are_bounded() {
    let world = World::new(2);
    let session = world.session(false);
    session.subscribe(vec!["t".to_owned(), "t".to_owned()]).await.unwrap();
    assert_eq!(session.subscription().await.unwrap(), ["t"]);
    assert_eq!(fetch(&session, 9).await.unwrap(), ["0", "1"]);
    for group in ["", "a\0b", "a\nb", &"g".repeat(250)] {
        let refused = world.sessions.create(group, None, testing::settings()).err().unwrap();
        assert!(refused.code == Code::Unprocessable && refused.message.contains("name of a group"), "{refused}");
    }
}

#[tokio::test]
async fn a_commit_behind_the_end_is_refused_and_the_group_goes_on() {
    let world = World::new(4);
    let session = world.subscribed(false).await;
    assert_eq!(fetch(&session, 2).await.unwrap(), ["0", "1"]);
    for offset in [5, 1_000_000, i64::MAX] {
        let refused = session.commit(Some(vec![at(0, offset)])).await.unwrap_err();
        assert!(refused.code == Code::Unprocessable && refused.message.contains("t-0 ends at 4"), "{refused}");
        let ack = Position { epoch: session.epoch().await, ends: [(tp(0), offset)].into() };
        assert_eq!(session.acknowledge_position(&ack).await.unwrap_err().code, Code::Unprocessable);
        let elsewhere = world.session(false);
        assert_eq!(elsewhere.commit(Some(vec![at(0, offset)])).await.unwrap_err().code, Code::Unprocessable, "before it reads");
        world.sessions.remove(&elsewhere, false).await;
    }
    assert_eq!(world.stored().await, None);
    session.commit(Some(vec![at(0, 4)])).await.unwrap();
    assert_eq!(world.stored().await, Some(4), "the end itself, of which not all was delivered");
}

#[tokio::test]
async fn with_auto_commit_the_next_fetch_acknowledges_the_one_before() {
    let world = World::new(4);
    let session = world.subscribed(true).await;
    assert_eq!(fetch(&session, 3).await.unwrap(), ["0", "1", "2"]);
    assert_eq!(world.stored().await, None);
    assert_eq!(fetch(&session, 3).await.unwrap(), ["3"]);
    assert_eq!(world.stored().await, Some(3));
    world.sessions.remove(&session, true).await;
    assert_eq!(world.stored().await, Some(4), "the client said goodbye");
    assert_eq!(fetch(&session, 1).await.unwrap_err().code, Code::InstanceNotFound);
}

#[tokio::test]
async fn a_new_session_goes_on_at_the_stores_offset_or_where_an_ordinary_member_has_gone_further() {
    let world = World::new(6);
    world.store.commit("g", 0, &[at(0, 3)]).await.unwrap();
    for (kafkas, read) in [(2, &["3", "4", "5"][..]), (4, &["4", "5"]), (3, &["4", "5"])] {
        world.kafka.set_committed("g", &[(tp(0), kafkas)]);
        let session = world.subscribed(false).await;
        assert_eq!(fetch(&session, 9).await.unwrap(), read, "Kafka's was {kafkas}");
        world.sessions.remove(&session, false).await;
    }
    assert_eq!(world.stored().await, Some(4), "the store has followed");
    let session = world.subscribed(false).await;
    assert_eq!(fetch(&session, 9).await.unwrap(), ["4", "5"]);
    session.commit(None).await.unwrap();
    world.sessions.remove(&session, false).await;
    // A reset whose mirror has failed leaves the copy of before: nobody has gone there.
    world.store.reset("g", &[at(0, 1)]).await.unwrap();
    assert_eq!(world.kafka.committed("g")[&tp(0)], 6);
    let session = world.subscribed(false).await;
    assert_eq!(fetch(&session, 9).await.unwrap(), ["1", "2", "3", "4", "5"]);
}

#[tokio::test]
async fn a_session_that_ends_without_goodbye_has_acknowledged_nothing() {
    let world = World::new(3);
    let session = world.subscribed(true).await;
    fetch(&session, 9).await.unwrap();
    assert_eq!(world.sessions.expire().await, 0, "not idle for long enough");
    *session.used.lock() -= IDLE;
    assert_eq!(world.sessions.expire().await, 1);
    assert_eq!((world.sessions.count(), world.stored().await), (0, None));
    let again = world.subscribed(true).await;
    assert_eq!(fetch(&again, 9).await.unwrap(), ["0", "1", "2"]);
    assert_eq!(world.sessions.expire().await, 0, "a session that was just used stays");
}

#[tokio::test]
async fn a_caller_that_hangs_up_takes_no_records_along() {
    let world = World::new(0);
    let session = world.subscribed(true).await;
    let hung_up = timeout(Duration::from_millis(100), fetch(&session, 9)).await;
    assert!(hung_up.is_err());
    world.kafka.append("t", 0, 2);
    // The abandoned poll gets them, finds nobody, and puts them back.
    let polls = world.kafka.polls();
    assert!(polls > 0);
    assert_eq!(fetch(&session, 9).await.unwrap(), ["0", "1"]);
    assert_eq!(world.stored().await, None, "what nobody got is not acknowledged");
}

#[tokio::test]
async fn a_record_that_cannot_be_shown_ends_the_answer_before_it_and_is_named_next() {
    let world = World::new(1);
    world.kafka.append_value("t", b"poison");
    world.kafka.append("t", 0, 1);
    let session = world.subscribed(false).await;
    assert_eq!(fetch(&session, 9).await.unwrap(), ["0"]);
    assert_eq!(fetch(&session, 9).await.unwrap_err().code, Code::NotAcceptable);
    session.seek(&[(tp(0), 2)]).await.unwrap();
    assert_eq!(fetch(&session, 9).await.unwrap(), ["2"]);
}

#[tokio::test]
async fn a_record_that_cannot_be_shown_holds_up_its_own_partition_only() {
    let world = World::new(1);
    world.kafka.append_value("t", b"poison");
    world.kafka.append("t", 0, 1);
    world.kafka.add_topic("t", 2);
    world.kafka.append("t", 1, 700);
    let session = world.subscribed(true).await;
    let mut values = Vec::new();
    while values.len() < 701 {
        values.extend(fetch(&session, 300).await.unwrap());
    }
    values.sort_unstable();
    assert_eq!(values.iter().filter(|value| *value == "0").count(), 2);
    assert!(!values.contains(&"poison".to_owned()));
    assert_eq!(drained_error(&session).await, Code::NotAcceptable, "nothing else is there");
    world.kafka.append("t", 1, 1);
    assert_eq!(fetch(&session, 9).await.unwrap(), ["700"], "the others go on");
    let polls = world.kafka.polls();
    assert_eq!(drained_error(&session).await, Code::NotAcceptable);
    assert!(world.kafka.polls() > polls);
    session.seek(&[(tp(0), 2)]).await.unwrap();
    assert_eq!(fetch(&session, 9).await.unwrap(), ["2"], "the client goes on behind it");
    world.sessions.remove(&session, true).await;
    let stored = world.store.get("g", None).await.unwrap().offsets;
    assert_eq!((stored[&tp(0)].offset, stored[&tp(1)].offset), (3, 701));
}

#[tokio::test]
async fn what_another_one_has_acknowledged_further_costs_the_other_partitions_nothing() {
    let world = World::new(3);
    world.kafka.add_topic("t", 2);
    world.kafka.append("t", 1, 3);
    let session = world.subscribed(false).await;
    let mut read = 0;
    while read < 6 {
        read += fetch(&session, 9).await.unwrap().len();
    }
    world.store.commit("g", 0, &[at(1, 99)]).await.unwrap();
    session.commit(None).await.unwrap();
    let stored = world.store.get("g", None).await.unwrap().offsets;
    assert_eq!((stored[&tp(0)].offset, stored[&tp(1)].offset), (3, 99));
    // Neither is it set back with what the client sought back to.
    session.seek(&[(tp(0), 0)]).await.unwrap();
    assert_eq!(fetch(&session, 1).await.unwrap().len(), 1);
    session.commit(None).await.unwrap();
    let stored = world.store.get("g", None).await.unwrap().offsets;
    assert_eq!((stored[&tp(0)].offset, stored[&tp(1)].offset), (1, 99));
}

async fn drained_error(session: &Arc<Session>) -> Code {
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(20) };
    session.fetch(limits, Values::default()).await.err().unwrap().code
}

#[tokio::test]
async fn a_group_that_has_read_everything_has_no_lag_behind_the_marks_of_transactions() {
    // Auto-commit: with the next fetch.
    let world = World::new(6);
    world.kafka.append_marker("t");
    let session = world.subscribed(true).await;
    assert_eq!(drain(&session).await.len(), 6);
    assert_eq!((world.stored().await, world.kafka.committed("g")[&tp(0)]), (Some(7), 7));
    // A mark that comes later, and two of them.
    world.kafka.append_marker("t");
    assert!(drain(&session).await.is_empty());
    assert_eq!(world.stored().await, Some(8));
    world.kafka.append("t", 0, 1);
    world.kafka.append_marker("t");
    world.kafka.append_marker("t");
    assert_eq!(fetch(&session, 9).await.unwrap(), ["8"]);
    world.sessions.remove(&session, true).await;
    assert_eq!(world.stored().await, Some(11), "goodbye right after the records");

    // By hand: nothing is acknowledged before the client says so, and then everything is.
    world.kafka.append("t", 0, 2);
    world.kafka.append_marker("t");
    let session = world.subscribed(false).await;
    assert_eq!(drain(&session).await, ["11", "12"]);
    assert_eq!(world.stored().await, Some(11));
    session.commit(Some(vec![at(0, 12)])).await.unwrap();
    assert_eq!(world.stored().await, Some(12), "one of the two");
    session.commit(Some(vec![at(0, 13)])).await.unwrap();
    assert_eq!(world.stored().await, Some(14));
    session.commit(Some(vec![at(0, 13)])).await.unwrap();
    assert_eq!(world.stored().await, Some(14), "said twice");
    // The acknowledgement came before the mark, and the session ended before it, too.
    world.kafka.append("t", 0, 1);
    assert_eq!(drain(&session).await, ["14"]);
    session.commit(Some(vec![at(0, 15)])).await.unwrap();
    world.sessions.remove(&session, false).await;
    world.kafka.append_marker("t");
    let session = world.subscribed(false).await;
    assert!(drain(&session).await.is_empty());
    assert_eq!(world.stored().await, Some(16));
}

#[tokio::test]
async fn a_position_of_before_a_seek_is_none() {
    let world = World::new(6);
    let session = world.subscribed(true).await;
    assert_eq!(drain(&session).await.len(), 6);
    let mut state = session.state.lock().await;
    let progress = state.partitions.get_mut(&tp(0)).unwrap();
    *progress = Progress { committed: Some(2), floor: 2, sought: 1, position_then: Some(6), ..Progress::default() };
    let stale = BTreeMap::from([(tp(0), 6)]);
    assert!(state.pass_marks(&stale).is_empty(), "0 to 5 were not read after the seek to 2");
    assert_eq!(state.partitions[&tp(0)].delivered, None);
    assert_eq!(state.pass_marks(&BTreeMap::from([(tp(0), 3)])), [at(0, 3)]);
}

#[tokio::test]
async fn going_back_needs_a_seek_and_resets_the_group() {
    let world = World::new(6);
    let session = world.subscribed(false).await;
    fetch(&session, 9).await.unwrap();
    session.commit(None).await.unwrap();
    let refused = session.commit(Some(vec![at(0, 2)])).await.unwrap_err();
    assert_eq!(refused.code, Code::IllegalState);
    assert!(refused.message.contains("positions"), "{refused}");
    session.seek(&[(tp(0), 1)]).await.unwrap();
    assert_eq!(fetch(&session, 2).await.unwrap(), ["1", "2"]);
    session.commit(None).await.unwrap();
    let group = world.store.get("g", None).await.unwrap();
    assert_eq!((group.epoch, group.offsets[&tp(0)].offset), (1, 3));
    session.commit(Some(vec![at(0, 5)])).await.unwrap();
    assert_eq!(world.store.get("g", None).await.unwrap().epoch, 1, "forward again is no reset");
}

#[tokio::test]
async fn a_reset_by_somebody_else_moves_a_running_session() {
    let world = World::new(6);
    let session = world.subscribed(true).await;
    assert_eq!(fetch(&session, 4).await.unwrap().len(), 4);
    assert_eq!(fetch(&session, 1).await.unwrap(), ["4"]);
    world.store.reset("g", &[at(0, 1)]).await.unwrap();
    // The acknowledgement of "4" is fenced; the session goes to 1 and reads from there.
    assert_eq!(fetch(&session, 2).await.unwrap(), ["1", "2"]);
    assert_eq!(world.stored().await, Some(1));
    assert_eq!(fetch(&session, 1).await.unwrap(), ["3"]);
    assert_eq!(world.stored().await, Some(3));

    world.store.reset("g", &[at(0, 0)]).await.unwrap();
    let told = session.commit(Some(vec![at(0, 4)])).await.unwrap_err();
    assert!(told.code == Code::IllegalState && told.message.contains("reset"), "{told}");
    assert_eq!(fetch(&session, 1).await.unwrap(), ["0"]);
}

#[tokio::test]
async fn assigned_partitions_are_read_without_a_group_and_start_at_the_same_offsets() {
    let world = World::new(5);
    world.kafka.add_topic("t", 2);
    world.kafka.append("t", 1, 3);
    world.store.commit("g", 0, &[at(0, 3)]).await.unwrap();
    world.kafka.set_committed("g", &[(tp(0), 1), (tp(1), 2)]);
    let session = world.session(false);
    session.assign(vec![tp(0), tp(1)]).await.unwrap();
    let mut values = fetch(&session, 9).await.unwrap();
    values.extend(fetch(&session, 9).await.unwrap());
    values.sort();
    assert_eq!(values, ["2", "3", "4"], "3 and 4 of the store's partition, 2 of Kafka's");
    assert!(fetch(&session, 9).await.unwrap().is_empty());
    session.commit(None).await.unwrap();
    assert_eq!(world.kafka.committed("g"), BTreeMap::from([(tp(0), 5), (tp(1), 3)]));

    assert_eq!(session.subscribe(vec!["t".to_owned()]).await.unwrap_err().code, Code::IllegalState);
    assert_eq!(session.assign(vec![tp(7)]).await.unwrap_err().code, Code::PartitionNotFound);
    session.seek_to_end(&[tp(1)], true).await.unwrap();
    assert_eq!(fetch(&session, 9).await.unwrap(), ["0", "1", "2"]);
}

#[tokio::test]
async fn illegal_states_are_told_with_the_remedy() {
    let world = World::new(1);
    let session = world.session(false);
    for (error, remedy) in [
        (fetch(&session, 1).await.unwrap_err(), "subscribe or assign first"),
        (session.seek(&[(tp(0), 1)]).await.unwrap_err(), "fetch once"),
    ] {
        assert!(error.code == Code::IllegalState && error.message.contains(remedy), "{error}");
    }
    assert_eq!(session.subscribe(vec!["none".to_owned()]).await.unwrap_err().code, Code::TopicNotFound);
    session.subscribe(vec!["t".to_owned()]).await.unwrap();
    fetch(&session, 1).await.unwrap();
    assert_eq!(session.seek(&[(tp(0), -1)]).await.unwrap_err().code, Code::Unprocessable);
    assert_eq!(session.assign(vec![tp(0)]).await.unwrap_err().code, Code::IllegalState);
    assert_eq!(session.commit(Some(vec![at(5, 1)])).await.unwrap_err().code, Code::IllegalState);
    assert_eq!(session.subscription().await.unwrap(), ["t"]);
    session.unsubscribe().await.unwrap();
    assert!(session.subscription().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_number_of_sessions_is_bounded_and_names_are_unique() {
    let world = World::new(0);
    let first = world.session(false);
    let again = world.sessions.create("g", Some(first.name.clone()), first.settings.clone());
    assert_eq!(again.err().unwrap().code, Code::InstanceExists);
    world.session(false);
    world.session(false);
    let error = world.sessions.create("g", None, first.settings.clone()).err().unwrap();
    assert!(error.code == Code::TooMany && error.message.contains("consume.sessions_max"), "{error}");
    world.sessions.close().await;
    assert_eq!(world.sessions.count(), 0);
    assert_eq!(world.sessions.get("g", &first.name).err().unwrap().code, Code::InstanceNotFound);
}

#[tokio::test]
async fn what_a_session_holds_ready_is_bounded() {
    let world = World::new(2_000);
    let session = world.subscribed(false).await;
    let one = size(&Record { offset: 0, timestamp_ms: 0, key: None, value: Some("1000".into()), headers: vec![] });
    let limits = Limits { records_max: usize::MAX, bytes_max: 10 * one, bytes_min: 1, wait: Duration::from_secs(1) };
    let values = session.fetch(limits, Values::default()).await.unwrap().0;
    assert!((10..=12).contains(&values.len()), "{}", values.len());
    let held = session.state.lock().await.ready.len();
    assert!(held <= POLL_RECORDS_MAX, "{held}");
    assert_eq!(session.deps.held_bytes.load(Ordering::Relaxed), session.state.lock().await.ready_bytes as u64);
}

async fn drain(session: &Arc<Session>) -> Vec<String> {
    let mut values = Vec::new();
    loop {
        let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(50) };
        let found = session.fetch(limits, Values::default()).await.unwrap().0;
        if found.is_empty() {
            return values;
        }
        values.extend(found);
    }
}

#[tokio::test]
async fn a_position_beyond_the_end_goes_where_auto_offset_reset_says_and_the_session_hears_on() {
    let world = World::new(5);
    let session = world.subscribed(true).await;
    assert_eq!(drain(&session).await.len(), 5);
    session.seek(&[(tp(0), 1000)]).await.unwrap();
    assert_eq!(drain(&session).await, ["0", "1", "2", "3", "4"]);
    world.kafka.append("t", 0, 2);
    assert_eq!(drain(&session).await, ["5", "6"]);
    assert_eq!(world.stored().await, Some(7));
}

#[tokio::test]
async fn a_topic_created_anew_is_read_from_its_beginning_whatever_was_stored_for_the_old_one() {
    for (new_records, by_bridge) in [(3, false), (30, false), (30, true)] {
        let world = World::new(20);
        let session = world.subscribed(true).await;
        drain(&session).await;
        world.sessions.remove(&session, true).await;
        assert_eq!(world.stored().await, Some(20));
        if by_bridge {
            session.deps.topics.delete("t").await.unwrap();
            assert_eq!(world.stored().await, None);
        } else {
            world.kafka.remove_topic("t");
        }
        // Kafka drops its own offsets with the topic.
        world.kafka.forget_committed("g");
        world.kafka.add_topic("t", 1);
        world.kafka.append("t", 0, new_records);
        let session = world.subscribed(true).await;
        assert_eq!(drain(&session).await.len(), new_records, "{new_records} {by_bridge}");
        assert_eq!(world.stored().await, Some(new_records as i64));
    }
}

#[tokio::test]
async fn a_topic_created_anew_under_a_running_session_is_read_and_committed() {
    let world = World::new(20);
    let session = world.subscribed(true).await;
    drain(&session).await;
    world.kafka.remove_topic("t");
    world.kafka.add_topic("t", 1);
    world.kafka.append("t", 0, 5);
    assert_eq!(drain(&session).await, ["0", "1", "2", "3", "4"]);
    assert_eq!(world.stored().await, Some(5));
}

#[tokio::test]
async fn a_stored_offset_beyond_the_end_is_given_up() {
    let world = World::new(3);
    world.store.commit("g", 0, &[at(0, 99)]).await.unwrap();
    let session = world.subscribed(true).await;
    assert_eq!(drain(&session).await, ["0", "1", "2"]);
    assert_eq!(world.stored().await, Some(3));
}

#[tokio::test]
async fn a_second_request_waits_no_longer_than_it_may_while_the_first_one_waits() {
    let world = World::new(0);
    let session = world.subscribed(false).await;
    let long = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(60) };
    let first = tokio::spawn({
        let session = Arc::clone(&session);
        async move { session.fetch(long, Values::default()).await }
    });
    while session.polling.try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    let short = Limits { wait: Duration::from_millis(20), ..long };
    let second = timeout(Duration::from_secs(10), session.fetch(short, Values::default())).await.unwrap();
    assert!(second.unwrap().0.is_empty());
    session.deps.gate.set_paused("consume", true).unwrap();
    let refused = timeout(Duration::from_secs(10), session.fetch(long, Values::default())).await.unwrap();
    assert_eq!(refused.err().unwrap().code, Code::Unavailable);
    world.kafka.append("t", 0, 1);
    assert_eq!(first.await.unwrap().unwrap().0, ["0"]);
}

#[tokio::test]
async fn a_commit_for_a_partition_that_is_not_there_is_refused() {
    let world = World::new(1);
    let session = world.session(false);
    assert_eq!(session.commit(Some(vec![at(7, 1)])).await.unwrap_err().code, Code::PartitionNotFound);
    let nowhere = OffsetCommit { partition: TopicPartition::new("none", 0), offset: 1, metadata: String::new() };
    assert_eq!(session.commit(Some(vec![nowhere])).await.unwrap_err().code, Code::TopicNotFound);
    assert!(world.store.groups().await.unwrap().is_empty());
    session.commit(Some(vec![at(0, 1)])).await.unwrap();
}

#[tokio::test]
async fn what_all_sessions_hold_is_bounded_until_answers_are_sent() {
    let world = World::new(5);
    let session = world.subscribed(false).await;
    let body = session.on_its_way(vec![0; usize::try_from(session.deps.config.held_bytes_max).unwrap()]);
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(20) };
    assert!(session.fetch(limits, Values::default()).await.unwrap().0.is_empty());
    assert_eq!(world.kafka.polls(), 0);
    drop(body);
    assert_eq!(fetch(&session, 9).await.unwrap().len(), 5);
}

#[tokio::test]
async fn who_holds_nothing_reads_on_whatever_others_hold() {
    let world = World::new(5);
    let hog = world.subscribed(false).await;
    let max = usize::try_from(hog.deps.config.held_bytes_max).unwrap();
    let body = hog.on_its_way(vec![0; max]);
    let other = world.subscribed(false).await;
    assert_eq!(fetch(&other, 9).await.unwrap().len(), 5);
    let settings = Settings { acknowledged: Some(Acknowledged::new(None, None, None, IDLE).unwrap()), ..testing::settings() };
    let windowed = world.sessions.create("w", None, settings).unwrap();
    windowed.subscribe(vec!["t".to_owned()]).await.unwrap();
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(20) };
    assert!(windowed.fetch_on(limits, acknowledged_tests::Got::default()).await.unwrap().batch.is_some());
    // Up to its share: half of the bound, in three parts.
    let share = other.on_its_way(vec![0; max / 6]);
    world.kafka.append("t", 0, 1);
    assert!(other.fetch(limits, Values::default()).await.unwrap().0.is_empty());
    drop(share);
    assert_eq!(fetch(&other, 9).await.unwrap(), ["5"]);
    drop(body);
    assert_eq!(fetch(&hog, 9).await.unwrap().len(), 6);
}

#[tokio::test]
async fn who_does_not_take_what_it_has_is_idle_although_it_asks_for_more() {
    let world = World::new(0);
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(20) };
    let (stalled, slow, waiting) = (world.subscribed(false).await, world.subscribed(false).await, world.subscribed(false).await);
    let max = usize::try_from(stalled.deps.config.held_bytes_max).unwrap();
    let (_body, first, _second) = (stalled.on_its_way(vec![0; max]), slow.on_its_way(vec![0; 9]), slow.on_its_way(vec![0; 9]));
    for session in [&stalled, &slow, &waiting] {
        *session.used.lock() -= IDLE;
        assert!(session.fetch(limits, Values::default()).await.unwrap().0.is_empty());
    }
    // Something of it was taken.
    drop(first);
    world.sessions.expire().await;
    let ended = [&stalled, &slow, &waiting].map(|session| session.ended().is_cancelled());
    assert_eq!(ended, [true, false, false]);
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_its_stream() {
    let world = World::new(1);
    let session = world.subscribed(false).await;
    fetch(&session, 1).await.unwrap();
    let ended = session.ended();
    *session.used.lock() -= IDLE;
    assert!(!ended.is_cancelled());
    world.sessions.expire().await;
    assert!(ended.is_cancelled());
    assert!(session.cut_off().message.contains("consume.session_idle"));
    drop(session);
    assert_eq!(world.sessions.inner.deps.sessions.load(Ordering::Relaxed), 0);
}
