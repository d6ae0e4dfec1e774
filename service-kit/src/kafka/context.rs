//! What every librdkafka client here has in common: how it is made, what it logs, how its errors are told, where it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError as RdError, RDKafkaErrorCode as Code};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use tracing::debug;

use super::outage::Outage;
use super::properties::{self, Role};
use super::{KafkaConfig, KafkaError};

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
    refused: Arc<Mutex<Option<String>>>,
}

impl Watch {
    pub(super) fn new(config: &KafkaConfig) -> Self {
        Self { outage: Outage::of(&config.servers().join(","), config.tls()), refused: Arc::default() }
    }

    /// An error as the caller should see it: refused credentials or an outage explain a timeout.
    pub(super) fn explain(&self, error: &RdError, what: &str) -> KafkaError {
        self.explain_ours(KafkaError::from_rd(error, what))
    }

    pub(super) fn explain_ours(&self, error: KafkaError) -> KafkaError {
        if !matches!(error, KafkaError::Timeout(_) | KafkaError::Unreachable(_)) {
            return error;
        }
        if let Some(reason) = self.refused.lock().clone() {
            return KafkaError::Auth(format!("{} refuses the credentials: {reason}", self.outage.servers()));
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
            Some(Code::AllBrokersDown) => self.outage.suspect(),
            Some(Code::Resolve) => self.outage.unresolved(reason),
            Some(Code::Authentication | Code::SaslAuthenticationFailed | Code::SSL) => {
                let mut refused = self.refused.lock();
                if refused.is_none() {
                    tracing::error!(servers = self.outage.servers(), reason, "Kafka refuses the connection");
                }
                *refused = Some(reason.to_owned());
            }
            _ => self.outage.failed(reason),
        }
    }

    /// A request succeeded.
    pub(super) fn on_success(&self) {
        self.outage.back();
        *self.refused.lock() = None;
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
