//! Crashes at every step of the protocol, against a store that loses, tears or half-does any operation.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result as StoreResult, memory::InMemory, path::Path,
};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::{CountingProgram, FakeKafka, FencedSink, spec};
use crate::batch::runner::{Mode, Runner};
use crate::batch::{Bounded, Startup};
use crate::job::{JobSettings, Monitor};

/// What happens to the operation at which the process dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// It does not happen.
    Before,
    /// Half of the bytes arrive under the final name.
    Torn,
    /// It happens, and the process dies before it knows.
    After,
}

/// A store in memory at which the process dies at a given operation; from then on nothing answers.
#[derive(Debug)]
struct Mortal {
    inner: Arc<InMemory>,
    left: AtomicU64,
    death: Death,
    dead: Arc<AtomicBool>,
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

fn gone() -> object_store::Error {
    // Not retryable, so that the runner ends at once, as a killed process does.
    object_store::Error::NotImplemented { operation: "anything".into(), implementer: "a dead process".into() }
}

impl Mortal {
    /// How the process dies at this operation, if it does.
    fn step(&self) -> StoreResult<Option<Death>> {
        if self.dead.load(SeqCst) {
            return Err(gone());
        }
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.dead.store(true, SeqCst);
            return Ok(Some(self.death));
        }
        Ok(None)
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        match self.step()? {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(Death::Before) => Err(gone()),
            Some(Death::Torn) => {
                let bytes: Vec<u8> = payload.iter().flatten().copied().collect();
                self.inner.put_opts(location, bytes[..bytes.len() / 2].to_vec().into(), opts).await?;
                Err(gone())
            }
            Some(Death::After) => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(gone())
            }
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        Err(gone())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.step()?.map_or(Ok(()), |_| Err(gone()))?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        match self.step() {
            Ok(None) => self.inner.delete_stream(locations),
            Ok(Some(Death::After)) => self.inner.delete_stream(locations).map(|_| Err(gone())).boxed(),
            _ => futures::stream::iter([Err(gone())]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.step() {
            Ok(None) => self.inner.list(prefix),
            _ => futures::stream::iter([Err(gone())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.step()?.map_or(Ok(()), |_| Err(gone()))?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Runs a bounded job over 40 records in batches of 10 until it finishes; the process dies at the given steps.
async fn live_through(deaths: &[(u64, Death)]) -> (FakeKafka, FencedSink) {
    let (kafka, sink, inner) = (FakeKafka::with_topic("t", 2), FencedSink::default(), Arc::new(InMemory::new()));
    (0..40).for_each(|n| kafka.send("t", n % 2, "x"));
    let immortal = (u64::MAX, Death::Before);
    for (left, death) in deaths.iter().copied().chain([immortal]) {
        let store = Mortal { inner: inner.clone(), left: AtomicU64::new(left), death, dead: Arc::default() };
        let checkpoint = Checkpoint::over(Arc::new(store));
        let settings = JobSettings {
            batch_interval: Duration::from_millis(10),
            records_max: Some(10),
            checkpoint_retained: 2,
            retry_attempts: 0,
            ..JobSettings::default()
        };
        let monitor = Arc::new(Monitor::new("job", 10, 100, "", 0));
        let (_mode, receiver) = watch::channel(Mode::Run);
        let runner = Runner {
            job: "job".into(),
            settings,
            program: Box::new(CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), &sink)),
            checkpoint,
            cluster: Arc::new(kafka.clone()),
            clock: Arc::new(SystemClock),
            monitor,
            mode: receiver,
            tasks: TaskTracker::new(),
        };
        let result = runner.run().await;
        if left == u64::MAX {
            result.unwrap();
        }
    }
    (kafka, sink)
}

fn assert_exactly_once(kafka: &FakeKafka, sink: &FencedSink) {
    let state = sink.state();
    assert_eq!(state.effects, kafka.all("t"), "every record has had its effect once");
    let ids: Vec<u64> = state.batches.iter().map(|batch| batch.id).collect();
    assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>());
    // The state followed: the total after the last batch counts every record once.
    assert_eq!(*state.totals.values().next_back().unwrap(), 40);
}

#[tokio::test]
async fn a_death_at_any_single_step_loses_and_repeats_nothing() {
    for death in [Death::Before, Death::Torn, Death::After] {
        for step in 1..60 {
            let (kafka, sink) = live_through(&[(step, death)]).await;
            assert_exactly_once(&kafka, &sink);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn deaths_at_any_steps_lose_and_repeat_nothing(deaths in prop::collection::vec((1..30_u64, 0..3_usize), 1..8)) {
        let deaths: Vec<(u64, Death)> =
            deaths.into_iter().map(|(step, death)| (step, [Death::Before, Death::Torn, Death::After][death])).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (kafka, sink) = runtime.block_on(live_through(&deaths));
        assert_exactly_once(&kafka, &sink);
    }
}

#[tokio::test]
async fn a_checkpoint_on_disk_survives_and_a_torn_newest_commit_falls_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").join("b");
    let checkpoint = Checkpoint::open(path.to_str().unwrap()).unwrap();
    let commit = |id| Commit {
        id,
        time_ms: 5,
        next: vec![],
        watermark_ms: None,
        totals: crate::commit::Totals::default(),
        end: None,
        topics: vec![],
    };
    for id in 0..3 {
        checkpoint.put_commit(&commit(id), format!("state {id}").as_bytes()).await.unwrap();
    }
    assert!(matches!(checkpoint.put_commit(&commit(2), b"").await, Err(CheckpointError::Taken { .. })));
    let again = Checkpoint::open(&format!("file://{}", path.display())).unwrap();
    assert_eq!(again.load().await.unwrap().commit.unwrap().1, "state 2");
    let file = path.join("commits/2");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let loaded = again.load().await.unwrap();
    assert_eq!(loaded.commit.unwrap().1, "state 1");
    assert_eq!(loaded.facts.commits.get(&2), Some(&Health::Torn));
}

#[test]
fn one_engine_at_a_time_keeps_its_jobs_in_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(&folder.path().to_string_lossy()).unwrap();
    let held = open().lock().unwrap();
    assert!(held.is_some());
    let refused = open().lock().unwrap_err().to_string();
    for part in ["another engine keeps its jobs here", &format!("process {}", std::process::id()), "jobs.checkpoint"] {
        assert!(refused.contains(part), "without {part:?}: {refused}");
    }
    drop(held);
    assert!(open().lock().unwrap().is_some());
    assert!(Checkpoint::in_memory().lock().unwrap().is_none());
}
