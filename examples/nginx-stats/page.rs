//! The page of the nginx statistics: reads what `job.sql` keeps in Redis and shows it, anew every two seconds.
//!
//! Settings: `REDIS_URL` (redis://127.0.0.1:6379), `NGINX_STATS_KEYS` (the first word of the job's keys in Redis: nginx), `MILLRACE_PAGE__LISTEN` (127.0.0.1:8088); the rest as every service.

use std::{collections::BTreeMap, net::Ipv4Addr, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Local, NaiveDateTime};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use redis::{AsyncCommands, AsyncIter, aio::ConnectionManager};
use serde::{Deserialize, Serialize};
use service_kit::{
    Context, Control, HttpEndpoint, KitConfig, ListenAddr, Running, Service,
    config::{self, ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig, TlsConfig},
};

/// Windows shown; ten minutes of ten seconds.
const WINDOWS_MAX: usize = 60;
const PATHS_MAX: usize = 10;

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    control: ControlConfig,
    telemetry: TelemetryConfig,
    shutdown: ShutdownConfig,
    limits: LimitsConfig,
    page: PageConfig,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageConfig {
    /// Where the page is served.
    listen: ListenAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            control: ControlConfig::default(),
            telemetry: TelemetryConfig::default(),
            shutdown: ShutdownConfig::default(),
            limits: LimitsConfig::default(),
            page: PageConfig { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 8088)) },
        }
    }
}

fn main() -> ExitCode {
    match config::load::<Config>(None, serde_json::Value::Null) {
        Ok(config) => {
            let Config { control, telemetry, shutdown, limits, page } = config;
            let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
            service_kit::run(Page { config: page, url }, KitConfig { control, telemetry, shutdown, limits })
        }
        Err(errors) => errors.report(),
    }
}

struct Page {
    config: PageConfig,
    url: String,
}

#[async_trait]
impl Service for Page {
    const NAME: &'static str = "nginx-stats-page";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        let client = redis::Client::open(self.url.as_str()).context("REDIS_URL is not a Redis URL such as redis://127.0.0.1:6379")?;
        let connection = ConnectionManager::new(client).await.context("Redis at REDIS_URL does not answer")?;
        let router = Router::new().route("/", get(whole)).route("/live", get(live)).with_state(connection);
        let listen = self.config.listen;
        let shutdown = ctx.shutdown.clone();
        Ok(Running {
            control: Arc::new(PageControl(self.config)),
            grpc: tonic::service::Routes::default(),
            http: vec![HttpEndpoint { name: "page", listen, tls: TlsConfig::default(), router }],
            done: Box::pin(async move {
                shutdown.cancelled().await;
                Ok(())
            }),
        })
    }
}

struct PageControl(PageConfig);

#[async_trait]
impl Control for PageControl {
    fn effective_config(&self) -> (String, String) {
        ("toml".to_owned(), config::render(&self.0))
    }
}

/// One window, all its statuses together and apart.
#[derive(Default)]
struct Window {
    requests: u64,
    bytes: u64,
    errors: u64,
    /// Milliseconds; absent where the log has no `$request_time`.
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    statuses: BTreeMap<String, u64>,
}

/// Windows by their start as the job writes it, `2026-11-22T10:00:00`: in order of time, since all are in UTC.
async fn windows(connection: &mut ConnectionManager) -> redis::RedisResult<BTreeMap<String, Window>> {
    let mut keys: Vec<String> = Vec::new();
    let mut scan: AsyncIter<'_, String> = connection.scan_match(format!("{}:status:*", prefix())).await?;
    while let Some(key) = scan.next_item().await {
        keys.push(key?);
    }
    drop(scan);
    let mut windows: BTreeMap<String, Window> = BTreeMap::new();
    for key in keys {
        let fields: BTreeMap<String, String> = connection.hgetall(&key).await?;
        let count = |name: &str| fields.get(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
        let window = windows.entry(fields.get("window_start").cloned().unwrap_or_default()).or_default();
        window.statuses.insert(fields.get("status").cloned().unwrap_or_default(), count("requests"));
        window.requests += count("requests");
        window.bytes += count("bytes");
        window.errors += count("errors");
    }
    // Latencies of all statuses together, for the windows that are shown.
    for (start, window) in windows.iter_mut().rev().take(WINDOWS_MAX) {
        let latencies: (Option<f64>, Option<f64>, Option<f64>) =
            connection.hmget(format!("{}:window:{start}", prefix()), &["p50_ms", "p95_ms", "p99_ms"]).await?;
        (window.p50, window.p95, window.p99) = latencies;
    }
    Ok(windows)
}

/// The first word of the job's keys in Redis.
fn prefix() -> String {
    std::env::var("NGINX_STATS_KEYS").unwrap_or_else(|_| "nginx".to_owned())
}

async fn top_paths(connection: &mut ConnectionManager, window: &str) -> redis::RedisResult<Vec<(String, f64)>> {
    connection.zrevrange_withscores(format!("{}:paths:{window}", prefix()), 0, PATHS_MAX as isize - 1).await
}

fn bytes(n: u64) -> String {
    match n {
        0..1_024 => format!("{n} B"),
        1_024..1_048_576 => format!("{:.1} KiB", n as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

fn clock(start: &str) -> String {
    let time = NaiveDateTime::parse_from_str(start.trim_end_matches('Z'), "%Y-%m-%dT%H:%M:%S%.f");
    time.map(|time| DateTime::<Local>::from(time.and_utc()).format("%H:%M:%S").to_string()).unwrap_or_default()
}

/// `23,323`.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn milliseconds(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        // nginx measures whole milliseconds.
        Some(value) if value < 1.0 => "< 1 ms".to_owned(),
        Some(value) => format!("{value:.0} ms"),
    }
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Bars of requests per window; errors in their own colour at the foot.
fn chart(windows: &[(&str, &Window)]) -> Markup {
    let (width, height) = (720.0, 140.0);
    let most = windows.iter().map(|(_, window)| window.requests).max().unwrap_or_default().max(1) as f64;
    // The newest stands at the right edge.
    let step = width / windows.len().clamp(20, WINDOWS_MAX) as f64;
    let left = width - windows.len() as f64 * step;
    html! {
        svg viewBox="0 0 720 160" role="img" aria-label={ "Requests per window, at most " (most) } {
            @for (n, (start, window)) in windows.iter().enumerate() {
                @let x = left + n as f64 * step;
                @let tall = window.requests as f64 / most * height;
                @let failed = window.errors as f64 / most * height;
                g {
                    title { (clock(start)) ": " (window.requests) " requests, " (window.errors) " errors" }
                    rect class="ok" x=(format!("{x:.1}")) y=(format!("{:.1}", height - tall)) width=(format!("{:.1}", step - 2.0)) height=(format!("{tall:.1}")) {}
                    rect class="bad" x=(format!("{x:.1}")) y=(format!("{:.1}", height - failed)) width=(format!("{:.1}", step - 2.0)) height=(format!("{failed:.1}")) {}
                }
            }
            @if windows.len() >= 16 { text x=(format!("{left:.1}")) y="156" { (windows.first().map(|(start, _)| clock(start)).unwrap_or_default()) } }
            text x="720" y="156" text-anchor="end" { (windows.last().map(|(start, _)| clock(start)).unwrap_or_default()) }
        }
    }
}

async fn fragment(connection: &mut ConnectionManager) -> redis::RedisResult<Markup> {
    let all = windows(connection).await?;
    let requests: u64 = all.values().map(|window| window.requests).sum();
    let errors: u64 = all.values().map(|window| window.errors).sum();
    let sent: u64 = all.values().map(|window| window.bytes).sum();
    let recent: Vec<(&str, &Window)> =
        all.iter().skip(all.len().saturating_sub(WINDOWS_MAX)).map(|(start, window)| (start.as_str(), window)).collect();
    let newest = recent.last().copied();
    let paths = match newest {
        Some((start, _)) => top_paths(connection, start).await?,
        None => Vec::new(),
    };
    Ok(html! {
        @if let Some((start, window)) = newest {
            // The newest window is still being counted.
            @let complete = recent.len().checked_sub(2).map_or(window, |n| recent[n].1);
            section.facts {
                div { b { (count(requests)) } span { "requests counted" } }
                div { b { (format!("{:.1}", complete.requests as f64 / 10.0)) } span { "requests a second, last full window" } }
                div { b { (share(errors, requests)) } span { "errors" } }
                div { b { (bytes(sent)) } span { "sent" } }
                div { b { (milliseconds(complete.p95)) } span { "p95 latency, last full window" } }
            }
            h2 { "Requests per ten seconds" small { ", at most " (count(recent.iter().map(|(_, window)| window.requests).max().unwrap_or_default())) } }
            (chart(&recent))
            section.columns {
                div {
                    h2 { "Last windows" }
                    div.scroll { table {
                        thead { tr { th { "From" } th.n { "Requests" } th { "Statuses" } th.n { "Errors" } th.n { "Sent" } th.n { "p50" } th.n { "p95" } th.n { "p99" } } }
                        tbody {
                            @for (start, window) in recent.iter().rev().take(10) {
                                tr {
                                    td { (clock(start)) }
                                    td.n { (count(window.requests)) }
                                    td.statuses { @for (status, n) in &window.statuses { span.status data-class=(status.chars().next().unwrap_or('?')) { (status) " × " (n) } " " } }
                                    td.n { (share(window.errors, window.requests)) }
                                    td.n { (bytes(window.bytes)) }
                                    @for value in [window.p50, window.p95, window.p99] { td.n { (milliseconds(value)) } }
                                }
                            }
                        }
                    } }
                }
                div {
                    h2 { "Top paths since " (clock(start)) }
                    div.scroll { table {
                        thead { tr { th { "Path" } th.n { "Requests" } } }
                        tbody { @for (path, n) in &paths { tr { td.path { (path) } td.n { (n) } } } }
                    } }
                }
            }
        } @else {
            p { "No request is counted yet: the first shows about two seconds after it was served." }
        }
    })
}

fn unavailable(error: &redis::RedisError) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("Redis does not answer: {error}")).into_response()
}

async fn live(State(mut connection): State<ConnectionManager>) -> Response {
    match fragment(&mut connection).await {
        Ok(markup) => Html(markup.into_string()).into_response(),
        Err(error) => unavailable(&error),
    }
}

async fn whole(State(mut connection): State<ConnectionManager>) -> Response {
    let body = match fragment(&mut connection).await {
        Ok(markup) => markup,
        Err(error) => return unavailable(&error),
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "nginx, live" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header { h1 { "nginx, live" } p #state role="status" { "from the access log through the collector, Kafka and the stream engine" } }
                main #live { (body) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Html(page.into_string()).into_response()
}

const STYLE: &str = "
:root { color-scheme: light dark; --ok: light-dark(#2f7fa3, #58a6cc); --bad: light-dark(#b93a22, #ff8a73); --line: #8884; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
header { display: flex; align-items: baseline; gap: 1rem; border-bottom: 1px solid var(--line); flex-wrap: wrap; }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1rem; margin: 1.5rem 0 .5rem }
.facts { display: flex; gap: 2rem; flex-wrap: wrap; margin: 1rem 0 }
.facts b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums }
.columns { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 1fr); gap: 2rem } @media (max-width: 50rem) { .columns { grid-template-columns: minmax(0, 1fr) } main svg text { font-size: 20px } .facts { gap: .5rem 1.5rem } .facts b { font-size: 1.3rem } }
small { font-weight: 400 } .scroll { overflow-x: auto } td, th { white-space: nowrap } .n { text-align: right } .status { white-space: nowrap }
.statuses { white-space: normal; min-width: 9rem } .path { white-space: normal; overflow-wrap: anywhere }
svg { width: 100%; height: auto } svg text { font-size: 11px; fill: currentColor } .ok { fill: var(--ok) } .bad { fill: var(--bad) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } th { text-align: left; font-weight: 600 }
td, th { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) } .status[data-class='5'], .status[data-class='4'] { color: var(--bad) }
";

const SCRIPT: &str = "
setInterval(async () => {
  const state = document.getElementById('state');
  try {
    const answer = await fetch('/live');
    if (!answer.ok) throw new Error(await answer.text());
    document.getElementById('live').innerHTML = await answer.text();
    state.textContent = 'at ' + new Date().toLocaleTimeString();
  } catch (error) { state.textContent = 'not current: ' + error.message; }
}, 2000);
";
