//! The process: `serve` keeps jobs, `run` and DStream programs run one in the foreground.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use service_kit::{Context, HttpEndpoint, Running, Service, config::TlsConfig};
use tokio::sync::watch;

use crate::batch::{Program, clock::SystemClock, runner::Mode};
use crate::checkpoint::{Checkpoint, CheckpointError, Holder};
use crate::config::EngineConfig;
use crate::control;
use crate::fault;
use crate::job::{JobKind, JobSettings, JobState, Monitor, NewJob, Registry};
use crate::source::KafkaCluster;
use crate::ui;

/// Between two requests to a place of the jobs that does not answer: at first, and at most.
const PLACE_WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// One job that the process lives for.
pub struct Foreground {
    pub name: String,
    pub kind: JobKind,
    pub settings: JobSettings,
    pub program: Box<dyn Program>,
    /// `None`: kept in memory, forgotten at the end.
    pub checkpoint: Option<String>,
    pub definition: String,
    pub notes: Vec<String>,
    pub mode: (watch::Sender<Mode>, watch::Receiver<Mode>),
    /// Told when the job has started.
    pub started: mpsc::SyncSender<Arc<Monitor>>,
}

/// `millrace-engine`, and every DStream program.
pub struct EngineService {
    config: EngineConfig,
    foreground: Option<Foreground>,
}

impl EngineService {
    /// Takes jobs over the control port, and resumes those it had.
    pub fn serve(config: EngineConfig) -> Self {
        Self { config, foreground: None }
    }

    /// Runs one job and ends with it.
    pub fn foreground(config: EngineConfig, job: Foreground) -> Self {
        Self { config, foreground: Some(job) }
    }
}

#[async_trait]
impl Service for EngineService {
    const NAME: &'static str = "millrace-engine";

    async fn start(self, ctx: Context) -> anyhow::Result<Running> {
        service_kit::fault::check(fault::POINTS).map_err(anyhow::Error::msg)?;
        let Self { mut config, foreground } = self;
        let store = match &foreground {
            None => {
                let place = config.jobs.checkpoint();
                let store = Checkpoint::open(&place, &config.checkpoint)?;
                let store = answered(|| store.own(Holder::Engine)).await?;
                tracing::info!(place, "jobs are kept here (jobs.checkpoint)");
                config.jobs.checkpoint = Some(place);
                Some(store)
            }
            Some(_) => None,
        };
        let registry = Registry::new(
            store.clone(),
            config.jobs.max,
            config.jobs.settings.clone(),
            Arc::new(KafkaCluster::default()),
            Arc::new(SystemClock),
            ctx.tasks.clone(),
            config.jobs.worker_id.clone(),
        );
        let job = match foreground {
            None => {
                answered(|| registry.resume()).await?;
                None
            }
            Some(Foreground { name, kind, settings, program, checkpoint, definition, notes, mode, started }) => {
                for note in &notes {
                    tracing::info!("{note}");
                }
                let checkpoint = match checkpoint {
                    Some(location) => Checkpoint::open(&location, &config.checkpoint)?,
                    None => Checkpoint::in_memory(),
                };
                let job = registry.start(NewJob { name, kind, settings, program, checkpoint, definition, notes, mode })?;
                // Nobody waits in `run`.
                started.send(job.monitor.clone()).ok();
                Some(job)
            }
        };
        let shutdown = ctx.shutdown.clone();
        let jobs = registry.clone();
        Ok(Running {
            control: Arc::new(control::EngineControl::new(registry.clone(), config.clone())),
            grpc: control::routes(registry.clone()),
            http: vec![HttpEndpoint { name: "page", listen: config.page.listen, tls: TlsConfig::default(), router: ui::router(registry) }],
            done: Box::pin(async move {
                let over = async {
                    match (&job, &store) {
                        (Some(job), _) => {
                            job.monitor.wait_for(|view| view.state.is_over()).await;
                            None
                        }
                        (None, Some(store)) => Some(store.lost().await),
                        (None, None) => std::future::pending().await,
                    }
                };
                let lost = tokio::select! {
                    () = shutdown.cancelled() => None,
                    lost = over => lost,
                };
                jobs.close().await;
                // One job in the foreground: its failure is the process's.
                let failed = lost.map(|lost| lost.to_string()).or_else(|| job_failure(&jobs, shutdown.is_cancelled()));
                failed.map_or(Ok(()), |error| Err(anyhow::anyhow!(error)))
            }),
        })
    }
}

/// What the place of the jobs answers; while it does not, the engine waits, and says so once.
async fn answered<T, A: Future<Output = Result<T, CheckpointError>>>(ask: impl Fn() -> A) -> Result<T, CheckpointError> {
    let (mut wait, mut told) = (PLACE_WAIT.0, false);
    loop {
        match ask().await {
            Err(error) if error.retryable() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "waiting for the place of the jobs");
                }
            }
            answer => return answer,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(PLACE_WAIT.1);
    }
}

fn job_failure(jobs: &Registry, asked_to_stop: bool) -> Option<String> {
    if asked_to_stop {
        return None;
    }
    jobs.jobs().into_iter().find_map(|job| {
        let view = job.monitor.view();
        (view.state == JobState::Failed).then(|| format!("job `{}` failed: {}", view.name, view.error.unwrap_or_default()))
    })
}
