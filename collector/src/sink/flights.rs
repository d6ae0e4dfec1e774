//! At-least-once delivery for sinks that send records and get one result each.
//!
//! Several sends are under way at a time, begun in the order of the events. Only what failed is sent again: nothing new
//! is begun until every send has ended, then what is left goes out in its old order. What can never be delivered goes to
//! the dead letters. A take is committed when its last event is decided.

use std::{sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use service_kit::kafka::{KafkaError, OutRecord};
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until};
use tracing::Span;

use super::dead_letter::DeadLetters;
use super::record::{Maker, Poison};
use super::{Input, send_span};
use crate::channel::Taken;
use crate::event::Event;
use crate::source::Stop;

#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// One result per record. Sends begun in an order are carried out in that order.
    async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>>;

    /// Why no answer comes, where that is known.
    fn trouble(&self) -> Option<String> {
        None
    }
}

pub struct Flights<D> {
    pub deliver: Arc<D>,
    pub maker: Maker,
    pub dead: DeadLetters,
    pub bounds: Bounds,
}

/// How much may be under way.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// Records of one send.
    pub records: usize,
    pub sends: usize,
    pub events: usize,
    pub bytes: usize,
}

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Without any answer for so long the sink says that it waits.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Takes whose events are not all decided.
struct Flight {
    takes: Vec<Taken>,
    /// (take, event) still to deliver.
    todo: Vec<(usize, usize)>,
    bytes: usize,
    span: Option<Span>,
}

impl Flight {
    fn new(takes: Vec<Taken>, sink: &str) -> Self {
        let todo = takes.iter().enumerate().flat_map(|(at, take)| (0..take.len()).map(move |event| (at, event))).collect();
        let bytes = takes.iter().flat_map(Taken::events).map(Event::size).sum();
        let span = send_span(&takes, sink);
        Self { takes, todo, bytes, span }
    }

    fn event(&self, (take, event): (usize, usize)) -> &Event {
        &self.takes[take].events()[event]
    }

    fn first_number(&self) -> u64 {
        self.todo.first().map_or(0, |&at| self.event(at).number)
    }
}

type Landed = (Flight, Vec<(usize, usize, Poison)>, Vec<Result<(), KafkaError>>, Instant);

impl<D: Deliver> Flights<D> {
    pub async fn run(self, input: Input, stop: Stop) -> anyhow::Result<()> {
        let mut under_way: FuturesUnordered<BoxFuture<'static, Landed>> = FuturesUnordered::new();
        let (mut events, mut bytes) = (0usize, 0usize);
        let mut failed: Vec<Flight> = Vec::new();
        let mut backoff = BACKOFF_MIN;
        let mut again_at = None;
        let mut told = String::new();
        let mut silent_since: Option<Instant> = None;
        loop {
            if under_way.is_empty() {
                silent_since = None;
            } else {
                silent_since.get_or_insert_with(Instant::now);
            }
            let silence_told = silent_since.is_some_and(|since| since.elapsed() >= SILENCE_MAX);
            if !failed.is_empty() && under_way.is_empty() && again_at.is_none() {
                again_at = Some(Instant::now() + backoff);
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            let ending = stop.begin.is_cancelled();
            if ending && under_way.is_empty() && failed.is_empty() {
                return Ok(());
            }
            let has_room = under_way.len() < self.bounds.sends && events < self.bounds.events && bytes < self.bounds.bytes;
            tokio::select! {
                Some((flight, poison, results, begun)) = under_way.next(), if !under_way.is_empty() => {
                    silent_since = None;
                    events -= flight.todo.len() + poison.len();
                    bytes -= flight.bytes;
                    input.counters.sent_in(begun.elapsed());
                    match self.land(flight, poison, results, &input).await {
                        Ok(()) => {
                            if failed.is_empty() {
                                input.trouble(None);
                                backoff = BACKOFF_MIN;
                                if !std::mem::take(&mut told).is_empty() {
                                    tracing::info!(sink = input.name(), "delivering again");
                                }
                            }
                        }
                        Err((flight, error)) => {
                            if told != error {
                                tracing::warn!(sink = input.name(), error, events = flight.todo.len(), "not delivered; trying again until it is");
                                told.clone_from(&error);
                            }
                            input.trouble(Some(error));
                            input.counters.rollbacks.add(1);
                            failed.push(flight);
                        }
                    }
                }
                () = sleep_until(silent_since.unwrap_or_else(Instant::now) + SILENCE_MAX), if silent_since.is_some() && !silence_told => {
                    let why = self.deliver.trouble().map_or_else(String::new, |why| format!(": {why}"));
                    input.trouble(Some(format!("no answer for {} s, events wait{why}", SILENCE_MAX.as_secs())));
                }
                () = sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => {
                    again_at = None;
                    failed.sort_by_key(Flight::first_number);
                    for flight in failed.drain(..) {
                        events += flight.todo.len();
                        bytes += flight.bytes;
                        let begun = self.take_off(flight).await;
                        under_way.push(begun);
                    }
                }
                takes = input.gather(self.bounds.records), if has_room && failed.is_empty() && !ending => {
                    let flight = Flight::new(takes, input.name());
                    events += flight.todo.len();
                    bytes += flight.bytes;
                    let begun = self.take_off(flight).await;
                    under_way.push(begun);
                }
                () = stop.begin.cancelled(), if !ending => {}
                // What is still under way goes back to the channel.
                () = stop.abandon.cancelled() => return Ok(()),
            }
        }
    }

    /// Begins the send before it returns, so that sends begin in the order of their events.
    async fn take_off(&self, mut flight: Flight) -> BoxFuture<'static, Landed> {
        let (mut records, mut poison) = (Vec::with_capacity(flight.todo.len()), Vec::new());
        let mut good = Vec::with_capacity(flight.todo.len());
        for at in std::mem::take(&mut flight.todo) {
            match self.maker.record(flight.event(at)) {
                Ok(record) => {
                    records.push(record);
                    good.push(at);
                }
                Err(why) => poison.push((at.0, at.1, why)),
            }
        }
        flight.todo = good;
        let deliver = self.deliver.clone();
        // Without the runtime's budget for one task: when that is used up, the first poll would only defer the send, and
        // deferred sends begin in the reverse order (seen: 1,024 records before the 1,024 ahead of them).
        let mut send = Box::pin(unconstrained(async move {
            let begun = Instant::now();
            let results = if records.is_empty() { Vec::new() } else { deliver.send(records).await };
            (flight, poison, results, begun)
        }));
        match futures::poll!(&mut send) {
            Poll::Ready(landed) => Box::pin(std::future::ready(landed)),
            Poll::Pending => send,
        }
    }

    /// Commits what is decided; gives back what is to be sent again, and why.
    async fn land(
        &self,
        mut flight: Flight,
        poison: Vec<(usize, usize, Poison)>,
        results: Vec<Result<(), KafkaError>>,
        input: &Input,
    ) -> Result<(), (Flight, String)> {
        let mut dead: Vec<((usize, usize), String)> = poison.into_iter().map(|(take, event, why)| ((take, event), why.0)).collect();
        let (mut again, mut why) = (Vec::new(), None);
        let mut delivered = 0;
        for (&at, result) in flight.todo.iter().zip(results) {
            match result {
                Ok(()) => delivered += 1,
                Err(error) if is_poison(&error, self.maker.topic()) => dead.push((at, error.to_string())),
                Err(error) => {
                    why.get_or_insert(error);
                    again.push(at);
                }
            }
        }
        input.counters.delivered.add(delivered);
        input.counters.failed.add(again.len() as u64);
        let letters = dead.iter().map(|(at, reason)| (flight.event(*at).clone(), reason.clone())).collect();
        let mut why = why.map(|error| error.to_string());
        if let Err(error) = self.dead.put(letters, &input.counters.dead).await {
            why = Some(format!("dead letters cannot be written: {error}"));
            again.extend(dead.into_iter().map(|(at, _)| at));
            again.sort_unstable();
        }
        flight.todo = again;
        match why {
            Some(why) if !flight.todo.is_empty() => Err((flight, why)),
            _ => {
                let Flight { takes, span, .. } = flight;
                takes.into_iter().for_each(Taken::commit);
                drop(span);
                Ok(())
            }
        }
    }
}

/// Would the same event fail again whatever happens? A topic that is not there may be made; one that an event names is the event's fault.
pub fn is_poison(error: &KafkaError, configured_topic: &str) -> bool {
    match error {
        KafkaError::TooLarge { .. } | KafkaError::Invalid(_) | KafkaError::Unsupported(_) => true,
        KafkaError::UnknownTopic(topic) => topic != configured_topic,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;
    use tokio::sync::watch;

    use super::*;
    use crate::channel::{
        Channel,
        memory::{Limits, MemoryChannel},
    };
    use crate::counters::SinkCounters;
    use crate::flume_conf::Component;
    use crate::sink::Setup;

    /// Answers by a script: body → errors to give before it is delivered.
    struct Scripted {
        failures: Mutex<BTreeMap<String, Vec<KafkaError>>>,
        delivered: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Deliver for Scripted {
        async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
            let results = records.iter().map(|record| {
                let body = String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap();
                match self.failures.lock().get_mut(&body).and_then(Vec::pop) {
                    Some(error) => Err(error),
                    None => {
                        self.delivered.lock().push(body);
                        Ok(())
                    }
                }
            });
            let results = results.collect();
            tokio::task::yield_now().await;
            results
        }
    }

    async fn run(bodies: &[&str], failures: &[(&str, &[KafkaError])]) -> (Vec<String>, Vec<String>, u64) {
        let directory = tempfile::tempdir().unwrap();
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(Limits {
            events_max: 1000,
            transaction_max: 3,
            bytes_max: usize::MAX,
            keep_alive: Duration::ZERO,
        }));
        for body in bodies {
            channel.put(&mut vec![Event::new((*body).to_owned())]).await.unwrap();
        }
        let (_resume, paused) = watch::channel(false);
        let counters = SinkCounters::new("k");
        let input = Input::new("k", channel.clone(), counters.clone(), paused, Arc::new(Mutex::new(None)));
        let component = Component::new(&crate::sink::null::KIND, "k", "null");
        let setup = Setup { state_dir: directory.path().to_owned(), strict: false, committed: watch::Sender::new(None) };
        let failures = failures.iter().map(|(body, errors)| ((*body).to_owned(), errors.to_vec())).collect();
        let deliver = Arc::new(Scripted { failures: Mutex::new(failures), delivered: Mutex::default() });
        let flights = Flights {
            deliver: deliver.clone(),
            maker: Maker::to_topic("t"),
            dead: DeadLetters::of(&component, &setup.state_dir),
            bounds: Bounds { records: 4, sends: 3, events: 10, bytes: usize::MAX },
        };
        let stop = Stop::default();
        let sink = tokio::task::spawn(flights.run(input, stop.clone()));
        while channel.fill().events > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.begin.cancel();
        sink.await.unwrap().unwrap();
        let dead = std::fs::read_to_string(directory.path().join("dead-letter/k.jsonl")).unwrap_or_default();
        let dead = dead
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["body"].as_str().unwrap().to_owned())
            .collect();
        let delivered = deliver.delivered.lock().clone();
        (delivered, dead, counters.failed.get())
    }

    #[tokio::test]
    async fn only_what_failed_goes_again_and_poison_is_put_aside() {
        let away = || KafkaError::Retryable("away".into());
        let bodies = ["a", "b", "c", "d", "e", "f", "g"];
        let (delivered, dead, failed) = run(&bodies, &[]).await;
        assert_eq!((delivered, dead, failed), (bodies.map(str::to_owned).to_vec(), vec![], 0));

        let (delivered, dead, failed) =
            run(&bodies, &[("b", &[away(), away()]), ("d", &[away()]), ("f", &[KafkaError::TooLarge { bytes: 2, max: 1 }])]).await;
        // Each once; what failed together goes again in its order.
        let mut sorted = delivered.clone();
        sorted.sort();
        assert_eq!(sorted, ["a", "b", "c", "d", "e", "g"]);
        let at = |body: &str| delivered.iter().position(|delivered| delivered == body);
        assert!(at("d") < at("b") && at("a") < at("c"), "{delivered:?}");
        assert_eq!((dead, failed), (vec!["f".to_owned()], 3));

        // A missing topic of the conf is waited for; one that an event names is not.
        let (delivered, dead, _) =
            run(&["x", "y"], &[("x", &[KafkaError::UnknownTopic("t".into())]), ("y", &[KafkaError::UnknownTopic("other".into())])]).await;
        assert_eq!((delivered, dead), (vec!["x".to_owned()], vec!["y".to_owned()]));
    }

    /// Takes a permit first, as a producer with bounded memory does; then the order of the calls is the order of the records.
    struct Budgeted {
        permits: tokio::sync::Semaphore,
        seen: Mutex<Vec<u64>>,
    }

    #[async_trait]
    impl Deliver for Budgeted {
        async fn send(&self, records: Vec<OutRecord>) -> Vec<Result<(), KafkaError>> {
            let _permit = self.permits.acquire().await.unwrap();
            let number = |record: &OutRecord| std::str::from_utf8(record.value.as_ref().unwrap()).unwrap().parse::<u64>().unwrap();
            self.seen.lock().extend(records.iter().map(number));
            tokio::task::yield_now().await;
            records.iter().map(|_| Ok(())).collect()
        }
    }

    #[tokio::test]
    async fn sends_begin_in_the_order_of_the_events_however_busy_the_task_is() {
        const EVENTS: u64 = 20_000;
        let directory = tempfile::tempdir().unwrap();
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(Limits {
            events_max: EVENTS as usize,
            transaction_max: EVENTS as usize,
            bytes_max: usize::MAX,
            keep_alive: Duration::ZERO,
        }));
        channel.put(&mut (0..EVENTS).map(|number| Event::new(number.to_string())).collect()).await.unwrap();
        let (_resume, paused) = watch::channel(false);
        let input = Input::new("k", channel.clone(), SinkCounters::new("k"), paused, Arc::new(Mutex::new(None)));
        let component = Component::new(&crate::sink::null::KIND, "k", "null");
        let setup = Setup { state_dir: directory.path().to_owned(), strict: false, committed: watch::Sender::new(None) };
        let deliver = Arc::new(Budgeted { permits: tokio::sync::Semaphore::new(1000), seen: Mutex::default() });
        let bounds = Bounds { records: 8, sends: 500, events: usize::MAX, bytes: usize::MAX };
        let flights =
            Flights { deliver: deliver.clone(), maker: Maker::to_topic("t"), dead: DeadLetters::of(&component, &setup.state_dir), bounds };
        let stop = Stop::default();
        let sink = tokio::task::spawn(flights.run(input, stop.clone()));
        while channel.fill().events > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.begin.cancel();
        sink.await.unwrap().unwrap();
        assert_eq!(*deliver.seen.lock(), (0..EVENTS).collect::<Vec<_>>());
    }
}
