//! `millrace tap`: a live sample of the events that pass a component.
//!
//! While nobody taps it costs one atomic load per batch. It never holds up the pipeline: what a tap has no room, no rate or
//! no look left for is passed over and counted.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use memchr::memmem::Finder;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::event::{Event, Headers};

/// `[tap]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapConfig {
    /// Taps at a time; 0 allows none.
    pub taps_max: usize,
    /// Events that wait for a slow reader, of each tap.
    #[serde(deserialize_with = "service_kit::config::at_least_one")]
    pub queue_events: usize,
    /// Events that a tap with a filter looks at in each of its intervals.
    #[serde(deserialize_with = "service_kit::config::at_least_one")]
    pub looks_max: usize,
}

impl Default for TapConfig {
    fn default() -> Self {
        Self { taps_max: 8, queue_events: 256, looks_max: 100_000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the event comes to the component.
    In,
    /// As it leaves it.
    Out,
}

/// What somebody wants to see. Components are `source.r1`, `channel.c1`, `sink.k1`; a pattern without a dot means the name alone,
/// and `*` and `?` stand for any letters and any one.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub inputs_of: Vec<String>,
    pub outputs_of: Vec<String>,
    /// Events shown in each interval.
    pub limit: usize,
    pub interval: Duration,
    /// Bytes of a body that are shown.
    pub body_bytes_max: usize,
    /// Only events whose body has this in it.
    pub contains: Option<Finder<'static>>,
    /// Only events with all of these headers.
    pub headers: Vec<(String, String)>,
}

impl Wanted {
    pub fn patterns(&self) -> impl Iterator<Item = &String> {
        self.inputs_of.iter().chain(&self.outputs_of)
    }

    fn covers(&self, component: &str, direction: Direction) -> bool {
        let patterns = match direction {
            Direction::In => &self.inputs_of,
            Direction::Out => &self.outputs_of,
        };
        patterns.iter().any(|pattern| means(pattern, component))
    }

    fn is(&self, event: &Event) -> bool {
        self.headers.iter().all(|(name, value)| event.header(name) == Some(value))
            && self.contains.as_ref().is_none_or(|text| text.find(&event.body).is_some())
    }

    fn filters(&self) -> bool {
        self.contains.is_some() || !self.headers.is_empty()
    }
}

/// Does the pattern mean the component (`role.name`)?
pub fn means(pattern: &str, component: &str) -> bool {
    let name = component.split_once('.').map_or(component, |(_, name)| name);
    glob(pattern.as_bytes(), component.as_bytes()) || glob(pattern.as_bytes(), name.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where the last `*` is, and how far it reaches so far.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                star = Some((at, from));
                at += 1;
            }
            (Some(letter), _) if *letter == b'?' || *letter == text[from] => (at, from) = (at + 1, from + 1),
            (_, Some((begin, reach))) => {
                star = Some((begin, reach + 1));
                (at, from) = (begin + 1, reach + 1);
            }
            _ => return false,
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

/// An event as a tap shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub component: Arc<str>,
    pub direction: Direction,
    pub headers: Headers,
    /// Cut after [`Wanted::body_bytes_max`].
    pub body: Bytes,
    pub body_bytes: usize,
    /// Events that passed since the one before and were not shown.
    pub passed_over: u64,
}

struct Tap {
    number: u64,
    wanted: Wanted,
    looks_max: usize,
    window: Mutex<Window>,
    queue: mpsc::Sender<Seen>,
}

/// What a tap has used of its interval.
struct Window {
    begun: Instant,
    shown: usize,
    looked: usize,
    passed_over: u64,
}

impl Tap {
    fn see(&self, component: &Arc<str>, direction: Direction, events: &[Event]) -> u64 {
        let mut window = self.window.lock();
        if window.begun.elapsed() >= self.wanted.interval {
            *window = Window { begun: Instant::now(), shown: 0, looked: 0, ..*window };
        }
        let before = window.passed_over;
        let mut over = 0;
        for (at, event) in events.iter().enumerate() {
            if window.shown >= self.wanted.limit || window.looked >= self.looks_max {
                over += (events.len() - at) as u64;
                break;
            }
            if self.wanted.filters() {
                window.looked += 1;
                if !self.wanted.is(event) {
                    continue;
                }
            }
            let Ok(permit) = self.queue.try_reserve() else {
                over += 1;
                continue;
            };
            let shown = event.body.len().min(self.wanted.body_bytes_max);
            permit.send(Seen {
                component: component.clone(),
                direction,
                headers: event.headers.clone(),
                // A copy: a slice would hold the whole buffer it was read into.
                body: Bytes::copy_from_slice(&event.body[..shown]),
                body_bytes: event.body.len(),
                passed_over: std::mem::take(&mut window.passed_over) + std::mem::take(&mut over),
            });
            window.shown += 1;
        }
        window.passed_over += over;
        window.passed_over.saturating_sub(before)
    }
}

/// All taps of the process.
pub struct Taps {
    config: TapConfig,
    /// How many there are, for those who need not know more.
    open: AtomicUsize,
    taps: RwLock<Vec<Tap>>,
    next: AtomicU64,
    gauge: metrics::Gauge,
    passed_over: metrics::Counter,
}

impl Default for Taps {
    fn default() -> Self {
        Self::new(TapConfig::default())
    }
}

impl Taps {
    pub fn new(config: TapConfig) -> Self {
        Self {
            config,
            open: AtomicUsize::new(0),
            taps: RwLock::default(),
            next: AtomicU64::new(0),
            gauge: metrics::gauge!("millrace_collector_taps"),
            passed_over: metrics::counter!("millrace_collector_tap_passed_over_events_total"),
        }
    }

    /// Begins a tap; it ends with the value. `Err` is how many there are already.
    pub fn open(self: &Arc<Self>, wanted: Wanted) -> Result<Opened, usize> {
        let mut taps = self.taps.write();
        if taps.len() >= self.config.taps_max {
            return Err(taps.len());
        }
        let (queue, seen) = mpsc::channel(self.config.queue_events);
        let number = self.next.fetch_add(1, Relaxed);
        let window = Mutex::new(Window { begun: Instant::now(), shown: 0, looked: 0, passed_over: 0 });
        taps.push(Tap { number, wanted, looks_max: self.config.looks_max, window, queue });
        self.counted(taps.len());
        Ok(Opened { taps: self.clone(), number, seen })
    }

    /// Ends all of them.
    pub fn close(&self) {
        let mut taps = self.taps.write();
        taps.clear();
        self.counted(0);
    }

    fn counted(&self, open: usize) {
        self.open.store(open, Release);
        self.gauge.set(open as f64);
    }

    fn is_idle(&self) -> bool {
        self.open.load(Acquire) == 0
    }
}

/// One tap, at its reader's side.
pub struct Opened {
    taps: Arc<Taps>,
    number: u64,
    seen: mpsc::Receiver<Seen>,
}

impl Opened {
    /// The next event; `None` when the collector ends.
    pub async fn next(&mut self) -> Option<Seen> {
        self.seen.recv().await
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut taps = self.taps.taps.write();
        taps.retain(|tap| tap.number != self.number);
        self.taps.counted(taps.len());
    }
}

/// A component, as a place where events can be seen.
#[derive(Clone)]
pub struct Point {
    taps: Arc<Taps>,
    component: Arc<str>,
}

impl Default for Point {
    /// Where nobody looks.
    fn default() -> Self {
        Self { taps: Arc::default(), component: "".into() }
    }
}

impl Point {
    pub fn new(taps: &Arc<Taps>, role: &str, name: &str) -> Self {
        Self { taps: taps.clone(), component: format!("{role}.{name}").into() }
    }

    pub fn see(&self, direction: Direction, events: &[Event]) {
        if self.taps.is_idle() || events.is_empty() {
            return;
        }
        let taps = self.taps.taps.read();
        let covering = taps.iter().filter(|tap| tap.wanted.covers(&self.component, direction));
        let passed_over = covering.map(|tap| tap.see(&self.component, direction, events)).sum();
        self.taps.passed_over.increment(passed_over);
    }

    /// A copy to be seen once it is certain that they went this way; empty when nobody would look.
    pub fn hold(&self, direction: Direction, events: &[Event]) -> Vec<Event> {
        if self.taps.is_idle() || !self.taps.taps.read().iter().any(|tap| tap.wanted.covers(&self.component, direction)) {
            return Vec::new();
        }
        events.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(limit: usize) -> Wanted {
        Wanted { outputs_of: vec!["r1".into()], limit, interval: Duration::from_secs(3600), body_bytes_max: 4, ..Wanted::default() }
    }

    fn events(bodies: &[&'static str]) -> Vec<Event> {
        bodies.iter().map(|body| Event::with_headers(*body, [("level", if body.contains("bad") { "error" } else { "info" })])).collect()
    }

    fn shown(opened: &mut Opened) -> Vec<(String, u64)> {
        std::iter::from_fn(|| opened.seen.try_recv().ok())
            .map(|seen| (String::from_utf8(seen.body.to_vec()).unwrap(), seen.passed_over))
            .collect()
    }

    fn texts(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(body, over)| ((*body).to_owned(), *over)).collect()
    }

    #[test]
    fn patterns_mean_components() {
        for (pattern, component, expected) in [
            ("*", "sink.k1", true),
            ("source.*", "source.r1", true),
            ("source.*", "sink.k1", false),
            ("r1", "source.r1", true),
            ("r1", "source.r12", false),
            ("r?", "source.r1", true),
            ("*.k*2", "sink.kafka-2", true),
            ("*.k*2", "sink.kafka-21", false),
            ("", "sink.k", false),
            ("SINK.k", "sink.k", false),
            ("a.b", "source.a.b", true),
        ] {
            assert_eq!(means(pattern, component), expected, "{pattern} {component}");
        }
    }

    #[test]
    fn what_is_over_the_limit_is_passed_over_and_counted() {
        let taps = Arc::new(Taps::default());
        let (source, other) = (Point::new(&taps, "source", "r1"), Point::new(&taps, "source", "r2"));
        source.see(Direction::Out, &events(&["before"]));
        assert!(source.hold(Direction::Out, &events(&["x"])).is_empty());
        let mut tap = taps.open(wanted(3)).unwrap();
        source.see(Direction::In, &events(&["in"]));
        other.see(Direction::Out, &events(&["other"]));
        source.see(Direction::Out, &events(&["one", "two and more"]));
        source.see(Direction::Out, &events(&["three", "four", "five"]));
        assert_eq!(shown(&mut tap), texts(&[("one", 0), ("two ", 0), ("thre", 0)]));
        // The next interval tells what it missed.
        taps.taps.read()[0].window.lock().begun -= Duration::from_secs(3601);
        source.see(Direction::Out, &events(&["six"]));
        assert_eq!(shown(&mut tap), texts(&[("six", 2)]));
        drop(tap);
        assert!(taps.is_idle());
    }

    #[test]
    fn a_filter_shows_what_it_matches_and_looks_at_no_more_than_it_may() {
        let taps = Arc::new(Taps::new(TapConfig { looks_max: 3, ..TapConfig::default() }));
        let point = Point::new(&taps, "source", "r1");
        let contains = Some(Finder::new("ad").into_owned());
        let mut by_body = taps.open(Wanted { contains, ..wanted(9) }).unwrap();
        let mut by_header = taps.open(Wanted { headers: vec![("level".into(), "error".into())], ..wanted(9) }).unwrap();
        point.see(Direction::Out, &events(&["good", "bad", "glad", "bad again"]));
        assert_eq!(shown(&mut by_body), texts(&[("bad", 0), ("glad", 0)]));
        assert_eq!(shown(&mut by_header), texts(&[("bad", 0)]));
        assert_eq!(taps.taps.read()[0].window.lock().passed_over, 1);
    }

    #[test]
    fn a_reader_that_does_not_read_costs_no_more_than_its_queue() {
        let taps = Arc::new(Taps::new(TapConfig { queue_events: 2, taps_max: 1, ..TapConfig::default() }));
        let point = Point::new(&taps, "source", "r1");
        let mut tap = taps.open(wanted(100)).unwrap();
        assert_eq!(taps.open(wanted(1)).err(), Some(1));
        for _ in 0..5 {
            point.see(Direction::Out, &events(&["x"]));
        }
        assert_eq!(shown(&mut tap), texts(&[("x", 0), ("x", 0)]));
        point.see(Direction::Out, &events(&["y"]));
        assert_eq!(shown(&mut tap), texts(&[("y", 3)]));
        taps.close();
        assert!(tap.seen.blocking_recv().is_none());
    }
}
