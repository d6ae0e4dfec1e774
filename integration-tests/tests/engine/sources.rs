//! Programs that receive, from outside: fed over HTTP, a socket and a consumer group, killed in between.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use integration_tests::{eventually, flume::free_port, kafka, process::Process, servers::kafka_bootstrap, unique};
use rand::RngExt;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::{FREE_PORTS, WAIT};

/// Words of one post.
const WORDS: usize = 5;
/// Posts between two kills.
const POSTS: usize = 80;

/// The counts of the newest batch that was printed as a whole: `("word", 5)` a line.
fn printed(log: &str) -> BTreeMap<String, u64> {
    let batches = log.split("-------------------------------------------\nTime: ");
    let whole = batches.filter(|batch| batch.contains("\n\n")).last().unwrap_or_default();
    let counts = whole.lines().filter_map(|line| line.strip_prefix("(\"")?.strip_suffix(')')?.split_once("\", "));
    counts.map(|(word, count)| (word.to_owned(), count.parse().unwrap_or_else(|error| panic!("{word} {count}: {error}")))).collect()
}

/// Posts words of their own, each once and one post for each permit, and keeps the numbers of those that were acknowledged.
async fn post(listen: String, permits: Arc<Semaphore>, next: Arc<AtomicUsize>, acknowledged: watch::Sender<BTreeSet<usize>>) {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client");
    // Until there will be no more.
    while let Ok(permit) = permits.acquire().await {
        permit.forget();
        eventually(WAIT, "the program listens", || async { TcpStream::connect(&listen).await.map_err(|error| error.to_string()) }).await;
        let n = next.fetch_add(1, Relaxed);
        let body = vec![format!("post-{n}"); WORDS].join("\n");
        // Without an answer, because it died before it could give one, the words may be there or not.
        if client.post(format!("http://{listen}/")).body(body).send().await.is_ok_and(|answer| answer.status() == 200) {
            acknowledged.send_modify(|acknowledged| {
                acknowledged.insert(n);
            });
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_over_http_is_counted_once_whatever_is_killed() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (listen, checkpoint) = (format!("127.0.0.1:{}", free_port()), dir.path().join("checkpoint"));
    let start = || Process::start("http_word_count", dir.path(), &[&listen, &checkpoint.to_string_lossy()], &FREE_PORTS);
    let (permits, next, (acknowledged, mut known)) = (Arc::new(Semaphore::new(0)), Arc::default(), watch::channel(BTreeSet::new()));
    let mut senders = Vec::new();
    for _ in 0..4 {
        let sender = post(listen.clone(), Arc::clone(&permits), Arc::clone(&next), acknowledged.clone());
        senders.push(tokio::spawn(sender));
    }
    let mut process = start();
    for _ in 0..6 {
        // Killed in the middle of them, while senders wait for their answers.
        let before = known.borrow().len();
        permits.add_permits(POSTS);
        let moment = before + rand::rng().random_range(1..POSTS / 2);
        let there = known.wait_for(|acknowledged| acknowledged.len() >= moment);
        tokio::time::timeout(WAIT, there).await.expect("posts are acknowledged").expect("the senders");
        process.kill_9();
        process = start();
    }
    // What is left of the permits is posted too.
    eventually(WAIT, "every post has ended", || async {
        if permits.available_permits() == 0 { Ok(()) } else { Err(format!("{} to go", permits.available_permits())) }
    })
    .await;
    permits.close();
    for sender in senders {
        sender.await.expect("a sender");
    }
    let acknowledged = known.borrow().clone();
    let counts = eventually(WAIT, "everything that was acknowledged is counted", || async {
        let counts = printed(&process.log());
        let missing: Vec<&usize> = acknowledged.iter().filter(|n| !counts.contains_key(&format!("post-{n}"))).collect();
        if missing.is_empty() { Ok(counts) } else { Err(format!("{} missing of {}: {missing:?}", missing.len(), acknowledged.len())) }
    })
    .await;
    let wrong: Vec<_> = counts.iter().filter(|(_, count)| **count != WORDS as u64).collect();
    assert!(wrong.is_empty(), "counted in part or twice: {wrong:?}");
    // Those without an answer may be there: never more than one for each sender and kill.
    let more = counts.len() - acknowledged.len();
    assert!(more <= 4 * 6, "{more} more than were acknowledged");
    process.stop().await;
}

#[tokio::test]
async fn words_from_a_socket_are_counted_second_by_second() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port().to_string();
    let mut process = Process::start("network_word_count", dir.path(), &["127.0.0.1", &port], &FREE_PORTS);
    let (mut peer, _) = listener.accept().await.expect("the receiver");
    let holds = |log: String, needles: &[&str]| needles.iter().all(|needle| log.contains(needle));
    peer.write_all(b"to be or not to be\n").await.expect("a line");
    eventually(WAIT, "the words are counted", || async {
        let log = process.log();
        if holds(log.clone(), &["(\"to\", 2)", "(\"be\", 2)", "(\"or\", 1)", "(\"not\", 1)"]) { Ok(()) } else { Err(log) }
    })
    .await;
    // The other side goes away and comes back.
    drop(peer);
    let (mut peer, _) = tokio::time::timeout(WAIT, listener.accept()).await.expect("it connects again").expect("the receiver");
    peer.write_all(b"that is the question\n").await.expect("a line");
    eventually(WAIT, "the words are counted", || async {
        let log = process.log();
        if holds(log.clone(), &["(\"that\", 1)", "(\"question\", 1)", "ended the connection"]) { Ok(()) } else { Err(log) }
    })
    .await;
    process.stop().await;
}

/// The window of `kafka_word_count` holds all words of the test.
fn kafka_words(dir: &Path, bootstrap: &str, topic: &str) -> Process {
    let checkpoint = dir.join("checkpoint");
    Process::start("kafka_word_count", dir, &[bootstrap, topic, topic, "1", &checkpoint.to_string_lossy()], &FREE_PORTS)
}

#[tokio::test]
async fn a_receiver_of_a_consumer_group_goes_on_behind_what_it_stored() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let topic = unique("received");
    kafka::create_topic(&bootstrap, &topic, 2).await;
    let mut process = kafka_words(dir.path(), &bootstrap, &topic);
    for round in 1..=2_u64 {
        // Each word comes to each partition, the second time to another process.
        kafka::produce(&bootstrap, &topic, 2, (0..100).map(|n| format!("word-{}", n / 2 % 5)));
        let wanted: BTreeMap<String, u64> = (0..5).map(|n| (format!("word-{n}"), 20 * round)).collect();
        eventually(WAIT, "the words are counted", || async {
            let counts = printed(&process.log());
            if counts == wanted { Ok(()) } else { Err(format!("{counts:?}\n{}", process.log())) }
        })
        .await;
        process.kill_9();
        process = kafka_words(dir.path(), &bootstrap, &topic);
    }
    eventually(WAIT, "the window goes on", || async {
        let counts = printed(&process.log());
        if counts.values().sum::<u64>() == 200 { Ok(()) } else { Err(format!("{counts:?}\n{}", process.log())) }
    })
    .await;
    process.stop().await;
}
