//! Produce and read rates against a real broker, with the settings the services use.
//!
//! `KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9092 cargo run --release -p service-kit --example kafka_rate -- [RECORDS] [PARTITIONS] [KEY=VALUE …]`
//!
//! Writes RECORDS (2,000,000) lines of 160 bytes to a new topic of PARTITIONS (2), reads them back at both isolation
//! levels, commits 300 transactions of 30 records one after the other, and deletes the topic. `KEY=VALUE` are Kafka properties; `compression.type=snappy` is the default here.
#![allow(clippy::print_stdout)] // A measuring tool speaks on standard output.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::StreamExt;
use service_kit::kafka::{self, Isolation, KafkaConfig, OutRecord, TopicPartition};

/// Records of one `send`; [`CALLS`] of them are under way at a time.
const BATCH: usize = 5_000;
const CALLS: usize = 3;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let servers =
        std::env::var("KAFKA_BOOTSTRAP_SERVERS").context("KAFKA_BOOTSTRAP_SERVERS is not set; deploy/dev/kafka starts a broker")?;
    let mut numbers = Vec::new();
    let mut config = KafkaConfig::new(servers);
    config.set("compression.type", "snappy");
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some((key, value)) => config.set(key, value),
            None => numbers.push(argument.parse::<usize>().with_context(|| format!("not a number: {argument}"))?),
        }
    }
    let records = numbers.first().copied().unwrap_or(2_000_000) / BATCH * BATCH;
    let partitions = i32::try_from(numbers.get(1).copied().unwrap_or(2))?;
    let topic = format!("kafka-rate-{}", std::process::id());
    let admin = kafka::admin(&config).await?;
    admin.create_topic(&topic, partitions, 1, &BTreeMap::new(), false).await?;
    let measured = measure(&config, &topic, partitions, records).await;
    admin.delete_topic(&topic).await?;
    measured
}

async fn measure(config: &KafkaConfig, topic: &str, partitions: i32, records: usize) -> anyhow::Result<()> {
    let lines: Vec<Bytes> = (0..BATCH).map(line).collect();
    let producer = kafka::producer(config).await?;
    let usage = Usage::now();
    let batches = futures::stream::iter(0..records / BATCH).map(|_| {
        let batch = lines.iter().map(|line| OutRecord {
            topic: topic.into(),
            partition: None,
            key: None,
            value: Some(line.clone()),
            headers: Vec::new(),
            timestamp_ms: None,
        });
        producer.send(batch.collect())
    });
    let mut results = batches.buffer_unordered(CALLS);
    while let Some(batch) = results.next().await {
        for result in batch {
            result?;
        }
    }
    usage.report("produce", records);
    for isolation in [Isolation::ReadUncommitted, Isolation::ReadCommitted] {
        let reader = kafka::range_reader(config, isolation).await?;
        let all: Vec<TopicPartition> = (0..partitions).map(|id| TopicPartition::new(topic, id)).collect();
        let bounds = reader.bounds(&all).await?;
        let usage = Usage::now();
        let reads = bounds.iter().map(|(partition, bounds)| {
            let mut stream = reader.read(partition.clone(), bounds.earliest, bounds.latest);
            tokio::spawn(async move {
                let mut count = 0;
                while let Some(chunk) = stream.next().await {
                    count += chunk?.len();
                }
                anyhow::Ok(count)
            })
        });
        let mut count = 0;
        for read in futures::future::try_join_all(reads).await? {
            count += read?;
        }
        usage.report(&format!("{isolation:?}"), count);
        ensure!(count == records, "wrote {records}, read {count}");
    }
    transactions(config, topic).await
}

async fn transactions(config: &KafkaConfig, topic: &str) -> anyhow::Result<()> {
    let mut writer = kafka::transactional_writer(config, topic).await?;
    let record = |number| OutRecord {
        topic: topic.into(),
        partition: Some(0),
        key: None,
        value: Some(line(number)),
        headers: Vec::new(),
        timestamp_ms: None,
    };
    let mut times = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        writer.begin().await?;
        writer.send((0..30).map(record).collect()).await?;
        writer.offsets(topic, vec![(TopicPartition::new(topic, 0), 1, String::new())]).await?;
        writer.commit().await?;
        times.push(start.elapsed());
    }
    times.sort();
    println!("transactions     p50 {:.1?}  p99 {:.1?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    Ok(())
}

fn line(number: usize) -> Bytes {
    let hosts = number % 250;
    let head = format!(
        "192.168.7.{hosts} - - [22/Nov/2026:10:00:{:02} +0000] \"GET /shop/item/{number}?ref=front HTTP/1.1\" 200 {} \"-\" \"Mozilla/5.0 (X11; Linux x86_64)\" {}",
        number % 60,
        number * 7 % 40_000,
        number * 13 % 997
    );
    Bytes::from(format!("{head:x<160}").into_bytes()[..160].to_vec())
}

/// Time and memory since a moment.
struct Usage {
    at: Instant,
    cpu: Duration,
}

impl Usage {
    fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu() }
    }

    fn report(&self, what: &str, records: usize) {
        let wall = self.at.elapsed();
        let micros = (cpu() - self.cpu).as_secs_f64() * 1e6 / records as f64;
        let rate = records as f64 / wall.as_secs_f64() / 1e3;
        println!("{what:<16} {rate:>7.0} k records/s  {micros:.2} µs CPU a record  {} MB resident", resident_mb());
    }
}

/// User and system time of this process, from the kernel's accounting (100 ticks a second on Linux).
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or_default() / 1024
}
