//! `bridge`: records to Kafka through the broker bridge, by gRPC, for hosts that must not reach Kafka themselves.
//!
//! One request at a time, so that order is kept. A request is repeated under the same batch id until it is written or
//! refused; the bridge writes a batch id once, all of it or nothing. So what it refuses is halved, under new ids, until
//! the event is alone whose fault it is.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prost::Message as _;
use proto::data::v1::{Header, ProduceRequest, Record, bridge_data_client::BridgeDataClient};
use service_kit::kafka::{KafkaError, OutRecord};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::dead_letter::{DIRECTORY, DeadLetters};
use super::flights::{Bounds, Deliver, Flights};
use super::record::{self, Maker};
use super::{Input, Setup, Sink};
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::kafka_settings::say;
use crate::source::Stop;
use crate::tls;

/// A property of the Kafka sink that is refused here, since nobody would do what it says.
const fn refused(name: &'static str) -> Property {
    Property::text(name, None, "Refused: it is about the Kafka sink's own connection, its transactions or its dead-letter topic.").own()
}

const REFUSED: &[Property] = &[
    refused("kafka.bootstrap.servers"),
    refused("kafka.producer.*"),
    refused("positionsTopic"),
    refused("transaction.*"),
    refused("inFlight.*"),
    refused("deadLetter.topic"),
];

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("bridge"),
    class: None,
    doc: "Writes every event as a record to Kafka through the broker bridge, by gRPC, for hosts that must not reach Kafka themselves.",
    properties: &[
        Property::text("endpoint", None, "The bridge's gRPC address: http://bridge:7102, or https.").required().own(),
        Property::text(
            "topic",
            None,
            "Topic. `%{header}` and parts of the time (`%Y-%m-%d`) stand for an event's own while `allowTopicOverride` is true.",
        )
        .required()
        .own(),
        Property::integer("batchSize", 1, 10_000, Some("100"), "Events of one request, at most.").own(),
        Property::integer(
            "requestTimeout",
            1,
            3_600_000,
            Some("30000"),
            "Milliseconds to wait for an answer before the request is repeated.",
        )
        .own(),
        record::FLUME_FORMAT.own(),
        record::PARTITION.own(),
        record::PARTITION_HEADER.own(),
        record::TOPIC_OVERRIDE.own(),
        record::TOPIC_HEADER.own(),
        record::TIMESTAMP_HEADER.own(),
        record::HEADERS.own(),
        Property {
            doc: "https: a PEM file of certificates to trust, authorities' or the bridge's own. Without it the system's authorities are trusted.",
            own: true,
            ..tls::TRUSTSTORE
        },
        Property {
            doc: "https: a PEM file with a certificate to show to the bridge, those that signed it, and the private key.",
            own: true,
            ..tls::KEYSTORE
        },
        Property {
            doc: "https: the certificate must be for `endpoint`'s host, unless it is in the truststore itself.",
            ..tls::VERIFY_HOSTNAME
        },
        Property::text("token", None, "A bearer token (JWT) to say who calls. Rather in a file, or by a config filter.").own(),
        Property::text("tokenFile", None, "A file with the bearer token. It is read for each request, so it may be renewed.").own(),
        Property::text("apiKey", None, "An API key (`X-API-Key`) to say who calls. Rather in a file, or by a config filter.").own(),
        Property::text("apiKeyFile", None, "A file with the API key.").own(),
        Property::text("user", None, "With `password` or `passwordFile`: a name to say who calls (Basic).").own(),
        Property::text("password", None, "The user's. Rather in a file, or by a config filter.").own(),
        Property::text("passwordFile", None, "A file with the user's password.").own(),
        DIRECTORY,
        REFUSED[0],
        REFUSED[1],
        REFUSED[2],
        REFUSED[3],
        REFUSED[4],
        REFUSED[5],
    ],
    deprecated: &[],
    misspelt: &[("kafka.topic", "topic"), ("url", "endpoint"), ("flumeBatchSize", "batchSize")],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review,
};

fn review(component: &Component, _strict: bool) -> Vec<Finding> {
    let error = |key: &str, fault: String| say(component, Level::Error, "wrong-value", key, fault);
    let mut findings = Vec::new();
    if component.set("endpoint").is_some()
        && let Err(fault) = address(component)
    {
        findings.push(error("endpoint", format!("{fault:#}")).remedy("write http://host:port, or https"));
    }
    if component.set("topic").is_some() {
        findings.extend(record::review_topic(component, "topic"));
    }
    let known = |name: &str| REFUSED.iter().any(|refused| component.kind.property(name).is_some_and(|found| found.name == refused.name));
    for key in component.settings.keys().filter(|key| known(key)) {
        findings.push(
            say(component, Level::Error, "not-here", key, "the Kafka sink has it, the bridge sink has not".into()).remedy(
                "remove the line; the bridge has its own connection to Kafka, and events that it refuses go to deadLetter.directory",
            ),
        );
    }
    match Credential::of(component) {
        Err(fault) => findings.push(error("user", format!("{fault:#}")).remedy("set one of token, apiKey and user with password")),
        Ok(Some(_)) if component.text("endpoint").trim().starts_with("http://") => findings.push(
            say(component, Level::Warning, "in-clear", "endpoint", "whoever reads along on the way sees who calls, and can call so".into())
                .remedy("write https://, and name the certificate's authority in truststore"),
        ),
        Ok(_) => {}
    }
    findings
}

/// Where the bridge is.
struct Address {
    host: String,
    port: u16,
    tls: bool,
}

fn address(component: &Component) -> anyhow::Result<Address> {
    let text = component.text("endpoint").trim();
    let uri: Uri = text.parse().with_context(|| format!("`{text}` is not an address"))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => anyhow::bail!("`{text}` begins with neither http:// nor https://"),
    };
    let authority = uri.authority().with_context(|| format!("`{text}` names no host"))?;
    anyhow::ensure!(!authority.as_str().contains('@'), "a name in the address is not used; set user and password");
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Ok(Address { host: authority.host().to_owned(), port, tls })
}

fn channel(component: &Component) -> anyhow::Result<Channel> {
    let Address { host, port, tls } = address(component)?;
    // With a connector of our own tonic must not see https: it would look for its own TLS.
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(5)).timeout(component.millis("requestTimeout")).tcp_nodelay(true);
    if !tls {
        return Ok(endpoint.connect_lazy());
    }
    let bare = host.trim_matches(['[', ']']).to_owned();
    let server = ServerName::try_from(bare.clone()).with_context(|| format!("`{bare}` cannot be a certificate's name"))?;
    let connector = tls::client(component, &["h2"])?;
    let connect = move |_: Uri| connect(bare.clone(), port, connector.clone(), server.clone());
    let endpoint = endpoint.origin(format!("https://{host}:{port}").parse()?);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}

async fn connect(
    host: String,
    port: u16,
    tls: TlsConnector,
    server: ServerName<'static>,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let tcp = TcpStream::connect((host.as_str(), port)).await?;
    tcp.set_nodelay(true)?;
    Ok(TokioIo::new(tls.connect(server, tcp).await?))
}

/// How the bridge knows who calls.
enum Credential {
    Token(Secret),
    ApiKey(Secret),
    User(String, Secret),
}

enum Secret {
    Text(String),
    File(PathBuf),
}

impl Secret {
    fn of(component: &Component, key: &str) -> Option<Self> {
        let file = component.set(&format!("{key}File")).map(|path| Self::File(path.trim().into()));
        file.or_else(|| component.set(key).map(|text| Self::Text(text.to_owned())))
    }

    /// May be another one each time.
    fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
                Ok(text.trim().to_owned())
            }
        }
    }
}

impl Credential {
    fn of(component: &Component) -> anyhow::Result<Option<Self>> {
        for key in ["token", "apiKey", "password"] {
            let twice = component.set(key).is_some() && component.set(&format!("{key}File")).is_some();
            anyhow::ensure!(!twice, "{key} and {key}File are both set");
        }
        let user = component.set("user").map(str::to_owned);
        let password = Secret::of(component, "password");
        anyhow::ensure!(user.is_some() == password.is_some(), "user and password go together");
        let mut all = Secret::of(component, "token").map(Self::Token).into_iter().collect::<Vec<_>>();
        all.extend(Secret::of(component, "apiKey").map(Self::ApiKey));
        all.extend(user.zip(password).map(|(user, password)| Self::User(user, password)));
        anyhow::ensure!(all.len() <= 1, "the bridge is told in more than one way who calls");
        Ok(all.pop())
    }

    /// The header that says it.
    fn header(&self) -> Result<(&'static str, MetadataValue<Ascii>), String> {
        let (name, text) = match self {
            Self::Token(secret) => ("authorization", format!("Bearer {}", secret.read()?)),
            Self::ApiKey(secret) => ("x-api-key", secret.read()?),
            Self::User(user, secret) => ("authorization", format!("Basic {}", STANDARD.encode(format!("{user}:{}", secret.read()?)))),
        };
        let mut value: MetadataValue<Ascii> = text.parse().map_err(|_| format!("what is in {name} cannot be a header"))?;
        value.set_sensitive(true);
        Ok((name, value))
    }
}

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let maker = Maker::of(component, "topic");
    let deliver = ToBridge {
        client: BridgeDataClient::new(channel(component)?),
        credential: Credential::of(component)?,
        topic: maker.topic().clone(),
        trouble: Mutex::default(),
        told: AtomicBool::default(),
    };
    let dead = DeadLetters::of(component, &setup.state_dir);
    Ok(Box::new(Bridge { deliver: Arc::new(deliver), maker, records: component.count("batchSize"), dead }))
}

struct Bridge {
    deliver: Arc<ToBridge>,
    maker: Maker,
    records: usize,
    dead: DeadLetters,
}

/// Bytes of one request, unless one record has more.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// What the bridge takes at once: the limit that gRPC servers have by default.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Around the only record of a request.
const ALONE_BYTES: usize = 512;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

#[async_trait]
impl Sink for Bridge {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        let bounds = Bounds { records: self.records, sends: 1, events: self.records, bytes: 1 << 30 };
        Flights { deliver: self.deliver, maker: self.maker, dead: self.dead, bounds }.run(input, stop).await
    }
}

struct ToBridge {
    client: BridgeDataClient<Channel>,
    credential: Option<Credential>,
    /// Where an event names no other.
    topic: Arc<str>,
    /// Why the request under way is not written.
    trouble: Mutex<Option<String>>,
    told: AtomicBool,
}

#[async_trait]
impl Deliver for ToBridge {
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
        let mut results = Vec::with_capacity(records.len());
        let mut parts: VecDeque<Vec<Record>> = VecDeque::new();
        let mut room = 0;
        for record in records {
            let record = self.record(record);
            let bytes = record.encoded_len() + 8;
            match parts.back_mut().filter(|_| bytes <= room) {
                Some(part) => part.push(record),
                None => {
                    parts.push_back(vec![record]);
                    room = REQUEST_BYTES_MAX;
                }
            }
            room = room.saturating_sub(bytes);
        }
        while let Some(mut part) = parts.pop_front() {
            match self.write(&part).await {
                Ok(()) => results.extend(part.iter().map(|_| Ok(()))),
                Err(refused) if part.len() == 1 => results.push(Err(refused)),
                Err(_) => {
                    let rest = part.split_off(part.len() / 2);
                    parts.push_front(rest);
                    parts.push_front(part);
                }
            }
        }
        results
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

/// What came of one try.
enum Try {
    Written,
    /// It would be again.
    Refused(KafkaError),
    NotYet(String),
}

impl ToBridge {
    /// Repeats the request until it is written or refused: under the same id, as an answer that was lost may have been a yes.
    async fn write(&self, records: &[Record]) -> Result<(), KafkaError> {
        if let [record] = records
            && record.encoded_len() + self.topic.len() + ALONE_BYTES > MESSAGE_BYTES_MAX
        {
            let bytes = record.encoded_len();
            return Err(KafkaError::Invalid(format!("record of {bytes} bytes is larger than what the bridge takes, {MESSAGE_BYTES_MAX}")));
        }
        let request = ProduceRequest {
            topic: self.topic.to_string(),
            records: records.to_vec(),
            batch_id: format!("{:032x}", rand::random::<u128>()),
            encoding: None,
        };
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.once(&request).await {
                Try::Written => {
                    *self.trouble.lock() = None;
                    if self.told.swap(false, Relaxed) {
                        tracing::info!("the bridge takes records again");
                    }
                    return Ok(());
                }
                Try::Refused(error) => {
                    *self.trouble.lock() = None;
                    return Err(error);
                }
                Try::NotYet(why) => {
                    if !self.told.swap(true, Relaxed) {
                        tracing::warn!(error = why, "the bridge does not take records; the request is repeated until it does");
                    }
                    *self.trouble.lock() = Some(why);
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn once(&self, message: &ProduceRequest) -> Try {
        let mut request = tonic::Request::new(message.clone());
        match self.credential.as_ref().map(Credential::header).transpose() {
            Ok(header) => {
                if let Some((name, value)) = header {
                    request.metadata_mut().insert(name, value);
                }
            }
            Err(why) => return Try::NotYet(why),
        }
        let answer = match self.client.clone().produce(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if is_refusal(&status) => return Try::Refused(KafkaError::Invalid(status.message().to_owned())),
            Err(status) => return Try::NotYet(told(&status)),
        };
        if answer.results.len() < message.records.len() {
            return Try::NotYet("the bridge's answer lacks results".into());
        }
        let Some(failed) = answer.results.into_iter().find(|result| !result.error.is_empty()) else { return Try::Written };
        match failed.error_code {
            _ if failed.retryable => Try::NotYet(failed.error),
            FORBIDDEN => Try::NotYet(failed.error),
            // The conf's own topic may be made yet; one that an event names is the event's fault.
            TOPIC_NOT_FOUND if message.records.iter().all(|record| record.topic.is_empty()) => Try::NotYet(failed.error),
            _ => Try::Refused(KafkaError::Invalid(failed.error)),
        }
    }

    fn record(&self, record: OutRecord) -> Record {
        Record {
            topic: if record.topic == self.topic { String::new() } else { record.topic.to_string() },
            partition: record.partition,
            key: record.key,
            value: record.value,
            headers: record.headers.into_iter().map(|(key, value)| Header { key, value: Some(value) }).collect(),
            timestamp_ms: record.timestamp_ms,
            ..Record::default()
        }
    }
}

/// Of `RecordResult.error_code`.
const TOPIC_NOT_FOUND: u32 = 40401;
const FORBIDDEN: u32 = 40301;

/// Is the request itself at fault, so that it fails again? Too large a message is told by gRPC's libraries in two ways.
fn is_refusal(status: &Status) -> bool {
    let size = ["larger than max", "exceeds maximum size"];
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => true,
        Code::ResourceExhausted => size.iter().any(|words| status.message().to_ascii_lowercase().contains(words)),
        _ => false,
    }
}

/// With the cause, where the transport has one: "transport error" alone says nothing.
fn told(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flume_conf::component::Setting;

    fn component(settings: &[(&str, &str)]) -> Component {
        let mut component = Component::new(&KIND, "k", "bridge");
        for (key, value) in [("endpoint", "https://b:1"), ("topic", "t")].iter().chain(settings) {
            component.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
        }
        component
    }

    #[test]
    fn who_calls_is_said_in_one_header() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "first\n").unwrap();
        let path = file.path().to_str().unwrap();
        let header = |settings: &[(&str, &str)]| {
            let credential = Credential::of(&component(settings)).map_err(|fault| fault.to_string())?;
            credential.map(|credential| credential.header().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))).transpose()
        };
        for (settings, expected) in [
            (&[][..], Ok(None)),
            (&[("token", "a.b.c")], Ok(Some("authorization: Bearer a.b.c"))),
            (&[("tokenFile", path)], Ok(Some("authorization: Bearer first"))),
            (&[("apiKeyFile", path)], Ok(Some("x-api-key: first"))),
            (&[("user", "u"), ("password", "p")], Ok(Some("authorization: Basic dTpw"))),
            (&[("user", "u")], Err("user and password go together")),
            (&[("token", "a"), ("tokenFile", path)], Err("token and tokenFile are both set")),
            (&[("token", "a"), ("apiKey", "b")], Err("the bridge is told in more than one way who calls")),
            (&[("apiKeyFile", "/nowhere")], Err("/nowhere: No such file or directory (os error 2)")),
        ] {
            let expected = expected.map(|header| header.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(header(settings), expected, "{settings:?}");
        }
        let credential = Credential::of(&component(&[("tokenFile", path)])).unwrap().unwrap();
        std::fs::write(&file, "second\n").unwrap();
        assert_eq!(credential.header().unwrap().1, "Bearer second");
        assert!(!format!("{:?}", credential.header().unwrap()).contains("second"));
    }

    #[test]
    fn what_only_the_kafka_sink_has_is_refused_by_name() {
        let told = |settings: &[(&str, &str)]| {
            review(&component(settings), false).iter().map(|finding| format!("{} {finding}", finding.level)).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(told(&[("topic", "a-%{b}"), ("defaultPartitionId", "1"), ("token", "x")]), "");
        for key in
            ["kafka.producer.transactional.id", "kafka.bootstrap.servers", "transaction.events", "deadLetter.topic", "positionsTopic"]
        {
            let text = told(&[(key, "x")]);
            assert!(text.starts_with(&format!("error k.{key}: the Kafka sink has it, the bridge sink has not; remove the line")), "{text}");
        }
        for (settings, expected) in [
            (&[("endpoint", "b:1")][..], "error k.endpoint: `b:1` begins with neither http:// nor https://"),
            (&[("endpoint", "https://u:p@b:1")], "error k.endpoint: a name in the address is not used; set user and password"),
            (&[("endpoint", "http://b:1"), ("token", "x")], "warning k.endpoint: whoever reads along"),
            (&[("topic", "a b")], "error k.topic: `a b` cannot be a topic"),
            (&[("topic", "a-%{b"), ("allowTopicOverride", "false")], "escapes count only while allowTopicOverride is true"),
        ] {
            let text = told(settings);
            assert!(text.contains(expected) && !text.contains("Flume"), "{text}");
        }
    }
}
