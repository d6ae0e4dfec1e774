//! Runs a job: restore → [cut → definition durable → run → commit durable → prune]…
//!
//! - A batch that fails is run again, with the same records, from the state before it; after `batch.retry.attempts` the
//!   job fails. A broker that is away is no failure: the batch waits.
//! - After a crash [`crate::commit::decide`] says what runs again.
//! - The job ends when its sources do, or when it is told to ([`Mode`]).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use service_kit::kafka::{KafkaError, RangeReader};
use service_kit::offsets::OffsetError;
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;
use tracing::{info, info_span, warn};

pub use super::cutter::Mode;
use super::{
    BatchContext, BatchDefinition, BatchOutcome, Program,
    clock::{self, Clock},
    cutter::{CutSource, Cutter, NO_ANSWER, Rate, Rates},
    input,
    rate::PidRate,
};
use crate::checkpoint::{Checkpoint, CheckpointError, Holder, Loaded};
use crate::commit::{Commit, Decision, Discard, End, Identity, Metadata, PlannedBatch, Positions, SourceStart, TopicIds, Totals, decide};
use crate::fault::Point;
use crate::job::{Durations, JobSettings, JobState, Monitor, said};
use crate::sink::Fenced;
use crate::source::{Cluster, DataLoss, Mirror, Place, Released, Resume, Share, Source};
use crate::sql::Overflow;

/// Longest wait between two runs of a failing batch, or two looks at a broker or store that is away.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(30);
/// The log tells of late rows at most this often.
const LATE_PERIOD: Duration = Duration::from_secs(10);
/// Who waits, in the monitor.
const BATCHES: &str = "batches";

/// Everything a job needs to run.
pub struct Runner {
    pub job: Arc<str>,
    pub settings: JobSettings,
    pub program: Box<dyn Program>,
    pub checkpoint: Checkpoint,
    pub cluster: Arc<dyn Cluster>,
    pub clock: Arc<dyn Clock>,
    pub monitor: Arc<Monitor>,
    pub mode: watch::Receiver<Mode>,
    pub tasks: TaskTracker,
    /// Of a job that several workers share: the part that is run here.
    pub share: Option<Share>,
}

/// The state between two batches.
struct Progress {
    checkpoint_id: Arc<str>,
    /// Snapshot after the newest commit; empty before the first.
    state: Bytes,
    totals: Totals,
    readers: Vec<Arc<dyn RangeReader>>,
    mirrors: Vec<Option<Mirror>>,
    rates: Rates,
    sources: Vec<Arc<Source>>,
    /// By source: the topics that the checkpoint's offsets belong to.
    topics: Vec<TopicIds>,
    /// Since when, on the monotonic clock.
    topic_gone: Option<Duration>,
    /// Newest batch that is defined, as far as this process knows.
    newest: Option<u64>,
    late: Late,
    /// The newest batches that are committed, for local logs: as many as the checkpoint keeps.
    recent: VecDeque<Arc<BatchDefinition>>,
}

/// Rows that came too late, since the log last told of them.
#[derive(Default)]
struct Late {
    rows: u64,
    /// On the monotonic clock.
    told: Option<Duration>,
}

/// Programs may hold on to their mirrors for longer than the job runs.
impl Drop for Progress {
    fn drop(&mut self) {
        self.mirrors.iter().flatten().for_each(Mirror::close);
    }
}

impl Runner {
    /// Runs the job to its end and writes the end to the monitor.
    pub async fn run(self) -> anyhow::Result<()> {
        let monitor = self.monitor.clone();
        let result = self.run_to_end().await;
        monitor.listeners_done().await;
        monitor.ended(&result);
        result
    }

    /// As [`Self::run`], and says nothing of the end.
    pub(crate) async fn run_to_end(mut self) -> anyhow::Result<()> {
        let Some(sources) = self.connect().await? else { return Ok(()) };
        let result = self.run_over(&sources).await;
        for source in &sources {
            if let Some(local) = source.local() {
                local.stop().await;
            }
        }
        result
    }

    async fn run_over(&mut self, sources: &[Arc<Source>]) -> anyhow::Result<()> {
        match self.ask(|place| async move { place.own(Holder::Job).await }.boxed()).await? {
            Some(owned) => self.checkpoint = owned,
            None => return Ok(()),
        }
        loop {
            match self.run_from_checkpoint(sources).await {
                Err(error) if matches!(error.downcast_ref(), Some(CheckpointError::Late { .. })) => {
                    info!(job = %self.job, error = said(&error), "starting from the checkpoint once more");
                    self.monitor.starts_again();
                }
                ended => return ended,
            }
        }
    }

    async fn run_from_checkpoint(&mut self, sources: &[Arc<Source>]) -> anyhow::Result<()> {
        let Some(mut start) = self.restore(sources).await? else { return Ok(()) };
        Point::JobRestored.reach();
        if self.settings.backpressure.enabled {
            self.show_rates(&start.progress.rates);
        }
        if self.settings.fail_on_data_loss
            && let Some(loss) = recreated(self.cluster.as_ref(), &start.progress.sources, &start.progress.topics).await
        {
            return Err(loss.into());
        }
        self.monitor.set_state(JobState::Running);
        for planned in std::mem::take(&mut start.rerun) {
            self.monitor.submitted(&planned, None);
            // A changed program may have sources that the batch, the last one then, knew nothing of.
            let ends = planned.end == Some(End::Drained) || (planned.end == Some(End::Finished) && start.all_read);
            if !self.batch(&planned, &mut start.progress, true).await? || ends {
                return Ok(());
            }
        }
        let cutter = Cutter {
            sources: start.sources,
            settings: self.settings.clone(),
            cluster: self.cluster.clone(),
            clock: self.clock.clone(),
            monitor: self.monitor.clone(),
            rates: start.progress.rates.clone(),
            next_id: start.next_id,
            last_ms: start.last_ms,
            mode: self.mode.clone(),
        };
        let (queue, batches) = mpsc::channel(self.settings.queue_batches_max);
        let cutter = self.tasks.spawn(cutter.run(queue));
        let result = self.batches(batches, &mut start.progress).await;
        // A failing cutter closes the queue; its error is the job's.
        cutter.abort();
        let cut = cutter.await;
        result?;
        match cut {
            Ok(cut) => cut,
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Runs what the cutter cuts.
    async fn batches(&mut self, mut batches: mpsc::Receiver<PlannedBatch>, progress: &mut Progress) -> anyhow::Result<()> {
        let mut mode = self.mode.clone();
        loop {
            let stop_now = |mode: &mut watch::Receiver<Mode>, gracefully: bool| *mode.borrow_and_update() == Mode::Stop && !gracefully;
            if stop_now(&mut mode, self.settings.stop_gracefully) {
                return Ok(());
            }
            let planned = tokio::select! {
                biased;
                changed = mode.changed(), if !self.settings.stop_gracefully => match changed {
                    Ok(()) => continue,
                    Err(_) => return Ok(()),
                },
                planned = batches.recv() => planned,
            };
            let Some(planned) = planned else { return Ok(()) };
            if !self.batch(&planned, progress, false).await? || planned.end.is_some() {
                return Ok(());
            }
        }
    }

    // === Start ===

    /// Connects every source; waits while brokers are away. `None` when the job was stopped meanwhile.
    async fn connect(&mut self) -> anyhow::Result<Option<Vec<Arc<Source>>>> {
        let mut sources = Vec::new();
        for (stream, spec) in self.program.sources().into_iter().enumerate() {
            let cluster = self.cluster.clone();
            let name = spec.kafka("bootstrap.servers").unwrap_or_default().to_owned();
            let place = self.place(stream, &spec.name);
            let share = self.share;
            let connect = move || {
                let (cluster, spec, place) = (cluster.clone(), spec.clone(), place.clone());
                async move { Ok(Arc::new(Source::connect(cluster.as_ref(), spec, Some(place)).await?.shared(share))) }.boxed()
            };
            match self.patiently(&no_broker(&name), connect).await? {
                Some(source) => sources.push(source),
                None => return Ok(None),
            }
        }
        Ok(Some(sources))
    }

    /// What a local log needs to know.
    fn place(&self, stream: usize, source: &str) -> Place {
        Place {
            job: self.job.clone(),
            source: source.into(),
            stream,
            folder: self.checkpoint.received(source),
            checkpoint: self.checkpoint.location().to_owned(),
            settings: self.settings.clone(),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
            monitor: self.monitor.clone(),
        }
    }

    /// Finds out where the job stands. `None` when it has nothing to do any more, or was stopped meanwhile.
    async fn restore(&mut self, sources: &[Arc<Source>]) -> anyhow::Result<Option<Start>> {
        let Some(mut loaded) = self.ask(|place| async move { place.load().await }.boxed()).await? else { return Ok(None) };
        let (restore, batches, discard) = match decide(&loaded.facts) {
            Decision::Refuse(reason) => {
                anyhow::bail!(
                    "checkpoint `{}` cannot be used: {reason}. Restore it from a savepoint, or give the job another one",
                    self.checkpoint.location()
                )
            }
            Decision::Fresh => (None, vec![], vec![]),
            Decision::Continue { restore, discard } => (restore, vec![], discard),
            Decision::Rerun { restore, batches, discard } => (restore, batches, discard),
        };
        debug_assert_eq!(restore, loaded.commit.as_ref().map(|(commit, _)| commit.id));
        let metadata = match loaded.metadata.take() {
            Some(metadata) => self.known(metadata, sources, &mut loaded).await?,
            None => self.fresh(sources).await?,
        };
        let Some(metadata) = metadata else { return Ok(None) };
        for entry in discard {
            let what = match (entry, restore) {
                (Discard::Definition(_), _) => "its batch has not run and is cut anew".to_owned(),
                (Discard::Commit(_), Some(before)) => format!("going on from commits/{before}; what came after it runs again"),
                (Discard::Commit(_), None) => "its batch runs again".to_owned(),
            };
            warn!(job = %self.job, %entry, "a checkpoint entry is damaged: {what}");
            if self.ask(move |place| async move { place.discard(entry).await }.boxed()).await?.is_none() {
                return Ok(None);
            }
        }
        let (mut positions, state, mut totals, mut last_ms): (Vec<Positions>, _, _, _) = match &loaded.commit {
            None => (metadata.sources.iter().map(|source| source.starts.clone()).collect(), Bytes::new(), Totals::default(), None),
            Some((commit, state)) => (commit.next.clone(), state.clone(), commit.totals, Some(commit.time_ms)),
        };
        if let Some((commit, _)) = &loaded.commit {
            self.monitor.restored(commit.totals, commit.watermark_ms);
            match commit.end {
                Some(End::Finished) if metadata.read(&positions) && batches.is_empty() => {
                    info!(job = %self.job, "every source was read already");
                    return Ok(None);
                }
                Some(End::Drained) => info!(
                    job = %self.job, batch = commit.id,
                    "the job was drained: its windows are emitted and closed, rows that still come for them are late"
                ),
                _ => {}
            }
            if let Err(error) = self.checkpoint.prune(commit.id, self.settings.checkpoint_retained).await {
                warn!(%error, job = %self.job, "cannot remove old checkpoint entries");
            }
        }
        let mut topics: Vec<TopicIds> = match &loaded.commit {
            Some((commit, _)) if commit.topics.len() == sources.len() => commit.topics.clone(),
            _ => metadata.sources.iter().map(|source| source.topics.clone()).collect(),
        };
        let mut rerun = Vec::new();
        for id in batches {
            let Some(planned) = loaded.planned.get(&id) else { anyhow::bail!("batch {id} is decided upon and not loaded") };
            for (source, ranges) in planned.definition.ranges.iter().enumerate() {
                let Some(positions): Option<&mut Positions> = positions.get_mut(source) else { continue };
                positions.0.extend(ranges.iter().map(|range| (range.topic_partition(), range.until)));
            }
            if planned.topics.len() == sources.len() {
                topics.clone_from(&planned.topics);
            }
            last_ms = Some(planned.definition.time_ms);
            rerun.push(planned.clone());
        }
        let all_read = metadata.read(&positions);
        let next_id = rerun.last().map(|planned| planned.definition.id).or(restore).map_or(0, |id| id + 1);
        totals.batches = totals.batches.max(restore.map_or(0, |id| id + 1));
        let interval_ms = clock::interval_ms(self.settings.batch_interval);
        let pid = || PidRate::new(interval_ms, self.settings.backpressure.clone());
        let progress = Progress {
            checkpoint_id: metadata.checkpoint_id.as_str().into(),
            state,
            totals,
            readers: sources.iter().map(|source| source.reader.clone()).collect(),
            mirrors: Mirror::start(&self.job, &self.settings.offsets.store, &self.cluster, sources, &self.tasks),
            rates: Arc::new(Mutex::new(
                sources
                    .iter()
                    .map(|source| {
                        let limits = source.local().is_none_or(|local| local.takes_limit());
                        Rate { source: source.spec.name.clone(), pid: pid(), latest: 0, limits }
                    })
                    .collect(),
            )),
            sources: sources.to_vec(),
            topics: topics.clone(),
            topic_gone: None,
            newest: rerun.last().map(|planned| planned.definition.id),
            late: Late::default(),
            recent: VecDeque::new(),
        };
        info!(
            job = %self.job, checkpoint = self.checkpoint.location(), next_batch = next_id, run_again = rerun.len(),
            fresh = loaded.commit.is_none() && rerun.is_empty(), "job starts"
        );
        self.monitor.begins(&progress.checkpoint_id, sources.iter().map(|source| source.spec.name.clone()));
        for ((source, next), begun) in sources.iter().zip(&positions).zip(&metadata.sources) {
            let Some(local) = source.local() else { continue };
            // Its only partition.
            let at = |positions: &Positions| positions.0.values().next().copied().unwrap_or(0);
            local.begin(&Resume { start: at(&begun.starts), next: at(next), started_at_ms: metadata.started_at_ms, last_ms });
            if self.settings.backpressure.enabled {
                local.limit(self.settings.backpressure.initial_rate);
            }
        }
        self.program.attach(&progress.mirrors);
        if !self.reset(&progress).await? {
            return Ok(None);
        }
        let sources = sources
            .iter()
            .zip(positions)
            .zip(&metadata.sources)
            .zip(topics)
            .map(|(((source, positions), start), topics)| {
                CutSource::new(source.clone(), positions.0, start.ends.as_ref().map(|ends| ends.0.clone()), topics)
            })
            .collect();
        Ok(Some(Start { sources, rerun, all_read, next_id, last_ms, progress }))
    }

    /// Checks that the checkpoint is this job's, and brings what is in it into the order of the program's sources. Gives the metadata of the
    /// program as it is now, `None` when the job was stopped meanwhile.
    async fn known(&mut self, mut metadata: Metadata, sources: &[Arc<Source>], loaded: &mut Loaded) -> anyhow::Result<Option<Metadata>> {
        let program = Identity::of(&*self.program);
        let checked = metadata.check(self.checkpoint.location(), &self.job, &program, self.settings.ignore_unclaimed_state);
        let differences = checked.map_err(anyhow::Error::msg)?;
        let then: Vec<String> = metadata.sources.iter().map(|source| source.name.clone()).collect();
        let mut starts = Vec::new();
        for source in sources {
            match metadata.sources.iter().find(|start| start.name == source.spec.name) {
                Some(start) => starts.push(start.clone()),
                None => match self.look_up(source).await? {
                    Some(start) => starts.push(start),
                    None => return Ok(None),
                },
            }
        }
        metadata.sources = starts;
        loaded.in_order_of(&metadata.sources, &then);
        if !differences.is_empty() {
            for difference in &differences {
                info!(job = %self.job, %difference, "the program has changed: {}", difference.consequence());
            }
            metadata.fingerprint = program.fingerprint;
            // Before a batch of the changed program: where its new sources begin must not be looked up twice.
            let stored = metadata.clone();
            let put = move |place: Checkpoint| {
                let stored = stored.clone();
                async move { place.put_upgrade(&stored).await }.boxed()
            };
            if self.ask(put).await?.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(metadata))
    }

    /// Where a source begins. `None` when the job was stopped meanwhile.
    async fn look_up(&mut self, source: &Arc<Source>) -> anyhow::Result<Option<SourceStart>> {
        let (source, cluster) = (source.clone(), self.cluster.clone());
        let servers = no_broker(source.spec.kafka("bootstrap.servers").unwrap_or_default());
        let look_up = move || {
            let (source, cluster) = (source.clone(), cluster.clone());
            async move { source.start(cluster.as_ref()).await }.boxed()
        };
        self.patiently(&servers, look_up).await
    }

    async fn fresh(&mut self, sources: &[Arc<Source>]) -> anyhow::Result<Option<Metadata>> {
        let mut starts: Vec<SourceStart> = Vec::new();
        for source in sources {
            match self.look_up(source).await? {
                Some(start) => starts.push(start),
                None => return Ok(None),
            }
        }
        let metadata = Metadata {
            job: self.job.to_string(),
            checkpoint_id: uuid::Uuid::new_v4().simple().to_string(),
            fingerprint: self.program.fingerprint(),
            started_at_ms: self.clock.now_ms(),
            sources: starts,
        };
        let stored = metadata.clone();
        let put = move |place: Checkpoint| {
            let stored = stored.clone();
            async move { place.put_metadata(&stored).await }.boxed()
        };
        Ok(self.ask(put).await?.map(|()| metadata))
    }

    /// Puts the program back to the newest commit. False when the job was stopped meanwhile.
    async fn reset(&mut self, progress: &Progress) -> anyhow::Result<bool> {
        self.program.restore(progress.state.clone())?;
        for definition in self.program.wants() {
            let caught_up = definition.ranges.iter().map(|ranges| vec![false; ranges.len()]).collect();
            let definition_of = (*definition).clone();
            let planned = PlannedBatch { definition: definition_of, caught_up, end: None, topics: Vec::new(), sources: Vec::new() };
            let mut backoff = self.settings.retry_backoff;
            while let Err(error) = self.program.rebuild(definition.clone(), input::open(&progress.readers, &planned)).await {
                if !is_away(&error) && !is_denied(&error) {
                    return Err(error.context(format!("cannot read batch {} again, which a window still needs", definition.id)));
                }
                if !self.wait(&error, &mut backoff).await {
                    return Ok(false);
                }
            }
            self.no_longer_waiting();
        }
        Ok(true)
    }

    // === A batch ===

    /// Runs one batch to its commit. False when the job was stopped before it succeeded.
    async fn batch(&mut self, planned: &PlannedBatch, progress: &mut Progress, mut replay: bool) -> anyhow::Result<bool> {
        let id = planned.definition.id;
        let (clock, mut durations) = (self.clock.clone(), Durations::default());
        let began = clock.monotonic();
        let since = move |began: Duration| u64::try_from((clock.monotonic() - began).as_millis()).unwrap_or(u64::MAX);
        Point::BatchBegun.reach();
        if !replay && !self.store(Entry::Definition(planned)).await? {
            return Ok(false);
        }
        Point::BatchPlanStored.reach();
        durations.wal_commit = since(began);
        let mut attempt = 0;
        let mut backoff = self.settings.retry_backoff;
        let began = self.clock.monotonic();
        let outcome = loop {
            self.monitor.started(id, attempt);
            let error = match self.attempt(planned, progress, replay).await {
                Ok(outcome) => break outcome,
                Err(error) => error,
            };
            replay = true;
            self.monitor.attempt_failed(id, &said(&error));
            if !is_away(&error) && !is_denied(&error) && !self.topic_is_gone(&error, progress) {
                attempt += 1;
                // What it was to read is not there any more.
                let recreated = recreated(self.cluster.as_ref(), &progress.sources, &progress.topics).await;
                // Running it again would only be refused again.
                let hopeless = error.chain().any(|cause| cause.is::<Fenced>() || cause.is::<Overflow>());
                if hopeless || recreated.is_some() || attempt > self.settings.retry_attempts {
                    let error = match recreated {
                        Some(loss) => loss.into(),
                        None => error,
                    };
                    self.monitor.failed(id, &said(&error));
                    let times = if attempt == 1 { "".into() } else { format!(" {attempt} times") };
                    return Err(error.context(format!("batch {id} failed{times}")));
                }
            }
            if !self.wait(&error, &mut backoff).await || !self.reset(progress).await? {
                return Ok(false);
            }
        };
        Point::BatchOutputsWritten.reach();
        durations.add_batch = since(began);
        self.no_longer_waiting();
        progress.topic_gone = None;
        if planned.topics.len() == progress.topics.len() {
            progress.topics.clone_from(&planned.topics);
        }
        let began = self.clock.monotonic();
        let state = self.program.snapshot()?;
        let totals = &mut progress.totals;
        totals.batches += 1;
        totals.rows_in += outcome.rows_in;
        totals.rows_out += outcome.rows_out;
        totals.malformed += outcome.malformed;
        totals.late += outcome.late;
        let next = |ranges: &Vec<super::OffsetRange>| {
            Positions(ranges.iter().map(|range| (range.topic_partition(), range.until)).collect::<BTreeMap<_, _>>())
        };
        let commit = Commit {
            id,
            time_ms: planned.definition.time_ms,
            next: planned.definition.ranges.iter().map(next).collect(),
            watermark_ms: outcome.watermark_ms,
            totals: *totals,
            end: planned.end,
            topics: progress.topics.clone(),
            sources: progress.sources.iter().map(|source| source.spec.name.clone()).collect(),
        };
        if !self.store(Entry::Commit(&commit, &state)).await? {
            return Ok(false);
        }
        Point::BatchCommitStored.reach();
        durations.commit_offsets = since(began);
        progress.state = state;
        self.committed(&commit, &outcome, planned, durations, progress).await;
        Point::BatchApplied.reach();
        Ok(true)
    }

    /// One run of a batch.
    async fn attempt(&mut self, planned: &PlannedBatch, progress: &Progress, replay: bool) -> anyhow::Result<BatchOutcome> {
        let definition = Arc::new(planned.definition.clone());
        let inputs = input::open(&progress.readers, planned);
        let span = || info_span!(parent: None, "engine.batch", job = %self.job, batch = definition.id, time_ms = definition.time_ms, records = definition.count(), replay);
        let (inputs, span) = input::traced(inputs, span).await;
        let batch = BatchContext {
            job: self.job.clone(),
            checkpoint_id: progress.checkpoint_id.clone(),
            newest: progress.newest.map_or(definition.id, |newest| newest.max(definition.id)),
            definition,
            replay,
            last: planned.end.is_some(),
            slot: self.share.map(|share| share.slot),
            span: span.clone(),
            monitor: Some(self.monitor.clone()),
        };
        input::in_process_span(&span, self.program.run(&batch, inputs)).await
    }

    /// What follows a commit; nothing here may fail the job.
    async fn committed(
        &mut self,
        commit: &Commit,
        outcome: &BatchOutcome,
        planned: &PlannedBatch,
        durations: Durations,
        progress: &mut Progress,
    ) {
        for (mirror, next) in progress.mirrors.iter().zip(&commit.next) {
            if let Some(mirror) = mirror {
                mirror.moved(next.0.clone());
            }
        }
        if let Err(error) = self.checkpoint.prune_one(commit.id, self.settings.checkpoint_retained).await {
            warn!(%error, job = %self.job, "cannot remove an old checkpoint entry");
        }
        self.release(planned, progress);
        let (late, now) = (&mut progress.late, self.clock.monotonic());
        late.rows += outcome.late;
        if late.rows > 0 && late.told.is_none_or(|told| now - told >= LATE_PERIOD) {
            warn!(
                job = %self.job, rows = late.rows, batch = commit.id,
                "rows came after their windows were closed and were left out; a longer delay in WATERMARK FOR or a longer table.exec.source.idle-timeout waits for them"
            );
            *late = Late { rows: 0, told: Some(now) };
        }
        let Some(view) = self.monitor.completed_batch(commit.id, outcome, commit.totals, durations) else { return };
        let now_ms = view.ended_ms.unwrap_or(view.submitted_ms);
        if self.settings.backpressure.enabled {
            let (processing, scheduling) = (view.processing_ms().unwrap_or(0), view.scheduling_delay_ms().unwrap_or(0));
            for (rate, ranges) in progress.rates.lock().iter_mut().zip(&planned.definition.ranges).filter(|(rate, _)| rate.limits) {
                let elements = ranges.iter().map(super::OffsetRange::count).sum();
                let limit = rate.pid.compute(now_ms, elements, processing.cast_signed(), scheduling.cast_signed());
                if let Some(limit) = limit {
                    rate.latest = limit as i64;
                }
            }
            for (source, rate) in progress.sources.iter().zip(progress.rates.lock().iter()) {
                if let Some(local) = source.local()
                    && rate.latest > 0
                {
                    local.limit(Some(rate.latest.unsigned_abs()));
                }
            }
            self.show_rates(&progress.rates);
        }
    }

    /// Tells local logs what no batch will read again: not the next ones, not windows after a restart, and not those batches that a
    /// damaged newest commit would have run again.
    fn release(&self, planned: &PlannedBatch, progress: &mut Progress) {
        if progress.sources.iter().all(|source| source.local().is_none()) {
            return;
        }
        progress.recent.push_back(Arc::new(planned.definition.clone()));
        while progress.recent.len() as u64 > self.settings.checkpoint_retained {
            progress.recent.pop_front();
        }
        let wanted = self.program.wants();
        for (n, source) in progress.sources.iter().enumerate() {
            let Some(local) = source.local() else { continue };
            let range = |definition: &Arc<BatchDefinition>| definition.ranges.get(n).and_then(|ranges| ranges.first()).cloned();
            let Some(processed) = range(&progress.recent[progress.recent.len() - 1]).map(|range| range.until) else { continue };
            let wanted = wanted.iter().filter_map(range).map(|range| range.from).min().unwrap_or(processed).min(processed);
            // After a restart the first of them are not known yet.
            let all = progress.recent.front().is_some_and(|oldest| oldest.id == 0)
                || progress.recent.len() as u64 == self.settings.checkpoint_retained;
            let oldest = progress.recent.iter().filter_map(range).map(|range| range.from).min();
            let replayed = if all { oldest.unwrap_or(wanted).min(wanted) } else { i64::MIN };
            local.release(Released { processed, wanted, replayed });
        }
    }

    /// The limits that the next batch is cut by.
    fn show_rates(&self, rates: &Rates) {
        let initial = self.settings.backpressure.initial_rate;
        let limit = |rate: &Rate| u64::try_from(rate.latest).ok().filter(|rate| *rate > 0).or(initial);
        self.monitor.set_rate_limits(
            rates.lock().iter().filter(|rate| rate.limits).filter_map(|rate| Some((rate.source.clone(), limit(rate)?))).collect(),
        );
    }

    // === Patience ===

    /// Puts a checkpoint entry; waits while the store does not answer. False when the job was stopped meanwhile.
    async fn store(&mut self, entry: Entry<'_>) -> anyhow::Result<bool> {
        let mut backoff = self.settings.retry_backoff;
        let mut failed = false;
        loop {
            let put = match entry {
                Entry::Definition(planned) => self.checkpoint.put_definition(planned).await,
                Entry::Commit(commit, state) => self.checkpoint.put_commit(commit, state).await,
            };
            match put {
                Ok(()) => {
                    self.no_longer_waiting();
                    if failed && let Err(error) = self.checkpoint.sweep().await {
                        warn!(%error, job = %self.job, "cannot remove what failed puts have left");
                    }
                    return Ok(true);
                }
                Err(error) if error.retryable() => {
                    failed = true;
                    if !self.wait(&error.into(), &mut backoff).await {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks the checkpoint until it answers. `None` when the job was stopped meanwhile.
    async fn ask<T: Send + 'static>(
        &mut self,
        ask: impl Fn(Checkpoint) -> BoxFuture<'static, Result<T, CheckpointError>> + Send,
    ) -> anyhow::Result<Option<T>> {
        let place = self.checkpoint.clone();
        let no_answer = format!("the checkpoint at {} does not answer", place.location());
        let attempt = move || {
            let answer = ask(place.clone());
            async move { Ok(answer.await?) }.boxed()
        };
        self.patiently(&no_answer, attempt).await
    }

    /// Repeats until it succeeds, waiting while the other side is away. `None` when the job was stopped meanwhile.
    async fn patiently<T>(
        &mut self,
        no_answer: &str,
        mut attempt: impl FnMut() -> BoxFuture<'static, anyhow::Result<T>> + Send,
    ) -> anyhow::Result<Option<T>> {
        let mut backoff = self.settings.retry_backoff.min(Duration::from_millis(500));
        let monitor = self.monitor.clone();
        loop {
            let mut mode = self.mode.clone();
            let done = tokio::select! {
                biased;
                // A drain goes on: what it is to read and emit is not known before the start.
                _ = mode.wait_for(|mode| *mode == Mode::Stop) => return Ok(None),
                done = or_say(&monitor, no_answer, attempt()) => done,
            };
            match done {
                Ok(done) => {
                    self.no_longer_waiting();
                    return Ok(Some(done));
                }
                Err(error) if is_away(&error) => {
                    if !self.wait(&error, &mut backoff).await {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A topic that was there when the job began is missing, not yet for too long.
    fn topic_is_gone(&self, error: &anyhow::Error, progress: &mut Progress) -> bool {
        let missing = error.chain().find_map(|cause| match cause.downcast_ref() {
            Some(KafkaError::UnknownTopic(topic)) => Some(topic),
            _ => None,
        });
        let read = |topic: &String| progress.sources.iter().any(|source| source.spec.topics.contains(topic));
        if !missing.is_some_and(read) {
            return false;
        }
        let now = self.clock.monotonic();
        now - *progress.topic_gone.get_or_insert(now) < self.settings.topic_missing_timeout
    }

    /// Waits before the next attempt; says so once. False when the job is to stop.
    async fn wait(&mut self, error: &anyhow::Error, backoff: &mut Duration) -> bool {
        if self.monitor.waiting(BATCHES, said(error)) {
            warn!(job = %self.job, error = said(error), "waiting to try again; nothing is lost");
        }
        let stopped = tokio::time::timeout(*backoff, self.mode.wait_for(|mode| *mode == Mode::Stop)).await.is_ok();
        *backoff = (*backoff * 2).min(RETRY_WAIT_MAX);
        !stopped
    }

    fn no_longer_waiting(&self) {
        if self.monitor.not_waiting(BATCHES) {
            info!(job = %self.job, "goes on");
        }
    }
}

/// What is put while a batch runs.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Definition(&'a PlannedBatch),
    Commit(&'a Commit, &'a Bytes),
}

/// Shows what is waited for when no answer comes for a while.
async fn or_say<T>(monitor: &Monitor, no_answer: &str, attempt: BoxFuture<'static, T>) -> T {
    tokio::pin!(attempt);
    match tokio::time::timeout(NO_ANSWER, &mut attempt).await {
        Ok(done) => done,
        Err(_) => {
            if monitor.waiting(BATCHES, no_answer.to_owned()) {
                warn!("{no_answer}; waiting, nothing is lost");
            }
            attempt.await
        }
    }
}

/// A source's topic that is no longer the one that the offsets belong to.
async fn recreated(cluster: &dyn Cluster, sources: &[Arc<Source>], topics: &[TopicIds]) -> Option<DataLoss> {
    for (source, read) in sources.iter().zip(topics) {
        // Without an answer there is no ground to say so.
        let now = source.topic_ids(cluster).await.ok()?;
        if let Some(loss) = source.recreated(read, &now) {
            return Some(loss);
        }
    }
    None
}

fn no_broker(servers: &str) -> String {
    format!("no Kafka broker answers at {servers}")
}

/// Where a job begins.
struct Start {
    sources: Vec<CutSource>,
    /// Batches that may have run before, to be run again.
    rerun: Vec<PlannedBatch>,
    /// Every source is bounded, and read when these have run.
    all_read: bool,
    next_id: u64,
    last_ms: Option<i64>,
    progress: Progress,
}

/// The brokers do not allow it, or not any more: it can be granted again.
fn is_denied(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(KafkaError::Auth(_))))
}

/// The other side does not answer at the moment; nothing is wrong with the job.
fn is_away(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<KafkaError>().is_some_and(KafkaError::retryable)
            || cause.downcast_ref::<CheckpointError>().is_some_and(CheckpointError::retryable)
            || matches!(cause.downcast_ref(), Some(OffsetError::Away { .. } | OffsetError::InUse { .. }))
    })
}
