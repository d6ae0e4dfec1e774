//! Writes the progress of a job's sources to where their consumer group has its offsets ([`super::offsets`]).
//!
//! Like Spark's `commitAsync`: never waited for, the newest wins, and the checkpoint decides where the two differ. The stores' contract is met so:
//! what the job writes first may set the group back, for the job's start is decided by then; afterwards offsets only move forward under the group's
//! epoch. Whoever resets the group meanwhile is told of in the log and then written over, as by a consumer that is running.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use service_kit::kafka::TopicPartition;
use service_kit::offsets::{OffsetCommit, OffsetError, OffsetStore};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::offsets::{BOUND, OffsetPlace, know_topics};
use super::{Cluster, Source};
use crate::batch::SourceSpec;

/// How often a write is made again at once when somebody else has written in between.
const COLLISIONS_MAX: usize = 5;
/// All that belongs to one write: some calls to the store and to the brokers.
const WRITE_MAX: Duration = BOUND.saturating_mul(4);

type Offsets = BTreeMap<TopicPartition, i64>;

/// Hands the offsets of one source to the task that writes those of its group, until it is closed. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    source: usize,
    newest: watch::Sender<Newest>,
}

#[derive(Default)]
struct Newest {
    /// By source.
    offsets: BTreeMap<usize, Offsets>,
    closed: bool,
}

impl Newest {
    /// Sources may read the same partition: the group has read what all of them have.
    fn merged(&self) -> Offsets {
        let mut merged = Offsets::new();
        for (partition, offset) in self.offsets.values().flatten() {
            let entry = merged.entry(partition.clone()).or_insert(*offset);
            *entry = (*entry).min(*offset);
        }
        merged
    }
}

impl Mirror {
    /// By source; `None` for those whose offsets are in the checkpoint only.
    pub fn start(
        job: &str,
        place: &OffsetPlace,
        cluster: &Arc<dyn Cluster>,
        sources: &[Arc<Source>],
        tasks: &TaskTracker,
    ) -> Vec<Option<Self>> {
        let mut groups: HashMap<(String, Option<String>), Self> = HashMap::new();
        let mut specs: Vec<(watch::Sender<Newest>, Writer)> = Vec::new();
        let mut mirrors = Vec::new();
        for (n, source) in sources.iter().enumerate() {
            let spec = &source.spec;
            let outside = matches!(place, OffsetPlace::Store(_));
            let group = spec.group.clone().or_else(|| outside.then(|| job.to_owned()));
            let Some(group) = group.filter(|_| source.local().is_none() && *place != OffsetPlace::Checkpoint) else {
                mirrors.push(None);
                continue;
            };
            // In Kafka each cluster has groups of its own.
            let servers = if outside { None } else { spec.kafka("bootstrap.servers").map(str::to_owned) };
            let mirror = groups.entry((group.clone(), servers)).or_insert_with(|| {
                let newest = watch::Sender::new(Newest::default());
                let writer = Writer {
                    job: job.to_owned(),
                    group,
                    place: place.clone(),
                    cluster: cluster.clone(),
                    specs: Vec::new(),
                    store: None,
                    epoch: None,
                    ahead: false,
                };
                specs.push((newest.clone(), writer));
                Self { source: n, newest }
            });
            if let Some((_, writer)) = specs.iter_mut().find(|(newest, _)| newest.same_channel(&mirror.newest)) {
                writer.specs.push(spec.clone());
            }
            mirrors.push(Some(Self { source: n, newest: mirror.newest.clone() }));
        }
        for (newest, writer) in specs {
            tasks.spawn(writer.follow(newest.subscribe()));
        }
        mirrors
    }

    /// Next offsets to read of every partition, as the job has them. Never waits.
    pub fn moved(&self, offsets: Offsets) {
        self.newest.send_modify(|newest| drop(newest.offsets.insert(self.source, offsets)));
    }

    /// Next offsets to read, on the program's own account. Never waits; an offset below one given before is ignored.
    pub fn commit(&self, offsets: impl IntoIterator<Item = (TopicPartition, i64)>) {
        self.newest.send_modify(|newest| {
            let given = newest.offsets.entry(self.source).or_default();
            for (partition, offset) in offsets {
                let entry = given.entry(partition).or_insert(offset);
                *entry = offset.max(*entry);
            }
        });
    }

    /// Writes what was given, then ends the task; later calls have no effect.
    pub fn close(&self) {
        self.newest.send_modify(|newest| newest.closed = true);
    }
}

/// What writes one group.
struct Writer {
    job: String,
    group: String,
    place: OffsetPlace,
    cluster: Arc<dyn Cluster>,
    /// Sources of this group.
    specs: Vec<SourceSpec>,
    /// Once it was opened.
    store: Option<Arc<dyn OffsetStore>>,
    /// The group's, as this process saw it last.
    epoch: Option<u64>,
    /// Somebody was told that the store is ahead of the job.
    ahead: bool,
}

impl Writer {
    async fn follow(mut self, mut changed: watch::Receiver<Newest>) {
        let mut done = Offsets::new();
        let (mut failing, mut closed) = (false, false);
        while !closed && changed.changed().await.is_ok() {
            let wanted = {
                let newest = changed.borrow_and_update();
                closed = newest.closed;
                newest.merged()
            };
            let news: Vec<(TopicPartition, i64)> =
                wanted.iter().filter(|(p, offset)| done.get(*p) != Some(*offset)).map(|(p, o)| (p.clone(), *o)).collect();
            if news.is_empty() {
                continue;
            }
            let written = match tokio::time::timeout(WRITE_MAX, self.write(&wanted, &done, &news)).await {
                Ok(written) => written,
                Err(_) => Err(anyhow::anyhow!("no answer within {} s", WRITE_MAX.as_secs())),
            };
            let outcome = if written.is_ok() { "ok" } else { "failed" };
            metrics::counter!("millrace_engine_offset_commits_total", "job" => self.job.clone(), "outcome" => outcome).increment(1);
            match written {
                Ok(()) => {
                    if failing {
                        info!(job = self.job, group = self.group, store = ?self.place, "offsets are written to the group again");
                    }
                    failing = false;
                    done = wanted;
                }
                Err(error) => {
                    if !failing {
                        warn!(
                            job = self.job, group = self.group, store = ?self.place, error = format!("{error:#}"),
                            "cannot write offsets to the group; the job goes on, its checkpoint is not concerned"
                        );
                    }
                    failing = true;
                }
            }
        }
    }

    async fn write(&mut self, wanted: &Offsets, done: &Offsets, news: &[(TopicPartition, i64)]) -> anyhow::Result<()> {
        let address = match &self.place {
            OffsetPlace::Store(address) => address,
            OffsetPlace::Kafka | OffsetPlace::Checkpoint => {
                let Some(spec) = self.specs.first() else { return Ok(()) };
                return Ok(self.cluster.commit(spec, &self.group, news).await?);
            }
        };
        let store = match &self.store {
            Some(store) => store.clone(),
            None => self.store.insert(self.cluster.offsets(address).await?).clone(),
        };
        // The job's own start, and a topic that was made anew; nothing else goes back.
        let back = done.is_empty() || wanted.iter().any(|(partition, offset)| done.get(partition).is_some_and(|done| offset < done));
        if back {
            for spec in &self.specs {
                know_topics(&*store, self.cluster.as_ref(), spec).await?;
            }
        } else if let Some(epoch) = self.epoch {
            match store.commit(&self.group, epoch, &commits(news.iter().map(|(partition, offset)| (partition, offset)))).await {
                Ok(()) => return Ok(()),
                Err(OffsetError::Fenced { current, .. }) => {
                    warn!(
                        job = self.job, group = self.group, store = ?self.place, epoch = current,
                        "somebody has reset the group; the job stays where it is and writes its own offsets again. To move it, stop it, reset the \
                         group, and start it with a fresh checkpoint"
                    );
                }
                Err(OffsetError::Regressed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.look_and_write(&*store, wanted, back).await
    }

    /// Reads the group and writes what is to be changed.
    async fn look_and_write(&mut self, store: &dyn OffsetStore, wanted: &Offsets, back: bool) -> anyhow::Result<()> {
        let partitions: Vec<TopicPartition> = wanted.keys().cloned().collect();
        let mut collided = None;
        for _ in 0..COLLISIONS_MAX {
            let held = store.get(&self.group, Some(&partitions)).await?;
            self.epoch = Some(held.epoch);
            let stored = |partition: &TopicPartition| held.offsets.get(partition).map(|stored| stored.offset);
            let ahead = wanted.iter().find(|(partition, offset)| stored(partition).is_some_and(|stored| stored > **offset));
            if back && ahead.is_some() {
                let others = wanted.iter().filter(|(partition, offset)| stored(partition) != Some(**offset));
                self.epoch = Some(store.reset(&self.group, &commits(others)).await?);
                info!(job = self.job, group = self.group, store = ?self.place, "the group was ahead of the job and is set back to it");
                return Ok(());
            }
            if let Some((partition, offset)) = ahead
                && !std::mem::replace(&mut self.ahead, true)
            {
                warn!(
                    job = self.job, group = self.group, store = ?self.place, %partition, job_offset = offset, store_offset = stored(partition),
                    "somebody else has moved the group ahead of the job; its offsets are left until the job is there"
                );
            }
            let behind = commits(wanted.iter().filter(|(partition, offset)| stored(partition).is_none_or(|stored| stored < **offset)));
            if behind.is_empty() {
                return Ok(());
            }
            match store.commit(&self.group, held.epoch, &behind).await {
                Ok(()) => return Ok(()),
                Err(error @ (OffsetError::Fenced { .. } | OffsetError::Regressed { .. })) => collided = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(collided.map_or_else(|| anyhow::anyhow!("not written"), Into::into))
    }
}

fn commits<'a>(offsets: impl Iterator<Item = (&'a TopicPartition, &'a i64)>) -> Vec<OffsetCommit> {
    offsets.map(|(partition, offset)| OffsetCommit { partition: partition.clone(), offset: *offset, metadata: String::new() }).collect()
}
