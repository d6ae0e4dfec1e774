//! The range reader: `read_uncommitted` by rskafka, a partition at a time handed over to librdkafka.
//!
//! rskafka is the fastest reader by far, and has limits that are looked for here:
//! - it fails on control batches of Kafka 4 (the marks of transactions), and cannot pass offsets without records;
//! - it gives the producer's time where the topic asks for the broker's (`message.timestamp.type=LogAppendTime`);
//! - it has no TLS in this build.
//!
//! A partition that meets one of these is read by librdkafka from there on: once, logged once, counted. One limit
//! remains: a record's headers come sorted by name, and of equal names only the last.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use parking_lot::Mutex;
use rskafka::BackoffConfig;
use rskafka::client::error::{Error as RsError, ProtocolError, RequestError};
use rskafka::client::partition::{PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::RecordAndOffset;
use tokio::sync::{OnceCell, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tracing::info;

use super::admin::topic_config;
use super::context::{Watch, reach};
use super::lookup::Lookup;
use super::range::{Ranges, size};
use super::{Bounds, Isolation, KafkaConfig, KafkaError, RangeReader, Record, TopicPartition, jaas};

type Chunk = Result<Vec<Record>, KafkaError>;

/// Waits until a broker can be reached, `default.api.timeout.ms` (10 s) at most.
pub async fn range_reader(config: &KafkaConfig, isolation: Isolation) -> Result<Arc<dyn RangeReader>, KafkaError> {
    let lookup = Lookup::new(config, isolation, None).await?;
    let direct = match isolation {
        Isolation::ReadUncommitted => Direct::new(config, &lookup).await?,
        Isolation::ReadCommitted => None,
    };
    Ok(Arc::new(Reader {
        ranges: Arc::new(LazyRanges { config: config.clone(), isolation, lookup: Arc::clone(&lookup), ranges: OnceCell::new() }),
        lookup,
        direct,
    }))
}

struct Reader {
    lookup: Arc<Lookup>,
    /// Where rskafka can be used at all.
    direct: Option<Arc<Direct>>,
    ranges: Arc<LazyRanges>,
}

/// librdkafka's side, made when first needed.
struct LazyRanges {
    config: KafkaConfig,
    isolation: Isolation,
    lookup: Arc<Lookup>,
    ranges: OnceCell<Ranges>,
}

impl LazyRanges {
    fn read(self: Arc<Self>, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Chunk> {
        let begin = async move {
            let make = async || Ranges::new(&self.config, self.isolation, Arc::clone(&self.lookup));
            match self.ranges.get_or_try_init(make).await {
                Ok(ranges) => ranges.read(partition, from, until),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        stream::once(begin).flatten().boxed()
    }
}

#[async_trait]
impl RangeReader for Reader {
    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaError> {
        let topic = self.lookup.topic(topic).await?;
        Ok(topic.partitions.iter().map(|partition| partition.id).collect())
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, Bounds>, KafkaError> {
        self.lookup.bounds(partitions).await
    }

    async fn offsets_at(&self, partitions: &[TopicPartition], timestamp_ms: i64) -> Result<BTreeMap<TopicPartition, i64>, KafkaError> {
        self.lookup.offsets_at(partitions, timestamp_ms).await
    }

    fn read(&self, partition: TopicPartition, from: i64, until: i64) -> BoxStream<'static, Chunk> {
        let ranges = Arc::clone(&self.ranges);
        match &self.direct {
            Some(direct) => Arc::clone(direct).read(partition, from, until, ranges),
            None => ranges.read(partition, from, until),
        }
    }
}

struct Direct {
    client: Client,
    config: KafkaConfig,
    watch: Watch,
    lookup: Arc<Lookup>,
    fetch_bytes: i32,
    timeout: Duration,
    partitions: Mutex<HashMap<TopicPartition, Arc<State>>>,
    /// By topic: whether the broker sets its records' time.
    broker_times: Mutex<HashMap<Arc<str>, Arc<OnceCell<bool>>>>,
}

/// What is known of one partition.
#[derive(Default)]
struct State {
    /// `None` inside: read by librdkafka.
    client: tokio::sync::Mutex<Option<Path>>,
}

#[derive(Clone)]
enum Path {
    Direct(Arc<PartitionClient>),
    HandedOver,
}

/// Longest wait of the broker for data; there is some, or the range would not have been asked for.
const FETCH_WAIT_MS: i32 = 500;
/// Chunks that may wait for the reader of the stream.
const CHUNKS_AHEAD: usize = 1;

impl Direct {
    /// `None` where the connection needs what rskafka lacks here.
    async fn new(config: &KafkaConfig, lookup: &Arc<Lookup>) -> Result<Option<Arc<Self>>, KafkaError> {
        if config.tls() {
            return Ok(None);
        }
        let servers = reach(config, "connecting").await?;
        let bound = config.api_timeout();
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(20),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
            deadline: Some(bound),
        };
        let mut builder = ClientBuilder::new(servers)
            .client_id(config.get("client.id").unwrap_or("millrace"))
            .max_message_size(RESPONSE_BYTES_MAX)
            .backoff_config(backoff);
        if config.protocol() == "sasl_plaintext" {
            let login = jaas::login(config.values())?;
            let credentials = Credentials::new(login.username, login.password);
            builder = builder.sasl_config(match login.mechanism.as_str() {
                "SCRAM-SHA-256" => SaslConfig::ScramSha256(credentials),
                "SCRAM-SHA-512" => SaslConfig::ScramSha512(credentials),
                _ => SaslConfig::Plain(credentials),
            });
        }
        let watch = Watch::new(config);
        let late = || KafkaError::Unreachable(watch.unreachable("connecting"));
        let client = timeout(bound, builder.build()).await.map_err(|_| late())?;
        let client = client.map_err(|error| KafkaError::Unreachable(watch.unreachable(&format!("connecting: {error}"))))?;
        Ok(Some(Arc::new(Self {
            client,
            config: config.clone(),
            watch,
            lookup: Arc::clone(lookup),
            fetch_bytes: config.fetch_bytes_max(),
            timeout: bound,
            partitions: Mutex::default(),
            broker_times: Mutex::default(),
        })))
    }

    /// Begins when first polled; fetches one chunk ahead.
    fn read(self: Arc<Self>, partition: TopicPartition, from: i64, until: i64, ranges: Arc<LazyRanges>) -> BoxStream<'static, Chunk> {
        let begin = async move {
            let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
            drop(tokio::spawn(async move {
                let outcome = tokio::select! {
                    outcome = self.fetch(&partition, from, until, &chunks) => outcome,
                    () = chunks.closed() => return,
                };
                let rest = match outcome {
                    Ok(None) => return,
                    Ok(Some(next)) => ranges.read(partition, next, until),
                    Err(error) => stream::iter([Err(error)]).boxed(),
                };
                forward(rest, &chunks).await;
            }));
            ReceiverStream::new(receiver)
        };
        stream::once(begin).flatten().boxed()
    }

    /// Reads on until the range's end (`None`), or until librdkafka must go on (`Some(offset)`).
    async fn fetch(
        &self,
        partition: &TopicPartition,
        from: i64,
        until: i64,
        chunks: &mpsc::Sender<Chunk>,
    ) -> Result<Option<i64>, KafkaError> {
        let mut next = from;
        if next >= until {
            return Ok(None);
        }
        let state = Arc::clone(self.partitions.lock().entry(partition.clone()).or_default());
        let Path::Direct(client) = self.path(&state, partition).await? else { return Ok(Some(next)) };
        while next < until {
            let fetch = client.fetch_records(next, 1..self.fetch_bytes, FETCH_WAIT_MS);
            // rskafka bounds its retries, not a connection that hangs.
            let Ok(fetched) = timeout(self.timeout * 2, fetch).await else {
                return Err(self.away(partition, next, "no answer"));
            };
            let (mut records, latest) = match fetched {
                Ok(fetched) => fetched,
                Err(error) => match self.judge(partition, next, &error).await {
                    Some(error) => return Err(error),
                    None => {
                        self.hand_over(&state, partition, next, &error.to_string()).await;
                        return Ok(Some(next));
                    }
                },
            };
            self.watch.on_success();
            if latest < until {
                return Err(self.out_of_range(partition, until).await);
            }
            let beyond = records.partition_point(|record| record.offset < until);
            let ends = beyond < records.len();
            records.truncate(beyond);
            let Some(last) = records.last() else {
                if ends {
                    return Ok(None);
                }
                self.hand_over(&state, partition, next, "offsets without records").await;
                return Ok(Some(next));
            };
            next = last.offset + 1;
            let chunk: Vec<Record> = records.into_iter().map(record).collect();
            let bytes: usize = chunk.iter().map(size).sum();
            metrics::counter!("millrace_kafka_fetch_records_total", "client" => "rskafka").increment(chunk.len() as u64);
            metrics::counter!("millrace_kafka_fetch_bytes_total", "client" => "rskafka").increment(bytes as u64);
            if chunks.send(Ok(chunk)).await.is_err() || ends {
                return Ok(None);
            }
        }
        Ok(None)
    }

    async fn path(&self, state: &State, partition: &TopicPartition) -> Result<Path, KafkaError> {
        let mut path = state.client.lock().await;
        if let Some(path) = &*path {
            return Ok(path.clone());
        }
        // Also tells an unknown topic or partition, which rskafka would ask for again and again.
        let topic = self.lookup.topic(&partition.topic).await?;
        if !topic.partitions.iter().any(|known| known.id == partition.partition) {
            return Err(KafkaError::Invalid(format!("{partition} does not exist")));
        }
        if self.broker_time(&partition.topic).await {
            self.report(partition, 0, "message.timestamp.type is LogAppendTime");
            *path = Some(Path::HandedOver);
            return Ok(Path::HandedOver);
        }
        let connect = self.client.partition_client(&*partition.topic, partition.partition, UnknownTopicHandling::Error);
        let Ok(connected) = timeout(self.timeout, connect).await else {
            return Err(self.away(partition, 0, "no answer"));
        };
        let client = connected.map_err(|error| KafkaError::from_rs(&error, partition, 0))?;
        let found = Path::Direct(Arc::new(client));
        *path = Some(found.clone());
        Ok(found)
    }

    /// Whether the broker sets the records' time; looked up once for each topic. Where the principal may not look, the
    /// usual answer: no.
    async fn broker_time(&self, topic: &Arc<str>) -> bool {
        let known = Arc::clone(self.broker_times.lock().entry(Arc::clone(topic)).or_default());
        let look = async || {
            let entries = topic_config(&self.config, topic).await.unwrap_or_default();
            let time = entries.iter().find(|entry| entry.name == "message.timestamp.type");
            time.is_some_and(|entry| entry.value.as_deref() == Some("LogAppendTime"))
        };
        *known.get_or_init(look).await
    }

    /// An error for the caller; `None`: librdkafka can do it.
    async fn judge(&self, partition: &TopicPartition, offset: i64, error: &RsError) -> Option<KafkaError> {
        match error {
            RsError::ServerError { protocol_error: ProtocolError::OffsetOutOfRange, .. } => {
                Some(self.out_of_range(partition, offset).await)
            }
            RsError::InvalidResponse(_) => None,
            RsError::Request(RequestError::ReadError(_) | RequestError::ReadVersionedError(_) | RequestError::TooMuchData { .. }) => None,
            other => match KafkaError::from_rs(other, partition, offset) {
                KafkaError::Unreachable(reason) => Some(self.away(partition, offset, &reason)),
                error => Some(error),
            },
        }
    }

    fn away(&self, partition: &TopicPartition, offset: i64, reason: &str) -> KafkaError {
        self.watch.outage.failed(reason);
        self.watch.outage.suspect();
        KafkaError::Unreachable(self.watch.unreachable(&format!("reading {partition} at offset {offset}")))
    }

    async fn out_of_range(&self, partition: &TopicPartition, offset: i64) -> KafkaError {
        match self.lookup.bounds(std::slice::from_ref(partition)).await {
            Ok(bounds) => {
                let held = bounds.get(partition).copied().unwrap_or(Bounds { earliest: 0, latest: 0 });
                KafkaError::OffsetOutOfRange {
                    partition: Box::new(partition.clone()),
                    offset,
                    earliest: held.earliest,
                    latest: held.latest,
                }
            }
            Err(error) => error,
        }
    }

    async fn hand_over(&self, state: &State, partition: &TopicPartition, offset: i64, reason: &str) {
        let mut path = state.client.lock().await;
        if !matches!(*path, Some(Path::HandedOver)) {
            *path = Some(Path::HandedOver);
            self.report(partition, offset, reason);
        }
    }

    fn report(&self, partition: &TopicPartition, offset: i64, reason: &str) {
        metrics::counter!("millrace_kafka_hand_overs_total").increment(1);
        info!(%partition, offset, reason, "partition is read by librdkafka from here on");
    }
}

/// A response holds at most a chunk and one oversized batch.
const RESPONSE_BYTES_MAX: usize = 256 << 20;

async fn forward(mut rest: BoxStream<'static, Chunk>, chunks: &mpsc::Sender<Chunk>) {
    while let Some(chunk) = rest.next().await {
        if chunks.send(chunk).await.is_err() {
            return;
        }
    }
}

fn record(read: RecordAndOffset) -> Record {
    let RecordAndOffset { record, offset } = read;
    Record {
        offset,
        timestamp_ms: record.timestamp.timestamp_millis(),
        key: record.key.map(Bytes::from),
        value: record.value.map(Bytes::from),
        headers: record.headers.into_iter().map(|(name, value)| (name, Some(Bytes::from(value)))).collect(),
    }
}
