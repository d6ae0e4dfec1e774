//! `bridge`: records to Kafka through the broker bridge, by gRPC, for hosts that must not reach Kafka themselves.
//!
//! One request at a time, so that order is kept. A request is repeated with the same batch id until it is answered; the
//! bridge writes a batch id once.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use proto::data::v1::{Header, ProduceRequest, Record, bridge_data_client::BridgeDataClient};
use service_kit::kafka::{KafkaError, OutRecord};
use tonic::transport::{Channel, Endpoint};

use super::dead_letter::{DIRECTORY, DeadLetters};
use super::flights::{Bounds, Deliver, Flights};
use super::record::{Maker, topic_fault};
use super::{Input, Setup, Sink};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::source::Stop;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("bridge"),
    class: None,
    doc: "Writes every event as a record to Kafka through the broker bridge, by gRPC, for hosts that must not reach Kafka themselves.",
    properties: &[
        Property::text("endpoint", None, "The bridge's gRPC address, e.g. http://bridge:7102.").required().own(),
        Property::text("topic", None, "Topic to write.").required().own(),
        Property::integer("batchSize", 1, 10_000, Some("100"), "Events of one request, at most.").own(),
        Property::integer(
            "requestTimeout",
            1,
            3_600_000,
            Some("30000"),
            "Milliseconds to wait for an answer before the request is repeated.",
        )
        .own(),
        DIRECTORY,
    ],
    deprecated: &[],
    misspelt: &[("kafka.topic", "topic"), ("url", "endpoint")],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut check = |key: &str, fault: Option<String>, remedy: &str| {
        if let (Some(setting), Some(fault)) = (component.settings.get(key), fault) {
            findings.push(
                Finding::error("wrong-value", fault)
                    .maybe_at(setting.place.as_ref())
                    .key(format!("{}.{key}", component.name))
                    .remedy(remedy),
            );
        }
    };
    check("endpoint", endpoint(component).err().map(|error| format!("{error:#}")), "write http://host:port");
    check("topic", topic_fault(component.text("topic")).map(|fault| format!("cannot be a topic: {fault}")), "name an existing topic");
    findings
}

fn endpoint(component: &Component) -> anyhow::Result<Endpoint> {
    let text = component.text("endpoint").trim();
    anyhow::ensure!(text.starts_with("http://"), "`{text}` does not begin with http://");
    let endpoint = Endpoint::from_shared(text.to_owned()).with_context(|| format!("`{text}` is not an address"))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).timeout(component.millis("requestTimeout")).tcp_nodelay(true))
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let dead = DeadLetters::of(component, &setup.state_dir);
    let records = component.count("batchSize");
    Ok(Box::new(Bridge { endpoint: endpoint(component)?, topic: component.text("topic").to_owned(), records, dead }))
}

struct Bridge {
    endpoint: Endpoint,
    topic: String,
    records: usize,
    dead: DeadLetters,
}

/// Bytes of bodies in one request: below the 4 MiB that gRPC servers take by default.
const REQUEST_BYTES_MAX: usize = 2 << 20;

#[async_trait]
impl Sink for Bridge {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        let deliver = Arc::new(ToBridge { client: BridgeDataClient::new(self.endpoint.connect_lazy()), topic: self.topic.clone() });
        let bounds = Bounds { records: self.records, sends: 1, events: self.records, bytes: 1 << 30 };
        Flights { deliver, maker: Maker::to_topic(&self.topic), dead: self.dead, bounds }.run(input, stop).await
    }
}

struct ToBridge {
    client: BridgeDataClient<Channel>,
    topic: String,
}

#[async_trait]
impl Deliver for ToBridge {
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
        let mut results = Vec::with_capacity(records.len());
        let mut rest = records.into_iter().peekable();
        while let Some(first) = rest.next() {
            let mut bytes = length(&first);
            let mut part = vec![first];
            while let Some(next) = rest.next_if(|next| bytes + length(next) <= REQUEST_BYTES_MAX) {
                bytes += length(&next);
                part.push(next);
            }
            results.extend(self.request(part).await);
        }
        results
    }
}

fn length(record: &OutRecord) -> usize {
    record.value.as_ref().map_or(0, |value| value.len()) + 64
}

impl ToBridge {
    async fn request(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
        let count = records.len();
        let request = ProduceRequest {
            topic: self.topic.clone(),
            records: records.into_iter().map(record).collect(),
            batch_id: format!("{:032x}", rand::random::<u128>()),
        };
        let mut backoff = Duration::from_millis(100);
        let mut told = false;
        let answer = loop {
            match self.client.clone().produce(request.clone()).await {
                Ok(answer) => break answer.into_inner(),
                Err(status)
                    if proto::ErrorKind::from_grpc(status.code()).retryable()
                        || matches!(status.code(), tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Internal) =>
                {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(error = status.message(), "the bridge does not answer; the request is repeated until it does");
                    }
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(Duration::from_secs(5));
                }
                Err(status) => {
                    let error = match proto::ErrorKind::from_grpc(status.code()) {
                        proto::ErrorKind::NotFound => KafkaError::UnknownTopic(self.topic.clone()),
                        proto::ErrorKind::Unauthenticated | proto::ErrorKind::Forbidden => KafkaError::Auth(status.message().to_owned()),
                        _ => KafkaError::Retryable(status.message().to_owned()),
                    };
                    return vec![Err(error); count];
                }
            }
        };
        if told {
            tracing::info!("the bridge answers again");
        }
        let mut results: Vec<_> = answer
            .results
            .into_iter()
            .map(|result| match (result.error.is_empty(), result.retryable) {
                (true, _) => Ok(()),
                (false, true) => Err(KafkaError::Retryable(result.error)),
                (false, false) => Err(KafkaError::Invalid(result.error)),
            })
            .collect();
        results.resize_with(count, || Err(KafkaError::Retryable("the bridge's answer lacks results".into())));
        results
    }
}

fn record(record: OutRecord) -> Record {
    Record {
        partition: record.partition,
        key: record.key,
        value: record.value,
        headers: record.headers.into_iter().map(|(key, value)| Header { key, value: Some(value) }).collect(),
        timestamp_ms: record.timestamp_ms,
        ..Record::default()
    }
}
