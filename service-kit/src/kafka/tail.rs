//! Follows one partition: from an offset to its end as it is now, and on.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;

use super::{Bounds, KafkaError, RangeReader, Record, TopicPartition};

type Chunk = Result<Vec<Record>, KafkaError>;

/// Between two looks for something new behind the end.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a [`Tail`] comes upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailEvent {
    /// In order, never empty.
    Records(Vec<Record>),
    /// Everything below this offset was given. It was the end of the partition (to a `read_committed` reader the last stable offset) at a moment
    /// after the tail was made, and after the event of this kind before.
    CaughtUp(i64),
}

/// One partition, read by ranges that each end where the partition ended when it was looked at.
///
/// To a `read_committed` reader a partition ends at its first open transaction: aborted records are passed, and nothing behind that transaction is given
/// before it has ended.
pub struct Tail {
    reader: Arc<dyn RangeReader>,
    partition: TopicPartition,
    next: i64,
    range: Option<(i64, BoxStream<'static, Chunk>)>,
    /// The end was told and nothing came since.
    caught_up: bool,
}

impl Tail {
    pub fn new(reader: Arc<dyn RangeReader>, partition: TopicPartition, from: i64) -> Self {
        Self { reader, partition, next: from, range: None, caught_up: false }
    }

    /// Waits for something new where the end was told before. May be dropped half way: nothing is lost. After an error the next call tries again
    /// from where it was; [`KafkaError::OffsetOutOfRange`] where that was removed.
    pub async fn next(&mut self) -> Result<TailEvent, KafkaError> {
        loop {
            if let Some((until, range)) = &mut self.range {
                match range.next().await {
                    Some(Ok(records)) => {
                        let Some(last) = records.last() else { continue };
                        self.next = last.offset + 1;
                        return Ok(TailEvent::Records(records));
                    }
                    Some(Err(error)) => {
                        self.range = None;
                        return Err(error);
                    }
                    None => {
                        self.next = *until;
                        self.range = None;
                        self.caught_up = true;
                        return Ok(TailEvent::CaughtUp(self.next));
                    }
                }
            }
            let bounds = self.reader.bounds(std::slice::from_ref(&self.partition)).await?;
            let Some(Bounds { earliest, latest }) = bounds.get(&self.partition).copied() else {
                return Err(KafkaError::UnknownTopic(self.partition.topic.to_string()));
            };
            if self.next < earliest {
                let (partition, offset) = (Box::new(self.partition.clone()), self.next);
                return Err(KafkaError::OffsetOutOfRange { partition, offset, earliest, latest });
            }
            if self.next < latest {
                self.caught_up = false;
                self.range = Some((latest, self.reader.read(self.partition.clone(), self.next, latest)));
            } else if self.caught_up {
                tokio::time::sleep(INTERVAL).await;
            } else {
                self.caught_up = true;
                return Ok(TailEvent::CaughtUp(self.next));
            }
        }
    }
}
