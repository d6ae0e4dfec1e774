//! One membership: reads, gives on, commits what is safe, until told to stop or until the client is of no further use.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use service_kit::kafka::{GroupReader, KafkaError, Record, TopicPartition};
use tokio::time::{Instant, timeout};

use super::{KafkaSource, Wanted};
use crate::event::Ledger;
use crate::source::{Output, Stop};

/// Longest wait for the first record of a read: how soon a stop is seen, and how late an acknowledgement is committed.
const READ_WAIT: Duration = Duration::from_millis(100);
/// Between commits while records come.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a channel may take before the member holds its fetches and polls only to stay in its group.
const PATIENCE: Duration = Duration::from_millis(500);
/// One poll while held.
const HELD_WAIT: Duration = Duration::from_millis(20);
/// Leaving a group, when no broker answers.
const LEAVE_MAX: Duration = Duration::from_secs(3);
/// Between words about records that are no events.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

pub(super) struct Session<'a> {
    source: &'a KafkaSource,
    reader: Arc<dyn GroupReader>,
    out: &'a Output,
    stop: &'a Stop,
    ledger: Arc<Ledger>,
    places: Places,
    committed_at: Instant,
    subscribed: BTreeSet<String>,
    refreshed_at: Option<Instant>,
    told_at: Option<Instant>,
}

/// The ledger's numbers of partitions, one for each tenure.
#[derive(Default)]
struct Places {
    last: u64,
    by_partition: HashMap<TopicPartition, (u64, u64)>,
    partitions: HashMap<u64, (TopicPartition, u64)>,
    /// Safe and not committed yet.
    due: BTreeMap<TopicPartition, i64>,
}

impl Places {
    fn of(&mut self, partition: &TopicPartition, tenure: u64) -> u64 {
        if let Some((known, place)) = self.by_partition.get(partition)
            && *known == tenure
        {
            return *place;
        }
        self.last += 1;
        self.partitions.insert(self.last, (partition.clone(), tenure));
        if let Some((_, old)) = self.by_partition.insert(partition.clone(), (tenure, self.last)) {
            self.partitions.remove(&old);
        }
        self.last
    }

    /// What may be committed now, by whose each partition is.
    fn advance(&mut self, ledger: &Ledger, tenure: impl Fn(&TopicPartition) -> Option<u64>) -> Vec<(TopicPartition, i64)> {
        for (place, mark) in ledger.advance() {
            if let Some((partition, _)) = self.partitions.get(&place)
                && let Ok(offset) = i64::try_from(mark.offset)
            {
                self.due.insert(partition.clone(), offset);
            }
        }
        let held = &self.by_partition;
        self.due.retain(|partition, _| held.get(partition).is_some_and(|(known, _)| tenure(partition) == Some(*known)));
        self.due.iter().map(|(partition, offset)| (partition.clone(), *offset)).collect()
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(source: &'a KafkaSource, reader: Arc<dyn GroupReader>, out: &'a Output, stop: &'a Stop) -> Self {
        Self {
            source,
            reader,
            out,
            stop,
            ledger: Arc::default(),
            places: Places::default(),
            committed_at: Instant::now(),
            subscribed: BTreeSet::new(),
            refreshed_at: None,
            told_at: None,
        }
    }

    /// `Ok` when told to stop; what is not safe by then is read again after the next start.
    pub(super) async fn run(mut self) -> Result<(), KafkaError> {
        let result = self.read_on().await;
        if result.is_ok() {
            let ledger = self.ledger.clone();
            tokio::select! {
                () = stay(self.reader.as_ref(), ledger.settled()) => {}
                () = self.stop.abandon.cancelled() => {}
            }
            if let Err(error) = self.commit().await {
                tracing::warn!(source = self.out.name(), %error, "the last offsets are not committed; their events come again");
            }
        }
        if timeout(LEAVE_MAX, self.reader.close()).await.is_err() {
            tracing::debug!(source = self.out.name(), "the group's coordinator does not answer the good-bye");
        }
        result
    }

    async fn read_on(&mut self) -> Result<(), KafkaError> {
        let max = self.source.bounds.batch.min(self.out.batch_max());
        while !self.stop.begin.is_cancelled() {
            let stop = self.stop;
            tokio::select! {
                () = stay(self.reader.as_ref(), self.out.unpaused()) => {}
                () = stop.begin.cancelled() => break,
            }
            self.subscribe().await?;
            if self.committed_at.elapsed() >= COMMIT_INTERVAL {
                match self.commit().await {
                    Err(error) if !error.retryable() && !matches!(error, KafkaError::Conflict(_)) => return Err(error),
                    // What is due stays so, unless the partition is gone.
                    _ => {}
                }
            }
            self.reader.hold(false).await?;
            match self.reader.read(max, self.source.bounds.batch_bytes, READ_WAIT).await {
                Ok(records) => {
                    self.out.trouble(self.reader.trouble());
                    if !records.is_empty() && !self.give(records).await {
                        break;
                    }
                }
                Err(error) if error.retryable() => self.out.trouble(Some(error.to_string())),
                // Lost for a slow answer: the next poll joins again.
                Err(KafkaError::Conflict(reason)) if !reason.contains("auto.offset.reset") => {
                    tracing::warn!(source = self.out.name(), reason, "the group went on without this member; joining again");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Topics of a pattern come and go.
    async fn subscribe(&mut self) -> Result<(), KafkaError> {
        let wanted: BTreeSet<String> = match &self.source.wanted {
            Wanted::Topics(topics) if self.refreshed_at.is_none() => topics.iter().cloned().collect(),
            Wanted::Pattern(pattern) if self.refreshed_at.is_none_or(|at| at.elapsed() >= self.source.refresh) => {
                match self.reader.topics().await {
                    Ok(names) => {
                        // As Java's client: what is Kafka's own is not meant.
                        let theirs = |name: &String| name == "__consumer_offsets" || name == "__transaction_state";
                        names.into_iter().filter(|name| !theirs(name) && pattern.find(name).unwrap_or(false)).collect()
                    }
                    Err(error) if error.retryable() => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            _ => return Ok(()),
        };
        self.refreshed_at = Some(Instant::now());
        if wanted.is_empty() && !self.subscribed.is_empty() {
            // The members stay members: such a topic may come again.
            tracing::warn!(source = self.out.name(), group = self.source.group, "no topic matches any more; waiting for one");
            self.subscribed = wanted;
        } else if wanted != self.subscribed {
            let names: Vec<String> = wanted.iter().cloned().collect();
            tracing::info!(source = self.out.name(), group = self.source.group, topics = names.join(" "), "reading");
            self.reader.subscribe(&names).await?;
            self.subscribed = wanted;
        }
        Ok(())
    }

    /// Gives the records to the channels; false when told to stop before they had taken them.
    async fn give(&mut self, records: Vec<(TopicPartition, Record)>) -> bool {
        let (mut events, mut offsets, mut bytes) = (Vec::with_capacity(records.len()), BTreeMap::new(), 0);
        let mut current: Option<(TopicPartition, u64)> = None;
        for (partition, record) in records {
            let place = match &current {
                Some((known, place)) if *known == partition => *place,
                _ => {
                    // Rebalances happen in reads alone: it is this member's still.
                    let Some(tenure) = self.reader.tenure(&partition) else { continue };
                    let place = self.places.of(&partition, tenure);
                    current = Some((partition.clone(), place));
                    place
                }
            };
            offsets.insert(place, u64::try_from(record.offset + 1).unwrap_or_default());
            let offset = record.offset;
            match self.source.shape.event(&partition, record) {
                Ok(event) => {
                    bytes += event.body.len();
                    events.push(event);
                }
                Err(error) => {
                    self.out.counters.read_failures.add(1);
                    if self.told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
                        self.told_at = Some(Instant::now());
                        tracing::warn!(
                            source = self.out.name(), %partition, offset, %error,
                            "a record is no event in Flume's form; it stays in the topic and is passed over (useFlumeEventFormat)"
                        );
                    }
                }
            }
        }
        let span = self.out.read_span(events.len(), bytes);
        let trace = span.as_ref().and_then(service_kit::telemetry::traceparent);
        let origin = self.ledger.open_at(&offsets, events.len() * self.out.copies(), trace);
        if events.is_empty() {
            return true;
        }
        for event in &mut events {
            event.origin = Some(origin.clone());
        }
        let stop = self.stop;
        let given = tokio::select! {
            biased;
            () = stay(self.reader.as_ref(), self.out.deliver(events)) => true,
            // Not taken by every channel, so not committed: read again after the next start.
            () = stop.begin.cancelled() => false,
        };
        if !given {
            self.ledger.withdraw();
        }
        given
    }

    async fn commit(&mut self) -> Result<(), KafkaError> {
        self.committed_at = Instant::now();
        let due = self.places.advance(&self.ledger, |partition| self.reader.tenure(partition));
        if due.is_empty() {
            return Ok(());
        }
        self.reader.commit(due, "").await?;
        self.places.due.clear();
        Ok(())
    }
}

/// Waits for `work`. When it lasts, nothing more is fetched, and polls keep the member in its group.
async fn stay<T>(reader: &dyn GroupReader, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        if let Ok(done) = timeout(PATIENCE, &mut work).await {
            return done;
        }
        // Held, a read gives nothing. What is wrong with it the next real one tells.
        let held = reader.hold(true).await.is_ok();
        if held && let Err(error) = reader.read(1, 1, HELD_WAIT).await {
            tracing::debug!(%error, "while waiting");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, acknowledge};

    #[test]
    fn what_was_read_in_an_earlier_tenure_is_not_committed() {
        let ledger = Arc::new(Ledger::default());
        let (a, b) = (TopicPartition::new("t", 0), TopicPartition::new("t", 1));
        let mut places = Places::default();
        let read = |places: &mut Places, partition: &TopicPartition, tenure, next| {
            let place = places.of(partition, tenure);
            Event { origin: Some(ledger.open_at(&BTreeMap::from([(place, next)]), 1, None)), ..Event::default() }
        };
        let first = read(&mut places, &a, 1, 10);
        let second = read(&mut places, &b, 2, 20);
        acknowledge(&[first]);
        assert_eq!(places.advance(&ledger, |_| Some(1)), [(a.clone(), 10)]);
        // `b` went and came back before its event was delivered.
        acknowledge(&[second]);
        let tenure = |partition: &TopicPartition| Some(if *partition == a { 1 } else { 3 });
        assert_eq!(places.advance(&ledger, tenure), [(a.clone(), 10)]);
        let again = read(&mut places, &b, 3, 15);
        acknowledge(&[again]);
        assert_eq!(places.advance(&ledger, tenure), [(a.clone(), 10), (b.clone(), 15)]);
        // `a` is another member's now.
        assert_eq!(places.advance(&ledger, |partition| (*partition == b).then_some(3)), [(b, 15)]);
    }
}
