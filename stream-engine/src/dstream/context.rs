//! `StreamingContext`: where a program is declared, started and waited for.

use std::{
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::conf::SparkConf;
use super::graph::Graph;
use super::program::DStreamProgram;
use crate::batch::runner::Mode;
use crate::job::{JobSettings, JobState, Monitor, SettingError};
use crate::service::{EngineService, Foreground};

/// A streaming program: declare streams and outputs, then [`start`](Self::start) and [`await_termination`](Self::await_termination).
pub struct StreamingContext {
    pub(super) graph: Arc<Mutex<Graph>>,
    name: String,
    settings: JobSettings,
    conf: SparkConf,
    checkpoint: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
    running: Mutex<Option<Running>>,
}

/// The process side of a started program.
struct Running {
    /// Gives whether the process part ended well.
    thread: JoinHandle<bool>,
    monitor: Arc<Monitor>,
    mode: watch::Sender<Mode>,
}

impl StreamingContext {
    /// Batches are cut at multiples of `batch_duration` (10 ms to 1 h). The error lists every wrong setting.
    pub fn new(conf: SparkConf, batch_duration: Duration) -> anyhow::Result<Self> {
        let mut settings = JobSettings::default();
        let mut notes = Vec::new();
        let mut errors = Vec::new();
        // Below what the program and its command line say.
        for (key, value) in conf.engine()?.jobs.settings {
            match settings.apply(&key, &value) {
                Ok(note) => notes.extend(note.map(|note| note.to_string())),
                // It was checked when it was loaded, so it is a setting of SQL jobs.
                Err(SettingError::Unknown { .. }) => {}
                Err(error) => errors.push(format!("jobs.settings: {error}")),
            }
        }
        let interval = humantime::format_duration(batch_duration).to_string();
        let mut name = "streaming".to_string();
        for (key, value) in std::iter::once(("batch.interval".to_string(), interval)).chain(conf.all()?) {
            match settings.apply(&key, &value) {
                Ok(None) => {}
                Ok(Some(_)) if key == "spark.app.name" => name = value,
                Ok(Some(note)) => notes.push(note.to_string()),
                Err(error) => errors.push(error.to_string()),
            }
        }
        if let Some(given) = &conf.flags.name {
            name.clone_from(given);
        }
        if let Err(error) = crate::job::check_name(&name) {
            errors.push(format!("spark.app.name: {error}"));
        }
        if !errors.is_empty() {
            anyhow::bail!("{}", errors.join("\n"));
        }
        Ok(Self {
            graph: Arc::default(),
            name,
            settings,
            checkpoint: Mutex::new(conf.flags.checkpoint.clone()),
            conf,
            notes: Mutex::new(notes),
            running: Mutex::new(None),
        })
    }

    /// A context whose checkpoint is `checkpoint`. The program is always declared anew (a checkpoint holds no code);
    /// offsets, batches in flight and windows come from the checkpoint when there is one.
    pub fn get_or_create(checkpoint: &str, create: impl FnOnce() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        let context = create()?;
        context.checkpoint(checkpoint);
        Ok(context)
    }

    /// Keep the job's progress here: a folder or file:// URL. `--checkpoint` wins.
    pub fn checkpoint(&self, location: &str) {
        if self.conf.flags.checkpoint.is_none() {
            *self.checkpoint.lock() = Some(location.into());
        }
    }

    pub fn batch_duration(&self) -> Duration {
        self.settings.batch_interval
    }

    pub(super) fn note(&self, note: String) {
        self.notes.lock().push(note);
    }

    /// Keep every stream's batches at least this long (Spark's `remember`).
    pub fn remember(&self, duration: Duration) {
        let ms = crate::batch::clock::interval_ms(duration);
        self.graph.lock().nodes.iter().for_each(|node| node.remember(ms));
    }

    /// Checks the program and starts it, with its control port and page. Returns when both listen.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut running = self.running.lock();
        if running.is_some() {
            anyhow::bail!("this context was started already");
        }
        let program = self.program()?;
        let config = self.conf.engine()?;
        let (started, wait) = mpsc::sync_channel(1);
        let (mode, mode_receiver) = watch::channel(Mode::Run);
        let foreground = Foreground {
            name: self.name.clone(),
            kind: crate::job::JobKind::Program,
            settings: self.settings.clone(),
            program: Box::new(program),
            checkpoint: self.checkpoint.lock().clone(),
            definition: String::new(),
            notes: self.notes.lock().clone(),
            mode: (mode.clone(), mode_receiver),
            started,
        };
        let kit = config.kit();
        let service = EngineService::foreground(config, foreground);
        let thread = std::thread::Builder::new()
            .name("streaming-context".into())
            .spawn(move || service_kit::run(service, kit) == ExitCode::SUCCESS)?;
        match wait.recv() {
            Ok(monitor) => {
                *running = Some(Running { thread, monitor, mode });
                Ok(())
            }
            // The service logged why.
            Err(_) => anyhow::bail!("the engine did not start"),
        }
    }

    /// The declared program, when there is nothing wrong with it.
    pub(super) fn program(&self) -> anyhow::Result<DStreamProgram> {
        {
            let graph = self.graph.lock();
            if !graph.errors.is_empty() {
                anyhow::bail!("{}", graph.errors.join("\n"));
            }
            if graph.inputs.is_empty() {
                anyhow::bail!("no streams were created, so there is nothing to read");
            }
            if graph.outputs.is_empty() {
                anyhow::bail!("no output operations registered, so nothing to execute");
            }
        }
        Ok(DStreamProgram::new(self.graph.clone(), self.settings.batch_interval))
    }

    /// Waits for the end: a signal, [`stop`](Self::stop), or the failure of the job, which is the error.
    pub fn await_termination(&self) -> anyhow::Result<()> {
        let Some(Running { thread, monitor, .. }) = self.running.lock().take() else {
            anyhow::bail!("the context is not running; call start first");
        };
        let Ok(ended_well) = thread.join() else {
            anyhow::bail!("the engine's thread ended by a panic");
        };
        let view = monitor.view();
        match (view.state, view.error) {
            (JobState::Failed, error) => Err(anyhow::anyhow!(error.unwrap_or_else(|| "the job failed".into()))),
            _ if ended_well => Ok(()),
            // For example a port in use: the job itself was stopped as it should be.
            _ => Err(anyhow::anyhow!("the engine failed; its log says why")),
        }
    }

    /// Ends the job after its running batch; `gracefully` also reads to the end of the topics first. Does not wait:
    /// [`await_termination`](Self::await_termination) does.
    pub fn stop(&self, gracefully: bool) {
        if let Some(running) = self.running.lock().as_ref() {
            running.mode.send_replace(if gracefully { Mode::Drain } else { Mode::Stop });
        }
    }
}
