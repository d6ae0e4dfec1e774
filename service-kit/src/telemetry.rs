//! Logs to standard error and traces by OTLP, from one [`Telemetry`] that is flushed last.
//!
//! The log filter can be changed while running. Traces follow a caller's choice (`traceparent`); new ones are kept at `telemetry.trace_sample`.
//! Without `telemetry.otlp_endpoint` no span is built for export, and [`tracing_on`] is one relaxed load.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _},
    panic,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt as _, TraceState, TracerProvider as _},
};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter, SpanProcessor},
};
use parking_lot::Mutex;
use tracing::{Span, error, info, level_filters::LevelFilter, warn};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _};

use crate::config::{LogFormat, TelemetryConfig};

/// How long a span waits for company.
const EXPORT_INTERVAL: Duration = Duration::from_secs(1);

static TRACING_ON: AtomicBool = AtomicBool::new(false);
static LOG_FILTER: OnceLock<LogFilter> = OnceLock::new();
static LOG_AROUND: OnceLock<fn(&mut dyn FnMut())> = OnceLock::new();

/// Are spans exported? Ask before building what only a trace needs.
#[inline]
pub fn tracing_on() -> bool {
    TRACING_ON.load(Ordering::Relaxed)
}

/// The span's W3C `traceparent`; None when it is not sampled or tracing is off.
pub fn traceparent(span: &Span) -> Option<String> {
    if !tracing_on() {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    (context.is_valid() && context.is_sampled()).then(|| format!("00-{}-{}-01", context.trace_id(), context.span_id()))
}

/// Makes the span, which must be new, a child of the one that `traceparent` names. A malformed value is ignored, as W3C wants it.
pub fn set_parent(span: &Span, traceparent: &str) {
    if !tracing_on() {
        return;
    }
    if let Some(parent) = parse_traceparent(traceparent)
        && let Err(error) = span.set_parent(Context::new().with_remote_span_context(parent))
    {
        // A disabled span, or one that was entered before: the trace misses a link, the work goes on.
        tracing::debug!(%error, "span takes no parent");
    }
}

/// Links the span to the one that `traceparent` names: a batch has many parents.
pub fn add_link(span: &Span, traceparent: &str) {
    if !tracing_on() {
        return;
    }
    if let Some(context) = parse_traceparent(traceparent) {
        span.add_link(context);
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`; a later version may have more after that.
fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex =
        |part: &str, length| part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if !(lower_hex(version, 2) && lower_hex(trace, 32) && lower_hex(span, 16) && lower_hex(flags, 2))
        || version == "ff"
        || (version == "00" && parts.next().is_some())
    {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

/// What a log filter means, or why it means nothing.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    // A bare word that is no level would silently be a target that nobody logs under.
    for directive in text.split(',').map(str::trim) {
        if directive.is_empty() || !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err() {
            return Err(format!("`{directive}` is neither a level (error, warn, info, debug, trace, off) nor `target=level`"));
        }
    }
    // What it returns is told by whoever asked; its own words are an ERROR for each transaction marker and six lines a partition.
    EnvFilter::try_new(format!("rskafka=off,{text}")).map_err(|error| format!("`{text}` is not a log filter: {error}"))
}

/// Every line of the log is written within `around` from now on: whatever draws on the terminal can step aside for it.
pub fn write_log_within(around: fn(&mut dyn FnMut())) {
    // A second one would draw over the first.
    LOG_AROUND.set(around).ok();
}

/// Standard error, a line of the log at a time.
struct LogLines;

impl io::Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut written = Ok(0);
        let mut write = || written = io::stderr().write(line);
        match LOG_AROUND.get() {
            Some(around) => around(&mut write),
            None => write(),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct LogFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

/// What is logged now; `None` where the log is not this process's own.
pub fn log_filter() -> Option<String> {
    LOG_FILTER.get().map(|log| log.text.lock().clone())
}

/// Changes what is logged; gives the filter that was in force.
pub fn set_log_filter(text: &str) -> Result<String, String> {
    let filter = parse_filter(text)?;
    let log = LOG_FILTER.get().ok_or("the log is not this process's own")?;
    let mut current = log.text.lock();
    // Before the change: the new filter may not let it through.
    info!(from = *current, to = text, "log filter changes");
    log.handle.reload(filter).map_err(|error| error.to_string())?;
    Ok(std::mem::replace(&mut current, text.to_owned()))
}

/// Holds what must be flushed at the very end.
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Sets up the process's log and, inside a runtime, its traces. Where the process has a log already (a test), that one stays.
    pub(crate) fn start(service: &'static str, config: &TelemetryConfig) -> anyhow::Result<Self> {
        let provider = match &config.otlp_endpoint {
            Some(endpoint) if config.trace_sample > 0.0 => Some(provider(service, endpoint, config)?),
            _ => None,
        };
        let (filter, handle) = reload::Layer::new(parse_filter(&config.log).map_err(anyhow::Error::msg)?);
        let lines = fmt::layer().with_writer(|| LogLines).with_ansi(io::stderr().is_terminal());
        let log = match config.log_format {
            LogFormat::Text => lines.with_filter(filter).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
        };
        // Its own filter: what is traced does not depend on what is logged. The exporter's own HTTP/2 spans are below INFO.
        let traces = provider
            .as_ref()
            .map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("millrace")).with_filter(LevelFilter::INFO));
        if tracing_subscriber::registry().with(log).with(traces).try_init().is_ok()
            && LOG_FILTER.set(LogFilter { handle, text: Mutex::new(config.log.clone()) }).is_ok()
        {
            TRACING_ON.store(provider.is_some(), Ordering::Relaxed);
            panic::set_hook(Box::new(log_panic));
        }
        Ok(Self { provider })
    }

    /// Sends what is waiting; call it outside of async code, while the runtime still runs.
    pub(crate) fn flush(self, timeout: Duration) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(timeout)
        {
            warn!(%error, "the last spans may not have been exported");
        }
    }
}

fn provider(service: &'static str, endpoint: &str, config: &TelemetryConfig) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let waiting = Arc::new(AtomicU64::new(0));
    let exporter = Reporting { inner: exporter, endpoint: endpoint.to_owned(), waiting: waiting.clone(), failing: AtomicBool::new(false) };
    let spans_max = config.trace_queue_spans_max.get();
    let batches = BatchConfigBuilder::default().with_max_queue_size(spans_max as usize).with_scheduled_delay(EXPORT_INTERVAL).build();
    let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let instance = config.service_instance.clone().unwrap_or_else(|| format!("{}:{}", crate::admin::host(), std::process::id()));
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attributes([KeyValue::new("service.instance.id", instance), KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))])
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(Queue { batches, waiting, spans_max: spans_max.into() })
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_sample))))
        .with_resource(resource)
        .build())
}

/// Bounds and counts what waits for export; the library drops without a count.
#[derive(Debug)]
struct Queue {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicU64>,
    spans_max: u64,
}

impl SpanProcessor for Queue {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.spans_max {
            self.batches.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            metrics::counter!("millrace_trace_spans_total", "outcome" => "dropped").increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts spans, and says once when the receiver goes away and once when it is back.
#[derive(Debug)]
struct Reporting {
    inner: opentelemetry_otlp::SpanExporter,
    endpoint: String,
    waiting: Arc<AtomicU64>,
    failing: AtomicBool,
}

impl SpanExporter for Reporting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.inner.export(batch).await;
        let before = self.waiting.fetch_sub(spans, Ordering::Relaxed);
        metrics::gauge!("millrace_trace_queue_spans").set(before.saturating_sub(spans) as f64);
        let outcome = if result.is_ok() { "sent" } else { "lost" };
        metrics::counter!("millrace_trace_spans_total", "outcome" => outcome).increment(spans);
        match (&result, self.failing.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                warn!(%error, endpoint = self.endpoint, "traces cannot be delivered; they are dropped until the receiver is back")
            }
            (Ok(()), true) => info!(endpoint = self.endpoint, "traces are delivered again"),
            _ => {}
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }
}

/// A task that panics ends alone and silently; its log line must not be lost with it.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let message = panic.payload_as_str().unwrap_or("no message");
    metrics::counter!("millrace_process_panics_total").increment(1);
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => error!(location, thread, %backtrace, "panic: {message}"),
        _ => error!(location, thread, "panic: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::propagation::TextMapPropagator as _;
    use opentelemetry_sdk::propagation::TraceContextPropagator;

    use super::*;

    #[test]
    fn traceparent_is_read_as_the_w3c_propagator_reads_it() {
        let trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
        for text in [
            format!("00-{trace}-01"),
            format!("00-{trace}-00"),
            format!("01-{trace}-01-more"),
            format!("00-{trace}-01-more"),
            format!("ff-{trace}-01"),
            format!("00-{}-01", trace.to_uppercase()),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01".into(),
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01".into(),
            String::new(),
            "é".repeat(28),
        ] {
            let carrier = std::collections::HashMap::from([("traceparent".to_owned(), text.clone())]);
            let theirs = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
            let theirs = theirs.span().span_context().clone();
            let ours = parse_traceparent(&text);
            assert_eq!(
                ours.as_ref().map(|c| (c.trace_id(), c.span_id(), c.is_sampled())),
                theirs.is_valid().then(|| (theirs.trace_id(), theirs.span_id(), theirs.is_sampled())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_traceparent_of_the_wrong_length_is_none() {
        // The propagator pads it with zeros, which W3C does not allow.
        assert!(parse_traceparent("00-0af7-b7ad-01").is_none());
    }

    #[test]
    fn a_filter_that_would_log_nothing_by_mistake_is_refused() {
        for good in ["info", "off", "info,collector=debug", "warn,service_kit::kafka=trace", "INFO"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info,collecter", "collector=loud"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_panic_is_logged_and_counted() {
        const THREAD: &str = "panics-on-purpose";
        crate::metrics::prometheus();
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| if std::thread::current().name() == Some(THREAD) { log_panic(info) } else { others(info) }));
        let log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = fmt().with_ansi(false).with_writer(std::sync::Mutex::new(log.reopen().unwrap())).finish();
        let work = || tracing::subscriber::with_default(subscriber, || panic!("the belt has slipped"));
        let ended = std::thread::Builder::new().name(THREAD.into()).spawn(work).unwrap().join();
        assert!(ended.is_err());
        let log = std::fs::read_to_string(log.path()).unwrap();
        assert!(log.contains("ERROR") && log.contains("panic: the belt has slipped") && log.contains("telemetry.rs:"), "{log}");
        assert!(crate::metrics::render().contains("millrace_process_panics_total 1"));
    }
}
