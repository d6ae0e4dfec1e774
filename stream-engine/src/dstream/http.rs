//! A receiver of HTTP requests: who gets a 200 knows that his lines are stored.

use anyhow::Context as _;
use async_trait::async_trait;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use service_kit::{
    ListenAddr,
    config::LimitsConfig,
    listen::{bind_tcp, serve_http},
};
use tokio_util::sync::CancellationToken;

use super::receiver::{Receiver, ReceiverSupervisor};
use super::{DStream, StreamingContext};

/// The listener's name, in metrics and the log.
const NAME: &str = "receiver";

struct Http {
    listen: ListenAddr,
    limits: LimitsConfig,
}

#[async_trait]
impl Receiver<String> for Http {
    async fn on_start(&self, supervisor: &ReceiverSupervisor<String>) -> anyhow::Result<()> {
        let tcp = bind_tcp(NAME, self.listen).await?;
        let router = Router::new().route("/", post(lines)).with_state(supervisor.clone());
        // The engine's other listeners bound how long a request may take.
        let served = serve_http(NAME, tcp, None, router, self.limits.clone(), supervisor.stopping(), CancellationToken::new());
        served.await.context("cannot receive over HTTP")
    }
}

async fn lines(State(supervisor): State<ReceiverSupervisor<String>>, body: Bytes) -> Response {
    let Ok(text) = std::str::from_utf8(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not UTF-8\n").into_response();
    };
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let count = lines.len();
    match supervisor.store_all(lines).await {
        Ok(()) => (StatusCode::OK, format!("{count}\n")).into_response(),
        Err(error) => {
            supervisor.report_error("a request was refused", &error);
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "not stored; try again\n").into_response()
        }
    }
}

impl StreamingContext {
    /// Lines of UTF-8 that are posted to `http://<listen>/`, e.g. `127.0.0.1:7105`. The answer is 200, with the number of lines, when
    /// all of them are stored; with the write-ahead log they are on disk then and every one of them is in a batch once. Any other answer, or none: the lines
    /// may be stored or not. 503: not stored, try again; 413: more than `limits.body_bytes_max`; 504: there was no room within
    /// `limits.request_timeout`. Without TLS, so addresses that other machines can reach need `limits.allow_plaintext`.
    pub fn http_stream(&self, listen: &str) -> DStream<String> {
        let receiver = listen.parse::<ListenAddr>().map_err(|error| anyhow::anyhow!(error)).and_then(|listen| {
            let limits = self.limits()?;
            anyhow::ensure!(
                listen.is_loopback() || limits.allow_plaintext,
                "other machines can reach it, and there is no TLS; give a loopback address, or allow it with [limits] allow_plaintext = true"
            );
            Ok(Http { listen, limits })
        });
        let receiver = receiver.unwrap_or_else(|error| {
            self.graph.lock().error(format!("httpStream({listen}): {error:#}"));
            Http { listen: ListenAddr::new(([127, 0, 0, 1], 0)), limits: LimitsConfig::default() }
        });
        self.received(&format!("http({listen})"), receiver, Ok)
    }
}
