//! `mapWithState`.

use super::*;

/// The running count of each word; `99` for a word that timed out.
fn spec() -> StateSpec<String, u64, u64, (String, u64)> {
    StateSpec::function(|word: String, one: Option<u64>, state: &mut State<u64>| {
        if state.is_timing_out() {
            return (word, 99);
        }
        let sum = one.unwrap_or(0) + state.get_option().copied().unwrap_or(0);
        state.update(sum);
        (word, sum)
    })
}

/// The stream itself, without the way to its states.
fn given<K, S, E>(stream: MapWithStateDStream<K, S, E>) -> DStream<E> {
    DStream::clone(&stream)
}

#[test]
fn only_keys_with_values_are_touched_once_per_value() {
    let batches = &[(1, "a b a"), (2, ""), (3, "a")];
    check(|s| given(s.map(pair).map_with_state(spec())), batches, at(&[(1, "a=1 a=2 b=1"), (2, ""), (3, "a=3")]));
    check(|s| s.map(pair).map_with_state(spec()).state_snapshots(), batches, at(&[(1, "a=2 b=1"), (2, "a=2 b=1"), (3, "a=3 b=1")]));
}

#[test]
fn times_at_which_the_program_was_away_are_empty_batches() {
    let batches = &[(1, "a"), (4, "a")];
    check(|s| given(s.map(pair).map_with_state(spec())), batches, at(&[(1, "a=1"), (2, ""), (3, ""), (4, "a=2")]));
}

#[test]
fn keys_without_values_for_longer_than_the_timeout_come_once_more_and_are_forgotten() {
    let build = |s: &DStream<String>| s.map(pair).map_with_state(spec().timeout(secs(2))).checkpoint(secs(1));
    let batches = &[(1, "a b"), (2, "b"), (3, ""), (4, ""), (5, ""), (6, "a")];
    // Last seen at 1: at 3 that is not longer than two seconds ago.
    check(|s| given(build(s)), batches, at(&[(1, "a=1 b=1"), (2, "b=2"), (3, ""), (4, "a=99"), (5, "b=99"), (6, "a=1")]));
    let snapshots = at(&[(1, "a=1 b=1"), (2, "a=1 b=2"), (3, "a=1 b=2"), (4, "b=2"), (5, ""), (6, "a=1")]);
    check(|s| build(s).state_snapshots(), batches, snapshots);
}

#[test]
fn keys_that_timed_out_are_looked_for_every_tenth_batch() {
    let batches = &[(1, "a"), (9, ""), (10, ""), (11, ""), (12, "a")];
    let expected = (1..=12).map(|second| match second {
        1 | 12 => (second, "a=1"),
        10 => (second, "a=99"),
        _ => (second, ""),
    });
    check(|s| given(s.map(pair).map_with_state(spec().timeout(secs(2)))), batches, at(&expected.collect::<Vec<_>>()));
}

#[test]
fn a_key_that_comes_back_before_anybody_looked_goes_on() {
    let batches = &[(1, "a"), (9, "a"), (10, "")];
    let expected = (1..=10).map(|second| match second {
        1 => (second, "a=1"),
        9 => (second, "a=2"),
        _ => (second, ""),
    });
    check(|s| given(s.map(pair).map_with_state(spec().timeout(secs(2)))), batches, at(&expected.collect::<Vec<_>>()));
}

#[test]
fn with_a_timeout_it_is_enough_to_be_seen() {
    // Sets the state once, then only looks.
    let once = || {
        StateSpec::function(|word: String, _: Option<u64>, state: &mut State<u64>| {
            if state.is_timing_out() {
                return (word, 99);
            }
            if !state.exists() {
                state.update(1);
            }
            (word, *state.get())
        })
    };
    check(
        move |s| given(s.map(pair).map_with_state(once().timeout(secs(1))).checkpoint(secs(1))),
        &[(1, "a"), (2, "a"), (3, "a"), (4, ""), (5, "")],
        at(&[(1, "a=1"), (2, "a=1"), (3, "a=1"), (4, ""), (5, "a=99")]),
    );
}

#[test]
fn a_function_may_forget_a_key() {
    let pairs_only = || {
        StateSpec::function_with_time(|time: Time, word: String, _: Option<u64>, state: &mut State<u64>| {
            if state.exists() {
                state.remove();
                assert!(!state.exists());
                return Some((word, time.milliseconds() as u64));
            }
            state.update(1);
            None
        })
    };
    let batches = &[(1, "a b"), (2, "a c c c"), (3, "a b")];
    check(move |s| given(s.map(pair).map_with_state(pairs_only())), batches, at(&[(1, ""), (2, "a=2000 c=2000"), (3, "b=3000")]));
    check(
        move |s| s.map(pair).map_with_state(pairs_only()).state_snapshots(),
        batches,
        at(&[(1, "a=1 b=1"), (2, "b=1 c=1"), (3, "a=1 c=1")]),
    );
}

#[test]
fn states_may_be_there_before_the_first_batch_and_time_out_after_it() {
    // Of two the last counts.
    let initial = || Rdd::from_partitions(vec![pairs("a=10 x=5"), pairs("x=7")]);
    let build = move |s: &DStream<String>| s.map(pair).map_with_state(spec().initial_state(initial()).timeout(secs(1))).checkpoint(secs(1));
    let batches = &[(1, "a"), (2, "a"), (3, "")];
    check(|s| given(build(s)), batches, at(&[(1, "a=11"), (2, "a=12"), (3, "x=99")]));
    check(|s| build(s).state_snapshots(), batches, at(&[(1, "a=11 x=7"), (2, "a=12 x=7"), (3, "a=12")]));
}

#[test]
fn the_number_of_partitions_may_be_given() {
    for n in [1, 3] {
        let build = move |s: &DStream<String>| s.map(pair).map_with_state(spec().num_partitions(n));
        let counts = |times: [i64; 2]| times.map(|second| (second, vec![n as u64]));
        check(|s| given(build(s)), &[(1, "a b"), (2, "b")], at(&[(1, "a=1 b=1"), (2, "b=2")]));
        check(|s| build(s).glom().count(), &[(1, "a b"), (2, "b")], counts([1, 2]));
        check(|s| build(s).state_snapshots().glom().count(), &[(1, "a b"), (2, "b")], counts([1, 2]));
    }
}

#[test]
fn windows_see_what_the_functions_gave_and_the_states_of_their_times() {
    let batches = &[(1, "a"), (2, "a b"), (3, ""), (4, "b")];
    check(
        |s| s.map(pair).map_with_state(spec()).window(secs(2), secs(1)),
        batches,
        at(&[(1, "a=1"), (2, "a=1 a=2 b=1"), (3, "a=2 b=1"), (4, "b=2")]),
    );
    check(
        |s| s.map(pair).map_with_state(spec()).state_snapshots().window(secs(2), secs(2)),
        batches,
        at(&[(2, "a=1 a=2 b=1"), (4, "a=2 a=2 b=1 b=2")]),
    );
    check(
        |s| s.map(pair).map_with_state(spec()).reduce_by_key_and_window_with_inverse(|a, b| a + b, |a, b| a - b, secs(2), secs(1), None),
        batches,
        at(&[(1, "a=1"), (2, "a=3 b=1"), (3, "a=2 b=1"), (4, "a=0 b=2")]),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_spark_refuses_fails_the_batch_with_its_words() {
    type Misuse = fn(&mut State<u64>);
    let misuses: [(Misuse, &str); 5] = [
        (|state| assert_eq!(*state.get(), 0), "State is not set"),
        (|state| (state.remove(), state.update(1)).1, "Cannot update the state after it has been removed"),
        (|state| (state.remove(), state.remove()).1, "Cannot remove the state that has already been removed"),
        (
            |state| {
                if state.is_timing_out() {
                    state.update(1)
                }
            },
            "Cannot update the state that is timing out",
        ),
        (
            |state| {
                if state.is_timing_out() {
                    state.remove()
                }
            },
            "Cannot remove the state that is timing out",
        ),
    ];
    for (misuse, words_of_spark) in misuses {
        let (ssc, words) = context();
        let spec = StateSpec::function(move |_: String, _: Option<u64>, state: &mut State<u64>| {
            misuse(state);
            state.update(1);
        });
        ignore(&words.map(pair).map_with_state(spec.timeout(Duration::from_millis(1))).checkpoint(secs(1)));
        let mut program = ssc.program().unwrap();
        let error = match attempt(&mut program, 1, "a", false).await {
            Ok(_) => attempt(&mut program, 2, "", false).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(format!("{error:#}").contains(words_of_spark), "{error:#}");
    }
}
