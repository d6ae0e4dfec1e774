//! The topic with one set of settings: a producer for puts, and, from the first take on, a task that reads ahead.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use service_kit::kafka::{
    GroupReader, Joining, KafkaConfig, KafkaError, OutRecord, Producer, Record, TopicPartition, group_reader, producer,
};
use tokio::{
    sync::{Notify, OnceCell, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::window::Window;
use crate::channel::{Channel, Fill, PutError, Setup, Taken, Traffic};
use crate::counters::Counter;
use crate::event::{Event, acknowledge};
use crate::flume_conf::Component;
use crate::kafka_settings::{self, Client};
use crate::rpc::Malformed;
use crate::sink::dead_letter::{DIRECTORY, DeadLetters};
use crate::sink::flights::is_poison;
use crate::sink::record::Maker;
use crate::source::kafka::event::{KEY, read};

/// Longest wait of a read: how late a delivery is committed.
const READ_WAIT_MAX: Duration = Duration::from_millis(100);
const READ_MAX: usize = 1000;
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// How long sinks may take before fetches are held and polls only keep the member in its group.
const PATIENCE: Duration = Duration::from_millis(500);
const HELD_WAIT: Duration = Duration::from_millis(20);
/// The last commit and the good-bye, when no broker answers.
const LEAVE_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// What to do about a record that is no event.
const STOPPED: &str = "; the channel gives out nothing from it on, and it is not committed. To put such records aside instead, set \
                       deadLetter.directory";

/// Partitions with a record that is no event: their tenure, and what is wrong.
type Stopped = BTreeMap<TopicPartition, (u64, String)>;

pub(super) struct Session {
    name: String,
    writing: KafkaConfig,
    reading: KafkaConfig,
    maker: Maker,
    dead: DeadLetters,
    dead_count: Counter,
    /// Records that are no events are put aside, too.
    asides: bool,
    undecodable: Counter,
    group: String,
    reset: String,
    read_wait: Duration,
    flume_format: bool,
    events_max: usize,
    bytes_max: usize,
    producer: OnceCell<Arc<dyn Producer>>,
    window: Mutex<Window>,
    traffic: Arc<Mutex<Traffic>>,
    data: Notify,
    room: Notify,
    read_trouble: Mutex<Option<String>>,
    put_trouble: Mutex<Option<String>>,
    /// The record that was told last to stop the channel.
    told: Mutex<Option<(TopicPartition, i64)>>,
    reads: AtomicBool,
    stop: CancellationToken,
    /// True when the reading task has ended, or was never begun.
    ended: watch::Sender<bool>,
}

impl Session {
    pub(super) fn new(component: &Component, setup: &Setup, traffic: Arc<Mutex<Traffic>>) -> anyhow::Result<Self> {
        let reading = kafka_settings::config(component, Client::Consumer)?;
        let old = component.set("readSmallestOffset").is_some_and(|value| value.trim().eq_ignore_ascii_case("false"));
        let reset = reading.get("auto.offset.reset").map(str::to_ascii_lowercase);
        Ok(Self {
            name: component.name.clone(),
            writing: kafka_settings::config(component, Client::Producer)?,
            reset: reset.unwrap_or_else(|| if old { "latest".into() } else { "earliest".into() }),
            reading,
            maker: Maker::of_channel(component),
            dead: DeadLetters::of(component, &setup.state_dir),
            dead_count: Counter::new("millrace_collector_channel_dead_letters_total", "channel", &component.name),
            asides: component.set(DIRECTORY.name).is_some(),
            undecodable: Counter::new("millrace_collector_channel_undecodable_records_total", "channel", &component.name),
            group: component.text("kafka.consumer.group.id").trim().to_owned(),
            read_wait: component.millis("kafka.pollTimeout").min(READ_WAIT_MAX),
            flume_format: component.boolean("parseAsFlumeEvent"),
            events_max: component.count("queue.events"),
            bytes_max: component.count("queue.bytes"),
            producer: OnceCell::new(),
            window: Mutex::default(),
            traffic,
            data: Notify::new(),
            room: Notify::new(),
            read_trouble: Mutex::default(),
            put_trouble: Mutex::default(),
            told: Mutex::default(),
            reads: AtomicBool::new(false),
            stop: CancellationToken::new(),
            ended: watch::Sender::new(true),
        })
    }

    /// Commits what was delivered and leaves the group.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        let mut ended = self.ended.subscribe();
        if timeout(LEAVE_MAX, ended.wait_for(|ended| *ended)).await.is_err() {
            tracing::warn!(channel = self.name, "the group's coordinator does not answer; events delivered last may come again");
        }
    }

    /// Sends until every record is written or can never be; an error only when none is.
    async fn write(&self, events: &[Event]) -> Result<Vec<(Event, String)>, KafkaError> {
        let producer = self.producer.get_or_try_init(|| producer(&self.writing)).await?;
        let mut letters = Vec::new();
        let (mut at, mut records): (Vec<usize>, Vec<OutRecord>) = (Vec::new(), Vec::new());
        for (index, event) in events.iter().enumerate() {
            match self.maker.record(event) {
                Ok(record) => {
                    at.push(index);
                    records.push(record);
                }
                Err(poison) => letters.push((event.clone(), poison.0)),
            }
        }
        let (mut written, mut backoff) = (false, BACKOFF_MIN);
        while !records.is_empty() {
            let results = producer.send(records.clone()).await;
            let mut error = None;
            let mut again = Vec::new();
            for ((index, record), result) in at.iter().copied().zip(records).zip(results) {
                match result {
                    Ok(_) => written = true,
                    Err(fault) if is_poison(&fault, self.maker.topic()) => letters.push((events[index].clone(), fault.to_string())),
                    Err(fault) => {
                        again.push((index, record));
                        error = Some(fault);
                    }
                }
            }
            (at, records) = again.into_iter().unzip();
            if let Some(error) = error {
                if !written {
                    return Err(error);
                }
                // The source would put all of it again, and what is written would be there twice.
                *self.put_trouble.lock() = Some(error.to_string());
                sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        *self.put_trouble.lock() = None;
        Ok(letters)
    }

    /// Begins to read ahead; Kafka knows this member from now on.
    fn begin(self: &Arc<Self>) {
        if !self.reads.swap(true, AcqRel) && !self.stop.is_cancelled() {
            self.ended.send_replace(false);
            let session = self.clone();
            drop(tokio::spawn(async move {
                session.read_on().await;
                session.ended.send_replace(true);
            }));
        }
    }

    async fn read_on(&self) {
        let mut backoff = BACKOFF_MIN;
        let mut told = String::new();
        // Readers' tenures are numbered from 0.
        for reader_number in 0u64.. {
            let joining = Joining { group: &self.group, auto_offset_reset: &self.reset, queue_bytes_max: self.bytes_max };
            let joined = tokio::select! {
                joined = group_reader(&self.reading, &joining) => joined,
                () = self.stop.cancelled() => return,
            };
            let result = match joined {
                Ok(reader) => {
                    let result = self.read_with(reader.as_ref(), reader_number << 32).await;
                    reader.close().await;
                    result
                }
                Err(error) => Err(error),
            };
            // What waits comes again to the next reader, or to another member.
            self.window.lock().keep(|_| None);
            let Err(error) = result else { return };
            let text = error.to_string();
            // An outage is told where it is seen.
            if told != text && !error.retryable() {
                tracing::warn!(channel = self.name, %error, "cannot read; trying again until it can");
            }
            *self.read_trouble.lock() = Some(text.clone());
            told = text;
            tokio::select! {
                () = sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Until told to stop; an error means that another reader is needed.
    async fn read_with(&self, reader: &dyn GroupReader, tenures_from: u64) -> Result<(), KafkaError> {
        let tenure = |partition: &TopicPartition| reader.tenure(partition).map(|tenure| tenures_from + tenure);
        reader.subscribe(&[self.maker.topic().to_string()]).await?;
        let mut committed_at = Instant::now();
        let mut stopped = Stopped::default();
        loop {
            let stopping = self.stop.is_cancelled();
            if stopping || committed_at.elapsed() >= COMMIT_INTERVAL {
                committed_at = Instant::now();
                let due = {
                    let mut window = self.window.lock();
                    window.keep(tenure);
                    window.due()
                };
                match reader.commit(due.clone(), "").await {
                    Ok(()) => self.window.lock().settled(&due),
                    Err(error) if stopping => {
                        tracing::warn!(channel = self.name, %error, "the last offsets are not committed; their events come again");
                    }
                    Err(error) if !error.retryable() && !matches!(error, KafkaError::Conflict(_)) => return Err(error),
                    // What is due stays so, unless the partition is gone.
                    Err(_) => {}
                }
            }
            if stopping {
                return Ok(());
            }
            // Whoever has the partition now meets the record again.
            stopped.retain(|partition, (known, _)| tenure(partition) == Some(*known));
            let room = if stopped.is_empty() { self.room() } else { None };
            let read = match room {
                Some((events, bytes)) => {
                    reader.hold(false).await?;
                    reader.read(events.min(READ_MAX), bytes, self.read_wait).await
                }
                None => {
                    let freed = timeout(PATIENCE, self.room.notified()).await.is_ok();
                    if (freed && stopped.is_empty()) || self.stop.is_cancelled() {
                        continue;
                    }
                    reader.hold(true).await?;
                    reader.read(1, 1, HELD_WAIT).await
                }
            };
            match read {
                Ok(records) => {
                    self.add(records, tenure, &mut stopped).await?;
                    let of_record = stopped.values().next().map(|(_, reason)| reason.clone());
                    *self.read_trouble.lock() = of_record.or_else(|| reader.trouble());
                }
                Err(error) if error.retryable() => *self.read_trouble.lock() = Some(error.to_string()),
                // Lost for a slow answer: the next poll joins again.
                Err(KafkaError::Conflict(reason)) if !reason.contains("auto.offset.reset") => {
                    tracing::warn!(channel = self.name, reason, "the group went on without this member; joining again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Events and bytes that may be read now.
    fn room(&self) -> Option<(usize, usize)> {
        let window = self.window.lock();
        let events = self.events_max.saturating_sub(window.events());
        let bytes = self.bytes_max.saturating_sub(window.bytes());
        (events > 0 && bytes > 0).then_some((events, bytes))
    }

    /// A record that is no event goes to the dead letters, where those are asked for. Else it stops the channel: nothing of its
    /// partition is given out any more, and no offset at or behind it is committed.
    async fn add(
        &self,
        records: Vec<(TopicPartition, Record)>,
        tenure: impl Fn(&TopicPartition) -> Option<u64>,
        stopped: &mut Stopped,
    ) -> Result<(), KafkaError> {
        let (mut read, mut letters) = (Vec::with_capacity(records.len()), Vec::new());
        for (partition, record) in records {
            // Rebalances happen in reads alone: it is this member's still.
            let Some(tenure) = tenure(&partition) else { continue };
            if stopped.contains_key(&partition) {
                continue;
            }
            let event = match self.event(&record) {
                Ok(event) => Some(event),
                Err(error) => {
                    self.undecodable.add(1);
                    let offset = record.offset;
                    let reason = format!(
                        "the record at offset {offset} of {partition} is no event in Flume's form ({error}); if its producers are not \
                         Flume, set parseAsFlumeEvent = false"
                    );
                    if !self.asides {
                        self.stop_at(&partition, offset, &reason);
                        stopped.insert(partition, (tenure, format!("{reason}{STOPPED}")));
                        continue;
                    }
                    letters.push((Event::new(record.value.unwrap_or_default()), reason));
                    None
                }
            };
            read.push((partition, tenure, record.offset, event));
        }
        let unwritten = |error| KafkaError::Fatal(format!("dead letters cannot be written: {error}"));
        self.dead.put(letters, &self.dead_count).await.map_err(unwritten)?;
        let mut window = self.window.lock();
        // A read may have brought another tenure: what waits of the old one comes again.
        window.keep(&tenure);
        for (partition, tenure, offset, event) in read {
            window.add(&partition, tenure, offset, event);
        }
        if window.has_waiting() {
            self.data.notify_one();
        }
        Ok(())
    }

    fn stop_at(&self, partition: &TopicPartition, offset: i64, reason: &str) {
        let record = Some((partition.clone(), offset));
        if std::mem::replace(&mut *self.told.lock(), record.clone()) != record {
            tracing::error!(channel = self.name, "{reason}{STOPPED}");
        }
    }

    fn event(&self, record: &Record) -> Result<Event, Malformed> {
        let mut event = read(record.value.clone(), self.flume_format)?;
        if let Some(key) = &record.key {
            event.set_header(KEY, String::from_utf8_lossy(key).into_owned());
        }
        Ok(event)
    }

    fn try_take(&self, max: usize) -> Vec<Event> {
        let (events, more) = {
            let mut window = self.window.lock();
            (window.take(max), window.has_waiting())
        };
        if more {
            // Another sink may take what is left.
            self.data.notify_one();
        }
        self.traffic.lock().take_attempts += events.len() as u64;
        events
    }
}

#[async_trait]
impl Channel for Session {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        self.traffic.lock().put_attempts += events.len() as u64;
        if events.len() > self.events_max {
            return Err(PutError::BatchTooLarge { events: events.len(), max: self.events_max });
        }
        let failed = |reason: String| {
            *self.put_trouble.lock() = Some(reason.clone());
            PutError::Failed { reason }
        };
        let letters = self.write(events).await.map_err(|error| failed(error.to_string()))?;
        self.dead.put(letters, &self.dead_count).await.map_err(|error| failed(error.to_string()))?;
        self.traffic.lock().put_successes += events.len() as u64;
        // They outlive the process from here on.
        acknowledge(events);
        events.clear();
        Ok(())
    }

    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken {
        self.begin();
        let deadline = Instant::now() + wait;
        loop {
            let data = self.data.notified();
            let events = self.try_take(max);
            if !events.is_empty() || timeout_at(deadline, data).await.is_err() {
                return Taken::new(events, self.clone());
            }
        }
    }

    fn committed(&self, events: &[Event]) {
        self.window.lock().committed(events);
        self.traffic.lock().take_successes += events.len() as u64;
        self.room.notify_one();
    }

    fn returned(&self, events: Vec<Event>) {
        self.window.lock().returned(events);
        self.data.notify_one();
    }

    fn transaction_capacity(&self) -> usize {
        self.events_max
    }

    fn fill(&self) -> Fill {
        let window = self.window.lock();
        Fill { events: window.events(), events_max: self.events_max, bytes: window.bytes(), bytes_max: self.bytes_max }
    }

    fn traffic(&self) -> Traffic {
        *self.traffic.lock()
    }

    fn reconfigure(&self, _component: &Component) {}

    fn trouble(&self) -> Option<String> {
        let puts = self.put_trouble.lock().clone();
        puts.or_else(|| self.read_trouble.lock().clone()).or_else(|| self.producer.get()?.trouble())
    }
}
