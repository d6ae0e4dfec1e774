//! Copies a topic, record by record and partition by partition, exactly once, on as many workers as there are partitions.
//!
//! `exactly_once_copy FROM TO [WORKER [PROPERTY=VALUE…]]`: start it as often as you like, kill it as you like. Each copy of the program is a member of one
//! group; a WORKER id makes it a static one, which has its partitions back when it is started again under it. Properties are those of Kafka's
//! clients. `KAFKA_BOOTSTRAP_SERVERS` names the brokers.

use std::{env, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::TryStreamExt;
use service_kit::{
    Context, Control, Running, Service,
    config::{load, render},
    kafka::{Isolation, KafkaConfig, OutRecord},
};
use stream_engine::{
    batch::{PartitionInput, SourceKind, SourceSpec, Startup, clock::SystemClock, range::Limits},
    commit::{
        progress::JobIdentity,
        slots::{Shape, Slot},
        topic_log::KafkaClients,
    },
    config::RunConfig,
    source::KafkaCluster,
    worker::{BatchContext, Outputs, SlotProgram, Topology, Worker},
};

fn main() -> ExitCode {
    match load::<RunConfig>(None, serde_json::Value::Null) {
        Ok(config) => {
            let kit = config.0.kit();
            service_kit::run(Copy { config }, kit)
        }
        Err(errors) => errors.report(),
    }
}

/// The topic that is copied, and where to.
struct Topics {
    from: SourceSpec,
    to: Arc<str>,
}

impl Topology for Topics {
    fn sources(&self) -> Vec<SourceSpec> {
        vec![self.from.clone()]
    }

    fn slot(&self, _: Slot) -> anyhow::Result<Box<dyn SlotProgram>> {
        Ok(Box::new(CopySlot { to: self.to.clone() }))
    }
}

struct CopySlot {
    to: Arc<str>,
}

#[async_trait]
impl SlotProgram for CopySlot {
    async fn run(&mut self, _: &BatchContext<'_>, input: Vec<PartitionInput>, outputs: &mut Outputs<'_>) -> anyhow::Result<()> {
        for PartitionInput { range, mut records, .. } in input {
            while let Some(records) = records.try_next().await? {
                let copy = |record: service_kit::kafka::Record| OutRecord {
                    topic: self.to.clone(),
                    partition: Some(range.partition),
                    key: record.key,
                    value: record.value,
                    headers: record.headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
                    timestamp_ms: (record.timestamp_ms >= 0).then_some(record.timestamp_ms),
                };
                outputs.send(records.into_iter().map(copy).collect()).await?;
            }
        }
        Ok(())
    }
}

/// Between two batches.
const INTERVAL: Duration = Duration::from_millis(20);
/// Of one batch of a slot.
const RECORDS_MAX: u64 = 500;

struct Arguments {
    from: String,
    to: String,
    worker_id: Option<String>,
    kafka: KafkaConfig,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut args = env::args().skip(1);
    let (Some(from), Some(to)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: exactly_once_copy FROM TO [WORKER [PROPERTY=VALUE…]]");
    };
    let worker_id = args.next();
    let mut kafka = KafkaConfig::new(env::var("KAFKA_BOOTSTRAP_SERVERS").unwrap_or("localhost:9092".into()));
    for property in args {
        let Some((name, value)) = property.split_once('=') else { anyhow::bail!("`{property}`: want PROPERTY=VALUE") };
        kafka.set(name, value);
    }
    Ok(Arguments { from, to, worker_id, kafka })
}

struct Copy {
    config: RunConfig,
}

#[async_trait]
impl Service for Copy {
    const NAME: &'static str = "exactly-once-copy";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        let Arguments { from, to, worker_id, kafka } = arguments()?;
        let partitions = service_kit::kafka::admin(&kafka).await?.topic(&from).await?.partitions.len();
        let shape = Shape::new(u32::try_from(partitions)?.min(SLOTS_MAX), KEY_GROUPS).map_err(anyhow::Error::msg)?;
        let name = format!("copy-{to}");
        let from = SourceSpec {
            name: "from".into(),
            kind: SourceKind::Kafka(kafka.clone()),
            topics: vec![from],
            startup: Startup::Earliest,
            bounded: None,
            isolation: Isolation::ReadCommitted,
            group: None,
        };
        let worker = Worker {
            group: name.clone(),
            // The one start there is of the job by this name.
            job: Arc::new(JobIdentity { name, checkpoint_id: "0".into(), shape }),
            topology: Arc::new(Topics { from, to: to.into() }),
            clients: Arc::new(KafkaClients { kafka, worker_id }),
            cluster: Arc::new(KafkaCluster::default()),
            clock: Arc::new(SystemClock),
            limits: Limits { records_max: Some(RECORDS_MAX), ..Limits::none(INTERVAL) },
            attempts_max: 10,
        };
        Ok(Running {
            control: Arc::new(Operator(self.config)),
            grpc: tonic::service::Routes::default(),
            http: Vec::new(),
            done: Box::pin(worker.run(ctx.shutdown)),
        })
    }
}

const SLOTS_MAX: u32 = 32;
const KEY_GROUPS: u32 = 128;

struct Operator(RunConfig);

#[async_trait]
impl Control for Operator {
    fn effective_config(&self) -> (String, String) {
        ("toml".into(), render(&self.0))
    }
}
