//! The agent: components wired together, started sinks first, stopped sources first, changed one by one on reload.
//!
//! [`Agent`] is the handle; what runs is behind it. A component is a task with its own stop signal, pause flag, counters
//! and last error, so that one can be stopped, paused or replaced while the others go on.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures::FutureExt as _;
use parking_lot::Mutex;
use proto::ServiceError;
use proto::control::v1::ReloadResponse;
use service_kit::Latch;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::channel::{self, CHANNELS, Channel};
use crate::counters::{ChannelGauges, Shown, SinkCounters, SourceCounters};
use crate::flume_conf::{Component, Plan, Role};
use crate::group::{self, Group, Membership};
use crate::sink::{self, Input, SINKS, keeps_positions};
use crate::source::tail::store::file_name;
use crate::source::{self, Output, Route, SOURCES, Stop, tail};
use crate::tap::{TapConfig, Taps};

/// How a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    Failed,
    /// It ended by itself, without an error.
    Stopped,
}

/// What status shows of a component.
pub struct View {
    pub role: Role,
    pub name: String,
    pub type_name: String,
    pub state: State,
    pub error: String,
    pub channels: Vec<String>,
    pub counters: Shown,
}

/// Where the agent keeps things, and how long its end may take.
pub struct Place {
    pub state_dir: PathBuf,
    pub strict: bool,
    /// Of which a part is kept back for saving positions.
    pub drain: Duration,
    pub taps: TapConfig,
}

pub struct Agent {
    place: Place,
    tasks: TaskTracker,
    running: tokio::sync::Mutex<Pipeline>,
    /// What is shown, apart from the pipeline's lock, so that status never waits for a reload.
    shown: Mutex<Vec<Arc<Shell>>>,
    plan: Mutex<Plan>,
    taps: Arc<Taps>,
    /// Locked for as long as the process lives: two agents must not share positions.
    _lock: std::fs::File,
}

#[derive(Default)]
struct Pipeline {
    plan: Plan,
    channels: BTreeMap<String, Arc<dyn Channel>>,
    components: BTreeMap<(Role, String), Running>,
    /// Channel → what its transactional sink found committed.
    committed: BTreeMap<String, CommittedSender>,
}

struct Running {
    shell: Arc<Shell>,
    stop: Stop,
    task: tokio::task::JoinHandle<()>,
}

/// What outlives a component's task and what others see of it.
struct Shell {
    component: Component,
    counters: Counters,
    /// What the component goes by: while it stops, it is not paused.
    pause: watch::Sender<bool>,
    /// What was asked for last.
    paused: AtomicBool,
    /// Somebody waits for what a sink has taken.
    hurry: watch::Sender<bool>,
    ended: Mutex<Option<Result<(), String>>>,
    trouble: Arc<Mutex<Option<String>>>,
    listening: Arc<Mutex<Vec<SocketAddr>>>,
    /// Of a sink in a group.
    membership: OnceLock<Membership>,
}

enum Counters {
    Source(Arc<SourceCounters>),
    Channel(Arc<ChannelGauges>, Arc<dyn Channel>),
    Sink(Arc<SinkCounters>),
}

impl Shell {
    fn new(component: Component, counters: Counters) -> Arc<Self> {
        Arc::new(Self {
            component,
            counters,
            pause: watch::Sender::new(false),
            paused: AtomicBool::new(false),
            hurry: watch::Sender::new(false),
            ended: Mutex::new(None),
            trouble: Arc::default(),
            listening: Arc::default(),
            membership: OnceLock::new(),
        })
    }

    fn has_failed(&self) -> bool {
        matches!(&*self.ended.lock(), Some(Err(_)))
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        self.pause.send_replace(paused);
    }

    fn state(&self) -> (State, String) {
        match &*self.ended.lock() {
            Some(Ok(())) => (State::Stopped, String::new()),
            Some(Err(error)) => (State::Failed, error.clone()),
            None => {
                let waits = self.membership.get().is_some_and(Membership::waits);
                let state = if waits || self.is_paused() { State::Paused } else { State::Running };
                let of_channel = match &self.counters {
                    Counters::Channel(_, channel) => channel.trouble(),
                    _ => None,
                };
                (state, of_channel.or_else(|| self.trouble.lock().clone()).unwrap_or_default())
            }
        }
    }

    fn counters(&self) -> Shown {
        match &self.counters {
            Counters::Source(counters) => counters.shown(),
            Counters::Channel(gauges, channel) => gauges.shown(channel.as_ref()),
            Counters::Sink(counters) => counters.shown(),
        }
    }
}

impl Agent {
    /// Starts the plan's components; all of what cannot be built is told at once, and then nothing runs.
    pub async fn start(plan: Plan, place: Place, tasks: TaskTracker, ready: Latch) -> anyhow::Result<Arc<Self>> {
        let state_dir = place.state_dir.join(file_name(&plan.agent));
        std::fs::create_dir_all(&state_dir)
            .with_context(|| format!("state directory {} cannot be made; set --state-dir", state_dir.display()))?;
        let lock = lock(&state_dir)?;
        let shown = state_dir.canonicalize().unwrap_or_else(|_| state_dir.clone());
        tracing::info!(directory = %shown.display(), "positions and dead letters are kept in the state directory");
        let place = Place { state_dir, ..place };
        let taps = Arc::new(Taps::new(place.taps.clone()));
        let agent = Arc::new(Self {
            place,
            tasks,
            running: tokio::sync::Mutex::default(),
            shown: Mutex::default(),
            plan: Mutex::default(),
            taps,
            _lock: lock,
        });
        agent.change(plan).await?;
        ready.release();
        Ok(agent)
    }

    pub fn plan(&self) -> Plan {
        self.plan.lock().clone()
    }

    pub fn taps(&self) -> &Arc<Taps> {
        &self.taps
    }

    pub fn view(&self) -> Vec<View> {
        let view = |shell: &Arc<Shell>| {
            let component = &shell.component;
            let (state, error) = shell.state();
            View {
                role: component.kind.role,
                name: component.name.clone(),
                type_name: component.type_name.clone(),
                state,
                error,
                channels: component.channels.clone(),
                counters: shell.counters(),
            }
        };
        let mut views: Vec<View> = self.shown.lock().iter().map(view).collect();
        for group in &self.plan.lock().groups {
            let sinks = || views.iter().filter(|view| view.role == Role::Sink && group.channels.contains(&view.name));
            let works = sinks().any(|sink| sink.state != State::Failed && sink.error.is_empty());
            let error = if works { String::new() } else { "none of its sinks works".to_owned() };
            views.push(View {
                role: Role::Group,
                name: group.name.clone(),
                type_name: group.type_name.clone(),
                state: State::Running,
                error,
                channels: group.channels.clone(),
                counters: Shown::new(),
            });
        }
        views
    }

    /// Tells Prometheus how full the channels are.
    pub fn publish(&self) {
        for shell in self.shown.lock().iter() {
            match &shell.counters {
                Counters::Channel(gauges, channel) => gauges.publish(channel.as_ref()),
                Counters::Sink(counters) => {
                    metrics::gauge!("millrace_collector_sink_success_ratio", "sink" => shell.component.name.clone())
                        .set(counters.success_rate() / 100.0)
                }
                Counters::Source(_) => {}
            }
        }
    }

    /// Events accepted and not delivered.
    pub fn remaining(&self) -> u64 {
        let in_channel = |shell: &Arc<Shell>| match &shell.counters {
            Counters::Channel(_, channel) => channel.fill().events as u64,
            _ => 0,
        };
        self.shown.lock().iter().map(in_channel).sum()
    }

    /// Events that the sinks could never deliver.
    fn put_aside(&self) -> u64 {
        let of_sink = |shell: &Arc<Shell>| match &shell.counters {
            Counters::Sink(counters) => counters.dead.get(),
            _ => 0,
        };
        self.shown.lock().iter().map(of_sink).sum()
    }

    /// Stops or continues one source or sink, or all of them when `name` is empty; gives the names.
    pub fn set_paused(&self, name: &str, paused: bool) -> Result<Vec<String>, ServiceError> {
        let shown = self.shown.lock();
        let able = || shown.iter().filter(|shell| shell.component.kind.role != Role::Channel);
        // All of them means their input: what was accepted is still delivered.
        let chosen: Vec<_> = match name {
            "" => able().filter(|shell| if paused { shell.component.kind.role == Role::Source } else { shell.is_paused() }).collect(),
            name => able().filter(|shell| shell.component.name == name).collect(),
        };
        if chosen.is_empty() && !name.is_empty() {
            let known: Vec<_> = able().map(|shell| shell.component.name.as_str()).collect();
            let channel = shown.iter().any(|shell| shell.component.name == name);
            let message = if channel {
                format!("`{name}` is a channel; pause the sources that write to it")
            } else {
                format!("there is no source or sink `{name}`; there are {}", known.join(", "))
            };
            return Err(ServiceError::not_found(message));
        }
        for shell in &chosen {
            shell.set_paused(paused);
        }
        Ok(chosen.iter().map(|shell| shell.component.name.clone()).collect())
    }

    /// Goes over to another plan: what is the same goes on untouched, but what has failed is started again. When something
    /// cannot be built the old plan goes on. What was paused stays paused.
    pub async fn change(&self, plan: Plan) -> anyhow::Result<ReloadResponse> {
        let mut pipeline = self.running.lock().await;
        let same = |component: &Component| {
            let key = (component.kind.role, component.name.clone());
            let failed = pipeline.components.get(&key).is_some_and(|running| running.shell.has_failed());
            !failed && pipeline.plan.components().any(|old| old.kind.role == component.kind.role && old.same(component))
        };
        let mut changed: Vec<&Component> = plan.components().filter(|component| !same(component)).collect();
        let gone: Vec<(Role, String)> = pipeline
            .plan
            .components()
            .filter(|old| !plan.components().any(|new| new.kind.role == old.kind.role && new.name == old.name))
            .map(|old| (old.kind.role, old.name.clone()))
            .collect();
        // A channel of another kind is another channel: its neighbours are wired anew.
        let replaced: Vec<String> = changed
            .iter()
            .filter(|new| {
                new.kind.role == Role::Channel
                    && pipeline.plan.channels.iter().any(|old| old.name == new.name && !std::ptr::eq(old.kind, new.kind))
            })
            .map(|channel| channel.name.clone())
            .collect();
        let rewired = |component: &Component, changed: &[&Component]| {
            component.kind.role != Role::Channel
                && !changed.iter().any(|other| std::ptr::eq(*other, component))
                && component.channels.iter().any(|channel| replaced.contains(channel))
        };
        let more: Vec<&Component> = plan.components().filter(|component| rewired(component, &changed)).collect();
        changed.extend(more);
        // A source and its transactional sink share the committed positions: they start together.
        let with_positions: Vec<&Component> = plan
            .sources
            .iter()
            .filter(|source| {
                let sinks = plan.sinks.iter().filter(|sink| sink.channels.iter().any(|channel| source.channels.contains(channel)));
                let sink_changes =
                    sinks.clone().any(|sink| keeps_positions(sink) && changed.iter().any(|other| std::ptr::eq(*other, sink)));
                sink_changes && !changed.iter().any(|other| std::ptr::eq(*other, *source))
            })
            .collect();
        changed.extend(with_positions);
        // A group begins anew with all of its sinks.
        let groups: Vec<&str> = changed.iter().filter_map(|sink| sink.group.as_ref()).map(|group| group.name.as_str()).collect();
        let with_group = plan.sinks.iter().filter(|sink| sink.group.as_ref().is_some_and(|group| groups.contains(&group.name.as_str())));
        let with_group: Vec<&Component> = with_group.filter(|sink| !changed.iter().any(|other| std::ptr::eq(*other, *sink))).collect();
        changed.extend(with_group);

        let reloaded = |role: Role, name: &str| {
            gone.contains(&(role, name.to_owned())) || changed.iter().any(|new| new.kind.role == role && new.name == name)
        };
        let stopping = pipeline.components.iter().filter(|((role, name), _)| *role == Role::Source && reloaded(*role, name));
        let freed = stopping.flat_map(|(_, running)| running.shell.listening.lock().clone()).collect();
        let built = self.build(&plan, &changed, &pipeline, freed)?;
        let first = pipeline.plan.components().next().is_none();
        if !first {
            let names: Vec<&str> = changed.iter().map(|component| component.name.as_str()).collect();
            tracing::info!(changed = names.join(" "), within = ?self.place.drain, "stopping what changes, when what it has read is delivered");
        }
        pipeline.hurry(true);
        let (old_sources, old_sinks) = pipeline.take(|role, name| role != Role::Channel && reloaded(role, name));
        // Sources first; each waits until its events are delivered, while the old sinks still run.
        if !stop_all(old_sources, self.place.drain).await {
            tracing::warn!(
                waited = ?self.place.drain,
                "what changed sources have read is not yet delivered; it stays in their channels and is read again: a sink with a \
                 transactional id delivers it once, any other twice"
            );
        }
        for (role, name) in &gone {
            if *role == Role::Channel {
                pipeline.drain_channel(name, self.place.drain).await;
            }
        }
        stop_all(old_sinks, self.place.drain).await;
        pipeline.hurry(false);
        for (role, name) in &gone {
            pipeline.components.remove(&(*role, name.clone()));
            if *role == Role::Channel
                && let Some(channel) = pipeline.channels.remove(name)
            {
                channel.leave().await;
                channel.close();
            }
        }
        let names: Vec<String> =
            changed.iter().map(|component| component.name.clone()).chain(gone.into_iter().map(|(_, name)| name)).collect();
        let unchanged = plan.components().filter(|component| !changed.iter().any(|other| std::ptr::eq(*other, *component)));
        let unchanged: Vec<String> = unchanged.map(|component| component.name.clone()).collect();
        {
            // Who pauses or resumes meanwhile is heard: before this by the old ones, after it by the new ones.
            let mut shown = self.shown.lock();
            self.launch(&mut pipeline, built, &shown);
            *shown = plan
                .components()
                .filter_map(|component| Some(pipeline.components.get(&(component.kind.role, component.name.clone()))?.shell.clone()))
                .collect();
        }
        pipeline.plan = plan.clone();
        *self.plan.lock() = plan;
        if !first {
            tracing::info!(changed = names.join(" "), unchanged = unchanged.join(" "), "configuration reloaded");
        }
        Ok(ReloadResponse { changed: names, unchanged, warnings: Vec::new() })
    }

    /// Builds what is new before anything old is stopped.
    fn build(&self, plan: &Plan, changed: &[&Component], pipeline: &Pipeline, freed: Vec<SocketAddr>) -> anyhow::Result<Built> {
        let mut built = Built::default();
        let mut faults = Vec::new();
        let mut committed: BTreeMap<String, watch::Sender<_>> = BTreeMap::new();
        for component in changed.iter().filter(|component| component.kind.role == Role::Channel) {
            let Some(kind) = CHANNELS.iter().find(|kind| std::ptr::eq(kind.kind, component.kind)) else {
                faults.push(format!("channel {}: no code for {}", component.name, component.type_name));
                continue;
            };
            let kept = pipeline.plan.channels.iter().any(|old| old.name == component.name && std::ptr::eq(old.kind, component.kind));
            match pipeline.channels.get(&component.name).filter(|_| kept) {
                Some(channel) => built.resized.push((channel.clone(), (*component).clone())),
                None => match (kind.build)(component, channel::Setup { state_dir: self.place.state_dir.clone() }) {
                    Ok(channel) => built.channels.push(((*component).clone(), channel)),
                    Err(error) => faults.push(format!("channel {}: {error:#}", component.name)),
                },
            }
        }
        for component in changed.iter().filter(|component| component.kind.role == Role::Sink) {
            let Some(kind) = SINKS.iter().find(|kind| std::ptr::eq(kind.kind, component.kind)) else {
                faults.push(format!("sink {}: no code for {}", component.name, component.type_name));
                continue;
            };
            let sender = watch::Sender::new(None);
            if keeps_positions(component) {
                // What a durable channel has taken is no source's business any more: its numbers are the positions.
                for channel in component.channels.iter().filter(|name| !plan.has_durable_channel(name)) {
                    committed.insert(channel.clone(), sender.clone());
                }
            }
            match (kind.build)(
                component,
                sink::Setup { state_dir: self.place.state_dir.clone(), strict: self.place.strict, committed: sender },
            ) {
                Ok(sink) => built.sinks.push(((*component).clone(), sink)),
                Err(error) => faults.push(format!("sink {}: {error:#}", component.name)),
            }
        }
        for component in changed.iter().filter(|component| component.kind.role == Role::Source) {
            let Some(kind) = SOURCES.iter().find(|kind| std::ptr::eq(kind.kind, component.kind)) else {
                faults.push(format!("source {}: no code for {}", component.name, component.type_name));
                continue;
            };
            let from_sink: Option<tail::Committed> =
                component.channels.iter().find_map(|channel| committed.get(channel)).map(watch::Sender::subscribe);
            let from_sink = from_sink.or_else(|| pipeline.committed_of(plan, component));
            let route = match Route::build(component) {
                Ok(route) => route,
                Err(error) => {
                    faults.push(format!("source {error:#}"));
                    continue;
                }
            };
            match (kind.build)(
                component,
                source::Setup {
                    state_dir: self.place.state_dir.clone(),
                    committed: from_sink,
                    strict: self.place.strict,
                    configured: plan.sources.iter().map(|source| source.name.clone()).collect(),
                    freed: freed.clone(),
                },
            ) {
                Ok(source) => built.sources.push(((*component).clone(), route, source)),
                Err(error) => faults.push(format!("source {}: {error:#}", component.name)),
            }
        }
        built.committed = committed;
        anyhow::ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(built)
    }

    /// Starts what was built; paused from the beginning where it is in `before`.
    fn launch(&self, pipeline: &mut Pipeline, built: Built, before: &[Arc<Shell>]) {
        let shell = |component: Component, counters: Counters| {
            let is_same = |old: &&Arc<Shell>| old.component.kind.role == component.kind.role && old.component.name == component.name;
            let paused = before.iter().find(is_same).is_some_and(|old| old.is_paused());
            let shell = Shell::new(component, counters);
            shell.set_paused(paused);
            shell
        };
        for (channel, component) in built.resized {
            channel.reconfigure(&component);
            let gauges = ChannelGauges::new(&component.name);
            gauges.started.now();
            let shell = Shell::new(component, Counters::Channel(gauges, channel));
            pipeline.insert_channel(shell);
        }
        for (component, channel) in built.channels {
            let gauges = ChannelGauges::new(&component.name);
            gauges.started.now();
            pipeline.channels.insert(component.name.clone(), channel.clone());
            pipeline.insert_channel(Shell::new(component, Counters::Channel(gauges, channel)));
        }
        pipeline.committed.extend(built.committed);
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for (component, sink) in built.sinks {
            let Some(channel_name) = component.channels.first().cloned() else { continue };
            let Some(channel) = pipeline.channels.get(&channel_name).cloned() else { continue };
            let counters = SinkCounters::new(&component.name);
            counters.started.now();
            let shell = shell(component, Counters::Sink(counters.clone()));
            let stop = Stop::default();
            if let Some(group) = shell.component.group.clone().filter(|group| group::supervises(group)) {
                let group = groups.entry(group.name.clone()).or_insert_with(|| Group::new(&group));
                let member = group.join(&shell.component.name, shell.trouble.clone(), counters.clone());
                let _first = shell.membership.set(member.membership());
                let input = Input::new(&shell.component.name, channel, counters, member.gate(), shell.trouble.clone())
                    .tapped(&self.taps, &channel_name);
                let (component, state_dir, strict) = (shell.component.clone(), self.place.state_dir.clone(), self.place.strict);
                let again = move || {
                    let kind = SINKS.iter().find(|kind| std::ptr::eq(kind.kind, component.kind)).context("its kind is gone")?;
                    (kind.build)(&component, sink::Setup { state_dir: state_dir.clone(), strict, committed: watch::Sender::new(None) })
                };
                let run = member.run(sink, again, input, shell.pause.subscribe(), stop.clone());
                self.spawn(pipeline, shell, stop, run);
                continue;
            }
            let input = Input::new(&shell.component.name, channel, counters, shell.pause.subscribe(), shell.trouble.clone())
                .tapped(&self.taps, &channel_name)
                .hurried_by(shell.hurry.subscribe());
            let run = sink.run(input, stop.clone());
            self.spawn(pipeline, shell, stop, run);
        }
        for group in groups.into_values() {
            self.tasks.spawn(group.run());
        }
        for (component, route, source) in built.sources {
            let channels: Vec<_> = component.channels.iter().filter_map(|name| pipeline.channels.get(name)).cloned().collect();
            let counters = SourceCounters::new(&component.name);
            counters.started.now();
            let shell = shell(component, Counters::Source(counters.clone()));
            let stop = Stop::default();
            let output = Output::new(&shell.component.name, channels, counters, shell.pause.subscribe(), shell.trouble.clone())
                .through(route)
                .tapped(&self.taps, &shell.component.channels)
                .noting(shell.listening.clone());
            let run = source.run(output, stop.clone());
            self.spawn(pipeline, shell, stop, run);
        }
    }

    fn spawn(
        &self,
        pipeline: &mut Pipeline,
        shell: Arc<Shell>,
        stop: Stop,
        run: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let seen = shell.clone();
        let task = self.tasks.spawn(async move {
            let result =
                std::panic::AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see the log")));
            let component = &seen.component;
            if let Err(error) = &result {
                tracing::error!(component = component.name, kind = component.type_name, error = format!("{error:#}"), "component failed");
            }
            match &seen.counters {
                Counters::Source(counters) => counters.stopped.now(),
                Counters::Sink(counters) => counters.stopped.now(),
                Counters::Channel(..) => {}
            }
            *seen.ended.lock() = Some(result.map_err(|error| format!("{error:#}")));
        });
        let key = (shell.component.kind.role, shell.component.name.clone());
        pipeline.components.insert(key, Running { shell, stop, task });
    }

    /// Sources stop, sinks empty the channels, sinks stop. What is not delivered in time is read again where its source has positions.
    /// Events that are lost with the process are an error.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.taps.close();
        let mut pipeline = self.running.lock().await;
        for running in pipeline.components.values() {
            running.shell.pause.send_replace(false);
        }
        pipeline.hurry(true);
        let (sources, sinks) = pipeline.take(|_, _| true);
        let deadline = tokio::time::Instant::now() + self.place.drain;
        // Channels drain while sources wait for their events to be delivered.
        stop_all(sources, self.place.drain).await;
        // What is in a durable channel is safe there.
        let names: Vec<String> =
            pipeline.channels.iter().filter(|(_, channel)| channel.at_risk() > 0).map(|(name, _)| name.clone()).collect();
        for name in names {
            pipeline.drain_channel(&name, deadline.saturating_duration_since(tokio::time::Instant::now())).await;
        }
        stop_all(sinks, deadline.saturating_duration_since(tokio::time::Instant::now())).await;
        futures::future::join_all(pipeline.channels.values().map(|channel| channel.leave())).await;
        pipeline.channels.values().for_each(|channel| channel.close());
        let left: u64 = pipeline.channels.values().map(|channel| channel.at_risk() as u64).sum();
        let kept = pipeline.channels.values().map(|channel| channel.fill().events as u64).sum::<u64>().saturating_sub(left);
        if kept > 0 {
            tracing::info!(events = kept, "waiting on disk for the next start");
        }
        if left == 0 {
            match self.put_aside() {
                0 if kept == 0 => tracing::info!("everything accepted is delivered"),
                0 => {}
                events => tracing::warn!(
                    events,
                    "put aside as dead letters since the start, and not delivered; see where \"put aside\" is logged"
                ),
            }
            return Ok(());
        }
        let plan = self.plan();
        let in_memory = |source: &&Component| !source.channels.iter().all(|name| plan.has_durable_channel(name));
        let without = plan.sources.iter().filter(in_memory).filter(|source| !source::reads_again(source, self.place.strict));
        let without: Vec<&str> = without.map(|source| source.name.as_str()).collect();
        if without.is_empty() {
            tracing::warn!(events = left, "not everything was delivered in time; it is read again from the last delivered line or record");
            return Ok(());
        }
        anyhow::bail!(
            "{left} events were not delivered within {:?}; those of {} are lost (a longer [shutdown] deadline waits longer)",
            self.place.drain,
            without.join(", ")
        )
    }
}

type SourceParts = (Component, Route, Box<dyn source::Source>);
type SinkParts = (Component, Box<dyn sink::Sink>);

#[derive(Default)]
struct Built {
    resized: Vec<(Arc<dyn Channel>, Component)>,
    channels: Vec<(Component, Arc<dyn Channel>)>,
    sinks: Vec<SinkParts>,
    sources: Vec<SourceParts>,
    committed: BTreeMap<String, CommittedSender>,
}

type CommittedSender = watch::Sender<Option<Arc<tail::Found>>>;

impl Pipeline {
    fn insert_channel(&mut self, shell: Arc<Shell>) {
        let key = (Role::Channel, shell.component.name.clone());
        // A channel is no task; it has a place among the components to be shown.
        let running = Running { shell, stop: Stop::default(), task: tokio::task::spawn(async {}) };
        self.components.insert(key, running);
    }

    /// Sources and channels wait to be emptied: no sink holds back what it has taken.
    fn hurry(&self, hurry: bool) {
        for running in self.components.values() {
            running.shell.hurry.send_replace(hurry);
        }
    }

    /// Takes sources and sinks out.
    fn take(&mut self, chosen: impl Fn(Role, &str) -> bool) -> (Vec<Running>, Vec<Running>) {
        let mut of = |role: Role| {
            let keys: Vec<_> = self.components.keys().filter(|(of, name)| *of == role && chosen(role, name)).cloned().collect();
            keys.into_iter().filter_map(|key| self.components.remove(&key)).collect::<Vec<_>>()
        };
        (of(Role::Source), of(Role::Sink))
    }

    /// Waits until the sinks have emptied the channel.
    async fn drain_channel(&self, name: &str, bound: Duration) {
        let Some(channel) = self.channels.get(name) else { return };
        let emptied = async {
            while channel.fill().events > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(bound, emptied).await.is_err() {
            tracing::warn!(channel = name, events = channel.fill().events, "the sinks did not empty the channel in time");
        }
    }

    /// The committed positions of a transactional sink that goes on running.
    fn committed_of(&self, plan: &Plan, source: &Component) -> Option<tail::Committed> {
        let sink = plan
            .sinks
            .iter()
            .find(|sink| keeps_positions(sink) && sink.channels.iter().any(|channel| source.channels.contains(channel)))?;
        sink.channels.iter().find_map(|channel| self.committed.get(channel)).map(watch::Sender::subscribe)
    }
}

/// Tells all to stop, waits up to `bound`, then cuts short what is left; false when there was something. Who stops is not paused, so
/// that what was accepted is delivered.
async fn stop_all(components: Vec<Running>, bound: Duration) -> bool {
    for running in &components {
        running.shell.pause.send_replace(false);
        running.stop.begin.cancel();
    }
    let abandon: Vec<CancellationToken> = components.iter().map(|running| running.stop.abandon.clone()).collect();
    let mut ends: Vec<_> = components.into_iter().map(|running| running.task).collect();
    let all = futures::future::join_all(ends.iter_mut());
    let in_time = tokio::time::timeout(bound, all).await.is_ok();
    if !in_time {
        abandon.iter().for_each(CancellationToken::cancel);
        let all = futures::future::join_all(ends.iter_mut().filter(|task| !task.is_finished()));
        // They save what they have; a component that does not even do that is left behind.
        if tokio::time::timeout(Duration::from_secs(1), all).await.is_err() {
            ends.iter().for_each(tokio::task::JoinHandle::abort);
        }
    }
    in_time
}

fn lock(directory: &std::path::Path) -> anyhow::Result<std::fs::File> {
    let path = directory.join("lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("state directory {} cannot be written; set --state-dir", directory.display()))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow::anyhow!(
            "another collector runs this agent with the state directory {}; stop it, or give this one another --state-dir",
            directory.display()
        )
    })?;
    Ok(file)
}
