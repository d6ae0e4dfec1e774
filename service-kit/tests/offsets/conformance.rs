//! What every offset store must do. A store's test calls `check` with a way to open it; the suite closes and opens it again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use service_kit::kafka::TopicPartition;
use service_kit::offsets::{METADATA_BYTES_MAX, OffsetCommit, OffsetError, OffsetStore, StoredOffset};

/// Topics and partitions that the suite commits to; Kafka keeps offsets only of those that exist.
pub(crate) const TOPICS: [(&str, i32); 3] = [("logs", 8), ("new", 1), ("newer", 1)];

/// What differs between stores.
pub(crate) struct Facts {
    /// Several may be open on the same data.
    pub(crate) shared: bool,
    /// How often each of the writers that race between processes writes.
    pub(crate) races: i64,
    /// The highest partition of `logs` that may have an offset.
    pub(crate) partition_max: i32,
}

/// Runs the whole contract against an empty store that `open` opens, each time on the same data.
pub(crate) async fn check<Open>(open: Open, facts: Facts)
where
    Open: AsyncFn() -> Arc<dyn OffsetStore>,
{
    let store = open().await;
    an_unknown_group_is_empty_at_epoch_zero(&*store).await;
    an_offset_moves_forward_only(&*store).await;
    the_same_offset_again_replaces_the_metadata(&*store).await;
    a_commit_is_taken_as_a_whole(&*store).await;
    a_reset_rewinds_and_fences(&*store).await;
    a_deleted_group_stays_deleted(&*store).await;
    wrong_requests_are_refused(&*store, facts.partition_max).await;
    groups_do_not_mix(&*store).await;
    a_new_topic_of_an_old_name_has_no_offsets(&*store).await;
    racing_commits_end_at_the_highest(&store).await;
    a_reset_stops_racing_commits(&store).await;
    drop(store);
    if facts.shared {
        let (one, other) = (open().await, open().await);
        what_one_process_was_answered_the_other_sees(&*one, &*other).await;
        writers_of_two_processes_end_at_the_highest(&one, &other, facts.races).await;
        resets_of_two_processes_have_epochs_of_their_own(&one, &other, facts.races).await;
    }
    reopening_finds_everything(open).await;
}

async fn an_unknown_group_is_empty_at_epoch_zero(store: &dyn OffsetStore) {
    let found = store.get("unknown", None).await.unwrap();
    assert_eq!((found.epoch, found.offsets.len()), (0, 0));
    let found = store.get("unknown", Some(&[logs(0)])).await.unwrap();
    assert_eq!((found.epoch, found.offsets.len()), (0, 0));
    assert!(!store.delete("unknown").await.unwrap());
    assert!(store.groups().await.unwrap().is_empty());
}

async fn an_offset_moves_forward_only(store: &dyn OffsetStore) {
    store.commit("forward", 0, &[at(logs(0), 10, "first")]).await.unwrap();
    store.commit("forward", 0, &[at(logs(0), 10, "again")]).await.unwrap();
    let found = store.get("forward", None).await.unwrap();
    assert_eq!(found.offsets[&logs(0)], StoredOffset { offset: 10, metadata: "again".to_owned() });
    let error = store.commit("forward", 0, &[at(logs(0), 9, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Regressed { stored: 10, given: 9, partition: 0, .. }), "{error}");
    store.commit("forward", 0, &[at(logs(0), 11, ""), at(logs(1), 0, "")]).await.unwrap();
    assert_eq!(offset(store, "forward", logs(0)).await, Some(11));
    assert_eq!(offset(store, "forward", logs(1)).await, Some(0));
    // Only what was asked for is answered.
    assert_eq!(store.get("forward", Some(&[logs(1), logs(7)])).await.unwrap().offsets.len(), 1);
}

async fn the_same_offset_again_replaces_the_metadata(store: &dyn OffsetStore) {
    let longest = "a1.".repeat(METADATA_BYTES_MAX / 3);
    for metadata in ["", "first", &longest, "", &longest, "shorter"] {
        store.commit("again", 0, &[at(logs(0), 10, metadata)]).await.unwrap();
        let found = store.get("again", Some(&[logs(0)])).await.unwrap();
        assert_eq!(found.offsets[&logs(0)], StoredOffset { offset: 10, metadata: metadata.to_owned() }, "{} bytes", metadata.len());
    }
    // A reset of nothing only fences, also a group that nobody has committed to.
    assert_eq!(store.reset("fenced", &[]).await.unwrap(), 1);
    assert!(matches!(store.commit("fenced", 0, &[at(logs(0), 1, "")]).await, Err(OffsetError::Fenced { current: 1, .. })));
    let found = store.get("fenced", None).await.unwrap();
    assert_eq!((found.epoch, found.offsets.len()), (1, 0));
    assert!(!store.groups().await.unwrap().contains(&"fenced".to_owned()));
}

async fn a_commit_is_taken_as_a_whole(store: &dyn OffsetStore) {
    store.commit("whole", 0, &[at(logs(0), 5, ""), at(logs(1), 5, "")]).await.unwrap();
    store.commit("whole", 0, &[at(logs(0), 6, ""), at(logs(1), 4, "")]).await.unwrap_err();
    assert_eq!(offset(store, "whole", logs(0)).await, Some(5));
    assert_eq!(offset(store, "whole", logs(1)).await, Some(5));
}

async fn a_reset_rewinds_and_fences(store: &dyn OffsetStore) {
    store.commit("reset", 0, &[at(logs(0), 100, ""), at(logs(1), 100, "")]).await.unwrap();
    let epoch = store.reset("reset", &[at(logs(0), 3, "rewound")]).await.unwrap();
    assert_eq!(epoch, 1);
    let found = store.get("reset", None).await.unwrap();
    assert_eq!(found.epoch, 1);
    assert_eq!(found.offsets[&logs(0)].offset, 3);
    assert_eq!(found.offsets[&logs(1)].offset, 100, "a partition that was not named keeps its offset");
    for wrong in [0, 2] {
        let error = store.commit("reset", wrong, &[at(logs(0), 200, "")]).await.unwrap_err();
        assert!(matches!(error, OffsetError::Fenced { current: 1, .. }), "{error}");
    }
    store.commit("reset", 1, &[at(logs(0), 4, "")]).await.unwrap();
    assert_eq!(store.reset("reset", &[]).await.unwrap(), 2, "an empty reset only fences");
    assert_eq!(offset(store, "reset", logs(0)).await, Some(4));
}

async fn a_deleted_group_stays_deleted(store: &dyn OffsetStore) {
    store.commit("deleted", 0, &[at(logs(0), 100, "")]).await.unwrap();
    assert!(store.delete("deleted").await.unwrap());
    assert!(!store.delete("deleted").await.unwrap());
    let found = store.get("deleted", None).await.unwrap();
    assert!(found.offsets.is_empty());
    let error = store.commit("deleted", 0, &[at(logs(0), 101, "")]).await.unwrap_err();
    assert!(matches!(error, OffsetError::Fenced { .. }), "{error}");
    assert!(!store.groups().await.unwrap().contains(&"deleted".to_owned()));
    store.commit("deleted", found.epoch, &[at(logs(0), 1, "")]).await.unwrap();
    assert_eq!(offset(store, "deleted", logs(0)).await, Some(1));
}

async fn wrong_requests_are_refused(store: &dyn OffsetStore, partition_max: i32) {
    let long = "x".repeat(METADATA_BYTES_MAX + 1);
    for (group, commit) in [
        ("", at(logs(0), 1, "")),
        ("wrong", at(logs(0), -1, "")),
        ("wrong", at(logs(-1), 1, "")),
        ("wrong", at(logs(0), 1, &long)),
        ("wrong", at(TopicPartition { topic: "".into(), partition: 0 }, 1, "")),
        (&"g".repeat(300), at(logs(0), 1, "")),
    ] {
        let commit = [commit];
        assert!(matches!(store.commit(group, 0, &commit).await, Err(OffsetError::Invalid(_))), "{group} {commit:?}");
        assert!(matches!(store.reset(group, &commit).await, Err(OffsetError::Invalid(_))), "{group} {commit:?}");
    }
    assert!(store.get("wrong", None).await.unwrap().offsets.is_empty());
    let longest = "ö".repeat(METADATA_BYTES_MAX / 2);
    store.commit("longest", 0, &[at(logs(partition_max), i64::MAX, &longest)]).await.unwrap();
    assert_eq!(store.get("longest", None).await.unwrap().offsets[&logs(partition_max)].metadata, longest);
}

async fn groups_do_not_mix(store: &dyn OffsetStore) {
    for group in ["mix", "mixed", "m", "mix/1", "größe"] {
        store.commit(group, 0, &[at(logs(0), group.len() as i64, "")]).await.unwrap();
    }
    store.delete("mix").await.unwrap();
    for group in ["mixed", "m", "mix/1", "größe"] {
        assert_eq!(offset(store, group, logs(0)).await, Some(group.len() as i64));
    }
    let groups = store.groups().await.unwrap();
    let mine: Vec<&str> = groups.iter().map(String::as_str).filter(|group| group.starts_with('m') || group.starts_with('g')).collect();
    assert_eq!(mine, ["größe", "m", "mix/1", "mixed"]);
}

async fn a_new_topic_of_an_old_name_has_no_offsets(store: &dyn OffsetStore) {
    let of = |topic: &str| OffsetCommit { partition: TopicPartition::new(topic, 0), offset: 7, metadata: String::new() };
    let offsets =
        async |group: &str| store.get(group, None).await.unwrap().offsets.into_keys().map(|of| of.topic.to_string()).collect::<Vec<_>>();
    for group in ["anew-1", "anew-2"] {
        store.commit(group, 0, &[of("new"), of("newer")]).await.unwrap();
    }
    store.commit("anew-3", 0, &[of("newer")]).await.unwrap();
    // The first id that is told belongs to what is there already.
    assert!(store.know_topic("new", [1; 16]).await.unwrap().is_empty());
    assert!(store.know_topic("new", [1; 16]).await.unwrap().is_empty());
    assert_eq!(offsets("anew-1").await, ["new", "newer"]);
    assert_eq!(store.know_topic("new", [2; 16]).await.unwrap(), ["anew-1", "anew-2"]);
    for group in ["anew-1", "anew-2", "anew-3"] {
        assert_eq!(offsets(group).await, ["newer"]);
    }
    let late = store.commit("anew-1", 0, &[of("new")]).await.unwrap_err();
    assert!(matches!(late, OffsetError::Fenced { current: 1, .. }), "{late}");
    store.commit("anew-3", 0, &[of("newer")]).await.unwrap();
    assert_eq!(store.forget_topic("newer").await.unwrap(), ["anew-1", "anew-2", "anew-3"]);
    assert!(store.forget_topic("newer").await.unwrap().is_empty());
}

async fn racing_commits_end_at_the_highest(store: &Arc<dyn OffsetStore>) {
    let tasks: Vec<_> = (0..8_i64)
        .map(|task| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for step in 0..25 {
                    let offset = step * 8 + task;
                    match store.commit("race", 0, &[at(logs(0), offset, &offset.to_string())]).await {
                        Ok(()) => accepted.push(offset),
                        Err(OffsetError::Regressed { stored, .. }) => assert!(stored > offset),
                        Err(other) => panic!("{other}"),
                    }
                }
                accepted
            })
        })
        .collect();
    let mut accepted = Vec::new();
    for task in tasks {
        accepted.extend(task.await.unwrap());
    }
    let found = store.get("race", None).await.unwrap();
    let stored = &found.offsets[&logs(0)];
    assert_eq!(Some(&stored.offset), accepted.iter().max());
    assert_eq!(stored.offset, 199, "the highest is never refused");
    assert_eq!(stored.metadata, "199", "offset and metadata are of one commit");
}

async fn a_reset_stops_racing_commits(store: &Arc<dyn OffsetStore>) {
    let writer = {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            for offset in 1_000.. {
                match store.commit("stop", 0, &[at(logs(0), offset, "")]).await {
                    Ok(()) => {}
                    Err(OffsetError::Fenced { given: 0, current: 1, .. }) => return,
                    Err(other) => panic!("{other}"),
                }
            }
        })
    };
    while offset(&**store, "stop", logs(0)).await.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(store.reset("stop", &[at(logs(0), 1, "")]).await.unwrap(), 1);
    writer.await.unwrap();
    assert_eq!(offset(&**store, "stop", logs(0)).await, Some(1));
}

async fn what_one_process_was_answered_the_other_sees(one: &dyn OffsetStore, other: &dyn OffsetStore) {
    let both = |value| [at(logs(0), value, "m"), at(logs(1), value, "m")];
    for round in 1..=5 {
        let epoch = one.get("two", None).await.unwrap().epoch;
        one.commit("two", epoch, &both(100 + round)).await.unwrap();
        assert_eq!(offset(other, "two", logs(1)).await, Some(100 + round));
        let late = other.commit("two", epoch, &both(99 + round)).await.unwrap_err();
        assert!(matches!(late, OffsetError::Regressed { .. }), "{late}");
        let next = other.reset("two", &both(round)).await.unwrap();
        assert_eq!(next, epoch + 1);
        let late = one.commit("two", epoch, &both(200)).await.unwrap_err();
        assert!(matches!(late, OffsetError::Fenced { current, .. } if current == next), "{late}");
        let found = one.get("two", Some(&[logs(0), logs(1)])).await.unwrap();
        assert_eq!((found.epoch, found.offsets[&logs(0)].offset, found.offsets[&logs(1)].offset), (next, round, round));
    }
    assert!(one.know_topic("new", [3; 16]).await.unwrap().is_empty(), "all of its offsets were removed before");
    let epoch = other.get("two", None).await.unwrap().epoch;
    other.commit("two", epoch, &[at(TopicPartition::new("new", 0), 1, "")]).await.unwrap();
    assert_eq!(other.know_topic("new", [4; 16]).await.unwrap(), ["two"]);
    assert!(one.know_topic("new", [4; 16]).await.unwrap().is_empty());
    assert!(other.delete("two").await.unwrap());
    assert!(!one.delete("two").await.unwrap());
    assert!(one.get("two", None).await.unwrap().offsets.is_empty());
}

async fn writers_of_two_processes_end_at_the_highest(one: &Arc<dyn OffsetStore>, other: &Arc<dyn OffsetStore>, steps: i64) {
    let ended = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (store, ended) = (Arc::clone(one), Arc::clone(&ended));
        tokio::spawn(async move {
            let (mut highest, mut looks) = (-1, 0);
            while !ended.load(Ordering::Relaxed) {
                let found = store.get("two-race", None).await.unwrap().offsets;
                let offsets: Vec<i64> = found.values().map(|stored| stored.offset).collect();
                assert!(offsets.is_empty() || offsets.len() == 3, "a part of a commit: {found:?}");
                assert!(found.values().all(|stored| stored.offset == offsets[0] && stored.metadata == offsets[0].to_string()), "{found:?}");
                let now = offsets.first().copied().unwrap_or(-1);
                assert!(now >= highest, "went back from {highest} to {now}");
                (highest, looks) = (now, looks + 1);
            }
            looks
        })
    };
    let tasks: Vec<_> = (0..6_i64)
        .map(|task| {
            let store = Arc::clone(if task % 2 == 0 { one } else { other });
            tokio::spawn(async move {
                let mut accepted = -1;
                for step in 0..steps {
                    let offset = step * 6 + task;
                    let commit = [2, 0, 1].map(|partition| at(logs(partition), offset, &offset.to_string()));
                    match store.commit("two-race", 0, &commit).await {
                        Ok(()) => accepted = offset,
                        Err(OffsetError::Regressed { stored, .. }) => assert!(stored > offset),
                        Err(other) => panic!("{other}"),
                    }
                }
                accepted
            })
        })
        .collect();
    let mut highest = -1;
    for task in tasks {
        highest = highest.max(task.await.unwrap());
    }
    ended.store(true, Ordering::Relaxed);
    assert!(watcher.await.unwrap() > 0);
    assert_eq!(highest, steps * 6 - 1, "the highest is never refused");
    for store in [one, other] {
        assert_eq!(offset(&**store, "two-race", logs(2)).await, Some(highest));
    }
}

async fn resets_of_two_processes_have_epochs_of_their_own(one: &Arc<dyn OffsetStore>, other: &Arc<dyn OffsetStore>, steps: i64) {
    let tasks: Vec<_> = (0..6)
        .map(|task| {
            let store = Arc::clone(if task % 2 == 0 { one } else { other });
            tokio::spawn(async move {
                let mut epochs = Vec::new();
                for _ in 0..steps {
                    epochs.push(store.reset("two-resets", &[at(logs(0), 5, "")]).await.unwrap());
                }
                epochs
            })
        })
        .collect();
    let mut epochs = Vec::new();
    for task in tasks {
        epochs.extend(task.await.unwrap());
    }
    epochs.sort_unstable();
    assert_eq!(epochs, (1..=6 * steps as u64).collect::<Vec<u64>>());
}

async fn reopening_finds_everything<Open>(open: Open)
where
    Open: AsyncFn() -> Arc<dyn OffsetStore>,
{
    let store = open().await;
    assert_eq!(store.get("again", None).await.unwrap().offsets[&logs(0)], StoredOffset { offset: 10, metadata: "shorter".to_owned() });
    assert_eq!(offset(&*store, "forward", logs(0)).await, Some(11));
    let found = store.get("reset", None).await.unwrap();
    assert_eq!((found.epoch, found.offsets[&logs(0)].offset), (2, 4));
    assert_eq!(offset(&*store, "race", logs(0)).await, Some(199));
    assert!(matches!(store.commit("stop", 0, &[at(logs(0), 2, "")]).await, Err(OffsetError::Fenced { .. })));
    let groups = store.groups().await.unwrap();
    assert!(groups.is_sorted());
    assert!(groups.contains(&"größe".to_owned()) && !groups.contains(&"mix".to_owned()));
}

fn logs(partition: i32) -> TopicPartition {
    TopicPartition { topic: "logs".into(), partition }
}

fn at(partition: TopicPartition, offset: i64, metadata: &str) -> OffsetCommit {
    OffsetCommit { partition, offset, metadata: metadata.to_owned() }
}

async fn offset(store: &dyn OffsetStore, group: &str, partition: TopicPartition) -> Option<i64> {
    store.get(group, Some(std::slice::from_ref(&partition))).await.unwrap().offsets.get(&partition).map(|stored| stored.offset)
}
