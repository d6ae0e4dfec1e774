//! `null`: events end here.

use async_trait::async_trait;

use super::{Input, Setup, Sink};
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};
use crate::source::Stop;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("null"),
    class: Some("org.apache.flume.sink.NullSink"),
    doc: "Takes events and forgets them, for trials.",
    properties: &[Property::integer("batchSize", 1, 1_000_000, Some("100"), "Events in one take.")],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review: nothing_to_say,
};

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    Ok(Box::new(Null(component.count("batchSize"))))
}

struct Null(usize);

#[async_trait]
impl Sink for Null {
    async fn run(self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        loop {
            let taken = tokio::select! {
                taken = input.take(self.0) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            input.counters.delivered.add(taken.len() as u64);
            taken.commit();
        }
    }
}
