//! The file channel against a model, on a disk that loses, tears, fills up and fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;

use super::channel::FileChannel;
use super::log::Place;
use super::simulated::SimDisk;
use super::*;
use crate::channel::{PutError, Taken};
use crate::event::{Event, Origin};

pub(super) fn limits() -> Limits {
    Limits {
        events_max: 1000,
        transaction_max: 100,
        bytes_max: usize::MAX,
        memory_bytes: 600,
        keep_alive: Duration::ZERO,
        file_bytes_max: 700,
        space_min: 0,
        checkpoint_interval: Duration::from_secs(3600),
        checkpoint_on_close: true,
        sync_each: true,
        sync_interval: Duration::from_secs(5),
        remembers: true,
    }
}

pub(super) fn place(disk: &SimDisk) -> Place<SimDisk> {
    Place { disk: disk.clone(), checkpoint: "/checkpoint".into(), data: vec!["/data1".into(), "/data2".into()] }
}

pub(super) fn open_with(disk: &SimDisk, limits: Limits) -> anyhow::Result<Arc<FileChannel<SimDisk>>> {
    Ok(Arc::new(FileChannel::open("c", place(disk), limits, false)?))
}

pub(super) fn open(disk: &SimDisk) -> Arc<FileChannel<SimDisk>> {
    open_with(disk, limits()).unwrap()
}

/// The model's first event.
pub(super) const MODEL: u32 = 10_000;

/// Everything about an event follows from its number, so that wrong bytes are seen.
pub(super) fn event(id: u32) -> Event {
    // Those from `MODEL` on are now and then larger than two of the larger sectors.
    let more = if id >= MODEL && id % 7 == 3 { 9000 } else { 0 };
    let mut event = Event::new(format!("{id} {}", "x".repeat(id as usize * 7 % 60 + more)));
    if id.is_multiple_of(3) {
        event = Event::with_headers(event.body, [("id", id.to_string().as_str()), ("", "ä")]);
    }
    if id % 5 < 2 {
        event.origin = Some(Arc::new(Origin::traced(Some(format!("00-{:032x}-01", id / 5)))));
    }
    event
}

fn id(event: &Event) -> Result<u32, String> {
    let text = std::str::from_utf8(&event.body).map_err(|_| "not text")?;
    let id: u32 = text.split(' ').next().unwrap_or_default().parse().map_err(|_| format!("not an event: {text}"))?;
    let right = self::event(id);
    let trace = |event: &Event| event.origin.as_ref().and_then(|origin| origin.trace.clone());
    if (&event.body, &event.headers) != (&right.body, &right.headers) || (trace(event).is_some() && trace(event) != trace(&right)) {
        return Err(format!("{event:?} instead of {right:?}"));
    }
    Ok(id)
}

pub(super) fn ids(taken: &Taken) -> Vec<u32> {
    taken.events().iter().map(|event| id(event).unwrap()).collect()
}

/// A put with the writer's rounds in between; false when it did not return.
pub(super) async fn put(channel: &FileChannel<SimDisk>, events: &mut Vec<Event>) -> Result<bool, PutError> {
    let rounds = async {
        for _ in 0..4 {
            channel.step();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        result = channel.put(events) => result.map(|()| true),
        () = rounds => Ok(false),
    }
}

pub(super) async fn put_ids(channel: &FileChannel<SimDisk>, ids: std::ops::Range<u32>) {
    assert_eq!(put(channel, &mut ids.map(event).collect()).await, Ok(true));
}

pub(super) async fn drain(channel: &Arc<FileChannel<SimDisk>>) -> Vec<u32> {
    let mut all = Vec::new();
    loop {
        let taken = channel.clone().take(7, Duration::ZERO).await;
        if taken.is_empty() {
            channel.step();
            return all;
        }
        all.extend(ids(&taken));
        taken.commit();
    }
}

pub(super) fn block_on<T>(run: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run)
}

#[derive(Clone, Debug)]
enum Step {
    Put(u32),
    Take(usize),
    Commit(usize),
    Rollback(usize),
    /// The writer has a round.
    Round,
    /// The process ends at once, or at a change of the disk to come; with or without the power.
    Crash {
        power: bool,
    },
    CrashAt {
        power: bool,
        after: u64,
    },
    /// And in the recovery that follows, so many times.
    CrashTwice {
        after: u64,
    },
    Stop,
    Fail(&'static str, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0u32..9).prop_map(Step::Put),
        8 => (1usize..12).prop_map(Step::Take),
        6 => (0usize..4).prop_map(Step::Commit),
        2 => (0usize..4).prop_map(Step::Rollback),
        3 => Just(Step::Round),
        1 => any::<bool>().prop_map(|power| Step::Crash { power }),
        2 => (any::<bool>(), 1u64..25).prop_map(|(power, after)| Step::CrashAt { power, after }),
        1 => (1u64..12).prop_map(|after| Step::CrashTwice { after }),
        1 => Just(Step::Stop),
        1 => (prop::sample::select(vec!["write", "sync", "create", "remove", "rename", "truncate"]), 1u64..4).prop_map(|(kind, after)| Step::Fail(kind, after)),
    ];
    prop::collection::vec(step, 1..64)
}

/// What must be there, and what may.
#[derive(Default)]
struct Model {
    /// Their put returned, and they are neither out nor delivered.
    must: BTreeSet<u32>,
    /// Their put did not return, or their delivery may have been forgotten.
    may: BTreeSet<u32>,
    /// Delivered in this life of the process.
    delivered: BTreeSet<u32>,
    out: Vec<(Taken, Vec<u32>)>,
    next: u32,
    unreturned: u64,
    /// How often something happened.
    reached: BTreeMap<&'static str, u32>,
}

impl Model {
    /// What a sink was given once stays, even if nobody was told that it was safe: a sink may have delivered a part of it.
    fn back(&mut self, held: Vec<u32>) {
        self.must.extend(held);
    }

    fn crashed(&mut self) {
        for (taken, held) in std::mem::take(&mut self.out) {
            drop(taken);
            self.back(held);
        }
        // Those may come again.
        self.may.append(&mut self.delivered);
    }

    fn taken(&mut self, taken: Taken) -> Result<(), String> {
        let mut order = Vec::new();
        for event in taken.events() {
            let id = id(event)?;
            if order.last().is_some_and(|last| *last >= id) {
                return Err(format!("{id} after {order:?}"));
            }
            if !self.must.remove(&id) && !self.may.remove(&id) {
                return Err(format!("{id} again, or out of nothing"));
            }
            order.push(id);
        }
        if let Some(first) = order.first()
            && let Some(passed) = self.must.first().filter(|passed| *passed < first)
        {
            return Err(format!("{first} came before {passed}"));
        }
        self.out.push((taken, order));
        Ok(())
    }
}

/// Plays the steps; what is wrong, or what was reached.
fn play(disk: &SimDisk, steps: &[Step]) -> Result<BTreeMap<&'static str, u32>, String> {
    block_on(async {
        let mut model = Model { next: MODEL, ..Model::default() };
        let mut channel = open(disk);
        let (mut power, mut failing) = (false, false);
        for step in steps {
            match step {
                Step::Put(count) => {
                    let ids = model.next..model.next + count;
                    model.next += count;
                    match put(&channel, &mut ids.clone().map(event).collect()).await {
                        Ok(true) => model.must.extend(ids),
                        Ok(false) | Err(_) => {
                            model.unreturned += u64::from(*count);
                            model.may.extend(ids);
                        }
                    }
                }
                Step::Take(max) if !disk.is_killed() => model.taken(channel.clone().take(*max, Duration::ZERO).await)?,
                Step::Commit(at) if *at < model.out.len() => {
                    let (taken, held) = model.out.remove(*at);
                    taken.commit();
                    model.delivered.extend(held);
                }
                Step::Rollback(at) if *at < model.out.len() => {
                    let (taken, held) = model.out.remove(*at);
                    taken.rollback();
                    model.back(held);
                }
                Step::Round => channel.step(),
                Step::CrashAt { power: with, after } => {
                    power = *with;
                    disk.kill_after(*after);
                }
                Step::Fail(kind, after) => {
                    failing = true;
                    disk.fail_after(kind, *after);
                }
                _ => {}
            }
            let crash = match step {
                Step::Crash { power } => Some(*power),
                Step::CrashTwice { .. } => Some(true),
                _ => disk.is_killed().then_some(power),
            };
            if let Some(power) = crash {
                model.crashed();
                drop(channel);
                disk.crash(power);
                failing = false;
                if let Step::CrashTwice { after } = step {
                    // Further and further into the recovery.
                    for after in 1..=*after {
                        disk.kill_after(after);
                        let again = open_with(disk, limits());
                        *model.reached.entry("crash in recovery").or_default() += u32::from(again.is_err());
                        drop(again);
                        disk.crash(after % 2 == 0);
                    }
                }
                *model.reached.entry(if power { "power cut" } else { "kill" }).or_default() += 1;
                channel = open(disk);
            } else if matches!(step, Step::Stop) {
                for (taken, held) in std::mem::take(&mut model.out) {
                    taken.rollback();
                    model.back(held);
                }
                channel.close();
                channel.step();
                drop(channel);
                let clean = !disk.is_killed() && !failing;
                disk.crash(true);
                failing = false;
                if clean {
                    // Nothing that was delivered comes again after a clean stop, not even with the power gone.
                    model.delivered.clear();
                } else {
                    model.crashed();
                }
                *model.reached.entry("stop").or_default() += 1;
                channel = open(disk);
            }
        }
        for (taken, held) in std::mem::take(&mut model.out) {
            taken.rollback();
            model.back(held);
        }
        let killed = disk.is_killed();
        if killed {
            model.crashed();
            drop(channel);
            disk.crash(power);
            channel = open(disk);
        }
        disk.kill_after(u64::MAX / 2);
        loop {
            let taken = channel.clone().take(5, Duration::ZERO).await;
            if taken.is_empty() {
                break;
            }
            model.taken(taken)?;
        }
        if !model.must.is_empty() {
            return Err(format!("lost: {:?}", model.must));
        }
        let damaged = channel.traffic().damaged;
        // Of a write that was cut, later sectors may be there and earlier ones not: events whose put never returned.
        if damaged > model.unreturned {
            return Err(format!("{damaged} events were called damaged"));
        }
        Ok(model.reached)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2000), ..ProptestConfig::default() })]

    /// Whatever happens to process, power and disk: what a put returned for is there, in its order, with its bytes, and once unless its delivery was forgotten.
    #[test]
    fn nothing_is_lost(steps in steps(), seed in any::<u64>(), sector in prop::sample::select(vec![512usize, 4096, 64])) {
        let played = play(&SimDisk::new(seed, sector), &steps);
        prop_assert!(played.is_ok(), "{}", played.unwrap_err());
    }
}

pub(super) fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A put that was refused by a failing sync and seen again after a kill: from then on no power cut takes it.
#[test]
fn what_a_sink_has_seen_stays() {
    let steps = [
        Step::Fail("sync", 3),
        Step::Put(1),
        Step::Put(1),
        Step::CrashAt { power: false, after: 3 },
        Step::Put(1),
        Step::Take(3),
        Step::CrashTwice { after: 1 },
    ];
    for sector in [512, 4096] {
        for seed in 0..50 {
            play(&SimDisk::new(seed, sector), &steps).unwrap();
        }
    }
}

/// Starts that end early leave segments behind that are in the page cache alone: gaps that later ones declare are no losses.
#[test]
fn an_empty_segment_that_a_power_cut_takes_is_no_loss() {
    let steps = [Step::Put(5), Step::Put(1), Step::Put(3), Step::Put(3), Step::CrashTwice { after: 14 }];
    for sector in [64, 512, 4096] {
        for seed in 0..100 {
            play(&SimDisk::new(seed, sector), &steps).unwrap();
        }
    }
}

/// The same on a disk whose syncs do nothing must find a loss, else it finds none anywhere.
#[test]
fn a_disk_that_does_not_sync_is_found_out() {
    let steps = [Step::Put(5), Step::Take(2), Step::Commit(0), Step::Put(5), Step::Crash { power: true }];
    for sector in [512, 4096] {
        let found = (0..50).filter(|seed| play(&SimDisk::new(*seed, sector).without_sync(), &steps).is_err()).count();
        assert!(found > 10, "{found}");
        assert!((0..50).all(|seed| play(&SimDisk::new(seed, sector), &steps).is_ok()));
    }
}
