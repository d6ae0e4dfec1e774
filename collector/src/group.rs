//! Sink groups: which of a group's sinks work now. A group starts, holds and stops its sinks and does nothing else; what a
//! stopped sink held goes back to the channel in its place, and the next sink takes it from there.
//!
//! A sink has failed when it has been in trouble for longer than a moment, or has ended. `failover`: the sink of the highest
//! priority that has not failed works, alone; one whose penalty is over is tried when its
//! priority is higher (the working one is held meanwhile, so that order is kept) and counts as well when it has delivered. `load_balance`: all work, each taking what it can
//! send; a failed one is left out for a while.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::counters::SinkCounters;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Level, Property, Role};
use crate::sink::{Input, Sink};
use crate::source::Stop;

/// Every sink processor.
pub static PROCESSORS: &[&Kind] = &[&DEFAULT, &FAILOVER, &LOAD_BALANCE];

const SINKS: Property = Property::text("sinks", None, "The group's sinks, separated by blanks.").required();
const MOMENT: Property = Property::integer(
    "processor.troubleTime",
    0,
    600_000,
    Some("1000"),
    "Milliseconds that a sink may be in trouble before it counts as failed.",
)
.own();

static DEFAULT: Kind = Kind {
    role: Role::Group,
    alias: Some("default"),
    class: Some("org.apache.flume.sink.DefaultSinkProcessor"),
    doc: "One sink, which works as it does without a group.",
    properties: &[SINKS],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review,
};

static FAILOVER: Kind = Kind {
    role: Role::Group,
    alias: Some("failover"),
    class: Some("org.apache.flume.sink.FailoverSinkProcessor"),
    doc: "The sink of the highest priority that has not failed works, the others wait. One that failed is tried again after a penalty of 2, 4, 8, … seconds.",
    properties: &[
        SINKS,
        Property::text(
            "processor.priority.*",
            None,
            "`processor.priority.<sink>`: a whole number; the highest goes first. Without one: -1, -2, … in the order of the list.",
        ),
        Property::integer("processor.maxpenalty", 0, 86_400_000, Some("30000"), "The longest penalty in milliseconds."),
        MOMENT,
    ],
    deprecated: &[],
    misspelt: &[("processor.maxPenalty", "processor.maxpenalty")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

static LOAD_BALANCE: Kind = Kind {
    role: Role::Group,
    alias: Some("load_balance"),
    class: Some("org.apache.flume.sink.LoadBalancingSinkProcessor"),
    doc: "All sinks work, each taking what it can send. One that failed is left out for a while.",
    properties: &[
        SINKS,
        Property::choice(
            "processor.selector",
            &["round_robin", "random"],
            "round_robin",
            "Accepted: a sink takes when it is free, at once and beside the others.",
        ),
        Property::boolean(
            "processor.backoff",
            "false",
            "A sink that fails again and again is left out for 2, 4, 8, … seconds; otherwise for one second each time.",
        ),
        Property::integer(
            "processor.selector.maxTimeOut",
            1,
            86_400_000,
            Some("30000"),
            "The longest time in milliseconds that a sink is left out.",
        ),
        MOMENT,
    ],
    deprecated: &[],
    misspelt: &[("processor.maxTimeOut", "processor.selector.maxTimeOut")],
    adopt: adopts_nothing,
    batch: None,
    review,
};

/// Does the group do more than run its one sink?
pub fn supervises(group: &Component) -> bool {
    !std::ptr::eq(group.kind, &DEFAULT)
}

fn review(group: &Component, strict: bool) -> Vec<Finding> {
    let mut told = Vec::new();
    let sinks: Vec<&str> = group.text("sinks").split_whitespace().collect();
    let place = |key: &str| group.settings.get(key).and_then(|setting| setting.place.clone());
    let key = |key: &str| format!("{}.{key}", group.name);
    let removed = "drops the group and its sinks";
    let level = if strict { Level::Warning } else { Level::Error };
    let count = match () {
        () if std::ptr::eq(group.kind, &DEFAULT) && sinks.len() > 1 => {
            Some(("processor `default` takes one sink only", "set processor.type to failover or load_balance"))
        }
        () if std::ptr::eq(group.kind, &LOAD_BALANCE) && sinks.len() == 1 => {
            Some(("there is one sink only, nothing to balance", "add a sink, or remove the group"))
        }
        () => None,
    };
    if let Some((message, remedy)) = count {
        told.push(
            Finding::new(level, "group-size", message).maybe_at(place("sinks").as_ref()).key(key("sinks")).flume(removed).remedy(remedy),
        );
    }
    let priorities = group.below("processor.priority.");
    for (sink, priority) in &priorities {
        let setting = format!("processor.priority.{sink}");
        if !sinks.contains(&sink.as_str()) {
            let finding =
                Finding::warning("dead-key", format!("`{sink}` is not one of the group's sinks")).maybe_at(place(&setting).as_ref());
            told.push(finding.key(key(&setting)).flume("ignores it").remedy("correct the name, or remove the line"));
        } else if priority.trim().parse::<i32>().is_err() {
            let finding =
                Finding::new(level, "wrong-value", format!("`{priority}` is not a whole number")).maybe_at(place(&setting).as_ref());
            told.push(finding.key(key(&setting)).flume("takes -1, -2, … for it").remedy("write a whole number"));
        }
    }
    let mut seen: Vec<(i32, &str)> = Vec::new();
    for sink in &sinks {
        let Some(priority) = priorities.get(*sink).and_then(|text| text.trim().parse().ok()) else { continue };
        if let Some((_, other)) = seen.iter().find(|(known, _)| *known == priority) {
            let setting = format!("processor.priority.{sink}");
            let finding = Finding::new(level, "duplicate-priority", format!("`{sink}` and `{other}` have the same priority {priority}"));
            let finding = finding.maybe_at(place(&setting).as_ref()).key(key(&setting));
            told.push(finding.flume("leaves one of them out of the group").remedy("give each sink its own priority"));
        }
        seen.push((priority, sink));
    }
    told
}

/// What a sink of a group is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Work,
    /// Goes on with what it has and takes nothing more.
    Hold,
    /// Finishes what it has, and stops.
    Wait,
    /// Stops at once; what it has goes back.
    Rest,
}

/// How long a sink that is to wait may take to finish.
const FINISH_MAX: Duration = Duration::from_secs(10);
/// How long a sink that is to rest may take to end; then it is cut off.
const END_MAX: Duration = Duration::from_secs(1);
/// How often a group looks at its sinks.
const LOOK: Duration = Duration::from_millis(50);

/// What a sink says of itself, now.
struct Seen {
    failed: Option<String>,
    delivered: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Well, working or waiting.
    Well,
    /// Works after a rest, and has not delivered yet.
    Trial {
        delivered: u64,
    },
    Resting {
        until: Instant,
        why: String,
    },
}

/// One sink's standing in its group.
#[derive(Clone, Debug)]
struct Standing {
    priority: i32,
    state: State,
    /// One after the other, without a delivery between.
    failures: u32,
    order: Order,
}

#[derive(Clone, Copy, Debug)]
enum Policy {
    Failover,
    Balance,
}

/// Who works: facts in, orders out.
struct Rule {
    policy: Policy,
    rest_max: Duration,
    /// Rests grow with each failure.
    growing: bool,
}

impl Rule {
    fn rest(&self, failures: u32) -> Duration {
        let failures = if self.growing { failures.min(16) } else { 0 };
        Duration::from_millis(1000 << failures).min(self.rest_max)
    }

    fn decide(&self, sinks: &mut [Standing], seen: &[Seen], now: Instant) {
        for (sink, seen) in sinks.iter_mut().zip(seen) {
            if let (Some(why), Order::Work | Order::Hold) = (&seen.failed, sink.order) {
                sink.failures += 1;
                sink.state = State::Resting { until: now + self.rest(sink.failures), why: why.clone() };
                sink.order = Order::Rest;
            } else if let State::Trial { delivered } = sink.state
                && seen.delivered > delivered
            {
                (sink.state, sink.failures) = (State::Well, 0);
            }
        }
        let rested = |sink: &Standing| matches!(sink.state, State::Resting { until, .. } if until <= now);
        match self.policy {
            Policy::Balance => {
                for (sink, seen) in sinks.iter_mut().zip(seen) {
                    if rested(sink) {
                        sink.state = State::Trial { delivered: seen.delivered };
                    }
                    if !matches!(sink.state, State::Resting { .. }) {
                        sink.order = Order::Work;
                    }
                }
            }
            Policy::Failover => {
                let trial = |sinks: &[Standing]| sinks.iter().position(|sink| matches!(sink.state, State::Trial { .. }));
                let best = (0..sinks.len()).filter(|&at| sinks[at].state == State::Well).max_by_key(|&at| sinks[at].priority);
                // One of a lower priority is tried when it is needed.
                let needed = |at: usize| rested(&sinks[at]) && best.is_none_or(|best| sinks[at].priority > sinks[best].priority);
                if trial(sinks).is_none()
                    && let Some(at) = (0..sinks.len()).filter(|&at| needed(at)).max_by_key(|&at| sinks[at].priority)
                {
                    sinks[at].state = State::Trial { delivered: seen[at].delivered };
                }
                let trial = trial(sinks);
                for (at, sink) in sinks.iter_mut().enumerate() {
                    sink.order = match &sink.state {
                        State::Trial { .. } => Order::Work,
                        State::Well if best != Some(at) => Order::Wait,
                        // While another is tried.
                        State::Well if trial.is_some() => Order::Hold,
                        State::Well => Order::Work,
                        State::Resting { .. } => Order::Rest,
                    };
                }
            }
        }
    }
}

/// What a sink and its group know of each other.
struct Link {
    name: String,
    order: watch::Sender<Order>,
    /// Why it ended by itself.
    ended: Mutex<Option<String>>,
    /// What it says is wrong with it.
    trouble: Arc<Mutex<Option<String>>>,
    counters: Arc<SinkCounters>,
    /// The agent stops it: the group has no say any more.
    leaving: watch::Sender<bool>,
}

/// How a sink stands in its group, for status.
#[derive(Clone)]
pub struct Membership(Arc<Link>);

impl Membership {
    /// Well, and not its turn.
    pub fn waits(&self) -> bool {
        matches!(*self.0.order.borrow(), Order::Wait | Order::Hold)
    }
}

pub struct Group {
    name: String,
    rule: Rule,
    moment: Duration,
    sinks: Vec<(Arc<Link>, Standing)>,
    /// Priorities by sink, and what the next sink without one gets.
    priorities: std::collections::BTreeMap<String, String>,
    next: i32,
}

impl Group {
    pub fn new(group: &Component) -> Self {
        let failover = std::ptr::eq(group.kind, &FAILOVER);
        let rule = if failover {
            Rule { policy: Policy::Failover, rest_max: group.millis("processor.maxpenalty"), growing: true }
        } else {
            let rest_max = group.millis("processor.selector.maxTimeOut");
            Rule { policy: Policy::Balance, rest_max, growing: group.boolean("processor.backoff") }
        };
        let priorities = group.below("processor.priority.");
        Self { name: group.name.clone(), rule, moment: group.millis("processor.troubleTime"), sinks: Vec::new(), priorities, next: -1 }
    }

    /// Another sink; the channel's word goes through `input` to what the member runs.
    pub fn join(&mut self, name: &str, trouble: Arc<Mutex<Option<String>>>, counters: Arc<SinkCounters>) -> Member {
        let set = self.priorities.get(name).and_then(|text| text.trim().parse().ok());
        let priority = set.unwrap_or_else(|| {
            self.next -= 1;
            self.next + 1
        });
        let link = Arc::new(Link {
            name: name.to_owned(),
            order: watch::Sender::new(Order::Wait),
            ended: Mutex::default(),
            trouble,
            counters,
            leaving: watch::Sender::new(false),
        });
        self.sinks.push((link.clone(), Standing { priority, state: State::Well, failures: 0, order: Order::Wait }));
        Member { link, gate: watch::Sender::new(false) }
    }

    /// Gives orders until its sinks are stopped by the agent.
    pub async fn run(mut self) {
        let mut since: Vec<Option<Instant>> = vec![None; self.sinks.len()];
        let mut standings: Vec<Standing> = self.sinks.iter().map(|(_, standing)| standing.clone()).collect();
        let failures = |link: &Link| metrics::counter!("millrace_collector_group_failures_total", "group" => self.name.clone(), "sink" => link.name.clone());
        let failures: Vec<_> = self.sinks.iter().map(|(link, _)| failures(link)).collect();
        loop {
            let now = Instant::now();
            let seen: Vec<Seen> = self.sinks.iter().zip(&mut since).map(|((link, _), since)| look(link, since, self.moment, now)).collect();
            self.rule.decide(&mut standings, &seen, now);
            for (((link, before), after), failures) in self.sinks.iter_mut().zip(&standings).zip(&failures) {
                if let (State::Resting { until, why }, true) = (&after.state, before.state != after.state) {
                    failures.increment(1);
                    let rest = until.saturating_duration_since(now);
                    tracing::warn!(group = self.name, sink = link.name, rest = ?rest, error = why, "the sink has failed and is left out");
                    *link.trouble.lock() = Some(format!("left out for {rest:?}: {why}"));
                }
                if before.failures > 0 && after.failures == 0 {
                    tracing::info!(group = self.name, sink = link.name, "the sink delivers again");
                }
                link.order.send_if_modified(|order| std::mem::replace(order, after.order) != after.order);
                before.clone_from(after);
            }
            let left = self.sinks.iter().all(|(link, _)| *link.leaving.borrow());
            if left {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A sink's word; failed when it has ended or been in trouble for longer than a moment.
fn look(link: &Link, since: &mut Option<Instant>, moment: Duration, now: Instant) -> Seen {
    let working = *link.order.borrow() == Order::Work;
    let trouble = link.trouble.lock().clone().filter(|_| working);
    let ended = link.ended.lock().clone();
    let leaving = *link.leaving.borrow();
    if trouble.is_none() {
        *since = None;
    }
    let failed = ended.or_else(|| trouble.filter(|_| now.duration_since(*since.get_or_insert(now)) >= moment)).filter(|_| !leaving);
    Seen { failed, delivered: link.counters.delivered.get() }
}

/// The sink's side of its group.
pub struct Member {
    link: Arc<Link>,
    /// The sink is held: by the group or by an operator.
    gate: watch::Sender<bool>,
}

impl Member {
    pub fn membership(&self) -> Membership {
        Membership(self.link.clone())
    }

    /// What the sink's input obeys in place of the operator's pause.
    pub fn gate(&self) -> watch::Receiver<bool> {
        self.gate.subscribe()
    }

    /// Runs the sink when the group says so, until the agent stops it. `again` builds another one.
    pub async fn run(
        self,
        first: Box<dyn Sink>,
        again: impl Fn() -> anyhow::Result<Box<dyn Sink>> + Send,
        input: Input,
        mut paused: watch::Receiver<bool>,
        stop: Stop,
    ) -> anyhow::Result<()> {
        let _leaving = scopeguard(&self.link);
        let mut first = Some(first);
        let mut orders = self.link.order.subscribe();
        loop {
            if *orders.borrow() == Order::Wait {
                *self.link.trouble.lock() = None;
            }
            tokio::select! {
                order = orders.wait_for(|order| matches!(order, Order::Work | Order::Hold)) => if order.is_err() { return Ok(()) },
                () = stop.begin.cancelled() => return Ok(()),
            }
            *self.link.ended.lock() = None;
            *self.link.trouble.lock() = None;
            let sink = match first.take().map_or_else(&again, Ok) {
                Ok(sink) => sink,
                Err(error) => {
                    self.failed(format!("it cannot be started: {error:#}"), &mut orders, &stop).await;
                    continue;
                }
            };
            let own = Stop::default();
            let run = std::panic::AssertUnwindSafe(sink.run(input.clone(), own.clone())).catch_unwind();
            tokio::pin!(run);
            let mut cut_off: Option<Instant> = None;
            let result = loop {
                // Marked as seen here and nowhere else, so that no order is missed.
                let order = *orders.borrow_and_update();
                // After the agent's word the group's orders do not count.
                if !stop.begin.is_cancelled() {
                    if matches!(order, Order::Wait | Order::Rest) && !own.begin.is_cancelled() {
                        own.begin.cancel();
                        cut_off = Some(Instant::now() + FINISH_MAX);
                    }
                    if order == Order::Rest && !own.abandon.is_cancelled() {
                        own.abandon.cancel();
                        cut_off = Some(Instant::now() + END_MAX);
                    }
                }
                self.gate.send_if_modified(|gate| {
                    let held = !own.begin.is_cancelled() && (order == Order::Hold || *paused.borrow_and_update());
                    std::mem::replace(gate, held) != held
                });
                tokio::select! {
                    result = &mut run => break Some(result.unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked; see the log")))),
                    _ = orders.changed() => {}
                    _ = paused.changed() => {}
                    () = stop.begin.cancelled(), if !own.begin.is_cancelled() => own.begin.cancel(),
                    () = stop.abandon.cancelled(), if !own.abandon.is_cancelled() => own.abandon.cancel(),
                    () = tokio::time::sleep_until(cut_off.unwrap_or_else(Instant::now)), if cut_off.is_some() && !stop.begin.is_cancelled() => {
                        if own.abandon.is_cancelled() {
                            break None;
                        }
                        own.abandon.cancel();
                        cut_off = Some(Instant::now() + END_MAX);
                    }
                }
            };
            if stop.begin.is_cancelled() {
                return result.unwrap_or(Ok(()));
            }
            if !own.begin.is_cancelled() {
                let why = match result {
                    Some(Err(error)) => format!("{error:#}"),
                    _ => "it ended".to_owned(),
                };
                self.failed(why, &mut orders, &stop).await;
            }
        }
    }

    /// Tells the group, and waits until it has taken note.
    async fn failed(&self, why: String, orders: &mut watch::Receiver<Order>, stop: &Stop) {
        tracing::error!(sink = self.link.name, error = why, "the sink failed");
        *self.link.ended.lock() = Some(why);
        tokio::select! {
            _noted = orders.wait_for(|order| matches!(order, Order::Rest | Order::Wait)) => {}
            () = stop.begin.cancelled() => {}
        }
        *self.link.ended.lock() = None;
    }
}

/// Marks the sink as gone, however its task ends.
fn scopeguard(link: &Arc<Link>) -> impl Drop + use<> {
    struct Leaving(Arc<Link>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.leaving.send_replace(true);
        }
    }
    Leaving(link.clone())
}

#[cfg(test)]
mod tests;
