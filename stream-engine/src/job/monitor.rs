//! What a job is doing: written by the runner, read by the page, the API, the control port and the metrics.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::Serialize;
use service_kit::kafka::TopicPartition;
use tokio::sync::watch;

use super::listener::{Event, ListenerBus};
use super::progress::{Durations, Query, QueryProgress};
use crate::batch::{BatchOutcome, OffsetRange, clock::Clock};
use crate::commit::{PlannedBatch, Totals};

/// Progress reports that are kept, as Spark's `spark.sql.streaming.numRecentProgressUpdates`.
const PROGRESS_RETAINED: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum JobState {
    Starting,
    Running,
    /// It would run, and waits for somebody else: a broker, a store, a topic.
    Waiting,
    Paused,
    Stopping,
    /// Every source was bounded and has been read, or the job was stopped.
    Finished,
    Failed,
}

impl JobState {
    /// Nothing of the job runs any more.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Waiting => "WAITING",
            Self::Paused => "PAUSED",
            Self::Stopping => "STOPPING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum BatchState {
    Queued,
    Running,
    Completed,
    Failed,
}

impl BatchState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// What an output of a batch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputState {
    /// Not begun.
    Waiting,
    Running,
    Succeeded,
    Failed,
}

impl OutputState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }
}

/// One output (a sink, an output operation) of one batch as people see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputView {
    /// 0, 1, 2, … in the order in which the batch runs them: Spark's `outputOpId`.
    pub id: usize,
    pub name: String,
    /// What it does and where it was declared: `print at src/main.rs:20`, `INSERT INTO totals`.
    pub description: String,
    /// Milliseconds since the epoch, of the last run; `None`: it has not begun.
    pub started_ms: Option<i64>,
    /// `None`: it has not ended.
    pub ended_ms: Option<i64>,
    pub rows: u64,
    /// Why the last run failed, with all causes.
    pub error: Option<String>,
    /// One for each run, counted over the outputs of the job: Spark's jobs.
    pub job_ids: Vec<u64>,
}

impl OutputView {
    pub fn state(&self) -> OutputState {
        match (self.started_ms, self.ended_ms, &self.error) {
            (_, Some(_), Some(_)) => OutputState::Failed,
            (_, Some(_), None) => OutputState::Succeeded,
            (Some(_), None, _) => OutputState::Running,
            (None, None, _) => OutputState::Waiting,
        }
    }

    pub fn duration_ms(&self) -> Option<u64> {
        self.started_ms.zip(self.ended_ms).map(|(started, ended)| delta(started, ended))
    }
}

/// An input stream of a job as people see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamView {
    /// The source's index: Spark's `streamId`.
    pub id: usize,
    pub name: String,
    /// `None`: read directly.
    pub receiver: Option<ReceiverView>,
}

/// What receives the records of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverView {
    pub active: bool,
    /// Which worker it runs in.
    pub executor_id: String,
    /// The host it runs on.
    pub location: String,
    pub last_error: Option<ReceiverError>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverError {
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    /// One line.
    pub message: String,
    /// With all causes.
    pub error: String,
}

/// How far the sources reached when a batch was cut.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// By source index, where each partition ended.
    pub ends: Vec<BTreeMap<TopicPartition, i64>>,
    /// How long finding out took.
    pub took_ms: u64,
}

/// One batch as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchView {
    pub id: u64,
    /// Its name for people: no two batches of a job have the same.
    pub time_ms: i64,
    pub state: BatchState,
    /// Offsets that the batch covers.
    pub records: u64,
    /// By source index.
    pub ranges: Vec<Vec<OffsetRange>>,
    /// By source index, where each partition ended when the batch was cut; empty for a batch that an earlier process cut.
    pub ends: Vec<BTreeMap<TopicPartition, i64>>,
    /// How long it took to ask for the ends.
    pub cut_ms: u64,
    pub submitted_ms: i64,
    pub started_ms: Option<i64>,
    pub ended_ms: Option<i64>,
    /// 0 for the first run.
    pub attempt: u32,
    /// In the order in which they run; those that have not begun are among them.
    pub outputs: Vec<OutputView>,
    pub rows_out: u64,
    pub malformed: u64,
    pub late: u64,
    /// The last failure, also when the batch succeeded later.
    pub error: Option<String>,
}

impl BatchView {
    pub fn scheduling_delay_ms(&self) -> Option<u64> {
        self.started_ms.map(|started| delta(self.submitted_ms, started))
    }

    pub fn processing_ms(&self) -> Option<u64> {
        self.started_ms.zip(self.ended_ms).map(|(started, ended)| delta(started, ended))
    }

    pub fn total_delay_ms(&self) -> Option<u64> {
        self.ended_ms.map(|ended| delta(self.submitted_ms, ended))
    }

    /// Records of one stream.
    pub fn records_of(&self, stream: usize) -> u64 {
        self.ranges.get(stream).map_or(0, |ranges| ranges.iter().map(OffsetRange::count).sum())
    }

    /// How many records of a stream were left for later batches; `None` where it is not known.
    pub fn behind(&self, stream: usize) -> Option<u64> {
        let ends = self.ends.get(stream)?;
        let left = |range: &OffsetRange| ends.get(&range.topic_partition()).map_or(0, |end| u64::try_from(end - range.until).unwrap_or(0));
        Some(self.ranges.get(stream)?.iter().map(left).sum())
    }

    pub fn outputs_in(&self, state: OutputState) -> usize {
        self.outputs.iter().filter(|output| output.state() == state).count()
    }

    /// Why it failed: what its first failed output said, else what the batch said.
    pub fn failure(&self) -> Option<&str> {
        let of_batch = || self.error.as_deref().filter(|_| self.state == BatchState::Failed);
        self.outputs
            .iter()
            .filter(|output| output.state() == OutputState::Failed)
            .find_map(|output| output.error.as_deref())
            .or_else(of_batch)
    }
}

fn delta(from: i64, to: i64) -> u64 {
    u64::try_from(to - from).unwrap_or(0)
}

/// A job as people see it.
#[derive(Clone, Debug)]
pub struct JobView {
    pub name: String,
    pub state: JobState,
    /// The error that stopped the job, or what it is waiting for.
    pub error: Option<String>,
    /// 0 when it was not in this process.
    pub started_at_ms: i64,
    /// `None` while it runs, and where it is not known.
    pub ended_at_ms: Option<i64>,
    /// When the newest batch was completed.
    pub last_batch_at_ms: Option<i64>,
    /// All that was in the sources at this time is processed; before that is known, when the job started here. What is between it and now is the job's lag.
    pub caught_up_ms: i64,
    pub batch_interval_ms: u64,
    pub totals: Totals,
    pub watermark_ms: Option<i64>,
    pub checkpoint: String,
    /// Backpressure's limits: source, records per second.
    pub rate_limits: Vec<(String, u64)>,
    /// By source index.
    pub streams: Vec<StreamView>,
    /// Oldest first.
    pub active: Vec<BatchView>,
}

struct Inner {
    state: JobState,
    error: Option<String>,
    /// What is waited for and since when, by who waits.
    waits: BTreeMap<String, Wait>,
    started_at_ms: i64,
    ended_at_ms: Option<i64>,
    totals: Totals,
    watermark_ms: Option<i64>,
    caught_up_ms: i64,
    rate_limits: Vec<(String, u64)>,
    streams: Vec<StreamView>,
    active: VecDeque<BatchView>,
    /// Oldest first.
    completed: VecDeque<BatchView>,
    /// Runs of outputs so far.
    runs: u64,
    /// Kept over restarts; empty before the job knows its checkpoint.
    query_id: String,
    /// Oldest first.
    progress: VecDeque<QueryProgress>,
}

impl Inner {
    /// The batch is committed: the sources are processed up to where some batch, this one or a later or earlier one, found their ends.
    fn caught_up(&mut self, committed: &BatchView) {
        let until: BTreeMap<TopicPartition, i64> =
            committed.ranges.iter().flatten().map(|range| (range.topic_partition(), range.until)).collect();
        let reached = |batch: &&BatchView| {
            let mut ends = batch.ends.iter().flatten();
            !batch.ends.is_empty() && ends.all(|(partition, end)| until.get(partition).is_some_and(|until| until >= end))
        };
        // The ends are those of when they were asked for.
        let asked_ms = |batch: &BatchView| batch.submitted_ms.saturating_sub_unsigned(batch.cut_ms);
        let mut newer = self.completed.iter().chain(&self.active).rev().take_while(|batch| asked_ms(batch) > self.caught_up_ms);
        if let Some(batch) = newer.find(reached) {
            self.caught_up_ms = asked_ms(batch);
        }
    }

    fn active(&mut self, id: u64) -> Option<&mut BatchView> {
        self.active.iter_mut().find(|batch| batch.id == id)
    }
}

/// One wait, for whatever comes in its way until it is over.
struct Wait {
    /// What is in its way.
    what: String,
    since_ms: i64,
    /// What the log was told of.
    told: BTreeSet<String>,
}

/// A wait is logged for so many reasons at most: their words may differ in a number.
const REASONS_TOLD: usize = 8;

/// `waiting: no broker answers (since 14:05:10 UTC)`
fn waiting_for(waits: &BTreeMap<String, Wait>) -> Option<String> {
    let one = |Wait { what, since_ms, .. }: &Wait| {
        let since = chrono::DateTime::from_timestamp_millis(*since_ms).unwrap_or_default().format("%H:%M:%S UTC");
        format!("{what} (since {since})")
    };
    // The same broker is waited for by source and batch alike.
    let mut shown: Vec<String> = waits.values().map(one).collect();
    shown.dedup();
    (!shown.is_empty()).then(|| format!("waiting: {}", shown.join("; ")))
}

/// One per job; the runner writes, everybody reads.
pub struct Monitor {
    name: String,
    batch_interval_ms: u64,
    retained: usize,
    checkpoint: String,
    /// Another one for each run of the job.
    run_id: String,
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    listeners: Arc<ListenerBus>,
}

impl Monitor {
    pub fn new(name: &str, batch_interval_ms: u64, retained: usize, checkpoint: &str, clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.now_ms();
        Self {
            name: name.into(),
            batch_interval_ms,
            retained,
            checkpoint: checkpoint.into(),
            run_id: uuid::Uuid::new_v4().to_string(),
            clock,
            inner: Mutex::new(Inner {
                state: JobState::Starting,
                error: None,
                waits: BTreeMap::new(),
                started_at_ms: now_ms,
                ended_at_ms: None,
                totals: Totals::default(),
                watermark_ms: None,
                caught_up_ms: now_ms,
                rate_limits: Vec::new(),
                streams: Vec::new(),
                active: VecDeque::new(),
                completed: VecDeque::new(),
                runs: 0,
                query_id: String::new(),
                progress: VecDeque::new(),
            }),
            changes: watch::Sender::new(0),
            listeners: Arc::default(),
        }
    }

    /// Tells these listeners too.
    pub(crate) fn with_listeners(self, listeners: Arc<ListenerBus>) -> Self {
        Self { listeners, ..self }
    }

    // === Reading ===

    pub fn view(&self) -> JobView {
        let inner = self.inner.lock();
        JobView {
            name: self.name.clone(),
            state: if inner.waits.is_empty() || !matches!(inner.state, JobState::Starting | JobState::Running) {
                inner.state
            } else {
                JobState::Waiting
            },
            error: inner.error.clone().or_else(|| waiting_for(&inner.waits)),
            started_at_ms: inner.started_at_ms,
            ended_at_ms: inner.ended_at_ms,
            last_batch_at_ms: inner.completed.iter().rev().find_map(|batch| batch.ended_ms),
            caught_up_ms: inner.caught_up_ms,
            batch_interval_ms: self.batch_interval_ms,
            totals: inner.totals,
            watermark_ms: inner.watermark_ms,
            checkpoint: self.checkpoint.clone(),
            rate_limits: inner.rate_limits.clone(),
            streams: inner.streams.clone(),
            active: inner.active.iter().cloned().collect(),
        }
    }

    pub fn state(&self) -> JobState {
        self.inner.lock().state
    }

    /// Newest first, at most `max`.
    pub fn completed(&self, max: usize) -> Vec<BatchView> {
        self.inner.lock().completed.iter().rev().take(max).cloned().collect()
    }

    /// The batch of this time.
    pub fn batch(&self, time_ms: i64) -> Option<BatchView> {
        let inner = self.inner.lock();
        inner.active.iter().chain(&inner.completed).find(|batch| batch.time_ms == time_ms).cloned()
    }

    /// Of the newest completed batches, oldest first.
    pub fn recent_progress(&self) -> Vec<QueryProgress> {
        self.inner.lock().progress.iter().cloned().collect()
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Records that are cut and not yet processed.
    pub fn records_waiting(&self) -> u64 {
        self.inner.lock().active.iter().map(|batch| batch.records).sum()
    }

    /// Wakes at every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the view fits.
    pub async fn wait_for(&self, mut fits: impl FnMut(&JobView) -> bool) {
        let mut changes = self.changes();
        while !fits(&self.view()) {
            // The sender lives in self, so this cannot fail.
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    // === Writing (the runner) ===

    fn update<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let result = {
            let mut inner = self.inner.lock();
            let result = change(&mut inner);
            self.gauges(&inner);
            result
        };
        self.changes.send_modify(|n| *n += 1);
        result
    }

    pub(crate) fn set_state(&self, state: JobState) {
        self.update(|inner| inner.state = state);
    }

    /// What part `who` of the job is waiting for, until it says [`Self::not_waiting`]. True when the log is to be told: another cause in the same
    /// wait (a right that is missing behind another one) is news.
    pub(crate) fn waiting(&self, who: &str, what: String) -> bool {
        let now_ms = self.clock.now_ms();
        self.update(|inner| {
            let new = || Wait { what: String::new(), since_ms: now_ms, told: BTreeSet::new() };
            let wait = inner.waits.entry(who.into()).or_insert_with(new);
            wait.what.clone_from(&what);
            wait.told.len() < REASONS_TOLD && wait.told.insert(what)
        })
    }

    /// True when it was waiting.
    pub(crate) fn not_waiting(&self, who: &str) -> bool {
        if !self.inner.lock().waits.contains_key(who) {
            return false;
        }
        self.update(|inner| inner.waits.remove(who).is_some())
    }

    /// Somebody has seen that the job failed: it is over like any other, its error stays to be read.
    pub(crate) fn acknowledge(&self) {
        self.update(|inner| {
            if inner.state == JobState::Failed {
                inner.state = JobState::Finished;
            }
        });
    }

    /// `ended_at_ms`: unknown for a job that ended in an earlier process.
    /// The job, or what of it ran here, is over; says so.
    pub(crate) fn ended(&self, result: &anyhow::Result<()>) {
        let (state, error) = match result {
            Ok(()) => {
                tracing::info!(job = self.name, "job finished");
                (JobState::Finished, None)
            }
            Err(error) => {
                tracing::error!(job = self.name, error = super::said(error), "job failed");
                (JobState::Failed, Some(super::said(error)))
            }
        };
        self.over(state, error, Some(self.clock.now_ms()));
    }

    /// Of a shared job: what its slots here have done, and what each of them waits for.
    pub(crate) fn shows_slots(&self, totals: Totals, caught_up_ms: Option<i64>, waits: BTreeMap<String, String>) {
        let now_ms = self.clock.now_ms();
        self.update(|inner| {
            inner.totals = totals;
            inner.caught_up_ms = caught_up_ms.unwrap_or(inner.caught_up_ms);
            inner.waits.retain(|who, _| !who.contains('~') || waits.contains_key(who));
            for (who, what) in waits {
                let new = || Wait { what: String::new(), since_ms: now_ms, told: BTreeSet::new() };
                inner.waits.entry(who).or_insert_with(new).what = what;
            }
        });
    }

    pub(crate) fn over(&self, state: JobState, error: Option<String>, ended_at_ms: Option<i64>) {
        self.update(|inner| {
            inner.state = state;
            inner.error = error;
            inner.waits.clear();
            inner.ended_at_ms = ended_at_ms;
            if ended_at_ms.is_none() {
                inner.started_at_ms = 0;
            }
            // Batches that were cut and did not run are cut again at the next start.
            inner.active.clear();
        });
    }

    /// The job starts from its checkpoint once more; batches that were cut and did not run are cut again.
    pub(crate) fn starts_again(&self) {
        self.update(|inner| {
            inner.state = JobState::Starting;
            inner.active.clear();
        });
    }

    /// The job knows its checkpoint and its sources, by index, and begins.
    pub(crate) fn begins(&self, query_id: &str, streams: impl IntoIterator<Item = String>) {
        let first = self.update(|inner| {
            let first = inner.query_id.is_empty();
            inner.query_id = query_id.into();
            // A receiver may have said something before.
            let mut known: BTreeMap<usize, StreamView> = inner.streams.drain(..).map(|stream| (stream.id, stream)).collect();
            let streams = streams.into_iter().enumerate();
            inner.streams = streams.map(|(id, name)| StreamView { id, name, ..known.remove(&id).unwrap_or_default() }).collect();
            first
        });
        if first {
            self.listeners.post(&self.name, || Event::StreamingStarted(self.clock.now_ms()));
        }
    }

    // === Receivers ===

    fn receiver(&self, stream: usize, change: impl FnOnce(&mut ReceiverView), event: fn(StreamView) -> Event) {
        let view = self.update(|inner| {
            let at = inner.streams.iter().position(|known| known.id == stream).unwrap_or_else(|| {
                inner.streams.push(StreamView { id: stream, name: format!("Stream-{stream}"), receiver: None });
                inner.streams.len() - 1
            });
            change(inner.streams[at].receiver.get_or_insert_default());
            inner.streams[at].clone()
        });
        self.listeners.post(&self.name, || event(view));
    }

    /// The stream's receiver runs: in which worker, on which host.
    pub fn receiver_started(&self, stream: usize, executor_id: &str, location: &str) {
        let change = |receiver: &mut ReceiverView| {
            receiver.active = true;
            (receiver.executor_id, receiver.location) = (executor_id.into(), location.into());
        };
        self.receiver(stream, change, Event::ReceiverStarted);
    }

    /// The receiver told of an error, and goes on.
    pub fn receiver_error(&self, stream: usize, error: &anyhow::Error) {
        let error = self.receiver_said(error);
        self.receiver(stream, |receiver| receiver.last_error = Some(error), Event::ReceiverError);
    }

    /// The receiver ended, with an error when it was not told to.
    pub fn receiver_stopped(&self, stream: usize, error: Option<&anyhow::Error>) {
        let error = error.map(|error| self.receiver_said(error));
        let change = |receiver: &mut ReceiverView| {
            receiver.active = false;
            receiver.last_error = error.or(receiver.last_error.take());
        };
        self.receiver(stream, change, Event::ReceiverStopped);
    }

    fn receiver_said(&self, error: &anyhow::Error) -> ReceiverError {
        ReceiverError { time_ms: self.clock.now_ms(), message: error.to_string(), error: super::said(error) }
    }

    pub(crate) fn restored(&self, totals: Totals, watermark_ms: Option<i64>) {
        self.update(|inner| {
            inner.totals = totals;
            inner.watermark_ms = watermark_ms;
        });
    }

    pub(crate) fn set_rate_limits(&self, limits: Vec<(String, u64)>) {
        for (source, limit) in &limits {
            metrics::gauge!("millrace_engine_rate_limit_records", "job" => self.name.clone(), "source" => source.clone())
                .set(*limit as f64);
        }
        self.update(|inner| inner.rate_limits = limits);
    }

    // === Batches ===

    /// `reach` is not known of a batch that an earlier process cut.
    pub(crate) fn submitted(&self, planned: &PlannedBatch, reach: Option<Reach>) {
        let definition = &planned.definition;
        let Reach { ends, took_ms } = reach.unwrap_or_default();
        let batch = BatchView {
            id: definition.id,
            time_ms: definition.time_ms,
            state: BatchState::Queued,
            records: definition.count(),
            ranges: definition.ranges.clone(),
            ends,
            cut_ms: took_ms,
            submitted_ms: self.clock.now_ms(),
            started_ms: None,
            ended_ms: None,
            attempt: 0,
            outputs: Vec::new(),
            rows_out: 0,
            malformed: 0,
            late: 0,
            error: None,
        };
        self.listeners.post(&self.name, || Event::BatchSubmitted(batch.clone()));
        self.update(|inner| inner.active.push_back(batch));
        metrics::gauge!("millrace_engine_last_received_batch_records", "job" => self.name.clone()).set(definition.count() as f64);
        metrics::counter!("millrace_engine_received_records_total", "job" => self.name.clone()).increment(definition.count());
    }

    pub(crate) fn started(&self, id: u64, attempt: u32) {
        let now_ms = self.clock.now_ms();
        let first = self.update(|inner| {
            let batch = inner.active(id)?;
            batch.state = BatchState::Running;
            batch.attempt = attempt;
            if batch.started_ms.is_some() {
                return None;
            }
            // Spark counts from the first run on.
            batch.started_ms = Some(now_ms);
            Some(batch.clone())
        });
        if let Some(batch) = first {
            self.listeners.post(&self.name, || Event::BatchStarted(batch));
        }
    }

    pub(crate) fn attempt_failed(&self, id: u64, error: &str) {
        let running = self.update(|inner| {
            let Some(batch) = inner.active(id) else { return Vec::new() };
            batch.error = Some(error.to_string());
            batch.outputs.iter().filter(|output| output.state() == OutputState::Running).map(|output| output.id).collect()
        });
        for output in running {
            self.output_ended(id, output, Err(format!("ended with the batch, which failed: {error}")));
        }
        metrics::counter!("millrace_engine_batch_failures_total", "job" => self.name.clone()).increment(1);
    }

    /// The batch failed for good, and the job with it.
    pub(crate) fn failed(&self, id: u64, error: &str) {
        self.end(id, |batch| {
            batch.state = BatchState::Failed;
            batch.error = Some(error.to_string());
        });
    }

    /// The batch is committed. Gives its view.
    pub(crate) fn completed_batch(&self, id: u64, outcome: &BatchOutcome, totals: Totals, durations: Durations) -> Option<BatchView> {
        self.update(|inner| {
            inner.totals = totals;
            inner.watermark_ms = outcome.watermark_ms;
        });
        let view = self.end(id, |batch| {
            batch.state = BatchState::Completed;
            batch.rows_out = outcome.rows_out;
            batch.malformed = outcome.malformed;
            batch.late = outcome.late;
        })?;
        self.progressed(&view, outcome, durations);
        self.update(|inner| inner.caught_up(&view));
        let job = || self.name.clone();
        metrics::counter!("millrace_engine_batches_completed_total", "job" => job()).increment(1);
        metrics::counter!("millrace_engine_rows_in_total", "job" => job()).increment(outcome.rows_in);
        metrics::counter!("millrace_engine_rows_out_total", "job" => job()).increment(outcome.rows_out);
        metrics::counter!("millrace_engine_malformed_rows_total", "job" => job()).increment(outcome.malformed);
        metrics::counter!("millrace_engine_late_rows_total", "job" => job()).increment(outcome.late);
        let seconds = |ms: Option<u64>| ms.unwrap_or(0) as f64 / 1000.0;
        let (scheduling, processing, total) =
            (seconds(view.scheduling_delay_ms()), seconds(view.processing_ms()), seconds(view.total_delay_ms()));
        metrics::histogram!("millrace_engine_batch_processing_seconds", "job" => job()).record(processing);
        metrics::gauge!("millrace_engine_last_completed_batch_processing_seconds", "job" => job()).set(processing);
        metrics::gauge!("millrace_engine_last_completed_batch_scheduling_delay_seconds", "job" => job()).set(scheduling);
        metrics::gauge!("millrace_engine_last_completed_batch_total_delay_seconds", "job" => job()).set(total);
        let ended = view.ended_ms.unwrap_or(0) as f64 / 1000.0;
        metrics::gauge!("millrace_engine_last_completed_batch_end_timestamp_seconds", "job" => job()).set(ended);
        if let Some(watermark) = outcome.watermark_ms {
            metrics::gauge!("millrace_engine_watermark_timestamp_seconds", "job" => job()).set(watermark as f64 / 1000.0);
        }
        Some(view)
    }

    fn progressed(&self, batch: &BatchView, outcome: &BatchOutcome, durations: Durations) {
        let progress = self.update(|inner| {
            let before = inner.completed.iter().rev().find(|other| other.id < batch.id).map(|before| before.submitted_ms);
            let query = Query { id: &inner.query_id, run_id: &self.run_id, name: &self.name };
            let progress = QueryProgress::of(query, batch, before, outcome, &inner.streams, durations);
            inner.progress.push_back(progress.clone());
            while inner.progress.len() > PROGRESS_RETAINED {
                inner.progress.pop_front();
            }
            progress
        });
        self.listeners.post(&self.name, || Event::QueryProgress(Box::new(progress)));
    }

    fn end(&self, id: u64, change: impl FnOnce(&mut BatchView)) -> Option<BatchView> {
        let now_ms = self.clock.now_ms();
        let batch = self.update(|inner| {
            let at = inner.active.iter().position(|batch| batch.id == id)?;
            let mut batch = inner.active.remove(at)?;
            batch.ended_ms = Some(now_ms);
            change(&mut batch);
            inner.completed.push_back(batch.clone());
            while inner.completed.len() > self.retained {
                inner.completed.pop_front();
            }
            Some(batch)
        })?;
        self.listeners.post(&self.name, || Event::BatchCompleted(batch.clone()));
        Some(batch)
    }

    // === Outputs of a batch (the program) ===

    /// The batch will run this output. What an earlier attempt did stays to be seen until it runs again.
    pub(crate) fn output(&self, batch: u64, id: usize, name: &str, description: &str) {
        self.update(|inner| {
            let Some(batch) = inner.active(batch) else { return };
            if batch.outputs.iter().all(|output| output.id != id) {
                batch.outputs.push(OutputView { id, name: name.into(), description: description.into(), ..OutputView::default() });
            }
        });
    }

    pub(crate) fn output_started(&self, batch: u64, id: usize) {
        let now_ms = self.clock.now_ms();
        self.output_changes(batch, id, Event::OutputOperationStarted, |output, runs| {
            (output.started_ms, output.ended_ms, output.rows, output.error) = (Some(now_ms), None, 0, None);
            output.job_ids.push(*runs);
            *runs += 1;
        });
    }

    pub(crate) fn output_ended(&self, batch: u64, id: usize, result: Result<u64, String>) {
        let now_ms = self.clock.now_ms();
        self.output_changes(batch, id, Event::OutputOperationCompleted, |output, _| {
            output.ended_ms = Some(now_ms);
            match result {
                Ok(rows) => output.rows = rows,
                Err(error) => output.error = Some(error),
            }
        });
    }

    fn output_changes(&self, batch: u64, id: usize, event: fn(i64, OutputView) -> Event, change: impl FnOnce(&mut OutputView, &mut u64)) {
        let changed = self.update(|inner| {
            let mut runs = inner.runs;
            let batch = inner.active(batch)?;
            let output = batch.outputs.iter_mut().find(|output| output.id == id)?;
            change(output, &mut runs);
            let changed = (batch.time_ms, output.clone());
            inner.runs = runs;
            Some(changed)
        });
        if let Some((time_ms, output)) = changed {
            self.listeners.post(&self.name, || event(time_ms, output));
        }
    }

    /// Gives listeners time to hear what is still to be told.
    pub(crate) async fn listeners_done(&self) {
        self.listeners.close().await;
    }

    fn gauges(&self, inner: &Inner) {
        let running = inner.active.iter().filter(|batch| batch.state == BatchState::Running).count();
        let job = || self.name.clone();
        metrics::gauge!("millrace_engine_batches_running", "job" => job()).set(running as f64);
        metrics::gauge!("millrace_engine_batches_waiting", "job" => job()).set((inner.active.len() - running) as f64);
        metrics::gauge!("millrace_engine_batches_retained", "job" => job()).set(inner.completed.len() as f64);
        metrics::gauge!("millrace_engine_caught_up_timestamp_seconds", "job" => job()).set(inner.caught_up_ms as f64 / 1000.0);
        metrics::gauge!("millrace_engine_job_up", "job" => job()).set(f64::from(u8::from(!inner.state.is_over())));
    }
}
