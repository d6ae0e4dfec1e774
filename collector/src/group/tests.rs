use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::*;
use crate::channel::Channel;
use crate::channel::memory::{Limits, MemoryChannel};
use crate::event::Event;
use crate::flume_conf::component::Setting;

fn rule(policy: Policy, growing: bool) -> Rule {
    Rule { policy, rest_max: Duration::from_secs(30), growing }
}

fn standings(priorities: &[i32]) -> Vec<Standing> {
    let standing = |priority: &i32| Standing { priority: *priority, state: State::Well, failures: 0, order: Order::Wait };
    priorities.iter().map(standing).collect()
}

/// Goes through moments: seconds since the beginning, and of each sink whether it fails (`x`), delivers (`+`), or neither.
fn orders(rule: &Rule, priorities: &[i32], moments: &[(f32, &str)]) -> Vec<String> {
    let (mut sinks, begin) = (standings(priorities), Instant::now());
    let mut delivered = vec![0; priorities.len()];
    let shown = |sink: &Standing| match sink.order {
        Order::Work => 'W',
        Order::Hold => 'h',
        Order::Wait => '.',
        Order::Rest => 'r',
    };
    let decided = moments.iter().map(|(second, words)| {
        let of = |(at, word): (usize, char)| {
            delivered[at] += u64::from(word == '+');
            Seen { failed: (word == 'x').then(|| "why".to_owned()), delivered: delivered[at] }
        };
        let seen: Vec<Seen> = words.chars().enumerate().map(of).collect();
        rule.decide(&mut sinks, &seen, begin + Duration::from_secs_f32(*second));
        sinks.iter().map(shown).collect()
    });
    decided.collect()
}

#[test]
fn failover_goes_down_the_priorities_and_back_up() {
    let moments = [(0.0, "--"), (1.0, "-x"), (2.0, "+-"), (3.1, "+-"), (3.2, "--"), (3.3, "-+"), (4.0, "-+")];
    // The second has the higher priority; its first penalty is two seconds; then it is tried while the first is held.
    assert_eq!(orders(&rule(Policy::Failover, true), &[5, 10], &moments), [".W", "Wr", "Wr", "hW", "hW", ".W", ".W"]);
}

#[test]
fn penalties_double_until_a_delivery() {
    let rule = rule(Policy::Failover, true);
    let moments = [(0.0, "-"), (1.0, "x"), (2.9, "-"), (3.0, "-"), (3.1, "x"), (7.0, "-"), (7.2, "-"), (7.3, "+"), (8.0, "x"), (10.0, "-")];
    assert_eq!(orders(&rule, &[0], &moments), ["W", "r", "r", "W", "r", "r", "W", "W", "r", "W"]);
    assert_eq!([1, 2, 4, 5, 40].map(|failures| rule.rest(failures).as_secs()), [2, 4, 16, 30, 30]);
}

#[test]
fn when_all_have_failed_the_first_whose_penalty_is_over_is_tried() {
    let moments = [(0.0, "--"), (1.0, "x-"), (2.0, "-x"), (2.5, "--"), (3.0, "--"), (3.1, "+-"), (4.1, "--"), (4.2, "x-"), (4.3, "--")];
    let expected = ["W.", "rW", "rr", "rr", "Wr", "Wr", "Wr", "rW", "rW"];
    assert_eq!(orders(&rule(Policy::Failover, true), &[2, 1], &moments), expected);
}

#[test]
fn balancing_leaves_one_out_for_a_while() {
    let moments = [(0.0, "--"), (1.0, "x-"), (1.9, "-+"), (2.0, "-+"), (2.1, "x+"), (3.1, "--")];
    assert_eq!(orders(&rule(Policy::Balance, false), &[0, 0], &moments), ["WW", "rW", "rW", "WW", "rW", "WW"]);
    // With backoff two seconds, then four.
    let moments = [(0.0, "--"), (1.0, "x-"), (2.9, "--"), (3.0, "--"), (3.1, "x-"), (7.0, "--"), (7.1, "--")];
    assert_eq!(orders(&rule(Policy::Balance, true), &[0, 0], &moments), ["WW", "rW", "rW", "WW", "rW", "rW", "WW"]);
}

/// A place that sinks deliver to, and that can be away.
#[derive(Default)]
struct Place {
    away: AtomicBool,
    /// It ends with an error instead of being in trouble.
    fails: AtomicBool,
    back: Notify,
    got: Mutex<Vec<String>>,
}

impl Place {
    fn set_away(&self, away: bool) {
        self.away.store(away, SeqCst);
        self.back.notify_waiters();
    }
}

struct ToPlace(Arc<Place>);

#[async_trait]
impl Sink for ToPlace {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        loop {
            let taken = tokio::select! {
                taken = input.take(2) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            anyhow::ensure!(!self.0.fails.load(SeqCst), "it fell over");
            while self.0.away.load(SeqCst) {
                input.trouble(Some("it is away".into()));
                tokio::select! {
                    () = self.0.back.notified() => {}
                    () = stop.abandon.cancelled() => return Ok(()),
                }
            }
            input.trouble(None);
            self.0.got.lock().extend(taken.events().iter().map(|event| String::from_utf8_lossy(&event.body).into_owned()));
            input.counters.delivered.add(taken.len() as u64);
            taken.commit();
        }
    }
}

struct Trial {
    channel: Arc<dyn Channel>,
    places: Vec<Arc<Place>>,
    stop: Stop,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
    memberships: Vec<Membership>,
    group: tokio::task::JoinHandle<()>,
    written: usize,
    _paused: watch::Sender<bool>,
}

fn trial(kind: &'static Kind, settings: &[(&str, &str)]) -> Trial {
    let mut conf = Component::new(kind, "g", kind.name());
    for (key, value) in [("processor.troubleTime", "100")].iter().chain(settings) {
        conf.settings.insert((*key).to_owned(), Setting { value: (*value).to_owned(), place: None });
    }
    let limits = Limits { events_max: 1000, transaction_max: 10, bytes_max: usize::MAX, keep_alive: Duration::ZERO };
    let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(limits));
    let (paused_by, paused) = watch::channel(false);
    let (mut group, stop) = (Group::new(&conf), Stop::default());
    let (mut places, mut tasks, mut memberships) = (Vec::new(), Vec::new(), Vec::new());
    for name in ["k1", "k2"] {
        let (place, trouble, counters) = (Arc::new(Place::default()), Arc::default(), SinkCounters::new(name));
        let member = group.join(name, Arc::clone(&trouble), counters.clone());
        memberships.push(member.membership());
        let input = Input::new(name, channel.clone(), counters, member.gate(), trouble);
        let again = place.clone();
        let build = move || -> anyhow::Result<Box<dyn Sink>> { Ok(Box::new(ToPlace(again.clone()))) };
        tasks.push(tokio::spawn(member.run(Box::new(ToPlace(place.clone())), build, input, paused.clone(), stop.clone())));
        places.push(place);
    }
    let group = tokio::spawn(group.run());
    Trial { channel, places, stop, tasks, memberships, group, written: 0, _paused: paused_by }
}

impl Trial {
    async fn put(&mut self, count: usize) {
        for number in self.written..self.written + count {
            self.channel.put(&mut vec![Event::new(format!("{number:04}"))]).await.unwrap();
        }
        self.written += count;
    }

    fn got(&self, at: usize) -> usize {
        self.places[at].got.lock().len()
    }

    async fn until(&self, what: &str, test: impl Fn(&Self) -> bool) {
        let reached = async {
            while !test(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{what}: {} and {}", self.got(0), self.got(1));
    }

    /// Everything arrived once.
    async fn end(self) {
        self.until("all", |trial| trial.got(0) + trial.got(1) == trial.written).await;
        self.stop.begin.cancel();
        for task in self.tasks {
            task.await.unwrap().unwrap();
        }
        self.group.await.unwrap();
        let mut all: Vec<String> = self.places.iter().flat_map(|place| place.got.lock().clone()).collect();
        all.sort();
        assert_eq!(all, (0..self.written).map(|number| format!("{number:04}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_a_failed_sink_held_goes_to_the_next_in_order_and_back_again() {
    let mut trial = trial(&FAILOVER, &[("processor.priority.k1", "2"), ("processor.priority.k2", "1"), ("processor.maxpenalty", "300")]);
    trial.put(10).await;
    trial.until("the first works", |trial| trial.got(0) == 10).await;
    assert!(trial.memberships[1].waits() && !trial.memberships[0].waits());
    trial.places[0].set_away(true);
    trial.put(10).await;
    trial.until("the second takes over", |trial| trial.got(1) == 10).await;
    assert!(trial.places[1].got.lock().is_sorted());
    trial.places[0].set_away(false);
    // It is tried with what comes next.
    trial.until("the second is held", |trial| trial.memberships[1].waits()).await;
    trial.put(10).await;
    trial.until("the first works again", |trial| trial.got(0) == 20).await;
    assert!(trial.places[0].got.lock().is_sorted());
    trial.end().await;
}

#[tokio::test]
async fn a_sink_that_ends_with_an_error_is_built_again() {
    let mut trial = trial(&FAILOVER, &[("processor.priority.k1", "2"), ("processor.maxpenalty", "200")]);
    trial.places[0].fails.store(true, SeqCst);
    trial.put(4).await;
    trial.until("the second takes over", |trial| trial.got(1) == 4).await;
    trial.places[0].fails.store(false, SeqCst);
    trial.until("the second is held", |trial| trial.memberships[1].waits()).await;
    trial.put(4).await;
    trial.until("the first works again", |trial| trial.got(0) == 4).await;
    trial.end().await;
}

#[tokio::test]
async fn a_balanced_group_goes_on_without_one() {
    let mut trial = trial(&LOAD_BALANCE, &[("processor.backoff", "true"), ("processor.selector.maxTimeOut", "200")]);
    trial.places[1].set_away(true);
    trial.put(40).await;
    trial.until("the first sends all", |trial| trial.got(0) == 40).await;
    trial.places[0].set_away(true);
    trial.places[1].set_away(false);
    trial.put(20).await;
    trial.until("the second sends the rest", |trial| trial.got(1) == 20).await;
    trial.end().await;
}

/// Whatever is away when, and for how long: everything arrives once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_failures_in_quick_succession_lose_and_repeat_nothing() {
    for (kind, settings) in [(&FAILOVER, ("processor.maxpenalty", "1")), (&LOAD_BALANCE, ("processor.selector.maxTimeOut", "1"))] {
        let mut trial = trial(kind, &[("processor.troubleTime", "0"), settings]);
        for _ in 0..100 {
            let at = rand::random_range(0..2);
            trial.places[at].set_away(rand::random());
            trial.places[1 - at].fails.store(rand::random_range(0..4) == 0, SeqCst);
            trial.put(3).await;
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..20))).await;
        }
        for place in &trial.places {
            place.set_away(false);
            place.fails.store(false, SeqCst);
        }
        trial.end().await;
    }
}
