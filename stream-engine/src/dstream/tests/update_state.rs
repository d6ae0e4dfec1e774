//! `updateStateByKey`.

use serde::{Deserialize, Serialize};

use super::*;
use crate::commit::differences;

fn sum(values: Vec<u64>, state: Option<u64>) -> Option<u64> {
    Some(state.unwrap_or(0) + values.iter().sum::<u64>())
}

/// Tens: the sum so far. Ones: batches without a value, of which the second in a row ends the key.
fn idle(values: Vec<u64>, state: Option<u64>) -> Option<u64> {
    let state = state.unwrap_or(0);
    if !values.is_empty() {
        return Some(state / 10 * 10 + values.iter().sum::<u64>() * 10);
    }
    state.is_multiple_of(10).then_some(state + 1)
}

#[test]
fn every_key_is_touched_in_every_batch() {
    let batches = &[(1, "a b"), (2, "a"), (3, ""), (4, "b")];
    check(|s| s.map(pair).update_state_by_key(sum), batches, at(&[(1, "a=1 b=1"), (2, "a=2 b=1"), (3, "a=2 b=1"), (4, "a=2 b=2")]));
    check(|s| s.map(pair).update_state_by_key(idle), batches, at(&[(1, "a=10 b=10"), (2, "a=20 b=11"), (3, "a=21"), (4, "b=10")]));
}

#[test]
fn times_at_which_the_program_was_away_touch_every_key_too() {
    let count = |_: Vec<u64>, state: Option<u64>| Some(state.unwrap_or(0) + 1);
    check(
        move |s| s.map(pair).update_state_by_key(count),
        &[(1, "a"), (5, "b"), (6, "")],
        at(&[(1, "a=1"), (2, "a=2"), (3, "a=3"), (4, "a=4"), (5, "a=5 b=1"), (6, "a=6 b=2")]),
    );
}

#[test]
fn states_may_be_there_before_the_first_batch() {
    // Of two the first counts.
    let initial = || Rdd::from_partitions(vec![pairs("a=10 x=5"), pairs("x=7")]);
    check(
        move |s| s.map(pair).update_state_by_key_with_initial_state(sum, initial()),
        &[(1, "a b"), (2, "")],
        at(&[(1, "a=11 b=1 x=5"), (2, "a=11 b=1 x=5")]),
    );
}

#[test]
fn the_function_may_see_time_and_key() {
    let last_seen = |time: Time, key: String, values: Vec<u64>, state: Option<u64>| {
        if key == "never" {
            return None;
        }
        if values.is_empty() { state } else { Some(time.milliseconds() as u64) }
    };
    check(
        move |s| s.map(pair).update_state_by_key_with_time(last_seen, None),
        &[(1, "a never"), (2, "b"), (3, "a")],
        at(&[(1, "a=1000"), (2, "a=1000 b=2000"), (3, "a=3000 b=2000")]),
    );
}

#[test]
fn the_function_may_see_whole_partitions() {
    for n in [1, 3] {
        // The two largest of each partition.
        let top = |_: Time, updates: std::vec::IntoIter<StateUpdate<String, u64, u64>>| {
            let mut sums: Vec<_> = updates.map(|(key, values, state)| (key, state.unwrap_or(0) + values.len() as u64)).collect();
            sums.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            sums.into_iter().take(2)
        };
        let batches = &[(1, "a a a b b c"), (2, "c c c")];
        if n == 1 {
            let states = at(&[(1, "a=3 b=2"), (2, "a=3 c=3")]);
            check(|s| s.map(pair).update_state_by_key_with_partitions(top, None, n), batches, states);
        }
        check(
            |s| s.map(pair).update_state_by_key_with_partitions(top, None, n).glom().count(),
            batches,
            [1, 2].map(|t| (t, vec![n as u64])),
        );
    }
}

#[test]
fn windows_and_joins_see_the_states_of_their_times() {
    let batches = &[(1, "a"), (2, "a b"), (3, ""), (4, "b")];
    check(
        |s| s.map(pair).update_state_by_key(sum).window(secs(2), secs(1)),
        batches,
        at(&[(1, "a=1"), (2, "a=1 a=2 b=1"), (3, "a=2 a=2 b=1 b=1"), (4, "a=2 a=2 b=1 b=2")]),
    );
    // Between the windows no output asks for the states.
    check(|s| s.map(pair).update_state_by_key(sum).window(secs(1), secs(2)), batches, at(&[(2, "a=2 b=1"), (4, "a=2 b=2")]));
    check(
        |s| {
            let ones = s.map(pair);
            ones.update_state_by_key(sum).join(&ones.reduce_by_key(|a, b| a + b)).map_values(|(all, now)| all * 10 + now)
        },
        batches,
        at(&[(1, "a=11"), (2, "a=21 b=11"), (3, ""), (4, "b=21")]),
    );
    // A state of states.
    let changes = |values: Vec<u64>, state: Option<u64>| Some(state.unwrap_or(0) + values.iter().sum::<u64>());
    check(
        |s| s.map(pair).update_state_by_key(sum).update_state_by_key(changes),
        batches,
        at(&[(1, "a=1"), (2, "a=3 b=1"), (3, "a=5 b=2"), (4, "a=7 b=4")]),
    );
}

#[test]
fn states_of_a_slower_stream_change_with_its_batches() {
    check(
        |s| s.map(pair).window(secs(2), secs(2)).update_state_by_key(sum),
        &[(1, "a"), (2, ""), (3, "b"), (4, "a"), (5, ""), (6, "")],
        at(&[(2, "a=1"), (4, "a=2 b=1"), (6, "a=2 b=1")]),
    );
}

#[derive(Clone, Serialize, Deserialize)]
struct Then {
    count: u32,
}

#[derive(Clone, Serialize, Deserialize)]
struct Now {
    #[serde(default)]
    largest: u64,
    count: u64,
}

/// What a program with another state type finds: its output at the second batch, and how it differs; or the error of the restart.
async fn gone_on<S: StateValue>(
    uid: &str,
    f: impl Fn(Vec<u64>, Option<S>) -> Option<S> + Send + Sync + 'static,
) -> anyhow::Result<(Vec<S>, Vec<String>)> {
    let (ssc, words) = context();
    let then = |values: Vec<u64>, state: Option<Then>| Some(Then { count: state.map_or(0, |s| s.count) + values.len() as u32 });
    words.map(pair).update_state_by_key(then).uid("counts").foreach_rdd(|_, _| async { Ok(()) });
    let mut program = ssc.program()?;
    run(&mut program, 1, "a a").await;
    let (snapshot, before) = (program.snapshot()?, program.fingerprint());
    let (ssc, words) = context();
    let found: Arc<Mutex<Vec<S>>> = Arc::default();
    // One more stream with state, in front of it.
    words.map(pair).update_state_by_key(sum).foreach_rdd(|_, _| async { Ok(()) });
    let states = found.clone();
    words.map(pair).update_state_by_key(f).uid(uid).foreach_rdd(move |rdd, _| {
        let states = states.clone();
        async move {
            let values = rdd.values().collect().await?;
            states.lock().extend(values);
            Ok(())
        }
    });
    let mut program = ssc.program()?;
    program.restore(snapshot)?;
    run(&mut program, 2, "a").await;
    let found = found.lock().clone();
    Ok((found, differences(&before, &program.fingerprint()).iter().map(ToString::to_string).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_program_finds_its_state_by_name_and_reads_it_as_its_new_type() {
    let now = |values: Vec<u64>, state: Option<Now>| {
        let state = state.unwrap_or(Now { largest: 99, count: 99 });
        Some(Now { count: state.count + values.len() as u64, ..state })
    };
    let (found, differences) = gone_on("counts", now).await.unwrap();
    assert_eq!(found.iter().map(|state| (state.largest, state.count)).collect::<Vec<_>>(), [(0, 3)]);
    assert_eq!(differences, ["/operators/updateStateByKey-0: was not there"]);
    // Whether the job may go on so is for its settings to say.
    let (found, differences) = gone_on("others", now).await.unwrap();
    assert_eq!(found.iter().map(|state| state.count).collect::<Vec<_>>(), [100]);
    let said =
        ["/operators/counts: is not there any more", "/operators/others: was not there", "/operators/updateStateByKey-0: was not there"];
    assert_eq!(differences, said);
    let error = gone_on::<String>("counts", |_, state| state).await.err().unwrap();
    assert!(format!("{error:#}").contains("state `counts` in the checkpoint cannot be read as this program's type"), "{error:#}");
}
