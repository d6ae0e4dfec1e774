//! Workers over the simulated cluster: whatever dies, sleeps, or loses an answer, and wherever, every record is there once and in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use service_kit::kafka::{Isolation, KafkaConfig, KafkaError, OutRecord};
use tokio::task::{JoinHandle, yield_now};
use tokio_util::sync::CancellationToken;

use super::sim::{Canary, Fate, Outside, Process, Random, SESSION_MS, Seen, Sim};
use super::*;
use crate::batch::{SourceKind, Startup};
use crate::commit::progress::JobIdentity;
use crate::commit::slots::Shape;

const SLOTS: u32 = 3;
const PARTITIONS: i32 = 5;
const RECORDS: u64 = 60;
/// Milliseconds of simulated time in which all must be done, with nothing going wrong any more.
const PATIENCE: u64 = 60_000;
const STEP_MS: u64 = 10;

/// Copies "in" to "out", partition by partition; tells two outside stores of each record where it `acts_outside`.
struct Copier {
    seen: Seen,
    outside: Option<Arc<Outside>>,
}

struct CopierSlot {
    seen: Seen,
    outside: Option<Arc<Outside>>,
}

impl Topology for Copier {
    fn sources(&self) -> Vec<SourceSpec> {
        vec![SourceSpec {
            name: "in".into(),
            kind: SourceKind::Kafka(KafkaConfig::new("nowhere:9092")),
            topics: vec!["in".into()],
            startup: Startup::Earliest,
            bounded: None,
            isolation: Isolation::ReadCommitted,
            group: None,
        }]
    }

    fn slot(&self, _: Slot) -> anyhow::Result<Box<dyn SlotProgram>> {
        Ok(Box::new(CopierSlot { seen: self.seen.clone(), outside: self.outside.clone() }))
    }
}

#[async_trait]
impl SlotProgram for CopierSlot {
    async fn run(&mut self, context: &BatchContext<'_>, input: Vec<PartitionInput>, outputs: &mut Outputs<'_>) -> anyhow::Result<()> {
        let mut all: Vec<Bytes> = Vec::new();
        for PartitionInput { range, mut records, .. } in input {
            while let Some(records) = records.try_next().await? {
                all.extend(records.iter().filter_map(|record| record.value.clone()));
                let copy = |record: service_kit::kafka::Record| OutRecord {
                    topic: "out".into(),
                    partition: Some(range.partition),
                    key: None,
                    value: record.value,
                    headers: Vec::new(),
                    timestamp_ms: None,
                };
                outputs.send(records.into_iter().map(copy).collect()).await?;
            }
        }
        if let Some(outside) = &self.outside {
            for output in 0..2 {
                let apply = || {
                    outside.apply(context.slot.0, output, context.batch.id, &all);
                    Ok::<_, KafkaError>(())
                };
                self.seen.call(apply).await?;
            }
        }
        Ok(())
    }

    fn acts_outside(&self) -> bool {
        self.outside.is_some()
    }
}

/// A worker in a process that may die.
struct Running {
    process: Arc<Process>,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(sim: &Sim, process: Arc<Process>, outside: Option<Arc<Outside>>) -> Running {
    let seen = sim.seen_by(&process);
    let job = JobIdentity { name: "copy".into(), checkpoint_id: "0".into(), shape: Shape::new(SLOTS, 128).unwrap() };
    let worker = Worker {
        job: Arc::new(job),
        group: "job".into(),
        topology: Arc::new(Copier { seen: seen.clone(), outside }),
        clients: Arc::new(seen.clone()),
        cluster: Arc::new(seen),
        clock: Arc::new(sim.clock.clone()),
        limits: Limits { records_max: Some(7), ..Limits::none(std::time::Duration::from_millis(20)) },
        attempts_max: 3,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(worker.run(stop.clone()));
    Running { process, stop, task }
}

/// What goes wrong in one run.
struct Schedule {
    seed: u64,
    /// By worker, in the order in which they are started: what happens at which of its calls.
    fates: Vec<BTreeMap<u64, Fate>>,
    outside: bool,
    canary: Option<Canary>,
}

struct Ended {
    /// Calls of the worker that was started first.
    calls: u64,
}

/// Workers are started one after the other while records come in; one that has died is followed by another to which nothing happens. Ends when
/// all is copied; fails when it is not in time, or not as it should be.
async fn run(schedule: Schedule) -> Ended {
    let about = format!("seed {}, fates {:?}, outside {}", schedule.seed, schedule.fates, schedule.outside);
    let sim = Sim::new(schedule.seed, &[("in", PARTITIONS), ("out", PARTITIONS)], schedule.canary);
    let outside = schedule.outside.then(|| Arc::new(Outside::new(schedule.canary)));
    let mut fates = schedule.fates.into_iter();
    let mut random = Random(schedule.seed ^ 0x5107);
    let mut workers: Vec<Running> = Vec::new();
    let (mut first, mut started, mut produced, mut time, mut late) = (None, 0, 0, 0, 0);
    loop {
        if produced < RECORDS && random.below(3) == 0 {
            for _ in 0..=random.below(4) {
                if produced < RECORDS {
                    sim.produce("in", (produced % PARTITIONS as u64) as i32, produced.to_string());
                    produced += 1;
                }
            }
        }
        // The first at once, the others while it works.
        if started == 0 || (fates.len() > 0 && random.below(30) == 0) {
            let process = Process::new(format!("worker {started}"), fates.next().unwrap_or_default());
            first.get_or_insert_with(|| Arc::clone(&process));
            workers.push(start(&sim, process, outside.clone()));
            started += 1;
        }
        for _ in 0..20 {
            yield_now().await;
        }
        sim.tick(STEP_MS);
        for worker in &mut workers {
            if worker.process.is_dead() && !worker.task.is_finished() {
                worker.task.abort();
            }
            if worker.task.is_finished() && !worker.process.is_dead() {
                let ended = (&mut worker.task).await;
                panic!("{} ended: {ended:?}; {about}", worker.process.name);
            }
        }
        workers.retain(|worker| !worker.process.is_dead());
        if workers.is_empty() && fates.len() == 0 {
            workers.push(start(&sim, Process::new(format!("worker {started}"), []), outside.clone()));
            started += 1;
        }
        // What is visible is right at any time.
        let copied = check(&sim, &about);
        if produced == RECORDS {
            late += STEP_MS;
            if copied == RECORDS && fates.len() == 0 {
                break;
            }
            assert!(late < PATIENCE, "{copied} of {RECORDS} copied; {about}");
        }
        time += STEP_MS;
        assert!(time < 10 * PATIENCE, "{about}");
    }
    // A clean end, and what it leaves.
    workers.iter().for_each(|worker| worker.stop.cancel());
    for worker in &mut workers {
        while !worker.task.is_finished() && !worker.process.is_dead() {
            for _ in 0..20 {
                yield_now().await;
            }
            sim.tick(STEP_MS);
        }
    }
    for _ in 0..20 {
        sim.tick(STEP_MS);
    }
    assert_eq!(check(&sim, &about), RECORDS, "{about}");
    for partition in 0..PARTITIONS {
        let end = sim.texts("in", partition).len() as i64;
        assert_eq!(sim.committed("in", partition), Some(end), "offset of partition {partition}; {about}");
    }
    if let Some(outside) = outside {
        for output in 0..2 {
            let mut told: Vec<u64> = outside.told(output).iter().map(|text| text.parse().unwrap()).collect();
            told.sort_unstable();
            assert_eq!(told, (0..RECORDS).collect::<Vec<_>>(), "outside output {output}; {about}");
        }
    }
    // Nobody fights: a slot is taken when the group gives it, and once or twice more for each thing that goes wrong.
    let reasons = sim.generation() * u64::from(SLOTS) + 12;
    assert!(sim.takes() <= 2 * reasons, "{} takes in {} generations; {about}", sim.takes(), sim.generation());
    Ended { calls: first.map_or(0, |process| process.calls()) }
}

/// How many records are copied, each partition in order and without gaps.
fn check(sim: &Sim, about: &str) -> u64 {
    let mut copied = 0;
    for partition in 0..PARTITIONS {
        let (read, written) = (sim.texts("in", partition), sim.texts("out", partition));
        assert_eq!(written, read[..written.len().min(read.len())], "partition {partition}; {about}");
        copied += written.len() as u64;
    }
    copied
}

fn simulated(run: impl Future<Output = ()>) {
    // Another test of this process may log to the terminal; thousands of schedules would fill it.
    let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run);
}

const FATES: [Fate; 6] =
    [Fate::DieBefore, Fate::DieAfter, Fate::Sleep(SESSION_MS / 2), Fate::Sleep(SESSION_MS * 4), Fate::LoseAnswer, Fate::Refuse];

/// Each of these happens at each call that a worker makes, in the middle of others.
#[test]
fn whatever_happens_at_whichever_call_every_record_is_copied_once() {
    simulated(async {
        for outside in [false, true] {
            let plain = |seed| Schedule { seed, fates: vec![BTreeMap::new(), BTreeMap::new()], outside, canary: None };
            let calls = run(plain(1)).await.calls;
            assert!(calls > 100, "{calls}");
            for at in 1..=calls.min(400) {
                for (n, fate) in FATES.into_iter().enumerate() {
                    let fates = vec![BTreeMap::from([(at, fate)]), BTreeMap::new()];
                    run(Schedule { seed: at * 10 + n as u64, fates, outside, canary: None }).await;
                }
            }
        }
    });
}

/// Two to four workers, to each of which up to four things happen.
fn several(seed: u64, canary: Option<Canary>) -> Schedule {
    let mut random = Random(seed);
    let workers = 2 + random.below(3);
    let fates = (0..workers).map(|_| {
        let count = random.below(5);
        (0..count).map(|_| (1 + random.below(300), FATES[random.below(FATES.len() as u64) as usize])).collect()
    });
    Schedule { seed, fates: fates.collect(), outside: seed.is_multiple_of(2), canary }
}

/// Up to four workers, to each of which several things happen. `SEED` runs one schedule again.
#[test]
fn one_slot_has_one_owner_whatever_membership_says() {
    let one: Option<u64> = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = one.map_or(0..1_500, |seed| seed..seed + 1);
    simulated(async {
        for seed in seeds {
            run(several(seed, None)).await;
        }
    });
}

/// The first owner of all slots falls asleep, the others take over, and it goes on where it was: what it wrote is not there, and it
/// takes nothing back from them that the group does not give it.
#[test]
fn a_sleeper_that_wakes_up_neither_writes_nor_fences() {
    simulated(async {
        for seed in 0..200 {
            let sleep = BTreeMap::from([(20 + seed % 60, Fate::Sleep(SESSION_MS * 6))]);
            run(Schedule { seed, fates: vec![sleep, BTreeMap::new(), BTreeMap::new()], outside: true, canary: None }).await;
        }
    });
}

/// A simulation that cannot fail proves nothing: a cluster that does not keep one of its promises is found out.
#[test]
fn a_cluster_that_breaks_a_promise_is_found_out() {
    for canary in [Canary::NoFence, Canary::NothingEnded, Canary::NoAbort, Canary::OutsideUnfenced] {
        let fails = |seed| {
            let run = || simulated(async { assert!(run(several(seed, Some(canary))).await.calls > 0) });
            std::panic::catch_unwind(run).is_err()
        };
        assert!((0..300).any(fails), "{canary:?}");
    }
}
