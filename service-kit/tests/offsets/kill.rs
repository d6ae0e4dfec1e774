//! Writers that are killed with SIGKILL at any moment. The child tells what it was answered; the parent, which the store knows nothing of, keeps
//! that and compares: nothing that was answered is lost, nothing goes back, no commit is there in part.

use std::{
    hash::{BuildHasher as _, RandomState},
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use service_kit::kafka::TopicPartition;
use service_kit::offsets::{OffsetCommit, OffsetError, OffsetStore};

use crate::{KINDS, Kind, open};

const KILLS: usize = 8;
const GROUP: &str = "killed";
const CHILD: &str = "MILLRACE_TEST_OFFSETS_CHILD";
const BOUND: Duration = Duration::from_secs(15);

/// Epoch and offset of all three partitions.
type State = (u64, i64);

/// What the child does next: mostly a commit; after nine offsets a reset, by turns backward and forward.
fn next((epoch, offset): State) -> State {
    match (offset % 10, epoch % 2) {
        (9, 0) => (epoch + 1, offset - 3),
        (9, _) => (epoch + 1, offset + 1),
        _ => (epoch, offset + 1),
    }
}

fn any(below: u64) -> u64 {
    RandomState::new().hash_one(0) % below
}

async fn stored(store: &dyn OffsetStore) -> State {
    let found = store.get(GROUP, None).await.unwrap();
    let mut offsets: Vec<i64> = found.offsets.values().map(|stored| stored.offset).collect();
    assert!(offsets.is_empty() || offsets.len() == 3, "a part of a commit: {found:?}");
    offsets.dedup();
    assert!(offsets.len() < 2, "a part of a commit: {found:?}");
    assert!(found.offsets.values().all(|stored| stored.metadata == format!("{} {}", found.epoch, stored.offset)), "{found:?}");
    (found.epoch, offsets.first().copied().unwrap_or(0))
}

/// In a child, the work; elsewhere nothing.
pub(crate) async fn child() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let (kind, address) = told.split_once(' ').unwrap();
    let kind = KINDS.into_iter().find(|known| format!("{known:?}") == kind).unwrap();
    let store = open(kind, address, BOUND);
    let mut state = stored(&*store).await;
    loop {
        let (epoch, offset) = next(state);
        let commits = [0, 1, 2].map(|partition| OffsetCommit {
            partition: TopicPartition::new("logs", partition),
            offset,
            metadata: format!("{epoch} {offset}"),
        });
        match epoch == state.0 {
            true => store.commit(GROUP, epoch, &commits).await.unwrap(),
            false => assert_eq!(store.reset(GROUP, &commits).await.unwrap(), epoch),
        }
        state = (epoch, offset);
        let mut out = std::io::stdout();
        writeln!(out, "answered {epoch} {offset}").and_then(|()| out.flush()).unwrap();
    }
}

/// One child's life: what it was answered last, if anything.
fn life(kind: Kind, address: &str, test: &str) -> Option<State> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(CHILD, format!("{kind:?} {address}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut answered, mut seen, doomed) = (None, 0, 2 + any(30));
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // The test runner writes its own lines around the child's.
        let line = line.unwrap();
        let Some((_, told)) = line.rsplit_once("answered ") else { continue };
        let (epoch, offset) = told.split_once(' ').unwrap();
        answered = Some((epoch.parse().unwrap(), offset.parse().unwrap()));
        seen += 1;
        if seen == doomed {
            // Anywhere within the next call.
            let moment = Instant::now() + Duration::from_micros(any(4_000));
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success());
    assert!(seen >= doomed, "the child ended by itself");
    answered
}

pub(crate) async fn check(kind: Kind, address: &str) {
    let test = std::thread::current().name().unwrap().to_owned();
    let (mut kills, mut cut_off) = (0, 0);
    let mut before = (0, 0);
    // One that watches all the time, where it can.
    let watching = (kind != Kind::Sled).then(|| open(kind, address, BOUND));
    while kills < KILLS {
        let (told, test) = (address.to_owned(), test.clone());
        let answered = tokio::task::spawn_blocking(move || life(kind, &told, &test)).await.unwrap().unwrap();
        kills += 1;
        let store = watching.clone().unwrap_or_else(|| open(kind, address, BOUND));
        let found = stored(&*store).await;
        // The call that was cut off may have been carried out.
        assert!(found == answered || found == next(answered), "kill {kills}: answered {answered:?}, stored {found:?}");
        cut_off += usize::from(found != answered);
        assert!(found > before, "kill {kills}: {found:?} after {before:?}");
        if found.0 > 0 {
            let late = OffsetCommit { partition: TopicPartition::new("logs", 0), offset: i64::MAX, metadata: String::new() };
            let error = store.commit(GROUP, found.0 - 1, &[late]).await.unwrap_err();
            assert!(matches!(error, OffsetError::Fenced { .. }), "{error}");
        }
        before = found;
    }
    println!(
        "{kind:?}: {kills} writers killed, {cut_off} of them with a call carried out and not answered; at epoch and offset {before:?}"
    );
}
