//! What a job is doing: written by the runner, read by the page, the API, the control port and the metrics.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::batch::{BatchOutcome, OffsetRange, OutputReport};
use crate::commit::{PlannedBatch, Totals};

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

/// One batch as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchView {
    pub id: u64,
    pub time_ms: i64,
    pub state: BatchState,
    /// Offsets that the batch covers.
    pub records: u64,
    /// By source index.
    pub ranges: Vec<Vec<OffsetRange>>,
    pub submitted_ms: i64,
    pub started_ms: Option<i64>,
    pub ended_ms: Option<i64>,
    /// 0 for the first run.
    pub attempt: u32,
    pub outputs: Vec<OutputReport>,
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
    pub batch_interval_ms: u64,
    pub totals: Totals,
    pub watermark_ms: Option<i64>,
    pub checkpoint: String,
    /// Backpressure's limits: source, records per second.
    pub rate_limits: Vec<(String, u64)>,
    /// Oldest first.
    pub active: Vec<BatchView>,
}

struct Inner {
    state: JobState,
    error: Option<String>,
    /// What is waited for and since when, by who waits.
    waits: BTreeMap<String, (String, i64)>,
    started_at_ms: i64,
    ended_at_ms: Option<i64>,
    totals: Totals,
    watermark_ms: Option<i64>,
    rate_limits: Vec<(String, u64)>,
    active: VecDeque<BatchView>,
    /// Oldest first.
    completed: VecDeque<BatchView>,
}

/// `waiting: no broker answers (since 14:05:10 UTC)`
fn waiting_for(waits: &BTreeMap<String, (String, i64)>) -> Option<String> {
    let one = |(what, since_ms): &(String, i64)| {
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
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Monitor {
    pub fn new(name: &str, batch_interval_ms: u64, retained: usize, checkpoint: &str, now_ms: i64) -> Self {
        Self {
            name: name.into(),
            batch_interval_ms,
            retained,
            checkpoint: checkpoint.into(),
            inner: Mutex::new(Inner {
                state: JobState::Starting,
                error: None,
                waits: BTreeMap::new(),
                started_at_ms: now_ms,
                ended_at_ms: None,
                totals: Totals::default(),
                watermark_ms: None,
                rate_limits: Vec::new(),
                active: VecDeque::new(),
                completed: VecDeque::new(),
            }),
            changes: watch::Sender::new(0),
        }
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
            batch_interval_ms: self.batch_interval_ms,
            totals: inner.totals,
            watermark_ms: inner.watermark_ms,
            checkpoint: self.checkpoint.clone(),
            rate_limits: inner.rate_limits.clone(),
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

    pub fn batch(&self, id: u64) -> Option<BatchView> {
        let inner = self.inner.lock();
        inner.active.iter().chain(&inner.completed).find(|batch| batch.id == id).cloned()
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

    /// What part `who` of the job is waiting for, until it says [`Self::not_waiting`]. True when it was not waiting before.
    pub(crate) fn waiting(&self, who: &str, what: String) -> bool {
        let now_ms = chrono::Utc::now().timestamp_millis();
        self.update(|inner| match inner.waits.get_mut(who) {
            Some((before, _)) => {
                *before = what;
                false
            }
            None => {
                inner.waits.insert(who.into(), (what, now_ms));
                true
            }
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
    pub(crate) fn over(&self, state: JobState, error: Option<String>, ended_at_ms: Option<i64>) {
        self.update(|inner| {
            inner.state = state;
            inner.error = error;
            inner.waits.clear();
            inner.ended_at_ms = ended_at_ms;
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

    pub(crate) fn submitted(&self, planned: &PlannedBatch, now_ms: i64) {
        let definition = &planned.definition;
        self.update(|inner| {
            inner.active.push_back(BatchView {
                id: definition.id,
                time_ms: definition.time_ms,
                state: BatchState::Queued,
                records: definition.count(),
                ranges: definition.ranges.clone(),
                submitted_ms: now_ms,
                started_ms: None,
                ended_ms: None,
                attempt: 0,
                outputs: Vec::new(),
                rows_out: 0,
                malformed: 0,
                late: 0,
                error: None,
            });
        });
        metrics::gauge!("millrace_engine_last_received_batch_records", "job" => self.name.clone()).set(definition.count() as f64);
        metrics::counter!("millrace_engine_received_records_total", "job" => self.name.clone()).increment(definition.count());
    }

    pub(crate) fn started(&self, id: u64, attempt: u32, now_ms: i64) {
        self.update(|inner| {
            if let Some(batch) = inner.active.iter_mut().find(|batch| batch.id == id) {
                batch.state = BatchState::Running;
                batch.attempt = attempt;
                // Spark counts from the first run on.
                batch.started_ms.get_or_insert(now_ms);
            }
        });
    }

    pub(crate) fn attempt_failed(&self, id: u64, error: &str) {
        self.update(|inner| {
            if let Some(batch) = inner.active.iter_mut().find(|batch| batch.id == id) {
                batch.error = Some(error.to_string());
            }
        });
        metrics::counter!("millrace_engine_batch_failures_total", "job" => self.name.clone()).increment(1);
    }

    /// The batch failed for good, and the job with it.
    pub(crate) fn failed(&self, id: u64, error: &str, now_ms: i64) {
        self.end(id, now_ms, |batch| {
            batch.state = BatchState::Failed;
            batch.error = Some(error.to_string());
        });
    }

    /// The batch is committed. Gives its view.
    pub(crate) fn completed_batch(&self, id: u64, outcome: &BatchOutcome, totals: Totals, now_ms: i64) -> Option<BatchView> {
        self.update(|inner| {
            inner.totals = totals;
            inner.watermark_ms = outcome.watermark_ms;
        });
        let view = self.end(id, now_ms, |batch| {
            batch.state = BatchState::Completed;
            batch.outputs = outcome.outputs.clone();
            batch.rows_out = outcome.rows_out;
            batch.malformed = outcome.malformed;
            batch.late = outcome.late;
        })?;
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
        metrics::gauge!("millrace_engine_last_completed_batch_end_timestamp_seconds", "job" => job()).set(now_ms as f64 / 1000.0);
        if let Some(watermark) = outcome.watermark_ms {
            metrics::gauge!("millrace_engine_watermark_timestamp_seconds", "job" => job()).set(watermark as f64 / 1000.0);
        }
        Some(view)
    }

    fn end(&self, id: u64, now_ms: i64, change: impl FnOnce(&mut BatchView)) -> Option<BatchView> {
        self.update(|inner| {
            let at = inner.active.iter().position(|batch| batch.id == id)?;
            let mut batch = inner.active.remove(at)?;
            batch.ended_ms = Some(now_ms);
            change(&mut batch);
            inner.completed.push_back(batch.clone());
            while inner.completed.len() > self.retained {
                inner.completed.pop_front();
            }
            Some(batch)
        })
    }

    fn gauges(&self, inner: &Inner) {
        let running = inner.active.iter().filter(|batch| batch.state == BatchState::Running).count();
        let job = || self.name.clone();
        metrics::gauge!("millrace_engine_batches_running", "job" => job()).set(running as f64);
        metrics::gauge!("millrace_engine_batches_waiting", "job" => job()).set((inner.active.len() - running) as f64);
        metrics::gauge!("millrace_engine_batches_retained", "job" => job()).set(inner.completed.len() as f64);
        metrics::gauge!("millrace_engine_job_up", "job" => job()).set(f64::from(u8::from(!inner.state.is_over())));
    }
}
