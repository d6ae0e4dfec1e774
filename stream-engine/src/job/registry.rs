//! The jobs of this engine: submitted, listed, stopped, and found again after a restart.
//!
//! A SQL job's definition is stored as `<engine checkpoint>/<name>/definition` before it starts, so a restarted engine
//! resumes every job that was not stopped, also after a crash. Where a job stands is in its own checkpoint.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use proto::{ErrorKind, ServiceError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::share::{WINDOWS, Worker, forget};
use super::{BatchState, JobSettings, JobState, JobView, Monitor};
use crate::batch::{
    Program, Sharing,
    clock::{Clock, interval_ms},
    runner::{Mode, Runner},
};
use crate::checkpoint::{Checkpoint, CheckpointError, Savepoint};
use crate::commit::slots::{Shape, Slot};
use crate::commit::{Difference, End, Identity, Metadata};
use crate::source::{Cluster, OffsetPlace, Share, StoreAddress};
use crate::sql::{self, exchange::Part};

const NAME_BYTES_MAX: usize = 128;
/// A submission is answered when the job has begun or failed, at the latest after this.
const START_WAIT: Duration = Duration::from_secs(5);
const DEFINITION: &str = "definition";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Sql,
    /// A DStream program.
    Program,
    /// One slot of a shared job, as it runs here.
    Slot,
}

impl JobKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sql => "sql",
            Self::Program => "program",
            Self::Slot => "slot",
        }
    }
}

/// `[a-zA-Z0-9._-]{1,128}`, and neither `.` nor `..`: a name is a folder and a metric's label.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(allowed) || matches!(name, "." | "..") {
        return Err(format!("`{name}` is no job name; use 1 to {NAME_BYTES_MAX} of the characters a-z A-Z 0-9 . _ -"));
    }
    Ok(())
}

/// A job, running or over.
pub struct Job {
    pub name: String,
    pub kind: JobKind,
    pub settings: JobSettings,
    pub plan: String,
    /// What was accepted without effect.
    pub notes: Vec<String>,
    /// The SQL text; empty for programs.
    pub definition: String,
    pub monitor: Arc<Monitor>,
    pub(super) checkpoint: Checkpoint,
    mode: watch::Sender<Mode>,
}

/// What a job is started with.
pub struct NewJob {
    pub name: String,
    pub kind: JobKind,
    pub settings: JobSettings,
    pub program: Box<dyn Program>,
    pub checkpoint: Checkpoint,
    pub definition: String,
    pub notes: Vec<String>,
    pub mode: (watch::Sender<Mode>, watch::Receiver<Mode>),
}

/// A SQL job as it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Submission {
    pub name: String,
    pub sql: String,
    /// Empty: `<engine checkpoint>/<name>`.
    pub checkpoint: String,
    /// Empty: from the checkpoint, or fresh.
    pub from_savepoint: String,
    pub dry_run: bool,
}

/// What a restart needs to know about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Definition {
    sql: String,
    checkpoint: String,
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    Running,
    /// Stopped by someone, or finished by itself.
    Over,
}

/// All jobs of this process. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    /// Slots of shared jobs that run here, or did last, by `JOB~SLOT`.
    slots: Mutex<BTreeMap<String, Arc<Job>>>,
    /// Of this process, among the workers of its shared jobs.
    worker_id: Option<String>,
    /// Where definitions are kept; `None` for a process that runs one job and ends.
    store: Option<Checkpoint>,
    jobs_max: usize,
    defaults: BTreeMap<String, String>,
    cluster: Arc<dyn Cluster>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
    /// The process ends: jobs that stop now go on at the next start.
    closing: watch::Sender<bool>,
}

impl Registry {
    pub fn new(
        store: Option<Checkpoint>,
        jobs_max: usize,
        defaults: BTreeMap<String, String>,
        cluster: Arc<dyn Cluster>,
        clock: Arc<dyn Clock>,
        tasks: TaskTracker,
        worker_id: Option<String>,
    ) -> Self {
        let closing = watch::Sender::new(false);
        let (jobs, slots) = Default::default();
        Self { inner: Arc::new(Inner { jobs, slots, worker_id, store, jobs_max, defaults, cluster, clock, tasks, closing }) }
    }

    pub fn clock(&self) -> &dyn Clock {
        self.inner.clock.as_ref()
    }

    /// By name.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        self.inner.jobs.lock().values().cloned().collect()
    }

    /// By name, each shared job followed by its slots.
    pub fn jobs_and_slots(&self) -> Vec<Arc<Job>> {
        let mut all = self.jobs();
        all.extend(self.inner.slots.lock().values().cloned());
        // `~` is in no job's name.
        all.sort_by(|one, other| one.name.split('~').cmp(other.name.split('~')));
        all
    }

    /// A job, or a slot of one: `JOB~SLOT`.
    pub fn job_or_slot(&self, name: &str) -> Result<Arc<Job>, ServiceError> {
        let slot = self.inner.slots.lock().get(name).cloned();
        slot.map_or_else(|| self.job(name), Ok)
    }

    pub fn job(&self, name: &str) -> Result<Arc<Job>, ServiceError> {
        self.inner.jobs.lock().get(name).cloned().ok_or_else(|| ServiceError::not_found(format!("there is no job `{name}`")))
    }

    /// Starts a job.
    pub fn start(&self, new: NewJob) -> Result<Arc<Job>, ServiceError> {
        let NewJob { name, kind, settings, program, checkpoint, definition, notes, mode: (mode, mode_receiver) } = new;
        check_name(&name).map_err(ServiceError::invalid)?;
        let shared =
            settings.slots.map(|slots| shape(slots, &settings, &*program, &checkpoint)).transpose().map_err(ServiceError::invalid)?;
        let monitor = Arc::new(self.monitor(&name, &settings, &checkpoint).with_listeners(program.listeners()));
        let job = Arc::new(Job {
            name: name.clone(),
            kind,
            settings: settings.clone(),
            plan: program.plan(),
            notes,
            definition,
            monitor: monitor.clone(),
            checkpoint: checkpoint.clone(),
            mode,
        });
        self.insert(job.clone())?;
        let (registry, ended) = (self.clone(), job.clone());
        self.inner.tasks.spawn(async move {
            let result = match shared {
                None => {
                    let runner = Runner {
                        job: name.into(),
                        settings,
                        program,
                        checkpoint,
                        cluster: registry.inner.cluster.clone(),
                        clock: registry.inner.clock.clone(),
                        monitor,
                        mode: mode_receiver,
                        tasks: registry.inner.tasks.clone(),
                        share: None,
                    };
                    Box::pin(runner.run()).await
                }
                Some((shape, sharing)) => {
                    let worker =
                        Worker { job: ended.clone(), shape, sharing, id: registry.inner.worker_id.clone(), registry: registry.clone() };
                    let result = Box::pin(worker.run(mode_receiver)).await;
                    ended.monitor.ended(&result);
                    result
                }
            };
            // The error is in the log and in the monitor. A failed job is tried again at the next start of the engine.
            let finished = result.is_ok();
            if finished && !*registry.inner.closing.borrow() {
                registry.remember(&ended, Wanted::Over).await;
            }
        });
        Ok(job)
    }

    fn monitor(&self, name: &str, settings: &JobSettings, checkpoint: &Checkpoint) -> Monitor {
        let interval = u64::try_from(interval_ms(settings.batch_interval)).unwrap_or(0);
        Monitor::new(name, interval, settings.retained_batches, checkpoint.location(), self.inner.clock.clone())
    }

    // === Shared jobs ===

    /// The slot, or a half of it, runs here from now on: it is listed.
    pub(super) fn slot_begins(&self, job: &Job, slot: Slot, part: Option<&Part>) -> Arc<Job> {
        let half = if let Some(Part::Windows(_)) = part { WINDOWS } else { "" };
        let (name, checkpoint) = (format!("{}~{slot}{half}", job.name), job.slot_checkpoint(slot, half));
        let one = Arc::new(Job {
            kind: JobKind::Slot,
            settings: job.settings.clone(),
            plan: job.plan.clone(),
            notes: Vec::new(),
            definition: job.definition.clone(),
            monitor: Arc::new(self.monitor(&name, &job.settings, &checkpoint)),
            checkpoint,
            mode: watch::Sender::new(Mode::Run),
            name: name.clone(),
        });
        self.inner.slots.lock().insert(name, one.clone());
        one
    }

    /// The slot does not run here any more; where another worker has it, it is not listed either.
    pub(super) fn slot_leaves(&self, slot: &Job) {
        self.inner.slots.lock().remove(&slot.name);
    }

    /// Those that are listed here.
    pub(super) fn slots_of(&self, job: &str) -> Vec<JobView> {
        let of_job = |name: &str| name.strip_prefix(job).is_some_and(|rest| rest.starts_with('~'));
        self.inner.slots.lock().iter().filter(|(name, _)| of_job(name)).map(|(_, slot)| slot.monitor.view()).collect()
    }

    /// A runner of one slot of the job.
    pub(super) fn slot_runner(
        &self,
        slot: &Job,
        job: &str,
        share: Share,
        part: Option<Part>,
        mode: watch::Receiver<Mode>,
    ) -> Result<Runner, sql::SqlError> {
        let program = match part {
            None => self.compile(&slot.definition)?.program,
            Some(part) => sql::compile_part(&slot.definition, &options(&self.inner.defaults), part)?,
        };
        Ok(Runner {
            job: job.into(),
            settings: slot.settings.clone(),
            program,
            checkpoint: slot.checkpoint.clone(),
            cluster: self.inner.cluster.clone(),
            clock: self.inner.clock.clone(),
            monitor: slot.monitor.clone(),
            mode,
            tasks: self.inner.tasks.clone(),
            share: Some(share),
        })
    }

    /// The process ends, and its jobs go on at its next start.
    pub(super) fn is_closing(&self) -> bool {
        *self.inner.closing.borrow()
    }

    /// Takes the name, unless a job that is not over has it.
    fn insert(&self, job: Arc<Job>) -> Result<(), ServiceError> {
        let mut jobs = self.inner.jobs.lock();
        room(&jobs, &job.name, if job.monitor.state().is_over() { usize::MAX } else { self.inner.jobs_max })?;
        jobs.insert(job.name.clone(), job);
        // Jobs that are over are remembered, as many as may run.
        let mut over: Vec<_> = jobs
            .values()
            .filter(|job| job.monitor.state().is_over())
            .map(|job| (job.monitor.view().ended_at_ms, job.name.clone()))
            .collect();
        over.sort_unstable();
        for (_, name) in over.iter().take(over.len().saturating_sub(self.inner.jobs_max)) {
            info!(job = name, "forgotten: jobs.max newer ones are over; its checkpoint stays");
            jobs.remove(name);
        }
        Ok(())
    }

    /// Undoes [`Self::start`] of a job that is over: the name is again the one's that had it before.
    fn take_back(&self, job: &Arc<Job>, before: Option<Arc<Job>>) {
        let mut jobs = self.inner.jobs.lock();
        if jobs.get(&job.name).is_some_and(|now| Arc::ptr_eq(now, job)) {
            jobs.remove(&job.name);
            jobs.extend(before.map(|before| (before.name.clone(), before)));
        }
    }

    // === SQL jobs ===

    /// Checks, plans and, unless it is a dry run, starts a SQL job. Gives the plan and notes too.
    pub async fn submit(&self, submission: Submission) -> Result<(Option<Arc<Job>>, String, Vec<String>), ServiceError> {
        let Submission { name, sql, checkpoint, from_savepoint, dry_run } = submission;
        check_name(&name).map_err(ServiceError::invalid)?;
        let Some(store) = self.inner.store.clone() else {
            return Err(ServiceError::new(ErrorKind::Unsupported, "this process runs one job; submit to `millrace-engine serve`"));
        };
        let compiled = self.compile(&sql).map_err(|error| ServiceError::invalid(error.to_string()))?;
        if dry_run || compiled.explain_only {
            return Ok((None, compiled.plan, compiled.notes));
        }
        room(&self.inner.jobs.lock(), &name, self.inner.jobs_max)?;
        let location = if checkpoint.is_empty() { format!("{}/{name}", store.location()) } else { checkpoint };
        let opened = Self::open(&store, &name, &location)?;
        let (plan, mut notes) = (compiled.plan, compiled.notes);
        let copied = !from_savepoint.is_empty();
        let program = Identity::of(&*compiled.program);
        let may_drop = compiled.settings.ignore_unclaimed_state;
        notes.extend(if copied {
            let savepoint = self.savepoint_at(&from_savepoint, &opened)?;
            resume_from(&savepoint, &opened, &name, &program, may_drop, self.inner.clock.now_ms()).await?
        } else {
            goes_on(&opened, &name, &program, may_drop).await?
        });
        let before = self.job(&name).ok();
        let started = self.start(NewJob {
            name: name.clone(),
            kind: JobKind::Sql,
            settings: compiled.settings,
            program: compiled.program,
            checkpoint: opened.clone(),
            definition: sql.clone(),
            notes: notes.clone(),
            mode: watch::channel(Mode::Run),
        });
        let result = match started {
            Ok(job) => {
                let begun = self.begun(&job, Definition { sql, checkpoint: location, wanted: Wanted::Running }).await;
                begun.map(|()| job.clone()).inspect_err(|_| self.take_back(&job, before))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(job) => Ok((Some(job), plan, notes)),
            Err(error) => {
                // What was copied for this job alone would be in the way of the next attempt.
                if copied && let Err(error) = opened.clear().await {
                    warn!(job = name, %error, "cannot remove the copy of the savepoint");
                }
                Err(error)
            }
        }
    }

    /// Waits until the job runs, and only then stores it: a job that fails at its start takes no other's place.
    async fn begun(&self, job: &Arc<Job>, definition: Definition) -> Result<(), ServiceError> {
        // One that waits for a broker has begun as well.
        let begun = job.monitor.wait_for(|view| view.state != JobState::Starting);
        tokio::time::timeout(START_WAIT, begun).await.ok();
        let view = job.monitor.view();
        if view.state == JobState::Failed {
            let why = view.error.unwrap_or_default();
            return Err(ServiceError::new(ErrorKind::Conflict, format!("job `{}` failed at its start and was not taken: {why}", job.name)));
        }
        if let Some(store) = &self.inner.store
            && let Err(error) = store.child(&job.name).put_file(DEFINITION, &definition, &[]).await
        {
            job.mode.send_replace(Mode::Stop);
            job.monitor.wait_for(|view| view.state.is_over()).await;
            return Err(unavailable(error));
        }
        // It may have ended, or have been stopped, while it was being stored.
        if matches!(job.monitor.state(), JobState::Finished | JobState::Stopping) && !*self.inner.closing.borrow() {
            self.remember(job, Wanted::Over).await;
        }
        Ok(())
    }

    /// Forgets a job that is over; with `checkpoint` also where it stood. Gives the checkpoint's place.
    pub async fn delete(&self, name: &str, checkpoint: bool) -> Result<String, ServiceError> {
        let job = self.job(name)?;
        let Some(store) = self.inner.store.as_ref().filter(|_| job.kind == JobKind::Sql) else {
            return Err(ServiceError::new(ErrorKind::Unsupported, "this process runs one job and ends with it"));
        };
        if !job.monitor.state().is_over() {
            return Err(ServiceError::new(
                ErrorKind::Conflict,
                format!("job `{name}` is not over; stop it first: millrace job stop {name}"),
            ));
        }
        if checkpoint && job.settings.slots.is_some() {
            forget(&job, self).await.map_err(|error| ServiceError::new(ErrorKind::Unavailable, format!("{error:#}")))?;
        }
        self.take_back(&job, None);
        let delete = async {
            store.child(name).delete_file(DEFINITION).await?;
            if checkpoint {
                for slot in 0..job.settings.slots.unwrap_or(0) {
                    for half in ["", WINDOWS] {
                        job.slot_checkpoint(Slot(slot), half).clear().await?;
                    }
                }
                job.checkpoint.clear().await
            } else {
                Ok(())
            }
        };
        if let Err(error) = delete.await {
            // Still there, so that it can be deleted again.
            self.inner.jobs.lock().entry(name.into()).or_insert(job);
            return Err(unavailable(error));
        }
        Ok(job.checkpoint.location().into())
    }

    pub(super) fn compile(&self, text: &str) -> Result<sql::CompiledJob, sql::SqlError> {
        compile(text, &self.inner.defaults)
    }

    /// A job without its own checkpoint lives in a folder of the engine's.
    fn open(store: &Checkpoint, name: &str, location: &str) -> Result<Checkpoint, ServiceError> {
        if location == format!("{}/{name}", store.location()) {
            return Ok(store.child(name));
        }
        store.elsewhere(location).map_err(invalid)
    }

    /// `NAME`: a savepoint of the job whose checkpoint this is; `JOB/NAME`: of another job; all else is a place.
    fn savepoint_at(&self, given: &str, checkpoint: &Checkpoint) -> Result<Checkpoint, ServiceError> {
        let (job, name) = given.split_once('/').map_or((None, given), |(job, name)| (Some(job), name));
        if check_name(name).is_err() || job.is_some_and(|job| check_name(job).is_err()) {
            return checkpoint.elsewhere(given).map_err(invalid);
        }
        Ok(match job {
            None => checkpoint.savepoint(name),
            Some(job) => self.kept(job)?.savepoint(name),
        })
    }

    /// The checkpoint of a job of this engine, also of one that was deleted and left it behind.
    fn kept(&self, job: &str) -> Result<Checkpoint, ServiceError> {
        match (self.job(job), &self.inner.store) {
            (Ok(job), _) => Ok(job.checkpoint.clone()),
            (Err(_), Some(store)) => Ok(store.child(job)),
            (Err(error), None) => Err(error),
        }
    }

    /// Starts every job that was running when the engine ended, and lists the others. A job that cannot start is listed as failed.
    pub async fn resume(&self) -> Result<(), CheckpointError> {
        let Some(store) = self.inner.store.clone() else { return Ok(()) };
        let mut definitions = Vec::new();
        for name in store.folders().await? {
            let definition = store.child(&name).get_file::<Definition>(DEFINITION).await;
            if let Err(error) = &definition
                && error.retryable()
            {
                // Nothing has been started yet, so all of it can be done again.
                return definition.map(|_| ());
            }
            definitions.push((name, definition));
        }
        for (name, definition) in definitions {
            let stored = match definition {
                Ok(Some((definition, _))) => definition,
                Ok(None) => continue,
                Err(error) => {
                    error!(job = name, %error, "cannot read the job's definition");
                    self.list(&name, String::new(), store.child(&name), JobState::Failed, Some(error.to_string()));
                    continue;
                }
            };
            let checkpoint = match Self::open(&store, &name, &stored.checkpoint) {
                Ok(checkpoint) => checkpoint,
                Err(error) => {
                    error!(job = name, %error, "cannot resume");
                    self.list(&name, stored.sql, store.child(&name), JobState::Failed, Some(error.message));
                    continue;
                }
            };
            if stored.wanted == Wanted::Over {
                self.list(&name, stored.sql, checkpoint, JobState::Finished, None);
                continue;
            }
            let failed = match self.compile(&stored.sql) {
                Ok(compiled) => {
                    let new = NewJob {
                        name: name.clone(),
                        kind: JobKind::Sql,
                        settings: compiled.settings,
                        program: compiled.program,
                        checkpoint: checkpoint.clone(),
                        definition: stored.sql.clone(),
                        notes: compiled.notes,
                        mode: watch::channel(Mode::Run),
                    };
                    self.start(new).err().map(|error| error.message)
                }
                Err(error) => Some(error.to_string()),
            };
            match failed {
                None => info!(job = name, "resumed"),
                Some(error) => {
                    error!(job = name, error, "cannot resume");
                    self.list(&name, stored.sql, checkpoint, JobState::Failed, Some(error));
                }
            }
        }
        Ok(())
    }

    /// Shows a job that does not run.
    fn list(&self, name: &str, definition: String, checkpoint: Checkpoint, state: JobState, error: Option<String>) {
        let settings = JobSettings::default();
        let monitor = self.monitor(name, &settings, &checkpoint);
        monitor.over(state, error, None);
        let job = Job {
            name: name.into(),
            kind: JobKind::Sql,
            settings,
            plan: String::new(),
            notes: Vec::new(),
            definition,
            monitor: Arc::new(monitor),
            checkpoint,
            mode: watch::Sender::new(Mode::Stop),
        };
        if let Err(error) = self.insert(Arc::new(job)) {
            warn!(job = name, %error, "not listed");
        }
    }

    /// Stores whether a restart should run the job.
    async fn remember(&self, job: &Job, wanted: Wanted) {
        let Some(store) = self.inner.store.as_ref().filter(|_| job.kind == JobKind::Sql) else { return };
        let definition = Definition { sql: job.definition.clone(), checkpoint: job.checkpoint.location().into(), wanted };
        if let Err(error) = store.child(&job.name).put_file(DEFINITION, &definition, &[]).await {
            warn!(job = job.name, %error, "cannot store the job's state; a restart of the engine will run it again");
        }
    }

    // === Operators' requests ===

    /// Stops a job, with `drain` after reading to the end of its sources; waits for it.
    pub async fn stop(&self, name: &str, drain: bool, timeout: Duration) -> Result<Arc<Job>, ServiceError> {
        let job = self.job(name)?;
        if job.monitor.state().is_over() {
            // A failed job would be tried again at the next start.
            job.monitor.acknowledge();
            self.remember(&job, Wanted::Over).await;
            return Ok(job);
        }
        if drain
            && job.settings.slots.is_some()
            && self.compile(&job.definition).is_ok_and(|it| it.program.shareable() == Ok(Sharing::Exchanged))
        {
            let text =
                format!("job `{name}` has slots that pass rows to each other (job.slots), and cannot be drained: stop it without --drain");
            return Err(ServiceError::new(ErrorKind::Unsupported, text));
        }
        self.remember(&job, Wanted::Over).await;
        job.monitor.set_state(JobState::Stopping);
        job.mode.send_replace(if drain { Mode::Drain } else { Mode::Stop });
        let over = job.monitor.wait_for(|view| view.state.is_over());
        if tokio::time::timeout(timeout, over).await.is_err() {
            return Err(ServiceError::new(
                ErrorKind::Timeout,
                format!("job `{name}` did not end within {}; it goes on stopping", humantime::format_duration(timeout)),
            ));
        }
        Ok(job)
    }

    /// Pauses or resumes one job, all when the name is empty. Gives the names.
    pub fn pause(&self, name: &str, pause: bool) -> Result<Vec<String>, ServiceError> {
        let jobs = if name.is_empty() { self.jobs() } else { vec![self.job(name)?] };
        let (from, to) = if pause { (Mode::Run, Mode::Pause) } else { (Mode::Pause, Mode::Run) };
        let mut changed = Vec::new();
        for job in jobs {
            let now = *job.mode.borrow();
            if job.monitor.state().is_over() || !matches!(now, Mode::Run | Mode::Pause) {
                if name.is_empty() {
                    continue;
                }
                let state = job.monitor.state().name();
                return Err(ServiceError::new(ErrorKind::Conflict, format!("job `{name}` is {state}")));
            }
            if now == from {
                job.mode.send_replace(to);
            }
            changed.push(job.name.clone());
        }
        Ok(changed)
    }

    /// Copies the newest commit, after the batch that is running, to `target`: a name, a place, or empty for the batch's number as the name.
    /// Gives the place and the batch.
    pub async fn savepoint(&self, name: &str, target: &str, wait: Duration) -> Result<(String, u64), ServiceError> {
        let job = self.job(name)?;
        if job.settings.slots.is_some() {
            let text =
                format!("job `{name}` has slots (job.slots), each with a checkpoint of its own; savepoints of such jobs are not built yet");
            return Err(ServiceError::new(ErrorKind::Unsupported, text));
        }
        let running = job.monitor.view().active.iter().find(|batch| batch.state == BatchState::Running).map(|batch| batch.id);
        if let Some(running) = running {
            let done = job.monitor.wait_for(|view| view.active.iter().all(|batch| batch.id != running));
            // A batch that does not end is no reason to refuse a savepoint of the one before.
            tokio::time::timeout(wait, done).await.ok();
        }
        let loaded = job.checkpoint.load().await.map_err(unavailable)?;
        let (Some(metadata), Some((commit, state))) = (loaded.metadata, loaded.commit) else {
            return Err(ServiceError::new(ErrorKind::Conflict, format!("job `{name}` has not completed a batch yet")));
        };
        let target = if target.is_empty() {
            job.checkpoint.savepoint(&commit.id.to_string())
        } else if check_name(target).is_ok() {
            job.checkpoint.savepoint(target)
        } else {
            job.checkpoint.elsewhere(target).map_err(invalid)?
        };
        match job.checkpoint.copy_to(&target, &metadata, &commit, &state).await {
            Ok(()) => Ok((target.location().into(), commit.id)),
            Err(CheckpointError::Taken { .. }) => Err(ServiceError::new(
                ErrorKind::AlreadyExists,
                format!(
                    "`{}` holds a checkpoint or savepoint already and is left as it is; choose another name or place",
                    target.location()
                ),
            )),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// The savepoints that are kept with a job's checkpoint, by name; also of a job that was deleted.
    pub async fn savepoints(&self, job: &str) -> Result<Vec<Savepoint>, ServiceError> {
        check_name(job).map_err(ServiceError::invalid)?;
        let known = self.job(job);
        let found = self.kept(job)?.savepoints().await.map_err(unavailable)?;
        // Nothing is kept of a job that never was.
        if found.is_empty() { known.map(|_| found) } else { Ok(found) }
    }

    pub async fn delete_savepoint(&self, job: &str, name: &str) -> Result<(), ServiceError> {
        check_name(job).map_err(ServiceError::invalid)?;
        check_name(name).map_err(|_| ServiceError::invalid(format!("`{name}` is no name of a savepoint")))?;
        if self.kept(job)?.delete_savepoint(name).await.map_err(unavailable)? {
            return Ok(());
        }
        Err(ServiceError::not_found(format!("job `{job}` has no savepoint `{name}`")))
    }

    /// Ends every job after its running batch; the next start goes on with them.
    pub async fn close(&self) {
        self.inner.closing.send_replace(true);
        let jobs = self.jobs();
        for job in &jobs {
            // A drain under way is finished: what it was asked for is stored.
            job.mode.send_if_modified(|mode| {
                let stop = *mode != Mode::Drain;
                if stop {
                    *mode = Mode::Stop;
                }
                stop
            });
        }
        for job in jobs {
            job.monitor.wait_for(|view| view.state.is_over()).await;
        }
    }
}

impl Job {
    /// Where a slot of the job, or its second half, stands.
    fn slot_checkpoint(&self, slot: Slot, half: &str) -> Checkpoint {
        self.checkpoint.child(&format!("slot-{slot}{}", half.replace('~', "-")))
    }

    /// Gives the job a mode as an operator would.
    pub fn set_mode(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

/// How a shared job is cut; the error says why it cannot be shared.
fn shape(slots: u32, settings: &JobSettings, program: &dyn Program, checkpoint: &Checkpoint) -> Result<(Shape, Sharing), String> {
    let sharing = program.shareable()?;
    if checkpoint.is_in_memory() {
        return Err("`job.slots` needs a checkpoint that every worker reaches (--checkpoint)".into());
    }
    let offsets = &settings.offsets;
    if [Some(&offsets.store), offsets.previous.as_ref()]
        .into_iter()
        .flatten()
        .any(|place| matches!(place, OffsetPlace::Store(StoreAddress::Sled(_))))
    {
        return Err("`job.slots` and an offset store of one process, `sled:`, do not go together: name another `offsets.store`".into());
    }
    Ok((Shape::new(slots, slots)?, sharing))
}

/// Plans a SQL job; `defaults` hold where the text has no `SET`.
pub fn compile(text: &str, defaults: &BTreeMap<String, String>) -> Result<sql::CompiledJob, sql::SqlError> {
    sql::compile(text, &options(defaults))
}

fn options(defaults: &BTreeMap<String, String>) -> sql::CompileOptions {
    sql::CompileOptions { defaults: defaults.clone(), ..sql::CompileOptions::default() }
}

/// A new history from a savepoint: same state and offsets, new fences. Gives what the job's user should know.
async fn resume_from(
    savepoint: &Checkpoint,
    checkpoint: &Checkpoint,
    job: &str,
    program: &Identity,
    may_drop: bool,
    now_ms: i64,
) -> Result<Vec<String>, ServiceError> {
    let loaded = savepoint.load().await.map_err(unavailable)?;
    let (Some(metadata), Some((commit, state))) = (loaded.metadata, loaded.commit) else {
        return Err(ServiceError::not_found(format!("`{}` holds no savepoint", savepoint.location())));
    };
    let metadata =
        Metadata { job: job.into(), checkpoint_id: uuid::Uuid::new_v4().simple().to_string(), started_at_ms: now_ms, ..metadata };
    // The savepoint may be another job's: this one begins a history of its own.
    let notes = fits(&metadata, savepoint, job, program, may_drop)?;
    savepoint.copy_to(checkpoint, &metadata, &commit, &state).await.map_err(|error| match error {
        CheckpointError::Taken { .. } => ServiceError::new(
            ErrorKind::Conflict,
            format!(
                "checkpoint `{}` is in use, and a savepoint never replaces one; give the job another --name or --checkpoint, or remove the old one first (millrace job delete {job} --checkpoint)",
                checkpoint.location()
            ),
        ),
        error => unavailable(error),
    })?;
    Ok(notes)
}

/// Whether one more job of this name may run.
fn room(jobs: &BTreeMap<String, Arc<Job>>, name: &str, max: usize) -> Result<(), ServiceError> {
    if jobs.get(name).is_some_and(|job| !job.monitor.state().is_over()) {
        return Err(ServiceError::new(ErrorKind::AlreadyExists, format!("job `{name}` is running; stop it first or choose another name")));
    }
    if jobs.values().filter(|job| !job.monitor.state().is_over()).count() >= max {
        return Err(ServiceError::new(ErrorKind::LimitExceeded, format!("this engine runs {max} jobs at once (jobs.max); stop one first")));
    }
    Ok(())
}

/// Whether the program can go on from its checkpoint, when it has one; gives what its user should know about it.
async fn goes_on(checkpoint: &Checkpoint, job: &str, program: &Identity, may_drop: bool) -> Result<Vec<String>, ServiceError> {
    let loaded = checkpoint.load().await.map_err(unavailable)?;
    let Some(metadata) = loaded.metadata else { return Ok(Vec::new()) };
    let mut notes = fits(&metadata, checkpoint, job, program, may_drop)?;
    if loaded.commit.is_some_and(|(commit, _)| commit.end == Some(End::Drained)) {
        notes.push(format!(
            "job `{job}` was drained: it goes on from its offsets, but its windows are closed, and rows that still come for them are late"
        ));
    }
    Ok(notes)
}

/// What a changed program means for the job, when it can go on.
fn fits(metadata: &Metadata, checkpoint: &Checkpoint, job: &str, program: &Identity, may_drop: bool) -> Result<Vec<String>, ServiceError> {
    let differences = metadata.check(checkpoint.location(), job, program, may_drop);
    let differences = differences.map_err(|reason| ServiceError::new(ErrorKind::Conflict, reason))?;
    let note = |difference: &Difference| format!("the job has changed: {difference}; {}", difference.consequence());
    Ok(differences.iter().map(note).collect())
}

fn invalid(error: CheckpointError) -> ServiceError {
    ServiceError::invalid(error.to_string())
}

fn unavailable(error: CheckpointError) -> ServiceError {
    let kind = if error.retryable() { ErrorKind::Unavailable } else { ErrorKind::Conflict };
    ServiceError::new(kind, error.to_string())
}
