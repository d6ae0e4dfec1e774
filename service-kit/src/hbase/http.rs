//! HTTP/1.1 to the gateway: a few connections that are kept, each request within its time and size.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{HbaseConfig, HbaseError};

pub(super) const PROTOBUF: &str = "application/x-protobuf";
pub(super) const TEXT: &str = "text/plain";

/// The gateway closes a connection after 30 s without requests; an older one is not used, so that the two do not meet.
const KEPT_MAX: Duration = Duration::from_secs(10);

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

pub(super) struct Http {
    config: HbaseConfig,
    /// Path before the gateway's own, without a slash at its end.
    base: String,
    host: String,
    port: u16,
    host_header: HeaderValue,
    /// From `user:password@` in the URL.
    authorization: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connections: Semaphore,
    idle: Mutex<Vec<(Connection, Instant)>>,
}

type Connection = SendRequest<Full<Bytes>>;

impl Http {
    pub(super) fn new(config: HbaseConfig) -> Result<Self, HbaseError> {
        let wrong =
            |what: &str| HbaseError::Config(format!("the REST gateway's address {what}; write http://host:port or https://host:port"));
        let uri: Uri = config.url.trim().parse().map_err(|_| wrong("is not an address"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("begins with neither http:// nor https://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (user, plain) = authority.as_str().rsplit_once('@').map_or((None, authority.as_str()), |(user, plain)| (Some(user), plain));
        let authorization = user.map(|user| {
            use base64::Engine as _;
            let mut value = HeaderValue::from_str(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(user)))?;
            value.set_sensitive(true);
            Ok::<_, http::header::InvalidHeaderValue>(value)
        });
        let tls = match (https, &config.tls) {
            (false, _) => None,
            (true, Some(tls)) => {
                let server = ServerName::try_from(host.clone()).map_err(|_| wrong("has a host that cannot be a certificate's name"))?;
                Some((tls.clone(), server))
            }
            (true, None) => return Err(HbaseError::Config("the REST gateway's address is https, but TLS is not set up".into())),
        };
        Ok(Self {
            base: uri.path().trim_end_matches('/').to_owned(),
            port: authority.port_u16().unwrap_or(if https { 443 } else { 8080 }),
            host_header: HeaderValue::from_str(plain).map_err(|_| wrong("is not an address"))?,
            authorization: authorization.transpose().map_err(|_| wrong("has a user that no header can hold"))?,
            host,
            tls,
            connections: Semaphore::new(config.connections_max.max(1)),
            idle: Mutex::default(),
            config,
        })
    }

    pub(super) fn config(&self) -> &HbaseConfig {
        &self.config
    }

    /// Without user and password, for messages.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// One request. `path` begins with a slash and is encoded already. Bodies are protobuf.
    pub(super) async fn send(&self, method: Method, path: &str, accept: &'static str, body: Bytes) -> Result<Answer, HbaseError> {
        let _permit = self.connections.acquire().await.map_err(|_| HbaseError::Unreachable("closed".into()))?;
        let started = Instant::now();
        let answer = self.exchange(method, path, accept, body).await;
        let outcome = match &answer {
            Ok(answer) if answer.status.is_server_error() => "unavailable",
            Ok(answer) if answer.status.is_client_error() && answer.status != StatusCode::NOT_FOUND => "refused",
            Ok(_) => "ok",
            Err(_) => "failed",
        };
        metrics::counter!("millrace_hbase_requests_total", "outcome" => outcome).increment(1);
        metrics::histogram!("millrace_hbase_request_seconds").record(started.elapsed().as_secs_f64());
        answer
    }

    async fn exchange(&self, method: Method, path: &str, accept: &'static str, body: Bytes) -> Result<Answer, HbaseError> {
        let invalid = |error: http::Error| HbaseError::Refused(format!("no request can be so: {error}"));
        let request = || {
            let mut request = Request::builder()
                .method(method.clone())
                .uri(format!("{}{path}", self.base))
                .header(HOST, self.host_header.clone())
                .header(USER_AGENT, concat!("millrace/", env!("CARGO_PKG_VERSION")))
                .header(ACCEPT, accept);
            if !body.is_empty() {
                request = request.header(CONTENT_TYPE, PROTOBUF);
            }
            if let Some(authorization) = &self.authorization {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            request.body(Full::new(body.clone()))
        };
        while let Some(mut kept) = self.kept() {
            if kept.ready().await.is_err() {
                continue;
            }
            match self.over(kept, request().map_err(invalid)?).await {
                // The gateway had closed it before anything was sent.
                Err(Broken::Unsent) => {}
                answered => return answered.map_err(|broken| broken.told(self)),
            }
        }
        let fresh = self.connect().await?;
        self.over(fresh, request().map_err(invalid)?).await.map_err(|broken| broken.told(self))
    }

    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|(connection, since)| since.elapsed() < KEPT_MAX && !connection.is_closed());
        idle.pop().map(|(connection, _)| connection)
    }

    async fn over(&self, mut connection: Connection, request: Request<Full<Bytes>>) -> Result<Answer, Broken> {
        let exchange = async {
            let answer = connection.send_request(request).await.map_err(|error| match error.is_canceled() {
                true => Broken::Unsent,
                false => Broken::Failed(error.to_string()),
            })?;
            let (head, body) = answer.into_parts();
            let body = Limited::new(body, self.config.answer_bytes_max).collect().await;
            match body {
                Ok(body) => Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() }),
                Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Broken::TooLarge),
                Err(error) => Err(Broken::Failed(error.to_string())),
            }
        };
        let answer = timeout(self.config.request_timeout, exchange).await.map_err(|_| Broken::Slow)??;
        self.idle.lock().push((connection, Instant::now()));
        Ok(answer)
    }

    async fn connect(&self) -> Result<Connection, HbaseError> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
            tcp.set_nodelay(true)?;
            match &self.tls {
                Some((tls, server)) => start(tls.connect(server.clone(), tcp).await?).await,
                None => start(tcp).await,
            }
        };
        let lost = |why: String| HbaseError::Unreachable(format!("cannot connect to HBase's REST gateway {}: {why}", self.address()));
        match timeout(self.config.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| lost(error.to_string())),
            Err(_) => Err(lost(format!("no connection within {} ms", self.config.connect_timeout.as_millis()))),
        }
    }
}

/// The connection's own task ends when it is closed or its sender is dropped.
async fn start<S>(stream: S) -> std::io::Result<Connection>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    metrics::gauge!("millrace_hbase_connections").increment(1);
    tokio::task::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to HBase's REST gateway ended");
        }
        metrics::gauge!("millrace_hbase_connections").decrement(1);
    });
    Ok(sender)
}

/// Why an exchange has no answer.
enum Broken {
    /// Nothing of the request left this machine.
    Unsent,
    Failed(String),
    TooLarge,
    Slow,
}

impl Broken {
    fn told(self, http: &Http) -> HbaseError {
        let address = http.address();
        match self {
            Broken::Unsent => HbaseError::Unreachable(format!("HBase's REST gateway {address} closed the connection")),
            Broken::Failed(why) => HbaseError::Unreachable(format!("HBase's REST gateway {address} gave no answer: {why}")),
            Broken::TooLarge => HbaseError::TooLarge(format!(
                "the answer of HBase's REST gateway {address} has more than {} bytes; ask for fewer rows or columns",
                http.config.answer_bytes_max
            )),
            Broken::Slow => HbaseError::Timeout(format!(
                "no answer from HBase's REST gateway {address} within {} ms",
                http.config.request_timeout.as_millis()
            )),
        }
    }
}

/// Shared by all clones of a client.
pub(super) type Shared = Arc<Http>;
