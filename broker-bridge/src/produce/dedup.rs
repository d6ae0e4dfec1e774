//! The window in which a repeated batch is recognised.
//!
//! A batch is known by its id. While it is being written, a repetition waits for it, as long as a request may wait; afterwards a repetition is
//! answered with the stored results, and only records that certainly were not written, and may pass, are written again: one whose outcome is not
//! known could be written twice. The window is bounded by records and age and
//! lives in this process: after a restart a batch id is new.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::RecordOutcome;
use crate::error::{BridgeError, Code, Result};

pub(super) struct Dedup {
    inner: Mutex<Inner>,
    records_max: usize,
    age: Duration,
}

#[derive(Default)]
struct Inner {
    batches: HashMap<Arc<str>, Batch>,
    /// Finished batches, oldest first. An entry is stale when the batch has been finished again later.
    finished: VecDeque<(Instant, Arc<str>)>,
    /// Records of finished batches.
    records: usize,
}

struct Batch {
    fingerprint: u64,
    state: State,
}

enum State {
    /// Dropped sender or `true`: finished.
    Writing(watch::Receiver<bool>),
    Finished {
        at: Instant,
        results: Arc<Vec<RecordOutcome>>,
    },
}

/// What to do with a batch.
pub(super) enum Claim {
    /// Write it; `earlier` holds the results of a former attempt. `Ticket::finish` ends the claim.
    Write { ticket: Ticket, earlier: Option<Arc<Vec<RecordOutcome>>> },
    /// Nothing is left to write.
    Replay(Arc<Vec<RecordOutcome>>),
    /// Another request is still writing it.
    Pending,
}

/// The right to write one batch. Dropped without `finish`, the batch is forgotten.
pub(super) struct Ticket {
    dedup: Arc<Dedup>,
    id: Arc<str>,
    done: watch::Sender<bool>,
    finished: bool,
}

impl Dedup {
    pub(super) fn new(records_max: usize, age: Duration) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), records_max, age })
    }

    /// Claims `id`; waits up to `patience` while another request writes the same batch. `fingerprint` tells whether it is the same batch.
    pub(super) async fn claim(self: &Arc<Self>, id: &str, fingerprint: u64, patience: Duration) -> Result<Claim> {
        let until = Instant::now() + patience;
        loop {
            let mut writing = {
                let mut inner = self.inner.lock();
                self.expire(&mut inner);
                match inner.batches.get(id) {
                    None => return Ok(self.ticket(&mut inner, id, fingerprint, None)),
                    Some(batch) if batch.fingerprint != fingerprint => {
                        return Err(BridgeError::new(
                            Code::Unprocessable,
                            format!(
                                "batch id {id:?} was used for other records within the last {}s; give every batch its own id",
                                self.age.as_secs()
                            ),
                        ));
                    }
                    Some(Batch { state: State::Finished { results, .. }, .. }) => {
                        let results = Arc::clone(results);
                        if results.iter().all(|result| !may_pass(result)) {
                            return Ok(Claim::Replay(results));
                        }
                        return Ok(self.ticket(&mut inner, id, fingerprint, Some(results)));
                    }
                    Some(Batch { state: State::Writing(done), .. }) => done.clone(),
                }
            };
            // An error means that the writer is gone: look again either way.
            if timeout_at(until, writing.wait_for(|done| *done)).await.is_err() {
                return Ok(Claim::Pending);
            }
        }
    }

    fn ticket(self: &Arc<Self>, inner: &mut Inner, id: &str, fingerprint: u64, earlier: Option<Arc<Vec<RecordOutcome>>>) -> Claim {
        let id: Arc<str> = id.into();
        if let Some(earlier) = &earlier {
            inner.records -= weight(earlier);
        }
        let (done, writing) = watch::channel(false);
        inner.batches.insert(Arc::clone(&id), Batch { fingerprint, state: State::Writing(writing) });
        Claim::Write { ticket: Ticket { dedup: Arc::clone(self), id, done, finished: false }, earlier }
    }

    fn expire(&self, inner: &mut Inner) {
        let now = Instant::now();
        while let Some((at, id)) = inner.finished.front() {
            let full = inner.records > self.records_max;
            if !full && now.duration_since(*at) < self.age {
                break;
            }
            let (at, id) = (*at, Arc::clone(id));
            inner.finished.pop_front();
            if let Some(Batch { state: State::Finished { at: finished, results }, .. }) = inner.batches.get(&id)
                && *finished == at
            {
                inner.records -= weight(results);
                inner.batches.remove(&id);
            }
        }
        metrics::gauge!("millrace_bridge_dedup_records").set(inner.records as f64);
    }
}

impl Ticket {
    /// Stores the results, for the repetitions that wait and those to come.
    pub(super) fn finish(mut self, results: Arc<Vec<RecordOutcome>>) {
        self.finished = true;
        let mut inner = self.dedup.inner.lock();
        let at = Instant::now();
        inner.records += weight(&results);
        if let Some(batch) = inner.batches.get_mut(&self.id) {
            batch.state = State::Finished { at, results };
        }
        inner.finished.push_back((at, Arc::clone(&self.id)));
        self.dedup.expire(&mut inner);
        drop(inner);
        self.done.send_replace(true);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.finished {
            self.dedup.inner.lock().batches.remove(&self.id);
        }
    }
}

/// Whether the record was certainly not written, and writing it again may succeed.
pub(super) fn may_pass(result: &RecordOutcome) -> bool {
    result.as_ref().is_err_and(|error| error.retryable() && error.code != Code::Timeout)
}

/// An empty batch takes room too.
fn weight(results: &[RecordOutcome]) -> usize {
    results.len().max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use service_kit::kafka::Written;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn written(offset: i64) -> RecordOutcome {
        Ok(Written { partition: 0, offset })
    }

    fn failed(code: Code) -> RecordOutcome {
        Err(BridgeError::new(code, "failed"))
    }

    async fn write(dedup: &Arc<Dedup>, id: &str, results: Vec<RecordOutcome>) {
        match dedup.claim(id, 1, PATIENCE).await.unwrap() {
            Claim::Write { ticket, .. } => ticket.finish(Arc::new(results)),
            _ => panic!("{id} is known already"),
        }
    }

    /// Makes everything in the window older.
    fn pass(dedup: &Dedup, seconds: u64) {
        let by = Duration::from_secs(seconds);
        let mut inner = dedup.inner.lock();
        inner.finished.iter_mut().for_each(|(at, _)| *at -= by);
        for batch in inner.batches.values_mut() {
            if let State::Finished { at, .. } = &mut batch.state {
                *at -= by;
            }
        }
    }

    async fn known(dedup: &Arc<Dedup>, id: &str) -> bool {
        matches!(dedup.claim(id, 1, PATIENCE).await.unwrap(), Claim::Replay(_))
    }

    #[tokio::test]
    async fn a_repeated_batch_gets_the_first_answer_until_it_is_too_old() {
        let dedup = Dedup::new(100, Duration::from_secs(60));
        write(&dedup, "a", vec![written(7), failed(Code::TooLarge)]).await;
        match dedup.claim("a", 1, PATIENCE).await.unwrap() {
            Claim::Replay(results) => assert_eq!(*results, [written(7), failed(Code::TooLarge)]),
            _ => panic!("must be replayed"),
        }
        pass(&dedup, 30);
        assert!(known(&dedup, "a").await);
        pass(&dedup, 31);
        assert!(!known(&dedup, "a").await);
    }

    #[tokio::test]
    async fn the_oldest_batches_go_first_when_the_window_is_full() {
        let dedup = Dedup::new(5, Duration::from_secs(60));
        for id in ["a", "b", "c"] {
            write(&dedup, id, vec![written(0), written(1)]).await;
        }
        assert!(known(&dedup, "b").await && known(&dedup, "c").await);
        assert!(!known(&dedup, "a").await);
    }

    #[tokio::test]
    async fn an_id_with_other_records_is_refused() {
        let dedup = Dedup::new(5, Duration::from_secs(60));
        write(&dedup, "a", vec![written(0)]).await;
        let error = dedup.claim("a", 2, PATIENCE).await.err().unwrap();
        assert_eq!(error.code, Code::Unprocessable);
        assert!(error.message.contains("\"a\""), "{error}");
    }

    #[tokio::test]
    async fn what_may_pass_is_written_again_with_the_earlier_results_at_hand() {
        let dedup = Dedup::new(5, Duration::from_secs(60));
        write(&dedup, "a", vec![written(0), failed(Code::KafkaRetriable)]).await;
        match dedup.claim("a", 1, PATIENCE).await.unwrap() {
            Claim::Write { ticket, earlier } => {
                assert_eq!(*earlier.unwrap(), [written(0), failed(Code::KafkaRetriable)]);
                ticket.finish(Arc::new(vec![written(0), written(1)]));
            }
            _ => panic!("one record may pass"),
        }
        assert!(known(&dedup, "a").await);
        assert_eq!(dedup.inner.lock().records, 2);
    }

    #[tokio::test]
    async fn a_repetition_waits_for_the_writer_and_takes_over_when_it_gives_up() {
        let dedup = Dedup::new(5, Duration::from_secs(60));
        let Claim::Write { ticket, .. } = dedup.claim("a", 1, PATIENCE).await.unwrap() else { panic!() };
        let waiting = tokio::spawn({
            let dedup = Arc::clone(&dedup);
            async move { known(&dedup, "a").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        ticket.finish(Arc::new(vec![written(0)]));
        assert!(waiting.await.unwrap());

        let Claim::Write { ticket, .. } = dedup.claim("b", 1, PATIENCE).await.unwrap() else { panic!() };
        let waiting = tokio::spawn({
            let dedup = Arc::clone(&dedup);
            async move { known(&dedup, "b").await }
        });
        tokio::task::yield_now().await;
        let impatient = dedup.claim("b", 1, Duration::from_millis(1)).await.unwrap();
        assert!(matches!(impatient, Claim::Pending), "and no longer than it may");
        drop(ticket);
        assert!(!waiting.await.unwrap(), "the batch is free again");
    }

    #[tokio::test]
    async fn what_may_have_been_written_is_never_written_again() {
        let dedup = Dedup::new(5, Duration::from_secs(60));
        for code in [Code::Timeout, Code::OutcomeUnknown] {
            let id = format!("{code:?}");
            write(&dedup, &id, vec![written(0), failed(code)]).await;
            assert!(known(&dedup, &id).await, "{code:?}");
        }
    }
}
