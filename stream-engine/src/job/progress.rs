//! What a batch achieved, in the shape of Structured Streaming's `StreamingQueryProgress`.
//!
//! Fields and their names are Spark's; what this engine does not know is absent, as NaN is in Spark. Rates are rounded to
//! one decimal.

use std::collections::BTreeMap;

use serde::Serialize;
use service_kit::kafka::TopicPartition;

use super::{BatchView, StreamView};
use crate::batch::{BatchOutcome, OffsetRange};

/// By topic and partition.
type Offsets = BTreeMap<String, BTreeMap<String, i64>>;

/// One committed batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryProgress {
    /// The checkpoint's: the same after a restart.
    pub id: String,
    /// Another one for each run of the job.
    pub run_id: String,
    pub name: String,
    /// When the batch was cut: `2026-11-22T14:05:10.000Z`.
    pub timestamp: String,
    /// 0, 1, 2, …
    pub batch_id: u64,
    /// Milliseconds from its start to its commit.
    pub batch_duration: u64,
    pub num_input_rows: u64,
    /// Since the batch before was cut; absent for the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_rows_per_second: Option<f64>,
    /// Absent when the batch took no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_rows_per_second: Option<f64>,
    /// Milliseconds by step: `latestOffset` (asking how far the sources reach), `walCommit` (making the definition durable),
    /// `addBatch` (reading, computing, writing), `commitOffsets`, and `triggerExecution` (all but the first).
    pub duration_ms: BTreeMap<String, u64>,
    /// `watermark`, when the job has one.
    pub event_time: BTreeMap<String, String>,
    pub state_operators: Vec<StateOperatorProgress>,
    pub sources: Vec<SourceProgress>,
    pub sink: SinkProgress,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateOperatorProgress {
    pub operator_name: String,
    pub num_rows_total: u64,
    pub memory_used_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceProgress {
    pub description: String,
    /// The first offset of the batch.
    pub start_offset: Offsets,
    /// One after the last.
    pub end_offset: Offsets,
    /// Where the partitions ended when the batch was cut; empty where that is not known.
    pub latest_offset: Offsets,
    pub num_input_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_rows_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_rows_per_second: Option<f64>,
    /// `minOffsetsBehindLatest`, `maxOffsetsBehindLatest`, `avgOffsetsBehindLatest` over the partitions.
    pub metrics: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SinkProgress {
    pub description: String,
    pub num_output_rows: u64,
}

/// How long the steps of a batch took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    pub wal_commit: u64,
    pub add_batch: u64,
    pub commit_offsets: u64,
}

/// Whose progress it is.
pub(super) struct Query<'a> {
    pub id: &'a str,
    pub run_id: &'a str,
    pub name: &'a str,
}

impl QueryProgress {
    /// `before_ms`: when the batch before was cut.
    pub(super) fn of(
        query: Query<'_>,
        batch: &BatchView,
        before_ms: Option<i64>,
        outcome: &BatchOutcome,
        streams: &[StreamView],
        durations: Durations,
    ) -> Self {
        let processing = batch.processing_ms().unwrap_or(0);
        let since = before_ms.and_then(|before| u64::try_from(batch.submitted_ms - before).ok());
        let steps = [
            ("latestOffset", batch.cut_ms),
            ("walCommit", durations.wal_commit),
            ("addBatch", durations.add_batch),
            ("commitOffsets", durations.commit_offsets),
            ("triggerExecution", processing + durations.wal_commit),
        ];
        let source = |(index, ranges): (usize, &Vec<OffsetRange>)| {
            let rows = batch.records_of(index);
            SourceProgress {
                description: streams.get(index).map_or_else(|| format!("Stream-{index}"), |stream| stream.name.clone()),
                start_offset: offsets(ranges.iter().map(|range| (range.topic_partition(), range.from))),
                end_offset: offsets(ranges.iter().map(|range| (range.topic_partition(), range.until))),
                latest_offset: offsets(batch.ends.get(index).into_iter().flatten().map(|(partition, end)| (partition.clone(), *end))),
                num_input_rows: rows,
                input_rows_per_second: per_second(rows, since),
                processed_rows_per_second: per_second(rows, Some(processing)),
                metrics: batch.ends.get(index).map(|ends| behind(ranges, ends)).unwrap_or_default(),
            }
        };
        let outputs: Vec<&str> = batch.outputs.iter().map(|output| output.name.as_str()).collect();
        Self {
            id: query.id.into(),
            run_id: query.run_id.into(),
            name: query.name.into(),
            timestamp: utc(batch.submitted_ms),
            batch_id: batch.id,
            batch_duration: processing,
            num_input_rows: outcome.rows_in,
            input_rows_per_second: per_second(outcome.rows_in, since),
            processed_rows_per_second: per_second(outcome.rows_in, Some(processing)),
            duration_ms: steps.into_iter().map(|(step, ms)| (step.into(), ms)).collect(),
            event_time: outcome.watermark_ms.map(|watermark| ("watermark".into(), utc(watermark))).into_iter().collect(),
            state_operators: outcome
                .state
                .iter()
                .map(|state| StateOperatorProgress {
                    operator_name: state.operator.clone(),
                    num_rows_total: state.rows,
                    memory_used_bytes: state.bytes,
                })
                .collect(),
            sources: batch.ranges.iter().enumerate().map(source).collect(),
            sink: SinkProgress { description: outputs.join(", "), num_output_rows: batch.rows_out },
        }
    }
}

fn offsets(offsets: impl Iterator<Item = (TopicPartition, i64)>) -> Offsets {
    let mut by_topic = Offsets::new();
    for (TopicPartition { topic, partition }, offset) in offsets {
        by_topic.entry(topic.to_string()).or_default().insert(partition.to_string(), offset);
    }
    by_topic
}

fn behind(ranges: &[OffsetRange], ends: &BTreeMap<TopicPartition, i64>) -> BTreeMap<String, String> {
    let behind: Vec<i64> =
        ranges.iter().filter_map(|range| ends.get(&range.topic_partition()).map(|end| (end - range.until).max(0))).collect();
    let (Some(min), Some(max)) = (behind.iter().min(), behind.iter().max()) else { return BTreeMap::new() };
    let avg = behind.iter().sum::<i64>() as f64 / behind.len() as f64;
    let metric = |name: &str, value: String| (format!("{name}OffsetsBehindLatest"), value);
    [metric("min", min.to_string()), metric("max", max.to_string()), metric("avg", format!("{avg:.1}"))].into()
}

/// Rounded to one decimal; `None` where there is no such rate.
fn per_second(rows: u64, ms: Option<u64>) -> Option<f64> {
    let ms = ms.filter(|ms| *ms > 0)?;
    Some((rows as f64 * 10_000.0 / ms as f64).round() / 10.0)
}

fn utc(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_one_decimal_and_no_infinity() {
        for (rows, ms, rate) in [(10, Some(3000), Some(3.3)), (0, Some(1000), Some(0.0)), (5, Some(0), None), (5, None, None)] {
            assert_eq!(per_second(rows, ms), rate, "{rows} in {ms:?}");
        }
    }
}
