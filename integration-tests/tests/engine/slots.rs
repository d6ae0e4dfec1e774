//! A job shared by workers that come, go and die: every record once, in order.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use integration_tests::{eventually, kafka, process::Process, servers::kafka_bootstrap, unique};
use rustix::process::Signal;

const PARTITIONS: i32 = 4;
const RECORDS: u64 = 20_000;
/// Brokers take no shorter ones.
const SESSION_MS: &str = "session.timeout.ms=6000";

fn worker(dir: &Path, bootstrap: &str, from: &str, to: &str, id: &str) -> Process {
    let args = [from, to, id, SESSION_MS, "heartbeat.interval.ms=500"];
    let env =
        [("KAFKA_BOOTSTRAP_SERVERS", bootstrap), ("MILLRACE_CONTROL__LISTEN", "127.0.0.1:0"), ("MILLRACE_PAGE__LISTEN", "127.0.0.1:0")];
    Process::start("exactly_once_copy", dir, &args, &env)
}

/// What a committed reader sees, by partition; a record that stands twice or out of order fails the test.
fn copied(bootstrap: &str, topic: &str) -> u64 {
    let mut last: BTreeMap<i32, u64> = BTreeMap::new();
    let all = kafka::read_all(bootstrap, topic);
    for seen in &all {
        let number: u64 = seen.text().parse().expect("a number");
        assert_eq!(number % PARTITIONS as u64, seen.partition as u64, "{number} is in partition {}", seen.partition);
        let before = last.insert(seen.partition, number);
        let expected = before.map_or(seen.partition as u64, |before| before + PARTITIONS as u64);
        assert_eq!(number, expected, "partition {} at offset {}: after {before:?}", seen.partition, seen.offset);
    }
    all.len() as u64
}

async fn wait_for(bootstrap: &str, to: &str, count: u64, workers: &[&Process]) {
    let state = || async {
        match copied(bootstrap, to) {
            seen if seen >= count => Ok(()),
            seen => Err(format!("{seen} of {count} copied\n{}", workers.iter().map(|one| one.log()).collect::<Vec<_>>().join("\n---\n"))),
        }
    };
    eventually(Duration::from_secs(90), "the copies are there", state).await;
}

/// Twenty thousand numbered records come in, while workers join, are killed, are put to sleep for longer than the group waits for
/// them and wake up in the belief that their slots are theirs still, are replaced under their id, and leave. Seen by a reader that is none of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_thousand_records_are_copied_once_while_workers_come_go_die_and_wake_up() {
    let bootstrap = kafka_bootstrap();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (from, to) = (unique("slots-from"), unique("slots-to"));
    kafka::create_topic(&bootstrap, &from, PARTITIONS).await;
    kafka::create_topic(&bootstrap, &to, PARTITIONS).await;
    let done = Arc::new(AtomicBool::new(false));
    // A reader beside it, at all times.
    let watched = {
        let (bootstrap, to, done) = (bootstrap.clone(), to.clone(), done.clone());
        tokio::task::spawn_blocking(move || {
            while !done.load(Ordering::SeqCst) {
                copied(&bootstrap, &to);
            }
        })
    };
    let start = |id: &str| worker(dir.path(), &bootstrap, &from, &to, id);
    // Each phase has records of its own, so that there is something to do whatever happens to the workers.
    let mut produced = 0;
    let mut feed = |count: u64| {
        kafka::produce(&bootstrap, &from, PARTITIONS, (produced..produced + count).map(|number| number.to_string()));
        produced += count;
        produced
    };

    let mut a = start("a");
    wait_for(&bootstrap, &to, feed(1_000), &[&a]).await;
    let mut b = start("b");
    wait_for(&bootstrap, &to, feed(1_000), &[&a, &b]).await;
    // Killed in the middle of them: its slots are the others' when its session has timed out.
    let mut c = start("c");
    wait_for(&bootstrap, &to, feed(2_000), &[&a, &b, &c]).await;
    let fed = feed(4_000);
    wait_for(&bootstrap, &to, fed - 3_500, &[&a, &b, &c]).await;
    a.kill_9();
    wait_for(&bootstrap, &to, fed, &[&b, &c]).await;
    // Put to sleep, and woken when all of its slots are others'.
    let fed = feed(4_000);
    wait_for(&bootstrap, &to, fed - 3_500, &[&b, &c]).await;
    b.signal(Signal::STOP);
    wait_for(&bootstrap, &to, fed, &[&c]).await;
    b.signal(Signal::CONT);
    wait_for(&bootstrap, &to, feed(2_000), &[&b, &c]).await;
    // Its id is another process's, which has its slots at once; the one that is replaced ends.
    let fed = feed(3_000);
    let again = start("c");
    assert!(!c.ended(Duration::from_secs(30)).await.success(), "{}", c.log());
    wait_for(&bootstrap, &to, fed, &[&b, &again]).await;
    // One goes as it should.
    let fed = feed(3_000);
    b.signal(Signal::TERM);
    assert!(b.ended(Duration::from_secs(30)).await.success(), "{}", b.log());
    wait_for(&bootstrap, &to, fed, &[&b, &c, &again]).await;
    assert_eq!((fed, copied(&bootstrap, &to)), (RECORDS, RECORDS));
    done.store(true, Ordering::SeqCst);
    watched.await.expect("what a reader sees at any time is right");
    let group = format!("copy-{to}");
    eventually(Duration::from_secs(10), "the group's offsets are the job's", || async {
        match kafka::lag(&bootstrap, &group, &from) {
            0 => Ok(()),
            lag => Err(format!("a lag of {lag}")),
        }
    })
    .await;
    // Each change in the group moves some slots, and none of them is fought for.
    let logs = [&a, &b, &c, &again].map(Process::log).concat();
    let taken = logs.matches("slot taken").count();
    assert!((8..=40).contains(&taken), "{taken} times\n{logs}");
}
