//! Looks at Kafka in the background: is it there, and how are its brokers, replicas and groups. What it sees are gauges.
//!
//! While Kafka is away it asks every second; the gate refuses work meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use service_kit::{Latch, kafka::KafkaError};
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    connect::Connection,
    error::BridgeError,
    gate::Gate,
    lag::{Lag, Pace, Status},
    topics::{ReplicaState, Topics},
};

/// How often Kafka is asked while it is away.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);
/// How long Kafka has to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Monitor {
    pub(crate) kafka: Connection,
    pub(crate) gate: Arc<Gate>,
    pub(crate) topics: Topics,
    pub(crate) lag: Lag,
    pub(crate) config: config::Monitor,
    pub(crate) seen: Arc<Mutex<Seen>>,
}

/// What was seen last, for the status page.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) brokers: usize,
    pub(crate) topics: usize,
    pub(crate) replicas: ReplicaState,
}

/// What must be known from round to round.
#[derive(Default)]
struct Memory {
    /// What has gauges: partitions of groups, groups.
    partitions: Series<(String, Arc<str>, i32)>,
    groups: Series<String>,
    /// Kafka is away since then.
    away_since: Option<Instant>,
    /// The last look was not complete.
    partial: bool,
}

impl Monitor {
    /// Runs until the shutdown. `ready` is released when Kafka answers for the first time.
    pub(crate) async fn run(self, shutdown: CancellationToken, ready: Latch) {
        let mut memory = Memory::default();
        let mut ready = Some(ready);
        loop {
            let next = select! {
                // A look is many questions, and each may wait for Kafka longer than the process has to end.
                () = shutdown.cancelled() => return,
                next = self.round(&mut memory, &mut ready) => next,
            };
            select! {
                () = shutdown.cancelled() => return,
                () = sleep(next) => {}
                () = self.gate.suspected() => {}
            }
        }
    }

    /// Asks and looks once; gives the time until the next look.
    async fn round(&self, memory: &mut Memory, ready: &mut Option<Latch>) -> Duration {
        if let Err(error) = self.probe().await {
            self.away(memory, &error);
            return AWAY_INTERVAL;
        }
        if let Some(ready) = ready.take() {
            ready.release();
        }
        self.back(memory);
        match self.look(memory).await {
            // The probe decides whether Kafka is away; one question may fail for its own reasons.
            Err(error) if !std::mem::replace(&mut memory.partial, true) => {
                tracing::warn!(%error, "cluster could not be looked at in full; this is told once until it can");
            }
            Err(error) => tracing::debug!(%error, "cluster could not be looked at in full"),
            Ok(()) if std::mem::take(&mut memory.partial) => tracing::info!("cluster is looked at in full again"),
            Ok(()) => {}
        }
        self.config.interval
    }

    async fn probe(&self) -> Result<(), KafkaError> {
        let probed = timeout(PROBE_TIMEOUT, async { self.kafka.admin().await?.cluster().await }).await;
        let cluster = probed.unwrap_or_else(|_| {
            Err(KafkaError::Unreachable(format!("no answer from {} within {PROBE_TIMEOUT:?}", self.kafka.servers())))
        })?;
        self.seen.lock().brokers = cluster.brokers.len();
        Ok(())
    }

    fn back(&self, memory: &mut Memory) {
        metrics::gauge!("millrace_bridge_kafka_available").set(1.0);
        self.gate.set_broker(None);
        if let Some(since) = memory.away_since.take() {
            tracing::info!(away = ?since.elapsed(), "kafka is back, requests are taken again");
        }
    }

    fn away(&self, memory: &mut Memory, error: &KafkaError) {
        metrics::gauge!("millrace_bridge_kafka_available").set(0.0);
        self.gate.set_broker(Some(error.to_string()));
        if memory.away_since.is_none() {
            memory.away_since = Some(Instant::now());
            tracing::warn!(%error, "kafka is away, requests are refused until it is back");
        }
    }

    async fn look(&self, memory: &mut Memory) -> Result<(), BridgeError> {
        let topics = self.topics.list().await?;
        let learnt = self.topics.learn_min_isr(&topics).await;
        let brokers = self.topics.brokers().await?;
        {
            let mut seen = self.seen.lock();
            seen.topics = topics.len();
            seen.replicas = ReplicaState::of(&topics);
        }
        let health = &brokers.health;
        metrics::gauge!("millrace_bridge_under_replicated_partitions").set(f64::from(health.under_replicated));
        metrics::gauge!("millrace_bridge_offline_partitions").set(f64::from(health.offline));
        metrics::gauge!("millrace_bridge_under_min_isr_partitions").set(f64::from(health.under_min_isr));
        metrics::gauge!("millrace_bridge_not_preferred_leader_partitions").set(f64::from(health.not_preferred));
        metrics::gauge!("millrace_bridge_brokers").set(brokers.cluster.brokers.len() as f64);

        for (id, load) in &brokers.load {
            let broker = id.to_string();
            metrics::gauge!("millrace_bridge_broker_partitions", "broker" => broker.clone()).set(f64::from(load.partitions));
            metrics::gauge!("millrace_bridge_broker_leaders", "broker" => broker.clone()).set(f64::from(load.leaders));
            let balance = health.balance.get(id).copied().unwrap_or_default();
            metrics::gauge!("millrace_bridge_broker_leader_imbalance_ratio", "broker" => broker.clone()).set(balance.imbalance());
            if let Some(bytes) = load.log_bytes {
                metrics::gauge!("millrace_bridge_broker_log_bytes", "broker" => broker).set(bytes as f64);
            }
        }
        self.measure_lag(memory).await?;
        learnt
    }

    async fn measure_lag(&self, memory: &mut Memory) -> Result<(), BridgeError> {
        let mut partitions = BTreeMap::new();
        let mut groups = BTreeMap::new();
        let mut by_status = BTreeMap::from([(Status::Ok, 0), (Status::Warn, 0), (Status::Error, 0)]);
        for group in self.lag.all().await? {
            for row in &group.partitions {
                if let Some(lag) = row.lag() {
                    partitions.insert((group.group.id.clone(), Arc::clone(&row.partition.topic), row.partition.partition), lag);
                }
            }
            if let Some(state) = group.state {
                *by_status.entry(state.status).or_default() += 1;
                groups.insert(group.group.id, (state.status, state.pace));
            }
        }
        let max = self.config.lag_series_max;
        let left_out = memory.partitions.show(&partitions, max, |(group, topic, partition), lag| {
            metrics::gauge!("millrace_bridge_group_lag_records", "group" => group.clone(), "topic" => topic.to_string(), "partition" => partition.to_string())
                .set(lag.copied().unwrap_or(0) as f64);
        });
        metrics::gauge!("millrace_bridge_group_lag_series_left_out").set(left_out as f64);
        // How a group moves is not always known: NaN then. Who alerts on it sees neither a lag nor none.
        let unknown = |value: Option<f64>| value.unwrap_or(f64::NAN);
        memory.groups.show(&groups, max, |group, found| {
            let (status, pace) = found.copied().unwrap_or((Status::NotFound, Pace::default()));
            metrics::gauge!("millrace_bridge_group_status", "group" => group.clone()).set(f64::from(status as u8));
            metrics::gauge!("millrace_bridge_group_lag_seconds", "group" => group.clone()).set(unknown(pace.lag_seconds));
            metrics::gauge!("millrace_bridge_group_lag_trend_records_per_second", "group" => group.clone()).set(unknown(pace.trend));
            metrics::gauge!("millrace_bridge_group_catch_up_seconds", "group" => group.clone()).set(unknown(pace.catch_up_seconds));
        });
        for (status, count) in by_status {
            metrics::gauge!("millrace_bridge_groups", "status" => status.name()).set(f64::from(count));
        }
        Ok(())
    }
}

/// Things that have a gauge. One that has it keeps it while it is there; new ones get one while there is room.
struct Series<K>(BTreeSet<K>);

impl<K> Default for Series<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Ord + Clone> Series<K> {
    /// Sets a gauge by `set`, with `None` once for what is gone; gives how many had no room.
    fn show<V>(&mut self, found: &BTreeMap<K, V>, max: usize, set: impl Fn(&K, Option<&V>)) -> usize {
        self.0.retain(|key| {
            let kept = found.contains_key(key);
            if !kept {
                set(key, None);
            }
            kept
        });
        for key in found.keys() {
            if self.0.len() >= max {
                break;
            }
            self.0.insert(key.clone());
        }
        self.0.iter().for_each(|key| set(key, found.get(key)));
        found.len() - self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use service_kit::Readiness;

    use super::*;
    use crate::testing::{self, FakeKafka, MemoryOffsets};

    #[test]
    fn gauges_are_bounded_and_what_is_gone_is_told_once() {
        let told = RefCell::new(Vec::new());
        let mut series = Series::default();
        let mut show = |found: &[&'static str]| {
            let found = found.iter().map(|key| (*key, ())).collect();
            let left_out = series.show(&found, 2, |key, value| told.borrow_mut().push((*key, value.is_some())));
            (left_out, told.take())
        };
        assert_eq!(show(&["b", "c", "d"]), (1, vec![("b", true), ("c", true)]));
        assert_eq!(show(&["a", "c", "d"]), (1, vec![("b", false), ("a", true), ("c", true)]));
        assert_eq!(show(&[]), (0, vec![("a", false), ("c", false)]));
    }

    #[tokio::test]
    async fn a_question_that_kafka_does_not_answer_does_not_keep_it_from_ending() {
        let kafka = FakeKafka::with_topic("orders", 1);
        kafka.hang();
        let monitor = Monitor {
            kafka: kafka.connection(),
            gate: testing::gate(),
            topics: testing::topics(&kafka),
            lag: testing::lag(&kafka, MemoryOffsets::default()),
            config: config::Monitor::default(),
            seen: Arc::default(),
        };
        let (readiness, shutdown) = (Readiness::default(), CancellationToken::new());
        let running = tokio::spawn(monitor.run(shutdown.clone(), readiness.latch("kafka")));
        let asks = async {
            while kafka.hung() == 0 {
                tokio::task::yield_now().await;
            }
            shutdown.cancel();
            running.await
        };
        assert!(timeout(Duration::from_secs(60), asks).await.is_ok_and(|ended| ended.is_ok()));
    }
}
