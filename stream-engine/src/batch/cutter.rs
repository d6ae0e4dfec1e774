//! Cuts batches: waits for the tick, asks the brokers how far their partitions reach, takes what the limits allow.
//!
//! Runs beside the runner and feeds it through a bounded queue, so that a batch which takes longer than the interval
//! shows as scheduling delay. Is the queue full, no batch is cut until there is room; the next one covers the missed time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use service_kit::kafka::{Bounds, KafkaError, TopicPartition};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    BatchDefinition,
    clock::{self, Clock},
    range::{self, Limits},
    rate::PidRate,
};
use crate::commit::{End, PlannedBatch, TopicIds};
use crate::job::{JobSettings, JobState, Monitor, Reach};
use crate::source::{Cluster, DataLoss, Source};

/// What a job should be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Run,
    /// Cut nothing; what is cut still runs.
    Pause,
    /// Read to the end of the sources as they are now, emit everything, stop.
    Drain,
    /// Finish the running batch, stop.
    Stop,
}

/// Partitions are looked up at most this often.
const PARTITIONS_REFRESH: Duration = Duration::from_secs(1);
/// How long a position may lie beyond the end of its partition: a new leader's high watermark lags for a moment.
const BEYOND_END_GRACE: Duration = Duration::from_secs(30);
/// What is not answered for this long is shown as waiting.
pub(super) const NO_ANSWER: Duration = Duration::from_secs(5);
/// Who waits, in the monitor.
const SOURCES: &str = "sources";
/// First and longest wait between attempts to reach a broker that is away.
const AWAY_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The backpressure limit of each source: the runner writes, the cutter reads.
pub(super) type Rates = Arc<Mutex<Vec<Rate>>>;

pub(super) struct Rate {
    pub(super) source: String,
    pub(super) pid: PidRate,
    /// Whole records per second, as Spark keeps it; 0 before the first estimate.
    pub(super) latest: i64,
    /// A local log may have no rate to limit.
    pub(super) limits: bool,
}

pub(super) struct Cutter {
    pub(super) sources: Vec<CutSource>,
    pub(super) settings: JobSettings,
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) rates: Rates,
    pub(super) next_id: u64,
    /// Time of the newest batch.
    pub(super) last_ms: Option<i64>,
    pub(super) mode: watch::Receiver<Mode>,
}

pub(super) struct CutSource {
    pub(super) source: Arc<Source>,
    pub(super) positions: BTreeMap<TopicPartition, i64>,
    /// Where the source ends, when it is bounded; its partitions are fixed then.
    pub(super) ends: Option<BTreeMap<TopicPartition, i64>>,
    /// The topics that the positions belong to.
    pub(super) topics: TopicIds,
    refreshed_at_ms: Option<i64>,
    beyond_end_since_ms: Option<i64>,
}

impl CutSource {
    pub(super) fn new(
        source: Arc<Source>,
        positions: BTreeMap<TopicPartition, i64>,
        ends: Option<BTreeMap<TopicPartition, i64>>,
        topics: TopicIds,
    ) -> Self {
        Self { source, positions, ends, topics, refreshed_at_ms: None, beyond_end_since_ms: None }
    }

    fn at_end(&self) -> bool {
        self.ends
            .as_ref()
            .is_some_and(|ends| ends.iter().all(|(partition, end)| self.positions.get(partition).is_none_or(|position| position >= end)))
    }
}

impl Cutter {
    /// Cuts until the mode or the end of every source stops it.
    pub(super) async fn run(mut self, queue: mpsc::Sender<PlannedBatch>) -> anyhow::Result<()> {
        let interval = self.settings.batch_interval;
        let bounded = !self.sources.is_empty() && self.sources.iter().all(|source| source.ends.is_some());
        // A bounded job without a rate has no reason to wait for ticks.
        let limited = self.settings.max_rate_per_partition.is_some() || self.settings.backpressure.enabled;
        let paced = !bounded || limited;
        let started_ms = self.clock.now_ms();
        loop {
            let mode = *self.mode.borrow_and_update();
            match mode {
                Mode::Stop => return Ok(()),
                Mode::Pause => {
                    self.monitor.set_state(JobState::Paused);
                    if self.mode.changed().await.is_err() {
                        return Ok(());
                    }
                    if *self.mode.borrow() == Mode::Run {
                        self.monitor.set_state(JobState::Running);
                    }
                    continue;
                }
                Mode::Run | Mode::Drain => {}
            }
            let permit = tokio::select! {
                biased;
                _ = self.mode.changed() => continue,
                permit = queue.reserve() => match permit {
                    Ok(permit) => permit,
                    // The runner is gone; it says why.
                    Err(_) => return Ok(()),
                },
            };
            let mut due_ms = self.last_ms.map_or(i64::MIN, |last| last + clock::interval_ms(interval));
            // A drain waits for its tick too: two batches of one time would be one to a window.
            if paced && !(bounded && self.last_ms.is_none()) {
                due_ms = due_ms.max(clock::tick_after(started_ms, interval));
                tokio::select! {
                    biased;
                    _ = self.mode.changed() => continue,
                    () = self.clock.sleep_until(due_ms) => {}
                }
            }
            let Some((planned, reach)) = self.cut_when_possible(mode).await? else { continue };
            let end = planned.end;
            self.monitor.submitted(&planned, Some(reach));
            permit.send(planned);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// Cuts a batch; waits while the brokers are away. `None` when the mode changed meanwhile.
    async fn cut_when_possible(&mut self, mode: Mode) -> anyhow::Result<Option<(PlannedBatch, Reach)>> {
        let clock = self.clock.clone();
        let mut backoff = AWAY_BACKOFF.0;
        let monitor = self.monitor.clone();
        let servers = self.servers();
        let mut gone_since = None;
        loop {
            let mut changed = self.mode.clone();
            let result = {
                let cut = self.cut(mode);
                tokio::pin!(cut);
                let mut no_answer = false;
                loop {
                    tokio::select! {
                        biased;
                        _ = changed.changed() => return Ok(None),
                        result = &mut cut => break result,
                        () = tokio::time::sleep(NO_ANSWER), if !no_answer => {
                            no_answer = true;
                            let what = if servers.is_empty() { "the sources do not answer".into() } else { format!("no Kafka broker answers at {servers}") };
                            if monitor.waiting(SOURCES, what.clone()) {
                                warn!("{what}; waiting, nothing is lost");
                            }
                        }
                    }
                }
            };
            let error = match result {
                Ok(cut) => {
                    if monitor.not_waiting(SOURCES) {
                        info!("batches are cut again");
                    }
                    return Ok(Some(cut));
                }
                Err(error) => error,
            };
            match error.downcast_ref::<KafkaError>() {
                // What is not granted may be granted again.
                Some(kafka) if kafka.retryable() || matches!(kafka, KafkaError::Auth(_)) => {}
                Some(KafkaError::UnknownTopic(_)) => {
                    let now = clock.monotonic();
                    let gone = now - *gone_since.get_or_insert(now);
                    let bound = self.settings.topic_missing_timeout;
                    if gone >= bound {
                        let waited = humantime::format_duration(bound);
                        return Err(error.context(format!("a topic was missing for {waited} (topic.missing.timeout)")));
                    }
                    backoff = backoff.min(bound.saturating_sub(gone)).max(AWAY_BACKOFF.0);
                }
                _ => return Err(error),
            }
            if monitor.waiting(SOURCES, format!("{error:#}")) {
                warn!(error = format!("{error:#}"), "cannot cut a batch; waiting, nothing is lost");
            }
            tokio::select! {
                biased;
                _ = changed.changed() => return Ok(None),
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(AWAY_BACKOFF.1);
        }
    }

    fn servers(&self) -> String {
        let mut servers: Vec<&str> = self.sources.iter().filter_map(|source| source.source.spec.kafka("bootstrap.servers")).collect();
        servers.sort_unstable();
        servers.dedup();
        servers.join(", ")
    }

    async fn cut(&mut self, mode: Mode) -> anyhow::Result<(PlannedBatch, Reach)> {
        let interval = self.settings.batch_interval;
        let asked = self.clock.monotonic();
        let mut bounds = Vec::with_capacity(self.sources.len());
        for source in &mut self.sources {
            // A drain reads everything that was received, and nothing is received after it.
            if mode == Mode::Drain
                && let Some(local) = source.source.local()
            {
                local.stop().await;
            }
            bounds.push(Self::look(source, self.cluster.as_ref(), &self.settings, self.clock.now_ms()).await?);
        }
        let took = self.clock.monotonic() - asked;
        // The tick is taken after the brokers have answered: a batch holds what arrived before its time.
        let time_ms = clock::tick_at(self.clock.now_ms(), interval).max(self.last_ms.unwrap_or(i64::MIN));
        let rates: Vec<Option<f64>> = {
            let rates = self.rates.lock();
            let initial = self.settings.backpressure.initial_rate.map(|rate| rate as f64);
            let limit = |rate: &Rate| if rate.latest > 0 { Some(rate.latest as f64) } else { initial };
            rates.iter().map(|rate| if self.settings.backpressure.enabled { limit(rate) } else { None }).collect()
        };
        let (mut ranges, mut caught_up) = (Vec::new(), Vec::new());
        for (n, source) in self.sources.iter_mut().enumerate() {
            let limits = match source.source.local() {
                _ if mode == Mode::Drain => Limits::none(interval),
                // Its rate is limited where it takes records in.
                Some(local) => Limits { records_max: local.batch_max().or(self.settings.records_max), ..Limits::none(interval) },
                None => Limits::new(&self.settings, rates.get(n).copied().flatten()),
            };
            let cut = range::cut(&source.positions, &bounds[n], source.ends.as_ref(), &limits);
            for (range, _) in &cut {
                source.positions.insert(range.topic_partition(), range.until);
            }
            let (source_ranges, source_caught_up): (Vec<_>, Vec<_>) = cut.into_iter().unzip();
            ranges.push(source_ranges);
            caught_up.push(source_caught_up);
        }
        let end = if !self.sources.is_empty() && self.sources.iter().all(CutSource::at_end) {
            Some(End::Finished)
        } else if mode == Mode::Drain {
            Some(End::Drained)
        } else {
            None
        };
        let definition = BatchDefinition { id: self.next_id, time_ms, ranges };
        self.next_id += 1;
        self.last_ms = Some(time_ms);
        let topics = self.sources.iter().map(|source| source.topics.clone()).collect();
        let sources = self.sources.iter().map(|source| source.source.spec.name.clone()).collect();
        let ends =
            bounds.into_iter().map(|of_source| of_source.into_iter().map(|(partition, bounds)| (partition, bounds.latest)).collect());
        let reach = Reach { ends: ends.collect(), took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) };
        Ok((PlannedBatch { definition, caught_up, end, topics, sources }, reach))
    }

    /// How far the partitions reach; takes in new partitions, and checks that what is still to be read is there.
    async fn look(
        source: &mut CutSource,
        cluster: &dyn Cluster,
        settings: &JobSettings,
        now_ms: i64,
    ) -> anyhow::Result<BTreeMap<TopicPartition, Bounds>> {
        let refresh_due = source.refreshed_at_ms.is_none_or(|at| now_ms - at >= clock::interval_ms(PARTITIONS_REFRESH));
        let mut added = BTreeSet::new();
        if refresh_due {
            let ids = source.source.topic_ids(cluster).await?;
            if let Some(loss) = source.source.recreated(&source.topics, &ids) {
                // The end of a bounded source was an offset of the old topic.
                if settings.fail_on_data_loss || source.ends.is_some() {
                    return Err(loss.into());
                }
                warn!(%loss, "data loss is accepted (failOnDataLoss=false)");
                let DataLoss::Recreated { topic, .. } = &loss else { return Err(loss.into()) };
                source.positions.retain(|partition, _| *partition.topic != **topic);
            }
            source.topics.extend(ids);
        }
        if source.ends.is_none() && refresh_due {
            for partition in source.source.partitions().await? {
                if !source.positions.contains_key(&partition) {
                    added.insert(partition);
                }
            }
        }
        if refresh_due {
            source.refreshed_at_ms = Some(now_ms);
        }
        let wanted: Vec<TopicPartition> = source.positions.keys().cloned().chain(added.iter().cloned()).collect();
        let bounds = source.source.reader.bounds(&wanted).await?;
        for partition in added {
            if let Some(bounds) = bounds.get(&partition) {
                info!(source = source.source.spec.name, %partition, from = bounds.earliest, "new partition");
                source.positions.insert(partition, bounds.earliest);
            }
        }
        let mut beyond_end = false;
        for (partition, position) in &mut source.positions {
            // A bounded source does not touch partitions that it has read to the end.
            if source.ends.as_ref().and_then(|ends| ends.get(partition)).is_some_and(|end| *position >= *end) {
                continue;
            }
            let found = bounds.get(partition);
            let Err(loss) = source.source.check(partition, *position, found) else { continue };
            if matches!(loss, DataLoss::BeyondEnd { .. }) {
                beyond_end = true;
                let since = *source.beyond_end_since_ms.get_or_insert(now_ms);
                if now_ms - since < clock::interval_ms(BEYOND_END_GRACE) {
                    continue;
                }
            }
            if settings.fail_on_data_loss {
                return Err(loss.into());
            }
            let earliest = found.map_or(*position, |bounds| bounds.earliest);
            warn!(%loss, going_on_at = earliest, "data loss is accepted (failOnDataLoss=false)");
            *position = earliest;
        }
        if !beyond_end {
            source.beyond_end_since_ms = None;
        }
        Ok(bounds)
    }
}
