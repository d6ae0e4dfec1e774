//! The engine's page: jobs, a job's batches and charts, a batch's offsets and outputs; the same as JSON; metrics.
//!
//! Rendered on the server; a few lines of script fetch the page again and swap its live part, so it works without them
//! too. Everything that comes from a job is escaped by the templates.

mod api;
mod chart;
mod page;
#[cfg(test)]
mod tests;
mod text;

use axum::{
    Router,
    extract::{Path, Query, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use maud::Markup;
use serde::Deserialize;

use crate::job::Registry;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Nothing but this server's own style and script runs on the page.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// `/`, `/jobs/NAME`, `/jobs/NAME/batches/TIME`, `/api/v1/…`, `/metrics`.
pub fn router(registry: Registry) -> Router {
    Router::new()
        .route("/", get(jobs))
        .route("/jobs/{name}", get(job))
        .route("/jobs/{name}/batches/{id}", get(batch))
        .route("/assets/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/page.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .nest("/api/v1", api::router())
        .fallback(async || Page(StatusCode::NOT_FOUND, page::not_found("There is no such page.")))
        .with_state(registry)
        .merge(service_kit::metrics::router())
        .layer(middleware::from_fn(headers))
}

async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("x-frame-options"), "DENY"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")], text).into_response()
}

/// A rendered page.
struct Page(StatusCode, Markup);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        (self.0, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], self.1.into_string()).into_response()
    }
}

async fn jobs(State(registry): State<Registry>) -> Page {
    Page(StatusCode::OK, page::jobs(&registry.jobs_and_slots(), registry.clock().now_ms()))
}

#[derive(Deserialize)]
struct Paging {
    /// Of the completed batches; 1 has the newest.
    #[serde(default)]
    page: usize,
}

async fn job(State(registry): State<Registry>, Path(name): Path<String>, Query(Paging { page }): Query<Paging>) -> Page {
    match registry.job_or_slot(&name) {
        Ok(job) => Page(StatusCode::OK, page::job(&job, registry.clock().now_ms(), page)),
        Err(error) => Page(StatusCode::NOT_FOUND, page::not_found(&error.message)),
    }
}

/// A batch is found by its time in milliseconds.
async fn batch(State(registry): State<Registry>, Path((name, id)): Path<(String, String)>) -> Page {
    let found = registry.job_or_slot(&name).ok().and_then(|job| job.monitor.batch(id.parse().ok()?).map(|batch| (job, batch)));
    match found {
        Some((job, batch)) => Page(StatusCode::OK, page::batch(&job, &batch)),
        None => Page(StatusCode::NOT_FOUND, page::not_found("There is no such batch; only recent ones are kept.")),
    }
}
