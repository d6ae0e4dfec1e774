//! `seq`: numbers from 0 upwards, for trials.

use async_trait::async_trait;

use super::{Output, Setup, Source, Stop};
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Source,
    alias: Some("seq"),
    class: Some("org.apache.flume.source.SequenceGeneratorSource"),
    doc: "Numbers from 0 upwards, one an event, for trials.",
    properties: &[
        Property::integer("batchSize", 1, 1_000_000, Some("1"), "Events in one put."),
        Property::integer("totalEvents", 0, i64::MAX, Some("9223372036854775807"), "After so many events the source is done."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: Some("batchSize"),
    review: nothing_to_say,
};

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Source>> {
    Ok(Box::new(Seq { batch: component.count("batchSize"), total: component.integer("totalEvents") }))
}

struct Seq {
    batch: usize,
    total: i64,
}

#[async_trait]
impl Source for Seq {
    async fn run(self: Box<Self>, out: Output, stop: Stop) -> anyhow::Result<()> {
        let mut next = 0;
        while next < self.total && !stop.begin.is_cancelled() {
            let end = self.total.min(next + i64::try_from(self.batch.min(out.batch_max()))?);
            let mut events: Vec<Event> = (next..end).map(|number| Event::new(number.to_string())).collect();
            out.trace(&mut events);
            tokio::select! {
                biased;
                () = out.deliver(events) => next = end,
                // A number that no channel took was never given out.
                () = stop.begin.cancelled() => break,
            }
        }
        Ok(())
    }
}
