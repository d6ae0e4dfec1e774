//! Windows, with and without inverse.

use super::*;

#[test]
fn a_window_slides_by_its_slide_and_reaches_back_its_length() {
    let batches = &[(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "e"), (6, "f")];
    check(|s| s.window(secs(3), secs(2)), batches, [(2, words("a b")), (4, words("b c")), (6, words("e f"))]);
    check(|s| s.window(secs(2), secs(2)).count(), batches, [(2, vec![2]), (4, vec![1]), (6, vec![2])]);
    // Without a slide the stream's own.
    check(
        |s| s.window(secs(2), None),
        batches,
        [(1, words("a")), (2, words("a b")), (3, words("b c")), (4, words("c")), (5, words("e")), (6, words("e f"))],
    );
    check(
        |s| s.window(secs(2), secs(1)).window(secs(2), secs(2)).count(),
        batches,
        // A window of windows holds what is in both twice.
        [(2, vec![3]), (4, vec![3]), (6, vec![3])],
    );
    // Longer than its window, a slide leaves batches out.
    check(|s| s.window(secs(1), secs(3)), batches, [(3, words("c")), (6, words("f"))]);
}

#[test]
fn reduce_by_key_and_window_with_and_without_inverse() {
    let batches = &[(1, "a a b"), (2, "b"), (3, "c"), (4, ""), (5, ""), (6, "a")];
    let expected = at(&[(1, "a=2 b=1"), (2, "a=2 b=2"), (3, "b=1 c=1"), (4, "c=1"), (5, ""), (6, "a=1")]);
    check(|s| s.map(pair).reduce_by_key_and_window(|a, b| a + b, secs(2), secs(1)), batches, expected.clone());
    check(|s| s.count_by_value_and_window(secs(2), secs(1)), batches, expected.clone());
    check(
        |s| {
            let keep: Keep<String, u64> = Arc::new(|(_, n)| *n > 0);
            s.map(pair).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(2), None, Some(keep))
        },
        batches,
        expected,
    );
}

fn kept(s: &DStream<String>, window: u64, slide: u64) -> DStream<(String, u64)> {
    s.map(pair).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(window), secs(slide), None)
}

#[test]
fn without_a_filter_the_inverse_form_keeps_keys_with_nothing_left() {
    let batches = &[(1, "a"), (2, "b"), (3, ""), (4, ""), (5, "a"), (6, "")];
    let expected = [(1, "a=1"), (2, "a=1 b=1"), (3, "a=0 b=1"), (4, "a=0 b=0"), (5, "a=1 b=0"), (6, "a=1 b=0")];
    check(|s| kept(s, 2, 1), batches, at(&expected));
    // Windows that do not overlap, and those that leave batches out.
    check(|s| kept(s, 2, 2), batches, at(&[(2, "a=1 b=1"), (4, "a=0 b=0"), (6, "a=1 b=0")]));
    check(|s| kept(s, 1, 2), batches, at(&[(2, "b=1"), (4, "b=0"), (6, "b=0")]));
}

#[test]
fn keys_with_nothing_left_stay_when_the_program_was_away_for_longer_than_the_window() {
    let expected = [(1, "a=1"), (2, "a=1"), (3, "a=0"), (4, "a=0"), (5, "a=0 b=1")];
    check(|s| kept(s, 2, 1), &[(1, "a"), (5, "b")], at(&expected));
}

#[test]
fn the_inverse_undoes_what_was_added_where_they_do_not_cancel_out() {
    // 1e16 + 1 is 1e16, so what is left after taking 1e16 away is 0: a window put together anew would have 1.
    let numbers = |s: &DStream<String>| s.map(|word| word.parse::<f64>().unwrap());
    check(
        |s| numbers(s).reduce_by_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(2), secs(1)).map(|sum| sum as u64),
        &[(1, "1e16"), (2, "1"), (3, "")],
        [(1, vec![10_000_000_000_000_000]), (2, vec![10_000_000_000_000_000]), (3, vec![0])],
    );
}

#[test]
fn counts_over_a_window_begin_with_the_first_value_and_end_at_zero() {
    let batches = &[(1, ""), (2, "a b"), (3, ""), (4, "")];
    check(|s| s.count_by_window(secs(2), secs(1)), batches, [(1, vec![]), (2, vec![2]), (3, vec![2]), (4, vec![0])]);
    check(|s| s.count_by_value_and_window(secs(2), None), batches, at(&[(1, ""), (2, "a=1 b=1"), (3, "a=1 b=1"), (4, "")]));
}

#[test]
fn groups_over_a_window_have_their_batches_in_order() {
    let group = |key: &str, values: &[u64]| (key.to_string(), values.to_vec());
    check(
        |s| parsed(s).group_by_key_and_window(secs(2), secs(1)),
        &[(1, "a=2 b=1"), (2, "a=1"), (3, ""), (4, "")],
        [
            (1, vec![group("a", &[2]), group("b", &[1])]),
            (2, vec![group("a", &[2, 1]), group("b", &[1])]),
            (3, vec![group("a", &[1])]),
            (4, vec![]),
        ],
    );
}

#[test]
fn reduce_by_window_reduces_batches_then_windows() {
    let batches = &[(1, "aa b"), (2, "cccc"), (3, ""), (4, "")];
    let longest = |a: u64, b: u64| a.max(b);
    check(
        move |s| s.map(|w| w.len() as u64).reduce_by_window(longest, secs(2), secs(1)),
        batches,
        [(1, vec![2]), (2, vec![4]), (3, vec![4]), (4, vec![])],
    );
}

#[test]
fn a_missed_time_does_not_lose_a_window_that_was_due() {
    // The process was away at 4 and 5: the window of 3 and 4 is made up for.
    let batches = &[(1, "a"), (2, "b"), (3, "c"), (6, "f")];
    check(|s| s.window(secs(2), secs(2)).count(), batches, [(2, vec![2]), (4, vec![1]), (6, vec![1])]);
    // Without a window nothing was due.
    check(|s| s.count(), batches, [(1, vec![1]), (2, vec![1]), (3, vec![1]), (6, vec![1])]);
}

#[test]
fn windows_that_are_no_multiple_of_their_parent_are_refused_as_spark_does() {
    for (window, slide, part) in [
        (1500, 1000, "The window duration of windowed DStream (1500 ms) must be a multiple of the slide duration of parent DStream"),
        (2000, 1500, "The slide duration of windowed DStream (1500 ms) must be a multiple of the slide duration of parent DStream"),
        (0, 1000, "The window duration of windowed DStream (0 ms) must be a multiple of the slide duration of parent DStream"),
    ] {
        let (ssc, words) = context();
        words.window(Duration::from_millis(window), Duration::from_millis(slide)).print();
        let error = ssc.program().err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("parent slide duration: 1000 ms"), "{error}");
        let (ssc, words) = context();
        let add = |a: u64, b: u64| a + b;
        words.map(pair).reduce_by_key_and_window(add, Duration::from_millis(window), Duration::from_millis(slide)).print();
        assert!(ssc.program().err().unwrap().to_string().contains(part));
    }
}
