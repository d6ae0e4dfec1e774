//! A job in slots against the same job in one piece; the topic between the slots is a list.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::commit::slots::{Shape, Slot};
use crate::sql::exchange::{Exchange, Part};
use crate::sql::program::Half;

const QUERY: &str = "INSERT INTO s SELECT window_start, k, COUNT(*), SUM(v), COUNT(DISTINCT v) FROM TABLE(WINDOW) GROUP BY window_start, window_end, k;
     INSERT INTO all_keys SELECT window_start, COUNT(*) FROM TABLE(WINDOW) GROUP BY window_start, window_end;
     INSERT INTO best SELECT window_start, k, COUNT(*) AS n FROM TABLE(WINDOW) GROUP BY window_start, window_end, k ORDER BY n DESC, k LIMIT 1;
     INSERT INTO plain SELECT k, v FROM t WHERE v > 3;";
const TUMBLE: &str = "TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND)";
const HOP: &str = "HOP(TABLE t, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '3' SECOND)";
/// Of the last rows, which close all windows but their own.
const FAR: i64 = 3_600_000;

fn job(window: &str, idle: &str) -> String {
    let tables = format!(
        "SET 'table.exec.source.idle-timeout' = '{idle}'; SET 'batch.interval' = '100ms';
         CREATE TABLE t (ms BIGINT, k STRING, v INT, ts AS TO_TIMESTAMP_LTZ(ms, 3), WATERMARK FOR ts AS ts - INTERVAL '0.5' SECOND) WITH ({KAFKA});
         CREATE TABLE s (ws TIMESTAMP(3), k STRING, n BIGINT, s BIGINT, d BIGINT) WITH ('connector' = 'console');
         CREATE TABLE all_keys (ws TIMESTAMP(3), n BIGINT) WITH ('connector' = 'console');
         CREATE TABLE best (ws TIMESTAMP(3), k STRING, n BIGINT) WITH ('connector' = 'console');
         CREATE TABLE plain (k STRING, v INT) WITH ('connector' = 'console');"
    );
    tables + &QUERY.replace("WINDOW", window)
}

fn half(text: &str, part: Part) -> Job {
    let mut job = Job::new(text);
    job.program.become_part(part);
    job
}

/// The halves of all slots.
struct Slots {
    text: String,
    exchange: Exchange,
    rows: Vec<Job>,
    windows: Vec<Job>,
    /// By partition of the topic, and how much of it its reader has read.
    topic: Vec<(Vec<Record>, usize)>,
    time_ms: i64,
}

impl Slots {
    fn new(text: &str, slots: u32) -> Self {
        let exchange = Exchange::new("job", "1", Shape::new(slots, slots).unwrap());
        let of_all = |part: &dyn Fn(Exchange) -> Part| (0..slots).map(|_| half(text, part(exchange.clone()))).collect();
        Self {
            text: text.into(),
            rows: of_all(&Part::Rows),
            windows: of_all(&Part::Windows),
            topic: vec![Default::default(); slots as usize],
            exchange,
            time_ms: 0,
        }
    }

    /// A batch of a slot's first half.
    fn read(&mut self, slot: usize, input: Vec<Lines>) {
        let job = &mut self.rows[slot];
        let (context, partitions) = job.input(input, self.time_ms, false, Some(Slot(slot as u32)));
        let state = job.program.state.clone();
        let read = runtime().block_on(job.program.read(&context, partitions, &state)).unwrap();
        let (grouped, tasks) = (job.program.grouped(&state), job.program.context.clone());
        let Half::Rows(writer) = &mut job.program.half else { unreachable!() };
        for record in runtime().block_on(writer.records(&context, &grouped, &tasks, read.partials, read.seen)).unwrap() {
            assert_eq!(record.topic, self.exchange.topic);
            let (records, _) = &mut self.topic[usize::try_from(record.partition.unwrap()).unwrap()];
            // Offsets have gaps, as those of transactions.
            let offset = 2 * records.len() as i64;
            records.push(Record { offset, timestamp_ms: 0, key: None, value: record.value, headers: Vec::new() });
        }
    }

    /// A batch of a slot's second half, of so many records at most.
    fn take(&mut self, slot: usize, max: usize) -> BatchOutcome {
        let (records, read) = &mut self.topic[slot];
        let taken = records[*read..].iter().take(max).cloned().collect::<Vec<_>>();
        let (from, until) = (*read, *read + taken.len());
        *read = until;
        let range =
            OffsetRange { topic: self.exchange.topic.clone(), partition: slot as i32, from: 2 * from as i64, until: 2 * until as i64 };
        let caught_up = until == records.len();
        let input = PartitionInput { source: 0, range: range.clone(), caught_up, records: futures::stream::iter([Ok(taken)]).boxed() };
        let job = &mut self.windows[slot];
        let context = job.context(vec![range], self.time_ms, false, Some(Slot(slot as u32)));
        runtime().block_on(job.program.run(&context, vec![input])).unwrap()
    }

    fn rows_of(&self, output: usize) -> Vec<String> {
        let mut rows: Vec<String> = self.windows.iter().chain(&self.rows).flat_map(|job| job.rows_of(output)).collect();
        rows.sort();
        rows
    }

    /// As when another worker takes the slot's second half.
    fn move_windows(&mut self, slot: usize) {
        let snapshot = self.windows[slot].program.snapshot().unwrap();
        let moved = half(&self.text, Part::Windows(self.exchange.clone()));
        let written = std::mem::replace(&mut self.windows[slot], moved).written;
        let job = &mut self.windows[slot];
        for (output, written) in job.program.outputs.iter_mut().zip(&written) {
            output.sink = Box::new(MemorySink(written.clone(), output.sink.guarantee()));
        }
        job.written = written;
        job.program.restore(snapshot).unwrap();
    }
}

fn line(ms: i64, key: usize, value: i64) -> String {
    format!(r#"{{"ms":{ms},"k":"key {key}","v":{value}}}"#)
}

fn of(partition: i32, lines: Vec<String>) -> Lines {
    Lines { partition, lines, behind: false }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn slots_give_what_one_process_gives(
        slots in 1..4_u32,
        hop: bool,
        rows in prop::collection::vec((0..5_i32, 0..400_i64, 0..6_usize, 0..9_i64), 1..200),
        steps in prop::collection::vec((0..3_usize, 1..9_usize, prop::bool::weighted(0.1)), 1..40),
    ) {
        let text = job(if hop { HOP } else { TUMBLE }, "0 s");
        let mut partitions: BTreeMap<i32, Vec<String>> = (0..5).map(|partition| (partition, Vec::new())).collect();
        for (n, (partition, jitter, key, value)) in rows.iter().enumerate() {
            partitions.entry(*partition).or_default().push(line(n as i64 * 40 + jitter, *key, *value));
        }
        for lines in partitions.values_mut() {
            lines.push(line(FAR, 0, 0));
        }
        let mut whole = Job::new(&text);
        whole.batch(partitions.iter().map(|(partition, lines)| of(*partition, lines.clone())).collect(), false);

        let mut cut = Slots::new(&text, slots);
        let slots = slots as usize;
        for (slot, count, moved) in steps {
            let slot = slot % slots;
            cut.time_ms += 100;
            let mut batch = Vec::new();
            for (partition, lines) in partitions.iter_mut().filter(|(partition, _)| **partition as usize % slots == slot) {
                let now = count.min(lines.len());
                batch.push(of(*partition, lines.drain(..now).collect()));
            }
            cut.read(slot, batch);
            cut.take((slot + 1) % slots, count);
            if moved {
                cut.move_windows(slot);
            }
        }
        for slot in 0..slots {
            let left = partitions.iter_mut().filter(|(partition, _)| **partition as usize % slots == slot);
            let left = left.map(|(partition, lines)| of(*partition, std::mem::take(lines))).collect();
            cut.read(slot, left);
        }
        for slot in 0..slots {
            prop_assert_eq!(cut.take(slot, usize::MAX).late, 0);
        }
        for output in 0..4 {
            let mut expected = whole.rows_of(output);
            expected.sort();
            prop_assert!(!expected.is_empty() || output > 2 || rows.is_empty());
            prop_assert_eq!(cut.rows_of(output), expected, "output {}", output);
        }
    }
}

#[test]
fn a_slot_that_has_not_spoken_holds_the_watermark_back_and_a_silent_partition_does_not() {
    let mut job = Slots::new(&job(TUMBLE, "1 s"), 2);
    let batch = |job: &mut Slots, slot: usize, lines: Vec<String>| {
        job.time_ms += 100;
        job.read(slot, vec![of(slot as i32, lines)]);
    };
    for n in 0..30 {
        batch(&mut job, 0, vec![line(n * 1000, 1, 1)]);
        job.take(0, usize::MAX);
        job.take(1, usize::MAX);
    }
    assert_eq!(job.rows_of(0), [""; 0], "slot 1 has said nothing yet");
    let mut at = 30_000;
    for _ in 0..30 {
        at += 1000;
        batch(&mut job, 0, vec![line(at, 1, 1)]);
        batch(&mut job, 1, Vec::new());
        job.take(0, usize::MAX);
        job.take(1, usize::MAX);
    }
    let told = job.rows_of(0).len();
    assert!(told > 30, "slot 1 says that its partition is silent: {told}");
    // It goes away: what its partition holds now, nobody knows.
    let mut outcome = BatchOutcome::default();
    for _ in 0..120 {
        at += 1000;
        batch(&mut job, 0, vec![line(at, 1, 1)]);
        outcome = job.take(0, usize::MAX);
        job.take(1, usize::MAX);
    }
    let watermark = outcome.watermark_ms.unwrap();
    assert!(watermark < at - 20_000, "{watermark} of {at}: it waits for slot 1");
    // It is back, with a row that would have been late otherwise.
    batch(&mut job, 1, vec![line(watermark + 600, 1, 1)]);
    assert_eq!(job.take(0, usize::MAX).late + job.take(1, usize::MAX).late, 0);
    // Rows of windows that are emitted are late.
    batch(&mut job, 1, vec![line(0, 1, 1)]);
    assert!(job.take(0, usize::MAX).late + job.take(1, usize::MAX).late > 0);
}

/// The slot of a key may never change: open windows hold what came before.
#[test]
fn keys_stay_where_they_are() {
    let mut slots = Slots::new(&job(TUMBLE, "0 s"), 3);
    slots.read(0, vec![of(0, (0..9).map(|key| line(0, key, 1)).chain([line(FAR, 0, 0)]).collect())]);
    for slot in 1..3 {
        slots.read(slot, vec![of(slot as i32, vec![line(FAR, 0, 0)])]);
    }
    let places: Vec<Vec<String>> = (0..3)
        .map(|slot| {
            slots.take(slot, usize::MAX);
            let mut keys: Vec<_> = slots.windows[slot].rows_of(0).iter().map(|row| row.split(" | ").nth(1).unwrap().to_owned()).collect();
            keys.sort();
            keys
        })
        .collect();
    assert_eq!(places, [&["key 2"][..], &["key 1", "key 4", "key 6", "key 7"], &["key 0", "key 3", "key 5", "key 8"]]);
}
