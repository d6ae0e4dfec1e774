//! `/api/v1`: jobs and batches as JSON, in the shape of Spark's REST API; a job is an application, its id is its name.
//!
//! Below `streaming/` paths, fields, types and what is absent are Spark's. A batch's id is its time in milliseconds. Beyond
//! Spark: the status `FAILED` (Spark lists such a batch as `COMPLETED`), and `streaming/progress`, the newest batches as
//! Structured Streaming's `StreamingQueryProgress`, oldest first.

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::job::{BatchState, BatchView, Job, JobState, JobView, OutputState, OutputView, Registry, StreamView};

pub(super) fn router() -> Router<Registry> {
    Router::new()
        .route("/applications", get(applications))
        .route("/applications/{name}", get(application))
        .route("/applications/{name}/streaming/statistics", get(statistics))
        .route("/applications/{name}/streaming/receivers", get(receivers))
        .route("/applications/{name}/streaming/receivers/{stream}", get(receiver))
        .route("/applications/{name}/streaming/batches", get(batches))
        .route("/applications/{name}/streaming/batches/{id}", get(batch))
        .route("/applications/{name}/streaming/batches/{id}/operations", get(operations))
        .route("/applications/{name}/streaming/batches/{id}/operations/{op}", get(operation))
        .route("/applications/{name}/streaming/progress", get(progress))
        .fallback(async || Refusal::missing("there is no such resource"))
}

// === Spark's classes ===

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StreamingStatistics {
    start_time: String,
    batch_duration: u64,
    num_receivers: usize,
    num_active_receivers: usize,
    num_inactive_receivers: usize,
    num_total_completed_batches: u64,
    num_retained_completed_batches: usize,
    num_active_batches: usize,
    num_processed_records: u64,
    num_received_records: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_input_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_scheduling_delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_processing_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_total_delay: Option<u64>,
}

/// Of every stream; what belongs to a receiver is absent where the stream is read directly.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReceiverInfo {
    stream_id: usize,
    stream_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_active: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executor_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executor_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error_message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avg_event_rate: Option<f64>,
    /// Batch time, records per second; oldest first.
    event_rates: Vec<(i64, f64)>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BatchInfo {
    batch_id: i64,
    batch_time: String,
    status: &'static str,
    batch_duration: u64,
    input_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduling_delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    processing_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_delay: Option<u64>,
    /// Not ended, begun or not.
    num_active_output_ops: usize,
    num_completed_output_ops: usize,
    num_failed_output_ops: usize,
    num_total_output_ops: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure_reason: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputOperationInfo {
    output_op_id: usize,
    name: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_reason: Option<String>,
    job_ids: Vec<u64>,
}

impl StreamingStatistics {
    fn of(job: &Job) -> Self {
        let view = job.monitor.view();
        let completed = job.monitor.completed(usize::MAX);
        let average = |value: fn(&BatchView) -> Option<u64>| {
            let values: Vec<u64> = completed.iter().filter_map(value).collect();
            values.iter().sum::<u64>().checked_div(values.len() as u64)
        };
        let rates: Vec<f64> = completed.iter().chain(&view.active).map(|batch| rate(batch.records, &view)).collect();
        let receivers = || view.streams.iter().filter_map(|stream| stream.receiver.as_ref());
        let active = receivers().filter(|receiver| receiver.active).count();
        Self {
            start_time: gmt(view.started_at_ms),
            batch_duration: view.batch_interval_ms,
            num_receivers: receivers().count(),
            num_active_receivers: active,
            num_inactive_receivers: receivers().count() - active,
            num_total_completed_batches: view.totals.batches,
            num_retained_completed_batches: completed.len(),
            num_active_batches: view.active.len(),
            num_processed_records: view.totals.rows_in,
            num_received_records: view.totals.rows_in + view.active.iter().map(|batch| batch.records).sum::<u64>(),
            avg_input_rate: mean(&rates),
            avg_scheduling_delay: average(BatchView::scheduling_delay_ms),
            avg_processing_time: average(BatchView::processing_ms),
            avg_total_delay: average(BatchView::total_delay_ms),
        }
    }
}

impl ReceiverInfo {
    fn of(job: &Job, view: &JobView, stream: &StreamView) -> Self {
        let mut batches = job.monitor.completed(usize::MAX);
        batches.reverse();
        let event_rates: Vec<(i64, f64)> =
            batches.iter().chain(&view.active).map(|batch| (batch.time_ms, rate(batch.records_of(stream.id), view))).collect();
        let rates: Vec<f64> = event_rates.iter().map(|(_, rate)| *rate).collect();
        let receiver = stream.receiver.as_ref();
        let error = receiver.and_then(|receiver| receiver.last_error.as_ref());
        Self {
            stream_id: stream.id,
            stream_name: stream.name.clone(),
            is_active: receiver.map(|receiver| receiver.active),
            executor_id: receiver.map(|receiver| receiver.executor_id.clone()),
            executor_host: receiver.map(|receiver| receiver.location.clone()),
            last_error_time: error.map(|error| gmt(error.time_ms)),
            last_error_message: error.map(|error| error.message.clone()),
            last_error: error.map(|error| error.error.clone()),
            avg_event_rate: mean(&rates),
            event_rates,
        }
    }
}

impl BatchInfo {
    fn of(batch: &BatchView, interval_ms: u64) -> Self {
        Self {
            batch_id: batch.time_ms,
            batch_time: gmt(batch.time_ms),
            status: status(batch.state),
            batch_duration: interval_ms,
            input_size: batch.records,
            scheduling_delay: batch.scheduling_delay_ms(),
            processing_time: batch.processing_ms(),
            total_delay: batch.total_delay_ms(),
            num_active_output_ops: batch.outputs_in(OutputState::Waiting) + batch.outputs_in(OutputState::Running),
            num_completed_output_ops: batch.outputs_in(OutputState::Succeeded),
            num_failed_output_ops: batch.outputs_in(OutputState::Failed),
            num_total_output_ops: batch.outputs.len(),
            first_failure_reason: batch.failure().map(str::to_owned),
        }
    }
}

impl OutputOperationInfo {
    fn of(output: &OutputView) -> Self {
        Self {
            output_op_id: output.id,
            name: output.name.clone(),
            description: output.description.clone(),
            start_time: output.started_ms.map(gmt),
            end_time: output.ended_ms.map(gmt),
            duration: output.duration_ms(),
            failure_reason: output.error.clone(),
            job_ids: output.job_ids.clone(),
        }
    }
}

const STATES: [BatchState; 4] = [BatchState::Queued, BatchState::Running, BatchState::Completed, BatchState::Failed];

fn status(state: BatchState) -> &'static str {
    match state {
        BatchState::Queued => "QUEUED",
        BatchState::Running => "PROCESSING",
        BatchState::Completed => "COMPLETED",
        BatchState::Failed => "FAILED",
    }
}

fn rate(records: u64, view: &JobView) -> f64 {
    records as f64 * 1000.0 / view.batch_interval_ms.max(1) as f64
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Spark's format: `2026-11-22T14:05:10.000GMT`.
fn gmt(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |time| time.format("%Y-%m-%dT%H:%M:%S%.3fGMT").to_string())
}

// === Requests ===

/// Why there is no answer.
struct Refusal(StatusCode, String);

impl Refusal {
    fn missing(what: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, what.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn applications(State(registry): State<Registry>) -> Json<Vec<Value>> {
    Json(registry.jobs_and_slots().iter().map(|job| describe(job)).collect())
}

async fn application(State(registry): State<Registry>, Path(name): Path<String>) -> Answer<Value> {
    with_job(&registry, &name, |job| Ok(describe(job)))
}

async fn statistics(State(registry): State<Registry>, Path(name): Path<String>) -> Answer<StreamingStatistics> {
    with_job(&registry, &name, |job| Ok(StreamingStatistics::of(job)))
}

async fn receivers(State(registry): State<Registry>, Path(name): Path<String>) -> Answer<Vec<ReceiverInfo>> {
    with_job(&registry, &name, |job| {
        let view = job.monitor.view();
        Ok(view.streams.iter().map(|stream| ReceiverInfo::of(job, &view, stream)).collect())
    })
}

async fn receiver(State(registry): State<Registry>, Path((name, stream)): Path<(String, String)>) -> Answer<ReceiverInfo> {
    with_job(&registry, &name, |job| {
        let view = job.monitor.view();
        let found = view.streams.iter().find(|known| known.id.to_string() == stream);
        found
            .map(|found| ReceiverInfo::of(job, &view, found))
            .ok_or_else(|| Refusal::missing(format!("job `{name}` has no stream `{stream}`")))
    })
}

/// `?status=COMPLETED&status=QUEUED`: only these; without it all. Newest first.
async fn batches(
    State(registry): State<Registry>,
    Path(name): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Answer<Vec<BatchInfo>> {
    let wanted: Vec<&str> = query.iter().filter(|(key, _)| key == "status").map(|(_, value)| value.as_str()).collect();
    let known = STATES.map(status);
    if let Some(unknown) = wanted.iter().find(|wanted| !known.contains(wanted)) {
        return Err(Refusal(StatusCode::BAD_REQUEST, format!("status `{unknown}` is none of {}", known.join(", "))));
    }
    with_job(&registry, &name, |job| {
        let view = job.monitor.view();
        let all = view.active.iter().rev().cloned().chain(job.monitor.completed(usize::MAX));
        let all = all.filter(|batch| wanted.is_empty() || wanted.contains(&status(batch.state)));
        Ok(all.map(|batch| BatchInfo::of(&batch, view.batch_interval_ms)).collect())
    })
}

async fn batch(State(registry): State<Registry>, Path((name, id)): Path<(String, String)>) -> Answer<BatchInfo> {
    with_batch(&registry, &name, &id, |job, batch| Ok(BatchInfo::of(batch, job.monitor.view().batch_interval_ms)))
}

async fn operations(State(registry): State<Registry>, Path((name, id)): Path<(String, String)>) -> Answer<Vec<OutputOperationInfo>> {
    with_batch(&registry, &name, &id, |_, batch| Ok(batch.outputs.iter().map(OutputOperationInfo::of).collect()))
}

async fn operation(State(registry): State<Registry>, Path((name, id, op)): Path<(String, String, String)>) -> Answer<OutputOperationInfo> {
    with_batch(&registry, &name, &id, |_, batch| {
        let found = batch.outputs.iter().find(|output| output.id.to_string() == op);
        found.map(OutputOperationInfo::of).ok_or_else(|| Refusal::missing(format!("batch {id} has no output operation `{op}`")))
    })
}

async fn progress(State(registry): State<Registry>, Path(name): Path<String>) -> Answer<Value> {
    with_job(&registry, &name, |job| Ok(json!(job.monitor.recent_progress())))
}

fn with_job<T>(registry: &Registry, name: &str, answer: impl FnOnce(&Job) -> Result<T, Refusal>) -> Answer<T> {
    let job = registry.job_or_slot(name).map_err(|error| Refusal::missing(error.message))?;
    answer(&job).map(Json)
}

fn with_batch<T>(registry: &Registry, name: &str, id: &str, answer: impl FnOnce(&Job, &BatchView) -> Result<T, Refusal>) -> Answer<T> {
    with_job(registry, name, |job| {
        let batch = id.parse().ok().and_then(|time_ms| job.monitor.batch(time_ms));
        let batch = batch
            .ok_or_else(|| Refusal::missing(format!("job `{name}` keeps no batch `{id}`; a batch's id is its time in milliseconds")))?;
        answer(job, &batch)
    })
}

fn describe(job: &Job) -> Value {
    let view = job.monitor.view();
    json!({
        "id": view.name,
        "name": view.name,
        "kind": job.kind.name(),
        "state": view.state,
        "error": view.error,
        "attempts": [{
            "startTime": gmt(view.started_at_ms),
            "startTimeEpoch": view.started_at_ms,
            "endTimeEpoch": view.ended_at_ms,
            "completed": view.state.is_over() && view.state != JobState::Failed,
        }],
        "watermark": view.watermark_ms,
        "lastBatchEpoch": view.last_batch_at_ms,
        "caughtUpEpoch": view.caught_up_ms,
        "totals": view.totals,
        "rateLimits": view.rate_limits.iter().map(|(source, limit)| json!({ "source": source, "recordsPerSecond": limit })).collect::<Vec<_>>(),
        "checkpoint": view.checkpoint,
        "plan": job.plan,
    })
}
