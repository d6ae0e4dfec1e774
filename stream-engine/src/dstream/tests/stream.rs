//! Operations within a batch, and outputs.

use super::*;

#[test]
fn operations_value_by_value() {
    let batches = &[(1, "b a b"), (2, ""), (3, "c")];
    check(|s| s.map(|w| w.len() as u64), batches, [(1, vec![1, 1, 1]), (2, vec![]), (3, vec![1])]);
    check(|s| s.filter(|w| w != "b"), batches, [(1, words("a")), (2, vec![]), (3, words("c"))]);
    check(|s| s.flat_map(|w| [w.len() as u64, 7]), batches, [(1, vec![1, 1, 1, 7, 7, 7]), (2, vec![]), (3, vec![1, 7])]);
    check(|s| s.union(s), batches, [(1, words("a a b b b b")), (2, vec![]), (3, words("c c"))]);
    check_in(
        |ssc, s| ssc.union(&[s.clone(), s.clone(), s.clone()]),
        batches,
        [(1, words("a a a b b b b b b")), (2, vec![]), (3, words("c c c"))],
    );
}

#[test]
fn operations_partition_by_partition() {
    // Words are dealt out to two partitions in turn.
    let batches = &[(1, "c a b"), (2, "")];
    // Empty partitions count.
    check(|s| s.glom(), batches, [(1, vec![words("a"), words("c b")]), (2, vec![vec![], vec![]])]);
    check(|s| s.map_partitions(|words| [words.count() as u64]), batches, [(1, vec![1, 2]), (2, vec![0, 0])]);
    check(|s| s.map_partitions(|words| words.map(|word| word + "!")), batches, [(1, words("a! b! c!")), (2, vec![])]);
    check(|s| s.repartition(4).glom(), batches, [(1, vec![vec![], words("a"), words("b"), words("c")]), (2, vec![vec![]; 4])]);
    check(|s| s.repartition(1).glom(), batches, [(1, vec![words("c b a")]), (2, vec![vec![]])]);
}

#[test]
fn count_gives_zero_for_an_empty_batch_and_reduce_gives_nothing() {
    let batches = &[(1, "b a b"), (2, "")];
    check(|s| s.count(), batches, [(1, vec![3]), (2, vec![0])]);
    check(|s| s.map(|w| w.len() as u64).reduce(|a, b| a + b), batches, [(1, vec![3]), (2, vec![])]);
}

#[test]
fn keyed_operations_have_no_rows_for_absent_keys() {
    let batches = &[(1, "b a b"), (2, ""), (3, "b")];
    let expected = at(&[(1, "a=1 b=2"), (2, ""), (3, "b=1")]);
    check(|s| s.map(pair).reduce_by_key(|a, b| a + b), batches, expected.clone());
    check(|s| s.count_by_value(), batches, expected.clone());
    check(|s| s.map(pair).group_by_key().map_values(|group| group.into_iter().sum::<u64>()), batches, expected.clone());
    let count = |n: u64, _| n + 1;
    check(|s| s.map(pair).combine_by_key(|_| 1, count, |a, b| a + b), batches, expected.clone());
    for n in [1, 3] {
        check(|s| s.map(pair).reduce_by_key_with_partitions(|a, b| a + b, n), batches, expected.clone());
        check(|s| s.map(pair).combine_by_key_with_partitions(|_| 1, count, |a, b| a + b, n), batches, expected.clone());
        check(|s| s.count_by_value_with_partitions(n), batches, expected.clone());
        let partitions = [1, 2, 3].map(|second| (second, vec![n as u64]));
        check(|s| s.count_by_value_with_partitions(n).glom().count(), batches, partitions.clone());
        check(|s| s.map(pair).group_by_key_with_partitions(n).glom().count(), batches, partitions);
    }
}

#[test]
fn values_of_pairs_change_without_their_keys() {
    let batches = &[(1, "a=1 b=2"), (2, "")];
    check(|s| parsed(s).map_values(|n| n + 1), batches, at(&[(1, "a=2 b=3"), (2, "")]));
    check(|s| parsed(s).flat_map_values(|n| 0..n), batches, at(&[(1, "a=0 b=0 b=1"), (2, "")]));
}

#[test]
fn values_of_a_group_keep_the_order_of_their_partition() {
    let batches = &[(1, "a=1 b=1 a=2 b=2 a=3 b=3")];
    let groups = vec![("a".to_string(), vec![1, 2, 3]), ("b".to_string(), vec![1, 2, 3])];
    check(|s| parsed(s).group_by_key(), batches, [(1, groups)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_run_in_order_and_what_no_output_needs_never_runs() {
    let (ssc, words) = context();
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let ran = Arc::new(Mutex::new(false));
    let flag = ran.clone();
    let unused = words.map(move |word| {
        *flag.lock() = true;
        (word, 1_u64)
    });
    // Not even where it would have a state to keep.
    let _state = unused.update_state_by_key(|_, _: Option<u64>| Some(1));
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
    let error = attempt(&mut program, 1, "a", false).await.unwrap_err();
    assert!(format!("{error:#}").contains("foreachRDD-1: told to fail"), "{error:#}");
    program.restore(Bytes::new()).unwrap();
    attempt(&mut program, 1, "a", true).await.unwrap();
    assert_eq!(seen.lock().len(), 1);
    assert!(!*fail.lock());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_panics_fails_the_batch_with_its_words() {
    for (place, part) in [("map", "told to panic"), ("output", "output foreachRDD-0: panicked: told to panic")] {
        let (ssc, words) = context();
        let words = words.map(move |word| if place == "map" { panic!("told to panic") } else { word });
        words.foreach_rdd(move |rdd, _| async move {
            rdd.count().await?;
            panic!("told to panic");
        });
        let error = attempt(&mut ssc.program().unwrap(), 1, "a", false).await.unwrap_err();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
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
    assert_eq!(*seen.lock(), [(0, 3_000_000, 3_000_002), (1, 3_000_000, 3_000_001)]);
}
