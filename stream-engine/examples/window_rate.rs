//! How many JSON rows per second the windowed job takes, without a broker: decode, 10 s window × host × status, emit.
//!
//! `cargo run --release -p stream-engine --example window_rate [ROWS]` (default 1,000,000, 4 partitions, batches of 200,000)
#![allow(clippy::print_stdout, reason = "its result is what it prints")]

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt, stream};
use service_kit::kafka::Record;
use stream_engine::batch::clock::{Clock as _, SystemClock};
use stream_engine::batch::{BatchContext, BatchDefinition, OffsetRange, PartitionInput};
use stream_engine::sql::{CompileOptions, compile};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PARTITIONS: usize = 4;
const BATCH_ROWS: usize = 200_000;
/// About as many records as a fetch of 1 MiB holds.
const CHUNK_ROWS: usize = 8_000;

const JOB: &str = "
CREATE TABLE access (
  ts_ms BIGINT, host STRING, path STRING, status INT, bytes BIGINT, request_time DOUBLE,
  ts AS TO_TIMESTAMP_LTZ(ts_ms, 3), WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'access', 'properties.bootstrap.servers' = 'unused:9092',
  'scan.startup.mode' = 'earliest-offset', 'format' = 'json');
CREATE TABLE counts (window_start TIMESTAMP(3), host STRING, status INT, requests BIGINT, bytes BIGINT, slowest DOUBLE)
  WITH ('connector' = 'console', 'rows.max' = '1');
INSERT INTO counts
  SELECT window_start, host, status, COUNT(*), SUM(bytes), MAX(request_time)
  FROM TABLE(TUMBLE(TABLE access, DESCRIPTOR(ts), INTERVAL '10' SECOND))
  GROUP BY window_start, window_end, host, status;";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let rows: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |rows| rows.parse()).context("ROWS is a number")?;
    let batches: Vec<Vec<Vec<Record>>> = (0..rows).step_by(BATCH_ROWS).map(|from| batch(from, (rows - from).min(BATCH_ROWS))).collect();
    let size: usize = batches.iter().flatten().flatten().map(|record| record.value.as_ref().map_or(0, Bytes::len)).sum();
    let mut program = compile(JOB, &CompileOptions::default())?.program;

    let began = SystemClock.monotonic();
    let count = batches.len();
    let mut read = 0;
    for (id, partitions) in batches.into_iter().enumerate() {
        let mut input = Vec::new();
        for (partition, records) in partitions.into_iter().enumerate() {
            let range = OffsetRange { topic: "access".into(), partition: partition as i32, from: 0, until: records.len() as i64 };
            let mut records = records.into_iter().peekable();
            let mut chunks = Vec::new();
            while records.peek().is_some() {
                chunks.push(Ok(records.by_ref().take(CHUNK_ROWS).collect()));
            }
            input.push(PartitionInput { source: 0, range, caught_up: true, records: stream::iter(chunks).boxed() });
        }
        let context = BatchContext {
            job: "window-rate".into(),
            checkpoint_id: "0".into(),
            definition: Arc::new(BatchDefinition { id: id as u64, time_ms: id as i64, ranges: Vec::new() }),
            newest: id as u64,
            replay: false,
            last: id + 1 == count,
            slot: None,
            span: tracing::Span::none(),
            monitor: None,
        };
        let outcome = program.run(&context, input).await?;
        anyhow::ensure!(outcome.malformed + outcome.late == 0, "rows were lost: {outcome:?}");
        read += outcome.rows_in;
        program.snapshot()?;
    }
    anyhow::ensure!(read == rows as u64, "{read} of {rows} rows were read");
    let seconds = (SystemClock.monotonic() - began).as_secs_f64();
    println!("{rows} rows of {} bytes in {seconds:.2} s: {:.0} rows/s", size / rows.max(1), rows as f64 / seconds);
    Ok(())
}

fn batch(from: usize, count: usize) -> Vec<Vec<Record>> {
    let mut partitions = vec![Vec::new(); PARTITIONS];
    for n in from..from + count {
        // 20,000 rows a second of event time; 50 hosts, 5 statuses.
        let ts = 1_795_352_400_000 + n as i64 / 20;
        let status = [200, 200, 200, 301, 304, 404, 500][n % 7];
        let line = format!(
            "{{\"ts_ms\":{ts},\"host\":\"web-{:02}.example.org\",\"path\":\"/articles/{}\",\"status\":{status},\"bytes\":{},\"request_time\":0.{:03}}}",
            n % 50,
            n % 1000,
            n % 5000,
            n % 997
        );
        let records: &mut Vec<Record> = &mut partitions[n % PARTITIONS];
        let offset = records.len() as i64;
        records.push(Record { offset, timestamp_ms: ts, key: None, value: Some(line.into()), headers: Vec::new() });
    }
    partitions
}
