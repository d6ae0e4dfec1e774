//! What receivers and file streams keep their records in: a log with offsets, in memory or on disk.
//!
//! Offsets count records and go on over restarts. Bytes are bounded (`receiver.bytes.max`): who appends waits until batches
//! have made room. In memory everything counts that may be read again, windows included; on disk what no committed batch has
//! read yet, for the rest is not in memory.
//!
//! | file | |
//! |---|---|
//! | `wal` | segments on disk: format, crashes, damage |
//! | `room` | the bound |

mod room;
#[cfg(test)]
mod tests;
mod wal;

use std::{
    collections::VecDeque,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use service_kit::kafka::{Bounds, KafkaError, Record};
use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};
use tracing::{error, info, warn};

pub(super) use self::room::Held;
use self::room::Room;
use self::wal::Wal;
use super::local::{Place, Released};

/// What a record takes beside its bytes.
const RECORD_OVERHEAD: u64 = 64;
/// Appends that wait for the disk together.
const GROUP_MAX: usize = 1024;
const GROUP_BYTES: u64 = 8 << 20;

/// Why nothing was stored. What was to be stored is given back.
pub(super) struct NotStored {
    pub(super) reason: String,
    pub(super) records: Vec<Bytes>,
    pub(super) held: Held,
}

/// A log and its bound. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log(Arc<Inner>);

struct Inner {
    place: Place,
    store: Store,
    room: Arc<Room>,
    /// `(offset behind it, bytes)` of what counts for the bound, oldest first.
    counted: Mutex<VecDeque<(i64, u64)>>,
    lost: Counter,
    told_of_loss: AtomicBool,
}

enum Store {
    Memory(Mutex<Memory>),
    Disk { wal: Arc<Wal>, queue: Mutex<Option<mpsc::Sender<Append>>>, bytes: Gauge },
}

#[derive(Default)]
struct Memory {
    blocks: VecDeque<Block>,
    next: i64,
    closed: bool,
}

struct Block {
    first: i64,
    timestamp_ms: i64,
    records: Arc<Vec<Bytes>>,
}

impl Block {
    fn end(&self) -> i64 {
        self.first + self.records.len() as i64
    }
}

struct Append {
    records: Vec<Bytes>,
    held: Held,
    done: oneshot::Sender<Result<(), NotStored>>,
}

const CLOSED: &str = "the log is closed: the job stops";

impl Log {
    /// In memory, or on disk below the checkpoint's folder.
    pub(super) async fn open(place: &Place, durable: bool) -> anyhow::Result<Self> {
        let labels = [("job", place.job.to_string()), ("source", place.source.to_string())];
        let room = Room::new(place.settings.receiver.bytes_max, metrics::gauge!("millrace_engine_receiver_held_bytes", &labels));
        let store = if durable { Store::open(place, &labels).await? } else { Store::Memory(Mutex::default()) };
        let lost = metrics::counter!("millrace_engine_receiver_lost_records_total", &labels);
        Ok(Self(Arc::new(Inner {
            place: place.clone(),
            store,
            room,
            counted: Mutex::default(),
            lost,
            told_of_loss: AtomicBool::new(false),
        })))
    }

    /// Offsets go on at `next`, or behind what is there.
    pub(super) fn begin(&self, next: i64) {
        match &self.0.store {
            Store::Memory(memory) => memory.lock().next = next,
            Store::Disk { wal, queue, bytes } => {
                let (earliest, latest) = wal.bounds();
                if latest < next && latest > 0 {
                    warn!(
                        job = %self.0.place.job, source = %self.0.place.source, latest, next,
                        "the write-ahead log ends before the checkpoint's position: records were lost with the disk's contents"
                    );
                }
                wal.go_on_at(next);
                let waiting = wal.held_behind(next);
                if let Some((until, _)) = waiting.last() {
                    info!(job = %self.0.place.job, source = %self.0.place.source, records = until - next.max(earliest), "records of an earlier process wait in the write-ahead log");
                }
                self.0.room.force(waiting.iter().map(|(_, bytes)| bytes).sum());
                self.0.counted.lock().extend(waiting);
                bytes.set(wal.bytes() as f64);
                let (give, take) = mpsc::channel(GROUP_MAX);
                *queue.lock() = Some(give);
                let log = self.clone();
                self.0.place.tasks.spawn_blocking(move || log.write(take));
            }
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        match &self.0.store {
            Store::Memory(memory) => {
                let memory = memory.lock();
                Bounds { earliest: memory.blocks.front().map_or(memory.next, |block| block.first), latest: memory.next }
            }
            Store::Disk { wal, .. } => {
                let (earliest, latest) = wal.bounds();
                Bounds { earliest: earliest.min(latest), latest }
            }
        }
    }

    /// Waits for room for these records.
    pub(super) async fn room(&self, records: &[Bytes]) -> Held {
        self.0.room.take(records.iter().map(|record| record.len() as u64 + RECORD_OVERHEAD).sum()).await
    }

    pub(super) fn no_room(&self) -> Held {
        Held::nothing(&self.0.room)
    }

    /// Records in one block: all of them or none. Returns when they are there to be read, and on disk where the log is.
    pub(super) async fn append(&self, records: Vec<Bytes>, held: Held) -> Result<(), NotStored> {
        if records.is_empty() {
            return Ok(());
        }
        let queue = match &self.0.store {
            Store::Memory(memory) => return self.remember(&mut memory.lock(), records, held),
            Store::Disk { queue, .. } => queue.lock().clone(),
        };
        let Some(queue) = queue else { return Err(NotStored { reason: CLOSED.into(), records, held }) };
        let (done, answer) = oneshot::channel();
        if let Err(mpsc::error::SendError(append)) = queue.send(Append { records, held, done }).await {
            return Err(NotStored { reason: CLOSED.into(), records: append.records, held: append.held });
        }
        // The writer answers whatever happens, unless it panics.
        answer.await.unwrap_or_else(|_| {
            Err(NotStored { reason: "the write-ahead log's writer is gone".into(), records: Vec::new(), held: self.no_room() })
        })
    }

    fn remember(&self, memory: &mut Memory, records: Vec<Bytes>, held: Held) -> Result<(), NotStored> {
        if memory.closed {
            return Err(NotStored { reason: CLOSED.into(), records, held });
        }
        let block = Block { first: memory.next, timestamp_ms: self.0.place.clock.now_ms(), records: Arc::new(records) };
        memory.next = block.end();
        self.0.counted.lock().push_back((block.end(), held.keep()));
        memory.blocks.push_back(block);
        Ok(())
    }

    /// Writes what comes, everything that waits at once, until the queue is closed.
    fn write(&self, mut queue: mpsc::Receiver<Append>) {
        let Store::Disk { wal, bytes, .. } = &self.0.store else { return };
        while let Some(first) = queue.blocking_recv() {
            let mut group = vec![first];
            let mut size: u64 = group.iter().flat_map(|append| &append.records).map(|record| record.len() as u64).sum();
            while size < GROUP_BYTES
                && let Ok(append) = queue.try_recv()
            {
                size += append.records.iter().map(|record| record.len() as u64).sum::<u64>();
                group.push(append);
            }
            let records: Vec<Bytes> = group.iter().flat_map(|append| append.records.iter().cloned()).collect();
            match wal.append(&records, self.0.place.clock.now_ms()) {
                Ok(until) => {
                    bytes.set(wal.bytes() as f64);
                    let held = group.into_iter().map(|append| {
                        // Who asked may be gone.
                        append.done.send(Ok(())).ok();
                        append.held.keep()
                    });
                    let held = held.sum();
                    self.0.counted.lock().push_back((until, held));
                }
                Err(error) => {
                    let reason = format!("cannot write to the write-ahead log: {error}");
                    error!(job = %self.0.place.job, source = %self.0.place.source, "{reason}");
                    for Append { records, held, done } in group {
                        done.send(Err(NotStored { reason: reason.clone(), records, held })).ok();
                    }
                }
            }
        }
        wal.unlock();
    }

    /// What is there of a range, looked up when it is read. What is gone is said, counted and left out.
    pub(super) fn read(&self, from: i64, until: i64) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        let log = self.clone();
        let chunks = async move { log.chunks(from..until) };
        let log = self.clone();
        let range = from..until;
        let mut found = 0;
        let chunks = stream::once(chunks).flatten().map_ok(move |mut records| {
            records.retain(|record| range.contains(&record.offset));
            records
        });
        let counted = chunks.map(Some).chain(stream::iter([None])).filter_map(move |chunk| {
            match &chunk {
                Some(Ok(records)) => found += records.len() as u64,
                // Not known to be gone.
                Some(Err(_)) => found = u64::MAX,
                None => log.count_lost(from, u64::try_from(until - from).unwrap_or(0).saturating_sub(found)),
            }
            std::future::ready(chunk)
        });
        counted.boxed()
    }

    fn chunks(&self, range: Range<i64>) -> BoxStream<'static, Result<Vec<Record>, KafkaError>> {
        match &self.0.store {
            Store::Memory(memory) => stream::iter(memory.lock().read(&range).into_iter().map(Ok)).boxed(),
            Store::Disk { wal, .. } => stream::iter(wal.spans(range))
                .then(|span| async move {
                    let read = spawn_blocking(move || span.read()).await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
                    read.map_err(|error| KafkaError::Fatal(format!("the write-ahead log cannot be read: {error}")))
                })
                .boxed(),
        }
    }

    fn count_lost(&self, from: i64, lost: u64) {
        if lost == 0 {
            return;
        }
        self.0.lost.increment(lost);
        if !self.0.told_of_loss.swap(true, Relaxed) {
            warn!(
                job = %self.0.place.job, source = %self.0.place.source, from, lost,
                "records of a batch, or of a window, were lost with the process that received them; it runs without them (a write-ahead log keeps them: spark.streaming.receiver.writeAheadLog.enable)"
            );
        }
    }

    /// Makes room, and forgets what nobody reads again.
    pub(super) fn release(&self, released: Released) {
        let floor = match &self.0.store {
            Store::Memory(memory) => {
                let mut memory = memory.lock();
                while memory.blocks.front().is_some_and(|block| block.end() <= released.wanted) {
                    memory.blocks.pop_front();
                }
                released.wanted
            }
            Store::Disk { wal, bytes, .. } => {
                let (wal, bytes) = (wal.clone(), bytes.clone());
                self.0.place.tasks.spawn_blocking(move || {
                    wal.release(released.replayed);
                    bytes.set(wal.bytes() as f64);
                });
                released.processed
            }
        };
        let mut freed = 0;
        let mut counted = self.0.counted.lock();
        while let Some((_, bytes)) = counted.pop_front_if(|(end, _)| *end <= floor) {
            freed += bytes;
        }
        drop(counted);
        self.0.room.give(freed);
    }

    /// Nothing is stored any more.
    pub(super) fn close(&self) {
        match &self.0.store {
            Store::Memory(memory) => memory.lock().closed = true,
            Store::Disk { wal, queue, .. } => {
                // Else the writer does it, when it has written everything.
                if queue.lock().take().is_none() {
                    wal.unlock();
                }
            }
        }
    }
}

impl Memory {
    fn read(&self, range: &Range<i64>) -> Vec<Vec<Record>> {
        let begin = self.blocks.partition_point(|block| block.end() <= range.start);
        let blocks = self.blocks.iter().skip(begin).take_while(|block| block.first < range.end);
        blocks
            .map(|block| {
                let records = block.records.iter().zip(block.first..).filter(|(_, offset)| range.contains(offset));
                let record = |(value, offset): (&Bytes, i64)| Record {
                    offset,
                    timestamp_ms: block.timestamp_ms,
                    key: None,
                    value: Some(value.clone()),
                    headers: Vec::new(),
                };
                records.map(record).collect()
            })
            .collect()
    }
}

impl Store {
    async fn open(place: &Place, labels: &[(&'static str, String); 2]) -> anyhow::Result<Self> {
        let Some(folder) = place.folder.clone() else {
            anyhow::bail!(
                "source `{}`: spark.streaming.receiver.writeAheadLog.enable needs a checkpoint in a folder (a path or file:///path), which holds the log; \
                 this job's is `{}`",
                place.source,
                place.checkpoint
            );
        };
        let settings = place.settings.receiver.write_ahead_log.clone();
        let (path, wrong): (PathBuf, _) = (folder.clone(), format!("source `{}`: write-ahead log `{}`", place.source, folder.display()));
        let opened = spawn_blocking(move || Wal::open(&path, settings)).await?;
        let (wal, damages) = opened.map_err(|error| anyhow::anyhow!("{wrong}: {error}"))?;
        for damage in &damages {
            if place.settings.fail_on_data_loss {
                anyhow::bail!("{wrong}: {damage}. Set failOnDataLoss=false to go on without them");
            }
            warn!(%damage, job = %place.job, source = %place.source, "data loss is accepted (failOnDataLoss=false)");
        }
        let bytes = metrics::gauge!("millrace_engine_receiver_log_bytes", labels);
        Ok(Self::Disk { wal: Arc::new(wal), queue: Mutex::new(None), bytes })
    }
}
