//! `Consume`: a session behind a stream. The client gives credit in records, the bridge sends no more; an ack moves the group's offsets.
//!
//! The session lives as long as the stream, which ends when its client has taken and said nothing for `consume.session_idle`. What was not acked when it ends is delivered again, to whoever reads the partition next. With
//! `Subscribe.redelivery` it is sent again in the stream, too: when it was rejected, or its time is over.
//!
//! A seek, and a question for positions, is taken up when no fetch is under way, and its answer goes the way of the batches: what comes before
//! it in the stream was read before, and nothing is read and lost.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use proto::data::v1::{
    self as wire, ConsumeRequest, ConsumeResponse, Header, Position, Positions, Record as WireRecord, Redelivery, Reject, Start, Subscribe,
    consume_request::Request, start::At,
};
use service_kit::kafka::{Isolation, Record, TopicPartition};
use tokio::{select, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Services, produce::codec_named};
use crate::{
    auth,
    codec::{CODECS, Reader, Unreadable},
    error::{BridgeError, Code, Result},
    session::{self, Acknowledged, Counted, Encode, EncodeBatch, Limits, SeekTo, Session, Settings, Settlement},
};

/// Largest batch in bytes: a client's default for a message is 4 MiB.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Records in a batch.
const BATCH_RECORDS_MAX: usize = 1_000;
/// Batches between the session and the connection; the transport's own window bounds the rest.
const QUEUE_BATCHES_MAX: usize = 2;
/// How long one fetch waits, and a seek for it at most; the next one follows.
const FETCH_WAIT: Duration = Duration::from_millis(500);

pub(super) type Batches = Pin<Box<dyn Stream<Item = Result<ConsumeResponse, Status>> + Send>>;

pub(super) fn stream(services: Services, requests: Streaming<ConsumeRequest>) -> Batches {
    // One place more, for the last word: a client that does not read must not keep the stream from ending.
    let (batches, receiver) = mpsc::channel(QUEUE_BATCHES_MAX + 1);
    let last_word = batches.clone().try_reserve_owned();
    let tasks = services.sessions.tasks();
    let carrier = auth::carrier();
    tasks.spawn(carrier.run(async move {
        if let (Err(error), Ok(last_word)) = (serve(&services, requests, &batches).await, last_word) {
            last_word.send(Err(error));
        }
    }));
    Box::pin(ReceiverStream::new(receiver).map(|sent| sent.map(|(batch, _counted)| batch)))
}

/// Batches count as held until the transport takes them.
type Sender = mpsc::Sender<Result<(ConsumeResponse, Counted), Status>>;

async fn serve(services: &Services, mut requests: Streaming<ConsumeRequest>, batches: &Sender) -> Result<(), Status> {
    let Some(first) = requests.next().await.transpose()?.and_then(|request| request.request) else {
        return Err(Status::invalid_argument("the stream ended before it subscribed; send Subscribe first"));
    };
    let Request::Subscribe(subscribe) = first else {
        return Err(Status::invalid_argument("the first message must be Subscribe; credit and acks follow it"));
    };
    let credit = u64::from(subscribe.credit).min(u64::from(services.consume.credit_records_max));
    let session = open(services, subscribe).await?;
    let served = Consumer { services, session: &session, batches, credit, unacked: VecDeque::new(), last: 0, ready: None, asked: None }
        .run(requests)
        .await;
    services.sessions.remove(&session, false).await;
    served
}

async fn open(services: &Services, subscribe: Subscribe) -> Result<Arc<Session>> {
    let wrong = |message: &str| Err(BridgeError::new(Code::Unprocessable, message));
    if subscribe.group.is_empty() {
        return wrong("group is empty; name the consumer group");
    }
    let reads = match (subscribe.topics.is_empty(), subscribe.topic_pattern, subscribe.assign.is_empty()) {
        (false, pattern, true) if pattern.is_empty() => Reads::Topics(subscribe.topics),
        (true, pattern, true) if !pattern.is_empty() => {
            Reads::Topics(vec![if pattern.starts_with('^') { pattern } else { format!("^{pattern}") }])
        }
        (true, pattern, false) if pattern.is_empty() => {
            let started = subscribe.assign.into_iter().map(|start| started("assign", start));
            Reads::Partitions(started.collect::<Result<_>>()?)
        }
        _ => return wrong("give topics, one or more, or topic_pattern, or assign, and only one of them"),
    };
    let isolation = match subscribe.isolation_level.as_str() {
        "" | "read_uncommitted" => Isolation::ReadUncommitted,
        "read_committed" => Isolation::ReadCommitted,
        other => return wrong(&format!("isolation_level = {other:?} is not possible; give read_uncommitted or read_committed")),
    };
    let codec = codec_named("format", &subscribe.format)?;
    let auto_offset_reset = match subscribe.auto_offset_reset.as_str() {
        "" => "latest".to_owned(),
        "earliest" | "latest" | "none" => subscribe.auto_offset_reset,
        other => return wrong(&format!("auto_offset_reset = {other:?} is not possible; give earliest, latest or none")),
    };
    let acknowledged = match subscribe.redelivery {
        None => None,
        Some(redelivery) => Some(acknowledged(services, redelivery).await?),
    };
    let settings = Settings {
        codec: codec.unwrap_or(&CODECS[0]),
        auto_commit: false,
        auto_offset_reset,
        isolation,
        fetch_min_bytes: 1,
        request_timeout: FETCH_WAIT,
        acknowledged,
    };
    let session = services.sessions.create(&subscribe.group, None, settings)?;
    let begun = async {
        match reads {
            Reads::Topics(topics) => session.subscribe(topics).await,
            Reads::Partitions(starts) => {
                session.assign(starts.iter().map(|(partition, _)| partition.clone()).collect()).await?;
                let places: Vec<_> = starts.into_iter().filter_map(|(partition, to)| Some((partition, to?))).collect();
                session.seek_to(&places).await
            }
        }
    };
    if let Err(error) = begun.await {
        services.sessions.remove(&session, false).await;
        return Err(error);
    }
    Ok(session)
}

enum Reads {
    Topics(Vec<String>),
    /// Without a place: where the group is.
    Partitions(Vec<(TopicPartition, Option<SeekTo>)>),
}

fn started(field: &str, start: Start) -> Result<(TopicPartition, Option<SeekTo>)> {
    let Start { topic, partition, at } = start;
    let to = match at {
        None => None,
        Some(At::Offset(offset)) if offset >= 0 => Some(SeekTo::Offset(offset)),
        Some(At::Beginning(true)) => Some(SeekTo::Beginning),
        Some(At::End(true)) => Some(SeekTo::End),
        Some(At::Offset(_) | At::Beginning(false) | At::End(false)) => {
            let message = format!("{field} of {topic}-{partition} is no place; give an offset of 0 or above, or beginning or end = true");
            return Err(BridgeError::new(Code::Unprocessable, message));
        }
    };
    Ok((TopicPartition::new(topic, partition), to))
}

async fn acknowledged(services: &Services, redelivery: Redelivery) -> Result<Acknowledged> {
    let Redelivery { visibility_timeout_ms, attempts_max, dead_letter_topic } = redelivery;
    let given = |number: u64| (number > 0).then_some(number);
    let dead_letters = (!dead_letter_topic.is_empty()).then_some(dead_letter_topic);
    let visibility = given(visibility_timeout_ms).map(Duration::from_millis);
    let acknowledged = Acknowledged::new(visibility, given(u64::from(attempts_max)), dead_letters, services.consume.session_idle)?;
    if let Some(letters) = &acknowledged.dead_letters {
        auth::check(auth::Verb::Write, auth::Kind::Topic, &letters.topic)?;
        services.topics.check(&letters.topic, None).await?;
    }
    Ok(acknowledged)
}

struct Consumer<'a> {
    services: &'a Services,
    session: &'a Arc<Session>,
    batches: &'a Sender,
    /// Records that may still be sent.
    credit: u64,
    /// Sent and not acked. Bounded by the credit.
    unacked: VecDeque<Sent>,
    last: u64,
    /// Fetched, waiting for a place in the queue.
    ready: Option<(ConsumeResponse, Counted)>,
    /// To be answered when no fetch is under way; until then the client is not heard.
    asked: Option<Asked>,
}

enum Asked {
    Seek(Vec<(TopicPartition, SeekTo)>),
    Positions,
}

/// A batch that was sent.
struct Sent {
    batch: u64,
    /// The offsets behind it.
    ends: BTreeMap<TopicPartition, i64>,
    /// What the session calls it, with redelivery.
    id: Option<String>,
}

impl Consumer<'_> {
    async fn run(&mut self, mut requests: Streaming<ConsumeRequest>) -> Result<(), Status> {
        let ended = self.session.ended();
        // Kept across rounds: a message from the client does not interrupt a fetch.
        let mut fetch = None;
        loop {
            if fetch.is_none() && self.ready.is_none() {
                if let Some(asked) = self.asked.take() {
                    self.ready = Some((self.answer(asked).await?, self.session.count(0)));
                } else if self.credit > 0 {
                    let records_max = usize::try_from(self.credit).unwrap_or(usize::MAX).min(BATCH_RECORDS_MAX);
                    let limits = Limits { records_max, bytes_max: BATCH_BYTES_MAX, bytes_min: 1, wait: FETCH_WAIT };
                    fetch = Some(Box::pin(fetched(self.session, limits, self.records())));
                }
            }
            let fetched = async {
                match &mut fetch {
                    Some(fetch) => fetch.await,
                    None => std::future::pending().await,
                }
            };
            select! {
                () = self.services.shutdown.cancelled() => return Err(Status::unavailable("the bridge is shutting down; connect again")),
                () = self.batches.closed() => return Ok(()),
                // It took nothing of what is ready, or gave no credit.
                () = ended.cancelled(), if !self.services.shutdown.is_cancelled() => return Err(self.session.cut_off().into()),
                request = requests.next(), if self.asked.is_none() => match request.transpose()? {
                    // The client has said all it wanted to say: acks can no longer come.
                    None => return Ok(()),
                    Some(request) => self.hear(request).await?,
                },
                fetched = fetched => {
                    fetch = None;
                    let (records, id) = fetched?;
                    self.prepare(records, id);
                }
                place = self.batches.reserve(), if self.ready.is_some() => match (place, self.ready.take()) {
                    (Ok(place), Some(batch)) => place.send(Ok(batch)),
                    // The client is gone.
                    _ => return Ok(()),
                }
            }
        }
    }

    async fn hear(&mut self, request: ConsumeRequest) -> Result<(), Status> {
        // An idle stream whose client still speaks is in use.
        self.services.sessions.get(&self.session.group, &self.session.name)?;
        match request.request {
            Some(Request::Credit(credit)) => {
                let max = u64::from(self.services.consume.credit_records_max);
                self.credit = self.credit.saturating_add(u64::from(credit.records)).min(max);
                Ok(())
            }
            Some(Request::Ack(ack)) => Ok(self.acknowledge(ack.batch).await?),
            Some(Request::Reject(reject)) => Ok(self.reject(reject).await?),
            Some(Request::Seek(seek)) => {
                let place = |start| match started("seek", start)? {
                    (partition, Some(to)) => Ok((partition, to)),
                    (partition, None) => {
                        let message = format!("seek of {partition} does not say where to; give offset, beginning or end");
                        Err(BridgeError::new(Code::Unprocessable, message))
                    }
                };
                self.asked = Some(Asked::Seek(seek.partitions.into_iter().map(place).collect::<Result<_>>()?));
                Ok(())
            }
            Some(Request::GetPositions(_)) => {
                self.asked = Some(Asked::Positions);
                Ok(())
            }
            Some(Request::Subscribe(_)) => Err(Status::failed_precondition("this stream is subscribed already; open another one")),
            None => Err(Status::invalid_argument("the message is empty; send Credit, Ack, Reject, Seek or GetPositions")),
        }
    }

    fn records(&self) -> WireRecords {
        let codec = self.session.settings.codec;
        let reader = || Reader::new(codec, self.services.registry.clone(), self.services.consume.response_bytes_max);
        WireRecords { reader: (codec.name != CODECS[0].name).then(reader), ..WireRecords::default() }
    }

    async fn answer(&mut self, asked: Asked) -> Result<ConsumeResponse> {
        if let Asked::Seek(places) = asked {
            self.session.seek_to(&places).await?;
            for sent in &mut self.unacked {
                sent.ends.retain(|partition, _| places.iter().all(|(sought, _)| sought != partition));
            }
        }
        let positions = self.session.positions().await?;
        let partitions: Vec<TopicPartition> = positions.keys().cloned().collect();
        let committed = self.session.committed(&partitions).await?;
        let positions = positions.into_iter().map(|(partition, position)| Position {
            topic: partition.topic.to_string(),
            partition: partition.partition,
            position,
            committed: committed.get(&partition).map(|stored| stored.offset),
        });
        Ok(ConsumeResponse { positions: Some(Positions { positions: positions.collect() }), ..ConsumeResponse::default() })
    }

    fn prepare(&mut self, records: WireRecords, id: Option<String>) {
        if records.records.is_empty() {
            return;
        }
        self.last += 1;
        self.credit = self.credit.saturating_sub(records.records.len() as u64);
        self.unacked.push_back(Sent { batch: self.last, ends: records.ends, id });
        let blocked = records.blocked.into_iter();
        let blocked = blocked.map(|at| wire::TopicPartition { topic: at.topic.to_string(), partition: at.partition }).collect();
        let counted = self.session.count(records.bytes);
        self.ready = Some((ConsumeResponse { batch: self.last, records: records.records, positions: None, blocked }, counted));
    }

    async fn acknowledge(&mut self, batch: u64) -> Result<()> {
        if batch > self.last {
            return Err(BridgeError::new(Code::Unprocessable, format!("batch {batch} was not sent; the last one is {}", self.last)));
        }
        let (mut ends, mut batches) = (BTreeMap::new(), Vec::new());
        while let Some(acked) = self.unacked.pop_front_if(|sent| sent.batch <= batch) {
            ends.extend(acked.ends);
            batches.extend(acked.id);
        }
        if self.session.settings.acknowledged.is_none() {
            return self.session.acknowledge_assigned(ends).await;
        }
        // What moved to another member is delivered there.
        self.session.settle(Settlement { batches, ..Settlement::default() }).await.map(drop)
    }

    async fn reject(&mut self, reject: Reject) -> Result<()> {
        let Reject { topic, partition, offset, delay_ms, reason } = reject;
        let reason = (!reason.is_empty()).then_some(reason);
        let at = TopicPartition::new(topic, partition);
        let reject = session::Reject::new(at, offset, Duration::from_millis(delay_ms), reason, self.services.consume.session_idle)?;
        self.session.settle(Settlement { reject: vec![reject], ..Settlement::default() }).await.map(drop)
    }
}

/// The next records, with the batch's name where there is redelivery.
async fn fetched(session: &Arc<Session>, limits: Limits, records: WireRecords) -> Result<(WireRecords, Option<String>)> {
    if session.settings.acknowledged.is_none() {
        return Ok((session.fetch(limits, records).await?, None));
    }
    let fetched = session.fetch_on(limits, records).await?;
    Ok((fetched.answer, fetched.batch))
}

/// Records as they go over the wire, and the offsets behind them.
#[derive(Default)]
struct WireRecords {
    /// `None`: keys and values go as they are.
    reader: Option<Reader>,
    records: Vec<WireRecord>,
    bytes: usize,
    ends: BTreeMap<TopicPartition, i64>,
    /// Partitions whose next record the format cannot show.
    blocked: Vec<TopicPartition>,
    /// Of keys and values in JSON, which may be longer than they lie in Kafka.
    json_bytes: usize,
    unbounded: bool,
}

impl WireRecords {
    fn write(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool> {
        let (key, value) = match &self.reader {
            None => (record.key.clone(), record.value.clone()),
            Some(reader) if !reader.knows(record) => return Ok(false),
            Some(reader) => {
                let shown = |field: &str, bytes: &Option<Bytes>| {
                    let Some(bytes) = bytes else { return Ok(None) };
                    let mut out = Vec::new();
                    match reader.write(bytes, &mut out) {
                        Ok(()) => Ok(Some(Bytes::from(out))),
                        Err(Unreadable { code, reason }) => Err(BridgeError::new(
                            code,
                            format!(
                                "the {field} of {partition} at offset {} {reason}, so format {} cannot show it; read it with format binary, or go on behind it with Seek, or with Subscribe.assign",
                                record.offset, reader.codec.name
                            ),
                        )),
                    }
                };
                let (key, value) = (shown("key", &record.key)?, shown("value", &record.value)?);
                let bytes = [&key, &value].into_iter().flatten().map(Bytes::len).sum::<usize>();
                if !self.records.is_empty() && !self.unbounded && self.json_bytes + bytes > BATCH_BYTES_MAX {
                    return Ok(false);
                }
                self.json_bytes += bytes;
                (key, value)
            }
        };
        self.ends.insert(partition.clone(), record.offset + 1);
        self.bytes += session::size(record);
        self.records.push(WireRecord {
            topic: partition.topic.to_string(),
            partition: Some(partition.partition),
            key,
            value,
            headers: record.headers.iter().map(|(key, value)| Header { key: key.clone(), value: value.clone() }).collect(),
            timestamp_ms: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
            offset: record.offset,
            attempt,
        });
        Ok(true)
    }
}

impl Encode for WireRecords {
    fn add(&mut self, partition: &TopicPartition, record: &Record) -> Result<bool> {
        self.write(partition, record, 0)
    }

    fn blocked(&mut self, partition: &TopicPartition) {
        self.blocked.push(partition.clone());
    }

    fn wants<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Vec<i32> {
        self.reader.as_ref().map(|reader| reader.wants(records)).unwrap_or_default()
    }

    async fn look_up(&mut self, schemas: Vec<i32>) -> Result<()> {
        match &mut self.reader {
            Some(reader) => reader.look_up(schemas).await,
            None => Ok(()),
        }
    }
}

impl EncodeBatch for WireRecords {
    fn add_attempt(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool> {
        self.write(partition, record, attempt)
    }

    fn unbounded(&mut self) {
        self.unbounded = true;
    }

    fn clear(&mut self) {
        *self = Self { reader: self.reader.take(), unbounded: self.unbounded, ..Self::default() };
    }
}
