//! `Consume`: a session behind a stream. The client gives credit in records, the bridge sends no more; an ack moves the group's offsets.
//!
//! The session lives as long as the stream, which ends when its client has taken and said nothing for `consume.session_idle`. What was not acked when it ends is delivered again, to whoever reads the partition next. With
//! `Subscribe.redelivery` it is sent again in the stream, too: when it was rejected, or its time is over.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use proto::data::v1::{
    ConsumeRequest, ConsumeResponse, Header, Record as WireRecord, Redelivery, Reject, Subscribe, consume_request::Request,
};
use service_kit::kafka::{Isolation, Record, TopicPartition};
use tokio::{select, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Services;
use crate::{
    auth,
    codec::CODECS,
    error::{BridgeError, Code, Result},
    session::{self, Acknowledged, Counted, Encode, EncodeBatch, Limits, Session, Settings, Settlement},
};

/// Largest batch in bytes: a client's default for a message is 4 MiB.
const BATCH_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Records in a batch.
const BATCH_RECORDS_MAX: usize = 1_000;
/// Batches between the session and the connection; the transport's own window bounds the rest.
const QUEUE_BATCHES_MAX: usize = 2;
/// How long one fetch waits; nothing depends on it, the next one follows.
const FETCH_WAIT: Duration = Duration::from_secs(5);

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
    let credit = subscribe.credit;
    let session = open(services, subscribe).await?;
    let served =
        Consumer { services, session: &session, batches, credit: u64::from(credit), unacked: VecDeque::new(), last: 0, ready: None }
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
    if subscribe.topics.is_empty() {
        return wrong("topics is empty; name at least one");
    }
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
        codec: &CODECS[0],
        auto_commit: false,
        auto_offset_reset,
        isolation: Isolation::ReadUncommitted,
        fetch_min_bytes: 1,
        request_timeout: FETCH_WAIT,
        acknowledged,
    };
    let session = services.sessions.create(&subscribe.group, None, settings)?;
    if let Err(error) = session.subscribe(subscribe.topics).await {
        services.sessions.remove(&session, false).await;
        return Err(error);
    }
    Ok(session)
}

async fn acknowledged(services: &Services, redelivery: Redelivery) -> Result<Acknowledged> {
    let Redelivery { visibility_timeout_ms, attempts_max, dead_letter_topic } = redelivery;
    let given = |number: u64| (number > 0).then_some(number);
    let dead_letters = (!dead_letter_topic.is_empty()).then_some(dead_letter_topic);
    let visibility = given(visibility_timeout_ms).map(Duration::from_millis);
    let acknowledged = Acknowledged::new(visibility, given(u64::from(attempts_max)), dead_letters, services.consume.session_idle)?;
    if let Some(letters) = &acknowledged.dead_letters {
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
            if self.credit > 0 && fetch.is_none() && self.ready.is_none() {
                let records_max = usize::try_from(self.credit).unwrap_or(usize::MAX).min(BATCH_RECORDS_MAX);
                let limits = Limits { records_max, bytes_max: BATCH_BYTES_MAX, bytes_min: 1, wait: FETCH_WAIT };
                fetch = Some(Box::pin(fetched(self.session, limits)));
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
                request = requests.next() => match request.transpose()? {
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
            Some(Request::Subscribe(_)) => Err(Status::failed_precondition("this stream is subscribed already; open another one")),
            None => Err(Status::invalid_argument("the message is empty; send Credit, Ack or Reject")),
        }
    }

    fn prepare(&mut self, records: WireRecords, id: Option<String>) {
        if records.records.is_empty() {
            return;
        }
        self.last += 1;
        self.credit = self.credit.saturating_sub(records.records.len() as u64);
        self.unacked.push_back(Sent { batch: self.last, ends: records.ends, id });
        let counted = self.session.count(records.bytes);
        self.ready = Some((ConsumeResponse { batch: self.last, records: records.records }, counted));
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
async fn fetched(session: &Arc<Session>, limits: Limits) -> Result<(WireRecords, Option<String>)> {
    if session.settings.acknowledged.is_none() {
        return Ok((session.fetch(limits, WireRecords::default()).await?, None));
    }
    let fetched = session.fetch_on(limits, WireRecords::default()).await?;
    Ok((fetched.answer, fetched.batch))
}

/// Records as they go over the wire, and the offsets behind them.
#[derive(Default)]
struct WireRecords {
    records: Vec<WireRecord>,
    bytes: usize,
    ends: BTreeMap<TopicPartition, i64>,
}

impl Encode for WireRecords {
    fn add(&mut self, partition: &TopicPartition, record: &Record) -> Result<bool> {
        self.ends.insert(partition.clone(), record.offset + 1);
        self.bytes += session::size(record);
        self.records.push(WireRecord {
            topic: partition.topic.to_string(),
            partition: Some(partition.partition),
            key: record.key.clone(),
            value: record.value.clone(),
            headers: record.headers.iter().map(|(key, value)| Header { key: key.clone(), value: value.clone() }).collect(),
            timestamp_ms: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
            offset: record.offset,
            attempt: 0,
        });
        Ok(true)
    }
}

impl EncodeBatch for WireRecords {
    fn add_attempt(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool> {
        let added = self.add(partition, record)?;
        if let Some(last) = self.records.last_mut() {
            last.attempt = attempt;
        }
        Ok(added)
    }

    fn unbounded(&mut self) {}

    fn clear(&mut self) {
        *self = Self::default();
    }
}
