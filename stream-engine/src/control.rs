//! The control port's view of the jobs: translates, then calls the registry.

use std::time::Duration;

use async_trait::async_trait;
use proto::ServiceError;
use proto::control::v1::{self as pb, ReloadResponse, engine_server};
use service_kit::{Control, config::render};
use tonic::{Request, Response, Status};

use crate::checkpoint::Savepoint;
use crate::config::EngineConfig;
use crate::job::{BatchView, Job, JobState, Registry, Submission};
use crate::sql;

const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const SAVEPOINT_WAIT: Duration = Duration::from_secs(60);
const BATCHES_SHOWN: usize = 20;

/// Behind the `Control` gRPC service.
pub struct EngineControl {
    registry: Registry,
    config: EngineConfig,
}

impl EngineControl {
    pub fn new(registry: Registry, config: EngineConfig) -> Self {
        Self { registry, config }
    }
}

#[async_trait]
impl Control for EngineControl {
    async fn facts(&self) -> Vec<(String, String)> {
        let views: Vec<_> = self.registry.jobs().iter().map(|job| job.monitor.view()).collect();
        let over = views.iter().filter(|view| view.state.is_over()).count();
        let paused = views.iter().filter(|view| view.state == JobState::Paused).count();
        let waiting = views.iter().filter(|view| view.state == JobState::Waiting).count();
        let mut jobs = format!("{} running", views.len() - over - paused - waiting);
        for (count, state) in [(paused, "paused"), (waiting, "waiting")] {
            if count > 0 {
                jobs.push_str(&format!(", {count} {state}"));
            }
        }
        let batches: u64 = views.iter().map(|view| view.totals.batches).sum();
        let rows: u64 = views.iter().map(|view| view.totals.rows_in).sum();
        vec![
            ("jobs".into(), format!("{jobs}, {} in all", views.len())),
            ("batches".into(), batches.to_string()),
            ("rows in".into(), rows.to_string()),
        ]
    }

    async fn degraded(&self) -> Option<String> {
        let wrong: Vec<String> = self
            .registry
            .jobs()
            .iter()
            .map(|job| job.monitor.view())
            // A failed job that somebody stopped is known to have failed.
            .filter(|view| view.state != JobState::Finished)
            .filter_map(|view| {
                let failed = if view.state == JobState::Failed { " FAILED" } else { "" };
                view.error.map(|error| format!("job `{}`{failed}: {error}", view.name))
            })
            .collect();
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    async fn paused(&self) -> Vec<String> {
        let views = self.registry.jobs().iter().map(|job| job.monitor.view()).collect::<Vec<_>>();
        views.into_iter().filter(|view| view.state == JobState::Paused).map(|view| view.name).collect()
    }

    async fn reload(&self) -> Result<ReloadResponse, ServiceError> {
        Err(ServiceError::new(
            proto::ErrorKind::Unsupported,
            "the engine's configuration is read at its start; jobs are changed one by one (stop, submit)",
        ))
    }

    async fn pause(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.registry.pause(component, true)
    }

    async fn resume(&self, component: &str) -> Result<Vec<String>, ServiceError> {
        self.registry.pause(component, false)
    }

    async fn remaining(&self) -> u64 {
        self.registry.jobs_and_slots().iter().map(|job| job.monitor.records_waiting()).sum()
    }

    fn effective_config(&self) -> (String, String) {
        ("toml".into(), render(&self.config))
    }
}

/// The `Engine` gRPC service.
pub fn routes(registry: Registry) -> tonic::service::Routes {
    tonic::service::Routes::new(engine_server::EngineServer::new(Engine { registry }))
}

struct Engine {
    registry: Registry,
}

#[async_trait]
impl engine_server::Engine for Engine {
    async fn submit_job(&self, request: Request<pb::SubmitJobRequest>) -> Result<Response<pb::SubmitJobResponse>, Status> {
        let pb::SubmitJobRequest { name, sql, checkpoint, from_savepoint, dry_run } = request.into_inner();
        let submission = Submission { name, sql, checkpoint, from_savepoint, dry_run };
        let (job, plan, notes) = self.registry.submit(submission).await?;
        Ok(Response::new(pb::SubmitJobResponse { job: job.as_deref().map(job_message), plan, notes }))
    }

    async fn list_jobs(&self, _: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let jobs = self.registry.jobs().iter().map(|job| job_message(job)).collect();
        Ok(Response::new(pb::ListJobsResponse { jobs }))
    }

    async fn show_job(&self, request: Request<pb::ShowJobRequest>) -> Result<Response<pb::ShowJobResponse>, Status> {
        let pb::ShowJobRequest { name, batches } = request.into_inner();
        let job = self.registry.job(&name)?;
        let max = if batches == 0 { BATCHES_SHOWN } else { batches as usize };
        let mut views: Vec<BatchView> = job.monitor.view().active;
        views.reverse();
        views.extend(job.monitor.completed(max));
        Ok(Response::new(pb::ShowJobResponse {
            job: Some(job_message(&job)),
            batches: views.iter().take(max).map(batch_message).collect(),
            // The stored text keeps its secrets; nobody is shown them.
            definition: sql::masked(&job.definition),
            plan: job.plan.clone(),
        }))
    }

    async fn stop_job(&self, request: Request<pb::StopJobRequest>) -> Result<Response<pb::StopJobResponse>, Status> {
        let pb::StopJobRequest { name, drain, timeout_ms } = request.into_inner();
        let timeout = if timeout_ms == 0 { STOP_TIMEOUT } else { Duration::from_millis(timeout_ms) };
        let job = self.registry.stop(&name, drain, timeout).await?;
        Ok(Response::new(pb::StopJobResponse { job: Some(job_message(&job)) }))
    }

    async fn savepoint(&self, request: Request<pb::SavepointRequest>) -> Result<Response<pb::SavepointResponse>, Status> {
        let pb::SavepointRequest { name, target } = request.into_inner();
        let (location, batch_id) = self.registry.savepoint(&name, &target, SAVEPOINT_WAIT).await?;
        Ok(Response::new(pb::SavepointResponse { location, batch_id }))
    }

    async fn list_savepoints(&self, request: Request<pb::ListSavepointsRequest>) -> Result<Response<pb::ListSavepointsResponse>, Status> {
        let found = self.registry.savepoints(&request.into_inner().name).await?;
        let message = |Savepoint { name, location, batch, time_ms }| pb::StoredSavepoint { name, location, batch_id: batch, time_ms };
        Ok(Response::new(pb::ListSavepointsResponse { savepoints: found.into_iter().map(message).collect() }))
    }

    async fn delete_savepoint(
        &self,
        request: Request<pb::DeleteSavepointRequest>,
    ) -> Result<Response<pb::DeleteSavepointResponse>, Status> {
        let pb::DeleteSavepointRequest { name, savepoint } = request.into_inner();
        self.registry.delete_savepoint(&name, &savepoint).await?;
        Ok(Response::new(pb::DeleteSavepointResponse {}))
    }

    async fn delete_job(&self, request: Request<pb::DeleteJobRequest>) -> Result<Response<pb::DeleteJobResponse>, Status> {
        let pb::DeleteJobRequest { name, checkpoint } = request.into_inner();
        let location = self.registry.delete(&name, checkpoint).await?;
        Ok(Response::new(pb::DeleteJobResponse { checkpoint: location }))
    }
}

fn job_message(job: &Job) -> pb::Job {
    let view = job.monitor.view();
    let state = match view.state {
        JobState::Starting => pb::JobState::Starting,
        JobState::Running => pb::JobState::Running,
        JobState::Waiting => pb::JobState::Waiting,
        JobState::Paused => pb::JobState::Paused,
        JobState::Stopping => pb::JobState::Stopping,
        JobState::Finished => pb::JobState::Finished,
        JobState::Failed => pb::JobState::Failed,
    };
    pb::Job {
        name: view.name,
        state: state.into(),
        error: view.error.unwrap_or_default(),
        last_batch_at_ms: view.last_batch_at_ms,
        started_at_ms: view.started_at_ms,
        batch_interval_ms: view.batch_interval_ms,
        batches_completed: view.totals.batches,
        rows_in: view.totals.rows_in,
        rows_out: view.totals.rows_out,
        watermark_ms: view.watermark_ms,
        late_rows: view.totals.late,
        malformed_rows: view.totals.malformed,
        checkpoint: view.checkpoint,
        kind: job.kind.name().into(),
    }
}

fn batch_message(batch: &BatchView) -> pb::Batch {
    pb::Batch {
        id: batch.id,
        time_ms: batch.time_ms,
        rows: batch.records,
        scheduling_delay_ms: batch.scheduling_delay_ms().unwrap_or(0),
        processing_ms: batch.processing_ms().unwrap_or(0),
        total_delay_ms: batch.total_delay_ms().unwrap_or(0),
        ranges: batch
            .ranges
            .iter()
            .flatten()
            .map(|range| pb::OffsetRange {
                topic: range.topic.to_string(),
                partition: range.partition,
                from: range.from,
                until: range.until,
            })
            .collect(),
        state: batch.state.name().into(),
        error: batch.error.clone().unwrap_or_default(),
    }
}
