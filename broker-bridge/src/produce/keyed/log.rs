//! The two topics: made, read into the table, claimed in; and how another replica's writers are ended.
//!
//! Reading is driven by need. A claim is read back at once, as far as it stands. A request that waits for another replica asks for the end of both
//! topics every `POLL`, all of a partition together. Besides, everything is read once in `TAIL`, so that little is left to read when a key comes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::{try_join, try_join_all},
};
use parking_lot::Mutex;
use service_kit::kafka::{self, Isolation, KafkaError, OutRecord, OwnTopic, Producer, RangeReader, Record, TopicPartition};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, sleep},
};

use super::{
    broker::Broker,
    record::{Claim, Outcome, Said},
    table::{Holder, Limits, Look, Table},
};
use crate::{
    config,
    error::{BridgeError, Code, Result},
    lag::now_ms,
};

/// How long claims without a result are remembered, whatever `dedup_age` says: far longer than anybody writes under one.
const KEEP_MIN: Duration = Duration::from_secs(120);
/// Between two looks at the topics while a request waits for another replica.
const POLL: Duration = Duration::from_millis(10);
/// A claim that names more transactional ids is none of ours.
const LANES_MAX: u32 = 16;

pub(super) struct Log {
    config: config::Produce,
    broker: Arc<dyn Broker>,
    producer: Arc<dyn Producer>,
    table: Mutex<Table>,
    claims: Feed,
    results: Feed,
    /// One replica's ids are taken at a time.
    fencing: AsyncMutex<()>,
    is_loaded: AtomicBool,
}

/// One topic as it is read.
struct Feed {
    is_claims: bool,
    topic: Arc<str>,
    reader: Arc<dyn RangeReader>,
    /// By partition: when its end was last asked for, of those that were reached.
    parts: Vec<AsyncMutex<Option<Instant>>>,
    /// By partition: an offset that is known to be there.
    known: Vec<AtomicI64>,
}

impl Feed {
    async fn new(config: &config::Produce, broker: &dyn Broker, is_claims: bool) -> Result<Self, KafkaError> {
        let (topic, isolation) = match is_claims {
            true => (claims_topic(config), Isolation::ReadUncommitted),
            false => (config.dedup_topic.clone(), Isolation::ReadCommitted),
        };
        let count = config.dedup_partitions as usize;
        Ok(Self {
            is_claims,
            topic: topic.into(),
            reader: broker.reader(isolation).await?,
            parts: (0..count).map(|_| AsyncMutex::new(None)).collect(),
            known: (0..count).map(|_| AtomicI64::new(0)).collect(),
        })
    }

    fn partition(&self, partition: i32) -> TopicPartition {
        TopicPartition::new(Arc::clone(&self.topic), partition)
    }

    fn all(&self) -> Vec<TopicPartition> {
        (0..self.parts.len()).map(|partition| self.partition(partition as i32)).collect()
    }
}

pub(super) fn claims_topic(config: &config::Produce) -> String {
    format!("{}_claims", config.dedup_topic)
}

fn keep(config: &config::Produce) -> Duration {
    config.dedup_age.max(KEEP_MIN)
}

/// Whether somebody has sent keys to this cluster before.
pub(super) async fn exists(config: &config::Produce, broker: &dyn Broker) -> Result<bool, KafkaError> {
    match broker.admin().await?.topic(&config.dedup_topic).await {
        Ok(_) => Ok(true),
        Err(KafkaError::UnknownTopic(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Log {
    /// Makes the topics where they are missing. Nothing is read yet.
    pub(super) async fn open(config: &config::Produce, broker: &Arc<dyn Broker>) -> Result<Self> {
        let of = broker.as_ref();
        ensure_both(config, of).await?;
        let (claims, results) = try_join(Feed::new(config, of, true), Feed::new(config, of, false)).await?;
        let limits =
            Limits { age: config.dedup_age, keep: keep(config), records_max: config.dedup_records_max, young: config.dedup_lease * 5 };
        Ok(Self {
            table: Mutex::new(Table::new(config.dedup_partitions, limits)),
            claims,
            results,
            producer: broker.producer().await?,
            broker: Arc::clone(broker),
            config: config.clone(),
            fencing: AsyncMutex::new(()),
            is_loaded: AtomicBool::new(false),
        })
    }

    /// Ends of the claims' partitions. Waits for the leaders of topics that were made a moment ago, by another replica.
    pub(super) async fn claims_end(&self) -> Result<Vec<i64>> {
        let deadline = Instant::now() + self.config.timeout;
        let (claims, results) = (self.claims.all(), self.results.all());
        loop {
            match try_join(self.claims.reader.bounds(&claims), self.results.reader.bounds(&results)).await {
                Ok((claims, _)) => return Ok(claims.values().map(|bounds| bounds.latest).collect()),
                Err(error) if error.retryable() && Instant::now() < deadline => sleep(POLL).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what is of the window.
    pub(super) async fn load(&self) -> Result<()> {
        let since = now_ms() - i64::try_from(keep(&self.config).as_millis()).unwrap_or(i64::MAX);
        for feed in [&self.claims, &self.results] {
            // Asked for first: where no record is young enough, the offset of the time is an end of later than that, and what came between would
            // be missed.
            let ends = feed.reader.bounds(&feed.all()).await?;
            let from = feed.reader.offsets_at(&feed.all(), since).await?;
            for (partition, offset) in from {
                let end = ends.get(&partition).map_or(0, |bounds| bounds.latest);
                self.table.lock().set_next(feed.is_claims, partition.partition, offset.min(end));
            }
        }
        let asked = Instant::now();
        // Claims first: whose result is not read then has none, or has it later.
        self.read_all(&self.claims, asked).await?;
        self.read_all(&self.results, asked).await?;
        self.is_loaded.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn read_all(&self, feed: &Feed, since: Instant) -> Result<()> {
        try_join_all((0..feed.parts.len()).map(|partition| self.sync(feed, partition as i32, since))).await?;
        Ok(())
    }

    /// Reads what is new everywhere, and forgets what is old.
    pub(super) async fn tail(&self) -> Result<()> {
        for feed in [&self.claims, &self.results] {
            let bounds = feed.reader.bounds(&feed.all()).await?;
            for (partition, bounds) in bounds {
                let next = self.table.lock().next(feed.is_claims, partition.partition);
                if bounds.latest != next {
                    self.sync(feed, partition.partition, Instant::now()).await?;
                }
            }
        }
        self.prune();
        Ok(())
    }

    fn prune(&self) {
        let mut table = self.table.lock();
        table.prune(Instant::now());
        let (keys, records) = table.size();
        metrics::gauge!("millrace_bridge_dedup_keys").set(keys as f64);
        metrics::gauge!("millrace_bridge_dedup_records").set(records as f64);
    }

    pub(super) fn table<T>(&self, of: impl FnOnce(&mut Table) -> T) -> T {
        of(&mut self.table.lock())
    }

    pub(super) fn look(&self, key: &[u8], partition: i32) -> Look {
        self.table.lock().look(key, partition, Instant::now())
    }

    /// An error where no further result may be kept.
    pub(super) fn room(&self) -> Result<()> {
        if !self.table.lock().is_full() {
            return Ok(());
        }
        self.prune();
        if !self.table.lock().is_full() {
            return Ok(());
        }
        Err(BridgeError::new(
            Code::TooMany,
            format!(
                "results of the last moments fill produce.dedup_records_max = {}; nothing was written, try again or raise it",
                self.config.dedup_records_max
            ),
        ))
    }

    /// Appends a claim; gives its offset. After an error it may be there all the same, or come to be.
    pub(super) async fn claim(&self, key: &Bytes, partition: i32, claim: Claim) -> Result<i64, KafkaError> {
        let offset = self.say(key, partition, &Said::Claim(claim)).await?;
        if let Some(known) = self.claims.known.get(partition as usize) {
            known.fetch_max(offset + 1, Ordering::Relaxed);
        }
        Ok(offset)
    }

    /// Tells the others that nothing is ever committed under a claim, which spares them the lease.
    pub(super) async fn release(&self, key: &Bytes, partition: i32, claim: i64) {
        if let Err(error) = self.say(key, partition, &Said::Release(claim)).await {
            tracing::debug!(%error, "a claim is not released; other replicas wait for produce.dedup_lease");
        }
    }

    async fn say(&self, key: &Bytes, partition: i32, said: &Said) -> Result<i64, KafkaError> {
        let value = serde_json::to_vec(said).map_err(|error| KafkaError::Invalid(error.to_string()))?;
        let record = OutRecord {
            topic: Arc::clone(&self.claims.topic),
            partition: Some(partition),
            key: Some(key.clone()),
            value: Some(value.into()),
            headers: Vec::new(),
            timestamp_ms: None,
        };
        let written = self.producer.send(vec![record]).await.pop();
        match written.unwrap_or_else(|| Err(KafkaError::Fatal("the producer gave no result".into()))) {
            Ok(written) => Ok(written.offset),
            Err(error) => Err(self.mend(error).await),
        }
    }

    /// Makes the topics again where somebody has deleted them, for the next try.
    async fn mend(&self, error: KafkaError) -> KafkaError {
        if !matches!(error, KafkaError::UnknownTopic(_)) {
            return error;
        }
        let made = ensure_both(&self.config, self.broker.as_ref()).await;
        made.err().unwrap_or_else(|| KafkaError::Retryable("the topics of keyed requests were away".to_owned()))
    }

    /// The result record of a request.
    pub(super) fn result(&self, key: &Bytes, partition: i32, outcome: &Outcome) -> OutRecord {
        OutRecord {
            topic: Arc::clone(&self.results.topic),
            partition: Some(partition),
            key: Some(key.clone()),
            value: serde_json::to_vec(outcome).ok().map(Bytes::from),
            headers: Vec::new(),
            timestamp_ms: None,
        }
    }

    /// Reads the claims below `until`, which is known to be there.
    pub(super) async fn read_back(&self, partition: i32, until: i64) -> Result<()> {
        let Some(part) = self.claims.parts.get(partition as usize) else { return Ok(()) };
        let _reading = part.lock().await;
        let from = self.table.lock().next(true, partition);
        if from >= until {
            // Together with another one's.
            return Ok(());
        }
        let known = self.claims.known.get(partition as usize).map_or(until, |known| known.load(Ordering::Relaxed));
        self.read(&self.claims, partition, from, until.max(known)).await
    }

    /// Reads both topics up to ends that were asked for now.
    pub(super) async fn catch_up(&self, partition: i32) -> Result<()> {
        let now = Instant::now();
        self.sync(&self.claims, partition, now).await?;
        self.sync(&self.results, partition, now).await
    }

    async fn sync(&self, feed: &Feed, partition: i32, since: Instant) -> Result<()> {
        let Some(part) = feed.parts.get(partition as usize) else { return Ok(()) };
        let mut fresh = part.lock().await;
        if fresh.is_some_and(|at| at >= since) {
            return Ok(());
        }
        let asked = Instant::now();
        let of = feed.partition(partition);
        let bounds = match feed.reader.bounds(std::slice::from_ref(&of)).await {
            Ok(bounds) => bounds,
            Err(error) => return Err(self.mend(error).await.into()),
        };
        let Some(bounds) = bounds.get(&of).copied() else {
            return Err(BridgeError::new(Code::KafkaRetriable, format!("{of} is not there; try again")));
        };
        let mut next = self.table.lock().next(feed.is_claims, partition);
        if next > bounds.latest && next > self.end(&of).await? {
            tracing::warn!(topic = &*feed.topic, "the topic of keyed requests was made anew; what it knew is forgotten");
            self.table.lock().clear();
            [&self.claims, &self.results].iter().flat_map(|feed| &feed.known).for_each(|known| known.store(0, Ordering::Relaxed));
            next = 0;
        }
        self.read(feed, partition, next.max(bounds.earliest), bounds.latest).await?;
        *fresh = Some(asked);
        Ok(())
    }

    async fn read(&self, feed: &Feed, partition: i32, from: i64, until: i64) -> Result<()> {
        if from >= until {
            return Ok(());
        }
        let mut chunks = feed.reader.read(feed.partition(partition), from, until);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let (now, now_ms) = (Instant::now(), now_ms());
            let mut table = self.table.lock();
            for record in chunk.into_iter().filter(|record| record.offset >= from) {
                let offset = record.offset;
                let age = Duration::from_millis(u64::try_from(now_ms - record.timestamp_ms).unwrap_or_default());
                let is_old = !feed.is_claims || !self.is_loaded.load(Ordering::Relaxed);
                // A lease goes by this process's clock: another machine's may be wrong.
                let at = if is_old { now.checked_sub(age).unwrap_or(now) } else { now };
                if let Err(error) = apply(&mut table, feed.is_claims, partition, record, at) {
                    tracing::warn!(topic = &*feed.topic, partition, offset, error, "a record of keyed requests is passed over");
                }
                table.set_next(feed.is_claims, partition, offset + 1);
            }
        }
        self.table.lock().set_next(feed.is_claims, partition, until);
        Ok(())
    }

    /// Reads all results that were written until now, by whom ever: waits for transactions that are open still.
    pub(super) async fn read_results_to_the_end(&self, partition: i32, deadline: Instant) -> Result<()> {
        let of = self.results.partition(partition);
        let end = self.end(&of).await?;
        loop {
            self.sync(&self.results, partition, Instant::now()).await?;
            if self.table.lock().next(false, partition) >= end {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(BridgeError::new(
                    Code::Timeout,
                    "another replica's transaction is open still, and it is not known what it writes; repeat the request under the same key"
                        .to_owned(),
                ));
            }
            sleep(POLL).await;
        }
    }

    /// Behind the last record, also of transactions that are open.
    async fn end(&self, of: &TopicPartition) -> Result<i64> {
        let bounds = self.broker.admin().await?.bounds(std::slice::from_ref(of)).await?;
        Ok(bounds.get(of).map_or(0, |bounds| bounds.latest))
    }

    /// Makes certain that nothing is committed under this claim any more.
    pub(super) async fn fence(&self, partition: i32, holder: &Holder) -> Result<()> {
        let _one = self.fencing.lock().await;
        if self.is_fenced(partition, holder) {
            return Ok(());
        }
        // Before the ids are taken: a claim that was read now was made under an id as it is now.
        let below = self.table.lock().claims_read();
        for lane in 0..holder.lanes {
            // Nothing is written with it.
            drop(self.broker.writer(&transactional_id(&holder.replica, lane)).await?);
        }
        metrics::counter!("millrace_bridge_keyed_takeovers_total").increment(1);
        tracing::info!(replica = &*holder.replica, "a replica that does not finish its keyed requests is fenced");
        self.table.lock().set_fenced(&holder.replica, &below);
        Ok(())
    }

    pub(super) fn is_fenced(&self, partition: i32, holder: &Holder) -> bool {
        self.table.lock().fenced(partition, &holder.replica) > holder.offset
    }

    /// Waits a little, or until the lease of a claim is over.
    pub(super) async fn pause(&self, holder: &Holder) {
        sleep(self.lease_left(holder).min(POLL)).await;
    }

    pub(super) fn lease_left(&self, holder: &Holder) -> Duration {
        (holder.since + self.config.dedup_lease).saturating_duration_since(Instant::now())
    }
}

pub(super) fn transactional_id(replica: &str, lane: u32) -> String {
    format!("{replica}-key-{lane}")
}

fn apply(table: &mut Table, is_claims: bool, partition: i32, record: Record, at: Instant) -> Result<(), String> {
    let (Some(key), Some(value)) = (record.key, record.value) else { return Err("it has no key or no value".to_owned()) };
    if !is_claims {
        let outcome: Outcome = serde_json::from_slice(&value).map_err(|error| error.to_string())?;
        table.finished(&key, Arc::new(outcome), at);
        return Ok(());
    }
    match serde_json::from_slice::<Said>(&value).map_err(|error| error.to_string())? {
        Said::Claim(claim) if claim.lanes > LANES_MAX => return Err(format!("it names {} transactional ids", claim.lanes)),
        Said::Claim(claim) => table.claimed(partition, record.offset, &key, claim, at),
        Said::Release(claim) => table.bury(&key, claim),
    }
    Ok(())
}

async fn ensure_both(config: &config::Produce, broker: &dyn Broker) -> Result<(), KafkaError> {
    try_join(ensure(config, broker, &config.dedup_topic), ensure(config, broker, &claims_topic(config))).await.map(drop)
}

async fn ensure(config: &config::Produce, broker: &dyn Broker, name: &str) -> Result<(), KafkaError> {
    // Kafka deletes whole segments, by their last record.
    let (retention, segment) = (keep(config) * 2, (keep(config) / 2).max(Duration::from_secs(60)));
    let (retention, segment) = (retention.as_millis().to_string(), segment.as_millis().to_string());
    let topic = OwnTopic {
        name,
        setting: "produce.dedup_topic",
        partitions: i32::try_from(config.dedup_partitions).unwrap_or(i32::MAX),
        replication: match config.dedup_replication_factor {
            0 => -1,
            factor => i32::from(factor),
        },
        config: &[("cleanup.policy", "delete"), ("retention.ms", &retention), ("segment.ms", &segment)],
        policy: None,
    };
    let made = kafka::own_topic(broker.admin().await?.as_ref(), &topic, config.timeout).await;
    made.map_err(|error| match error {
        KafkaError::Invalid(message) => {
            KafkaError::Invalid(format!("{message}; or set produce.dedup_partitions to what the topic has, alike for all replicas"))
        }
        error => error,
    })
}
