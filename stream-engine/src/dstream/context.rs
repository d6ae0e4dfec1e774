//! `StreamingContext`: where a program is declared, started and waited for.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use service_kit::config::LimitsConfig;
use tokio::sync::watch;

use super::conf::SparkConf;
use super::graph::Graph;
use super::program::DStreamProgram;
use crate::batch::{
    Program,
    clock::{Clock as _, SystemClock},
    runner::Mode,
};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::commit::{Decision, Identity, decide};
use crate::job::{JobSettings, JobState, Monitor, SettingError};
use crate::service::{EngineService, Foreground};

/// The context that runs in this process.
static ACTIVE: Mutex<Option<StreamingContext>> = Mutex::new(None);

/// A streaming program: declare streams and outputs, then [`start`](Self::start) and [`await_termination`](Self::await_termination).
/// Cheap to clone; all clones are the same program.
#[derive(Clone)]
pub struct StreamingContext {
    pub(super) graph: Arc<Mutex<Graph>>,
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    settings: JobSettings,
    conf: SparkConf,
    checkpoint: Mutex<Option<String>>,
    /// A checkpoint that cannot be used is emptied instead of refused.
    create_on_error: AtomicBool,
    notes: Mutex<Vec<String>>,
    running: Mutex<Option<Arc<Running>>>,
}

/// The process side of a started program.
struct Running {
    monitor: Arc<Monitor>,
    mode: watch::Sender<Mode>,
    /// Set at the end: whether the process part ended well; `None` when its thread panicked.
    ended: Mutex<Option<Option<bool>>>,
    end: Condvar,
}

/// Where a context is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamingContextState {
    /// Streams and outputs can be declared.
    #[default]
    Initialized,
    Active,
    /// Cannot be started again.
    Stopped,
}

impl StreamingContext {
    /// Batches are cut at multiples of `batch_duration` (10 ms to 1 h). The error lists every wrong setting.
    pub fn new(conf: SparkConf, batch_duration: Duration) -> anyhow::Result<Self> {
        let mut settings = JobSettings::default();
        let mut notes = Vec::new();
        let mut errors = Vec::new();
        // Below what the program and its command line say.
        let engine = conf.engine()?;
        for (key, value) in engine.jobs.settings {
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
        let inner = Inner {
            name,
            settings,
            checkpoint: Mutex::new(conf.flags.checkpoint.clone()),
            conf,
            create_on_error: AtomicBool::new(false),
            notes: Mutex::new(notes),
            running: Mutex::new(None),
        };
        let context = Self { graph: Arc::default(), inner: Arc::new(inner) };
        context.graph.lock().stores = Arc::new(engine.checkpoint);
        Ok(context)
    }

    /// A context whose checkpoint is `checkpoint`. The program is always declared anew (a checkpoint holds no code);
    /// offsets, batches in flight, windows and state come from the checkpoint when there is one. One that cannot be used
    /// fails the start.
    pub fn get_or_create(checkpoint: &str, create: impl FnOnce() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        let context = create()?;
        context.checkpoint(checkpoint);
        Ok(context)
    }

    /// As [`Self::get_or_create`] with Spark's `createOnError`: a checkpoint that is damaged, or of another program, is
    /// emptied at the start, and the job begins afresh. Savepoints in it stay.
    pub fn get_or_create_on_error(checkpoint: &str, create: impl FnOnce() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        let context = Self::get_or_create(checkpoint, create)?;
        context.inner.create_on_error.store(true, Relaxed);
        Ok(context)
    }

    /// The context that was started in this process and has not ended.
    pub fn get_active() -> Option<Self> {
        ACTIVE.lock().clone()
    }

    /// The context that runs in this process, else a new one.
    pub fn get_active_or_create(create: impl FnOnce() -> anyhow::Result<Self>) -> anyhow::Result<Self> {
        match Self::get_active() {
            Some(active) => Ok(active),
            None => create(),
        }
    }

    /// Keep the job's progress and state here: a folder, or a `file://`, `hdfs://` or `s3://` URL. `--checkpoint` wins.
    pub fn checkpoint(&self, location: &str) {
        if self.inner.conf.flags.checkpoint.is_none() {
            *self.inner.checkpoint.lock() = Some(location.into());
        }
    }

    pub fn batch_duration(&self) -> Duration {
        self.inner.settings.batch_interval
    }

    pub fn get_state(&self) -> StreamingContextState {
        self.graph.lock().state
    }

    pub(super) fn note(&self, note: String) {
        self.inner.notes.lock().push(note);
    }

    pub(super) fn limits(&self) -> anyhow::Result<LimitsConfig> {
        Ok(self.inner.conf.engine()?.limits)
    }

    /// Keep every stream's batches at least this long, also of streams that are declared later (Spark's `remember`).
    pub fn remember(&self, duration: Duration) {
        let mut graph = self.graph.lock();
        graph.expect_open("remember");
        graph.remember_ms = graph.remember_ms.max(crate::batch::clock::interval_ms(duration));
    }

    /// The start refuses outputs that are not exactly-once, and sources that cannot be read again after a crash.
    pub fn require_exactly_once(&self) {
        let mut graph = self.graph.lock();
        graph.expect_open("require_exactly_once");
        graph.exactly_once = true;
    }

    /// Checks the program and starts it, with its control port and page. Returns when both listen. One context at a time
    /// runs in a process.
    pub fn start(&self) -> anyhow::Result<()> {
        let mut active = ACTIVE.lock();
        match self.get_state() {
            StreamingContextState::Initialized => {}
            StreamingContextState::Active => anyhow::bail!("this context was started already"),
            StreamingContextState::Stopped => anyhow::bail!("StreamingContext has already been stopped"),
        }
        if let Some(other) = active.as_ref() {
            anyhow::bail!("Only one StreamingContext may be started in a process; `{}` is running", other.inner.name);
        }
        let mut program = self.program()?;
        let running = self.check_checkpoint(&mut program).and_then(|()| self.launch(program));
        match running {
            Ok(running) => {
                *self.inner.running.lock() = Some(running);
                *active = Some(self.clone());
                Ok(())
            }
            Err(error) => {
                self.graph.lock().state = StreamingContextState::Stopped;
                Err(error)
            }
        }
    }

    /// Streams with state need a place for it, as in Spark.
    pub(super) fn check_checkpoint(&self, program: &mut DStreamProgram) -> anyhow::Result<()> {
        let location = self.inner.checkpoint.lock().clone();
        let Some(location) = location else {
            anyhow::ensure!(
                !program.has_state(),
                "The checkpoint directory has not been set. Please set it by StreamingContext.checkpoint(), or give --checkpoint: the program has streams with state"
            );
            if let Some(output) = program.exactly_once() {
                anyhow::bail!(
                    "output {} cannot be exactly-once without a checkpoint: a program that is started again reads and writes everything again. Please set one by \
                     StreamingContext.checkpoint(), or give --checkpoint, or say at_least_once() of its table",
                    output.description
                );
            }
            return Ok(());
        };
        if !self.inner.create_on_error.load(Relaxed) {
            return Ok(());
        }
        let checkpoint = Checkpoint::open(&location, &self.inner.conf.engine()?.checkpoint)?;
        // The caller may be within a runtime, where nothing can be waited for.
        std::thread::scope(|scope| {
            let create = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(self.empty_unusable(&checkpoint, program))
            };
            scope.spawn(create).join().unwrap_or_else(|_| Err(anyhow::anyhow!("checkpoint `{location}`: looking at it ended by a panic")))
        })
    }

    /// Empties a checkpoint that this program cannot go on from; a store that does not answer is no reason.
    async fn empty_unusable(&self, checkpoint: &Checkpoint, program: &mut DStreamProgram) -> anyhow::Result<()> {
        let Err(error) = self.try_out(checkpoint, program).await else { return Ok(()) };
        if error.downcast_ref().is_some_and(CheckpointError::retryable) {
            return Err(error);
        }
        self.note(format!("the checkpoint could not be used and is emptied, as the program asks for (create on error): {error:#}"));
        Ok(checkpoint.clear().await?)
    }

    /// Everything that the start will do with the checkpoint, short of running a batch.
    async fn try_out(&self, checkpoint: &Checkpoint, program: &mut DStreamProgram) -> anyhow::Result<()> {
        let loaded = checkpoint.load().await?;
        if let Decision::Refuse(reason) = decide(&loaded.facts) {
            anyhow::bail!("{reason}");
        }
        let Some(metadata) = loaded.metadata else { return Ok(()) };
        let may_drop = self.inner.settings.ignore_unclaimed_state;
        let checked = metadata.check(checkpoint.location(), &self.inner.name, &Identity::of(program), may_drop);
        checked.map_err(anyhow::Error::msg)?;
        let Some((_, state)) = loaded.commit else { return Ok(()) };
        program.restore(state)
    }

    fn launch(&self, program: DStreamProgram) -> anyhow::Result<Arc<Running>> {
        let config = self.inner.conf.engine()?;
        let (started, wait) = mpsc::sync_channel(1);
        let (mode, mode_receiver) = watch::channel(Mode::Run);
        let foreground = Foreground {
            name: self.inner.name.clone(),
            kind: crate::job::JobKind::Program,
            settings: self.inner.settings.clone(),
            program: Box::new(program),
            checkpoint: self.inner.checkpoint.lock().clone(),
            definition: String::new(),
            notes: self.inner.notes.lock().clone(),
            mode: (mode.clone(), mode_receiver),
            started,
        };
        let kit = config.kit();
        let service = EngineService::foreground(config, foreground);
        // Given to the thread when it has a monitor, which the service makes.
        let (give, take) = mpsc::sync_channel::<Arc<Running>>(1);
        let context = self.clone();
        std::thread::Builder::new().name("streaming-context".into()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| service_kit::run(service, kit) == ExitCode::SUCCESS));
            // None: the service did not start.
            let Ok(running) = take.recv() else { return };
            context.graph.lock().state = StreamingContextState::Stopped;
            ACTIVE.lock().take_if(|active| Arc::ptr_eq(&active.inner, &context.inner));
            *running.ended.lock() = Some(result.ok());
            running.end.notify_all();
        })?;
        // The service logged why it did not start.
        let monitor = wait.recv().map_err(|_| anyhow::anyhow!("the engine did not start"))?;
        let running = Arc::new(Running { monitor, mode, ended: Mutex::new(None), end: Condvar::new() });
        // The thread waits for it.
        give.send(running.clone()).ok();
        Ok(running)
    }

    /// The declared program, when there is nothing wrong with it.
    pub(super) fn program(&self) -> anyhow::Result<DStreamProgram> {
        {
            let mut graph = self.graph.lock();
            graph.check_names();
            graph.check_guarantees(&self.inner.settings);
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
        Ok(DStreamProgram::new(&self.graph, self.inner.settings.batch_interval))
    }

    /// Waits for the end: a signal, [`stop`](Self::stop), or the failure of the job, which is the error. Any number of
    /// threads may wait.
    pub fn await_termination(&self) -> anyhow::Result<()> {
        self.await_end(None).map(drop)
    }

    /// As [`Self::await_termination`], no longer than `timeout`. False: it still runs.
    pub fn await_termination_or_timeout(&self, timeout: Duration) -> anyhow::Result<bool> {
        // The caller's own patience, whatever clock the batches have.
        self.await_end(SystemClock.monotonic().checked_add(timeout))
    }

    /// `until`: on the machine's monotonic clock.
    fn await_end(&self, until: Option<Duration>) -> anyhow::Result<bool> {
        let Some(running) = self.inner.running.lock().clone() else {
            anyhow::bail!("the context is not running; call start first");
        };
        let mut ended = running.ended.lock();
        while ended.is_none() {
            match until {
                None => running.end.wait(&mut ended),
                Some(until) => match until.checked_sub(SystemClock.monotonic()).filter(|left| !left.is_zero()) {
                    Some(left) => drop(running.end.wait_for(&mut ended, left)),
                    None => break,
                },
            }
        }
        let Some(ended) = *ended else { return Ok(false) };
        let Some(ended_well) = ended else {
            anyhow::bail!("the engine's thread ended by a panic");
        };
        let view = running.monitor.view();
        match (view.state, view.error) {
            (JobState::Failed, error) => Err(anyhow::anyhow!(error.unwrap_or_else(|| "the job failed".into()))),
            _ if ended_well => Ok(true),
            // For example a port in use: the job itself was stopped as it should be.
            _ => Err(anyhow::anyhow!("the engine failed; its log says why")),
        }
    }

    /// Ends the job after its running batch; `gracefully` also reads to the end of the topics first. Does not wait:
    /// [`await_termination`](Self::await_termination) does. A context that was not started cannot be any more.
    pub fn stop(&self, gracefully: bool) {
        match self.inner.running.lock().as_ref() {
            Some(running) => {
                running.mode.send_replace(if gracefully { Mode::Drain } else { Mode::Stop });
            }
            None => self.graph.lock().state = StreamingContextState::Stopped,
        }
    }
}
