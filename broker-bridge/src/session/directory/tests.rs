use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn record(offset: i64, key: &Key, turn: u64, entry: Option<&Entry>) -> Record {
    Record {
        offset,
        timestamp_ms: offset,
        key: Some(write_key(key)),
        value: entry.map(|entry| serde_json::to_vec(entry).unwrap().into()),
        headers: vec![(TURN.to_owned(), Some(turn.to_string().into()))],
    }
}

fn entry(owner: &str) -> Entry {
    Entry {
        owner: owner.to_owned(),
        principal: None,
        store: "redis".to_owned(),
        idle_ms: 1_000,
        fields: BTreeMap::new(),
        reads: Reads::Topics(vec!["t".to_owned()]),
        sought: Vec::new(),
    }
}

fn key(name: &str) -> Key {
    ("a/group".to_owned(), name.to_owned())
}

/// A topic that several directories have in common.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    records: Arc<Mutex<Vec<Record>>>,
    is_made: Arc<AtomicBool>,
    /// It is there, and the broker that is asked does not know it.
    is_hidden: Arc<AtomicBool>,
}

#[async_trait]
impl Log for Shared {
    async fn bounds(&self) -> Result<Option<Bounds>, KafkaError> {
        let latest = self.records.lock().last().map_or(0, |last| last.offset + 1);
        let is_known = self.is_made.load(Ordering::Relaxed) && !self.is_hidden.load(Ordering::Relaxed);
        Ok(is_known.then_some(Bounds { earliest: 0, latest }))
    }

    async fn read(&self, from: i64, until: i64, take: &mut (dyn FnMut(Record) + Send)) -> Result<(), KafkaError> {
        let records: Vec<Record> = self.records.lock().iter().filter(|record| (from..until).contains(&record.offset)).cloned().collect();
        records.into_iter().for_each(take);
        Ok(())
    }

    async fn make(&self) -> Result<(), KafkaError> {
        self.is_made.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn append(&self, key: Bytes, turn: u64, value: Option<Bytes>) -> Result<i64, KafkaError> {
        self.make().await?;
        let mut log = self.records.lock();
        let offset = log.last().map_or(0, |last| last.offset + 1);
        log.push(Record { value, ..record(offset, &read_key(&key).unwrap(), turn, None) });
        Ok(offset)
    }
}

fn directory(log: &Shared, name: &str) -> Directory {
    directory_with(log, name, "redis")
}

pub(crate) fn directory_with(log: &Shared, name: &str, store: &str) -> Directory {
    let me = Me { advertised: name.to_owned(), tls: false, bound: Arc::default(), store: store.to_owned() };
    Directory::new(log.clone(), me, 2, Duration::from_secs(5))
}

#[tokio::test]
async fn the_first_of_two_that_write_the_same_turn_wins_and_both_know_it() {
    let log = Shared::default();
    let (a, b) = (directory(&log, "http://a:1"), directory(&log, "http://b:1"));
    let key = key("i");
    assert!(a.change(&key, 0, Some(&entry("http://a:1"))).await.unwrap());
    b.sync().await.unwrap();
    assert_eq!(b.known(&key).unwrap().entry.unwrap().owner, "http://a:1");
    assert!(b.change(&key, 1, Some(&entry("http://b:1"))).await.unwrap());
    assert!(!a.change(&key, 1, Some(&entry("http://a:1"))).await.unwrap());
    b.sync().await.unwrap();
    for directory in [&a, &b] {
        let known = directory.known(&key).unwrap();
        assert_eq!((known.turn, known.entry.as_ref().unwrap().owner.as_str()), (2, "http://b:1"));
        assert!(known.is_covered(), "compaction would keep the record of the loser");
    }
    assert!(b.change(&key, 2, Some(&entry("http://b:1"))).await.unwrap());
    assert!(!b.known(&key).unwrap().is_covered());
}

#[tokio::test]
async fn what_is_gone_stays_gone_for_one_who_comes_too_late_and_can_be_created_again() {
    let log = Shared::default();
    let (a, b) = (directory(&log, "http://a:1"), directory(&log, "http://b:1"));
    let key = key("i");
    a.change(&key, 0, Some(&entry("http://a:1"))).await.unwrap();
    b.sync().await.unwrap();
    a.change(&key, 1, None).await.unwrap();
    assert!(!b.change(&key, 1, Some(&entry("http://b:1"))).await.unwrap());
    assert!(b.known(&key).unwrap().entry.is_none());
    // What compaction keeps says so, too: the loser has written it.
    assert!(log.records.lock().last().unwrap().value.is_none());
    a.sync().await.unwrap();
    let gone = a.known(&key).unwrap();
    assert!(a.change(&key, gone.turn, Some(&entry("http://a:1"))).await.unwrap());
}

#[tokio::test]
async fn entries_are_bounded_named_as_they_are_and_garbage_is_passed_over() {
    let log = Shared::default();
    let a = directory(&log, "http://a:1");
    for name in ["i", "j"] {
        a.has_room().unwrap();
        a.change(&key(name), 0, Some(&entry("http://a:1"))).await.unwrap();
    }
    let full = a.has_room().unwrap_err();
    assert!(full.code == Code::TooMany && full.message.contains("consume.directory_max"), "{full}");
    a.change(&key("i"), 1, None).await.unwrap();
    a.has_room().unwrap();

    let garbage = |key: &'static [u8], value: &'static [u8], turn: Option<&'static str>| {
        let mut log = log.records.lock();
        let offset = log.len() as i64;
        let headers = turn.map(|turn| (TURN.to_owned(), Some(turn.into()))).into_iter().collect();
        log.push(Record { offset, timestamp_ms: 0, key: Some(key.into()), value: Some(value.into()), headers });
    };
    garbage(b"no slash", b"{}", Some("9"));
    garbage(b"j/a/group", b"not JSON", Some("9"));
    garbage(b"j/a/group", b"{}", None);
    garbage(b"\xff/g", b"{}", Some("1"));
    a.sync().await.unwrap();
    assert_eq!(a.known(&key("j")).unwrap().turn, 1);
    // A later version's entry.
    let mut more = serde_json::to_value(entry("http://c:1")).unwrap();
    more["later"] = serde_json::json!([1]);
    assert_eq!(serde_json::from_value::<Entry>(more).unwrap(), entry("http://c:1"));
}

#[tokio::test]
async fn a_topic_that_was_made_anew_is_read_from_its_beginning() {
    let log = Shared::default();
    let a = directory(&log, "http://a:1");
    for turn in 0..3 {
        a.change(&key("i"), turn, Some(&entry("http://a:1"))).await.unwrap();
    }
    log.records.lock().clear();
    log.is_made.store(false, Ordering::Relaxed);
    a.sync().await.unwrap();
    assert!(a.known(&key("i")).is_none());
    assert!(a.change(&key("i"), 0, Some(&entry("http://a:1"))).await.unwrap());
}

#[tokio::test]
async fn a_broker_that_does_not_know_the_topic_for_a_moment_costs_no_session() {
    let log = Shared::default();
    let a = directory(&log, "http://a:1");
    a.change(&key("i"), 0, Some(&entry("http://a:1"))).await.unwrap();
    log.is_hidden.store(true, Ordering::Relaxed);
    let error = a.sync().await.unwrap_err();
    assert!(error.retryable() && error.message.contains("does not know it yet"), "{error}");
    assert!(a.known(&key("i")).unwrap().entry.is_some());
    log.is_hidden.store(false, Ordering::Relaxed);
    a.sync().await.unwrap();
    assert!(a.known(&key("i")).unwrap().entry.is_some());
}

#[tokio::test]
async fn the_address_is_the_advertised_one_or_where_it_listens() {
    let log = Shared::default();
    let at = |advertised: &str, bound: &str| {
        let bound = Arc::new(OnceLock::from(BTreeMap::from([("http", bound.parse().unwrap())])));
        let me = Me { advertised: advertised.to_owned(), tls: false, bound, store: String::new() };
        Directory::new(log.clone(), me, 1, Duration::from_secs(1)).me().to_owned()
    };
    assert_eq!(at("http://bridge-0:8082", "0.0.0.0:1"), "http://bridge-0:8082");
    assert_eq!(at("", "10.0.0.7:8082"), "http://10.0.0.7:8082");
    assert_eq!(at("", "[::1]:8082"), "http://[::1]:8082");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(at("", "0.0.0.0:8082"), format!("http://{}:8082", host.trim()));
}

/// A replica between two of its steps.
#[derive(Default)]
struct Replica {
    entries: Entries,
    next: i64,
    /// What it has decided to write, not yet written: key, turn, whether the session is to be.
    decided: Option<(Key, u64, bool)>,
    /// Written and not yet judged: key, offset, turn, whether it is to be.
    written: Option<(Key, i64, u64, bool)>,
}

#[derive(Clone, Debug)]
enum Step {
    /// Reads to the end.
    Sync,
    /// Decides, on what it knows, to create or claim a session, or to end it.
    Decide(usize, bool),
    Write,
    /// Reads to what it wrote and sees whether it counted.
    Judge,
    /// What it holds and finds covered it writes again.
    LookAfter,
    /// Started again: it knows nothing and holds nothing.
    Restart,
    /// The log loses what is older than everybody's reading and writing.
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        3 => Just(Step::Sync),
        4 => (0..2usize, proptest::bool::weighted(0.7)).prop_map(|(key, live)| Step::Decide(key, live)),
        4 => Just(Step::Write),
        4 => Just(Step::Judge),
        2 => Just(Step::LookAfter),
        1 => Just(Step::Restart),
        1 => Just(Step::Compact),
    ];
    proptest::collection::vec((0..3usize, step), 0..80)
}

struct World {
    log: Vec<Record>,
    end: i64,
    replicas: [Replica; 3],
    /// Turns that somebody was told to have won.
    won: BTreeMap<(Key, u64), usize>,
}

impl World {
    fn sync(&mut self, replica: usize) {
        let Replica { entries, next, .. } = &mut self.replicas[replica];
        for record in self.log.iter().filter(|record| record.offset >= *next) {
            entries.apply(record).unwrap();
        }
        *next = self.end;
    }

    fn append(&mut self, replica: usize, key: &Key, turn: u64, live: bool) -> i64 {
        let owner = entry(&format!("http://{replica}:1"));
        self.log.push(record(self.end, key, turn, live.then_some(&owner)));
        self.end += 1;
        self.end - 1
    }

    fn judge(&mut self, replica: usize) {
        let Some((key, offset, turn, _)) = self.replicas[replica].written.take() else { return };
        self.sync(replica);
        let known = self.replicas[replica].entries.by_key[&key].clone();
        if known.offset == offset {
            *self.won.entry((key, turn)).or_default() += 1;
        } else if known.entry.is_none() {
            self.append(replica, &key, known.turn + 1, false);
        }
    }

    fn look_after(&mut self, replica: usize) {
        self.sync(replica);
        let me = format!("http://{replica}:1");
        let covered = self.replicas[replica]
            .entries
            .by_key
            .iter()
            .filter(|(_, known)| known.is_covered() && known.entry.as_ref().is_some_and(|entry| entry.owner == me));
        for (key, turn) in covered.map(|(key, known)| (key.clone(), known.turn)).collect::<Vec<_>>() {
            self.append(replica, &key, turn + 1, true);
        }
    }

    fn step(&mut self, replica: usize, step: &Step) {
        match step {
            Step::Sync => self.sync(replica),
            Step::Decide(name, live) => {
                let key = key(["i", "j"][*name]);
                let one = &mut self.replicas[replica];
                if one.decided.is_none() && one.written.is_none() {
                    let turn = one.entries.by_key.get(&key).map_or(0, |known| known.turn);
                    one.decided = Some((key, turn + 1, *live));
                }
            }
            Step::Write => {
                if let Some((key, turn, live)) = self.replicas[replica].decided.take() {
                    let offset = self.append(replica, &key, turn, live);
                    self.replicas[replica].written = Some((key, offset, turn, live));
                }
            }
            Step::Judge => self.judge(replica),
            Step::LookAfter => self.look_after(replica),
            // A start reads the directory before it writes to it.
            Step::Restart => {
                if self.replicas[replica].written.is_none() {
                    self.replicas[replica] = Replica::default();
                    self.sync(replica);
                }
            }
            Step::Compact => self.compact(),
        }
    }

    /// `min.compaction.lag.ms` is longer than what is decided takes to be judged and put right.
    fn compact(&mut self) {
        for replica in 0..3 {
            self.step(replica, &Step::Write);
        }
        self.settle();
        let mut kept = BTreeSet::new();
        let mut log: Vec<Record> = self.log.drain(..).rev().filter(|record| kept.insert(record.key.clone())).collect();
        log.reverse();
        self.log = log;
    }

    fn settle(&mut self) {
        for replica in 0..3 {
            self.judge(replica);
        }
        // Each round ends at least the races of the one before.
        for _ in 0..3 {
            for replica in 0..3 {
                self.look_after(replica);
            }
        }
        for replica in 0..3 {
            self.sync(replica);
        }
    }

    fn seen(entries: &Entries) -> BTreeMap<Key, (u64, Option<String>)> {
        entries
            .by_key
            .iter()
            .map(|(key, known)| (key.clone(), (known.turn, known.entry.as_ref().map(|entry| entry.owner.clone()))))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn each_turn_has_one_winner_at_most_and_all_replicas_agree_whatever_compaction_keeps(steps in steps()) {
        let mut world = World { log: Vec::new(), end: 0, replicas: Default::default(), won: BTreeMap::new() };
        for (replica, step) in &steps {
            world.step(*replica, step);
        }
        world.settle();
        prop_assert!(world.won.values().all(|winners| *winners == 1), "{:?}", world.won);
        let seen = World::seen(&world.replicas[0].entries);
        for replica in &world.replicas[1..] {
            prop_assert_eq!(World::seen(&replica.entries), seen.clone());
        }
        // One that is new and reads what compaction has left sees the same, but for how often it changed and what is gone.
        world.compact();
        let mut new = Entries::default();
        for record in &world.log {
            new.apply(record).unwrap();
        }
        let live = |seen: BTreeMap<Key, (u64, Option<String>)>| -> BTreeMap<Key, String> {
            seen.into_iter().filter_map(|(key, (_, owner))| Some((key, owner?))).collect()
        };
        prop_assert_eq!(live(World::seen(&new)), live(World::seen(&world.replicas[0].entries)));
    }
}
