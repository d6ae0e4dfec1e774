//! Looks at Kafka in the background: is it there, and how are its brokers, replicas and groups. What it sees are gauges.
//!
//! While Kafka is away it asks every second; the gate refuses work meanwhile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use service_kit::{
    Latch,
    kafka::{KafkaError, TopicView},
};
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config,
    connect::Connection,
    gate::Gate,
    lag::Lag,
    topics::{MIN_ISR, ReplicaState, Topics},
};

/// How often Kafka is asked while it is away.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);
/// How long Kafka has to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a topic's `min.insync.replicas` is believed.
const MIN_ISR_AGE: Duration = Duration::from_secs(300);

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
    /// Lag gauges that are set, to be zeroed when their partition goes.
    lag_series: HashSet<(String, Arc<str>, i32)>,
    min_isr: HashMap<String, (Instant, u32)>,
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
            tracing::warn!(%error, "kafka is away, requests are answered with 503 until it is back");
        }
    }

    async fn look(&self, memory: &mut Memory) -> Result<(), crate::error::BridgeError> {
        let topics = self.topics.list().await?;
        let replicas = ReplicaState::of(&topics);
        {
            let mut seen = self.seen.lock();
            seen.topics = topics.len();
            seen.replicas = replicas;
        }
        metrics::gauge!("millrace_bridge_under_replicated_partitions").set(f64::from(replicas.under_replicated));
        metrics::gauge!("millrace_bridge_offline_partitions").set(f64::from(replicas.offline));
        metrics::gauge!("millrace_bridge_under_min_isr_partitions").set(f64::from(self.under_min_isr(&topics, memory).await));

        for (id, load) in self.topics.brokers().await?.load {
            let broker = id.to_string();
            metrics::gauge!("millrace_bridge_broker_partitions", "broker" => broker.clone()).set(f64::from(load.partitions));
            metrics::gauge!("millrace_bridge_broker_leaders", "broker" => broker.clone()).set(f64::from(load.leaders));
            if let Some(bytes) = load.log_bytes {
                metrics::gauge!("millrace_bridge_broker_log_bytes", "broker" => broker).set(bytes as f64);
            }
        }
        self.measure_lag(memory).await
    }

    /// Only topics that miss replicas are asked for their setting: a partition with all replicas in its ISR has enough.
    async fn under_min_isr(&self, topics: &[TopicView], memory: &mut Memory) -> u32 {
        let mut under = 0;
        memory.min_isr.retain(|_, (at, _)| at.elapsed() < MIN_ISR_AGE);
        for topic in topics {
            let smallest = topic
                .partitions
                .iter()
                .filter(|partition| partition.isr.len() < partition.replicas.len())
                .map(|partition| partition.isr.len());
            let Some(smallest) = smallest.min() else { continue };
            let known = memory.min_isr.get(&topic.name).map(|(_, min)| *min);
            let min = match known {
                Some(min) => min,
                None => {
                    let config = self.topics.config(&topic.name).await.unwrap_or_default();
                    let value = config.iter().find(|entry| entry.name == MIN_ISR).and_then(|entry| entry.value.as_deref()?.parse().ok());
                    let min: u32 = value.unwrap_or(1);
                    memory.min_isr.insert(topic.name.clone(), (Instant::now(), min));
                    min
                }
            };
            if smallest < min as usize {
                let short = topic.partitions.iter().filter(|partition| partition.isr.len() < min as usize).count();
                under += u32::try_from(short).unwrap_or(u32::MAX);
            }
        }
        under
    }

    async fn measure_lag(&self, memory: &mut Memory) -> Result<(), crate::error::BridgeError> {
        let gauge = |group: &str, topic: &Arc<str>, partition: i32, lag: i64| {
            metrics::gauge!("millrace_bridge_group_lag_records", "group" => group.to_owned(), "topic" => topic.to_string(), "partition" => partition.to_string())
                .set(lag as f64);
        };
        let mut series = BTreeMap::new();
        for group in self.lag.all().await? {
            for row in &group.partitions {
                if let Some(lag) = row.lag() {
                    series.insert((group.group.id.clone(), Arc::clone(&row.partition.topic), row.partition.partition), lag);
                }
            }
        }
        // A series that has a gauge keeps it; new ones get one while there is room.
        let mut shown: HashSet<_> = memory.lag_series.iter().filter(|key| series.contains_key(*key)).cloned().collect();
        let mut left_out = 0;
        for key in series.keys() {
            if shown.contains(key) {
                continue;
            }
            if shown.len() < self.config.lag_series_max {
                shown.insert(key.clone());
            } else {
                left_out += 1;
            }
        }
        for (group, topic, partition) in memory.lag_series.difference(&shown) {
            gauge(group, topic, *partition, 0);
        }
        for key in &shown {
            if let Some(lag) = series.get(key) {
                gauge(&key.0, &key.1, key.2, *lag);
            }
        }
        metrics::gauge!("millrace_bridge_group_lag_series_left_out").set(f64::from(left_out));
        memory.lag_series = shown;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use service_kit::Readiness;

    use super::*;
    use crate::testing::{self, FakeKafka, MemoryOffsets};

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
