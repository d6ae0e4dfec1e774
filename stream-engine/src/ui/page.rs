//! The pages: what Spark's Streaming tab shows, and the jobs around it.

use std::sync::Arc;

use maud::{DOCTYPE, Markup, html};

use super::chart::Chart;
use super::text::{count, duration, maybe_duration, span, time};
use crate::job::{BatchState, BatchView, Job, JobState, JobView};
use crate::sql;

/// Batches in the charts and in the table of completed ones.
const CHART_BATCHES: usize = 120;
const TABLE_BATCHES: usize = 50;

fn layout(title: &str, trail: &Markup, refresh_ms: u64, live: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Millrace" }
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/page.js" defer {}
            }
            body {
                a.skip href="#live" { "Skip to content" }
                header {
                    nav aria-label="Breadcrumb" { a.brand href="/" { "Millrace" } span.muted { "stream engine" } (trail) }
                    span #fresh.muted role="status" {}
                }
                main #live data-refresh=(refresh_ms) { (live) }
                footer.muted { "JSON: " a href="/api/v1/applications" { "/api/v1/applications" } " · " a href="/metrics" { "/metrics" } " · times in UTC" }
            }
        }
    }
}

pub(super) fn not_found(message: &str) -> Markup {
    layout("Not found", &html! {}, 0, &html! { h1 { "Not found" } p { (message) } p { a href="/" { "All jobs" } } })
}

fn state(state: JobState) -> Markup {
    html! { span class={ "state " (state.name().to_lowercase()) } { (state.name()) } }
}

fn batch_state(batch: &BatchView) -> Markup {
    let class = match batch.state {
        BatchState::Queued => "starting",
        BatchState::Running => "running",
        BatchState::Completed => "finished",
        BatchState::Failed => "failed",
    };
    html! { span class={ "state " (class) } { (batch.state.name()) } }
}

// === All jobs ===

pub(super) fn jobs(jobs: &[Arc<Job>], now_ms: i64) -> Markup {
    let live = html! {
        h1 { "Jobs" }
        @if jobs.is_empty() {
            div.empty {
                p { strong { "No jobs yet." } }
                p { "Submit one: " code { "millrace job submit JOB.sql" } }
            }
        } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Job" } th scope="col" { "State" } th scope="col" { "Kind" }
                    th.n scope="col" { "Batches" } th.n scope="col" { "Rows in" } th.n scope="col" { "Rows out" }
                    th.n scope="col" { "Processing" } th.n scope="col" { "Total delay" } th scope="col" { "Watermark" } th scope="col" { "Last batch" } th scope="col" { "Runs for / ended" }
                } }
                tbody { @for job in jobs {
                    @let view = job.monitor.view();
                    @let newest = job.monitor.completed(1).into_iter().next();
                    tr {
                        th scope="row" { a href={ "/jobs/" (job.name) } { (job.name) } }
                        td { (state(view.state)) @if let Some(error) = &view.error { div.error-line { (first_line(error)) } } }
                        td { (job.kind.name()) }
                        td.n { (count(view.totals.batches)) }
                        td.n { (count(view.totals.rows_in)) }
                        td.n { (count(view.totals.rows_out)) }
                        td.n { (maybe_duration(newest.as_ref().and_then(BatchView::processing_ms))) }
                        td.n { (maybe_duration(newest.as_ref().and_then(BatchView::total_delay_ms))) }
                        td { (view.watermark_ms.map_or_else(|| "–".into(), time)) }
                        td { (ago(view.last_batch_at_ms, now_ms)) }
                        td { (lifetime(&view, now_ms)) }
                    }
                } }
            } }
        }
    };
    layout("Jobs", &html! {}, 2000, &live)
}

fn age(since_ms: i64, now_ms: i64) -> u64 {
    u64::try_from(now_ms - since_ms).unwrap_or(0)
}

/// `3 s ago`
fn ago(at_ms: Option<i64>, now_ms: i64) -> String {
    at_ms.map_or_else(|| "–".into(), |at_ms| format!("{} ago", span(age(at_ms, now_ms))))
}

/// How long a job runs, or when it ended.
fn lifetime(view: &JobView, now_ms: i64) -> String {
    match view.ended_at_ms {
        Some(ended_ms) => format!("ended {}", time(ended_ms)),
        None if view.state.is_over() => "ended earlier".into(),
        None => format!("for {}", span(age(view.started_at_ms, now_ms))),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// === One job ===

pub(super) fn job(job: &Job, now_ms: i64) -> Markup {
    let view = job.monitor.view();
    let completed = job.monitor.completed(CHART_BATCHES);
    let live = html! {
        h1 { (view.name) " " (state(view.state)) }
        (summary(&view, now_ms))
        @if let Some(error) = &view.error { div.alert role="alert" { pre { (error) } } }
        (facts(job, &view, now_ms))
        section aria-label="Charts" { (charts(&completed, view.batch_interval_ms)) }
        (active_table(job, &view.active))
        (completed_table(job, &completed))
        @if !job.plan.is_empty() { details { summary { "Plan (how the engine runs the queries)" } pre { (job.plan) } } }
        @if !job.definition.is_empty() { details { summary { "Definition" } pre { (sql::masked(&job.definition)) } } }
        @if !job.notes.is_empty() {
            details { summary { "Notes (" (job.notes.len()) ")" } ul { @for note in &job.notes { li { (note) } } } }
        }
    };
    let refresh = if view.state.is_over() { 0 } else { view.batch_interval_ms.clamp(1000, 5000) };
    layout(&view.name, &html! { span.muted { "/" } a href={ "/jobs/" (job.name) } aria-current="page" { (job.name) } }, refresh, &live)
}

/// Spark's header line.
fn summary(view: &JobView, now_ms: i64) -> Markup {
    let verb = match view.state {
        JobState::Waiting => "Waiting to run",
        state if state.is_over() => "Ran",
        _ => "Running",
    };
    html! {
        p.lead {
            (verb) " batches of " strong { (duration(view.batch_interval_ms)) }
            @if !view.state.is_over() { " for " strong { (span(age(view.started_at_ms, now_ms))) } }
            @if view.started_at_ms > 0 { " since " strong { (time(view.started_at_ms)) } }
            @if let Some(ended_ms) = view.ended_at_ms { " until " strong { (time(ended_ms)) } }
            " (" strong { (count(view.totals.batches)) } " completed batches, " strong { (count(view.totals.rows_in)) } " records)"
        }
    }
}

fn facts(job: &Job, view: &JobView, now_ms: i64) -> Markup {
    let fact = |name: &str, value: String| html! { div.fact { dt { (name) } dd { (value) } } };
    html! {
        dl.facts {
            (fact("Last batch", ago(view.last_batch_at_ms, now_ms)))
            (fact("Rows out", count(view.totals.rows_out)))
            (fact("Watermark", view.watermark_ms.map_or_else(|| "–".into(), time)))
            (fact("Late rows", count(view.totals.late)))
            (fact("Malformed rows", count(view.totals.malformed)))
            @for (source, limit) in &view.rate_limits { (fact(&format!("Rate limit of {source}"), format!("{}/s", count(*limit)))) }
            (fact("Kind", job.kind.name().into()))
            (fact("Checkpoint", view.checkpoint.clone()))
        }
    }
}

fn charts(completed: &[BatchView], interval_ms: u64) -> Markup {
    let series = |value: &dyn Fn(&BatchView) -> Option<f64>| -> Vec<(i64, f64)> {
        completed.iter().rev().filter_map(|batch| value(batch).map(|value| (batch.time_ms, value))).collect()
    };
    let seconds = (interval_ms as f64 / 1000.0).max(0.001);
    let ms = |value: Option<u64>| value.map(|ms| ms as f64);
    let rate = series(&|batch| Some(batch.records as f64 / seconds));
    let scheduling = series(&|batch| ms(batch.scheduling_delay_ms()));
    let processing = series(&|batch| ms(batch.processing_ms()));
    let total = series(&|batch| ms(batch.total_delay_ms()));
    let interval = Some((interval_ms as f64, "batch interval"));
    // The line is drawn where it does not flatten the values.
    let near = processing.iter().any(|(_, value)| *value * 20.0 >= interval_ms as f64);
    html! {
        (Chart { title: "Input rate", unit: "records/s", points: &rate, line: None }.render())
        (Chart { title: "Scheduling delay", unit: "ms", points: &scheduling, line: None }.render())
        (Chart { title: "Processing time", unit: "ms", points: &processing, line: interval.filter(|_| near) }.render())
        @if !near && !processing.is_empty() { p.muted.note { "Processing time is below a twentieth of the batch interval (" (duration(interval_ms)) ")." } }
        (Chart { title: "Total delay", unit: "ms", points: &total, line: None }.render())
    }
}

fn batch_link(job: &Job, batch: &BatchView) -> Markup {
    html! { a href={ "/jobs/" (job.name) "/batches/" (batch.id) } { (time(batch.time_ms)) } span.muted { " #" (batch.id) } }
}

fn active_table(job: &Job, active: &[BatchView]) -> Markup {
    html! {
        h2 { "Active batches (" (active.len()) ")" }
        @if active.is_empty() { p.muted { "None." } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Batch time" } th.n scope="col" { "Records" } th.n scope="col" { "Scheduling delay" }
                    th.n scope="col" { "Attempt" } th scope="col" { "Status" }
                } }
                tbody { @for batch in active.iter().rev() {
                    tr {
                        th scope="row" { (batch_link(job, batch)) }
                        td.n { (count(batch.records)) }
                        td.n { (maybe_duration(batch.scheduling_delay_ms())) }
                        td.n { (batch.attempt + 1) }
                        td { (batch_state(batch)) @if let Some(error) = &batch.error { div.error-line { (first_line(error)) } } }
                    }
                } }
            } }
        }
    }
}

fn completed_table(job: &Job, completed: &[BatchView]) -> Markup {
    html! {
        h2 { "Completed batches" @if completed.len() > TABLE_BATCHES { span.muted { " (newest " (TABLE_BATCHES) ")" } } }
        @if completed.is_empty() { p.muted { "None yet." } } @else {
            div.scroll { table {
                thead { tr {
                    th scope="col" { "Batch time" } th.n scope="col" { "Records" } th.n scope="col" { "Scheduling delay" }
                    th.n scope="col" { "Processing time" } th.n scope="col" { "Total delay" } th.n scope="col" { "Outputs: succeeded/total" } th scope="col" { "Status" }
                } }
                tbody { @for batch in completed.iter().take(TABLE_BATCHES) {
                    @let succeeded = batch.outputs.iter().filter(|output| output.error.is_none()).count();
                    tr {
                        th scope="row" { (batch_link(job, batch)) }
                        td.n { (count(batch.records)) }
                        td.n { (maybe_duration(batch.scheduling_delay_ms())) }
                        td.n { (maybe_duration(batch.processing_ms())) }
                        td.n { (maybe_duration(batch.total_delay_ms())) }
                        td.n { (succeeded) "/" (batch.outputs.len()) }
                        td { (batch_state(batch)) @if batch.attempt > 0 { div.error-line { (batch.attempt + 1) " attempts" @if let Some(error) = &batch.error { ": " (first_line(error)) } } } }
                    }
                } }
            } }
        }
    }
}

// === One batch ===

pub(super) fn batch(job: &Job, batch: &BatchView) -> Markup {
    let view = job.monitor.view();
    let fact = |name: &str, value: String| html! { div.fact { dt { (name) } dd { (value) } } };
    let live = html! {
        h1 { "Batch " (batch.id) " at " (time(batch.time_ms)) " " (batch_state(batch)) }
        dl.facts {
            (fact("Batch duration", duration(view.batch_interval_ms)))
            (fact("Input data size", format!("{} records", count(batch.records))))
            (fact("Scheduling delay", maybe_duration(batch.scheduling_delay_ms())))
            (fact("Processing time", maybe_duration(batch.processing_ms())))
            (fact("Total delay", maybe_duration(batch.total_delay_ms())))
            (fact("Rows out", count(batch.rows_out)))
            (fact("Malformed", count(batch.malformed)))
            (fact("Late", count(batch.late)))
            (fact("Attempts", (batch.attempt + 1).to_string()))
        }
        @if let Some(error) = &batch.error { div.alert role="alert" { strong { "Last error" } pre { (error) } } }
        h2 { "Outputs" }
        @if batch.outputs.is_empty() { p.muted { "None ran." } } @else {
            div.scroll { table {
                thead { tr { th scope="col" { "Output" } th.n scope="col" { "Duration" } th.n scope="col" { "Rows" } th scope="col" { "Status" } } }
                tbody { @for output in &batch.outputs {
                    tr {
                        th scope="row" { (output.name) }
                        td.n { (duration(output.duration_ms)) }
                        td.n { (count(output.rows)) }
                        td { @match &output.error { Some(error) => pre.error-line { (error) }, None => span.state.finished { "succeeded" } } }
                    }
                } }
            } }
        }
        h2 { "Input" }
        @for (source, ranges) in batch.ranges.iter().enumerate() {
            div.scroll { table {
                caption { "Source " (source) }
                thead { tr { th scope="col" { "Topic" } th.n scope="col" { "Partition" } th.n scope="col" { "From offset" } th.n scope="col" { "Until offset" } th.n scope="col" { "Records" } } }
                tbody { @for range in ranges {
                    tr {
                        th scope="row" { (range.topic) }
                        td.n { (range.partition) } td.n { (range.from) } td.n { (range.until) } td.n { (count(range.count())) }
                    }
                } }
            } }
        }
    };
    let trail = html! {
        span.muted { "/" } a href={ "/jobs/" (job.name) } { (job.name) }
        span.muted { "/" } a href={ "/jobs/" (job.name) "/batches/" (batch.id) } aria-current="page" { "batch " (batch.id) }
    };
    let refresh = if matches!(batch.state, BatchState::Queued | BatchState::Running) { 1000 } else { 0 };
    layout(&format!("Batch {} of {}", batch.id, job.name), &trail, refresh, &live)
}
