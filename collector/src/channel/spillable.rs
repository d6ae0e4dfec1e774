//! The spillable channel: in memory while that is enough, on disk beyond it. Order is kept: while anything is on disk, new
//! events go there too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;

use super::file::{self, Limits, channel::FileChannel, disk::RealDisk};
use super::memory::{self, MemoryChannel};
use super::{Channel, Fill, PutError, Setup, Taken, Traffic};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Channel,
    alias: Some("spillablememory"),
    class: Some("org.apache.flume.channel.SpillableMemoryChannel"),
    doc: "Events in memory, and on disk when they are too many. What is in memory is lost with the process; tailed files are read again from the first line of it on, so lines behind it that were on disk come twice.",
    properties: &[
        Property::integer("memoryCapacity", 0, 100_000_000, Some("10000"), "Events in memory. 0: all on disk."),
        Property::integer(
            "overflowCapacity",
            0,
            i64::MAX,
            Some("100000000"),
            "Events on disk. 0: memory alone, and full means that sources wait.",
        ),
        Property::integer("overflowTimeout", 0, 86_400, Some("3"), "Seconds a put waits for room in memory before it goes to disk."),
        Property::integer(
            "overflowDeactivationThreshold",
            0,
            100,
            Some("5"),
            "Accepted: memory is used again when nothing is on disk, so that order is kept.",
        ),
        Property::integer("avgEventSize", 1, i64::MAX, Some("500"), "Accepted: bytes are counted as they are."),
        Property::integer(
            "byteCapacity",
            0,
            i64::MAX,
            Some("33554432"),
            "Bytes in memory: bodies and about 64 bytes an event. 0 is no bound. (Flume: 80 % of the heap.)",
        ),
        Property::integer(
            "byteCapacityBufferPercentage",
            0,
            99,
            Some("20"),
            "Share of `byteCapacity` left free for headers, in percent. Counts only where `byteCapacity` is set.",
        ),
        file::CHECKPOINT_DIR,
        file::DATA_DIRS,
        file::TRANSACTION_CAPACITY,
        file::KEEP_ALIVE,
        file::MAX_FILE_SIZE,
        file::MINIMUM_SPACE,
        file::CHECKPOINT_INTERVAL,
        file::CHECKPOINT_ON_CLOSE,
        file::FSYNC,
        file::FSYNC_INTERVAL,
        file::DUAL_CHECKPOINTS,
        file::BACKUP_DIR,
        file::COMPRESS_BACKUP,
        file::REPLAY_V1,
        file::FAST_REPLAY,
        file::ENCRYPTION,
        file::MAX_BYTES,
        file::MEMORY_BYTES,
    ],
    deprecated: &[],
    misspelt: &[
        ("memorycapacity", "memoryCapacity"),
        ("overflowcapacity", "overflowCapacity"),
        ("capacity", "memoryCapacity"),
        ("dataDir", "dataDirs"),
    ],
    adopt: adopts_nothing,
    batch: None,
    review: file::review,
};

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Arc<dyn Channel>> {
    let (memory, disk) = limits(component);
    Ok(Arc::new(Spillable {
        memory: Arc::new(MemoryChannel::new(memory)),
        disk: Arc::new(file::open(component, &setup, disk)?),
        memory_max: AtomicUsize::new(component.count("memoryCapacity")),
        spills: AtomicBool::new(component.count("overflowCapacity") > 0),
    }))
}

fn limits(component: &Component) -> (memory::Limits, Limits) {
    // Lines before those on disk may have been in memory, and lost with the process: they are put again.
    let disk = Limits { events_max: component.count("overflowCapacity"), remembers: false, ..Limits::of(component) };
    let bytes = component.count("byteCapacity");
    let spare = if component.set("byteCapacity").is_some() { component.count("byteCapacityBufferPercentage") } else { 0 };
    let memory = memory::Limits {
        events_max: component.count("memoryCapacity"),
        transaction_max: disk.transaction_max,
        bytes_max: if bytes == 0 { usize::MAX } else { bytes / 100 * (100 - spare.min(99)) },
        keep_alive: Duration::from_secs(component.count("overflowTimeout") as u64),
    };
    (memory, disk)
}

struct Spillable {
    memory: Arc<MemoryChannel>,
    disk: Arc<FileChannel<RealDisk>>,
    memory_max: AtomicUsize,
    spills: AtomicBool,
}

impl Spillable {
    /// Would the batch find room in memory that is larger than it?
    fn is_for_memory(&self, events: usize) -> bool {
        let spills = self.spills.load(Relaxed);
        !spills || (self.disk.fill().events == 0 && events <= self.memory_max.load(Relaxed))
    }
}

#[async_trait]
impl Channel for Spillable {
    async fn put(&self, events: &mut Vec<Event>) -> Result<(), PutError> {
        if self.is_for_memory(events.len()) {
            match self.memory.put(events).await {
                Err(PutError::Full { .. }) if self.spills.load(Relaxed) => {}
                result => return result,
            }
        }
        self.disk.put(events).await
    }

    /// What it gives is one or the other's: they put back and forget their own.
    async fn take(self: Arc<Self>, max: usize, wait: Duration) -> Taken {
        // Memory holds what came before everything on disk.
        let at_once = self.memory.clone().take(max, Duration::ZERO).await;
        if !at_once.is_empty() {
            return at_once;
        }
        // Each of them takes nothing when its call is dropped.
        tokio::select! {
            biased;
            taken = self.memory.clone().take(max, wait) => taken,
            taken = self.disk.clone().take(max, wait + Duration::from_millis(1)) => taken,
        }
    }

    fn committed(&self, _events: &[Event]) {}

    fn returned(&self, _events: Vec<Event>) {}

    fn transaction_capacity(&self) -> usize {
        self.disk.transaction_capacity()
    }

    fn fill(&self) -> Fill {
        let (memory, disk) = (self.memory.fill(), self.disk.fill());
        Fill {
            events: memory.events + disk.events,
            events_max: memory.events_max.saturating_add(disk.events_max),
            bytes: memory.bytes + disk.bytes,
            bytes_max: memory.bytes_max.saturating_add(disk.bytes_max),
        }
    }

    fn traffic(&self) -> Traffic {
        let (memory, disk) = (self.memory.traffic(), self.disk.traffic());
        Traffic {
            put_attempts: memory.put_successes + disk.put_attempts,
            put_successes: memory.put_successes + disk.put_successes,
            take_attempts: memory.take_attempts + disk.take_attempts,
            take_successes: memory.take_successes + disk.take_successes,
            ..disk
        }
    }

    fn reconfigure(&self, component: &Component) {
        let (memory, disk) = limits(component);
        self.memory_max.store(memory.events_max, Relaxed);
        self.spills.store(disk.events_max > 0, Relaxed);
        self.memory.set_limits(memory);
        self.disk.set_limits(disk);
    }

    fn at_risk(&self) -> usize {
        self.memory.fill().events
    }

    fn trouble(&self) -> Option<String> {
        self.disk.trouble()
    }

    fn close(&self) {
        self.disk.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Origin;
    use crate::flume_conf::component::Setting;
    use crate::source::tail::identity::TailedFile;

    fn open(directory: &std::path::Path, settings: &[(&str, &str)]) -> Arc<dyn Channel> {
        let mut component = Component::new(&KIND, "c", "spillablememory");
        let small = [("minimumRequiredSpace", "1048576"), ("overflowTimeout", "0"), ("keep-alive", "0")];
        for (key, value) in small.iter().chain(settings) {
            component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
        }
        build(&component, Setup { state_dir: directory.to_owned() }).unwrap()
    }

    async fn put(channel: &Arc<dyn Channel>, bodies: std::ops::Range<u32>) -> Result<(), PutError> {
        channel.put(&mut bodies.map(|body| Event::new(body.to_string())).collect()).await
    }

    async fn take(channel: &Arc<dyn Channel>, max: usize) -> (Vec<u32>, Taken) {
        let taken = channel.clone().take(max, Duration::from_secs(5)).await;
        (taken.events().iter().map(|event| std::str::from_utf8(&event.body).unwrap().parse().unwrap()).collect(), taken)
    }

    #[tokio::test]
    async fn order_is_kept_over_memory_and_disk_and_what_is_on_disk_outlives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let channel = open(directory.path(), &[("memoryCapacity", "5")]);
        put(&channel, 0..3).await.unwrap();
        put(&channel, 3..5).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (5, 5));
        put(&channel, 5..8).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (8, 5));
        let (bodies, first) = take(&channel, 3).await;
        assert_eq!(bodies, [0, 1, 2]);
        first.commit();
        // There is room in memory, but older events are on disk.
        put(&channel, 8..10).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (7, 2));
        let (bodies, second) = take(&channel, 10).await;
        assert_eq!(bodies, [3, 4]);
        let (bodies, third) = take(&channel, 4).await;
        assert_eq!(bodies, [5, 6, 7, 8]);
        third.rollback();
        second.rollback();
        let (bodies, second) = take(&channel, 10).await;
        assert_eq!(bodies, [3, 4]);
        second.commit();
        let (bodies, third) = take(&channel, 2).await;
        assert_eq!(bodies, [5, 6]);
        third.commit();
        channel.close();
        drop(channel);

        let channel = open(directory.path(), &[("memoryCapacity", "5")]);
        let (bodies, taken) = take(&channel, 10).await;
        assert_eq!(bodies, [7, 8, 9]);
        taken.commit();
        // Memory again.
        put(&channel, 10..12).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (2, 2));
    }

    /// A tailed file is read again from the first line that was in memory, and lines behind it are on disk.
    #[tokio::test]
    async fn what_was_in_memory_when_the_process_was_killed_is_taken_again() {
        let directory = tempfile::tempdir().unwrap();
        let origin = Arc::new(Origin::of_file(Arc::new(TailedFile::for_test(1)), None));
        let lines = |lines: std::ops::Range<u32>| {
            let line = |line: u32| Event { end: u64::from(line) + 1, origin: Some(origin.clone()), ..Event::new(line.to_string()) };
            lines.map(line).collect::<Vec<_>>()
        };
        let channel = open(directory.path(), &[("memoryCapacity", "5")]);
        channel.put(&mut lines(0..5)).await.unwrap();
        channel.put(&mut lines(5..8)).await.unwrap();
        assert_eq!(channel.at_risk(), 5);
        drop(channel);
        let channel = open(directory.path(), &[("memoryCapacity", "5")]);
        channel.put(&mut lines(0..5)).await.unwrap();
        channel.put(&mut lines(5..8)).await.unwrap();
        let (mut all, taken) = take(&channel, 100).await;
        taken.commit();
        all.extend(take(&channel, 100).await.0);
        assert_eq!(all, [5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn without_memory_all_is_on_disk_and_without_disk_it_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let channel = open(directory.path(), &[("memoryCapacity", "0")]);
        put(&channel, 0..3).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (3, 0));
        let directory = tempfile::tempdir().unwrap();
        let channel = open(directory.path(), &[("memoryCapacity", "2"), ("overflowCapacity", "0")]);
        put(&channel, 0..2).await.unwrap();
        assert!(matches!(put(&channel, 2..3).await, Err(PutError::Full { .. })));
        // A batch larger than all of the memory goes to disk at once.
        let directory = tempfile::tempdir().unwrap();
        let channel = open(directory.path(), &[("memoryCapacity", "2")]);
        put(&channel, 0..9).await.unwrap();
        assert_eq!((channel.fill().events, channel.at_risk()), (9, 0));
    }
}
