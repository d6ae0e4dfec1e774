//! Opens a batch's ranges, and ties the batch to the traces of its records.
//!
//! While tracing is on, the first chunk of each partition is fetched before the batch begins: the first sampled
//! `traceparent` in it becomes the parent of `engine.batch`, up to [`LINKS_MAX`] others become links. So one trace goes
//! from the line that was read to the write that it caused. While it is off, ranges are opened and nothing else.

use std::{collections::HashSet, pin::Pin, sync::Arc, task::Poll};

use futures::{Stream, StreamExt, future, stream, stream::BoxStream};
use service_kit::{
    kafka::{KafkaError, RangeReader, Record},
    telemetry,
};
use tracing::{Instrument, Span};

use super::PartitionInput;
use crate::commit::PlannedBatch;

/// Distinct traces that a batch is linked to.
pub const LINKS_MAX: usize = 32;

type Chunk = Result<Vec<Record>, KafkaError>;

/// The ranges of a batch, opened lazily, in the order of the definition.
pub fn open(readers: &[Arc<dyn RangeReader>], planned: &PlannedBatch) -> Vec<PartitionInput> {
    let mut inputs = Vec::new();
    for (source, ranges) in planned.definition.ranges.iter().enumerate() {
        for (n, range) in ranges.iter().enumerate() {
            let records = match readers.get(source) {
                Some(reader) if range.from < range.until => reader.read(range.topic_partition(), range.from, range.until),
                _ => stream::empty().boxed(),
            };
            let caught_up = planned.caught_up.get(source).and_then(|all| all.get(n)).copied().unwrap_or(false);
            inputs.push(PartitionInput { source, range: range.clone(), caught_up, records });
        }
    }
    inputs
}

/// Opens the span of a batch, under the trace of its first sampled record.
pub async fn traced(inputs: Vec<PartitionInput>, span: impl FnOnce() -> Span) -> (Vec<PartitionInput>, Span) {
    if !telemetry::tracing_on() {
        return (inputs, span());
    }
    let peek = |mut input: PartitionInput| async move {
        let first = if input.range.from < input.range.until { input.records.next().await } else { None };
        (input, first)
    };
    let peeked = future::join_all(inputs.into_iter().map(peek)).await;
    let mut contexts = Contexts::default();
    for (_, first) in &peeked {
        if let Some(Ok(records)) = first {
            contexts.collect(records);
        }
    }
    let span = span();
    let mut seen = contexts.found.iter();
    if let Some(parent) = seen.next() {
        telemetry::set_parent(&span, parent);
    }
    seen.for_each(|link| telemetry::add_link(&span, link));
    let read = tracing::info_span!(parent: &span, "read");
    let rejoin = |(input, first): (PartitionInput, Option<Chunk>)| {
        let records = stream::iter(first).chain(input.records);
        PartitionInput { records: InSpan { span: read.clone(), inner: records.boxed() }.boxed(), ..input }
    };
    (peeked.into_iter().map(rejoin).collect(), span)
}

/// Distinct sampled `traceparent`s, in the order of the records.
#[derive(Default)]
struct Contexts {
    found: Vec<String>,
    known: HashSet<String>,
}

impl Contexts {
    fn collect(&mut self, records: &[Record]) {
        for record in records {
            if self.found.len() >= LINKS_MAX {
                return;
            }
            let value = record.headers.iter().find(|(name, _)| name == "traceparent").and_then(|(_, value)| value.as_ref());
            let Some(text) = value.and_then(|value| std::str::from_utf8(value).ok()).filter(|text| sampled(text)) else {
                continue;
            };
            if self.known.insert(text.to_string()) {
                self.found.push(text.to_string());
            }
        }
    }
}

/// W3C: `version-traceid-spanid-flags`; the lowest bit of the flags says that the trace is recorded.
fn sampled(traceparent: &str) -> bool {
    let mut parts = traceparent.split('-');
    let (Some(_), Some(trace), Some(span), Some(flags)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    trace.len() == 32 && span.len() == 16 && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1)
}

/// A stream whose polls happen in a span.
struct InSpan {
    span: Span,
    inner: BoxStream<'static, Chunk>,
}

impl Stream for InSpan {
    type Item = Chunk;

    fn poll_next(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Chunk>> {
        let this = self.get_mut();
        let _entered = this.span.enter();
        this.inner.poll_next_unpin(cx)
    }
}

/// Runs a future in a child span `process` of the batch's.
pub async fn in_process_span<F: Future>(batch: &Span, future: F) -> F::Output {
    future.instrument(tracing::info_span!(parent: batch, "process")).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sampled_contexts_count_each_once_and_bounded() {
        let record = |header: &str| Record {
            offset: 0,
            timestamp_ms: 0,
            key: None,
            value: None,
            headers: vec![("traceparent".into(), Some(header.as_bytes().to_vec().into()))],
        };
        let trace = |n: usize, flags: &str| format!("00-{n:032x}-{:016x}-{flags}", 7);
        let mut contexts = Contexts::default();
        contexts.collect(&[record(&trace(1, "00")), record("nonsense"), record(&trace(2, "01")), record(&trace(2, "01"))]);
        assert_eq!(contexts.found, [trace(2, "01")]);
        let many: Vec<Record> = (0..100).map(|n| record(&trace(100 + n, "01"))).collect();
        contexts.collect(&many);
        assert_eq!(contexts.found.len(), LINKS_MAX);
    }
}
