//! Sources that are not Kafka, from the receiver, folder or queue to a committed batch, with the real runner and clock.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpListener,
    sync::{Mutex as AsyncMutex, mpsc, oneshot, watch},
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

use super::super::*;
use crate::batch::{
    Program as _,
    clock::{Clock as _, SystemClock},
    fake::FakeKafka,
    runner::{Mode, Runner},
};
use crate::checkpoint::Checkpoint;
use crate::job::{JobSettings, JobState, JobView, Monitor};
use crate::source::LocalLog;

const INTERVAL: Duration = Duration::from_millis(20);
/// Longest wait for a condition; far above what any of them takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(more: &[(&str, &str)]) -> JobSettings {
    let mut settings = JobSettings { batch_interval: INTERVAL, retry_backoff: Duration::from_millis(5), ..JobSettings::default() };
    let fast = [("spark.streaming.blockInterval", "10"), ("spark.streaming.receiverRestartDelay", "10")];
    for (key, value) in fast.iter().chain(more) {
        settings.apply(key, value).unwrap();
    }
    settings
}

const WITH_LOG: &[(&str, &str)] = &[("spark.streaming.receiver.writeAheadLog.enable", "true")];

/// A job in this process.
struct Job {
    monitor: Arc<Monitor>,
    mode: watch::Sender<Mode>,
    tasks: TaskTracker,
    done: JoinHandle<anyhow::Result<()>>,
    locals: Vec<Arc<dyn LocalLog>>,
}

fn context() -> StreamingContext {
    StreamingContext::new(SparkConf::new(), INTERVAL).unwrap()
}

fn start(ssc: StreamingContext, checkpoint: &Checkpoint, settings: JobSettings) -> Job {
    let program = ssc.program().unwrap();
    let locals = program.sources().into_iter().filter_map(|spec| match spec.kind {
        crate::batch::SourceKind::Local(log) => Some(log),
        crate::batch::SourceKind::Kafka(_) => None,
    });
    let locals = locals.collect();
    let monitor = Arc::new(Monitor::new("job", 1000, 100, checkpoint.location(), Arc::new(SystemClock)));
    let (mode, receiver) = watch::channel(Mode::Run);
    let tasks = TaskTracker::new();
    let runner = Runner {
        job: "job".into(),
        settings,
        program: Box::new(program),
        checkpoint: checkpoint.clone(),
        cluster: Arc::new(FakeKafka::default()),
        clock: Arc::new(SystemClock),
        monitor: monitor.clone(),
        mode: receiver,
        tasks: tasks.clone(),
        share: None,
    };
    Job { monitor, mode, tasks, done: tokio::spawn(runner.run()), locals }
}

impl Job {
    async fn until(&self, fits: impl FnMut(&JobView) -> bool) {
        tokio::time::timeout(PATIENCE, self.monitor.wait_for(fits)).await.expect("the condition did not come about");
    }

    /// Some batches later.
    async fn batches(&self, more: u64) {
        let now = self.monitor.view().totals.batches;
        self.until(|view| view.totals.batches >= now + more).await;
    }

    /// Ends the job, and waits for everything that it started.
    async fn end(self, mode: Mode) -> anyhow::Result<()> {
        self.mode.send_replace(mode);
        let result = tokio::time::timeout(PATIENCE, self.done).await.expect("the job did not end").unwrap();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("a task did not end");
        result
    }
}

async fn eventually(what: &str, mut fits: impl FnMut() -> bool) {
    let wait = async {
        while !fits() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}

/// What a [`Feed`] does next.
enum Item {
    One(String),
    /// A block, and who waits for it.
    Block(Vec<String>, oneshot::Sender<anyhow::Result<()>>),
    Fail,
    Panic,
    Restart,
    Stop,
}

/// A receiver that stores what a test gives it.
#[derive(Clone)]
struct Feed {
    items: Arc<AsyncMutex<mpsc::Receiver<Item>>>,
    starts: Arc<AtomicUsize>,
}

fn feed() -> (mpsc::Sender<Item>, Feed) {
    let (give, take) = mpsc::channel(1000);
    (give, Feed { items: Arc::new(AsyncMutex::new(take)), starts: Arc::default() })
}

#[async_trait]
impl Receiver<String> for Feed {
    async fn on_start(&self, supervisor: &ReceiverSupervisor<String>) -> anyhow::Result<()> {
        self.starts.fetch_add(1, Relaxed);
        let stopping = supervisor.stopping();
        let mut items = self.items.lock().await;
        loop {
            let item = tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                item = items.recv() => item,
            };
            match item {
                None => return std::future::pending().await,
                Some(Item::One(value)) => supervisor.store(value).await?,
                Some(Item::Block(values, done)) => {
                    // The test may have given up.
                    done.send(supervisor.store_all(values).await).ok();
                }
                Some(Item::Fail) => anyhow::bail!("told to fail"),
                Some(Item::Panic) => panic!("told to panic"),
                Some(Item::Restart) => supervisor.restart("told to restart"),
                Some(Item::Stop) => supervisor.stop("told to stop"),
            }
        }
    }
}

/// Stores a block and waits until it is stored.
async fn store(feed: &mpsc::Sender<Item>, text: &str) -> anyhow::Result<()> {
    let (done, stored) = oneshot::channel();
    feed.send(Item::Block(words(text), done)).await?;
    tokio::time::timeout(PATIENCE, stored).await??
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_string).collect()
}

type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// How often each word was there since the job first ran: kept in the job's state, so an effect that happened twice would show.
fn totals(words: &DStream<String>) -> Counts {
    let counts = Counts::default();
    let shown = counts.clone();
    let sums = words
        .map(|word| (word, 1_u64))
        .update_state_by_key(|ones: Vec<u64>, sum: Option<u64>| Some(sum.unwrap_or(0) + ones.iter().sum::<u64>()));
    sums.foreach_rdd(move |rdd, _| {
        let shown = shown.clone();
        async move {
            *shown.lock() = rdd.collect().await?.into_iter().collect();
            Ok(())
        }
    });
    counts
}

async fn counted(counts: &Counts, expected: &str) {
    let expected: BTreeMap<String, u64> = super::pairs(expected).into_iter().collect();
    eventually(&format!("{expected:?}"), || *counts.lock() == expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_receiver_stores_is_in_one_batch_and_offsets_go_on_after_a_restart() {
    for more in [&[][..], WITH_LOG] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
        let (give, receiver) = feed();
        for round in 1..=3_u64 {
            let ssc = context();
            let counts = totals(&ssc.receiver_stream(receiver.clone()));
            let job = start(ssc, &checkpoint, settings(more));
            store(&give, "a b a").await.unwrap();
            give.send(Item::One("c".into())).await.unwrap();
            counted(&counts, &format!("a={} b={round} c={round}", 2 * round)).await;
            // Committed, so that the next process does not look for them.
            job.batches(2).await;
            job.end(Mode::Stop).await.unwrap();
        }
        let (commit, _) = checkpoint.load().await.unwrap().commit.unwrap();
        assert_eq!((commit.totals.rows_in, *commit.next[0].0.values().next().unwrap()), (12, 12));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_cannot_go_on_from_its_checkpoint_ends_before_it_receives() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
    let (_give, receiver) = feed();
    for receivers in [1, 2] {
        let ssc = context();
        for _ in 0..receivers {
            ssc.receiver_stream(receiver.clone()).print();
        }
        let job = start(ssc, &checkpoint, settings(WITH_LOG));
        if receivers == 1 {
            job.batches(1).await;
            job.end(Mode::Stop).await.unwrap();
        } else {
            let error = job.end(Mode::Run).await.unwrap_err().to_string();
            assert!(error.contains(r#"/sources: was [["receiver-0"]], is [["receiver-0"],["receiver-1"]]"#), "{error}");
        }
    }
    assert_eq!(receiver.starts.load(Relaxed), 1);
}

/// A job whose first batch with words fails until it is stopped: its definition is durable, and nothing of it is committed.
async fn stopped_within_a_batch(checkpoint: &Checkpoint, settings: JobSettings) {
    let (give, receiver) = feed();
    let ssc = context();
    let lines = ssc.receiver_stream(receiver);
    totals(&lines);
    lines.foreach_rdd(|rdd, _| async move { if rdd.count().await? == 0 { Ok(()) } else { Err(anyhow::anyhow!("told to fail")) } });
    let job = start(ssc, checkpoint, JobSettings { retry_attempts: 1_000_000, ..settings });
    store(&give, "a a b").await.unwrap();
    job.until(|view| view.state == JobState::Waiting).await;
    // Received, and in no batch.
    store(&give, "c").await.unwrap();
    job.end(Mode::Stop).await.unwrap();
}

/// The same program, whose batches succeed.
fn repaired(checkpoint: &Checkpoint, settings: JobSettings) -> (Job, Counts, mpsc::Sender<Item>) {
    let (give, receiver) = feed();
    let ssc = context();
    let lines = ssc.receiver_stream(receiver);
    let counts = totals(&lines);
    lines.foreach_rdd(|rdd, _| async move { rdd.count().await.map(drop) });
    (start(ssc, checkpoint, settings), counts, give)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_log_a_batch_whose_records_are_gone_runs_without_them_and_the_job_goes_on() {
    let checkpoint = Checkpoint::in_memory();
    stopped_within_a_batch(&checkpoint, settings(&[])).await;
    assert_eq!(checkpoint.load().await.unwrap().planned.len(), 1);
    let (job, counts, give) = repaired(&checkpoint, settings(&[]));
    store(&give, "d").await.unwrap();
    counted(&counts, "d=1").await;
    job.batches(2).await;
    job.end(Mode::Stop).await.unwrap();
    let (commit, _) = checkpoint.load().await.unwrap().commit.unwrap();
    // The offsets of the three that are gone are not used again; the fourth was never in a batch.
    assert_eq!((commit.totals.rows_in, *commit.next[0].0.values().next().unwrap()), (1, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_log_a_batch_runs_again_with_its_records_and_what_was_in_none_follows() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
    stopped_within_a_batch(&checkpoint, settings(WITH_LOG)).await;
    let (job, counts, give) = repaired(&checkpoint, settings(WITH_LOG));
    store(&give, "d").await.unwrap();
    counted(&counts, "a=2 b=1 c=1 d=1").await;
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_files_are_gone_stops_no_job() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
    stopped_within_a_batch(&checkpoint, settings(WITH_LOG)).await;
    fs::remove_dir_all(dir.path().join("received")).unwrap();
    let (job, counts, give) = repaired(&checkpoint, settings(WITH_LOG));
    store(&give, "d").await.unwrap();
    counted(&counts, "d=1").await;
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_fails_the_job_unless_loss_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
    stopped_within_a_batch(&checkpoint, settings(WITH_LOG)).await;
    let file = dir.path().join("received/receiver-0/0000000000.seg");
    let mut bytes = fs::read(&file).unwrap();
    // In the first of two blocks.
    bytes[60] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (job, ..) = repaired(&checkpoint, settings(WITH_LOG));
    let error = format!("{:#}", job.end(Mode::Run).await.unwrap_err());
    for part in ["source `receiver-0`", "0000000000.seg` is damaged at byte 28: 3 records from offset 0", "failOnDataLoss=false"] {
        assert!(error.contains(part), "without {part:?}: {error}");
    }
    let (job, counts, _give) = repaired(&checkpoint, settings(&[WITH_LOG, &[("failOnDataLoss", "false")]].concat()));
    counted(&counts, "c=1").await;
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_needs_a_checkpoint_in_a_folder() {
    let (_give, receiver) = feed();
    let ssc = context();
    ssc.receiver_stream(receiver).print();
    let job = start(ssc, &Checkpoint::in_memory(), settings(WITH_LOG));
    let error = job.end(Mode::Run).await.unwrap_err().to_string();
    assert!(error.contains("writeAheadLog.enable needs a checkpoint in a folder") && error.contains("`memory:`"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_deleted_behind_what_batches_and_windows_need() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
    let (give, receiver) = feed();
    let files = || fs::read_dir(dir.path().join("received/receiver-0")).unwrap().count() - 1; // without the lock
    let each = [WITH_LOG, &[("spark.streaming.receiver.writeAheadLog.closeFileAfterWrite", "true"), ("checkpoint.retained", "2")]].concat();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let program = |seen: &Arc<Mutex<Vec<u64>>>| {
        let (ssc, seen) = (context(), seen.clone());
        ssc.receiver_stream(receiver.clone()).count_by_window(INTERVAL * 500, INTERVAL).foreach_rdd(move |rdd, _| {
            let seen = seen.clone();
            async move {
                let count = rdd.collect().await?;
                seen.lock().extend(count);
                Ok(())
            }
        });
        ssc.checkpoint(&dir.path().to_string_lossy());
        ssc
    };
    let job = start(program(&seen), &checkpoint, settings(&each));
    for _ in 0..5 {
        store(&give, "a b").await.unwrap();
    }
    eventually("all are counted", || seen.lock().last() == Some(&10)).await;
    job.batches(5).await;
    // Ten seconds of window hold them.
    assert_eq!(files(), 5);
    job.end(Mode::Stop).await.unwrap();
    // The window goes on after a restart.
    let again = Arc::new(Mutex::new(Vec::new()));
    let job = start(program(&again), &checkpoint, settings(&each));
    store(&give, "c").await.unwrap();
    eventually("the window holds all of them", || again.lock().last() == Some(&11)).await;
    eventually("they leave it", || again.lock().last() == Some(&0)).await;
    eventually("segments are deleted", || files() == 1).await;
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_the_receiver_first_and_reads_everything_that_it_stored() {
    let checkpoint = Checkpoint::in_memory();
    let (give, receiver) = feed();
    let ssc = context();
    let counts = totals(&ssc.receiver_stream(receiver));
    // Blocks would be made in an hour.
    let job = start(ssc, &checkpoint, settings(&[("spark.streaming.blockInterval", "1h")]));
    for word in ["a", "b", "a"] {
        give.send(Item::One(word.into())).await.unwrap();
    }
    store(&give, "c").await.unwrap();
    counted(&counts, "c=1").await;
    job.end(Mode::Drain).await.unwrap();
    assert_eq!(*counts.lock(), super::pairs("a=2 b=1 c=1").into_iter().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_ends_in_any_way_is_started_again() {
    let (give, receiver) = feed();
    let starts = receiver.starts.clone();
    let ssc = context();
    let counts = totals(&ssc.receiver_stream(receiver));
    let job = start(ssc, &Checkpoint::in_memory(), settings(&[]));
    let status = || job.locals[0].receiver().unwrap();
    store(&give, "a").await.unwrap();
    assert_eq!((status().active, status().last_error), (true, None));
    for (n, (end, said)) in
        [(Item::Fail, "told to fail"), (Item::Panic, "panicked"), (Item::Restart, "told to restart")].into_iter().enumerate()
    {
        give.send(end).await.unwrap();
        eventually("it is started again", || starts.load(Relaxed) == n + 2).await;
        assert_eq!(status().last_error.unwrap().message, said);
        store(&give, "a").await.unwrap();
    }
    counted(&counts, "a=4").await;
    // It may end itself for good; the job goes on.
    give.send(Item::Stop).await.unwrap();
    eventually("it is inactive", || !status().active).await;
    job.batches(3).await;
    assert_eq!((starts.load(Relaxed), job.monitor.view().state), (4, JobState::Running));
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_holds_the_receiver_back_until_batches_make_room() {
    for more in [&[][..], WITH_LOG] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&dir.path().to_string_lossy(), &Default::default()).unwrap();
        let (give, receiver) = feed();
        let ssc = context();
        let counts = totals(&ssc.receiver_stream(receiver));
        let job = start(ssc, &checkpoint, settings(&[more, &[("receiver.bytes.max", "65536")]].concat()));
        store(&give, "first").await.unwrap();
        counted(&counts, "first=1").await;
        job.mode.send_replace(Mode::Pause);
        job.until(|view| view.state == JobState::Paused).await;
        let large = "x".repeat(10_000);
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let (done, stored) = oneshot::channel();
            give.send(Item::Block(vec![large.clone()], done)).await.unwrap();
            waiting.push(stored);
        }
        // Six fit. The seventh waits, and so does everything behind it.
        let mut stored = 0;
        for wait in &mut waiting[..6] {
            wait.await.unwrap().unwrap();
            stored += 1;
        }
        assert_eq!(stored, 6);
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting[6]).await.is_err());
        job.mode.send_replace(Mode::Run);
        for wait in &mut waiting[6..] {
            tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap().unwrap();
        }
        counted(&counts, &format!("first=1 {large}=20")).await;
        job.end(Mode::Stop).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_of_a_receiver_is_limited() {
    let own: &[(&str, &str)] = &[("spark.streaming.receiver.maxRate", "100")];
    // No estimate is made before the second batch with records.
    let initial = &[("spark.streaming.backpressure.enabled", "true"), ("spark.streaming.backpressure.initialRate", "2")];
    for (limit, records, least_ms) in [(own, 50, 480), (initial, 3, 980)] {
        let (give, receiver) = feed();
        let ssc = context();
        let counts = totals(&ssc.receiver_stream(receiver));
        let job = start(ssc, &Checkpoint::in_memory(), settings(limit));
        let begun = SystemClock.monotonic();
        for _ in 0..records {
            give.send(Item::One("a".into())).await.unwrap();
        }
        counted(&counts, &format!("a={records}")).await;
        // The first one is free.
        let took = SystemClock.monotonic() - begun;
        assert!(took >= Duration::from_millis(least_ms), "{took:?}");
        job.end(Mode::Stop).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_a_socket_are_counted_over_connections_and_restarts_of_both_sides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let checkpoint = Checkpoint::in_memory();
    let program = || {
        let ssc = context();
        let lines = ssc.socket_text_stream("127.0.0.1", port);
        (totals(&lines.flat_map(|line| words(&line))), ssc)
    };
    let (counts, ssc) = program();
    let job = start(ssc, &checkpoint, settings(&[]));
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all(b"to be or\nnot").await.unwrap();
    counted(&counts, "to=1 be=1 or=1").await;
    // The last line ends with the connection; the receiver connects again.
    peer.write_all(b" to be").await.unwrap();
    drop(peer);
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all("that is\r\nthe question\n".as_bytes()).await.unwrap();
    counted(&counts, "to=2 be=2 or=1 not=1 that=1 is=1 the=1 question=1").await;
    job.batches(2).await;
    job.end(Mode::Stop).await.unwrap();
    let (counts, ssc) = program();
    let job = start(ssc, &checkpoint, settings(&[]));
    let (mut peer, _) = listener.accept().await.unwrap();
    peer.write_all(b"to\n").await.unwrap();
    counted(&counts, "to=3 be=2 or=1 not=1 that=1 is=1 the=1 question=1").await;
    job.end(Mode::Stop).await.unwrap();
}

/// Puts a file into a folder in one step, as a file stream asks for.
fn move_in(folder: &Path, name: &str, text: &str) {
    let aside = tempfile::NamedTempFile::new_in(folder.parent().unwrap()).unwrap();
    fs::write(aside.path(), text).unwrap();
    aside.persist(folder.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_files_of_a_folder_are_read_once_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("incoming");
    fs::create_dir(&folder).unwrap();
    let checkpoint = Checkpoint::open(&dir.path().join("checkpoint").to_string_lossy(), &Default::default()).unwrap();
    move_in(&folder, "before", "before");
    // A moment ago for the file system too, whose clock is coarse.
    let moment_ago = UNIX_EPOCH + Duration::from_millis(u64::try_from(SystemClock.now_ms()).unwrap() - 1000);
    File::options().write(true).open(folder.join("before")).unwrap().set_modified(moment_ago).unwrap();
    let program = || {
        let ssc = context();
        let lines = ssc.text_file_stream(&format!("file://{}", folder.display()));
        (totals(&lines.flat_map(|line| words(&line))), ssc)
    };
    let (counts, ssc) = program();
    let job = start(ssc, &checkpoint, settings(&[]));
    job.batches(2).await;
    move_in(&folder, "one", "a b\nb\n");
    move_in(&folder, ".hidden", "hidden");
    let old = dir.path().join("old");
    fs::write(&old, "old").unwrap();
    File::options().write(true).open(&old).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    fs::rename(&old, folder.join("old")).unwrap();
    counted(&counts, "a=1 b=2").await;
    move_in(&folder, "two words.txt", "c");
    counted(&counts, "a=1 b=2 c=1").await;
    job.batches(2).await;
    job.end(Mode::Stop).await.unwrap();
    // While nobody looked.
    move_in(&folder, "three", "d\r\nd");
    let (counts, ssc) = program();
    let job = start(ssc, &checkpoint, settings(&[]));
    counted(&counts, "a=1 b=2 c=1 d=2").await;
    job.batches(5).await;
    assert_eq!(*counts.lock(), super::pairs("a=1 b=2 c=1 d=2").into_iter().collect());
    job.end(Mode::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_files_that_runs_again_holds_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("incoming");
    let checkpoint = Checkpoint::open(&dir.path().join("checkpoint").to_string_lossy(), &Default::default()).unwrap();
    let fail = Arc::new(AtomicBool::new(true));
    let batches = Arc::new(Mutex::new(Vec::<Vec<String>>::new()));
    let program = || {
        let (ssc, fail, batches) = (context(), fail.clone(), batches.clone());
        ssc.file_stream(&folder.to_string_lossy(), |name| name.ends_with(".txt"), false).foreach_rdd(move |rdd, _| {
            let (fail, batches) = (fail.clone(), batches.clone());
            async move {
                let mut lines = rdd.collect().await?;
                lines.sort();
                if lines.is_empty() {
                    return Ok(());
                }
                batches.lock().push(lines);
                anyhow::ensure!(!fail.load(Relaxed), "told to fail");
                Ok(())
            }
        });
        ssc
    };
    // The folder comes later.
    let job = start(program(), &checkpoint, JobSettings { retry_attempts: 1_000_000, ..settings(&[]) });
    job.batches(2).await;
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    fs::write(made.join("1.txt"), "one").unwrap();
    fs::write(made.join("2.txt"), "two").unwrap();
    fs::write(made.join("3.csv"), "no").unwrap();
    fs::rename(&made, &folder).unwrap();
    eventually("the batch fails twice", || batches.lock().len() >= 2).await;
    fs::write(folder.join("4.txt"), "four").unwrap();
    job.end(Mode::Stop).await.unwrap();
    fail.store(false, Relaxed);
    let before = batches.lock().len();
    let job = start(program(), &checkpoint, settings(&[]));
    eventually("the new file is read", || batches.lock().last().is_some_and(|lines| lines == &["four"])).await;
    job.end(Mode::Stop).await.unwrap();
    let batches = batches.lock();
    assert!(batches[..before].iter().all(|lines| lines == &["one", "two"]), "{batches:?}");
    assert_eq!(batches[before..], [words("one two"), words("four")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_binary_files_have_their_length_and_others_fail_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let ssc = context();
    let counts =
        totals(&ssc.binary_records_stream(&dir.path().to_string_lossy(), 3).map(|record| String::from_utf8(record.to_vec()).unwrap()));
    let job = start(ssc, &Checkpoint::in_memory(), JobSettings { retry_attempts: 1, ..settings(&[]) });
    job.batches(2).await;
    fs::write(dir.path().join("sound"), "abcdefabc").unwrap();
    counted(&counts, "abc=2 def=1").await;
    fs::write(dir.path().join("short"), "abcd").unwrap();
    job.until(|view| view.state == JobState::Failed).await;
    let error = job.monitor.view().error.unwrap();
    assert!(error.contains("short`") && error.contains("no multiple of 3: 1 bytes are left"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queued_batches_come_one_by_one_or_together_and_the_default_between_them() {
    let rdd = |text: &str| Rdd::parallelize(words(text));
    for one_at_a_time in [true, false] {
        let queue: RddQueue<String> = [rdd("a b"), rdd("c")].into_iter().collect();
        let ssc = context();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shown = seen.clone();
        ssc.queue_stream(&queue, one_at_a_time, Some(rdd("none"))).foreach_rdd(move |rdd, _| {
            let shown = shown.clone();
            async move {
                let batch = rdd.collect().await?.join(" ");
                shown.lock().push(batch);
                Ok(())
            }
        });
        let job = start(ssc, &Checkpoint::in_memory(), settings(&[]));
        job.batches(4).await;
        queue.push(rdd("d"));
        eventually("the last one comes", || seen.lock().iter().any(|batch| batch == "d")).await;
        job.end(Mode::Stop).await.unwrap();
        let mut seen = seen.lock().clone();
        seen.dedup();
        let expected: &[&str] = if one_at_a_time { &["a b", "c", "none", "d", "none"] } else { &["a b c", "none", "d", "none"] };
        // It may be stopped right after the last one.
        assert!(seen == expected || seen == expected[..expected.len() - 1], "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_come_at_their_rate_each_once_over_a_restart() {
    let checkpoint = Checkpoint::in_memory();
    let rows = Arc::new(Mutex::new(Vec::new()));
    for enough in [20, 60] {
        let (ssc, shown) = (context(), rows.clone());
        ssc.rate_stream(200).foreach_rdd(move |rdd, _| {
            let shown = shown.clone();
            async move {
                let more = rdd.collect().await?;
                shown.lock().extend(more);
                Ok(())
            }
        });
        let job = start(ssc, &checkpoint, settings(&[]));
        eventually("rows come", || rows.lock().len() >= enough).await;
        job.batches(1).await;
        job.end(Mode::Stop).await.unwrap();
    }
    let rows = rows.lock();
    let first_ms = rows[0].0;
    for (n, (due_ms, value)) in rows.iter().enumerate() {
        assert_eq!((*due_ms - first_ms, *value), (n as i64 * 5, n as u64));
    }
}

#[test]
fn what_is_wrong_with_a_source_is_said_at_the_start() {
    let ssc = context();
    ssc.rate_stream(0).print();
    ssc.binary_records_stream("/tmp", 0).print();
    ssc.text_file_stream("ftp://host/x").print();
    ssc.http_stream("0.0.0.0:0").print();
    ssc.http_stream("somewhere").print();
    let error = ssc.program().err().unwrap().to_string();
    for part in [
        "rateStream: rows_per_second (0)",
        "binaryRecordsStream: record_length (0)",
        "scheme `ftp` is not built in",
        "httpStream(0.0.0.0:0): other machines can reach it",
        "httpStream(somewhere): `somewhere` is not an address",
    ] {
        assert!(error.contains(part), "without {part:?}: {error}");
    }
}
