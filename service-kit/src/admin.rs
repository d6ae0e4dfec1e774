//! The control port: who this is and how it is, drain, log level, health, reflection, `/metrics`.
//!
//! Health of "" and of the service's own name follows readiness; `liveness` is SERVING as long as the process answers.
//! Reflection is offered on a loopback address only, and lists what this service really serves.

use std::{
    fs,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{Router, body::Body};
use http::Request;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use proto::{
    ServiceError,
    control::v1::{
        DrainRequest, DrainResponse, EffectiveConfigRequest, EffectiveConfigResponse, Fact, Health, PauseRequest, PauseResponse,
        ReloadRequest, ReloadResponse, ResumeRequest, ResumeResponse, SetLogLevelRequest, SetLogLevelResponse, StatusRequest,
        StatusResponse,
        control_server::{Control as ControlService, ControlServer},
    },
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};
use tower::ServiceExt as _;
use tracing::info;

use crate::{Control, Readiness, metrics, telemetry};

/// How often a drain asks what is left.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Answers operators, before, while and after the service itself can.
pub(crate) struct Operator {
    pub(crate) name: &'static str,
    pub(crate) started: SystemTime,
    pub(crate) readiness: Readiness,
    /// Cancelled when the process begins to stop.
    pub(crate) draining: CancellationToken,
    pub(crate) drain_deadline: Duration,
    /// Set when the service has started.
    pub(crate) service: OnceLock<Arc<dyn Control>>,
}

impl Operator {
    fn service(&self) -> Result<&dyn Control, ServiceError> {
        self.service.get().map(AsRef::as_ref).ok_or_else(|| ServiceError::unavailable("the service is starting; try again"))
    }

    async fn health(&self) -> (Health, String) {
        if self.draining.is_cancelled() {
            return (Health::Draining, "finishing what was accepted".into());
        }
        let pending = self.readiness.pending();
        if !pending.is_empty() {
            return (Health::Starting, format!("waiting for {}", pending.join(", ")));
        }
        let (degraded, paused) = match self.service.get() {
            Some(service) => (service.degraded().await, service.paused().await),
            None => (None, Vec::new()),
        };
        let paused = (!paused.is_empty()).then(|| format!("paused: {}", paused.join(", ")));
        match (degraded, paused) {
            (None, None) => (Health::Ready, String::new()),
            (None, Some(paused)) => (Health::Paused, paused),
            (Some(reason), None) => (Health::Degraded, reason),
            (Some(reason), Some(paused)) => (Health::Degraded, format!("{reason}; {paused}")),
        }
    }
}

/// The adapter; one for all services, behind `Arc` because tonic's services are cloned.
struct Adapter(Arc<Operator>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ControlService for Adapter {
    async fn status(&self, _: tonic::Request<StatusRequest>) -> Answer<StatusResponse> {
        let (health, reason) = self.0.health().await;
        let facts = match self.0.service.get() {
            Some(service) => service.facts().await,
            None => Vec::new(),
        };
        Ok(Response::new(StatusResponse {
            service: self.0.name.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            health: health.into(),
            reason,
            uptime_ms: metrics::uptime().as_millis() as u64,
            started_at_ms: self.0.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64,
            host: host(),
            pid: std::process::id(),
            memory_bytes: metrics::resident_bytes(),
            facts: facts.into_iter().map(|(name, value)| Fact { name, value }).collect(),
        }))
    }

    async fn reload(&self, _: tonic::Request<ReloadRequest>) -> Answer<ReloadResponse> {
        let response = self.0.service()?.reload().await?;
        info!(changed = ?response.changed, "reloaded by an operator");
        Ok(Response::new(response))
    }

    async fn pause(&self, request: tonic::Request<PauseRequest>) -> Answer<PauseResponse> {
        let paused = self.0.service()?.pause(&request.get_ref().component).await?;
        info!(?paused, "paused by an operator");
        Ok(Response::new(PauseResponse { paused }))
    }

    async fn resume(&self, request: tonic::Request<ResumeRequest>) -> Answer<ResumeResponse> {
        let resumed = self.0.service()?.resume(&request.get_ref().component).await?;
        info!(?resumed, "resumed by an operator");
        Ok(Response::new(ResumeResponse { resumed }))
    }

    async fn drain(&self, request: tonic::Request<DrainRequest>) -> Answer<DrainResponse> {
        let service = self.0.service()?;
        let allowed = match request.get_ref().timeout_ms {
            0 => self.0.drain_deadline,
            given => Duration::from_millis(given),
        };
        let deadline = Instant::now() + allowed;
        let paused = service.pause("").await?;
        info!(?paused, "drained by an operator");
        loop {
            let remaining = service.remaining().await;
            if remaining == 0 || Instant::now() >= deadline {
                return Ok(Response::new(DrainResponse { drained: remaining == 0, remaining }));
            }
            sleep(DRAIN_POLL).await;
        }
    }

    async fn set_log_level(&self, request: tonic::Request<SetLogLevelRequest>) -> Answer<SetLogLevelResponse> {
        let current = request.into_inner().filter;
        let previous = telemetry::set_log_filter(&current).map_err(ServiceError::invalid)?;
        Ok(Response::new(SetLogLevelResponse { previous, current }))
    }

    async fn effective_config(&self, _: tonic::Request<EffectiveConfigRequest>) -> Answer<EffectiveConfigResponse> {
        let (format, text) = self.0.service()?.effective_config();
        Ok(Response::new(EffectiveConfigResponse { format, text }))
    }
}

/// What the control port serves. `later` is the service's own part, which does not exist before it has started.
pub(crate) async fn router(operator: Arc<Operator>, later: Arc<OnceLock<Router>>) -> (Router, HealthReporter) {
    let name = operator.name;
    let (reporter, health) = tonic_health::server::health_reporter();
    // The reporter begins with SERVING.
    report(&reporter, operator.name, false).await;
    reporter.set_service_status("liveness", ServingStatus::Serving).await;
    let own = Routes::new(ControlServer::new(Adapter(operator))).add_service(health).into_axum_router().merge(metrics::router());
    let own = own
        .route("/", axum::routing::get(async move || format!("{name}: gRPC by reflection and health checks, and over HTTP\n/metrics\n")));
    let router = own.fallback(move |request: Request<Body>| async move {
        match later.get() {
            Some(router) => router.clone().oneshot(request).await.unwrap_or_else(|never| match never {}),
            None => Status::unavailable("the service is starting; try again").into_http(),
        }
    });
    (router, reporter)
}

pub(crate) async fn report(reporter: &HealthReporter, name: &str, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    reporter.set_service_status("", status).await;
    reporter.set_service_status(name, status).await;
    ::metrics::gauge!("millrace_process_ready").set(f64::from(ready));
}

/// Marks the answer to a path that no service has.
#[derive(Clone)]
struct NotServed;

/// The service's own gRPC services, with reflection where only this machine can ask.
pub(crate) async fn service_routes(routes: Routes, reflection: bool) -> anyhow::Result<Router> {
    let own = routes.into_axum_router().fallback(async |request: Request<Body>| {
        let mut response = Status::unimplemented(format!("this service does not offer {}", request.uri().path())).into_http::<Body>();
        response.extensions_mut().insert(NotServed);
        response
    });
    if !reflection {
        return Ok(own);
    }
    let mut names =
        vec!["millrace.control.v1.Control".to_owned(), "grpc.health.v1.Health".into(), "grpc.reflection.v1.ServerReflection".into()];
    for file in FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET)?.file {
        for service in &file.service {
            let name = format!("{}.{}", file.package(), service.name());
            // tonic's routes do not tell which services they hold, but they answer.
            let probe = Request::post(format!("/{name}/-")).header("content-type", "application/grpc").body(Body::empty())?;
            let answer = own.clone().oneshot(probe).await.unwrap_or_else(|never| match never {});
            if answer.extensions().get::<NotServed>().is_none() {
                names.push(name);
            }
        }
    }
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        names.iter().fold(builder, |builder, name| builder.with_service_name(name))
    };
    // v1alpha is what older clients ask.
    let reflection = Routes::new(builder().build_v1()?).add_service(builder().build_v1alpha()?);
    Ok(reflection.into_axum_router().fallback_service(own))
}

/// This machine's name.
pub(crate) fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into())
}
