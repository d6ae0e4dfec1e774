//! Interceptors: what happens to an event between its source and the channels. One file and one line in
//! [`INTERCEPTORS`] each.

pub mod fixed;
pub mod host;
pub(crate) mod joda;
pub mod regex_extractor;
pub mod regex_filter;
pub mod remove_header;
pub mod search_replace;
pub mod timestamp;
pub mod uuid;

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::event::Event;
use crate::flume_conf::{Component, Finding, Kind};
use crate::java_regex::{JavaRegex, Refused};

/// An interceptor as the table knows it.
pub struct InterceptorKind {
    pub kind: &'static Kind,
    pub build: fn(&Component) -> anyhow::Result<Box<dyn Interceptor>>,
}

pub static INTERCEPTORS: &[InterceptorKind] = &[
    InterceptorKind { kind: &timestamp::KIND, build: timestamp::build },
    InterceptorKind { kind: &fixed::KIND, build: fixed::build },
    InterceptorKind { kind: &host::KIND, build: host::build },
    InterceptorKind { kind: &remove_header::KIND, build: remove_header::build },
    InterceptorKind { kind: &search_replace::KIND, build: search_replace::build },
    InterceptorKind { kind: &regex_filter::KIND, build: regex_filter::build },
    InterceptorKind { kind: &regex_extractor::KIND, build: regex_extractor::build },
    InterceptorKind { kind: &uuid::KIND, build: uuid::build },
];

pub trait Interceptor: Send + Sync {
    /// The event as it goes on; `None` when it ends here.
    fn intercept(&self, event: Event) -> Option<Event>;

    /// The same by one that makes an event as large as somebody likes: by `room` bytes at most, which are taken off. An event
    /// for which that is not enough goes on without this interceptor's work.
    fn intercept_within(&self, event: Event, _room: &mut usize) -> Option<Event> {
        self.intercept(event)
    }
}

/// Bytes by which interceptors may make a batch's events larger; a small body can be asked to become any size.
pub(crate) const GROWTH_MAX: usize = 64 << 20;

/// The expression that is set as `key`, or what is wrong with it.
pub(crate) fn review_regex(
    component: &Component,
    key: &str,
    build: fn(&str) -> Result<JavaRegex, Refused>,
) -> Result<JavaRegex, Box<Finding>> {
    build(component.text(key)).map_err(|refused| {
        let place = component.settings.get(key).and_then(|setting| setting.place.as_ref());
        let finding = Finding::error("regular-expression", refused.to_string()).maybe_at(place).key(format!("{}.{key}", component.name));
        let finding = if refused.by_java {
            finding.flume("drops the source").remedy("correct the expression; in this file a backslash is written twice")
        } else {
            finding.flume("takes it").remedy("write it another way")
        };
        Box::new(finding)
    })
}

/// Events that an interceptor could not do its work on. Each is counted; the first is told.
struct Failures {
    name: String,
    count: metrics::Counter,
    told: AtomicBool,
}

impl Failures {
    fn of(component: &Component) -> Self {
        let count = metrics::counter!("millrace_collector_interceptor_failures_total", "interceptor" => component.name.clone());
        Self { name: component.name.clone(), count, told: AtomicBool::new(false) }
    }

    fn or<T, E: fmt::Display>(&self, result: Result<T, E>, otherwise: T) -> T {
        result.unwrap_or_else(|error| {
            self.count.increment(1);
            if !self.told.swap(true, Relaxed) {
                tracing::warn!(interceptor = self.name, %error, "an event goes on without this interceptor's work; more are only counted");
            }
            otherwise
        })
    }
}

/// A source's interceptors, in their order.
#[derive(Default)]
pub struct Chain(Vec<Box<dyn Interceptor>>);

impl Chain {
    pub fn build(source: &Component) -> anyhow::Result<Self> {
        let built = source.interceptors.iter().map(|part| {
            let kind = INTERCEPTORS.iter().find(|kind| std::ptr::eq(kind.kind, part.kind));
            let kind = kind.ok_or_else(|| anyhow::anyhow!("{}: no code for {}", part.name, part.type_name))?;
            (kind.build)(part).map_err(|error| anyhow::anyhow!("{}: {error:#}", part.name))
        });
        Ok(Self(built.collect::<anyhow::Result<_>>()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What goes on, and what ends here.
    pub fn apply(&self, events: Vec<Event>) -> (Vec<Event>, Vec<Event>) {
        let mut ended = Vec::new();
        let mut going = Vec::with_capacity(events.len());
        let mut room = GROWTH_MAX;
        'events: for mut event in events {
            for interceptor in &self.0 {
                // Its origin is still to be told when it ends here.
                let origin = event.origin.clone();
                match interceptor.intercept_within(event, &mut room) {
                    Some(next) => event = next,
                    None => {
                        ended.push(Event { origin, ..Event::default() });
                        continue 'events;
                    }
                }
            }
            going.push(event);
        }
        (going, ended)
    }
}

#[cfg(test)]
mod tests;
