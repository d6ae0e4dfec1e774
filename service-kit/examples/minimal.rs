//! A whole service: it accepts jobs over HTTP and delivers each after `job_time`.
//!
//! `cargo run -p service-kit --example minimal [FILE.toml]`, then `curl -d hello localhost:8080/jobs`, and Ctrl-C: what was accepted is still delivered.

use std::{
    env,
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use service_kit::{
    Context, Control, HttpEndpoint, KitConfig, ListenAddr, Running, Service,
    config::{ControlConfig, LimitsConfig, ShutdownConfig, TelemetryConfig, TlsConfig, duration, load, render},
};
use tracing::info;

fn main() -> ExitCode {
    let file = env::args_os().nth(1).map(PathBuf::from);
    match load::<Config>(file.as_deref(), serde_json::Value::Null) {
        Ok(config) => service_kit::run(Jobs(config.clone()), config.kit()),
        Err(errors) => errors.report(),
    }
}

/// The service's own keys beside the kit's four sections.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// How long a job takes.
    #[serde(with = "duration")]
    job_time: Duration,
    /// How long the service takes to become ready.
    #[serde(with = "duration")]
    warm_up: Duration,
    http: Http,
    control: ControlConfig,
    telemetry: TelemetryConfig,
    shutdown: ShutdownConfig,
    limits: LimitsConfig,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    listen: ListenAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            job_time: Duration::from_millis(100),
            warm_up: Duration::ZERO,
            http: Http { listen: ListenAddr::new((Ipv4Addr::LOCALHOST, 8080)) },
            control: ControlConfig::on_port(7100),
            telemetry: TelemetryConfig::default(),
            shutdown: ShutdownConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

impl Config {
    fn kit(&self) -> KitConfig {
        KitConfig {
            control: self.control.clone(),
            telemetry: self.telemetry.clone(),
            shutdown: self.shutdown.clone(),
            limits: self.limits.clone(),
        }
    }
}

struct Jobs(Config);

#[async_trait]
impl Service for Jobs {
    const NAME: &'static str = "minimal";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        let Jobs(config) = self;
        let open = Arc::new(AtomicU64::new(0));
        let latch = ctx.readiness.latch("warm-up");
        let warm_up = config.warm_up;
        let shutdown = ctx.shutdown.clone();
        ctx.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(warm_up) => latch.release(),
                () = shutdown.cancelled() => {}
            }
        });

        let (tasks, jobs, job_time) = (ctx.tasks.clone(), open.clone(), config.job_time);
        let accept = async move |job: String| {
            jobs.fetch_add(1, Ordering::Relaxed);
            let jobs = jobs.clone();
            // A tracked task: the drain waits for it.
            tasks.spawn(async move {
                tokio::time::sleep(job_time).await;
                info!(job, "delivered");
                jobs.fetch_sub(1, Ordering::Relaxed);
            });
            StatusCode::ACCEPTED
        };
        let router = Router::new().route("/jobs", post(accept)).merge(service_kit::metrics::router());
        let shutdown = ctx.shutdown;
        Ok(Running {
            control: Arc::new(Operator { open, config: config.clone() }),
            grpc: tonic::service::Routes::default(),
            http: vec![HttpEndpoint { name: "http", listen: config.http.listen, tls: TlsConfig::default(), router }],
            done: Box::pin(async move {
                shutdown.cancelled().await;
                Ok(())
            }),
        })
    }
}

struct Operator {
    open: Arc<AtomicU64>,
    config: Config,
}

#[async_trait]
impl Control for Operator {
    async fn facts(&self) -> Vec<(String, String)> {
        vec![("open jobs".into(), self.remaining().await.to_string())]
    }

    async fn remaining(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    fn effective_config(&self) -> (String, String) {
        ("toml".into(), render(&self.config))
    }
}
