//! Crashes at every step of the protocol, against a store that loses, tears or half-does any operation; owners who come and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, PutMultipartOptions, PutPayload, PutResult,
    Result as StoreResult, memory::InMemory,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;
use tokio::{sync::Semaphore, sync::watch, task::JoinHandle};
use tokio_util::task::TaskTracker;

use super::*;
use crate::batch::clock::SystemClock;
use crate::batch::fake::{CountingProgram, FakeKafka, FencedSink, spec};
use crate::batch::runner::{Mode, Runner};
use crate::batch::{BatchContext, BatchDefinition, BatchOutcome, Bounded, PartitionInput, Program, SourceSpec, Startup};
use crate::commit::{Positions, Totals};
use crate::job::{JobSettings, JobState, Monitor};

const PATIENCE: Duration = Duration::from_secs(20);

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

const DEATHS: [Death; 3] = [Death::Before, Death::Torn, Death::After];

/// Dies at no step that there is.
const NEVER: (u64, Death) = (u64::MAX, Death::Before);

/// What else is wrong with a store.
#[derive(Debug, Default)]
enum Quirk {
    #[default]
    None,
    /// Full from the put of this entry on, until it is freed.
    Full { from: &'static str, freed: Arc<AtomicBool>, reached: AtomicBool },
    /// Each put happens, and is answered with an error the first time.
    Forgetful(Mutex<BTreeSet<String>>),
    /// Replaces what it is told to leave.
    Careless,
    /// The put of this entry waits.
    Gate(Gate),
    /// What is in these folders or entries cannot be read so many times.
    Unreadable { below: &'static str, times: AtomicU64 },
}

#[derive(Clone, Debug)]
struct Gate {
    entry: &'static str,
    reached: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn before(entry: &'static str) -> Self {
        Self { entry, reached: Arc::new(Semaphore::new(0)), open: Arc::new(Semaphore::new(0)) }
    }

    async fn pass(&self, location: &Path) {
        if location.as_ref() == self.entry {
            self.reached.add_permits(1);
            self.open.acquire().await.unwrap().forget();
        }
    }

    async fn reached(&self) {
        tokio::time::timeout(PATIENCE, self.reached.acquire()).await.expect("nobody came to the gate").unwrap().forget();
    }

    fn open(&self) {
        self.open.add_permits(1_000);
    }
}

/// A store in memory at which the process dies at a given operation; from then on nothing answers.
#[derive(Debug)]
struct Mortal {
    inner: Arc<InMemory>,
    left: AtomicU64,
    death: Death,
    dead: AtomicBool,
    quirk: Quirk,
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

fn trouble(what: &str) -> object_store::Error {
    object_store::Error::Generic { store: "mortal", source: what.into() }
}

impl Mortal {
    fn new(inner: &Arc<InMemory>, (left, death): (u64, Death), quirk: Quirk) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), left: AtomicU64::new(left), death, dead: AtomicBool::new(false), quirk })
    }

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

    /// Operations there were.
    fn steps(&self) -> u64 {
        u64::MAX - self.left.load(SeqCst)
    }

    async fn put(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> StoreResult<PutResult> {
        match &self.quirk {
            Quirk::Full { freed, reached, .. } if reached.load(SeqCst) && !freed.load(SeqCst) => {
                return Err(trouble("no space left on device"));
            }
            Quirk::Full { from, reached, .. } if location.as_ref() == *from => reached.store(true, SeqCst),
            // Of owners the first: each try is one more.
            Quirk::Forgetful(known) if known.lock().insert(location.as_ref().split("owner/").next().unwrap_or_default().into()) => {
                self.inner.put_opts(location, payload, opts).await?;
                return Err(trouble("connection reset"));
            }
            Quirk::Careless => opts.mode = PutMode::Overwrite,
            Quirk::Gate(gate) => gate.pass(location).await,
            _ => {}
        }
        self.inner.put_opts(location, payload, opts).await
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> StoreResult<PutResult> {
        match self.step()? {
            None => self.put(location, payload, opts).await,
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
        if let Quirk::Unreadable { below, times } = &self.quirk
            && location.as_ref().starts_with(below)
            && times.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
        {
            return Err(trouble("all data nodes failed"));
        }
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

// === Jobs that die ===

struct Life {
    monitor: Arc<Monitor>,
    done: JoinHandle<anyhow::Result<()>>,
    _mode: watch::Sender<Mode>,
}

/// A bounded job in batches of 10 records.
fn live(kafka: &FakeKafka, program: impl Program + 'static, store: Arc<dyn ObjectStore>) -> Life {
    let settings = JobSettings {
        batch_interval: Duration::from_millis(10),
        records_max: Some(10),
        checkpoint_retained: 2,
        retry_attempts: 0,
        retry_backoff: Duration::from_millis(1),
        ..JobSettings::default()
    };
    let monitor = Arc::new(Monitor::new("job", 10, 100, "", Arc::new(SystemClock)));
    let (mode, receiver) = watch::channel(Mode::Run);
    let runner = Runner {
        job: "job".into(),
        settings,
        program: Box::new(program),
        checkpoint: Checkpoint::over(store),
        cluster: Arc::new(kafka.clone()),
        clock: Arc::new(SystemClock),
        monitor: monitor.clone(),
        mode: receiver,
        tasks: TaskTracker::new(),
        share: None,
    };
    Life { monitor, done: tokio::spawn(runner.run()), _mode: mode }
}

impl Life {
    async fn end(self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.done).await.expect("the job did not end").unwrap()
    }
}

/// Forty records in two partitions of `t`.
fn forty() -> (FakeKafka, FencedSink, Arc<InMemory>) {
    let kafka = FakeKafka::with_topic("t", 2);
    (0..40).for_each(|n| kafka.send("t", n % 2, "x"));
    (kafka, FencedSink::default(), Arc::new(InMemory::new()))
}

fn counting(sink: &FencedSink) -> CountingProgram {
    CountingProgram::new(spec(Startup::Earliest, Some(Bounded::Latest)), sink)
}

/// The same, known by these operators.
fn counting_as(sink: &FencedSink, operators: &[&str]) -> CountingProgram {
    let mut program = counting(sink);
    let operators: serde_json::Map<_, _> = operators.iter().map(|name| ((*name).to_owned(), json!({ "of": "rows" }))).collect();
    program.fingerprint = json!({ "operators": operators });
    program
}

/// Runs the job until it finishes; the process dies at the given steps. Gives the operations of the last life, too.
async fn live_through(deaths: &[(u64, Death)]) -> (FakeKafka, FencedSink, u64) {
    let (kafka, sink, inner) = forty();
    for death in deaths {
        // It may also have ended before that step.
        live(&kafka, counting(&sink), Mortal::new(&inner, *death, Quirk::None)).end().await.ok();
    }
    let store = Mortal::new(&inner, NEVER, Quirk::None);
    live(&kafka, counting(&sink), store.clone()).end().await.unwrap();
    (kafka, sink, store.steps())
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
    let (_, _, steps) = live_through(&[]).await;
    assert!(steps > 30, "{steps}");
    for death in DEATHS {
        for step in 1..=steps {
            let (kafka, sink, _) = live_through(&[(step, death)]).await;
            assert_exactly_once(&kafka, &sink);
        }
    }
}

fn deaths(at_most: usize) -> impl Strategy<Value = Vec<(u64, Death)>> {
    prop::collection::vec((1..50_u64, prop::sample::select(DEATHS.to_vec())), 1..at_most)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn deaths_at_any_steps_lose_and_repeat_nothing(deaths in deaths(8)) {
        let (kafka, sink, _) = block_on(live_through(&deaths));
        assert_exactly_once(&kafka, &sink);
    }

    #[test]
    fn a_changed_program_goes_on_after_deaths_at_any_steps(before in deaths(2), after in deaths(4)) {
        block_on(changed_between(&before, &after));
    }
}

/// The counting program with one more source, in front, and one more operator.
struct Changed(CountingProgram);

impl Changed {
    fn new(sink: &FencedSink) -> Self {
        Self(counting_as(sink, &["count", "more"]))
    }
}

#[async_trait]
impl Program for Changed {
    fn sources(&self) -> Vec<SourceSpec> {
        // Not from the first record: that is where partitions begin that come later.
        let from = BTreeMap::from([(TopicPartition::new("u", 0), 5)]);
        let more = SourceSpec { name: "more".into(), topics: vec!["u".into()], startup: Startup::Specific(from), ..self.0.spec.clone() };
        vec![more, self.0.spec.clone()]
    }

    fn plan(&self) -> String {
        self.0.plan()
    }

    fn fingerprint(&self) -> serde_json::Value {
        self.0.fingerprint()
    }

    async fn run(&mut self, batch: &BatchContext, input: Vec<PartitionInput>) -> anyhow::Result<BatchOutcome> {
        self.0.run(batch, input).await
    }

    fn snapshot(&mut self) -> anyhow::Result<Bytes> {
        self.0.snapshot()
    }

    fn restore(&mut self, snapshot: Bytes) -> anyhow::Result<()> {
        self.0.restore(snapshot)
    }
}

/// The program dies, is changed, dies again, and goes on to its end.
async fn changed_between(before: &[(u64, Death)], after: &[(u64, Death)]) {
    let (kafka, sink, inner) = forty();
    kafka.add_partitions("u", 0..1);
    (0..25).for_each(|_| kafka.send("u", 0, "y"));
    let first = || counting_as(&sink, &["count"]);
    for death in before {
        live(&kafka, first(), Mortal::new(&inner, *death, Quirk::None)).end().await.ok();
    }
    for death in after {
        live(&kafka, Changed::new(&sink), Mortal::new(&inner, *death, Quirk::None)).end().await.ok();
    }
    live(&kafka, Changed::new(&sink), inner.clone()).end().await.unwrap();
    let wanted: BTreeMap<String, u64> = kafka.all("t").into_iter().chain((5..25).map(|offset| (format!("u-0@{offset}"), 1))).collect();
    assert_eq!(sink.state().effects, wanted);
    assert_eq!(*sink.state().totals.values().next_back().unwrap(), 60);
    // The program of before does not know what the changed one keeps.
    if !before.is_empty() {
        let refused = live(&kafka, first(), inner).end().await.unwrap_err().to_string();
        for part in ["/operators/more: is not there any more", "/sources/more: is not there any more", crate::commit::IGNORE_UNCLAIMED] {
            assert!(refused.contains(part), "without {part}: {refused}");
        }
    }
}

#[tokio::test]
async fn a_full_store_makes_the_batches_wait_and_nothing_is_lost() {
    let (kafka, sink, inner) = forty();
    let freed = Arc::new(AtomicBool::new(false));
    let quirk = Quirk::Full { from: "commits/1", freed: freed.clone(), reached: AtomicBool::new(false) };
    let job = live(&kafka, counting(&sink), Mortal::new(&inner, NEVER, quirk));
    let waits = |view: &crate::job::JobView| {
        let why = view.error.as_deref().unwrap_or_default();
        view.state == JobState::Waiting && why.contains("cannot write `offsets/2`") && why.contains("no space left on device")
    };
    tokio::time::timeout(PATIENCE, job.monitor.wait_for(waits)).await.unwrap_or_else(|_| panic!("{:?}", job.monitor.view()));
    assert_eq!(sink.state().batches.len(), 2, "a batch ran without its definition");
    freed.store(true, SeqCst);
    job.end().await.unwrap();
    assert_exactly_once(&kafka, &sink);
}

#[tokio::test]
async fn a_put_that_happened_and_was_answered_with_an_error_is_ones_own() {
    let (kafka, sink, inner) = forty();
    let store = Mortal::new(&inner, NEVER, Quirk::Forgetful(Mutex::default()));
    live(&kafka, counting(&sink), store).end().await.unwrap();
    assert_exactly_once(&kafka, &sink);
}

// === Owners ===

fn planned(id: u64, time_ms: i64) -> PlannedBatch {
    let definition = BatchDefinition { id, time_ms, ranges: vec![] };
    PlannedBatch { definition, caught_up: vec![], end: None, topics: vec![], sources: vec![] }
}

fn commit(id: u64) -> Commit {
    Commit { id, time_ms: 5, next: vec![], watermark_ms: None, totals: Totals::default(), end: None, topics: vec![], sources: vec![] }
}

fn metadata() -> Metadata {
    Metadata { job: "job".into(), checkpoint_id: "c".into(), fingerprint: json!({}), started_at_ms: 0, sources: vec![] }
}

/// Every entry's name.
async fn entries(store: &InMemory) -> BTreeSet<String> {
    store.list(None).map(|meta| meta.unwrap().location.to_string()).collect().await
}

#[tokio::test]
async fn a_process_that_stood_still_while_another_went_on_puts_nothing_any_more() {
    let inner = Arc::new(InMemory::new());
    let place = Checkpoint::over(inner.clone());
    let old = place.own(Holder::Job).await.unwrap();
    old.put_metadata(&metadata()).await.unwrap();
    old.put_definition(&planned(0, 0)).await.unwrap();
    let new = place.own(Holder::Job).await.unwrap();
    new.put_commit(&commit(0), b"").await.unwrap();
    for id in 1..30 {
        new.put_definition(&planned(id, 0)).await.unwrap();
        new.put_commit(&commit(id), b"").await.unwrap();
        new.prune_one(id, 2).await.unwrap();
    }
    let before = entries(&inner).await;
    assert!(!before.contains("offsets/1"), "its place is free: {before:?}");
    let refused = [
        old.put_commit(&commit(0), b"").await,
        old.put_definition(&planned(1, 0)).await,
        old.put_definition(&planned(30, 0)).await,
        old.put_upgrade(&metadata()).await,
        old.put_file("definition", &json!({}), b"").await,
        old.delete_file("metadata").await,
        old.discard(Discard::Commit(29)).await,
        old.prune(29, 1).await,
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        let here = format!("process {} on", std::process::id());
        for part in ["another process has taken it over", &here, "puts nothing there any more"] {
            assert!(error.to_string().contains(part), "without {part}: {error}");
        }
        assert!(!error.retryable());
    }
    assert_eq!(entries(&inner).await, before);
    new.put_definition(&planned(30, 0)).await.unwrap();
    // Somebody deletes everything; the number of the owner is not given again.
    place.clear().await.unwrap();
    assert_eq!(entries(&inner).await, BTreeSet::new());
    assert!(new.put_definition(&planned(31, 0)).await.unwrap_err().to_string().contains("somebody has deleted it"));
    place.own(Holder::Job).await.unwrap().put_metadata(&metadata()).await.unwrap();
    assert!(matches!(new.put_definition(&planned(31, 0)).await, Err(CheckpointError::Lost { .. })));
}

#[tokio::test]
async fn what_the_former_owner_had_on_its_way_is_taken_over_as_it_is() {
    let (kafka, sink, inner) = forty();
    // Each has looked whether it is the owner, and is about to put.
    let (of_old, of_new) = (Gate::before("offsets/1"), Gate::before("offsets/1"));
    let start = |gate: &Gate| live(&kafka, counting(&sink), Mortal::new(&inner, NEVER, Quirk::Gate(gate.clone())));
    let old = start(&of_old);
    of_old.reached().await;
    let new = start(&of_new);
    of_new.reached().await;
    of_old.open();
    let error = old.end().await.unwrap_err().to_string();
    assert!(error.contains("another process has taken it over"), "{error}");
    of_new.open();
    new.end().await.unwrap();
    assert_exactly_once(&kafka, &sink);
}

#[tokio::test]
async fn an_entry_of_an_earlier_owner_is_told_from_one_that_nobody_owns() {
    let place = Checkpoint::in_memory();
    let first = place.own(Holder::Job).await.unwrap();
    first.put_definition(&planned(0, 1)).await.unwrap();
    // The same again is the answer to a put whose outcome was not told.
    first.put_definition(&planned(0, 1)).await.unwrap();
    assert!(matches!(first.put_definition(&planned(0, 2)).await, Err(CheckpointError::Taken { .. })));
    let second = place.own(Holder::Job).await.unwrap();
    assert!(matches!(second.put_definition(&planned(0, 1)).await, Err(CheckpointError::Late { .. })));
    place.put_definition(&planned(1, 1)).await.unwrap();
    assert!(matches!(second.put_definition(&planned(1, 2)).await, Err(CheckpointError::Taken { .. })));
}

#[tokio::test]
async fn a_store_that_replaces_what_it_is_told_to_leave_is_refused() {
    let store = Mortal::new(&Arc::new(InMemory::new()), NEVER, Quirk::Careless);
    let error = Checkpoint::over(store).own(Holder::Job).await.unwrap_err();
    assert!(error.to_string().contains("If-None-Match") && !error.retryable(), "{error}");
}

#[tokio::test]
async fn an_owner_takes_away_what_killed_processes_were_writing() {
    let inner = Arc::new(InMemory::new());
    let (left, kept) = (
        [".metadata.tmp.1", "offsets/.7.tmp.1", "commits/.7.tmp.12", "owner/.1.tmp.1", "upgrades/.1.tmp.1"],
        [".metadata.tmp.x", "offsets/7", "commits/7.tmp.1", "other/.7.tmp.1", "savepoints/a/commits/.7.tmp.1"],
    );
    for name in left.iter().chain(&kept) {
        inner.put(&Path::from(*name), "x".into()).await.unwrap();
    }
    Checkpoint::over(inner.clone()).own(Holder::Job).await.unwrap();
    let found = entries(&inner).await;
    let found: BTreeSet<&str> = found.iter().map(String::as_str).filter(|name| !name.starts_with("owner/")).collect();
    assert_eq!(found, BTreeSet::from(kept));
}

#[tokio::test]
async fn one_process_at_a_time_keeps_something_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(&folder.path().to_string_lossy(), &CheckpointConfig::default()).unwrap();
    let held = open().own(Holder::Engine).await.unwrap();
    let refused = open().own(Holder::Engine).await.unwrap_err().to_string();
    for part in ["another engine keeps its jobs here", &format!("process {}", std::process::id()), "jobs.checkpoint"] {
        assert!(refused.contains(part), "without {part:?}: {refused}");
    }
    let refused = open().own(Holder::Job).await.unwrap_err();
    assert!(refused.to_string().contains("another process runs a job here") && !refused.retryable(), "{refused}");
    // A job of its own in a folder of it is none of theirs.
    let job = held.child("job").own(Holder::Job).await.unwrap();
    job.put_definition(&planned(0, 0)).await.unwrap();
    held.put_file("file", &json!({}), b"").await.unwrap();
    drop((held, job));
    open().own(Holder::Engine).await.unwrap();
}

// === What is stored ===

#[tokio::test]
async fn a_checkpoint_on_disk_survives_and_a_torn_newest_commit_falls_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a").join("b");
    let checkpoint = Checkpoint::open(path.to_str().unwrap(), &CheckpointConfig::default()).unwrap();
    for id in 0..3 {
        checkpoint.put_commit(&commit(id), format!("state {id}").as_bytes()).await.unwrap();
    }
    assert!(matches!(checkpoint.put_commit(&commit(2), b"").await, Err(CheckpointError::Taken { .. })));
    let again = checkpoint.elsewhere(&format!("file://{}", path.display())).unwrap();
    assert_eq!(again.load().await.unwrap().commit.unwrap().1, "state 2");
    let file = path.join("commits/2");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let loaded = again.load().await.unwrap();
    assert_eq!(loaded.commit.unwrap().1, "state 1");
    assert_eq!(loaded.facts.commits.get(&2), Some(&Health::Torn));
}

#[tokio::test]
async fn a_newest_commit_that_the_store_cannot_give_is_damaged_when_it_gives_others() {
    let inner = Arc::new(InMemory::new());
    for id in 0..3 {
        Checkpoint::over(inner.clone()).put_commit(&commit(id), b"").await.unwrap();
    }
    let load = async |below, times| {
        let quirk = Quirk::Unreadable { below, times: AtomicU64::new(times) };
        Checkpoint::over(Mortal::new(&inner, NEVER, quirk)).load().await
    };
    let newest = |loaded: Loaded| (loaded.commit.unwrap().0.id, loaded.facts.commits);
    let (id, facts) = newest(load("commits/2", u64::MAX).await.unwrap());
    assert_eq!((id, facts), (1, BTreeMap::from([(1, Health::Sound), (2, Health::Torn)])));
    // It was away for a moment.
    assert_eq!(newest(load("commits/2", 2).await.unwrap()).0, 2);
    // Nothing can be read: the store is away, and nothing is thrown away for it.
    let error = load("commits", u64::MAX).await.unwrap_err();
    assert!(error.retryable() && error.to_string().contains("commits/2"), "{error}");
}

#[tokio::test]
async fn the_newest_sound_metadata_counts() {
    let inner = Arc::new(InMemory::new());
    let place = Checkpoint::over(inner.clone());
    let of = |fingerprint: u64| Metadata { fingerprint: json!(fingerprint), ..metadata() };
    let newest = async || place.metadata().await.unwrap().unwrap().fingerprint;
    place.put_metadata(&of(0)).await.unwrap();
    assert_eq!(newest().await, 0);
    place.put_upgrade(&of(1)).await.unwrap();
    place.put_upgrade(&of(2)).await.unwrap();
    assert_eq!(newest().await, 2);
    inner.put(&Path::from("upgrades/3"), "millrace 1 10".into()).await.unwrap();
    assert_eq!(newest().await, 2);
    place.put_upgrade(&of(4)).await.unwrap();
    assert_eq!((newest().await, entries(&inner).await.contains("upgrades/4")), (4.into(), true));
}

#[test]
fn entries_are_brought_into_the_order_of_the_sources() {
    let at = |topic: &str, offset| Positions(BTreeMap::from([(TopicPartition::new(topic, 0), offset)]));
    let topics = |topic: &str, id: &str| BTreeMap::from([(topic.to_owned(), id.to_owned())]);
    let start = |name: &str| SourceStart { name: name.into(), starts: at(name, 7), ends: None, topics: topics(name, "now") };
    let range = |topic: &str, from, until| OffsetRange { topic: topic.into(), partition: 0, from, until };
    let definition = BatchDefinition { id: 4, time_ms: 0, ranges: vec![vec![range("a", 1, 3)], vec![range("b", 2, 5)]] };
    let loaded = |sources: Vec<String>| Loaded {
        planned: BTreeMap::from([(
            4,
            PlannedBatch {
                definition: definition.clone(),
                caught_up: vec![vec![true], vec![false]],
                end: None,
                topics: vec![topics("a", "1"), topics("b", "2")],
                sources: sources.clone(),
            },
        )]),
        commit: Some((Commit { next: vec![at("a", 1), at("b", 2)], topics: vec![], sources, ..commit(3) }, Bytes::new())),
        ..Loaded::default()
    };
    // Two entries of one order: one says so itself, the other stands beside metadata that says it.
    let names = vec!["a".to_owned(), "b".to_owned()];
    for (sources, then) in [(names.clone(), vec!["b".to_owned(), "a".to_owned()]), (vec![], names)] {
        let mut loaded = loaded(sources);
        loaded.in_order_of(&["b", "new", "a"].map(start), &then);
        let (commit, _) = loaded.commit.unwrap();
        assert_eq!(commit.next, [at("b", 2), at("new", 7), at("a", 1)]);
        assert_eq!(commit.topics, ["b", "new", "a"].map(|name| topics(name, "now")));
        let planned = &loaded.planned[&4];
        assert_eq!(planned.definition.ranges, [vec![range("b", 2, 5)], vec![range("new", 7, 7)], vec![range("a", 1, 3)]]);
        assert_eq!(planned.caught_up, [[false], [false], [true]]);
        assert_eq!(planned.topics, [topics("b", "2"), topics("new", "now"), topics("a", "1")]);
        assert_eq!((planned.sources.join(" "), commit.sources.join(" ")), ("b new a".to_owned(), "b new a".to_owned()));
    }
}

#[tokio::test]
async fn savepoints_have_names_that_are_given_once() {
    let place = Checkpoint::in_memory();
    let take = async |name: &str, id: u64| place.copy_to(&place.savepoint(name), &metadata(), &commit(id), b"state").await;
    take("b", 7).await.unwrap();
    take("a", 9).await.unwrap();
    assert!(matches!(take("b", 8).await, Err(CheckpointError::Taken { .. })));
    // One that was not finished, and one that cannot be read.
    place.savepoint("begun").put_commit(&commit(1), b"").await.unwrap();
    take("damaged", 3).await.unwrap();
    place.store.put(&place.savepoint("damaged").path("metadata"), "millrace 9".into()).await.unwrap();
    let found: Vec<_> = place.savepoints().await.unwrap().into_iter().map(|found| (found.name, found.batch, found.location)).collect();
    assert_eq!(found, [("a".into(), 9, "memory:/savepoints/a".to_owned()), ("b".into(), 7, "memory:/savepoints/b".to_owned())]);
    assert!(place.delete_savepoint("b").await.unwrap());
    assert!(!place.delete_savepoint("b").await.unwrap());
    assert!(place.delete_savepoint("begun").await.unwrap());
    take("b", 8).await.unwrap();
    take("begun", 8).await.unwrap();
    assert_eq!(place.savepoint("b").load().await.unwrap().commit.unwrap().1, "state");
}
