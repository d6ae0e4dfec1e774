//! `GET /consumers/{group}/stream`: records as they come, in one answer that does not end: server-sent events, lines of JSON, or a WebSocket.
//!
//! The consumer lives as long as its connection. After each batch the client is told its position: given back when it connects again
//! (`Last-Event-ID`, as browsers do by themselves, or `?after=`), it acknowledges everything up to it, and reading goes on there. A WebSocket can
//! also acknowledge as it goes. What was not acknowledged is delivered again.
//!
//! A client that reads slowly holds two batches at most, the one in the connection and the next; nobody else waits for it. One that takes and
//! says nothing for `consume.session_idle` is cut off.

mod socket;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Query, State, WebSocketUpgrade},
    http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};
use service_kit::{
    kafka::{Record, TopicPartition},
    listen::Unhurried,
};
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::{App, consume, negotiate, reached_at, text_header};
use crate::{
    auth::carrier,
    codec::Reader,
    config::Compat,
    error::{BridgeError, Code, Result},
    session::{Encode, Limits, Position, Session},
};

/// Largest batch: in bytes as they lie in Kafka, and in records.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
const BATCH_RECORDS_MAX: usize = 1_000;
/// What is handed to the connection at a time: a client that takes this much is in use.
const PIECE_BYTES: usize = 16 * 1024;
/// A connection that is gone is noticed by writing to it.
const HEARTBEAT: Duration = Duration::from_secs(10);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The instance's name: `POST …/offsets` under it acknowledges while the stream goes on.
const INSTANCE: HeaderName = HeaderName::from_static("millrace-instance");

/// What goes over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One event a record; an event without data carries the position as its id.
    Events,
    /// One line a record, then `{"position":"…"}`.
    Lines,
    /// One message a batch: `{"records":[…],"position":"…"}`.
    Messages,
}

pub(super) async fn stream(
    State(app): State<App>,
    Path(group): Path<String>,
    Query(options): Query<HashMap<String, String>>,
    request: Request<Body>,
) -> Result<Response> {
    let (mut parts, _) = request.into_parts();
    let upgrades = parts.headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if upgrades {
        check_origin(&parts.headers)?;
    }
    let form = if upgrades { Form::Messages } else { form(&parts.headers)? };
    let (topics, position, settings) = options_of(&app, options, &parts.headers)?;
    let upgrade = match form {
        Form::Messages => Some(
            WebSocketUpgrade::from_request_parts(&mut parts, &app)
                .await
                .map_err(|error| BridgeError::new(Code::BadRequest, error.to_string()))?,
        ),
        _ => None,
    };
    let session = app.sessions.create(&group, None, settings)?;
    let opened = async {
        if let Some(position) = &position {
            session.resume(position).await?;
        }
        session.subscribe(topics).await
    };
    if let Err(error) = opened.await {
        app.sessions.remove(&session, false).await;
        return Err(error);
    }
    let stream = Stream { form, session: Arc::clone(&session), app: app.clone(), epoch: None, ends: BTreeMap::new() };
    if let Some(upgrade) = upgrade {
        let mut response = socket::upgrade(upgrade, stream);
        response.extensions_mut().insert(Unhurried(app.config.consume.session_idle));
        return Ok(response);
    }
    let (batches, receiver) = mpsc::channel(1);
    app.sessions.tasks().spawn(carrier().run(stream.write(batches)));
    let content_type = if form == Form::Events { "text/event-stream" } else { "application/x-ndjson" };
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>));
    let mut response = ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-store")], body).into_response();
    response.extensions_mut().insert(Unhurried(app.config.consume.session_idle));
    if let Ok(name) = HeaderValue::try_from(&session.name) {
        response.headers_mut().insert(INSTANCE, name);
    }
    Ok(response)
}

/// An error where a page of another site opens the WebSocket: browsers let it, and add the login or certificate that they keep for the bridge.
/// Programs send no `Origin`.
fn check_origin(headers: &HeaderMap) -> Result<()> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let Some(origin) = origins.next() else { return Ok(()) };
    let (_, host) = reached_at(headers);
    let is_own = |origin: &HeaderValue| {
        let uri: Uri = origin.to_str().ok()?.parse().ok()?;
        let usual = if uri.scheme_str()? == "https" { ":443" } else { ":80" };
        // Browsers leave the usual port out; some proxies do not.
        let bare = |authority: &str| authority.strip_suffix(usual).unwrap_or(authority).to_ascii_lowercase();
        Some(bare(uri.authority()?.as_str()) == bare(host))
    };
    if is_own(origin) == Some(true) && origins.next().is_none() {
        return Ok(());
    }
    Err(BridgeError::new(Code::Forbidden, format!("Origin is not {host:?}: a page of another site may not open a WebSocket here")))
}

fn form(headers: &HeaderMap) -> Result<Form> {
    match () {
        () if negotiate::accepts(headers, &["text/event-stream"]) => Ok(Form::Events),
        () if negotiate::accepts(headers, &["application/x-ndjson"]) => Ok(Form::Lines),
        () => Err(BridgeError::new(
            Code::NotAcceptable,
            "a stream is text/event-stream, application/x-ndjson or a WebSocket; Accept names none of them",
        )),
    }
}

/// Topics, where to go on, and the consumer's settings.
fn options_of(
    app: &App,
    mut options: HashMap<String, String>,
    headers: &HeaderMap,
) -> Result<(Vec<String>, Option<Position>, crate::session::Settings)> {
    let topics: Vec<String> = match (options.remove("topics"), options.remove("topic_pattern")) {
        (Some(topics), None) if topics.split(',').all(|topic| !topic.is_empty()) => topics.split(',').map(str::to_owned).collect(),
        (None, Some(pattern)) if !pattern.is_empty() => vec![if pattern.starts_with('^') { pattern } else { format!("^{pattern}") }],
        _ => return Err(BridgeError::new(Code::Unprocessable, "give either ?topics=a,b (one or more) or ?topic_pattern=")),
    };
    // Who connects again by itself sends the header; it is newer than the address.
    let header = text_header(headers, LAST_EVENT_ID.as_str())?.filter(|text| !text.is_empty()).map(str::to_owned);
    let after = options.remove("after");
    let position = header.or(after).map(|text| text.parse()).transpose()?;
    let mut fields: BTreeMap<String, Value> = options.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    fields.entry("auto.commit.enable".to_owned()).or_insert_with(|| "false".into());
    let (_, settings) = consume::settings(fields, &app.config)?;
    if settings.acknowledged.is_some() {
        return Err(BridgeError::new(
            Code::InvalidConsumerConfig,
            "delivery = acknowledged is for fetches; a stream goes on by itself, and its position acknowledges",
        ));
    }
    Ok((topics, position, settings))
}

struct Stream {
    form: Form,
    session: Arc<Session>,
    app: App,
    /// Of the group, under which it was sent; `None` until something was.
    epoch: Option<u64>,
    /// Behind everything that was sent.
    ends: BTreeMap<TopicPartition, i64>,
}

/// Why a stream ends.
enum End {
    /// The client is gone.
    Client,
    /// The client takes nothing: there is no telling it.
    Cut,
    Shutdown,
    Error(BridgeError),
    /// What a WebSocket's client sent is none of ours; with the code that closes it.
    Refused(u16, BridgeError),
}

impl Stream {
    fn shutdown(&self) -> CancellationToken {
        self.session.shutdown()
    }

    /// How it ends when its session has ended while the client is waited for; with a word where it may still hear.
    fn cut_off(&self, hears: bool) -> End {
        if self.shutdown().is_cancelled() {
            return End::Shutdown;
        }
        let error = self.session.cut_off();
        if hears { End::Error(error) } else { End::Cut }
    }

    /// The next records. Once it has begun it is to be awaited: what it gives is delivered.
    fn fetch(&self, records_max: usize) -> impl Future<Output = Result<Batch>> + Send + 'static {
        let limits = Limits { records_max: records_max.min(BATCH_RECORDS_MAX), bytes_max: BATCH_BYTES_MAX, bytes_min: 1, wait: HEARTBEAT };
        let batch = Batch {
            form: self.form,
            reader: Reader::new(self.session.settings.codec, self.app.registry.clone(), self.app.config.consume.response_bytes_max),
            compat: self.app.config.http.compat,
            text: Vec::new(),
            count: 0,
            ends: BTreeMap::new(),
        };
        let session = Arc::clone(&self.session);
        async move { session.fetch(limits, batch).await }
    }

    /// The batch with its position, as it goes over the wire; `None` where nothing came.
    async fn wrap(&mut self, mut batch: Batch) -> Option<Bytes> {
        if batch.count == 0 {
            return None;
        }
        self.ends.append(&mut batch.ends);
        let now = self.session.epoch().await;
        let position = Position { epoch: *self.epoch.get_or_insert(now), ends: self.ends.clone() };
        if position.epoch != now {
            // The group was reset: what was sent until here is to say nothing under the new epoch, or an ack would undo the reset.
            (self.epoch, self.ends) = (Some(now), BTreeMap::new());
        }
        Some(self.session.on_its_way(batch.finish(&position)))
    }

    /// Into an answer's body, until it ends.
    async fn write(mut self, out: mpsc::Sender<Bytes>) {
        let end = self.run(&out).await;
        let session = Arc::clone(&self.session);
        if let End::Error(error) = end {
            // Best effort: a client that takes nothing does not hear of it either.
            drop(timeout(HEARTBEAT, out.send(error_text(self.form, &error))).await);
        }
        self.app.sessions.remove(&session, false).await;
    }

    async fn run(&mut self, out: &mpsc::Sender<Bytes>) -> End {
        let (shutdown, ended) = (self.shutdown(), self.session.ended());
        let mut spoken = Instant::now();
        loop {
            let fetched = select! {
                () = shutdown.cancelled() => return End::Shutdown,
                () = out.closed() => return End::Client,
                fetched = self.fetch(BATCH_RECORDS_MAX) => fetched,
            };
            let text = match fetched {
                Err(error) => return End::Error(error),
                Ok(batch) => self.wrap(batch).await,
            };
            let mut text = match text {
                Some(text) => text,
                None if spoken.elapsed() >= HEARTBEAT => Bytes::from_static(if self.form == Form::Events { b":\n\n" } else { b"\n" }),
                None => continue,
            };
            spoken = Instant::now();
            while !text.is_empty() {
                let piece = text.split_to(text.len().min(PIECE_BYTES));
                let sent = select! {
                    () = shutdown.cancelled() => return End::Shutdown,
                    () = ended.cancelled() => return self.cut_off(false),
                    sent = out.send(piece) => sent,
                };
                if sent.is_err() {
                    return End::Client;
                }
                self.session.touch();
            }
        }
    }
}

fn error_text(form: Form, error: &BridgeError) -> Bytes {
    let body = json!({"error_code": error.code.number(), "message": error.message});
    match form {
        Form::Events => format!("event: error\ndata: {body}\n\n"),
        Form::Lines => format!("{}\n", json!({ "error": body })),
        Form::Messages => json!({ "error": body }).to_string(),
    }
    .into()
}

/// Records as they go over the wire, and the offsets behind them.
struct Batch {
    form: Form,
    reader: Reader,
    compat: Compat,
    text: Vec<u8>,
    count: usize,
    ends: BTreeMap<TopicPartition, i64>,
}

impl Batch {
    fn finish(mut self, position: &Position) -> Vec<u8> {
        // Neither topic names nor numbers need escaping.
        let end = match self.form {
            Form::Events => format!("id: {position}\n\n"),
            Form::Lines => format!("{{\"position\":\"{position}\"}}\n"),
            Form::Messages => format!("],\"position\":\"{position}\"}}"),
        };
        self.text.extend_from_slice(end.as_bytes());
        self.text
    }
}

impl Encode for Batch {
    fn add(&mut self, partition: &TopicPartition, record: &Record) -> Result<bool> {
        if !self.reader.knows(record) {
            return Ok(false);
        }
        let (before, after): (&[u8], &[u8]) = match self.form {
            Form::Events => (b"data: ", b"\n\n"),
            Form::Lines => (b"", b"\n"),
            Form::Messages if self.count == 0 => (b"{\"records\":[", b""),
            Form::Messages => (b",", b""),
        };
        let length = self.text.len();
        self.text.extend_from_slice(before);
        if let Err(error) = consume::write_record(&self.reader, self.compat, partition, record, None, &mut self.text) {
            self.text.truncate(length);
            return Err(error);
        }
        self.text.extend_from_slice(after);
        self.count += 1;
        self.ends.insert(partition.clone(), record.offset + 1);
        Ok(true)
    }

    fn wants<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Vec<i32> {
        self.reader.wants(records)
    }

    fn look_up(&mut self, schemas: Vec<i32>) -> impl Future<Output = Result<()>> + Send {
        self.reader.look_up(schemas)
    }
}
