//! The bridge put together: clients and store → services → listeners; and its end.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use parking_lot::Mutex;
use service_kit::{
    ConfigErrors, Context, Guard, HttpEndpoint, Latch, Running, Service,
    config::{ClientAuth, ConfigError},
    kafka::{self, KafkaConfig},
    offsets::{self, OffsetError, OffsetStore, SledOffsets},
};
use tokio::{select, sync::Notify, time::sleep};

use crate::{
    auth::{self, Auth, CheckedOffsets},
    config::{BridgeConfig, Offsets, Store},
    connect::Connection,
    control::BridgeControl,
    gate::Gate,
    grpc,
    http::{self, App, Forward},
    lag::{Lag, Resets, Watch},
    lint::Linter,
    monitor::{Monitor, Seen},
    produce::{KafkaBroker, Keyed, Produce},
    registry::Registry,
    session::{Clients, Deps, Directory, KafkaClients, Me, Sessions},
    topics::Topics,
    transaction::{KafkaWriters, Transactions},
};

/// Longest wait for the first answer of a broker before the listeners open.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// How often an offset store that is away at the start is looked for.
const STORE_LOOK: Duration = Duration::from_secs(1);

/// Java's default of `delivery.timeout.ms`.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(120);

/// The service behind `millrace-bridge serve`.
pub(crate) struct BridgeService {
    config: BridgeConfig,
    kafka: KafkaConfig,
    /// `None`: the embedded one, which is opened at the start.
    store: Option<Arc<dyn OffsetStore>>,
    auth: Option<Auth>,
    forward: Forward,
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
            // What does not exist is told; a topic that was deleted is not to come back because something was written to it once.
            ("allow.auto.create.topics", "false"),
            ("client.id", "millrace-bridge"),
        ] {
            properties.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
        let kafka = KafkaConfig::from_properties(properties).map_err(|error| wrong("kafka.properties", error.to_string()))?;
        let advertised = config.http.advertised.trim();
        if !advertised.is_empty() && !is_address(advertised) {
            return Err(wrong(
                "http.advertised",
                format!("{advertised:?} is not http://host:port or https://host:port of this bridge; correct it, or leave it empty"),
            ));
        }
        let store = outside(&config.offsets, &kafka).map_err(|(key, message)| wrong(key, message))?;
        let asked =
            [&config.http.tls, &config.registry.tls, &config.control.tls].into_iter().any(|tls| tls.client_auth != ClientAuth::None);
        let auth = Auth::open(&config.auth, asked, &kafka).map_err(|error| ConfigErrors(vec![error]))?;
        let listeners =
            [("http", Some(config.http.listen)), ("registry", config.registry.listen), ("control", Some(config.control.listen))];
        for (name, listen) in listeners.into_iter().filter_map(|(name, listen)| Some((name, listen?))) {
            if auth.is_none() && !config.auth.allow_open && !listen.is_loopback() {
                let message = format!(
                    "other machines can reach {listen}, and authentication is off: name a policy in auth.policy_file, listen on a loopback address, or allow it with [auth] allow_open = true"
                );
                return Err(wrong(&format!("{name}.listen"), message));
            }
        }
        let forward = Forward::new(&config).map_err(|message| wrong("consume.forward_ca", message))?;
        Ok(Self { config, kafka, store, auth, forward })
    }
}

/// `http://host:port` or `https://host:port`, and nothing behind it.
fn is_address(text: &str) -> bool {
    let uri: Option<::http::Uri> = text.trim_end_matches('/').parse().ok();
    uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.port().is_some()
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    })
}

/// The offset store that is outside of this process, not yet connected; or which key is wrong.
fn outside(config: &Offsets, kafka: &KafkaConfig) -> Result<Option<Arc<dyn OffsetStore>>, (&'static str, String)> {
    const ADDRESS: &str = "offsets.address";
    let address = config.address.trim();
    let (name, form) = match config.store {
        Store::Sled | Store::Kafka if address.is_empty() => ("", ""),
        Store::Sled | Store::Kafka => {
            return Err((ADDRESS, "belongs to store = \"redis\", \"zookeeper\" or \"hbase\"; set offsets.store, or remove it".to_owned()));
        }
        Store::Redis => ("redis", "redis://host:port/database"),
        Store::Zookeeper => ("zookeeper", "host:port,host:port/chroot"),
        Store::Hbase => ("hbase", "http://host:port of its REST gateway"),
    };
    if address.is_empty() && !name.is_empty() {
        return Err((ADDRESS, format!("is missing; store = \"{name}\" needs {form}")));
    }
    let wrong = |key| move |error: OffsetError| (key, error.to_string());
    let store: Arc<dyn OffsetStore> = match config.store {
        Store::Sled => return Ok(None),
        Store::Kafka => Arc::new(offsets::kafka(kafka, &config.kafka_topic, config.timeout).map_err(wrong("offsets.kafka_topic"))?),
        Store::Redis => Arc::new(offsets::redis(address, config.timeout).map_err(wrong(ADDRESS))?),
        Store::Zookeeper => Arc::new(offsets::zookeeper(address, config.timeout).map_err(wrong(ADDRESS))?),
        Store::Hbase => Arc::new(offsets::hbase(address, &config.hbase_table, config.timeout).map_err(wrong(ADDRESS))?),
    };
    Ok(Some(store))
}

#[async_trait]
impl Service for BridgeService {
    const NAME: &'static str = "millrace-bridge";

    fn guard(&self) -> Option<Guard> {
        let auth = self.auth.clone()?;
        Some(Box::new(move |router| auth::guard_grpc(auth, router)))
    }

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        let Self { config, kafka, store, auth, forward } = self;
        if let Some(auth) = &auth {
            ctx.tasks.spawn(auth.clone().watch(ctx.clone()));
        }
        for note in kafka.notes() {
            tracing::info!(note, "kafka setting");
        }
        let store: Arc<dyn OffsetStore> = match store {
            Some(store) => {
                ctx.tasks.spawn(until_reached(Arc::clone(&store), ctx.clone(), ctx.readiness.latch("offsets")));
                store
            }
            None => {
                let path = config.offsets.path.clone();
                let opened = tokio::task::spawn_blocking(move || SledOffsets::open(&path)).await?;
                Arc::new(opened.context("[offsets] path")?)
            }
        };
        let store: Arc<dyn OffsetStore> = if config.auth.pass_through.enabled { Arc::new(CheckedOffsets(store)) } else { store };
        let connection = Connection::new(kafka.clone());
        let producer = kafka::producer(&kafka).await.context("[kafka]")?;

        let gate = Arc::new(Gate::new(ctx.shutdown.clone()));
        let topics = Topics::new(connection.clone(), Arc::clone(&gate), Arc::clone(&store), config.topics.clone());
        let keyed = KafkaBroker::new(kafka.clone(), connection.clone(), &config.produce);
        let (id, keys) = (config.transactional_id(), config.produce.clone());
        let keyed = Keyed::new(Arc::new(keyed), &id, topics.clone(), Arc::clone(&gate), keys.clone(), ctx.tasks.clone());
        ctx.tasks.spawn(keyed.clone().watch(ctx.shutdown.clone(), ctx.readiness.latch("idempotence")));
        let produce = Produce::new(Arc::clone(&producer), keyed, topics.clone(), Arc::clone(&gate), keys, ctx.tasks.clone());
        let writers = Arc::new(KafkaWriters { kafka: connection.clone(), timeout: config.transactions.timeout });
        let registry = Registry::new(config.registry.clone(), kafka.clone(), connection.clone(), Arc::clone(&gate), ctx.tasks.clone());
        let transactions =
            Transactions::new(writers, topics.clone(), Arc::clone(&gate), config.transactional_id(), config.transactions.clone());
        ctx.tasks.spawn(transactions.clone().watch(ctx.shutdown.clone()));
        let me = Me {
            advertised: config.http.advertised.trim().trim_end_matches('/').to_owned(),
            tls: config.http.tls.is_on(),
            bound: Arc::clone(&ctx.addresses),
            store: config.offsets.identity(),
        };
        let directory = (!config.consume.sessions_topic.is_empty()).then(|| {
            let (topic, max) = (&config.consume.sessions_topic, config.consume.directory_max);
            Directory::in_kafka(&kafka, connection.clone(), topic, me, max, config.offsets.timeout)
        });
        let clients: Arc<dyn Clients> = Arc::new(KafkaClients {
            kafka: connection.clone(),
            poll_interval_max: config.consume.session_idle + Duration::from_secs(60),
            read_ahead_bytes_max: config.consume.read_ahead_bytes_max,
        });
        let watch =
            Watch::new(connection.clone(), Arc::clone(&clients), Arc::clone(&store), &config.offsets.kafka_topic, config.monitor.clone());
        let lag = Lag::new(connection.clone(), Arc::clone(&store), Arc::clone(&gate), watch);
        let linter = Linter { topics: topics.clone(), lag: lag.clone(), clients: Arc::clone(&clients) };
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
            produce: produce.clone(),
            gate: Arc::clone(&gate),
            config: config.consume.clone(),
            tasks: ctx.tasks.clone(),
            shutdown: ctx.shutdown.clone(),
            held_bytes: 0.into(),
            freed: Notify::new(),
            sessions: 0.into(),
            directory,
            window_records: 0.into(),
        });

        let seen = Arc::new(Mutex::new(Seen::default()));
        let monitor = Monitor {
            kafka: connection.clone(),
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
        ctx.tasks.spawn(look_after(sessions.clone(), config.consume.session_idle, ctx.clone()));

        let grpc = grpc::routes(grpc::Services {
            produce: produce.clone(),
            transactions: transactions.clone(),
            sessions: sessions.clone(),
            topics: topics.clone(),
            lag: lag.clone(),
            resets,
            linter,
            kafka: connection.clone(),
            registry: registry.clone(),
            consume: config.consume.clone(),
            shutdown: ctx.shutdown.clone(),
        });
        let app = App {
            produce,
            sessions: sessions.clone(),
            topics,
            lag,
            kafka: connection,
            transactions: transactions.clone(),
            registry,
            forward,
            config: Arc::new(config.clone()),
            readiness: ctx.readiness.clone(),
            gate: Arc::clone(&gate),
            auth,
        };
        let (listen, tls) = (config.http.listen, config.http.tls.clone());
        let mut http = vec![HttpEndpoint { name: "http", listen, tls, router: http::router(app.clone()) }];
        if let Some(listen) = config.registry.listen {
            http.push(HttpEndpoint { name: "registry", listen, tls: config.registry.tls.clone(), router: http::registry_router(app) });
        }
        let drain = config.shutdown.deadline;
        let control = Arc::new(BridgeControl { config, gate, sessions: sessions.clone(), seen, addresses: Arc::clone(&ctx.addresses) });
        let done = async move {
            ctx.shutdown.cancelled().await;
            sessions.close().await;
            producer.flush(drain).await.context("records were not acknowledged before the end")?;
            Ok(())
        };
        Ok(Running { control, grpc, http, done: Box::pin(done) })
    }
}

/// Waits for a store that is outside; its absence is logged by the store itself, and what it refuses is logged here, once.
async fn until_reached(store: Arc<dyn OffsetStore>, ctx: Context, latch: Latch) {
    let mut told = String::new();
    while let Err(error) = store.groups().await {
        let reason = error.to_string();
        if !matches!(error, OffsetError::Away { .. }) && reason != told {
            tracing::warn!(%error, "the offset store cannot be used; trying on");
            told = reason;
        }
        select! {
            () = ctx.shutdown.cancelled() => return,
            () = sleep(STORE_LOOK) => {}
        }
    }
    latch.release();
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

/// How often a replica looks whether others have taken what it holds.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Keeps the directory of sessions and this process of one mind, until the shutdown.
async fn look_after(sessions: Sessions, idle: Duration, ctx: Context) {
    // Nobody waits for these: they are over already.
    let (abandoned_every, mut abandoned_at) = ((idle / 4).clamp(LOOK_AFTER, Duration::from_secs(60)), tokio::time::Instant::now());
    loop {
        select! {
            () = ctx.shutdown.cancelled() => return,
            () = sleep(LOOK_AFTER) => {}
        }
        sessions.look_after().await;
        if abandoned_at.elapsed() >= abandoned_every {
            abandoned_at = tokio::time::Instant::now();
            sessions.expire_abandoned().await;
        }
    }
}
