//! The process: `serve` keeps jobs, `run` and DStream programs run one in the foreground.

use std::sync::{Arc, mpsc};

use async_trait::async_trait;
use service_kit::{Context, HttpEndpoint, Running, Service, config::TlsConfig};
use tokio::sync::watch;

use crate::batch::{Program, clock::SystemClock, runner::Mode};
use crate::checkpoint::Checkpoint;
use crate::config::EngineConfig;
use crate::control;
use crate::job::{JobKind, JobSettings, JobState, Monitor, NewJob, Registry};
use crate::source::KafkaCluster;
use crate::ui;

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
        let Self { mut config, foreground } = self;
        let mut lock = None;
        let store = match &foreground {
            None => {
                let place = config.jobs.checkpoint();
                let store = Checkpoint::open(&place)?;
                lock = store.lock()?;
                tracing::info!(place, "jobs are kept here (jobs.checkpoint)");
                config.jobs.checkpoint = Some(place);
                Some(store)
            }
            Some(_) => None,
        };
        let registry = Registry::new(
            store,
            config.jobs.max,
            config.jobs.settings.clone(),
            Arc::new(KafkaCluster::default()),
            Arc::new(SystemClock),
            ctx.tasks.clone(),
        );
        let job = match foreground {
            None => {
                registry.resume().await?;
                None
            }
            Some(Foreground { name, kind, settings, program, checkpoint, definition, notes, mode, started }) => {
                for note in &notes {
                    tracing::info!("{note}");
                }
                let checkpoint = match checkpoint {
                    Some(location) => Checkpoint::open(&location)?,
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
                match job {
                    Some(job) => {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = job.monitor.wait_for(|view| view.state.is_over()) => {}
                        }
                    }
                    None => shutdown.cancelled().await,
                }
                jobs.close().await;
                drop(lock);
                // One job in the foreground: its failure is the process's.
                let failed = job_failure(&jobs, shutdown.is_cancelled());
                failed.map_or(Ok(()), |error| Err(anyhow::anyhow!(error)))
            }),
        })
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
