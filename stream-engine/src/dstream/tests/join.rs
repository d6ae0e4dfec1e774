//! Joins of streams.

use super::*;

/// Two streams of one: `l:a=1` goes left, `r:a=2` right.
fn sides(s: &DStream<String>) -> [DStream<(String, u64)>; 2] {
    ["l:", "r:"].map(|side| s.flat_map(move |word| word.strip_prefix(side).map(pairs).unwrap_or_default()))
}

fn key<T>(key: &str, value: T) -> (String, T) {
    (key.into(), value)
}

const BATCHES: &[(i64, &str)] = &[(1, "l:a=1 l:a=2 r:a=3 l:b=4 r:c=5"), (2, "r:a=6"), (3, "")];

#[test]
fn an_inner_join_meets_within_the_batch_only() {
    let join = |s: &DStream<String>| {
        let [left, right] = sides(s);
        left.join(&right)
    };
    check(join, BATCHES, [(1, vec![key("a", (1, 3)), key("a", (2, 3))]), (2, vec![]), (3, vec![])]);
}

#[test]
fn outer_joins_keep_what_meets_nothing() {
    check(
        |s| {
            let [left, right] = sides(s);
            left.left_outer_join(&right)
        },
        BATCHES,
        [(1, vec![key("a", (1, Some(3))), key("a", (2, Some(3))), key("b", (4, None))]), (2, vec![]), (3, vec![])],
    );
    check(
        |s| {
            let [left, right] = sides(s);
            left.right_outer_join(&right)
        },
        BATCHES,
        [(1, vec![key("a", (Some(1), 3)), key("a", (Some(2), 3)), key("c", (None, 5))]), (2, vec![key("a", (None, 6))]), (3, vec![])],
    );
    let all = vec![key("a", (Some(1), Some(3))), key("a", (Some(2), Some(3))), key("b", (Some(4), None)), key("c", (None, Some(5)))];
    check(
        |s| {
            let [left, right] = sides(s);
            left.full_outer_join(&right)
        },
        BATCHES,
        [(1, all), (2, vec![key("a", (None, Some(6)))]), (3, vec![])],
    );
}

#[test]
fn cogroup_gives_both_sides_of_every_key() {
    for partitions in [None, Some(1), Some(3)] {
        check(
            |s| {
                let [left, right] = sides(s);
                match partitions {
                    None => left.cogroup(&right),
                    Some(n) => left.cogroup_with_partitions(&right, n),
                }
            },
            BATCHES,
            [
                (1, vec![key("a", (vec![1, 2], vec![3])), key("b", (vec![4], vec![])), key("c", (vec![], vec![5]))]),
                (2, vec![key("a", (vec![], vec![6]))]),
                (3, vec![]),
            ],
        );
    }
}

#[test]
fn windows_join_what_lies_in_both() {
    check(
        |s| {
            let [left, right] = sides(s);
            left.window(secs(2), None).join(&right.window(secs(2), None))
        },
        &[(1, "l:a=1"), (2, "r:a=2"), (3, "l:a=3"), (4, "")],
        [(1, vec![]), (2, vec![key("a", (1, 2))]), (3, vec![key("a", (3, 2))]), (4, vec![])],
    );
}

#[test]
fn a_stream_joins_a_table_of_the_program() {
    let table = || Rdd::parallelize([key("a", 10_u64), key("b", 20)]);
    check(
        move |s| parsed(s).transform(move |rdd, _| rdd.join(&table())).map_values(|(n, more)| n + more),
        &[(1, "a=1 c=2"), (2, "b=3")],
        at(&[(1, "a=11"), (2, "b=23")]),
    );
    // The same table in every batch.
    let table = Rdd::parallelize([key("a", 10_u64)]);
    check(
        move |s| {
            let table = table.clone();
            parsed(s).transform(move |rdd, _| rdd.left_outer_join(&table)).map_values(|(n, more)| n + more.unwrap_or(0))
        },
        &[(1, "a=1 c=2"), (2, "a=3")],
        at(&[(1, "a=11 c=2"), (2, "a=13")]),
    );
}

#[test]
fn streams_that_slide_differently_or_are_of_different_programs_do_not_join() {
    let (ssc, words) = context();
    let (_other, elsewhere) = context();
    parsed(&words).join(&parsed(&words).window(secs(2), secs(2))).print();
    let error = ssc.program().err().unwrap().to_string();
    assert_eq!(error, "join: Some of the DStreams have different slide durations");
    let (ssc, words) = context();
    words.union(&elsewhere).print();
    let error = ssc.program().err().unwrap().to_string();
    assert_eq!(error, "union: Some of the DStreams have different contexts");
}
