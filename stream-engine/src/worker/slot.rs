//! One slot on the worker that owns it: take → decide → [cut → (define) → run → commit]… → let go.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, stream};
use service_kit::kafka::{Bounds, KafkaError, TopicPartition};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{BatchContext, Outputs, Shared, SlotProgram};
use crate::batch::{PartitionInput, clock, range};
use crate::commit::Positions;
use crate::commit::progress::{SlotBatch, SlotProgress};
use crate::commit::slots::Slot;
use crate::commit::takeover::{Facts, Plan, take_over};
use crate::commit::topic_log::{LogError, SlotLog};
use crate::source::DataLoss;

/// Between two questions whether the coordinator has named this worker the slot's holder.
const ASK_INTERVAL_MS: i64 = 100;
/// First and longest wait before something is tried again.
const BACKOFF_MS: (i64, i64) = (50, 5_000);
/// Partitions are looked up at most this often.
const PARTITIONS_REFRESH: Duration = Duration::from_secs(1);

/// How a slot's task ended.
pub(super) enum End {
    /// As it was told; the batch under way has happened.
    Stopped,
    /// Another worker owns the slot.
    Lost(String),
    /// Every owner of the slot would meet it.
    Failed(anyhow::Error),
}

pub(super) struct SlotTask {
    pub(super) shared: std::sync::Arc<Shared>,
    pub(super) slot: Slot,
    pub(super) stop: CancellationToken,
}

/// The state between two batches.
struct State {
    log: SlotLog,
    program: Box<dyn SlotProgram>,
    progress: SlotProgress,
    /// Of the partitions.
    refreshed_at_ms: Option<i64>,
}

impl SlotTask {
    pub(super) async fn run(self) -> (Slot, End) {
        let mut backoff = BACKOFF_MS.0;
        loop {
            let error = match self.own(&mut backoff).await {
                Ok(()) => return (self.slot, End::Stopped),
                Err(LogError::Lost(reason)) => return (self.slot, End::Lost(reason)),
                Err(LogError::Fatal(error)) => return (self.slot, End::Failed(error)),
                Err(error) => error,
            };
            warn!(%error, "the slot is taken again");
            if !self.wait(&mut backoff).await {
                return (self.slot, End::Stopped);
            }
        }
    }

    /// Takes the slot and runs its batches until it is told to stop.
    async fn own(&self, backoff: &mut i64) -> Result<(), LogError> {
        let worker = &self.shared.worker;
        let partition = worker.job.partition(self.slot);
        // Who is not named by the coordinator would fence the rightful owner.
        while !self.shared.member.holds(&partition).await? {
            if !self.sleep(ASK_INTERVAL_MS).await {
                return Ok(());
            }
        }
        let (log, progress) = SlotLog::take(worker.clients.as_ref(), &self.shared.reader, &worker.job, self.slot).await?;
        let facts = Facts {
            job: &worker.job,
            slot: self.slot,
            progress: progress.as_ref(),
            // No program has keyed state yet.
            changelogs: &BTreeMap::new(),
            local: None,
            snapshots: &[],
        };
        let plan = take_over(&facts);
        let program = worker.topology.slot(self.slot).map_err(LogError::Fatal)?;
        let fresh = SlotProgress::fresh(&worker.job, self.slot, BTreeMap::new());
        let mut state = State { log, program, progress: progress.unwrap_or(fresh), refreshed_at_ms: None };
        let mut again = None;
        match plan {
            Plan::Refuse(reason) => return Err(LogError::Fatal(anyhow::anyhow!(reason))),
            Plan::Fresh => {
                state.progress.positions = self.starts().await?;
                // Where it begins must not depend on who reads the first record, and when.
                state.log.commit(&state.progress, None).await?;
            }
            Plan::Resume(_) => {}
            Plan::Rerun(_, batch) => again = Some(batch),
        }
        info!(next = state.progress.next, run_again = again.is_some(), "slot taken");
        *backoff = BACKOFF_MS.0;
        self.batches(&mut state, again).await
    }

    /// Where the slot's partitions begin.
    async fn starts(&self) -> Result<BTreeMap<String, Positions>, LogError> {
        let worker = &self.shared.worker;
        let mut starts = BTreeMap::new();
        for source in &self.shared.sources {
            let start = source.start(worker.cluster.as_ref()).await.map_err(sorted)?;
            let mut positions = start.starts;
            positions.0.retain(|partition, _| self.is_mine(partition));
            starts.insert(source.spec.name.clone(), positions);
        }
        Ok(starts)
    }

    fn is_mine(&self, partition: &TopicPartition) -> bool {
        self.shared.worker.job.shape.slot_of_partition(partition.partition) == self.slot
    }

    /// `again`: a batch that may have run in part.
    async fn batches(&self, state: &mut State, mut again: Option<SlotBatch>) -> Result<(), LogError> {
        let mut backoff = BACKOFF_MS.0;
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            let (batch, replay) = match again.take() {
                Some(batch) => (batch, true),
                None => match self.cut(state).await {
                    Ok(Some(batch)) => (batch, false),
                    Ok(None) => return Ok(()),
                    Err(LogError::Away(error)) => {
                        warn!(error = format!("{error:#}"), "cannot cut a batch; waiting, nothing is lost");
                        if !self.wait(&mut backoff).await {
                            return Ok(());
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let failed = match self.batch(state, &batch, replay).await {
                Ok(()) => {
                    (backoff, failures) = (BACKOFF_MS.0, 0);
                    continue;
                }
                Err(failed) => failed,
            };
            // Nothing of it is in Kafka; outside, who knows.
            again = failed.defined.then_some(batch);
            match failed.error {
                LogError::Stale(reason) => debug!(reason, "the group has found a new order; the batch is run again"),
                LogError::Away(error) => warn!(error = format!("{error:#}"), "waiting to run the batch again; nothing is lost"),
                LogError::Fatal(error) if failed.of_program => {
                    failures += 1;
                    if failures >= self.shared.worker.attempts_max {
                        return Err(LogError::Fatal(error.context(format!("batch {} failed {failures} times", state.progress.next))));
                    }
                    warn!(error = format!("{error:#}"), failures, "the batch failed and is run again");
                }
                error => return Err(error),
            }
            if !self.wait(&mut backoff).await {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits for the tick and for something to read; `None` when the slot is to be let go.
    async fn cut(&self, state: &mut State) -> Result<Option<SlotBatch>, LogError> {
        let worker = &self.shared.worker;
        let interval = worker.limits.interval;
        loop {
            let due = clock::tick_after(worker.clock.now_ms(), interval);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(None),
                () = worker.clock.sleep_until(due) => {}
            }
            let now_ms = worker.clock.now_ms();
            let refresh = state.refreshed_at_ms.is_none_or(|at| now_ms - at >= clock::interval_ms(PARTITIONS_REFRESH));
            let mut ranges = BTreeMap::new();
            for source in &self.shared.sources {
                let positions = &mut state.progress.positions.entry(source.spec.name.clone()).or_default().0;
                let added = if refresh { source.partitions().await? } else { Vec::new() };
                let added: Vec<TopicPartition> =
                    added.into_iter().filter(|partition| self.is_mine(partition) && !positions.contains_key(partition)).collect();
                let wanted: Vec<TopicPartition> = positions.keys().chain(&added).cloned().collect();
                if wanted.is_empty() {
                    continue;
                }
                let bounds = source.reader.bounds(&wanted).await?;
                for partition in added {
                    // What appears later is read from its first record.
                    let Some(Bounds { earliest, .. }) = bounds.get(&partition) else { continue };
                    info!(source = source.spec.name, %partition, from = earliest, "new partition");
                    positions.insert(partition, *earliest);
                }
                for (partition, position) in &*positions {
                    match source.check(partition, *position, bounds.get(partition)) {
                        // A new leader's end lags for a moment; there is nothing to read meanwhile.
                        Ok(()) | Err(DataLoss::BeyondEnd { .. }) => {}
                        Err(loss) => return Err(LogError::Fatal(loss.into())),
                    }
                }
                let cut = range::cut(positions, &bounds, None, &worker.limits);
                ranges.insert(source.spec.name.clone(), cut.into_iter().map(|(range, _)| range).collect::<Vec<_>>());
            }
            if refresh {
                state.refreshed_at_ms = Some(now_ms);
            }
            // An empty tick costs nothing: no transaction, and no batch.
            if ranges.values().flatten().any(|range| range.count() > 0) {
                let tick = clock::tick_at(worker.clock.now_ms(), interval);
                let time_ms = state.progress.time_ms.map_or(tick, |before| before.max(tick));
                return Ok(Some(SlotBatch { id: state.progress.next, time_ms, ranges }));
            }
        }
    }

    /// One run of a batch, to its commit.
    async fn batch(&self, state: &mut State, batch: &SlotBatch, replay: bool) -> Result<(), Failed> {
        let worker = &self.shared.worker;
        let State { log, program, progress, .. } = state;
        let outside = program.acts_outside();
        if outside && !replay {
            log.define(progress, batch).await.map_err(|error| Failed { error, defined: false, of_program: false })?;
        }
        let failed = |error| Failed { error, defined: outside, of_program: false };
        let context = BatchContext { job: &worker.job, slot: self.slot, batch, replay };
        let ran = program.run(&context, self.input(batch), &mut Outputs(&mut *log)).await;
        if let Err(error) = ran {
            let error = sorted(error);
            return Err(match log.abort().await {
                Ok(()) => Failed { of_program: matches!(error, LogError::Fatal(_)), ..failed(error) },
                Err(worse) => failed(worse),
            });
        }
        let next = progress.after(batch);
        let member = self.shared.member.identity().await;
        let member = match member {
            Ok(member) => member,
            Err(error) => return Err(failed(log.abort().await.err().unwrap_or(error.into()))),
        };
        log.commit(&next, Some(&member)).await.map_err(failed)?;
        *progress = next;
        Ok(())
    }

    /// Opened when they are first read.
    fn input(&self, batch: &SlotBatch) -> Vec<PartitionInput> {
        let sources = self.shared.sources.iter().enumerate();
        let of = |(index, source): (usize, &crate::source::Source)| {
            let ranges = batch.ranges.get(&source.spec.name).into_iter().flatten();
            let input = |range: &crate::batch::OffsetRange| {
                let records = match range.count() {
                    0 => stream::empty().boxed(),
                    _ => source.reader.read(range.topic_partition(), range.from, range.until),
                };
                PartitionInput { source: index, range: range.clone(), caught_up: false, records }
            };
            ranges.map(input).collect::<Vec<_>>()
        };
        sources.flat_map(of).collect()
    }

    /// False when the slot is to be let go.
    async fn wait(&self, backoff: &mut i64) -> bool {
        let wait = *backoff;
        *backoff = (wait * 2).min(BACKOFF_MS.1);
        self.sleep(wait).await
    }

    async fn sleep(&self, ms: i64) -> bool {
        let clock = &self.shared.worker.clock;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = clock.sleep_until(clock.now_ms() + ms) => true,
        }
    }
}

/// A batch that did not happen.
struct Failed {
    error: LogError,
    /// It is durable as it was cut, and may have had effects outside.
    defined: bool,
    /// Only running it tells whether it fails again.
    of_program: bool,
}

/// What a program or a source met, by what is to be done about it.
fn sorted(error: anyhow::Error) -> LogError {
    let error = match error.downcast::<LogError>() {
        Ok(error) => return error,
        Err(error) => error,
    };
    match error.chain().find_map(|cause| cause.downcast_ref::<KafkaError>()) {
        Some(kafka) if kafka.retryable() => LogError::Away(error),
        _ => LogError::Fatal(error),
    }
}
