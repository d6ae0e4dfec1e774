//! What a batch can do, on its own.

use std::collections::HashMap;

use super::*;

fn numbers() -> Rdd<u64> {
    Rdd::from_partitions(vec![vec![5, 1], vec![], vec![3, 1, 4]])
}

fn rows() -> Rdd<(String, u64)> {
    Rdd::from_partitions(vec![pairs("b=1 a=2"), pairs("a=3 c=4")])
}

async fn sorted<T: Data + Ord>(rdd: Rdd<T>) -> Vec<T> {
    let mut values = rdd.collect().await.unwrap();
    values.sort();
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn transformations_by_value_and_partition() {
    let n = numbers();
    assert_eq!(n.map(|n| n * 2).collect().await.unwrap(), [10, 2, 6, 2, 8]);
    assert_eq!(n.glom().collect().await.unwrap(), [vec![5, 1], vec![], vec![3, 1, 4]]);
    assert_eq!(n.map_partitions(|values| [values.sum::<u64>()]).collect().await.unwrap(), [6, 0, 8]);
    let with_index = n.map_partitions_with_index(|partition, values| values.map(move |n| (partition, n)));
    assert_eq!(with_index.collect().await.unwrap(), [(0, 5), (0, 1), (2, 3), (2, 1), (2, 4)]);
    assert_eq!(sorted(n.distinct()).await, [1, 3, 4, 5]);
    assert_eq!(n.union(&n).count().await.unwrap(), 10);
    assert_eq!(n.zip_with_index().collect().await.unwrap(), [(5, 0), (1, 1), (3, 2), (1, 3), (4, 4)]);
    assert_eq!(Rdd::parallelize(0..100).collect().await.unwrap(), (0..100).collect::<Vec<_>>());
    assert_eq!(Rdd::<u64>::parallelize([]).num_partitions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_joined_and_dealt_out_again() {
    let n = numbers();
    assert_eq!(n.coalesce(2).glom().collect().await.unwrap(), [vec![5, 1], vec![3, 1, 4]]);
    assert_eq!(n.coalesce(1).glom().collect().await.unwrap(), [vec![5, 1, 3, 1, 4]]);
    assert_eq!(n.coalesce(9).num_partitions(), 3, "it never makes more");
    assert_eq!(n.repartition(2).glom().collect().await.unwrap(), [vec![5, 3, 4], vec![1, 1]]);
    assert_eq!(n.repartition(7).num_partitions(), 7);
    assert_eq!(n.map(|n| n + 1).cache().coalesce(2).collect().await.unwrap(), [6, 2, 4, 2, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_sorted_over_all_partitions() {
    let n = numbers();
    let up = n.sort_by(|n| *n, true);
    assert_eq!(up.collect().await.unwrap(), [1, 1, 3, 4, 5]);
    assert_eq!(up.num_partitions(), 3);
    assert_eq!(n.sort_by(|n| *n, false).collect().await.unwrap(), [5, 4, 3, 1, 1]);
    // Equal keys stay as they were.
    let even = |n: &u64| n % 2;
    assert_eq!(n.sort_by(even, true).collect().await.unwrap(), [4, 5, 1, 3, 1]);
    assert_eq!(n.sort_by(even, false).collect().await.unwrap(), [5, 1, 3, 1, 4]);
    assert_eq!(rows().sort_by_key(false).collect().await.unwrap(), pairs("c=4 b=1 a=2 a=3"));
    assert!(Rdd::<u64>::empty().sort_by(|n| *n, true).collect().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_about_as_large_as_asked_and_the_same_each_time() {
    let n = Rdd::from_partitions((0..4).map(|n| (n * 2500..(n + 1) * 2500_u64).collect()).collect());
    for (with_replacement, fraction, about) in [(false, 0.3, 3000), (true, 0.3, 3000), (true, 2.5, 25_000), (false, 0.0, 0), (true, 0.0, 0)]
    {
        let once = n.sample(with_replacement, fraction, 42).collect().await.unwrap();
        assert!(once.len().abs_diff(about) <= about / 20, "{with_replacement} {fraction}: {}", once.len());
        assert_eq!(once, n.sample(with_replacement, fraction, 42).collect().await.unwrap());
        assert_eq!(about == 0, once == n.sample(with_replacement, fraction, 43).collect().await.unwrap());
        let twice = once.windows(2).any(|pair| pair[0] == pair[1]);
        assert_eq!(twice, with_replacement && about > 0, "{with_replacement} {fraction}");
    }
    assert_eq!(n.sample(false, 1.0, 1).count().await.unwrap(), 10_000);
}

#[test]
#[should_panic(expected = "the fraction (1.5) must be from 0 to 1")]
fn more_than_everything_is_no_sample() {
    drop(numbers().sample(false, 1.5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn actions() {
    let (n, none) = (numbers(), Rdd::<u64>::empty());
    assert_eq!((n.count().await.unwrap(), none.count().await.unwrap()), (5, 0));
    assert_eq!((n.first().await.unwrap(), none.first().await.unwrap()), (Some(5), None));
    assert_eq!((n.is_empty().await.unwrap(), none.is_empty().await.unwrap()), (false, true));
    assert_eq!(n.take(3).await.unwrap(), [5, 1, 3]);
    assert_eq!((n.max().await.unwrap(), n.min().await.unwrap()), (Some(5), Some(1)));
    assert_eq!((none.max().await.unwrap(), none.min().await.unwrap()), (None, None));
    assert_eq!((n.top(2).await.unwrap(), n.take_ordered(3).await.unwrap()), (vec![5, 4], vec![1, 1, 3]));
    assert_eq!(Rdd::parallelize(0..5000_u64).top(2).await.unwrap(), [4999, 4998]);
    assert_eq!(n.reduce(|a, b| a + b).await.unwrap(), Some(14));
    assert_eq!(n.count_by_value().await.unwrap(), HashMap::from([(1, 2), (3, 1), (4, 1), (5, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zero_that_is_not_neutral_counts_once_per_partition_and_once_more() {
    let n = numbers();
    assert_eq!(n.fold(0, |a, b| a + b).await.unwrap(), 14);
    assert_eq!(n.fold(100, |a, b| a + b).await.unwrap(), 414);
    assert_eq!(Rdd::<u64>::empty().fold(100, |a, b| a + b).await.unwrap(), 100);
    let text = n.aggregate(String::new(), |text, n| text + &n.to_string(), |a, b| a + "|" + &b).await.unwrap();
    assert_eq!(text, "|51||314");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_by_key() {
    let r = rows();
    assert_eq!((r.keys().collect().await.unwrap(), r.values().collect().await.unwrap()), (words("b a a c"), vec![1, 2, 3, 4]));
    assert_eq!(sorted(r.reduce_by_key(|a, b| a + b)).await, pairs("a=5 b=1 c=4"));
    assert_eq!(sorted(r.combine_by_key(|n| n * 10, |c, n| c + n, |a, b| a + b)).await, pairs("a=50 b=10 c=40"));
    assert_eq!(sorted(r.flat_map_values(|n| 2..n)).await, pairs("a=2 c=2 c=3"));
    assert_eq!(r.count_by_key().await.unwrap(), HashMap::from([("a".into(), 2), ("b".into(), 1), ("c".into(), 1)]));
    assert_eq!(r.lookup(&"a".into()).await.unwrap(), [2, 3]);
    assert!(r.lookup(&"z".into()).await.unwrap().is_empty());
    assert_eq!(r.reduce_by_key_with_partitions(|a, b| a + b, 5).num_partitions(), 5);
    let [a, b] = [pairs("a=1"), pairs("a=2 z=9")].map(|pairs| Rdd::from_partitions(vec![pairs]));
    assert_eq!(a.join(&b).collect().await.unwrap(), [("a".into(), (1, 2))]);
    assert_eq!(sorted(a.right_outer_join(&b)).await, [("a".into(), (Some(1), 2)), ("z".into(), (None, 9))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_that_failed_is_not_taken_for_values() {
    let fail = Arc::new(AtomicBool::new(true));
    let failing = fail.clone();
    let counts = rows().map(move |row| if failing.load(Relaxed) { panic!("told to fail") } else { row }).reduce_by_key(|a, b| a + b);
    assert!(counts.collect().await.unwrap_err().to_string().contains("told to fail"));
    fail.store(false, Relaxed);
    let error = counts.collect().await.unwrap_err().to_string();
    assert!(error.contains("told to fail"), "whoever asks is told the cause: {error}");
}
