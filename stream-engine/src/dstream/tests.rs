//! DStream semantics as tables: words per batch in, what an output saw at which time out.
//!
//! Every table is also run with a restart after each batch, from the checkpoint's snapshot and the records that it asks
//! for: what the outputs see must be the same.

use std::{fmt::Debug, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use service_kit::kafka::Record;

use super::*;
use crate::batch::{BatchContext, BatchDefinition, OffsetRange, PartitionInput, Program};

/// `(seconds, sorted values)` of each time at which the output ran.
type Seen<T> = Arc<Mutex<Vec<(i64, Vec<T>)>>>;

const PARTITIONS: usize = 2;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn context() -> (StreamingContext, DStream<String>) {
    let ssc = StreamingContext::new(SparkConf::new(), secs(1)).unwrap();
    let strategy = ConsumerStrategy::subscribe(["t"], [("bootstrap.servers", "unused:9092")]);
    let records = KafkaUtils::create_direct_stream::<String, String>(&ssc, LocationStrategy::PreferConsistent, strategy);
    let words = records.flat_map(|record| record.value);
    (ssc, words)
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

/// The batch at `second` with these words, spread over the partitions.
fn batch(second: i64, words: &str) -> (Arc<BatchDefinition>, Vec<PartitionInput>) {
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut ranges = Vec::new();
    let mut inputs = Vec::new();
    for partition in 0..PARTITIONS {
        let records: Vec<Record> = words
            .iter()
            .skip(partition)
            .step_by(PARTITIONS)
            .enumerate()
            .map(|(n, word)| Record {
                offset: second * 1000 + n as i64,
                timestamp_ms: 0,
                key: None,
                value: Some(Bytes::from(word.to_string())),
                headers: vec![],
            })
            .collect();
        let from = second * 1000;
        let range = OffsetRange { topic: "t".into(), partition: partition as i32, from, until: from + records.len() as i64 };
        ranges.push(range.clone());
        inputs.push(PartitionInput { source: 0, range, caught_up: true, records: stream::iter([Ok(records)]).boxed() });
    }
    (Arc::new(BatchDefinition { id: second as u64, time_ms: second * 1000, ranges: vec![ranges] }), inputs)
}

async fn run(program: &mut impl Program, second: i64, words: &str) -> crate::batch::BatchOutcome {
    let (definition, input) = batch(second, words);
    let context = BatchContext {
        job: "job".into(),
        checkpoint_id: "c".into(),
        newest: definition.id,
        definition,
        replay: false,
        last: false,
        span: tracing::Span::none(),
        monitor: None,
    };
    program.run(&context, input).await.unwrap()
}

/// A restart: a new program of the same declaration, with the snapshot and the records it wants.
async fn restored(ssc: &StreamingContext, snapshot: Bytes, batches: &[(i64, &str)]) -> program::DStreamProgram {
    let mut program = ssc.program().unwrap();
    program.restore(snapshot).unwrap();
    for wanted in program.wants() {
        let (_, words) = batches.iter().find(|(second, _)| *second * 1000 == wanted.time_ms).unwrap();
        let (definition, input) = batch(wanted.time_ms / 1000, words);
        assert_eq!(definition, wanted);
        program.rebuild(definition, input).await.unwrap();
    }
    program
}

/// `batches`: `(second, words)`. `expected`: what an output of the built stream sees.
#[track_caller]
fn check<T: Data + Ord + Debug>(build: impl Fn(&DStream<String>) -> DStream<T>, batches: &[(i64, &str)], expected: &[(i64, &[T])]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let expected: Vec<(i64, Vec<T>)> = expected.iter().map(|(second, values)| (*second, values.to_vec())).collect();
    runtime.block_on(async {
        for restart_after in 0..=batches.len() {
            let seen = Seen::default();
            let declare = || {
                let (ssc, words) = context();
                record(&build(&words), &seen);
                ssc
            };
            let ssc = declare();
            let mut program: Box<dyn Program> = Box::new(ssc.program().unwrap());
            for (n, (second, words)) in batches.iter().enumerate() {
                run_boxed(&mut program, *second, words).await;
                if n + 1 == restart_after {
                    let snapshot = program.snapshot().unwrap();
                    program = Box::new(restored(&declare(), snapshot, batches).await);
                }
            }
            assert_eq!(*seen.lock(), expected, "restart after {restart_after} batches");
        }
    });
}

async fn run_boxed(program: &mut Box<dyn Program>, second: i64, words: &str) {
    let (definition, input) = batch(second, words);
    let context = BatchContext {
        job: "job".into(),
        checkpoint_id: "c".into(),
        newest: definition.id,
        definition,
        replay: false,
        last: false,
        span: tracing::Span::none(),
        monitor: None,
    };
    program.run(&context, input).await.unwrap();
}

fn pair(word: String) -> (String, u64) {
    (word, 1)
}

fn pairs(rows: &[(&str, u64)]) -> Vec<(String, u64)> {
    rows.iter().map(|(word, n)| (word.to_string(), *n)).collect()
}

#[test]
fn operations_within_a_batch() {
    let batches = &[(1, "b a b"), (2, ""), (3, "c")];
    check(|s| s.map(|w| w.len() as u64), batches, &[(1, &[1, 1, 1]), (2, &[]), (3, &[1])]);
    check(|s| s.filter(|w| w != "b").map(|w| w.len() as u64), batches, &[(1, &[1]), (2, &[]), (3, &[1])]);
    check(|s| s.flat_map(|w| [w.len() as u64, 7]), batches, &[(1, &[1, 1, 1, 7, 7, 7]), (2, &[]), (3, &[1, 7])]);
    check(|s| s.union(s).count(), batches, &[(1, &[6]), (2, &[0]), (3, &[2])]);
    check(|s| s.transform(|rdd, _| rdd.union(&rdd)).count(), batches, &[(1, &[6]), (2, &[0]), (3, &[2])]);
}

#[test]
fn count_gives_zero_for_an_empty_batch_and_reduce_gives_nothing() {
    let batches = &[(1, "b a b"), (2, "")];
    check(|s| s.count(), batches, &[(1, &[3]), (2, &[0])]);
    check(|s| s.map(|w| w.len() as u64).reduce(|a, b| a + b), batches, &[(1, &[3]), (2, &[])]);
}

#[test]
fn keyed_operations_within_a_batch() {
    let batches = &[(1, "b a b"), (2, ""), (3, "b")];
    let counts = [pairs(&[("a", 1), ("b", 2)]), pairs(&[]), pairs(&[("b", 1)])];
    let expected: &[(i64, &[(String, u64)])] = &[(1, &counts[0]), (2, &counts[1]), (3, &counts[2])];
    check(|s| s.map(pair).reduce_by_key(|a, b| a + b), batches, expected);
    check(|s| s.count_by_value(), batches, expected);
    check(|s| s.map(pair).group_by_key().map_values(|group| group.into_iter().sum::<u64>()), batches, expected);
}

#[test]
fn a_window_slides_by_its_slide_and_reaches_back_its_length() {
    let batches = &[(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "e"), (6, "f")];
    let s = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
    check(|stream| stream.window(secs(3), secs(2)), batches, &[(2, &s(&["a", "b"])), (4, &s(&["b", "c"])), (6, &s(&["e", "f"]))]);
    check(|stream| stream.window(secs(2), secs(2)).count(), batches, &[(2, &[2]), (4, &[1]), (6, &[2])]);
    check(
        |stream| stream.window(secs(2), secs(1)).window(secs(2), secs(2)).count(),
        batches,
        // A window of windows holds what is in both twice.
        &[(2, &[3]), (4, &[3]), (6, &[3])],
    );
}

#[test]
fn reduce_by_key_and_window_with_and_without_inverse() {
    let batches = &[(1, "a a b"), (2, "b"), (3, "c"), (4, ""), (5, ""), (6, "a")];
    let expected = [
        pairs(&[("a", 2), ("b", 1)]),
        pairs(&[("a", 2), ("b", 2)]),
        pairs(&[("b", 1), ("c", 1)]),
        pairs(&[("c", 1)]),
        pairs(&[]),
        pairs(&[("a", 1)]),
    ];
    let expected: Vec<(i64, &[(String, u64)])> = (1..=6).zip(expected.iter().map(Vec::as_slice)).collect();
    check(|s| s.map(pair).reduce_by_key_and_window(|a, b| a + b, secs(2), secs(1)), batches, &expected);
    check(
        |s| {
            let keep: Keep<String, u64> = Arc::new(|(_, n)| *n > 0);
            s.map(pair).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(2), secs(1), Some(keep))
        },
        batches,
        &expected,
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_filter_the_inverse_form_keeps_keys_with_nothing_left() {
    let (ssc, words) = context();
    let seen = Seen::default();
    record(&words.map(pair).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(2), secs(1), None), &seen);
    record(&words.count_by_window(secs(2), secs(1)).map(|n| ("count".to_string(), n)), &seen);
    let mut program = ssc.program().unwrap();
    for (second, words) in [(1, ""), (2, "a"), (3, ""), (4, "")] {
        run(&mut program, second, words).await;
    }
    let expected: Vec<(i64, Vec<(String, u64)>)> = vec![
        (1, vec![]),
        (1, vec![]),
        (2, pairs(&[("a", 1)])),
        (2, pairs(&[("count", 1)])),
        (3, pairs(&[("a", 1)])),
        (3, pairs(&[("count", 1)])),
        (4, pairs(&[("a", 0)])),
        (4, pairs(&[("count", 0)])),
    ];
    assert_eq!(*seen.lock(), expected);
}

#[test]
fn reduce_by_window_reduces_batches_then_windows() {
    let batches = &[(1, "aa b"), (2, "cccc"), (3, ""), (4, "")];
    let longest = |a: u64, b: u64| a.max(b);
    check(
        move |s| s.map(|w| w.len() as u64).reduce_by_window(longest, secs(2), secs(1)),
        batches,
        &[(1, &[2]), (2, &[4]), (3, &[4]), (4, &[])],
    );
}

#[test]
fn a_missed_time_does_not_lose_a_window_that_was_due() {
    // The process was away at 4 and 5: the window of 3 and 4 is made up for.
    let batches = &[(1, "a"), (2, "b"), (3, "c"), (6, "f")];
    check(|s| s.window(secs(2), secs(2)).count(), batches, &[(2, &[2]), (4, &[1]), (6, &[1])]);
    // Without a window nothing was due.
    check(|s| s.count(), batches, &[(1, &[1]), (2, &[1]), (3, &[1]), (6, &[1])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_run_in_order_and_what_no_output_needs_never_runs() {
    let (ssc, words) = context();
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let ran = Arc::new(Mutex::new(false));
    let flag = ran.clone();
    let _unused = words.map(move |word| {
        *flag.lock() = true;
        word
    });
    for name in ["first", "second", "third"] {
        let order = order.clone();
        words.foreach_rdd(move |rdd, _| {
            let order = order.clone();
            async move {
                rdd.count().await?;
                order.lock().push(name);
                Ok(())
            }
        });
    }
    let mut program = ssc.program().unwrap();
    let outcome = run(&mut program, 1, "a b").await;
    assert_eq!(*order.lock(), ["first", "second", "third"]);
    assert!(!*ran.lock());
    assert_eq!(outcome.rows_in, 2, "records are read once for three outputs");
    assert_eq!(
        outcome.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>(),
        ["foreachRDD-0", "foreachRDD-1", "foreachRDD-2"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_succeeded_is_not_repeated_when_a_later_one_fails() {
    let (ssc, words) = context();
    let seen = Seen::default();
    record(&words, &seen);
    let fail = Arc::new(Mutex::new(true));
    let failing = fail.clone();
    words.foreach_rdd(move |_, _| {
        let fails = std::mem::take(&mut *failing.lock());
        async move { if fails { Err(anyhow::anyhow!("told to fail")) } else { Ok(()) } }
    });
    let mut program = ssc.program().unwrap();
    let (definition, input) = batch(1, "a");
    let context = |replay| BatchContext {
        job: "job".into(),
        checkpoint_id: "c".into(),
        newest: definition.id,
        definition: definition.clone(),
        replay,
        last: false,
        span: tracing::Span::none(),
        monitor: None,
    };
    let error = program.run(&context(false), input).await.unwrap_err();
    assert!(format!("{error:#}").contains("foreachRDD-1: told to fail"), "{error:#}");
    program.restore(Bytes::new()).unwrap();
    program.run(&context(true), batch(1, "a").1).await.unwrap();
    assert_eq!(seen.lock().len(), 1);
    assert!(!*fail.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn offset_ranges_are_those_of_the_batch() {
    let (ssc, words) = context();
    let seen: Arc<Mutex<Vec<(i32, i64, i64)>>> = Arc::default();
    let ranges = seen.clone();
    words.foreach_rdd(move |rdd, _| {
        ranges.lock().extend(rdd.offset_ranges().iter().map(|range| (range.partition, range.from, range.until)));
        rdd.commit_async(); // no group: nothing to do
        async { Ok(()) }
    });
    let mut program = ssc.program().unwrap();
    run(&mut program, 3, "a b c").await;
    assert_eq!(*seen.lock(), [(0, 3000, 3002), (1, 3000, 3001)]);
}

#[test]
fn windows_that_are_no_multiple_of_their_parent_are_refused_as_spark_does() {
    for (window, slide, part) in [
        (1500, 1000, "The window duration of windowed DStream (1500 ms) must be a multiple of the slide duration of parent DStream"),
        (2000, 1500, "The slide duration of windowed DStream (1500 ms) must be a multiple of the slide duration of parent DStream"),
    ] {
        let (ssc, words) = context();
        words.window(Duration::from_millis(window), Duration::from_millis(slide)).print();
        let error = ssc.program().err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("parent slide duration: 1000 ms"), "{error}");
    }
}

#[test]
fn a_program_without_outputs_does_not_start() {
    let (ssc, _words) = context();
    assert!(ssc.program().err().unwrap().to_string().contains("no output operations registered, so nothing to execute"));
    let (ssc, words) = context();
    words.print();
    let _program = ssc.program().unwrap();
    // Adding to a program that runs is a mistake that is said.
    words.count().print();
    assert!(ssc.program().err().unwrap().to_string().contains("after starting a context is not supported"));
}

#[test]
fn wrong_settings_are_all_said_at_once() {
    let conf = SparkConf::new()
        .set_app_name("no/name")
        .set("spark.streaming.backpresure.enabled", "true")
        .set("spark.streaming.kafka.maxRatePerPartition", "many")
        .set("spark.serializer", "org.apache.spark.serializer.KryoSerializer");
    let error = StreamingContext::new(conf, secs(1)).err().unwrap().to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
    assert!(error.contains("did you mean `spark.streaming.backpressure.enabled`"), "{error}");
}

#[test]
fn a_changed_window_is_another_program_and_a_changed_filter_is_not() {
    let fingerprint = |window, filter: bool| {
        let (ssc, words) = context();
        let words = if filter { words.filter(|w| w != "a") } else { words };
        words.window(secs(window), secs(1)).print();
        ssc.program().unwrap().fingerprint()
    };
    assert_eq!(fingerprint(2, false), fingerprint(2, true));
    assert_ne!(fingerprint(2, false), fingerprint(3, false));
}
