//! A writer with a transactional id of its own. What has come in while it wrote shares the next transaction.
//!
//! A request may be written only by the incarnation of the writer under which it was claimed (`epoch`): who fences the writer takes the claims
//! before for dead. When one request of a transaction cannot be written, the transaction is aborted, and the others have another one at once.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use service_kit::kafka::{KafkaError, OutRecord, TransactionalWriter, Written};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{broker::Broker, log::Log, record::Outcome};

/// A claim that stands, and what is to be written under it.
pub(super) struct Job {
    pub(super) key: Bytes,
    /// Of the results.
    pub(super) partition: i32,
    pub(super) claim: i64,
    /// The writer's incarnation before it was claimed.
    pub(super) epoch: u64,
    pub(super) claimed_at: Instant,
    pub(super) fingerprint: Arc<str>,
    pub(super) records: Vec<OutRecord>,
    pub(super) verdict: oneshot::Sender<Verdict>,
}

/// What became of a job.
pub(super) enum Verdict {
    Written(Arc<Outcome>),
    /// Certainly not written; it may be claimed again.
    Void {
        was_slow: bool,
    },
    /// Certainly nothing is written any more, and the results tell whether it was.
    Ended,
    /// Certainly not written: what became of each record.
    Failed(Vec<Result<Written, KafkaError>>),
    /// Certainly not written: no transaction is possible now.
    Impossible(KafkaError),
    /// It may be committed, or come to be.
    Unknown(KafkaError),
}

/// Records in one transaction, before no more requests join it.
const TRANSACTION_RECORDS: usize = 10_000;

/// The way to a writer. Its task ends with the last of these.
pub(super) struct Lane {
    epoch: Arc<AtomicU64>,
    jobs: mpsc::Sender<Job>,
}

impl Lane {
    /// Takes the transactional id: whatever its former holder left open is aborted. `patience`: of records; `fresh`: how old a claim may be.
    pub(super) async fn start(
        id: String,
        broker: Arc<dyn Broker>,
        log: Arc<Log>,
        queue: usize,
        patience: Duration,
        fresh: Duration,
    ) -> Result<Self, KafkaError> {
        let writer = broker.writer(&id).await?;
        let epoch = Arc::new(AtomicU64::new(1));
        let (jobs, queue) = mpsc::channel(queue);
        let task = Task { id, broker, log, epoch: Arc::clone(&epoch), writer: Some(writer), patience, fresh };
        drop(tokio::spawn(task.run(queue)));
        Ok(Self { epoch, jobs })
    }

    /// To be asked before a claim is made.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Does not wait: the queue is as long as there may be requests.
    pub(super) fn push(&self, job: Job) -> Result<(), KafkaError> {
        self.jobs.try_send(job).map_err(|_| KafkaError::Retryable("the writer of keyed requests takes no more".to_owned()))
    }
}

struct Task {
    id: String,
    broker: Arc<dyn Broker>,
    log: Arc<Log>,
    epoch: Arc<AtomicU64>,
    /// `None` after one had to be dropped and no new one could be made.
    writer: Option<Box<dyn TransactionalWriter>>,
    patience: Duration,
    fresh: Duration,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.recv().await {
            let mut records = first.records.len();
            let mut jobs = vec![first];
            while records < TRANSACTION_RECORDS
                && let Ok(job) = queue.try_recv()
            {
                records += job.records.len();
                jobs.push(job);
            }
            let mut groups = VecDeque::from([jobs]);
            while let Some(group) = groups.pop_front() {
                // Every turn gives at least one verdict.
                let left = self.turn(group).await;
                if !left.is_empty() {
                    groups.push_back(left);
                }
            }
        }
    }

    /// One transaction; gives what is to be tried once more.
    async fn turn(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        if self.writer.is_none()
            && let Err(error) = self.renew().await
        {
            return end(jobs, |_| Verdict::Impossible(error.clone()));
        }
        let epoch = self.epoch.load(Ordering::Acquire);
        let (jobs, void): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.epoch == epoch && job.claimed_at.elapsed() < self.fresh);
        end(void, |_| Verdict::Void { was_slow: false });
        let Some(writer) = self.writer.as_mut().filter(|_| !jobs.is_empty()) else { return Vec::new() };

        let open = Open::new();
        if let Err(error) = writer.begin().await {
            tracing::debug!(%error, id = self.id, "a transaction of keyed requests does not begin");
            open.ended("failed");
            self.writer = None;
            // Tried again with the next request.
            drop(self.renew().await);
            return end(jobs, |_| Verdict::Void { was_slow: false });
        }
        let batches = jobs.iter().map(|job| job.records.clone()).collect();
        let settled = writer.write(batches, self.patience).await;
        if !settled.iter().all(is_written) {
            open.ended("aborted");
            return self.sort(jobs, settled).await;
        }
        let written: Vec<Vec<Written>> = settled.into_iter().map(|one| one.into_iter().flatten().flatten().collect()).collect();
        let outcomes: Vec<Arc<Outcome>> =
            jobs.iter().zip(&written).map(|(job, written)| Arc::new(Outcome::new(job.claim, &job.fingerprint, written))).collect();
        let results = jobs.iter().zip(&outcomes).map(|(job, outcome)| self.log.result(&job.key, job.partition, outcome)).collect();
        let kept = writer.write(vec![results], self.patience).await.pop().flatten();
        if !is_written(&kept) {
            open.ended("aborted");
            let error = kept.into_iter().flatten().find_map(Result::err).unwrap_or_else(|| late(self.patience));
            self.abort().await;
            return end(jobs, |_| Verdict::Impossible(error.clone()));
        }
        match writer.commit().await {
            Ok(()) => {
                open.ended("committed");
                let mut outcomes = outcomes.into_iter();
                end(jobs, |_| outcomes.next().map_or(Verdict::Ended, Verdict::Written))
            }
            Err(error) => {
                tracing::debug!(%error, id = self.id, "a transaction of keyed requests is not committed");
                open.ended("failed");
                self.writer = None;
                match self.renew().await {
                    // What it left is committed or aborted now, for good.
                    Ok(()) => end(jobs, |_| Verdict::Ended),
                    Err(_) => end(jobs, |_| Verdict::Unknown(error.clone())),
                }
            }
        }
    }

    /// After records that were not written: aborts, tells whose fault it was, and gives the others back.
    async fn sort(&mut self, jobs: Vec<Job>, settled: Vec<Option<Vec<Result<Written, KafkaError>>>>) -> Vec<Job> {
        let at_fault = |settled: &Option<Vec<Result<Written, KafkaError>>>| match settled {
            None => true,
            Some(results) => {
                results.iter().any(|result| result.as_ref().is_err_and(|error| !error.retryable() && !is_of_the_writer(error)))
            }
        };
        let is_known = settled.iter().any(at_fault);
        self.abort().await;
        let mut others = Vec::new();
        for (job, settled) in jobs.into_iter().zip(settled) {
            let is_at_fault = if is_known { at_fault(&settled) } else { !is_written(&settled) };
            match settled {
                _ if !is_at_fault => others.push(job),
                None => drop(job.verdict.send(Verdict::Void { was_slow: true })),
                // Somebody has fenced the writer: nothing is wrong with the request.
                Some(results) if results.iter().any(|result| result.as_ref().is_err_and(is_of_the_writer)) => {
                    drop(job.verdict.send(Verdict::Void { was_slow: false }));
                }
                Some(results) => drop(job.verdict.send(Verdict::Failed(results))),
            }
        }
        others
    }

    /// What is not committed now never will be, whether this succeeds or the next writer does it.
    async fn abort(&mut self) {
        let Some(writer) = self.writer.as_mut() else { return };
        if let Err(error) = writer.abort().await {
            tracing::debug!(%error, id = self.id, "a transaction of keyed requests is not aborted; a new writer does it");
            self.writer = None;
            // Tried again with the next request.
            drop(self.renew().await);
        }
    }

    async fn renew(&mut self) -> Result<(), KafkaError> {
        self.writer = Some(self.broker.writer(&self.id).await?);
        // Not before: a claim under the new number must not be older than its writer.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

fn is_written(settled: &Option<Vec<Result<Written, KafkaError>>>) -> bool {
    settled.as_ref().is_some_and(|results| results.iter().all(Result::is_ok))
}

/// The writer's end, which every record of it tells.
fn is_of_the_writer(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Fenced(_) | KafkaError::Fatal(_) | KafkaError::OutcomeUnknown(_) | KafkaError::Conflict(_))
}

fn late(patience: Duration) -> KafkaError {
    KafkaError::Retryable(format!("the results of keyed requests were not acknowledged within {patience:?}"))
}

fn end(jobs: Vec<Job>, mut verdict: impl FnMut(&Job) -> Verdict) -> Vec<Job> {
    for job in jobs {
        let verdict = verdict(&job);
        // A caller that has gone hears nothing; its repetition finds the result.
        drop(job.verdict.send(verdict));
    }
    Vec::new()
}

/// Counts a transaction.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("millrace_bridge_keyed_transactions_open").increment(1);
        Self
    }

    fn ended(self, outcome: &'static str) {
        metrics::counter!("millrace_bridge_keyed_transactions_total", "outcome" => outcome).increment(1);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("millrace_bridge_keyed_transactions_open").decrement(1);
    }
}
