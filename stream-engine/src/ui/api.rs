//! `/api/v1`: jobs and batches as JSON, in the shape of Spark's REST API; a job is an application, its id is its name.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::job::{BatchState, BatchView, Job, JobState, Registry};

pub(super) fn router() -> Router<Registry> {
    Router::new()
        .route("/applications", get(applications))
        .route("/applications/{name}", get(application))
        .route("/applications/{name}/streaming/statistics", get(statistics))
        .route("/applications/{name}/streaming/receivers", get(receivers))
        .route("/applications/{name}/streaming/batches", get(batches))
        .route("/applications/{name}/streaming/batches/{id}", get(batch))
        .route("/applications/{name}/streaming/batches/{id}/operations", get(operations))
        .route("/applications/{name}/streaming/batches/{id}/operations/{op}", get(operation))
        .fallback(async || Missing("there is no such resource".into()))
}

/// 404 with the reason.
struct Missing(String);

impl IntoResponse for Missing {
    fn into_response(self) -> Response {
        (StatusCode::NOT_FOUND, Json(json!({ "error": self.0 }))).into_response()
    }
}

type Answer = Result<Json<Value>, Missing>;

async fn applications(State(registry): State<Registry>) -> Json<Value> {
    Json(registry.jobs().iter().map(|job| describe(job)).collect())
}

async fn application(State(registry): State<Registry>, Path(name): Path<String>) -> Answer {
    with_job(&registry, &name, describe)
}

async fn statistics(State(registry): State<Registry>, Path(name): Path<String>) -> Answer {
    with_job(&registry, &name, |job| {
        let view = job.monitor.view();
        let retained = job.monitor.completed(usize::MAX);
        let average = |value: fn(&BatchView) -> Option<u64>| {
            let values: Vec<u64> = retained.iter().filter_map(value).collect();
            (!values.is_empty()).then(|| values.iter().sum::<u64>() as f64 / values.len() as f64)
        };
        let records: u64 = retained.iter().map(|batch| batch.records).sum();
        let seconds = retained.len() as f64 * view.batch_interval_ms as f64 / 1000.0;
        let waiting: u64 = view.active.iter().map(|batch| batch.records).sum();
        json!({
            "startTime": gmt(view.started_at_ms),
            "batchDuration": view.batch_interval_ms,
            "numReceivers": 0,
            "numActiveReceivers": 0,
            "numInactiveReceivers": 0,
            "numTotalCompletedBatches": view.totals.batches,
            "numRetainedCompletedBatches": retained.len(),
            "numActiveBatches": view.active.len(),
            "numProcessedRecords": view.totals.rows_in,
            "numReceivedRecords": view.totals.rows_in + waiting,
            "avgInputRate": (seconds > 0.0).then(|| records as f64 / seconds),
            "avgSchedulingDelay": average(BatchView::scheduling_delay_ms),
            "avgProcessingTime": average(BatchView::processing_ms),
            "avgTotalDelay": average(BatchView::total_delay_ms),
        })
    })
}

async fn receivers(State(registry): State<Registry>, Path(name): Path<String>) -> Answer {
    with_job(&registry, &name, |_| json!([]))
}

async fn batches(State(registry): State<Registry>, Path(name): Path<String>) -> Answer {
    with_job(&registry, &name, |job| {
        let interval_ms = job.monitor.view().batch_interval_ms;
        let mut all = job.monitor.view().active;
        all.reverse();
        all.extend(job.monitor.completed(usize::MAX));
        all.iter().map(|batch| batch_info(batch, interval_ms)).collect()
    })
}

async fn batch(State(registry): State<Registry>, Path((name, id)): Path<(String, u64)>) -> Answer {
    with_batch(&registry, &name, id, |job, batch| {
        let mut info = batch_info(batch, job.monitor.view().batch_interval_ms);
        info["inputInfo"] = json!(batch.ranges);
        Ok(info)
    })
}

async fn operations(State(registry): State<Registry>, Path((name, id)): Path<(String, u64)>) -> Answer {
    with_batch(&registry, &name, id, |_, batch| Ok((0..batch.outputs.len()).filter_map(|op| operation_info(batch, op)).collect()))
}

async fn operation(State(registry): State<Registry>, Path((name, id, op)): Path<(String, u64, usize)>) -> Answer {
    with_batch(&registry, &name, id, |_, batch| {
        operation_info(batch, op).ok_or_else(|| Missing(format!("batch {id} has no output operation {op}")))
    })
}

fn with_job(registry: &Registry, name: &str, f: impl FnOnce(&Job) -> Value) -> Answer {
    match registry.job(name) {
        Ok(job) => Ok(Json(f(&job))),
        Err(error) => Err(Missing(error.message)),
    }
}

fn with_batch(registry: &Registry, name: &str, id: u64, f: impl FnOnce(&Job, &BatchView) -> Result<Value, Missing>) -> Answer {
    let job = registry.job(name).map_err(|error| Missing(error.message))?;
    let batch = job.monitor.batch(id).ok_or_else(|| Missing(format!("job `{name}` keeps no batch {id}")))?;
    f(&job, &batch).map(Json)
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
        "totals": view.totals,
        "rateLimits": view.rate_limits.iter().map(|(source, limit)| json!({ "source": source, "recordsPerSecond": limit })).collect::<Vec<_>>(),
        "checkpoint": view.checkpoint,
        "plan": job.plan,
    })
}

fn batch_info(batch: &BatchView, interval_ms: u64) -> Value {
    let failed = batch.outputs.iter().filter(|output| output.error.is_some()).count();
    let status = match batch.state {
        BatchState::Queued => "QUEUED",
        BatchState::Running => "PROCESSING",
        BatchState::Completed => "COMPLETED",
        BatchState::Failed => "FAILED",
    };
    json!({
        "batchId": batch.id,
        "batchTime": gmt(batch.time_ms),
        "batchTimeEpoch": batch.time_ms,
        "status": status,
        "batchDuration": interval_ms,
        "inputSize": batch.records,
        "schedulingDelay": batch.scheduling_delay_ms(),
        "processingTime": batch.processing_ms(),
        "totalDelay": batch.total_delay_ms(),
        "numActiveOutputOps": 0,
        "numCompletedOutputOps": batch.outputs.len() - failed,
        "numFailedOutputOps": failed,
        "numTotalOutputOps": batch.outputs.len(),
        "firstFailureReason": batch.error,
    })
}

fn operation_info(batch: &BatchView, op: usize) -> Option<Value> {
    let output = batch.outputs.get(op)?;
    Some(json!({
        "outputOpId": op,
        "name": output.name,
        "description": output.name,
        "duration": output.duration_ms,
        "rows": output.rows,
        "failureReason": output.error,
        "jobIds": [],
    }))
}

/// Spark's format: `2026-11-22T14:05:10.000GMT`.
fn gmt(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms).map_or_else(String::new, |time| time.format("%Y-%m-%dT%H:%M:%S%.3fGMT").to_string())
}
