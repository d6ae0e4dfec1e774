//! Mirrors a source's progress to a consumer group, so that Kafka's own tools show its lag.
//!
//! Like Spark's `commitAsync`: never waited for, the newest wins, and the checkpoint decides where the two differ.

use std::{collections::BTreeMap, sync::Arc};

use service_kit::kafka::TopicPartition;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Cluster;
use crate::batch::SourceSpec;

/// Hands offsets to a task that commits them, until it is closed. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    newest: watch::Sender<Newest>,
}

#[derive(Default)]
struct Newest {
    offsets: BTreeMap<TopicPartition, i64>,
    closed: bool,
}

impl Mirror {
    pub fn start(cluster: Arc<dyn Cluster>, spec: SourceSpec, group: String, tasks: &TaskTracker) -> Self {
        let (newest, mut changed) = watch::channel(Newest::default());
        tasks.spawn(async move {
            let mut done: BTreeMap<TopicPartition, i64> = BTreeMap::new();
            let mut failing = false;
            let mut closed = false;
            while !closed && changed.changed().await.is_ok() {
                let wanted = {
                    let newest = changed.borrow_and_update();
                    closed = newest.closed;
                    newest.offsets.clone()
                };
                let news: Vec<(TopicPartition, i64)> =
                    wanted.iter().filter(|(p, offset)| done.get(*p) != Some(*offset)).map(|(p, o)| (p.clone(), *o)).collect();
                if news.is_empty() {
                    continue;
                }
                match cluster.commit(&spec, &group, &news).await {
                    Ok(()) => {
                        if failing {
                            info!(group, source = spec.name, "group offsets are mirrored again");
                        }
                        failing = false;
                        done = wanted;
                    }
                    Err(error) => {
                        if !failing {
                            warn!(%error, group, source = spec.name, "cannot mirror offsets to the group; the job goes on, its checkpoint is not concerned");
                        }
                        failing = true;
                    }
                }
            }
        });
        Self { newest }
    }

    /// Next offsets to read. Never waits; an offset below one given before is ignored.
    pub fn commit(&self, offsets: impl IntoIterator<Item = (TopicPartition, i64)>) {
        self.newest.send_modify(|newest| {
            for (partition, offset) in offsets {
                let entry = newest.offsets.entry(partition).or_insert(offset);
                *entry = offset.max(*entry);
            }
        });
    }

    /// Commits what was given, then ends the task; later calls have no effect.
    pub fn close(&self) {
        self.newest.send_modify(|newest| newest.closed = true);
    }
}
