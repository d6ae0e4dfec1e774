//! `hbase`, `hbase2`, `asynchbase`: events as rows of a table in HBase, through its REST gateway.
//!
//! Promise: a take is committed when HBase has its rows. A row's key is made of the event, so that whatever is sent again
//! writes the same row; a request that HBase refuses is cut in halves until the rows are found that it will never take,
//! and those are put aside with the reason. A table or family that is missing is waited for.
//!
//! | module | question it answers |
//! |---|---|
//! | `settings` | what do the properties come to |
//! | [`serializer`] | how does an event become a row |
//! | [`key`] | what is the same of an event in every try |

pub mod key;
pub mod serializer;
mod settings;

use std::{collections::VecDeque, ops::Range, time::Duration};

use anyhow::Context as _;
use async_trait::async_trait;
use service_kit::hbase::{Hbase, HbaseError, Row};
use tokio::time::Instant;

pub use settings::{ASYNC, HBASE, HBASE2};

use self::key::Keys;
use self::serializer::{Count, Serializer};
use super::dead_letter::DeadLetters;
use super::{Input, Setup, Sink, send_span};
use crate::channel::Taken;
use crate::counters::unix_ms;
use crate::event::Event;
use crate::flume_conf::Component;
use crate::source::Stop;

pub fn build(component: &Component, setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let (serializer, count) = Serializer::build(component, setup.strict)?;
    let channel = component.channels.first().map_or("", String::as_str);
    Ok(Box::new(HbaseSink {
        hbase: Hbase::new(settings::config(component)?)?,
        table: component.text("table").trim().to_owned(),
        family: component.text("columnFamily").trim().to_owned(),
        batch: component.count("batchSize"),
        keys: Keys::new(channel),
        dead: DeadLetters::of(component, &setup.state_dir),
        checked: false,
        serializer,
        count,
    }))
}

struct HbaseSink {
    hbase: Hbase,
    table: String,
    family: String,
    batch: usize,
    serializer: Serializer,
    count: Option<Count>,
    keys: Keys,
    dead: DeadLetters,
    /// The table has been seen, with the family.
    checked: bool,
}

/// A gateway that is away does not fill the log.
const TELL_EVERY: Duration = Duration::from_secs(10);
const BACKOFF_STEP: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What of a take is done.
struct Work {
    rows: Vec<Row>,
    /// The event of each row.
    events: Vec<usize>,
    /// Rows that HBase does not have yet, in their order.
    left: VecDeque<Range<usize>>,
    /// Rows that it has.
    written: usize,
    counted: bool,
    letters: Vec<(Event, String)>,
    skipped: u64,
}

#[async_trait]
impl Sink for HbaseSink {
    async fn run(mut self: Box<Self>, input: Input, stop: Stop) -> anyhow::Result<()> {
        let mut told_at: Option<Instant> = None;
        loop {
            let taken = tokio::select! {
                taken = input.take(self.batch) => taken,
                () = stop.begin.cancelled() => return Ok(()),
            };
            let mut work = self.work(&taken);
            let mut failures = 0u32;
            loop {
                let span = send_span([&taken], input.name());
                let delivered = tokio::select! {
                    delivered = self.deliver(&taken, &mut work) => delivered,
                    // What is not committed goes back; its rows will be written again under the same keys.
                    () = stop.abandon.cancelled() => return Ok(()),
                };
                drop(span);
                let Err(error) = delivered else { break };
                failures += 1;
                let error = error.to_string();
                if told_at.is_none_or(|at| at.elapsed() > TELL_EVERY) {
                    told_at = Some(Instant::now());
                    tracing::warn!(sink = input.name(), error, failures, "rows are not written; trying again until they are");
                }
                input.trouble(Some(error));
                input.counters.connections_failed.add(1);
                input.counters.failed.add(work.left.iter().map(|range| range.len() as u64).sum());
                input.counters.rollbacks.add(1);
                tokio::select! {
                    () = tokio::time::sleep((BACKOFF_STEP * failures).min(BACKOFF_MAX)) => {}
                    () = stop.begin.cancelled() => {
                        taken.rollback();
                        return Ok(());
                    }
                }
            }
            self.dead.put(std::mem::take(&mut work.letters), &input.counters.dead).await.context("dead letters")?;
            if failures > 0 {
                tracing::info!(sink = input.name(), failures, "rows are written again");
            }
            input.trouble(None);
            input.counters.delivered.add(work.written as u64);
            input.counters.skipped.add(work.skipped);
            taken.commit();
        }
    }
}

impl HbaseSink {
    fn work(&self, taken: &Taken) -> Work {
        let now = unix_ms();
        let mut work = Work {
            rows: Vec::with_capacity(taken.len()),
            events: Vec::with_capacity(taken.len()),
            left: VecDeque::new(),
            written: 0,
            counted: false,
            letters: Vec::new(),
            skipped: 0,
        };
        for (at, event) in taken.events().iter().enumerate() {
            match self.serializer.row(event, &self.keys, now) {
                Ok(Some(row)) => {
                    work.rows.push(row);
                    work.events.push(at);
                }
                Ok(None) => work.skipped += 1,
                Err(reason) => work.letters.push((event.clone(), reason)),
            }
        }
        work.left.extend((!work.rows.is_empty()).then_some(0..work.rows.len()));
        work
    }

    /// Does what is left of the work, in order. An error: the rest is to be tried again.
    async fn deliver(&mut self, taken: &Taken, work: &mut Work) -> Result<(), HbaseError> {
        self.check().await?;
        while let Some(range) = work.left.pop_front() {
            match self.hbase.put(&self.table, &work.rows[range.clone()]).await {
                Ok(()) => work.written += range.len(),
                // One of them is refused, and the request as a whole; a row written twice is the same row.
                Err(HbaseError::Refused(_) | HbaseError::TooLarge(_)) if range.len() > 1 => {
                    let middle = range.start + range.len() / 2;
                    work.left.push_front(middle..range.end);
                    work.left.push_front(range.start..middle);
                }
                Err(error @ (HbaseError::Refused(_) | HbaseError::TooLarge(_))) => {
                    work.letters.push((taken.events()[work.events[range.start]].clone(), error.to_string()));
                }
                Err(error) => {
                    self.checked &= !matches!(error, HbaseError::UnknownTable(_) | HbaseError::UnknownFamily(_));
                    work.left.push_front(range);
                    return Err(error);
                }
            }
        }
        if let Some(count) = self.count.as_ref().filter(|_| work.written > 0 && !work.counted) {
            self.hbase.increment(&self.table, &count.row, &count.column, work.written as i64).await?;
            work.counted = true;
        }
        Ok(())
    }

    /// A missing table is not the events' fault: it is found before any of them is sent.
    async fn check(&mut self) -> Result<(), HbaseError> {
        if self.checked {
            return Ok(());
        }
        let families = self.hbase.families(&self.table).await?.ok_or_else(|| HbaseError::UnknownTable(self.table.clone()))?;
        if !families.contains(&self.family) {
            return Err(HbaseError::UnknownFamily(format!(
                "table \"{}\" has no column family \"{}\" (it has {}); create it, or correct columnFamily",
                self.table,
                self.family,
                families.join(", ")
            )));
        }
        self.checked = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
