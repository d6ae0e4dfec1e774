//! `/consumers/…`: consumer instances over sessions.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use service_kit::{
    kafka::{Isolation, Record, TopicPartition},
    offsets::OffsetCommit,
};

use super::{App, V2, base_url, json_response, negotiate, parse, query, segment};
use crate::{
    auth,
    codec::{self, CODECS, Reader, Unreadable},
    config::{BridgeConfig, Compat},
    error::{BridgeError, Code, Result},
    session::{Acknowledged, Encode, EncodeBatch, Limits, Reject, Session, Settings, Settlement},
};

/// Names a batch, to acknowledge it by.
const BATCH: HeaderName = HeaderName::from_static("millrace-batch");
/// Names the partitions that give nothing new until some of their records are acknowledged.
const WINDOW_FULL: HeaderName = HeaderName::from_static("millrace-window-full");
/// Names the partitions that are missing in an answer because their next record cannot be shown.
const BLOCKED: HeaderName = HeaderName::from_static("millrace-blocked");

type Instance = Path<(String, String)>;

/// A topic's partition in requests and answers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Partition {
    topic: String,
    partition: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Partitions {
    partitions: Vec<Partition>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offsets {
    offsets: Vec<PartitionOffset>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartitionOffset {
    topic: String,
    partition: i32,
    offset: i64,
    #[serde(default)]
    metadata: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subscription {
    #[serde(default)]
    topics: Vec<String>,
    #[serde(default)]
    topic_pattern: Option<String>,
}

/// What is said of records of an instance with `delivery = acknowledged`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acknowledgements {
    #[serde(default)]
    batch: Option<String>,
    #[serde(default)]
    acknowledge: Vec<Place>,
    #[serde(default)]
    reject: Vec<Rejected>,
}

/// A record.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rejected {
    topic: String,
    partition: i32,
    offset: i64,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    reason: Option<String>,
}

impl From<Partition> for TopicPartition {
    fn from(Partition { topic, partition }: Partition) -> Self {
        TopicPartition::new(topic, partition)
    }
}

impl Partitions {
    fn parse(body: &[u8]) -> Result<Vec<TopicPartition>> {
        Ok(parse::<Self>(body)?.partitions.into_iter().map(TopicPartition::from).collect())
    }
}

// === Life of an instance ===

pub(super) async fn create(State(app): State<App>, Path(group): Path<String>, headers: HeaderMap, body: Bytes) -> Result<Response> {
    negotiate::json_answer(&headers)?;
    let fields: BTreeMap<String, Value> = if body.is_empty() {
        BTreeMap::new()
    } else {
        negotiate::json_body(&headers)?;
        parse(&body)?
    };
    let (name, settings) = settings(fields.clone(), &app.config)?;
    if let Some(letters) = settings.acknowledged.as_ref().and_then(|acknowledged| acknowledged.dead_letters.as_ref()) {
        // Who may not write there is not told whether it is there.
        auth::check(auth::Verb::Write, auth::Kind::Topic, &letters.topic)?;
        app.topics.check(&letters.topic, None).await?;
    }
    let session = app.sessions.create_shared(&group, name, settings, fields).await?;
    let base_uri = format!("{}/consumers/{}/instances/{}", base_url(&headers), segment(&group), segment(&session.name));
    Ok(json_response(StatusCode::OK, V2, &json!({"instance_id": session.name, "base_uri": base_uri})))
}

/// Name and settings of a new instance. Values may be JSON or, as the REST proxy has them, text: `"true"`, `"1000"`.
pub(super) fn settings(fields: BTreeMap<String, Value>, config: &BridgeConfig) -> Result<(Option<String>, Settings)> {
    let mut name = None;
    let (mut delivery, mut auto_commit) = (Delivery::default(), None);
    let mut settings = Settings {
        codec: &CODECS[0],
        auto_commit: true,
        auto_offset_reset: "latest".to_owned(),
        isolation: Isolation::ReadUncommitted,
        fetch_min_bytes: 1,
        request_timeout: config.consume.request_timeout,
        acknowledged: None,
    };
    for (field, value) in fields {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            other => other.to_string(),
        };
        let wrong = |expected: &str| {
            Err(BridgeError::new(Code::InvalidConsumerConfig, format!("{field} = {text:?} is not possible; give {expected}")))
        };
        match field.as_str() {
            "name" | "id" => {
                let legal = !matches!(text.as_str(), "" | "." | "..")
                    && text.len() <= 200
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
                if !legal {
                    return wrong("1 to 200 letters, digits, '.', '_' or '-', and not '.' or '..'");
                }
                name = Some(text);
            }
            "format" => match codec::by_name(&text) {
                Some(codec) => settings.codec = codec,
                None => return wrong(&CODECS.iter().map(|codec| codec.name).collect::<Vec<_>>().join(", ")),
            },
            "auto.offset.reset" => match text.as_str() {
                "earliest" | "latest" | "none" => settings.auto_offset_reset = text,
                _ => return wrong("earliest, latest or none"),
            },
            "auto.commit.enable" | "enable.auto.commit" => match text.parse() {
                Ok(value) => auto_commit = Some(value),
                Err(_) => return wrong("true or false"),
            },
            "isolation.level" => match text.as_str() {
                "read_uncommitted" => settings.isolation = Isolation::ReadUncommitted,
                "read_committed" => settings.isolation = Isolation::ReadCommitted,
                _ => return wrong("read_uncommitted or read_committed"),
            },
            // -1 is the REST proxy's way to say: the default.
            "fetch.min.bytes" => match text.parse::<i64>() {
                Ok(-1) => {}
                Ok(bytes @ 1..=10_000_000) => settings.fetch_min_bytes = usize::try_from(bytes).unwrap_or(1),
                _ => return wrong("-1, or 1 to 10000000 bytes"),
            },
            "consumer.request.timeout.ms" => match text.parse::<u64>() {
                Ok(ms) => settings.request_timeout = Duration::from_millis(ms).min(config.consume.request_timeout_max),
                Err(_) => return wrong("a number of milliseconds"),
            },
            "delivery" => match text.as_str() {
                "continuous" => delivery.acknowledged = false,
                "acknowledged" => delivery.acknowledged = true,
                _ => return wrong("continuous or acknowledged"),
            },
            "visibility.timeout.ms" => match text.parse() {
                Ok(ms) => delivery.visibility = Some(Duration::from_millis(ms)),
                Err(_) => return wrong("a number of milliseconds"),
            },
            "delivery.attempts.max" => match text.parse() {
                Ok(attempts) => delivery.attempts_max = Some(attempts),
                Err(_) => return wrong("a number of attempts"),
            },
            "dead.letter.topic" => delivery.dead_letter_topic = Some(text),
            _ => {
                // Strimzi checks the form of a body before its meaning.
                let code = if config.http.compat == Compat::Strimzi { Code::BadRequest } else { Code::InvalidConsumerConfig };
                return Err(BridgeError::new(
                    code,
                    format!(
                        "{field} is not a setting of consumer instances; there are name, format, auto.offset.reset, auto.commit.enable, fetch.min.bytes, consumer.request.timeout.ms, isolation.level, delivery, visibility.timeout.ms, delivery.attempts.max, dead.letter.topic"
                    ),
                ));
            }
        }
    }
    settings.acknowledged = delivery.checked(auto_commit, config.consume.session_idle)?;
    settings.auto_commit = auto_commit.unwrap_or(settings.acknowledged.is_none());
    Ok((name, settings))
}

/// The settings that belong to `delivery`.
#[derive(Default)]
struct Delivery {
    acknowledged: bool,
    visibility: Option<Duration>,
    attempts_max: Option<u64>,
    dead_letter_topic: Option<String>,
}

impl Delivery {
    fn checked(self, auto_commit: Option<bool>, idle: Duration) -> Result<Option<Acknowledged>> {
        let wrong = |message: &str| Err(BridgeError::new(Code::InvalidConsumerConfig, message));
        let Self { acknowledged, visibility, attempts_max, dead_letter_topic } = self;
        if acknowledged && auto_commit == Some(true) {
            return wrong(
                "auto.commit.enable = true contradicts delivery = acknowledged, where each batch is acknowledged; remove one of them",
            );
        }
        if acknowledged {
            return Acknowledged::new(visibility, attempts_max, dead_letter_topic, idle).map(Some);
        }
        if visibility.is_some() || attempts_max.is_some() || dead_letter_topic.is_some() {
            return wrong(
                "visibility.timeout.ms, delivery.attempts.max and dead.letter.topic belong to delivery = acknowledged; set it, or remove them",
            );
        }
        Ok(None)
    }
}

pub(super) async fn remove(State(app): State<App>, Path((group, name)): Instance) -> Result<StatusCode> {
    let session = app.sessions.get(&group, &name)?;
    app.sessions.delete(&session, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

// === What it reads ===

pub(super) async fn subscribe(
    State(app): State<App>,
    Path((group, name)): Instance,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_body(&headers)?;
    let wanted: Subscription = parse(&body)?;
    let topics = match (wanted.topics.is_empty(), wanted.topic_pattern) {
        (false, None) => wanted.topics,
        (true, Some(pattern)) if !pattern.is_empty() => vec![if pattern.starts_with('^') { pattern } else { format!("^{pattern}") }],
        _ => return Err(BridgeError::new(Code::Unprocessable, "give either topics (one or more) or topic_pattern")),
    };
    session.subscribe(topics).await?;
    app.sessions.note(&session, &[]).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn subscription(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap) -> Result<Response> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_answer(&headers)?;
    let topics = session.subscription().await?;
    if app.config.http.compat == Compat::Confluent {
        return Ok(json_response(StatusCode::OK, V2, &json!({"topics": topics})));
    }
    let mut partitions: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for partition in session.assignment().await? {
        partitions.entry(partition.topic).or_default().push(partition.partition);
    }
    let partitions: Vec<Value> = partitions.into_iter().map(|(topic, partitions)| json!({ &*topic: partitions })).collect();
    Ok(json_response(StatusCode::OK, V2, &json!({"topics": topics, "partitions": partitions})))
}

pub(super) async fn unsubscribe(State(app): State<App>, Path((group, name)): Instance) -> Result<StatusCode> {
    let session = app.sessions.get(&group, &name)?;
    session.unsubscribe().await?;
    app.sessions.note(&session, &[]).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn assign(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap, body: Bytes) -> Result<StatusCode> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_body(&headers)?;
    session.assign(Partitions::parse(&body)?).await?;
    app.sessions.note(&session, &[]).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn assignment(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap) -> Result<Response> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_answer(&headers)?;
    let partitions = session
        .assignment()
        .await?
        .into_iter()
        .map(|partition| Partition { topic: partition.topic.to_string(), partition: partition.partition });
    Ok(json_response(StatusCode::OK, V2, &json!({"partitions": partitions.collect::<Vec<_>>()})))
}

pub(super) async fn seek(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap, body: Bytes) -> Result<StatusCode> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_body(&headers)?;
    let positions = parse::<Offsets>(&body)?.offsets.into_iter().map(|at| (TopicPartition::new(at.topic, at.partition), at.offset));
    let positions: Vec<_> = positions.collect();
    session.seek(&positions).await?;
    app.sessions.note(&session, &positions.into_iter().map(|(partition, _)| partition).collect::<Vec<_>>()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn seek_to_beginning(
    State(app): State<App>,
    Path((group, name)): Instance,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    seek_to(&app, &group, &name, &headers, &body, true).await
}

pub(super) async fn seek_to_end(
    State(app): State<App>,
    Path((group, name)): Instance,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode> {
    seek_to(&app, &group, &name, &headers, &body, false).await
}

async fn seek_to(app: &App, group: &str, name: &str, headers: &HeaderMap, body: &[u8], beginning: bool) -> Result<StatusCode> {
    let session = app.sessions.get(group, name)?;
    negotiate::json_body(headers)?;
    let partitions = Partitions::parse(body)?;
    session.seek_to_end(&partitions, beginning).await?;
    app.sessions.note(&session, &partitions).await?;
    Ok(StatusCode::NO_CONTENT)
}

// === Records and offsets ===

pub(super) async fn records(
    State(app): State<App>,
    Path((group, name)): Instance,
    Query(options): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Result<Response> {
    let session = app.sessions.get(&group, &name)?;
    let codec = session.settings.codec;
    negotiate::records_answer(&headers, codec)?;
    let consume = &app.config.consume;
    // Negative is the REST proxy's way to say: the default.
    let wait = query::<i64>(&options, "timeout")?.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
    let bytes_max = query::<i64>(&options, "max_bytes")?.and_then(|bytes| usize::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
    let bytes_max = bytes_max.unwrap_or(usize::MAX).min(consume.response_bytes_max);
    let limits = Limits {
        records_max: usize::MAX,
        bytes_max,
        bytes_min: session.settings.fetch_min_bytes.min(bytes_max),
        wait: wait.unwrap_or(session.settings.request_timeout).min(consume.request_timeout_max),
    };
    let reader = Reader::new(codec, app.registry.clone(), consume.response_bytes_max);
    let encode = JsonRecords { reader, compat: app.config.http.compat, bytes_max, body: Vec::new(), blocked: Vec::new() };
    let acknowledge = options.get("acknowledge").cloned();
    let (answer, batch, full) = if session.settings.acknowledged.is_some() {
        let fetched = session.fetch_batch(limits, acknowledge, encode).await?;
        (fetched.answer, fetched.batch, fetched.full)
    } else if acknowledge.is_some() {
        return Err(BridgeError::new(
            Code::IllegalState,
            "?acknowledge= is for instances with delivery = acknowledged; here POST …/offsets acknowledges",
        ));
    } else {
        (session.fetch(limits, encode).await?, None, Vec::new())
    };
    let full = full.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let named = [(BLOCKED, answer.blocked.join(", ")), (BATCH, batch.unwrap_or_default()), (WINDOW_FULL, full)];
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, codec.content_type)], session.on_its_way(answer.finish())).into_response();
    for (header, names) in named {
        // Topic names and numbers make a header value.
        if let Some(names) = HeaderValue::try_from(names).ok().filter(|names| !names.is_empty()) {
            response.headers_mut().insert(header, names);
        }
    }
    Ok(response)
}

pub(super) async fn acknowledge(
    State(app): State<App>,
    Path((group, name)): Instance,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response> {
    let session = app.sessions.get(&group, &name)?;
    negotiate::json_body(&headers)?;
    let Acknowledgements { batch, acknowledge, reject } = parse(&body)?;
    if batch.is_none() && acknowledge.is_empty() && reject.is_empty() {
        return Err(BridgeError::new(Code::Unprocessable, "nothing is acknowledged; give batch, acknowledge or reject"));
    }
    let idle = app.config.consume.session_idle;
    let reject = reject.into_iter().map(|Rejected { topic, partition, offset, delay_ms, reason }| {
        Reject::new(TopicPartition::new(topic, partition), offset, Duration::from_millis(delay_ms), reason, idle)
    });
    let reject = reject.collect::<Result<_>>()?;
    let acknowledge = acknowledge.into_iter().map(|at| (TopicPartition::new(at.topic, at.partition), at.offset)).collect();
    let outcome = session.settle(Settlement { batches: batch.into_iter().collect(), acknowledge, reject }).await?;
    let ignored = outcome.ignored.into_iter();
    let ignored = ignored.map(|(at, offset)| Place { topic: at.topic.to_string(), partition: at.partition, offset });
    let body = json!({"acknowledged": outcome.acknowledged, "rejected": outcome.rejected, "ignored": ignored.collect::<Vec<_>>()});
    Ok(json_response(StatusCode::OK, V2, &body))
}

pub(super) async fn commit(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let session = app.sessions.get(&group, &name)?;
    let compat = app.config.http.compat;
    let offsets = if body.is_empty() {
        session.knows_what_it_gave()?;
        None
    } else {
        negotiate::json_body(&headers)?;
        // The REST proxy takes the last offset that was processed, Strimzi the next one to read.
        let next = if compat == Compat::Confluent { 1 } else { 0 };
        let commits = parse::<Offsets>(&body)?.offsets.into_iter().map(|at| OffsetCommit {
            partition: TopicPartition::new(at.topic, at.partition),
            offset: at.offset.saturating_add(next),
            metadata: at.metadata.unwrap_or_default(),
        });
        Some(commits.collect())
    };
    session.commit(offsets).await?;
    Ok(match compat {
        Compat::Confluent => json_response(StatusCode::OK, V2, &json!([])),
        Compat::Strimzi => StatusCode::NO_CONTENT.into_response(),
    })
}

/// The partitions are in the body, as in the REST proxy; without a body they are the assigned ones, since few clients send a body with GET.
pub(super) async fn committed(State(app): State<App>, Path((group, name)): Instance, headers: HeaderMap, body: Bytes) -> Result<Response> {
    let session: Arc<Session> = app.sessions.get(&group, &name)?;
    negotiate::json_answer(&headers)?;
    let partitions = if body.is_empty() { session.assignment().await? } else { Partitions::parse(&body)? };
    let offsets = session.committed(&partitions).await?.into_iter().map(|(partition, stored)| {
        json!({"topic": &*partition.topic, "partition": partition.partition, "offset": stored.offset, "metadata": stored.metadata})
    });
    Ok(json_response(StatusCode::OK, V2, &json!({"offsets": offsets.collect::<Vec<_>>()})))
}

/// A JSON array of records, written as they come.
struct JsonRecords {
    reader: Reader,
    compat: Compat,
    bytes_max: usize,
    body: Vec<u8>,
    /// Partitions whose next record the format cannot show.
    blocked: Vec<String>,
}

impl JsonRecords {
    fn finish(mut self) -> Vec<u8> {
        if self.body.is_empty() {
            self.body.push(b'[');
        }
        self.body.push(b']');
        self.body
    }

    fn write(&mut self, partition: &TopicPartition, record: &Record, attempt: Option<u32>) -> Result<bool> {
        if !self.reader.knows(record) {
            return Ok(false);
        }
        let before = self.body.len();
        self.body.push(if before == 0 { b'[' } else { b',' });
        if let Err(error) = write_record(&self.reader, self.compat, partition, record, attempt, &mut self.body) {
            self.body.truncate(before);
            return Err(error);
        }
        // One for the closing bracket.
        if before > 0 && self.body.len() + 1 > self.bytes_max {
            self.body.truncate(before);
            return Ok(false);
        }
        Ok(true)
    }
}

/// One record as a JSON object, without any line's end in it. `attempt`: of a window's record.
pub(super) fn write_record(
    reader: &Reader,
    compat: Compat,
    partition: &TopicPartition,
    record: &Record,
    attempt: Option<u32>,
    out: &mut Vec<u8>,
) -> Result<()> {
    let embedded = |field: &str, bytes: &Option<Bytes>, out: &mut Vec<u8>| {
        match bytes {
        None => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        Some(bytes) => reader.write(bytes, out).map_err(|Unreadable { code, reason }| {
            let name = reader.codec.name;
            BridgeError::new(
                code,
                format!("the {field} of {partition} at offset {} {reason}, so format {name} cannot show it; read it with format binary, or go on behind it with POST …/positions", record.offset),
            )
        }),
    }
    };
    out.extend_from_slice(b"{\"topic\":\"");
    // Kafka's topic names need no escaping.
    out.extend_from_slice(partition.topic.as_bytes());
    out.extend_from_slice(b"\",\"key\":");
    embedded("key", &record.key, out)?;
    out.extend_from_slice(b",\"value\":");
    embedded("value", &record.value, out)?;
    out.extend_from_slice(format!(",\"partition\":{},\"offset\":{}", partition.partition, record.offset).as_bytes());
    if let Some(attempt) = attempt {
        out.extend_from_slice(format!(",\"attempt\":{attempt}").as_bytes());
    }
    if compat == Compat::Strimzi && record.timestamp_ms >= 0 {
        out.extend_from_slice(format!(",\"timestamp\":{}", record.timestamp_ms).as_bytes());
    }
    if !record.headers.is_empty() {
        let headers: Vec<Value> = record
            .headers
            .iter()
            .map(|(key, value)| json!({"key": key, "value": value.as_ref().map(|value| STANDARD.encode(value))}))
            .collect();
        out.extend_from_slice(format!(",\"headers\":{}", Value::from(headers)).as_bytes());
    }
    out.push(b'}');
    Ok(())
}

impl Encode for JsonRecords {
    fn add(&mut self, partition: &TopicPartition, record: &Record) -> Result<bool> {
        self.write(partition, record, None)
    }

    fn blocked(&mut self, partition: &TopicPartition) {
        self.blocked.push(partition.to_string());
    }

    fn wants<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Vec<i32> {
        self.reader.wants(records)
    }

    fn look_up(&mut self, schemas: Vec<i32>) -> impl Future<Output = Result<()>> + Send {
        self.reader.look_up(schemas)
    }
}

impl EncodeBatch for JsonRecords {
    fn add_attempt(&mut self, partition: &TopicPartition, record: &Record, attempt: u32) -> Result<bool> {
        self.write(partition, record, Some(attempt))
    }

    fn unbounded(&mut self) {
        self.bytes_max = usize::MAX;
    }

    fn clear(&mut self) {
        self.body.clear();
        self.blocked.clear();
    }
}
