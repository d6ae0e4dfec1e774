//! The bridge put together: clients and store → services → listeners; and its end.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use parking_lot::Mutex;
use service_kit::{
    ConfigErrors, Context, HttpEndpoint, Running, Service,
    config::ConfigError,
    kafka::{self, KafkaConfig},
    offsets::{OffsetStore, SledOffsets},
};
use tokio::{select, time::sleep};

use crate::{
    config::{BridgeConfig, Store},
    connect::Connection,
    control::BridgeControl,
    gate::Gate,
    grpc,
    http::{self, App},
    lag::{Lag, Resets},
    monitor::{Monitor, Seen},
    produce::Produce,
    registry::Registry,
    session::{Clients, Deps, KafkaClients, Sessions},
    topics::Topics,
};

/// Longest wait for the first answer of a broker before the listeners open.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Java's default of `delivery.timeout.ms`.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// The service behind `millrace-bridge serve`.
pub(crate) struct BridgeService {
    config: BridgeConfig,
    kafka: KafkaConfig,
}

impl BridgeService {
    /// Checks what only the bridge can check.
    pub(crate) fn new(config: BridgeConfig) -> Result<Self, ConfigErrors> {
        let wrong = |key: &str, message: String| {
            ConfigErrors(vec![ConfigError { place: "configuration".to_owned(), key: key.to_owned(), message }])
        };
        if config.kafka.bootstrap_servers.trim().is_empty() {
            let message =
                "is missing; name the brokers as host:port with --bootstrap-servers, MILLRACE_KAFKA__BOOTSTRAP_SERVERS or in the file"
                    .to_owned();
            return Err(wrong("kafka.bootstrap_servers", message));
        }
        let mut properties = config.kafka.properties.clone();
        properties.insert("bootstrap.servers".to_owned(), config.kafka.bootstrap_servers.clone());
        // Within what Kafka's clients accept.
        let timeout_ms = config.produce.timeout.as_millis().clamp(10, 300_000).to_string();
        // Long enough that the outcome of a write is learnt even when the broker stalls: a repetition under the same key waits for it.
        let delivery_ms = config.produce.timeout.max(DELIVERY_TIMEOUT).as_millis().min(i32::MAX as u128).to_string();
        for (key, value) in [
            ("delivery.timeout.ms", delivery_ms.as_str()),
            ("default.api.timeout.ms", &timeout_ms),
            ("request.timeout.ms", &timeout_ms),
            // Requests arrive one by one; waiting longer for company costs them more than it saves.
            ("linger.ms", "2"),
            ("client.id", "millrace-bridge"),
        ] {
            properties.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
        let kafka = KafkaConfig::from_properties(properties).map_err(|error| wrong("kafka.properties", error.to_string()))?;
        Ok(Self { config, kafka })
    }
}

#[async_trait]
impl Service for BridgeService {
    const NAME: &'static str = "millrace-bridge";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        let Self { config, kafka } = self;
        for note in kafka.notes() {
            tracing::info!(note, "kafka setting");
        }
        let store: Arc<dyn OffsetStore> = match config.offsets.store {
            Store::Sled => {
                let path = config.offsets.path.clone();
                let opened = tokio::task::spawn_blocking(move || SledOffsets::open(&path)).await?;
                Arc::new(opened.context("[offsets] path")?)
            }
        };
        let connection = Connection::new(kafka.clone());
        let producer = kafka::producer(&kafka).await.context("[kafka]")?;

        let gate = Arc::new(Gate::new(ctx.shutdown.clone()));
        let topics = Topics::new(connection.clone(), Arc::clone(&gate), Arc::clone(&store), config.topics.clone());
        let produce = Produce::new(Arc::clone(&producer), topics.clone(), Arc::clone(&gate), config.produce.clone(), ctx.tasks.clone());
        let lag = Lag::new(connection.clone(), Arc::clone(&store), Arc::clone(&gate));
        let registry = Registry::new(config.registry.clone(), kafka.clone(), connection.clone(), Arc::clone(&gate), ctx.tasks.clone());
        let clients: Arc<dyn Clients> =
            Arc::new(KafkaClients { config: kafka, poll_interval_max: config.consume.session_idle + Duration::from_secs(60) });
        let resets = Resets {
            lag: lag.clone(),
            topics: topics.clone(),
            kafka: connection.clone(),
            store: Arc::clone(&store),
            clients: Arc::clone(&clients),
        };
        let sessions = Sessions::new(Deps {
            clients,
            kafka: connection.clone(),
            store,
            topics: topics.clone(),
            gate: Arc::clone(&gate),
            config: config.consume.clone(),
            tasks: ctx.tasks.clone(),
            shutdown: ctx.shutdown.clone(),
            held_bytes: 0.into(),
        });

        let seen = Arc::new(Mutex::new(Seen::default()));
        let monitor = Monitor {
            kafka: connection,
            gate: Arc::clone(&gate),
            topics: topics.clone(),
            lag: lag.clone(),
            config: config.monitor.clone(),
            seen: Arc::clone(&seen),
        };
        ctx.tasks.spawn(monitor.run(ctx.shutdown.clone(), ctx.readiness.latch("kafka")));
        // Who asks right after the start is neither refused for nothing nor kept waiting for a broker that is away.
        gate.first_look(FIRST_LOOK).await;
        ctx.tasks.spawn(expire(sessions.clone(), config.consume.session_idle, ctx.clone()));

        let grpc = grpc::routes(grpc::Services {
            produce: produce.clone(),
            sessions: sessions.clone(),
            topics: topics.clone(),
            lag: lag.clone(),
            resets,
            consume: config.consume.clone(),
            shutdown: ctx.shutdown.clone(),
        });
        let app = App {
            produce,
            sessions: sessions.clone(),
            topics,
            lag,
            registry,
            config: Arc::new(config.clone()),
            readiness: ctx.readiness.clone(),
        };
        let http = vec![HttpEndpoint { name: "http", listen: config.http.listen, router: http::router(app) }];
        let drain = config.shutdown.deadline;
        let control = Arc::new(BridgeControl { config, gate, sessions: sessions.clone(), seen });
        let done = async move {
            ctx.shutdown.cancelled().await;
            sessions.close().await;
            producer.flush(drain).await.context("records were not acknowledged before the end")?;
            Ok(())
        };
        Ok(Running { control, grpc, http, done: Box::pin(done) })
    }
}

/// Ends idle consumers until the shutdown.
async fn expire(sessions: Sessions, idle: Duration, ctx: Context) {
    // Often enough that an instance lives a tenth longer than it may.
    let every = (idle / 10).clamp(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        select! {
            () = ctx.shutdown.cancelled() => return,
            () = sleep(every) => {}
        }
        sessions.expire().await;
    }
}
