//! DStream semantics as tables: words per batch in, what an output saw at which time out.
//!
//! Every table is run several times: straight through, with a restart after one batch or after each, from the
//! checkpoint's snapshot and the records that it asks for, and with a first attempt of each batch that fails after all of
//! its outputs. What the outputs see must be the same.

mod context;
mod frame;
mod join;
mod map_with_state;
mod rdd;
mod report;
mod save;
mod sources;
mod stream;
mod transform;
mod update_state;
mod window;

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::program::DStreamProgram;
use super::*;
use crate::batch::{BatchDefinition, BatchOutcome, PartitionInput, Program};
use crate::job::Monitor;

/// `(seconds, sorted values)` of each time at which the output ran.
type Seen<T> = Arc<Mutex<Vec<(i64, Vec<T>)>>>;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn context() -> (StreamingContext, DStream<String>) {
    let ssc = StreamingContext::new(SparkConf::new(), secs(1)).unwrap();
    let words = context_stream(&ssc);
    (ssc, words)
}

fn context_stream(ssc: &StreamingContext) -> DStream<String> {
    let strategy = ConsumerStrategy::subscribe(["t"], [("bootstrap.servers", "unused:9092")]);
    let records = KafkaUtils::create_direct_stream::<String, String>(ssc, LocationStrategy::PreferConsistent, strategy);
    records.flat_map(|record| record.value)
}

fn record<T: Data + Ord>(stream: &DStream<T>, seen: &Seen<T>) {
    let seen = seen.clone();
    stream.foreach_rdd(move |rdd, time| {
        let seen = seen.clone();
        async move {
            let mut values = rdd.collect().await?;
            values.sort();
            seen.lock().push((time.milliseconds() / 1000, values));
            Ok(())
        }
    });
}

/// An output that computes everything and sees nothing.
fn ignore<T: Data>(stream: &DStream<T>) {
    stream.foreach_rdd(|rdd, _| async move { rdd.count().await.map(drop) });
}

fn values(words: &str) -> Vec<Bytes> {
    words.split_whitespace().map(|word| Bytes::from(word.to_string())).collect()
}

/// The batch at `second` with these words, spread over the partitions.
fn batch(second: i64, words: &str) -> (Arc<BatchDefinition>, Vec<PartitionInput>) {
    testing::batch(second as u64, second * 1000, &values(words))
}

async fn attempt(program: &mut DStreamProgram, second: i64, words: &str, replay: bool) -> anyhow::Result<BatchOutcome> {
    reported(program, second, words, replay, None).await
}

/// As [`attempt`], told to a monitor.
async fn reported(
    program: &mut DStreamProgram,
    second: i64,
    words: &str,
    replay: bool,
    monitor: Option<Arc<Monitor>>,
) -> anyhow::Result<BatchOutcome> {
    testing::attempt(program, second as u64, second * 1000, &values(words), replay, monitor).await
}

async fn run(program: &mut DStreamProgram, second: i64, words: &str) -> BatchOutcome {
    attempt(program, second, words, false).await.unwrap()
}

/// As the runner does it: the snapshot, then the records that are wanted again.
async fn restore(program: &mut DStreamProgram, snapshot: Bytes, batches: &[(i64, &str)]) {
    let of = |time_ms: i64| values(batches.iter().find(|(second, _)| *second * 1000 == time_ms).unwrap().1);
    testing::restore(program, snapshot, of).await.unwrap();
}

/// What happens to a program while a table runs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Quiet,
    RestartAfter(usize),
    RestartAfterEach,
    EachFailsFirst,
}

/// `batches`: `(second, words)`. `expected`: what an output of the built stream sees.
#[track_caller]
fn check<T: Data + Ord + Debug>(
    build: impl Fn(&DStream<String>) -> DStream<T>,
    batches: &[(i64, &str)],
    expected: impl IntoIterator<Item = (i64, Vec<T>)>,
) {
    check_in(|_, words| build(words), batches, expected);
}

/// As [`check`], for what the context makes.
#[track_caller]
fn check_in<T: Data + Ord + Debug>(
    build: impl Fn(&StreamingContext, &DStream<String>) -> DStream<T>,
    batches: &[(i64, &str)],
    expected: impl IntoIterator<Item = (i64, Vec<T>)>,
) {
    let expected: Vec<(i64, Vec<T>)> = expected.into_iter().collect();
    let restarts = (1..=batches.len()).map(Life::RestartAfter);
    for life in [Life::Quiet, Life::RestartAfterEach, Life::EachFailsFirst].into_iter().chain(restarts) {
        let seen = Seen::default();
        live(life, |ssc, words| record(&build(ssc, words), &seen), batches);
        assert_eq!(*seen.lock(), expected, "{life:?}");
    }
}

/// Runs the batches of a program through one life.
fn live(life: Life, build: impl Fn(&StreamingContext, &DStream<String>), batches: &[(i64, &str)]) {
    let fail = Arc::new(AtomicBool::new(false));
    let declare = || {
        let (ssc, words) = context();
        build(&ssc, &words);
        if life == Life::EachFailsFirst {
            let fail = fail.clone();
            words.foreach_rdd(move |_, _| {
                let fails = fail.swap(false, Relaxed);
                async move { if fails { Err(anyhow::anyhow!("told to fail")) } else { Ok(()) } }
            });
        }
        ssc.program().unwrap()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut program = declare();
        let mut snapshot = Bytes::new();
        for (n, (second, words)) in batches.iter().enumerate() {
            if life == Life::EachFailsFirst {
                fail.store(true, Relaxed);
                let error = attempt(&mut program, *second, words, false).await.unwrap_err();
                assert!(format!("{error:#}").ends_with("told to fail"), "{error:#}");
                restore(&mut program, snapshot, batches).await;
            }
            attempt(&mut program, *second, words, life == Life::EachFailsFirst).await.unwrap();
            snapshot = program.snapshot().unwrap();
            if life == Life::RestartAfterEach || life == Life::RestartAfter(n + 1) {
                program = declare();
                restore(&mut program, snapshot.clone(), batches).await;
            }
        }
    });
}

fn pair(word: String) -> (String, u64) {
    (word, 1)
}

/// `a=2 b=1`
fn pairs(text: &str) -> Vec<(String, u64)> {
    text.split_whitespace()
        .map(|pair| {
            let (word, n) = pair.split_once('=').unwrap();
            (word.to_string(), n.parse().unwrap())
        })
        .collect()
}

/// [`pairs`] at these seconds.
fn at(times: &[(i64, &str)]) -> Vec<(i64, Vec<(String, u64)>)> {
    times.iter().map(|(second, text)| (*second, pairs(text))).collect()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

/// Records of the topic that look like pairs: `a=2`.
fn parsed(stream: &DStream<String>) -> DStream<(String, u64)> {
    stream.flat_map(|word| pairs(&word))
}
