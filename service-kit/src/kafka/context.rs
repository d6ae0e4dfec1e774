//! What every librdkafka client here has in common: how it is made, what it logs, how its errors are told, where it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use tracing::debug;

use super::access::{Need, denied};
use super::outage::Outage;
use super::properties::{self, Role};
use super::rescue::Rescue;
use super::{KafkaConfig, KafkaError, certificate, refusal, tls};

/// Settings of a librdkafka client for one role.
pub(super) fn client_config(config: &KafkaConfig, role: Role) -> Result<ClientConfig, KafkaError> {
    let servers = config.servers();
    if servers.is_empty() {
        return Err(KafkaError::Config("bootstrap.servers is empty: name the brokers as host:port, separated by commas".into()));
    }
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", servers.join(","));
    for (key, value) in properties::translate(config.values(), role)? {
        client.set(key, value);
    }
    // Its log lines go through `Watch::log`, which keeps them at debug.
    client.set_log_level(RDKafkaLogLevel::Info);
    Ok(client)
}

/// Follows one client's connection: outages and refused credentials. The context of all clients but producers.
#[derive(Clone)]
pub(super) struct Watch {
    pub(super) outage: Arc<Outage>,
    config: Arc<KafkaConfig>,
    /// The topic that a transaction was refused for: librdkafka tells it in its log alone.
    denied_topic: Arc<Mutex<Option<String>>>,
    refused: Arc<Mutex<Option<Refused>>>,
    rescue: Arc<Rescue>,
}

/// Why no connection comes about: what librdkafka said, without what differs each time, and what it means.
struct Refused {
    kind: String,
    told: String,
}

impl Watch {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self {
            outage: Outage::of(&config.servers().join(","), config.tls()),
            config: Arc::new(config.clone()),
            denied_topic: Arc::default(),
            refused: Arc::default(),
            rescue: Arc::default(),
        }
    }

    /// An error as the caller should see it: refused credentials or an outage explain a timeout.
    pub(super) fn explain(&self, error: &RdError, what: &str) -> KafkaError {
        self.explain_for(error, what, &Need::default())
    }

    /// With what has to be granted, where the principal may not do it.
    pub(super) fn explain_for(&self, error: &RdError, what: &str, need: &Need) -> KafkaError {
        let refused = error.rdkafka_error_code().and_then(|code| denied(code, what, need, &self.config));
        if let Some(refused) = refused {
            return KafkaError::Auth(refused);
        }
        if let RdError::ClientCreation(_) = error
            && let Err((key, reason)) = tls::check_tls(&self.config)
        {
            return KafkaError::Config(format!("{key}: TLS cannot be set up: {reason}"));
        }
        self.explain_ours(KafkaError::from_rd(error, what))
    }

    /// As [`Self::explain_for`], of one code.
    pub(super) fn explain_code(&self, code: Code, what: &str, need: &Need) -> KafkaError {
        denied(code, what, need, &self.config).map_or_else(|| KafkaError::from_code(code, what), KafkaError::Auth)
    }

    pub(super) fn explain_ours(&self, error: KafkaError) -> KafkaError {
        if !matches!(error, KafkaError::Timeout(_) | KafkaError::Unreachable(_)) {
            return error;
        }
        if let Some(reason) = self.refused() {
            return KafkaError::Auth(reason);
        }
        match error {
            KafkaError::Unreachable(what) => KafkaError::Unreachable(self.unreachable(&what)),
            other => other,
        }
    }

    pub(super) fn unreachable(&self, what: &str) -> String {
        let reason = self.outage.reason();
        let because = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        // Not declared away: one of several brokers may be down.
        if self.outage.answered() {
            let servers = self.outage.servers();
            return format!(
                "{what}: a broker did not answer{because}; try again in a moment, and see whether all brokers of {servers} run"
            );
        }
        format!("{what}: no broker of {} can be reached{because}; start Kafka, or correct bootstrap.servers", self.outage.servers())
    }

    pub(super) fn on_error(&self, error: &RdError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => {
                self.rescue.lost(Instant::now());
                self.outage.suspect();
            }
            Some(Code::Resolve) => self.outage.unresolved(reason),
            Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL) => self.refuse(reason),
            // A server that does not like the client's certificate says so when the handshake is over for the client (TLS 1.3).
            _ if refusal::is_alert(reason) => self.refuse(reason),
            _ => self.outage.failed(reason),
        }
    }

    fn refuse(&self, reason: &str) {
        let kind = refusal::kind(reason).to_owned();
        let told = refusal::told(&self.config, reason);
        {
            let mut refused = self.refused.lock();
            if refused.as_ref().is_some_and(|refused| refused.kind == kind) {
                return;
            }
            *refused = Some(Refused { kind: kind.clone(), told: told.clone() });
        }
        let Some((host, port)) = refusal::server(reason).filter(|_| refusal::is_unverified(reason)) else {
            return self.outage.refused(&told);
        };
        let (watch, host) = (self.clone(), host.to_owned());
        let look = move || {
            let told = certificate::judge(&watch.config, &host, port).unwrap_or(told);
            if let Some(refused) = watch.refused.lock().as_mut().filter(|refused| refused.kind == kind) {
                refused.told.clone_from(&told);
            }
            watch.outage.refused(&told);
        };
        if let Err(error) = std::thread::Builder::new().name("kafka-certificate".into()).spawn(look) {
            debug!(%error, "cannot start a thread to look at the broker's certificate");
        }
    }

    /// Why no connection comes about, where a broker or TLS refuses it.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.lock().as_ref().map(|refused| refused.told.clone())
    }

    /// A request succeeded.
    pub(super) fn on_success(&self) {
        self.rescue.found();
        self.outage.back();
        if self.refused.lock().take().is_some() {
            self.outage.accepted();
        }
    }

    /// To be called now and then while the client is used.
    pub(super) fn help<C: ClientContext>(&self, client: &Client<C>) {
        self.rescue.help(client, || self.config.servers());
    }

    /// A question was not answered.
    pub(super) fn unanswered(&self) {
        self.rescue.lost(Instant::now());
    }

    /// The topic that the transaction under way was refused for, once.
    pub(super) fn take_denied_topic(&self) -> Option<String> {
        self.denied_topic.lock().take()
    }

    /// As [`Self::on_log`], for a producer.
    pub(super) fn on_producer_log(&self, facility: &str, message: &str) {
        if facility == "ADDPARTS"
            && let Some((_, rest)) = message.split_once("Failed to add partition \"")
            && let Some((topic, _)) = rest.split_once('"')
        {
            *self.denied_topic.lock() = Some(topic.to_owned());
        }
        Self::on_log(facility, message);
    }

    pub(super) fn on_log(facility: &str, message: &str) {
        debug!(target: "librdkafka", facility, message);
    }
}

impl ClientContext for Watch {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        Self::on_log(facility, message);
    }

    fn error(&self, error: RdError, reason: &str) {
        self.on_error(&error, reason);
    }
}

impl ConsumerContext for Watch {}

/// Waits until a server of the bootstrap list accepts a connection, and gives those that do; all are tried at once,
/// again and again until `default.api.timeout.ms` is over.
pub(super) async fn reach(config: &KafkaConfig, what: &str) -> Result<Vec<String>, KafkaError> {
    let watch = Watch::new(config);
    let servers = config.servers();
    let deadline = Instant::now() + config.api_timeout();
    let mut failures = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut tries = JoinSet::new();
        for (index, server) in servers.iter().cloned().enumerate() {
            let bound = left.min(CONNECT_TIMEOUT).max(Duration::from_millis(1));
            tries.spawn(async move {
                let failure = match timeout(bound, TcpStream::connect(&server)).await {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(format!("{server}: {error}")),
                    Err(_) => Some(format!("{server}: no answer within {bound:?}")),
                };
                (index, failure)
            });
        }
        let mut answering = Vec::new();
        failures.clear();
        // The others may be slow to fail; what answers now is enough to begin with.
        let mut settled = tokio::time::Instant::now() + CONNECT_TIMEOUT;
        while let Ok(Some(tried)) = timeout_at(settled, tries.join_next()).await {
            match tried {
                Ok((index, None)) => {
                    answering.push(index);
                    settled = settled.min(tokio::time::Instant::now() + STRAGGLERS);
                }
                Ok((_, Some(failure))) => failures.push(failure),
                Err(error) => failures.push(error.to_string()),
            }
        }
        if !answering.is_empty() {
            answering.sort_unstable();
            return Ok(answering.into_iter().map(|index| servers[index].clone()).collect());
        }
        if Instant::now() + RETRY_INTERVAL >= deadline {
            watch.outage.failed(&failures.join("; "));
            return Err(KafkaError::Unreachable(watch.unreachable(what)));
        }
        watch.outage.away(&failures.join("; "));
        sleep(RETRY_INTERVAL).await;
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const STRAGGLERS: Duration = Duration::from_millis(20);
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a blocking call of librdkafka away from the async workers.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, KafkaError>
where
    F: FnOnce() -> Result<T, KafkaError> + Send + 'static,
    T: Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(KafkaError::Fatal(format!("a Kafka call was cut off: {error}"))))
}

/// Drops a client, which joins threads and may wait, away from the async workers.
fn drop_elsewhere<T: Send + 'static>(client: T) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
        Err(_) => drop(client),
    }
}

/// A client that is dropped elsewhere.
pub(super) struct Elsewhere<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Elsewhere<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(client))
    }
}

impl<T: Send + 'static> std::ops::Deref for Elsewhere<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(client) => client,
            // Only `drop` takes it.
            None => unreachable!("used after drop"),
        }
    }
}

impl<T: Send + 'static> Drop for Elsewhere<T> {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop_elsewhere(client);
        }
    }
}
