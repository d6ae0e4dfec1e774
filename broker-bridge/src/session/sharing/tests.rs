use service_kit::{
    kafka::Record,
    offsets::{OffsetCommit, OffsetStore as _},
};

use super::*;
use crate::{
    config,
    session::{
        Encode, Limits,
        directory::tests::{Shared, directory_with},
    },
    testing::{self, FakeKafka, MemoryOffsets},
};

struct Values(Vec<i64>);

impl Encode for Values {
    fn add(&mut self, _: &TopicPartition, record: &Record) -> Result<bool> {
        self.0.push(record.offset);
        Ok(true)
    }
}

struct World {
    kafka: FakeKafka,
    store: MemoryOffsets,
    log: Shared,
}

impl World {
    fn new() -> Self {
        let kafka = FakeKafka::with_topic("t", 1);
        kafka.append("t", 0, 6);
        Self { kafka, store: MemoryOffsets::default(), log: Shared::default() }
    }

    fn replica(&self, address: &str) -> Sessions {
        self.replica_with(address, "redis")
    }

    fn replica_with(&self, address: &str, store: &str) -> Sessions {
        let directory = directory_with(&self.log, address, store);
        testing::sessions_in(Some(directory), &self.kafka, &self.store, config::Consume::default())
    }

    async fn committed(&self) -> Option<i64> {
        self.store.get("g", None).await.unwrap().offsets.get(&tp()).map(|stored| stored.offset)
    }
}

fn tp() -> TopicPartition {
    TopicPartition::new("t", 0)
}

fn at(offset: i64) -> Option<Vec<OffsetCommit>> {
    Some(vec![OffsetCommit { partition: tp(), offset, metadata: String::new() }])
}

async fn created(replica: &Sessions) -> Arc<Session> {
    let fields = BTreeMap::from([("auto.offset.reset".to_owned(), "earliest".into())]);
    replica.create_shared("g", Some("i".to_owned()), testing::settings(), fields).await.unwrap()
}

async fn subscribed(replica: &Sessions) -> Arc<Session> {
    let session = created(replica).await;
    session.subscribe(vec!["t".to_owned()]).await.unwrap();
    replica.note(&session, &[]).await.unwrap();
    session
}

async fn there(replica: &Sessions) -> (u64, Arc<Entry>) {
    match replica.find("g", "i", true).await.unwrap() {
        Place::There(turn, entry) => (turn, entry),
        Place::Here(_) => panic!("it is here"),
        Place::Nowhere => panic!("it is nowhere"),
    }
}

async fn taken(replica: &Sessions) -> Result<Option<Arc<Session>>> {
    let (turn, entry) = there(replica).await;
    replica.take_over("g", "i", turn, &entry, testing::settings()).await
}

async fn fetch(session: &Arc<Session>, records_max: usize) -> Vec<i64> {
    let limits = Limits { records_max, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_secs(1) };
    session.fetch(limits, Values(Vec::new())).await.unwrap().0
}

#[tokio::test]
async fn a_member_that_is_fenced_while_nobody_has_its_session_joins_again() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = subscribed(&a).await;
    assert_eq!(fetch(&session, 4).await, [0, 1, 2, 3]);
    session.commit(at(2)).await.unwrap();
    world.kafka.fence();
    assert_eq!(fetch(&session, 9).await, [4, 5], "where it was");
    // Not again and again: somebody outside may really have the place. But it is to be tried again.
    world.kafka.fence();
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(50) };
    let refused = session.fetch(limits, Values(Vec::new())).await.err().unwrap();
    assert!(refused.code == Code::KafkaRetriable && refused.retryable() && refused.message.contains("by nobody"), "{refused}");
    // Where another replica has it, that one goes on.
    *session.joined_again.lock() = None;
    taken(&b).await.unwrap().unwrap();
    world.kafka.fence();
    assert_eq!(session.fetch(limits, Values(Vec::new())).await.err().unwrap().code, Code::Conflict);
}

#[tokio::test]
async fn a_fenced_member_that_cannot_join_at_once_joins_later() {
    let world = World::new();
    let a = world.replica("http://a:1");
    let session = subscribed(&a).await;
    assert_eq!(fetch(&session, 4).await, [0, 1, 2, 3]);
    session.commit(at(2)).await.unwrap();
    world.kafka.fence();
    world.kafka.set_without_coordinator(true);
    let limits = Limits { records_max: 9, bytes_max: 1 << 20, bytes_min: 1, wait: Duration::from_millis(50) };
    for _ in 0..2 {
        *session.joined_again.lock() = None;
        let refused = session.fetch(limits, Values(Vec::new())).await.err().unwrap();
        assert!(refused.code == Code::Timeout && refused.message.contains("no coordinator"), "{refused}");
    }
    world.kafka.set_without_coordinator(false);
    *session.joined_again.lock() = None;
    assert_eq!(fetch(&session, 9).await, [2, 3, 4, 5], "from what was acknowledged");
}

#[tokio::test]
async fn a_kept_pattern_that_would_be_refused_is_dropped() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = subscribed(&a).await;
    let bad = || vec!["^(((a{1,100}){1,100}){1,100})".to_owned()];
    let refused = session.subscribe(bad()).await.unwrap_err();
    assert!(refused.code == Code::Unprocessable && refused.message.contains("topic_pattern"), "{refused}");
    assert_eq!(session.subscription().await.unwrap(), ["t"], "the former one stays");
    let (turn, entry) = there(&b).await;
    let entry = Entry { reads: Reads::Topics(bad()), ..(*entry).clone() };
    let taken = b.take_over("g", "i", turn, &entry, testing::settings()).await.unwrap().unwrap();
    assert_eq!(taken.subscription().await.unwrap(), Vec::<String>::new());
    assert_eq!(there(&world.replica("http://c:1")).await.1.reads, Reads::Nothing, "for everybody");
}

#[tokio::test]
async fn another_replica_goes_on_at_what_was_acknowledged_and_the_first_one_lets_go() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let before = subscribed(&a).await;
    assert_eq!(fetch(&before, 4).await, [0, 1, 2, 3]);
    before.commit(at(2)).await.unwrap();
    let (_, entry) = there(&b).await;
    assert_eq!((entry.owner.as_str(), &entry.reads), ("http://a:1", &Reads::Topics(vec!["t".to_owned()])));
    assert_eq!(entry.fields["auto.offset.reset"], "earliest");

    let after = taken(&b).await.unwrap().unwrap();
    let told = after.knows_what_it_gave().unwrap_err();
    assert!(told.code == Code::IllegalState && told.message.contains("comes again"), "{told}");
    after.knows_what_it_gave().unwrap();
    assert_eq!(fetch(&after, 9).await, [2, 3, 4, 5]);

    // The first one does not know yet; what it wants to write, it must not.
    assert_eq!(a.note(&before, &[tp()]).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(a.count(), 0);
    assert!(before.commit(at(6)).await.is_err() && world.committed().await == Some(2));
    assert!(matches!(a.find("g", "i", false).await.unwrap(), Place::There(..)));
    // And back again.
    let again = taken(&a).await.unwrap().unwrap();
    b.look_after().await;
    assert_eq!(b.count(), 0);
    a.delete(&again, true).await.unwrap();
    assert!(matches!(b.find("g", "i", true).await.unwrap(), Place::Nowhere));
}

#[tokio::test]
async fn one_of_those_that_claim_at_once_has_it() {
    let world = World::new();
    let a = world.replica("http://a:1");
    let _held = subscribed(&a).await;
    let (b, c) = (world.replica("http://b:1"), world.replica("http://c:1"));
    let ((turn, entry), (of_c, _)) = tokio::join!(there(&b), there(&c));
    assert_eq!(turn, of_c);
    let claim = async |replica: &Sessions| replica.take_over("g", "i", turn, &entry, testing::settings()).await.unwrap().is_some();
    let won = tokio::join!(claim(&b), claim(&c));
    assert!(won.0 != won.1, "{won:?}");
    let (winner, loser) = if won.0 { (&b, &c) } else { (&c, &b) };
    assert_eq!((winner.count(), loser.count()), (1, 0));
    winner.look_after().await;
    assert_eq!(winner.count(), 1, "the record of the loser is no claim");
    a.look_after().await;
    assert_eq!(a.count(), 0);
}

#[tokio::test]
async fn a_seek_is_done_again_until_a_commit_follows_it() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = subscribed(&a).await;
    assert_eq!(fetch(&session, 9).await.len(), 6);
    session.commit(None).await.unwrap();
    session.seek(&[(tp(), 3)]).await.unwrap();
    a.note(&session, &[tp()]).await.unwrap();

    let session = taken(&b).await.unwrap().unwrap();
    assert_eq!(fetch(&session, 9).await, [3, 4, 5]);
    // The group is where the client put it.
    session.commit(at(4)).await.unwrap();
    assert_eq!((world.committed().await, world.store.get("g", None).await.unwrap().epoch), (Some(4), 1));
    a.look_after().await;
    let session = taken(&a).await.unwrap().unwrap();
    assert_eq!(fetch(&session, 9).await, [4, 5]);

    // Of partitions that are named.
    session.unsubscribe().await.unwrap();
    session.assign(vec![tp()]).await.unwrap();
    a.note(&session, &[]).await.unwrap();
    session.seek_to_end(&[tp()], true).await.unwrap();
    a.note(&session, &[tp()]).await.unwrap();
    b.look_after().await;
    let session = taken(&b).await.unwrap().unwrap();
    assert_eq!(session.assignment().await.unwrap(), [tp()]);
    assert_eq!(fetch(&session, 2).await, [0, 1]);
}

#[tokio::test]
async fn a_name_is_one_sessions_whichever_replica_is_asked() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = created(&a).await;
    for replica in [&a, &b] {
        let exists = replica.create_shared("g", Some("i".to_owned()), testing::settings(), BTreeMap::new()).await.err().unwrap();
        assert_eq!(exists.code, Code::InstanceExists);
    }
    assert_eq!((a.count(), b.count()), (1, 0), "what was refused is not held");
    a.delete(&session, true).await.unwrap();
    created(&b).await;
    // Two at once.
    let both = tokio::join!(
        a.create_shared("g", Some("j".to_owned()), testing::settings(), BTreeMap::new()),
        b.create_shared("g", Some("j".to_owned()), testing::settings(), BTreeMap::new())
    );
    assert!(both.0.is_ok() != both.1.is_ok());
}

#[tokio::test]
async fn who_was_robbed_cannot_delete_and_who_deletes_ends_it_everywhere() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = subscribed(&a).await;
    let robbed = session;
    let session = taken(&b).await.unwrap().unwrap();
    assert_eq!(a.delete(&robbed, true).await.unwrap_err().code, Code::Unavailable);
    there(&a).await;
    b.delete(&session, true).await.unwrap();
    assert!(matches!(a.find("g", "i", true).await.unwrap(), Place::Nowhere));

    // One that is gone without its holder's doing ends there, too; here because its record is very old.
    let session = subscribed(&a).await;
    b.expire_abandoned().await;
    assert!(matches!(b.find("g", "i", false).await.unwrap(), Place::Nowhere));
    a.look_after().await;
    assert_eq!(a.count(), 0);
    assert_eq!(session.commit(at(1)).await.unwrap_err().code, Code::InstanceNotFound);
}

#[tokio::test]
async fn offsets_that_are_not_here_are_not_gone_on_from() {
    let world = World::new();
    let (a, b) = (world.replica_with("http://a:1", "sled at a:/x"), world.replica_with("http://b:1", "sled at b:/x"));
    subscribed(&a).await;
    let refused = taken(&b).await.err().unwrap();
    assert!(refused.code == Code::Unavailable && refused.message.contains("sled at a:/x") && refused.message.contains("[offsets] store"));
    let (turn, _) = there(&b).await;
    assert!(b.strike_out("g", "i", turn).await.unwrap());
    assert!(matches!(b.find("g", "i", false).await.unwrap(), Place::Nowhere));
}

#[tokio::test]
async fn who_ends_leaves_its_sessions_to_the_others() {
    let world = World::new();
    let (a, b) = (world.replica("http://a:1"), world.replica("http://b:1"));
    let session = subscribed(&a).await;
    assert_eq!(fetch(&session, 2).await, [0, 1]);
    a.close().await;
    assert_eq!((a.count(), world.committed().await), (0, None));
    let session = taken(&b).await.unwrap().unwrap();
    assert_eq!(fetch(&session, 9).await.len(), 6);
}
