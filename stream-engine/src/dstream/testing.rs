//! `StreamingTest`: a program's streams in a unit test. Batches go in, batches come out; no server, no port, no waiting.
//!
//! ```
//! use std::time::Duration;
//! use stream_engine::dstream::{DStream, StreamingTest};
//!
//! // Of the program: words and how often they were seen so far.
//! fn totals(lines: &DStream<String>) -> DStream<(String, u64)> {
//!     let words = lines.flat_map(|line: String| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
//!     words.map(|word| (word, 1)).update_state_by_key(|new: Vec<u64>, seen| Some(seen.unwrap_or(0) + new.iter().sum::<u64>()))
//! }
//!
//! StreamingTest::new(Duration::from_secs(1), |_, lines| totals(&lines).map(|(word, seen)| format!("{word}={seen}")))
//!     .batches([vec!["a b a"], vec![], vec!["b"]])
//!     .restart_after_each_batch()
//!     .expect([vec!["a=2", "b=1"], vec!["a=2", "b=1"], vec!["a=2", "b=2"]]);
//! ```
//!
//! Time is not the machine's: the n-th batch has the time `n * batch_duration`, counted from 1 and from the epoch.

use std::{fmt::Debug, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream as records};
use parking_lot::Mutex;
use service_kit::kafka::Record;

use super::program::DStreamProgram;
use super::rdd::Data;
use super::state::{StateValue, read, write};
use super::{ConsumerRecord, ConsumerStrategy, DStream, KafkaUtils, LocationStrategy, SparkConf, StreamingContext};
use crate::batch::clock::interval_ms;
use crate::batch::{BatchContext, BatchDefinition, BatchOutcome, OffsetRange, PartitionInput, Program};
use crate::job::Monitor;

/// Records of a batch are dealt out to so many partitions, in turn.
pub(super) const PARTITIONS: usize = 2;

/// A stream of `I` in, a stream of `O` out.
///
/// What is wrong, in the program or with what comes out, is a panic that names the batch.
pub struct StreamingTest<I, O> {
    batch_duration: Duration,
    declare: Declare<I, O>,
    batches: Vec<Vec<Bytes>>,
    restarts: bool,
    input: PhantomData<I>,
}

/// Values by time in milliseconds, as the batches gave them.
type Found<O> = Arc<Mutex<Vec<(i64, Vec<O>)>>>;
type Declare<I, O> = Box<dyn Fn(&StreamingContext, DStream<I>) -> DStream<O> + Send + Sync>;

impl<I: StateValue, O: Data + Debug> StreamingTest<I, O> {
    /// `declare` makes the stream under test from the input; it is called again for each restart. It may register outputs of
    /// its own.
    pub fn new(batch_duration: Duration, declare: impl Fn(&StreamingContext, DStream<I>) -> DStream<O> + Send + Sync + 'static) -> Self {
        Self { batch_duration, declare: Box::new(declare), batches: Vec::new(), restarts: false, input: PhantomData }
    }

    /// The input, one batch after the other.
    pub fn batches<T: Into<I>>(mut self, batches: impl IntoIterator<Item = impl IntoIterator<Item = T>>) -> Self {
        let encoded = |value: T| {
            let mut bytes = Vec::new();
            write(&value.into(), &mut bytes).unwrap_or_else(|error| panic!("an input cannot be encoded: {error:#}"));
            Bytes::from(bytes)
        };
        self.batches.extend(batches.into_iter().map(|batch| batch.into_iter().map(encoded).collect()));
        self
    }

    /// Runs the program a second time, as if its process died after every batch: declared anew, with the state of its
    /// checkpoint. What comes out must be the same.
    pub fn restart_after_each_batch(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// Compares what each batch gives, in any order of its values. A batch at whose time the stream has no value (between
    /// two slides of a window) gives nothing, like an empty one.
    #[track_caller]
    pub fn expect<E: Debug>(self, expected: impl IntoIterator<Item = impl IntoIterator<Item = E>>)
    where
        O: PartialEq<E>,
    {
        let expected: Vec<Vec<E>> = expected.into_iter().map(|batch| batch.into_iter().collect()).collect();
        assert_eq!(expected.len(), self.batches.len(), "one expectation for each batch of the input");
        let lives: &[bool] = if self.restarts { &[false, true] } else { &[false] };
        for restarts in lives {
            let found = self.run(*restarts).unwrap_or_else(|error| panic!("{error:#}"));
            for (n, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let life = if *restarts { " (restarted after each batch)" } else { "" };
                assert!(same(found, expected), "batch {}{life}\n found {found:?}\nwanted {expected:?}", n + 1);
            }
        }
    }

    /// What each batch gives.
    fn run(&self, restarts: bool) -> anyhow::Result<Vec<Vec<O>>> {
        // The caller may be within a runtime, where nothing can be waited for.
        std::thread::scope(|scope| {
            let life = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(self.live(restarts));
            scope.spawn(life).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    async fn live(&self, restarts: bool) -> anyhow::Result<Vec<Vec<O>>> {
        let found = Found::default();
        let interval_ms = interval_ms(self.batch_duration);
        let time_of = |n: usize| (n as i64 + 1) * interval_ms;
        let given = |time_ms: i64| {
            let n = usize::try_from(time_ms / interval_ms - 1).unwrap_or(usize::MAX);
            self.batches.get(n).cloned().unwrap_or_default()
        };
        let mut program = self.program(&found)?;
        for n in 0..self.batches.len() {
            let ran = attempt(&mut program, n as u64, time_of(n), &given(time_of(n)), false, None).await;
            ran.map_err(|error| error.context(format!("batch {}", n + 1)))?;
            if restarts {
                let snapshot = program.snapshot()?;
                program = self.program(&found)?;
                restore(&mut program, snapshot, given).await?;
            }
        }
        let mut found = std::mem::take(&mut *found.lock());
        let mut of = |time_ms: i64| found.extract_if(.., |(at, _)| *at == time_ms).flat_map(|(_, values)| values).collect();
        Ok((0..self.batches.len()).map(|n| of(time_of(n))).collect())
    }

    fn program(&self, found: &Found<O>) -> anyhow::Result<DStreamProgram> {
        let ssc = StreamingContext::new(SparkConf::new(), self.batch_duration)?;
        // Nobody connects to it.
        let strategy = ConsumerStrategy::subscribe(["input"], [("bootstrap.servers", "test:9092")]);
        let records = KafkaUtils::create_direct_stream::<Bytes, Bytes>(&ssc, LocationStrategy::PreferConsistent, strategy);
        // Written by this test: what cannot be read is not there.
        let decoded = |record: ConsumerRecord<Bytes, Bytes>| read::<I>(&record.value.unwrap_or_default()).unwrap_or_default();
        let found = found.clone();
        (self.declare)(&ssc, records.flat_map(decoded)).foreach_rdd(move |rdd, time| {
            let found = found.clone();
            async move {
                let values = rdd.collect().await?;
                found.lock().push((time.milliseconds(), values));
                Ok(())
            }
        });
        ssc.program()
    }
}

/// Equal but for the order.
fn same<O: PartialEq<E>, E>(found: &[O], expected: &[E]) -> bool {
    let mut left: Vec<&O> = found.iter().collect();
    let mut take = |wanted: &E| left.iter().position(|value| **value == *wanted).map(|at| left.swap_remove(at)).is_some();
    expected.iter().all(&mut take) && left.is_empty()
}

/// The batch at a time, with these values over the partitions.
pub(super) fn batch(id: u64, time_ms: i64, values: &[Bytes]) -> (Arc<BatchDefinition>, Vec<PartitionInput>) {
    let mut ranges = Vec::new();
    let mut inputs = Vec::new();
    let from = id as i64 * 1_000_000;
    for partition in 0..PARTITIONS {
        let values = values.iter().skip(partition).step_by(PARTITIONS);
        let record =
            |(offset, value): (i64, &Bytes)| Record { offset, timestamp_ms: 0, key: None, value: Some(value.clone()), headers: vec![] };
        let of_partition: Vec<Record> = (from..).zip(values).map(record).collect();
        let range = OffsetRange { topic: "t".into(), partition: partition as i32, from, until: from + of_partition.len() as i64 };
        ranges.push(range.clone());
        inputs.push(PartitionInput { source: 0, range, caught_up: true, records: records::iter([Ok(of_partition)]).boxed() });
    }
    (Arc::new(BatchDefinition { id, time_ms, ranges: vec![ranges] }), inputs)
}

/// One run of a batch.
pub(super) async fn attempt(
    program: &mut DStreamProgram,
    id: u64,
    time_ms: i64,
    values: &[Bytes],
    replay: bool,
    monitor: Option<Arc<Monitor>>,
) -> anyhow::Result<BatchOutcome> {
    let (definition, input) = batch(id, time_ms, values);
    let context = BatchContext {
        job: "job".into(),
        checkpoint_id: "c".into(),
        newest: definition.id,
        definition,
        replay,
        last: false,
        slot: None,
        span: tracing::Span::none(),
        monitor,
    };
    program.run(&context, input).await
}

/// As the runner does it: the snapshot, then the records that are wanted again.
pub(super) async fn restore(program: &mut DStreamProgram, snapshot: Bytes, values: impl Fn(i64) -> Vec<Bytes>) -> anyhow::Result<()> {
    program.restore(snapshot)?;
    for wanted in program.wants() {
        let (definition, input) = batch(wanted.id, wanted.time_ms, &values(wanted.time_ms));
        debug_assert_eq!(definition, wanted);
        program.rebuild(definition, input).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths() -> StreamingTest<String, usize> {
        StreamingTest::new(Duration::from_secs(1), |_, words: DStream<String>| words.map(|word| word.len()))
    }

    #[test]
    fn what_comes_out_is_compared_in_any_order() {
        lengths().batches([vec!["a", "bb", "a"], vec![]]).expect([vec![2, 1, 1], vec![]]);
    }

    #[test]
    #[should_panic(expected = "batch 2\n found [2]\nwanted [2, 2]")]
    fn a_value_that_is_missing_is_shown_with_its_batch() {
        lengths().batches([vec!["a"], vec!["bb"]]).expect([vec![1], vec![2, 2]]);
    }

    #[test]
    #[should_panic(expected = "panicked with message \"no words\"")]
    fn what_fails_in_the_program_is_said_with_its_batch() {
        let test = StreamingTest::new(Duration::from_secs(1), |_, words: DStream<String>| words.map(|_| -> u64 { panic!("no words") }));
        test.batches([["a"]]).expect([[1_u64]]);
    }

    #[test]
    #[should_panic(expected = "batch 2 (restarted after each batch)")]
    fn what_a_program_keeps_outside_its_state_is_lost_at_a_restart() {
        let test = StreamingTest::new(Duration::from_secs(1), |_, words: DStream<String>| {
            let seen = Arc::new(Mutex::new(0_u64));
            words.map(move |_| {
                *seen.lock() += 1;
                *seen.lock()
            })
        });
        test.batches([["a"], ["b"]]).restart_after_each_batch().expect([[1_u64], [2]]);
    }

    #[tokio::test]
    async fn windows_go_on_over_restarts_also_within_a_runtime() {
        StreamingTest::new(Duration::from_secs(5), |_, words: DStream<String>| {
            words.count_by_window(Duration::from_secs(10), Duration::from_secs(10))
        })
        .batches([vec!["a"], vec!["b", "c"], vec![], vec!["d"]])
        .restart_after_each_batch()
        .expect([vec![], vec![3_u64], vec![], vec![1]]);
    }
}
