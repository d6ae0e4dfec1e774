//! Receivers: tasks that take records in and store them, in a log that batches read.
//!
//! A receiver runs from the start of the job to its end. When it ends or fails it is started again, after
//! `spark.streaming.receiverRestartDelay`. Each is one partition.
//!
//! What it stores one by one is collected and becomes a block every `spark.streaming.blockInterval`; what it stores at once
//! is a block, and stored when the call returns: with a write-ahead log on disk, else in memory. Without a write-ahead log
//! what no batch has read is lost with the process, and so is what a batch that runs again, or a window, would read once
//! more: they go on with what is left.
//!
//! Two things hold a receiver back: its rate (`spark.streaming.receiver.maxRate`, and backpressure's), and the bytes that its
//! log may hold (`receiver.bytes.max`).

mod pace;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use parking_lot::Mutex;
use service_kit::kafka::{Bounds, KafkaError, Record};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::pace::Pace;
use super::local::{LocalLog, Place, Released, Resume};
use super::log::{Held, Log, NotStored};
use crate::batch::clock::interval_ms;
use crate::job::JobSettings;

/// How long a receiver may go on once it is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between attempts to store a block that could not be stored.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// What runs when the receiver starts.
pub(crate) type Run = Box<dyn Fn(Intake) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// How a receiver is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiverStatus {
    /// It runs; else it waits for its next start, or is over.
    pub active: bool,
    /// The newest error that it reported or ended with.
    pub last_error: Option<ReceiverError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverError {
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    pub message: String,
}

/// A receiver and its log.
pub(crate) struct ReceiverLog {
    run: Arc<Run>,
    status: watch::Sender<ReceiverStatus>,
    open: OnceLock<Arc<Receiving>>,
}

struct Receiving {
    place: Place,
    log: Log,
    pace: Pace,
    /// What was stored one by one since the last block.
    block: Mutex<Block>,
    restart: Notify,
    begun: AtomicBool,
    stop: CancellationToken,
    /// Receiver and blocks have ended.
    over: CancellationToken,
    status: watch::Sender<ReceiverStatus>,
    stored: metrics::Counter,
    errors: metrics::Counter,
    active: metrics::Gauge,
}

#[derive(Default)]
struct Block {
    records: Vec<Bytes>,
    held: Option<Held>,
}

/// Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(String);

/// A receiver's way to its log and its supervisor. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Intake(Arc<Receiving>);

impl ReceiverLog {
    pub(crate) fn new(run: impl Fn(Intake) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync + 'static) -> Self {
        Self { run: Arc::new(Box::new(run)), status: watch::Sender::default(), open: OnceLock::new() }
    }

    fn receiving(&self) -> Result<&Arc<Receiving>, KafkaError> {
        self.open.get().ok_or_else(|| KafkaError::Conflict("the receiver's log is not open".into()))
    }
}

#[async_trait]
impl LocalLog for ReceiverLog {
    async fn open(&self, place: Place) -> anyhow::Result<()> {
        let log = Log::open(&place, place.settings.receiver.write_ahead_log.enabled).await?;
        let labels = [("job", place.job.to_string()), ("source", place.source.to_string())];
        let receiving = Receiving {
            pace: Pace::new(place.settings.receiver.max_rate, place.clock.clone()),
            log,
            block: Mutex::default(),
            restart: Notify::new(),
            begun: AtomicBool::new(false),
            stop: CancellationToken::new(),
            over: CancellationToken::new(),
            status: self.status.clone(),
            stored: metrics::counter!("millrace_engine_receiver_records_total", &labels),
            errors: metrics::counter!("millrace_engine_receiver_errors_total", &labels),
            active: metrics::gauge!("millrace_engine_receiver_active", &labels),
            place,
        };
        receiving.active.set(0.0);
        anyhow::ensure!(self.open.set(Arc::new(receiving)).is_ok(), "the receiver's log is open already");
        Ok(())
    }

    fn begin(&self, resume: &Resume) {
        let Some(receiving) = self.open.get() else { return };
        if receiving.begun.swap(true, Relaxed) {
            // The job starts from its checkpoint once more, within the process: the log stands where it stood.
            return;
        }
        receiving.log.begin(resume.next);
        let tasks = &receiving.place.tasks;
        tasks.spawn(receiving.clone().supervise(self.run.clone()));
    }

    async fn bounds(&self) -> Result<Bounds, KafkaError> {
        Ok(self.receiving()?.log.bounds())
    }

    fn read(&self, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        match self.receiving() {
            Ok(receiving) => receiving.log.read(from, until),
            Err(error) => Box::pin(futures::stream::iter([Err(error)])),
        }
    }

    fn takes_limit(&self) -> bool {
        true
    }

    fn limit(&self, records_per_second: Option<u64>) {
        let Some(receiving) = self.open.get() else { return };
        let most = receiving.place.settings.receiver.max_rate;
        receiving.pace.set([records_per_second, most].into_iter().flatten().min());
    }

    fn release(&self, released: Released) {
        if let Some(receiving) = self.open.get() {
            receiving.log.release(released);
        }
    }

    fn loses(&self, settings: &JobSettings) -> Option<&'static str> {
        (!settings.receiver.write_ahead_log.enabled)
            .then_some("a crash loses what it has received; set spark.streaming.receiver.writeAheadLog.enable = true")
    }

    fn receiver(&self) -> Option<ReceiverStatus> {
        Some(self.status.borrow().clone())
    }

    async fn stop(&self) {
        let Some(receiving) = self.open.get() else { return };
        receiving.stop.cancel();
        if receiving.begun.load(Relaxed) {
            receiving.over.cancelled().await;
        } else {
            receiving.log.close();
        }
    }
}

impl Receiving {
    /// Runs the receiver until it is told to stop, or stops itself.
    async fn supervise(self: Arc<Self>, run: Arc<Run>) {
        let blocks = self.place.tasks.spawn(self.clone().make_blocks());
        let (job, source) = (&self.place.job, &self.place.source);
        while !self.stop.is_cancelled() {
            self.set_active(true);
            info!(%job, %source, "receiver started");
            let mut work = Box::pin(AssertUnwindSafe(run(Intake(self.clone()))).catch_unwind());
            let ended = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    // It may have something to finish; what it does with that is its own affair.
                    if tokio::time::timeout(STOP_GRACE, &mut work).await.is_err() {
                        warn!(%job, %source, "the receiver did not stop by itself");
                    }
                    break;
                }
                () = self.restart.notified() => Ok(Ok(())),
                ended = &mut work => ended,
            };
            drop(work);
            let failed = match ended {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some("panicked".into()),
            };
            self.set_active(false);
            if let Some(message) = failed {
                self.report(message);
            }
            let delay = self.place.settings.receiver.restart_delay;
            info!(%job, %source, ?delay, "receiver ended; it is started again");
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {}
                () = self.place.clock.sleep_until(self.place.clock.now_ms() + i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)) => {}
            }
        }
        self.set_active(false);
        if let Err(panic) = blocks.await {
            warn!(%panic, %job, %source, "blocks ended early");
        }
        self.log.close();
        self.over.cancel();
        info!(%job, %source, "receiver stopped");
    }

    /// Makes a block of what was stored one by one, every interval and once more at the end.
    async fn make_blocks(self: Arc<Self>) {
        let interval = interval_ms(self.place.settings.receiver.block_interval);
        let clock = &self.place.clock;
        let mut next = clock.now_ms() + interval;
        let mut status = self.status.subscribe();
        loop {
            let over = tokio::select! {
                biased;
                // The receiver is inactive before the last look.
                () = async {
                    self.stop.cancelled().await;
                    // An error means that nobody tells any more.
                    status.wait_for(|status| !status.active).await.map(drop).ok();
                } => true,
                () = clock.sleep_until(next) => false,
            };
            next = clock.now_ms() + interval;
            let Block { mut records, held } = std::mem::take(&mut *self.block.lock());
            let mut held = held.unwrap_or_else(|| self.log.no_room());
            let count = records.len() as u64;
            while let Err(failed) = self.log.append(records, held).await {
                self.report(failed.reason);
                (records, held) = (failed.records, failed.held);
                if over {
                    warn!(job = %self.place.job, source = %self.place.source, records = count, "records that were not stored yet are lost");
                    return;
                }
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = tokio::time::sleep(STORE_RETRY) => {}
                }
            }
            self.stored.increment(count);
            if over {
                return;
            }
        }
    }

    fn set_active(&self, active: bool) {
        self.active.set(if active { 1.0 } else { 0.0 });
        let changed = self.status.send_if_modified(|status| std::mem::replace(&mut status.active, active) != active);
        match (changed, active) {
            (false, _) => {}
            (true, true) => self.place.monitor.receiver_started(self.place.stream, "0", "localhost"),
            (true, false) => self.place.monitor.receiver_stopped(self.place.stream, None),
        }
    }

    fn report(&self, message: String) {
        warn!(job = %self.place.job, source = %self.place.source, error = message, "receiver");
        self.errors.increment(1);
        self.place.monitor.receiver_error(self.place.stream, &anyhow::anyhow!("{message}"));
        let error = ReceiverError { time_ms: self.place.clock.now_ms(), message };
        self.status.send_modify(|status| status.last_error = Some(error));
    }
}

impl Intake {
    /// Into the next block. Waits for the rate and for room; cancelling it stores nothing.
    pub(crate) async fn store(&self, record: Bytes) {
        self.0.pace.take(1).await;
        let records = [record];
        let held = self.0.log.room(&records).await;
        let mut block = self.0.block.lock();
        block.records.extend(records);
        match &mut block.held {
            Some(all) => all.add(held),
            None => block.held = Some(held),
        }
    }

    /// A block of its own. Waits for the rate and for room, and until it is stored. Cancelling it may store the block, or not.
    pub(crate) async fn store_all(&self, records: Vec<Bytes>) -> Result<(), StoreError> {
        let count = records.len() as u64;
        self.0.pace.take(count).await;
        let held = self.0.log.room(&records).await;
        self.0.log.append(records, held).await.map_err(|NotStored { reason, .. }| StoreError(reason))?;
        self.0.stored.increment(count);
        Ok(())
    }

    pub(crate) fn report(&self, message: String) {
        self.0.report(message);
    }

    /// Ends this run of the receiver where it waits; it is started again after the delay.
    pub(crate) fn restart(&self, why: String) {
        self.0.report(why);
        self.0.restart.notify_one();
    }

    /// The receiver is not started again.
    pub(crate) fn stop(&self, why: &str) {
        info!(job = %self.0.place.job, source = %self.0.place.source, why, "the receiver stops itself");
        self.0.stop.cancel();
    }

    /// Cancelled when the receiver is to end.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stop.clone()
    }
}
