//! Interceptors: what happens to an event between its source and the channels. One file and one line in
//! [`INTERCEPTORS`] each.

pub mod fixed;
pub mod timestamp;

use crate::event::Event;
use crate::flume_conf::{Component, Kind};

/// An interceptor as the table knows it.
pub struct InterceptorKind {
    pub kind: &'static Kind,
    pub build: fn(&Component) -> anyhow::Result<Box<dyn Interceptor>>,
}

pub static INTERCEPTORS: &[InterceptorKind] = &[
    InterceptorKind { kind: &timestamp::KIND, build: timestamp::build },
    InterceptorKind { kind: &fixed::KIND, build: fixed::build },
];

pub trait Interceptor: Send + Sync {
    /// The event as it goes on; `None` when it ends here.
    fn intercept(&self, event: Event) -> Option<Event>;
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
        'events: for mut event in events {
            for interceptor in &self.0 {
                // Its origin is still to be told when it ends here.
                let origin = event.origin.clone();
                match interceptor.intercept(event) {
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
