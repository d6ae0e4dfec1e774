//! `StreamingListener`: Spark's events, told to whoever asked for them.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use stream_engine::{dstream::StreamingContext, job::{BatchView, StreamingListener}};
//! struct Slow;
//!
//! impl StreamingListener for Slow {
//!     fn on_batch_completed(&self, batch: &BatchView) -> anyhow::Result<()> {
//!         if batch.total_delay_ms() > Some(10_000) {
//!             println!("{} took {:?}", batch.time_ms, batch.processing_ms());
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # fn register(ssc: &StreamingContext) {
//! ssc.add_streaming_listener(Arc::new(Slow));
//! # }
//! ```
//!
//! Events go through a queue of [`EVENTS_MAX`] to a thread of their own, so that a listener never holds a batch up: is the
//! queue full, the event is dropped and counted (`millrace_engine_listener_events_dropped_total`). A listener that fails or
//! panics is logged, and hears the next event like any other.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, SyncSender, TrySendError},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::{BatchView, OutputView, QueryProgress, StreamView, said};

/// Events that may wait, as in Spark (`spark.scheduler.listenerbus.eventqueue.capacity`).
pub const EVENTS_MAX: usize = 10_000;
/// At the end of a job, how long listeners may take for what is still to be told.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// Is told what a job does. All methods do nothing unless they are written; what they give back as an error is logged.
///
/// Times are milliseconds since the epoch.
pub trait StreamingListener: Send + Sync + 'static {
    /// The job begins, `time_ms` now.
    fn on_streaming_started(&self, time_ms: i64) -> anyhow::Result<()> {
        let _ = time_ms;
        Ok(())
    }

    fn on_receiver_started(&self, stream: &StreamView) -> anyhow::Result<()> {
        let _ = stream;
        Ok(())
    }

    /// A receiver told of an error: `stream.receiver.last_error`.
    fn on_receiver_error(&self, stream: &StreamView) -> anyhow::Result<()> {
        let _ = stream;
        Ok(())
    }

    fn on_receiver_stopped(&self, stream: &StreamView) -> anyhow::Result<()> {
        let _ = stream;
        Ok(())
    }

    /// A batch was cut and waits for its turn.
    fn on_batch_submitted(&self, batch: &BatchView) -> anyhow::Result<()> {
        let _ = batch;
        Ok(())
    }

    /// Processing began; once per batch, also when it runs several times.
    fn on_batch_started(&self, batch: &BatchView) -> anyhow::Result<()> {
        let _ = batch;
        Ok(())
    }

    /// The batch is committed, or failed for good: `batch.state`.
    fn on_batch_completed(&self, batch: &BatchView) -> anyhow::Result<()> {
        let _ = batch;
        Ok(())
    }

    /// `batch_time_ms` says of which batch; again for each run.
    fn on_output_operation_started(&self, batch_time_ms: i64, output: &OutputView) -> anyhow::Result<()> {
        let _ = (batch_time_ms, output);
        Ok(())
    }

    /// It succeeded or failed: `output.error`.
    fn on_output_operation_completed(&self, batch_time_ms: i64, output: &OutputView) -> anyhow::Result<()> {
        let _ = (batch_time_ms, output);
        Ok(())
    }

    /// After each committed batch: what Spark's `StreamingQueryListener` calls `onQueryProgress`.
    fn on_query_progress(&self, progress: &QueryProgress) -> anyhow::Result<()> {
        let _ = progress;
        Ok(())
    }
}

/// What listeners are told.
pub(crate) enum Event {
    StreamingStarted(i64),
    ReceiverStarted(StreamView),
    ReceiverError(StreamView),
    ReceiverStopped(StreamView),
    BatchSubmitted(BatchView),
    BatchStarted(BatchView),
    BatchCompleted(BatchView),
    OutputOperationStarted(i64, OutputView),
    OutputOperationCompleted(i64, OutputView),
    QueryProgress(Box<QueryProgress>),
}

impl Event {
    fn tell(&self, listener: &dyn StreamingListener) -> anyhow::Result<()> {
        match self {
            Self::StreamingStarted(time_ms) => listener.on_streaming_started(*time_ms),
            Self::ReceiverStarted(stream) => listener.on_receiver_started(stream),
            Self::ReceiverError(stream) => listener.on_receiver_error(stream),
            Self::ReceiverStopped(stream) => listener.on_receiver_stopped(stream),
            Self::BatchSubmitted(batch) => listener.on_batch_submitted(batch),
            Self::BatchStarted(batch) => listener.on_batch_started(batch),
            Self::BatchCompleted(batch) => listener.on_batch_completed(batch),
            Self::OutputOperationStarted(time_ms, output) => listener.on_output_operation_started(*time_ms, output),
            Self::OutputOperationCompleted(time_ms, output) => listener.on_output_operation_completed(*time_ms, output),
            Self::QueryProgress(progress) => listener.on_query_progress(progress),
        }
    }
}

/// The listeners of a program, and the way to them.
#[derive(Default)]
pub struct ListenerBus {
    listeners: Arc<RwLock<Vec<Arc<dyn StreamingListener>>>>,
    queue: Mutex<Queue>,
    /// It is said once that events are dropped; the metric counts them.
    dropping: AtomicBool,
}

#[derive(Default)]
enum Queue {
    /// Nobody has been told anything yet.
    #[default]
    New,
    Open(SyncSender<Event>, oneshot::Receiver<()>),
    Closed,
}

impl ListenerBus {
    /// Hears what happens from now on.
    pub fn add(&self, listener: Arc<dyn StreamingListener>) {
        self.listeners.write().push(listener);
    }

    /// Without listeners the event is not even made.
    pub(crate) fn post(&self, job: &str, event: impl FnOnce() -> Event) {
        if self.listeners.read().is_empty() {
            return;
        }
        let mut queue = self.queue.lock();
        if let Queue::New = *queue {
            *queue = open(self.listeners.clone(), EVENTS_MAX);
        }
        let Queue::Open(sender, _) = &*queue else { return };
        if let Err(TrySendError::Full(_)) = sender.try_send(event()) {
            metrics::counter!("millrace_engine_listener_events_dropped_total", "job" => job.to_owned()).increment(1);
            if !self.dropping.swap(true, Relaxed) {
                warn!(
                    job,
                    "a StreamingListener is slower than the batches; events are dropped (millrace_engine_listener_events_dropped_total)"
                );
            }
        }
    }

    /// Nothing more will be told; waits a while until the rest is.
    pub(crate) async fn close(&self) {
        let queue = std::mem::replace(&mut *self.queue.lock(), Queue::Closed);
        let Queue::Open(sender, done) = queue else { return };
        drop(sender);
        if tokio::time::timeout(CLOSE_WAIT, done).await.is_err() {
            warn!("a StreamingListener did not hear everything before the end of the job");
        }
    }
}

fn open(listeners: Arc<RwLock<Vec<Arc<dyn StreamingListener>>>>, events_max: usize) -> Queue {
    let (sender, events) = mpsc::sync_channel::<Event>(events_max);
    let (ended, done) = oneshot::channel::<()>();
    let tell = move || {
        for event in events {
            // Not held while they are told: one of them may add another.
            let told = listeners.read().clone();
            for listener in told {
                match catch_unwind(AssertUnwindSafe(|| event.tell(listener.as_ref()))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => error!(error = said(&error), "a StreamingListener failed"),
                    // The panic itself is in the log already.
                    Err(_) => error!("a StreamingListener panicked"),
                }
            }
        }
        drop(ended);
    };
    match std::thread::Builder::new().name("streaming-listeners".into()).spawn(tell) {
        Ok(_) => Queue::Open(sender, done),
        Err(error) => {
            error!(%error, "no thread for StreamingListeners; they are told nothing");
            Queue::Closed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks at its first event until it is told to go on, and counts.
    struct Blocked(Mutex<mpsc::Receiver<()>>, SyncSender<i64>);

    impl StreamingListener for Blocked {
        fn on_streaming_started(&self, time_ms: i64) -> anyhow::Result<()> {
            // An error: the gate stays open.
            self.0.lock().recv().ok();
            self.1.send(time_ms)?;
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_listener_that_blocks_holds_nobody_up_and_what_does_not_fit_is_counted() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let (gate, wait) = mpsc::sync_channel(0);
        let (heard, hears) = mpsc::sync_channel(2 * EVENTS_MAX);
        let bus = ListenerBus::default();
        bus.add(Arc::new(Blocked(Mutex::new(wait), heard)));
        let posted = EVENTS_MAX as i64 + 100;
        metrics::with_local_recorder(&recorder, || (0..posted).for_each(|n| bus.post("job", || Event::StreamingStarted(n))));
        drop(gate);
        bus.close().await;
        let told: Vec<i64> = hears.try_iter().collect();
        assert!(told.windows(2).all(|pair| pair[0] < pair[1]), "in their order");
        let dropped = posted as usize - told.len();
        assert!((99..=100).contains(&dropped), "one may have been taken from the queue: {dropped}");
        assert!(handle.render().contains(&format!("millrace_engine_listener_events_dropped_total{{job=\"job\"}} {dropped}")));
    }

    struct Failing;

    impl StreamingListener for Failing {
        fn on_streaming_started(&self, time_ms: i64) -> anyhow::Result<()> {
            if time_ms == 0 { Err(anyhow::anyhow!("told to fail")) } else { panic!("told to panic") }
        }
    }

    #[tokio::test]
    async fn a_listener_that_fails_or_panics_costs_nobody_an_event() {
        let (heard, hears) = mpsc::sync_channel(10);
        let (gate, wait) = mpsc::sync_channel::<()>(0);
        drop(gate);
        let bus = ListenerBus::default();
        bus.add(Arc::new(Failing));
        bus.add(Arc::new(Blocked(Mutex::new(wait), heard)));
        (0..3).for_each(|n| bus.post("job", || Event::StreamingStarted(n)));
        bus.close().await;
        bus.post("job", || panic!("nothing is made for a bus that is closed"));
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), [0, 1, 2]);
    }
}
