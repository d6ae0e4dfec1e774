//! Any function from batch to batch.

use super::*;

#[test]
fn a_function_of_one_stream_sees_batch_and_time() {
    let batches = &[(1, "b a b"), (2, ""), (3, "c")];
    // The argument may be used more than once.
    check(|s| s.transform(|rdd, _| rdd.union(&rdd)), batches, [(1, words("a a b b b b")), (2, vec![]), (3, words("c c"))]);
    check(|s| s.transform(|rdd, time| rdd.map(move |_| time.milliseconds())), batches, [(1, vec![1000; 3]), (2, vec![]), (3, vec![3000])]);
    // Sorted as the program wants it, taken from the front by number.
    let two = |rdd: Rdd<String>, _| rdd.sort_by(String::clone, false).zip_with_index().filter(|(_, n)| *n < 2);
    let numbered = |word: &str, n: u64| (word.to_string(), n);
    check(move |s| s.transform(two), batches, [(1, vec![numbered("b", 0), numbered("b", 1)]), (2, vec![]), (3, vec![numbered("c", 0)])]);
}

#[test]
fn a_function_of_two_streams_sees_both_batches() {
    check(
        |s| {
            let (short, long) = (s.filter(|w| w.len() == 1), s.filter(|w| w.len() > 1));
            short.transform_with(&long.map(|w| w.len() as u64), |short, long, time| {
                let long = long.map(move |n| format!("{n}@{}", time.milliseconds()));
                short.union(&long).union(&short)
            })
        },
        &[(1, "a bb"), (2, "cc"), (3, "")],
        [(1, words("2@1000 a a")), (2, words("2@2000")), (3, vec![])],
    );
}

#[test]
fn a_function_of_many_streams_gets_their_batches_in_order() {
    check_in(
        |ssc, s| {
            let by_length = [3, 1, 2].map(|n| s.filter(move |w| w.len() == n));
            ssc.transform(&by_length, |rdds, _| {
                let numbered = rdds.into_iter().enumerate().map(|(n, rdd)| rdd.map(move |word| format!("{n}{word}")));
                numbered.reduce(|a, b| a.union(&b)).unwrap()
            })
        },
        &[(1, "a bb ccc"), (2, "")],
        [(1, words("0ccc 1a 2bb")), (2, vec![])],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_function_fails_the_batch() {
    let parse = |rdd: Rdd<String>, time: Time| {
        let until: i64 = "2000".parse()?;
        anyhow::ensure!(time.milliseconds() < until, "told to fail");
        anyhow::Ok(rdd.map(|word| word.len()))
    };
    let (ssc, words) = context();
    let seen = Seen::default();
    record(&words.transform(parse), &seen);
    let mut program = ssc.program().unwrap();
    run(&mut program, 1, "a").await;
    let error = attempt(&mut program, 2, "b", false).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "output foreachRDD-0: transform: told to fail");
    assert_eq!(*seen.lock(), [(1, vec![1])]);
}

#[test]
fn lists_of_no_streams_are_refused() {
    let (ssc, _words) = context();
    ssc.union::<String>(&[]).print();
    ssc.transform::<String, _>(&[], |_, _| Rdd::<u64>::empty()).print();
    let error = ssc.program().err().unwrap().to_string();
    assert_eq!(error, "union: List of DStreams to union is empty\ntransform: List of DStreams to transform is empty");
}
